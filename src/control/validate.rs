//! What may be written, whatever the state says. Every text names the rule that was broken.

use std::collections::BTreeMap;

use crate::types::error::{Code, Status};
use crate::types::limits::{MAX_CONFIG_BYTES, MAX_LABEL_BYTES, MAX_SECRET_BYTES};
use crate::types::object::Kind;

/// Characters of a secret's or config's name (Docker Swarm's rule).
const MAX_DATA_NAME: usize = 64;
/// Characters of an extension's or resource's name.
const MAX_FREE_NAME: usize = 255;
/// Below this a snapshot would be due at every few changes.
pub(super) const MIN_LOG_BYTES: u64 = 64 << 10;
/// Above this a log no longer fits any disk that a manager has.
pub(super) const MAX_LOG_BYTES: u64 = 1 << 40;
const HOUR_MS: u64 = 3_600_000;
/// Validity dates are written with four digits of year.
const MAX_EXPIRY_MS: u64 = 100 * 365 * 24 * HOUR_MS;

fn invalid(message: impl Into<String>) -> Status {
    Status::new(Code::InvalidArgument, message)
}

/// The name of a secret or config: letters and digits, with `-`, `_` and `.` between them, at most 64.
pub(super) fn data_name(kind: Kind, name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Err(invalid(format!("{kind} name must be provided")));
    }
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let ends = [name.as_bytes()[0], name.as_bytes()[name.len() - 1]];
    if name.len() > MAX_DATA_NAME || !name.bytes().all(inner) || !ends.iter().all(u8::is_ascii_alphanumeric) {
        return Err(invalid(format!(
            "invalid {kind} name: only {MAX_DATA_NAME} [a-zA-Z0-9-_.] characters allowed, and the start and end \
             character must be [a-zA-Z0-9]"
        )));
    }
    Ok(())
}

/// The name of an extension or resource: anything printable, at most 255 bytes.
pub(super) fn free_name(kind: Kind, name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Err(invalid(match kind {
            Kind::Resource => "Resource must have a name".to_owned(),
            _ => format!("{kind} name must be provided"),
        }));
    }
    if name.len() > MAX_FREE_NAME {
        return Err(invalid(format!("{kind} name must be {MAX_FREE_NAME} bytes or fewer")));
    }
    if name.chars().any(char::is_control) || name.trim() != name {
        return Err(invalid(format!("{kind} name must be printable, without spaces at its start or end")));
    }
    Ok(())
}

pub(super) fn secret_data(data: &[u8]) -> Result<(), Status> {
    if data.is_empty() || data.len() >= MAX_SECRET_BYTES {
        let message = format!("secret data must be larger than 0 and less than {MAX_SECRET_BYTES} bytes");
        return Err(invalid(message).with_hint(sized(data)));
    }
    Ok(())
}

pub(super) fn config_data(data: &[u8]) -> Result<(), Status> {
    if data.is_empty() || data.len() >= MAX_CONFIG_BYTES {
        let message = format!("config data must be larger than 0 and less than {MAX_CONFIG_BYTES} bytes");
        return Err(invalid(message).with_hint(sized(data)));
    }
    Ok(())
}

pub(super) fn payload(data: &[u8]) -> Result<(), Status> {
    if data.len() >= MAX_CONFIG_BYTES {
        let message = format!("resource payload must be less than {MAX_CONFIG_BYTES} bytes");
        return Err(invalid(message).with_hint(sized(data)));
    }
    Ok(())
}

fn sized(data: &[u8]) -> String {
    match data.len() {
        0 => "the file is empty: name one with content, or `-` for standard input".to_owned(),
        length => format!("this one has {length} bytes: keep large files elsewhere and store where they are"),
    }
}

/// Labels and indices of one object.
pub(super) fn attributes<'a>(maps: impl IntoIterator<Item = &'a BTreeMap<String, String>>) -> Result<(), Status> {
    let mut bytes = 0;
    for (key, value) in maps.into_iter().flatten() {
        if key.is_empty() {
            return Err(invalid("a label needs a key").with_hint("write it as `--label KEY=VALUE`"));
        }
        bytes += key.len() + value.len();
    }
    if bytes > MAX_LABEL_BYTES {
        return Err(invalid(format!(
            "labels and indices of one object are limited to {MAX_LABEL_BYTES} bytes together, and these have {bytes}"
        )));
    }
    Ok(())
}

pub(super) fn log_bytes(what: &str, bytes: u64) -> Result<(), Status> {
    if (MIN_LOG_BYTES..=MAX_LOG_BYTES).contains(&bytes) {
        return Ok(());
    }
    let message = format!("{what} must be from {MIN_LOG_BYTES} bytes (64 KiB) to {MAX_LOG_BYTES} bytes (1 TiB)");
    Err(invalid(message).with_hint("sizes may be written as 64MiB or 1GiB"))
}

pub(super) fn certificate_expiry(expiry_ms: u64) -> Result<(), Status> {
    match expiry_ms {
        ..HOUR_MS => Err(invalid("minimum certificate expiry time is: 1h0m0s")),
        HOUR_MS..=MAX_EXPIRY_MS => Ok(()),
        _ => Err(invalid("maximum certificate expiry time is: 876000h0m0s")),
    }
}

pub(super) fn expired_grace(grace_ms: u64) -> Result<(), Status> {
    match grace_ms {
        ..=MAX_EXPIRY_MS => Ok(()),
        _ => Err(invalid("maximum grace for expired certificates is: 876000h0m0s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(verdict: Result<(), Status>, expected: &str) {
        let message = verdict.err().map_or_else(String::new, |status| {
            assert_eq!(status.code, Code::InvalidArgument);
            status.message
        });
        assert!(message.contains(expected) && message.is_empty() == expected.is_empty(), "{message:?}");
    }

    #[test]
    fn names_follow_the_kinds_rule() {
        let long = "a".repeat(64);
        for good in ["a", "A-1", "a_b.c", "0", "a..b", "a--b", &long] {
            check(data_name(Kind::Secret, good), "");
        }
        check(data_name(Kind::Config, ""), "config name must be provided");
        let too_long = "a".repeat(65);
        for bad in ["-a", "a-", ".a", "a b", "a/b", "ä", "a\n", &too_long] {
            check(data_name(Kind::Secret, bad), "invalid secret name: only 64");
        }
        for good in ["a", "my kind", "ä/b", &"x".repeat(255)] {
            check(free_name(Kind::Resource, good), "");
        }
        check(free_name(Kind::Resource, ""), "Resource must have a name");
        check(free_name(Kind::Extension, ""), "extension name must be provided");
        check(free_name(Kind::Extension, &"x".repeat(256)), "255 bytes or fewer");
        for bad in [" a", "a ", "a\tb", "a\0"] {
            check(free_name(Kind::Extension, bad), "must be printable");
        }
    }

    #[test]
    fn sizes_end_where_they_are_said_to_end() {
        check(secret_data(&[]), "larger than 0 and less than 512000");
        check(secret_data(&[0; 511_999]), "");
        check(secret_data(&[0; 512_000]), "larger than 0 and less than 512000");
        check(config_data(&[]), "larger than 0 and less than 1024000");
        check(config_data(&[0; 1_023_999]), "");
        check(config_data(&[0; 1_024_000]), "less than 1024000");
        check(payload(&[]), "");
        check(payload(&[0; 1_024_000]), "less than 1024000");
    }

    #[test]
    fn attributes_of_one_object_share_a_limit() {
        let map = |length: usize| BTreeMap::from([("k".to_owned(), "v".repeat(length - 1))]);
        check(attributes([&map(8192), &map(8192)]), "");
        check(attributes([&map(8192), &map(8193)]), "limited to 16384 bytes together, and these have 16385");
        check(attributes([&BTreeMap::from([(String::new(), String::new())])]), "a label needs a key");
    }

    #[test]
    fn settings_stay_within_bounds() {
        check(log_bytes("--snapshot-bytes", 64 << 10), "");
        check(log_bytes("--snapshot-bytes", (64 << 10) - 1), "--snapshot-bytes must be from 65536");
        check(log_bytes("--keep-bytes", (1 << 40) + 1), "--keep-bytes must be");
        check(certificate_expiry(HOUR_MS), "");
        check(certificate_expiry(HOUR_MS - 1), "minimum certificate expiry time is: 1h0m0s");
        check(certificate_expiry(u64::MAX), "maximum certificate expiry");
        check(expired_grace(0), "");
        check(expired_grace(u64::MAX), "maximum grace for expired certificates");
    }
}
