//! What the whole daemon shares, kept by shard 0's heart alone: seats. Other hearts ask by mail, so the count is
//! exact without a lock. Pure.

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// The seats of agents that are connected, over all shards.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: u32,
    peak: u32,
    today: (u64, u32),
}

impl Seats {
    /// Takes one of `seats_max` seats (none: there is no limit); gives the limit when all are taken.
    pub(super) fn take(&mut self, wall_ms: u64, seats_max: Option<u32>) -> Result<(), u32> {
        match seats_max {
            Some(seats_max) if self.taken >= seats_max => Err(seats_max),
            _ => {
                self.taken += 1;
                self.peak = self.peak.max(self.taken);
                self.look(wall_ms);
                Ok(())
            }
        }
    }

    /// An agent has left.
    pub(super) fn give_back(&mut self, wall_ms: u64) {
        debug_assert!(self.taken > 0, "a seat is given back once");
        self.look(wall_ms);
        self.taken = self.taken.saturating_sub(1);
    }

    /// Notices that another day has begun: its peak is at least what is taken now.
    pub(super) fn look(&mut self, wall_ms: u64) {
        let day = wall_ms / DAY_MS;
        if self.today.0 < day {
            self.today = (day, 0);
        }
        self.today.1 = self.today.1.max(self.taken);
    }

    /// Taken now; the most ever; a day and the most in it.
    pub(super) fn counts(&self) -> (u32, u32, (u64, u32)) {
        (self.taken, self.peak, self.today)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_of_ten_gets_no_seat_until_one_is_given_back() {
        let mut seats = Seats::default();
        (0..10).for_each(|_| assert_eq!(seats.take(0, Some(10)), Ok(())));
        assert_eq!(seats.take(0, Some(10)), Err(10));
        seats.give_back(0);
        assert_eq!(seats.take(0, Some(10)), Ok(()));
        assert_eq!(seats.take(0, Some(5)), Err(5), "a lower limit drops nobody and lets nobody in");
        assert_eq!(seats.take(0, None), Ok(()));
        assert_eq!(seats.counts(), (11, 11, (0, 11)));
    }

    #[test]
    fn the_peak_of_a_day_begins_with_who_is_still_there() {
        let mut seats = Seats::default();
        (0..3).for_each(|_| assert_eq!(seats.take(DAY_MS - 1, None), Ok(())));
        seats.give_back(DAY_MS);
        seats.give_back(DAY_MS + 1);
        assert_eq!(seats.counts(), (1, 3, (1, 3)));
        seats.look(2 * DAY_MS);
        assert_eq!(seats.counts(), (1, 3, (2, 1)));
    }
}
