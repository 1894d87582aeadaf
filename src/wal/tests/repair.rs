use super::damage::batches;
use super::*;
use crate::sys::files::Disk as _;
use crate::wal::newest::NEWEST;
use crate::wal::repair::{Plan, RepairError, carry_out, plan};
use crate::wal::segment;

const OPTIONS: Options = Options { segment_bytes: 4096, lineage: LINEAGE };

fn path(sequence: u64) -> PathBuf {
    dir().join(segment::name(sequence))
}

/// Entries 1 to 14 of term 2 in several segments, one to a batch; a snapshot of entry 2 was recorded after entry 4.
fn written() -> TestDisk {
    let mut pair = Pair::new(4096);
    for index in 1..15 {
        pair.append(2, index..index + 1, 700);
        if index == 4 {
            let created = Some(SnapshotMark::Created(position(2, 2)));
            pair.write(vec![Persist { snapshot: created, ..persist(vec![], Some(hard_state(2, 1, 4))) }]);
        }
    }
    assert_eq!(pair.segments().len(), 5);
    pair.disk
}

/// Damages a log, repairs it, and opens it: the last entry that is left. Until then nothing but the repair changes it, and a
/// repair that the power cuts short can be done again.
#[track_caller]
fn check(change: impl FnOnce(&TestDisk)) -> Result<(Plan, u64), RepairError> {
    check_log(&written(), change)
}

#[track_caller]
fn check_log(disk: &TestDisk, change: impl FnOnce(&TestDisk)) -> Result<(Plan, u64), RepairError> {
    let disk = disk.duplicate();
    change(&disk);
    let before: Vec<_> = disk.paths().into_iter().map(|path| disk.bytes(&path)).collect();
    let planned = plan(&disk, dir(), key(), OPTIONS)?.expect("the log is damaged");
    let after: Vec<_> = disk.paths().into_iter().map(|path| disk.bytes(&path)).collect();
    assert!(before == after, "planning changes nothing");
    assert!(open(&disk.duplicate(), 4096, 3).is_err());

    let whole = disk.duplicate();
    carry_out(&whole, dir(), key(), OPTIONS, &planned).unwrap();
    assert_eq!(plan(&whole, dir(), key(), OPTIONS).unwrap(), None);
    for budget in 0..whole.operations() {
        let mut random = SeededEntropy::new(budget);
        let broken = disk.duplicate();
        broken.set_budget(budget);
        carry_out(&broken, dir(), key(), OPTIONS, &planned).unwrap_err();
        let broken = broken.crash_at_random(&mut random);
        if let Some(rest) = plan(&broken, dir(), key(), OPTIONS).unwrap() {
            carry_out(&broken, dir(), key(), OPTIONS, &rest).unwrap();
        }
        assert_eq!(last(&broken), last(&whole), "after {budget} operations");
    }
    // Everything that was cut off is still somewhere.
    let kept: u64 = whole.paths().iter().filter(|path| path.starts_with(dir().join("lost+found"))).count() as u64;
    assert_eq!(kept, planned.cuts.len() as u64);
    let last = last(&whole);
    assert_eq!(planned.last.0, last);
    Ok((planned, last))
}

/// Opens a log and writes to it; its last entry before that.
fn last(disk: &TestDisk) -> u64 {
    let (mut wal, recovered) = open(&disk.duplicate(), 4096, 3).unwrap();
    let last = recovered.last.index.0;
    let read = wal.reader().read(recovered.first, Index(last + 1), u64::MAX).unwrap();
    assert!(read.iter().all(|found| found.data == entry(2, found.index, found.data.len()).data));
    wal.write(&[persist(entries(3, last + 1..last + 4, 900), None)]).unwrap();
    last
}

#[test]
fn a_whole_log_is_left_alone() {
    let disk = written();
    assert_eq!(plan(&disk, dir(), key(), OPTIONS).unwrap(), None);
    // An unfinished write at its end is no damage.
    disk.change(&path(5), |bytes| bytes[4000] = 7);
    assert_eq!(plan(&disk, dir(), key(), OPTIONS).unwrap(), None);
}

#[test]
fn everything_from_the_first_damage_on_is_cut_off_and_kept() {
    for (sequence, batch) in [(2, 1), (3, 0), (3, 1), (5, 0)] {
        let disk = written();
        let (start, _) = batches(&disk, &path(sequence))[batch];
        let expected = disk.bytes(&path(sequence))[start..].to_vec();
        let (planned, last) = check(|disk| disk.change(&path(sequence), |bytes| bytes[start + 20] ^= 1)).unwrap();
        assert_eq!((planned.file.clone(), planned.offset), (segment::name(sequence), start as u64));
        assert_eq!(planned.cuts[0].bytes, expected.len() as u64);
        assert_eq!(last, batches_before(&disk, sequence, batch));
    }
    let (_, last) = check(|disk| disk.change(&path(3), |bytes| bytes[100] ^= 1)).unwrap();
    assert_eq!(last, batches_before(&written(), 3, 0));
}

/// The last entry before a batch of a segment.
fn batches_before(disk: &TestDisk, sequence: u64, batch: usize) -> u64 {
    let earlier = (1..sequence).flat_map(|earlier| {
        let bytes = disk.bytes(&path(earlier));
        batches(disk, &path(earlier)).into_iter().map(move |(start, _)| bytes[start..].to_vec())
    });
    let bytes = disk.bytes(&path(sequence));
    let own = batches(disk, &path(sequence)).into_iter().take(batch).map(|(start, _)| bytes[start..].to_vec());
    let headers = earlier.chain(own).map(|bytes| crate::wal::BatchHeader::decode(&bytes).unwrap().0);
    headers.filter(|header| header.entries > 0).map(|header| header.first).max().unwrap_or(0)
}

#[test]
fn the_loss_of_segments_is_accepted() {
    let (planned, last) = check(|disk| disk.remove(&path(3)).unwrap()).unwrap();
    assert_eq!((planned.cuts.len(), last), (2, batches_before(&written(), 3, 0)));
    let (planned, last) = check(|disk| disk.remove(&path(5)).unwrap()).unwrap();
    assert_eq!((planned.cuts.len(), last), (0, batches_before(&written(), 5, 0)));
    let (planned, last) = check(|disk| disk.change(&dir().join(NEWEST), |bytes| bytes[20] ^= 1)).unwrap();
    assert_eq!((planned.cuts.len(), last), (0, 14));
    let (planned, _) = check(|disk| disk.change(&path(4), |bytes| bytes.truncate(2000))).unwrap();
    assert_eq!((planned.cuts.len(), planned.cuts[0].from), (2, 0));
}

/// What a log of several segments was made of: snapshots of its own and of others, entries that were replaced, and what was
/// removed at its beginning.
fn eventful(seed: u64) -> TestDisk {
    let mut random = SeededEntropy::new(seed);
    let mut pair = Pair::new(4096);
    let (mut last, mut snapshot) = (0, 0);
    while pair.segments().len() < 4 || last < 16 {
        let mark = match random.below(8) {
            0 if last > snapshot + 1 => {
                snapshot = last - random.below(last - snapshot);
                Some(SnapshotMark::Created(position(2, snapshot)))
            }
            1 => {
                (last, snapshot) = (last + 5, last + 5);
                Some(SnapshotMark::Installed(position(2, snapshot)))
            }
            2 if last > snapshot + 2 => {
                last -= random.below(last - snapshot - 1);
                None
            }
            3 if snapshot > 1 => {
                pair.compact(snapshot - random.below(2));
                continue;
            }
            _ => None,
        };
        if mark.is_some() {
            let hard_state = Some(hard_state(2, 1, snapshot));
            pair.write(vec![Persist { snapshot: mark, ..persist(vec![], hard_state) }]);
        }
        last += 1;
        pair.append(2, last..last + 1, 300 + random.below(900) as usize);
    }
    pair.disk
}

#[test]
fn whatever_segments_are_missing_a_plan_leaves_a_log_that_opens() {
    let (mut planned, mut hopeless) = (0, 0);
    for seed in 0..12 {
        let disk = eventful(seed);
        let segments: Vec<PathBuf> =
            disk.paths().into_iter().filter(|path| path.to_string_lossy().contains("wal-")).collect();
        for (at, one) in segments.iter().enumerate() {
            for other in &segments[at..] {
                let remove = |disk: &TestDisk| {
                    disk.remove(one).unwrap();
                    if other != one {
                        disk.remove(other).unwrap();
                    }
                };
                let removed = disk.duplicate();
                remove(&removed);
                if plan(&removed, dir(), key(), OPTIONS).is_ok_and(|plan| plan.is_none()) {
                    // The oldest ones had been covered by a snapshot, and nobody needs them.
                    assert!(open(&removed, 4096, 3).is_ok());
                    continue;
                }
                match check_log(&disk, remove) {
                    Ok(_) => planned += 1,
                    Err(RepairError::Hopeless { .. }) => {
                        assert!(open(&removed, 4096, 3).is_err());
                        hopeless += 1;
                    }
                    Err(error) => panic!("seed {seed} without {one:?} and {other:?}: {error}"),
                }
            }
        }
    }
    assert!(planned > 100 && hopeless > 2, "{planned} {hopeless}");
}

/// Entries 1 to 14 in five segments, a snapshot of entry 12 in the place of the one of entry 2: what comes before was kept
/// for others only.
fn kept_for_others() -> TestDisk {
    let mut pair = Pair::new(4096);
    for index in 1..15 {
        pair.append(2, index..index + 1, 700);
        let created = match index {
            4 => 2,
            14 => 12,
            _ => continue,
        };
        let created = Some(SnapshotMark::Created(position(2, created)));
        pair.write(vec![Persist { snapshot: created, ..persist(vec![], Some(hard_state(2, 1, index))) }]);
    }
    pair.disk.remove(&dir().join(crate::wal::snapshot::name(Index(2)))).unwrap();
    assert!(open(&pair.disk.duplicate(), 4096, 3).is_ok());
    pair.disk
}

#[test]
fn a_damaged_beginning_that_a_snapshot_covers_goes_and_nothing_is_lost() {
    let disk = kept_for_others();
    for sequence in 1..=4 {
        let changes: [&dyn Fn(&TestDisk); 3] = [
            &|disk| disk.change(&path(sequence), |bytes| bytes[100] ^= 1),
            &|disk| disk.change(&path(sequence), |bytes| bytes[600] ^= 1),
            &|disk| disk.remove(&path(sequence)).unwrap(),
        ];
        for change in changes {
            let gone = disk.duplicate();
            change(&gone);
            if plan(&gone, dir(), key(), OPTIONS).is_ok_and(|plan| plan.is_none()) {
                assert!(sequence == 1 && open(&gone, 4096, 3).is_ok(), "the oldest is missed by nobody");
                continue;
            }
            let (planned, last) = check_log(&disk, change).unwrap();
            assert!(planned.covered && planned.cuts.iter().all(|cut| cut.from == 0), "{planned:?}");
            assert_eq!((last, planned.snapshot), (14, Index(12)));
        }
    }
    // In two places, and a batch that is missing at the end of a segment, which the next one tells.
    let (planned, last) = check_log(&disk, |disk| {
        disk.change(&path(2), |bytes| bytes[600] ^= 1);
        disk.change(&path(4), |bytes| bytes[600] ^= 1);
    })
    .unwrap();
    assert!(planned.covered && (planned.cuts.len(), last) == (4, 14), "{planned:?}");
    let end_of = batches(&disk, &path(3)).pop().unwrap().0;
    let (planned, last) = check_log(&disk, |disk| disk.change(&path(3), |bytes| bytes[end_of..].fill(0))).unwrap();
    assert!(planned.covered && (planned.cuts.len(), last) == (3, 14), "{planned:?}");
    // The newest segment has entries that are nowhere else.
    let last_batch = batches(&disk, &path(5)).pop().unwrap().0;
    let end = check_log(&disk, |disk| disk.change(&path(5), |bytes| bytes[last_batch] ^= 1));
    let Err(RepairError::Hopeless { why, .. }) = end else { panic!("{end:?}") };
    assert!(why.contains("needs snap-000000000002"), "{why}");
    // With a segment missing at the end too, or a snapshot that is not whole, the beginning stays.
    let both: [&dyn Fn(&TestDisk); 2] = [&|disk| disk.remove(&path(5)).unwrap(), &|disk| {
        disk.change(&dir().join(crate::wal::snapshot::name(Index(12))), |bytes| bytes[20] ^= 1);
    }];
    for other in both {
        let (planned, last) = check_log(&disk, |disk| {
            disk.change(&path(2), |bytes| bytes[600] ^= 1);
            other(disk);
        })
        .unwrap();
        assert!(!planned.covered && last < 12, "{planned:?}");
    }
}

#[test]
fn a_log_of_which_nothing_would_stand_by_itself_is_refused() {
    let hopeless = |change: &dyn Fn(&TestDisk)| {
        let disk = written();
        change(&disk);
        match plan(&disk, dir(), key(), OPTIONS) {
            Err(error @ RepairError::Hopeless { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let first = hopeless(&|disk| disk.change(&path(1), |bytes| bytes[3] ^= 1));
    assert!(first.contains("nothing of the log stands before that"), "{first}");
    let snapshot = dir().join(crate::wal::snapshot::name(Index(2)));
    let gone = hopeless(&|disk| disk.remove(&snapshot).unwrap());
    assert!(gone.contains("the log rests on that snapshot"), "{gone}");
    let both = hopeless(&|disk| {
        disk.remove(&snapshot).unwrap();
        disk.change(&path(4), |bytes| bytes[600] ^= 1);
    });
    assert!(both.contains("what comes before that needs snap-000000000002"), "{both}");
}

#[test]
fn a_log_of_another_key_or_swarm_is_not_cut() {
    let disk = written();
    let attempt = |key: DataKey, options| plan(&disk, dir(), &key, options).unwrap_err();
    let error = attempt(DataKey::from_bytes([1; 32]), OPTIONS);
    assert!(matches!(error, RepairError::Wal(WalError::WrongKey { .. })), "{error}");
    let error = attempt(key(), Options { lineage: Lineage(1), ..OPTIONS });
    assert!(matches!(error, RepairError::Wal(WalError::ForeignLineage { .. })), "{error}");
}
