//! What the sender hears of its message, and what `relay read` says of it later.

use crate::harness::{Daemon, EPOLL_TWO, Setup, every_way};
use crate::peers::{NativePeer, Owned};
use agent_relay::base::MessageId;
use agent_relay::client::Incoming;
use agent_relay::wire::{Kind, MessageFields, QueryKind, ReceiptState, Wants};
use serde_json::json;
use std::io::Write;

const ALL: Wants = Wants(31);

/// The states reported so far, until `last` is among them.
fn states(sender: &mut NativePeer, number: u64, last: ReceiptState) -> Vec<ReceiptState> {
    let mut states = Vec::new();
    while states.last() != Some(&last) {
        let heard = sender.hear().expect("a RECEIPT");
        let Owned::Receipts(receipts) = heard.frame else { panic!("{heard:?}") };
        for receipt in receipts {
            assert!((receipt.id.number..receipt.id.number + u64::from(receipt.count)).contains(&number), "{receipt:?}");
            states.push(receipt.state);
        }
    }
    states
}

#[test]
fn each_state_reaches_the_sender_that_asked_for_it_and_is_queryable() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.client("bob"));
        let number = ann.send("bob", "hi", ALL);
        let state = |number: u64| {
            daemon.ask(QueryKind::Message, &json!({ "from": "ann", "number": number }))["state"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let crate::peers::Owned::Receipts(_) = ann.hear().unwrap().frame else { panic!("a RECEIPT") };
        let message = crate::peers::message(&mut bob);
        daemon.until("it counts as delivered", |_| state(number) == "delivered");
        bob.handled().unwrap();
        let mut heard = states(&mut ann, number, ReceiptState::Acknowledged);
        daemon.until("it counts as acknowledged", |_| state(number) == "acknowledged");
        bob.read(&message).unwrap();
        heard.extend(states(&mut ann, number, ReceiptState::Read));
        daemon.until("it counts as read", |_| state(number) == "read");
        assert!(heard.contains(&ReceiptState::Acknowledged) && heard.contains(&ReceiptState::Read), "{heard:?}");
        // The same again at once: every state, each once.
        let second = ann.send("bob", "again", ALL);
        let message = crate::peers::message(&mut bob);
        bob.handled().unwrap();
        let mut heard = states(&mut ann, second, ReceiptState::Acknowledged);
        while !heard.contains(&ReceiptState::Durable) {
            let Owned::Receipts(receipts) = ann.hear().unwrap().frame else { panic!("a RECEIPT") };
            heard.extend(receipts.iter().map(|receipt| receipt.state));
        }
        bob.read(&message).unwrap();
        heard.extend(states(&mut ann, second, ReceiptState::Read));
        for state in [
            ReceiptState::Accepted,
            ReceiptState::Durable,
            ReceiptState::Delivered,
            ReceiptState::Acknowledged,
            ReceiptState::Read,
        ] {
            assert_eq!(heard.iter().filter(|heard| **heard == state).count(), 1, "{state:?} in {heard:?}");
        }
    });
}

#[test]
fn nobody_is_told_what_nobody_asked_for() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.client("bob"));
        ann.send("bob", "quietly", Wants::default());
        ann.send("*", "quietly", Wants::default());
        let message = crate::peers::message(&mut bob);
        crate::peers::message(&mut bob);
        bob.handled().unwrap();
        let _ = message;
        daemon.until("all is acknowledged", |daemon| daemon.status()["messages"]["acknowledged"] == 2);
        assert!(ann.barrier().is_empty());
    });
}

#[test]
fn a_message_that_outlives_its_time_has_failed_and_the_sender_hears_it() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut jay) = (daemon.native("ann"), daemon.json("Jay"));
        daemon.client("bob").close().unwrap();
        daemon.until_away("bob");
        for wants in [Wants::default(), ALL] {
            ann.number += 1;
            let number = ann.number;
            let fields = MessageFields { ttl_ms: 60, wants, ..ann.fields(number, "bob", "soon stale") };
            let mut bytes = Vec::new();
            agent_relay::wire::encode::send(&mut bytes, Kind::Send, &fields, Default::default());
            ann.stream.write_all(&bytes).unwrap();
            let failed = ReceiptState::Failed(agent_relay::base::RefuseReason::Expired);
            let heard = states(&mut ann, number, failed);
            assert_eq!(heard.contains(&ReceiptState::Accepted), wants == ALL);
            daemon.until("it counts as failed", |daemon| {
                let found = daemon.ask(QueryKind::Message, &json!({ "from": "ann", "number": number }));
                found["state"] == "failed" && found["recipients"][0]["reason"] == "expired"
            });
        }
        jay.say(&json!({
            "type": "SEND", "id": "stale", "to": "bob", "payload": { "body": "x" }, "payload_meta": { "ttl_ms": 60 },
        }));
        let error = jay.hear_kind("ERROR");
        let payload = &error["payload"];
        let expected = json!([false, "stale", "expired"]);
        assert_eq!(json!([payload["fatal"], payload["replyTo"], payload["outcome"]]), expected, "{error}");
        assert_eq!(daemon.status()["messages"]["waiting"], 0);
    });
}

#[test]
fn a_json_sender_that_requires_an_ack_gets_it_with_its_own_id_and_ordinal() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.json("Ann"), daemon.json("Bob"));
        ann.send("Bob", "first");
        ann.say(&json!({
            "type": "SEND", "id": "mine", "to": "Bob", "payload": { "body": "second" }, "payload_meta": { "requires_ack": true },
        }));
        let ack = ann.hear_kind("ACK");
        assert_eq!((&ack["payload"]["ack_id"], &ack["payload"]["seq"]), (&json!("mine"), &json!(2)));
        bob.body();
        let got = bob.hear_kind("DELIVER");
        let found = daemon.ask(QueryKind::Message, &json!({ "from": "Ann", "label": "mine" }));
        assert_eq!(found["id"], got["id"], "the sender's own id finds it under the id that the recipient saw");
        daemon.until("it is acknowledged", |daemon| {
            daemon.ask(QueryKind::Message, &json!({ "id": got["id"] }))["state"] == "acknowledged"
        });
        // To everybody: one ACK, when every shard has committed.
        ann.say(&json!({
            "type": "SEND", "id": "all", "to": "*", "payload": { "body": "x" }, "payload_meta": { "requires_ack": true },
        }));
        assert_eq!(ann.hear_kind("ACK")["payload"]["ack_id"], "all");
    });
}

#[test]
fn a_message_to_everybody_is_accepted_and_durable_once() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut ann = daemon.native("ann");
        let mut others: Vec<_> = (0..6).map(|index| daemon.client(&format!("agent-{index}"))).collect();
        let number = ann.send("*", "to all", Wants::ACCEPTED | Wants::DURABLE);
        let heard = states(&mut ann, number, ReceiptState::Durable);
        assert_eq!(heard, [ReceiptState::Accepted, ReceiptState::Durable]);
        for other in &mut others {
            assert_eq!(crate::peers::text(other), "to all");
        }
        let nobody_there = ann.send("#nobody-subscribes", "x", Wants::ACCEPTED | Wants::DURABLE);
        assert_eq!(
            states(&mut ann, nobody_there, ReceiptState::Durable),
            [ReceiptState::Accepted, ReceiptState::Durable]
        );
    });
}

#[test]
fn one_message_alone_can_be_acknowledged() {
    let daemon = Daemon::start(EPOLL_TWO);
    let (mut ann, mut bob) = (daemon.native("ann"), daemon.native("bob"));
    for text in ["1", "2", "3"] {
        ann.send("bob", text, Wants::ACKNOWLEDGED);
    }
    let sequences: Vec<_> = (0..3).map(|_| bob.delivery().0.header.sequence).collect();
    bob.say(&agent_relay::wire::Frame::Ack(agent_relay::wire::Ack::One(sequences[1])));
    let Owned::Receipts(receipts) = ann.hear().unwrap().frame else { panic!("a RECEIPT") };
    assert_eq!((receipts[0].id.number, receipts[0].count, receipts[0].state), (2, 1, ReceiptState::Acknowledged));
    assert_eq!(daemon.agent("bob").unwrap()["in_flight"], 2);
    bob.acknowledge(sequences[2]);
    daemon.until("nothing waits", |daemon| daemon.agent("bob").unwrap()["waiting"] == 0);
}

#[test]
fn a_refusal_carries_the_senders_number_and_is_queryable() {
    let daemon = Setup::new(EPOLL_TWO).settings("[limits]\nowed_messages = 2\n").start();
    let (mut ann, mut jay) = (daemon.client("ann"), daemon.json("Jay"));
    daemon.client("bob").close().unwrap();
    daemon.until_away("bob");
    let outgoing = agent_relay::client::Outgoing { to: "bob", text: Some("x"), ..Default::default() };
    let last = (0..3).map(|_| ann.send(&outgoing).unwrap()).last().unwrap();
    let Incoming::Busy { number, reason, retry_after_ms, queue_depth, recipient } = crate::peers::incoming(&mut ann)
    else {
        panic!("BUSY")
    };
    assert_eq!((number, reason.name(), queue_depth, &*recipient), (last, "recipient_full", 2, "bob"));
    assert!(retry_after_ms > 0);
    let id = jay.send("bob", "x");
    let busy = jay.hear_kind("BUSY");
    let payload = &busy["payload"];
    assert_eq!(
        json!([payload["replyTo"], payload["reason"], payload["queue_depth"]]),
        json!([id, "recipient_full", 2])
    );
    assert!(payload["retry_after_ms"].as_u64().unwrap() > 0);
    for question in [json!({ "from": "ann", "number": last }), json!({ "from": "Jay", "label": id })] {
        daemon.until("the refusal is known", |daemon| {
            let answer = agent_relay::client::ask(
                &daemon.address(),
                QueryKind::Message,
                &question.to_string(),
                crate::harness::PATIENCE,
            );
            answer.is_ok_and(|answer| {
                let found: serde_json::Value = serde_json::from_slice(&answer).unwrap();
                found["state"] == "refused" && found["reason"] == "recipient_full"
            })
        });
    }
    // Under the same number it may come again, once there is room.
    let mut bob = daemon.client("bob");
    crate::peers::text(&mut bob);
    crate::peers::text(&mut bob);
    bob.handled().unwrap();
    daemon.until("there is room", |daemon| daemon.agent("bob").unwrap()["waiting"] == 0);
    ann.send_again(last, &outgoing).unwrap();
    let again = crate::peers::message(&mut bob);
    assert_eq!(again.id(), MessageId { number: last, ..again.id() });
}
