//! Retention: whole segments from the front, a few at a time.

use super::error::StoreError;
use super::segment::SegmentHeader;
use super::snapshot::log_number;
use super::{APPLIED_KEY, Store, u64_of};

/// Segments that one transaction deletes at most.
const SEGMENTS_MAX: u64 = 64;

/// What one step of the sweep did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Messages deleted.
    pub messages: u64,
    /// Segments deleted.
    pub segments: u64,
    /// Whether nothing older is left.
    pub done: bool,
    /// The first segment that is kept now; one more than the last if none is.
    pub first_segment: u64,
}

impl Store {
    /// Deletes segments of which everything is older than `cutoff_ms`, from the front, in one transaction: about
    /// `messages_max` messages, but at least one segment. What is not yet in the rows stays. Groups of the index that
    /// lie wholly before the first kept segment go, too.
    pub fn sweep_step(&self, cutoff_ms: u64, messages_max: u64) -> Result<Swept, StoreError> {
        self.write(|transaction, databases| {
            let applied = databases.meta.get(transaction, APPLIED_KEY)?;
            let applied = applied.map_or(Ok(0), |value| u64_of(APPLIED_KEY, value))?;
            let mut swept = Swept::default();
            loop {
                let Some((key, value)) = databases.log.first(transaction)? else {
                    (swept.done, swept.first_segment) = (true, applied + 1);
                    break;
                };
                let number = log_number(key)?;
                let header = SegmentHeader::parse(number, value, self.is_encrypted())?;
                swept.first_segment = number;
                if number > applied || header.last_ms >= cutoff_ms {
                    swept.done = true;
                    break;
                }
                let too_many = swept.messages + u64::from(header.messages) > messages_max;
                if swept.segments == SEGMENTS_MAX || (swept.segments > 0 && too_many) {
                    break;
                }
                databases.log.delete(transaction, &number.to_be_bytes())?;
                swept.messages += u64::from(header.messages);
                swept.segments += 1;
            }
            // A group ends where the next one begins. The last one stays: nobody says here where it ends.
            for _ in 0..SEGMENTS_MAX {
                let mut groups = databases.index.iter(transaction)?;
                let (Some(first), Some(second)) = (groups.next().transpose()?, groups.next().transpose()?) else {
                    break;
                };
                if log_number(second.0)? > swept.first_segment {
                    break;
                }
                let first = first.0.to_vec();
                drop(groups);
                databases.index.delete(transaction, &first)?;
            }
            Ok(swept)
        })
    }
}
