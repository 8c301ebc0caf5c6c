//! What happened to keys, licence and settings, as events in the one form that hooks, plugins and the audit log read:
//! fourteen fields, always in this order. No secret is ever in one.

use crate::base::keys::Source;
use serde::Serialize;
use serde_json::{Map, Value};

/// One event. The order of the fields is the order of the members in JSON.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AuditEvent {
    event_id: String,
    event_type: &'static str,
    timestamp: String,
    user_id: Option<u64>,
    username: String,
    server_id: Option<u64>,
    server_name: Option<String>,
    target_type: &'static str,
    target_id: String,
    action: String,
    meta: Map<String, Value>,
    ip: Option<String>,
    user_agent: Option<String>,
    severity: &'static str,
    #[serde(skip)]
    at_ms: u64,
}

impl AuditEvent {
    /// `who` did `event_type` to a target at `at_ms`.
    pub(super) fn new(
        event_type: &'static str,
        who: &str,
        (target_type, target_id): (&'static str, &str),
        meta: Map<String, Value>,
        at_ms: u64,
    ) -> AuditEvent {
        AuditEvent {
            event_id: uuid(super::registrar::random_bytes().unwrap_or_default()),
            event_type,
            timestamp: timestamp(at_ms),
            user_id: None,
            username: who.to_owned(),
            server_id: None,
            server_name: None,
            target_type,
            target_id: target_id.to_owned(),
            action: event_type.replace('.', "_"),
            meta,
            ip: None,
            user_agent: None,
            // What is done here is somebody's wish: nothing that anybody must look at.
            severity: "info",
            at_ms,
        }
    }

    /// The same, caused from there: an address stands where addresses do, a user of this machine in `meta`.
    pub(super) fn from(mut self, source: &Source) -> AuditEvent {
        match source.to_string() {
            user if user.starts_with("uid:") => drop(self.meta.insert("source".to_owned(), user.into())),
            address => self.ip = Some(address),
        }
        self
    }

    /// The same as something that somebody should look at.
    pub(super) fn warning(self) -> AuditEvent {
        AuditEvent { severity: "warning", ..self }
    }

    pub(super) fn at_ms(&self) -> u64 {
        self.at_ms
    }

    /// As it is kept.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts, numbers and a map with text keys have a JSON form")
    }

    /// One line of the log; the whole event is in the store.
    pub(super) fn log(&self) {
        let (event, who, target) = (self.event_type, &*self.username, &*self.target_id);
        tracing::info!(event, who, target, "audit");
    }
}

/// UTC as Python's `isoformat` writes it: microseconds, left away when there are none, and `+00:00`.
fn timestamp(at_ms: u64) -> String {
    let time = i64::try_from(at_ms).ok().and_then(|at_ms| jiff::Timestamp::from_millisecond(at_ms).ok());
    let time = time.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let text = if at_ms.is_multiple_of(1_000) { format!("{time:.0}") } else { format!("{time:.6}") };
    text.replace('Z', "+00:00")
}

/// Random bytes as a version-4 UUID (RFC 9562).
pub(super) fn uuid_bytes(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn uuid(bytes: [u8; 16]) -> String {
    crate::base::keys::KeyId(uuid_bytes(bytes)).to_string()
}
