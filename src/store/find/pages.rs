//! Pages of history. A page begins at a place and ends at one, so that pages stay what they are while messages come in.

use super::super::index::Tail;
use super::super::{Store, StoreError};
use super::walk::Walk;
use super::{
    Filter, FoundMessage, HistoryQuery, PAGE_BYTES_MAX, PAGE_MESSAGES_MAX, PAGE_RECIPIENTS_MAX, Page, is_fanout,
};
use crate::relay::Place;
use crate::store::{RecordRef, SegmentHeader};
use crate::wire::Message;
use parking_lot::RwLock;
use std::ops::ControlFlow;

/// Behind every place.
const PLACE_MAX: Place = Place { segment: u64::MAX, offset: u32::MAX };
/// Candidates that are read before what they are is settled.
const READ_AT_ONCE_MAX: usize = 128;

/// One page: the newest messages before `query.before` that fit, or the oldest behind `query.after`.
pub fn history(store: &Store, tail: &RwLock<Tail>, query: &HistoryQuery) -> Result<Page, StoreError> {
    let filter = Filter::of(query);
    let wanted = filter.wanted(&store.terms());
    let from = query.after.map_or(Place::default(), just_behind);
    let before = query.before.unwrap_or(PLACE_MAX);
    let (mut walk, in_memory) = Walk::begin(store, tail, |tail| match filter.spans(tail.wall_ms()) {
        true => tail.candidates(&wanted, from, before),
        false => Vec::new(),
    })?;
    let limit = query.limit.clamp(1, PAGE_MESSAGES_MAX);
    let mut page =
        Builder { filter: &filter, limit, before, newest_first: query.after.is_none(), bytes: 0, rows: vec![] };
    let done = if page.newest_first {
        let mut done = page.take(&mut walk, in_memory)?;
        let mut segment = walk.tail_first.min(before.segment.saturating_add(1));
        while done.is_continue() {
            walk.breathe()?;
            let Some(key) = walk.group_before(segment)? else { break };
            let candidates = walk.candidates(key, &wanted, |wall_ms| filter.spans(wall_ms), from, before)?;
            done = page.take(&mut walk, candidates)?;
            segment = key;
        }
        done
    } else {
        let mut done = ControlFlow::Continue(());
        // The group that holds the place itself may go on behind it.
        let mut next = walk.group_before(from.segment.saturating_add(1))?.filter(|key| *key < walk.tail_first);
        if next.is_none() {
            next = walk.group_behind(from.segment)?;
        }
        while let Some(key) = next
            && done.is_continue()
        {
            let candidates = walk.candidates(key, &wanted, |wall_ms| filter.spans(wall_ms), from, before)?;
            done = page.take(&mut walk, candidates)?;
            walk.breathe()?;
            next = walk.group_behind(key)?;
        }
        if done.is_continue() {
            done = page.take(&mut walk, in_memory)?;
        }
        done
    };
    let mut rows = page.rows;
    walk.fill_outcomes(&mut rows)?;
    // Just before the first place that was not there yet.
    let end = Place { segment: walk.end.segment.saturating_sub(1), offset: u32::MAX };
    let next = match (done, query.after) {
        (ControlFlow::Break(place), _) => Some(place),
        (ControlFlow::Continue(()), Some(after)) => Some(end.max(after)),
        (ControlFlow::Continue(()), None) => None,
    };
    Ok(Page { rows, next, end, damaged: walk.damaged })
}

/// A page that is being filled.
struct Builder<'a> {
    filter: &'a Filter,
    limit: usize,
    before: Place,
    newest_first: bool,
    bytes: usize,
    rows: Vec<FoundMessage>,
}

impl Builder<'_> {
    /// Takes candidates, which are ascending. Breaks with the place to go on from when the page is full.
    fn take(&mut self, walk: &mut Walk<'_>, mut candidates: Vec<Place>) -> Result<ControlFlow<Place>, StoreError> {
        if self.newest_first {
            candidates.reverse();
        }
        let mut rest = &candidates[..];
        while !rest.is_empty() {
            let (found, examined) = self.read_some(walk, rest)?;
            rest = &rest[examined..];
            // Asked for together: each group is looked into once, and not once for each row.
            let fanned: Vec<&FoundMessage> = found.iter().filter(|row| may_have_parts(row)).collect();
            let mut parts = walk.other_parts(&fanned, PAGE_RECIPIENTS_MAX, |part| self.filter.fits(part))?;
            for row in found {
                let parts = parts.remove(&row.place).unwrap_or_default();
                if let ControlFlow::Break(place) = self.settle(row, &parts) {
                    return Ok(ControlFlow::Break(place));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads candidates until there may be enough for the page; what fits, and how many candidates were looked at.
    fn read_some(&self, walk: &mut Walk<'_>, candidates: &[Place]) -> Result<(Vec<FoundMessage>, usize), StoreError> {
        let room = (self.limit - self.rows.len()).min(READ_AT_ONCE_MAX);
        let (mut found, mut bytes, mut examined) = (Vec::with_capacity(room), 0, 0);
        for run in candidates.chunk_by(|one, other| one.segment == other.segment) {
            walk.breathe()?;
            let mut last = None;
            let in_time = |header: &SegmentHeader| self.filter.spans((header.first_ms, header.last_ms));
            walk.read_if(run.iter().copied(), in_time, |place, record| {
                last = Some(place);
                if let RecordRef::Message(message) = record
                    && self.filter.fits(message)
                {
                    bytes += message.raw.len();
                    found.push(FoundMessage::copy(place, message, PAGE_RECIPIENTS_MAX, None));
                }
                if found.len() < room && bytes < PAGE_BYTES_MAX {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })?;
            if found.len() >= room || bytes >= PAGE_BYTES_MAX {
                // Nothing was shown of what retention has taken, or cannot be read.
                let shown = run.iter().position(|place| Some(*place) == last);
                return Ok((found, examined + shown.map_or(run.len(), |index| index + 1)));
            }
            examined += run.len();
        }
        Ok((found, examined))
    }

    /// Adds a message that fits, unless it is known by another of its parts.
    fn settle(&mut self, mut row: FoundMessage, parts: &[(FoundMessage, bool)]) -> ControlFlow<Place> {
        let place = row.place;
        let is_known_by_another = parts.iter().any(|(part, fits)| *fits && part.place < place);
        if is_known_by_another {
            return ControlFlow::Continue(());
        }
        for (part, _) in parts {
            row.join(part, PAGE_RECIPIENTS_MAX);
        }
        let bytes = row.raw.len();
        if !self.rows.is_empty() && self.bytes + bytes > PAGE_BYTES_MAX {
            // Just where this one is met first.
            let here = if self.newest_first { just_behind(place) } else { just_before(place) };
            return ControlFlow::Break(here.min(self.before));
        }
        self.bytes += bytes;
        self.rows.push(row);
        if self.rows.len() == self.limit { ControlFlow::Break(place) } else { ControlFlow::Continue(()) }
    }
}

/// Whether the log may hold it in several parts.
fn may_have_parts(row: &FoundMessage) -> bool {
    Message::check(&row.raw, row.checksum).is_none_or(|body| is_fanout(body.to()))
}

/// The next place that can be.
fn just_behind(place: Place) -> Place {
    match place.offset.checked_add(1) {
        Some(offset) => Place { segment: place.segment, offset },
        None => Place { segment: place.segment.saturating_add(1), offset: 0 },
    }
}

/// The last place before this one.
fn just_before(place: Place) -> Place {
    match place.offset.checked_sub(1) {
        Some(offset) => Place { segment: place.segment, offset },
        None => Place { segment: place.segment.saturating_sub(1), offset: u32::MAX },
    }
}
