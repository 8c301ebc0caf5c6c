//! The native wire, from outside: golden bytes, hostile bytes, any slicing. `docs/WIRE.md` shows the same golden bytes,
//! and a Python client written from that document must read and write them.
#![allow(clippy::unwrap_used, reason = "the whole file is a test")]

use agent_relay::base::ids::{Token, number_of_label};
use agent_relay::base::limits::FRAME_BYTES_MAX;
use agent_relay::base::{AgentId, MessageId, RefuseReason, Sequence};
use agent_relay::wire::decode::{self, Decoded};
use agent_relay::wire::*;
use proptest::prelude::*;
use std::path::PathBuf;
use std::process::Command;

const NOTHING: Sequence = Sequence { epoch: 0, counter: 0 };

fn at(epoch: u32, counter: u64) -> Sequence {
    Sequence { epoch, counter }
}

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wire/golden").join(format!("{name}.hex"))
}

/// The bytes of an annotated hex text: whatever stands before `#` on each line.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text
        .lines()
        .map(|line| line.split('#').next().unwrap())
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .collect();
    assert!(digits.len().is_multiple_of(2));
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn golden(name: &str) -> Vec<u8> {
    hex(&std::fs::read_to_string(golden_path(name)).unwrap())
}

fn whole(bytes: &[u8]) -> (Header, Frame<'_>, usize) {
    match decode::frame(bytes).expect("a frame") {
        Decoded::Whole { header, frame, length } => (header, frame, length),
        Decoded::Partial { needed } => panic!("needs {needed} bytes, has {}", bytes.len()),
    }
}

fn question() -> MessageFields<'static> {
    MessageFields {
        id: MessageId { sender: AgentId::of(b"ann"), number: 18 },
        sent_at_ms: 1_766_966_970_000,
        ttl_ms: 60_000,
        wants: Wants::ACCEPTED,
        kind: 0,
        importance: 50,
        from: b"ann",
        to: b"bob",
        thread: b"t1",
        text: "Is the build green? ✓".as_bytes(),
        data: b"{\"run\":7}",
        meta: b"{\"ttl_ms\":60000}",
        ..MessageFields::default()
    }
}

fn order() -> MessageFields<'static> {
    let label = b"3f0c1a5e-7c1e-4a52-9a9b-0c9d6f2b7e11";
    MessageFields {
        id: MessageId { sender: AgentId::of(b"ann"), number: number_of_label(label) },
        sent_at_ms: 1_766_966_970_000,
        wants: Wants::ACCEPTED | Wants::DURABLE,
        kind: 1,
        importance: 80,
        from: b"ann",
        to: b"*",
        topic: b"builds",
        label,
        text: b"deploy",
        ..MessageFields::default()
    }
}

fn token(first: u8) -> Token {
    Token(std::array::from_fn(|index| first + index as u8))
}

/// Every control frame of the golden files, as this program would say it.
fn control_frames() -> Vec<(&'static str, Frame<'static>, Sequence)> {
    let (ann, bob) = (AgentId::of(b"ann"), AgentId::of(b"bob"));
    let receipt =
        |number, count, state, recipient| Receipt { id: MessageId { sender: ann, number }, count, state, recipient };
    let topic = || Topic { name: b"builds"[..].into(), channel: false };
    vec![
        (
            "hello",
            Frame::Hello(Box::new(Hello {
                claimed_name: b"ann"[..].into(),
                capabilities: CAPABILITIES,
                in_flight_max: 256,
                resume: Some(token(0x20)),
                resume_presented: true,
                handled: at(3, 41),
                cli: "claude".into(),
                program: "ann-agent".into(),
                task: "review".into(),
                working_directory: "/src".into(),
                ..Hello::default()
            })),
            NOTHING,
        ),
        (
            "welcome",
            Frame::Welcome(Box::new(Welcome {
                agent: ann,
                session: token(0x10),
                resume: token(0x30),
                resumed: true,
                number: 17,
                capabilities: CAPABILITIES,
                epoch: 3,
                in_flight_max: 256,
                frame_bytes_max: 1_048_576,
                heartbeat_ms: 5000,
                server: "relay 0.1.0".into(),
                license: "".into(),
            })),
            NOTHING,
        ),
        ("ack", Frame::Ack(Ack::Through(at(3, 43))), NOTHING),
        ("ack_one", Frame::Ack(Ack::One(at(3, 45))), NOTHING),
        (
            "receipt",
            Frame::Receipt(vec![
                receipt(18, 1, ReceiptState::Acknowledged, bob),
                receipt(19, 4, ReceiptState::Failed(RefuseReason::NotFound), AgentId(0)),
            ]),
            NOTHING,
        ),
        ("subscribe", Frame::Subscribe(topic()), at(3, 43)),
        ("unsubscribe", Frame::Unsubscribe(topic()), NOTHING),
        ("ping", Frame::Ping(b"\x01\x02\x03\x04"[..].into()), NOTHING),
        ("pong", Frame::Pong(b"\x01\x02\x03\x04"[..].into()), NOTHING),
        (
            "busy",
            Frame::Busy(Box::new(Busy {
                number: 18,
                label: "".into(),
                reason: RefuseReason::RecipientFull,
                retry_after_ms: 250,
                queue_depth: 4096,
                recipient: "bob".into(),
            })),
            NOTHING,
        ),
        (
            "error",
            Frame::Error(Box::new(ErrorFrame {
                code: ErrorCode::NotFound,
                fatal: false,
                message: "no agent named bob".into(),
                number: 18,
                label: "".into(),
                outcome: Some(RefuseReason::NotFound),
            })),
            NOTHING,
        ),
        ("bye", Frame::Bye, at(3, 43)),
        (
            "query",
            Frame::Query(Box::new(Query {
                number: 1,
                kind: QueryKind::Status,
                arguments: "{\"verbose\":true}".into(),
            })),
            NOTHING,
        ),
        (
            "answer",
            Frame::Answer(Box::new(Answer {
                number: 1,
                more: false,
                failed: false,
                json: b"{\"version\":\"0.1.0\"}"[..].into(),
            })),
            NOTHING,
        ),
    ]
}

#[test]
fn control_frames_are_their_golden_bytes_and_back() {
    for (name, frame, ack) in control_frames() {
        let expected = golden(name);
        let mut written = Vec::new();
        encode::frame(&mut written, &frame, ack);
        assert_eq!(written, expected, "{name}");
        let (header, read, length) = whole(&expected);
        assert_eq!((length, header.ack), (expected.len(), ack), "{name}");
        assert_eq!(format!("{read:?}"), format!("{frame:?}"), "{name}");
        let mut again = Vec::new();
        encode::frame(&mut again, &read, header.ack);
        assert_eq!(again, expected, "{name}: tokens and credentials, which have no debug form, are the same too");
    }
}

#[test]
fn messages_are_their_golden_bytes_and_back() {
    let mut written = Vec::new();
    encode::send(&mut written, Kind::Send, &question(), at(3, 42));
    assert_eq!(written, golden("send"));
    assert_eq!(written.len(), encode::message_length(&question()));
    let (header, frame, _) = whole(&written);
    let Frame::Send(message) = frame else { panic!("{frame:?}") };
    assert_eq!((message.fields(), header.ack, header.sequence.counter), (question(), at(3, 42), 18));

    let mut delivered = Vec::new();
    encode::deliver(&mut delivered, FLAG_REDELIVERED, at(3, 7), message.raw, message.checksum);
    assert_eq!(delivered, golden("deliver"));
    assert_eq!(delivered[HEADER_BYTES..], written[HEADER_BYTES..], "the body is relayed as it came");
    let (header, frame, _) = whole(&delivered);
    let Frame::Deliver(message) = frame else { panic!("{frame:?}") };
    assert_eq!((message.fields(), header.flags, header.sequence), (question(), FLAG_REDELIVERED, at(3, 7)));

    let mut submitted = Vec::new();
    encode::send(&mut submitted, Kind::Submit, &order(), NOTHING);
    assert_eq!(submitted, golden("submit"));
    let (_, frame, _) = whole(&submitted);
    let Frame::Submit(message) = frame else { panic!("{frame:?}") };
    assert_eq!(message.fields(), order());
    let mut body = Vec::new();
    assert_eq!((encode::message_body(&mut body, &order()), &body[..]), (message.checksum, message.raw));
}

#[test]
fn every_kind_has_a_golden_file_and_every_golden_file_a_frame() {
    let mut kinds: Vec<u8> = std::fs::read_dir(golden_path("x").parent().unwrap())
        .unwrap()
        .map(|entry| whole(&hex(&std::fs::read_to_string(entry.unwrap().path()).unwrap())).0.kind as u8)
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, Kind::ALL.map(|kind| kind as u8));
}

#[test]
fn the_document_shows_the_golden_bytes() {
    let document = include_str!("../docs/WIRE.md").replace("\r\n", "\n");
    let mut shown = 0;
    for block in document.split("\n```golden ").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (text, _) = rest.split_once("\n```").unwrap();
        let expected = std::fs::read_to_string(golden_path(name)).unwrap();
        assert_eq!(text.trim_end(), expected.trim_end(), "docs/WIRE.md and tests/wire/golden/{name}.hex differ");
        shown += 1;
    }
    assert!(shown >= 4, "the worked examples are there");
}

#[test]
fn the_document_names_every_kind_reason_and_code() {
    let document = include_str!("../docs/WIRE.md");
    let row = |number: u8, name: &str| format!("\n| {number} | `{name}` |");
    for kind in Kind::ALL {
        assert!(document.contains(&row(kind as u8, kind.name())), "{}", kind.name());
    }
    for reason in RefuseReason::ALL {
        assert!(document.contains(&row(reason as u8, reason.name())), "{}", reason.name());
    }
    for reason in agent_relay::base::CloseReason::ALL {
        assert!(document.contains(&row(reason as u8, reason.name())), "{}", reason.name());
    }
    for code in ErrorCode::ALL {
        assert!(document.contains(&row(code as u8, code.name())), "{}", code.name());
    }
}

#[test]
fn the_python_client_reads_and_writes_the_golden_bytes() {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/python/relay_client.py");
    let mut command = Command::new("python3");
    command.arg("-B").arg(script).arg("check");
    let mut goldens = 0;
    for entry in std::fs::read_dir(golden_path("x").parent().unwrap()).unwrap() {
        command.arg(entry.unwrap().path());
        goldens += 1;
    }
    match command.output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), goldens, "{said}");
        }
        Err(problem) => eprintln!("SKIPPED: the Python client was not tried, python3 does not start: {problem}"),
    }
}

/// The problem of a SEND or SUBMIT that breaks a rule, with the number it names.
fn problem(kind: Kind, fields: &MessageFields<'_>) -> (u64, String) {
    let mut bytes = Vec::new();
    encode::send(&mut bytes, kind, fields, NOTHING);
    match whole(&bytes).1 {
        Frame::Malformed { number, problem, .. } => (number, problem.into_owned()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_that_breaks_a_rule_is_malformed_and_the_stream_goes_on() {
    let numbered = |number| MessageFields { id: MessageId { number, ..question().id }, ..question() };
    assert_eq!(problem(Kind::Send, &numbered(0)), (0, "the number of a SEND is at least 1 and below 2^63".into()));
    assert_eq!(problem(Kind::Send, &numbered(1 << 63)).0, 1 << 63);
    assert_eq!(problem(Kind::Submit, &numbered(5)).0, 5);
    let long = [b'x'; 300];
    for fields in [
        MessageFields { to: &long[..65], ..question() },
        MessageFields { from: &long[..65], ..question() },
        MessageFields { topic: &long[..133], ..question() },
        MessageFields { label: &long[..257], ..question() },
    ] {
        assert_eq!(problem(Kind::Send, &fields).0, 18);
    }
    let mut bytes = golden("send");
    bytes[16] ^= 1;
    assert!(matches!(whole(&bytes).1, Frame::Malformed { number: 18, .. }), "the header names another number");

    let mut topic = vec![b'#'];
    topic.extend_from_slice(&long[..132]);
    let mut bytes = Vec::new();
    encode::send(&mut bytes, Kind::Send, &MessageFields { to: &topic, ..question() }, NOTHING);
    assert!(matches!(whole(&bytes).1, Frame::Send(_)), "`to` may hold # and the longest topic");
}

#[test]
fn control_frames_that_break_a_rule_are_malformed_or_repaired() {
    let malformed = |frame: Frame<'_>| {
        let mut bytes = Vec::new();
        encode::frame(&mut bytes, &frame, NOTHING);
        let read = whole(&bytes).1;
        assert!(matches!(read, Frame::Malformed { .. }), "{read:?}");
    };
    malformed(Frame::Ping(vec![0; 257].into()));
    malformed(Frame::Subscribe(Topic { name: vec![b'x'; 133].into(), channel: false }));
    // Found by fuzzing: with one # taken off at each reading, a topic would change its name on each hop.
    malformed(Frame::Subscribe(Topic { name: b"##x"[..].into(), channel: false }));
    malformed(Frame::Hello(Box::new(Hello { task: "x".repeat(1025).into(), ..Hello::default() })));
    let arguments = "x".repeat(5000).into();
    malformed(Frame::Query(Box::new(Query { number: 1, kind: QueryKind::Agents, arguments })));

    // The token's length is the fourth byte vector's: cut to 15 bytes, it is presented but not readable.
    let mut bytes = golden("hello");
    let length_of_resume = bytes.len() - 80 + 12;
    bytes[length_of_resume] = 15;
    reseal(&mut bytes);
    let Frame::Hello(hello) = whole(&bytes).1 else { panic!() };
    assert!(hello.resume.is_none() && hello.resume_presented);

    let mut bytes = golden("error");
    let message = bytes.windows(2).position(|pair| pair == b"no").unwrap();
    bytes[message] = 0xFF;
    reseal(&mut bytes);
    let Frame::Error(error) = whole(&bytes).1 else { panic!() };
    assert_eq!(error.message, "\u{FFFD}o agent named bob");
}

/// Writes the checksum that belongs to the body.
fn reseal(bytes: &mut [u8]) {
    let checksum = crc32fast::hash(&bytes[HEADER_BYTES..]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn long_answers_and_receipts_come_in_frames_of_legal_length() {
    let json = vec![b' '; 3 * FRAME_BYTES_MAX];
    let mut bytes = Vec::new();
    let answer = Answer { number: 4, more: false, failed: false, json: json.clone().into() };
    encode::frame(&mut bytes, &Frame::Answer(Box::new(answer)), NOTHING);
    let (mut rest, mut gathered, mut parts) = (&bytes[..], 0, Vec::new());
    while !rest.is_empty() {
        let (_, frame, length) = whole(rest);
        let Frame::Answer(answer) = frame else { panic!() };
        gathered += answer.json.len();
        parts.push(answer.more);
        rest = &rest[length..];
    }
    assert_eq!((gathered, parts), (json.len(), vec![true, true, true, false]));

    let id = MessageId { sender: AgentId(1), number: 1 };
    let receipt = Receipt { id, count: 1, state: ReceiptState::Durable, recipient: AgentId(0) };
    let mut bytes = Vec::new();
    encode::frame(&mut bytes, &Frame::Receipt(vec![receipt; RECEIPT_RECORDS_MAX + 1]), NOTHING);
    let (_, _, first) = whole(&bytes);
    let Frame::Receipt(rest) = whole(&bytes[first..]).1 else { panic!() };
    assert_eq!(rest, [receipt]);
}

#[test]
fn headers_that_cannot_be_are_named() {
    let with = |at: usize, value: u8| {
        let mut bytes = golden("send");
        bytes[at] = value;
        decode::frame(&bytes).unwrap_err()
    };
    assert_eq!(with(0, b'G'), Corrupt::Magic(b'G'));
    assert_eq!(with(1, 2), Corrupt::Version(2));
    assert_eq!(with(2, 17), Corrupt::Kind(17));
    assert_eq!(with(28, 1), Corrupt::Reserved);
    assert_eq!(with(7, 1), Corrupt::TooLong { length: 0x0100_00A0 + 40 });
    assert!(matches!(with(50, 0), Corrupt::Checksum { .. }));
    assert_eq!(decode::frame(b"GET / HTTP/1.1").unwrap_err(), Corrupt::Magic(b'G'));
    let mut bytes = golden("send");
    let last_vector = bytes.len() - 8;
    bytes[last_vector] = 0;
    bytes[last_vector + 1] = 0;
    reseal(&mut bytes);
    assert_eq!(decode::frame(&bytes).unwrap_err(), Corrupt::Body("SEND"));
}

#[test]
fn vectors_out_of_order_overlapping_or_astray_are_refused_as_the_document_says() {
    let sent = golden("send");
    let pairs = sent.len() - 72;
    let with = |pair: usize, offset: i32, length: u32| {
        let mut bytes = sent.clone();
        let at = pairs + 8 * pair;
        bytes[at..at + 4].copy_from_slice(&offset.to_le_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&length.to_le_bytes());
        reseal(&mut bytes);
        decode::frame(&bytes).map(drop)
    };
    assert_eq!(with(0, -88, 3), Ok(()), "as it was");
    assert_eq!(with(0, -88, 2), Ok(()), "a gap between vectors is harmless");
    assert!(with(0, -88, 4).is_err(), "overlaps the next one");
    assert!(with(1, -96, 3).is_err(), "comes before the first one");
    assert!(with(0, -89, 3).is_err(), "starts before the body");
    assert!(with(8, 0, 0).is_err(), "empty, and points into the root");
    assert!(with(8, -96, u32::MAX).is_err(), "longer than anything");
}

/// Frames as bytes: the golden ones and messages of any content.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let names: Vec<&'static str> = control_frames().iter().map(|(name, ..)| *name).collect();
    let bytes = |most: usize| proptest::collection::vec(any::<u8>(), 0..most);
    prop_oneof![
        proptest::sample::select(names).prop_map(golden),
        (1..1u64 << 63, bytes(64), bytes(64), bytes(128), bytes(256), bytes(2000), bytes(50), any::<u8>()).prop_map(
            |(number, from, to, topic, label, text, extension, wants)| {
                let fields = MessageFields {
                    id: MessageId { sender: AgentId(number ^ 77), number },
                    wants: Wants(wants),
                    from: &from,
                    to: &to,
                    topic: &topic,
                    label: &label,
                    text: &text,
                    extension: &extension,
                    ..question()
                };
                let mut out = Vec::new();
                encode::send(&mut out, Kind::Send, &fields, at(1, number));
                let Frame::Send(message) = whole(&out).1 else { panic!() };
                assert_eq!(message.fields(), fields, "a message round-trips");
                out
            }
        ),
    ]
}

/// Reads a stream that arrives in pieces, as a receive loop would; each frame in its debug form.
fn read_in_pieces(stream: &[u8], cuts: &[usize]) -> Vec<String> {
    let (mut buffer, mut fed, mut frames) = (Vec::new(), 0, Vec::new());
    let mut cuts = cuts.iter().cycle();
    loop {
        match decode::frame(&buffer).expect("a good stream") {
            Decoded::Whole { header, frame, length } => {
                frames.push(format!("{header:?} {frame:?}"));
                buffer.drain(..length);
            }
            Decoded::Partial { needed } => {
                assert!(needed > buffer.len() && needed >= HEADER_BYTES);
                if fed == stream.len() {
                    assert!(buffer.is_empty());
                    return frames;
                }
                let until = stream.len().min(fed + cuts.next().unwrap());
                buffer.extend_from_slice(&stream[fed..until]);
                fed = until;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_slicing_of_a_stream_gives_the_same_frames(
        frames in proptest::collection::vec(any_frame(), 1..6),
        cuts in proptest::collection::vec(1..200usize, 1..20),
    ) {
        let stream = frames.concat();
        let whole = read_in_pieces(&stream, &[stream.len()]);
        prop_assert_eq!(whole.len(), frames.len());
        prop_assert_eq!(whole, read_in_pieces(&stream, &cuts));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 1..=16u8) {
        let _ = decode::frame(&bytes);
        // The same behind a header that fits, so that the body's decoder sees them.
        let length = bytes.len() as u32;
        let checksum = crc32fast::hash(&bytes);
        let mut framed = Header { length, checksum, ..Header::of(Kind::ALL[usize::from(kind) - 1]) }.encode().to_vec();
        framed.extend_from_slice(&bytes);
        if let Ok(Decoded::Whole { frame, header, .. }) = decode::frame(&framed) {
            let mut again = Vec::new();
            encode::frame(&mut again, &frame, header.ack);
        }
    }

    #[test]
    fn a_flipped_bit_never_yields_a_changed_message(frame in any_frame(), bit in any::<proptest::sample::Index>()) {
        let mut damaged = frame.clone();
        let bit = bit.index(frame.len() * 8);
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(Decoded::Whole { frame: read, .. }) = decode::frame(&damaged) {
            // Only a header's flags, sequence, acknowledgement or kind can have changed: the body is under the checksum.
            prop_assert!(bit / 8 < HEADER_BYTES);
            if let Frame::Send(message) | Frame::Deliver(message) | Frame::Submit(message) = read {
                prop_assert_eq!(message.raw, &frame[HEADER_BYTES..]);
            }
        }
    }

    #[test]
    fn damaged_structure_under_a_good_checksum_never_panics(frame in any_frame(), damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4)) {
        let mut damaged = frame;
        for (place, value) in damage {
            let place = place.index(damaged.len());
            damaged[place] = value;
        }
        if damaged.len() > HEADER_BYTES {
            reseal(&mut damaged);
        }
        if let Ok(Decoded::Whole { frame: Frame::Send(message), .. }) = decode::frame(&damaged) {
            let parcel = message.parcel(agent_relay::base::Bytes::copy_from_slice(message.raw));
            prop_assert_eq!((parcel.from(), parcel.to(), parcel.topic(), parcel.label()), (message.from(), message.to(), message.topic(), message.label()));
        }
    }
}
