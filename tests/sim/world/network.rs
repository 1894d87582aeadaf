//! The network: messages, the links that carry them, pings and hellos.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::eraftpb::MessageType;
use skep::codec::raft_message;
use skep::node::Stopped;
use skep::node::greeting::{Greetings, Verdict};
use skep::raft::{Event, FetchSnapshot, Outgoing, Stop};
use skep::sys::time::Instant;
use skep::types::api::{FEATURE_LEVEL, Hello, PROTOCOL};
use skep::types::{Caller, ClusterId, Index, NodeId, Role};

use super::{Happening, Target, World};
use crate::failure::ensure;
use crate::node::{Cause, Node};
use crate::{Duration, ms};

/// How the network behaves. Times in microseconds, chances in a thousand.
#[derive(Clone, Debug)]
pub struct Network {
    pub latency_us: (u64, u64),
    pub drop: u64,
    pub duplicate: u64,
    pub reorder: bool,
    /// Nothing gets from the first to the second.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// So much gets lost from the first to the second, besides `drop`.
    pub flaky: BTreeMap<(NodeId, NodeId), u64>,
}

impl Network {
    pub fn healthy() -> Self {
        Self {
            latency_us: (50, 400),
            drop: 0,
            duplicate: 0,
            reorder: false,
            cut: BTreeSet::new(),
            flaky: BTreeMap::new(),
        }
    }
}

impl World {
    // ---- what tests do ----

    /// Nothing gets from anyone in `from` to anyone in `to`.
    pub fn cut(&mut self, from: &[NodeId], to: &[NodeId]) {
        self.note(|_| format!("the network is cut from {} to {}", names(from), names(to)));
        for &from in from {
            self.net.cut.extend(to.iter().filter(|to| **to != from).map(|&to| (from, to)));
        }
    }

    /// Nothing gets through in either direction.
    pub fn part(&mut self, some: &[NodeId], others: &[NodeId]) {
        self.cut(some, others);
        self.cut(others, some);
    }

    /// Separates `group` from everybody else, in both directions.
    pub fn isolate(&mut self, group: &[NodeId]) {
        let others: Vec<NodeId> = self.nodes.keys().filter(|id| !group.contains(id)).copied().collect();
        self.part(group, &others);
    }

    pub fn heal(&mut self) {
        self.note(|_| "the network is whole".to_owned());
        self.net = Network::healthy();
        self.look_at_links_in(Duration::ZERO);
    }

    // ---- messages ----

    pub(super) fn send(&mut self, from: NodeId, outgoing: &Outgoing) {
        let to = outgoing.to;
        let run = self.nodes[&from].run.as_ref().expect("who sends runs");
        if self.nodes[&from].era == self.era {
            self.promises.said(from, &outgoing.message, run.written, run.reader.last().index);
        }
        if !self.linked(from, to) {
            return self.at_node(from, Duration::from_micros(20), Happening::Lost(to));
        }
        let drop = self.net.drop + self.net.flaky.get(&(from, to)).copied().unwrap_or(0);
        if self.net.cut.contains(&(from, to)) || !self.is_running(to) || self.entropy.below(1000) < drop {
            return;
        }
        let mut body = Vec::new();
        raft_message::encode_into(&outgoing.message, &mut body);
        let body = Bytes::from(body);
        let copies = 1 + u64::from(self.entropy.below(1000) < self.net.duplicate);
        for _ in 0..copies {
            let mut at = self.now + self.between(self.net.latency_us);
            let last = self.last_delivery.entry((from, to)).or_default();
            // One connection carries them in order, except where a test says otherwise.
            if !self.net.reorder {
                at = at.max(*last);
                *last = at;
            }
            let life = self.nodes[&to].life;
            self.schedule_at(at, Target::Node(to, life, Happening::Deliver(from, body.clone())));
        }
        debug_assert!(outgoing.message.msg_type != MessageType::MsgHup);
    }

    pub(super) fn snapshot_came(&mut self, id: NodeId, fetch: &FetchSnapshot) {
        let position = fetch.mark.position;
        let is_reachable = self.linked(id, fetch.from) && self.connectable(id, fetch.from);
        let sender = self.nodes.get(&fetch.from).and_then(|node| node.run.as_ref()).filter(|_| is_reachable);
        let sender = sender.map(|run| run.snapshots.clone());
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let now = node.clock.at(self.now);
        let run = node.run.as_mut().expect("it runs");
        match sender.and_then(|sender| run.fetch(&sender, position.index, &mut self.entropy).ok()) {
            Some((found, bytes, state)) => {
                ensure!("snapshot", found == position, "node {} fetched {found:?} for {position:?}", id.0);
                run.fetched = Some((position, state));
                run.machine.step(now, Event::SnapshotFetched { position, bytes });
            }
            None => run.machine.step(now, Event::SnapshotNotFetched { position }),
        }
        self.note(|_| format!("node {} asked {} for its snapshot at {}", id.0, fetch.from.0, position.index));
        self.finish_soon(id);
    }

    // ---- links ----

    /// Whether a connection is up between the processes that run now.
    pub(super) fn linked(&self, a: NodeId, b: NodeId) -> bool {
        let (a, b) = (a.min(b), a.max(b));
        self.links.get(&(a, b)).is_some_and(|lives| *lives == self.lives(a, b))
    }

    fn lives(&self, a: NodeId, b: NodeId) -> (u64, u64) {
        (self.nodes[&a].life, self.nodes[&b].life)
    }

    /// Whether a new connection would come up.
    pub(super) fn connectable(&self, a: NodeId, b: NodeId) -> bool {
        let running = |id| self.nodes.get(&id).is_some_and(|node: &Node| node.run.is_some());
        running(a) && running(b) && !self.net.cut.contains(&(a, b)) && !self.net.cut.contains(&(b, a))
    }

    pub(super) fn look_at_links_in(&mut self, after: Duration) {
        self.looks += 1;
        self.schedule(after, Target::Links);
    }

    pub(super) fn look_at_links(&mut self) {
        self.looks -= 1;
        let ids = self.ids();
        for (at, &a) in ids.iter().enumerate() {
            for &b in &ids[at + 1..] {
                self.look_at_link(a, b);
            }
        }
        // Others add looks of their own; this one goes on for ever.
        if self.looks == 0 {
            self.look_at_links_in(ms(50));
        }
    }

    fn look_at_link(&mut self, a: NodeId, b: NodeId) {
        let pair = (a, b);
        if let Some(&then) = self.links.get(&pair)
            && self.connectable(a, b)
            && !self.linked(a, b)
        {
            // A process went and another came before anybody looked. Who stayed sees the connection break.
            self.links.remove(&pair);
            for (one, other, life) in [(a, b, then.0), (b, a, then.1)] {
                if self.nodes[&one].life == life {
                    let at = self.now + self.between((200, 2000));
                    self.tell_link(one, other, at, false, false);
                }
            }
            return self.look_at_links_in(ms(3));
        }
        let is_up = self.links.contains_key(&pair);
        let wants = |id: NodeId, peer| self.nodes[&id].run.as_ref().is_some_and(|run| run.wanted.contains(&peer));
        if self.connectable(a, b) {
            self.silent.remove(&pair);
            for (one, other) in [(a, b), (b, a)] {
                // Whoever is of another history is told of that first.
                let knows = self.nodes[&one].lineage == self.nodes[&other].lineage;
                let raft_id = self.nodes[&other].raft_id;
                if knows && self.view(one, |state| state.is_removed_raft_id(raft_id)) {
                    // Whoever it dials tells it.
                    self.links.remove(&pair);
                    return self.stop(other, Cause::Stop(Stop::Removed));
                }
            }
            let awake = !self.nodes[&a].paused && !self.nodes[&b].paused;
            if !is_up && awake && (wants(a, b) || wants(b, a)) && self.greet_both(a, b) {
                let lives = self.lives(a, b);
                self.links.insert(pair, lives);
                for (one, other) in [(a, b), (b, a)] {
                    let at = self.now + self.between((200, 3000));
                    self.tell_link(one, other, at, true, false);
                }
            }
            return;
        }
        if !is_up {
            return;
        }
        for (one, other) in [(a, b), (b, a)] {
            let process_gone = !self.is_running(other) && !self.nodes[&other].dark;
            if self.is_running(one) && process_gone && !self.net.cut.contains(&(other, one)) {
                self.links.remove(&pair);
                // A connection is read to its end before it counts as closed.
                let read = self.last_delivery.get(&(other, one)).copied().unwrap_or_default();
                let at = (self.now + self.between((200, 2000))).max(read + Duration::from_micros(1));
                return self.tell_link(one, other, at, false, true);
            }
        }
        // Pings go unanswered.
        let now = self.now;
        let since = *self.silent.entry(pair).or_insert(now);
        if now.since(since) > ms(3000) || !(self.is_running(a) || self.is_running(b)) {
            self.links.remove(&pair);
            self.silent.remove(&pair);
            for (one, other) in [(a, b), (b, a)] {
                self.tell_link(one, other, self.now + ms(1), false, false);
            }
        }
    }

    /// Tells `one` what became of its link to `other`. One thread of it sees that in order: the end of a connection is never
    /// heard after the beginning of the next (seed 302800).
    fn tell_link(&mut self, one: NodeId, other: NodeId, at: Instant, up: bool, refused: bool) {
        let last = self.last_link.entry((one, other)).or_default();
        let at = at.max(*last + Duration::from_micros(1));
        *last = at;
        let life = self.nodes[&one].life;
        self.schedule_at(at, Target::Node(one, life, Happening::Link { peer: other, up, refused }));
    }

    /// Each shows the other its hello, and either may turn the other away.
    fn greet_both(&mut self, a: NodeId, b: NodeId) -> bool {
        let one = self.greet(a, b);
        // Being turned away may have ended the one.
        let other = self.is_running(a) && self.greet(b, a);
        one && other
    }

    /// Shows the hello of `guest` to `host`, which judges it as the product does; false when it is turned away.
    fn greet(&mut self, guest: NodeId, host: NodeId) -> bool {
        let node = &self.nodes[&guest];
        let run = node.run.as_ref().expect("connectable");
        let hello = Hello {
            protocol: PROTOCOL,
            cluster_id: ClusterId(1),
            node_id: guest,
            raft_id: Some(node.raft_id),
            lineage: node.lineage,
            boot: node.boot,
            nonce: run.nonce,
            last: run.machine.durable().last,
            advertise: node.addr.clone(),
            feature_level: FEATURE_LEVEL,
            revision: run.applier.store().revision(),
        };
        let caller = Caller::Node { node_id: guest, role: Role::Manager, cluster_id: ClusterId(1), expired: false };
        let node = self.nodes.get_mut(&host).expect("connectable");
        let store = node.run.as_ref().expect("connectable").applier.store();
        let (greetings, lineage) = (&mut node.greetings, node.lineage);
        match store.view(|state| greetings.judge(&caller, &hello, state, lineage)) {
            Verdict::Welcome | Verdict::WelcomeNew(_) => {
                let same = self.nodes[&guest].era == self.nodes[&host].era;
                ensure!("history", same, "node {} welcomes node {} of another history", host.0, guest.0);
                self.met.insert((host, guest), hello.boot);
                true
            }
            Verdict::Refused(status) => {
                self.note(|_| format!("node {} turns node {} away: {status}", host.0, guest.0));
                match Greetings::meaning(&status) {
                    Some(Stopped::Removed) => self.stop(guest, Cause::Stop(Stop::Removed)),
                    Some(Stopped::Fenced(why)) => self.stop(guest, Cause::Stop(Stop::Fenced(why))),
                    // It goes on until it has had no leader for minutes, which no run takes.
                    Some(Stopped::Outlived(why)) => {
                        let over = self.nodes[&host].era > self.nodes[&guest].era;
                        ensure!("history", over, "node {} tells node {}: {why}", host.0, guest.0);
                        self.outlived.insert(guest);
                    }
                    Some(Stopped::Asked | Stopped::Demoted | Stopped::Rotten(_)) | None => {}
                }
                false
            }
        }
    }

    pub(super) fn ping_all(&mut self) {
        for one in self.ids() {
            for other in self.ids() {
                if one != other && self.linked(one, other) && self.connectable(one, other) {
                    self.at_node(one, ms(1), Happening::Pong(other));
                }
            }
        }
        self.schedule(ms(500), Target::Pings);
    }

    pub(super) fn pong(&mut self, id: NodeId, peer: NodeId) {
        let Some(node) = self.nodes.get(&peer).filter(|node| !node.paused) else { return };
        let Some(run) = &node.run else { return };
        let mark = run.machine.last_mark().map_or((Index(0), 0), |mark| (mark.index, mark.sum));
        let sync_us = if node.stalled { 10_000_000 } else { node.sync_us.1 };
        let rtt_us = 2 * self.net.latency_us.1;
        let event = Event::Measured { node: peer, rtt_us, sync_us, mark };
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let now = node.clock.at(self.now);
        node.run.as_mut().expect("it runs").machine.step(now, event);
        self.finish_soon(id);
    }
}

/// For people.
pub fn names(ids: &[NodeId]) -> String {
    let names: Vec<String> = ids.iter().map(|id| id.0.to_string()).collect();
    format!("{{{}}}", names.join(" "))
}
