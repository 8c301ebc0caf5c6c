//! `relay`: a message relay for AI coding agents. The floors, drawn; each imports only from those below it.
//!
//! ```text
//! floor 6  cli     vendor                       one file a command; the vendor's own program
//! floor 5  daemon                               settings, open, spawn, wait, drain
//! floor 4  shard   writer   keeper   history    a thread per core; three threads of the store
//! floor 3  uring   mesh   client   store   http the kernel; queues between threads; a blocking client; the disk; HTTP
//! floor 2  relay   tls   licence                the heart: events in, outbox out; records of TLS; what a licence grants
//! floor 1  wire                                 bytes to Frame and back, both dialects
//! floor 0  base                                 words every floor shares
//! ```
//! `docs/ARCHITECTURE.md` walks one message through the house; `tests/tidy.rs` holds the direction rules.

pub mod base;
pub mod cli;
pub mod client;
pub mod daemon;
pub mod history;
pub mod http;
pub mod keeper;
pub mod licence;
pub mod mesh;
pub mod relay;
pub mod shard;
pub mod store;
pub mod tls;
pub mod uring;
pub mod vendor;
pub mod wire;
pub mod writer;
