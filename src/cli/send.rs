//! `relay send`: one message from a shell or a script, without a session: it never takes a name over.

use super::Failure;
use super::print;
use super::reach::Seconds;
use super::sharing::sharing;
use super::talk::{self, Letter, Stage};
use crate::base::limits::FRAME_BYTES_MAX;
use crate::base::name::{check_agent, check_topic};
use argh::{ArgsInfo, FromArgs};
use std::io::{IsTerminal, Read};
use std::time::Duration;

sharing! {
    [reach]
    /// Send one message and wait until it has got as far as --wait says.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "send",
        help_triggers("-h", "--help"),
        example = "relay send --from alice --to bob \"tests are green\"
relay send --from ci --to '#builds' --wait acknowledged < report.txt
relay send --from alice --to '*' -- --starts-with-a-dash",
        note = "Without a body, or with -, the body is standard input (one line break at its end is dropped). The sender's
name need not be connected."
    )]
    pub(super) struct Send {
        /// what to send
        #[argh(positional)]
        body: Option<String>,
        /// who it is from
        #[argh(option, arg_name = "name")]
        from: String,
        /// an agent's name, * for everybody, or #topic
        #[argh(option, arg_name = "name")]
        to: String,
        /// the conversation it belongs to
        #[argh(option, arg_name = "thread")]
        thread: Option<String>,
        /// how long it is worth delivering, such as 30s or 2h (default: as long as messages are kept)
        #[argh(option, arg_name = "time")]
        ttl: Option<String>,
        /// return when it is accepted, durable, delivered or acknowledged (default: accepted)
        #[argh(option, arg_name = "stage")]
        wait: Option<String>,
        /// seconds to wait for that (default: 30)
        #[argh(option, arg_name = "seconds", default = "Seconds::of(30)")]
        timeout: Seconds,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

pub(super) fn run(command: &Send) -> Result<(), Failure> {
    check_agent(command.from.as_bytes()).map_err(|error| Failure::Usage(format!("--from: {error}")))?;
    let (to, topic) = recipient(&command.to)?;
    let ttl_ms = command.ttl.as_deref().map_or(Ok(0), milliseconds)?;
    let wait = command.wait.as_deref().unwrap_or("accepted");
    let wait = Stage::of(wait).ok_or_else(|| {
        Failure::Usage(format!("--wait {wait}: it is one of accepted, durable, delivered, acknowledged"))
    })?;
    let text = match &command.body {
        Some(body) => body.clone(),
        None => standard_input()?,
    };
    let reach = command.reach()?;
    let thread = command.thread.as_deref().unwrap_or_default();
    let letter = Letter { from: &command.from, to, topic, thread, text: &text, ttl_ms };
    let fate = talk::submit(&reach, &letter, wait, Duration::from_secs(command.timeout.number()))?;
    if command.json {
        print::json(&fate.as_json())?;
    } else if fate.good {
        print::out(&format!("{} {}\n", fate.state, fate.id))?;
    }
    if fate.good {
        return Ok(());
    }
    eprintln!("relay: {}", print::clean(&fate.sentence(&command.to)));
    Err(Failure::Said)
}

fn recipient(to: &str) -> Result<(&str, &str), Failure> {
    if to == "*" {
        return Ok(("*", ""));
    }
    match to.strip_prefix('#') {
        Some(topic) => check_topic(topic.as_bytes()).map(|topic| ("*", topic)),
        None => check_agent(to.as_bytes()).map(|name| (name, "")),
    }
    .map_err(|error| Failure::Usage(format!("--to: {error}")))
}

fn milliseconds(text: &str) -> Result<u32, Failure> {
    let wrong = || Failure::Usage(format!("--ttl {text}: write a time such as 500ms, 30s, 2h or 1d, up to 7 days"));
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    let time = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    // 0 on the wire means "as long as retention", which nobody means who asks for a time.
    match u32::try_from(time.as_millis()) {
        Ok(ms) if ms > 0 && ms <= 7 * 24 * 3_600_000 => Ok(ms),
        _ => Err(wrong()),
    }
}

fn standard_input() -> Result<String, Failure> {
    let input = std::io::stdin();
    if input.is_terminal() {
        eprintln!("type the message; end it with Ctrl-D");
    }
    let mut bytes = Vec::new();
    input
        .lock()
        .take(FRAME_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::Failed(format!("cannot read standard input: {error}")))?;
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(Failure::Failed("the body is longer than 1 MiB; send a path to it instead".to_owned()));
    }
    let mut text = String::from_utf8(bytes)
        .map_err(|_| Failure::Failed("the body is not valid UTF-8; encode it (base64) first".to_owned()))?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipient_is_a_name_everybody_or_a_topic() {
        assert_eq!(recipient("bob").unwrap(), ("bob", ""));
        assert_eq!(recipient("*").unwrap(), ("*", ""));
        assert_eq!(recipient("#builds").unwrap(), ("*", "builds"));
        assert!(recipient("a/b").is_err() && recipient("#").is_err() && recipient("").is_err());
    }

    #[test]
    fn a_time_to_live_is_written_as_people_write_times() {
        assert_eq!(milliseconds("30s").unwrap(), 30_000);
        assert_eq!(milliseconds("1d").unwrap(), 86_400_000);
        assert_eq!(milliseconds("500ms").unwrap(), 500);
        for wrong in ["", "soon", "0s", "-5s", "30d", "100y"] {
            assert!(milliseconds(wrong).is_err(), "{wrong}");
        }
    }
}
