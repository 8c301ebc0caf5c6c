//! Words every floor shares: ids, time, limits, names, reasons, tiers, keys, chunks. Decides nothing, knows no thread.
#![forbid(unsafe_code)]

pub mod chunk;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod name;
pub mod reason;
pub mod table;
pub mod tier;
pub mod time;
pub mod whole;

pub use chunk::{Bytes, Chunks};
pub use ids::{AgentId, MessageId, Sequence, SessionId, ShardId};
pub use name::{Name, NameHash, NameHasher};
pub use reason::{CloseReason, RefuseReason};
pub use time::{Mono, Now};
pub use whole::Whole;

/// What does not change and has several owners, perhaps on several threads: one copy for all of them.
pub type Shared<T> = std::sync::Arc<T>;
