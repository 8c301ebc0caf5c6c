//! The time that retention goes by. The wall clock says it, but is not believed at its word: a clock that is years ahead
//! would delete everything. Within one boot of the machine its monotonic clock knows better; over a boot, or when nothing
//! was kept, only a gap that is too long to be believed at once can be noticed. Pure but for `Reading::now`.

use crate::store::KeptTime;
use std::time::SystemTime;

/// The wall clock may be this far ahead of the time that has passed …
const AHEAD_MAX_MS: u64 = 3_600_000;
/// … and after a boot this far ahead of the time when the relay last ran, as it is after a holiday.
const AWAY_MAX_MS: u64 = 7 * 24 * 3_600_000;
/// A clock that goes on saying something else for so long, while the relay runs, is believed.
const DOUBT_MS: u64 = 24 * 3_600_000;

/// One look at both clocks of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// Milliseconds since 1970, as the machine believes.
    pub wall_ms: u64,
    /// Milliseconds since it was switched on, its sleep included.
    pub boot_ms: u64,
    /// Which boot that was.
    pub boot: [u8; 16],
}

impl Reading {
    /// Now, in this boot.
    pub fn now(boot: [u8; 16]) -> Reading {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Reading {
            wall_ms: wall.map_or(0, |since| since.as_millis() as u64),
            boot_ms: since_boot.tv_sec.max(0) as u64 * 1_000 + since_boot.tv_nsec.max(0) as u64 / 1_000_000,
            boot,
        }
    }
}

/// See above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SweepClock {
    boot: [u8; 16],
    /// At `boot_ms` it was `time_ms`.
    boot_ms: u64,
    time_ms: u64,
    doubt: Option<Doubt>,
}

/// The wall clock says something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Doubt {
    /// How far ahead it may be to be believed.
    ahead_max_ms: u64,
    /// For how long it had been doubted before this start, and when that was.
    before_ms: u64,
    since_boot_ms: u64,
}

impl SweepClock {
    /// The clock of a daemon that has just been started. `kept` is what the last one kept; `newest_ms` the time of the
    /// newest thing that is stored, which counts when nothing was kept.
    pub fn start(kept: Option<KeptTime>, newest_ms: Option<u64>, now: Reading) -> SweepClock {
        let (known_ms, ahead_max_ms, before_ms) = match (kept, newest_ms) {
            (Some(kept), _) if kept.boot == now.boot && kept.boot_ms <= now.boot_ms => {
                (kept.time_ms.saturating_add(now.boot_ms - kept.boot_ms), AHEAD_MAX_MS, kept.doubted_ms)
            }
            (Some(kept), _) => (kept.time_ms, AWAY_MAX_MS, kept.doubted_ms),
            (None, Some(newest_ms)) => (newest_ms, AWAY_MAX_MS, 0),
            (None, None) => (now.wall_ms, AHEAD_MAX_MS, 0),
        };
        let doubt = Doubt { ahead_max_ms, before_ms, since_boot_ms: now.boot_ms };
        let mut clock = SweepClock { boot: now.boot, boot_ms: now.boot_ms, time_ms: known_ms, doubt: Some(doubt) };
        clock.look(now);
        clock
    }

    /// What retention goes by: never ahead of the wall clock, and never more than an hour ahead of the time that has
    /// passed.
    pub fn sweep_ms(&mut self, now: Reading) -> u64 {
        self.look(now);
        now.wall_ms.min(self.passed_ms(now).saturating_add(AHEAD_MAX_MS))
    }

    /// By how much the wall clock is ahead of what is believed, milliseconds; behind: negative; 0: it is believed.
    pub fn doubt_ms(&self, now: Reading) -> i64 {
        let ahead = i128::from(now.wall_ms) - i128::from(self.passed_ms(now));
        self.doubt.map_or(0, |_| ahead.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
    }

    /// What the next start is to know.
    pub fn kept(&self, now: Reading) -> KeptTime {
        let doubted_ms = self.doubt.map_or(0, |doubt| doubt.lasts_ms(now));
        KeptTime { time_ms: self.passed_ms(now), boot: self.boot, boot_ms: now.boot_ms, doubted_ms }
    }

    fn passed_ms(&self, now: Reading) -> u64 {
        self.time_ms.saturating_add(now.boot_ms.saturating_sub(self.boot_ms))
    }

    /// Believes the wall clock when it says what can be, or has been doubted for long enough.
    fn look(&mut self, now: Reading) {
        let Some(doubt) = self.doubt else { return };
        let passed_ms = self.passed_ms(now);
        let can_be = now.wall_ms.saturating_add(AHEAD_MAX_MS) >= passed_ms
            && now.wall_ms <= passed_ms.saturating_add(doubt.ahead_max_ms);
        if can_be || doubt.lasts_ms(now) >= DOUBT_MS {
            let time_ms = if can_be { now.wall_ms.max(passed_ms) } else { now.wall_ms };
            (self.time_ms, self.boot_ms, self.doubt) = (time_ms, now.boot_ms, None);
        }
    }
}

impl Doubt {
    fn lasts_ms(&self, now: Reading) -> u64 {
        self.before_ms.saturating_add(now.boot_ms.saturating_sub(self.since_boot_ms))
    }
}

/// What people are told of a clock that is doubted.
pub fn sentence(doubt_ms: i64) -> String {
    format!("{}. If it is wrong, correct it (timedatectl set-ntp true)", finding(doubt_ms))
}

/// The same without what to do about it.
pub fn finding(doubt_ms: i64) -> String {
    let hours = doubt_ms.unsigned_abs() / 3_600_000;
    let far = if hours < 48 { format!("{hours} h") } else { format!("{} days", hours / 24) };
    let where_ = if doubt_ms > 0 { "ahead of" } else { "behind" };
    format!(
        "the wall clock is {far} {where_} the time that the relay has kept: nothing is deleted by it until it has said so \
         for a day"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const DAY: u64 = 24 * HOUR;
    /// Today, in days since 1970.
    const TODAY: u64 = 20_000;

    /// `boot`: of which boot; both times in hours.
    fn at(wall: u64, boot: u8, since_boot: u64) -> Reading {
        Reading { wall_ms: wall * HOUR, boot_ms: since_boot * HOUR, boot: [boot; 16] }
    }

    fn now(boot: u8, since_boot: u64) -> Reading {
        at(TODAY * 24 + since_boot, boot, since_boot)
    }

    fn kept(at_ms: u64, boot: u8, since_boot: u64) -> Option<KeptTime> {
        Some(KeptTime { time_ms: at_ms, boot: [boot; 16], boot_ms: since_boot * HOUR, doubted_ms: 0 })
    }

    #[test]
    fn a_clock_that_says_what_has_passed_is_believed() {
        // Nothing known; within one boot; a week after the last one; a store older than the record.
        for (kept, newest) in [
            (None, None),
            (kept(TODAY * DAY, 1, 0), None),
            (kept((TODAY - 6) * DAY, 0, 77), Some(3)),
            (None, Some((TODAY - 6) * DAY)),
        ] {
            let mut clock = SweepClock::start(kept, newest, now(1, 5));
            assert_eq!((clock.doubt_ms(now(1, 5)), clock.sweep_ms(now(1, 5))), (0, TODAY * DAY + 5 * HOUR));
            assert_eq!(clock.sweep_ms(now(1, 100)), TODAY * DAY + 100 * HOUR);
            assert_eq!(clock.kept(now(1, 100)).doubted_ms, 0);
        }
    }

    #[test]
    fn while_the_daemon_runs_a_jump_counts_for_an_hour_and_no_more() {
        let mut clock = SweepClock::start(None, None, now(1, 0));
        assert_eq!(clock.sweep_ms(at(TODAY * 24 * 2, 1, 3)), TODAY * DAY + 4 * HOUR);
        assert_eq!(clock.sweep_ms(at(0, 1, 4)), 0, "and never ahead of the clock itself");
        assert_eq!(clock.sweep_ms(now(1, 5)), TODAY * DAY + 5 * HOUR);
        // However long it lasts.
        assert_eq!(clock.sweep_ms(at(TODAY * 24 * 2, 1, 300)), TODAY * DAY + 301 * HOUR);
    }

    #[test]
    fn a_start_with_a_clock_years_ahead_deletes_nothing_for_a_day() {
        let years = 5 * 365 * 24;
        let wrong = |since_boot| at(TODAY * 24 + years + since_boot, 1, since_boot);
        for (kept, newest) in
            [(kept(TODAY * DAY, 1, 0), None), (kept(TODAY * DAY, 0, 900), None), (None, Some(TODAY * DAY))]
        {
            let mut clock = SweepClock::start(kept, newest, wrong(0));
            assert_eq!(clock.doubt_ms(wrong(0)), (years * HOUR) as i64);
            assert_eq!(clock.sweep_ms(wrong(23)), TODAY * DAY + 24 * HOUR, "the hour is granted");
            assert!(sentence(clock.doubt_ms(wrong(23))).contains("1825 days ahead of"));
            // Put right: believed at once, and the doubt is forgotten.
            let mut corrected = clock;
            assert_eq!((corrected.sweep_ms(now(1, 23)), corrected.doubt_ms(now(1, 23))), (TODAY * DAY + 23 * HOUR, 0));
            // Another start in between neither shortens nor lengthens the day.
            let kept = clock.kept(wrong(20));
            assert_eq!(kept.doubted_ms, 20 * HOUR);
            let mut again = SweepClock::start(Some(kept), newest, wrong(21));
            assert_eq!(again.sweep_ms(wrong(24)), TODAY * DAY + 25 * HOUR);
            assert_eq!(again.sweep_ms(wrong(25)), TODAY * DAY + (years + 25) * HOUR, "it was right after all");
            assert_eq!((again.doubt_ms(wrong(26)), again.kept(wrong(26)).doubted_ms), (0, 0));
        }
    }

    #[test]
    fn a_clock_that_begins_in_1970_changes_nothing_and_is_believed_once_it_is_set() {
        let mut clock = SweepClock::start(kept(TODAY * DAY, 0, 900), None, at(0, 1, 0));
        assert_eq!(clock.sweep_ms(at(0, 1, 0)), 0);
        assert!(clock.doubt_ms(at(0, 1, 0)) < 0);
        assert_eq!(clock.kept(at(0, 1, 0)).time_ms, TODAY * DAY);
        let set = at((TODAY + 2) * 24, 1, 1);
        assert_eq!((clock.sweep_ms(set), clock.doubt_ms(set)), ((TODAY + 2) * DAY, 0));
    }
}
