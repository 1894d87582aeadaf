//! Who leads, as it is announced; what ends with leadership; marks.

use super::*;

impl Machine {
    pub(super) fn note_leadership(&mut self, now: Instant) {
        let raft = &self.node.raft;
        let (is_leader, term, leader_id) = (raft.state == StateRole::Leader, Term(raft.term), raft.leader_id);
        if leader_id != 0 {
            self.last_leader = Some(RaftId(leader_id));
            self.leader_lost = None;
            self.failover.cancel();
        } else if self.leader_lost.is_none() {
            self.leader_lost = Some(now);
        }
        let led = self.leadership.leader == Some(self.node_id);
        let new_term = term != self.leadership.term;
        if is_leader && (new_term || !led) {
            self.term_began = Index(raft.raft_log.last_index());
        }
        if led && (!is_leader || new_term) {
            self.leadership_ended(now);
        }
        let leader = if leader_id == 0 { None } else { self.node_of(leader_id) };
        let serving = is_leader && (self.applied >= self.term_began || planted(Fault::ServesBeforeOwnTerm));
        let leadership = Leadership { leader, serving, term };
        self.settle_transfer(leader_id, term);
        if leadership != self.leadership {
            self.leadership = leadership;
            self.effects.leadership = Some(leadership);
        }
    }

    /// For the journal: every change of state, term or leader that a batch ends with.
    pub(super) fn note_role(&mut self) {
        let raft = &self.node.raft;
        let (state, term, leader) = (raft.state, Term(raft.term), raft.leader_id);
        let before = std::mem::replace(&mut self.noted, (state, term.0, leader));
        if before == self.noted {
            return;
        }
        let happened = match state {
            StateRole::Leader => Happened::BecameLeader { term },
            _ if leader != 0 => Happened::Follows { leader: RaftId(leader), term },
            _ => Happened::LostLeader { term },
        };
        let same = before.2 == leader && before.1 == term.0 && state != StateRole::Leader;
        if !same {
            self.effects.happened.push(happened);
        }
    }

    pub(super) fn leadership_ended(&mut self, now: Instant) {
        let uncertain = std::mem::take(&mut self.pending).into_iter().map(|(_, _, token)| Reply::Uncertain(token));
        self.effects.replies.extend(uncertain);
        let replies = self.orders.leadership_ended();
        self.effects.replies.extend(replies);
        if let Some(transfer) = &mut self.orders.transfer {
            transfer.ended = Some(now);
        }
        self.mark_proposed = None;
        for peer in self.peers.values_mut() {
            peer.snapshot = None;
        }
    }

    /// Tells whoever asked for a transfer who leads, once an entry of the new term is applied here: a leader serves from
    /// when it has applied that entry itself, and whoever is told must find it serving.
    pub(super) fn settle_transfer(&mut self, leader: u64, term: Term) {
        let serves = self.node.raft.raft_log.term(self.applied.0) == Ok(term.0);
        let settled = self.orders.transfer.take_if(|transfer| transfer.term != term && leader != 0 && serves);
        if let Some(Transfer { token: Some(token), to, .. }) = settled {
            self.tell_of_transfer(token, to, leader);
        }
    }

    fn tell_of_transfer(&mut self, token: Token, to: RaftId, leader: u64) {
        let result = match self.node_of(leader) {
            Some(node) if to.0 == leader => OrderResult::Done(Answer::Leader(node)),
            _ => {
                let message = format!("member {leader} took over instead of member {to}");
                OrderResult::Refused(Status::new(Code::Aborted, message).with_hint("try again"))
            }
        };
        self.effects.replies.push(Reply::Order(token, result));
    }

    /// Whoever asked for a transfer waits for the next leader to serve, but not for ever: it may be that no other can be
    /// elected, or that this manager cannot follow it because its disk is full.
    pub(super) fn watch_ended_transfer(&mut self, now: Instant) {
        let patience = self.tick_interval() * self.timing.election_ticks as u32 * TRANSFER_PATIENCE;
        let given_up = |transfer: &mut Transfer| transfer.ended.is_some_and(|ended| now.since(ended) > patience);
        let Some(Transfer { token: Some(token), to, term, .. }) = self.orders.transfer.take_if(given_up) else {
            return;
        };
        let leader = self.node.raft.leader_id;
        if leader != 0 && Term(self.node.raft.term) != term {
            return self.tell_of_transfer(token, to, leader);
        }
        let message = format!("this manager leads no more, and whether member {to} leads now is not known here");
        let status = Status::new(Code::Unknown, message).with_hint("`skep members` on another manager shows who leads");
        self.effects.replies.push(Reply::Order(token, OrderResult::Refused(status)));
    }

    /// The last entry that every member is known to have. Only a leader knows; to anyone else no entry counts as lacked.
    /// A member that lacks much more than memory holds is left out: it begins on the disk, and comes back here when it has
    /// nearly caught up.
    pub(super) fn matched_everywhere(&self) -> Index {
        if !self.is_leader() {
            return Index(u64::MAX);
        }
        let log = self.node.store();
        let matched = self.node.raft.prs().iter().map(|(_, progress)| Index(progress.matched));
        matched.filter(|matched| log.reaches(*matched)).min().unwrap_or(Index(u64::MAX))
    }

    pub(super) fn propose_mark(&mut self, now: Instant) {
        let due = self.changes_since_mark >= MARK_CHANGES
            || (self.changes_since_mark > 0 && now.since(self.last_change) > MARK_IDLE);
        if !due || self.mark_proposed.is_some() || !self.leadership.serving {
            return;
        }
        let progress = self.node.raft.prs();
        let floors = self
            .voters()
            .map(|member| {
                (member.raft_id, Index(progress.get(member.raft_id.0).map_or(0, |progress| progress.matched)))
            })
            .collect();
        self.mark_proposed = self.propose_command(&Command::Mark { floors }).map(|(index, _)| index);
    }
}
