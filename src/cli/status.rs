//! `relay status`: what the daemon of this place is doing.

use super::Failure;
use super::print::{self, Style, bytes, cell, span};
use super::sharing::sharing;
use super::talk;
use crate::daemon::settings::{DAYS_MAX, Durability, UNLIMITED};
use crate::wire::QueryKind;
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;
use std::fmt::Write as _;

sharing! {
    [reach]
    /// Show what the relay is doing: version, listeners, agents, store, and with --verbose retention, shards, queues and refusals.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "status",
        help_triggers("-h", "--help"),
        example = "relay status --verbose
relay status --json | jq .agents.connected"
    )]
    pub(super) struct Status {
        /// retention, shards, queues, closes and refusals as well
        #[argh(switch)]
        verbose: bool,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

pub(super) fn run(command: &Status) -> Result<(), Failure> {
    let reach = command.reach()?;
    let status = talk::ask(&reach, QueryKind::Status, &serde_json::json!({ "verbose": command.verbose }))?;
    if command.json {
        return print::json(&status);
    }
    print::out(&summary(&status, command.verbose, Style::of_output()))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn summary(status: &Value, verbose: bool, style: Style) -> String {
    let agents = &status["agents"];
    let limit = agents["max"].as_u64().map_or(String::new(), |max| format!(" of at most {max}"));
    let mut lines = vec![
        (
            "relay",
            format!(
                "{}, pid {}, up {}",
                cell(&status["version"]),
                cell(&status["pid"]),
                span(number(&status["uptime_s"]))
            ),
        ),
        ("socket", cell(&status["socket"])),
    ];
    lines.extend(doors(status));
    lines
        .push(("agents", format!("{} connected{limit}, {} known", cell(&agents["connected"]), cell(&agents["known"]))));
    lines.push(("tier", cell(&status["tier"])));
    let store = &status["store"];
    lines.push(("store", stored(store)));
    lines.push(("", survives(store)));
    lines.push(("health", health(store, style)));
    let shards = status["shards"].as_array().map_or(&[][..], Vec::as_slice);
    let total = |key: &str| shards.iter().map(|shard| number(&shard[key])).sum::<u64>();
    lines.push(("shards", format!("{}, {}", shards.len(), drivers(shards))));
    lines.push((
        "messages",
        format!(
            "{} in, {} out, {} waiting ({})",
            total("messages_in"),
            total("messages_out"),
            total("waiting_messages"),
            bytes(total("waiting_bytes"))
        ),
    ));
    let paused = &status["paused"];
    let for_disk = number(&paused["writer_behind"]["now"]);
    let for_rate = number(&paused["now"]).saturating_sub(for_disk);
    for (count, what) in [(for_rate, "the tier's or a key's rate"), (for_disk, "the disk, which works and is slower")] {
        if count > 0 {
            let wait = if count == 1 { "waits" } else { "wait" };
            lines.push(("slowed", format!("{} {wait} for {what}", print::count(count, "connection"))));
        }
    }
    let mut text = lines.iter().fold(String::new(), |all, (name, value)| all + &format!("{name:<10}{value}\n"));
    for (name, notes) in [("advice", &status["advice"]), ("note", &status["license"]["warnings"])] {
        for note in notes.as_array().into_iter().flatten().filter_map(Value::as_str) {
            let _ = writeln!(text, "{name:<10}{}", style.coloured(33, &print::clean(note)));
        }
    }
    for shard in shards {
        if let Some(reason) = shard["fallback"].as_str() {
            let warning = format!("shard {} fell back: {}", cell(&shard["id"]), print::clean(reason));
            let _ = writeln!(text, "{}", style.coloured(33, &warning));
        }
    }
    if let Some(warning) = status["clock_warning"].as_str() {
        let _ = writeln!(text, "{}", style.coloured(33, &format!("clock: {}", print::clean(warning))));
    }
    if verbose {
        text += &details(status, shards, style);
    }
    text
}

/// The ways in besides the owner's own socket, and who is asked for what there.
fn doors(status: &Value) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let tls = match (status["tls"]["on"].as_bool(), status["tls"]["mutual"].as_bool()) {
        (Some(true), Some(true)) => ", TLS with client certificates",
        (Some(true), _) => ", TLS",
        _ => "",
    };
    let ports = status["listen"].as_array().map_or(&[][..], Vec::as_slice);
    lines.extend(ports.iter().map(|port| ("tcp", format!("{}{tls}", cell(port)))));
    let authentication = &status["authentication"];
    let failures: Vec<String> = counted(&authentication["failures"]);
    let delayed = authentication["delayed"].as_u64().filter(|count| *count > 0);
    let mut parts = Vec::new();
    if authentication["required"] == true {
        parts.push("an API key or a token is required".to_owned());
    }
    if !failures.is_empty() {
        parts.push(format!("turned away: {}", failures.join(", ")));
    }
    parts.extend(delayed.map(|count| format!("{count} answered late")));
    if !parts.is_empty() {
        lines.push(("access", parts.join("; ")));
    }
    lines
}

/// The counters that are not 0, with their names.
fn counted(counters: &Value) -> Vec<String> {
    let counters = counters.as_object().into_iter().flatten().filter(|(_, count)| number(count) > 0);
    counters.map(|(reason, count)| format!("{} {}", print::clean(reason), cell(count))).collect()
}

/// Where it lies, and how much there is.
fn stored(store: &Value) -> String {
    let mut parts = vec![cell(&store["path"])];
    parts.push(if store["encrypted"] == true { "encrypted" } else { "not encrypted" }.to_owned());
    parts.push(format!("{} ({} used)", bytes(number(&store["file_bytes"])), bytes(number(&store["used_bytes"]))));
    if let Some(journal) = store["journal_bytes"].as_u64().filter(|length| *length > 0) {
        parts.push(format!("{} of journal", bytes(journal)));
    }
    if let Some(messages) = store["messages"].as_u64() {
        parts.push(print::count(messages, "message"));
    }
    if let Some(owed) = store["owed_messages"].as_u64() {
        parts.push(format!("{owed} owed ({})", bytes(number(&store["owed_bytes"]))));
    }
    parts.join(", ")
}

/// Which failure what survives.
fn survives(store: &Value) -> String {
    let mode = store["durability"].as_str().unwrap_or_default();
    match Durability::of(mode) {
        Some(durability) => format!("{mode}: {}", durability.survives()),
        None => cell(&store["durability"]),
    }
}

fn health(store: &Value, style: Style) -> String {
    let health = &store["health"];
    if health["ok"] != false {
        return if health["ok"] == true { "ok".to_owned() } else { "-".to_owned() };
    }
    let since = health["since_ms"].as_i64().and_then(|since| jiff::Timestamp::from_millisecond(since).ok());
    let since = since.map_or_else(String::new, |since| format!(" since {since:.0}"));
    let problem = match health["problem"].as_str() {
        Some("full") => "disk full".to_owned(),
        Some("quota") => "disk quota reached".to_owned(),
        Some("io") => "disk error".to_owned(),
        Some("read_only") => "not writable".to_owned(),
        Some("gone") => "store gone".to_owned(),
        Some("corrupt") => "damaged".to_owned(),
        _ => cell(&health["problem"]),
    };
    style.coloured(31, &format!("{problem}{since}: {}", cell(&health["sentence"])))
}

/// `Retention: 30 days (Pro tier max: 90 days)`.
fn retention(store: &Value) -> String {
    let days = |days: u64| match days {
        days if days >= u64::from(DAYS_MAX) => UNLIMITED.to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    };
    let Some(kept) = store["retention_days"].as_u64() else { return "Retention: -".to_owned() };
    match store["retention_max_days"].as_u64() {
        Some(max) => {
            let tier = cell(&store["tier"]);
            let mut letters = tier.chars();
            let first = letters.next().map_or_else(String::new, |first| first.to_uppercase().collect());
            format!("Retention: {} ({first}{} tier max: {})", days(kept), letters.as_str(), days(max))
        }
        None => format!("Retention: {} (no tier maximum)", days(kept)),
    }
}

/// The store's inner life, for --verbose.
fn store_details(store: &Value) -> String {
    let mut text = format!("\n{}\n", retention(store));
    let swept = match store["last_sweep_ms"].as_i64().and_then(|at| jiff::Timestamp::from_millisecond(at).ok()) {
        Some(at) => format!(
            "{}, {} messages deleted so far",
            print::ago(&format!("{at}").into()),
            cell(&store["swept_messages"])
        ),
        None => "not yet".to_owned(),
    };
    let _ = writeln!(text, "{:<10}{swept}", "swept");
    let _ = writeln!(
        text,
        "{:<10}segments {} to {}, {} not indexed, rows {} behind, {} records not on disk yet",
        "log",
        cell(&store["first_segment"]),
        cell(&store["last_segment"]),
        cell(&store["unindexed_segments"]),
        cell(&store["checkpoint_lag_segments"]),
        cell(&store["pending_records"])
    );
    text
}

fn drivers(shards: &[Value]) -> String {
    let mut kinds: Vec<String> = shards
        .iter()
        .map(|shard| match shard["receive"].as_str() {
            Some(receive) if !receive.is_empty() => format!("{} ({})", cell(&shard["backend"]), print::clean(receive)),
            _ => cell(&shard["backend"]),
        })
        .collect();
    kinds.sort();
    kinds.dedup();
    kinds.join(", ")
}

fn details(status: &Value, shards: &[Value], style: Style) -> String {
    let head = [
        "SHARD",
        "CPU",
        "DRIVER",
        "AGENTS",
        "CONNS",
        "HALF-OPEN",
        "IN",
        "OUT",
        "BYTES IN",
        "BYTES OUT",
        "WAITING",
        "HELD",
        "TURNS",
        "BUSY",
    ];
    let size = |value: &Value| bytes(number(value));
    let rows = shards
        .iter()
        .map(|shard| {
            vec![
                cell(&shard["id"]),
                cell(&shard["cpu"]),
                cell(&shard["backend"]),
                cell(&shard["agents"]),
                cell(&shard["connections"]),
                cell(&shard["half_open"]),
                cell(&shard["messages_in"]),
                cell(&shard["messages_out"]),
                size(&shard["bytes_in"]),
                size(&shard["bytes_out"]),
                format!("{} ({})", cell(&shard["waiting_messages"]), size(&shard["waiting_bytes"])),
                cell(&shard["lane_hold"]),
                cell(&shard["turns"]),
                format!("{} ms", number(&shard["busy_us"]) / 1000),
            ]
        })
        .collect();
    let writer = &status["writer"];
    let mut text = store_details(&status["store"]);
    let _ = write!(text, "\n{}", style.table(&head, rows));
    let _ = writeln!(
        text,
        "\n{:<10}{} queued, {} committed",
        "writer",
        cell(&writer["queued"]),
        cell(&writer["committed"])
    );
    for (name, counts) in [("closes", &status["closes"]), ("refusals", &status["refusals"])] {
        let reasons = counted(counts);
        let reasons = if reasons.is_empty() { "none".to_owned() } else { reasons.join(", ") };
        let _ = writeln!(text, "{name:<10}{reasons}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_as_a_summary_and_an_empty_one_does_not_break_it() {
        let status = serde_json::json!({
            "version": "0.1.0", "pid": 42, "started_at": "2026-11-21T10:00:00Z", "uptime_s": 61, "socket": "/run/relay.sock",
            "listen": ["127.0.0.1:7070"], "tier": "unlimited",
            "store": { "path": "/data/store", "durability": "batch", "encrypted": true, "file_bytes": 12_582_912, "used_bytes": 8_192,
                "journal_bytes": 1_048_576,
                "first_segment": 3, "last_segment": 900, "unindexed_segments": 40, "checkpoint_lag_segments": 2, "pending_records": 5,
                "health": { "ok": true }, "retention_days": 30, "retention_max_days": 90, "tier": "pro", "swept_messages": 17,
                "last_sweep_ms": null, "messages": 1234, "owed_messages": 2, "owed_bytes": 300 },
            "agents": { "connected": 2, "known": 3, "max": null },
            "shards": [{ "id": 0, "cpu": 1, "backend": "epoll", "receive": "readiness", "fallback": "io_uring is forbidden",
                "agents": 2, "connections": 2, "half_open": 0, "messages_in": 7, "messages_out": 8, "bytes_in": 900,
                "bytes_out": 2048, "waiting_messages": 1, "waiting_bytes": 300, "lane_hold": 0, "turns": 12, "busy_us": 3400 }],
            "writer": { "queued": 0, "committed": 7 },
            "closes": { "bye": 1, "lost": 0 }, "refusals": {}, "clock_warning": null,
        });
        insta::assert_snapshot!(summary(&status, true, Style::plain()));
        assert!(summary(&serde_json::json!({}), true, Style::plain()).contains("agents    - connected, - known"));
    }

    #[test]
    fn doors_limits_and_the_licence_are_told_where_there_is_something_to_tell() {
        let status = serde_json::json!({
            "listen": ["127.0.0.1:17443"], "tls": { "on": true, "mutual": false },
            "paused": { "now": 4, "ever": 5, "writer_behind": { "now": 1, "ever": 1 } },
            "authentication": { "required": true, "failures": { "missing": 2, "expired": 0 }, "delayed": 1 },
            "advice": ["9 of 10 agents"], "license": { "warnings": ["evaluation build: \u{1b}x"] },
        });
        let text = summary(&status, false, Style::plain());
        for line in [
            "tcp       127.0.0.1:17443, TLS\n",
            "access    an API key or a token is required; turned away: missing 2; 1 answered late\n",
            "slowed    3 connections wait for the tier's or a key's rate\n",
            "slowed    1 connection waits for the disk, which works and is slower\n",
            "advice    9 of 10 agents\n",
            "note      evaluation build: \\u{1b}x\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        let quiet = summary(&serde_json::json!({ "paused": { "now": 0 }, "advice": [] }), false, Style::plain());
        assert!(["tcp", "access", "slowed", "advice", "note"].iter().all(|word| !quiet.contains(word)), "{quiet}");
    }

    #[test]
    fn retention_is_told_with_the_tiers_maximum() {
        let line = |days: u64, max: Option<u64>, tier: &str| {
            retention(&serde_json::json!({ "retention_days": days, "retention_max_days": max, "tier": tier }))
        };
        assert_eq!(line(30, Some(90), "pro"), "Retention: 30 days (Pro tier max: 90 days)");
        assert_eq!(line(1, Some(7), "community"), "Retention: 1 day (Community tier max: 7 days)");
        assert_eq!(line(30, None, "unlimited"), "Retention: 30 days (no tier maximum)");
        assert_eq!(line(36_500, None, "enterprise"), "Retention: unlimited (no tier maximum)");
    }

    #[test]
    fn a_sick_store_says_why_and_since_when() {
        let health = |value| health(&serde_json::json!({ "health": value }), Style::plain());
        let sick = serde_json::json!({
            "ok": false, "problem": "full", "since_ms": 1_795_262_400_000_u64, "sentence": "free some space",
        });
        assert_eq!(health(sick), "disk full since 2026-11-21T12:00:00Z: free some space");
        assert_eq!(health(serde_json::json!({ "ok": true })), "ok");
    }
}
