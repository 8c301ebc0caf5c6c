//! The vendor's side, `relay-license`: makes signing keys, issues and revokes licences, and serves them.
#![forbid(unsafe_code)]

mod commands;
mod registry;
mod service;

pub use commands::main;
