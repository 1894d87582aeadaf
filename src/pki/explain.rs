//! TLS errors as sentences for people.

use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};

use super::PkiError;
use crate::types::Timestamp;

/// Says what a TLS error means and what to do about it: (message, hint); the hint may be empty.
///
/// A client that a server refuses learns it as an alert, and in TLS 1.3 only when it first reads.
pub fn explain(error: &Error) -> (String, String) {
    let (message, hint) = match error {
        Error::InvalidCertificate(bad) => return explain_certificate(bad),
        Error::AlertReceived(alert) => explain_alert(*alert),
        Error::NoCertificatesPresented => ("the other side showed no certificate", JOIN),
        Error::NoApplicationProtocol => ("the other side does not speak the protocol skep/1", PORT),
        Error::InvalidMessage(_) => ("the other side does not speak TLS", PORT),
        Error::PeerIncompatible(_) => ("the other side does not offer TLS 1.3 with a cipher that we have", PORT),
        Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord => ("the other side breaks the rules of TLS", PORT),
        Error::DecryptError => ("data was damaged on its way", "something between the nodes changes their traffic"),
        Error::InconsistentKeys(_) => ("the private key does not belong to the certificate", ""),
        Error::FailedToGetCurrentTime => ("this machine's clock cannot be read", CLOCKS),
        Error::FailedToGetRandomBytes => ("this machine gives no random numbers", ""),
        Error::General(text) => return (format!("TLS failed: {text}"), String::new()),
        _ => ("TLS failed", ""),
    };
    (message.to_owned(), hint.to_owned())
}

/// Whether it comes down to what time it is: a certificate that is over, or has not begun.
pub const fn concerns_time(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. }
        ) | Error::AlertReceived(Alert::CertificateExpired)
    )
}

/// How far another machine's clock is from ours, as the end of a sentence about a certificate and the time.
pub fn clock_words(whose: &str, offset_ms: i64) -> String {
    let apart = offset_ms.unsigned_abs();
    if apart < CLOCKS_AGREE_MS {
        return format!("{whose} and this machine's agree");
    }
    let amount = match apart / 1000 {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    };
    let direction = if offset_ms > 0 { "ahead of" } else { "behind" };
    format!("{whose} is {amount} {direction} this machine's")
}

/// Closer clocks cannot be told apart by what a message takes on its way.
const CLOCKS_AGREE_MS: u64 = 2000;

fn explain_certificate(bad: &Bad) -> (String, String) {
    let ours = match bad {
        Bad::Other(other) => other.0.downcast_ref::<PkiError>(),
        _ => None,
    };
    if let Some(error) = ours {
        return (format!("the other side's certificate is refused: {error}"), error.hint());
    }
    let (message, hint) = match bad {
        Bad::UnknownIssuer | Bad::BadSignature => (format!("{UNKNOWN_ROOT}: {ANOTHER_ROOT}"), ROOT),
        Bad::ExpiredContext { time, not_after } => (
            format!(
                "the other side's certificate expired at {}, and this machine's clock says {}",
                date(not_after.as_secs()),
                date(time.as_secs())
            ),
            CLOCKS,
        ),
        Bad::Expired => ("the other side's certificate is expired".to_owned(), CLOCKS),
        Bad::NotValidYetContext { time, not_before } => (
            format!(
                "the other side's certificate is not valid before {}, and this machine's clock says {}",
                date(not_before.as_secs()),
                date(time.as_secs())
            ),
            CLOCKS,
        ),
        Bad::NotValidYet => ("the other side's certificate is not valid yet".to_owned(), CLOCKS),
        Bad::NotValidForNameContext { expected, presented } => (
            format!(
                "another node answers at this address: expected {}, found {}",
                expected.to_str(),
                presented.join(", ")
            ),
            ADDRESS,
        ),
        Bad::NotValidForName => ("another node answers at this address".to_owned(), ADDRESS),
        Bad::BadEncoding => ("the other side's certificate is malformed".to_owned(), PORT),
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
            ("the other side's certificate is not made for nodes".to_owned(), PORT)
        }
        Bad::Revoked => ("the other side's certificate is revoked".to_owned(), SWARM),
        Bad::UnsupportedSignatureAlgorithmContext { .. }
        | Bad::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            ("the other side's certificate is signed with an algorithm that is not accepted".to_owned(), SWARM)
        }
        // What is left are chains that no authority of ours makes: a node's certificate that signs another, a root in
        // place of a node's certificate, unknown critical extensions.
        _ => ("the other side's certificate chain breaks the rules for certificates".to_owned(), SWARM),
    };
    (message, hint.to_owned())
}

const fn explain_alert(alert: Alert) -> (&'static str, &'static str) {
    match alert {
        Alert::UnknownCA | Alert::DecryptError => (UNKNOWN_THERE, SKIPPED),
        Alert::CertificateExpired => ("the other side says that our certificate is expired or not yet valid", CLOCKS),
        Alert::CertificateRequired => ("the other side wants a certificate, and this node has none", JOIN),
        Alert::BadCertificate | Alert::UnsupportedCertificate | Alert::CertificateUnknown | Alert::AccessDenied => {
            ("the other side refuses our certificate: it is of another swarm, or names no node that it expects", SWARM)
        }
        Alert::CertificateRevoked => ("the other side says that our certificate is revoked", JOIN),
        Alert::NoApplicationProtocol => ("the other side does not speak the protocol skep/1", PORT),
        Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::InsufficientSecurity => {
            ("the other side does not offer TLS 1.3 with a cipher that we have", PORT)
        }
        Alert::UnrecognisedName => ("the other side is another node than the one dialled", ADDRESS),
        _ => ("the other side broke off the handshake", PORT),
    }
}

fn date(seconds: u64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1000))
}

/// How a message begins about a certificate under a root that is not known here.
pub const UNKNOWN_ROOT: &str = "the other side's certificate is not signed by this swarm's root";
/// What a message is about when the other side does not know the root of our certificate.
const UNKNOWN_THERE: &str = "the other side does not know the root that signed our certificate: it belongs to another swarm, or the \
                             root was replaced while this node was away";
const ANOTHER_ROOT: &str = "it belongs to another swarm, or the root was replaced while one of the two was away";
const ROOT: &str = "check that the address is that of a manager of the swarm that this node belongs to; a node that was away \
                    while the root was replaced joins again, on an empty data directory with a new token";
const CLOCKS: &str = "compare the clocks of both machines (`date -u`)";
const SWARM: &str = "check that the address is that of a manager of the swarm that this node belongs to";
const SKIPPED: &str = "if it is the right swarm (`skep ca show` there), this node was skipped when the root was rotated: remove \
                       it there with `skep node rm --force NODE`, and join again on an empty data directory with a token";
const ADDRESS: &str = "check the addresses with `skep members`: one may have been given to another machine";
const PORT: &str = "check that the address and port are those of a skep manager";
const JOIN: &str = "join the swarm first: `skep run --join HOST:PORT --token TOKEN`";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use rustls::{InvalidMessage, OtherError, PeerIncompatible, PeerMisbehaved};

    use super::*;

    fn check(error: impl Into<Error>, words: &str, advice: &str) {
        let error = error.into();
        let (message, hint) = explain(&error);
        assert!(message.contains(words) && hint.contains(advice), "{error:?}: {message} / {hint}");
        // For people: no names of types or variants.
        for text in [&message, &hint] {
            let camel = text
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| word.chars().zip(word.chars().skip(1)).any(|(a, b)| a.is_lowercase() && b.is_uppercase()));
            assert!(!camel && !text.contains("::") && !text.contains('{'), "{text}");
        }
    }

    #[test]
    fn errors_found_here_say_what_to_do() {
        check(Bad::UnknownIssuer, "another swarm", "check that the address");
        check(Bad::BadSignature, "another swarm", "check that the address");
        check(Bad::Expired, "expired", "clocks");
        check(Bad::NotValidYet, "not valid yet", "clocks");
        check(Bad::NotValidForName, "another node", "skep members");
        check(Bad::InvalidPurpose, "not made for nodes", "skep manager");
        check(Bad::Revoked, "revoked", "");
        check(Bad::BadEncoding, "malformed", "skep manager");
        check(Bad::UnhandledCriticalExtension, "breaks the rules", "");
        check(Bad::Other(OtherError(Arc::new(PkiError::OtherSwarm))), "of another swarm", "manager of the swarm");
        check(Bad::Other(OtherError(Arc::new(std::fmt::Error))), "breaks the rules", "");
        check(Error::NoCertificatesPresented, "no certificate", "--join");
        check(Error::NoApplicationProtocol, "skep/1", "skep manager");
        check(InvalidMessage::InvalidContentType, "does not speak TLS", "port");
        check(PeerIncompatible::Tls12NotOffered, "TLS 1.3", "port");
        check(PeerMisbehaved::TooManyEmptyFragments, "breaks the rules of TLS", "port");
        check(Error::DecryptError, "damaged", "");
        check(Error::General("reason".to_owned()), "TLS failed: reason", "");
        check(Error::HandshakeNotComplete, "TLS failed", "");
        check(Error::FailedToGetCurrentTime, "clock", "clocks");
    }

    #[test]
    fn errors_about_time_are_told_from_others_and_clocks_are_put_in_words() {
        for (error, expected) in [
            (Error::InvalidCertificate(Bad::Expired), true),
            (Error::InvalidCertificate(Bad::NotValidYet), true),
            (Error::AlertReceived(Alert::CertificateExpired), true),
            (Error::InvalidCertificate(Bad::UnknownIssuer), false),
            (Error::AlertReceived(Alert::UnknownCA), false),
        ] {
            assert_eq!(concerns_time(&error), expected, "{error:?}");
        }
        let day = 86_400_000;
        for (offset_ms, expected) in [
            (-1500, "its clock and this machine's agree"),
            (3000, "its clock is 3 s ahead of this machine's"),
            (-300_000, "its clock is 5 min behind this machine's"),
            (day, "its clock is 24 h ahead of this machine's"),
            (-400 * day, "its clock is 400 d behind this machine's"),
            (i64::MIN, "its clock is 106751991167 d behind this machine's"),
        ] {
            assert_eq!(clock_words("its clock", offset_ms), expected);
        }
    }

    #[test]
    fn refusals_by_the_other_side_say_what_to_do() {
        for number in 0..=u8::MAX {
            check(Error::AlertReceived(Alert::from(number)), "the other side", "");
        }
        let check = |alert, words, advice| check(Error::AlertReceived(alert), words, advice);
        check(Alert::UnknownCA, "does not know the root", "skipped when the root was rotated");
        check(Alert::CertificateExpired, "expired or not yet valid", "clocks");
        check(Alert::CertificateRequired, "wants a certificate", "--join");
        check(Alert::CertificateUnknown, "refuses our certificate", "check that the address");
        check(Alert::NoApplicationProtocol, "skep/1", "port");
        check(Alert::ProtocolVersion, "TLS 1.3", "port");
        check(Alert::InternalError, "broke off", "port");
    }
}
