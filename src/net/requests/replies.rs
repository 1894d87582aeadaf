//! What ends a wait: the leader's answer, a joiner's, the log's word on a change, raft's on an order, a round of reads.

use super::*;

impl<S: Service> Requests<S> {
    pub(super) fn on_replied(&mut self, now: Instant, token: Token, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(key) = self.tokens.remove(&token) else { return };
        let Some(pending) = self.requests.get_mut(&key) else { return };
        match std::mem::replace(&mut pending.phase, Phase::Deciding) {
            Phase::Dialling(_, order, until) => {
                self.drop_timer(until, key);
                self.on_dialled(key, order, reply, effects);
            }
            Phase::Forwarded(..) => self.on_forward_ended(now, key, reply, effects),
            phase => pending.phase = phase,
        }
    }

    fn on_dialled(&mut self, key: Key, order: Order, reply: Reply, effects: &mut Vec<Effect>) {
        let why = match reply {
            Reply::Answer { .. } => {
                let token = self.token(key);
                if let Some(pending) = self.requests.get_mut(&key) {
                    pending.phase = Phase::Ordered(token);
                }
                effects.push(Effect::Raft { token, order });
                return;
            }
            Reply::Refused(status) => status.message,
            Reply::Lost { .. } => "nothing answers there".to_owned(),
        };
        self.refuse(key, unreachable_joiner(&order, &why), effects);
    }

    fn on_forward_ended(&mut self, now: Instant, key: Key, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get_mut(&key) else { return };
        let route = routes::route(pending.incoming.call);
        let again = now + RETRY_PAUSE;
        match reply {
            Reply::Answer { body, .. } => self.finish_answered(key, body, effects),
            // It never left this machine.
            Reply::Lost { sent: false } => self.hold(now, key, again, effects),
            Reply::Lost { sent: true } => {
                pending.in_doubt |= route.changes;
                if route.repeatable {
                    self.hold(now, key, again, effects);
                } else {
                    let status = Status::new(Code::Unknown, "the connection to the leader broke");
                    self.refuse(key, status, effects);
                }
            }
            Reply::Refused(status) => match status.code {
                Code::Unavailable if self.service.is_word_of_every_leader(&status) => self.refuse(key, status, effects),
                // Nothing was done there.
                Code::Unavailable => self.hold(now, key, again, effects),
                Code::Unknown if route.repeatable && !status.hopeless => {
                    pending.in_doubt = true;
                    self.hold(now, key, again, effects);
                }
                _ => self.refuse(key, status, effects),
            },
        }
    }

    pub(super) fn on_outcome(&mut self, now: Instant, token: Token, result: ProposalResult, effects: &mut Vec<Effect>) {
        let Some(key) = self.tokens.remove(&token) else { return };
        let turn = self.leave_turn(key);
        let Some(pending) = self.requests.get_mut(&key) else { return };
        let Phase::Proposed { object, .. } = pending.phase else { return };
        pending.phase = Phase::Deciding;
        match result {
            ProposalResult::Applied(outcome) => {
                let step = self.service.ended(&pending.incoming, pending.attempt, object, &outcome);
                self.follow(now, key, step, effects);
            }
            ProposalResult::NotProposed(NotProposed::Overloaded) if !pending.in_doubt => {
                self.refuse(key, overloaded("changes wait to be proposed"), effects);
                return self.hold_turn(now, turn, effects);
            }
            ProposalResult::Refused(status) if !pending.in_doubt => self.refuse(key, status, effects),
            // The same change id makes it safe to send the change again, wherever the leader is then.
            ProposalResult::NotProposed(_) | ProposalResult::Refused(_) | ProposalResult::Lost => {
                self.hold(now, key, now + RETRY_PAUSE, effects);
            }
            ProposalResult::Uncertain => {
                pending.in_doubt = true;
                self.hold(now, key, now + RETRY_PAUSE, effects);
            }
        }
        self.pass_turn(now, turn, effects);
    }

    pub(super) fn on_raft_result(
        &mut self,
        now: Instant,
        token: Token,
        result: Result<Bytes, Status>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(key) = self.tokens.remove(&token) else { return };
        let Some(pending) = self.requests.get_mut(&key) else { return };
        let repeatable = routes::route(pending.incoming.call).repeatable;
        pending.phase = Phase::Deciding;
        match result {
            Ok(body) => self.finish_answered(key, body, effects),
            Err(status) if status.hopeless => self.refuse(key, status, effects),
            // Nothing was done here, so whoever leads now may be asked.
            Err(status) if status.code == Code::Unavailable => self.hold(now, key, now + RETRY_PAUSE, effects),
            Err(status) if status.code == Code::Unknown && repeatable => {
                pending.in_doubt = true;
                self.hold(now, key, now + RETRY_PAUSE, effects);
            }
            Err(status) => self.refuse(key, status, effects),
        }
    }

    pub(super) fn on_round(&mut self, now: Instant, token: Token, ready: bool, effects: &mut Vec<Effect>) {
        for key in self.rounds.remove(&token).unwrap_or_default() {
            let Some(pending) = self.requests.get_mut(&key) else { continue };
            pending.phase = Phase::Deciding;
            if !ready {
                self.hold(now, key, now + RETRY_PAUSE, effects);
                continue;
            }
            pending.confirmed = true;
            self.decide(now, key, effects);
        }
    }
}
