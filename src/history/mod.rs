//! Questions about stored messages, answered: one message and what became of it, or a page of many. Turns arguments into
//! looks at the store and what is found into JSON; decides nothing, changes nothing.
#![forbid(unsafe_code)]

mod historian;
mod json;
mod reads;
#[cfg(test)]
mod tests;

pub use historian::Historian;

use crate::base::ids::number_of_label;
use crate::base::{AgentId, MessageId};
use crate::relay::{Memory, Place};
use crate::store::find::{self, Found, HistoryQuery, PAGE_MESSAGES_MAX};
use crate::store::index::Tail;
use crate::store::{Damage, Part, Store, Trouble};
use crate::wire::{ANSWER_PART_BYTES_MAX, QueryKind};
use parking_lot::RwLock;
use serde_json::{Value, json};

/// Messages of a page when nothing is said.
const PAGE_MESSAGES: usize = 50;
/// JSON of a page: it ends before the message that would make it longer, so that it is one ANSWER.
const PAGE_JSON_BYTES_MAX: usize = ANSWER_PART_BYTES_MAX - 4096;

/// Answers a question of kind `Message`: `{id}` (a unique prefix is enough), `{from, label}` or `{from, number}`; or of
/// kind `History`: `{from, to, agent, thread, topic, since_ms, until_ms, limit, before, after}`, each optional. Says
/// whether it failed, and the answer, a JSON value; one of many parts when a single message is very long. `beside` is what
/// the answer is to say of the store as a whole.
pub fn answer(
    store: &Store,
    tail: &RwLock<Tail>,
    memory: &RwLock<Memory>,
    beside: &Beside,
    kind: QueryKind,
    arguments: &str,
) -> (bool, Vec<u8>) {
    let asked = Asked { store, tail, memory, beside };
    let arguments = if arguments.is_empty() { "{}" } else { arguments };
    let answered = match (kind, serde_json::from_str::<Value>(arguments)) {
        (_, Err(_)) => Err(failure("the question's arguments are not JSON")),
        (QueryKind::Message, Ok(arguments)) => asked.message(&arguments),
        (QueryKind::History, Ok(arguments)) => asked.page(&arguments),
        _ => Err(failure("this is no question about stored messages")),
    };
    match answered {
        Ok(answer) => (false, answer),
        Err(failure) => (true, failure.to_string().into_bytes()),
    }
}

/// What is known of the store beside what is found in it.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// What keeps it from taking what is accepted: answers then say since when (`uncommitted_since`).
    pub trouble: Option<Trouble>,
    /// What could not be read when it was opened or followed: nothing that lies there is ever found.
    pub damage: Option<Damage>,
}

fn failure(text: &str) -> Value {
    json!({ "error": text })
}

fn of_store(error: crate::store::StoreError) -> Value {
    failure(&error.to_string())
}

/// Where answers come from.
struct Asked<'a> {
    store: &'a Store,
    tail: &'a RwLock<Tail>,
    memory: &'a RwLock<Memory>,
    beside: &'a Beside,
}

impl Asked<'_> {
    fn message(&self, arguments: &Value) -> Result<Vec<u8>, Value> {
        let text = |key: &str| arguments.get(key).and_then(Value::as_str);
        let (found, absent) = if let Some(from) = text("from") {
            let number = text("label").map(|label| number_of_label(label.as_bytes()));
            let Some(number) = number.or_else(|| arguments.get("number").and_then(Value::as_u64)) else {
                return Err(failure("with `from`, give `label` (the sender's own id) or `number`"));
            };
            let id = MessageId { sender: AgentId::of(from.as_bytes()), number };
            (find::message(self.store, self.tail, id), "no such message is kept here")
        } else if let Some(prefix) = text("id") {
            (find::message_by_prefix(self.store, self.tail, prefix), "no message with that id is kept here")
        } else {
            return Err(failure("give `id`, or `from` and the sender's own id"));
        };
        match found.map_err(of_store)? {
            Found::None => Err(self.absent(absent)),
            Found::Message(found) => {
                let mut answer = Vec::new();
                match json::whole(&found, &self.memory.read(), &mut answer) {
                    true => Ok(answer),
                    false => Err(failure("that message cannot be read any more")),
                }
            }
            Found::Refused { id, reason, at_ms } => {
                let told = json!({
                    "id": id.to_string(), "from": text("from"), "label": text("label"), "state": "refused",
                    "reason": reason.name(), "refused_at": json::time_of(at_ms), "recipients": [],
                });
                Ok(told.to_string().into_bytes())
            }
            Found::Several(ids) => Err(json!({
                "error": "that prefix fits several messages",
                "matches": ids.iter().map(MessageId::to_string).collect::<Vec<_>>(),
            })),
        }
    }

    /// Nothing is there; while the disk refuses, or with damage, that is not the whole truth.
    fn absent(&self, absent: &str) -> Value {
        let Some(trouble) = &self.beside.trouble else {
            return failure(&match self.beside.damage {
                None => absent.to_owned(),
                Some(damage) => format!(
                    "{absent}; but the store is damaged ({damage}), and what lies there cannot be found: `relay doctor` \
                     names every place"
                ),
            });
        };
        let since = self.uncommitted_since();
        let since_text = since.as_deref().unwrap_or("some time ago");
        json!({
            "error": format!(
                "{absent}, but the store has taken nothing since {since_text}: {}. What was accepted since then waits and is \
                 written when the disk takes it again; if this message was, ask again then. `relay status` says when the \
                 store is well",
                trouble.sentence.trim_end_matches('.')
            ),
            "state": "unknown",
            "uncommitted_since": since,
        })
    }

    /// Since when nothing is committed, if nothing is.
    fn uncommitted_since(&self) -> Option<String> {
        self.beside.trouble.as_ref().and_then(|trouble| json::time_of(trouble.since_ms))
    }

    fn page(&self, arguments: &Value) -> Result<Vec<u8>, Value> {
        let query = query(arguments)?;
        let page = find::history(self.store, self.tail, &query).map_err(of_store)?;
        let mut answer = b"{\"messages\":[".to_vec();
        let mut next = page.next;
        let mut last = None;
        let mut damaged = page.damaged.or(self.beside.damage);
        let memory = self.memory.read();
        for row in &page.rows {
            let before = answer.len();
            if last.is_some() {
                answer.push(b',');
            }
            if !json::row(row, &memory, &mut answer) {
                answer.truncate(before);
                let what = "a message cannot be read";
                damaged.get_or_insert(Damage { part: Part::Log, key: row.place.segment, what });
                continue;
            }
            if last.is_some() && answer.len() > PAGE_JSON_BYTES_MAX {
                // The rest is asked for from the last one on.
                answer.truncate(before);
                next = last;
                break;
            }
            last = Some(row.place);
        }
        drop(memory);
        let rest = json!({
            "next": next.map(text_of),
            "newest": text_of(page.end),
            "damaged": damaged.map(|damage| damage.to_string()),
            "uncommitted_since": self.uncommitted_since(),
        });
        answer.extend_from_slice(b"],");
        // The rest is an object, too: its members go on where these end.
        answer.extend_from_slice(&rest.to_string().as_bytes()[1..]);
        Ok(answer)
    }
}

/// What a page's arguments ask for.
fn query(arguments: &Value) -> Result<HistoryQuery, Value> {
    if !arguments.is_object() {
        return Err(failure("the question's arguments are not a JSON object"));
    }
    let wrong = |key: &str, wanted: &str| failure(&format!("`{key}` must be {wanted}"));
    let given = |key: &str| arguments.get(key).filter(|value| !value.is_null());
    let text = |key: &str| match given(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => Err(wrong(key, "a text that is not empty")),
    };
    let number = |key: &str| match given(key) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(key, "a whole number")),
    };
    let place = |key: &str| match given(key) {
        None => Ok(None),
        Some(value) => {
            let place = value.as_str().and_then(place_of);
            place.map(Some).ok_or_else(|| wrong(key, "what `next` or `newest` said in an earlier answer"))
        }
    };
    let query = HistoryQuery {
        from: text("from")?,
        to: text("to")?,
        agent: text("agent")?,
        thread: text("thread")?,
        topic: text("topic")?,
        since_ms: number("since_ms")?,
        until_ms: number("until_ms")?,
        limit: number("limit")?.map_or(PAGE_MESSAGES, |limit| limit.clamp(1, PAGE_MESSAGES_MAX as u64) as usize),
        before: place("before")?,
        after: place("after")?,
    };
    if query.before.is_some() && query.after.is_some() {
        return Err(failure("give `before` or `after`, not both"));
    }
    Ok(query)
}

/// A place as askers see it: `segment.offset`.
fn text_of(place: Place) -> String {
    format!("{}.{}", place.segment, place.offset)
}

fn place_of(text: &str) -> Option<Place> {
    let (segment, offset) = text.split_once('.')?;
    Some(Place { segment: segment.parse().ok()?, offset: offset.parse().ok()? })
}
