//! The store alone, as the writer uses it: one segment a commit, each on the disk before the next begins. Prints messages a
//! second, processor time of the thread and sectors of the device per message, how long commits took, and what encryption
//! costs.
//!
//! ```text
//! cargo run --release -p relay-bench --bin store -- [--folder DIR] [--seconds 0.4] [--rounds 3] [--rows]
//! ```
//! `--folder` chooses the disk. "log" is one transaction of LMDB a commit, for messages that nobody waits for; "journal" is
//! what somebody waits for, one flush a commit; when the journal is full, this thread puts it into the log, which beside
//! a relay the absorber does. `--rows` measures recovery instead: 100,000 rows, and a million messages behind them.

use agent_relay::base::{AgentId, Bytes, MessageId, Sequence};
use agent_relay::relay::{Addressee, Recipients, Record, Remembered};
use agent_relay::store::{Key, Options, RowChange, Segment, Store};
use relay_bench::messages;
use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BATCHES: [usize; 4] = [1, 10, 100, 1000];
/// Into the journal or not, sealed or not.
const WAYS: [(bool, bool, &str); 4] = [
    (false, false, "log, plain"),
    (false, true, "log, sealed"),
    (true, false, "journal, plain"),
    (true, true, "journal, sealed"),
];

struct Settings {
    folder: PathBuf,
    seconds: f64,
    rounds: usize,
    rows: bool,
}

fn settings() -> Result<Settings, Box<dyn Error>> {
    let mut settings = Settings { folder: std::env::temp_dir(), seconds: 0.4, rounds: 3, rows: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--folder" => settings.folder = value()?.into(),
            "--seconds" => settings.seconds = value()?.parse()?,
            "--rounds" => settings.rounds = value()?.parse()?,
            "--rows" => settings.rows = true,
            other => return Err(format!("{other} is not known").into()),
        }
    }
    Ok(settings)
}

/// What one round measured.
#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    cpu_us: f64,
    device_bytes: Option<f64>,
    p50_us: f64,
    p99_us: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let settings = settings()?;
    if settings.rows {
        return recovery(&settings);
    }
    println!("| text, batch | | thousand/s | CPU us/msg | commit p50/p99 us | device B/msg |");
    println!("|---|---|---|---|---|---|");
    let mut costs = Vec::new();
    for text_bytes in messages::TEXT_BYTES {
        for batch in BATCHES {
            let mut cells: [Vec<Round>; 4] = Default::default();
            // Interleaved: whatever else the machine does hits each of them.
            for _ in 0..settings.rounds {
                for (cell, (journal, sealed, _)) in cells.iter_mut().zip(WAYS) {
                    cell.push(round(&settings, text_bytes, batch, journal, sealed)?);
                }
            }
            for cells in cells.chunks(2) {
                let cpu = |cell: &Vec<Round>| median(cell.iter().map(|round| round.cpu_us));
                costs.push(cpu(&cells[1]) / cpu(&cells[0]));
            }
            for (cell, (_, _, name)) in cells.iter_mut().zip(WAYS) {
                cell.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
                let middle = cell[cell.len() / 2];
                let bytes = middle.device_bytes.map_or("-".to_owned(), |bytes| format!("{bytes:.0}"));
                let (low, high) = (cell[0].per_second / 1e3, cell[cell.len() - 1].per_second / 1e3);
                println!(
                    "| {text_bytes} x {batch} | {name} | {:.1} [{low:.1}-{high:.1}] | {:.2} | {:.0}/{:.0} | {bytes} |",
                    middle.per_second / 1e3,
                    middle.cpu_us,
                    middle.p50_us,
                    middle.p99_us,
                );
            }
        }
    }
    println!(
        "\nEncryption: processor time of a message, sealed to plain: {:.2} (median of the pairs above), at most {:.2}.",
        median(costs.iter().copied()),
        costs.iter().copied().fold(0.0, f64::max),
    );
    Ok(())
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A message as a heart hands it to the writer.
fn message(number: u64, raw: &Bytes, checksum: u32) -> Record {
    let sequence = Sequence { epoch: 1, counter: number };
    Record::Message {
        id: MessageId { sender: AgentId(7), number },
        raw: raw.clone(),
        checksum,
        accepted_at_ms: 1_800_000_000_000 + number / 100,
        ttl_ms: 0,
        parts: 1,
        recipients: Recipients::One(Addressee { agent: AgentId(9), sequence, channel: false }),
    }
}

fn body(text_bytes: usize) -> Bytes {
    let mut frame = Vec::new();
    messages::native_send(&mut frame, "alice", "bob", 1, &messages::text(text_bytes));
    Bytes::copy_from_slice(&frame[agent_relay::wire::HEADER_BYTES..])
}

fn open(folder: &Path, sealed: bool) -> Result<Store, Box<dyn Error>> {
    let key = if sealed { Key::generate() } else { None };
    let store = Store::open(Options::new(folder, key))?;
    store.begin_epoch(1, 0)?;
    Ok(store)
}

fn round(
    settings: &Settings,
    text_bytes: usize,
    batch: usize,
    journal: bool,
    sealed: bool,
) -> Result<Round, Box<dyn Error>> {
    let folder = settings.folder.join(format!("relay-store-bench-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let store = open(&folder, sealed)?;
    let raw = body(text_bytes);
    let mut segment = Segment::new();
    let (mut number, mut taken) = (0, Vec::with_capacity(1 << 20));
    let mut commit = |number: &mut u64| -> Result<Duration, Box<dyn Error>> {
        segment.clear();
        for _ in 0..batch {
            *number += 1;
            segment.push(&message(*number, &raw, 0));
        }
        let start = Instant::now();
        if journal {
            store.append(&mut segment)?
        } else {
            store.append_at_once(&mut segment)?
        };
        Ok(start.elapsed())
    };
    for _ in 0..20 {
        commit(&mut number)?;
    }
    let (before, sectors_before, cpu_before) = (number, sectors(&folder), cpu());
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < settings.seconds {
        taken.push(commit(&mut number)?);
    }
    let seconds = start.elapsed().as_secs_f64();
    let messages = (number - before) as f64;
    let cpu_us = (cpu() - cpu_before) as f64 / 1e3 / messages;
    let device_bytes =
        sectors_before.zip(sectors(&folder)).map(|(before, after)| (after - before) as f64 * 512.0 / messages);
    taken.sort_unstable();
    let quantile = |part: f64| taken[((taken.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    let (p50_us, p99_us) = (quantile(0.5), quantile(0.99));
    drop(store);
    fs::remove_dir_all(&folder)?;
    Ok(Round { per_second: messages / seconds, cpu_us, device_bytes, p50_us, p99_us })
}

/// Nanoseconds this thread has run.
fn cpu() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Sectors of 512 bytes that the device of `folder` has written: everybody's.
fn sectors(folder: &Path) -> Option<u64> {
    let device = fs::metadata(folder).ok()?.dev();
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    text.split_whitespace().nth(6)?.parse().ok()
}

/// Opening after a crash: 100,000 rows with labels here and there, a million messages behind them.
fn recovery(settings: &Settings) -> Result<(), Box<dyn Error>> {
    const AGENTS: u64 = 100_000;
    const MESSAGES: u64 = 1_000_000;
    let folder = settings.folder.join(format!("relay-store-bench-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    for sealed in [false, true] {
        let key = if sealed { Key::generate() } else { None };
        let store = Store::open(Options::new(&folder, key.clone()))?;
        store.begin_epoch(1, 0)?;
        let rows: Vec<Remembered> = (0..AGENTS)
            .map(|number| {
                let mut row = Remembered::new(AgentId(number));
                row.name = Some(format!("agent-{number}").into());
                row.sent.take(number + 1);
                (0..number % 64).for_each(|label| row.sent.take(1 << 63 | number << 16 | label));
                row
            })
            .collect();
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        for some in rows.chunks(100) {
            let changes: Vec<_> =
                some.iter().map(|row| RowChange { row, labels_pushed: row.sent.labels_pushed }).collect();
            let start = Instant::now();
            store.keep_rows(&changes, &[])?;
            slowest = slowest.max(start.elapsed());
        }
        println!("sealed {sealed}: {AGENTS} rows kept, 100 at once, in {:?}, the slowest {slowest:?}", start.elapsed());
        let raw = body(128);
        let mut segment = Segment::new();
        for first in (0..MESSAGES).step_by(1000) {
            segment.clear();
            for number in first..first + 1000 {
                let Record::Message { id, raw, checksum, accepted_at_ms, ttl_ms, .. } = message(number + 1, &raw, 0)
                else {
                    continue;
                };
                let sequence = Sequence { epoch: 1, counter: number / AGENTS + 1 };
                let agent = AgentId(number.wrapping_mul(7919) % AGENTS);
                let recipients = Recipients::One(Addressee { agent, sequence, channel: false });
                segment.push(&Record::Message { id, raw, checksum, accepted_at_ms, ttl_ms, parts: 1, recipients });
            }
            store.append(&mut segment)?;
        }
        let bytes = store.file_bytes()?;
        drop(store);
        let start = Instant::now();
        let store = Store::open(Options::new(&folder, key.clone()))?;
        let opened = start.elapsed();
        let memory = store.recover(|_| {})?;
        println!(
            "  open {opened:?}, open and recover {:?} ({} rows, file and used {bytes:?})",
            start.elapsed(),
            memory.len()
        );
        store.mark_applied(store.last_segment()?)?;
        let start = Instant::now();
        store.recover(|_| {})?;
        println!("  rows alone {:?}", start.elapsed());
        let start = Instant::now();
        let report = store.check(|_| {})?;
        println!("  check {:?} ({} messages)", start.elapsed(), report.messages);
        let start = Instant::now();
        let (mut steps, mut slowest) = (0, Duration::ZERO);
        loop {
            let start = Instant::now();
            let swept = store.sweep_step(u64::MAX, u64::MAX, 2000)?;
            slowest = slowest.max(start.elapsed());
            steps += 1;
            if swept.done {
                break;
            }
        }
        println!("  swept in {steps} steps in {:?}, the slowest {slowest:?}", start.elapsed());
        drop(store);
        fs::remove_dir_all(&folder)?;
    }
    Ok(())
}
