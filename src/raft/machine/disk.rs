//! What a member does when its disk fills up: it refuses changes while it leads and hands over if it can, makes room by
//! a snapshot, and at last takes no more entries. All of it ends by itself when there is room again.

use super::*;
use crate::types::Operation;
use crate::types::log::Command;

impl Machine {
    pub(super) fn on_disk_space(&mut self, space: DiskSpace) {
        let worse = space.level > self.disk.level;
        self.low_disk_floor = match self.low_disk_floor {
            Some(floor) if space.level != DiskLevel::Ok => Some(floor.min(space.segments)),
            _ => None,
        };
        self.disk = space;
        let position = self.node.store().snapshot_mark().position;
        // What is kept for followers that lag may go at once; a snapshot that is due is asked for with the others.
        if worse && position.index.0 > 0 {
            self.compact(position);
        }
    }

    /// Why a change is not taken, with what to do about it; `None` when there is room. What only removes something is
    /// taken as long as what is in the log fits: it is how people make room.
    pub(super) fn no_room(&self, command: &[u8]) -> Option<Status> {
        let DiskSpace { level, free_bytes, needed_bytes, dir, .. } = &self.disk;
        if *level == DiskLevel::Ok || *level == DiskLevel::Low && only_removes(command) {
            return None;
        }
        let message = format!("the leader's disk is almost full: {free_bytes} bytes are free at {dir}");
        let hint = format!(
            "free {needed_bytes} bytes more there, and changes are taken again; or hand leadership to a manager with room \
             with `skep raft transfer`"
        );
        Some(Status::new(Code::ResourceExhausted, message).with_hint(hint))
    }

    /// A follower with a full disk drops entries: the leader repeats them. Votes and what else
    /// has no entries still has room.
    pub(super) fn has_no_room_for(&self, message: &Message) -> bool {
        self.disk.level == DiskLevel::Full && !message.entries.is_empty()
    }

    /// Whether a snapshot would let old segments of the log go, on a disk that needs it. How little there is in them does
    /// not matter: each takes its full length, and every start begins one. What the last snapshot for this reason left can
    /// not go yet, so that the next one waits for another segment.
    pub(super) fn would_make_room(&self, now: Instant) -> bool {
        self.disk.level != DiskLevel::Ok
            && self.disk.segments > self.low_disk_floor.unwrap_or(1).max(1)
            && self.node.store().snapshot_mark().position.index < self.applied
            && self.low_disk_snapshot.is_none_or(|at| now.since(at) >= LOW_DISK_PAUSE)
    }

    /// A leader that must refuse changes hands over to a voter that need not.
    pub(super) fn watch_space(&mut self, now: Instant) {
        let tried = self.handed_over_at.is_some_and(|at| now.since(at) < DISK_STALL);
        if self.disk.level == DiskLevel::Ok || tried || self.node.raft.lead_transferee.is_some() {
            return;
        }
        if self.transfer_to_healthy() {
            self.handed_over_at = Some(now);
            log::warn!("the disk is almost full: handing leadership over");
        }
    }

    /// Hands over to a voter whose disk is fast and has room.
    pub(super) fn transfer_to_healthy(&mut self) -> bool {
        self.transfer_to_best(true)
    }
}

/// Whether a command is a change that removes objects and does nothing else.
fn only_removes(command: &[u8]) -> bool {
    let Ok(Command::Change(change)) = crate::apply::decode(command) else { return false };
    let removes = |operation: &Operation| matches!(operation, Operation::Remove { .. });
    let asks = |operation: &Operation| matches!(operation, Operation::Require { .. } | Operation::RequireNone { .. });
    change.operations.iter().any(removes) && change.operations.iter().all(|it| removes(it) || asks(it))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::types::object::Config;
    use crate::types::{Change, ChangeId, Expect, Kind, ObjectId, Revision, Timestamp};

    /// The only voter of a group, its log empty after a snapshot at index 1.
    struct Alone {
        machine: Machine,
        now: Instant,
    }

    impl Alone {
        fn new() -> Self {
            let now = Instant::from_nanos(1_000_000_000);
            let mut alone = Self { machine: crate::raft::machine::tests::machine(now, 1), now };
            alone.settle();
            assert!(alone.machine.leadership().serving);
            alone
        }

        /// Carries out what the machine asks for until it asks for nothing; its answers, and where compaction went.
        fn settle(&mut self) -> (Vec<Reply>, Option<Index>, bool) {
            let (mut replies, mut compact, mut create) = (Vec::new(), None, false);
            loop {
                let effects = self.machine.finish(self.now);
                let is_idle = effects.persist.is_empty() && effects.apply.is_empty();
                replies.extend(effects.replies);
                compact = effects.compact.or(compact);
                create |= effects.create_snapshot;
                for (persist, _) in effects.persist {
                    self.machine.step(self.now, Event::Persisted { number: persist.number });
                }
                if let Some((entry, _)) = effects.apply.last() {
                    let position = Position { term: Term(entry.term), index: Index(entry.index) };
                    self.machine.step(self.now, Event::Applied(Applied { position, ..Applied::default() }));
                }
                if is_idle {
                    return (replies, compact, create);
                }
            }
        }

        fn propose(&mut self, token: Token, bytes: usize) -> Vec<Reply> {
            self.machine.step(self.now, Event::Propose { token, command: vec![7; bytes].into() });
            self.settle().0
        }

        fn disk(&mut self, level: DiskLevel) {
            self.segments(level, 1);
        }

        fn segments(&mut self, level: DiskLevel, segments: u64) {
            let dir = "/d/raft".to_owned();
            let space = DiskSpace { level, free_bytes: 77, needed_bytes: 99, segments, dir, ..DiskSpace::default() };
            self.machine.step(self.now, Event::DiskSpace(space));
        }
    }

    #[test]
    fn changes_are_refused_with_numbers_while_the_disk_is_low_and_taken_again_after() {
        let mut alone = Alone::new();
        assert_eq!(alone.propose(1, 10), []);
        for level in [DiskLevel::Low, DiskLevel::Full] {
            alone.disk(level);
            let replies = alone.propose(2, 10);
            let [Reply::Refused(2, status)] = replies.as_slice() else { panic!("{replies:?}") };
            assert_eq!(status.code, Code::ResourceExhausted);
            assert!(status.message.contains("77 bytes are free at /d/raft"), "{status}");
            assert!(status.hint.contains("free 99 bytes more"), "{status}");
        }
        alone.disk(DiskLevel::Ok);
        let before = alone.machine.report(alone.now).last;
        assert_eq!(alone.propose(3, 10), []);
        assert_eq!(alone.machine.report(alone.now).last, before.next());
    }

    fn command(operations: &[&Operation]) -> Bytes {
        let operations = operations.iter().map(|operation| (*operation).clone()).collect();
        let change = Change { id: ChangeId(1), after: Revision(0), time: Timestamp(1), term: None, operations };
        crate::apply::encode(&Command::Change(change)).into()
    }

    const REMOVE: Operation = Operation::Remove { kind: Kind::Config, id: ObjectId(1), version: None };

    #[test]
    fn a_change_that_only_removes_is_taken_on_a_low_disk_and_not_on_a_full_one() {
        let require = Operation::Require { kind: Kind::Config, id: ObjectId(2), expect: Expect::Present };
        let create = Operation::Create(Config::default().into());
        let mut alone = Alone::new();
        let mut check = |level, operations: &[&Operation], taken: bool| {
            alone.disk(level);
            alone.machine.step(alone.now, Event::Propose { token: 5, command: command(operations) });
            let replies = alone.settle().0;
            assert_eq!(replies.is_empty(), taken, "{level:?}: {replies:?}");
        };
        check(DiskLevel::Low, &[&REMOVE], true);
        check(DiskLevel::Low, &[&require, &REMOVE], true);
        check(DiskLevel::Low, &[&require], false);
        check(DiskLevel::Low, &[&REMOVE, &create], false);
        check(DiskLevel::Low, &[], false);
        check(DiskLevel::Full, &[&REMOVE], false);
        check(DiskLevel::Ok, &[&create], true);
    }

    #[test]
    fn a_low_disk_is_not_written_on_again_and_again_for_segments_that_cannot_go() {
        let mut alone = Alone::new();
        // Of the first three one goes; then something new comes into the log every time.
        for (segments, left, expected) in [(3, 2, true), (2, 2, false), (2, 2, false), (3, 3, true), (3, 3, false)] {
            alone.machine.step(alone.now, Event::Propose { token: 5, command: command(&[&REMOVE]) });
            assert_eq!(alone.settle().0, []);
            alone.now = alone.now + LOW_DISK_PAUSE;
            alone.segments(DiskLevel::Low, segments);
            assert_eq!(alone.settle().2, expected, "{segments} segments");
            if expected {
                let report = alone.machine.report(alone.now);
                let position = Position { term: report.term, index: report.applied };
                let mark = SnapshotMark { position, configuration: alone.machine.configuration(), bytes: 10 };
                alone.machine.step(alone.now, Event::SnapshotCreated { mark });
                alone.settle();
                alone.segments(DiskLevel::Low, left);
                alone.settle();
            }
        }
    }

    #[test]
    fn a_low_disk_asks_for_a_snapshot_when_that_would_free_a_segment() {
        let mut alone = Alone::new();
        alone.propose(1, 10);
        for (level, segments, expected) in [
            (DiskLevel::Ok, 3, false),
            (DiskLevel::Low, 1, false),
            (DiskLevel::Low, 2, true),
            // It is under way.
            (DiskLevel::Full, 2, false),
        ] {
            alone.segments(level, segments);
            assert_eq!(alone.settle().2, expected, "{level:?} {segments}");
        }
        // After a failure it is tried again, not before a pause.
        alone.machine.step(alone.now, Event::SnapshotFailed);
        assert!(!alone.settle().2);
        alone.now = alone.now + SNAPSHOT_PAUSE.max(LOW_DISK_PAUSE);
        assert!(alone.settle().2);
        // And not when there is nothing new to be in it.
        let report = alone.machine.report(alone.now);
        let position = Position { term: report.term, index: report.applied };
        let mark = SnapshotMark { position, configuration: alone.machine.configuration(), bytes: 10 };
        alone.machine.step(alone.now, Event::SnapshotCreated { mark });
        alone.now = alone.now + LOW_DISK_PAUSE;
        assert!(!alone.settle().2);
    }

    #[test]
    fn the_log_kept_for_followers_that_lag_goes_when_the_disk_is_low() {
        let mut alone = Alone::new();
        for token in 1..6 {
            alone.propose(token, 400_000);
        }
        let report = alone.machine.report(alone.now);
        let position = Position { term: report.term, index: report.applied };
        let configuration = alone.machine.configuration();
        // As on a follower, which does not know what others have.
        let mark = SnapshotMark { position, configuration, bytes: 10 };
        alone.machine.step(alone.now, Event::SnapshotCreated { mark });
        alone.settle();
        alone.disk(DiskLevel::Low);
        alone.settle();
        assert_eq!(alone.machine.report(alone.now).first, position.index.next());
    }

    #[test]
    fn entries_are_dropped_only_on_a_full_disk_and_nothing_else_is() {
        let mut alone = Alone::new();
        let mut append = Message::default();
        append.msg_type = MessageType::MsgAppend;
        let empty = append.clone();
        append.entries = vec![Entry::default()].into();
        for (level, dropped) in [(DiskLevel::Ok, false), (DiskLevel::Low, false), (DiskLevel::Full, true)] {
            alone.disk(level);
            assert_eq!(alone.machine.has_no_room_for(&append), dropped);
            assert!(!alone.machine.has_no_room_for(&empty));
        }
    }
}
