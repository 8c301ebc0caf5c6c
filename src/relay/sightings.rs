//! Who presented which credential from where: what the audit trail tells of HELLOs. Looked at once a HELLO, never a
//! message; bounded; whoever keeps the trail fetches it with the census. Decides nothing.

use super::counters::AuthFailure;
use crate::base::Name;
use crate::base::keys::{Grant, KeyId, Source};
use crate::base::limits::{REFUSALS_WAITING_MAX, SIGHTINGS_KNOWN_MAX};
use std::collections::BTreeSet;

/// Something that was seen, perhaps several times.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// What.
    pub what: Sighted,
    /// From where.
    pub source: Source,
    /// The name that the first of them claimed.
    pub agent: Name,
    /// When the first of them was, milliseconds since 1970.
    pub at_ms: u64,
    /// How many.
    pub count: u64,
}

/// What was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sighted {
    /// A good key, from somewhere this shard does not remember it from.
    Used {
        /// Which.
        key: KeyId,
        /// Whether a token spoke for it.
        by_token: bool,
    },
    /// A HELLO that went no further.
    Refused(AuthFailure),
}

/// What this shard has seen.
#[derive(Default)]
pub(super) struct Sightings {
    /// Where keys came from. Forgotten as a whole when it is full: whoever keeps the trail knows better.
    known: BTreeSet<(KeyId, Source)>,
    used: Vec<Sighting>,
    refused: Vec<Sighting>,
}

impl Sightings {
    /// A HELLO's credential was good.
    pub(super) fn used(&mut self, grant: &Grant, source: Source, agent: &str, at_ms: u64) {
        if self.known.contains(&(grant.key, source)) || self.used.len() >= SIGHTINGS_KNOWN_MAX {
            return;
        }
        if self.known.len() >= SIGHTINGS_KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert((grant.key, source));
        let what = Sighted::Used { key: grant.key, by_token: grant.by_token };
        self.used.push(Sighting { what, source, agent: agent.into(), at_ms, count: 1 });
    }

    /// It was not.
    pub(super) fn refused(&mut self, failure: AuthFailure, source: Source, agent: &str, at_ms: u64) {
        let what = Sighted::Refused(failure);
        let full = self.refused.len() >= REFUSALS_WAITING_MAX;
        match self.refused.iter_mut().find(|seen| seen.what == what && seen.source == source) {
            Some(seen) => seen.count += 1,
            None if full => {}
            None => self.refused.push(Sighting { what, source, agent: agent.into(), at_ms, count: 1 }),
        }
    }

    /// What was seen since this was last asked.
    pub(super) fn take(&mut self) -> Vec<Sighting> {
        let mut seen = std::mem::take(&mut self.used);
        seen.append(&mut self.refused);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::keys::Scopes;

    fn grant(key: u8) -> Grant {
        Grant {
            key: KeyId([key; 16]),
            scopes: Scopes::USUAL,
            agents: None,
            per_minute: 1,
            expires_at_ms: u64::MAX,
            secret: [0; 32],
            by_token: false,
        }
    }

    #[test]
    fn a_key_is_seen_once_from_each_place_and_refusals_are_counted() {
        let mut seen = Sightings::default();
        let (here, there) = (Source::of_user(1), Source::of_user(2));
        for source in [here, there, here] {
            seen.used(&grant(1), source, "ann", 7);
            seen.refused(AuthFailure::UnknownKey, source, "eve", 8);
        }
        seen.refused(AuthFailure::Expired, here, "eve", 9);
        let told: Vec<(bool, Source, u64)> = seen
            .take()
            .into_iter()
            .map(|seen| (matches!(seen.what, Sighted::Used { .. }), seen.source, seen.count))
            .collect();
        assert_eq!(told, [(true, here, 1), (true, there, 1), (false, here, 2), (false, there, 1), (false, here, 1)]);
        seen.used(&grant(1), here, "ann", 10);
        assert!(seen.take().is_empty(), "it is known");
    }

    #[test]
    fn a_storm_of_places_is_bounded() {
        let mut seen = Sightings::default();
        for round in 0..20 {
            for user in 0..1_000 {
                seen.used(&grant(1), Source::of_user(round * 1_000 + user), "ann", 0);
                seen.refused(AuthFailure::UnknownKey, Source::of_user(user), "eve", 0);
            }
            assert!(seen.known.len() <= SIGHTINGS_KNOWN_MAX);
            let told = seen.take();
            let refused = told.iter().filter(|seen| matches!(seen.what, Sighted::Refused(_))).count();
            assert_eq!((told.len() - refused, refused), (1_000, REFUSALS_WAITING_MAX));
        }
    }
}
