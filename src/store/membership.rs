//! Who is in the Raft group: replicated state, decided by apply.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::revoked::Revocations;
use crate::sys::faults::{Fault, planted};
use crate::types::log::Configuration;
use crate::types::{Index, Member, MemberChange, MemberRole, NodeId, RaftId};

/// Members, the ids that were used up, how far each voter's log is known to reach, and who is not to come back. Nothing here
/// grows with the number of those who were once members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Membership {
    pub members: BTreeMap<RaftId, Member>,
    /// Every id below was given to a member once.
    pub next_raft_id: RaftId,
    /// Log indexes that members had on disk, as the last marks recorded them.
    pub floors: BTreeMap<RaftId, Index>,
    /// Nodes that are not to be taken for managers, whatever their certificates say.
    pub revoked: Revocations,
}

impl Membership {
    pub fn bootstrap(node_id: NodeId, addr: String) -> Self {
        let first = RaftId(1);
        let member = Member { raft_id: first, node_id, addr, role: MemberRole::Voter };
        Self { members: BTreeMap::from([(first, member)]), next_raft_id: first.next(), ..Self::default() }
    }

    /// The group of one member that begins a new history: everybody before it is removed for good, that member's own
    /// former raft id too. Floors are about logs that nobody has any more.
    pub fn succeed(&self, node_id: NodeId, addr: String) -> Self {
        let raft_id = self.next_raft_id;
        let member = Member { raft_id, node_id, addr, role: MemberRole::Voter };
        let members = BTreeMap::from([(raft_id, member)]);
        Self { members, next_raft_id: raft_id.next(), floors: BTreeMap::new(), revoked: self.revoked.clone() }
    }

    pub fn of_node(&self, node_id: NodeId) -> Option<&Member> {
        self.members.values().find(|member| member.node_id == node_id)
    }

    /// The id was a member's, and is none's now.
    pub fn is_removed(&self, raft_id: RaftId) -> bool {
        raft_id.0 > 0 && raft_id < self.next_raft_id && !self.members.contains_key(&raft_id)
    }

    pub fn configuration(&self) -> Configuration {
        let of = |role| self.members.values().filter(move |member| member.role == role).map(|member| member.raft_id);
        Configuration { voters: of(MemberRole::Voter).collect(), learners: of(MemberRole::Learner).collect() }
    }

    /// Whether the change may be made.
    pub fn allows(&self, change: &MemberChange) -> bool {
        match change {
            MemberChange::AddLearner { raft_id, node_id, .. } => {
                *raft_id == self.next_raft_id && self.of_node(*node_id).is_none() && !self.revoked.contains(*node_id)
            }
            MemberChange::Promote { raft_id } => self.role(*raft_id) == Some(MemberRole::Learner),
            MemberChange::Remove { raft_id } | MemberChange::Leave { raft_id } => match self.role(*raft_id) {
                Some(MemberRole::Voter) => self.configuration().voters.len() > 1,
                Some(MemberRole::Learner) => true,
                None => false,
            },
        }
    }

    fn role(&self, raft_id: RaftId) -> Option<MemberRole> {
        self.members.get(&raft_id).map(|member| member.role)
    }

    /// Makes a change that [`Self::allows`] allowed.
    pub fn apply(&mut self, change: &MemberChange) {
        match change {
            MemberChange::AddLearner { raft_id, node_id, addr } => {
                let role = MemberRole::Learner;
                let member = Member { raft_id: *raft_id, node_id: *node_id, addr: addr.clone(), role };
                self.members.insert(*raft_id, member);
                self.next_raft_id = raft_id.next();
            }
            MemberChange::Promote { raft_id } => {
                if let Some(member) = self.members.get_mut(raft_id) {
                    member.role = MemberRole::Voter;
                }
            }
            MemberChange::Remove { raft_id } | MemberChange::Leave { raft_id } => {
                self.members.remove(raft_id);
                self.floors.remove(raft_id);
                if planted(Fault::RaftIdReused) {
                    self.next_raft_id = self.members.keys().next_back().map_or(RaftId(1), |last| last.next());
                }
            }
        }
    }

    pub fn set_address(&mut self, raft_id: RaftId, node_id: NodeId, addr: &str) -> bool {
        match self.members.get_mut(&raft_id) {
            Some(member) if member.node_id == node_id => {
                addr.clone_into(&mut member.addr);
                true
            }
            _ => false,
        }
    }

    /// Raises the floors of members. What a member once had on disk stays true, so that a floor never falls: a new leader
    /// that has not heard of a member yet says zero.
    pub fn raise_floors(&mut self, floors: &[(RaftId, Index)]) {
        for (raft_id, index) in floors {
            if self.members.contains_key(raft_id) {
                let floor = self.floors.entry(*raft_id).or_default();
                *floor = (*floor).max(*index);
            }
        }
    }
}
