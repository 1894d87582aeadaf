//! The last things that happened to raft, for whoever has to find out afterwards why.
//!
//! The machine says what happened ([`Happened`]); the raft thread notes when. Small values of fixed size in a ring of
//! fixed length (under 64 KiB), so that it is always on. No contents of entries, no addresses.

use std::collections::VecDeque;
use std::fmt;

use crate::sys::time::Instant;
use crate::types::api::RaftEvent;
use crate::types::{Index, NodeId, RaftId, Term};

/// Why a manager asked for votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It heard nothing of a leader for too long.
    Timeout,
    /// It saw the leader's process gone.
    LeaderGone,
    /// It was refused a vote, or heard nothing, after a timeout, and tries again.
    Refused,
    /// It is the only voter.
    Alone,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// Asked for votes.
    Campaigned {
        /// In the term after this one.
        term: Term,
        /// Why.
        cause: Cause,
    },
    /// Leads.
    BecameLeader {
        /// Of this term.
        term: Term,
    },
    /// Follows a leader.
    Follows {
        /// This one.
        leader: RaftId,
        /// In this term.
        term: Term,
    },
    /// Knows no leader.
    LostLeader {
        /// In this term.
        term: Term,
    },
    /// Handing leadership over.
    HandsOver {
        /// To this member.
        to: RaftId,
    },
    /// A connection with a peer came up.
    LinkUp {
        /// The peer.
        node: NodeId,
    },
    /// All connections with a peer are gone.
    LinkDown {
        /// The peer.
        node: NodeId,
        /// Its address refused a redial: its process is gone.
        refused: bool,
    },
    /// A membership change took effect or was refused.
    Member {
        /// Its entry.
        index: Index,
        /// Whether it was accepted.
        accepted: bool,
        /// How many voters there are now.
        voters: u32,
    },
    /// An own snapshot was written.
    SnapshotWritten {
        /// Its place.
        index: Index,
        /// Its size.
        bytes: u64,
    },
    /// An own snapshot could not be written.
    SnapshotFailed,
    /// A leader offered a snapshot.
    SnapshotOffered {
        /// Its place.
        index: Index,
    },
    /// An offered snapshot could not be fetched.
    SnapshotNotFetched {
        /// Its place.
        index: Index,
    },
    /// A fetched snapshot replaces the state.
    SnapshotInstalled {
        /// Its place.
        index: Index,
    },
    /// A write took long to become durable.
    SlowSync {
        /// From the order to the report, milliseconds.
        ms: u64,
    },
    /// The disk has not finished a write for too long.
    DiskStalled,
    /// Replicas' state hashes differ.
    HashesDiffer {
        /// At this mark.
        index: Index,
    },
    /// This replica stops because it is wrong.
    Fenced,
}

impl Happened {
    /// In one word, for programs.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Campaigned { .. } => "election",
            Self::BecameLeader { .. } => "leads",
            Self::Follows { .. } => "follows",
            Self::LostLeader { .. } => "no-leader",
            Self::HandsOver { .. } => "transfer",
            Self::LinkUp { .. } => "link-up",
            Self::LinkDown { .. } => "link-down",
            Self::Member { .. } => "member",
            Self::SnapshotWritten { .. } => "snapshot-written",
            Self::SnapshotFailed => "snapshot-failed",
            Self::SnapshotOffered { .. } => "snapshot-offered",
            Self::SnapshotNotFetched { .. } => "snapshot-not-fetched",
            Self::SnapshotInstalled { .. } => "snapshot-installed",
            Self::SlowSync { .. } => "slow-sync",
            Self::DiskStalled => "disk-stalled",
            Self::HashesDiffer { .. } => "hashes-differ",
            Self::Fenced => "fenced",
        }
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Campaigned { term, cause } => {
                let why = match cause {
                    Cause::Timeout => "no leader was heard of for an election timeout",
                    Cause::LeaderGone => "the leader's process is gone",
                    Cause::Refused => "the campaign before came to nothing",
                    Cause::Alone => "it is the only voter",
                };
                write!(f, "asked for votes in term {term}: {why}")
            }
            Self::BecameLeader { term } => write!(f, "leads in term {term}"),
            Self::Follows { leader, term } => write!(f, "follows member {leader} in term {term}"),
            Self::LostLeader { term } => write!(f, "knows no leader in term {term}"),
            Self::HandsOver { to } => write!(f, "hands leadership over to member {to}"),
            Self::LinkUp { node } => write!(f, "a connection with node {node} is up"),
            Self::LinkDown { node, refused: true } => {
                write!(f, "no connection with node {node}, and its address refuses new ones")
            }
            Self::LinkDown { node, refused: false } => write!(f, "no connection with node {node}"),
            Self::Member { index, accepted, voters } => {
                let what = if *accepted { "accepted" } else { "refused" };
                write!(f, "the membership change at log index {index} was {what}: {voters} voters")
            }
            Self::SnapshotWritten { index, bytes } => write!(f, "wrote a snapshot at log index {index}, {bytes} bytes"),
            Self::SnapshotFailed => write!(f, "could not write a snapshot"),
            Self::SnapshotOffered { index } => write!(f, "was offered a snapshot at log index {index}"),
            Self::SnapshotNotFetched { index } => write!(f, "could not fetch the snapshot at log index {index}"),
            Self::SnapshotInstalled { index } => write!(f, "installs a snapshot at log index {index}"),
            Self::SlowSync { ms } => write!(f, "a write took {ms} ms to become durable"),
            Self::DiskStalled => write!(f, "the disk does not finish a write"),
            Self::HashesDiffer { index } => write!(f, "state hashes differ at log index {index}"),
            Self::Fenced => write!(f, "stops, because its replica is wrong"),
        }
    }
}

/// The last [`KEPT`] events.
#[derive(Debug, Default)]
pub struct Journal {
    events: VecDeque<(Instant, Happened)>,
}

/// Events kept.
pub const KEPT: usize = 1000;

impl Journal {
    /// Notes what happened at `now`.
    pub fn extend(&mut self, now: Instant, happened: impl IntoIterator<Item = Happened>) {
        for what in happened {
            if self.events.len() == KEPT {
                self.events.pop_front();
            }
            self.events.push_back((now, what));
        }
    }

    /// All of it, oldest first, for people.
    pub fn show(&self, now: Instant) -> Vec<RaftEvent> {
        let event = |(at, what): &(Instant, Happened)| RaftEvent {
            age_ms: u64::try_from(now.since(*at).as_millis()).unwrap_or(u64::MAX),
            kind: what.kind().to_owned(),
            text: what.to_string(),
        };
        self.events.iter().map(event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_and_stays_small() {
        let mut journal = Journal::default();
        for n in 0..3000 {
            journal.extend(Instant::from_nanos(n * 1_000_000), [Happened::SlowSync { ms: n }]);
        }
        let shown = journal.show(Instant::from_nanos(3_000_000_000));
        assert_eq!(shown.len(), KEPT);
        assert_eq!((shown[0].age_ms, shown[999].age_ms), (1000, 1));
        assert_eq!(shown[999].text, "a write took 2999 ms to become durable");
        assert!(KEPT.next_power_of_two() * size_of::<(Instant, Happened)>() <= 128 << 10);
    }
}
