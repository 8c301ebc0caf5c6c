//! What travels on a simulated link. Native connections carry the real native bytes. The JSON codec is tested elsewhere:
//! here a JSON connection carries the same frames in a small form of its own, as bytes that can be cut anywhere.

use agent_relay::base::{Bytes, MessageId, Sequence};
use agent_relay::wire::{self, Ack, Corrupt, Dialect, Frame, Message, MessageFields, decode, encode};

const WHOLE: u8 = 0;
const SEND: u8 = 1;
const ACK: u8 = 2;
const SEND_ACK: u8 = 3;

fn packed(out: &mut Vec<u8>, tag: u8, append: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, tag]);
    append(out);
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Appends any frame but a message.
pub fn frame(out: &mut Vec<u8>, dialect: Dialect, frame: &Frame<'_>, ack: Sequence) {
    match (dialect, frame) {
        (Dialect::Native, _) => encode::frame(out, frame, ack),
        (Dialect::Json, Frame::Ack(Ack::Message(id))) => packed(out, ACK, |out| {
            out.extend_from_slice(&id.sender.0.to_le_bytes());
            out.extend_from_slice(&id.number.to_le_bytes());
        }),
        (Dialect::Json, Frame::SendAck { label, ordinal }) => packed(out, SEND_ACK, |out| {
            out.extend_from_slice(&ordinal.to_le_bytes());
            out.extend_from_slice(label.as_bytes());
        }),
        (Dialect::Json, _) => packed(out, WHOLE, |out| encode::frame(out, frame, Sequence::default())),
    }
}

/// Appends a SEND or SUBMIT.
pub fn send(out: &mut Vec<u8>, dialect: Dialect, kind: wire::Kind, fields: &MessageFields<'_>, ack: Sequence) {
    match dialect {
        Dialect::Native => encode::send(out, kind, fields, ack),
        Dialect::Json => packed(out, SEND, |out| {
            encode::message_body(out, fields);
        }),
    }
}

/// Appends a DELIVER.
pub fn deliver(out: &mut Vec<u8>, dialect: Dialect, flags: u8, sequence: Sequence, raw: &Bytes, checksum: u32) {
    match dialect {
        Dialect::Native => encode::deliver(out, flags, sequence, raw, checksum),
        Dialect::Json => packed(out, WHOLE, |out| encode::deliver(out, flags, sequence, raw, checksum)),
    }
}

/// One frame that was read.
pub struct Heard<'a> {
    /// What it says.
    pub frame: Frame<'a>,
    /// The acknowledgement that rode on it.
    pub ack: Sequence,
    /// DELIVER: its sequence.
    pub sequence: Sequence,
    /// DELIVER: its flags.
    pub flags: u8,
    /// Its bytes.
    pub length: usize,
}

/// Reads the first frame of `bytes`, when it is complete.
pub fn read(dialect: Dialect, bytes: &[u8]) -> Result<Option<Heard<'_>>, Corrupt> {
    if dialect == Dialect::Native {
        return native(bytes);
    }
    let Some(head) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    let Some(body) = bytes.get(5..length) else { return Ok(None) };
    let heard = |frame| {
        let none = Sequence::default();
        Ok(Some(Heard { frame, ack: none, sequence: none, flags: 0, length }))
    };
    match bytes[4] {
        SEND => {
            let message = Message::check(body, crc32fast::hash(body)).ok_or(Corrupt::Body("SEND"))?;
            heard(Frame::Send(message))
        }
        ACK => {
            let word = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("eight bytes"));
            let id = MessageId { sender: agent_relay::base::AgentId(word(0)), number: word(8) };
            heard(Frame::Ack(Ack::Message(id)))
        }
        SEND_ACK => {
            let ordinal = u64::from_le_bytes(body[..8].try_into().expect("eight bytes"));
            heard(Frame::SendAck { label: String::from_utf8_lossy(&body[8..]), ordinal })
        }
        _ => Ok(native(body)?.map(|whole| Heard { length, ..whole })),
    }
}

fn native(bytes: &[u8]) -> Result<Option<Heard<'_>>, Corrupt> {
    Ok(match decode::frame(bytes)? {
        decode::Decoded::Partial { .. } => None,
        decode::Decoded::Whole { header, frame, length } => {
            Some(Heard { frame, ack: header.ack, sequence: header.sequence, flags: header.flags, length })
        }
    })
}
