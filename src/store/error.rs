//! What can go wrong with the store, each with what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

/// A database of the store; the number is part of what is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Part {
    Meta = 0,
    Log = 1,
    Agents = 2,
    Labels = 3,
    Index = 4,
    Keys = 5,
    Secrets = 6,
    Events = 7,
}

impl Part {
    /// Every database.
    pub const ALL: [Part; 8] =
        [Part::Meta, Part::Log, Part::Agents, Part::Labels, Part::Index, Part::Keys, Part::Secrets, Part::Events];

    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Meta => "meta",
            Part::Log => "log",
            Part::Agents => "agents",
            Part::Labels => "labels",
            Part::Index => "index",
            Part::Keys => "keys",
            Part::Secrets => "secrets",
            Part::Events => "events",
        }
    }
}

/// A value that is not what was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The database it is in.
    pub part: Part,
    /// The first 8 bytes of its key, as a number: a segment's number, for one.
    pub key: u64,
    /// What is wrong with it.
    pub what: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}: {}", self.part.name(), self.key, self.what)
    }
}

/// The disk refuses, and whoever was refused tries again.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// In one word: `full`, `quota`, `io`, …
    pub kind: &'static str,
    /// In a sentence that says what to do.
    pub sentence: String,
    /// Since when, milliseconds since 1970.
    pub since_ms: u64,
}

impl Trouble {
    /// What a running relay says of it.
    pub fn of(error: &StoreError, since_ms: u64) -> Trouble {
        Trouble { kind: error.kind(), sentence: error.while_running(), since_ms }
    }
}

/// Why the store did not do what was asked. Nothing of it was kept.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system is full.
    #[error("the disk is full: free some space")]
    Full,
    /// The user's quota, or a limit on the size of files, is reached.
    #[error("the disk quota or file size limit of this user is reached: raise it or free some space")]
    Quota,
    /// The disk does not do what it should.
    #[error("the disk does not read or write ({0}): see the kernel's log (dmesg); back up what you can")]
    Io(String),
    /// The file system, or this opening of the store, allows no writing.
    #[error("the store cannot be written: the file system is read-only, or the store was opened for reading only")]
    ReadOnly,
    /// The file is not there any more.
    #[error("the store's file is gone or was replaced: put it back, or restore a backup with `relay restore DIR`")]
    Gone,
    /// A value is not what was written.
    #[error(
        "the store is damaged ({0}): nothing was changed; run `relay doctor`, restore a backup with `relay restore DIR`"
    )]
    Corrupt(Damage),
    /// Too many programs read the store at once.
    #[error("too many programs read the store at once: stop some `relay history` or `relay export`")]
    Readers,
    /// The map cannot grow any more.
    #[error("the store cannot grow beyond {0} bytes of address space: shorten the retention time")]
    Map(usize),
    /// A segment is larger than its format allows.
    #[error("a batch of {0} bytes does not fit into one segment")]
    TooLong(usize),
    /// Nothing may be sealed before an epoch, with its salt, is on the disk.
    #[error("the store was opened for writing, but no epoch was begun")]
    NoEpoch,
    /// LMDB says something else.
    #[error("the store's library failed ({0}): restart the daemon; if it stays, run `relay doctor`")]
    Library(String),
}

impl StoreError {
    /// Whether the same can succeed later without anybody restarting the daemon.
    pub fn is_worth_retrying(&self) -> bool {
        !matches!(self, StoreError::Corrupt(_) | StoreError::TooLong(_) | StoreError::NoEpoch)
    }

    /// The sentence for whoever looks at a running relay, which tries again by itself.
    pub fn while_running(&self) -> String {
        match self {
            StoreError::Full => format!("{self}, then everything goes on by itself; do not stop the relay before"),
            StoreError::Gone => "the store's folder or a file in it is gone or was replaced: put the very one back that \
                was there (moved, not copied), then everything goes on by itself; nothing is lost while the relay runs, \
                so do not restart it. If it is deleted: `relay down --now`, then `relay restore DIR`"
                .to_owned(),
            other => other.to_string(),
        }
    }

    /// In one word, for logs and programs.
    pub fn kind(&self) -> &'static str {
        match self {
            StoreError::Full => "full",
            StoreError::Quota => "quota",
            StoreError::Io(_) => "io",
            StoreError::ReadOnly => "read_only",
            StoreError::Gone => "gone",
            StoreError::Corrupt(_) => "corrupt",
            StoreError::Readers => "readers",
            StoreError::Map(_) => "map",
            StoreError::TooLong(_) => "too_long",
            StoreError::NoEpoch => "no_epoch",
            StoreError::Library(_) => "library",
        }
    }

    /// What it means for whoever opens or makes a store in `folder`.
    pub(super) fn at(self, folder: &Path) -> OpenError {
        match self {
            why @ (StoreError::Full | StoreError::Quota) => OpenError::NoRoom { folder: folder.to_path_buf(), why },
            other => OpenError::Store(other),
        }
    }

    pub(super) fn corrupt(part: Part, key: u64, what: &'static str) -> StoreError {
        StoreError::Corrupt(Damage { part, key, what })
    }
}

/// Why the store was not opened. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing there, and it was to be read only.
    #[error("there is no store in {0}: start the daemon once with `relay up`")]
    Absent(PathBuf),
    /// Something else is in the way.
    #[error("{0} is not a folder: move it away")]
    NotAFolder(PathBuf),
    /// Somebody else's.
    #[error("{0} may not be opened by this user: {1}")]
    Forbidden(PathBuf, String),
    /// Written by a later version of this program.
    #[error(
        "the store in {folder} has format {found}, and this program knows formats up to {known}: it was written by a \
         newer relay; install that one again, or restore a backup made before it"
    )]
    Newer {
        /// Where.
        folder: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Not a store, or damaged.
    #[error(
        "the store in {folder} is damaged ({what}): nothing was changed; run `relay doctor`, or restore a backup with \
         `relay restore DIR`"
    )]
    Corrupt {
        /// Where.
        folder: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Its first file is missing or empty, and its journal is not.
    #[error(
        "the store in {0} is damaged (its file data.mdb is missing or empty, and the journal beside it holds entries): \
         nothing was changed; put that file back, or restore a backup with `relay restore DIR --replace`; without one \
         move the folder away, and the relay makes a new store"
    )]
    Bereft(PathBuf),
    /// Encrypted, and no key was given.
    #[error("the store in {0} is encrypted: give its key with --db-key FILE")]
    KeyMissing(PathBuf),
    /// Encrypted with another key.
    #[error("the key does not fit the store in {0}: give the one it was encrypted with, with --db-key FILE")]
    WrongKey(PathBuf),
    /// Not encrypted, and a key was given.
    #[error("the store in {0} is not encrypted: leave --db-key away, or encrypt it with `relay rekey`")]
    KeyForPlain(PathBuf),
    /// This process has it open already, or LMDB's lock file is held.
    #[error("the store in {0} is already open in this program")]
    InUse(PathBuf),
    /// On a file system that maps or locks files differently on each machine.
    #[error(
        "{folder} is on a network file system ({kind}), where the store would be damaged: choose a local folder with \
         --data-dir"
    )]
    Network {
        /// Where.
        folder: PathBuf,
        /// Which.
        kind: &'static str,
    },
    /// The file system is full, or a quota is reached.
    #[error("cannot write to {folder}: {why}, and run it again")]
    NoRoom {
        /// Where.
        folder: PathBuf,
        /// [`StoreError::Full`] or [`StoreError::Quota`].
        why: StoreError,
    },
    /// A re-keying was interrupted between two renames.
    #[error("`relay rekey` was interrupted: run it again, or rename {parked} back to {folder}")]
    Interrupted {
        /// Where the store should be.
        folder: PathBuf,
        /// Where it is.
        parked: PathBuf,
    },
    /// A restoration was interrupted before the new store had its name.
    #[error("`relay restore` was interrupted: run it again; without it remove {fresh}")]
    Unrestored {
        /// Where the new store is.
        fresh: PathBuf,
    },
    /// As for each other use.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What an error of the operating system, or LMDB's, means here. LMDB reports a write that the full disk cut short as
/// EIO: only the file system can tell the two apart.
pub(super) fn of_heed(error: heed::Error, folder: &Path) -> StoreError {
    use heed::MdbError;
    match error {
        heed::Error::Io(error) => of_io(&error, folder),
        heed::Error::Mdb(MdbError::ReadersFull) => StoreError::Readers,
        heed::Error::Mdb(error @ (MdbError::Corrupted | MdbError::PageNotFound | MdbError::Invalid)) => {
            let what = match error {
                MdbError::PageNotFound => "a page is missing",
                MdbError::Corrupted => "a page is not what it should be",
                _ => "the file is not LMDB's",
            };
            StoreError::corrupt(Part::Meta, 0, what)
        }
        other => StoreError::Library(other.to_string()),
    }
}

/// As [`of_heed`], for files.
pub(super) fn of_io(error: &std::io::Error, folder: &Path) -> StoreError {
    use rustix::io::Errno;
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC) => StoreError::Full,
        Some(Errno::DQUOT | Errno::FBIG) => StoreError::Quota,
        Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) => StoreError::ReadOnly,
        Some(Errno::NOENT | Errno::STALE) => StoreError::Gone,
        Some(Errno::IO) if is_full(folder) => StoreError::Full,
        _ => StoreError::Io(error.to_string()),
    }
}

/// Whether fewer bytes are free than one commit may need.
fn is_full(folder: &Path) -> bool {
    const COMMIT_BYTES: u64 = 4 * 1024 * 1024;
    rustix::fs::statvfs(folder).is_ok_and(|file_system| file_system.f_bavail * file_system.f_frsize < COMMIT_BYTES)
}
