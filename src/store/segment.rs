//! A segment: what one commit appends to the log. Built here without allocating in the steady state, read here one piece
//! at a time. `docs/STORE.md` draws it byte by byte.

use super::error::{Part, StoreError};
use super::record::{self, RecordRef};
use super::seal::{Binding, Current, FLAG_SEALED, SALT_BYTES, Seal, TAG_BYTES};
use crate::relay::{Place, Record};
use ring::aead::LessSafeKey;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;

/// The version of segments that this program writes.
const VERSION: u16 = 1;
/// Bytes of a segment's header.
pub(super) const HEADER_BYTES: usize = 44;
/// Bytes of one entry of the piece table.
const ENTRY_BYTES: usize = 20;
/// A piece ends before the record that would make it larger than this; a larger record is a piece of its own. Whoever reads
/// one record checks one piece: small ones make scattered reads cheap, and cost a table entry (and a tag) each.
const PIECE_BYTES: usize = 8 * 1024;
/// Plaintext of one segment. A batch is far smaller; this keeps every length in 32 bits.
pub(super) const SEGMENT_BYTES_MAX: usize = 1 << 30;
/// Buffers that a burst has made larger than this are let go when the segment is cleared.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Records on their way into the log. Reused from commit to commit.
#[derive(Default)]
pub struct Segment {
    plain: Vec<u8>,
    /// Where each piece begins.
    starts: Vec<u32>,
    records: u32,
    messages: u32,
    first_ms: u64,
    last_ms: u64,
    /// Whether anything in it has a time; until then it has the last one of the segment before.
    timed: bool,
    /// Header and table as they were last written; what a failed commit tried to keep.
    head: Vec<u8>,
    /// What the last attempt to commit it was.
    attempt: Option<Attempt>,
}

/// What was in a segment when it was last given to a commit.
#[derive(Clone, Copy)]
struct Attempt {
    number: u64,
    bytes: usize,
    records: u32,
    messages: u32,
}

impl Segment {
    /// An empty one.
    pub fn new() -> Segment {
        Segment::default()
    }

    /// Adds a record. Where it will lie in the segment is returned: its `Place::offset`.
    #[inline]
    pub fn push(&mut self, record: &Record) -> u32 {
        let start = self.plain.len();
        record::encode(record, &mut self.plain);
        let piece = self.starts.last().copied();
        if piece.is_none_or(|piece| self.plain.len() - piece as usize > PIECE_BYTES) {
            self.starts.push(start as u32);
        }
        if let Some(at_ms) = record::at_ms(record) {
            self.at(at_ms);
        }
        self.records += 1;
        self.messages += u32::from(matches!(record, Record::Message { .. }));
        start as u32
    }

    /// The wall clock stood at this time while the segment was filled: its span includes it.
    #[inline]
    pub fn at(&mut self, now_ms: u64) {
        if !self.timed {
            (self.first_ms, self.last_ms, self.timed) = (now_ms, now_ms, true);
        }
        self.first_ms = self.first_ms.min(now_ms);
        self.last_ms = self.last_ms.max(now_ms);
    }

    /// Records in it.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Messages among them.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Bytes of its records.
    pub fn bytes(&self) -> usize {
        self.plain.len()
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The record that was pushed at `offset`, as a reader of the log will see it; none if none begins there.
    pub fn record_at(&self, offset: u32) -> Option<RecordRef<'_>> {
        record::decode(self.plain.get(offset as usize..)?).ok().map(|(record, _)| record)
    }

    /// Each record that was pushed, with its offset, as a reader of the log will see it.
    pub fn records_pushed(&self) -> impl Iterator<Item = (u32, RecordRef<'_>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (record, length) = record::decode(self.plain.get(at..)?).ok()?;
            let offset = at as u32;
            at += length;
            Some((offset, record))
        })
    }

    /// Empty again, its buffers kept. A segment without a time of its own will have the last one seen.
    pub fn clear(&mut self) {
        self.plain.clear();
        if self.plain.capacity() > KEPT_BYTES_MAX {
            self.plain.shrink_to(KEPT_BYTES_MAX / 16);
        }
        self.starts.clear();
        (self.records, self.messages) = (0, 0);
        (self.first_ms, self.timed) = (self.last_ms, false);
        self.attempt = None;
    }

    /// It is given to a commit of LMDB as this number.
    pub(super) fn tried(&mut self, number: u64) {
        let Segment { records, messages, .. } = *self;
        self.attempt = Some(Attempt { number, bytes: self.plain.len(), records, messages });
    }

    /// Whether a commit of LMDB has failed with it, and may have kept it all the same: only the log can tell.
    pub(super) fn was_tried(&self) -> bool {
        self.attempt.is_some()
    }

    /// Whether this is the value that the last attempt, reported as failed, tried to keep under this number.
    pub(super) fn was_kept_as(&self, number: u64, value: &[u8]) -> bool {
        self.attempt.is_some_and(|attempt| attempt.number == number) && value.starts_with(&self.head)
    }

    /// Lets go of what the last attempt has kept after all; what was pushed since remains.
    pub(super) fn forget_kept(&mut self) {
        let Some(kept) = self.attempt.take() else { return };
        self.plain.drain(..kept.bytes);
        self.records -= kept.records;
        self.messages -= kept.messages;
        self.starts.retain_mut(|start| match (*start as usize).checked_sub(kept.bytes) {
            Some(moved) => {
                *start = moved as u32;
                true
            }
            None => false,
        });
        // The piece that was open then goes on with what came behind.
        if self.records > 0 && self.starts.first() != Some(&0) {
            self.starts.insert(0, 0);
        }
    }

    /// Makes header and table for segment `number`; returns the bytes of the whole value.
    pub(super) fn prepare(&mut self, number: u64, seal: &Seal, current: &Current) -> Result<usize, StoreError> {
        if self.plain.len() > SEGMENT_BYTES_MAX {
            return Err(StoreError::TooLong(self.plain.len()));
        }
        let sealed = seal.is_sealed();
        let pieces = self.starts.len();
        let counter = if sealed { seal.counters(pieces as u32)? } else { 0 };
        let key = number.to_be_bytes();
        self.head.clear();
        let mut header = [0; HEADER_BYTES];
        header[0..2].copy_from_slice(&VERSION.to_le_bytes());
        header[2..4].copy_from_slice(&if sealed { FLAG_SEALED } else { 0 }.to_le_bytes());
        header[4..8].copy_from_slice(&self.records.to_le_bytes());
        header[8..12].copy_from_slice(&self.messages.to_le_bytes());
        header[12..16].copy_from_slice(&(self.plain.len() as u32).to_le_bytes());
        header[16..24].copy_from_slice(&self.first_ms.to_le_bytes());
        header[24..32].copy_from_slice(&self.last_ms.to_le_bytes());
        header[32..36].copy_from_slice(&current.epoch.to_le_bytes());
        header[36..40].copy_from_slice(&(pieces as u32).to_le_bytes());
        self.head.extend_from_slice(&header);
        for index in 0..pieces {
            let (start, end) = self.span(index);
            let mut entry = [0; ENTRY_BYTES];
            entry[0..4].copy_from_slice(&(start as u32).to_le_bytes());
            entry[4..8].copy_from_slice(&((end - start) as u32).to_le_bytes());
            if sealed {
                entry[8..16].copy_from_slice(&(counter + index as u64).to_le_bytes());
            } else {
                let checksum = piece_checksum(&key, index as u32, &self.plain[start..end]);
                entry[16..20].copy_from_slice(&checksum.to_le_bytes());
            }
            self.head.extend_from_slice(&entry);
        }
        let checksum = head_checksum(&key, &self.head);
        self.head[40..44].copy_from_slice(&checksum.to_le_bytes());
        Ok(self.head.len() + self.plain.len() + if sealed { pieces * TAG_BYTES } else { 0 })
    }

    /// Bytes of the value that it makes at most.
    pub(super) fn largest(&self) -> usize {
        HEADER_BYTES + self.plain.len() + self.starts.len() * (ENTRY_BYTES + TAG_BYTES)
    }

    /// Writes the value, sealing it where it lies.
    pub(super) fn write(
        &self,
        number: u64,
        seal: &Seal,
        current: &Current,
        out: &mut impl Space,
    ) -> std::io::Result<()> {
        out.write_all(&self.head)?;
        if !seal.is_sealed() {
            return out.write_all(&self.plain);
        }
        for index in 0..self.starts.len() {
            let (start, end) = self.span(index);
            out.write_all(&self.plain[start..end])?;
            out.write_all(&[0; TAG_BYTES])?;
        }
        let key = number.to_be_bytes();
        let (head, mut rest) = out.written().split_at_mut(self.head.len());
        for index in 0..self.starts.len() {
            let (start, end) = self.span(index);
            let (piece, behind) = rest.split_at_mut(end - start);
            let (tag, behind) = behind.split_at_mut(TAG_BYTES);
            rest = behind;
            let counter = entry(head, index).counter;
            let binding = Binding { part: Part::Log, key: &key, piece: index as u32, header: &head[..HEADER_BYTES] };
            let sealed = seal.seal(current, counter, binding, piece).map_err(std::io::Error::other)?;
            tag.copy_from_slice(&sealed);
        }
        Ok(())
    }

    fn span(&self, index: usize) -> (usize, usize) {
        let end = self.starts.get(index + 1).map_or(self.plain.len(), |start| *start as usize);
        (self.starts[index] as usize, end)
    }
}

/// Where a value is written: what was written can be changed.
pub(super) trait Space: Write {
    /// All that was written.
    fn written(&mut self) -> &mut [u8];
}

impl Space for heed::ReservedSpace<'_> {
    fn written(&mut self) -> &mut [u8] {
        self.written_mut()
    }
}

/// The end of a vector.
pub(super) struct Behind<'a> {
    bytes: &'a mut Vec<u8>,
    begin: usize,
}

impl<'a> Behind<'a> {
    pub(super) fn new(bytes: &'a mut Vec<u8>) -> Behind<'a> {
        let begin = bytes.len();
        Behind { bytes, begin }
    }
}

impl Write for Behind<'_> {
    fn write(&mut self, more: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Space for Behind<'_> {
    fn written(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..]
    }
}

fn piece_checksum(key: &[u8], piece: u32, data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&piece.to_le_bytes());
    hasher.update(data);
    hasher.finalize()
}

/// Of header and table, the checksum's own place left out.
fn head_checksum(key: &[u8], head: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&head[..HEADER_BYTES - 4]);
    hasher.update(&head[HEADER_BYTES..]);
    hasher.finalize()
}

/// One entry of the piece table.
struct Entry {
    offset: u32,
    length: u32,
    counter: u64,
    checksum: u32,
}

/// The entry of a table whose length was checked.
fn entry(head: &[u8], index: usize) -> Entry {
    let at = HEADER_BYTES + index * ENTRY_BYTES;
    let bytes = &head[at..at + ENTRY_BYTES];
    Entry { offset: u32_at(bytes, 0), length: u32_at(bytes, 4), counter: u64_at(bytes, 8), checksum: u32_at(bytes, 16) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// What a segment's header says; checked against the table and the value's length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Its number.
    pub number: u64,
    /// Records in it.
    pub records: u32,
    /// Messages among them.
    pub messages: u32,
    /// Bytes of its records.
    pub bytes: u32,
    /// The earliest time in it, milliseconds since 1970.
    pub first_ms: u64,
    /// The latest.
    pub last_ms: u64,
    pub(super) epoch: u32,
    pieces: u32,
}

impl SegmentHeader {
    pub(super) fn parse(number: u64, value: &[u8], sealed: bool) -> Result<SegmentHeader, StoreError> {
        let corrupt = |what| StoreError::corrupt(Part::Log, number, what);
        let header = value.first_chunk::<HEADER_BYTES>().ok_or(corrupt("it is shorter than its header"))?;
        if u32_at(header, 0) & 0xffff != u32::from(VERSION) {
            return Err(corrupt("its format is unknown"));
        }
        if u32_at(header, 0) >> 16 != u32::from(if sealed { FLAG_SEALED } else { 0 }) {
            return Err(corrupt("it is not encrypted as the rest of the store"));
        }
        let parsed = SegmentHeader {
            number,
            records: u32_at(header, 4),
            messages: u32_at(header, 8),
            bytes: u32_at(header, 12),
            first_ms: u64_at(header, 16),
            last_ms: u64_at(header, 24),
            epoch: u32_at(header, 32),
            pieces: u32_at(header, 36),
        };
        let piece_cost = (ENTRY_BYTES + if sealed { TAG_BYTES } else { 0 }) as u64;
        let length = HEADER_BYTES as u64 + u64::from(parsed.pieces) * piece_cost + u64::from(parsed.bytes);
        if length != value.len() as u64 {
            return Err(corrupt("its length is not what its header says"));
        }
        let head = &value[..parsed.head_bytes()];
        if u32_at(header, 40) != head_checksum(&number.to_be_bytes(), head) {
            return Err(corrupt("the checksum of its header does not fit"));
        }
        let mut end = 0;
        for index in 0..parsed.pieces as usize {
            let entry = entry(head, index);
            if u64::from(entry.offset) != end || entry.length == 0 {
                return Err(corrupt("its pieces do not follow each other"));
            }
            end += u64::from(entry.length);
        }
        if end != u64::from(parsed.bytes) {
            return Err(corrupt("its pieces are not as long as its header says"));
        }
        Ok(parsed)
    }

    fn head_bytes(&self) -> usize {
        HEADER_BYTES + self.pieces as usize * ENTRY_BYTES
    }
}

/// A segment that lies in the store. Opens the piece that is asked for and keeps the last one.
pub struct SegmentView<'s> {
    header: SegmentHeader,
    value: &'s [u8],
    seal: &'s Seal,
    subkey: Option<Arc<LessSafeKey>>,
    /// The piece that was checked last, and is in `buffer` if it was sealed.
    opened: Option<usize>,
    buffer: Vec<u8>,
    pool: Option<&'s super::Buffers>,
}

impl<'s> SegmentView<'s> {
    pub(super) fn parse(
        number: u64,
        value: &'s [u8],
        seal: &'s Seal,
        pool: Option<&'s super::Buffers>,
        salt: impl FnOnce(u32) -> Result<Option<[u8; SALT_BYTES]>, StoreError>,
    ) -> Result<SegmentView<'s>, StoreError> {
        let header = SegmentHeader::parse(number, value, seal.is_sealed())?;
        let subkey = seal.subkey(header.epoch, || salt(header.epoch))?;
        if seal.is_sealed() && subkey.is_none() {
            return Err(StoreError::corrupt(Part::Log, number, "the salt of its epoch is missing"));
        }
        let buffer = pool.map(super::Buffers::take).unwrap_or_default();
        Ok(SegmentView { header, value, seal, subkey, opened: None, buffer, pool })
    }

    /// What its header says.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.header.number
    }

    /// Where a record begins, as the index says it.
    pub fn place(&self, offset: u32) -> Place {
        Place { segment: self.header.number, offset }
    }

    /// The record that begins at `offset`.
    pub fn record_at(&mut self, offset: u32) -> Result<RecordRef<'_>, StoreError> {
        let number = self.header.number;
        let corrupt = move |what| StoreError::corrupt(Part::Log, number, what);
        let value = self.value;
        let head = &value[..self.header.head_bytes()];
        // The last piece that begins at or before the offset.
        let (mut low, mut high) = (0, self.header.pieces as usize);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if entry(head, middle).offset <= offset { low = middle } else { high = middle }
        }
        if low == high {
            return Err(corrupt("it has no records"));
        }
        let start = entry(head, low).offset;
        let piece = self.piece(low)?;
        let bytes = piece.get((offset - start) as usize..).ok_or(corrupt("a place lies behind its end"))?;
        let (record, _) = record::decode(bytes).map_err(corrupt)?;
        Ok(record)
    }

    /// Each record, with its offset, until told to stop.
    pub fn records(&mut self, mut each: impl FnMut(u32, &RecordRef<'_>) -> ControlFlow<()>) -> Result<(), StoreError> {
        let number = self.header.number;
        let corrupt = |what| StoreError::corrupt(Part::Log, number, what);
        let mut found = 0u64;
        for index in 0..self.header.pieces as usize {
            let start = entry(&self.value[..self.header.head_bytes()], index).offset;
            let piece = self.piece(index)?;
            let mut at = 0;
            while at < piece.len() {
                let (record, length) = record::decode(&piece[at..]).map_err(corrupt)?;
                if each(start + at as u32, &record).is_break() {
                    return Ok(());
                }
                at += length;
                found += 1;
            }
        }
        if found != u64::from(self.header.records) {
            return Err(corrupt("it does not have as many records as its header says"));
        }
        Ok(())
    }

    /// The same records in the same pieces, to be sealed again.
    pub(super) fn copy_to_segment(&mut self) -> Result<Segment, StoreError> {
        let SegmentHeader { records, messages, first_ms, last_ms, pieces, .. } = self.header;
        let mut segment = Segment { records, messages, first_ms, last_ms, timed: true, ..Segment::default() };
        for index in 0..pieces as usize {
            segment.starts.push(segment.plain.len() as u32);
            let piece = self.piece(index)?;
            segment.plain.extend_from_slice(piece);
        }
        Ok(segment)
    }

    /// The plaintext of one piece, checked.
    fn piece(&mut self, index: usize) -> Result<&[u8], StoreError> {
        let corrupt = |what| StoreError::corrupt(Part::Log, self.header.number, what);
        let head_bytes = self.header.head_bytes();
        let entry = entry(&self.value[..head_bytes], index);
        let key = self.header.number.to_be_bytes();
        let tags = if self.seal.is_sealed() { index * TAG_BYTES } else { 0 };
        let start = head_bytes + entry.offset as usize + tags;
        let data = &self.value[start..start + entry.length as usize];
        let Some(subkey) = &self.subkey else {
            if self.opened != Some(index) {
                if piece_checksum(&key, index as u32, data) != entry.checksum {
                    return Err(corrupt("the checksum of a piece does not fit"));
                }
                self.opened = Some(index);
            }
            return Ok(data);
        };
        if self.opened != Some(index) {
            self.opened = None;
            let mut tag = [0; TAG_BYTES];
            let tag_start = start + entry.length as usize;
            tag.copy_from_slice(&self.value[tag_start..tag_start + TAG_BYTES]);
            self.buffer.clear();
            self.buffer.extend_from_slice(data);
            let header = &self.value[..HEADER_BYTES];
            let binding = Binding { part: Part::Log, key: &key, piece: index as u32, header };
            if !self.seal.open(subkey, entry.counter, binding, &mut self.buffer, tag) {
                return Err(corrupt("a piece is not what was encrypted here"));
            }
            self.opened = Some(index);
        }
        Ok(&self.buffer)
    }
}

impl Drop for SegmentView<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool {
            pool.give(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::AgentId;
    use proptest::prelude::*;

    fn value(seal: &Seal) -> Vec<u8> {
        let mut segment = Segment::new();
        for number in 0..3 {
            segment.push(&Record::Known { agent: AgentId(number), name: "x".repeat(40_000).into(), at_ms: number });
        }
        let current = seal.current().unwrap();
        segment.prepare(5, seal, &current).unwrap();
        let mut value = segment.head.clone();
        value.extend_from_slice(&segment.plain);
        value
    }

    /// As if somebody who knows the format had written it: the header's checksum fits.
    fn with_checksum(mut value: Vec<u8>) -> Vec<u8> {
        if value.len() >= HEADER_BYTES {
            let pieces = u32_at(&value, 36) as usize;
            let head = pieces.checked_mul(ENTRY_BYTES).and_then(|table| value.get(..HEADER_BYTES + table));
            if let Some(head) = head {
                let checksum = head_checksum(&5u64.to_be_bytes(), head);
                value[40..44].copy_from_slice(&checksum.to_le_bytes());
            }
        }
        value
    }

    fn walk(seal: &Seal, value: &[u8], offset: u32) {
        let Ok(mut view) = SegmentView::parse(5, value, seal, None, |_| Ok(None)) else { return };
        let _ = view.records(|_, _| ControlFlow::Continue(()));
        let _ = view.record_at(offset);
    }

    proptest! {
        #[test]
        fn whatever_bytes_a_segment_has_reading_ends(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            pieces in 0u32..4,
            offset in any::<u32>(),
        ) {
            let seal = Seal::new([1; 16], None);
            walk(&seal, &bytes, offset);
            let mut framed = bytes;
            if framed.len() >= HEADER_BYTES {
                framed[..4].copy_from_slice(&[1, 0, 0, 0]);
                framed[36..40].copy_from_slice(&pieces.to_le_bytes());
                let plain = framed.len().saturating_sub(HEADER_BYTES + pieces as usize * ENTRY_BYTES);
                framed[12..16].copy_from_slice(&(plain as u32).to_le_bytes());
            }
            walk(&seal, &with_checksum(framed), offset);
        }

        #[test]
        fn a_segment_with_wrong_bytes_is_read_or_refused_and_never_panics(
            at in 0usize..120,
            byte in any::<u8>(),
            offset in 0u32..200_000,
            cut in any::<prop::sample::Index>(),
        ) {
            let seal = Seal::new([1; 16], None);
            let mut value = value(&seal);
            value[at] = byte;
            walk(&seal, &value, offset);
            let value = with_checksum(value);
            walk(&seal, &value, offset);
            walk(&seal, &value[..cut.index(value.len())], offset);
        }
    }
}
