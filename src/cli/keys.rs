//! `relay keys`: API keys, made, listed and taken back by the running daemon. A new secret is the only thing on standard
//! output, so that a script can keep it; everything else about it goes to standard error.

use super::Failure;
use super::keys_log;
use super::print::{self, Style, ago, cell};
use super::reach::Reach;
use super::sharing::sharing;
use super::talk;
use crate::base::Whole;
use crate::base::keys::{PER_MINUTE_MAX, Scopes, TOKEN_LIFE_MS};
use crate::wire::QueryKind;
use argh::{ArgsInfo, FromArgs};
use serde_json::{Map, Value, json};

/// Make, list, revoke and rotate API keys, what agents present where the relay asks who they are (Pro tier), and see what became of them.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "keys",
    help_triggers("-h", "--help"),
    example = "relay keys create --name build --agents build-1,build-2 --expires 90d
relay keys list
relay keys rotate 3f2a --overlap 1h
relay keys log --since 7d",
    note = "`relay keys COMMAND --help` says more about each."
)]
pub(super) struct Keys {
    #[argh(subcommand)]
    command: KeysCommand,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum KeysCommand {
    List(List),
    Create(Create),
    Revoke(Revoke),
    Rotate(Rotate),
    Token(Token),
    Log(keys_log::Log),
}

sharing! {
    [reach]
    /// List the API keys, newest first. Secrets are not kept, so none is shown.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "list",
        help_triggers("-h", "--help"),
        example = "relay keys list
relay keys list --all --json | jq '.keys[] | select(.lastUsedAt == null)'"
    )]
    struct List {
        /// revoked keys as well; they are remembered for 90 days
        #[argh(switch)]
        all: bool,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

sharing! {
    [reach]
    /// Make an API key. It is printed once, on standard output, and kept nowhere.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "create",
        help_triggers("-h", "--help"),
        example = "relay keys create --name build --scopes send,receive --agents build-1,build-2 --expires 90d
relay keys create --name monitor --scopes receive > monitor.key"
    )]
    struct Create {
        /// what to call it
        #[argh(option, arg_name = "name")]
        name: String,
        /// what it is for
        #[argh(option, arg_name = "text")]
        description: Option<String>,
        /// what it may do, of send, receive and admin (default: send,receive)
        #[argh(option, arg_name = "list")]
        scopes: Option<String>,
        /// the agents it may speak for (default: any)
        #[argh(option, arg_name = "list")]
        agents: Option<String>,
        /// when it ends by itself: 12h, 30d (default: never)
        #[argh(option, arg_name = "time")]
        expires: Option<String>,
        /// messages per minute, over all its connections (default: 1000)
        #[argh(option, arg_name = "N")]
        rate: Option<Whole<1, PER_MINUTE_MAX>>,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

sharing! {
    [reach]
    /// Take an API key back for good. Connections that use it are closed within a second.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(subcommand, name = "revoke", help_triggers("-h", "--help"), example = "relay keys revoke 3f2a")]
    struct Revoke {
        /// its id, or the beginning of it
        #[argh(positional)]
        id: String,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

sharing! {
    [reach]
    /// Give an API key a new secret, printed once; the old one lives on for a while, so that nobody is cut off.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "rotate",
        help_triggers("-h", "--help"),
        example = "relay keys rotate 3f2a --overlap 1h
relay keys rotate 3f2a --overlap 0 > build.key"
    )]
    struct Rotate {
        /// its id, or the beginning of it
        #[argh(positional)]
        id: String,
        /// how long the old secret lives on: 0, 90s, 24h, up to 30d (default: 24h)
        #[argh(option, arg_name = "time")]
        overlap: Option<String>,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

sharing! {
    [reach]
    /// Make an access token that speaks for an API key for a few minutes, printed on standard output.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "token",
        help_triggers("-h", "--help"),
        example = "relay keys token 3f2a --minutes 5",
        note = "A token is not kept and cannot be taken back by itself: it ends with its time, or with its key."
    )]
    struct Token {
        /// the key's id, or the beginning of it
        #[argh(positional)]
        id: String,
        /// how long it lives, at most 15 (default: 15)
        #[argh(option, arg_name = "N")]
        minutes: Option<Whole<1, { TOKEN_LIFE_MS / 60_000 }>>,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

pub(super) fn run(command: &Keys) -> Result<(), Failure> {
    match &command.command {
        KeysCommand::List(command) => list(command),
        KeysCommand::Create(command) => create(command),
        KeysCommand::Revoke(command) => revoke(command),
        KeysCommand::Rotate(command) => rotate(command),
        KeysCommand::Token(command) => token(command),
        KeysCommand::Log(command) => keys_log::run(command),
    }
}

pub(super) fn ask(
    reach: Result<Reach, Failure>,
    op: &str,
    mut arguments: Map<String, Value>,
) -> Result<Value, Failure> {
    arguments.insert("op".to_owned(), op.into());
    talk::ask(&reach?, QueryKind::Keys, &Value::Object(arguments))
}

/// Members that were said.
fn members<const N: usize>(members: [(&str, Option<Value>); N]) -> Map<String, Value> {
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn list(command: &List) -> Result<(), Failure> {
    let mut answer = ask(command.reach(), "list", members([("all", Some(json!(command.all)))]))?;
    if command.json {
        return print::json(&answer);
    }
    let Value::Array(keys) = answer["keys"].take() else {
        return Err(Failure::Failed("the relay's answer has no list of keys; is it another version?".to_owned()));
    };
    if keys.is_empty() {
        return print::out("there are no API keys; make one with `relay keys create --name NAME`\n");
    }
    let head = ["ID", "KEY", "NAME", "SCOPES", "AGENTS", "RATE", "CREATED", "USED", "MESSAGES", "EXPIRES", "STATE"];
    let now = jiff::Timestamp::now();
    print::out(&Style::of_output().table(&head, keys.iter().map(|key| row(key, now)).collect()))
}

fn row(key: &Value, now: jiff::Timestamp) -> Vec<String> {
    let agents = if key["allowedAgents"].is_null() { "any".to_owned() } else { cell(&key["allowedAgents"]) };
    vec![
        // Enough of it for `revoke` and `rotate`, unless there are very many.
        cell(&key["id"]).chars().take(8).collect(),
        format!("{}…", cell(&key["keyPrefix"])),
        cell(&key["name"]),
        cell(&key["scopes"]),
        agents,
        format!("{}/min", cell(&key["rateLimitPerMinute"])),
        ago(&key["createdAt"]),
        ago(&key["lastUsedAt"]),
        cell(&key["totalMessages"]),
        day(&key["expiresAt"]),
        state(key, now).to_owned(),
    ]
}

/// To the minute: an end is not a matter of seconds.
fn day(time: &Value) -> String {
    match time.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()) {
        Some(time) => time.strftime("%Y-%m-%d %H:%MZ").to_string(),
        None => "-".to_owned(),
    }
}

fn state(key: &Value, now: jiff::Timestamp) -> &'static str {
    let is_over = |time: &Value| {
        time.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()).is_some_and(|time| time <= now)
    };
    if !key["revokedAt"].is_null() {
        "revoked"
    } else if is_over(&key["expiresAt"]) {
        "expired"
    } else if key["previousUntil"].is_string() {
        "rotating"
    } else {
        "good"
    }
}

fn create(command: &Create) -> Result<(), Failure> {
    if let Some(scopes) = &command.scopes
        && let Some(unknown) = scopes.split(',').map(str::trim).find(|name| Scopes::of(name).is_none())
    {
        return Err(Failure::Usage(format!("--scopes: {unknown:?} is no scope; they are send, receive and admin")));
    }
    let arguments = members([
        ("name", Some(json!(command.name))),
        ("description", command.description.as_ref().map(|text| json!(text))),
        ("scopes", command.scopes.as_deref().map(words)),
        ("agents", command.agents.as_deref().map(words)),
        ("expires_ms", command.expires.as_deref().map(|text| time_ms("--expires", text)).transpose()?),
        ("rate", command.rate.map(|rate| json!(rate.number()))),
    ]);
    show_secret(&ask(command.reach(), "create", arguments)?, command.json)
}

fn revoke(command: &Revoke) -> Result<(), Failure> {
    let answer = ask(command.reach(), "revoke", members([("id", Some(json!(command.id)))]))?;
    if command.json {
        return print::json(&answer);
    }
    print::out(&format!("revoked: {} ({})\n", cell(&answer["name"]), cell(&answer["id"])))
}

fn rotate(command: &Rotate) -> Result<(), Failure> {
    let overlap = command.overlap.as_deref().map(|text| time_ms("--overlap", text)).transpose()?;
    let answer = ask(command.reach(), "rotate", members([("id", Some(json!(command.id))), ("overlap_ms", overlap)]))?;
    show_secret(&answer, command.json)
}

fn token(command: &Token) -> Result<(), Failure> {
    let minutes = command.minutes.map(|minutes| json!(minutes.number()));
    let answer = ask(command.reach(), "token", members([("id", Some(json!(command.id))), ("minutes", minutes)]))?;
    if command.json {
        return print::json(&answer);
    }
    eprintln!("good until {}", cell(&answer["expiresAt"]));
    print::out(&format!("{}\n", cell(&answer["token"])))
}

/// The secret alone on standard output; what is said about it goes elsewhere.
fn show_secret(answer: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return print::json(answer);
    }
    eprintln!("API key {} ({}). {}", cell(&answer["name"]), cell(&answer["id"]), cell(&answer["message"]));
    if answer["previousUntil"].is_string() {
        eprintln!("The key before it is good until {}.", day(&answer["previousUntil"]));
    }
    print::out(&format!("{}\n", cell(&answer["key"])))
}

/// What stands between commas.
fn words(text: &str) -> Value {
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect()
}

/// A span of time in milliseconds: `90s`, `24h`, `30d`, `4w`, `0`.
fn time_ms(flag: &str, text: &str) -> Result<Value, Failure> {
    const DAYS_MAX: f64 = 36_500.0;
    let span = || -> Option<f64> {
        if text == "0" {
            return Some(0.0);
        }
        let span: jiff::Span = text.parse().ok()?;
        span.total((jiff::Unit::Millisecond, jiff::SpanRelativeTo::days_are_24_hours())).ok()
    };
    match span() {
        Some(ms) if (0.0..=DAYS_MAX * 86_400_000.0).contains(&ms) => Ok(json!(ms as u64)),
        Some(ms) if ms > 0.0 => {
            Err(Failure::Usage(format!("{flag}: {text} is too long; it is at most {DAYS_MAX:.0}d")))
        }
        _ => Err(Failure::Usage(format!("{flag}: {text:?} is no time; say 90s, 12h, 30d or 4w"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spans_and_zero() {
        for (text, ms) in
            [("0", 0), ("90s", 90_000), ("24h", 86_400_000), ("30d", 2_592_000_000u64), ("1w", 604_800_000)]
        {
            assert_eq!(time_ms("--expires", text).unwrap(), json!(ms), "{text}");
        }
        let refusal = |text| match time_ms("--expires", text) {
            Err(Failure::Usage(refusal)) => refusal,
            other => panic!("{text}: {other:?}"),
        };
        for text in ["", "30", "-1d", "tomorrow", "200y"] {
            assert!(refusal(text).contains("is no time"), "{text}");
        }
        assert!(refusal("100000d").starts_with("--expires: 100000d is too long"));
    }

    #[test]
    fn a_row_shows_what_a_key_is_and_no_hostile_name_can_drive_a_terminal() {
        let now: jiff::Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let key = |members: Value| {
            let mut key = json!({
                "id": "3f2a91c0-0000-4000-8000-000000000000", "keyPrefix": "ar_key_AbCdEfGh", "name": "eve\u{1b}[2J",
                "scopes": ["send", "receive"], "allowedAgents": null, "rateLimitPerMinute": 1000, "createdAt": null,
                "lastUsedAt": null, "totalMessages": 7, "expiresAt": null, "revokedAt": null, "previousUntil": null,
            });
            key.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
            row(&key, now)
        };
        let plain = key(json!({}));
        assert_eq!(
            plain,
            [
                "3f2a91c0",
                "ar_key_AbCdEfGh…",
                "eve\\u{1b}[2J",
                "send, receive",
                "any",
                "1000/min",
                "-",
                "-",
                "7",
                "-",
                "good"
            ]
        );
        let last = |members: Value| key(members).pop().unwrap();
        assert_eq!(last(json!({ "expiresAt": "2026-11-21T10:00:00Z" })), "expired");
        assert_eq!(last(json!({ "expiresAt": "2026-11-21T10:00:01Z" })), "good");
        assert_eq!(last(json!({ "revokedAt": "2026-11-21T09:00:00Z" })), "revoked");
        assert_eq!(last(json!({ "previousUntil": "2026-11-22T09:00:00Z" })), "rotating");
        assert_eq!(key(json!({ "expiresAt": "2026-11-22T09:30:00.000Z" }))[9], "2026-11-22 09:30Z");
    }

    #[test]
    fn lists_stand_between_commas() {
        assert_eq!(words("send, receive,"), json!(["send", "receive"]));
    }
}
