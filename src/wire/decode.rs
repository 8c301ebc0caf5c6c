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
#[inline]
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
        Kind::Send | Kind::Submit => {
            let message = message(&header, raw)?;
            if !plainly_good(&header, &message)
                && let Some(problem) = problem(&header, &message)
            {
                malformed(&message, problem)
            } else if header.kind == Kind::Send {
                Frame::Send(message)
            } else {
                Frame::Submit(message)
            }
        }
        Kind::Deliver => Frame::Deliver(message(&header, raw)?),
        Kind::Ack if header.flags & FLAG_ACK_ONE != 0 => Frame::Ack(Ack::One(header.sequence)),
        Kind::Ack => Frame::Ack(Ack::Through(header.sequence)),
        kind => control::read(kind, raw)?,
    };
    Ok(Decoded::Whole { header, frame, length })
}

#[inline]
fn message<'a>(header: &Header, raw: &'a [u8]) -> Result<Message<'a>, Corrupt> {
    Message::check(raw, header.checksum).ok_or(Corrupt::Body(header.kind.name()))
}

/// Whether a SEND or SUBMIT plainly keeps the rules that need no knowledge of the relay's state; what does not is looked
/// at again, in words, by [`problem`].
#[inline]
fn plainly_good(header: &Header, message: &Message<'_>) -> bool {
    let number = message.id().number;
    number == header.sequence.counter
        && number != 0
        && (number & NUMBER_FROM_LABEL != 0) == (header.kind == Kind::Submit)
        && message.to().len() <= NAME_BYTES_MAX
        && message.from().len() <= NAME_BYTES_MAX
        && message.topic().len() <= TOPIC_BYTES_MAX
        && message.label().len() <= LABEL_BYTES_MAX
}

#[cold]
fn malformed<'a>(message: &Message<'a>, problem: &'static str) -> Frame<'a> {
    let label = &message.label()[..message.label().len().min(LABEL_BYTES_MAX)];
    let number = message.id().number;
    Frame::Malformed { label: String::from_utf8_lossy(label), number, problem: Text::Borrowed(problem) }
}

/// Which rule is broken. (A `to` that names a topic may be longer than a name and still be right.)
#[cold]
fn problem(header: &Header, message: &Message<'_>) -> Option<&'static str> {
    let number = message.id().number;
    let submitted = header.kind == Kind::Submit;
    let to = message.to();
    Some(if number != header.sequence.counter {
        "the number in the header is not the one in the body"
    } else if submitted && number & NUMBER_FROM_LABEL == 0 {
        "the number of a SUBMIT is derived from its label and has its top bit set"
    } else if !submitted && (number == 0 || number & NUMBER_FROM_LABEL != 0) {
        "the number of a SEND is at least 1 and below 2^63"
    } else if to.len() > NAME_BYTES_MAX && !to.starts_with(b"#") {
        "`to` is longer than a name may be (64 bytes)"
    } else if to.len() > 1 + TOPIC_BYTES_MAX {
        "the topic in `to` is longer than a topic's name may be (132 bytes)"
    } else if message.from().len() > NAME_BYTES_MAX {
        "`from` is longer than a name may be (64 bytes)"
    } else if message.topic().len() > TOPIC_BYTES_MAX {
        "`topic` is longer than a topic's name may be (132 bytes)"
    } else if message.label().len() > LABEL_BYTES_MAX {
        "`label` is longer than a sender's own id may be (256 bytes)"
    } else {
        return None;
    })
}
