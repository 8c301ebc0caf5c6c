//! The relay's native wire, and the floor's and the splice's use of the same frames.
//!
//! One SEND frame is built once; each message patches its number, stamp, checksum and acknowledgement. Nothing is
//! allocated per message, so that the generator's own cost stays small and the same against floor and relay.
#![forbid(unsafe_code)]

use super::{Dialect, Heard, Part, Target, blank_body, name, read_stamp, write_stamp};
use crate::floor::Destination;
use agent_relay::base::limits::{ACK_DELAY, ACK_STRIDE};
use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::wire::decode::{self, Decoded};
use agent_relay::wire::{
    CAPABILITIES, Frame, HEADER_BYTES, Header, Hello, Kind, MessageFields, Secret, Topic, Wants, encode,
};
use std::borrow::Cow;
use std::collections::VecDeque;

/// Who is at the other end of a native connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Far {
    Floor,
    /// The floor that writes down what it forwards, and says so.
    Journal,
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
    /// Stamps of messages that are not known to be on disk, the oldest first: it has the number `in_doubt_from`.
    in_doubt: VecDeque<u64>,
    in_doubt_from: u64,
    /// Number and stamp of the last messages, by number: one that is refused goes out again as it was.
    recent: Vec<(u64, u64)>,
    /// Numbers of refused messages and when they are worth trying again: so long after it was heard, or (known at the
    /// next settling) at that moment.
    refused: VecDeque<(u64, Due)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Due {
    After(u64),
    At(u64),
}

/// Messages of a sender that are remembered: more than any window.
const RECENT: usize = 1024;
/// Bytes of a WELCOME's root; the number of the last message that the relay has is its second word.
const WELCOME_ROOT_BYTES: usize = 84;
/// Bytes of a RECEIPT's root, which begins with place and length of its records.
const RECEIPT_ROOT_BYTES: usize = 16;
/// Bytes of one record of a RECEIPT: sender u64, number u64, recipient u64, count u32, state u8, reason u8, zero u16.
const RECEIPT_RECORD_BYTES: usize = 32;
/// The state of a RECEIPT's record that says that the message is on disk.
const DURABLE: u8 = 2;
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
            in_doubt: VecDeque::new(),
            in_doubt_from: 1,
            recent: Vec::new(),
            refused: VecDeque::new(),
        };
        native.address(part.target);
        native
    }

    fn introduce(&mut self, out: &mut Vec<u8>) -> bool {
        match self.far {
            Far::Splice => return false,
            Far::Floor | Far::Journal => {
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
            wants: if self.part.durable && self.far == Far::Relay { Wants::DURABLE } else { Wants::default() },
            ..MessageFields::default()
        };
        self.recent = vec![(0, 0); RECENT];
        self.template.clear();
        encode::send(&mut self.template, Kind::Send, &fields, Sequence::default());
        self.number_at = self.template.len() - ROOT_BYTES + 8;
        let body = &self.template[HEADER_BYTES..];
        let text = text_of(body).expect("what the codec has just written");
        self.stamp_at = text.as_ptr() as usize - self.template.as_ptr() as usize;
    }

    fn speak(&mut self, stamp: u64, out: &mut Vec<u8>) {
        self.number += 1;
        if self.part.durable {
            self.in_doubt.push_back(stamp);
        }
        let number = self.number;
        self.recent[number as usize % RECENT] = (number, stamp);
        self.say(number, stamp, out);
    }

    fn say(&mut self, number: u64, stamp: u64, out: &mut Vec<u8>) {
        let number = number.to_le_bytes();
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
                    let stamp = read_stamp(text_of(body)?)?;
                    if !self.part.durable {
                        heard.stamps.push(stamp);
                    }
                    if header.kind == Kind::Deliver {
                        let expected = self.seen.counter + 1;
                        if self.seen.counter != 0 && header.sequence.counter != expected {
                            return Err(format!("sequence {expected} expected, {} came", header.sequence.counter));
                        }
                        self.seen = header.sequence;
                    }
                }
                // Where there is a topic to join, the PONG says that the relay has handled it.
                Kind::Welcome => {
                    heard.ready |= !self.part.listens || self.far != Far::Relay;
                    if self.far == Far::Relay {
                        self.go_on_after(body)?;
                    }
                }
                Kind::Pong => heard.ready = true,
                Kind::Ping => {
                    let pong = Header { length: header.length, checksum: header.checksum, ..Header::of(Kind::Pong) };
                    out.extend_from_slice(&pong.encode());
                    out.extend_from_slice(body);
                }
                // A journal says so to everyone, asked or not.
                Kind::Receipt if !self.part.durable => {}
                Kind::Receipt if self.far == Far::Journal => {
                    let through = self.in_doubt_from + header.sequence.counter;
                    self.on_disk(through, heard)?;
                }
                Kind::Receipt => self.receipts(body, heard)?,
                Kind::Busy if self.far == Far::Relay => self.refusal(&bytes[used..start + body.len()])?,
                other => return Err(format!("the relay said {other:?}: {}", String::from_utf8_lossy(body))),
            }
            used = start + body.len();
        }
        Ok(used)
    }

    /// BUSY: about no message, the relay only reads us later; about one, that one goes out again in due time.
    fn refusal(&mut self, frame: &[u8]) -> Result<(), String> {
        let decoded = decode::frame(frame).map_err(|error| error.to_string())?;
        let Decoded::Whole { frame: Frame::Busy(busy), .. } = decoded else {
            return Err("a broken BUSY arrived".to_owned());
        };
        if busy.number != 0 {
            self.refused.push_back((busy.number, Due::After(u64::from(busy.retry_after_ms) * 1_000_000)));
        }
        Ok(())
    }

    /// Sends again what was refused, once it is worth it.
    fn try_again(&mut self, now: u64, out: &mut Vec<u8>) {
        for _ in 0..self.refused.len() {
            let Some((number, due)) = self.refused.pop_front() else { return };
            match due {
                Due::At(at) if at <= now => {
                    let (known, stamp) = self.recent[number as usize % RECENT];
                    self.say(number, if known == number { stamp } else { now }, out);
                }
                Due::At(_) => self.refused.push_back((number, due)),
                Due::After(wait) => self.refused.push_back((number, Due::At(now + wait))),
            }
        }
    }

    /// The numbers of an earlier run under this name are taken.
    fn go_on_after(&mut self, welcome: &[u8]) -> Result<(), String> {
        let at = welcome.len().checked_sub(WELCOME_ROOT_BYTES).ok_or("a broken WELCOME arrived")? + 8;
        self.number = word64(welcome, at).ok_or("a broken WELCOME arrived")?;
        self.in_doubt_from = self.number + 1;
        Ok(())
    }

    fn receipts(&mut self, body: &[u8], heard: &mut Heard) -> Result<(), String> {
        let at = body.len().checked_sub(RECEIPT_ROOT_BYTES).ok_or("a broken RECEIPT arrived")?;
        let records = part_of(body, at).ok_or("a broken RECEIPT arrived")?;
        for record in records.chunks_exact(RECEIPT_RECORD_BYTES) {
            match record[28] {
                DURABLE => {
                    // One record may speak of many messages with numbers in a row.
                    let number = word64(record, 8).ok_or("a broken RECEIPT arrived")?;
                    let count = record[24..28].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
                    self.on_disk(number + count, heard)?;
                }
                1..DURABLE => {}
                state => return Err(format!("a message was not kept: state {state}, reason {}", record[29])),
            }
        }
        Ok(())
    }

    /// Everything before number `end` is on disk: one recipient's messages are kept in order.
    fn on_disk(&mut self, end: u64, heard: &mut Heard) -> Result<(), String> {
        while self.in_doubt_from < end {
            heard.stamps.push(self.in_doubt.pop_front().ok_or("a receipt came for what was not sent")?);
            self.in_doubt_from += 1;
        }
        Ok(())
    }

    /// The policy the table states: an ACK frame of its own after 64 messages or 10 ms, unless one could ride along.
    fn settle(&mut self, now: u64, out: &mut Vec<u8>) {
        if !self.refused.is_empty() {
            self.try_again(now, out);
        }
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
    part_of(body, at).ok_or_else(broken)
}

/// The part of an archive whose place (from there) and length stand at `at`.
fn part_of(body: &[u8], at: usize) -> Option<&[u8]> {
    let word = |at: usize| body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let place = i32::from_le_bytes(word(at)?);
    let length = u32::from_le_bytes(word(at + 4)?) as usize;
    let start = at.checked_add_signed(place as isize)?;
    body.get(start..start + length)
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// HELLO, and where it listens SUBSCRIBE and a PING whose PONG says that both were handled.
fn greet(part: &Part, out: &mut Vec<u8>) {
    let name = name(part.number);
    let none = Sequence::default();
    let hello = Hello {
        claimed_name: Cow::Borrowed(name.as_bytes()),
        capabilities: CAPABILITIES,
        cli: Cow::Borrowed("other"),
        auth_type: Cow::Borrowed(if part.key.is_some() { "api_key" } else { "" }),
        credential: Secret::new(part.key.unwrap_or_default()),
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
            fn farewell(&mut self, out: &mut Vec<u8>) {
                out.extend_from_slice(&Header::of(Kind::Bye).encode());
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
    /// A connection of the floor that keeps a journal.
    Journal,
    Far::Journal,
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
    use agent_relay::base::RefuseReason;
    use agent_relay::wire::{Busy, Message};

    #[test]
    fn what_is_refused_goes_out_again_as_it_was_and_a_slow_relay_is_waited_for() {
        let part =
            Part { number: 1, target: Target::Agent(2), listens: false, body_bytes: 128, durable: false, key: None };
        let mut native = Native::new(part, Far::Relay);
        let (mut out, mut heard) = (Vec::new(), Heard::default());
        native.speak(5, &mut out);
        let busy = |number| {
            let mut frame = Vec::new();
            let busy = Busy {
                number,
                label: "".into(),
                reason: RefuseReason::RateLimited,
                retry_after_ms: 10,
                queue_depth: 0,
                recipient: "".into(),
            };
            encode::frame(&mut frame, &Frame::Busy(Box::new(busy)), Sequence::default());
            frame
        };
        let said = [busy(0), busy(1)].concat();
        let mut again = Vec::new();
        assert_eq!(native.hear(&said, &mut again, &mut heard), Ok(said.len()));
        native.settle(1_000_000, &mut again);
        native.settle(10_999_999, &mut again);
        assert!(again.is_empty());
        native.settle(11_000_000, &mut again);
        assert_eq!(again, out, "the same number, the same stamp");
        native.settle(99_000_000, &mut again);
        assert_eq!(again.len(), out.len());
    }

    #[test]
    fn the_patched_template_is_a_message_the_relay_accepts() {
        let part =
            Part { number: 1, target: Target::Agent(2), listens: false, body_bytes: 128, durable: false, key: None };
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
