//! A closed group: the index of a run of segments as one value, read where it lies. Each 4 KiB of it have a checksum of
//! their own, so that a lookup verifies what it reads and reads little. Little-endian:
//!
//! ```text
//!  0  checksum u32     of everything up to the body, itself left out
//!  4  version u16, 0u16
//!  8  first, last segment u64; first, last time u64 (milliseconds since 1970, of the records)
//! 40  messages, places, terms, postings, ids, outcomes u32
//! 64  checksum u32 of each 4,096 bytes of the body
//!     body:
//!     fences      term u64               of every 256th entry of the dictionary
//!     dictionary  term u64, first posting u32, postings u32      ascending in terms
//!     places      segment - first u32 (top bit: a message), offset u32    ascending: the log's own order
//!     postings    index of a place u32   ascending within a term
//!     ids         fingerprint u32, index of a place u32           ascending
//! ```

use super::super::StoreError;
use super::super::error::Part;
use super::{Term, Wanted, intersection, union};
use crate::relay::Place;
use std::cell::RefCell;
use std::ops::Range;

/// This format.
pub(super) const VERSION: u16 = 1;
/// The fixed part before the checksums.
pub(super) const HEADER_BYTES: usize = 64;
/// Bytes under one checksum.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Entries of the dictionary behind one fence.
pub(super) const FENCE_TERMS: usize = BLOCK_BYTES / DICTIONARY_BYTES;
/// One entry of the dictionary: term, first posting, number of postings.
pub(super) const DICTIONARY_BYTES: usize = 16;
/// One place: the segment's distance from the first, and whether the record is a message; the record's offset.
pub(super) const PLACE_BYTES: usize = 8;
/// Set in a place's first word when the record is a message.
pub(super) const PLACE_IS_MESSAGE: u32 = 1 << 31;
/// One id: its fingerprint, its place's index.
pub(super) const ID_BYTES: usize = 8;

/// A view of one group. What it holds is as checked as it is read; nothing in it can make it panic.
pub struct Group<'a> {
    key: u64,
    first: u64,
    last: u64,
    first_wall_ms: u64,
    last_wall_ms: u64,
    messages: u32,
    terms: usize,
    postings: usize,
    places: usize,
    ids: usize,
    outcomes: u32,
    sums: &'a [u8],
    body: &'a [u8],
    /// Bits of the blocks that were found good.
    seen: RefCell<Vec<u64>>,
}

/// The places' indexes that one term has in a group, ascending.
#[derive(Clone, Copy, Debug, Default)]
pub struct Postings<'a>(&'a [u8]);

impl Postings<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From the oldest on; `rev()` gives the newest first, `nth` seeks.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + ExactSizeIterator + '_ {
        self.0.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// The number-th from the oldest.
    pub fn at(&self, number: usize) -> Option<u32> {
        self.0.as_chunks::<4>().0.get(number).map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// How many of them are below `index`.
    pub fn below(&self, index: u32) -> usize {
        self.0.as_chunks::<4>().0.partition_point(|bytes| u32::from_le_bytes(*bytes) < index)
    }
}

impl<'a> Group<'a> {
    /// Checks the value kept under `key`: its header, its sizes, its table of checksums.
    pub fn check(key: u64, value: &'a [u8]) -> Result<Group<'a>, StoreError> {
        let damaged = |what| StoreError::corrupt(Part::Index, key, what);
        let header = value.first_chunk::<HEADER_BYTES>().ok_or_else(|| damaged("it is shorter than its header"))?;
        let word = |at: usize| u32_at(header, at);
        let long = |at: usize| u64::from(u32_at(header, at)) | u64::from(u32_at(header, at + 4)) << 32;
        if word(4) & 0xffff != u32::from(VERSION) {
            return Err(damaged("its format is not known"));
        }
        let [terms, postings, places, ids] = [48, 52, 44, 56].map(|at| word(at) as usize);
        let body_bytes = terms.div_ceil(FENCE_TERMS) * 8
            + terms * DICTIONARY_BYTES
            + places * PLACE_BYTES
            + postings * 4
            + ids * ID_BYTES;
        let sums_bytes = body_bytes.div_ceil(BLOCK_BYTES) * 4;
        if value.len() != HEADER_BYTES + sums_bytes + body_bytes {
            return Err(damaged("its length is not what its header says"));
        }
        let (head, body) = value.split_at(HEADER_BYTES + sums_bytes);
        if crc32fast::hash(&head[4..]) != word(0) {
            return Err(damaged("its header's checksum is wrong"));
        }
        let (first, last) = (long(8), long(16));
        if first != key || last < first || last - first >= u64::from(PLACE_IS_MESSAGE) {
            return Err(damaged("it speaks of other segments than its key"));
        }
        Ok(Group {
            key,
            first,
            last,
            first_wall_ms: long(24),
            last_wall_ms: long(32),
            messages: word(40),
            terms,
            postings,
            places,
            ids,
            outcomes: word(60),
            sums: &head[HEADER_BYTES..],
            body,
            seen: RefCell::new(vec![0; body_bytes.div_ceil(BLOCK_BYTES).div_ceil(64)]),
        })
    }

    /// The first segment it covers.
    pub fn first_segment(&self) -> u64 {
        self.first
    }

    /// The last segment it covers.
    pub fn last_segment(&self) -> u64 {
        self.last
    }

    /// The earliest and latest time of its records, milliseconds since 1970.
    pub fn wall_ms(&self) -> (u64, u64) {
        (self.first_wall_ms, self.last_wall_ms)
    }

    /// Messages in it, parts of one message counted one by one.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Records in it that say what became of a message.
    pub fn outcomes(&self) -> u32 {
        self.outcomes
    }

    /// Checks all of its body: what is otherwise done as far as it is read.
    pub fn check_body(&self) -> Result<(), StoreError> {
        self.stretch(0, self.body.len()).map(drop)
    }

    /// Reads a stretch of the body, once its blocks are found to be what was written.
    fn stretch(&self, start: usize, length: usize) -> Result<&'a [u8], StoreError> {
        let damaged = |what| StoreError::corrupt(Part::Index, self.key, what);
        let end = start.checked_add(length).ok_or_else(|| damaged("a length in it is impossible"))?;
        let stretch = self.body.get(start..end).ok_or_else(|| damaged("a length in it is impossible"))?;
        if stretch.is_empty() {
            return Ok(stretch);
        }
        let mut seen = self.seen.borrow_mut();
        for block in start / BLOCK_BYTES..=(end - 1) / BLOCK_BYTES {
            if seen[block / 64] >> (block % 64) & 1 == 1 {
                continue;
            }
            let bytes = &self.body[block * BLOCK_BYTES..self.body.len().min((block + 1) * BLOCK_BYTES)];
            if crc32fast::hash(bytes) != u32_at(self.sums, block * 4) {
                return Err(damaged("a checksum in it is wrong"));
            }
            seen[block / 64] |= 1 << (block % 64);
        }
        Ok(stretch)
    }

    fn fences_bytes(&self) -> usize {
        self.terms.div_ceil(FENCE_TERMS) * 8
    }

    fn places_start(&self) -> usize {
        self.fences_bytes() + self.terms * DICTIONARY_BYTES
    }

    fn postings_start(&self) -> usize {
        self.places_start() + self.places * PLACE_BYTES
    }

    fn ids_start(&self) -> usize {
        self.postings_start() + self.postings * 4
    }

    /// Everything that `term` stands for in this group.
    pub fn postings(&self, term: Term) -> Result<Postings<'a>, StoreError> {
        let fences = self.stretch(0, self.fences_bytes())?.as_chunks::<8>().0;
        // The last fence that is not above the term stands before the only entries that can be it.
        let block = fences.partition_point(|fence| u64::from_le_bytes(*fence) <= term.0);
        let Some(block) = block.checked_sub(1) else { return Ok(Postings::default()) };
        let first = block * FENCE_TERMS;
        let count = FENCE_TERMS.min(self.terms - first);
        let start = self.fences_bytes() + first * DICTIONARY_BYTES;
        let entries = self.stretch(start, count * DICTIONARY_BYTES)?.as_chunks::<DICTIONARY_BYTES>().0;
        let hash = |entry: &[u8; DICTIONARY_BYTES]| u64::from(u32_at(entry, 0)) | u64::from(u32_at(entry, 4)) << 32;
        let Ok(found) = entries.binary_search_by_key(&term.0, hash) else { return Ok(Postings::default()) };
        let (start, count) = (u32_at(&entries[found], 8) as usize, u32_at(&entries[found], 12) as usize);
        if start + count > self.postings {
            return Err(StoreError::corrupt(Part::Index, self.key, "a list in it lies outside of it"));
        }
        Ok(Postings(self.stretch(self.postings_start() + start * 4, count * 4)?))
    }

    /// How many records it points to.
    pub fn places(&self) -> u32 {
        self.places as u32
    }

    /// Where the index-th record is, and whether it is a message.
    pub fn place(&self, index: u32) -> Result<(Place, bool), StoreError> {
        let outside = || StoreError::corrupt(Part::Index, self.key, "a list in it points outside of it");
        if index as usize >= self.places {
            return Err(outside());
        }
        let entry = self.stretch(self.places_start() + index as usize * PLACE_BYTES, PLACE_BYTES)?;
        let word = u32_at(entry, 0);
        let segment = self.first + u64::from(word & !PLACE_IS_MESSAGE);
        if segment > self.last {
            return Err(outside());
        }
        Ok((Place { segment, offset: u32_at(entry, 4) }, word & PLACE_IS_MESSAGE != 0))
    }

    /// The index of the first record at `place` or behind it.
    pub fn seek(&self, place: Place) -> Result<u32, StoreError> {
        let (mut low, mut high) = (0, self.places());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.place(middle)?.0 < place { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The indexes of the records from `from` on and before `before`.
    fn range(&self, from: Place, before: Place) -> Result<Range<u32>, StoreError> {
        let start = if from.segment < self.first { 0 } else { self.seek(from)? };
        let end = if before.segment > self.last { self.places() } else { self.seek(before)? };
        Ok(start..end)
    }

    /// Records that have what is wanted, with places from `from` on and before `before`, ascending.
    pub fn candidates(&self, wanted: &Wanted, from: Place, before: Place) -> Result<Vec<Place>, StoreError> {
        if wanted.clauses.is_empty() {
            let places = self.range(from, before)?.map(|index| self.place(index));
            let messages =
                places.filter_map(|found| found.map(|(place, is_message)| is_message.then_some(place)).transpose());
            return messages.collect();
        }
        // First whether all of it is here at all: most groups end here.
        let mut clauses = Vec::with_capacity(wanted.clauses.len());
        for clause in &wanted.clauses {
            let lists = clause.iter().map(|term| self.postings(*term)).collect::<Result<Vec<_>, _>>()?;
            if lists.iter().all(Postings::is_empty) {
                return Ok(Vec::new());
            }
            clauses.push(lists);
        }
        let range = self.range(from, before)?;
        let in_range = |postings: &Postings<'_>| -> Vec<u32> {
            let (start, end) = (postings.below(range.start), postings.below(range.end));
            postings.iter().skip(start).take(end.saturating_sub(start)).collect()
        };
        let clauses = clauses.iter().map(|lists| union(lists.iter().map(in_range).collect())).collect();
        intersection(clauses).into_iter().map(|index| self.place(index).map(|(place, _)| place)).collect()
    }

    /// Records of messages whose fingerprint is between these two, both included; ascending.
    pub fn with_fingerprint(&self, low: u32, high: u32) -> Result<Vec<Place>, StoreError> {
        // Fingerprints are evenly spread: it is near where it would be among evenly spaced ones.
        const NEAR: usize = 256;
        let near = ((u64::from(low) * self.ids as u64) >> 32) as usize;
        let (mut start, mut end) = (near.saturating_sub(NEAR), (near + NEAR).min(self.ids));
        if start > 0 && self.id(start - 1)?.0 >= low {
            start = 0;
        }
        if end < self.ids && self.id(end)?.0 < low {
            end = self.ids;
        }
        while start < end {
            let middle = start + (end - start) / 2;
            if self.id(middle)?.0 < low { start = middle + 1 } else { end = middle }
        }
        let mut indexes = Vec::new();
        for number in start..self.ids {
            let (fingerprint, index) = self.id(number)?;
            if fingerprint > high {
                break;
            }
            indexes.push(index);
        }
        indexes.sort_unstable();
        indexes.into_iter().map(|index| self.place(index).map(|(place, _)| place)).collect()
    }

    fn id(&self, number: usize) -> Result<(u32, u32), StoreError> {
        let entry = self.stretch(self.ids_start() + number * ID_BYTES, ID_BYTES)?;
        Ok((u32_at(entry, 0), u32_at(entry, 4)))
    }
}

/// The little-endian word at `at`, which the caller knows to be inside.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}
