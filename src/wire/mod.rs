//! Bytes to [`Frame`] and back, in two dialects that share one socket. Sans-io: no socket, clock or thread here.
//!
//! A message's body is checked once, where it enters; from there on it travels, waits and leaves as the same bytes.
//! `docs/WIRE.md` draws the native dialect byte by byte; `tests/wire` ties code and drawing together.
#![forbid(unsafe_code)]

mod body;
mod control;
mod corrupt;
pub mod decode;
pub mod encode;
mod frame;
mod header;
pub mod json;

pub use body::MessageFields;
pub use control::{
    ANSWER_PART_BYTES_MAX, CREDENTIAL_BYTES_MAX, PING_BYTES_MAX, QUERY_ARGUMENT_BYTES_MAX, RECEIPT_RECORDS_MAX,
};
pub use corrupt::Corrupt;
pub use frame::*;
pub use header::{FLAG_ACK_ONE, FLAG_CHANNEL, FLAG_REDELIVERED, HEADER_BYTES, Header, Kind, MAGIC, VERSION};

/// Which language a connection speaks, told by its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// This project's own: fixed header, rkyv bodies.
    Native,
    /// That of existing `agent-relay` clients: a length and one JSON object.
    Json,
}

impl Dialect {
    /// The dialect that starts with `first`; `None` for anything else (0x16 would be TLS).
    pub fn of(first: u8) -> Option<Dialect> {
        match first {
            MAGIC => Some(Dialect::Native),
            // The big-endian length of at most 1 MiB starts with 00.
            0 => Some(Dialect::Json),
            _ => None,
        }
    }
}
