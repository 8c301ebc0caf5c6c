//! `--durability relaxed`: what has a receipt is kept as in every mode; of what has none, a kill or a power cut takes what
//! was accepted in the last second, from the end, and nothing older.

use crate::daemon::{Daemon, Place};
use crate::dice;
use crate::mount::{Ext4, with_own_mounts};
use crate::swarm::{PATIENCE, Swarm};
use crate::tally::{Tally, skip};
use agent_relay::client::{Address, Client, Incoming, Options, Outgoing};
use agent_relay::wire::Wants;
use std::time::{Duration, Instant};

/// A commit begins at most this long after the first message that it holds.
const INTERVAL: Duration = Duration::from_secs(1);
/// What a commit, and a machine with other things to do, may take on top.
const MARGIN: Duration = Duration::from_secs(1);
const CYCLES: u64 = 3;

fn relaxed(place: &mut Place) {
    place.arguments = vec!["--durability".into(), "relaxed".into()];
}

fn connect(place: &Place, name: &str) -> Client {
    Client::connect(&Address::Unix(place.socket()), &Options::named(name)).unwrap()
}

/// Messages are accepted for three seconds, one a millisecond; then `lose` ends the daemon, and what was lost is counted.
fn lost_of_the_last_second(place: &Place, cycle: u64, lose: impl FnOnce(Daemon)) -> u64 {
    let (sender, reader) = (format!("ann-{cycle}"), format!("bob-{cycle}"));
    let daemon = place.start();
    drop(connect(place, &reader));
    let mut ann = connect(place, &sender);
    let (begun, mut accepted) = (Instant::now(), Vec::new());
    while begun.elapsed() < INTERVAL + 2 * MARGIN {
        let text = accepted.len().to_string();
        ann.send(&Outgoing { to: &reader, text: Some(&text), wants: Wants::ACCEPTED, ..Outgoing::default() }).unwrap();
        match ann.next(PATIENCE).unwrap() {
            Some(Incoming::Receipt(_)) => accepted.push(Instant::now()),
            other => panic!("{other:?} instead of a receipt"),
        }
        // The pace: nothing comes meanwhile.
        assert!(ann.next(Duration::from_millis(1)).unwrap().is_none());
    }
    let ended = Instant::now();
    lose(daemon);
    drop(ann);
    let daemon = place.start();
    let mut bob = connect(place, &reader);
    let kept_for_certain = accepted.iter().filter(|at| ended - **at > INTERVAL + MARGIN).count();
    let last_heard = |client: &mut Client, silence| match client.next(silence).unwrap() {
        Some(Incoming::Message(message)) => message.text().parse::<usize>().ok(),
        _ => None,
    };
    let mut found = 0;
    while let Some(number) = last_heard(&mut bob, if found < kept_for_certain { PATIENCE } else { MARGIN }) {
        assert_eq!(number, found, "what is lost is lost from the end");
        found += 1;
    }
    assert!(found >= kept_for_certain, "{found} of {kept_for_certain} that were accepted a while before the end");
    assert!(found <= accepted.len());
    daemon.kill();
    (accepted.len() - found) as u64
}

#[test]
fn a_killed_relaxed_daemon_loses_at_most_the_last_second_and_nothing_that_has_a_receipt() {
    let outside = tempfile::Builder::new().prefix("relay-relaxed").tempdir().unwrap();
    let mut place = Place::new(&outside.path().join("data"), outside.path());
    std::fs::create_dir(&place.data).unwrap();
    relaxed(&mut place);
    let lost: u64 = (0..CYCLES).map(|cycle| lost_of_the_last_second(&place, cycle, |daemon| drop(daemon.kill()))).sum();
    // Otherwise the mode would cost receipts a second and give nothing for it.
    assert!(lost > 0, "it commits more often than it says");
    let mut swarm = Swarm::new(8, 2, place.socket(), dice::seed("relaxed"));
    let mut tally = Tally::new();
    for _ in 0..CYCLES {
        let daemon = place.start();
        tally.started(&daemon);
        swarm.gather();
        let receipts = 1 + swarm.dice.below(600);
        swarm.saturate(64, receipts);
        daemon.kill();
        swarm.bury();
        tally.cycle("relaxed, kill -9", CYCLES);
    }
    swarm.comes_back(&place);
    tally.add(&swarm);
    tally.tell(&format!("relaxed, kill -9 ({lost} without a receipt lost)"));
}

#[test]
fn a_relaxed_daemon_loses_at_most_the_last_second_when_the_power_is_cut() {
    with_own_mounts("relaxed power cut", || {
        let disk = match Ext4::new(200) {
            Ok(disk) => disk,
            Err(why) => return skip("root", "relaxed power cut", &why),
        };
        let outside = tempfile::Builder::new().prefix("relay-relaxed").tempdir().unwrap();
        let mut place = Place::new(&disk.path().join("data"), outside.path());
        std::fs::create_dir(&place.data).unwrap();
        rustix::fs::sync();
        relaxed(&mut place);
        let cut = |daemon: Daemon| {
            disk.cut();
            daemon.kill();
            disk.restore();
        };
        let lost: u64 = (0..CYCLES).map(|cycle| lost_of_the_last_second(&place, cycle, cut)).sum();
        assert!(lost > 0, "it commits more often than it says");
        let mut swarm = Swarm::new(8, 2, place.socket(), dice::seed("relaxed power cut"));
        for _ in 0..CYCLES {
            let daemon = place.start();
            swarm.gather();
            let receipts = 1 + swarm.dice.below(600);
            swarm.saturate(64, receipts);
            swarm.disk_fails();
            disk.cut();
            daemon.kill();
            swarm.bury();
            disk.restore();
            swarm.disk_works();
        }
        swarm.comes_back(&place);
        eprintln!(
            "RESULT relaxed, power cut: {} durable, 0 of them lost; {lost} without a receipt lost",
            swarm.ledger.durable
        );
    });
}
