//! kill -9 at random moments under load: what had a durable receipt is there afterwards, in order, once.

use crate::daemon::Place;
use crate::dice;
use crate::swarm::Swarm;
use crate::tally::{Tally, cycles};

/// The store of one run of so many cycles; then a new one.
const CYCLES_A_STORE: u64 = 100;

/// A key for stores that nobody else will ever open.
const DB_KEY: &str = "relay-key-v1:6b6579206f6620746865206661756c742074657374732c203332206279746573";

fn crashes(durability: &str, encrypted: bool, cycles: u64, seed: u64, tally: &mut Tally, total: u64) {
    let mut left = cycles;
    while left > 0 {
        let these = left.min(CYCLES_A_STORE);
        left -= these;
        let outside = tempfile::Builder::new().prefix("relay-crash").tempdir().unwrap();
        let mut place = Place::new(&outside.path().join("data"), outside.path());
        std::fs::create_dir(&place.data).unwrap();
        place.arguments = vec!["--durability".into(), durability.into()];
        if encrypted {
            place.environment.push(("AGENT_RELAY_DB_KEY".into(), DB_KEY.into()));
        }
        let mut swarm = Swarm::new(16, 4, place.socket(), dice::mixed(seed ^ left));
        swarm.ledger.set_strict(durability == "strict");
        for cycle in 0..these {
            let daemon = place.start();
            tally.started(&daemon);
            swarm.gather();
            swarm.broadcasts = cycle > 0;
            // Every other time what is owed comes together with new load.
            if swarm.dice.one_in(2) {
                swarm.calm();
            }
            if swarm.dice.one_in(3) {
                let times = 1 + swarm.dice.below(20);
                swarm.pace(times);
            } else {
                let (window, receipts) = (1 << swarm.dice.below(7), 1 + swarm.dice.below(1500));
                swarm.saturate(window, receipts);
                if swarm.dice.one_in(3) {
                    swarm.shake();
                    let receipts = swarm.dice.below(300);
                    swarm.saturate(window, receipts);
                }
            }
            daemon.kill();
            swarm.bury();
            tally.cycle("kill -9", total);
        }
        let daemon = place.start();
        tally.started(&daemon);
        swarm.gather();
        swarm.calm();
        daemon.kill();
        tally.add(&swarm);
    }
}

#[test]
fn nothing_durable_is_lost_when_the_daemon_is_killed() {
    let seed = dice::seed("kill -9");
    let total = cycles(20);
    let mut tally = Tally::new();
    // A quarter of them with deliveries that wait for the disk: then no message may ever have a second place.
    let part = total / 4;
    crashes("strict", false, part, dice::mixed(seed), &mut tally, total);
    // Another on an encrypted store.
    crashes("batch", true, part, dice::mixed(seed ^ 1), &mut tally, total);
    crashes("batch", false, total - 2 * part, seed, &mut tally, total);
    tally.tell("kill -9, 16 native and 4 JSON agents, 2 shards");
}

#[test]
fn a_daemon_that_is_left_alone_keeps_every_promise_to_agents_whose_connections_break() {
    let seed = dice::seed("left alone");
    let outside = tempfile::Builder::new().prefix("relay-alone").tempdir().unwrap();
    let place = Place::new(&outside.path().join("data"), outside.path());
    std::fs::create_dir(&place.data).unwrap();
    let mut swarm = Swarm::new(16, 4, place.socket(), seed);
    let daemon = place.start();
    for round in 0..8 {
        swarm.gather();
        swarm.broadcasts = round > 0;
        swarm.saturate(32, 1000);
        swarm.shake();
        swarm.pace(5);
        swarm.calm();
    }
    daemon.kill();
    assert!(swarm.ledger.durable >= 8000 && swarm.ledger.second_places == 0);
}

#[test]
fn mail_beyond_the_memory_of_a_recipient_comes_from_the_store_in_order() {
    let seed = dice::seed("spilled mail");
    let outside = tempfile::Builder::new().prefix("relay-spill").tempdir().unwrap();
    let place = Place::new(&outside.path().join("data"), outside.path());
    std::fs::create_dir(&place.data).unwrap();
    let mut swarm = Swarm::new(8, 0, place.socket(), seed);
    let daemon = place.start();
    swarm.gather();
    swarm.kibibytes = 8;
    swarm.saturate(1000, 4000);
    swarm.calm();
    swarm.saturate(1000, 4000);
    daemon.kill();
    swarm.bury();
    swarm.comes_back(&place);
}
