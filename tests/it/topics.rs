//! Everybody, topics and channels.

use crate::harness::{Daemon, EPOLL_TWO, Setup, every_way};
use crate::peers::text;
use agent_relay::client::Outgoing;
use agent_relay::wire::Wants;
use serde_json::json;

fn to<'a>(to: &'a str, text: &'a str) -> Outgoing<'a> {
    Outgoing { to, text: Some(text), ..Outgoing::default() }
}

#[test]
fn everybody_but_the_sender_hears_a_message_to_everybody() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut others: Vec<_> = (0..8).map(|index| daemon.client(&format!("agent-{index}"))).collect();
        let mut json = daemon.json("Jason");
        let mut ann = daemon.client("ann");
        ann.send(&to("*", "to all")).unwrap();
        ann.send(&to("ann", "to myself")).unwrap();
        for other in &mut others {
            assert_eq!(text(other), "to all");
        }
        let got = json.hear_kind("DELIVER");
        assert_eq!((&got["to"], &got["delivery"]["originalTo"]), (&json!("Jason"), &json!("*")));
        assert_eq!(text(&mut ann), "to myself");
    });
}

#[test]
fn a_topic_reaches_its_subscribers_and_nobody_else() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob, mut cat) = (daemon.native("ann"), daemon.client("bob"), daemon.json("Cat"));
        let mut dan = daemon.client("dan");
        bob.subscribe("builds").unwrap();
        bob.subscribe("#builds").unwrap();
        cat.say(&json!({ "type": "SUBSCRIBE", "id": "1", "topic": "builds", "payload": {} }));
        cat.barrier();
        daemon.until("bob has subscribed", |daemon| daemon.agent("bob").unwrap()["topics"] == json!(["builds"]));
        ann.send("#builds", "green", Wants::default());
        assert_eq!(text(&mut bob), "green", "once, although subscribed twice");
        let got = cat.hear_kind("DELIVER");
        assert_eq!((&got["topic"], &got["payload"]["body"]), (&json!("builds"), &json!("green")));
        bob.unsubscribe("builds").unwrap();
        daemon.until("bob has unsubscribed", |daemon| daemon.agent("bob").unwrap()["topics"] == json!([]));
        ann.send("#builds", "red", Wants::default());
        assert_eq!(cat.body(), "red");
        ann.send("*", "the end", Wants::default());
        assert_eq!((text(&mut bob), text(&mut dan)), ("the end".into(), "the end".into()));
    });
}

#[test]
fn subscriptions_survive_a_lost_connection_and_so_does_mail_to_them() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.client("bob"));
        bob.subscribe("builds").unwrap();
        daemon.until("bob has subscribed", |daemon| daemon.agent("bob").unwrap()["topics"] == json!(["builds"]));
        drop(bob);
        daemon.until_away("bob");
        ann.send("#builds", "while away", Wants::default());
        ann.send("*", "everybody", Wants::default());
        ann.barrier();
        daemon.until("it waits for bob", |daemon| daemon.agent("bob").unwrap()["waiting"] == 2);
        let mut bob = daemon.client("bob");
        assert_eq!((text(&mut bob), text(&mut bob)), ("while away".into(), "everybody".into()));
        ann.send("#builds", "and later", Wants::default());
        assert_eq!(text(&mut bob), "and later");
    });
}

#[test]
fn who_said_bye_is_not_told_what_everybody_is_told() {
    let daemon = Daemon::start(EPOLL_TWO);
    let (mut ann, bob) = (daemon.native("ann"), daemon.client("bob"));
    bob.close().unwrap();
    daemon.until_away("bob");
    ann.send("*", "everybody", Wants::default());
    ann.send("bob", "you", Wants::default());
    daemon.until("what was said to bob alone waits for him", |daemon| daemon.agent("bob").unwrap()["waiting"] == 1);
    let mut bob = daemon.client("bob");
    assert_eq!(text(&mut bob), "you");
}

#[test]
fn channels_of_json_clients_are_topics() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob, mut nat) = (daemon.json("Ann"), daemon.json("Bob"), daemon.client("nat"));
        let join = |channel: &str| json!({ "type": "CHANNEL_JOIN", "id": "j", "payload": { "channel": channel } });
        ann.say(&join("#Builds"));
        bob.say(&join("#Builds"));
        bob.barrier();
        nat.subscribe("builds").unwrap();
        daemon.until("nat has subscribed", |daemon| daemon.agent("nat").unwrap()["topics"] == json!(["builds"]));
        let payload =
            json!({ "channel": "#Builds", "body": "green", "thread": "t", "mentions": ["Bob"], "data": { "k": 1 } });
        ann.say(&json!({ "type": "CHANNEL_MESSAGE", "id": "c1", "payload": payload }));
        let got = bob.hear_kind("CHANNEL_MESSAGE");
        assert_eq!((&got["from"], &got["payload"]), (&json!("Ann"), &payload));
        assert_eq!(text(&mut nat), "green");
        nat.handled().unwrap();
        // A native agent speaks to the channel by its topic.
        nat.send(&to("#builds", "from native")).unwrap();
        assert_eq!(ann.hear_kind("CHANNEL_MESSAGE")["payload"]["channel"], "#builds");
        assert_eq!(bob.hear_kind("CHANNEL_MESSAGE")["payload"]["body"], "from native");
        // Everybody who speaks JSON is in #general.
        bob.say(
            &json!({ "type": "CHANNEL_MESSAGE", "id": "g", "payload": { "channel": "#general", "body": "all here" } }),
        );
        assert_eq!(ann.hear_kind("CHANNEL_MESSAGE")["payload"]["channel"], "#general");
        // Two agents' channel.
        ann.say(&json!({ "type": "CHANNEL_MESSAGE", "id": "d", "payload": { "channel": "dm:Ann:Bob", "body": "you and I" } }));
        let got = bob.hear_kind("CHANNEL_MESSAGE");
        assert_eq!((&got["payload"]["channel"], &got["payload"]["body"]), (&json!("dm:Ann:Bob"), &json!("you and I")));
        bob.say(&json!({ "type": "CHANNEL_LEAVE", "id": "l", "payload": { "channel": "#Builds" } }));
        bob.barrier();
        nat.send(&to("#builds", "without bob")).unwrap();
        nat.send(&to("Bob", "after")).unwrap();
        assert_eq!(ann.hear_kind("CHANNEL_MESSAGE")["payload"]["body"], "without bob");
        assert_eq!(bob.body(), "after");
        // A channel message is settled by being written: nothing of it waits.
        daemon.until("nothing waits", |daemon| daemon.status()["messages"]["waiting"] == 0);
    });
}

#[test]
fn too_many_subscriptions_are_refused_and_those_there_are_go_on() {
    let daemon = Setup::new(EPOLL_TWO).settings("[limits]\nsubscriptions = 2\n").start();
    let mut bob = daemon.json("Bob");
    for topic in ["one", "two", "three"] {
        bob.say(&json!({ "type": "SUBSCRIBE", "id": "s", "topic": topic, "payload": {} }));
    }
    // #general is the first.
    for _ in 0..2 {
        let error = bob.hear_kind("ERROR");
        assert_eq!((&error["payload"]["code"], &error["payload"]["fatal"]), (&json!("BAD_REQUEST"), &json!(false)));
    }
    let mut ann = daemon.client("ann");
    ann.send(&to("#one", "heard")).unwrap();
    assert_eq!(bob.body(), "heard");
}
