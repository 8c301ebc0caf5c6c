//! May this connection send now? An integer token bucket; time is an argument.

use crate::base::Mono;

/// Tokens in billionths, so that a second of `n` per second is exact.
const TOKEN: u64 = 1_000_000_000;

/// What a connection has saved up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    used: u64,
    filled_at: Mono,
}

impl Bucket {
    /// Takes one token of `per_second` (0: there is no limit), of which at most `burst` are saved. Gives 0, or how many
    /// milliseconds from now the next token is there.
    pub(super) fn take(&mut self, now: Mono, per_second: u32, burst: u32) -> u32 {
        if per_second == 0 {
            return 0;
        }
        let (rate, size) = (u64::from(per_second), u64::from(burst.max(1)) * TOKEN);
        self.used = self.used.saturating_sub(now.since(self.filled_at).saturating_mul(rate));
        self.filled_at = now;
        if self.used + TOKEN <= size {
            self.used += TOKEN;
            return 0;
        }
        let missing = self.used + TOKEN - size;
        (missing.div_ceil(rate)).div_ceil(1_000_000).min(u64::from(u32::MAX)) as u32
    }
}

impl Bucket {
    /// Takes so many tokens, whether they are there or not; gives 0, or how many nanoseconds from now nothing is owed.
    pub(super) fn spend(&mut self, now: Mono, tokens: u64, per_second: u32, burst: u32) -> u64 {
        let (rate, size) = (u64::from(per_second.max(1)), u64::from(burst.max(1)) * TOKEN);
        self.used = self.used.saturating_sub(now.since(self.filled_at).saturating_mul(rate));
        self.filled_at = now;
        self.used = self.used.saturating_add(tokens.saturating_mul(TOKEN));
        self.used.saturating_sub(size).div_ceil(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_and_the_wait_is_true() {
        let mut bucket = Bucket::default();
        let start = Mono(Mono::ms(1_000));
        for _ in 0..5 {
            assert_eq!(bucket.take(start, 100, 5), 0);
        }
        let wait_ms = bucket.take(start, 100, 5);
        assert_eq!(wait_ms, 10);
        assert!(bucket.take(start + Mono::ms(9), 100, 5) > 0);
        assert_eq!(bucket.take(start + Mono::ms(10), 100, 5), 0);
        assert!(bucket.take(start + Mono::ms(10), 100, 5) > 0);
    }

    #[test]
    fn what_is_spent_beyond_the_burst_is_owed_until_it_has_come() {
        let mut bucket = Bucket::default();
        let start = Mono(Mono::ms(1_000));
        assert_eq!(bucket.spend(start, 5, 100, 5), 0);
        assert_eq!(bucket.spend(start, 3, 100, 5), Mono::ms(30));
        assert_eq!(bucket.spend(start + Mono::ms(29), 0, 100, 5), Mono::ms(1));
        assert_eq!(bucket.spend(start + Mono::ms(30), 0, 100, 5), 0);
        assert_eq!(bucket.spend(start + Mono::ms(30), u64::MAX, 1, 1), (u64::MAX - TOKEN).div_ceil(1));
    }

    #[test]
    fn without_a_rate_nobody_waits_and_a_long_silence_saves_no_more_than_the_burst() {
        let mut bucket = Bucket::default();
        assert_eq!((0..1_000).map(|_| bucket.take(Mono(5), 0, 0)).max(), Some(0));
        let later = Mono(Mono::ms(1_000_000_000));
        let taken = (0..100).filter(|_| bucket.take(later, 10, 7) == 0).count();
        assert_eq!(taken, 7);
    }
}
