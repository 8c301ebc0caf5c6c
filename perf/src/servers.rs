//! Starts the servers that are measured, each pinned, in its best case; stops what it started. The peers keep nothing on
//! disk unless their name here says so; the relay keeps everything, unless it is the one from before it had a store.
#![forbid(unsafe_code)]

use crate::{licence, measure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

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

/// API keys of a relay that wants one.
const KEYS: usize = 1_000;
/// Messages per minute of each of them: no limit of a key is to be measured.
const RATE_PER_MINUTE: &str = "60000000";

/// A certificate of an authority made for this run, the same kind of key for every server: ECDSA on P-256.
struct Papers {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Papers {
    fn make(directory: &Path) -> io::Result<Papers> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "relay-perf");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = || KeyPair::generate().map_err(io::Error::other);
        let issuer = CertifiedIssuer::self_signed(params, key()?).map_err(io::Error::other)?;
        let hosts = ["localhost", "127.0.0.1", "*.relay.test"].map(str::to_owned);
        let own = key()?;
        let params = CertificateParams::new(hosts).map_err(io::Error::other)?;
        let certificate = params.signed_by(&own, &issuer).map_err(io::Error::other)?;
        let place = |name: &str| directory.join(name);
        let papers = Papers { ca: place("ca.pem"), cert: place("cert.pem"), key: place("key.pem") };
        fs::write(&papers.ca, issuer.pem())?;
        fs::write(&papers.cert, certificate.pem())?;
        fs::write(&papers.key, own.serialize_pem())?;
        Ok(papers)
    }
}

/// A port of loopback that is free now; the time until it is taken again is ours to risk.
fn free_port() -> io::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// A running server. Dropping it ends it.
pub struct Server {
    child: Child,
    /// A socket path, or `host:port`.
    pub address: String,
    /// The authority of its certificate, where it has one.
    pub ca: Option<PathBuf>,
    /// API keys that it knows, one a line, where it wants one.
    pub keys: Option<PathBuf>,
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
        let socket = directory.join("s");
        let papers = protocol.ends_with("-tls").then(|| Papers::make(&directory)).transpose()?;
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
            "relay" | "relay-tcp" | "relay-tls" | "relay-auth" | "relay-json" | "relay-memory" => {
                let program =
                    if protocol == "relay-memory" { places.relay_memory.as_ref() } else { Some(&places.relay) };
                let mut command = Command::new(program.ok_or_else(|| io::Error::other("--baseline is not given"))?);
                command.args(["up", "--cores", &cores.len().to_string(), "--no-dashboard", "--socket", &address]);
                command.arg("--data-dir").arg(on_disk.join("data"));
                if protocol != "relay-memory" {
                    command.env(licence::VARIABLE, licence::evaluation().map_err(io::Error::other)?);
                }
                if matches!(protocol, "relay-tcp" | "relay-tls") {
                    address = free_port()?;
                    command.args(["--listen", &address]);
                }
                if let Some(papers) = &papers {
                    command.arg("--tls-cert").arg(&papers.cert).arg("--tls-key").arg(&papers.key);
                }
                if protocol == "relay-auth" {
                    command.arg("--require-auth");
                }
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
            "nats" | "nats-tls" | "jetstream" => {
                // It has no Unix sockets.
                address = free_port()?;
                let mut command = Command::new("nats-server");
                command.args(["-a", "127.0.0.1", "-p", address.rsplit(':').next().unwrap_or_default()]);
                if let Some(papers) = &papers {
                    command.arg("--tls").arg("--tlscert").arg(&papers.cert).arg("--tlskey").arg(&papers.key);
                }
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
        let ca = papers.map(|papers| papers.ca);
        let mut server = Server { child, address, ca, keys: None, directory, on_disk };
        if protocol == "relay-auth" {
            server.keys = Some(server.make_keys(places, &socket)?);
        }
        Ok(server)
    }

    /// As many keys as a busy relay has, through its own command line, into a file with one a line.
    fn make_keys(&self, places: &Places, socket: &Path) -> io::Result<PathBuf> {
        let started = Instant::now();
        // It listens when it is ready.
        while std::os::unix::net::UnixStream::connect(socket).is_err() && started.elapsed() < Duration::from_secs(15) {
            thread::sleep(Duration::from_millis(20));
        }
        let mut made = String::new();
        for number in 0..KEYS {
            let mut command = Command::new(&places.relay);
            command.args(["keys", "create", "--name", &format!("perf-{number}"), "--rate", RATE_PER_MINUTE]);
            command.args(["--scopes", "send,receive", "--json", "--socket"]).arg(socket);
            let output = command.current_dir(&self.directory).stdin(Stdio::null()).output()?;
            let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let Some(key) = answer["key"].as_str() else {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(io::Error::other(format!("`relay keys create` made no key: {said}")));
            };
            made.push_str(key);
            made.push('\n');
        }
        let file = self.directory.join("keys");
        fs::write(&file, made)?;
        Ok(file)
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
