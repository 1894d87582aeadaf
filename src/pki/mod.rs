//! Identity: keys, certificates, join tokens, and the TLS settings made of them.
//!
//! A node *is* its certificate: CN is the node id, OU the role, O the swarm. The swarm's own root ([`RootCa`]) signs
//! them; a join token ([`JoinToken`]) carries a digest of the root, so that a newcomer knows whom to trust, and a
//! secret, so that the swarm knows whom to let in. How a newcomer becomes a node:
//!
//! 1. it connects with [`Trust::Anything`], asks for the root, and checks it with [`JoinToken::verify_root`];
//! 2. it connects again with [`Trust::Roots`], sends [`signing_request`] and its token, and gets a chain back;
//! 3. [`NodeIdentity::new`] and [`NodeIdentity::verify`] check that the chain is for its key and from that root.
//!
//! What the rest of the program may rely on:
//!
//! - From a signing request only the public key is taken; everything else in a certificate is decided here.
//! - A TLS connection made with [`server_config`] or [`client_config`] is TLS 1.3, was never resumed (resumption would
//!   skip the certificate check), and its peer proved possession of the key of the certificate that [`classify`] reads.
//! - A server takes clients without a certificate and with an expired one, since both must be able to ask for a new
//!   one: they are [`Class::None`] and [`Class::Expired`], and it is the caller who limits what they may ask. A
//!   certificate of a foreign root, of another swarm, not yet valid or without an identity fails the handshake. A client
//!   takes such a server only with [`peer_config`], and decides then.
//! - Certificates are checked in the handshake only. Whoever holds connections closes them when
//!   [`Identity::not_after_ms`] passes, when the node is removed, and when [`check_protocol`] fails after the handshake.
//! - A root is replaced without a moment at which two nodes refuse each other. The new root is signed by the old one
//!   ([`RootCa::cross_sign`]), and while nodes move from one to the other, the chains that the new root signs end with that
//!   certificate ([`RootCa::succeeding`]): whoever trusts either root takes them. A node trusts the roots it was given, and
//!   a successor in its own chain that one of those signed. Once nodes are given the new root instead of the old one, they
//!   take no chain of the old one any more.
//! - Private keys and token secrets are in no `Debug` and no error, and are wiped when dropped.
//!
//! [`seal`] is the other half of what is secret here: the encryption of what a manager writes to its disk, with its data
//! keys ([`Keyring`]). They and the node's private key lie in one file ([`keyfile`]), which an [`UnlockKey`] seals when the
//! swarm locks its managers.
//!
//! Everything is a function of bytes, time and entropy: the caller passes milliseconds since 1970 and an
//! [`Entropy`](crate::sys::entropy::Entropy). Two exceptions: a handshake asks the wall clock of `sys`, and ring draws the nonce of a P-256 signature from the operating system (ed25519 has none).
//!
//! Not here: files, sockets, and who was removed or is allowed what; those need the store.

use crate::types::{Code, Status, Timestamp};

pub mod ca;
mod explain;
pub mod identity;
pub mod keyfile;
mod keyring;
pub mod keys;
mod pem;
pub mod seal;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub mod token;
mod unlock;

pub use ca::{RootCa, RootFacts, check_request, root_facts};
pub use explain::{UNKNOWN_ROOT, clock_words, concerns_time, explain};
pub use identity::{Class, Identity, NodeIdentity, classify, identity_of, identity_of_pem, issuer_of};
pub use keyfile::KeyFile;
pub use keyring::Keyring;
pub use keys::{PrivateKey, generate_key, signing_request};
pub use tls::{Trust, check_protocol, client_config, manager_name, peer_config, server_config, server_name};
pub use token::{JoinToken, TokenError, root_digest, same_secret};
pub use unlock::{UNLOCK_KEY_PREFIX, UnlockKey, UnlockKeyError};

/// Why a key, certificate, request or token is not usable. No variant holds key material.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PkiError {
    /// The text is not a join token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A root certificate is not the one that the join token names.
    #[error(
        "the root certificate does not match the join token: the token asks for {expected}, the manager sent {found}"
    )]
    RootMismatch {
        /// The digest in the token.
        expected: String,
        /// The digest of what was sent.
        found: String,
    },
    /// Nothing of this kind is in the PEM text, or it is damaged.
    #[error("no readable {what} in the PEM text")]
    Unreadable {
        /// What was looked for.
        what: &'static str,
    },
    /// More bytes than any honest input has.
    #[error("the {what} is larger than {limit} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The largest size, in bytes.
        limit: usize,
    },
    /// The key is of a kind that is not accepted.
    #[error("the {what} is of a kind that is not accepted: {found}")]
    UnsupportedKey {
        /// Whose key.
        what: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A signing request is not signed with the key in it.
    #[error("the signing request is not signed with the key it asks a certificate for")]
    RequestSignature,
    /// A certificate and a private key do not belong together.
    #[error("the private key does not belong to the {what} certificate")]
    KeyMismatch {
        /// Which certificate.
        what: &'static str,
    },
    /// A certificate given as root may not sign others.
    #[error("the root certificate may not sign other certificates")]
    NotAnAuthority,
    /// A root that may sign nodes only cannot sign its successor.
    #[error("the root certificate may sign nodes only, not the root that is to follow it (path length 0)")]
    NoSuccessor,
    /// Certificates of a given root would be refused by nodes.
    #[error("nodes would not accept certificates that this root signs: {0}")]
    UnfitRoot(String),
    /// A certificate that none of the known authorities signed.
    #[error("the certificate was signed by none of the known root certificates")]
    UnknownIssuer,
    /// The root may sign nothing any more.
    #[error("the root certificate expired at {0}")]
    RootExpired(Timestamp),
    /// A certificate is well formed but is not a node's.
    #[error("the certificate does not name a node of a swarm: {0}")]
    NoIdentity(&'static str),
    /// A certificate of another swarm, under a root that both use.
    #[error("the certificate is of another swarm")]
    OtherSwarm,
    /// The other side speaks TLS, but not this protocol.
    #[error("the other side does not speak the protocol skep/1")]
    OtherProtocol,
    /// The TLS library refuses a certificate or a setting.
    #[error("{}", explain(.0).0)]
    Tls(rustls::Error),
    /// Something failed that cannot fail with input that was checked.
    #[error("making a certificate failed: {0}")]
    Signing(String),
}

impl PkiError {
    /// What to do about it, or empty.
    pub fn hint(&self) -> String {
        match self {
            Self::Token(error) => error.hint().to_owned(),
            Self::RootMismatch { .. } => {
                "check the address and print the token again on a manager of the swarm you mean: \
                 `skep token show --role manager`"
            }
            .to_owned(),
            Self::UnsupportedKey { .. } => {
                "use an ed25519 or P-256 key in PKCS#8 form; `openssl pkcs8 -topk8 -nocrypt` converts older forms"
                    .to_owned()
            }
            Self::Unreadable { what: "signing request" } | Self::RequestSignature => {
                "send a PKCS#10 request in PEM form, signed with its own key, as `skep run --join` makes it".to_owned()
            }
            Self::Unreadable { .. } => {
                "give PEM text that begins with `-----BEGIN`, whole and as it was made".to_owned()
            }
            Self::TooLarge { what, .. } => format!("check what was given: a {what} is much smaller than that"),
            Self::KeyMismatch { .. } => "give the certificate and the key that were made together".to_owned(),
            Self::NotAnAuthority => "give a CA certificate (basic constraints CA:TRUE, key usage certSign)".to_owned(),
            Self::NoSuccessor => "give a CA certificate without a path length, or with 1 or more".to_owned(),
            Self::UnfitRoot(_) => {
                "give a CA certificate without name constraints and other limits, with a subject of plain text"
                    .to_owned()
            }
            Self::OtherSwarm => "connect to a manager of the swarm that this node belongs to".to_owned(),
            Self::OtherProtocol => "check that the address and port are those of a skep manager".to_owned(),
            Self::Tls(error) => explain(error).1,
            Self::RootExpired(_) | Self::UnknownIssuer | Self::NoIdentity(_) | Self::Signing(_) => String::new(),
        }
    }
}

impl From<PkiError> for Status {
    fn from(error: PkiError) -> Self {
        let code = match error {
            PkiError::Signing(_) => Code::Internal,
            PkiError::RootExpired(_) => Code::FailedPrecondition,
            PkiError::OtherSwarm | PkiError::NoIdentity(_) => Code::PermissionDenied,
            PkiError::Tls(_) | PkiError::OtherProtocol | PkiError::RootMismatch { .. } | PkiError::UnknownIssuer => {
                Code::Unauthenticated
            }
            _ => Code::InvalidArgument,
        };
        Self::new(code, error.to_string()).with_hint(error.hint())
    }
}
