//! A walk through the store in short snapshots, over what is indexed in memory, in groups, and not at all yet.

use super::super::index::{Group, Tail, Terms, Wanted};
use super::super::{Snapshot, Store, StoreError};
use super::{FoundMessage, OUTCOMES_MAX, Outcome, PARTS_APART_MS, PARTS_GROUPS_MAX};
use crate::base::{AgentId, MessageId};
use crate::relay::Place;
use crate::store::error::Damage;
use crate::store::{MessageRef, RecordRef, SegmentHeader};
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, RangeInclusive};
use std::time::{Duration, Instant};

/// A snapshot is given up after this long …
const SNAPSHOT_MAX: Duration = Duration::from_millis(20);
/// … or when so much was read in it: what it holds back cannot be reused by the writer.
const SNAPSHOT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of segments behind the tail's end that are looked through for one question.
const FRESH_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How often a snapshot is taken anew because a group was closed meanwhile.
const TRIES_MAX: u32 = 4;

/// See above.
pub(super) struct Walk<'s> {
    store: &'s Store,
    tail: &'s RwLock<Tail>,
    /// None after it could not be renewed.
    snapshot: Option<Snapshot<'s>>,
    opened_at: Instant,
    read_bytes: u64,
    /// What the tail did not hold yet when the walk began.
    fresh: Tail,
    /// Groups from this segment on speak of what the walk had from the tail.
    pub(super) tail_first: u64,
    /// Every record before this place is part of the walk.
    pub(super) end: Place,
    /// Nothing before this place is kept any more.
    pub(super) kept: Place,
    /// Whether the log went on behind `end` when the walk began.
    pub(super) is_cut: bool,
    pub(super) damaged: Option<Damage>,
}

/// The snapshot, if there is one.
fn now<'a, 's>(snapshot: &'a Option<Snapshot<'s>>) -> Result<&'a Snapshot<'s>, StoreError> {
    snapshot.as_ref().ok_or(StoreError::Gone)
}

impl<'s> Walk<'s> {
    /// Begins a walk. `look` is shown the tail, and what is not in the tail yet; the groups before `tail_first` are the
    /// rest.
    pub(super) fn begin<T>(
        store: &'s Store,
        tail: &'s RwLock<Tail>,
        mut look: impl FnMut(&Tail) -> Vec<T>,
    ) -> Result<(Walk<'s>, Vec<T>), StoreError> {
        let mut snapshot = store.snapshot()?;
        let mut tries = 0;
        let (mut found, fresh, tail_first) = loop {
            let indexed = snapshot.indexed_through()?;
            {
                let tail = tail.read();
                tries += 1;
                // Otherwise a group was closed, and the tail emptied, since the snapshot was taken.
                if tail.first_segment() <= indexed + 1 || tries == TRIES_MAX {
                    let fresh = Tail::new(tail.next_segment(), tail.terms().clone(), tail.limits());
                    break (look(&tail), fresh, tail.first_segment());
                }
            }
            drop(snapshot);
            snapshot = store.snapshot()?;
        };
        let mut walk = Walk {
            store,
            tail,
            snapshot: Some(snapshot),
            opened_at: Instant::now(),
            read_bytes: 0,
            fresh,
            tail_first,
            end: Place::default(),
            kept: Place::default(),
            is_cut: false,
            damaged: None,
        };
        let last = now(&walk.snapshot)?.last_segment()?;
        walk.kept = Place { segment: now(&walk.snapshot)?.first_segment()?, offset: 0 };
        let mut bytes = 0;
        for segment in walk.fresh.next_segment()..=last {
            if bytes >= FRESH_BYTES_MAX {
                walk.is_cut = true;
                break;
            }
            match now(&walk.snapshot)?.segment(segment) {
                Ok(Some(mut view)) => {
                    bytes += u64::from(view.header().bytes);
                    let added = walk.fresh.add_segment(&mut view);
                    note(&mut walk.damaged, added)?;
                }
                // Retention has taken it.
                Ok(None) => walk.fresh.begin(segment, 0),
                Err(error) => {
                    walk.fresh.begin(segment, 0);
                    note(&mut walk.damaged, Err(error))?;
                }
            }
        }
        walk.end = Place { segment: walk.fresh.next_segment(), offset: 0 };
        found.extend(look(&walk.fresh));
        Ok((walk, found))
    }

    pub(super) fn terms(&self) -> &Terms {
        self.fresh.terms()
    }

    /// Takes a new snapshot if this one has served its time. Called where nothing of it is borrowed.
    pub(super) fn breathe(&mut self) -> Result<(), StoreError> {
        if self.opened_at.elapsed() >= SNAPSHOT_MAX || self.read_bytes >= SNAPSHOT_BYTES_MAX {
            self.renew()?;
        }
        Ok(())
    }

    fn renew(&mut self) -> Result<(), StoreError> {
        // Ended before the next one begins: one that finds the file larger than its map waits for every other to end.
        self.snapshot = None;
        self.snapshot = Some(self.store.snapshot()?);
        self.opened_at = Instant::now();
        self.read_bytes = 0;
        Ok(())
    }

    /// Shows each record that lies at one of `places`, all of one segment, in the order given. What retention has taken
    /// is passed over; what cannot be read is noted and passed over.
    pub(super) fn read(
        &mut self,
        places: impl IntoIterator<Item = Place>,
        each: impl FnMut(Place, &RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.read_if(places, |_| true, each)
    }

    /// The same, if the segment's header says that it is worth it.
    pub(super) fn read_if(
        &mut self,
        places: impl IntoIterator<Item = Place>,
        worth: impl Fn(&SegmentHeader) -> bool,
        mut each: impl FnMut(Place, &RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut places = places.into_iter().peekable();
        let Some(first) = places.peek().copied() else { return Ok(()) };
        let mut view = match now(&self.snapshot)?.segment(first.segment) {
            Ok(Some(view)) => view,
            Ok(None) => return Ok(()),
            Err(error) => return note(&mut self.damaged, Err(error)),
        };
        if !worth(view.header()) {
            return Ok(());
        }
        // Not all of it may be read; most of it often is.
        self.read_bytes += u64::from(view.header().bytes.min(64 * 1024));
        for place in places {
            match view.record_at(place.offset) {
                Ok(record) => {
                    if each(place, &record).is_break() {
                        break;
                    }
                }
                Err(error) => note(&mut self.damaged, Err(error))?,
            }
        }
        Ok(())
    }

    /// The last group that begins before `segment`.
    pub(super) fn group_before(&self, segment: u64) -> Result<Option<u64>, StoreError> {
        Ok(now(&self.snapshot)?.group_before(segment)?.map(|(key, _)| key))
    }

    /// The first group that begins behind `segment`, unless it is one of those made of the tail since the walk began.
    pub(super) fn group_behind(&self, segment: u64) -> Result<Option<u64>, StoreError> {
        Ok(now(&self.snapshot)?.group_behind(segment)?.map(|(key, _)| key).filter(|key| *key < self.tail_first))
    }

    /// Asks the group that begins with segment `key`; and if it is damaged, the log that it was made of.
    pub(super) fn ask_group<T>(
        &mut self,
        key: u64,
        of_group: impl FnOnce(&Group<'_>) -> Result<T, StoreError>,
        of_tail: impl FnOnce(&Tail) -> T,
    ) -> Result<Option<T>, StoreError> {
        let Some(value) = now(&self.snapshot)?.group(key)? else { return Ok(None) };
        match Group::check(key, value).and_then(|group| of_group(&group)) {
            Ok(answer) => Ok(Some(answer)),
            Err(StoreError::Corrupt(_)) => {
                let end = self.group_behind(key)?.unwrap_or(self.tail_first);
                let mut tail = Tail::new(key, self.terms().clone(), self.fresh.limits());
                for segment in key..end {
                    self.breathe()?;
                    match now(&self.snapshot)?.segment(segment) {
                        Ok(Some(mut view)) => {
                            self.read_bytes += u64::from(view.header().bytes);
                            let added = tail.add_segment(&mut view);
                            note(&mut self.damaged, added)?;
                        }
                        Ok(None) => {}
                        Err(error) => note(&mut self.damaged, Err(error))?,
                    }
                }
                Ok(Some(of_tail(&tail)))
            }
            Err(error) => Err(error),
        }
    }

    /// Records of one group that have what is wanted, ascending.
    pub(super) fn candidates(
        &mut self,
        key: u64,
        wanted: &Wanted,
        spans: impl Fn((u64, u64)) -> bool,
        from: Place,
        before: Place,
    ) -> Result<Vec<Place>, StoreError> {
        let from = from.max(self.kept);
        let of_group = |group: &Group<'_>| match spans(group.wall_ms()) {
            true => group.candidates(wanted, from, before),
            false => Ok(Vec::new()),
        };
        let found = self.ask_group(key, of_group, |tail| tail.candidates(wanted, from, before))?;
        Ok(found.unwrap_or_default())
    }

    /// Shows the tail as it is now, when the snapshot holds everything that is no longer in it.
    fn with_tail<T>(&mut self, mut look: impl FnMut(&Tail) -> T) -> Result<T, StoreError> {
        for _ in 0..TRIES_MAX {
            let indexed = now(&self.snapshot)?.indexed_through()?;
            {
                let tail = self.tail.read();
                if tail.first_segment() <= indexed + 1 {
                    return Ok(look(&tail));
                }
            }
            self.renew()?;
        }
        Ok(look(&self.tail.read()))
    }

    /// Records of messages in one group with a fingerprint between these two: ascending.
    pub(super) fn fingerprints_in_group(&mut self, key: u64, low: u32, high: u32) -> Result<Vec<Place>, StoreError> {
        let found =
            self.ask_group(key, |group| group.with_fingerprint(low, high), |tail| tail.with_fingerprint(low, high));
        Ok(found?.unwrap_or_default())
    }

    /// Groups that hold records of about these times near these places.
    fn groups_near(
        &mut self,
        places: &RangeInclusive<Place>,
        at_ms: &RangeInclusive<u64>,
    ) -> Result<Vec<u64>, StoreError> {
        let wall_ms = |walk: &mut Walk<'_>, key| {
            let spans = walk.ask_group(key, |group| Ok(group.wall_ms()), Tail::wall_ms)?;
            Ok::<_, StoreError>(spans.unwrap_or((u64::MAX, 0)))
        };
        let (mut keys, mut below) = (Vec::new(), 0);
        let mut segment = places.end().segment + 1;
        while let Some(key) = self.group_before(segment)? {
            // The one in which the first of them lies, and all behind it, are near by themselves.
            let is_home = keys.last().is_none_or(|behind| *behind > places.start().segment);
            if !is_home {
                below += 1;
                if below > PARTS_GROUPS_MAX || wall_ms(self, key)?.1.saturating_add(PARTS_APART_MS) < *at_ms.start() {
                    break;
                }
            }
            keys.push(key);
            segment = key;
        }
        let home = keys.len();
        segment = places.end().segment;
        while let Some(key) = now(&self.snapshot)?.group_behind(segment)?.map(|(key, _)| key) {
            let too_late_ms = at_ms.end().saturating_add(PARTS_APART_MS);
            if keys.len() >= home + PARTS_GROUPS_MAX || wall_ms(self, key)?.0 > too_late_ms {
                break;
            }
            keys.push(key);
            segment = key;
        }
        Ok(keys)
    }

    /// The other parts of each of these messages, by its own place, and whether each fits. The messages all fit, and lie
    /// near each other: in one group, or behind the last one.
    pub(super) fn other_parts(
        &mut self,
        rows: &[&FoundMessage],
        recipients_max: usize,
        fits: impl Fn(&MessageRef<'_>) -> bool,
    ) -> Result<BTreeMap<Place, Vec<(FoundMessage, bool)>>, StoreError> {
        let mut parts: BTreeMap<Place, Vec<(FoundMessage, bool)>> = BTreeMap::new();
        let (Some(places), Some(at_ms)) =
            (span(rows.iter().map(|row| row.place)), span(rows.iter().map(|row| row.accepted_at_ms)))
        else {
            return Ok(parts);
        };
        let mut wanted: Vec<u32> = rows.iter().map(|row| self.terms().fingerprint(row.id)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let of_tail = |tail: &Tail| match is_near(tail.wall_ms(), &at_ms) {
            true => tail.with_fingerprints(&wanted),
            false => Vec::new(),
        };
        let mut found = self.with_tail(of_tail)?;
        found.extend(of_tail(&self.fresh));
        for key in self.groups_near(&places, &at_ms)? {
            let of_group = |group: &Group<'_>| {
                let mut found = Vec::new();
                for fingerprint in &wanted {
                    found.extend(group.with_fingerprint(*fingerprint, *fingerprint)?);
                }
                Ok(found)
            };
            found.extend(self.ask_group(key, of_group, |tail| tail.with_fingerprints(&wanted))?.unwrap_or_default());
        }
        found.sort_unstable();
        found.dedup();
        let mut own: Vec<(MessageId, usize)> = rows.iter().enumerate().map(|(index, row)| (row.id, index)).collect();
        own.sort_unstable();
        let mut known: Vec<Place> = rows.iter().map(|row| row.place).collect();
        known.sort_unstable();
        found.retain(|place| known.binary_search(place).is_err());
        let are_parts = |one_ms: u64, other_ms: u64| one_ms.abs_diff(other_ms) <= PARTS_APART_MS;
        for same in own.chunk_by(|one, other| one.0 == other.0).filter(|same| same.len() > 1) {
            for one in same.iter().map(|(_, index)| rows[*index]) {
                let others = same
                    .iter()
                    .map(|(_, index)| rows[*index])
                    .filter(|other| other.place != one.place && are_parts(one.accepted_at_ms, other.accepted_at_ms));
                // By an older one it is known already; then the rest need not be listed.
                let older = others.clone().find(|other| other.place < one.place);
                let listed = older.map_or_else(|| others.collect(), |older| vec![older]);
                parts.entry(one.place).or_default().extend(listed.into_iter().map(|other| (other.clone(), true)));
            }
        }
        for run in found.chunk_by(|one, other| one.segment == other.segment) {
            self.breathe()?;
            self.read(run.iter().copied(), |place, record| {
                let RecordRef::Message(message) = record else { return ControlFlow::Continue(()) };
                let first = own.partition_point(|(id, _)| *id < message.id);
                for (_, index) in own[first..].iter().take_while(|(id, _)| *id == message.id) {
                    let row = rows[*index];
                    if are_parts(message.accepted_at_ms, row.accepted_at_ms) {
                        let part = FoundMessage::copy(place, message, recipients_max, Some(row));
                        parts.entry(row.place).or_default().push((part, fits(message)));
                    }
                }
                ControlFlow::Continue(())
            })?;
        }
        parts.values_mut().for_each(|parts| parts.sort_by_key(|(part, _)| part.place));
        Ok(parts)
    }

    /// Writes into each recipient what records of their own say became of the message.
    pub(super) fn fill_outcomes(&mut self, rows: &mut [FoundMessage]) -> Result<(), StoreError> {
        let Some(oldest) = rows.iter().map(|row| row.place).min() else { return Ok(()) };
        let mut wanted: Vec<MessageId> = rows.iter().map(|row| row.id).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let terms: Vec<_> = wanted.iter().map(|id| self.terms().outcome(*id)).collect();
        let of_tail = |tail: &Tail| match tail.outcomes() {
            0 => Vec::new(),
            _ => tail.all_of(&terms).concat(),
        };
        let mut places: Vec<Place> = self.with_tail(of_tail)?;
        places.extend(of_tail(&self.fresh));
        let mut next =
            self.group_before(oldest.segment + 1)?.or(now(&self.snapshot)?.group_behind(0)?.map(|(key, _)| key));
        while let Some(key) = next {
            if places.len() >= OUTCOMES_MAX {
                break;
            }
            self.breathe()?;
            let of_group = |group: &Group<'_>| {
                let mut found = Vec::new();
                if group.outcomes() == 0 {
                    return Ok(found);
                }
                for term in &terms {
                    for index in group.postings(*term)?.iter() {
                        found.push(group.place(index)?.0);
                    }
                }
                Ok(found)
            };
            places.extend(self.ask_group(key, of_group, |tail| tail.all_of(&terms).concat())?.unwrap_or_default());
            next = now(&self.snapshot)?.group_behind(key)?.map(|(key, _)| key);
        }
        places.sort_unstable();
        places.dedup();
        places.truncate(OUTCOMES_MAX);
        let mut outcomes: HashMap<(MessageId, AgentId), Outcome> = HashMap::new();
        for run in places.chunk_by(|one, other| one.segment == other.segment) {
            self.breathe()?;
            self.read(run.iter().copied(), |_, record| {
                match record {
                    RecordRef::Failed { id, recipient, reason } => {
                        outcomes.insert((*id, *recipient), Outcome::Failed(*reason));
                    }
                    RecordRef::Read { id, recipient } => {
                        outcomes.entry((*id, *recipient)).or_insert(Outcome::Read);
                    }
                    _ => {}
                }
                ControlFlow::Continue(())
            })?;
        }
        for row in rows {
            for recipient in &mut row.recipients {
                recipient.outcome = outcomes.get(&(row.id, recipient.to.agent)).copied();
            }
        }
        Ok(())
    }
}

/// The least and the greatest.
fn span<T: Ord + Copy>(all: impl Iterator<Item = T> + Clone) -> Option<RangeInclusive<T>> {
    Some(all.clone().min()?..=all.max()?)
}

/// Whether something between these times may hold a part of what was accepted at these.
fn is_near((first_ms, last_ms): (u64, u64), at_ms: &RangeInclusive<u64>) -> bool {
    last_ms.saturating_add(PARTS_APART_MS) >= *at_ms.start() && first_ms <= at_ms.end().saturating_add(PARTS_APART_MS)
}

/// Damage is noted, the first of it, and the walk goes on; anything else ends it.
pub(in crate::store) fn note(damaged: &mut Option<Damage>, result: Result<(), StoreError>) -> Result<(), StoreError> {
    match result {
        Err(StoreError::Corrupt(damage)) => {
            damaged.get_or_insert(damage);
            Ok(())
        }
        other => other,
    }
}
