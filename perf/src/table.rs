//! The report: one table per workload with ratios to the floor, and each target with what was found.
#![forbid(unsafe_code)]

use crate::outcome::Outcome;
use crate::run::{JOBS, Job, Medians};
use crate::stored::Figure;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Everything, in Markdown whose tables are aligned in a terminal too.
pub fn report(medians: &Medians, stored: &[Figure], conditions: &str, directory: &Path) -> String {
    let mut text = String::from(
        "# Results\n\nWritten by `scripts/perf.sh`; `results/` holds the raw lines. To repeat it:\n\n\
         ```sh\nscripts/perf.sh --baseline PATH     # all tables; PATH: a relay program from before the store\n\
         scripts/perf.sh --only durable-pair --merge   # some of them, the others kept\n\
         target/release/relay-perf stored     # ten million messages; about 10 GB of disk\n```\n\n",
    );
    text += &machine();
    let _ = write!(
        text,
        "\nConditions: {conditions}, rounds interleaved, the server pinned to core 0 and the load to core 1 (two shards: \
         cores 0 and 1, the load still on 1). Unix sockets; nats-server has none and is reached over loopback TCP. \
         The relay keeps everything on disk (`--durability batch`, the default: delivery does not wait for the disk); \
         relay-memory is the program before it had a store; the peers keep nothing, except as said below. \
         What is kept lies on a real disk (`--disk`), sockets on tmpfs. Floor and splice carry the very frames the relay's clients send. CPU is the server's, all \
         threads, from schedstat. In the open loop the generator spins, elsewhere it sleeps in epoll.\n\n\
         Acknowledgements: the relay's receivers acknowledge cumulatively; it rides in the header of whatever they send \
         next, else goes as a frame of its own after 64 messages or 10 ms. JSON receivers acknowledge each message, as \
         npm clients do. The peers' workloads have none (Redis pub/sub, NATS core, MQTT QoS 0), \
         except where streams are named.\n\n\
         On disk: log-nosync and log append the same frames to a file before they forward them, one write a turn, log with \
         one fdatasync. lmdb is a bare LMDB commit of one record, no socket. redis-everysec and redis-always: XADD, \
         XREADGROUP, XACK with `appendonly yes` and that `appendfsync`; with always, XADD is answered after the fsync, so \
         WAITAOF (Redis 7.2) adds nothing. jetstream: one file stream, publications answered, cumulative acknowledgements \
         by push consumers; nats-server before 2.10 has no `sync_interval: always` (its answer does not wait for the disk, \
         it syncs every two minutes), so here it is the rival without durability. In tables on disk a message counts when \
         its sender hears that it is on disk, and latency runs from SEND to that word.\n\n\
         relay-tcp and relay-tls are the relay over loopback TCP, without and with TLS 1.3; nats-tls shows a certificate of the \
         same authority and kind (ECDSA, P-256, made for the run). relay-auth asks everybody for an API key and has 1,000 of \
         them. A handshake counts when the server's ticket is there (nats-server sends its own earlier: there, when the client \
         is done). The relay runs under an enterprise evaluation licence.\n"
    );
    for job in JOBS {
        let rows: Vec<_> = medians.iter().filter(|((key, _, _), _)| *key == job.key).collect();
        if !rows.is_empty() {
            let _ = write!(text, "\n## {}\n\n{}{}", job.title, workload(job, medians), threads(job, medians));
        }
    }
    if !stored.is_empty() {
        let _ = write!(text, "\n## A large store\n\n{}", figures(stored));
    }
    // The store alone, as `bench/` measures it.
    if let Ok(alone) = fs::read_to_string(directory.join("results").join("store.txt")) {
        let _ = write!(text, "\n## The store alone\n\n{}\n", alone.trim_end());
    }
    let _ = write!(text, "\n## Targets\n\n{}", targets(medians, stored));
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

/// Where the relay's time goes, where it has more than one thread.
fn threads(job: &Job, medians: &Medians) -> String {
    let mut text = String::new();
    for ((key, protocol, body), found) in medians {
        if *key != job.key || *protocol != "relay" || found.cpu_us_by_thread.len() < 2 {
            continue;
        }
        let each = found.cpu_us_by_thread.iter().filter(|(_, us)| **us >= 0.0005);
        let each: Vec<String> = each.map(|(thread, us)| format!("{thread} {us:.3}")).collect();
        let _ = write!(text, "\nrelay, {body} B, CPU us/msg by thread: {}.\n", each.join(", "));
    }
    text
}

/// What was measured over a large store.
fn figures(stored: &[Figure]) -> String {
    let head = ["what", "count", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "note"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for one in stored {
        let ms = |number: f64| if number == 0.0 { "-".to_owned() } else { format!("{number:.3}") };
        rows.push(vec![
            one.what.clone(),
            one.count.to_string(),
            ms(one.p50_ms),
            ms(one.p99_ms),
            ms(one.p999_ms),
            ms(one.max_ms),
            one.note.clone(),
        ]);
    }
    aligned(&rows)
}

fn workload(job: &Job, medians: &Medians) -> String {
    match job.key {
        "hello" | "handshakes" | "resumed" => return accepts(job, medians),
        "stopped" => return stopped(medians),
        _ => {}
    }
    let silent = matches!(job.key, "idle" | "idle-tls" | "connect");
    let ratios = ["p50", "p99", "CPU"].map(|number| format!("{number} : {}", job.base));
    let head: &[&str] = if silent {
        &["server", "HELLOs/s", "CPU us/HELLO", "bytes/agent", "idle CPU %"]
    } else {
        &["server", "body", "p50 us", "p99 us", "p99.9 us", "CPU us/msg", "msg/s", &ratios[0], &ratios[1], &ratios[2]]
    };
    let mut rows = vec![head.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()];
    let mut of_job: Vec<_> = medians.iter().filter(|((key, _, _), _)| *key == job.key).collect();
    of_job.sort_by_key(|((_, protocol, body), _)| (*body, place(protocol)));
    for ((_, protocol, body), found) in of_job {
        let floor = medians.get(&(job.key, job.base, *body));
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

/// What it costs to let agents in.
/// What a reader that has stopped costs the others.
fn stopped(medians: &Medians) -> String {
    let head = ["server", "p99 us before", "during", "during : before", "p50 us", "CPU us/msg", "msg/s"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for ((_, protocol, _), found) in medians.iter().filter(|((key, _, _), _)| *key == "stopped") {
        rows.push(vec![
            (*protocol).to_owned(),
            format!("{:.1}", found.p99_before_us),
            format!("{:.1}", found.p99_us),
            format!("{:.2}", found.p99_us / found.p99_before_us),
            format!("{:.1}", found.p50_us),
            format!("{:.3}", found.cpu_us_per_message),
            format!("{:.0}", found.per_second),
        ]);
    }
    aligned(&rows)
}

fn accepts(job: &Job, medians: &Medians) -> String {
    let beside = job.key == "hello";
    let head: &[&str] = if beside {
        &[
            "server",
            "HELLOs",
            "WELCOME p50 us",
            "p99 us",
            "load p99 us before",
            "during",
            "during : before",
            "CPU us/msg",
        ]
    } else {
        &["server", "handshakes/s", "CPU us each", "p50 us", "p99 us", "resumed", "CPU : nats"]
    };
    let mut rows = vec![head.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()];
    let mut of_job: Vec<_> = medians.iter().filter(|((key, _, _), _)| *key == job.key).collect();
    of_job.sort_by_key(|((_, protocol, body), _)| (*body, place(protocol)));
    for ((_, protocol, body), found) in of_job {
        let ratio = |number: f64, base: f64| if base > 0.0 { format!("{:.2}", number / base) } else { "-".to_owned() };
        let base = medians.get(&(job.key, job.base, *body)).map_or(0.0, |base| base.cpu_us_per_message);
        let (p50, p99) = (format!("{:.1}", found.accept_p50_us), format!("{:.1}", found.accept_p99_us));
        rows.push(if beside {
            vec![
                (*protocol).to_owned(),
                found.accepts.to_string(),
                p50,
                p99,
                format!("{:.1}", found.p99_before_us),
                format!("{:.1}", found.p99_us),
                ratio(found.p99_us, found.p99_before_us),
                format!("{:.3}", found.cpu_us_per_message),
            ]
        } else {
            vec![
                (*protocol).to_owned(),
                format!("{:.0}", found.per_second),
                format!("{:.1}", found.cpu_us_per_message),
                p50,
                p99,
                format!("{:.0} %", found.resumed * 100.0),
                ratio(found.cpu_us_per_message, base),
            ]
        });
    }
    aligned(&rows)
}

/// The relay's place in a table is after the floor's.
fn place(protocol: &str) -> usize {
    let order = [
        "floor",
        "splice",
        "lmdb",
        "log",
        "log-nosync",
        "relay",
        "relay-tcp",
        "relay-tls",
        "relay-auth",
        "relay-memory",
        "relay-json",
    ];
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
fn targets(medians: &Medians, stored: &[Figure]) -> String {
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
    for body in [128, 1024] {
        let of = |protocol| value("pingpong", protocol, body, p50);
        let found = ratio(of("relay"), of("relay-memory"));
        check(format!("ping-pong {body} B: p50, with a store to without"), true, 1.1, found);
    }
    check(
        "one pair, 256 in flight, all kept: CPU us, all threads".into(),
        true,
        0.80,
        value("pair", "relay", 128, cpu),
    );
    let pair_cpu = |protocol| value("pair", protocol, 128, cpu);
    for peer in ["redis-everysec", "jetstream"] {
        let found = ratio(pair_cpu("relay"), pair_cpu(peer));
        check(format!("one pair, all kept: CPU, relay to {peer}"), true, 1.0, found);
    }
    let durable = |job, protocol, number| value(job, protocol, 128, number);
    let single = |protocol| durable("durable-single", protocol, p50);
    check("on disk, one at a time: p50, relay to lmdb".into(), true, 1.4, ratio(single("relay"), single("lmdb")));
    check(
        "on disk, one at a time: p50, relay to redis-always".into(),
        true,
        1.0,
        ratio(single("relay"), single("redis-always")),
    );
    let pair = |protocol, number| durable("durable-pair", protocol, number);
    check("on disk, one pair: messages per second".into(), false, 500_000.0, pair("relay", rate));
    check("on disk, one pair: CPU us, all threads".into(), true, 1.2, pair("relay", cpu));
    let found = ratio(pair("relay", rate), pair("redis-always", rate));
    check("on disk, one pair: messages per second, relay to redis (500 : 200)".into(), false, 2.5, found);
    let pairs = |protocol, number| durable("durable-pairs", protocol, number);
    check("on disk, 64 pairs: messages per second".into(), false, 1_000_000.0, pairs("relay", rate));
    check("on disk, 64 pairs: CPU us, all threads".into(), true, 0.8, pairs("relay", cpu));
    check("on disk, 64 pairs: p99 us".into(), true, 2_500.0, pairs("relay", p99));
    let found = ratio(pairs("relay", rate), pairs("redis-always", rate));
    check("on disk, 64 pairs: messages per second, relay to redis (1,000 : 238)".into(), false, 1000.0 / 238.0, found);
    // As for the floor below: the bounds were set where the log, one flush a turn, had the figures in brackets.
    for (name, most, bound, number) in [
        ("messages per second, relay to log (0.50 : 0.90)", false, 0.50 / 0.90, rate),
        ("CPU, relay to log (1.2 : 0.39)", true, 1.2 / 0.39, cpu),
    ] {
        check(format!("on disk, one pair: {name}"), most, bound, ratio(pair("relay", number), pair("log", number)));
    }
    for (name, most, bound, number) in [
        ("messages per second, relay to log (1.0 : 1.7)", false, 1.0 / 1.7, rate),
        ("CPU, relay to log (0.8 : 0.40)", true, 0.8 / 0.40, cpu),
        ("p99, relay to log (2,500 : 874)", true, 2500.0 / 874.0, p99),
    ] {
        check(format!("on disk, 64 pairs: {name}"), most, bound, ratio(pairs("relay", number), pairs("log", number)));
    }
    for (what, bound, found) in stored.iter().filter_map(|one| one.target.as_ref()) {
        check(what.clone(), true, *bound, Some(*found));
    }
    // What was asked of the relay without a store is asked of it still, where it was measured.
    let plain = if at("pair", "relay-memory", 128).is_some() { "relay-memory" } else { "relay" };
    check(format!("one pair, 256 in flight, {plain}: CPU us"), true, 0.40, value("pair", plain, 128, cpu));
    check(format!("64 pairs, 16 in flight, {plain}: CPU us"), true, 0.40, value("pairs", plain, 128, cpu));
    check("64 pairs, 16 in flight: messages per second".into(), false, 2.2e6, value("pairs", "relay", 128, rate));
    check("64 pairs, 16 in flight: p99 us".into(), true, 700.0, value("pairs", "relay", 128, p99));
    let open = |protocol| value("open", protocol, 128, p99);
    check("open loop 50,000/s: p99, relay to floor".into(), true, 1.5, ratio(open("relay"), open("floor")));
    check("open loop 50,000/s: CPU us".into(), true, 9.0, value("open", "relay", 128, cpu));
    check("1 to 100: CPU us per delivery".into(), true, 0.22, value("fan100", "relay", 128, cpu));
    // The absolute bounds were set on a machine where the floor had the figures in brackets; a ratio to the floor of the same
    // run says the same thing on any machine.
    let pair = |number| ratio(value("pair", plain, 128, number), value("pair", "floor", 128, number));
    let pairs = |number| ratio(value("pairs", plain, 128, number), value("pairs", "floor", 128, number));
    let fan = ratio(value("fan100", "relay", 128, cpu), value("fan100", "floor", 128, cpu));
    check(format!("one pair: CPU, {plain} to floor (0.40 : 0.11)"), true, 0.40 / 0.11, pair(cpu));
    check(format!("64 pairs: CPU, {plain} to floor (0.40 : 0.20)"), true, 0.40 / 0.20, pairs(cpu));
    check(format!("64 pairs: messages per second, {plain} to floor (2.2 : 4.4)"), false, 2.2 / 4.4, pairs(rate));
    check(format!("64 pairs: p99, {plain} to floor (700 : 340)"), true, 700.0 / 340.0, pairs(p99));
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
    let tls = |protocol, number| value("tls", protocol, 1024, number);
    let found = ratio(tls("relay-tls", cpu), tls("relay-tcp", cpu));
    check("TLS, one pair 1 KiB: CPU, TLS to plain TCP".into(), true, 2.0, found);
    for job in ["auth-pair", "auth-pingpong"] {
        let found = ratio(value(job, "relay-auth", 128, cpu), value(job, "relay", 128, cpu));
        check(format!("{job}, 1,000 live keys: CPU, with authentication to without"), true, 1.02, found);
    }
    let hello = |number| value("hello", "relay-auth", 128, number);
    let found = ratio(hello(p99), hello(|one| one.p99_before_us));
    check("1,000 HELLOs/s with keys beside full load: p99, during to before".into(), true, 1.1, found);
    let stopped = |number| value("stopped", "relay", 128, number);
    let found = ratio(stopped(p99), stopped(|one| one.p99_before_us));
    check("one stopped reader among 500 agents: p99 of the others, during to before".into(), true, 1.1, found);
    for job in ["handshakes", "resumed"] {
        let found = ratio(value(job, "relay-tls", 128, rate), value(job, "nats-tls", 128, rate));
        check(format!("TLS 1.3 {job}: per second, relay to nats"), false, 1.0, found);
    }
    let found = value("idle-tls", "relay-tls", 128, |one| one.bytes_per_agent);
    check("1,000 silent agents over TLS: bytes each".into(), true, 40.0 * 1024.0, found);
    let connect = |number| value("connect", "relay", 128, number);
    check("10,000 agents: bytes each".into(), true, 4096.0, connect(|one| one.bytes_per_agent));
    check("10,000 agents: HELLOs per second".into(), false, 30_000.0, connect(rate));
    check("10,000 agents: heartbeats, CPU %".into(), true, 2.0, connect(|one| one.idle_cpu_percent));
    aligned(&rows)
}
