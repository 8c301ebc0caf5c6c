//! What one run measured: a line of JSON, from the generator to the table and into `perf/results/`.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The numbers of one run. What a workload does not measure stays 0.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
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
}
