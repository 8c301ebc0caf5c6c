//! The command line of `relay-license`. Exits 0, 1 on a failure it names, 2 on bad usage, as `relay` does.

use super::registry::{Licence, Registry, RegistryError};
use super::service;
use crate::base::Whole;
use crate::base::tier::{Entitlement, Feature, Tier};
use crate::base::whole::{EXPECTED, refusal};
use crate::http::{Bounds, Server};
use crate::licence::{Document, KeyHash, LicenceKey, LimitTerms, SigningKey, date};
use argh::FromArgs;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use zeroize::Zeroizing;

/// The longest licence that is issued, and the longest retention with a number: 100 years.
const DAYS_MAX: u32 = 36_500;
const DAY_MS: u64 = 24 * 3_600_000;

/// The vendor's side of relay's licences: make a signing key, issue and revoke licences, serve them to daemons.
#[derive(FromArgs)]
#[argh(
    name = "relay-license",
    help_triggers("-h", "--help"),
    example = "relay-license keygen --output vendor.key
relay-license issue --tier pro --days 365 --db registry
relay-license serve --listen 127.0.0.1:8443 --db registry --signing-key vendor.key",
    note = "Daemons believe the key that they were built with (RELAY_VENDOR_PUBLIC_KEY, which `keygen` prints).
`relay-license COMMAND --help` says more about each.",
    error_code(0, "done"),
    error_code(1, "it failed, and says why"),
    error_code(2, "the command line was wrong")
)]
struct Tool {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Keygen(Keygen),
    Issue(Issue),
    Revoke(Revoke),
    List(List),
    Serve(Serve),
}

/// Make a signing key in a new file that only you can read, and print its public half.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "keygen",
    help_triggers("-h", "--help"),
    example = "relay-license keygen --output vendor.key
RELAY_VENDOR_PUBLIC_KEY=… cargo build --release"
)]
struct Keygen {
    /// the file to make; one that exists is never overwritten
    #[argh(option, arg_name = "file")]
    output: PathBuf,
}

/// Issue a licence: prints its key once, or with --offline writes its signed document.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "issue",
    help_triggers("-h", "--help"),
    example = "relay-license issue --tier team --days 365 --agents 800 --db registry
relay-license issue --tier enterprise --days 365 --offline --signing-key vendor.key --db registry --output acme.licence"
)]
struct Issue {
    /// pro, team or enterprise
    #[argh(option, arg_name = "tier")]
    tier: String,
    /// how many days it is good for
    #[argh(option, arg_name = "days")]
    days: Whole<1, { DAYS_MAX as u64 }>,
    /// a document that stands alone: no server is ever asked (enterprise only)
    #[argh(switch)]
    offline: bool,
    /// agents at once, or unlimited, instead of the tier's
    #[argh(option, arg_name = "number")]
    agents: Option<String>,
    /// messages per second, or unlimited, instead of the tier's
    #[argh(option, arg_name = "number")]
    rate: Option<String>,
    /// days of retention, or unlimited, instead of the tier's
    #[argh(option, arg_name = "days")]
    retention: Option<String>,
    /// the vendor's signing key; an offline licence needs it
    #[argh(option, arg_name = "file")]
    signing_key: Option<PathBuf>,
    /// the registry's folder
    #[argh(option, arg_name = "directory")]
    db: PathBuf,
    /// where the offline licence is written; without it, it is printed
    #[argh(option, arg_name = "file")]
    output: Option<PathBuf>,
}

/// Take a licence back: daemons learn of it within a day. An offline licence is only marked, since nobody is asked about it.
#[derive(FromArgs)]
#[argh(subcommand, name = "revoke", help_triggers("-h", "--help"), example = "relay-license revoke 17 --db registry")]
struct Revoke {
    /// the licence's number, or its key
    #[argh(positional, arg_name = "number")]
    which: String,
    /// the registry's folder
    #[argh(option, arg_name = "directory")]
    db: PathBuf,
}

/// List the licences, and the usage that their daemons reported.
#[derive(FromArgs)]
#[argh(subcommand, name = "list", help_triggers("-h", "--help"), example = "relay-license list --db registry --json")]
struct List {
    /// the registry's folder
    #[argh(option, arg_name = "directory")]
    db: PathBuf,
    /// print one JSON value
    #[argh(switch)]
    json: bool,
}

/// Answer daemons until SIGTERM or SIGINT.
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "serve",
    help_triggers("-h", "--help"),
    example = "relay-license serve --listen 127.0.0.1:8443 --db registry --signing-key vendor.key",
    note = "Plain HTTP: put it behind whatever ends TLS for you. POST /v1/license, POST /v1/usage, GET /healthz."
)]
struct Serve {
    /// the address; port 0 lets the kernel choose
    #[argh(option, arg_name = "address", from_str_fn(address))]
    listen: SocketAddr,
    /// the registry's folder
    #[argh(option, arg_name = "directory")]
    db: PathBuf,
    /// the vendor's signing key
    #[argh(option, arg_name = "file")]
    signing_key: PathBuf,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{EXPECTED}an address with a port, such as 127.0.0.1:8443"))
}

/// Why a command ends other than well.
enum Failure {
    Usage(String),
    Failed(String),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        failed(error)
    }
}

fn failed(reason: impl Display) -> Failure {
    Failure::Failed(reason.to_string())
}

/// The whole program.
pub fn main() -> ExitCode {
    let arguments: Option<Vec<String>> = std::env::args_os().skip(1).map(|one| one.into_string().ok()).collect();
    let end = match &arguments {
        Some(arguments) => run(arguments),
        None => Err(Failure::Usage("an argument is not valid UTF-8".to_owned())),
    };
    let (reason, code) = match end {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(reason)) => (reason, 1),
        Err(Failure::Usage(reason)) => (reason, 2),
    };
    eprintln!("relay-license: {reason}");
    ExitCode::from(code)
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    if let Some("--version" | "-V") = arguments.first().map(String::as_str) {
        return say(&format!("relay-license {}", env!("CARGO_PKG_VERSION")));
    }
    let borrowed: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let tool = match Tool::from_args(&["relay-license"], &borrowed) {
        Ok(tool) => tool,
        Err(early) if early.status.is_ok() => return say(early.output.trim_end()),
        Err(early) => {
            let reason = refusal(&early.output).unwrap_or_else(|| early.output.trim_end().to_owned());
            return Err(Failure::Usage(format!("{reason}\nRun `relay-license --help` for more.")));
        }
    };
    match tool.command {
        Command::Keygen(command) => keygen(&command),
        Command::Issue(command) => issue(&command),
        Command::Revoke(command) => revoke(&command),
        Command::List(command) => list(&command),
        Command::Serve(command) => serve(&command),
    }
}

/// Whoever reads our output may go away: that is no failure.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(failed(format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

fn keygen(command: &Keygen) -> Result<(), Failure> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|error| failed(format!("the kernel gives no random bytes: {error}")))?;
    let key = SigningKey::from_random(*seed);
    write_new(&command.output, key.to_text().as_bytes())?;
    say(&format!(
        "signing key written to {}\nBuild the daemon with RELAY_VENDOR_PUBLIC_KEY={}",
        command.output.display(),
        key.public()
    ))
}

fn issue(command: &Issue) -> Result<(), Failure> {
    let tier = Tier::of(&command.tier).filter(|tier| *tier != Tier::Community);
    let tier =
        tier.ok_or_else(|| Failure::Usage(format!("--tier \"{}\" is none of pro, team, enterprise", command.tier)))?;
    let limits = limits(command, tier)?;
    let signing = match (command.offline, &command.signing_key) {
        (true, _) if Entitlement::of_tier(tier).require(Feature::OfflineLicense).is_err() => {
            return Err(Failure::Usage(
                "--offline is for the enterprise tier: other daemons would refuse it".to_owned(),
            ));
        }
        (true, None) => return Err(Failure::Usage("--offline needs --signing-key".to_owned())),
        (false, _) if command.output.is_some() => {
            return Err(Failure::Usage("--output is for --offline; a key is printed".to_owned()));
        }
        (true, Some(path)) => Some(signing_key(path)?),
        (false, _) => None,
    };
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| failed(format!("the kernel gives no random bytes: {error}")))?;
    let key = LicenceKey::from_random(tier, u128::from_be_bytes(random)).expect("a tier that is sold has keys");
    let now_ms = now_ms();
    let mut licence = Licence {
        serial: 0,
        key_hash: key.hash().to_string(),
        key: key.shown(),
        tier: tier.name().to_owned(),
        valid_until_ms: now_ms + command.days.number() * DAY_MS,
        offline: command.offline,
        limits,
        issued_at_ms: now_ms,
        revoked_at_ms: None,
    };
    // Before anything is registered: a licence that cannot be handed over is none.
    let output = command.output.as_deref().map(|path| open_new(path).map(|file| (path, file))).transpose()?;
    let registered = Registry::open(&command.db).and_then(|registry| registry.issue(&mut licence, key.hash()));
    if let Err(error) = registered {
        if let Some((path, _)) = output {
            let _ = fs::remove_file(path);
        }
        return Err(error.into());
    }
    let Some(signing) = signing else { return say(key.reveal()) };
    let document = licence.document(key.hash(), now_ms, "");
    let text = Document { offline: true, ..document }.sign(&signing);
    match output {
        None => say(&text),
        Some((path, file)) => {
            write_all(file, text.as_bytes()).map_err(|error| {
                failed(format!(
                    "{} cannot be written: {error}; `relay-license revoke {}` takes the licence back",
                    path.display(),
                    licence.serial
                ))
            })?;
            say(&format!("offline licence {} written to {}", licence.serial, path.display()))
        }
    }
}

fn limits(command: &Issue, tier: Tier) -> Result<LimitTerms, Failure> {
    let mut limits = LimitTerms::of_tier(tier);
    let wanted = [
        ("--agents", &command.agents, &mut limits.agents_max),
        ("--rate", &command.rate, &mut limits.messages_per_second),
        ("--retention", &command.retention, &mut limits.retention_days_max),
    ];
    for (flag, text, limit) in wanted {
        match text.as_deref() {
            None => {}
            Some("unlimited") => *limit = Some(None),
            Some(number) => {
                let number = number.parse().ok().filter(|number| *number > 0);
                *limit =
                    Some(Some(number.ok_or_else(|| Failure::Usage(format!("{flag} must be a number or unlimited")))?));
            }
        }
    }
    let usual = Entitlement::of_tier(tier);
    let days = limits.retention_days_max.flatten();
    if usual.require(Feature::UnlimitedRetention).is_err() && days.is_none_or(|days| days > DAYS_MAX) {
        return Err(Failure::Usage(format!(
            "--retention unlimited is for the enterprise tier; a {} licence can have up to {DAYS_MAX} days ({} when nothing is said)",
            tier.name(),
            usual.retention_days_max.unwrap_or(DAYS_MAX)
        )));
    }
    let granted = Document { limits, ..Document::of_tier(tier, KeyHash([0; 32]), 0, 0) }.entitlement();
    let asked = [limits.agents_max, limits.messages_per_second, limits.retention_days_max];
    let possible = [granted.agents_max, granted.messages_per_second, granted.retention_days_max];
    for ((flag, asked), possible) in ["--agents", "--rate", "--retention"].into_iter().zip(asked).zip(possible) {
        if asked != Some(possible) {
            let possible = possible.map_or_else(|| "unlimited".to_owned(), |number| number.to_string());
            return Err(Failure::Usage(format!(
                "{flag}: daemons would grant a {} licence no more than {possible}",
                tier.name()
            )));
        }
    }
    Ok(limits)
}

fn revoke(command: &Revoke) -> Result<(), Failure> {
    let registry = Registry::existing(&command.db)?;
    let serial = match command.which.parse::<u64>() {
        Ok(serial) => Some(serial),
        Err(_) => {
            let key = LicenceKey::parse(&command.which).map_err(|error| Failure::Usage(error.to_string()))?;
            registry.find(key.hash())?.map(|licence| licence.serial)
        }
    };
    let revoked = match serial {
        Some(serial) => registry.revoke(serial, now_ms())?,
        None => None,
    };
    let licence = revoked.ok_or_else(|| failed("there is no such licence; `relay-license list` shows all"))?;
    let offline =
        if licence.offline { "; it is offline, so nobody asks about it and it goes on until its end" } else { "" };
    say(&format!("licence {} ({}) is revoked{offline}", licence.serial, licence.key))
}

fn list(command: &List) -> Result<(), Failure> {
    let registry = Registry::existing(&command.db)?;
    let licences = registry.list()?;
    let mut rows = Vec::new();
    for licence in &licences {
        let hash = KeyHash::parse(&licence.key_hash).ok_or(RegistryError::Row(licence.serial))?;
        rows.push((licence, registry.usage(hash)?));
    }
    if command.json {
        let list: Vec<_> = rows
            .iter()
            .map(|(licence, (days, usage))| {
                let mut row = serde_json::to_value(licence).unwrap_or_default();
                row["usage"] = serde_json::json!({ "rows": days, "agents_peak": usage.agents_peak, "messages_sent": usage.messages_sent });
                row
            })
            .collect();
        return say(&serde_json::json!({ "licences": list }).to_string());
    }
    let now_ms = now_ms();
    let mut text = format!(
        "{:<7}{:<14}{:<12}{:<12}{:<10}{:>12}{:>16}",
        "SERIAL", "KEY", "TIER", "UNTIL", "STATE", "AGENTS PEAK", "MESSAGES SENT"
    );
    for (licence, (_, usage)) in rows {
        let state = match (licence.revoked_at_ms, licence.offline) {
            (Some(_), _) => "revoked",
            _ if licence.valid_until_ms <= now_ms => "ended",
            (None, true) => "offline",
            (None, false) => "good",
        };
        text += &format!(
            "\n{:<7}{:<14}{:<12}{:<12}{state:<10}{:>12}{:>16}",
            licence.serial,
            licence.key,
            licence.tier,
            date(licence.valid_until_ms),
            usage.agents_peak,
            usage.messages_sent
        );
    }
    say(&text)
}

fn serve(command: &Serve) -> Result<(), Failure> {
    let key = signing_key(&command.signing_key)?;
    let public = key.public();
    let registry = Registry::existing(&command.db)?;
    let cannot = |error: io::Error| failed(format!("cannot listen on {}: {error}", command.listen));
    // Before anybody is told that it is there: a signal from then on ends it well.
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(failed)?;
    let listener = TcpListener::bind(command.listen).map_err(cannot)?;
    let answer = move |request| service::answer(&registry, &key, &request, now_ms());
    let server = Server::start("relay-license", listener, Bounds::default(), answer).map_err(cannot)?;
    if !server.address().ip().is_loopback() {
        eprintln!("relay-license: others can reach this address and it speaks plain HTTP; put TLS in front of it");
    }
    say(&format!("listening on http://{}\npublic key {public}", server.address()))?;
    signals.forever().next();
    server.stop();
    Ok(())
}

fn now_ms() -> u64 {
    jiff::Timestamp::now().as_millisecond().max(0) as u64
}

fn signing_key(path: &Path) -> Result<SigningKey, Failure> {
    let cannot = |error: &dyn Display| failed(format!("cannot read the signing key {}: {error}", path.display()));
    let metadata = fs::metadata(path).map_err(|error| cannot(&error))?;
    if metadata.is_file() && metadata.mode() & 0o077 != 0 {
        eprintln!("relay-license: {0} can be read by others; chmod 600 {0}", path.display());
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| cannot(&error))?);
    SigningKey::parse(&text).map_err(|error| cannot(&error))
}

/// Makes a file that only its owner can read, on the disk when this returns; one that exists is never overwritten.
fn write_new(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write_all(open_new(path)?, content)
        .map_err(|error| failed(format!("{} cannot be written: {error}", path.display())))
}

fn open_new(path: &Path) -> Result<File, Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            failed(format!("{} exists already and is never overwritten; choose another --output", path.display()))
        }
        _ => failed(format!("{} cannot be made: {error}", path.display())),
    })
}

fn write_all(mut file: File, content: &[u8]) -> io::Result<()> {
    file.write_all(content)?;
    if !content.ends_with(b"\n") {
        file.write_all(b"\n")?;
    }
    file.sync_all()
}
