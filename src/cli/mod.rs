//! The command line: one file a command. Exits 0, 1 on a failure it names, 2 on bad usage. Talks to the daemon only
//! through `client`; never prints a peer's text unsanitised.
#![forbid(unsafe_code)]

mod agents;
mod arguments;
mod bench;
mod config;
mod copies;
mod doctor;
mod down;
mod export;
mod filter;
mod history;
mod import;
mod keygen;
mod keys;
mod keys_log;
mod launch;
mod license;
mod listen;
mod print;
mod reach;
mod read;
mod send;
mod sharing;
mod status;
mod store_check;
mod stored;
mod talk;
mod up;

use crate::base::whole::refusal;
use argh::{ArgsInfo, FromArgs};
use std::fmt::Display;
use std::process::ExitCode;

/// A message relay for AI coding agents: they find each other by name and talk in real time.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    name = "relay",
    help_triggers("-h", "--help"),
    example = "relay --cores 2                                    start in the foreground
relay listen --as bob                              receive as bob
relay send --from alice --to bob \"hello\"           send as alice
relay status                                       what is going on",
    note = "`relay COMMAND --help` says more about each. Flags without a command mean `up`.
Data lies in $AGENT_RELAY_DATA_DIR, else $XDG_DATA_HOME/agent-relay, else ~/.agent-relay,
in a folder per project. The API key or token for a relay that wants one goes in $AGENT_RELAY_API_KEY.",
    error_code(0, "done"),
    error_code(1, "it failed, and says why"),
    error_code(2, "the command line was wrong")
)]
struct Relay {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum Command {
    Up(up::Up),
    Down(down::Down),
    Status(status::Status),
    Agents(agents::Agents),
    Who(agents::Who),
    Send(send::Send),
    Listen(listen::Listen),
    Read(read::Read),
    History(history::History),
    Doctor(doctor::Doctor),
    Bench(bench::Bench),
    Config(config::Config),
    License(license::License),
    Keygen(keygen::Keygen),
    Keys(keys::Keys),
    Rekey(copies::Rekey),
    Backup(copies::Backup),
    Restore(copies::Restore),
    Export(export::Export),
    Import(import::Import),
}

/// Why a command ends other than well.
#[derive(Debug)]
enum Failure {
    /// Exit code 2.
    Usage(String),
    /// Exit code 1.
    Failed(String),
    /// Exit code 3: a daemon that was stopped in order, and lost what the disk did not take.
    Lost(String),
    /// Exit code 1; everything has been said.
    Said,
    /// Whoever read our output went away (`relay agents | head -1`): nothing is wrong.
    OutputClosed,
}

impl Failure {
    fn failed(reason: impl Display) -> Failure {
        Failure::Failed(reason.to_string())
    }

    fn usage(reason: impl Display) -> Failure {
        Failure::Usage(reason.to_string())
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let mut arguments = Vec::new();
    for argument in std::env::args_os().skip(1) {
        match argument.into_string() {
            Ok(text) => arguments.push(text),
            Err(other) => {
                eprintln!("relay: the argument {} is not valid UTF-8", print::clean(&other.to_string_lossy()));
                return ExitCode::from(2);
            }
        }
    }
    let json = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    match run(&arguments) {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::from(1),
        Err(Failure::Failed(reason)) => {
            if json {
                // A program that reads our output finds a value there whatever happens.
                drop(print::json(&serde_json::json!({ "error": reason })));
            }
            eprintln!("relay: {}", print::clean_text(&reason));
            ExitCode::from(1)
        }
        Err(Failure::Lost(reason)) => {
            eprintln!("relay: {}", print::clean_text(&reason));
            ExitCode::from(3)
        }
        Err(Failure::Usage(reason)) => {
            eprintln!("relay: {}", print::clean_text(reason.trim_end()));
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    if let Some("--version" | "-V") = arguments.first().map(String::as_str) {
        return print::out(&format!("relay {}\n", env!("CARGO_PKG_VERSION")));
    }
    let arguments = arguments::normalise(arguments)?;
    let command = match parse(&arguments)? {
        Parsed::Help(text) => return print::out(&text),
        Parsed::Command(command) => command,
    };
    match *command {
        Command::Up(command) => up::run(command),
        Command::Down(command) => down::run(&command),
        Command::Status(command) => status::run(&command),
        Command::Agents(command) => agents::run(&command),
        Command::Who(command) => agents::run_who(&command),
        Command::Send(command) => send::run(&command),
        Command::Listen(command) => listen::run(&command),
        Command::Read(command) => read::run(&command),
        Command::History(command) => history::run(&command),
        Command::Doctor(command) => doctor::run(&command),
        Command::Bench(command) => bench::run(&command),
        Command::Config(command) => config::run(command),
        Command::License(command) => license::run(&command),
        Command::Keygen(command) => keygen::run(&command),
        Command::Keys(command) => keys::run(&command),
        Command::Rekey(command) => copies::rekey(&command),
        Command::Backup(command) => copies::backup(&command),
        Command::Restore(command) => copies::restore(&command),
        Command::Export(command) => export::run(&command),
        Command::Import(command) => import::run(&command),
    }
}

enum Parsed {
    Command(Box<Command>),
    Help(String),
}

/// argh's own entry exits with 1 on bad usage, so its inner one is called.
fn parse(arguments: &[String]) -> Result<Parsed, Failure> {
    let borrowed: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match Relay::from_args(&["relay"], &borrowed) {
        Ok(relay) => Ok(Parsed::Command(Box::new(relay.command))),
        Err(early) if early.status.is_ok() => Ok(Parsed::Help(format!("{}\n", early.output.trim_end()))),
        Err(early) => {
            let title = arguments::title(arguments);
            let reason = refusal(&early.output).unwrap_or_else(|| early.output.trim_end().to_owned());
            Err(Failure::Usage(format!("{reason}\nRun `{title} --help` for more.")))
        }
    }
}
