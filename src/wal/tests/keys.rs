//! A new data key takes over while the log is written, and the old one is needed no more.

use super::*;
use crate::pki::Keyring;
use crate::wal::{NamedKeys, SnapshotReader, list_snapshots, named_keys, remove_snapshots_before};

fn new_key() -> DataKey {
    DataKey::from_bytes([0x43; 32])
}

fn open_with(disk: &TestDisk, keys: &Keyring, seed: u64) -> Result<(Wal, Recovered), WalError> {
    let options = Options { segment_bytes: 8192, lineage: LINEAGE };
    Wal::open_with(Arc::new(disk.clone()), dir(), keys, options, Box::new(SeededEntropy::new(seed)), false)
}

fn named(disk: &TestDisk) -> NamedKeys {
    named_keys(disk, dir()).unwrap()
}

fn ids(keys: &[DataKey]) -> std::collections::BTreeSet<u64> {
    keys.iter().map(DataKey::id).collect()
}

fn make_snapshot(disk: &TestDisk, keys: &Keyring, position: Position) {
    let writer = SnapshotWriter::create(Arc::new(disk.clone()), dir(), keys, LINEAGE, position, &members());
    let mut writer = writer.unwrap();
    writer.write_chunk(b"the state").unwrap();
    writer.finish().unwrap();
}

#[test]
fn what_is_begun_after_a_new_key_is_sealed_with_it_and_what_was_there_opens() {
    let disk = TestDisk::new();
    let keys = Keyring::from(key());
    let (mut wal, _) = open_with(&disk, &keys, 1).unwrap();
    wal.write(&[persist(entries(1, 1..3, 700), Some(hard_state(1, 1, 2)))]).unwrap();
    make_snapshot(&disk, &keys, position(1, 1));
    assert_eq!(named(&disk).ids, ids(&[key()]));
    assert_eq!(named(&disk).newest_snapshot, Some((Index(1), key().id())));

    keys.add(new_key());
    assert!(keys.is_held(key().id()), "the segment that is written is sealed with it");
    wal.write(&[persist(entries(1, 3..5, 700), Some(hard_state(1, 1, 4)))]).unwrap();
    assert!(!keys.is_held(key().id()));
    assert_eq!(named(&disk).ids, ids(&[key(), new_key()]));
    assert_eq!(wal.reader().read(Index(1), Index(5), u64::MAX).unwrap(), entries(1, 1..5, 700));
    drop(wal);

    // Both keys are needed until the old segment goes; the newest alone opens nothing.
    let alone = Keyring::from(new_key());
    let error = open_with(&disk, &alone, 2).unwrap_err();
    assert!(matches!(error, WalError::WrongKey { found, .. } if found == key().id()), "{error}");
    let (wal, recovered) = open_with(&disk, &keys, 2).unwrap();
    assert_eq!(recovered.last, position(1, 4));
    assert_eq!(wal.reader().read(Index(1), Index(5), u64::MAX).unwrap(), entries(1, 1..5, 700));
}

#[test]
fn after_a_snapshot_and_a_compaction_nothing_names_the_old_key() {
    // With a write between the new key and the compaction, and without.
    for written in [true, false] {
        let disk = TestDisk::new();
        let keys = Keyring::from(key());
        let (mut wal, _) = open_with(&disk, &keys, 1).unwrap();
        wal.write(&[persist(entries(1, 1..5, 700), Some(hard_state(1, 1, 4)))]).unwrap();
        make_snapshot(&disk, &keys, position(1, 4));
        let created = Persist { snapshot: Some(SnapshotMark::Created(position(1, 4))), ..persist(vec![], None) };
        wal.write(std::slice::from_ref(&created)).unwrap();
        keys.add(new_key());
        if written {
            wal.write(&[persist(entries(1, 5..6, 700), Some(hard_state(1, 1, 5)))]).unwrap();
        }
        // The snapshot of the same entry once more: it takes the place of the one that is there.
        make_snapshot(&disk, &keys, position(1, 4));
        wal.compact(Index(5)).unwrap();
        assert_eq!(named(&disk).ids, ids(&[new_key()]), "{written}");
        assert!(!keys.is_held(key().id()));
        keys.retain(|_| false);
        drop(wal);
        let (wal, recovered) = open_with(&disk, &keys, 2).unwrap();
        let last = if written { 5 } else { 4 };
        assert_eq!((recovered.last, recovered.first), (position(1, last), Index(5)));
        assert_eq!(recovered.snapshot.unwrap().position, position(1, 4));
        assert_eq!(wal.reader().snapshot(), position(1, 4));
    }
}

#[test]
fn files_that_are_not_finished_name_their_keys_and_those_that_cannot_be_read_hold_everything_up() {
    let disk = TestDisk::new();
    let keys = Keyring::from(key());
    let (wal, _) = open_with(&disk, &keys, 1).unwrap();
    keys.add(new_key());
    let shared: Arc<dyn crate::sys::files::Disk> = Arc::new(disk.clone());
    let writer = SnapshotWriter::create(shared, dir(), &keys, LINEAGE, position(1, 9), &members()).unwrap();
    assert_eq!(named(&disk).ids, ids(&[key(), new_key()]));
    assert_eq!((named(&disk).newest_snapshot, named(&disk).unknown), (None, None));
    assert!(keys.is_held(new_key().id()), "by whoever writes the snapshot");
    writer.suspend();
    let part = dir().join("snap-000000000009.part");
    disk.change(&part, |bytes| bytes[20] ^= 1);
    assert_eq!(named(&disk).unknown.as_deref(), Some("snap-000000000009.part"));
    drop(wal);
    let segment = dir().join("wal-00000001");
    disk.change(&segment, |bytes| bytes[20] ^= 1);
    assert!(named(&disk).unknown.is_some() && !named(&disk).ids.contains(&key().id()));
}

/// What a rotation does to the disk, from a log with a snapshot to one without the old key. Each step comes to its end or
/// not at all; what is acknowledged is told through `acknowledged`.
fn rotate(disk: &TestDisk, keys: &Keyring, acknowledged: &mut u64) -> Result<(), WalError> {
    let (mut wal, recovered) = open_with(disk, keys, 7 + disk_seed(disk))?;
    let last = recovered.last.index.0;
    wal.write(&[persist(entries(1, last + 1..last + 2, 900), Some(hard_state(1, 1, last)))])?;
    *acknowledged = last + 1;
    let snapshot = position(1, last + 1);
    let mut writer = SnapshotWriter::create(Arc::new(disk.clone()), dir(), keys, LINEAGE, snapshot, &members())?;
    writer.write_chunk(b"the state")?;
    writer.finish()?;
    wal.write(&[Persist { snapshot: Some(SnapshotMark::Created(snapshot)), ..persist(vec![], None) }])?;
    wal.compact(Index(last + 2))?;
    remove_snapshots_before(disk, dir(), snapshot.index)?;
    Ok(())
}

/// Another one for each state of the disk: a salt must not be used twice.
fn disk_seed(disk: &TestDisk) -> u64 {
    disk.paths().iter().map(|path| u64::from(crc32fast::hash(&disk.bytes(path)))).sum()
}

#[test]
fn a_power_cut_at_any_point_of_a_rotation_loses_nothing_and_the_next_run_ends_it() {
    let mut random = SeededEntropy::new(5);
    let mut interrupted = 0;
    for budget in 0.. {
        let disk = TestDisk::new();
        let old = Keyring::from(key());
        let mut acknowledged = 0;
        rotate(&disk, &old, &mut acknowledged).unwrap();
        let keys = Keyring::new([new_key(), key()]);
        disk.set_budget(budget);
        let ended = rotate(&disk, &keys, &mut acknowledged).is_ok();
        let disk = disk.crash_at_random(&mut random);
        // Whatever is there names one of the two keys, and an old one is forgotten only if nothing names it.
        let found = named(&disk);
        let still_named = found.unknown.is_some() || found.ids.contains(&key().id());
        let after = if still_named { Keyring::new([new_key(), key()]) } else { Keyring::from(new_key()) };
        let (wal, recovered) = open_with(&disk, &after, 99 + budget)
            .unwrap_or_else(|error| panic!("after {budget} operations, the old key {still_named}: {error}"));
        assert!(recovered.last.index.0 >= acknowledged, "{budget}: {recovered:?} of {acknowledged}");
        for index in list_snapshots(&disk, dir()).unwrap() {
            let mut reader = SnapshotReader::open(&disk, dir(), &after, LINEAGE, index).unwrap();
            while reader.next_chunk().unwrap().is_some() {}
        }
        drop(wal);
        // The next run goes on, and then the old key is nowhere.
        rotate(&disk, &after, &mut acknowledged).unwrap();
        assert_eq!(named(&disk).ids, ids(&[new_key()]), "{budget}");
        open_with(&disk, &Keyring::from(new_key()), 1000 + budget).unwrap();
        interrupted += u64::from(!ended);
        if ended && budget > 40 {
            break;
        }
    }
    assert!(interrupted > 15, "{interrupted}");
}
