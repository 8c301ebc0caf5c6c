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

    /// Every tier that is sold or given away.
    pub const TIERS: [Entitlement; 4] = [
        Entitlement {
            tier: "community",
            agents_max: Some(10),
            messages_per_second: Some(100),
            retention_days_max: Some(7),
        },
        Entitlement {
            tier: "pro",
            agents_max: Some(100),
            messages_per_second: Some(1_000),
            retention_days_max: Some(90),
        },
        Entitlement {
            tier: "team",
            agents_max: Some(500),
            messages_per_second: Some(5_000),
            retention_days_max: Some(365),
        },
        Entitlement { tier: "enterprise", agents_max: None, messages_per_second: None, retention_days_max: None },
    ];

    /// The retention in force when `asked` days were asked for.
    pub fn retention_days(&self, asked: u32) -> u32 {
        self.retention_days_max.map_or(asked, |max| asked.min(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_lowered_to_what_the_tier_allows_and_never_raised() {
        let in_force = |asked| Entitlement::TIERS.map(|tier| tier.retention_days(asked));
        assert_eq!(in_force(120), [7, 90, 120, 120]);
        assert_eq!(in_force(36_500), [7, 90, 365, 36_500]);
        assert_eq!(in_force(2), [2, 2, 2, 2]);
        assert_eq!(Entitlement::UNLIMITED.retention_days(120), 120);
    }
}
