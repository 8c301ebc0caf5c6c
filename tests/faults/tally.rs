//! What a run of many cycles amounts to, as one line for people and for perf/results.

use crate::daemon::Daemon;
use crate::swarm::Swarm;
use std::time::{Duration, Instant};

/// How many cycles to run: so many in `cargo test`, or what the scripts ask for.
pub(crate) fn cycles(usual: u64) -> u64 {
    std::env::var("RELAY_FAULT_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Says that a test cannot run here; past the test harness, which hides what passing tests say.
pub(crate) fn skip(what: &str, name: &str, why: &str) {
    use std::io::Write;
    let line = format!("SKIP({what}) {name}: {why}\n");
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// Sums over a run.
pub(crate) struct Tally {
    begun: Instant,
    pub cycles: u64,
    durable: u64,
    delivered: u64,
    repeats: u64,
    second_places: u64,
    resumed: u64,
    slowest_start: Duration,
}

impl Tally {
    pub(crate) fn new() -> Tally {
        Tally {
            begun: Instant::now(),
            cycles: 0,
            durable: 0,
            delivered: 0,
            repeats: 0,
            second_places: 0,
            resumed: 0,
            slowest_start: Duration::ZERO,
        }
    }

    pub(crate) fn started(&mut self, daemon: &Daemon) {
        self.slowest_start = self.slowest_start.max(daemon.ready_after);
    }

    /// A cycle is over; long runs say so now and then.
    pub(crate) fn cycle(&mut self, what: &str, of: u64) {
        self.cycles += 1;
        if of <= 60 || self.cycles.is_multiple_of(20) || self.cycles == of {
            eprintln!("{what}: cycle {} of {of}, {:.0} s", self.cycles, self.begun.elapsed().as_secs_f64());
        }
    }

    pub(crate) fn add(&mut self, swarm: &Swarm) {
        let ledger = &swarm.ledger;
        self.durable += ledger.durable;
        self.delivered += ledger.delivered;
        self.repeats += ledger.repeats;
        self.second_places += ledger.second_places;
        self.resumed += ledger.resumed;
    }

    /// The line that the scripts keep. Whoever gets here has lost nothing: the ledger has seen to that.
    pub(crate) fn tell(&self, what: &str) {
        eprintln!(
            "RESULT {what}: {} cycles, {} messages durable, 0 lost, {} delivered ({} came before they were durable and anew \
             after a crash; {} repeats, all marked), {} sessions resumed, slowest start {} ms, {:.0} s",
            self.cycles,
            self.durable,
            self.delivered,
            self.second_places,
            self.repeats - self.second_places,
            self.resumed,
            self.slowest_start.as_millis(),
            self.begun.elapsed().as_secs_f64(),
        );
    }
}
