//! The kernel: sockets, accepts, sends and wake-ups of one shard, on io_uring, or on epoll where that is forbidden.
//! Lives on one shard's thread, synchronous; one system call a turn. Knows bytes and descriptors, never frames.
//! The only room that names io-uring, and one of two where `unsafe` is allowed. The whole argument: every pointer in a
//! submission points into memory the driver owns (receive pool, a send buffer, its vectors) until its completion has
//! been seen, and dropping the driver waits for that.
#![allow(unsafe_code)]

mod epoll;
mod pool;
mod probe;
mod ring;
mod send;
mod setup;
mod slots;
mod waker;

pub use send::SendBuffer;
pub use waker::Waker;

use crate::base::{SessionId, limits};
use epoll::Epoll;
use ring::Ring;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// What a driver is asked to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections at once, closing ones included; [`Driver::attach`] refuses more.
    pub connections_max: usize,
    /// Which kernel interface.
    pub backend: Backend,
    /// How bytes are received on io_uring. Epoll has one way only.
    pub receive: Receive,
    /// Buffers of the receive pool; a power of two. With the next field: the bytes a shard can hold unread.
    pub pool_buffers: u16,
    /// Bytes of one of them. Only `Incremental` uses them whole; the other modes cut the same memory into 16-KiB buffers.
    pub pool_buffer_bytes: usize,
    /// Entries of the submission queue; the completion queue has four times as many. More work than this still goes
    /// through, with more than one system call.
    pub queue_entries: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connections_max: limits::CONNECTIONS_MAX,
            backend: Backend::Auto,
            receive: Receive::Auto,
            pool_buffers: 16,
            pool_buffer_bytes: 256 * 1024,
            queue_entries: 1024,
        }
    }
}

/// The kernel interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// io_uring with a multishot receive where both work, else epoll.
    Auto,
    /// io_uring, or an error that says why not.
    Uring,
    /// epoll.
    Epoll,
}

/// How bytes are received on io_uring, best first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receive {
    /// The first of the others that works.
    Auto,
    /// Multishot into a few large buffers that the kernel fills bit by bit (6.12).
    Incremental,
    /// Multishot, each completion filling as many buffers as there are bytes for (6.10).
    Bundle,
    /// Multishot, a buffer a completion (6.0).
    Provided,
    /// A one-shot poll on the ring, then recv(2) into one scratch buffer (5.11): idle connections hold no memory.
    Single,
}

/// What the driver turned out to be, for `status` and `doctor`.
#[derive(Clone, Debug)]
pub struct Report {
    /// `io_uring` or `epoll`.
    pub backend: &'static str,
    /// `incremental`, `bundle`, `provided`, `single`, or `readiness` on epoll.
    pub receive: &'static str,
    /// Setup flags in force, for people; empty on epoll.
    pub setup: &'static str,
    /// Whether another driver is woken through its ring instead of an eventfd.
    pub msg_ring: bool,
    /// Why it is not the best there is, in one sentence; none when it is.
    pub fallback: Option<String>,
}

/// How a connection receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReceiveMode {
    /// One `Received`, then nothing is in flight: the connection may be detached.
    Once,
    /// Until it ends; the driver renews it by itself.
    Stream,
}

/// A listening socket of a driver.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ListenerId {
    slot: u32,
    generation: u32,
}

/// What has happened. Nothing is ever said about an id after its `close`.
#[derive(Debug)]
pub enum Completion<'a> {
    /// A new connection: `attach` it, or drop it.
    Accepted {
        /// Where it came in.
        listener: ListenerId,
        /// The connection.
        fd: OwnedFd,
    },
    /// A listener is out of descriptors or memory, or broken. The driver has paused it: `pause_accepting(id, false)`
    /// after a while resumes it.
    AcceptFailed {
        /// Which one.
        listener: ListenerId,
        /// Why.
        error: io::Error,
    },
    /// Bytes, in order. They are the driver's again when the call returns.
    Received {
        /// The connection.
        id: SessionId,
        /// At least one byte.
        bytes: &'a [u8],
    },
    /// Nothing more will be received. Said once; the connection can still send, and waits for its `close` (after
    /// `close_after_send` it closes itself).
    Ended {
        /// The connection.
        id: SessionId,
        /// None: the peer closed its side.
        error: Option<io::Error>,
    },
    /// A send is over: all of it is in the socket, or it failed.
    Sent {
        /// The connection.
        id: SessionId,
        /// What was given to `send`, for reuse.
        buffer: SendBuffer,
        /// An error means that the connection is dead; how much of the buffer went out is unknown.
        result: io::Result<()>,
    },
    /// Somebody used a [`Waker`] of this driver. At most once a turn.
    Woken,
}

/// One thread's sockets. Made on the thread that uses it, since the kernel ties a ring to its thread.
pub struct Driver {
    inner: Inner,
    report: Report,
    stays_on_its_thread: PhantomData<*const ()>,
}

enum Inner {
    Ring(Box<Ring>),
    Epoll(Box<Epoll>),
}

/// The same call on whichever interface it is.
macro_rules! on {
    ($driver:expr, $inner:ident => $call:expr) => {
        match &mut $driver.inner {
            Inner::Ring($inner) => $call,
            Inner::Epoll($inner) => $call,
        }
    };
}

impl Driver {
    /// The best driver that `options` and the kernel allow; every candidate is tried on a socket pair before it is taken.
    pub fn new(options: &Options) -> io::Result<Driver> {
        probe::choose(options)
    }

    fn from_parts(inner: Inner, report: Report) -> Driver {
        Driver { inner, report, stays_on_its_thread: PhantomData }
    }

    /// What it is, and why it is not better.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Connections it has, closing ones included.
    pub fn connections(&self) -> usize {
        match &self.inner {
            Inner::Ring(ring) => ring.connections(),
            Inner::Epoll(epoll) => epoll.connections(),
        }
    }

    /// What other threads end this driver's wait with.
    pub fn waker(&self) -> Waker {
        match &self.inner {
            Inner::Ring(ring) => ring.waker(),
            Inner::Epoll(epoll) => epoll.waker(),
        }
    }

    /// Wakes another driver as part of the next turn's system call, after the sends queued so far.
    pub fn wake(&mut self, other: &Waker) {
        on!(self, inner => inner.wake(other));
    }

    /// Accepts connections of `listener` until it is paused or closed. The socket's blocking mode becomes what the driver needs.
    pub fn listen(&mut self, listener: OwnedFd) -> ListenerId {
        on!(self, inner => inner.listen(listener))
    }

    /// Stops or resumes accepting; connections wait in the kernel's backlog meanwhile. One already taken may still be handed out.
    pub fn pause_accepting(&mut self, id: ListenerId, pause: bool) {
        on!(self, inner => inner.pause_accepting(id, pause));
    }

    /// Ends a listener. Nothing more is said of it.
    pub fn close_listener(&mut self, id: ListenerId) {
        on!(self, inner => inner.close_listener(id));
    }

    /// Takes a connected stream socket in; gives it back when there is no room. It receives nothing until [`Driver::receive`].
    pub fn attach(&mut self, fd: OwnedFd) -> Result<SessionId, OwnedFd> {
        on!(self, inner => inner.attach(fd))
    }

    /// Begins to receive. A stream needs this once, `Once` for each `Received`.
    pub fn receive(&mut self, id: SessionId, mode: ReceiveMode) {
        on!(self, inner => inner.receive(id, mode));
    }

    /// Gives the socket back, to be attached elsewhere with no byte lost; none while it receives or sends,
    /// or while anything of it has not been handed out.
    pub fn detach(&mut self, id: SessionId) -> Option<OwnedFd> {
        on!(self, inner => inner.detach(id))
    }

    /// Sends `buffer`, whole, in the next turn's system call and as many more as it takes. A connection sends one buffer
    /// at a time: `Sent` gives it back. A stale id drops it.
    pub fn send(&mut self, id: SessionId, buffer: SendBuffer) {
        assert!(!buffer.is_empty(), "a send of nothing would never complete");
        debug_assert!(buffer.is_ordered(), "frames stand in the order of their offsets, inside the bytes");
        on!(self, inner => inner.send(id, buffer));
    }

    /// The same, but its success does not end the turn's wait: `Sent` comes with whatever ends it. Costs one wake-up less;
    /// for sends whose end nobody waits for.
    pub fn send_quietly(&mut self, id: SessionId, buffer: SendBuffer) {
        assert!(!buffer.is_empty(), "a send of nothing would never complete");
        debug_assert!(buffer.is_ordered(), "frames stand in the order of their offsets, inside the bytes");
        on!(self, inner => inner.send_quietly(id, buffer));
    }

    /// Ends a connection now. What is in flight is cancelled; the descriptor closes when the kernel has let go of it.
    pub fn close(&mut self, id: SessionId) {
        on!(self, inner => inner.close(id));
    }

    /// Ends a connection gently: what is being sent goes out and is reported by `Sent`, then our side is shut; what the
    /// peer still sends is thrown away, so that no reset overtakes our last words. When the peer closes too, `Ended` is
    /// said and the id is stale (if it was said before, the id is stale after `Sent`). A peer that never does is the caller's to `close` at a deadline.
    pub fn close_after_send(&mut self, id: SessionId) {
        on!(self, inner => inner.close_after_send(id));
    }

    /// Back-pressure for the whole driver: while false, no `Received` is handed out. Bytes wait in the pool, at most as
    /// many as it holds, then in the sockets; none is lost or overtaken. The end of a connection whose bytes wait, waits too.
    pub fn set_receiving(&mut self, receiving: bool) {
        on!(self, inner => inner.set_receiving(receiving));
    }

    /// Back-pressure for one connection: while paused, nothing more is asked of its socket. What the kernel has handed over
    /// already is still handed out, in order, and so is an end that came with it; no later one is. Costs a cancellation
    /// on io_uring. Closing a connection ends its pause.
    pub fn pause_receiving(&mut self, id: SessionId, pause: bool) {
        on!(self, inner => inner.pause_receiving(id, pause));
    }

    /// One turn: submits what was queued, waits for something to happen or for `timeout` (none: for ever; zero: not at
    /// all), hands out everything that has happened. May return early with nothing, after a signal.
    pub fn turn(&mut self, timeout: Option<Duration>, mut each: impl FnMut(Completion<'_>)) -> io::Result<()> {
        on!(self, inner => inner.turn(timeout, &mut each))
    }
}
