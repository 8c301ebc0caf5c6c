//! Opening: what is looked at before the file is mapped, and the three operations of the library that the compiler cannot
//! check. The only file of the store with `unsafe`.
#![allow(unsafe_code, reason = "mapping a file and resizing the map are the operating system's word against ours")]

use super::error::{OpenError, Part, StoreError, of_heed, of_io};
use super::{Access, ControlDatabases, Databases, Open, Raw};
use heed::types::Bytes;
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions, WithoutTls};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

/// The file with the data.
pub(super) const DATA_FILE: &str = "data.mdb";
/// The one by which programs that have it open know of each other.
const LOCK_FILE: &str = "lock.mdb";
/// Programs that may read at once, each with a few threads.
const READERS_MAX: u32 = 126;
/// Length of a lock file for so many.
const LOCK_BYTES: u64 = 8192;
/// Databases: ours, and room for those of later versions.
const DATABASES_MAX: u32 = 16;

/// LMDB's mark at the start of each of its two meta pages, and the version of its format.
const LMDB_MAGIC: u32 = 0xBEEF_C0DE;
const LMDB_VERSION: u32 = 1;

/// File systems on which several machines would map the same file: `f_type` and name.
const NETWORK_FILE_SYSTEMS: &[(u32, &str)] = &[
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x5346_414F, "AFS"),
    (0x00C3_6400, "Ceph"),
    (0x0BD0_0BD0, "Lustre"),
];

/// What is in the folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// No store, or the beginning of one that never got its first commit.
    Nothing,
    /// A file that LMDB can map.
    Store,
}

/// Looks without touching anything.
pub(super) fn look(folder: &Path) -> Result<Found, OpenError> {
    let metadata = match fs::metadata(folder) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(forbidden(folder, &error)),
    };
    if !metadata.is_dir() {
        return Err(OpenError::NotAFolder(folder.to_path_buf()));
    }
    if let Ok(file_system) = rustix::fs::statfs(folder) {
        let kind = file_system.f_type as u32;
        if let Some((_, kind)) = NETWORK_FILE_SYSTEMS.iter().find(|(known, _)| *known == kind) {
            return Err(OpenError::Network { folder: folder.to_path_buf(), kind });
        }
    }
    let path = folder.join(DATA_FILE);
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(forbidden(&path, &error)),
    };
    check_metas(&file).map_err(|what| OpenError::Corrupt { folder: folder.to_path_buf(), what })
}

fn forbidden(path: &Path, error: &std::io::Error) -> OpenError {
    OpenError::Forbidden(path.to_path_buf(), error.to_string())
}

/// Both meta pages must be LMDB's, and the file must hold every page that the newer one counts on: a file that was cut
/// short would end the process with SIGBUS at the first page that is missing.
fn check_metas(file: &fs::File) -> Result<Found, String> {
    /// Page header, then: magic u32, version u32, address u64, size u64, two databases of 48 bytes (the first begins with
    /// the size of a page), last page u64, transaction u64.
    const META_BYTES: usize = 16 + 24 + 96 + 16;
    let length = |file: &fs::File| file.metadata().map(|metadata| metadata.len()).map_err(|error| error.to_string());
    if length(file)? == 0 {
        return Ok(Found::Nothing);
    }
    let meta_at = |offset: u64| -> Result<(u64, u64, u64), String> {
        let mut bytes = [0; META_BYTES];
        file.read_exact_at(&mut bytes, offset).map_err(|_| "the file is shorter than its first pages".to_owned())?;
        let u32_at = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(16) != LMDB_MAGIC {
            return Err("a first page is not LMDB's".to_owned());
        }
        if u32_at(20) != LMDB_VERSION {
            return Err(format!("its LMDB format is {}, not {LMDB_VERSION}", u32_at(20)));
        }
        Ok((u64::from(u32_at(40)), u64_at(136), u64_at(144)))
    };
    let (page_bytes, last_page, transaction) = meta_at(0)?;
    if !(512..=65_536).contains(&page_bytes) || !page_bytes.is_power_of_two() {
        return Err(format!("its pages have {page_bytes} bytes"));
    }
    let (other_page_bytes, other_last_page, other_transaction) = meta_at(page_bytes)?;
    if other_page_bytes != page_bytes {
        return Err("its first pages contradict each other".to_owned());
    }
    let last_page = if other_transaction > transaction { other_last_page } else { last_page };
    let wanted = last_page.checked_add(1).and_then(|pages| pages.checked_mul(page_bytes));
    match wanted {
        Some(wanted) if wanted <= length(file)? => Ok(Found::Store),
        _ => Err("the file is shorter than its first page says: it was cut off".to_owned()),
    }
}

/// Which file lies at this path: its device and number. None: there is none. Asked before each commit, so it allocates
/// nothing.
pub(super) fn identity(data: &Path) -> Option<(u64, u64)> {
    rustix::fs::stat(data).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// Which file this is.
pub(super) fn identity_of(file: BorrowedFd<'_>) -> Option<(u64, u64)> {
    rustix::fs::fstat(file).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// Makes the folder if it is missing: for its owner alone.
pub(super) fn make_folder(folder: &Path) -> Result<(), OpenError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| match error.kind() {
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => OpenError::NotAFolder(folder.to_path_buf()),
        _ => of_io(&error, folder).at(folder),
    })
}

/// Gives the lock file all of its blocks. LMDB makes it with a hole and writes to it through a map: on a full disk that
/// ends the process with SIGBUS. What stands in it, and how long it is, others rely on.
fn back_lock_file(folder: &Path) -> Result<(), OpenError> {
    let path = folder.join(LOCK_FILE);
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let backed = || -> std::io::Result<()> {
        let file = options.open(&path)?;
        let length = file.metadata()?.len();
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length.max(LOCK_BYTES)) {
            // A file system that cannot: zeros do it for what is not there yet.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if length < LOCK_BYTES => {
                file.write_all_at(&[0; LOCK_BYTES as usize][length as usize..], length)
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            result => Ok(result?),
        }
    };
    match backed().map_err(|error| of_io(&error, folder)) {
        Err(why @ (StoreError::Full | StoreError::Quota)) => {
            Err(OpenError::NoRoom { folder: folder.to_path_buf(), why })
        }
        // Where it may not be written, LMDB knows whether that matters.
        _ => Ok(()),
    }
}

/// Maps the file. LMDB writes the first two pages of a new one.
pub(super) fn map(folder: &Path, map_bytes: usize, access: Access) -> Result<Env<WithoutTls>, OpenError> {
    back_lock_file(folder)?;
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    let map_bytes = map_bytes.next_multiple_of(rustix::param::page_size());
    options.map_size(map_bytes).max_readers(READERS_MAX).max_dbs(DATABASES_MAX);
    if access == Access::Read {
        // SAFETY: READ_ONLY takes abilities away and none of the guarantees that a transaction has.
        unsafe { options.flags(EnvFlags::READ_ONLY) };
    }
    #[cfg(relay_unsafe_sync = "no_sync")]
    // SAFETY: for scripts/power-cut.sh --self-test alone, which shows that the power cut test notices it.
    unsafe {
        options.flags(EnvFlags::NO_SYNC)
    };
    #[cfg(relay_unsafe_sync = "no_meta_sync")]
    // SAFETY: as above.
    unsafe {
        options.flags(EnvFlags::NO_META_SYNC)
    };
    // SAFETY: nobody but LMDB writes the file: it is in a folder for its owner alone, on a local file system, its
    // length was compared with what it counts on, and the path is opened once in this process (heed refuses a second).
    let opened = unsafe { options.open(folder) };
    opened.map_err(|error| match error {
        heed::Error::EnvAlreadyOpened => OpenError::InUse(folder.to_path_buf()),
        heed::Error::Io(error) if error.kind() == ErrorKind::PermissionDenied => forbidden(folder, &error),
        other => match of_heed(other, folder) {
            StoreError::Corrupt(damage) => {
                OpenError::Corrupt { folder: folder.to_path_buf(), what: damage.what.to_owned() }
            }
            other => other.at(folder),
        },
    })
}

/// Opens a plain LMDB environment, whatever databases it holds, in a folder for its owner alone: for the vendor's licence
/// server, whose file has nothing to do with messages but is opened with the same care.
pub fn open_environment(folder: &Path, map_bytes: usize) -> Result<Env<WithoutTls>, OpenError> {
    make_folder(folder)?;
    look(folder)?;
    map(folder, map_bytes, Access::Write)
}

/// Changes the size of the map; 0 takes the size another process gave it. The caller holds the store's lock for writing.
pub(super) fn resize(open: &mut Open, bytes: usize) -> Result<(), heed::Error> {
    // SAFETY: no transaction of this process is going on: each holds the lock for reading as long as it lives.
    unsafe { open.env.resize(bytes) }
}

/// The databases of an existing store; none when one is missing. Those of control data came with format 2.
pub(super) fn databases(env: &Env<WithoutTls>) -> Result<Option<Databases>, heed::Error> {
    let opened = env.open_databases_and_commit(env.read_txn()?, |opener, transaction| {
        let open = |part: Part| opener.open_database::<Bytes, Bytes>(transaction, Some(part.name()));
        let all = [open(Part::Meta)?, open(Part::Log)?, open(Part::Agents)?, open(Part::Labels)?, open(Part::Index)?];
        let control = [open(Part::Keys)?, open(Part::Secrets)?, open(Part::Events)?];
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((all, control)))
    })?;
    Ok(match opened.commit() {
        Some(([Some(meta), Some(log), Some(agents), Some(labels), Some(index)], control)) => {
            let control = match control {
                [Some(keys), Some(secrets), Some(events)] => Some(ControlDatabases { keys, secrets, events }),
                _ => None,
            };
            Some(Databases { meta, log, agents, labels, index, control })
        }
        _ => None,
    })
}

/// Makes the databases with the first values of `meta`, all in one transaction.
pub(super) fn create(env: &Env<WithoutTls>, meta: &[(Vec<u8>, Vec<u8>)]) -> Result<Databases, heed::Error> {
    let created = env.create_databases_and_commit(env.write_txn()?, |opener, transaction| {
        let mut create = |part: Part| opener.create_database::<Bytes, Bytes>(transaction, Some(part.name()));
        let all = [
            create(Part::Meta)?,
            create(Part::Log)?,
            create(Part::Agents)?,
            create(Part::Labels)?,
            create(Part::Index)?,
            create(Part::Keys)?,
            create(Part::Secrets)?,
            create(Part::Events)?,
        ];
        for (key, value) in meta {
            all[0].put(transaction, key, value)?;
        }
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(all))
    })?;
    let [meta, log, agents, labels, index, keys, secrets, events] = created.unwrap_commit();
    Ok(Databases { meta, log, agents, labels, index, control: Some(ControlDatabases { keys, secrets, events }) })
}

/// Makes the databases that an older format lacks and gives the store its new number, in one transaction.
pub(super) fn upgrade(
    env: &Env<WithoutTls>,
    meta: Raw,
    schema_key: &[u8],
    schema: &[u8],
) -> Result<ControlDatabases, heed::Error> {
    let created = env.create_databases_and_commit(env.write_txn()?, |opener, transaction| {
        let mut create = |part: Part| opener.create_database::<Bytes, Bytes>(transaction, Some(part.name()));
        let (keys, secrets, events) = (create(Part::Keys)?, create(Part::Secrets)?, create(Part::Events)?);
        meta.put(transaction, schema_key, schema)?;
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((keys, secrets, events)))
    })?;
    let (keys, secrets, events) = created.unwrap_commit();
    Ok(ControlDatabases { keys, secrets, events })
}

/// Whether the file has no database at all: the first commit never happened.
pub(super) fn is_blank(env: &Env<WithoutTls>) -> bool {
    env.unnamed_database_stat().entries == 0
}
