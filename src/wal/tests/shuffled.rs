//! Files that are whole, and not where they belong.

use super::damage::{check_disk, written};
use super::*;
use crate::sys::files::Disk as _;
use crate::wal::newest::NEWEST;
use crate::wal::segment;

/// Changes the files of a copy of the log of three segments and opens that.
fn check(change: impl FnOnce(&TestDisk)) -> Result<(), (String, u64)> {
    let pair = written();
    change(&pair.disk);
    let disk = pair.disk.duplicate();
    check_disk(&pair, disk)
}

fn path(sequence: u64) -> PathBuf {
    dir().join(segment::name(sequence))
}

fn put(disk: &TestDisk, path: &Path, bytes: Vec<u8>) {
    if disk.open(path).is_err() {
        disk.create(path).unwrap();
    }
    disk.change(path, |file| *file = bytes);
}

#[test]
fn a_missing_segment_is_named_wherever_it_was() {
    for missing in [1, 2, 3] {
        let result = check(|disk| disk.remove(&path(missing)).unwrap());
        assert_eq!(result, Err((segment::name(missing), 0)));
    }
    let result = check(|disk| (1..4).for_each(|missing| disk.remove(&path(missing)).unwrap()));
    assert_eq!(result, Err((segment::name(1), 0)));
}

#[test]
fn without_the_file_that_names_the_newest_segment_only_the_loss_of_the_last_goes_unnoticed() {
    // A log of a version that had no such file opens, and has one from then on.
    assert_eq!(check(|disk| disk.remove(&dir().join(NEWEST)).unwrap()), Ok(()));
    for missing in [1, 2] {
        let result = check(|disk| {
            disk.remove(&dir().join(NEWEST)).unwrap();
            disk.remove(&path(missing)).unwrap();
        });
        assert_eq!(result, Err((segment::name(missing), 0)));
    }
}

#[test]
fn segments_that_changed_places_are_refused() {
    for (one, other) in [(1, 2), (2, 3), (1, 3)] {
        let result = check(|disk| {
            let (left, right) = (disk.bytes(&path(one)), disk.bytes(&path(other)));
            disk.change(&path(one), |bytes| *bytes = right);
            disk.change(&path(other), |bytes| *bytes = left);
        });
        assert_eq!(result, Err((segment::name(one), 0)));
    }
}

#[test]
fn a_segment_that_is_there_twice_is_refused() {
    for original in [1, 2, 3] {
        let result = check(|disk| put(disk, &path(4), disk.bytes(&path(original))));
        assert_eq!(result, Err((segment::name(4), 0)));
    }
    // Under a name that is not a segment's it is nobody's.
    for name in ["wal-1", "wal-00000001.bak", "wal-0000000000002"] {
        assert_eq!(check(|disk| put(disk, &dir().join(name), disk.bytes(&path(1)))), Ok(()));
    }
}

#[test]
fn an_empty_file_in_place_of_a_segment_is_refused() {
    for empty in [1, 2, 3, 4] {
        assert_eq!(check(|disk| put(disk, &path(empty), Vec::new())), Err((segment::name(empty), 0)));
    }
}

#[test]
fn a_segment_of_another_history_or_another_member_is_refused() {
    // As the first and as one more at the end.
    for at in [1, 4] {
        for (lineage, key) in [(Lineage(1), key()), (LINEAGE, DataKey::from_bytes([1; 32]))] {
            let pair = written();
            let foreign = TestDisk::new();
            let options = Options { segment_bytes: 4096, lineage };
            let entropy = Box::new(SeededEntropy::new(5));
            for _ in 0..at {
                let shared = Arc::new(foreign.clone());
                let opened = Wal::open_with(shared, dir(), &key, options, entropy.clone(), false);
                let (mut wal, recovered) = opened.unwrap();
                let next = recovered.last.index.0 + 1;
                wal.write(&[persist(entries(2, next..next + 1, 100), None)]).unwrap();
            }
            put(&pair.disk, &path(at), foreign.bytes(&path(at)));
            let error = open(&pair.disk, 4096, 7).unwrap_err();
            let is_foreign = matches!(&error, WalError::ForeignLineage { file, .. } | WalError::WrongKey { file, .. }
                if *file == segment::name(at));
            assert!(is_foreign && !error.hint().is_empty(), "{error}");
        }
    }
}

#[test]
fn a_segment_of_an_earlier_state_of_the_same_log_is_refused() {
    // The last segment as it was before its last batch: what a partial restore leaves.
    let mut pair = Pair::new(4096);
    pair.append(1, 1..2, 100);
    pair.append(1, 2..3, 100);
    let before = pair.disk.bytes(&path(1));
    pair.append(1, 3..4, 100);
    pair.reopen();
    pair.append(1, 4..5, 100);
    pair.wal = None;
    let disk = pair.disk.duplicate();
    disk.change(&path(1), |bytes| *bytes = before);
    assert_eq!(check_disk(&pair, disk), Err((segment::name(2), 0)));
}

#[test]
fn a_snapshot_that_is_missing_or_under_another_name_is_refused() {
    let snapshot = |index: u64| dir().join(crate::wal::snapshot::name(Index(index)));
    let attempt = |change: &dyn Fn(&TestDisk)| {
        let mut pair = written();
        pair.reopen();
        let created = SnapshotMark::Created(position(2, 5));
        pair.write(vec![Persist { snapshot: Some(created), ..persist(vec![], None) }]);
        pair.wal = None;
        change(&pair.disk);
        check_disk(&pair, pair.disk.duplicate())
    };
    let name = crate::wal::snapshot::name;
    assert_eq!(attempt(&|disk| disk.remove(&snapshot(5)).unwrap()), Err((name(Index(5)), 0)));
    assert_eq!(attempt(&|disk| disk.rename(&snapshot(5), &snapshot(4)).unwrap()), Err((name(Index(5)), 0)));
    // An older one under the name of the newest.
    let replaced = attempt(&|disk| {
        super::snapshot(disk, position(2, 3));
        disk.rename(&snapshot(3), &snapshot(5)).unwrap();
    });
    assert_eq!(replaced, Err((name(Index(5)), 0)));
    // A copy that the log does not rest on is not looked at by the log.
    assert_eq!(attempt(&|disk| put(disk, &snapshot(9), disk.bytes(&snapshot(5)))), Ok(()));
}
