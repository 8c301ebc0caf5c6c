//! The relay's end: what is shown and demanded, and one link for each connection.

use super::link::Link;
use super::{LinkError, TlsError, VERSIONS, Workspace, files, identity, provider};
use crate::base::keys::Certificate;
use rustls::server::{UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::{Error, HandshakeKind, InconsistentKeys, ServerConfig};
use std::path::PathBuf;
use std::sync::Arc;

/// What an [`Acceptor`] is made of.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate chain, PEM, the relay's own first.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The authorities whose client certificates are believed; none: no client is asked for one.
    pub ca: Option<PathBuf>,
    /// Whether every client must show one.
    pub mutual: bool,
}

/// What the relay shows to its peers and demands of them. Shared by all shards; a change of files makes a new one, and
/// with it new keys for tickets, so that no session of before is resumed under rules that no longer hold.
pub struct Acceptor {
    config: Arc<ServerConfig>,
    warnings: Vec<String>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Acceptor")
    }
}

impl Acceptor {
    /// Reads the files.
    pub fn load(files: &Files) -> Result<Acceptor, TlsError> {
        let chain = files::certificates("certificate", &files.cert)?;
        let key = files::private_key(&files.key)?;
        let warnings = files::concerns(&files.cert, &files.key, &chain);
        let setup = |error: Error| TlsError::Setup { reason: error.to_string() };
        let verifier = match &files.ca {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(files::authorities(ca)?);
                let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let builder = if files.mutual { builder } else { builder.allow_unauthenticated() };
                builder.build().map_err(|error| TlsError::Setup { reason: error.to_string() })?
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(setup)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    TlsError::KeyMismatch { cert: files.cert.clone(), key: files.key.clone() }
                }
                error => TlsError::Unusable { what: "private key", file: files.key.clone(), reason: error.to_string() },
            })?;
        // Sessions live in tickets that only this process can read: nothing is kept for who does not come back, and every
        // shard can resume what another began.
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(setup)?;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Acceptor { config: Arc::new(config), warnings })
    }

    /// What the operator should know about the files, though they work.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The relay's end of a new connection.
    pub fn link(&self) -> Result<ServerLink, LinkError> {
        let end = UnbufferedServerConnection::new(self.config.clone())?;
        Ok(ServerLink { link: Link::new(end), certificate: None, known: false })
    }
}

/// The relay's end of one connection. It may go to another thread between any two calls.
pub struct ServerLink {
    link: Link<UnbufferedServerConnection>,
    certificate: Option<Certificate>,
    /// Whether the handshake was seen to be complete.
    known: bool,
}

impl ServerLink {
    /// Takes what was received. Plaintext is appended to `plaintext`, what the peer must be sent for it to `out`; both may
    /// have grown when there is an error, too, and then the link has ended. Bytes behind the peer's close are ignored.
    pub fn feed(
        &mut self,
        received: &[u8],
        work: &mut Workspace,
        plaintext: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        self.link.feed(received, work, plaintext, out)?;
        if !self.known && self.link.is_ready() {
            self.known = true;
            let shown = self.link.end.peer_certificates().and_then(<[_]>::first);
            self.certificate = shown.map(identity::read).transpose()?;
        }
        Ok(())
    }

    /// Whether the handshake is complete: from then on [`ServerLink::seal`] may be used.
    pub fn is_ready(&self) -> bool {
        self.known
    }

    /// Whether the peer has said that nothing more will come.
    pub fn peer_closed(&self) -> bool {
        self.link.peer_closed()
    }

    /// Encrypts the bytes of `pieces`, one after the other, in records as large as they can be, onto the end of `out`.
    pub fn seal<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]>,
        work: &mut Workspace,
        out: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        self.link.seal(pieces, work, out)
    }

    /// Tells the peer that nothing more will come; nothing may be sealed after that. Does nothing before the handshake.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        self.link.close(out);
    }

    /// The client certificate, verified; known when the handshake is complete, none when the client has shown none.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// Whether the handshake resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.link.end.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The version that was agreed on, for people.
    pub fn version(&self) -> &'static str {
        match self.link.end.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "none",
        }
    }
}
