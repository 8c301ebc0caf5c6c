//! The licence under which the relay is measured: an evaluation build's, of the highest tier, made when a daemon starts.
#![forbid(unsafe_code)]

use agent_relay::base::tier::Tier;
use agent_relay::licence::{Document, KeyHash, SigningKey};
use std::time::SystemTime;

/// The variable that it is handed over in.
pub const VARIABLE: &str = "AGENT_RELAY_LICENSE_KEY";
const DAY_MS: u64 = 24 * 3_600_000;

/// An offline licence, good for a day.
pub fn evaluation() -> Result<String, String> {
    let key = SigningKey::parse(include_str!("../../scripts/evaluation.key"))
        .map_err(|error| format!("scripts/evaluation.key: {error}"))?;
    let now_ms = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
    let document = Document::of_tier(Tier::Enterprise, KeyHash([1; 32]), now_ms.saturating_sub(1_000), now_ms + DAY_MS);
    Ok(Document { offline: true, ..document }.sign(&key))
}
