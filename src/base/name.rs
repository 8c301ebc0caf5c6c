//! Names of agents and topics: what is allowed, and the one hash that finds their home.

use super::ShardId;
use super::limits::{NAME_BYTES_MAX, TOPIC_BYTES_MAX};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// A checked agent or topic name, cheap to clone.
pub type Name = Arc<str>;

/// Why a name is refused. The text names the rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// No bytes.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than its bound.
    #[error("a name is at most {0} bytes long")]
    Long(usize),
    /// Not UTF-8.
    #[error("a name must be valid UTF-8")]
    Encoding,
    /// A control or format character.
    #[error("a name must not contain control or format characters")]
    Control,
    /// A character with a meaning of its own.
    #[error("a name must not contain '{0}'")]
    Reserved(char),
}

/// Checks an agent's name: UTF-8, 1 to 64 bytes, no control or format characters, none of `* # : /`.
pub fn check_agent(name: &[u8]) -> Result<&str, NameError> {
    check(name, NAME_BYTES_MAX, &['*', '#', ':', '/'])
}

/// Checks a topic's name (without its leading `#`): as an agent's, but up to 128 bytes and `:` and `/` are allowed.
pub fn check_topic(name: &[u8]) -> Result<&str, NameError> {
    check(name, TOPIC_BYTES_MAX, &['*', '#'])
}

/// A topic's one spelling: `#builds` and `builds` are the same topic.
pub fn topic_of(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"#").unwrap_or(text)
}

/// What the internal names begin with that a command line makes up for one errand: nobody comes back under one.
pub const ERRAND_PREFIX: &str = "__cli-";

/// Names of the relay's own helpers: hidden from listings; a few of them hold no seat.
pub fn is_internal(name: &str) -> bool {
    name.starts_with("__")
}

fn check<'a>(name: &'a [u8], bytes_max: usize, reserved: &[char]) -> Result<&'a str, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > bytes_max {
        return Err(NameError::Long(bytes_max));
    }
    let text = std::str::from_utf8(name).map_err(|_| NameError::Encoding)?;
    for character in text.chars() {
        if character.is_control() || is_format(character) {
            return Err(NameError::Control);
        }
        if reserved.contains(&character) {
            return Err(NameError::Reserved(character));
        }
    }
    Ok(text)
}

/// Unicode general category Cf (Unicode 16.0, `DerivedGeneralCategory.txt`), plus the two line separators, which
/// terminals and logs treat as control characters.
fn is_format(character: char) -> bool {
    matches!(character as u32,
        0xAD | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x890..=0x891 | 0x8E2 | 0x180E
        | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x2064 | 0x2066..=0x206F | 0xFEFF | 0xFFF9..=0xFFFB
        | 0x110BD | 0x110CD | 0x13430..=0x1343F | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A
        | 0xE0001 | 0xE0020..=0xE007F)
}

/// A name's hash under the daemon's seed: finds its home shard and its place in the tables there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameHash(pub u64);

/// Hashes names, seeded once per daemon so that nobody outside can aim for one bucket.
#[derive(Clone)]
pub struct NameHasher(foldhash::quality::FixedState);

impl NameHasher {
    /// The same seed gives the same hashes: every shard of one daemon must share it.
    pub fn new(seed: u64) -> NameHasher {
        NameHasher(foldhash::quality::FixedState::with_seed(seed))
    }

    /// The hash of `name`.
    pub fn hash(&self, name: &[u8]) -> NameHash {
        let mut hasher = self.0.build_hasher();
        hasher.write(name);
        NameHash(hasher.finish())
    }
}

impl NameHash {
    /// The shard that owns everything about this name: jump consistent hash (Lamping and Veach, 2014).
    pub fn home(self, shards: u16) -> ShardId {
        if shards <= 1 {
            return ShardId(0);
        }
        let (mut key, mut bucket, mut next) = (self.0, 0i64, 0i64);
        while next < i64::from(shards) {
            bucket = next;
            key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
            next = ((bucket + 1) as f64 * ((1u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
        }
        ShardId(bucket as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_published_rules() {
        for good in ["a", "Alice", "build-bot_2.x", "日本", "🦀", &"x".repeat(64), "__status__"] {
            assert_eq!(check_agent(good.as_bytes()), Ok(good), "{good}");
        }
        let cases: &[(&[u8], NameError)] = &[
            (b"", NameError::Empty),
            (&[b'x'; 65], NameError::Long(64)),
            (b"a\xff", NameError::Encoding),
            (b"a\nb", NameError::Control),
            ("a\u{202e}b".as_bytes(), NameError::Control),
            ("a\u{200b}".as_bytes(), NameError::Control),
            (b"*", NameError::Reserved('*')),
            (b"a:b", NameError::Reserved(':')),
            (b"a/b", NameError::Reserved('/')),
            (b"#a", NameError::Reserved('#')),
        ];
        for (name, error) in cases {
            assert_eq!(check_agent(name), Err(*error), "{name:?}");
        }
        assert_eq!(check_topic(b"dm:a:b"), Ok("dm:a:b"));
        assert_eq!(topic_of(b"#x"), topic_of(b"x"));
    }

    #[test]
    fn homes_are_even_and_move_little_when_a_shard_is_added() {
        let hasher = NameHasher::new(7);
        let homes = |shards| (0..8000).map(move |n: u32| (n, shards)).collect::<Vec<_>>();
        let home = |(n, shards): (u32, u16)| hasher.hash(&n.to_le_bytes()).home(shards);
        let mut counts = [0; 4];
        let mut moved = 0;
        for (four, three) in homes(4).into_iter().zip(homes(3)) {
            counts[home(four).0 as usize] += 1;
            moved += u32::from(home(four) != home(three));
        }
        assert!(counts.iter().all(|count| (1800..2200).contains(count)), "{counts:?}");
        assert!((1800..2200).contains(&moved), "a quarter of the names move to the new shard, {moved} did");
    }
}
