//! `relay listen`: an agent that is a shell pipe. Each message is printed once, in order, as soon as it is there.

use super::Failure;
use super::print;
use super::reach::Seconds;
use super::sharing::sharing;
use super::talk::{Heard, Session};
use crate::base::Whole;
use crate::base::name::{check_agent, check_topic, topic_of};
use argh::{ArgsInfo, FromArgs};
use serde_json::json;
use std::time::{Duration, Instant};

sharing! {
    [reach]
    /// Receive messages as an agent and print them. A lost connection is taken up again where it broke.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "listen",
        help_triggers("-h", "--help"),
        example = "relay listen --as bob
relay listen --as watcher --topic builds --json | jq -r .text
relay listen --as bob --count 1 --timeout 60"
    )]
    pub(super) struct Listen {
        /// the name to receive as
        #[argh(option, long = "as", arg_name = "name")]
        name: String,
        /// a topic to subscribe to; may be repeated
        #[argh(option, arg_name = "topic")]
        topic: Vec<String>,
        /// end after this many messages
        #[argh(option, arg_name = "N")]
        count: Option<Whole<0, 1_000_000_000>>,
        /// end after this many seconds; with --count, fewer messages than that are a failure
        #[argh(option, arg_name = "seconds")]
        timeout: Option<Seconds>,
        /// print one JSON value a line
        #[argh(switch)]
        json: bool,
    }
}

/// How long one wait may last, so that the end of --timeout is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) fn run(command: &Listen) -> Result<(), Failure> {
    check_agent(command.name.as_bytes()).map_err(|error| Failure::Usage(format!("--as: {error}")))?;
    let mut topics = Vec::new();
    for topic in &command.topic {
        let topic =
            check_topic(topic_of(topic.as_bytes())).map_err(|error| Failure::Usage(format!("--topic: {error}")))?;
        topics.push(topic.to_owned());
    }
    let reach = command.reach()?;
    let mut session = Session::open(&reach, &command.name, &topics)?;
    let begun = Instant::now();
    let left = || command.timeout.map(|timeout| Duration::from_secs(timeout.number()).saturating_sub(begun.elapsed()));
    let mut heard = 0;
    let count = command.count.map(Whole::number);
    while count.is_none_or(|count| heard < count) {
        let wait = left().unwrap_or(LOOK_EVERY);
        if wait.is_zero() {
            break;
        }
        let Some(message) = session.next(wait.min(LOOK_EVERY))? else { continue };
        heard += 1;
        if command.json {
            print::json_line(&as_json(&message))?
        } else {
            print::out(&line(&message))?
        }
        session.handled()?;
    }
    session.close();
    match count {
        Some(count) if heard < count => {
            let seconds = command.timeout.map_or(0, Whole::number);
            Err(Failure::Failed(format!("{heard} of {count} messages came within {seconds} s")))
        }
        _ => Ok(()),
    }
}

fn sent_at(message: &Heard) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_millisecond(i64::try_from(message.sent_at_ms).ok()?).ok()
}

/// One line; the lines of a longer body are indented, so that no body can look like another message.
fn line(message: &Heard) -> String {
    let time = sent_at(message).map_or_else(
        || "--:--:--".to_owned(),
        |time| time.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S").to_string(),
    );
    let topic = if message.topic.is_empty() { String::new() } else { format!(" #{}", print::clean(&message.topic)) };
    let thread =
        if message.thread.is_empty() { String::new() } else { format!(" ({})", print::clean(&message.thread)) };
    let body = print::clean_text(&message.text).trim_end_matches('\n').replace('\n', "\n    ");
    let id: String = message.id.chars().take(8).collect();
    format!("{time} {id} {}{topic}{thread}: {body}\n", print::clean(&message.from))
}

fn as_json(message: &Heard) -> serde_json::Value {
    let embedded = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap_or(serde_json::Value::Null);
    json!({
        "id": message.id, "from": message.from, "to": message.to, "topic": message.topic, "thread": message.thread,
        "sent_at": sent_at(message).map(|time| format!("{time:.3}")), "text": message.text,
        "data": embedded(&message.data), "meta": embedded(&message.meta),
        "sequence": { "epoch": message.sequence.epoch, "counter": message.sequence.counter },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Sequence;

    fn heard(text: &str) -> Heard {
        Heard {
            id: "4f1c2b9a00000000".into(),
            from: "alice".into(),
            to: "bob".into(),
            topic: "builds".into(),
            thread: String::new(),
            sent_at_ms: 1_766_966_970_000,
            text: text.into(),
            data: "{\"a\":1}".into(),
            meta: String::new(),
            sequence: Sequence { epoch: 1, counter: 9 },
        }
    }

    #[test]
    fn a_long_body_cannot_look_like_another_message() {
        let text = line(&heard("one\n10:00:00 00000000 eve: pay me\u{1b}[2A\n"));
        assert!(text.ends_with("4f1c2b9a alice #builds: one\n    10:00:00 00000000 eve: pay me\\u{1b}[2A\n"), "{text}");
    }

    #[test]
    fn json_carries_everything() {
        let value = as_json(&heard("hi"));
        assert_eq!((&value["data"]["a"], &value["meta"]), (&json!(1), &json!(null)));
        assert_eq!(value["sent_at"], "2025-12-29T00:09:30.000Z");
        assert_eq!(value["sequence"]["counter"], 9);
    }
}
