//! `relay down`: asks the daemon of this place to drain and stop, and waits until it has.

use super::print::{self, Progress};
use super::reach::{Reach, Seconds};
use super::sharing::sharing;
use super::{Failure, talk};
use crate::daemon::lock;
use crate::wire::QueryKind;
use argh::{ArgsInfo, FromArgs};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the relay may take to say whether anything would be lost.
const ASK_TIME: Duration = Duration::from_secs(2);

sharing! {
    [reach]
    /// Stop the relay of this project: its listeners close, agents hear BYE, what is queued goes out.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "down",
        help_triggers("-h", "--help"),
        example = "relay down
relay down --now",
        note = "While the disk refuses what was accepted, it is not stopped without --now: those messages would be lost. Exits with
1 if any were."
    )]
    pub(super) struct Down {
        /// do not drain: stop at once, even if accepted messages are lost
        #[argh(switch)]
        now: bool,
        /// seconds to wait for it (default: 60)
        #[argh(option, arg_name = "seconds", default = "Seconds::of(60)")]
        timeout: Seconds,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

pub(super) fn run(command: &Down) -> Result<(), Failure> {
    let reach = command.reach()?;
    if reach.is_elsewhere() {
        return stop_elsewhere(command, &reach);
    }
    let pid = running(&reach)?;
    let stake = at_stake(command, &reach);
    if let Some(stake) = stake.as_ref().filter(|_| !command.now) {
        return Err(Failure::Failed(format!("{stake}. Not stopped; `relay down --now` stops it all the same")));
    }
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|error| Failure::Failed(format!("cannot reach process {}: {error}", pid.as_raw_pid())))?;
    // The descriptor now stands for that process alone. The lock may be seen from another container, where the same
    // number is somebody else's: so look at who it is before any signal goes out.
    if !program_of(pid).is_some_and(|name| name.contains("relay")) {
        return Err(Failure::Failed(format!(
            "the lock names process {}, which is no relay here; is it in another container? Stop it there",
            pid.as_raw_pid()
        )));
    }
    let signal = |signal| {
        rustix::process::pidfd_send_signal(&process, signal)
            .map_err(|error| Failure::Failed(format!("cannot signal process {}: {error}", pid.as_raw_pid())))
    };
    signal(if command.now { Signal::INT } else { Signal::TERM })?;
    let begun = Instant::now();
    let mut progress = Progress::start();
    loop {
        let mut watched = [PollFd::new(&process, PollFlags::IN)];
        let pause = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        if rustix::event::poll(&mut watched, Some(&pause)).is_ok_and(|ready| ready > 0) {
            break;
        }
        if begun.elapsed() > Duration::from_secs(command.timeout.number()) {
            return Err(Failure::Failed(format!(
                "process {} is still draining after {} s; `relay down --now` does not wait for that",
                pid.as_raw_pid(),
                command.timeout
            )));
        }
        if command.now {
            // Two of the same signal may count as one while the first is pending, so it is said again until it is heard.
            // Gone meanwhile is what was wanted.
            let _ = rustix::process::pidfd_send_signal(&process, Signal::INT);
        }
        progress.show(&format!("draining, {} s …", begun.elapsed().as_secs()));
    }
    drop(progress);
    let lost = lost(lock::last_word(&reach.layout, pid.as_raw_pid().cast_unsigned()), stake);
    if command.json {
        let mut value = serde_json::json!({
            "stopped": true, "pid": pid.as_raw_pid(), "took_ms": begun.elapsed().as_millis() as u64,
        });
        let Some(sentence) = lost else { return print::json(&value) };
        value["error"] = sentence.into();
        print::json(&value)?;
        return Err(Failure::Said);
    }
    if let Some(sentence) = lost {
        return Err(Failure::Failed(sentence));
    }
    print::out(&format!("stopped (process {}, {} ms)\n", pid.as_raw_pid(), begun.elapsed().as_millis()))
}

/// What would be lost with the relay, because its disk refuses.
struct Stake {
    messages: u64,
    /// Whether more waits behind those.
    more: bool,
    reason: String,
    sentence: String,
}

impl Stake {
    /// Asks the relay. One that does not answer is stopped as if nothing were at stake.
    fn of(reach: &Reach) -> Option<Stake> {
        let answer = reach.ask(QueryKind::Status, "{}", ASK_TIME).ok()?;
        let status: serde_json::Value = serde_json::from_slice(&answer).ok()?;
        let stake = status["store"]["at_stake"].as_object()?;
        let text = |key: &str| stake.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        let number = |key: &str| stake.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let (messages, more) = (number("messages"), number("batches") > 0);
        Some(Stake { messages, more, reason: text("reason"), sentence: text("sentence") })
    }
}

impl std::fmt::Display for Stake {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at_least = if self.more { "at least " } else { "" };
        let (messages, be) =
            (print::count(self.messages, "accepted message"), if self.messages == 1 { "is" } else { "are" });
        write!(
            out,
            "{at_least}{messages} {be} not on the disk, and would be lost with the relay ({}): {}",
            self.reason, self.sentence
        )
    }
}

/// What would be lost with the relay that is to be signalled: it may have been started with a socket of its own.
fn at_stake(command: &Down, reach: &Reach) -> Option<Stake> {
    match lock::live_holder(&reach.layout) {
        Some(holder) if !reach.layout.socket_chosen && holder.socket != reach.layout.socket => {
            Stake::of(&Reach::of(command.data_dir.as_deref(), Some(&holder.socket), command.global).ok()?)
        }
        _ => Stake::of(reach),
    }
}

/// What is to be said of lost messages: by the relay's last word; without one, by what was at stake.
fn lost(last_word: Option<lock::LastWord>, stake: Option<Stake>) -> Option<String> {
    let (messages, reason) = match (last_word, stake) {
        (Some(word), _) => (word.lost_messages, word.reason),
        (None, Some(stake)) => (stake.messages.max(1), stake.reason),
        (None, None) => return None,
    };
    let count = print::count(messages, "accepted message");
    (messages > 0).then(|| format!("stopped; {count} never got to the disk and must be taken for lost ({reason})"))
}

/// What a process runs. The daemon keeps its secrets inside, so its own user may not follow the link to its program: the
/// name of its first thread, which anybody may read, is that program's, cut off behind 15 bytes (proc_pid_comm(5)).
fn program_of(pid: Pid) -> Option<String> {
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_pid()));
    if let Ok(program) = std::fs::read_link(process.join("exe")) {
        return Some(program.file_name()?.to_string_lossy().into_owned());
    }
    std::fs::read_to_string(process.join("comm")).ok()
}

/// A relay whose process is out of reach is asked to stop, which an API key with the admin scope may do.
fn stop_elsewhere(command: &Down, reach: &Reach) -> Result<(), Failure> {
    if command.now {
        return Err(Failure::Usage("--now needs the relay's process; run it on that machine".to_owned()));
    }
    if let Some(stake) = Stake::of(reach) {
        return Err(Failure::Failed(format!(
            "{stake}. Not stopped; `relay down --now` on its machine stops it all the same"
        )));
    }
    let begun = Instant::now();
    talk::ask(reach, QueryKind::Stop, &serde_json::json!({}))?;
    let closed =
        reach.take_inquiry().is_none_or(|mut open| open.until_closed(Duration::from_secs(command.timeout.number())));
    if !closed {
        return Err(Failure::Failed(format!("{} is still draining after {} s", reach.address(), command.timeout)));
    }
    let took_ms = begun.elapsed().as_millis() as u64;
    if command.json {
        return print::json(&serde_json::json!({ "stopped": true, "took_ms": took_ms }));
    }
    print::out(&format!("stopped ({}, {took_ms} ms)\n", reach.address()))
}

/// The process to signal: from the lock; or, where only a socket was named, from the daemon itself.
fn running(reach: &Reach) -> Result<Pid, Failure> {
    let not_running = || Failure::Failed(reach.not_running());
    let pid = match lock::live_holder(&reach.layout) {
        Some(holder) if !reach.layout.socket_chosen || holder.socket == reach.layout.socket => holder.pid,
        _ if reach.layout.socket_chosen => {
            let status = talk::ask(reach, QueryKind::Status, &serde_json::json!({}))?;
            u32::try_from(status["pid"].as_u64().unwrap_or(0)).unwrap_or(0)
        }
        _ => return Err(not_running()),
    };
    Pid::from_raw(pid.cast_signed()).filter(|pid| pid.as_raw_nonzero().get() > 1).ok_or_else(not_running)
}
