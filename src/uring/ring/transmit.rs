//! What a ring sends: one buffer a connection at a time, until it is all in the socket.

use super::{Operation, Ring, pack, shut};
use crate::base::SessionId;
use crate::uring::slots::Sending;
use crate::uring::{Completion, SendBuffer, send};
use io_uring::opcode;
use io_uring::types::Fd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io;

/// Spare vectors kept for later sends.
const SPARE_VECTORS_MAX: usize = 64;
/// No signal when the peer is gone; from 5.19 on the kernel goes on by itself after a partial send.
const SEND_FLAGS: u32 = SendFlags::NOSIGNAL.bits() | RecvFlags::WAITALL.bits();

impl Ring {
    pub(in crate::uring) fn send(&mut self, id: SessionId, buffer: SendBuffer) {
        let Some(slot) = self.slots.find(id) else { return };
        assert!(slot.sending.is_none(), "a connection sends one buffer at a time");
        let total = buffer.len();
        let vectors = if buffer.frames.is_empty() { None } else { Some(self.spare_vectors.pop().unwrap_or_default()) };
        slot.sending = Some(Sending { buffer, sent: 0, total, vectors });
        self.in_flight += 1;
        self.push_send(id);
    }

    pub(super) fn push_send(&mut self, id: SessionId) {
        let slot = self.slots.at(id.slot);
        let fd = Fd(slot.raw_fd());
        let Some(sending) = &mut slot.sending else { return };
        let entry = match &mut sending.vectors {
            None => {
                let rest = &sending.buffer.bytes[sending.sent..];
                let length = rest.len().min(send::SEND_BYTES_MAX) as u32;
                opcode::Send::new(fd, rest.as_ptr(), length).flags(SEND_FLAGS as i32).build()
            }
            Some(vectors) => {
                vectors.describe(&sending.buffer, sending.sent);
                opcode::SendMsg::new(fd, vectors.header.as_ptr().cast()).flags(SEND_FLAGS).build()
            }
        };
        self.push(&entry.user_data(pack(Operation::Send, id.slot, id.generation)));
    }

    pub(super) fn sent(&mut self, id: SessionId, result: i32, each: &mut impl FnMut(Completion<'_>)) {
        let slot = self.slots.at(id.slot);
        let live = slot.generation == id.generation;
        let Some(sending) = &mut slot.sending else { return };
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
