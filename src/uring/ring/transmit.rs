//! What a ring sends: one buffer a connection at a time, until it is all in the socket.

use super::{Operation, Ring, pack, shut};
use crate::base::SessionId;
use crate::uring::slots::Sending;
use crate::uring::{Completion, SendBuffer, send};
use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io;

/// Spare vectors kept for later sends.
const SPARE_VECTORS_MAX: usize = 64;
/// No signal when the peer is gone; from 5.19 on the kernel goes on by itself after a partial send.
const SEND_FLAGS: u32 = SendFlags::NOSIGNAL.bits() | RecvFlags::WAITALL.bits();

/// A quiet send does not wait for room: it is over when the system call that submitted it returns.
const QUIET_FLAGS: u32 = SEND_FLAGS | SendFlags::DONTWAIT.bits();

impl Ring {
    /// A send whose success posts no completion, so that it does not end the wait of the call that submits it. With
    /// MSG_DONTWAIT the kernel carries it out, or fails it, while it takes the submission; with MSG_WAITALL anything
    /// less than the whole counts as a failure and does post one.
    pub(in crate::uring) fn send_quietly(&mut self, id: SessionId, buffer: SendBuffer) {
        let quiet = !self.skip_success.is_empty();
        self.begin_send(id, buffer, quiet);
    }

    pub(in crate::uring) fn send(&mut self, id: SessionId, buffer: SendBuffer) {
        self.begin_send(id, buffer, false);
    }

    fn begin_send(&mut self, id: SessionId, buffer: SendBuffer, quiet: bool) {
        let Some(slot) = self.slots.find(id) else { return };
        assert!(slot.sending.is_none(), "a connection sends one buffer at a time");
        let total = buffer.len();
        let vectors = if buffer.frames.is_empty() { None } else { Some(self.spare_vectors.pop().unwrap_or_default()) };
        slot.sending = Some(Sending { buffer, sent: 0, total, vectors, quiet });
        self.in_flight += 1;
        if quiet {
            self.quiet.push(id);
        }
        self.push_send(id);
    }

    pub(super) fn push_send(&mut self, id: SessionId) {
        let slot = self.slots.at(id.slot);
        let fd = Fd(slot.raw_fd());
        let Some(sending) = &mut slot.sending else { return };
        let flags = if sending.quiet { QUIET_FLAGS } else { SEND_FLAGS };
        let entry = match &mut sending.vectors {
            None => {
                let rest = &sending.buffer.bytes[sending.sent..];
                let length = rest.len().min(send::SEND_BYTES_MAX) as u32;
                opcode::Send::new(fd, rest.as_ptr(), length).flags(flags as i32).build()
            }
            Some(vectors) => {
                vectors.describe(&sending.buffer, sending.sent);
                opcode::SendMsg::new(fd, vectors.header.as_ptr().cast()).flags(flags).build()
            }
        };
        let skip = if sending.quiet { self.skip_success } else { squeue::Flags::empty() };
        self.push(&entry.flags(skip).user_data(pack(Operation::Send, id.slot, id.generation)));
    }

    /// After a system call has returned and its completions have been read: quiet sends that none of them spoke of have
    /// gone out. Not yet, when submissions or completions are still held up somewhere.
    pub(super) fn settle_quiet(&mut self, each: &mut impl FnMut(Completion<'_>)) {
        // Submissions that were pushed since the call, the bell's next read for one, say nothing of those before it: a send
        // that was taken for unfinished here would hold back what is to follow it for the whole of the next wait.
        if self.quiet.is_empty() || !self.backlog.is_empty() || !self.submitted || self.ring.submission().cq_overflow()
        {
            return;
        }
        let mut quiet = std::mem::take(&mut self.quiet);
        for id in quiet.drain(..) {
            let sending = self.slots.at(id.slot).sending.as_ref();
            if let Some(total) = sending.filter(|sending| sending.quiet).map(|sending| sending.total - sending.sent) {
                self.sent(id, i32::try_from(total).unwrap_or(i32::MAX), each);
            }
        }
        self.quiet = quiet;
    }

    pub(super) fn sent(&mut self, id: SessionId, result: i32, each: &mut impl FnMut(Completion<'_>)) {
        let slot = self.slots.at(id.slot);
        let live = slot.generation == id.generation;
        let Some(sending) = &mut slot.sending else { return };
        // A completion that does come says that something is left to do: from now on it waits for room.
        sending.quiet = false;
        sending.sent += usize::try_from(result).unwrap_or(0);
        let again = result > 0 || [Errno::INTR.raw_os_error(), Errno::AGAIN.raw_os_error()].contains(&-result);
        if live && sending.sent < sending.total && again {
            return self.push_send(id);
        }
        let Some(sending) = slot.sending.take() else { return };
        self.in_flight -= 1;
        if let Some(vectors) = sending.vectors
            && self.spare_vectors.len() < SPARE_VECTORS_MAX
        {
            self.spare_vectors.push(vectors);
        }
        if !live {
            return self.release_if_done(id.slot);
        }
        let result = match result {
            _ if sending.sent == sending.total => Ok(()),
            0 => Err(io::ErrorKind::WriteZero.into()),
            error => Err(io::Error::from_raw_os_error(-error)),
        };
        if slot.draining {
            shut(slot);
        }
        each(Completion::Sent { id, buffer: sending.buffer, result });
        self.close_if_drained(id);
    }
}
