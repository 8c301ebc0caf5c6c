//! `relay keys log`: what was done with keys and credentials, newest first, from the audit trail in the store.

use super::Failure;
use super::filter::Filter;
use super::keys::ask;
use super::print::{self, Style, cell};
use super::sharing::sharing;
use crate::base::Whole;
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

sharing! {
    [reach]
    /// Show what was done with API keys, newest first: made, rotated, revoked, used from a new place, refused.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "log",
        help_triggers("-h", "--help"),
        example = "relay keys log --since 7d
relay keys log --json | jq -r 'select(.severity == \"warning\") | .meta.reason'",
        note = "Kept as long as messages are. A place is an address or a user of this machine.
Refused credentials of one place and reason are told once in ten minutes, with their number."
    )]
    pub(super) struct Log {
        /// at most this many (default: 50)
        #[argh(option, arg_name = "N", default = "Whole::of(50)")]
        limit: Whole<1, 100_000>,
        /// only what happened since then: 90m, 2h, 7d ago, or a time such as 2026-11-21T10:00:00Z
        #[argh(option, arg_name = "time")]
        since: Option<String>,
        /// only what happened until then, said in the same way
        #[argh(option, arg_name = "time")]
        until: Option<String>,
        /// print one JSON value a line
        #[argh(switch)]
        json: bool,
    }
}

const HEAD: [&str; 6] = ["TIME", "EVENT", "KEY", "BY", "FROM", "DETAILS"];

pub(super) fn run(command: &Log) -> Result<(), Failure> {
    let filter = Filter::of(&[("since", &command.since), ("until", &command.until)])?;
    let mut rows = Vec::new();
    let mut left = command.limit.number();
    let mut before = Value::Null;
    while left > 0 {
        let Value::Object(mut question) = filter.as_json() else { break };
        question.insert("limit".to_owned(), json!(left));
        if !before.is_null() {
            question.insert("before".to_owned(), before.clone());
        }
        let mut answer = ask(command.reach(), "log", question)?;
        let Value::Array(events) = answer["events"].take() else {
            return Err(Failure::Failed("the relay's answer has no list of events; is it another version?".to_owned()));
        };
        left = left.saturating_sub(events.len() as u64);
        for event in &events {
            if command.json { print::json_line(event)? } else { rows.push(row(event)) }
        }
        let next = answer["next"].take();
        if next.is_null() || next == before {
            break;
        }
        before = next;
    }
    match (command.json, rows.is_empty()) {
        (true, _) => Ok(()),
        (false, true) => print::out("nothing of the kind is in the audit trail\n"),
        (false, false) => print::out(&Style::of_output().table(&HEAD, rows)),
    }
}

fn row(event: &Value) -> Vec<String> {
    let meta = &event["meta"];
    let is_key = event["target_type"] == "ssh_key";
    let place = if event["ip"].is_string() { &event["ip"] } else { &meta["source"] };
    vec![
        time(event),
        word(event).to_owned(),
        // Enough of it for `revoke` and `rotate`, as in `keys list`.
        if is_key { cell(&event["target_id"]).chars().take(8).collect() } else { "-".to_owned() },
        by(event),
        cell(place),
        details(event),
    ]
}

fn time(event: &Value) -> String {
    match event["timestamp"].as_str().unwrap_or_default().parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => "-".to_owned(),
    }
}

/// What happened, in a word.
fn word(event: &Value) -> &'static str {
    let meta = &event["meta"];
    match event["event_type"].as_str().unwrap_or_default() {
        "ssh_key.created" if meta["rotated"] == true => "rotated",
        "ssh_key.created" => "created",
        "ssh_key.deleted" => "revoked",
        "ssh_key.used" if !meta["token_expires_at"].is_null() => "token made",
        "ssh_key.used" => "used",
        "user.login" if meta["success"] == false => "refused",
        _ => "other",
    }
}

/// A key that did something is told by the beginning of its id, as everywhere.
fn by(event: &Value) -> String {
    if event["target_type"] == "user" {
        // Nobody was let in, and from where it was stands beside it.
        return "-".to_owned();
    }
    let who = cell(&event["username"]);
    match who.strip_prefix("key:") {
        Some(id) => format!("key:{}", id.chars().take(8).collect::<String>()),
        None => who,
    }
}

fn details(event: &Value) -> String {
    let meta = &event["meta"];
    let mut said = Vec::new();
    if meta["key_prefix"].is_string() {
        said.push(format!("{}…", cell(&meta["key_prefix"])));
    }
    for (name, before) in [
        ("agent", "as "),
        ("reason", ""),
        ("before_until", "the one before is good until "),
        ("token_expires_at", "good until "),
    ] {
        if !meta[name].is_null() {
            said.push(format!("{before}{}", cell(&meta[name])));
        }
    }
    if meta["method"] == "token" {
        said.push("by a token".to_owned());
    }
    match meta["count"].as_u64() {
        Some(count) if count > 1 => said.push(format!("{count} times")),
        _ => {}
    }
    if said.is_empty() { "-".to_owned() } else { said.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, target: &str, who: &str, ip: Value, meta: Value) -> Value {
        json!({
            "event_type": kind, "timestamp": "2026-11-21T10:00:00.250000+00:00", "username": who,
            "target_type": if kind == "user.login" { "user" } else { "ssh_key" }, "target_id": target, "meta": meta,
            "ip": ip, "severity": "info",
        })
    }

    #[test]
    fn the_trail_is_an_aligned_table_and_no_agents_name_can_drive_a_terminal() {
        let id = "be728e33-0000-4000-8000-000000000000";
        let (by_key, prefix) = (format!("key:{id}"), "ar_key_UD7YTaml");
        let refused = json!({
            "method": "key", "success": false, "reason": "unknown_key", "agent": "eve\u{1b}[2J", "count": 12,
        });
        let rotated = json!({ "key_prefix": prefix, "rotated": true, "before_until": "2026-11-22T10:00:00.000Z" });
        let token = json!({ "key_prefix": prefix, "token_expires_at": "2026-11-21T10:15:00.000Z" });
        let by_token = json!({ "key_prefix": prefix, "agent": "bob", "method": "token", "source": "uid:1001" });
        let used = json!({ "key_prefix": prefix, "agent": "ann", "method": "key" });
        let rows = [
            event("user.login", "192.0.2.7", "192.0.2.7", json!("192.0.2.7"), refused),
            event("ssh_key.deleted", id, "uid:1000", Value::Null, json!({ "key_prefix": prefix })),
            event("ssh_key.used", id, &by_key, Value::Null, by_token),
            event("ssh_key.used", id, &by_key, json!("2001:db8::/64"), used),
            event("ssh_key.used", id, "uid:1000", Value::Null, token),
            event("ssh_key.created", id, &by_key, Value::Null, rotated),
            event("ssh_key.created", id, "uid:1000", Value::Null, json!({ "key_prefix": prefix })),
        ];
        let table = Style::plain().table(&HEAD, rows.iter().map(row).collect());
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("../../tests/cli");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!("keys_log", table));
        assert_eq!(row(&json!({})), ["-", "other", "-", "-", "-", "-"]);
    }
}
