//! What the sender hears of its message, and what `relay read` says of it later.

use crate::harness::{Daemon, EPOLL_TWO, Setup, every_way};
use crate::peers::{NativePeer, Owned};
use agent_relay::base::{AgentId, MessageId};
use agent_relay::client::Incoming;
use agent_relay::wire::{Frame, Kind, MessageFields, QueryKind, Receipt, ReceiptState, Wants};
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

/// `reader` says that it has read these messages of ann's.
fn says_read(reader: &mut NativePeer, numbers: impl IntoIterator<Item = u64>) {
    let recipient = AgentId::of(reader.name.as_bytes());
    let id = |number| MessageId { sender: AgentId::of(b"ann"), number };
    let receipts =
        numbers.into_iter().map(|number| Receipt { id: id(number), count: 1, state: ReceiptState::Read, recipient });
    reader.say(&Frame::Receipt(receipts.collect()));
}

/// How far a message of ann's has got.
fn state_of(daemon: &Daemon, number: u64) -> String {
    let found = daemon.ask(QueryKind::Message, &json!({ "from": "ann", "number": number }));
    found["state"].as_str().unwrap().to_owned()
}

fn ignored(daemon: &Daemon, why: &str) -> u64 {
    daemon.status()["reads"]["ignored"][why].as_u64().unwrap_or(0)
}

#[test]
fn nobody_is_believed_to_have_read_what_was_not_for_it_and_nothing_is_kept_of_that() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob, mut eve) = (daemon.native("ann"), daemon.native("bob"), daemon.native("eve"));
        let number = ann.send("bob", "for bob", Wants::READ | Wants::DURABLE);
        states(&mut ann, number, ReceiptState::Durable);
        let (heard, _) = bob.delivery();
        bob.acknowledge(heard.header.sequence);
        daemon.until("it is acknowledged", |daemon| state_of(daemon, number) == "acknowledged");
        let before = daemon.status()["writer"]["committed"].as_u64().unwrap();
        // Of these only the first was ever sent.
        says_read(&mut eve, number..number + 500);
        says_read(&mut eve, number..number + 500);
        daemon.until("all were looked for", |daemon| {
            ignored(daemon, "unknown_message") + ignored(daemon, "repeated") == 1000
        });
        assert_eq!(daemon.status()["reads"]["taken"], 0);
        assert!(ann.barrier().is_empty(), "the sender hears nothing of it");
        assert_eq!(state_of(&daemon, number), "acknowledged");
        let after = daemon.status()["writer"]["committed"].as_u64().unwrap();
        assert!(after - before < 50, "{} records came of it", after - before);
        // The recipient itself is believed, once, though it has long acknowledged.
        says_read(&mut bob, [number, number, number + 1]);
        assert_eq!(states(&mut ann, number, ReceiptState::Read), [ReceiptState::Read]);
        for _ in 0..3 {
            says_read(&mut bob, [number]);
        }
        daemon.until("the rest is ignored", |daemon| {
            ignored(daemon, "unknown_message") + ignored(daemon, "repeated") == 1005
        });
        assert!(ann.barrier().is_empty(), "it is told once");
        assert_eq!((state_of(&daemon, number).as_str(), &daemon.status()["reads"]["taken"]), ("read", &json!(1)));
    });
}

#[test]
fn that_a_message_was_read_is_kept_unasked_and_told_only_if_asked_for() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.native("bob"));
        let without_read = Wants(ALL.0 & !Wants::READ.0);
        let (first, second) = (ann.send("bob", "1", without_read), ann.send("bob", "2", without_read));
        let sequences = [(); 2].map(|()| bob.delivery().0.header.sequence);
        says_read(&mut bob, [first]);
        bob.acknowledge(sequences[1]);
        says_read(&mut bob, [second]);
        for number in [first, second] {
            daemon.until("it counts as read", |daemon| state_of(daemon, number) == "read");
        }
        for heard in ann.barrier() {
            let Owned::Receipts(receipts) = heard.frame else { panic!("a RECEIPT") };
            assert!(receipts.iter().all(|receipt| receipt.state != ReceiptState::Read), "{receipts:?}");
        }
    });
}

#[test]
fn a_message_that_is_read_after_a_restart_is_read_once_and_its_sender_hears_it() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.native("bob"));
        let numbers: Vec<u64> = (0..3).map(|_| ann.send("bob", "later", Wants::READ)).collect();
        let sequences = [(); 3].map(|()| bob.delivery().0.header.sequence);
        says_read(&mut bob, [numbers[0]]);
        // The third is not acknowledged, and comes again.
        bob.acknowledge(sequences[1]);
        daemon.until("all is on the disk", |daemon| {
            state_of(daemon, numbers[0]) == "read" && state_of(daemon, numbers[1]) == "acknowledged"
        });
        assert_eq!(states(&mut ann, numbers[0], ReceiptState::Read), [ReceiptState::Read]);
        let directory = daemon.crash();
        let daemon = Setup { directory: Some(directory), ..Setup::new(way) }.start();
        let mut ann = daemon.native("ann");
        // What it is not given again yet, nobody believes it to have.
        let mut bob = daemon.native("bob");
        assert_eq!(bob.delivery().1, "later");
        for _ in 0..2 {
            says_read(&mut bob, numbers.iter().copied());
        }
        let mut heard = Vec::new();
        while heard.len() < 2 {
            let Owned::Receipts(receipts) = ann.hear().expect("a RECEIPT").frame else { panic!("a RECEIPT") };
            for receipt in receipts {
                assert_eq!((receipt.state, receipt.recipient), (ReceiptState::Read, AgentId::of(b"bob")));
                heard.extend((receipt.id.number..).take(receipt.count as usize));
            }
        }
        heard.sort_unstable();
        assert_eq!(heard, numbers[1..]);
        daemon.until("the rest was said before", |daemon| ignored(daemon, "repeated") == 4);
        assert!(ann.barrier().is_empty());
        assert_eq!(daemon.status()["reads"]["taken"], 2);
        for number in numbers {
            daemon.until("it counts as read", |daemon| state_of(daemon, number) == "read");
        }
    });
}
