//! `relay-perf`: the benchmarks. Servers pinned to core 0, one load generator for all of them pinned to core 1.
//! `scripts/perf.sh` runs everything and writes `perf/RESULTS.md`.

mod floor;
mod load;
mod measure;
mod outcome;
mod run;
mod servers;
mod splice;
mod table;
mod talk;

use argh::FromArgs;
use load::{Plan, Workload};
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
    Load(LoadArguments),
    Run(run::RunArguments),
}

/// Forward frames by table and promise nothing: what the relay is measured against.
#[derive(FromArgs)]
#[argh(subcommand, name = "floor")]
struct FloorArguments {
    /// unix socket to listen on
    #[argh(positional)]
    path: String,
}

/// Join two connections with splice(2): what the floor is measured against.
#[derive(FromArgs)]
#[argh(subcommand, name = "splice")]
struct SpliceArguments {
    /// unix socket to listen on
    #[argh(positional)]
    path: String,
}

/// Put one load on one server and print one line of JSON.
#[derive(FromArgs)]
#[argh(subcommand, name = "load")]
struct LoadArguments {
    /// pingpong, pair, pairs, open, fanout, connect, same or cross
    #[argh(positional)]
    workload: String,
    /// floor, splice, relay, relay-json, redis, nats, mosquitto or agent-relay
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
    /// messages per second of the open loop, all pairs together (default 50000)
    #[argh(option, default = "50_000")]
    rate: u64,
    /// seconds measured (default 1.2)
    #[argh(option, default = "1.2")]
    seconds: f64,
    /// core of the generator (default 1)
    #[argh(option, default = "1")]
    core: usize,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let result = match arguments.command {
        Command::Floor(floor) => floor::serve(&floor.path).map_err(|error| error.to_string()),
        Command::Splice(splice) => splice::serve(&splice.path).map_err(|error| error.to_string()),
        Command::Load(load) => put_load(&load),
        Command::Run(run) => run::run(&run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay-perf: {error}");
            ExitCode::FAILURE
        }
    }
}

fn put_load(arguments: &LoadArguments) -> Result<(), String> {
    measure::pin(&[arguments.core]).map_err(|error| format!("core {}: {error}", arguments.core))?;
    measure::raise_descriptor_limit().map_err(|error| format!("descriptor limit: {error}"))?;
    let (workload, pairs) = match &arguments.workload[..] {
        "pingpong" => (Workload::PingPong, 1),
        "pair" => (Workload::Pairs, 1),
        "pairs" => (Workload::Pairs, arguments.pairs),
        "open" => (Workload::Open, arguments.pairs),
        "fanout" => (Workload::Fanout, arguments.pairs),
        "connect" => (Workload::Connect, arguments.pairs),
        "same" => (Workload::SameShard, arguments.pairs),
        "cross" => (Workload::CrossShard, arguments.pairs),
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
        warm_up: Duration::from_millis(300),
    };
    let outcome = match &arguments.protocol[..] {
        "floor" => load::run::<talk::native::Floor>(plan),
        "splice" => load::run::<talk::native::Splice>(plan),
        "relay" => load::run::<talk::native::Relay>(plan),
        "relay-json" | "agent-relay" => load::run::<talk::json::Json>(plan),
        "redis" => load::run::<talk::resp::Resp>(plan),
        "nats" => load::run::<talk::nats::Nats>(plan),
        "mosquitto" => load::run::<talk::mqtt::Mqtt>(plan),
        other => return Err(format!("there is no protocol {other:?}")),
    }?;
    println!("{}", serde_json::to_string(&outcome).expect("plain numbers"));
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
        std::thread::spawn(move || floor::serve(&path));
        Plan {
            workload,
            address,
            pid: 0,
            body_bytes: 128,
            window: 4,
            pairs,
            rate: 2_000,
            measured: Duration::from_millis(100),
            warm_up: Duration::from_millis(10),
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
            assert!(outcome.messages >= u64::from(pairs), "{name}: {outcome:?}");
        }
    }
}
