//! What a ring receives: armed, handed out, put aside while the caller does not receive, renewed.

use super::{Deferred, Operation, Outcome, POLL_IN, POLL_RDHUP, Ring, pack};
use crate::base::SessionId;
use crate::uring::{Completion, Receive, ReceiveMode};
use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::io;
use zeroize::Zeroize;

/// Completions of one connection that wait for `set_receiving(true)` before its receive is cancelled: small ones would
/// otherwise fill the queue long before they fill the pool.
const DEFERRED_PER_CONNECTION_MAX: u32 = 16;

impl Ring {
    pub(in crate::uring) fn receive(&mut self, id: SessionId, mode: ReceiveMode) {
        let Some(slot) = self.slots.find(id) else { return };
        if slot.ended || slot.draining {
            return;
        }
        slot.wants = Some(mode);
        self.arm_receive(id);
    }

    pub(in crate::uring) fn pause_receiving(&mut self, id: SessionId, pause: bool) {
        let Some(slot) = self.slots.find(id) else { return };
        slot.paused = pause && !slot.draining;
        if !slot.paused {
            // If its cancellation is under way, the last completion of that arms it.
            return self.arm_receive(id);
        }
        if slot.armed.is_some() && !slot.throttled {
            slot.throttled = true;
            self.cancel(pack(Operation::Receive, id.slot, id.generation));
        }
    }

    pub(super) fn arm_receive(&mut self, id: SessionId) {
        let Some(slot) = self.slots.find(id) else { return };
        let Some(mode) = slot.wants else { return };
        if slot.armed.is_some() || slot.starved || slot.ended || slot.paused {
            return;
        }
        slot.armed = Some(mode);
        let fd = Fd(slot.raw_fd());
        let entry = match (&self.pools, mode, self.receive) {
            (None, ..) => opcode::PollAdd::new(fd, POLL_IN | POLL_RDHUP).build(),
            (Some(pools), ReceiveMode::Once, _) => {
                opcode::Recv::new(fd, std::ptr::null_mut(), pools.once.buffer_bytes())
                    .buf_group(pools.once.group())
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT)
            }
            (Some(pools), ReceiveMode::Stream, Receive::Bundle) => {
                opcode::RecvMultiBundle::new(fd, pools.stream.group()).build()
            }
            (Some(pools), ReceiveMode::Stream, _) => opcode::RecvMulti::new(fd, pools.stream.group()).build(),
        };
        self.in_flight += 1;
        self.push(&entry.user_data(pack(Operation::Receive, id.slot, id.generation)));
    }

    /// Arms it later, when there are buffers and the caller receives.
    pub(super) fn starve(&mut self, id: SessionId) {
        let Some(slot) = self.slots.find(id) else { return };
        if !slot.starved && slot.wants.is_some() && !slot.ended {
            slot.starved = true;
            self.starved.push(id);
        }
    }

    pub(super) fn feed_starved(&mut self) {
        let fed = self.pools.as_ref().is_none_or(|pools| pools.stream.has_buffers() && pools.once.has_buffers());
        if !self.receiving || !fed {
            return;
        }
        let mut starved = std::mem::take(&mut self.starved);
        for id in starved.drain(..) {
            if let Some(slot) = self.slots.find(id) {
                slot.starved = false;
                self.arm_receive(id);
            }
        }
        self.starved = starved;
    }

    pub(super) fn received(&mut self, id: SessionId, result: i32, flags: u32, each: &mut impl FnMut(Completion<'_>)) {
        let Some(pools) = &mut self.pools else { return };
        let receiving = self.receiving;
        let slot = self.slots.at(id.slot);
        let live = slot.generation == id.generation && !slot.draining;
        let Some(mode) = slot.armed else { return };
        let pool = if mode == ReceiveMode::Once { &mut pools.once } else { &mut pools.stream };
        let mut next = pool.first_segment(result, flags);
        let mut remaining = u32::try_from(result).unwrap_or(0);
        while let Some(segment) = next {
            if segment.is_empty() || !live {
                pool.release(segment);
            } else if receiving {
                each(Completion::Received { id, bytes: pool.bytes(segment) });
                pool.release(segment);
            } else {
                slot.deferred += 1;
                self.deferred.push_back(Deferred { id, what: Outcome::Bytes { mode, segment } });
            }
            remaining -= segment.length().min(remaining);
            next = (remaining > 0).then(|| pool.next_segment(segment, remaining));
        }
        if cqueue::more(flags) {
            if slot.deferred >= DEFERRED_PER_CONNECTION_MAX && live && !slot.throttled {
                slot.throttled = true;
                self.cancel(pack(Operation::Receive, id.slot, id.generation));
            }
            return;
        }
        slot.armed = None;
        let throttled = std::mem::take(&mut slot.throttled);
        self.in_flight -= 1;
        if slot.generation != id.generation {
            return self.release_if_done(id.slot);
        }
        if result > 0 && slot.wants == Some(ReceiveMode::Once) {
            slot.wants = None;
        }
        match (result < 0).then(|| Errno::from_raw_os_error(-result)) {
            Some(Errno::NOBUFS) => self.starve(id),
            Some(Errno::CANCELED) if throttled => self.starve(id),
            None if throttled && result > 0 => self.starve(id),
            Some(Errno::INTR) => self.arm_receive(id),
            None if result > 0 => self.arm_receive(id),
            error => self.end(id, error.map(io::Error::from), each),
        }
    }

    /// `Receive::Single`: the socket has bytes, or an end.
    pub(super) fn readable(&mut self, id: SessionId, result: i32, each: &mut impl FnMut(Completion<'_>)) {
        let receiving = self.receiving;
        let slot = self.slots.at(id.slot);
        slot.armed = None;
        let throttled = std::mem::take(&mut slot.throttled);
        self.in_flight -= 1;
        if slot.generation != id.generation {
            return self.release_if_done(id.slot);
        }
        if slot.paused || (throttled && result == -Errno::CANCELED.raw_os_error()) {
            // What it has to say, it says again when it is armed again.
            return self.arm_receive(id);
        }
        if result < 0 {
            return self.end(id, Some(io::Error::from_raw_os_error(-result)), each);
        }
        if !receiving && !slot.draining {
            return self.starve(id);
        }
        let Some(fd) = &slot.fd else { return };
        match rustix::net::recv(fd, &mut self.scratch[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.end(id, None, each),
            Ok((length, _)) => {
                let once = slot.wants == Some(ReceiveMode::Once);
                if once {
                    slot.wants = None;
                }
                if !slot.draining {
                    each(Completion::Received { id, bytes: &self.scratch[..length] });
                }
                if once {
                    // What comes before WELCOME holds credentials.
                    self.scratch[..length].zeroize();
                }
                self.arm_receive(id);
            }
            Err(Errno::AGAIN | Errno::INTR) => self.arm_receive(id),
            Err(error) => self.end(id, Some(error.into()), each),
        }
    }

    pub(super) fn end(&mut self, id: SessionId, error: Option<io::Error>, each: &mut impl FnMut(Completion<'_>)) {
        let Some(slot) = self.slots.find(id) else { return };
        slot.ended = true;
        slot.wants = None;
        if slot.deferred > 0 {
            slot.deferred += 1;
            self.deferred.push_back(Deferred { id, what: Outcome::Ended(error) });
        } else {
            each(Completion::Ended { id, error });
            self.close_if_drained(id);
        }
    }

    pub(super) fn hand_out_deferred(&mut self, each: &mut impl FnMut(Completion<'_>)) {
        let mut deferred = std::mem::take(&mut self.deferred);
        for Deferred { id, what } in deferred.drain(..) {
            let slot = self.slots.find(id);
            let (live, draining) = slot.as_ref().map_or((false, false), |slot| (true, slot.draining));
            if let Some(slot) = slot {
                slot.deferred -= 1;
            }
            match (what, &mut self.pools) {
                (Outcome::Bytes { mode, segment }, Some(pools)) => {
                    let pool = if mode == ReceiveMode::Once { &mut pools.once } else { &mut pools.stream };
                    if live && !draining {
                        each(Completion::Received { id, bytes: pool.bytes(segment) });
                    }
                    pool.release(segment);
                }
                (Outcome::Ended(error), _) if live => {
                    each(Completion::Ended { id, error });
                    self.close_if_drained(id);
                }
                _ => {}
            }
        }
        self.deferred = deferred;
        if let Some(pools) = &mut self.pools {
            pools.stream.publish();
            pools.once.publish();
        }
    }
}
