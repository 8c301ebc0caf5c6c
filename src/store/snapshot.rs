//! What the store holds at one moment. A read transaction keeps old pages from being used again: keep it short.

use super::error::{self, Part, StoreError};
use super::journal::Entry;
use super::seal::SALT_BYTES;
use super::segment::{SegmentHeader, SegmentView};
use super::{Databases, Open, Store, salt_key, u64_of};
use heed::{MdbError, RoTxn, WithoutTls};
use parking_lot::RwLockReadGuard;
use std::sync::Arc;

/// The store as it was when this was made. Other snapshots and commits go on beside it.
pub struct Snapshot<'s> {
    // Ends before the lock is given back: fields are dropped in this order.
    transaction: RoTxn<'static, WithoutTls>,
    databases: Databases,
    file_bytes: u64,
    /// What the log may not hold yet.
    ahead: Vec<Arc<Entry>>,
    _guard: RwLockReadGuard<'s, Option<Open>>,
    store: &'s Store,
}

impl Store {
    /// A look at the store as it is now. A thread that has one drops it before it takes the next or writes: either may
    /// find that the map has to change, and waits for every snapshot to end.
    pub fn snapshot(&self) -> Result<Snapshot<'_>, StoreError> {
        // Before the log: what goes over meanwhile is seen twice, and never not at all.
        let ahead = match self.0.journal.get() {
            Some(journal) => journal.entries(),
            None => self.0.ahead.get().cloned().unwrap_or_default(),
        };
        let mut tries = 0;
        loop {
            let guard = self.open_env()?;
            let open = guard.as_ref().expect("open_env checked it");
            let begun = open.env.clone().static_read_txn();
            let error = match begun {
                Ok(transaction) => {
                    let file_bytes = open.env.real_disk_size().map_err(|error| self.failed(error))?;
                    let databases = open.databases;
                    return Ok(Snapshot { transaction, databases, file_bytes, ahead, _guard: guard, store: self });
                }
                Err(error) => error,
            };
            drop(guard);
            tries += 1;
            match error {
                heed::Error::Mdb(MdbError::MapResized) if tries < 4 => self.adopt_size()?,
                heed::Error::Mdb(MdbError::Panic) if tries < 4 => self.reopen()?,
                error => return Err(self.failed(error)),
            }
        }
    }

    pub(super) fn failed(&self, error: heed::Error) -> StoreError {
        error::of_heed(error, self.folder())
    }
}

impl Snapshot<'_> {
    /// The first segment that is kept; one more than the last if none is.
    pub fn first_segment(&self) -> Result<u64, StoreError> {
        match self.databases.log.first(&self.transaction).map_err(|error| self.store.failed(error))? {
            Some((key, _)) => log_number(key),
            None => match self.ahead.first() {
                Some(entry) => Ok(entry.number),
                None => Ok(self.applied()? + 1),
            },
        }
    }

    /// The last segment; 0 before the first.
    pub fn last_segment(&self) -> Result<u64, StoreError> {
        let last = match self.databases.log.last(&self.transaction).map_err(|error| self.store.failed(error))? {
            Some((key, _)) => log_number(key)?,
            // Only what was applied is ever swept away.
            None => self.applied()?,
        };
        Ok(self.ahead.last().map_or(last, |entry| last.max(entry.number)))
    }

    /// What the log holds, or will hold, under a number.
    pub(super) fn log_value(&self, number: u64) -> Result<Option<&[u8]>, StoreError> {
        if let Some(value) = self.get(Part::Log, &number.to_be_bytes())? {
            return Ok(Some(value));
        }
        let found = self.ahead.binary_search_by_key(&number, |entry| entry.number);
        Ok(found.ok().map(|at| self.ahead[at].value()))
    }

    /// Every change up to and including this segment is in the rows.
    pub fn applied(&self) -> Result<u64, StoreError> {
        let value = self.get(Part::Meta, super::APPLIED_KEY)?;
        value.map_or(Ok(0), |value| u64_of(super::APPLIED_KEY, value))
    }

    /// A segment; none when it was swept away or does not exist yet.
    pub fn segment(&self, number: u64) -> Result<Option<SegmentView<'_>>, StoreError> {
        let Some(value) = self.log_value(number)? else { return Ok(None) };
        let pool = Some(&self.store.0.buffers);
        SegmentView::parse(number, value, self.store.seal(), pool, |epoch| self.salt(epoch)).map(Some)
    }

    /// What a segment's header says, without looking into it.
    pub fn segment_header(&self, number: u64) -> Result<Option<SegmentHeader>, StoreError> {
        let Some(value) = self.log_value(number)? else { return Ok(None) };
        SegmentHeader::parse(number, value, self.store.is_encrypted()).map(Some)
    }

    /// Length of the file.
    pub fn file_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.file_bytes)
    }

    /// Bytes of it that hold something.
    pub fn used_bytes(&self) -> Result<u64, StoreError> {
        let mut pages = 2;
        let mut page_bytes = 4096;
        for part in Part::ALL {
            let Some(database) = self.databases.of(part) else { continue };
            let stat = database.stat(&self.transaction).map_err(|error| self.store.failed(error))?;
            page_bytes = u64::from(stat.page_size);
            pages += (stat.branch_pages + stat.leaf_pages + stat.overflow_pages) as u64;
        }
        Ok(pages * page_bytes)
    }

    /// The payload of a value that `Seal::wrap` made; `buffer` holds it if it was sealed.
    pub(super) fn value<'a>(
        &'a self,
        part: Part,
        key: &[u8],
        buffer: &'a mut Vec<u8>,
    ) -> Result<Option<&'a [u8]>, StoreError> {
        let Some(value) = self.get(part, key)? else { return Ok(None) };
        self.store.seal().unwrap(part, key, value, buffer, |epoch| self.salt(epoch)).map(Some)
    }

    /// A value as it lies there.
    pub(super) fn get(&self, part: Part, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        let Some(database) = self.databases.of(part) else { return Ok(None) };
        database.get(&self.transaction, key).map_err(|error| self.store.failed(error))
    }

    pub(super) fn salt(&self, epoch: u32) -> Result<Option<[u8; SALT_BYTES]>, StoreError> {
        Ok(self.get(Part::Meta, &salt_key(epoch))?.and_then(|salt| salt.try_into().ok()))
    }

    pub(super) fn transaction(&self) -> &RoTxn<'static, WithoutTls> {
        &self.transaction
    }

    pub(super) fn databases(&self) -> &Databases {
        &self.databases
    }

    pub(super) fn store(&self) -> &Store {
        self.store
    }
}

/// The number in a key of the log.
pub(super) fn log_number(key: &[u8]) -> Result<u64, StoreError> {
    let number = key.try_into().map(u64::from_be_bytes);
    number.map_err(|_| StoreError::corrupt(Part::Log, super::seal::number_of(key), "its key has not 8 bytes"))
}
