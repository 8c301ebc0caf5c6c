//! The commit path: a segment into the journal, entries of the journal into the log.

use super::error::{Part, StoreError};
use super::journal::{Entry, Journal};
use super::seal::{Current, Seal};
use super::segment::{Behind, Segment};
use super::snapshot::log_number;
use super::{APPLIED_KEY, Databases, EPOCH_KEY, Failed, Store, meta_corrupt, u32_of, u64_of};
use heed::{PutFlags, RoTxn, RwTxn};
use std::sync::Arc;

impl Store {
    /// Appends a segment for somebody who waits; it is on the disk when this returns its number, and every look at the
    /// store sees it. After an error the call may be repeated, also when more was pushed meanwhile: each record is kept
    /// once, whether or not what failed has reached the disk. Clear the segment after success. One thread at a time.
    pub fn append(&self, segment: &mut Segment) -> Result<u64, StoreError> {
        let journal = self.0.journal.get().ok_or(StoreError::ReadOnly)?;
        if journal.refused() {
            // No more is taken than what has a place in the log.
            self.absorb()?;
        }
        let (seal, current) = (self.seal(), self.seal().current()?);
        while Journal::takes(segment.largest()) && !segment.was_tried() {
            let number = journal.last().checked_add(1).ok_or(meta_corrupt("no segment can follow the last one"))?;
            let bytes = segment.prepare(number, seal, &current)?;
            let value = |out: &mut Vec<u8>| {
                let written = segment.write(number, seal, &current, &mut Behind::new(out));
                written.map_err(|error| StoreError::Io(error.to_string()))
            };
            if journal.write(number, bytes, value)?.is_some() {
                return Ok(number);
            }
            self.absorb()?;
        }
        self.append_at_once(segment)
    }

    /// The same when nobody waits: into the log by one transaction of LMDB, with everything that the journal holds. It takes
    /// two flushes, and writes everything once.
    pub fn append_at_once(&self, segment: &mut Segment) -> Result<u64, StoreError> {
        let journal = self.0.journal.get().ok_or(StoreError::ReadOnly)?;
        let number = self.absorbing(journal, |entries| self.append_to_log(segment, entries))?;
        journal.passed_by(number);
        Ok(number)
    }

    /// As one transaction of LMDB, behind what the journal holds.
    fn append_to_log(&self, segment: &mut Segment, entries: &[Arc<Entry>]) -> Result<u64, StoreError> {
        let current = self.seal().current()?;
        self.write(|transaction, databases| {
            if !entries.is_empty() {
                absorb(transaction, databases, entries)?;
            }
            let last = match databases.log.last(transaction)? {
                Some((key, value)) => {
                    let last = log_number(key)?;
                    if segment.was_kept_as(last, value) {
                        // The failed commit was kept after all. Its own first page may still be in memory only: this
                        // commit makes sure of it.
                        segment.forget_kept();
                        if segment.is_empty() {
                            touch(transaction, databases)?;
                            return Ok(last);
                        }
                    }
                    last
                }
                None => log_last(databases, transaction)?,
            };
            let number = last.checked_add(1).ok_or(meta_corrupt("no segment can follow the last one"))?;
            put(transaction, databases, self.seal(), &current, number, segment)?;
            Ok(number)
        })
    }
}

/// The number of the log's last segment. Of an empty log: all was applied, and swept away.
pub(super) fn log_last(databases: &Databases, transaction: &RoTxn<'_>) -> Result<u64, Failed> {
    Ok(match databases.log.last(transaction)? {
        Some((key, _)) => log_number(key)?,
        None => {
            let applied = databases.meta.get(transaction, APPLIED_KEY)?;
            applied.map_or(Ok(0), |value| u64_of(APPLIED_KEY, value))?
        }
    })
}

/// Puts entries of the journal at the end of the log, those that are not there yet.
pub(super) fn absorb(transaction: &mut RwTxn<'_>, databases: &Databases, entries: &[Arc<Entry>]) -> Result<(), Failed> {
    let last = databases.log.last(transaction)?.map_or(Ok(0), |(key, _)| log_number(key))?;
    for entry in entries.iter().filter(|entry| entry.number > last) {
        let key = entry.number.to_be_bytes();
        databases.log.put_with_flags(transaction, PutFlags::APPEND, &key, entry.value())?;
    }
    // If an earlier commit that was reported as failed has kept them all: its first page may still be in memory only.
    touch(transaction, databases)
}

/// A change that changes nothing: the commit reaches the disk.
fn touch(transaction: &mut RwTxn<'_>, databases: &Databases) -> Result<(), Failed> {
    let epoch = databases.meta.get(transaction, EPOCH_KEY)?.map_or(Ok(0), |value| u32_of(EPOCH_KEY, value))?;
    Ok(databases.meta.put(transaction, EPOCH_KEY, &epoch.to_be_bytes())?)
}

/// Puts one segment at the end of the log.
pub(super) fn put(
    transaction: &mut RwTxn<'_>,
    databases: &Databases,
    seal: &Seal,
    current: &Current,
    number: u64,
    segment: &mut Segment,
) -> Result<(), Failed> {
    let bytes = segment.prepare(number, seal, current)?;
    segment.tried(number);
    let key = number.to_be_bytes();
    let write = |space: &mut heed::ReservedSpace<'_>| segment.write(number, seal, current, space);
    match databases.log.get_or_put_reserved_with_flags(transaction, PutFlags::APPEND, &key, bytes, write)? {
        None => Ok(()),
        Some(_) => Err(Failed::Store(StoreError::corrupt(Part::Log, number, "it is there already"))),
    }
}
