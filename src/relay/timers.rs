//! What must be looked at when: a heap of deadlines. Entries are never taken out early; who is looked at decides whether
//! there is still something to do.

use super::home::AgentSlot;
use crate::base::limits::RETRY_AFTER;
use crate::base::{Mono, SessionId};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

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
    /// Credentials that may have ended.
    Credentials,
    /// Connections that are left unread, and are told so.
    Paused,
    /// Rates for whose tokens shards wait.
    Funds,
    /// A connection that has said too much and is left unread.
    Rested(SessionId),
}

/// Deadlines, earliest first; ties in a fixed order.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Mono, Timer)>>,
    /// Retries that begin now all end after the same span, so they are in order as they come.
    retries: VecDeque<(Mono, AgentSlot)>,
    /// One for each agent that is owed something. They lie days ahead and change often: as entries that are never taken
    /// out they would pile up.
    expiries: BTreeSet<(Mono, AgentSlot)>,
}

impl Timers {
    pub(super) fn set(&mut self, at: Mono, timer: Timer) {
        self.heap.push(Reverse((at, timer)));
    }

    /// A retry `RETRY_AFTER` from now: without the heap's cost, since a fan-out begins thousands at once.
    pub(super) fn set_retry(&mut self, now: Mono, agent: AgentSlot) {
        debug_assert!(self.retries.back().is_none_or(|(at, _)| *at <= now + RETRY_AFTER));
        self.retries.push_back((now + RETRY_AFTER, agent));
    }

    /// An agent's expiry, in place of the one that was set for it before.
    pub(super) fn move_expiry(&mut self, agent: AgentSlot, from: Mono, to: Mono) {
        if from < Mono(u64::MAX) {
            self.expiries.remove(&(from, agent));
        }
        if to < Mono(u64::MAX) {
            self.expiries.insert((to, agent));
        }
    }

    pub(super) fn next(&self) -> Option<Mono> {
        let timer = self.heap.peek().map(|Reverse((at, _))| *at);
        let retry = self.retries.front().map(|(at, _)| *at);
        let expiry = self.expiries.first().map(|(at, _)| *at);
        timer.into_iter().chain(retry).chain(expiry).min()
    }

    pub(super) fn due(&mut self, now: Mono) -> Option<Timer> {
        let at = self.next().filter(|at| *at <= now)?;
        if let Some((_, agent)) = self.retries.pop_front_if(|(retry, _)| *retry == at) {
            return Some(Timer::Retry(agent));
        }
        if let Some((expiry, agent)) = self.expiries.first().copied()
            && expiry == at
        {
            self.expiries.pop_first();
            return Some(Timer::Expiry(agent));
        }
        self.heap.pop().map(|Reverse((_, timer))| timer)
    }
}

/// Rounds a deadline up to a quarter of a second, so that thousands of idle connections are looked at in one wake-up.
pub(super) fn coalesced(at: Mono) -> Mono {
    const GRAIN: u64 = Mono::ms(250);
    Mono(at.0.div_ceil(GRAIN).saturating_mul(GRAIN))
}
