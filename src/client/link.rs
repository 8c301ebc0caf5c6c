//! One connection as bytes: a receive buffer that frames are read from in place, a send buffer that leaves in one write.

use super::{Address, Error};
use crate::base::limits::FRAME_BYTES_MAX;
use crate::wire::decode::{self, Decoded};
use crate::wire::{Frame, Header};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes asked for at once.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Queued bytes beyond this are written without being asked.
const FLUSH_BYTES: usize = 64 * 1024;
/// A relay that takes nothing for this long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// A poll is a receive that does not wait.
const NO_WAIT: Duration = Duration::ZERO;

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

pub(super) struct Link {
    stream: Stream,
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
    pub(super) fn connect(address: &Address, timeout: Duration) -> Result<Link, Error> {
        let stream = match address {
            Address::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Address::Tcp(address) => TcpStream::connect_timeout(address, timeout.max(Duration::from_millis(1)))
                .and_then(|stream| stream.set_nodelay(true).map(|()| Stream::Tcp(stream))),
        };
        let stream = stream.map_err(|problem| Error::connecting(address, problem))?;
        match &stream {
            Stream::Unix(stream) => stream.set_write_timeout(Some(WRITE_TIMEOUT)),
            Stream::Tcp(stream) => stream.set_write_timeout(Some(WRITE_TIMEOUT)),
        }
        .map_err(Error::lost)?;
        Ok(Link {
            stream,
            received: vec![0; RECEIVE_BYTES],
            start: 0,
            end: 0,
            queued: Vec::new(),
            wait: None,
            heard: Instant::now(),
        })
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
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.end == self.received.len() {
            self.make_room(self.end - self.start + 1);
        }
        let room = &mut self.received[self.end..];
        let count = if timeout == NO_WAIT {
            let socket: BorrowedFd<'_> = match &self.stream {
                Stream::Unix(stream) => stream.as_fd(),
                Stream::Tcp(stream) => stream.as_fd(),
            };
            rustix::net::recv(socket, room, rustix::net::RecvFlags::DONTWAIT)
                .map(|(count, _)| count)
                .map_err(Into::into)
        } else {
            if self.wait != Some(timeout) {
                match &self.stream {
                    Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
                    Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
                }
                .map_err(Error::lost)?;
                self.wait = Some(timeout);
            }
            match &mut self.stream {
                Stream::Unix(stream) => stream.read(room),
                Stream::Tcp(stream) => stream.read(room),
            }
        };
        match count {
            Ok(0) => Err(Error::Lost("the relay closed it".into())),
            Ok(count) => {
                self.end += count;
                self.heard = Instant::now();
                Ok(true)
            }
            Err(problem) if is_timeout(&problem) => Ok(false),
            Err(problem) => Err(Error::lost(problem)),
        }
    }

    /// Writes what is queued when it is much.
    pub(super) fn flush_if_full(&mut self) -> Result<(), Error> {
        if self.queued.len() >= FLUSH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes what is queued.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        if self.queued.is_empty() {
            return Ok(());
        }
        let written = match &mut self.stream {
            Stream::Unix(stream) => stream.write_all(&self.queued),
            Stream::Tcp(stream) => stream.write_all(&self.queued),
        };
        self.queued.clear();
        written.map_err(Error::lost)
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

fn is_timeout(problem: &io::Error) -> bool {
    matches!(problem.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
