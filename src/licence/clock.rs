//! What time it is for a licence. The wall clock is one witness of several: within one boot of the machine only its
//! monotonic clock moves the time on; signed documents say the least it can be, and a fresh answer of the server what it is.

use serde::{Deserialize, Serialize};

/// A wall clock that is off by more than this is reported: a day.
pub const SKEW_REPORTED_MS: u64 = 24 * 3_600_000;

/// One look at both clocks of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// Milliseconds since 1970 (UTC), as the machine believes.
    pub wall_ms: u64,
    /// Milliseconds since it was switched on, its sleep included.
    pub boot_ms: u64,
}

/// A clock as it is kept over a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KeptClock {
    /// The time it was.
    pub time_ms: u64,
    /// Which boot of the machine.
    pub boot: String,
    /// How long after its beginning.
    pub boot_ms: u64,
}

/// The time, from all witnesses.
#[derive(Clone, Debug)]
pub struct Clock {
    boot: String,
    /// Law: at `boot_ms` it was `time_ms`; between two settings it moves as the machine's monotonic clock does.
    boot_ms: u64,
    time_ms: u64,
}

impl Clock {
    /// The clock of a program that has just been started, in the boot called `boot`.
    pub fn start(kept: Option<&KeptClock>, boot: &str, now: Reading) -> Clock {
        let time_ms = match kept {
            None => now.wall_ms,
            // The machine has run all the while, so how long it was is known.
            Some(kept) if kept.boot == boot && kept.boot_ms <= now.boot_ms => {
                kept.time_ms.saturating_add(now.boot_ms - kept.boot_ms)
            }
            // It was off, nobody knows how long: the wall clock may say so, but not that it was less than no time.
            Some(kept) => kept.time_ms.max(now.wall_ms),
        };
        Clock { boot: boot.to_owned(), boot_ms: now.boot_ms, time_ms }
    }

    /// What time it is.
    pub fn time_ms(&self, now: Reading) -> u64 {
        self.time_ms.saturating_add(now.boot_ms.saturating_sub(self.boot_ms))
    }

    /// The vendor's server has just said what time it is.
    pub fn set(&mut self, now: Reading, time_ms: u64) {
        (self.boot_ms, self.time_ms) = (now.boot_ms, time_ms);
    }

    /// It cannot be earlier than this: something that bears this time exists.
    pub fn at_least(&mut self, now: Reading, time_ms: u64) {
        if self.time_ms(now) < time_ms {
            self.set(now, time_ms);
        }
    }

    /// By how much the wall clock is ahead (or behind, negative).
    pub fn skew_ms(&self, now: Reading) -> i64 {
        let skew = i128::from(now.wall_ms) - i128::from(self.time_ms(now));
        skew.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// What the operator is told when the wall clock is wrong by more than a day.
    pub fn warning(&self, now: Reading) -> Option<String> {
        let skew_ms = self.skew_ms(now);
        if skew_ms.unsigned_abs() <= SKEW_REPORTED_MS {
            return None;
        }
        let days = skew_ms.unsigned_abs() / SKEW_REPORTED_MS;
        let days = format!("{days} day{}", if days == 1 { "" } else { "s" });
        Some(if skew_ms < 0 {
            format!(
                "the clock was set back by {days}; the licence goes by the later time. Correct the clock, or if it is right, run `relay license activate` again"
            )
        } else {
            format!(
                "the clock was set forward by {days}; the licence goes by the time that has really passed. Correct the clock"
            )
        })
    }

    /// What is kept of it.
    pub fn kept(&self, now: Reading) -> KeptClock {
        KeptClock { time_ms: self.time_ms(now), boot: self.boot.clone(), boot_ms: now.boot_ms }
    }
}

/// The day of a time, for people: 2026-11-21.
pub fn date(time_ms: u64) -> String {
    let (year, month, day) = civil(time_ms / 86_400_000);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of the day that many days after 1970 began (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;

    fn at(wall_days: u64, boot_days: u64) -> Reading {
        Reading { wall_ms: wall_days * DAY, boot_ms: boot_days * DAY }
    }

    #[test]
    fn within_one_boot_the_wall_clock_moves_nothing() {
        let clock = Clock::start(None, "a", at(100, 0));
        assert_eq!(clock.time_ms(at(500, 1)), 101 * DAY);
        assert_eq!(clock.time_ms(at(3, 2)), 102 * DAY);
        let kept = clock.kept(at(3, 2));
        assert_eq!(Clock::start(Some(&kept), "a", at(900, 5)).time_ms(at(900, 5)), 105 * DAY, "nor does a restart");
    }

    #[test]
    fn a_machine_that_was_off_may_have_been_off_for_long_but_not_for_less_than_no_time() {
        let kept = Clock::start(None, "a", at(100, 0)).kept(at(101, 1));
        assert_eq!(Clock::start(Some(&kept), "b", at(130, 0)).time_ms(at(130, 0)), 130 * DAY);
        let set_back = Clock::start(Some(&kept), "b", at(50, 0));
        assert_eq!(set_back.time_ms(at(51, 1)), 102 * DAY);
        assert!(set_back.warning(at(51, 1)).unwrap().contains("set back by 51 days"));
    }

    #[test]
    fn a_day_of_error_is_borne_and_more_is_reported() {
        let clock = Clock::start(None, "a", at(100, 0));
        assert_eq!(clock.warning(at(101, 0)), None);
        assert_eq!(clock.warning(at(99, 0)), None);
        assert!(clock.warning(at(102, 0)).unwrap().contains("forward by 2 days"));
        assert!(clock.warning(at(98, 0)).unwrap().contains("set back by 2 days"));
    }

    #[test]
    fn dates_are_the_calendars() {
        let known = [
            (0, "1970-01-01"),
            (951_782_400_000, "2000-02-29"),
            (1_795_219_200_000, "2026-11-21"),
            (4_107_456_000_000, "2100-02-28"),
        ];
        for (time_ms, text) in known {
            assert_eq!(date(time_ms), text);
        }
        assert_eq!(date(u64::MAX).len(), "584556019-04-03".len());
    }
}
