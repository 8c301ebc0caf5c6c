//! Groups in the store: written once, each derivable from the log, looked up by the first segment they cover.

use super::{Group, GroupLimits, Tail, Terms};
use crate::store::error::{Damage, Part, StoreError};
use crate::store::find::note;
use crate::store::{SegmentView, Snapshot, Store};
use parking_lot::RwLock;
use std::ops::ControlFlow;

impl Store {
    /// What makes terms under this store's key.
    pub fn terms(&self) -> Terms {
        Terms::new(&self.0.index_key)
    }

    /// Keeps a group that [`Tail::close`] made, in a transaction of its own. It is on the disk when this returns.
    pub fn append_group(&self, value: &[u8], first_segment: u64) -> Result<(), StoreError> {
        self.write_behind_log(|transaction, databases| {
            databases.index.put(transaction, &first_segment.to_be_bytes(), value)?;
            Ok(())
        })
    }

    /// An empty tail that begins behind the last group.
    pub fn tail(&self, limits: GroupLimits) -> Result<Tail, StoreError> {
        Ok(Tail::new(self.snapshot()?.indexed_through()? + 1, self.terms(), limits))
    }

    /// Indexes everything that is committed and not indexed yet; full groups are closed and kept, if the store may be
    /// written. A group that is missing or damaged is made again first, if `mend` is set: at the start, that is. Damage
    /// of the log is passed over and returned.
    pub fn index(&self, tail: &RwLock<Tail>, mend: bool) -> Result<Option<Damage>, StoreError> {
        let mut damaged = None;
        if mend && self.may_write() {
            self.mend_groups(tail, &mut damaged)?;
        }
        let last = self.last_segment()?;
        let first = tail.read().next_segment();
        for segment in first..=last {
            self.index_segment(segment, &mut damaged, |view| match view {
                Some(view) => tail.write().add_segment(view),
                None => {
                    tail.write().begin(segment, 0);
                    Ok(())
                }
            })?;
            self.close_if_full(tail)?;
        }
        Ok(damaged)
    }

    /// Closes the tail if it is full, keeps the group, and empties it. Whether it did.
    pub fn close_if_full(&self, tail: &RwLock<Tail>) -> Result<bool, StoreError> {
        if !tail.read().full() || !self.may_write() {
            return Ok(false);
        }
        // Nobody but the caller changes the tail; others go on reading it while the group is written.
        let (value, first) = {
            let tail = tail.read();
            (tail.close(), tail.first_segment())
        };
        self.append_group(&value, first)?;
        tail.write().clear();
        Ok(true)
    }

    fn may_write(&self) -> bool {
        self.0.access == super::super::Access::Write
    }

    fn index_segment(
        &self,
        segment: u64,
        damaged: &mut Option<Damage>,
        mut add: impl FnMut(Option<&mut SegmentView<'_>>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let snapshot = self.snapshot()?;
        let added = match snapshot.segment(segment) {
            Ok(Some(mut view)) => add(Some(&mut view)),
            Ok(None) => add(None),
            Err(error) => add(None).and(Err(error)),
        };
        note(damaged, added)
    }

    /// Makes groups for every stretch of the log that should have one and does not.
    fn mend_groups(&self, tail: &RwLock<Tail>, damaged: &mut Option<Damage>) -> Result<(), StoreError> {
        let (terms, limits, end) = {
            let tail = tail.read();
            (tail.terms().clone(), tail.limits(), tail.first_segment())
        };
        let mut next = self.snapshot()?.first_segment()?;
        while next < end {
            // Where the next good group begins, and what lies before it.
            let (found, behind) = {
                let snapshot = self.snapshot()?;
                let group = match snapshot.group_before(next + 1)? {
                    Some((key, value)) => Group::check(key, value).ok().filter(|group| group.last_segment() >= next),
                    None => None,
                };
                let behind = snapshot.group_behind(next)?.map_or(end, |(key, _)| key.min(end));
                (group.map(|group| group.last_segment()), behind)
            };
            if let Some(last) = found {
                next = last + 1;
                continue;
            }
            let mut made = Tail::new(next, terms.clone(), limits);
            while made.next_segment() < behind && !made.full() {
                let segment = made.next_segment();
                self.index_segment(segment, damaged, |view| match view {
                    Some(view) => made.add_segment(view),
                    None => {
                        made.begin(segment, 0);
                        Ok(())
                    }
                })?;
            }
            self.append_group(&made.close(), next)?;
            next = made.next_segment();
        }
        Ok(())
    }
}

impl Snapshot<'_> {
    /// The value of the group that begins with this segment.
    pub fn group(&self, key: u64) -> Result<Option<&[u8]>, StoreError> {
        self.get(Part::Index, &key.to_be_bytes())
    }

    /// The last group that begins before `segment`.
    pub fn group_before(&self, segment: u64) -> Result<Option<(u64, &[u8])>, StoreError> {
        let found = self.databases().index.get_lower_than(self.transaction(), &segment.to_be_bytes());
        found.map_err(|error| self.store().failed(error))?.map(numbered).transpose()
    }

    /// The first group that begins behind `segment`.
    pub fn group_behind(&self, segment: u64) -> Result<Option<(u64, &[u8])>, StoreError> {
        let found = self.databases().index.get_greater_than(self.transaction(), &segment.to_be_bytes());
        found.map_err(|error| self.store().failed(error))?.map(numbered).transpose()
    }

    /// The last segment that is in a group, or was swept away.
    pub fn indexed_through(&self) -> Result<u64, StoreError> {
        let swept = self.first_segment()?.saturating_sub(1);
        let Some((key, value)) = self.group_before(u64::MAX)? else { return Ok(swept) };
        // Of a damaged group only its first segment is certain; the rest is indexed again.
        let last = Group::check(key, value).map_or(key.saturating_sub(1), |group| group.last_segment());
        Ok(last.max(swept))
    }
}

impl Tail {
    /// The next segment, whole. After an error what could be read of it is in the tail.
    pub fn add_segment(&mut self, view: &mut SegmentView<'_>) -> Result<(), StoreError> {
        let (number, bytes) = (view.number(), view.header().bytes);
        self.begin(number, bytes);
        view.records(|offset, record| {
            self.add(crate::relay::Place { segment: number, offset }, record);
            ControlFlow::Continue(())
        })
    }
}

fn numbered<'a>((key, value): (&[u8], &'a [u8])) -> Result<(u64, &'a [u8]), StoreError> {
    let number = key.try_into().map(u64::from_be_bytes);
    let number = number.map_err(|_| StoreError::corrupt(Part::Index, 0, "a key in it has not 8 bytes"))?;
    Ok((number, value))
}
