//! What the relay says to a JSON client, appended to a send buffer. Members stand in the order in which 1.0.9 wrote them.
//!
//! Whatever a body holds (a native sender may put any bytes into its text, data or meta), what comes out is valid JSON.

use super::text::{Count, DEPTH_MAX, Members, Sink, name, object, string, too_deep};
use super::{DIRECT_CHANNEL, FLAG_NO_TEXT, KIND_IN_DATA, KINDS, PREFIX_BYTES, topic_of_channel};
use crate::base::Sequence;
use crate::base::ids::Token;
use crate::base::limits::{FRAME_BYTES_MAX, NAME_BYTES_MAX};
use crate::wire::{FLAG_CHANNEL, FLAG_REDELIVERED, Frame, Message, MessageFields};

/// What each frame of the relay's own carries beside its content.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Milliseconds since 1970: the frame's `ts`.
    pub wall_ms: u64,
    /// Different for each frame of a session; the frame's `id` is made of both.
    pub ordinal: u64,
}

/// Appends `message` as DELIVER, or as CHANNEL_MESSAGE when `flags` has [`FLAG_CHANNEL`] or it belongs to a `dm:` channel.
/// `recipient` is the name of whoever reads it, `session` theirs. CHANNEL_MESSAGE has no place for sequence and session.
pub fn deliver(
    out: &mut Vec<u8>,
    message: &Message<'_>,
    sequence: Sequence,
    flags: u8,
    recipient: &str,
    session: Token,
) {
    let start = begin(out);
    put_message(out, message, sequence, flags, recipient.as_bytes(), session);
    finish(out, start);
}

/// Bytes of the largest frame that [`deliver`] can make of `message` for a recipient of that name: exact but for the
/// digits of its sequence and the mark of a redelivery, which are counted in full.
pub fn deliver_length(message: &Message<'_>, recipient: &str) -> usize {
    largest(message, recipient.as_bytes())
}

/// Whether `message` fits a JSON frame whoever receives it. Cheap unless the message is near the bound.
pub fn deliver_fits(message: &Message<'_>) -> bool {
    // No byte takes more than six in JSON (`\u0000`); what is not the message's takes less than this.
    const AROUND_BYTES: usize = 1024;
    message.raw.len() <= (FRAME_BYTES_MAX - AROUND_BYTES) / 6
        || largest(message, &[b'x'; NAME_BYTES_MAX]) <= FRAME_BYTES_MAX
}

fn largest(message: &Message<'_>, recipient: &[u8]) -> usize {
    let last = Sequence { epoch: u32::MAX, counter: u64::MAX };
    let length = |flags| {
        let mut count = Count(PREFIX_BYTES);
        put_message(&mut count, message, last, flags, recipient, Token::default());
        count.0
    };
    length(FLAG_REDELIVERED).max(length(FLAG_CHANNEL))
}

/// Appends a frame of the relay's own. What this dialect has no frame for (receipts: these clients ask by command line or
/// HTTP), and what only clients say, appends nothing; messages go through [`deliver`].
pub fn frame(out: &mut Vec<u8>, frame: &Frame<'_>, stamp: Stamp) {
    let kind = match frame {
        Frame::Welcome(_) => "WELCOME",
        Frame::Error(_) => "ERROR",
        Frame::Busy(_) => "BUSY",
        Frame::Ping(_) => "PING",
        Frame::Pong(_) => "PONG",
        Frame::Bye => "BYE",
        Frame::SendAck { .. } => "ACK",
        _ => return,
    };
    let start = begin(out);
    out.put(b"{\"v\":1,\"type\":\"");
    out.put(kind.as_bytes());
    out.put(b"\",\"id\":\"r-");
    out.put_number(stamp.wall_ms);
    out.put(b"-");
    out.put_number(stamp.ordinal);
    out.put(b"\",\"ts\":");
    out.put_number(stamp.wall_ms);
    out.put(b",\"payload\":{");
    match frame {
        Frame::Welcome(welcome) => {
            out.put(b"\"session_id\":");
            put_token(out, welcome.session);
            out.put(b",\"resume_token\":");
            put_token(out, welcome.resume);
            // The bound of 1.0.9 counts the JSON text alone.
            out.put(b",\"server\":{\"max_frame_bytes\":");
            out.put_number(FRAME_BYTES_MAX as u64);
            out.put(b",\"heartbeat_ms\":");
            out.put_number(u64::from(welcome.heartbeat_ms));
            if !welcome.server.is_empty() {
                out.put(b",\"version\":");
                out.put_string(welcome.server.as_bytes());
            }
            out.put(b"}");
            if let Some(license) = object(welcome.license.as_bytes()) {
                out.put(b",\"license\":");
                out.put(license.as_bytes());
            }
        }
        Frame::Error(error) => {
            out.put(b"\"code\":");
            out.put_string(error.code.name().as_bytes());
            out.put(b",\"message\":");
            out.put_string(error.message.as_bytes());
            out.put(if error.fatal { ",\"fatal\":true" } else { ",\"fatal\":false" }.as_bytes());
            put_reply_to(out, &error.label, b",");
            if let Some(outcome) = error.outcome {
                out.put(b",\"outcome\":");
                out.put_string(outcome.name().as_bytes());
            }
        }
        Frame::Busy(busy) => {
            out.put(b"\"retry_after_ms\":");
            out.put_number(u64::from(busy.retry_after_ms));
            out.put(b",\"queue_depth\":");
            out.put_number(u64::from(busy.queue_depth));
            out.put(b",\"reason\":");
            out.put_string(busy.reason.name().as_bytes());
            put_reply_to(out, &busy.label, b",");
            if !busy.recipient.is_empty() {
                out.put(b",\"recipient\":");
                out.put_string(busy.recipient.as_bytes());
            }
        }
        Frame::Ping(nonce) | Frame::Pong(nonce) => {
            out.put(b"\"nonce\":");
            out.put_string(nonce);
        }
        Frame::SendAck { label, ordinal } => {
            out.put(b"\"ack_id\":");
            out.put_string(label.as_bytes());
            out.put(b",\"seq\":");
            out.put_number(*ordinal);
        }
        _ => {}
    }
    out.put(b"}}");
    finish(out, start);
}

fn put_reply_to(out: &mut Vec<u8>, label: &str, before: &[u8]) {
    if !label.is_empty() {
        out.put(before);
        out.put(b"\"replyTo\":");
        out.put_string(label.as_bytes());
    }
}

fn begin(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    out.len() - PREFIX_BYTES
}

fn finish(out: &mut [u8], start: usize) {
    let length = (out.len() - start - PREFIX_BYTES) as u32;
    out[start..start + PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
}

fn put_message(
    out: &mut impl Sink,
    message: &Message<'_>,
    sequence: Sequence,
    flags: u8,
    recipient: &[u8],
    session: Token,
) {
    let fields = plain_topic(message.fields());
    // Decoding allows each member of `data` that deep; the object around them is one more.
    let data = object(fields.data).filter(|data| !too_deep(data, DEPTH_MAX + 1));
    let in_channel =
        fields.topic.starts_with(DIRECT_CHANNEL.as_bytes()) || flags & FLAG_CHANNEL != 0 && !fields.topic.is_empty();
    out.put(b"{\"v\":1,\"type\":\"");
    out.put(if in_channel { "CHANNEL_MESSAGE" } else { "DELIVER" }.as_bytes());
    out.put(b"\",\"id\":\"");
    put_hex(out, &fields.id.to_bytes());
    out.put(b"\",\"ts\":");
    out.put_number(fields.sent_at_ms);
    out.put(b",\"from\":");
    out.put_string(fields.from);
    if in_channel {
        put_channel_payload(out, &fields, data);
        put_meta(out, &fields);
        return out.put(b"}");
    }
    out.put(b",\"to\":");
    out.put_string(recipient);
    if !fields.topic.is_empty() {
        out.put(b",\"topic\":");
        out.put_string(fields.topic);
    }
    out.put(b",\"payload\":{");
    if fields.kind != KIND_IN_DATA {
        put_kind(out, fields.kind);
        out.put(b",");
    }
    put_rest(out, &fields, data, false);
    put_meta(out, &fields);
    out.put(b",\"delivery\":{\"seq\":");
    out.put_number(sequence.counter);
    out.put(b",\"session_id\":");
    put_token(out, session);
    if fields.to == b"*" && fields.topic.is_empty() {
        out.put(b",\"originalTo\":\"*\"");
    } else if fields.to == b"*" {
        // 1.6.0 wrappers show this as the address to answer to.
        out.put(b",\"originalTo\":\"#");
        out.put_inside(fields.topic);
        out.put(b"\"");
    } else if fields.to != recipient {
        out.put(b",\"originalTo\":");
        out.put_string(fields.to);
    }
    if flags & FLAG_REDELIVERED != 0 {
        out.put(b",\"redelivered\":true");
    }
    out.put(b"}}");
}

/// A native sender may address `#x`, or `*` with topic `#x`: both are topic `x`, as for routing.
fn plain_topic<'a>(fields: MessageFields<'a>) -> MessageFields<'a> {
    match (fields.to.strip_prefix(b"#"), fields.topic.strip_prefix(b"#")) {
        (Some(topic), _) => MessageFields { to: b"*", topic, ..fields },
        (None, Some(topic)) if fields.to == b"*" => MessageFields { topic, ..fields },
        _ => fields,
    }
}

fn put_channel_payload(out: &mut impl Sink, fields: &MessageFields<'_>, data: Option<&str>) {
    out.put(b",\"payload\":{\"channel\":");
    let spelled = Members::of(data.unwrap_or(""))
        .filter(|(key, _)| name(key) == "channel")
        .filter_map(|(_, value)| string(value))
        .find(|channel| topic_of_channel(channel).as_bytes() == fields.topic);
    let channel = spelled.as_deref().map_or(fields.topic, str::as_bytes);
    if channel.starts_with(b"#") || channel.starts_with(DIRECT_CHANNEL.as_bytes()) {
        out.put_string(channel);
    } else {
        out.put(b"\"#");
        out.put_inside(channel);
        out.put(b"\"");
    }
    out.put(b",");
    if !matches!(fields.kind, 0 | KIND_IN_DATA) {
        put_kind(out, fields.kind);
        out.put(b",");
    }
    put_rest(out, fields, data, true);
}

fn put_kind(out: &mut impl Sink, kind: u8) {
    out.put(b"\"kind\":");
    out.put_string(KINDS.get(usize::from(kind)).unwrap_or(&KINDS[0]).as_bytes());
}

/// The body, what else the payload had, the thread, and the payload's end.
fn put_rest(out: &mut impl Sink, fields: &MessageFields<'_>, data: Option<&str>, in_channel: bool) {
    out.put(b"\"body\":");
    if fields.flags & FLAG_NO_TEXT != 0 && fields.text.is_empty() {
        out.put(b"null");
    } else {
        out.put_string(fields.text);
    }
    match data {
        Some(data) => {
            for (key, value) in Members::of(data) {
                let is_said_already = match name(key).as_ref() {
                    "body" => true,
                    "thread" => !fields.thread.is_empty(),
                    "kind" => fields.kind != KIND_IN_DATA,
                    "channel" => in_channel,
                    _ => false,
                };
                if !is_said_already {
                    out.put(b",");
                    out.put(key.as_bytes());
                    out.put(b":");
                    out.put(value.as_bytes());
                }
            }
        }
        None if fields.data.is_empty() => {}
        None => {
            out.put(b",\"data\":");
            out.put_string(fields.data);
        }
    }
    if !fields.thread.is_empty() {
        out.put(b",\"thread\":");
        out.put_string(fields.thread);
    }
    out.put(b"}");
}

/// payload_meta as the sender wrote it; of native senders, who may have none, what their fields say.
fn put_meta(out: &mut impl Sink, fields: &MessageFields<'_>) {
    if let Some(meta) = object(fields.meta).filter(|meta| !too_deep(meta, DEPTH_MAX)) {
        out.put(b",\"payload_meta\":");
        return out.put(meta.as_bytes());
    }
    if fields.importance == 0 && fields.ttl_ms == 0 {
        return;
    }
    out.put(b",\"payload_meta\":{\"importance\":");
    out.put_number(u64::from(fields.importance));
    if fields.ttl_ms != 0 {
        out.put(b",\"ttl_ms\":");
        out.put_number(u64::from(fields.ttl_ms));
    }
    out.put(b"}");
}

fn put_token(out: &mut impl Sink, token: Token) {
    out.put(b"\"");
    for part in [&token.0[..4], &token.0[4..6], &token.0[6..8], &token.0[8..10]] {
        put_hex(out, part);
        out.put(b"-");
    }
    put_hex(out, &token.0[10..]);
    out.put(b"\"");
}

fn put_hex(out: &mut impl Sink, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.put(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Decoded, Scratch, Speaker, decode};
    use super::*;
    use crate::base::{AgentId, MessageId};
    use crate::wire::body;
    use proptest::prelude::*;

    fn sent(fields: &MessageFields<'_>, flags: u8) -> (usize, serde_json::Value) {
        let mut raw = Vec::new();
        body::append(fields, &mut raw);
        let message = Message::check(&raw, 0).expect("valid");
        let mut out = Vec::new();
        deliver(&mut out, &message, Sequence { epoch: 1, counter: u64::MAX }, flags, "Bob", Token::default());
        let bound = deliver_length(&message, "Bob");
        assert!(out.len() <= bound, "{} bytes, {bound} announced", out.len());
        assert!(out.len() > FRAME_BYTES_MAX || deliver_fits(&message));
        (out.len(), serde_json::from_slice(&out[PREFIX_BYTES..]).expect("valid JSON"))
    }

    #[test]
    fn what_native_senders_put_into_data_and_meta_comes_out_as_json() {
        let fields =
            MessageFields { to: b"Bob", text: b"t", data: b"\x00\xff", meta: b"{", ..MessageFields::default() };
        let (_, value) = sent(&fields, 0);
        assert_eq!(value["payload"], serde_json::json!({"kind": "message", "body": "t", "data": "\u{0}\u{FFFD}"}));
        assert_eq!(value.get("payload_meta"), None);
        let fields = MessageFields {
            data: br#"{"body":5,"kind":"x","thread":1,"own":2}"#,
            thread: b"t",
            importance: 80,
            ttl_ms: 9,
            ..fields
        };
        let (_, value) = sent(&MessageFields { meta: b"", ..fields }, 0);
        let payload = serde_json::json!({"kind": "message", "body": "t", "own": 2, "thread": "t"});
        assert_eq!(value["payload"], payload);
        assert_eq!(value["payload_meta"], serde_json::json!({"importance": 80, "ttl_ms": 9}));
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
        let (_, value) = sent(&MessageFields { data: deep.as_bytes(), ..fields }, 0);
        assert_eq!(value["payload"]["data"], deep, "as a string, since recipients' parsers recurse");
    }

    #[test]
    fn the_bound_is_met_to_the_byte() {
        let around = sent(&MessageFields { to: b"Bob", ..MessageFields::default() }, FLAG_REDELIVERED).0;
        let fits = |length: usize| {
            let text = "x".repeat(length);
            let fields = MessageFields { to: b"Bob", text: text.as_bytes(), ..MessageFields::default() };
            let mut raw = Vec::new();
            body::append(&fields, &mut raw);
            deliver_length(&Message::check(&raw, 0).expect("valid"), "Bob") <= FRAME_BYTES_MAX
        };
        assert!(fits(FRAME_BYTES_MAX - around));
        assert!(!fits(FRAME_BYTES_MAX - around + 1));
    }

    proptest! {
        #[test]
        fn any_native_message_becomes_json_and_valid_text_comes_back_exactly(
            text in any::<String>(),
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 5),
            kind in any::<u8>(),
            flags in 0u8..4,
        ) {
            let [topic, thread, data, meta, from] = parts.as_slice() else { panic!("five parts") };
            let fields = MessageFields {
                id: MessageId { sender: AgentId::of(b"Ann"), number: 3 },
                kind,
                from,
                to: b"Bob",
                topic,
                thread,
                text: text.as_bytes(),
                data,
                meta,
                ..MessageFields::default()
            };
            let (_, value) = sent(&fields, flags);
            let again = serde_json::json!({"type": "SEND", "to": "Bob", "payload": value["payload"]}).to_string();
            let mut bytes = (again.len() as u32).to_be_bytes().to_vec();
            bytes.extend_from_slice(again.as_bytes());
            let speaker = Speaker { name: "Bob", agent: AgentId(1), session: Token::default(), ordinal: 1, wall_ms: 1 };
            let mut scratch = Scratch::default();
            let Ok(Decoded::Whole { frame: Frame::Send(message), .. }) = decode(&bytes, Some(&speaker), &mut scratch)
            else { panic!("{again}") };
            prop_assert_eq!(message.fields().text, text.as_bytes());
        }
    }
}
