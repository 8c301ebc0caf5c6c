//! The report: one table per workload with ratios to the floor, and each target with what was found.
#![forbid(unsafe_code)]

use crate::outcome::Outcome;
use crate::run::{JOBS, Job, Medians};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Everything, in Markdown whose tables are aligned in a terminal too.
pub fn report(medians: &Medians, conditions: &str, directory: &Path) -> String {
    let mut text = String::from("# Results\n\nWritten by `scripts/perf.sh`; `results/` holds the raw lines.\n\n");
    text += &machine();
    let _ = write!(
        text,
        "\nConditions: {conditions}, rounds interleaved, the server pinned to core 0 and the load to core 1 (two shards: \
         cores 0 and 1, the load still on 1). Unix sockets; nats-server has none and is reached over loopback TCP. \
         Persistence off. Floor and splice carry the very frames the relay's clients send. CPU is the server's, all \
         threads, from schedstat. In the open loop the generator spins, elsewhere it sleeps in epoll.\n\n\
         Acknowledgements: the relay's receivers acknowledge cumulatively; it rides in the header of whatever they send \
         next, else goes as a frame of its own after 64 messages or 10 ms. JSON receivers acknowledge each message, as \
         npm clients do. The peers' workloads have none (Redis pub/sub, NATS core, MQTT QoS 0).\n"
    );
    for job in JOBS {
        let rows: Vec<_> = medians.iter().filter(|((key, _, _), _)| *key == job.key).collect();
        if !rows.is_empty() {
            let _ = write!(text, "\n## {}\n\n{}", job.title, workload(job, medians));
        }
    }
    let _ = write!(text, "\n## Targets\n\n{}", targets(medians));
    if let Ok(paths) = fs::read_to_string(directory.join("HOT-PATHS.md")) {
        let _ = write!(text, "\n## Hot paths\n\n{paths}");
    }
    text
}

fn machine() -> String {
    let line = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let found = text.lines().find(|line| line.starts_with(key)).and_then(|line| line.split_once(':'));
        found.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut text = format!(
        "Machine: {}, {cores} cores, {}, Linux {}.\n\n",
        line("/proc/cpuinfo", "model name"),
        line("/proc/meminfo", "MemTotal"),
        kernel.trim()
    );
    for (program, argument) in [
        ("redis-server", "--version"),
        ("nats-server", "--version"),
        ("/usr/sbin/mosquitto", "-h"),
        ("node", "--version"),
        ("rustc", "--version"),
    ] {
        if let Ok(output) = Command::new(program).arg(argument).output() {
            let said = String::from_utf8_lossy(&output.stdout);
            let _ = writeln!(text, "- {program}: {}", said.lines().next().unwrap_or("no version"));
        }
    }
    text
}

fn workload(job: &Job, medians: &Medians) -> String {
    let silent = matches!(job.key, "idle" | "connect");
    let head: &[&str] = if silent {
        &["server", "HELLOs/s", "CPU us/HELLO", "bytes/agent", "idle CPU %"]
    } else {
        &[
            "server",
            "body",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "CPU us/msg",
            "msg/s",
            "p50 : floor",
            "p99 : floor",
            "CPU : floor",
        ]
    };
    let mut rows = vec![head.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()];
    let mut of_job: Vec<_> = medians.iter().filter(|((key, _, _), _)| *key == job.key).collect();
    of_job.sort_by_key(|((_, protocol, body), _)| (*body, place(protocol)));
    for ((_, protocol, body), found) in of_job {
        let floor = medians.get(&(job.key, "floor", *body));
        let ratio = |number: fn(&Outcome) -> f64| match floor.map(number) {
            Some(base) if base > 0.0 => format!("{:.2}", number(found) / base),
            _ => "-".to_owned(),
        };
        rows.push(if silent {
            vec![
                (*protocol).to_owned(),
                format!("{:.0}", found.per_second),
                format!("{:.1}", found.cpu_us_per_message),
                format!("{:.0}", found.bytes_per_agent),
                format!("{:.2}", found.idle_cpu_percent),
            ]
        } else {
            vec![
                (*protocol).to_owned(),
                body.to_string(),
                format!("{:.1}", found.p50_us),
                format!("{:.1}", found.p99_us),
                format!("{:.1}", found.p999_us),
                format!("{:.3}", found.cpu_us_per_message),
                format!("{:.0}", found.per_second),
                ratio(|one| one.p50_us),
                ratio(|one| one.p99_us),
                ratio(|one| one.cpu_us_per_message),
            ]
        });
    }
    aligned(&rows)
}

/// The relay's place in a table is after the floor's.
fn place(protocol: &str) -> usize {
    let order = ["floor", "splice", "relay", "relay-json"];
    order.iter().position(|one| *one == protocol).unwrap_or(order.len())
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if column == 0 { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
        }
        text += "|\n";
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(*width);
                text += &if column == 0 { format!("| {dashes} ") } else { format!("| {}: ", &dashes[1..]) };
            }
            text += "|\n";
        }
    }
    text
}

/// Each target of the issue: what, bound, found, met or missed.
fn targets(medians: &Medians) -> String {
    let at = |job: &'static str, protocol: &'static str, body: usize| medians.get(&(job, protocol, body));
    let value = |job, protocol, body, number: fn(&Outcome) -> f64| at(job, protocol, body).map(number);
    let ratio = |one: Option<f64>, base: Option<f64>| Some(one? / base.filter(|base| *base > 0.0)?);
    let p50: fn(&Outcome) -> f64 = |one| one.p50_us;
    let p99: fn(&Outcome) -> f64 = |one| one.p99_us;
    let p999: fn(&Outcome) -> f64 = |one| one.p999_us;
    let cpu: fn(&Outcome) -> f64 = |one| one.cpu_us_per_message;
    let rate: fn(&Outcome) -> f64 = |one| one.per_second;
    let mut rows = vec![["target", "bound", "found", ""].map(str::to_owned).to_vec()];
    let mut check = |what: String, most: bool, bound: f64, found: Option<f64>| {
        let verdict = match found {
            None => "not measured",
            Some(found) if (found <= bound) == most || found == bound => "met",
            Some(_) => "MISSED",
        };
        let sign = if most { "≤" } else { "≥" };
        let number = |number: f64| if number >= 1000.0 { format!("{number:.0}") } else { format!("{number:.3}") };
        rows.push(vec![
            what,
            format!("{sign} {}", number(bound)),
            found.map_or("-".to_owned(), number),
            verdict.to_owned(),
        ]);
    };
    for body in [128, 1024] {
        let of = |protocol, number| value("pingpong", protocol, body, number);
        check(
            format!("ping-pong {body} B: p50, relay to floor"),
            true,
            1.04,
            ratio(of("relay", p50), of("floor", p50)),
        );
        check(
            format!("ping-pong {body} B: p99, relay to floor"),
            true,
            1.06,
            ratio(of("relay", p99), of("floor", p99)),
        );
        check(
            format!("ping-pong {body} B: p50, floor to splice"),
            true,
            1.05,
            ratio(of("floor", p50), of("splice", p50)),
        );
        for peer in ["redis", "mosquitto", "nats"] {
            for (name, number) in [("p50", p50), ("p99", p99), ("p99.9", p999)] {
                let found = ratio(of("relay", number), of(peer, number));
                check(format!("ping-pong {body} B: {name}, relay to {peer}"), true, 1.0, found);
            }
        }
    }
    check("one pair, 256 in flight: CPU us".into(), true, 0.40, value("pair", "relay", 128, cpu));
    check("64 pairs, 16 in flight: CPU us".into(), true, 0.40, value("pairs", "relay", 128, cpu));
    check("64 pairs, 16 in flight: messages per second".into(), false, 2.2e6, value("pairs", "relay", 128, rate));
    check("64 pairs, 16 in flight: p99 us".into(), true, 700.0, value("pairs", "relay", 128, p99));
    let open = |protocol| value("open", protocol, 128, p99);
    check("open loop 50,000/s: p99, relay to floor".into(), true, 1.5, ratio(open("relay"), open("floor")));
    check("open loop 50,000/s: CPU us".into(), true, 9.0, value("open", "relay", 128, cpu));
    check("1 to 100: CPU us per delivery".into(), true, 0.22, value("fan100", "relay", 128, cpu));
    // The absolute bounds were set on a machine where the floor had the figures in brackets; a ratio to the floor of the same
    // run says the same thing on any machine.
    let pair = |number| ratio(value("pair", "relay", 128, number), value("pair", "floor", 128, number));
    let pairs = |number| ratio(value("pairs", "relay", 128, number), value("pairs", "floor", 128, number));
    let fan = ratio(value("fan100", "relay", 128, cpu), value("fan100", "floor", 128, cpu));
    check("one pair: CPU, relay to floor (0.40 : 0.11)".into(), true, 0.40 / 0.11, pair(cpu));
    check("64 pairs: CPU, relay to floor (0.40 : 0.20)".into(), true, 0.40 / 0.20, pairs(cpu));
    check("64 pairs: messages per second, relay to floor (2.2 : 4.4)".into(), false, 2.2 / 4.4, pairs(rate));
    check("64 pairs: p99, relay to floor (700 : 340)".into(), true, 700.0 / 340.0, pairs(p99));
    check("1 to 100: CPU, relay to floor (0.22 : 0.13)".into(), true, 0.22 / 0.13, fan);
    let redis = |number| ratio(value("pairs", "relay", 128, number), value("pairs", "redis", 128, number));
    check("64 pairs: CPU, relay to redis (0.40 : 0.79)".into(), true, 0.40 / 0.79, redis(cpu));
    // Some thirty fan-outs to a run: their slowest is the first, which meets cold memory; floor and peers show the same.
    let usual = value("fan10000", "relay", 128, |one| one.p50_us / 1000.0);
    check("1 to 10,000: last byte, ms (median)".into(), true, 60.0, usual);
    for (name, number) in [("CPU", cpu), ("p50", p50)] {
        let found = ratio(value("cross", "relay", 128, number), value("same", "relay", 128, number));
        check(format!("two shards: {name}, crossing to not crossing"), true, 1.6, found);
    }
    check("1,000 silent agents: CPU %".into(), true, 1.0, value("idle", "relay", 128, |one| one.idle_cpu_percent));
    let json = |protocol, number| value("json", protocol, 128, number);
    let faster = ratio(json("relay-json", rate), json("agent-relay", rate));
    check("JSON wire: throughput, relay to agent-relay".into(), false, 50.0, faster);
    let slower = ratio(json("relay-json", p99), json("agent-relay", p99));
    check("JSON wire: p99, relay to agent-relay".into(), true, 1.0 / 3.0, slower);
    let connect = |number| value("connect", "relay", 128, number);
    check("10,000 agents: bytes each".into(), true, 4096.0, connect(|one| one.bytes_per_agent));
    check("10,000 agents: HELLOs per second".into(), false, 30_000.0, connect(rate));
    check("10,000 agents: heartbeats, CPU %".into(), true, 2.0, connect(|one| one.idle_cpu_percent));
    aligned(&rows)
}
