//! The real daemon, driven over its sockets and its command line, on every driver and with one shard and with several.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod auth;
mod away;
mod certificates;
mod client_tls;
mod command_line;
mod cpus;
mod durable;
#[path = "../evaluation/mod.rs"]
mod evaluation;
mod harness;
mod hostile;
mod keys;
mod known;
mod lifecycle;
mod limits;
mod order;
mod other_user;
mod paused;
mod peers;
mod press;
mod python;
mod receipts;
mod resume;
mod seccomp;
mod secrets;
mod slow;
mod takeover;
mod talk;
mod tiers;
mod tls;
mod topics;
mod transcripts;
mod tunnel;
