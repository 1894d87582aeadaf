//! One pass of a request: finds where it can be carried out, asks the service, and sends it on to what it then waits for.
//!
//! A request that goes round again begins a new pass; only what an earlier one may have done is remembered.

use super::*;

/// One is enough; those whose connections broke without a word last until that is noticed.
const SESSIONS_PER_NODE: usize = 8;

impl<S: Service> Requests<S> {
    pub(super) fn on_request(&mut self, now: Instant, incoming: Incoming, effects: &mut Vec<Effect>) {
        let stream = incoming.stream;
        if self.by_stream.contains_key(&stream) || self.streams.contains(stream) {
            // A stream number is used once per connection; answering this one would answer the other's caller.
            return;
        }
        if incoming.deadline <= now {
            let status = Status::new(Code::DeadlineExceeded, "the request's time was over before it arrived");
            effects.push(Effect::Refuse { stream, status });
            return;
        }
        if self.requests.len() >= self.limits.requests {
            effects.push(Effect::Refuse { stream, status: overloaded("requests are under way") });
            return;
        }
        let key = self.next_key;
        self.next_key += 1;
        self.by_stream.insert(stream, key);
        self.timers.insert((incoming.deadline, key));
        let pending = Pending { incoming, phase: Phase::Deciding, attempt: 0, confirmed: false, in_doubt: false };
        self.requests.insert(key, pending);
        self.place(now, key, effects);
    }

    /// Begins a pass: finds out where the request can be carried out, and sends it there.
    pub(super) fn place(&mut self, now: Instant, key: Key, effects: &mut Vec<Effect>) {
        let leads = self.serves_as_leader();
        let Some(pending) = self.requests.get_mut(&key) else { return };
        pending.attempt = 0;
        match routes::route(pending.incoming.call).served {
            Served::Here => self.decide(now, key, effects),
            Served::Leader if leads => self.decide(now, key, effects),
            Served::Leader => {
                let (call, body) = (pending.incoming.call, pending.incoming.body.clone());
                self.pass_on(now, key, call, body, effects);
            }
        }
    }

    /// Passes a call on to the leader, or holds it until there is one.
    fn pass_on(&mut self, now: Instant, key: Key, call: Call, body: Bytes, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get_mut(&key) else { return };
        let leader = self.leadership.leader.filter(|leader| *leader != self.node_id);
        let Some(to) = leader.filter(|_| !pending.incoming.forwarded) else {
            return self.hold(now, key, now, effects);
        };
        let token = self.next_token;
        self.next_token += 1;
        pending.phase = Phase::Forwarded(token, to);
        let left_ms = pending.incoming.deadline.since(now).as_millis();
        let forwarded = Forwarded { caller: pending.incoming.caller.clone(), addr: pending.incoming.addr.clone() };
        self.tokens.insert(token, key);
        let deadline_ms = u32::try_from(left_ms).unwrap_or(u32::MAX).max(1);
        effects.push(Effect::Forward { token, to, call, deadline_ms, forwarded, body });
    }

    /// Asks the service, and does what it says: now, or in its turn if that takes long.
    pub(super) fn decide(&mut self, now: Instant, key: Key, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get_mut(&key) else { return };
        if self.service.takes_long(&pending.incoming, pending.confirmed) {
            pending.phase = Phase::Long;
            self.long.push_back(key);
        } else {
            self.decide_now(now, key, effects);
        }
    }

    /// Asks the service now, and does what it says.
    pub(super) fn decide_now(&mut self, now: Instant, key: Key, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get_mut(&key) else { return };
        pending.phase = Phase::Deciding;
        let step = self.service.decide(&pending.incoming, pending.attempt, pending.confirmed);
        self.follow(now, key, step, effects);
    }

    pub(super) fn follow(&mut self, now: Instant, key: Key, mut step: Step<S::Stream>, effects: &mut Vec<Effect>) {
        // A service that rebuilds is asked again here, not by recursion.
        while let Step::Rebuild = step {
            let Some(pending) = self.requests.get_mut(&key) else { return };
            if pending.attempt >= MAX_REBUILDS {
                let message = "update out of sequence: other writers kept changing the object";
                let status = Status::new(Code::Aborted, message).with_hint("run the command again");
                return self.finish_refused(key, status, effects);
            }
            pending.attempt += 1;
            step = self.service.decide(&pending.incoming, pending.attempt, pending.confirmed);
        }
        let Some(pending) = self.requests.get_mut(&key) else { return };
        match step {
            Step::Answer(body) => self.finish_answered(key, body, effects),
            Step::Refuse(status) => self.finish_refused(key, status, effects),
            Step::RefuseIfConfirmed(status) if pending.confirmed => self.finish_refused(key, status, effects),
            Step::RefuseIfConfirmed(_) | Step::Barrier => self.gather(now, key, effects),
            Step::Propose(change) => self.propose(key, change, effects),
            Step::Raft(order) => self.order(now, key, order, effects),
            Step::Stream(source) => {
                let stream = pending.incoming.stream;
                // A node's session lasts as long as the node: whoever watches, lists or backs up has places of its own.
                let is_session = pending.incoming.call == Call::Session;
                let session_of = pending.incoming.caller.node_id().filter(|_| is_session);
                let sessions = self.streams.sessions();
                let refusal = match session_of {
                    Some(node) if self.streams.sessions_of(node) >= SESSIONS_PER_NODE => {
                        Some(overloaded("sessions of this node are open"))
                    }
                    Some(_) if sessions >= self.limits.sessions => {
                        let status = overloaded("nodes have their session here");
                        Some(status.with_hint("another manager may have room, see `skep members`"))
                    }
                    None if self.streams.len() - sessions >= self.limits.streams => {
                        Some(overloaded("streams are open"))
                    }
                    _ => None,
                };
                if let Some(status) = refusal {
                    return self.refuse(key, status, effects);
                }
                self.remove(key);
                self.streams.begin(stream, source, session_of);
            }
            Step::Elsewhere => {
                if let Some(pending) = self.remove(key) {
                    effects.push(Effect::Elsewhere(pending.incoming));
                }
            }
            Step::Rebuild => unreachable!("the loop above ends with another step"),
        }
    }

    /// Joins the round that begins when the turn ends.
    fn gather(&mut self, now: Instant, key: Key, effects: &mut Vec<Effect>) {
        if !self.knows_leader() {
            return self.hold(now, key, now, effects);
        }
        if let Some(pending) = self.requests.get_mut(&key) {
            pending.phase = Phase::Gathered;
            self.gathered.push(key);
        }
    }

    fn propose(&mut self, key: Key, change: Change, effects: &mut Vec<Effect>) {
        let object = change.written();
        // A node's request changes the node's own object, which nobody else is after; and what counts how often a node
        // asks counts each time a request is decided on.
        let is_write = self.requests.get(&key).is_some_and(|pending| pending.incoming.call == Call::Write);
        let turn = turns::changed(&change).filter(|_| is_write);
        let command = envelope::encode(&Command::Change(change));
        if command.len() > MAX_CHANGE_BYTES {
            let message = format!("the change takes {} bytes; the limit is {MAX_CHANGE_BYTES}", command.len());
            let status = Status::new(Code::InvalidArgument, message).with_hint("split it, or store less per object");
            return self.finish_refused(key, status, effects);
        }
        if let Some(turn) = turn
            && self.queue(key, turn, effects)
        {
            return;
        }
        let token = self.token(key);
        if let Some(pending) = self.requests.get_mut(&key) {
            pending.phase = Phase::Proposed { token, turn, object };
            self.turns.extend(turn.map(|object| (object, BTreeSet::new())));
        }
        effects.push(Effect::Propose { token, command });
    }

    pub(super) fn order(&mut self, now: Instant, key: Key, order: Order, effects: &mut Vec<Effect>) {
        if order != Order::Snapshot && !self.serves_as_leader() {
            let alone = matches!(order, Order::Leave { force: true, node_id, .. } if node_id == self.node_id);
            if self.knows_leader() || !alone {
                let Some(pending) = self.requests.get(&key) else { return };
                let (call, body) = call_for(&order, &pending.incoming);
                return self.pass_on(now, key, call, body, effects);
            }
        }
        let token = self.token(key);
        let Some(pending) = self.requests.get_mut(&key) else { return };
        if let Order::Join { node_id: node, ref addr, .. } = order {
            let (addr, until) = (addr.clone(), now + BACK_DIAL);
            pending.phase = Phase::Dialling(token, order, until);
            self.timers.insert((until, key));
            effects.push(Effect::BackDial { token, node, addr });
        } else {
            pending.phase = Phase::Ordered(token);
            effects.push(Effect::Raft { token, order });
        }
    }
}

/// The call that asks the leader for an order. A request to leave names the manager that was asked, or the leader would
/// take itself out.
fn call_for(order: &Order, request: &Incoming) -> (Call, Bytes) {
    match *order {
        Order::Leave { node_id, force, .. } => (Call::Leave, envelope::encode(&LeaveRequest { node_id, force }).into()),
        _ => (request.call, request.body.clone()),
    }
}
