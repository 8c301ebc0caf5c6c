//! The store's threads: opened before the first listener, ended after the last shard.

use super::settings::{Durability, Settings};
use crate::base::{AgentId, MessageId, NameHasher};
use crate::history::Historian;
use crate::keeper::{self, Keeper, Reading, SweepClock};
use crate::mesh::Mesh;
use crate::relay::Remembered;
use crate::store::{self, Follower, Store};
use crate::uring::Waker;
use crate::writer::{self, Absorber, Writer};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] store::OpenError),
    /// It can be opened, but not read or written.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The key is not one.
    #[error(transparent)]
    Key(#[from] store::KeyError),
    /// A thread could not be started.
    #[error("cannot start the store's threads: {0}")]
    Thread(io::Error),
}

/// The store, opened and read.
pub(super) struct Storage {
    pub(super) store: Store,
    pub(super) follower: Arc<Follower>,
    /// This start of the daemon: greater than all before it, and on disk.
    pub(super) epoch: u32,
    /// The time that retention goes by, and which boot of the machine this is.
    clock: SweepClock,
    boot: [u8; 16],
    /// Fan-outs that a crash parted, and who has them: for every shard.
    pub(super) parted: Vec<(MessageId, Vec<AgentId>)>,
}

/// The time that retention goes by, for whoever deletes beside the keeper: a wall clock that is wrong deletes nothing.
pub(super) struct RetentionClock {
    clock: SweepClock,
    boot: [u8; 16],
}

impl RetentionClock {
    /// What is older than this by the retention time may be deleted, milliseconds since 1970.
    pub(super) fn sweep_ms(&mut self) -> u64 {
        self.clock.sweep_ms(Reading::now(self.boot))
    }
}

/// What `status` shows of the store's threads.
#[derive(Clone, Default)]
pub(super) struct StorageGauges {
    pub(super) writer: Arc<writer::Gauges>,
    pub(super) keeper: Arc<keeper::Gauges>,
}

impl Storage {
    /// Opens the store, begins an epoch, and reads what is remembered.
    pub(super) fn open(settings: &Settings, seconds_now: u32) -> Result<Storage, StorageError> {
        let key = settings.db_key.as_ref().map(|text| store::Key::parse(text.reveal())).transpose()?;
        let opened = Instant::now();
        let options = store::Options::new(settings.layout.folder.join("store"), key);
        let store = Store::open(store::Options { map_bytes: settings.map_bytes, ..options })?;
        for left in store::copy::leftovers(store.folder()) {
            tracing::warn!(folder = %left.display(), "left by a copy that did not end, perhaps under an old key or none: remove it");
        }
        if let Some((end, segment)) = store.journal_gap() {
            tracing::warn!(
                end,
                segment,
                "the journal is of another moment than the store: what does not follow is passed over"
            );
        }
        // What is damaged is found before anything is written.
        let follower = Follower::recover(&store)?;
        store.look_at_control()?;
        let epoch = store.begin_epoch(seconds_now, 0)?;
        // Where the kernel does not say, each start is a boot of its own.
        let boot = boot().unwrap_or_else(|| u128::from(epoch).to_be_bytes());
        let now = Reading::now(boot);
        let clock = clock(&store, now)?;
        let doubt_ms = clock.doubt_ms(now);
        if doubt_ms != 0 {
            tracing::warn!(doubt_ms, "{}", keeper::sentence(doubt_ms));
        }
        let took_ms = opened.elapsed().as_millis() as u64;
        tracing::info!(
            epoch,
            agents = follower.memory.read().rows().filter(|row| row.name.is_some()).count(),
            segments = store.last_segment()?,
            took_ms,
            "the store is open"
        );
        let parted = {
            let memory = follower.memory.read();
            let parted = memory.rows().flat_map(|row| {
                let id = |number| MessageId { sender: row.agent, number };
                row.sent.partial.iter().map(move |partial| (id(partial.number), partial.recipients.clone()))
            });
            parted.collect()
        };
        Ok(Storage { store, follower: Arc::new(follower), epoch, clock, boot, parted })
    }

    /// A copy of the clock, which comes to believe the same at the same time.
    pub(super) fn retention_clock(&self) -> RetentionClock {
        RetentionClock { clock: self.clock, boot: self.boot }
    }

    /// By how much the wall clock is ahead of what is believed; 0: it is not.
    pub(super) fn clock_ahead_ms(&self) -> u64 {
        self.clock.doubt_ms(Reading::now(self.boot)).max(0) as u64
    }

    /// Who lives at each of `shards` shards, by the home of the name.
    pub(super) fn homes(&self, name_seed: u64, shards: u16) -> Vec<Vec<AgentId>> {
        let hasher = NameHasher::new(name_seed);
        let mut homes: Vec<Vec<AgentId>> = (0..shards).map(|_| Vec::new()).collect();
        for row in self.follower.memory.read().rows() {
            match &row.name {
                Some(name) => {
                    let home = hasher.hash(name.as_bytes()).home(shards);
                    homes[usize::from(home.0)].push(row.agent);
                }
                // What it has sent was committed before its name. Whoever is home to the name knows it by its number.
                None => homes.iter_mut().for_each(|home| home.push(row.agent)),
            }
        }
        homes
    }

    /// The rows of these agents, each copied when it is asked for: by the shard that takes it up, on its own thread.
    pub(super) fn rows_of(&self, agents: Vec<AgentId>) -> impl Iterator<Item = Remembered> + Send + use<> {
        let follower = self.follower.clone();
        agents.into_iter().filter_map(move |agent| follower.row(agent))
    }
}

/// The clock of a start with this store.
fn clock(store: &Store, now: Reading) -> Result<SweepClock, store::StoreError> {
    // What does not read as a time says nothing.
    Ok(SweepClock::start(store.kept_time()?, store.newest_ms().ok().flatten(), now))
}

/// Keeps the time in a store that knows none, before something is put there that is older than it: the newest segment would
/// stand for the time otherwise, and the wall clock be doubted.
pub(crate) fn keep_time_once(store: &Store) -> Result<(), store::StoreError> {
    if store.kept_time()?.is_some() {
        return Ok(());
    }
    let now = Reading::now(boot().unwrap_or_default());
    store.keep_time(&clock(store, now)?.kept(now))
}

pub(crate) use crate::keeper::finding as clock_finding;

/// By how much a start with this store would find the wall clock ahead of what it believes; see `SweepClock::doubt_ms`.
pub(crate) fn clock_doubt_ms(store: &Store) -> Result<i64, store::StoreError> {
    let now = Reading::now(boot().unwrap_or_default());
    Ok(clock(store, now)?.doubt_ms(now))
}

/// Which boot of the machine this is, where the kernel says so.
fn boot() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(32).collect();
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// The bells of the store's threads.
#[derive(Clone)]
pub(super) struct StorageBells {
    pub(super) writer: Waker,
    pub(super) keeper: Waker,
    pub(super) historian: Waker,
    absorber: Waker,
}

impl StorageBells {
    pub(super) fn new() -> io::Result<StorageBells> {
        let lone = Waker::lone;
        Ok(StorageBells { writer: lone()?, keeper: lone()?, historian: lone()?, absorber: lone()? })
    }
}

/// The store's threads, running.
pub(super) struct StorageThreads {
    bells: StorageBells,
    /// The writer ends first; then the others have seen all there is.
    writer_stop: Arc<AtomicBool>,
    others_stop: Arc<AtomicBool>,
    writer: JoinHandle<()>,
    others: [JoinHandle<()>; 3],
}

impl StorageThreads {
    pub(super) fn start(
        storage: &Storage,
        settings: &Settings,
        mesh: &Arc<Mesh>,
        bells: StorageBells,
        shards: Vec<Waker>,
        gauges: &StorageGauges,
        retention_ms: &Arc<AtomicU64>,
    ) -> Result<StorageThreads, StorageError> {
        let writer_stop = Arc::new(AtomicBool::new(false));
        let others_stop = Arc::new(AtomicBool::new(false));
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            Builder::new().name(name.into()).spawn(body).map_err(StorageError::Thread)
        };
        let writer = Writer::new(
            writer::Options { relaxed: settings.durability == Durability::Relaxed },
            mesh.clone(),
            storage.store.clone(),
            writer::Bells {
                own: bells.writer.clone(),
                shards: shards.clone(),
                keeper: bells.keeper.clone(),
                historian: bells.historian.clone(),
                absorber: bells.absorber.clone(),
            },
            gauges.writer.clone(),
            writer_stop.clone(),
        );
        let keeper = Keeper::new(
            keeper::Options { retention_ms: retention_ms.clone(), clock: storage.clock, boot: storage.boot },
            mesh.clone(),
            storage.store.clone(),
            storage.follower.clone(),
            bells.keeper.clone(),
            shards.clone(),
            gauges.keeper.clone(),
            others_stop.clone(),
        );
        let writer_gauges = gauges.writer.clone();
        let historian = Historian::new(
            mesh.clone(),
            storage.store.clone(),
            storage.follower.clone(),
            bells.historian.clone(),
            shards,
            Box::new(move || writer_gauges.trouble.lock().clone()),
            others_stop.clone(),
        );
        let absorber = Absorber::new(
            mesh.clone(),
            storage.store.clone(),
            bells.absorber.clone(),
            gauges.writer.clone(),
            others_stop.clone(),
        );
        let writer = spawn("relay-writer", super::run::abort_on_panic(move || writer.run()))?;
        let keeper = spawn("relay-keeper", super::run::abort_on_panic(move || keeper.run()))?;
        let historian = spawn("relay-history", super::run::abort_on_panic(move || historian.run()))?;
        let absorber = spawn("relay-absorber", super::run::abort_on_panic(move || absorber.run()))?;
        Ok(StorageThreads { bells, writer_stop, others_stop, writer, others: [keeper, historian, absorber] })
    }

    /// What was taken is committed, what was committed is written down, and all end.
    pub(super) fn stop(self) {
        self.writer_stop.store(true, Ordering::Release);
        self.bells.writer.wake();
        let _ = self.writer.join();
        self.others_stop.store(true, Ordering::Release);
        self.bells.keeper.wake();
        self.bells.historian.wake();
        self.bells.absorber.wake();
        for thread in self.others {
            let _ = thread.join();
        }
    }
}
