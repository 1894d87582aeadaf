#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rcgen::{CustomExtension, KeyPair, PKCS_ECDSA_P384_SHA384, SigningKey};
use x509_parser::extensions::GeneralName;

use super::*;
use crate::pki::testing::*;
use crate::pki::{JoinToken, NodeIdentity, signing_request};
use crate::sys::entropy::SeededEntropy;

fn sign(root: &RootCa, request: &str, role: Role) -> Result<String, PkiError> {
    root.sign_request(request, NODE, role, CLUSTER, NOW_MS, HOUR, &mut SeededEntropy::new(5))
}

fn der_of(pem_text: &str) -> CertificateDer<'static> {
    pem::certificates(pem_text, "test").unwrap().remove(0)
}

fn request_der(request: &str) -> Vec<u8> {
    CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap().to_vec()
}

fn names(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Vec<String> {
    let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
    names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// A request for another subject, the right to sign, every purpose, and extensions that nobody knows.
fn greedy_request(key: &impl SigningKey) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&[
        (DnType::CommonName, &NodeId(7).to_string()),
        (DnType::OrganizationalUnitName, "swarm-manager"),
        (DnType::OrganizationName, &ClusterId(8).to_string()),
        (DnType::CountryName, "XX"),
    ]);
    params.subject_alt_names = vec![dns("swarm-manager").unwrap(), dns("swarm-ca").unwrap()];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any, ExtendedKeyUsagePurpose::CodeSigning];
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    params.serialize_request(key).unwrap().pem().unwrap()
}

#[test]
fn a_root_may_sign_nodes_and_one_successor_for_twenty_years() {
    let root = root(1);
    let der = der_of(root.certificate_pem());
    let certificate = identity::parse(&der).unwrap();
    assert_eq!(certificate.subject().to_string(), "CN=swarm-ca");
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(1));
    let usage = certificate.key_usage().unwrap().unwrap();
    assert_eq!(usage.value.to_string(), "Key Cert Sign, CRL Sign");
    let start_s = certificate.validity().not_before.timestamp();
    assert_eq!(start_s, NOW_MS as i64 / 1000 - 86_400);
    assert_eq!(certificate.validity().not_after.timestamp(), NOW_MS as i64 / 1000 + 630_720_000);
}

#[test]
fn a_root_is_a_function_of_the_entropy() {
    assert_eq!(root(1).certificate_pem(), root(1).certificate_pem());
    assert_ne!(root(1).certificate_pem(), root(2).certificate_pem());
}

#[test]
fn a_certificate_says_what_the_swarm_says_whatever_the_request_asks() {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    for (role, alternative) in [
        (Role::Worker, vec!["swarm-worker".to_owned(), NODE.to_string()]),
        (Role::Manager, vec!["swarm-manager".to_owned(), NODE.to_string(), "swarm-ca".to_owned()]),
    ] {
        let der = der_of(&sign(&root(1), &greedy_request(&key), role).unwrap());
        let certificate = identity::parse(&der).unwrap();
        let subject = format!("O={CLUSTER}, OU={}, CN={NODE}", role.organizational_unit());
        assert_eq!(certificate.subject().to_string(), subject);
        assert_eq!(certificate.issuer().to_string(), "CN=swarm-ca");
        assert_eq!(names(&certificate), alternative);
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(!constraints.value.ca && constraints.value.path_len_constraint.is_none());
        assert_eq!(certificate.key_usage().unwrap().unwrap().value.to_string(), "Digital Signature");
        let purposes = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && purposes.client_auth);
        assert!(!purposes.any && !purposes.code_signing && purposes.other.is_empty());
        assert!(!certificate.extensions().iter().any(|extension| extension.oid.to_id_string() == "1.2.3.4"));
        assert_eq!(certificate.validity().not_before.timestamp(), NOW_MS as i64 / 1000 - 86_400);
        assert_eq!(certificate.validity().not_after.timestamp(), NOW_MS as i64 / 1000 + 3600);
        assert_eq!(certificate.raw_serial().len(), 16);
        assert_eq!(certificate.public_key().subject_public_key.data, rcgen::PublicKeyData::der_bytes(&key));
    }
}

#[test]
fn serial_numbers_do_not_repeat_for_a_key() {
    let (root, entropy) = (root(1), &mut SeededEntropy::new(1));
    let request = signing_request(&generate_key(entropy)).unwrap();
    let mut serial_of = || {
        let chain = root.sign_request(&request, NODE, Role::Worker, CLUSTER, NOW_MS, HOUR, entropy).unwrap();
        identity::parse(&der_of(&chain)).unwrap().raw_serial().to_vec()
    };
    assert_ne!(serial_of(), serial_of());
}

#[test]
fn requests_with_ed25519_and_p256_keys_are_signed_by_either_kind_of_root() {
    for root in [root(1), given_root()] {
        for key in [generate_key(&mut SeededEntropy::new(3)), p256_key()] {
            let chain = sign(&root, &signing_request(&key).unwrap(), Role::Manager).unwrap();
            let identity = NodeIdentity::new(&chain, key).unwrap();
            identity.verify(root.certificate_pem(), NOW_MS).unwrap();
        }
    }
}

#[test]
fn a_request_for_another_kind_of_key_is_refused() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let error = sign(&root(1), &greedy_request(&key), Role::Worker).unwrap_err();
    assert!(matches!(error, PkiError::UnsupportedKey { .. }), "{error}");
}

#[test]
fn a_request_signed_with_another_key_is_refused() {
    /// Claims one key and signs with another.
    struct Thief(KeyPair, KeyPair);
    impl rcgen::PublicKeyData for Thief {
        fn der_bytes(&self) -> &[u8] {
            rcgen::PublicKeyData::der_bytes(&self.0)
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            rcgen::PublicKeyData::algorithm(&self.0)
        }
    }
    impl SigningKey for Thief {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            self.1.sign(message)
        }
    }
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256] {
        let thief = Thief(KeyPair::generate_for(algorithm).unwrap(), KeyPair::generate_for(algorithm).unwrap());
        assert_eq!(sign(&root(1), &greedy_request(&thief), Role::Worker), Err(PkiError::RequestSignature));
    }
}

#[test]
fn a_request_that_is_too_large_or_unreadable_is_refused() {
    let request = signing_request(&generate_key(&mut SeededEntropy::new(3))).unwrap();
    let check = |text: &str, expected: &str| {
        let error = sign(&root(1), text, Role::Worker).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    };
    check("", "no readable signing request");
    check("hello", "no readable signing request");
    check(root(1).certificate_pem(), "no readable signing request");
    check(&format!("{}{request}", " ".repeat(MAX_REQUEST_BYTES)), "larger than 16384 bytes");
    let mut trailing = request_der(&request);
    trailing.push(0);
    check(&pem::encode("CERTIFICATE REQUEST", &trailing), "no readable signing request");
}

#[test]
fn a_root_is_read_back_from_its_pem() {
    for made in [root(1), given_root()] {
        let read = RootCa::load(made.certificate_pem(), &made.key().to_pem()).unwrap();
        assert_eq!(read.certificate_pem(), made.certificate_pem());
        let token = JoinToken::generate(made.certificate_pem(), &mut SeededEntropy::new(1));
        assert_eq!(token.verify_root(read.certificate_pem()), Ok(()));
    }
}

#[test]
fn of_several_roots_the_one_with_the_key_signs() {
    let (old, new) = (given_root(), root(1));
    let both = format!("{}{}", old.certificate_pem(), new.certificate_pem());
    let loaded = RootCa::load(&both, &new.key().to_pem()).unwrap();
    let key = generate_key(&mut SeededEntropy::new(3));
    let chain = sign(&loaded, &signing_request(&key).unwrap(), Role::Manager).unwrap();
    let identity = NodeIdentity::new(&chain, key).unwrap();
    identity.verify(new.certificate_pem(), NOW_MS).unwrap();
    identity.verify(old.certificate_pem(), NOW_MS).unwrap_err();
}

#[test]
fn a_root_that_cannot_sign_is_refused() {
    let key = generate_key(&mut SeededEntropy::new(3)).to_pem();
    let check = |certificate: &str, key: &str, expected: PkiError| {
        assert_eq!(RootCa::load(certificate, key).map(|_| ()), Err(expected));
    };
    check(root(1).certificate_pem(), &root(2).key().to_pem(), PkiError::KeyMismatch { what: "root" });
    check("", &key, PkiError::Unreadable { what: "root certificate" });
    check(root(1).certificate_pem(), "", PkiError::Unreadable { what: "root key" });
    let node = manager(&root(1), NODE, NOW_MS);
    check(node.chain_pem(), &node.key().to_pem(), PkiError::NotAnAuthority);

    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).unwrap();
    check(&certificate.pem(), &key.serialize_pem(), PkiError::NotAnAuthority);
}

#[test]
fn a_certificate_does_not_outlive_its_root() {
    let root = root(1);
    let request = signing_request(&generate_key(&mut SeededEntropy::new(3))).unwrap();
    let end_ms = NOW_MS + 630_720_000_000;
    let sign_at = |now_ms, validity| {
        root.sign_request(&request, NODE, Role::Worker, CLUSTER, now_ms, validity, &mut SeededEntropy::new(1))
    };
    let chain = sign_at(end_ms - 60_000, HOUR).unwrap();
    assert_eq!(identity::identity_of(&der_of(&chain)).unwrap().not_after_ms, end_ms);
    assert_eq!(sign_at(end_ms + 1000, HOUR), Err(PkiError::RootExpired(Timestamp(end_ms))));
    assert_eq!(sign_at(u64::MAX, HOUR), Err(PkiError::RootExpired(Timestamp(end_ms))));
    let chain = sign_at(0, Duration::MAX).unwrap();
    assert_eq!(identity::identity_of(&der_of(&chain)).unwrap().not_after_ms, end_ms);
}

#[test]
fn debug_shows_no_key() {
    let shown = format!("{:?} {:?}", root(1), manager(&root(1), NODE, NOW_MS));
    let secret = root(1).key().to_pem();
    assert!(!shown.contains(secret.lines().nth(1).unwrap()) && !shown.contains("PRIVATE"), "{shown}");
}

proptest! {
    #[test]
    fn a_damaged_request_is_an_error_or_for_the_same_key(position in 0..400_usize, byte: u8, length in 0..400_usize) {
        let key = generate_key(&mut SeededEntropy::new(3));
        let mut der = request_der(&signing_request(&key).unwrap());
        if let Some(place) = der.get_mut(position) {
            *place = byte;
        }
        der.truncate(length);
        if let Ok(chain) = sign(&root(1), &pem::encode("CERTIFICATE REQUEST", &der), Role::Worker) {
            NodeIdentity::new(&chain, key).unwrap();
        }
    }

    #[test]
    fn a_damaged_request_text_never_panics(position in 0..500_usize, byte in 0..128_u8, length in 0..500_usize) {
        let request = signing_request(&generate_key(&mut SeededEntropy::new(3))).unwrap();
        let mut bytes = request.into_bytes();
        if let Some(place) = bytes.get_mut(position) {
            *place = byte;
        }
        bytes.truncate(length);
        let _ = sign(&root(1), std::str::from_utf8(&bytes).unwrap(), Role::Worker);
    }

    #[test]
    fn a_damaged_root_never_panics(position in 0..700_usize, byte: u8, length in 0..700_usize) {
        let root = root(1);
        let mut der = der_of(root.certificate_pem()).to_vec();
        if let Some(place) = der.get_mut(position) {
            *place = byte;
        }
        der.truncate(length);
        if let Ok(read) = RootCa::load(&pem::encode("CERTIFICATE", &der), &root.key().to_pem()) {
            let _ = sign(&read, &signing_request(root.key()).unwrap(), Role::Worker);
        }
    }
}

#[test]
fn the_key_that_signed_a_chain_is_found_among_those_that_are_known() {
    for root in [root(1), given_root()] {
        let chain = sign(&root, &signing_request(&generate_key(&mut SeededEntropy::new(3))).unwrap(), Role::Worker);
        let chain = chain.unwrap();
        let both = format!("{}{}", super::super::testing::root(2).certificate_pem(), root.certificate_pem());
        assert_eq!(crate::pki::issuer_of(&chain, &both).as_deref(), Ok(root.issuer()));
        assert_eq!(root.issuer().len(), 50);
        let other = super::super::testing::root(2);
        assert_ne!(other.issuer(), root.issuer());
        assert_eq!(crate::pki::issuer_of(&chain, other.certificate_pem()), Err(PkiError::UnknownIssuer));
        assert!(matches!(crate::pki::issuer_of("", &both), Err(PkiError::Unreadable { .. })));
    }
}
