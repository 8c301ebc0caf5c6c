//! One simulated connection: two streams of bytes, cut anywhere, slow, stalling, breaking; and the relay's send buffer.

use super::speech;
use agent_relay::base::ids::Token;
use agent_relay::base::{Mono, Sequence, SessionId};
use agent_relay::wire::{Dialect, Frame};

/// Where the relay's end is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// In the backlog of a shard's listener.
    Backlog(usize),
    /// A shard's connection.
    At(usize, SessionId),
    /// On its way to its home.
    Moving,
    /// The relay has let go of it.
    Gone,
}

/// A connection.
pub struct Link {
    pub agent: usize,
    pub dialect: Dialect,
    pub owner: bool,
    pub end: End,
    /// Client to relay, on the way.
    pub up: Vec<u8>,
    /// Arrived at the relay and not read yet.
    pub arrived: Vec<u8>,
    /// What the relay has said and not yet given to the kernel.
    pub egress: Vec<u8>,
    pub egress_through: Sequence,
    /// One send in flight.
    pub flush: Vec<u8>,
    pub flush_through: Sequence,
    /// Relay to client, on the way.
    pub down: Vec<u8>,
    /// Arrived at the client and not read yet.
    pub heard: Vec<u8>,
    /// Bytes do not move any more.
    pub broken: bool,
    pub relay_notices_at: Mono,
    pub client_notices_at: Mono,
    /// The relay closes it after what was said.
    pub closing: bool,
    /// The client sees the end of the stream when everything has arrived.
    pub ended: bool,
    pub client_gone: bool,
    /// The relay has settled it under a name.
    pub settled: bool,
    /// A HELLO was handed to the heart; what follows waits until the heart has decided.
    pub hello_read: bool,
    /// With which position the client said HELLO.
    pub handled: Sequence,
    /// With which token.
    pub presented: Option<Token>,
    /// With which credential.
    pub secret: Option<String>,
    /// The relay reads nothing from it for now.
    pub paused: bool,
    /// A planted bug: it is never read again.
    pub stuck: bool,
}

impl Link {
    pub fn new(agent: usize, dialect: Dialect, owner: bool, shard: usize) -> Link {
        Link {
            agent,
            dialect,
            owner,
            end: End::Backlog(shard),
            up: Vec::new(),
            arrived: Vec::new(),
            egress: Vec::new(),
            egress_through: Sequence::default(),
            flush: Vec::new(),
            flush_through: Sequence::default(),
            down: Vec::new(),
            heard: Vec::new(),
            broken: false,
            relay_notices_at: Mono(u64::MAX),
            client_notices_at: Mono(u64::MAX),
            closing: false,
            ended: false,
            client_gone: false,
            settled: false,
            hello_read: false,
            handled: Sequence::default(),
            presented: None,
            secret: None,
            paused: false,
            stuck: false,
        }
    }

    /// The client says something.
    pub fn say(&mut self, frame: &Frame<'_>, ack: Sequence) {
        speech::frame(&mut self.up, self.dialect, frame, ack);
    }

    /// Both ends will find out, each in its time.
    pub fn tear(&mut self, relay_notices_at: Mono, client_notices_at: Mono) {
        if !self.broken {
            self.broken = true;
            self.relay_notices_at = relay_notices_at;
            self.client_notices_at = client_notices_at;
        }
    }

    /// The relay's process is gone; what it gave to the kernel may still arrive.
    pub fn die(&mut self, arrives: bool, client_notices_at: Mono) {
        if self.end == End::Gone && self.broken {
            return;
        }
        if arrives && !self.broken {
            let count = self.down.len();
            shift(&mut self.down, &mut self.heard, count);
        }
        self.end = End::Gone;
        self.broken = true;
        self.relay_notices_at = Mono(u64::MAX);
        self.client_notices_at = self.client_notices_at.min(client_notices_at);
    }

    /// Starts the next send when none is in flight.
    pub fn start_flush(&mut self) {
        if self.flush.is_empty() && !self.egress.is_empty() {
            std::mem::swap(&mut self.flush, &mut self.egress);
            self.flush_through = std::mem::take(&mut self.egress_through);
        }
    }

    /// Moves up to so many bytes each way; gives what has been written when a send is complete.
    pub fn carry(&mut self, up: usize, flush: usize, down: usize) -> Option<Sequence> {
        if self.broken {
            return None;
        }
        shift(&mut self.up, &mut self.arrived, up);
        shift(&mut self.down, &mut self.heard, down);
        if self.flush.is_empty() {
            self.start_flush();
        }
        let sending = !self.flush.is_empty();
        shift(&mut self.flush, &mut self.down, flush);
        if self.closing && self.flush.is_empty() && self.egress.is_empty() {
            self.ended = true;
        }
        (sending && self.flush.is_empty()).then(|| std::mem::take(&mut self.flush_through))
    }

    /// Nothing is on its way.
    pub fn is_quiet(&self) -> bool {
        self.broken
            || self.client_gone
            || (self.up.is_empty()
                && self.arrived.is_empty()
                && self.egress.is_empty()
                && self.flush.is_empty()
                && self.down.is_empty()
                && self.heard.is_empty())
    }
}

fn shift(from: &mut Vec<u8>, to: &mut Vec<u8>, count: usize) {
    let count = count.min(from.len());
    if count == from.len() && to.is_empty() {
        std::mem::swap(from, to);
    } else {
        to.extend_from_slice(&from[..count]);
        from.drain(..count);
    }
}
