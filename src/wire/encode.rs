//! [`Frame`] to native bytes, appended to the caller's buffer. Messages are copied, never encoded again.

use super::header::FLAG_ACK_ONE;
use super::{Ack, Frame, HEADER_BYTES, Header, Kind, MessageFields, Receipt, body, control};
use crate::base::Sequence;

/// Appends a DELIVER: a header of its own and the body as it was received.
#[inline]
pub fn deliver(out: &mut Vec<u8>, flags: u8, sequence: Sequence, raw: &[u8], checksum: u32) {
    out.reserve(HEADER_BYTES + raw.len());
    out.reserve(HEADER_BYTES + raw.len());
    out.extend_from_slice(&deliver_header(flags, sequence, raw.len() as u32, checksum));
    out.extend_from_slice(raw);
}

/// The header of a DELIVER, for bodies that leave from where they lie.
#[inline]
pub fn deliver_header(flags: u8, sequence: Sequence, length: u32, checksum: u32) -> [u8; HEADER_BYTES] {
    Header { flags, length, checksum, sequence, ..Header::of(Kind::Deliver) }.encode()
}

/// Appends a SEND or SUBMIT made of `fields`; `ack` rides along (`Sequence::default()`: nothing to acknowledge).
pub fn send(out: &mut Vec<u8>, kind: Kind, fields: &MessageFields<'_>, ack: Sequence) {
    debug_assert!(matches!(kind, Kind::Send | Kind::Submit));
    let sequence = Sequence { epoch: 0, counter: fields.id.number };
    with_body(out, Header { sequence, ack, ..Header::of(kind) }, |out| body::append(fields, out));
}

/// Appends the archived body of `fields` alone and gives its checksum.
pub fn message_body(out: &mut Vec<u8>, fields: &MessageFields<'_>) -> u32 {
    let start = out.len();
    out.reserve(body::length(fields));
    body::append(fields, out);
    crc32fast::hash(&out[start..])
}

/// Bytes of the frame that carries `fields`, header included; compare it with `FRAME_BYTES_MAX` before sending.
pub fn message_length(fields: &MessageFields<'_>) -> usize {
    HEADER_BYTES + body::length(fields)
}

/// Appends any frame, in either direction. Frames that exist only in the JSON dialect append nothing; a long RECEIPT or
/// ANSWER becomes several frames.
pub fn frame(out: &mut Vec<u8>, frame: &Frame<'_>, ack: Sequence) {
    let of = |kind| Header { ack, ..Header::of(kind) };
    match frame {
        Frame::Hello(hello) => with_body(out, of(Kind::Hello), |out| control::append_hello(hello, out)),
        Frame::Welcome(welcome) => with_body(out, of(Kind::Welcome), |out| control::append_welcome(welcome, out)),
        Frame::Send(message) | Frame::Submit(message) | Frame::Deliver(message) => {
            let kind = match frame {
                Frame::Send(_) => Kind::Send,
                Frame::Submit(_) => Kind::Submit,
                _ => Kind::Deliver,
            };
            let counter = if kind == Kind::Deliver { 0 } else { message.id().number };
            let header = Header {
                length: message.raw.len() as u32,
                checksum: message.checksum,
                sequence: Sequence { epoch: 0, counter },
                ..of(kind)
            };
            out.extend_from_slice(&header.encode());
            out.extend_from_slice(message.raw);
        }
        Frame::Ack(Ack::Through(sequence)) => {
            out.extend_from_slice(&Header { sequence: *sequence, ..of(Kind::Ack) }.encode());
        }
        Frame::Ack(Ack::One(sequence)) => {
            out.extend_from_slice(&Header { flags: FLAG_ACK_ONE, sequence: *sequence, ..of(Kind::Ack) }.encode());
        }
        Frame::Receipt(records) => receipts(out, records, ack),
        Frame::Subscribe(topic) => with_body(out, of(Kind::Subscribe), |out| control::append_topic(topic, out)),
        Frame::Unsubscribe(topic) => with_body(out, of(Kind::Unsubscribe), |out| control::append_topic(topic, out)),
        Frame::Ping(payload) => with_body(out, of(Kind::Ping), |out| control::append_payload(payload, out)),
        Frame::Pong(payload) => with_body(out, of(Kind::Pong), |out| control::append_payload(payload, out)),
        Frame::Busy(busy) => with_body(out, of(Kind::Busy), |out| control::append_busy(busy, out)),
        Frame::Error(error) => with_body(out, of(Kind::Error), |out| control::append_error(error, out)),
        Frame::Bye => out.extend_from_slice(&of(Kind::Bye).encode()),
        Frame::Query(query) => with_body(out, of(Kind::Query), |out| control::append_query(query, out)),
        Frame::Answer(answer) => {
            let mut rest: &[u8] = &answer.json;
            loop {
                let (part, later) = rest.split_at(rest.len().min(control::ANSWER_PART_BYTES_MAX));
                let more = answer.more || !later.is_empty();
                with_body(out, of(Kind::Answer), |out| {
                    control::append_answer(answer.number, more, answer.failed, part, out);
                });
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
        }
        // Words of the JSON dialect, and findings of a decoder: nobody says them natively.
        Frame::Ack(Ack::Message(_) | Ack::Unknown)
        | Frame::SendAck { .. }
        | Frame::Enrol(_)
        | Frame::Ignored
        | Frame::Unserved { .. }
        | Frame::Malformed { .. } => {}
    }
}

/// Appends RECEIPT: one frame, or several when there are many records.
pub fn receipts(out: &mut Vec<u8>, records: &[Receipt], ack: Sequence) {
    for part in records.chunks(control::RECEIPT_RECORDS_MAX) {
        with_body(out, Header { ack, ..Header::of(Kind::Receipt) }, |out| control::append_receipts(part, out));
    }
}

/// Appends a header and a body, and fills in length and checksum when they are known.
fn with_body(out: &mut Vec<u8>, header: Header, append: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    append(out);
    let body = &out[start + HEADER_BYTES..];
    let header = Header { length: body.len() as u32, checksum: crc32fast::hash(body), ..header };
    out[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
}
