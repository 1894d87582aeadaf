use super::*;
use crate::wal::format::{BatchHeader, SECTOR_BYTES};
use crate::wal::{Found, segment};

/// A log of several segments with batches of one to four sectors, closed.
pub(super) fn written() -> Pair {
    let mut pair = Pair::new(4096);
    for (index, len) in (1..).zip([100, 900, 300, 1500, 10, 10, 1200, 400]) {
        pair.write(vec![persist(entries(2, index..index + 1, len), Some(hard_state(2, 1, index - 1)))]);
    }
    pair.wal = None;
    assert_eq!(pair.segments().len(), 3);
    pair
}

/// Where the batches of a segment stand: their first byte, and the one behind the last.
pub(super) fn batches(disk: &TestDisk, path: &Path) -> Vec<(usize, usize)> {
    let bytes = disk.bytes(path);
    let mut found = Vec::new();
    let mut offset = SECTOR_BYTES;
    while let Some((header, _)) = bytes.get(offset..).and_then(BatchHeader::decode) {
        found.push((offset, offset + header.on_disk() as usize));
        offset += header.on_disk() as usize;
    }
    found
}

/// Changes one file of a copy of the log and opens that.
pub(super) fn check(pair: &Pair, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Result<(), (String, u64)> {
    let disk = pair.disk.duplicate();
    disk.change(path, change);
    check_disk(pair, disk)
}

/// Opens what became of the log: either all of it is there, or it is refused with the file and offset where it is damaged.
/// Inspecting it, which goes first because opening changes it, finds damage at the same place, or none.
pub(super) fn check_disk(pair: &Pair, disk: TestDisk) -> Result<(), (String, u64)> {
    let damage: Vec<(String, u64)> = crate::wal::inspect(&disk, dir(), Some(&key().into()))
        .unwrap()
        .filter_map(|found| match found {
            // The newest snapshot's contents are read by who loads it.
            Found::Problem { file, offset, harmless: false, .. } => Some((file, offset)),
            _ => None,
        })
        .collect();
    let mut copy =
        Pair { disk, wal: None, segment_bytes: pair.segment_bytes, opened: 0, number: 100, model: pair.model.clone() };
    match open(&copy.disk, copy.segment_bytes, 7) {
        Ok((wal, recovered)) => {
            assert!(damage.iter().all(|(file, _)| file.starts_with("snap-")), "{damage:?}");
            drop(wal);
            // What was opened with a loss would not match the model.
            copy.reopen();
            let last = recovered.last.index.0;
            copy.append(9, last + 1..last + 3, 600);
            copy.reopen();
            Ok(())
        }
        Err(error @ WalError::Damaged { .. }) => {
            assert!(error.is_damage() && error.hint().contains("skep run --join"));
            let WalError::Damaged { file, offset, .. } = error else { unreachable!() };
            let place = (file, offset);
            assert!(damage.contains(&place), "opening finds {place:?}, inspecting {damage:?}");
            Err(place)
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_unwritten_sector_is_a_crash_only_in_the_last_batch() {
    let pair = written();
    let segments = pair.segments();
    for (number, path) in segments.iter().enumerate() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let batches = batches(&pair.disk, path);
        for (at, batch) in batches.iter().enumerate() {
            for sector in (batch.0..batch.1).step_by(SECTOR_BYTES) {
                let is_newest = number + 1 == segments.len() && at + 1 == batches.len();
                if is_newest {
                    continue; // The crash tests are about that one.
                }
                let result = check(&pair, path, |bytes| bytes[sector..sector + SECTOR_BYTES].fill(0));
                // The last batch of an earlier segment: that the segment ends too soon shows at the next one.
                let is_end = at + 1 == batches.len() && sector == batch.0;
                let expected =
                    if is_end { (segment::name(number as u64 + 2), 0) } else { (name.clone(), batch.0 as u64) };
                assert_eq!(result, Err(expected), "{name} at {sector}");
            }
        }
    }
}

#[test]
fn a_spoiled_sector_of_the_last_batch_is_damage_because_a_crash_leaves_it_empty() {
    let pair = written();
    let path = pair.segments().pop().unwrap();
    let (start, end) = *batches(&pair.disk, &path).last().unwrap();
    for sector in (start + SECTOR_BYTES..end).step_by(SECTOR_BYTES) {
        let result = check(&pair, &path, |bytes| bytes[sector..sector + SECTOR_BYTES].fill(0x77));
        assert_eq!(result, Err((segment::name(3), start as u64)));
    }
}

#[test]
fn a_batch_that_was_cut_out_is_missed() {
    let pair = written();
    for (number, path) in pair.segments().iter().enumerate() {
        let batches = batches(&pair.disk, path);
        for (at, batch) in batches.iter().enumerate().take(batches.len() - 1) {
            let result = check(&pair, path, |bytes| bytes[batch.0..batch.1].fill(0));
            assert_eq!(result, Err((segment::name(number as u64 + 1), batch.0 as u64)), "batch {at}");
            // Those after it moved up, as if it had never been.
            let result = check(&pair, path, |bytes| {
                bytes.drain(batch.0..batch.1);
                bytes.resize(4096, 0);
            });
            assert_eq!(result, Err((segment::name(number as u64 + 1), batch.0 as u64)), "batch {at}");
        }
    }
}

#[test]
fn a_file_from_the_future_is_refused_and_left_alone() {
    let pair = written();
    let path = pair.segments().pop().unwrap();
    let change = |bytes: &mut Vec<u8>| {
        bytes[8..12].copy_from_slice(&[9, 0, 8, 0]);
        let crc = crc32fast::hash(&bytes[..508]);
        bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    };
    pair.disk.change(&path, change);
    let before = pair.disk.bytes(&path);
    let error = open(&pair.disk, 4096, 7).unwrap_err();
    assert!(matches!(error, WalError::Newer { version: 9, min_reader: 8, ours: 1, .. }), "{error}");
    assert_eq!(error.hint(), "start the version of skep that wrote it, or a newer one");
    assert_eq!(pair.disk.bytes(&path), before);
}

#[test]
fn a_newer_file_that_this_reader_understands_is_read() {
    let pair = written();
    let path = pair.segments().pop().unwrap();
    let result = check(&pair, &path, |bytes| {
        bytes[8..10].copy_from_slice(&[9, 0]);
        let crc = crc32fast::hash(&bytes[..508]);
        bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn another_key_and_another_lineage_are_told_from_damage() {
    let pair = written();
    let attempt = |key: DataKey, lineage| {
        let options = Options { segment_bytes: 4096, lineage };
        Wal::open(Arc::new(pair.disk.duplicate()), dir(), &key, options).unwrap_err()
    };
    let error = attempt(DataKey::from_bytes([1; 32]), LINEAGE);
    assert!(matches!(error, WalError::WrongKey { .. }), "{error}");
    assert!(error.hint().contains("key file"));
    let error = attempt(key(), Lineage(1));
    assert!(matches!(error, WalError::ForeignLineage { found: LINEAGE, expected: Lineage(1), .. }), "{error}");
}

#[test]
fn a_log_whose_snapshot_is_missing_or_not_the_one_recorded_is_refused() {
    let mut pair = written();
    pair.reopen();
    let created = SnapshotMark::Created(position(2, 5));
    pair.write(vec![Persist { snapshot: Some(created), ..persist(vec![], None) }]);
    let path = dir().join("snap-000000000005");
    let disk = pair.disk.duplicate();
    crate::sys::files::Disk::remove(&disk, &path).unwrap();
    let error = open(&disk, 4096, 7).unwrap_err();
    assert_eq!(
        error.to_string(),
        "snap-000000000005 is damaged at byte 0: the snapshot that the log rests on is missing"
    );

    let disk = pair.disk.duplicate();
    crate::sys::files::Disk::remove(&disk, &path).unwrap();
    snapshot(&disk, position(1, 5));
    let error = open(&disk, 4096, 7).unwrap_err();
    assert!(error.to_string().ends_with("the snapshot is of another term than the log says"), "{error}");
}

#[test]
fn damage_under_a_running_manager_is_found_by_the_reader() {
    let mut pair = written();
    pair.reopen();
    let path = pair.segments().remove(0);
    let (start, _) = batches(&pair.disk, &path)[1];
    pair.disk.change(&path, |bytes| bytes[start + 100] ^= 1);
    let reader = pair.wal().reader();
    assert_eq!(reader.read(Index(1), Index(2), 10).unwrap().len(), 1);
    let error = reader.read(Index(1), Index(5), u64::MAX).unwrap_err();
    let expected = format!("wal-00000001 is damaged at byte {start}: the batch does not match its checksum");
    assert_eq!(error.to_string(), expected);
}

/// Changes a few bytes at random, now and then to a value that is special.
fn mutate(bytes: &mut Vec<u8>, random: &mut SeededEntropy) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(5) {
            0 => bytes[at] = 0,
            1 => bytes[at] = 0xFF,
            2 => bytes.truncate(at.max(1)),
            3 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xFF),
            _ => bytes[at] ^= 1 << random.below(8),
        }
    }
}

/// Puts the right checksum where one belongs, so that what lies behind it is reached.
fn forge(bytes: &mut [u8], start: usize, body: usize) {
    if let Some(whole) = bytes.get_mut(start..start + body + 4) {
        let crc = crc32fast::hash(&whole[..body]);
        whole[body..].copy_from_slice(&crc.to_le_bytes());
    }
}

#[test]
fn no_bytes_make_a_reader_panic() {
    let mut pair = written();
    snapshot(&pair.disk, position(2, 3));
    pair.reopen();
    let created = SnapshotMark::Created(position(2, 3));
    pair.write(vec![Persist { snapshot: Some(created), ..persist(vec![], None) }]);
    pair.wal = None;
    let paths = pair.disk.paths();
    let mut opened = 0;
    for seed in 0..6000 {
        let mut random = SeededEntropy::new(seed);
        let disk = pair.disk.duplicate();
        let path = &paths[random.below(paths.len() as u64) as usize];
        disk.change(path, |bytes| {
            mutate(bytes, &mut random);
            if path.to_string_lossy().contains("snap-") {
                forge(bytes, 0, 92);
                forge(bytes, 128, 28);
            } else {
                forge(bytes, 0, 508);
                for start in (SECTOR_BYTES..4096).step_by(SECTOR_BYTES) {
                    if bytes.get(start..start + 4) == Some(b"SKB\n") && random.below(2) == 0 {
                        forge(bytes, start, 60);
                    }
                }
            }
        });
        for found in crate::wal::inspect(&disk, dir(), Some(&key().into())).unwrap() {
            assert!(!format!("{found:?}").is_empty());
        }
        if let Ok(mut reader) = crate::wal::SnapshotReader::open(&disk, dir(), key(), LINEAGE, Index(3)) {
            let _ = reader.skip_to(random.below(20));
            while let Ok(Some(_)) = reader.next_chunk() {}
        }
        match open(&disk, 4096, seed) {
            Ok((wal, recovered)) => {
                opened += 1;
                let _ = wal.reader().read(recovered.first, recovered.last.index.next(), u64::MAX);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    // Some changes hit bytes that mean nothing.
    assert!(opened > 100 && opened < 5000, "{opened}");
}

#[test]
fn no_records_make_a_reader_panic() {
    use crate::wal::format::{Records, put_record};
    use crate::wal::{Record, format};

    let mut corpus = Vec::new();
    for record in [
        Record::Truncate(Index(3)),
        Record::Created(position(1, 2)),
        Record::Entry(entry(1, 3, 40)),
        Record::Entry(conf_change(2, 4)),
        Record::Installed(position(1, 2)),
        Record::HardState(hard_state(1, 2, 3)),
    ] {
        put_record(&mut corpus, &record);
    }
    assert_eq!(Records::new(corpus.clone().into()).filter_map(Result::ok).count(), 6);
    for seed in 0..20_000 {
        let mut bytes = corpus.clone();
        mutate(&mut bytes, &mut SeededEntropy::new(seed));
        let len = bytes.len();
        let mut told = 0;
        for record in Records::new(bytes.into()) {
            match record {
                Ok(Record::Entry(entry)) => told += format::entry_bytes(&entry),
                Ok(_) => {}
                Err(offset) => assert!(offset < len),
            }
        }
        assert!(told <= len);
    }
}
