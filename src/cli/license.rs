//! `relay license`: what this machine's licence is, and how it is activated. Works without a daemon; one that runs is told.

use super::Failure;
use super::print::{self, Style, cell};
use super::sharing::sharing;
use super::talk::Reach;
use crate::client;
use crate::daemon::licence_desk::{self, Desk, DeskPlace};
use crate::daemon::paths::{Environment, Place};
use crate::daemon::settings::{Flags, Settings, UNLIMITED};
use crate::licence::{DOCUMENT_BYTES_MAX, DocumentError, Given, LicenceKey, PublicKey, Reading, Signed, Standing};
use crate::wire::QueryKind;
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;
use zeroize::Zeroizing;

/// What `activate` is missing.
const NEEDED: &str = "`relay license activate` needs a licence key, or the file of an offline licence";
/// What is said when an activation changes nothing.
const STAYS: &str = "the licence of before stays";
/// How long a daemon may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the licence server may take to confirm what is activated.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(10);

sharing! {
    [place]
    /// Show the licence and what it allows, activate one, or forget it.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "license",
        help_triggers("-h", "--help"),
        example = "relay license show
relay license activate ar_pro_a1b2c3d4e5f6g7h8_1ht9
relay license activate ./offline.licence
relay license deactivate",
        note = "A licence is this machine's, not a project's. A running relay takes it over at once, and nobody is disconnected
whatever it says. docs/TIERS.md tells what each tier has."
    )]
    pub(super) struct License {
        /// show (also when nothing is said), activate with a licence key or the file of an offline licence, deactivate
        #[argh(positional, arg_name = "action")]
        action: Vec<String>,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

pub(super) fn run(command: &License) -> Result<(), Failure> {
    let words: Vec<&str> = command.action.iter().map(String::as_str).collect();
    match words[..] {
        ["activate", licence] if licence.trim().is_empty() => Err(Failure::usage(NEEDED)),
        [] | ["show"] => show(command),
        ["activate", licence] => activate(command, licence),
        ["activate"] => Err(Failure::usage(NEEDED)),
        ["deactivate"] => deactivate(command),
        [known @ ("show" | "activate" | "deactivate"), ..] => {
            Err(Failure::usage(format!("`relay license {known}` takes no more than that")))
        }
        [other, ..] => {
            Err(Failure::usage(format!("`relay license` knows show, activate and deactivate, not \"{other}\"")))
        }
    }
}

fn show(command: &License) -> Result<(), Failure> {
    let reach = reach(command)?;
    let now = licence_desk::reading();
    let shown = match ask_daemon(&reach, "show")? {
        // Settings that cannot be read here are no reason not to tell what the relay says.
        Some(shown) => match desk(command) {
            Ok(own) => compared(shown, &own.show(now)),
            Err(_) => shown,
        },
        None => desk(command)?.show(now),
    };
    tell(command, &shown)
}

/// What the daemon says, with a note if another licence lies in this environment.
fn compared(mut shown: Value, own: &Value) -> Value {
    let differs = ["from_environment", "kind", "key"].iter().any(|name| shown[*name] != own[*name]);
    // A key's number is not known before it is confirmed.
    let differs = differs || (own["kind"] == "document" && shown["serial"] != own["serial"]);
    if own["from_environment"] == true && differs {
        shown["note"] = json!(
            "AGENT_RELAY_LICENSE_KEY is another licence here; what counts is the running relay's own, shown above"
        );
    }
    shown
}

fn activate(command: &License, licence: &str) -> Result<(), Failure> {
    let text = text_of(licence)?;
    let now = licence_desk::reading();
    let mut desk = desk(command)?;
    if let Given::Unusable(reason) = Given::parse(&text, PublicKey::of_build()) {
        return Err(Failure::Failed(reason));
    }
    let trial = desk.trial(&text, now, CONFIRM_PATIENCE);
    let now = licence_desk::reading();
    accept(&trial, &desk.activated(now), now).map_err(Failure::Failed)?;
    desk.activate(&text, now).map_err(Failure::Failed)?;
    trial.save_machine(now).map_err(|error| {
        Failure::Failed(format!("the licence is activated, but what is known of it could not be written: {error}"))
    })?;
    desk.reload(now);
    if trial.holder().standing(now) == Standing::Pending {
        eprintln!(
            "relay: the licence is activated but not confirmed, because {}; until it is, the community tier counts",
            print::clean(&trial.holder().why_unasked())
        );
    }
    let told = tell_daemon(command)?;
    tell(command, &told.unwrap_or_else(|| desk.show(now)))
}

/// Whether what was tried may take the place of what is there: nothing that grants is given up for something that does not.
fn accept(trial: &Desk, before: &Desk, now: Reading) -> Result<(), String> {
    let holder = trial.holder();
    let standing = holder.standing(now);
    let stays = match before.holder().given() {
        Given::Nothing => "nothing was activated",
        _ => STAYS,
    };
    let reason = match standing {
        Standing::Revoked => "this licence was revoked; ask whoever sold it to you".to_owned(),
        Standing::NotIssued => "the licence server does not know this key; check that it is your newest one".to_owned(),
        _ if standing.grants() || !before.holder().standing(now).grants() => return Ok(()),
        Standing::Pending => {
            format!("this key cannot be confirmed now, because {}; try again when it can", holder.why_unasked())
        }
        _ => holder.sentence(now),
    };
    Err(format!("{reason}; {stays}"))
}

fn deactivate(command: &License) -> Result<(), Failure> {
    let mut desk = desk(command)?;
    let now = licence_desk::reading();
    let was_there = desk.deactivate(now).map_err(Failure::Failed)?;
    let told = tell_daemon(command)?;
    if !was_there && !command.json {
        print::out("no licence was activated\n")?;
    }
    tell(command, &told.unwrap_or_else(|| desk.show(now)))
}

fn reach(command: &License) -> Result<Reach, Failure> {
    Reach::of(command.data_dir.as_deref(), command.socket.as_deref(), command.global)
}

/// The licence as the files have it. Settings are read as the daemon reads them: they name the server.
fn desk(command: &License) -> Result<Desk, Failure> {
    let place = Place { data_dir: command.data_dir.clone(), socket: command.socket.clone(), global: command.global };
    let flags = Flags { place, ..Flags::default() };
    let settings = Settings::read(&flags, &Environment::of_process()).map_err(Failure::failed)?;
    Ok(Desk::open(DeskPlace::of(&settings), licence_desk::reading()))
}

/// Asks the daemon, if one is running.
fn ask(reach: &Reach, kind: QueryKind, arguments: &Value) -> Result<Option<Value>, Failure> {
    match client::ask(reach.address(), kind, &arguments.to_string(), ASK_TIMEOUT) {
        Ok(answer) => serde_json::from_slice(&answer).map(Some).map_err(Failure::failed),
        Err(client::Error::NoDaemon(_)) => Ok(None),
        Err(other) => Err(reach.explain(other)),
    }
}

/// The daemon of this place reads the licence anew; those of other projects do within a
/// minute.
fn tell_daemon(command: &License) -> Result<Option<Value>, Failure> {
    ask_daemon(&reach(command)?, "reload")
}

/// What the daemon says of its licence, if one is running.
fn ask_daemon(reach: &Reach, op: &str) -> Result<Option<Value>, Failure> {
    let Some(mut shown) = ask(reach, QueryKind::License, &json!({ "op": op }))? else { return Ok(None) };
    // Only the daemon knows who is there and what it keeps.
    if let Some(status) = ask(reach, QueryKind::Status, &json!({}))? {
        shown["agents"] = status["agents"]["connected"].clone();
        shown["retention_days"] = status["store"]["retention_days"].clone();
    }
    Ok(Some(shown))
}

/// What was given: the text itself, or that of the file it names.
fn text_of(licence: &str) -> Result<Zeroizing<String>, Failure> {
    let path = Path::new(licence);
    let as_key = LicenceKey::parse(licence);
    if as_key.is_ok() || !path.exists() {
        // A document is far longer than any path that anybody mistypes.
        return match as_key.err() {
            Some(error) if is_like_key(licence) => Err(Failure::failed(error)),
            Some(_) if licence.len() < 200 => {
                Err(Failure::Failed(format!("there is no file {licence}, and it is no licence key")))
            }
            _ => Ok(Zeroizing::new(licence.to_owned())),
        };
    }
    // A link is followed here: the operator named it.
    let whole = path.canonicalize().map_err(Failure::failed)?;
    let text = licence_desk::read(&whole, DOCUMENT_BYTES_MAX)
        .map_err(|error| Failure::Failed(format!("{licence} cannot be read: {error}")))?;
    if text.trim().is_empty() {
        return Err(Failure::Failed(format!("{licence} is empty: it holds no licence; {STAYS}")));
    }
    let is_whole = if Signed::is_like(&text) {
        !matches!(Signed::open(&text, PublicKey::of_build()), Err(DocumentError::Shape))
    } else {
        is_like_key(&text)
    };
    if !is_whole {
        return Err(Failure::Failed(format!(
            "{licence} holds neither a licence key nor a whole licence document (it may be cut off); copy the file again"
        )));
    }
    Ok(text)
}

/// Whether a text is meant to be a key, mistyped or not.
fn is_like_key(text: &str) -> bool {
    text.trim().get(..3).is_some_and(|beginning| beginning.eq_ignore_ascii_case("ar_"))
}

fn tell(command: &License, shown: &Value) -> Result<(), Failure> {
    if command.json {
        return print::json(shown);
    }
    print::out(&summary(shown, Style::of_output()))
}

fn summary(shown: &Value, style: Style) -> String {
    let limits = &shown["limits"];
    let most = |limit: &Value| limit.as_u64().map_or_else(|| UNLIMITED.to_owned(), |limit| limit.to_string());
    let days = |days: &Value| match days.as_u64() {
        // How the settings write a time without end.
        Some(days) if days < u64::from(crate::daemon::settings::DAYS_MAX) => print::count(days, "day"),
        _ => UNLIMITED.to_owned(),
    };
    let expires = shown["valid_until"]
        .as_str()
        .map_or_else(|| "-".to_owned(), |time| print::clean(&time[..time.len().min(10)]).into_owned());
    let retention = if shown["retention_days"].is_null() {
        format!("up to {}", days(&limits["retentionDays"]))
    } else {
        days(&shown["retention_days"])
    };
    let mut text = format!(
        "License: {}  Expires: {expires}  Agents: {}/{}  Messages today: {}  Retention: {retention}  Webhooks: {} active\n",
        cell(&shown["title"]),
        cell(&shown["agents"]),
        most(&limits["maxAgents"]),
        grouped(shown["today"]["messages_sent"].as_u64().unwrap_or(0)),
        shown["webhooks"].as_u64().unwrap_or(0),
    );
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    line("state", format!("{}: {}", cell(&shown["state"]), cell(&shown["sentence"])));
    if !shown["key"].is_null() {
        line("key", cell(&shown["key"]));
    }
    if shown["from_environment"] == true {
        line("given", "by AGENT_RELAY_LICENSE_KEY, which goes before an activated licence".to_owned());
    }
    let server = if shown["offline"] == true {
        "never asked: an offline licence".to_owned()
    } else {
        format!(
            "{}, usage is {}",
            cell(&shown["server"]),
            if shown["telemetry"] == true { "reported" } else { "not reported" }
        )
    };
    line("server", server);
    let rate = limits["maxMessagesPerSecond"].as_u64();
    line("messages", rate.map_or_else(|| "no limit".to_owned(), |rate| format!("at most {rate} per second")));
    if !shown["note"].is_null() {
        line("note", style.coloured(33, &cell(&shown["note"])));
    }
    if shown["evaluation_build"] == true {
        line("build", style.coloured(33, "evaluation build: it believes licences that anybody can make"));
    }
    let sentence = &shown["sentence"];
    let warnings = shown["warnings"].as_array().map_or(&[][..], Vec::as_slice);
    for warning in warnings.iter().filter(|warning| *warning != sentence) {
        line("warning", style.coloured(33, &cell(warning)));
    }
    let rows: Vec<Vec<String>> = shown["usage"]
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .map(|day| {
            vec![cell(&day["date"]), cell(&day["agents_peak"]), grouped(day["messages_sent"].as_u64().unwrap_or(0))]
        })
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text += &style.table(&["DAY", "AGENTS PEAK", "MESSAGES SENT"], rows);
    }
    text
}

/// A number with its thousands apart: 12,847.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_thousands_apart() {
        assert_eq!(
            [0, 12, 999, 1_000, 12_847, 1_234_567].map(grouped),
            ["0", "12", "999", "1,000", "12,847", "1,234,567"]
        );
    }

    #[test]
    fn another_licence_in_this_environment_is_noted() {
        let daemons = json!({ "from_environment": false, "kind": "key", "key": "ar_pro_a1b2…", "serial": 3 });
        let note = |own: Value| compared(daemons.clone(), &own)["note"].is_string();
        assert!(!note(json!({ "from_environment": false, "kind": "key", "key": "ar_team_a1b2…" })));
        assert!(note(json!({ "from_environment": true, "kind": "document", "key": null, "serial": 4 })));
        let same = json!({ "from_environment": true, "kind": "key", "key": "ar_pro_a1b2…", "serial": 3 });
        assert!(!compared(same.clone(), &same)["note"].is_string() && note(same));
    }

    #[test]
    fn the_panel_is_the_products_and_a_limit_without_end_says_so() {
        let shown = json!({
            "title": "Pro", "valid_until": "2026-01-15T00:00:00.000Z", "agents": 47, "retention_days": 30,
            "limits": { "maxAgents": 100, "maxMessagesPerSecond": null, "retentionDays": 90 },
            "today": { "messages_sent": 12_847 }, "webhooks": 3, "state": "good", "sentence": "a Pro licence",
            "key": "ar_pro_a1b2…", "server": "https://licence.example", "warnings": ["the clock was set back"],
            "usage": [{ "date": "2026-01-01", "agents_peak": 47, "messages_sent": 12_847 }],
        });
        assert_eq!(
            summary(&shown, Style::plain()),
            "License: Pro  Expires: 2026-01-15  Agents: 47/100  Messages today: 12,847  Retention: 30 days  Webhooks: 3 active\n\
             state     good: a Pro licence\n\
             key       ar_pro_a1b2…\n\
             server    https://licence.example, usage is not reported\n\
             messages  no limit\n\
             warning   the clock was set back\n\
             \n\
             DAY         AGENTS PEAK  MESSAGES SENT\n\
             2026-01-01  47           12,847\n"
        );
    }
}
