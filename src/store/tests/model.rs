//! The store against a model that is too simple to be wrong: vectors, scans and copies.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::samples::text;
use super::*;
use crate::store::{Search, SnapshotDecoder, SnapshotEncoder, Stored};
use crate::types::change::InvalidChange;
use crate::types::object::*;

/// How many changes the ring remembers here.
const RING: u64 = 6;

/// What the store should be: every rule as plainly as it can be said.
#[derive(Default)]
struct Model {
    objects: BTreeMap<(Kind, ObjectId), Object>,
    revision: u64,
    /// Change, revision at which it was judged, answer; of all changes ever.
    judged: Vec<(ChangeId, u64, Outcome)>,
}

impl Model {
    fn apply(&mut self, change: &Change, term: Term) -> Outcome {
        let forgotten = self.judged.len().saturating_sub(RING as usize);
        let (forgotten, remembered) = self.judged.split_at(forgotten);
        if let Some((_, _, outcome)) = remembered.iter().find(|(id, ..)| *id == change.id) {
            return outcome.clone();
        }
        if forgotten.iter().any(|(_, at, _)| *at >= change.after.0 && *at < self.revision) {
            return Outcome::Forgotten;
        }
        let mut objects = self.objects.clone();
        let result = Self::execute(&mut objects, change, self.revision + 1, term);
        let at = self.revision;
        let outcome = match result {
            Ok(()) => {
                self.objects = objects;
                self.revision += 1;
                Outcome::Committed(Revision(self.revision))
            }
            Err(refusal) => Outcome::Refused(refusal),
        };
        self.judged.push((change.id, at, outcome.clone()));
        outcome
    }

    fn execute(
        objects: &mut BTreeMap<(Kind, ObjectId), Object>,
        change: &Change,
        revision: u64,
        term: Term,
    ) -> Result<(), Refusal> {
        if change.term.is_some_and(|own| own != term) {
            return Err(Refusal::TermChanged);
        }
        if change.operations.is_empty() {
            return Err(Refusal::Invalid(InvalidChange::Empty));
        }
        for operation in &change.operations {
            let version = |objects: &BTreeMap<(Kind, ObjectId), Object>, kind, id| {
                objects.get(&(kind, id)).map(|object: &Object| object.meta().version)
            };
            match operation {
                Operation::Create(object) | Operation::Update(object) => {
                    let (kind, id) = (object.kind(), object.id());
                    let found = objects.get(&(kind, id)).map(|object| *object.meta());
                    let creates = matches!(operation, Operation::Create(_));
                    if kind.has_unique_names() && object.name().is_none() {
                        return Err(Refusal::Invalid(InvalidChange::NameMissing));
                    }
                    match found {
                        Some(_) if creates => return Err(Refusal::Exists { kind, id }),
                        None if !creates => return Err(Refusal::NotFound { kind, id }),
                        Some(meta) if meta.version != object.meta().version => {
                            return Err(Refusal::OutOfSequence { kind, id, found: Some(meta.version) });
                        }
                        _ => {}
                    }
                    let same_name = |other: &&Object| {
                        kind.has_unique_names()
                            && (other.kind(), other.id()) != (kind, id)
                            && other.kind() == kind
                            && other.name().map(str::to_lowercase) == object.name().map(str::to_lowercase)
                    };
                    if let Some(holder) = objects.values().find(same_name) {
                        return Err(Refusal::NameConflict { kind, holder: holder.id() });
                    }
                    let created_at = found.map_or(change.time, |meta| meta.created_at);
                    let mut object = object.clone();
                    *object.meta_mut() = Meta { version: Revision(revision), created_at, updated_at: change.time };
                    objects.insert((kind, id), object);
                }
                Operation::Remove { kind, id, version: wanted } => {
                    let found = version(objects, *kind, *id).ok_or(Refusal::NotFound { kind: *kind, id: *id })?;
                    if wanted.is_some_and(|wanted| wanted != found) {
                        return Err(Refusal::OutOfSequence { kind: *kind, id: *id, found: Some(found) });
                    }
                    objects.remove(&(*kind, *id));
                }
                Operation::Require { kind, id, expect } => {
                    let (kind, id) = (*kind, *id);
                    let found = version(objects, kind, id);
                    match expect {
                        Expect::Present if found.is_none() => return Err(Refusal::NotFound { kind, id }),
                        Expect::Absent if found.is_some() => return Err(Refusal::Exists { kind, id }),
                        Expect::Version(wanted) if found != Some(*wanted) => {
                            return Err(Refusal::OutOfSequence { kind, id, found });
                        }
                        _ => {}
                    }
                }
                Operation::RequireNone { kind, any_of } => {
                    let matches = |object: &&Object| {
                        object.kind() == *kind && any_of.iter().any(|selector| selector.matches(object))
                    };
                    if let Some(object) = objects.values().find(matches) {
                        return Err(Refusal::Referenced { kind: *kind, by: object.id() });
                    }
                }
                Operation::UseToken(id) => {
                    let place = (Kind::Token, *id);
                    let Some(Object::Token(token)) = objects.get_mut(&place) else {
                        return Err(Refusal::NotFound { kind: Kind::Token, id: *id });
                    };
                    let ended = token.expires_at.is_some_and(|end| change.time >= end);
                    match &mut token.uses_left {
                        _ if ended => return Err(Refusal::TokenSpent { id: *id }),
                        Some(0) => return Err(Refusal::TokenSpent { id: *id }),
                        Some(left) => {
                            *left -= 1;
                            (token.meta.version, token.meta.updated_at) = (Revision(revision), change.time);
                        }
                        None => {}
                    }
                }
                Operation::Revoke { .. } => {}
            }
        }
        Ok(())
    }
}

/// A change before its ids and versions are filled in from the state it meets.
#[derive(Clone, Debug)]
struct Script {
    operations: Vec<Op>,
    /// Repeats the change made so many before; zero makes a new one.
    repeats: usize,
    /// Made so many revisions ago.
    late: u64,
    /// Bound to this term.
    term: Option<u64>,
}

#[derive(Clone, Debug)]
enum Op {
    Create(Shape),
    Update(Shape, Version),
    Remove(Shape, Option<Version>),
    Require(Shape, u8, Version),
    RequireNone(Kind, Vec<Selector>),
    UseToken(u128),
}

/// Which version an operation claims.
#[derive(Clone, Copy, Debug)]
enum Version {
    Right,
    Wrong(u64),
}

/// A small world, so that things collide: which kind, which of few ids and names, and which attributes.
#[derive(Clone, Debug)]
struct Shape {
    kind: Kind,
    id: u128,
    name: &'static str,
    attributes: u16,
}

const KINDS: [Kind; 7] =
    [Kind::Node, Kind::Service, Kind::Task, Kind::Config, Kind::Resource, Kind::Volume, Kind::Token];
const NAMES: [&str; 8] =
    ["", "web", "WEB", "webber", "Ä-b", "x", "the-same-sixteen-bytes-a", "The-Same-Sixteen-Bytes-B"];
/// Ids at both ends of what is printed, with common beginnings.
const IDS: [u128; 5] = [1, 1 | 1 << 64, 36, u128::MAX / 3, u128::MAX];

impl Shape {
    fn bits(&self, from: u32, modulus: u16) -> u16 {
        (self.attributes >> from) % modulus
    }

    fn object(&self) -> Object {
        let id = ObjectId(IDS[self.id as usize]);
        let meta = Meta::default();
        let mut annotations = Annotations { name: self.name.to_owned(), ..Annotations::default() };
        annotations.labels = text(&[("attributes", ["a", "b", "c"][usize::from(self.bits(0, 3))])]);
        annotations.indices = match self.bits(2, 4) {
            0 => text(&[("rack", "r1"), ("row", "r1")]),
            1 => text(&[("rack", "r10")]),
            2 => text(&[("rack", "")]),
            _ => text(&[]),
        };
        let reference = ObjectId(u128::from(self.bits(4, 3)));
        let state = TaskState::ALL[usize::from(self.bits(6, 3)) * 4];
        let container = ContainerSpec {
            secrets: vec![SecretReference { secret_id: reference, ..SecretReference::default() }; 2],
            configs: vec![ConfigReference { config_id: reference, ..ConfigReference::default() }],
            ..ContainerSpec::default()
        };
        let spec = TaskSpec {
            runtime: Runtime::Container(Box::new(container)),
            networks: vec![NetworkAttachmentConfig { target: reference, ..NetworkAttachmentConfig::default() }],
            ..TaskSpec::default()
        };
        match self.kind {
            Kind::Node => {
                let role = if self.bits(8, 2) == 0 { Role::Worker } else { Role::Manager };
                let mut node = Node::new(id.into(), role);
                node.description.hostname = self.name.to_owned();
                node.spec.annotations = annotations;
                if self.bits(9, 2) == 0 {
                    node.spec.membership = MembershipState::Pending;
                }
                node.into()
            }
            Kind::Service => {
                let spec = ServiceSpec { annotations, task: spec, ..ServiceSpec::default() };
                Service { id, meta, spec, ..Service::default() }.into()
            }
            Kind::Task => Task {
                id,
                meta,
                spec,
                annotations,
                service_id: (self.bits(10, 3) > 0).then(|| ObjectId(u128::from(self.bits(10, 3)))),
                slot: u64::from(self.bits(12, 3)),
                node_id: (self.bits(8, 3) > 0).then(|| NodeId(u128::from(self.bits(8, 3)))),
                desired_state: state,
                status: TaskStatus { state: TaskState::ALL[usize::from(self.bits(9, 3))], ..TaskStatus::default() },
                ..Task::default()
            }
            .into(),
            Kind::Resource => {
                let kind = ["Widget", "widget", "gadget"][usize::from(self.bits(6, 3))].to_owned();
                Resource { id, meta, annotations, kind, payload: vec![self.attributes as u8] }.into()
            }
            Kind::Volume => {
                let secrets = vec![VolumeSecret { key: String::new(), secret: reference }];
                let spec = VolumeSpec { annotations, secrets, ..VolumeSpec::default() };
                Volume { id, meta, spec, ..Volume::default() }.into()
            }
            Kind::Token => Token {
                id,
                meta,
                annotations: Annotations { name: String::new(), ..annotations },
                role: Role::Worker,
                expires_at: [None, None, Some(Timestamp(0)), Some(Timestamp(u64::MAX))][usize::from(self.bits(4, 4))],
                uses_left: [None, Some(0), Some(1), Some(2)][usize::from(self.bits(6, 4))],
                root_digest: String::new(),
                secret_digest: Sensitive::default(),
            }
            .into(),
            _ => Config { id, meta, spec: ConfigSpec { annotations, ..ConfigSpec::default() } }.into(),
        }
    }
}

/// Every selector with every value that this world knows, and some that it does not.
fn selectors() -> Vec<Selector> {
    let mut all = vec![Selector::All];
    for name in NAMES.into_iter().chain([
        "we",
        "W",
        "nothing",
        "the-same-sixteen",
        "the-same-SIXTEEN-bytes-",
        "the-same-sixteen-bytes-c",
    ]) {
        all.extend([Selector::Name(name.into()), Selector::NamePrefix(name.into())]);
    }
    for prefix in ["", "0", "00000000000000000000000", "0000000000000000000000001", "f", "f5", "4", "zz", "A"] {
        all.push(Selector::IdPrefix(prefix.into()));
    }
    for id in (0..4).map(ObjectId) {
        all.extend([Selector::Service(id), Selector::Node(id), Selector::ReferencedNetwork(id)]);
        all.extend([Selector::ReferencedSecret(id), Selector::ReferencedConfig(id)]);
        all.extend((0..4).map(|slot| Selector::Slot(id, slot)));
    }
    all.extend(TaskState::ALL.map(Selector::DesiredState));
    all.extend(TaskState::ALL.map(Selector::TaskState));
    all.extend([Role::Worker, Role::Manager].map(Selector::Role));
    all.extend([MembershipState::Pending, MembershipState::Accepted].map(Selector::Membership));
    all.extend(["widget", "WIDGET", "gadget", "wid"].map(|kind| Selector::Kind(kind.into())));
    for index in ["rack", "row", "ro"] {
        for value in ["", "r", "r1", "r10"] {
            all.push(Selector::Custom { index: index.into(), value: value.into() });
            all.push(Selector::CustomPrefix { index: index.into(), prefix: value.into() });
        }
    }
    all
}

fn shape() -> impl Strategy<Value = Shape> {
    (prop::sample::select(&KINDS[..]), 0..IDS.len() as u128, prop::sample::select(&NAMES[..]), any::<u16>())
        .prop_map(|(kind, id, name, attributes)| Shape { kind, id, name, attributes })
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![5 => Just(Version::Right), 1 => (0..9_u64).prop_map(Version::Wrong)]
}

fn op() -> impl Strategy<Value = Op> {
    let some_selectors = prop::collection::vec(prop::sample::select(selectors()), 1..3);
    prop_oneof![
        6 => shape().prop_map(Op::Create),
        5 => (shape(), version()).prop_map(|(shape, version)| Op::Update(shape, version)),
        2 => (shape(), prop::option::of(version())).prop_map(|(shape, version)| Op::Remove(shape, version)),
        1 => (shape(), 0..3_u8, version()).prop_map(|(shape, expect, version)| Op::Require(shape, expect, version)),
        1 => (prop::sample::select(&KINDS[..]), some_selectors).prop_map(|(kind, any_of)| Op::RequireNone(kind, any_of)),
        1 => (0..IDS.len() as u128).prop_map(Op::UseToken),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    let repeats = prop_oneof![6 => Just(0_usize), 1 => 1..12_usize];
    let late = prop_oneof![6 => Just(0_u64), 1 => 1..9_u64];
    let term = prop_oneof![8 => Just(None), 1 => (1..3_u64).prop_map(Some)];
    (prop::collection::vec(op(), 0..4), repeats, late, term).prop_map(|(operations, repeats, late, term)| Script {
        operations,
        repeats,
        late,
        term,
    })
}

/// Fills in what the script leaves to the state.
fn write(log: &mut Log, script: &Script, before: &[Change]) -> Change {
    if let Some(change) = script.repeats.checked_sub(1).and_then(|back| before.iter().rev().nth(back)) {
        return change.clone();
    }
    let state = log.state.clone();
    let resolve = |shape: &Shape, version: Version| match version {
        Version::Wrong(version) => Revision(version),
        Version::Right => {
            let object = shape.object();
            state.get(object.kind(), object.id()).map_or(Revision(0), |stored| stored.object.meta().version)
        }
    };
    let operations = script.operations.iter().map(|op| match op {
        Op::Create(shape) => Operation::Create(shape.object()),
        Op::Update(shape, version) => Operation::Update(at(shape.object(), resolve(shape, *version).0)),
        Op::Remove(shape, version) => Operation::Remove {
            kind: shape.kind,
            id: shape.object().id(),
            version: version.map(|version| resolve(shape, version)),
        },
        Op::Require(shape, expect, version) => Operation::Require {
            kind: shape.kind,
            id: shape.object().id(),
            expect: match expect {
                0 => Expect::Present,
                1 => Expect::Absent,
                _ => Expect::Version(resolve(shape, *version)),
            },
        },
        Op::RequireNone(kind, any_of) => Operation::RequireNone { kind: *kind, any_of: any_of.clone() },
        Op::UseToken(place) => Operation::UseToken(ObjectId(IDS[*place as usize])),
    });
    let mut change = log.change(operations.collect());
    change.after = Revision(change.after.0.saturating_sub(script.late));
    change.term = script.term.map(Term);
    change
}

fn check_indexes(state: &State, selectors: &[Selector]) {
    for kind in Kind::ALL {
        let objects: Vec<_> = state.iter(kind).map(|stored| &stored.object).collect();
        let check = |any_of: &[Selector]| {
            let found: Vec<_> = state.find(kind, any_of).into_iter().map(|stored| stored.object.id()).collect();
            let matching = objects.iter().filter(|object| any_of.iter().any(|selector| selector.matches(object)));
            let expected: Vec<_> = matching.map(|object| object.id()).collect();
            assert_eq!(found, expected, "{kind} {any_of:?}");
            for from in [ObjectId(0)]
                .into_iter()
                .chain(objects.iter().flat_map(|object| [object.id(), ObjectId(object.id().0.saturating_add(1))]))
            {
                let search = state.search(kind, any_of, from);
                let mut found: Vec<_> =
                    state.candidates(kind, &search, from).map(|stored| stored.object.id()).collect();
                // An index that is more than a way to what may match has nothing that does not.
                let is_exact = matches!(search, Search::Few(_))
                    && !any_of.iter().any(|one| matches!(one, Selector::NamePrefix(_)));
                if !is_exact {
                    found.retain(|id| expected.contains(id));
                }
                let wanted: Vec<_> = expected.iter().copied().filter(|id| *id >= from).collect();
                assert_eq!(found, wanted, "{kind} {any_of:?} from {from}");
            }
        };
        selectors.iter().for_each(|selector| check(std::slice::from_ref(selector)));
        selectors.windows(3).for_each(check);
        check(&[]);
        // By name an object is found as it is by its id, and with it everyone else who has the name.
        for name in objects.iter().filter_map(|object| object.name_bytes()) {
            let has_it = |stored: &&Arc<Stored>| {
                stored.object.name_bytes().is_some_and(|other| other.eq_ignore_ascii_case(name))
            };
            let expected = state.iter(kind).filter(has_it).map(Arc::as_ptr);
            assert!(state.table(kind).named(name).map(Arc::as_ptr).eq(expected), "{kind} {name:?}");
        }
        let bytes: u64 = state.iter(kind).map(|stored| u64::from(stored.bytes)).sum();
        assert_eq!((state.bytes(kind), state.count(kind)), (bytes, objects.len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x5eed),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_store_does_what_the_model_does(scripts in prop::collection::vec(script(), 1..60)) {
        let mut log = Log::with_ring(RING);
        let mut twin = Log::with_ring(RING);
        // It replays the entries, once from nothing and once on top of what is there.
        let mut replay = Log::with_ring(RING);
        replay.state.stage();
        let mut model = Model::default();
        let mut changes = Vec::new();
        let mut clones = Vec::new();
        for script in &scripts {
            let change = write(&mut log, script, &changes);
            let before = log.state.revision();
            let (outcome, events) = log.apply(&change);
            prop_assert_eq!(&outcome, &model.apply(&change, log.term), "{:?}", change);
            prop_assert_eq!(&twin.apply(&change).0, &outcome);
            prop_assert_eq!(log.state.hash(), twin.state.hash());
            prop_assert_eq!(&replay.replay(&change), &outcome);
            if changes.len() == scripts.len() / 2 {
                replay.state.settle();
                prop_assert_eq!(replay.state.hash(), log.state.hash());
                replay.state.stage();
            }
            prop_assert_eq!(log.state.revision().0, model.revision);
            prop_assert!(contents(&log.state).iter().eq(model.objects.values()));
            // A committed change has its events, and nothing else has.
            let committed = outcome == Outcome::Committed(before.next());
            prop_assert_eq!(events.map(|batch| batch.revision), committed.then(|| before.next()));
            clones.push((log.state.clone(), log.state.hash()));
            changes.push(change);
        }
        let selectors = selectors();
        check_indexes(&log.state, &selectors);
        replay.state.settle();
        prop_assert_eq!((replay.state.hash(), replay.state.recompute_hash()), (log.state.hash(), log.state.hash()));
        check_indexes(&replay.state, &selectors);
        for (clone, hash) in clones.iter().step_by(7) {
            prop_assert_eq!(clone.recompute_hash(), *hash);
            check_indexes(clone, &selectors[..20]);
        }
        let mut decoder = SnapshotDecoder::new();
        for chunk in SnapshotEncoder::new(log.state.clone()) {
            decoder.push(&chunk.unwrap()).unwrap();
        }
        let copy = decoder.finish().unwrap();
        prop_assert_eq!(copy.hash(), log.state.hash());
        check_indexes(&copy, &selectors);
    }
}
