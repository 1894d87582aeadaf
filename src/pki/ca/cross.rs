//! How one root hands over to the next.

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, KeyIdMethod};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::extensions::ParsedExtension;
use x509_parser::x509::X509Name;

use super::super::{NodeIdentity, signing_request};
use super::*;

/// What a root certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFacts {
    /// The certificate alone, PEM without any text around it.
    pub pem: String,
    /// The subject, as text.
    pub subject: String,
    /// Valid from, milliseconds since 1970.
    pub not_before_ms: u64,
    /// Valid through this second, milliseconds since 1970.
    pub not_after_ms: u64,
    /// The digest of its public key: see [`RootCa::issuer`].
    pub issuer: String,
    /// How many authorities may stand between it and a node; `None` is any number.
    pub path_length: Option<u32>,
}

/// Reads root certificates, PEM; at least one.
///
/// # Errors
/// When the text is unreadable or holds a certificate that may not sign others.
pub fn root_facts(roots_pem: &str) -> Result<Vec<RootFacts>, PkiError> {
    let facts = |der: CertificateDer<'static>| {
        check_authority(&der)?;
        let certificate = identity::parse(&der)?;
        let validity = certificate.validity();
        let milliseconds = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
        Ok(RootFacts {
            pem: pem::encode("CERTIFICATE", &der).to_string(),
            subject: certificate.subject().to_string(),
            not_before_ms: milliseconds(validity.not_before.timestamp()),
            not_after_ms: milliseconds(validity.not_after.timestamp()),
            issuer: identity::key_digest(&certificate),
            path_length: path_length(&certificate),
        })
    };
    pem::certificates(roots_pem, ROOT)?.into_iter().map(facts).collect()
}

impl RootCa {
    /// The successor's certificate signed with this root's key, PEM: same subject, key and dates. It may sign nodes and
    /// no further authorities.
    ///
    /// It may outlive this root: verifiers look at the dates of everything in a chain but of the root they trust, and a
    /// root that has expired must still be able to hand over.
    ///
    /// # Errors
    /// [`PkiError::NoSuccessor`] when this root may sign nodes only; [`PkiError::UnfitRoot`] when one of the names is in a
    /// form that cannot be repeated byte for byte.
    pub fn cross_sign(&self, successor: &Self, entropy: &mut dyn Entropy) -> Result<String, PkiError> {
        if self.path_length == Some(0) {
            return Err(PkiError::NoSuccessor);
        }
        let given = identity::parse(&successor.certificate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = repeated(given.subject())?;
        params.serial_number = Some(serial(entropy));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = authority_usages();
        params.use_authority_key_identifier_extension = true;
        // What the successor signs names its key by the identifier in its own certificate.
        if let Some(identifier) = key_identifier(&given) {
            params.key_identifier_method = KeyIdMethod::PreSpecified(identifier);
        }
        params.not_before = given.validity().not_before.to_datetime();
        params.not_after = given.validity().not_after.to_datetime();
        let signed = params.signed_by(&successor.key.public(), &self.issuer).map_err(signing)?;
        let made = identity::parse(signed.der())?;
        if made.subject().as_raw() != successor.subject || made.issuer().as_raw() != self.subject {
            return Err(cannot_repeat());
        }
        Ok(signed.pem())
    }

    /// This root as the successor of another: `cross_signed` (PEM, from [`Self::cross_sign`]) ends every chain it signs.
    #[must_use]
    pub fn succeeding(self, cross_signed: String) -> Self {
        Self { cross_signed: Some(cross_signed), ..self }
    }

    /// Signs certificates that nobody gets, and checks that nodes which trust `roots_pem` would take them, and nodes that
    /// trust only this root. A root that a person gave may have limits that only a verifier finds.
    ///
    /// # Errors
    /// [`PkiError::UnfitRoot`] with the reason.
    pub fn rehearse(
        &self,
        roots_pem: &str,
        cluster: ClusterId,
        now_ms: u64,
        entropy: &mut dyn Entropy,
    ) -> Result<(), PkiError> {
        let request = signing_request(&self.key)?;
        for role in [Role::Worker, Role::Manager] {
            let validity = Duration::from_secs(3600);
            let chain = self.sign_request(&request, NodeId(0), role, cluster, now_ms, validity, entropy)?;
            let identity = NodeIdentity::new(&chain, self.key.clone())?;
            for roots_pem in [roots_pem, self.certificate_pem()] {
                identity.verify(roots_pem, now_ms).map_err(|error| PkiError::UnfitRoot(error.to_string()))?;
            }
        }
        Ok(())
    }
}

/// The name as rcgen writes it; whoever uses it compares the bytes.
fn repeated(name: &X509Name<'_>) -> Result<DistinguishedName, PkiError> {
    let mut repeated = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let arcs: Vec<u64> = attribute.attr_type().iter().ok_or_else(cannot_repeat)?.collect();
        let value = attribute.attr_value();
        let text = std::str::from_utf8(value.data).map_err(|_| cannot_repeat())?;
        let value = match value.header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().map_err(signing)?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().map_err(signing)?),
            _ => return Err(cannot_repeat()),
        };
        repeated.push(DnType::from_oid(&arcs), value);
    }
    Ok(repeated)
}

fn cannot_repeat() -> PkiError {
    PkiError::UnfitRoot("its subject cannot be repeated in other certificates".to_owned())
}

fn key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
