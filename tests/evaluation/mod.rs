//! Licences of evaluation builds, made when a test runs: what a daemon gets as AGENT_RELAY_LICENSE_KEY.

use agent_relay::base::tier::{Feature, Tier};
use agent_relay::licence::{Document, KeyHash, SigningKey};
use std::time::SystemTime;

/// The variable that a licence is handed over in.
pub(crate) const VARIABLE: &str = "AGENT_RELAY_LICENSE_KEY";
const DAY_MS: u64 = 24 * 3_600_000;

/// What an offline licence needs of its tier. Those that are made here for lower tiers name it as well.
pub(crate) const OFFLINE: Feature = Feature::OfflineLicense;

/// An offline licence of `tier`, good for thirty days.
pub(crate) fn licence(tier: Tier) -> String {
    let now_ms = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let document = Document::of_tier(tier, KeyHash([1; 32]), now_ms - 1_000, now_ms + 30 * DAY_MS);
    let mut features: Vec<String> = Feature::of_tier(tier).map(|feature| feature.name().to_owned()).collect();
    if tier != Tier::Enterprise {
        features.push(OFFLINE.name().to_owned());
    }
    Document { offline: true, features: Some(features), ..document }.sign(&signing_key())
}

/// The private half of what evaluation builds believe.
pub(crate) fn signing_key() -> SigningKey {
    SigningKey::parse(include_str!("../../scripts/evaluation.key")).unwrap()
}
