//! Starts the real program in a data directory of its own, waits until it says that it is ready, and ends it with the test.

use crate::certificates::Pair;
use crate::evaluation;
use crate::peers::{JsonPeer, NativePeer};
use agent_relay::base::tier::Tier;
use agent_relay::client::{self, Address, Client, Options};
use agent_relay::wire::QueryKind;
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Nothing on a loaded machine takes longer than this; what does is a failure, and says so.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How the daemon is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub backend: &'static str,
    pub cores: u16,
}

pub(crate) const URING_ONE: Way = Way { backend: "uring", cores: 1 };
pub(crate) const URING_TWO: Way = Way { backend: "uring", cores: 2 };
/// Where io_uring is forbidden, as in Docker's default profile: the daemon finds that out by itself.
pub(crate) const EPOLL_TWO: Way = Way { backend: "epoll", cores: 2 };

/// Runs `work` in a thread for which, and for whose children, io_uring_setup fails with `errno`.
pub(crate) fn without_io_uring<T: Send>(errno: Errno, work: impl FnOnce() -> T + Send) -> T {
    let alone = move || {
        use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
        const IO_URING_SETUP: i64 = 425;
        let filter = SeccompFilter::new(
            [(IO_URING_SETUP, Vec::new())].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(errno.raw_os_error() as u32),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        work()
    };
    std::thread::scope(|scope| match scope.spawn(alone).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Runs `test` in every way that this kernel has; at least epoll it has.
pub(crate) fn every_way(test: impl Fn(Way) + Sync) {
    std::thread::scope(|scope| {
        for way in [URING_ONE, URING_TWO, EPOLL_TWO] {
            if !available(way) {
                eprintln!("SKIPPED {way:?}: this kernel does not give us io_uring");
                continue;
            }
            let test = &test;
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            let thread = std::thread::Builder::new().name(format!("{name} ({} {})", way.backend, way.cores));
            thread.spawn_scoped(scope, move || test(way)).unwrap();
        }
    });
}

pub(crate) fn available(way: Way) -> bool {
    use agent_relay::uring::{Backend, Driver, Options};
    let options = Options { backend: Backend::Uring, connections_max: 16, ..Options::default() };
    way.backend != "uring" || Driver::new(&options).is_ok()
}

/// How to start a daemon.
pub(crate) struct Setup {
    pub way: Way,
    /// relay.toml.
    pub settings: String,
    /// Further arguments of `up`.
    pub arguments: Vec<String>,
    /// Shell commands in front of the program, in the same process: `ulimit`, redirections, `export`.
    pub shell: String,
    /// Becomes descriptor 0 of the shell.
    pub stdin: Option<OwnedFd>,
    pub directory: Option<TempDir>,
    /// What the daemon is licensed for; none: nothing, the free tier.
    pub tier: Option<Tier>,
}

impl Setup {
    pub(crate) fn new(way: Way) -> Setup {
        Setup {
            way,
            settings: String::new(),
            arguments: Vec::new(),
            shell: String::new(),
            stdin: None,
            directory: None,
            tier: Some(Tier::Enterprise),
        }
    }

    pub(crate) fn settings(mut self, settings: &str) -> Setup {
        self.settings = settings.to_owned();
        self
    }

    pub(crate) fn shell(mut self, shell: &str) -> Setup {
        self.shell = shell.to_owned();
        self
    }

    pub(crate) fn tier(mut self, tier: Tier) -> Setup {
        self.tier = (tier != Tier::Community).then_some(tier);
        self
    }

    pub(crate) fn argument(mut self, argument: &str) -> Setup {
        self.arguments.push(argument.to_owned());
        self
    }

    /// TLS with this certificate, also on a TCP port of loopback.
    pub(crate) fn tls(self, pair: &Pair) -> Setup {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        self.argument("--listen")
            .argument("127.0.0.1:0")
            .argument("--tls-cert")
            .argument(&path(&pair.cert))
            .argument("--tls-key")
            .argument(&path(&pair.key))
    }

    /// Starts it from the calling thread (whose CPU mask and filters it inherits) and waits for READY.
    pub(crate) fn start(self) -> Daemon {
        self.try_start().unwrap_or_else(|(said, _)| panic!("the daemon did not start:\n{said}"))
    }

    /// The same; when it ends instead of becoming READY, what it said, and where.
    pub(crate) fn try_start(self) -> Result<Daemon, (String, TempDir)> {
        let directory =
            self.directory.unwrap_or_else(|| tempfile::Builder::new().prefix("relay-it").tempdir().unwrap());
        std::fs::write(directory.path().join("relay.toml"), &self.settings).unwrap();
        let notices_path = directory.path().join("notify");
        let _ = std::fs::remove_file(&notices_path);
        let notices = UnixDatagram::bind(&notices_path).unwrap();
        let mut command = if self.shell.is_empty() {
            Command::new(env!("CARGO_BIN_EXE_relay"))
        } else {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(format!("{}; exec \"$@\"", self.shell)).arg("sh").arg(env!("CARGO_BIN_EXE_relay"));
            command
        };
        environment(&mut command, directory.path());
        if let Some(tier) = self.tier {
            command.env(evaluation::VARIABLE, evaluation::licence(tier));
        }
        let forbidden = self.way == EPOLL_TWO;
        let backend = if forbidden { "auto" } else { self.way.backend };
        command
            .args(["up", "--global", "--backend", backend, "--cores", &self.way.cores.to_string()])
            .args(&self.arguments)
            .env("NOTIFY_SOCKET", &notices_path)
            .stdin(self.stdin.map_or(Stdio::null(), Stdio::from))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let spawned = if forbidden { without_io_uring(Errno::PERM, || command.spawn()) } else { command.spawn() };
        let mut child = spawned.unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let reader = read_all(child.stderr.take().unwrap(), said.clone());
        let mut daemon = Daemon { child, way: self.way, directory, said, reader: Some(reader), notices };
        match daemon.noticed("READY=1") {
            true => Ok(daemon),
            false => Err(daemon.ended()),
        }
    }
}

fn read_all(mut stream: impl Read + Send + 'static, said: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = stream.read(&mut buffer) {
            if length == 0 {
                break;
            }
            said.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    })
}

fn environment(command: &mut Command, directory: &Path) {
    command.env_clear().env("AGENT_RELAY_DATA_DIR", directory).env("HOME", directory).current_dir(directory);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
}

/// A running daemon. Dropping it kills it; a panic in it fails the test.
pub(crate) struct Daemon {
    child: Child,
    pub way: Way,
    pub directory: TempDir,
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    notices: UnixDatagram,
}

impl Daemon {
    pub(crate) fn start(way: Way) -> Daemon {
        Setup::new(way).start()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("relay.sock")
    }

    /// Its first TCP address.
    pub(crate) fn tcp(&self) -> String {
        self.status()["listen"][0].as_str().unwrap().to_owned()
    }

    pub(crate) fn address(&self) -> Address {
        Address::Unix(self.socket())
    }

    /// What it has written to standard error.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until the service manager is told `line`.
    pub(crate) fn notice(&mut self, line: &str) {
        assert!(self.noticed(line), "the daemon ended before it said {line}:\n{}", self.said());
    }

    /// What an ended daemon said, all of it, and its directory.
    fn ended(mut self) -> (String, TempDir) {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        (self.said(), directory)
    }

    /// Waits for `line`; says whether it came before the daemon ended.
    fn noticed(&mut self, line: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        self.notices.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut notice = [0; 4096];
        while Instant::now() < deadline {
            if let Ok(length) = self.notices.recv(&mut notice)
                && String::from_utf8_lossy(&notice[..length]).lines().any(|said| said == line)
            {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
        }
        panic!("the daemon did not say {line} in time:\n{}", self.said());
    }

    pub(crate) fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A session of the client library.
    pub(crate) fn client(&self, name: &str) -> Client {
        Client::connect(&self.address(), &Options { connect_timeout: PATIENCE, ..Options::named(name) })
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A native connection whose frames the test sees.
    pub(crate) fn native(&self, name: &str) -> NativePeer {
        NativePeer::connect(self.stream(), name)
    }

    /// A JSON connection.
    pub(crate) fn json(&self, name: &str) -> JsonPeer {
        JsonPeer::connect(self.stream(), name)
    }

    pub(crate) fn ask(&self, kind: QueryKind, arguments: &Value) -> Value {
        let answer = client::ask(&self.address(), kind, &arguments.to_string(), PATIENCE).unwrap();
        serde_json::from_slice(&answer).unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        self.ask(QueryKind::Status, &serde_json::json!({}))
    }

    /// What `relay agents` says of `name`.
    pub(crate) fn agent(&self, name: &str) -> Option<Value> {
        let agents = self.ask(QueryKind::Agents, &serde_json::json!({ "all": true }));
        agents["agents"].as_array().unwrap().iter().find(|agent| agent["name"] == name).cloned()
    }

    /// Asks again and again until `status` is as it should be.
    pub(crate) fn until(&self, what: &str, mut good: impl FnMut(&Daemon) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !good(self) {
            assert!(Instant::now() < deadline, "waited too long until {what}: {:#}\n{}", self.status(), self.said());
            // A pace, not a wait for anything: each look is a connection of its own.
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Waits until `name` is not connected any more.
    pub(crate) fn until_away(&self, name: &str) {
        self.until(&format!("{name} is away"), |daemon| {
            daemon.agent(name).is_some_and(|agent| agent["state"] == "away")
        });
    }

    /// The program with other arguments, in the daemon's environment.
    pub(crate) fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
        environment(&mut command, self.directory.path());
        command.args(line).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, line: &[&str]) -> Output {
        self.command(line).output().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_raw(self.pid().cast_signed()).unwrap(), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills it as a crash would, and gives back its directory.
    pub(crate) fn crash(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap())
    }

    /// A number of /proc/PID/status, such as VmRSS (in KiB).
    pub(crate) fn proc_status(&self, key: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
        let said = self.said();
        if std::thread::panicking() {
            eprintln!("--- the daemon ({ended:?}) said:\n{said}---");
        } else {
            assert!(!said.contains("panicked") && !said.contains("broke one of its own laws"), "{said}");
        }
    }
}
