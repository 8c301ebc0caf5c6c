//! Why bytes are not a frame. Each variant names what was found; the session closes with it.

use crate::base::CloseReason;
use crate::base::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX};

/// Bytes that cannot be a frame: the peer is at fault, and the stream has no next frame to look for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Corrupt {
    /// Not a frame's first byte.
    #[error("a frame starts with A7, found {0:02X}")]
    Magic(u8),
    /// A version this relay does not speak.
    #[error("protocol version {0} is not served; this relay speaks version 1")]
    Version(u8),
    /// An unknown kind.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// More than a frame may hold.
    #[error("Frame too large: {length} > {FRAME_BYTES_MAX}")]
    TooLong {
        /// What the header claims, header included.
        length: u64,
    },
    /// More than may come from a stranger before WELCOME.
    #[error("Frame too large: {length} > {HELLO_BYTES_MAX}, which is the most before WELCOME")]
    HelloTooLong {
        /// What it would be long, as far as that is known.
        length: u64,
    },
    /// Bytes that must be zero are not.
    #[error("reserved header bytes 28 to 31 must be zero")]
    Reserved,
    /// The body is not what was sent.
    #[error("body checksum is {found:08X}, the header says {expected:08X}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// What the body has.
        found: u32,
    },
    /// The body's structure is broken.
    #[error("the body of a {0} frame is not valid")]
    Body(&'static str),
    /// Not JSON.
    #[error("Invalid JSON in frame: {0}")]
    Json(String),
}

impl Corrupt {
    /// The reason the connection closes with.
    pub fn close_reason(&self) -> CloseReason {
        match self {
            Corrupt::TooLong { .. } | Corrupt::HelloTooLong { .. } => CloseReason::FrameTooLong,
            Corrupt::Version(_) => CloseReason::Version,
            _ => CloseReason::Corrupt,
        }
    }
}
