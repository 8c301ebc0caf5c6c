//! What can be said on the wire, whichever dialect carries it.

use super::body::ArchivedBody;
use crate::base::ids::Token;
use crate::base::{AgentId, Bytes, MessageId, RefuseReason, Sequence};
use std::borrow::Cow;
use zeroize::Zeroizing;

/// Text or bytes that may be borrowed from the receive buffer or be the relay's own.
pub type Text<'a> = Cow<'a, str>;

/// One frame. The same enum serves both directions and both dialects; who may say what is the session's business.
#[derive(Clone, Debug)]
pub enum Frame<'a> {
    /// Client: who I am.
    Hello(Box<Hello<'a>>),
    /// Relay: you are in.
    Welcome(Box<Welcome<'a>>),
    /// Client: relay this.
    Send(Message<'a>),
    /// Relay: here is a message for you. (The sequence is in the header.)
    Deliver(Message<'a>),
    /// Client: I have handled messages.
    Ack(Ack),
    /// Either way: what became of messages.
    Receipt(Vec<Receipt>),
    /// Client: messages to this topic are for me too. The name comes without its `#`.
    Subscribe(Topic<'a>),
    /// Client: no longer.
    Unsubscribe(Topic<'a>),
    /// JSON client: another agent is to hear of this channel, or no longer; for admins.
    Enrol(Box<Enrol<'a>>),
    /// Either way: are you there?
    Ping(Cow<'a, [u8]>),
    /// The answer, with the question's bytes.
    Pong(Cow<'a, [u8]>),
    /// Relay: not accepted; try again after a while.
    Busy(Box<Busy<'a>>),
    /// Relay: that was wrong.
    Error(Box<ErrorFrame<'a>>),
    /// Either way: nothing more will come.
    Bye,
    /// Command line: relay this without a session.
    Submit(Message<'a>),
    /// Command line: tell me something.
    Query(Box<Query<'a>>),
    /// Relay: the answer, or a part of it.
    Answer(Box<Answer<'a>>),
    /// Relay to a JSON client: the SEND that asked for it is durable.
    SendAck {
        /// The SEND's own id.
        label: Text<'a>,
        /// Its ordinal among the session's SENDs.
        ordinal: u64,
    },
    /// A JSON frame of a type that the relay ignores, as the original did. Still a sign of life.
    Ignored,
    /// A JSON request of a type that the relay does not serve.
    Unserved {
        /// The request's id.
        label: Text<'a>,
        /// The request's type.
        kind: Text<'a>,
    },
    /// A frame that is well formed as such but breaks a rule of its kind: answered with BAD_REQUEST, not fatal.
    Malformed {
        /// The frame's own id, where it has one.
        label: Text<'a>,
        /// The sender's number, where it has one (native SEND), else 0.
        number: u64,
        /// What is wrong and what to do.
        problem: Text<'a>,
    },
}

/// A message as it entered: validated, borrowed from the receive buffer, never re-encoded.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The archived body, whole.
    pub raw: &'a [u8],
    /// CRC-32 of `raw`.
    pub checksum: u32,
    pub(super) body: &'a ArchivedBody,
}

/// A message that outlives the turn: the shared copy of its body and what routing needs to know of it.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// The archived body, whole.
    pub raw: Bytes,
    /// CRC-32 of `raw`.
    pub checksum: u32,
    /// Sender and number.
    pub id: MessageId,
    /// Milliseconds until it is not worth delivering any more; 0: as long as retention.
    pub ttl_ms: u32,
    /// What the sender wants to hear.
    pub wants: Wants,
    pub(super) from: Span,
    pub(super) to: Span,
    pub(super) topic: Span,
    pub(super) label: Span,
}

/// A place inside a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) length: u32,
}

/// Receipts a sender asks for; a set of bits, as on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wants(pub u8);

impl Wants {
    /// Tell me when it is accepted.
    pub const ACCEPTED: Wants = Wants(1);
    /// Tell me when the commit that holds it is on disk.
    pub const DURABLE: Wants = Wants(2);
    /// Tell me when it has been written to the recipient's socket.
    pub const DELIVERED: Wants = Wants(4);
    /// Tell me when the recipient has acknowledged it.
    pub const ACKNOWLEDGED: Wants = Wants(8);
    /// Tell me when the recipient says that it was read.
    pub const READ: Wants = Wants(16);

    /// Whether every bit of `other` is set here.
    pub fn contains(self, other: Wants) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set less `other`.
    pub fn without(self, other: Wants) -> Wants {
        Wants(self.0 & !other.0)
    }
}

impl std::ops::BitOr for Wants {
    type Output = Wants;
    fn bitor(self, other: Wants) -> Wants {
        Wants(self.0 | other.0)
    }
}

/// HELLO: who connects, and what it can do.
#[derive(Clone, Debug, Default)]
pub struct Hello<'a> {
    /// The claimed name, unchecked.
    pub claimed_name: Cow<'a, [u8]>,
    /// Capability bits ([`CAPABILITIES`]); unknown ones are ignored.
    pub capabilities: u64,
    /// How many unacknowledged messages the client will hold; 0: the relay's default.
    pub in_flight_max: u32,
    /// The token of the session to resume.
    pub resume: Option<Token>,
    /// Whether a resume token was presented at all, readable or not.
    pub resume_presented: bool,
    /// With `resume`: the last sequence the client has handled; a cumulative acknowledgement.
    pub handled: Sequence,
    /// Which program the agent is (claude, codex, gemini, …).
    pub cli: Text<'a>,
    /// The program's own name.
    pub program: Text<'a>,
    /// The model it runs.
    pub model: Text<'a>,
    /// What it works on.
    pub task: Text<'a>,
    /// Where.
    pub working_directory: Text<'a>,
    /// `api_key` or `token`; empty when there is no credential.
    pub auth_type: Text<'a>,
    /// The credential itself.
    pub credential: Secret<'a>,
}

impl Hello<'_> {
    /// The same, independent of the receive buffer.
    pub fn into_owned(self) -> Hello<'static> {
        let own = |text: Text<'_>| -> Text<'static> { Cow::Owned(text.into_owned()) };
        Hello {
            claimed_name: Cow::Owned(self.claimed_name.into_owned()),
            capabilities: self.capabilities,
            in_flight_max: self.in_flight_max,
            resume: self.resume,
            resume_presented: self.resume_presented,
            handled: self.handled,
            cli: own(self.cli),
            program: own(self.program),
            model: own(self.model),
            task: own(self.task),
            working_directory: own(self.working_directory),
            auth_type: own(self.auth_type),
            credential: self.credential.into_owned(),
        }
    }
}

/// Text that never appears in a debug form, and that leaves nothing behind in memory of its own.
#[derive(Clone)]
pub struct Secret<'a>(Hidden<'a>);

#[derive(Clone)]
enum Hidden<'a> {
    /// Where it was received.
    Lent(&'a str),
    Own(Zeroizing<String>),
}

impl<'a> Secret<'a> {
    /// This text.
    pub fn new(text: impl Into<Text<'a>>) -> Secret<'a> {
        Secret(match text.into() {
            Cow::Borrowed(text) => Hidden::Lent(text),
            Cow::Owned(text) => Hidden::Own(Zeroizing::new(text)),
        })
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        match &self.0 {
            Hidden::Lent(text) => text,
            Hidden::Own(text) => text,
        }
    }

    /// The same, independent of the receive buffer.
    pub fn into_owned(self) -> Secret<'static> {
        Secret(Hidden::Own(match self.0 {
            Hidden::Lent(text) => Zeroizing::new(text.to_owned()),
            Hidden::Own(text) => text,
        }))
    }
}

impl Default for Secret<'_> {
    fn default() -> Self {
        Secret(Hidden::Lent(""))
    }
}

impl std::fmt::Debug for Secret<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(if self.reveal().is_empty() { "none" } else { "Secret(..)" })
    }
}

/// What this version of either side can do; both sides use what both have.
pub const CAPABILITIES: u64 = CAPABILITY_CUMULATIVE_ACK | CAPABILITY_RECEIPTS | CAPABILITY_RESUME;
/// Acknowledgements may be cumulative and ride in the header of any frame.
pub const CAPABILITY_CUMULATIVE_ACK: u64 = 1;
/// RECEIPT frames are understood.
pub const CAPABILITY_RECEIPTS: u64 = 2;
/// Sessions can be resumed.
pub const CAPABILITY_RESUME: u64 = 4;

/// WELCOME: the session, and the bounds both sides keep.
#[derive(Clone, Debug, Default)]
pub struct Welcome<'a> {
    /// The agent's number, to be written into each of its messages.
    pub agent: AgentId,
    /// This session.
    pub session: Token,
    /// Resumes this session after a lost connection; works once.
    pub resume: Token,
    /// Whether an earlier session goes on.
    pub resumed: bool,
    /// The highest message number of this agent that the relay has taken; count on from here.
    pub number: u64,
    /// Capability bits of the relay.
    pub capabilities: u64,
    /// This start of the daemon.
    pub epoch: u32,
    /// Unacknowledged messages the relay will have in flight to this client.
    pub in_flight_max: u32,
    /// Largest frame, header included.
    pub frame_bytes_max: u32,
    /// A silent client is asked for a sign of life at this interval.
    pub heartbeat_ms: u32,
    /// The relay's name and version, for people.
    pub server: Text<'a>,
    /// The licence in force as JSON `{tier, features, limits}`; empty when there is nothing to say.
    pub license: Text<'a>,
}

/// An acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ack {
    /// Everything up to and including this sequence.
    Through(Sequence),
    /// This one alone.
    One(Sequence),
    /// This one alone, by its id (JSON).
    Message(MessageId),
    /// Of a message this relay never sent: ignored.
    Unknown,
}

/// What became of `count` consecutive messages from `number` on, for one recipient or for all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// The message. (In a client's RECEIPT the sender is whoever sent it; in the relay's, the session's agent.)
    pub id: MessageId,
    /// How many consecutive numbers this speaks of, at least 1.
    pub count: u32,
    /// The state they have reached.
    pub state: ReceiptState,
    /// The recipient that this is about; `AgentId(0)`: all of them.
    pub recipient: AgentId,
}

/// The states a message passes through; a failure says why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReceiptState {
    /// Routed, ordered, queued for the writer.
    Accepted,
    /// On disk.
    Durable,
    /// Written to the recipient's socket.
    Delivered,
    /// Acknowledged by the recipient.
    Acknowledged,
    /// A person or agent saw it.
    Read,
    /// It will not arrive.
    Failed(RefuseReason),
}

/// A subscription, or its end.
#[derive(Clone, Debug)]
pub struct Topic<'a> {
    /// The topic's name without its `#`.
    pub name: Cow<'a, [u8]>,
    /// Whether it was joined as a channel of a 1.6.0 client: its messages come as CHANNEL_MESSAGE.
    pub channel: bool,
}

/// Another agent's membership of a channel (JSON CHANNEL_JOIN and CHANNEL_LEAVE with `member`).
#[derive(Clone, Debug)]
pub struct Enrol<'a> {
    /// The channel.
    pub topic: Topic<'a>,
    /// The agent that joins or leaves.
    pub member: Text<'a>,
    /// Whether it joins.
    pub join: bool,
    /// The request's id.
    pub label: Text<'a>,
}

/// BUSY: this SEND was not accepted.
#[derive(Clone, Debug)]
pub struct Busy<'a> {
    /// The SEND's number.
    pub number: u64,
    /// The SEND's textual id; empty for native senders.
    pub label: Text<'a>,
    /// Why.
    pub reason: RefuseReason,
    /// When it is worth trying again.
    pub retry_after_ms: u32,
    /// Messages waiting for that recipient.
    pub queue_depth: u32,
    /// The recipient that could not take it; empty when it was not about one recipient.
    pub recipient: Text<'a>,
}

/// ERROR: what was wrong.
#[derive(Clone, Debug)]
pub struct ErrorFrame<'a> {
    /// The kind of error.
    pub code: ErrorCode,
    /// Whether the relay closes the connection after it.
    pub fatal: bool,
    /// A sentence that says what to do.
    pub message: Text<'a>,
    /// The number of the SEND it is about; 0: none.
    pub number: u64,
    /// The textual id of the frame it is about; empty: none.
    pub label: Text<'a>,
    /// What became of that SEND.
    pub outcome: Option<RefuseReason>,
}

/// Error codes; the number is on the native wire, the name on the JSON wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum ErrorCode {
    /// The frame is wrong.
    BadRequest = 1,
    /// No, or no good, credential.
    Unauthorized = 2,
    /// The credential does not allow this.
    Forbidden = 3,
    /// A limit of the tier.
    QuotaExceeded = 4,
    /// No such recipient, message or thing.
    NotFound = 5,
    /// The relay's own fault.
    Internal = 6,
    /// That session cannot be resumed; a fresh one follows.
    ResumeTooOld = 7,
    /// Another connection holds the name.
    DuplicateConnection = 8,
    /// It took too long.
    Timeout = 9,
}

impl ErrorCode {
    /// Every code, in wire order.
    pub const ALL: [ErrorCode; 9] = [
        ErrorCode::BadRequest,
        ErrorCode::Unauthorized,
        ErrorCode::Forbidden,
        ErrorCode::QuotaExceeded,
        ErrorCode::NotFound,
        ErrorCode::Internal,
        ErrorCode::ResumeTooOld,
        ErrorCode::DuplicateConnection,
        ErrorCode::Timeout,
    ];

    /// The name on the JSON wire.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "BAD_REQUEST",
            ErrorCode::Unauthorized => "UNAUTHORIZED",
            ErrorCode::Forbidden => "FORBIDDEN",
            ErrorCode::QuotaExceeded => "QUOTA_EXCEEDED",
            ErrorCode::NotFound => "NOT_FOUND",
            ErrorCode::Internal => "INTERNAL",
            ErrorCode::ResumeTooOld => "RESUME_TOO_OLD",
            ErrorCode::DuplicateConnection => "DUPLICATE_CONNECTION",
            ErrorCode::Timeout => "TIMEOUT",
        }
    }
}

/// A question of the command line.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// Chosen by the asker, repeated in the answer.
    pub number: u64,
    /// What is asked.
    pub kind: QueryKind,
    /// Its arguments as a JSON object; empty when there are none.
    pub arguments: Text<'a>,
}

/// What can be asked; the number is on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum QueryKind {
    /// The daemon: version, shards, queues, counters, limits. `{verbose}`.
    Status = 1,
    /// Who is known. `{all}`.
    Agents = 2,
    /// One message and what became of it, by id, id prefix, or sender and the sender's own id. `{id}` or `{from, label}` or `{from, number}`.
    Message = 3,
    /// Stop: what `relay down` asks for. Only the owner's uid.
    Stop = 4,
    /// Stored messages, in pages. `{from, to, agent, thread, topic, since_ms, until_ms, limit, before, after}`, each optional.
    History = 5,
    /// API keys: `{op: "list"|"create"|"revoke"|"rotate"|"token", …}`.
    Keys = 6,
    /// The licence in force and its usage; `{op: "show"|"reload"}`.
    License = 7,
}

/// An answer, or a part of one.
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    /// The question's number.
    pub number: u64,
    /// Whether more parts follow.
    pub more: bool,
    /// Whether the question failed; then `json` is `{"error": "…"}`.
    pub failed: bool,
    /// A JSON value, UTF-8.
    pub json: Cow<'a, [u8]>,
}
