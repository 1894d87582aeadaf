//! The body of a request frame, and of a ping.
//!
//! ```text
//! call u16 | deadline_ms u32 | forwarded_length u16 | forwarded (envelope of api::Forwarded) | body
//! ```

use super::{DecodeError, Reader, envelope};
use crate::types::api::{Call, Forwarded};

/// A decoded request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What is asked.
    pub call: Call,
    /// The caller waits so long, milliseconds from the receipt.
    pub deadline_ms: u32,
    /// Set by a manager that passes the call on.
    pub forwarded: Option<Forwarded>,
    /// The call's own envelope.
    pub body: &'a [u8],
}

/// Encodes a request body.
pub fn encode(call: Call, deadline_ms: u32, forwarded: Option<&Forwarded>, body: &[u8]) -> Vec<u8> {
    let forwarded = forwarded.map(envelope::encode).unwrap_or_default();
    let length = u16::try_from(forwarded.len()).expect("a caller and an address are a few hundred bytes");
    let mut bytes = Vec::with_capacity(8 + forwarded.len() + body.len());
    bytes.extend_from_slice(&(call as u16).to_le_bytes());
    bytes.extend_from_slice(&deadline_ms.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&forwarded);
    bytes.extend_from_slice(body);
    bytes
}

/// Decodes a request body.
pub fn decode(bytes: &[u8]) -> Result<Request<'_>, DecodeError> {
    let mut reader = Reader(bytes);
    let call = Call::from_number(reader.u16()?).ok_or(DecodeError::Unknown("call"))?;
    let deadline_ms = reader.u32()?;
    let length = reader.u16()?;
    let forwarded = reader.take(usize::from(length))?;
    let forwarded = if forwarded.is_empty() { None } else { Some(envelope::decode(forwarded, 4096)?) };
    Ok(Request { call, deadline_ms, forwarded, body: reader.0 })
}

/// A ping, and the pong that answers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ping {
    /// The sender's monotonic clock, nanoseconds; echoed.
    pub sent_ns: u64,
    /// The wall clock of whoever sends this frame, milliseconds.
    pub wall_ms: u64,
    /// Its median sync, microseconds.
    pub sync_us: u64,
    /// Log index of its last state-hash mark, or zero.
    pub mark_index: u64,
    /// The hash there.
    pub mark_sum: u128,
    /// Its disk is low or full.
    pub disk_low: bool,
}

impl Ping {
    /// The bytes of a ping or pong body.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(49);
        for word in [self.sent_ns, self.wall_ms, self.sync_us, self.mark_index] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.mark_sum.to_le_bytes());
        bytes.push(u8::from(self.disk_low));
        bytes
    }

    /// Reads a ping or pong body.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(bytes);
        let ping = Self {
            sent_ns: reader.u64()?,
            wall_ms: reader.u64()?,
            sync_us: reader.u64()?,
            mark_index: reader.u64()?,
            mark_sum: u128::from(reader.u64()?) | u128::from(reader.u64()?) << 64,
            disk_low: match reader.take(1)? {
                [0] => false,
                [1] => true,
                _ => return Err(DecodeError::Unknown("ping")),
            },
        };
        reader.end()?;
        Ok(ping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Caller;

    #[test]
    fn a_request_survives_and_a_short_one_is_refused() {
        let forwarded = Forwarded { caller: Caller::Anonymous, addr: "10.0.0.7:1234".to_owned() };
        let bytes = encode(Call::Join, 5000, Some(&forwarded), b"body");
        let request = Request { call: Call::Join, deadline_ms: 5000, forwarded: Some(forwarded), body: b"body" };
        assert_eq!(decode(&bytes), Ok(request));
        for length in 0..bytes.len() - 4 {
            assert!(decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_ping_survives() {
        let ping = Ping { sent_ns: 1, wall_ms: 2, sync_us: 3, mark_index: 4, mark_sum: u128::MAX - 5, disk_low: true };
        assert_eq!(Ping::decode(&ping.encode()), Ok(ping));
        assert_eq!(Ping::decode(&[0; 47]), Err(DecodeError::Truncated));
        assert_eq!(Ping::decode(&[0; 50]), Err(DecodeError::Trailing(1)));
        assert_eq!(Ping::decode(&[0; 48]), Err(DecodeError::Truncated));
        assert_eq!(Ping::decode(&[2; 49]), Err(DecodeError::Unknown("ping")));
    }
}
