//! The commit path: one value, one commit.

use super::error::{Part, StoreError};
use super::seal::{Current, Seal};
use super::segment::Segment;
use super::snapshot::log_number;
use super::{APPLIED_KEY, Databases, EPOCH_KEY, Failed, Store, meta_corrupt, u64_of};
use heed::{PutFlags, RwTxn};

impl Store {
    /// Appends a segment to the log; it is on the disk when this returns its number. After an error the call may be
    /// repeated, also when more was pushed meanwhile: each record is kept once, whether or not the failed commit has
    /// reached the disk. Clear the segment after success.
    pub fn append(&self, segment: &mut Segment) -> Result<u64, StoreError> {
        let current = self.seal().current()?;
        self.write(|transaction, databases| {
            let last = match databases.log.last(transaction)? {
                Some((key, value)) => {
                    let last = log_number(key)?;
                    if segment.was_kept_as(last, value) {
                        // The failed commit was kept after all. Its own first page may still be in memory only: this
                        // commit makes sure of it.
                        segment.forget_kept();
                        if segment.is_empty() {
                            let epoch = databases.meta.get(transaction, EPOCH_KEY)?.unwrap_or_default().to_vec();
                            databases.meta.put(transaction, EPOCH_KEY, &epoch)?;
                            return Ok(last);
                        }
                    }
                    last
                }
                // Only what was applied is ever swept away.
                None => {
                    databases.meta.get(transaction, APPLIED_KEY)?.map_or(Ok(0), |value| u64_of(APPLIED_KEY, value))?
                }
            };
            let number = last.checked_add(1).ok_or(meta_corrupt("no segment can follow the last one"))?;
            put(transaction, databases, self.seal(), &current, number, segment)?;
            Ok(number)
        })
    }
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
    let key = number.to_be_bytes();
    let write = |space: &mut heed::ReservedSpace<'_>| segment.write(number, seal, current, space);
    match databases.log.get_or_put_reserved_with_flags(transaction, PutFlags::APPEND, &key, bytes, write)? {
        None => Ok(()),
        Some(_) => Err(Failed::Store(StoreError::corrupt(Part::Log, number, "it is there already"))),
    }
}
