//! A disk with a size, which others fill up.

use super::*;
use crate::sys::files::Disk as _;
use crate::types::api::{DiskLevel, DiskSpace};
use crate::wal::Reserve;

const SEGMENT: u64 = 8192;
/// With a state of no size.
const RESERVE: u64 = SEGMENT + SEGMENT / 8;

/// A manager's disk of so many segments, with a file of somebody else.
struct Filled {
    pair: Pair,
    reserve: Reserve,
    /// What a snapshot would hold.
    state: u64,
    space: DiskSpace,
}

impl Filled {
    fn new(segments: u64) -> Self {
        let pair = Pair::new(SEGMENT);
        // What the helper thread has made ahead.
        pair.disk.create(&dir().join("spare")).unwrap().allocate(SEGMENT).unwrap();
        pair.disk.create(Path::new("others")).unwrap();
        pair.disk.set_capacity(segments * SEGMENT);
        let reserve = Reserve::new(Arc::new(pair.disk.clone()), dir(), SEGMENT);
        let mut filled = Self { pair, reserve, state: 0, space: DiskSpace::default() };
        filled.check(DiskLevel::Ok);
        filled
    }

    /// Somebody else leaves so much free.
    fn leave(&self, bytes: u64) {
        let others = self.pair.disk.open(Path::new("others")).unwrap();
        others.set_len(0).unwrap();
        others.set_len(self.pair.disk.free_bytes(dir()).unwrap().saturating_sub(bytes)).unwrap();
    }

    #[track_caller]
    fn check(&mut self, expected: DiskLevel) {
        self.space = self.reserve.check(self.space.level, self.state).unwrap();
        assert_eq!(self.space.level, expected, "{:?}", self.space);
        assert_eq!(self.space.needed_bytes > 0, expected != DiskLevel::Ok, "{:?}", self.space);
    }

    fn has_reserve(&self) -> bool {
        self.pair.disk.open(&dir().join("reserve")).is_ok()
    }
}

#[test]
fn the_marks_leave_room_between_them() {
    let mut filled = Filled::new(16);
    // The segment, the spare, and the file that names the newest one.
    assert_eq!((filled.space.reserve_bytes, filled.space.free_bytes), (RESERVE, 14 * SEGMENT - 512 - RESERVE));
    for (free, expected) in [
        (SEGMENT, DiskLevel::Ok),
        (SEGMENT / 2, DiskLevel::Ok),
        (SEGMENT / 2 - 1, DiskLevel::Low),
        (SEGMENT / 2, DiskLevel::Low),
        (SEGMENT - 1, DiskLevel::Low),
        (SEGMENT, DiskLevel::Ok),
        (0, DiskLevel::Low),
    ] {
        filled.leave(free);
        filled.check(expected);
    }
    // Where a snapshot, or the next segment, would not fit, nothing more is taken.
    filled.state = SEGMENT;
    filled.check(DiskLevel::Full);
    filled.state = 0;
    filled.check(DiskLevel::Low);
    filled.pair.disk.remove(&dir().join("spare")).unwrap();
    filled.leave(SEGMENT - 1);
    filled.check(DiskLevel::Full);
    filled.leave(2 * SEGMENT);
    filled.check(DiskLevel::Ok);
}

#[test]
fn what_is_said_to_be_needed_is_enough() {
    for has_spare in [true, false] {
        for has_reserve in [true, false] {
            for free in [0, 1, SEGMENT / 2 - 1, SEGMENT - 1] {
                let mut filled = Filled::new(16);
                if !has_spare {
                    filled.pair.disk.remove(&dir().join("spare")).unwrap();
                }
                if !has_reserve {
                    filled.pair.disk.remove(&dir().join("reserve")).unwrap();
                }
                filled.leave(free);
                filled.space = filled.reserve.check(filled.space.level, filled.state).unwrap();
                if filled.space.level != DiskLevel::Ok {
                    filled.leave(free + filled.space.needed_bytes);
                    filled.check(DiskLevel::Ok);
                }
            }
        }
    }
}

#[test]
fn the_reserve_grows_with_the_state() {
    let mut filled = Filled::new(16);
    filled.state = 4 * SEGMENT;
    filled.check(DiskLevel::Ok);
    let held = filled.space.reserve_bytes;
    assert!((6 * SEGMENT..7 * SEGMENT).contains(&held));
    // Not for every little change.
    filled.state += 1000;
    filled.check(DiskLevel::Ok);
    assert_eq!(filled.space.reserve_bytes, held);
    filled.state = 0;
    filled.check(DiskLevel::Ok);
    assert_eq!(filled.space.reserve_bytes, RESERVE);
    // What does not fit is not taken, and that is said.
    filled.state = 40 * SEGMENT;
    filled.check(DiskLevel::Low);
    assert_eq!(filled.space.reserve_bytes, RESERVE);
}

#[test]
fn a_snapshot_is_written_on_a_full_disk_and_makes_room_for_more() {
    let mut filled = Filled::new(12);
    for index in 1..12 {
        filled.pair.append(1, index..index + 1, 3000);
    }
    assert!(filled.pair.segments().len() > 3);
    filled.leave(0);
    filled.check(DiskLevel::Full);
    snapshot(&filled.pair.disk, position(1, 10));
    assert!(!filled.has_reserve());
    filled.pair.write(vec![Persist {
        snapshot: Some(SnapshotMark::Created(position(1, 10))),
        ..persist(vec![], Some(hard_state(1, 1, 10)))
    }]);
    filled.pair.compact(11);
    filled.check(DiskLevel::Ok);
    assert!(filled.has_reserve());
    // The same without a reserve: refused, and nothing is left of it.
    filled.pair.disk.remove(&dir().join("reserve")).unwrap();
    filled.leave(0);
    let shared = Arc::new(filled.pair.disk.clone());
    let error = SnapshotWriter::create(shared, dir(), key(), LINEAGE, position(1, 11), &members()).unwrap_err();
    assert!(error.hint().starts_with("make room on the disk"));
    assert_eq!(filled.pair.disk.paths().iter().filter(|path| path.to_string_lossy().contains(".part")).count(), 0);
}

#[test]
fn the_log_goes_on_with_the_reserve_then_waits_for_room_and_loses_nothing() {
    let mut filled = Filled::new(10);
    filled.leave(0);
    let disk = filled.pair.disk.clone();
    let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = asked.clone();
    filled.pair.wal().when_full(move || {
        // Somebody makes room at the third look.
        if count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 2 {
            disk.open(Path::new("others")).unwrap().set_len(0).unwrap();
        }
        true
    });
    let mut had_reserve = Vec::new();
    for index in 1..12 {
        filled.pair.append(1, index..index + 1, 3000);
        had_reserve.push(filled.has_reserve());
    }
    assert!(had_reserve[0] && !had_reserve[10]);
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 3);
    filled.pair.reopen();
}

#[test]
fn a_wait_for_room_that_is_given_up_is_an_error_and_keeps_what_was_acknowledged() {
    let mut filled = Filled::new(10);
    filled.pair.disk.remove(&dir().join("reserve")).unwrap();
    filled.pair.disk.remove(&dir().join("spare")).unwrap();
    filled.pair.append(1, 1..3, 3000);
    filled.leave(0);
    filled.pair.wal().when_full(|| false);
    let error = filled.pair.wal().write(&[persist(entries(1, 3..5, 3000), None)]).unwrap_err();
    assert!(matches!(error, WalError::Io { doing: "make", .. }), "{error}");
    filled.leave(4 * SEGMENT);
    let recovered = filled.pair.reopen();
    assert_eq!((recovered.last, recovered.cut), (position(1, 2), None));
}

/// What a full disk may cost at its worst: the disk fills up at any moment, a leader obeys the level, and votes, snapshots
/// and compaction go on in any case.
#[test]
fn however_full_the_disk_votes_and_snapshots_are_written_and_changes_resume() {
    let (mut refused, mut taken) = (0, 0);
    for seed in 0..60 {
        let mut random = SeededEntropy::new(seed);
        let mut filled = Filled::new(14);
        filled.pair.wal().when_full(|| panic!("the log ran out of room"));
        for _ in 0..80 {
            // Others take what is free, at any moment when this manager has what it keeps for that.
            let spare = dir().join("spare");
            if random.below(3) == 0 && filled.has_reserve() && filled.pair.disk.open(&spare).is_ok() {
                filled.leave(random.below(3 * SEGMENT));
            }
            filled.space = filled.reserve.check(filled.space.level, filled.state).unwrap();
            // What the helper thread does, without the reserve.
            if filled.pair.disk.open(&spare).is_err() && filled.pair.disk.free_bytes(dir()).unwrap() >= SEGMENT {
                filled.pair.disk.create(&spare).unwrap().allocate(SEGMENT).unwrap();
            }
            let last = filled.pair.model.last().index.0;
            if filled.space.level == DiskLevel::Ok {
                filled.pair.append(1, last + 1..last + 2, 2000);
                taken += 1;
                continue;
            }
            refused += 1;
            let vote = hard_state(1, 1 + random.below(3), last);
            filled.pair.write(vec![persist(vec![], Some(vote))]);
            if last > filled.pair.model.snapshot.index.0 {
                let at = position(1, last);
                snapshot(&filled.pair.disk, at);
                let created = Some(SnapshotMark::Created(at));
                filled.pair.write(vec![Persist { snapshot: created, ..persist(vec![], None) }]);
                crate::wal::remove_snapshots_before(&filled.pair.disk, dir(), at.index).unwrap();
            }
            filled.pair.compact(last + 1);
        }
        filled.leave(0);
        filled.pair.disk.set_capacity(40 * SEGMENT);
        filled.check(DiskLevel::Ok);
        filled.pair.reopen();
    }
    assert!(refused > 500 && taken > 500, "{refused} {taken}");
}

#[test]
fn a_quota_that_nobody_tells_of_is_run_against_ever_less_often() {
    let mut filled = Filled::new(16);
    let disk = filled.pair.disk.clone();
    disk.remove(&dir().join("reserve")).unwrap();
    disk.set_full(true);
    let mut attempts = 0;
    for _ in 0..500 {
        let before = disk.operations();
        filled.check(DiskLevel::Low);
        attempts += u64::from(disk.operations() > before);
        assert!(!filled.has_reserve(), "half a reserve is none");
        assert!(filled.space.needed_bytes >= RESERVE, "{:?}", filled.space);
    }
    assert!((5..20).contains(&attempts), "{attempts}");
    // It is noticed by itself when it is lifted.
    disk.set_full(false);
    for _ in 0..129 {
        filled.space = filled.reserve.check(filled.space.level, filled.state).unwrap();
    }
    filled.check(DiskLevel::Ok);
    assert!(filled.has_reserve());
}
