//! API keys.

use ring::digest::{SHA256, digest};
use ring::rand::{SystemRandom, generate};
use std::fmt::Write;

/// What every key begins with, so that people and secret scanners know one when they see it.
const KEY_PREFIX: &str = "arr_";
/// What a hash in the configuration begins with.
const HASH_PREFIX: &str = "sha256:";
/// Of a SHA-256 hash in hexadecimal.
const HASH_DIGITS: usize = 64;

/// A new key: 256 random bits.
///
/// # Errors
/// When the system has no random numbers.
pub(crate) fn new() -> anyhow::Result<String> {
    let bytes: [u8; 32] =
        generate(&SystemRandom::new()).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?.expose();
    Ok(format!("{KEY_PREFIX}{}", hexadecimal(&bytes)))
}

/// What the configuration holds of `key`.
///
/// A plain SHA-256: a key is 256 random bits, so there is nothing that guessing could find, and slow hashes, which
/// protect passwords that people think of, would only cost every request its milliseconds.
pub(crate) fn hash(key: &str) -> String {
    format!("{HASH_PREFIX}{}", hexadecimal(digest(&SHA256, key.as_bytes()).as_ref()))
}

/// Whether `text` is what [`hash`] makes.
pub(super) fn is_hash(text: &str) -> bool {
    text.strip_prefix(HASH_PREFIX).is_some_and(|digits| {
        digits.len() == HASH_DIGITS && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_what_sha256sum_prints() {
        let known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash("abc"), known);
        assert!(is_hash(known) && !is_hash(&known.to_uppercase()) && !is_hash(&known[..70]));
    }

    #[test]
    fn keys_differ() {
        let (one, other) = (new().unwrap(), new().unwrap());
        assert!(one != other && one.len() == 68 && one.starts_with("arr_"));
    }
}
