//! Messages in both dialects, as they stand in a receive buffer.

use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::wire::{Kind, MessageFields, encode};

/// Lengths of the texts that are measured.
pub const TEXT_BYTES: [usize; 3] = [128, 1024, 4096];

/// A text as agents write it: words, and now and then a line's end and a quotation mark.
pub fn text(length: usize) -> String {
    "The tests pass now; \"cargo test\" took 41 s. Please review src/lib.rs.\n".chars().cycle().take(length).collect()
}

/// A native SEND of `from` to `to`, with its number.
pub fn native_send(out: &mut Vec<u8>, from: &str, to: &str, number: u64, text: &str) {
    let id = MessageId { sender: AgentId::of(from.as_bytes()), number };
    let (from, to, text) = (from.as_bytes(), to.as_bytes(), text.as_bytes());
    let fields = MessageFields { id, from, to, text, importance: 50, ..Default::default() };
    encode::send(out, Kind::Send, &fields, Sequence::default());
}

/// A SEND as existing clients write it: length prefix and JSON.
pub fn json_send(to: &str, id: &str, text: &str) -> Vec<u8> {
    let text = text.replace('"', "\\\"").replace('\n', "\\n");
    let envelope = format!(
        r#"{{"v":1,"type":"SEND","id":"{id}","ts":1766966970000,"to":"{to}","payload":{{"kind":"message","body":"{text}"}}}}"#
    );
    let mut frame = (envelope.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(envelope.as_bytes());
    frame
}
