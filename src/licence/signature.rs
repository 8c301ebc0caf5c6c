//! The vendor's Ed25519 keys: the private one that signs documents, the public one that this build believes.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// What a signing key's text begins with.
const PREFIX: &str = "relay-signing-key-v1:";
/// Signed before the payload, so that a signature under a licence means nothing elsewhere, and the other way round.
const DOMAIN: &[u8] = b"relay-licence-v1:";
/// What is believed when the build was given nothing else. Its private half lies in `scripts/evaluation.key`: anybody can
/// make licences for such a build, and it says so.
const EVALUATION: &str = "c4e572b73f31bd94656f11a5e76016530fffa86d1d85e5bf8af8c0c908e97315";
/// The vendor's key: given when the program is built.
const VENDOR: Option<&str> = option_env!("RELAY_VENDOR_PUBLIC_KEY");
/// The key of this build. Worked out when it is built, so that a build with a mistyped key fails instead of believing some
/// other one; signatures under 32 zeros can be forged by anybody.
const OF_BUILD: PublicKey = match VENDOR {
    Some(text) => vendor_key(text),
    None => vendor_key(EVALUATION),
};

const fn vendor_key(text: &str) -> PublicKey {
    let Some(bytes) = bytes_of_hex(text.trim_ascii()) else {
        panic!("RELAY_VENDOR_PUBLIC_KEY must be 64 hexadecimal digits, as `relay-license keygen` prints them");
    };
    let mut sum = 0;
    let mut at = 0;
    while at < bytes.len() {
        sum |= bytes[at];
        at += 1;
    }
    assert!(sum != 0, "RELAY_VENDOR_PUBLIC_KEY is all zeros, which is nobody's key");
    PublicKey(bytes)
}

/// Whether this build believes the evaluation key instead of the vendor's.
pub fn is_evaluation_build() -> bool {
    PublicKey::parse(EVALUATION) == Some(OF_BUILD)
}

/// The public half: what documents are checked against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The one this build was made with.
    pub const fn of_build() -> PublicKey {
        OF_BUILD
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<PublicKey> {
        bytes_of_hex(text.trim()).map(PublicKey)
    }

    pub(super) fn believes(self, payload: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(&signed_bytes(payload), signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

/// A text that is no signing key. It never repeats the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this is not a signing key: it must be `relay-signing-key-v1:` and 64 hexadecimal digits; `relay-license keygen` makes one"
)]
pub struct SigningKeyError;

/// The private half, which the vendor alone has. Wiped from memory when it is dropped.
pub struct SigningKey([u8; 32]);

impl SigningKey {
    /// From 32 random bytes.
    pub fn from_random(seed: [u8; 32]) -> SigningKey {
        SigningKey(seed)
    }

    /// Reads the text form; space around it does not matter.
    pub fn parse(text: &str) -> Result<SigningKey, SigningKeyError> {
        text.trim().strip_prefix(PREFIX).and_then(bytes_of_hex).map(SigningKey).ok_or(SigningKeyError)
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

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        let mut public = PublicKey([0; 32]);
        public.0.copy_from_slice(self.pair().public_key().as_ref());
        public
    }

    pub(super) fn sign(&self, payload: &[u8]) -> Vec<u8> {
        self.pair().sign(&signed_bytes(payload)).as_ref().to_vec()
    }

    fn pair(&self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&self.0).expect("any 32 bytes are a seed")
    }
}

impl Drop for SigningKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SigningKey(..)")
    }
}

fn signed_bytes(payload: &[u8]) -> Vec<u8> {
    [DOMAIN, payload].concat()
}

pub(super) const fn bytes_of_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    let mut at = 0;
    while at < bytes.len() {
        let high = (digits[2 * at] as char).to_digit(16);
        let low = (digits[2 * at + 1] as char).to_digit(16);
        let (Some(high), Some(low)) = (high, low) else { return None };
        bytes[at] = (high << 4 | low) as u8;
        at += 1;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_evaluation_key_of_the_scripts_is_the_one_that_evaluation_builds_believe() {
        let key = SigningKey::parse(include_str!("../../scripts/evaluation.key")).unwrap();
        assert_eq!(key.public().to_string(), EVALUATION);
        if is_evaluation_build() {
            assert_eq!(PublicKey::of_build(), key.public());
        }
    }

    #[test]
    fn the_key_of_a_build_is_64_hexadecimal_digits_or_there_is_no_build() {
        assert_eq!(vendor_key(&format!(" {}\n", EVALUATION.to_uppercase())), vendor_key(EVALUATION));
        for bad in ["", "c4e5", &EVALUATION[1..], &EVALUATION.replace('c', "g"), &"0".repeat(64), &"é".repeat(32)] {
            let built = std::panic::catch_unwind(|| vendor_key(bad));
            assert!(built.is_err(), "{bad}");
        }
    }

    #[test]
    fn a_signing_key_reads_back_and_shows_itself_to_nobody() {
        let key = SigningKey::from_random([7; 32]);
        assert_eq!(SigningKey::parse(&format!("{}\n", *key.to_text())).unwrap().public(), key.public());
        assert_eq!(format!("{key:?}"), "SigningKey(..)");
        for bad in ["", PREFIX, &key.to_text()[1..], &format!("{}0", *key.to_text())] {
            assert!(SigningKey::parse(bad).is_err());
        }
    }

    #[test]
    fn a_signature_is_for_licences_alone_and_for_one_key() {
        let key = SigningKey::from_random([7; 32]);
        let signature = key.sign(b"text");
        assert!(key.public().believes(b"text", &signature));
        assert!(!key.public().believes(b"texu", &signature));
        assert!(!SigningKey::from_random([8; 32]).public().believes(b"text", &signature));
        assert!(!key.public().believes(b"text", &signature[..63]));
        assert!(!key.public().believes(b"text", key.pair().sign(b"text").as_ref()));
    }
}
