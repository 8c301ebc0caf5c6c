//! Identities: small integers with names, so that two of them cannot be swapped.

use sha2::{Digest, Sha256};
use std::fmt;

/// A shard: one thread, one core, one ring. Numbered from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ShardId(pub u16);

/// One connection on one shard. A stale id (the slot was used again) finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SessionId {
    /// Place in the shard's table.
    pub slot: u32,
    /// How often that place had been used before.
    pub generation: u32,
}

/// An agent's number on the wire: the first 8 bytes, little-endian, of SHA-256(name).
/// Told to the agent in WELCOME, written by it into each message, so nobody hashes names per message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct AgentId(pub u64);

impl AgentId {
    /// The id that belongs to `name`.
    pub fn of(name: &[u8]) -> AgentId {
        AgentId(first_word(&Sha256::digest(name)))
    }
}

/// The 64-bit message number that stands for a sender's textual message id (JSON wire).
/// The top bit is set: native numbers stay below 2^63, so the two never meet.
pub fn number_of_label(label: &[u8]) -> u64 {
    first_word(&Sha256::digest(label)) | NUMBER_FROM_LABEL
}

/// Set in numbers derived from a textual id; clear in numbers a native sender counts itself.
pub const NUMBER_FROM_LABEL: u64 = 1 << 63;

fn first_word(digest: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(word)
}

/// A message's identity: who sent it and that sender's number for it. The same for every recipient and retry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct MessageId {
    /// The sender.
    pub sender: AgentId,
    /// The sender's number for it.
    pub number: u64,
}

impl MessageId {
    /// The textual form as one number: its hexadecimal digits are the text.
    pub fn bits(self) -> u128 {
        u128::from(mix(self.number ^ self.sender.0)) << 64 | u128::from(self.sender.0)
    }

    /// The id in its textual form: 32 hex digits, the fast-changing half first so that short prefixes differ.
    pub fn parse(text: &str) -> Option<MessageId> {
        let (digits, []) = text.as_bytes().as_chunks::<16>() else { return None };
        let [mixed, sender] = digits else { return None };
        let (mixed, sender) = (hex_word(mixed)?, hex_word(sender)?);
        Some(MessageId { sender: AgentId(sender), number: unmix(mixed) ^ sender })
    }
}

/// What sixteen hexadecimal digits say. JSON clients name a message in each ACK, so this has one branch.
fn hex_word(digits: &[u8; 16]) -> Option<u64> {
    const NO_DIGIT: u8 = 0xF0;
    const VALUES: [u8; 256] = {
        let mut values = [NO_DIGIT; 256];
        let mut value = 0;
        while value < 16 {
            let digit = b"0123456789abcdef"[value];
            values[digit as usize] = value as u8;
            values[digit.to_ascii_uppercase() as usize] = value as u8;
            value += 1;
        }
        values
    };
    let values = digits.map(|digit| VALUES[usize::from(digit)]);
    let wrong = values.iter().fold(0, |wrong, value| wrong | value) & NO_DIGIT != 0;
    let word = values.iter().fold(0, |word, value| word << 4 | u64::from(*value));
    (!wrong).then_some(word)
}

impl MessageId {
    /// The bytes whose hex digits are the textual form: for writers that cannot afford a formatter per message.
    pub fn to_bytes(self) -> [u8; 16] {
        self.bits().to_be_bytes()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:032x}", self.bits())
    }
}

/// A bijection that spreads consecutive numbers (the finalizer of SplitMix64, Steele et al. 2014).
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn unmix(mut word: u64) -> u64 {
    word = (word ^ (word >> 31) ^ (word >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    word = (word ^ (word >> 27) ^ (word >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    word ^ (word >> 30) ^ (word >> 60)
}

/// A recipient's place in its own order. The epoch grows with each start of the daemon; the counter is
/// contiguous from 1 within it. `Sequence::default()` is before everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Sequence {
    /// Which start of the daemon.
    pub epoch: u32,
    /// Which message of this recipient since then.
    pub counter: u64,
}

/// Sixteen random bytes shown as a UUID: session ids and resume tokens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Token(pub [u8; 16]);

impl Token {
    /// Reads the form that `Display` writes.
    pub fn parse(text: &[u8]) -> Option<Token> {
        if text.len() == UUID_LENGTH { read_uuid(text).map(Token) } else { None }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, out)
    }
}

/// Characters of a UUID: 32 digits and four hyphens.
pub(super) const UUID_LENGTH: usize = 36;

/// Sixteen bytes in the form of a UUID (RFC 9562).
pub(super) fn write_uuid(bytes: &[u8; 16], out: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.write_str("-")?;
        }
        write!(out, "{byte:02x}")?;
    }
    Ok(())
}

/// The bytes that a UUID's digits say, wherever its hyphens are.
pub(super) fn read_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    let mut digits = text.iter().filter(|byte| **byte != b'-');
    for byte in &mut bytes {
        let high = char::from(*digits.next()?).to_digit(16)?;
        let low = char::from(*digits.next()?).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    digits.next().is_none().then_some(bytes)
}

// A resume token is a secret: its debug form says only that it is there.
impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(..)")
    }
}

/// Unpredictable tokens from a secret seed and a counter, so that the heart needs no randomness of its own.
#[derive(Clone)]
pub struct TokenSource {
    seed: [u8; 32],
    issued: u64,
}

impl TokenSource {
    /// Tokens that only the holder of `seed` can predict.
    pub fn new(seed: [u8; 32]) -> TokenSource {
        TokenSource { seed, issued: 0 }
    }

    /// The next token, in the form of a version-4 UUID (RFC 9562).
    pub fn issue(&mut self) -> Token {
        self.issued += 1;
        let digest = Sha256::new().chain_update(self.seed).chain_update(self.issued.to_le_bytes()).finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Token(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_survives_its_text() {
        for number in [0, 1, 2, 77, u64::MAX, 1 << 63, 0x1234_5678_9abc_def0] {
            let id = MessageId { sender: AgentId::of(b"alice"), number };
            assert_eq!(MessageId::parse(&id.to_string()), Some(id));
        }
        let text = MessageId { sender: AgentId(0xabcd_ef01_2345_6789), number: 5 }.to_string();
        assert_eq!(MessageId::parse(&text.to_uppercase()), MessageId::parse(&text));
        for wrong in ["", "xyz", &text[1..], &format!("{text}0"), &format!("{}é", &text[2..])] {
            assert_eq!(MessageId::parse(wrong), None, "{wrong}");
        }
        for at in 0..text.len() {
            for wrong in ["g", "G", "/", ":", "@", "`", " ", "-"] {
                let wrong = format!("{}{wrong}{}", &text[..at], &text[at + 1..]);
                assert_eq!(MessageId::parse(&wrong), None, "{wrong}");
            }
        }
    }

    #[test]
    fn consecutive_ids_differ_in_their_first_digits() {
        let text = |number| MessageId { sender: AgentId::of(b"alice"), number }.to_string();
        assert_ne!(text(1)[..4], text(2)[..4]);
    }

    #[test]
    fn tokens_read_back_and_never_print_in_debug() {
        let token = TokenSource::new([7; 32]).issue();
        assert_eq!(Token::parse(token.to_string().as_bytes()), Some(token));
        assert_eq!(Token::parse(b"short"), None);
        assert_eq!(format!("{token:?}"), "Token(..)");
    }
}
