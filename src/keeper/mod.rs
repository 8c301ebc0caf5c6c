//! The keeper: one thread behind the writer. It follows the log, writes down what a restart would otherwise have to replay,
//! closes groups of the history index, deletes what has outlived the retention time, and fetches owed mail for the shards.
//! All of it in small transactions of its own: a commit of the writer never waits longer than one of them takes.
#![forbid(unsafe_code)]

mod clock;

pub use clock::{Reading, SweepClock, finding, sentence};

use crate::base::limits::FETCHES_IN_HAND_MAX;
use crate::base::{AgentId, ShardId};
use crate::mesh::{Mesh, Notice};
use crate::relay::{Fetch, Fetched};
use crate::store::{Follower, Store, StoreError, Trouble};
use crate::uring::Waker;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// The keeper's nice value: last.
const NICENESS: i32 = 19;
/// While commits come, the log is followed this often.
const NAP: Duration = Duration::from_millis(50);
/// Rows are written down this often, when any have changed.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Rows of one transaction: some tens of pages.
const ROWS_AT_ONCE: usize = 128;
/// After a transaction the writer has the store to itself for this many times as long as it took.
const YIELD_FACTOR: u32 = 4;
/// How often what has outlived the retention time is deleted.
const SWEEP_EVERY: Duration = Duration::from_secs(3_600);
/// Messages deleted in one transaction.
const SWEPT_AT_ONCE: u64 = 2_000;
/// How often readers that died without a word are cleared away: as long as one is there, no page is used again.
const STALE_READERS_EVERY: Duration = Duration::from_secs(5);
/// How long the keeper sleeps when nothing happens.
const REST: Duration = Duration::from_secs(60);
/// How long the disk may refuse before the keeper tries again.
const RETRY: Duration = Duration::from_secs(1);

/// What the keeper is told once.
pub struct Options {
    /// How long messages are kept, milliseconds. A change of licence changes it; each sweep looks.
    pub retention_ms: Arc<AtomicU64>,
    /// The time that retention goes by, and which boot of the machine this is.
    pub clock: SweepClock,
    /// See `clock`.
    pub boot: [u8; 16],
}

/// What `status` shows of the keeper; written by its thread alone.
#[derive(Default)]
pub struct Gauges {
    /// Everything in the log up to this segment is written down in rows.
    pub applied: AtomicU64,
    /// Segments that no group of the index covers yet.
    pub unindexed_segments: AtomicU64,
    /// Messages deleted by retention since the start.
    pub swept_messages: AtomicU64,
    /// When the last sweep ended, milliseconds since 1970; 0: none yet.
    pub swept_at_ms: AtomicU64,
    /// Owed messages fetched for shards.
    pub fetched_messages: AtomicU64,
    /// Times that something could not be done; the log says what.
    pub failures: AtomicU64,
    /// What is wrong with the disk, if anything is: the sweep and the rows meet it though nobody sends anything.
    pub trouble: Mutex<Option<Trouble>>,
    /// By how much the wall clock is ahead of the time that is believed, milliseconds; behind: negative; 0: it is
    /// believed. `sentence` says it.
    pub clock_doubt_ms: AtomicI64,
}

/// The keeper, on its own thread.
pub struct Keeper {
    options: Options,
    mesh: Arc<Mesh>,
    store: Store,
    follower: Arc<Follower>,
    own: Waker,
    shards: Vec<Waker>,
    gauges: Arc<Gauges>,
    stop: Arc<AtomicBool>,
    /// Answers that a shard's queue did not take.
    held: VecDeque<(ShardId, Box<Fetched>)>,
    /// A fetch that was taken and could not be answered: the agent it is for asks for nothing else until it is.
    unanswered: Option<(ShardId, Fetch)>,
    /// Rows to be written before the log is applied further in the rows' own view.
    checkpoint: Option<Checkpoint>,
    checkpointed_at: Instant,
    swept_at: Option<Instant>,
    sweeping: bool,
    mended: bool,
    readers_cleared_at: Instant,
    /// When the time was last kept for the next start.
    time_kept_at: Option<Instant>,
    failing_since: Option<Instant>,
    /// Whether damage was met and told.
    damaged: bool,
}

/// Rows on their way to the disk.
struct Checkpoint {
    /// Everything up to here is in the rows once all of them are written.
    through: u64,
    rows: Vec<AgentId>,
    forgotten: Vec<AgentId>,
}

impl Keeper {
    /// A keeper that has everything still to do. It returns after `stop`, having written down what is there.
    #[expect(clippy::too_many_arguments, reason = "each end is handed over once, by name, where the threads are made")]
    pub fn new(
        options: Options,
        mesh: Arc<Mesh>,
        store: Store,
        follower: Arc<Follower>,
        own: Waker,
        shards: Vec<Waker>,
        gauges: Arc<Gauges>,
        stop: Arc<AtomicBool>,
    ) -> Keeper {
        let now = Instant::now();
        gauges.applied.store(store.applied(), Ordering::Relaxed);
        Keeper {
            options,
            mesh,
            store,
            follower,
            own,
            shards,
            gauges,
            stop,
            held: VecDeque::new(),
            unanswered: None,
            checkpoint: None,
            checkpointed_at: now,
            swept_at: None,
            sweeping: false,
            mended: false,
            readers_cleared_at: now,
            time_kept_at: None,
            failing_since: None,
            damaged: false,
        }
    }

    /// Follows, fetches, writes down, sweeps; until told to stop.
    pub fn run(mut self) {
        // Whatever it does can wait for a shard that has a message in its hands, also on the same core.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            let before = self.follower.position();
            match self.round(stopping) {
                Ok(()) => {
                    if self.failing_since.take().is_some() {
                        *self.gauges.trouble.lock() = None;
                    }
                }
                Err(error) => {
                    self.gauges.failures.fetch_add(1, Ordering::Relaxed);
                    if self.failing_since.is_none() {
                        tracing::warn!(reason = error.kind(), "the store's upkeep waits: {error}");
                    }
                    self.failing_since = Some(Instant::now());
                    let mut trouble = self.gauges.trouble.lock();
                    let since_ms = trouble.as_ref().map_or_else(wall_ms, |trouble| trouble.since_ms);
                    *trouble = Some(Trouble::of(&error, since_ms));
                }
            }
            if !self.damaged
                && let Some(damage) = self.follower.damage()
            {
                self.damaged = true;
                tracing::error!("the store is damaged ({damage}): what lies there is passed over; run `relay doctor`");
            }
            if stopping {
                return;
            }
            let moved = self.follower.position() != before;
            self.sleep(moved);
        }
    }

    fn sleep(&mut self, moved: bool) {
        let busy = self.checkpoint.is_some() || self.sweeping || self.follower.is_behind(&self.store);
        let idle = !moved && !busy && !self.follower.is_dirty() && self.held.is_empty();
        self.mesh.keeper_sleeper().doze();
        if idle {
            self.mesh.keeper_rest().doze();
        }
        let asked = self.mesh.anything_for_keeper() || (idle && self.follower.is_behind(&self.store));
        if !asked && !self.stop.load(Ordering::Acquire) {
            let timeout = if self.failing_since.is_some() {
                RETRY
            } else if busy || !self.held.is_empty() {
                Duration::from_millis(1)
            } else if idle {
                REST
            } else {
                NAP
            };
            self.own.wait(Some(timeout));
        }
        self.mesh.keeper_sleeper().awake();
        self.mesh.keeper_rest().awake();
    }

    fn round(&mut self, stopping: bool) -> Result<(), StoreError> {
        self.answer_fetches()?;
        if !self.mended {
            self.mended = true;
            self.follower.mend(&self.store)?;
        }
        self.follower.catch_up(&self.store)?;
        self.answer_fetches()?;
        self.follower.close_group_if_full(&self.store)?;
        let since_group = self.follower.position().saturating_sub(self.follower.indexed_through());
        self.gauges.unindexed_segments.store(since_group, Ordering::Relaxed);
        self.write_rows(stopping)?;
        self.keep_time(stopping)?;
        self.sweep()?;
        if self.readers_cleared_at.elapsed() >= STALE_READERS_EVERY {
            self.readers_cleared_at = Instant::now();
            self.store.clear_stale_readers()?;
        }
        Ok(())
    }

    fn answer_fetches(&mut self) -> Result<(), StoreError> {
        self.pass_answers();
        for index in 0..self.shards.len() {
            let shard = ShardId(index as u16);
            while self.held.len() < FETCHES_IN_HAND_MAX {
                let taken = self.unanswered.take().or_else(|| Some((shard, self.mesh.pop_fetch(shard)?)));
                let Some((shard, fetch)) = taken else { break };
                match self.answer(&fetch) {
                    Ok(fetched) => self.held.push_back((shard, Box::new(fetched))),
                    Err(error) => {
                        self.unanswered = Some((shard, fetch));
                        return Err(error);
                    }
                }
                self.pass_answers();
            }
        }
        Ok(())
    }

    fn answer(&mut self, fetch: &Fetch) -> Result<Fetched, StoreError> {
        // What the shard knew to be committed when it asked must be found: it takes a complete answer at its word.
        if self.follower.is_behind(&self.store) {
            self.follower.catch_up(&self.store)?;
        }
        let fetched = self.follower.fetch(&self.store, fetch)?;
        self.gauges.fetched_messages.fetch_add(fetched.messages.len() as u64, Ordering::Relaxed);
        Ok(fetched)
    }

    fn pass_answers(&mut self) {
        while let Some((shard, fetched)) = self.held.pop_front() {
            if let Err(Notice::Fetched(fetched)) = self.mesh.notify(shard, Notice::Fetched(fetched)) {
                self.held.push_front((shard, fetched));
                return;
            }
            if self.mesh.shard_sleeper(shard).rouse() {
                self.shards[usize::from(shard.0)].wake();
            }
        }
    }

    /// Writes changed rows, a few at a time; all of them before the end.
    fn write_rows(&mut self, stopping: bool) -> Result<(), StoreError> {
        if self.checkpoint.is_none() && (stopping || self.checkpointed_at.elapsed() >= CHECKPOINT_EVERY) {
            self.checkpointed_at = Instant::now();
            if let Some((through, rows, forgotten)) = self.follower.take_changes() {
                self.checkpoint = Some(Checkpoint { through, rows, forgotten });
            }
        }
        while let Some(checkpoint) = &mut self.checkpoint {
            let started = Instant::now();
            // All that were forgotten come before all rows: one of them may have been met again since.
            let few = |count: usize| count.saturating_sub(ROWS_AT_ONCE);
            if checkpoint.forgotten.is_empty() {
                let first = few(checkpoint.rows.len());
                self.follower.keep_rows(&self.store, &checkpoint.rows[first..], &[])?;
                checkpoint.rows.truncate(first);
            } else {
                let first = few(checkpoint.forgotten.len());
                self.follower.keep_rows(&self.store, &[], &checkpoint.forgotten[first..])?;
                checkpoint.forgotten.truncate(first);
            }
            if checkpoint.forgotten.is_empty() && checkpoint.rows.is_empty() {
                // A crash before this mark replays a little more.
                self.store.mark_applied(checkpoint.through)?;
                self.gauges.applied.store(checkpoint.through, Ordering::Relaxed);
                self.checkpoint = None;
            }
            if !stopping {
                self.give_way(started.elapsed());
                self.answer_fetches()?;
            }
        }
        Ok(())
    }

    /// Lets the writer go first for a while.
    fn give_way(&self, took: Duration) {
        self.own.wait(Some(took * YIELD_FACTOR));
    }

    fn sweep(&mut self) -> Result<(), StoreError> {
        let due = self.swept_at.is_none_or(|at| at.elapsed() >= SWEEP_EVERY);
        if !due && !self.sweeping {
            return Ok(());
        }
        if !self.sweeping {
            self.sweeping = true;
            self.swept_at = Some(Instant::now());
        }
        let started = Instant::now();
        let now_ms = self.time_ms();
        let cutoff_ms = now_ms.saturating_sub(self.options.retention_ms.load(Ordering::Relaxed));
        let swept = self.store.sweep_step(cutoff_ms, now_ms, SWEPT_AT_ONCE)?;
        self.gauges.swept_messages.fetch_add(swept.messages, Ordering::Relaxed);
        if swept.done {
            self.sweeping = false;
            self.gauges.swept_at_ms.store(wall_ms(), Ordering::Relaxed);
        }
        self.give_way(started.elapsed());
        Ok(())
    }

    /// The time that retention goes by: a wall clock that is wrong deletes nothing.
    fn time_ms(&mut self) -> u64 {
        let now = Reading::now(self.options.boot);
        let time_ms = self.options.clock.sweep_ms(now);
        self.gauges.clock_doubt_ms.store(self.options.clock.doubt_ms(now), Ordering::Relaxed);
        time_ms
    }

    /// Keeps the time for the next start: at this one, every hour, and at the end.
    fn keep_time(&mut self, stopping: bool) -> Result<(), StoreError> {
        if !stopping && self.time_kept_at.is_some_and(|at| at.elapsed() < SWEEP_EVERY) {
            return Ok(());
        }
        self.time_ms();
        self.store.keep_time(&self.options.clock.kept(Reading::now(self.options.boot)))?;
        self.time_kept_at = Some(Instant::now());
        Ok(())
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
