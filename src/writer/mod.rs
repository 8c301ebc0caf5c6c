//! The writer: one thread that keeps what was accepted, in order, and tells each shard how far it has got. In this version
//! it keeps messages in memory, in a ring bounded by bytes and by number; the oldest leave first. Nothing here survives
//! the process, and `relay status` says so.
#![forbid(unsafe_code)]

mod history;

use crate::base::ShardId;
use crate::mesh::{Answered, Mesh, Notice, WriterPost};
use crate::uring::Waker;
use history::History;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the writer is told once.
pub struct Options {
    /// Bytes of messages it keeps.
    pub history_bytes_max: usize,
}

/// What `status` shows of the writer; written by its thread alone.
#[derive(Default)]
pub struct Gauges {
    /// Records committed, over all shards.
    pub committed: AtomicU64,
    /// Messages kept.
    pub history_messages: AtomicU64,
    /// Their bytes.
    pub history_bytes: AtomicU64,
}

/// The writer, on its own thread.
pub struct Writer {
    mesh: Arc<Mesh>,
    bell: Waker,
    shards: Vec<Waker>,
    gauges: Arc<Gauges>,
    stop: Arc<AtomicBool>,
    history: History,
    committed: Vec<u64>,
}

impl Writer {
    /// A writer that keeps nothing yet. `bell` ends its sleep, `shards` end theirs; it returns after `stop`, when all
    /// queues to it are empty.
    pub fn new(
        options: &Options,
        mesh: Arc<Mesh>,
        bell: Waker,
        shards: Vec<Waker>,
        gauges: Arc<Gauges>,
        stop: Arc<AtomicBool>,
    ) -> Writer {
        let committed = vec![0; shards.len()];
        Writer { mesh, bell, shards, gauges, stop, history: History::new(options.history_bytes_max), committed }
    }

    /// Takes what has arrived, commits it, sleeps; until told to stop.
    pub fn run(mut self) {
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            let took_any = self.turn();
            if took_any {
                continue;
            }
            if stopping {
                return;
            }
            self.mesh.writer_sleeper().doze();
            if !self.mesh.anything_for_writer() && !self.stop.load(Ordering::Acquire) {
                self.bell.wait(None);
            }
            self.mesh.writer_sleeper().awake();
        }
    }

    /// One round over all shards. Says whether there was anything.
    fn turn(&mut self) -> bool {
        let mut took_any = false;
        for index in 0..self.committed.len() {
            let shard = ShardId(index as u16);
            let (mut committed, mut answered) = (false, false);
            // A round takes no more than a full queue from each shard, so that no shard waits for another's flood.
            for _ in 0..crate::base::limits::WRITER_BATCHES_MAX {
                match self.mesh.pop_batch(shard) {
                    Some(WriterPost::Records(mut batch)) => {
                        self.committed[index] += batch.len() as u64;
                        for record in batch.drain(..) {
                            self.history.keep(record);
                        }
                        self.mesh.give_back(shard, batch);
                        committed = true;
                    }
                    Some(WriterPost::Question(asker, question)) => {
                        let (failed, json) = self.history.answer(&question.arguments);
                        let (session, number) = (question.session, question.number);
                        // A full queue means a thousand unread answers: the asker's own deadline will tell it.
                        let answer = Notice::Answered(Answered { session, number, failed, json });
                        answered |= self.mesh.notify(asker, answer).is_ok();
                    }
                    None => break,
                }
                took_any = true;
            }
            if committed {
                self.mesh.commit(shard, self.committed[index]);
            }
            let awaited = answered || (committed && self.mesh.awaits_commit(shard));
            if awaited && self.mesh.shard_sleeper(shard).rouse() {
                self.shards[index].wake();
            }
        }
        if took_any {
            self.gauges.committed.store(self.committed.iter().sum(), Ordering::Relaxed);
            self.gauges.history_messages.store(self.history.messages() as u64, Ordering::Relaxed);
            self.gauges.history_bytes.store(self.history.bytes() as u64, Ordering::Relaxed);
        }
        took_any
    }
}
