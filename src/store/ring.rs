//! The ring of remembered changes: what makes a retried write happen at most once.
//!
//! It is replicated state. A record leaves in the order it came, when there are too many or their bytes are over budget,
//! and leaves a *horizon* behind: the newest revision at which a record was made that is no longer here.

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use serde::{Deserialize, Serialize};

use crate::codec::{digest128, envelope};
use crate::sys::faults::{Fault, planted};
use crate::types::limits::{MAX_REMEMBERED_BYTES, MAX_REMEMBERED_CHANGES};
use crate::types::{ChangeId, Outcome, Refusal, Revision};

/// Remembered changes, oldest first. A clone shares everything until one side writes.
#[derive(Clone)]
pub(super) struct Ring {
    by_id: OrdMap<ChangeId, Remembered>,
    order: Vector<ChangeId>,
    /// How many records have left: the number of the oldest one here.
    forgotten: u64,
    bytes: u64,
    horizons: Horizons,
    /// The wrapping sum of the records' digests.
    hash: u128,
    limits: Limits,
}

/// How much a ring holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub records: u64,
    pub bytes: u64,
}

impl Limits {
    pub const PRODUCT: Self = Self { records: MAX_REMEMBERED_CHANGES as u64, bytes: MAX_REMEMBERED_BYTES as u64 };
}

/// Where forgetting has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Horizons {
    /// The newest revision of the state at which a forgotten record was made.
    newest: Option<Revision>,
    /// The newest one before that.
    before: Option<Revision>,
}

/// A record as snapshots carry it and the state hash sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: ChangeId,
    /// The revision of the state that the change was judged against.
    pub at: Revision,
    pub outcome: Outcome,
}

/// A record without its id. Commits, nearly all of them, take 16 bytes.
#[derive(Clone)]
enum Remembered {
    /// At this revision, so judged against the one before.
    Committed(Revision),
    Refused(Arc<(Revision, Outcome)>),
}

impl Ring {
    pub fn new(limits: Limits) -> Self {
        Self {
            by_id: OrdMap::new(),
            order: Vector::new(),
            forgotten: 0,
            bytes: 0,
            horizons: Horizons::default(),
            hash: 0,
            limits,
        }
    }

    /// An empty ring that goes on where another one's records left; for decoding.
    pub fn resume(limits: Limits, forgotten: u64, horizons: Horizons) -> Self {
        Self { forgotten, horizons, ..Self::new(limits) }
    }

    pub fn get(&self, id: ChangeId) -> Option<Outcome> {
        self.by_id.get(&id).map(Remembered::outcome)
    }

    /// Whether a change made after `after` would be found here if it had been judged before.
    ///
    /// Not when a record made at `after` or later has left. One exception: records that left although they were made at
    /// the present revision are refusals (a commit would have moved it), judging them again gives the same answer, and
    /// without the exception a ring full of refusals would refuse every change for ever.
    pub fn covers(&self, after: Revision, revision: Revision) -> bool {
        self.horizon(revision).is_none_or(|horizon| after > horizon)
    }

    /// The newest revision that the ring does not cover.
    pub fn horizon(&self, revision: Revision) -> Option<Revision> {
        self.horizons.newest.filter(|newest| *newest < revision).or(self.horizons.before)
    }

    /// Remembers an outcome; forgets the oldest ones that no longer fit.
    pub fn push(&mut self, record: &Record) {
        debug_assert!(!self.by_id.contains_key(&record.id), "a change is judged once");
        let number = self.forgotten + self.order.len() as u64;
        self.hash = self.hash.wrapping_add(digest(number, record));
        let remembered = Remembered::new(record);
        self.bytes += remembered.bytes();
        self.by_id.insert(record.id, remembered);
        self.order.push_back(record.id);
        let most = if planted(Fault::ChangeForgottenEarly) { 8 } else { self.limits.records };
        while self.order.len() as u64 > most || self.bytes > self.limits.bytes {
            self.pop();
        }
    }

    /// The same records and horizons, in the same order, under other revisions. `renumber` keeps revisions in order.
    pub fn renumbered(&self, renumber: impl Fn(Revision) -> Revision) -> Self {
        let of_horizon = |at: Option<Revision>| at.map(&renumber);
        let Horizons { newest, before } = self.horizons;
        let horizons = Horizons { newest: of_horizon(newest), before: of_horizon(before) };
        let mut ring = Self::resume(self.limits, self.forgotten, horizons);
        for record in self.iter() {
            let at = match record.outcome {
                // Judged against the revision before its own, whatever that is called.
                Outcome::Committed(revision) => Revision(renumber(revision).0 - (revision.0 - record.at.0)),
                _ => renumber(record.at),
            };
            let outcome = match record.outcome {
                Outcome::Committed(revision) => Outcome::Committed(renumber(revision)),
                Outcome::Refused(Refusal::OutOfSequence { kind, id, found }) => {
                    Outcome::Refused(Refusal::OutOfSequence { kind, id, found: found.map(&renumber) })
                }
                other => other,
            };
            ring.push(&Record { id: record.id, at, outcome });
        }
        ring
    }

    fn pop(&mut self) {
        let Some(id) = self.order.pop_front() else { return };
        let remembered = self.by_id.remove(&id).expect("every id in the order has its record");
        let record = remembered.record(id);
        self.bytes -= remembered.bytes();
        self.hash = self.hash.wrapping_sub(digest(self.forgotten, &record));
        self.forgotten += 1;
        // Records are made at revisions that never fall, so they leave in that order too.
        if self.horizons.newest != Some(record.at) && !planted(Fault::ChangeForgottenEarly) {
            self.horizons = Horizons { newest: Some(record.at), before: self.horizons.newest };
        }
    }

    /// Every record, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Record> + '_ {
        self.order.iter().filter_map(|id| Some(self.by_id.get(id)?.record(*id)))
    }

    pub fn get_at(&self, place: u64) -> Option<Record> {
        let id = *self.order.get(usize::try_from(place).ok()?)?;
        Some(self.by_id.get(&id)?.record(id))
    }

    /// The digest of the record at this place; zero where the order names a record that is not there.
    pub fn digest_at(&self, place: u64) -> u128 {
        self.get_at(place).map_or(0, |record| digest(self.forgotten + place, &record))
    }

    /// Changes a record behind the sum's back.
    #[cfg(test)]
    pub fn rot(&mut self, id: ChangeId) {
        self.by_id.insert(id, Remembered::Committed(Revision(1 << 40)));
    }

    pub fn len(&self) -> u64 {
        self.order.len() as u64
    }

    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub fn horizons(&self) -> Horizons {
        self.horizons
    }

    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// The hash from the records themselves.
    pub fn recompute_hash(&self) -> u128 {
        (self.forgotten..)
            .zip(self.iter())
            .fold(0, |sum: u128, (number, record)| sum.wrapping_add(digest(number, &record)))
    }
}

/// The digest of one record; its number makes the order part of the sum.
pub(super) fn digest(number: u64, record: &Record) -> u128 {
    digest128(&[b"change", &number.to_le_bytes(), &envelope::encode(record)])
}

impl Remembered {
    fn new(record: &Record) -> Self {
        match record.outcome {
            Outcome::Committed(revision) if revision.0.checked_sub(1) == Some(record.at.0) => Self::Committed(revision),
            _ => Self::Refused(Arc::new((record.at, record.outcome.clone()))),
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Committed(revision) => Outcome::Committed(*revision),
            Self::Refused(refused) => refused.1.clone(),
        }
    }

    fn record(&self, id: ChangeId) -> Record {
        match self {
            Self::Committed(revision) => {
                Record { id, at: Revision(revision.0 - 1), outcome: Outcome::Committed(*revision) }
            }
            Self::Refused(refused) => Record { id, at: refused.0, outcome: refused.1.clone() },
        }
    }

    /// What a record counts for: id and content in the maps, rounded. Part of the replicated rule of what is forgotten,
    /// so it must never change.
    fn bytes(&self) -> u64 {
        match self {
            Self::Committed(_) => 32,
            Self::Refused(_) => 128,
        }
    }
}
