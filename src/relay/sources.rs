//! Who gets credentials wrong, and how often: the answer to one wrong attempt too many comes late. Pure; bounded.

use crate::base::Mono;
use crate::base::keys::Source;
use std::collections::BTreeMap;

/// Sources remembered; the one that has failed least recently makes room.
const SOURCES_MAX: usize = 1024;
/// Wrong attempts per minute and source that are answered at once.
const FREE_PER_MINUTE: u64 = 10;
const MINUTE: u64 = Mono::ms(60_000);
/// What one wrong attempt costs of its source's minute.
const COST: u64 = MINUTE / FREE_PER_MINUTE;
/// The first late answer is so late; each further one twice as late …
const DELAY: u64 = Mono::ms(1_000);
/// … so often.
const DOUBLINGS_MAX: u32 = 3;
/// Connections of one source that may wait for their answer.
const DELAYED_MAX: u32 = 16;

/// When a wrong attempt is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Now.
    AtOnce,
    /// So many nanoseconds from now; `answered` must be called then.
    After(u64),
    /// Never: too many wait already.
    Never,
}

#[derive(Default)]
struct Offender {
    /// Its attempts so far are paid for at this time.
    paid_at: Mono,
    failed_at: Mono,
    late_answers: u32,
    /// Connections that wait for their answer.
    delayed: u32,
}

/// All of them.
#[derive(Default)]
pub(super) struct Sources {
    offenders: BTreeMap<Source, Offender>,
}

impl Sources {
    /// A wrong credential came from `source`.
    pub(super) fn failed(&mut self, now: Mono, source: Source) -> Verdict {
        if self.offenders.len() >= SOURCES_MAX && !self.offenders.contains_key(&source) {
            let oldest =
                self.offenders.iter().min_by_key(|(_, offender)| offender.failed_at).map(|(source, _)| *source);
            oldest.map(|source| self.offenders.remove(&source));
        }
        let offender = self.offenders.entry(source).or_default();
        offender.failed_at = now;
        let owed = offender.paid_at.since(now);
        if owed == 0 {
            offender.late_answers = 0;
        }
        if owed + COST <= MINUTE {
            offender.paid_at = now + owed + COST;
            return Verdict::AtOnce;
        }
        if offender.delayed >= DELAYED_MAX {
            return Verdict::Never;
        }
        let delay = DELAY << offender.late_answers.min(DOUBLINGS_MAX);
        offender.late_answers = offender.late_answers.saturating_add(1);
        offender.delayed += 1;
        Verdict::After(delay)
    }

    /// A connection of `source` no longer waits for its answer.
    pub(super) fn answered(&mut self, source: Source) {
        if let Some(offender) = self.offenders.get_mut(&source) {
            // Less than it seems, if the source was forgotten meanwhile.
            offender.delayed = offender.delayed.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_minute_are_answered_at_once_then_ever_later_and_a_quiet_minute_forgives() {
        let (mut sources, source) = (Sources::default(), Source::of_user(7));
        let mut now = Mono(Mono::ms(5_000));
        for _ in 0..10 {
            assert_eq!(sources.failed(now, source), Verdict::AtOnce);
        }
        for seconds in [1, 2, 4, 8, 8] {
            assert_eq!(sources.failed(now, source), Verdict::After(Mono::ms(1_000 * seconds)));
            sources.answered(source);
        }
        assert_eq!(sources.failed(now, Source::of_user(8)), Verdict::AtOnce, "nobody pays for another");
        now = now + Mono::ms(6_000);
        assert_eq!(sources.failed(now, source), Verdict::AtOnce, "one every six seconds");
        assert_eq!(sources.failed(now, source), Verdict::After(Mono::ms(8_000)));
        now = now + Mono::ms(61_000);
        for _ in 0..10 {
            assert_eq!(sources.failed(now, source), Verdict::AtOnce);
        }
        assert_eq!(sources.failed(now, source), Verdict::After(Mono::ms(1_000)));
    }

    #[test]
    fn sixteen_wait_and_the_next_ones_are_turned_away_until_one_is_answered() {
        let (mut sources, source, now) = (Sources::default(), Source::of_user(7), Mono(1));
        (0..10).for_each(|_| assert_eq!(sources.failed(now, source), Verdict::AtOnce));
        (0..16).for_each(|_| assert!(matches!(sources.failed(now, source), Verdict::After(_))));
        assert_eq!(sources.failed(now, source), Verdict::Never);
        sources.answered(source);
        assert!(matches!(sources.failed(now, source), Verdict::After(_)));
        assert_eq!(sources.failed(now, source), Verdict::Never);
    }

    #[test]
    fn a_crowd_of_sources_takes_bounded_memory() {
        let mut sources = Sources::default();
        for user in 0..10_000 {
            sources.failed(Mono(u64::from(user)), Source::of_user(user));
        }
        assert_eq!(sources.offenders.len(), SOURCES_MAX);
    }
}
