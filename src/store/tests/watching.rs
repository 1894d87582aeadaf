//! The watch ring, and the checks of a watch's promises: each must hold for what the ring gives, and notice its breach.

use super::*;
use crate::store::watch::check::{self, History, Watched};
use crate::store::{Cursor, Store, WatchError};
use crate::types::api::{Action, WatchEvent, WatchItem};

/// A store with one writer and a record of what happened.
struct Rig {
    store: Store,
    history: History,
    changes: u128,
}

impl Rig {
    fn new(ring_bytes: usize) -> Self {
        let state = State::bootstrap(Lineage(7), NodeId(1), "a:1");
        let history = History::new(&state);
        Self { store: Store::new(state, ring_bytes), history, changes: 0 }
    }

    fn run(&mut self, operations: Vec<Operation>) -> Outcome {
        self.changes += 1;
        let (id, time, after) = (ChangeId(self.changes), Timestamp(0), self.store.revision());
        let change = Change { id, after, time, term: None, operations };
        let history = &mut self.history;
        self.store.write(|state| {
            let (outcome, batch) = state.apply_change(change, Term(1));
            if let Some(batch) = &batch {
                history.record(batch);
            }
            (outcome, batch)
        })
    }

    /// Some changes: two objects made at once, each then changed, one removed, and a refusal and an empty change between.
    fn script(&mut self) {
        let base = self.store.revision().0;
        let (a, b) = (u128::from(base) + 1, u128::from(base) + 2);
        let name = |id: u128| format!("c{id}");
        self.run(vec![Operation::Create(config(a, &name(a))), Operation::Create(config(b, &name(b)))]);
        self.run(vec![Operation::Update(at(config(a, &name(a)), base + 1))]);
        self.run(vec![Operation::Update(at(config(a, &name(a)), base + 1))]);
        self.run(vec![Operation::Require { kind: Kind::Config, id: ObjectId(a), expect: Expect::Present }]);
        let remove = Operation::Remove { kind: Kind::Config, id: ObjectId(b), version: None };
        self.run(vec![remove, Operation::Update(at(config(a, "renamed"), base + 2))]);
        self.run(vec![Operation::Remove { kind: Kind::Config, id: ObjectId(a), version: None }]);
    }

    /// What a service that shows `wants` sends for the batches that the cursor has not seen, and a mark.
    fn stream(&self, cursor: &mut Cursor, wants: &dyn Fn(&Object) -> bool, old: bool, max: usize) -> Vec<WatchItem> {
        let mut items = Vec::new();
        loop {
            let batches = self.store.poll(cursor, max).unwrap();
            if batches.is_empty() {
                items.push(WatchItem::Mark { revision: cursor.seen() });
                return items;
            }
            for batch in batches {
                let events = batch.events.iter().map(|event| event.to_watch_event());
                let events = events.filter(|event| wants(&event.object));
                let events: Vec<_> =
                    events.map(|event| WatchEvent { old: event.old.clone().filter(|_| old), ..event }).collect();
                if !events.is_empty() {
                    items.push(WatchItem::Change { revision: batch.revision, events });
                }
            }
        }
    }
}

fn even(object: &Object) -> bool {
    object.id().0.is_multiple_of(2)
}

fn watched<'a>(from: Option<u64>, items: &'a [WatchItem]) -> Watched<'a> {
    Watched { from: from.map(Revision), wants: &even, shows: &Clone::clone, include_old: true, items }
}

#[test]
fn what_the_ring_gives_keeps_every_promise() {
    for (max, include_old) in [(1, true), (3, false), (1000, true)] {
        let mut rig = Rig::new(1 << 20);
        rig.script();
        let (state, mut cursor) = rig.store.view_and_watch();
        let objects: Vec<_> = contents(&state).into_iter().filter(even).collect();
        let mut items = vec![
            WatchItem::Snapshot { objects },
            WatchItem::Begin { lineage: state.lineage(), revision: state.revision() },
        ];
        rig.script();
        items.extend(rig.stream(&mut cursor, &even, include_old, max));
        rig.script();
        items.extend(rig.stream(&mut cursor, &even, include_old, max));
        let watched = Watched { include_old, ..watched(None, &items) };
        assert_eq!(check::all(&rig.history, &watched), Ok(()));
        assert_eq!(cursor.seen(), rig.store.revision());

        let mut resumed = rig.store.watch_from(Lineage(7), Revision(7)).unwrap();
        let second = rig.stream(&mut resumed, &even, include_old, max);
        assert_eq!(check::all(&rig.history, &Watched { from: Some(Revision(7)), items: &second, ..watched }), Ok(()));
    }
}

#[test]
fn a_resumed_stream_goes_on_where_the_first_ended() {
    let mut rig = Rig::new(1 << 20);
    let (_, mut cursor) = rig.store.view_and_watch();
    rig.script();
    let first = rig.stream(&mut cursor, &even, true, 2);
    rig.script();
    let from = rig.store.watch_from(cursor.lineage(), cursor.seen());
    let second = rig.stream(&mut from.unwrap(), &even, true, 2);
    let (a, b) = (watched(Some(0), &first), watched(Some(cursor.seen().0), &second));
    assert_eq!(check::resumable(&rig.history, &a, &b), Ok(()));
    assert!(check::resumable(&rig.history, &a, &Watched { from: Some(Revision(0)), ..b }).is_err());
    assert!(check::resumable(&rig.history, &a, &Watched { items: &second[1..], ..b }).is_err());
}

/// Breaks a good stream and expects exactly this promise to notice.
fn check_breach(promise: &str, break_it: impl FnOnce(&mut Vec<WatchItem>)) {
    let mut rig = Rig::new(1 << 20);
    rig.script();
    rig.script();
    let mut cursor = rig.store.watch_from(Lineage(7), Revision(0)).unwrap();
    let mut items = rig.stream(&mut cursor, &even, true, 100);
    assert_eq!(check::all(&rig.history, &watched(Some(0), &items)), Ok(()));
    break_it(&mut items);
    let found = check::CHECKS.iter().find(|(name, _)| *name == promise);
    let (_, check) = found.expect("the promise has a check");
    assert!(check(&rig.history, &watched(Some(0), &items)).is_err(), "{promise}: {items:?}");
}

fn events(item: &mut WatchItem) -> &mut Vec<WatchEvent> {
    match item {
        WatchItem::Change { events, .. } => events,
        other => panic!("{other:?} is no change"),
    }
}

#[test]
fn every_check_notices_a_breach() {
    check_breach("ordered", |items| items.swap(0, 1));
    check_breach("unique", |items| items.insert(1, items[0].clone()));
    check_breach("atomic", |items| events(&mut items[0]).clear());
    check_breach("atomic", |items| {
        let twice = events(&mut items[0])[0].clone();
        events(&mut items[0]).push(twice);
    });
    check_breach("reliable", |items| drop(items.remove(1)));
    check_breach("bookmarked", |items| items.insert(0, WatchItem::Mark { revision: Revision(2) }));
    check_breach("bookmarked", |items| items.push(WatchItem::Mark { revision: Revision(99) }));
    check_breach("old value", |items| {
        let update = items
            .iter_mut()
            .find(|item| matches!(item, WatchItem::Change { events, .. } if events[0].action == Action::Update));
        events(update.unwrap())[0].old = None;
    });
    check_breach("told apart", |items| events(&mut items[0])[0].action = Action::Update);
    check_breach("told apart", |items| *events(&mut items[0])[0].object.meta_mut() = Default::default());
    check_breach("filtered", |items| {
        let odd = WatchEvent { action: Action::Create, object: config(1, "c1"), old: None };
        events(&mut items[0]).push(odd);
    });
}

#[test]
fn a_cursor_that_fell_out_of_the_ring_is_told_so_and_never_skips() {
    let mut rig = Rig::new(4096);
    let (_, mut slow) = rig.store.view_and_watch();
    let mut oldest = None;
    for id in 1..=50_u128 {
        rig.run(vec![Operation::Create(config(id, &format!("c{id}")))]);
        match rig.store.poll(&mut slow.clone(), 1) {
            Ok(batches) => assert_eq!((oldest, batches[0].revision), (None, Revision(1))),
            Err(WatchError::TooOld { oldest: found }) => oldest = Some(found),
            Err(other) => panic!("{other}"),
        }
    }
    let oldest = oldest.expect("fifty configs do not fit 4 KiB");
    assert!(oldest > Revision(5) && oldest < Revision(49), "{oldest}");
    assert_eq!(rig.store.poll(&mut slow, 9).unwrap_err(), WatchError::TooOld { oldest });
    assert_eq!(rig.store.watch_from(Lineage(7), Revision(oldest.0 - 1)), Err(WatchError::TooOld { oldest }));
    let mut cursor = rig.store.watch_from(Lineage(7), oldest).unwrap();
    assert_eq!(rig.store.poll(&mut cursor, 1000).unwrap().len() as u64, 50 - oldest.0);
}

#[test]
fn a_change_larger_than_the_ring_still_reaches_its_watchers() {
    let mut rig = Rig::new(1);
    let (_, mut cursor) = rig.store.view_and_watch();
    for id in 1..=3_u128 {
        rig.run(vec![Operation::Create(config(id, &format!("c{id}")))]);
        assert_eq!(rig.store.poll(&mut cursor, 10).unwrap().len(), 1);
    }
}

#[test]
fn a_position_ahead_of_this_manager_waits_and_one_of_another_lineage_is_refused() {
    let mut rig = Rig::new(1 << 20);
    let mut ahead = rig.store.watch_from(Lineage(7), Revision(2)).unwrap();
    for id in 1..=4_u128 {
        assert!(id > 3 || rig.store.poll(&mut ahead, 9).unwrap().is_empty());
        rig.run(vec![Operation::Create(config(id, &format!("c{id}")))]);
    }
    let seen: Vec<_> = rig.store.poll(&mut ahead, 9).unwrap().iter().map(|batch| batch.revision.0).collect();
    assert_eq!(seen, [3, 4]);
    assert_eq!(rig.store.watch_from(Lineage(8), Revision(0)), Err(WatchError::OtherLineage));
}

#[test]
fn an_installed_snapshot_ends_the_watches_that_it_jumps_over() {
    let mut rig = Rig::new(1 << 20);
    let (_, mut behind) = rig.store.view_and_watch();
    rig.run(vec![Operation::Create(config(1, "c1"))]);
    let mut other = rig.store.snapshot();
    for id in 2..=5 {
        let index = other.applied().index.next();
        other.advance(Position { term: Term(1), index });
        let operations = vec![Operation::Create(config(id, &format!("c{id}")))];
        let change = Change { id: ChangeId(id), after: Revision(0), time: Timestamp(0), term: None, operations };
        other.apply_change(change, Term(1));
    }
    let mut at_the_snapshot = rig.store.watch_from(Lineage(7), Revision(5)).unwrap();
    rig.store.install(other);
    let oldest = Revision(5);
    assert_eq!((rig.store.revision(), rig.store.view(|state| state.count(Kind::Config))), (oldest, 5));
    assert_eq!(rig.store.poll(&mut behind, 9).unwrap_err(), WatchError::TooOld { oldest });
    assert_eq!(rig.store.watch_from(Lineage(7), Revision(4)), Err(WatchError::TooOld { oldest }));
    rig.changes = 5;
    rig.run(vec![Operation::Create(config(6, "c6"))]);
    assert_eq!(rig.store.poll(&mut at_the_snapshot, 9).unwrap()[0].revision, Revision(6));
}

#[test]
#[should_panic(expected = "is older than")]
fn a_snapshot_older_than_the_state_is_never_installed() {
    let rig = Rig::new(1 << 20);
    let old = rig.store.snapshot();
    rig.store.write(|state| {
        state.advance(Position { term: Term(1), index: Index(2) });
        ((), None)
    });
    rig.store.install(old);
}

#[test]
fn a_watch_begun_while_the_writer_writes_misses_nothing() {
    let mut rig = Rig::new(1 << 20);
    let (sender, started) = std::sync::mpsc::channel();
    let writer_is_done = std::sync::atomic::AtomicBool::new(false);
    let store = std::sync::Arc::new(std::mem::replace(&mut rig.store, Store::new(State::new(Lineage(0)), 0)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sender.send(()).unwrap();
            for id in 1..=2000_u128 {
                let operations = vec![Operation::Create(config(id, &format!("c{id}")))];
                let change =
                    Change { id: ChangeId(id), after: Revision(0), time: Timestamp(0), term: None, operations };
                store.write(|state| state.apply_change(change, Term(1)));
            }
            writer_is_done.store(true, std::sync::atomic::Ordering::Release);
        });
        started.recv().unwrap();
        loop {
            let last_round = writer_is_done.load(std::sync::atomic::Ordering::Acquire);
            let (state, mut cursor) = store.view_and_watch();
            assert_eq!(state.count(Kind::Config) as u64, state.revision().0);
            let mut seen = state.revision();
            for batch in store.poll(&mut cursor, 100).unwrap() {
                assert_eq!(batch.revision, seen.next());
                seen = batch.revision;
            }
            assert!(store.revision() >= seen);
            if last_round {
                assert_eq!(seen, Revision(2000));
                break;
            }
        }
    });
}
