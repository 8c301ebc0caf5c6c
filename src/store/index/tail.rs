//! The index of the segments behind the last group, in memory: flat vectors, in the order of the log, searched from end to
//! end (it is never more than one group), and written as that group when it is full.

use super::group::{BLOCK_BYTES, DICTIONARY_BYTES, FENCE_TERMS, HEADER_BYTES, PLACE_IS_MESSAGE, VERSION};
use super::{Term, Terms, Wanted, intersection, union};
use crate::base::{AgentId, MessageId, name};
use crate::relay::Place;
use crate::store::RecordRef;
use crate::wire::Message;
use hashbrown::HashTable;
use std::ops::Range;

/// When a group is large enough to be closed.
#[derive(Clone, Copy, Debug)]
pub struct GroupLimits {
    /// Messages.
    pub messages: u32,
    /// Bytes of its segments' plaintext.
    pub plaintext_bytes: u64,
    /// Segments.
    pub segments: u64,
}

impl Default for GroupLimits {
    fn default() -> GroupLimits {
        GroupLimits { messages: 16_384, plaintext_bytes: 32 * 1024 * 1024, segments: 65_536 }
    }
}

/// The index of some consecutive segments.
#[derive(Clone)]
pub struct Tail {
    terms: Terms,
    limits: GroupLimits,
    first: u64,
    /// The segment behind the last one that is in it.
    next: u64,
    first_wall_ms: u64,
    last_wall_ms: u64,
    messages: u32,
    outcomes: u32,
    plaintext_bytes: u64,
    /// Which record has which term: ascending in records.
    pairs: Vec<(Term, u32)>,
    places: Vec<Place>,
    /// Parallel to `places`.
    is_message: Vec<bool>,
    /// Fingerprints of messages and of refused ones, with their record's index.
    ids: Vec<(u32, u32)>,
    memo: Memo,
}

/// Terms of agents met lately, each in the one place its number gives it: the same few send and receive all the time.
#[derive(Clone)]
struct Memo {
    senders: Box<[(AgentId, Term)]>,
    recipients: Box<[(AgentId, Term)]>,
}

impl Memo {
    /// Places; 16 bytes each, twice.
    const PLACES: usize = 512;

    fn new(terms: &Terms) -> Memo {
        let nobody = AgentId(0);
        Memo {
            senders: vec![(nobody, terms.sender(nobody)); Memo::PLACES].into(),
            recipients: vec![(nobody, terms.recipient(nobody)); Memo::PLACES].into(),
        }
    }

    fn find(places: &mut [(AgentId, Term)], agent: AgentId, make: impl FnOnce() -> Term) -> Term {
        let place = &mut places[agent.0 as usize % Memo::PLACES];
        if place.0 != agent {
            *place = (agent, make());
        }
        place.1
    }
}

impl Tail {
    /// An empty one, whose first segment will be `first`.
    pub fn new(first: u64, terms: Terms, limits: GroupLimits) -> Tail {
        let memo = Memo::new(&terms);
        Tail {
            terms,
            limits,
            first,
            next: first,
            first_wall_ms: u64::MAX,
            last_wall_ms: 0,
            messages: 0,
            outcomes: 0,
            plaintext_bytes: 0,
            pairs: Vec::new(),
            places: Vec::new(),
            is_message: Vec::new(),
            ids: Vec::new(),
            memo,
        }
    }

    /// Empties it; what it held is in a group, or in a tail of its own. Its memory is kept for the next group.
    pub fn clear(&mut self) {
        self.first = self.next;
        (self.first_wall_ms, self.last_wall_ms) = (u64::MAX, 0);
        (self.messages, self.outcomes, self.plaintext_bytes) = (0, 0, 0);
        self.pairs.clear();
        self.places.clear();
        self.is_message.clear();
        self.ids.clear();
    }

    /// The makers of its terms.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What closes it.
    pub fn limits(&self) -> GroupLimits {
        self.limits
    }

    /// The first segment that is, or will be, in it.
    pub fn first_segment(&self) -> u64 {
        self.first
    }

    /// The segment that comes next.
    pub fn next_segment(&self) -> u64 {
        self.next
    }

    /// Whether no segment is in it.
    pub fn is_empty(&self) -> bool {
        self.next == self.first
    }

    /// Messages in it, parts of one message counted one by one.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Records in it that say what became of a message.
    pub fn outcomes(&self) -> u32 {
        self.outcomes
    }

    /// The earliest and latest time of its records, milliseconds since 1970.
    pub fn wall_ms(&self) -> (u64, u64) {
        (self.first_wall_ms, self.last_wall_ms)
    }

    /// Whether it is time to close it.
    pub fn full(&self) -> bool {
        self.messages >= self.limits.messages
            || self.plaintext_bytes >= self.limits.plaintext_bytes
            || self.next - self.first >= self.limits.segments
    }

    /// Bytes of memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        self.pairs.capacity() * size_of::<(Term, u32)>()
            + self.places.capacity() * size_of::<Place>()
            + self.is_message.capacity()
            + self.ids.capacity() * size_of::<(u32, u32)>()
            + 2 * Memo::PLACES * size_of::<(AgentId, Term)>()
    }

    /// The next segment begins; segments without anything to index are told as well.
    pub fn begin(&mut self, segment: u64, plaintext_bytes: u32) {
        debug_assert!(segment >= self.next, "segments come in order");
        self.next = self.next.max(segment + 1);
        self.plaintext_bytes += u64::from(plaintext_bytes);
    }

    /// One record of the segment that began last.
    pub fn add(&mut self, place: Place, record: &RecordRef<'_>) {
        let index = self.places.len() as u32;
        match record {
            RecordRef::Message(message) => {
                self.open(place, true, message.accepted_at_ms);
                self.messages += 1;
                self.ids.push((self.terms.fingerprint(message.id), index));
                let (terms, memo, sender) = (&self.terms, &mut self.memo, message.id.sender);
                let term = Memo::find(&mut memo.senders, sender, || terms.sender(sender));
                self.pairs.push((term, index));
                for to in message.recipients.iter() {
                    let term = Memo::find(&mut memo.recipients, to.agent, || terms.recipient(to.agent));
                    self.pairs.push((term, index));
                }
                // What no longer reads as a body can still be found by whom it is from and for.
                let Some(body) = Message::check(message.raw, message.checksum) else { return };
                let fields = body.fields();
                let topic = topic_of(fields.to, fields.topic);
                if !topic.is_empty() {
                    self.pairs.push((self.terms.topic(topic), index));
                }
                if !fields.thread.is_empty() {
                    self.pairs.push((self.terms.thread(fields.thread), index));
                }
                if fields.to == b"*" {
                    self.pairs.push((self.terms.everyone(), index));
                } else if message.recipients.is_empty() && !fields.to.starts_with(b"#") {
                    self.pairs.push((self.terms.addressed(AgentId::of(fields.to)), index));
                }
            }
            RecordRef::Refused { id, at_ms, .. } => {
                self.open(place, false, *at_ms);
                self.ids.push((self.terms.fingerprint(*id), index));
                self.outcome(*id, index);
            }
            RecordRef::Failed { id, .. } | RecordRef::Read { id, .. } => {
                self.open(place, false, self.last_wall_ms);
                self.outcome(*id, index);
            }
            _ => {}
        }
    }

    fn open(&mut self, place: Place, is_message: bool, wall_ms: u64) {
        self.places.push(place);
        self.is_message.push(is_message);
        if wall_ms > 0 {
            self.first_wall_ms = self.first_wall_ms.min(wall_ms);
            self.last_wall_ms = self.last_wall_ms.max(wall_ms);
        }
    }

    fn outcome(&mut self, id: MessageId, index: u32) {
        self.outcomes += 1;
        self.pairs.push((self.terms.outcome(id), index));
    }

    /// The indexes of each term, in the order of the terms; ascending.
    fn lists(&self, terms: &[Term]) -> Vec<Vec<u32>> {
        let mut lists = vec![Vec::new(); terms.len()];
        let mut sorted: Vec<(Term, usize)> = terms.iter().enumerate().map(|(number, term)| (*term, number)).collect();
        sorted.sort_unstable();
        // Nearly every pair is of another term: one bit tells.
        let mut bits = vec![0u64; 1024];
        let bit = |term: &Term| ((term.0 >> 54) as usize, term.0 >> 48 & 63);
        for (term, _) in &sorted {
            let (word, bit) = bit(term);
            bits[word] |= 1 << bit;
        }
        for (term, index) in &self.pairs {
            let (word, bit) = bit(term);
            if bits[word] >> bit & 1 == 1
                && let Ok(found) = sorted.binary_search_by_key(term, |(term, _)| *term)
            {
                lists[sorted[found].1].push(*index);
            }
        }
        lists
    }

    /// The index of the first record at `place` or behind it.
    fn seek(&self, place: Place) -> u32 {
        self.places.partition_point(|known| *known < place) as u32
    }

    /// Records that have what is wanted, with places from `from` on and before `before`, ascending.
    pub fn candidates(&self, wanted: &Wanted, from: Place, before: Place) -> Vec<Place> {
        let range = self.seek(from)..self.seek(before);
        if wanted.clauses.is_empty() {
            let messages = range.filter(|index| self.is_message[*index as usize]);
            return messages.map(|index| self.places[index as usize]).collect();
        }
        let clauses = wanted.clauses.iter().map(|clause| {
            let mut lists = self.lists(clause);
            for list in &mut lists {
                list.retain(|index| range.contains(index));
                list.dedup();
            }
            union(lists)
        });
        intersection(clauses.collect()).into_iter().map(|index| self.places[index as usize]).collect()
    }

    /// For each term, where the records are that have it; ascending.
    pub fn all_of(&self, terms: &[Term]) -> Vec<Vec<Place>> {
        let places = |list: Vec<u32>| list.into_iter().map(|index| self.places[index as usize]).collect();
        self.lists(terms).into_iter().map(places).collect()
    }

    /// Records of messages whose fingerprint is between these two, both included; ascending.
    pub fn with_fingerprint(&self, low: u32, high: u32) -> Vec<Place> {
        let found = self.ids.iter().filter(|(fingerprint, _)| (low..=high).contains(fingerprint));
        found.map(|(_, index)| self.places[*index as usize]).collect()
    }

    /// Records of messages that have one of these fingerprints, which are sorted; in the order of the log.
    pub fn with_fingerprints(&self, wanted: &[u32]) -> Vec<Place> {
        // Nearly every id has another one: one bit tells, as for the terms.
        let mut bits = vec![0u64; 1024];
        let bit = |fingerprint: u32| ((fingerprint >> 22) as usize, fingerprint >> 16 & 63);
        for fingerprint in wanted {
            let (word, bit) = bit(*fingerprint);
            bits[word] |= 1 << bit;
        }
        let found = self.ids.iter().filter(|(fingerprint, _)| {
            let (word, bit) = bit(*fingerprint);
            bits[word] >> bit & 1 == 1 && wanted.binary_search(fingerprint).is_ok()
        });
        found.map(|(_, index)| self.places[*index as usize]).collect()
    }

    /// The value of the group that all of it makes.
    pub fn close(&self) -> Vec<u8> {
        let mut ids: Vec<u64> =
            self.ids.iter().map(|(print, index)| u64::from(*print) << 32 | u64::from(*index)).collect();
        ids.sort_unstable();
        let lists = by_term(&self.pairs);
        let (mut fences, mut dictionary) = (Vec::new(), Vec::with_capacity(lists.runs.len() * DICTIONARY_BYTES));
        let mut postings = Vec::with_capacity(lists.indexes.len() * 4);
        let mut terms = 0u32;
        for (term, span) in &lists.runs {
            let term = term.0.to_le_bytes();
            if (terms as usize).is_multiple_of(FENCE_TERMS) {
                fences.extend_from_slice(&term);
            }
            dictionary.extend_from_slice(&term);
            dictionary.extend_from_slice(&((postings.len() / 4) as u32).to_le_bytes());
            dictionary.extend_from_slice(&(span.len() as u32).to_le_bytes());
            postings.extend(lists.indexes[span.clone()].iter().flat_map(|index| index.to_le_bytes()));
            terms += 1;
        }
        let mut body = fences;
        body.reserve(dictionary.len() + self.places.len() * 8 + postings.len() + ids.len() * 8);
        body.extend_from_slice(&dictionary);
        for (place, is_message) in self.places.iter().zip(&self.is_message) {
            let mark = if *is_message { PLACE_IS_MESSAGE } else { 0 };
            body.extend_from_slice(&((place.segment - self.first) as u32 | mark).to_le_bytes());
            body.extend_from_slice(&place.offset.to_le_bytes());
        }
        body.extend_from_slice(&postings);
        for id in &ids {
            body.extend_from_slice(&((id >> 32) as u32).to_le_bytes());
            body.extend_from_slice(&(*id as u32).to_le_bytes());
        }
        let mut value = Vec::with_capacity(HEADER_BYTES + body.len() + body.len().div_ceil(BLOCK_BYTES) * 4);
        value.extend_from_slice(&[0; 4]);
        value.extend_from_slice(&u32::from(VERSION).to_le_bytes());
        for long in [self.first, self.next.saturating_sub(1), self.first_wall_ms, self.last_wall_ms] {
            value.extend_from_slice(&long.to_le_bytes());
        }
        let counts = [self.places.len(), terms as usize, postings.len() / 4, ids.len()].map(|count| count as u32);
        for word in [self.messages].into_iter().chain(counts).chain([self.outcomes]) {
            value.extend_from_slice(&word.to_le_bytes());
        }
        debug_assert_eq!(value.len(), HEADER_BYTES, "the header is what `Group` reads");
        for block in body.chunks(BLOCK_BYTES) {
            value.extend_from_slice(&crc32fast::hash(block).to_le_bytes());
        }
        let sum = crc32fast::hash(&value[4..]);
        value[..4].copy_from_slice(&sum.to_le_bytes());
        value.extend_from_slice(&body);
        value
    }
}

/// Which records have which term, term by term.
struct ByTerm {
    /// Each term, ascending, with where its records are in `indexes`.
    runs: Vec<(Term, Range<usize>)>,
    /// Within a term ascending, without repeats.
    indexes: Vec<u32>,
}

/// Sorts pairs that are ascending in records: the terms alone are compared, since most of them come up again and again.
fn by_term(pairs: &[(Term, u32)]) -> ByTerm {
    const NONE: u32 = u32::MAX;
    // Each term's ordinal, in the order in which terms come; of each ordinal its term, how often, and the last record.
    let mut known: HashTable<u32> = HashTable::new();
    let mut met: Vec<(Term, u32, u32)> = Vec::new();
    let mut ordinals = Vec::with_capacity(pairs.len());
    for (term, index) in pairs {
        let entry = known.entry(term.0, |at| met[*at as usize].0 == *term, |at| met[*at as usize].0.0);
        let ordinal = *entry.or_insert(met.len() as u32).get();
        if ordinal as usize == met.len() {
            met.push((*term, 0, NONE));
        }
        let (_, count, last) = &mut met[ordinal as usize];
        if *last == *index {
            ordinals.push(NONE);
            continue;
        }
        (*count, *last) = (*count + 1, *index);
        ordinals.push(ordinal);
    }
    let mut order: Vec<(Term, u32)> = met.iter().zip(0..).map(|((term, ..), ordinal)| (*term, ordinal)).collect();
    order.sort_unstable();
    let mut end = 0;
    let mut next = vec![0; met.len()];
    let runs = order.iter().map(|(term, ordinal)| {
        let start = end;
        next[*ordinal as usize] = start;
        end += met[*ordinal as usize].1 as usize;
        (*term, start..end)
    });
    let runs = runs.collect();
    let mut indexes = vec![0; end];
    for ((_, index), ordinal) in pairs.iter().zip(&ordinals) {
        if *ordinal != NONE {
            let at = &mut next[*ordinal as usize];
            indexes[*at] = *index;
            *at += 1;
        }
    }
    ByTerm { runs, indexes }
}

/// The topic that a message has, whether it stands in its topic or in whom it is for; empty: none.
pub(in crate::store) fn topic_of<'a>(to: &'a [u8], topic: &'a [u8]) -> &'a [u8] {
    match to.strip_prefix(b"#") {
        Some(topic) => topic,
        None => name::topic_of(topic),
    }
}
