#![allow(clippy::unwrap_used)]

use rcgen::{BasicConstraints, CertificateParams, GeneralSubtree, NameConstraints};

use super::*;
use crate::pki::issuer_of;
use crate::pki::testing::*;
use crate::sys::entropy::SeededEntropy;

fn certificates(pem_text: &str) -> Vec<CertificateDer<'static>> {
    pem::certificates(pem_text, "test").unwrap()
}

/// A root that a person made, with these limits.
fn limited(limit: impl FnOnce(&mut CertificateParams)) -> RootCa {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    limit(&mut params);
    RootCa::load(&params.self_signed(&key).unwrap().pem(), &key.serialize_pem()).unwrap()
}

#[test]
fn the_successor_keeps_its_name_key_and_dates_under_the_old_roots_signature() {
    for (old, new) in [(root(1), root(2)), (root(1), given_root()), (given_root(), root(2))] {
        let cross = old.cross_sign(&new, &mut SeededEntropy::new(5)).unwrap();
        let [der] = certificates(&cross).try_into().unwrap();
        let [given] = certificates(new.certificate_pem()).try_into().unwrap();
        let (made, given) = (identity::parse(&der).unwrap(), identity::parse(&given).unwrap());
        assert_eq!(made.subject().as_raw(), given.subject().as_raw());
        assert_eq!(made.public_key().raw, given.public_key().raw);
        assert_eq!(made.validity(), given.validity());
        assert_eq!(key_identifier(&made), key_identifier(&given));
        assert_eq!(path_length(&made), Some(0));
        assert_eq!(made.key_usage().unwrap().unwrap().value.to_string(), "Key Cert Sign, CRL Sign");
        let [old_der] = certificates(old.certificate_pem()).try_into().unwrap();
        assert!(identity::is_signed_by(&der, &old_der));
        assert!(!identity::is_signed_by(&der, &certificates(new.certificate_pem())[0]));
    }
}

#[test]
fn a_chain_of_a_rotation_is_taken_under_either_root_and_says_who_signed_it() {
    for (old, new) in [(root(1), root(2)), (root(1), given_root()), (given_root(), root(2))] {
        let (old_pem, new_pem) = (old.certificate_pem().to_owned(), new.certificate_pem().to_owned());
        let new = succeeding(&old, new);
        let node = manager(&new, NODE, NOW_MS);
        assert_eq!(certificates(node.chain_pem()).len(), 2);
        for roots in [&old_pem, &new_pem] {
            assert_eq!(node.verify(roots, NOW_MS), Ok(()));
            assert_eq!(issuer_of(node.chain_pem(), roots).as_deref(), Ok(new.issuer()));
        }
        let old_node = manager(&old, NODE, NOW_MS);
        assert_eq!(old_node.verify(&old_pem, NOW_MS), Ok(()));
        assert!(old_node.verify(&new_pem, NOW_MS).is_err());
        assert_ne!(old.issuer(), new.issuer());
    }
}

#[test]
fn a_root_that_has_expired_still_hands_over() {
    let (old, later_ms) = (root(1), NOW_MS + 21 * 365 * 86_400_000);
    let new = RootCa::generate(later_ms, &mut SeededEntropy::new(2)).unwrap();
    let old_pem = old.certificate_pem().to_owned();
    let node = manager(&succeeding(&old, new), NODE, later_ms);
    assert_eq!(node.verify(&old_pem, later_ms), Ok(()));
}

#[test]
fn a_root_for_nodes_only_has_no_successor() {
    let narrow = limited(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert_eq!(narrow.cross_sign(&root(2), &mut SeededEntropy::new(5)), Err(PkiError::NoSuccessor));
    assert!(!PkiError::NoSuccessor.hint().is_empty());
    assert_eq!(root_facts(narrow.certificate_pem()).unwrap()[0].path_length, Some(0));
}

#[test]
fn a_root_whose_limits_shut_nodes_out_is_found_before_it_is_used() {
    let entropy = &mut SeededEntropy::new(5);
    let old = root(1);
    let only_example = NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".to_owned())],
        excluded_subtrees: Vec::new(),
    };
    let walled = limited(|params| params.name_constraints = Some(only_example));
    let cross = old.cross_sign(&walled, entropy).unwrap();
    let error = walled.succeeding(cross).rehearse(old.certificate_pem(), CLUSTER, NOW_MS, entropy).unwrap_err();
    assert!(matches!(&error, PkiError::UnfitRoot(why) if !why.is_empty()), "{error}");
    let fit = root(2);
    let cross = old.cross_sign(&fit, entropy).unwrap();
    assert_eq!(fit.succeeding(cross).rehearse(old.certificate_pem(), CLUSTER, NOW_MS, entropy), Ok(()));
    // Signed by somebody else than whom the nodes trust.
    let cross = root(3).cross_sign(&root(2), entropy).unwrap();
    assert!(root(2).succeeding(cross).rehearse(old.certificate_pem(), CLUSTER, NOW_MS, entropy).is_err());
}

#[test]
fn facts_are_those_of_every_root_in_the_text() {
    let (ours, given) = (root(1), given_root());
    let both = format!("some text\n{}more\n{}", given.certificate_pem(), ours.certificate_pem());
    let [first, second] = root_facts(&both).unwrap().try_into().unwrap();
    assert_eq!((first.issuer.as_str(), second.issuer.as_str()), (given.issuer(), ours.issuer()));
    assert_eq!(second.subject, "CN=swarm-ca");
    assert!(first.subject.contains("O=Example Ltd"), "{}", first.subject);
    assert_eq!(second.not_before_ms, NOW_MS - 86_400_000);
    assert_eq!(second.not_after_ms, NOW_MS + 630_720_000_000);
    assert_eq!((first.path_length, second.path_length), (None, Some(1)));
    // What we write is what we would write of it again, so that its digest is the one in join tokens.
    assert_eq!(second.pem, ours.certificate_pem());
    assert!(matches!(root_facts("hello"), Err(PkiError::Unreadable { .. })));
    let node = manager(&ours, NODE, NOW_MS);
    assert_eq!(root_facts(node.chain_pem()), Err(PkiError::NotAnAuthority));
}
