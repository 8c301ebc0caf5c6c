//! A disk that fails on demand: `broken_disk.c`, built when a test needs it, loaded in front of the C library.

use crate::daemon::Place;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// Which calls fail; all are the flushes, the writes and the truncations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Calls {
    Flushes = 1,
    Writes = 2,
    All = 7,
    /// Those, and names: with the files of copies.
    Everything = 15,
}

/// How they fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// With this error.
    Error(rustix::io::Errno),
    /// A write that takes less than it was given, and says so.
    Short,
    /// The program is killed instead.
    Kill,
    /// The program is stopped, until somebody lets it go on.
    Stop,
}

/// Steers the disk of one place.
pub(crate) struct BrokenDisk {
    words: File,
}

impl BrokenDisk {
    /// Puts a disk that breaks under what is started at `place`. Says why not where there is no C compiler.
    pub(crate) fn under(place: &mut Place) -> Result<BrokenDisk, String> {
        let library = place.outside.join("broken_disk.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/broken_disk.c");
        let out =
            Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").output();
        let out = out.map_err(|error| format!("no C compiler: {error}"))?;
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let path = place.outside.join("broken_disk");
        let words = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        words.set_len(4096).unwrap();
        place.environment.push(("LD_PRELOAD".into(), library.to_string_lossy().into_owned()));
        place.environment.push(("RELAY_BROKEN_DISK".into(), path.to_string_lossy().into_owned()));
        Ok(BrokenDisk { words })
    }

    fn word(&self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        self.words.read_exact_at(&mut bytes, index * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn set(&self, index: u64, value: u64) {
        self.words.write_all_at(&value.to_ne_bytes(), index * 8).unwrap();
    }

    /// After `passing` more such calls, `failing` of them fail.
    pub(crate) fn fail(&self, calls: Calls, passing: u64, failing: u64, failure: Failure) {
        self.heal();
        self.set(1, calls as u64);
        self.set(2, passing);
        self.set(3, failing);
        match failure {
            Failure::Error(error) => self.set(4, error.raw_os_error() as u64),
            Failure::Short | Failure::Kill | Failure::Stop => {}
        }
        self.set(5, u64::from(failure == Failure::Short));
        self.set(9, u64::from(failure == Failure::Kill) + 2 * u64::from(failure == Failure::Stop));
        self.set(6, 0);
        self.set(7, 0);
        self.set(0, 1);
    }

    /// No call fails any more.
    pub(crate) fn heal(&self) {
        self.set(0, 0);
    }

    /// Calls that have failed since `fail`.
    pub(crate) fn failed(&self) -> u64 {
        self.word(7)
    }

    /// Calls on the store's files, ever.
    pub(crate) fn calls(&self) -> u64 {
        self.word(8)
    }
}
