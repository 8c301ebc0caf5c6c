//! Bodies of native frames as rkyv archives: integers and byte vectors only, frozen per major version, each ending in an
//! opaque extension area that is passed through. Validated with bytecheck on entry; no unsafe.

use super::frame::{Message, Parcel, Span, Wants};
use crate::base::{AgentId, Bytes, MessageId};
use rkyv::{Archive, Serialize};

/// A message's body. Field order is the wire's.
#[derive(Archive, Serialize)]
#[allow(dead_code, reason = "its archived form is what is used; tests alone build it")]
#[rkyv(archived = ArchivedBody, derive(Debug))]
pub(super) struct Body {
    /// AgentId of `from`.
    sender: u64,
    /// The sender's number for it.
    number: u64,
    /// The sender's clock, milliseconds since 1970.
    sent_at_ms: u64,
    /// 0: as long as retention.
    ttl_ms: u32,
    /// Receipts asked for, a set of bits.
    wants: u8,
    /// 0 message, 1 action, 2 state, 3 thinking, 255 as `data` says.
    kind: u8,
    /// 0 to 100.
    importance: u8,
    /// Bit 0: there is no text (JSON null or absent).
    flags: u8,
    from: Vec<u8>,
    to: Vec<u8>,
    topic: Vec<u8>,
    thread: Vec<u8>,
    /// The sender's own textual id.
    label: Vec<u8>,
    text: Vec<u8>,
    /// A JSON object: members of the JSON payload beside kind, body and thread. Empty: none.
    data: Vec<u8>,
    /// A JSON object: payload_meta, verbatim. Empty: none.
    meta: Vec<u8>,
    extension: Vec<u8>,
}

/// Bytes of the archived root: the last of each message body.
pub(super) const BODY_ROOT_BYTES: usize = 104;
const _: () = assert!(size_of::<ArchivedBody>() == BODY_ROOT_BYTES, "clients in other languages decode these offsets");
const _: () = assert!(align_of::<ArchivedBody>() == 1, "bodies are read where they lie");

/// What a message is made of, for encoding and for reading one in full.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MessageFields<'a> {
    pub id: MessageId,
    pub sent_at_ms: u64,
    pub ttl_ms: u32,
    pub wants: Wants,
    /// 0 message, 1 action, 2 state, 3 thinking, 255 as `data` says.
    pub kind: u8,
    pub importance: u8,
    /// Bit 0: there is no text.
    pub flags: u8,
    pub from: &'a [u8],
    pub to: &'a [u8],
    pub topic: &'a [u8],
    pub thread: &'a [u8],
    pub label: &'a [u8],
    pub text: &'a [u8],
    pub data: &'a [u8],
    pub meta: &'a [u8],
    pub extension: &'a [u8],
}

impl<'a> Message<'a> {
    /// Checks an archived body once; the value is the proof.
    #[inline]
    pub fn check(raw: &'a [u8], checksum: u32) -> Option<Message<'a>> {
        let body = rkyv::access::<ArchivedBody, rkyv::rancor::Failure>(raw).ok()?;
        Some(Message { raw, checksum, body })
    }

    /// Sender and number, as the sender wrote them.
    pub fn id(&self) -> MessageId {
        MessageId { sender: AgentId(self.body.sender.to_native()), number: self.body.number.to_native() }
    }

    /// Who it says it is from.
    pub fn from(&self) -> &'a [u8] {
        self.body.from.as_slice()
    }

    /// Whom it is for: a name, or `*`.
    pub fn to(&self) -> &'a [u8] {
        self.body.to.as_slice()
    }

    /// Its topic without the `#`; empty: none.
    pub fn topic(&self) -> &'a [u8] {
        self.body.topic.as_slice()
    }

    /// The sender's own textual id; empty: none.
    pub fn label(&self) -> &'a [u8] {
        self.body.label.as_slice()
    }

    /// Its time to live in milliseconds; 0: as long as retention.
    pub fn ttl_ms(&self) -> u32 {
        self.body.ttl_ms.to_native()
    }

    /// Receipts the sender asks for.
    pub fn wants(&self) -> Wants {
        Wants(self.body.wants)
    }

    /// Everything.
    pub fn fields(&self) -> MessageFields<'a> {
        let body = self.body;
        MessageFields {
            id: self.id(),
            sent_at_ms: body.sent_at_ms.to_native(),
            ttl_ms: body.ttl_ms.to_native(),
            wants: Wants(body.wants),
            kind: body.kind,
            importance: body.importance,
            flags: body.flags,
            from: body.from.as_slice(),
            to: body.to.as_slice(),
            topic: body.topic.as_slice(),
            thread: body.thread.as_slice(),
            label: body.label.as_slice(),
            text: body.text.as_slice(),
            data: body.data.as_slice(),
            meta: body.meta.as_slice(),
            extension: body.extension.as_slice(),
        }
    }

    /// The message in a form that outlives the turn; `raw` is the shared copy of `self.raw`.
    pub fn parcel(&self, raw: Bytes) -> Parcel {
        debug_assert_eq!(raw.len(), self.raw.len());
        let span = |part: &[u8]| Span {
            // Validated: each part lies inside `raw`. An empty part may point anywhere in it.
            start: (part.as_ptr() as usize).saturating_sub(self.raw.as_ptr() as usize) as u32,
            length: part.len() as u32,
        };
        Parcel {
            raw,
            checksum: self.checksum,
            id: self.id(),
            ttl_ms: self.body.ttl_ms.to_native(),
            wants: self.wants(),
            from: span(self.from()),
            to: span(self.to()),
            topic: span(self.topic()),
            label: span(self.label()),
        }
    }
}

impl Parcel {
    fn part(&self, span: Span) -> &[u8] {
        if span.length == 0 { &[] } else { &self.raw[span.start as usize..(span.start + span.length) as usize] }
    }

    /// Who sent it.
    pub fn from(&self) -> &[u8] {
        self.part(self.from)
    }

    /// Whom it is for: a name, or `*`.
    pub fn to(&self) -> &[u8] {
        self.part(self.to)
    }

    /// Its topic without the `#`; empty: none.
    pub fn topic(&self) -> &[u8] {
        self.part(self.topic)
    }

    /// The sender's own textual id; empty: none.
    pub fn label(&self) -> &[u8] {
        self.part(self.label)
    }

    /// The same, sharing the body's memory.
    pub fn label_bytes(&self) -> Bytes {
        if self.label.length == 0 {
            return Bytes::new();
        }
        self.raw.slice(self.label.start as usize..(self.label.start + self.label.length) as usize)
    }

    /// A message to `#x` is one to topic `x`, whatever its topic field says.
    pub fn with_topic_from_to(mut self) -> Parcel {
        if self.to().first() == Some(&b'#') {
            self.topic = Span { start: self.to.start + 1, length: self.to.length - 1 };
        } else if self.topic().first() == Some(&b'#') {
            self.topic = Span { start: self.topic.start + 1, length: self.topic.length - 1 };
        }
        self
    }
}

/// Appends the archived body of `fields` to `out`: the byte vectors in field order, then the root.
pub(super) fn append(fields: &MessageFields<'_>, out: &mut Vec<u8>) {
    let mut integers = [0; BODY_ROOT_BYTES - 8 * BODY_PARTS];
    integers[0..8].copy_from_slice(&fields.id.sender.0.to_le_bytes());
    integers[8..16].copy_from_slice(&fields.id.number.to_le_bytes());
    integers[16..24].copy_from_slice(&fields.sent_at_ms.to_le_bytes());
    integers[24..28].copy_from_slice(&fields.ttl_ms.to_le_bytes());
    integers[28..32].copy_from_slice(&[fields.wants.0, fields.kind, fields.importance, fields.flags]);
    append_archive(parts(fields), &integers, out);
}

/// How long the archived body of `fields` is.
pub(super) fn length(fields: &MessageFields<'_>) -> usize {
    parts(fields).iter().map(|part| part.len()).sum::<usize>() + BODY_ROOT_BYTES
}

const BODY_PARTS: usize = 9;

fn parts<'a>(fields: &MessageFields<'a>) -> [&'a [u8]; BODY_PARTS] {
    [
        fields.from,
        fields.to,
        fields.topic,
        fields.thread,
        fields.label,
        fields.text,
        fields.data,
        fields.meta,
        fields.extension,
    ]
}

/// Appends what rkyv would write for a struct of `integers` followed by byte vectors: the vectors' bytes in field order,
/// then the root. Written by hand because the fields are borrowed; a test holds it to rkyv's own output.
pub(super) fn append_archive<const PARTS: usize>(parts: [&[u8]; PARTS], integers: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let mut places = [0usize; PARTS];
    for (place, part) in places.iter_mut().zip(parts) {
        *place = out.len() - start;
        out.extend_from_slice(part);
    }
    out.extend_from_slice(integers);
    for (place, part) in places.into_iter().zip(parts) {
        // A relative pointer counts from its own place; the root comes after what it points to, so it is negative.
        let here = out.len() - start;
        out.extend_from_slice(&(place as i32 - here as i32).to_le_bytes());
        out.extend_from_slice(&(part.len() as u32).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> MessageFields<'static> {
        MessageFields {
            id: MessageId { sender: AgentId::of(b"alice"), number: 7 },
            sent_at_ms: 1_766_966_970_000,
            ttl_ms: 60_000,
            wants: Wants::ACCEPTED,
            kind: 1,
            importance: 80,
            flags: 0,
            from: b"alice",
            to: b"bob",
            topic: b"",
            thread: b"t1",
            label: b"",
            text: "hi → Bob".as_bytes(),
            data: b"{\"data\":{\"a\":1}}",
            meta: b"",
            extension: b"\x00\x01",
        }
    }

    #[test]
    fn the_hand_written_form_is_what_rkyv_reads() {
        let mut raw = Vec::new();
        append(&sample(), &mut raw);
        let message = Message::check(&raw, 0).expect("valid");
        assert_eq!(message.fields(), sample());
        let parcel = message.parcel(Bytes::copy_from_slice(&raw));
        assert_eq!(
            (parcel.from(), parcel.to(), parcel.topic(), parcel.ttl_ms),
            (&b"alice"[..], &b"bob"[..], &b""[..], 60_000)
        );
    }

    #[test]
    fn what_rkyv_writes_reads_the_same() {
        let fields = sample();
        let owned = Body {
            sender: fields.id.sender.0,
            number: 7,
            sent_at_ms: fields.sent_at_ms,
            ttl_ms: fields.ttl_ms,
            wants: 1,
            kind: 1,
            importance: 80,
            flags: 0,
            from: fields.from.to_vec(),
            to: fields.to.to_vec(),
            topic: Vec::new(),
            thread: fields.thread.to_vec(),
            label: Vec::new(),
            text: fields.text.to_vec(),
            data: fields.data.to_vec(),
            meta: Vec::new(),
            extension: fields.extension.to_vec(),
        };
        let raw = rkyv::to_bytes::<rkyv::rancor::Failure>(&owned).expect("plain data serialises");
        assert_eq!(Message::check(&raw, 0).expect("valid").fields(), fields);
        let mut ours = Vec::new();
        append(&fields, &mut ours);
        assert_eq!((&ours[..], ours.len()), (&raw[..], length(&fields)));
    }
}
