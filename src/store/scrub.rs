//! Looks for memory that no longer holds what was written to it, a little at a time.
//!
//! The state hash that replicas compare is a sum kept incrementally: an object that nobody writes never enters it again.
//! When its memory rots, the sum goes on saying that all is well, while readers are told something false and the next
//! update made from it spreads that to every replica. So each object is encoded again from time to time and its digest
//! compared with the one that was taken when it was written.
//!
//! A pass has three parts.
//!
//! 1. *Objects*, in order of kind and id, each against its own digest and its key. This needs no state that stands still:
//!    an object and its digest are written together and never change. Every slice therefore looks at a fresh clone, goes
//!    on behind the id where the last one ended, and drops the clone. A clone that is held makes the writer copy what it
//!    touches; this way that costs it some tree nodes per slice. Objects written during the pass may be missed or seen
//!    twice, which is no loss: they are young.
//! 2. *Remembered changes*. Records have no digests of their own, only a sum over all, so the ring has to stand still
//!    while it is looked through. The ring alone is held, without the tables; it is bounded (4 MiB), and so is what a
//!    writer copies of it. Each record must also be the one that its id leads to.
//! 3. *The sum*: do the digests in the tables add up to the incremental sum? An object that fell out of a tree, or a bit
//!    of the sum itself, is found only here. It is one walk without encoding, over one clone, some 50 ns an object.
//!
//! What has no second copy in memory cannot be checked here: counters, members, the tables' indexes. Members and counters enter the
//! state hash afresh at each mark, where the other replicas contradict them.

mod run;

pub use run::{Pace, Pass, Scrub, spawn};

use super::State;
use super::ring::Ring;
use crate::codec::{digest128, envelope};
use crate::types::{Kind, ObjectId};

/// Memory that does not hold what was written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rot {
    /// An object's encoding has another digest than when it was written.
    #[error("the {kind} {id} in memory is not what was written there")]
    Object {
        /// Its table.
        kind: Kind,
        /// Its place in the table.
        id: ObjectId,
    },
    /// An object stands in another's place.
    #[error("the {kind} in the place of {key} in memory says that it is {found}")]
    Place {
        /// The table.
        kind: Kind,
        /// The place.
        key: ObjectId,
        /// What stands there.
        found: ObjectId,
    },
    /// The digests of the remembered changes do not add up.
    #[error("the remembered changes in memory add up to {found:032x}, and should to {expected:032x}")]
    Changes {
        /// The incremental sum.
        expected: u128,
        /// What the records give.
        found: u128,
    },
    /// The objects' digests do not add up.
    #[error("the objects in memory add up to {found:032x}, and should to {expected:032x}")]
    Sum {
        /// The incremental sum.
        expected: u128,
        /// What the objects' digests give.
        found: u128,
    },
}

/// How far a step came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The budget is used up; there is more.
    More,
    /// Everything was looked at. The next step begins again.
    Passed,
}

/// One pass after another over a state that goes on changing.
#[derive(Debug, Default)]
pub struct Scrubber {
    next: Next,
    /// Objects and records looked at since this was made.
    checked: u64,
}

#[derive(Default)]
enum Next {
    #[default]
    Start,
    Objects(Kind, ObjectId),
    Changes {
        ring: Box<Ring>,
        place: u64,
        sum: u128,
    },
    Sum,
}

impl std::fmt::Debug for Next {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Start => write!(f, "Start"),
            Self::Objects(kind, id) => write!(f, "Objects({kind}, {id})"),
            Self::Changes { place, .. } => write!(f, "Changes({place})"),
            Self::Sum => write!(f, "Sum"),
        }
    }
}

/// What looking at anything costs besides its bytes, in bytes.
const OVERHEAD_BYTES: u64 = 256;

impl Scrubber {
    /// Looks at about `budget_bytes` of `state`, which may be another one each time. The walk that ends a pass counts for
    /// nothing.
    pub fn step(&mut self, state: &State, budget_bytes: u64) -> Result<Progress, Rot> {
        let mut left = budget_bytes;
        loop {
            self.next = match std::mem::take(&mut self.next) {
                Next::Start => Next::Objects(Kind::ALL[0], ObjectId(0)),
                Next::Objects(kind, from) => self.objects(state, kind, from, &mut left)?,
                Next::Changes { ring, place, sum } => self.changes(ring, place, sum, &mut left)?,
                Next::Sum => {
                    sum(state)?;
                    return Ok(Progress::Passed);
                }
            };
            if left == 0 {
                return Ok(Progress::More);
            }
        }
    }

    /// Objects and remembered changes looked at so far.
    pub const fn checked(&self) -> u64 {
        self.checked
    }

    fn objects(&mut self, state: &State, kind: Kind, from: ObjectId, left: &mut u64) -> Result<Next, Rot> {
        let mut encoded = Vec::new();
        for (key, stored) in state.table(kind).entries_since(from) {
            if *left == 0 {
                return Ok(Next::Objects(kind, key));
            }
            encoded.clear();
            envelope::encode_into(&stored.object, &mut encoded);
            if digest128(&[b"object", &encoded]) != stored.hash {
                return Err(Rot::Object { kind, id: key });
            }
            if stored.object.id() != key {
                return Err(Rot::Place { kind, key, found: stored.object.id() });
            }
            self.checked += 1;
            *left = left.saturating_sub(encoded.len() as u64 + OVERHEAD_BYTES);
        }
        let following = Kind::ALL.into_iter().find(|other| *other > kind);
        Ok(match following {
            Some(kind) => Next::Objects(kind, ObjectId(0)),
            None => Next::Changes { ring: Box::new(state.ring.clone()), place: 0, sum: 0 },
        })
    }

    fn changes(&mut self, ring: Box<Ring>, mut place: u64, mut sum: u128, left: &mut u64) -> Result<Next, Rot> {
        while place < ring.len() {
            if *left == 0 {
                return Ok(Next::Changes { ring, place, sum });
            }
            sum = sum.wrapping_add(ring.digest_at(place));
            place += 1;
            self.checked += 1;
            *left = left.saturating_sub(OVERHEAD_BYTES);
        }
        if sum != ring.hash() {
            return Err(Rot::Changes { expected: ring.hash(), found: sum });
        }
        Ok(Next::Sum)
    }
}

fn sum(state: &State) -> Result<(), Rot> {
    let objects = Kind::ALL.into_iter().flat_map(|kind| state.iter(kind));
    let found = objects.fold(0, |sum: u128, stored| sum.wrapping_add(stored.hash));
    let expected = state.objects_hash;
    if found == expected { Ok(()) } else { Err(Rot::Sum { expected, found }) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::Stored;
    use crate::types::object::Config;
    use crate::types::{Change, ChangeId, Lineage, NodeId, Object, Operation, Revision, Term, Timestamp};

    /// A state with so many configs; config and change `n` have the id `n`.
    fn state(configs: u128) -> State {
        let mut state = State::bootstrap(Lineage(1), NodeId(1), "a:1");
        (1..=configs).for_each(|n| create(&mut state, n));
        state
    }

    fn create(state: &mut State, n: u128) {
        let mut config = Config { id: ObjectId(n), ..Config::default() };
        config.spec.annotations.name = format!("c{n}");
        config.spec.data = vec![7; 100];
        let operations = vec![Operation::Create(config.into())];
        let change = Change { id: ChangeId(n), after: Revision(0), time: Timestamp(5), term: None, operations };
        state.apply_change(change, Term(1));
    }

    /// Passes over what `spoil` has done to a state of 20 configs, with a small and a large budget.
    fn check(spoil: impl Fn(&mut State), expected: Option<&str>) {
        for budget in [1, 1000, 1 << 20] {
            let mut state = state(20);
            spoil(&mut state);
            let mut scrubber = Scrubber::default();
            let ended = loop {
                match scrubber.step(&state, budget) {
                    Ok(Progress::More) => assert!(scrubber.checked() <= 40),
                    Ok(Progress::Passed) => break None,
                    Err(rot) => break Some(rot.to_string()),
                }
            };
            match (&ended, expected) {
                (None, None) => assert_eq!(scrubber.checked(), 40),
                (Some(rot), Some(expected)) => assert!(rot.contains(expected), "{rot}"),
                _ => panic!("{ended:?} instead of {expected:?} with a budget of {budget}"),
            }
        }
    }

    #[test]
    fn a_sound_state_passes() {
        check(|_| {}, None);
    }

    #[test]
    fn a_bit_that_flips_in_a_cold_object_is_found_and_named() {
        for id in [1, 13, 20] {
            let spoil = move |state: &mut State| {
                let before = state.hash();
                assert!(state.rot(Kind::Config, ObjectId(id), |object| match object {
                    Object::Config(config) => config.spec.data[50] ^= 4,
                    _ => unreachable!(),
                }));
                assert_eq!(state.hash(), before, "the sum that replicas compare says nothing");
            };
            check(spoil, Some(&format!("the config {} in memory is not what was written", ObjectId(id))));
        }
    }

    #[test]
    fn a_digest_that_flips_is_found_like_its_object() {
        let spoil = |state: &mut State| {
            let old = state.get(Kind::Config, ObjectId(4)).unwrap().clone();
            let stored = Stored { object: old.object.clone(), hash: old.hash ^ 1, bytes: old.bytes };
            state.tables[Kind::Config as usize].replace(ObjectId(4), Some(Arc::new(stored)));
        };
        check(spoil, Some("is not what was written"));
    }

    #[test]
    fn an_object_in_anothers_place_is_found() {
        let spoil = |state: &mut State| {
            let stored = state.get(Kind::Config, ObjectId(4)).unwrap().clone();
            state.tables[Kind::Config as usize].spoil(ObjectId(5), stored);
        };
        check(spoil, Some("says that it is"));
    }

    #[test]
    fn an_object_that_fell_out_and_a_sum_that_flips_are_found() {
        let lose = |state: &mut State| {
            state.tables[Kind::Config as usize].replace(ObjectId(4), None);
        };
        for budget in [1, 1 << 20] {
            let mut state = state(20);
            lose(&mut state);
            let mut scrubber = Scrubber::default();
            let rot = loop {
                match scrubber.step(&state, budget) {
                    Ok(Progress::More) => {}
                    Ok(Progress::Passed) => panic!("it was not noticed"),
                    Err(rot) => break rot,
                }
            };
            assert!(matches!(rot, Rot::Sum { .. }), "{rot}");
        }
        check(|state| state.objects_hash ^= 1 << 100, Some("the objects in memory add up"));
    }

    #[test]
    fn a_remembered_change_that_differs_is_found() {
        check(|state| state.ring.rot(ChangeId(9)), Some("the remembered changes"));
        check(|state| state.ring.rot_outcome(ChangeId(9)), Some("the remembered changes"));
        check(|state| state.ring.rot_place(ChangeId(9)), Some("the remembered changes"));
    }

    #[test]
    fn a_pass_over_a_state_that_goes_on_changing_raises_no_alarm_and_ends() {
        let mut state = state(50);
        let mut scrubber = Scrubber::default();
        let mut passes = 0;
        for n in 51..400 {
            if scrubber.step(&state.clone(), 2000).unwrap() == Progress::Passed {
                passes += 1;
            }
            create(&mut state, n);
            state.replace(Kind::Config, ObjectId(n - 40), None);
        }
        assert!(passes > 3, "{passes}");
        assert_eq!(state.hash(), state.recompute_hash());
    }
}
