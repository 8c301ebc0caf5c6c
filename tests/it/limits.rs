//! Every bound: what happens at it, and that nothing else suffers.

use crate::harness::{Daemon, EPOLL_TWO, PATIENCE, Setup, URING_ONE, available, every_way};
use crate::peers::{JsonPeer, NativePeer, Owned, ends, json_frame};
use agent_relay::base::Sequence;
use agent_relay::wire::{Kind, MessageFields, Wants};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketType};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Those that are open and those that the relay has closed, as soon as so many are closed.
fn parted(streams: Vec<UnixStream>, closed_min: usize) -> (Vec<UnixStream>, Vec<UnixStream>) {
    let deadline = Instant::now() + PATIENCE;
    let mut open: Vec<UnixStream> = streams;
    let mut closed = Vec::new();
    while closed.len() < closed_min {
        let ready: Vec<bool> = {
            let mut watched: Vec<PollFd<'_>> = open.iter().map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {closed_min} were closed", closed.len());
            rustix::event::poll(&mut watched, Some(&left.try_into().unwrap())).unwrap();
            watched.iter().map(|watched| !watched.revents().is_empty()).collect()
        };
        let (gone, stay): (Vec<_>, Vec<_>) = open.into_iter().zip(ready).partition(|(_, ready)| *ready);
        closed.extend(gone.into_iter().map(|(stream, _)| stream));
        open = stay.into_iter().map(|(stream, _)| stream).collect();
    }
    (open, closed)
}

#[test]
fn connections_without_hello_are_bounded_and_the_bound_frees_itself() {
    every_way(|way| {
        let daemon = Setup::new(way).settings("[limits]\nhalf_open = 4\n").start();
        // The bound is each shard's; a connection that is too many is closed at once, without a word.
        let most = 4 * usize::from(way.cores);
        let (open, closed) = parted((0..40).map(|_| daemon.stream()).collect(), 40 - most);
        assert!((1..=most).contains(&open.len()), "{} are open", open.len());
        for mut stream in closed {
            assert!(ends(&mut stream).is_empty(), "nothing is said");
        }
        drop(open);
        let deadline = Instant::now() + PATIENCE;
        let mut ann = loop {
            // Until the daemon has seen that they are gone, this one may be too many as well.
            let (peer, said) = std::thread::scope(|scope| {
                let stream = daemon.stream();
                scope
                    .spawn(move || {
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                            NativePeer::hello(stream, "ann", None, Sequence::default())
                        }))
                        .ok()
                        .unzip()
                    })
                    .join()
                    .unwrap()
            });
            if let (Some(peer), Some(_)) = (peer, said) {
                break peer;
            }
            assert!(Instant::now() < deadline, "the bound does not free itself");
        };
        ann.barrier();
        assert!(daemon.status()["closes"]["half_open_full"].as_u64().unwrap() >= 30);
    });
}

/// A connection over TCP that comes from this address of the loopback network.
fn from_address(address: [u8; 4], to: &str) -> TcpStream {
    let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
    let socket = rustix::net::socket(family, kind, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((address, 0))).unwrap();
    rustix::net::connect(&socket, &to.parse::<SocketAddr>().unwrap()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn many_silent_connections_from_one_address_do_not_keep_a_newcomer_from_another_one_out() {
    every_way(|way| {
        let settings = "[limits]\nhalf_open = 4\n";
        let daemon = Setup::new(way).settings(settings).argument("--listen").argument("127.0.0.1:0").start();
        let address = daemon.status()["listen"][0].as_str().unwrap().to_owned();
        let crowd: Vec<TcpStream> = (0..80).map(|_| from_address([127, 0, 0, 1], &address)).collect();
        let most = 4 * u64::from(way.cores);
        let count = |daemon: &Daemon, reason: &str| daemon.status()["closes"][reason].as_u64().unwrap_or(0);
        daemon.until("all places are taken", |daemon| count(daemon, "half_open_full") >= 80 - most);
        let mut greeting =
            json_frame(&json!({ "type": "HELLO", "id": "h", "payload": { "agent": "Ann" } }).to_string());
        for number in 0..10 {
            let mut newcomer = from_address([127, 0, 0, 2], &address);
            newcomer.write_all(&greeting).unwrap();
            let mut length = [0; 4];
            newcomer.read_exact(&mut length).unwrap();
            let mut welcome = vec![0; u32::from_be_bytes(length) as usize];
            newcomer.read_exact(&mut welcome).unwrap();
            assert!(String::from_utf8_lossy(&welcome).contains("WELCOME"), "newcomer {number}");
            let name = format!("Ann{number}");
            greeting = json_frame(&json!({ "type": "HELLO", "id": "h", "payload": { "agent": name } }).to_string());
        }
        assert!((1..=most).contains(&count(&daemon, "half_open_crowd")));
        drop(crowd);
    });
}

#[test]
fn whoever_is_told_of_mistakes_before_its_hello_and_does_not_read_is_closed() {
    every_way(|way| {
        let daemon = Setup::new(way).argument("--listen").argument("127.0.0.1:0").start();
        let address = daemon.status()["listen"][0].as_str().unwrap().to_owned();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let frames = json_frame(r#"{"type":"SPAWN","id":"unserved","payload":{}}"#).repeat(1_000);
        let begun = Instant::now();
        // Its answers fill the socket's buffers, and then little more than they.
        while stream.write_all(&frames).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "it is still open");
        }
        daemon.until("it is closed", |daemon| daemon.status()["closes"]["slow_reader"] == 1);
        // The owner's questions may have long answers, and a HELLO may come behind a few mistakes.
        daemon.native("ann").barrier();
    });
}

#[test]
fn who_says_no_hello_within_ten_seconds_is_closed() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let begun = Instant::now();
        let mut silent = daemon.stream();
        // Who says something, but not HELLO, has no longer.
        let mut early = JsonPeer::bare(daemon.stream(), "early");
        early.send("bob", "too early");
        let complaint = early.hear_kind("ERROR")["payload"]["message"].clone();
        assert!(complaint.as_str().unwrap().starts_with("Not in ACTIVE state"), "{complaint}");
        assert!(ends(&mut silent).is_empty());
        let took = begun.elapsed();
        assert!(early.rest().is_empty());
        assert!((Duration::from_millis(9_900)..Duration::from_secs(13)).contains(&took), "{took:?}");
        assert_eq!(daemon.status()["closes"]["hello_timeout"], 2);
    });
}

#[test]
fn a_frame_of_more_than_a_mib_ends_its_connection_and_the_good_ones_before_it_count() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut jay, mut bob) = (daemon.native("ann"), daemon.json("Jay"), daemon.client("bob"));
        let mut bytes = ann.encode("bob", "good", Wants::default());
        let mut header = agent_relay::wire::Header::of(Kind::Send);
        header.length = 1024 * 1024;
        bytes.extend_from_slice(&header.encode());
        ann.stream.write_all(&bytes).unwrap();
        let rest = ann.rest();
        let [Owned::Error { code: "BAD_REQUEST", fatal: true, .. }, Owned::Bye] = &rest[..] else { panic!("{rest:?}") };
        assert_eq!(crate::peers::text(&mut bob), "good");

        let mut bytes = json_frame(r#"{"type":"SEND","id":"1","to":"bob","payload":{"body":"good as well"}}"#);
        bytes.extend_from_slice(&(1024 * 1024 + 1u32).to_be_bytes());
        jay.stream.write_all(&bytes).unwrap();
        let error = jay.hear_kind("ERROR");
        assert_eq!(error["payload"]["fatal"], true);
        let text = error["payload"]["message"].as_str().unwrap();
        assert!(text.contains("Frame too large: 1048577 > 1048576"), "{text}");
        jay.hear_kind("BYE");
        assert!(jay.hear().is_none());
        assert_eq!(crate::peers::text(&mut bob), "good as well");

        let mut kim = daemon.json("Kim");
        let mut bytes = json_frame(r#"{"type":"SEND","id":"1","to":"bob","payload":{"body":"and this"}}"#);
        bytes.extend_from_slice(&json_frame("{not json"));
        kim.stream.write_all(&bytes).unwrap();
        assert_eq!(kim.hear_kind("ERROR")["payload"]["fatal"], true);
        assert_eq!(crate::peers::text(&mut bob), "and this");
        assert_eq!(daemon.status()["closes"]["frame_too_long"], 2, "{}", daemon.status()["closes"]);
    });
}

#[test]
fn a_send_whose_delivery_would_be_too_long_is_refused_and_the_recipient_lives() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob, mut nat) = (daemon.json("Ann"), daemon.json("Bob"), daemon.native("nat"));
        // The SEND itself is as long as a frame may be.
        let around = r#"{"type":"SEND","id":"big","to":"Bob","payload":{"kind":"message","body":""}}"#;
        let text = around.replace(r#""body":"""#, &format!(r#""body":"{}""#, "x".repeat(1024 * 1024 - around.len())));
        assert_eq!(text.len(), 1024 * 1024);
        ann.say_text(&text);
        let error = ann.hear_kind("ERROR");
        let payload = &error["payload"];
        let expected = json!(["BAD_REQUEST", false, "big", "too_long"]);
        assert_eq!(json!([payload["code"], payload["fatal"], payload["replyTo"], payload["outcome"]]), expected);
        // A native body that escaping makes too long for a JSON recipient, but not for a native one.
        let control = "\u{1}".repeat(300_000);
        let number = nat.send("Bob", &control, Wants::default());
        let Owned::Error { code, fatal, number: about, .. } = nat.hear().unwrap().frame else { panic!("ERROR") };
        assert_eq!((code, fatal, about), ("BAD_REQUEST", false, number));
        nat.send("nat", &control, Wants::default());
        assert_eq!(nat.delivery().1, control);
        // As long as it may just be.
        let body = "y".repeat(1024 * 1024 - 600);
        ann.send("Bob", &body);
        assert!(bob.body() == body);
        nat.send("Bob", "all is well", Wants::default());
        assert_eq!(bob.body(), "all is well");
    });
}

#[test]
fn a_malformed_frame_is_complained_about_and_survived() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut jay) = (daemon.native("ann"), daemon.json("Jay"));
        jay.say(&json!({ "type": "SEND", "id": "n", "to": "ann", "payload": { "kind": "message", "body": 42 } }));
        let error = jay.hear_kind("ERROR");
        assert_eq!((&error["payload"]["fatal"], &error["payload"]["replyTo"]), (&json!(false), &json!("n")));
        jay.say(&json!({ "type": "SPAWN", "id": "rpc", "payload": {} }));
        assert_eq!(jay.hear_kind("ERROR")["payload"]["replyTo"], "rpc");
        jay.say(&json!({ "type": "LOG", "id": "l", "payload": { "data": "x" } }));
        for ignored in ["[]", "5", "\"s\"", "{}", "{\"type\":\"WHATEVER\"}"] {
            jay.say_text(ignored);
        }
        jay.send("ann", "alive");
        assert_eq!(ann.delivery().1, "alive");
        // Somebody else's name as sender.
        let fields = MessageFields { from: b"Jay", ..ann.fields(9, "Jay", "forged") };
        let mut bytes = Vec::new();
        agent_relay::wire::encode::send(&mut bytes, Kind::Send, &fields, Default::default());
        ann.stream.write_all(&bytes).unwrap();
        let Owned::Error { code, fatal, number, outcome, .. } = ann.hear().unwrap().frame else { panic!("ERROR") };
        assert_eq!((code, fatal, number, outcome), ("BAD_REQUEST", false, 9, Some("malformed")));
        ann.number = 9;
        ann.send("Jay", "alive as well", Wants::default());
        assert_eq!(jay.body(), "alive as well");
    });
}

#[test]
fn names_that_break_the_rules_are_refused() {
    let daemon = Daemon::start(EPOLL_TWO);
    for name in ["", "a/b", "*", "#x", "a:b", "line\nbreak", &"x".repeat(65)] {
        let (mut peer, heard) = NativePeer::hello(daemon.stream(), name, None, Sequence::default());
        let Owned::Error { code, fatal, .. } = heard.frame else { panic!("{name:?}: {heard:?}") };
        assert_eq!((code, fatal), ("BAD_REQUEST", true), "{name:?}");
        assert!(matches!(peer.rest()[..], [Owned::Bye]));
        let mut peer = JsonPeer::bare(daemon.stream(), name);
        peer.hello(None);
        assert_eq!(peer.hear_kind("ERROR")["payload"]["fatal"], true, "{name:?}");
    }
}

#[test]
fn no_more_is_in_flight_than_the_window_allows() {
    every_way(|way| {
        let daemon = Setup::new(way).settings("[limits]\nin_flight = 128\n").start();
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.native("bob"));
        for number in 0..300 {
            ann.send("bob", &number.to_string(), Wants::default());
        }
        daemon.until("all is accepted", |daemon| daemon.agent("bob").unwrap()["waiting"] == 300);
        assert_eq!(daemon.agent("bob").unwrap()["in_flight"], 128);
        let mut expected = 0;
        for part in [128, 100, 72] {
            let mut last = Sequence::default();
            for _ in 0..part {
                let (heard, text) = bob.delivery();
                assert_eq!(text, expected.to_string());
                expected += 1;
                last = heard.header.sequence;
            }
            if part != 72 {
                assert!(bob.barrier().len() <= 100, "nothing beyond the window");
            }
            bob.acknowledge(if part == 128 { Sequence { counter: 100, ..last } } else { last });
        }
        daemon.until("nothing waits", |daemon| daemon.agent("bob").unwrap()["waiting"] == 0);
        // Bytes bound it as well: 512 KiB, so eight messages of 70,000 bytes are one too many.
        let big = "z".repeat(70_000);
        for _ in 0..9 {
            ann.send("bob", &big, Wants::default());
        }
        daemon.until("all is accepted", |daemon| daemon.agent("bob").unwrap()["waiting"] == 9);
        assert_eq!(daemon.agent("bob").unwrap()["in_flight"], 7);
        for _ in 0..9 {
            let (heard, _) = bob.delivery();
            bob.acknowledge(heard.header.sequence);
        }
    });
}

#[test]
fn a_connection_beyond_the_limit_is_refused_and_the_others_go_on() {
    let way = if available(URING_ONE) { URING_ONE } else { EPOLL_TWO };
    for way in [way, EPOLL_TWO] {
        let daemon = Setup::new(way).settings("[limits]\nconnections = 16\n").start();
        let held = (0..16 * usize::from(way.cores) + 20).map(|_| daemon.stream()).collect();
        let (open, closed) = parted(held, 20);
        for mut stream in closed {
            assert!(ends(&mut stream).is_empty(), "nothing is said");
        }
        drop(open);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut probe = daemon.stream();
            let hello = r#"{"type":"HELLO","id":"h","payload":{"agent":"probe"}}"#;
            // While slots are still being freed this one may be refused as well, at any point.
            if probe.write_all(&json_frame(hello)).is_ok() && matches!(probe.read(&mut [0; 4]), Ok(4)) {
                break;
            }
            assert!(Instant::now() < deadline, "no connection any more");
        }
    }
}

#[test]
fn a_sender_above_its_rate_is_told_how_long_to_wait_and_it_is_true() {
    let settings = "[limits]\nmessages_per_second_per_connection = 50\nburst_per_connection = 5\n";
    let daemon = Setup::new(EPOLL_TWO).settings(settings).start();
    let (mut ann, mut bob) = (daemon.native("ann"), daemon.client("bob"));
    for number in 0..6 {
        ann.send("bob", &number.to_string(), Wants::default());
    }
    let Owned::Busy { number, reason, retry_after_ms } = ann.hear().unwrap().frame else { panic!("BUSY") };
    assert_eq!((number, reason), (6, "rate_limited"));
    assert!((1..=20).contains(&retry_after_ms), "{retry_after_ms}");
    for number in 0..5 {
        assert_eq!(crate::peers::text(&mut bob), number.to_string());
    }
    // As long as it was told to wait; that is what is being tested.
    std::thread::sleep(Duration::from_millis(u64::from(retry_after_ms)));
    let (mut bytes, fields) = (Vec::new(), ann.fields(6, "bob", "later"));
    agent_relay::wire::encode::send(&mut bytes, Kind::Send, &fields, Default::default());
    ann.stream.write_all(&bytes).unwrap();
    assert_eq!(crate::peers::text(&mut bob), "later");
}

#[test]
fn without_descriptors_accepting_pauses_without_spinning_and_goes_on_afterwards() {
    every_way(|way| {
        let daemon = Setup::new(way).shell("ulimit -n 80").start();
        let mut ann = daemon.native("ann");
        let streams: Vec<UnixStream> = (0..150).map(|_| daemon.stream()).collect();
        daemon_cpu_is_quiet(&daemon);
        ann.send("ann", "those who are in go on", Wants::default());
        assert_eq!(ann.delivery().1, "those who are in go on");
        let said = daemon.said();
        let complaints = said.matches("accepting is paused").count();
        assert!((1..100).contains(&complaints), "{complaints}: {said}");
        drop(streams);
        let mut bob = daemon.native("bob");
        ann.send("bob", "and others come again", Wants::default());
        assert_eq!(bob.delivery().1, "and others come again");
    });
}

/// Half a second in which nothing happens costs less than a tenth of a second of CPU.
fn daemon_cpu_is_quiet(daemon: &Daemon) {
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    daemon.until("it has run out of descriptors", |daemon| daemon.said().contains("accepting is paused"));
    let before = ticks();
    std::thread::sleep(Duration::from_millis(500));
    let used = ticks() - before;
    assert!(used < 10, "{used} ticks of 10 ms within half a second");
}
