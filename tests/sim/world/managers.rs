//! What happens at a manager, and what its threads do.

use std::io;

use skep::codec::raft_message;
use skep::raft::recover::RecoverError;
use skep::raft::{Effects, Event, Stop};
use skep::store::State;
use skep::types::{Index, NodeId};
use skep::wal::WalError;

use super::{Happening, World};
use crate::failure::{ensure, fail};
use crate::node::{ApplyJob, Cause, Start, WalJob};
use crate::{Duration, Instant, ms};

/// Why a process can neither go on nor start.
enum Broken {
    Full(String),
    Failed(String),
    Damaged(String),
    Other(String),
}

fn broken(error: &WalError) -> Broken {
    let text = error.to_string();
    match error {
        WalError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Broken::Full(text),
        WalError::Io { .. } => Broken::Failed(text),
        WalError::Damaged { .. } => Broken::Damaged(text),
        _ => Broken::Other(text),
    }
}

fn start_broken(error: &RecoverError) -> Broken {
    match error {
        RecoverError::Wal(error) => broken(error),
        RecoverError::Read(_) | RecoverError::Snapshot { .. } | RecoverError::Mismatch { .. } => {
            Broken::Damaged(error.to_string())
        }
        RecoverError::Apply(_) => Broken::Other(error.to_string()),
    }
}

impl World {
    pub(super) fn boot(&mut self, id: NodeId, start: &Start) {
        let (now, layout) = (self.now, self.layout);
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.stopped = None;
        if let Err(error) = node.start(now, start, &layout, &mut self.entropy) {
            return self.did_not_start(id, &error);
        }
        self.note(|world| format!("node {} starts: {:?}", id.0, world.nodes[&id].run.as_ref().map(|run| &run.machine)));
        self.check_promises(id);
        let run = self.nodes[&id].run.as_ref().expect("it just started");
        let (found, applied) = (run.machine.durable(), run.applier.store().view(State::applied).index);
        if self.is_current(id) {
            self.promises.restarted(id, found.hard_state, found.last, applied);
            self.show_replayed(id);
        }
        let phase = self.entropy.below(100_000);
        self.at_node(id, Duration::from_micros(phase), Happening::Tick);
        self.finish_soon(id);
        self.look_at_links_in(ms(1));
    }

    fn did_not_start(&mut self, id: NodeId, error: &RecoverError) {
        self.note(|_| format!("node {} does not start: {error}", id.0));
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.run = None;
        let cause = match start_broken(error) {
            Broken::Full(text) if node.disk.is_full() => Cause::Disk(text),
            Broken::Damaged(text) | Broken::Other(text) if self.lost == Some(id) => Cause::Damaged(text),
            Broken::Full(text) | Broken::Failed(text) | Broken::Damaged(text) | Broken::Other(text) => {
                fail("stopped", format!("node {} does not start, and nothing was done to it: {text}", id.0))
            }
        };
        node.stopped = Some(cause);
        node.life += 1;
    }

    /// What the process before had on disk for certain is there.
    fn check_promises(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let Some(promised) = node.promised.take() else { return };
        let found = node.run.as_ref().expect("it just started").machine.durable();
        // An older vote of the same term would let it vote twice.
        let kept = found.last >= promised.last
            && found.hard_state.term >= promised.hard_state.term
            && (found.hard_state.term > promised.hard_state.term
                || found.hard_state.vote == promised.hard_state.vote
                || promised.hard_state.vote.0 == 0);
        ensure!("durability", kept, "node {} had {promised:?} on disk, and starts with {found:?}", id.0);
    }

    /// What a start replays may be news: everybody had it on disk, and nobody had applied it yet.
    fn show_replayed(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        if node.corrupted {
            return;
        }
        let run = node.run.as_ref().expect("it just started");
        let (applied, hash) = run.applier.store().view(|state| (state.applied().index, state.hash()));
        let mut next = self.serial.next_index().map_or(Index(2), Index);
        while next <= applied {
            let entries = run.reader.read(next, applied.next(), 1 << 20);
            let entries = entries.unwrap_or_else(|error| fail("log prefix", format!("entry {next} is gone: {error}")));
            for entry in &entries {
                self.serial.committed(id, entry);
                next = Index(entry.index).next();
            }
        }
        self.serial.state(id, applied.0, hash);
        self.promises.shows(id, applied);
    }

    pub(super) fn happen(&mut self, id: NodeId, happening: Happening) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let (world_now, now) = (self.now, node.clock.at(self.now));
        let run = node.run.as_mut().expect("checked by the caller");
        let machine = &mut run.machine;
        match happening {
            Happening::Tick => {
                machine.step(now, Event::OwnSync { sync_us: node.sync_us.1 });
                machine.step(now, Event::Tick);
                let interval = node.clock.takes(machine.tick_interval());
                self.at_node(id, interval, Happening::Tick);
            }
            Happening::Wake => run.wake_at = None,
            Happening::Finish => {
                run.finish_due = false;
                let effects = run.machine.finish(now);
                self.carry_out(id, effects);
                return;
            }
            Happening::Deliver(from, body) => {
                let messages = raft_message::decode_all(&body).expect("what a manager encodes can be decoded");
                for message in messages {
                    if self.verbose {
                        println!("{:>12.6} {} -> {}: {message:?}", world_now.as_nanos() as f64 / 1e9, from.0, id.0);
                    }
                    machine.step(now, Event::Peer { from, message });
                }
            }
            Happening::Lost(peer) => machine.step(now, Event::Unreachable { node: peer }),
            Happening::Link { peer, up, refused } => {
                machine.step(now, Event::Link { node: peer, up, refused });
                self.note(|_| format!("node {}: link to {} up {up}, refused {refused}", id.0, peer.0));
            }
            Happening::Pong(peer) => return self.pong(id, peer),
            Happening::Written => return self.written(id),
            Happening::Persisted(number) => machine.step(now, Event::Persisted { number }),
            Happening::Applied => return self.applied(id),
            Happening::SnapshotMade => self.snapshot_made(id),
            Happening::LogRead(fetch) => {
                let entries = run.reader.read(fetch.low, fetch.high, fetch.max_bytes).unwrap_or_default();
                run.machine.step(now, Event::Fetched { fetch: *fetch, entries });
            }
            Happening::SnapshotCame(fetch) => return self.snapshot_came(id, &fetch),
            Happening::Request(event) => machine.step(now, *event),
            Happening::Stale(client, op) => return self.stale_read(id, client, op),
        }
        self.finish_soon(id);
    }

    /// A turn of the raft thread takes all that happened meanwhile.
    pub(super) fn finish_soon(&mut self, id: NodeId) {
        let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut());
        if let Some(run) = run.filter(|run| !run.finish_due) {
            run.finish_due = true;
            let after = self.between((0, 100));
            self.at_node(id, after, Happening::Finish);
        }
    }

    fn carry_out(&mut self, id: NodeId, effects: Effects) {
        for message in &effects.messages {
            self.send(id, message);
        }
        self.happened.extend(effects.happened.iter().map(|what| (id, *what)));
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let run = node.run.as_mut().expect("it just finished a turn");
        run.wal_queue.extend(effects.persist.into_iter().map(|(persist, released)| WalJob::Persist(persist, released)));
        run.wal_queue.extend(effects.compact.map(WalJob::Compact));
        if let Some(position) = effects.install {
            let fetched = run.fetched.take().filter(|(fetched, _)| *fetched == position);
            let Some((_, state)) = fetched else {
                fail("snapshot", format!("node {} installs {position:?}, which it did not just fetch", id.0))
            };
            run.apply_queue.push_back(ApplyJob::Install(Box::new(state)));
        }
        if !effects.apply.is_empty() {
            run.apply_queue.push_back(ApplyJob::Entries(effects.apply));
        }
        if let Some(members) = effects.peers {
            run.wanted = members.iter().map(|member| member.node_id).filter(|peer| *peer != id).collect();
            self.look_at_links_in(ms(1));
        }
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let run = node.run.as_mut().expect("it just finished a turn");
        if effects.create_snapshot {
            ensure!("snapshot", run.creating.is_none(), "node {} writes two snapshots at once", id.0);
            run.creating = Some(run.applier.store().snapshot());
            let after = self.between((1_000, 60_000));
            self.at_node(id, after, Happening::SnapshotMade);
        }
        for fetch in effects.fetch {
            let after = self.between((100, 3000));
            self.at_node(id, after, Happening::LogRead(Box::new(fetch)));
        }
        if let Some(fetch) = effects.fetch_snapshot {
            let (from, latency) = (fetch.from, self.between((500, 30_000)));
            if self.linked(id, from) && self.is_running(from) {
                self.at_node(from, latency / 2, Happening::Request(Box::new(Event::SnapshotServing { node: id })));
            }
            self.at_node(id, latency, Happening::SnapshotCame(fetch));
        }
        self.write_next(id);
        self.apply_next(id);
        for reply in effects.replies {
            self.reply(id, reply);
        }
        if let Some(leadership) = effects.leadership {
            self.note(|_| format!("node {}: {leadership:?}", id.0));
            if leadership.serving && self.is_current(id) {
                self.serial.leads(leadership.term.0, id);
                if !self.nodes[&id].corrupted {
                    self.view(id, |state| self.check_acked(state));
                }
                self.reigns.push((self.now, id));
            }
        }
        let machine = &self.nodes[&id].run.as_ref().expect("it just finished a turn").machine;
        if machine.leadership().leader == Some(id) {
            if self.nodes[&id].era == self.era {
                self.serial.leads(machine.leadership().term.0, id);
            }
            let report = machine.report(self.nodes[&id].clock.at(self.now));
            let counted = report.progress.len() == report.members.len() || report.progress.is_empty();
            ensure!("membership", counted, "leader {} counts {:?} of {:?}", id.0, report.progress, report.members);
        }
        let deadline = machine.deadline();
        self.wake_at(id, deadline);
        if let Some(stop) = effects.stop {
            self.stop(id, Cause::Stop(stop));
        }
    }

    fn wake_at(&mut self, id: NodeId, deadline: Option<Instant>) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let now = node.clock.at(self.now);
        let run = node.run.as_mut().expect("it just finished a turn");
        let Some(at) = deadline.filter(|at| run.wake_at.is_none_or(|set| *at < set)) else { return };
        let late = now.since(at);
        ensure!("liveness", late < ms(1000), "a deadline {late:?} past makes the raft thread of node {} spin", id.0);
        run.wake_at = Some(at);
        let after = node.clock.takes(at.since(now)).max(Duration::from_micros(50));
        self.at_node(id, after, Happening::Wake);
    }

    /// A manager stops by itself.
    pub(super) fn stop(&mut self, id: NodeId, cause: Cause) {
        self.note(|_| format!("node {} stops: {cause:?}", id.0));
        if let Cause::Stop(Stop::Fenced(text) | Stop::Rotten(text)) = &cause {
            ensure!("stopped", self.may_fence.contains(&id), "node {} fenced itself: {text}", id.0);
        }
        let is_harmless = self.is_current(id) || matches!(cause, Cause::Disk(_));
        ensure!("history", is_harmless, "node {} of a former history stops: {cause:?}", id.0);
        self.end(id);
        self.nodes.get_mut(&id).expect("the node exists").stopped = Some(cause);
    }

    /// The process is gone, however that came.
    pub(super) fn end(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.end(&mut self.entropy);
        self.look_at_links_in(Duration::ZERO);
    }

    fn disk_failed(&mut self, id: NodeId, error: &WalError) {
        let (Broken::Full(text) | Broken::Failed(text) | Broken::Damaged(text) | Broken::Other(text)) = broken(error);
        ensure!("stopped", self.may_fail.contains(&id), "the log of node {} failed: {text}", id.0);
        self.stop(id, Cause::Disk(text));
    }

    fn written(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if node.stalled {
            return self.at_node(id, ms(10), Happening::Written);
        }
        let run = node.run.as_mut().expect("it runs");
        let (number, released) = match run.write() {
            Ok(written) => written,
            Err(error) => return self.disk_failed(id, &error),
        };
        let last = run.reader.last().index;
        if self.is_current(id) {
            self.promises.wrote(id, last);
        }
        if let Some(number) = number {
            self.note(|_| format!("node {} has synced {number}", id.0));
            // What rests on it leaves at once, and may be answered before a busy raft thread looks at the report.
            let report = if self.entropy.below(16) == 0 { (500, 20_000) } else { (0, 50) };
            let at = self.now + self.between(report);
            let node = self.nodes.get_mut(&id).expect("the node exists");
            let run = node.run.as_mut().expect("it runs");
            run.reported = run.reported.max(at);
            let (at, life) = (run.reported, node.life);
            self.schedule_at(at, super::Target::Node(id, life, Happening::Persisted(number)));
        }
        for message in released {
            self.send(id, &message);
        }
        self.write_next(id);
        self.finish_soon(id);
    }

    fn write_next(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let sync_us = node.sync_us;
        let run = node.run.as_mut().expect("it runs");
        if run.writing == 0 && !run.wal_queue.is_empty() {
            run.writing = run.wal_queue.len();
            let took = self.between(sync_us);
            self.at_node(id, took, Happening::Written);
        }
    }

    fn snapshot_made(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let now = node.clock.at(self.now);
        let run = node.run.as_mut().expect("it runs");
        let state = run.creating.take().expect("a snapshot is made of a state");
        let event = match run.snapshots.save(state, &mut self.entropy) {
            Ok(mark) => Event::SnapshotCreated { mark },
            Err(error) => {
                ensure!("stopped", self.may_fail.contains(&id), "node {} wrote no snapshot: {error}", id.0);
                Event::SnapshotFailed
            }
        };
        run.machine.step(now, event);
        self.note(|_| format!("node {} has written a snapshot", id.0));
    }

    fn apply_next(&mut self, id: NodeId) {
        let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it runs");
        if !run.applying && !run.apply_queue.is_empty() {
            run.applying = true;
            let took = self.between((10, 500));
            self.at_node(id, took, Happening::Applied);
        }
    }

    fn applied(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let (current, now) = (node.era == self.era, node.clock.at(self.now));
        let corrupted = node.corrupted;
        let run = node.run.as_mut().expect("it runs");
        run.applying = false;
        let before = run.voters();
        let turn = run.apply(id).unwrap_or_else(|error| fail("stopped", format!("node {}: {error}", id.0)));
        let voters = run.voters().min(before);
        let position = turn.applied.position;
        if current {
            for (entry, ..) in &turn.log {
                self.promises.applied(id, Index(entry.index), voters);
            }
            for (index, _) in &turn.applied.members {
                self.promises.applied_member(id, *index);
            }
            self.promises.shows(id, position.index);
        }
        run.machine.step(now, Event::Applied(turn.applied));
        if current && !corrupted {
            for (entry, hash, outcome) in &turn.log {
                self.serial.committed(id, entry);
                self.serial.outcome(id, entry.index, outcome.as_ref());
                self.serial.state(id, entry.index, *hash);
            }
            if turn.installed {
                let hash = self.view(id, State::hash);
                self.serial.state(id, position.index.0, hash);
            }
        }
        self.note(|_| format!("node {} has applied {}", id.0, position.index));
        for (token, outcome) in turn.outcomes {
            self.outcome(id, token, outcome);
        }
        self.apply_next(id);
        self.finish_soon(id);
    }
}
