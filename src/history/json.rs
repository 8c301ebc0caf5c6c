//! A found message as JSON: what it says, and how far it has got with each recipient.

use crate::base::AgentId;
use crate::relay::memory::Progress;
use crate::relay::{Memory, Remembered};
use crate::store::find::{FoundMessage, FoundRecipient, Outcome};
use crate::wire::Message;
use crate::wire::json::KINDS;
use serde::Serialize;
use serde_json::Value;
use std::borrow::Cow;

/// JSON of one message on a page: a longer one is cut, so that a page is one ANSWER.
const ROW_BYTES_MAX: usize = 900 * 1024;
/// Bytes of the text of a message that is cut …
const CUT_TEXT_BYTES: usize = 32 * 1024;
/// … and of each other text of it.
const CUT_NAME_BYTES: usize = 4 * 1024;
/// Recipients that are told of when one message is asked for.
const WHOLE_RECIPIENTS_MAX: usize = 10_000;

/// A message as the answer shows it.
#[derive(Serialize)]
struct Shown<'a> {
    id: String,
    from: Cow<'a, str>,
    to: Cow<'a, str>,
    topic: Option<Cow<'a, str>>,
    thread: Option<Cow<'a, str>>,
    label: Option<Cow<'a, str>>,
    sent_at: Option<String>,
    accepted_at: Option<String>,
    text: Cow<'a, str>,
    kind: Value,
    importance: Option<u8>,
    data: Value,
    meta: Value,
    state: &'static str,
    recipients: Vec<ShownRecipient<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text_truncated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipients_total: Option<usize>,
}

#[derive(Serialize)]
struct ShownRecipient<'a> {
    name: Option<Cow<'a, str>>,
    state: &'static str,
    sequence: ShownSequence,
    reason: Option<&'static str>,
}

#[derive(Serialize)]
struct ShownSequence {
    epoch: u32,
    counter: u64,
}

/// Appends a message in full, as long as it is. False, and nothing appended, if its body cannot be read.
pub(super) fn whole(found: &FoundMessage, memory: &Memory, out: &mut Vec<u8>) -> bool {
    shape(found, memory, WHOLE_RECIPIENTS_MAX, false, out)
}

/// Appends a message on a page: cut if it is very long; `text_truncated` says so. False, and nothing appended, if its
/// body cannot be read.
pub(super) fn row(found: &FoundMessage, memory: &Memory, out: &mut Vec<u8>) -> bool {
    let before = out.len();
    if !shape(found, memory, usize::MAX, false, out) {
        return false;
    }
    if out.len() - before > ROW_BYTES_MAX {
        out.truncate(before);
        return shape(found, memory, usize::MAX, true, out);
    }
    true
}

/// At most so many bytes of a text, if it is to be cut.
fn clip(text: &[u8], bytes_max: usize, cut: bool) -> Cow<'_, str> {
    match String::from_utf8_lossy(text) {
        Cow::Borrowed(text) if cut => Cow::Borrowed(&text[..text.floor_char_boundary(bytes_max)]),
        Cow::Owned(mut text) if cut => {
            text.truncate(text.floor_char_boundary(bytes_max));
            Cow::Owned(text)
        }
        text => text,
    }
}

fn shape(found: &FoundMessage, memory: &Memory, recipients_max: usize, cut: bool, out: &mut Vec<u8>) -> bool {
    let Some(body) = Message::check(&found.raw, found.checksum) else { return false };
    let fields = body.fields();
    let name = |text| clip(text, CUT_NAME_BYTES, cut);
    let optional = |text| Some(name(text)).filter(|text| !text.is_empty());
    let data = |bytes: &[u8]| match bytes.is_empty() || cut && bytes.len() > CUT_TEXT_BYTES {
        true => Value::Null,
        false => serde_json::from_slice::<Value>(bytes).unwrap_or(Value::Null),
    };
    let shown = &found.recipients[..found.recipients.len().min(recipients_max)];
    let mut recipients = Vec::with_capacity(shown.len());
    let (mut state, mut reason) = (None, None);
    for recipient in shown {
        let agent = recipient.to.agent;
        let row = memory.row(agent);
        let (reached, failed) = state_of(recipient, row);
        // Who was forgotten since is known at least to whoever wrote to it by name.
        let known = row.and_then(|row| row.name.as_deref()).map(Cow::Borrowed);
        let addressed = || (AgentId::of(fields.to) == agent).then(|| name(fields.to));
        recipients.push(ShownRecipient {
            name: known.or_else(addressed),
            state: reached.name(),
            sequence: ShownSequence { epoch: recipient.to.sequence.epoch, counter: recipient.to.sequence.counter },
            reason: failed,
        });
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
    let total = found.recipients_total;
    let message = Shown {
        id: found.id.to_string(),
        from: name(fields.from),
        to: name(fields.to),
        topic: optional(fields.topic),
        thread: optional(fields.thread),
        label: optional(fields.label),
        sent_at: time_of(fields.sent_at_ms),
        accepted_at: time_of(found.accepted_at_ms),
        text: clip(fields.text, CUT_TEXT_BYTES, cut),
        kind,
        importance: (fields.importance > 0).then_some(fields.importance),
        data: members,
        meta: data(fields.meta),
        state: state.unwrap_or(State::Durable).name(),
        recipients,
        reason,
        text_truncated: cut.then_some(true),
        recipients_total: (shown.len() < total).then_some(total),
    };
    // Only a writer that refuses, or a map with keys that are no texts, can fail.
    serde_json::to_writer(&mut *out, &message).is_ok()
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
fn state_of(recipient: &FoundRecipient, row: Option<&Remembered>) -> (State, Option<&'static str>) {
    match recipient.outcome {
        Some(Outcome::Failed(reason)) => return (State::Failed, Some(reason.name())),
        Some(Outcome::Read) => return (State::Read, None),
        None => {}
    }
    match row.map(|row| row.state_of(recipient.to.sequence)) {
        Some(Progress::Acknowledged) => (State::Acknowledged, None),
        Some(Progress::Delivered) => (State::Delivered, None),
        // What is in the store is durable.
        Some(Progress::Waiting) | None => (State::Durable, None),
    }
}

pub(super) fn time_of(wall_ms: u64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(wall_ms).ok()?).ok()?;
    Some(format!("{time:.3}"))
}
