//! One connection's life, as the heart sees it.
//!
//! ```text
//! accept ─► Fresh ── HELLO, home is here ──► Live ── BYE, error, silence ──► gone
//!             ├───── HELLO, home elsewhere ─► gone here, Live there
//!             ├───── HELLO, seat asked for ─► Seating ── granted ──► Live
//!             └───── HELLO, wrong credential again ─► Penalized ── answered late ──► gone
//! ```

use super::event::Peer;
use super::gate::Bucket;
use super::home::AgentSlot;
use crate::base::keys::{AuthError, Grant, Scopes};
use crate::base::{AgentId, Mono, SessionId};
use crate::wire::{Dialect, Hello, Wants};

/// A connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) peer: Peer,
    pub(super) dialect: Dialect,
    pub(super) state: State,
    pub(super) opened_at: Mono,
    pub(super) last_heard: Mono,
    /// When the last PING went out that nothing has answered.
    pub(super) pinged_at: Option<Mono>,
    /// SENDs of this session, so that a JSON ACK can name their ordinal.
    pub(super) sends: u64,
    /// Fan-outs of this session whose shards have not all answered.
    pub(super) trackers: Vec<Tracker>,
    /// Where the last receipt for this session lies in the outbox of turn-part `receipt_mark.0`, to be extended.
    pub(super) receipt_mark: (u64, usize),
    pub(super) bucket: Bucket,
    /// What it has said beside messages and acknowledgements.
    pub(super) toil: Bucket,
    /// What its credential grants, if it presented one.
    pub(super) grant: Option<Box<Grant>>,
    /// What it may do; without a credential, what is usual.
    pub(super) scopes: Scopes,
    /// The HELLO that waits for a seat.
    pub(super) hello: Option<Box<Hello<'static>>>,
    /// The meter of its key.
    pub(super) key: Option<u32>,
    /// Why it is left unread, as bits of `Pocket`; 0: it is read.
    pub(super) paused: u8,
    /// Which pockets its next message is paid for by already, or waits to be: bits of `Pocket`.
    pub(super) prepaid: u8,
    /// When the tier's rate and its key's let it be read again, as far as the ledger has said so; 0: it has not.
    pub(super) due: [Mono; 2],
    /// When it was last told that it is left unread.
    pub(super) told_at: Option<Mono>,
    /// When it was last left unread until.
    pub(super) resumed_at: Mono,
}

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Nobody yet: HELLO, or a frame of the command line, must come before the deadline.
    Fresh,
    /// It said HELLO, and its home has asked whether there is a seat for the agent.
    Seating(AgentId),
    /// It presented a wrong credential, and hears so later.
    Penalized(Penalty),
    /// An agent's.
    Live(AgentSlot),
}

/// An answer that is withheld for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Penalty {
    pub(super) error: AuthError,
    pub(super) until: Mono,
}

/// A fan-out whose sender wants to hear of it.
#[derive(Debug)]
pub(super) struct Tracker {
    /// Which SEND of the session it was.
    pub(super) ordinal: u64,
    pub(super) wants: Wants,
    /// Shards that have not taken their part.
    pub(super) untaken: u16,
    /// Shards that have not committed their part.
    pub(super) uncommitted: u16,
}

impl Session {
    pub(super) fn fresh(now: Mono, peer: Peer) -> Session {
        Session {
            peer,
            dialect: Dialect::Native,
            state: State::Fresh,
            opened_at: now,
            last_heard: now,
            pinged_at: None,
            sends: 0,
            trackers: Vec::new(),
            receipt_mark: (u64::MAX, 0),
            bucket: Bucket::default(),
            toil: Bucket::default(),
            grant: None,
            scopes: Scopes::USUAL,
            hello: None,
            key: None,
            paused: 0,
            prepaid: 0,
            due: [Mono(0); 2],
            told_at: None,
            resumed_at: Mono(0),
        }
    }

    /// Whether it is the daemon's own user, or an agent whose key has the admin scope.
    pub(super) fn may_administer(&self) -> bool {
        self.peer.owner || (self.agent().is_some() && self.is_administrator())
    }

    /// The same, for a connection that is not welcome yet.
    pub(super) fn is_administrator(&self) -> bool {
        self.peer.owner || (self.grant.is_some() && self.scopes.contains(Scopes::ADMIN))
    }

    /// Until when nothing was read from it, at `now`.
    pub(super) fn unread_until(&self, now: Mono) -> Mono {
        if self.paused != 0 { now } else { self.resumed_at }
    }

    /// The agent that speaks here.
    pub(super) fn agent(&self) -> Option<AgentSlot> {
        match self.state {
            State::Live(agent) => Some(agent),
            State::Fresh | State::Seating(_) | State::Penalized(_) => None,
        }
    }
}

/// The sessions of one shard, found by the id that the driver gave the connection.
#[derive(Default)]
pub(super) struct Sessions {
    slots: Vec<Option<(u32, Session)>>,
    count: usize,
}

impl Sessions {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn insert(&mut self, id: SessionId, session: Session) {
        let slot = id.slot as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        if self.slots[slot].replace((id.generation, session)).is_none() {
            self.count += 1;
        }
    }

    pub(super) fn find(&self, id: SessionId) -> Option<&Session> {
        match self.slots.get(id.slot as usize)? {
            Some((generation, session)) if *generation == id.generation => Some(session),
            _ => None,
        }
    }

    pub(super) fn find_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        match self.slots.get_mut(id.slot as usize)? {
            Some((generation, session)) if *generation == id.generation => Some(session),
            _ => None,
        }
    }

    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.find(id)?;
        self.count -= 1;
        self.slots[id.slot as usize].take().map(|(_, session)| session)
    }

    pub(super) fn ids(&self) -> Vec<SessionId> {
        let id = |(slot, entry): (usize, &Option<(u32, Session)>)| {
            entry.as_ref().map(|(generation, _)| SessionId { slot: slot as u32, generation: *generation })
        };
        self.slots.iter().enumerate().filter_map(id).collect()
    }
}
