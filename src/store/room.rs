//! Room: blocks at the end of the file that were written with zeros before a page needs them. A commit that makes the file
//! longer makes the file system write its own bookkeeping twice, once for each of LMDB's two flushes; one that overwrites
//! blocks does not, and takes a third less time (`docs/decisions/20-room-ahead.md`). LMDB does not mind a file that is longer
//! than its pages.

use super::{Access, Open, Store, StoreError, error, open};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// File systems that overwrite a block where it lies, by `f_type`: ext2 to ext4, XFS. Others (btrfs, ZFS, memory) would
/// gain nothing.
const OVERWRITING: &[u32] = &[0xEF53, 0x5846_5342];
/// Of the free space, room takes no more than one part in so many.
const SHARE_OF_FREE: u64 = 64;
/// Zeros are written in pieces of this.
const BLOCK_BYTES: usize = 4096;
/// Pieces of one call: 1 MiB.
const BLOCKS_MAX: usize = 256;

#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);
static ZEROS: Block = Block([0; BLOCK_BYTES]);

/// Room that was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Bytes; none where the file system does not write past its cache.
    pub bytes: u64,
    /// How long a commit may have waited for it.
    pub held: Duration,
}

/// How far the file reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Bytes that pages were given out from, used or free.
    pub paged: u64,
    /// Bytes behind them.
    pub room: u64,
}

impl Store {
    /// How far the file reaches, without a transaction: other threads may just be changing it.
    pub fn extent(&self) -> Result<Extent, StoreError> {
        let guard = self.open_env()?;
        let open = guard.as_ref().expect("open_env checked it");
        let length = std::fs::metadata(&open.data).map_err(|error| error::of_io(&error, &self.0.folder))?.len();
        Ok(extent(open, length))
    }

    /// Whether room is worth its writing here, and how much the disk can spare.
    pub fn room_allowed(&self) -> u64 {
        let Ok(kind) = rustix::fs::statfs(&self.0.folder) else { return 0 };
        let Ok(space) = rustix::fs::statvfs(&self.0.folder) else { return 0 };
        if self.0.access == Access::Read || !OVERWRITING.contains(&(kind.f_type as u32)) {
            return 0;
        }
        space.f_bavail.saturating_mul(space.f_frsize) / SHARE_OF_FREE
    }

    /// Makes the file longer by `bytes` of zeros, from 4 KiB to 1 MiB; commits wait meanwhile, so that no page is given a
    /// place that is being written.
    pub fn make_room(&self, bytes: u64) -> Result<Room, StoreError> {
        const NONE: Room = Room { bytes: 0, held: Duration::ZERO };
        let failed = |error: std::io::Error| error::of_io(&error, &self.0.folder);
        let guard = self.open_env()?;
        let open = guard.as_ref().expect("open_env checked it");
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::open(&open.data, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::INVAL) => return Ok(NONE),
            Err(error) => return Err(failed(error.into())),
        };
        if open.file.is_none() || open.file != open::identity_of(file.as_fd()) {
            return Err(StoreError::Gone);
        }
        let blocks = (bytes as usize / BLOCK_BYTES).clamp(1, BLOCKS_MAX);
        let slices = [IoSlice::new(&ZEROS.0); BLOCKS_MAX];
        let transaction = open.env.write_txn().map_err(|error| error::of_heed(error, &self.0.folder))?;
        let began = Instant::now();
        let length = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?.st_size as u64;
        let Extent { paged, room } = extent(open, length);
        let start = (paged + room).next_multiple_of(BLOCK_BYTES as u64);
        if start + (blocks * BLOCK_BYTES) as u64 > open.env.info().map_size as u64 {
            return Ok(NONE);
        }
        let written = rustix::io::pwritev(&file, &slices[..blocks], start);
        transaction.abort();
        let held = began.elapsed();
        let bytes = match written {
            Ok(written) => written as u64,
            Err(Errno::INVAL) => return Ok(NONE),
            Err(error) => return Err(failed(error.into())),
        };
        // The file's new length and its blocks' places: now, and not with the next commit.
        rustix::fs::fdatasync(&file).map_err(|error| failed(error.into()))?;
        Ok(Room { bytes, held })
    }
}

fn extent(open: &Open, length: u64) -> Extent {
    let paged = (open.env.info().last_page_number as u64 + 1) * open.page_bytes;
    Extent { paged, room: length.saturating_sub(paged) }
}
