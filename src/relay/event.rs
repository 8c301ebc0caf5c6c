//! Everything that can happen to a shard's heart. A closed enum: what is not here cannot happen.

use super::ledger::Sitter;
use super::outbox::{CensusTicket, Fetched};
use super::readings::LookedUp;
use crate::base::keys::{Certificate, Grant, KeyId, Ring, Source};
use crate::base::tier::Entitled;
use crate::base::{AgentId, Bytes, CloseReason, MessageId, Name, RefuseReason, Sequence, SessionId, ShardId};
use crate::wire::{Corrupt, Dialect, Frame, Hello, Parcel, Wants};

/// One thing that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A connection was accepted here.
    Opened {
        /// The connection.
        session: SessionId,
        /// Who is at the other end, as far as the kernel says.
        peer: Peer,
    },
    /// A connection was accepted elsewhere, said HELLO there, and lives here from now on.
    Adopted {
        /// The connection.
        session: SessionId,
        /// Who is at the other end.
        peer: Peer,
        /// What it speaks.
        dialect: Dialect,
        /// What it said.
        hello: Box<Hello<'static>>,
        /// What its credential grants, if it presented one.
        grant: Option<Box<Grant>>,
    },
    /// The TLS handshake is complete, and the peer has shown a client certificate. Comes before its HELLO.
    Certified {
        /// The connection.
        session: SessionId,
        /// What it has shown, verified.
        certificate: Certificate,
    },
    /// A whole, checked frame arrived.
    Frame {
        /// On this connection.
        session: SessionId,
        /// In this dialect.
        dialect: Dialect,
        /// The acknowledgement that rode on it; `Sequence::default()` says nothing.
        ack: Sequence,
        /// The frame.
        frame: Frame<'a>,
    },
    /// Bytes arrived that are not a frame.
    Corrupt {
        /// On this connection.
        session: SessionId,
        /// In this dialect, as far as known.
        dialect: Option<Dialect>,
        /// What is wrong.
        corrupt: Corrupt,
    },
    /// Everything up to this delivery has been written to the socket.
    Written {
        /// On this connection.
        session: SessionId,
        /// The last sequence in what was written.
        through: Sequence,
    },
    /// The connection is gone.
    Closed {
        /// Which.
        session: SessionId,
        /// Why.
        reason: CloseReason,
    },
    /// Another shard's heart says something.
    Mail {
        /// Which shard.
        from: ShardId,
        /// What it says.
        mail: Mail,
    },
    /// The writer has committed this shard's records up to and including this one.
    Committed {
        /// Number of the last committed record.
        through: u64,
    },
    /// Owed messages came back from the store.
    Fetched(Box<Fetched>),
    /// The writer's queue has no room (or has room again): SENDs are refused meanwhile.
    WriterFull(bool),
    /// So much waits for the writer that whoever sends is left unread (or so little again that nobody is). Its disk works,
    /// and is slower than the senders.
    WriterBehind(bool),
    /// What the store says of messages that agents here say to have read: the answer to all of `Outbox::readings`.
    LookedUp(Vec<LookedUp>),
    /// An answer to a question that was asked for a session.
    Answered {
        /// The session that asked.
        session: SessionId,
        /// Its number for the question.
        number: u64,
        /// Whether the question failed.
        failed: bool,
        /// A JSON value.
        json: Vec<u8>,
    },
    /// Someone wants to know who is here; answered in parts.
    Census(CensusTicket),
    /// The licence grants something else from now on. Nobody who is connected is dropped for it.
    Entitled(Entitled),
    /// There are other keys from now on: connections whose key is gone are closed.
    Keys(Ring),
    /// The daemon stops: say BYE to everyone.
    Stop,
}

/// The other end of a connection, as the kernel and TLS tell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peer {
    /// Whether it is the daemon's own user (or root) on the Unix socket: may use the command line's frames.
    pub owner: bool,
    /// Whether it came in where others can reach: a credential is needed, whatever the settings say.
    pub exposed: bool,
    /// Where it comes from, for counting what it gets wrong.
    pub source: Source,
    /// The client certificate that it has shown, verified.
    pub certificate: Option<Certificate>,
}

/// What hearts say to each other.
#[derive(Debug)]
pub enum Mail {
    /// A message for one agent who lives at the receiving shard.
    Send {
        /// The message.
        parcel: Parcel,
        /// Who wants to know what becomes of it.
        origin: Origin,
    },
    /// A SUBMIT on its way to the home of the name that it was sent under: there is known what was sent under it before.
    Submit {
        /// The message.
        parcel: Parcel,
        /// Who wants to know what becomes of it.
        origin: Origin,
    },
    /// It was submitted under a name whose home is here, and refused: the same may be submitted again.
    GiveBack(MessageId),
    /// A message for everyone, or a topic's subscribers, at the receiving shard.
    Fanout {
        /// The message.
        parcel: Parcel,
        /// Who wants to know what becomes of it.
        origin: Origin,
    },
    /// The same SEND once more, sent behind the first: what has become of that? Boxed: it is rare, and large.
    Again(Box<Again>),
    /// What became of a message, told to the shard it came from.
    Outcome(Box<Outcome>),
    /// An admin lets this agent join a channel, or leave it.
    Enrol {
        /// Who.
        member: Name,
        /// Which channel.
        topic: Name,
        /// Whether it joins.
        join: bool,
    },
    /// A seat for this agent, please; shard 0 answers.
    SeatAsked {
        /// Who has said HELLO.
        agent: AgentId,
        /// As what.
        sitter: Sitter,
    },
    /// A seat is taken where there is no limit.
    SeatTaken {
        /// By whom.
        sitter: Sitter,
    },
    /// What became of the question for a seat.
    SeatAnswer {
        /// For whom it was.
        agent: AgentId,
        /// As what it is to sit.
        sitter: Sitter,
        /// All seats are taken: how many there are.
        refused: Option<u32>,
    },
    /// A seat is free again.
    SeatFreed {
        /// Who has left it.
        sitter: Sitter,
    },
    /// Tokens of a rate, please; shard 0 answers: with tokens, or with the word that all come later, and then with those.
    TokensAsked {
        /// Which rate.
        account: Account,
        /// Messages that are owed for, and for which nothing is to come yet.
        wanted: u32,
        /// Tokens spent since this was last told.
        spent: u32,
    },
    /// Tokens of a rate, or the word that they come later.
    Tokens {
        /// Which rate.
        account: Account,
        /// How many; 0: later.
        tokens: u32,
        /// When the first one comes, in nanoseconds from now; the others that were asked for follow it at the rate.
        wait: u64,
        /// Whether this answers the question, and is not what an earlier one was answered with.
        answers: bool,
    },
    /// Nobody at this shard can spend tokens of this rate any more.
    TokensLeft {
        /// Which rate.
        account: Account,
        /// Tokens spent since this was last told.
        spent: u32,
        /// Tokens given back.
        unused: u32,
    },
}

/// The question about a SEND that came twice.
#[derive(Debug)]
pub struct Again {
    /// The message.
    pub parcel: Parcel,
    /// Who wants to know.
    pub origin: Origin,
    /// How often numbers had been given back at the sender's home when it asked; repeated in the answer.
    pub asked: u64,
}

/// Whose rate it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Account {
    /// The tier's.
    Daemon,
    /// A key's.
    Key {
        /// Which.
        key: KeyId,
        /// Its messages per minute.
        per_minute: u32,
    },
}

/// Where a message came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The sender's shard.
    pub shard: ShardId,
    /// The sender's connection there.
    pub session: SessionId,
    /// Which SEND of that session it was, from 1.
    pub ordinal: u64,
    /// Whether it came by SUBMIT, on a connection that is nobody's.
    pub submitted: bool,
}

/// No connection at all: whoever it is about is found by name.
pub(super) const NOBODY: SessionId = SessionId { slot: u32::MAX, generation: u32::MAX };

/// What became of one message, for one recipient or for all of one shard.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Where to tell it.
    pub origin: Origin,
    /// The message.
    pub id: MessageId,
    /// The sender's textual id for it.
    pub label: Bytes,
    /// What the sender wants to hear.
    pub wants: Wants,
    /// The recipient it is about; `AgentId(0)` for a whole shard.
    pub recipient: AgentId,
    /// What happened.
    pub what: What,
}

/// What can become of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// It is in its recipient's order and on its way to the writer.
    Accepted,
    /// The answer to `Mail::Again`: it was accepted, unless its refusal came back since it was asked.
    AcceptedBefore {
        /// As in the question.
        asked: u64,
    },
    /// The same: all that was accepted before the question is committed.
    DurableBefore {
        /// As in the question.
        asked: u64,
    },
    /// One shard has taken its part of a fan-out: so many recipients.
    FanoutTaken {
        /// Recipients there.
        recipients: u32,
    },
    /// The record that holds it is committed.
    Durable,
    /// One shard's part of a fan-out is committed.
    FanoutDurable,
    /// Written to the recipient's socket.
    Delivered,
    /// Acknowledged.
    Acknowledged,
    /// Read.
    Read,
    /// Accepted once, but it will not arrive.
    Failed(RefuseReason),
    /// Not accepted.
    Refused {
        /// Why.
        reason: RefuseReason,
        /// When it is worth trying again; 0: never.
        retry_after_ms: u32,
        /// Messages waiting for the recipient.
        queue_depth: u32,
        /// The recipient's name.
        recipient: Box<str>,
    },
}
