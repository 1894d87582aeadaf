//! Snapshots: out as a stream, and back.

use std::sync::Arc;

use super::*;
use crate::codec::DecodeError;
use crate::store::{SNAPSHOT_CHUNK_BYTES, SnapshotDecoder, SnapshotEncoder, SnapshotError, Stored};
use crate::types::object::Resource;

fn encode(state: &State) -> Vec<Vec<u8>> {
    SnapshotEncoder::new(state.clone()).collect::<Result<_, _>>().unwrap()
}

fn decode(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<State, SnapshotError> {
    let mut decoder = SnapshotDecoder::new();
    for piece in pieces {
        decoder.push(piece.as_ref())?;
    }
    decoder.finish()
}

/// A state with some of everything: large objects, refusals in the ring, members gone and here.
fn some_state() -> State {
    let mut log = Log::with_ring(5);
    log.state.apply_member_change(&MemberChange::AddLearner {
        raft_id: log.state.next_raft_id(),
        node_id: NodeId(2),
        addr: "b:1".to_owned(),
    });
    for id in 1..=20_u128 {
        let mut resource = Resource { id: ObjectId(id), kind: "blob".into(), ..Resource::default() };
        resource.annotations.name = format!("blob-{id}");
        resource.payload = vec![id as u8; 100_000 * (id % 4) as usize];
        log.run(vec![Operation::Create(Object::from(resource)), Operation::Create(config(id, &format!("c{id}")))]);
    }
    log.run(Vec::new());
    log.state.mark(&[(RaftId(1), Index(7))]);
    log.state
}

/// The same state without the limits of the test's ring, as a decoder makes it.
fn check_same(found: &State, expected: &State) {
    assert_eq!(contents(found), contents(expected));
    assert_eq!((found.hash(), found.recompute_hash()), (expected.hash(), expected.hash()));
    assert_eq!((found.revision(), found.applied()), (expected.revision(), expected.applied()));
    assert_eq!((found.lineage(), found.horizon()), (expected.lineage(), expected.horizon()));
    assert_eq!((found.members(), found.floors()), (expected.members(), expected.floors()));
    for change in (0..=30).map(ChangeId) {
        assert_eq!(found.remembered(change), expected.remembered(change));
    }
    let everything = [Selector::NamePrefix("b".into()), Selector::Kind("blob".into())];
    let ids = |state: &State| {
        state.find(Kind::Resource, &everything).iter().map(|stored| stored.object.id()).collect::<Vec<_>>()
    };
    assert_eq!(ids(found), ids(expected));
}

#[test]
fn a_snapshot_gives_the_state_back_in_chunks_of_any_size() {
    let state = some_state();
    let chunks = encode(&state);
    assert!(chunks.len() > 10);
    let (last, whole) = chunks.split_last().unwrap();
    assert!(whole.iter().all(|chunk| chunk.len() == SNAPSHOT_CHUNK_BYTES) && last.len() <= SNAPSHOT_CHUNK_BYTES);
    check_same(&decode(&chunks).unwrap(), &state);
    let stream = chunks.concat();
    for size in [977, 70_001, stream.len()] {
        check_same(&decode(stream.chunks(size)).unwrap(), &state);
    }
}

#[test]
fn the_empty_state_has_a_snapshot_too() {
    let state = State::new(Lineage(3));
    check_same(&decode(encode(&state)).unwrap(), &state);
}

#[test]
fn a_decoded_state_goes_on_like_the_original() {
    let mut original = Log::new();
    for id in 1..=9 {
        original.run(vec![Operation::Create(config(id, &format!("c{id}")))]);
    }
    let mut copy = Log { state: decode(encode(&original.state)).unwrap(), term: original.term, changes: 9 };
    for log in [&mut original, &mut copy] {
        log.run(vec![Operation::Remove { kind: Kind::Config, id: ObjectId(3), version: None }]);
        log.run(vec![Operation::Create(config(3, "C4"))]);
        log.run(vec![Operation::Create(config(3, "c3"))]);
    }
    assert_eq!(original.state.hash(), copy.state.hash());
}

#[test]
fn a_snapshot_that_is_cut_or_changed_is_refused() {
    let mut log = Log::new();
    log.run(vec![Operation::Create(config(1, "one")), Operation::Create(config(2, "two"))]);
    log.run(Vec::new());
    let stream = encode(&log.state).concat();
    for length in 0..stream.len() {
        assert!(decode([&stream[..length]]).is_err(), "cut at {length}");
    }
    for place in 0..stream.len() {
        for bit in [0, 3, 7] {
            let mut bad = stream.clone();
            bad[place] ^= 1 << bit;
            assert!(decode([&bad]).is_err(), "bit {bit} of byte {place}");
        }
    }
    let mut longer = stream.clone();
    longer.push(0);
    assert_eq!(decode([&longer]).unwrap_err(), SnapshotError::Malformed("bytes follow its end"));
    let twice = [stream.clone(), stream].concat();
    assert_eq!(decode([&twice]).unwrap_err(), SnapshotError::Malformed("a record follows its end"));
    let huge = [3, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(decode([huge]), Err(SnapshotError::Decode(DecodeError::TooLong { .. }))));
}

#[test]
fn an_encoder_that_meets_rotten_memory_ends_with_an_error() {
    let mut log = Log::new();
    log.run(vec![Operation::Create(config(1, "one")), Operation::Create(config(2, "two"))]);
    let stored = log.state.get(Kind::Config, ObjectId(2)).unwrap();
    let rotten = Stored { object: at(config(2, "twp"), 1), hash: stored.hash, bytes: stored.bytes };
    log.state.replace(Kind::Config, ObjectId(2), Some(Arc::new(rotten)));
    let mut encoder = SnapshotEncoder::new(log.state.clone());
    let error = SnapshotError::ObjectChanged { kind: Kind::Config, id: ObjectId(2) };
    assert_eq!(encoder.next(), Some(Err(error)));
    assert_eq!(encoder.next(), None);
    assert_ne!(log.state.hash(), log.state.recompute_hash());
}

#[test]
fn an_encoder_that_meets_a_rotten_sum_ends_with_an_error() {
    let mut log = Log::new();
    log.run(vec![Operation::Create(config(1, "one"))]);
    log.state.objects_hash ^= 1 << 77;
    let last = SnapshotEncoder::new(log.state).last();
    assert!(matches!(last, Some(Err(SnapshotError::Hash { .. }))));
}
