//! The key of an encrypted store: 256 bits from the kernel, shown to nobody, wiped from memory when dropped.

use ring::rand::SecureRandom;
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// What a key's text begins with.
const PREFIX: &str = "relay-key-v1:";

/// A store's key. Its text form is `relay-key-v1:` and 64 hexadecimal digits.
pub struct Key([u8; 32]);

/// Why a text is not a key. It never repeats the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this is not a storage key: it must be `relay-key-v1:` and 64 hexadecimal digits; make one with `relay keygen`"
)]
pub struct KeyError;

impl Key {
    /// A fresh key; none when the kernel gives no random bytes.
    pub fn generate() -> Option<Key> {
        let mut key = Key([0; 32]);
        ring::rand::SystemRandom::new().fill(&mut key.0).ok()?;
        Some(key)
    }

    /// Reads the text form; space around it does not matter.
    pub fn parse(text: &str) -> Result<Key, KeyError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(KeyError)?.as_bytes();
        let digit = |byte: u8| (byte as char).to_digit(16).map(|value| value as u8).ok_or(KeyError);
        let mut key = Key([0; 32]);
        if digits.len() != 2 * key.0.len() {
            return Err(KeyError);
        }
        for (byte, pair) in key.0.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(key)
    }

    /// The text form, for the key's file and nothing else.
    pub fn to_text(&self) -> Zeroizing<String> {
        use fmt::Write;
        // Room for all of it at once: a string that grows leaves its former self behind.
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 64));
        text.push_str(PREFIX);
        for byte in self.0 {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Clone for Key {
    fn clone(&self) -> Key {
        Key(self.0)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_shows_itself_to_nobody() {
        let key = Key::generate().unwrap();
        let text = key.to_text();
        assert_eq!(Key::parse(&format!(" {}\n", *text)).unwrap().0, key.0);
        assert_eq!(format!("{key:?}"), "Key(..)");
        for bad in
            ["", "relay-key-v1:", &text[1..], &text[..text.len() - 1], &format!("{}0", *text), &text.replace('v', "g")]
        {
            assert!(Key::parse(bad).is_err());
        }
        assert_ne!(Key::generate().unwrap().0, key.0);
    }
}
