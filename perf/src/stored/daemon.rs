//! The real daemon on a large store: started, timed until it is ready, stopped as an operator stops it.
#![forbid(unsafe_code)]

use super::address_of;
use crate::{licence, measure};
use agent_relay::client::Address;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A running daemon. Dropping it ends it without mercy.
pub struct Daemon {
    child: Child,
    /// Its Unix socket.
    pub socket: PathBuf,
    /// From its start until it said that agents can connect.
    pub ready_after: Duration,
    /// Kept open: it may have more to say.
    _said: BufReader<ChildStdout>,
}

impl Daemon {
    /// Starts it over the data in `folder`.
    pub fn start(relay: &Path, folder: &Path, retention: &str, cores: &[usize]) -> Result<Daemon, String> {
        let problem = |what: &str, error: std::io::Error| format!("the relay does not start: {what}: {error}");
        let team = folder.join("team");
        fs::create_dir_all(&team).map_err(|error| problem("its folder", error))?;
        let socket = folder.join("s");
        let log = File::create(folder.join("log")).map_err(|error| problem("its log", error))?;
        let mut command = Command::new(relay);
        command.args(["up", "--no-dashboard", "--retention", retention, "--cores", &cores.len().to_string()]);
        command.arg("--data-dir").arg(folder.join("data")).arg("--socket").arg(&socket).current_dir(team);
        command.env(licence::VARIABLE, licence::evaluation()?);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let began = Instant::now();
        let child = measure::on_cores(cores, || command.spawn());
        let mut child = child.map_err(|error| problem("the program", error))?;
        let mut said = BufReader::new(child.stdout.take().expect("piped above"));
        let mut line = String::new();
        said.read_line(&mut line).map_err(|error| problem("its first word", error))?;
        let ready_after = began.elapsed();
        if line.is_empty() {
            let _ = child.wait();
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            return Err(format!("the relay does not start: {}", log.trim()));
        }
        Ok(Daemon { child, socket, ready_after, _said: said })
    }

    /// Where to ask it.
    pub fn address(&self) -> Address {
        address_of(&self.socket)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop(mut self) -> Result<(), String> {
        let pid = Pid::from_raw(self.child.id() as i32).ok_or("a child without a number")?;
        kill_process(pid, Signal::TERM).map_err(|error| error.to_string())?;
        let status = self.child.wait().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("the relay ended with {status}")) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the daemon of this folder has made its store.
pub fn store_folder(folder: &Path) -> Result<PathBuf, String> {
    let data = folder.join("data");
    let projects = fs::read_dir(&data).map_err(|error| format!("{}: {error}", data.display()))?;
    let mut stores = projects.flatten().map(|project| project.path().join("store"));
    stores.find(|store| store.join("data.mdb").is_file()).ok_or_else(|| format!("{}: no store", data.display()))
}

/// Empties the kernel's page cache; false where that is not allowed.
pub fn drop_page_cache() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}
