//! The epoll driver: what the io_uring driver does, where io_uring is forbidden. Edge-triggered: a socket is registered
//! once, read until it is empty or has had its share, written until it is full.

use super::send::{SEND_BYTES_MAX, VECTORS_MAX};
use super::waker::Doorbell;
use super::{Completion, ListenerId, Options, ReceiveMode, SendBuffer, Waker};
use crate::base::SessionId;
use crate::base::table::Table;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroize;

/// Bytes read at a time, and at most from one connection in a turn: the others' turn comes first.
const READ_BYTES: usize = 256 * 1024;
/// Connections accepted in a turn by one listener.
const ACCEPTS_MAX: usize = 64;
/// Events taken in a turn; the kernel goes round robin when there are more.
const EVENTS_MAX: usize = 1024;
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

const BELL: u64 = u64::MAX;
/// Set in the generation half of a listener's event data; sessions use 24 bits of place, so their top byte is zero.
const LISTENER: u64 = 1 << 63;

pub(super) struct Epoll {
    epoll: OwnedFd,
    connections: Table<Connection>,
    listeners: Vec<Listener>,
    events: Vec<Event>,
    scratch: Vec<u8>,
    receiving: bool,
    /// Connections that may have something to read and want it.
    readable: Vec<SessionId>,
    /// Connections whose send has not been tried, or can go on.
    writable: Vec<SessionId>,
    doorbell: Arc<Doorbell>,
    wakes: Vec<Arc<Doorbell>>,
}

struct Connection {
    fd: OwnedFd,
    wants: Option<ReceiveMode>,
    /// Law: if the socket may have bytes, this is true, since the edge comes once.
    ready: bool,
    /// The peer has shut its side: read on until the end is read.
    hung_up: bool,
    /// The caller wants nothing of it for a while.
    paused: bool,
    /// It is in `readable`.
    queued: bool,
    ended: bool,
    draining: bool,
    sending: Option<Sending>,
}

struct Sending {
    buffer: SendBuffer,
    sent: usize,
    total: usize,
    /// Nobody waits to hear that it is over.
    quiet: bool,
}

struct Listener {
    generation: u32,
    fd: Option<OwnedFd>,
    paused: bool,
}

impl Epoll {
    pub(super) fn open(options: &Options) -> io::Result<Epoll> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let doorbell = Doorbell::new(None)?;
        epoll::add(&epoll, doorbell.event(), EventData::new_u64(BELL), EventFlags::IN)?;
        assert!(options.connections_max <= super::slots::SLOTS_MAX, "a connection's place has 24 bits");
        Ok(Epoll {
            epoll,
            connections: Table::new(options.connections_max),
            listeners: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            scratch: vec![0; READ_BYTES],
            receiving: true,
            readable: Vec::new(),
            writable: Vec::new(),
            doorbell: Arc::new(doorbell),
            wakes: Vec::new(),
        })
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(self.doorbell.clone())
    }

    pub(super) fn wake(&mut self, other: &Waker) {
        if !self.wakes.iter().any(|target| Arc::ptr_eq(target, &other.0)) {
            self.wakes.push(other.0.clone());
        }
    }

    pub(super) fn listen(&mut self, fd: OwnedFd) -> ListenerId {
        // If this fails, accepting says so.
        let _ = rustix::io::ioctl_fionbio(&fd, true);
        let free = self.listeners.iter().position(|listener| listener.fd.is_none());
        let slot = free.unwrap_or_else(|| {
            self.listeners.push(Listener { generation: 0, fd: None, paused: true });
            self.listeners.len() - 1
        });
        self.listeners[slot].fd = Some(fd);
        self.listeners[slot].paused = true;
        let id = ListenerId { slot: slot as u32, generation: self.listeners[slot].generation };
        self.pause_accepting(id, false);
        id
    }

    pub(super) fn pause_accepting(&mut self, id: ListenerId, pause: bool) {
        let Some(listener) = self.listeners.get_mut(id.slot as usize) else { return };
        let Some(fd) = listener.fd.as_ref().filter(|_| listener.generation == id.generation) else { return };
        if std::mem::replace(&mut listener.paused, pause) == pause {
            return;
        }
        // Level-triggered, so that a turn's share of accepts is enough. Neither call can fail for a listening socket
        // short of memory; then the listener stays silent and the caller may pause and resume it again.
        let data = EventData::new_u64(LISTENER | u64::from(id.slot) << 32 | u64::from(id.generation));
        let changed = match pause {
            true => epoll::delete(&self.epoll, fd),
            false => epoll::add(&self.epoll, fd, data, EventFlags::IN),
        };
        if changed.is_err() {
            listener.paused = true;
        }
    }

    pub(super) fn close_listener(&mut self, id: ListenerId) {
        self.pause_accepting(id, true);
        let Some(listener) = self.listeners.get_mut(id.slot as usize) else { return };
        if listener.generation == id.generation && listener.fd.take().is_some() {
            listener.generation = listener.generation.wrapping_add(1);
        }
    }

    pub(super) fn attach(&mut self, fd: OwnedFd) -> Result<SessionId, OwnedFd> {
        let connection = Connection {
            fd,
            wants: None,
            ready: false,
            hung_up: false,
            paused: false,
            queued: false,
            ended: false,
            draining: false,
            sending: None,
        };
        let id = self.connections.insert(connection).map_err(|connection| connection.fd)?;
        let Some(connection) = self.connections.find_mut(id) else { unreachable!("inserted just now") };
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(u64::from(id.slot) << 32 | u64::from(id.generation));
        let attached = rustix::io::ioctl_fionbio(&connection.fd, true)
            .and_then(|()| epoll::add(&self.epoll, &connection.fd, data, flags));
        match attached {
            Ok(()) => Ok(id),
            Err(_) => Err(self.connections.remove(id).map(|connection| connection.fd).expect("inserted just now")),
        }
    }

    pub(super) fn receive(&mut self, id: SessionId, mode: ReceiveMode) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        if connection.ended || connection.draining {
            return;
        }
        connection.wants = Some(mode);
        connection.queue(id, &mut self.readable);
    }

    pub(super) fn detach(&mut self, id: SessionId) -> Option<OwnedFd> {
        let connection = self.connections.find(id)?;
        if connection.sending.is_some() || connection.wants.is_some() {
            return None;
        }
        let connection = self.connections.remove(id)?;
        let _ = epoll::delete(&self.epoll, &connection.fd);
        Some(connection.fd)
    }

    pub(super) fn send_quietly(&mut self, id: SessionId, buffer: SendBuffer) {
        self.begin_send(id, buffer, true);
    }

    pub(super) fn send(&mut self, id: SessionId, buffer: SendBuffer) {
        self.begin_send(id, buffer, false);
    }

    fn begin_send(&mut self, id: SessionId, buffer: SendBuffer, quiet: bool) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        assert!(connection.sending.is_none(), "a connection sends one buffer at a time");
        let total = buffer.len();
        connection.sending = Some(Sending { buffer, sent: 0, total, quiet });
        self.writable.push(id);
    }

    pub(super) fn close(&mut self, id: SessionId) {
        if let Some(connection) = self.connections.remove(id) {
            // Closing alone would not do if the descriptor had been duplicated.
            let _ = epoll::delete(&self.epoll, &connection.fd);
        }
    }

    pub(super) fn close_after_send(&mut self, id: SessionId) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        connection.draining = true;
        connection.paused = false;
        if connection.sending.is_none() {
            connection.shut();
        }
        if !connection.ended {
            connection.wants = Some(ReceiveMode::Stream);
            connection.queue(id, &mut self.readable);
        }
        self.close_if_drained(id);
    }

    fn close_if_drained(&mut self, id: SessionId) {
        let Some(connection) = self.connections.find(id) else { return };
        if connection.draining && connection.ended && connection.sending.is_none() {
            self.close(id);
        }
    }

    pub(super) fn pause_receiving(&mut self, id: SessionId, pause: bool) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        connection.paused = pause && !connection.draining;
        connection.queue(id, &mut self.readable);
    }

    pub(super) fn set_receiving(&mut self, receiving: bool) {
        self.receiving = receiving;
    }

    pub(super) fn turn(&mut self, timeout: Option<Duration>, each: &mut impl FnMut(Completion<'_>)) -> io::Result<()> {
        let mut timeout = timeout;
        if !self.writable.is_empty() && self.send_all(each) {
            timeout = Some(Duration::ZERO);
        }
        for target in self.wakes.drain(..) {
            if target.ring_first() {
                target.write();
            }
        }
        if self.receiving && !self.readable.is_empty() {
            timeout = Some(Duration::ZERO);
        }
        let timespec = timeout.map(|timeout| {
            let timeout = timeout.min(TIMEOUT_MAX);
            rustix::event::Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) }
        });
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timespec.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let (data, flags) = (event.data.u64(), event.flags);
            if data == BELL {
                let _ = rustix::io::read(self.doorbell.event(), &mut [0u8; 8]);
                self.doorbell.noticed();
                each(Completion::Woken);
            } else if data & LISTENER != 0 {
                let slot = ((data & !LISTENER) >> 32) as u32;
                self.accept(ListenerId { slot, generation: data as u32 }, each);
            } else {
                self.happened(SessionId { slot: (data >> 32) as u32, generation: data as u32 }, flags);
            }
        }
        self.events = events;
        if !self.writable.is_empty() {
            self.send_all(each);
        }
        if self.receiving && !self.readable.is_empty() {
            self.read_all(each);
        }
        Ok(())
    }

    fn happened(&mut self, id: SessionId, flags: EventFlags) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        let over = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if flags.contains(EventFlags::IN) || over {
            connection.ready = true;
            connection.hung_up |= over;
            connection.queue(id, &mut self.readable);
        }
        if (flags.contains(EventFlags::OUT) || over) && connection.sending.is_some() {
            self.writable.push(id);
        }
    }

    fn accept(&mut self, id: ListenerId, each: &mut impl FnMut(Completion<'_>)) {
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = self.listeners.get(id.slot as usize) else { return };
            let Some(fd) = listener.fd.as_ref().filter(|_| listener.generation == id.generation) else { return };
            match rustix::net::accept_with(fd, SocketFlags::CLOEXEC) {
                Ok(fd) => each(Completion::Accepted { listener: id, fd }),
                Err(Errno::AGAIN) => return,
                Err(Errno::CONNABORTED | Errno::PROTO | Errno::INTR) => {}
                Err(error) => {
                    self.pause_accepting(id, true);
                    return each(Completion::AcceptFailed { listener: id, error: error.into() });
                }
            }
        }
    }

    /// Tries what is to be sent. Says whether somebody waits to hear that something has been.
    fn send_all(&mut self, each: &mut impl FnMut(Completion<'_>)) -> bool {
        let mut awaited = false;
        let mut writable = std::mem::take(&mut self.writable);
        for id in writable.drain(..) {
            let Some(connection) = self.connections.find_mut(id) else { continue };
            let Some(result) = connection.try_send() else { continue };
            let Some(Sending { buffer, quiet, .. }) = connection.sending.take() else { continue };
            awaited |= !quiet || result.is_err();
            if connection.draining {
                connection.shut();
            }
            each(Completion::Sent { id, buffer, result });
            self.close_if_drained(id);
        }
        self.writable = writable;
        awaited
    }

    fn read_all(&mut self, each: &mut impl FnMut(Completion<'_>)) {
        let mut readable = std::mem::take(&mut self.readable);
        // What is still readable after its share goes behind those that were not served yet.
        for id in readable.drain(..) {
            let Some(connection) = self.connections.find_mut(id) else { continue };
            connection.queued = false;
            if connection.wants.is_none() || !connection.ready || connection.paused {
                continue;
            }
            match rustix::net::recv(&connection.fd, &mut self.scratch[..], RecvFlags::empty()) {
                Ok((length, _)) if length > 0 => {
                    // A short read has emptied the socket, unless it stopped before the end that is already there.
                    connection.ready = length == self.scratch.len() || connection.hung_up;
                    let once = connection.wants == Some(ReceiveMode::Once);
                    if once {
                        connection.wants = None;
                    }
                    connection.queue(id, &mut self.readable);
                    if !connection.draining {
                        each(Completion::Received { id, bytes: &self.scratch[..length] });
                    }
                    if once {
                        // What comes before WELCOME holds credentials.
                        self.scratch[..length].zeroize();
                    }
                }
                Err(Errno::AGAIN) => connection.ready = false,
                Err(Errno::INTR) => connection.queue(id, &mut self.readable),
                ended => {
                    connection.ended = true;
                    connection.wants = None;
                    each(Completion::Ended { id, error: ended.err().map(io::Error::from) });
                    self.close_if_drained(id);
                }
            }
        }
        if self.readable.is_empty() {
            self.readable = readable;
        }
    }
}

impl Connection {
    fn queue(&mut self, id: SessionId, readable: &mut Vec<SessionId>) {
        if self.ready && self.wants.is_some() && !self.queued && !self.paused {
            self.queued = true;
            readable.push(id);
        }
    }

    /// Sends what the socket takes. None: it is full, its edge will come.
    fn try_send(&mut self) -> Option<io::Result<()>> {
        let sending = self.sending.as_mut()?;
        while sending.sent < sending.total {
            let flags = SendFlags::NOSIGNAL;
            let sent = if sending.buffer.frames.is_empty() {
                let rest = &sending.buffer.bytes[sending.sent..];
                rustix::net::send(&self.fd, &rest[..rest.len().min(SEND_BYTES_MAX)], flags)
            } else {
                let mut pieces = [IoSlice::new(&[]); VECTORS_MAX];
                let mut count = 0;
                for (piece, bytes) in pieces.iter_mut().zip(sending.buffer.pieces(sending.sent)) {
                    *piece = IoSlice::new(bytes);
                    count += 1;
                }
                rustix::net::sendmsg(&self.fd, &pieces[..count], &mut SendAncillaryBuffer::default(), flags)
            };
            match sent {
                Ok(sent) => sending.sent += sent,
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                Err(error) => return Some(Err(error.into())),
            }
        }
        Some(Ok(()))
    }

    /// Says to the peer that nothing more will come. It may be gone already.
    fn shut(&self) {
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write);
    }
}
