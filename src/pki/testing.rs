//! What the tests of this folder share.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

use super::*;
use crate::sys::entropy::SeededEntropy;
use crate::types::{ClusterId, NodeId, Role};

/// 2026-01-01T00:00:00Z.
pub const NOW_MS: u64 = 1_767_225_600_000;
pub const HOUR: Duration = Duration::from_secs(3600);
pub const NODE: NodeId = NodeId(0x1234_5678_9ABC_DEF0_1234_5678_9ABC_DEF0);
pub const CLUSTER: ClusterId = ClusterId(0xFEDC_BA98_7654_3210_FEDC_BA98_7654_3210);

/// Fresh from the operating system: ring makes P-256 keys in no other way.
pub fn p256_key() -> PrivateKey {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).unwrap();
    PrivateKey::from_pem(&pem::encode("PRIVATE KEY", pkcs8.as_ref()), "test key").unwrap()
}

pub fn root(seed: u64) -> RootCa {
    RootCa::generate(NOW_MS, &mut SeededEntropy::new(seed)).unwrap()
}

/// A root as a person might give it: P-256, with a name of its own and in another string type than ours.
pub fn given_root() -> RootCa {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CountryName, "CH");
    let organization = rcgen::DnValue::PrintableString("Example Ltd".try_into().unwrap());
    params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    RootCa::load(&certificate.pem(), &key.serialize_pem()).unwrap()
}

/// `new` as the successor of `old`, in the middle of a rotation.
pub fn succeeding(old: &RootCa, new: RootCa) -> RootCa {
    let cross = old.cross_sign(&new, &mut SeededEntropy::new(11)).unwrap();
    new.succeeding(cross)
}

/// A manager's identity, signed at `now_ms` for an hour.
pub fn manager(root: &RootCa, node: NodeId, now_ms: u64) -> NodeIdentity {
    member(root, generate_key(&mut SeededEntropy::new(node.0 as u64)), node, CLUSTER, now_ms)
}

pub fn member(root: &RootCa, key: PrivateKey, node: NodeId, cluster: ClusterId, now_ms: u64) -> NodeIdentity {
    let request = signing_request(&key).unwrap();
    let entropy = &mut SeededEntropy::new(9);
    let chain = root.sign_request(&request, node, Role::Manager, cluster, now_ms, HOUR, entropy).unwrap();
    NodeIdentity::new(&chain, key).unwrap()
}
