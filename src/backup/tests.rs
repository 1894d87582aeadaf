use super::*;
use crate::store::{SnapshotEncoder, State};
use crate::sys::entropy::SeededEntropy;
use crate::types::api::BackupInfo;
use crate::types::object::{
    Annotations, CaSettings, Cluster, ClusterSpec, Config, Meta, Profile, RaftSettings, RootCa, Sensitive,
};
use crate::types::{
    Change, ChangeId, ClusterId, Lineage, NodeId, Object, ObjectId, Operation, Outcome, Revision, Term, Timestamp,
};

const PASSPHRASE: &[u8] = b"correct horse";
/// Enough for a test, which asks for the derived key some hundred times.
const FEW_ROUNDS: u32 = 2;

fn cluster() -> Cluster {
    Cluster {
        id: ClusterId(9),
        meta: Meta::default(),
        spec: ClusterSpec {
            annotations: Annotations { name: "default".to_owned(), ..Annotations::default() },
            task_history_retention_limit: 5,
            raft: RaftSettings::for_profile(Profile::Lan),
            heartbeat_period_ms: 5000,
            ca: CaSettings {
                node_certificate_expiry_ms: 7_200_000,
                external_cas: Vec::new(),
                signing_ca_certificate: String::new(),
                signing_ca_key: Sensitive::default(),
                force_rotate: 0,
                expired_grace_ms: 31_536_000_000,
            },
            default_log_driver: None,
            auto_lock_managers: false,
            acceptance_policies: Vec::new(),
        },
        root_ca: RootCa::default(),
        network_bootstrap_keys: Vec::new(),
        encryption_key_lamport_clock: 0,
        unlock_keys: Vec::new(),
        fips: false,
        default_address_pool: Vec::new(),
        subnet_size: 24,
        vxlan_udp_port: 0,
        feature_level: 1,
    }
}

fn state(bytes: usize) -> State {
    let mut state = State::bootstrap(Lineage(7), NodeId(11), "a:1");
    let mut config = Config { id: ObjectId(5), ..Config::default() };
    config.spec.annotations.name = "motd".to_owned();
    config.spec.data = vec![0x5a; bytes];
    let change = Change {
        id: ChangeId(1),
        after: Revision(0),
        time: Timestamp(1),
        term: None,
        operations: vec![Operation::Create(Object::Cluster(Box::new(cluster()))), Operation::Create(config.into())],
    };
    assert!(matches!(state.apply_change(change, Term(1)).0, Outcome::Committed(_)));
    state
}

fn info(state: &State) -> BackupInfo {
    BackupInfo {
        created_at: Timestamp(1_700_000_000_000),
        version: "0.1.0".to_owned(),
        node_id: NodeId(11),
        cluster_id: ClusterId(9),
        lineage: state.lineage(),
        position: state.applied(),
        revision: state.revision(),
        members: state.members().values().cloned().collect(),
        feature_level: 1,
        hash: state.hash(),
    }
}

fn save_as(state: &State, info: &BackupInfo, passphrase: Option<&[u8]>) -> Vec<u8> {
    let mut entropy = SeededEntropy::new(3);
    let mut writer = Writer::begin_with(Vec::new(), info, passphrase, FEW_ROUNDS, &mut entropy).unwrap();
    for chunk in SnapshotEncoder::new(state.clone()) {
        // Where one piece ends and the next begins means nothing.
        for piece in chunk.unwrap().chunks(70_001) {
            writer.write(piece).unwrap();
        }
    }
    let (bytes, summary) = writer.finish().unwrap();
    assert_eq!(summary.bytes, bytes.len() as u64);
    bytes
}

fn save(state: &State, passphrase: Option<&[u8]>) -> Vec<u8> {
    save_as(state, &info(state), passphrase)
}

fn check(bytes: &[u8], passphrase: Option<&[u8]>) -> Result<State, BackupError> {
    load(&mut Reader::open(bytes, passphrase)?)
}

#[test]
fn what_was_saved_is_read_again_sealed_or_not() {
    for size in [0, 10, 300 << 10, 900_000] {
        let state = state(size);
        for passphrase in [None, Some(PASSPHRASE)] {
            let bytes = save(&state, passphrase);
            let read = check(&bytes, passphrase).unwrap();
            assert_eq!((read.hash(), read.recompute_hash()), (state.hash(), state.hash()));
            let reader = Reader::open(bytes.as_slice(), passphrase).unwrap();
            assert_eq!((reader.info(), reader.is_sealed()), (&info(&state), passphrase.is_some()));
        }
    }
}

#[test]
fn every_flipped_byte_is_noticed_and_none_is_taken_for_a_wrong_passphrase() {
    let state = state(100);
    for passphrase in [None, Some(PASSPHRASE)] {
        let bytes = save(&state, passphrase);
        for at in 0..bytes.len() {
            for bit in [1, 0x80] {
                let mut flipped = bytes.clone();
                flipped[at] ^= bit;
                let error = check(&flipped, passphrase).map(|_| ()).unwrap_err();
                let expected = if at < 8 { error.is_refusal() } else { error.is_damage() };
                assert!(expected && !matches!(error, BackupError::WrongPassphrase), "byte {at}: {error}");
            }
        }
    }
}

#[test]
fn every_truncation_is_noticed_and_so_are_bytes_behind_the_end() {
    for passphrase in [None, Some(PASSPHRASE)] {
        let bytes = save(&state(100), passphrase);
        for len in 0..bytes.len() {
            let error = check(&bytes[..len], passphrase).map(|_| ()).unwrap_err();
            let expected = if len < 8 { error.is_refusal() } else { error.is_damage() };
            assert!(expected, "{len} bytes: {error}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(matches!(check(&longer, passphrase), Err(BackupError::Damaged { .. })));
    }
}

#[test]
fn a_passphrase_that_is_wrong_missing_or_too_many_is_told_from_damage() {
    let (sealed, plain) = (save(&state(10), Some(PASSPHRASE)), save(&state(10), None));
    assert!(matches!(check(&sealed, Some(b"wrong horse")), Err(BackupError::WrongPassphrase)));
    assert!(matches!(check(&sealed, None), Err(BackupError::Sealed)));
    assert!(matches!(check(&plain, Some(PASSPHRASE)), Err(BackupError::NotSealed)));
    assert!(matches!(
        check(b"#!/bin/sh\n# a script and nothing else, long enough to hold the first bytes of a backup", None),
        Err(BackupError::NotABackup)
    ));
}

#[test]
fn a_sealed_backup_shows_nothing_of_its_contents() {
    let shows = |bytes: &[u8]| bytes.windows(16).any(|window| window == [0x5a; 16]);
    assert!(shows(&save(&state(100), None)));
    assert!(!shows(&save(&state(100), Some(PASSPHRASE))));
}

#[test]
fn records_that_change_places_are_noticed_even_with_their_sums() {
    // Two chunks of the same length, exchanged.
    let bytes = save(&state(900_000), Some(PASSPHRASE));
    let record = format::HEAD + format::CHUNK_BYTES + crate::pki::seal::TAG_BYTES;
    let first = format::PREAMBLE + format::HEAD + head_len(&bytes[format::PREAMBLE..]);
    let mut swapped = bytes.clone();
    swapped[first..first + record].copy_from_slice(&bytes[first + record..first + 2 * record]);
    swapped[first + record..first + 2 * record].copy_from_slice(&bytes[first..first + record]);
    assert!(matches!(check(&swapped, Some(PASSPHRASE)), Err(BackupError::Damaged { .. })));
}

fn head_len(bytes: &[u8]) -> usize {
    format::Head::decode(bytes.first_chunk().unwrap()).unwrap().len as usize
}

#[test]
fn a_header_that_says_something_else_than_the_content_is_refused() {
    let state = state(10);
    let told = info(&state);
    for (lie, what) in [
        (BackupInfo { hash: 1, ..told.clone() }, "the state's hash"),
        (BackupInfo { lineage: Lineage(1), ..told.clone() }, "the lineage"),
        (BackupInfo { revision: Revision(99), ..told.clone() }, "the revision"),
        (BackupInfo { members: Vec::new(), ..told.clone() }, "the list of members"),
        (BackupInfo { cluster_id: ClusterId(1), ..told.clone() }, "the swarm's id"),
    ] {
        match check(&save_as(&state, &lie, None), None) {
            Err(BackupError::Mismatch(found)) => assert_eq!(found, what),
            result => panic!("{what}: {result:?}"),
        }
    }
}

#[test]
fn a_backup_from_the_future_is_refused_by_its_number() {
    let mut bytes = save(&state(10), None);
    bytes[10..12].copy_from_slice(&9_u16.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..format::PREAMBLE - 4]);
    bytes[format::PREAMBLE - 4..format::PREAMBLE].copy_from_slice(&crc.to_le_bytes());
    let error = check(&bytes, None).map(|_| ()).unwrap_err();
    assert!(matches!(error, BackupError::Newer { min_reader: 9, .. }), "{error}");
}

#[test]
fn a_backup_keeps_its_golden_bytes() {
    // `SKEP_GOLDEN=write cargo test golden` writes them anew; old backups could not be read any more.
    for (name, passphrase) in [("backup-plain", None), ("backup-sealed", Some(PASSPHRASE))] {
        let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let bytes = save(&state(10), passphrase);
        if std::env::var("SKEP_GOLDEN").as_deref() == Ok("write") {
            std::fs::write(&path, &bytes).unwrap();
        }
        let golden = std::fs::read(&path).unwrap();
        assert!(golden == bytes, "the bytes of {name} changed");
        assert_eq!(check(&golden, passphrase).unwrap().hash(), state(10).hash());
    }
}
