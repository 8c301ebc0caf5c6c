//! The journal: segments that were appended and are not in the log yet. A file beside LMDB's, written with one flush a
//! commit where LMDB needs two and the pages of a tree; whoever absorbs puts many segments into the log with one commit of
//! LMDB, behind the writer's back (`docs/decisions/20-journal.md`).
//!
//! ```text
//! append ── one write, one flush ──► half A │ half B      durable from here on
//! absorb ── entries of one half ──► log                    while appends go on in the other
//! ```
//! An entry, little-endian, padded to 4,096 bytes so that no later write touches its blocks:
//!
//! ```text
//!  0  magic "RYJL"    4  CRC-32 of what follows, up to the value's end
//!  8  store id, 16 bytes    24  segment number u64    32  bytes of the value u64    40  attempt u64
//! 48  the value: what the log will hold under that number
//! ```
//! A write that failed may have reached the disk all the same, and is repeated with more in it: of two entries with one
//! number the later attempt counts.
//! Blocks are written with zeros before entries are: a write that makes the file longer, or gives it a block, is on the disk
//! only with the file system's own bookkeeping, which takes a third longer to flush and is where file systems err.
//!
//! A half is used again only when all of it is in the log and on the disk. What is left of its last use has smaller numbers
//! than what is written over its beginning, and is told apart by them.

use super::{Store, StoreError, append, error, log_last, open};
use parking_lot::{Mutex, MutexGuard};
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The file, beside LMDB's.
pub(super) const JOURNAL_FILE: &str = "journal";
/// Bytes of each half: more than the largest batch of the mode that commits once a second.
const HALF_BYTES: u64 = 16 * 1024 * 1024;
const HEADER_BYTES: usize = 48;
const MAGIC: [u8; 4] = *b"RYJL";
/// Entries begin at multiples of this: no block of the disk holds two.
const BLOCK_BYTES: usize = 4096;
/// A value larger than this goes into the log at once: its pages cost more than the second flush, and need not be written
/// twice.
const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// What is put into the log by one transaction: a commit of LMDB is shared by many, and delays none for long.
pub const ABSORBED_AT_ONCE: u64 = 512 * 1024;
/// A half is left for the other one, so that it can be used again, when it holds this much.
const TURN_BYTES: u64 = 2 * 1024 * 1024;
/// Zeros are written so many bytes at a time …
const ROOM_BYTES: usize = 256 * 1024;
/// … and so many ahead, where it holds nobody up.
const ROOM_AHEAD: u64 = 1024 * 1024;
static ZEROS: [u8; ROOM_BYTES] = [0; ROOM_BYTES];
/// How often a reader looks again because the writer was faster.
const READ_TRIES_MAX: u32 = 8;
/// Entries kept to be used again, and the largest of them: what a busy writer needs between two absorptions.
const SPARE_MAX: usize = 8;
const SPARE_BYTES_MAX: usize = 512 * 1024;

/// A segment as it lies in the file.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) number: u64,
    attempt: u64,
    bytes: Vec<u8>,
    end: usize,
}

impl Entry {
    /// What the log will hold.
    pub(super) fn value(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..self.end]
    }

    /// Bytes of the file that a value takes.
    fn space(value_bytes: usize) -> u64 {
        (HEADER_BYTES + value_bytes).next_multiple_of(BLOCK_BYTES) as u64
    }

    fn fill<E>(
        &mut self,
        store_id: &[u8; 16],
        (number, attempt): (u64, u64),
        value: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes = &mut self.bytes;
        bytes.clear();
        bytes.resize(HEADER_BYTES, 0);
        value(bytes)?;
        (self.number, self.attempt, self.end) = (number, attempt, bytes.len());
        let length = (self.end - HEADER_BYTES) as u64;
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[8..24].copy_from_slice(store_id);
        bytes[24..32].copy_from_slice(&number.to_le_bytes());
        bytes[32..40].copy_from_slice(&length.to_le_bytes());
        bytes[40..48].copy_from_slice(&attempt.to_le_bytes());
        let sum = crc32fast::hash(&bytes[8..]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes.resize(self.end.next_multiple_of(BLOCK_BYTES), 0);
        Ok(())
    }

    /// The whole entry at the beginning of `bytes`, if one is there.
    fn parse(bytes: &[u8], store_id: &[u8; 16]) -> Option<Entry> {
        let header = bytes.first_chunk::<HEADER_BYTES>()?;
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight of the header's bytes"));
        if header[..4] != MAGIC || header[8..24] != store_id[..] {
            return None;
        }
        let length = usize::try_from(long(32)).ok()?;
        let end = HEADER_BYTES.checked_add(length)?;
        let sum = u32::from_le_bytes(header[4..8].try_into().expect("four of the header's bytes"));
        let whole = crc32fast::hash(bytes.get(8..end)?) == sum;
        whole.then(|| Entry { number: long(24), attempt: long(40), bytes: bytes[..end].to_vec(), end })
    }
}

/// One half of the file.
#[derive(Clone, Copy, Default)]
struct Half {
    used: u64,
    /// The number of its last entry.
    last: u64,
}

#[derive(Default)]
struct State {
    /// What is not in the log, ascending and without gaps.
    entries: VecDeque<Arc<Entry>>,
    spare: Vec<Arc<Entry>>,
    /// Empty; for whoever absorbs next.
    batch: Vec<Arc<Entry>>,
    halves: [Half; 2],
    active: usize,
    /// Writes so far.
    attempts: u64,
    /// Whether the last attempt to put something into the log failed.
    refused: bool,
}

/// The open file of a store that is written.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    identity: Option<(u64, u64)>,
    store_id: [u8; 16],
    state: Mutex<State>,
    /// How much of each half has blocks.
    room: [AtomicU64; 2],
    /// Held by whoever gives a half more.
    growing: Mutex<()>,
    /// Held by whoever puts entries into the log.
    absorbing: Mutex<()>,
    last: AtomicU64,
    waiting_bytes: AtomicU64,
    /// Where what was found did not go on, and with which number it would have.
    gap: Option<(u64, u64)>,
}

impl Journal {
    /// Opens or makes the file in `folder`. The log's last number is `last`; `found` is what follows it here.
    fn open(folder: &Path, store_id: [u8; 16], last: u64, found: Vec<Found>) -> io::Result<Journal> {
        let path = folder.join(JOURNAL_FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        let file = options.open(&path)?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        let identity = open::identity_of(file.as_fd());
        let room = [AtomicU64::new(blocks_of(&file, 0)?), AtomicU64::new(blocks_of(&file, 1)?)];
        let mut state = State::default();
        let (mut last, mut waiting_bytes) = (last, 0);
        for Found { entry, half, end } in found {
            let place = &mut state.halves[half];
            (place.used, place.last) = (place.used.max(end), entry.number);
            (state.active, last) = (half, entry.number);
            state.attempts = state.attempts.max(entry.attempt);
            waiting_bytes += Entry::space(entry.value().len());
            state.entries.push_back(entry);
        }
        for (room, half) in room.iter().zip(&state.halves) {
            // A file system may keep zeros as a hole, in the middle of an entry as well.
            room.fetch_max(half.used, Ordering::Relaxed);
        }
        Ok(Journal {
            path,
            file,
            identity,
            store_id,
            state: Mutex::new(state),
            room,
            growing: Mutex::default(),
            absorbing: Mutex::default(),
            last: AtomicU64::new(last),
            waiting_bytes: AtomicU64::new(waiting_bytes),
            gap: None,
        })
    }

    /// The number of the last segment, in the log or here.
    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// Bytes that wait for being put into the log.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    /// What is not in the log yet, or only just. Ask before the log is looked at: each entry is in one of the two.
    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        self.state.lock().entries.iter().cloned().collect()
    }

    pub(super) fn refused(&self) -> bool {
        self.state.lock().refused
    }

    /// Whether a value of so many bytes has its place here, and not at once in the log.
    pub(super) fn takes(value_bytes: usize) -> bool {
        value_bytes <= VALUE_BYTES_MAX
    }

    /// Takes a place for an entry: in which half and where in the file, and which attempt it is. None: both halves are full.
    fn reserve(&self, number: u64, space: u64) -> Option<(usize, u64, u64)> {
        let mut state = self.state.lock();
        if state.halves[state.active].used + space > HALF_BYTES {
            let other = 1 - state.active;
            if state.halves[other].used > 0 {
                return None;
            }
            state.active = other;
        }
        let index = state.active;
        let half = &mut state.halves[index];
        let at = index as u64 * HALF_BYTES + half.used;
        (half.used, half.last) = (half.used + space, number);
        state.attempts += 1;
        Some((index, at, state.attempts))
    }

    /// Writes the entry of segment `number`; it is on the disk when this returns. None: there is no room before more is
    /// put into the log. After an error nothing of it counts, and the next one is written over it.
    pub(super) fn write(
        &self,
        number: u64,
        value_bytes: usize,
        value: impl FnOnce(&mut Vec<u8>) -> Result<(), StoreError>,
    ) -> Result<Option<()>, StoreError> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let failed = |error: io::Error| error::of_io(&error, folder);
        // The kernel keeps a deleted file for those who have it open, and drops it with the last of them.
        if self.identity.is_none() || self.identity != open::identity(&self.path) {
            return Err(StoreError::Gone);
        }
        let space = Entry::space(value_bytes);
        let Some((half, at, attempt)) = self.reserve(number, space) else { return Ok(None) };
        let mut entry = self.spare();
        let made = Arc::get_mut(&mut entry).expect("nobody else has a spare one");
        let written = made.fill(&self.store_id, (number, attempt), value).and_then(|()| {
            self.make_room(half, at - half as u64 * HALF_BYTES + space).map_err(failed)?;
            self.file.write_all_at(&made.bytes, at).map_err(failed)?;
            flush(&self.file).map_err(failed)
        });
        let mut state = self.state.lock();
        if let Err(error) = written {
            state.halves[half].used -= space;
            state.spare.push(entry);
            return Err(error);
        }
        state.entries.push_back(entry);
        self.waiting_bytes.fetch_add(space, Ordering::Relaxed);
        self.last.store(number, Ordering::Release);
        Ok(Some(()))
    }

    /// Gives a half blocks up to `end`.
    fn make_room(&self, half: usize, end: u64) -> io::Result<()> {
        let end = end.min(HALF_BYTES);
        if self.room[half].load(Ordering::Acquire) >= end {
            return Ok(());
        }
        let _turn = self.growing.lock();
        let mut room = self.room[half].load(Ordering::Acquire);
        if room >= end {
            return Ok(());
        }
        while room < end {
            let bytes = ROOM_BYTES.min((HALF_BYTES - room) as usize);
            self.file.write_all_at(&ZEROS[..bytes], half as u64 * HALF_BYTES + room)?;
            room += bytes as u64;
        }
        self.file.sync_all()?;
        self.room[half].store(room, Ordering::Release);
        Ok(())
    }

    /// Gives the half that is written now, and the one that is next, blocks before they are needed.
    fn make_room_ahead(&self) -> io::Result<()> {
        let (active, used) = {
            let state = self.state.lock();
            if state.attempts == 0 {
                return Ok(());
            }
            (state.active, state.halves[state.active].used)
        };
        self.make_room(active, used + ROOM_AHEAD)?;
        if used >= TURN_BYTES / 2 { self.make_room(1 - active, ROOM_AHEAD) } else { Ok(()) }
    }

    fn spare(&self) -> Arc<Entry> {
        let mut state = self.state.lock();
        while let Some(mut entry) = state.spare.pop() {
            // Somebody may still be reading it.
            if Arc::get_mut(&mut entry).is_some() {
                return entry;
            }
        }
        Arc::default()
    }

    /// A segment went into the log without being here before.
    pub(super) fn passed_by(&self, number: u64) {
        self.last.store(number, Ordering::Release);
    }

    /// What is to be put into the log now, by whoever holds the turn: about so many bytes of it. New entries go to the
    /// other half if this one has served its turn.
    fn begin(&self, bytes: u64) -> (MutexGuard<'_, ()>, Vec<Arc<Entry>>) {
        let turn = self.absorbing.lock();
        let mut state = self.state.lock();
        let other = 1 - state.active;
        if state.halves[other].used == 0 && state.halves[state.active].used >= TURN_BYTES {
            state.active = other;
        }
        let mut batch = std::mem::take(&mut state.batch);
        let mut taken = 0;
        for entry in &state.entries {
            if taken >= bytes {
                break;
            }
            taken += Entry::space(entry.value().len());
            batch.push(entry.clone());
        }
        drop(state);
        (turn, batch)
    }

    /// What `begin` gave is in the log and on the disk, or is not.
    fn end(&self, mut batch: Vec<Arc<Entry>>, is_kept: bool) {
        let through = batch.last().map_or(0, |entry| entry.number);
        // Before entries are let go, so that their memory can be used again.
        batch.clear();
        let mut state = self.state.lock();
        state.batch = batch;
        state.refused = !is_kept;
        if !is_kept {
            return;
        }
        while let Some(entry) = state.entries.pop_front_if(|entry| entry.number <= through) {
            self.waiting_bytes.fetch_sub(Entry::space(entry.value().len()), Ordering::Relaxed);
            if state.spare.len() < SPARE_MAX && entry.bytes.capacity() <= SPARE_BYTES_MAX {
                state.spare.push(entry);
            }
        }
        for half in &mut state.halves {
            if half.last <= through {
                *half = Half::default();
            }
        }
    }
}

/// How far a half has blocks without a hole.
fn blocks_of(file: &File, half: u64) -> io::Result<u64> {
    let start = half * HALF_BYTES;
    if file.metadata()?.len() <= start {
        return Ok(0);
    }
    let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?;
    let blocks = hole.saturating_sub(start).min(HALF_BYTES);
    Ok(blocks - blocks % BLOCK_BYTES as u64)
}

/// To the disk with what was written.
fn flush(file: &File) -> io::Result<()> {
    if cfg!(relay_unsafe_sync = "no_sync") { Ok(()) } else { file.sync_data() }
}

/// Whether the file in `folder` was ever written to: each half begins with an entry from its first use on.
pub(super) fn is_written(folder: &Path) -> io::Result<bool> {
    let file = match File::open(folder.join(JOURNAL_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    for half in 0..2 {
        let mut beginning = [0; MAGIC.len()];
        if read_at_most(&file, &mut beginning, half * HALF_BYTES)? == MAGIC.len() && beginning == MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An entry that a file held, in which half, and where it ends there.
struct Found {
    entry: Arc<Entry>,
    half: usize,
    end: u64,
}

/// The entries behind segment `last` that the file in `folder` holds, without gaps; and the first behind a gap, if any.
fn read(folder: &Path, store_id: &[u8; 16], last: u64) -> io::Result<(Vec<Found>, Option<u64>)> {
    let file = match File::open(folder.join(JOURNAL_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), None)),
        file => file?,
    };
    let mut found = Vec::new();
    for half in 0..2u64 {
        let length = file.metadata()?.len().saturating_sub(half * HALF_BYTES).min(HALF_BYTES);
        let mut bytes = vec![0; length as usize];
        let read = read_at_most(&file, &mut bytes, half * HALF_BYTES)?;
        let mut rest = &bytes[..read];
        let mut before = None;
        while let Some(entry) = Entry::parse(rest, store_id) {
            // Smaller numbers are of the half's last use.
            if before.is_some_and(|before| entry.number != before + 1) {
                break;
            }
            before = Some(entry.number);
            rest = rest.get(Entry::space(entry.value().len()) as usize..).unwrap_or_default();
            let end = (read - rest.len()) as u64;
            found.push(Found {
                entry: Arc::new(entry),
                half: half as usize,
                end: end.next_multiple_of(BLOCK_BYTES as u64),
            });
        }
    }
    found.retain(|found| found.entry.number > last);
    found.sort_unstable_by_key(|found| (found.entry.number, Reverse(found.entry.attempt)));
    found.dedup_by_key(|found| found.entry.number);
    let follows = found.iter().zip(last + 1..).take_while(|(found, number)| found.entry.number == *number).count();
    let gap = found.get(follows).map(|found| found.entry.number);
    found.truncate(follows);
    Ok((found, gap))
}

/// Another process may make the file shorter meanwhile, but not longer than was asked.
fn read_at_most(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

impl Store {
    /// Runs `put` with everything that is not in the log yet, to be put there by the same transaction as what is too large
    /// for the journal.
    pub(super) fn absorbing<R>(
        &self,
        journal: &Journal,
        put: impl FnOnce(&[Arc<Entry>]) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let (_turn, batch) = journal.begin(u64::MAX);
        let done = put(&batch);
        journal.end(batch, done.is_ok());
        done
    }

    /// Bytes that were appended and are not in the log yet.
    pub fn unabsorbed_bytes(&self) -> u64 {
        self.0.journal.get().map_or(0, Journal::waiting_bytes)
    }

    /// Where the journal of a store that was opened for writing did not follow the log, and the segment that it has behind
    /// that gap: it was copied here from another moment, since no commit of ours leaves one. It is passed over.
    pub fn journal_gap(&self) -> Option<(u64, u64)> {
        self.0.journal.get()?.gap
    }

    /// Puts everything that was appended into the log. Anybody may, at any time; appends and reads go on meanwhile.
    pub fn absorb(&self) -> Result<(), StoreError> {
        self.absorb_some(u64::MAX)
    }

    /// Gives the journal room before it is needed.
    pub fn make_room(&self) -> Result<(), StoreError> {
        let Some(journal) = self.0.journal.get() else { return Ok(()) };
        journal.make_room_ahead().map_err(|error| error::of_io(&error, &self.0.folder))
    }

    /// Puts about so many bytes of what was appended into the log.
    pub fn absorb_some(&self, bytes: u64) -> Result<(), StoreError> {
        let Some(journal) = self.0.journal.get() else { return Ok(()) };
        let (_turn, batch) = journal.begin(bytes);
        let kept = match batch.is_empty() {
            true => Ok(()),
            false => self.write(|transaction, databases| append::absorb(transaction, databases, &batch)),
        };
        journal.end(batch, kept.is_ok());
        kept
    }

    /// Finds what the log does not hold yet.
    pub(super) fn open_journal(&self) -> Result<(), StoreError> {
        let folder = &self.0.folder;
        let failed = |error: io::Error| error::of_io(&error, folder);
        let last = |store: &Store| {
            let snapshot = store.snapshot()?;
            log_last(snapshot.databases(), snapshot.transaction()).map_err(|error| match error {
                super::Failed::Store(error) => error,
                super::Failed::Library(error) => error::of_heed(error, folder),
            })
        };
        let mut tries = 0;
        let (end, found, gap) = loop {
            let end = last(self)?;
            let (found, gap) = read(folder, &self.store_id(), end).map_err(failed)?;
            tries += 1;
            // Whoever writes meanwhile puts what follows into the log, and other entries over it.
            let was_overtaken = gap.is_some() && self.0.access == super::Access::Read && tries < READ_TRIES_MAX;
            if !was_overtaken {
                break (end, found, gap);
            }
        };
        if self.0.access == super::Access::Read {
            let _ = self.0.ahead.set(found.into_iter().map(|found| found.entry).collect());
            return Ok(());
        }
        // Nothing is put into the log here: whoever opens a store first looks whether it is whole.
        let mut journal = Journal::open(folder, self.store_id(), end, found).map_err(failed)?;
        journal.gap = gap.map(|number| (journal.last(), number));
        let _ = self.0.journal.set(journal);
        Ok(())
    }
}
