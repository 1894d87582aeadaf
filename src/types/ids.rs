//! Identifiers and counters, one type each so that none is taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Characters of a printed id. 36^25 > 2^128.
pub const ID_LENGTH: usize = 25;

/// Prints 128 bits as 25 characters `[0-9a-z]`, most significant first.
pub fn base36(mut value: u128) -> String {
    let mut digits = [b'0'; ID_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(value % 36) as usize];
        value /= 36;
    }
    String::from_utf8_lossy(&digits).into_owned()
}

/// Reads what [`base36`] prints; `None` for another length, another character, or a number over 128 bits.
pub fn parse_base36(text: &str) -> Option<u128> {
    if text.len() == ID_LENGTH { digits(text) } else { None }
}

/// The first and the last number whose printed form begins with `prefix`; `None` when there is none. The empty prefix
/// stands for every number.
pub fn prefix_range(prefix: &str) -> Option<(u128, u128)> {
    if prefix.is_empty() {
        return Some((0, u128::MAX));
    }
    let others = u32::try_from(ID_LENGTH.checked_sub(prefix.len())?).ok()?;
    let each = 36_u128.pow(others);
    let first = digits(prefix)?.checked_mul(each)?;
    // 25 times `z` is more than 128 bits hold.
    Some((first, first.saturating_add(each - 1)))
}

/// The number that these digits are.
fn digits(text: &str) -> Option<u128> {
    text.bytes().try_fold(0_u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return None,
        };
        value.checked_mul(36)?.checked_add(u128::from(digit))
    })
}

/// The text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is 25 characters of 0-9 and a-z")]
pub struct ParseIdError;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&base36(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_base36(text).map(Self).ok_or(ParseIdError)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_u128(self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    u128::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The next one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

id!(
    /// An object of any kind; unique within its kind.
    // Aligned as its halves: with a word beside it, as in most entries of the store's trees, it takes 24 bytes, not 32.
    #[repr(Rust, packed(8))]
    ObjectId
);
id!(
    /// A node: the CN of its certificate and the id of its node object.
    NodeId
);
id!(
    /// A swarm: the O of its certificates and the id of its cluster object.
    ClusterId
);
id!(
    /// A change, chosen by the caller before its first attempt.
    ChangeId
);

impl ChangeId {
    /// An id that sorts by when it was made: 48 bits of milliseconds, then 80 random bits. Any 128 bits will do, but those
    /// that are made within a moment are neighbours among the remembered changes, and so in the processor's cache. Clocks
    /// that disagree cost that and nothing else.
    pub const fn ordered(time_ms: u64, random: u128) -> Self {
        Self((time_ms as u128) << 80 | random >> 48)
    }
}

id!(
    /// One unbroken history of a swarm; recovery and restore begin a new one.
    Lineage
);
counter!(
    /// A Raft member; small, from a replicated counter, never used again.
    RaftId
);
counter!(
    /// A position in the Raft log.
    Index
);
counter!(
    /// A Raft term.
    Term
);
counter!(
    /// Counts committed changes, without gaps. An object's version is the revision that last wrote it.
    Revision
);

impl From<NodeId> for ObjectId {
    fn from(id: NodeId) -> Self {
        Self(id.0)
    }
}

impl From<ClusterId> for ObjectId {
    fn from(id: ClusterId) -> Self {
        Self(id.0)
    }
}

impl From<ObjectId> for NodeId {
    fn from(id: ObjectId) -> Self {
        Self(id.0)
    }
}

/// Milliseconds since 1970-01-01 UTC, from the leader's wall clock. JSON shows RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
        let (seconds, millis) = (self.0 / 1000, self.0 % 1000);
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_u64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Err(serde::de::Error::custom("times are read from the binary form only"));
        }
        u64::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_printing() {
        for value in [0, 1, 35, 36, u128::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(base36(value).parse::<ObjectId>(), Ok(ObjectId(value)));
        }
        for bad in ["", "short", "zzzzzzzzzzzzzzzzzzzzzzzzz", "0000000000000000000000_00", "000000000000000000000000A"]
        {
            assert_eq!(bad.parse::<ObjectId>(), Err(ParseIdError), "{bad}");
        }
    }

    #[test]
    fn a_prefix_stands_for_the_ids_that_print_with_it() {
        assert_eq!(prefix_range(""), Some((0, u128::MAX)));
        for value in [0, 1, 36, 0x0123_4567_89ab_cdef, u128::MAX - 1, u128::MAX] {
            let text = base36(value);
            for length in 0..=ID_LENGTH {
                let (first, last) = prefix_range(&text[..length]).unwrap();
                assert!(first <= value && value <= last, "{text} {length}");
                assert!(base36(first).starts_with(&text[..length]) && base36(last).starts_with(&text[..length]));
                assert!(first == 0 || !base36(first - 1).starts_with(&text[..length]));
                assert!(last == u128::MAX || !base36(last + 1).starts_with(&text[..length]));
            }
        }
        for bad in ["zz", "A", "-", "00000000000000000000000000"] {
            assert_eq!(prefix_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_timestamp_prints_as_rfc_3339() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_452_689_123, "2026-11-23T16:51:29.123Z"),
        ] {
            assert_eq!(Timestamp(millis).to_string(), text);
        }
    }
}
