//! Mail to agents who are not there.

use crate::harness::{Daemon, every_way};
use crate::peers::{Owned, text};
use agent_relay::wire::Wants;
use serde_json::json;
use std::sync::mpsc;
use std::time::{Duration, Instant};

#[test]
fn a_known_agent_who_is_away_gets_its_mail_in_order_and_before_new_traffic() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut ann = daemon.native("ann");
        // Known by having said BYE, and known by having been lost.
        daemon.client("bob").close().unwrap();
        drop(daemon.json("Jay"));
        daemon.until_away("bob");
        daemon.until_away("Jay");
        for number in 0..500 {
            ann.send("bob", &number.to_string(), Wants::ACCEPTED);
            ann.send("Jay", &number.to_string(), Wants::default());
        }
        daemon.until("all of it waits", |daemon| daemon.status()["messages"]["waiting"] == 1_000);
        let (mut bob, mut jay) = (daemon.client("bob"), daemon.json("Jay"));
        ann.send("bob", "new", Wants::default());
        ann.send("Jay", "new", Wants::default());
        for number in 0..500 {
            assert_eq!(text(&mut bob), number.to_string());
            assert_eq!(jay.body(), number.to_string());
        }
        assert_eq!((text(&mut bob), jay.body()), ("new".into(), "new".into()));
        drop(bob);
        daemon.until("everything is acknowledged", |daemon| daemon.agent("Jay").unwrap()["waiting"] == 0);
    });
}

#[test]
fn a_message_to_an_unknown_name_is_not_found_after_the_grace() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut jay) = (daemon.native("ann"), daemon.json("Jay"));
        let begun = Instant::now();
        let number = ann.send("nobody", "hello?", Wants::ACCEPTED);
        let id = jay.send("nobody", "hello?");
        let Owned::Error { code, fatal, number: about, outcome, message } = ann.hear().unwrap().frame else { panic!() };
        assert_eq!((code, fatal, about, outcome), ("NOT_FOUND", false, number, Some("not_found")));
        assert!(message.contains("nobody"), "{message}");
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(1_900), "{took:?}");
        let error = jay.hear_kind("ERROR");
        let expected = json!(["NOT_FOUND", false, id, "not_found"]);
        let payload = &error["payload"];
        assert_eq!(json!([payload["code"], payload["fatal"], payload["replyTo"], payload["outcome"]]), expected);
        // Neither lost anything by it, and the number may be used again.
        let mut nobody = daemon.client("nobody");
        jay.send("nobody", "there you are");
        assert_eq!(text(&mut nobody), "there you are");
    });
}

#[test]
fn an_agent_that_is_greeted_before_it_is_up_hears_the_greeting() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut jay) = (daemon.native("ann"), daemon.json("Jay"));
        ann.send("late", "one", Wants::ACCEPTED);
        ann.send("late", "two", Wants::ACCEPTED);
        jay.send("late", "hello");
        daemon.until("all of it waits for the name", |daemon| {
            let shards = daemon.status()["shards"].clone();
            shards.as_array().unwrap().iter().map(|shard| shard["grace"].as_u64().unwrap()).sum::<u64>() == 3
        });
        // Not a way to wait for anything: half a second is what this test is about.
        let (_keep, never) = mpsc::channel::<()>();
        let _ = never.recv_timeout(Duration::from_millis(500));
        let mut late = daemon.client("late");
        let mut heard = [text(&mut late), text(&mut late), text(&mut late)];
        assert!(heard.iter().position(|text| text == "one") < heard.iter().position(|text| text == "two"));
        heard.sort();
        assert_eq!(heard, ["hello", "one", "two"]);
        let Owned::Receipts(receipts) = ann.hear().unwrap().frame else { panic!("a receipt") };
        assert_eq!(receipts[0].id.number, 1);
    });
}

#[test]
fn one_sender_may_wait_for_sixty_four_unknown_names_and_no_more() {
    let daemon = Daemon::start(crate::harness::EPOLL_TWO);
    let mut ann = daemon.native("ann");
    let last = (0..65).map(|_| ann.send("nobody", "hello?", Wants::default())).last().unwrap();
    let Owned::Busy { number, reason, retry_after_ms } = ann.hear().unwrap().frame else { panic!("BUSY") };
    assert_eq!((number, reason), (last, "grace_full"));
    assert!(retry_after_ms > 0);
    let mut jay = daemon.json("Jay");
    jay.send("nobody", "this one waits");
    assert!(jay.barrier().is_empty(), "another sender has its own sixty-four");
}
