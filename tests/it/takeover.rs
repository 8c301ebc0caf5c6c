//! Two connections want one name.

use crate::harness::{Daemon, every_way};
use crate::peers::{JsonPeer, NativePeer, Owned};
use agent_relay::base::Sequence;
use agent_relay::wire::Wants;
use serde_json::json;

#[test]
fn a_name_whose_holder_is_alive_is_refused_to_others() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut jay) = (daemon.native("ann"), daemon.json("Jay"));
        for name in ["ann", "Jay"] {
            let (mut thief, heard) = NativePeer::hello(daemon.stream(), name, None, Sequence::default());
            let Owned::Error { code, fatal, .. } = heard.frame else { panic!("{heard:?}") };
            assert_eq!((code, fatal), ("DUPLICATE_CONNECTION", true));
            assert!(matches!(thief.rest()[..], [Owned::Bye]), "then BYE, then the end");

            let mut thief = JsonPeer::bare(daemon.stream(), name);
            thief.hello(Some("00000000-0000-4000-8000-000000000000"));
            let error = thief.hear_kind("ERROR");
            let payload = &error["payload"];
            assert_eq!((&payload["code"], &payload["fatal"]), (&json!("DUPLICATE_CONNECTION"), &json!(true)));
            thief.hear_kind("BYE");
            assert!(thief.hear().is_none());
        }
        ann.send("Jay", "still here", Wants::default());
        assert_eq!(jay.body(), "still here");
        jay.send("ann", "so am I");
        assert_eq!(ann.delivery().1, "so am I");
        assert_eq!(daemon.status()["sessions"]["taken_over"], 0);
    });
}

#[test]
fn the_holders_token_takes_the_name_over_and_the_loser_is_told() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob, mut jay) = (daemon.native("ann"), daemon.native("bob"), daemon.json("Jay"));
        ann.send("bob", "not handled", Wants::default());
        bob.delivery();
        let (mut second, said) = NativePeer::resume(daemon.stream(), "bob", bob.welcome.resume, Sequence::default());
        assert!(said.is_empty() && second.welcome.resumed);
        assert_eq!(second.delivery().1, "not handled");
        let rest = bob.rest();
        let [Owned::Error { code: "DUPLICATE_CONNECTION", fatal: true, .. }, Owned::Bye] = &rest[..] else {
            panic!("{rest:?}")
        };

        let mut other = JsonPeer::bare(daemon.stream(), "Jay");
        other.hello(Some(&jay.token()));
        other.welcome = other.hear_kind("WELCOME");
        assert_eq!(other.session(), jay.session());
        let kinds: Vec<_> = jay.rest().into_iter().map(|frame| frame["type"].clone()).collect();
        assert_eq!(kinds, ["ERROR", "BYE"]);
        ann.send("Jay", "to the new one", Wants::default());
        assert_eq!(other.body(), "to the new one");
    });
}

#[test]
fn two_clients_with_one_name_do_not_flap() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        // Each time with the token of whoever holds the name: the worst two npm clients can do to each other.
        let mut holder = daemon.json("Jay");
        let mut taken_over = 0;
        for _ in 0..20 {
            let mut newcomer = JsonPeer::bare(daemon.stream(), "Jay");
            newcomer.hello(Some(&holder.token()));
            let answer = newcomer.hear().unwrap();
            if answer["type"] == "WELCOME" {
                newcomer.welcome = answer;
                taken_over += 1;
                holder = newcomer;
            } else {
                assert_eq!(answer["payload"]["code"], "DUPLICATE_CONNECTION");
            }
        }
        assert_eq!(taken_over, 2);
        assert_eq!(daemon.status()["sessions"]["taken_over"], 2);
        assert!(holder.barrier().is_empty(), "the older holder keeps the name, and its session");
    });
}
