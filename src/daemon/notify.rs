//! The service manager: readiness, stopping, watchdog, and sockets it has opened for us. Without one, all of it is silence.

use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

/// Listeners the service manager handed over.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Unix stream sockets. When there is one, the daemon binds none of its own and never unlinks it.
    pub unix: Vec<UnixListener>,
    /// TCP sockets.
    pub tcp: Vec<TcpListener>,
}

/// Why inherited sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// Neither Unix stream nor TCP.
    #[error(
        "socket {index} from the service manager is neither a Unix stream socket nor TCP over IPv4 ({error}); correct ListenStream= in relay.socket"
    )]
    Kind {
        /// Its place among them.
        index: usize,
        /// What it said.
        error: std::io::Error,
    },
}

/// Takes the sockets that systemd opened (LISTEN_FDS). Call it once, before any thread starts: it edits the environment.
pub fn inherited() -> Result<Inherited, InheritError> {
    let mut handed = ListenFd::from_env();
    let mut inherited = Inherited::default();
    for index in 0..handed.len() {
        if let Ok(Some(listener)) = handed.take_unix_listener(index) {
            inherited.unix.push(listener);
            continue;
        }
        match handed.take_tcp_listener(index) {
            Ok(Some(listener)) => inherited.tcp.push(listener),
            Ok(None) => {}
            Err(error) => return Err(InheritError::Kind { index, error }),
        }
    }
    Ok(inherited)
}

/// The listeners are open and agents can come.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// The drain has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Signs of life, as often as the service manager wants them.
#[derive(Debug)]
pub struct Watchdog {
    /// Half of what the service manager allows; `None`: it does not watch.
    interval: Option<Duration>,
    told: Option<Instant>,
}

impl Watchdog {
    /// What the environment asks for.
    pub fn of_environment() -> Watchdog {
        Watchdog { interval: sd_notify::watchdog_enabled().map(|limit| limit / 2), told: None }
    }

    /// Gives a sign of life when it is time for one. Never waits: a manager that does not read has to do without.
    pub fn alive(&mut self) {
        let Some(interval) = self.interval else { return };
        if self.told.is_none_or(|told| told.elapsed() >= interval) {
            self.told = Some(Instant::now());
            // The next one may get through.
            let _ = send(&[NotifyState::Watchdog], None);
        }
    }

    /// `timeout`, or less where a sign of life is due before.
    pub fn shorten(&self, timeout: Duration) -> Duration {
        self.interval.map_or(timeout, |interval| timeout.min(interval))
    }
}

/// How long a state change may wait for a manager whose queue is full.
const PATIENCE: Duration = Duration::from_secs(1);

fn tell(states: &[NotifyState<'_>]) {
    // Nobody to tell, or a manager that went away: neither is a reason not to serve.
    let _ = send(states, Some(PATIENCE));
}

/// The crate's own sender waits for ever on a full queue and takes an abstract name for a file of that name.
fn send(states: &[NotifyState<'_>], patience: Option<Duration>) -> std::io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match name.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    let text = states.iter().fold(String::new(), |all, state| format!("{all}{state}\n"));
    let socket = UnixDatagram::unbound()?;
    match patience {
        Some(patience) => socket.set_write_timeout(Some(patience))?,
        None => socket.set_nonblocking(true)?,
    }
    socket.send_to_addr(text.as_bytes(), &address).map(drop)
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}
