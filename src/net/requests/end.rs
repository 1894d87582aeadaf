//! The end of a request: answered, refused, cancelled, or out of time. Here it is decided whether a caller hears a refusal
//! or that the outcome is not known.

use super::*;

impl<S: Service> Requests<S> {
    pub(super) fn on_timer(&mut self, now: Instant, key: Key, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get(&key) else { return };
        if pending.incoming.deadline > now {
            if let Phase::Dialling(token, order, until) = &pending.phase
                && *until <= now
            {
                let (token, status) = (*token, unreachable_joiner(order, "nothing answered in time"));
                self.tokens.remove(&token);
                effects.push(Effect::Abandon { token });
                self.refuse(key, status, effects);
            }
            return;
        }
        let changes = routes::route(pending.incoming.call).changes;
        let under_way = matches!(pending.phase, Phase::Proposed { .. } | Phase::Ordered(_) | Phase::Forwarded(..));
        let status = if changes && under_way {
            Status::new(Code::Unknown, "its time was over before an answer came")
        } else {
            let leader = "`skep status` shows whether a leader is known";
            let (message, hint) = match pending.phase {
                Phase::Held(_) => ("no leader was there before the request's time was over", leader),
                Phase::Gathered | Phase::Reading(_) => {
                    ("the leader did not confirm the read before the request's time was over", leader)
                }
                Phase::Long => (
                    "other long requests were answered until the request's time was over",
                    "give it more time: `--timeout 30s`",
                ),
                Phase::Queued(_) => (
                    "others were changing the object until the request's time was over",
                    "give it more time: `--timeout 30s`",
                ),
                _ => ("the request's time was over", leader),
            };
            Status::new(Code::DeadlineExceeded, message).with_hint(hint)
        };
        self.abandon(key, effects);
        let turn = self.leave_turn(key);
        self.refuse(key, status, effects);
        self.pass_turn(now, turn, effects);
    }

    pub(super) fn on_cancelled(&mut self, now: Instant, stream: StreamId, effects: &mut Vec<Effect>) {
        if let Some(key) = self.by_stream.get(&stream).copied() {
            self.abandon(key, effects);
            let turn = self.leave_turn(key);
            self.remove(key);
            self.pass_turn(now, turn, effects);
        } else {
            self.streams.cancel(stream);
        }
    }

    /// Tells the network that the reply a request waits for is no longer wanted.
    fn abandon(&mut self, key: Key, effects: &mut Vec<Effect>) {
        if let Some(Phase::Forwarded(token, _) | Phase::Dialling(token, ..)) =
            self.requests.get(&key).map(|pending| &pending.phase)
        {
            effects.push(Effect::Abandon { token: *token });
        }
    }

    pub(super) fn finish_answered(&mut self, key: Key, body: Bytes, effects: &mut Vec<Effect>) {
        if let Some(pending) = self.remove(key) {
            effects.push(Effect::Answer { stream: pending.incoming.stream, body, end: true });
        }
    }

    /// Refuses with a status that is the truth about the request, whatever earlier passes did.
    pub(super) fn finish_refused(&mut self, key: Key, status: Status, effects: &mut Vec<Effect>) {
        if let Some(pending) = self.remove(key) {
            effects.push(Effect::Refuse { stream: pending.incoming.stream, status });
        }
    }

    /// Refuses with a status that speaks of the last pass only: when an earlier one may have been carried out, the
    /// outcome is unknown.
    pub(super) fn refuse(&mut self, key: Key, status: Status, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get(&key) else { return };
        let says_nothing_was_done = match status.code {
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => true,
            // Every pass dials the joiner anew: that it cannot be reached now does not undo an earlier pass.
            Code::FailedPrecondition => pending.incoming.call == Call::Join,
            _ => false,
        };
        let ours = status.code == Code::Unknown && status.hint.is_empty() && !status.hopeless;
        let status = if ours || (pending.in_doubt && says_nothing_was_done) {
            unknown(&pending.incoming, &status)
        } else {
            status
        };
        self.finish_refused(key, status, effects);
    }

    /// Forgets a request and everything that points to it.
    pub(super) fn remove(&mut self, key: Key) -> Option<Pending> {
        self.unhold(key);
        if let Some(Phase::Dialling(_, _, until)) = self.requests.get(&key).map(|pending| &pending.phase) {
            self.drop_timer(*until, key);
        }
        let pending = self.requests.remove(&key)?;
        self.by_stream.remove(&pending.incoming.stream);
        self.timers.remove(&(pending.incoming.deadline, key));
        match pending.phase {
            Phase::Proposed { token, .. }
            | Phase::Ordered(token)
            | Phase::Forwarded(token, _)
            | Phase::Dialling(token, ..) => {
                self.tokens.remove(&token);
            }
            Phase::Queued(object) => self.leave_queue(object, key, pending.incoming.body.len()),
            Phase::Deciding | Phase::Long | Phase::Held(_) | Phase::Gathered | Phase::Reading(_) => {}
        }
        Some(pending)
    }

    /// Drops a timer, unless it falls together with the request's deadline.
    pub(super) fn drop_timer(&mut self, at: Instant, key: Key) {
        if self.requests.get(&key).is_some_and(|pending| pending.incoming.deadline != at) {
            self.timers.remove(&(at, key));
        }
    }
}

pub(super) fn overloaded(what: &str) -> Status {
    Status::new(Code::ResourceExhausted, format!("this manager is busy: too many {what}"))
        .with_hint("try again in a moment")
}

pub(super) fn unreachable_joiner(order: &Order, why: &str) -> Status {
    let addr = match order {
        Order::Join { addr, .. } => addr.as_str(),
        _ => "",
    };
    Status::new(Code::FailedPrecondition, format!("the managers cannot reach the new manager at {addr}: {why}"))
        .with_hint("start it with `--advertise HOST:PORT`, an address that every manager reaches, and open that port")
}

/// The outcome is not known; how to find out depends on the call.
fn unknown(request: &Incoming, why: &Status) -> Status {
    let (message, hint) = unknown_texts(request, why);
    Status { code: Code::Unknown, message, hint, hopeless: why.hopeless }
}

fn unknown_texts(request: &Incoming, why: &Status) -> (String, String) {
    if request.call == Call::Write
        && let Ok(write) = envelope::decode::<WriteRequest>(&request.body, request.body.len())
    {
        let (id, after) = (write.change, write.after);
        let message = format!("the outcome of change {id}, made after revision {after}, is not known: {}", why.message);
        let hint =
            format!("type the same command again with `--change-id {id}@{after}`: it is carried out at most once");
        return (message, hint);
    }
    let hint = if routes::route(request.call).repeatable {
        "ask again: the same request is carried out at most once"
    } else {
        "`skep members` shows whether it was carried out"
    };
    (format!("the outcome is not known: {}", why.message), hint.to_owned())
}
