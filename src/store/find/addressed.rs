//! Whether one message was for certain agents, and what became of it there. Cheaper than the message itself: no body is
//! copied, and whom else it was for does not matter.

use super::super::index::Tail;
use super::super::{Store, StoreError};
use super::walk::Walk;
use super::{FoundMessage, FoundRecipient, PARTS_APART_MS};
use crate::base::{AgentId, Bytes, MessageId, Name};
use crate::relay::Place;
use crate::store::RecordRef;
use crate::wire::{Message, Wants};
use parking_lot::RwLock;
use std::ops::ControlFlow;

/// A message, and those of the agents asked about who were to have it.
#[derive(Clone, Debug)]
pub struct Addressed {
    /// The sender.
    pub from: Name,
    /// What the sender wants to hear.
    pub wants: Wants,
    /// Each with its place in its order and what the log says became of it.
    pub recipients: Vec<FoundRecipient>,
}

/// The message with this id, as far as it was for any of `agents` (ascending). A sender may use an id again, much later: the
/// newest is meant.
pub fn addressed(
    store: &Store,
    tail: &RwLock<Tail>,
    id: MessageId,
    agents: &[AgentId],
) -> Result<Option<Addressed>, StoreError> {
    let terms = store.terms();
    let print = terms.fingerprint_of((id.bits() >> 96) as u32);
    let (mut walk, mut places) = Walk::begin(store, tail, |tail| tail.with_fingerprint(print, print))?;
    places.sort_unstable();
    let mut search = Search { id, agents, newest_ms: None, whole: false, said: None, found: None };
    search.take(&mut walk, &places)?;
    let mut segment = walk.tail_first;
    while !search.is_over()
        && let Some(key) = walk.group_before(segment)?
    {
        walk.breathe()?;
        if let Some(newest_ms) = search.newest_ms {
            // Only parts of the same message can follow, and they are near.
            let ended_ms = walk.ask_group(key, |group| Ok(group.wall_ms().1), |tail| tail.wall_ms().1)?;
            if ended_ms.is_some_and(|ended_ms| ended_ms.saturating_add(PARTS_APART_MS) < newest_ms) {
                break;
            }
        }
        let places = walk.fingerprints_in_group(key, print, print)?;
        search.take(&mut walk, &places)?;
        segment = key;
    }
    let (Some(mut found), Some((from, wants))) = (search.found, search.said) else { return Ok(None) };
    walk.fill_outcomes(std::slice::from_mut(&mut found))?;
    Ok(Some(Addressed { from, wants, recipients: found.recipients }))
}

/// What has been found so far.
struct Search<'a> {
    id: MessageId,
    agents: &'a [AgentId],
    /// When the newest part of it was accepted.
    newest_ms: Option<u64>,
    /// It has one part, and that was found.
    whole: bool,
    said: Option<(Name, Wants)>,
    /// Without a body; in the place of its oldest part.
    found: Option<FoundMessage>,
}

impl Search<'_> {
    fn is_over(&self) -> bool {
        self.whole || self.found.as_ref().is_some_and(|found| found.recipients.len() == self.agents.len())
    }

    /// Looks at records, the newest first; `places` is ascending.
    fn take(&mut self, walk: &mut Walk<'_>, places: &[Place]) -> Result<(), StoreError> {
        for run in places.chunk_by(|one, other| one.segment == other.segment).rev() {
            walk.breathe()?;
            walk.read(run.iter().rev().copied(), |place, record| {
                if let RecordRef::Message(message) = record
                    && message.id == self.id
                {
                    let newest_ms = *self.newest_ms.get_or_insert(message.accepted_at_ms);
                    if newest_ms.abs_diff(message.accepted_at_ms) <= PARTS_APART_MS {
                        self.take_part(place, message);
                    }
                }
                if self.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if self.is_over() {
                break;
            }
        }
        Ok(())
    }

    fn take_part(&mut self, place: Place, part: &crate::store::MessageRef<'_>) {
        self.whole |= part.parts <= 1;
        let is_asked = |agent: &AgentId| self.agents.binary_search(agent).is_ok();
        for to in part.recipients.iter().filter(|to| is_asked(&to.agent)) {
            if self.said.is_none() {
                let Some(body) = Message::check(part.raw, part.checksum) else { return };
                let from = String::from_utf8_lossy(body.from());
                self.said = Some((from.as_ref().into(), body.wants()));
            }
            let found = self.found.get_or_insert_with(|| FoundMessage {
                place,
                id: part.id,
                raw: Bytes::new(),
                checksum: 0,
                accepted_at_ms: part.accepted_at_ms,
                recipients: Vec::new(),
                recipients_total: 0,
            });
            found.place = found.place.min(place);
            if found.recipients.iter().all(|known| known.to.agent != to.agent) {
                found.recipients.push(FoundRecipient { to, outcome: None });
            }
        }
    }
}
