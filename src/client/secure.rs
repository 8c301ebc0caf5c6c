//! TLS on this side of a connection: whom to believe, what to show, and its failures as sentences.

use super::{Address, Error};
use crate::tls::{ClientFiles, ClientLink, Connector, LinkError};
use std::path::PathBuf;

/// Whom a client believes and what it shows. The files are read once; connections made with clones of one value resume
/// each other's sessions.
#[derive(Clone, Debug)]
pub struct Tls {
    connector: Connector,
    server_name: Option<String>,
    ca: Option<PathBuf>,
    shows_certificate: bool,
}

impl Tls {
    /// Reads the files. `server_name` is the name that the relay's certificate has to have, where it is not the host
    /// connected to.
    pub fn new(files: &ClientFiles, server_name: Option<String>) -> Result<Tls, Error> {
        let connector = Connector::new(files).map_err(|error| Error::Tls(error.to_string()))?;
        Ok(Tls { connector, server_name, ca: files.ca.clone(), shows_certificate: files.cert.is_some() })
    }
}

/// How a connection is kept from others.
#[derive(Clone, Debug, Default)]
pub enum Security {
    /// TLS off this machine, believing the system's authorities; plain over a Unix socket and on loopback.
    #[default]
    ByAddress,
    /// Never TLS.
    Plain,
    /// TLS.
    Tls(Tls),
}

impl Security {
    /// Whether a connection to `address` speaks TLS.
    pub fn is_tls(&self, address: &Address) -> bool {
        match self {
            Security::ByAddress => !address.is_here(),
            Security::Plain => false,
            Security::Tls(_) => true,
        }
    }
}

/// The TLS of one connection: records on one side, bytes of frames on the other.
pub(super) struct Secure {
    link: ClientLink,
    plain: Vec<u8>,
    /// For sentences: where to, by which name, whom we believe and whether we show who we are.
    address: Address,
    name: String,
    ca: Option<PathBuf>,
    shows_certificate: bool,
}

impl Secure {
    /// This end of a new connection to `address`, its first words in `sealed`; `None` where TLS is not spoken.
    pub(super) fn towards(
        address: &Address,
        security: &Security,
        sealed: &mut Vec<u8>,
    ) -> Result<Option<Secure>, Error> {
        let system;
        let tls = match security {
            Security::Tls(tls) => tls,
            Security::ByAddress if security.is_tls(address) => {
                system = Tls::new(&ClientFiles::default(), None)?;
                &system
            }
            Security::ByAddress | Security::Plain => return Ok(None),
        };
        let name = match (&tls.server_name, address) {
            (Some(name), _) => name.clone(),
            (None, Address::Tcp { host, .. }) => host.clone(),
            // A socket has no name of its own; certificates for this machine have this one.
            (None, Address::Unix(_)) => "localhost".to_owned(),
        };
        let link = tls.connector.link(&name).map_err(|error| Error::Tls(error.to_string()))?;
        let mut secure = Secure {
            link,
            plain: Vec::new(),
            address: address.clone(),
            name,
            ca: tls.ca.clone(),
            shows_certificate: tls.shows_certificate,
        };
        secure.open(&[], sealed)?;
        Ok(Some(secure))
    }

    pub(super) fn is_ready(&self) -> bool {
        self.link.is_ready()
    }

    /// What the records that came say. What has to be answered is appended to `out`, whether or not this fails.
    pub(super) fn open(&mut self, records: &[u8], out: &mut Vec<u8>) -> Result<&[u8], Error> {
        self.plain.clear();
        match self.link.feed(records, &mut self.plain, out) {
            // What came before the fault is whole, and mostly says why.
            Err(_) if !self.plain.is_empty() => Ok(&self.plain),
            Ok(()) => Ok(&self.plain),
            Err(error) => Err(self.sentence(error)),
        }
    }

    /// Appends `plain` to `out` as records.
    pub(super) fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.link.seal(plain, out).map_err(|error| self.sentence(error))
    }

    /// Appends the word that nothing more comes.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) {
        self.link.close(out);
    }

    fn sentence(&self, error: LinkError) -> Error {
        let at = format!("the relay at {}", self.address);
        Error::Tls(match error {
            LinkError::NotTls => {
                format!(
                    "what answers at {} does not speak TLS and may be no relay; if it is one, start it with --tls-cert and --tls-key, or leave --ca and the like out",
                    self.address
                )
            }
            LinkError::Untrusted => {
                let believed = match &self.ca {
                    Some(file) => format!("an authority of {}", file.display()),
                    None => "an authority that this system believes".to_owned(),
                };
                format!("the certificate of {at} is not signed by {believed}; name the file of its authority with --ca")
            }
            LinkError::Expired => format!("the certificate of {at} has expired; it must be renewed there"),
            LinkError::WrongName(names) => format!(
                "the certificate of {at} is not for {:?}: {names}; if that is the right relay, say its name with --server-name",
                self.name
            ),
            LinkError::Refused(reason) => {
                let hint = if self.shows_certificate {
                    ""
                } else {
                    "; a client certificate is shown with --client-cert and --client-key"
                };
                format!("{at} refuses the connection: {reason}{hint}")
            }
            // Bytes that were changed on their way, or half a relay: another connection may be better.
            LinkError::Broken(_) if self.is_ready() => return Error::Lost(error.to_string()),
            other => format!("TLS with {at} fails: {other}"),
        })
    }
}
