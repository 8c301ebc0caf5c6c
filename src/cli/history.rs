//! `relay history`: stored messages, newest first, a page at a time; with --follow also those that come.

use super::Failure;
use super::filter::Filter;
use super::print::{self, Style, cell};
use super::sharing::sharing;
use super::stored::{Missing, Source};
use crate::base::Whole;
use crate::base::limits::TOPIC_BYTES_MAX;
use crate::wire::QueryKind;
use argh::{ArgsInfo, FromArgs};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::Value;
use std::path::PathBuf;

sharing! {
    [filter reach]
    /// Show stored messages, newest first, and with --follow those that come.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "history",
        help_triggers("-h", "--help"),
        example = "relay history --agent bob --since 2h
relay history --topic builds --limit 200 --json | jq -r .text
relay history --from alice --to bob --follow",
        note = "Messages are kept as long as the retention time says: `relay status --verbose` shows it. While the relay is off its
store is read."
    )]
    pub(super) struct History {
        /// at most this many of those that are there (default: 50); `relay export` has no limit
        #[argh(option, arg_name = "N", default = "Whole::of(50)")]
        limit: Whole<0, LIMIT_MAX>,
        /// print new messages as they come, until interrupted; what is there comes first, oldest first
        #[argh(switch)]
        follow: bool,
        /// file with the key of an encrypted store that is read while the relay is off (else AGENT_RELAY_DB_KEY)
        #[argh(option, arg_name = "file")]
        db_key: Option<PathBuf>,
        /// print one JSON value a line
        #[argh(switch)]
        json: bool,
    }
}

/// Messages asked for at once.
const PAGE_MESSAGES: u32 = 200;
/// Messages that may be asked for in all; an export has no such bound.
const LIMIT_MAX: u64 = 100_000;
/// How often --follow asks.
const ASK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// Characters of a name that are shown: as many as a topic may have, with its `#`.
const NAME_CHARACTERS_MAX: usize = TOPIC_BYTES_MAX + 1;

pub(super) fn run(command: &History) -> Result<(), Failure> {
    let filter = command.filter()?;
    let reach = command.reach()?;
    if command.follow {
        if reach.is_off() {
            return Err(Failure::Failed(format!(
                "{}; only a running one shows messages as they come",
                reach.not_running()
            )));
        }
        return follow(command, &Source::Relay(Box::new(reach)), &filter);
    }
    let source = Source::of(reach, (command.data_dir.as_deref(), command.global), command.db_key.as_deref())?;
    let mut rows = Vec::new();
    let mut left = command.limit.number() as u32;
    let mut before = Value::Null;
    let mut missing = Missing::default();
    while left > 0 {
        let answer = ask(&source, &filter, left, "before", &before)?;
        missing.note(&answer);
        let (messages, next) = taken(answer);
        left = left.saturating_sub(u32::try_from(messages.len()).unwrap_or(u32::MAX));
        for message in &messages {
            if command.json { print::json_line(message)? } else { rows.push(row(message)) }
        }
        if next.is_null() || next == before {
            break;
        }
        before = next;
    }
    missing.say();
    match (command.json, rows.is_empty()) {
        (true, _) => Ok(()),
        (false, true) => print::out("no such message is stored here\n"),
        (false, false) => print::out(&Style::of_output().table(&HEAD, rows)),
    }
}

/// What is there, oldest first, then what comes.
fn follow(command: &History, source: &Source, filter: &Filter) -> Result<(), Failure> {
    let show = |message: &Value| if command.json { print::json_line(message) } else { print::out(&line(message)) };
    let (mut messages, mut left) = (Vec::new(), (command.limit.number() as u32).max(1));
    let (mut before, mut after) = (Value::Null, Value::Null);
    let mut missing = Missing::default();
    while left > 0 {
        let answer = ask(source, filter, left, "before", &before)?;
        missing.note(&answer);
        if before.is_null() {
            after = answer["newest"].clone();
        }
        let (page, next) = taken(answer);
        left = left.saturating_sub(u32::try_from(page.len()).unwrap_or(u32::MAX));
        messages.extend(page);
        if next.is_null() || next == before {
            break;
        }
        before = next;
    }
    messages.truncate(command.limit.size());
    messages.iter().rev().try_for_each(show)?;
    drop(messages);
    missing.say();
    loop {
        let (messages, next) = page(source, filter, PAGE_MESSAGES, "after", &after)?;
        messages.iter().try_for_each(show)?;
        if !next.is_null() {
            after = next;
        }
        if messages.is_empty() && output_closed_meanwhile() {
            return Err(Failure::OutputClosed);
        }
    }
}

/// Waits until it is time to ask again. Says whether whoever read our output has gone.
fn output_closed_meanwhile() -> bool {
    let stdout = std::io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    rustix::event::poll(&mut watched, Some(&ASK_EVERY)).is_ok_and(|ready| ready > 0)
}

fn ask(source: &Source, filter: &Filter, limit: u32, cursor: &str, place: &Value) -> Result<Value, Failure> {
    let mut question = filter.as_json();
    question["limit"] = limit.min(PAGE_MESSAGES).into();
    if !place.is_null() {
        question[cursor] = place.clone();
    }
    source.ask(QueryKind::History, &question)
}

/// The messages of an answer, and where the next page begins.
fn taken(mut answer: Value) -> (Vec<Value>, Value) {
    let messages = match answer["messages"].take() {
        Value::Array(messages) => messages,
        _ => Vec::new(),
    };
    (messages, answer["next"].take())
}

fn page(
    source: &Source,
    filter: &Filter,
    limit: u32,
    cursor: &str,
    place: &Value,
) -> Result<(Vec<Value>, Value), Failure> {
    ask(source, filter, limit, cursor, place).map(taken)
}

const HEAD: [&str; 6] = ["TIME", "ID", "FROM", "TO", "STATE", "TEXT"];

fn row(message: &Value) -> Vec<String> {
    vec![
        time(message, "%Y-%m-%d %H:%M:%S"),
        short_id(message),
        cut(cell(&message["from"])),
        cut(addressee(message)),
        state(message),
        first_line(message, 60),
    ]
}

/// A message of --follow: one line, whatever its text holds.
fn line(message: &Value) -> String {
    format!(
        "{} {} {} → {}: {}\n",
        time(message, "%H:%M:%S"),
        short_id(message),
        cut(cell(&message["from"])),
        cut(addressee(message)),
        first_line(message, 400)
    )
}

fn time(message: &Value, form: &str) -> String {
    let time = message["accepted_at"].as_str().or(message["sent_at"].as_str()).unwrap_or_default();
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => time.to_zoned(jiff::tz::TimeZone::system()).strftime(form).to_string(),
        Err(_) => "-".to_owned(),
    }
}

/// No wider than a column may be: an imported name may have any length.
fn cut(mut name: String) -> String {
    if let Some((end, _)) = name.char_indices().nth(NAME_CHARACTERS_MAX) {
        name.truncate(end);
        name.push('…');
    }
    name
}

fn short_id(message: &Value) -> String {
    cell(&message["id"]).chars().take(8).collect()
}

fn addressee(message: &Value) -> String {
    match message["topic"].as_str() {
        Some(topic) if !topic.is_empty() => format!("#{}", print::clean(topic.trim_start_matches('#'))),
        _ => cell(&message["to"]),
    }
}

fn state(message: &Value) -> String {
    match message["reason"].as_str() {
        Some(reason) => format!("{} ({})", cell(&message["state"]), print::clean(reason)),
        None => cell(&message["state"]),
    }
}

/// The first line that is not empty, cut to so many characters.
fn first_line(message: &Value, characters_max: usize) -> String {
    let text = message["text"].as_str().unwrap_or_default().trim();
    let first = text.lines().next().unwrap_or_default();
    let clean = print::clean(first);
    let mut shown: String = clean.chars().take(characters_max).collect();
    if shown.len() < clean.len() || first.len() < text.len() {
        shown.push('…');
    }
    if shown.is_empty() { "-".to_owned() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_message_is_one_row_whatever_it_holds() {
        let message = json!({
            "id": "4f1c2b9a00000000", "from": "alice", "to": "bob", "topic": null, "accepted_at": "2026-11-21T10:00:00Z",
            "text": "\n one\u{1b}[2A\ntwo", "state": "failed", "reason": "expired",
        });
        assert_eq!(row(&message)[1..], ["4f1c2b9a", "alice", "bob", "failed (expired)", "one\\u{1b}[2A…"]);
        assert!(line(&message).ends_with(" 4f1c2b9a alice → bob: one\\u{1b}[2A…\n"));
        let topic = json!({ "to": "*", "topic": "builds", "text": "x".repeat(70) });
        assert_eq!(row(&topic)[3], "#builds");
        assert_eq!(row(&topic)[5].chars().count(), 61);
        let long = json!({ "from": "é".repeat(5_000), "to": "x".repeat(64) });
        assert_eq!(row(&long)[2].chars().count(), NAME_CHARACTERS_MAX + 1);
        assert_eq!(row(&long)[3].chars().count(), 64);
        assert_eq!(row(&json!({})), ["-", "-", "-", "-", "-", "-"]);
    }
}
