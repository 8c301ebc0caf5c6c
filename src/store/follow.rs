//! The log, followed: rows of agents and the index of its end, kept in memory as far as the log has been read. The keeper
//! follows behind the writer; whoever answers a question first follows to the end.

use super::error::Damage;
use super::index::{GroupLimits, Tail};
use super::rows::RowChange;
use super::{Store, StoreError, find, replay};
use crate::base::AgentId;
use crate::relay::{Fetch, Fetched, Memory, Place, Remembered};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A look at the store lasts no longer than this, so that old pages can be used again.
const LOOK_TIME: Duration = Duration::from_millis(20);

/// What is known of the log so far.
pub struct Follower {
    /// The index of the segments behind the last group.
    pub tail: RwLock<Tail>,
    /// A row per agent.
    pub memory: RwLock<Memory>,
    /// The last segment that was followed. Held while following: one at a time, in order.
    turn: Mutex<()>,
    position: AtomicU64,
    damage: Mutex<Option<Damage>>,
    /// How many labels each sender had pushed when its row was last kept.
    labels_kept: Mutex<HashMap<AgentId, u64>>,
}

impl Follower {
    /// Reads rows, the end of the log, and the index of what no group covers.
    pub fn recover(store: &Store) -> Result<Follower, StoreError> {
        let memory = store.recover(|_| {})?;
        let through = store.last_segment()?;
        let tail = RwLock::new(store.tail(GroupLimits::default())?);
        let damage = store.index(&tail, false)?;
        Ok(Follower {
            tail,
            memory: RwLock::new(memory),
            turn: Mutex::new(()),
            position: AtomicU64::new(through),
            damage: Mutex::new(damage),
            labels_kept: Mutex::default(),
        })
    }

    /// A copy of one agent's row.
    pub fn row(&self, agent: AgentId) -> Option<Remembered> {
        self.memory.read().row(agent).cloned()
    }

    /// Makes groups of the index again that are missing or damaged.
    pub fn mend(&self, store: &Store) -> Result<(), StoreError> {
        let _turn = self.turn.lock();
        let damage = store.index(&self.tail, true)?;
        self.note(damage);
        Ok(())
    }

    /// The first damage that was met, if any was. What is damaged is passed over.
    pub fn damage(&self) -> Option<Damage> {
        *self.damage.lock()
    }

    fn note(&self, damage: Option<Damage>) {
        let Some(damage) = damage else { return };
        self.damage.lock().get_or_insert(damage);
    }

    /// The last segment that was followed.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Whether the log has gone on.
    pub fn is_behind(&self, store: &Store) -> bool {
        store.last_segment().is_ok_and(|last| last > self.position())
    }

    /// Whether rows have changed that nobody has taken.
    pub fn is_dirty(&self) -> bool {
        self.memory.read().is_dirty()
    }

    /// Follows to the end of the log as it is now.
    pub fn catch_up(&self, store: &Store) -> Result<(), StoreError> {
        let _turn = self.turn.lock();
        let last = store.last_segment()?;
        let mut next = self.position() + 1;
        while next <= last {
            let snapshot = store.snapshot()?;
            let began = Instant::now();
            // Whoever reads meanwhile waits for the locks no longer than one look lasts.
            let mut tail = self.tail.write();
            let mut memory = self.memory.write();
            while next <= last && began.elapsed() < LOOK_TIME {
                let indexed = next < tail.next_segment();
                let followed = snapshot.segment(next).and_then(|segment| {
                    let Some(mut segment) = segment else { return Ok(()) };
                    if !indexed {
                        tail.begin(next, segment.header().bytes);
                    }
                    segment.records(|offset, record| {
                        replay::apply(&mut memory, next, record);
                        if !indexed {
                            tail.add(Place { segment: next, offset }, record);
                        }
                        ControlFlow::Continue(())
                    })
                });
                match followed {
                    Err(StoreError::Corrupt(damage)) => self.note(Some(damage)),
                    followed => followed?,
                }
                self.position.store(next, Ordering::Release);
                next += 1;
            }
        }
        Ok(())
    }

    /// The last segment that a group of the index covers.
    pub fn indexed_through(&self) -> u64 {
        self.tail.read().first_segment() - 1
    }

    /// Closes a group when there is enough for one. Says whether it did.
    pub fn close_group_if_full(&self, store: &Store) -> Result<bool, StoreError> {
        let _turn = self.turn.lock();
        store.close_if_full(&self.tail)
    }

    /// Fetches owed messages.
    pub fn fetch(&self, store: &Store, fetch: &Fetch) -> Result<Fetched, StoreError> {
        let (fetched, damage) = find::fetch(store, &self.tail, fetch)?;
        self.note(damage);
        Ok(fetched)
    }

    /// What has changed since this was last asked: everything up to which segment, whose rows, and who was forgotten.
    /// None when nothing has.
    pub fn take_changes(&self) -> Option<(u64, Vec<AgentId>, Vec<AgentId>)> {
        let _turn = self.turn.lock();
        let mut memory = self.memory.write();
        if !memory.is_dirty() {
            return None;
        }
        Some((self.position(), memory.take_dirty(), memory.take_forgotten()))
    }

    /// Removes the rows of agents that were forgotten, then keeps the rows of these as they are now. Of one checkpoint, all
    /// that were forgotten come first: one of them may have been met again, and its row is not to go with the old one.
    pub fn keep_rows(&self, store: &Store, agents: &[AgentId], forgotten: &[AgentId]) -> Result<(), StoreError> {
        let rows: Vec<Remembered> = {
            let _turn = self.turn.lock();
            let position = self.position();
            let mut memory = self.memory.write();
            agents.iter().filter_map(|agent| memory.stamp(*agent, position).cloned()).collect()
        };
        let mut kept = self.labels_kept.lock();
        for agent in forgotten {
            kept.remove(agent);
        }
        let changes: Vec<RowChange<'_>> = rows
            .iter()
            .map(|row| {
                let before = kept.get(&row.agent).copied().unwrap_or(0);
                RowChange { row, labels_pushed: row.sent.labels_pushed - before }
            })
            .collect();
        store.keep_rows(&changes, forgotten)?;
        for row in rows.iter().filter(|row| row.sent.labels_pushed > 0) {
            kept.insert(row.agent, row.sent.labels_pushed);
        }
        Ok(())
    }
}
