use super::*;
use crate::wal::ReadError;

#[test]
fn entries_of_every_shape_come_back() {
    let mut pair = Pair::new(64 << 10);
    pair.append(1, 1..2, 0);
    pair.write(vec![persist(vec![conf_change(2, 2), Entry { term: 2, index: 3, ..Entry::default() }], None)]);
    for len in [1, 300, 380, 381, 382, 383, 384, 447, 448, 512, 5000, 40_000] {
        let next = pair.model.last().index.0 + 1;
        pair.append(2, next..next + 1, len);
    }
    pair.write(vec![persist(vec![], Some(hard_state(3, 2, 15)))]);
    let recovered = pair.reopen();
    assert_eq!((recovered.first, recovered.snapshot, recovered.cut), (Index(1), None, None));
}

#[test]
fn a_new_log_is_empty() {
    let recovered = Pair::new(4096).reopen();
    assert_eq!((recovered.hard_state, recovered.last), (HardState::default(), Position::default()));
    assert_eq!((recovered.terms, recovered.bytes_since_snapshot), (vec![Position::default()], 0));
}

#[test]
fn what_queued_up_shares_one_batch_and_one_sync() {
    let mut pair = Pair::new(64 << 10);
    let before = pair.disk.syncs();
    let group = (1..=20).map(|index| persist(entries(1, index..index + 1, 100), Some(hard_state(1, 1, index))));
    let written = pair.write(group.collect());
    assert_eq!((written.batches, pair.disk.syncs() - before), (1, 1));
    pair.reopen();
}

#[test]
fn a_commit_index_alone_waits_for_the_next_batch_or_for_the_end() {
    let mut pair = Pair::new(64 << 10);
    pair.append(1, 1..5, 10);
    let lazy = |commit| Persist { must_sync: false, ..persist(vec![], Some(hard_state(0, 0, commit))) };
    let before = pair.disk.operations();
    pair.wal().write(&[lazy(3)]).unwrap();
    assert_eq!(pair.disk.operations(), before);
    // A stop that is not orderly forgets it.
    pair.reopen();

    pair.write(vec![lazy(4)]);
    pair.append(1, 5..6, 10);
    pair.reopen();

    pair.write(vec![lazy(5)]);
    pair.wal.take().unwrap().close().unwrap();
    pair.reopen();

    // Asked for in earnest, it is written even when it was known before.
    pair.append(1, 6..8, 10);
    pair.write(vec![lazy(6)]);
    let before = pair.disk.syncs();
    pair.write(vec![persist(vec![], Some(hard_state(0, 0, 6)))]);
    assert_eq!(pair.disk.syncs() - before, 1);
    // And a vote is never lazy.
    pair.write(vec![Persist { must_sync: false, ..persist(vec![], Some(hard_state(9, 2, 6))) }]);
    pair.reopen();
}

#[test]
fn a_log_of_many_segments_is_one_log() {
    let mut pair = Pair::new(4096);
    for index in 1..100 {
        pair.append(1 + index / 10, index..index + 1, (index as usize * 37) % 900);
    }
    assert!(pair.segments().len() > 10);
    pair.reopen();
    pair.append(20, 100..130, 200);
    pair.reopen();
}

#[test]
fn a_ready_larger_than_a_segment_is_split_and_its_commit_index_stays_behind_its_entries() {
    let mut pair = Pair::new(8192);
    let written = pair.write(vec![persist(entries(1, 1..200, 400), Some(hard_state(1, 2, 199)))]);
    assert!(written.batches >= 10);
    pair.reopen();
    for cut in 1..written.batches {
        let mut part = Pair::new(8192);
        // Power fails before the batch number `cut` is synced: a prefix stays, with a commit index that fits it.
        let disk = TestDisk::new();
        let mut wal = open(&disk, 8192, 0).unwrap().0;
        disk.set_budget(cut * 5);
        assert!(wal.write(&[persist(entries(1, 1..200, 400), Some(hard_state(1, 2, 199)))]).is_err());
        part.disk = disk.crash(usize::MAX, |_, _| false);
        let recovered = open(&part.disk, 8192, 1).unwrap().1;
        assert_eq!(recovered.hard_state.commit, recovered.last.index);
        assert!(recovered.last.index == Index(0) || recovered.hard_state.vote == RaftId(2));
    }
}

#[test]
fn an_entry_that_fits_no_segment_is_refused_and_ends_the_log() {
    let mut pair = Pair::new(8192);
    let error = pair.wal().write(&[persist(entries(1, 1..2, 8000), None)]).unwrap_err();
    assert!(matches!(error, WalError::EntryTooLarge { limit: 7680, .. }), "{error}");
    assert!(matches!(pair.wal().write(&[]), Err(WalError::Failed)));
    pair.reopen();
    pair.append(1, 1..2, 7400);
    pair.reopen();
}

#[test]
fn large_groups_are_written_in_batches_of_a_mebibyte() {
    let mut pair = Pair::new(16 << 20);
    let written = pair.append(1, 1..31, 100_000);
    assert_eq!(written.batches, 3);
    pair.reopen();
}

#[test]
fn a_replaced_suffix_is_gone_whichever_segments_it_lay_in() {
    for from in 1..=40 {
        let mut pair = Pair::new(4096);
        for index in (1..41).step_by(4) {
            pair.append(1, index..index + 4, 300);
        }
        pair.append(2, from..from + 3, 250);
        pair.reopen();
        pair.append(3, from + 1..from + 2, 10);
        pair.append(3, from + 2..from + 20, 300);
        pair.reopen();
    }
}

#[test]
fn a_suffix_replaced_within_one_group_is_gone() {
    let mut pair = Pair::new(64 << 10);
    let group = vec![
        persist(entries(1, 1..10, 50), None),
        persist(entries(2, 5..7, 50), Some(hard_state(2, 1, 4))),
        persist(entries(3, 7..9, 50), None),
        persist(entries(4, 8..9, 50), None),
    ];
    assert_eq!(pair.write(group).batches, 3);
    pair.reopen();
}

#[test]
fn compaction_removes_only_what_a_recorded_snapshot_covers() {
    let mut pair = Pair::new(4096);
    for index in 1..41 {
        pair.append(1, index..index + 1, 400);
    }
    let all = pair.segments().len();
    pair.compact(30);
    assert_eq!((pair.segments().len(), pair.model.before.index), (all, Index(0)));

    let created = Persist { snapshot: Some(SnapshotMark::Created(position(1, 25))), ..persist(vec![], None) };
    pair.write(vec![created]);
    let since = pair.wal().reader().bytes_since_snapshot();
    pair.compact(20);
    let some = pair.segments().len();
    assert!(some < all && pair.model.before.index == Index(19));
    pair.compact(30);
    assert!(pair.segments().len() < some && pair.model.before.index == Index(25));
    assert_eq!(pair.wal().reader().bytes_since_snapshot(), since);
    pair.reopen();
    pair.append(2, 41..60, 400);
    pair.reopen();
    pair.compact(26);
    pair.reopen();
}

#[test]
fn bytes_since_the_snapshot_are_those_of_the_entries_after_it() {
    let mut pair = Pair::new(4096);
    for index in 1..21 {
        pair.append(1, index..index + 1, 400);
    }
    let check = |pair: &mut Pair, snapshot: u64| {
        let created = SnapshotMark::Created(position(1, snapshot));
        pair.write(vec![Persist { snapshot: Some(created), ..persist(vec![], None) }]);
        pair.wal().reader().bytes_since_snapshot()
    };
    // A batch of one entry is two sectors here, one with a snapshot's mark is one, and a segment's head too: six segments have
    // three entries and a sector that is left, and the seventh two entries.
    assert_eq!(pair.wal().reader().bytes_since_snapshot(), 6 * (3 * 1024 + 512) + 2 * 1024);
    assert_eq!(check(&mut pair, 8), 1024 + 512 + 3 * (3 * 1024 + 512) + 2 * 1024 + 512);
    assert_eq!(check(&mut pair, 19), 1024 + 2 * 512);
    assert_eq!(check(&mut pair, 20), 0);
}

#[test]
fn an_installed_snapshot_replaces_the_log() {
    for at in [5, 20, 21, 1000] {
        let mut pair = Pair::new(4096);
        pair.write(vec![persist(entries(1, 1..21, 300), Some(hard_state(1, 3, 5)))]);
        let installed = SnapshotMark::Installed(position(4, at));
        let hard_state = Some(hard_state(4, 0, at));
        pair.write(vec![Persist { snapshot: Some(installed), ..persist(vec![], hard_state) }]);
        pair.reopen();
        pair.append(4, at + 1..at + 3, 300);
        pair.reopen();
        pair.compact(at + 1);
        assert_eq!(pair.segments().len(), 2);
        pair.append(5, at + 2..at + 30, 300);
        pair.reopen();
    }
}

#[test]
fn a_ready_with_a_snapshot_and_the_entries_after_it_is_one_batch() {
    let mut pair = Pair::new(64 << 10);
    pair.append(1, 1..4, 10);
    let installed = Persist {
        snapshot: Some(SnapshotMark::Installed(position(3, 50))),
        ..persist(entries(3, 51..60, 10), Some(hard_state(3, 0, 50)))
    };
    assert_eq!(pair.write(vec![installed]).batches, 1);
    pair.reopen();
}

#[test]
fn a_manager_that_restarts_in_a_loop_does_not_fill_its_disk() {
    let mut pair = Pair::new(4096);
    for _ in 0..50 {
        pair.reopen();
    }
    assert_eq!(pair.segments().len(), 1);
    pair.append(1, 1..2, 10);
    for _ in 0..50 {
        pair.reopen();
    }
    assert_eq!(pair.segments().len(), 2);
}

#[test]
fn a_segment_of_every_start_counts_whole_so_that_a_snapshot_becomes_due() {
    let mut pair = Pair::new(4096);
    pair.append(1, 1..2, 10);
    for starts in 1..20 {
        pair.reopen();
        // Of each segment but the newest all that stands after its head.
        assert_eq!(pair.wal().reader().bytes_since_snapshot(), starts * (4096 - 512));
        let ends: Vec<_> = (1..=starts).map(|segment| (Index(segment), segment * 4096)).collect();
        assert_eq!(pair.wal().reader().segment_ends(), ends);
        pair.append(1, starts + 1..starts + 2, 10);
        assert_eq!(pair.segments().len() as u64, starts + 1);
    }
    let created = SnapshotMark::Created(position(1, 20));
    pair.write(vec![Persist { snapshot: Some(created), ..persist(vec![], None) }]);
    assert_eq!(pair.wal().reader().bytes_since_snapshot(), 0);
    pair.compact(21);
    assert_eq!(pair.segments().len(), 1);
}

#[test]
fn a_reader_keeps_working_on_segments_that_are_removed_meanwhile() {
    let mut pair = Pair::new(4096);
    pair.append(1, 1..40, 300);
    let places = pair.wal().reader();
    let created = SnapshotMark::Created(position(1, 39));
    pair.write(vec![Persist { snapshot: Some(created), ..persist(vec![], None) }]);
    pair.compact(40);
    assert!(matches!(places.read(Index(1), Index(10), 1), Err(ReadError::Compacted)));
    assert_eq!(places.read(Index(40), Index(40), 1).unwrap(), []);
}

#[test]
fn random_histories_survive_reopening() {
    for seed in 0..60 {
        let mut random = SeededEntropy::new(seed);
        let mut pair = Pair::new([4096, 8192, 65536][random.below(3) as usize]);
        let mut term = 1;
        for _ in 0..60 {
            let last = pair.model.last();
            let floor = pair.model.hard_state.commit.0.max(pair.model.snapshot.index.0);
            match random.below(12) {
                0..=5 => {
                    let group = (0..=random.below(3)).scan(last.index.0, |next, _| {
                        let first = *next + 1;
                        *next += random.below(6);
                        Some(persist(entries(term, first..*next + 1, random.below(900) as usize), None))
                    });
                    let group = group.collect();
                    pair.write(group);
                }
                6 if last.index.0 > floor => {
                    term += 1;
                    let from = floor + 1 + random.below(last.index.0 - floor);
                    let replaced = entries(term, from..from + 1 + random.below(4), random.below(900) as usize);
                    pair.write(vec![persist(replaced, Some(hard_state(term, 1, floor)))]);
                }
                7 => {
                    let commit = floor + random.below(last.index.0 - floor + 1);
                    pair.write(vec![persist(vec![], Some(hard_state(term, 2, commit)))]);
                }
                8 if pair.model.hard_state.commit > pair.model.snapshot.index => {
                    let commit = pair.model.hard_state.commit.0;
                    let known = pair.model.entries.iter().find(|entry| entry.index == commit);
                    let created = SnapshotMark::Created(position(known.unwrap().term, commit));
                    pair.write(vec![Persist { snapshot: Some(created), ..persist(vec![], None) }]);
                }
                9 => pair.compact(pair.model.snapshot.index.0 + 1 - random.below(3).min(pair.model.snapshot.index.0)),
                10 if random.below(4) == 0 => {
                    term += 1;
                    let installed = position(term, last.index.0 + random.below(10) + 1);
                    let hard_state = Some(hard_state(term, 0, installed.index.0));
                    let snapshot = Some(SnapshotMark::Installed(installed));
                    pair.write(vec![Persist { snapshot, ..persist(vec![], hard_state) }]);
                }
                11 => {
                    // Everything was synced, so a power cut takes nothing.
                    if random.below(2) == 0 {
                        pair.wal = None;
                        pair.disk = pair.disk.crash_at_random(&mut random);
                    }
                    pair.reopen();
                }
                _ => {}
            }
        }
        pair.reopen();
    }
}

#[test]
fn a_full_disk_ends_the_log_at_a_segments_end_and_loses_nothing() {
    let mut pair = Pair::new(8192);
    pair.append(1, 1..6, 1000);
    pair.disk.set_full(true);
    // The segment at hand has its space already.
    pair.append(1, 6..7, 1000);
    let error = pair.wal().write(&[persist(entries(1, 7..10, 1000), None)]).unwrap_err();
    assert_eq!(error.to_string(), "cannot make raft/spare: no storage space");
    assert!(error.hint().starts_with("make room on the disk"));
    let error = open(&pair.disk, 8192, 5).unwrap_err();
    assert!(error.hint().starts_with("make room on the disk"));
    pair.disk.set_full(false);
    pair.reopen();
    pair.append(1, 7..10, 1000);
    pair.reopen();
}

#[test]
fn a_spare_segment_is_taken_over_only_if_it_is_whole() {
    let spare = dir().join("spare");
    let check = |spoil: &dyn Fn(&mut Vec<u8>), is_taken: bool| {
        let mut pair = Pair::new(8192);
        pair.append(1, 1..2, 100);
        pair.wal = None;
        // What the helper does while the log is written.
        let disk = pair.disk.clone();
        let file = crate::sys::files::Disk::create(&disk, &spare).unwrap();
        file.write_at(0, &[0; 8192]).unwrap();
        file.sync_data().unwrap();
        disk.change(&spare, |bytes| spoil(bytes));
        disk.set_full(true);
        assert_eq!(open(&disk, 8192, 1).is_ok(), is_taken);
        disk.set_full(false);
        pair.reopen();
        pair.append(1, 2..3, 100);
        pair.reopen();
    };
    check(&|_| {}, true);
    check(&|bytes| bytes[8191] = 1, false);
    check(&|bytes| bytes.truncate(4096), false);
    check(&|bytes| bytes.resize(16384, 0), false);
}
