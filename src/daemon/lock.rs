//! One daemon per data directory: a lock that dies with its holder, and a socket that only its holder touches.
//! Never steals a live daemon's socket, never unlinks what is not a socket or not its own.

use super::paths::{Layout, replace_file};
use rustix::fs::{FlockOperation, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Connections that wait to be accepted; the kernel lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// A holder's record is short; anything longer is not one.
const RECORD_BYTES_MAX: u64 = 4096;

/// Who holds the lock, as it wrote itself down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// When it started (RFC 3339).
    pub since: String,
    /// Where it listens.
    pub socket: PathBuf,
    /// Its version.
    pub version: String,
}

/// What a daemon that has ended leaves in the lock file: for whoever told it to stop, and cannot see how it exits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWord {
    /// Its process.
    pub ended_pid: u32,
    /// Accepted messages that never got to the disk.
    pub lost_messages: u64,
    /// Why not; empty if there are none.
    pub reason: String,
}

/// Why the daemon cannot have this place.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A daemon is running here.
    #[error("a relay is already running here: pid {pid}, since {since}, socket {socket}. Stop it with `relay down`, or look at it with `relay status`", pid = .0.pid, since = .0.since, socket = .0.socket.display())]
    Held(Holder),
    /// A daemon is just starting or stopping here.
    #[error("another relay is just starting in {0}; try again in a moment")]
    HeldBySomebody(PathBuf),
    /// Another program answers on the socket: an original daemon, which takes no lock.
    #[error(
        "another program answers on {0} (an agent-relay of the npm package?); stop it first, or choose another place with --socket"
    )]
    SocketAlive(PathBuf),
    /// Something else has the socket's name.
    #[error("refusing to remove {0}: it is not a socket; move it away or choose another place with --socket")]
    NotASocket(PathBuf),
    /// A file system whose locks and sockets cannot be trusted.
    #[error(
        "{path} lies on {kind}, a network file system: its locks do not keep two daemons apart. Choose a local directory with --data-dir or AGENT_RELAY_DATA_DIR"
    )]
    NetworkFileSystem {
        /// Which directory.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The kernel refused.
    #[error("cannot {act} {path}: {error}{advice}", advice = advice(.error))]
    System {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    let no_room = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if no_room { "; make room there, and run it again" } else { "" }
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LockError {
    let path = path.to_path_buf();
    move |error| LockError::System { act, path, error }
}

/// The lock of one project folder. Dropping it (or dying) releases it.
#[derive(Debug)]
pub struct Lock {
    file: File,
    pid_file: PathBuf,
    last_word: Option<LastWord>,
}

impl Lock {
    /// Takes the lock of `layout`, whose directories exist, and writes down who holds it.
    pub fn take(layout: &Layout, now: jiff::Timestamp) -> Result<Lock, LockError> {
        refuse_network_file_system(&layout.folder)?;
        let path = layout.lock_file();
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(failed("open", &path))?;
        lock_exclusively(&file, layout)?;
        let holder = Holder {
            pid: std::process::id(),
            since: format!("{now:.0}"),
            socket: layout.socket.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let write = |file: &File| -> io::Result<()> {
            // Over what is there: that has a place on the fullest disk.
            let text = serde_json::to_vec(&holder)?;
            file.write_all_at(&text, 0)?;
            file.set_len(text.len() as u64)
        };
        write(&file).map_err(failed("write", &path))?;
        let pid_file = layout.pid_file();
        replace_file(&pid_file, format!("{}\n", holder.pid).as_bytes()).map_err(failed("write", &pid_file))?;
        Ok(Lock { file, pid_file, last_word: None })
    }

    /// What is to be read in the file when this is dropped.
    pub fn leave(&mut self, last_word: LastWord) {
        self.last_word = Some(last_word);
    }

    /// Binds `path`, mode 0600, and listens. A socket that nobody answers on is a dead daemon's and is replaced:
    /// holding the lock is what makes that safe.
    pub fn bind(&self, path: &Path) -> Result<SocketFile, LockError> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at", path)(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(LockError::NotASocket(path.to_path_buf())),
            // An original daemon takes no lock, so ask the socket itself.
            Ok(_) if answers(path) => return Err(LockError::SocketAlive(path.to_path_buf())),
            Ok(_) => fs::remove_file(path).map_err(failed("remove the dead socket", path))?,
        }
        let bound = || -> io::Result<UnixListener> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // Linux gives the name the mode of the unbound socket (less the umask), so no moment exists in which the
            // file is open to others, and the umask, which belongs to the whole process, is left alone.
            rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(UnixListener::from(socket))
        };
        let listener = bound().map_err(failed("listen on", path))?;
        let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
        Ok(SocketFile { listener, path: path.to_path_buf(), inode: (metadata.dev(), metadata.ino()) })
    }
}

/// A client that asks who is running holds a shared lock for some microseconds: so "held" is believed at the fifth look.
fn lock_exclusively(file: &File, layout: &Layout) -> Result<(), LockError> {
    for look in 1.. {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if look < 5 => std::thread::sleep(Duration::from_millis(4)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(match holder(&layout.lock_file()) {
                    Some(holder) => LockError::Held(holder),
                    None => LockError::HeldBySomebody(layout.folder.clone()),
                });
            }
            Err(error) => return Err(failed("lock", &layout.lock_file())(error.into())),
        }
    }
    Ok(())
}

/// Whether anybody listens on the socket at `path`. Never waits: a listener too busy to accept is one that lives.
fn answers(path: &Path) -> bool {
    let connect = || -> rustix::io::Result<rustix::net::UCred> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::sockopt::socket_peercred(&socket)
    };
    match connect() {
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => false,
        // The kernel lets go of a killed process's ring, and of the listener in it, a little after the process: ask who
        // called listen(2), not only whether somebody seems to.
        Ok(listener) => rustix::process::test_kill_process(listener.pid) != Err(rustix::io::Errno::SRCH),
        Err(_) => true,
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Emptied before the lock goes, so that nobody reads of a holder that has left. The file itself stays: removing
        // a lock file lets two processes hold two locks of the same name.
        // What is written over its first bytes has a place on the fullest disk.
        let text = self.last_word.take().and_then(|word| serde_json::to_vec(&word).ok()).unwrap_or_default();
        let left = self.file.write_all_at(&text, 0).map_or(0, |()| text.len() as u64);
        let _ = self.file.set_len(left);
        let mine = format!("{}\n", std::process::id());
        if fs::read_to_string(&self.pid_file).is_ok_and(|text| text == mine) {
            let _ = fs::remove_file(&self.pid_file);
        }
    }
}

/// A listening socket and the name it was given.
#[derive(Debug)]
pub struct SocketFile {
    /// The listener, non-blocking.
    pub listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    /// Takes the name away, if it is still ours.
    pub fn unlink(&self) {
        let ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.unlink();
    }
}

/// What process `pid` left behind when it ended in order, if nobody has come since.
pub fn last_word(layout: &Layout, pid: u32) -> Option<LastWord> {
    record::<LastWord>(&layout.lock_file()).filter(|word| word.ended_pid == pid)
}

fn record<R: serde::de::DeserializeOwned>(path: &Path) -> Option<R> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(RECORD_BYTES_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Who holds the lock file at `path`, as far as it says so. The record of a daemon that crashed stays: check before trusting.
pub fn holder(path: &Path) -> Option<Holder> {
    record(path)
}

/// The holder, if the lock is held right now.
pub fn live_holder(layout: &Layout) -> Option<Holder> {
    let path = layout.lock_file();
    let file = File::open(&path).ok()?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        // Nobody had it; closing the file lets it go again.
        Ok(()) => None,
        Err(_) => holder(&path),
    }
}

/// File systems seen over a network, by the magic number of statfs.
fn refuse_network_file_system(path: &Path) -> Result<(), LockError> {
    let kind = match file_system_kind(path).map_err(failed("look at the file system of", path))? {
        Some((kind, true)) => kind,
        _ => return Ok(()),
    };
    Err(LockError::NetworkFileSystem { path: path.to_path_buf(), kind })
}

/// A file system's name, if it is a common one, and whether it is seen over a network.
pub fn file_system_kind(path: &Path) -> io::Result<Option<(&'static str, bool)>> {
    const KINDS: &[(u64, &str, bool)] = &[
        (0x6969, "NFS", true),
        (0x517b, "SMB", true),
        (0xff53_4d42, "CIFS", true),
        (0xfe53_4d42, "SMB2", true),
        (0x0102_1997, "9P", true),
        (0x00c3_6400, "Ceph", true),
        (0x5346_414f, "AFS", true),
        (0x0bd0_0bd0, "Lustre", true),
        (0xef53, "ext4", false),
        (0x5846_5342, "XFS", false),
        (0x9123_683e, "Btrfs", false),
        (0x2fc1_2fc1, "ZFS", false),
        (0xf2f5_2010, "F2FS", false),
        (0x0102_1994, "tmpfs", false),
        (0x794c_7630, "overlay", false),
    ];
    let magic = rustix::fs::statfs(path)?.f_type as u64 & 0xffff_ffff;
    Ok(KINDS.iter().find(|kind| kind.0 == magic).map(|kind| (kind.1, kind.2)))
}

#[cfg(test)]
mod tests {
    use super::super::paths::{Environment, Place};
    use super::*;
    use std::os::unix::net::UnixStream;

    fn place() -> (tempfile::TempDir, Layout) {
        let directory = tempfile::tempdir().unwrap();
        let place = Place { data_dir: Some(directory.path().into()), global: true, ..Place::default() };
        let layout = Layout::of(&place, &Environment::default()).unwrap();
        layout.create().unwrap();
        (directory, layout)
    }

    fn take(layout: &Layout) -> Result<Lock, LockError> {
        Lock::take(layout, jiff::Timestamp::now())
    }

    #[test]
    fn a_second_daemon_learns_who_is_running_and_a_third_may_come_after() {
        let (_directory, layout) = place();
        assert_eq!(live_holder(&layout), None);
        let lock = take(&layout).unwrap();
        let text = take(&layout).unwrap_err().to_string();
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        assert!(text.contains("relay.sock") && text.contains("relay down"), "{text}");
        assert_eq!(live_holder(&layout).unwrap().pid, std::process::id());
        assert_eq!(fs::read_to_string(layout.pid_file()).unwrap(), format!("{}\n", std::process::id()));
        drop(lock);
        assert_eq!((live_holder(&layout), layout.pid_file().exists()), (None, false));
        take(&layout).unwrap();
    }

    #[test]
    fn a_last_word_is_read_by_the_process_it_names_until_the_next_daemon_comes() {
        let (_directory, layout) = place();
        let mut lock = take(&layout).unwrap();
        let word = LastWord { ended_pid: 42, lost_messages: 5, reason: "full".to_owned() };
        lock.leave(word.clone());
        assert_eq!(last_word(&layout, 42), None);
        drop(lock);
        assert_eq!((last_word(&layout, 42), last_word(&layout, 43)), (Some(word), None));
        assert_eq!((live_holder(&layout), holder(&layout.lock_file())), (None, None));
        drop(take(&layout).unwrap());
        assert_eq!(last_word(&layout, 42), None);
    }

    #[test]
    fn the_socket_is_private_and_leaves_with_its_owner() {
        let (_directory, layout) = place();
        let lock = take(&layout).unwrap();
        let socket = lock.bind(&layout.socket).unwrap();
        assert_eq!(fs::metadata(&layout.socket).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&layout.socket).unwrap();
        drop(socket);
        assert!(!layout.socket.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let (_directory, layout) = place();
        let lock = take(&layout).unwrap();
        drop(UnixListener::bind(&layout.socket).unwrap());
        assert!(layout.socket.exists(), "a listener that dies leaves its name behind");
        drop(lock.bind(&layout.socket).unwrap());
        let original = UnixListener::bind(&layout.socket).unwrap();
        assert!(matches!(lock.bind(&layout.socket), Err(LockError::SocketAlive(_))));
        drop(original);
        fs::remove_file(&layout.socket).unwrap();
        fs::write(&layout.socket, "precious").unwrap();
        assert!(matches!(lock.bind(&layout.socket), Err(LockError::NotASocket(_))));
        assert_eq!(fs::read(&layout.socket).unwrap(), b"precious");
    }

    #[test]
    fn another_daemons_socket_under_our_name_is_left_alone() {
        let (_directory, layout) = place();
        let lock = take(&layout).unwrap();
        let socket = lock.bind(&layout.socket).unwrap();
        fs::remove_file(&layout.socket).unwrap();
        let _other = UnixListener::bind(&layout.socket).unwrap();
        drop(socket);
        assert!(layout.socket.exists());
    }

    #[test]
    fn a_broken_record_names_nobody() {
        let (_directory, layout) = place();
        fs::write(layout.lock_file(), "{\"pid\":").unwrap();
        assert_eq!(holder(&layout.lock_file()), None);
        take(&layout).unwrap();
    }
}
