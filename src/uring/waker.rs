//! How a driver's wait is ended from elsewhere: an eventfd that everybody can write, a ring that drivers can post to.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Ends the wait of the driver it came from; the driver then says `Woken`. May be cloned and used on any thread.
#[derive(Clone, Debug)]
pub struct Waker(pub(super) Arc<Doorbell>);

/// One driver's bell.
#[derive(Debug)]
pub(super) struct Doorbell {
    /// Law: true from the moment somebody rings until the driver has noticed. Who finds it true need not ring: the
    /// driver will clear it, say `Woken`, and only then look at what was left for it.
    rung: AtomicBool,
    event: OwnedFd,
    /// A second descriptor of the driver's ring, where it has one. Being our own, it can outlive the driver without
    /// its number becoming somebody else's.
    ring: Option<OwnedFd>,
}

impl Waker {
    /// A bell for a thread without a driver, which sleeps in [`Waker::wait`].
    pub fn lone() -> io::Result<Waker> {
        Ok(Waker(Arc::new(Doorbell::new(None)?)))
    }

    /// Sleeps until somebody rings, or for `timeout`. For the one thread that a lone bell belongs to.
    pub fn wait(&self, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut event = [PollFd::new(&self.0.event, PollFlags::IN)];
        // An interruption looks like a ring: whoever sleeps here looks at its queues and sleeps again.
        if let Ok(1) = poll(&mut event, timeout.as_ref()) {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.0.event, &mut count);
        }
        self.0.noticed();
    }

    /// Ends the driver's wait, with one system call unless it has been rung already.
    pub fn wake(&self) {
        if self.0.ring_first() {
            self.0.write();
        }
    }
}

impl Doorbell {
    pub(super) fn new(ring: Option<OwnedFd>) -> io::Result<Doorbell> {
        // A ring would be told EAGAIN at once instead of waiting for a non-blocking descriptor.
        let flags = if ring.is_some() { EventfdFlags::CLOEXEC } else { EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK };
        Ok(Doorbell { rung: AtomicBool::new(false), event: eventfd(0, flags)?, ring })
    }

    /// Whether the caller is the one who has to ring.
    pub(super) fn ring_first(&self) -> bool {
        !self.rung.swap(true, Ordering::SeqCst)
    }

    /// The driver has noticed; what comes from now on needs a new ring.
    pub(super) fn noticed(&self) {
        self.rung.swap(false, Ordering::SeqCst);
    }

    /// Rings by hand. It cannot fail in a way that matters: a full counter is a rung bell.
    pub(super) fn write(&self) {
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    pub(super) fn ring(&self) -> Option<RawFd> {
        self.ring.as_ref().map(AsRawFd::as_raw_fd)
    }
}
