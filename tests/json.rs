//! The JSON dialect against its specification, against what agent-relay 1.6.0 said on a real socket, and against anything.
// Helpers outside #[test] functions unwrap too: here a panic is the report.
#![allow(clippy::unwrap_used)]

use agent_relay::base::ids::{Token, TokenSource, number_of_label};
use agent_relay::base::limits::FRAME_BYTES_MAX;
use agent_relay::base::{AgentId, MessageId, RefuseReason, Sequence};
use agent_relay::wire::json::{self, Decoded, PREFIX_BYTES, Scratch, Speaker, Stamp};
use agent_relay::wire::{
    Ack, Busy, Corrupt, ErrorCode, ErrorFrame, FLAG_CHANNEL, FLAG_REDELIVERED, Frame, Wants, Welcome,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn speaker(name: &str) -> Speaker<'_> {
    let session = TokenSource::new([1; 32]).issue();
    Speaker { name, agent: AgentId::of(name.as_bytes()), session, ordinal: 7, wall_ms: 1_700_000_000_000 }
}

fn framed(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(text);
    bytes
}

/// What `look` sees of the one frame that `text` is, said by Ann.
fn seen<T>(text: impl AsRef<[u8]>, look: impl FnOnce(Result<&Frame<'_>, &Corrupt>) -> T) -> T {
    let bytes = framed(text);
    let mut scratch = Scratch::default();
    match json::decode(&bytes, Some(&speaker("Ann")), &mut scratch) {
        Ok(Decoded::Whole { frame, length }) => {
            assert_eq!(length, bytes.len());
            look(Ok(&frame))
        }
        Ok(Decoded::Partial { .. }) => panic!("a whole frame"),
        Err(corrupt) => look(Err(&corrupt)),
    }
}

fn problem(text: impl AsRef<[u8]>) -> String {
    seen(text, |frame| match frame {
        Ok(Frame::Malformed { problem, .. }) => problem.to_string(),
        other => panic!("{other:?}"),
    })
}

/// What Bob gets when Ann says `text`.
fn delivered(text: impl AsRef<[u8]>, flags: u8) -> (String, Value) {
    seen(text, |frame| {
        let Ok(Frame::Send(message)) = frame else { panic!("{frame:?}") };
        let mut out = Vec::new();
        json::deliver(&mut out, message, Sequence { epoch: 3, counter: 9 }, flags, "Bob", Token::default());
        assert!(out.len() <= json::deliver_length(message, "Bob"));
        let text = String::from_utf8(unframed(&out).to_vec()).unwrap();
        let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        (text, value)
    })
}

fn unframed(bytes: &[u8]) -> &[u8] {
    let (prefix, text) = bytes.split_first_chunk().unwrap();
    assert_eq!(u32::from_be_bytes(*prefix) as usize, text.len());
    text
}

const EXAMPLE: &str = r#"{"v":1,"type":"SEND","id":"00000000-0000-4000-8000-000000000001","ts":1766966970000,"to":"Bob","payload":{"kind":"message","body":"hi → Bob"}}"#;

#[test]
fn the_worked_example_of_the_specification_decodes_to_a_message_and_leaves_as_1_0_9_wrote_it() {
    assert_eq!(framed(EXAMPLE)[..8], [0, 0, 0, 0x90, 0x7b, 0x22, 0x76, 0x22]);
    let id = "00000000-0000-4000-8000-000000000001";
    let number = number_of_label(id.as_bytes());
    seen(EXAMPLE, |frame| {
        let Ok(Frame::Send(message)) = frame else { panic!("{frame:?}") };
        let fields = message.fields();
        assert_eq!(fields.id, MessageId { sender: AgentId::of(b"Ann"), number });
        assert_eq!((fields.from, fields.to, fields.topic), (&b"Ann"[..], &b"Bob"[..], &b""[..]));
        assert_eq!((fields.kind, fields.sent_at_ms, fields.flags), (0, 1_766_966_970_000, 0));
        assert_eq!((fields.text, fields.label), ("hi → Bob".as_bytes(), id.as_bytes()));
        assert_eq!((fields.data, fields.meta, fields.thread), (&b""[..], &b""[..], &b""[..]));
        assert_eq!(message.checksum, crc32fast::hash(message.raw));
    });
    let deliver_id = MessageId { sender: AgentId::of(b"Ann"), number };
    assert_eq!(
        delivered(EXAMPLE, 0).0,
        format!(
            "{{\"v\":1,\"type\":\"DELIVER\",\"id\":\"{deliver_id}\",\"ts\":1766966970000,\"from\":\"Ann\",\"to\":\"Bob\",\
             \"payload\":{{\"kind\":\"message\",\"body\":\"hi → Bob\"}},\
             \"delivery\":{{\"seq\":9,\"session_id\":\"00000000-0000-0000-0000-000000000000\"}}}}"
        )
    );
    seen(format!(r#"{{"type":"ACK","payload":{{"ack_id":"{deliver_id}","seq":9}}}}"#), |frame| {
        assert!(matches!(frame, Ok(Frame::Ack(Ack::Message(id))) if *id == deliver_id), "{frame:?}");
    });
}

#[test]
fn everything_a_sender_may_add_arrives() {
    let text = r##"{"type":"SEND","id":"i","ts":5,"from":"Mallory","to":"*","topic":"#builds","junk":1,"payload":
        {"kind":"state","body":"a\nb","data":{"x":[1.50,1e999,"\ud800"]},"thread":"t","own" : {"k":null}},
        "payload_meta":{"importance":150,"ttl_ms":2500.5,"requires_ack":true,"replyTo":"r","own":[]}}"##;
    seen(text, |frame| {
        let Ok(Frame::Send(message)) = frame else { panic!("{frame:?}") };
        let fields = message.fields();
        assert_eq!((fields.from, fields.to, fields.topic), (&b"Ann"[..], &b"*"[..], &b"builds"[..]));
        assert_eq!((fields.kind, fields.importance, fields.ttl_ms, fields.wants), (2, 100, 2501, Wants::DURABLE));
        assert_eq!(fields.data, br#"{"data":{"x":[1.50,1e999,"\ud800"]},"own":{"k":null}}"#);
        assert_eq!(fields.meta, br#"{"importance":150,"ttl_ms":2500.5,"requires_ack":true,"replyTo":"r","own":[]}"#);
    });
    let (out, _) = {
        let text = text.replace("1e999,\"\\ud800\"", "2");
        delivered(text, FLAG_REDELIVERED)
    };
    let expected = r##""from":"Ann","to":"Bob","topic":"builds","payload":{"kind":"state","body":"a\nb","data":{"x":[1.50,2]},"own":{"k":null},"thread":"t"},"payload_meta":{"importance":150,"ttl_ms":2500.5,"requires_ack":true,"replyTo":"r","own":[]},"delivery":{"seq":9,"session_id":"00000000-0000-0000-0000-000000000000","originalTo":"#builds","redelivered":true}}"##;
    assert!(out.ends_with(expected), "{out}");
}

#[test]
fn kinds_and_bodies_that_are_not_the_usual_ones_stay_what_they_are() {
    let payload = |inner: &str| {
        let (_, value) = delivered(format!(r#"{{"type":"SEND","to":"Bob","payload":{inner}}}"#), 0);
        value["payload"].clone()
    };
    assert_eq!(payload(r#"{"body":"b"}"#), json!({"body": "b"}));
    assert_eq!(payload(r#"{"kind":"custom","body":"b"}"#), json!({"body": "b", "kind": "custom"}));
    assert_eq!(payload(r#"{"kind":7,"body":"b","thread":9}"#), json!({"body": "b", "kind": 7, "thread": 9}));
    assert_eq!(payload(r#"{"kind":"action","body":null}"#), json!({"kind": "action", "body": null}));
    assert_eq!(payload(r#"{}"#), json!({"body": null}));
    assert_eq!(payload(r#"{"body":"a","body":"b","data":null}"#), json!({"body": "b", "data": null}));
    assert_eq!(payload(r#"{"bod\u0079":"b","th\u0072ead":"t"}"#), json!({"body": "b", "thread": "t"}));
    assert_eq!(
        problem(r#"{"type":"SEND","to":"Bob","payload":{"body":"a","bod\u0079":5}}"#),
        "payload.body must be a string"
    );
}

#[test]
fn destinations_are_names_everyone_topics_and_channels() {
    let place = |text: &str| {
        seen(text, |frame| {
            let Ok(Frame::Send(message)) = frame else { panic!("{frame:?}") };
            let text = |part: &[u8]| String::from_utf8(part.to_vec()).unwrap();
            (text(message.to()), text(message.topic()))
        })
    };
    let two = |to: &str, topic: &str| (to.to_string(), topic.to_string());
    assert_eq!(place(r##"{"type":"SEND","to":"#x","payload":{}}"##), two("*", "x"));
    assert_eq!(place(r#"{"type":"SEND","to":"*","payload":{}}"#), two("*", ""));
    assert_eq!(place(r#"{"type":"SEND","to":"Bob","topic":"x","payload":{}}"#), two("Bob", "x"));
    let channel = |name: &str| format!(r#"{{"type":"CHANNEL_MESSAGE","payload":{{"channel":"{name}","body":"b"}}}}"#);
    assert_eq!(place(&channel("#Builds")), two("*", "builds"));
    assert_eq!(place(&channel("dm:Ann:Bob")), two("Bob", "dm:Ann:Bob"));
    assert_eq!(place(&channel("dm:Bob:ann")), two("Bob", "dm:Bob:ann"));
    assert_eq!(place(&channel("dm:Ann:Bob:Cat")), two("*", "dm:Ann:Bob:Cat"));
    assert_eq!(problem(channel("dm:Bob:Cat")), "this channel is between two other agents");
    assert!(problem(channel("#")).starts_with("payload.channel must be"));
    assert!(problem(r#"{"type":"SEND","topic":"x","payload":{"body":"b"}}"#).starts_with("to is missing"));
    assert!(problem(r#"{"type":"SEND","to":5,"payload":{}}"#).starts_with("to must be a string"));
    assert!(problem(r#"{"type":"SEND","to":"*","topic":{},"payload":{}}"#).starts_with("topic must be"));
}

#[test]
fn channel_messages_arrive_in_the_form_of_1_6_0_with_the_senders_spelling() {
    let text = r##"{"type":"CHANNEL_MESSAGE","id":"c","ts":5,"payload":{"channel":"#Builds","body":"b","thread":"t","mentions":["Bob"],"data":{"k":1}}}"##;
    let (out, value) = delivered(text, FLAG_CHANNEL);
    assert_eq!(value["type"], "CHANNEL_MESSAGE");
    let expected = r##""ts":5,"from":"Ann","payload":{"channel":"#Builds","body":"b","mentions":["Bob"],"data":{"k":1},"thread":"t"}}"##;
    assert!(out.ends_with(expected), "{out}");
    let (_, as_topic) = delivered(text, 0);
    assert_eq!((&as_topic["type"], &as_topic["topic"]), (&json!("DELIVER"), &json!("builds")));
    let (_, direct) = delivered(r#"{"type":"CHANNEL_MESSAGE","payload":{"channel":"dm:Ann:Bob","body":"b"}}"#, 0);
    assert_eq!((&direct["type"], &direct["payload"]["channel"]), (&json!("CHANNEL_MESSAGE"), &json!("dm:Ann:Bob")));
    let (_, sent) =
        delivered(r##"{"type":"SEND","to":"#general","payload":{"kind":"state","body":"b"}}"##, FLAG_CHANNEL);
    assert_eq!(sent["payload"], json!({"channel": "#general", "kind": "state", "body": "b"}));
}

#[test]
fn hello_brings_all_its_fields() {
    let token = TokenSource::new([2; 32]).issue();
    let text = format!(
        r#"{{"type":"HELLO","payload":{{"agent":"Ann","cli":"claude","program":"p","model":"m","task":"t","workingDirectory":"/w",
        "capabilities":{{"resume":true,"max_inflight":256}},"session":{{"resume_token":"{token}"}},"auth":{{"type":"api_key","credential":"ar_key_x"}}}}}}"#
    );
    seen(text, |frame| {
        let Ok(Frame::Hello(hello)) = frame else { panic!("{frame:?}") };
        assert_eq!((&hello.claimed_name[..], &*hello.cli, &*hello.program), (&b"Ann"[..], "claude", "p"));
        assert_eq!((&*hello.model, &*hello.task, &*hello.working_directory), ("m", "t", "/w"));
        assert_eq!((hello.in_flight_max, hello.resume, hello.resume_presented), (256, Some(token), true));
        assert_eq!((&*hello.auth_type, hello.credential.reveal()), ("api_key", "ar_key_x"));
        assert!(!format!("{frame:?}").contains("ar_key_x"));
    });
    let foreign = r#"{"type":"HELLO","payload":{"agent":"A","session":{"resume_token":"mwq9wcze-0002-l6ujxf2"}}}"#;
    seen(foreign, |frame| {
        let Ok(Frame::Hello(hello)) = frame else { panic!("{frame:?}") };
        assert_eq!((hello.resume, hello.resume_presented), (None, true));
    });
    assert_eq!(problem(r#"{"type":"HELLO","payload":{"agent":42}}"#), "payload.agent must be a string");
    seen(r#"{"type":"HELLO"}"#, |frame| assert_eq!(frame.err(), Some(&Corrupt::Body("HELLO"))));
    seen(r#"{"type":"SEND","to":"Bob"}"#, |frame| assert_eq!(frame.err(), Some(&Corrupt::Body("SEND"))));
}

#[test]
fn memberships_and_other_types_mean_what_the_table_says() {
    let debug = |text: &str| seen(text, |frame| format!("{:?}", frame.unwrap()));
    assert!(
        debug(r##"{"type":"SUBSCRIBE","topic":"#X","payload":{}}"##)
            .starts_with("Subscribe(Topic { name: [88], channel: false")
    );
    assert!(
        debug(r##"{"type":"CHANNEL_JOIN","payload":{"channel":"#X"}}"##)
            .starts_with("Subscribe(Topic { name: [120], channel: true")
    );
    assert!(
        debug(r##"{"type":"CHANNEL_LEAVE","payload":{"channel":"#X","member":"Ann"}}"##).starts_with("Unsubscribe")
    );
    let other = debug(r##"{"type":"CHANNEL_JOIN","id":"j1","payload":{"channel":"#X","member":"Bob"}}"##);
    assert!(other.starts_with("Enrol") && other.contains(r#"member: "Bob", join: true, label: "j1""#), "{other}");
    assert!(problem(r##"{"type":"CHANNEL_JOIN","payload":{"channel":"#X","member":7}}"##).contains("member"));
    assert!(problem(r#"{"type":"UNSUBSCRIBE","topic":4}"#).starts_with("topic must be"));
    assert_eq!(debug(r#"{"type":"ACK","payload":{"ack_id":"mwq9xz2k-0000-lngmwsp"}}"#), "Ack(Unknown)");
    assert_eq!(debug(r#"{"type":"ACK"}"#), "Ack(Unknown)");
    assert_eq!(debug(r#"{"type":"PING","payload":{"nonce":"n"}}"#), "Ping([110])");
    assert_eq!(debug(r#"{"type":"PONG"}"#), "Pong([])");
    assert_eq!(debug(r#"{"type":"BYE","payload":{}}"#), "Bye");
    assert_eq!(debug(r#"{"type":"SPAWN","id":"s"}"#), "Unserved { label: \"s\", kind: \"SPAWN\" }");
    let ignored =
        ["[]", "5", "\"s\"", "{}", " true ", "[null]", r#"{"type":5}"#, r#"{"type":"NEW"}"#, r#"{"type":"LOG"}"#];
    for text in
        ignored.into_iter().chain([r#"{"type":"SHADOW_BIND"}"#, r#"{"type":"NACK"}"#, r#"{"type":"SUBSCRIBE"}"#])
    {
        assert_eq!(debug(text), "Ignored", "{text}");
    }
}

#[test]
fn what_is_not_json_is_fatal_and_a_long_frame_is_refused_before_it_comes() {
    for text in ["", "null", " null ", "{", "{\"a\":}", "tru", "\"\u{1}\"", "{} {}", "\u{FEFF}{}", "[1,]", "'a'"] {
        seen(text, |frame| assert!(matches!(frame, Err(Corrupt::Json(_))), "{text}: {frame:?}"));
    }
    let mut scratch = Scratch::default();
    let length = FRAME_BYTES_MAX as u32 + 1;
    let found = json::decode(&length.to_be_bytes(), None, &mut scratch).unwrap_err();
    assert_eq!(found.to_string(), "Frame too large: 1048577 > 1048576");
    let longest = (length - 1).to_be_bytes();
    let found = json::decode(&longest, None, &mut scratch).unwrap();
    assert!(matches!(found, Decoded::Partial { needed } if needed == FRAME_BYTES_MAX + PREFIX_BYTES));
}

#[test]
fn oddities_are_defined() {
    let body = |text: &[u8]| {
        seen(text, |frame| {
            let Ok(Frame::Send(message)) = frame else { panic!("{frame:?}") };
            String::from_utf8(message.fields().text.to_vec()).unwrap()
        })
    };
    assert_eq!(
        body(b"{\"type\":\"SEND\",\"to\":\"B\",\"payload\":{\"body\":\"a\xff\xe2\x82b\"}}"),
        "a\u{FFFD}\u{FFFD}b"
    );
    assert_eq!(body(br#"{"type":"SEND","to":"B","payload":{"body":"\ud800\udc00\udc00"}}"#), "\u{10000}\u{FFFD}");
    let nested = |levels: usize| {
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        format!(r#"{{"type":"SEND","to":"B","payload":{{"body":"b","data":{open}{close}}}}}"#)
    };
    assert_eq!(body(nested(128).as_bytes()), "b");
    assert!(problem(nested(129)).contains("nested too deeply"));
    assert!(problem(nested(400_000)).contains("nested too deeply"));
    seen("[".repeat(300_000) + &"]".repeat(300_000), |frame| assert!(matches!(frame, Ok(Frame::Ignored))));
    for (ts, expected) in [("-5", 0), ("1e400", 8_640_000_000_000_000), ("\"x\"", 1_700_000_000_000), ("3.7", 3)] {
        let text = format!(
            r#"{{"type":"SEND","to":"B","ts":{ts},"payload":{{}},"payload_meta":{{"ttl_ms":-1,"importance":"x"}}}}"#
        );
        seen(text, |frame| {
            let Ok(Frame::Send(message)) = frame else { panic!("{frame:?}") };
            let fields = message.fields();
            assert_eq!((fields.sent_at_ms, fields.ttl_ms, fields.importance), (expected, 0, 0));
        });
    }
    let label = |id: &str| {
        seen(format!(r#"{{"type":"SEND","to":"B","id":{id},"payload":{{}}}}"#), |frame| match frame {
            Ok(Frame::Send(message)) => String::from_utf8(message.label().to_vec()).unwrap(),
            Ok(Frame::Malformed { label, .. }) => format!("refused {}", label.len()),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(label("12"), "12");
    assert_eq!(label("null"), format!("{}:7", speaker("Ann").session));
    assert_eq!(label(&format!("\"{}\"", "é".repeat(200))), "refused 256");
    let mut scratch = Scratch::default();
    let early = framed(EXAMPLE);
    let Ok(Decoded::Whole { frame: Frame::Malformed { problem, .. }, .. }) = json::decode(&early, None, &mut scratch)
    else {
        panic!("a SEND before WELCOME is a mistake")
    };
    assert!(problem.starts_with("Not in ACTIVE state"));
}

#[test]
fn the_relays_own_frames_have_the_members_that_clients_read() {
    let said = |frame: Frame<'_>| {
        let mut out = Vec::new();
        json::encode(&mut out, &frame, Stamp { wall_ms: 5, ordinal: 2 });
        String::from_utf8(unframed(&out).to_vec()).unwrap()
    };
    let mut tokens = TokenSource::new([3; 32]);
    let (session, resume) = (tokens.issue(), tokens.issue());
    let welcome =
        Welcome { session, resume, heartbeat_ms: 5000, license: r#"{"tier":"pro"}"#.into(), ..Welcome::default() };
    assert_eq!(
        said(Frame::Welcome(Box::new(welcome))),
        format!(
            "{{\"v\":1,\"type\":\"WELCOME\",\"id\":\"r-5-2\",\"ts\":5,\"payload\":{{\"session_id\":\"{session}\",\
             \"resume_token\":\"{resume}\",\"server\":{{\"max_frame_bytes\":1048576,\"heartbeat_ms\":5000}},\
             \"license\":{{\"tier\":\"pro\"}}}}}}"
        )
    );
    let error = ErrorFrame {
        code: ErrorCode::NotFound,
        fatal: false,
        message: "nobody".into(),
        number: 0,
        label: "s".into(),
        outcome: Some(RefuseReason::NotFound),
    };
    let expected = r#"{"v":1,"type":"ERROR","id":"r-5-2","ts":5,"payload":{"code":"NOT_FOUND","message":"nobody","fatal":false,"replyTo":"s","outcome":"not_found"}}"#;
    assert_eq!(said(Frame::Error(Box::new(error))), expected);
    let busy = Busy {
        number: 0,
        label: "s".into(),
        reason: RefuseReason::RecipientFull,
        retry_after_ms: 100,
        queue_depth: 3,
        recipient: "Bob".into(),
    };
    let expected = r#"{"v":1,"type":"BUSY","id":"r-5-2","ts":5,"payload":{"retry_after_ms":100,"queue_depth":3,"reason":"recipient_full","replyTo":"s","recipient":"Bob"}}"#;
    assert_eq!(said(Frame::Busy(Box::new(busy))), expected);
    let end = |frame| said(frame).split_once("\"ts\":5,").unwrap().1.to_string();
    assert_eq!(end(Frame::Ping(b"n"[..].into())), r#""payload":{"nonce":"n"}}"#);
    assert_eq!(end(Frame::Pong(b"\xff"[..].into())), "\"payload\":{\"nonce\":\"\u{FFFD}\"}}");
    assert_eq!(end(Frame::SendAck { label: "s".into(), ordinal: 4 }), r#""payload":{"ack_id":"s","seq":4}}"#);
    assert_eq!(end(Frame::Bye), r#""payload":{}}"#);
    let mut out = Vec::new();
    json::encode(&mut out, &Frame::Receipt(Vec::new()), Stamp { wall_ms: 0, ordinal: 0 });
    assert!(out.is_empty(), "receipts have no frame in this dialect");
}

/// A recorded line's JSON text: `«ab×3»` is `ababab`.
fn expanded(text: &str) -> String {
    let mut whole = String::new();
    let mut rest = text;
    while let Some((before, run)) = rest.split_once('«') {
        let (unit, after) = run.split_once('×').unwrap();
        let (count, after) = after.split_once('»').unwrap();
        whole.push_str(before);
        whole.push_str(&unit.repeat(count.parse().unwrap()));
        rest = after;
    }
    whole + rest
}

/// The variant's name.
fn variant(frame: &Frame<'_>) -> String {
    format!("{frame:?}").chars().take_while(|character| character.is_alphanumeric()).collect()
}

/// The members of the object at the start of `text`, in order, and their members: what a reader could depend on.
fn shape(text: &str) -> Vec<String> {
    let members: Vec<(String, Value)> = ordered(text);
    let inner = |name: &str, value: &Value| match value {
        Value::Object(object) => object.keys().map(|key| format!("{name}.{key}")).collect(),
        _ => vec![name.to_string()],
    };
    members.iter().flat_map(|(name, value)| inner(name, value)).collect()
}

fn ordered(text: &str) -> Vec<(String, Value)> {
    struct Pairs(Vec<(String, Value)>);
    impl<'de> serde::Deserialize<'de> for Pairs {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Pairs, D::Error> {
            struct Visit;
            impl<'de> serde::de::Visitor<'de> for Visit {
                type Value = Pairs;
                fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    out.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                    let mut pairs = Vec::new();
                    while let Some(pair) = map.next_entry()? {
                        pairs.push(pair);
                    }
                    Ok(Pairs(pairs))
                }
            }
            deserializer.deserialize_map(Visit)
        }
    }
    serde_json::from_str::<Pairs>(text).unwrap().0
}

/// Replays a recording: each client frame must decode to what `expected` says, and each SEND must leave us for the
/// same recipients as the recorded DELIVER or CHANNEL_MESSAGE, but for ids, times and sessions.
fn replay(recording: &str, expected: &[&str]) {
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut ours: Vec<(String, Value, Vec<u8>)> = Vec::new();
    let mut found = Vec::new();
    for line in recording.lines().filter(|line| !line.starts_with('#')) {
        let mut parts = line.splitn(3, ' ');
        let (connection, direction) = (parts.next().unwrap(), parts.next().unwrap());
        let text = expanded(parts.next().unwrap());
        let recorded: Value = serde_json::from_str(&text).unwrap();
        let kind = recorded["type"].as_str().unwrap();
        if direction == "<" {
            match kind {
                "DELIVER" | "CHANNEL_MESSAGE" => check_delivery(&text, &recorded, &ours),
                "WELCOME" | "ERROR" | "PING" | "BYE" => check_shape(kind, &text),
                // Notices of who joins and leaves; we send none.
                "CHANNEL_JOIN" | "CHANNEL_LEAVE" => {}
                other => panic!("{other} was never recorded"),
            }
            continue;
        }
        let bytes = framed(&text);
        let mut scratch = Scratch::default();
        let name = names.get(connection).cloned();
        let own = name.as_deref().map(speaker);
        let Ok(Decoded::Whole { frame, .. }) = json::decode(&bytes, own.as_ref(), &mut scratch) else {
            panic!("{text}")
        };
        found.push(variant(&frame));
        match &frame {
            Frame::Hello(hello) if name.is_none() => {
                names.insert(connection, String::from_utf8(hello.claimed_name.to_vec()).unwrap());
            }
            Frame::Send(message) => ours.push((name.unwrap(), recorded.clone(), message.raw.to_vec())),
            _ => {}
        }
    }
    assert_eq!(found, expected);
}

fn check_delivery(text: &str, recorded: &Value, ours: &[(String, Value, Vec<u8>)]) {
    let from_and_body =
        |from: &str, sent: &Value| recorded["from"] == from && recorded["payload"]["body"] == sent["payload"]["body"];
    let (from, sent, _) = ours.iter().find(|(from, sent, _)| from_and_body(from, sent)).expect("it was sent");
    let bytes = framed(sent.to_string());
    let mut scratch = Scratch::default();
    let Ok(Decoded::Whole { frame: Frame::Send(message), .. }) =
        json::decode(&bytes, Some(&speaker(from)), &mut scratch)
    else {
        panic!("{sent}")
    };
    let flags = if recorded["type"] == "CHANNEL_MESSAGE" { FLAG_CHANNEL } else { 0 };
    let recipient = recorded["to"].as_str().unwrap_or("x");
    let counter = recorded["delivery"]["seq"].as_u64().unwrap_or(1);
    let mut out = Vec::new();
    json::deliver(&mut out, &message, Sequence { epoch: 1, counter }, flags, recipient, Token::default());
    assert!(out.len() <= FRAME_BYTES_MAX);
    let our_text = String::from_utf8(unframed(&out).to_vec()).unwrap();
    let mut our: Value = serde_json::from_str(&our_text).unwrap();
    let mut recorded = recorded.clone();
    // Mail that waited is marked by 1.6.0 inside the sender's data; ours is left as it was sent.
    let waited = recorded["payload"]["data"]["_offlineQueued"] == true;
    if waited {
        recorded["payload"].as_object_mut().unwrap().remove("data");
    } else if recorded["topic"].is_null() {
        let top = |text: &str| ordered(text).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(top(&our_text), top(text));
    }
    for value in [&mut our, &mut recorded] {
        for name in ["id", "ts"] {
            assert!(value.as_object_mut().unwrap().remove(name).is_some_and(|value| !value.is_null()));
        }
        if let Some(delivery) = value.get_mut("delivery").and_then(Value::as_object_mut) {
            assert!(delivery.remove("session_id").is_some());
            // Ours names the topic, so that an answer reaches it; 1.6.0 says "*".
            delivery.remove("originalTo").inspect(|to| assert!(to == "*" || to == "#builds", "{to}"));
        }
    }
    assert_eq!(our, recorded);
}

/// Our frame of that kind has at least the members that the recorded one has.
fn check_shape(kind: &str, recorded: &str) {
    let frame = match kind {
        "WELCOME" => Frame::Welcome(Box::default()),
        "ERROR" => Frame::Error(Box::new(ErrorFrame {
            code: ErrorCode::BadRequest,
            fatal: false,
            message: "m".into(),
            number: 0,
            label: "".into(),
            outcome: None,
        })),
        "PING" => Frame::Ping(b"n"[..].into()),
        _ => Frame::Bye,
    };
    let mut out = Vec::new();
    json::encode(&mut out, &frame, Stamp { wall_ms: 5, ordinal: 2 });
    assert_eq!(shape(std::str::from_utf8(unframed(&out)).unwrap()), shape(recorded));
}

#[test]
fn recorded_direct_messages_pass_both_ways() {
    let expected = ["Hello", "Hello", "Send", "Ack", "Send", "Ack", "Send", "Send", "Ack"];
    replay(include_str!("transcripts/direct.txt"), &expected);
}

#[test]
fn recorded_broadcasts_and_topics_pass_both_ways() {
    let expected = ["Hello", "Hello", "Hello", "Send", "Ack", "Ack", "Subscribe", "Send", "Ack", "Send", "Ack"];
    replay(include_str!("transcripts/broadcast_and_topic.txt"), &expected);
}

#[test]
fn recorded_channels_pass_both_ways_and_nobody_acknowledges_them() {
    let expected = [
        "Hello",
        "Hello",
        "Subscribe",
        "Subscribe",
        "Send",
        "Send",
        "Subscribe",
        "Subscribe",
        "Send",
        "Enrol",
        "Enrol",
        "Unsubscribe",
    ];
    replay(include_str!("transcripts/channels.txt"), &expected);
}

#[test]
fn recorded_retries_pass_both_ways() {
    replay(include_str!("transcripts/retry.txt"), &["Hello", "Hello", "Send", "Pong", "Pong", "Ack", "Bye"]);
}

#[test]
fn recorded_resumes_pass_both_ways() {
    let expected = ["Hello", "Hello", "Send", "Send", "Hello", "Ack", "Ack", "Hello", "Bye", "Hello", "Hello"];
    replay(include_str!("transcripts/resume.txt"), &expected);
}

#[test]
fn the_bye_of_a_recorded_disconnect_comes_in_front_of_the_next_hello() {
    replay(include_str!("transcripts/disconnect.txt"), &["Hello", "Bye", "Hello", "Hello"]);
}

#[test]
fn recorded_large_bodies_pass_both_ways() {
    replay(include_str!("transcripts/large.txt"), &["Hello", "Hello", "Send", "Ack", "Send", "Ack"]);
}

#[test]
fn recorded_mistakes_are_what_they_were_and_no_longer_fatal() {
    let expected = ["Malformed", "Hello", "Hello", "Ping", "Unserved", "Malformed", "Send", "Pong", "Ack", "Malformed"];
    replay(include_str!("transcripts/mistakes.txt"), &expected);
}

/// A small JSON value.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn unknown_members_and_any_text_survive_both_ways(
        body in any::<String>(),
        thread in "[^\u{0}]{1,20}",
        members in prop::collection::btree_map("[a-z_\"\\\\é]{1,8}", any_value(), 0..5),
        meta in prop::collection::btree_map("own[a-z]{1,5}", any_value(), 0..5),
    ) {
        let reserved = ["kind", "body", "thread"];
        let mut payload: serde_json::Map<String, Value> =
            members.into_iter().filter(|(name, _)| !reserved.contains(&name.as_str())).collect();
        payload.insert("kind".into(), "thinking".into());
        payload.insert("body".into(), body.into());
        payload.insert("thread".into(), thread.into());
        let sent = json!({"type": "SEND", "to": "Bob", "id": "x", "payload": payload, "payload_meta": meta});
        let (_, got) = delivered(sent.to_string(), 0);
        prop_assert_eq!(&got["payload"], &sent["payload"]);
        prop_assert_eq!(&got["payload_meta"], &sent["payload_meta"]);
    }

    #[test]
    fn any_slicing_gives_the_same_frames(cuts in prop::collection::vec(0usize..600, 0..6)) {
        let texts = [EXAMPLE, "{}", r#"{"type":"PING","payload":{"nonce":"n"}}"#, r#"{"type":"BYE","payload":{}}"#];
        let stream: Vec<u8> = texts.iter().flat_map(framed).collect();
        let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut % stream.len()).chain([stream.len()]).collect();
        ends.sort_unstable();
        let (mut taken, mut found) = (0, Vec::new());
        for end in ends {
            loop {
                let mut scratch = Scratch::default();
                match json::decode(&stream[taken..end], Some(&speaker("Ann")), &mut scratch).unwrap() {
                    Decoded::Partial { needed } => {
                        prop_assert!(needed > end - taken);
                        break;
                    }
                    Decoded::Whole { frame, length } => {
                        found.push(variant(&frame));
                        taken += length;
                    }
                }
            }
        }
        prop_assert_eq!(found, ["Send", "Ignored", "Ping", "Bye"]);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), welcomed in any::<bool>()) {
        let mut scratch = Scratch::default();
        let own = speaker("Ann");
        let _ = json::decode(&bytes, welcomed.then_some(&own), &mut scratch);
        let _ = json::decode(&framed(&bytes), welcomed.then_some(&own), &mut scratch);
    }

    #[test]
    fn damaged_frames_never_panic_and_what_is_accepted_leaves_as_json(
        kind in prop::sample::select(vec!["SEND", "CHANNEL_MESSAGE", "HELLO", "CHANNEL_JOIN", "ACK"]),
        payload in any_value(),
        at in 0usize..300,
        byte in any::<u8>(),
    ) {
        let text = json!({"type": kind, "to": "Bob", "id": "i", "payload": payload, "payload_meta": payload}).to_string();
        let mut bytes = framed(text);
        let place = PREFIX_BYTES + at % (bytes.len() - PREFIX_BYTES);
        bytes[place] = byte;
        let mut scratch = Scratch::default();
        if let Ok(Decoded::Whole { frame: Frame::Send(message), .. }) =
            json::decode(&bytes, Some(&speaker("Ann")), &mut scratch)
        {
            for flags in [0, FLAG_CHANNEL, FLAG_REDELIVERED] {
                let mut out = Vec::new();
                json::deliver(&mut out, &message, Sequence::default(), flags, "Bob", Token::default());
                prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(unframed(&out)).is_ok());
                prop_assert!(out.len() <= json::deliver_length(&message, "Bob"));
            }
        }
    }
}
