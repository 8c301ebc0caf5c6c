//! Two agents talk, in each pair of dialects.

use crate::harness::{Daemon, every_way};
use crate::peers::{message, text};
use agent_relay::client::Outgoing;
use agent_relay::wire::{self, Kind, MessageFields, Wants};
use serde_json::json;
use std::io::Write;

#[test]
fn a_body_leaves_as_the_same_bytes_as_it_came() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.native("bob"));
        let long = "long → ".repeat(20_000);
        for (number, text) in [(1, "hi → bob"), (2, ""), (3, &long)] {
            let fields = MessageFields {
                kind: 2,
                importance: 99,
                ttl_ms: 60_000,
                sent_at_ms: 7,
                wants: Wants::ACCEPTED,
                thread: b"thread-1",
                label: b"mine",
                data: br#"{"data":{"a":[1,2.50,null]},"own":"kept"}"#,
                meta: b"{\"replyTo\" : \"x\"}",
                extension: b"\x00\xff of a later version",
                ..ann.fields(number, "bob", text)
            };
            let (mut frame, mut body) = (Vec::new(), Vec::new());
            wire::encode::send(&mut frame, Kind::Send, &fields, Default::default());
            let checksum = wire::encode::message_body(&mut body, &fields);
            ann.stream.write_all(&frame).unwrap();
            let (heard, _) = bob.delivery();
            assert!(heard.body == body, "the same bytes");
            assert_eq!((heard.header.checksum, heard.header.sequence.counter), (checksum, number));
        }
    });
}

#[test]
fn native_agents_talk_through_the_client_library() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.client("ann"), daemon.client("bob"));
        ann.send(&Outgoing { to: "bob", text: Some("hi"), thread: "t", ..Outgoing::default() }).unwrap();
        let got = message(&mut bob);
        assert_eq!((&*got.from(), &*got.text(), &*got.thread(), got.redelivered), ("ann", "hi", "t", false));
        bob.send(&Outgoing { to: "ann", text: Some("hi yourself"), ..Outgoing::default() }).unwrap();
        assert_eq!(text(&mut ann), "hi yourself");
        ann.send(&Outgoing { to: "ann", text: Some("to myself"), ..Outgoing::default() }).unwrap();
        assert_eq!(text(&mut ann), "to myself");
    });
}

#[test]
fn json_agents_talk_and_unknown_members_survive() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.json("Ann"), daemon.json("Bob"));
        let payload = json!({
            "kind": "action", "body": "all\nof \"it\" \\ \u{1} 🦀", "thread": "t",
            "data": { "a": [1, 2.5, null], "_own": { "deep": true } }, "unknown": [{ "x": 1 }],
        });
        let meta = json!({ "importance": 80, "replyTo": "x", "ttl_ms": 60000, "own": ["kept"] });
        ann.say(&json!({
            "v": 1, "type": "SEND", "id": "s1", "ts": 1766966970000u64, "from": "Mallory", "to": "Bob",
            "junk": 1, "payload": payload, "payload_meta": meta,
        }));
        let got = bob.hear_kind("DELIVER");
        assert_eq!((&got["payload"], &got["payload_meta"]), (&payload, &meta));
        assert_eq!((&got["from"], &got["to"], &got["junk"]), (&json!("Ann"), &json!("Bob"), &json!(null)));
        assert_eq!((&got["delivery"]["seq"], &got["delivery"]["session_id"]), (&json!(1), &json!(bob.session())));
        bob.send("Ann", "back");
        assert_eq!(ann.body(), "back");
    });
}

#[test]
fn a_json_agent_and_a_native_agent_talk_and_nothing_is_lost_between_them() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.json("Ann"), daemon.client("bob"));
        let payload =
            json!({ "kind": "state", "body": "from json", "data": { "n": 1 }, "unknown": { "deep": [true] } });
        let meta = json!({ "importance": 10, "own": "kept" });
        ann.say(&json!({ "type": "SEND", "id": "s1", "to": "bob", "payload": payload, "payload_meta": meta }));
        let got = message(&mut bob);
        let fields = got.fields();
        assert_eq!((&*got.from(), &*got.text(), fields.kind, fields.importance), ("Ann", "from json", 2, 10));
        assert_eq!(fields.label, b"s1");
        // Back again as it is: what the native client holds is all there is to know.
        let (data, meta_text) = (std::str::from_utf8(fields.data).unwrap(), std::str::from_utf8(fields.meta).unwrap());
        let back = Outgoing {
            to: "Ann",
            text: Some("from json"),
            data,
            meta: meta_text,
            kind: fields.kind,
            importance: fields.importance,
            ..Outgoing::default()
        };
        bob.send(&back).unwrap();
        let returned = ann.hear_kind("DELIVER");
        assert_eq!((&returned["payload"], &returned["payload_meta"]), (&payload, &meta));
        assert_eq!(returned["from"], "bob");
    });
}

#[test]
fn what_was_said_before_a_hello_is_answered_wherever_the_agent_lives() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        // With two shards about half of these move to the other one, with the complaint still unsent.
        for index in 0..16 {
            let mut peer = crate::peers::JsonPeer::bare(daemon.stream(), &format!("agent-{index}"));
            let early = r#"{"type":"SEND","id":"e","to":"x","payload":{"body":"too early"}}"#;
            let hello = format!(r#"{{"type":"HELLO","id":"h","payload":{{"agent":"agent-{index}"}}}}"#);
            let late = format!(r#"{{"type":"SEND","id":"l","to":"agent-{index}","payload":{{"body":"behind"}}}}"#);
            let frames = [early, &hello, &late].map(crate::peers::json_frame).concat();
            peer.stream.write_all(&frames).unwrap();
            peer.hear_kind("ERROR");
            peer.hear_kind("WELCOME");
            assert_eq!(peer.body(), "behind");
        }
    });
}
