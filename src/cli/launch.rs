//! Starts a daemon as a child process and waits until it is ready, by the service manager's own protocol: the child
//! cannot tell us from systemd.

use super::Failure;
use super::print::{self, Progress};
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A daemon that takes longer than this to open its listeners is not starting any more.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A daemon that was started here. Dropping it lets it live on.
pub(super) struct Started {
    child: Child,
    notices: UnixDatagram,
}

impl Started {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop and waits until it has.
    pub(super) fn stop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        drop(self.child.wait());
    }
}

/// Runs this program again with `arguments`; what it prints goes to the end of `log`, or nowhere.
pub(super) fn start(arguments: &[OsString], log: Option<&Path>) -> Result<Started, Failure> {
    let program =
        std::env::current_exe().map_err(|error| Failure::Failed(format!("cannot find my own program: {error}")))?;
    // A name in the abstract namespace needs no file and cannot be too long; the random half keeps others out of it.
    let name = format!("agent-relay-ready-{:016x}", random());
    let address = SocketAddr::from_abstract_name(&name).map_err(Failure::failed)?;
    let notices = UnixDatagram::bind_addr(&address).map_err(Failure::failed)?;
    let output = || -> Result<Stdio, Failure> {
        let Some(path) = log else { return Ok(Stdio::null()) };
        let opened =
            path.parent().map_or(Ok(()), |parent| fs::DirBuilder::new().recursive(true).mode(0o700).create(parent));
        let file = opened.and_then(|()| OpenOptions::new().append(true).create(true).mode(0o600).open(path));
        file.map(Stdio::from)
            .map_err(|error| Failure::Failed(format!("cannot write the log {}: {error}", path.display())))
    };
    let child = Command::new(program)
        .args(arguments)
        .env("NOTIFY_SOCKET", format!("@{name}"))
        // Ours to hand out, not the child's to inherit.
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .env_remove("WATCHDOG_USEC")
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?)
        .spawn()
        .map_err(|error| Failure::Failed(format!("cannot start the daemon: {error}")))?;
    Ok(Started { child, notices })
}

/// Waits for READY=1, or for the child to die, whichever comes first.
pub(super) fn wait_until_ready(started: &mut Started, log: Option<&Path>) -> Result<(), Failure> {
    let mut progress = Progress::start();
    let begun = Instant::now();
    started.notices.set_read_timeout(Some(Duration::from_millis(50))).map_err(Failure::failed)?;
    let mut notice = [0; 4096];
    while begun.elapsed() < READY_WITHIN {
        if let Ok(length) = started.notices.recv(&mut notice)
            && notice[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
        {
            return Ok(());
        }
        if let Ok(Some(status)) = started.child.try_wait() {
            let said = log.map(last_lines).unwrap_or_default();
            return Err(Failure::Failed(format!("the daemon ended at once ({status}){said}")));
        }
        progress.show("starting …");
    }
    started.stop();
    Err(Failure::Failed(format!("the daemon was not ready within {} s and has been stopped", READY_WITHIN.as_secs())))
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    let lines = lines.into_iter().rev().fold(String::new(), |all, line| all + "\n  " + &print::clean(line));
    format!("; the end of {}:{lines}", log.display())
}

/// Unpredictable bits; the time, where the kernel has none.
pub(super) fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| jiff::Timestamp::now().as_nanosecond() as u64)
}
