//! What a manager reads from its own disk: segments, batches, records, snapshot files.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType};
use skep::pki::seal::DataKey;
use skep::sys::entropy::SeededEntropy;
use skep::types::log::Configuration;
use skep::types::{Index, Lineage, Position, RaftId, Term};
use skep::wal::{
    self, BatchHeader, HardState, Options, Persist, Record, Recovered, SegmentHeader, SnapshotReader, SnapshotWriter,
    Wal, WalError, fuzz,
};

use super::disk::MemoryDisk;
use super::state::{join, split};
use super::{PLAIN, Target, numbered, tagged};

const LINEAGE: Lineage = Lineage(0x5ee9);
const SEGMENT_BYTES: u64 = 4096;
const SECTOR: usize = 512;

pub(super) fn targets() -> Vec<Target> {
    // Opening a log makes segments of its own, and a snapshot file's chunks are read whole.
    let files = Target { bytes_besides: 512 << 10, ..PLAIN };
    vec![
        Target { name: "log_headers", run: headers, seeds: header_seeds, runs: 4000, ..PLAIN },
        Target { name: "log_records", run: records, seeds: record_seeds, runs: 4000, bytes_per_byte: 64, ..PLAIN },
        Target { name: "log_sealed", run: sealed, seeds: sealed_seeds, runs: 1500, bytes_per_byte: 64, ..files },
        Target { name: "log_segment", run: segment, seeds: segment_seeds, runs: 1500, ..files },
        Target { name: "snapshot_file", run: snapshot_file, seeds: snapshot_seeds, runs: 2000, ..files },
    ]
}

fn key() -> DataKey {
    DataKey::from_bytes([0x42; 32])
}

fn dir() -> &'static Path {
    Path::new("raft")
}

fn position(term: u64, index: u64) -> Position {
    Position { term: Term(term), index: Index(index) }
}

/// Puts the right checksum over `body` bytes from `start` on, so that what lies behind it is reached.
fn forge(bytes: &mut [u8], start: usize, body: usize) {
    if let Some(whole) = bytes.get_mut(start..start + body + 4) {
        let crc = crc32fast::hash(&whole[..body]);
        whole[body..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The first byte says whether checksums are put right.
fn headers(input: &[u8]) {
    let Some((forged, bytes)) = input.split_first() else { return };
    let mut sector = [0; SECTOR];
    let length = bytes.len().min(SECTOR);
    sector[..length].copy_from_slice(&bytes[..length]);
    if forged & 1 == 0 {
        forge(&mut sector, 0, SECTOR - 4);
    }
    match fuzz::segment_header(&sector) {
        Ok(header) => {
            let again = fuzz::segment_header(&fuzz::encode_segment_header(&header)).expect("what was written is read");
            assert_eq!(again, header);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let mut batch = bytes.to_vec();
    if forged & 1 == 0 {
        forge(&mut batch, 0, 60);
    }
    if let Some(header) = fuzz::batch_header(&batch) {
        assert_eq!(fuzz::batch_header(&fuzz::encode_batch_header(&header)), Some(header));
    }
}

fn header_seeds() -> Vec<(String, Vec<u8>)> {
    let segment = SegmentHeader {
        lineage: LINEAGE,
        key_id: key().id(),
        salt: [9; 32],
        sequence: 3,
        epoch: 0x1234_5678,
        bytes: SEGMENT_BYTES,
        first_number: 17,
        previous: 0xdead_beef,
        hard_state: HardState { term: Term(2), vote: RaftId(1), commit: Index(8) },
        snapshot: position(1, 5),
        last: position(2, 9),
    };
    let batch = BatchHeader { length: 100, epoch: 5, number: 6, first: 7, entries: 8, previous: 9, payload_crc: 10 };
    numbered([
        tagged(0, &fuzz::encode_segment_header(&segment)[..200]),
        tagged(1, &fuzz::encode_segment_header(&segment)),
        tagged(0, &fuzz::encode_batch_header(&batch)),
    ])
}

fn records(input: &[u8]) {
    let batch = Bytes::copy_from_slice(input);
    match fuzz::records(&batch) {
        Ok(records) => assert!(fuzz::encode_records(&records) == input, "records do not survive"),
        Err(offset) => assert!(offset < input.len()),
    }
}

fn entry(term: u64, index: u64) -> Record {
    let data = format!("entry {index} of term {term}").into_bytes().into();
    Record::Entry(Entry { term, index, data, ..Entry::default() })
}

fn hard_state(term: u64, commit: u64) -> Record {
    Record::HardState(HardState { term: Term(term), vote: RaftId(1), commit: Index(commit) })
}

/// Batches of a log that grows, loses its end to another leader, and rests on a snapshot.
fn batches() -> Vec<Vec<u8>> {
    let Record::Entry(mut change) = entry(1, 3) else { unreachable!() };
    (change.entry_type, change.context) = (EntryType::EntryConfChange, b"why"[..].into());
    [
        vec![entry(1, 1), entry(1, 2), Record::Entry(change), hard_state(1, 1)],
        vec![Record::Truncate(Index(3)), entry(2, 3), entry(2, 4), hard_state(2, 3)],
        vec![Record::Created(position(2, 3)), hard_state(3, 4)],
        vec![Record::Installed(position(3, 9)), hard_state(3, 9)],
        vec![entry(4, 10), hard_state(4, 10)],
    ]
    .iter()
    .map(|records| fuzz::encode_records(records))
    .collect()
}

fn record_seeds() -> Vec<(String, Vec<u8>)> {
    numbered(batches().into_iter().chain([batches().concat()]))
}

fn open(disk: &MemoryDisk, seed: u64) -> Result<(Wal, Recovered), WalError> {
    let options = Options { segment_bytes: SEGMENT_BYTES, lineage: LINEAGE };
    Wal::open_with(Arc::new(disk.clone()), dir(), key(), options, Box::new(SeededEntropy::new(seed)), false)
}

/// Snapshots of every place that the seeds' logs rest on.
fn put_snapshots(disk: &MemoryDisk, places: &[Position]) {
    let members = Configuration { voters: vec![RaftId(1)], learners: Vec::new() };
    for (seed, place) in (1..).zip(places) {
        let entropy = &mut SeededEntropy::new(seed);
        let mut writer =
            SnapshotWriter::create_with(Arc::new(disk.clone()), dir(), key(), LINEAGE, *place, &members, entropy)
                .expect("nothing is in the way");
        writer.write_chunk(b"the state").expect("memory takes every write");
        writer.finish().expect("memory takes every write");
    }
}

/// Opens a log; if it opens, everything in it can be read, it takes a write, and opens again with all of it.
fn recover(disk: &MemoryDisk) {
    for found in wal::inspect(disk, dir(), Some(&key().into())).expect("a disk in memory can be listed") {
        assert!(!format!("{found:?}").is_empty());
    }
    let (mut wal, recovered) = match open(disk, 1) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let Recovered { hard_state, snapshot, first, last, terms, .. } = recovered;
    assert!(hard_state.commit <= last.index && first <= last.index.next());
    assert!(terms.windows(2).all(|pair| pair[0].index < pair[1].index && pair[0].term <= pair[1].term), "{terms:?}");
    let entries = match first <= last.index {
        true => wal.reader().read(first, last.index.next(), u64::MAX).expect("what was recovered can be read"),
        false => Vec::new(),
    };
    assert_eq!(entries.len() as u64, last.index.next().0 - first.0);
    assert!(entries.iter().zip(first.0..).all(|(entry, index)| entry.index == index), "the log has a gap");
    let next = Entry { term: last.term.0.max(1), index: last.index.0 + 1, ..Entry::default() };
    let persist = Persist { number: 1, entries: vec![next.clone()], hard_state: None, snapshot: None, must_sync: true };
    wal.write(&[persist]).expect("memory takes every write");
    drop(wal);
    let (wal, again) = open(disk, 2).expect("what was just written opens");
    // A write raises a commit index that lags behind the snapshot.
    let commit = hard_state.commit.max(snapshot.map_or(Index(0), |meta| meta.position.index));
    assert_eq!(again.hard_state, HardState { commit, ..hard_state });
    assert_eq!((again.first, again.last.index), (first, last.index.next()));
    let read = wal.reader().read(first, again.last.index.next(), u64::MAX).expect("what was written can be read");
    assert!(read[..entries.len()] == entries[..] && read[entries.len()] == next);
}

/// Batches' records in the clear, each behind a length of two bytes: sealed and opened like real ones.
fn sealed(input: &[u8]) {
    let disk = MemoryDisk::default();
    put_snapshots(&disk, &[position(2, 3), position(3, 9)]);
    disk.put(dir().join("wal-00000001"), fuzz::segment(&key(), LINEAGE, &split(input)));
    recover(&disk);
}

fn sealed_seeds() -> Vec<(String, Vec<u8>)> {
    let batches = batches();
    let parts: Vec<&[u8]> = batches.iter().map(Vec::as_slice).collect();
    numbered([join(&parts[..1]), join(&parts[..2]), join(&parts[..3]), join(&parts), join(&parts[3..])])
}

/// A segment as it lies on the disk. The first byte says whether checksums are put right.
fn segment(input: &[u8]) {
    let Some((forged, bytes)) = input.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if forged & 1 == 0 {
        forge(&mut bytes, 0, SECTOR - 4);
        for start in (SECTOR..bytes.len()).step_by(SECTOR) {
            if forged & 2 == 0 && bytes[start..].starts_with(b"SKB\n") {
                forge(&mut bytes, start, 60);
            }
        }
    }
    let disk = MemoryDisk::default();
    put_snapshots(&disk, &[position(2, 3), position(3, 9)]);
    disk.put(dir().join("wal-00000001"), bytes);
    recover(&disk);
}

fn segment_seeds() -> Vec<(String, Vec<u8>)> {
    let batches = batches();
    let parts: Vec<&[u8]> = batches.iter().map(Vec::as_slice).collect();
    let whole = fuzz::segment(&key(), LINEAGE, &parts);
    let long = vec![b'x'; 900];
    let Record::Entry(mut large) = entry(1, 1) else { unreachable!() };
    large.data = long.into();
    let large = fuzz::segment(&key(), LINEAGE, &[&fuzz::encode_records(&[Record::Entry(large), hard_state(1, 1)])]);
    numbered([tagged(1, &whole), tagged(0, &whole), tagged(2, &large)])
}

/// A snapshot's file. The first byte says whether checksums are put right, and from where it is read on.
fn snapshot_file(input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if choice & 1 == 0 {
        forge(&mut bytes, 0, 92);
        let listed =
            bytes.get(84..88).map_or(0, |length| u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
        forge(&mut bytes, 96 + (listed as usize).min(4096), 28);
    }
    let disk = MemoryDisk::default();
    disk.put(dir().join("snap-000000000003"), bytes);
    for found in wal::inspect(&disk, dir(), Some(&key().into())).expect("a disk in memory can be listed") {
        assert!(!format!("{found:?}").is_empty());
    }
    let Ok(mut reader) = SnapshotReader::open(&disk, dir(), key(), LINEAGE, Index(3)) else { return };
    let claimed = reader.meta().bytes;
    let skipped = u64::from(choice >> 1) % 32;
    if reader.skip_to(skipped).is_err() {
        return;
    }
    let mut read = skipped;
    loop {
        match reader.next_chunk() {
            Ok(Some(chunk)) => read += chunk.len() as u64,
            Ok(None) => break assert_eq!(read, claimed, "the snapshot is not as long as it says"),
            Err(error) => break assert!(!error.to_string().is_empty()),
        }
    }
}

fn snapshot_seeds() -> Vec<(String, Vec<u8>)> {
    let (disk, place) = (MemoryDisk::default(), position(2, 3));
    let members = Configuration { voters: vec![RaftId(1), RaftId(2)], learners: vec![RaftId(7)] };
    let entropy = &mut SeededEntropy::new(3);
    let mut writer =
        SnapshotWriter::create_with(Arc::new(disk.clone()), dir(), key(), LINEAGE, place, &members, entropy)
            .expect("nothing is in the way");
    for chunk in [&b"the first part of a state"[..], b"and the second"] {
        writer.write_chunk(chunk).expect("memory takes every write");
    }
    writer.finish().expect("memory takes every write");
    let file = disk.bytes(disk.paths().first().expect("there is one file"));
    numbered([tagged(1, &file), tagged(0, &file), tagged(21, &file)])
}
