//! What a shard keeps of each connection beside what its heart knows: unread bytes, unsent bytes, the dialect.

use crate::base::ids::Token;
use crate::base::keys::Grant;
use crate::base::{AgentId, CloseReason, Name, Sequence, SessionId, ShardId};
use crate::relay::Peer;
use crate::tls::ServerLink;
use crate::uring::SendBuffer;
use crate::wire::{Dialect, Hello};

/// A connection, from accept to close.
pub(super) struct Connection {
    pub(super) dialect: Option<Dialect>,
    pub(super) stage: Stage,
    pub(super) peer: Peer,
    /// Set by Settle; empty before.
    pub(super) name: Name,
    pub(super) agent: AgentId,
    pub(super) token: Token,
    /// SENDs read (JSON: names those that came without an id).
    pub(super) sends: u64,
    /// Control frames written (JSON: makes their ids differ).
    pub(super) frames_out: u64,
    /// The beginning of a frame whose end has not arrived, or whatever came behind a HELLO, or before a pause ended. Never
    /// more than a frame and what one turn received.
    pub(super) stash: Vec<u8>,
    /// The TLS it speaks, if it does.
    pub(super) tls: Option<Box<Secured>>,
    /// Whether it may speak nothing else.
    pub(super) needs_tls: bool,
    /// Nothing is read from it until the heart says so; what was received already is in the stash.
    pub(super) paused: bool,
    /// Its peer closed while it was paused: it is lost when the stash has been read.
    pub(super) ended: bool,
    /// Its peer does not hear us any more, as was seen while it was paused: nothing is sent, and what it has sent is read.
    pub(super) muted: bool,
    /// Written in this turn, or while `sending`.
    pub(super) pending: SendBuffer,
    pub(super) pending_through: Sequence,
    /// Whether somebody waits to hear that what is pending has been written.
    pub(super) pending_awaited: bool,
    /// Whether the driver holds a buffer of this connection, and the last sequence in it.
    pub(super) sending: bool,
    pub(super) sending_through: Sequence,
    /// Whether it is in the list of connections with something to send or do.
    pub(super) due: bool,
    /// Closes when everything pending has been sent.
    pub(super) closing: Option<CloseReason>,
    /// Moves home when no send is in flight.
    pub(super) moving: Option<(ShardId, Box<Hello<'static>>, Option<Box<Grant>>)>,
}

/// The TLS of one connection.
pub(super) struct Secured {
    pub(super) link: ServerLink,
    /// To be sent before anything else.
    pub(super) sealed: Vec<u8>,
    /// Received and not looked at: the handshake waits for its turn.
    pub(super) waiting: Vec<u8>,
}

impl Secured {
    pub(super) fn new(link: ServerLink) -> Secured {
        Secured { link, sealed: Vec::new(), waiting: Vec::new() }
    }
}

/// Where a connection stands, as far as receiving is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// One receive at a time: HELLO, or the command line's frames.
    Fresh,
    /// HELLO was read: nothing more is, until the heart has said where this connection lives.
    Greeting,
    /// At home: receives continuously.
    Live,
}

impl Connection {
    pub(super) fn new(peer: Peer, nameless: &Name) -> Connection {
        Connection {
            dialect: None,
            stage: Stage::Fresh,
            peer,
            name: nameless.clone(),
            agent: AgentId(0),
            token: Token::default(),
            sends: 0,
            frames_out: 0,
            stash: Vec::new(),
            tls: None,
            needs_tls: false,
            paused: false,
            ended: false,
            muted: false,
            pending: SendBuffer::default(),
            pending_through: Sequence::default(),
            pending_awaited: false,
            sending: false,
            sending_through: Sequence::default(),
            due: false,
            closing: None,
            moving: None,
        }
    }

    /// Whether nothing has been read that says what it speaks.
    pub(super) fn is_undecided(&self) -> bool {
        self.dialect.is_none() && self.tls.is_none()
    }

    /// Forgets what was to be sent.
    pub(super) fn silence(&mut self) {
        self.pending.clear();
        if let Some(tls) = &mut self.tls {
            tls.sealed.clear();
        }
    }

    /// Whether there is anything to do when no send is in flight.
    pub(super) fn has_more(&self) -> bool {
        let sealed = self.tls.as_ref().is_some_and(|tls| !tls.sealed.is_empty());
        sealed || !self.pending.is_empty() || self.closing.is_some() || self.moving.is_some()
    }
}

/// The connections of a shard, by the id that the driver gave them.
#[derive(Default)]
pub(super) struct Connections {
    slots: Vec<Option<(u32, Box<Connection>)>>,
}

impl Connections {
    pub(super) fn insert(&mut self, id: SessionId, connection: Connection) {
        let slot = id.slot as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot] = Some((id.generation, Box::new(connection)));
    }

    pub(super) fn find_mut(&mut self, id: SessionId) -> Option<&mut Connection> {
        match self.slots.get_mut(id.slot as usize)? {
            Some((generation, connection)) if *generation == id.generation => Some(connection),
            _ => None,
        }
    }

    pub(super) fn remove(&mut self, id: SessionId) -> Option<Connection> {
        self.find_mut(id)?;
        self.slots[id.slot as usize].take().map(|(_, connection)| *connection)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }
}
