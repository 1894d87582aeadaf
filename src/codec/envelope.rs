//! A version byte and a bincode body.
//!
//! bincode has no field defaults: a type that changes gets a new version number, and the old type stays to read the old
//! bytes. An enum that gets another variant at its end has not changed so: what was written before is read as before.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::DecodeError;

/// The version that every envelope is written with today.
pub const VERSION: u8 = 1;

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_little_endian()
}

/// Encodes `value` under [`VERSION`].
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Enough for most requests, answers and objects, so that the buffer need not grow.
    let mut bytes = Vec::with_capacity(512);
    encode_into(value, &mut bytes);
    bytes
}

/// Appends `value` under [`VERSION`] to `bytes`.
pub fn encode_into<T: Serialize>(value: &T, bytes: &mut Vec<u8>) {
    bytes.push(VERSION);
    // Without a limit: to check one, bincode would walk through every value twice.
    options().serialize_into(bytes, value).expect("our types have no unsized sequences, and a Vec takes every write");
}

/// Decodes what [`encode`] wrote. `limit` bounds the memory a hostile length can claim.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, DecodeError> {
    let (&version, body) = bytes.split_first().ok_or(DecodeError::Truncated)?;
    if version != VERSION {
        return Err(if version > VERSION {
            DecodeError::Newer { found: version, known: VERSION }
        } else {
            DecodeError::Unknown("envelope version")
        });
    }
    if body.len() > limit {
        return Err(DecodeError::TooLong { length: body.len() as u64, limit: limit as u64 });
    }
    options().with_limit(limit as u64).deserialize(body).map_err(|_| DecodeError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_bytes_are_errors() {
        let good = encode(&(7_u32, "name".to_owned(), vec![1_u64, 2]));
        assert_eq!(decode::<(u32, String, Vec<u64>)>(&good, 1000), Ok((7, "name".to_owned(), vec![1, 2])));
        for length in 0..good.len() {
            assert!(decode::<(u32, String, Vec<u64>)>(&good[..length], 1000).is_err());
        }
        let mut trailing = good.clone();
        trailing.push(0);
        assert!(decode::<(u32, String, Vec<u64>)>(&trailing, 1000).is_err());
        let mut huge = vec![VERSION];
        huge.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode::<Vec<u64>>(&huge, 1 << 20).is_err());
        let mut newer = good;
        newer[0] = VERSION + 1;
        assert_eq!(decode::<u8>(&newer, 1000), Err(DecodeError::Newer { found: VERSION + 1, known: VERSION }));
    }
}
