//! Orders of callers: transfer, join, leave, move; and the changes of membership that they become.

use super::*;

impl Machine {
    pub(super) fn on_order(&mut self, token: Token, order: Order) {
        if let Order::Snapshot = order {
            if self.applied.0 == 0 {
                let why = "this manager has none of the swarm's data yet: give the order again when it has joined";
                let status = Status::new(Code::FailedPrecondition, why);
                self.effects.replies.push(Reply::Order(token, OrderResult::Refused(status)));
                return;
            }
            let mark = self.node.store().snapshot_mark();
            if mark.position.index == self.applied && mark.position.index.0 > 1 {
                let answer = Answer::SnapshotWritten { position: mark.position, bytes: mark.bytes };
                self.effects.replies.push(Reply::Order(token, OrderResult::Done(answer)));
                return;
            }
            self.orders.snapshots.push(token);
            self.create_snapshot();
            return;
        }
        if !self.is_leader() || self.stopping {
            self.effects.replies.push(Reply::Order(token, OrderResult::Again));
            return;
        }
        let immediate = match order {
            Order::Snapshot => None,
            Order::Transfer { to } => self.order_transfer(token, to),
            Order::Join { node_id, addr, feature_level } => self.order_join(token, node_id, addr, feature_level),
            Order::Leave { node_id, force, for_good } => self.order_leave(token, node_id, force, for_good),
            Order::SetAddress { node_id, addr } => self.order_address(token, node_id, &addr),
        };
        if let Some(result) = immediate {
            self.effects.replies.push(Reply::Order(token, result));
        }
    }

    pub(super) fn order_transfer(&mut self, token: Token, to: Option<NodeId>) -> Option<OrderResult> {
        if to == Some(self.node_id) {
            return Some(OrderResult::Done(Answer::Leader(self.node_id)));
        }
        if self.orders.transfer.is_some() {
            let status = Status::new(Code::FailedPrecondition, "leadership is being handed over already");
            return Some(OrderResult::Refused(status.with_hint("see who leads with `skep members`")));
        }
        let target = match to {
            None => self.best_voter(false),
            Some(node) => match self.voters().find(|member| member.node_id == node) {
                Some(member) if self.is_up(node) => Some(member.raft_id),
                Some(_) => {
                    let status = Status::new(Code::FailedPrecondition, format!("manager {node} is not reachable"));
                    return Some(OrderResult::Refused(status.with_hint("see who is with `skep members`")));
                }
                None => {
                    let status = Status::new(Code::FailedPrecondition, format!("node {node} is not a voter"));
                    return Some(OrderResult::Refused(status.with_hint("see who votes with `skep members`")));
                }
            },
        };
        let Some(to) = target else {
            let status = Status::new(Code::FailedPrecondition, "there is no other reachable voter to lead");
            return Some(OrderResult::Refused(status.with_hint("add one with `skep run --join`")));
        };
        self.node.transfer_leader(to.0);
        self.effects.happened.push(Happened::HandsOver { to });
        self.orders.transfer = Some(Transfer { token: Some(token), to, term: Term(self.node.raft.term), ended: None });
        None
    }

    pub(super) fn order_join(
        &mut self,
        token: Token,
        node_id: NodeId,
        addr: String,
        level: u32,
    ) -> Option<OrderResult> {
        if level < FEATURE_LEVEL {
            let message =
                format!("the joiner understands formats up to level {level}; this swarm writes {FEATURE_LEVEL}");
            let status = Status::new(Code::FailedPrecondition, message).with_hint("install a newer skep there");
            return Some(OrderResult::Refused(status));
        }
        if let Some(member) = self.replicated.members.iter().find(|member| member.node_id == node_id) {
            if member.addr == addr {
                return Some(OrderResult::Done(self.join_answer(member.raft_id, addr)));
            }
            // A second join under a new address is a move.
            return self.order_address(token, node_id, &addr);
        }
        if self.replicated.members.iter().any(|member| member.addr == addr) {
            let message = format!("another member listens on {addr}");
            let status = Status::new(Code::AlreadyExists, message)
                .with_hint("start the joiner with another --advertise, or remove the old member first");
            return Some(OrderResult::Refused(status));
        }
        self.want(Wanted { token: Some(token), node_id, kind: WantedKind::Join(addr) })
    }

    pub(super) fn want(&mut self, wanted: Wanted) -> Option<OrderResult> {
        if self.orders.concerns(wanted.node_id) && wanted.token.is_some() {
            let message = format!("a membership change of node {} is under way", wanted.node_id);
            let status = Status::new(Code::Unavailable, message).with_hint("try again in a second");
            return Some(OrderResult::Refused(status));
        }
        if self.orders.want(wanted) {
            return None;
        }
        let status = Status::new(Code::ResourceExhausted, "too many membership changes wait for their turn");
        Some(OrderResult::Refused(status.with_hint("try again in a second")))
    }

    pub(super) fn order_leave(
        &mut self,
        token: Token,
        node_id: NodeId,
        force: bool,
        for_good: bool,
    ) -> Option<OrderResult> {
        let Some(member) = self.replicated.members.iter().find(|member| member.node_id == node_id) else {
            return Some(OrderResult::Done(Answer::Done));
        };
        let member = member.clone();
        let voters = self.voters().count();
        if member.role == MemberRole::Voter && voters == 1 {
            let status = Status::new(Code::FailedPrecondition, "the last manager cannot leave its swarm");
            return Some(OrderResult::Refused(
                status.with_hint("to end the swarm, stop the daemon and remove its data directory"),
            ));
        }
        if member.role == MemberRole::Voter && !force {
            let left = voters - 1;
            let needed = left / 2 + 1;
            let reachable = self.voters().filter(|m| m.node_id != node_id && self.is_up(m.node_id)).count();
            if reachable < needed && !planted(Fault::QuorumUnguarded) {
                let message = format!(
                    "removing manager {node_id} would leave {reachable} reachable of {left} voters, and {needed} are needed"
                );
                let status = Status::new(Code::FailedPrecondition, message)
                    .with_hint("bring the other managers back first, or use --force");
                return Some(OrderResult::Refused(status));
            }
        }
        let kind = if for_good { WantedKind::Leave } else { WantedKind::Remove };
        let wanted = Wanted { token: Some(token), node_id, kind };
        if member.raft_id == self.raft_id {
            // A removed leader would go on sending heartbeats for ever: whoever leads next removes it.
            if self.node.raft.lead_transferee.is_none() && !self.transfer_to_best(false) {
                let status = Status::new(Code::Unavailable, "no other voter is reachable to lead first");
                return Some(OrderResult::Refused(status.with_hint("see who is reachable with `skep members`")));
            }
            // Answered when leadership has moved.
            self.orders.waiting.push_back(wanted);
            return None;
        }
        self.want(wanted)
    }

    pub(super) fn order_address(&mut self, token: Token, node_id: NodeId, addr: &str) -> Option<OrderResult> {
        let Some(member) = self.replicated.members.iter().find(|member| member.node_id == node_id) else {
            let status = Status::new(Code::FailedPrecondition, format!("node {node_id} is not a member"));
            return Some(OrderResult::Refused(status.with_hint("join first with `skep run --join`")));
        };
        if member.addr == addr {
            return Some(OrderResult::Done(Answer::Done));
        }
        let command = Command::SetAddress { raft_id: member.raft_id, node_id, addr: addr.to_owned() };
        match self.propose_command(&command) {
            Some((index, term)) => {
                self.orders.addresses.push((index, term, token));
                None
            }
            None => Some(OrderResult::Again),
        }
    }

    pub(super) fn join_answer(&self, raft_id: RaftId, advertise: String) -> Answer {
        Answer::Joined(Box::new(JoinAnswer {
            raft_id,
            advertise,
            lineage: self.lineage,
            profile: self.profile,
            members: self.replicated.members.clone(),
        }))
    }

    /// Proposes the next membership change when nothing stands against it.
    pub(super) fn propose_membership(&mut self) {
        let raft = &self.node.raft;
        let free = self.is_leader()
            && raft.lead_transferee.is_none()
            && self.orders.proposed.is_none()
            && raft.commit_to_current_term()
            && !raft.has_pending_conf()
            && raft.pending_conf_index <= self.applied.0;
        if !free {
            return;
        }
        let Some(wanted) = self.orders.waiting.pop_front() else { return };
        let member = self.replicated.members.iter().find(|member| member.node_id == wanted.node_id);
        let (kind, id, change) = match (wanted.kind, member) {
            (WantedKind::Join(addr), None) => {
                let raft_id = self.replicated.next_raft_id;
                let change = MemberChange::AddLearner { raft_id, node_id: wanted.node_id, addr };
                (ConfChangeType::AddLearnerNode, raft_id, change)
            }
            (WantedKind::Promote(raft_id), Some(member)) if member.role == MemberRole::Learner => {
                (ConfChangeType::AddNode, raft_id, MemberChange::Promote { raft_id })
            }
            (WantedKind::Remove, Some(member)) if member.raft_id != self.raft_id => {
                let raft_id = member.raft_id;
                (ConfChangeType::RemoveNode, raft_id, MemberChange::Remove { raft_id })
            }
            (WantedKind::Leave, Some(member)) if member.raft_id != self.raft_id => {
                let raft_id = member.raft_id;
                (ConfChangeType::RemoveNode, raft_id, MemberChange::Leave { raft_id })
            }
            _ => {
                // Overtaken by another change: whoever asked finds out by asking again.
                if let Some(token) = wanted.token {
                    self.effects.replies.push(Reply::Order(token, OrderResult::Again));
                }
                return;
            }
        };
        let mut conf_change = ConfChange::default();
        conf_change.set_change_type(kind);
        conf_change.node_id = id.0;
        conf_change.context = envelope::encode(&change).into();
        if planted(Fault::MembershipAtProposal) {
            let _ = self.node.apply_conf_change(&conf_change);
        }
        if self.node.propose_conf_change(Vec::new(), conf_change).is_err() {
            if let Some(token) = wanted.token {
                self.effects.replies.push(Reply::Order(token, OrderResult::Again));
            }
            return;
        }
        let index = Index(self.node.raft.raft_log.last_index());
        let term = Term(self.node.raft.term);
        self.orders.proposed = Some(Proposed { token: wanted.token, index, term, change, node_id: wanted.node_id });
    }

    /// What became of the membership change at `index`: apply's verdict, or `None` when raft-rs put nothing in its place.
    pub(super) fn membership_decided(&mut self, index: Index, verdict: Option<bool>) {
        let Some(proposed) = self.orders.proposed.take_if(|proposed| proposed.index <= index) else { return };
        let decided = proposed.index == index && verdict.is_some();
        let certain = decided && verdict == Some(true);
        let Some(token) = proposed.token else { return };
        let result = match proposed.change {
            MemberChange::AddLearner { raft_id, addr, .. } if certain => {
                OrderResult::Done(self.join_answer(raft_id, addr))
            }
            MemberChange::Promote { .. } | MemberChange::Remove { .. } | MemberChange::Leave { .. } if certain => {
                OrderResult::Done(Answer::Done)
            }
            // Its id is new and the node is no member, so that apply can have refused it for one reason only.
            MemberChange::AddLearner { .. } if decided => {
                let message = format!("node {} was removed from this swarm", proposed.node_id);
                let hint = "join it again with an empty data directory, as a new node";
                OrderResult::Refused(Status::new(Code::FailedPrecondition, message).with_hint(hint))
            }
            _ => OrderResult::Again,
        };
        self.effects.replies.push(Reply::Order(token, result));
    }

    pub(super) fn promote_learners(&mut self) {
        let last = self.node.raft.raft_log.last_index();
        let candidate = self.replicated.members.iter().find(|member| {
            let progress = self.node.raft.prs().get(member.raft_id.0);
            member.role == MemberRole::Learner
                && !self.orders.concerns(member.node_id)
                && progress.is_some_and(|progress| {
                    // After a snapshot raft-rs goes on probing until there is an entry to send.
                    let is_following = progress.state == ProgressState::Replicate || progress.matched == last;
                    is_following
                        && progress.recent_active
                        && progress.matched > 0
                        && progress.matched + PROMOTION_LAG >= last
                })
        });
        if let Some(member) = candidate {
            let kind = WantedKind::Promote(member.raft_id);
            let node_id = member.node_id;
            self.orders.want(Wanted { token: None, node_id, kind });
        }
    }

    /// Begins a transfer to the voter that is furthest; false when there is none.
    pub(super) fn transfer_to_best(&mut self, healthy: bool) -> bool {
        if !self.is_leader() {
            return false;
        }
        let Some(to) = self.best_voter(healthy) else { return false };
        self.node.transfer_leader(to.0);
        self.effects.happened.push(Happened::HandsOver { to });
        if self.orders.transfer.is_none() {
            self.orders.transfer = Some(Transfer { token: None, to, term: Term(self.node.raft.term), ended: None });
        }
        true
    }

    pub(super) fn best_voter(&self, healthy: bool) -> Option<RaftId> {
        self.voters()
            .filter(|member| member.raft_id != self.raft_id)
            .filter_map(|member| {
                let peer = self.peers.get(&member.node_id).filter(|peer| peer.up)?;
                let healthy = !healthy || peer.sync_us <= HEALTHY_SYNC_US && !peer.disk_low;
                let progress = self.node.raft.prs().get(member.raft_id.0).filter(|_| healthy)?;
                Some((progress.matched, std::cmp::Reverse(member.raft_id)))
            })
            .max()
            .map(|(_, id)| id.0)
    }

    pub(super) fn finish_snapshot_orders(&mut self, result: OrderResult) {
        for token in std::mem::take(&mut self.orders.snapshots) {
            self.effects.replies.push(Reply::Order(token, result.clone()));
        }
    }
}
