//! Every workload on every server, in interleaved rounds; medians, a table, and which targets are met.
#![forbid(unsafe_code)]

use crate::measure;
use crate::outcome::Outcome;
use crate::servers::{Places, Server};
use crate::stored;
use crate::table;
use argh::FromArgs;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Run everything and write RESULTS.md.
#[derive(FromArgs)]
#[argh(subcommand, name = "run")]
pub struct RunArguments {
    /// one short round, to see that all works; its numbers mean little
    #[argh(switch)]
    quick: bool,
    /// only these workloads or protocols (comma-separated)
    #[argh(option)]
    only: Option<String>,
    /// measure nothing: write RESULTS.md anew from results/latest.jsonl
    #[argh(switch)]
    render: bool,
    /// rounds (default 3)
    #[argh(option, default = "3")]
    rounds: usize,
    /// seconds of each measurement (default 1.2)
    #[argh(option, default = "1.2")]
    seconds: f64,
    /// the relay program (default: beside this one)
    #[argh(option)]
    relay: Option<PathBuf>,
    /// the unpacked npm package agent-relay 1.6.0 (default target/agent-relay/node_modules/agent-relay)
    #[argh(option, default = "PathBuf::from(\"target/agent-relay/node_modules/agent-relay\")")]
    agent_relay: PathBuf,
    /// keep the rest of results/latest.jsonl and replace what is measured now; for --only
    #[argh(switch)]
    merge: bool,
    /// a relay program from before the store: measured beside this one as relay-memory
    #[argh(option)]
    baseline: Option<PathBuf>,
    /// a folder on a real disk, for what servers keep (default /var/tmp)
    #[argh(option, default = "PathBuf::from(\"/var/tmp\")")]
    disk: PathBuf,
    /// the directory of RESULTS.md and results/ (default perf)
    #[argh(option, default = "PathBuf::from(\"perf\")")]
    directory: PathBuf,
}

/// A workload and its sizes.
pub struct Job {
    /// Its name in table and raw lines.
    pub key: &'static str,
    /// What the table says about it.
    pub title: &'static str,
    workload: &'static str,
    protocols: &'static [&'static str],
    bodies: &'static [usize],
    window: u32,
    pairs: u32,
    /// How many seconds, where the usual is not right.
    seconds: Option<f64>,
    /// Whether a message counts when its sender hears that it is on disk.
    pub durable: bool,
    /// Messages or HELLOs per second, where the usual is not right.
    rate: Option<u64>,
    /// Whom the others are compared with.
    pub base: &'static str,
}

const PEERS: &[&str] = &["floor", "relay", "redis", "nats", "mosquitto"];
const DURABLE_PEERS: &[&str] = &["log", "relay", "redis-always", "jetstream"];
const BOTH: &[usize] = &[128, 1024];
const SMALL: &[usize] = &[128];

/// All of them.
pub const JOBS: &[Job] = &[
    Job {
        key: "pingpong",
        title: "Ping-pong between two agents (round trip; CPU per message, two to a round trip)",
        workload: "pingpong",
        protocols: &["floor", "splice", "relay", "relay-memory", "redis", "nats", "mosquitto"],
        bodies: BOTH,
        window: 1,
        pairs: 1,
        seconds: None,
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "pair",
        title: "One sender to one receiver, 256 in flight",
        workload: "pair",
        protocols: &[
            "floor",
            "log-nosync",
            "relay",
            "relay-memory",
            "redis",
            "redis-everysec",
            "nats",
            "jetstream",
            "mosquitto",
        ],
        bodies: BOTH,
        window: 256,
        pairs: 1,
        seconds: None,
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "pairs",
        title: "64 pairs, 16 in flight each",
        workload: "pairs",
        protocols: &["floor", "log-nosync", "relay", "relay-memory", "redis", "nats", "mosquitto"],
        bodies: BOTH,
        window: 16,
        pairs: 64,
        seconds: None,
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "open",
        title: "64 pairs, open loop at 50,000 messages per second (latency from the moment a message was due)",
        workload: "open",
        protocols: PEERS,
        bodies: BOTH,
        window: 1,
        pairs: 64,
        seconds: None,
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "fan100",
        title: "1 to 100 fan-out, 16 in flight (per delivery)",
        workload: "fanout",
        protocols: PEERS,
        bodies: BOTH,
        window: 16,
        pairs: 100,
        seconds: None,
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "fan10000",
        title: "1 to 9,990 fan-out, one at a time (latency until the last copy)",
        workload: "fanout",
        protocols: PEERS,
        bodies: SMALL,
        window: 1,
        pairs: 9_990,
        seconds: None,
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "same",
        title: "Two shards on cores 0 and 1, 64 pairs, 16 in flight: both ends on one shard",
        workload: "same",
        protocols: &["relay"],
        bodies: SMALL,
        window: 16,
        pairs: 64,
        seconds: None,
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "cross",
        title: "Two shards on cores 0 and 1, 64 pairs, 16 in flight: every message crosses",
        workload: "cross",
        protocols: &["relay"],
        bodies: SMALL,
        window: 16,
        pairs: 64,
        seconds: None,
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "json",
        title: "JSON wire, one sender to one receiver, 256 in flight, an ACK for each DELIVER",
        workload: "pair",
        protocols: &["relay-json", "agent-relay"],
        bodies: SMALL,
        window: 256,
        pairs: 1,
        seconds: Some(3.0),
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "idle",
        title: "1,000 agents, all silent",
        workload: "connect",
        protocols: &["relay"],
        bodies: SMALL,
        window: 1,
        pairs: 1_000,
        seconds: Some(15.0),
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "connect",
        title: "9,990 agents connect, then are silent",
        workload: "connect",
        protocols: PEERS,
        bodies: SMALL,
        window: 1,
        pairs: 9_990,
        // Long enough for each agent to be asked for two signs of life.
        seconds: Some(22.0),
        durable: false,
        rate: None,
        base: "floor",
    },
    Job {
        key: "durable-single",
        title: "On disk: one message at a time (from SEND to the word that it is on disk)",
        workload: "pair",
        protocols: &["lmdb", "log", "relay", "redis-always", "jetstream"],
        bodies: SMALL,
        window: 1,
        pairs: 1,
        seconds: None,
        durable: true,
        rate: None,
        base: "log",
    },
    Job {
        key: "durable-pair",
        title: "On disk: one sender to one receiver, 256 in flight (messages known to be on disk)",
        workload: "pair",
        protocols: DURABLE_PEERS,
        bodies: SMALL,
        window: 256,
        pairs: 1,
        seconds: None,
        durable: true,
        rate: None,
        base: "log",
    },
    Job {
        key: "durable-pairs",
        title: "On disk: 64 pairs, 16 in flight each (messages known to be on disk)",
        workload: "pairs",
        protocols: DURABLE_PEERS,
        bodies: SMALL,
        window: 16,
        pairs: 64,
        seconds: None,
        durable: true,
        rate: None,
        base: "log",
    },
    Job {
        key: "tls",
        title: "TCP on loopback, one sender to one receiver, 256 in flight: plain and TLS 1.3",
        workload: "pair",
        protocols: &["relay-tcp", "relay-tls"],
        bodies: BOTH,
        window: 256,
        pairs: 1,
        seconds: None,
        durable: false,
        rate: None,
        base: "relay-tcp",
    },
    Job {
        key: "auth-pingpong",
        title: "Ping-pong, without and with authentication by one of 1,000 live keys",
        workload: "pingpong",
        protocols: &["relay", "relay-auth"],
        bodies: SMALL,
        window: 1,
        pairs: 1,
        seconds: None,
        durable: false,
        rate: None,
        base: "relay",
    },
    Job {
        key: "auth-pair",
        title: "One sender to one receiver, 256 in flight, without and with authentication by one of 1,000 live keys",
        workload: "pair",
        protocols: &["relay", "relay-auth"],
        bodies: SMALL,
        window: 256,
        pairs: 1,
        seconds: None,
        durable: false,
        rate: None,
        base: "relay",
    },
    Job {
        key: "stopped",
        title: "249 pairs, 4 in flight each, beside a reader that has stopped and is sent 1,000 messages per second",
        workload: "stopped",
        protocols: &["relay"],
        bodies: SMALL,
        window: 4,
        pairs: 250,
        seconds: Some(3.0),
        durable: false,
        rate: Some(1_000),
        base: "relay",
    },
    Job {
        key: "hello",
        title: "1,000 HELLOs per second with keys, beside 64 pairs with 16 in flight each",
        workload: "hello",
        protocols: &["relay", "relay-auth"],
        bodies: SMALL,
        window: 16,
        pairs: 64,
        seconds: Some(3.0),
        durable: false,
        rate: Some(1_000),
        base: "relay",
    },
    Job {
        key: "handshakes",
        title: "Full TLS 1.3 handshakes, 16 at once, ECDSA P-256",
        workload: "handshakes",
        protocols: &["relay-tls", "nats-tls"],
        bodies: SMALL,
        window: 1,
        pairs: 1,
        seconds: Some(3.0),
        durable: false,
        rate: None,
        base: "nats-tls",
    },
    Job {
        key: "resumed",
        title: "TLS 1.3 handshakes that resume a session, 16 at once",
        workload: "resumed",
        protocols: &["relay-tls", "nats-tls"],
        bodies: SMALL,
        window: 1,
        pairs: 1,
        seconds: Some(3.0),
        durable: false,
        rate: None,
        base: "nats-tls",
    },
    Job {
        key: "idle-tls",
        title: "1,000 agents over TLS, all silent",
        workload: "connect",
        protocols: &["relay-tcp", "relay-tls"],
        bodies: SMALL,
        window: 1,
        pairs: 1_000,
        seconds: Some(5.0),
        durable: false,
        rate: None,
        base: "relay-tcp",
    },
];

/// Job, protocol, body: the medians of its rounds.
pub type Medians = BTreeMap<(&'static str, &'static str, usize), Outcome>;

/// Runs what `arguments` ask for.
pub fn run(arguments: &RunArguments) -> Result<(), String> {
    if arguments.render {
        return render(&arguments.directory);
    }
    let places = places(arguments)?;
    measure::raise_descriptor_limit().map_err(|error| format!("descriptor limit: {error}"))?;
    let mut outcomes: BTreeMap<(&'static str, &'static str, usize), Vec<Outcome>> = BTreeMap::new();
    let mut raw = String::new();
    let rounds = if arguments.quick { 1 } else { arguments.rounds };
    for round in 1..=rounds {
        for (job, body, protocol) in turns(arguments) {
            let seconds = seconds(job, protocol, arguments);
            let line = match measure_once(job, protocol, body, seconds, &places) {
                Ok(outcome) => {
                    let line = serde_json::json!({
                        "round": round, "job": job.key, "protocol": protocol, "body": body, "outcome": outcome,
                    });
                    outcomes.entry((job.key, protocol, body)).or_default().push(outcome);
                    line
                }
                Err(error) => {
                    eprintln!("round {round}, {}, {protocol}, {body} B: {error}", job.key);
                    serde_json::json!({
                        "round": round, "job": job.key, "protocol": protocol, "body": body, "error": error,
                    })
                }
            };
            let _ = writeln!(raw, "{line}");
        }
        eprintln!("round {round} of {rounds} done");
    }
    let medians: Medians = outcomes.into_iter().map(|(key, runs)| (key, Outcome::median(&runs))).collect();
    let conditions = if arguments.quick { "one short round".into() } else { format!("medians of {rounds} rounds") };
    let report = table::report(&medians, &[], &conditions, &arguments.directory);
    println!("{report}");
    let write = |path: &Path, text: &str| {
        fs::write(path, text).map_err(|error| format!("{} cannot be written: {error}", path.display()))
    };
    let results = arguments.directory.join("results");
    fs::create_dir_all(&results).map_err(|error| format!("{} cannot be made: {error}", results.display()))?;
    // A part or a quick look does not replace the whole.
    if arguments.quick || (arguments.only.is_some() && !arguments.merge) {
        return write(&results.join("partial.jsonl"), &raw);
    }
    let latest = results.join("latest.jsonl");
    let before = fs::read_to_string(&latest).unwrap_or_default();
    let what = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        (line["job"].to_string(), line["protocol"].to_string(), line["body"].to_string())
    };
    let measured: BTreeSet<_> = raw.lines().map(what).collect();
    // What was measured over a large store stays until it is measured again.
    let stays = |line: &&str| stored::is_one(line) || (arguments.merge && !measured.contains(&what(line)));
    let kept: String = before.lines().filter(stays).map(|line| format!("{line}\n")).collect();
    write(&latest, &(kept + &raw))?;
    render(&arguments.directory)
}

/// The report of the run whose raw lines were kept.
pub fn render(directory: &Path) -> Result<(), String> {
    let raw = directory.join("results").join("latest.jsonl");
    let lines = fs::read_to_string(&raw).map_err(|error| format!("{}: {error}", raw.display()))?;
    let mut outcomes: BTreeMap<(&'static str, &'static str, usize), Vec<Outcome>> = BTreeMap::new();
    for line in lines.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).map_err(|error| format!("{}: {error}", raw.display()))?;
        let Ok(outcome) = serde_json::from_value::<Outcome>(line["outcome"].clone()) else { continue };
        let body = line["body"].as_u64().unwrap_or(0) as usize;
        let key = JOBS.iter().find(|job| line["job"] == job.key).and_then(|job| {
            let protocol = job.protocols.iter().find(|protocol| line["protocol"] == **protocol)?;
            Some((job.key, *protocol, body))
        });
        if let Some(key) = key {
            outcomes.entry(key).or_default().push(outcome);
        }
    }
    // Workloads that were measured again, with more rounds, keep all of them.
    let fewest = outcomes.values().map(Vec::len).min().unwrap_or(0);
    let most = outcomes.values().map(Vec::len).max().unwrap_or(0);
    let rounds = if fewest == most { format!("{most}") } else { format!("{fewest} to {most}") };
    let medians: Medians = outcomes.into_iter().map(|(key, runs)| (key, Outcome::median(&runs))).collect();
    let report = table::report(&medians, &stored::figures(&lines), &format!("medians of {rounds} rounds"), directory);
    println!("{report}");
    fs::write(directory.join("RESULTS.md"), report).map_err(|error| format!("RESULTS.md cannot be written: {error}"))
}

fn places(arguments: &RunArguments) -> Result<Places, String> {
    let beside = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("relay");
    let absolute = |path: &Path| std::path::absolute(path).map_err(|error| error.to_string());
    Ok(Places {
        relay: absolute(arguments.relay.as_deref().unwrap_or(&beside))?,
        relay_memory: arguments.baseline.as_deref().map(absolute).transpose()?,
        disk: absolute(&arguments.disk)?,
        agent_relay: absolute(&arguments.agent_relay)?,
        agent_relay_script: absolute(&arguments.directory.join("agent-relay.mjs"))?,
    })
}

/// What one round measures, in order: the servers of one workload and body follow each other.
fn turns(arguments: &RunArguments) -> Vec<(&'static Job, usize, &'static str)> {
    let wanted = |names: [&str; 2]| match &arguments.only {
        Some(only) => only.split(',').any(|one| names.contains(&one)),
        None => true,
    };
    let mut turns = Vec::new();
    for job in JOBS {
        let bodies = if arguments.quick { SMALL } else { job.bodies };
        for body in bodies {
            let asked =
                |one: &&&str| wanted([job.key, one]) && (**one != "relay-memory" || arguments.baseline.is_some());
            turns.extend(job.protocols.iter().filter(asked).map(|one| (job, *body, *one)));
        }
    }
    turns
}

fn seconds(job: &Job, protocol: &str, arguments: &RunArguments) -> f64 {
    match job.seconds {
        _ if arguments.quick => 0.4,
        // Only the relay's own heartbeats are of interest.
        Some(_) if job.workload == "connect" && !protocol.starts_with("relay") => arguments.seconds,
        Some(seconds) => seconds,
        None => arguments.seconds,
    }
}

fn measure_once(job: &Job, protocol: &str, body: usize, seconds: f64, places: &Places) -> Result<Outcome, String> {
    let cores: &[usize] = if matches!(job.key, "same" | "cross") { &[0, 1] } else { &[0] };
    if protocol == "lmdb" {
        return commit_alone(body, seconds, places);
    }
    let server = Server::start(protocol, cores, places)?;
    let mut load = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    load.args(["load", job.workload, "--protocol", protocol, "--address", &server.address]);
    for (option, value) in [
        ("--pid", server.pid().to_string()),
        ("--body", body.to_string()),
        ("--window", job.window.to_string()),
        ("--pairs", job.pairs.to_string()),
        ("--seconds", seconds.to_string()),
    ] {
        load.args([option, &value]);
    }
    if job.durable {
        load.arg("--durable");
    }
    if let Some(rate) = job.rate {
        load.args(["--rate", &rate.to_string()]);
    }
    for (option, file) in [("--tls-ca", &server.ca), ("--keys-file", &server.keys)] {
        if let Some(file) = file {
            load.arg(option).arg(file);
        }
    }
    let output = load.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("{said} ({protocol} said: {})", server.last_words()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("the generator's answer: {error}"))
}

/// A bare LMDB commit on the servers' core, beside which one durable message is judged.
fn commit_alone(body: usize, seconds: f64, places: &Places) -> Result<Outcome, String> {
    let folder = places.disk.join(format!("relay-perf-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    command.arg("commit").arg(&folder).args(["--body", &body.to_string(), "--seconds", &seconds.to_string()]);
    let output = measure::on_cores(&[0], || command.output()).map_err(|error| error.to_string());
    let _ = fs::remove_dir_all(&folder);
    let output = output?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("the answer: {error}"))
}
