//! The client's end. A relay's certificate is always verified, and there is no way to ask for less.

use super::link::Link;
use super::{LinkError, TlsError, VERSIONS, Workspace, files, provider};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::{ClientConfig, Error, HandshakeKind, InconsistentKeys};
use rustls_pki_types::ServerName;
use std::path::PathBuf;
use std::sync::Arc;

/// Sessions that a connector remembers, to resume them.
const SESSIONS_MAX: usize = 32;

/// What a [`Connector`] is made of.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct ClientFiles {
    /// The authorities by which relays are verified, PEM; none: those that this system believes.
    pub ca: Option<PathBuf>,
    /// The client's own certificate chain, PEM, for relays that ask for one …
    pub cert: Option<PathBuf>,
    /// … and its private key, PEM.
    pub key: Option<PathBuf>,
}

/// What a client believes and shows. Cheap to clone; clones share the sessions to resume.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Connector")
    }
}

impl Connector {
    /// Reads the files.
    pub fn new(files: &ClientFiles) -> Result<Connector, TlsError> {
        let roots = match &files.ca {
            Some(ca) => files::authorities(ca)?,
            None => files::system_authorities()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(|error| TlsError::Setup { reason: error.to_string() })?
            .with_root_certificates(roots);
        let mut config = match (&files.cert, &files.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(_), None) => return Err(TlsError::Half { missing: "the private key" }),
            (None, Some(_)) => return Err(TlsError::Half { missing: "the certificate" }),
            (Some(cert), Some(key)) => {
                let chain = files::certificates("certificate", cert)?;
                builder.with_client_auth_cert(chain, files::private_key(key)?).map_err(|error| match error {
                    Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                        TlsError::KeyMismatch { cert: cert.clone(), key: key.clone() }
                    }
                    error => TlsError::Unusable { what: "private key", file: key.clone(), reason: error.to_string() },
                })?
            }
        };
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Ok(Connector { config: Arc::new(config) })
    }

    /// The client's end of a new connection to the relay of this name: a DNS name or an IP address, which its
    /// certificate must be made for.
    pub fn link(&self, server: &str) -> Result<ClientLink, TlsError> {
        let name = ServerName::try_from(server.to_owned())
            .map_err(|_| TlsError::ServerName { name: server.chars().take(256).collect() })?;
        let end = UnbufferedClientConnection::new(self.config.clone(), name)
            .map_err(|error| TlsError::Setup { reason: error.to_string() })?;
        Ok(ClientLink { link: Link::new(end), work: Workspace::default() })
    }
}

#[cfg(test)]
impl Connector {
    /// The same, with nothing newer than TLS 1.2.
    pub(super) fn only_tls12(self, ca: &std::path::Path, pair: (&std::path::Path, &std::path::Path)) -> Connector {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(files::authorities(ca).unwrap())
            .with_client_auth_cert(
                files::certificates("certificate", pair.0).unwrap(),
                files::private_key(pair.1).unwrap(),
            )
            .unwrap();
        Connector { config: Arc::new(config) }
    }
}

#[cfg(test)]
impl ClientLink {
    /// Asks for new keys, which no client of ours does.
    pub(super) fn refresh_keys(&mut self, out: &mut Vec<u8>) {
        self.link.refresh_keys(out);
    }
}

/// The client's end of one connection.
pub struct ClientLink {
    link: Link<UnbufferedClientConnection>,
    work: Workspace,
}

impl ClientLink {
    /// Takes what was received. Plaintext is appended to `plaintext`, what the relay must be sent for it to `out`; both may
    /// have grown when there is an error, too, and then the link has ended. The first call, with nothing received, begins
    /// the handshake.
    pub fn feed(&mut self, received: &[u8], plaintext: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), LinkError> {
        self.link.feed(received, &mut self.work, plaintext, out)
    }

    /// Whether the handshake is complete, as far as this end sees: from then on [`ClientLink::seal`] may be used. A relay
    /// that does not accept the client's certificate may say so later.
    pub fn is_ready(&self) -> bool {
        self.link.is_ready()
    }

    /// Whether the relay has said that nothing more will come. A connection that ends without may have been cut.
    pub fn peer_closed(&self) -> bool {
        self.link.peer_closed()
    }

    /// Encrypts `plaintext` onto the end of `out`.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), LinkError> {
        self.link.seal(std::iter::once(plaintext), &mut self.work, out)
    }

    /// Tells the relay that nothing more will come; nothing may be sealed after that. Does nothing before the handshake.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        self.link.close(out);
    }

    /// Whether the handshake resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.link.end.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}
