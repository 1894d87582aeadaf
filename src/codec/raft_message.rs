//! Raft messages: a fixed header and raw bytes, without protobuf.
//!
//! A body holds one or more messages, each as
//!
//! ```text
//! length u32 | type u8 | reject u8 | from to term log_term index commit commit_term reject_hint request_snapshot
//! (u64 each) | priority i64 | context u32+bytes | snapshot u8 [index term u64, voters and learners u32+u64s, data
//! u32+bytes] | entries u32, each: type u8 | term index u64 | data u32+bytes | context u32+bytes
//! ```
//!
//! Joint configurations are never used, so that a snapshot's configuration is voters and learners.

use bytes::Bytes;
use protobuf::ProtobufEnum as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};

use super::{DecodeError, Reader};

/// Appends `message` to a frame body.
pub fn encode_into(message: &Message, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(message.msg_type as u8);
    out.push(u8::from(message.reject));
    for word in [
        message.from,
        message.to,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
        message.request_snapshot,
        message.priority as u64,
    ] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    put_bytes(out, &message.context);
    match message.snapshot.as_ref() {
        Some(snapshot) if !snapshot.is_empty() => encode_snapshot(snapshot, out),
        _ => out.push(0),
    }
    put_length(out, message.entries.len());
    for entry in &message.entries {
        out.push(entry.entry_type as u8);
        out.extend_from_slice(&entry.term.to_le_bytes());
        out.extend_from_slice(&entry.index.to_le_bytes());
        put_bytes(out, &entry.data);
        put_bytes(out, &entry.context);
    }
    let length = u32::try_from(out.len() - start - 4).expect("raft's max_size_per_msg bounds a message");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn encode_snapshot(snapshot: &Snapshot, out: &mut Vec<u8>) {
    out.push(1);
    let metadata = snapshot.get_metadata();
    out.extend_from_slice(&metadata.index.to_le_bytes());
    out.extend_from_slice(&metadata.term.to_le_bytes());
    for ids in [&metadata.get_conf_state().voters, &metadata.get_conf_state().learners] {
        put_length(out, ids.len());
        for id in ids {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    put_bytes(out, &snapshot.data);
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("bounded by the size of a frame");
    out.extend_from_slice(&length.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Decodes every message of a frame body. Entry payloads are slices of `body`, not copies.
pub fn decode_all(body: &Bytes) -> Result<Vec<Message>, DecodeError> {
    let mut messages = Vec::new();
    let mut rest = Reader(body);
    while !rest.0.is_empty() {
        let message = rest.bytes()?;
        messages.push(decode(body, message)?);
    }
    Ok(messages)
}

fn decode(body: &Bytes, message: &[u8]) -> Result<Message, DecodeError> {
    let mut reader = Reader(message);
    let mut decoded = Message::default();
    let kind = i32::from(reader.u8()?);
    decoded.msg_type = MessageType::from_i32(kind).ok_or(DecodeError::Unknown("raft message type"))?;
    decoded.reject = reader.u8()? != 0;
    decoded.from = reader.u64()?;
    decoded.to = reader.u64()?;
    decoded.term = reader.u64()?;
    decoded.log_term = reader.u64()?;
    decoded.index = reader.u64()?;
    decoded.commit = reader.u64()?;
    decoded.commit_term = reader.u64()?;
    decoded.reject_hint = reader.u64()?;
    decoded.request_snapshot = reader.u64()?;
    decoded.priority = reader.u64()? as i64;
    decoded.context = body.slice_ref(reader.bytes()?);
    match reader.u8()? {
        0 => {}
        1 => *decoded.mut_snapshot() = decode_snapshot(body, &mut reader)?,
        _ => return Err(DecodeError::Unknown("raft snapshot flag")),
    }
    let count = reader.u32()?;
    // The smallest entry is 25 bytes: a count that cannot be is refused before memory is taken for it.
    if count as usize > reader.0.len() / 25 {
        return Err(DecodeError::Truncated);
    }
    let mut entries = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let mut entry = Entry::default();
        let kind = i32::from(reader.u8()?);
        entry.entry_type = EntryType::from_i32(kind).ok_or(DecodeError::Unknown("raft entry type"))?;
        entry.term = reader.u64()?;
        entry.index = reader.u64()?;
        entry.data = body.slice_ref(reader.bytes()?);
        entry.context = body.slice_ref(reader.bytes()?);
        entries.push(entry);
    }
    decoded.entries = entries.into();
    reader.end()?;
    Ok(decoded)
}

fn decode_snapshot(body: &Bytes, reader: &mut Reader<'_>) -> Result<Snapshot, DecodeError> {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = reader.u64()?;
    metadata.term = reader.u64()?;
    metadata.mut_conf_state().voters = decode_ids(reader)?;
    metadata.mut_conf_state().learners = decode_ids(reader)?;
    snapshot.data = body.slice_ref(reader.bytes()?);
    Ok(snapshot)
}

fn decode_ids(reader: &mut Reader<'_>) -> Result<Vec<u64>, DecodeError> {
    let count = reader.u32()?;
    if count as usize > reader.0.len() / 8 {
        return Err(DecodeError::Truncated);
    }
    (0..count).map(|_| reader.u64()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Message {
        let mut message = Message::default();
        message.msg_type = MessageType::MsgAppend;
        (message.from, message.to, message.term, message.log_term) = (1, 2, 3, 4);
        (message.index, message.commit, message.commit_term, message.reject_hint) = (5, 6, 7, 8);
        message.priority = -1;
        message.context = Bytes::from_static(b"context");
        let mut entry = Entry::default();
        (entry.term, entry.index, entry.data) = (3, 6, Bytes::from_static(b"data"));
        message.entries = vec![entry.clone(), entry].into();
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (9, 2);
        metadata.mut_conf_state().voters = vec![1, 2];
        metadata.mut_conf_state().learners = vec![3];
        message
    }

    #[test]
    fn messages_survive() {
        let mut body = Vec::new();
        encode_into(&sample(), &mut body);
        encode_into(&Message::default(), &mut body);
        assert_eq!(decode_all(&Bytes::from(body)), Ok(vec![sample(), Message::default()]));
    }

    #[test]
    fn cut_and_flipped_bytes_never_panic() {
        let mut body = Vec::new();
        encode_into(&sample(), &mut body);
        for length in 1..body.len() {
            assert!(decode_all(&Bytes::copy_from_slice(&body[..length])).is_err());
        }
        for place in 0..body.len() {
            let mut flipped = body.clone();
            flipped[place] ^= 0xff;
            let _ = decode_all(&Bytes::from(flipped));
        }
    }
}
