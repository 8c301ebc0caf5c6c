//! `team/agents.json` and `team/processing-state.json`: who is there, for the command line of existing clients, which reads
//! these files instead of asking. Written by the clerk, never by a shard; replaced whole, so a reader sees one or the other.

use super::paths::{replace_file, replace_file_by};
use crate::base::name::is_internal;
use crate::base::{AgentId, Name, Shared};
use crate::relay::{AgentRow, Profile};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Agents in the file; beyond it those seen longest ago leave.
const ROWS_MAX: usize = 10_000;
/// A file larger than this was not written by us or by the original in any use it was made for.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What the files say.
pub(super) struct Presence {
    folder: PathBuf,
    /// In the order of their names, but for those that came since the last `write`: they are at the end.
    rows: Vec<Row>,
    ordered: usize,
    /// Whose messages wait for an acknowledgement, and for how many milliseconds.
    processing: Vec<(Name, u64)>,
}

/// One agent of the file. There may be ten thousand, so it shares what the shards have and keeps no text that can be worked
/// out when it is written.
struct Row {
    name: Name,
    first_seen_ms: u64,
    last_seen_ms: u64,
    messages_sent: u64,
    messages_received: u64,
    profile: Option<Shared<Profile>>,
    /// Where an earlier file says something that the rest of this row does not.
    earlier: Option<Box<Earlier>>,
}

/// What an earlier file said.
enum Earlier {
    /// Of an agent that no shard has told of.
    Row(Value),
    /// Of one that is known here: its id and first sight stay what they were.
    Kept { id: Option<Value>, first_seen: Option<Value> },
}

/// `agents.json`.
#[derive(Serialize)]
struct File<'a> {
    agents: &'a [Row],
}

/// The same, as it is found: a list, or an object by name.
#[derive(Deserialize)]
struct Found<'a> {
    #[serde(borrow)]
    agents: &'a RawValue,
}

impl Presence {
    /// What an earlier daemon left in `folder` (the project's `team/`), so that agents keep their ids and first sight.
    pub(super) fn load(folder: &Path) -> Presence {
        let path = folder.join("agents.json");
        let small = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= FILE_BYTES_MAX);
        let file = if small { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
        let agents = serde_json::from_slice::<Found<'_>>(&file).map_or("", |found| found.agents.get());
        let list = serde_json::from_str::<Vec<&RawValue>>(agents);
        let list = list.or_else(|_| {
            let by_name = serde_json::from_str::<BTreeMap<String, &RawValue>>(agents);
            by_name.map(|by_name| by_name.into_values().collect())
        });
        let rows = list.unwrap_or_default().into_iter().take(ROWS_MAX);
        // One at a time: all of them at once, as values, are many times as large as the file.
        let rows = rows.filter_map(|row| Row::found(serde_json::from_str(row.get()).ok()?)).collect();
        let mut presence = Presence { folder: folder.to_path_buf(), rows, ordered: 0, processing: Vec::new() };
        presence.order();
        presence
    }

    /// A new list of agents begins.
    pub(super) fn begin(&mut self) {
        self.processing.clear();
    }

    /// Takes in a part of what the shards say.
    pub(super) fn take(&mut self, agents: Vec<AgentRow>) {
        for agent in agents {
            if let Some(waiting_ms) = agent.oldest_unacknowledged_ms {
                self.processing.push((agent.name.clone(), waiting_ms));
            }
            if is_internal(&agent.name) {
                continue;
            }
            match self.rows[..self.ordered].binary_search_by(|row| row.name.cmp(&agent.name)) {
                Ok(place) => self.rows[place].renew(agent),
                Err(_) => self.rows.push(Row::met(agent)),
            }
        }
    }

    /// Replaces both files.
    pub(super) fn write(&mut self, now_ms: u64) -> io::Result<()> {
        self.order();
        std::fs::create_dir_all(&self.folder)?;
        replace_file_by(&self.folder.join("agents.json"), |out| {
            Ok(serde_json::to_writer_pretty(out, &File { agents: &self.rows })?)
        })?;
        let mut processing = Map::new();
        for (name, waiting_ms) in self.processing.drain(..) {
            let started = now_ms.saturating_sub(waiting_ms);
            processing.insert(name.to_string(), json!({ "startedAt": started, "messageId": "" }));
        }
        let state = json!({ "processingAgents": processing, "updatedAt": time_of(now_ms) });
        let text = serde_json::to_vec_pretty(&state).map_err(io::Error::other)?;
        replace_file(&self.folder.join("processing-state.json"), &text)
    }

    /// Puts all rows in order, one for each name, and lets those go that are too many.
    fn order(&mut self) {
        if self.ordered < self.rows.len() {
            self.rows.sort_by(|left, right| left.name.cmp(&right.name));
            // What came later is what holds.
            self.rows.dedup_by(|later, earlier| {
                let same = later.name == earlier.name;
                if same {
                    std::mem::swap(later, earlier);
                }
                same
            });
        }
        if self.rows.len() > ROWS_MAX {
            let mut seen: Vec<(u64, usize)> =
                self.rows.iter().enumerate().map(|(place, row)| (row.last_seen_ms, place)).collect();
            seen.sort_unstable();
            let mut gone: Vec<usize> = seen.iter().take(self.rows.len() - ROWS_MAX).map(|(_, place)| *place).collect();
            gone.sort_unstable();
            let (mut gone, mut place) = (gone.into_iter().peekable(), 0);
            self.rows.retain(|_| {
                place += 1;
                gone.next_if_eq(&(place - 1)).is_none()
            });
        }
        self.ordered = self.rows.len();
        self.rows.shrink_to(self.ordered + self.ordered / 4);
    }
}

impl Row {
    /// Somebody of whom no file has told.
    fn met(agent: AgentRow) -> Row {
        Row {
            name: agent.name,
            first_seen_ms: agent.first_seen_ms,
            last_seen_ms: agent.last_seen_ms,
            messages_sent: agent.messages_sent,
            messages_received: agent.messages_received,
            profile: agent.profile,
            earlier: None,
        }
    }

    /// What the shards say now.
    fn renew(&mut self, agent: AgentRow) {
        let first_seen_ms = self.first_seen_ms;
        let earlier = self.earlier.take();
        *self = Row::met(agent);
        match earlier.map(|earlier| *earlier) {
            None => self.first_seen_ms = first_seen_ms,
            Some(Earlier::Row(row)) => self.keep(row.get("id").cloned(), row.get("firstSeen").cloned()),
            Some(Earlier::Kept { id, first_seen }) => {
                self.first_seen_ms = first_seen_ms;
                self.earlier = Some(Box::new(Earlier::Kept { id, first_seen }));
            }
        }
    }

    /// An earlier file gave it this id and first sight.
    fn keep(&mut self, id: Option<Value>, first_seen: Option<Value>) {
        let id = id.filter(|id| *id != self.own_id());
        let first_seen_ms = first_seen.as_ref().and_then(ms_of);
        self.first_seen_ms = first_seen_ms.unwrap_or(self.first_seen_ms);
        let first_seen = first_seen.filter(|_| first_seen_ms.is_none());
        if id.is_some() || first_seen.is_some() {
            self.earlier = Some(Box::new(Earlier::Kept { id, first_seen }));
        }
    }

    /// A row of an earlier file; none without a name.
    fn found(found: Value) -> Option<Row> {
        let text = |key: &str| Box::<str>::from(found.get(key).and_then(Value::as_str).unwrap_or_default());
        let number = |key: &str| found.get(key).and_then(Value::as_u64).unwrap_or_default();
        let profile = Profile {
            cli: text("cli"),
            program: text("program"),
            model: text("model"),
            task: text("task"),
            working_directory: text("workingDirectory"),
        };
        let time = |key: &str| found.get(key).and_then(ms_of).unwrap_or_default();
        let mut row = Row {
            name: found.get("name").and_then(Value::as_str)?.into(),
            first_seen_ms: time("firstSeen"),
            last_seen_ms: time("lastSeen"),
            messages_sent: number("messagesSent"),
            messages_received: number("messagesReceived"),
            profile: (profile != Profile::default()).then(|| Shared::new(profile)),
            earlier: None,
        };
        row.keep(found.get("id").cloned(), None);
        // Whatever is not ours stays as it is, word for word.
        if serde_json::to_value(&row).ok().as_ref() != Some(&found) {
            row.earlier = Some(Box::new(Earlier::Row(found)));
        }
        Some(row)
    }

    /// The id of an agent to which no earlier file has given another one.
    fn own_id(&self) -> String {
        format!("agent-{:016x}", AgentId::of(self.name.as_bytes()).0)
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (id, first_seen) = match self.earlier.as_deref() {
            Some(Earlier::Row(row)) => return row.serialize(serializer),
            Some(Earlier::Kept { id, first_seen }) => (id.as_ref(), first_seen.as_ref()),
            None => (None, None),
        };
        let nothing = Profile::default();
        let profile = self.profile.as_deref().unwrap_or(&nothing);
        let mut map = serializer.serialize_map(None)?;
        let text = |map: &mut S::SerializeMap, key: &str, text: &str| match text {
            "" => Ok(()),
            text => map.serialize_entry(key, text),
        };
        // In the order of the keys, as it has always been.
        text(&mut map, "cli", &profile.cli)?;
        match first_seen {
            Some(first_seen) => map.serialize_entry("firstSeen", first_seen)?,
            None => map.serialize_entry("firstSeen", &time_of(self.first_seen_ms))?,
        }
        match id {
            Some(id) => map.serialize_entry("id", id)?,
            None => map.serialize_entry("id", &self.own_id())?,
        }
        map.serialize_entry("lastSeen", &time_of(self.last_seen_ms))?;
        map.serialize_entry("messagesReceived", &self.messages_received)?;
        map.serialize_entry("messagesSent", &self.messages_sent)?;
        text(&mut map, "model", &profile.model)?;
        map.serialize_entry("name", self.name.as_ref())?;
        text(&mut map, "program", &profile.program)?;
        text(&mut map, "task", &profile.task)?;
        text(&mut map, "workingDirectory", &profile.working_directory)?;
        map.end()
    }
}

/// RFC 3339 with milliseconds, as JavaScript's `toISOString`.
pub(super) fn time_of(wall_ms: u64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(wall_ms).ok()?).ok()?;
    Some(format!("{time:.3}"))
}

/// The way back; none for what is written in any other way.
fn ms_of(text: &Value) -> Option<u64> {
    let text = text.as_str()?;
    let ms = u64::try_from(text.parse::<jiff::Timestamp>().ok()?.as_millisecond()).ok()?;
    (time_of(ms).as_deref() == Some(text)).then_some(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> AgentRow {
        AgentRow {
            name: name.into(),
            live: true,
            json: true,
            profile: None,
            first_seen_ms: 1_000,
            last_seen_ms: 1_766_966_970_000,
            messages_sent: 1,
            messages_received: 2,
            waiting_messages: 0,
            waiting_bytes: 0,
            in_flight: 0,
            oldest_unacknowledged_ms: None,
            topics: Vec::new(),
        }
    }

    #[test]
    fn agents_keep_their_id_and_first_sight_over_a_restart_and_internal_ones_are_not_shown() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let old = r#"{"agents":[{"id":"agent-1","name":"Ann","firstSeen":"2026-01-01T00:00:00.000Z","lastSeen":"x"}]}"#;
        std::fs::write(folder.path().join("agents.json"), old).expect("writable");
        let mut presence = Presence::load(folder.path());
        presence.take(vec![row("Ann"), row("Bob"), row("__status__")]);
        presence.write(5).expect("writable");
        let file = std::fs::read(folder.path().join("agents.json")).expect("written");
        let agents: Value = serde_json::from_slice(&file).expect("JSON");
        let names: Vec<_> =
            agents["agents"].as_array().expect("a list").iter().map(|row| row["name"].clone()).collect();
        assert_eq!(names, ["Ann", "Bob"]);
        assert_eq!(agents["agents"][0]["id"], "agent-1");
        assert_eq!(agents["agents"][0]["firstSeen"], "2026-01-01T00:00:00.000Z");
        assert_eq!(agents["agents"][0]["lastSeen"], "2025-12-29T00:09:30.000Z");
    }

    #[test]
    fn rows_of_an_earlier_file_stay_as_they_are_until_their_agents_are_told_of() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let own = format!("agent-{:016x}", AgentId::of(b"Cy").0);
        let old = json!({ "agents": {
            "x": { "id": "agent-1", "name": "Ann", "firstSeen": "long ago", "odd": [1, 2] },
            "y": { "id": own, "name": "Cy", "firstSeen": "2026-01-01T00:00:00.000Z", "lastSeen": "2026-01-02T00:00:00.000Z",
                   "messagesSent": 3, "messagesReceived": 4, "cli": "codex" },
            "z": { "id": 7, "name": "Bob", "lastSeen": "x" },
        }});
        std::fs::write(folder.path().join("agents.json"), old.to_string()).expect("writable");
        let mut presence = Presence::load(folder.path());
        assert!(
            presence.rows.iter().all(|row| row.earlier.is_some() == (row.name.as_ref() != "Cy")),
            "it could be ours"
        );
        let list = |folder: &Path| -> Value {
            let file = std::fs::read(folder.join("agents.json")).expect("written");
            serde_json::from_slice::<Value>(&file).expect("JSON")["agents"].clone()
        };
        presence.write(5).expect("writable");
        assert_eq!(list(folder.path()), json!([old["agents"]["x"], old["agents"]["z"], old["agents"]["y"]]));
        for _ in 0..2 {
            presence.take(vec![row("Cy"), row("Ann")]);
            presence.write(5).expect("writable");
            let now = list(folder.path());
            assert_eq!(
                (&now[0]["id"], &now[0]["firstSeen"], &now[0]["odd"]),
                (&json!("agent-1"), &json!("long ago"), &Value::Null)
            );
            assert_eq!(now[1], old["agents"]["z"]);
            assert_eq!((&now[2]["id"], &now[2]["firstSeen"]), (&json!(own), &json!("2026-01-01T00:00:00.000Z")));
            assert_eq!(
                (&now[2]["messagesSent"], &now[2]["cli"]),
                (&json!(1), &Value::Null),
                "of it, the shards know better"
            );
        }
    }

    #[test]
    fn the_newest_row_of_a_name_holds_and_whoever_was_seen_longest_ago_leaves_a_full_file() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut presence = Presence::load(folder.path());
        let named = |number: usize| AgentRow {
            last_seen_ms: number as u64,
            ..row(&format!("{:05}", ROWS_MAX - number % ROWS_MAX))
        };
        presence.take((0..ROWS_MAX + 5).map(named).collect());
        assert_eq!(presence.rows.len(), ROWS_MAX + 5, "those that come are not looked for among themselves");
        presence.write(5).expect("writable");
        assert_eq!(presence.rows.len(), ROWS_MAX);
        let oldest = presence.rows.iter().map(|row| row.last_seen_ms).min();
        assert_eq!(oldest, Some(5), "five of them were told of anew");
        let more = |number: usize| AgentRow { last_seen_ms: 20_000, ..row(&format!("x{number}")) };
        presence.take((0..3).map(more).collect());
        presence.write(5).expect("writable");
        let oldest = presence.rows.iter().map(|row| row.last_seen_ms).min();
        assert_eq!((presence.rows.len(), oldest), (ROWS_MAX, Some(8)));
        assert!(presence.rows.is_sorted_by(|left, right| left.name < right.name));
    }

    #[test]
    fn a_file_that_is_not_ours_is_replaced_and_not_believed() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(folder.path().join("agents.json"), "not json").expect("writable");
        let mut presence = Presence::load(folder.path());
        presence.take(vec![row("Ann")]);
        presence.write(5).expect("writable");
        assert_eq!(Presence::load(folder.path()).rows.len(), 1);
    }
}
