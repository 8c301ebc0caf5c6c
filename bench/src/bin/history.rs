//! What finding costs in a large store: `relay-bench history FOLDER MESSAGES` writes that many messages of 128 bytes to
//! the folder (or finds them there from an earlier run), then asks for pages, messages and owed mail.

use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::history::{Beside, answer};
use agent_relay::relay::{Addressee, Fetch, Place, Recipients, Record, Wanted};
use agent_relay::store::find::{self, HistoryQuery};
use agent_relay::store::{Follower, Options, Segment, Store};
use agent_relay::wire::{MessageFields, QueryKind, encode};
use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

const AGENTS: u64 = 1_000;
const THREADS: u64 = 100_000;
const TOPICS: u64 = 200;
/// One message in ten is to everybody, about one of so many topics; so many hear it.
const SHOUTS: u64 = 100;
const LISTENERS: u64 = 5;
const BATCH: u64 = 1_000;
const START_MS: u64 = 1_790_000_000_000;
const APART_MS: u64 = 60;
const ROUNDS: u64 = 1_000;

/// Numbers that are the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % sides
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: history FOLDER MESSAGES";
    let folder = arguments.next().ok_or(usage)?;
    let messages: u64 = arguments.next().ok_or(usage)?.parse()?;
    let store = Store::open(Options::new(folder, None))?;
    store.begin_epoch(1, 1)?;
    let started = Instant::now();
    let follower = Follower::recover(&store)?;
    println!("opened in {:?}", started.elapsed());
    let names: Vec<String> = (0..AGENTS).map(|agent| format!("agent-{agent}")).collect();
    write(&store, &follower, &names, messages)?;
    println!("anonymous memory: {} KiB, tail: {} KiB", memory_kib()?, follower.tail.read().memory_bytes() / 1024);
    let (file, used) = store.file_bytes()?;
    println!("file: {} MiB, in use: {} MiB", file >> 20, used >> 20);
    let mut dice = Dice(99);
    let span = messages * APART_MS;
    let page = HistoryQuery { limit: 100, ..Default::default() };
    let mut history = |title: &str, make: &mut dyn FnMut(&mut Dice) -> HistoryQuery| -> Result<(), Box<dyn Error>> {
        measure(title, &mut || {
            let query = make(&mut dice);
            Ok(find::history(&store, &follower.tail, &query)?.rows.len() as u64)
        })
    };
    let agent = |dice: &mut Dice| Some(names[dice.roll(AGENTS) as usize].clone());
    history("newest page", &mut |_| page.clone())?;
    history("page anywhere", &mut |dice| {
        let before = Some(Place { segment: 1 + dice.roll(messages / BATCH), offset: 0 });
        HistoryQuery { before, ..page.clone() }
    })?;
    history("page of an agent", &mut |dice| HistoryQuery { agent: agent(dice), ..page.clone() })?;
    history("page of an agent, anywhere", &mut |dice| {
        let before = Some(Place { segment: 1 + dice.roll(messages / BATCH), offset: 0 });
        HistoryQuery { agent: agent(dice), before, ..page.clone() }
    })?;
    history("page of from and to", &mut |dice| HistoryQuery { from: agent(dice), to: agent(dice), ..page.clone() })?;
    history("page of a thread", &mut |dice| HistoryQuery {
        thread: Some(format!("thread-{}", dice.roll(THREADS))),
        ..page.clone()
    })?;
    history("page of a thread that is not there", &mut |_| HistoryQuery {
        thread: Some("none".to_owned()),
        ..page.clone()
    })?;
    history("page of a topic", &mut |dice| HistoryQuery {
        topic: Some(format!("topic-{}", dice.roll(TOPICS))),
        ..page.clone()
    })?;
    history("page of a topic, to everybody", &mut |dice| HistoryQuery {
        topic: Some(format!("shout-{}", dice.roll(SHOUTS))),
        ..page.clone()
    })?;
    history("page of a time", &mut |dice| {
        let since_ms = START_MS + dice.roll(span);
        HistoryQuery { since_ms: Some(since_ms), until_ms: Some(since_ms + 10_000), ..page.clone() }
    })?;
    history("following page", &mut |dice| {
        let after = Some(Place { segment: 1 + dice.roll(messages / BATCH), offset: 0 });
        HistoryQuery { after, agent: agent(dice), ..page.clone() }
    })?;
    let mut dice = Dice(7);
    let mut id = || {
        let number = dice.roll(messages);
        MessageId { sender: AgentId::of(names[sender_of(number)].as_bytes()), number: number + 1 }
    };
    measure("message by id", &mut || {
        Ok(u64::from(matches!(find::message(&store, &follower.tail, id())?, find::Found::Message(_))))
    })?;
    measure("message by 8 digits", &mut || {
        let prefix = &id().to_string()[..8];
        Ok(u64::from(!matches!(find::message_by_prefix(&store, &follower.tail, prefix)?, find::Found::None)))
    })?;
    measure("message by 4 digits", &mut || {
        let prefix = &id().to_string()[..4];
        Ok(u64::from(!matches!(find::message_by_prefix(&store, &follower.tail, prefix)?, find::Found::None)))
    })?;
    measure("page as JSON", &mut || {
        let (memory, arguments) = (&follower.memory, "{\"limit\":100}");
        let beside = Beside::default();
        let (_, json) = answer(&store, &follower.tail, memory, &beside, QueryKind::History, arguments);
        Ok(json.len() as u64)
    })?;
    let mut dice = Dice(5);
    for (title, name) in [("fetch of a busy agent", "agent-0"), ("fetch of one of a thousand", "agent-7")] {
        let agent = AgentId::of(name.as_bytes());
        let all = if name == "agent-0" { messages / 10 } else { messages * 9 / 10 / AGENTS };
        for hint in [false, true] {
            let mut place = Place::default();
            let mut after = Sequence::default();
            measure(&format!("{title}, hint {hint}"), &mut || {
                if place == Place::default() || !hint {
                    (place, after) = (Place::default(), Sequence { epoch: 1, counter: dice.roll(all) });
                }
                let wanted = Wanted::Mail { messages_max: 1_000, bytes_max: 512 * 1024, expired_before_ms: 0 };
                let fetch = Fetch { agent, after, place, wanted, now_ms: START_MS, retention_ms: u64::MAX / 2 };
                let (fetched, _) = find::fetch(&store, &follower.tail, &fetch)?;
                place = if fetched.complete { Place::default() } else { fetched.place };
                after = fetched.messages.last().map_or(after, |message| message.to.sequence);
                Ok(fetched.messages.len() as u64)
            })?;
        }
    }
    println!("anonymous memory: {} KiB", memory_kib()?);
    Ok(())
}

fn sender_of(number: u64) -> usize {
    Dice(number).roll(AGENTS) as usize
}

/// Writes what is missing, in batches, and indexes it as the keeper does.
fn write(store: &Store, follower: &Follower, names: &[String], messages: u64) -> Result<(), Box<dyn Error>> {
    let written = store.last_segment()? * BATCH;
    let ids: Vec<AgentId> = names.iter().map(|name| AgentId::of(name.as_bytes())).collect();
    let mut counters = vec![0u64; names.len()];
    let (mut segment, mut text) = (Segment::new(), [b'x'; 128]);
    let (mut index_time, started) = (Duration::ZERO, Instant::now());
    for batch in 0..messages / BATCH {
        for number in batch * BATCH..(batch + 1) * BATCH {
            let mut dice = Dice(number);
            let from = dice.roll(AGENTS) as usize;
            let to = if number % 10 == 0 { 0 } else { dice.roll(AGENTS) as usize };
            let shout = number % 10 == 5;
            let topic = match dice.roll(10) {
                _ if shout => format!("shout-{}", dice.roll(SHOUTS)),
                0 => format!("topic-{}", dice.roll(TOPICS)),
                _ => String::new(),
            };
            let thread = format!("thread-{}", dice.roll(THREADS));
            let mut place = |agent: usize| {
                counters[agent] += 1;
                let sequence = Sequence { epoch: 1, counter: counters[agent] };
                Addressee { agent: ids[agent], sequence, channel: false }
            };
            let recipients = if shout {
                let listeners = (1..=LISTENERS).map(|listener| (to + 7 * listener as usize) % names.len());
                Recipients::Many(listeners.map(&mut place).collect())
            } else {
                Recipients::One(place(to))
            };
            if number < written {
                continue;
            }
            text[..8].copy_from_slice(&number.to_le_bytes());
            let id = MessageId { sender: ids[from], number: number + 1 };
            let fields = MessageFields {
                id,
                from: names[from].as_bytes(),
                to: if shout { b"*" } else { names[to].as_bytes() },
                topic: topic.as_bytes(),
                thread: thread.as_bytes(),
                text: &text,
                ..Default::default()
            };
            let mut raw = Vec::new();
            let checksum = encode::message_body(&mut raw, &fields);
            let accepted_at_ms = START_MS + number * APART_MS;
            segment.push(&Record::Message {
                id,
                raw: raw.into(),
                checksum,
                accepted_at_ms,
                ttl_ms: 0,
                parts: 1,
                recipients,
            });
        }
        if segment.is_empty() {
            continue;
        }
        store.append(&mut segment)?;
        segment.clear();
        let indexing = Instant::now();
        follower.catch_up(store)?;
        follower.close_group_if_full(store)?;
        index_time += indexing.elapsed();
    }
    let fresh = messages.saturating_sub(written).max(1);
    let elapsed = started.elapsed();
    println!("written in {elapsed:?}; of it followed and indexed in {:?} a message", index_time / fresh as u32);
    Ok(())
}

/// Runs `work`, which says how much it found, again and again; prints the middle and the slow end.
fn measure(title: &str, work: &mut dyn FnMut() -> Result<u64, Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let mut times = Vec::new();
    let mut found = 0;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        found += black_box(work()?);
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let (middle, slow, slowest) = (at(0.5), at(0.99), at(1.0));
    println!("{title:<36} p50 {middle:>10.1?}  p99 {slow:>10.1?}  max {slowest:>10.1?}  found {}", found / ROUNDS);
    Ok(())
}

fn memory_kib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}
