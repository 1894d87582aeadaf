//! Is there an order? A checker of linearizability: Wing and Gong's search with Lowe's memory of what was tried
//! ("Testing and verifying concurrent objects", 1993; "Testing for linearizability", 2017; the memory of configurations
//! as in Porcupine).
//!
//! A history is linearizable when every operation can be given one moment between its call and its return so that the
//! answers are those of a sequential object. The search walks the calls and returns in order of time: it may give an
//! operation its moment as soon as it was called, and must have done so when it returns. What was tried is remembered as
//! the set of operations placed and the state after them, because two orders of the same operations that lead to the same
//! state have the same future.
//!
//! An operation whose answer never came may have had its moment at any time after its call, or never. It has no return in
//! the walk, so that nothing forces it in and nothing keeps it out.
//!
//! [`Cells`] is the sequential object of the simulator: a few cells that hold a value or nothing, conditional writes of
//! several at once, and reads of all. Registers are histories of one cell each, so that they are checked apart, which
//! linearizability allows and which is what keeps the search short.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// A sequential object.
pub trait Object {
    type State: Clone + Eq + Hash + Debug;
    /// A call and the answer that came, or none.
    type Operation: Debug;

    fn initial(&self) -> Self::State;

    /// The state after the operation has had its moment in `state`; `None` when its answer would have been another.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;
}

/// An operation with the times between which it happened.
#[derive(Clone, Debug)]
pub struct Timed<O> {
    pub operation: O,
    pub called: u64,
    /// `None` when no answer came.
    pub returned: Option<u64>,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order explains the answers: how far the best one came, and what it could not explain.
    Impossible(String),
    /// The search took more steps than it was allowed.
    GivenUp,
}

/// Configurations that a search may look at. Real histories of the simulator take some hundred.
const MAX_STEPS: usize = 500_000;

/// Searches for an order.
pub fn check<O: Object>(object: &O, history: &[Timed<O::Operation>]) -> Verdict {
    let mut walk = Walk::new(history);
    let mut tried: HashSet<(Box<[u64]>, O::State)> = HashSet::new();
    let mut placed = vec![0_u64; history.len().div_ceil(64)];
    // What was placed, in order, with the state before it.
    let mut order: Vec<(usize, O::State)> = Vec::new();
    let mut state = object.initial();
    let mut missing = history.iter().filter(|timed| timed.returned.is_some()).count();
    let mut best = (0, String::new());
    let mut at = walk.first();
    for _ in 0..MAX_STEPS {
        if missing == 0 {
            return Verdict::Linearizable;
        }
        match walk.nodes[at].what {
            What::Call(operation) => {
                let after = object.step(&state, &history[operation].operation);
                let after = after.filter(|after| {
                    set(&mut placed, operation, true);
                    let is_new = tried.insert((placed.clone().into(), after.clone()));
                    set(&mut placed, operation, is_new);
                    is_new
                });
                match after {
                    Some(after) => {
                        order.push((operation, std::mem::replace(&mut state, after)));
                        missing -= usize::from(history[operation].returned.is_some());
                        walk.lift(operation);
                        at = walk.first();
                    }
                    None => at = walk.nodes[at].next,
                }
            }
            What::Return(operation) => {
                if best.1.is_empty() || order.len() > best.0 {
                    best = (order.len(), stuck(history, &order, &state, operation));
                }
                // It returned and has no place: the last one placed was placed wrongly.
                let Some((last, before)) = order.pop() else { return Verdict::Impossible(best.1) };
                state = before;
                set(&mut placed, last, false);
                missing += usize::from(history[last].returned.is_some());
                walk.unlift(last);
                at = walk.nodes[walk.call[last]].next;
            }
            What::Edge => unreachable!("an operation that is missing has its return before the end"),
        }
    }
    Verdict::GivenUp
}

fn stuck<O: Debug, S: Debug>(history: &[Timed<O>], order: &[(usize, S)], state: &S, operation: usize) -> String {
    let last: Vec<String> = order.iter().rev().take(4).rev().map(|(at, _)| format!("{:?}", history[*at])).collect();
    format!(
        "no order explains {:?}: the best one has {} of {} operations, {state:?} after [{}]",
        history[operation],
        order.len(),
        history.len(),
        last.join(", ")
    )
}

fn set(bits: &mut [u64], at: usize, on: bool) {
    let bit = 1 << (at % 64);
    if on { bits[at / 64] |= bit } else { bits[at / 64] &= !bit }
}

/// Calls and returns in order of time, as a list from which the placed ones are lifted.
struct Walk {
    nodes: Vec<Node>,
    /// Where an operation's call and return stand.
    call: Vec<usize>,
    ret: Vec<Option<usize>>,
}

struct Node {
    what: What,
    previous: usize,
    next: usize,
}

#[derive(Clone, Copy)]
enum What {
    /// The list's two ends.
    Edge,
    Call(usize),
    Return(usize),
}

impl Walk {
    fn new<O>(history: &[Timed<O>]) -> Self {
        let mut events = Vec::new();
        for (at, timed) in history.iter().enumerate() {
            events.push((timed.called, 0, at, What::Call(at)));
            // At the same moment calls come first: the operations overlapped, which excludes less.
            events.extend(timed.returned.map(|returned| (returned, 1, at, What::Return(at))));
        }
        events.sort_by_key(|(time, kind, at, _)| (*time, *kind, *at));
        let whats = std::iter::once(What::Edge).chain(events.into_iter().map(|(.., what)| what)).chain([What::Edge]);
        let nodes: Vec<Node> =
            whats.enumerate().map(|(at, what)| Node { what, previous: at.saturating_sub(1), next: at + 1 }).collect();
        let (mut call, mut ret) = (vec![0; history.len()], vec![None; history.len()]);
        for (at, node) in nodes.iter().enumerate() {
            match node.what {
                What::Call(operation) => call[operation] = at,
                What::Return(operation) => ret[operation] = Some(at),
                What::Edge => {}
            }
        }
        Self { nodes, call, ret }
    }

    fn first(&self) -> usize {
        self.nodes[0].next
    }

    fn lift(&mut self, operation: usize) {
        for at in [Some(self.call[operation]), self.ret[operation]].into_iter().flatten() {
            let (previous, next) = (self.nodes[at].previous, self.nodes[at].next);
            self.nodes[previous].next = next;
            self.nodes[next].previous = previous;
        }
    }

    /// Puts back what was lifted last.
    fn unlift(&mut self, operation: usize) {
        for at in [self.ret[operation], Some(self.call[operation])].into_iter().flatten() {
            let (previous, next) = (self.nodes[at].previous, self.nodes[at].next);
            self.nodes[previous].next = at;
            self.nodes[next].previous = at;
        }
    }
}

/// What a conditional write demands of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Absent,
    Present,
    Value(u64),
}

impl Want {
    pub fn holds(self, cell: Option<u64>) -> bool {
        match self {
            Self::Absent => cell.is_none(),
            Self::Present => cell.is_some(),
            Self::Value(value) => cell == Some(value),
        }
    }
}

/// An operation on cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A read of all cells and what it saw.
    Read(Vec<Option<u64>>),
    /// A write of some cells, all or none, if all demands hold.
    Write { wants: Vec<(usize, Want)>, writes: Vec<(usize, Option<u64>)>, answer: Answer },
}

/// How a write was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Refused,
    /// It never came.
    Unknown,
}

/// So many cells, all empty at first.
#[derive(Clone, Copy, Debug)]
pub struct Cells(pub usize);

impl Object for Cells {
    type State = Vec<Option<u64>>;
    type Operation = Operation;

    fn initial(&self) -> Self::State {
        vec![None; self.0]
    }

    fn step(&self, state: &Self::State, operation: &Operation) -> Option<Self::State> {
        match operation {
            Operation::Read(seen) => (seen == state).then(|| state.clone()),
            Operation::Write { wants, writes, answer } => {
                let fits = wants.iter().all(|(cell, want)| want.holds(state[*cell]));
                match answer {
                    Answer::Refused => (!fits).then(|| state.clone()),
                    Answer::Done | Answer::Unknown => fits.then(|| {
                        let mut after = state.clone();
                        for (cell, value) in writes {
                            after[*cell] = *value;
                        }
                        after
                    }),
                }
            }
        }
    }
}

mod tests {
    use super::*;

    fn timed(called: u64, returned: u64, operation: Operation) -> Timed<Operation> {
        Timed { operation, called, returned: Some(returned) }
    }

    fn write(want: Want, value: Option<u64>, answer: Answer) -> Operation {
        Operation::Write { wants: vec![(0, want)], writes: vec![(0, value)], answer }
    }

    fn created(value: u64) -> Operation {
        write(Want::Absent, Some(value), Answer::Done)
    }

    fn updated(old: u64, new: u64) -> Operation {
        write(Want::Value(old), Some(new), Answer::Done)
    }

    fn read(value: Option<u64>) -> Operation {
        Operation::Read(vec![value])
    }

    fn unknown(called: u64, operation: Operation) -> Timed<Operation> {
        Timed { operation, called, returned: None }
    }

    #[track_caller]
    fn check_one(history: &[Timed<Operation>], expected: bool) {
        let verdict = check(&Cells(1), history);
        assert_eq!(verdict == Verdict::Linearizable, expected, "{verdict:?}");
    }

    #[test]
    fn one_after_the_other_is_linearizable() {
        check_one(&[], true);
        let history = [
            timed(0, 1, read(None)),
            timed(2, 3, created(1)),
            timed(4, 5, read(Some(1))),
            timed(6, 7, updated(1, 2)),
            timed(8, 9, write(Want::Value(1), Some(3), Answer::Refused)),
            timed(10, 11, write(Want::Present, None, Answer::Done)),
            timed(12, 13, read(None)),
        ];
        check_one(&history, true);
    }

    #[test]
    fn a_read_during_a_write_may_see_either() {
        for seen in [None, Some(1)] {
            check_one(&[timed(0, 10, created(1)), timed(2, 5, read(seen))], true);
        }
        // Both at once, in the order that makes sense.
        check_one(&[timed(0, 10, created(1)), timed(2, 5, read(None)), timed(3, 6, read(Some(1)))], true);
        check_one(&[timed(0, 10, created(1)), timed(2, 5, read(Some(1))), timed(6, 9, read(None))], false);
    }

    #[test]
    fn a_stale_read_is_not() {
        let history = [
            timed(0, 1, created(1)),
            timed(2, 3, updated(1, 2)),
            timed(4, 5, read(Some(2))),
            timed(6, 7, read(Some(1))),
        ];
        check_one(&history, false);
        check_one(&[timed(0, 1, created(1)), timed(2, 3, read(None))], false);
    }

    #[test]
    fn a_lost_write_is_not() {
        check_one(&[timed(0, 1, created(1)), timed(2, 3, updated(1, 2)), timed(4, 5, updated(1, 3))], false);
        check_one(&[timed(0, 1, created(1)), timed(2, 3, created(2))], false);
    }

    #[test]
    fn a_write_that_takes_effect_twice_is_not() {
        let history = [
            timed(0, 9, created(1)),
            timed(10, 11, write(Want::Present, None, Answer::Done)),
            timed(12, 13, read(Some(1))),
        ];
        check_one(&history, false);
    }

    #[test]
    fn a_refusal_must_have_had_a_reason() {
        check_one(&[timed(0, 1, write(Want::Absent, Some(1), Answer::Refused))], false);
        check_one(&[timed(0, 9, created(1)), timed(1, 2, write(Want::Absent, Some(2), Answer::Refused))], true);
    }

    #[test]
    fn a_write_without_an_answer_may_happen_later_or_never_but_not_before_its_call() {
        let lost = write(Want::Absent, Some(1), Answer::Unknown);
        check_one(&[unknown(0, lost.clone()), timed(2, 3, read(None)), timed(8, 9, read(Some(1)))], true);
        check_one(&[unknown(0, lost.clone()), timed(2, 3, read(None)), timed(8, 9, read(None))], true);
        check_one(&[unknown(0, lost.clone()), timed(2, 3, read(Some(1))), timed(8, 9, read(None))], false);
        check_one(&[timed(2, 3, read(Some(1))), unknown(4, lost)], false);
    }

    #[test]
    fn several_cells_change_at_once() {
        let both = Operation::Write {
            wants: vec![(0, Want::Absent), (1, Want::Absent)],
            writes: vec![(0, Some(1)), (1, Some(2))],
            answer: Answer::Done,
        };
        let see = |first, second| timed(2, 5, Operation::Read(vec![first, second]));
        for (seen, fits) in [(see(None, None), true), (see(Some(1), Some(2)), true), (see(Some(1), None), false)] {
            let verdict = check(&Cells(2), &[timed(0, 10, both.clone()), seen]);
            assert_eq!(verdict == Verdict::Linearizable, fits, "{verdict:?}");
        }
    }

    /// Every history of a real sequential object with overlapping calls is linearizable, and stays short to check.
    #[test]
    fn many_overlapping_operations_are_checked_within_bounds() {
        let mut history = Vec::new();
        for round in 0..100_u64 {
            let at = round * 10;
            history.push(timed(at, at + 9, updated(round, round + 1)));
            for reader in 0..6 {
                let seen = if reader % 2 == 0 { round } else { round + 1 };
                history.push(timed(at + 1, at + 8, read(Some(seen))));
            }
            let refused = write(Want::Value(round + 7000), Some(1), Answer::Unknown);
            history.push(unknown(at, refused));
        }
        history.push(timed(0, 0, created(0)));
        check_one(&history, true);
        history.push(timed(500, 501, read(Some(3))));
        check_one(&history, false);
    }
}
