//! The rotation of the swarm's root certificate while it is under way, and how far the nodes are.

use std::collections::BTreeSet;

use super::*;

/// A root rotation under way. Until it ends, nodes are given the old root to trust; certificates are signed by the new
/// one, and followed by `cross_signed_certificate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRotation {
    /// The new root, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: Sensitive,
    /// The new root signed by the old one, PEM.
    pub cross_signed_certificate: String,
    /// The digest of the new root's public key: what certificates that it signs have as their `issuer`.
    pub issuer: String,
    /// The swarm's join tokens once it ends.
    pub join_tokens: JoinTokens,
    /// When this root became the target.
    pub started_at: Timestamp,
    /// Nodes that it does not wait for.
    pub skip: BTreeSet<NodeId>,
}

/// How far a node is in a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It has not been told to ask for a new certificate.
    NotAsked,
    /// It has been told, and has not asked.
    Asked,
    /// It asked, and the certificate is not made yet.
    Signing,
    /// Its new certificate is made, and it has not said that it uses it.
    Issued,
    /// Its request was refused.
    Failed,
    /// It says that it uses a certificate of the new root.
    Converged,
}

/// How far the swarm is in a rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RotationProgress {
    /// Nodes that have a certificate.
    pub total: u64,
    /// Those of them that use one of the new root.
    pub converged: u64,
    /// The others that the rotation waits for, in order of id.
    pub waiting: Vec<(NodeId, Standing)>,
    /// The others that it does not wait for, in order of id.
    pub skipped: Vec<(NodeId, Standing)>,
}

impl RootRotation {
    /// How far a node is; `None` for one that has no certificate to lose: it asked to join, and waits.
    pub fn standing(&self, node: &Node) -> Option<Standing> {
        let certificate = &node.certificate;
        if certificate.certificate.is_empty() {
            return None;
        }
        if !self.issuer.is_empty() && certificate.reported_issuer == self.issuer {
            return Some(Standing::Converged);
        }
        Some(match certificate.state {
            IssuanceState::Rotate => Standing::Asked,
            IssuanceState::Renew | IssuanceState::Pending => Standing::Signing,
            IssuanceState::Failed => Standing::Failed,
            IssuanceState::Issued if certificate.issuer == self.issuer => Standing::Issued,
            IssuanceState::Issued | IssuanceState::Unknown => Standing::NotAsked,
        })
    }

    /// How far everybody is. `nodes` in order of id; `voters` are the nodes that vote in the Raft group.
    ///
    /// Nodes that are skipped are cut off at the end. While so many voters would be that those left are no majority, the
    /// voters among them are waited for all the same: the swarm would never have a leader again.
    pub fn progress<'a>(&self, nodes: impl Iterator<Item = &'a Node>, voters: &BTreeSet<NodeId>) -> RotationProgress {
        let mut progress = RotationProgress::default();
        let mut lost_voters = 0;
        for node in nodes {
            let Some(standing) = self.standing(node) else { continue };
            progress.total += 1;
            if standing == Standing::Converged {
                progress.converged += 1;
            } else if self.skip.contains(&node.id) {
                lost_voters += usize::from(voters.contains(&node.id));
                progress.skipped.push((node.id, standing));
            } else {
                progress.waiting.push((node.id, standing));
            }
        }
        if !leaves_majority(voters.len(), lost_voters) {
            let skipped = std::mem::take(&mut progress.skipped);
            let (kept, spared) = skipped.into_iter().partition(|(id, _)| voters.contains(id));
            progress.skipped = spared;
            progress.waiting.extend::<Vec<_>>(kept);
            progress.waiting.sort_unstable();
        }
        progress
    }
}

/// Whether so many voters can do without so many of them.
pub const fn leaves_majority(voters: usize, lost: usize) -> bool {
    voters.saturating_sub(lost) > voters / 2 || lost == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u128, state: IssuanceState, issuer: &str, reported: &str) -> Node {
        let mut node = Node::new(NodeId(id), Role::Worker);
        node.certificate.certificate = "chain".to_owned();
        node.certificate.state = state;
        node.certificate.issuer = issuer.to_owned();
        node.certificate.reported_issuer = reported.to_owned();
        node
    }

    fn rotation(skip: &[u128]) -> RootRotation {
        let skip = skip.iter().copied().map(NodeId).collect();
        RootRotation { issuer: "new".to_owned(), skip, ..RootRotation::default() }
    }

    #[test]
    fn a_node_is_as_far_as_it_says_it_is() {
        for (state, issuer, reported, expected) in [
            (IssuanceState::Issued, "old", "old", Standing::NotAsked),
            (IssuanceState::Unknown, "old", "old", Standing::NotAsked),
            (IssuanceState::Rotate, "old", "old", Standing::Asked),
            (IssuanceState::Renew, "old", "old", Standing::Signing),
            (IssuanceState::Pending, "old", "", Standing::Signing),
            (IssuanceState::Issued, "new", "old", Standing::Issued),
            (IssuanceState::Issued, "new", "", Standing::Issued),
            (IssuanceState::Failed, "old", "old", Standing::Failed),
            (IssuanceState::Issued, "new", "new", Standing::Converged),
            // It uses the new one, whatever it asks for next.
            (IssuanceState::Renew, "new", "new", Standing::Converged),
            (IssuanceState::Rotate, "old", "new", Standing::Converged),
        ] {
            let node = node(7, state, issuer, reported);
            assert_eq!(rotation(&[]).standing(&node), Some(expected), "{state:?} {issuer} {reported}");
        }
        let mut waits = node(7, IssuanceState::Pending, "", "");
        waits.certificate.certificate.clear();
        assert_eq!(rotation(&[]).standing(&waits), None);
        assert_eq!(rotation(&[]).progress([waits].iter(), &BTreeSet::new()), RotationProgress::default());
    }

    #[test]
    fn skipped_nodes_are_not_waited_for_unless_the_swarm_would_lose_its_majority() {
        let nodes = [
            node(1, IssuanceState::Issued, "new", "new"),
            node(2, IssuanceState::Rotate, "old", "old"),
            node(3, IssuanceState::Issued, "old", "old"),
            node(4, IssuanceState::Issued, "old", "old"),
        ];
        let check = |skip: &[u128], voters: &[u128], waiting: &[u128], skipped: &[u128]| {
            let progress = rotation(skip).progress(nodes.iter(), &voters.iter().copied().map(NodeId).collect());
            let ids = |list: &[(NodeId, Standing)]| list.iter().map(|(id, _)| id.0).collect::<Vec<_>>();
            assert_eq!((ids(&progress.waiting), ids(&progress.skipped)), (waiting.to_vec(), skipped.to_vec()));
            assert_eq!((progress.total, progress.converged), (4, 1));
        };
        check(&[], &[1, 2, 3], &[2, 3, 4], &[]);
        check(&[4], &[1, 2, 3], &[2, 3], &[4]);
        check(&[3, 4], &[1, 2, 3], &[2], &[3, 4]);
        check(&[2, 3, 4], &[1, 2, 3], &[2, 3], &[4]);
        check(&[2], &[1, 2], &[2, 3, 4], &[]);
        check(&[2, 3], &[1], &[4], &[2, 3]);
        // One that moved may be named as well.
        check(&[1, 3, 4], &[1, 2, 3], &[2], &[3, 4]);
    }
}
