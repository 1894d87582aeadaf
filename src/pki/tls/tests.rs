#![allow(clippy::unwrap_used)]

use rustls::pki_types::PrivateKeyDer;
use rustls::time_provider::TimeProvider;
use rustls::{AlertDescription, ClientConnection, Connection, HandshakeKind, ServerConnection};

use super::*;
use crate::pki::testing::*;
use crate::pki::{Class, RootCa, classify, explain, generate_key};
use crate::sys::entropy::SeededEntropy;

const OTHER_NODE: NodeId = NodeId(0x0FED_CBA9_8765_4321_0FED_CBA9_8765_4321);

#[derive(Debug)]
struct ClockAt(u64);

impl TimeProvider for ClockAt {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(self.0)))
    }
}

/// One end of a connection in memory.
struct End {
    connection: Connection,
    error: Option<Error>,
}

impl End {
    fn new(connection: impl Into<Connection>) -> Self {
        Self { connection: connection.into(), error: None }
    }

    /// Takes what the other end wants to send; false when that is nothing.
    fn take_from(&mut self, other: &mut Self) -> bool {
        let mut bytes = Vec::new();
        while other.connection.wants_write() {
            other.connection.write_tls(&mut bytes).unwrap();
        }
        let moved = !bytes.is_empty();
        self.take(&bytes);
        moved
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.error.is_none() {
            self.connection.read_tls(&mut bytes).unwrap();
            self.error = self.connection.process_new_packets().err();
        }
    }

    /// What this end thinks of the other at `now_ms`.
    fn peer(&self, now_ms: u64) -> Result<Class, Error> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None => Ok(classify(self.connection.peer_certificates(), now_ms)),
        }
    }
}

/// Shakes hands at `now_ms`.
fn handshake(mut client: ClientConfig, mut server: ServerConfig, name: ServerName<'static>, now_ms: u64) -> [End; 2] {
    client.time_provider = Arc::new(ClockAt(now_ms));
    server.time_provider = Arc::new(ClockAt(now_ms));
    let mut client = End::new(ClientConnection::new(Arc::new(client), name).unwrap());
    let mut server = End::new(ServerConnection::new(Arc::new(server)).unwrap());
    while server.take_from(&mut client) | client.take_from(&mut server) {}
    assert!(client.error.is_some() || server.error.is_some() || !server.connection.is_handshaking());
    [client, server]
}

/// What a client and a server, both certified by `root`, think of each other: [the client's view, the server's].
fn meet(
    client: Option<&NodeIdentity>,
    server: &NodeIdentity,
    root: &RootCa,
    name: ServerName<'static>,
    now_ms: u64,
) -> [Result<Class, Error>; 2] {
    let client = client_settings(client, Trust::Roots(root.certificate_pem().to_owned())).unwrap();
    let server = server_settings(server, root.certificate_pem()).unwrap();
    handshake(client, server, name, now_ms).map(|end| end.peer(now_ms))
}

/// Checks a refusal and that it is explained with `words` and a hint.
#[track_caller]
fn check_refusal(result: &Result<Class, Error>, words: &str) {
    let error = result.as_ref().unwrap_err();
    let (message, hint) = explain(error);
    assert!(message.contains(words) && !hint.is_empty(), "{error:?}: {message} / {hint}");
}

#[test]
fn managers_recognise_each_other_by_node_and_by_role() {
    let root = root(1);
    let (dialer, listener) = (manager(&root, NODE, NOW_MS), manager(&root, OTHER_NODE, NOW_MS));
    for name in [server_name(OTHER_NODE), manager_name(), host_name("swarm-ca")] {
        let [seen_by_client, seen_by_server] = meet(Some(&dialer), &listener, &root, name, NOW_MS);
        assert_eq!(seen_by_client, Ok(Class::Valid(*listener.identity())));
        assert_eq!(seen_by_server, Ok(Class::Valid(*dialer.identity())));
    }
}

#[test]
fn a_given_p256_root_and_p256_nodes_work_as_well() {
    let root = given_root();
    let dialer = member(&root, p256_key(), NODE, CLUSTER, NOW_MS);
    let listener = member(&root, p256_key(), OTHER_NODE, CLUSTER, NOW_MS);
    let [seen_by_client, seen_by_server] = meet(Some(&dialer), &listener, &root, server_name(OTHER_NODE), NOW_MS);
    assert_eq!(seen_by_client, Ok(Class::Valid(*listener.identity())));
    assert_eq!(seen_by_server, Ok(Class::Valid(*dialer.identity())));
}

#[test]
fn a_client_without_a_certificate_is_let_in_as_nobody() {
    let root = root(1);
    let listener = manager(&root, NODE, NOW_MS);
    let views = meet(None, &listener, &root, manager_name(), NOW_MS);
    assert_eq!(views, [Ok(Class::Valid(*listener.identity())), Ok(Class::None)]);
}

#[test]
fn an_expired_client_is_let_in_as_expired_from_the_second_after_its_end() {
    let root = root(1);
    let end_ms = NOW_MS + 3_600_000;
    let (dialer, listener) = (manager(&root, NODE, NOW_MS), manager(&root, OTHER_NODE, end_ms));
    let seen_at = |now_ms| {
        let [_, seen_by_server] = meet(Some(&dialer), &listener, &root, manager_name(), now_ms);
        seen_by_server
    };
    assert_eq!(seen_at(end_ms + 999), Ok(Class::Valid(*dialer.identity())));
    assert_eq!(seen_at(end_ms + 1000), Ok(Class::Expired(*dialer.identity())));
    assert_eq!(Class::Expired(*dialer.identity()).valid(), None);
}

#[test]
fn an_expired_client_of_a_foreign_root_is_refused() {
    let (ours, theirs) = (root(1), root(2));
    let now_ms = NOW_MS + 7_200_000;
    let listener = manager(&ours, OTHER_NODE, now_ms);
    let client = client_settings(Some(&manager(&theirs, NODE, NOW_MS)), Trust::Anything).unwrap();
    let server = server_settings(&listener, ours.certificate_pem()).unwrap();
    let [_, server] = handshake(client, server, manager_name(), now_ms);
    check_refusal(&server.peer(now_ms), "not signed by this swarm's root");
}

#[test]
fn a_foreign_root_is_refused_by_both_sides_and_both_learn_why() {
    let (ours, theirs) = (root(1), root(2));
    let (us, them) = (manager(&ours, NODE, NOW_MS), manager(&theirs, OTHER_NODE, NOW_MS));
    let roots = |root: &RootCa| Trust::Roots(root.certificate_pem().to_owned());

    let client = client_settings(Some(&us), roots(&ours)).unwrap();
    let server = server_settings(&them, theirs.certificate_pem()).unwrap();
    let [client, server] = handshake(client, server, manager_name(), NOW_MS).map(|end| end.peer(NOW_MS));
    check_refusal(&client, "not signed by this swarm's root");
    check_refusal(&server, "does not know the root that signed our certificate");

    // A client that trusts the server's root, with a certificate of its own root.
    let client = client_settings(Some(&us), roots(&theirs)).unwrap();
    let server = server_settings(&manager(&theirs, OTHER_NODE, NOW_MS), theirs.certificate_pem()).unwrap();
    let [client, server] = handshake(client, server, manager_name(), NOW_MS).map(|end| end.peer(NOW_MS));
    check_refusal(&server, "not signed by this swarm's root");
    check_refusal(&client, "does not know the root that signed our certificate");
}

#[test]
fn during_a_rotation_two_roots_are_trusted() {
    let (old, new) = (root(1), root(2));
    let both = format!("{}{}", old.certificate_pem(), new.certificate_pem());
    let (dialer, listener) = (manager(&old, NODE, NOW_MS), manager(&new, OTHER_NODE, NOW_MS));
    let client = client_settings(Some(&dialer), Trust::Roots(both.clone())).unwrap();
    let server = server_settings(&listener, &both).unwrap();
    let [client, server] = handshake(client, server, manager_name(), NOW_MS);
    assert_eq!(client.peer(NOW_MS), Ok(Class::Valid(*listener.identity())));
    assert_eq!(server.peer(NOW_MS), Ok(Class::Valid(*dialer.identity())));
}

#[test]
fn a_certificate_from_the_future_is_refused_with_a_word_about_clocks() {
    let root = root(1);
    let days = 3 * 86_400_000;
    let (now, future) = (manager(&root, NODE, NOW_MS), manager(&root, OTHER_NODE, NOW_MS + days));
    let [_, seen_by_server] = meet(Some(&future), &now, &root, manager_name(), NOW_MS);
    check_refusal(
        &seen_by_server,
        "not valid before 2026-01-03T00:00:00.000Z, and this machine's clock says 2026-01-01",
    );
    let [seen_by_client, seen_by_server] = meet(Some(&now), &future, &root, manager_name(), NOW_MS);
    check_refusal(&seen_by_client, "not valid before");
    check_refusal(&seen_by_server, "expired or not yet valid");
    assert!(explain(&seen_by_client.unwrap_err()).1.contains("clocks"));
}

#[test]
fn an_expired_server_is_refused() {
    let root = root(1);
    let later_ms = NOW_MS + 7_200_000;
    let (dialer, listener) = (manager(&root, NODE, later_ms), manager(&root, OTHER_NODE, NOW_MS));
    let [seen_by_client, seen_by_server] = meet(Some(&dialer), &listener, &root, manager_name(), later_ms);
    check_refusal(&seen_by_client, "expired at 2026-01-01T01:00:00.000Z, and this machine's clock says 2026-01-01T02");
    assert_eq!(seen_by_server, Err(Error::AlertReceived(AlertDescription::CertificateExpired)));
}

#[test]
fn a_peer_takes_an_expired_server_and_none_that_is_another_of_another_root_or_not_valid_yet() {
    let root = root(1);
    let later_ms = NOW_MS + 7_200_000;
    let dialer = manager(&root, NODE, NOW_MS);
    let meet = |listener: &NodeIdentity, of: &RootCa, node: NodeId, now_ms: u64| {
        let inner = server_verifier(root.certificate_pem(), Some(&dialer), true).unwrap();
        let client = settings_with(Some(&dialer), Arc::new(inner)).unwrap();
        let server = server_settings(listener, of.certificate_pem()).unwrap();
        let [seen_by_client, _] = handshake(client, server, server_name(node), now_ms).map(|end| end.peer(now_ms));
        seen_by_client
    };
    let listener = manager(&root, OTHER_NODE, NOW_MS);
    assert_eq!(meet(&listener, &root, OTHER_NODE, later_ms), Ok(Class::Expired(*listener.identity())));
    check_refusal(&meet(&listener, &root, NODE, later_ms), "another node answers at this address");
    let other = super::tests::root(2);
    let foreign = manager(&other, OTHER_NODE, NOW_MS);
    check_refusal(&meet(&foreign, &other, OTHER_NODE, later_ms), "another swarm");
    let future = manager(&root, OTHER_NODE, NOW_MS + 3 * 86_400_000);
    check_refusal(&meet(&future, &root, OTHER_NODE, NOW_MS), "not valid before");
}

#[test]
fn another_node_at_the_address_is_noticed() {
    let root = root(1);
    let (dialer, listener) = (manager(&root, NODE, NOW_MS), manager(&root, OTHER_NODE, NOW_MS));
    let [seen_by_client, _] = meet(Some(&dialer), &listener, &root, server_name(NODE), NOW_MS);
    check_refusal(&seen_by_client, &format!("another node answers at this address: expected {NODE}"));
}

#[test]
fn ids_that_look_like_numbers_can_be_dialled() {
    let root = root(1);
    let hexadecimal: NodeId = "0x000000000000000000000a5".parse().unwrap();
    for node in [NodeId(0), NodeId(1), NodeId(0xA), hexadecimal] {
        let listener = manager(&root, node, NOW_MS);
        let [seen_by_client, _] = meet(None, &listener, &root, server_name(node), NOW_MS);
        assert_eq!(seen_by_client, Ok(Class::Valid(*listener.identity())));
        let [seen_by_client, _] = meet(None, &listener, &root, server_name(NodeId(2)), NOW_MS);
        check_refusal(&seen_by_client, "another node answers");
    }
}

#[test]
fn any_server_will_do_for_fetching_the_root() {
    let foreign = root(2);
    let listener = manager(&foreign, NODE, NOW_MS);
    // Long expired, and under another name: the digest in the token is what counts.
    let client = client_settings(None, Trust::Anything).unwrap();
    let server = server_settings(&listener, foreign.certificate_pem()).unwrap();
    let [client, server] = handshake(client, server, server_name(OTHER_NODE), NOW_MS + 86_400_000);
    assert_eq!(client.peer(NOW_MS), Ok(Class::Valid(*listener.identity())));
    assert_eq!(server.peer(NOW_MS), Ok(Class::None));
}

#[test]
fn a_server_without_the_key_of_its_certificate_is_refused_even_then() {
    let root = root(1);
    let listener = manager(&root, NODE, NOW_MS);
    let mut server = server_settings(&listener, root.certificate_pem()).unwrap();
    let stranger = generate_key(&mut SeededEntropy::new(77)).tls_signer().unwrap();
    server.cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(listener.chain().to_vec(), stranger)));
    for trust in [Trust::Anything, Trust::Roots(root.certificate_pem().to_owned())] {
        let client = client_settings(None, trust).unwrap();
        let [client, _] = handshake(client, server.clone(), manager_name(), NOW_MS);
        assert_eq!(client.peer(NOW_MS), Err(CertificateError::BadSignature.into()));
    }
}

#[test]
fn two_swarms_under_one_given_root_stay_apart() {
    let root = given_root();
    let other = ClusterId(42);
    let ours = manager(&root, NODE, NOW_MS);
    let theirs = member(&root, generate_key(&mut SeededEntropy::new(5)), OTHER_NODE, other, NOW_MS);
    let [seen_by_client, seen_by_server] = meet(Some(&theirs), &ours, &root, manager_name(), NOW_MS);
    check_refusal(&seen_by_client, "the certificate is of another swarm");
    check_refusal(&seen_by_server, "refuses our certificate");
    // Somebody who belongs to no swarm yet may connect to either.
    assert!(meet(None, &theirs, &root, manager_name(), NOW_MS).iter().all(Result::is_ok));
}

#[test]
fn a_certificate_that_the_given_root_signed_for_something_else_is_refused() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root_pem = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&root_pem, &key).unwrap();
    let web_key = rcgen::KeyPair::generate().unwrap();
    let web = rcgen::CertificateParams::new(vec!["swarm-manager".to_owned()]).unwrap();
    let web = web.signed_by(&web_key, &issuer).unwrap();

    let root = RootCa::load(&root_pem, &key.serialize_pem()).unwrap();
    let node = manager(&root, NODE, NOW_MS);
    let web_key = PrivateKeyDer::try_from(web_key.serialize_der()).unwrap();
    let web_key = CertifiedKey::from_der(vec![web.der().clone()], web_key, &provider()).unwrap();

    let mut client = client_settings(Some(&node), Trust::Roots(root_pem.clone())).unwrap();
    client.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(web_key.clone()));
    let server = server_settings(&node, &root_pem).unwrap();
    let [_, server] = handshake(client, server, manager_name(), NOW_MS);
    assert!(explain(server.error.as_ref().unwrap()).0.contains("does not name a node of a swarm"));

    let client = client_settings(None, Trust::Roots(root_pem.clone())).unwrap();
    let mut server = server_settings(&node, &root_pem).unwrap();
    server.cert_resolver = Arc::new(SingleCertAndKey::from(web_key));
    let [client, _] = handshake(client, server, manager_name(), NOW_MS);
    assert!(explain(client.error.as_ref().unwrap()).0.contains("does not name a node of a swarm"));
}

#[test]
fn a_node_cannot_certify_others() {
    let root = root(1);
    let node = manager(&root, NODE, NOW_MS);
    let issuer = rcgen::Issuer::from_ca_cert_pem(node.chain_pem(), node.key().signer()).unwrap();
    let key = generate_key(&mut SeededEntropy::new(6));
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, OTHER_NODE.to_string());
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "swarm-manager");
    params.distinguished_name.push(rcgen::DnType::OrganizationName, CLUSTER.to_string());
    let forged = params.signed_by(&key.public(), &issuer).unwrap();
    let forged = NodeIdentity::new(&format!("{}{}", forged.pem(), node.chain_pem()), key).unwrap();

    assert!(forged.verify(root.certificate_pem(), NOW_MS).is_err());
    let [_, seen_by_server] = meet(Some(&forged), &node, &root, manager_name(), NOW_MS);
    assert!(seen_by_server.is_err());
}

#[test]
fn both_sides_must_speak_the_protocol() {
    let root = root(1);
    let node = manager(&root, NODE, NOW_MS);
    let client = || client_settings(None, Trust::Roots(root.certificate_pem().to_owned())).unwrap();
    let server = || server_settings(&node, root.certificate_pem()).unwrap();

    let ends = handshake(client(), server(), manager_name(), NOW_MS);
    assert!(ends.iter().all(|end| check_protocol(end.connection.alpn_protocol()).is_ok()));

    let mut browser = client();
    browser.alpn_protocols = vec![b"h2".to_vec()];
    let [browser, listener] = handshake(browser, server(), manager_name(), NOW_MS).map(|end| end.peer(NOW_MS));
    check_refusal(&listener, "does not speak the protocol skep/1");
    check_refusal(&browser, "does not speak the protocol skep/1");

    let mut silent = client();
    silent.alpn_protocols.clear();
    for end in handshake(silent, server(), manager_name(), NOW_MS) {
        assert_eq!(check_protocol(end.connection.alpn_protocol()), Err(PkiError::OtherProtocol));
    }
}

#[test]
fn no_connection_is_resumed() {
    let root = root(1);
    let (dialer, listener) = (manager(&root, NODE, NOW_MS), manager(&root, OTHER_NODE, NOW_MS));
    let client = client_settings(Some(&dialer), Trust::Roots(root.certificate_pem().to_owned())).unwrap();
    let server = server_settings(&listener, root.certificate_pem()).unwrap();
    for _ in 0..3 {
        for end in handshake(client.clone(), server.clone(), manager_name(), NOW_MS) {
            assert_eq!(end.connection.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!server.session_storage.can_cache());
}

#[test]
fn somebody_who_does_not_speak_tls_is_told_apart() {
    let root = root(1);
    let config = server_config(&manager(&root, NODE, NOW_MS), root.certificate_pem()).unwrap();
    let mut server = End::new(ServerConnection::new(config).unwrap());
    server.take(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n");
    check_refusal(&server.peer(NOW_MS), "does not speak TLS");
}

#[test]
fn settings_need_roots_that_are_roots() {
    let node = manager(&root(1), NODE, NOW_MS);
    let check = |roots: &str, expected: PkiError| {
        assert_eq!(server_config(&node, roots).map(|_| ()), Err(expected.clone()));
        assert_eq!(client_config(Some(&node), Trust::Roots(roots.to_owned())).map(|_| ()), Err(expected));
    };
    check("", PkiError::Unreadable { what: "root certificate" });
    check(node.chain_pem(), PkiError::NotAnAuthority);
    check(&" ".repeat(1 << 20), PkiError::TooLarge { what: "root certificate", limit: 64 << 10 });
    client_config(None, Trust::Anything).unwrap();
}

#[test]
fn bytes_off_the_wire_never_panic_a_server() {
    use proptest::test_runner::{Config, TestRunner};
    let root = root(1);
    let node = manager(&root, NODE, NOW_MS);
    let client = client_config(Some(&node), Trust::Roots(root.certificate_pem().to_owned())).unwrap();
    let server = server_config(&node, root.certificate_pem()).unwrap();
    let damage = (0..300_usize, proptest::num::u8::ANY, 0..300_usize);
    TestRunner::new(Config::default())
        .run(&damage, |(position, byte, length)| {
            let mut client = ClientConnection::new(client.clone(), manager_name()).unwrap();
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            if let Some(place) = bytes.get_mut(position) {
                *place = byte;
            }
            bytes.truncate(length);
            End::new(ServerConnection::new(server.clone()).unwrap()).take(&bytes);
            Ok(())
        })
        .unwrap();
}

/// Nodes of a rotation from `old` to `new`: one that has not moved and one that has.
fn rotating() -> (RootCa, RootCa, NodeIdentity, NodeIdentity) {
    let (old, new) = (root(1), succeeding(&root(1), root(2)));
    let (stays, moved) = (manager(&old, NODE, NOW_MS), manager(&new, OTHER_NODE, NOW_MS));
    (old, new, stays, moved)
}

/// What two nodes, each with the root it was given, think of each other: (the client's view, the server's).
fn meet_with(
    (client, client_roots): (&NodeIdentity, &RootCa),
    (server, server_roots): (&NodeIdentity, &RootCa),
) -> (Result<Class, Error>, Result<Class, Error>) {
    let trust = Trust::Roots(client_roots.certificate_pem().to_owned());
    let client = client_settings(Some(client), trust).unwrap();
    let server = server_settings(server, server_roots.certificate_pem()).unwrap();
    let [client, server] = handshake(client, server, manager_name(), NOW_MS).map(|end| end.peer(NOW_MS));
    (client, server)
}

#[test]
fn while_nodes_move_to_a_new_root_every_two_of_them_take_each_other() {
    let (old, new, stays, moved) = rotating();
    let another = manager(&new, NodeId(7), NOW_MS);
    // A node that moved may have been given the new root already, one that has not moved cannot.
    let nodes = [(&stays, &old), (&moved, &old), (&moved, &new), (&another, &old), (&another, &new)];
    let mut pairs = 0;
    for client in nodes {
        for server in nodes {
            let holds_old = [client.0, server.0].into_iter().any(|node| std::ptr::eq(node, &stays));
            let given_new = [client.1, server.1].into_iter().any(|root| std::ptr::eq(root, &new));
            if holds_old && given_new {
                continue;
            }
            let seen = meet_with(client, server);
            assert_eq!(seen.0, Ok(Class::Valid(*server.0.identity())));
            assert_eq!(seen.1, Ok(Class::Valid(*client.0.identity())));
            pairs += 1;
        }
    }
    assert_eq!(pairs, 21);
}

#[test]
fn after_a_rotation_a_node_that_did_not_move_is_refused_on_either_side() {
    let (old, new, stays, moved) = rotating();
    // It has the old root still, and does not refuse those who moved: they must refuse it.
    let (seen_by_client, seen_by_server) = meet_with((&stays, &old), (&moved, &new));
    check_refusal(&seen_by_server, "not signed by this swarm's root");
    check_refusal(&seen_by_client, "does not know the root that signed our certificate");
    let (seen_by_client, _) = meet_with((&moved, &new), (&stays, &old));
    check_refusal(&seen_by_client, "not signed by this swarm's root");
}

#[test]
fn a_node_that_moved_and_missed_the_end_knows_those_that_were_certified_since() {
    let (old, new, stays, moved) = rotating();
    // After the end the new root signs without the old one's help.
    let since = manager(&root(2), NodeId(9), NOW_MS);
    assert_eq!(since.chain().len(), 1);
    let valid = |node: &NodeIdentity| Ok(Class::Valid(*node.identity()));
    assert_eq!(meet_with((&moved, &old), (&since, &new)), (valid(&since), valid(&moved)));
    assert_eq!(meet_with((&since, &new), (&moved, &old)), (valid(&moved), valid(&since)));
    // One that did not move knows nothing of it.
    let (seen_by_client, _) = meet_with((&stays, &old), (&since, &new));
    check_refusal(&seen_by_client, "not signed by this swarm's root");
}

#[test]
fn only_what_a_trusted_root_signed_is_trusted_from_ones_own_chain() {
    let (ours, theirs) = (root(1), root(2));
    let node = manager(&ours, NODE, NOW_MS);
    let stranger = manager(&theirs, OTHER_NODE, NOW_MS);
    // Another root, its successor's certificate, and a node's certificate, hung behind our own.
    for hung in [
        theirs.certificate_pem().to_owned(),
        theirs.cross_sign(&root(3), &mut SeededEntropy::new(1)).unwrap(),
        manager(&ours, NodeId(5), NOW_MS).chain_pem().to_owned(),
    ] {
        let node = NodeIdentity::new(&format!("{}{hung}", node.chain_pem()), node.key().clone()).unwrap();
        let (seen_by_client, _) = meet_with((&node, &ours), (&stranger, &theirs));
        check_refusal(&seen_by_client, "not signed by this swarm's root");
    }
}

#[test]
fn a_swarm_that_turns_to_a_third_root_midway_stays_whole() {
    let old = root(1);
    let (second, third) = (succeeding(&old, root(2)), succeeding(&old, root(3)));
    let nodes =
        [manager(&old, NodeId(11), NOW_MS), manager(&second, NodeId(12), NOW_MS), manager(&third, NodeId(13), NOW_MS)];
    for client in &nodes {
        for server in &nodes {
            let seen = meet_with((client, &old), (server, &old));
            let expected = (Ok(Class::Valid(*server.identity())), Ok(Class::Valid(*client.identity())));
            assert_eq!(seen, expected);
        }
    }
    // At the end only the last one counts.
    for left in &nodes[..2] {
        assert!(meet_with((&nodes[2], &third), (left, &old)).0.is_err());
    }
}

#[test]
fn joiners_during_a_rotation_check_the_old_root_and_reach_managers_that_moved() {
    let (old, _, _, moved) = rotating();
    let client = client_settings(None, Trust::Roots(old.certificate_pem().to_owned())).unwrap();
    let server = server_settings(&moved, old.certificate_pem()).unwrap();
    let [client, server] = handshake(client, server, manager_name(), NOW_MS).map(|end| end.peer(NOW_MS));
    assert_eq!((client, server), (Ok(Class::Valid(*moved.identity())), Ok(Class::None)));
}
