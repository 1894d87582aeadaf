//! Between the requests machine and everybody else: carries out what it asks for, and tells it what raft answered.

use super::*;

/// Effects of one event that room is kept for.
const EFFECTS_KEPT: usize = 16;

impl NodeHandler {
    /// A request from a socket, this node's own or another's.
    pub(super) fn take_request(&mut self, now: Instant, mut request: Incoming, out: &mut Outbox) {
        if request.call == Call::Diagnose {
            let answer = Answer::Diagnosis(Box::new(self.diagnose(now)));
            out.answer(request.stream, control::encode(&answer));
            return;
        }
        if self.member.is_none() {
            match self.joiner().answer(&request) {
                Ok(body) => out.answer(request.stream, body),
                Err(status) => out.refuse(request.stream, status),
            }
            return;
        }
        self.refresh(now);
        self.look_at_certificate(now, out);
        if request.call == Call::Issue && request.caller == Caller::Local && !request.forwarded {
            // Whoever may use this socket may act for this node: it asks for a new certificate. The leader must hear for whom.
            let (node_id, cluster_id) = (self.identity.node_id, self.identity.cluster_id);
            request.caller = Caller::Node { node_id, role: Role::Manager, cluster_id, expired: false };
        }
        match request.call {
            Call::Watch => self.watched.store(true, Relaxed),
            Call::Admin => {
                let admin: Result<Admin, _> = crate::codec::envelope::decode(&request.body, request.body.len());
                if matches!(admin, Ok(Admin::Leave { .. })) && request.caller == Caller::Local {
                    self.stop.ask_to_leave(true);
                    self.leaving.insert(request.stream);
                }
                if matches!(admin, Ok(Admin::RotateDataKey)) && request.caller == Caller::Local && !request.forwarded {
                    self.rotate_data_key(&request, out);
                    return;
                }
            }
            _ => {}
        }
        self.drive(now, Event::Request(request), out);
    }

    /// Written by the locksmith's thread, because a file is synced; several orders at once are one.
    fn rotate_data_key(&self, request: &Incoming, out: &mut Outbox) {
        if let Some(member) = &self.member {
            let _ = member.locksmith.try_send(locksmith::Order::RotateDataKey);
            out.answer(request.stream, control::encode(&Answer::Done));
        }
    }

    /// A request of this node itself goes the way of every other.
    pub(super) fn ask(&mut self, now: Instant, ask: Ask, out: &mut Outbox) {
        let Ask { call, body, deadline, expired, reply } = ask;
        if self.member.is_none() {
            let status = Status::new(Code::Unavailable, "this manager is joining a swarm");
            // Whoever asked may have given up.
            let _ = reply.try_send(Err(status));
            return;
        }
        let number = self.own_token();
        let stream = StreamId { connection: INSIDE, stream: number as u32 };
        let Identity { node_id, cluster_id, .. } = self.identity;
        let caller = Caller::Node { node_id, role: Role::Manager, cluster_id, expired };
        self.asking.insert(stream, reply);
        let addr = self.identity.advertise.clone();
        self.drive(now, Event::Request(Incoming { stream, caller, addr, forwarded: false, call, deadline, body }), out);
    }

    /// Runs the requests machine and carries out what it asks, until it asks nothing more.
    pub(super) fn drive(&mut self, now: Instant, event: Event, out: &mut Outbox) {
        self.backlog.push_back(event);
        while let Some(event) = self.backlog.pop_front() {
            let Some(member) = &mut self.member else { return };
            let mut effects = std::mem::take(&mut self.effects);
            member.requests.step(now, event, &mut effects);
            for effect in effects.drain(..) {
                self.carry_out(effect, out);
            }
            // Room for a few is larger than what an allocator has at hand, and used for every request.
            if effects.capacity() <= EFFECTS_KEPT {
                self.effects = effects;
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, out: &mut Outbox) {
        match effect {
            Effect::Answer { stream, body, .. } if stream.connection == INSIDE => self.answer_own(stream, Ok(body)),
            Effect::Refuse { stream, status } if stream.connection == INSIDE => self.answer_own(stream, Err(status)),
            Effect::Answer { stream, body, end } => {
                if self.leaving.remove(&stream) {
                    self.stop.stop(Stopped::Removed);
                }
                out.commands.push(Command::Answer { stream, body, end });
            }
            Effect::Refuse { stream, status } => {
                if self.leaving.remove(&stream) && self.leaving.is_empty() {
                    self.stop.ask_to_leave(false);
                }
                out.refuse(stream, status);
            }
            Effect::Propose { token, command } => {
                if !self.ask_raft(raft::Event::Propose { token, command: command.into() }) {
                    let result = ProposalResult::NotProposed(NotProposed::Overloaded);
                    self.backlog.push_back(Event::Outcome { token, result });
                }
            }
            Effect::Read { token } => {
                if !self.ask_raft(raft::Event::Read { token }) {
                    self.backlog.push_back(Event::ReadFailed { token });
                }
            }
            Effect::Raft { token, order } => self.order(token, order),
            Effect::Forward { token, to, call, deadline_ms, forwarded, body } => {
                let forwarded = Some(forwarded);
                out.commands.push(Command::Call { token, to: Target::Node(to), call, deadline_ms, forwarded, body });
            }
            Effect::Abandon { token } => out.commands.push(Command::Abandon { token }),
            Effect::BackDial { token, node, addr } => {
                let body = crate::codec::envelope::encode(&()).into();
                out.commands.push(Command::Call {
                    token,
                    to: Target::Address(node, addr),
                    call: Call::Health,
                    deadline_ms: OWN_DEADLINE_MS,
                    forwarded: None,
                    body,
                });
            }
            Effect::Elsewhere(request) => self.serve_snapshot(&request, out),
        }
    }

    /// Queues a request for raft; false when there is no room.
    pub(super) fn ask_raft(&mut self, event: raft::Event) -> bool {
        self.raft_waits = true;
        self.raft.request(event)
    }

    pub(super) fn wake_raft(&mut self) {
        if std::mem::take(&mut self.raft_waits) {
            self.raft.turn_before_log();
        }
    }

    fn answer_own(&mut self, stream: StreamId, result: Result<Bytes, Status>) {
        if let Some(reply) = self.asking.remove(&stream) {
            // Whoever asked may have given up.
            let _ = reply.try_send(result);
        }
    }

    pub(super) fn order(&mut self, token: u64, order: Order) {
        let alone = self.leadership.leader.is_none();
        if alone && matches!(order, Order::Leave { node_id, force: true, .. } if node_id == self.identity.node_id) {
            // Nobody can be asked: this manager goes, and the others go on counting it.
            let result = Ok(control::encode(&Answer::Done));
            self.backlog.push_back(Event::RaftResult { token, result });
            return;
        }
        if !self.ask_raft(raft::Event::Order { token, order }) {
            let status = Status::new(Code::Unavailable, "too many requests wait for raft").with_hint("try again");
            self.backlog.push_back(Event::RaftResult { token, result: Err(status) });
        }
    }

    pub(super) fn raft_replies(&mut self, now: Instant, replies: Vec<raft::Reply>, out: &mut Outbox) {
        for reply in replies {
            match reply {
                raft::Reply::NotLeader(token) => {
                    let result = ProposalResult::NotProposed(NotProposed::NotLeader);
                    self.drive(now, Event::Outcome { token, result }, out);
                }
                raft::Reply::Overloaded(token) => {
                    let result = ProposalResult::NotProposed(NotProposed::Overloaded);
                    self.drive(now, Event::Outcome { token, result }, out);
                }
                raft::Reply::Refused(token, status) => {
                    self.drive(now, Event::Outcome { token, result: ProposalResult::Refused(status) }, out);
                }
                raft::Reply::Lost(token) => {
                    self.drive(now, Event::Outcome { token, result: ProposalResult::Lost }, out);
                }
                raft::Reply::Uncertain(token) => {
                    self.drive(now, Event::Outcome { token, result: ProposalResult::Uncertain }, out);
                }
                raft::Reply::ReadReady(tokens) => {
                    for token in tokens {
                        self.drive(now, Event::ReadReady { token }, out);
                    }
                }
                raft::Reply::ReadFailed(tokens) => {
                    for token in tokens {
                        self.drive(now, Event::ReadFailed { token }, out);
                    }
                }
                raft::Reply::Order(token, _) if token >= OWN => self.moving = None,
                raft::Reply::Order(token, result) => {
                    let result = match result {
                        OrderResult::Done(answer) => Ok(control::encode(&answer)),
                        OrderResult::Refused(status) => Err(status),
                        OrderResult::Uncertain => {
                            let message =
                                "leadership moved while the order was in the log: it may still be carried out";
                            Err(Status::new(Code::Unknown, message)
                                .with_hint("see with `skep members`, then try again"))
                        }
                        OrderResult::Again => {
                            Err(Status::new(Code::Unavailable, "leadership moved; nothing was done")
                                .with_hint("try again"))
                        }
                    };
                    self.drive(now, Event::RaftResult { token, result }, out);
                }
            }
        }
    }
}
