//! Reference-counted frames in bump-filled chunks: a message is copied once and then shared by window, writer and mail.

pub use bytes::Bytes;
use bytes::BytesMut;
use std::collections::VecDeque;

/// Bytes of one chunk. Small frames share a chunk; larger ones get an allocation of their own size.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Frames above this size get their own allocation: at most a sixteenth of a chunk is wasted at its end.
pub const SHARED_FRAME_BYTES_MAX: usize = CHUNK_BYTES / 16;

/// Idle chunks kept for reuse before the oldest is let go. 64 chunks are 4 MiB a shard.
const SPARE_CHUNKS_MAX: usize = 64;

/// Where one thread's frames are written. In the steady state chunks are reused and nothing is allocated.
#[derive(Default)]
pub struct Chunks {
    /// The chunk being filled; none before the first frame.
    open: Option<BytesMut>,
    /// Filled chunks, oldest first; each becomes free when the last frame in it is dropped.
    filled: VecDeque<BytesMut>,
}

impl Chunks {
    /// Copies `frame` once; clones of the result share the copy.
    pub fn copy(&mut self, frame: &[u8]) -> Bytes {
        if frame.len() > SHARED_FRAME_BYTES_MAX {
            return Bytes::copy_from_slice(frame);
        }
        if self.open.as_ref().is_none_or(|open| open.capacity() - open.len() < frame.len()) {
            self.turn_page();
        }
        let open = self.open.get_or_insert_default();
        open.extend_from_slice(frame);
        open.split().freeze()
    }

    fn turn_page(&mut self) {
        // Frames die roughly in the order they were made, so if the oldest chunk is still in use the others are too.
        let reusable = self.filled.front_mut().is_some_and(|oldest| oldest.try_reclaim(CHUNK_BYTES));
        let fresh = if reusable { self.filled.pop_front() } else { None };
        let fresh = fresh.unwrap_or_else(|| BytesMut::with_capacity(CHUNK_BYTES));
        let Some(full) = self.open.replace(fresh) else { return };
        if self.filled.len() == SPARE_CHUNKS_MAX {
            self.filled.pop_front();
        }
        self.filled.push_back(full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_reused_once_their_frames_are_gone() {
        let mut chunks = Chunks::default();
        let mut addresses = std::collections::BTreeSet::new();
        for round in 0..10_000u32 {
            let frame = chunks.copy(&round.to_le_bytes().repeat(256));
            assert_eq!(frame[..4], round.to_le_bytes());
            addresses.insert(frame.as_ptr() as usize / CHUNK_BYTES);
        }
        assert!(addresses.len() <= 6, "{} chunks for frames that die at once", addresses.len());
    }

    #[test]
    fn a_kept_frame_keeps_its_bytes() {
        let mut chunks = Chunks::default();
        let kept = chunks.copy(b"kept");
        for _ in 0..200 {
            chunks.copy(&[9; 4000]);
        }
        assert_eq!(&kept[..], b"kept");
        assert_eq!(chunks.copy(&[1; CHUNK_BYTES * 2]).len(), CHUNK_BYTES * 2);
    }
}
