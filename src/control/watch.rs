//! A watch between two parts: what remains of its snapshot, and its place in the store's ring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::codec::envelope;
use crate::net::requests::Pull;
use crate::store::{Cursor, Event, EventBatch, Search, State, Store, WatchError};
use crate::sys::heavy::Heavy;
use crate::sys::time::Instant;
use crate::types::api::{Filter, WatchEvent, WatchItem, WatchRequest};
use crate::types::error::{Code, Status};
use crate::types::{Kind, Object, ObjectId, Revision, Selector};

use super::{filter, query, redact};

/// A part of a snapshot ends when it holds this many bytes: well below the window of a stream, so that a reader that
/// takes its time still sees progress.
const SNAPSHOT_PART_BYTES: usize = 64 << 10;
/// Parts of a snapshot that are looked for as long as one page of a list.
const PARTS_A_PAGE: usize = 10;
/// Changes taken from the ring at once.
const POLL: usize = 64;
/// So often in one pull.
const POLLS: usize = 4;
/// Changes, events of one and values of a filter that are compared while the writer waits, each at most so many.
const QUICK: usize = 16;
/// A position is marked at most so often.
const MARK_EVERY: Duration = Duration::from_millis(500);

/// A watch.
///
/// It sees a change as a whole or not at all, in order, each once. A watcher with a filter is told of an update when the
/// object matches after it or matched before it, so that it learns that an object left the filter.
#[derive(Debug)]
pub struct Watch {
    request: WatchRequest,
    cursor: Cursor,
    /// In a box: most watches are done with it soon.
    snapshot: Option<Box<Snapshot>>,
    /// Where the events begin; told once the snapshot is complete.
    begin: Option<Revision>,
    /// Taken from the ring, not yet sent. Shared with the ring and the other watchers.
    taken: VecDeque<Arc<EventBatch>>,
    /// Everything up to here was sent or does not match.
    reached: Revision,
    /// The last position that the watcher was told by a mark (or by the beginning), and when.
    marked: (Revision, Option<Instant>),
}

/// What remains of a snapshot.
#[derive(Debug)]
struct Snapshot {
    state: Heavy<State>,
    /// Kinds that are not done, last one first.
    kinds: Vec<Kind>,
    /// How the objects of the last of them are found; made once, for many parts.
    search: Option<Search>,
    /// The first id of them that was not looked at.
    from: ObjectId,
}

/// What was found of one kind.
#[derive(Debug)]
struct Found {
    objects: Vec<Object>,
    looked_at: usize,
    /// Where to go on; `None` when this is all.
    next: Option<ObjectId>,
}

impl Snapshot {
    fn of(state: State, kinds: &[Kind]) -> Self {
        let wanted = |kind: &Kind| kinds.is_empty() || kinds.contains(kind);
        let kinds = Kind::ALL.into_iter().rev().filter(wanted).collect();
        let takes_long = state.is_large();
        Self { state: Heavy::new(state, takes_long), kinds, search: None, from: ObjectId(0) }
    }

    /// The next objects of the present kind, of so many that are looked at.
    fn look(&mut self, kind: Kind, wanted: &Filter, looks: usize) -> Found {
        let Self { state, search, from, .. } = self;
        let mut found = Found { objects: Vec::new(), looked_at: 0, next: None };
        if search.is_none() {
            let selectors = filter::selectors(wanted);
            *search = Some(state.search(kind, &selectors, *from));
            if !matches!(selectors[..], [Selector::All | Selector::IdPrefix(_)]) && state.count(kind) > looks {
                // Finding the way takes as long as a few looks for each object on it.
                return Found { looked_at: looks, next: Some(*from), ..found };
            }
        }
        let search = search.as_ref().expect("it was made if there was none");
        let mut bytes = 0;
        for stored in state.candidates(kind, search, *from) {
            if bytes >= SNAPSHOT_PART_BYTES || found.looked_at >= looks {
                found.next = Some(stored.object.id());
                break;
            }
            found.looked_at += 1;
            if shows(wanted, &stored.object) {
                bytes += query::visible_bytes(stored);
                found.objects.push(redact::redact(&stored.object));
            }
        }
        found
    }

    /// Goes on there, or to the next kind.
    fn go_on(&mut self, next: Option<ObjectId>) {
        self.from = next.unwrap_or(ObjectId(0));
        if next.is_none() {
            self.kinds.pop();
            self.search = None;
        }
    }
}

impl Watch {
    /// Begins as the request says.
    pub fn begin(store: &Store, request: WatchRequest) -> Result<Self, Status> {
        filter::check_size(&request.filter)?;
        let resources = request.kinds.is_empty() || request.kinds.contains(&Kind::Resource);
        if !resources && let Some(kind) = request.kinds.first() {
            filter::check(*kind, &request.filter)?;
        }
        let (cursor, snapshot) = match request.from {
            Some((lineage, revision)) => {
                let cursor = store.watch_from(lineage, revision).map_err(|error| over(&error, Some(revision)))?;
                (cursor, None)
            }
            None => {
                let (state, cursor) = store.view_and_watch();
                let snapshot = (!request.skip_snapshot).then(|| Box::new(Snapshot::of(state, &request.kinds)));
                (cursor, snapshot)
            }
        };
        let at = cursor.seen();
        Ok(Self { request, cursor, snapshot, begin: Some(at), taken: VecDeque::new(), reached: at, marked: (at, None) })
    }

    /// Whether a snapshot, and with it the state of the beginning, has still to be sent.
    pub const fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// The store has moved: whether a pull may find something. What the watcher does not want is passed here, and a mark
    /// tells of it when it is due.
    pub fn has_news(&mut self, store: &Store) -> bool {
        let filter = &self.request.filter;
        // The writer waits meanwhile. A pull compares as much as it likes.
        let is_quick = filter::values(filter) <= QUICK && filter.id_prefixes.is_empty();
        if self.has_snapshot() {
            // Where the next part does not fit, only the receiver can help.
            return false;
        }
        if self.begin.is_some() || !self.taken.is_empty() || !is_quick {
            return true;
        }
        let request = &self.request;
        let wants =
            |batch: &EventBatch| batch.events.len() > QUICK || batch.events.iter().any(|event| wants(request, event));
        let found = store.pass(&mut self.cursor, QUICK, wants);
        self.reached = self.cursor.seen();
        // An error is told by the pull.
        found.unwrap_or(true)
    }

    /// The next part, of at most `room` bytes.
    pub fn pull(&mut self, store: &Store, now: Instant, room: usize) -> Pull {
        if let Some(part) = self.snapshot_part(room) {
            return part;
        }
        if let Some(revision) = self.begin {
            let begin = envelope::encode(&WatchItem::Begin { lineage: self.cursor.lineage(), revision });
            if begin.len() > room {
                return Pull::Full;
            }
            self.begin = None;
            return Pull::Part(begin.into());
        }
        for _ in 0..POLLS {
            if let Some(part) = self.next_change(room) {
                return part;
            }
            match store.poll(&mut self.cursor, POLL) {
                Ok(batches) if batches.is_empty() => return self.mark(now, room),
                Ok(batches) => self.taken.extend(batches),
                Err(error) => return Pull::End(over(&error, Some(self.reached))),
            }
        }
        Pull::Searching
    }

    /// `None` once there is nothing left of the snapshot.
    fn snapshot_part(&mut self, room: usize) -> Option<Pull> {
        let snapshot = self.snapshot.as_mut()?;
        let wanted = &self.request.filter;
        let mut looks = query::looks(wanted).div_ceil(PARTS_A_PAGE);
        while let Some(kind) = snapshot.kinds.last().copied() {
            let Found { objects, looked_at, next } = snapshot.look(kind, wanted, looks);
            if !objects.is_empty() {
                let part = envelope::encode(&WatchItem::Snapshot { objects });
                if part.len() > room {
                    return Some(Pull::Full);
                }
                snapshot.go_on(next);
                return Some(Pull::Part(part.into()));
            }
            snapshot.go_on(next);
            looks -= looked_at;
            if looks == 0 {
                return Some(Pull::Searching);
            }
        }
        self.snapshot = None;
        None
    }

    fn next_change(&mut self, room: usize) -> Option<Pull> {
        while let Some(batch) = self.taken.front() {
            if let Some(part) = self.encode(batch) {
                if part.len() > room {
                    return Some(Pull::Full);
                }
                self.reached = batch.revision;
                self.taken.pop_front();
                return Some(Pull::Part(part));
            }
            self.reached = batch.revision;
            self.taken.pop_front();
        }
        None
    }

    /// The item for a change; `None` when nothing of it matches.
    fn encode(&self, batch: &EventBatch) -> Option<Bytes> {
        let matching = batch.events.iter().filter(|event| wants(&self.request, event)).count();
        if matching == 0 {
            return None;
        }
        let encode = || -> Bytes {
            let wanted = batch.events.iter().filter(|event| wants(&self.request, event));
            let events = wanted.map(|event| self.event(event)).collect();
            envelope::encode(&WatchItem::Change { revision: batch.revision, events }).into()
        };
        if matching == batch.events.len() && !self.request.include_old {
            // The one encoding that all share who get all of it, with whatever filter.
            return Some(Bytes::clone(batch.encoded.get_or_init(|| Box::new(encode()))));
        }
        Some(encode())
    }

    fn event(&self, event: &Event) -> WatchEvent {
        let old = event.old.as_ref().filter(|_| self.request.include_old).map(|old| redact::redact(&old.object));
        WatchEvent { action: event.action, object: redact::redact(&event.object.object), old }
    }

    /// Nothing is left to send: tells how far that is, unless it was told a moment ago.
    fn mark(&mut self, now: Instant, room: usize) -> Pull {
        let (told, at) = self.marked;
        if self.reached == told {
            return Pull::Idle(None);
        }
        if let Some(due) = at.map(|at| at + MARK_EVERY).filter(|due| *due > now) {
            return Pull::Idle(Some(due));
        }
        let mark = envelope::encode(&WatchItem::Mark { revision: self.reached });
        if mark.len() > room {
            return Pull::Full;
        }
        self.marked = (self.reached, Some(now));
        Pull::Part(mark.into())
    }
}

fn wants(request: &WatchRequest, event: &Event) -> bool {
    let object = &event.object.object;
    if !request.kinds.is_empty() && !request.kinds.contains(&object.kind()) {
        return false;
    }
    let filter = &request.filter;
    shows(filter, object) || event.old.as_ref().is_some_and(|old| shows(filter, &old.object))
}

fn shows(wanted: &Filter, object: &Object) -> bool {
    !redact::is_internal(object) && filter::matches(wanted, object)
}

fn over(error: &WatchError, from: Option<Revision>) -> Status {
    let message = match (error, from) {
        (WatchError::TooOld { oldest }, Some(from)) => {
            format!("the events after revision {from} are no longer kept here; the oldest position kept is {oldest}")
        }
        _ => error.to_string(),
    };
    Status::new(Code::OutOfRange, message).with_hint("watch again without `--from`: it begins with a new snapshot")
}
