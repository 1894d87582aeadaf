//! The nine promises of a watch, each a check of what a watcher really got against what really happened.
//!
//! For tests and the simulator, whatever the stream came through: the ring itself, a connection, a reconnection to
//! another manager. [`History`] records what happened, [`Watched`] is what was asked for and what came; [`all`] runs every
//! check.
//!
//! 1. *ordered*: revisions rise; 2. *unique*: no change comes twice; 3. *atomic*: a change comes whole, its events in the
//!    order of its operations; 4. *reliable*: no change is missing; 5. *resumable*: two streams, the second resumed where
//!    the first ended, are one; 6. *bookmarked*: a mark comes only after everything up to it; 7. *old value*: an update
//!    carries what it replaced, if that was asked for; 8. *told apart*: a create is of what was not there, an update and a
//!    removal of what was; 9. *filtered*: nothing comes that was not asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, EventBatch};
use crate::store::State;
use crate::types::api::{Action, WatchEvent, WatchItem};
use crate::types::{Kind, Object, ObjectId, Revision};

/// What really happened: a state and every change since.
#[derive(Clone, Debug)]
pub struct History {
    start: Revision,
    objects: Objects,
    changes: BTreeMap<Revision, Vec<WatchEvent>>,
}

type Objects = BTreeMap<(Kind, ObjectId), Object>;

/// What a watcher asked for and what it got.
#[derive(Clone, Copy)]
pub struct Watched<'a> {
    /// The revision it resumed after; `None` when it began with a snapshot.
    pub from: Option<Revision>,
    /// Whether it wants events of this object: as it is after a change, or was before its removal.
    pub wants: &'a dyn Fn(&Object) -> bool,
    /// How the service shows an object: what redaction leaves of it.
    pub shows: &'a dyn Fn(&Object) -> Object,
    /// Whether it asked for what updates replaced.
    pub include_old: bool,
    /// What came, in order.
    pub items: &'a [WatchItem],
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a watch is not {promise} at revision {revision}: {detail}")]
pub struct Violation {
    /// Which promise.
    pub promise: &'static str,
    /// Where in the stream.
    pub revision: Revision,
    /// What was found.
    pub detail: String,
}

/// The name and the function of every check of one stream.
#[allow(clippy::type_complexity, reason = "an alias would be read once")]
pub const CHECKS: [(&str, fn(&History, &Watched<'_>) -> Result<(), Violation>); 8] = [
    ("ordered", ordered),
    ("unique", unique),
    ("atomic", atomic),
    ("reliable", reliable),
    ("bookmarked", bookmarked),
    ("old value", old_value),
    ("told apart", told_apart),
    ("filtered", filtered),
];

/// Every check of one stream; [`resumable`] takes two.
pub fn all(history: &History, watched: &Watched<'_>) -> Result<(), Violation> {
    CHECKS.iter().try_for_each(|(_, check)| check(history, watched))
}

impl History {
    /// Begins with `state`.
    pub fn new(state: &State) -> Self {
        let objects = Kind::ALL.into_iter().flat_map(|kind| state.iter(kind));
        let objects = objects.map(|stored| ((stored.object.kind(), stored.object.id()), stored.object.clone()));
        Self { start: state.revision(), objects: objects.collect(), changes: BTreeMap::new() }
    }

    /// A change was committed. One that is known already, as from another replica, must be the same.
    pub fn record(&mut self, batch: &EventBatch) {
        let events: Vec<WatchEvent> = batch.events.iter().map(Event::to_watch_event).collect();
        let known = self.changes.entry(batch.revision).or_insert_with(|| events.clone());
        assert_eq!(*known, events, "two replicas disagree about revision {}", batch.revision);
    }

    /// The last revision recorded.
    pub fn revision(&self) -> Revision {
        self.changes.last_key_value().map_or(self.start, |(revision, _)| *revision)
    }

    /// The objects as of a revision.
    fn objects_at(&self, revision: Revision) -> Objects {
        let mut objects = self.objects.clone();
        for event in self.changes.range(..=revision).flat_map(|(_, events)| events) {
            replay(&mut objects, event);
        }
        objects
    }

    /// The changes after one revision and up to another that `watched` wants something of, as it should see them.
    fn expected(&self, watched: &Watched<'_>, after: Revision, until: Revision) -> Vec<(Revision, Vec<WatchEvent>)> {
        if after >= until {
            return Vec::new();
        }
        let range = self.changes.range(after.next()..=until);
        let seen = range.map(|(revision, events)| (*revision, watched.sees(events)));
        seen.filter(|(_, events)| !events.is_empty()).collect()
    }
}

impl Watched<'_> {
    fn sees(&self, events: &[WatchEvent]) -> Vec<WatchEvent> {
        let wanted = events.iter().filter(|event| (self.wants)(&event.object));
        let shown = wanted.map(|event| WatchEvent {
            action: event.action,
            object: (self.shows)(&event.object),
            old: event.old.as_ref().filter(|_| self.include_old).map(self.shows),
        });
        shown.collect()
    }

    /// The revision before the first event.
    fn start(&self) -> Option<Revision> {
        self.from.or_else(|| {
            self.items.iter().find_map(|item| match item {
                WatchItem::Begin { revision, .. } => Some(*revision),
                _ => None,
            })
        })
    }

    fn changes(&self) -> impl Iterator<Item = (Revision, &[WatchEvent])> {
        self.items.iter().filter_map(|item| match item {
            WatchItem::Change { revision, events } => Some((*revision, events.as_slice())),
            _ => None,
        })
    }

    /// The revision up to which the watcher was told that it has everything.
    fn reached(&self) -> Option<Revision> {
        let told = self.items.iter().filter_map(|item| match item {
            WatchItem::Change { revision, .. } | WatchItem::Mark { revision } => Some(*revision),
            _ => None,
        });
        told.max().or_else(|| self.start())
    }
}

impl Event {
    /// The event with everything in it, as a service sends it before redaction.
    pub fn to_watch_event(&self) -> WatchEvent {
        WatchEvent {
            action: self.action,
            object: self.object.object.clone(),
            old: self.old.as_ref().map(|old| old.object.clone()),
        }
    }
}

/// Changes come in order of revision, after the snapshot, and the snapshot's objects in order of kind and id.
pub fn ordered(_: &History, watched: &Watched<'_>) -> Result<(), Violation> {
    let broken = |revision, detail: &str| Err(violation("ordered", revision, detail));
    let mut last = watched.from;
    let mut last_object = None;
    for item in watched.items {
        match item {
            WatchItem::Snapshot { objects } => {
                if last.is_some() {
                    return broken(last.unwrap_or_default(), "an object of the snapshot follows its end");
                }
                for place in objects.iter().map(|object| (object.kind(), object.id())) {
                    if last_object.replace(place).is_some_and(|before| before >= place) {
                        return broken(Revision(0), "the snapshot is not in order of kind and id");
                    }
                }
            }
            WatchItem::Begin { revision, .. } => {
                if last.replace(*revision).is_some() {
                    return broken(*revision, "it begins twice");
                }
            }
            WatchItem::Change { revision, .. } | WatchItem::Mark { revision } => {
                if last.is_none_or(|last| *revision < last) {
                    return broken(*revision, "a revision falls, or comes before the stream's beginning");
                }
                last = Some(*revision);
            }
        }
    }
    Ok(())
}

/// No change comes twice, and none that the beginning included.
pub fn unique(_: &History, watched: &Watched<'_>) -> Result<(), Violation> {
    let mut last = watched.start();
    for (revision, _) in watched.changes() {
        if last.is_some_and(|last| revision <= last) {
            return Err(violation("unique", revision, "the change came before"));
        }
        last = Some(revision);
    }
    Ok(())
}

/// A change comes whole and by itself, its events in the order of its operations.
pub fn atomic(history: &History, watched: &Watched<'_>) -> Result<(), Violation> {
    for (revision, events) in watched.changes() {
        let happened = history.changes.get(&revision).map_or(&[][..], Vec::as_slice);
        let expected = watched.sees(happened);
        let place = |event: &WatchEvent| (event.action, event.object.kind(), event.object.id(), *event.object.meta());
        if events.is_empty() || !events.iter().map(place).eq(expected.iter().map(place)) {
            let detail = format!("{} events came, {} belong to it", events.len(), expected.len());
            return Err(violation("atomic", revision, &detail));
        }
    }
    Ok(())
}

/// Nothing is missing between the beginning and the last revision that the watcher was told of, and the snapshot is
/// whole.
pub fn reliable(history: &History, watched: &Watched<'_>) -> Result<(), Violation> {
    let (Some(start), Some(reached)) = (watched.start(), watched.reached()) else { return Ok(()) };
    let came: BTreeSet<Revision> = watched.changes().map(|(revision, _)| revision).collect();
    for (revision, _) in history.expected(watched, start, reached) {
        if !came.contains(&revision) {
            return Err(violation("reliable", revision, "the change never came"));
        }
    }
    let snapshot: Vec<&Object> = watched
        .items
        .iter()
        .filter_map(|item| match item {
            WatchItem::Snapshot { objects } => Some(objects),
            _ => None,
        })
        .flatten()
        .collect();
    // Without any object the watcher may have asked for no snapshot.
    if watched.from.is_none() && !snapshot.is_empty() {
        let objects = history.objects_at(start);
        let expected: Vec<Object> = objects.values().filter(|o| (watched.wants)(o)).map(watched.shows).collect();
        if !snapshot.into_iter().eq(&expected) {
            return Err(violation("reliable", start, "the snapshot is not the state at its revision"));
        }
    }
    Ok(())
}

/// `second` resumed after the last revision that `first` was told of: together they are one unbroken stream.
pub fn resumable(history: &History, first: &Watched<'_>, second: &Watched<'_>) -> Result<(), Violation> {
    let Some(reached) = first.reached() else { return Ok(()) };
    if second.from != Some(reached) {
        let detail = format!("the second stream resumes after {:?}", second.from);
        return Err(violation("resumable", reached, &detail));
    }
    let items: Vec<WatchItem> = first.items.iter().chain(second.items).cloned().collect();
    let whole = Watched { items: &items, ..*first };
    all(history, &whole).map_err(|broken| Violation { promise: "resumable", ..broken })
}

/// When a mark comes, everything up to it has come, and nothing up to it follows.
pub fn bookmarked(history: &History, watched: &Watched<'_>) -> Result<(), Violation> {
    let Some(start) = watched.start() else { return Ok(()) };
    let mut marked = start;
    let mut came = 0;
    for item in watched.items {
        match item {
            WatchItem::Change { revision, .. } if *revision <= marked => {
                return Err(violation("bookmarked", *revision, "a change follows a mark that included it"));
            }
            WatchItem::Change { .. } => came += 1,
            WatchItem::Mark { revision } => {
                let expected = history.expected(watched, marked, *revision).len();
                if came != expected || *revision > history.revision().max(start) {
                    let detail = format!("{came} changes came before the mark, and {expected} happened");
                    return Err(violation("bookmarked", *revision, &detail));
                }
                marked = *revision;
                came = 0;
            }
            WatchItem::Snapshot { .. } | WatchItem::Begin { .. } => {}
        }
    }
    Ok(())
}

/// An update carries what it replaced if the watcher asked for that; nothing else carries an old object.
pub fn old_value(history: &History, watched: &Watched<'_>) -> Result<(), Violation> {
    for (revision, events) in watched.changes() {
        let happened = history.changes.get(&revision).map_or(&[][..], Vec::as_slice);
        let expected = watched.sees(happened);
        if !events.iter().map(|event| &event.old).eq(expected.iter().map(|event| &event.old)) {
            return Err(violation("true to old values", revision, "an old object is missing, wrong or unasked for"));
        }
    }
    Ok(())
}

/// A create is of an object that was not there; an update or a removal is of one that was; each shows it as it was.
pub fn told_apart(history: &History, watched: &Watched<'_>) -> Result<(), Violation> {
    let promise = "clear about what happened";
    let came: BTreeMap<Revision, &[WatchEvent]> = watched.changes().collect();
    let mut there: BTreeSet<(Kind, ObjectId)> = history.objects.keys().copied().collect();
    for (revision, happened) in &history.changes {
        let mut events = came.get(revision).copied().unwrap_or_default().iter().peekable();
        for real in happened {
            let place = (real.object.kind(), real.object.id());
            if let Some(event) = events.next_if(|event| (event.object.kind(), event.object.id()) == place) {
                let existed = there.contains(&place);
                if existed != (event.action != Action::Create) || event.object != (watched.shows)(&real.object) {
                    let detail = format!("{:?} of {} {}", event.action, place.0, place.1);
                    return Err(violation(promise, *revision, &detail));
                }
            }
            if real.action == Action::Remove {
                there.remove(&place);
            } else {
                there.insert(place);
            }
        }
        if events.next().is_some() {
            return Err(violation(promise, *revision, "an event of something that did not happen"));
        }
    }
    Ok(())
}

/// Everything that came was asked for.
pub fn filtered(history: &History, watched: &Watched<'_>) -> Result<(), Violation> {
    for (revision, events) in watched.changes() {
        let happened = history.changes.get(&revision).map_or(&[][..], Vec::as_slice);
        for event in events {
            // What came may be redacted, so that the filter is put to the object as it was.
            let place = (event.object.kind(), event.object.id());
            let wanted =
                |real: &&WatchEvent| (real.object.kind(), real.object.id()) == place && (watched.wants)(&real.object);
            if !happened.iter().any(|real| wanted(&real)) {
                return Err(violation("filtered", revision, &format!("{} {} was not asked for", place.0, place.1)));
            }
        }
    }
    Ok(())
}

fn replay(objects: &mut Objects, event: &WatchEvent) {
    let place = (event.object.kind(), event.object.id());
    match event.action {
        Action::Create | Action::Update => objects.insert(place, event.object.clone()),
        Action::Remove => objects.remove(&place),
    };
}

fn violation(promise: &'static str, revision: Revision, detail: &str) -> Violation {
    Violation { promise, revision, detail: detail.to_owned() }
}
