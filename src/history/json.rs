//! A found message as JSON: what it says, and how far it has got with each recipient.

use crate::base::AgentId;
use crate::relay::Memory;
use crate::relay::memory::Progress;
use crate::store::find::{FoundMessage, FoundRecipient, Outcome};
use crate::wire::Message;
use crate::wire::json::KINDS;
use serde_json::{Value, json};

/// JSON of one message on a page: a longer one is cut, so that a page is one ANSWER.
const ROW_BYTES_MAX: usize = 900 * 1024;
/// Bytes of the text of a message that is cut …
const CUT_TEXT_BYTES: usize = 32 * 1024;
/// … and of each other text of it.
const CUT_NAME_BYTES: usize = 4 * 1024;
/// Recipients that are told of when one message is asked for.
const WHOLE_RECIPIENTS_MAX: usize = 10_000;

/// A message in full, as long as it is. None if its body cannot be read.
pub(super) fn whole(found: &FoundMessage, memory: &Memory) -> Option<Value> {
    shape(found, memory, WHOLE_RECIPIENTS_MAX, false)
}

/// A message on a page: cut if it is very long; `text_truncated` says so. None if its body cannot be read.
pub(super) fn row(found: &FoundMessage, memory: &Memory) -> Option<Value> {
    // Escapes make JSON longer than the body, by six at most.
    let row = shape(found, memory, usize::MAX, false)?;
    if found.raw.len() * 6 + found.recipients.len() * 256 <= ROW_BYTES_MAX || row.to_string().len() <= ROW_BYTES_MAX {
        return Some(row);
    }
    shape(found, memory, usize::MAX, true)
}

fn shape(found: &FoundMessage, memory: &Memory, recipients_max: usize, cut: bool) -> Option<Value> {
    let body = Message::check(&found.raw, found.checksum)?;
    let fields = body.fields();
    let clip = |text: &[u8], bytes_max: usize| {
        let text = String::from_utf8_lossy(text);
        if cut && text.len() > bytes_max {
            text[..text.floor_char_boundary(bytes_max)].to_owned()
        } else {
            text.into_owned()
        }
    };
    let name = |text: &[u8]| clip(text, CUT_NAME_BYTES);
    let optional = |text: &[u8]| (!text.is_empty()).then(|| name(text));
    let data = |bytes: &[u8]| match cut && bytes.len() > CUT_TEXT_BYTES {
        true => Value::Null,
        false => serde_json::from_slice::<Value>(bytes).unwrap_or(Value::Null),
    };
    let shown = &found.recipients[..found.recipients.len().min(recipients_max)];
    let mut recipients = Vec::with_capacity(shown.len());
    let (mut state, mut reason) = (None, None);
    for recipient in shown {
        let (reached, failed) = state_of(recipient, memory);
        let agent = recipient.to.agent;
        // Who was forgotten since is known at least to whoever wrote to it by name.
        let known = memory.row(agent).and_then(|row| row.name.as_ref()).map(|name| name.to_string());
        let addressed = || (AgentId::of(fields.to) == agent).then(|| name(fields.to));
        recipients.push(json!({
            "name": known.or_else(addressed),
            "state": reached.name(),
            "sequence": { "epoch": recipient.to.sequence.epoch, "counter": recipient.to.sequence.counter },
            "reason": failed,
        }));
        // A message is only as far as its slowest recipient; a failure is said before anything else.
        if state.is_none_or(|state| reached < state) {
            (state, reason) = (Some(reached), failed);
        }
    }
    let members = data(fields.data);
    let kind = match KINDS.get(usize::from(fields.kind)) {
        Some(kind) => Value::from(*kind),
        None => members.get("kind").cloned().unwrap_or(Value::Null),
    };
    let mut message = json!({
        "id": found.id.to_string(),
        "from": name(fields.from),
        "to": name(fields.to),
        "topic": optional(fields.topic),
        "thread": optional(fields.thread),
        "label": optional(fields.label),
        "sent_at": time_of(fields.sent_at_ms),
        "accepted_at": time_of(found.accepted_at_ms),
        "text": clip(fields.text, CUT_TEXT_BYTES),
        "kind": kind,
        "importance": (fields.importance > 0).then_some(fields.importance),
        "data": members,
        "meta": data(fields.meta),
        "state": state.unwrap_or(State::Durable).name(),
        "recipients": recipients,
    });
    if let Some(reason) = reason {
        message["reason"] = reason.into();
    }
    if cut {
        message["text_truncated"] = true.into();
    }
    if shown.len() < found.recipients_total {
        message["recipients_total"] = found.recipients_total.into();
    }
    Some(message)
}

/// How far a message has got; the least first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Failed,
    Durable,
    Delivered,
    Acknowledged,
    Read,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Failed => "failed",
            State::Durable => "durable",
            State::Delivered => "delivered",
            State::Acknowledged => "acknowledged",
            State::Read => "read",
        }
    }
}

/// How far it has got with one recipient, and why no farther.
fn state_of(recipient: &FoundRecipient, memory: &Memory) -> (State, Option<&'static str>) {
    match recipient.outcome {
        Some(Outcome::Failed(reason)) => return (State::Failed, Some(reason.name())),
        Some(Outcome::Read) => return (State::Read, None),
        None => {}
    }
    match memory.row(recipient.to.agent).map(|row| row.state_of(recipient.to.sequence)) {
        Some(Progress::Acknowledged) => (State::Acknowledged, None),
        Some(Progress::Delivered) => (State::Delivered, None),
        // What is in the store is durable.
        Some(Progress::Waiting) | None => (State::Durable, None),
    }
}

fn time_of(wall_ms: u64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(wall_ms).ok()?).ok()?;
    Some(format!("{time:.3}"))
}
