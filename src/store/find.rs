//! Finding messages: pages of history, one message by its id, what became of it, and mail that is owed. Reads the index
//! (groups and the tail) for places and the log for what is there; a find that does not fit is passed over.
//!
//! One message may lie in the log in several parts, one for each shard that is home to recipients of it. The parts are
//! written within moments of each other: those whose acceptance lies within `PARTS_APART_MS` are shown as one message, in
//! the place of its oldest part that fits what is asked for. (That place never changes, whatever is written later.)

mod addressed;
mod message;
mod owed;
mod pages;
#[cfg(test)]
mod tests;
mod walk;

pub use addressed::{Addressed, addressed};
pub use message::{Found, message, message_by_prefix};
pub use owed::fetch;
pub use pages::history;
pub(super) use walk::note;

use super::error::Damage;
use super::record::MessageRef;
use crate::base::limits::FETCH_BYTES_MAX;
use crate::base::{AgentId, Bytes, MessageId, RefuseReason};
use crate::relay::{Addressee, Place};
use crate::wire::Message;

/// Messages on one page.
pub const PAGE_MESSAGES_MAX: usize = 1_000;
/// Bytes of bodies on one page: it ends before the message that would exceed them (one always fits).
pub const PAGE_BYTES_MAX: usize = 768 * 1024;
/// Recipients of one message that a page tells of.
pub const PAGE_RECIPIENTS_MAX: usize = 1_000;
/// Messages that an ambiguous prefix is answered with.
pub const MATCHES_MAX: usize = 10;
/// Records of what became of messages that are looked at for one answer.
const OUTCOMES_MAX: usize = 65_536;
/// Parts of one message are accepted within this time, milliseconds.
const PARTS_APART_MS: u64 = 10_000;
/// Groups, in each direction, that are looked into for parts of one message.
const PARTS_GROUPS_MAX: usize = 64;

const _: () = assert!(FETCH_BYTES_MAX as usize <= PAGE_BYTES_MAX, "what is read at once is bounded alike");

/// Which messages are asked for; every field narrows it.
#[derive(Clone, Debug, Default)]
pub struct HistoryQuery {
    /// From this agent.
    pub from: Option<String>,
    /// Addressed to it (`*` and `#topic` as well), or it is among the recipients.
    pub to: Option<String>,
    /// From it, or it is among the recipients.
    pub agent: Option<String>,
    /// Of this thread.
    pub thread: Option<String>,
    /// Of this topic, with or without its `#`.
    pub topic: Option<String>,
    /// Accepted at this time or later, milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Accepted before this time, milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// At most so many; never more than `PAGE_MESSAGES_MAX`.
    pub limit: usize,
    /// Only what lies before this place.
    pub before: Option<Place>,
    /// Only what lies behind this place, and the oldest first.
    pub after: Option<Place>,
}

/// Some messages.
#[derive(Debug, Default)]
pub struct Page {
    /// The newest first; with `after` the oldest first.
    pub rows: Vec<FoundMessage>,
    /// Where to go on: `before` for the next page, or the next `after`. None: there is nothing older.
    pub next: Option<Place>,
    /// Everything up to here was there when this page was made: `after` for what came later.
    pub end: Place,
    /// What could not be read, and was left out.
    pub damaged: Option<Damage>,
}

/// One message from the store.
#[derive(Clone, Debug)]
pub struct FoundMessage {
    /// Where it lies; of several parts, the one by which it is known.
    pub place: Place,
    /// Sender and number.
    pub id: MessageId,
    /// The archived body, as it was relayed.
    pub raw: Bytes,
    /// CRC-32 of `raw`.
    pub checksum: u32,
    /// When it was accepted, milliseconds since 1970.
    pub accepted_at_ms: u64,
    /// For whom, and what the log says became of it.
    pub recipients: Vec<FoundRecipient>,
    /// How many there are; more than `recipients` on a page when they are very many.
    pub recipients_total: usize,
}

/// One recipient of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundRecipient {
    /// Who, and its place in the order.
    pub to: Addressee,
    /// What the log says became of it; none: what the recipient's row says.
    pub outcome: Option<Outcome>,
}

/// What a record of its own says of a message and a recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was read.
    Read,
    /// It will not arrive.
    Failed(RefuseReason),
}

impl FoundMessage {
    /// A copy of what lies in the store; another part of the same message shares the body.
    fn copy(
        place: Place,
        message: &MessageRef<'_>,
        recipients_max: usize,
        like: Option<&FoundMessage>,
    ) -> FoundMessage {
        let recipients = message.recipients.iter().take(recipients_max);
        let shared = like.filter(|other| other.raw == message.raw).map(|other| other.raw.clone());
        FoundMessage {
            place,
            id: message.id,
            raw: shared.unwrap_or_else(|| Bytes::copy_from_slice(message.raw)),
            checksum: message.checksum,
            accepted_at_ms: message.accepted_at_ms,
            recipients: recipients.map(|to| FoundRecipient { to, outcome: None }).collect(),
            recipients_total: message.recipients.len(),
        }
    }

    /// Adds the recipients of another part.
    fn join(&mut self, part: &FoundMessage, recipients_max: usize) {
        let room = recipients_max.saturating_sub(self.recipients.len());
        self.recipients.extend(part.recipients.iter().take(room));
        self.recipients_total += part.recipients_total;
    }
}

/// What a message has to be; the same as a query says, in the form in which messages are compared with it.
#[derive(Clone, Debug, Default)]
struct Filter {
    from: Option<AgentId>,
    to: Option<To>,
    agent: Option<AgentId>,
    thread: Option<Vec<u8>>,
    topic: Option<Vec<u8>>,
    since_ms: u64,
    /// The first millisecond that is too late.
    until_ms: Option<u64>,
}

/// Whom messages are for.
#[derive(Clone, Debug)]
enum To {
    Everyone,
    Topic(Vec<u8>),
    Agent(AgentId),
}

impl Filter {
    fn of(query: &HistoryQuery) -> Filter {
        let agent = |name: &Option<String>| name.as_ref().map(|name| AgentId::of(name.as_bytes()));
        let to = query.to.as_deref().map(|to| match (to, to.strip_prefix('#')) {
            ("*", _) => To::Everyone,
            (_, Some(topic)) => To::Topic(topic.as_bytes().to_vec()),
            _ => To::Agent(AgentId::of(to.as_bytes())),
        });
        let topic = query.topic.as_ref().map(|topic| crate::base::name::topic_of(topic.as_bytes()).to_vec());
        Filter {
            from: agent(&query.from),
            to,
            agent: agent(&query.agent),
            thread: query.thread.as_ref().map(|thread| thread.as_bytes().to_vec()),
            topic,
            since_ms: query.since_ms.unwrap_or(0),
            until_ms: query.until_ms,
        }
    }

    /// What to look for in the index.
    fn wanted(&self, terms: &super::index::Terms) -> super::index::Wanted {
        let mut clauses = Vec::new();
        clauses.extend(self.from.map(|agent| vec![terms.sender(agent)]));
        clauses.extend(self.to.as_ref().map(|to| match to {
            To::Everyone => vec![terms.everyone()],
            To::Topic(topic) => vec![terms.topic(topic)],
            To::Agent(agent) => vec![terms.recipient(*agent), terms.addressed(*agent)],
        }));
        let both = |agent| vec![terms.sender(agent), terms.recipient(agent), terms.addressed(agent)];
        clauses.extend(self.agent.map(both));
        clauses.extend(self.thread.as_ref().map(|thread| vec![terms.thread(thread)]));
        clauses.extend(self.topic.as_ref().map(|topic| vec![terms.topic(topic)]));
        super::index::Wanted { clauses }
    }

    /// Whether anything between these times can fit.
    fn spans(&self, (first_ms, last_ms): (u64, u64)) -> bool {
        last_ms >= self.since_ms && self.until_ms.is_none_or(|until_ms| first_ms < until_ms)
    }

    fn fits(&self, message: &MessageRef<'_>) -> bool {
        let is_recipient = |agent: AgentId| match message.recipients.is_empty() {
            false => message.recipients.iter().any(|to| to.agent == agent),
            // An imported one: all that is known is whom it says it is for.
            true => Message::check(message.raw, message.checksum)
                .is_some_and(|body| !is_fanout(body.to()) && AgentId::of(body.to()) == agent),
        };
        if !self.spans((message.accepted_at_ms, message.accepted_at_ms))
            || self.from.is_some_and(|agent| agent != message.id.sender)
            || self.agent.is_some_and(|agent| agent != message.id.sender && !is_recipient(agent))
        {
            return false;
        }
        if let Some(To::Agent(agent)) = self.to
            && !is_recipient(agent)
        {
            return false;
        }
        if self.thread.is_none() && self.topic.is_none() && matches!(self.to, None | Some(To::Agent(_))) {
            return true;
        }
        let Some(body) = Message::check(message.raw, message.checksum) else { return false };
        let fields = body.fields();
        let topic = super::index::topic_of(fields.to, fields.topic);
        let addressed = match &self.to {
            Some(To::Everyone) => fields.to == b"*",
            Some(To::Topic(wanted)) => is_fanout(fields.to) && topic == wanted,
            _ => true,
        };
        addressed
            && self.thread.as_ref().is_none_or(|thread| thread == fields.thread)
            && self.topic.as_ref().is_none_or(|wanted| wanted == topic)
    }
}

/// Whether a message to this name may lie in several parts.
fn is_fanout(to: &[u8]) -> bool {
    to == b"*" || to.first() == Some(&b'#')
}
