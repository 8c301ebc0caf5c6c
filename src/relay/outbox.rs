//! Everything a shard's heart can ask for. Whoever drives the heart performs it after `handle` returns.

use super::event::Mail;
use super::memory::{ProgressRecord, SessionRecord};
use crate::base::keys::{Grant, KeyId};
use crate::base::{AgentId, Bytes, CloseReason, MessageId, Name, RefuseReason, Sequence, SessionId, ShardId, Shared};
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
    /// Whether one of the records is to be committed without delay.
    pub records_urgent: bool,
    /// For the keeper: owed messages that are wanted back from the store.
    pub fetches: Vec<Fetch>,
    /// To be looked up in the store, behind every record so far; answered by one `Event::LookedUp`. Nothing more is asked
    /// until then.
    pub readings: Vec<Reading>,
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
            && self.fetches.is_empty()
            && self.readings.is_empty()
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
        /// What its credential grants, if it presented one.
        grant: Option<Box<Grant>>,
    },
    /// Read nothing more from it until `Resume`; what was read already is kept for then. A SEND found a limit empty.
    Pause {
        /// Which.
        session: SessionId,
    },
    /// Go on reading.
    Resume {
        /// Which.
        session: SessionId,
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
        /// When, milliseconds since 1970.
        at_ms: u64,
    },
    /// A session began or went on: committed without delay, whatever the durability.
    Session(Box<SessionRecord>),
    /// A session ended.
    Gone {
        /// Whose.
        agent: AgentId,
        /// When, milliseconds since 1970.
        at_ms: u64,
        /// Whether with BYE.
        bye: bool,
    },
    /// An agent wants to hear of a topic.
    Subscribed {
        /// Who.
        agent: AgentId,
        /// What.
        topic: Name,
        /// Whether as a channel.
        channel: bool,
    },
    /// It no longer does.
    Unsubscribed {
        /// Who.
        agent: AgentId,
        /// What.
        topic: Name,
    },
    /// Nobody has seen this agent within the retention time, and nothing is owed to it.
    Forgotten {
        /// Who.
        agent: AgentId,
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
        /// Its time to live, milliseconds; 0: as long as retention.
        ttl_ms: u32,
        /// How many homes keep a record of it: 1 for one recipient, all shards for a fan-out.
        parts: u16,
        /// For whom, in which place of their order.
        recipients: Recipients,
    },
    /// One home's part of a fan-out when nobody there is to have it.
    Nobody {
        /// Sender and number.
        id: MessageId,
        /// This start of the daemon.
        epoch: u32,
        /// As in `Message`.
        parts: u16,
        /// When it was accepted, milliseconds since 1970.
        at_ms: u64,
    },
    /// How far a recipient has got.
    Progress(ProgressRecord),
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
        /// When, milliseconds since 1970.
        at_ms: u64,
    },
}

impl Record {
    /// Bytes that keeping it costs beside the record itself.
    pub fn weight(&self) -> usize {
        match self {
            Record::Message { raw, recipients, .. } => raw.len() + recipients.weight(),
            Record::Progress(progress) => size_of_val(&*progress.settled),
            Record::Session(_) => size_of::<SessionRecord>(),
            _ => 0,
        }
    }
}

/// One recipient of a message, and its place in that recipient's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addressee {
    /// Who.
    pub agent: AgentId,
    /// Where in its order.
    pub sequence: Sequence,
    /// Whether it hears it as a channel's message, which is settled by being written.
    pub channel: bool,
}

/// The recipients of one message at one shard.
#[derive(Clone, Debug)]
pub enum Recipients {
    /// The usual case, without an allocation.
    One(Addressee),
    /// A fan-out.
    Many(Box<[Addressee]>),
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
    pub fn as_slice(&self) -> &[Addressee] {
        match self {
            Recipients::One(one) => std::slice::from_ref(one),
            Recipients::Many(many) => many,
        }
    }
}

/// A request for owed messages that are in the store and not in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// Whose.
    pub agent: AgentId,
    /// Only what has a place behind this one in its order.
    pub after: Sequence,
    /// Where the last fetch for this agent ended: a hint, `Place::default()` when there is none.
    pub place: Place,
    /// What to look for.
    pub wanted: Wanted,
    /// The wall clock, milliseconds since 1970: what has expired by then is not mail.
    pub now_ms: u64,
    /// How long messages without a time to live of their own are kept, milliseconds.
    pub retention_ms: u64,
}

/// What a fetch looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Messages to hand out, in order, at most so many and so many bytes (one always fits). What had expired by
    /// `expired_before_ms` was told as failed and is left out; what has expired since comes with `expired` set.
    Mail {
        /// Messages.
        messages_max: u32,
        /// Bytes.
        bytes_max: u32,
        /// See above.
        expired_before_ms: u64,
    },
    /// Messages that expired after `expired_before_ms` and by `now_ms`, with their bodies, at most so many.
    Expired {
        /// Messages.
        messages_max: u32,
        /// See above.
        expired_before_ms: u64,
    },
}

/// A position in the store's log. `Place::default()` is before everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Place {
    /// The segment; they are numbered from 1.
    pub segment: u64,
    /// The record's first byte within it.
    pub offset: u32,
}

/// An answer to a fetch.
#[derive(Debug)]
pub struct Fetched {
    /// What was asked.
    pub fetch: Fetch,
    /// In order.
    pub messages: Vec<FetchedMessage>,
    /// Where the next fetch goes on.
    pub place: Place,
    /// Everything the store held for this agent when it looked is in `messages`, or was before them.
    pub complete: bool,
    /// For `Wanted::Expired`: the earliest expiry among what stays, milliseconds since 1970; `u64::MAX`: none.
    pub next_expiry_ms: u64,
}

/// One owed message from the store.
#[derive(Debug)]
pub struct FetchedMessage {
    /// Its place in the order, and whether it is a channel's message.
    pub to: Addressee,
    /// The archived body.
    pub raw: Bytes,
    /// CRC-32 of `raw`.
    pub checksum: u32,
    /// When it was accepted, milliseconds since 1970.
    pub accepted_at_ms: u64,
    /// Whether its time was over at `now_ms`.
    pub expired: bool,
}

/// A message that its recipient says to have read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Reading {
    /// The message.
    pub id: MessageId,
    /// Who says so.
    pub recipient: AgentId,
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
    /// Under which key; none: the daemon's own user.
    pub by: Option<KeyId>,
    /// Whether a token of that key was presented: it must not get anything that outlives it.
    pub by_token: bool,
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
    pub profile: Option<Shared<Profile>>,
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
