//! What the store promises, on real files: round trips, keys, damage, copies, retention, formats.
#![allow(clippy::unwrap_used, reason = "the whole crate is a test")]

mod control;
mod copies;
mod damage;
mod fixtures;
mod journal;
mod keys;
mod life;
mod made;
