//! Messages and what became of them, kept in memory: a ring bounded by bytes and by number.

use crate::base::ids::number_of_label;
use crate::base::limits::{HISTORY_MESSAGES_MAX, KNOWN_AGENTS_MAX};
use crate::base::{AgentId, Bytes, MessageId, Name, RefuseReason, Sequence};
use crate::relay::{Recipients, Record};
use crate::wire::Message;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet, VecDeque};

/// Outcomes that are kept by themselves (failures, refusals, reads), of each kind.
const OUTCOMES_MAX: usize = 65_536;

/// What each kept message is counted as on top of its body.
const MESSAGE_OVERHEAD_BYTES: usize = 96;

struct Stored {
    id: MessageId,
    raw: Bytes,
    checksum: u32,
    accepted_at_ms: u64,
    recipients: Recipients,
}

/// Everything the writer keeps.
pub(super) struct History {
    messages: VecDeque<Stored>,
    bytes: usize,
    bytes_max: usize,
    names: HashMap<AgentId, Name>,
    /// Delivered and acknowledged through, per recipient.
    progress: HashMap<AgentId, (Sequence, Sequence)>,
    failed: VecDeque<(MessageId, AgentId, RefuseReason)>,
    read: VecDeque<(MessageId, AgentId)>,
    refused: VecDeque<(MessageId, RefuseReason)>,
}

impl History {
    pub(super) fn new(bytes_max: usize) -> History {
        History {
            messages: VecDeque::new(),
            bytes: 0,
            bytes_max,
            names: HashMap::new(),
            progress: HashMap::new(),
            failed: VecDeque::new(),
            read: VecDeque::new(),
            refused: VecDeque::new(),
        }
    }

    pub(super) fn messages(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn keep(&mut self, record: Record) {
        match record {
            Record::Message { id, raw, checksum, accepted_at_ms, recipients, .. } => {
                self.bytes += raw.len() + recipients.weight() + MESSAGE_OVERHEAD_BYTES;
                self.messages.push_back(Stored { id, raw, checksum, accepted_at_ms, recipients });
                while self.bytes > self.bytes_max || self.messages.len() > HISTORY_MESSAGES_MAX {
                    let Some(oldest) = self.messages.pop_front() else { break };
                    self.bytes -= oldest.raw.len() + oldest.recipients.weight() + MESSAGE_OVERHEAD_BYTES;
                }
            }
            Record::Progress(progress) => {
                self.progress.insert(progress.agent, (progress.delivered, progress.acknowledged));
            }
            Record::Known { agent, name, .. } => {
                if self.names.len() >= 2 * KNOWN_AGENTS_MAX {
                    self.forget_names();
                }
                self.names.insert(agent, name);
            }
            Record::Failed { id, recipient, reason } => bounded_push(&mut self.failed, (id, recipient, reason)),
            Record::Read { id, recipient } => bounded_push(&mut self.read, (id, recipient)),
            Record::Refused { id, reason, .. } => bounded_push(&mut self.refused, (id, reason)),
            _ => {}
        }
    }

    /// Drops names that no kept message speaks of.
    fn forget_names(&mut self) {
        let spoken_of: HashSet<AgentId> =
            self.messages.iter().flat_map(|stored| stored.recipients.as_slice()).map(|to| to.agent).collect();
        self.names.retain(|agent, _| spoken_of.contains(agent));
        self.progress.retain(|agent, _| spoken_of.contains(agent));
    }

    /// Answers `{id}` (a unique prefix is enough), `{from, label}` or `{from, number}`. Says whether it failed.
    pub(super) fn answer(&self, arguments: &str) -> (bool, Vec<u8>) {
        let (failed, value) = match self.look_up(arguments) {
            Ok(value) => (false, value),
            Err(value) => (true, value),
        };
        (failed, value.to_string().into_bytes())
    }

    fn look_up(&self, arguments: &str) -> Result<Value, Value> {
        let failure = |text: &str| json!({ "error": text });
        let arguments: Value =
            serde_json::from_str(arguments).map_err(|_| failure("the question's arguments are not JSON"))?;
        let text = |key: &str| arguments.get(key).and_then(Value::as_str);
        if let Some(from) = text("from") {
            let number = text("label").map(|label| number_of_label(label.as_bytes()));
            let Some(number) = number.or_else(|| arguments.get("number").and_then(Value::as_u64)) else {
                return Err(failure("with `from`, give `label` (the sender's own id) or `number`"));
            };
            let id = MessageId { sender: AgentId::of(from.as_bytes()), number };
            return self.find(id).ok_or_else(|| failure("no such message is kept here"));
        }
        let Some(prefix) = text("id") else { return Err(failure("give `id`, or `from` and the sender's own id")) };
        let matches = self.matching(prefix);
        match matches.as_slice() {
            [] => Err(failure("no message with that id is kept here")),
            [one] => self.find(*one).ok_or_else(|| failure("no message with that id is kept here")),
            many => Err(json!({
                "error": "that prefix fits several messages",
                "matches": many.iter().map(MessageId::to_string).collect::<Vec<_>>(),
            })),
        }
    }

    /// Up to ten messages whose id starts with `prefix`, newest first.
    fn matching(&self, prefix: &str) -> Vec<MessageId> {
        const MATCHES_MAX: usize = 10;
        let prefix = prefix.to_ascii_lowercase();
        if prefix.is_empty() || prefix.len() > 32 {
            return Vec::new();
        }
        let Ok(wanted) = u128::from_str_radix(&prefix, 16) else { return Vec::new() };
        let shift = 128 - 4 * prefix.len() as u32;
        let mut found: Vec<MessageId> = Vec::new();
        let ids =
            self.messages.iter().rev().map(|stored| stored.id).chain(self.refused.iter().rev().map(|(id, _)| *id));
        for id in ids {
            if id.bits() >> shift == wanted && !found.contains(&id) {
                found.push(id);
                if found.len() == MATCHES_MAX {
                    break;
                }
            }
        }
        found
    }

    /// One message and what became of it: several records when several shards are homes of its recipients.
    fn find(&self, id: MessageId) -> Option<Value> {
        let stored: Vec<&Stored> = self.messages.iter().filter(|stored| stored.id == id).collect();
        let Some(first) = stored.first() else {
            let (_, reason) = self.refused.iter().rev().find(|(refused, _)| *refused == id)?;
            return Some(
                json!({ "id": id.to_string(), "state": "refused", "reason": reason.name(), "recipients": [] }),
            );
        };
        let message = Message::check(&first.raw, first.checksum)?;
        let fields = message.fields();
        let recipients: Vec<Value> = stored
            .iter()
            .flat_map(|stored| stored.recipients.as_slice())
            .map(|to| {
                let (agent, sequence) = (to.agent, to.sequence);
                let (state, reason) = self.state_of(id, agent, sequence);
                json!({
                    "name": self.names.get(&agent).map(|name| name.to_string()),
                    "state": state,
                    "sequence": { "epoch": sequence.epoch, "counter": sequence.counter },
                    "reason": reason,
                })
            })
            .collect();
        let state = overall(recipients.iter().filter_map(|recipient| recipient["state"].as_str()));
        let json_or_null = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or(Value::Null);
        Some(json!({
            "id": id.to_string(),
            "from": String::from_utf8_lossy(fields.from),
            "to": String::from_utf8_lossy(fields.to),
            "topic": optional(fields.topic),
            "thread": optional(fields.thread),
            "label": optional(fields.label),
            "sent_at": time_of(fields.sent_at_ms),
            "accepted_at": time_of(first.accepted_at_ms),
            "text": String::from_utf8_lossy(fields.text),
            "data": json_or_null(fields.data),
            "meta": json_or_null(fields.meta),
            "state": state,
            "recipients": recipients,
        }))
    }

    fn state_of(&self, id: MessageId, agent: AgentId, sequence: Sequence) -> (&'static str, Option<&'static str>) {
        let failed = self.failed.iter().rev().find(|(failed, recipient, _)| *failed == id && *recipient == agent);
        if let Some((_, _, reason)) = failed {
            return ("failed", Some(reason.name()));
        }
        if self.read.iter().rev().any(|(read, recipient)| *read == id && *recipient == agent) {
            return ("read", None);
        }
        match self.progress.get(&agent) {
            Some((_, acknowledged)) if *acknowledged >= sequence => ("acknowledged", None),
            Some((delivered, _)) if *delivered >= sequence => ("delivered", None),
            // Kept here, which in this version is memory: it survives slow and absent readers, not the process.
            _ => ("accepted", None),
        }
    }
}

/// A message is only as far as its slowest recipient; a failure is said before anything else.
fn overall<'a>(states: impl Iterator<Item = &'a str>) -> &'a str {
    const ORDER: [&str; 5] = ["failed", "accepted", "delivered", "acknowledged", "read"];
    let rank = |state: &str| ORDER.iter().position(|known| *known == state).unwrap_or(1);
    states.min_by_key(|state| rank(state)).unwrap_or("accepted")
}

fn optional(text: &[u8]) -> Option<String> {
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

fn time_of(wall_ms: u64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(wall_ms).ok()?).ok()?;
    Some(format!("{time:.3}"))
}

fn bounded_push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == OUTCOMES_MAX {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MessageFields;

    fn message(number: u64, text: &[u8]) -> Record {
        let id = MessageId { sender: AgentId::of(b"ann"), number };
        let fields = MessageFields { id, from: b"ann", to: b"bob", text, ..Default::default() };
        let mut raw = Vec::new();
        let checksum = crate::wire::encode::message_body(&mut raw, &fields);
        let recipients = Recipients::One(AgentId::of(b"bob"), Sequence { epoch: 1, counter: number });
        Record::Message { id, raw: raw.into(), checksum, accepted_at_ms: 1_766_966_970_000, recipients }
    }

    fn ask(history: &History, arguments: Value) -> (bool, Value) {
        let (failed, json) = history.answer(&arguments.to_string());
        (failed, serde_json::from_slice(&json).expect("answers are JSON"))
    }

    #[test]
    fn a_message_is_found_by_prefix_and_by_the_senders_number_with_its_state() {
        let mut history = History::new(1 << 20);
        history.keep(Record::Known { agent: AgentId::of(b"bob"), name: "bob".into() });
        for number in 1..=3 {
            history.keep(message(number, b"hello"));
        }
        let at = |counter| Sequence { epoch: 1, counter };
        history.keep(Record::Progress { agent: AgentId::of(b"bob"), delivered: at(2), acknowledged: at(1) });
        let states: Vec<Value> =
            (1..=3).map(|number| ask(&history, json!({ "from": "ann", "number": number })).1["state"].take()).collect();
        assert_eq!(states, ["acknowledged", "delivered", "accepted"]);
        let id = MessageId { sender: AgentId::of(b"ann"), number: 2 }.to_string();
        let (failed, found) = ask(&history, json!({ "id": &id[..8] }));
        assert_eq!(
            (failed, found["id"].as_str(), found["recipients"][0]["name"].as_str()),
            (false, Some(&id[..]), Some("bob"))
        );
    }

    #[test]
    fn what_is_not_here_is_said_and_an_ambiguous_prefix_lists_what_it_fits() {
        let mut history = History::new(1 << 20);
        for number in 1..=40 {
            history.keep(message(number, b"hello"));
        }
        assert!(ask(&history, json!({ "id": "ffffffffffffffffffffffffffffffff" })).0);
        assert!(ask(&history, json!({ "id": "not hex" })).0 && ask(&history, json!({})).0);
        assert!(history.answer("not json").0);
        let ambiguous = (0..16)
            .map(|digit| ask(&history, json!({ "id": format!("{digit:x}") })))
            .find(|(failed, value)| *failed && value["matches"].as_array().is_some_and(|matches| matches.len() > 1));
        assert!(ambiguous.is_some(), "forty ids share first digits");
    }

    #[test]
    fn the_ring_holds_its_bound_and_the_oldest_leave_first() {
        let mut history = History::new(10_000);
        for number in 1..=100 {
            history.keep(message(number, &[b'x'; 500]));
        }
        assert!(history.bytes() <= 10_000 && history.messages() >= 10);
        assert!(ask(&history, json!({ "from": "ann", "number": 1 })).0);
        assert!(!ask(&history, json!({ "from": "ann", "number": 100 })).0);
    }

    #[test]
    fn refusals_and_failures_are_outcomes_too() {
        let mut history = History::new(1 << 20);
        let id = MessageId { sender: AgentId::of(b"ann"), number: 9 };
        history.keep(Record::Refused { id, reason: RefuseReason::NotFound });
        let (failed, found) = ask(&history, json!({ "from": "ann", "number": 9 }));
        assert_eq!(
            (failed, found["state"].as_str(), found["reason"].as_str()),
            (false, Some("refused"), Some("not_found"))
        );
        history.keep(message(1, b"late"));
        let one = MessageId { sender: AgentId::of(b"ann"), number: 1 };
        history.keep(Record::Failed { id: one, recipient: AgentId::of(b"bob"), reason: RefuseReason::Expired });
        let (_, found) = ask(&history, json!({ "from": "ann", "number": 1 }));
        assert_eq!(
            (found["state"].as_str(), found["recipients"][0]["reason"].as_str()),
            (Some("failed"), Some("expired"))
        );
    }
}
