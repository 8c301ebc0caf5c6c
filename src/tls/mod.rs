//! TLS by rustls, sans-io: a record layer for the shard loop and for the client. Knows bytes and certificates, never
//! sockets, threads or frames. The only room that names rustls.
//!
//! ```text
//! Acceptor ── link() ──► ServerLink      feed: ciphertext in ──► plaintext, and what must be said back
//! Connector ─ link(name) ► ClientLink    seal: plaintext in ──► ciphertext;  close: our last word
//! ```
//! Law: a link that has nothing half-read holds no buffer; whoever drives it lends its [`Workspace`].
#![forbid(unsafe_code)]

mod client;
mod error;
mod files;
mod identity;
mod link;
mod server;
#[cfg(test)]
mod tests;

pub use client::{ClientFiles, ClientLink, Connector};
pub use error::{LinkError, TlsError};
pub use files::Authorities;
pub use link::Workspace;
pub use server::{Acceptor, Files, ServerLink};

use rustls::crypto::CryptoProvider;
use std::sync::Arc;

/// The first byte of every TLS connection: a handshake record. No dialect of the relay begins with it.
pub const FIRST_BYTE: u8 = 0x16;

/// Bytes that a peer may send before its handshake is complete; rustls takes no longer message than this either.
pub const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// What is negotiated: TLS 1.3, and of 1.2 the suites with ECDHE and AEAD; ring knows no others.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Best first.
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
