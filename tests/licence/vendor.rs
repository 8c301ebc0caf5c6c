//! The vendor's real program, started for a test and stopped with it.

use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// A licence server and its registry.
pub(crate) struct Vendor {
    pub(crate) folder: Option<TempDir>,
    child: Child,
    url: String,
}

impl Vendor {
    pub(crate) fn start() -> Vendor {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, include_str!("../../scripts/evaluation.key")).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        // Licence 1: only issuing makes a registry.
        let issued = ["issue", "--tier", "pro", "--days", "1", "--db", "db"];
        assert!(program().args(issued).current_dir(folder.path()).output().unwrap().status.success());
        Vendor::with(folder)
    }

    /// One that goes on with the registry of an earlier one.
    pub(crate) fn with(folder: TempDir) -> Vendor {
        let mut child = program()
            .args(["serve", "--listen", "127.0.0.1:0", "--db", "db", "--signing-key", "key"])
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        Vendor { folder: Some(folder), child, url }
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// Runs a command on the same registry, beside the server.
    pub(crate) fn try_run(&self, line: &[&str]) -> Output {
        let folder = self.folder.as_ref().unwrap().path();
        program().args(line).args(["--db", "db"]).current_dir(folder).output().unwrap()
    }

    pub(crate) fn run(&self, line: &[&str]) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A new licence's key.
    pub(crate) fn issue(&self, terms: &[&str]) -> String {
        self.run(&[&["issue"], terms].concat())
    }

    pub(crate) fn list(&self) -> Value {
        serde_json::from_str(&self.run(&["list", "--json"])).unwrap()
    }

    /// Stops it as a service manager would; gives the registry back.
    pub(crate) fn stop(mut self) -> TempDir {
        self.end();
        assert!(self.child.wait().unwrap().success(), "it ends well when it is told to");
        self.folder.take().unwrap()
    }

    fn end(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let pid = Pid::from_child(&self.child);
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Vendor {
    fn drop(&mut self) {
        self.end();
        let _ = self.child.wait();
    }
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay-license"));
    command.env_clear().stdin(Stdio::null());
    command
}
