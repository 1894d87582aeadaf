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
    order: Vector<Remembered>,
    /// The places of the records, by some bits of their ids. Those are nearly always different.
    places: OrdMap<Bits, Place>,
    /// The places of the records that came when another one had taken their bits: a handful.
    more_places: OrdMap<ChangeId, Place>,
    /// The refusals among the records, by their places: they are few, and larger than what was committed.
    refused: OrdMap<Place, Arc<(Revision, Outcome)>>,
    /// How many records have left: the number of the oldest one here.
    forgotten: u64,
    bytes: u64,
    horizons: Horizons,
    /// The wrapping sum of the records' digests, of those before [`Self::deferred`].
    hash: u128,
    /// During a replay the number of the first record whose digest is not in the sum yet: most leave before anyone asks.
    deferred: Option<u64>,
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

/// A record in 24 bytes.
#[derive(Clone, Copy)]
struct Remembered {
    id: [u64; 2],
    /// The revision that it was committed at, so that it was judged against the one before; zero for one that is among
    /// the refused.
    committed: Revision,
}

/// Of a change's id that is [ordered](ChangeId::ordered) the last twelve bits of its time, which make four seconds, and the
/// first twenty random ones: ids that are made within a moment are neighbours, and a full ring has a few that share theirs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Bits(u32);

impl Bits {
    const fn of(id: ChangeId) -> Self {
        Self((id.0 >> 60) as u32)
    }
}

/// The number of a record, as far as 32 bits hold it: of those that are here at a time no two have the same.
type Place = u32;

const REFUSED: &str = "what was not committed was refused";

impl Ring {
    pub fn new(limits: Limits) -> Self {
        Self {
            order: Vector::new(),
            places: OrdMap::new(),
            more_places: OrdMap::new(),
            refused: OrdMap::new(),
            forgotten: 0,
            bytes: 0,
            horizons: Horizons::default(),
            hash: 0,
            deferred: None,
            limits,
        }
    }

    /// An empty ring that goes on where another one's records left; for decoding.
    pub fn resume(limits: Limits, forgotten: u64, horizons: Horizons) -> Self {
        Self { forgotten, horizons, ..Self::new(limits) }
    }

    pub fn get(&self, id: ChangeId) -> Option<Outcome> {
        self.find(id).map(|(place, remembered)| self.unpack(place, remembered).expect(REFUSED).outcome)
    }

    fn find(&self, id: ChangeId) -> Option<(Place, Remembered)> {
        let at = |place: &Place| Some((*place, *self.order.get(self.position(*place))?));
        let same_bits = self.places.get(&Bits::of(id)).and_then(at);
        same_bits.filter(|(_, found)| found.id() == id).or_else(|| self.more_places.get(&id).and_then(at))
    }

    /// Where in the order a record stands.
    const fn position(&self, place: Place) -> usize {
        place.wrapping_sub(self.forgotten as Place) as usize
    }

    /// The place of what stands there in the order.
    const fn place(&self, position: u64) -> Place {
        (self.forgotten + position) as Place
    }

    /// `None` for a refused one that is not among the refused, which only memory that rots makes.
    fn unpack(&self, place: Place, remembered: Remembered) -> Option<Record> {
        let (at, outcome) = match remembered.committed {
            Revision(0) => (**self.refused.get(&place)?).clone(),
            revision => (Revision(revision.0 - 1), Outcome::Committed(revision)),
        };
        Some(Record { id: remembered.id(), at, outcome })
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

    /// Remembers the outcome of a change that is not remembered yet.
    pub fn push(&mut self, record: &Record) {
        let claimed = self.claim(record.id);
        debug_assert!(claimed.is_ok(), "a change is judged once");
        self.record(record);
    }

    /// Reserves the place of the next record for a change, or gives the outcome of one that is remembered. One way down the
    /// tree for both: [`Self::record`] or [`Self::release`] follows.
    pub fn claim(&mut self, id: ChangeId) -> Result<(), Outcome> {
        let (bits, place) = (Bits::of(id), self.place(self.len()));
        if let Some(other) = self.places.insert(bits, place) {
            self.places.insert(bits, other);
            return match self.get(id) {
                Some(outcome) => Err(outcome),
                None => {
                    self.more_places.insert(id, place);
                    Ok(())
                }
            };
        }
        if self.more_places.contains_key(&id) {
            // It came when its bits were taken, by one that has left.
            self.places.remove(&bits);
            return Err(self.get(id).expect("its place is there"));
        }
        Ok(())
    }

    /// Gives up the place that is reserved.
    pub fn release(&mut self, id: ChangeId) {
        // It is in one of the two. One that came when its bits were taken stays where it is when that one leaves first, and
        // the bits go to the next that comes.
        if self.more_places.remove(&id).is_none() {
            self.places.remove(&Bits::of(id));
        }
    }

    /// Remembers an outcome in the place that is reserved; forgets the oldest ones that no longer fit.
    pub fn record(&mut self, record: &Record) {
        let number = self.forgotten + self.len();
        if self.deferred.is_none() {
            self.hash = self.hash.wrapping_add(digest(number, record));
        }
        let (place, remembered) = (self.place(self.len()), Remembered::new(record));
        if remembered.committed == Revision(0) {
            self.refused.insert(place, Arc::new((record.at, record.outcome.clone())));
        }
        self.bytes += remembered.bytes();
        self.order.push_back(remembered);
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
        let Some(remembered) = self.order.pop_front() else { return };
        let place = self.place(0);
        let record = self.unpack(place, remembered).expect(REFUSED);
        self.release(record.id);
        self.refused.remove(&place);
        self.bytes -= remembered.bytes();
        if self.deferred.is_none_or(|first| self.forgotten < first) {
            self.hash = self.hash.wrapping_sub(digest(self.forgotten, &record));
        }
        self.forgotten += 1;
        // Records are made at revisions that never fall, so they leave in that order too.
        if self.horizons.newest != Some(record.at) && !planted(Fault::ChangeForgottenEarly) {
            self.horizons = Horizons { newest: Some(record.at), before: self.horizons.newest };
        }
    }

    /// Every record, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Record> + '_ {
        (0..).zip(&self.order).filter_map(|(position, remembered)| self.unpack(self.place(position), *remembered))
    }

    pub fn get_at(&self, position: u64) -> Option<Record> {
        let remembered = *self.order.get(usize::try_from(position).ok()?)?;
        self.unpack(self.place(position), remembered)
    }

    /// The digest of the record that stands there in the order; zero where there is none that its id leads to.
    pub fn digest_at(&self, position: u64) -> u128 {
        let is_found = |record: &Record| self.find(record.id).is_some_and(|(place, _)| place == self.place(position));
        self.get_at(position).filter(is_found).map_or(0, |record| digest(self.forgotten + position, &record))
    }

    /// Changes a record behind the sum's back.
    #[cfg(test)]
    pub fn rot(&mut self, id: ChangeId) {
        let (place, remembered) = self.find(id).expect("a test rots what is there");
        self.order.set(self.position(place), Remembered { committed: Revision(1 << 40), ..remembered });
    }

    /// Makes a commit of the record look like a refusal.
    #[cfg(test)]
    pub fn rot_outcome(&mut self, id: ChangeId) {
        let (place, remembered) = self.find(id).expect("a test rots what is there");
        self.order.set(self.position(place), Remembered { committed: Revision(0), ..remembered });
    }

    /// Loses what leads to a record.
    #[cfg(test)]
    pub fn rot_place(&mut self, id: ChangeId) {
        self.places.remove(&Bits::of(id));
        self.more_places.remove(&id);
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

    /// # Panics
    ///
    /// When digests are deferred.
    pub fn hash(&self) -> u128 {
        assert!(self.deferred.is_none(), "a replay asks for no sum before it settles");
        self.hash
    }

    /// From here to the next [`Self::settle`] the sum is not kept up.
    pub fn defer(&mut self) {
        self.deferred.get_or_insert(self.forgotten + self.len());
    }

    /// Brings the sum up to date.
    pub fn settle(&mut self) {
        let Some(first) = self.deferred.take() else { return };
        let skipped = first.saturating_sub(self.forgotten) as usize;
        let missing = (self.forgotten..).zip(self.iter()).skip(skipped);
        let sum = missing.fold(0, |sum: u128, (number, record)| sum.wrapping_add(digest(number, &record)));
        self.hash = self.hash.wrapping_add(sum);
    }

    /// Whether the sum is not kept up.
    pub fn is_deferred(&self) -> bool {
        self.deferred.is_some()
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
        let committed = match record.outcome {
            Outcome::Committed(revision) if revision.0.checked_sub(1) == Some(record.at.0) => revision,
            _ => Revision(0),
        };
        Self { id: [(record.id.0 >> 64) as u64, record.id.0 as u64], committed }
    }

    fn id(self) -> ChangeId {
        ChangeId(u128::from(self.id[0]) << 64 | u128::from(self.id[1]))
    }

    /// What a record counts for: id and content in the maps, rounded. Part of the replicated rule of what is forgotten,
    /// so it must never change.
    const fn bytes(self) -> u64 {
        if self.committed.0 == 0 { 128 } else { 32 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::sys::entropy::{Entropy as _, SeededEntropy};

    /// That the ring holds these records, finds each, and keeps nothing of others.
    fn check(ring: &Ring, expected: &VecDeque<Record>) {
        assert!(ring.iter().eq(expected.iter().cloned()));
        assert_eq!(ring.places.len() + ring.more_places.len(), expected.len());
        let refused = expected.iter().filter(|record| matches!(record.outcome, Outcome::Refused(_)));
        assert_eq!(ring.refused.len(), refused.count());
        assert_eq!(ring.hash(), ring.recompute_hash());
        for (position, record) in (0..).zip(expected) {
            assert_eq!(ring.get(record.id).as_ref(), Some(&record.outcome));
            assert_ne!(ring.digest_at(position), 0);
        }
    }

    fn id(bits: u64, rest: u64) -> ChangeId {
        ChangeId(u128::from(bits) << 64 | u128::from(rest))
    }

    #[test]
    fn ids_that_share_bits_are_told_apart_and_nothing_stays_of_what_left() {
        let mut entropy = SeededEntropy::new(3);
        // Places begin again at zero after 2^32 records.
        for forgotten in [0, (1 << 32) - 9] {
            for limits in [Limits { records: 40, bytes: 1 << 20 }, Limits { records: 1000, bytes: 600 }] {
                let mut ring = Ring::resume(limits, forgotten, Horizons::default());
                let (mut expected, mut revision) = (VecDeque::<Record>::new(), 1);
                for step in 0..500 {
                    let bits =
                        if entropy.next_u64().is_multiple_of(4) { entropy.next_u64() } else { entropy.next_u64() % 3 };
                    // Some differ in the time alone, of which four seconds are told apart.
                    let id = ChangeId(id(bits, entropy.next_u64() % 20).0 ^ u128::from(entropy.next_u64() % 2) << 92);
                    if expected.iter().any(|record| record.id == id) {
                        continue;
                    }
                    let at = Revision(revision);
                    let outcome = if entropy.next_u64().is_multiple_of(3) {
                        Outcome::Refused(Refusal::TermChanged)
                    } else {
                        revision += 1;
                        Outcome::Committed(Revision(revision))
                    };
                    let record = Record { id, at, outcome };
                    ring.push(&record);
                    expected.push_back(record);
                    expected.drain(..expected.len() - ring.len() as usize);
                    check(&ring, &expected);
                    assert_eq!(ring.get(self::id(bits, 20)), None, "after {step}");
                    // A change that comes again, or a new one that is not judged after all, leaves no trace.
                    for record in expected.iter().take(2).chain(expected.back()) {
                        assert_eq!(ring.claim(record.id), Err(record.outcome.clone()), "after {step}");
                    }
                    assert_eq!(ring.claim(self::id(bits, 20)), Ok(()));
                    ring.release(self::id(bits, 20));
                    check(&ring, &expected);
                }
                assert!(ring.forgotten() > forgotten + 100, "many have left");
            }
        }
    }
}
