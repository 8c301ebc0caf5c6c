//! What the licence server answers. Whatever it says about a licence it signs, a refusal too: a daemon believes nothing else.

use super::registry::{DAEMON_BYTES_MAX, Registry, RegistryError};
use crate::base::tier::Tier;
use crate::http::{Reply, Request};
use crate::licence::{DAYS_KEPT, Day, Document, KeyHash, SigningKey};
use serde::Deserialize;

/// Longest text that a question may be marked with.
const NONCE_BYTES_MAX: usize = 64;

/// POST /v1/license.
#[derive(Deserialize)]
struct Question {
    key_hash: String,
    #[serde(default)]
    nonce: String,
}

/// POST /v1/usage.
#[derive(Deserialize)]
struct UsageReport {
    key_hash: String,
    daemon: String,
    days: Vec<UsageDay>,
}

#[derive(Deserialize)]
struct UsageDay {
    date: String,
    #[serde(flatten)]
    day: Day,
}

/// The answer to one request.
pub(super) fn answer(registry: &Registry, key: &SigningKey, request: &Request, now_ms: u64) -> Reply {
    let done = match (request.path.as_str(), request.method.as_str()) {
        ("/v1/license", "POST") => licence(registry, key, &request.body, now_ms),
        ("/v1/usage", "POST") => usage(registry, &request.body),
        ("/healthz", "GET" | "HEAD") => Ok(Reply::text(200, "ok\n")),
        ("/v1/license" | "/v1/usage", _) => Ok(Reply::not_allowed("POST")),
        ("/healthz", _) => Ok(Reply::not_allowed("GET, HEAD")),
        _ => Ok(error(404, "there is nothing here")),
    };
    done.unwrap_or_else(|failure| match failure {
        RegistryError::UsageFull => error(429, &failure.to_string()),
        other => {
            tracing::error!(error = %other, "the registry failed");
            error(503, "try again later")
        }
    })
}

fn error(status: u16, sentence: &str) -> Reply {
    Reply::json(status, serde_json::json!({ "error": sentence }).to_string())
}

fn licence(registry: &Registry, key: &SigningKey, body: &[u8], now_ms: u64) -> Result<Reply, RegistryError> {
    let question =
        serde_json::from_slice::<Question>(body).ok().filter(|question| question.nonce.len() <= NONCE_BYTES_MAX);
    let asked = question.and_then(|question| Some((KeyHash::parse(&question.key_hash)?, question.nonce)));
    let Some((key_hash, nonce)) = asked else {
        return Ok(error(400, "key_hash must be 64 hexadecimal digits, nonce at most 64 characters"));
    };
    let document = match registry.find(key_hash)? {
        Some(licence) => licence.document(key_hash, now_ms, &nonce),
        None => Document {
            revoked_at_ms: Some(now_ms),
            reason: Some("unknown".to_owned()),
            nonce,
            ..Document::of_tier(Tier::Community, key_hash, now_ms, now_ms)
        },
    };
    Ok(Reply::text(200, document.sign(key)))
}

fn usage(registry: &Registry, body: &[u8]) -> Result<Reply, RegistryError> {
    let Some((key_hash, daemon, days)) = serde_json::from_slice(body).ok().and_then(checked) else {
        return Ok(error(400, "key_hash, daemon and days [{date, agents_peak, messages_sent}] are required"));
    };
    if registry.find(key_hash)?.is_none() {
        return Ok(error(404, "no such licence"));
    }
    registry.note_usage(key_hash, &daemon, &days)?;
    Ok(Reply::json(200, serde_json::json!({ "accepted": days.len() }).to_string()))
}

fn checked(report: UsageReport) -> Option<(KeyHash, String, Vec<(String, Day)>)> {
    let key_hash = KeyHash::parse(&report.key_hash)?;
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let daemon = (!report.daemon.is_empty() && report.daemon.len() <= DAEMON_BYTES_MAX && plain(&report.daemon))
        .then_some(report.daemon)?;
    if report.days.len() > DAYS_KEPT || !report.days.iter().all(|row| row.date.parse::<jiff::civil::Date>().is_ok()) {
        return None;
    }
    let days = report.days.into_iter().filter(|row| row.date.len() == 10 && plain(&row.date));
    Some((key_hash, daemon, days.map(|row| (row.date, row.day)).collect()))
}
