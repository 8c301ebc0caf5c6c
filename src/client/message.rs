//! What a program sends and receives, owned.

use super::Error;
use crate::base::limits::{FRAME_BYTES_MAX, LABEL_BYTES_MAX, NAME_BYTES_MAX, TOPIC_BYTES_MAX};
use crate::base::{MessageId, RefuseReason, Sequence, name};
use crate::wire::{ErrorCode, Message, MessageFields, Receipt, Wants, encode};
use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

/// A message to be sent. `Outgoing { to, text, ..Outgoing::default() }` is the usual form.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// A name, `*` for everybody, or `#topic`.
    pub to: &'a str,
    /// With `to` = `*`: only those who subscribed to this topic; empty: everybody.
    pub topic: &'a str,
    /// What it says; `None`: there is no text, only `data`.
    pub text: Option<&'a str>,
    /// The conversation it belongs to; empty: none.
    pub thread: &'a str,
    /// The sender's own textual id; empty: none.
    pub label: &'a str,
    /// A JSON object with further members; empty: none.
    pub data: &'a str,
    /// A JSON object about the message; empty: none.
    pub meta: &'a str,
    /// Milliseconds until it is not worth delivering any more; 0: as long as the relay keeps messages.
    pub ttl_ms: u32,
    /// Receipts to be told.
    pub wants: Wants,
    /// 0 message, 1 action, 2 state, 3 thinking.
    pub kind: u8,
    /// 0 to 100.
    pub importance: u8,
}

impl Default for Outgoing<'_> {
    fn default() -> Self {
        Outgoing {
            to: "",
            topic: "",
            text: None,
            thread: "",
            label: "",
            data: "",
            meta: "",
            ttl_ms: 0,
            wants: Wants(0),
            kind: 0,
            importance: 50,
        }
    }
}

impl<'a> Outgoing<'a> {
    /// The fields on the wire, if they keep its rules. `#topic` becomes `*` and the topic.
    pub(super) fn fields(&self, id: MessageId, from: &'a str) -> Result<MessageFields<'a>, Error> {
        let (to, topic) = match self.to.strip_prefix('#') {
            Some(topic) => ("*", topic),
            None => (self.to, self.topic.strip_prefix('#').unwrap_or(self.topic)),
        };
        if to != "*" {
            name::check_agent(to.as_bytes()).map_err(|rule| Error::Rule(format!("the recipient {to:?}: {rule}")))?;
        }
        if !topic.is_empty() {
            name::check_topic(topic.as_bytes()).map_err(|rule| Error::Rule(format!("the topic {topic:?}: {rule}")))?;
        }
        if self.label.len() > LABEL_BYTES_MAX {
            return Err(Error::Rule(format!("a message's own id is at most {LABEL_BYTES_MAX} bytes long")));
        }
        debug_assert!(to.len() <= NAME_BYTES_MAX && topic.len() <= TOPIC_BYTES_MAX);
        let sent_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let fields = MessageFields {
            id,
            sent_at_ms: sent_at.as_millis() as u64,
            ttl_ms: self.ttl_ms,
            wants: self.wants,
            kind: self.kind,
            importance: self.importance,
            flags: u8::from(self.text.is_none()),
            from: from.as_bytes(),
            to: to.as_bytes(),
            topic: topic.as_bytes(),
            thread: self.thread.as_bytes(),
            label: self.label.as_bytes(),
            text: self.text.unwrap_or("").as_bytes(),
            data: self.data.as_bytes(),
            meta: self.meta.as_bytes(),
            extension: &[],
        };
        let length = encode::message_length(&fields);
        if length > FRAME_BYTES_MAX { Err(Error::TooLong(length)) } else { Ok(fields) }
    }
}

/// A message that arrived.
#[derive(Clone, Debug)]
pub struct Received {
    raw: Vec<u8>,
    checksum: u32,
    /// Its place in this agent's order.
    pub sequence: Sequence,
    /// Whether the relay had sent it before (to this program or an earlier one of the same name).
    pub redelivered: bool,
}

impl Received {
    pub(super) fn new(message: Message<'_>, sequence: Sequence, redelivered: bool) -> Received {
        Received { raw: message.raw.to_vec(), checksum: message.checksum, sequence, redelivered }
    }

    /// Everything it says.
    pub fn fields(&self) -> MessageFields<'_> {
        Message::check(&self.raw, self.checksum).expect("checked when it arrived, unchanged since").fields()
    }

    /// Sender and number.
    pub fn id(&self) -> MessageId {
        self.fields().id
    }

    /// Who sent it.
    pub fn from(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.fields().from)
    }

    /// Whom it was for: this agent, or `*`.
    pub fn to(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.fields().to)
    }

    /// Its topic; empty: none.
    pub fn topic(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.fields().topic)
    }

    /// What it says.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.fields().text)
    }

    /// The conversation it belongs to; empty: none.
    pub fn thread(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.fields().thread)
    }
}

/// What `next` hands out.
#[derive(Clone, Debug)]
pub enum Incoming {
    /// A message.
    Message(Received),
    /// What became of messages.
    Receipt(Receipt),
    /// A message was not accepted; it may be sent again under the same number.
    Busy {
        /// The message's number.
        number: u64,
        /// Why.
        reason: RefuseReason,
        /// When it is worth trying again.
        retry_after_ms: u32,
        /// Messages waiting for that recipient.
        queue_depth: u32,
        /// Which recipient; empty: it was not about one.
        recipient: String,
    },
    /// The relay reads this connection later: nothing is refused and nothing is lost, it only takes longer.
    Slowed {
        /// Why.
        reason: RefuseReason,
        /// For how long.
        for_ms: u32,
    },
    /// Something was wrong.
    Error {
        /// The kind of error.
        code: ErrorCode,
        /// The relay's words.
        message: String,
        /// The message it is about; 0: none.
        number: u64,
        /// What became of that message.
        outcome: Option<RefuseReason>,
        /// Whether the relay closes the connection now.
        fatal: bool,
    },
    /// Nothing more will come.
    Bye,
}
