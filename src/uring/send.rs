//! What one send carries, and how it is cut into vectors for the kernel.

use crate::base::Bytes;

/// Vectors of one system call; a longer send takes several. The kernel's own bound is 1024.
pub(super) const VECTORS_MAX: usize = 128;
/// Bytes of one system call; the kernel's own bound is just below 2 GiB.
pub(super) const SEND_BYTES_MAX: usize = 1 << 30;

/// The bytes of one send: the stream is `bytes`, with each big frame inserted where it belongs.
#[derive(Debug, Default)]
pub struct SendBuffer {
    /// Small frames, one after the other.
    pub bytes: Vec<u8>,
    /// Big ones, each with the offset in `bytes` before which it goes; offsets never fall.
    pub frames: Vec<(usize, Bytes)>,
}

impl SendBuffer {
    /// How many bytes go out.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.frames.iter().map(|(_, frame)| frame.len()).sum::<usize>()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.frames.iter().all(|(_, frame)| frame.is_empty())
    }

    /// Forgets the content, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.frames.is_sorted_by_key(|(offset, _)| *offset)
            && self.frames.last().is_none_or(|(offset, _)| *offset <= self.bytes.len())
    }

    /// The pieces of the stream in order, without its first `skip` bytes. None is empty.
    pub fn pieces(&self, skip: usize) -> impl Iterator<Item = &[u8]> {
        let mut skip = skip;
        let starts = std::iter::once(0).chain(self.frames.iter().map(|(offset, _)| *offset));
        let ends = self.frames.iter().map(|(offset, _)| *offset).chain(std::iter::once(self.bytes.len()));
        let frames = self.frames.iter().map(|(_, frame)| &frame[..]).chain(std::iter::once(&[][..]));
        starts.zip(ends).zip(frames).flat_map(|((start, end), frame)| [&self.bytes[start..end], frame]).filter_map(
            move |piece| {
                let skipped = skip.min(piece.len());
                skip -= skipped;
                (skipped < piece.len()).then(|| &piece[skipped..])
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_bytes_with_the_frames_between_wherever_it_resumes() {
        let frame = |text: &'static str| Bytes::from_static(text.as_bytes());
        let buffer = SendBuffer {
            bytes: b"abcd".to_vec(),
            frames: vec![(0, frame("0")), (2, frame("11")), (2, frame("")), (2, frame("2")), (4, frame("333"))],
        };
        let whole = b"0ab112cd333";
        assert_eq!((buffer.len(), buffer.is_ordered()), (whole.len(), true));
        for skip in 0..=whole.len() {
            assert_eq!(buffer.pieces(skip).collect::<Vec<_>>().concat(), whole[skip..]);
            assert!(buffer.pieces(skip).all(|piece| !piece.is_empty()));
        }
    }
}
