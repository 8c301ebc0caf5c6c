//! A session goes on after its connection is gone.

use crate::harness::{Daemon, every_way};
use crate::peers::{JsonPeer, NativePeer, Owned};
use agent_relay::base::Sequence;
use agent_relay::base::ids::Token;
use agent_relay::wire::{FLAG_REDELIVERED, Wants};
use serde_json::json;

#[test]
fn a_native_session_goes_on_and_only_what_was_not_handled_comes_again() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.native("bob"));
        for number in 1..=10 {
            ann.send("bob", &number.to_string(), Wants::default());
        }
        let last = (0..10).map(|_| bob.delivery().0.header.sequence).last().unwrap();
        let handled = Sequence { counter: 4, ..last };
        let before = bob.welcome;
        drop(bob);
        daemon.until_away("bob");
        ann.send("bob", "11", Wants::default());
        daemon.until("it waits", |daemon| daemon.agent("bob").unwrap()["waiting"] == 11);
        let (mut bob, said) = NativePeer::resume(daemon.stream(), "bob", before.resume, handled);
        assert!(said.is_empty(), "{said:?}");
        assert!(bob.welcome.resumed && bob.welcome.session == before.session && bob.welcome.resume != before.resume);
        for number in 5..=11 {
            let (heard, text) = bob.delivery();
            assert_eq!((text, heard.header.sequence.counter), (number.to_string(), number));
            assert_eq!(heard.header.flags & FLAG_REDELIVERED != 0, number < 11, "{number}");
        }
        assert_eq!(daemon.agent("bob").unwrap()["waiting"], 7);
    });
}

#[test]
fn a_token_works_until_a_frame_arrives_under_the_new_one() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let bob = daemon.native("bob");
        let first = bob.welcome;
        drop(bob);
        daemon.until_away("bob");
        // The WELCOME of this one is as good as lost: nothing is said under its token.
        let (bob, _) = NativePeer::resume(daemon.stream(), "bob", first.resume, Sequence::default());
        let second = bob.welcome;
        assert!(second.resumed);
        drop(bob);
        daemon.until_away("bob");
        let (mut bob, said) = NativePeer::resume(daemon.stream(), "bob", first.resume, Sequence::default());
        assert!(said.is_empty() && bob.welcome.resumed && bob.welcome.session == first.session);
        bob.barrier();
        let third = bob.welcome;
        drop(bob);
        daemon.until_away("bob");
        for stale in [first.resume, second.resume] {
            let (bob, said) = NativePeer::resume(daemon.stream(), "bob", stale, Sequence::default());
            let [heard] = &said[..] else { panic!("one ERROR: {said:?}") };
            let Owned::Error { code, fatal, .. } = &heard.frame else { panic!("{heard:?}") };
            assert_eq!((*code, *fatal), ("RESUME_TOO_OLD", false));
            assert!(!bob.welcome.resumed && bob.welcome.session != third.session, "a fresh session");
            drop(bob);
            daemon.until_away("bob");
        }
    });
}

#[test]
fn a_wrong_token_gets_a_fresh_session_and_still_the_mail() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, bob, jay) = (daemon.native("ann"), daemon.native("bob"), daemon.json("Jay"));
        let old_session = jay.session().to_owned();
        drop((bob, jay));
        daemon.until_away("bob");
        daemon.until_away("Jay");
        ann.send("bob", "owed", Wants::default());
        ann.send("Jay", "owed", Wants::default());
        let (mut bob, said) = NativePeer::resume(daemon.stream(), "bob", Token([7; 16]), Sequence::default());
        assert_eq!((said.len(), bob.welcome.resumed), (1, false));
        assert_eq!(bob.delivery().1, "owed");

        let mut jay = JsonPeer::bare(daemon.stream(), "Jay");
        jay.hello(Some("00000000-0000-4000-8000-000000000000"));
        let error = jay.hear_kind("ERROR");
        assert_eq!((&error["payload"]["code"], &error["payload"]["fatal"]), (&json!("RESUME_TOO_OLD"), &json!(false)));
        jay.welcome = jay.hear_kind("WELCOME");
        assert_ne!(jay.session(), old_session);
        assert_eq!(jay.body(), "owed");
    });
}

#[test]
fn a_json_session_goes_on_with_its_id_its_order_and_what_was_not_acknowledged() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut jay) = (daemon.json("Ann"), daemon.json("Jay"));
        for number in 1..=3 {
            ann.send("Jay", &number.to_string());
        }
        let deliveries: Vec<_> = (0..3).map(|_| jay.hear().unwrap()).collect();
        jay.acknowledge(&deliveries[0]);
        jay.barrier();
        let (token, session) = (jay.token(), jay.session().to_owned());
        drop(jay);
        daemon.until_away("Jay");
        ann.send("Jay", "4");
        daemon.until("it waits", |daemon| daemon.agent("Jay").unwrap()["waiting"] == 3);
        let mut jay = JsonPeer::bare(daemon.stream(), "Jay");
        jay.hello(Some(&token));
        jay.welcome = jay.hear_kind("WELCOME");
        assert_eq!(jay.session(), session);
        assert_ne!(jay.token(), token);
        for earlier in &deliveries[1..] {
            let again = jay.hear_kind("DELIVER");
            assert_eq!(
                (&again["id"], &again["ts"], &again["payload"]),
                (&earlier["id"], &earlier["ts"], &earlier["payload"])
            );
            assert_eq!(
                (&again["delivery"]["seq"], &again["delivery"]["redelivered"]),
                (&earlier["delivery"]["seq"], &json!(true))
            );
        }
        let last = jay.hear_kind("DELIVER");
        assert_eq!((&last["payload"]["body"], &last["delivery"]["seq"]), (&json!("4"), &json!(4)));
        assert_eq!(last["delivery"]["redelivered"], json!(null));
    });
}

#[test]
fn a_reconnecting_program_sees_each_message_once_however_often_it_is_cut_off() {
    use agent_relay::client::{Incoming, Options, Reconnecting};
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut ann = daemon.native("ann");
        // A proxy that the test can cut: the program's address stays the same.
        let proxy_path = daemon.directory.path().join("proxy.sock");
        let listener = std::os::unix::net::UnixListener::bind(&proxy_path).unwrap();
        let target = daemon.socket();
        let (cuts_in, cuts) = std::sync::mpsc::channel::<std::os::unix::net::UnixStream>();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(near), Ok(far)) = (stream, std::os::unix::net::UnixStream::connect(&target)) else { return };
                let pipe = |mut from: std::os::unix::net::UnixStream, mut to: std::os::unix::net::UnixStream| {
                    std::thread::spawn(move || {
                        drop(std::io::copy(&mut from, &mut to));
                        drop(to.shutdown(std::net::Shutdown::Both));
                    });
                };
                pipe(near.try_clone().unwrap(), far.try_clone().unwrap());
                pipe(far.try_clone().unwrap(), near);
                if cuts_in.send(far).is_err() {
                    return;
                }
            }
        });
        let address = agent_relay::client::Address::Unix(proxy_path);
        let mut bob = Reconnecting::connect(&address, &Options::named("bob")).unwrap();
        // More than all buffers on the way take, less than may wait.
        let total = 800;
        let padding = "x".repeat(1_000);
        for number in 0..total {
            ann.send("bob", &format!("{number} {padding}"), Wants::default());
        }
        let mut expected = 0;
        while expected < total {
            match bob.next(crate::harness::PATIENCE).unwrap() {
                Some(Incoming::Message(message)) => {
                    assert!(message.text().starts_with(&format!("{expected} ")));
                    expected += 1;
                    // Whatever is connected is cut; what is in the program's own buffer it still has.
                    if expected % 100 == 0 {
                        while let Ok(connection) = cuts.try_recv() {
                            drop(connection.shutdown(std::net::Shutdown::Both));
                        }
                    }
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
        assert!(bob.connections() >= 3, "{}", bob.connections());
    });
}
