//! How fast newcomers get in, and how many of them may be on their way.

use std::collections::BTreeMap;

use super::is_complete;
use crate::store::State;
use crate::types::{Code, Kind, NodeId, Object, Role, Status};

/// The leader's own count of the newcomers that it lets in. A bucket of permits that fills up slowly bounds the rate, and a
/// look at the store bounds how many nodes there are that asked for a certificate and never came: without the two, whoever
/// has a token could fill every manager's memory.
///
/// Not replicated: a new leader begins with a full bucket, and finds the nodes in its store.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Thousandths of a permit.
    permits: u64,
    /// When they were counted.
    counted_ms: u64,
    /// Workers and managers that were on their way at the last look, and those let in since.
    under_way: [usize; 2],
    /// When that was. `None` before the first.
    looked_ms: Option<u64>,
    /// Of nodes that wrote of themselves lately: thousandths of a permit, and when they were counted.
    pub(super) writers: BTreeMap<NodeId, (u64, u64)>,
    /// When those who have been quiet were last forgotten.
    forgot_ms: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            permits: BURST * 1000,
            counted_ms: 0,
            under_way: [0, 0],
            looked_ms: None,
            writers: BTreeMap::new(),
            forgot_ms: 0,
        }
    }
}

impl Gate {
    /// Takes a permit for a newcomer that a token admits. `now_ms` is any clock that does not go back.
    ///
    /// # Errors
    /// `ResourceExhausted`: nothing was taken, and the newcomer may ask again.
    pub fn admit(&mut self, state: &State, role: Role, now_ms: u64) -> Result<(), Status> {
        let passed_ms = now_ms.saturating_sub(self.counted_ms);
        self.counted_ms = self.counted_ms.max(now_ms);
        self.permits = self.permits.saturating_add(passed_ms.saturating_mul(PER_SECOND)).min(BURST * 1000);
        if self.permits < 1000 {
            let message = format!("more than {PER_SECOND} nodes a second ask to join");
            return Err(
                Status::new(Code::ResourceExhausted, message).with_hint(format!("try again in a moment; {LEAKED}"))
            );
        }
        if self.looked_ms.is_none_or(|looked| now_ms.saturating_sub(looked) >= LOOK_MS) {
            self.looked_ms = Some(now_ms);
            self.under_way = under_way(state);
        }
        let (place, most) = place(role);
        if self.under_way[place] >= most {
            let message =
                format!("{most} {}s have asked to join and have not come: nobody else is let in", role.name());
            let after = if role == Role::Worker { "two minutes" } else { "an hour" };
            let hint = format!("such nodes are forgotten after {after}; {LEAKED}");
            return Err(Status::new(Code::ResourceExhausted, message).with_hint(hint));
        }
        self.permits -= 1000;
        self.under_way[place] += 1;
        Ok(())
    }

    /// Takes a permit for something that a node wants written of itself: a renewal or a report. A node does so a few times a
    /// day; one whose key is in the wrong hands must not have every manager's disk busy.
    ///
    /// # Errors
    /// `ResourceExhausted`: nothing was taken, and the node may ask again.
    pub fn write(&mut self, node: NodeId, now_ms: u64) -> Result<(), Status> {
        let left = |(permits, at): (u64, u64)| {
            let more = now_ms.saturating_sub(at).saturating_mul(1000) / NODE_REFILL_MS;
            permits.saturating_add(more).min(NODE_BURST * 1000)
        };
        if self.writers.len() >= MAX_WRITERS && now_ms.saturating_sub(self.forgot_ms) >= NODE_REFILL_MS {
            // Who has all permits again needs no remembering. A walk over all of them, so not for each.
            self.forgot_ms = now_ms;
            self.writers.retain(|_, writer| left(*writer) < NODE_BURST * 1000);
        }
        let permits = self.writers.get(&node).map_or(NODE_BURST * 1000, |writer| left(*writer));
        if permits < 1000 {
            let message = format!("node {node} renews its certificate or reports too often");
            let hint = format!(
                "it may again in a moment; if it goes on, its key may be in the wrong hands: `skep node rm --force {node}` \
                 ends that"
            );
            return Err(Status::new(Code::ResourceExhausted, message).with_hint(hint));
        }
        self.writers.insert(node, (permits - 1000, now_ms));
        Ok(())
    }
}

/// Workers and managers that asked for a certificate and have not come.
pub(super) fn under_way(state: &State) -> [usize; 2] {
    let mut count = [0, 0];
    for stored in state.iter(Kind::Node) {
        if let Object::Node(node) = &stored.object
            && !is_complete(state, node)
        {
            count[place(node.role).0] += 1;
        }
    }
    count
}

/// Where those of a role are counted, and how many there may be.
const fn place(role: Role) -> (usize, usize) {
    match role {
        Role::Worker => (0, MAX_UNDER_WAY),
        Role::Manager => (1, MAX_MANAGERS_UNDER_WAY),
    }
}

const LEAKED: &str = "if a token leaked, `skep token rotate` on a manager replaces it";

/// A rack of boards that start together gets in at once.
const BURST: u64 = 500;

/// A large site after a power cut: thousands of nodes in a minute or two.
const PER_SECOND: u64 = 50;

/// Workers that have a certificate, or wait for one, and have not been heard of. About 2 KiB each.
pub const MAX_UNDER_WAY: usize = 2000;

/// The same for managers. What is forgotten of them leaves a revocation behind for as long as their certificates last; and who
/// has so many managers has no majority to wait for.
pub const MAX_MANAGERS_UNDER_WAY: usize = 100;

/// A node writes so often at once: roots that follow each other, roles that are changed to and fro.
const NODE_BURST: u64 = 30;

/// And then once in so long.
const NODE_REFILL_MS: u64 = 2000;

/// Nodes of which that is remembered, before those that have been quiet are forgotten.
const MAX_WRITERS: usize = 4096;

/// A walk over all nodes, so not for every newcomer.
const LOOK_MS: u64 = 1000;
