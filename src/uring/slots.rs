//! The connections and listeners of a ring. Unlike `base::table`, an id dies at once but its place is kept until the
//! kernel has let go of everything in it.

use super::{ListenerId, ReceiveMode, SendBuffer};
use crate::base::SessionId;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A user_data has 24 bits for the place.
pub(super) const SLOTS_MAX: usize = 1 << 24;

/// One connection's place.
///
/// ```text
/// Free ── attach ──▶ Open ── close ──▶ (generation + 1) Closing ── last completion ──▶ Free
/// ```
#[derive(Default)]
pub(super) struct Slot {
    /// Law: grows by one in `close` and `detach`; a place is not taken again before its operations have completed.
    pub(super) generation: u32,
    /// None: the place is free.
    pub(super) fd: Option<OwnedFd>,
    pub(super) closing: bool,
    /// What the caller wants to receive; none: nothing now.
    pub(super) wants: Option<ReceiveMode>,
    /// The receive in flight.
    pub(super) armed: Option<ReceiveMode>,
    /// It is being cancelled, because too many of its completions wait or it is paused.
    pub(super) throttled: bool,
    /// The caller wants nothing of it for a while.
    pub(super) paused: bool,
    /// It waits in `starved` for buffers.
    pub(super) starved: bool,
    /// `Ended` was said.
    pub(super) ended: bool,
    /// After `close_after_send`: bytes are thrown away.
    pub(super) draining: bool,
    /// Completions of it that wait for `set_receiving(true)`.
    pub(super) deferred: u32,
    pub(super) sending: Option<Sending>,
}

/// A send in flight.
pub(super) struct Sending {
    pub(super) buffer: SendBuffer,
    pub(super) sent: usize,
    pub(super) total: usize,
    pub(super) vectors: Option<Box<Vectors>>,
    /// Success is told by the absence of a completion.
    pub(super) quiet: bool,
}

/// What sendmsg(2) reads. Both live on the heap behind the Vec, so moving this moves nothing the kernel sees.
#[derive(Default)]
pub(super) struct Vectors {
    pub(super) header: Vec<MessageHeader>,
    pub(super) pieces: Vec<Piece>,
}

/// The kernel's `struct user_msghdr`.
#[repr(C)]
pub(super) struct MessageHeader {
    name: *mut u8,
    name_bytes: u32,
    pieces: *const Piece,
    pieces_count: usize,
    control: *mut u8,
    control_bytes: usize,
    flags: u32,
}

/// The kernel's `struct iovec`.
#[repr(C)]
pub(super) struct Piece {
    start: *const u8,
    length: usize,
}

const _: () =
    assert!(size_of::<MessageHeader>() == 56 && size_of::<Piece>() == 16, "the kernel reads these as they are");

impl Vectors {
    /// Describes what is left of a send, as much as one system call takes.
    pub(super) fn describe(&mut self, buffer: &SendBuffer, sent: usize) {
        self.pieces.clear();
        let pieces = buffer.pieces(sent).take(super::send::VECTORS_MAX);
        self.pieces.extend(pieces.map(|piece| Piece { start: piece.as_ptr(), length: piece.len() }));
        self.header.clear();
        self.header.push(MessageHeader {
            name: std::ptr::null_mut(),
            name_bytes: 0,
            pieces: self.pieces.as_ptr(),
            pieces_count: self.pieces.len(),
            control: std::ptr::null_mut(),
            control_bytes: 0,
            flags: 0,
        });
    }
}

impl Slot {
    pub(super) fn raw_fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.armed.is_none() && self.sending.is_none()
    }
}

/// All places, growing with use up to a capacity.
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    capacity: usize,
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Slots {
        assert!(capacity <= SLOTS_MAX, "a connection's place has 24 bits");
        Slots { slots: Vec::new(), free: Vec::new(), capacity }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn all_len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == self.capacity
    }

    /// Takes a free place; the caller has asked `is_full`.
    pub(super) fn insert(&mut self, fd: OwnedFd) -> SessionId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[place as usize];
        let generation = slot.generation;
        *slot = Slot { generation, fd: Some(fd), ..Slot::default() };
        SessionId { slot: place, generation }
    }

    /// The open connection `id`.
    pub(super) fn find(&mut self, id: SessionId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        (slot.generation == id.generation && slot.fd.is_some() && !slot.closing).then_some(slot)
    }

    /// Whatever is at a place: a completion's own operation is always still there.
    pub(super) fn at(&mut self, place: u32) -> &mut Slot {
        &mut self.slots[place as usize]
    }

    /// Empties a place that nothing is in flight for.
    pub(super) fn release(&mut self, place: u32) -> Option<OwnedFd> {
        let slot = &mut self.slots[place as usize];
        debug_assert!(slot.is_idle(), "the kernel has let go of it");
        let fd = slot.fd.take();
        if fd.is_some() {
            self.free.push(place);
        }
        fd
    }
}

/// One listening socket's place.
#[derive(Default)]
pub(super) struct Listener {
    pub(super) generation: u32,
    /// None: the place is free.
    pub(super) fd: Option<OwnedFd>,
    pub(super) paused: bool,
    pub(super) closing: bool,
    /// An accept is in flight …
    pub(super) armed: bool,
    /// … of the multishot kind …
    pub(super) multishot: bool,
    /// … and being cancelled.
    pub(super) cancelling: bool,
}

impl Listener {
    pub(super) fn id(&self, slot: u32) -> ListenerId {
        ListenerId { slot, generation: self.generation }
    }
}
