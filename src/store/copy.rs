//! Copies of the store: a backup while the daemon writes, its restoration, and the same store under another key.
//!
//! A backup holds no long read transaction, since that would keep the file growing. It reads in the order in which nothing
//! can be missed: first `applied`, then rows with their labels, then the index, then the log up to a moment behind all of
//! them. Rows say up to which segment they are made, so that what is applied twice is applied once.

mod folders;

use self::folders::{
    beside, claim, exchange, file_error, free_name, parent_of, refuse_if_taken, remove, rename, sync_folder,
};
use super::error::{self, Damage, OpenError, Part, StoreError};
use super::index::Group;
use super::rows::label_key;
use super::seal::{self, Seal};
use super::segment::Segment;
use super::snapshot::{Snapshot, log_number};
use super::{
    APPLIED_KEY, Access, Databases, EPOCH_KEY, Failed, Key, MAP_BYTES_MAX, MetaValues, Open, Options, SALT_PREFIX,
    Store, append, check, first_meta, meta_corrupt, no_randomness, open, salt_key, u32_of,
};
use heed::{PutFlags, RwTxn};
use std::ffi::OsString;
use std::fs;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Bytes that are read within one transaction.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// How often a copy is begun again because the sweep was faster.
const TRIES_MAX: u32 = 4;

/// Why there is no copy. The store itself is as it was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CopyError {
    /// As for each opening.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// As for each use.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something is there already.
    #[error("{0} exists and is not empty: choose another folder")]
    Exists(PathBuf),
    /// A store is there already.
    #[error("there is a store in {0}: restore with --replace, which moves it aside first")]
    Occupied(PathBuf),
    /// A folder could not be made, renamed or removed.
    #[error("{0}: {1}")]
    File(PathBuf, String),
    /// What was to be restored is not whole.
    #[error(
        "the backup in {folder} is damaged in {places} places, the first is {first}: nothing was changed; take another, or \
         --damaged to take what is whole of this one"
    )]
    Damaged {
        /// Where.
        folder: PathBuf,
        /// How much.
        places: u64,
        /// What.
        first: String,
    },
    /// What was to be copied is not whole.
    #[error(
        "the store is damaged ({0}): no backup was made, and earlier ones are as they were. `relay doctor` names every \
         place; --damaged makes a backup of what is whole"
    )]
    Unsound(Damage),
    /// Two at once would write over each other.
    #[error("another copy to {0} is being made: wait until it has ended, or choose another folder")]
    Busy(PathBuf),
    /// The sweep deleted segments faster than they were copied.
    #[error("the store changes faster than it can be copied: try again later")]
    TooFast,
    /// Two keys that are the same, or none twice.
    #[error("the store has this key already")]
    SameKey,
}

/// How far a copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Copied {
    /// Bytes written.
    pub bytes: u64,
    /// The last segment copied.
    pub segment: u64,
    /// The last segment of the original, when it was last looked at.
    pub last_segment: u64,
    /// Damaged places that were met: segments were copied as they are, since most of one can often be read; rows, keys and
    /// events were left out. Only where the copy was to be made in spite of them.
    pub damaged: u64,
}

/// What a copy does with what is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnDamage {
    /// It is refused.
    Refuse,
    /// What is whole is copied.
    PassOver,
}

/// What a restoration did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// How much it copied.
    pub copied: Copied,
    /// Where the store that was there is now.
    pub replaced: Option<PathBuf>,
}

impl Store {
    /// Copies the store to the folder `to`, which must be absent or empty, while it goes on being written. The copy is
    /// complete, checked, and on the disk, when it appears under its name.
    pub fn backup(&self, to: &Path, progress: impl FnMut(Copied)) -> Result<Copied, CopyError> {
        self.backup_of(OnDamage::Refuse, to, progress)
    }

    /// The same, of a store that may be damaged.
    pub fn backup_of(
        &self,
        on_damage: OnDamage,
        to: &Path,
        mut progress: impl FnMut(Copied),
    ) -> Result<Copied, CopyError> {
        refuse_if_taken(to)?;
        let partial = beside(to, "partial")?;
        if let Some(parent) = to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            open::make_folder(parent)?;
        }
        let _claim = claim(&partial, to)?;
        let map_bytes = self.copy_map_bytes().map_err(CopyError::from);
        let destination = map_bytes.and_then(|bytes| Destination::new(&partial, bytes, &Vec::new(), None));
        let made = destination.and_then(|to| self.copy_into(&to, on_damage, &mut progress));
        let copied = made.and_then(|copied| {
            sync_folder(&partial)?;
            fs::rename(&partial, to).map_err(|error| file_error(to, &error))?;
            sync_folder(parent_of(to))?;
            Ok(copied)
        });
        copied.map_err(|error| {
            let _ = fs::remove_dir_all(&partial);
            match error {
                CopyError::Store(StoreError::Corrupt(damage)) => CopyError::Unsound(damage),
                error => error,
            }
        })
    }

    /// Address space for a copy: one is not larger than its original, but for the bytes that sealing adds.
    fn copy_map_bytes(&self) -> Result<usize, StoreError> {
        let (file_bytes, _) = self.file_bytes()?;
        let bytes = file_bytes.saturating_add(self.journal_bytes()?);
        let twice = usize::try_from(bytes.saturating_mul(2)).unwrap_or(usize::MAX);
        Ok(twice.max(self.0.map_bytes.load(Ordering::Relaxed)).min(MAP_BYTES_MAX))
    }

    /// Copies everything into a new file.
    fn copy_into(
        &self,
        to: &Destination<'_>,
        on_damage: OnDamage,
        progress: &mut dyn FnMut(Copied),
    ) -> Result<Copied, CopyError> {
        let mut copying = Copying { from: self, to, on_damage, done: Copied::default(), progress };
        for _ in 0..TRIES_MAX {
            copying.done.damaged = 0;
            let applied = self.snapshot()?.applied()?;
            copying.rows()?;
            copying.index()?;
            copying.control()?;
            // What was swept before it was copied must be in rows that say so.
            if copying.log()? <= applied + 1 {
                copying.meta(applied)?;
                return Ok(copying.done);
            }
        }
        Err(CopyError::TooFast)
    }
}

/// A file that a copy is written to.
struct Destination<'a> {
    folder: &'a Path,
    open: Open,
    /// Seals the values again; without it they are copied as they are.
    seal: Option<Seal>,
}

impl Destination<'_> {
    fn new<'a>(
        folder: &'a Path,
        map_bytes: usize,
        meta: &[(Vec<u8>, Vec<u8>)],
        seal: Option<Seal>,
    ) -> Result<Destination<'a>, CopyError> {
        let env = open::map(folder, map_bytes, Access::Write)?;
        let databases = open::create(&env, meta).map_err(|error| error::of_heed(error, folder).at(folder))?;
        Ok(Destination { folder, open: Open::new(env, databases, folder), seal })
    }

    /// One transaction.
    fn write(&self, work: impl FnOnce(&mut RwTxn<'_>, &Databases) -> Result<(), Failed>) -> Result<(), CopyError> {
        let attempt = || -> Result<(), Failed> {
            let mut transaction = self.open.env.write_txn()?;
            work(&mut transaction, &self.open.databases)?;
            Ok(transaction.commit()?)
        };
        attempt().map_err(|failed| match failed {
            Failed::Store(error) => CopyError::Store(error),
            Failed::Library(error) => error::of_heed(error, self.folder).at(self.folder).into(),
        })
    }
}

/// A copy that is being made.
struct Copying<'a> {
    from: &'a Store,
    to: &'a Destination<'a>,
    on_damage: OnDamage,
    done: Copied,
    progress: &'a mut dyn FnMut(Copied),
}

impl Copying<'_> {
    /// The value as it is to be in the copy, checked.
    fn value(&self, snapshot: &Snapshot<'_>, part: Part, key: &[u8], value: &[u8]) -> Result<Vec<u8>, StoreError> {
        let (mut buffer, mut out) = (Vec::new(), Vec::new());
        if part == Part::Agents {
            snapshot.row_of(key, value, &mut buffer)?;
        }
        let plain = self.from.seal().unwrap(part, key, value, &mut buffer, |epoch| snapshot.salt(epoch))?;
        let Some(seal) = &self.to.seal else { return Ok(value.to_vec()) };
        seal.wrap(part, key, plain, &mut out)?;
        Ok(out)
    }

    /// None, and a mark, for what is damaged and to be passed over.
    fn pass_over<T>(&mut self, result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match (result, self.on_damage) {
            (Err(StoreError::Corrupt(_)), OnDamage::PassOver) => {
                self.done.damaged += 1;
                Ok(None)
            }
            (result, _) => result.map(Some),
        }
    }

    /// Rows, each with its labels in the same transaction.
    fn rows(&mut self) -> Result<(), CopyError> {
        self.clear(&[Part::Agents, Part::Labels])?;
        let mut behind: Option<[u8; 8]> = None;
        loop {
            let (snapshot, before) = (self.from.snapshot()?, behind);
            let mut values: Vec<(Part, Vec<u8>, Vec<u8>)> = Vec::new();
            let mut bytes = 0;
            let failed = |error| self.from.failed(error);
            let start = behind.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
            let rows = snapshot.databases().agents.range(snapshot.transaction(), &(start, Bound::Unbounded));
            for item in rows.map_err(failed)? {
                let (key, value) = item.map_err(failed)?;
                let agent: [u8; 8] = key.try_into().map_err(|_| {
                    StoreError::corrupt(Part::Agents, super::seal::number_of(key), "its key has not 8 bytes")
                })?;
                behind = Some(agent);
                let out = self.value(&snapshot, Part::Agents, key, value);
                let Some(out) = self.pass_over(out)? else { continue };
                bytes += out.len();
                values.push((Part::Agents, key.to_vec(), out));
                let (first, last) = (label_key(agent, 0), label_key(agent, u8::MAX));
                let labels = (Bound::Included(&first[..]), Bound::Included(&last[..]));
                let labels = snapshot.databases().labels.range(snapshot.transaction(), &labels);
                for item in labels.map_err(failed)? {
                    let (key, value) = item.map_err(failed)?;
                    let out = self.value(&snapshot, Part::Labels, key, value);
                    let Some(out) = self.pass_over(out)? else { continue };
                    bytes += out.len();
                    values.push((Part::Labels, key.to_vec(), out));
                }
                if bytes >= CHUNK_BYTES {
                    break;
                }
            }
            drop(snapshot);
            if behind == before {
                return Ok(());
            }
            self.to.write(|transaction, databases| {
                for (part, key, value) in &values {
                    put(databases, transaction, *part, key, value)?;
                }
                Ok(())
            })?;
            self.tell(bytes, 0, 0);
        }
    }

    /// Groups of the index. One that was swept meanwhile is missing in the copy, and nothing that it would find is there; one
    /// that is damaged is left out, since a missing one is made again from the log.
    fn index(&mut self) -> Result<(), CopyError> {
        self.clear(&[Part::Index])?;
        let mut behind: Option<Vec<u8>> = None;
        loop {
            let (snapshot, before) = (self.from.snapshot()?, behind.clone());
            let mut values: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            let mut bytes = 0;
            let failed = |error| self.from.failed(error);
            let start = before.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let groups = snapshot.databases().index.range(snapshot.transaction(), &(start, Bound::Unbounded));
            for item in groups.map_err(failed)? {
                let (key, value) = item.map_err(failed)?;
                behind = Some(key.to_vec());
                let whole = log_number(key).and_then(|number| Group::check(number, value)?.check_body());
                if matches!(whole, Err(StoreError::Corrupt(_))) {
                    continue;
                }
                whole?;
                // Keyed hashes and places alone, under a key that the copy keeps: never sealed.
                bytes += value.len();
                values.push((key.to_vec(), value.to_vec()));
                if bytes >= CHUNK_BYTES {
                    break;
                }
            }
            drop(snapshot);
            if behind == before {
                return Ok(());
            }
            self.to.write(|transaction, databases| {
                for (key, value) in &values {
                    databases.index.put_with_flags(transaction, PutFlags::APPEND, key, value)?;
                }
                Ok(())
            })?;
            self.tell(bytes, 0, 0);
        }
    }

    /// Control data: keys, secrets and events, each as it is when it is read.
    fn control(&mut self) -> Result<(), CopyError> {
        let parts = [Part::Keys, Part::Secrets, Part::Events];
        self.clear(&parts)?;
        for part in parts {
            let mut behind: Option<Vec<u8>> = None;
            loop {
                let (snapshot, before) = (self.from.snapshot()?, behind.clone());
                // A store of format 1 has none.
                let Some(database) = snapshot.databases().of(part) else { return Ok(()) };
                let mut values: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
                let mut bytes = 0;
                let failed = |error| self.from.failed(error);
                let start = before.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                for item in database.range(snapshot.transaction(), &(start, Bound::Unbounded)).map_err(failed)? {
                    let (key, value) = item.map_err(failed)?;
                    behind = Some(key.to_vec());
                    let out = self.value(&snapshot, part, key, value);
                    let Some(out) = self.pass_over(out)? else { continue };
                    bytes += out.len();
                    values.push((key.to_vec(), out));
                    if bytes >= CHUNK_BYTES {
                        break;
                    }
                }
                drop(snapshot);
                if behind == before {
                    break;
                }
                self.to.write(|transaction, databases| {
                    for (key, value) in &values {
                        put(databases, transaction, part, key, value)?;
                    }
                    Ok(())
                })?;
                self.tell(bytes, 0, 0);
            }
        }
        Ok(())
    }

    /// The log, up to its end as it is after everything else was copied. Returns the number of the copy's first segment.
    fn log(&mut self) -> Result<u64, CopyError> {
        self.clear(&[Part::Log])?;
        let end = self.from.snapshot()?.last_segment()?;
        let mut first = None;
        let mut next = 0;
        loop {
            let snapshot = self.from.snapshot()?;
            let kept = snapshot.first_segment()?;
            if kept > next {
                // The beginning, or the sweep went over where this copy stood: what it has is no longer wanted.
                self.clear(&[Part::Log])?;
                (first, next) = (Some(kept), kept);
            }
            if next > end {
                return Ok(first.unwrap_or(kept));
            }
            let mut raw: Vec<(u64, Vec<u8>)> = Vec::new();
            let mut segments: Vec<(u64, Segment)> = Vec::new();
            let mut bytes = 0;
            while next <= end && bytes < CHUNK_BYTES {
                let missing = || StoreError::corrupt(Part::Log, next, "it is missing");
                if self.to.seal.is_some() {
                    let mut view = snapshot.segment(next)?.ok_or_else(missing)?;
                    bytes += view.header().bytes as usize;
                    segments.push((next, view.copy_to_segment()?));
                } else if let Some(value) = snapshot.log_value(next)? {
                    self.pass_over(check::segment_is_whole(&snapshot, next))?;
                    bytes += value.len();
                    raw.push((next, value.to_vec()));
                } else {
                    self.pass_over(Err::<(), _>(missing()))?;
                }
                next += 1;
            }
            drop(snapshot);
            self.to.write(|transaction, databases| {
                for (number, value) in &raw {
                    databases.log.put_with_flags(transaction, PutFlags::APPEND, &number.to_be_bytes(), value)?;
                }
                if let Some(seal) = &self.to.seal {
                    let current = seal.current()?;
                    for (number, segment) in &mut segments {
                        append::put(transaction, databases, seal, &current, *number, segment)?;
                    }
                }
                Ok(())
            })?;
            self.tell(bytes, next - 1, end);
        }
    }

    /// `meta`, last: without it the copy is no store.
    fn meta(&mut self, applied: u64) -> Result<(), CopyError> {
        let snapshot = self.from.snapshot()?;
        let failed = |error| self.from.failed(error);
        let mut values: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        if self.to.seal.is_none() {
            for item in snapshot.databases().meta.iter(snapshot.transaction()).map_err(failed)? {
                let (key, value) = item.map_err(failed)?;
                values.push((key.to_vec(), value.to_vec()));
            }
        }
        drop(snapshot);
        self.to.write(|transaction, databases| {
            for (key, value) in &values {
                databases.meta.put(transaction, key, value)?;
            }
            databases.meta.put(transaction, APPLIED_KEY, &applied.to_be_bytes())?;
            Ok(())
        })?;
        Ok(())
    }

    fn clear(&self, parts: &[Part]) -> Result<(), CopyError> {
        self.to.write(|transaction, databases| {
            for part in parts {
                databases.of(*part).ok_or(Failed::Store(StoreError::Gone))?.clear(transaction)?;
            }
            Ok(())
        })
    }

    fn tell(&mut self, bytes: usize, segment: u64, last_segment: u64) {
        self.done.bytes += bytes as u64;
        self.done.segment = segment;
        self.done.last_segment = last_segment;
        (self.progress)(self.done);
    }
}

/// A copy has all databases: it was made by this program.
fn put(databases: &Databases, transaction: &mut RwTxn<'_>, part: Part, key: &[u8], value: &[u8]) -> Result<(), Failed> {
    let database = databases.of(part).ok_or(Failed::Store(StoreError::Gone))?;
    Ok(database.put(transaction, key, value)?)
}

/// Puts the backup in `from` where the store is to be. It is checked first, and refused if it is damaged, unless what is
/// whole of it is to be taken. A store that is there is refused, or moved
/// aside to `<folder>.replaced-<seconds_now>`, or a few seconds later, when `replace` says so; nobody may have it open.
/// After a crash either is whole under the store's name.
pub fn restore(
    from: &Path,
    to: &Path,
    key: Option<Key>,
    replace: bool,
    on_damage: OnDamage,
    seconds_now: u64,
    mut progress: impl FnMut(Copied),
) -> Result<Restored, CopyError> {
    let options = Options::new(from, key).reading();
    let occupied = refuse_if_taken(to).is_err();
    if occupied && !replace {
        return Err(CopyError::Occupied(to.to_path_buf()));
    }
    let report = check::check(&options, |_| {})?;
    if let (Some(first), OnDamage::Refuse) = (report.damages.first(), on_damage) {
        let (places, first) = (report.damage_count, first.to_string());
        return Err(CopyError::Damaged { folder: from.to_path_buf(), places, first });
    }
    let backup = Store::open(options)?;
    // Made beside its place under a name of its own, so that at no moment neither the old nor the new one is whole.
    let fresh = fresh(to);
    remove(&fresh)?;
    let copied = backup.backup_of(on_damage, &fresh, &mut progress)?;
    let replaced = if occupied { Some(free_name(to, seconds_now)?) } else { None };
    match &replaced {
        None => rename(&fresh, to)?,
        Some(aside) => {
            // The new one takes the name first that the old one is to have: whatever has it after a crash is whole, and is
            // removed by nobody but its owner.
            rename(&fresh, aside)?;
            if exchange(aside, to).is_err() {
                // A file system that cannot. Between the last two there is no store: opening one says what to do.
                rename(aside, &fresh)?;
                rename(to, aside)?;
                rename(&fresh, to)?;
            }
        }
    }
    sync_folder(parent_of(to))?;
    Ok(Restored { copied, replaced })
}

/// Encrypts the store with `new` instead of `old` (none: plain). Nobody may have it open. The new file is made beside the
/// old one and the two change places at once: after a crash either is whole under the store's name, and what is left
/// beside it is removed by the next try.
pub fn rekey(
    folder: &Path,
    old: Option<Key>,
    new: Option<Key>,
    mut progress: impl FnMut(Copied),
) -> Result<Copied, CopyError> {
    let leftover = beside(folder, "rekeyed")?;
    let parked = parked(folder);
    if !folder.exists() && parked.exists() {
        // A file system that cannot exchange, and a crash between two renames: the old store goes back.
        rename(&parked, folder)?;
    }
    let same = match (&old, &new) {
        (Some(old), Some(new)) => old.bytes() == new.bytes(),
        (None, None) => true,
        _ => false,
    };
    if same {
        return Err(CopyError::SameKey);
    }
    let store = Store::open(Options::new(folder, old).reading())?;
    remove(&leftover)?;
    remove(&parked)?;
    open::make_folder(&leftover)?;
    let copied = (|| {
        let (meta, seal) = rekeyed_meta(&store, new)?;
        let destination = Destination::new(&leftover, store.copy_map_bytes()?, &meta, Some(seal))?;
        store.copy_into(&destination, OnDamage::Refuse, &mut progress)
    })();
    drop(store);
    let copied = match copied {
        Ok(copied) => copied,
        Err(error) => {
            let _ = fs::remove_dir_all(&leftover);
            return Err(error);
        }
    };
    sync_folder(&leftover)?;
    if exchange(&leftover, folder).is_err() {
        rename(folder, &parked)?;
        rename(&leftover, folder)?;
    }
    sync_folder(parent_of(folder))?;
    remove(&leftover)?;
    remove(&parked)?;
    sync_folder(parent_of(folder))?;
    Ok(copied)
}

/// What interrupted copies have left beside the store: not needed by anybody, and perhaps under an old key or none.
pub fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let restored = beside(&fresh(folder), "partial");
    let beside = ["partial", "rekeyed"].into_iter().filter_map(|what| beside(folder, what).ok());
    // Without a store these two are not over.
    let whole = [fresh(folder), parked(folder)].into_iter().filter(|_| folder.exists());
    beside.chain(restored).chain(whole).filter(|path| path.exists()).collect()
}

/// Whether a restoration or a re-keying was cut off where there is no store: opening one says what to do.
pub fn is_interrupted(folder: &Path) -> bool {
    !folder.exists() && (fresh(folder).exists() || parked(folder).exists())
}

/// Where a re-keying parks the old store for a moment on a file system that cannot exchange two names.
pub(super) fn parked(folder: &Path) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_os_string();
    name.push(".before-rekey");
    folder.with_file_name(name)
}

/// Where a restoration makes the new store before it has its name.
pub(super) fn fresh(folder: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(folder.file_name().unwrap_or_default());
    name.push(".restored");
    folder.with_file_name(name)
}

/// `meta` of the same store under another key, and its seal: a new salt, the same id, index key and epoch.
fn rekeyed_meta(store: &Store, key: Option<Key>) -> Result<(MetaValues, Seal), CopyError> {
    let snapshot = store.snapshot()?;
    let epoch = snapshot.get(Part::Meta, EPOCH_KEY)?.ok_or(meta_corrupt("`epoch` is missing"))?;
    let epoch = u32_of(EPOCH_KEY, epoch)?;
    let salt: [u8; seal::SALT_BYTES] = seal::random().ok_or(no_randomness())?;
    let mut meta = first_meta(key.as_ref(), store.store_id(), store.0.index_key)?;
    for (name, value) in &mut meta {
        if name == EPOCH_KEY {
            *value = epoch.to_be_bytes().to_vec();
        }
    }
    // Whatever else is kept there goes with the store; salts of subkeys under the old key are of no use any more.
    for item in snapshot.databases().meta.iter(snapshot.transaction()).map_err(|error| store.failed(error))? {
        let (name, value) = item.map_err(|error| store.failed(error))?;
        if !name.starts_with(SALT_PREFIX) && meta.iter().all(|(known, _)| known != name) {
            meta.push((name.to_vec(), value.to_vec()));
        }
    }
    if key.is_some() {
        meta.push((salt_key(epoch), salt.to_vec()));
    }
    let seal = Seal::new(store.store_id(), key);
    seal.begin(epoch, &salt);
    Ok((meta, seal))
}
