//! One message by its id, or by the beginning of it.

use super::super::index::Tail;
use super::super::{Store, StoreError};
use super::walk::Walk;
use super::{FoundMessage, MATCHES_MAX, PARTS_APART_MS};
use crate::base::{MessageId, RefuseReason};
use crate::relay::Place;
use crate::store::RecordRef;
use parking_lot::RwLock;
use std::ops::ControlFlow;

/// Digits of an id.
const DIGITS: usize = 32;
/// Prefixes from this length on are looked up by the upper half of the fingerprint …
const START_DIGITS: usize = 4;
/// … and from this length on by all of it. Of shorter ones every tenth message or so fits: the newest are simply read.
const WHOLE_DIGITS: usize = 8;

/// Parts of one message: more than a daemon has shards.
const PARTS_MAX: usize = 1_024;

/// What an id, or the beginning of one, leads to.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    None,
    /// A message, with all its recipients.
    Message(Box<FoundMessage>),
    /// A message that was not accepted.
    Refused {
        /// Its id.
        id: MessageId,
        /// Why, the last time.
        reason: RefuseReason,
        /// When, milliseconds since 1970.
        at_ms: u64,
    },
    /// Several have this beginning: the newest of them, newest first.
    Several(Vec<MessageId>),
}

/// The message with this id.
pub fn message(store: &Store, tail: &RwLock<Tail>, id: MessageId) -> Result<Found, StoreError> {
    look_up(store, tail, id.bits(), DIGITS)
}

/// The one message whose id begins with these hexadecimal digits, 1 to 32 of them.
pub fn message_by_prefix(store: &Store, tail: &RwLock<Tail>, prefix: &str) -> Result<Found, StoreError> {
    let digits = prefix.len();
    if !(1..=DIGITS).contains(&digits) || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(Found::None);
    }
    match u128::from_str_radix(prefix, 16) {
        Ok(wanted) => look_up(store, tail, wanted << (4 * (DIGITS - digits)), digits),
        Err(_) => Ok(Found::None),
    }
}

/// What has been found so far.
struct Matches {
    wanted: u128,
    shift: u32,
    /// Distinct, newest first.
    ids: Vec<MessageId>,
    parts: Vec<FoundMessage>,
    refused: Option<(MessageId, RefuseReason, u64)>,
}

impl Matches {
    /// Looks at records, the newest first; `places` is ascending. Says whether enough is known.
    fn take(&mut self, walk: &mut Walk<'_>, places: &[Place]) -> Result<bool, StoreError> {
        for run in places.chunk_by(|one, other| one.segment == other.segment).rev() {
            walk.breathe()?;
            walk.read(run.iter().rev().copied(), |place, record| {
                let id = match record {
                    RecordRef::Message(message) => message.id,
                    RecordRef::Refused { id, .. } => *id,
                    _ => return ControlFlow::Continue(()),
                };
                if id.bits() >> self.shift != self.wanted >> self.shift {
                    return ControlFlow::Continue(());
                }
                if !self.ids.contains(&id) {
                    self.ids.push(id);
                }
                match record {
                    // As long as it can be this one. A sender may use an id again, much later: the newest is meant.
                    RecordRef::Message(message) if self.ids.len() == 1 && self.parts.len() < PARTS_MAX => {
                        let newest = self.parts.first();
                        let apart_ms = newest.map_or(0, |part| part.accepted_at_ms.abs_diff(message.accepted_at_ms));
                        if apart_ms <= PARTS_APART_MS {
                            let part = FoundMessage::copy(place, message, usize::MAX, newest);
                            self.parts.push(part);
                        }
                    }
                    RecordRef::Refused { reason, at_ms, .. } => {
                        self.refused.get_or_insert((id, *reason, *at_ms));
                    }
                    _ => {}
                }
                if self.ids.len() >= MATCHES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if self.ids.len() >= MATCHES_MAX {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Looks for ids that begin with the first `digits` digits of `wanted`.
fn look_up(store: &Store, tail: &RwLock<Tail>, wanted: u128, digits: usize) -> Result<Found, StoreError> {
    let terms = store.terms();
    let start = (wanted >> 96) as u32;
    let range = if digits >= WHOLE_DIGITS {
        Some((terms.fingerprint_of(start), terms.fingerprint_of(start)))
    } else if digits >= START_DIGITS {
        let upper = u32::from(terms.fingerprint_start((start >> 16) as u16)) << 16;
        Some((upper, upper | 0xffff))
    } else {
        None
    };
    // Without a range of its own, every fingerprint is one to look at.
    let (low, high) = range.unwrap_or((0, u32::MAX));
    let (mut walk, mut places) = Walk::begin(store, tail, |tail| tail.with_fingerprint(low, high))?;
    places.sort_unstable();
    let shift = 4 * (DIGITS - digits) as u32;
    let mut matches = Matches { wanted, shift, ids: Vec::new(), parts: Vec::new(), refused: None };
    let mut enough = matches.take(&mut walk, &places)?;
    let mut segment = walk.tail_first;
    while !enough && let Some(key) = walk.group_before(segment)? {
        walk.breathe()?;
        if digits == DIGITS
            && let Some(found) = matches.parts.last()
        {
            // It is this one; only parts of it can follow, and they are near.
            let ended_ms = walk.ask_group(key, |group| Ok(group.wall_ms().1), |tail| tail.wall_ms().1)?;
            if ended_ms.is_some_and(|ended_ms| ended_ms.saturating_add(PARTS_APART_MS) < found.accepted_at_ms) {
                break;
            }
        }
        let places = walk.fingerprints_in_group(key, low, high)?;
        enough = matches.take(&mut walk, &places)?;
        segment = key;
    }
    let Matches { ids, mut parts, refused, .. } = matches;
    if ids.len() > 1 {
        return Ok(Found::Several(ids));
    }
    // The newest part was met first.
    let Some(mut found) = parts.pop() else {
        return match (refused, walk.damaged) {
            (Some((id, reason, at_ms)), _) => Ok(Found::Refused { id, reason, at_ms }),
            // It may be there, where nothing can be read.
            (None, Some(damage)) => Err(StoreError::Corrupt(damage)),
            (None, None) => Ok(Found::None),
        };
    };
    for part in parts.iter().rev() {
        found.join(part, usize::MAX);
    }
    walk.fill_outcomes(std::slice::from_mut(&mut found))?;
    Ok(Found::Message(Box::new(found)))
}
