//! Plain numbers of one shard: counted where things happen, read by the census.

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
    /// SENDs that were sent before and were not relayed again.
    pub duplicates: u64,
    /// Sessions welcomed.
    pub welcomed: u64,
    /// Sessions that went on after a lost connection.
    pub resumed: u64,
    /// Names taken over from a silent or superseded connection.
    pub taken_over: u64,
    /// Connections closed, by `CloseReason as usize`.
    pub closes: [u64; CloseReason::ALL.len() + 1],
    /// Messages refused or failed, by `RefuseReason as usize`.
    pub refusals: [u64; RefuseReason::Stopping as usize + 1],
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
}
