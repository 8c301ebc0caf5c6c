//! Starts the servers that are measured, each pinned, in its best case; stops what it started. The peers keep nothing on
//! disk unless their name here says so; the relay keeps everything, unless it is the one from before it had a store.
#![forbid(unsafe_code)]

use crate::measure;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where things are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The `relay` program.
    pub relay: PathBuf,
    /// The `relay` program of a time before the store, if there is one to compare with.
    pub relay_memory: Option<PathBuf>,
    /// A folder on a real disk.
    pub disk: PathBuf,
    /// The npm package, unpacked.
    pub agent_relay: PathBuf,
    /// The script that starts its daemon.
    pub agent_relay_script: PathBuf,
}

/// A running server. Dropping it ends it.
pub struct Server {
    child: Child,
    /// A socket path, or `host:port`.
    pub address: String,
    directory: PathBuf,
    on_disk: PathBuf,
}

impl Server {
    /// Starts the server that speaks `protocol`, on `cores`.
    pub fn start(protocol: &str, cores: &[usize], places: &Places) -> Result<Server, String> {
        Server::try_start(protocol, cores, places).map_err(|error| format!("{protocol} does not start: {error}"))
    }

    fn try_start(protocol: &str, cores: &[usize], places: &Places) -> io::Result<Server> {
        // tmpfs: sockets and what a server insists on writing; nothing there may wait for a disk.
        let directory = Path::new("/dev/shm").join(format!("relay-perf-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("team"))?;
        let on_disk = places.disk.join(format!("relay-perf-{}", std::process::id()));
        let _ = fs::remove_dir_all(&on_disk);
        fs::create_dir_all(&on_disk)?;
        let mut address = directory.join("s").display().to_string();
        let mut command = match protocol {
            "floor" | "splice" => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args([protocol, &address]);
                command
            }
            "log" | "log-nosync" => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["floor", &address, "--journal"]).arg(on_disk.join("journal"));
                if protocol == "log" {
                    command.arg("--flush");
                }
                command
            }
            "relay" | "relay-json" | "relay-memory" => {
                let program =
                    if protocol == "relay-memory" { places.relay_memory.as_ref() } else { Some(&places.relay) };
                let mut command = Command::new(program.ok_or_else(|| io::Error::other("--baseline is not given"))?);
                command.args(["up", "--cores", &cores.len().to_string(), "--no-dashboard", "--socket", &address]);
                command.arg("--data-dir").arg(on_disk.join("data"));
                command
            }
            "redis" => {
                let mut command = Command::new("redis-server");
                command.args(["--port", "0", "--unixsocket", &address, "--save", "", "--appendonly", "no"]);
                command.args(["--maxclients", "12000", "--client-output-buffer-limit", "pubsub 0 0 0"]);
                command.args(["--loglevel", "warning"]);
                command
            }
            "redis-always" | "redis-everysec" => {
                let flushes = protocol.trim_start_matches("redis-");
                let mut command = Command::new("redis-server");
                command.args(["--port", "0", "--unixsocket", &address, "--save", "", "--appendonly", "yes"]);
                command.args(["--appendfsync", flushes, "--auto-aof-rewrite-percentage", "0", "--maxclients", "12000"]);
                command.arg("--dir").arg(&on_disk).args(["--loglevel", "warning"]);
                command
            }
            "nats" | "jetstream" => {
                // It has no Unix sockets. The port is free now; the time until it is taken again is ours to risk.
                let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
                address = format!("127.0.0.1:{port}");
                let mut command = Command::new("nats-server");
                command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
                if protocol == "jetstream" {
                    command.arg("-js").arg("-sd").arg(&on_disk);
                }
                command
            }
            "mosquitto" => {
                let settings = format!(
                    "listener 0 {address}\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n\
                     log_type none\nuser root\n"
                );
                fs::write(directory.join("mosquitto.conf"), settings)?;
                let mut command = Command::new("mosquitto");
                command.arg("-c").arg(directory.join("mosquitto.conf"));
                command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
                command
            }
            "agent-relay" => {
                let mut command = Command::new("node");
                command.arg(&places.agent_relay_script).arg(&places.agent_relay).args([&directory]).arg(&address);
                command.env("NODE_ENV", "production").env("AGENT_RELAY_LOG_LEVEL", "ERROR");
                command
            }
            other => return Err(io::Error::other(format!("nobody knows how to start {other:?}"))),
        };
        let log = File::create(directory.join("log"))?;
        command.current_dir(&directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A child runs where its parent runs.
        let child = measure::on_cores(cores, || command.spawn())?;
        Ok(Server { child, address, directory, on_disk })
    }

    /// The process to measure.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last lines it wrote, for the error that follows.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_dir_all(&self.on_disk);
    }
}
