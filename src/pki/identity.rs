//! What a certificate says about its holder.

use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::oid::Oid;
use x509_parser::oid_registry;
use x509_parser::prelude::FromDer;

use super::keys::{PrivateKey, PublicKey};
use super::{PkiError, pem, tls};
use crate::types::{Caller, ClusterId, NodeId, Role};

/// The identity in a node's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// CN.
    pub node_id: NodeId,
    /// OU.
    pub role: Role,
    /// O.
    pub cluster_id: ClusterId,
    /// Valid from, milliseconds since 1970.
    pub not_before_ms: u64,
    /// Valid through this second, milliseconds since 1970.
    pub not_after_ms: u64,
}

impl Identity {
    /// Whether the certificate is past its end.
    pub const fn is_expired(&self, now_ms: u64) -> bool {
        // Certificates count whole seconds, the last one included.
        now_ms / 1000 > self.not_after_ms / 1000
    }
}

/// Reads the identity from a certificate (DER). Says nothing about who signed it.
///
/// # Errors
/// [`PkiError::Unreadable`] for anything but one certificate, trailing bytes included; [`PkiError::NoIdentity`] when the
/// subject has not exactly one CN, OU and O, or they are not a node id, a role and a cluster id.
pub fn identity_of(der: &[u8]) -> Result<Identity, PkiError> {
    let certificate = parse(der)?;
    let common_name = only(&certificate, &oid_registry::OID_X509_COMMON_NAME)
        .ok_or(PkiError::NoIdentity("it needs exactly one common name (CN)"))?;
    let unit = only(&certificate, &oid_registry::OID_X509_ORGANIZATIONAL_UNIT)
        .ok_or(PkiError::NoIdentity("it needs exactly one organizational unit (OU)"))?;
    let organization = only(&certificate, &oid_registry::OID_X509_ORGANIZATION_NAME)
        .ok_or(PkiError::NoIdentity("it needs exactly one organization (O)"))?;
    let role = [Role::Worker, Role::Manager].into_iter().find(|role| role.organizational_unit() == unit);
    let validity = certificate.validity();
    let milliseconds = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    Ok(Identity {
        node_id: common_name.parse().map_err(|_| PkiError::NoIdentity("its common name (CN) is not a node id"))?,
        role: role.ok_or(PkiError::NoIdentity("its organizational unit (OU) is not a role"))?,
        cluster_id: organization.parse().map_err(|_| PkiError::NoIdentity("its organization (O) is not a swarm id"))?,
        not_before_ms: milliseconds(validity.not_before.timestamp()),
        not_after_ms: milliseconds(validity.not_after.timestamp()),
    })
}

/// The identity in the first certificate of a chain (PEM). Says nothing about who signed it.
///
/// # Errors
/// As [`identity_of`], and when the text holds no certificate.
pub fn identity_of_pem(chain_pem: &str) -> Result<Identity, PkiError> {
    let chain = pem::certificates(chain_pem, "node certificate")?;
    identity_of(chain.first().expect("a chain that was read is not empty"))
}

/// Who signed a node's chain (PEM, the node's certificate first): the digest of the public key that did, found among the
/// other certificates of the chain and in `roots_pem`. An authority keeps its digest when another one signs its
/// certificate, so that it does not matter which way the chain leads to a root.
///
/// # Errors
/// [`PkiError::Unreadable`] when either text is; [`PkiError::UnknownIssuer`] when none of these keys signed it.
pub fn issuer_of(chain_pem: &str, roots_pem: &str) -> Result<String, PkiError> {
    let chain = pem::certificates(chain_pem, "node certificate")?;
    let roots = pem::certificates(roots_pem, "root certificate")?;
    let (leaf, rest) = chain.split_first().expect("a chain that was read is not empty");
    let leaf = parse(leaf)?;
    for der in rest.iter().chain(&roots) {
        let authority = parse(der)?;
        if has_signed(&authority, &leaf) {
            return Ok(key_digest(&authority));
        }
    }
    Err(PkiError::UnknownIssuer)
}

/// Whether a certificate (DER) is signed by an authority (DER), and names it as its issuer.
pub(super) fn is_signed_by(der: &[u8], authority: &[u8]) -> bool {
    match (parse(der), parse(authority)) {
        (Ok(certificate), Ok(authority)) => {
            certificate.issuer().as_raw() == authority.subject().as_raw() && has_signed(&authority, &certificate)
        }
        _ => false,
    }
}

fn has_signed(authority: &X509Certificate<'_>, certificate: &X509Certificate<'_>) -> bool {
    PublicKey::read(authority.public_key(), "key of an authority").is_ok_and(|key| {
        key.signs_with(&certificate.signature_algorithm.algorithm)
            && key.verifies(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
    })
}

/// SHA-256 of a certificate's public key (DER, with its algorithm), 50 characters base36.
pub(super) fn key_digest(certificate: &X509Certificate<'_>) -> String {
    super::token::digest_text(certificate.public_key().raw)
}

/// What a peer's certificate amounts to. That a node was removed is for the caller to find out: the store knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No certificate: somebody who wants to join, or who knows the port.
    None,
    /// A node of this swarm.
    Valid(Identity),
    /// Once a node of this swarm, and may ask for a new certificate.
    Expired(Identity),
}

impl Class {
    /// The identity of a valid certificate.
    pub const fn valid(&self) -> Option<&Identity> {
        match self {
            Self::Valid(identity) => Some(identity),
            Self::None | Self::Expired(_) => None,
        }
    }
}

impl From<Class> for Caller {
    fn from(class: Class) -> Self {
        let (identity, expired) = match class {
            Class::None => return Self::Anonymous,
            Class::Valid(identity) => (identity, false),
            Class::Expired(identity) => (identity, true),
        };
        let Identity { node_id, role, cluster_id, .. } = identity;
        Self::Node { node_id, role, cluster_id, expired }
    }
}

/// Classifies the peer of a connection by what its `peer_certificates()` returns after the handshake. Only for
/// connections made with [`super::server_config`] or [`super::client_config`], which have checked the signatures.
pub fn classify(peer_certificates: Option<&[CertificateDer<'_>]>, now_ms: u64) -> Class {
    let Some(leaf) = peer_certificates.and_then(<[_]>::first) else {
        return Class::None;
    };
    match identity_of(leaf) {
        Ok(identity) if identity.is_expired(now_ms) => Class::Expired(identity),
        Ok(identity) => Class::Valid(identity),
        // The handshake refuses such a certificate, except where anything is trusted: there it proves nothing.
        Err(_) => Class::None,
    }
}

/// A node's own certificate chain and key, checked to belong together.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    identity: Identity,
    chain_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
}

impl NodeIdentity {
    /// From the chain (PEM, the node's certificate first) and the key it was asked for.
    ///
    /// # Errors
    /// When the chain is unreadable, names no node, or is for another key.
    pub fn new(chain_pem: &str, key: PrivateKey) -> Result<Self, PkiError> {
        let chain = pem::certificates(chain_pem, "node certificate")?;
        let leaf = chain.first().expect("a chain that was read is not empty");
        let identity = identity_of(leaf)?;
        if PublicKey::read(parse(leaf)?.public_key(), "key in the node certificate")? != key.public() {
            return Err(PkiError::KeyMismatch { what: "node" });
        }
        Ok(Self { identity, chain_pem: chain_pem.to_owned(), chain, key })
    }

    /// Checks that the chain was signed by one of the roots and is valid now.
    ///
    /// # Errors
    /// [`PkiError::Tls`] with the reason.
    pub fn verify(&self, roots_pem: &str, now_ms: u64) -> Result<(), PkiError> {
        let (leaf, rest) = self.chain.split_first().expect("a chain that was read is not empty");
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(now_ms));
        tls::client_verifier(roots_pem, None)?.verify_client_cert(leaf, rest, now).map(|_| ()).map_err(PkiError::Tls)
    }

    /// Checks that the chain was signed by one of the roots, and that it was valid once: before its end if it is over, after
    /// its beginning if that is still to come by our clock.
    ///
    /// # Errors
    /// [`PkiError::Tls`] with the reason.
    pub fn verify_at_its_time(&self, roots_pem: &str, now_ms: u64) -> Result<(), PkiError> {
        let Identity { not_before_ms, not_after_ms, .. } = self.identity;
        self.verify(roots_pem, now_ms.max(not_before_ms).min(not_after_ms))
    }

    /// Who the node is.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The chain, PEM.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The private key.
    pub const fn key(&self) -> &PrivateKey {
        &self.key
    }

    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}

/// Reads one certificate and nothing after it.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(PkiError::Unreadable { what: "certificate" }),
    }
}

/// The value of an attribute that the subject has exactly once.
fn only<'a>(certificate: &'a X509Certificate<'_>, oid: &Oid<'static>) -> Option<&'a str> {
    let mut values = certificate.subject().iter_by_oid(oid);
    match (values.next(), values.next()) {
        (Some(value), None) => value.as_str().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType};

    use super::*;
    use crate::pki::generate_key;
    use crate::pki::testing::*;
    use crate::sys::entropy::SeededEntropy;

    /// A self-signed certificate with this subject.
    fn with_subject(parts: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.self_signed(&generate_key(&mut SeededEntropy::new(1)).signer()).unwrap().der().to_vec()
    }

    #[test]
    fn an_identity_is_what_was_signed() {
        let expected = Identity {
            node_id: NODE,
            role: Role::Manager,
            cluster_id: CLUSTER,
            not_before_ms: NOW_MS - 86_400_000,
            not_after_ms: NOW_MS + 3_600_000,
        };
        let node = manager(&root(1), NODE, NOW_MS);
        assert_eq!((node.identity(), identity_of(&node.chain()[0])), (&expected, Ok(expected)));
    }

    #[test]
    fn a_certificate_without_exactly_one_of_each_name_is_no_identity() {
        let (node, cluster) = (NODE.to_string(), CLUSTER.to_string());
        let cn = (DnType::CommonName, node.as_str());
        let ou = (DnType::OrganizationalUnitName, "swarm-worker");
        let o = (DnType::OrganizationName, cluster.as_str());
        // The same attribute under its number: rcgen keeps one of each kind otherwise.
        let again = |number, value| (DnType::CustomDnType(vec![2, 5, 4, number]), value);
        let check = |parts: &[(DnType, &str)], expected: &str| {
            let error = identity_of(&with_subject(parts)).unwrap_err();
            assert!(error.to_string().contains(expected), "{parts:?}: {error}");
        };
        assert_eq!(identity_of(&with_subject(&[cn.clone(), ou.clone(), o.clone()])).unwrap().role, Role::Worker);
        check(&[], "exactly one common name");
        check(&[ou.clone(), o.clone()], "exactly one common name");
        check(&[cn.clone(), o.clone()], "exactly one organizational unit");
        check(&[cn.clone(), ou.clone()], "exactly one organization (O)");
        check(&[cn.clone(), again(3, node.as_str()), ou.clone(), o.clone()], "exactly one common name");
        check(&[cn.clone(), ou.clone(), again(11, "swarm-manager"), o.clone()], "exactly one organizational unit");
        check(&[cn.clone(), ou.clone(), o.clone(), again(10, cluster.as_str())], "exactly one organization (O)");
        check(&[(DnType::CommonName, "swarm-ca"), ou.clone(), o.clone()], "not a node id");
        check(&[cn.clone(), (DnType::OrganizationalUnitName, "swarm-boss"), o.clone()], "not a role");
        check(&[cn, ou, (DnType::OrganizationName, "Example Ltd")], "not a swarm id");
    }

    #[test]
    fn bytes_after_a_certificate_make_it_unreadable() {
        let mut der = manager(&root(1), NODE, NOW_MS).chain()[0].to_vec();
        der.push(0);
        assert_eq!(identity_of(&der), Err(PkiError::Unreadable { what: "certificate" }));
    }

    #[test]
    fn a_peer_is_nobody_valid_or_expired() {
        let node = manager(&root(1), NODE, NOW_MS);
        let (chain, identity) = (node.chain(), *node.identity());
        assert_eq!(classify(None, NOW_MS), Class::None);
        assert_eq!(classify(Some(&[]), NOW_MS), Class::None);
        assert_eq!(classify(Some(&[CertificateDer::from(vec![1, 2, 3])]), NOW_MS), Class::None);
        assert_eq!(classify(Some(chain), NOW_MS), Class::Valid(identity));
        assert_eq!(classify(Some(chain), identity.not_after_ms + 999), Class::Valid(identity));
        assert_eq!(classify(Some(chain), identity.not_after_ms + 1000), Class::Expired(identity));
        assert!(Caller::from(Class::Valid(identity)).is_manager());
        assert!(!Caller::from(Class::Expired(identity)).is_manager());
        assert_eq!(Caller::from(Class::Expired(identity)).node_id(), Some(NODE));
        assert_eq!(Caller::from(Class::None), Caller::Anonymous);
    }

    #[test]
    fn a_chain_for_another_key_is_refused() {
        let node = manager(&root(1), NODE, NOW_MS);
        let other = generate_key(&mut SeededEntropy::new(99));
        let error = NodeIdentity::new(node.chain_pem(), other).map(|_| ()).unwrap_err();
        assert_eq!(error, PkiError::KeyMismatch { what: "node" });
        let error = NodeIdentity::new("", node.key().clone()).map(|_| ()).unwrap_err();
        assert_eq!(error, PkiError::Unreadable { what: "node certificate" });
    }

    #[test]
    fn a_chain_is_verified_against_the_roots_and_the_time() {
        let node = manager(&root(1), NODE, NOW_MS);
        let roots = root(1).certificate_pem().to_owned();
        assert_eq!(node.verify(&roots, NOW_MS), Ok(()));
        let check = |roots: &str, now_ms, expected: &str| {
            let error = node.verify(roots, now_ms).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(root(2).certificate_pem(), NOW_MS, "not signed by this swarm's root");
        check(&roots, NOW_MS + 3_601_000, "expired at 2026-01-01T01:00:00.000Z");
        check(&roots, NOW_MS - 86_401_000, "not valid before 2025-12-31T00:00:00.000Z");
        for now_ms in [0, NOW_MS, NOW_MS + 3_601_000, u64::MAX / 2] {
            assert_eq!(node.verify_at_its_time(&roots, now_ms), Ok(()));
            assert!(node.verify_at_its_time(root(2).certificate_pem(), now_ms).is_err());
        }
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_never_panics(position in 0..600_usize, byte: u8, length in 0..600_usize) {
            let node = manager(&root(1), NODE, NOW_MS);
            let mut der = node.chain()[0].to_vec();
            if let Some(place) = der.get_mut(position) {
                *place = byte;
            }
            der.truncate(length);
            let _ = classify(Some(&[CertificateDer::from(der.clone())]), NOW_MS);
            let intact = der == *node.chain()[0];
            if let Ok(read) = NodeIdentity::new(&pem::encode("CERTIFICATE", &der), node.key().clone()) {
                prop_assert_eq!(read.verify(root(1).certificate_pem(), NOW_MS).is_ok(), intact);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
            prop_assert!(identity_of(&bytes).is_err());
            let key = generate_key(&mut SeededEntropy::new(1));
            prop_assert!(NodeIdentity::new(&text, key).is_err());
        }
    }
}
