//! Everything a shard's heart can ask for. Whoever drives the heart performs it after `handle` returns.

use super::event::Mail;
use crate::base::{AgentId, Bytes, CloseReason, MessageId, Name, RefuseReason, Sequence, SessionId, ShardId};
use crate::wire::{Frame, Hello, QueryKind, Receipt};

/// What the heart wants done. Law: empty between turns; each list is performed in its order.
#[derive(Default, Debug)]
pub struct Outbox {
    /// For this shard's connections, in order.
    pub outputs: Vec<Output>,
    /// For other hearts, in order per shard.
    pub mails: Vec<(ShardId, Mail)>,
    /// For the writer, in order; the n-th record ever pushed has number n (from 1).
    pub records: Vec<Record>,
    /// Sum of their weights; whoever takes them sets it to zero.
    pub records_weight: usize,
    /// For the clerk or the writer to answer.
    pub questions: Vec<Question>,
    /// For the clerk.
    pub census: Vec<CensusPart>,
}

impl Outbox {
    /// Whether nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty()
            && self.mails.is_empty()
            && self.records.is_empty()
            && self.questions.is_empty()
            && self.census.is_empty()
    }

    pub(super) fn reply(&mut self, session: SessionId, frame: Frame<'static>) {
        self.outputs.push(Output::Reply { session, frame });
    }
}

/// Something for one connection.
#[derive(Debug)]
pub enum Output {
    /// A message.
    Deliver(Delivery),
    /// Anything else that is said.
    Reply {
        /// To whom.
        session: SessionId,
        /// What.
        frame: Frame<'static>,
    },
    /// One receipt; kept apart from other replies because it is frequent and needs no allocation.
    Receipt {
        /// To whom.
        session: SessionId,
        /// What.
        receipt: Receipt,
    },
    /// The connection is at home here: receive from it continuously, under this name.
    Settle {
        /// Which.
        session: SessionId,
        /// The agent that speaks on it.
        name: Name,
        /// Its number.
        agent: AgentId,
        /// The session's id, which each JSON DELIVER repeats.
        token: crate::base::ids::Token,
    },
    /// The connection's home is elsewhere.
    Move {
        /// Which.
        session: SessionId,
        /// Its home.
        to: ShardId,
        /// What it said.
        hello: Box<Hello<'static>>,
    },
    /// Close it, after what was said before.
    Close {
        /// Which.
        session: SessionId,
        /// Why.
        reason: CloseReason,
    },
}

/// A message on its way to one connection.
#[derive(Debug)]
pub struct Delivery {
    /// To whom.
    pub session: SessionId,
    /// Its place in the recipient's order.
    pub sequence: Sequence,
    /// `wire::FLAG_*`.
    pub flags: u8,
    /// Whether somebody waits to hear that it has been written: `Event::Written` must then come without delay.
    pub awaited: bool,
    /// CRC-32 of `raw`.
    pub checksum: u32,
    /// The archived body.
    pub raw: Bytes,
}

/// Something the writer keeps.
#[derive(Clone, Debug)]
pub enum Record {
    /// A name and its number, said before the number is used.
    Known {
        /// The number.
        agent: AgentId,
        /// The name.
        name: Name,
    },
    /// An accepted message and its recipients here.
    Message {
        /// Sender and number.
        id: MessageId,
        /// The archived body, as it was relayed.
        raw: Bytes,
        /// CRC-32 of `raw`.
        checksum: u32,
        /// When it was accepted, milliseconds since 1970.
        accepted_at_ms: u64,
        /// For whom, in which place of their order.
        recipients: Recipients,
    },
    /// How far a recipient has got.
    Progress {
        /// The recipient.
        agent: AgentId,
        /// Everything up to here was written to its socket.
        delivered: Sequence,
        /// Everything up to here it has acknowledged.
        acknowledged: Sequence,
    },
    /// An accepted message that will not arrive at one recipient.
    Failed {
        /// Sender and number.
        id: MessageId,
        /// The recipient.
        recipient: AgentId,
        /// Why.
        reason: RefuseReason,
    },
    /// A message that was read.
    Read {
        /// Sender and number.
        id: MessageId,
        /// By whom.
        recipient: AgentId,
    },
    /// A message that was not accepted.
    Refused {
        /// Sender and number.
        id: MessageId,
        /// Why.
        reason: RefuseReason,
    },
}

impl Record {
    /// Bytes that keeping it costs beside the record itself.
    pub fn weight(&self) -> usize {
        match self {
            Record::Message { raw, recipients, .. } => raw.len() + recipients.weight(),
            _ => 0,
        }
    }
}

/// The recipients of one message at one shard.
#[derive(Clone, Debug)]
pub enum Recipients {
    /// The usual case, without an allocation.
    One(AgentId, Sequence),
    /// A fan-out.
    Many(Box<[(AgentId, Sequence)]>),
}

impl Recipients {
    /// Bytes that keeping them costs beside the record.
    pub fn weight(&self) -> usize {
        match self {
            Recipients::One(..) => 0,
            Recipients::Many(many) => size_of_val(&**many),
        }
    }

    /// All of them.
    pub fn as_slice(&self) -> Vec<(AgentId, Sequence)> {
        match self {
            Recipients::One(agent, sequence) => vec![(*agent, *sequence)],
            Recipients::Many(many) => many.to_vec(),
        }
    }
}

/// A question of the command line that the heart does not answer itself.
#[derive(Debug)]
pub struct Question {
    /// Who asks.
    pub session: SessionId,
    /// Its number for it.
    pub number: u64,
    /// What is asked.
    pub kind: QueryKind,
    /// With which arguments (JSON, or empty).
    pub arguments: Box<str>,
}

/// A request for a part of the list of agents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CensusTicket {
    /// Repeated in the answer.
    pub ticket: u64,
    /// Where to go on; 0 at the beginning; `u32::MAX` asks for the gauges alone.
    pub cursor: u32,
}

/// A part of the list of agents.
#[derive(Debug)]
pub struct CensusPart {
    /// The request's number.
    pub ticket: u64,
    /// The shard.
    pub shard: ShardId,
    /// Where to go on; none when this was the last part.
    pub next: Option<u32>,
    /// Agents.
    pub rows: Vec<AgentRow>,
    /// This shard's gauges, in the last part.
    pub gauges: Option<Box<super::counters::Gauges>>,
}

/// One agent, for people.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct AgentRow {
    pub name: Name,
    pub live: bool,
    pub json: bool,
    pub profile: Option<Box<Profile>>,
    pub first_seen_ms: u64,
    pub last_seen_ms: u64,
    pub messages_sent: u64,
    pub messages_received: u64,
    pub waiting_messages: u32,
    pub waiting_bytes: u32,
    pub in_flight: u32,
    pub oldest_unacknowledged_ms: Option<u64>,
    pub topics: Vec<Name>,
}

/// What an agent said about itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Profile {
    pub cli: Box<str>,
    pub program: Box<str>,
    pub model: Box<str>,
    pub task: Box<str>,
    pub working_directory: Box<str>,
}
