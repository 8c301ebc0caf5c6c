//! One agent stops reading, and its mail goes on coming: what that costs everybody else.
#![forbid(unsafe_code)]

use super::Load;
use crate::outcome::Outcome;
use crate::talk::Dialect;
use rustix::event::epoll;
use std::time::Instant;

impl<D: Dialect> Load<D> {
    /// A closed loop, alone and then beside a receiver that has stopped reading.
    pub(super) fn beside_stopped_reader(&mut self) -> Result<Outcome, String> {
        self.set_going()?;
        let start = self.begin();
        self.turns_until(start.at + self.plan.measured, 0)?;
        let before = self.end(&start);
        let sender = 2 * (self.plan.pairs - 1);
        epoll::delete(&self.poll, &self.peers[sender as usize + 1].socket).map_err(|error| error.to_string())?;
        let gap = 1e9 / self.plan.rate as f64;
        let (start, base, mut sent) = (self.begin(), self.now(), 0u64);
        let end = start.at + self.plan.measured;
        while Instant::now() < end {
            while base + (sent as f64 * gap) as u64 <= self.now() {
                let now = self.now();
                self.speak(sender, now, 1)?;
                sent += 1;
            }
            self.turn(Some((gap / 4.0) as u64), true)?;
        }
        let mut outcome = self.end(&start);
        outcome.p99_before_us = before.p99_us;
        Ok(outcome)
    }
}
