//! Coverage marks: what must have happened somewhere among the seeds, or the simulation tests less than it seems to.

use std::collections::BTreeMap;

/// How often each interesting thing happened.
#[derive(Clone, Default, Debug)]
pub struct Marks(pub BTreeMap<&'static str, u64>);

/// What must be seen in a whole run.
pub const REQUIRED: &[&str] = &[
    "a fan-out was parted",
    "a nameless sender",
    "accepted",
    "acknowledged",
    "another number of shards",
    "broken",
    "busy",
    "close: agent_limit",
    "close: duplicate_connection",
    "close: half_open_full",
    "close: hello_timeout",
    "close: known_agents_full",
    "close: key_revoked",
    "close: protocol",
    "close: corrupt",
    "close: shutdown",
    "close: silent",
    "close: unauthorized",
    "commit failed",
    "committed after a failure",
    "committed unheard",
    "crashed",
    "delivered receipt",
    "disk full",
    "duplicate after a restart",
    "durable receipt",
    "duplicate send",
    "expired",
    "failed receipt",
    "fan-out over shards",
    "fetched",
    "fetched in parts",
    "fetched too early",
    "forgotten",
    "forgotten record",
    "grace expired",
    "grace hit",
    "json delivery",
    "label sent again after a restart",
    "left unread for the writer",
    "lost in a crash",
    "lost in a crash, then sent again",
    "lost its state",
    "moved",
    "numbers missing after a restart",
    "orderly restart",
    "paused",
    "read again",
    "recipient full",
    "redelivered",
    "refused, then sent again",
    "replayed",
    "restored cold",
    "restored settled runs",
    "resumed",
    "resumed after a restart",
    "row newer than the mark",
    "sent five times",
    "spilled",
    "stopped",
    "submitted",
    "submitted again",
    "swept cold mail",
    "taken over",
    "told to slow down",
    "topic delivery",
    "writer full",
];

impl Marks {
    /// One more of it.
    pub fn hit(&mut self, mark: &'static str) {
        self.add(mark, 1);
    }

    /// Some more of it.
    pub fn add(&mut self, mark: &'static str, count: u64) {
        *self.0.entry(mark).or_default() += count;
    }

    /// Another world's marks as well.
    pub fn merge(&mut self, other: &Marks) {
        for (mark, count) in &other.0 {
            self.add(mark, *count);
        }
    }

    /// What has never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        REQUIRED.iter().copied().filter(|mark| self.0.get(mark).copied().unwrap_or(0) == 0).collect()
    }
}
