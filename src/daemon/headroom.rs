//! How near the limits of the tier are, and what the next tier would give. For `status`, and later the dashboard.

use crate::base::tier::{Entitlement, Tier};

/// From this share of a limit on, in percent, it is said.
const NEAR_PERCENT: u64 = 90;

/// A limit of a tier; none: there is none.
type LimitOf = fn(&Entitlement) -> Option<u32>;

/// One sentence for each limit that is nearly reached: agents connected, messages per second of late.
pub(super) fn advice(entitlement: &Entitlement, agents: u64, messages_per_second: u64) -> Vec<String> {
    let next = entitlement.tier.next().map(|tier| (tier, Entitlement::of_tier(tier)));
    let rows: [(&str, u64, LimitOf); 2] = [
        ("agents", agents, |entitlement| entitlement.agents_max),
        ("messages per second", messages_per_second, |entitlement| entitlement.messages_per_second),
    ];
    let mut sentences = Vec::new();
    for (what, used, limit_of) in rows {
        let Some(limit) = limit_of(entitlement) else { continue };
        if used * 100 < u64::from(limit) * NEAR_PERCENT {
            continue;
        }
        let gives =
            next.as_ref().map_or_else(String::new, |(tier, entitlement)| gives(*tier, limit_of(entitlement), what));
        sentences.push(format!("{used} of {limit} {what}{gives}"));
    }
    sentences
}

fn gives(tier: Tier, limit: Option<u32>, what: &str) -> String {
    let limit = limit.map_or_else(|| "any number of".to_owned(), |limit| limit.to_string());
    format!(": the {} tier allows {limit} {what}; `relay license activate KEY` activates it", tier.title())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_nine_tenths_of_a_limit_on_the_next_tier_is_named() {
        let community = Entitlement::of_tier(Tier::Community);
        assert!(advice(&community, 8, 89).is_empty());
        assert_eq!(
            advice(&community, 9, 90),
            [
                "9 of 10 agents: the Pro tier allows 100 agents; `relay license activate KEY` activates it",
                "90 of 100 messages per second: the Pro tier allows 1000 messages per second; `relay license activate KEY` activates it"
            ]
        );
        let team = advice(&Entitlement::of_tier(Tier::Team), 500, 0);
        assert!(team[0].contains("the Enterprise tier allows any number of agents"), "{team:?}");
        assert!(advice(&Entitlement::unlimited(), 1_000_000, 1_000_000).is_empty());
    }
}
