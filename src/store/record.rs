//! Records as bytes: what a segment's plaintext is made of. Little-endian, no padding; `docs/STORE.md` draws each.

use crate::base::ids::Token;
use crate::base::limits::SETTLED_RUNS_MAX;
use crate::base::{AgentId, MessageId, RefuseReason, Sequence, Shared};
use crate::relay::{Addressee, Owed, Profile, ProgressRecord, Record, SessionRecord};
use crate::wire::Dialect;

/// Bytes before each record: its length.
pub(super) const LENGTH_BYTES: usize = 4;
/// Bytes of one recipient.
const ADDRESSEE_BYTES: usize = 21;

/// A record that lies in the store.
#[derive(Clone, Debug)]
pub enum RecordRef<'a> {
    /// As `Record::Known`.
    Known {
        /// The number.
        agent: AgentId,
        /// The name.
        name: &'a str,
        /// When, milliseconds since 1970.
        at_ms: u64,
    },
    /// As `Record::Session`.
    Session(Box<SessionRecord>),
    /// As `Record::Gone`.
    Gone {
        /// Whose.
        agent: AgentId,
        /// When, milliseconds since 1970.
        at_ms: u64,
        /// Whether with BYE.
        bye: bool,
    },
    /// As `Record::Subscribed`.
    Subscribed {
        /// Who.
        agent: AgentId,
        /// What.
        topic: &'a str,
        /// Whether as a channel.
        channel: bool,
    },
    /// As `Record::Unsubscribed`.
    Unsubscribed {
        /// Who.
        agent: AgentId,
        /// What.
        topic: &'a str,
    },
    /// As `Record::Forgotten`.
    Forgotten {
        /// Who.
        agent: AgentId,
    },
    /// As `Record::Message`.
    Message(MessageRef<'a>),
    /// As `Record::Nobody`.
    #[allow(missing_docs)]
    Nobody { id: MessageId, epoch: u32, parts: u16, at_ms: u64 },
    /// As `Record::Progress`.
    Progress(ProgressRecord),
    /// As `Record::Failed`.
    Failed {
        /// Sender and number.
        id: MessageId,
        /// The recipient.
        recipient: AgentId,
        /// Why.
        reason: RefuseReason,
    },
    /// As `Record::Read`.
    Read {
        /// Sender and number.
        id: MessageId,
        /// By whom.
        recipient: AgentId,
    },
    /// As `Record::Refused`.
    Refused {
        /// Sender and number.
        id: MessageId,
        /// Why.
        reason: RefuseReason,
        /// When, milliseconds since 1970.
        at_ms: u64,
    },
}

/// A message that lies in the store.
#[derive(Clone, Copy, Debug)]
pub struct MessageRef<'a> {
    /// Sender and number.
    pub id: MessageId,
    /// The archived body, as it was relayed.
    pub raw: &'a [u8],
    /// CRC-32 of `raw`.
    pub checksum: u32,
    /// When it was accepted, milliseconds since 1970.
    pub accepted_at_ms: u64,
    /// Its time to live, milliseconds; 0: as long as retention.
    pub ttl_ms: u32,
    /// How many homes keep a record of it.
    pub parts: u16,
    /// For whom.
    pub recipients: RecipientsRef<'a>,
}

impl MessageRef<'_> {
    /// When it expires by its own time to live, milliseconds since 1970; `u64::MAX`: it has none.
    pub fn expires_ms(&self) -> u64 {
        if self.ttl_ms == 0 { u64::MAX } else { self.accepted_at_ms.saturating_add(u64::from(self.ttl_ms)) }
    }
}

/// The recipients of a message that lies in the store.
#[derive(Clone, Copy, Debug)]
pub struct RecipientsRef<'a>(&'a [u8]);

impl<'a> RecipientsRef<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len() / ADDRESSEE_BYTES
    }

    /// Whether nobody here was to have it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Addressee> + use<'a> {
        self.0.chunks_exact(ADDRESSEE_BYTES).map(|bytes| {
            let mut bytes = Reader(bytes);
            let agent = AgentId(bytes.u64().unwrap_or_default());
            let sequence = bytes.sequence().unwrap_or_default();
            Addressee { agent, sequence, channel: bytes.u8().is_ok_and(|channel| channel == 1) }
        })
    }
}

impl RecordRef<'_> {
    /// When it was made, milliseconds since 1970, if it says so.
    pub fn at_ms(&self) -> Option<u64> {
        match self {
            RecordRef::Known { at_ms, .. } | RecordRef::Gone { at_ms, .. } | RecordRef::Refused { at_ms, .. } => {
                Some(*at_ms)
            }
            RecordRef::Session(session) => Some(session.at_ms),
            RecordRef::Message(message) => Some(message.accepted_at_ms),
            _ => None,
        }
    }
}

/// When a record was made, if it says so.
pub(super) fn at_ms(record: &Record) -> Option<u64> {
    match record {
        Record::Known { at_ms, .. } | Record::Gone { at_ms, .. } | Record::Refused { at_ms, .. } => Some(*at_ms),
        Record::Session(session) => Some(session.at_ms),
        Record::Message { accepted_at_ms, .. } => Some(*accepted_at_ms),
        _ => None,
    }
}

/// Writes one record, its length first.
#[inline]
pub(super) fn encode(record: &Record, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    match record {
        Record::Message { id, raw, checksum, accepted_at_ms, ttl_ms, parts, recipients } => {
            let recipients = recipients.as_slice();
            let mut head = [0; 39];
            head[0] = 1;
            head[1..9].copy_from_slice(&id.sender.0.to_le_bytes());
            head[9..17].copy_from_slice(&id.number.to_le_bytes());
            head[17..21].copy_from_slice(&checksum.to_le_bytes());
            head[21..29].copy_from_slice(&accepted_at_ms.to_le_bytes());
            head[29..33].copy_from_slice(&ttl_ms.to_le_bytes());
            head[33..35].copy_from_slice(&parts.to_le_bytes());
            head[35..39].copy_from_slice(&(recipients.len() as u32).to_le_bytes());
            out.reserve(head.len() + recipients.len() * ADDRESSEE_BYTES + raw.len());
            out.extend_from_slice(&head);
            for to in recipients {
                let mut one = [0; ADDRESSEE_BYTES];
                one[..8].copy_from_slice(&to.agent.0.to_le_bytes());
                one[8..12].copy_from_slice(&to.sequence.epoch.to_le_bytes());
                one[12..20].copy_from_slice(&to.sequence.counter.to_le_bytes());
                one[20] = u8::from(to.channel);
                out.extend_from_slice(&one);
            }
            out.extend_from_slice(raw);
        }
        Record::Known { agent, name, at_ms } => {
            out.push(2);
            put_u64(out, agent.0);
            put_u64(out, *at_ms);
            out.extend_from_slice(name.as_bytes());
        }
        Record::Session(session) => {
            out.push(3);
            put_u64(out, session.agent.0);
            put_u64(out, session.at_ms);
            put_session(out, session.dialect, session.session, session.resume, session.resume_before);
            put_profile(out, session.profile.as_deref());
        }
        Record::Gone { agent, at_ms, bye } => {
            out.push(4);
            put_u64(out, agent.0);
            put_u64(out, *at_ms);
            out.push(u8::from(*bye));
        }
        Record::Subscribed { agent, topic, channel } => {
            out.push(5);
            put_u64(out, agent.0);
            out.push(u8::from(*channel));
            out.extend_from_slice(topic.as_bytes());
        }
        Record::Unsubscribed { agent, topic } => {
            out.push(6);
            put_u64(out, agent.0);
            out.extend_from_slice(topic.as_bytes());
        }
        Record::Forgotten { agent } => {
            out.push(7);
            put_u64(out, agent.0);
        }
        Record::Progress(progress) => {
            out.push(8);
            put_u64(out, progress.agent.0);
            put_sequence(out, progress.delivered);
            put_sequence(out, progress.acknowledged);
            put_owed(out, &progress.owed);
            for (first, last) in &progress.settled {
                put_sequence(out, *first);
                put_sequence(out, *last);
            }
        }
        Record::Failed { id, recipient, reason } => {
            out.push(9);
            put_id(out, *id);
            put_u64(out, recipient.0);
            out.push(*reason as u8);
        }
        Record::Read { id, recipient } => {
            out.push(10);
            put_id(out, *id);
            put_u64(out, recipient.0);
        }
        Record::Refused { id, reason, at_ms } => {
            out.push(11);
            put_id(out, *id);
            out.push(*reason as u8);
            put_u64(out, *at_ms);
        }
        Record::Nobody { id, epoch, parts, at_ms } => {
            out.push(12);
            put_id(out, *id);
            out.extend_from_slice(&epoch.to_le_bytes());
            out.extend_from_slice(&parts.to_le_bytes());
            put_u64(out, *at_ms);
        }
    }
    let length = (out.len() - start - LENGTH_BYTES) as u32;
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// What a decoder says of bytes that are not what was written.
pub(super) type Decoded<T> = Result<T, &'static str>;

/// The record at the beginning of `bytes`, and how many bytes it takes.
#[inline]
pub(super) fn decode(bytes: &[u8]) -> Decoded<(RecordRef<'_>, usize)> {
    let mut rest = Reader(bytes);
    let length = rest.u32()? as usize;
    let body = rest.take(length)?;
    Ok((decode_body(body)?, LENGTH_BYTES + length))
}

fn decode_body(bytes: &[u8]) -> Decoded<RecordRef<'_>> {
    let mut body = Reader(bytes);
    let record = match body.u8()? {
        1 => {
            let id = body.id()?;
            let checksum = body.u32()?;
            let accepted_at_ms = body.u64()?;
            let ttl_ms = body.u32()?;
            let parts = body.u16()?;
            let count = body.u32()? as usize;
            let recipients = body.take(count.checked_mul(ADDRESSEE_BYTES).ok_or(SHORT)?)?;
            let recipients = RecipientsRef(recipients);
            let raw = body.rest();
            RecordRef::Message(MessageRef { id, raw, checksum, accepted_at_ms, ttl_ms, parts, recipients })
        }
        2 => RecordRef::Known { agent: body.agent()?, at_ms: body.u64()?, name: text(body.rest())? },
        3 => {
            let (agent, at_ms) = (body.agent()?, body.u64()?);
            let (dialect, session, resume, resume_before) = body.session()?;
            let profile = body.profile()?.map(Shared::new);
            RecordRef::Session(Box::new(SessionRecord {
                agent,
                at_ms,
                dialect,
                session,
                resume,
                resume_before,
                profile,
            }))
        }
        4 => RecordRef::Gone { agent: body.agent()?, at_ms: body.u64()?, bye: body.flag()? },
        5 => RecordRef::Subscribed { agent: body.agent()?, channel: body.flag()?, topic: text(body.rest())? },
        6 => RecordRef::Unsubscribed { agent: body.agent()?, topic: text(body.rest())? },
        7 => RecordRef::Forgotten { agent: body.agent()? },
        8 => {
            let (agent, delivered, acknowledged) = (body.agent()?, body.sequence()?, body.sequence()?);
            let owed = body.owed()?;
            let settled = body.runs_to_the_end()?.into_boxed_slice();
            RecordRef::Progress(ProgressRecord { agent, delivered, acknowledged, settled, owed })
        }
        9 => RecordRef::Failed { id: body.id()?, recipient: body.agent()?, reason: body.reason()? },
        10 => RecordRef::Read { id: body.id()?, recipient: body.agent()? },
        11 => RecordRef::Refused { id: body.id()?, reason: body.reason()?, at_ms: body.u64()? },
        12 => RecordRef::Nobody { id: body.id()?, epoch: body.u32()?, parts: body.u16()?, at_ms: body.u64()? },
        _ => return Err("a record of an unknown kind"),
    };
    if body.0.is_empty() { Ok(record) } else { Err("a record is longer than it should be") }
}

const SHORT: &str = "it ends too early";

fn text(bytes: &[u8]) -> Decoded<&str> {
    std::str::from_utf8(bytes).map_err(|_| "a name is not UTF-8")
}

pub(super) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_sequence(out: &mut Vec<u8>, sequence: Sequence) {
    out.extend_from_slice(&sequence.epoch.to_le_bytes());
    put_u64(out, sequence.counter);
}

pub(super) fn put_owed(out: &mut Vec<u8>, owed: &Owed) {
    put_u64(out, owed.messages);
    put_u64(out, owed.bytes);
    put_u64(out, owed.next_expiry_ms);
}

fn put_id(out: &mut Vec<u8>, id: MessageId) {
    put_u64(out, id.sender.0);
    put_u64(out, id.number);
}

pub(super) fn put_session(out: &mut Vec<u8>, dialect: Dialect, session: Token, resume: Token, before: Option<Token>) {
    let dialect = match dialect {
        Dialect::Native => 0,
        Dialect::Json => 1,
    };
    out.extend_from_slice(&[dialect | u8::from(before.is_some()) << 1]);
    out.extend_from_slice(&session.0);
    out.extend_from_slice(&resume.0);
    if let Some(before) = before {
        out.extend_from_slice(&before.0);
    }
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    // The longest text of a HELLO has 1,024 bytes: what a row keeps fits by far.
    let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn put_profile(out: &mut Vec<u8>, profile: Option<&Profile>) {
    out.push(u8::from(profile.is_some()));
    if let Some(Profile { cli, program, model, task, working_directory }) = profile {
        for text in [cli, program, model, task, working_directory] {
            put_text(out, text);
        }
    }
}

/// Bytes that are read from the front, each step checked.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn take(&mut self, length: usize) -> Decoded<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn u8(&mut self) -> Decoded<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn flag(&mut self) -> Decoded<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    pub(super) fn u16(&mut self) -> Decoded<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Decoded<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Decoded<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn agent(&mut self) -> Decoded<AgentId> {
        Ok(AgentId(self.u64()?))
    }

    fn id(&mut self) -> Decoded<MessageId> {
        Ok(MessageId { sender: self.agent()?, number: self.u64()? })
    }

    pub(super) fn sequence(&mut self) -> Decoded<Sequence> {
        Ok(Sequence { epoch: self.u32()?, counter: self.u64()? })
    }

    pub(super) fn owed(&mut self) -> Decoded<Owed> {
        Ok(Owed { messages: self.u64()?, bytes: self.u64()?, next_expiry_ms: self.u64()? })
    }

    /// Runs of sequences, as many as fit.
    pub(super) fn runs_to_the_end(&mut self) -> Decoded<Vec<(Sequence, Sequence)>> {
        const RUN_BYTES: usize = 24;
        if self.0.len() > SETTLED_RUNS_MAX * RUN_BYTES {
            return Err("it has too many runs");
        }
        let mut runs = Vec::with_capacity(self.0.len() / RUN_BYTES);
        while !self.0.is_empty() {
            runs.push((self.sequence()?, self.sequence()?));
        }
        Ok(runs)
    }

    fn reason(&mut self) -> Decoded<RefuseReason> {
        RefuseReason::from_wire(self.u8()?).ok_or("a reason is unknown")
    }

    fn token(&mut self) -> Decoded<Token> {
        Ok(Token(self.array()?))
    }

    pub(super) fn session(&mut self) -> Decoded<(Dialect, Token, Token, Option<Token>)> {
        let bits = self.u8()?;
        if bits > 3 {
            return Err("a dialect is unknown");
        }
        let dialect = if bits & 1 == 0 { Dialect::Native } else { Dialect::Json };
        let (session, resume) = (self.token()?, self.token()?);
        let before = if bits & 2 == 0 { None } else { Some(self.token()?) };
        Ok((dialect, session, resume, before))
    }

    pub(super) fn text(&mut self) -> Decoded<&'a str> {
        let length = self.u16()?;
        text(self.take(usize::from(length))?)
    }

    pub(super) fn profile(&mut self) -> Decoded<Option<Profile>> {
        if !self.flag()? {
            return Ok(None);
        }
        let mut next = || Ok::<Box<str>, &'static str>(self.text()?.into());
        let profile =
            Profile { cli: next()?, program: next()?, model: next()?, task: next()?, working_directory: next()? };
        Ok(Some(profile))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Bytes;
    use crate::relay::Recipients;
    use proptest::prelude::*;

    /// Reads all of a record, so that nothing in it is left unlooked at.
    fn walk(mut bytes: &[u8]) {
        while let Ok((record, length)) = decode(bytes) {
            if let RecordRef::Message(message) = &record {
                assert_eq!(message.recipients.iter().count(), message.recipients.len());
                let _ = message.expires_ms();
            }
            let _ = record.at_ms();
            assert!(length >= LENGTH_BYTES && length <= bytes.len());
            bytes = &bytes[length..];
        }
    }

    fn some_records() -> Vec<u8> {
        let id = MessageId { sender: AgentId(1), number: 2 };
        let sequence = Sequence { epoch: 1, counter: 1 };
        let to = Addressee { agent: AgentId(3), sequence, channel: true };
        let progress = ProgressRecord {
            agent: AgentId(3),
            delivered: sequence,
            acknowledged: sequence,
            settled: [(sequence, sequence)].into(),
            owed: Owed::default(),
        };
        let session = SessionRecord {
            agent: AgentId(1),
            at_ms: 5,
            dialect: Dialect::Json,
            session: Token([1; 16]),
            resume: Token([2; 16]),
            resume_before: Some(Token([3; 16])),
            profile: Some(Shared::default()),
        };
        let records = [
            Record::Message {
                id,
                raw: Bytes::from_static(b"body"),
                checksum: 7,
                accepted_at_ms: 9,
                ttl_ms: 1,
                parts: 1,
                recipients: Recipients::Many([to, to].into()),
            },
            Record::Known { agent: AgentId(1), name: "ann".into(), at_ms: 5 },
            Record::Session(Box::new(session)),
            Record::Subscribed { agent: AgentId(1), topic: "builds".into(), channel: true },
            Record::Progress(progress),
            Record::Failed { id, recipient: AgentId(3), reason: RefuseReason::Expired },
            Record::Refused { id, reason: RefuseReason::NotFound, at_ms: 6 },
        ];
        let mut bytes = Vec::new();
        records.iter().for_each(|record| encode(record, &mut bytes));
        bytes
    }

    proptest! {
        #[test]
        fn whatever_bytes_a_record_has_decoding_ends(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..13) {
            walk(&bytes);
            let framed = [&(bytes.len() as u32 + 1).to_le_bytes()[..], &[kind], &bytes].concat();
            walk(&framed);
        }

        #[test]
        fn records_with_wrong_bytes_are_read_or_refused_and_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = some_records();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            walk(&bytes);
            walk(&bytes[..cut.index(bytes.len())]);
        }
    }

    #[test]
    fn what_was_written_is_read_to_the_end() {
        let bytes = some_records();
        let (mut at, mut count) = (0, 0);
        while at < bytes.len() {
            at += decode(&bytes[at..]).unwrap().1;
            count += 1;
        }
        assert_eq!(count, 7);
    }
}
