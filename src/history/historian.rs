//! The thread that answers questions about stored messages. Readers hold up neither the writer nor a shard.

use super::{Beside, answer, reads};
use crate::base::ShardId;
use crate::mesh::{Answered, Mesh, Notice};
use crate::relay::Reading;
use crate::store::{Follower, Store, Trouble};
use crate::uring::Waker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The historian's nice value.
const NICENESS: i32 = 10;

/// The historian, on its own thread.
pub struct Historian {
    mesh: Arc<Mesh>,
    store: Store,
    follower: Arc<Follower>,
    own: Waker,
    shards: Vec<Waker>,
    /// What keeps the store from taking what is accepted, if anything does.
    trouble: Box<dyn Fn() -> Option<Trouble> + Send>,
    stop: Arc<AtomicBool>,
}

impl Historian {
    /// A historian that returns after `stop`.
    pub fn new(
        mesh: Arc<Mesh>,
        store: Store,
        follower: Arc<Follower>,
        own: Waker,
        shards: Vec<Waker>,
        trouble: Box<dyn Fn() -> Option<Trouble> + Send>,
        stop: Arc<AtomicBool>,
    ) -> Historian {
        Historian { mesh, store, follower, own, shards, trouble, stop }
    }

    /// Answers one question after the other; until told to stop.
    pub fn run(self) {
        // Messages under way come before those that are looked up.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        while !self.stop.load(Ordering::Acquire) {
            self.answer_questions();
            if let Some((shard, readings)) = self.mesh.pop_readings() {
                self.look_up(shard, readings);
                continue;
            }
            self.mesh.historian_sleeper().doze();
            if !self.mesh.anything_for_historian() && !self.stop.load(Ordering::Acquire) {
                self.own.wait(None);
            }
            self.mesh.historian_sleeper().awake();
        }
    }

    fn answer_questions(&self) {
        while let Some((shard, question)) = self.mesh.pop_historian() {
            let trouble = (self.trouble)();
            // The writer has committed what the asker saw; the index may not have followed yet.
            let (failed, json) = match self.follower.catch_up(&self.store) {
                Ok(()) => answer(
                    &self.store,
                    &self.follower.tail,
                    &self.follower.memory,
                    &Beside { trouble, damage: self.follower.damage() },
                    question.kind,
                    &question.arguments,
                ),
                Err(error) => (true, serde_json::json!({ "error": error.to_string() }).to_string().into_bytes()),
            };
            let answered = Answered { session: question.session, number: question.number, failed, json };
            // A full queue means a thousand unread answers: the asker's own deadline will tell it.
            let _ = self.mesh.notify(shard, Notice::Answered(answered));
            if self.mesh.shard_sleeper(shard).rouse() {
                self.shards[usize::from(shard.0)].wake();
            }
        }
    }

    /// Whoever has asked a question does not wait for what agents say to have read: nobody waits for that.
    fn look_up(&self, shard: ShardId, readings: Vec<Reading>) {
        let answers = match self.follower.catch_up(&self.store) {
            Ok(()) => reads::look_up(&self.store, &self.follower.tail, readings, || {
                self.answer_questions();
                !self.stop.load(Ordering::Acquire)
            }),
            Err(_) => Vec::new(),
        };
        self.mesh.answer_readings(shard, answers);
        if self.mesh.shard_sleeper(shard).rouse() {
            self.shards[usize::from(shard.0)].wake();
        }
    }
}
