//! What a start costs with many agents known: `start FOLDER AGENTS` keeps that many rows in the folder and ends; with the
//! rows there it opens the store, reads them, and hands them to a heart, as a daemon does: once, as a process starts once.

use agent_relay::base::{AgentId, Mono, Now, Sequence, Shared};
use agent_relay::relay::{Profile, Relay, Remembered};
use agent_relay::store::{self, Follower, RowChange, Store};
use agent_relay::wire::Dialect;
use relay_bench::heart::options;
use std::error::Error;
use std::time::{Duration, Instant};

const WALL_MS: u64 = 1_790_000_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: start FOLDER AGENTS";
    let folder = arguments.next().ok_or(usage)?;
    let agents: u64 = arguments.next().ok_or(usage)?.parse()?;
    let began = Instant::now();
    let store = Store::open(store::Options::new(&folder, None))?;
    if store.snapshot()?.row(agent(0))?.is_none() {
        return fill(&store, agents);
    }
    let opened = began.elapsed();
    let began = Instant::now();
    let follower = Follower::recover(&store)?;
    let recovered = began.elapsed();
    let began = Instant::now();
    let known: Vec<AgentId> = follower.memory.read().rows().map(|row| row.agent).collect();
    let count = known.len();
    let mut heart = Relay::new(options(2));
    let rows = known.into_iter().filter_map(|agent| follower.row(agent));
    heart.restore(Now { mono: Mono(Mono::ms(1_000_000)), wall_ms: WALL_MS }, rows);
    let restored = began.elapsed();
    println!(
        "{count} agents: opened in {}, recovered in {}, restored in {}; {} KiB",
        ms(opened),
        ms(recovered),
        ms(restored),
        memory_kib()?
    );
    // What is freed at the end is no part of a start.
    std::process::exit(0)
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}

/// As agents are who were there for a while: a profile, a subscription, some labels, and for every tenth a native number.
fn fill(store: &Store, agents: u64) -> Result<(), Box<dyn Error>> {
    store.begin_epoch(1, 1)?;
    let rows: Vec<Remembered> = (0..agents).map(row).collect();
    for some in rows.chunks(128) {
        let changes: Vec<_> = some.iter().map(|row| RowChange { row, labels_pushed: row.sent.labels_pushed }).collect();
        store.keep_rows(&changes, &[])?;
    }
    Ok(())
}

fn name(number: u64) -> String {
    format!("known-{number:06}")
}

fn agent(number: u64) -> AgentId {
    AgentId::of(name(number).as_bytes())
}

fn row(number: u64) -> Remembered {
    let mut row = Remembered::new(agent(number));
    row.name = Some(name(number).into());
    (row.first_seen_ms, row.last_seen_ms, row.dialect) = (WALL_MS - 1_000_000, WALL_MS - 1_000, Dialect::Native);
    row.profile = Some(Shared::new(Profile { cli: "claude".into(), task: "build".into(), ..Profile::default() }));
    row.subscriptions.push((format!("team-{}", number % 100).into(), false));
    (0..8).for_each(|label| row.sent.take(1 << 63 | number << 16 | label));
    if number.is_multiple_of(10) {
        (1..=100).for_each(|number| row.sent.take(number));
    }
    (row.last, row.acknowledged) = (Sequence { epoch: 1, counter: 8 }, Sequence { epoch: 1, counter: 8 });
    row
}

fn memory_kib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}
