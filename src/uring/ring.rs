//! The io_uring driver: what is queued, the one system call, what comes back.

mod accept;
mod receive;
mod transmit;

use super::pool::{Pool, Segment};
use super::setup::Age;
use super::slots::{Listener, Slot, Slots, Vectors};
use super::waker::Doorbell;
use super::{Completion, ListenerId, Options, Receive, ReceiveMode, Waker, setup};
use crate::base::SessionId;
use io_uring::types::{Fd, SubmitArgs, TimeoutFlags, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a submission was, in the top byte of its user_data; then 24 bits of place, 32 bits of generation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Ignore = 0,
    Receive = 1,
    Send = 2,
    Accept = 3,
    /// The read of our own eventfd.
    Event = 4,
    /// A message from another ring.
    Rung = 5,
    /// Our ringing of another driver.
    Ring = 6,
    /// The timeout that ends a wait.
    Alarm = 7,
}

const STREAM_GROUP: u16 = 0;
/// Once receives have buffers of their own. A kernel may post a one-shot completion behind later multishot
/// ones, and an incremental buffer's bytes are found by the order of completions alone.
const ONCE_GROUP: u16 = 1;
const ONCE_BUFFERS: u16 = 64;
const ONCE_BUFFER_BYTES: usize = 4096;
/// Buffers of the modes that use up a whole one for each completion.
const PROVIDED_BUFFER_BYTES: usize = 16 * 1024;
/// Other drivers known by number; a daemon has one per core. More are rung by hand.
const TARGETS_MAX: usize = 1024;
/// Completions copied out of the queue at a time.
const BATCH: usize = 64;
/// How long a dropped driver waits for the kernel to let go of its memory; then it leaks the memory instead.
const DROP_PATIENCE: Duration = Duration::from_secs(5);
/// No wait is longer; the caller just turns again.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

const POLL_IN: u32 = 0x1;
const POLL_RDHUP: u32 = 0x2000;
static ONE: u64 = 1;

pub(super) struct Ring {
    ring: IoUring,
    setup: &'static str,
    receive: Receive,
    no_iowait: bool,
    skip_success: squeue::Flags,
    msg_ring: bool,
    /// Until the kernel says that it does not know it.
    accept_multishot: bool,
    slots: Slots,
    listeners: Vec<Listener>,
    pools: Option<Pools>,
    /// Where `Receive::Single` reads.
    scratch: Vec<u8>,
    receiving: bool,
    deferred: VecDeque<Deferred>,
    /// Receives that wait for buffers, or for `set_receiving(true)`.
    starved: Vec<SessionId>,
    /// Submissions the kernel would not take yet; nearly always empty.
    backlog: VecDeque<squeue::Entry>,
    doorbell: Arc<Doorbell>,
    /// Eight bytes that the kernel reads our eventfd into.
    event_word: Vec<u8>,
    targets: Vec<Arc<Doorbell>>,
    wakes: Vec<u32>,
    woken: bool,
    #[expect(
        clippy::vec_box,
        reason = "a place holds the box: few connections send frames, and a pointer is what they cost"
    )]
    spare_vectors: Vec<Box<Vectors>>,
    /// When the timeout in flight ends (CLOCK_MONOTONIC), if there is one. It stays over turns: a wait whose own deadline
    /// is later costs nothing, and is ended a little early once in a while.
    alarm: Option<Duration>,
    /// What the kernel reads a new alarm's time from while it takes the submission.
    alarm_time: Box<Timespec>,
    /// Sends that post no completion when they succeed; settled after each system call.
    quiet: Vec<SessionId>,
    /// Whether the last system call took every submission: what is pushed while its completions are read comes later.
    submitted: bool,
    /// Operations that hold memory or a descriptor of ours.
    in_flight: usize,
    dropping: bool,
}

struct Pools {
    stream: Pool,
    once: Pool,
}

/// A receive's outcome that waits for `set_receiving(true)`.
struct Deferred {
    id: SessionId,
    what: Outcome,
}

enum Outcome {
    Bytes { mode: ReceiveMode, segment: Segment },
    Ended(Option<io::Error>),
}

impl Ring {
    /// A ring that receives in one given way; whether that works is seen when it is tried.
    pub(super) fn open(options: &Options, receive: Receive) -> io::Result<Ring> {
        // Where `Single` is needed nothing newer works either; so forcing it elsewhere shows what an old kernel gets.
        let age = if receive == Receive::Single { Age::Old } else { Age::Any };
        let (ring, setup) = setup::open(options.queue_entries, age)?;
        if let Some(missing) = setup::missing(&ring) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, missing));
        }
        let pool_bytes = usize::from(options.pool_buffers) * options.pool_buffer_bytes;
        let (count, bytes) = match receive {
            Receive::Incremental => (options.pool_buffers, options.pool_buffer_bytes),
            _ => {
                let count = (pool_bytes / PROVIDED_BUFFER_BYTES).clamp(1, 1 << 15);
                ((1u32 << count.ilog2()) as u16, PROVIDED_BUFFER_BYTES)
            }
        };
        let pools = match receive {
            Receive::Single => None,
            _ => Some(Pools {
                stream: Pool::new(&ring, STREAM_GROUP, count, bytes, receive)?,
                once: Pool::new(&ring, ONCE_GROUP, ONCE_BUFFERS, ONCE_BUFFER_BYTES, Receive::Provided)?.wiping(),
            }),
        };
        // SAFETY: the ring is open while it is borrowed here.
        let ring_fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        let doorbell = Doorbell::new(Some(rustix::io::fcntl_dupfd_cloexec(ring_fd, 0)?))?;
        let parameters = ring.params();
        let skip_success = if parameters.is_feature_skip_cqe_on_success() {
            squeue::Flags::SKIP_SUCCESS
        } else {
            squeue::Flags::empty()
        };
        let mut opened = Ring {
            setup,
            receive,
            no_iowait: parameters.is_feature_no_iowait(),
            skip_success,
            msg_ring: false,
            accept_multishot: age == Age::Any,
            slots: Slots::new(options.connections_max),
            listeners: Vec::new(),
            scratch: if pools.is_none() { vec![0; options.pool_buffer_bytes] } else { Vec::new() },
            pools,
            receiving: true,
            deferred: VecDeque::new(),
            starved: Vec::new(),
            backlog: VecDeque::new(),
            doorbell: Arc::new(doorbell),
            event_word: vec![0; 8],
            targets: Vec::new(),
            wakes: Vec::new(),
            woken: false,
            spare_vectors: Vec::new(),
            alarm: None,
            alarm_time: Box::new(Timespec::new()),
            quiet: Vec::new(),
            submitted: false,
            in_flight: 0,
            dropping: false,
            ring,
        };
        opened.msg_ring = opened.try_msg_ring(age);
        opened.arm_event();
        Ok(opened)
    }

    /// Posts a message to a second ring of the same setup and looks whether it has arrived.
    fn try_msg_ring(&mut self, age: Age) -> bool {
        let Ok((mut other, _)) = setup::open(8, age) else { return false };
        let token = pack(Operation::Rung, 0, 0);
        let entry = opcode::MsgRingData::new(Fd(other.as_raw_fd()), 0, token, None).build();
        self.push(&entry.user_data(pack(Operation::Ignore, 0, 0)));
        let sent = self.enter(Some(Duration::from_millis(100)));
        let answer = self.ring.completion().next();
        let sent = sent.is_ok() && answer.is_some_and(|answer| answer.result() >= 0);
        let arrived = enter(&mut other, true, false, Some(Duration::from_millis(100)));
        sent && arrived.is_ok() && other.completion().any(|message| message.user_data() == token)
    }

    pub(super) fn setup(&self) -> &'static str {
        self.setup
    }

    pub(super) fn msg_ring(&self) -> bool {
        self.msg_ring
    }

    pub(super) fn connections(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(self.doorbell.clone())
    }

    pub(super) fn wake(&mut self, other: &Waker) {
        let known = self.targets.iter().position(|target| Arc::ptr_eq(target, &other.0));
        let target = match known {
            Some(target) => target,
            None if self.targets.len() == TARGETS_MAX => return other.wake(),
            None => {
                self.targets.push(other.0.clone());
                self.targets.len() - 1
            }
        };
        if !self.wakes.contains(&(target as u32)) {
            self.wakes.push(target as u32);
        }
    }

    pub(super) fn attach(&mut self, fd: OwnedFd) -> Result<SessionId, OwnedFd> {
        if self.slots.is_full() {
            return Err(fd);
        }
        // The kernel would answer EAGAIN instead of waiting if it were non-blocking. If this fails, receiving says so.
        let _ = rustix::io::ioctl_fionbio(&fd, false);
        Ok(self.slots.insert(fd))
    }

    pub(super) fn detach(&mut self, id: SessionId) -> Option<OwnedFd> {
        let slot = self.slots.find(id)?;
        if !slot.is_idle() || slot.wants.is_some() || slot.deferred > 0 {
            return None;
        }
        slot.generation = slot.generation.wrapping_add(1);
        self.slots.release(id.slot)
    }

    pub(super) fn close(&mut self, id: SessionId) {
        let Some(slot) = self.slots.find(id) else { return };
        slot.generation = slot.generation.wrapping_add(1);
        slot.closing = true;
        let (receiving, sending) = (slot.armed.is_some(), slot.sending.is_some());
        if receiving {
            self.cancel(pack(Operation::Receive, id.slot, id.generation));
        }
        if sending {
            self.cancel(pack(Operation::Send, id.slot, id.generation));
        }
        self.release_if_done(id.slot);
    }

    pub(super) fn close_after_send(&mut self, id: SessionId) {
        let Some(slot) = self.slots.find(id) else { return };
        slot.draining = true;
        slot.paused = false;
        if slot.sending.is_none() {
            shut(slot);
        }
        if slot.ended {
            return self.close_if_drained(id);
        }
        slot.wants = Some(ReceiveMode::Stream);
        self.arm_receive(id);
    }

    /// After `close_after_send`: both sides have ended and everything has been said.
    fn close_if_drained(&mut self, id: SessionId) {
        let Some(slot) = self.slots.find(id) else { return };
        if slot.draining && slot.ended && slot.deferred == 0 && slot.sending.is_none() {
            self.close(id);
        }
    }

    pub(super) fn set_receiving(&mut self, receiving: bool) {
        self.receiving = receiving;
    }

    fn cancel(&mut self, token: u64) {
        let entry = opcode::AsyncCancel::new(token).build().flags(self.skip_success);
        self.push(&entry.user_data(pack(Operation::Ignore, 0, 0)));
    }

    fn arm_event(&mut self) {
        let length = self.event_word.len() as u32;
        let fd = Fd(self.doorbell.event().as_raw_fd());
        let entry = opcode::Read::new(fd, self.event_word.as_mut_ptr(), length).build();
        self.in_flight += 1;
        self.push(&entry.user_data(pack(Operation::Event, 0, 0)));
    }

    fn push_wakes(&mut self) {
        let mut wakes = std::mem::take(&mut self.wakes);
        for index in wakes.drain(..) {
            let target = &self.targets[index as usize];
            if !target.ring_first() {
                continue;
            }
            let ourselves = Arc::ptr_eq(target, &self.doorbell);
            let entry = match target.ring() {
                Some(ring) if self.msg_ring && !ourselves => {
                    opcode::MsgRingData::new(Fd(ring), 0, pack(Operation::Rung, 0, 0), None).build()
                }
                _ => opcode::Write::new(Fd(target.event().as_raw_fd()), (&raw const ONE).cast(), 8).build(),
            };
            let entry = entry.flags(self.skip_success).user_data(pack(Operation::Ring, index, 0));
            self.push(&entry);
        }
        self.wakes = wakes;
    }

    /// Queues a submission. A full queue is submitted; what the kernel does not take then waits in the backlog.
    fn push(&mut self, entry: &squeue::Entry) {
        if !self.backlog.is_empty() || !self.try_push(entry) {
            self.backlog.push_back(entry.clone());
            self.push_backlog();
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        let mut queue = self.ring.submission();
        // SAFETY: what `entry` points to (event_word, alarm_time, a slot's send buffer and vectors, ONE) lives behind a Vec or is
        // static, and stays untouched until its completion is seen; Drop waits for that, or leaks it.
        unsafe { queue.push(entry) }.is_ok()
    }

    fn push_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                // Errors (too little memory, completions to be read first) are the next turn's.
                if self.ring.submit().is_err() || self.ring.submission().is_full() {
                    return;
                }
            }
        }
    }

    /// The one system call.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let wait = timeout != Some(Duration::ZERO);
        let entered = enter(&mut self.ring, wait, self.no_iowait, timeout);
        self.submitted = self.ring.submission().is_empty();
        entered
    }

    pub(super) fn turn(&mut self, timeout: Option<Duration>, each: &mut impl FnMut(Completion<'_>)) -> io::Result<()> {
        let mut timeout = timeout;
        self.woken = false;
        if self.receiving && !self.deferred.is_empty() {
            self.hand_out_deferred(each);
            timeout = Some(Duration::ZERO);
        }
        if !self.starved.is_empty() {
            self.feed_starved();
        }
        if !self.wakes.is_empty() {
            self.push_wakes();
        }
        if !self.backlog.is_empty() {
            self.push_backlog();
            timeout = Some(Duration::ZERO);
        }
        let timeout = match timeout {
            Some(span) if span > Duration::ZERO => {
                self.set_alarm(span);
                None
            }
            _ => timeout,
        };
        self.enter(timeout)?;
        self.reap(each);
        self.settle_quiet(each);
        Ok(())
    }

    /// Makes sure that a timeout ends the next wait after `span` at the latest.
    fn set_alarm(&mut self, span: Duration) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32);
        let deadline = now + span.min(TIMEOUT_MAX);
        if self.alarm.is_some_and(|alarm| alarm <= deadline) {
            return;
        }
        *self.alarm_time = Timespec::from(deadline);
        let token = pack(Operation::Alarm, 0, 0);
        let entry = if self.alarm.is_some() {
            // It may fire before it is moved; then it has ended the wait already.
            let moved = opcode::TimeoutUpdate::new(token, &raw const *self.alarm_time).flags(TimeoutFlags::ABS).build();
            moved.flags(self.skip_success).user_data(pack(Operation::Ignore, 0, 0))
        } else {
            opcode::Timeout::new(&raw const *self.alarm_time).flags(TimeoutFlags::ABS).build().user_data(token)
        };
        self.alarm = Some(deadline);
        self.push(&entry);
    }

    /// Hands out what is in the completion queue now.
    fn reap(&mut self, each: &mut impl FnMut(Completion<'_>)) {
        let mut arrived = self.ring.completion().len();
        while arrived > 0 {
            let mut batch = [const { MaybeUninit::<cqueue::Entry>::uninit() }; BATCH];
            let batch = self.ring.completion().fill(&mut batch);
            for completion in batch.iter() {
                self.complete(completion, each);
            }
            arrived = arrived.saturating_sub(batch.len().max(1));
        }
        if let Some(pools) = &mut self.pools {
            pools.stream.publish();
            pools.once.publish();
        }
    }

    fn complete(&mut self, completion: &cqueue::Entry, each: &mut impl FnMut(Completion<'_>)) {
        let (result, flags) = (completion.result(), completion.flags());
        let (operation, slot, generation) = unpack(completion.user_data());
        let id = SessionId { slot, generation };
        match operation {
            Operation::Receive if self.pools.is_some() => self.received(id, result, flags, each),
            Operation::Receive => self.readable(id, result, each),
            Operation::Send => self.sent(id, result, each),
            Operation::Accept => self.accepted(ListenerId { slot, generation }, result, flags, each),
            Operation::Event => {
                self.in_flight -= 1;
                if !self.dropping {
                    self.arm_event();
                    self.rung(each);
                }
            }
            Operation::Rung => self.rung(each),
            Operation::Ring if result < 0 => self.targets[slot as usize].write(),
            Operation::Alarm => self.alarm = None,
            Operation::Ring | Operation::Ignore => {}
        }
    }

    fn rung(&mut self, each: &mut impl FnMut(Completion<'_>)) {
        self.doorbell.noticed();
        if !std::mem::replace(&mut self.woken, true) {
            each(Completion::Woken);
        }
    }

    /// Frees a closing connection's place, and its descriptor, once nothing is in flight.
    fn release_if_done(&mut self, place: u32) {
        let slot = self.slots.at(place);
        if slot.closing && slot.is_idle() {
            self.slots.release(place);
        }
    }
}

/// Says to the peer that nothing more will come. It may be gone already.
fn shut(slot: &Slot) {
    if let Some(fd) = &slot.fd {
        let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Write);
    }
}

fn pack(operation: Operation, slot: u32, generation: u32) -> u64 {
    (operation as u64) << 56 | u64::from(slot) << 32 | u64::from(generation)
}

fn unpack(token: u64) -> (Operation, u32, u32) {
    let operation = match (token >> 56) as u8 {
        1 => Operation::Receive,
        2 => Operation::Send,
        3 => Operation::Accept,
        4 => Operation::Event,
        5 => Operation::Rung,
        6 => Operation::Ring,
        7 => Operation::Alarm,
        _ => Operation::Ignore,
    };
    (operation, (token >> 32) as u32 & 0xff_ffff, token as u32)
}

fn enter(ring: &mut IoUring, wait: bool, no_iowait: bool, timeout: Option<Duration>) -> io::Result<()> {
    let queued = ring.submission().len() as u32;
    let timespec = Timespec::from(timeout.unwrap_or(TIMEOUT_MAX).min(TIMEOUT_MAX));
    let mut arguments = SubmitArgs::new();
    if wait && timeout.is_some() {
        arguments = arguments.timespec(&timespec);
    }
    let mut flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
    if no_iowait {
        flags |= EnterFlags::NO_IOWAIT;
    }
    // SAFETY: the arguments are what EXT_ARG says they are, and outlive the call.
    let entered = unsafe { ring.submitter().enter(queued, u32::from(wait), flags.bits(), Some(&arguments)) };
    match entered {
        Ok(_) => Ok(()),
        // Time is up; a signal; completions must be read first; no memory just now. The caller reads and turns again.
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.dropping = true;
        self.push_wakes();
        for place in 0..self.slots.all_len() as u32 {
            let generation = self.slots.at(place).generation;
            self.close(SessionId { slot: place, generation });
        }
        for place in 0..self.listeners.len() as u32 {
            let id = self.listeners[place as usize].id(place);
            self.close_listener(id);
        }
        self.cancel(pack(Operation::Event, 0, 0));
        let patience = Instant::now() + DROP_PATIENCE;
        while self.in_flight > 0 && Instant::now() < patience {
            self.push_backlog();
            if self.enter(Some(Duration::from_millis(20))).is_err() {
                break;
            }
            self.reap(&mut |_| {});
            self.settle_quiet(&mut |_| {});
        }
        if self.in_flight > 0 {
            // The kernel still holds pointers to this; better to lose the memory than to let it be written to.
            std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(0)));
            std::mem::forget(self.pools.take());
            std::mem::forget(std::mem::take(&mut self.event_word));
        }
        if let Some(pools) = &self.pools {
            pools.stream.unregister(&self.ring);
            pools.once.unregister(&self.ring);
        }
    }
}
