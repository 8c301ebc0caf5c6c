//! What survives the process: owed mail, sessions, marks, subscriptions; after a kill and after a stop.

use crate::harness::{Daemon, EPOLL_TWO, PATIENCE, Setup, URING_TWO, Way, every_way};
use crate::peers::{JsonPeer, NativePeer, Owned};
use agent_relay::base::Sequence;
use agent_relay::client;
use agent_relay::wire::{FLAG_REDELIVERED, QueryKind, ReceiptState, Wants};
use rustix::process::Signal;
use serde_json::json;

/// Kills it as a crash would and starts it on the same folder, with as many cores as asked for.
fn again(daemon: Daemon, cores: u16) -> Daemon {
    let way = daemon.way;
    let directory = daemon.crash();
    Setup { directory: Some(directory), ..Setup::new(Way { cores, ..way }) }.start()
}

fn is_durable(heard: &Owned) -> u64 {
    match heard {
        Owned::Receipts(receipts) => receipts
            .iter()
            .filter(|receipt| receipt.state == ReceiptState::Durable)
            .map(|receipt| u64::from(receipt.count))
            .sum(),
        other => panic!("{other:?}"),
    }
}

/// Sends numbers as texts and waits until all of them are durable.
fn send_durably(sender: &mut NativePeer, to: &str, texts: std::ops::RangeInclusive<u32>) {
    let mut open = u64::from(texts.end() - texts.start() + 1);
    for text in texts {
        sender.send(to, &text.to_string(), Wants::DURABLE);
    }
    while open > 0 {
        open -= is_durable(&sender.hear().unwrap().frame);
    }
}

#[test]
fn what_is_owed_survives_a_kill_and_comes_in_order_before_new_traffic() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut ann = daemon.native("ann");
        let bob = daemon.native("bob");
        let before = bob.welcome;
        let mut jay = daemon.json("Jay");
        jay.barrier();
        let session = jay.session().to_owned();
        let token = jay.token();
        drop((bob, jay));
        daemon.until_away("bob");
        daemon.until_away("Jay");
        send_durably(&mut ann, "bob", 1..=300);
        send_durably(&mut ann, "Jay", 1..=3);
        // Restarted with another number of shards, so that homes move.
        let daemon = again(daemon, 3 - way.cores.min(2));
        assert_eq!(daemon.agent("bob").unwrap()["waiting"], 300);
        let mut ann = daemon.native("ann");
        ann.send("bob", "new", Wants::default());
        let (mut bob, said) = NativePeer::resume(daemon.stream(), "bob", before.resume, Sequence::default());
        assert!(said.is_empty() && bob.welcome.resumed && bob.welcome.session == before.session, "{said:?}");
        let mut last = Sequence::default();
        let mut epoch = 0;
        for number in 1..=300 {
            let (heard, text) = bob.delivery();
            assert_eq!(text, number.to_string());
            assert!(heard.header.flags & FLAG_REDELIVERED != 0, "an earlier process may have sent it");
            epoch = if number == 1 { heard.header.sequence.epoch } else { epoch };
            assert_eq!(heard.header.sequence, Sequence { epoch, counter: number });
            last = heard.header.sequence;
        }
        bob.acknowledge(last);
        let (heard, text) = bob.delivery();
        assert_eq!((text.as_str(), heard.header.flags & FLAG_REDELIVERED), ("new", 0));
        assert!(heard.header.sequence.epoch > epoch, "a start of the daemon begins a new epoch");
        let mut jay = JsonPeer::bare(daemon.stream(), "Jay");
        jay.hello(Some(&token));
        jay.welcome = jay.hear_kind("WELCOME");
        assert_eq!(jay.session(), session);
        for number in 1..=3 {
            assert_eq!(jay.body(), number.to_string());
        }
    });
}

#[test]
fn what_was_acknowledged_and_committed_does_not_come_again() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.native("bob"));
        send_durably(&mut ann, "bob", 1..=10);
        let sequences: Vec<Sequence> = (0..10).map(|_| bob.delivery().0.header.sequence).collect();
        // Up to the fourth, and the seventh out of order.
        bob.acknowledge(sequences[3]);
        bob.say(&agent_relay::wire::Frame::Ack(agent_relay::wire::Ack::One(sequences[6])));
        bob.barrier();
        daemon.until("it is known", |daemon| daemon.agent("bob").unwrap()["waiting"] == 5);
        // Progress is told behind what is asked, and committed before the answer.
        send_durably(&mut ann, "bob", 11..=11);
        daemon.ask(QueryKind::Message, &json!({ "from": "ann", "number": 11 }));
        let before = bob.welcome;
        let daemon = again(daemon, way.cores);
        let (mut bob, _) = NativePeer::resume(daemon.stream(), "bob", before.resume, Sequence::default());
        let texts: Vec<String> = (0..6).map(|_| bob.delivery().1).collect();
        assert_eq!(texts, ["5", "6", "8", "9", "10", "11"]);
        // And by what the client says it has handled.
        let before = bob.welcome;
        bob.barrier();
        drop(bob);
        daemon.until_away("bob");
        // The session with its new token is committed before this answer, or the token would mean nothing after a kill.
        daemon.ask(QueryKind::Message, &json!({ "from": "ann", "number": 11 }));
        let daemon = again(daemon, way.cores);
        let (mut bob, _) = NativePeer::resume(daemon.stream(), "bob", before.resume, sequences[8]);
        assert!(bob.welcome.resumed);
        let texts: Vec<String> = (0..2).map(|_| bob.delivery().1).collect();
        assert_eq!(texts, ["10", "11"]);
    });
}

#[test]
fn the_same_send_after_a_kill_is_one_message_on_both_wires() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut jay, mut bob) = (daemon.native("ann"), daemon.json("Jay"), daemon.native("bob"));
        send_durably(&mut ann, "bob", 1..=2);
        let send = json!({
            "type": "SEND", "id": "label-1", "to": "bob",
            "payload": { "kind": "message", "body": "from jay" },
            "payload_meta": { "requires_ack": true }, "delivery": { "requiresAck": true },
        });
        jay.say(&send);
        for _ in 0..3 {
            let (heard, _) = bob.delivery();
            bob.acknowledge(heard.header.sequence);
        }
        bob.barrier();
        daemon.until("all is acknowledged", |daemon| daemon.agent("bob").unwrap()["waiting"] == 0);
        daemon.ask(QueryKind::Message, &json!({ "from": "ann", "number": 2 }));
        let token = jay.token();
        let resume = ann.welcome.resume;
        let daemon = again(daemon, way.cores);
        let (mut ann, _) = NativePeer::resume(daemon.stream(), "ann", resume, Sequence::default());
        assert!(ann.welcome.resumed);
        assert_eq!(ann.welcome.number, 2, "the sender goes on behind what it has sent");
        let mut bob = daemon.native("bob");
        // Both again, and then something new: only that arrives.
        let fields = ann.fields(2, "bob", "2");
        let mut bytes = Vec::new();
        agent_relay::wire::encode::send(&mut bytes, agent_relay::wire::Kind::Send, &fields, Sequence::default());
        std::io::Write::write_all(&mut ann.stream, &bytes).unwrap();
        let mut jay = JsonPeer::bare(daemon.stream(), "Jay");
        jay.hello(Some(&token));
        jay.say(&send);
        jay.barrier();
        ann.barrier();
        let mut cat = daemon.native("cat");
        cat.send("bob", "new", Wants::default());
        assert_eq!(bob.delivery().1, "new");
        assert_eq!(daemon.status()["messages"]["duplicates"], 2);
    });
}

#[test]
fn subscriptions_and_presence_survive_a_kill() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob, left) = (daemon.native("ann"), daemon.client("bob"), daemon.client("left"));
        bob.subscribe("builds").unwrap();
        left.close().unwrap();
        daemon.until("bob has subscribed", |daemon| daemon.agent("bob").unwrap()["topics"] == json!(["builds"]));
        daemon.until_away("left");
        // Each is committed behind what its recipient's home had to say before.
        send_durably(&mut ann, "bob", 1..=1);
        send_durably(&mut ann, "left", 1..=1);
        let daemon = again(daemon, way.cores);
        assert_eq!(daemon.agent("bob").unwrap()["topics"], json!(["builds"]));
        let mut ann = daemon.native("ann");
        ann.send("#builds", "green", Wants::default());
        ann.send("*", "everybody", Wants::default());
        ann.barrier();
        daemon.until("both wait for bob", |daemon| {
            let waiting = daemon.agent("bob").unwrap()["waiting"].as_u64().unwrap();
            (2..=3).contains(&waiting) && waiting >= 2 && daemon.agent("left").unwrap()["waiting"] == 1
        });
    });
}

#[test]
fn a_stop_writes_everything_down_and_the_next_start_reads_it() {
    let mut daemon = Daemon::start(URING_TWO);
    let mut ann = daemon.native("ann");
    drop(daemon.client("bob"));
    daemon.until_away("bob");
    // Nobody asks for a receipt: what was accepted before an orderly stop is there after it.
    for number in 1..=1000 {
        ann.send("bob", &number.to_string(), Wants::default());
    }
    ann.barrier();
    daemon.until("they wait", |daemon| daemon.agent("bob").unwrap()["waiting"] == 1000);
    daemon.signal(Signal::TERM);
    assert!(daemon.end().success(), "{}", daemon.said());
    let daemon = again(daemon, 1);
    assert_eq!(daemon.agent("bob").unwrap()["waiting"], 1000);
    assert_eq!(daemon.status()["store"]["checkpoint_lag_segments"], 0);
    let mut bob = daemon.native("bob");
    for number in 1..=1000 {
        let (heard, text) = bob.delivery();
        assert_eq!(text, number.to_string());
        if number % 64 == 0 {
            bob.acknowledge(heard.header.sequence);
        }
    }
}

#[test]
fn a_megabyte_of_spilled_mail_comes_back_after_a_kill() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut ann = daemon.native("ann");
        drop(daemon.client("bob"));
        daemon.until_away("bob");
        let text = "z".repeat(8 * 1024);
        for _ in 0..512 {
            ann.send("bob", &text, Wants::default());
        }
        send_durably(&mut ann, "bob", 1..=1);
        let daemon = again(daemon, way.cores);
        let mut bob = daemon.native("bob");
        for _ in 0..512 {
            let (heard, got) = bob.delivery();
            assert_eq!(got.len(), text.len());
            bob.acknowledge(heard.header.sequence);
        }
        assert_eq!(bob.delivery().1, "1");
    });
}

#[test]
fn strict_delivers_only_what_is_durable_and_relaxed_gives_receipts_all_the_same() {
    for mode in ["strict", "relaxed"] {
        let daemon = Setup::new(EPOLL_TWO).argument("--durability").argument(mode).start();
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.native("bob"));
        send_durably(&mut ann, "bob", 1..=20);
        for number in 1..=20 {
            let (heard, text) = bob.delivery();
            assert_eq!(text, number.to_string());
            bob.acknowledge(heard.header.sequence);
        }
        let status = daemon.status();
        assert_eq!(status["durability"]["mode"], mode);
        // One text, wherever it is read, and no number of milliseconds that a slow disk would make untrue.
        let survives = status["durability"]["survives"].as_str().unwrap();
        let shown = daemon.run(&["status", "--global"]);
        assert!(String::from_utf8_lossy(&shown.stdout).contains(survives), "{survives}");
        assert!(!survives.contains("ms") && (mode == "strict" || survives.contains("slow or refuses")), "{survives}");
        let daemon = again(daemon, 2);
        assert!(daemon.agent("bob").is_some());
    }
}

/// Submits `text` under this label; says how far it was reported, or why not.
fn submit(daemon: &Daemon, to: &str, label: &str) -> client::Fate {
    let message = client::Outgoing { to, text: Some(label), label, ..Default::default() };
    let address = client::Address::Unix(daemon.socket());
    client::submit(&address, &message, "deploy-script", Wants::DURABLE, PATIENCE).unwrap().fate
}

#[test]
fn what_is_submitted_again_in_doubt_is_one_message_also_over_a_kill() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut bob = daemon.native("bob");
        let durable = client::Fate::Reached(ReceiptState::Durable);
        // Where names live depends on the daemon: some of these recipients are neighbours, others are not.
        let names: Vec<String> = (0..4).map(|number| format!("agent-{number}")).collect();
        let mut others: Vec<NativePeer> = names.iter().map(|name| daemon.native(name)).collect();
        // Nobody has that name: refused, and so tried anew each time.
        for _ in 0..2 {
            assert!(matches!(submit(&daemon, "nobody", "into the void"), client::Fate::NotFound(_)));
        }
        for _ in 0..3 {
            assert_eq!(submit(&daemon, "bob", "the first"), durable);
            assert_eq!(submit(&daemon, "*", "to all"), durable);
            for name in &names {
                assert_eq!(submit(&daemon, name, &format!("for {name}")), durable);
            }
        }
        assert_eq!(submit(&daemon, "bob", "the second"), durable);
        for (name, other) in names.iter().zip(&mut others) {
            let heard = [other.delivery().1, other.delivery().1];
            assert_eq!(heard, ["to all".to_owned(), format!("for {name}")]);
        }
        let (before, mut handled) = (bob.welcome, Sequence::default());
        for expected in ["the first", "to all", "the second"] {
            let (heard, text) = bob.delivery();
            assert_eq!(text, expected);
            handled = heard.header.sequence;
        }
        let daemon = again(daemon, 3 - way.cores.min(2));
        assert_eq!(submit(&daemon, "bob", "the first"), durable);
        assert_eq!(submit(&daemon, "bob", "the third"), durable);
        let (mut bob, _) = NativePeer::resume(daemon.stream(), "bob", before.resume, handled);
        assert_eq!(bob.delivery().1, "the third", "what was submitted before the kill does not come again");
        let mut late = daemon.native("nobody");
        assert_eq!(submit(&daemon, "nobody", "into the void"), durable);
        assert_eq!(late.delivery().1, "into the void");
    });
}
