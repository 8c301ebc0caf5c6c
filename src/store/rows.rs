//! Rows and labels: what is known of each agent, as values of `agents` and `labels`. `docs/STORE.md` draws them.

use super::error::{Damage, Part, StoreError};
use super::record::{self, Decoded, Reader};
use super::snapshot::Snapshot;
use super::{APPLIED_KEY, Store, replay};
use crate::base::limits::{LABELS_REMEMBERED, NUMBERS_REMEMBERED, SUBSCRIPTIONS_MAX};
use crate::base::{AgentId, Shared};
use crate::relay::memory::{PARTIAL_MAX, Partial};
use crate::relay::{Memory, Remembered, SentMarks};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

/// Version of a row and of a part of the labels.
const VERSION: u8 = 1;
/// Labels in one value.
const PART_LABELS: usize = 64;
/// Values of one agent's labels.
const PARTS: usize = LABELS_REMEMBERED / PART_LABELS;
/// Words of the marks of native numbers.
const TAKEN_WORDS: usize = (NUMBERS_REMEMBERED / 64) as usize;
/// Rows for which room is made at once; more come singly.
const ROWS_EXPECTED_MAX: usize = 200_000;
/// Segments that are replayed within one read transaction.
const REPLAYED_AT_ONCE: u64 = 64;

/// A row to be kept.
#[derive(Clone, Copy, Debug)]
pub struct RowChange<'a> {
    /// The row.
    pub row: &'a Remembered,
    /// Labels that were pushed since it was last kept: only the parts of the ring they are in are written.
    pub labels_pushed: u64,
}

impl Store {
    /// Removes the rows of agents that were forgotten, and keeps these (perhaps of an agent that was met again since), in
    /// one transaction. Few at a time, please: commits of the log wait meanwhile.
    pub fn keep_rows(&self, rows: &[RowChange<'_>], forgotten: &[AgentId]) -> Result<(), StoreError> {
        let (mut plain, mut value) = (Vec::new(), Vec::new());
        self.write_behind_log(|transaction, databases| {
            for agent in forgotten {
                let key = self.agent_key(*agent);
                databases.agents.delete(transaction, &key)?;
                for part in 0..PARTS as u8 {
                    databases.labels.delete(transaction, &label_key(key, part))?;
                }
            }
            for change in rows {
                let key = self.agent_key(change.row.agent);
                plain.clear();
                value.clear();
                encode_row(change.row, &mut plain);
                self.seal().wrap(Part::Agents, &key, &plain, &mut value)?;
                databases.agents.put(transaction, &key, &value)?;
                for part in changed_parts(&change.row.sent, change.labels_pushed) {
                    let key = label_key(key, part);
                    plain.clear();
                    value.clear();
                    encode_labels(&change.row.sent, part, &mut plain);
                    self.seal().wrap(Part::Labels, &key, &plain, &mut value)?;
                    databases.labels.put(transaction, &key, &value)?;
                }
            }
            Ok(())
        })
    }

    /// Every change of segments up to and including this one is in the rows that were kept before this call.
    pub fn mark_applied(&self, segment: u64) -> Result<(), StoreError> {
        self.write_behind_log(|transaction, databases| {
            databases.meta.put(transaction, APPLIED_KEY, &segment.to_be_bytes())?;
            Ok(())
        })?;
        self.0.applied.store(segment, Ordering::Release);
        Ok(())
    }

    /// Everything that is known: the rows, and the log behind them. `progress` hears after each few segments which was
    /// the last.
    pub fn recover(&self, progress: impl FnMut(u64)) -> Result<Memory, StoreError> {
        self.recover_with(progress, Err)
    }

    /// As much of that as can be read, and the first damage that was met: to look at what is left, never to go on writing.
    pub fn recover_readable(&self) -> Result<(Memory, Option<Damage>), StoreError> {
        let mut met = None;
        let memory = self.recover_with(
            |_| {},
            |error| match error {
                StoreError::Corrupt(damage) => {
                    met.get_or_insert(damage);
                    Ok(())
                }
                error => Err(error),
            },
        )?;
        Ok((memory, met))
    }

    /// `failed` says whether what could not be read is passed over.
    fn recover_with(
        &self,
        mut progress: impl FnMut(u64),
        mut failed: impl FnMut(StoreError) -> Result<(), StoreError>,
    ) -> Result<Memory, StoreError> {
        let mut memory = Memory::default();
        let mut next = {
            let snapshot = self.snapshot()?;
            memory.reserve(snapshot.row_count()?);
            let read = snapshot.rows(|row| {
                memory.restore(row);
                ControlFlow::Continue(())
            });
            read.or_else(&mut failed)?;
            (snapshot.applied()? + 1).max(snapshot.first_segment()?)
        };
        loop {
            let snapshot = self.snapshot()?;
            let last = snapshot.last_segment()?;
            let until = last.min(next + (REPLAYED_AT_ONCE - 1));
            for number in next..=until {
                let missing = || StoreError::corrupt(Part::Log, number, "it is missing");
                let segment = snapshot.segment(number).and_then(|segment| segment.ok_or_else(missing));
                let read = segment.and_then(|mut segment| {
                    segment.records(|_, record| {
                        replay::apply(&mut memory, number, record);
                        ControlFlow::Continue(())
                    })
                });
                read.or_else(&mut failed)?;
            }
            if next <= until {
                progress(until);
            }
            if until >= last {
                return Ok(memory);
            }
            next = until + 1;
        }
    }
}

impl Snapshot<'_> {
    /// Each row, with its labels, until told to stop.
    pub fn rows(&self, mut each: impl FnMut(Remembered) -> ControlFlow<()>) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        let failed = |error| self.store().failed(error);
        // Both have the same order, so one walk through each finds every agent's labels: no look from the top for any.
        let mut labels = self.databases().labels.iter(self.transaction()).map_err(failed)?;
        let mut ahead = labels.next().transpose().map_err(failed)?;
        let mut parts: Vec<Option<&[u8]>> = vec![None; PARTS];
        for item in self.databases().agents.iter(self.transaction()).map_err(failed)? {
            let (key, value) = item.map_err(failed)?;
            parts.fill(None);
            while let Some((part_key, part)) = ahead
                && part_key[..part_key.len().min(8)] <= *key
            {
                if let Some((&number, agent)) = part_key.split_last()
                    && agent == key
                    && let Some(place) = parts.get_mut(usize::from(number))
                {
                    *place = Some(part);
                }
                ahead = labels.next().transpose().map_err(failed)?;
            }
            let row = self.row_with(key, value, &mut buffer, |part| Ok(parts[usize::from(part)]))?;
            if each(row).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// How many rows there are.
    fn row_count(&self) -> Result<usize, StoreError> {
        let count = self.databases().agents.len(self.transaction()).map_err(|error| self.store().failed(error))?;
        // The file says so; nobody has more agents than may be known, and those who only wrote.
        Ok(usize::try_from(count).unwrap_or(0).min(ROWS_EXPECTED_MAX))
    }

    /// One agent's row.
    pub fn row(&self, agent: AgentId) -> Result<Option<Remembered>, StoreError> {
        let key = self.store().agent_key(agent);
        let Some(value) = self.get(Part::Agents, &key)? else { return Ok(None) };
        self.row_of(&key, value, &mut Vec::new()).map(Some)
    }

    /// The row that this value is, its labels looked up one part after the other.
    pub(super) fn row_of(&self, key: &[u8], value: &[u8], buffer: &mut Vec<u8>) -> Result<Remembered, StoreError> {
        let look_up = |part| match key.first_chunk::<8>() {
            Some(agent) => self.get(Part::Labels, &label_key(*agent, part)),
            None => Ok(None),
        };
        self.row_with(key, value, buffer, look_up)
    }

    fn row_with<'a>(
        &self,
        key: &[u8],
        value: &[u8],
        buffer: &mut Vec<u8>,
        part: impl Fn(u8) -> Result<Option<&'a [u8]>, StoreError>,
    ) -> Result<Remembered, StoreError> {
        let number = super::seal::number_of(key);
        let corrupt = |what| StoreError::corrupt(Part::Agents, number, what);
        let plain = self.store().seal().unwrap(Part::Agents, key, value, buffer, |epoch| self.salt(epoch))?;
        let (mut row, labels) = decode_row(plain).map_err(corrupt)?;
        let key = self.store().agent_key(row.agent);
        if key != number.to_be_bytes() {
            return Err(corrupt("it is another agent's"));
        }
        row.sent.labels = self.labels(key, row.sent.labels_pushed, labels, buffer, part)?;
        Ok(row)
    }

    /// The last `count` of `pushed` labels.
    fn labels<'a>(
        &self,
        agent: [u8; 8],
        pushed: u64,
        count: usize,
        buffer: &mut Vec<u8>,
        part_of: impl Fn(u8) -> Result<Option<&'a [u8]>, StoreError>,
    ) -> Result<VecDeque<u64>, StoreError> {
        let mut labels = VecDeque::with_capacity(count);
        let mut at = pushed - count as u64;
        while at < pushed {
            let slot = (at % LABELS_REMEMBERED as u64) as usize;
            let part = slot / PART_LABELS;
            let key = label_key(agent, part as u8);
            let corrupt = |what| StoreError::corrupt(Part::Labels, super::seal::number_of(&key), what);
            let value = part_of(part as u8)?.ok_or(corrupt("a part is missing"))?;
            let plain = self.store().seal().unwrap(Part::Labels, &key, value, buffer, |epoch| self.salt(epoch))?;
            let part = decode_labels(plain).map_err(corrupt)?;
            let taken = (PART_LABELS - slot % PART_LABELS).min((pushed - at) as usize);
            let words = part.chunks_exact(8).skip(slot % PART_LABELS).take(taken);
            labels.extend(words.map(|word| Reader(word).u64().unwrap_or_default()));
            at += taken as u64;
        }
        Ok(labels)
    }
}

pub(super) fn label_key(agent: [u8; 8], part: u8) -> [u8; 9] {
    let mut key = [part; 9];
    key[..8].copy_from_slice(&agent);
    key
}

/// How many labels were ever pushed: at least as many as are there.
fn pushed(sent: &SentMarks) -> u64 {
    sent.labels_pushed.max(sent.labels.len() as u64)
}

/// The parts of the ring in which the last `changed` labels are.
fn changed_parts(sent: &SentMarks, changed: u64) -> impl Iterator<Item = u8> {
    let changed = changed.min(sent.labels.len() as u64);
    let first = (pushed(sent) - changed) / PART_LABELS as u64;
    let behind = if changed == 0 { first } else { (pushed(sent) - 1) / PART_LABELS as u64 + 1 };
    (first..behind).take(PARTS).map(|part| (part % PARTS as u64) as u8)
}

fn encode_labels(sent: &SentMarks, part: u8, out: &mut Vec<u8>) {
    out.push(VERSION);
    let ring = LABELS_REMEMBERED as u64;
    let oldest = pushed(sent) - sent.labels.len() as u64;
    for slot in 0..PART_LABELS as u64 {
        let slot = u64::from(part) * PART_LABELS as u64 + slot;
        // The one push at or behind the oldest that is in this place of the ring.
        let push = oldest + (slot + ring - oldest % ring) % ring;
        let label = if push < pushed(sent) { sent.labels.get((push - oldest) as usize) } else { None };
        record::put_u64(out, label.copied().unwrap_or(0));
    }
}

fn decode_labels(bytes: &[u8]) -> Decoded<&[u8]> {
    match bytes.split_first() {
        Some((&VERSION, words)) if words.len() == PART_LABELS * 8 => Ok(words),
        Some((&VERSION, _)) => Err("a part has not as many labels as it should"),
        _ => Err("the format of a part is unknown"),
    }
}

const FLAG_NAME: u8 = 1;
const FLAG_LEFT: u8 = 2;
const FLAG_LIVE: u8 = 4;

fn encode_row(row: &Remembered, out: &mut Vec<u8>) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(VERSION);
    out.push(flag(row.name.is_some(), FLAG_NAME) | flag(row.left, FLAG_LEFT) | flag(row.live, FLAG_LIVE));
    for word in [row.agent.0, row.as_of, row.first_seen_ms, row.last_seen_ms] {
        record::put_u64(out, word);
    }
    for sequence in [row.last, row.delivered, row.acknowledged] {
        record::put_sequence(out, sequence);
    }
    record::put_owed(out, &row.owed);
    record::put_u64(out, row.messages_sent);
    record::put_u64(out, row.messages_received);
    record::put_session(out, row.dialect, row.session, row.resume, row.resume_before);
    if let Some(name) = &row.name {
        record::put_text(out, name);
    }
    record::put_profile(out, row.profile.as_deref());
    // An agent has at most 256 subscriptions.
    let subscriptions = &row.subscriptions[..row.subscriptions.len().min(SUBSCRIPTIONS_MAX)];
    out.extend_from_slice(&(subscriptions.len() as u16).to_le_bytes());
    for (topic, channel) in subscriptions {
        out.push(u8::from(*channel));
        record::put_text(out, topic);
    }
    record::put_u64(out, row.sent.high);
    record::put_u64(out, pushed(&row.sent));
    out.extend_from_slice(&(row.sent.labels.len() as u16).to_le_bytes());
    let has_taken = row.sent.taken.len() == TAKEN_WORDS;
    out.push(u8::from(has_taken));
    if has_taken {
        row.sent.taken.iter().for_each(|word| record::put_u64(out, *word));
    }
    out.extend_from_slice(&(row.sent.partial.len() as u16).to_le_bytes());
    for partial in &row.sent.partial {
        record::put_u64(out, partial.number);
        out.extend_from_slice(&partial.epoch.to_le_bytes());
        out.extend_from_slice(&partial.parts.to_le_bytes());
        out.extend_from_slice(&partial.seen.to_le_bytes());
        out.extend_from_slice(&(partial.recipients.len() as u32).to_le_bytes());
        partial.recipients.iter().for_each(|agent| record::put_u64(out, agent.0));
    }
    for (first, last) in &row.settled {
        record::put_sequence(out, *first);
        record::put_sequence(out, *last);
    }
}

/// A row without its labels, and how many it has.
fn decode_row(bytes: &[u8]) -> Decoded<(Remembered, usize)> {
    let mut body = Reader(bytes);
    if body.u8()? != VERSION {
        return Err("its format is unknown");
    }
    let flags = body.u8()?;
    let mut row = Remembered::new(body.agent()?);
    (row.left, row.live) = (flags & FLAG_LEFT != 0, flags & FLAG_LIVE != 0);
    (row.as_of, row.first_seen_ms, row.last_seen_ms) = (body.u64()?, body.u64()?, body.u64()?);
    (row.last, row.delivered, row.acknowledged) = (body.sequence()?, body.sequence()?, body.sequence()?);
    row.owed = body.owed()?;
    (row.messages_sent, row.messages_received) = (body.u64()?, body.u64()?);
    (row.dialect, row.session, row.resume, row.resume_before) = body.session()?;
    if flags & FLAG_NAME != 0 {
        row.name = Some(body.text()?.into());
    }
    row.profile = body.profile()?.map(Shared::new);
    let subscriptions = usize::from(body.u16()?);
    if subscriptions > SUBSCRIPTIONS_MAX {
        return Err("it has too many subscriptions");
    }
    for _ in 0..subscriptions {
        let channel = body.flag()?;
        row.subscriptions.push((body.text()?.into(), channel));
    }
    (row.sent.high, row.sent.labels_pushed) = (body.u64()?, body.u64()?);
    let labels = usize::from(body.u16()?);
    if labels > LABELS_REMEMBERED || labels as u64 > row.sent.labels_pushed {
        return Err("it has more labels than were pushed");
    }
    if body.flag()? {
        let words = body.take(TAKEN_WORDS * 8)?.chunks_exact(8);
        row.sent.taken = words.map(|word| Reader(word).u64()).collect::<Decoded<_>>()?;
    }
    let partials = usize::from(body.u16()?);
    if partials > PARTIAL_MAX {
        return Err("it has too many unfinished fan-outs");
    }
    for _ in 0..partials {
        let (number, epoch, parts, seen) = (body.u64()?, body.u32()?, body.u16()?, body.u16()?);
        let bytes = (body.u32()? as usize).saturating_mul(8);
        let recipients = body.take(bytes)?.chunks_exact(8);
        let recipients = recipients.map(|word| Reader(word).agent()).collect::<Decoded<_>>()?;
        row.sent.partial.push_back(Partial { number, epoch, parts, seen, recipients });
    }
    row.settled = body.runs_to_the_end()?;
    Ok((row, labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_bytes_a_row_or_a_part_has_decoding_ends(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            let _ = decode_row(&bytes);
            let _ = decode_labels(&bytes);
        }

        #[test]
        fn a_row_with_one_wrong_byte_is_read_or_refused_and_never_panics(at in 0usize..400, byte in any::<u8>()) {
            let mut row = Remembered::new(AgentId(3));
            row.name = Some("ann".into());
            row.profile = Some(Shared::default());
            row.subscriptions = vec![("builds".into(), true), ("dm:a:b".into(), false)];
            row.sent.take(9);
            let mut bytes = Vec::new();
            encode_row(&row, &mut bytes);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = decode_row(&bytes);
        }
    }
}
