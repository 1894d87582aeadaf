//! The unlock key: what people keep apart from the machines, so that a stolen disk opens nothing.

use std::fmt;
use std::str::FromStr;

use ring::hkdf;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::pem;
use super::seal::Length;
use crate::sys::entropy::Entropy;

/// What an unlock key's text begins with; the rest is 32 bytes of standard base64 without padding.
pub const UNLOCK_KEY_PREFIX: &str = "SWMKEY-1-";
/// Characters of 32 bytes in base64 without padding.
const DIGITS: usize = 43;

/// The key that key files are sealed under. Overwritten in memory when it is dropped; its `Debug` shows its id only.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct UnlockKey([u8; 32]);

impl UnlockKey {
    /// A new random key.
    pub fn generate(entropy: &mut dyn Entropy) -> Self {
        let mut key = Self([0; 32]);
        entropy.fill(&mut key.0);
        key
    }

    /// The key with these bytes; `None` unless there are 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The key's bytes.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The text that people keep. Wiped when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(UNLOCK_KEY_PREFIX.len() + DIGITS + 1));
        text.push_str(UNLOCK_KEY_PREFIX);
        pem::encode_base64(&self.0, &mut text);
        while text.ends_with('=') {
            text.pop();
        }
        text
    }

    /// A public name of the key: it stands in key files, so that a wrong key is told from damage.
    pub fn id(&self) -> u64 {
        let mut id = [0; 8];
        hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
            .extract(&self.0)
            .expand(&[b"skep unlock key id"], Length(id.len()))
            .and_then(|okm| okm.fill(&mut id))
            .expect("eight bytes are within what HKDF gives");
        u64::from_le_bytes(id)
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnlockKey({:016x})", self.id())
    }
}

/// The text is not an unlock key. Nothing of the text is in the message: it may be one with a typing error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnlockKeyError {
    /// It begins otherwise.
    #[error("it does not begin with {UNLOCK_KEY_PREFIX}")]
    Prefix,
    /// The rest is not 32 bytes of base64.
    #[error("after {UNLOCK_KEY_PREFIX} an unlock key has {DIGITS} letters, digits, + and /")]
    Digits,
}

impl FromStr for UnlockKey {
    type Err = UnlockKeyError;

    fn from_str(text: &str) -> Result<Self, UnlockKeyError> {
        let digits = text.trim().strip_prefix(UNLOCK_KEY_PREFIX).ok_or(UnlockKeyError::Prefix)?;
        if digits.len() != DIGITS {
            return Err(UnlockKeyError::Digits);
        }
        let bytes = pem::decode_base64(digits).ok_or(UnlockKeyError::Digits)?;
        Self::from_bytes(&bytes).ok_or(UnlockKeyError::Digits)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_form_never_changes() {
        let key = UnlockKey::from_bytes(&std::array::from_fn::<u8, 32, _>(|at| at as u8)).unwrap();
        let text = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
        assert_eq!(key.to_text().as_str(), text);
        assert_eq!(format!(" {text}\n").parse(), Ok(key.clone()));
        assert_eq!(format!("{key:?}"), format!("UnlockKey({:016x})", key.id()));
    }

    #[test]
    fn what_is_no_unlock_key_is_said_without_showing_it() {
        let check = |text: &str, expected: UnlockKeyError| {
            assert_eq!(text.parse::<UnlockKey>(), Err(expected));
            assert!(!expected.to_string().contains("AAECAw"));
        };
        check("", UnlockKeyError::Prefix);
        check("SWMTKN-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", UnlockKeyError::Prefix);
        check("SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh", UnlockKeyError::Digits);
        check("SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", UnlockKeyError::Digits);
        check("SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh-", UnlockKeyError::Digits);
        // The last digit has two bits that are no part of the key: a key has one text.
        check("SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9", UnlockKeyError::Digits);
    }

    proptest! {
        #[test]
        fn every_key_is_read_back_and_no_text_panics(bytes: [u8; 32], text in ".{0,80}") {
            let key = UnlockKey(bytes);
            prop_assert_eq!(key.to_text().parse(), Ok(key));
            let _ = text.parse::<UnlockKey>();
            let _ = format!("SWMKEY-1-{text}").parse::<UnlockKey>();
        }
    }
}
