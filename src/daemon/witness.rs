//! What shards saw of credentials, as audit events: a key that comes from a place it has not come from of late, and
//! credentials that were refused, told together so that no storm of guesses fills the trail. Kept in memory; at a start the
//! trail itself says which places are known. Writes nothing.

use super::audit::AuditEvent;
use super::presence::time_of;
use crate::base::keys::{ApiKey, KeyId, Source};
use crate::base::limits::{
    KEY_PLACES_MAX, KEY_PLACES_PER_HOUR_MAX, PLACES_READ_MAX, REFUSALS_KNOWN_MAX, REFUSALS_PER_HOUR_MAX,
    REFUSALS_TOLD_EVERY_MS,
};
use crate::relay::{AuthFailure, Sighted, Sighting};
use crate::store::Store;
use crate::store::control::EventRow;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

const HOUR_MS: u64 = 3_600_000;
/// What a key that comes from somewhere new is in the event model.
const USED: &str = "ssh_key.used";

/// What is remembered of places.
#[derive(Default)]
pub(super) struct Witness {
    places: BTreeMap<KeyId, Places>,
    refusals: BTreeMap<(Source, &'static str), Refusals>,
    refusals_told: Hourly,
}

/// Where one key came from.
#[derive(Default)]
struct Places {
    /// Of late, the latest last.
    latest: VecDeque<Source>,
    told: Hourly,
}

/// How many events were told in which hour.
#[derive(Default)]
struct Hourly {
    hour: u64,
    count: u32,
}

impl Hourly {
    /// Whether one more may be told.
    fn takes_one(&mut self, now_ms: u64, most: u32) -> bool {
        if self.hour != now_ms / HOUR_MS {
            *self = Hourly { hour: now_ms / HOUR_MS, count: 0 };
        }
        let takes = self.count < most;
        self.count += u32::from(takes);
        takes
    }
}

/// Refusals of one place for one reason.
struct Refusals {
    told_at_ms: u64,
    untold: u64,
}

impl Witness {
    /// What the trail remembers of places. One that cannot be read is no reason not to start: the store's check names it.
    pub(super) fn of(store: &Store) -> Witness {
        let mut witness = Witness::default();
        let mut left = PLACES_READ_MAX;
        let each = |row: EventRow| {
            if let Some((key, place)) = place_in(&row.text) {
                let latest = &mut witness.places.entry(key).or_default().latest;
                if latest.len() < KEY_PLACES_MAX && !latest.contains(&place) {
                    latest.push_front(place);
                }
            }
            left -= 1;
            if left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        drop(store.snapshot().and_then(|snapshot| snapshot.events_before(u64::MAX, each)));
        witness
    }

    /// The events that come of what was seen; keys that are gone have none.
    pub(super) fn events(&mut self, seen: &[Sighting], keys: &BTreeMap<KeyId, ApiKey>, now_ms: u64) -> Vec<AuditEvent> {
        self.places.retain(|id, _| keys.contains_key(id));
        seen.iter()
            .filter_map(|seen| match seen.what {
                Sighted::Used { key, by_token } => self.used(seen, keys.get(&key)?, by_token, now_ms),
                Sighted::Refused(failure) => self.refused(seen, failure, now_ms),
            })
            .collect()
    }

    fn used(&mut self, seen: &Sighting, key: &ApiKey, by_token: bool, now_ms: u64) -> Option<AuditEvent> {
        let places = self.places.entry(key.id).or_default();
        let known = places.latest.iter().position(|place| *place == seen.source);
        known.map(|at| places.latest.remove(at));
        if places.latest.len() >= KEY_PLACES_MAX {
            places.latest.pop_front();
        }
        places.latest.push_back(seen.source);
        if known.is_some() || !places.told.takes_one(now_ms, KEY_PLACES_PER_HOUR_MAX) {
            return None;
        }
        let mut meta = meta_of(key);
        meta.insert("method".to_owned(), json!(if by_token { "token" } else { "key" }));
        meta.insert("agent".to_owned(), json!(&*seen.agent));
        let id = key.id.to_string();
        let event = AuditEvent::new(USED, &format!("key:{id}"), ("ssh_key", &id), meta, seen.at_ms);
        Some(event.from(&seen.source))
    }

    fn refused(&mut self, seen: &Sighting, failure: AuthFailure, now_ms: u64) -> Option<AuditEvent> {
        let about = (seen.source, failure.name());
        if self.refusals.len() >= REFUSALS_KNOWN_MAX && !self.refusals.contains_key(&about) {
            let oldest = self.refusals.iter().min_by_key(|(_, refusals)| refusals.told_at_ms);
            let oldest = oldest.map(|(about, _)| *about);
            oldest.map(|oldest| self.refusals.remove(&oldest));
        }
        let refusals = self.refusals.entry(about).or_insert(Refusals { told_at_ms: 0, untold: 0 });
        refusals.untold = refusals.untold.saturating_add(seen.count);
        if refusals.told_at_ms != 0 && now_ms.abs_diff(refusals.told_at_ms) < REFUSALS_TOLD_EVERY_MS {
            return None;
        }
        if !self.refusals_told.takes_one(now_ms, REFUSALS_PER_HOUR_MAX) {
            return None;
        }
        refusals.told_at_ms = now_ms;
        let count = std::mem::take(&mut refusals.untold);
        let mut meta = Map::new();
        let members = [
            ("method", json!("key")),
            ("success", json!(false)),
            ("reason", json!(failure.name())),
            ("agent", json!(&*seen.agent)),
            ("count", json!(count)),
        ];
        meta.extend(members.map(|(name, value)| (name.to_owned(), value)));
        let who = seen.source.to_string();
        Some(AuditEvent::new("user.login", &who, ("user", &who), meta, seen.at_ms).warning().from(&seen.source))
    }
}

/// The key, and where it came from, if an event tells of that.
fn place_in(event: &str) -> Option<(KeyId, Source)> {
    if !event.contains(USED) {
        return None;
    }
    let event: Value = serde_json::from_str(event).ok()?;
    let place = event["ip"].as_str().or(event["meta"]["source"].as_str())?;
    let is_used = event["event_type"] == USED && event["meta"]["agent"].is_string();
    is_used.then_some((KeyId::parse(event["target_id"].as_str()?)?, Source::parse(place)?))
}

/// What every event about a key says of it.
pub(super) fn meta_of(key: &ApiKey) -> Map<String, Value> {
    let mut meta = Map::new();
    meta.insert("key_prefix".to_owned(), json!(key.prefix));
    meta.insert("scopes".to_owned(), json!(key.scopes.names()));
    meta.insert("expires_at".to_owned(), json!(key.expires_at_ms.and_then(time_of)));
    meta
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::keys::Scopes;

    const NOW: u64 = 1_800_000_000_000;

    fn keys() -> BTreeMap<KeyId, ApiKey> {
        let key = ApiKey {
            id: KeyId([1; 16]),
            hash: [0; 32],
            hash_before: None,
            prefix: "ar_key_AbCdEfGh".into(),
            name: "build".into(),
            description: "".into(),
            scopes: Scopes::USUAL,
            agents: None,
            per_minute: 1,
            created_at_ms: NOW,
            created_by: "uid:0".into(),
            expires_at_ms: None,
            revoked_at_ms: None,
            last_used_at_ms: None,
            total_messages: 0,
        };
        BTreeMap::from([(key.id, key)])
    }

    fn place(number: u32) -> Source {
        Source::of_address(std::net::Ipv4Addr::from(0x0a00_0000 + number).into())
    }

    fn used(from: Source) -> Sighting {
        let what = Sighted::Used { key: KeyId([1; 16]), by_token: false };
        Sighting { what, source: from, agent: "ann".into(), at_ms: NOW, count: 1 }
    }

    fn refused(from: Source, count: u64) -> Sighting {
        Sighting { what: Sighted::Refused(AuthFailure::UnknownKey), count, ..used(from) }
    }

    fn texts(events: &[AuditEvent]) -> Vec<Value> {
        events.iter().map(|event| serde_json::from_str(&event.to_json()).unwrap()).collect()
    }

    #[test]
    fn a_key_is_told_of_once_from_each_place_that_is_not_among_its_latest() {
        let mut witness = Witness::default();
        let told = texts(&witness.events(&[used(place(1)), used(place(1)), used(Source::of_user(7))], &keys(), NOW));
        assert_eq!(told.len(), 2);
        let first = json!({
            "key_prefix": "ar_key_AbCdEfGh", "scopes": ["send", "receive"], "expires_at": null, "method": "key",
            "agent": "ann",
        });
        assert_eq!(
            (&told[0]["event_type"], &told[0]["ip"], &told[0]["meta"]),
            (&json!("ssh_key.used"), &json!("10.0.0.1"), &first)
        );
        assert_eq!((&told[1]["ip"], &told[1]["meta"]["source"]), (&Value::Null, &json!("uid:7")));
        assert_eq!(told[0]["target_id"], "01010101-0101-0101-0101-010101010101");
        // One that is used all the while is never forgotten; one that is not may be.
        for number in 2..50 {
            let told = witness.events(&[used(place(number)), used(place(1))], &keys(), NOW);
            assert_eq!(told.len(), 1, "{number}");
        }
        assert_eq!(witness.events(&[used(Source::of_user(7))], &keys(), NOW).len(), 1);
        assert_eq!(witness.places.values().map(|places| places.latest.len()).max(), Some(KEY_PLACES_MAX));
        let many: Vec<Sighting> = (100..10_000).map(|number| used(place(number))).collect();
        let told = witness.events(&many, &keys(), NOW).len();
        assert_eq!(told + 51, KEY_PLACES_PER_HOUR_MAX as usize, "nor does whoever has many addresses fill the trail");
        assert_eq!(witness.events(&[used(place(1))], &keys(), NOW + HOUR_MS).len(), 1);
        assert!(witness.events(&[used(place(1))], &BTreeMap::new(), NOW).is_empty(), "the key is gone");
        assert!(witness.places.is_empty());
    }

    #[test]
    fn refusals_are_told_with_their_number_and_no_storm_fills_the_trail() {
        let mut witness = Witness::default();
        let told = texts(&witness.events(&[refused(place(1), 3), refused(place(1), 4)], &keys(), NOW));
        assert_eq!(told.len(), 1);
        let meta = json!({ "method": "key", "success": false, "reason": "unknown_key", "agent": "ann", "count": 3 });
        assert_eq!(
            (&told[0]["event_type"], &told[0]["severity"], &told[0]["meta"]),
            (&json!("user.login"), &json!("warning"), &meta)
        );
        let later = texts(&witness.events(&[refused(place(1), 1)], &keys(), NOW + REFUSALS_TOLD_EVERY_MS));
        assert_eq!(later[0]["meta"]["count"], 5, "those of meanwhile are in it");
        let storm: Vec<Sighting> = (10..10_000).map(|number| refused(place(number), 1)).collect();
        assert!(witness.events(&storm, &keys(), NOW).len() <= REFUSALS_PER_HOUR_MAX as usize);
        assert!(witness.refusals.len() <= REFUSALS_KNOWN_MAX);
        assert_eq!(witness.events(&[refused(Source::of_user(1), 1)], &keys(), NOW + HOUR_MS).len(), 1, "the next hour");
    }
}
