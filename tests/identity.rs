//! Identity over time, in one process whose clock is wound forward: renewal, expiry, workers, roles.
//!
//! The clock is the process's, so the tests take turns.
//!
//! # What must hold of identity, and what shows it
//!
//! Everything that a swarm promises about who is who, and the tests that would fail without it. A test at the end of this
//! file sees to it that each of them is there.
//!
//! ## Managers that lock
//!
//! - A manager does not start without the unlock key; the one before a rotation opens nothing that was sealed since;
//!   without a lock nobody is asked:
//!   - `tests/process/autolock.rs three_managers_lock_change_their_key_and_open_again`
//! - Locking seals the node's key and replaces what lay there in the clear, the log's key and the certificate;
//!   unlocking keeps the log's key:
//!   - `tests/process/autolock.rs three_managers_lock_change_their_key_and_open_again`
//!   - `src/node/locksmith.rs a_power_cut_at_any_call_of_locking_and_rotation_loses_nothing_and_the_next_start_ends_it`
//! - A newer word of the swarm about the unlock key is followed, an older one is not, and two keys of one version are
//!   a contradiction:
//!   - `src/pki/keyfile.rs a_word_of_the_swarm_is_followed_when_it_is_newer`
//!   - `src/node/locksmith.rs the_swarms_word_is_followed_first_and_a_contradiction_told_once`
//! - The unlock key is given to managers only, with the version of the cluster it belongs to:
//!   - `tests/process/autolock.rs a_manager_that_joins_locked_managers_is_locked_and_a_credential_opens_it`
//!   - `src/control/tests/writes.rs the_unlock_key_is_the_first_one_given_until_it_is_rotated_or_the_lock_is_off`
//!   - `src/net/routes.rs every_call_admits_exactly_its_callers`
//! - One log key is replaced at a time, while writes go on and while the certificate is renewed:
//!   - `src/node/locksmith.rs one_key_is_replaced_at_a_time_and_a_log_kept_aside_holds_up_nothing`
//!   - `tests/process/autolock.rs a_data_key_is_replaced_while_writes_go_on`
//!   - `tests/identity.rs a_certificate_is_renewed_while_the_key_of_the_log_is_replaced`
//! - No secret stands in output, logs, pages, bundles or files:
//!   - `tests/process/autolock.rs no_secret_is_in_anything_that_a_run_prints_logs_serves_or_writes_down`
//!
//! ## Roles
//!
//! - A manager is demoted and promoted again; so is the leader, which hands over first:
//!   - `tests/identity.rs a_follower_and_a_leader_that_were_demoted_are_promoted_again`
//!   - `tests/identity.rs a_leader_that_is_demoted_hands_over_and_goes_on_as_a_worker`
//! - A worker is promoted and demoted again:
//!   - `tests/process/roles.rs a_worker_is_promoted_and_demoted_and_promoted_again_in_place`
//! - Down to one manager the swarm takes writes, and the last one stays:
//!   - `tests/process/roles.rs followers_and_leaders_are_demoted_and_the_last_manager_stays`
//! - A manager that is down is demoted or removed, and finds out when it returns:
//!   - `tests/identity.rs a_manager_that_was_demoted_or_removed_while_it_was_down_finds_out`
//!   - `tests/process/roles.rs a_manager_that_is_down_is_demoted_or_removed_and_what_the_majority_needs_is_not`
//! - A node that is stopped in the middle of its promotion goes on with it:
//!   - `tests/process/roles.rs a_worker_that_is_stopped_at_any_moment_of_its_promotion_goes_on_at_its_next_start`
//!   - `tests/sim/roles.rs whatever_happens_meanwhile_every_node_becomes_what_it_was_asked_to_be`
//! - A leader that starts again makes nobody look down:
//!   - `tests/identity.rs nobody_is_called_down_because_the_leader_starts_again`
//! - The leader follows what is asked for, by events and at the beginning of its term; a demoted manager leaves the
//!   group before its role changes:
//!   - `src/roles/tests.rs a_promoted_worker_is_a_manager_at_once_and_waits_for_its_certificate`
//!   - `src/roles/tests.rs a_demoted_manager_leaves_the_group_before_its_role_changes`
//!   - `src/roles/tests.rs work_that_a_former_leader_left_is_found_at_the_beginning`
//! - A member whose node was deleted is taken out of the group:
//!   - `src/roles/tests.rs a_member_whose_object_is_gone_is_taken_out`
//! - A swarm that holds anything is not given up for another; a start that never became one is:
//!   - `tests/identity.rs a_swarm_that_has_begun_is_not_given_up_for_another_and_one_that_never_did_is`
//!
//! ## Who gets in
//!
//! - No certificate, another swarm's, a removed node's: refused, each call, and said so:
//!   - `src/net/tests/matrix.rs every_call_admits_exactly_its_callers`
//!   - `src/net/tests/matrix.rs a_call_is_passed_on_by_managers_only_and_for_those_who_may_make_it`
//! - What a removed or demoted node has open ends at once:
//!   - `src/net/tests/matrix.rs who_is_removed_or_demoted_loses_what_it_has_open_at_once_in_both_directions`
//! - Nodes that come and go leave nothing behind, and revocations end:
//!   - `src/store/tests/members.rs a_hundred_thousand_workers_that_come_and_go_leave_nothing_behind`
//!   - `src/store/tests/members.rs managers_that_come_and_go_leave_no_more_than_one_certificates_time_behind`
//! - A newcomer needs a token, whose role it gets; a rotated one admits nobody:
//!   - `src/ca/tests.rs only_a_current_token_of_this_swarm_admits`
//!   - `tests/process/tokens.rs a_rotated_token_lets_nobody_in_and_members_need_none`
//! - A token for so many nodes admits so many, however many ask at once:
//!   - `tests/process/tokens.rs as_many_join_at_once_with_a_token_as_it_was_made_for_and_no_more`
//! - A token that leaked fills nothing and keeps nobody out:
//!   - `src/ca/tests/clean_up.rs a_token_that_leaked_does_not_fill_the_store`
//!   - `src/ca/tests/clean_up.rs a_crowd_that_never_came_keeps_nobody_out_for_long_and_a_few_have_their_hour`
//! - A joiner that is shown another root than its token names stops:
//!   - `src/pki/token.rs a_token_recognises_its_root_only`
//!   - `tests/process/input.rs tokens_and_addresses_that_do_not_lead_into_the_swarm`
//! - A node comes back by itself though the token it joined with was rotated:
//!   - `tests/identity.rs members_come_back_though_the_tokens_they_joined_with_are_no_good_any_more`
//! - A node of one swarm does not get into another:
//!   - `tests/process/input.rs a_directory_of_one_swarm_is_not_led_into_another`
//!   - `src/ca/tests.rs a_certificate_of_another_swarm_does_not_renew`
//!
//! ## Certificates
//!
//! - A renewal keeps the node and takes the role that was observed, and needs no token:
//!   - `src/ca/tests.rs a_renewal_keeps_the_node_and_takes_the_role_that_was_observed`
//!   - `tests/authority.rs a_certificate_that_expired_renews_within_the_grace`
//! - A request that cannot be read is refused; what a broken authority left waiting is signed when it works again:
//!   - `src/ca/tests.rs a_bad_request_is_the_callers_fault_and_leaves_nothing`
//!   - `src/ca/tests/clean_up.rs a_stored_request_that_cannot_be_read_fails_for_good`
//!   - `src/ca/tests/clean_up.rs what_waited_for_a_broken_authority_is_signed_when_it_works_again`
//! - Nothing of a request but its key reaches a certificate:
//!   - `src/pki/ca/tests.rs a_certificate_says_what_the_swarm_says_whatever_the_request_asks`
//! - Requests, tokens and PEM that mean harm are refused with a hint; `tests/fuzz` mutates each of them (targets `csr`,
//!   `issue`, `certificate`, `token`, `pem`, `node_files`):
//!   - `tests/authority.rs hostile_requests_are_refused_with_a_hint_and_leave_nothing`
//! - Workers and managers renew in time, over connections that stay, and try again when it fails:
//!   - `tests/identity.rs certificates_are_renewed_while_writes_go_on_over_connections_that_stay`
//!   - `src/agent/machine.rs a_certificate_is_renewed_between_half_and_four_fifths_of_its_life`
//!   - `src/agent/machine.rs a_renewal_that_fails_is_tried_again_ever_less_often_up_to_once_an_hour`
//! - An order to renew is followed at once; a role that is expected is asked for until it comes:
//!   - `src/agent/machine.rs an_order_to_renew_is_followed_at_once_and_once`
//!   - `src/agent/machine.rs a_new_role_is_asked_for_until_it_comes`
//! - A node that is gone does not renew:
//!   - `src/ca/tests.rs a_node_that_is_gone_does_not_renew`
//! - A crash between key and certificate leaves both old or both new:
//!   - `src/agent/files.rs a_crash_anywhere_leaves_a_key_with_its_chain`
//!   - `src/agent/files.rs a_crash_while_recovering_is_recovered_too`
//! - Who was off past the end comes back by itself, or once a person says so:
//!   - `tests/identity.rs nodes_that_were_off_past_the_end_of_their_certificates_come_back_by_themselves`
//!   - `tests/identity.rs managers_that_were_all_off_past_the_end_of_their_certificates_find_each_other_and_renew`
//!   - `tests/authority.rs who_was_off_for_too_long_comes_back_once_a_person_says_so`
//! - Managers that outlived even the grace go on from one of them, and others join it again:
//!   - `tests/identity.rs managers_that_all_outlived_their_certificates_go_on_from_one_of_them`
//!   - `src/node/recover.rs a_manager_whose_certificate_is_over_recovers_and_gives_itself_another`
//! - A board without a clock goes on from the newest time it knows:
//!   - `tests/identity.rs a_board_without_a_clock_goes_on_from_the_newest_time_in_its_log`
//!
//! ## A new root
//!
//! - A rotation waits for who is down, by name, and ends when it is back or removed; tokens are new then:
//!   - `tests/process/rotation.rs a_manager_that_is_down_is_waited_for_by_name_and_moves_when_it_is_back`
//!   - `src/ca/rotation/tests.rs a_node_that_is_removed_or_skipped_holds_nothing_up`
//!   - `src/ca/rotation/tests.rs every_node_moves_while_all_stay_connected_and_the_new_root_takes_over`
//! - Three in a row end at the last root, while programs write:
//!   - `tests/process/rotation.rs three_rotations_in_a_row_end_at_the_last_root_while_programs_write`
//! - Thirty nodes are told at a time; a target that changes midway is not missed; another leader goes on:
//!   - `src/ca/rotation/tests.rs thirty_nodes_are_told_every_three_seconds`
//!   - `src/ca/rotation/tests.rs an_end_that_was_decided_before_the_target_changed_is_refused`
//!   - `src/ca/rotation/tests.rs another_leader_goes_on_where_the_former_one_was`
//! - A node that meets an authority it does not know looks for the roots again, and takes only those that vouch for
//!   it:
//!   - `tests/identity.rs a_worker_that_moved_to_a_new_root_and_missed_the_end_of_the_rotation_learns_it`
//!   - `src/pki/tls/tests.rs only_what_a_trusted_root_signed_is_trusted_from_ones_own_chain`
//!
//! ## Addresses
//!
//! - All managers move at once and find each other; one after the other they need no help; names are looked up each
//!   time:
//!   - `tests/process/moved.rs managers_that_all_moved_at_once_find_each_other_by_one_address`
//!   - `tests/process/moved.rs managers_that_move_one_after_the_other_need_no_help`
//!   - `tests/process/moved.rs managers_are_known_by_names_that_are_looked_up_each_time`

#![allow(clippy::unwrap_used)]
#![cfg(debug_assertions)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use skep::client::Client;
use skep::node::{NodeFile, Phase};
use skep::sys::entropy::OsEntropy;
use skep::sys::time::{unset, wall_ms, wind};
use skep::types::api::{
    Admin, Answer, Autolock, Call, MemberReport, QueryKind, RaftState, RootCaReport, StatusReport, WatchItem,
    WatchRequest, Write,
};
use skep::types::object::{Node as NodeObject, NodeState, Profile, Sensitive};
use skep::types::{Code, Kind, MemberRole, NodeId, Object, Role};
use skep::{Config, Node};

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

static CLOCK: Mutex<()> = Mutex::new(());

fn clock() -> MutexGuard<'static, ()> {
    CLOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[track_caller]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A manager that began a swarm whose certificates are valid for an hour.
fn found(dir: &Path) -> Node {
    let node = Node::start(Config::local(dir.join("m1"))).unwrap();
    let write = Write::UpdateCluster {
        snapshot_bytes: None,
        keep_bytes: None,
        node_certificate_expiry_ms: Some(HOUR.as_millis() as u64),
        approve_joins: None,
        expired_grace_ms: None,
        if_version: None,
        autolock: None,
    };
    node.client().unwrap().write(write, PATIENCE).unwrap();
    // Its first certificate was made before that.
    let first = chain(&node);
    wind(HOUR * 24 * 75);
    renewed(&node, &first);
    node
}

/// A node's certificate as it lies on its disk.
fn chain(node: &Node) -> Vec<u8> {
    std::fs::read(node.data_dir().join("pki/node.crt")).unwrap()
}

/// Waits until a node has another certificate, which is in force.
#[track_caller]
fn renewed(node: &Node, before: &[u8]) {
    eventually("a new certificate", || {
        let certificate = status(node)?.certificate?;
        (chain(node) != before && certificate.expires_at.0 > wall_ms()).then_some(())
    });
}

fn joining(dir: &Path, name: &str, to: &Node, role: Role) -> Config {
    let Answer::Token(token) = to.client().unwrap().query(QueryKind::Token(role), false, PATIENCE).unwrap() else {
        panic!("a token is asked for");
    };
    Config { join: Some(to.listen_addr().to_string()), token: Some(token), ..Config::local(dir.join(name)) }
}

fn join(dir: &Path, name: &str, to: &Node, role: Role) -> Node {
    Node::start(joining(dir, name, to, role)).unwrap()
}

fn status(node: &Node) -> Option<StatusReport> {
    match node.client().ok()?.query(QueryKind::Status, true, Duration::from_secs(5)).ok()? {
        Answer::Status(status) => Some(*status),
        _ => None,
    }
}

fn members(client: &mut Client) -> Vec<MemberReport> {
    match client.query(QueryKind::Members, true, PATIENCE).unwrap() {
        Answer::Members(members) => members,
        other => panic!("{other:?}"),
    }
}

fn voters(client: &mut Client) -> usize {
    members(client).iter().filter(|member| member.role == MemberRole::Voter).count()
}

/// The node's object, as the swarm has it.
fn object(manager: &Node, node: &Node) -> NodeObject {
    let asked = QueryKind::Inspect(Kind::Node, node.node_id().to_string());
    match manager.client().unwrap().query(asked, false, PATIENCE).unwrap() {
        Answer::Object(object) => match *object {
            Object::Node(node) => *node,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn config(name: &str) -> Write {
    Write::CreateConfig { name: name.to_owned(), labels: Default::default(), data: b"hello".to_vec() }
}

/// A worker whose manager answers.
#[track_caller]
fn in_touch(worker: &Node) -> StatusReport {
    eventually("the worker is in touch with a manager", || {
        let status = status(worker)?;
        (status.role == RaftState::Worker && status.state == "ready" && status.manager.is_some()).then_some(status)
    })
}

#[test]
fn certificates_are_renewed_while_writes_go_on_over_connections_that_stay() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    in_touch(&worker);
    let nodes = [&first, &second, &third, &worker];
    let dials = |node: &Node| {
        let metrics = node.metrics().render();
        metrics.lines().filter(|line| line.starts_with("skep_net_dials")).map(str::to_owned).collect::<Vec<_>>()
    };

    let (ended, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (ended, written, mut client) = (ended.clone(), written.clone(), second.client().unwrap());
        std::thread::spawn(move || {
            let mut number = 0;
            while !ended.load(Ordering::SeqCst) {
                client.write(config(&format!("c{number}")), PATIENCE).unwrap();
                number += 1;
                written.store(number, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    };
    eventually("writes", || (written.load(Ordering::SeqCst) > 20).then_some(()));
    let links = nodes.map(dials);
    for _ in 0..2 {
        let before = nodes.map(chain);
        wind(HOUR * 5 / 6);
        for (node, before) in nodes.iter().zip(before) {
            renewed(node, &before);
        }
        let so_far = written.load(Ordering::SeqCst);
        eventually("writes go on", || (written.load(Ordering::SeqCst) > so_far + 20).then_some(()));
    }
    // No manager had to dial another anew, and the leader is who it was.
    assert_eq!(nodes.map(dials), links);
    assert_eq!(status(&third).unwrap().leader, Some(first.node_id()));
    ended.store(true, Ordering::SeqCst);
    writer.join().unwrap();

    // What is on disk is what is used: everybody comes back, and new handshakes are made with the new certificates.
    let peers = vec![second.listen_addr().to_string()];
    third.stop(Duration::from_secs(5));
    drop(third);
    let third = Node::start(Config { peers, ..Config::local(dir.path().join("m3")) }).unwrap();
    eventually("it is back", || (status(&third)?.state == "ready").then_some(()));
    in_touch(&worker);
    let issuer = object(&first, &worker).certificate;
    assert!(!issuer.issuer.is_empty() && issuer.reported_issuer == issuer.issuer);
}

/// Ids of the data keys that a manager's log and snapshots name.
fn data_keys(node: &Node) -> std::collections::BTreeSet<u64> {
    skep::wal::named_keys(&skep::sys::files::RealDisk, &node.data_dir().join("raft")).unwrap().ids
}

#[test]
fn a_certificate_is_renewed_while_the_key_of_the_log_is_replaced() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let mut node = found(dir.path());
    let unlock = [7; 32];
    let rotate = |client: &mut Client| client.call(Call::Admin, &Admin::RotateDataKey, PATIENCE).unwrap();
    let mut written = 0;
    // Both replace the one file that holds all keys of the node: in the clear, while it is locked, and under the lock.
    for round in 0..3 {
        let (chain_before, keys_before) = (chain(&node), data_keys(&node));
        let mut client = node.client().unwrap();
        if round == 1 {
            let key = Sensitive(unlock.to_vec());
            client.write(autolock(Autolock::On { key }), PATIENCE).unwrap();
        }
        rotate(&mut client);
        wind(HOUR * 5 / 6);
        rotate(&mut client);
        eventually("another certificate, and no file that names the key before", || {
            client.write(config(&format!("c{written}")), PATIENCE).unwrap();
            written += 1;
            let certificate = status(&node)?.certificate?;
            let renewed = chain(&node) != chain_before && certificate.expires_at.0 > wall_ms();
            let keys = data_keys(&node);
            let sealed = skep::node::is_locked(node.data_dir()) == (round > 0);
            (renewed && sealed && keys.len() == 1 && keys.is_disjoint(&keys_before)).then_some(())
        });
        // Nothing of either is lost: the key on the disk belongs to the chain, and the log opens.
        let directory = node.data_dir().to_owned();
        node.stop(Duration::from_secs(5));
        drop((client, node));
        let unlock_key = skep::pki::UnlockKey::from_bytes(&unlock).filter(|_| round > 0);
        node = Node::start(Config { unlock_key, ..Config::local(&directory) }).unwrap();
        manages(&node, 1);
        let held = node.client().unwrap().list(Kind::Config, &Default::default(), false, PATIENCE).unwrap();
        assert_eq!(held.len(), written);
    }
}

/// Turns the lock on or off.
fn autolock(autolock: Autolock) -> Write {
    Write::UpdateCluster {
        snapshot_bytes: None,
        keep_bytes: None,
        node_certificate_expiry_ms: None,
        approve_joins: None,
        expired_grace_ms: None,
        if_version: None,
        autolock: Some(autolock),
    }
}

#[test]
fn a_worker_listens_nowhere_survives_restarts_and_takes_another_manager() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    assert!(worker.is_worker() && worker.listen_addr().port() == 0);
    let told = in_touch(&worker);
    assert_eq!((told.node_id, told.voters), (worker.node_id(), 0));
    let certificate = told.certificate.unwrap();
    assert_eq!(certificate.role, Role::Worker);
    assert!(certificate.expires_at.0 > wall_ms() && certificate.renews_at < certificate.expires_at);
    for nothing in ["raft", "peers.json"] {
        assert!(!worker.data_dir().join(nothing).exists(), "{nothing}");
    }
    // It takes no orders, and says where to go.
    let refused = worker.client().unwrap().write(config("x"), PATIENCE).unwrap_err().into_status();
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert!(refused.message.contains("this node is a worker") && refused.hint.contains("on a manager"), "{refused}");
    eventually("the swarm knows it is there", || {
        let node = object(&first, &worker);
        (node.role == Role::Worker && !node.certificate.reported_issuer.is_empty()).then_some(())
    });

    // Its manager goes, and the one after that.
    let managers = [first, second, third];
    let mut alive: Vec<&Node> = managers.iter().collect();
    let manager = in_touch(&worker).manager.unwrap().0;
    alive.retain(|node| node.node_id() != manager);
    managers.iter().find(|node| node.node_id() == manager).unwrap().stop(Duration::from_secs(5));
    eventually("it takes another manager", || {
        let (now, _) = in_touch(&worker).manager?;
        alive.iter().any(|node| node.node_id() == now).then_some(())
    });

    // It comes back to a manager that it was only told of: the one it joined at may be gone.
    let (id, directory) = (worker.node_id(), worker.data_dir().to_owned());
    worker.stop(Duration::from_secs(5));
    drop(worker);
    let remembered = std::fs::read_to_string(directory.join("managers.json")).unwrap();
    assert!(alive.iter().all(|node| remembered.contains(&node.listen_addr().to_string())), "{remembered}");
    let worker = Node::start(Config { existing: true, ..Config::local(&directory) }).unwrap();
    assert_eq!((worker.node_id(), worker.is_worker()), (id, true));
    let now = in_touch(&worker).manager.unwrap().0;
    assert!(alive.iter().any(|node| node.node_id() == now));
}

#[test]
fn nodes_that_were_off_past_the_end_of_their_certificates_come_back_by_themselves() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    in_touch(&worker);
    let (addr, ids) = (third.listen_addr().to_string(), (third.node_id(), worker.node_id()));
    third.stop(Duration::from_secs(5));
    worker.stop(Duration::from_secs(5));
    drop((third, worker));
    // In steps, so that those who run renew in time.
    for _ in 0..4 {
        let before = [&first, &second].map(chain);
        wind(HOUR * 5 / 6);
        for (node, before) in [&first, &second].into_iter().zip(before) {
            renewed(node, &before);
        }
    }
    let before = [std::fs::read(dir.path().join("m3/pki/node.crt")), std::fs::read(dir.path().join("w1/pki/node.crt"))];
    let third = Node::start(Config { listen: addr, ..Config::local(dir.path().join("m3")) }).unwrap();
    let worker = Node::start(Config::local(dir.path().join("w1"))).unwrap();
    assert_eq!((third.node_id(), worker.node_id()), ids);
    let [of_third, of_worker] = before.map(Result::unwrap);
    renewed(&third, &of_third);
    renewed(&worker, &of_worker);
    in_touch(&worker);
    eventually("the manager takes part", || (status(&third)?.state == "ready").then_some(()));
    first.client().unwrap().write(config("after"), PATIENCE).unwrap();
}

#[test]
fn managers_that_were_all_off_past_the_end_of_their_certificates_find_each_other_and_renew() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    in_touch(&worker);
    let nodes = [first, second, third, worker];
    let before: Vec<Vec<u8>> = nodes.iter().map(chain).collect();
    let places: Vec<_> =
        nodes.iter().map(|node| (node.data_dir().to_owned(), node.listen_addr().to_string())).collect();
    for node in &nodes {
        node.stop(Duration::from_secs(5));
    }
    drop(nodes);
    // None of them has a certificate in force, and a leader alone gives new ones.
    wind(HOUR * 24 * 30);
    let start = |(directory, addr): &(std::path::PathBuf, String)| {
        Node::start(Config { listen: addr.clone(), ..Config::local(directory) }).unwrap()
    };
    let nodes: Vec<Node> = places[..3].iter().map(start).collect();
    for (node, before) in nodes.iter().zip(&before) {
        renewed(node, before);
    }
    // Who asks a follower is heard by the leader: nobody is left with a link that is only lent.
    for (number, node) in nodes.iter().enumerate() {
        node.client().unwrap().write(config(&format!("after-{number}")), PATIENCE).unwrap();
    }
    let worker = Node::start(Config::local(&places[3].0)).unwrap();
    renewed(&worker, &before[3]);
    in_touch(&worker);
}

#[test]
fn a_manager_alone_renews_the_certificate_it_outlived() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let (id, directory) = (first.node_id(), first.data_dir().to_owned());
    first.stop(Duration::from_secs(5));
    let before = chain(&first);
    drop(first);
    wind(HOUR * 24 * 100);
    let first = Node::start(Config::local(&directory)).unwrap();
    assert_eq!(first.node_id(), id);
    renewed(&first, &before);
    first.client().unwrap().write(config("after"), PATIENCE).unwrap();
    // And lets others in with it.
    let second = join(dir.path(), "m2", &first, Role::Manager);
    eventually("two voters", || (voters(&mut second.client().unwrap()) == 2).then_some(()));
}

/// Asks for a role.
fn ask_for(role: Role, of: &Node, by: &Node) {
    let write = Write::UpdateNode {
        node: of.node_id().to_string(),
        role: Some(role),
        availability: None,
        set: Default::default(),
        remove: Vec::new(),
        if_version: None,
    };
    by.client().unwrap().write(write, PATIENCE).unwrap();
}

/// Waits until a node is a manager that votes, and one of so many.
#[track_caller]
fn manages(node: &Node, of: usize) {
    eventually("it is a manager", || {
        let status = status(node)?;
        let votes = matches!(status.role, RaftState::Leader | RaftState::Follower) && status.state == "ready";
        (votes && status.voters as usize == of && status.certificate?.role == Role::Manager).then_some(())
    });
    assert!(!node.is_worker() && node.listen_addr().port() != 0);
}

/// Waits until a node is a worker in every respect.
#[track_caller]
fn works(node: &Node) {
    eventually("it is a worker", || {
        let status = status(node)?;
        let certificate = status.certificate?;
        (status.role == RaftState::Worker && status.state == "ready" && certificate.role == Role::Worker).then_some(())
    });
    assert!(node.is_worker() && !node.data_dir().join("raft").exists());
}

#[test]
fn a_node_is_promoted_and_demoted_in_the_process_that_it_is() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    eventually("two voters", || (voters(&mut first.client().unwrap()) == 2).then_some(()));
    let node = join(dir.path(), "n", &first, Role::Worker);
    in_touch(&node);
    for round in 0..2 {
        ask_for(Role::Manager, &node, &first);
        manages(&node, 3);
        // It takes writes, and the others keep its log.
        node.client().unwrap().write(config(&format!("by-it-{round}")), PATIENCE).unwrap();
        assert_eq!(object(&second, &node).role, Role::Manager);
        ask_for(Role::Worker, &node, &second);
        works(&node);
        eventually("two voters are left", || (voters(&mut first.client().unwrap()) == 2).then_some(()));
        eventually("the swarm knows", || (object(&first, &node).role == Role::Worker).then_some(()));
    }
    // What it is it still is after a restart.
    let directory = node.data_dir().to_owned();
    node.stop(Duration::from_secs(5));
    drop(node);
    let node = Node::start(Config::local(&directory)).unwrap();
    works(&node);
    ask_for(Role::Manager, &node, &first);
    manages(&node, 3);
    let listen = node.listen_addr().to_string();
    node.stop(Duration::from_secs(5));
    drop(node);
    let node = Node::start(Config { listen, ..Config::local(&directory) }).unwrap();
    manages(&node, 3);
}

#[test]
fn a_leader_that_is_demoted_hands_over_and_goes_on_as_a_worker() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    ask_for(Role::Worker, &first, &second);
    works(&first);
    manages(&second, 2);
    manages(&third, 2);
    second.client().unwrap().write(config("after"), PATIENCE).unwrap();
}

#[test]
fn a_manager_that_was_demoted_or_removed_while_it_was_down_finds_out() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let nodes = ["m2", "m3", "m4", "m5"].map(|name| join(dir.path(), name, &first, Role::Manager));
    eventually("five voters", || (voters(&mut first.client().unwrap()) == 5).then_some(()));
    let [_second, _third, demoted, removed] = nodes;
    for node in [&demoted, &removed] {
        node.stop(Duration::from_secs(5));
    }
    ask_for(Role::Worker, &demoted, &first);
    let write = Write::RemoveNode { node: removed.node_id().to_string(), force: true };
    first.client().unwrap().write(write, PATIENCE).unwrap();
    drop((demoted, removed));
    eventually("three voters are left", || (voters(&mut first.client().unwrap()) == 3).then_some(()));

    let demoted = Node::start(Config::local(dir.path().join("m4"))).unwrap();
    works(&demoted);
    let removed = Node::start(Config::local(dir.path().join("m5"))).unwrap();
    assert_eq!(removed.wait(), skep::node::Stopped::Removed);
    drop(removed);
    // It stays so: nothing is left with which it could take part.
    let error = Node::start(Config::local(dir.path().join("m5"))).map(|node| node.wait());
    assert_eq!(error.unwrap(), skep::node::Stopped::Removed);
}

#[test]
fn a_follower_and_a_leader_that_were_demoted_are_promoted_again() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    // The first began the swarm and leads it; the second follows.
    for (node, by) in [(&second, &third), (&first, &third)] {
        let before = (node.node_id(), node.raft_id());
        ask_for(Role::Worker, node, by);
        works(node);
        manages(by, 2);
        by.client().unwrap().write(config(&format!("without-{}", before.0)), PATIENCE).unwrap();
        ask_for(Role::Manager, node, by);
        manages(node, 3);
        // The same node, in a place of its own: what it held as a manager it does not hold any more.
        let members = members(&mut by.client().unwrap());
        let place = members.iter().find(|member| member.node_id == before.0).unwrap();
        assert!(place.raft_id > before.1, "{place:?} after {before:?}");
        node.client().unwrap().write(config(&format!("with-{}", before.0)), PATIENCE).unwrap();
    }
    // Whoever came back counts: two of the three carry the swarm without the one that never left.
    third.stop(Duration::from_secs(5));
    second.client().unwrap().write(config("after"), PATIENCE).unwrap();
}

/// What the swarm was told of nodes since a watch began.
fn states(watch: &mut skep::client::Watch) -> Vec<(NodeId, NodeState)> {
    let mut states = Vec::new();
    let soon = skep::sys::time::monotonic() + Duration::from_secs(2);
    while let Some(item) = watch.next_until(Some(soon)).unwrap() {
        let objects: Vec<Object> = match item {
            WatchItem::Snapshot { objects } => objects,
            WatchItem::Change { events, .. } => events.into_iter().map(|event| event.object).collect(),
            WatchItem::Begin { .. } | WatchItem::Mark { .. } => continue,
        };
        states.extend(objects.into_iter().filter_map(|object| match object {
            Object::Node(node) => Some((node.id, node.status.state)),
            _ => None,
        }));
    }
    states
}

#[test]
fn nobody_is_called_down_because_the_leader_starts_again() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    let third = join(dir.path(), "m3", &first, Role::Manager);
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    eventually("three voters", || (voters(&mut first.client().unwrap()) == 3).then_some(()));
    in_touch(&worker);
    for node in [&first, &second, &third, &worker] {
        eventually("it has reported", || (!object(&second, node).certificate.reported_issuer.is_empty()).then_some(()));
    }
    let request = WatchRequest {
        from: None,
        skip_snapshot: false,
        kinds: vec![Kind::Node],
        filter: Default::default(),
        include_old: false,
    };
    let mut watch = second.client().unwrap().watch(request, PATIENCE).unwrap();
    let leads = |node: &Node| status(node).is_some_and(|status| status.role == RaftState::Leader);
    assert!(leads(&first));
    let (listen, directory) = (first.listen_addr().to_string(), first.data_dir().to_owned());
    first.stop(Duration::from_secs(5));
    drop(first);
    eventually("another leads", || (leads(&second) || leads(&third)).then_some(()));
    in_touch(&worker);
    let first = Node::start(Config { listen, ..Config::local(&directory) }).unwrap();
    manages(&first, 3);
    in_touch(&worker);
    // A change behind all that the restart brought about, so that the watch has seen it.
    ask_for(Role::Worker, &worker, &first);
    let states = states(&mut watch);
    assert!(states.len() >= 4 && states.iter().all(|(_, state)| *state == NodeState::Ready), "{states:?}");
}

#[test]
fn managers_that_all_outlived_their_certificates_go_on_from_one_of_them() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let second = join(dir.path(), "m2", &first, Role::Manager);
    eventually("two voters", || (voters(&mut first.client().unwrap()) == 2).then_some(()));
    first.client().unwrap().write(config("kept"), PATIENCE).unwrap();
    let (id, listen) = (first.node_id(), first.listen_addr().to_string());
    let directory = first.data_dir().to_owned();
    for node in [&first, &second] {
        node.stop(Duration::from_secs(5));
    }
    drop((first, second));
    wind(HOUR * 24 * 100);
    // Neither takes the other's word any more, so none of them leads, and none can renew.
    let first = Node::start(Config { listen: listen.clone(), ..Config::local(&directory) }).unwrap();
    let second = Node::start(Config::local(dir.path().join("m2"))).unwrap();
    eventually("they say what is wrong", || {
        let told = [&first, &second].map(|node| status(node).map(|status| status.warnings.concat()));
        let says = |told: String| told.contains("certificate expired at") && told.contains("`skep recover`");
        told.into_iter().all(|told| told.is_some_and(says)).then_some(())
    });
    for node in [&first, &second] {
        let status = status(node).unwrap();
        assert!(status.leader.is_none() && status.certificate.unwrap().expires_at.0 < wall_ms());
        node.stop(Duration::from_secs(5));
    }
    drop((first, second));

    let recovery = skep::node::recover::Recovery::open(&directory, skep::node::recover::Basis::Log, None).unwrap();
    recovery.carry_out(None).unwrap();
    let first = Node::start(Config { listen, ..Config::local(&directory) }).unwrap();
    assert_eq!(first.node_id(), id);
    manages(&first, 1);
    assert!(status(&first).unwrap().certificate.unwrap().expires_at.0 > wall_ms());
    // It renews like any other, and the other manager takes its place in the swarm that goes on.
    let before = chain(&first);
    wind(HOUR * 5 / 6);
    renewed(&first, &before);
    std::fs::rename(dir.path().join("m2"), dir.path().join("aside")).unwrap();
    let second = join(dir.path(), "m2", &first, Role::Manager);
    manages(&second, 2);
    let asked = QueryKind::Inspect(Kind::Config, "kept".to_owned());
    second.client().unwrap().query(asked, false, PATIENCE).unwrap();
}

#[test]
fn members_come_back_though_the_tokens_they_joined_with_are_no_good_any_more() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let roles = [("m2", Role::Manager), ("w1", Role::Worker)];
    let settings = roles.map(|(name, role)| joining(dir.path(), name, &first, role));
    let [second, worker] = settings.each_ref().map(|settings| Node::start(settings.clone()).unwrap());
    eventually("two voters", || (voters(&mut first.client().unwrap()) == 2).then_some(()));
    in_touch(&worker);
    let (ids, listen) = ([second.node_id(), worker.node_id()], second.listen_addr().to_string());
    let mut rotated = first.client().unwrap();
    for role in [Role::Manager, Role::Worker] {
        let token = skep::pki::JoinToken::generate(&root(&first).roots[0].certificate, &mut OsEntropy);
        let token = Sensitive(token.to_string().into_bytes());
        rotated.write(Write::RotateToken { role, token }, PATIENCE).unwrap();
    }
    worker.stop(Duration::from_secs(5));
    second.stop(Duration::from_secs(5));
    drop((second, worker));
    let strange = Config { data_dir: dir.path().join("strange"), ..settings[1].clone() };
    let [of_second, of_worker] = settings;
    let second = Node::start(Config { listen, ..of_second }).unwrap();
    let worker = Node::start(of_worker).unwrap();
    manages(&second, 2);
    in_touch(&worker);
    assert_eq!([second.node_id(), worker.node_id()], ids);
    // A stranger with the same command line is turned away.
    let refused = Node::start(strange).unwrap_err().to_string();
    assert!(refused.contains("A valid join token is necessary"), "{refused}");
}

/// The swarm's roots, and how far a rotation is.
fn root(manager: &Node) -> RootCaReport {
    match manager.client().unwrap().query(QueryKind::RootCa, false, PATIENCE).unwrap() {
        Answer::RootCa(report) => *report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_swarm_that_has_begun_is_not_given_up_for_another_and_one_that_never_did_is() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let own = Node::start(Config::local(dir.path().join("m2"))).unwrap();
    own.client().unwrap().write(config("mine"), PATIENCE).unwrap();
    let before = status(&own).unwrap().cluster_id;
    assert_ne!(before, status(&first).unwrap().cluster_id);
    own.stop(Duration::from_secs(5));
    drop(own);
    let own = Node::start(joining(dir.path(), "m2", &first, Role::Manager)).unwrap();
    manages(&own, 1);
    assert_eq!(status(&own).unwrap().cluster_id, before);
    let asked = QueryKind::Inspect(Kind::Config, "mine".to_owned());
    own.client().unwrap().query(asked, false, PATIENCE).unwrap();

    // What a first start leaves that was cut off before there was a swarm.
    let directory = dir.path().join("m3");
    std::fs::create_dir(&directory).unwrap();
    let file = NodeFile::new(Phase::Founding, Profile::Lan);
    std::fs::write(directory.join("node.json"), serde_json::to_vec(&file).unwrap()).unwrap();
    let node = join(dir.path(), "m3", &first, Role::Manager);
    manages(&node, 2);
    assert_eq!(voters(&mut first.client().unwrap()), 2);
}

#[test]
fn a_worker_that_moved_to_a_new_root_and_missed_the_end_of_the_rotation_learns_it() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    let away = join(dir.path(), "w1", &first, Role::Worker);
    let late = join(dir.path(), "w2", &first, Role::Worker);
    in_touch(&away);
    in_touch(&late);
    let trusted = |name: &str| std::fs::read_to_string(dir.path().join(name).join("pki/root.crt")).unwrap();
    let before = trusted("w1");
    late.stop(Duration::from_secs(5));
    drop(late);
    let new = skep::client::own_root(wall_ms(), &mut OsEntropy).unwrap();
    let write = Write::RotateRoot { root: new.clone(), skip: Vec::new(), resume: false };
    first.client().unwrap().write(write, PATIENCE).unwrap();
    eventually("all have moved but one", || (root(&first).rotation?.converged == 2).then_some(()));
    away.stop(Duration::from_secs(5));
    drop(away);
    assert_eq!(trusted("w1"), before, "the new root is nobody's to trust before the end");
    let late = Node::start(Config::local(dir.path().join("w2"))).unwrap();
    eventually("the rotation is over", || root(&first).rotation.is_none().then_some(()));
    // Managers' next certificates do not lead to the root that the worker trusts. Two ways are left to it, each good enough:
    // its own chain, in which the old root vouches for the new one, and asking a manager for the roots.
    let former = [chain(&first), chain(&late)];
    wind(HOUR * 5 / 6);
    renewed(&first, &former[0]);
    renewed(&late, &former[1]);
    let away = Node::start(Config::local(dir.path().join("w1"))).unwrap();
    in_touch(&away);
    eventually("it trusts the new root", || (trusted("w1") == new.certificate).then_some(()));
}

/// Sets the clock again, to what the process has gone on with.
struct SetAgain;

impl Drop for SetAgain {
    fn drop(&mut self) {
        wind(Duration::from_millis(wall_ms()));
    }
}

#[test]
fn a_board_without_a_clock_goes_on_from_the_newest_time_in_its_log() {
    let _clock = clock();
    let dir = tempfile::tempdir().unwrap();
    let first = found(dir.path());
    wind(HOUR / 4);
    first.client().unwrap().write(config("newest"), PATIENCE).unwrap();
    let newest = wall_ms();
    let directory = first.data_dir().to_owned();
    first.stop(Duration::from_secs(5));
    drop(first);
    unset();
    let _set = SetAgain;
    assert!(wall_ms() < newest, "the clock was not unset");
    let first = Node::start(Config::local(&directory)).unwrap();
    // The write was made a moment before its time was looked at here; the log's last entries count once they are known to
    // be committed.
    eventually("the clock goes on from the newest time", || (wall_ms() + 10_000 > newest).then_some(()));
    first.client().unwrap().write(config("after"), PATIENCE).unwrap();
    let worker = join(dir.path(), "w1", &first, Role::Worker);
    in_touch(&worker);
}

/// The tests that the essay above names, as file and function.
fn named(essay: &str) -> Vec<(&str, &str)> {
    let lines = essay.lines().take_while(|line| line.starts_with("//!"));
    lines.filter_map(|line| line.strip_prefix("//!   - `")?.strip_suffix('`')?.split_once(' ')).collect()
}

#[test]
fn every_test_that_shows_what_must_hold_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let essay = std::fs::read_to_string(root.join("tests/identity.rs")).unwrap();
    let named = named(&essay);
    assert!(named.len() > 60, "{named:?}");
    for (file, name) in named {
        let source = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let is_test = source
            .lines()
            .zip(source.lines().skip(1))
            .any(|(above, line)| above.trim() == "#[test]" && line.trim().starts_with(&format!("fn {name}(")));
        assert!(is_test, "{file} has no test {name}");
    }
}
