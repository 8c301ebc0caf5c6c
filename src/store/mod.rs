//! The store: what was accepted, on disk. A journal and an LMDB file; a commit appends one segment, small transactions
//! beside it keep rows, index and retention. Knows records, rows and places; decides nothing about delivery and has no
//! thread of its own. Nothing that is read from the disk is trusted.
//!
//! ```text
//! writer  ── Segment::push, append ──► journal    for somebody who waits: one write and one flush
//! writer  ── append_at_once ──► log               else: one commit of LMDB, with what the journal holds
//! absorber ── absorb_some ──► log                 what the journal holds, many with one commit
//! keeper  ── snapshot, replay::apply ──► Memory ── keep_rows ──► agents, labels ── mark_applied ──► meta
//! keeper  ── index groups, sweep_step ──► index, log
//! clerk   ── change_control, secret, sweep_events ──► keys, secrets, events
//! anybody ── snapshot ──► SegmentView, records    short read transactions
//! ```
//! `docs/STORE.md` draws each database byte by byte. Transactions hold the environment's lock for reading; growing the
//! map and opening the file anew hold it for writing, so that they happen while no transaction is going on.

mod append;
pub mod check;
pub mod control;
pub mod copy;
mod error;
pub mod find;
mod follow;
pub mod index;
mod journal;
mod key;
mod open;
mod record;
pub mod replay;
mod rows;
mod seal;
mod segment;
mod snapshot;
mod sweep;

pub use copy::{Copied, CopyError, OnDamage};
pub use error::{Damage, OpenError, Part, StoreError, Trouble};
pub use follow::Follower;
pub use journal::ABSORBED_AT_ONCE;
pub use key::{Key, KeyError};
pub use open::open_environment;
pub use record::{MessageRef, RecipientsRef, RecordRef};
pub use rows::RowChange;
pub use segment::{Segment, SegmentHeader, SegmentView};
pub use snapshot::Snapshot;
pub use sweep::{KeptTime, Swept};

use crate::base::AgentId;
use append::log_last;
use heed::types::Bytes;
use heed::{Env, MdbError, RwTxn, WithoutTls};
use journal::{Entry, Journal};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use seal::Seal;
use siphasher::sip::SipHasher24;
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// The format this program writes, and the newest it reads.
pub const SCHEMA: u32 = 3;
/// The first format with control data.
const CONTROL_SCHEMA: u32 = 2;
/// Address space of the map when nothing else is said: it costs nothing until it is used.
pub const MAP_BYTES: usize = 64 << 30;
/// Address space that a process has for certain.
const MAP_BYTES_MAX: usize = 1 << 45;

/// Keys of `meta`.
const SCHEMA_KEY: &[u8] = b"schema";
const STORE_ID_KEY: &[u8] = b"store_id";
const CIPHER_KEY: &[u8] = b"cipher";
const EPOCH_KEY: &[u8] = b"epoch";
const APPLIED_KEY: &[u8] = b"applied";
const INDEX_KEY_KEY: &[u8] = b"index_key";
const SALT_PREFIX: &[u8] = b"salt/";

/// First byte of `cipher`.
const CIPHER_PLAIN: u8 = 0;
const CIPHER_AES_256_GCM: u8 = 1;
/// What is sealed behind it, so that a wrong key is told apart from damage.
const CHECK: &[u8] = b"this is the key of this store";

/// Buffers for opened pieces that are kept between uses.
const BUFFERS_MAX: usize = 8;

/// What the store is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// For writing; it is made when it is absent.
    Write,
    /// For reading, beside a daemon that writes.
    Read,
}

/// Where and how to open the store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its folder.
    pub folder: PathBuf,
    /// Its key, if it is, or is to be, encrypted.
    pub key: Option<Key>,
    /// Address space to reserve: [`MAP_BYTES`].
    pub map_bytes: usize,
    /// What for.
    pub access: Access,
}

impl Options {
    /// For writing, with the usual map.
    pub fn new(folder: impl Into<PathBuf>, key: Option<Key>) -> Options {
        Options { folder: folder.into(), key, map_bytes: MAP_BYTES, access: Access::Write }
    }

    /// The same for reading.
    pub fn reading(mut self) -> Options {
        self.access = Access::Read;
        self
    }
}

/// A database, as the library sees it.
type Raw = heed::Database<'static, Bytes, Bytes>;

/// All databases of one environment.
#[derive(Clone, Copy)]
struct Databases {
    meta: Raw,
    log: Raw,
    agents: Raw,
    labels: Raw,
    index: Raw,
    /// None: a store of format 1 that is opened for reading.
    control: Option<ControlDatabases>,
}

/// The databases that format 1 did not have.
#[derive(Clone, Copy)]
struct ControlDatabases {
    keys: Raw,
    secrets: Raw,
    events: Raw,
}

impl Databases {
    fn of(&self, part: Part) -> Option<Raw> {
        let control = self.control;
        Some(match part {
            Part::Meta => self.meta,
            Part::Log => self.log,
            Part::Agents => self.agents,
            Part::Labels => self.labels,
            Part::Index => self.index,
            Part::Keys => control?.keys,
            Part::Secrets => control?.secrets,
            Part::Events => control?.events,
        })
    }
}

/// A mapped file.
struct Open {
    env: Env<WithoutTls>,
    databases: Databases,
    /// Its path.
    data: PathBuf,
    /// Which file is mapped.
    file: Option<(u64, u64)>,
}

impl Open {
    fn new(env: Env<WithoutTls>, databases: Databases, folder: &Path) -> Open {
        let data = folder.join(open::DATA_FILE);
        Open { env, databases, file: open::identity(&data), data }
    }
}

/// The store. Clones are the same store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    access: Access,
    /// None after an attempt to open the file anew has failed: the next transaction tries again.
    open: RwLock<Option<Open>>,
    map_bytes: AtomicUsize,
    seal: Seal,
    index_key: [u8; 16],
    /// As in `meta`.
    applied: AtomicU64,
    buffers: Buffers,
    /// Of a store that is written.
    journal: OnceLock<Journal>,
    /// Of one that is read: what its journal held when it was opened.
    ahead: OnceLock<Vec<Arc<Entry>>>,
    /// The first segment when the sweep looked last for a time that can be believed, and where it goes on looking.
    looking: Mutex<(u64, u64)>,
}

/// Buffers that are used again.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().pop().unwrap_or_default()
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock();
        if kept.len() < BUFFERS_MAX && buffer.capacity() > 0 {
            kept.push(buffer);
        }
    }
}

/// What a transaction may fail with.
enum Failed {
    Library(heed::Error),
    Store(StoreError),
}

impl From<heed::Error> for Failed {
    fn from(error: heed::Error) -> Failed {
        Failed::Library(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Failed {
        Failed::Store(error)
    }
}

/// Names and values of `meta`.
type MetaValues = Vec<(Vec<u8>, Vec<u8>)>;

/// What stands in `meta`, checked.
struct Meta {
    schema: u32,
    store_id: [u8; 16],
    index_key: [u8; 16],
    applied: u64,
}

impl Store {
    /// Opens the store, or makes it when it is absent and may be written.
    pub fn open(options: Options) -> Result<Store, OpenError> {
        let Options { folder, key, map_bytes, access } = options;
        let found = open::look(&folder)?;
        if found == open::Found::Nothing {
            let parked = copy::parked(&folder);
            if parked.exists() {
                return Err(OpenError::Interrupted { folder, parked });
            }
            let fresh = copy::fresh(&folder);
            if fresh.exists() {
                return Err(OpenError::Unrestored { fresh });
            }
            refuse_if_bereft(&folder)?;
            if access == Access::Read {
                return Err(OpenError::Absent(folder));
            }
            open::make_folder(&folder)?;
        }
        let env = open::map(&folder, map_bytes, access)?;
        if open::is_blank(&env) {
            refuse_if_bereft(&folder)?;
            if access == Access::Read {
                return Err(OpenError::Absent(folder));
            }
            let first = first_meta(key.as_ref(), random()?, random()?)?;
            let databases = open::create(&env, &first).map_err(|error| error::of_heed(error, &folder).at(&folder))?;
            let open = Open::new(env, databases, &folder);
            return Store::assemble(folder, key, map_bytes, access, open);
        }
        let databases = open::databases(&env).map_err(|error| error::of_heed(error, &folder))?;
        let Some(databases) = databases else {
            return Err(OpenError::Corrupt { folder, what: "it lacks one of its databases".to_owned() });
        };
        let open = Open::new(env, databases, &folder);
        Store::assemble(folder, key, map_bytes, access, open)
    }

    fn assemble(
        folder: PathBuf,
        key: Option<Key>,
        map_bytes: usize,
        access: Access,
        open: Open,
    ) -> Result<Store, OpenError> {
        let meta = read_meta(&folder, &open, key.as_ref())?;
        let store = Store(Arc::new(Inner {
            folder,
            access,
            open: RwLock::new(Some(open)),
            map_bytes: AtomicUsize::new(map_bytes),
            seal: Seal::new(meta.store_id, key),
            index_key: meta.index_key,
            applied: AtomicU64::new(meta.applied),
            buffers: Buffers::default(),
            journal: OnceLock::new(),
            ahead: OnceLock::new(),
            looking: Mutex::new((0, 0)),
        }));
        let opened = || {
            if meta.schema < SCHEMA && access == Access::Write {
                store.upgrade()?;
            }
            store.open_journal()
        };
        opened().map_err(|error| error.at(&store.0.folder))?;
        Ok(store)
    }

    /// Begins an epoch: later than any before it, not before `floor`, and `seconds_now` if the clock allows. It is on the
    /// disk, with the salt of its subkey, when this returns; nothing may be written before.
    pub fn begin_epoch(&self, seconds_now: u32, floor: u32) -> Result<u32, StoreError> {
        let salt = seal::random::<{ seal::SALT_BYTES }>().ok_or(no_randomness())?;
        let epoch = self.write(|transaction, databases| {
            let stored = databases.meta.get(transaction, EPOCH_KEY)?.map(|value| u32_of(EPOCH_KEY, value));
            let stored = stored.transpose()?.unwrap_or(0);
            let next = stored.checked_add(1).ok_or(meta_corrupt("no epoch can follow the last one"))?;
            let epoch = seconds_now.max(next).max(floor);
            databases.meta.put(transaction, EPOCH_KEY, &epoch.to_be_bytes())?;
            if self.is_encrypted() {
                databases.meta.put(transaction, &salt_key(epoch), &salt)?;
            }
            Ok(epoch)
        })?;
        self.0.seal.begin(epoch, &salt);
        Ok(epoch)
    }

    /// A number drawn when the store was made, which its copies keep.
    pub fn store_id(&self) -> [u8; 16] {
        self.0.seal.store_id
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.0.seal.is_sealed()
    }

    /// Every change up to and including this segment is in the rows.
    pub fn applied(&self) -> u64 {
        self.0.applied.load(Ordering::Acquire)
    }

    /// The number of the last segment; 0 before the first.
    pub fn last_segment(&self) -> Result<u64, StoreError> {
        if let Some(journal) = self.0.journal.get() {
            return Ok(journal.last());
        }
        self.snapshot()?.last_segment()
    }

    /// The number of the first segment that is kept; one more than the last if none is.
    pub fn first_segment(&self) -> Result<u64, StoreError> {
        self.snapshot()?.first_segment()
    }

    /// Length of LMDB's file, and bytes of it that are in use.
    pub fn file_bytes(&self) -> Result<(u64, u64), StoreError> {
        let snapshot = self.snapshot()?;
        Ok((snapshot.file_bytes()?, snapshot.used_bytes()?))
    }

    /// Bytes of the journal's file that are on the disk: it has holes. None where there is no such file, as in a backup.
    pub fn journal_bytes(&self) -> Result<u64, StoreError> {
        use std::os::unix::fs::MetadataExt;
        match std::fs::metadata(self.0.folder.join(journal::JOURNAL_FILE)) {
            Ok(about) => Ok(about.blocks() * 512),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error::of_io(&error, &self.0.folder)),
        }
    }

    /// Frees the places of readers that died without leaving; how many there were.
    pub fn clear_stale_readers(&self) -> Result<usize, StoreError> {
        let open = self.open_env()?;
        let cleared = open.as_ref().expect("open_env checked it").env.clear_stale_readers();
        cleared.map_err(|error| error::of_heed(error, &self.0.folder))
    }

    /// Keyed hash of an agent: its key in `agents` and `labels`.
    fn agent_key(&self, agent: AgentId) -> [u8; 8] {
        self.keyed_hash(&[&agent.0.to_le_bytes()]).to_be_bytes()
    }

    /// Keyed hash of some bytes, for keys that must not show what they stand for.
    fn keyed_hash(&self, parts: &[&[u8]]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0.index_key);
        for part in parts {
            hasher.write(part);
        }
        hasher.finish()
    }

    fn seal(&self) -> &Seal {
        &self.0.seal
    }

    /// The environment, opened anew if it was closed.
    fn open_env(&self) -> Result<RwLockReadGuard<'_, Option<Open>>, StoreError> {
        let guard = self.0.open.read_recursive();
        if guard.is_some() {
            return Ok(guard);
        }
        drop(guard);
        self.reopen()?;
        let guard = self.0.open.read_recursive();
        if guard.is_some() { Ok(guard) } else { Err(StoreError::Gone) }
    }

    /// One write transaction: `work`, then commit. `work` is run again when the map had to grow, or the file had to be
    /// opened anew, before anything was committed.
    fn write<R>(&self, mut work: impl FnMut(&mut RwTxn<'_>, &Databases) -> Result<R, Failed>) -> Result<R, StoreError> {
        if self.0.access == Access::Read {
            return Err(StoreError::ReadOnly);
        }
        let mut reopened = false;
        loop {
            let guard = self.open_env()?;
            let open = guard.as_ref().expect("open_env checked it");
            // The kernel keeps a deleted file for those who have it open, and drops it with the last of them.
            if open.file.is_none() || open.file != open::identity(&open.data) {
                return Err(StoreError::Gone);
            }
            let attempt = || -> Result<R, Failed> {
                let mut transaction = open.env.write_txn()?;
                let result = work(&mut transaction, &open.databases)?;
                transaction.commit()?;
                Ok(result)
            };
            let mut attempt = attempt;
            let failed = match attempt() {
                Ok(result) => return Ok(result),
                Err(failed) => failed,
            };
            let map_bytes = open.env.info().map_size;
            drop(guard);
            match failed {
                Failed::Store(error) => return Err(error),
                Failed::Library(heed::Error::Mdb(MdbError::MapFull)) => self.grow(map_bytes)?,
                Failed::Library(heed::Error::Mdb(MdbError::MapResized)) => self.adopt_size()?,
                Failed::Library(heed::Error::Mdb(MdbError::Panic)) if !reopened => {
                    reopened = true;
                    self.reopen()?;
                }
                Failed::Library(error) => return Err(error::of_heed(error, &self.0.folder)),
            }
        }
    }

    /// The same behind everything that was appended, which the transaction puts into the log first. For what is made of
    /// segments: a copy in another process sees the log, but not each entry of the journal, and must find no row, mark or
    /// group of what it lacks. Of an empty log the mark says where it ended.
    fn write_behind_log<R>(
        &self,
        mut work: impl FnMut(&mut RwTxn<'_>, &Databases) -> Result<R, Failed>,
    ) -> Result<R, StoreError> {
        let Some(journal) = self.0.journal.get() else { return self.write(work) };
        self.absorbing(journal, |entries| {
            self.write(|transaction, databases| {
                if !entries.is_empty() {
                    append::absorb(transaction, databases, entries)?;
                }
                work(transaction, databases)
            })
        })
    }

    /// Doubles the map, unless somebody else has just done so.
    fn grow(&self, seen_bytes: usize) -> Result<(), StoreError> {
        let mut guard = self.0.open.write();
        let Some(open) = guard.as_mut() else { return Ok(()) };
        if open.env.info().map_size != seen_bytes {
            return Ok(());
        }
        let wanted = seen_bytes.saturating_mul(2).next_multiple_of(rustix::param::page_size());
        if wanted > MAP_BYTES_MAX {
            return Err(StoreError::Map(seen_bytes));
        }
        open::resize(open, wanted).map_err(|_| StoreError::Map(seen_bytes))?;
        self.0.map_bytes.store(wanted, Ordering::Relaxed);
        Ok(())
    }

    /// Another process has made the map larger.
    fn adopt_size(&self) -> Result<(), StoreError> {
        let mut guard = self.0.open.write();
        let Some(open) = guard.as_mut() else { return Ok(()) };
        open::resize(open, 0).map_err(|error| error::of_heed(error, &self.0.folder))
    }

    /// Closes the file and opens it again: what LMDB asks for after a first page could not be written.
    fn reopen(&self) -> Result<(), StoreError> {
        let mut guard = self.0.open.write();
        *guard = None;
        let folder = &self.0.folder;
        let map_bytes = self.0.map_bytes.load(Ordering::Relaxed);
        let opened = (|| match open::look(folder)? {
            open::Found::Nothing => Err(OpenError::Store(StoreError::Gone)),
            open::Found::Store => open::map(folder, map_bytes, self.0.access),
        })();
        let env = opened.map_err(|error| match error {
            OpenError::Store(error) | OpenError::NoRoom { why: error, .. } => error,
            OpenError::Corrupt { .. } => meta_corrupt("its first pages are not what they should be"),
            _ => StoreError::Gone,
        })?;
        let databases = open::databases(&env).map_err(|error| error::of_heed(error, folder))?;
        let open = Open::new(env, databases.ok_or(StoreError::Gone)?, folder);
        let transaction = open.env.read_txn().map_err(|error| error::of_heed(error, folder))?;
        let id = open.databases.meta.get(&transaction, STORE_ID_KEY);
        let same = id.is_ok_and(|id| id == Some(&self.0.seal.store_id[..]));
        drop(transaction);
        if !same {
            return Err(StoreError::Gone);
        }
        *guard = Some(open);
        Ok(())
    }
}

/// A journal that was ever written to had a store beside it: where that is missing or empty, making a new one would write
/// over the last that is left of the old one.
fn refuse_if_bereft(folder: &Path) -> Result<(), OpenError> {
    match journal::is_written(folder) {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::Bereft(folder.to_path_buf())),
        Err(error) => Err(OpenError::Store(error::of_io(&error, folder))),
    }
}

/// The first values of `meta`.
fn first_meta(key: Option<&Key>, store_id: [u8; 16], index_key: [u8; 16]) -> Result<MetaValues, StoreError> {
    let (cipher, index_key) = match key {
        None => (vec![CIPHER_PLAIN], index_key.to_vec()),
        Some(key) => {
            let mut cipher = vec![CIPHER_AES_256_GCM];
            cipher.extend(seal::seal_alone(key, &store_id, CIPHER_KEY, CHECK).ok_or(no_randomness())?);
            (cipher, seal::seal_alone(key, &store_id, INDEX_KEY_KEY, &index_key).ok_or(no_randomness())?)
        }
    };
    Ok([
        (SCHEMA_KEY, SCHEMA.to_be_bytes().to_vec()),
        (STORE_ID_KEY, store_id.to_vec()),
        (CIPHER_KEY, cipher),
        (EPOCH_KEY, 0u32.to_be_bytes().to_vec()),
        (APPLIED_KEY, 0u64.to_be_bytes().to_vec()),
        (INDEX_KEY_KEY, index_key),
    ]
    .map(|(key, value)| (key.to_vec(), value))
    .to_vec())
}

/// Reads and checks `meta`.
fn read_meta(folder: &Path, open: &Open, key: Option<&Key>) -> Result<Meta, OpenError> {
    let failed = |error| OpenError::Store(error::of_heed(error, folder));
    let corrupt = |what: &str| OpenError::Corrupt { folder: folder.to_path_buf(), what: what.to_owned() };
    let transaction = open.env.read_txn().map_err(failed)?;
    let value = |name: &[u8]| match open.databases.meta.get(&transaction, name) {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(corrupt(&format!("`{}` is missing", String::from_utf8_lossy(name)))),
        Err(error) => Err(failed(error)),
    };
    let schema = u32_of(SCHEMA_KEY, value(SCHEMA_KEY)?)?;
    if schema > SCHEMA {
        return Err(OpenError::Newer { folder: folder.to_path_buf(), found: schema, known: SCHEMA });
    }
    if schema == 0 {
        return Err(corrupt("its format is 0"));
    }
    let store_id: [u8; 16] = value(STORE_ID_KEY)?.try_into().map_err(|_| corrupt("`store_id` has not 16 bytes"))?;
    let applied = u64_of(APPLIED_KEY, value(APPLIED_KEY)?)?;
    u32_of(EPOCH_KEY, value(EPOCH_KEY)?)?;
    let index_key = value(INDEX_KEY_KEY)?;
    let index_key = match (value(CIPHER_KEY)?, key) {
        ([CIPHER_PLAIN], None) => index_key.to_vec(),
        ([CIPHER_PLAIN], Some(_)) => return Err(OpenError::KeyForPlain(folder.to_path_buf())),
        ([CIPHER_AES_256_GCM, ..], None) => return Err(OpenError::KeyMissing(folder.to_path_buf())),
        ([CIPHER_AES_256_GCM, check @ ..], Some(key)) => {
            let check = seal::open_alone(key, &store_id, CIPHER_KEY, check);
            if check.as_deref() != Some(CHECK) {
                return Err(OpenError::WrongKey(folder.to_path_buf()));
            }
            let opened = seal::open_alone(key, &store_id, INDEX_KEY_KEY, index_key);
            opened.ok_or_else(|| corrupt("`index_key` is not what was encrypted"))?
        }
        _ => return Err(corrupt("`cipher` names none that is known")),
    };
    let index_key = index_key.try_into().map_err(|_| corrupt("`index_key` has not 16 bytes"))?;
    if schema >= CONTROL_SCHEMA && open.databases.control.is_none() {
        return Err(corrupt("it lacks one of its databases"));
    }
    Ok(Meta { schema, store_id, index_key, applied })
}

fn random() -> Result<[u8; 16], StoreError> {
    seal::random().ok_or(no_randomness())
}

fn salt_key(epoch: u32) -> Vec<u8> {
    [SALT_PREFIX, &epoch.to_be_bytes()].concat()
}

fn meta_corrupt(what: &'static str) -> StoreError {
    StoreError::corrupt(Part::Meta, 0, what)
}

fn no_randomness() -> StoreError {
    StoreError::Io("the kernel gives no random bytes".to_owned())
}

fn u32_of(key: &[u8], value: &[u8]) -> Result<u32, StoreError> {
    let bytes = value.try_into();
    bytes
        .map(u32::from_be_bytes)
        .map_err(|_| StoreError::corrupt(Part::Meta, seal::number_of(key), "it has not 4 bytes"))
}

fn u64_of(key: &[u8], value: &[u8]) -> Result<u64, StoreError> {
    let bytes = value.try_into();
    bytes
        .map(u64::from_be_bytes)
        .map_err(|_| StoreError::corrupt(Part::Meta, seal::number_of(key), "it has not 8 bytes"))
}
