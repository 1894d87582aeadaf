//! What peers send: who may send what, and snapshots that a leader offers.

use super::*;

impl Machine {
    pub(super) fn on_peer(&mut self, now: Instant, from: NodeId, message: Message) {
        let known = self.replicated.members.iter().find(|member| member.raft_id.0 == message.from);
        let is_vote = matches!(message.msg_type, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        match known {
            Some(member) if member.node_id != from => {
                log::warn!("dropping a raft message: node {from} claims to be member {}", message.from);
                return;
            }
            Some(_) => {}
            None if message.from < self.replicated.next_raft_id.0 && self.was_member(message.from) => {
                return;
            }
            None if is_vote && planted(Fault::StrangersNotHeard) => return,
            None if !STRANGERS_MAY.contains(&message.msg_type) => return,
            None => {
                self.strangers.insert(message.from, from);
                if self.strangers.len() > 64 {
                    self.strangers.pop_first();
                }
            }
        }
        if let Err(invalid) = validate::check(&message, self.raft_id.0, &self.node.raft.raft_log) {
            if invalid == Invalid::LogLost && message.term >= self.node.raft.term {
                let text = format!(
                    "the leader has this member's log confirmed up to {}, but it ends at {}: the disk lost acknowledged data",
                    message.commit,
                    self.node.raft.raft_log.last_index()
                );
                self.effects.stop = Some(Stop::Fenced(text));
            } else {
                log::warn!("dropping a raft message {:?} of node {from}: {invalid}", message.msg_type);
            }
            return;
        }
        if known.is_some() {
            self.peers.entry(from).or_default().heard = Some(now);
        }
        self.note_refusal(now, &message);
        match message.msg_type {
            _ if is_vote && self.replicated.members.is_empty() && !planted(Fault::EmptyLogVotes) => {
                // Only a voter is asked, and only a member that had its log becomes one.
                log::warn!("not voting for node {from}: it takes this member for a voter, and there is no log here");
                return;
            }
            MessageType::MsgAppend if self.is_over_budget() || self.has_no_room_for(&message) => return,
            // A sole voter needs nobody's leave to lead, and raft-rs panics when it wins with a Ready unsynced.
            MessageType::MsgTimeoutNow if self.is_installing() || self.is_sole_voter() => return,
            MessageType::MsgSnapshot => return self.on_snapshot_offer(now, from, message),
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse
                if self.is_candidate()
                    && self.is_unsynced()
                    && self.early_votes.len() < 64
                    && !planted(Fault::EarlyVotesTaken) =>
            {
                // The request left when everything was synced, and the report of that is still on its way here.
                self.early_votes.push(message);
                return;
            }
            _ => {}
        }
        self.step_raft(message);
    }

    /// A vote refused in the term for which we ask: who refuses has given it to another, most likely to itself, or knows a
    /// longer log, whose owner will campaign too.
    fn note_refusal(&mut self, now: Instant, message: &Message) {
        let raft = &self.node.raft;
        let refused = message.msg_type == MessageType::MsgRequestVoteResponse && message.reject;
        if refused && raft.state == StateRole::Candidate && message.term == raft.term {
            let jitter = failover::spread(self.seed, self.raft_id.0, now.as_nanos(), 3);
            self.failover.duel_lost(now, self.turn(), jitter);
        }
    }

    /// Entries are not known to be durable yet. raft-rs panics when it wins an election then.
    pub(super) fn is_unsynced(&self) -> bool {
        self.node.raft.raft_log.persisted < self.node.raft.raft_log.last_index()
    }

    /// A snapshot has replaced the log and is not applied yet. raft-rs looks through the entries in between when it
    /// campaigns, and panics because they are gone.
    pub(super) fn is_installing(&self) -> bool {
        self.node.store().first().0 > self.node.raft.raft_log.applied + 1
    }

    pub(super) fn step_raft(&mut self, message: Message) {
        let kind = message.msg_type;
        if let Err(error) = self.node.step(message) {
            log::debug!("raft did not take a {kind:?}: {error}");
        }
    }

    /// A raft id below the counter that is no member now has been removed.
    pub(super) fn was_member(&self, id: u64) -> bool {
        // A member that is itself behind does not know newer ones: only ids below its own counter are judged.
        !self.replicated.members.is_empty() && id < self.replicated.next_raft_id.0
    }

    pub(super) fn on_snapshot_offer(&mut self, now: Instant, from: NodeId, message: Message) {
        let position = snapshot_position(&message);
        if message.term < self.node.raft.term || position.index <= self.applied {
            // raft-rs answers an old one with what is committed here, which moves the sender on.
            self.step_raft(message);
            return;
        }
        let same = self.offered.as_ref().is_some_and(|(offered, _)| snapshot_position(offered) == position);
        // The leader offers again after a while without progress: so does a fetch that died without a word.
        if same && self.offered.as_ref().is_some_and(|(_, at)| now.since(*at) < SNAPSHOT_PATIENCE) {
            return;
        }
        let state = message.get_snapshot().get_metadata().get_conf_state();
        let configuration = Configuration {
            voters: state.voters.iter().map(|id| RaftId(*id)).collect(),
            learners: state.learners.iter().map(|id| RaftId(*id)).collect(),
        };
        let mark = SnapshotMark { position, configuration, bytes: 0 };
        self.offered = Some((message, now));
        self.effects.happened.push(Happened::SnapshotOffered { index: position.index });
        self.effects.fetch_snapshot = Some(FetchSnapshot { from, mark });
    }

    pub(super) fn on_snapshot_fetched(&mut self, position: Position, bytes: u64) {
        let Some((message, _)) = self.offered.take_if(|(offered, _)| snapshot_position(offered) == position) else {
            return;
        };
        self.fetched_bytes = bytes;
        self.step_raft(message);
    }
}
