//! What clients asked and what they were told, and whether any swarm of one machine could have told them that.

use skep::sys::time::Instant;
use skep::types::{Outcome, Revision};

use crate::failure::fail;
use crate::linear::{self, Answer, Cells, Timed, Verdict, Want};
use crate::workload::{Group, Style};

/// An operation of a client on one group of cells.
#[derive(Clone, Debug)]
pub struct Op {
    pub group: usize,
    pub call: Call,
    pub called: Instant,
    pub returned: Option<Instant>,
    /// The newest revision that anybody had been told when it was called.
    pub floor: Revision,
    pub result: Result,
}

#[derive(Clone, Debug)]
pub enum Call {
    /// Linearizable, of one cell or of all.
    Read(Option<usize>),
    /// From whatever state the manager has.
    Stale,
    Write {
        wants: Vec<(usize, Want)>,
        writes: Vec<(usize, Option<u64>)>,
    },
    /// A new object of its own, that nobody else touches.
    Fresh,
    /// An object of its own (of a few) gets a name that others want as well, or goes.
    Named {
        slot: usize,
        name: u64,
    },
}

#[derive(Clone, Debug)]
pub enum Result {
    /// No answer came, or none that says anything.
    Unknown,
    Outcome(Outcome),
    /// Each cell that was read.
    Seen(Vec<Option<u64>>),
}

/// What the searches did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    pub histories: u64,
    pub operations: u64,
    /// Searches that were too long to finish.
    pub given_up: u64,
}

impl Searched {
    pub fn add(&mut self, other: Self) {
        self.histories += other.histories;
        self.operations += other.operations;
        self.given_up += other.given_up;
    }
}

/// Looks for an order of the operations of every group; registers one by one.
pub fn check(groups: &[Group], history: &[Op]) -> Searched {
    let mut searched = Searched::default();
    for (at, group) in groups.iter().enumerate() {
        let ops: Vec<&Op> = history.iter().filter(|op| op.group == at).collect();
        let parts: Vec<Vec<usize>> = match group.style {
            Style::Registers => (0..group.cells).map(|cell| vec![cell]).collect(),
            Style::Set | Style::Bank => vec![(0..group.cells).collect()],
        };
        for cells in parts {
            let part: Vec<Timed<linear::Operation>> = ops.iter().filter_map(|op| of_part(op, &cells)).collect();
            searched.histories += 1;
            searched.operations += part.len() as u64;
            match linear::check(&Cells(cells.len()), &part) {
                Verdict::Linearizable => {}
                Verdict::Impossible(why) => fail("linearizability", format!("group {at}, cells {cells:?}: {why}")),
                Verdict::GivenUp => searched.given_up += 1,
            }
        }
    }
    searched
}

/// The operation as far as it concerns these cells of its group.
fn of_part(op: &Op, cells: &[usize]) -> Option<Timed<linear::Operation>> {
    let place = |cell: usize| cells.iter().position(|found| *found == cell);
    let operation = match (&op.call, &op.result) {
        (Call::Read(None), Result::Seen(seen)) => linear::Operation::Read(seen.clone()),
        (Call::Read(Some(cell)), Result::Seen(seen)) => {
            place(*cell)?;
            linear::Operation::Read(seen.clone())
        }
        (Call::Write { wants, writes }, result) => {
            let answer = match result {
                Result::Outcome(Outcome::Committed(_)) => Answer::Done,
                Result::Outcome(Outcome::Refused(_)) => Answer::Refused,
                _ => Answer::Unknown,
            };
            let wants: Vec<_> = wants.iter().filter_map(|(cell, want)| Some((place(*cell)?, *want))).collect();
            let writes: Vec<_> = writes.iter().filter_map(|(cell, value)| Some((place(*cell)?, *value))).collect();
            if wants.is_empty() && writes.is_empty() {
                return None;
            }
            linear::Operation::Write { wants, writes, answer }
        }
        // A read without an answer says nothing, a stale one promises no moment.
        _ => return None,
    };
    let returned = op.returned.map(Instant::as_nanos);
    Some(Timed { operation, called: op.called.as_nanos(), returned })
}
