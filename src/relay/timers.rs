//! What must be looked at when: a heap of deadlines. Entries are never taken out early; who is looked at decides whether
//! there is still something to do.

use super::home::AgentSlot;
use crate::base::{Mono, SessionId};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Who is to be looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    /// A connection: HELLO deadline, signs of life.
    Session(SessionId),
    /// An agent's unacknowledged messages.
    Retry(AgentSlot),
    /// An agent's messages with a time to live.
    Expiry(AgentSlot),
    /// SENDs that wait for unknown names.
    Grace,
    /// Agents that have outlived the retention time.
    Forget,
}

/// Deadlines, earliest first; ties in a fixed order.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Mono, Timer)>>,
}

impl Timers {
    pub(super) fn set(&mut self, at: Mono, timer: Timer) {
        self.heap.push(Reverse((at, timer)));
    }

    pub(super) fn next(&self) -> Option<Mono> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn due(&mut self, now: Mono) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, timer))| timer)
    }
}

/// Rounds a deadline up to a quarter of a second, so that thousands of idle connections are looked at in one wake-up.
pub(super) fn coalesced(at: Mono) -> Mono {
    const GRAIN: u64 = Mono::ms(250);
    Mono(at.0.div_ceil(GRAIN).saturating_mul(GRAIN))
}
