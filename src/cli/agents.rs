//! `relay agents` and `relay who`: who is connected, who is known.

use super::Failure;
use super::print::{self, Style, ago, bytes, cell};
use super::reach::Reach;
use super::sharing::sharing;
use super::talk;
use crate::base::name::is_internal;
use crate::wire::QueryKind;
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;

/// Seconds after which `who` counts an agent as gone quiet.
const ACTIVE_WITHIN_S: i64 = 30;

sharing! {
    [reach]
    /// List the agents this relay knows, connected or away.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "agents",
        help_triggers("-h", "--help"),
        example = "relay agents
relay agents --all --json"
    )]
    pub(super) struct Agents {
        /// the relay's own helpers as well (their names start with __)
        #[argh(switch)]
        all: bool,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

sharing! {
    [reach]
    /// List the agents that are connected or were seen within the last 30 seconds.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(subcommand, name = "who", help_triggers("-h", "--help"), example = "relay who")]
    pub(super) struct Who {
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

pub(super) fn run(command: &Agents) -> Result<(), Failure> {
    let reach = command.reach()?;
    let mut agents = known(&reach, command.all)?;
    if !command.all {
        agents.retain(|agent| !is_internal(agent["name"].as_str().unwrap_or_default()));
    }
    if command.json {
        return print::json(&serde_json::json!({ "agents": agents }));
    }
    if agents.is_empty() {
        return print::out("nobody has connected yet\n");
    }
    let head = ["NAME", "STATE", "CLI", "MODEL", "TASK", "SEEN", "SENT", "RECEIVED", "WAITING", "TOPICS"];
    print::out(&Style::of_output().table(&head, agents.iter().map(row).collect()))
}

pub(super) fn run_who(command: &Who) -> Result<(), Failure> {
    let reach = command.reach()?;
    let mut agents = known(&reach, false)?;
    let now = jiff::Timestamp::now();
    agents.retain(|agent| is_active(agent, now) && !is_internal(agent["name"].as_str().unwrap_or_default()));
    if command.json {
        return print::json(&serde_json::json!({ "agents": agents }));
    }
    if agents.is_empty() {
        return print::out("nobody is here\n");
    }
    let rows = agents
        .iter()
        .map(|agent| vec![cell(&agent["name"]), cell(&agent["cli"]), cell(&agent["task"]), ago(&agent["last_seen"])])
        .collect();
    print::out(&Style::of_output().table(&["NAME", "CLI", "TASK", "SEEN"], rows))
}

fn known(reach: &Reach, all: bool) -> Result<Vec<Value>, Failure> {
    let mut answer = talk::ask(reach, QueryKind::Agents, &serde_json::json!({ "all": all }))?;
    match answer["agents"].take() {
        Value::Array(agents) => Ok(agents),
        _ => Err(Failure::Failed("the relay's answer has no list of agents; is it another version?".to_owned())),
    }
}

fn is_active(agent: &Value, now: jiff::Timestamp) -> bool {
    let seen = agent["last_seen"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    agent["state"] == "live" || seen.is_some_and(|seen| now.as_second() - seen.as_second() <= ACTIVE_WITHIN_S)
}

fn row(agent: &Value) -> Vec<String> {
    let waiting = match agent["waiting"].as_u64() {
        None | Some(0) => "-".to_owned(),
        Some(count) => format!("{count} ({})", bytes(agent["waiting_bytes"].as_u64().unwrap_or(0))),
    };
    vec![
        cell(&agent["name"]),
        cell(&agent["state"]),
        cell(&agent["cli"]),
        cell(&agent["model"]),
        cell(&agent["task"]),
        ago(&agent["last_seen"]),
        cell(&agent["messages_sent"]),
        cell(&agent["messages_received"]),
        waiting,
        cell(&agent["topics"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_is_connected_or_seen_within_thirty_seconds() {
        let now: jiff::Timestamp = "2026-11-21T10:00:40Z".parse().unwrap();
        let agent = |state: &str, seen: &str| serde_json::json!({ "state": state, "last_seen": seen });
        assert!(is_active(&agent("live", "2020-01-01T00:00:00Z"), now));
        assert!(is_active(&agent("away", "2026-11-21T10:00:10Z"), now));
        assert!(!is_active(&agent("away", "2026-11-21T10:00:09Z"), now));
        assert!(!is_active(&agent("away", "yesterday"), now));
    }

    #[test]
    fn a_hostile_name_is_shown_harmless() {
        let agent = serde_json::json!({ "name": "eve\u{1b}[2J", "task": "a\nb", "waiting": 3, "waiting_bytes": 2048 });
        let row = row(&agent);
        assert_eq!((row[0].as_str(), row[4].as_str(), row[8].as_str()), ("eve\\u{1b}[2J", "a\\nb", "3 (2.0 KiB)"));
    }
}
