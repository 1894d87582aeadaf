//! What a person who wants another root certificate sends. All that takes randomness is made here, once, so that the same
//! request sent again asks for the same.

use crate::pki::{self, JoinToken, PkiError, RootCa};
use crate::sys::entropy::Entropy;
use crate::types::api::NewRoot;
use crate::types::object::{JoinTokens, Sensitive};

/// A root made here, with join tokens for it.
///
/// # Errors
/// When `now_ms`, the wall clock, is no date that a certificate can hold.
pub fn own_root(now_ms: u64, entropy: &mut dyn Entropy) -> Result<NewRoot, PkiError> {
    let root = RootCa::generate(now_ms, entropy)?;
    Ok(with_tokens(root.certificate_pem(), root.key().to_pem().as_bytes().to_vec(), entropy))
}

/// A root that a person has, with join tokens for it. Whether it will do is for the manager to say; only text around a
/// certificate is left out, because the tokens hold the digest of the rest.
pub fn given_root(certificate_pem: &str, key_pem: Vec<u8>, entropy: &mut dyn Entropy) -> NewRoot {
    let facts = pki::root_facts(certificate_pem).unwrap_or_default();
    let certificate = match facts.as_slice() {
        [only] => only.pem.as_str(),
        _ => certificate_pem,
    };
    with_tokens(certificate, key_pem, entropy)
}

fn with_tokens(certificate: &str, key: Vec<u8>, entropy: &mut dyn Entropy) -> NewRoot {
    NewRoot {
        certificate: certificate.to_owned(),
        key: Sensitive(key),
        join_tokens: JoinTokens {
            worker: JoinToken::generate(certificate, entropy).to_string(),
            manager: JoinToken::generate(certificate, entropy).to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::sys::entropy::SeededEntropy;

    #[test]
    fn what_a_person_gives_is_sent_without_the_text_around_it() {
        let entropy = &mut SeededEntropy::new(3);
        let made = own_root(1_767_225_600_000, entropy).unwrap();
        let commented = format!("# our root\r\n{}\n\n", made.certificate.replace('\n', "\r\n"));
        let given = given_root(&commented, made.key.0.clone(), entropy);
        assert_eq!((&given.certificate, &given.key), (&made.certificate, &made.key));
        for token in [&given.join_tokens.worker, &given.join_tokens.manager] {
            token.parse::<JoinToken>().unwrap().verify_root(&made.certificate).unwrap();
        }
        assert_ne!(given.join_tokens.worker, given.join_tokens.manager);
        let shown = format!("{given:?}");
        assert!(
            !shown.contains("PRIVATE") && !shown.contains("SWMTKN") && !shown.contains("80, 82, 73, 86"),
            "{shown}"
        );
    }

    #[test]
    fn what_is_no_certificate_is_sent_as_it_is() {
        let given = given_root("hello", b"key".to_vec(), &mut SeededEntropy::new(3));
        assert_eq!((given.certificate.as_str(), given.key.0.as_slice()), ("hello", b"key".as_slice()));
    }
}
