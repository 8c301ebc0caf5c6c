//! Another user of the machine on the Unix socket: turned away unless credentials are asked for, and then let in with one
//! alone. The kernel says who it is; the program runs as that user for real.

use crate::auth::make;
use crate::harness::{Daemon, Setup, Way, every_way};
use crate::peers;
use agent_relay::client::{Client, Credential, Options};
use serde_json::json;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Nobody's uid and gid: of no account that owns anything.
const NOBODY: u32 = 65_534;

/// The program as somebody else, who has a copy of it and a place of their own.
struct Stranger {
    folder: TempDir,
    program: PathBuf,
}

impl Stranger {
    /// None, visibly, where this process may not become somebody else.
    fn new(name: &str) -> Option<Stranger> {
        if !rustix::process::geteuid().is_root() {
            let line = format!("SKIP(root) {name}: only root can run a program as another user\n");
            // Past the test harness, which hides what passing tests say.
            drop(std::io::stderr().write_all(line.as_bytes()));
            return None;
        }
        let folder = tempfile::Builder::new().prefix("relay-stranger").tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let program = folder.path().join("relay");
        // By a process of its own: a file that is open for writing, here or in a child that another test is forking, cannot be
        // run.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_relay")).arg(&program).status().unwrap();
        assert!(copied.success());
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
        Some(Stranger { folder, program })
    }

    fn command(&self, line: &[&str]) -> Command {
        let home = self.folder.path().join("home");
        let mut command = Command::new(&self.program);
        command.uid(NOBODY).gid(NOBODY).env_clear().env("HOME", &home).current_dir(&home).stdin(Stdio::null());
        command.args(line);
        command
    }

    /// Runs it towards this relay.
    fn run(&self, daemon: &Daemon, line: &[&str], key: Option<&str>) -> Output {
        let mut command = self.command(line);
        command.envs(key.map(|key| ("AGENT_RELAY_API_KEY", key)));
        command.arg("--connect").arg(daemon.socket()).output().unwrap()
    }

    /// Runs it towards a relay of their own; what it said.
    fn at_home(&self, line: &[&str]) -> String {
        let output = self.command(line).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line:?}: {said}");
        said
    }

    fn refused(&self, daemon: &Daemon, line: &[&str], key: Option<&str>) -> String {
        let output = self.run(daemon, line, key);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{line:?}: {said}");
        said
    }
}

const SEND: [&str; 7] = ["send", "--from", "stranger", "--to", "bob", "--wait", "delivered"];

fn send(text: &str) -> Vec<&str> {
    SEND.into_iter().chain([text]).collect()
}

/// A relay whose owner has opened its socket to everybody on the machine.
fn opened(setup: Setup) -> Daemon {
    let daemon = setup.start();
    fs::set_permissions(daemon.directory.path(), Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(daemon.socket(), Permissions::from_mode(0o666)).unwrap();
    daemon
}

#[test]
fn another_user_is_turned_away_where_no_credential_is_asked_for() {
    let Some(stranger) = Stranger::new("another user is turned away") else { return };
    every_way(|way: Way| {
        let daemon = opened(Setup::new(way));
        let (_, key) = make(&daemon, json!({ "name": "any" }));
        let mut bob = daemon.client("bob");
        for key in [None, Some(key.as_str())] {
            let said = stranger.refused(&daemon, &send("hello"), key);
            let closed = "is another user's and has closed the connection; it serves nobody else unless it runs with --require-auth";
            assert_eq!(said, format!("relay: the relay at {} {closed}\n", daemon.socket().display()));
        }
        assert!(daemon.said().contains("another user tried the Unix socket; it serves its owner only"));
        // As it is made, the socket's mode says so before that.
        fs::set_permissions(daemon.socket(), Permissions::from_mode(0o600)).unwrap();
        let socket = daemon.socket().display().to_string();
        let said = stranger.refused(&daemon, &send("hello"), Some(&key));
        assert_eq!(
            said,
            format!("relay: {socket} may not be opened by this user; run as the user who started the daemon\n")
        );
        daemon.native("ann").send("bob", "from ann", Default::default());
        assert_eq!(peers::text(&mut bob), "from ann", "nothing of the stranger's was relayed");
    });
}

#[test]
fn under_require_auth_another_user_is_let_in_with_a_credential_and_not_without() {
    let Some(stranger) = Stranger::new("another user with a credential") else { return };
    every_way(|way: Way| {
        let daemon = opened(Setup::new(way).argument("--require-auth"));
        let (id, key) = make(&daemon, json!({ "name": "strangers", "agents": ["stranger"] }));
        let (_, theirs) = make(&daemon, json!({ "name": "bob", "agents": ["bob"] }));
        let (_, admin) = make(&daemon, json!({ "name": "admin", "scopes": ["admin"] }));
        let credential = Credential::read(theirs.clone()).unwrap();
        let mut bob = Client::connect(&daemon.address(), &Options { credential, ..Options::named("bob") }).unwrap();
        let without = stranger.refused(&daemon, &send("no"), None);
        let put = "put an API key or a token in AGENT_RELAY_API_KEY";
        assert_eq!(without, format!("relay: the relay refused: Authentication required (UNAUTHORIZED); {put}\n"));
        let shown = "the key or token that was shown is the one in AGENT_RELAY_API_KEY";
        let wrong = stranger.refused(&daemon, &send("no"), Some(&format!("ar_key_{}", "x".repeat(32))));
        assert_eq!(wrong, format!("relay: the relay refused: Invalid API key (UNAUTHORIZED); {shown}\n"));
        let other = stranger.refused(&daemon, &send("no"), Some(&theirs));
        assert!(other.contains("Agent name \"stranger\" not allowed for this key"), "{other}");
        // Being on the machine is not being its owner.
        let asked = stranger.refused(&daemon, &["status"], Some(&key));
        assert!(asked.contains("not allowed") || asked.contains("admin"), "{asked}");
        assert!(stranger.run(&daemon, &["status"], Some(&admin)).status.success());
        let sent = std::thread::scope(|scope| {
            let sending = scope.spawn(|| stranger.run(&daemon, &send("hello from outside"), Some(&key)));
            assert_eq!(peers::text(&mut bob), "hello from outside");
            sending.join().unwrap()
        });
        assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
        let log = daemon.run(&["keys", "log", "--global"]);
        let log = String::from_utf8(log.stdout).unwrap();
        assert!(log.lines().any(|line| line.contains(&id[..8]) && line.contains("uid:65534")), "{log}");
        assert!(log.contains("refused") && log.contains("unknown_key"), "{log}");
    });
}

/// Everything else here runs as root where CI does, who may look into every process.
#[test]
fn who_is_not_root_starts_and_stops_a_relay_and_cannot_look_into_it() {
    let Some(owner) = Stranger::new("who is not root") else { return };
    for stop in [&["down"][..], &["down", "--now"]] {
        let said = owner.at_home(&["up", "--detach", "--cores", "1"]);
        assert!(said.contains("relay is running"), "{said}");
        let status: serde_json::Value = serde_json::from_str(&owner.at_home(&["status", "--json"])).unwrap();
        let secret = format!("/proc/{}/environ", status["pid"]);
        let look = Command::new("cat").arg(secret).uid(NOBODY).gid(NOBODY).stderr(Stdio::null()).output().unwrap();
        assert!(!look.status.success() && look.stdout.is_empty(), "its own user reads its environment");
        owner.at_home(&["doctor"]);
        let said = owner.at_home(stop);
        assert!(said.contains("stopped (process"), "{said}");
    }
}
