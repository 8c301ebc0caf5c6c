//! Tiers, features and limits as a value. What a licence grants is decided elsewhere and handed in.

/// What this daemon may do. `None` is unlimited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// The tier's name as the product prints it.
    pub tier: &'static str,
    /// Agents connected at once, over all shards.
    pub agents_max: Option<u32>,
    /// Messages per second, soft: above it senders are slowed, nothing is lost.
    pub messages_per_second: Option<u32>,
    /// Longest retention, in days.
    pub retention_days_max: Option<u32>,
}

impl Entitlement {
    /// No limit at all: tests, benchmarks, and every daemon until licences are enforced.
    pub const UNLIMITED: Entitlement =
        Entitlement { tier: "unlimited", agents_max: None, messages_per_second: None, retention_days_max: None };
}
