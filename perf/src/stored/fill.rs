//! Millions of messages as a busy team would have left them: written as the writer writes, followed as the keeper follows.
#![forbid(unsafe_code)]

use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::relay::{Addressee, Owed, ProgressRecord, Recipients, Record};
use agent_relay::store::{Follower, Options, Segment, Store, StoreError};
use agent_relay::wire::{MessageFields, QueryKind, encode};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Agents who wrote them.
pub const AGENTS: usize = 1_000;
/// Topics of every tenth message.
pub const TOPICS: usize = 100;
/// Kinds of questions, as the table names them.
pub const KINDS: [&str; 6] = [
    "history by agent",
    "history by thread",
    "history by topic",
    "history by time",
    "history, newest first",
    "message by id",
];
/// Messages of one commit.
const SEGMENT_MESSAGES: u64 = 1_000;
/// Segments between two looks of the keeper.
const FOLLOWED_AT_ONCE: u64 = 16;
/// Segments between two checkpoints.
const CHECKPOINT_EVERY: u64 = 256;
/// Rows of one transaction, as the keeper writes them.
const ROWS_AT_ONCE: usize = 128;
/// Messages during which a thread is talked in; ten are, at any time.
const THREAD_SPAN: u64 = 2_000;
/// Messages are spread over so many milliseconds before now: within the usual retention.
const SPAN_MS: u64 = 6 * 24 * 3_600_000;
/// One in so many messages goes to a topic …
const TOPIC_EVERY: u64 = 10;
/// … and so many agents hear it.
const LISTENERS: usize = 5;
const TEXT_BYTES: usize = 128;

/// What is needed to ask for what was filled in.
pub struct Filled {
    /// Messages of each agent, numbered from 1.
    sent: Vec<u64>,
    /// How many threads there are.
    pub threads: u64,
    /// Length of the file, and how much of it is in use.
    pub file_bytes: (u64, u64),
    first_ms: u64,
}

fn name(agent: usize) -> String {
    format!("worker-{agent:04}")
}

fn thread_name(thread: u64) -> String {
    format!("task-{thread:07}")
}

fn topic_name(topic: u64) -> String {
    format!("topic-{topic:02}")
}

/// Fills the store in `folder`.
pub fn fill(folder: &Path, messages: u64) -> Result<Filled, String> {
    work(folder, messages).map_err(|error| format!("filling {}: {error}", folder.display()))
}

fn work(folder: &Path, messages: u64) -> Result<Filled, Box<dyn std::error::Error>> {
    let store = Store::open(Options::new(folder, None))?;
    let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis() as u64;
    let epoch = store.begin_epoch((now_ms / 1000) as u32, 0)?;
    let follower = Follower::recover(&store)?;
    let names: Vec<String> = (0..AGENTS).map(name).collect();
    let ids: Vec<AgentId> = names.iter().map(|name| AgentId::of(name.as_bytes())).collect();
    let first_ms = now_ms - SPAN_MS;
    let (mut sent, mut received) = (vec![0u64; AGENTS], vec![0u64; AGENTS]);
    let mut random = Random::new(42);
    let mut segment = Segment::new();
    let mut text = [b'x'; TEXT_BYTES];
    let mut raw = Vec::new();
    for (name, agent) in names.iter().zip(&ids) {
        segment.push(&Record::Known { agent: *agent, name: name.as_str().into(), at_ms: first_ms });
    }
    let mut progress = Progress::begin(messages);
    for number in 0..messages {
        let accepted_at_ms = first_ms + (u128::from(number) * u128::from(SPAN_MS) / u128::from(messages)) as u64;
        let from = random.below(AGENTS as u64) as usize;
        sent[from] += 1;
        let thread = thread_name(number / THREAD_SPAN * 10 + random.below(10));
        let to = (from + 1 + random.below(AGENTS as u64 - 1) as usize) % AGENTS;
        let to_topic = number.is_multiple_of(TOPIC_EVERY);
        let topic = if to_topic { topic_name(random.below(TOPICS as u64)) } else { String::new() };
        for byte in &mut text {
            *byte = b'a' + (random.next() % 26) as u8;
        }
        let id = MessageId { sender: ids[from], number: sent[from] };
        let fields = MessageFields {
            id,
            sent_at_ms: accepted_at_ms,
            from: names[from].as_bytes(),
            to: if to_topic { b"*" } else { names[to].as_bytes() },
            topic: topic.as_bytes(),
            thread: thread.as_bytes(),
            text: &text,
            ..MessageFields::default()
        };
        raw.clear();
        let checksum = encode::message_body(&mut raw, &fields);
        let mut place = |agent: usize| {
            received[agent] += 1;
            Addressee { agent: ids[agent], sequence: Sequence { epoch, counter: received[agent] }, channel: false }
        };
        let recipients = if to_topic {
            Recipients::Many((0..LISTENERS).map(|listener| place((to + listener * 7) % AGENTS)).collect())
        } else {
            Recipients::One(place(to))
        };
        let raw = raw.as_slice().to_vec().into();
        segment.push(&Record::Message { id, raw, checksum, accepted_at_ms, ttl_ms: 0, parts: 1, recipients });
        if u64::from(segment.messages()) == SEGMENT_MESSAGES || number + 1 == messages {
            let last = store.append(&mut segment)?;
            segment.clear();
            if last.is_multiple_of(FOLLOWED_AT_ONCE) {
                follow(&store, &follower)?;
                // Whoever got something has acknowledged it by now.
                for (agent, received) in ids.iter().zip(&received) {
                    segment.push(&acknowledged(*agent, Sequence { epoch, counter: *received }));
                }
            }
            if last.is_multiple_of(CHECKPOINT_EVERY) {
                checkpoint(&store, &follower)?;
            }
            progress.show(number + 1);
        }
    }
    for (agent, received) in ids.iter().zip(&received) {
        segment.push(&acknowledged(*agent, Sequence { epoch, counter: *received }));
    }
    segment.at(now_ms);
    store.append(&mut segment)?;
    follow(&store, &follower)?;
    checkpoint(&store, &follower)?;
    let file_bytes = store.file_bytes()?;
    Ok(Filled { sent, threads: messages.div_ceil(THREAD_SPAN) * 10, file_bytes, first_ms })
}

fn acknowledged(agent: AgentId, through: Sequence) -> Record {
    Record::Progress(ProgressRecord {
        agent,
        delivered: through,
        acknowledged: through,
        settled: Box::default(),
        owed: Owed::default(),
    })
}

fn follow(store: &Store, follower: &Follower) -> Result<(), StoreError> {
    follower.catch_up(store)?;
    while follower.close_group_if_full(store)? {}
    Ok(())
}

fn checkpoint(store: &Store, follower: &Follower) -> Result<(), StoreError> {
    let Some((through, rows, forgotten)) = follower.take_changes() else { return Ok(()) };
    for rows in rows.chunks(ROWS_AT_ONCE) {
        follower.keep_rows(store, rows, &[])?;
    }
    follower.keep_rows(store, &[], &forgotten)?;
    store.mark_applied(through)
}

impl Filled {
    /// A question of this kind about something that exists.
    pub fn question(&self, kind: &str, limit: u32, random: &mut Random) -> (QueryKind, String) {
        let agent = random.below(AGENTS as u64) as usize;
        let filter = match kind {
            "history by agent" => format!(r#""agent":"{}","#, name(agent)),
            "history by thread" => format!(r#""thread":"{}","#, thread_name(random.below(self.threads))),
            "history by topic" => format!(r#""topic":"{}","#, topic_name(random.below(TOPICS as u64))),
            "history by time" => {
                let since = self.first_ms + random.below(SPAN_MS - 3_600_000);
                format!(r#""since_ms":{since},"until_ms":{},"#, since + 3_600_000)
            }
            "message by id" => {
                let number = 1 + random.below(self.sent[agent].max(1));
                let id = MessageId { sender: AgentId::of(name(agent).as_bytes()), number };
                return (QueryKind::Message, format!(r#"{{"id":"{id}"}}"#));
            }
            _ => String::new(),
        };
        (QueryKind::History, format!(r#"{{{filter}"limit":{limit}}}"#))
    }
}

/// Says now and then how far it is.
struct Progress {
    all: u64,
    began: Instant,
    said: Instant,
}

impl Progress {
    fn begin(all: u64) -> Progress {
        Progress { all, began: Instant::now(), said: Instant::now() }
    }

    fn show(&mut self, done: u64) {
        if self.said.elapsed() >= Duration::from_secs(5) || done == self.all {
            self.said = Instant::now();
            let rate = done as f64 / self.began.elapsed().as_secs_f64();
            eprintln!("{done} of {} messages stored, {rate:.0} a second", self.all);
        }
    }
}

/// Numbers that look random and are the same in each run (xorshift64*).
pub struct Random(u64);

impl Random {
    /// From this seed, which is not 0.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    /// One below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
