//! The index of the log: keyed terms, the part behind the last group in memory ([`Tail`]), and closed groups ([`Group`]).
//! Everything here is derived from the log and holds no name; each find is verified against the record it points to.

mod group;
mod groups;
mod tail;

pub use group::{Group, Postings};
pub(super) use tail::topic_of;
pub use tail::{GroupLimits, Tail};

use crate::base::{AgentId, MessageId};
use siphasher::sip::SipHasher24;
use std::hash::Hasher;

/// A keyed hash of something messages can be found by. Two things may share one: whoever finds a record looks at it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Term(pub u64);

/// Makes terms; one key per store.
#[derive(Clone)]
pub struct Terms(SipHasher24);

/// What a term stands for: the first byte that is hashed. The numbers are in the store's files.
#[derive(Clone, Copy)]
#[repr(u8)]
enum TermKind {
    Sender = 1,
    Recipient = 2,
    Thread = 3,
    Topic = 4,
    Everyone = 5,
    Outcome = 6,
    /// Not terms: the two halves of a fingerprint.
    IdStart = 7,
    IdMiddle = 8,
    Addressed = 9,
}

/// Bytes that are hashed by one call, the kind included: an id, and nearly every thread and topic.
const HASHED_AT_ONCE: usize = 64;

impl Terms {
    /// Terms under `key`.
    pub fn new(key: &[u8; 16]) -> Terms {
        Terms(SipHasher24::new_with_key(key))
    }

    fn hash(&self, kind: TermKind, bytes: &[u8]) -> u64 {
        // Nearly everything hashed here is short, and one call is faster than a hasher fed piece by piece.
        let mut whole = [0; HASHED_AT_ONCE];
        if let Some(rest) = whole[1..].get_mut(..bytes.len()) {
            rest.copy_from_slice(bytes);
            whole[0] = kind as u8;
            return self.0.hash(&whole[..=bytes.len()]);
        }
        let mut hasher = self.0;
        hasher.write_u8(kind as u8);
        hasher.write(bytes);
        hasher.finish()
    }

    /// Messages from this agent.
    pub fn sender(&self, agent: AgentId) -> Term {
        Term(self.hash(TermKind::Sender, &agent.0.to_le_bytes()))
    }

    /// Messages that have this agent among their recipients.
    pub fn recipient(&self, agent: AgentId) -> Term {
        Term(self.hash(TermKind::Recipient, &agent.0.to_le_bytes()))
    }

    /// Messages addressed to this agent that have no recipients: imported ones, owed to nobody.
    pub fn addressed(&self, agent: AgentId) -> Term {
        Term(self.hash(TermKind::Addressed, &agent.0.to_le_bytes()))
    }

    /// Messages of this thread.
    pub fn thread(&self, thread: &[u8]) -> Term {
        Term(self.hash(TermKind::Thread, thread))
    }

    /// Messages of this topic, given without its `#`.
    pub fn topic(&self, topic: &[u8]) -> Term {
        Term(self.hash(TermKind::Topic, topic))
    }

    /// Messages addressed to `*`.
    pub fn everyone(&self) -> Term {
        Term(self.hash(TermKind::Everyone, b""))
    }

    /// Records of what became of this message.
    pub fn outcome(&self, id: MessageId) -> Term {
        Term(self.hash(TermKind::Outcome, &id.bits().to_be_bytes()))
    }

    /// What stands for a message's id in the id section: the upper half is known from the id's first 4 digits, the lower
    /// from its first 8.
    pub fn fingerprint(&self, id: MessageId) -> u32 {
        let start = (id.bits() >> 96) as u32;
        u32::from(self.fingerprint_start((start >> 16) as u16)) << 16 | u32::from(self.fingerprint_end(start))
    }

    /// The upper half of the fingerprints of all ids that begin with these 16 bits.
    pub fn fingerprint_start(&self, start: u16) -> u16 {
        self.hash(TermKind::IdStart, &start.to_be_bytes()) as u16
    }

    fn fingerprint_end(&self, start: u32) -> u16 {
        self.hash(TermKind::IdMiddle, &start.to_be_bytes()) as u16
    }

    /// The fingerprint of all ids that begin with these 32 bits.
    pub fn fingerprint_of(&self, start: u32) -> u32 {
        u32::from(self.fingerprint_start((start >> 16) as u16)) << 16 | u32::from(self.fingerprint_end(start))
    }
}

/// What is looked for in the index: a record has to have one term of each clause.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The clauses. None: every message.
    pub clauses: Vec<Vec<Term>>,
}

/// The indexes that are in all of `lists`, each ascending and without repeats.
fn intersection(mut lists: Vec<Vec<u32>>) -> Vec<u32> {
    lists.sort_by_key(Vec::len);
    let mut lists = lists.into_iter();
    let Some(mut common) = lists.next() else { return Vec::new() };
    for other in lists {
        let mut rest = &other[..];
        common.retain(|index| {
            // Galloping: cheap when the next one is near, logarithmic when it is far.
            let mut step = 1;
            while step < rest.len() && rest[step] < *index {
                step *= 2;
            }
            let near = &rest[..rest.len().min(step + 1)];
            rest = &rest[near.partition_point(|known| known < index)..];
            rest.first() == Some(index)
        });
    }
    common
}

/// One ascending list without repeats of several such lists.
fn union(lists: Vec<Vec<u32>>) -> Vec<u32> {
    let mut lists = lists.into_iter();
    let mut all = lists.next().unwrap_or_default();
    for list in lists {
        all.extend_from_slice(&list);
        // Two runs: the standard library's stable sort merges them in linear time.
        all.sort();
        all.dedup();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_known_by_the_first_digits_of_an_id() {
        let terms = Terms::new(&[7; 16]);
        for number in 0..200 {
            let id = MessageId { sender: AgentId::of(b"ann"), number };
            let start = (id.bits() >> 96) as u32;
            assert_eq!(terms.fingerprint(id), terms.fingerprint_of(start));
            assert_eq!((terms.fingerprint(id) >> 16) as u16, terms.fingerprint_start((start >> 16) as u16));
        }
        assert_ne!(terms.sender(AgentId(1)), terms.recipient(AgentId(1)));
        assert_ne!(terms.sender(AgentId(1)), Terms::new(&[8; 16]).sender(AgentId(1)), "the key decides");
    }

    #[test]
    fn a_term_is_the_same_whether_it_is_hashed_at_once_or_in_pieces() {
        let terms = Terms::new(&[7; 16]);
        for length in 0..2 * HASHED_AT_ONCE {
            let bytes: Vec<u8> = (0..length as u8).collect();
            let mut hasher = terms.0;
            hasher.write_u8(TermKind::Thread as u8);
            hasher.write(&bytes);
            assert_eq!(terms.thread(&bytes), Term(hasher.finish()), "{length} bytes");
        }
    }

    #[test]
    fn lists_meet_and_join_as_sets_do() {
        let every = |step: usize, end: u32| (0..end).step_by(step).collect::<Vec<u32>>();
        assert_eq!(intersection(vec![every(2, 1000), every(3, 1000), every(5, 500)]), every(30, 500));
        assert_eq!(intersection(vec![every(1, 1000), vec![999]]), [999]);
        assert!(intersection(vec![every(1, 10), Vec::new()]).is_empty());
        assert_eq!(union(vec![vec![1, 5, 9], vec![2, 5, 10], vec![]]), [1, 2, 5, 9, 10]);
    }
}
