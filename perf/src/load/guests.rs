//! Agents that come, are welcomed and leave, beside a load that goes on: what letting them in costs everybody else.
#![forbid(unsafe_code)]

use super::{FIRST_GUEST, GUEST_NAMES, Load};
use crate::outcome::Outcome;
use crate::talk::Dialect;
use rustix::event::epoll;
use std::time::Instant;

/// Guests that have not left yet.
const GUESTS_MAX: usize = 256;

impl<D: Dialect> Load<D> {
    /// A closed loop, alone and then beside agents that come and go.
    pub(super) fn hello_beside_load(&mut self) -> Result<Outcome, String> {
        self.set_going()?;
        let start = self.begin();
        self.turns_until(start.at + self.plan.measured, 0)?;
        let before = self.end(&start);
        self.first_guest = self.peers.len();
        let gap = 1e9 / self.plan.rate as f64;
        let (start, base) = (self.begin(), self.now());
        let end = start.at + self.plan.measured;
        while Instant::now() < end {
            while base + (f64::from(self.guests) * gap) as u64 <= self.now() {
                self.guest()?;
            }
            self.turn(Some((gap / 4.0) as u64), true)?;
        }
        let mut outcome = self.end(&start);
        outcome.p99_before_us = before.p99_us;
        outcome.accepts = self.accepts.len();
        outcome.accept_p50_us = self.accepts.value_at_quantile(0.5) as f64 / 1000.0;
        outcome.accept_p99_us = self.accepts.value_at_quantile(0.99) as f64 / 1000.0;
        Ok(outcome)
    }

    /// One more that connects and says HELLO.
    fn guest(&mut self) -> Result<(), String> {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.peers.len() - self.first_guest >= GUESTS_MAX => {
                return Err(format!("saturated: {GUESTS_MAX} agents wait for their WELCOME"));
            }
            None => self.peers.len() as u32,
        };
        let peer = self.dial(self.part(FIRST_GUEST + self.guests % GUEST_NAMES))?;
        self.guests += 1;
        self.take_in(peer, place)
    }

    /// A guest's place is free again.
    pub(super) fn left(&mut self, number: u32) -> Result<(), String> {
        let peer = &mut self.peers[number as usize];
        let _ = epoll::delete(&self.poll, &peer.socket);
        self.backlog_bytes -= peer.backlog() - peer.written;
        (peer.out, peer.sealed, peer.written) = (Vec::new(), Vec::new(), 0);
        self.free.push(number);
        Ok(())
    }
}
