//! The bytes that the product writes today. A change of them is a change of format: old logs and snapshots could not be
//! read any more. `SKEP_GOLDEN=write cargo test golden` writes them anew.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::samples;
use super::*;
use crate::codec::envelope;
use crate::store::{EventBatch, SnapshotDecoder, SnapshotEncoder, Stored};

fn check(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
    let mut hex = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            let _ = write!(hex, "{byte:02x}");
        }
        hex.push('\n');
    }
    if std::env::var("SKEP_GOLDEN").as_deref() == Ok("write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &hex).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(golden, hex, "the bytes of {name} changed; {} should hold:\n{hex}", path.display());
}

#[test]
fn objects_keep_their_golden_bytes() {
    for (name, object) in [
        ("cluster", samples::cluster()),
        ("node", samples::node()),
        ("secret", samples::secret()),
        ("config", samples::config()),
        ("extension", samples::extension()),
        ("resource", samples::resource()),
        ("token", samples::token()),
    ] {
        let bytes = envelope::encode(&object);
        check(&format!("objects-{name}"), &bytes);
        assert_eq!(envelope::decode::<Object>(&bytes, bytes.len()), Ok(object));
    }
}

#[test]
fn every_kind_survives_its_encoding_and_has_a_json_form() {
    for object in samples::all() {
        let bytes = envelope::encode(&object);
        assert_eq!(envelope::decode::<Object>(&bytes, bytes.len()).as_ref(), Ok(&object));
        let json = serde_json::to_value(&object).unwrap();
        let inner = &json[object.kind().name()];
        assert_eq!(inner["id"], object.id().to_string(), "{json}");
        assert_eq!(inner["meta"]["created_at"], object.meta().created_at.to_string());
    }
}

#[test]
fn many_small_objects_do_not_pay_for_the_large_kinds() {
    assert_eq!(size_of::<Stored>(), 88);
    // Of these the watch ring holds thousands.
    assert_eq!(size_of::<EventBatch>(), 56);
}

#[test]
fn a_change_keeps_its_golden_bytes() {
    let change = Change {
        id: ChangeId(0xabc),
        after: Revision(4),
        time: Timestamp(1_795_452_689_123),
        term: Some(Term(2)),
        operations: vec![
            Operation::Create(samples::resource()),
            Operation::Update(samples::config()),
            Operation::Remove { kind: Kind::Secret, id: ObjectId(0x41), version: Some(Revision(3)) },
            Operation::Require { kind: Kind::Extension, id: ObjectId(0x61), expect: Expect::Present },
            Operation::RequireNone { kind: Kind::Service, any_of: vec![Selector::ReferencedSecret(ObjectId(0x41))] },
            Operation::UseToken(ObjectId(0xa1)),
            Operation::Revoke { node: NodeId(0x51), until: Timestamp(1_800_000_000_000) },
        ],
    };
    check("change", &envelope::encode(&crate::types::log::Command::Change(change)));
}

#[test]
fn the_other_commands_and_membership_contexts_keep_their_golden_bytes() {
    use crate::types::MemberChange;
    use crate::types::log::Command;
    let address = Command::SetAddress { raft_id: RaftId(3), node_id: NodeId(0x52), addr: "10.0.0.3:4242".to_owned() };
    let mark = Command::Mark { floors: vec![(RaftId(1), Index(300)), (RaftId(3), Index(299))] };
    for (name, command) in [("command-set-address", address), ("command-mark", mark)] {
        let bytes = envelope::encode(&command);
        check(name, &bytes);
        assert_eq!(envelope::decode::<Command>(&bytes, bytes.len()), Ok(command));
    }
    let add =
        MemberChange::AddLearner { raft_id: RaftId(4), node_id: NodeId(0x53), addr: "m4.example:4242".to_owned() };
    let (promote, remove) = (MemberChange::Promote { raft_id: RaftId(4) }, MemberChange::Remove { raft_id: RaftId(2) });
    let leave = MemberChange::Leave { raft_id: RaftId(2) };
    let all =
        [("member-add-learner", add), ("member-promote", promote), ("member-remove", remove), ("member-leave", leave)];
    for (name, change) in all {
        let bytes = envelope::encode(&change);
        check(name, &bytes);
        assert_eq!(envelope::decode::<MemberChange>(&bytes, bytes.len()), Ok(change));
    }
}

#[test]
fn a_snapshot_stream_keeps_its_golden_bytes() {
    let mut log = Log::new();
    let operations = samples::all().into_iter().map(Operation::Create).collect();
    assert_eq!(log.run(operations), Outcome::Committed(Revision(1)));
    log.run(Vec::new());
    log.run(vec![Operation::Revoke { node: NodeId(0x51), until: Timestamp(1_800_000_000_000) }]);
    log.state.mark(&[(RaftId(1), Index(3))]);
    let chunks: Result<Vec<_>, _> = SnapshotEncoder::new(log.state.clone()).collect();
    let stream = chunks.unwrap().concat();
    check("snapshot-stream", &stream);
    let mut decoder = SnapshotDecoder::new();
    decoder.push(&stream).unwrap();
    assert_eq!(decoder.finish().unwrap().hash(), log.state.hash());
}
