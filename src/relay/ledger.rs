//! What the whole daemon shares, kept by shard 0's heart alone: seats. Other hearts ask by mail, so the count is
//! exact without a lock. Pure.

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// So many helpers of the relay's own user hold no seat of the licence's; further ones hold one, as agents do.
const HELPERS_FREE: u32 = 8;

/// For whom a seat is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sitter {
    /// Anybody.
    Agent,
    /// A connection of the daemon's own user, or of an admin, under an internal name.
    Helper,
}

/// The seats of agents that are connected, over all shards.
#[derive(Debug, Default)]
pub(super) struct Seats {
    agents: u32,
    helpers: u32,
    peak: u32,
    today: (u64, u32),
}

impl Seats {
    /// Takes one of `seats_max` seats (none: there is no limit); gives the limit when all are taken.
    pub(super) fn take(&mut self, wall_ms: u64, sitter: Sitter, seats_max: Option<u32>) -> Result<(), u32> {
        let is_free = sitter == Sitter::Helper && self.helpers < HELPERS_FREE;
        match seats_max {
            Some(seats_max) if !is_free && self.taken() >= seats_max => Err(seats_max),
            _ => {
                *self.sitting(sitter) += 1;
                self.peak = self.peak.max(self.taken());
                self.look(wall_ms);
                Ok(())
            }
        }
    }

    /// It has left.
    pub(super) fn give_back(&mut self, wall_ms: u64, sitter: Sitter) {
        self.look(wall_ms);
        let sitting = self.sitting(sitter);
        debug_assert!(*sitting > 0, "a seat is given back once");
        *sitting = sitting.saturating_sub(1);
    }

    fn sitting(&mut self, sitter: Sitter) -> &mut u32 {
        match sitter {
            Sitter::Agent => &mut self.agents,
            Sitter::Helper => &mut self.helpers,
        }
    }

    /// Those that count.
    fn taken(&self) -> u32 {
        self.agents + self.helpers.saturating_sub(HELPERS_FREE)
    }

    /// Notices that another day has begun: its peak is at least what is taken now.
    pub(super) fn look(&mut self, wall_ms: u64) {
        let day = wall_ms / DAY_MS;
        if self.today.0 < day {
            self.today = (day, 0);
        }
        self.today.1 = self.today.1.max(self.taken());
    }

    /// Taken now; the most ever; a day and the most in it.
    pub(super) fn counts(&self) -> (u32, u32, (u64, u32)) {
        (self.taken(), self.peak, self.today)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_of_ten_gets_no_seat_until_one_is_given_back() {
        let mut seats = Seats::default();
        (0..10).for_each(|_| assert_eq!(seats.take(0, Sitter::Agent, Some(10)), Ok(())));
        assert_eq!(seats.take(0, Sitter::Agent, Some(10)), Err(10));
        seats.give_back(0, Sitter::Agent);
        assert_eq!(seats.take(0, Sitter::Agent, Some(10)), Ok(()));
        assert_eq!(seats.take(0, Sitter::Agent, Some(5)), Err(5), "a lower limit drops nobody and lets nobody in");
        assert_eq!(seats.take(0, Sitter::Agent, None), Ok(()));
        assert_eq!(seats.counts(), (11, 11, (0, 11)));
    }

    #[test]
    fn eight_helpers_are_free_and_the_ninth_counts_as_an_agent() {
        let mut seats = Seats::default();
        (0..10).for_each(|_| assert_eq!(seats.take(0, Sitter::Helper, Some(2)), Ok(())));
        assert_eq!(seats.counts().0, 2);
        assert_eq!((seats.take(0, Sitter::Helper, Some(2)), seats.take(0, Sitter::Agent, Some(2))), (Err(2), Err(2)));
        seats.give_back(0, Sitter::Helper);
        assert_eq!(seats.take(0, Sitter::Agent, Some(2)), Ok(()), "whichever of them leaves, eight are free");
        (0..2).for_each(|_| seats.give_back(0, Sitter::Helper));
        assert_eq!(seats.counts().0, 1);
        assert_eq!(seats.take(0, Sitter::Helper, Some(1)), Ok(()));
    }

    #[test]
    fn the_peak_of_a_day_begins_with_who_is_still_there() {
        let mut seats = Seats::default();
        (0..3).for_each(|_| assert_eq!(seats.take(DAY_MS - 1, Sitter::Agent, None), Ok(())));
        seats.give_back(DAY_MS, Sitter::Agent);
        seats.give_back(DAY_MS + 1, Sitter::Agent);
        assert_eq!(seats.counts(), (1, 3, (1, 3)));
        seats.look(2 * DAY_MS);
        assert_eq!(seats.counts(), (1, 3, (2, 1)));
    }
}
