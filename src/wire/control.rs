//! Bodies of the frames that are not messages: the same kind of archive, small and rare, read into owned or borrowed words.
//!
//! What is structurally broken is [`Corrupt`]. What is well formed but breaks a rule becomes [`Frame::Malformed`]: the
//! stream is fine, the frame is not. Text that only people read is repaired (U+FFFD) instead of refused.

use super::body::append_archive;
use super::frame::{Answer, Busy, ErrorCode, ErrorFrame, Frame, Hello, Query, QueryKind, Receipt, ReceiptState, Text};
use super::frame::{Topic, Welcome};
use super::{Corrupt, Kind};
use crate::base::ids::Token;
use crate::base::limits::{FRAME_BYTES_MAX, HELLO_TEXT_BYTES_MAX, TOPIC_BYTES_MAX};
use crate::base::{AgentId, MessageId, RefuseReason, Sequence, name};
use rkyv::{Archive, Serialize};
use std::borrow::Cow;

/// A credential of HELLO; long enough for signed tokens.
pub const CREDENTIAL_BYTES_MAX: usize = 4096;
/// What a PING may carry.
pub const PING_BYTES_MAX: usize = 256;
/// The arguments of a QUERY.
pub const QUERY_ARGUMENT_BYTES_MAX: usize = 4096;
/// Records in one RECEIPT.
pub const RECEIPT_RECORDS_MAX: usize = 1024;
/// Bytes of one record in a RECEIPT.
const RECEIPT_RECORD_BYTES: usize = 32;
/// JSON in one ANSWER; longer answers come in parts.
pub const ANSWER_PART_BYTES_MAX: usize = FRAME_BYTES_MAX - 4096;

#[derive(Archive, Serialize)]
#[allow(dead_code, reason = "its archived form is what is used; tests alone build it")]
#[rkyv(archived = ArchivedHello)]
struct HelloBody {
    capabilities: u64,
    handled_counter: u64,
    handled_epoch: u32,
    in_flight_max: u32,
    name: Vec<u8>,
    resume: Vec<u8>,
    cli: Vec<u8>,
    program: Vec<u8>,
    model: Vec<u8>,
    task: Vec<u8>,
    working_directory: Vec<u8>,
    auth_type: Vec<u8>,
    credential: Vec<u8>,
    extension: Vec<u8>,
}

#[derive(Archive, Serialize)]
#[allow(dead_code, reason = "its archived form is what is used; tests alone build it")]
#[rkyv(archived = ArchivedWelcome)]
struct WelcomeBody {
    agent: u64,
    number: u64,
    capabilities: u64,
    epoch: u32,
    in_flight_max: u32,
    frame_bytes_max: u32,
    heartbeat_ms: u32,
    /// Bit 0: an earlier session goes on.
    flags: u32,
    session: Vec<u8>,
    resume: Vec<u8>,
    server: Vec<u8>,
    license: Vec<u8>,
    extension: Vec<u8>,
}

#[derive(Archive, Serialize)]
#[allow(dead_code, reason = "its archived form is what is used; tests alone build it")]
#[rkyv(archived = ArchivedReceipt)]
struct ReceiptBody {
    /// Records of 32 bytes: sender u64, number u64, recipient u64, count u32, state u8, reason u8, zero u16.
    records: Vec<u8>,
    extension: Vec<u8>,
}

#[derive(Archive, Serialize)]
#[allow(dead_code, reason = "its archived form is what is used; tests alone build it")]
#[rkyv(archived = ArchivedTopic)]
struct TopicBody {
    /// Bit 0: as a channel.
    flags: u32,
    name: Vec<u8>,
    extension: Vec<u8>,
}

#[derive(Archive, Serialize)]
#[allow(dead_code, reason = "its archived form is what is used; tests alone build it")]
#[rkyv(archived = ArchivedPing)]
struct PingBody {
    payload: Vec<u8>,
    extension: Vec<u8>,
}

#[derive(Archive, Serialize)]
#[allow(dead_code, reason = "its archived form is what is used; tests alone build it")]
#[rkyv(archived = ArchivedBusy)]
struct BusyBody {
    number: u64,
    retry_after_ms: u32,
    queue_depth: u32,
    reason: u32,
    label: Vec<u8>,
    recipient: Vec<u8>,
    extension: Vec<u8>,
}

#[derive(Archive, Serialize)]
#[allow(dead_code, reason = "its archived form is what is used; tests alone build it")]
#[rkyv(archived = ArchivedError)]
struct ErrorBody {
    number: u64,
    code: u32,
    /// A refuse reason; 0: none.
    outcome: u32,
    /// Bit 0: the connection closes after it.
    flags: u32,
    message: Vec<u8>,
    label: Vec<u8>,
    extension: Vec<u8>,
}

#[derive(Archive, Serialize)]
#[allow(dead_code, reason = "its archived form is what is used; tests alone build it")]
#[rkyv(archived = ArchivedQuery)]
struct QueryBody {
    number: u64,
    kind: u32,
    arguments: Vec<u8>,
    extension: Vec<u8>,
}

#[derive(Archive, Serialize)]
#[allow(dead_code, reason = "its archived form is what is used; tests alone build it")]
#[rkyv(archived = ArchivedAnswer)]
struct AnswerBody {
    number: u64,
    /// Bit 0: more parts follow. Bit 1: the question failed.
    flags: u32,
    json: Vec<u8>,
    extension: Vec<u8>,
}

const _: () = {
    assert!(size_of::<ArchivedHello>() == 104, "clients in other languages decode these offsets");
    assert!(size_of::<ArchivedWelcome>() == 84, "clients in other languages decode these offsets");
    assert!(size_of::<ArchivedReceipt>() == 16, "clients in other languages decode these offsets");
    assert!(size_of::<ArchivedTopic>() == 20, "clients in other languages decode these offsets");
    assert!(size_of::<ArchivedPing>() == 16, "clients in other languages decode these offsets");
    assert!(size_of::<ArchivedBusy>() == 44, "clients in other languages decode these offsets");
    assert!(size_of::<ArchivedError>() == 44, "clients in other languages decode these offsets");
    assert!(size_of::<ArchivedQuery>() == 28, "clients in other languages decode these offsets");
    assert!(size_of::<ArchivedAnswer>() == 28, "clients in other languages decode these offsets");
    assert!(align_of::<ArchivedHello>() == 1 && align_of::<ArchivedWelcome>() == 1, "bodies are read where they lie");
    assert!(RECEIPT_RECORDS_MAX * RECEIPT_RECORD_BYTES < FRAME_BYTES_MAX / 2, "a full RECEIPT fits a frame");
};

/// Reads the body of a control frame that has one.
pub(super) fn read(kind: Kind, raw: &[u8]) -> Result<Frame<'_>, Corrupt> {
    let frame = match kind {
        Kind::Hello => hello(archived(kind, raw)?),
        Kind::Welcome => welcome(archived(kind, raw)?),
        Kind::Receipt => receipts(archived(kind, raw)?),
        Kind::Subscribe => topic(archived(kind, raw)?).map(Frame::Subscribe),
        Kind::Unsubscribe => topic(archived(kind, raw)?).map(Frame::Unsubscribe),
        Kind::Ping => payload(archived(kind, raw)?).map(Frame::Ping),
        Kind::Pong => payload(archived(kind, raw)?).map(Frame::Pong),
        Kind::Busy => busy(archived(kind, raw)?),
        Kind::Error => error(archived(kind, raw)?),
        Kind::Query => query(archived(kind, raw)?),
        Kind::Answer => answer(archived(kind, raw)?),
        Kind::Bye => Ok(Frame::Bye),
        Kind::Send | Kind::Deliver | Kind::Submit | Kind::Ack => return Err(Corrupt::Body(kind.name())),
    };
    Ok(frame.unwrap_or_else(|problem| problem))
}

fn archived<'a, T>(kind: Kind, raw: &'a [u8]) -> Result<&'a T, Corrupt>
where
    T: rkyv::Portable + for<'c> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'c, rkyv::rancor::Failure>>,
{
    rkyv::access::<T, rkyv::rancor::Failure>(raw).map_err(|_| Corrupt::Body(kind.name()))
}

/// A frame, or the malformed one that is reported instead.
type Checked<'a, T = Frame<'a>> = Result<T, Frame<'a>>;

fn malformed<'a>(number: u64, problem: &'static str) -> Frame<'a> {
    Frame::Malformed { label: Text::Borrowed(""), number, problem: Text::Borrowed(problem) }
}

fn hello(body: &ArchivedHello) -> Checked<'_> {
    let texts =
        [&body.name, &body.cli, &body.program, &body.model, &body.task, &body.working_directory, &body.auth_type];
    if texts.iter().any(|text| text.len() > HELLO_TEXT_BYTES_MAX) {
        return Err(malformed(0, "a text field of HELLO is at most 1024 bytes long"));
    }
    if body.credential.len() > CREDENTIAL_BYTES_MAX {
        return Err(malformed(0, "a credential is at most 4096 bytes long"));
    }
    Ok(Frame::Hello(Box::new(Hello {
        claimed_name: Cow::Borrowed(body.name.as_slice()),
        capabilities: body.capabilities.to_native(),
        in_flight_max: body.in_flight_max.to_native(),
        resume: token(&body.resume),
        resume_presented: !body.resume.is_empty(),
        handled: Sequence { epoch: body.handled_epoch.to_native(), counter: body.handled_counter.to_native() },
        cli: lossy(&body.cli),
        program: lossy(&body.program),
        model: lossy(&body.model),
        task: lossy(&body.task),
        working_directory: lossy(&body.working_directory),
        auth_type: lossy(&body.auth_type),
        credential: super::Secret::new(lossy(&body.credential)),
    })))
}

fn welcome(body: &ArchivedWelcome) -> Checked<'_> {
    let (Some(session), Some(resume)) = (token(&body.session), token(&body.resume)) else {
        return Err(malformed(0, "the tokens of WELCOME have 16 bytes each"));
    };
    Ok(Frame::Welcome(Box::new(Welcome {
        agent: AgentId(body.agent.to_native()),
        session,
        resume,
        resumed: body.flags.to_native() & 1 != 0,
        number: body.number.to_native(),
        capabilities: body.capabilities.to_native(),
        epoch: body.epoch.to_native(),
        in_flight_max: body.in_flight_max.to_native(),
        frame_bytes_max: body.frame_bytes_max.to_native(),
        heartbeat_ms: body.heartbeat_ms.to_native(),
        server: lossy(&body.server),
        license: lossy(&body.license),
    })))
}

fn receipts(body: &ArchivedReceipt) -> Checked<'_> {
    let (records, rest) = body.records.as_chunks::<RECEIPT_RECORD_BYTES>();
    if !rest.is_empty() {
        return Err(malformed(0, "the records of a RECEIPT have 32 bytes each"));
    }
    if records.len() > RECEIPT_RECORDS_MAX {
        return Err(malformed(0, "a RECEIPT holds at most 1024 records"));
    }
    records
        .iter()
        .map(|record| {
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| record[at + byte]));
            let count = u32::from_le_bytes([record[24], record[25], record[26], record[27]]);
            let number = word(8);
            if count == 0 {
                return Err(malformed(number, "a receipt speaks of at least one message"));
            }
            let state = state(record[28], record[29])
                .ok_or_else(|| malformed(number, "the state or reason of a receipt is unknown"))?;
            let id = MessageId { sender: AgentId(word(0)), number };
            Ok(Receipt { id, count, state, recipient: AgentId(word(16)) })
        })
        .collect::<Checked<'_, Vec<Receipt>>>()
        .map(Frame::Receipt)
}

fn state(state: u8, reason: u8) -> Option<ReceiptState> {
    Some(match state {
        1 => ReceiptState::Accepted,
        2 => ReceiptState::Durable,
        3 => ReceiptState::Delivered,
        4 => ReceiptState::Acknowledged,
        5 => ReceiptState::Read,
        6 => ReceiptState::Failed(RefuseReason::from_wire(reason)?),
        _ => return None,
    })
}

fn state_to_wire(state: ReceiptState) -> [u8; 2] {
    match state {
        ReceiptState::Accepted => [1, 0],
        ReceiptState::Durable => [2, 0],
        ReceiptState::Delivered => [3, 0],
        ReceiptState::Acknowledged => [4, 0],
        ReceiptState::Read => [5, 0],
        ReceiptState::Failed(reason) => [6, reason as u8],
    }
}

fn topic(body: &ArchivedTopic) -> Checked<'_, Topic<'_>> {
    let topic = name::topic_of(&body.name);
    if topic.len() > TOPIC_BYTES_MAX {
        return Err(malformed(0, "a topic's name is at most 132 bytes long"));
    }
    if topic.starts_with(b"#") {
        return Err(malformed(0, "a topic's name has at most one leading #"));
    }
    Ok(Topic { name: Cow::Borrowed(topic), channel: body.flags.to_native() & 1 != 0 })
}

fn payload(body: &ArchivedPing) -> Checked<'_, Cow<'_, [u8]>> {
    if body.payload.len() > PING_BYTES_MAX {
        return Err(malformed(0, "a PING carries at most 256 bytes"));
    }
    Ok(Cow::Borrowed(body.payload.as_slice()))
}

fn busy(body: &ArchivedBusy) -> Checked<'_> {
    let number = body.number.to_native();
    let reason = reason(body.reason.to_native()).ok_or_else(|| malformed(number, "the reason of BUSY is unknown"))?;
    Ok(Frame::Busy(Box::new(Busy {
        number,
        label: lossy(&body.label),
        reason,
        retry_after_ms: body.retry_after_ms.to_native(),
        queue_depth: body.queue_depth.to_native(),
        recipient: lossy(&body.recipient),
    })))
}

fn error(body: &ArchivedError) -> Checked<'_> {
    let code = body.code.to_native();
    Ok(Frame::Error(Box::new(ErrorFrame {
        // A code of a later minor version is still an error, and its message still says what to do.
        code: ErrorCode::ALL.into_iter().find(|known| *known as u32 == code).unwrap_or(ErrorCode::Internal),
        fatal: body.flags.to_native() & 1 != 0,
        message: lossy(&body.message),
        number: body.number.to_native(),
        label: lossy(&body.label),
        outcome: reason(body.outcome.to_native()),
    })))
}

fn query(body: &ArchivedQuery) -> Checked<'_> {
    let number = body.number.to_native();
    let kind = match body.kind.to_native() {
        1 => QueryKind::Status,
        2 => QueryKind::Agents,
        3 => QueryKind::Message,
        4 => QueryKind::Stop,
        5 => QueryKind::History,
        6 => QueryKind::Keys,
        7 => QueryKind::License,
        _ => return Err(malformed(number, "this relay does not know that kind of QUERY")),
    };
    if body.arguments.len() > QUERY_ARGUMENT_BYTES_MAX {
        return Err(malformed(number, "the arguments of a QUERY are at most 4096 bytes long"));
    }
    let arguments = std::str::from_utf8(&body.arguments)
        .map_err(|_| malformed(number, "the arguments of a QUERY are a JSON object in UTF-8"))?;
    Ok(Frame::Query(Box::new(Query { number, kind, arguments: Text::Borrowed(arguments) })))
}

fn answer(body: &ArchivedAnswer) -> Checked<'_> {
    let flags = body.flags.to_native();
    Ok(Frame::Answer(Box::new(Answer {
        number: body.number.to_native(),
        more: flags & 1 != 0,
        failed: flags & 2 != 0,
        json: Cow::Borrowed(body.json.as_slice()),
    })))
}

fn lossy(bytes: &[u8]) -> Text<'_> {
    String::from_utf8_lossy(bytes)
}

fn token(bytes: &[u8]) -> Option<Token> {
    bytes.try_into().ok().map(Token)
}

fn reason(number: u32) -> Option<RefuseReason> {
    u8::try_from(number).ok().and_then(RefuseReason::from_wire)
}

/// Integers of a root, in order.
struct Integers {
    bytes: [u8; 48],
    length: usize,
}

impl Integers {
    const fn new() -> Integers {
        Integers { bytes: [0; 48], length: 0 }
    }

    fn word(self, value: u64) -> Integers {
        self.put(&value.to_le_bytes())
    }

    fn half(self, value: u32) -> Integers {
        self.put(&value.to_le_bytes())
    }

    fn put(mut self, bytes: &[u8]) -> Integers {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
        self
    }

    fn append<const PARTS: usize>(self, parts: [&[u8]; PARTS], out: &mut Vec<u8>) {
        append_archive(parts, &self.bytes[..self.length], out);
    }
}

pub(super) fn append_hello(hello: &Hello<'_>, out: &mut Vec<u8>) {
    Integers::new()
        .word(hello.capabilities)
        .word(hello.handled.counter)
        .half(hello.handled.epoch)
        .half(hello.in_flight_max)
        .append(
            [
                &hello.claimed_name,
                hello.resume.as_ref().map_or(&[][..], |token| &token.0),
                hello.cli.as_bytes(),
                hello.program.as_bytes(),
                hello.model.as_bytes(),
                hello.task.as_bytes(),
                hello.working_directory.as_bytes(),
                hello.auth_type.as_bytes(),
                hello.credential.reveal().as_bytes(),
                &[],
            ],
            out,
        );
}

pub(super) fn append_welcome(welcome: &Welcome<'_>, out: &mut Vec<u8>) {
    Integers::new()
        .word(welcome.agent.0)
        .word(welcome.number)
        .word(welcome.capabilities)
        .half(welcome.epoch)
        .half(welcome.in_flight_max)
        .half(welcome.frame_bytes_max)
        .half(welcome.heartbeat_ms)
        .half(u32::from(welcome.resumed))
        .append(
            [&welcome.session.0, &welcome.resume.0, welcome.server.as_bytes(), welcome.license.as_bytes(), &[]],
            out,
        );
}

pub(super) fn append_receipts(receipts: &[Receipt], out: &mut Vec<u8>) {
    debug_assert!(receipts.len() <= RECEIPT_RECORDS_MAX);
    // A shard says one at a time, and must not allocate for it.
    if let [receipt] = receipts {
        return Integers::new().append([&record_of(receipt), &[]], out);
    }
    let records: Vec<u8> = receipts.iter().flat_map(record_of).collect();
    Integers::new().append([&records, &[]], out);
}

fn record_of(receipt: &Receipt) -> [u8; RECEIPT_RECORD_BYTES] {
    let mut record = [0; RECEIPT_RECORD_BYTES];
    record[0..8].copy_from_slice(&receipt.id.sender.0.to_le_bytes());
    record[8..16].copy_from_slice(&receipt.id.number.to_le_bytes());
    record[16..24].copy_from_slice(&receipt.recipient.0.to_le_bytes());
    record[24..28].copy_from_slice(&receipt.count.to_le_bytes());
    record[28..30].copy_from_slice(&state_to_wire(receipt.state));
    record
}

pub(super) fn append_topic(topic: &Topic<'_>, out: &mut Vec<u8>) {
    Integers::new().half(u32::from(topic.channel)).append([&topic.name, &[]], out);
}

pub(super) fn append_payload(payload: &[u8], out: &mut Vec<u8>) {
    Integers::new().append([payload, &[]], out);
}

pub(super) fn append_busy(busy: &Busy<'_>, out: &mut Vec<u8>) {
    Integers::new()
        .word(busy.number)
        .half(busy.retry_after_ms)
        .half(busy.queue_depth)
        .half(busy.reason as u32)
        .append([busy.label.as_bytes(), busy.recipient.as_bytes(), &[]], out);
}

pub(super) fn append_error(error: &ErrorFrame<'_>, out: &mut Vec<u8>) {
    Integers::new()
        .word(error.number)
        .half(error.code as u32)
        .half(error.outcome.map_or(0, |reason| reason as u32))
        .half(u32::from(error.fatal))
        .append([error.message.as_bytes(), error.label.as_bytes(), &[]], out);
}

pub(super) fn append_query(query: &Query<'_>, out: &mut Vec<u8>) {
    Integers::new().word(query.number).half(query.kind as u32).append([query.arguments.as_bytes(), &[]], out);
}

pub(super) fn append_answer(number: u64, more: bool, failed: bool, json: &[u8], out: &mut Vec<u8>) {
    Integers::new().word(number).half(u32::from(more) | u32::from(failed) << 1).append([json, &[]], out);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What rkyv itself writes for `body`.
    macro_rules! archive {
        ($body:expr) => {
            rkyv::to_bytes::<rkyv::rancor::Failure>(&$body).expect("plain data serialises").to_vec()
        };
    }

    fn ours(append: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        append(&mut out);
        out
    }

    #[test]
    fn the_hand_written_hello_and_welcome_are_what_rkyv_writes() {
        let hello = Hello {
            claimed_name: b"ann"[..].into(),
            capabilities: 7,
            in_flight_max: 64,
            resume: Some(Token([9; 16])),
            handled: Sequence { epoch: 2, counter: 5 },
            task: "build".into(),
            ..Hello::default()
        };
        let body = HelloBody {
            capabilities: 7,
            handled_counter: 5,
            handled_epoch: 2,
            in_flight_max: 64,
            name: b"ann".to_vec(),
            resume: vec![9; 16],
            cli: vec![],
            program: vec![],
            model: vec![],
            task: b"build".to_vec(),
            working_directory: vec![],
            auth_type: vec![],
            credential: vec![],
            extension: vec![],
        };
        assert_eq!(ours(|out| append_hello(&hello, out)), archive!(body));
        let welcome = Welcome {
            agent: AgentId(1),
            session: Token([1; 16]),
            resume: Token([2; 16]),
            resumed: true,
            number: 3,
            capabilities: 4,
            epoch: 5,
            in_flight_max: 6,
            frame_bytes_max: 7,
            heartbeat_ms: 8,
            server: "relay".into(),
            license: "{}".into(),
        };
        let body = WelcomeBody {
            agent: 1,
            number: 3,
            capabilities: 4,
            epoch: 5,
            in_flight_max: 6,
            frame_bytes_max: 7,
            heartbeat_ms: 8,
            flags: 1,
            session: vec![1; 16],
            resume: vec![2; 16],
            server: b"relay".to_vec(),
            license: b"{}".to_vec(),
            extension: vec![],
        };
        assert_eq!(ours(|out| append_welcome(&welcome, out)), archive!(body));
    }

    #[test]
    fn the_other_hand_written_bodies_are_what_rkyv_writes() {
        let none = Vec::new;
        let receipt = Receipt {
            id: MessageId { sender: AgentId(1), number: 2 },
            count: 3,
            state: ReceiptState::Failed(RefuseReason::Expired),
            recipient: AgentId(4),
        };
        let mut record = [1u64.to_le_bytes(), 2u64.to_le_bytes(), 4u64.to_le_bytes()].concat();
        record.extend_from_slice(&[3, 0, 0, 0, 6, 6, 0, 0]);
        assert_eq!(
            ours(|out| append_receipts(&[receipt], out)),
            archive!(ReceiptBody { records: record, extension: none() })
        );
        let topic = Topic { name: b"builds"[..].into(), channel: true };
        let body = TopicBody { flags: 1, name: b"builds".to_vec(), extension: none() };
        assert_eq!(ours(|out| append_topic(&topic, out)), archive!(body));
        let body = PingBody { payload: b"1234".to_vec(), extension: none() };
        assert_eq!(ours(|out| append_payload(b"1234", out)), archive!(body));
        let busy = Busy {
            number: 1,
            label: "l".into(),
            reason: RefuseReason::RateLimited,
            retry_after_ms: 2,
            queue_depth: 3,
            recipient: "bob".into(),
        };
        let body = BusyBody {
            number: 1,
            retry_after_ms: 2,
            queue_depth: 3,
            reason: 9,
            label: b"l".to_vec(),
            recipient: b"bob".to_vec(),
            extension: none(),
        };
        assert_eq!(ours(|out| append_busy(&busy, out)), archive!(body));
        let error = ErrorFrame {
            code: ErrorCode::NotFound,
            fatal: true,
            message: "no".into(),
            number: 1,
            label: "l".into(),
            outcome: Some(RefuseReason::NotFound),
        };
        let body = ErrorBody {
            number: 1,
            code: 5,
            outcome: 1,
            flags: 1,
            message: b"no".to_vec(),
            label: b"l".to_vec(),
            extension: none(),
        };
        assert_eq!(ours(|out| append_error(&error, out)), archive!(body));
        let query = Query { number: 1, kind: QueryKind::Message, arguments: "{}".into() };
        let body = QueryBody { number: 1, kind: 3, arguments: b"{}".to_vec(), extension: none() };
        assert_eq!(ours(|out| append_query(&query, out)), archive!(body));
        let body = AnswerBody { number: 1, flags: 3, json: b"{}".to_vec(), extension: none() };
        assert_eq!(ours(|out| append_answer(1, true, true, b"{}", out)), archive!(body));
    }
}
