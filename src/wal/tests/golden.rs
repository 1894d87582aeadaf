//! The bytes on the disk, which outlive the program that wrote them. A golden file changes only with the format's version.

use super::*;
use crate::wal::SnapshotReader;
use crate::wal::newest::NEWEST;
use crate::wal::snapshot::name;

/// Compares with a golden file; with `SKEP_WRITE_GOLDEN` set it writes the file instead.
fn check(file: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("SKEP_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    let differs = golden.iter().zip(bytes).position(|(golden, byte)| golden != byte);
    assert_eq!((differs, golden.len()), (None, bytes.len()), "{file} differs from this byte on");
}

fn make() -> TestDisk {
    let disk = TestDisk::new();
    let mut wal = open(&disk, 4096, 2026).unwrap().0;
    let shared = Arc::new(disk.clone());
    let mut entropy = SeededEntropy::new(7);
    let made = SnapshotWriter::create_with(shared, dir(), key(), LINEAGE, position(1, 2), &members(), &mut entropy);
    let mut writer = made.unwrap();
    writer.write_chunk(b"first part, ").unwrap();
    writer.write_chunk(b"second part").unwrap();
    writer.finish().unwrap();
    wal.write(&[persist(entries(1, 1..4, 40), Some(hard_state(1, 1, 2)))]).unwrap();
    let created = Some(SnapshotMark::Created(position(1, 2)));
    wal.write(&[Persist { snapshot: created, ..persist(vec![], None) }]).unwrap();
    wal.write(&[persist(vec![entry(2, 3, 600), conf_change(2, 4)], Some(hard_state(2, 3, 3)))]).unwrap();
    disk
}

#[test]
fn the_bytes_of_the_logs_files_stay_what_they_are() {
    let disk = make();
    check("wal-segment", &disk.bytes(&dir().join("wal-00000001")));
    check("wal-snapshot", &disk.bytes(&dir().join(name(Index(2)))));
    check("wal-newest", &disk.bytes(&dir().join(NEWEST)));
}

#[test]
fn files_written_by_the_first_release_can_be_read() {
    let disk = make();
    let files = [("wal-00000001", "wal-segment"), ("snap-000000000002", "wal-snapshot"), (NEWEST, "wal-newest")];
    for (file, golden) in files {
        let golden = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden)).unwrap();
        disk.change(&dir().join(file), |bytes| *bytes = golden);
    }
    let (wal, recovered) = open(&disk, 4096, 1).unwrap();
    assert_eq!((recovered.hard_state, recovered.last), (hard_state(2, 3, 3), position(2, 4)));
    let read = wal.reader().read(Index(1), Index(5), u64::MAX).unwrap();
    assert_eq!(read, [entry(1, 1, 40), entry(1, 2, 40), entry(2, 3, 600), conf_change(2, 4)]);
    let mut reader = SnapshotReader::open(&disk, dir(), key(), LINEAGE, Index(2)).unwrap();
    assert_eq!((reader.meta().position, reader.meta().bytes), (position(1, 2), 23));
    assert_eq!(reader.meta().configuration, members());
    assert_eq!(reader.next_chunk().unwrap().unwrap(), b"first part, ");
    assert_eq!(reader.next_chunk().unwrap().unwrap(), b"second part");
    assert_eq!(reader.next_chunk().unwrap(), None);
}
