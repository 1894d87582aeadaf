//! Join tokens: `SWMTKN-1-<digest>-<secret>`.
//!
//! The digest (SHA-256 of the PEM root bundle, 50 characters base36) tells a newcomer which root to trust; the secret
//! (16 random bytes, 25 characters base36) tells the swarm to let it in, and in which role: the role is not in the
//! token, the swarm keeps one token per role and compares.

use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};
use zeroize::Zeroize;

use super::PkiError;
use crate::codec::digest128;
use crate::sys::entropy::Entropy;
use crate::types::ObjectId;
use crate::types::ids::{base36, parse_base36};

/// A join token. Its `Display` is the token itself, its `Debug` hides the secret.
#[derive(Clone)]
pub struct JoinToken {
    /// SHA-256 of the root bundle.
    digest: [u8; 32],
    /// What the swarm compares.
    secret: u128,
}

impl JoinToken {
    /// A new token for a swarm with these root certificates.
    pub fn generate(root_pem: &str, entropy: &mut dyn Entropy) -> Self {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes);
        let secret = u128::from_be_bytes(bytes);
        bytes.zeroize();
        Self { digest: sha256(root_pem.as_bytes()), secret }
    }

    /// The digest of the root bundle as the token shows it.
    pub fn digest(&self) -> String {
        base36_digest(&self.digest)
    }

    /// SHA-256 of the secret as the token shows it: a swarm recognises the token by it, and cannot tell it.
    pub fn secret_digest(&self) -> [u8; 32] {
        let mut text = base36(self.secret);
        let digest = sha256(text.as_bytes());
        text.zeroize();
        digest
    }

    /// The id under which a swarm keeps the token: derived from [`Self::secret_digest`], so that it is found by its secret
    /// and made only once.
    pub fn object_id(&self) -> ObjectId {
        ObjectId(digest128(&[b"join token", &self.secret_digest()]))
    }

    /// Checks that `root_pem` is the root bundle that the token was made for.
    ///
    /// # Errors
    /// [`PkiError::RootMismatch`]: whoever sent the bundle is not a manager of the token's swarm.
    pub fn verify_root(&self, root_pem: &str) -> Result<(), PkiError> {
        let found = sha256(root_pem.as_bytes());
        if found == self.digest {
            return Ok(());
        }
        Err(PkiError::RootMismatch { expected: self.digest(), found: base36_digest(&found) })
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.split('-');
        if parts.next() != Some("SWMTKN") {
            return Err(TokenError::Prefix);
        }
        if parts.next() != Some("1") {
            return Err(TokenError::Version);
        }
        let (Some(digest), Some(secret), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::Parts);
        };
        let digest = parse_digest(digest).ok_or(TokenError::Digest)?;
        let secret = parse_base36(secret).ok_or(TokenError::Secret)?;
        Ok(Self { digest, secret })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SWMTKN-1-{}-{}", base36_digest(&self.digest), base36(self.secret))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SWMTKN-1-{}-<secret>", base36_digest(&self.digest))
    }
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// What is wrong with the text of a join token. Never shows the text: most of it may be a real secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is something else.
    #[error("invalid join token: it does not begin with SWMTKN")]
    Prefix,
    /// Version 2 belongs to FIPS-only swarms of Docker.
    #[error("invalid join token: it is not of version 1 (SWMTKN-1-...)")]
    Version,
    /// Cut off, or with something appended.
    #[error("invalid join token: it does not have four parts separated by `-`")]
    Parts,
    /// The third part.
    #[error("invalid join token: its third part is not a digest of 50 characters 0-9 and a-z")]
    Digest,
    /// The fourth part.
    #[error("invalid join token: its fourth part is not a secret of 25 characters 0-9 and a-z")]
    Secret,
}

impl TokenError {
    /// What to do about it.
    pub const fn hint(self) -> &'static str {
        "copy the whole token, as `skep token show --role manager` prints it on any manager"
    }
}

/// Whether two tokens are the same, in a time that depends on their lengths only. An empty token equals nothing, not
/// even another: it means that there is none.
pub fn same_secret(a: impl AsRef<[u8]>, b: impl AsRef<[u8]>) -> bool {
    let (a, b) = (a.as_ref(), b.as_ref());
    if a.len() != b.len() || a.is_empty() {
        return false;
    }
    // `black_box` keeps the compiler from leaving the loop at the first difference.
    let differences = a.iter().zip(b).fold(0_u8, |found, (a, b)| std::hint::black_box(found | (a ^ b)));
    differences == 0
}

/// The digest of a PEM root bundle as tokens show it: SHA-256, 50 characters base36.
pub fn root_digest(pem: &str) -> String {
    digest_text(pem.as_bytes())
}

/// SHA-256, 50 characters base36.
pub(super) fn digest_text(bytes: &[u8]) -> String {
    base36_digest(&sha256(bytes))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut output = [0; 32];
    output.copy_from_slice(digest(&SHA256, bytes).as_ref());
    output
}

/// Prints 256 bits as 50 characters, most significant first. 36^50 > 2^256.
fn base36_digest(bytes: &[u8; 32]) -> String {
    let mut number = *bytes;
    let mut digits = [b'0'; DIGEST_LENGTH];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in &mut number {
            let value = remainder << 8 | u32::from(*byte);
            *byte = (value / 36) as u8; // Below 256, because the remainder is below 36.
            remainder = value % 36;
        }
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[remainder as usize];
    }
    String::from_utf8_lossy(&digits).into_owned()
}

/// Reads what [`base36_digest`] prints; `None` for anything else, a number over 256 bits included.
fn parse_digest(text: &str) -> Option<[u8; 32]> {
    if text.len() != DIGEST_LENGTH {
        return None;
    }
    let mut number = [0_u8; 32];
    for character in text.bytes() {
        let mut carry = match character {
            b'0'..=b'9' => u32::from(character - b'0'),
            b'a'..=b'z' => u32::from(character - b'a') + 10,
            _ => return None,
        };
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = value as u8; // The low byte; the rest is carried.
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

/// Characters of a printed digest.
const DIGEST_LENGTH: usize = 50;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::sys::entropy::SeededEntropy;

    const GOLDEN: &str = "SWMTKN-1-1so4ucii0bd9x5eo25vxsidhbybz04lgq0rn75oio1sss5vsmq-bg3rc9mbhjsuarbvmvbw76fni";

    #[test]
    fn the_text_of_a_token_does_not_change() {
        let token = JoinToken::generate("root", &mut SeededEntropy::new(1));
        assert_eq!(token.to_string(), GOLDEN);
        assert_eq!(token.digest(), root_digest("root"));
        // Objects are stored under it: it must not change between versions.
        assert_eq!(token.object_id().to_string(), "bedc46qap960hg01ka2oo1v1r");
        assert_eq!(token.secret_digest(), sha256(&GOLDEN.as_bytes()[60..]));
    }

    #[test]
    fn a_digest_is_the_hash_as_one_big_number() {
        let mut one = [0; 32];
        one[31] = 37;
        assert_eq!(base36_digest(&one), format!("{:0>50}", "11"));
        // 2^256 - 1 in base 36, computed independently.
        let largest = "6dp5qcb22im238nr3wvp0ic7q99w035jmy2iw7i6n43d37jtof";
        assert_eq!(base36_digest(&[0xFF; 32]), largest);
        assert_eq!(parse_digest(largest), Some([0xFF; 32]));
    }

    #[test]
    fn a_token_names_what_is_wrong_with_it() {
        let good = JoinToken::generate("root", &mut SeededEntropy::new(1)).to_string();
        let (digest, secret) = (&good[9..59], &good[60..]);
        let check = |text: String, expected: TokenError| {
            assert_eq!(text.parse::<JoinToken>().map(|_| ()), Err(expected), "{text:?}");
        };
        check(String::new(), TokenError::Prefix);
        check("hello".into(), TokenError::Prefix);
        check(good.to_lowercase(), TokenError::Prefix);
        check(format!(" {good}"), TokenError::Prefix);
        check("SWMTKN".into(), TokenError::Version);
        check(format!("SWMTKN-2-0-{digest}-{secret}"), TokenError::Version);
        check(format!("SWMTKN-10-{digest}-{secret}"), TokenError::Version);
        check("SWMTKN-1".into(), TokenError::Parts);
        check(format!("SWMTKN-1-{digest}"), TokenError::Parts);
        check(format!("{good}-"), TokenError::Parts);
        check(format!("{good}-more"), TokenError::Parts);
        check(format!("SWMTKN-1-{}-{secret}", &digest[1..]), TokenError::Digest);
        check(format!("SWMTKN-1-{}-{secret}", digest.to_uppercase()), TokenError::Digest);
        check(format!("SWMTKN-1-{}-{secret}", "z".repeat(50)), TokenError::Digest);
        check(format!("SWMTKN-1-{}é-{secret}", &digest[2..]), TokenError::Digest);
        check(format!("SWMTKN-1-{digest}-"), TokenError::Secret);
        check(format!("{good}\n"), TokenError::Secret);
        check(format!("SWMTKN-1-{digest}-{}", &secret[1..]), TokenError::Secret);
        check(format!("SWMTKN-1-{digest}-{}", "z".repeat(25)), TokenError::Secret);
    }

    #[test]
    fn a_token_recognises_its_root_only() {
        let token = JoinToken::generate("root", &mut SeededEntropy::new(1));
        assert_eq!(token.verify_root("root"), Ok(()));
        let error = token.verify_root("root\n").unwrap_err();
        assert_eq!(error, PkiError::RootMismatch { expected: root_digest("root"), found: root_digest("root\n") });
        assert!(!error.hint().is_empty());
    }

    #[test]
    fn debug_hides_the_secret() {
        let token = JoinToken::generate("root", &mut SeededEntropy::new(1));
        let (shown, text) = (format!("{token:?}"), token.to_string());
        assert!(shown.contains(&token.digest()) && !shown.contains(&text[60..]), "{shown}");
    }

    #[test]
    fn tokens_are_equal_only_as_a_whole_and_empty_ones_never() {
        assert!(same_secret("SWMTKN-1-a-b", "SWMTKN-1-a-b"));
        assert!(!same_secret("SWMTKN-1-a-b", "SWMTKN-1-a-c"));
        assert!(!same_secret("SWMTKN-1-a-b", "TWMTKN-1-a-b"));
        assert!(!same_secret("SWMTKN-1-a-b", "SWMTKN-1-a-bb"));
        assert!(!same_secret("", ""));
    }

    proptest! {
        #[test]
        fn a_token_survives_printing(digest: [u8; 32], secret: u128) {
            let token = JoinToken { digest, secret };
            let read: JoinToken = token.to_string().parse().unwrap();
            prop_assert_eq!((read.digest, read.secret), (digest, secret));
        }

        #[test]
        fn no_text_panics_the_parser(text in ".{0,120}", cut in 0..100_usize, put in any::<char>()) {
            let _ = text.parse::<JoinToken>();
            let mut near = JoinToken { digest: [7; 32], secret: 9 }.to_string();
            if cut < near.len() {
                near.replace_range(cut..=cut, &put.to_string());
            }
            if let Ok(token) = near.parse::<JoinToken>() {
                prop_assert_eq!(token.to_string(), near);
            }
        }
    }
}
