//! Stand-in until the JSON branch lands.
use super::Message;
/// Upper bound.
pub fn deliver_length(message: &Message<'_>, recipient: &[u8]) -> usize {
    message.raw.len() * 6 + recipient.len() + 512
}
