//! The JSON dialect: a 4-byte big-endian length and one JSON object, as existing `agent-relay` clients speak it.
//! Bytes to [`Frame`](super::Frame) and back; never a socket, a clock or a name rule.
//!
//! ```text
//! decode   one frame from a receive buffer; a SEND becomes the same archived body that native senders write
//! encode   what the relay says, appended to a send buffer
//! text     cutting and writing JSON text; the only place that knows its grammar
//! ```
//! Members that the relay does not know travel verbatim: those of `payload` in the body's `data`, `payload_meta` in its `meta`.

mod decode;
mod encode;
mod text;

pub use decode::{Decoded, Scratch, Speaker, frame as decode};
pub use encode::{Stamp, deliver, deliver_fits, deliver_length, frame as encode};

/// Bytes of the length in front of each frame.
pub const PREFIX_BYTES: usize = 4;

/// The topic of a 1.6.0 channel: `#Builds` is `builds`; `dm:Ann:Bob` stays, since it holds agents' names.
fn topic_of_channel(channel: &str) -> std::borrow::Cow<'_, str> {
    if channel.starts_with(DIRECT_CHANNEL) {
        return channel.into();
    }
    let name = channel.strip_prefix('#').unwrap_or(channel);
    if name.chars().any(char::is_uppercase) { name.to_lowercase().into() } else { name.into() }
}

/// What channels between two agents start with.
const DIRECT_CHANNEL: &str = "dm:";

/// `kind` codes of a body, in order; anything else is kept in `data`.
pub const KINDS: [&str; 4] = ["message", "action", "state", "thinking"];
/// The code of a kind that is a member of `data`, or absent.
pub const KIND_IN_DATA: u8 = 255;
/// Body flag: there is no text (JSON null or absent).
const FLAG_NO_TEXT: u8 = 1;
