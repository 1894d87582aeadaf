//! How fast newcomers get in, and how many of them may be on their way.

use super::is_complete;
use crate::store::State;
use crate::types::{Code, Kind, Object, Status};

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
    /// Nodes that were on their way at the last look, and those let in since.
    under_way: usize,
    /// When that was. `None` before the first.
    looked_ms: Option<u64>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { permits: BURST * 1000, counted_ms: 0, under_way: 0, looked_ms: None }
    }
}

impl Gate {
    /// Takes a permit for a newcomer that a token admits. `now_ms` is any clock that does not go back.
    ///
    /// # Errors
    /// `ResourceExhausted`: nothing was taken, and the newcomer may ask again.
    pub fn admit(&mut self, state: &State, now_ms: u64) -> Result<(), Status> {
        let passed_ms = now_ms.saturating_sub(self.counted_ms);
        self.counted_ms = self.counted_ms.max(now_ms);
        self.permits = self.permits.saturating_add(passed_ms.saturating_mul(PER_SECOND)).min(BURST * 1000);
        if self.permits < 1000 {
            let message = format!("more than {PER_SECOND} nodes a second ask to join");
            return Err(Status::new(Code::ResourceExhausted, message).with_hint("try again in a moment"));
        }
        if self.looked_ms.is_none_or(|looked| now_ms.saturating_sub(looked) >= LOOK_MS) {
            self.looked_ms = Some(now_ms);
            self.under_way = under_way(state);
        }
        if self.under_way >= MAX_UNDER_WAY {
            let message = format!("{MAX_UNDER_WAY} nodes have asked to join and have not come: nobody else is let in");
            return Err(Status::new(Code::ResourceExhausted, message).with_hint(
                "such nodes are forgotten after an hour; if a token leaked, `skep token rotate --role worker` on a manager \
                 makes another",
            ));
        }
        self.permits -= 1000;
        self.under_way += 1;
        Ok(())
    }
}

fn under_way(state: &State) -> usize {
    let nodes = state.iter(Kind::Node).filter_map(|stored| match &stored.object {
        Object::Node(node) => Some(node),
        _ => None,
    });
    nodes.filter(|node| !is_complete(node, state.member_of(node.id).is_some())).take(MAX_UNDER_WAY).count()
}

/// A rack of boards that start together gets in at once.
const BURST: u64 = 500;

/// A large site after a power cut: thousands of nodes in a minute or two.
const PER_SECOND: u64 = 50;

/// Nodes that have a certificate, or wait for one, and have not been heard of. About 2 KiB each.
pub const MAX_UNDER_WAY: usize = 2000;

/// A walk over all nodes, so not for every newcomer.
const LOOK_MS: u64 = 1000;
