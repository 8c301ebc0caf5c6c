//! The daemon as a process: started, killed, listened to.

use crate::evaluation;
use crate::swarm::PATIENCE;
use agent_relay::base::tier::Tier;
use serde_json::Value;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The program under test; another build of it by RELAY_FAULT_PROGRAM.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("RELAY_FAULT_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_relay").into(), PathBuf::from)
}

/// Where and how a daemon runs.
pub(crate) struct Place {
    /// Its data directory, which may lie on a disk that breaks.
    pub data: PathBuf,
    /// A directory outside the fault domain: the socket and the notices.
    pub outside: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
}

impl Place {
    pub(crate) fn new(data: &Path, outside: &Path) -> Place {
        Place { data: data.to_owned(), outside: outside.to_owned(), arguments: Vec::new(), environment: Vec::new() }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.outside.join("relay.sock")
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.env_clear().env("AGENT_RELAY_DATA_DIR", &self.data).env("HOME", &self.outside).current_dir("/");
        // More agents and messages than the free tier allows.
        command.env(evaluation::VARIABLE, evaluation::licence(Tier::Enterprise));
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.args(line).stdin(Stdio::null());
        command
    }

    /// Another command of the program, in the same place.
    pub(crate) fn run(&self, line: &[&str]) -> std::process::Output {
        self.command(line).output().unwrap()
    }

    /// The same with the daemon's own environment: its key, above all.
    pub(crate) fn run_with_environment(&self, line: &[&str]) -> std::process::Output {
        let mut command = self.command(line);
        command.envs(self.environment.iter().filter(|(key, _)| key != "LD_PRELOAD").map(|(key, value)| (key, value)));
        command.output().unwrap()
    }

    /// Another command with all of the daemon's environment: its disk, too.
    pub(crate) fn spawn(&self, line: &[&str]) -> Child {
        let mut command = self.command(line);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Starts it and waits for READY.
    pub(crate) fn start(&self) -> Daemon {
        self.try_start().unwrap_or_else(|said| panic!("the daemon did not start:\n{said}"))
    }

    /// Starts it; when it ends instead of becoming READY, what it said.
    pub(crate) fn try_start(&self) -> Result<Daemon, String> {
        let notices_path = self.outside.join("notify");
        drop(std::fs::remove_file(&notices_path));
        let notices = UnixDatagram::bind(&notices_path).unwrap();
        let socket = self.socket();
        let mut command = self.command(&["up", "--global", "--cores", "2", "--log", "warn", "--socket"]);
        command
            .arg(&socket)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .env("NOTIFY_SOCKET", &notices_path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let mut stream = child.stderr.take().unwrap();
        let heard = said.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                heard.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        let mut daemon = Daemon { child, said, reader: Some(reader), ready_after: Duration::ZERO };
        notices.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut notice = [0; 4096];
        loop {
            if let Ok(length) = notices.recv(&mut notice)
                && String::from_utf8_lossy(&notice[..length]).lines().any(|said| said == "READY=1")
            {
                daemon.ready_after = begun.elapsed();
                return Ok(daemon);
            }
            if let Some(status) = daemon.child.try_wait().unwrap() {
                drop(daemon.reader.take().map(JoinHandle::join));
                return Err(format!("{status}\n{}", daemon.said()));
            }
            assert!(begun.elapsed() < PATIENCE, "the daemon is not READY in time:\n{}", daemon.said());
        }
    }

    /// What `relay status --json` says.
    pub(crate) fn status(&self) -> Value {
        let socket = self.socket();
        let out = self.run(&["status", "--json", "--verbose", "--global", "--socket", socket.to_str().unwrap()]);
        serde_json::from_slice(&out.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&out.stderr)))
    }

    /// What it says of the store's health: a word, or a sentence with what to do.
    pub(crate) fn health(&self) -> String {
        let status = self.status();
        match &status["store"]["health"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// Asks again and again until the store's health is described like this.
    pub(crate) fn until_health(&self, what: &str, good: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let health = self.health();
            if good(&health) {
                return health;
            }
            assert!(begun.elapsed() < PATIENCE, "the store's health is not {what}, but {health}");
        }
    }

    /// The file with the messages.
    pub(crate) fn store(&self) -> PathBuf {
        let mut folders = vec![self.data.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.ends_with("store/data.mdb") {
                    return path;
                }
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        panic!("there is no store below {}", self.data.display());
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    child: Child,
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    /// From spawn to READY.
    pub ready_after: Duration,
}

impl Daemon {
    /// What it wrote to standard error.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits until it has ended; with which code, and what it said.
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        drop(self.reader.take().map(JoinHandle::join));
        (status.code(), self.said())
    }

    /// kill -9.
    pub(crate) fn kill(mut self) -> String {
        let ended = self.child.try_wait().unwrap();
        drop(self.child.kill());
        drop(self.child.wait());
        drop(self.reader.take().map(JoinHandle::join));
        let said = self.said();
        assert!(ended.is_none(), "the daemon ended by itself ({ended:?}):\n{said}");
        assert!(!said.contains("panicked") && !said.contains("broke one of its own laws"), "{said}");
        said
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(self.reader.take().map(JoinHandle::join));
        if std::thread::panicking() {
            let said = self.said();
            eprintln!("--- the daemon said:\n{}---", &said[said.len().saturating_sub(8000)..]);
        }
    }
}
