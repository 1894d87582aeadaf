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
        encode_base64(line, &mut text);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// Appends `bytes` in standard base64, padded.
pub(super) fn encode_base64(bytes: &[u8], text: &mut String) {
    for group in bytes.chunks(3) {
        let bytes = [group[0], group.get(1).copied().unwrap_or(0), group.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        for position in 0..4_usize {
            let digit = ALPHABET[(bits >> (18 - 6 * position)) as usize & 63];
            text.push(if position > group.len() { '=' } else { char::from(digit) });
        }
    }
}

/// The bytes of standard base64, padded or not; `None` for anything that no encoder writes, stray bits at its end
/// included.
pub(super) fn decode_base64(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digits = match text.strip_suffix('=') {
        Some(rest) if text.len().is_multiple_of(4) => rest.strip_suffix('=').unwrap_or(rest),
        Some(_) => return None,
        None => text,
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 4 * 3 + 3));
    for group in digits.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for position in 0..4 {
            let digit = group.get(position).map_or(Some(0), |byte| ALPHABET.iter().position(|known| known == byte))?;
            bits |= (digit as u32) << (18 - 6 * position);
        }
        let [_, triple @ ..] = bits.to_be_bytes();
        let whole = group.len().checked_sub(1).filter(|whole| *whole > 0)?;
        if triple[whole..].iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(&triple[..whole]);
    }
    Some(bytes)
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

    #[test]
    fn base64_is_read_back_padded_or_not_and_only_as_it_is_written() {
        for length in 0..50 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte ^ 0xA5).collect();
            let mut text = String::new();
            encode_base64(&bytes, &mut text);
            assert_eq!(decode_base64(&text).as_deref(), Some(&bytes));
            assert_eq!(decode_base64(text.trim_end_matches('=')).as_deref(), Some(&bytes));
        }
        for text in ["A", "AB", "ABC", "AA=", "A===", "====", "AAAA=", "AA==A", "A A=", "AA-_", "é"] {
            assert_eq!(decode_base64(text), None, "{text}");
        }
    }
}
