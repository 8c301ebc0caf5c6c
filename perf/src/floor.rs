//! The floor: what forwarding costs when nothing is promised. One thread, one ring, a table; no acknowledgement, no check.
//!
//! Each connection says once where its frames go ([`Destination`], in the header of its HELLO); from then on its native
//! frames are forwarded as they are. Multishot receive with incremental provided buffers, one copy into the
//! destination's outbox, one send per connection and turn, which posts no completion when it succeeds at once: the
//! fastest loop we know, and nothing else.
//! With a journal, what arrived in a turn is appended to a file first, and flushed if so asked; then it goes out, and each
//! sender hears how many of its frames that were: what an append-only log costs when nothing else is done.
//! It owns its ring and shares no code with the relay's, so that the two can be measured against each other.

use agent_relay::wire::{HEADER_BYTES, Header, Kind};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Buffers the kernel fills; each is used up from its start to its end before it comes back.
const BUFFERS: u16 = 16;
/// Large enough that 64 busy connections rarely end one.
const BUFFER_BYTES: usize = 256 * 1024;
const GROUP: u16 = 0;
/// `IOU_PBUF_RING_INC` of `linux/io_uring.h`.
const INCREMENTAL: u16 = 2;

/// Where a connection's frames go; carried in the acknowledgement field of its HELLO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// Nowhere: it only receives.
    None,
    /// To each connection that has no destination itself.
    Everyone,
    /// To the connection that said HELLO with this number.
    Agent(u64),
}

impl Destination {
    /// The form on the wire.
    pub fn to_wire(self) -> u64 {
        match self {
            Destination::None => u64::MAX,
            Destination::Everyone => u64::MAX - 1,
            Destination::Agent(number) => number,
        }
    }

    fn from_wire(number: u64) -> Destination {
        match number {
            u64::MAX => Destination::None,
            n if n == u64::MAX - 1 => Destination::Everyone,
            n => Destination::Agent(n),
        }
    }
}

/// A file to which everything is appended before it is forwarded.
pub struct Journal {
    file: File,
    /// Whether each turn waits until what it appended is on the disk.
    flushes: bool,
    /// What this turn has to append.
    bytes: Vec<u8>,
    /// Whose frames those are, and how many.
    senders: Vec<(u32, u64)>,
}

impl Journal {
    /// A journal at `path`, from its start.
    pub fn create(path: &str, flushes: bool) -> io::Result<Journal> {
        Ok(Journal { file: File::create(path)?, flushes, bytes: Vec::new(), senders: Vec::new() })
    }
}

/// Binds `path` and forwards until the process ends.
pub fn serve(path: &str, journal: Option<Journal>) -> io::Result<()> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    // The standard library listens with 128; ten thousand agents connect faster than that.
    rustix::net::listen(&listener, 4096)?;
    Floor::new(listener, journal)?.run()
}

/// The provided buffers and the ring of entries through which the kernel is told of them.
struct Buffers {
    entries: *mut types::BufRingEntry,
    memory: *mut u8,
    /// How much of each buffer has been filled since it was last provided.
    filled: [usize; BUFFERS as usize],
    tail: u16,
}

impl Buffers {
    fn entries_layout() -> Layout {
        Layout::from_size_align(usize::from(BUFFERS) * size_of::<types::BufRingEntry>(), 4096).expect("a constant")
    }

    fn memory_layout() -> Layout {
        Layout::from_size_align(usize::from(BUFFERS) * BUFFER_BYTES, 4096).expect("a constant")
    }

    fn new() -> Buffers {
        // SAFETY: the layout is not empty.
        let entries = unsafe { alloc_zeroed(Buffers::entries_layout()) };
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(Buffers::memory_layout()) };
        if entries.is_null() || memory.is_null() {
            handle_alloc_error(Buffers::memory_layout());
        }
        Buffers { entries: entries.cast(), memory, filled: [0; BUFFERS as usize], tail: 0 }
    }

    /// Hands buffer `id` to the kernel, whole.
    fn provide(&mut self, id: u16) {
        self.filled[usize::from(id)] = 0;
        let place = usize::from(self.tail % BUFFERS);
        // SAFETY: `place` is below BUFFERS, the number of entries allocated.
        let entry = unsafe { self.entries.add(place) };
        // SAFETY: the entry is ours until the tail passes it; only this thread writes entries.
        let entry = unsafe { &mut *entry };
        entry.set_addr(self.memory as u64 + u64::from(id) * BUFFER_BYTES as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the first entry is valid; the tail lies inside it.
        let tail = unsafe { types::BufRingEntry::tail(self.entries) };
        // SAFETY: 2-aligned memory that the kernel reads; only this thread writes it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// The bytes of one completion. Returned as a pointer pair since the kernel goes on filling behind them.
    fn take(&mut self, id: u16, length: usize) -> &[u8] {
        let start = self.filled[usize::from(id)];
        self.filled[usize::from(id)] = start + length;
        assert!(start + length <= BUFFER_BYTES, "the kernel stays inside the buffer it was given");
        // SAFETY: inside `memory`, as just asserted.
        let first = unsafe { self.memory.add(usize::from(id) * BUFFER_BYTES + start) };
        // SAFETY: written by the completion that named it, and not written again before `provide(id)`.
        unsafe { std::slice::from_raw_parts(first, length) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; the ring that knew it is dropped before (field order of Floor).
        unsafe { dealloc(self.entries.cast(), Buffers::entries_layout()) };
        // SAFETY: as above.
        unsafe { dealloc(self.memory, Buffers::memory_layout()) };
    }
}

#[derive(Default)]
struct Connection {
    socket: Option<OwnedFd>,
    destination: Option<Destination>,
    /// The start of a frame whose end has not arrived.
    carry: Vec<u8>,
    outbox: Vec<u8>,
    /// What the kernel is sending; untouched until its completion.
    sending: Vec<u8>,
    sent: usize,
    send_in_flight: bool,
    /// The send posts a completion only if it did not succeed at once.
    quiet: bool,
    receive_armed: bool,
    dirty: bool,
    closed: bool,
}

struct Floor {
    ring: IoUring,
    buffers: Buffers,
    listener: UnixListener,
    connections: Vec<Connection>,
    free: Vec<u32>,
    /// Agent number to slot.
    numbers: HashMap<u64, u32>,
    /// Slots without a destination, for [`Destination::Everyone`].
    everyone: Vec<u32>,
    dirty: Vec<u32>,
    /// Connections whose send was submitted with the last call and posts nothing if it succeeded.
    quiet: Vec<u32>,
    completions: Vec<(u64, i32, u32)>,
    journal: Option<Journal>,
}

const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1 << 32;
const SEND: u64 = 2 << 32;

impl Floor {
    fn new(listener: UnixListener, journal: Option<Journal>) -> io::Result<Floor> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_cqsize(32_768).build(4096)?;
        let mut buffers = Buffers::new();
        // SAFETY: `entries` holds BUFFERS entries, page-aligned, and outlives the ring (both are dropped with Floor).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(buffers.entries as u64, BUFFERS, GROUP, INCREMENTAL)?;
        }
        for id in 0..BUFFERS {
            buffers.provide(id);
        }
        Ok(Floor {
            ring,
            buffers,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            numbers: HashMap::new(),
            everyone: Vec::new(),
            dirty: Vec::new(),
            quiet: Vec::new(),
            completions: Vec::with_capacity(4096),
            journal,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        self.accept()?;
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(4 | 16)) => {}
                Err(error) => return Err(error),
            }
            let mut completions = std::mem::take(&mut self.completions);
            completions.extend(self.ring.completion().map(|done| (done.user_data(), done.result(), done.flags())));
            // What was submitted quietly with this call; a send that begins below is judged after the next one.
            let mut quiet = std::mem::take(&mut self.quiet);
            // Failures first; those that nothing speaks of have succeeded.
            for (data, result, _) in completions.iter().filter(|(data, ..)| data & !0xffff_ffff == SEND) {
                self.sent(*data as u32, *result)?;
            }
            for slot in quiet.drain(..) {
                let connection = &self.connections[slot as usize];
                if connection.quiet && connection.send_in_flight {
                    let rest = connection.sending.len() - connection.sent;
                    self.sent(slot, rest as i32)?;
                }
            }
            quiet.append(&mut self.quiet);
            self.quiet = quiet;
            for (data, result, flags) in completions.drain(..) {
                let slot = data as u32;
                match data & !0xffff_ffff {
                    ACCEPT => self.accepted(result, flags)?,
                    RECEIVE => self.received(slot, result, flags)?,
                    _ => {}
                }
            }
            self.completions = completions;
            self.write_down()?;
            while let Some(slot) = self.dirty.pop() {
                self.connections[slot as usize].dirty = false;
                self.flush(slot)?;
            }
        }
    }

    /// Appends what this turn brought, waits for the disk if so asked, and says so to each sender.
    fn write_down(&mut self) -> io::Result<()> {
        let Some(mut journal) = self.journal.take() else { return Ok(()) };
        if !journal.bytes.is_empty() {
            journal.file.write_all(&journal.bytes)?;
            if journal.flushes {
                journal.file.sync_data()?;
            }
            journal.bytes.clear();
            for (slot, frames) in journal.senders.drain(..) {
                let mut receipt = Header::of(Kind::Receipt);
                receipt.sequence.counter = frames;
                self.put(slot, &receipt.encode());
            }
        }
        self.journal = Some(journal);
        Ok(())
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: entries name sockets in `connections`, which close only when nothing is in flight, and bytes of
            // `sending`, which is left alone until the completion of its send.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(types::Fd(self.listener.as_raw_fd())).build().user_data(ACCEPT);
        self.push(&entry)
    }

    fn accepted(&mut self, result: i32, flags: u32) -> io::Result<()> {
        if result >= 0 {
            // SAFETY: the kernel has just made this descriptor for us.
            let socket = unsafe { OwnedFd::from_raw_fd(result as RawFd) };
            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(Connection::default());
                (self.connections.len() - 1) as u32
            });
            self.connections[slot as usize] = Connection { socket: Some(socket), ..Connection::default() };
            self.receive(slot)?;
        }
        if !cqueue::more(flags) {
            self.accept()?;
        }
        Ok(())
    }

    fn receive(&mut self, slot: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        let Some(socket) = &connection.socket else { return Ok(()) };
        connection.receive_armed = true;
        let entry =
            opcode::RecvMulti::new(types::Fd(socket.as_raw_fd()), GROUP).build().user_data(RECEIVE | u64::from(slot));
        self.push(&entry)
    }

    fn received(&mut self, slot: u32, result: i32, flags: u32) -> io::Result<()> {
        if let (Some(id), 1..) = (cqueue::buffer_select(flags), result) {
            let bytes: *const [u8] = self.buffers.take(id, result as usize);
            // SAFETY: this part of the buffer is not written again before `provide(id)` below; `forward` does not
            // touch `buffers`.
            self.arrived(slot, unsafe { &*bytes })?;
            if !cqueue::buffer_more(flags) {
                self.buffers.provide(id);
            }
        }
        if !cqueue::more(flags) {
            self.connections[slot as usize].receive_armed = false;
            // ENOBUFS: more arrived at once than the buffers hold; they are back by now.
            if result > 0 || result == -105 {
                self.receive(slot)?;
            } else {
                self.connections[slot as usize].closed = true;
                self.close(slot);
            }
        }
        Ok(())
    }

    fn arrived(&mut self, slot: u32, bytes: &[u8]) -> io::Result<()> {
        let mut carry = std::mem::take(&mut self.connections[slot as usize].carry);
        if carry.is_empty() {
            let used = self.forward(slot, bytes)?;
            carry.extend_from_slice(&bytes[used..]);
        } else {
            carry.extend_from_slice(bytes);
            let used = self.forward(slot, &carry)?;
            carry.drain(..used);
        }
        self.connections[slot as usize].carry = carry;
        Ok(())
    }

    /// Forwards the whole frames at the start of `bytes` and says how many bytes they were.
    fn forward(&mut self, slot: u32, bytes: &[u8]) -> io::Result<usize> {
        let mut used = 0;
        while self.connections[slot as usize].destination.is_none() {
            let Some(header) = bytes[used..].first_chunk::<HEADER_BYTES>() else { return Ok(used) };
            let header = Header::decode(header).map_err(|error| io::Error::other(error.to_string()))?;
            self.register(slot, &header);
            used += HEADER_BYTES;
        }
        let start = used;
        let mut frames = 0;
        while bytes.len() - used >= HEADER_BYTES {
            let length = u32::from_le_bytes([bytes[used + 4], bytes[used + 5], bytes[used + 6], bytes[used + 7]]);
            let end = used + HEADER_BYTES + length as usize;
            if end > bytes.len() {
                break;
            }
            used = end;
            frames += 1;
        }
        if used == start {
            return Ok(used);
        }
        if let Some(journal) = &mut self.journal {
            journal.bytes.extend_from_slice(&bytes[start..used]);
            journal.senders.push((slot, frames));
        }
        match self.connections[slot as usize].destination {
            Some(Destination::Agent(number)) => {
                if let Some(to) = self.numbers.get(&number).copied() {
                    self.put(to, &bytes[start..used]);
                }
            }
            Some(Destination::Everyone) => {
                for index in 0..self.everyone.len() {
                    self.put(self.everyone[index], &bytes[start..used]);
                }
            }
            Some(Destination::None) | None => {}
        }
        Ok(used)
    }

    fn register(&mut self, slot: u32, header: &Header) {
        let destination = Destination::from_wire(header.ack.counter);
        self.connections[slot as usize].destination = Some(destination);
        self.numbers.insert(header.sequence.counter, slot);
        if destination == Destination::None {
            self.everyone.push(slot);
        }
        self.put(slot, &Header::of(Kind::Welcome).encode());
    }

    fn put(&mut self, slot: u32, bytes: &[u8]) {
        let connection = &mut self.connections[slot as usize];
        if connection.closed {
            return;
        }
        connection.outbox.extend_from_slice(bytes);
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(slot);
        }
    }

    fn flush(&mut self, slot: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        if connection.send_in_flight || connection.closed {
            return Ok(());
        }
        if connection.sent == connection.sending.len() {
            connection.sending.clear();
            connection.sent = 0;
            std::mem::swap(&mut connection.sending, &mut connection.outbox);
        }
        let rest = &connection.sending[connection.sent..];
        let (Some(socket), false) = (&connection.socket, rest.is_empty()) else { return Ok(()) };
        connection.send_in_flight = true;
        // A partial send goes on loudly; a fresh one tries its luck at once (MSG_DONTWAIT, and MSG_WAITALL: all or failure).
        connection.quiet = connection.sent == 0;
        let whole = rustix::net::SendFlags::NOSIGNAL.bits() | rustix::net::RecvFlags::WAITALL.bits();
        let (flags, skip) = if connection.quiet {
            (whole | rustix::net::SendFlags::DONTWAIT.bits(), squeue::Flags::SKIP_SUCCESS)
        } else {
            (whole, squeue::Flags::empty())
        };
        let entry = opcode::Send::new(types::Fd(socket.as_raw_fd()), rest.as_ptr(), rest.len() as u32)
            .flags(flags as i32)
            .build()
            .flags(skip)
            .user_data(SEND | u64::from(slot));
        if connection.quiet {
            self.quiet.push(slot);
        }
        self.push(&entry)
    }

    fn sent(&mut self, slot: u32, result: i32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        connection.send_in_flight = false;
        // EAGAIN of a quiet send: nothing of it went out, and now it waits for room.
        let full = std::mem::replace(&mut connection.quiet, false) && result == -11;
        if connection.closed || (result < 0 && !full) {
            self.close(slot);
            return Ok(());
        }
        if full {
            return self.wait_for_room(slot);
        }
        connection.sent += result as usize;
        if connection.sent < connection.sending.len() || !connection.outbox.is_empty() {
            self.flush(slot)?;
        } else {
            connection.sending.clear();
            connection.sent = 0;
        }
        Ok(())
    }

    /// Sends what did not fit when there is room.
    fn wait_for_room(&mut self, slot: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        let Some(socket) = &connection.socket else { return Ok(()) };
        connection.send_in_flight = true;
        let entry = opcode::Send::new(
            types::Fd(socket.as_raw_fd()),
            connection.sending.as_ptr(),
            connection.sending.len() as u32,
        )
        .flags(rustix::net::SendFlags::NOSIGNAL.bits() as i32)
        .build()
        .user_data(SEND | u64::from(slot));
        self.push(&entry)
    }

    /// Frees the slot once nothing is in flight for it.
    fn close(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        if connection.receive_armed || connection.send_in_flight || connection.socket.is_none() || !connection.closed {
            return;
        }
        *connection = Connection { closed: true, ..Connection::default() };
        self.numbers.retain(|_, place| *place != slot);
        self.everyone.retain(|place| *place != slot);
        self.free.push(slot);
    }
}
