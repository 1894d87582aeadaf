//! Ticks, links to peers, and what pings report: disk stalls, transfers, silent snapshots.

use super::*;

impl Machine {
    pub(super) fn on_tick(&mut self, now: Instant) {
        // raft-rs panics when a sole voter ticks into a campaign while a Ready is unsynced.
        if self.is_sole_voter() && !self.is_leader() && !self.in_flight.is_empty() {
            return;
        }
        if !self.is_installing() {
            self.node.tick();
        }
        // A tick counts one up, unless it was the timeout's: of a candidate too, which stays one.
        if self.is_candidate() && self.node.raft.election_elapsed == 0 {
            self.elections += 1;
            self.failover.timed_out();
            let term = Term(self.node.raft.term + u64::from(self.node.raft.state == StateRole::PreCandidate));
            self.effects.happened.push(Happened::Campaigned { term, cause: Cause::Timeout });
        }
        let expired = self.reads.expire(now, READ_LIMIT);
        if !expired.is_empty() {
            self.effects.replies.push(Reply::ReadFailed(expired));
        }
        if !self.is_leader() {
            self.watch_ended_transfer(now);
        } else {
            self.watch_disk(now);
            self.watch_space(now);
            self.watch_transfer();
            self.watch_snapshots(now);
            self.promote_learners();
            self.propose_mark(now);
        }
    }

    /// Disk latency is part of a leader's liveness: heartbeats alone would keep a leader that can write nothing.
    pub(super) fn watch_disk(&mut self, now: Instant) {
        let stalled = self.in_flight.iter().find(|flight| flight.sync).is_some_and(|f| now.since(f.since) > DISK_STALL);
        // A transfer may come to nothing, and the swarm can commit nothing while this leader stays.
        let tried = self.handed_over_at.is_some_and(|at| now.since(at) < DISK_STALL);
        let free = self.node.raft.lead_transferee.is_none();
        if stalled && !tried && free && !planted(Fault::StalledLeaderStays) && self.transfer_to_healthy() {
            self.handed_over_at = Some(now);
            self.effects.happened.push(Happened::DiskStalled);
            log::warn!("the disk has not finished a write for {DISK_STALL:?}: handing leadership over");
        }
    }

    pub(super) fn watch_transfer(&mut self) {
        let Some(transfer) = self.orders.transfer.as_ref() else { return };
        // raft-rs gives a transfer up after an election timeout, silently.
        if self.node.raft.lead_transferee.is_none() {
            let to = transfer.to;
            if let Some(token) = self.orders.transfer.take().and_then(|transfer| transfer.token) {
                let message = format!("member {to} did not take over; this manager leads on");
                // Not `Unavailable`, which is asked again: proposals wait while a transfer runs.
                let status = Status::new(Code::Aborted, message).with_hint("`skep members` shows who is reachable");
                self.effects.replies.push(Reply::Order(token, OrderResult::Refused(status)));
            }
        }
    }

    pub(super) fn watch_snapshots(&mut self, now: Instant) {
        let members: Vec<(u64, NodeId)> =
            self.replicated.members.iter().map(|member| (member.raft_id.0, member.node_id)).collect();
        for (id, node) in members {
            let progress = self.node.raft.prs().get(id);
            let is_waiting = progress.is_some_and(|progress| progress.state == ProgressState::Snapshot);
            let peer = self.peers.entry(node).or_default();
            if !is_waiting {
                peer.snapshot = None;
                continue;
            }
            let since = *peer.snapshot.get_or_insert(now);
            if now.since(since) > SNAPSHOT_PATIENCE || !peer.up {
                peer.snapshot = None;
                // raft-rs never offers a snapshot again by itself.
                if !planted(Fault::SnapshotFailureUntold) {
                    self.node.report_snapshot(id, SnapshotStatus::Failure);
                }
            }
        }
    }

    pub(super) fn on_link(&mut self, now: Instant, node: NodeId, up: bool, refused: bool) {
        let peer = self.peers.entry(node).or_default();
        if peer.up != up {
            let happened = if up { Happened::LinkUp { node } } else { Happened::LinkDown { node, refused } };
            self.effects.happened.push(happened);
        }
        peer.up = up;
        if up {
            // A follower that was unreachable is probed at once instead of at the next heartbeat.
            if self.is_leader() {
                self.node.ping();
            }
            return;
        }
        let Some(id) = self.raft_id_of(node) else { return };
        self.node.report_unreachable(id.0);
        let raft = &self.node.raft;
        let refused = refused && !planted(Fault::LeaderDeathUnnoticed);
        if refused && raft.state == StateRole::Follower && raft.leader_id == id.0 && raft.promotable() {
            let term = raft.term;
            if self.failover.leader_died(now, term, id.0, self.rank_without(id), self.turn()) {
                // `become_follower` would also zero the election clock; only the lease has to go.
                self.node.raft.leader_id = 0;
            }
        }
    }

    /// See [`failover::turn`]. Of those whose votes may come: what a dead leader's disk was like does not matter.
    pub(super) fn turn(&self) -> Duration {
        let others = || self.voters().filter_map(|member| self.peers.get(&member.node_id)).filter(|peer| peer.up);
        let rtt = others().map(|peer| peer.rtt_us).max().unwrap_or(0);
        let sync = others().map(|peer| peer.sync_us).max().unwrap_or(0).max(self.own_sync_us);
        failover::turn(rtt, sync)
    }

    pub(super) fn on_measured(&mut self, node: NodeId, rtt_us: u64, sync_us: u64, mark: (Index, u128)) {
        let peer = self.peers.entry(node).or_default();
        peer.rtt_us = rtt_us;
        peer.sync_us = sync_us;
        if mark.0.0 != 0 && peer.marks.back() != Some(&mark) {
            peer.marks.push_back(mark);
            if peer.marks.len() > MARKS_KEPT {
                peer.marks.pop_front();
            }
        }
        self.compare_hashes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::machine::tests::machine;

    #[test]
    fn a_candidate_tries_a_lost_duel_again_after_every_timeout_not_only_the_first() {
        let mut now = Instant::from_nanos(1_000_000_000);
        let mut machine = self::machine(now, 3);
        let mut causes = Vec::new();
        let mut stayed_candidate = 0;
        // One of the others would vote for this member and then has voted for itself; the third is silent. So nothing is
        // decided, and the member stays a candidate until its next timeout.
        while causes.len() < 12 {
            now = now + machine.tick_interval();
            let was_candidate = machine.node.raft.state == StateRole::Candidate;
            machine.step(now, Event::Tick);
            loop {
                let effects = machine.finish(now);
                for happened in &effects.happened {
                    if let Happened::Campaigned { cause, .. } = happened {
                        stayed_candidate += u32::from(was_candidate && *cause == Cause::Timeout);
                        causes.push(*cause);
                    }
                }
                let after_sync = effects.persist.iter().flat_map(|(_, released)| released);
                let answers: Vec<_> =
                    effects.messages.iter().chain(after_sync).filter_map(|out| answer(&out.message)).collect();
                let is_idle = effects.persist.is_empty() && answers.is_empty();
                for (persist, _) in effects.persist {
                    machine.step(now, Event::Persisted { number: persist.number });
                }
                for message in answers {
                    machine.step(now, Event::Peer { from: NodeId(2), message });
                }
                if is_idle {
                    break;
                }
            }
        }
        let round = [Cause::Timeout, Cause::Refused, Cause::Refused, Cause::Refused];
        assert_eq!(causes, round.repeat(3));
        assert_eq!(stayed_candidate, 2, "the timeouts after the first were a candidate's");
    }

    /// What the second member says to a request for its vote.
    fn answer(request: &Message) -> Option<Message> {
        let (msg_type, reject) = match request.msg_type {
            MessageType::MsgRequestPreVote => (MessageType::MsgRequestPreVoteResponse, false),
            MessageType::MsgRequestVote => (MessageType::MsgRequestVoteResponse, true),
            _ => return None,
        };
        let (from, to, term) = (2, request.from, request.term);
        (request.to == from).then(|| Message { msg_type, from, to, term, reject, ..Message::default() })
    }
}
