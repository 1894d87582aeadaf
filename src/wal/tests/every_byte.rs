//! Every byte of every file changed in three ways, and every file cut to every length. What a change may do is stated
//! exactly: the log opens with everything that was acknowledged, or it is refused with the file and the offset, and
//! inspecting it says the same.

use super::damage::{batches, check, check_disk};
use super::*;
use crate::sys::files::Disk as _;
use crate::wal::format::SECTOR_BYTES;
use crate::wal::newest::NEWEST;
use crate::wal::{Found, SnapshotReader, inspect};

const SEGMENT: usize = 4096;
const SNAPSHOT: &str = "snap-000000000005";

/// A log with everything in it: four segments, batches of one to four sectors, votes, a suffix that was replaced, a
/// snapshot that was recorded. Closed.
fn written() -> Pair {
    let mut pair = Pair::new(SEGMENT as u64);
    pair.write(vec![persist(vec![], Some(hard_state(2, 1, 0)))]);
    for (index, len) in (1..).zip([100, 900, 300, 1500, 10, 10]) {
        pair.write(vec![persist(entries(2, index..index + 1, len), Some(hard_state(2, 1, index - 1)))]);
    }
    pair.write(vec![persist(entries(3, 6..8, 200), Some(hard_state(3, 2, 5)))]);
    pair.write(vec![Persist {
        snapshot: Some(SnapshotMark::Created(position(2, 5))),
        ..persist(vec![], Some(hard_state(3, 2, 6)))
    }]);
    for (index, len) in (8..).zip([1200, 400, 700]) {
        pair.write(vec![persist(entries(3, index..index + 1, len), Some(hard_state(3, 2, index - 1)))]);
    }
    pair.wal = None;
    assert_eq!(pair.segments().len(), 4);
    // Without its helper thread the log makes none ahead.
    let spare = pair.disk.create(&dir().join("spare")).unwrap();
    spare.write_at(0, &[0; SEGMENT]).unwrap();
    spare.sync_data().unwrap();
    pair
}

/// What the byte is after a change: another bit everywhere; nothing and everything in headers and here and there.
fn changes(at: usize, byte: u8) -> impl Iterator<Item = u8> {
    let all = if at % SECTOR_BYTES < 80 || at.is_multiple_of(7) { 3 } else { 1 };
    [byte ^ (1 << (at % 8)), 0, 0xFF].into_iter().take(all).filter(move |changed| *changed != byte)
}

#[test]
fn every_byte_of_a_segment_is_vouched_for_or_means_nothing() {
    let pair = written();
    let segments = pair.segments();
    for path in &segments {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let batches = batches(&pair.disk, path);
        let end = batches.last().unwrap().1;
        let bytes = pair.disk.bytes(path);
        for at in 0..SEGMENT {
            let expected = match batches.iter().find(|batch| (batch.0..batch.1).contains(&at)) {
                // The last batch is no exception: a crash leaves sectors of zeros, and one byte makes none.
                Some(batch) => Err((name.clone(), batch.0 as u64)),
                None if at < SECTOR_BYTES => Err((name.clone(), 0)),
                // Where the next batch would begin, it is a header that fails its checksum.
                None if at < end + SECTOR_BYTES => Err((name.clone(), end as u64)),
                // Behind that it may be what is left of a write whose first sector never came: nothing acknowledged.
                None => Ok(()),
            };
            for changed in changes(at, bytes[at]) {
                let result = check(&pair, path, |bytes| bytes[at] = changed);
                assert_eq!(result, expected, "{name} with {changed:#x} at {at}");
            }
        }
    }
}

#[test]
fn every_byte_of_a_snapshot_is_vouched_for() {
    let pair = written();
    let path = dir().join(SNAPSHOT);
    let bytes = pair.disk.bytes(&path);
    let mut refused = 0;
    for at in 0..bytes.len() {
        for changed in changes(at, bytes[at]) {
            let disk = pair.disk.duplicate();
            disk.change(&path, |bytes| bytes[at] = changed);
            refused += u32::from(check_snapshot(&pair, disk, &format!("{changed:#x} at {at}")));
        }
    }
    assert!(refused > 0, "the log looks at the header and the end of the snapshot that it rests on");
}

#[test]
fn a_snapshot_of_any_other_length_is_refused() {
    let pair = written();
    let path = dir().join(SNAPSHOT);
    let len = pair.disk.bytes(&path).len();
    for changed in (0..len).chain(len + 1..len + 70) {
        let disk = pair.disk.duplicate();
        disk.change(&path, |bytes| bytes.resize(changed, 0x5A));
        check_snapshot(&pair, disk, &format!("{changed} bytes"));
    }
}

/// A damaged snapshot is never read to its end, and named by whoever looks. True if the log was refused for it.
fn check_snapshot(pair: &Pair, disk: TestDisk, change: &str) -> bool {
    let read = SnapshotReader::open(&disk, dir(), key(), LINEAGE, Index(5))
        .and_then(|mut reader| std::iter::from_fn(|| reader.next_chunk().transpose()).collect::<Result<Vec<_>, _>>());
    match read {
        Err(WalError::Damaged { file, .. }) => assert_eq!(file, SNAPSHOT, "{change}"),
        other => panic!("{change}: {other:?}"),
    }
    for key in [Some(&key().into()), None] {
        let named = inspect(&disk, dir(), key)
            .unwrap()
            .any(|found| matches!(found, Found::Problem { file, harmless: false, .. } if file == SNAPSHOT));
        // Without the key only its header and its end are looked at.
        assert!(named || key.is_none(), "{change}");
    }
    match check_disk(pair, disk) {
        Ok(()) => false,
        Err((file, _)) => {
            assert_eq!(file, SNAPSHOT, "{change}");
            true
        }
    }
}

#[test]
fn every_byte_beside_the_segments_is_vouched_for_or_made_anew() {
    let pair = written();
    for (name, expected) in [(NEWEST, Err((NEWEST.to_owned(), 0))), ("spare", Ok(()))] {
        let path = dir().join(name);
        let bytes = pair.disk.bytes(&path);
        for at in (0..bytes.len()).filter(|at| *at < SECTOR_BYTES || at % 61 == 0) {
            for changed in changes(at, bytes[at]) {
                assert_eq!(check(&pair, &path, |bytes| bytes[at] = changed), expected, "{name} at {at}");
            }
        }
    }
}

#[test]
fn a_file_cut_to_any_length_is_refused_with_that_length() {
    let pair = written();
    for path in pair.segments().into_iter().chain([dir().join(NEWEST)]) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for len in 0..pair.disk.bytes(&path).len() {
            let result = check(&pair, &path, |bytes| bytes.truncate(len));
            assert_eq!(result, Err((name.clone(), len as u64)));
        }
    }
    // A spare that is too short is no loss.
    assert_eq!(check(&pair, &dir().join("spare"), |bytes| bytes.truncate(700)), Ok(()));
}
