use super::*;
use crate::wal::{SnapshotMeta, SnapshotReader, list_snapshots, remove_snapshots_before, remove_unfinished_snapshots};

const AT: Position = Position { term: Term(3), index: Index(70) };

fn path() -> PathBuf {
    dir().join("snap-000000000070")
}

fn create(disk: &TestDisk) -> SnapshotWriter {
    SnapshotWriter::create(Arc::new(disk.clone()), dir(), key(), LINEAGE, AT, &members()).unwrap()
}

fn resume(disk: &TestDisk, position: Position) -> Option<SnapshotWriter> {
    let shared = Arc::new(disk.clone());
    let mut entropy = SeededEntropy::new(9);
    SnapshotWriter::resume(shared, dir(), key(), LINEAGE, position, &members(), &mut entropy).unwrap()
}

/// Reads all of a snapshot after `skip` bytes.
fn read(disk: &TestDisk, skip: u64) -> Result<(SnapshotMeta, Vec<u8>), WalError> {
    let mut reader = SnapshotReader::open(disk, dir(), key(), LINEAGE, AT.index)?;
    reader.skip_to(skip)?;
    let mut state = Vec::new();
    while let Some(chunk) = reader.next_chunk()? {
        state.extend_from_slice(&chunk);
    }
    assert_eq!(reader.next_chunk()?, None);
    Ok((reader.meta().clone(), state))
}

fn state(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn a_snapshot_comes_back_from_any_offset() {
    for (len, chunk) in [(0, 1), (1, 1), (1000, 7), (1000, 1000), (3 << 20, 2_500_000)] {
        let disk = TestDisk::new();
        let state = state(len);
        let mut writer = create(&disk);
        for part in state.chunks(chunk) {
            writer.write_chunk(part).unwrap();
        }
        assert_eq!(writer.plain_bytes_written(), len as u64);
        let meta = writer.finish().unwrap();
        assert_eq!(meta, SnapshotMeta { position: AT, configuration: members(), bytes: len as u64 });
        // Synced and named for good: a power cut takes nothing.
        let disk = disk.crash(0, |_, _| false);
        for skip in [0, 1, 7, 8, len / 2, len.saturating_sub(1), len].into_iter().filter(|skip| *skip <= len) {
            assert_eq!(read(&disk, skip as u64).unwrap(), (meta.clone(), state[skip..].to_vec()), "{len} {skip}");
        }
        assert!(matches!(read(&disk, len as u64 + 1), Err(WalError::Damaged { .. })));
    }
}

#[test]
fn an_unfinished_snapshot_does_not_count_and_leaves_nothing_behind() {
    let disk = TestDisk::new();
    let mut writer = create(&disk);
    writer.write_chunk(b"part").unwrap();
    assert_eq!(list_snapshots(&disk, dir()).unwrap(), []);
    drop(writer);
    assert_eq!(disk.paths(), [] as [PathBuf; 0]);
}

#[test]
fn any_changed_byte_and_any_missing_end_is_noticed() {
    let disk = TestDisk::new();
    let mut writer = create(&disk);
    for part in state(300).chunks(90) {
        writer.write_chunk(part).unwrap();
    }
    writer.finish().unwrap();
    let len = disk.bytes(&path()).len();
    let check = |change: &dyn Fn(&mut Vec<u8>)| {
        let copy = disk.duplicate();
        copy.change(&path(), |bytes| change(bytes));
        let result = read(&copy, 0);
        assert!(matches!(result, Err(WalError::Damaged { .. })), "{result:?}");
    };
    for at in 0..len {
        check(&|bytes| bytes[at] ^= 4);
        check(&|bytes| bytes.truncate(at));
    }
    check(&|bytes| bytes.push(0));
    // A chunk left out, with everything after it moved up.
    let head = 96 + 8 + 3 * 8;
    check(&|bytes| drop(bytes.drain(head..head + 32 + 90 + 16)));
}

#[test]
fn a_snapshot_from_elsewhere_is_told_from_a_damaged_one() {
    let disk = TestDisk::new();
    create(&disk).finish().unwrap();
    let attempt = |key: &DataKey, lineage| SnapshotReader::open(&disk, dir(), key, lineage, AT.index).unwrap_err();
    assert!(matches!(attempt(&DataKey::from_bytes([0; 32]), LINEAGE), WalError::WrongKey { .. }));
    assert!(matches!(attempt(&key(), Lineage(8)), WalError::ForeignLineage { .. }));
    disk.change(&path(), |bytes| {
        bytes[8..12].copy_from_slice(&[3, 0, 2, 0]);
        let crc = crc32fast::hash(&bytes[..92]);
        bytes[92..96].copy_from_slice(&crc.to_le_bytes());
    });
    assert!(matches!(attempt(&key(), LINEAGE), WalError::Newer { version: 3, min_reader: 2, .. }));
}

#[test]
fn a_transfer_goes_on_after_a_restart_from_its_last_whole_chunk() {
    let state = state(1000);
    let disk = TestDisk::new();
    let mut writer = create(&disk);
    for part in state[..600].chunks(100) {
        writer.write_chunk(part).unwrap();
    }
    writer.suspend();
    let part = dir().join("snap-000000000070.part");
    let len = disk.bytes(&part).len();
    for lost in [0, 1, 16, 40, 147, 148, 149, 500] {
        let disk = disk.duplicate();
        disk.change(&part, |bytes| bytes.truncate(len - lost));
        let mut writer = resume(&disk, AT).unwrap();
        let written = writer.plain_bytes_written() as usize;
        assert_eq!(written, 600 - lost.div_ceil(148) * 100);
        writer.write_chunk(&state[written..800]).unwrap();
        // And once more.
        writer.suspend();
        let mut writer = resume(&disk, AT).unwrap();
        assert_eq!(writer.plain_bytes_written(), 800);
        writer.write_chunk(&state[800..]).unwrap();
        writer.finish().unwrap();
        for skip in [0, 500, 650, 900, 1000] {
            assert_eq!(read(&disk, skip).unwrap().1, state[skip as usize..]);
        }
    }
}

#[test]
fn a_transfer_goes_on_only_with_the_same_snapshot() {
    let disk = TestDisk::new();
    assert!(resume(&disk, AT).is_none());
    create(&disk).suspend();
    assert!(resume(&disk, position(4, 70)).is_none());
    assert!(resume(&disk, position(3, 71)).is_none());
    disk.change(&dir().join("snap-000000000070.part"), |bytes| bytes[50] ^= 1);
    assert!(resume(&disk, AT).is_none());
    // What does not fit gives way to a new one.
    create(&disk).finish().unwrap();
    assert_eq!(disk.paths(), [path()]);
}

#[test]
fn old_snapshots_are_listed_in_order_and_removed() {
    let disk = TestDisk::new();
    for index in [900, 5, 70] {
        snapshot(&disk, position(1, index));
    }
    create(&disk).suspend();
    assert_eq!(list_snapshots(&disk, dir()).unwrap(), [Index(5), Index(70), Index(900)]);
    remove_snapshots_before(&disk, dir(), Index(70)).unwrap();
    assert_eq!(list_snapshots(&disk, dir()).unwrap(), [Index(70), Index(900)]);
    remove_snapshots_before(&disk, dir(), Index(71)).unwrap();
    assert_eq!(disk.paths(), [dir().join("snap-000000000900")]);
}

#[test]
fn what_an_earlier_run_did_not_finish_goes_and_nothing_else() {
    let disk = TestDisk::new();
    snapshot(&disk, position(1, 5));
    for index in [5, 70, 900] {
        let shared = Arc::new(disk.clone());
        SnapshotWriter::create(shared, dir(), key(), LINEAGE, position(3, index), &members()).unwrap().suspend();
    }
    let others = disk.paths().len() - 3;
    remove_unfinished_snapshots(&disk, dir()).unwrap();
    assert_eq!(disk.paths().len(), others);
    assert_eq!(list_snapshots(&disk, dir()).unwrap(), [Index(5)]);
}
