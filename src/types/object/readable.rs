//! Bytes that people may want to read: one length and a copy in the binary form; in JSON a string when they are UTF-8,
//! else `{"base64": "…"}`.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserializer, Serializer};

/// For `#[serde(with = "readable")]`.
pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    if !serializer.is_human_readable() {
        return serializer.serialize_bytes(bytes);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => serializer.serialize_str(text),
        Err(_) => {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry("base64", &encode(bytes))?;
            map.end()
        }
    }
}

/// For `#[serde(with = "readable")]`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    borrow(deserializer).map(Cow::into_owned)
}

/// The same without a copy, where the input lies in memory and has the bytes as they are.
pub fn borrow<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cow<'de, [u8]>, D::Error> {
    if deserializer.is_human_readable() {
        deserializer.deserialize_any(Readable)
    } else {
        deserializer.deserialize_bytes(Readable)
    }
}

struct Readable;

impl<'de> Visitor<'de> for Readable {
    type Value = Cow<'de, [u8]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or {\"base64\": \"…\"}")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text.as_bytes()))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.as_bytes().to_vec()))
    }

    fn visit_borrowed_bytes<E: de::Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(bytes))
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Cow::Owned(bytes.to_vec()))
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Self::Value, E> {
        Ok(Cow::Owned(bytes))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = sequence.next_element()? {
            bytes.push(byte);
        }
        Ok(Cow::Owned(bytes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        match map.next_entry::<String, String>()? {
            Some((key, text)) if key == "base64" => {
                decode(&text).map(Cow::Owned).ok_or_else(|| de::Error::custom("not base64"))
            }
            _ => Err(de::Error::missing_field("base64")),
        }
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 section 4, with padding.
fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().enumerate().fold(0_u32, |word, (place, byte)| word | u32::from(*byte) << (16 - 8 * place));
        for place in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.as_bytes().chunks(4) {
        let mut word = 0_u32;
        for (place, digit) in group.iter().enumerate() {
            let value = ALPHABET.iter().position(|other| other == digit)?;
            word |= u32::try_from(value).ok()? << (18 - 6 * place);
        }
        if group.len() == 1 {
            return None;
        }
        bytes.extend_from_slice(&word.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_rfc() {
        for (plain, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg=="),
            (b"\xff\xfe\xfd", "//79"),
        ] {
            assert_eq!(encode(plain), text);
            assert_eq!(decode(text).as_deref(), Some(plain));
        }
        for bad in ["A", "Zg!=", "Zm9vA"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_are_text_where_they_can_be() {
        #[derive(PartialEq, Debug, serde::Serialize, serde::Deserialize)]
        struct Holder(#[serde(with = "super")] Vec<u8>);
        for (bytes, json) in [(&b"gr\xc3\xbcn"[..], "\"grün\""), (b"\xff", "{\"base64\":\"/w==\"}"), (b"", "\"\"")] {
            let holder = Holder(bytes.to_vec());
            assert_eq!(serde_json::to_string(&holder).unwrap(), json);
            assert_eq!(serde_json::from_str::<Holder>(json).unwrap(), holder);
            assert_eq!(bincode::deserialize::<Holder>(&bincode::serialize(&holder).unwrap()).unwrap(), holder);
        }
    }
}
