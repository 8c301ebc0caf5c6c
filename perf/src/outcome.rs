//! What one run measured: a line of JSON, from the generator to the table and into `perf/results/`.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The numbers of one run. What a workload does not measure stays 0.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Messages received (deliveries, for a fan-out; agents, for connect).
    pub messages: u64,
    /// How long they took.
    pub seconds: f64,
    /// Messages per second.
    pub per_second: f64,
    /// CPU of the server, all threads, per message.
    pub cpu_us_per_message: f64,
    /// CPU of the server in percent of a core.
    pub cpu_percent: f64,
    /// Latency: round trip (ping-pong), one way (pairs, open), until the last copy (fan-out).
    pub p50_us: f64,
    /// 99 of 100 are faster.
    pub p99_us: f64,
    /// 999 of 1000 are faster.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// Resident memory of the server at the end.
    pub resident_bytes: u64,
    /// What each connected agent added to it.
    pub bytes_per_agent: f64,
    /// CPU of the server while all agents are silent, in percent of a core.
    pub idle_cpu_percent: f64,
    /// Agents let in beside the load (hello), or handshakes.
    pub accepts: u64,
    /// From connecting to WELCOME, or to the end of the handshake.
    pub accept_p50_us: f64,
    /// 99 of 100 are faster.
    pub accept_p99_us: f64,
    /// The load's p99 before others came (hello), or before one stopped reading (stopped).
    pub p99_before_us: f64,
    /// Which part of the handshakes resumed an earlier session.
    pub resumed: f64,
    /// CPU of the server per message, by the name of the thread; those of one name together.
    pub cpu_us_by_thread: BTreeMap<String, f64>,
}

impl Outcome {
    /// Each number's median over the rounds.
    pub fn median(rounds: &[Outcome]) -> Outcome {
        let middle = |number: fn(&Outcome) -> f64| middle(rounds.iter().map(number).collect());
        let threads: BTreeSet<&String> = rounds.iter().flat_map(|one| one.cpu_us_by_thread.keys()).collect();
        let of_thread = |thread: &String| {
            let of = |one: &Outcome| one.cpu_us_by_thread.get(thread).copied().unwrap_or(0.0);
            (thread.clone(), self::middle(rounds.iter().map(of).collect()))
        };
        Outcome {
            messages: middle(|one| one.messages as f64) as u64,
            seconds: middle(|one| one.seconds),
            per_second: middle(|one| one.per_second),
            cpu_us_per_message: middle(|one| one.cpu_us_per_message),
            cpu_percent: middle(|one| one.cpu_percent),
            p50_us: middle(|one| one.p50_us),
            p99_us: middle(|one| one.p99_us),
            p999_us: middle(|one| one.p999_us),
            max_us: middle(|one| one.max_us),
            resident_bytes: middle(|one| one.resident_bytes as f64) as u64,
            bytes_per_agent: middle(|one| one.bytes_per_agent),
            idle_cpu_percent: middle(|one| one.idle_cpu_percent),
            accepts: middle(|one| one.accepts as f64) as u64,
            accept_p50_us: middle(|one| one.accept_p50_us),
            accept_p99_us: middle(|one| one.accept_p99_us),
            p99_before_us: middle(|one| one.p99_before_us),
            resumed: middle(|one| one.resumed),
            cpu_us_by_thread: threads.into_iter().map(of_thread).collect(),
        }
    }
}

/// The middle number; between two, their mean.
pub fn middle(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let half = numbers.len() / 2;
    match numbers.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => numbers[half],
        _ => (numbers[half - 1] + numbers[half]) / 2.0,
    }
}
