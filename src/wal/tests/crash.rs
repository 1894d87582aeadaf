use super::*;
use crate::sys::files::Disk;
use crate::wal::format::SECTOR_BYTES;
use crate::wal::look;

/// Writes `before` batches, then one of `sectors` sectors whose sync the power cut forestalls, and comes back with the
/// sectors of it that `mask` says.
fn check(before: u64, sectors: usize, mask: usize) {
    let mut pair = Pair::new(8192);
    for index in 1..=before {
        pair.append(1, index..index + 1, 500);
    }
    let all = (1 << sectors) - 1;
    let (next, offset) = (before + 1, 512 + before as usize * 1024);
    // Header, tag, records of an entry and of the hard state leave this much.
    let len = sectors * SECTOR_BYTES - 64 - 16 - 26 - 25;
    let group = vec![persist(entries(1, next..next + 1, len), None)];
    pair.disk.set_budget(1);
    assert!(matches!(pair.wal().write(&group), Err(WalError::Io { doing: "sync", .. })));
    assert!(matches!(pair.wal().write(&group), Err(WalError::Failed)));
    assert!(matches!(pair.wal().compact(Index(1)), Err(WalError::Failed)));
    let first = offset / SECTOR_BYTES;
    let segment = pair.segments().pop().unwrap();
    let written = pair.disk.bytes(&segment);
    pair.disk = pair.disk.crash(usize::MAX, |path, sector| {
        assert!(*path == *segment && (first..first + sectors).contains(&sector));
        mask & 1 << (sector - first) != 0
    });
    if mask == all {
        pair.model.apply(&group[0]);
    }
    let untouched = all_bytes(&pair.disk);
    let options = Options { segment_bytes: pair.segment_bytes, lineage: LINEAGE };
    let (reader, looked) = look(&pair.disk, dir(), key(), &options).unwrap();
    assert_eq!(all_bytes(&pair.disk), untouched, "a look changes nothing");
    let recovered = pair.reopen();
    let said = |found: &Recovered| (found.hard_state, found.first, found.last, found.terms.clone(), found.cut.clone());
    assert_eq!(said(&looked), said(&recovered), "a look finds what an open finds");
    assert_eq!(reader.last(), recovered.last);
    match recovered.cut {
        None => assert!(mask == 0 || mask == all),
        Some(cut) => {
            assert!(mask != 0 && mask != all);
            assert_eq!((cut.segment.as_str(), cut.offset), ("wal-00000001", offset as u64));
            let kept = pair.disk.bytes(&cut.kept);
            assert_eq!(kept.len() as u64, cut.bytes);
            for (sector, kept) in kept.chunks(SECTOR_BYTES).enumerate() {
                let at = offset + sector * SECTOR_BYTES;
                let expected =
                    if mask & 1 << sector == 0 { &[0; SECTOR_BYTES] } else { &written[at..at + SECTOR_BYTES] };
                assert_eq!(kept, expected);
            }
        }
    }
    // The end is clean now: nothing more is cut, and the log goes on.
    assert_eq!(pair.reopen().cut, None);
    let next = pair.model.last().index.0 + 1;
    pair.append(2, next..next + 5, 700);
    assert_eq!(pair.reopen().cut, None);
}

fn all_bytes(disk: &TestDisk) -> Vec<(PathBuf, Vec<u8>)> {
    disk.paths().into_iter().map(|path| (path.clone(), disk.bytes(&path))).collect()
}

#[test]
fn a_last_batch_of_which_any_part_was_written_is_there_as_a_whole_or_cut() {
    for before in [0, 3] {
        for sectors in [1, 2, 5] {
            for mask in 0..1 << sectors {
                check(before, sectors, mask);
            }
        }
    }
}

#[test]
fn after_a_failed_sync_what_only_the_page_cache_has_is_written_again() {
    let mut pair = Pair::new(8192);
    pair.append(1, 1..3, 700);
    pair.disk.fail_next_sync();
    let group = vec![persist(entries(1, 3..5, 700), Some(hard_state(1, 1, 2)))];
    assert!(pair.wal().write(&group).is_err());
    // The next process sees the batch, because the page cache still has it, and must not believe that the disk does.
    pair.model.apply(&group[0]);
    pair.reopen();
    pair.wal = None;
    pair.disk = pair.disk.crash(0, |_, _| false);
    pair.reopen();
}

/// A history with everything in it: rolls, votes, replaced suffixes, snapshots of both kinds, compaction. Every write has
/// one entry at most and so is one batch, so it is there as a whole or not at all. Stops at the first error and tells the model of what was
/// acknowledged, and the one with what was being written.
pub(super) fn history(disk: &Arc<dyn Disk>, wal: &mut Wal, model: &mut Model) -> Result<(), Model> {
    let write = |wal: &mut Wal, model: &mut Model, persist: Persist| {
        let mut after = model.clone();
        after.apply(&persist);
        match wal.write(&[persist]) {
            Ok(_) => *model = after,
            Err(_) => return Err(after),
        }
        Ok(())
    };
    let make = |model: &Model, position| {
        let writer = SnapshotWriter::create(disk.clone(), dir(), key(), LINEAGE, position, &members());
        writer
            .and_then(|mut writer| {
                writer.write_chunk(&[1; 600])?;
                writer.finish()
            })
            .map_err(|_| model.clone())
    };
    let (term, start) = (model.hard_state.term.0 + 1, model.last().index.0);
    write(wal, model, persist(vec![], Some(hard_state(term, 1, start))))?;
    for index in start + 1..start + 5 {
        write(wal, model, persist(entries(term, index..index + 1, 900), Some(hard_state(term, 1, index - 1))))?;
    }
    write(wal, model, persist(entries(term + 1, start + 4..start + 5, 300), Some(hard_state(term + 1, 2, start + 3))))?;
    write(wal, model, persist(entries(term + 1, start + 5..start + 6, 300), None))?;
    let created = position(term, start + 2);
    make(model, created)?;
    let snapshot = Some(SnapshotMark::Created(created));
    write(wal, model, Persist { snapshot, ..persist(vec![], None) })?;
    wal.compact(Index(start + 3)).map_err(|_| model.clone())?;
    write(wal, model, persist(entries(term + 1, start + 6..start + 7, 1900), None))?;
    let installed = position(term + 2, start + 20);
    make(model, installed)?;
    let snapshot = Some(SnapshotMark::Installed(installed));
    write(wal, model, Persist { snapshot, ..persist(vec![], Some(hard_state(term + 2, 0, start + 20))) })?;
    write(wal, model, persist(entries(term + 2, start + 21..start + 22, 700), None))
}

pub(super) fn shared(disk: &TestDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

/// Whether the log holds what the model says. It may begin earlier or later, but not after the snapshot.
pub(super) fn matches(wal: &Wal, recovered: &Recovered, model: &Model) -> bool {
    let held = wal.reader().read(recovered.first, recovered.last.index.next(), u64::MAX).unwrap();
    let from = recovered.first.max(model.before.index.next());
    let of = |entries: &[Entry]| entries.iter().filter(|entry| entry.index >= from.0).cloned().collect::<Vec<_>>();
    let snapshot = recovered.snapshot.as_ref().map_or(Position::default(), |meta| meta.position);
    of(&held) == of(&model.entries)
        && (recovered.last, recovered.hard_state, snapshot) == (model.last(), model.hard_state, model.snapshot)
}

/// Cuts the power after every single operation of a history, loses a random part of what was not synced, cuts the power
/// again while the log is being opened, and looks for everything that was acknowledged.
#[test]
fn whenever_the_power_fails_what_was_acknowledged_is_there() {
    let disk = TestDisk::new();
    let mut wal = open(&disk, 4096, 0).unwrap().0;
    let begun = disk.operations();
    history(&shared(&disk), &mut wal, &mut Model::default()).unwrap();
    let operations = disk.operations() - begun;
    assert!(operations > 60, "{operations}");
    for budget in 0..=operations {
        for seed in 0..12 {
            let mut random = SeededEntropy::new(budget * 1000 + seed);
            let mut disk = TestDisk::new();
            let mut acknowledged = Model::default();
            let mut possible = Model::default();
            // Two lives with a power cut in each.
            for life in 0..2 {
                let mut wal = match open(&disk, 4096, life) {
                    Ok((wal, recovered)) => {
                        let as_a_whole = matches(&wal, &recovered, &possible);
                        assert!(as_a_whole || matches(&wal, &recovered, &acknowledged), "{budget} {seed} {life}");
                        let model = if as_a_whole { &possible } else { &acknowledged };
                        acknowledged = model.clone();
                        wal
                    }
                    Err(error) => panic!("after {budget} operations with seed {seed}, life {life}: {error}"),
                };
                disk.set_budget(if life == 0 { budget } else { random.below(operations) });
                possible = match history(&shared(&disk), &mut wal, &mut acknowledged) {
                    Ok(()) => acknowledged.clone(),
                    Err(possible) => possible,
                };
                drop(wal);
                disk = disk.crash_at_random(&mut random);
                // A power cut while opening costs nothing either.
                for _ in 0..random.below(3) {
                    disk.set_budget(random.below(30));
                    let _ = open(&disk, 4096, 100 + random.below(100));
                    disk = disk.crash_at_random(&mut random);
                }
            }
            let (wal, recovered) = open(&disk, 4096, 99).unwrap();
            let is_there = [&acknowledged, &possible].iter().any(|model| matches(&wal, &recovered, model));
            assert!(is_there, "{budget} {seed}: {recovered:?}\n{acknowledged:?}\n{possible:?}");
        }
    }
}

/// Everything that may be found after a crash within a group: each entry of it may be the last one there. The hard state of
/// a Ready may be there before its first entry, if that replaces none, with a commit index that fits what is there.
fn possible(model: &Model, group: &[Persist]) -> Vec<Model> {
    let mut now = model.clone();
    let mut states = vec![now.clone()];
    for whole in group {
        let replaces = whole.entries[0].index <= now.last().index.0;
        for len in usize::from(replaces)..whole.entries.len() {
            let mut part = now.clone();
            part.apply(&Persist { entries: whole.entries[..len].to_vec(), ..whole.clone() });
            part.hard_state.commit = part.hard_state.commit.min(part.last().index);
            states.push(part);
        }
        now.apply(whole);
        states.push(now.clone());
    }
    states
}

#[test]
fn of_a_group_that_the_power_cut_a_prefix_is_there() {
    let mut partial = 0;
    for seed in 0..200 {
        let mut random = SeededEntropy::new(seed);
        let segment_bytes = [4096, 8192, 65536][random.below(3) as usize];
        let mut disk = TestDisk::new();
        let mut model = Model::default();
        for life in 0..3 {
            let (mut wal, recovered) = open(&disk, segment_bytes, life).unwrap();
            assert!(matches(&wal, &recovered, &model), "seed {seed}");
            disk.set_budget(random.below(60));
            let states = loop {
                let (mut last, mut commit) = (model.last().index.0, model.hard_state.commit.0);
                let term = (model.hard_state.term.0 + random.below(2)).max(1);
                let mut next = || {
                    let replaces = random.below(5) == 0 && last > commit;
                    let first = if replaces { commit + 1 + random.below(last - commit) } else { last + 1 };
                    last = first + random.below(9);
                    commit += random.below(first - commit);
                    let len = random.below(900) as usize;
                    persist(entries(term, first..last + 1, len), Some(hard_state(term, 1, commit)))
                };
                let group = [next(), next(), next()];
                let group = &group[..=random.below(3) as usize];
                let states = possible(&model, group);
                if wal.write(group).is_err() {
                    break states;
                }
                model = states.last().unwrap().clone();
            };
            drop(wal);
            disk = disk.crash_at_random(&mut random);
            let (wal, recovered) = open(&disk, segment_bytes, 50 + life).unwrap();
            let at = states.iter().position(|state| matches(&wal, &recovered, state));
            let at = at.unwrap_or_else(|| panic!("seed {seed}, life {life}: {recovered:?}"));
            partial += u32::from(at > 0 && at + 1 < states.len());
            model = states[at].clone();
        }
    }
    assert!(partial > 30, "{partial}");
}
