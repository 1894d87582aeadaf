//! What the log and snapshots carry into the store: commands, membership entries, snapshot streams.

use std::sync::{Arc, LazyLock};

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType};
use skep::apply::{self, Applier, ApplyError, Effect};
use skep::codec::envelope;
use skep::store::{SnapshotDecoder, SnapshotEncoder, SnapshotError, State, Store};
use skep::types::log::Command;
use skep::types::*;

use super::{ENVELOPE, Target, canonical, numbered, tagged};

pub(super) const LINEAGE: Lineage = Lineage(0xab);

pub(super) fn targets() -> Vec<Target> {
    vec![
        Target { name: "entry", run: entry, seeds: entry_seeds, runs: 1500, ..ENVELOPE },
        // The protobuf library takes memory for a claimed length of up to 10 MB ahead.
        Target { name: "member_entry", run: member_entry, seeds: member_seeds, bytes_besides: 12 << 20, ..ENVELOPE },
        Target { name: "snapshot_stream", run: snapshot_stream, seeds: stream_seeds, runs: 3000, ..ENVELOPE },
    ]
}

/// Golden bytes, in hexadecimal.
fn golden(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.bytes().filter_map(|digit| char::from(digit).to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// One object of every kind with every part of it in use, as a snapshot that the product once wrote.
const STREAM: &str = include_str!("../../golden/snapshot-stream.hex");

/// The state in the golden snapshot.
pub(super) fn sample_state() -> State {
    static SAMPLE: LazyLock<State> = LazyLock::new(|| {
        let mut decoder = SnapshotDecoder::new();
        decoder.push(&golden(STREAM)).expect("the golden snapshot is read");
        decoder.finish().expect("the golden snapshot is whole")
    });
    SAMPLE.clone()
}

fn applier(state: State) -> Applier {
    Applier::new(Arc::new(Store::new(state, 1 << 20)))
}

/// Applies the same payloads at two replicas, one of which came from a snapshot in between, and has a third replay them.
fn apply_at_two(payloads: &[(EntryType, &[u8])]) {
    let state = sample_state();
    let (mut one, mut other) = (applier(state.clone()), applier(state.clone()));
    let mut entries = Vec::new();
    for (entry_type, payload) in payloads {
        let at = one.store().view(State::applied);
        let entry = Entry {
            entry_type: *entry_type,
            term: at.term.0,
            index: at.index.0 + 1,
            data: payload.to_vec().into(),
            ..Entry::default()
        };
        entries.push(entry.clone());
        let effect = one.apply(&entry);
        assert_eq!(effect, other.apply(&entry), "two replicas disagree on what became of an entry");
        let (hash, recomputed) = one.store().view(|state| (state.hash(), state.recompute_hash()));
        assert_eq!(hash, recomputed, "the hash is not that of what is stored");
        assert_eq!(hash, other.store().view(State::hash), "two replicas differ");
        match effect {
            // The node stops: what it says must name the entry.
            Err(error @ (ApplyError::Undecodable { .. } | ApplyError::NotUnderstood { .. })) => {
                assert!(error.to_string().contains(&entry.index.to_string()), "{error}");
                entries.pop();
                break;
            }
            Ok(Effect::Outcome(_) | Effect::None | Effect::Member { .. } | Effect::Address | Effect::Mark(_)) => {}
        }
        other = applier(through_snapshot(&other.store().snapshot()));
    }
    let (mut third, last) = (applier(state), one.store().view(State::applied).index);
    third
        .replay(last, |third| entries.iter().try_for_each(|entry| third.apply(entry).map(drop)))
        .expect("it was applied before");
    assert_eq!(third.store().view(State::hash), one.store().view(State::hash), "a replay leads elsewhere");
}

/// The state as a snapshot carries it to another manager.
fn through_snapshot(state: &State) -> State {
    let mut decoder = SnapshotDecoder::new();
    for chunk in SnapshotEncoder::new(state.clone()) {
        decoder.push(&chunk.expect("what is stored can be written")).expect("what was written is read");
    }
    let read = decoder.finish().expect("what was written is whole");
    assert_eq!((read.hash(), read.applied(), read.revision()), (state.hash(), state.applied(), state.revision()));
    assert_eq!((read.members(), read.configuration()), (state.members(), state.configuration()));
    read
}

/// Payloads of normal entries, each behind a length of two bytes. They come one after the other into one state.
fn entry(input: &[u8]) {
    let payloads = split(input);
    for payload in &payloads {
        if let Some(command) = canonical::<Command>(payload) {
            // By their bytes, because a NaN is not equal to itself.
            let encoded = apply::encode(&command);
            assert_eq!(apply::decode(&encoded).map(|again| apply::encode(&again)), Ok(encoded));
        }
    }
    let entries: Vec<_> = payloads.into_iter().map(|payload| (EntryType::EntryNormal, payload)).collect();
    apply_at_two(&entries);
}

/// Parts behind lengths of two bytes; the last may be cut off. No more than a handful.
pub(super) fn split(input: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut parts) = (input, Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (part, after) = tail.split_at(tail.len().min(usize::from(u16::from_le_bytes(*length))));
        parts.push(part);
        rest = after;
        if parts.len() == 8 {
            break;
        }
    }
    parts
}

/// What [`split`] takes apart.
pub(super) fn join(parts: &[&[u8]]) -> Vec<u8> {
    let length = |part: &[u8]| u16::try_from(part.len()).expect("seeds are small").to_le_bytes();
    parts.iter().flat_map(|part| [&length(part)[..], part].concat()).collect()
}

/// An object as a seed finds it in the sample state, for a change of it.
fn found(kind: Kind) -> Object {
    sample_state().iter(kind).next().expect("there is one of each kind").object.clone()
}

fn entry_seeds() -> Vec<(String, Vec<u8>)> {
    let change = |id: u128, operations| {
        let change = Change { id: ChangeId(id), after: Revision(0), time: Timestamp(5), term: None, operations };
        apply::encode(&Command::Change(change))
    };
    let removal = |object: &Object| {
        let (kind, id) = (object.kind(), object.id());
        Operation::Remove { kind, id, version: Some(object.meta().version) }
    };
    let mut inputs = vec![
        join(&[&golden(include_str!("../../golden/change.hex"))]),
        join(&[&golden(include_str!("../../golden/command-mark.hex"))]),
        join(&[&golden(include_str!("../../golden/command-set-address.hex"))]),
        join(&[b""]),
    ];
    for kind in Kind::ALL {
        let object = found(kind);
        let update = change(kind as u128 + 100, vec![Operation::Update(object.clone())]);
        let again = change(kind as u128 + 200, vec![removal(&found(kind)), Operation::Create(object)]);
        inputs.push(join(&[&update, &again]));
    }
    let by_ids = vec![
        Selector::All,
        Selector::IdPrefix("00".to_owned()),
        Selector::NamePrefix("w".to_owned()),
        Selector::ReferencedNetwork(ObjectId(0x31)),
        Selector::CustomPrefix { index: "rack".to_owned(), prefix: "r".to_owned() },
        Selector::Role(Role::Manager),
        Selector::Kind("widget".to_owned()),
    ];
    let demands =
        |any_of: Vec<Selector>| Kind::ALL.map(|kind| Operation::RequireNone { kind, any_of: any_of.clone() }).to_vec();
    inputs.push(join(&[&change(7, demands(by_ids[1..].to_vec())), &change(8, demands(by_ids))]));
    numbered(inputs)
}

/// Membership entries, each behind a length of two bytes. The first byte of each chooses between raft's own encoding as it
/// comes, and one made right around our part of it, so that mutations reach that.
fn member_entry(input: &[u8]) {
    let payloads: Vec<Vec<u8>> = split(input)
        .into_iter()
        .filter_map(|part| {
            let (kind, body) = part.split_first()?;
            Some(if kind & 1 == 0 { body.to_vec() } else { around(*kind, body) })
        })
        .collect();
    let entries: Vec<_> = payloads.iter().map(|payload| (EntryType::EntryConfChange, payload.as_slice())).collect();
    apply_at_two(&entries);
    // A joint change is nothing that any version has written.
    if let Some((_, payload)) = entries.first() {
        apply_at_two(&[(EntryType::EntryConfChangeV2, payload)]);
    }
}

fn around(kind: u8, context: &[u8]) -> Vec<u8> {
    let mut outer = ConfChange::default();
    if let Ok(change) = envelope::decode::<MemberChange>(context, context.len()) {
        (outer.change_type, outer.node_id) = match change {
            MemberChange::AddLearner { raft_id, .. } => (ConfChangeType::AddLearnerNode, raft_id.0),
            MemberChange::Promote { raft_id } => (ConfChangeType::AddNode, raft_id.0),
            MemberChange::Remove { raft_id } | MemberChange::Leave { raft_id } => {
                (ConfChangeType::RemoveNode, raft_id.0)
            }
        };
    }
    outer.node_id ^= u64::from(kind >> 1 == 1);
    outer.context = context.to_vec().into();
    outer.write_to_bytes().expect("a message in memory is written")
}

/// A membership entry as raft proposes it.
pub(super) fn conf_change(change: &MemberChange) -> Vec<u8> {
    around(1, &envelope::encode(change))
}

fn member_seeds() -> Vec<(String, Vec<u8>)> {
    let state = sample_state();
    let next = state.next_raft_id();
    let add = MemberChange::AddLearner { raft_id: next, node_id: NodeId(0x99), addr: "m9:4242".to_owned() };
    let promote = MemberChange::Promote { raft_id: next };
    let remove = MemberChange::Remove { raft_id: RaftId(1) };
    let leave = MemberChange::Leave { raft_id: next };
    let [add, promote, remove, leave] = [add, promote, remove, leave].map(|change| envelope::encode(&change));
    let whole = |body: &[u8]| tagged(0, &around(1, body));
    numbered([
        join(&[&tagged(1, &add), &tagged(1, &promote), &tagged(1, &remove)]),
        join(&[&whole(&add), &whole(&promote)]),
        join(&[&tagged(3, &add), &whole(&remove)]),
        join(&[&whole(&add), &tagged(1, &leave)]),
    ])
}

/// A stream as a peer sends it. The hash at its end is put right, and the stream read again: what else is wrong with it
/// must be found too, or do no harm.
fn snapshot_stream(input: &[u8]) {
    let Some((cut, stream)) = input.split_first() else { return };
    let whole = read(stream, stream.len());
    let pieces = read(stream, usize::from(*cut) + 1);
    assert!(same(&whole, &pieces), "cut differently, the stream is judged differently");
    let result = match whole {
        Err(SnapshotError::Hash { found, .. }) if stream.len() > 16 => {
            let mut right = stream.to_vec();
            let end = right.len() - 16;
            right[end..].copy_from_slice(&found.to_le_bytes());
            read(&right, right.len())
        }
        other => other,
    };
    match result {
        Ok(state) => {
            assert_eq!(state.hash(), state.recompute_hash());
            let again = through_snapshot(&state);
            // It is good enough to go on from.
            let mut applier = applier(again);
            let at = state.applied();
            let entry = Entry { term: at.term.0, index: at.index.0 + 1, ..Entry::default() };
            applier.apply(&entry).expect("an empty entry is always understood");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn read(stream: &[u8], piece: usize) -> Result<State, SnapshotError> {
    let mut decoder = SnapshotDecoder::new();
    for piece in stream.chunks(piece.max(1)) {
        decoder.push(piece)?;
    }
    decoder.finish()
}

fn same(one: &Result<State, SnapshotError>, other: &Result<State, SnapshotError>) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one.hash() == other.hash(),
        (Err(one), Err(other)) => one == other,
        _ => false,
    }
}

fn stream_seeds() -> Vec<(String, Vec<u8>)> {
    let encode = |state: State| {
        SnapshotEncoder::new(state).flat_map(|chunk| chunk.expect("what is stored can be written")).collect::<Vec<u8>>()
    };
    let first = State::bootstrap(LINEAGE, NodeId(0x11), "m1:4242");
    let mut refused = applier(first.clone());
    let change = Change {
        id: ChangeId(4),
        after: Revision(0),
        time: Timestamp(5),
        term: None,
        operations: vec![Operation::Remove { kind: Kind::Config, id: ObjectId(1), version: None }],
    };
    let data = apply::encode(&Command::Change(change)).into();
    refused.apply(&Entry { term: 1, index: 2, data, ..Entry::default() }).expect("it is understood");
    numbered([
        tagged(255, &golden(STREAM)),
        tagged(3, &encode(State::new(LINEAGE))),
        tagged(63, &encode(first)),
        tagged(31, &encode(refused.store().snapshot())),
    ])
}
