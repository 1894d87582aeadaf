//! The root certificate authority: makes itself once, then signs nodes' requests.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use super::keys::{PrivateKey, PublicKey, Signer, generate_key};
use super::{PkiError, identity, pem, tls};
use crate::sys::entropy::Entropy;
use crate::types::{ClusterId, NodeId, Role, Timestamp};

mod cross;

pub use cross::{RootFacts, root_facts};

/// The common name of a root that we made, and a name that every manager's certificate also has.
pub const ROOT_NAME: &str = "swarm-ca";

/// A root certificate with its key: able to sign.
pub struct RootCa {
    certificate_pem: String,
    /// The one of them that belongs to the key.
    certificate: CertificateDer<'static>,
    /// Stands at the end of every chain: this root's certificate signed by the one before it. `None` but in a rotation.
    cross_signed: Option<String>,
    key: PrivateKey,
    issuer: Issuer<'static, Signer>,
    /// The DER subject of the root; must be the issuer of what it signs, byte for byte.
    subject: Vec<u8>,
    /// Of the public key, as [`identity::key_digest`] prints it.
    key_digest: String,
    not_after_s: i64,
    /// How many authorities may stand between this one and a node; `None` is any number.
    path_length: Option<u32>,
}

impl RootCa {
    /// A new root: ed25519, valid for 20 years, may sign nodes and its successor, which may sign nodes.
    ///
    /// # Errors
    /// [`PkiError::Signing`] when `now_ms` is no date that a certificate can hold.
    pub fn generate(now_ms: u64, entropy: &mut dyn Entropy) -> Result<Self, PkiError> {
        let key = generate_key(entropy);
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&[(DnType::CommonName, ROOT_NAME)]);
        params.serial_number = Some(serial(entropy));
        // One authority below this one: a successor that it signs. Without that, no verifier that looks at the length of
        // a path takes what the successor signs, and the root could never be replaced.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = authority_usages();
        (params.not_before, params.not_after) = validity_at(now_ms, ROOT_VALIDITY)?;
        let certificate = params.self_signed(&key.signer()).map_err(signing)?;
        Self::with_key(certificate.pem(), key)
    }

    /// Reads a root's certificate and key. The PEM text may hold several roots; the one that belongs to the key signs.
    ///
    /// # Errors
    /// When either is unreadable, they do not belong together, or the certificate may not sign.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        Self::with_key(certificate_pem.to_owned(), PrivateKey::from_pem(key_pem, "root key")?)
    }

    /// All root certificates, PEM: what is handed out and what join tokens hold the digest of.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Who signs: what [`super::issuer_of`] finds in chains that this root signed.
    pub fn issuer(&self) -> &str {
        &self.key_digest
    }

    /// Signs a node's request (PEM) and returns its chain (PEM, the node's certificate first; during a rotation this
    /// root's certificate follows, signed by the root that it replaces).
    ///
    /// Of the request only the public key is used, after checking that the request is signed with it. The certificate
    /// is valid from 24 hours ago, because clocks differ, to `validity` from now, but not beyond the root.
    ///
    /// # Errors
    /// When the request is unreadable, over 16 KiB, not signed with its own key, or for a key that is neither ed25519
    /// nor P-256; [`PkiError::RootExpired`].
    #[allow(clippy::too_many_arguments, reason = "each is one fact of the certificate")]
    pub fn sign_request(
        &self,
        request_pem: &str,
        node: NodeId,
        role: Role,
        cluster: ClusterId,
        now_ms: u64,
        validity: Duration,
        entropy: &mut dyn Entropy,
    ) -> Result<String, PkiError> {
        let public = requested_key(request_pem)?;
        let (common_name, unit) = (node.to_string(), role.organizational_unit());
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&[
            (DnType::OrganizationName, &cluster.to_string()),
            (DnType::OrganizationalUnitName, unit),
            (DnType::CommonName, &common_name),
        ]);
        params.subject_alt_names = vec![dns(unit)?, dns(&tls::dns_name(node))?];
        if role == Role::Manager {
            params.subject_alt_names.push(dns(ROOT_NAME)?);
        }
        params.serial_number = Some(serial(entropy));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        // Roots of one swarm share a name; the key identifier tells them apart.
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = self.validity_within(now_ms, validity)?;

        let certificate = params.signed_by(&public, &self.issuer).map_err(signing)?;
        if identity::parse(certificate.der())?.issuer().as_raw() != self.subject {
            // A given root may write its name in a form that rcgen does not repeat; verifiers compare bytes.
            return Err(PkiError::Signing("the root's name cannot be repeated in a node's certificate".to_owned()));
        }
        let mut chain = certificate.pem();
        chain.push_str(self.cross_signed.as_deref().unwrap_or_default());
        Ok(chain)
    }

    fn with_key(certificate_pem: String, key: PrivateKey) -> Result<Self, PkiError> {
        let public = key.public();
        for der in pem::certificates(&certificate_pem, ROOT)? {
            let copy = der.clone();
            let certificate = identity::parse(&copy)?;
            if PublicKey::read(certificate.public_key(), ROOT).as_ref() != Ok(&public) {
                continue;
            }
            check_authority(&der)?;
            check_name(certificate.subject())?;
            let issuer = Issuer::from_ca_cert_der(&der, key.signer()).map_err(signing)?;
            let subject = certificate.subject().as_raw().to_vec();
            let key_digest = identity::key_digest(&certificate);
            let not_after_s = certificate.validity().not_after.timestamp();
            let path_length = path_length(&certificate);
            return Ok(Self {
                certificate_pem,
                certificate: der,
                cross_signed: None,
                key,
                issuer,
                subject,
                key_digest,
                not_after_s,
                path_length,
            });
        }
        Err(PkiError::KeyMismatch { what: "root" })
    }

    fn validity_within(&self, now_ms: u64, validity: Duration) -> Result<(OffsetDateTime, OffsetDateTime), PkiError> {
        let (not_before, mut not_after) = validity_at(now_ms, validity)?;
        let root_end = OffsetDateTime::from_unix_timestamp(self.not_after_s).map_err(|_| date_out_of_range())?;
        if root_end.unix_timestamp() < i64::try_from(now_ms / 1000).unwrap_or(i64::MAX) {
            let end_s = u64::try_from(self.not_after_s).unwrap_or(0);
            return Err(PkiError::RootExpired(Timestamp(end_s.saturating_mul(1000))));
        }
        not_after = not_after.min(root_end);
        Ok((not_before, not_after))
    }
}

impl std::fmt::Debug for RootCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootCa").field("digest", &super::root_digest(&self.certificate_pem)).finish_non_exhaustive()
    }
}

/// Checks that a certificate may sign others.
pub(super) fn check_authority(der: &CertificateDer<'_>) -> Result<(), PkiError> {
    let certificate = identity::parse(der)?;
    let may_sign = match certificate.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    if certificate.is_ca() && may_sign { Ok(()) } else { Err(PkiError::NotAnAuthority) }
}

/// How many authorities a certificate allows between itself and a node; `None` is any number.
fn path_length(certificate: &X509Certificate<'_>) -> Option<u32> {
    certificate.basic_constraints().ok().flatten().and_then(|constraints| constraints.value.path_len_constraint)
}

fn authority_usages() -> Vec<KeyUsagePurpose> {
    vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]
}

/// rcgen writes the root's name into what it signs, and panics on a type that no encoder can have written.
fn check_name(name: &X509Name<'_>) -> Result<(), PkiError> {
    let sound = name.iter_attributes().all(|attribute| {
        let mut arcs = attribute.attr_type().iter().into_iter().flatten();
        matches!((arcs.next(), arcs.next()), (Some(0 | 1), Some(0..40)) | (Some(2), Some(_)))
    });
    if sound {
        Ok(())
    } else {
        Err(PkiError::Signing("the root's name has an attribute that cannot be written".to_owned()))
    }
}

/// Whether a request (PEM) can be signed, as far as the request goes: what [`RootCa::sign_request`] asks of it.
///
/// # Errors
/// When it is unreadable, over 16 KiB, not signed with its own key, or for a key that is neither ed25519 nor P-256.
pub fn check_request(request_pem: &str) -> Result<(), PkiError> {
    requested_key(request_pem).map(|_| ())
}

/// The public key of a signing request that is signed with it. Nothing else of the request is looked at.
fn requested_key(request_pem: &str) -> Result<PublicKey, PkiError> {
    const WHAT: &str = "signing request";
    if request_pem.len() > MAX_REQUEST_BYTES {
        return Err(PkiError::TooLarge { what: WHAT, limit: MAX_REQUEST_BYTES });
    }
    let unreadable = PkiError::Unreadable { what: WHAT };
    let Ok(der) = CertificateSigningRequestDer::from_pem_slice(request_pem.as_bytes()) else {
        return Err(unreadable);
    };
    let Ok((rest, request)) = X509CertificationRequest::from_der(&der) else {
        return Err(unreadable);
    };
    if !rest.is_empty() {
        return Err(unreadable);
    }
    let info = &request.certification_request_info;
    let public = PublicKey::read(&info.subject_pki, "key in the signing request")?;
    if !public.signs_with(&request.signature_algorithm.algorithm)
        || !public.verifies(info.raw, &request.signature_value.data)
    {
        return Err(PkiError::RequestSignature);
    }
    Ok(public)
}

fn name(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in parts {
        name.push(kind.clone(), *value);
    }
    name
}

fn dns(name: &str) -> Result<SanType, PkiError> {
    name.try_into().map(SanType::DnsName).map_err(signing)
}

/// 16 random bytes, of which the top two bits are fixed so that the number is positive and always as long.
fn serial(entropy: &mut dyn Entropy) -> SerialNumber {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes);
    bytes[0] = bytes[0] & 0x3F | 0x40;
    SerialNumber::from(bytes.to_vec())
}

fn validity_at(now_ms: u64, validity: Duration) -> Result<(OffsetDateTime, OffsetDateTime), PkiError> {
    let now_s = now_ms / 1000;
    let date = |seconds: u64| {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).min(END_OF_TIME_S);
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| date_out_of_range())
    };
    Ok((date(now_s.saturating_sub(BACKDATE.as_secs()))?, date(now_s.saturating_add(validity.as_secs()))?))
}

fn date_out_of_range() -> PkiError {
    PkiError::Signing("the date is outside what a certificate can hold".to_owned())
}

#[allow(clippy::needless_pass_by_value, reason = "fits map_err")]
fn signing(error: rcgen::Error) -> PkiError {
    PkiError::Signing(error.to_string())
}

const ROOT: &str = "root certificate";

/// swarmkit's root validity, 630,720,000 s.
const ROOT_VALIDITY: Duration = Duration::from_secs(20 * 365 * 86_400);

/// How far behind a node's clock may be and still accept a fresh certificate.
const BACKDATE: Duration = Duration::from_secs(86_400);

/// 9999-12-31T23:59:59Z, the last date of X.509 (RFC 5280 section 4.1.2.5).
const END_OF_TIME_S: i64 = 253_402_300_799;

/// A request with an ed25519 key is about 300 bytes of PEM.
const MAX_REQUEST_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests;
