//! The relay's native wire, and the floor's and the splice's use of the same frames.
//!
//! One SEND frame is built once; each message patches its number, stamp, checksum and acknowledgement. Nothing is
//! allocated per message, so that the generator's own cost stays small and the same against floor and relay.
#![forbid(unsafe_code)]

use super::{Dialect, Heard, Part, Target, blank_body, name, read_stamp, write_stamp};
use crate::floor::Destination;
use agent_relay::base::limits::{ACK_DELAY, ACK_STRIDE};
use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::wire::{CAPABILITIES, Frame, HEADER_BYTES, Header, Hello, Kind, MessageFields, Topic, encode};
use std::borrow::Cow;

/// Who is at the other end of a native connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Far {
    Floor,
    Splice,
    Relay,
}

/// One agent that speaks native frames, whoever is at the other end.
struct Native {
    part: Part,
    far: Far,
    template: Vec<u8>,
    stamp_at: usize,
    number: u64,
    number_at: usize,
    seen: Sequence,
    acknowledged: Sequence,
    /// When the first message that is not acknowledged arrived (as of the first settling after it); 0: none waits.
    waiting_since: u64,
}

/// Bytes of a message body's root, which is its end; docs/WIRE.md draws it.
const ROOT_BYTES: usize = 104;
/// Where the place and length of the text stand in the root: after 32 bytes of numbers and five other parts.
const TEXT_AT: usize = 32 + 5 * 8;

impl Native {
    fn new(part: Part, far: Far) -> Native {
        let mut native = Native {
            part,
            far,
            template: Vec::new(),
            stamp_at: 0,
            number: 0,
            number_at: 0,
            seen: Sequence::default(),
            acknowledged: Sequence::default(),
            waiting_since: 0,
        };
        native.address(part.target);
        native
    }

    fn introduce(&mut self, out: &mut Vec<u8>) -> bool {
        match self.far {
            Far::Splice => return false,
            Far::Floor => {
                let destination = match self.part.target {
                    Target::Nobody => Destination::None,
                    Target::Agent(number) => Destination::Agent(u64::from(number)),
                    Target::Topic => Destination::Everyone,
                };
                let mut hello = Header::of(Kind::Hello);
                hello.sequence.counter = u64::from(self.part.number);
                hello.ack.counter = destination.to_wire();
                out.extend_from_slice(&hello.encode());
            }
            Far::Relay => greet(&self.part, out),
        }
        true
    }

    fn address(&mut self, target: Target) {
        let (to, topic) = match target {
            Target::Nobody => return,
            Target::Agent(number) => (name(number), ""),
            Target::Topic => ("*".to_owned(), super::TOPIC),
        };
        let from = name(self.part.number);
        let text = blank_body(self.part.body_bytes);
        let fields = MessageFields {
            id: MessageId { sender: AgentId::of(from.as_bytes()), number: 0 },
            sent_at_ms: 1_766_966_970_000,
            from: from.as_bytes(),
            to: to.as_bytes(),
            topic: topic.as_bytes(),
            text: &text,
            ..MessageFields::default()
        };
        self.template.clear();
        encode::send(&mut self.template, Kind::Send, &fields, Sequence::default());
        self.number_at = self.template.len() - ROOT_BYTES + 8;
        let body = &self.template[HEADER_BYTES..];
        let text = text_of(body).expect("what the codec has just written");
        self.stamp_at = text.as_ptr() as usize - self.template.as_ptr() as usize;
    }

    fn speak(&mut self, stamp: u64, out: &mut Vec<u8>) {
        self.number += 1;
        let number = self.number.to_le_bytes();
        let frame = &mut self.template[..];
        write_stamp(stamp, &mut frame[self.stamp_at..]);
        frame[self.number_at..self.number_at + 8].copy_from_slice(&number);
        let checksum = crc32fast::hash(&frame[HEADER_BYTES..]);
        frame[8..12].copy_from_slice(&checksum.to_le_bytes());
        frame[16..24].copy_from_slice(&number);
        if self.far == Far::Relay {
            // Acknowledgements ride along.
            frame[24..28].copy_from_slice(&self.seen.epoch.to_le_bytes());
            frame[32..40].copy_from_slice(&self.seen.counter.to_le_bytes());
            self.acknowledged = self.seen;
            self.waiting_since = 0;
        }
        out.extend_from_slice(frame);
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>, heard: &mut Heard) -> Result<usize, String> {
        let mut used = 0;
        while let Some(header) = bytes[used..].first_chunk::<HEADER_BYTES>() {
            let header = Header::decode(header).map_err(|error| error.to_string())?;
            let start = used + HEADER_BYTES;
            let Some(body) = bytes.get(start..start + header.length as usize) else { break };
            match header.kind {
                Kind::Send | Kind::Deliver => {
                    heard.stamps.push(read_stamp(text_of(body)?)?);
                    if header.kind == Kind::Deliver {
                        let expected = self.seen.counter + 1;
                        if self.seen.counter != 0 && header.sequence.counter != expected {
                            return Err(format!("sequence {expected} expected, {} came", header.sequence.counter));
                        }
                        self.seen = header.sequence;
                    }
                }
                // Where there is a topic to join, the PONG says that the relay has handled it.
                Kind::Welcome => heard.ready |= !self.part.listens || self.far == Far::Floor,
                Kind::Pong => heard.ready = true,
                Kind::Ping => {
                    let pong = Header { length: header.length, checksum: header.checksum, ..Header::of(Kind::Pong) };
                    out.extend_from_slice(&pong.encode());
                    out.extend_from_slice(body);
                }
                Kind::Receipt => {}
                other => return Err(format!("the relay said {other:?}: {}", String::from_utf8_lossy(body))),
            }
            used = start + body.len();
        }
        Ok(used)
    }

    /// The policy the table states: an ACK frame of its own after 64 messages or 10 ms, unless one could ride along.
    fn settle(&mut self, now: u64, out: &mut Vec<u8>) {
        if self.seen == self.acknowledged {
            return;
        }
        if self.waiting_since == 0 {
            self.waiting_since = now;
        }
        let unacknowledged = self.seen.counter - self.acknowledged.counter;
        if unacknowledged >= ACK_STRIDE || now - self.waiting_since >= ACK_DELAY {
            let ack = Header { sequence: self.seen, ..Header::of(Kind::Ack) };
            out.extend_from_slice(&ack.encode());
            self.acknowledged = self.seen;
            self.waiting_since = 0;
        }
    }
}

/// The text inside a message body.
fn text_of(body: &[u8]) -> Result<&[u8], String> {
    let broken = || "a broken body arrived".to_owned();
    let at = body.len().checked_sub(ROOT_BYTES).ok_or_else(broken)? + TEXT_AT;
    let word = |at: usize| body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let place = i32::from_le_bytes(word(at).ok_or_else(broken)?);
    let length = u32::from_le_bytes(word(at + 4).ok_or_else(broken)?) as usize;
    let start = at.checked_add_signed(place as isize).ok_or_else(broken)?;
    body.get(start..start + length).ok_or_else(broken)
}

/// HELLO, and where it listens SUBSCRIBE and a PING whose PONG says that both were handled.
fn greet(part: &Part, out: &mut Vec<u8>) {
    let name = name(part.number);
    let none = Sequence::default();
    let hello = Hello {
        claimed_name: Cow::Borrowed(name.as_bytes()),
        capabilities: CAPABILITIES,
        cli: Cow::Borrowed("other"),
        ..Hello::default()
    };
    encode::frame(out, &Frame::Hello(Box::new(hello)), none);
    if part.listens {
        let topic = Topic { name: Cow::Borrowed(super::TOPIC.as_bytes()), channel: false };
        encode::frame(out, &Frame::Subscribe(topic), none);
        encode::frame(out, &Frame::Ping(Cow::Borrowed(b"joined")), none);
    }
}

macro_rules! end {
    ($(#[$doc:meta])* $name:ident, $far:expr, $acknowledges:expr) => {
        $(#[$doc])*
        pub struct $name(Native);

        impl Dialect for $name {
            const ACKNOWLEDGES: bool = $acknowledges;
            fn new(part: Part) -> $name {
                $name(Native::new(part, $far))
            }
            fn introduce(&mut self, out: &mut Vec<u8>) -> bool {
                self.0.introduce(out)
            }
            fn address(&mut self, target: Target) {
                self.0.address(target);
            }
            fn speak(&mut self, stamp: u64, out: &mut Vec<u8>) {
                self.0.speak(stamp, out);
            }
            fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>, heard: &mut Heard) -> Result<usize, String> {
                self.0.hear(bytes, out, heard)
            }
            fn settle(&mut self, now: u64, out: &mut Vec<u8>) {
                self.0.settle(now, out);
            }
        }
    };
}

end!(
    /// An agent of the relay.
    Relay,
    Far::Relay,
    true
);
end!(
    /// A connection of the floor: the same frames, forwarded blindly.
    Floor,
    Far::Floor,
    false
);
end!(
    /// One end of the splice process: no handshake at all.
    Splice,
    Far::Splice,
    false
);

#[cfg(test)]
mod tests {
    use super::*;
    use agent_relay::wire::Message;

    #[test]
    fn the_patched_template_is_a_message_the_relay_accepts() {
        let part = Part { number: 1, target: Target::Agent(2), listens: false, body_bytes: 128 };
        let mut native = Native::new(part, Far::Relay);
        let mut out = Vec::new();
        native.speak(5, &mut out);
        out.clear();
        native.speak(77, &mut out);
        let header = Header::decode(out.first_chunk().expect("a header")).expect("valid");
        let raw = &out[HEADER_BYTES..];
        assert_eq!((header.length as usize, header.checksum), (raw.len(), crc32fast::hash(raw)));
        let message = Message::check(raw, header.checksum).expect("valid");
        assert_eq!(message.id().sender, AgentId::of(b"agent-00001"));
        assert_eq!((message.id().number, header.sequence.counter), (2, 2));
        assert_eq!((message.from(), message.to()), (&b"agent-00001"[..], &b"agent-00002"[..]));
        assert_eq!(message.fields().text.len(), 128);
        assert_eq!(read_stamp(text_of(raw).expect("text")), Ok(77));
    }
}
