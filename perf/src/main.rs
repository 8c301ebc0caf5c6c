//! `relay-perf`: the benchmarks. Servers pinned to core 0, one load generator for all of them pinned to core 1.
//! `scripts/perf.sh` runs everything and writes `perf/RESULTS.md`.

mod access;
mod commit;
mod floor;
mod handshakes;
mod licence;
mod load;
mod measure;
mod outcome;
mod run;
mod servers;
mod splice;
mod stored;
mod table;
mod talk;

use argh::FromArgs;
use load::{Plan, Workload};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Measures relay beside its floor and its peers.
#[derive(FromArgs)]
struct Arguments {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Floor(FloorArguments),
    Splice(SpliceArguments),
    Commit(CommitArguments),
    Load(LoadArguments),
    Run(run::RunArguments),
    Stored(stored::StoredArguments),
}

/// Forward frames by table and promise nothing: what the relay is measured against.
#[derive(FromArgs)]
#[argh(subcommand, name = "floor")]
struct FloorArguments {
    /// unix socket to listen on
    #[argh(positional)]
    path: String,
    /// append everything to this file before it is forwarded
    #[argh(option)]
    journal: Option<String>,
    /// wait for the disk each time
    #[argh(switch)]
    flush: bool,
}

/// Join two connections with splice(2): what the floor is measured against.
#[derive(FromArgs)]
#[argh(subcommand, name = "splice")]
struct SpliceArguments {
    /// unix socket to listen on
    #[argh(positional)]
    path: String,
}

/// Commit records one by one to a bare LMDB environment and print one line of JSON.
#[derive(FromArgs)]
#[argh(subcommand, name = "commit")]
struct CommitArguments {
    /// an empty folder
    #[argh(positional)]
    folder: PathBuf,
    /// bytes of text in each record (default 128)
    #[argh(option, default = "128")]
    body: usize,
    /// seconds measured (default 1.2)
    #[argh(option, default = "1.2")]
    seconds: f64,
}

/// Put one load on one server and print one line of JSON.
#[derive(FromArgs)]
#[argh(subcommand, name = "load")]
struct LoadArguments {
    /// pingpong, pair, pairs, open, fanout, connect, same, cross, hello, stopped, handshakes or resumed
    #[argh(positional)]
    workload: String,
    /// floor, log, splice, relay, relay-tcp, relay-tls, relay-auth, relay-json, nats-tls, redis, streams, nats, jetstream, mosquitto or agent-relay
    #[argh(option)]
    protocol: String,
    /// unix socket path, or host:port
    #[argh(option)]
    address: String,
    /// process id of the server, for its CPU time and memory
    #[argh(option)]
    pid: u32,
    /// bytes of each message's text (default 128)
    #[argh(option, default = "128")]
    body: usize,
    /// messages in flight, per pair (default 16)
    #[argh(option, default = "16")]
    window: u32,
    /// pairs, listeners or agents (default 64)
    #[argh(option, default = "64")]
    pairs: u32,
    /// messages per second of the open loop, all pairs together, or HELLOs per second beside a load (default 50000)
    #[argh(option, default = "50_000")]
    rate: u64,
    /// seconds measured (default 1.2)
    #[argh(option, default = "1.2")]
    seconds: f64,
    /// core of the generator (default 1)
    #[argh(option, default = "1")]
    core: usize,
    /// count a message when its sender hears that it is on disk, instead of when it arrives
    #[argh(switch)]
    durable: bool,
    /// speak TLS and believe the authorities in this PEM file
    #[argh(option)]
    tls_ca: Option<PathBuf>,
    /// the name in the server's certificate (default localhost)
    #[argh(option, default = "String::from(\"localhost\")")]
    server_name: String,
    /// the API key that every agent shows
    #[argh(option)]
    key: Option<String>,
    /// a file of API keys, one a line: the agents take turns
    #[argh(option)]
    keys_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let result = match arguments.command {
        Command::Floor(floor) => serve_floor(&floor).map_err(|error| error.to_string()),
        Command::Splice(splice) => splice::serve(&splice.path).map_err(|error| error.to_string()),
        Command::Commit(commit) => commit::run(&commit.folder, commit.body, Duration::from_secs_f64(commit.seconds))
            .map(|outcome| say(&outcome)),
        Command::Load(load) => put_load(&load),
        Command::Run(run) => run::run(&run),
        Command::Stored(stored) => stored::run(&stored),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay-perf: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve_floor(arguments: &FloorArguments) -> std::io::Result<()> {
    let journal = arguments.journal.as_ref().map(|path| floor::Journal::create(path, arguments.flush)).transpose()?;
    floor::serve(&arguments.path, journal)
}

fn say(outcome: &outcome::Outcome) {
    println!("{}", serde_json::to_string(outcome).expect("plain numbers"));
}

fn put_load(arguments: &LoadArguments) -> Result<(), String> {
    measure::pin(&[arguments.core]).map_err(|error| format!("core {}: {error}", arguments.core))?;
    measure::raise_descriptor_limit().map_err(|error| format!("descriptor limit: {error}"))?;
    if let resume @ ("handshakes" | "resumed") = &arguments.workload[..] {
        let ca = arguments.tls_ca.as_deref().ok_or("handshakes need --tls-ca")?;
        let asked = handshakes::Handshakes {
            address: &arguments.address,
            pid: arguments.pid,
            ca,
            resume: resume == "resumed",
            greets: arguments.protocol.starts_with("nats"),
            measured: Duration::from_secs_f64(arguments.seconds),
        };
        return handshakes::run(&asked).map(|outcome| say(&outcome));
    }
    let (workload, pairs) = match &arguments.workload[..] {
        "pingpong" => (Workload::PingPong, 1),
        "pair" => (Workload::Pairs, 1),
        "pairs" => (Workload::Pairs, arguments.pairs),
        "open" => (Workload::Open, arguments.pairs),
        "fanout" => (Workload::Fanout, arguments.pairs),
        "connect" => (Workload::Connect, arguments.pairs),
        "same" => (Workload::SameShard, arguments.pairs),
        "cross" => (Workload::CrossShard, arguments.pairs),
        "hello" => (Workload::Hello, arguments.pairs),
        "stopped" => (Workload::Stopped, arguments.pairs),
        other => return Err(format!("there is no workload {other:?}")),
    };
    let plan = Plan {
        workload,
        address: arguments.address.clone(),
        pid: arguments.pid,
        body_bytes: arguments.body,
        window: arguments.window,
        pairs,
        rate: arguments.rate,
        measured: Duration::from_secs_f64(arguments.seconds),
        messages_min: 0,
        warm_up: Duration::from_millis(300),
        durable: arguments.durable,
        first_agent: 0,
        access: access::Access::read(
            arguments.tls_ca.as_deref(),
            &arguments.server_name,
            arguments.key.as_deref(),
            arguments.keys_file.as_deref(),
        )?,
    };
    if plan.durable && !matches!(plan.workload, Workload::Pairs) {
        return Err("only pair and pairs can wait for disks".to_owned());
    }
    let outcome = match &arguments.protocol[..] {
        "floor" => load::run::<talk::native::Floor>(plan),
        "splice" => load::run::<talk::native::Splice>(plan),
        "relay" | "relay-tcp" | "relay-tls" | "relay-auth" => load::run::<talk::native::Relay>(plan),
        "log" | "log-nosync" => load::run::<talk::native::Journal>(plan),
        "relay-memory" => load::run::<talk::native::Relay>(plan),
        "streams" | "redis-always" | "redis-everysec" => load::run::<talk::streams::Streams>(plan),
        "jetstream" => load::run::<talk::jetstream::JetStream>(plan),
        "relay-json" | "agent-relay" => load::run::<talk::json::Json>(plan),
        "redis" => load::run::<talk::resp::Resp>(plan),
        "nats" => load::run::<talk::nats::Nats>(plan),
        "mosquitto" => load::run::<talk::mqtt::Mqtt>(plan),
        other => return Err(format!("there is no protocol {other:?}")),
    }?;
    say(&outcome);
    Ok(())
}

#[cfg(test)]
mod smoke {
    use super::*;

    fn plan(workload: Workload, pairs: u32, name: &str) -> Plan {
        let path = std::env::temp_dir().join(format!("relay-perf-{}-{name}.sock", std::process::id()));
        let path = path.to_str().expect("a temporary directory in UTF-8").to_owned();
        let address = path.clone();
        // It serves until the tests end.
        std::thread::spawn(move || floor::serve(&path, None));
        Plan {
            workload,
            address,
            pid: 0,
            body_bytes: 128,
            window: 4,
            pairs,
            rate: 2_000,
            measured: Duration::from_millis(20),
            messages_min: 300,
            warm_up: Duration::from_millis(10),
            durable: false,
            first_agent: 0,
            access: access::Access::default(),
        }
    }

    #[test]
    fn messages_come_through_the_floor_in_every_workload() {
        for (workload, pairs, name) in [
            (Workload::PingPong, 1, "pingpong"),
            (Workload::Pairs, 4, "pairs"),
            (Workload::Open, 4, "open"),
            (Workload::Fanout, 10, "fanout"),
            (Workload::Connect, 10, "connect"),
        ] {
            let plan = plan(workload, pairs, name);
            let path = plan.address.clone();
            let outcome = load::run::<talk::native::Floor>(plan).expect(name);
            let _ = std::fs::remove_file(path);
            assert!(outcome.messages >= if name == "connect" { 10 } else { 300 }, "{name}: {outcome:?}");
        }
    }
}
