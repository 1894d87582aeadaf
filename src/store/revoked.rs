//! Managers that were removed and whose certificates are still in force: replicated state, with an end for every entry.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::types::{NodeId, Timestamp};

/// A manager that this replica does not know may be one that joined while it was cut off, and its votes are needed. One
/// that was removed has a certificate all the same: these are the ones not to be heard, each until its certificate means
/// nothing any more.
///
/// Written only together with a removal, and each writing drops a few entries whose time is over: as many as there were
/// removals within the validity of a certificate, and never more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<NodeId, Timestamp>", into = "BTreeMap<NodeId, Timestamp>")]
pub(super) struct Revocations {
    by_node: BTreeMap<NodeId, Timestamp>,
    /// The same in order of their ends, so that the oldest are found without a search.
    by_end: BTreeSet<(Timestamp, NodeId)>,
}

/// Kept for so long after the certificate's end: clocks differ, and a log or a backup may be read late. Seven days, as
/// swarmkit's blacklist.
pub(super) const KEPT_MS: u64 = 7 * 24 * 3_600_000;
/// Entries dropped with each new one: more than one, so that a backlog goes away, and few, so that no change takes long.
const DROPPED: usize = 8;

impl Revocations {
    pub fn contains(&self, node: NodeId) -> bool {
        self.by_node.contains_key(&node)
    }

    pub fn len(&self) -> usize {
        self.by_node.len()
    }

    /// Revokes what a node has until `until`, or longer if that was said before; `now` is the change's own time.
    pub fn revoke(&mut self, node: NodeId, until: Timestamp, now: Timestamp) {
        let before = self.by_node.get(&node).copied();
        if before.is_none_or(|before| before < until) {
            if let Some(before) = before {
                self.by_end.remove(&(before, node));
            }
            self.by_node.insert(node, until);
            self.by_end.insert((until, node));
        }
        for _ in 0..DROPPED {
            let Some(&(end, old)) = self.by_end.first() else { return };
            if end.0.saturating_add(KEPT_MS) >= now.0 {
                return;
            }
            self.by_end.pop_first();
            self.by_node.remove(&old);
        }
    }
}

impl From<BTreeMap<NodeId, Timestamp>> for Revocations {
    fn from(by_node: BTreeMap<NodeId, Timestamp>) -> Self {
        let by_end = by_node.iter().map(|(node, until)| (*until, *node)).collect();
        Self { by_node, by_end }
    }
}

impl From<Revocations> for BTreeMap<NodeId, Timestamp> {
    fn from(revocations: Revocations) -> Self {
        revocations.by_node
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::envelope;

    /// Revokes node, until and now in turn; what is left.
    #[track_caller]
    fn check(script: &[(u128, u64, u64)], left: &[(u128, u64)]) {
        let mut revocations = Revocations::default();
        for &(node, until, now) in script {
            revocations.revoke(NodeId(node), Timestamp(until), Timestamp(now));
            assert_eq!(revocations.by_node.len(), revocations.by_end.len());
        }
        let found: Vec<_> = revocations.by_node.iter().map(|(node, until)| (node.0, until.0)).collect();
        assert_eq!(found, left);
        let bytes = envelope::encode(&revocations);
        assert_eq!(envelope::decode::<Revocations>(&bytes, bytes.len()), Ok(revocations));
    }

    #[test]
    fn an_entry_stays_for_a_week_after_its_end_and_goes_with_a_later_removal() {
        let end = 100 + KEPT_MS;
        check(&[(1, 100, 0)], &[(1, 100)]);
        check(&[(1, 100, 0), (2, u64::MAX, end)], &[(1, 100), (2, u64::MAX)]);
        check(&[(1, 100, 0), (2, u64::MAX, end + 1)], &[(2, u64::MAX)]);
        // One whose end is past when it is made is of no use to anyone.
        check(&[(1, 100, end + 1)], &[]);
    }

    #[test]
    fn the_latest_end_counts() {
        check(&[(1, 100, 0), (1, 50, 0)], &[(1, 100)]);
        check(&[(1, 100, 0), (1, 200, 0)], &[(1, 200)]);
    }

    #[test]
    fn a_change_drops_a_few_and_a_backlog_goes_away() {
        let mut script: Vec<(u128, u64, u64)> = (0..20).map(|node| (node, 100, 0)).collect();
        script.push((20, u64::MAX, u64::MAX));
        let left: Vec<_> = (8..20).map(|node| (node, 100)).chain([(20, u64::MAX)]).collect();
        check(&script, &left);
        script.extend([(21, u64::MAX, u64::MAX), (22, u64::MAX, u64::MAX)]);
        check(&script, &[(20, u64::MAX), (21, u64::MAX), (22, u64::MAX)]);
    }
}
