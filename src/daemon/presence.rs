//! `team/agents.json` and `team/processing-state.json`: who is there, for the command line of existing clients, which reads
//! these files instead of asking. Written by the clerk, never by a shard; replaced whole, so a reader sees one or the other.

use super::paths::replace_file;
use crate::base::AgentId;
use crate::base::name::is_internal;
use crate::relay::AgentRow;
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
    rows: BTreeMap<String, Value>,
}

impl Presence {
    /// What an earlier daemon left in `folder` (the project's `team/`), so that agents keep their ids and first sight.
    pub(super) fn load(folder: &Path) -> Presence {
        let mut rows = BTreeMap::new();
        let path = folder.join("agents.json");
        let small = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= FILE_BYTES_MAX);
        let file = if small { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
        if let Ok(Value::Object(file)) = serde_json::from_slice::<Value>(&file) {
            let list = match file.get("agents") {
                Some(Value::Array(list)) => list.clone(),
                Some(Value::Object(by_name)) => by_name.values().cloned().collect(),
                _ => Vec::new(),
            };
            for row in list.into_iter().take(ROWS_MAX) {
                if let Some(name) = row.get("name").and_then(Value::as_str) {
                    rows.insert(name.to_owned(), row);
                }
            }
        }
        Presence { folder: folder.to_path_buf(), rows }
    }

    /// Takes in what the shards say and replaces both files.
    pub(super) fn write(&mut self, agents: &[AgentRow], now_ms: u64) -> io::Result<()> {
        for agent in agents.iter().filter(|agent| !is_internal(&agent.name)) {
            let before = self.rows.get(agent.name.as_ref());
            let row = row_of(agent, before);
            self.rows.insert(agent.name.to_string(), row);
        }
        if self.rows.len() > ROWS_MAX {
            let mut seen: Vec<(String, String)> = self
                .rows
                .iter()
                .map(|(name, row)| (row["lastSeen"].as_str().unwrap_or("").to_owned(), name.clone()))
                .collect();
            seen.sort();
            for (_, name) in seen.iter().take(self.rows.len() - ROWS_MAX) {
                self.rows.remove(name);
            }
        }
        let list: Vec<&Value> = self.rows.values().collect();
        let text = serde_json::to_vec_pretty(&json!({ "agents": list })).map_err(io::Error::other)?;
        std::fs::create_dir_all(&self.folder)?;
        replace_file(&self.folder.join("agents.json"), &text)?;
        let mut processing = Map::new();
        for agent in agents {
            if let Some(waiting_ms) = agent.oldest_unacknowledged_ms {
                let started = now_ms.saturating_sub(waiting_ms);
                processing.insert(agent.name.to_string(), json!({ "startedAt": started, "messageId": "" }));
            }
        }
        let state = json!({ "processingAgents": processing, "updatedAt": time_of(now_ms) });
        let text = serde_json::to_vec_pretty(&state).map_err(io::Error::other)?;
        replace_file(&self.folder.join("processing-state.json"), &text)
    }
}

fn row_of(agent: &AgentRow, before: Option<&Value>) -> Value {
    let mut row = Map::new();
    let kept = |key: &str| before.and_then(|before| before.get(key)).cloned();
    let id = kept("id").unwrap_or_else(|| json!(format!("agent-{:016x}", AgentId::of(agent.name.as_bytes()).0)));
    row.insert("id".into(), id);
    row.insert("name".into(), json!(agent.name.as_ref()));
    if let Some(profile) = &agent.profile {
        let texts = [
            ("cli", &profile.cli),
            ("program", &profile.program),
            ("model", &profile.model),
            ("task", &profile.task),
            ("workingDirectory", &profile.working_directory),
        ];
        for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            row.insert(key.into(), json!(text.as_ref()));
        }
    }
    row.insert("firstSeen".into(), kept("firstSeen").unwrap_or_else(|| json!(time_of(agent.first_seen_ms))));
    row.insert("lastSeen".into(), json!(time_of(agent.last_seen_ms)));
    row.insert("messagesSent".into(), json!(agent.messages_sent));
    row.insert("messagesReceived".into(), json!(agent.messages_received));
    Value::Object(row)
}

/// RFC 3339 with milliseconds, as JavaScript's `toISOString`.
pub(super) fn time_of(wall_ms: u64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(wall_ms).ok()?).ok()?;
    Some(format!("{time:.3}"))
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
        presence.write(&[row("Ann"), row("Bob"), row("__status__")], 5).expect("writable");
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
    fn a_file_that_is_not_ours_is_replaced_and_not_believed() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(folder.path().join("agents.json"), "not json").expect("writable");
        let mut presence = Presence::load(folder.path());
        presence.write(&[row("Ann")], 5).expect("writable");
        assert_eq!(Presence::load(folder.path()).rows.len(), 1);
    }
}
