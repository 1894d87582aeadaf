//! Requests that wait for a leader, and what becomes of them when leadership moves.

use super::*;

impl<S: Service> Requests<S> {
    /// Keeps a request until there is a leader, and at least until `from`; refuses it when waiting is hopeless.
    pub(super) fn hold(&mut self, now: Instant, key: Key, from: Instant, effects: &mut Vec<Effect>) {
        let Some(pending) = self.requests.get_mut(&key) else { return };
        // Where no leader is known, whoever passed it on may know better: that this manager has just been elected.
        if pending.incoming.forwarded && self.leadership.leader.is_some_and(|leader| leader != self.node_id) {
            let message = "this manager does not lead, and does not pass on what was passed on to it";
            return self.refuse(key, Status::new(Code::Unavailable, message), effects);
        }
        if let (None, Some(status)) = (self.leadership.leader, &self.leadership.no_majority) {
            let status = status.clone();
            return self.refuse(key, status, effects);
        }
        let bytes = pending.incoming.body.len();
        let of_stranger = usize::from(routes::is_stranger(&pending.incoming.caller));
        if self.held.len() >= self.limits.held
            || self.held_bytes + bytes > self.limits.held_bytes
            || self.held_of_strangers + of_stranger > self.limits.held_of_strangers
        {
            return self.refuse(key, overloaded("requests wait for a leader"), effects);
        }
        pending.phase = Phase::Held(from);
        self.held.insert(key);
        self.held_bytes += bytes;
        self.held_of_strangers += of_stranger;
        if from > now {
            self.timers.insert((from, key));
        }
    }

    pub(super) fn unhold(&mut self, key: Key) {
        if self.held.remove(&key)
            && let Some(pending) = self.requests.get_mut(&key)
        {
            self.held_bytes -= pending.incoming.body.len();
            self.held_of_strangers -= usize::from(routes::is_stranger(&pending.incoming.caller));
            if let Phase::Held(from) = std::mem::replace(&mut pending.phase, Phase::Deciding) {
                self.drop_timer(from, key);
            }
        }
    }

    pub(super) fn on_leadership(&mut self, now: Instant, leadership: Leadership, effects: &mut Vec<Effect>) {
        let (before, knew) = (self.leadership.leader, self.knows_leader());
        self.leadership = leadership;
        let moved = before != self.leadership.leader;
        if moved {
            self.leave_old_leader(now, effects);
        }
        // What was held back for a moment need not wait for it when the leader is new.
        self.release(now, moved || !knew, effects);
    }

    /// Takes back what was passed on to a manager that no longer leads, if it may be sent again: the old leader may be
    /// cut off, and its silence would cost the caller its deadline.
    fn leave_old_leader(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let leader = self.leadership.leader;
        if leader.is_none() {
            return;
        }
        let mut stranded: Vec<(Key, Token)> = self
            .requests
            .iter()
            .filter_map(|(key, pending)| match pending.phase {
                Phase::Forwarded(token, to) if Some(to) != leader => {
                    routes::route(pending.incoming.call).repeatable.then_some((*key, token))
                }
                _ => None,
            })
            .collect();
        stranded.sort_unstable();
        for (key, token) in stranded {
            self.tokens.remove(&token);
            effects.push(Effect::Abandon { token });
            if let Some(pending) = self.requests.get_mut(&key) {
                pending.in_doubt |= routes::route(pending.incoming.call).changes;
                pending.phase = Phase::Deciding;
            }
            self.place(now, key, effects);
        }
    }

    /// Sends on what was held, or refuses it, as leadership allows.
    pub(super) fn release(&mut self, now: Instant, at_once: bool, effects: &mut Vec<Effect>) {
        let hopeless = self.leadership.leader.is_none() && self.leadership.no_majority.is_some();
        let known = self.knows_leader();
        let not_leading = self.leadership.leader.is_some_and(|leader| leader != self.node_id);
        let due: Vec<Key> = self
            .held
            .iter()
            .copied()
            .filter(|key| {
                let Some(pending) = self.requests.get(key) else { return false };
                let Phase::Held(from) = pending.phase else { return false };
                hopeless || (pending.incoming.forwarded && not_leading) || known && (at_once || from <= now)
            })
            .collect();
        for key in due {
            self.unhold(key);
            self.place(now, key, effects);
        }
    }

    pub(super) fn serves_as_leader(&self) -> bool {
        self.leadership.serving && self.leadership.leader == Some(self.node_id)
    }

    /// Whether someone can answer for the swarm: another manager, or this one once it serves.
    pub(super) fn knows_leader(&self) -> bool {
        self.leadership.leader.is_some_and(|leader| leader != self.node_id || self.leadership.serving)
    }
}
