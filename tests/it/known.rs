//! Who is known: at the bound somebody new takes the place of whoever has been away the longest and is owed nothing.

use crate::harness::{Daemon, Setup, every_way};
use crate::peers::{NativePeer, Owned};
use agent_relay::base::Sequence;
use agent_relay::wire::{Frame, Wants};
use std::borrow::Cow;

/// Says HELLO and BYE.
fn comes_and_goes(daemon: &Daemon, name: &str) {
    let mut peer = daemon.native(name);
    peer.say(&Frame::Bye);
    peer.rest();
    daemon.until_away(name);
}

fn is_known(daemon: &Daemon, name: &str) -> bool {
    daemon.agent(name).is_some()
}

#[test]
fn a_fleet_with_generated_names_shuts_nobody_out_and_what_is_owed_is_kept() {
    every_way(|way| {
        let per_shard = 4;
        let settings = format!("[limits]\nknown_agents = {}\n", per_shard * usize::from(way.cores));
        let daemon = Setup::new(way).settings(&settings).start();
        comes_and_goes(&daemon, "owed");
        let mut ann = daemon.native("ann");
        ann.send("owed", "for your return", Wants::ACCEPTED);
        let Owned::Receipts(_) = ann.hear().unwrap().frame else { panic!("accepted") };
        for number in 0..40 * per_shard {
            comes_and_goes(&daemon, &format!("made-up-{number}"));
        }
        assert!(is_known(&daemon, "owed") && is_known(&daemon, "ann"));
        let status = daemon.status();
        let known = status["agents"]["known"].as_u64().unwrap();
        assert!(known <= (per_shard * usize::from(way.cores)) as u64, "{known}");
        assert!(status["agents"]["forgotten_early"].as_u64().unwrap() >= 30 * per_shard as u64);
        assert!(status["closes"]["known_agents_full"].is_null(), "{}", status["closes"]);
        assert!(!is_known(&daemon, "made-up-0"));
        ann.send("made-up-0", "are you there?", Wants::ACCEPTED);
        let Owned::Error { code: "NOT_FOUND", .. } = ann.hear().unwrap().frame else { panic!("nobody") };
        assert_eq!(daemon.native("owed").delivery().1, "for your return");
    });
}

#[test]
fn whoever_was_forgotten_and_comes_again_after_a_crash_is_owed_its_new_mail_and_no_old() {
    every_way(|way| {
        let settings = format!("[limits]\nknown_agents = {}\n", 3 * usize::from(way.cores));
        let daemon = Setup::new(way).settings(&settings).start();
        let mut ann = daemon.native("ann");
        let mut bob = daemon.client("bob");
        ann.send("bob", "old", Wants::DURABLE);
        assert_eq!(crate::peers::text(&mut bob), "old");
        bob.close().unwrap();
        daemon.until_away("bob");
        // Until one of them had the same home, and bob went.
        let mut number = 0;
        while is_known(&daemon, "bob") {
            comes_and_goes(&daemon, &format!("made-up-{number}"));
            number += 1;
            assert!(number < 200, "bob is never forgotten");
        }
        comes_and_goes(&daemon, "bob");
        let mut durable = 0;
        let sent = ann.send("bob", "new", Wants::DURABLE);
        while durable < sent {
            if let Owned::Receipts(receipts) = ann.hear().unwrap().frame {
                let last = |receipt: &agent_relay::wire::Receipt| receipt.id.number + u64::from(receipt.count) - 1;
                durable = receipts.iter().map(last).max().unwrap_or(0);
            }
        }
        let directory = daemon.crash();
        let daemon = Setup { directory: Some(directory), ..Setup::new(way).settings(&settings) }.start();
        let (mut bob, _) = NativePeer::hello(daemon.stream(), "bob", None, Sequence::default());
        assert_eq!(bob.delivery().1, "new");
        bob.say(&Frame::Ping(Cow::Borrowed(b"1")));
        let Owned::Pong = bob.hear().unwrap().frame else { panic!("nothing old comes behind it") };
    });
}

#[test]
fn a_connection_that_floods_with_pings_is_answered_in_its_time_and_slows_nobody_down() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut ann = daemon.native("ann");
        let mut bytes = Vec::new();
        agent_relay::wire::encode::frame(&mut bytes, &Frame::Ping(Cow::Borrowed(b"1")), Sequence::default());
        let pings = 25_000;
        let flood = bytes.repeat(pings);
        let mut stream = ann.stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || std::io::Write::write_all(&mut stream, &flood).unwrap());
            let (mut pongs, mut told) = (0, 0);
            while pongs < pings {
                match ann.hear().unwrap().frame {
                    Owned::Pong => pongs += 1,
                    Owned::Busy { number: 0, reason: "rate_limited", .. } => told += 1,
                    other => panic!("{other:?}"),
                }
            }
            assert!(told > 0, "it is told why");
        });
        let (mut bob, mut cid) = (daemon.native("bob"), daemon.client("cid"));
        bob.send("cid", "hello", Wants::default());
        assert_eq!(crate::peers::text(&mut cid), "hello");
        assert!(daemon.status()["paused"]["ever"].as_u64().unwrap() > 0);
    });
}
