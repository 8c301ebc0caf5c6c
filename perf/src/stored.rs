//! A large store: how long a start takes, how fast history is read, and whether anybody notices retention and checkpoints.
//! Fills a store as writer and keeper do, then asks a real daemon on it.
#![forbid(unsafe_code)]

mod daemon;
mod fill;
mod known;

use crate::load::{self, Plan, Workload};
use crate::measure;
use crate::outcome::{Outcome, middle};
use crate::talk::native::Relay;
use agent_relay::client::{Address, ask};
use agent_relay::wire::QueryKind;
use argh::FromArgs;
use daemon::Daemon;
use fill::{Filled, Random};
use hdrhistogram::Histogram;
use known::Traffic;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Fill a store with millions of messages and measure the daemon on it.
#[derive(FromArgs)]
#[argh(subcommand, name = "stored")]
pub struct StoredArguments {
    /// messages stored (default 10000000)
    #[argh(option, default = "10_000_000")]
    messages: u64,
    /// agents known beside those who wrote them, for the checkpoints (default 98000)
    #[argh(option, default = "98_000")]
    known: u32,
    /// seconds of each load (default 4)
    #[argh(option, default = "4.0")]
    seconds: f64,
    /// pages of each kind of question, when nothing runs beside (default 300)
    #[argh(option, default = "300")]
    pages: u32,
    /// a folder on a real disk (default /var/tmp)
    #[argh(option, default = "PathBuf::from(\"/var/tmp\")")]
    disk: PathBuf,
    /// the relay program (default: beside this one)
    #[argh(option)]
    relay: Option<PathBuf>,
    /// the directory of RESULTS.md and results/ (default perf)
    #[argh(option, default = "PathBuf::from(\"perf\")")]
    directory: PathBuf,
    /// see that all works: keep neither lines nor report
    #[argh(switch)]
    quick: bool,
}

/// One line of the section: a distribution, or single numbers in `p50_ms`.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// How often.
    pub count: u64,
    /// The median, milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 are faster.
    pub p99_ms: f64,
    /// 999 of 1000 are faster.
    pub p999_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// What else there is to say.
    pub note: String,
    /// What is judged, its bound, and what was found.
    pub target: Option<(String, f64, f64)>,
}

const JOB: &str = "stored";
/// Messages of one page.
const PAGE: u32 = 100;
/// How long questions may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Starts of each kind.
const STARTS: usize = 3;
/// The core of the daemon, and everybody else's.
const CORES: [usize; 2] = [0, 1];

/// Whether this raw line is one of these figures.
pub fn is_one(line: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line["job"] == JOB)
}

/// The figures among raw lines.
pub fn figures(raw: &str) -> Vec<Figure> {
    let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok();
    let lines = raw.lines().filter_map(line).filter(|line| line["job"] == JOB);
    lines.filter_map(|line| serde_json::from_value(line["figure"].clone()).ok()).collect()
}

/// Fills, measures, and writes the lines and the report.
pub fn run(arguments: &StoredArguments) -> Result<(), String> {
    measure::raise_descriptor_limit().map_err(|error| format!("descriptor limit: {error}"))?;
    measure::pin(&CORES[1..]).map_err(|error| format!("core {}: {error}", CORES[1]))?;
    let beside = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("relay");
    let relay =
        std::path::absolute(arguments.relay.as_deref().unwrap_or(&beside)).map_err(|error| error.to_string())?;
    let folder = arguments.disk.join(format!("relay-stored-{}", std::process::id()));
    let measured = Measurement { arguments, relay, folder: folder.clone(), figures: Vec::new() }.run();
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    let _ = fs::remove_dir_all(&folder);
    let figures = measured.map_err(|error| format!("{error}; the relay's log: {}", last_lines(&log)))?;
    let mut lines = String::new();
    for figure in &figures {
        let _ =
            writeln!(lines, "{}", serde_json::json!({ "job": JOB, "messages": arguments.messages, "figure": figure }));
    }
    print!("{lines}");
    if arguments.quick {
        return Ok(());
    }
    let latest = arguments.directory.join("results").join("latest.jsonl");
    let before = fs::read_to_string(&latest).unwrap_or_default();
    let others: String = before.lines().filter(|line| !is_one(line)).map(|line| format!("{line}\n")).collect();
    fs::write(&latest, others + &lines).map_err(|error| format!("{}: {error}", latest.display()))?;
    crate::run::render(&arguments.directory)
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

struct Measurement<'a> {
    arguments: &'a StoredArguments,
    relay: PathBuf,
    folder: PathBuf,
    figures: Vec<Figure>,
}

impl Measurement<'_> {
    fn run(mut self) -> Result<Vec<Figure>, String> {
        // The daemon says by its first start where its store is.
        self.start("7d")?.stop()?;
        let store = daemon::store_folder(&self.folder)?;
        let began = Instant::now();
        let filled = fill::fill(&store, self.arguments.messages)?;
        let (file, used) = filled.file_bytes;
        let per_message = |bytes: u64| bytes / self.arguments.messages.max(1);
        self.figures.push(Figure {
            what: "filling, as writer and keeper do, 1,000 messages a commit".into(),
            count: self.arguments.messages,
            p50_ms: began.elapsed().as_secs_f64() * 1000.0,
            note: format!(
                "{} B a message, text 128 B; {} B of them in use; {} agents, {} topics, {} threads",
                per_message(file),
                per_message(used),
                fill::AGENTS,
                fill::TOPICS,
                filled.threads
            ),
            ..Figure::default()
        });
        self.starts()?;
        let daemon = self.start("7d")?;
        let mut random = Random::new(7);
        self.pages(&daemon, &filled, &mut random)?;
        let (quiet, _) = self.single(&daemon)?;
        daemon.stop()?;
        self.sweep(&quiet)?;
        self.checkpoints()?;
        Ok(self.figures)
    }

    fn start(&self, retention: &str) -> Result<Daemon, String> {
        Daemon::start(&self.relay, &self.folder, retention, &CORES[..1])
    }

    fn starts(&mut self) -> Result<(), String> {
        for cold in [true, false] {
            let mut times = Vec::new();
            let mut note = String::new();
            for _ in 0..STARTS {
                if cold && !daemon::drop_page_cache() {
                    note = "the page cache could not be emptied here: warm".into();
                }
                let daemon = self.start("7d")?;
                times.push(daemon.ready_after.as_secs_f64() * 1000.0);
                daemon.stop()?;
            }
            let what = format!("start until ready, page cache {}", if cold { "empty" } else { "warm" });
            eprintln!("{what}: {times:.1?} ms");
            let max_ms = times.iter().copied().fold(0.0, f64::max);
            self.figures.push(Figure {
                target: Some((format!("10 million stored: {what}, slowest of {STARTS}, ms"), 500.0, max_ms)),
                what,
                count: STARTS as u64,
                p50_ms: middle(times),
                max_ms,
                note,
                ..Figure::default()
            });
        }
        Ok(())
    }

    /// Pages of history of each kind, and messages by their ids: alone, then beside a full write load.
    fn pages(&mut self, daemon: &Daemon, filled: &Filled, random: &mut Random) -> Result<(), String> {
        for beside in [false, true] {
            for kind in fill::KINDS {
                let load = beside.then(|| {
                    let plan = self.plan(daemon, Workload::Pairs, 256, true);
                    thread::spawn(move || load::run::<Relay>(plan))
                });
                let mut times = histogram();
                loop {
                    let enough = match &load {
                        Some(load) => load.is_finished(),
                        None => times.len() >= u64::from(self.arguments.pages),
                    };
                    if enough {
                        break;
                    }
                    let (question, arguments) = filled.question(kind, PAGE, random);
                    let began = Instant::now();
                    let answer = ask(&daemon.address(), question, &arguments, PATIENCE);
                    let answer = answer.map_err(|error| format!("{kind}: {arguments}: {error}"))?;
                    times.saturating_record(began.elapsed().as_nanos() as u64);
                    if answer.len() < 20 {
                        return Err(format!("{kind}: {arguments}: nothing was found"));
                    }
                }
                let note = match load.map(thread::JoinHandle::join) {
                    None => String::new(),
                    Some(Ok(Ok(load))) => format!("beside {:.0} messages/s on disk", load.per_second),
                    Some(Ok(Err(error))) => return Err(format!("{kind}, the load beside: {error}")),
                    Some(Err(_)) => return Err("the load panicked".into()),
                };
                let what = format!("{kind}{}", if beside { ", beside full write load" } else { "" });
                let mut figure = figure(what.clone(), &times, note);
                figure.target = Some((format!("10 million stored: {what}: p99, ms"), 20.0, figure.p99_ms));
                self.add(figure);
            }
        }
        Ok(())
    }

    /// One durable message at a time.
    fn single(&mut self, daemon: &Daemon) -> Result<(Outcome, f64), String> {
        let began = Instant::now();
        let outcome = load::run::<Relay>(self.plan(daemon, Workload::Pairs, 1, true))?;
        self.add(of_load("one durable message at a time, nothing beside", &outcome, String::new()));
        Ok((outcome, began.elapsed().as_secs_f64()))
    }

    /// Three of six days are deleted while messages are sent.
    fn sweep(&mut self, quiet: &Outcome) -> Result<(), String> {
        let daemon = self.start("3d")?;
        let before = swept(&daemon)?;
        let outcome = load::run::<Relay>(self.plan(&daemon, Workload::Pairs, 1, true))?;
        let during = swept(&daemon)?;
        let began = Instant::now();
        let mut at_end = during;
        while !at_end.1 && began.elapsed() < Duration::from_secs(600) {
            thread::sleep(Duration::from_millis(200));
            at_end = swept(&daemon)?;
        }
        let whole = if during.1 { "; THE SWEEP ENDED EARLIER" } else { "" };
        let note = format!("{} messages deleted meanwhile, {} in all{whole}", during.0 - before.0, at_end.0);
        let mut found = of_load("one durable message at a time, during a retention sweep", &outcome, note);
        found.target = Some((
            "retention sweep: p99 of a durable message, more than without, ms".into(),
            5.0,
            (outcome.p99_us - quiet.p99_us) / 1000.0,
        ));
        self.add(found);
        daemon.stop()
    }

    /// With few agents active, then with all that may be known: does anybody notice the checkpoints?
    fn checkpoints(&mut self) -> Result<(), String> {
        let daemon = self.start("3d")?;
        let began = Instant::now();
        known::introduce(&daemon.socket, self.arguments.known)?;
        eprintln!("{} agents known after {:.1?}", self.arguments.known, began.elapsed());
        let mut p99 = Vec::new();
        for active in [10, self.arguments.known] {
            let traffic = Traffic::start(&daemon.socket, active);
            for (what, workload, durable) in
                [("ping-pong", Workload::PingPong, false), ("one durable message at a time", Workload::Pairs, true)]
            {
                let outcome = load::run::<Relay>(self.plan(&daemon, workload, 1, durable))?;
                p99.push(outcome.p99_us);
                let what = format!("{what}, beside {} messages/s from {active} agents", known::RATE);
                self.add(of_load(&what, &outcome, String::new()));
            }
            let sent = traffic.stop()?;
            let lag = &status(&daemon)?["store"]["checkpoint_lag_segments"];
            let note = format!("{} sent, {} refused, checkpoint lag {lag} segments", sent.sent, sent.refused);
            eprintln!("{note}");
            if let Some(last) = self.figures.last_mut() {
                last.note = note;
            }
        }
        let targets = [
            ("checkpoints of 100,000 agents: p99 of ping-pong, to that with 10 active", p99[2] / p99[0]),
            ("checkpoints of 100,000 agents: p99 of a durable message, to that with 10 active", p99[3] / p99[1]),
        ];
        let first = self.figures.len() - 2;
        for (figure, (what, found)) in self.figures[first..].iter_mut().zip(targets) {
            figure.target = Some((what.into(), 1.1, found));
        }
        daemon.stop()
    }

    fn plan(&self, daemon: &Daemon, workload: Workload, window: u32, durable: bool) -> Plan {
        /// Each load has agents of its own, so that nobody is owed anything.
        static FIRST_AGENT: AtomicU32 = AtomicU32::new(50_000);
        Plan {
            workload,
            address: daemon.socket.display().to_string(),
            pid: daemon.pid(),
            body_bytes: 128,
            window,
            pairs: 1,
            rate: 0,
            measured: Duration::from_secs_f64(self.arguments.seconds),
            messages_min: 0,
            warm_up: Duration::from_millis(300),
            durable,
            first_agent: FIRST_AGENT.fetch_add(2, Ordering::Relaxed),
            access: crate::access::Access::default(),
        }
    }

    fn add(&mut self, figure: Figure) {
        let Figure { what, p50_ms, p99_ms, p999_ms, note, .. } = &figure;
        eprintln!("{what}: p50 {p50_ms:.3} p99 {p99_ms:.3} p99.9 {p999_ms:.3} ms {note}");
        self.figures.push(figure);
    }
}

/// Messages swept away since the start, and whether the sweep is over.
fn swept(daemon: &Daemon) -> Result<(u64, bool), String> {
    let status = status(daemon)?;
    let number = |key: &str| status["store"][key].as_u64().unwrap_or(0);
    Ok((number("swept_messages"), number("last_sweep_ms") > 0))
}

fn status(daemon: &Daemon) -> Result<serde_json::Value, String> {
    let answer = ask(&daemon.address(), QueryKind::Status, "", PATIENCE).map_err(|error| error.to_string())?;
    serde_json::from_slice(&answer).map_err(|error| format!("status: {error}"))
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds")
}

fn figure(what: String, times: &Histogram<u64>, note: String) -> Figure {
    let ms = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1e6;
    let (p50_ms, p99_ms, p999_ms, max_ms) = (ms(0.5), ms(0.99), ms(0.999), times.max() as f64 / 1e6);
    Figure { what, count: times.len(), p50_ms, p99_ms, p999_ms, max_ms, note, target: None }
}

fn of_load(what: &str, outcome: &Outcome, note: String) -> Figure {
    Figure {
        what: what.to_owned(),
        count: outcome.messages,
        p50_ms: outcome.p50_us / 1000.0,
        p99_ms: outcome.p99_us / 1000.0,
        p999_ms: outcome.p999_us / 1000.0,
        max_ms: outcome.max_us / 1000.0,
        note,
        target: None,
    }
}

/// The address of a socket.
fn address_of(socket: &Path) -> Address {
    Address::Unix(socket.to_path_buf())
}
