//! The memory the kernel receives into: a ring of buffers shared with it, each handed back once its bytes were read.

use super::Receive;
use io_uring::types::{BufRingEntry, IOU_PBUF_RING_INC};
use io_uring::{IoUring, cqueue};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use zeroize::Zeroize;

/// A group of provided buffers.
pub(super) struct Pool {
    /// The ring of buffer descriptions, read and (incremental mode) written by the kernel.
    entries: Memory,
    /// The buffers themselves, one after the other.
    memory: Memory,
    group: u16,
    /// A power of two.
    count: u16,
    buffer_bytes: u32,
    mode: Receive,
    /// Whether bytes are cleared when they were read: those before WELCOME hold credentials.
    wipes: bool,
    /// Where the next returned buffer goes; the kernel sees it after `publish`.
    tail: u16,
    published: u16,
    /// Buffers the kernel can still fill, wholly or partly.
    available: u16,
    /// The buffer at each place of the ring, and the place of each buffer: a bundle goes on in ring order.
    buffer_at: Box<[u16]>,
    place_of: Box<[u16]>,
    /// How far each buffer has been filled, in incremental mode.
    filled: Box<[u32]>,
}

/// Received bytes: a part of one buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    buffer: u16,
    /// Whether the buffer is the pool's again after this: it goes back to the kernel when the bytes were read.
    last: bool,
    offset: u32,
    length: u32,
}

impl Segment {
    pub(super) fn is_empty(self) -> bool {
        self.length == 0
    }

    pub(super) fn length(self) -> u32 {
        self.length
    }
}

impl Pool {
    /// Registers `count` buffers as `group`.
    pub(super) fn new(ring: &IoUring, group: u16, count: u16, buffer_bytes: usize, mode: Receive) -> io::Result<Pool> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "the kernel wants a power of two, 32,768 at most");
        assert!(buffer_bytes > 0 && u32::try_from(buffer_bytes).is_ok(), "a buffer's length is 32-bit");
        let mut pool = Pool {
            entries: Memory::new(usize::from(count) * size_of::<BufRingEntry>()),
            memory: Memory::new(usize::from(count) * buffer_bytes),
            group,
            count,
            buffer_bytes: buffer_bytes as u32,
            mode,
            wipes: false,
            tail: 0,
            published: 0,
            available: 0,
            buffer_at: vec![0; usize::from(count)].into(),
            place_of: vec![0; usize::from(count)].into(),
            filled: vec![0; usize::from(count)].into(),
        };
        let flags = if mode == Receive::Incremental { IOU_PBUF_RING_INC as u16 } else { 0 };
        let address = pool.entries.start.as_ptr() as u64;
        // SAFETY: `entries` holds `count` entries and is page-aligned; it lives in the Pool, which the Ring drops (or
        // leaks) only after `unregister` or when nothing can be received any more.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, count, group, flags) }?;
        for buffer in 0..count {
            pool.give_back(buffer);
        }
        pool.publish();
        Ok(pool)
    }

    /// The same pool, whose bytes are cleared when they were read.
    pub(super) fn wiping(self) -> Pool {
        Pool { wipes: true, ..self }
    }

    pub(super) fn unregister(&self, ring: &IoUring) {
        // Closing the ring would do the same; a Waker may keep it open for a while.
        let _ = ring.submitter().unregister_buf_ring(self.group);
    }

    pub(super) fn group(&self) -> u16 {
        self.group
    }

    pub(super) fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// Whether a receive armed now would find a buffer.
    pub(super) fn has_buffers(&self) -> bool {
        self.available > 0
    }

    /// The first segment of a completion; the caller goes on with `next_segment` while bytes remain.
    pub(super) fn first_segment(&mut self, result: i32, flags: u32) -> Option<Segment> {
        let buffer = cqueue::buffer_select(flags)?;
        assert!(buffer < self.count, "the kernel names a buffer it was given");
        let received = u32::try_from(result).unwrap_or(0);
        if received == 0 && self.mode == Receive::Incremental {
            // Nothing was taken, so the kernel has not moved on, whatever else the flags say.
            return None;
        }
        let filled = self.filled[usize::from(buffer)];
        let length = if self.mode == Receive::Bundle { received.min(self.buffer_bytes) } else { received };
        assert!(u64::from(filled) + u64::from(length) <= u64::from(self.buffer_bytes), "bytes lie inside their buffer");
        let last = !cqueue::buffer_more(flags);
        if last {
            self.available -= 1;
        } else {
            self.filled[usize::from(buffer)] = filled + length;
        }
        Some(Segment { buffer, last, offset: filled, length })
    }

    /// The segment after `segment` when `remaining` bytes of the same bundle follow it.
    pub(super) fn next_segment(&mut self, segment: Segment, remaining: u32) -> Segment {
        let place = self.place_of[usize::from(segment.buffer)].wrapping_add(1) & (self.count - 1);
        self.available -= 1;
        Segment {
            buffer: self.buffer_at[usize::from(place)],
            last: true,
            offset: 0,
            length: remaining.min(self.buffer_bytes),
        }
    }

    /// The bytes of a segment that has not been released.
    pub(super) fn bytes(&self, segment: Segment) -> &[u8] {
        let start = usize::from(segment.buffer) * self.buffer_bytes as usize + segment.offset as usize;
        self.memory.slice(start, segment.length as usize)
    }

    /// The bytes of `segment` were read.
    pub(super) fn release(&mut self, segment: Segment) {
        if self.wipes {
            let start = usize::from(segment.buffer) * self.buffer_bytes as usize + segment.offset as usize;
            self.memory.slice_mut(start, segment.length as usize).zeroize();
        }
        if segment.last {
            self.give_back(segment.buffer);
        }
    }

    fn give_back(&mut self, buffer: u16) {
        let place = self.tail & (self.count - 1);
        let address = self.memory.start.as_ptr() as u64 + u64::from(buffer) * u64::from(self.buffer_bytes);
        let entries = self.entries.start.cast::<BufRingEntry>();
        // SAFETY: `place < count`, so the pointer stays inside `entries`.
        let entry = unsafe { entries.add(usize::from(place)) };
        let entry = entry.as_ptr();
        // SAFETY: `entries` is ours, zeroed and aligned; the kernel does not look at this place before `publish`.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(buffer);
        self.buffer_at[usize::from(place)] = buffer;
        self.place_of[usize::from(buffer)] = place;
        self.filled[usize::from(buffer)] = 0;
        self.tail = self.tail.wrapping_add(1);
        self.available += 1;
    }

    /// Shows the kernel what was given back.
    pub(super) fn publish(&mut self) {
        if self.published == self.tail {
            return;
        }
        self.published = self.tail;
        let base = self.entries.start.cast::<BufRingEntry>().as_ptr();
        // SAFETY: `base` is the first entry of the ring, initialised by `alloc_zeroed`.
        let tail = unsafe { BufRingEntry::tail(base) };
        // SAFETY: the tail is a 16-bit, 2-aligned word in `entries`, which outlives this; both sides use it atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Page-aligned zeroed memory. The allocator gets it from the kernel untouched, so what is never received into costs
/// nothing; asked for the alignment itself, it would clear every page.
struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    allocation: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    fn new(bytes: usize) -> Memory {
        assert!(bytes > 0, "no pool is empty");
        let page = rustix::param::page_size();
        let layout =
            Layout::array::<u64>((bytes + page).div_ceil(8)).expect("a pool is far smaller than the address space");
        // SAFETY: the layout's size is not zero.
        let allocation = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(allocation) else { handle_alloc_error(layout) };
        let gap = allocation.align_offset(page);
        assert!(gap < page, "a byte pointer can be aligned");
        // SAFETY: the gap is less than the page that was asked for on top.
        let start = unsafe { allocation.add(gap) };
        Memory { start, bytes, allocation, layout }
    }

    fn slice(&self, start: usize, length: usize) -> &[u8] {
        assert!(start + length <= self.bytes, "a slice lies inside its memory");
        // SAFETY: `start` is inside the allocation.
        let first = unsafe { self.start.add(start) };
        // SAFETY: the range is inside the allocation and initialised; the kernel writes only behind what it has
        // completed, and gets a buffer back only after its segments were released, which ends this borrow.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), length) }
    }
}

impl Memory {
    fn slice_mut(&mut self, start: usize, length: usize) -> &mut [u8] {
        assert!(start + length <= self.bytes, "a slice lies inside its memory");
        // SAFETY: `start` is inside the allocation.
        let first = unsafe { self.start.add(start) };
        // SAFETY: the range is inside the allocation and initialised; it is a part that the kernel has completed and has
        // not been given back, so it is ours alone, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), length) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; the Ring drops a pool only when nothing is in flight.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}
