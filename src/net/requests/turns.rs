//! Updates of one object, one at a time.
//!
//! An update is made from the object as it is, and apply takes it only while the object still is so. Of many that are
//! under way at once only the first would be taken, and the others built again, to meet the same: 128 writers of one
//! object got 460 writes a second between them, and 85 of 100 were refused after eight rebuilds. So whoever comes while a
//! change of the object is under way waits for its outcome, and is decided on then.

use super::*;

/// The turn that a request gave up: of which object, and who waits for it.
pub(super) type Turn = (ObjectId, BTreeSet<Key>);

/// The object whose turn a change needs: the first that it updates.
pub(super) fn changed(change: &Change) -> Option<ObjectId> {
    change.operations.iter().find_map(|operation| match operation {
        Operation::Update(object) => Some(object.id()),
        _ => None,
    })
}

impl<S: Service> Requests<S> {
    /// Lets a request wait if another has the object's turn, and says whether it has gone on so, or been refused.
    pub(super) fn queue(&mut self, key: Key, object: ObjectId, effects: &mut Vec<Effect>) -> bool {
        let Some(waiting) = self.turns.get_mut(&object) else { return false };
        let Some(pending) = self.requests.get_mut(&key) else { return true };
        let bytes = pending.incoming.body.len();
        if self.queued_bytes + bytes > self.limits.queued_bytes {
            self.refuse(key, overloaded("changes wait for others of the same object"), effects);
            return true;
        }
        self.queued_bytes += bytes;
        waiting.insert(key);
        pending.phase = Phase::Queued(object);
        true
    }

    /// A request that waited for the object's turn is gone.
    pub(super) fn leave_queue(&mut self, object: ObjectId, key: Key, bytes: usize) {
        self.queued_bytes -= bytes;
        if let Some(waiting) = self.turns.get_mut(&object) {
            waiting.remove(&key);
        }
    }

    /// Takes a request's turn from it; [`Self::pass_turn`] or [`Self::hold_turn`] must follow once the request has gone on.
    pub(super) fn leave_turn(&mut self, key: Key) -> Option<Turn> {
        let Phase::Proposed { turn, .. } = &mut self.requests.get_mut(&key)?.phase else { return None };
        let object = turn.take()?;
        Some((object, self.turns.remove(&object)?))
    }

    /// Lets those that wait begin a new pass, in order, until one has the turn: some may have nothing to propose any more.
    pub(super) fn pass_turn(&mut self, now: Instant, turn: Option<Turn>, effects: &mut Vec<Effect>) {
        let Some((object, mut waiting)) = turn else { return };
        while let Some(key) = waiting.pop_first() {
            if let Some(behind) = self.turns.get_mut(&object) {
                // Whoever took the turn has just done so, and nobody stands behind it yet: this moves one tree.
                waiting.insert(key);
                behind.append(&mut waiting);
                return;
            }
            let Some(pending) = self.requests.get_mut(&key) else { continue };
            if pending.incoming.deadline <= now {
                self.on_timer(now, key, effects);
                continue;
            }
            self.queued_bytes -= pending.incoming.body.len();
            pending.phase = Phase::Deciding;
            self.place(now, key, effects);
        }
    }

    /// Lets all that wait try again in a moment: raft takes nothing now, and would refuse one after the other.
    pub(super) fn hold_turn(&mut self, now: Instant, turn: Option<Turn>, effects: &mut Vec<Effect>) {
        for key in turn.into_iter().flat_map(|(_, waiting)| waiting) {
            let Some(pending) = self.requests.get_mut(&key) else { continue };
            self.queued_bytes -= pending.incoming.body.len();
            pending.phase = Phase::Deciding;
            self.hold(now, key, now + RETRY_PAUSE, effects);
        }
    }
}
