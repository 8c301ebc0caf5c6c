//! The writer: one thread that puts what was accepted on disk, in order, and tells each shard how far it has got. Its
//! commit is one segment appended to the store; nothing else is done on this thread. Beside it the absorber.
//!
//! ```text
//! batches of all shards ─► segment ─► append, flushed ───► committed through n, to each shard
//!                             ▲                 │ the disk refuses: kept, tried again, `status` says why
//!                             └─────────────────┘
//! ```
#![forbid(unsafe_code)]

mod absorber;

pub use absorber::Absorber;

use crate::base::ShardId;
use crate::base::limits::{QUESTIONS_MAX, WRITER_BATCH_BYTES_MAX, WRITER_BATCH_RECORDS_MAX, WRITER_BATCHES_MAX};
use crate::mesh::{Mesh, WriterPost};
use crate::relay::{Question, Reading, Record};
use crate::store::{ABSORBED_AT_ONCE, Segment, Store, StoreError, Trouble};
use crate::uring::Waker;
use parking_lot::Mutex;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How long a commit waits for more in the mode that syncs once a second.
const RELAXED_INTERVAL: Duration = Duration::from_secs(1);
/// How long records that nobody waits for (progress, refusals, reads) wait for a message to share a commit with.
const NOTES_INTERVAL: Duration = Duration::from_millis(50);
/// A segment of that mode is committed early at this size: it is what a crash may cost, and memory.
const RELAXED_BYTES_MAX: usize = 8 * WRITER_BATCH_BYTES_MAX;
/// After a refusal of the disk the first try comes this soon …
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// … and later ones at most this far apart.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A commit of so many messages was shared: the next is worth a moment's wait, until nothing has come for this long …
const GATHER_STILL: Duration = Duration::from_micros(40);
const SHARED_MIN: u32 = 8;
/// … but not before an answer to a receipt can be here …
const ANSWER_TIME: Duration = Duration::from_micros(100);
/// … and never longer than this.
const GATHER_MAX: Duration = Duration::from_micros(1_000);
/// How long the disk may refuse after the daemon was told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// What the writer is told once.
pub struct Options {
    /// Whether commits wait up to a second, so that there are few of them.
    pub relaxed: bool,
}

/// What `status` shows of the writer; written by its thread alone.
#[derive(Default)]
pub struct Gauges {
    /// Records committed, over all shards.
    pub committed: AtomicU64,
    /// Messages among them.
    pub messages: AtomicU64,
    /// Commits.
    pub commits: AtomicU64,
    /// Records taken from the shards and not committed yet.
    pub pending: AtomicU64,
    /// Messages taken from the shards and not committed yet.
    pub unwritten: AtomicU64,
    /// Messages, and all records, that were not committed when the writer gave up: they are lost with the process.
    pub lost: (AtomicU64, AtomicU64),
    /// What is wrong with the disk, if anything is.
    pub trouble: Mutex<Option<Trouble>>,
    /// Why what was appended is not put into the log; written by the absorber.
    pub log_trouble: Mutex<Option<Trouble>>,
}

/// How to end the sleep of those who wait for commits.
pub struct Bells {
    /// The writer's own.
    pub own: Waker,
    /// Each shard's.
    pub shards: Vec<Waker>,
    /// The keeper's.
    pub keeper: Waker,
    /// The historian's.
    pub historian: Waker,
    /// The absorber's.
    pub absorber: Waker,
}

/// The writer, on its own thread.
pub struct Writer {
    options: Options,
    mesh: Arc<Mesh>,
    store: Store,
    bells: Bells,
    gauges: Arc<Gauges>,
    stop: Arc<AtomicBool>,
    segment: Segment,
    /// Records taken and committed, per shard.
    taken: Vec<u64>,
    committed: Vec<u64>,
    /// Questions that wait for the commit of what every shard had when they came: each with the number of that wish. They
    /// do not queue behind records: whoever follows the wish has handed over what it had, the asker's own included.
    questions: Vec<(u64, ShardId, Question)>,
    /// What agents say to have read, to be looked up when the segment is committed.
    readings: Vec<(ShardId, Vec<Reading>)>,
    /// The last wish that all shards had followed when their queues were last found empty.
    flushed: u64,
    /// When the oldest record of the segment was taken.
    since: Option<Instant>,
    urgent: bool,
    /// Messages in the largest of the last commits, and how long the last one took.
    shared: u32,
    commit_took: Duration,
    /// When to try again, and how long to wait after that.
    retry: Option<(Instant, Duration)>,
    stop_seen: Option<Instant>,
}

impl Writer {
    /// A writer that has taken nothing yet. It returns after `stop`, when all queues to it are empty and committed.
    pub fn new(
        options: Options,
        mesh: Arc<Mesh>,
        store: Store,
        bells: Bells,
        gauges: Arc<Gauges>,
        stop: Arc<AtomicBool>,
    ) -> Writer {
        let none = vec![0; bells.shards.len()];
        Writer {
            options,
            mesh,
            store,
            bells,
            gauges,
            stop,
            segment: Segment::new(),
            taken: none.clone(),
            committed: none,
            questions: Vec::new(),
            readings: Vec::new(),
            flushed: 0,
            since: None,
            urgent: false,
            shared: 0,
            commit_took: Duration::ZERO,
            retry: None,
            stop_seen: None,
        }
    }

    /// Takes what has arrived, commits it, sleeps; until told to stop.
    pub fn run(mut self) {
        // A wait of some microseconds is meant as one; where that is refused they are some fifty.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            let took_any = self.take();
            if self.is_due(stopping) {
                self.gather();
                self.commit();
                continue;
            }
            if took_any {
                continue;
            }
            if stopping {
                if self.segment.is_empty() {
                    return;
                }
                // Only a disk that refuses leads here.
                if self.stop_seen.get_or_insert_with(Instant::now).elapsed() > STOP_PATIENCE {
                    return self.give_up();
                }
            }
            self.mesh.writer_sleeper().doze();
            let more = self.has_room() && (self.mesh.any_batch_for_writer() || self.wish_was_followed());
            if !(more || (self.questions.len() < QUESTIONS_MAX && self.mesh.any_question_for_writer()))
                && stopping == self.stop.load(Ordering::Acquire)
            {
                self.bells.own.wait(self.timeout());
            }
            self.mesh.writer_sleeper().awake();
        }
    }

    /// The disk has refused to the end. What is still in the queues is lost, too: it is taken, to be counted.
    fn give_up(&mut self) {
        for index in 0..self.taken.len() {
            for _ in 0..WRITER_BATCHES_MAX {
                match self.mesh.pop_batch(ShardId(index as u16)) {
                    Some(WriterPost::Records(batch)) => {
                        for record in &batch {
                            self.segment.push(record);
                        }
                    }
                    Some(WriterPost::Readings(..)) => {}
                    None => break,
                }
            }
        }
        let (messages, records) = (u64::from(self.segment.messages()), u64::from(self.segment.records()));
        self.gauges.lost.0.store(messages, Ordering::Release);
        self.gauges.lost.1.store(records, Ordering::Release);
        let reason = self.gauges.trouble.lock().as_ref().map_or("unknown", |trouble| trouble.kind);
        tracing::error!(messages, records, reason, "the disk refuses to the end: these are lost with this process");
    }

    /// Whether a shard has followed a wish since the queues were looked at: one that had nothing to hand over leaves no
    /// other trace, and found the writer awake.
    fn wish_was_followed(&self) -> bool {
        !self.questions.is_empty() && self.mesh.flushed_by_all() > self.flushed
    }

    fn timeout(&self) -> Option<Duration> {
        let until = match (self.retry, self.since) {
            (Some((at, _)), _) => at,
            (None, Some(since)) => since + self.patience(),
            (None, None) => return None,
        };
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// How long what is here may wait for more.
    fn patience(&self) -> Duration {
        if self.options.relaxed { RELAXED_INTERVAL } else { NOTES_INTERVAL }
    }

    fn has_room(&self) -> bool {
        let (bytes, records) = if self.options.relaxed {
            (RELAXED_BYTES_MAX, u32::MAX)
        } else {
            (WRITER_BATCH_BYTES_MAX, WRITER_BATCH_RECORDS_MAX as u32)
        };
        self.segment.bytes() < bytes && self.segment.records() < records
    }

    /// Takes what the shards have, and lets them go on if they had to wait for that. Says whether there was anything.
    fn take(&mut self) -> bool {
        let took_batches = self.take_batches();
        if took_batches {
            self.gauges.unwritten.store(u64::from(self.segment.messages()), Ordering::Relaxed);
            self.wake_those_left_unread();
        }
        self.take_questions() || took_batches
    }

    /// Takes questions, whether there is room for records or not: while the disk refuses they wait for nothing.
    fn take_questions(&mut self) -> bool {
        let before = self.questions.len();
        while self.questions.len() < QUESTIONS_MAX
            && let Some((asker, question)) = self.mesh.pop_writer_question()
        {
            self.questions.push((self.mesh.want_flush(), asker, question));
        }
        let took_any = self.questions.len() > before;
        if took_any {
            for (index, bell) in self.bells.shards.iter().enumerate() {
                if self.mesh.shard_sleeper(ShardId(index as u16)).rouse() {
                    bell.wake();
                }
            }
        }
        took_any
    }

    /// One batch of each shard in turn, so that no shard waits for another's flood. What does not fit into one commit stays
    /// in their queues, which are bounded.
    fn take_batches(&mut self) -> bool {
        let flushed = self.mesh.flushed_by_all();
        let mut took_any = false;
        for _ in 0..WRITER_BATCHES_MAX {
            let mut took = false;
            for index in 0..self.taken.len() {
                let shard = ShardId(index as u16);
                if !self.has_room() {
                    return took_any || took;
                }
                match self.mesh.pop_batch(shard) {
                    Some(WriterPost::Records(batch)) => {
                        self.taken[index] += batch.len() as u64;
                        for record in &batch {
                            self.urgent |= matches!(record, Record::Session(_) | Record::Nobody { .. });
                            self.segment.push(record);
                        }
                        self.mesh.give_back(shard, batch);
                        self.since.get_or_insert_with(Instant::now);
                        took = true;
                    }
                    Some(WriterPost::Readings(asker, readings)) => {
                        self.readings.push((asker, readings));
                        took = true;
                    }
                    None => {}
                }
            }
            took_any |= took;
            if !took {
                // Whatever was handed over before that wish was followed has been taken.
                self.flushed = flushed;
                break;
            }
        }
        took_any
    }

    /// Waits a moment for those who were told of the last commit: what they say next then shares one commit with what is
    /// here already, instead of waiting for it. Only when the last one was shared; while less than half of that is here
    /// again, for as long as a commit takes: that is what those who come late would wait. (Groups
    /// that have once met stay together, since they are told together.)
    fn gather(&mut self) {
        if self.shared < SHARED_MIN || self.retry.is_some() {
            return;
        }
        let began = Instant::now();
        while self.has_room() {
            let before = self.segment.messages();
            // Asleep and not spinning: the shards may be on this very core.
            self.mesh.writer_sleeper().doze();
            if !self.mesh.any_batch_for_writer() && !self.mesh.any_question_for_writer() {
                self.bells.own.wait(Some(GATHER_STILL));
            }
            self.mesh.writer_sleeper().awake();
            self.take();
            let few = self.segment.messages() < self.shared / 2;
            let waited = began.elapsed();
            if waited >= if few { self.commit_took.min(GATHER_MAX) } else { ANSWER_TIME }
                && self.segment.messages() == before
            {
                return;
            }
            if waited >= GATHER_MAX {
                return;
            }
        }
    }

    fn is_due(&mut self, stopping: bool) -> bool {
        if self.segment.is_empty() {
            self.pass_questions();
            self.pass_readings();
            return false;
        }
        if let Some((at, _)) = self.retry {
            // What is stored can be read while the disk takes nothing new.
            self.pass_questions();
            return Instant::now() >= at;
        }
        // Progress and the like ride with the next message: nobody waits for them, and a commit costs the same.
        let patience =
            if self.options.relaxed || self.segment.messages() == 0 { self.patience() } else { Duration::ZERO };
        let waited = self.since.is_some_and(|since| since.elapsed() >= patience);
        self.urgent || waited || stopping || !self.has_room() || !self.questions.is_empty()
    }

    fn commit(&mut self) {
        let records = u64::from(self.segment.records());
        self.gauges.pending.store(records, Ordering::Relaxed);
        let (began, unabsorbed) = (Instant::now(), self.store.unabsorbed_bytes());
        let awaited = !self.questions.is_empty() || self.mesh.any_hurried();
        let appended = match awaited {
            true => self.store.append(&mut self.segment),
            false => self.store.append_at_once(&mut self.segment),
        };
        match appended {
            Ok(_) => {
                self.commit_took = began.elapsed();
                self.gauges.commits.fetch_add(1, Ordering::Relaxed);
                // Slowly forgotten: a small commit between two large ones must not make the next one small too.
                self.shared = self.segment.messages().max(self.shared - self.shared.div_ceil(8));
                self.gauges.messages.fetch_add(u64::from(self.segment.messages()), Ordering::Relaxed);
                self.gauges.committed.fetch_add(records, Ordering::Relaxed);
                self.gauges.pending.store(0, Ordering::Relaxed);
                self.gauges.unwritten.store(0, Ordering::Relaxed);
                self.segment.clear();
                self.since = None;
                self.urgent = false;
                if self.retry.take().is_some() {
                    self.mesh.set_writer_in_trouble(false);
                    *self.gauges.trouble.lock() = None;
                    tracing::info!(records, "the disk takes what it is given again; everything accepted is committed");
                }
                self.tell_shards();
                self.pass_questions();
                self.pass_readings();
                if self.mesh.keeper_rest().rouse() {
                    self.bells.keeper.wake();
                }
                let waiting = self.store.unabsorbed_bytes();
                let enough = waiting >= ABSORBED_AT_ONCE || (unabsorbed == 0 && waiting > 0);
                if enough && self.mesh.absorber_rest().rouse() {
                    self.bells.absorber.wake();
                }
            }
            Err(error) => self.put_off(&error),
        }
    }

    fn tell_shards(&mut self) {
        for index in 0..self.taken.len() {
            if self.taken[index] == self.committed[index] {
                continue;
            }
            self.committed[index] = self.taken[index];
            let shard = ShardId(index as u16);
            self.mesh.commit(shard, self.committed[index]);
            if self.mesh.awaits_commit(shard) && self.mesh.shard_sleeper(shard).rouse() {
                self.bells.shards[index].wake();
            }
        }
    }

    /// Rings the shards that leave senders unread, if they need not any more. Before the commit of what was just taken: it
    /// takes a while, and the next one is to find something.
    ///
    /// No wake-up is lost: a shard says that it waits, dozes, and then looks whether the writer has caught up; this looks at
    /// what waits for the writer after something was taken, and then, with a fence between, who waits. Of the two
    /// looks the later one sees the other's word. What is handed over meanwhile only makes more wait for the writer: that it
    /// takes in the end, and comes here again.
    fn wake_those_left_unread(&self) {
        if !self.mesh.writer_has_caught_up() {
            return;
        }
        for shard in self.mesh.awaiting_writer() {
            if self.mesh.shard_sleeper(shard).rouse() {
                self.bells.shards[usize::from(shard.0)].wake();
            }
        }
    }

    /// The disk refuses: the segment stays, and is tried again. Meanwhile the queues fill, and then senders hear BUSY.
    fn put_off(&mut self, error: &StoreError) {
        let wait = self.retry.map_or(RETRY_FIRST, |(_, wait)| (wait * 2).min(RETRY_MAX));
        if self.retry.is_none() {
            tracing::error!(reason = error.kind(), "the store takes nothing: {}", error.while_running());
        }
        self.retry = Some((Instant::now() + wait, wait));
        // Whoever is left unread is to hear why nothing more is accepted.
        self.mesh.set_writer_in_trouble(true);
        self.wake_those_left_unread();
        let mut trouble = self.gauges.trouble.lock();
        let since_ms = trouble.as_ref().map_or_else(wall_ms, |trouble| trouble.since_ms);
        *trouble = Some(Trouble::of(error, since_ms));
    }

    /// Every record that came before them is committed. They are not passed on while the disk refuses: what they ask is
    /// whether such a record is there.
    fn pass_readings(&mut self) {
        if self.readings.is_empty() {
            return;
        }
        for (asker, readings) in self.readings.drain(..) {
            self.mesh.push_readings(asker, readings);
        }
        if self.mesh.historian_sleeper().rouse() {
            self.bells.historian.wake();
        }
    }

    fn pass_questions(&mut self) {
        if self.questions.is_empty() {
            return;
        }
        let trouble = self.retry.is_some();
        for (_, asker, question) in self.questions.extract_if(.., |(wish, _, _)| trouble || *wish <= self.flushed) {
            // A full queue means a thousand unanswered questions: the asker's own deadline will tell it.
            let _ = self.mesh.push_historian(asker, question);
        }
        if self.mesh.historian_sleeper().rouse() {
            self.bells.historian.wake();
        }
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
