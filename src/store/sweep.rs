//! Retention: whole segments from the front, a few at a time; and the time by which that was done.

use super::error::{Part, StoreError};
use super::segment::SegmentHeader;
use super::snapshot::log_number;
use super::{APPLIED_KEY, Store, u64_of};

/// Segments that one transaction deletes at most.
const SEGMENTS_MAX: u64 = 64;

/// Segments that one step looks through at most for a time that can be believed.
const LOOKED_THROUGH_MAX: u64 = 1_024;

/// What is farther ahead of the time than this was written by a clock that was wrong, or says of itself when it was sent.
const AHEAD_MAX_MS: u64 = 24 * 3_600_000;

/// Key in `meta` of the time that was kept.
const TIME_KEY: &[u8] = b"time";

/// The time, as the daemon that had the store last knew it: see `keeper::SweepClock`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeptTime {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// In which boot of the machine, and how long after its beginning, milliseconds.
    pub boot: [u8; 16],
    /// See `boot`.
    pub boot_ms: u64,
    /// For how long the wall clock had been doubted, milliseconds.
    pub doubted_ms: u64,
}

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
    /// Keeps the time.
    pub fn keep_time(&self, kept: &KeptTime) -> Result<(), StoreError> {
        let mut value = Vec::with_capacity(40);
        value.extend_from_slice(&kept.boot);
        for word in [kept.time_ms, kept.boot_ms, kept.doubted_ms] {
            value.extend_from_slice(&word.to_be_bytes());
        }
        self.write(|transaction, databases| Ok(databases.meta.put(transaction, TIME_KEY, &value)?))
    }

    /// The time that was kept last; none in a store that no daemon of this version has had, or when it does not read as a
    /// time: then the newest segment says the least that it can be.
    pub fn kept_time(&self) -> Result<Option<KeptTime>, StoreError> {
        let snapshot = self.snapshot()?;
        let Some(value) = snapshot.get(Part::Meta, TIME_KEY)? else { return Ok(None) };
        let Some((boot, words)) = value.split_first_chunk::<16>() else { return Ok(None) };
        let ([time_ms, boot_ms, doubted_ms], []) = words.as_chunks::<8>() else { return Ok(None) };
        let [time_ms, boot_ms, doubted_ms] = [time_ms, boot_ms, doubted_ms].map(|word| u64::from_be_bytes(*word));
        Ok(Some(KeptTime { time_ms, boot: *boot, boot_ms, doubted_ms }))
    }

    /// The latest time in the newest segment, milliseconds since 1970; none if no segment is kept, or it has no time.
    pub fn newest_ms(&self) -> Result<Option<u64>, StoreError> {
        let snapshot = self.snapshot()?;
        let header = snapshot.segment_header(snapshot.last_segment()?)?;
        Ok(header.map(|header| header.last_ms).filter(|last_ms| *last_ms > 0))
    }

    /// Deletes segments of which everything is older than `cutoff_ms`, from the front, in one transaction: about
    /// `messages_max` messages, but at least one segment. What is not yet in the rows stays. Groups of the index that
    /// lie wholly before the first kept segment go, too.
    ///
    /// A segment with a time far ahead of `now_ms` does not say how old it is. It was written before the ones behind it: it
    /// is as old as the next one whose time can be believed, so that one wrong time holds back nothing but itself.
    pub fn sweep_step(&self, cutoff_ms: u64, now_ms: u64, messages_max: u64) -> Result<Swept, StoreError> {
        let believed_ms = now_ms.saturating_add(AHEAD_MAX_MS);
        let Some(written) = self.find_written(believed_ms)? else { return Ok(Swept::default()) };
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
                let last_ms = match header.last_ms <= believed_ms {
                    true => header.last_ms,
                    // The next step looks for what is behind it.
                    false if number > written.from => break,
                    // What of it can be believed counts, too.
                    false => written.at_ms.max(if header.first_ms <= believed_ms { header.first_ms } else { 0 }),
                };
                if number > applied || last_ms >= cutoff_ms {
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

    /// When the segments at the front were written at the latest. None: the search goes on with the next step.
    fn find_written(&self, believed_ms: u64) -> Result<Option<Written>, StoreError> {
        let snapshot = self.snapshot()?;
        let (first, last) = (snapshot.first_segment()?, snapshot.last_segment()?);
        let mut looking = self.0.looking.lock();
        let from = match *looking {
            // An earlier step has looked through these.
            (began, next) if began == first && next > first => next,
            _ => first,
        };
        for number in from..=last {
            if number - from == LOOKED_THROUGH_MAX {
                *looking = (first, number);
                return Ok(None);
            }
            // What cannot be read says nothing.
            let header = match snapshot.segment_header(number) {
                Err(StoreError::Corrupt(_)) => None,
                header => header?,
            };
            if let Some(header) = header.filter(|header| header.last_ms <= believed_ms) {
                *looking = (first, number);
                return Ok(Some(Written { from: number, at_ms: header.last_ms }));
            }
        }
        *looking = (0, 0);
        // Nothing says that they are old.
        Ok(Some(Written { from: last, at_ms: u64::MAX }))
    }
}

/// Segments up to `from` were written no later than `at_ms`.
struct Written {
    from: u64,
    at_ms: u64,
}
