use super::*;
use crate::pki::Keyring;
use crate::wal::{Found, Record, inspect};

/// One word for each thing found.
fn check(disk: &TestDisk, key: Option<&DataKey>) -> String {
    let keys = key.map(Keyring::from);
    let words = inspect(disk, dir(), keys.as_ref()).unwrap().map(|found| match found {
        Found::Segment { file, .. } => file,
        Found::Batch { records: None, header, .. } => format!("{}x?", header.entries),
        Found::Batch { records: Some(records), header, .. } => {
            let entries = records.iter().filter(|record| matches!(record, Record::Entry(_))).count();
            assert_eq!(header.entries as usize, entries);
            let letters = records.iter().map(|record| match record {
                Record::Entry(_) => 'e',
                Record::HardState(_) => 'h',
                Record::Truncate(_) => 't',
                Record::Created(_) => 'c',
                Record::Installed(_) => 'i',
            });
            letters.collect()
        }
        Found::End { offset, .. } => format!("end@{offset}"),
        Found::Snapshot { file, meta, .. } => format!("{file}:{}", meta.bytes),
        Found::Problem { offset, what, harmless, .. } => {
            format!("[{}{offset}: {what}]", if harmless { "harmless " } else { "" })
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn written() -> TestDisk {
    let mut pair = Pair::new(4096);
    pair.write(vec![persist(entries(1, 1..3, 10), Some(hard_state(1, 1, 1)))]);
    pair.append(2, 2..4, 700);
    pair.write(vec![Persist { snapshot: Some(SnapshotMark::Created(position(1, 1))), ..persist(vec![], None) }]);
    pair.append(2, 4..6, 600);
    pair.disk
}

#[test]
fn a_whole_log_is_shown_with_its_records_or_without_the_key_its_headers() {
    let disk = written();
    let with = "wal-00000001 eeh teeh ch end@3584 wal-00000002 eeh end@2048 snap-000000000001:9";
    assert_eq!(check(&disk, Some(&key())), with);
    let without = "wal-00000001 2x? 2x? 0x? end@3584 wal-00000002 2x? end@2048 snap-000000000001:9";
    assert_eq!(check(&disk, None), without);
    assert_eq!(check(&disk, Some(&DataKey::from_bytes([0; 32]))), without);
}

#[test]
fn what_is_damaged_is_named_and_what_follows_is_shown() {
    let path = dir().join("wal-00000001");
    let attempt = |key: Option<&DataKey>, change: &dyn Fn(&mut Vec<u8>)| {
        let disk = written();
        disk.change(&path, |bytes| change(bytes));
        check(&disk, key)
    };
    let rest = "wal-00000002 2x? end@2048 snap-000000000001:9";
    let contents = "[1024: the batch does not match its checksum]";
    assert_eq!(
        attempt(None, &|bytes| bytes[1100] ^= 1),
        format!("wal-00000001 2x? {contents} 2x? 0x? end@3584 {rest}")
    );
    let header = "[1024: no batch begins here; the next one begins at byte 3072]";
    assert_eq!(attempt(None, &|bytes| bytes[1030] ^= 1), format!("wal-00000001 2x? {header} 0x? end@3584 {rest}"));
    assert_eq!(
        attempt(None, &|bytes| bytes.truncate(3000)),
        format!("[3000: the file ends here, its header says 4096 bytes] {rest}")
    );
    let end = "[3072: no batch begins here, and no batch follows]";
    let misses = "[0: it does not continue the segment before it, the end of which is missing or was changed]";
    let broken = rest.replacen("wal-00000002", &format!("wal-00000002 {misses}"), 1);
    assert_eq!(attempt(None, &|bytes| bytes[3072] ^= 1), format!("wal-00000001 2x? 2x? {end} {broken}"));
    let disk = written();
    disk.change(&dir().join("wal-00000002"), |bytes| bytes[4095] ^= 1);
    let left = "[harmless 2048: the log ends here, and up to byte 4096 stands what is no batch]";
    assert!(check(&disk, None).contains(left));
}
