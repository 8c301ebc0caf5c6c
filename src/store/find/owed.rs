//! Mail that is owed, read back from the log in the order of its recipient.

use super::super::index::{Group, Tail, Wanted};
use super::super::{Store, StoreError};
use super::walk::Walk;
use crate::base::{AgentId, Chunks, Sequence};
use crate::relay::{self, Addressee, Fetch, Fetched, FetchedMessage, Place};
use crate::store::error::Damage;
use crate::store::{MessageRef, RecordRef};
use parking_lot::RwLock;
use std::ops::ControlFlow;

/// Behind every place.
const PLACE_MAX: Place = Place { segment: u64::MAX, offset: u32::MAX };

/// What a fetch asks for, up to its bounds. One agent's messages lie in the log in its own order, since one home gives the
/// places and hands over the records. Damage is passed over and returned: what cannot be read cannot be delivered.
pub fn fetch(store: &Store, tail: &RwLock<Tail>, fetch: &Fetch) -> Result<(Fetched, Option<Damage>), StoreError> {
    let terms = store.terms();
    let wanted = Wanted { clauses: vec![vec![terms.recipient(fetch.agent)]] };
    let (mut walk, in_memory) = Walk::begin(store, tail, |tail| tail.candidates(&wanted, fetch.place, PLACE_MAX))?;
    let mut gathering = Gathering::new(fetch);
    let begins_in_memory = match fetch.place == Place::default() {
        // The hint says that nothing that is wanted lies before it.
        false => fetch.place.segment >= walk.tail_first,
        true => sequence_at(&mut walk, fetch.agent, &in_memory)?.is_some_and(|(_, first)| {
            let next = Sequence { counter: fetch.after.counter.saturating_add(1), ..fetch.after };
            first <= next
        }),
    };
    let mut stopped = None;
    if !begins_in_memory {
        let (mut next, mut from) = match fetch.place == Place::default() {
            false => {
                let home = walk.group_before(fetch.place.segment + 1)?.filter(|key| *key < walk.tail_first);
                (
                    match home {
                        None => walk.group_behind(0)?,
                        home => home,
                    },
                    fetch.place,
                )
            }
            true => start(&mut walk, fetch, &wanted)?,
        };
        while let Some(key) = next
            && stopped.is_none()
        {
            let candidates = walk.candidates(key, &wanted, |_| true, from, PLACE_MAX)?;
            stopped = gathering.take(&mut walk, &candidates)?;
            walk.breathe()?;
            next = walk.group_behind(key)?;
            from = fetch.place;
        }
    }
    if stopped.is_none() {
        let first = first_behind(&mut walk, fetch, &in_memory)?;
        stopped = gathering.take(&mut walk, &in_memory[first..])?;
    }
    let complete = stopped.is_none() && !walk.is_cut;
    let place = stopped.unwrap_or(walk.end);
    let Gathering { messages, next_expiry_ms, .. } = gathering;
    Ok((Fetched { fetch: *fetch, messages, place, complete, next_expiry_ms }, walk.damaged))
}

/// The group to begin with, and the place in it. What a group begins with grows from group to group: halving finds the
/// last one that begins with what is not wanted any more.
fn start(walk: &mut Walk<'_>, fetch: &Fetch, wanted: &Wanted) -> Result<(Option<u64>, Place), StoreError> {
    let (mut low, mut high) = (0, walk.tail_first);
    let (mut not_behind, mut behind) = (None, None);
    while low < high {
        let middle = low + (high - low) / 2;
        // The last group, up to there, that has anything of this agent.
        let mut found = None;
        let mut segment = middle + 1;
        while let Some(key) = walk.group_before(segment)?.filter(|key| *key >= low) {
            walk.breathe()?;
            if let Some(first) = first_of_group(walk, fetch.agent, key, wanted)? {
                found = Some((key, first));
                break;
            }
            segment = key;
        }
        match found {
            Some((key, first)) if first > fetch.after => (behind, high) = (Some(key), key),
            Some((key, _)) => (not_behind, low) = (Some(key), middle + 1),
            None => low = middle + 1,
        }
    }
    let Some(key) = not_behind else { return Ok((behind, Place::default())) };
    let places = walk.candidates(key, wanted, |_| true, Place::default(), PLACE_MAX)?;
    let found = first_behind(walk, fetch, &places)?;
    Ok((Some(key), places.get(found).copied().unwrap_or(PLACE_MAX)))
}

/// The first sequence that the agent has in a group.
fn first_of_group(
    walk: &mut Walk<'_>,
    agent: AgentId,
    key: u64,
    wanted: &Wanted,
) -> Result<Option<Sequence>, StoreError> {
    /// The very first is nearly always a message to this agent.
    const FIRST: usize = 4;
    for places_max in [FIRST, usize::MAX] {
        let kept = walk.kept;
        let of_group = |group: &Group<'_>| {
            let postings = group.postings(wanted.clauses[0][0])?;
            let first = if kept.segment <= group.first_segment() { 0 } else { postings.below(group.seek(kept)?) };
            let places = postings.iter().skip(first).take(places_max);
            places.map(|index| group.place(index).map(|(place, _)| place)).collect::<Result<Vec<_>, _>>()
        };
        let of_tail = |tail: &Tail| tail.candidates(wanted, kept, PLACE_MAX);
        let places = walk.ask_group(key, of_group, of_tail)?.unwrap_or_default();
        if let Some((_, first)) = sequence_at(walk, agent, &places)? {
            return Ok(Some(first));
        }
        if places.len() < places_max {
            break;
        }
    }
    Ok(None)
}

/// The sequence of the first of `places` that is a message to `agent`, and its index.
fn sequence_at(walk: &mut Walk<'_>, agent: AgentId, places: &[Place]) -> Result<Option<(usize, Sequence)>, StoreError> {
    for (index, place) in places.iter().enumerate() {
        let mut found = None;
        walk.read([*place], |_, record| {
            if let RecordRef::Message(message) = record {
                found = addressee(message, agent).map(|to| to.sequence);
            }
            ControlFlow::Break(())
        })?;
        if let Some(sequence) = found {
            return Ok(Some((index, sequence)));
        }
    }
    Ok(None)
}

/// The index of the first of `places` whose sequence is behind the one asked for. Others may share the agent's term; they
/// are passed over here, and again when they are read.
fn first_behind(walk: &mut Walk<'_>, fetch: &Fetch, places: &[Place]) -> Result<usize, StoreError> {
    let (mut low, mut high) = (0, places.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match sequence_at(walk, fetch.agent, &places[middle..high])? {
            Some((index, sequence)) if sequence <= fetch.after => low = middle + index + 1,
            // Between the middle and what was found, if anything, there is nothing of this agent.
            _ => high = middle,
        }
    }
    Ok(low)
}

fn addressee(message: &MessageRef<'_>, agent: AgentId) -> Option<Addressee> {
    message.recipients.iter().find(|to| to.agent == agent)
}

/// What a fetch has found so far.
struct Gathering<'a> {
    fetch: &'a Fetch,
    messages: Vec<FetchedMessage>,
    bytes: u64,
    next_expiry_ms: u64,
    chunks: Chunks,
}

impl<'a> Gathering<'a> {
    fn new(fetch: &'a Fetch) -> Gathering<'a> {
        Gathering { fetch, messages: Vec::new(), bytes: 0, next_expiry_ms: u64::MAX, chunks: Chunks::default() }
    }

    /// Takes what lies at `places`; the place of the first that was not taken, when a bound is reached.
    fn take(&mut self, walk: &mut Walk<'_>, places: &[Place]) -> Result<Option<Place>, StoreError> {
        for run in places.chunk_by(|one, other| one.segment == other.segment) {
            walk.breathe()?;
            let mut stopped = None;
            walk.read(run.iter().copied(), |place, record| {
                let RecordRef::Message(message) = record else { return ControlFlow::Continue(()) };
                if self.add(message) {
                    ControlFlow::Continue(())
                } else {
                    stopped = Some(place);
                    ControlFlow::Break(())
                }
            })?;
            if stopped.is_some() {
                return Ok(stopped);
            }
        }
        Ok(None)
    }

    /// Adds one message, if it is wanted. False when there is no room for it.
    fn add(&mut self, message: &MessageRef<'_>) -> bool {
        let fetch = self.fetch;
        let Some(to) = addressee(message, fetch.agent).filter(|to| to.sequence > fetch.after) else { return true };
        let kept_ms = match message.ttl_ms {
            0 => fetch.retention_ms,
            ttl_ms => u64::from(ttl_ms).min(fetch.retention_ms),
        };
        let expiry_ms = message.accepted_at_ms.saturating_add(kept_ms);
        let expired = expiry_ms <= fetch.now_ms;
        let bytes = message.raw.len() as u64;
        match fetch.wanted {
            relay::Wanted::Mail { messages_max, bytes_max, expired_before_ms } => {
                if expiry_ms <= expired_before_ms {
                    return true;
                }
                let is_full = self.messages.len() >= messages_max as usize || self.bytes + bytes > u64::from(bytes_max);
                if is_full && !self.messages.is_empty() {
                    return false;
                }
            }
            relay::Wanted::Expired { messages_max, expired_before_ms } => {
                if !expired {
                    self.next_expiry_ms = self.next_expiry_ms.min(expiry_ms);
                    return true;
                }
                if expiry_ms <= expired_before_ms {
                    return true;
                }
                if self.messages.len() >= (messages_max as usize).max(1) {
                    return false;
                }
            }
        }
        self.bytes += bytes;
        self.messages.push(FetchedMessage {
            to,
            raw: self.chunks.copy(message.raw),
            checksum: message.checksum,
            accepted_at_ms: message.accepted_at_ms,
            expired,
        });
        true
    }
}
