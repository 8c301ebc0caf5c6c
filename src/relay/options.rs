//! What a heart is told before its first event.

use crate::base::keys::Ring;
use crate::base::tier::Entitled;
use crate::base::{ShardId, limits};

/// What a heart is told once.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which shard this is.
    pub shard: ShardId,
    /// How many there are.
    pub shards: u16,
    /// This start of the daemon: greater than all before it.
    pub epoch: u32,
    /// Seed of the name hash: the same for all shards of a daemon, secret to the outside.
    pub name_seed: u64,
    /// Seed of session ids and resume tokens: different per shard, secret to everyone.
    pub token_seed: [u8; 32],
    /// Whether a message is handed to its recipient only when the record that holds it is committed.
    pub strict: bool,
    /// Bounds.
    pub bounds: Bounds,
    /// What the licence grants.
    pub entitlement: Entitled,
    /// Whether HELLO needs a credential from everyone.
    pub require_auth: bool,
    /// Whether a client certificate may speak for the agents it names alone.
    pub bind_certificates: bool,
    /// The keys there are.
    pub keys: Ring,
}

/// The bounds that an operator may set; never above those of `base::limits`.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Bounds {
    pub half_open_max: usize,
    pub known_agents_max: usize,
    pub subscriptions_max: usize,
    pub in_flight_max: u32,
    pub in_flight_bytes_max: usize,
    pub waiting_bytes_max: usize,
    pub waiting_messages_max: usize,
    pub owed_bytes_max: usize,
    pub shard_waiting_bytes_max: usize,
    /// Nanoseconds that owed messages and silent agents are kept.
    pub retention: u64,
    /// By how much the wall clock is ahead of the time that is believed, milliseconds: so much of what is stored seems
    /// older than it is.
    pub clock_ahead_ms: u64,
    /// SENDs per second and connection; 0: as many as come.
    pub messages_per_second: u32,
    /// SENDs that a connection may save up.
    pub burst: u32,
    /// Frames beside messages and acknowledgements, per second and connection.
    pub control_per_second: u32,
    /// As many of them may be saved up.
    pub control_burst: u32,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            half_open_max: limits::HALF_OPEN_MAX,
            known_agents_max: limits::KNOWN_AGENTS_MAX,
            subscriptions_max: limits::SUBSCRIPTIONS_MAX,
            in_flight_max: limits::IN_FLIGHT_MAX,
            in_flight_bytes_max: limits::IN_FLIGHT_BYTES_MAX,
            waiting_bytes_max: limits::WAITING_BYTES_MAX,
            waiting_messages_max: limits::WAITING_MESSAGES_MAX,
            owed_bytes_max: limits::OWED_BYTES_MAX,
            shard_waiting_bytes_max: limits::SHARD_WAITING_BYTES_MAX,
            retention: limits::RETENTION,
            clock_ahead_ms: 0,
            messages_per_second: 0,
            burst: 0,
            control_per_second: limits::CONTROL_PER_SECOND,
            control_burst: limits::CONTROL_BURST,
        }
    }
}
