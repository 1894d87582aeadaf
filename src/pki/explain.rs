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
        other => return (format!("TLS failed: {other}"), String::new()),
    };
    (message.to_owned(), hint.to_owned())
}

fn explain_certificate(bad: &Bad) -> (String, String) {
    let ours = match bad {
        Bad::Other(other) => other.0.downcast_ref::<PkiError>(),
        _ => None,
    };
    if let Some(error) = ours {
        return (format!("the other side's certificate is refused: {error}"), error.hint());
    }
    let (message, hint) = match bad {
        Bad::UnknownIssuer | Bad::BadSignature => (
            "the other side's certificate is not signed by this swarm's root: it belongs to another swarm".to_owned(),
            SWARM,
        ),
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
        other => (format!("the other side's certificate is refused: {other}"), ""),
    };
    (message, hint.to_owned())
}

const fn explain_alert(alert: Alert) -> (&'static str, &'static str) {
    match alert {
        Alert::UnknownCA | Alert::DecryptError => {
            ("the other side does not know the root that signed our certificate: it belongs to another swarm", SWARM)
        }
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
        Alert::UnrecognisedName => ("another node answers at this address", ADDRESS),
        _ => ("the other side broke off the handshake", PORT),
    }
}

fn date(seconds: u64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1000))
}

const CLOCKS: &str = "compare the clocks of both machines (`date -u`)";
const SWARM: &str = "check that the address is that of a manager of the swarm that this node belongs to";
const ADDRESS: &str = "check the addresses with `skep members`: one may have been given to another machine";
const PORT: &str = "check that the address and port are those of a skep manager";
const JOIN: &str = "join the swarm first: `skep run --join HOST:PORT --token TOKEN`";
