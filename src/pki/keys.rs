//! Key pairs of nodes and roots: ed25519 is what we make, P-256 is accepted from others.

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::oid_registry;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::{Zeroize, Zeroizing};

use super::{PkiError, pem};
use crate::sys::entropy::Entropy;

/// A private key, PKCS#8. Wiped when dropped; its `Debug` shows the kind of key only.
#[derive(Clone)]
pub struct PrivateKey {
    algorithm: Algorithm,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    /// Reads the first private key in PEM text: PKCS#8, ed25519 or P-256. `what` names the key in errors, such as
    /// "node key".
    ///
    /// # Errors
    /// [`PkiError::Unreadable`] and [`PkiError::UnsupportedKey`].
    pub fn from_pem(text: &str, what: &'static str) -> Result<Self, PkiError> {
        if text.len() > MAX_KEY_BYTES {
            return Err(PkiError::TooLarge { what, limit: MAX_KEY_BYTES });
        }
        let pkcs8 = match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
            Ok(PrivateKeyDer::Pkcs8(key)) => Zeroizing::new(key.secret_pkcs8_der().to_vec()),
            Ok(mut other) => {
                other.zeroize();
                return Err(PkiError::UnsupportedKey { what, found: "it is not in PKCS#8 form" });
            }
            Err(_) if text.contains("ENCRYPTED PRIVATE KEY") => {
                return Err(PkiError::UnsupportedKey { what, found: "it is encrypted with a passphrase" });
            }
            Err(_) => return Err(PkiError::Unreadable { what }),
        };
        Self::from_pkcs8(pkcs8, what)
    }

    /// From PKCS#8 (DER): ed25519 or P-256.
    pub(super) fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>, what: &'static str) -> Result<Self, PkiError> {
        for algorithm in [Algorithm::Ed25519, Algorithm::P256] {
            if Signer::new(algorithm, &pkcs8).is_some() {
                return Ok(Self { algorithm, pkcs8 });
            }
        }
        Err(PkiError::UnsupportedKey { what, found: "it is neither ed25519 nor P-256" })
    }

    /// PKCS#8 (DER).
    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// PEM text of the key, wiped when dropped.
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::encode("PRIVATE KEY", &self.pkcs8)
    }

    /// The key's public half.
    pub fn public(&self) -> PublicKey {
        let signer = self.signer();
        PublicKey { algorithm: self.algorithm, bytes: rcgen::PublicKeyData::der_bytes(&signer).to_vec() }
    }

    /// For rcgen.
    pub(super) fn signer(&self) -> Signer {
        Signer::new(self.algorithm, &self.pkcs8).expect("the key was read once when it was made")
    }

    /// For rustls.
    pub(super) fn tls_signer(&self) -> Result<std::sync::Arc<dyn rustls::sign::SigningKey>, PkiError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.as_slice()));
        rustls::crypto::ring::sign::any_supported_type(&key).map_err(PkiError::Tls)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{:?} private key>", self.algorithm)
    }
}

/// A public key of a kind that we accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: Algorithm,
    /// Ed25519: 32 bytes. P-256: an uncompressed point, 65 bytes.
    bytes: Vec<u8>,
}

impl PublicKey {
    /// The key in a certificate or request. `what` names the key in errors.
    pub(super) fn read(info: &SubjectPublicKeyInfo<'_>, what: &'static str) -> Result<Self, PkiError> {
        let bytes = info.subject_public_key.data.to_vec();
        let oid = &info.algorithm.algorithm;
        let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        if *oid == oid_registry::OID_SIG_ED25519 && bytes.len() == 32 && info.algorithm.parameters.is_none() {
            Ok(Self { algorithm: Algorithm::Ed25519, bytes })
        } else if *oid == oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY
            && curve == Some(oid_registry::OID_EC_P256)
            && (bytes.len(), bytes.first()) == (65, Some(&4))
        {
            Ok(Self { algorithm: Algorithm::P256, bytes })
        } else {
            Err(PkiError::UnsupportedKey { what, found: "it is neither ed25519 nor P-256" })
        }
    }

    /// Whether `signature` over `message` was made with the private half.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn signature::VerificationAlgorithm = match self.algorithm {
            Algorithm::Ed25519 => &signature::ED25519,
            Algorithm::P256 => &signature::ECDSA_P256_SHA256_ASN1,
        };
        signature::UnparsedPublicKey::new(algorithm, &self.bytes).verify(message, signature).is_ok()
    }

    /// Whether a signature algorithm is the one that goes with this key.
    pub(super) fn signs_with(&self, algorithm: &x509_parser::der_parser::oid::Oid<'_>) -> bool {
        *algorithm
            == match self.algorithm {
                Algorithm::Ed25519 => oid_registry::OID_SIG_ED25519,
                Algorithm::P256 => oid_registry::OID_SIG_ECDSA_WITH_SHA256,
            }
    }
}

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm.of_rcgen()
    }
}

/// A new ed25519 key.
pub fn generate_key(entropy: &mut dyn Entropy) -> PrivateKey {
    // RFC 8410 section 7: version 0, OID 1.3.101.112, the 32-byte seed in two octet strings.
    let mut pkcs8 = Zeroizing::new(vec![
        0x30, 0x2E, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    ]);
    // Grown once, before it holds a secret.
    pkcs8.resize(16 + 32, 0);
    entropy.fill(&mut pkcs8[16..]);
    PrivateKey { algorithm: Algorithm::Ed25519, pkcs8 }
}

/// A request, in PEM, to certify `key`. It names no subject: the authority decides that.
///
/// # Errors
/// [`PkiError::Signing`], which only a P-256 key can cause.
pub fn signing_request(key: &PrivateKey) -> Result<String, PkiError> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .serialize_request(&key.signer())
        .and_then(|request| request.pem())
        .map_err(|error| PkiError::Signing(error.to_string()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Ed25519,
    P256,
}

impl Algorithm {
    fn of_rcgen(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        }
    }
}

/// A key ready to sign. rcgen's own key pair would keep a copy of the key that nobody wipes.
pub(super) enum Signer {
    Ed25519(Ed25519KeyPair),
    P256(Box<EcdsaKeyPair>),
}

impl Signer {
    fn new(algorithm: Algorithm, pkcs8: &[u8]) -> Option<Self> {
        match algorithm {
            // "Maybe unchecked": OpenSSL and [`generate_key`] write keys without the public half.
            Algorithm::Ed25519 => Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).ok().map(Self::Ed25519),
            Algorithm::P256 => {
                let kind = &signature::ECDSA_P256_SHA256_ASN1_SIGNING;
                EcdsaKeyPair::from_pkcs8(kind, pkcs8, &SystemRandom::new()).ok().map(Box::new).map(Self::P256)
            }
        }
    }
}

impl rcgen::PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::Ed25519(key) => key.public_key().as_ref(),
            Self::P256(key) => key.public_key().as_ref(),
        }
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::Ed25519(_) => Algorithm::Ed25519.of_rcgen(),
            Self::P256(_) => Algorithm::P256.of_rcgen(),
        }
    }
}

impl rcgen::SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Self::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
            Self::P256(key) => {
                let signature = key.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RingUnspecified)?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }
}

/// An RSA key of 16,384 bits is smaller than this.
const MAX_KEY_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::pki::testing::p256_key;
    use crate::sys::entropy::SeededEntropy;

    #[test]
    fn a_key_is_a_function_of_the_entropy() {
        let [first, again, other] = [1, 1, 2].map(|seed| generate_key(&mut SeededEntropy::new(seed)).to_pem());
        assert_eq!(first, again);
        assert_ne!(first, other);
    }

    #[test]
    fn a_key_survives_pem() {
        for key in [generate_key(&mut SeededEntropy::new(1)), p256_key()] {
            let read = PrivateKey::from_pem(&key.to_pem(), "key").unwrap();
            assert_eq!((read.public(), &read.pkcs8), (key.public(), &key.pkcs8));
        }
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", generate_key(&mut SeededEntropy::new(1))), "<Ed25519 private key>");
    }

    #[test]
    fn other_forms_of_key_are_refused_by_name() {
        let check = |label: &str, body: &[u8], expected: &str| {
            let error = PrivateKey::from_pem(&pem::encode(label, body), "node key").unwrap_err();
            assert!(error.to_string().contains(expected), "{label}: {error}");
        };
        check("EC PRIVATE KEY", &[1, 2, 3], "not in PKCS#8 form");
        check("RSA PRIVATE KEY", &[1, 2, 3], "not in PKCS#8 form");
        check("ENCRYPTED PRIVATE KEY", &[1, 2, 3], "encrypted");
        check("PRIVATE KEY", &[1, 2, 3], "neither ed25519 nor P-256");
        check("CERTIFICATE", &[1, 2, 3], "no readable node key");
        let long = "x".repeat(MAX_KEY_BYTES + 1);
        assert!(matches!(PrivateKey::from_pem(&long, "node key"), Err(PkiError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn a_damaged_key_is_an_error_or_a_key(position in 0..200_usize, byte: u8, length in 0..200_usize) {
            let mut bytes = generate_key(&mut SeededEntropy::new(1)).to_pem().as_bytes().to_vec();
            if let Some(place) = bytes.get_mut(position) {
                *place = byte;
            }
            bytes.truncate(length);
            if let Ok(key) = PrivateKey::from_pem(&String::from_utf8_lossy(&bytes), "key") {
                signing_request(&key).unwrap();
            }
        }
    }
}
