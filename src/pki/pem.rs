//! PEM text around DER bytes (RFC 7468).

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::PkiError;

/// Certificates in PEM text, in order; at least one. `what` names them in errors.
pub(super) fn certificates(text: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    if text.len() > MAX_BUNDLE_BYTES {
        return Err(PkiError::TooLarge { what, limit: MAX_BUNDLE_BYTES });
    }
    let chain = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| PkiError::Unreadable { what })?;
    if chain.is_empty() { Err(PkiError::Unreadable { what }) } else { Ok(chain) }
}

/// PEM text of `der`. Wiped when dropped, because `der` may be a private key.
pub(super) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    // Room for everything from the start: a string that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * der.len() + 2 * label.len() + 64));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bytes = [group[0], group.get(1).copied().unwrap_or(0), group.get(2).copied().unwrap_or(0)];
            let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
            for position in 0..4_usize {
                let digit = ALPHABET[(bits >> (18 - 6 * position)) as usize & 63];
                text.push(if position > group.len() { '=' } else { char::from(digit) });
            }
        }
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Root bundles and chains hold a few certificates of at most a few KiB.
const MAX_BUNDLE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_encoded_is_read_back() {
        for length in [1, 2, 3, 47, 48, 49, 138] {
            let der: Vec<u8> = (0..length).collect();
            let text = encode("CERTIFICATE", &der);
            assert_eq!(certificates(&text, "test").unwrap(), [CertificateDer::from(der)]);
        }
    }
}
