//! Values on the command line: sizes, durations, labels, filters, ids.

use std::time::Duration;

use crate::client::WriteId;
use crate::types::api::Filter;
use crate::types::limits::MAX_CONFIG_BYTES;
use crate::types::object::{Kind, Sensitive};
use crate::types::{ChangeId, Revision};

/// `64MiB`, `1GiB`, `100000`: bytes. Powers of 1024 for KiB and its like, of 1000 for kB.
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || "a size is a number of bytes or a number with KiB, MiB, GiB, such as 64MiB".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "tib" | "t" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).ok_or_else(|| "the size does not fit into 64 bits".to_owned())
}

/// The size of a resource's payload.
pub fn payload_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        size if size < MAX_CONFIG_BYTES as u64 => Ok(size),
        _ => Err(format!("a payload is smaller than {MAX_CONFIG_BYTES} bytes")),
    }
}

/// `90d`, `12h`, `1h30m`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || "a duration is numbers with units d, h, m, s or ms, such as 90d, 1h30m or 500ms".to_owned();
    let mut rest = text;
    let mut total = Duration::ZERO;
    if text.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let unit_ms: u64 = match unit {
            "d" => 86_400_000,
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return Err(bad()),
        };
        let part = number.checked_mul(unit_ms).map(Duration::from_millis);
        total = part
            .and_then(|part| total.checked_add(part))
            .filter(|total| u64::try_from(total.as_millis()).is_ok())
            .ok_or_else(|| "the duration is too long".to_owned())?;
        rest = after;
    }
    Ok(total)
}

/// `K=V`. The value may be empty and may hold `=`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// A revision, as `version` in JSON shows it.
pub fn revision(text: &str) -> Result<Revision, String> {
    text.parse().map(Revision).map_err(|_| "a revision is a number, as `inspect` shows it".to_owned())
}

/// A kind of object.
pub fn kind(text: &str) -> Result<Kind, String> {
    Kind::parse(text).ok_or_else(|| format!("not a kind of object; kinds are {}", Kind::ALL.map(Kind::name).join(", ")))
}

/// A join token. What it says is for the manager to check; here it only must not be printed.
pub fn token(text: &str) -> Result<Sensitive, std::convert::Infallible> {
    Ok(Sensitive(text.as_bytes().to_vec()))
}

/// `ID@REV`.
pub fn write_id(text: &str) -> Result<WriteId, String> {
    let bad = || "expected ID@REV as the error of the earlier attempt printed it".to_owned();
    let (id, after) = text.split_once('@').ok_or_else(bad)?;
    let change: ChangeId = id.parse().map_err(|_| bad())?;
    Ok(WriteId { change, after: Revision(after.parse().map_err(|_| bad())?) })
}

/// What [`write_id`] reads.
pub fn show_write_id(id: WriteId) -> String {
    format!("{}@{}", id.change, id.after)
}

/// One `--filter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterTerm {
    /// The name begins with this.
    Name(String),
    /// The id begins with this.
    Id(String),
    /// The label is there, and has the value if one is given.
    Label(String, Option<String>),
    /// A resource of this extension.
    Kind(String),
}

/// `name=P`, `id=P`, `label=K[=V]`, `kind=K`.
pub fn filter(text: &str) -> Result<FilterTerm, String> {
    let bad = || "expected name=P, id=P, label=K, label=K=V or kind=K".to_owned();
    let (field, value) = text.split_once('=').ok_or_else(bad)?;
    if value.is_empty() {
        return Err(bad());
    }
    match field {
        "name" => Ok(FilterTerm::Name(value.to_owned())),
        "id" => Ok(FilterTerm::Id(value.to_owned())),
        "kind" => Ok(FilterTerm::Kind(value.to_owned())),
        "label" => Ok(match value.split_once('=') {
            Some((key, value)) => FilterTerm::Label(key.to_owned(), Some(value.to_owned())),
            None => FilterTerm::Label(value.to_owned(), None),
        }),
        _ => Err(bad()),
    }
}

/// The filter that several `--filter` make.
pub fn filters(terms: &[FilterTerm]) -> Filter {
    let mut filter = Filter::default();
    for term in terms.iter().cloned() {
        match term {
            FilterTerm::Name(prefix) => filter.name_prefixes.push(prefix),
            FilterTerm::Id(prefix) => filter.id_prefixes.push(prefix),
            FilterTerm::Kind(kind) => filter.kinds.push(kind),
            FilterTerm::Label(key, value) => {
                filter.labels.insert(key, value);
            }
        }
    }
    filter
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("100000", 100_000),
            ("64MiB", 64 << 20),
            ("1gib", 1 << 30),
            ("3kB", 3000),
            ("7B", 7),
            ("2k", 2048),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5MiB", "64 MiB", "1PB", "99999999999999999999", "18446744073709551615KiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [
            ("90d", 90 * 86_400_000),
            ("12h", 43_200_000),
            ("1h30m", 5_400_000),
            ("500ms", 500),
            ("1m1s1ms", 61_001),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "d", "1y", "1h30", "-1s", "1.5s", "1 s", "99999999999999999999d", "18446744073709551615d"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn labels_filters_and_ids() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
        assert!(pair("a").is_err() && pair("=b").is_err());

        let terms: Vec<_> = ["name=web", "name=db", "id=0a", "label=x", "label=y=1=2", "kind=route"]
            .into_iter()
            .map(|text| filter(text).unwrap())
            .collect();
        let made = filters(&terms);
        assert_eq!(made.name_prefixes, ["web", "db"]);
        assert_eq!((made.id_prefixes, made.kinds), (vec!["0a".to_owned()], vec!["route".to_owned()]));
        assert_eq!(made.labels["x"], None);
        assert_eq!(made.labels["y"].as_deref(), Some("1=2"));
        for text in ["web", "names=x", "name=", "=x"] {
            assert!(filter(text).is_err(), "{text}");
        }

        let id = WriteId { change: ChangeId(12), after: Revision(34) };
        assert_eq!(write_id(&show_write_id(id)), Ok(id));
        for text in ["", "x@1", "0000000000000000000000000", "0000000000000000000000000@x"] {
            assert!(write_id(text).is_err(), "{text}");
        }
    }
}
