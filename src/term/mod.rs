//! What a leader does of its own accord: services that watch the store and mend what is not as it should be.
//!
//! A [`Service`] is a machine: it looks at the state, says in [`Effect`]s what must be done, and hears in
//! [`Event::Outcome`] what became of it. Services live as long as their term: each leadership begins with new ones, which
//! find the work that a former leader left in the store, because all that is to be done is written there. [`Machine`] runs
//! all services of one term: it gives each the events that concern it, and keeps their requests apart and few.
//!
//! What a service may rely on:
//!
//! - The first event is a [`Event::Look`] at a state that holds everything committed in earlier terms.
//! - After a change to an object of a kind that it [`concerns`](Service::concerns), or to the members, it looks again within
//!   a moment; many changes are one look. It looks when [`Service::next_deadline`] has come.
//! - Every effect has exactly one outcome, unless the term ends first. No event follows the end of the term.
//! - Its changes carry the term: what is applied under a later leader is refused as
//!   [`Refusal::TermChanged`], so that a deposed leader's service writes nothing.
//!
//! What it must keep to: the same state looked at twice leads to the same changes under the same ids (which are mixed with a
//! secret of the term before they are proposed, so that no caller can use them up), and to nothing that is
//! under way already; what was declined is tried again after a pause of its own, not at once.
//!
//! Not here: the thread, its queues and the clock (`node::leader`), and the services themselves.

mod machine;

pub use machine::{MAX_UNDER_WAY, Machine, News, Request, View, Work};

use crate::store::State;
use crate::types::{Change, Kind, NodeId, Refusal, Revision, Status};

/// One thing that a leader sees to. A function of its events: no clock, no I/O, no randomness.
pub trait Service: Send {
    /// For logs.
    fn name(&self) -> &'static str;

    /// Whether a change to an object of this kind is a reason to look.
    fn concerns(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Node | Kind::Cluster)
    }

    /// Takes one event and says what must be done, in order. `now_ms`: the wall clock, which may be set back or forward;
    /// when it is, the service looks again.
    fn step(&mut self, now_ms: u64, event: Event<'_>) -> Vec<Effect>;

    /// What cannot be done now and why, in words for whoever asks this leader how it is.
    fn notices(&self, _state: &State) -> Vec<String> {
        Vec::new()
    }

    /// When to look again though nothing changes, by the clock of [`Service::step`]; `None`: not before something does.
    fn next_deadline(&self) -> Option<u64>;
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// The term has begun, something changed, or the time has come.
    Look {
        /// Everything, as it is now.
        state: &'a State,
        /// The leader.
        here: NodeId,
        /// Nodes that the leader has a live connection to, itself included.
        reachable: &'a [NodeId],
    },
    /// An effect ended.
    Outcome {
        /// The effect's.
        token: u64,
        /// How.
        result: Ended,
    },
}

/// Something to do. `token` is the service's own, for the outcome.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Write this. Its `term` is filled in.
    Propose {
        /// Names it in the outcome.
        token: u64,
        /// What.
        change: Change,
    },
    /// Take a node out of the Raft group, unless those left would have no reachable majority.
    RemoveMember {
        /// Names it in the outcome.
        token: u64,
        /// Whom. Never the leader itself.
        node_id: NodeId,
    },
    /// Hand leadership over; when that succeeds the term ends.
    Transfer {
        /// Names it in the outcome.
        token: u64,
        /// To whom.
        to: NodeId,
    },
}

impl Effect {
    /// The service's name for it.
    pub const fn token(&self) -> u64 {
        match self {
            Self::Propose { token, .. } | Self::RemoveMember { token, .. } | Self::Transfer { token, .. } => *token,
        }
    }
}

/// How an effect ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The change is committed.
    Committed(Revision),
    /// The change was judged and refused.
    Refused(Refusal),
    /// The order was carried out.
    Done,
    /// Nothing was done, because of this.
    Declined(Status),
    /// It may have been done, or still be: look.
    Uncertain,
}
