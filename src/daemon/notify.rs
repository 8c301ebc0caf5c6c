//! The service manager: readiness, stopping, watchdog, and sockets it has opened for us. Without one, all of it is silence.

use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::time::Duration;

/// Listeners the service manager handed over.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Unix stream sockets. When there is one, the daemon binds none of its own and never unlinks it.
    pub unix: Vec<UnixListener>,
    /// TCP sockets; off loopback they are refused as `--listen` would be.
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
    /// Reachable from elsewhere.
    #[error(
        "the service manager listens on {0}: TCP off loopback requires TLS and authentication, which this version does not have"
    )]
    OffLoopback(std::net::SocketAddr),
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
            Ok(Some(listener)) => {
                let address = listener.local_addr().map_err(|error| InheritError::Kind { index, error })?;
                if !address.ip().is_loopback() {
                    return Err(InheritError::OffLoopback(address));
                }
                inherited.tcp.push(listener);
            }
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

/// A sign of life; see [`watchdog_interval`].
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is to be called: half of what the service manager allows. `None`: no watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn tell(states: &[NotifyState<'_>]) {
    let abstract_name = std::env::var("NOTIFY_SOCKET").ok().and_then(|name| name.strip_prefix('@').map(str::to_owned));
    // Nobody to tell, or a manager that went away: neither is a reason not to serve.
    drop(match abstract_name {
        Some(name) => tell_abstract(&name, states),
        None => sd_notify::notify(states),
    });
}

/// A name in the abstract namespace (containers, `up --detach`), which the crate takes for a file of that name.
fn tell_abstract(name: &str, states: &[NotifyState<'_>]) -> std::io::Result<()> {
    let text = states.iter().fold(String::new(), |all, state| format!("{all}{state}\n"));
    let address = SocketAddr::from_abstract_name(name)?;
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address).map(drop)
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}
