//! Sealing: what a manager writes to its disk is unreadable without its data key.
//!
//! Every sealed file has a random salt of its own; its AES-256-GCM key is HKDF-SHA-256 of the data key under that salt,
//! so the same number may be used as a nonce in every file. Within one file a number must never be used twice: that
//! duty is the caller's.

use std::fmt;
use std::num::NonZeroU32;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{hkdf, pbkdf2};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::sys::entropy::Entropy;

/// Bytes that sealing adds: the authentication tag.
pub const TAG_BYTES: usize = 16;

/// Bytes of a file's salt.
pub const SALT_BYTES: usize = 32;

/// The key that protects one manager's disk. Overwritten in memory when it is dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; 32]);

impl DataKey {
    /// A new random key.
    pub fn generate(entropy: &mut dyn Entropy) -> Self {
        let mut key = Self([0; 32]);
        entropy.fill(&mut key.0);
        key
    }

    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key that a passphrase stands for under this salt (PBKDF2-HMAC-SHA256, RFC 8018). Slow by intent: so many rounds
    /// are what each guess costs. `rounds` must not be zero.
    pub fn from_passphrase(passphrase: &[u8], salt: &[u8; SALT_BYTES], rounds: u32) -> Self {
        let rounds = NonZeroU32::new(rounds).expect("the caller's number is not zero");
        let mut key = Self([0; 32]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, passphrase, &mut key.0);
        key
    }

    /// The key's bytes, for the key file.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// A public name of the key: it stands in sealed files, so that a wrong key is told from damage.
    pub fn id(&self) -> u64 {
        let mut id = [0; 8];
        hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
            .extract(&self.0)
            .expand(&[b"skep data key id"], Length(id.len()))
            .and_then(|okm| okm.fill(&mut id))
            .expect("eight bytes are within what HKDF gives");
        u64::from_le_bytes(id)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({:016x})", self.id())
    }
}

/// The bytes are not what was sealed, or were sealed with another key, number or associated data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the contents do not match their seal")]
pub struct SealBroken;

/// The key of one sealed file.
pub struct SegmentKey(LessSafeKey);

impl SegmentKey {
    /// The key of the file with this salt.
    pub fn derive(key: &DataKey, salt: &[u8; SALT_BYTES]) -> Self {
        let unbound = hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
            .extract(&key.0)
            .expand(&[b"skep sealed file"], &AES_256_GCM)
            .map(UnboundKey::from)
            .expect("a key's length is within what HKDF gives");
        Self(LessSafeKey::new(unbound))
    }

    /// Seals all of `plain` in place and appends the tag. `number` must be new for this key.
    pub fn seal_in_place(&self, number: u64, aad: &[u8], plain: &mut Vec<u8>) {
        let tag = self.seal_slice(number, aad, plain);
        plain.extend_from_slice(&tag);
    }

    /// Seals a slice in place and gives back the tag that belongs behind it. `number` must be new for this key.
    pub fn seal_slice(&self, number: u64, aad: &[u8], plain: &mut [u8]) -> [u8; TAG_BYTES] {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(number), Aad::from(aad), plain)
            .expect("a batch is far below AES-GCM's limit of 64 GiB");
        let mut bytes = [0; TAG_BYTES];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Opens `sealed` (contents and tag) in place, leaving the contents. After an error the bytes are of no use.
    pub fn open_in_place(&self, number: u64, aad: &[u8], sealed: &mut Vec<u8>) -> Result<(), SealBroken> {
        let plain = self.0.open_in_place(nonce(number), Aad::from(aad), sealed).map_err(|_| SealBroken)?.len();
        sealed.truncate(plain);
        Ok(())
    }
}

impl fmt::Debug for SegmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SegmentKey")
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

pub(super) struct Length(pub(super) usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::entropy::SeededEntropy;

    fn check(number: u64, aad: &[u8], salt: u8, flip: Option<usize>) -> Result<Vec<u8>, SealBroken> {
        let key = DataKey::from_bytes([7; 32]);
        let mut bytes = b"thirteen bees".to_vec();
        SegmentKey::derive(&key, &[1; 32]).seal_in_place(5, b"header", &mut bytes);
        if let Some(at) = flip {
            bytes[at] ^= 1;
        }
        SegmentKey::derive(&key, &[salt; 32]).open_in_place(number, aad, &mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn what_was_sealed_opens_only_unchanged_and_in_its_place() {
        assert_eq!(check(5, b"header", 1, None), Ok(b"thirteen bees".to_vec()));
        assert_eq!(check(6, b"header", 1, None), Err(SealBroken));
        assert_eq!(check(5, b"other", 1, None), Err(SealBroken));
        assert_eq!(check(5, b"header", 2, None), Err(SealBroken));
        for at in 0..13 + TAG_BYTES {
            assert_eq!(check(5, b"header", 1, Some(at)), Err(SealBroken));
        }
    }

    #[test]
    fn a_key_shows_its_id_and_nothing_else() {
        let key = DataKey::generate(&mut SeededEntropy::new(1));
        assert_ne!(key.id(), DataKey::generate(&mut SeededEntropy::new(2)).id());
        assert_eq!(format!("{key:?}"), format!("DataKey({:016x})", key.id()));
    }

    #[test]
    fn a_passphrase_gives_the_key_that_the_standard_says() {
        // PBKDF2-HMAC-SHA256 of "password" under 32 zeros, two rounds, as Python's hashlib gives it.
        let key = DataKey::from_passphrase(b"password", &[0; SALT_BYTES], 2);
        let hex: String = key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "65aed99c53d8cdcfac92d1632db420fb921d0279602d1fc08528f0f4e2d80cc3");
        assert_ne!(key, DataKey::from_passphrase(b"password", &[0; SALT_BYTES], 3));
    }

    #[test]
    fn the_derivation_never_changes() {
        let key = DataKey::from_bytes([7; 32]);
        let mut bytes = b"bee".to_vec();
        SegmentKey::derive(&key, &[1; 32]).seal_in_place(1, b"", &mut bytes);
        // Sealed files outlive the program that wrote them.
        let expected = [125, 187, 146, 5, 171, 93, 243, 213, 228, 171, 149, 135, 218, 32, 181, 14, 129, 14, 32];
        assert_eq!((key.id(), bytes), (0xbcda309ffebe3bde, expected.to_vec()));
    }
}
