//! One connection as bytes, in TLS or plain: a receive buffer that frames are read from in place, a send buffer that
//! leaves in one write.

use super::secure::Secure;
use super::{Address, Error, Security};
use crate::base::limits::FRAME_BYTES_MAX;
use crate::wire::decode::{self, Decoded};
use crate::wire::{Frame, Header};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io::{self, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use zeroize::Zeroize;

/// Bytes asked for at once.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Queued bytes beyond this are written without being asked.
const FLUSH_BYTES: usize = 64 * 1024;
/// A relay that takes nothing and says nothing for this long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that are taken in while the relay takes nothing: two of the longest frames.
const UNREAD_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// No waiting, no signal.
const QUIETLY: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
/// A relay without TLS closes what begins with it. One that is just ending does so as well, so this is no final word.
const CLOSED_IN_HANDSHAKE: &str = "it was closed during the TLS handshake; what answers there may be no relay, or one that \
     does not speak TLS: start that with --tls-cert and --tls-key, or leave --ca and the like out";
/// A poll is a receive that does not wait.
const NO_WAIT: Duration = Duration::ZERO;

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }
}

pub(super) struct Link {
    stream: Stream,
    secure: Option<Box<Secure>>,
    /// Records that came and records that are to leave; empty without TLS.
    sealed_in: Vec<u8>,
    sealed_out: Vec<u8>,
    /// Law: `start <= end <= received.len()`; `start..end` has not been read as frames yet.
    received: Vec<u8>,
    start: usize,
    end: usize,
    pub(super) queued: Vec<u8>,
    /// What the socket's receive timeout is set to, so that it is set only when it changes.
    wait: Option<Duration>,
    /// When bytes last came.
    pub(super) heard: Instant,
}

impl Link {
    pub(super) fn connect(address: &Address, security: &Security, timeout: Duration) -> Result<Link, Error> {
        let deadline = Instant::now() + timeout;
        let mut sealed_out = Vec::new();
        let secure = Secure::towards(address, security, &mut sealed_out)?.map(Box::new);
        let stream = match address {
            Address::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Address::Tcp { host, port } => dial(host, *port, timeout).map(Stream::Tcp),
        };
        let stream = stream.map_err(|problem| Error::connecting(address, problem))?;
        let sealed_in = if secure.is_some() { vec![0; RECEIVE_BYTES] } else { Vec::new() };
        let mut link = Link {
            stream,
            secure,
            sealed_in,
            sealed_out,
            received: vec![0; RECEIVE_BYTES],
            start: 0,
            end: 0,
            queued: Vec::new(),
            wait: None,
            heard: Instant::now(),
        };
        link.shake_hands(address, deadline)?;
        Ok(link)
    }

    /// Until both sides have what they need to speak in secret.
    fn shake_hands(&mut self, address: &Address, deadline: Instant) -> Result<(), Error> {
        self.flush()?;
        while self.secure.as_ref().is_some_and(|secure| !secure.is_ready()) {
            let wait = deadline.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Err(Error::Timeout(address.clone()));
            }
            self.receive(wait)?;
            self.flush()?;
        }
        Ok(())
    }

    /// The next frame that has arrived, made into something of the caller's; `None` when it is not complete.
    pub(super) fn take<T>(&mut self, read: impl FnOnce(&Header, Frame<'_>) -> T) -> Result<Option<T>, Error> {
        if self.start == self.end {
            return Ok(None);
        }
        match decode::frame(&self.received[self.start..self.end])? {
            Decoded::Whole { header, frame, length } => {
                let value = read(&header, frame);
                self.start += length;
                Ok(Some(value))
            }
            Decoded::Partial { needed } => {
                self.make_room(needed);
                Ok(None)
            }
        }
    }

    /// Waits at most `timeout` for bytes; says whether some came.
    pub(super) fn receive(&mut self, timeout: Duration) -> Result<bool, Error> {
        self.tidy();
        if timeout != NO_WAIT && self.wait != Some(timeout) {
            match &self.stream {
                Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
                Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            }
            .map_err(Error::lost)?;
            self.wait = Some(timeout);
        }
        let room = match &self.secure {
            Some(_) => &mut self.sealed_in[..],
            None => &mut self.received[self.end..],
        };
        let count = if timeout == NO_WAIT {
            rustix::net::recv(self.stream.socket(), room, RecvFlags::DONTWAIT)
                .map(|(count, _)| count)
                .map_err(Into::into)
        } else {
            match &mut self.stream {
                Stream::Unix(stream) => stream.read(room),
                Stream::Tcp(stream) => stream.read(room),
            }
        };
        match count {
            Ok(0) => Err(self.closed()),
            Ok(count) => self.came(count).map(|()| true),
            Err(problem) if is_timeout(&problem) => Ok(false),
            Err(problem) => Err(Error::lost(problem)),
        }
    }

    /// So many bytes have come where they belong.
    fn came(&mut self, count: usize) -> Result<(), Error> {
        self.heard = Instant::now();
        let Some(secure) = &mut self.secure else {
            self.end += count;
            return Ok(());
        };
        let plain = match secure.open(&self.sealed_in[..count], &mut self.sealed_out) {
            Ok(plain) => plain,
            Err(problem) => {
                // The other side is told why, as far as that is still possible.
                let _ = rustix::net::send(self.stream.socket(), &self.sealed_out, QUIETLY);
                self.sealed_out.clear();
                return Err(problem);
            }
        };
        let end = self.end + plain.len();
        if end > self.received.len() {
            self.received.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let needed = self.end + plain.len();
            if needed > self.received.len() {
                self.received.resize(needed.next_multiple_of(RECEIVE_BYTES), 0);
            }
        }
        self.received[self.end..self.end + plain.len()].copy_from_slice(plain);
        self.end += plain.len();
        Ok(())
    }

    fn closed(&self) -> Error {
        match &self.secure {
            Some(secure) if !secure.is_ready() => Error::Lost(CLOSED_IN_HANDSHAKE.into()),
            _ => Error::Lost("the relay closed it".into()),
        }
    }

    /// Writes what is queued when it is much.
    pub(super) fn flush_if_full(&mut self) -> Result<(), Error> {
        if self.queued.len() >= FLUSH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes what is queued.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        let mut bytes = match &mut self.secure {
            Some(secure) => {
                let sealed =
                    if self.queued.is_empty() { Ok(()) } else { secure.seal(&self.queued, &mut self.sealed_out) };
                self.queued.clear();
                sealed?;
                std::mem::take(&mut self.sealed_out)
            }
            None => std::mem::take(&mut self.queued),
        };
        let written = if bytes.is_empty() { Ok(()) } else { self.write(&bytes) };
        // The buffer is kept, whatever happened to what was in it.
        bytes.clear();
        match &self.secure {
            Some(_) => self.sealed_out = bytes,
            None => self.queued = bytes,
        }
        written
    }

    /// Wipes the buffer that a secret was queued in; it was made large enough before.
    pub(super) fn wipe_queue(&mut self) {
        self.queued.zeroize();
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::net::send(self.stream.socket(), rest, QUIETLY) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.await_room()?,
                Err(problem) => return Err(Error::lost(problem.into())),
            }
        }
        Ok(())
    }

    /// Until the relay takes more. A relay that slows us down takes nothing for a while and says so: it is listened to
    /// meanwhile, and what it says is kept for later.
    fn await_room(&mut self) -> Result<(), Error> {
        let listens = self.end - self.start < UNREAD_BYTES_MAX;
        let wanted = if listens { PollFlags::OUT | PollFlags::IN } else { PollFlags::OUT };
        let timeout = Timespec { tv_sec: WRITE_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let socket = self.stream.socket();
        let mut watched = [PollFd::new(&socket, wanted)];
        let count = match poll(&mut watched, Some(&timeout)) {
            Err(Errno::INTR) => return Ok(()),
            other => other.map_err(|problem| Error::lost(problem.into()))?,
        };
        if count == 0 {
            return Err(Error::Lost(format!("the relay took nothing for {} s", WRITE_TIMEOUT.as_secs())));
        }
        if watched[0].revents().contains(PollFlags::IN) {
            self.receive(NO_WAIT)?;
        }
        Ok(())
    }

    /// Room for at least one byte more, and no gap before what is unread if that costs nothing.
    fn tidy(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.end == self.received.len() {
            let unread = self.end - self.start;
            self.received.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, unread);
            if unread == self.received.len() {
                self.received.resize(unread + RECEIVE_BYTES, 0);
            }
        }
    }

    /// Moves what is unread to the front, with room for a frame of `needed` bytes in all.
    fn make_room(&mut self, needed: usize) {
        // The decoder refuses longer frames, so this is a bound, not a hope.
        debug_assert!(needed <= FRAME_BYTES_MAX);
        if self.start + needed > self.received.len() {
            self.received.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if needed > self.received.len() {
                self.received.resize(needed.next_multiple_of(RECEIVE_BYTES), 0);
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The end of a TLS stream is said, so that the other side can tell it from a cut. Nobody waits for that.
        if let Some(secure) = &mut self.secure {
            secure.close(&mut self.sealed_out);
            let _ = rustix::net::send(self.stream.socket(), &self.sealed_out, QUIETLY);
        }
    }
}

/// Connects to the first of the host's addresses that answers.
fn dial(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + timeout;
    let mut problem = io::Error::new(io::ErrorKind::InvalidInput, format!("{host} has no address"));
    for address in (host, port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => problem = error,
        }
    }
    Err(problem)
}

fn is_timeout(problem: &io::Error) -> bool {
    matches!(problem.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
