//! Proposals and reads.

use super::*;

impl Machine {
    pub(super) fn on_propose(&mut self, token: Token, command: Bytes) {
        if !self.is_leader() || self.node.raft.lead_transferee.is_some() || self.stopping {
            self.effects.replies.push(Reply::NotLeader(token));
        } else if let Some(status) = self.no_room(&command) {
            self.effects.replies.push(Reply::Refused(token, status));
        } else if self.is_over_budget() {
            self.effects.replies.push(Reply::Overloaded(token));
        } else {
            self.proposing.push((token, command));
        }
    }

    pub(super) fn is_over_budget(&self) -> bool {
        self.unsynced_bytes > MAX_UNSYNCED_BYTES || self.committed_bytes + self.applying_bytes > MAX_UNAPPLIED_BYTES
    }

    /// One message for all: raft-rs appends and broadcasts once.
    pub(super) fn propose_collected(&mut self) {
        if self.proposing.is_empty() {
            return;
        }
        let proposing = std::mem::take(&mut self.proposing);
        let (tokens, commands): (Vec<Token>, Vec<Bytes>) = proposing.into_iter().unzip();
        match self.propose(commands) {
            Some((first, term)) => {
                for (offset, token) in tokens.into_iter().enumerate() {
                    self.pending.push_back((Index(first.0 + offset as u64), term, token));
                }
            }
            None if self.is_leader() => self.effects.replies.extend(tokens.into_iter().map(Reply::Overloaded)),
            None => self.effects.replies.extend(tokens.into_iter().map(Reply::NotLeader)),
        }
    }

    /// Appends commands as entries; the index of the first and the term.
    pub(super) fn propose(&mut self, commands: Vec<Bytes>) -> Option<(Index, Term)> {
        if !self.is_leader() {
            return None;
        }
        let first = Index(self.node.raft.raft_log.last_index() + 1);
        let mut message = Message::default();
        message.msg_type = MessageType::MsgPropose;
        message.from = self.raft_id.0;
        let entries: Vec<Entry> = commands
            .into_iter()
            .map(|data| {
                let mut entry = Entry::default();
                entry.data = data;
                entry
            })
            .collect();
        message.entries = entries.into();
        let committed = Index(self.node.raft.raft_log.committed);
        self.node.step(message).ok()?;
        // What leaves with the entries says so.
        self.commit_told = committed;
        Some((first, Term(self.node.raft.term)))
    }

    /// Lets the followers know what is committed. raft-rs would send each a message of its own for that at every commit,
    /// and get an answer: for a lone write as many messages again as it takes itself. The next entries carry it just as
    /// well, and heartbeats and rounds of reads do too.
    pub(super) fn tell_commit(&mut self, now: Instant) {
        let committed = Index(self.node.raft.raft_log.committed);
        if !self.is_leader() {
            (self.commit_told, self.commit_due) = (Index(0), None);
        } else if committed <= self.commit_told {
            self.commit_due = None;
        } else if *self.commit_due.get_or_insert(now + COMMIT_PATIENCE) <= now {
            self.node.raft.bcast_append();
            (self.commit_told, self.commit_due) = (committed, None);
        }
    }

    pub(super) fn propose_command(&mut self, command: &Command) -> Option<(Index, Term)> {
        self.propose(vec![envelope::encode(command).into()])
    }

    pub(super) fn begin_reads(&mut self, now: Instant) {
        if self.can_read() && !self.reads.is_empty() {
            for context in self.reads.begin(now, READ_RETRY) {
                self.node.read_index(context);
            }
        }
    }

    /// raft-rs drops a round without a word when there is no leader or the leader's term has no commit yet.
    pub(super) fn can_read(&self) -> bool {
        let raft = &self.node.raft;
        if self.is_leader() { raft.commit_to_current_term() } else { raft.leader_id != 0 }
    }
}
