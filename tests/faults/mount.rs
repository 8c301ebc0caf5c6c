//! Disks of the test's own: file systems mounted where only the test's thread and its children see them, so that nothing
//! is left behind, however the test ends.

use crate::tally::skip;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Shuts a file system down as a power cut does; see `ext4_force_shutdown`.
const FS_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
/// Without writing the journal out first: what was not flushed is gone.
const NOLOGFLUSH: u32 = 2;
/// The kernel lets go of a killed process's files a little later.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` in a thread with a mount namespace of its own, or says visibly why not.
pub(crate) fn with_own_mounts(name: &str, test: impl FnOnce() + Send + 'static) {
    let why_not = std::thread::scope(|scope| {
        let probe = scope.spawn(|| {
            enter()?;
            let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
            command(&["mount", "-t", "tmpfs", "none", &directory.path().to_string_lossy()])?;
            command(&["umount", &directory.path().to_string_lossy()])
        });
        probe.join().unwrap().err()
    });
    if let Some(why) = why_not {
        return skip("root", name, &why);
    }
    let thread = std::thread::Builder::new().name(name.to_owned());
    let thread = thread.spawn(move || {
        enter().unwrap();
        test();
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

#[allow(unsafe_code, reason = "the call is unsafe for the sake of one flag that is not used here")]
fn enter() -> Result<(), String> {
    // SAFETY: unsafe only with CLONE_FILES, which would close other threads' descriptors; this is the mount namespace alone.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .map_err(|error| format!("no mount namespace: {error}"))?;
    command(&["mount", "--make-rprivate", "/"])
}

fn command(line: &[&str]) -> Result<(), String> {
    let out = Command::new(line[0]).args(&line[1..]).output().map_err(|error| format!("{line:?}: {error}"))?;
    if out.status.success() {
        Ok(())
    } else {
        Err(format!("{line:?}: {}", String::from_utf8_lossy(&out.stderr).trim()))
    }
}

fn unmount(path: &Path) {
    let (path, begun) = (path.to_string_lossy(), Instant::now());
    while let Err(problem) = command(&["umount", &path]) {
        assert!(begun.elapsed() < UNMOUNT_PATIENCE, "{problem}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Memory as a disk of a given size.
pub(crate) struct Memory {
    directory: TempDir,
}

impl Memory {
    pub(crate) fn new(size: &str) -> Memory {
        let directory = tempfile::Builder::new().prefix("relay-disk").tempdir().unwrap();
        let options = format!("size={size}");
        command(&["mount", "-t", "tmpfs", "-o", &options, "none", &directory.path().to_string_lossy()]).unwrap();
        Memory { directory }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Remounts it with other options.
    pub(crate) fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        command(&["mount", "-o", &options, &self.directory.path().to_string_lossy()]).unwrap();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        drop(command(&["umount", "-l", &self.directory.path().to_string_lossy()]));
    }
}

/// An ext4 file system in a file, whose power can be cut.
pub(crate) struct Ext4 {
    memory: Memory,
}

impl Ext4 {
    /// Makes one; says why not where there are no loop devices.
    pub(crate) fn new(megabytes: u64) -> Result<Ext4, String> {
        // The image lies in memory: flushing is honest and quick, and the power that is cut is the file system's.
        let ext4 = Ext4 { memory: Memory::new(&format!("{}m", megabytes + 16)) };
        std::fs::create_dir(ext4.path()).unwrap();
        std::fs::File::create(ext4.image()).unwrap().set_len(megabytes << 20).unwrap();
        command(&["mkfs.ext4", "-q", "-F", &ext4.image().to_string_lossy()])?;
        ext4.mount()?;
        Ok(ext4)
    }

    fn image(&self) -> PathBuf {
        self.memory.path().join("image")
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.memory.path().join("mounted")
    }

    fn mount(&self) -> Result<(), String> {
        command(&["mount", "-o", "loop", &self.image().to_string_lossy(), &self.path().to_string_lossy()])
    }

    /// From here on nothing reaches the disk, and every call that needs it fails.
    #[allow(unsafe_code, reason = "rustix knows no safe form of this call")]
    pub(crate) fn cut(&self) {
        let root = std::fs::File::open(self.path()).unwrap();
        // SAFETY: FS_IOC_SHUTDOWN reads one u32, and `Setter` hands it a pointer to one.
        let setter = unsafe { rustix::ioctl::Setter::<FS_IOC_SHUTDOWN, u32>::new(NOLOGFLUSH) };
        // SAFETY: the call reads that u32 and changes no memory of this process.
        unsafe { rustix::ioctl::ioctl(&root, setter) }.unwrap();
    }

    /// The power is back: the journal is replayed.
    pub(crate) fn restore(&self) {
        unmount(&self.path());
        self.mount().unwrap();
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        drop(command(&["umount", "-l", &self.path().to_string_lossy()]));
    }
}
