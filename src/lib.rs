//! `relay`: a message relay for AI coding agents. The floors, drawn; each imports only from those below it.
//!
//! ```text
//! floor 6  cli                                  one file a command
//! floor 5  daemon                               settings, open, spawn, wait, drain
//! floor 4  shard   writer   keeper   history    a thread per core; three threads of the store
//! floor 3  uring   mesh   client   store        the kernel; queues between threads; a blocking client; the disk
//! floor 2  relay                                the heart: events in, outbox out, nothing else
//! floor 1  wire                                 bytes to Frame and back, both dialects
//! floor 0  base                                 words every floor shares
//! ```
//! `docs/ARCHITECTURE.md` walks one message through the house; `tests/tidy.rs` holds the direction rules.

pub mod base;
pub mod cli;
pub mod client;
pub mod daemon;
pub mod history;
pub mod keeper;
pub mod mesh;
pub mod relay;
pub mod shard;
pub mod store;
pub mod uring;
pub mod wire;
pub mod writer;
