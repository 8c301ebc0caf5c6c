//! A reader that has stopped slows no one else down, and costs a bounded amount of memory.

use crate::harness::{Daemon, PATIENCE, Setup, every_way};
use crate::peers::{NativePeer, Owned};
use agent_relay::wire::{FLAG_REDELIVERED, Wants};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::time::Instant;

const AGENTS: usize = 500;

/// Half of `peers` send to the other half, `messages` each, in one thread; everything must arrive.
fn talk(peers: &mut [NativePeer], messages: usize, text: &str) {
    let (senders, receivers) = peers.split_at_mut(AGENTS / 2);
    for (sender, receiver) in senders.iter_mut().zip(receivers.iter_mut()) {
        let mut bytes = Vec::new();
        for _ in 0..messages {
            bytes.extend(sender.encode(&receiver.name, text, Wants::default()));
        }
        sender.stream.write_all(&bytes).unwrap();
    }
    for receiver in receivers {
        let last = (0..messages).map(|_| receiver.delivery().0.header.sequence).last().unwrap();
        receiver.acknowledge(last);
    }
}

#[test]
fn one_stopped_reader_does_not_slow_five_hundred_others_down_or_fill_the_memory() {
    every_way(|way| {
        let daemon = Setup::new(way).settings("[limits]\nowed_bytes = 4194304\n").start();
        let mut stopped = daemon.native("stopped");
        let mut peers: Vec<NativePeer> = (0..AGENTS).map(|index| daemon.native(&format!("agent-{index}"))).collect();
        talk(&mut peers, 5, "warm-up");
        // Anonymous memory: the store's file is mapped, and its pages are the kernel's to keep or drop.
        let before_kib = daemon.proc_status("RssAnon");

        // Everybody floods the stopped one: 500 × 20 × 1 KiB is ten times what may wait for it in memory, and more than
        // twice what it may be owed.
        let text = "y".repeat(1024);
        for peer in &mut peers {
            let mut bytes = Vec::new();
            for _ in 0..20 {
                bytes.extend(peer.encode("stopped", &text, Wants::ACCEPTED));
            }
            peer.stream.write_all(&bytes).unwrap();
        }
        // Each SEND has an answer: accepted, or BUSY with a reason and a time.
        let mut accepted: HashMap<String, HashSet<u64>> = HashMap::new();
        let mut busy = 0;
        for peer in &mut peers {
            let mine = accepted.entry(peer.name.clone()).or_default();
            let mut answered = 0;
            while answered < 20 {
                match peer.hear().unwrap().frame {
                    Owned::Receipts(receipts) => {
                        for receipt in receipts {
                            mine.extend(receipt.id.number..receipt.id.number + u64::from(receipt.count));
                            answered += receipt.count as usize;
                        }
                    }
                    Owned::Busy { reason, retry_after_ms, .. } => {
                        assert_eq!(reason, "recipient_full");
                        assert!(retry_after_ms > 0);
                        busy += 1;
                        answered += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        let accepted_count: usize = accepted.values().map(HashSet::len).sum();
        assert!(busy > 6_000 && (2_800..4_000).contains(&accepted_count), "{busy} busy, {accepted_count} accepted");

        // The others talk as if nothing were.
        let begun = Instant::now();
        talk(&mut peers, 50, "unimpeded");
        let took = begun.elapsed();
        assert!(took < PATIENCE / 3, "{took:?} for {} messages", AGENTS / 2 * 50);
        let after_kib = daemon.proc_status("RssAnon");
        assert!(after_kib < before_kib + 48 * 1024, "{before_kib} KiB before, {after_kib} KiB after");
        assert_eq!(daemon.agent("stopped").unwrap()["waiting"], accepted_count);

        // It reads again: what was accepted is there, each sender's in order; nothing that was refused.
        let mut last: HashMap<u64, u64> = HashMap::new();
        let mut names: HashMap<u64, HashSet<u64>> = HashMap::new();
        for (name, numbers) in accepted {
            names.insert(agent_relay::base::AgentId::of(name.as_bytes()).0, numbers);
        }
        let mut first_times = 0;
        while first_times < accepted_count {
            let heard = stopped.hear().unwrap();
            let Owned::Deliver { id, .. } = heard.frame else { panic!("{heard:?}") };
            // On a loaded machine what it has not acknowledged for 5 s comes again, and says so.
            let again = heard.header.flags & FLAG_REDELIVERED != 0;
            if again && last.get(&id.sender.0).is_some_and(|last| id.number <= *last) {
                continue;
            }
            assert!(last.insert(id.sender.0, id.number).is_none_or(|last| last < id.number), "in order");
            assert!(
                names.get_mut(&id.sender.0).is_some_and(|numbers| numbers.remove(&id.number)),
                "accepted, and once"
            );
            first_times += 1;
            if first_times % 64 == 0 || first_times == accepted_count {
                stopped.acknowledge(heard.header.sequence);
            }
        }
        daemon.until("nothing waits", |daemon| daemon.status()["messages"]["waiting"] == 0);
    });
}

#[test]
fn a_sender_that_never_reads_its_answers_is_closed_before_it_fills_the_memory() {
    let daemon = Daemon::start(crate::harness::EPOLL_TWO);
    let mut deaf = daemon.native("deaf");
    let mut stream = deaf.stream.try_clone().unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // Each gets a refusal of its own; nobody reads them.
    let mut sent = 0;
    let before_kib = daemon.proc_status("VmRSS");
    let begun = Instant::now();
    loop {
        let mut bytes = Vec::new();
        for _ in 0..500 {
            bytes.extend(deaf.encode("not/a/name", "x", Wants::default()));
        }
        if stream.write_all(&bytes).is_err() {
            break;
        }
        sent += 500;
        assert!(begun.elapsed() < PATIENCE, "{sent} SENDs and still open");
    }
    let after_kib = daemon.proc_status("VmRSS");
    assert!(after_kib < before_kib + 64 * 1024, "{before_kib} KiB before, {after_kib} KiB after");
    assert_eq!(daemon.status()["closes"]["slow_reader"], 1);
    let (mut ann, mut bob) = (daemon.native("ann"), daemon.client("bob"));
    ann.send("bob", "all is well", Wants::default());
    assert_eq!(crate::peers::text(&mut bob), "all is well");
}
