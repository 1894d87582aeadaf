//! Clients: they call, wait, ask again with the same change id, lose answers, give up, and write all of it down.

use skep::apply;
use skep::raft::{Event, Reply, Token};
use skep::store::State;
use skep::sys::entropy::Entropy;
use skep::types::log::Command;
use skep::types::{Change, ChangeId, NodeId, ObjectId, Operation, Outcome, Refusal, Revision, Timestamp};

use super::{Happening, Target, World};
use crate::failure::{ensure, fail};
use crate::history::{Call, Op, Result};
use crate::linear::Want;
use crate::workload::{Known, NAMES, cell_id};
use crate::{Duration, Instant, ms};

/// A caller with one call under way at most.
#[derive(Default)]
pub struct Client {
    pub doing: Option<Doing>,
    /// Its newest alarm; earlier ones are void.
    alarm: u64,
    known: Known,
    /// The newest revision that it was told of.
    seen: Revision,
}

/// A call under way.
pub struct Doing {
    /// Its place in the history.
    op: usize,
    /// Fixed before the first attempt; `None` for a read.
    change: Option<Change>,
    node: NodeId,
    token: Token,
    /// When this attempt began, and the first.
    since: Instant,
    began: Instant,
}

impl World {
    pub(super) fn add_client(&mut self) -> usize {
        self.clients.push(Client::default());
        self.clients.len() - 1
    }

    pub(super) fn idle_client(&mut self) -> usize {
        self.clients.iter().position(|client| client.doing.is_none()).unwrap_or_else(|| self.add_client())
    }

    pub(super) fn wake_client(&mut self, at: usize, after: Duration) {
        self.clients[at].alarm += 1;
        let alarm = self.clients[at].alarm;
        self.schedule(after, Target::Client(at, alarm));
    }

    pub(super) fn client_turn(&mut self, at: usize, alarm: u64) {
        if self.clients[at].alarm != alarm {
            return;
        }
        let timeout = self.workload.timeout;
        match &self.clients[at].doing {
            None if self.load => {
                let client = &self.clients[at];
                let (group, call) = self.workload.draw(&mut self.entropy, &client.known, &mut self.next_value);
                let node = self.somebody();
                self.call(at, group, call, node);
            }
            None => {}
            Some(doing) if self.load && self.now.since(doing.began) >= self.workload.patience => self.give_up(at),
            Some(doing) if self.now.since(doing.since) >= timeout => self.again(at),
            Some(_) => {}
        }
    }

    /// Begins a call.
    pub(super) fn call(&mut self, at: usize, group: usize, call: Call, node: NodeId) {
        let change = match &call {
            Call::Write { .. } | Call::Fresh | Call::Named { .. } => {
                let id = ChangeId(self.entropy.next_u128());
                let client = &self.clients[at];
                let is_named = matches!(call, Call::Named { .. });
                let fresh = if is_named { cell_id(1000 + at, 0) } else { ObjectId(id.0) };
                let operations = self.workload.operations(group, &call, &client.known, fresh);
                let leads = self.nodes[&node].run.as_ref().map(|run| run.machine.leadership().term);
                let term = leads.filter(|_| is_named && self.entropy.below(2) == 0);
                let wall = self.now.as_nanos() / 1_000_000;
                let time = Timestamp(wall.saturating_add_signed(self.nodes[&node].clock.wall_ms));
                Some(Change { id, after: self.clients[at].seen, time, term, operations })
            }
            Call::Read(_) | Call::Stale => None,
        };
        self.issued.extend(change.as_ref().map(|change| change.id));
        self.note(|world| {
            format!("client {at} calls {call:?} of group {group} at node {} at {:?}", node.0, world.floor)
        });
        self.history.push(Op {
            group,
            call,
            called: self.now,
            returned: None,
            floor: self.floor,
            result: Result::Unknown,
        });
        let op = self.history.len() - 1;
        let began = self.now;
        self.clients[at].doing = Some(Doing { op, change, node, token: 0, since: began, began });
        self.attempt(at);
    }

    /// The leader most of the time, as a client that was told who leads asks; one that is down when all are, and never a
    /// manager of a former history.
    fn somebody(&mut self) -> NodeId {
        let current: Vec<NodeId> = self.ids().into_iter().filter(|id| self.is_current(*id)).collect();
        let running: Vec<NodeId> = current.iter().copied().filter(|id| self.is_running(*id)).collect();
        let to_leader = self.entropy.below(1000) < self.workload.to_leader;
        match self.leader().filter(|_| to_leader) {
            Some(leader) => leader,
            None if running.is_empty() => *current.first().expect("a history has its heir"),
            None => running[self.entropy.below(running.len() as u64) as usize],
        }
    }

    fn attempt(&mut self, at: usize) {
        let (node, op) = self.clients[at].doing.as_ref().map(|doing| (doing.node, doing.op)).expect("a call is made");
        let is_stale = matches!(self.history[op].call, Call::Stale);
        let token = if is_stale { 0 } else { self.token(node) };
        let now = self.now;
        let doing = self.clients[at].doing.as_mut().expect("a call is made");
        (doing.token, doing.since) = (token, now);
        if is_stale {
            let after = self.between((10, 200));
            self.at_node(node, after, Happening::Stale(at, op));
        } else {
            let event = match &doing.change {
                Some(change) => {
                    let command = apply::encode(&Command::Change(change.clone())).into();
                    Event::Propose { token, command }
                }
                None => Event::Read { token },
            };
            self.request(node, event);
        }
        self.wake_client(at, self.workload.timeout);
    }

    /// The same call once more, perhaps elsewhere.
    fn again(&mut self, at: usize) {
        let node = self.somebody();
        self.clients[at].doing.as_mut().expect("a call is made").node = node;
        self.attempt(at);
    }

    fn give_up(&mut self, at: usize) {
        self.note(|_| format!("client {at} gives up"));
        let doing = self.clients[at].doing.take().expect("a call is made");
        self.forget(at, doing.op);
        self.think(at);
    }

    /// What the client believed of the cells that it meant to write may be wrong now.
    fn forget(&mut self, at: usize, op: usize) {
        let op = &self.history[op];
        if let Call::Write { wants, .. } = &op.call {
            for (cell, _) in wants {
                self.clients[at].known.remove(&(op.group, *cell));
            }
        }
    }

    fn think(&mut self, at: usize) {
        if self.load {
            let after = self.between(self.workload.think_us);
            self.wake_client(at, after);
        }
    }

    pub(super) fn token(&mut self, id: NodeId) -> Token {
        let token = self.next_token;
        self.next_token += 1;
        if let Some(run) = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()) {
            run.tokens.insert(token);
        }
        token
    }

    pub(super) fn request(&mut self, id: NodeId, event: Event) {
        let after = self.between((10, 200));
        self.at_node(id, after, Happening::Request(Box::new(event)));
    }

    /// The client that waits for this answer, if it still does.
    fn answered(&mut self, id: NodeId, token: Token) -> Option<usize> {
        let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it answers");
        let is_open = run.tokens.remove(&token);
        ensure!("answers", is_open, "request {token} was answered twice or never asked at node {}", id.0);
        self.clients.iter().position(|client| client.doing.as_ref().is_some_and(|doing| doing.token == token))
    }

    /// Apply judged a client's change.
    pub(super) fn outcome(&mut self, id: NodeId, token: Token, outcome: Outcome) {
        if self.court_outcome(id, token, &outcome) {
            return;
        }
        let Some(at) = self.answered(id, token) else { return };
        let doing = self.clients[at].doing.as_ref().expect("found by its token");
        let Some(change) = &doing.change else { fail("answers", "a read was answered as a write") };
        let (change_id, op) = (change.id, doing.op);
        self.note(|_| format!("client {at} is answered {outcome:?} by node {}", id.0));
        if !self.nodes[&id].corrupted {
            self.serial.answered(change_id, &outcome);
        }
        if let Some(before) = self.told.insert(change_id, outcome.clone()) {
            ensure!("at most once", before == outcome, "change {change_id} was answered {before:?}, then {outcome:?}");
        }
        if self.entropy.below(1000) < self.workload.lost_answers {
            return self.retry_soon_at(at);
        }
        match &outcome {
            Outcome::Committed(revision) => {
                let floor = self.history[op].floor;
                ensure!(
                    "real time",
                    *revision > floor,
                    "change {change_id} was made after revision {floor} was known, and got {revision}"
                );
                self.acked.insert(change_id, *revision);
                self.heard(at, *revision);
                self.learn(at, op, *revision);
            }
            Outcome::Refused(_) => self.forget(at, op),
            Outcome::Forgotten => fail("at most once", format!("the young change {change_id} was forgotten")),
        }
        self.learn_name(at, &outcome);
        self.finish(at, Result::Outcome(outcome));
    }

    /// The client knows what it wrote, and under which version.
    fn learn(&mut self, at: usize, op: usize, revision: Revision) {
        let op = &self.history[op];
        if let Call::Write { writes, .. } = &op.call {
            for (cell, value) in writes {
                self.clients[at].known.insert((op.group, *cell), value.map(|value| (value, revision)));
            }
        }
    }

    /// What the answer says of the named object that the call was about.
    fn learn_name(&mut self, at: usize, outcome: &Outcome) {
        let client = &mut self.clients[at];
        let doing = client.doing.as_ref().expect("a call is made");
        let (Call::Named { slot, .. }, Some(change)) = (&self.history[doing.op].call, &doing.change) else { return };
        match (outcome, change.operations.first()) {
            (Outcome::Committed(_), Some(Operation::Remove { .. }))
            | (Outcome::Refused(Refusal::NotFound { .. }), _) => drop(client.known.remove(&(NAMES, *slot))),
            (Outcome::Committed(revision), _) => {
                client.known.insert((NAMES, *slot), Some((0, *revision)));
            }
            (Outcome::Refused(Refusal::Exists { .. } | Refusal::OutOfSequence { .. }), _) => {
                client.known.insert((NAMES, *slot), None);
            }
            _ => {}
        }
    }

    fn heard(&mut self, at: usize, revision: Revision) {
        self.floor = self.floor.max(revision);
        self.clients[at].seen = self.clients[at].seen.max(revision);
    }

    fn finish(&mut self, at: usize, result: Result) {
        let doing = self.clients[at].doing.take().expect("a call is made");
        let op = &mut self.history[doing.op];
        (op.returned, op.result) = (Some(self.now), result);
        self.think(at);
    }

    /// A read is answered from the state that node `id` has now.
    fn seen(&mut self, at: usize, id: NodeId) {
        let op = self.clients[at].doing.as_ref().expect("a call is made").op;
        let (group, floor) = (self.history[op].group, self.history[op].floor);
        let cells: Vec<usize> = match self.history[op].call {
            Call::Read(Some(cell)) => vec![cell],
            Call::Read(None) | Call::Stale => (0..self.workload.groups[group].cells).collect(),
            Call::Write { .. } | Call::Fresh | Call::Named { .. } => fail("answers", "a write was answered as a read"),
        };
        let is_stale = matches!(self.history[op].call, Call::Stale);
        let (revision, seen) = self.view(id, |state| (state.revision(), self.workload.read(group, &cells, state)));
        self.note(|_| format!("client {at} sees {seen:?} at {revision} of node {}", id.0));
        let node = &self.nodes[&id];
        if !node.corrupted {
            let kind = self.workload.groups[group].kind();
            for (cell, value) in cells.iter().zip(&seen) {
                self.serial.saw(id, revision, (kind, cell_id(group, *cell)), *value);
            }
        }
        if is_stale {
            let run = self.nodes.get_mut(&id).and_then(|node| node.run.as_mut()).expect("it answers");
            ensure!("reads of a prefix", revision >= run.shown, "node {} went back from {}", id.0, run.shown);
            run.shown = revision;
        } else {
            ensure!("stale read", revision >= floor, "node {} read {revision}, and {floor} was known", id.0);
            for (cell, value) in cells.iter().zip(&seen) {
                self.clients[at].known.insert((group, *cell), *value);
            }
            self.reads_done += 1;
        }
        self.heard(at, revision);
        let values = seen.iter().map(|cell| cell.map(|(value, _)| value)).collect();
        self.finish(at, Result::Seen(values));
    }

    pub(super) fn stale_read(&mut self, id: NodeId, at: usize, op: usize) {
        if self.clients[at].doing.as_ref().is_some_and(|doing| doing.op == op && doing.node == id) {
            self.seen(at, id);
        }
    }

    pub(super) fn reply(&mut self, id: NodeId, reply: Reply) {
        if self.court_reply(id, &reply) {
            return;
        }
        match reply {
            Reply::NotLeader(token)
            | Reply::Overloaded(token)
            | Reply::Refused(token, _)
            | Reply::Lost(token)
            | Reply::Uncertain(token) => {
                self.retry_soon(id, token);
            }
            Reply::ReadReady(tokens) => {
                for token in tokens {
                    if let Some(at) = self.answered(id, token) {
                        self.seen(at, id);
                    }
                }
            }
            Reply::ReadFailed(tokens) => {
                for token in tokens {
                    self.retry_soon(id, token);
                }
            }
            Reply::Order(token, result) => {
                self.answered(id, token);
                self.note(|_| format!("node {} answers order {token}: {result:?}", id.0));
                if let Some(place) = self.orders.get_mut(&token) {
                    *place = Some(result);
                }
            }
        }
    }

    fn retry_soon(&mut self, id: NodeId, token: Token) {
        if let Some(at) = self.answered(id, token) {
            self.retry_soon_at(at);
        }
    }

    fn retry_soon_at(&mut self, at: usize) {
        let doing = self.clients[at].doing.as_mut().expect("a call is made");
        (doing.since, doing.token) = (Instant::from_nanos(0), 0);
        let after = self.between((10_000, 50_000));
        self.wake_client(at, after);
    }

    /// A recovery began a new history with `state`: what clients did before is over. A call under way goes on, in the new
    /// history, under its change id.
    pub(super) fn clients_succeed(&mut self, state: &State) {
        let moment = |before: u64| Instant::from_nanos(self.now.as_nanos() - before);
        let (began, begun) = (moment(2), moment(1));
        let mut history: Vec<Op> = Vec::new();
        for (group, cells) in self.workload.groups.iter().map(|group| group.cells).enumerate() {
            let cells: Vec<usize> = (0..cells).collect();
            let values = self.workload.read(group, &cells, state);
            let writes = cells.iter().zip(values).map(|(cell, held)| (*cell, held.map(|(value, _)| value)));
            history.push(Op {
                group,
                call: Call::Write { wants: Vec::new(), writes: writes.collect() },
                called: began,
                returned: Some(begun),
                floor: self.floor,
                result: Result::Outcome(Outcome::Committed(state.revision())),
            });
        }
        for at in 0..self.clients.len() {
            // What a client knows under a version that was raised is refused as if it were something else, which it is not.
            let workload = &self.workload;
            self.clients[at].known.retain(|(group, cell), knows| {
                let Some((value, version)) = *knows else { return true };
                let holds = (*group != NAMES).then(|| workload.read(*group, &[*cell], state)[0]).flatten();
                holds.is_none_or(|(held, now)| held != value || now == version)
            });
            let Client { doing: Some(doing), known, .. } = &mut self.clients[at] else { continue };
            let op = self.history[doing.op].clone();
            let was_made = doing.change.as_ref().is_some_and(|change| state.remembered(change.id).is_some());
            let rests_on = |(cell, want): &(usize, Want)| {
                matches!(want, Want::Value(_)) && !known.contains_key(&(op.group, *cell))
            };
            if !was_made && matches!(&op.call, Call::Write { wants, .. } if wants.iter().any(rests_on)) {
                self.clients[at].doing = None;
                self.think(at);
                continue;
            }
            // What was made already is in the state, and changes nothing when it is answered.
            let call = if was_made { Call::Fresh } else { op.call };
            doing.op = history.len();
            history.push(Op { call, called: self.now, ..op });
        }
        self.history = history;
    }

    // ---- what tests do ----

    /// `count` clients that write and read until told to stop.
    pub fn load(&mut self, count: usize) {
        self.load = true;
        for _ in 0..count {
            let client = self.add_client();
            self.wake_client(client, ms(1));
        }
    }

    /// A write that must succeed within `limit`.
    pub fn write_within(&mut self, limit: Duration) {
        let acked = self.acked.len();
        let client = self.idle_client();
        let node = self.somebody();
        self.call(client, 0, Call::Fresh, node);
        self.run_until("a write is acknowledged", limit, |world| world.acked.len() > acked);
    }

    /// A write that is asked of one manager, and not waited for.
    pub fn propose_at(&mut self, id: NodeId) {
        let client = self.add_client();
        self.call(client, 0, Call::Fresh, id);
    }

    pub fn write(&mut self) {
        self.write_within(ms(10_000));
    }

    pub fn write_many(&mut self, count: usize) {
        for _ in 0..count {
            self.write();
        }
    }

    /// A linearizable read at one manager; false if it was not answered in time.
    pub fn read_at(&mut self, id: NodeId, limit: Duration) -> bool {
        let client = self.idle_client();
        let done = self.reads_done;
        self.call(client, 0, Call::Read(Some(0)), id);
        let end = self.now + limit;
        while self.now < end && self.reads_done == done && self.turn(end) {}
        self.reads_done > done
    }

    /// What was acknowledged is in this state, under the revision that was told.
    pub(super) fn check_acked(&self, state: &State) {
        for (id, revision) in &self.acked {
            let (found, told) = (state.remembered(*id), Outcome::Committed(*revision));
            ensure!("lost write", found.as_ref() == Some(&told), "change {id} of revision {revision} is {found:?}");
        }
    }
}
