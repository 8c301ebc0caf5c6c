//! Faults against the real daemon: kill -9, power cuts, full and broken disks, damaged files. What was promised is kept in
//! this process's memory (`ledger`), and every promise that is broken is named.
//!
//! `scripts/crash.sh` and `scripts/power-cut.sh` run the same code for longer.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod agent;
mod beginnings;
mod broken_disk;
mod copies;
mod corrupt;
mod crash;
mod daemon;
mod dice;
mod disk;
#[path = "../evaluation/mod.rs"]
mod evaluation;
mod growth;
mod keys;
mod ledger;
mod ledger_tests;
mod mount;
mod power;
mod questions;
mod relaxed;
mod retention;
mod swarm;
mod tally;
