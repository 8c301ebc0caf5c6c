//! The only clock the heart ever sees: a value handed in by whoever drives it.

use std::ops::{Add, Sub};

/// Nanoseconds of a monotonic clock (CLOCK_MONOTONIC in the daemon, a counter in simulated worlds).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Mono(pub u64);

impl Mono {
    /// `ms` milliseconds as a span.
    pub const fn ms(ms: u64) -> u64 {
        ms.saturating_mul(1_000_000)
    }

    /// Nanoseconds from `earlier` to here; 0 when `earlier` is later.
    pub fn since(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Mono {
    type Output = Mono;
    fn add(self, span_ns: u64) -> Mono {
        Mono(self.0.saturating_add(span_ns))
    }
}

impl Sub<u64> for Mono {
    type Output = Mono;
    fn sub(self, span_ns: u64) -> Mono {
        Mono(self.0.saturating_sub(span_ns))
    }
}

/// One instant on both clocks. Deadlines use `mono`; what people read uses `wall_ms`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Never goes back.
    pub mono: Mono,
    /// Milliseconds since 1970 (UTC); may jump.
    pub wall_ms: u64,
}
