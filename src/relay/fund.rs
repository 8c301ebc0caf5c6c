//! One rate that the whole daemon keeps, as shard 0 sees it: an integer token bucket out of which shards are handed small
//! sums ahead of need. Pure; time is an argument.

use crate::base::{Mono, ShardId};
use std::collections::VecDeque;

/// Tokens come back one by one; whoever waits for them is served at most this often.
const SERVED_EVERY: u64 = Mono::ms(10);
/// A shard is handed one part in so many of what there is, per shard: what lies idle in all purses stays a small part.
const SHARE: u64 = 8;
/// … but this many while there is plenty, so that a purse outlasts the way of a mail and back.
const USUAL: u64 = 4;

/// So many per span, of which at most `burst` are saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rate {
    count: u64,
    span: u64,
    burst: u64,
}

impl Rate {
    /// A tier's: 10 s of it are saved.
    pub(super) fn per_second(count: u32) -> Rate {
        let count = u64::from(count.max(1));
        Rate { count, span: Mono::ms(1_000), burst: 10 * count }
    }

    /// A key's: one minute of it is saved.
    pub(super) fn per_minute(count: u32) -> Rate {
        let count = u64::from(count.max(1));
        Rate { count, span: Mono::ms(60_000), burst: count }
    }

    /// Whether it is so low that what idle purses hold ahead of need would be a large part of it.
    pub(super) fn is_low(&self, shards: u16) -> bool {
        self.burst < SHARE * u64::from(shards)
    }

    /// What a shard may have spent without saying so while others may wait for it.
    pub(super) fn share(&self, shards: u16) -> u64 {
        self.burst / (SHARE * u64::from(shards))
    }

    /// Nanoseconds in which so many tokens come.
    pub(super) fn time_for(&self, tokens: u64) -> u64 {
        let time = (u128::from(tokens) * u128::from(self.span)).div_ceil(u128::from(self.count));
        u64::try_from(time).unwrap_or(u64::MAX)
    }
}

/// What a shard that asks for tokens hears.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dole {
    /// Here they are.
    Tokens(u32),
    /// There are none: as many as were asked for (one at least) come one behind the other, the first of them in so many
    /// nanoseconds, without being asked for again. What others are owed before is counted in; what they ask for later comes
    /// later.
    Later(u64),
}

/// A rate and what is left of it.
///
/// Law: what is left, and what shards have been handed and have not reported as spent, is never more than the burst; so
/// over any span no more is spent than the burst and what the rate gives in that span.
#[derive(Debug)]
pub(super) struct Fund {
    rate: Rate,
    /// Tokens that are not here, times `rate.span`.
    used: u128,
    at: Mono,
    /// Handed to shards, and not reported as spent.
    outstanding: u64,
    /// What shards wait for, in the order in which they have asked: nobody who asks later is served before, so that what
    /// was said about the wait stays true.
    queue: VecDeque<(ShardId, u32)>,
    /// Sum over the queue.
    queued: u64,
}

impl Fund {
    /// All that can be saved is there.
    pub(super) fn full(now: Mono, rate: Rate) -> Fund {
        Fund { rate, used: 0, at: now, outstanding: 0, queue: VecDeque::new(), queued: 0 }
    }

    /// The rate is another one from now on.
    pub(super) fn rerate(&mut self, now: Mono, rate: Rate) {
        if rate == self.rate {
            return;
        }
        self.settle(now);
        let used = self.used.div_ceil(u128::from(self.rate.span)).min(u128::from(rate.burst));
        self.used = used.max(u128::from(self.outstanding)) * u128::from(rate.span);
        self.rate = rate;
    }

    /// A shard says what it has spent, and gives back what it has no use for.
    pub(super) fn report(&mut self, now: Mono, spent: u32, unused: u32) {
        self.settle(now);
        self.outstanding = self.outstanding.saturating_sub(u64::from(spent) + u64::from(unused));
        self.used = self.used.saturating_sub(u128::from(unused) * u128::from(self.rate.span));
    }

    /// A shard asks for `wanted` messages that are owed for there, and for which it has not asked before.
    pub(super) fn ask(&mut self, now: Mono, shard: ShardId, wanted: u32, shards: u16) -> Dole {
        self.settle(now);
        let level = self.level();
        if self.queue.is_empty() && level > 0 {
            let needed = u64::from(wanted).min(level / u64::from(shards));
            return Dole::Tokens(self.hand_out(self.usual(shards).max(needed).clamp(1, level)));
        }
        let wait = self.time_until(self.queued + 1).max(SERVED_EVERY);
        let wanted = wanted.max(1);
        self.queued += u64::from(wanted);
        match self.queue.back_mut() {
            Some((last, more)) if *last == shard => *more = more.saturating_add(wanted),
            _ => self.queue.push_back((shard, wanted)),
        }
        Dole::Later(wait)
    }

    /// The next shard that waits and can be served now, and its tokens.
    pub(super) fn serve(&mut self, now: Mono, shards: u16) -> Option<(ShardId, u32)> {
        self.settle(now);
        let level = self.level();
        if level == 0 {
            return None;
        }
        let is_last = self.queue.len() == 1;
        let (shard, wanted) = self.queue.front_mut()?;
        let (shard, needed) = (*shard, u64::from(*wanted).min(level));
        *wanted -= needed as u32;
        self.queued -= needed;
        if *wanted == 0 {
            self.queue.pop_front();
        }
        // Ahead of need nothing is handed out while others wait.
        let tokens = if is_last { needed.max(self.usual(shards).min(level)) } else { needed };
        Some((shard, self.hand_out(tokens)))
    }

    /// In how many nanoseconds somebody who waits can be served; none when nobody waits.
    pub(super) fn next(&self) -> Option<u64> {
        (!self.queue.is_empty()).then(|| self.time_until(1).max(SERVED_EVERY))
    }

    /// Whether nothing would be lost if it were made anew.
    pub(super) fn is_idle(&mut self, now: Mono) -> bool {
        self.settle(now);
        self.used == 0 && self.queue.is_empty()
    }

    /// What is handed out ahead of need.
    fn usual(&self, shards: u16) -> u64 {
        let level = self.level();
        (level / (SHARE * u64::from(shards))).max(USUAL.min(level / SHARE))
    }

    fn hand_out(&mut self, tokens: u64) -> u32 {
        let tokens = tokens.min(u64::from(u32::MAX));
        self.outstanding += tokens;
        self.used += u128::from(tokens) * u128::from(self.rate.span);
        tokens as u32
    }

    fn settle(&mut self, now: Mono) {
        let came = u128::from(now.since(self.at)) * u128::from(self.rate.count);
        let least = u128::from(self.outstanding) * u128::from(self.rate.span);
        self.used = self.used.saturating_sub(came).max(least);
        self.at = self.at.max(now);
    }

    /// Whole tokens that are here.
    fn level(&self) -> u64 {
        let span = u128::from(self.rate.span);
        let level = (u128::from(self.rate.burst) * span).saturating_sub(self.used) / span;
        u64::try_from(level).unwrap_or(u64::MAX)
    }

    /// Nanoseconds until so many tokens are here.
    fn time_until(&self, tokens: u64) -> u64 {
        let span = u128::from(self.rate.span);
        let missing = (self.used + u128::from(tokens) * span).saturating_sub(u128::from(self.rate.burst) * span);
        u64::try_from(missing.div_ceil(u128::from(self.rate.count))).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ShardId = ShardId(1);

    fn at(ms: u64) -> Mono {
        Mono(Mono::ms(5_000 + ms))
    }

    /// Takes all there is, each time telling at once that it is spent.
    fn drain(fund: &mut Fund, now: Mono) -> u32 {
        let mut all = 0;
        while let Dole::Tokens(tokens) = fund.ask(now, ONE, 1, 2) {
            fund.report(now, tokens, 0);
            all += tokens;
        }
        all
    }

    fn forget(fund: &mut Fund) {
        fund.queue.clear();
        fund.queued = 0;
    }

    #[test]
    fn ten_seconds_are_saved_and_then_tokens_come_at_the_rate() {
        let mut fund = Fund::full(at(0), Rate::per_second(100));
        assert_eq!(drain(&mut fund, at(0)), 1_000);
        assert_eq!(fund.next(), Some(Mono::ms(10)));
        assert_eq!(fund.serve(at(9), 2), None);
        assert_eq!(fund.serve(at(10), 2), Some((ONE, 1)));
        fund.report(at(10), 1, 0);
        assert_eq!(drain(&mut fund, at(1_010)), 100);
        let (shard, tokens) = fund.serve(at(1_000_000), 2).expect("somebody waits");
        fund.report(at(1_000_000), tokens, 0);
        assert_eq!((shard, tokens + drain(&mut fund, at(1_000_000))), (ONE, 1_000));
    }

    #[test]
    fn what_shards_hold_unspent_is_a_part_of_the_burst() {
        let mut fund = Fund::full(at(0), Rate::per_second(100));
        let Dole::Tokens(held) = fund.ask(at(0), ShardId(0), 1, 2) else { panic!("it is full") };
        assert!(held < 100, "a small part: {held}");
        assert_eq!(drain(&mut fund, at(60_000)) + held, 1_000, "time does not bring them back");
        fund.report(at(60_000), 0, held);
        forget(&mut fund);
        assert_eq!(drain(&mut fund, at(60_000)), held, "unless they are given back");
    }

    #[test]
    fn a_minute_of_a_key_is_its_limit_and_the_wait_is_true() {
        let mut fund = Fund::full(at(0), Rate::per_minute(7));
        assert_eq!(drain(&mut fund, at(0)), 7);
        forget(&mut fund);
        let Dole::Later(wait) = fund.ask(at(0), ONE, 1, 2) else { panic!("it is empty") };
        assert_eq!(fund.serve(at(0) + (wait - 1), 2), None);
        assert_eq!(fund.serve(at(0) + wait, 2), Some((ONE, 1)));
    }

    #[test]
    fn who_asks_later_is_served_later_and_each_one_when_it_was_told() {
        let mut fund = Fund::full(at(0), Rate::per_minute(60));
        drain(&mut fund, at(0));
        forget(&mut fund);
        let mut told = Vec::new();
        for (ms, shard, wanted) in [(0, 1, 2), (300, 0, 3), (400, 1, 1), (500, 2, 1), (500, 2, 1)] {
            let Dole::Later(wait) = fund.ask(at(ms), ShardId(shard), wanted, 3) else { panic!("it is empty") };
            told.extend((0..u64::from(wanted)).map(|place| (at(ms + 1_000 * place) + wait, ShardId(shard))));
        }
        for (told_at, shard) in told {
            assert_eq!(fund.serve(Mono(told_at.0 - 1), 3), None);
            assert_eq!(fund.serve(told_at, 3), Some((shard, 1)));
            fund.report(told_at, 1, 0);
        }
        assert_eq!(fund.next(), None);
    }

    #[test]
    fn another_rate_takes_effect_at_once_and_forgets_nothing_that_was_used() {
        let mut fund = Fund::full(at(0), Rate::per_second(100));
        drain(&mut fund, at(0));
        forget(&mut fund);
        fund.rerate(at(0), Rate::per_second(1_000));
        assert_eq!(drain(&mut fund, at(0)), 9_000);
        forget(&mut fund);
        fund.rerate(at(0), Rate::per_second(10));
        assert_eq!(drain(&mut fund, at(0)), 0);
        forget(&mut fund);
        assert_eq!(drain(&mut fund, at(1_000)), 10);
    }
}
