//! temporary
use super::*;
use crate::relay::{Memory, Remembered};
pub struct Swept {
    pub messages: u64,
    pub done: bool,
}
impl Store {
    pub fn recover(&self) -> Result<(Memory, u64), StoreError> {
        Ok((Memory::default(), 0))
    }
    pub fn keep_rows(&self, _r: &[Remembered], _f: &[AgentId], _t: Option<u64>) -> Result<(), StoreError> {
        Ok(())
    }
    pub fn sweep_step(&self, _c: u64, _m: u64) -> Result<Swept, StoreError> {
        Ok(Swept { messages: 0, done: true })
    }
}
