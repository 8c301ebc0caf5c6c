//! Native bytes to [`Frame`]: header, checksum and structure are checked here, once. Sans-io; borrows from the receive
//! buffer, and allocates nothing for messages, ACK, PING and BYE.

use super::header::FLAG_ACK_ONE;
use super::{Ack, Corrupt, Frame, HEADER_BYTES, Header, Kind, MAGIC, Message, Text, control};
use crate::base::ids::NUMBER_FROM_LABEL;
use crate::base::limits::{LABEL_BYTES_MAX, NAME_BYTES_MAX, TOPIC_BYTES_MAX};

/// What the bytes received so far amount to.
#[derive(Clone, Debug)]
pub enum Decoded<'a> {
    /// The frame is not complete.
    Partial {
        /// Bytes this frame needs in all; before the header is here, the header's.
        needed: usize,
    },
    /// The first frame in the buffer.
    Whole {
        /// Its header.
        header: Header,
        /// What it says.
        frame: Frame<'a>,
        /// Bytes of it, header included: where the next one starts.
        length: usize,
    },
}

/// Reads the first frame of `bytes`.
pub fn frame(bytes: &[u8]) -> Result<Decoded<'_>, Corrupt> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return match bytes.first() {
            Some(first) if *first != MAGIC => Err(Corrupt::Magic(*first)),
            _ => Ok(Decoded::Partial { needed: HEADER_BYTES }),
        };
    };
    let header = Header::decode(head)?;
    let length = HEADER_BYTES + header.length as usize;
    let Some(raw) = rest.get(..header.length as usize) else {
        return Ok(Decoded::Partial { needed: length });
    };
    let found = crc32fast::hash(raw);
    if found != header.checksum {
        return Err(Corrupt::Checksum { expected: header.checksum, found });
    }
    let frame = match header.kind {
        Kind::Send => offered(&header, message(&header, raw)?),
        Kind::Submit => offered(&header, message(&header, raw)?),
        Kind::Deliver => Frame::Deliver(message(&header, raw)?),
        Kind::Ack if header.flags & FLAG_ACK_ONE != 0 => Frame::Ack(Ack::One(header.sequence)),
        Kind::Ack => Frame::Ack(Ack::Through(header.sequence)),
        kind => control::read(kind, raw)?,
    };
    Ok(Decoded::Whole { header, frame, length })
}

fn message<'a>(header: &Header, raw: &'a [u8]) -> Result<Message<'a>, Corrupt> {
    Message::check(raw, header.checksum).ok_or(Corrupt::Body(header.kind.name()))
}

/// A SEND or SUBMIT, if it keeps the rules that need no knowledge of the relay's state.
fn offered<'a>(header: &Header, message: Message<'a>) -> Frame<'a> {
    let number = message.id().number;
    let submitted = header.kind == Kind::Submit;
    let problem = if number != header.sequence.counter {
        "the number in the header is not the one in the body"
    } else if submitted && number & NUMBER_FROM_LABEL == 0 {
        "the number of a SUBMIT is derived from its label and has its top bit set"
    } else if !submitted && (number == 0 || number & NUMBER_FROM_LABEL != 0) {
        "the number of a SEND is at least 1 and below 2^63"
    } else if message.to().len() > NAME_BYTES_MAX && !message.to().starts_with(b"#") {
        "`to` is longer than a name may be (64 bytes)"
    } else if message.to().len() > 1 + TOPIC_BYTES_MAX {
        "the topic in `to` is longer than a topic's name may be (132 bytes)"
    } else if message.from().len() > NAME_BYTES_MAX {
        "`from` is longer than a name may be (64 bytes)"
    } else if message.topic().len() > TOPIC_BYTES_MAX {
        "`topic` is longer than a topic's name may be (132 bytes)"
    } else if message.label().len() > LABEL_BYTES_MAX {
        "`label` is longer than a sender's own id may be (256 bytes)"
    } else if submitted {
        return Frame::Submit(message);
    } else {
        return Frame::Send(message);
    };
    let label = &message.label()[..message.label().len().min(LABEL_BYTES_MAX)];
    Frame::Malformed { label: String::from_utf8_lossy(label), number, problem: Text::Borrowed(problem) }
}
