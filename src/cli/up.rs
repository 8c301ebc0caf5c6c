//! `relay up`: starts the daemon here, or in the background.

use super::{Failure, launch, print};
use crate::daemon::lock;
use crate::daemon::paths::{Environment, Place};
use crate::daemon::settings::{Flags, Settings, SettingsError};
use crate::daemon::{DaemonError, Ready};
use argh::{ArgsInfo, FromArgs};
use std::path::PathBuf;

/// Start the relay in the foreground. SIGTERM drains and stops it; SIGINT twice stops it at once.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "up",
    help_triggers("-h", "--help"),
    example = "relay up --cores 4
relay up --detach --log-format json",
    note = "Settings not given here come from the environment, then relay.toml in the project folder, then the
built-in defaults; `relay config` shows them all. Under systemd the relay reports readiness and takes
over sockets (socket activation)."
)]
pub(super) struct Up {
    /// shards, each a thread on a CPU of its own (default: every CPU allowed)
    #[argh(option, arg_name = "N")]
    cores: Option<String>,
    /// listen on TCP as well; off loopback with TLS only; may be repeated
    #[argh(option, arg_name = "address")]
    listen: Vec<String>,
    /// base directory of all data
    #[argh(option, arg_name = "directory")]
    data_dir: Option<PathBuf>,
    /// the Unix socket
    #[argh(option, arg_name = "path")]
    socket: Option<PathBuf>,
    /// one relay for the whole machine instead of one per project
    #[argh(switch)]
    global: bool,
    /// settings file instead of relay.toml in the project folder
    #[argh(option, arg_name = "file")]
    config: Option<PathBuf>,
    /// run in the background; returns when agents can connect
    #[argh(switch)]
    detach: bool,
    /// least important events to log: error, warn, info, debug, trace
    #[argh(option, arg_name = "level")]
    log: Option<String>,
    /// log lines as text or json
    #[argh(option, arg_name = "format")]
    log_format: Option<String>,
    /// how shards wait: auto, uring, epoll
    #[argh(option, arg_name = "driver")]
    backend: Option<String>,
    /// when messages are on disk: batch, strict or relaxed
    #[argh(option, arg_name = "mode")]
    durability: Option<String>,
    /// how long messages are kept and owed to absent agents: 30d, 4w, unlimited (default: 7 days)
    #[argh(option, arg_name = "time")]
    retention: Option<String>,
    /// file with the key that encrypts the store; `relay keygen` makes one
    #[argh(option, arg_name = "file")]
    db_key: Option<PathBuf>,
    /// agents need an API key or a token to connect
    #[argh(switch)]
    require_auth: bool,
    /// certificate chain, PEM: turns TLS on
    #[argh(option, arg_name = "file")]
    tls_cert: Option<PathBuf>,
    /// its private key, PEM
    #[argh(option, arg_name = "file")]
    tls_key: Option<PathBuf>,
    /// authorities whose client certificates are believed, PEM
    #[argh(option, arg_name = "file")]
    tls_ca: Option<PathBuf>,
    /// every TLS client must show a certificate of those authorities
    #[argh(switch)]
    tls_mutual: bool,
    /// accepted for the sake of scripts: there is no dashboard yet
    #[argh(switch, hidden_help)]
    #[expect(dead_code, reason = "there is nothing to switch off yet")]
    no_dashboard: bool,
    /// the background half of --detach
    #[argh(switch, hidden_help)]
    detached: bool,
}

impl Up {
    pub(super) fn flags(&self) -> Flags {
        let place = Place { data_dir: self.data_dir.clone(), socket: self.socket.clone(), global: self.global };
        let mut values: Vec<(&'static str, String)> =
            self.listen.iter().map(|address| ("listen", address.clone())).collect();
        let single = [
            ("cores", &self.cores),
            ("log.level", &self.log),
            ("log.format", &self.log_format),
            ("backend", &self.backend),
            ("persistence.durability", &self.durability),
            ("retention.days", &self.retention),
        ];
        values.extend(single.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))));
        values.extend(self.db_key.iter().map(|path| ("persistence.db_key", path.display().to_string())));
        let paths = [("tls.cert", &self.tls_cert), ("tls.key", &self.tls_key), ("tls.ca", &self.tls_ca)];
        values.extend(paths.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?.display().to_string()))));
        let switches = [("auth.required", self.require_auth), ("tls.mutual", self.tls_mutual)];
        values.extend(switches.into_iter().filter(|(_, on)| *on).map(|(key, _)| (key, "true".to_owned())));
        Flags { place, config: self.config.clone(), values }
    }
}

/// The settings in force, or the failure with the right exit code.
pub(super) fn settings(flags: &Flags) -> Result<Settings, Failure> {
    Settings::read(flags, &Environment::of_process())
        .map_err(|error: SettingsError| if error.is_usage() { Failure::usage(error) } else { Failure::failed(error) })
}

pub(super) fn run(command: Up) -> Result<(), Failure> {
    let settings = settings(&command.flags())?;
    if command.detach {
        return detach(&settings);
    }
    if command.detached {
        // A session of its own: the terminal that started it may close. Fails only where that is so already.
        let _ = rustix::process::setsid();
    }
    let (store, access) = (store_line(&settings), Access::of(&settings));
    crate::daemon::run(settings, |ready| {
        // Whoever started it may have gone away since: that is no reason to stop.
        let _ = print::out(&greeting(ready, &store, &access));
    })
    .map_err(|error| match error {
        // It was to stop: a service manager need not start it again.
        DaemonError::Unwritten { .. } => Failure::Lost(error.to_string()),
        error => Failure::failed(error),
    })
}

/// Where messages are kept, and which failure they survive.
fn store_line(settings: &Settings) -> String {
    let (path, durability) = (settings.layout.store_folder(), settings.durability);
    let encrypted = if settings.db_key.is_some() { ", encrypted" } else { "" };
    format!("  store   {}{encrypted}\n          {}: {}\n", path.display(), durability.name(), durability.survives())
}

/// Who is let in, and over which wire.
struct Access {
    tls: &'static str,
    line: &'static str,
}

impl Access {
    fn of(settings: &Settings) -> Access {
        let tls = match &settings.tls {
            Some(tls) if tls.mutual => ", TLS with client certificates",
            Some(_) => ", TLS",
            None => "",
        };
        let line = if settings.require_auth { "  access  an API key or a token is required\n" } else { "" };
        Access { tls, line }
    }
}

/// What the operator reads when every listener is open.
fn greeting(ready: &Ready, store: &str, access: &Access) -> String {
    let mut text = format!("relay {} is up, pid {}\n", env!("CARGO_PKG_VERSION"), std::process::id());
    text += &format!("  socket  {}\n", ready.socket.display());
    for address in &ready.listen {
        text += &format!("  tcp     {address}{}\n", access.tls);
    }
    text += access.line;
    let cpus = ready.cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let count = ready.cpus.len();
    let (shards, on) = if count == 1 { ("shard", "CPU") } else { ("shards", "CPUs") };
    text += &format!("  shards  {count} {shards} on {on} {cpus}");
    if let Some(report) = ready.reports.first() {
        text += &format!(" ({}, {} receive)\n", report.backend, report.receive);
        if let Some(fallback) = &report.fallback {
            text += &format!("          {fallback}\n");
        }
    }
    text += store;
    for note in &ready.notes {
        text += &format!("  note    {note}\n");
    }
    text + "Stop it with Ctrl-C or `relay down`.\n"
}

fn detach(settings: &Settings) -> Result<(), Failure> {
    if let Some(holder) = lock::live_holder(&settings.layout) {
        return Err(Failure::failed(lock::LockError::Held(holder)));
    }
    // The same flags again; what the environment and the file say, the child reads itself.
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let first_is_flag = std::env::args_os().nth(1).is_some_and(|first| first.to_string_lossy().starts_with('-'));
    let command = first_is_flag.then(|| "up".into());
    let arguments: Vec<_> = command.into_iter().chain(arguments).chain(["--detached".into()]).collect();
    settings.layout.create().map_err(Failure::failed)?;
    let log = settings.layout.log_file();
    let mut child = launch::start(&arguments, Some(&log))?;
    launch::wait_until_ready(&mut child, Some(&log))?;
    print::out(&format!(
        "relay is running: pid {}, socket {}\nlog: {}\nStop it with `relay down`.\n",
        child.pid(),
        settings.layout.socket.display(),
        log.display()
    ))
}
