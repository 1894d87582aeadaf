//! The bytes of a node's key file: its private key and its data keys, in the clear or sealed under the unlock key.
//!
//! ```text
//! -----BEGIN SKEP KEY FILE-----
//! Format: 1
//! Min-Reader: 1
//! Lock-Version: 17                                      the swarm's settings that decided whether it is sealed
//! Unlock-Key: 0123456789abcdef                          sealed files only: the id of the unlock key
//! Salt: 32 bytes in base64                              sealed files only
//!
//! the body in base64, 64 characters a line
//! -----END SKEP KEY FILE-----
//!
//! contents = flags u8, number of data keys u8, data keys of 32 bytes (newest first), private key (PKCS#8 DER)
//! body     = contents, CRC-32 of headers and contents   in the clear
//!          | AES-256-GCM of contents, tag               sealed: the key is HKDF-SHA-256 of the unlock key under the salt
//! ```
//!
//! Every writing has a new random salt, so that no key and nonce (twelve zeros) are used twice. The associated data of the
//! seal is everything from the first header to the empty line. Flag 1: the newest data key is to be replaced. Flag 2: the
//! private key is to be replaced. Unknown headers and flags are refused: whoever adds one that older readers may ignore
//! raises `Format` only.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use zeroize::Zeroizing;

use super::seal::{DataKey, SALT_BYTES, TAG_BYTES};
use super::unlock::UnlockKey;
use super::{PrivateKey, pem};
use crate::sys::entropy::Entropy;
use crate::types::Revision;

/// What a key file holds. Its `Debug` shows ids of keys only.
#[derive(Clone, Debug)]
pub struct KeyFile {
    /// The private key of the node's certificate.
    pub node_key: PrivateKey,
    /// What seals log and snapshots, newest first: the newest seals what is written from now on, the others are there
    /// because files may still name them. Never empty.
    pub data_keys: Vec<DataKey>,
    /// The newest data key is to be replaced, when no replacement is under way any more.
    pub rotate: bool,
    /// The private key is to be replaced, with a new certificate.
    pub renew: bool,
    /// What the file is sealed under.
    pub lock: Lock,
}

/// What a key file is sealed under, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// The unlock key; `None`: in the clear.
    pub key: Option<UnlockKey>,
    /// The version of the swarm's settings that said so; zero before any was heard of.
    pub version: Revision,
}

/// Whether a swarm's word about the lock is to be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is what is so already, or older than that.
    Old,
    /// It is to be done.
    New,
    /// It contradicts what was followed before, under the same version: one of them is not the swarm's.
    Contradiction,
}

impl Lock {
    /// Judges another word than the one that is followed now.
    pub fn judge(&self, word: &Self) -> Word {
        if self.key == word.key || word.version < self.version {
            Word::Old
        } else if word.version == self.version {
            Word::Contradiction
        } else {
            Word::New
        }
    }
}

impl KeyFile {
    /// The file of a new node, in the clear.
    pub fn new(node_key: PrivateKey, data_key: DataKey) -> Self {
        Self { node_key, data_keys: vec![data_key], rotate: false, renew: false, lock: Lock::default() }
    }

    /// Follows the swarm's word about the lock. Keys that lay there in the clear, or under another unlock key, may have
    /// been copied: what is sealed anew is to be replaced.
    pub fn follow(&mut self, word: Lock) {
        if word.key.is_some() {
            (self.rotate, self.renew) = (true, true);
        }
        self.lock = word;
    }

    /// The file's text. Wiped when dropped.
    ///
    /// # Panics
    ///
    /// With no data keys, or more than 255.
    pub fn encode(&self, entropy: &mut dyn Entropy) -> Zeroizing<String> {
        let mut head = format!("Format: {FORMAT}\nMin-Reader: {FORMAT}\nLock-Version: {}\n", self.lock.version.0);
        let mut contents = self.contents();
        match &self.lock.key {
            Some(key) => {
                let mut salt = [0; SALT_BYTES];
                entropy.fill(&mut salt);
                head.push_str(&format!("Unlock-Key: {:016x}\nSalt: ", key.id()));
                pem::encode_base64(&salt, &mut head);
                head.push('\n');
                let tag = derive(key, &salt)
                    .seal_in_place_separate_tag(nonce(), Aad::from(head.as_bytes()), &mut contents)
                    .expect("the contents are far below AES-GCM's limit of 64 GiB");
                contents.extend_from_slice(tag.as_ref());
            }
            None => {
                let crc = checksum(&head, &contents);
                contents.extend_from_slice(&crc.to_le_bytes());
            }
        }
        // Room for everything from the start: a string that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(head.len() + 2 * contents.len() + 128));
        text.push_str(BEGIN);
        text.push_str(&head);
        text.push('\n');
        for line in contents.chunks(48) {
            pem::encode_base64(line, &mut text);
            text.push('\n');
        }
        text.push_str(END);
        text
    }

    fn contents(&self) -> Zeroizing<Vec<u8>> {
        let keys = u8::try_from(self.data_keys.len()).expect("there are a few data keys");
        assert!(keys > 0, "a node has a data key");
        let key = self.node_key.pkcs8();
        let mut contents = Zeroizing::new(Vec::with_capacity(2 + 32 * self.data_keys.len() + key.len() + TAG_BYTES));
        contents.push((u8::from(self.rotate) * ROTATE) | (u8::from(self.renew) * RENEW));
        contents.push(keys);
        for key in &self.data_keys {
            contents.extend_from_slice(key.expose());
        }
        contents.extend_from_slice(key);
        contents
    }

    fn from_contents(contents: &[u8], lock: Lock) -> Option<Self> {
        let (&[flags, count], rest) = contents.split_first_chunk::<2>()?;
        if flags & !(ROTATE | RENEW) != 0 || count == 0 {
            return None;
        }
        let (keys, key) = rest.split_at_checked(32 * usize::from(count))?;
        let data_keys = keys.chunks_exact(32).map(|key| key.try_into().ok().map(DataKey::from_bytes));
        Some(Self {
            node_key: PrivateKey::from_pkcs8(Zeroizing::new(key.to_vec()), "node key").ok()?,
            data_keys: data_keys.collect::<Option<_>>()?,
            rotate: flags & ROTATE != 0,
            renew: flags & RENEW != 0,
            lock,
        })
    }
}

/// A key file that was read.
#[derive(Clone, Debug)]
pub enum Read {
    /// It was in the clear.
    Open(KeyFile),
    /// It is sealed.
    Locked(Locked),
}

/// A sealed key file.
#[derive(Clone)]
pub struct Locked {
    head: String,
    version: Revision,
    key_id: u64,
    salt: [u8; SALT_BYTES],
    body: Vec<u8>,
}

impl fmt::Debug for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Locked under {:016x} as of {}", self.key_id, self.version)
    }
}

impl Locked {
    /// Opens it.
    ///
    /// # Errors
    /// [`KeyFileError::WrongKey`], and [`KeyFileError::Damaged`] when the key is the right one and the contents are not.
    pub fn unlock(&self, key: &UnlockKey) -> Result<KeyFile, KeyFileError> {
        if key.id() != self.key_id {
            return Err(KeyFileError::WrongKey);
        }
        let mut body = Zeroizing::new(self.body.clone());
        let contents = derive(key, &self.salt)
            .open_in_place(nonce(), Aad::from(self.head.as_bytes()), &mut body)
            .map_err(|_| KeyFileError::Damaged("its contents do not match their seal"))?;
        let lock = Lock { key: Some(key.clone()), version: self.version };
        KeyFile::from_contents(contents, lock).ok_or(KeyFileError::Damaged("its contents make no sense"))
    }
}

/// Why a key file cannot be used. No variant holds key material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// It holds something else than was written.
    #[error("{0}")]
    Damaged(&'static str),
    /// A newer program wrote it.
    #[error("it was written by a newer skep (format {min_reader}, this one reads up to {FORMAT})")]
    Newer {
        /// The oldest reader that understands it.
        min_reader: u32,
    },
    /// It is sealed under another unlock key.
    #[error("this is not the unlock key that its keys are sealed under")]
    WrongKey,
}

/// Reads a key file.
///
/// # Errors
/// [`KeyFileError::Damaged`] and [`KeyFileError::Newer`].
pub fn read(text: &str) -> Result<Read, KeyFileError> {
    let damaged = KeyFileError::Damaged;
    if text.len() > MAX_BYTES {
        return Err(damaged("it is longer than any key file"));
    }
    let inner = text.strip_prefix(BEGIN).and_then(|rest| rest.trim_end().strip_suffix(END.trim_end()));
    let inner = inner.ok_or(damaged("it does not begin or end as a key file does"))?;
    let (head, body) = inner.split_once("\n\n").ok_or(damaged("it has no contents"))?;
    let headers = Headers::read(head)?;
    let digits: Zeroizing<String> = Zeroizing::new(body.split('\n').collect());
    let body = pem::decode_base64(&digits).ok_or(damaged("its contents are not base64"))?;
    let head = format!("{head}\n");
    match headers.sealed {
        Some((key_id, salt)) => {
            let body = body.to_vec();
            Ok(Read::Locked(Locked { head, version: headers.version, key_id, salt, body }))
        }
        None => {
            let (contents, crc) = body.split_last_chunk::<4>().ok_or(damaged("it has no contents"))?;
            if checksum(&head, contents) != u32::from_le_bytes(*crc) {
                return Err(damaged("it does not match its checksum"));
            }
            let lock = Lock { key: None, version: headers.version };
            let file = KeyFile::from_contents(contents, lock).ok_or(damaged("its contents make no sense"))?;
            Ok(Read::Open(file))
        }
    }
}

struct Headers {
    version: Revision,
    sealed: Option<(u64, [u8; SALT_BYTES])>,
}

impl Headers {
    fn read(head: &str) -> Result<Self, KeyFileError> {
        let malformed = KeyFileError::Damaged("its headers make no sense");
        let mut lines = head.split('\n');
        let mut next = |name: &str| {
            let line = lines.next()?;
            line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned)
        };
        let number = |text: Option<String>| text.and_then(|text| text.parse::<u32>().ok());
        // The place of these two is the same in every format, past and future.
        number(next("Format")).ok_or(malformed)?;
        let min_reader = number(next("Min-Reader")).ok_or(malformed)?;
        if min_reader > FORMAT {
            return Err(KeyFileError::Newer { min_reader });
        }
        let version = next("Lock-Version").and_then(|text| text.parse().ok()).map(Revision).ok_or(malformed)?;
        let sealed = match next("Unlock-Key") {
            None => None,
            Some(id) => {
                let id = (id.len() == 16).then(|| u64::from_str_radix(&id, 16).ok()).flatten();
                let salt = next("Salt").and_then(|text| pem::decode_base64(&text)?.as_slice().try_into().ok());
                Some(id.zip(salt).ok_or(malformed)?)
            }
        };
        let expected = if sealed.is_some() { 5 } else { 3 };
        if head.split('\n').count() != expected {
            return Err(malformed);
        }
        Ok(Self { version, sealed })
    }
}

fn derive(key: &UnlockKey, salt: &[u8; SALT_BYTES]) -> LessSafeKey {
    let unbound = hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(key.expose())
        .expand(&[b"skep key file"], &AES_256_GCM)
        .map(UnboundKey::from)
        .expect("a key's length is within what HKDF gives");
    LessSafeKey::new(unbound)
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn checksum(head: &str, contents: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head.as_bytes());
    hasher.update(contents);
    hasher.finalize()
}

const FORMAT: u32 = 1;
const BEGIN: &str = "-----BEGIN SKEP KEY FILE-----\n";
const END: &str = "-----END SKEP KEY FILE-----\n";
const ROTATE: u8 = 1;
const RENEW: u8 = 2;
/// 255 data keys and the largest private key are a third of it.
const MAX_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::pki::generate_key;
    use crate::sys::entropy::SeededEntropy;

    fn unlock_key(byte: u8) -> UnlockKey {
        UnlockKey::from_bytes(&[byte; 32]).unwrap()
    }

    fn file(key: Option<UnlockKey>) -> KeyFile {
        KeyFile {
            data_keys: vec![DataKey::from_bytes([8; 32]), DataKey::from_bytes([7; 32])],
            rotate: true,
            lock: Lock { key, version: Revision(17) },
            ..KeyFile::new(generate_key(&mut SeededEntropy::new(1)), DataKey::from_bytes([0; 32]))
        }
    }

    fn encode(file: &KeyFile) -> String {
        file.encode(&mut SeededEntropy::new(2)).to_string()
    }

    /// Opens a file with whatever it takes.
    fn open(text: &str) -> Result<KeyFile, KeyFileError> {
        match read(text)? {
            Read::Open(file) => Ok(file),
            Read::Locked(locked) => locked.unlock(&unlock_key(9)),
        }
    }

    #[track_caller]
    fn assert_same(one: &KeyFile, other: &KeyFile) {
        assert_eq!(one.node_key.pkcs8(), other.node_key.pkcs8());
        assert_eq!((&one.data_keys, &one.lock), (&other.data_keys, &other.lock));
        assert_eq!((one.rotate, one.renew), (other.rotate, other.renew));
    }

    #[test]
    fn the_bytes_never_change() {
        for (name, key) in [("key-file", None), ("key-file-sealed", Some(unlock_key(9)))] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
            if std::env::var_os("SKEP_WRITE_GOLDEN").is_some() {
                std::fs::write(&path, encode(&file(key.clone()))).unwrap();
            }
            let golden = std::fs::read_to_string(&path).unwrap();
            assert_eq!(encode(&file(key.clone())), golden, "{name}");
            assert_same(&open(&golden).unwrap(), &file(key));
        }
    }

    #[test]
    fn a_sealed_file_shows_nothing_and_opens_with_its_key_only() {
        let sealed = file(Some(unlock_key(9)));
        let text = encode(&sealed);
        let Read::Locked(locked) = read(&text).unwrap() else { panic!("it is sealed") };
        assert_same(&locked.unlock(&unlock_key(9)).unwrap(), &sealed);
        assert_eq!(locked.unlock(&unlock_key(8)).unwrap_err(), KeyFileError::WrongKey);
        // The same contents in the clear have these, and every writing looks different.
        let mut shown = String::new();
        pem::encode_base64(&sealed.contents()[..48], &mut shown);
        assert!(encode(&file(None)).contains(&shown) && !text.contains(&shown));
        assert_ne!(*sealed.encode(&mut SeededEntropy::new(3)), text);
        let debug = format!("{sealed:?} {locked:?}");
        assert!(!debug.contains("8, 8") && !debug.contains("9, 9"), "{debug}");
    }

    #[test]
    fn what_a_newer_program_wrote_is_refused_and_what_only_adds_is_not() {
        let text = encode(&file(None));
        let newer = text.replace("Format: 1\nMin-Reader: 1", "Format: 3\nMin-Reader: 2");
        assert_eq!(open(&newer).unwrap_err(), KeyFileError::Newer { min_reader: 2 });
        assert!(matches!(open(&text.replace("Format: 1", "Format: x")), Err(KeyFileError::Damaged(_))));
        for odd in ["", "x", BEGIN, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert!(matches!(open(odd), Err(KeyFileError::Damaged(_))), "{odd}");
        }
        assert!(matches!(open(&text.replace("Lock-Version", "Padlock")), Err(KeyFileError::Damaged(_))));
        assert!(matches!(open(&text.replace("\n\n", "\nMore: 1\n\n")), Err(KeyFileError::Damaged(_))));
        assert!(matches!(open(&"x".repeat(MAX_BYTES + 1)), Err(KeyFileError::Damaged(_))));
    }

    #[test]
    fn a_word_of_the_swarm_is_followed_when_it_is_newer() {
        let lock = |key: Option<u8>, version| Lock { key: key.map(unlock_key), version: Revision(version) };
        let check = |now: &Lock, word: &Lock, expected: Word| assert_eq!(now.judge(word), expected, "{now:?} {word:?}");
        check(&lock(None, 0), &lock(None, 0), Word::Old);
        check(&lock(None, 0), &lock(Some(1), 5), Word::New);
        check(&lock(Some(1), 5), &lock(Some(1), 5), Word::Old);
        check(&lock(Some(1), 5), &lock(Some(1), 9), Word::Old);
        check(&lock(Some(1), 5), &lock(Some(2), 4), Word::Old);
        check(&lock(Some(1), 5), &lock(Some(2), 5), Word::Contradiction);
        check(&lock(Some(1), 5), &lock(Some(2), 6), Word::New);
        check(&lock(Some(1), 5), &lock(None, 5), Word::Contradiction);
        check(&lock(Some(1), 5), &lock(None, 6), Word::New);
        let mut file = KeyFile { rotate: false, ..file(None) };
        file.follow(lock(Some(1), 18));
        assert!(file.rotate && file.renew && file.lock == lock(Some(1), 18));
        (file.rotate, file.renew) = (false, false);
        file.follow(lock(None, 19));
        assert!(!file.rotate && !file.renew && file.lock == lock(None, 19));
    }

    proptest! {
        #[test]
        fn a_changed_file_is_refused(sealed: bool, at in 0..900_usize, byte in 32..127_u8) {
            let original = file(sealed.then(|| unlock_key(9)));
            let text = encode(&original);
            let mut bytes = text.clone().into_bytes();
            let at = at % (bytes.len() - 1);
            bytes[at] = byte;
            let changed = String::from_utf8(bytes).unwrap();
            match open(&changed) {
                Ok(_) => prop_assert!(changed == text),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,300}", body in "[A-Za-z0-9+/=\n]{0,300}") {
            prop_assert!(open(&text).is_err());
            let made = format!("{BEGIN}Format: 1\nMin-Reader: 1\nLock-Version: 0\n\n{body}\n{END}");
            prop_assert!(open(&made).is_err());
        }
    }
}
