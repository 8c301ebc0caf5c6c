//! `relay bench`: pairs of agents that talk as fast as they may, against a running daemon or a temporary one.

use super::print::{self, Progress};
use super::sharing::sharing;
use super::{Failure, launch, talk};
use crate::base::Whole;
use crate::base::tier::Tier;
use crate::client::{Address, Client, Error, Incoming, Options, Outgoing, ask};
use crate::daemon::paths::{Environment, Place};
use crate::daemon::settings::{CORES_MAX, Flags, Settings};
use crate::daemon::{DaemonError, lock};
use crate::wire::QueryKind;
use argh::{ArgsInfo, FromArgs};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

sharing! {
    [reach]
    /// Measure throughput and latency with a load of its own.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "bench",
        help_triggers("-h", "--help"),
        example = "relay bench
relay bench --pairs 8 --window 256 --body 1024 --seconds 10
relay bench --window 1 --json",
        note = "Without a relay running here, or with --temporary, it starts one of its own in a temporary directory and
stops it afterwards. Latency is from just before the send to just after the receive; --window 1 measures
it without queueing."
    )]
    pub(super) struct Bench {
        /// pairs of a sender and a receiver (default: 2)
        #[argh(option, arg_name = "N", default = "Whole::of(2)")]
        pairs: Whole<1, 256>,
        /// messages of each pair on their way at once (default: 64)
        #[argh(option, arg_name = "N", default = "Whole::of(64)")]
        window: Whole<1, 65_536>,
        /// bytes of each body (default: 256)
        #[argh(option, arg_name = "bytes", default = "Whole::of(256)")]
        body: Whole<{ STAMP_BYTES as u64 }, 1_000_000>,
        /// how long to measure (default: 5)
        #[argh(option, arg_name = "seconds", default = "Whole::of(5)")]
        seconds: Whole<1, 3600>,
        /// start a relay of its own even if one is running
        #[argh(switch)]
        temporary: bool,
        /// shards of that relay
        #[argh(option, arg_name = "N")]
        cores: Option<Whole<1, CORES_MAX>>,
        /// print one JSON value
        #[argh(switch)]
        json: bool,
    }
}

pub(super) fn run(command: &Bench) -> Result<(), Failure> {
    let reach = command.reach()?;
    let running = command.connect.is_some() || command.socket.is_some() || lock::live_holder(&reach.layout).is_some();
    if running && !command.temporary {
        if command.cores.is_some() {
            return Err(Failure::Usage("--cores is for a relay of its own; add --temporary".to_owned()));
        }
        let options = reach.options("", "relay bench")?;
        let result = measure(reach.address(), &options, command).map_err(|error| reach.explain(error))?;
        // Who may not ask measures all the same.
        let status = talk::ask(&reach, QueryKind::Status, &serde_json::json!({})).unwrap_or_default();
        return report(command, &result, "running", Limit::of(&status).as_ref());
    }
    let relay = Temporary::start(command.cores.map(Whole::number))?;
    let options = Options { program: "relay bench".to_owned(), ..Options::named("") };
    let result = measure(&relay.address, &options, command).map_err(Failure::failed)?;
    relay.stop()?;
    report(command, &result, "temporary", None)
}

/// What the running relay's tier allows: then that is what is measured.
struct Limit {
    per_second: u64,
    tier: String,
}

impl Limit {
    fn of(status: &serde_json::Value) -> Option<Limit> {
        let per_second = status["messages"]["max_per_second"].as_u64()?;
        let tier = status["tier"].as_str().and_then(Tier::of);
        Some(Limit { per_second, tier: tier.map_or("its", Tier::title).to_owned() })
    }

    fn note(&self) -> String {
        format!(
            "note        this relay allows {} messages a second ({} tier): that is what was measured; --temporary measures the machine\n",
            self.per_second, self.tier
        )
    }
}

/// A relay on a thread of this process, in a directory of its own; both go when this does. It has no limits because it has
/// no way in but its socket there, which nobody else may open.
struct Temporary {
    thread: Option<JoinHandle<Result<(), DaemonError>>>,
    address: Address,
    _directory: Directory,
}

/// A directory that is removed with this.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

impl Temporary {
    fn start(cores: Option<u64>) -> Result<Temporary, Failure> {
        let path = std::env::temp_dir().join(format!("relay-bench-{:016x}", launch::random()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Failure::Failed(format!("cannot make {}: {error}", path.display())))?;
        let directory = Directory(path);
        let socket = directory.0.join("relay.sock");
        let place = Place { data_dir: Some(directory.0.clone()), socket: Some(socket.clone()), global: true };
        let mut values = vec![("log.level", "warn".to_owned())];
        values.extend(cores.map(|cores| ("cores", cores.to_string())));
        // Of the environment nothing: what is set there is meant for the relay that serves.
        let settings = Settings::read(&Flags { place, config: None, values }, &Environment::default());
        let settings = settings.map_err(Failure::usage)?;
        let (tell, told) = mpsc::sync_channel(1);
        let body = move || {
            crate::daemon::run_temporary(settings, |_| {
                let _ = tell.send(());
            })
        };
        let thread = thread::Builder::new().name("relay-temporary".to_owned()).spawn(body);
        let thread = thread.map_err(|error| Failure::Failed(format!("cannot start a thread: {error}")))?;
        let relay = Temporary { thread: Some(thread), address: Address::Unix(socket), _directory: directory };
        // It says so when it is ready, or ends and says nothing.
        if told.recv().is_err() {
            relay.stop()?;
            return Err(Failure::Failed("the temporary relay ended before it was ready".to_owned()));
        }
        Ok(relay)
    }

    /// Why it ended, if it was not asked to.
    fn stop(mut self) -> Result<(), Failure> {
        self.end().unwrap_or(Ok(())).map_err(Failure::failed)
    }

    fn end(&mut self) -> Option<Result<(), DaemonError>> {
        let thread = self.thread.take()?;
        if !thread.is_finished() {
            // One that does not answer is ending already.
            drop(ask(&self.address, QueryKind::Stop, "{}", DRAIN));
        }
        thread.join().ok()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// The send time at the start of each body, in hexadecimal nanoseconds since the run began.
const STAMP_BYTES: usize = 16;
/// After the last send, how long messages may still be on their way.
const DRAIN: Duration = Duration::from_secs(5);

/// What the two ends of a pair share.
struct Pair {
    sent: AtomicU64,
    received: AtomicU64,
    busy: AtomicU64,
    done: AtomicBool,
}

struct Measured {
    messages: u64,
    undelivered: u64,
    busy: u64,
    elapsed: Duration,
    latencies: Latencies,
}

fn measure(address: &Address, options: &Options, command: &Bench) -> Result<Measured, Error> {
    let run = format!("{:08x}", launch::random() as u32);
    let begun = Instant::now();
    let deadline = Duration::from_secs(command.seconds.number());
    // Receivers, senders and this thread: nobody starts before everybody is connected.
    let start = Arc::new(Barrier::new(2 * command.pairs.size() + 1));
    let mut threads = Vec::new();
    let mut pairs = Vec::new();
    for number in 0..command.pairs.number() {
        // All connections are made here, one after the other: a failure then ends the run instead of leaving a thread
        // at the barrier for ever. Names with __ hold no seat and are hidden from listings.
        let receiver_name = format!("__bench-{run}-r{number}");
        let receiver = Client::connect(address, &Options { name: receiver_name.clone(), ..options.clone() })?;
        let name = format!("__bench-{run}-s{number}");
        let sender = Client::connect(address, &Options { name, ..options.clone() })?;
        threads.push((receiver, sender, receiver_name));
    }
    let mut receiving: Vec<JoinHandle<Result<Latencies, Error>>> = Vec::new();
    let mut sending: Vec<JoinHandle<Result<(), Error>>> = Vec::new();
    for (receiver, sender, to) in threads {
        let pair = Arc::new(Pair {
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            done: AtomicBool::new(false),
        });
        pairs.push(Arc::clone(&pair));
        let (shared, barrier, window, body) =
            (Arc::clone(&pair), Arc::clone(&start), command.window.number(), command.body.size());
        let handle = thread::spawn(move || {
            barrier.wait();
            let result =
                Load { client: sender, pair: &shared, to: &to, window, body, begun }.run(Instant::now() + deadline);
            shared.done.store(true, Ordering::Release);
            result
        });
        let (shared, barrier, waiting) = (pair, Arc::clone(&start), handle.thread().clone());
        sending.push(handle);
        receiving.push(thread::spawn(move || {
            barrier.wait();
            receive(receiver, &shared, &waiting, begun)
        }));
    }
    start.wait();
    let started = Instant::now();
    let mut progress = Progress::start();
    let total =
        |count: fn(&Pair) -> &AtomicU64| pairs.iter().map(|pair| count(pair).load(Ordering::Relaxed)).sum::<u64>();
    let mut before = (started, 0);
    while sending.iter().any(|handle| !handle.is_finished()) {
        thread::sleep(Duration::from_millis(100));
        let (now, received) = (Instant::now(), total(|pair| &pair.received));
        if now - before.0 >= Duration::from_millis(500) {
            let rate = (received - before.1) as f64 / (now - before.0).as_secs_f64();
            progress.show(&format!("{} of {} s, {rate:.0} messages/s", (now - started).as_secs(), command.seconds));
            before = (now, received);
        }
    }
    let mut latencies = Latencies::default();
    let mut problem = None;
    for handle in sending {
        problem = problem.or(handle.join().expect("a load thread does not panic").err());
    }
    let elapsed = started.elapsed();
    let measured = total(|pair| &pair.received);
    for handle in receiving {
        match handle.join().expect("a load thread does not panic") {
            Ok(part) => latencies.add(&part),
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    drop(progress);
    if let Some(error) = problem {
        return Err(error);
    }
    let undelivered = total(|pair| &pair.sent).saturating_sub(total(|pair| &pair.received));
    Ok(Measured { messages: measured, undelivered, busy: total(|pair| &pair.busy), elapsed, latencies })
}

/// One sender.
struct Load<'a> {
    client: Client,
    pair: &'a Pair,
    to: &'a str,
    window: u64,
    body: usize,
    begun: Instant,
}

impl Load<'_> {
    fn run(mut self, deadline: Instant) -> Result<(), Error> {
        let mut text = "x".repeat(self.body);
        let mut sent = 0;
        while Instant::now() < deadline {
            let room = self.window.saturating_sub(sent - self.pair.received.load(Ordering::Acquire)).min(256);
            if room == 0 {
                // The receiver wakes us; the limit is for PINGs and refusals, which must be heard as well.
                thread::park_timeout(Duration::from_millis(5));
                self.listen(&mut text)?;
                continue;
            }
            for _ in 0..room {
                self.stamp(&mut text);
                self.client.queue(&Outgoing { to: self.to, text: Some(&text), ..Outgoing::default() })?;
            }
            sent += room;
            self.pair.sent.store(sent, Ordering::Release);
            self.client.flush()?;
        }
        self.listen(&mut text)?;
        // Without BYE the name would stay known as one that was lost and may come back.
        self.client.close()
    }

    fn stamp(&self, text: &mut String) {
        let stamp = format!("{:016x}", self.begun.elapsed().as_nanos() as u64);
        text.replace_range(..STAMP_BYTES, &stamp);
    }

    /// Hears what there is, without waiting; what was refused goes out again.
    fn listen(&mut self, text: &mut String) -> Result<(), Error> {
        while let Some(incoming) = self.client.next(Duration::ZERO)? {
            match incoming {
                Incoming::Busy { number, retry_after_ms, .. } => {
                    self.pair.busy.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(u64::from(retry_after_ms).clamp(1, 100)));
                    self.stamp(text);
                    self.client
                        .send_again(number, &Outgoing { to: self.to, text: Some(text), ..Outgoing::default() })?;
                }
                Incoming::Error { message, .. } => return Err(Error::Question(message)),
                Incoming::Bye => return Err(Error::Lost("the relay said BYE".to_owned())),
                // The relay reads us later: sending waits for that by itself.
                Incoming::Slowed { .. } => drop(self.pair.busy.fetch_add(1, Ordering::Relaxed)),
                Incoming::Message(_) | Incoming::Receipt(_) => {}
            }
        }
        Ok(())
    }
}

fn receive(mut client: Client, pair: &Pair, sender: &Thread, begun: Instant) -> Result<Latencies, Error> {
    let mut latencies = Latencies::default();
    let mut drained = None;
    let mut received = 0;
    loop {
        match client.next(Duration::from_millis(50))? {
            Some(Incoming::Message(message)) => {
                let now = begun.elapsed().as_nanos() as u64;
                let stamp = message.fields().text.get(..STAMP_BYTES).and_then(|stamp| std::str::from_utf8(stamp).ok());
                if let Some(sent) = stamp.and_then(|stamp| u64::from_str_radix(stamp, 16).ok()) {
                    latencies.record(now.saturating_sub(sent));
                }
                received += 1;
                pair.received.store(received, Ordering::Release);
                sender.unpark();
            }
            Some(Incoming::Bye) => return Err(Error::Lost("the relay said BYE".to_owned())),
            _ => {}
        }
        if pair.done.load(Ordering::Acquire) {
            let since = *drained.get_or_insert_with(Instant::now);
            if received >= pair.sent.load(Ordering::Acquire) || since.elapsed() > DRAIN {
                client.close()?;
                return Ok(latencies);
            }
        }
    }
}

/// Nanoseconds in buckets: 32 to each power of two, so a percentile is off by at most 3 %.
struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

const SUB_BITS: u32 = 5;

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { buckets: vec![0; (64 - SUB_BITS as usize + 1) << SUB_BITS], count: 0, max: 0 }
    }
}

impl Latencies {
    fn bucket(value: u64) -> usize {
        let shift = (u64::BITS - value.leading_zeros()).saturating_sub(SUB_BITS + 1);
        ((shift as usize) << SUB_BITS) + (value >> shift) as usize
    }

    fn record(&mut self, value: u64) {
        self.buckets[Latencies::bucket(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    fn add(&mut self, other: &Latencies) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The value that `per_mille` of a thousand lie at or below, in microseconds: the upper end of its bucket.
    fn percentile_us(&self, per_mille: u64) -> f64 {
        let rank = (self.count * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                let shift = (bucket >> SUB_BITS).saturating_sub(1) as u32;
                let top = ((bucket as u64) - (u64::from(shift) << SUB_BITS) + 1) << shift;
                // The topmost bucket ends at 2^64, which wraps to 0.
                return top.wrapping_sub(1).min(self.max) as f64 / 1000.0;
            }
        }
        0.0
    }
}

fn report(command: &Bench, measured: &Measured, which: &str, limit: Option<&Limit>) -> Result<(), Failure> {
    let seconds = measured.elapsed.as_secs_f64();
    let rate = measured.messages as f64 / seconds;
    let latency = |per_mille| measured.latencies.percentile_us(per_mille);
    let max_us = measured.latencies.max as f64 / 1000.0;
    if command.json {
        return print::json(&serde_json::json!({
            "relay": which, "pairs": command.pairs.number(), "window": command.window.number(), "body_bytes": command.body.number(),
            "seconds": seconds, "messages": measured.messages, "messages_per_second": rate,
            "body_bytes_per_second": rate * command.body.number() as f64,
            "latency_us": { "p50": latency(500), "p99": latency(990), "p99_9": latency(999), "max": max_us },
            "busy": measured.busy, "undelivered": measured.undelivered,
            "limited_by": limit.map(|limit| limit.per_second),
        }));
    }
    let mut text = format!(
        "{which} relay, {} pairs, window {}, bodies of {} bytes\n\
         throughput  {rate:.0} messages/s, {}/s of bodies ({} messages in {seconds:.2} s)\n\
         latency     p50 {:.1} µs, p99 {:.1} µs, p99.9 {:.1} µs, max {max_us:.1} µs\n",
        command.pairs,
        command.window,
        command.body,
        print::bytes((rate * command.body.number() as f64) as u64),
        measured.messages,
        latency(500),
        latency(990),
        latency(999),
    );
    if let Some(limit) = limit {
        text += &limit.note();
    }
    if measured.busy > 0 {
        text += &format!("refusals    {} times BUSY, sent again\n", measured.busy);
    }
    if measured.undelivered > 0 {
        text += &format!("undelivered {} messages {} s after the last send\n", measured.undelivered, DRAIN.as_secs());
    }
    print::out(&text)?;
    if measured.undelivered > 0 { Err(Failure::Said) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_three_per_cent() {
        let mut latencies = Latencies::default();
        (1..=100_000u64).for_each(|value| latencies.record(value * 1000));
        for (per_mille, exact) in [(500, 50_000.0), (990, 99_000.0), (999, 99_900.0)] {
            let found = latencies.percentile_us(per_mille);
            assert!((exact..exact * 1.035).contains(&found), "{per_mille}: {found}");
        }
        latencies.record(u64::MAX);
        assert_eq!(latencies.percentile_us(1000), u64::MAX as f64 / 1000.0);
        assert_eq!(Latencies::default().percentile_us(500), 0.0);
    }

    #[test]
    fn a_limit_is_told_where_the_relay_has_one() {
        let limit = |messages: serde_json::Value| {
            Limit::of(&serde_json::json!({ "tier": "community", "messages": messages })).map(|limit| limit.note())
        };
        let note = limit(serde_json::json!({ "max_per_second": 100 })).unwrap();
        assert!(note.contains("allows 100 messages a second (Community tier)"), "{note}");
        assert_eq!(limit(serde_json::json!({ "max_per_second": null })), None);
        assert_eq!(limit(serde_json::json!({})), None);
    }

    #[test]
    fn buckets_are_in_order_and_meet() {
        let mut last = 0;
        for value in (0..5000).chain([u64::MAX - 1, u64::MAX]) {
            let bucket = Latencies::bucket(value);
            assert!(bucket == last || bucket == last + 1 || value > 5000, "{value}: {last} then {bucket}");
            last = bucket;
        }
        assert!(last < Latencies::default().buckets.len());
    }
}
