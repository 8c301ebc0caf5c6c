//! Listening sockets of a ring.

use super::{Operation, Ring, pack};
use crate::uring::slots::Listener;
use crate::uring::{Completion, ListenerId};
use io_uring::opcode;
use io_uring::{cqueue, types::Fd};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

impl Ring {
    pub(in crate::uring) fn listen(&mut self, fd: OwnedFd) -> ListenerId {
        // The kernel would answer EAGAIN instead of waiting if it were non-blocking. If this fails, accepting says so.
        let _ = rustix::io::ioctl_fionbio(&fd, false);
        let free = self.listeners.iter().position(|listener| listener.fd.is_none());
        let slot = free.unwrap_or_else(|| {
            self.listeners.push(Listener::default());
            self.listeners.len() - 1
        });
        let generation = self.listeners[slot].generation;
        self.listeners[slot] = Listener { generation, fd: Some(fd), ..Listener::default() };
        self.arm_accept(slot as u32);
        self.listeners[slot].id(slot as u32)
    }

    pub(in crate::uring) fn pause_accepting(&mut self, id: ListenerId, pause: bool) {
        let Some(listener) = self.find_listener(id) else { return };
        listener.paused = pause;
        if pause {
            self.cancel_accept(id);
        } else {
            self.arm_accept(id.slot);
        }
    }

    pub(in crate::uring) fn close_listener(&mut self, id: ListenerId) {
        let Some(listener) = self.find_listener(id) else { return };
        listener.closing = true;
        if listener.armed {
            self.cancel_accept(id);
        } else {
            listener.fd = None;
        }
        let listener = &mut self.listeners[id.slot as usize];
        listener.generation = listener.generation.wrapping_add(1);
    }

    pub(super) fn find_listener(&mut self, id: ListenerId) -> Option<&mut Listener> {
        let listener = self.listeners.get_mut(id.slot as usize)?;
        (listener.generation == id.generation && listener.fd.is_some() && !listener.closing).then_some(listener)
    }

    pub(super) fn cancel_accept(&mut self, id: ListenerId) {
        let listener = &mut self.listeners[id.slot as usize];
        if listener.armed && !listener.cancelling {
            listener.cancelling = true;
            self.cancel(pack(Operation::Accept, id.slot, id.generation));
        }
    }

    pub(super) fn arm_accept(&mut self, slot: u32) {
        let listener = &mut self.listeners[slot as usize];
        let Some(fd) = &listener.fd else { return };
        if listener.armed || listener.paused || listener.closing {
            return;
        }
        listener.armed = true;
        listener.multishot = self.accept_multishot;
        let fd = Fd(fd.as_raw_fd());
        let entry = if self.accept_multishot {
            opcode::AcceptMulti::new(fd).flags(SocketFlags::CLOEXEC.bits() as i32).build()
        } else {
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(SocketFlags::CLOEXEC.bits() as i32)
                .build()
        };
        let token = pack(Operation::Accept, slot, listener.generation);
        self.in_flight += 1;
        self.push(&entry.user_data(token));
    }

    pub(super) fn accepted(&mut self, id: ListenerId, result: i32, flags: u32, each: &mut impl FnMut(Completion<'_>)) {
        let listener = &mut self.listeners[id.slot as usize];
        let live = listener.generation == id.generation;
        if result >= 0 {
            // SAFETY: the kernel has just made this descriptor for us, and tells nobody else.
            let fd = unsafe { OwnedFd::from_raw_fd(result as RawFd) };
            if live {
                each(Completion::Accepted { listener: id, fd });
            }
        }
        if cqueue::more(flags) {
            return;
        }
        listener.armed = false;
        listener.cancelling = false;
        self.in_flight -= 1;
        if !live {
            listener.fd = None;
            listener.closing = false;
            return;
        }
        if result < 0 {
            match Errno::from_raw_os_error(-result) {
                Errno::INVAL if listener.multishot => self.accept_multishot = false,
                // The connection died before it was accepted, or the accept was cancelled to pause.
                Errno::CONNABORTED | Errno::PROTO | Errno::INTR | Errno::AGAIN | Errno::CANCELED => {}
                error => {
                    listener.paused = true;
                    each(Completion::AcceptFailed { listener: id, error: error.into() });
                }
            }
        }
        self.arm_accept(id.slot);
    }
}
