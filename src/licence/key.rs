//! A licence key: `ar_<tier>_<random>_<checksum>`. A typing error is found without asking anybody, and named.

use crate::base::tier::Tier;
use sha2::{Digest, Sha256};
use std::fmt;
use zeroize::Zeroizing;

/// Random characters of a key.
const RANDOM_LENGTH: usize = 16;
/// Characters of the checksum.
const CHECKSUM_LENGTH: usize = 4;
/// What an API key begins with: often pasted where a licence key belongs.
const API_KEY_PREFIX: &str = "ar_key_";
/// Digits of base 36, and all that random part and checksum may hold.
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Why a text is no licence key. It never repeats the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// It does not begin as one.
    #[error("this is not a licence key: one begins with ar_pro_, ar_team_ or ar_ent_")]
    Prefix,
    /// It is a key for agents.
    #[error(
        "this is an API key (ar_key_…), which agents connect with; a licence key begins with ar_pro_, ar_team_ or ar_ent_"
    )]
    ApiKey,
    /// Somebody's editor made its letters large.
    #[error("licence keys are written in lower case; copy it again as it was issued")]
    Case,
    /// A tier nobody sells.
    #[error("the licence key names a tier that does not exist: after ar_ comes pro, team or ent")]
    Tier,
    /// Characters are missing or too many.
    #[error("the licence key has {found} characters where one of its tier has {expected}; copy all of it")]
    Length {
        /// How many it has.
        found: usize,
        /// How many it should have.
        expected: usize,
    },
    /// A character that no key has.
    #[error(
        "the licence key holds a character that none has: after its tier come digits and small letters, and one _ before the last four"
    )]
    Character,
    /// A character was mistyped.
    #[error("the licence key has a typing error: its last four characters do not match the rest; copy it again")]
    Checksum,
}

/// What names a tier inside a key.
fn code(tier: Tier) -> Option<&'static str> {
    match tier {
        Tier::Community => None,
        Tier::Pro => Some("pro"),
        Tier::Team => Some("team"),
        Tier::Enterprise => Some("ent"),
    }
}

/// A licence key whose checksum is right. Whether anybody issued it is not known yet.
#[derive(Clone, PartialEq, Eq)]
pub struct LicenceKey(Zeroizing<String>);

impl LicenceKey {
    /// Reads a key; space around it does not matter.
    pub fn parse(text: &str) -> Result<LicenceKey, KeyError> {
        let text = text.trim();
        if text.starts_with(API_KEY_PREFIX) {
            return Err(KeyError::ApiKey);
        }
        let is_meant = text.get(..3).is_some_and(|beginning| beginning.eq_ignore_ascii_case("ar_"));
        if is_meant && text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(KeyError::Case);
        }
        let rest = text.strip_prefix("ar_").ok_or(KeyError::Prefix)?;
        let (named, rest) = rest.split_once('_').ok_or(KeyError::Prefix)?;
        if !Tier::ALL.into_iter().any(|tier| code(tier) == Some(named)) {
            return Err(KeyError::Tier);
        }
        let expected = "ar__".len() + named.len() + RANDOM_LENGTH + 1 + CHECKSUM_LENGTH;
        let found = text.chars().count();
        if found != expected {
            return Err(KeyError::Length { found, expected });
        }
        let digits = |part: &str| part.bytes().all(|byte| DIGITS.contains(&byte));
        match rest.split_once('_') {
            Some((random, sum)) if random.len() == RANDOM_LENGTH && digits(random) && digits(sum) => {}
            _ => return Err(KeyError::Character),
        }
        let (body, sum) = text.rsplit_once('_').expect("it has just been split there");
        if checksum(body).as_slice() != sum.as_bytes() {
            return Err(KeyError::Checksum);
        }
        Ok(LicenceKey(Zeroizing::new(text.to_owned())))
    }

    /// The key of `tier` with these random bits; none for a tier that is not sold.
    pub fn from_random(tier: Tier, random: u128) -> Option<LicenceKey> {
        let code = code(tier)?;
        let mut text = Zeroizing::new(String::with_capacity(64));
        text.push_str("ar_");
        text.push_str(code);
        text.push('_');
        let mut rest = random;
        for _ in 0..RANDOM_LENGTH {
            text.push(char::from(DIGITS[(rest % 36) as usize]));
            rest /= 36;
        }
        let sum = checksum(&text);
        text.push('_');
        text.extend(sum.map(char::from));
        Some(LicenceKey(text))
    }

    /// The hash that stands for it wherever it is not itself needed.
    pub fn hash(&self) -> KeyHash {
        KeyHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// Its beginning, for people to recognise it by.
    pub fn shown(&self) -> String {
        let random_at = self.0.len() - RANDOM_LENGTH - 1 - CHECKSUM_LENGTH;
        format!("{}…", &self.0[..random_at + 4])
    }

    /// The key itself: for the file it is kept in and the person it is issued to, and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for LicenceKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("LicenceKey(..)")
    }
}

/// The last four base-36 digits of the digest, read as one big-endian number.
fn checksum(body: &str) -> [u8; CHECKSUM_LENGTH] {
    const MODULUS: u32 = 36_u32.pow(CHECKSUM_LENGTH as u32);
    let mut rest =
        Sha256::digest(body.as_bytes()).iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % MODULUS);
    let mut sum = [b'0'; CHECKSUM_LENGTH];
    for digit in sum.iter_mut().rev() {
        *digit = DIGITS[(rest % 36) as usize];
        rest /= 36;
    }
    sum
}

/// SHA-256 of a licence key: what documents, the cache and the server know it by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<KeyHash> {
        super::signature::bytes_of_hex(text).map(KeyHash)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_digest_modulo_36_to_the_fourth() {
        // python3 -c 'import hashlib; n = int(hashlib.sha256(b"ar_pro_a1b2c3d4e5f6g7h8").hexdigest(), 16) % 36**4; …'
        assert_eq!(&checksum("ar_pro_a1b2c3d4e5f6g7h8"), b"1ht9");
        assert_eq!(&checksum("ar_ent_0000000000000000"), b"22ky");
    }

    #[test]
    fn a_key_reads_back_and_shows_only_its_beginning() {
        for tier in [Tier::Pro, Tier::Team, Tier::Enterprise] {
            for random in [0, 1, u128::MAX, 0x1234_5678_9abc_def0_1234_5678_9abc_def0] {
                let key = LicenceKey::from_random(tier, random).unwrap();
                assert_eq!(LicenceKey::parse(&format!(" {}\n", key.reveal())).unwrap(), key);
                assert!(
                    key.shown().chars().count() <= 13 && key.reveal().starts_with(key.shown().trim_end_matches('…'))
                );
                assert_eq!(KeyHash::parse(&key.hash().to_string()), Some(key.hash()));
                assert_eq!(format!("{key:?}"), "LicenceKey(..)");
            }
        }
        assert_eq!(LicenceKey::from_random(Tier::Community, 1), None);
    }

    #[test]
    fn each_typing_error_has_its_sentence() {
        let key = LicenceKey::from_random(Tier::Pro, 77).unwrap();
        let text = key.reveal();
        let refusal = |text: &str| LicenceKey::parse(text).unwrap_err();
        assert_eq!(refusal(""), KeyError::Prefix);
        assert_eq!(refusal("pro_abc"), KeyError::Prefix);
        assert_eq!(refusal("ar_"), KeyError::Prefix);
        assert_eq!(refusal("ar_key_0123456789"), KeyError::ApiKey);
        assert_eq!(refusal(&text.replace("pro", "gold")), KeyError::Tier);
        assert_eq!(refusal(&text.replace("pro", "community")), KeyError::Tier);
        assert_eq!(refusal(&text[..27]), KeyError::Length { found: 27, expected: 28 });
        assert_eq!(refusal(&format!("{text}0")), KeyError::Length { found: 29, expected: 28 });
        assert_eq!(refusal(&text.to_uppercase().replace("AR_PRO", "ar_pro")), KeyError::Case);
        assert_eq!(refusal(&text.to_uppercase()), KeyError::Case);
        assert_eq!(refusal(&format!("{}-", &text[..27])), KeyError::Character);
        assert_eq!(refusal(&format!("{}é", &text[..27])), KeyError::Character);
        assert_eq!(refusal(&text.replace("pro", "ent")), KeyError::Checksum);
    }

    #[test]
    fn one_character_changed_anywhere_is_found() {
        let mut missed = 0;
        for seed in 0..64_u128 {
            let key = LicenceKey::from_random(Tier::Team, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834))
                .unwrap();
            for at in 0..key.reveal().len() {
                for with in DIGITS {
                    let mut bytes = key.reveal().as_bytes().to_vec();
                    if bytes[at] != *with {
                        bytes[at] = *with;
                        missed += u32::from(LicenceKey::parse(std::str::from_utf8(&bytes).unwrap()).is_ok());
                    }
                }
            }
        }
        // 64 keys, 29 places, 35 other characters; a checksum of four digits lets 1 in 1.7 million through by chance.
        assert!(missed <= 1, "{missed}");
    }
}
