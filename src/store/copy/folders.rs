//! The folders that copies are made in, and how one takes another's name.

use super::CopyError;
use crate::store::error::{self, StoreError};
use crate::store::open;
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A name for a store that is replaced.
pub(super) fn free_name(folder: &Path, seconds_now: u64) -> Result<PathBuf, CopyError> {
    const TRIES: u64 = 1_000;
    let name = |seconds| beside(folder, &format!("replaced-{seconds}"));
    for seconds in seconds_now..seconds_now.saturating_add(TRIES) {
        let aside = name(seconds)?;
        if !aside.exists() {
            return Ok(aside);
        }
    }
    Err(CopyError::Exists(name(seconds_now)?))
}

/// A copy is never written over anything.
pub(super) fn refuse_if_taken(folder: &Path) -> Result<(), CopyError> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(CopyError::Exists(folder.to_path_buf())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(CopyError::Exists(folder.to_path_buf())),
        Err(error) => Err(file_error(folder, &error)),
    }
}

/// `.<name>.<what>` in the same folder, hence on the same file system.
pub(super) fn beside(folder: &Path, what: &str) -> Result<PathBuf, CopyError> {
    let Some(name) = folder.file_name() else {
        return Err(CopyError::File(folder.to_path_buf(), "it has no name of its own".to_owned()));
    };
    if what.starts_with("replaced") {
        let mut visible = name.to_os_string();
        visible.push(format!(".{what}"));
        return Ok(folder.with_file_name(visible));
    }
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{what}"));
    Ok(folder.with_file_name(hidden))
}

/// The folder `partial` for a copy that is to become `to`: empty, and ours as long as what is returned lives.
pub(super) fn claim(partial: &Path, to: &Path) -> Result<fs::File, CopyError> {
    open::make_folder(partial)?;
    let failed = |error: &io::Error| file_error(partial, error);
    let mut opening = fs::OpenOptions::new();
    opening.read(true).custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32);
    let claim = opening.open(partial).map_err(|error| failed(&error))?;
    let about = claim.metadata().map_err(|error| failed(&error))?;
    // Where others may write, too, one of them may have been there before.
    if about.uid() != rustix::process::geteuid().as_raw() || about.mode() & 0o077 != 0 {
        let what = "it was there, and is not yours alone: remove it, or choose another folder";
        return Err(CopyError::File(partial.to_path_buf(), what.to_owned()));
    }
    let locked = rustix::fs::flock(&claim, FlockOperation::NonBlockingLockExclusive);
    // Whoever had it may have ended meanwhile, and given it its name.
    let taken = locked == Err(Errno::WOULDBLOCK) || open::identity(partial) != open::identity_of(claim.as_fd());
    if taken {
        return Err(CopyError::Busy(to.to_path_buf()));
    }
    refuse_if_taken(to)?;
    for entry in fs::read_dir(partial).map_err(|error| failed(&error))? {
        // What an earlier try has left.
        fs::remove_file(entry.map_err(|error| failed(&error))?.path()).map_err(|error| failed(&error))?;
    }
    Ok(claim)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), CopyError> {
    fs::rename(from, to).map_err(|error| file_error(to, &error))
}

/// Two names change what they stand for, at once.
pub(super) fn exchange(one: &Path, other: &Path) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
}

/// Removes what an earlier try has left.
pub(super) fn remove(folder: &Path) -> Result<(), CopyError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(folder, &error)),
        _ => Ok(()),
    }
}

pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Names in a folder are on the disk when the folder is.
pub(super) fn sync_folder(folder: &Path) -> Result<(), CopyError> {
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| file_error(folder, &error))
}

pub(super) fn file_error(path: &Path, error: &io::Error) -> CopyError {
    match error::of_io(error, parent_of(path)) {
        why @ (StoreError::Full | StoreError::Quota) => why.at(path).into(),
        _ => CopyError::File(path.to_path_buf(), error.to_string()),
    }
}
