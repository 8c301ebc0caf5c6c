//! Which daemon is meant and how it is reached: what the flags of every command that talks to one mean. A credential comes
//!  from the environment only: a flag would show it to everybody who lists processes.

use super::Failure;
use crate::base::Whole;
use crate::base::name::ERRAND_PREFIX;
use crate::client::{self, Address, ClientFiles, Credential, Inquiry, Options, Security, Tls};
use crate::daemon::paths::{Environment, Layout, Place};
use crate::daemon::settings;
use crate::wire::{ErrorCode, QueryKind};
use std::cell::RefCell;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the credential is.
pub(super) const CREDENTIAL_VARIABLE: &str = "AGENT_RELAY_API_KEY";

/// Seconds that a command may be told to wait: a day.
pub(super) type Seconds = Whole<0, 86_400>;

/// What the flags say.
#[derive(Default)]
pub(super) struct Flags<'a> {
    pub(super) data_dir: Option<&'a Path>,
    pub(super) socket: Option<&'a Path>,
    pub(super) global: bool,
    pub(super) connect: Option<&'a str>,
    pub(super) ca: Option<&'a Path>,
    pub(super) client_cert: Option<&'a Path>,
    pub(super) client_key: Option<&'a Path>,
    pub(super) server_name: Option<&'a str>,
}

impl Flags<'_> {
    pub(super) fn reach(&self) -> Result<Reach, Failure> {
        if self.connect.is_some() && (self.socket.is_some() || self.global || self.data_dir.is_some()) {
            let reason = "--connect says which relay is meant; leave --socket, --global and --data-dir out";
            return Err(Failure::Usage(reason.to_owned()));
        }
        let connect: Option<Address> = self
            .connect
            .map(|text| text.parse().map_err(|problem| Failure::Usage(format!("--connect: {problem}"))))
            .transpose()?;
        let named = connect.is_some();
        let own = !named && self.socket.is_none();
        let (at, elsewhere) = match connect {
            Some(Address::Unix(path)) => (Some(path), None),
            other => (self.socket.map(Into::into), other),
        };
        let place = Place { data_dir: self.data_dir.map(Into::into), socket: at, global: self.global };
        let layout = Layout::of(&place, &Environment::of_process()).map_err(Failure::failed)?;
        let address = elsewhere.unwrap_or_else(|| Address::Unix(settings::socket_of_running(&layout)));
        Ok(Reach { layout, security: self.security()?, address, named, own, inquiry: RefCell::new(None) })
    }

    fn security(&self) -> Result<Security, Failure> {
        if self.client_cert.is_some() != self.client_key.is_some() {
            return Err(Failure::Usage("--client-cert and --client-key are needed together".to_owned()));
        }
        if self.ca.is_none() && self.client_cert.is_none() && self.server_name.is_none() {
            return Ok(Security::ByAddress);
        }
        let files = ClientFiles {
            ca: self.ca.map(PathBuf::from),
            cert: self.client_cert.map(PathBuf::from),
            key: self.client_key.map(PathBuf::from),
        };
        Tls::new(&files, self.server_name.map(str::to_owned)).map(Security::Tls).map_err(Failure::failed)
    }
}

/// What the environment has to show a relay that asks.
fn credential_text() -> Option<String> {
    std::env::var(CREDENTIAL_VARIABLE).ok().filter(|text| !text.trim().is_empty())
}

/// The daemon that is meant.
pub(super) struct Reach {
    pub(super) layout: Layout,
    address: Address,
    security: Security,
    /// Whether --connect says which: then it is not this project's for all we know.
    named: bool,
    /// Whether it is the one of this place: neither --connect nor --socket says which.
    own: bool,
    /// The session in which questions are asked, once one was.
    inquiry: RefCell<Option<Inquiry>>,
}

impl Reach {
    /// The daemon of this machine that the three flags mean.
    pub(super) fn of(data_dir: Option<&Path>, socket: Option<&Path>, global: bool) -> Result<Reach, Failure> {
        Flags { data_dir, socket, global, ..Flags::default() }.reach()
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether it is reached by TCP: nothing is known of its process and its files.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.address.is_tcp()
    }

    /// Whether the relay of this place does not run, so that its store can be read instead.
    pub(super) fn is_off(&self) -> bool {
        match &self.address {
            // Connecting first: a service manager may be at the socket, and start it.
            Address::Unix(path) if self.own => matches!(
                UnixStream::connect(path).map_err(|error| error.kind()),
                Err(ErrorKind::NotFound | ErrorKind::ConnectionRefused)
            ),
            _ => false,
        }
    }

    /// Whether a name and mostly a credential are needed, because the daemon does not take us for its owner.
    pub(super) fn needs_session(&self) -> bool {
        // Who is not there is somebody's whom we shall not find either way.
        self.address.is_tcp() || self.security.is_tls(&self.address) || self.is_anothers()
    }

    /// Whether it is a socket of this machine that another user has made.
    fn is_anothers(&self) -> bool {
        let me = rustix::process::geteuid().as_raw();
        match &self.address {
            Address::Tcp { .. } => false,
            Address::Unix(path) => std::fs::metadata(path).is_ok_and(|about| about.uid() != me && me != 0),
        }
    }

    /// How to connect as `name`.
    pub(super) fn options(&self, name: &str, program: &str) -> Result<Options, Failure> {
        let credential = match credential_text() {
            Some(text) => Credential::read(text)
                .map_err(|problem| Failure::Failed(format!("{CREDENTIAL_VARIABLE}: {problem}")))?,
            None => Credential::default(),
        };
        let security = self.security.clone();
        Ok(Options { program: program.to_owned(), credential, security, ..Options::named(name) })
    }

    /// Asks one question, without a session where that will do.
    pub(super) fn ask(&self, kind: QueryKind, arguments: &str, timeout: Duration) -> Result<Vec<u8>, Failure> {
        if !self.needs_session() {
            return client::ask(&self.address, kind, arguments, timeout).map_err(|error| self.explain(error));
        }
        let mut inquiry = self.inquiry.borrow_mut();
        let open = match inquiry.take() {
            Some(open) => open,
            None => {
                let options = self.options("", "relay")?;
                Inquiry::open(&self.address, &options).map_err(|error| self.explain(error))?
            }
        };
        let answer = inquiry.insert(open).ask(kind, arguments, timeout);
        if matches!(answer, Err(ref error) if error.is_passing()) {
            *inquiry = None;
        }
        answer.map_err(|error| self.explain(error))
    }

    /// The session in which questions were asked, to see how it ends.
    pub(super) fn take_inquiry(&self) -> Option<Inquiry> {
        self.inquiry.borrow_mut().take()
    }

    /// Said when nobody answers.
    pub(super) fn not_running(&self) -> String {
        let socket = match &self.address {
            Address::Tcp { .. } => {
                return format!("no relay answers at {}; is it up there, with --listen?", self.address);
            }
            Address::Unix(path) if self.named => return format!("no relay answers at the socket {}", path.display()),
            Address::Unix(path) => path.display(),
        };
        let whose = match &self.layout.root {
            Some(root) => format!("for {}", root.display()),
            None => "for this machine (--global)".to_owned(),
        };
        format!("no relay is running {whose} (socket {socket}); start one with `relay up`")
    }

    pub(super) fn explain(&self, error: client::Error) -> Failure {
        match error {
            client::Error::NoDaemon(_) => Failure::Failed(self.not_running()),
            client::Error::Timeout(ref address) if address.is_tcp() => Failure::Failed(format!(
                "what listens at {address} did not answer in time; it is busy, wants TLS (--ca FILE), or is no relay"
            )),
            // It hangs up without a word: whoever may not speak is not spoken to.
            client::Error::Lost(_) if self.is_anothers() => Failure::Failed(format!(
                "the relay at {} is another user's and has closed the connection; it serves nobody else unless it runs with --require-auth",
                self.address
            )),
            client::Error::Refused { code: ErrorCode::Unauthorized, .. } => {
                let advice = if credential_text().is_some() {
                    "the key or token that was shown is the one in"
                } else {
                    "put an API key or a token in"
                };
                Failure::Failed(format!("{error}; {advice} {CREDENTIAL_VARIABLE}"))
            }
            // The name was made up for the question: nobody would know it.
            client::Error::Refused { code: ErrorCode::Forbidden, ref message } if message.contains(ERRAND_PREFIX) => {
                let advice = if message.ends_with("certificate") {
                    "questions by TCP need a key with the scope admin that is bound to no agents, without a client certificate (here one speaks for its own names alone)"
                } else {
                    "questions by TCP need a key with the scope admin that is bound to no agents"
                };
                Failure::Failed(advice.to_owned())
            }
            client::Error::Refused { code: ErrorCode::QuotaExceeded, ref message }
                if message.starts_with("Agent limit") =>
            {
                Failure::Failed(format!(
                    "{error}; `relay agents` shows who is connected; `relay license activate KEY` raises the limit"
                ))
            }
            client::Error::Refused { code: ErrorCode::BadRequest, .. } if self.speaks_plain_tcp() => {
                Failure::Failed(format!("{error}; --ca FILE does, and says whom to believe"))
            }
            other => Failure::failed(other),
        }
    }

    fn speaks_plain_tcp(&self) -> bool {
        self.address.is_tcp() && !self.security.is_tls(&self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(flags: &Flags<'_>) -> String {
        match flags.reach() {
            Err(Failure::Usage(text)) => text,
            Err(other) => panic!("{other:?}"),
            Ok(reach) => panic!("{}", reach.address),
        }
    }

    #[test]
    fn flags_that_cannot_be_meant_together_are_refused() {
        let connect = Some("127.0.0.1:7070");
        assert!(refusal(&Flags { connect, global: true, ..Flags::default() }).contains("--connect"));
        assert!(refusal(&Flags { connect: Some("tcp://nowhere"), ..Flags::default() }).starts_with("--connect: "));
        for wrong in ["127.0.0.1", "https://relay.example", "relay.example:99999"] {
            let text = refusal(&Flags { connect: Some(wrong), ..Flags::default() });
            assert!(text.starts_with(&format!("--connect: {wrong} is not host:port")), "{text}");
        }
        let nowhere = Flags { connect: Some("/nosock"), ..Flags::default() }.reach().unwrap();
        assert_eq!(nowhere.not_running(), "no relay answers at the socket /nosock");
        let client_cert = Some(Path::new("c.pem"));
        assert!(refusal(&Flags { connect, client_cert, ..Flags::default() }).contains("--client-key"));
    }

    #[test]
    fn a_refusal_says_what_would_help() {
        let reach = Flags { connect: Some("127.0.0.1:7070"), ..Flags::default() }.reach().unwrap();
        let explained = |code, message: &str| {
            let Failure::Failed(text) = reach.explain(client::Error::Refused { code, message: message.into() }) else {
                panic!("{message}")
            };
            text
        };
        let text = explained(ErrorCode::Forbidden, "Agent name \"__cli-07\" not allowed for this key");
        assert_eq!(text, "questions by TCP need a key with the scope admin that is bound to no agents");
        assert!(explained(ErrorCode::Forbidden, "Agent name \"bob\" not allowed for this key").contains("bob"));
        assert!(explained(ErrorCode::QuotaExceeded, "Agent limit reached (10).").contains("`relay agents`"));
        assert!(explained(ErrorCode::Unauthorized, "Authentication required").contains(CREDENTIAL_VARIABLE));
    }

    #[test]
    fn a_port_needs_a_session_and_a_socket_of_ours_does_not() {
        let reach = |connect| Flags { connect: Some(connect), ..Flags::default() }.reach().unwrap();
        assert!(reach("127.0.0.1:7070").needs_session() && reach("127.0.0.1:7070").is_elsewhere());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let here = reach(path.to_str().unwrap());
        assert!(!here.needs_session() && !here.is_elsewhere());
    }
}
