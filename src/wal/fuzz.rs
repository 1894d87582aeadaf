//! For `tests/fuzz`: the decoders of this folder that nobody outside may call, and what makes inputs that get past the
//! seals and checksums in front of them.

use bytes::Bytes;

use super::error::WalError;
use super::format::{BATCH_AAD, BATCH_HEADER, FILLER, SECTOR_BYTES, put_record};
use super::format::{BatchHeader, HardState, Record, Records, SegmentHeader};
use crate::pki::seal::{DataKey, SALT_BYTES, SegmentKey, TAG_BYTES};
use crate::types::{Lineage, Position};

/// Reads the first sector of a segment.
pub fn segment_header(sector: &[u8; SECTOR_BYTES]) -> Result<SegmentHeader, WalError> {
    SegmentHeader::decode("segment", sector)
}

/// What [`segment_header`] reads.
pub fn encode_segment_header(header: &SegmentHeader) -> [u8; SECTOR_BYTES] {
    header.encode()
}

/// Reads the header of a batch.
pub fn batch_header(bytes: &[u8]) -> Option<BatchHeader> {
    BatchHeader::decode(bytes).map(|(header, _)| header)
}

/// What [`batch_header`] reads, with its checksum.
pub fn encode_batch_header(header: &BatchHeader) -> [u8; BATCH_HEADER] {
    let mut bytes = [0; BATCH_HEADER];
    let encoded = header.encode();
    bytes[..encoded.len()].copy_from_slice(&encoded);
    bytes[encoded.len()..].copy_from_slice(&crc32fast::hash(&encoded).to_le_bytes());
    bytes
}

/// Reads the records of an opened batch; where they stop making sense, the offset.
pub fn records(batch: &Bytes) -> Result<Vec<Record>, usize> {
    Records::new(batch.clone()).collect()
}

/// What [`records`] reads.
pub fn encode_records(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        put_record(&mut bytes, record);
    }
    bytes
}

/// The first segment of a log, whose batches hold these records, whatever they are, sealed and checksummed like real ones.
pub fn segment(key: &DataKey, lineage: Lineage, batches: &[&[u8]]) -> Vec<u8> {
    let salt = [7; SALT_BYTES];
    let sealer = SegmentKey::derive(key, &salt);
    let (epoch, mut previous, mut body) = (0x5eed, 0, Vec::new());
    for (number, records) in (1..).zip(batches) {
        let length = u32::try_from(records.len() + TAG_BYTES).expect("inputs are small");
        let mut header = BatchHeader { length, epoch, number, first: 0, entries: 0, previous, payload_crc: 0 };
        let mut sealed = records.to_vec();
        sealer.seal_in_place(number, &header.encode()[..BATCH_AAD], &mut sealed);
        sealed.resize((BATCH_HEADER + sealed.len()).next_multiple_of(SECTOR_BYTES) - BATCH_HEADER, FILLER);
        header.payload_crc = crc32fast::hash(&sealed);
        let encoded = encode_batch_header(&header);
        previous = u32::from_le_bytes(*encoded.last_chunk().expect("a header is longer than its checksum"));
        body.extend_from_slice(&encoded);
        body.append(&mut sealed);
    }
    body.resize(body.len() + SECTOR_BYTES, 0);
    let header = SegmentHeader {
        lineage,
        key_id: key.id(),
        salt,
        sequence: 1,
        epoch,
        bytes: (SECTOR_BYTES + body.len()) as u64,
        first_number: 1,
        previous: 0,
        hard_state: HardState::default(),
        snapshot: Position::default(),
        last: Position::default(),
    };
    let mut file = header.encode().to_vec();
    file.append(&mut body);
    file
}
