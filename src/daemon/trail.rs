//! The audit trail of keys and credentials, read a page at a time, the newest first. Reads the store, changes nothing.

use crate::store::Store;
use crate::store::control::EventRow;
use serde_json::{Value, json};
use std::ops::ControlFlow;

/// Events of one page at most.
const PAGE_EVENTS_MAX: u64 = 200;
/// Bytes of a page, so that it fits a frame: after the event that goes beyond it, it ends.
const PAGE_BYTES: usize = 256 * 1024;
/// Events that are looked at for one page; what is further back is for the next. Some milliseconds of the clerk's time.
const LOOKED_AT_MAX: u32 = 2_000;

/// What the trail has other events for: licence and settings.
fn is_about_keys(event: &Value) -> bool {
    let event_type = event["event_type"].as_str().unwrap_or_default();
    event_type.starts_with("ssh_key.") || event_type == "user.login"
}

/// `{limit, before, since_ms, until_ms}` to `{events, next}`: `next` is `before` of the page behind, null at the end.
pub(super) fn page(store: &Store, arguments: &Value) -> Result<Value, String> {
    let number = |name: &str, usual: u64| match &arguments[name] {
        Value::Null => Ok(usual),
        value => value.as_u64().ok_or_else(|| format!("\"{name}\" must be a whole number")),
    };
    let limit = number("limit", PAGE_EVENTS_MAX)?.min(PAGE_EVENTS_MAX) as usize;
    let (since_ms, until_ms) = (number("since_ms", 0)?, number("until_ms", u64::MAX)?);
    let (mut events, mut bytes, mut looked_at, mut next) = (Vec::new(), 0, 0, None);
    let each = |row: EventRow| {
        if events.len() >= limit || bytes >= PAGE_BYTES || looked_at >= LOOKED_AT_MAX {
            next = Some(row.sequence + 1);
            return ControlFlow::Break(());
        }
        looked_at += 1;
        if (since_ms..=until_ms).contains(&row.at_ms)
            && let Ok(event) = serde_json::from_str::<Value>(&row.text)
            && is_about_keys(&event)
        {
            bytes += row.text.len();
            events.push(event);
        }
        ControlFlow::Continue(())
    };
    let before = number("before", u64::MAX)?;
    let read = store.snapshot().and_then(|snapshot| snapshot.events_before(before, each));
    read.map_err(|error| format!("the audit trail cannot be read: {error}"))?;
    Ok(json!({ "events": events, "next": next }))
}
