//! Plain numbers of one shard: counted where things happen, read by the census.

use super::sightings::Sighting;
use crate::base::keys::KeyId;
use crate::base::{CloseReason, RefuseReason};

/// What has happened since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// SENDs and SUBMITs that were read.
    pub messages_in: u64,
    /// Deliveries handed to connections, repeats included.
    pub messages_out: u64,
    /// Of those, repeats.
    pub redelivered: u64,
    /// Messages given a place in a recipient's order.
    pub accepted: u64,
    /// Deliveries acknowledged.
    pub acknowledged: u64,
    /// Messages that their recipients said to have read, each once.
    pub reads: u64,
    /// The same said in vain, by `ReadIgnored as usize`.
    pub reads_ignored: [u64; ReadIgnored::ALL.len()],
    /// SENDs that were sent before and were not relayed again.
    pub duplicates: u64,
    /// Sessions welcomed.
    pub welcomed: u64,
    /// Sessions that went on after a lost connection.
    pub resumed: u64,
    /// Names taken over from a silent or superseded connection.
    pub taken_over: u64,
    /// Agents that were forgotten before the retention time, to make room for others.
    pub forgotten_early: u64,
    /// Connections closed, by `CloseReason as usize`.
    pub closes: [u64; CloseReason::ALL.len() + 1],
    /// Messages refused or failed, by `RefuseReason as usize`.
    pub refusals: [u64; RefuseReason::Forbidden as usize + 1],
    /// HELLOs whose credential was not good enough, by `AuthFailure as usize`.
    pub auth_failures: [u64; AuthFailure::ALL.len()],
    /// Of those, answered late because too many came from one source.
    pub auth_delayed: u64,
    /// Times that a connection was left unread: a rate was used up, or the writer was behind.
    pub pauses: u64,
    /// Times that one was left unread because the writer was behind.
    pub pressed: u64,
}

/// How a HELLO can fail on its credential.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum AuthFailure {
    Missing,
    UnknownKey,
    Expired,
    Invalid,
    NameNotAllowed,
}

impl AuthFailure {
    /// Every kind, for metrics.
    pub const ALL: [AuthFailure; 5] = [
        AuthFailure::Missing,
        AuthFailure::UnknownKey,
        AuthFailure::Expired,
        AuthFailure::Invalid,
        AuthFailure::NameNotAllowed,
    ];

    /// Its name in metrics and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            AuthFailure::Missing => "missing",
            AuthFailure::UnknownKey => "unknown_key",
            AuthFailure::Expired => "expired",
            AuthFailure::Invalid => "invalid",
            AuthFailure::NameNotAllowed => "name_not_allowed",
        }
    }
}

/// Why it is ignored that somebody says to have read a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadIgnored {
    /// No such message was for that agent, or none that is still kept.
    Unknown,
    /// It was for that agent, and has not been delivered, or failed.
    Undelivered,
    /// It was said before.
    Repeated,
    /// Too many wait to be looked up, or the disk takes nothing.
    Busy,
}

impl ReadIgnored {
    /// Every reason, for `status`.
    pub const ALL: [ReadIgnored; 4] =
        [ReadIgnored::Unknown, ReadIgnored::Undelivered, ReadIgnored::Repeated, ReadIgnored::Busy];

    /// Its name in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            ReadIgnored::Unknown => "unknown_message",
            ReadIgnored::Undelivered => "not_delivered",
            ReadIgnored::Repeated => "repeated",
            ReadIgnored::Busy => "busy",
        }
    }
}

/// What one API key was used for at this shard, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyUse {
    /// The key.
    pub key: KeyId,
    /// SENDs read under it.
    pub messages: u64,
    /// When a connection last came in or sent under it, milliseconds since 1970.
    pub last_used_ms: u64,
}

/// What is here now, beside what has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// What has happened.
    pub counters: Counters,
    /// Connections.
    pub connections: u32,
    /// Of those, without HELLO.
    pub half_open: u32,
    /// Agents connected.
    pub live: u32,
    /// Agents known.
    pub known: u32,
    /// Messages waiting for recipients, in flight included.
    pub waiting_messages: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Of those, bytes in memory.
    pub resident_bytes: u64,
    /// SENDs waiting for unknown names.
    pub grace: u32,
    /// Topics with subscribers.
    pub topics: u32,
    /// Connections that are left unread.
    pub paused: u32,
    /// Of those, because the writer is behind.
    pub pressed: u32,
    /// Seats taken in the whole daemon; of shard 0 alone, as the next two.
    pub seats: u32,
    /// The most that were ever taken.
    pub seats_peak: u32,
    /// A day (UTC, days since 1970) and the most that were taken in it.
    pub seats_today: (u64, u32),
    /// Keys that were used here.
    pub keys: Vec<KeyUse>,
    /// What the audit trail is to be told of credentials; each is told once.
    pub sightings: Vec<Sighting>,
}
