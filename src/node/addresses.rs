//! Members that do not answer where the members' list says, and when to ask the other managers for a newer address.
//!
//! A manager that was cut off while another moved has the old address, and learns the new one from the log only once it
//! hears the leader again, which may be the very one that moved. Whoever else is connected may know. Decides only: no
//! clock, no sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::sys::time::Instant;
use crate::types::NodeId;

/// A member may restart in this time: its address is asked for after it.
const FIRST: Duration = Duration::from_secs(3);
/// The pause doubles up to this: a member that is switched off must not cost the others more than this.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Lost {
    at: Instant,
    pause: Duration,
    /// How often it came round: another manager is asked each time.
    turn: usize,
}

/// Members without a connection.
#[derive(Debug, Default)]
pub struct Addresses {
    lost: BTreeMap<NodeId, Lost>,
}

impl Addresses {
    /// No connection to this member is up.
    pub fn lost(&mut self, now: Instant, node: NodeId) {
        self.lost.entry(node).or_insert(Lost { at: now + FIRST, pause: FIRST, turn: 0 });
    }

    /// A connection is up, or it is no member any more.
    pub fn found(&mut self, node: NodeId) {
        self.lost.remove(&node);
    }

    /// When to call [`Self::due`] next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.lost.values().map(|lost| lost.at).min()
    }

    /// Members whose turn it is, each with the one of the connected managers to ask, if there is any.
    pub fn due(&mut self, now: Instant, connected: &[NodeId]) -> Vec<(NodeId, Option<NodeId>)> {
        let mut due = Vec::new();
        for (node, lost) in self.lost.iter_mut().filter(|(_, lost)| lost.at <= now) {
            let asked = connected.get(lost.turn % connected.len().max(1)).copied();
            lost.turn += 1;
            lost.pause = (lost.pause * 2).min(LONGEST);
            lost.at = now + lost.pause;
            due.push((*node, asked));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_member_that_stays_away_is_asked_for_in_turn_and_ever_less_often() {
        let mut addresses = Addresses::default();
        let (gone, others) = (NodeId(3), [NodeId(1), NodeId(2)]);
        addresses.lost(at(0), gone);
        addresses.lost(at(2), gone);
        assert_eq!(addresses.due(at(2), &others), []);
        let mut asked = Vec::new();
        while let Some(next) = addresses.next_deadline().filter(|next| *next < at(200)) {
            for (node, whom) in addresses.due(next, &others) {
                assert_eq!(node, gone);
                asked.push((next.since(at(0)).as_secs(), whom.map(|whom| whom.0)));
            }
        }
        let expected = [(3, 1), (9, 2), (21, 1), (45, 2), (93, 1), (153, 2)];
        assert_eq!(asked, expected.map(|(second, whom)| (second, Some(whom))));
        assert_eq!(addresses.due(at(300), &[]), [(gone, None)], "nobody is there to be asked");
        addresses.found(gone);
        assert_eq!((addresses.next_deadline(), addresses.due(at(999), &others)), (None, Vec::new()));
    }
}
