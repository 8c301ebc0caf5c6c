//! temporary
#![forbid(unsafe_code)]
mod historian;
pub use historian::Historian;
use crate::relay::Memory;
use crate::store::{Store, index::Tail};
use parking_lot::RwLock;
pub fn answer(_s: &Store, _t: &RwLock<Tail>, _m: &RwLock<Memory>, _k: crate::wire::QueryKind, _a: &str) -> (bool, Vec<u8>) { (true, b"{}".to_vec()) }
