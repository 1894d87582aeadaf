//! raft-rs's ready loop: what is sent, what is made durable first, and what is durable.

use super::*;

impl Machine {
    pub(super) fn run_ready_loop(&mut self, now: Instant) {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            let number = ready.number();
            let held = self.send_durable(ready.take_messages());
            for read in ready.take_read_states() {
                self.reads.confirm(&read.request_ctx, Index(read.index));
            }
            let snapshot = if ready.snapshot().is_empty() { None } else { Some(ready.snapshot().clone()) };
            let mut persist_snapshot = None;
            if let Some(snapshot) = snapshot {
                let metadata = snapshot.get_metadata();
                let state = metadata.get_conf_state();
                let configuration = Configuration {
                    voters: state.voters.iter().map(|id| RaftId(*id)).collect(),
                    learners: state.learners.iter().map(|id| RaftId(*id)).collect(),
                };
                let position = Position { term: Term(metadata.term), index: Index(metadata.index) };
                let bytes = self.fetched_bytes;
                self.node.mut_store().install(SnapshotMark { position, configuration, bytes });
                self.log_bytes = 0;
                self.sizes.clear();
                self.committed.clear();
                self.committed_bytes = 0;
                self.deciding = None;
                self.effects.install = Some(position);
                self.effects.happened.push(Happened::SnapshotInstalled { index: position.index });
                persist_snapshot = Some(wal::SnapshotMark::Installed(position));
            }
            let entries = ready.take_entries();
            self.node.mut_store().append(&entries);
            for entry in ready.take_committed_entries() {
                self.committed_bytes += entry_bytes(&entry);
                self.committed.push_back(entry);
            }
            let mut releases = held;
            releases.extend(self.sort_persisted_messages(ready.take_persisted_messages()));
            let must_sync = ready.must_sync();
            self.node.advance_append_async(ready);
            if planted(Fault::LeaderCountsUnsynced) && self.is_leader() {
                self.node.on_persist_ready(number);
            }
            if must_sync {
                self.persist(now, Some(number), entries, persist_snapshot, releases);
                if let Some(wal::SnapshotMark::Installed(position)) = persist_snapshot {
                    self.installing = Some((self.persist_number, position.index));
                    self.installed_early = None;
                }
            } else if self.in_flight.is_empty() {
                self.effects.messages.extend(releases);
                self.node.on_persist_ready(number);
            } else {
                self.persist_nothing(now, number, releases);
            }
        }
    }

    /// Sends what a leader says at once, and gives back what has to wait for its term. raft-rs takes a leader's term for
    /// durable, as the votes for it came after it was; a sole voter needs no votes but its own. A learner would hold
    /// entries of a term that a crash makes its leader use again, for others.
    fn send_durable(&mut self, messages: Vec<Message>) -> Vec<Outgoing> {
        let mut held = Vec::new();
        for message in messages {
            let is_durable = message.term <= self.durable.hard_state.term.0;
            if is_durable || planted(Fault::LeaderOfUnsyncedTerm) {
                self.send(message);
            } else {
                held.extend(self.address(message));
            }
        }
        held
    }

    /// Answers that rest on nothing but a durable term need not wait for the disk.
    pub(super) fn sort_persisted_messages(&mut self, messages: Vec<Message>) -> Vec<Outgoing> {
        let mut held = Vec::new();
        for message in messages {
            let granted = message.msg_type == MessageType::MsgRequestVoteResponse && !message.reject;
            if granted {
                self.failover.cancel();
            }
            let hasty = matches!(
                message.msg_type,
                MessageType::MsgHeartbeatResponse | MessageType::MsgReadIndex | MessageType::MsgReadIndexResp
            );
            let durable = message.term <= self.durable.hard_state.term.0 || planted(Fault::HeartbeatOfUnsyncedTerm);
            let too_early = planted(Fault::AppendAnsweredBeforeSync)
                && message.msg_type == MessageType::MsgAppendResponse
                || planted(Fault::VoteAnsweredBeforeSync) && message.msg_type == MessageType::MsgRequestVoteResponse;
            if hasty && durable || too_early {
                self.send(message);
            } else if let Some(outgoing) = self.address(message) {
                held.push(outgoing);
            }
        }
        held
    }

    pub(super) fn current_hard_state(&self) -> wal::HardState {
        let raft = &self.node.raft;
        wal::HardState { term: Term(raft.term), vote: RaftId(raft.vote), commit: Index(raft.raft_log.committed) }
    }

    pub(super) fn persist(
        &mut self,
        now: Instant,
        ready: Option<u64>,
        entries: Vec<Entry>,
        snapshot: Option<wal::SnapshotMark>,
        releases: Vec<Outgoing>,
    ) {
        self.persist_number += 1;
        let hard_state = self.current_hard_state();
        let bytes: u64 = entries.iter().map(entry_bytes).sum();
        let last = entries.last().map(|entry| Position { term: Term(entry.term), index: Index(entry.index) });
        let last = last.or(match snapshot {
            Some(wal::SnapshotMark::Installed(position)) => Some(position),
            _ => None,
        });
        self.note_sizes(&entries);
        self.unsynced_bytes += bytes;
        self.commit_asked = hard_state.commit;
        let number = self.persist_number;
        let is_installed = matches!(snapshot, Some(wal::SnapshotMark::Installed(_)));
        let hard_state = Some(hard_state).filter(|_| !(is_installed && planted(Fault::SnapshotWithoutHardState)));
        self.in_flight.push_back(InFlight { number, ready, since: now, sync: true, bytes, last, hard_state });
        self.effects.persist.push((Persist { number, entries, hard_state, snapshot, must_sync: true }, releases));
    }

    /// Keeps messages in order behind what is being synced. Without any the sync under way counts for this Ready too:
    /// a log that waits for space, for ever perhaps, must not gather Readys.
    pub(super) fn persist_nothing(&mut self, now: Instant, ready: u64, releases: Vec<Outgoing>) {
        if let Some(last) = self.in_flight.back_mut().filter(|_| releases.is_empty()) {
            last.ready = Some(ready);
            return;
        }
        self.persist_number += 1;
        let number = self.persist_number;
        let flight =
            InFlight { number, ready: Some(ready), since: now, sync: false, bytes: 0, last: None, hard_state: None };
        self.in_flight.push_back(flight);
        let persist = Persist { number, entries: Vec::new(), hard_state: None, snapshot: None, must_sync: false };
        self.effects.persist.push((persist, releases));
    }

    /// For the journal: what took long enough to hold up elections and every write.
    pub(super) fn note_slow_sync(&mut self, now: Instant, number: u64) {
        let mut done = self.in_flight.iter().take_while(|flight| flight.number <= number);
        let Some(since) = done.find(|flight| flight.sync).map(|flight| flight.since) else { return };
        let took = now.since(since);
        if took > Duration::from_micros(HEALTHY_SYNC_US) {
            self.effects.happened.push(Happened::SlowSync { ms: took.as_millis() as u64 });
        }
    }

    pub(super) fn on_persisted(&mut self, number: u64) {
        let mut ready = None;
        while self.in_flight.front().is_some_and(|flight| flight.number <= number) {
            let flight = self.in_flight.pop_front().expect("front() was there");
            self.unsynced_bytes -= flight.bytes;
            ready = flight.ready.or(ready);
            if let Some(hard_state) = flight.hard_state {
                self.durable.hard_state = hard_state;
            }
            if let Some(last) = flight.last {
                self.durable.last = last;
            }
        }
        if let Some(ready) = ready {
            self.node.on_persist_ready(ready);
        }
        if !self.is_unsynced() {
            for vote in std::mem::take(&mut self.early_votes) {
                self.step_raft(vote);
            }
        }
        if self.installing.take_if(|(installed, _)| *installed <= number).is_some()
            && let Some(applied) = self.installed_early.take()
        {
            self.on_applied(applied);
        }
    }
}
