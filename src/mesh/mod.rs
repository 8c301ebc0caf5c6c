//! Every queue between threads, and who is asleep at its end. Bounded, without locks; nothing here blocks or drops.
//!
//! ```text
//! shard ──mail──► shard        one lane per ordered pair; Send, Fanout, connections that move
//! shard ──outcomes──► shard    the reverse lane: always drained, so two full shards never wait for each other
//! shard ──batches──► writer    one per shard; writer ──committed through n──► shard, one number
//! shard ──questions──► clerk   clerk, historian ──answers──► shard
//! shard ──fetches──► keeper    keeper ──owed messages──► shard
//! shard ──questions──► writer ──questions──► historian: behind the records that the asker has seen, beside the batches
//! ```
//! Who pushes asks [`Sleeper::rouse`] once per turn whether the other end sleeps, and rings its bell only then.
#![forbid(unsafe_code)]

use crate::base::keys::{Grant, Ring};
use crate::base::limits::{FETCHES_MAX, LANE_MAILS_MAX, QUESTIONS_MAX, WRITER_BATCHES_MAX, WRITER_CAUGHT_UP};
use crate::base::tier::Entitled;
use crate::base::{SessionId, ShardId};
use crate::relay::readings::LookedUp;
use crate::relay::{CensusPart, CensusTicket, Fetch, Fetched, KeyUse, Mail, Peer, Question, Reading, Record, Sighting};
use crate::tls::{Acceptor, ServerLink};
use crate::wire::{Dialect, Hello};
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Mail of all lanes together: with many shards each pair gets a smaller lane.
const MAILS_TOTAL_MAX: usize = 16 * LANE_MAILS_MAX;

/// What one shard hands to another.
pub enum Post {
    /// Something one heart says to another.
    Mail(Mail),
    /// A connection whose home is there.
    Connection(Box<Moved>),
}

/// A connection on its way home. Nothing is in flight on it.
pub struct Moved {
    /// Its descriptor.
    pub descriptor: OwnedFd,
    /// What it speaks.
    pub dialect: Dialect,
    /// Who is at the other end.
    pub peer: Peer,
    /// What it said.
    pub hello: Box<Hello<'static>>,
    /// What its credential grants, if it presented one.
    pub grant: Option<Box<Grant>>,
    /// The TLS that it speaks, if it does, with what of it is half-read.
    pub link: Option<Box<ServerLink>>,
    /// Bytes of TLS that are to be sent before everything else.
    pub sealed: Vec<u8>,
    /// Bytes received behind its HELLO, decrypted.
    pub unread: Vec<u8>,
    /// What it was told before its HELLO and has not been sent yet.
    pub unsent: Vec<u8>,
}

/// An answer for a session that asked.
pub struct Answered {
    /// Who asked.
    pub session: SessionId,
    /// Its number for the question.
    pub number: u64,
    /// Whether the question failed.
    pub failed: bool,
    /// A JSON value.
    pub json: Vec<u8>,
}

/// What a shard may be told by threads that are not shards.
pub enum Notice {
    /// An answer.
    Answered(Answered),
    /// Owed messages from the store.
    Fetched(Box<Fetched>),
    /// The clerk wants a part of the list of agents.
    Census(CensusTicket),
    /// The licence grants something else.
    Entitled(Entitled),
    /// There are other keys.
    Keys(Ring),
    /// There are other certificates, for connections that come from now on.
    Tls(Arc<Acceptor>),
    /// The daemon stops.
    Stop,
}

/// What the writer is told.
pub enum WriterPost {
    /// Records of one shard, in order.
    Records(Vec<Record>),
    /// What agents say to have read, to be looked up behind the records before it.
    Readings(ShardId, Vec<Reading>),
}

/// What the clerk is told.
pub enum ClerkPost {
    /// A question about the daemon or its agents.
    Question(ShardId, Question),
    /// A part of the list of agents, and how the shard that tells it is doing.
    Census(CensusPart, ShardGauges),
    /// A shard has returned, and this is what it has counted and seen of keys in the end.
    Finished(ShardId, Vec<KeyUse>, Vec<Sighting>),
}

/// How a shard's thread is doing, beside what its heart knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardGauges {
    /// Turns since the start.
    pub turns: u64,
    /// Processor time of its thread, microseconds.
    pub busy_us: u64,
    /// Mail that waits because another shard's lane is full.
    pub lane_hold: u32,
    /// Bytes received and sent since the start.
    pub bytes_in: u64,
    /// Bytes sent since the start.
    pub bytes_out: u64,
}

/// Whether a thread sleeps. Law: a thread that finds its queues empty after `doze` may wait; who pushes before `rouse`
/// either is seen by that look or finds the sleeper and rings.
#[derive(Default)]
pub struct Sleeper(CachePadded<AtomicBool>);

impl Sleeper {
    /// I am about to wait; look at the queues once more after this.
    pub fn doze(&self) {
        self.0.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// I am awake and will look at the queues before I wait again.
    pub fn awake(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// I have pushed; does the other end sleep, so that I must ring? True for one caller only.
    pub fn rouse(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::SeqCst)
    }
}

struct Lane {
    mail: ArrayQueue<Post>,
    outcomes: ArrayQueue<Mail>,
}

/// One shard's ends.
struct ShardPort {
    /// From each shard, this one included (unused).
    lanes: Vec<Lane>,
    notices: ArrayQueue<Notice>,
    /// The answer to this shard's question about what was read.
    looked_up: ArrayQueue<Vec<LookedUp>>,
    committed: CachePadded<AtomicU64>,
    /// Whether somebody at this shard waits for a commit: then the writer rings.
    awaits_commit: AtomicBool,
    /// Whether somebody waits for what this shard handed to the writer last.
    hurried: AtomicBool,
    /// Whether this shard leaves senders unread until the writer has caught up: then the writer rings.
    awaits_writer: AtomicBool,
    presence: AtomicU64,
    sleeper: Sleeper,
    /// To the writer.
    batches: ArrayQueue<(WriterPost, u64)>,
    /// Emptied batches on their way back, to be filled again.
    spare: ArrayQueue<Vec<Record>>,
    /// To the keeper.
    fetches: ArrayQueue<Fetch>,
    /// The last wish for records that this shard has followed.
    flushed: AtomicU64,
}

/// All queues of a daemon; shared by all its threads.
pub struct Mesh {
    shards: Vec<ShardPort>,
    writer_sleeper: Sleeper,
    /// What all shards have ever handed to the writer, in bytes and records' cost, and what it has taken of that.
    handed: CachePadded<AtomicU64>,
    taken: CachePadded<AtomicU64>,
    /// Whether the disk refuses what the writer gives it.
    writer_in_trouble: AtomicBool,
    /// Counts the writer's wishes for all records that shards hold back.
    flush_wanted: AtomicU64,
    /// Questions about stored messages, on their way through the writer.
    writer_questions: ArrayQueue<(ShardId, Question)>,
    clerk: ArrayQueue<ClerkPost>,
    clerk_sleeper: Sleeper,
    keeper_sleeper: Sleeper,
    keeper_rest: Sleeper,
    absorber_rest: Sleeper,
    historian: ArrayQueue<(ShardId, Question)>,
    /// One question of each shard at most.
    readings: ArrayQueue<(ShardId, Vec<Reading>)>,
    historian_sleeper: Sleeper,
}

impl Mesh {
    /// Queues between `shards` shards, a writer and a clerk.
    pub fn new(shards: u16) -> Mesh {
        let count = usize::from(shards);
        let lane = (MAILS_TOTAL_MAX / (count * count)).clamp(64, LANE_MAILS_MAX);
        let port = |own: usize| ShardPort {
            lanes: (0..count)
                .map(|from| if from == own { 1 } else { lane })
                .map(|capacity| Lane { mail: ArrayQueue::new(capacity), outcomes: ArrayQueue::new(capacity) })
                .collect(),
            notices: ArrayQueue::new(QUESTIONS_MAX),
            looked_up: ArrayQueue::new(1),
            committed: CachePadded::default(),
            awaits_commit: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            awaits_writer: AtomicBool::new(false),
            presence: AtomicU64::new(0),
            sleeper: Sleeper::default(),
            batches: ArrayQueue::new(WRITER_BATCHES_MAX),
            spare: ArrayQueue::new(WRITER_BATCHES_MAX),
            fetches: ArrayQueue::new(FETCHES_MAX),
            flushed: AtomicU64::new(0),
        };
        Mesh {
            shards: (0..count).map(port).collect(),
            writer_sleeper: Sleeper::default(),
            handed: CachePadded::default(),
            taken: CachePadded::default(),
            writer_in_trouble: AtomicBool::new(false),
            flush_wanted: AtomicU64::new(0),
            writer_questions: ArrayQueue::new(QUESTIONS_MAX),
            clerk: ArrayQueue::new(QUESTIONS_MAX + 4 * count),
            clerk_sleeper: Sleeper::default(),
            keeper_sleeper: Sleeper::default(),
            keeper_rest: Sleeper::default(),
            absorber_rest: Sleeper::default(),
            historian: ArrayQueue::new(QUESTIONS_MAX),
            readings: ArrayQueue::new(count),
            historian_sleeper: Sleeper::default(),
        }
    }

    /// How many shards there are.
    pub fn shards(&self) -> u16 {
        self.shards.len() as u16
    }

    fn port(&self, shard: ShardId) -> &ShardPort {
        &self.shards[usize::from(shard.0)]
    }

    fn lane(&self, from: ShardId, to: ShardId) -> &Lane {
        &self.port(to).lanes[usize::from(from.0)]
    }

    /// Hands over mail; gives it back when the lane is full.
    #[expect(clippy::result_large_err, reason = "what comes back is the mail itself, to be held and tried again")]
    pub fn push_mail(&self, from: ShardId, to: ShardId, post: Post) -> Result<(), Post> {
        self.lane(from, to).mail.push(post)
    }

    /// Hands over an outcome on the reverse lane; gives it back when that is full.
    pub fn push_outcome(&self, from: ShardId, to: ShardId, mail: Mail) -> Result<(), Mail> {
        self.lane(from, to).outcomes.push(mail)
    }

    /// The next mail of one lane.
    pub fn pop_mail(&self, from: ShardId, to: ShardId) -> Option<Post> {
        self.lane(from, to).mail.pop()
    }

    /// The next outcome of one lane.
    pub fn pop_outcome(&self, from: ShardId, to: ShardId) -> Option<Mail> {
        self.lane(from, to).outcomes.pop()
    }

    /// Tells a shard something from outside the shards; gives it back when its queue is full.
    pub fn notify(&self, to: ShardId, notice: Notice) -> Result<(), Notice> {
        self.port(to).notices.push(notice)
    }

    /// The next notice for a shard.
    pub fn pop_notice(&self, shard: ShardId) -> Option<Notice> {
        self.port(shard).notices.pop()
    }

    /// The writer has committed a shard's records up to this number.
    pub fn commit(&self, shard: ShardId, through: u64) {
        self.port(shard).committed.store(through, Ordering::Release);
    }

    /// The number that the writer committed through.
    pub fn committed(&self, shard: ShardId) -> u64 {
        self.port(shard).committed.load(Ordering::Acquire)
    }

    /// Publishes a shard's presence generation.
    pub fn publish_presence(&self, shard: ShardId, generation: u64) {
        self.port(shard).presence.store(generation, Ordering::Relaxed);
    }

    /// The presence generations of all shards, as one number that changes when any of them does.
    pub fn presence(&self) -> u64 {
        self.shards.iter().map(|port| port.presence.load(Ordering::Relaxed)).sum()
    }

    /// Says whether somebody at this shard waits for a commit. To be called before `doze`.
    pub fn await_commit(&self, shard: ShardId, awaits: bool) {
        self.port(shard).awaits_commit.store(awaits, Ordering::Relaxed);
    }

    /// Whether somebody at a shard waits for a commit.
    pub fn awaits_commit(&self, shard: ShardId) -> bool {
        fence(Ordering::SeqCst);
        self.port(shard).awaits_commit.load(Ordering::Relaxed)
    }

    /// Says whether somebody waits for what is handed to the writer next.
    pub fn hurry(&self, shard: ShardId, hurried: bool) {
        self.port(shard).hurried.store(hurried, Ordering::Release);
    }

    /// Whether somebody waits for what any shard handed to the writer last.
    pub fn any_hurried(&self) -> bool {
        self.shards.iter().any(|port| port.hurried.load(Ordering::Acquire))
    }

    /// Hands something to the writer, and what it counts as; gives it back when the shard's queue there is full.
    pub fn push_batch(&self, from: ShardId, post: WriterPost, cost: u64) -> Result<(), WriterPost> {
        self.port(from).batches.push((post, cost)).map_err(|(post, _)| post)?;
        self.handed.fetch_add(cost, Ordering::Relaxed);
        Ok(())
    }

    /// The next that a shard has for the writer.
    pub fn pop_batch(&self, from: ShardId) -> Option<WriterPost> {
        let (post, cost) = self.port(from).batches.pop()?;
        // One thread pops: nothing is lost between these two.
        self.taken.store(self.taken.load(Ordering::Relaxed) + cost, Ordering::Relaxed);
        Some(post)
    }

    /// Hands a question about stored messages to the writer, who passes it on when it has committed what was handed over
    /// before; gives it back when that queue is full.
    pub fn push_writer_question(&self, from: ShardId, question: Question) -> Result<(), Question> {
        self.writer_questions.push((from, question)).map_err(|(_, question)| question)
    }

    /// The next question on its way through the writer.
    pub fn pop_writer_question(&self) -> Option<(ShardId, Question)> {
        self.writer_questions.pop()
    }

    /// Whether a question waits for the writer.
    pub fn any_question_for_writer(&self) -> bool {
        !self.writer_questions.is_empty()
    }

    /// What waits for the writer, of all shards; and what it has ever taken.
    pub fn waiting_for_writer(&self) -> (u64, u64) {
        let taken = self.taken.load(Ordering::Relaxed);
        // What is taken before it was counted as handed makes this too small for a moment.
        (self.handed.load(Ordering::Relaxed).saturating_sub(taken), taken)
    }

    /// Says whether the disk refuses what the writer gives it.
    pub fn set_writer_in_trouble(&self, trouble: bool) {
        self.writer_in_trouble.store(trouble, Ordering::Relaxed);
    }

    /// Whether the disk refuses what the writer gives it.
    pub fn writer_in_trouble(&self) -> bool {
        self.writer_in_trouble.load(Ordering::Relaxed)
    }

    /// Says whether this shard leaves senders unread until `writer_has_caught_up`. To be called before `doze`.
    pub fn await_writer(&self, shard: ShardId, awaits: bool) {
        self.port(shard).awaits_writer.store(awaits, Ordering::Relaxed);
    }

    /// The shards that wait for that.
    pub fn awaiting_writer(&self) -> impl Iterator<Item = ShardId> {
        fence(Ordering::SeqCst);
        let waiting = |(_, port): &(usize, &ShardPort)| port.awaits_writer.load(Ordering::Relaxed);
        self.shards.iter().enumerate().filter(waiting).map(|(index, _)| ShardId(index as u16))
    }

    /// Whether nobody is to be left unread any more: little waits for the writer, or waiting does not help.
    pub fn writer_has_caught_up(&self) -> bool {
        self.writer_in_trouble() || self.waiting_for_writer().0 <= WRITER_CAUGHT_UP
    }

    /// Batches of a shard that the writer has not taken.
    pub fn batches_waiting(&self, from: ShardId) -> usize {
        self.port(from).batches.len()
    }

    /// Returns an emptied batch; when there are enough of them it is freed.
    pub fn give_back(&self, to: ShardId, mut batch: Vec<Record>) {
        batch.clear();
        let _ = self.port(to).spare.push(batch);
    }

    /// An empty batch to fill.
    pub fn spare_batch(&self, shard: ShardId) -> Vec<Record> {
        self.port(shard).spare.pop().unwrap_or_default()
    }

    /// Hands something to the clerk; gives it back when its queue is full.
    pub fn push_clerk(&self, post: ClerkPost) -> Result<(), ClerkPost> {
        self.clerk.push(post)
    }

    /// The next thing for the clerk.
    pub fn pop_clerk(&self) -> Option<ClerkPost> {
        self.clerk.pop()
    }

    /// The writer wants all records that shards hold back: whoever asks about messages must find what it has caused
    /// anywhere. Gives the number of the wish.
    pub fn want_flush(&self) -> u64 {
        self.flush_wanted.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The last wish, if this shard has not followed it yet.
    pub fn flush_wanted(&self, shard: ShardId) -> Option<u64> {
        let wanted = self.flush_wanted.load(Ordering::SeqCst);
        (wanted > self.port(shard).flushed.load(Ordering::Relaxed)).then_some(wanted)
    }

    /// A shard has handed over everything it had when it saw this wish.
    pub fn set_flushed(&self, shard: ShardId, wish: u64) {
        self.port(shard).flushed.store(wish, Ordering::Release);
    }

    /// The last wish that all shards have followed.
    pub fn flushed_by_all(&self) -> u64 {
        self.shards.iter().map(|port| port.flushed.load(Ordering::Acquire)).min().unwrap_or(0)
    }

    /// Asks the keeper for owed messages; gives the request back when its queue is full.
    pub fn push_fetch(&self, from: ShardId, fetch: Fetch) -> Result<(), Fetch> {
        self.port(from).fetches.push(fetch)
    }

    /// The next request of a shard.
    pub fn pop_fetch(&self, from: ShardId) -> Option<Fetch> {
        self.port(from).fetches.pop()
    }

    /// Whether there is a request for the keeper.
    pub fn anything_for_keeper(&self) -> bool {
        self.shards.iter().any(|port| !port.fetches.is_empty())
    }

    /// The keeper's sleep, as shards see it: they ring for requests.
    pub fn keeper_sleeper(&self) -> &Sleeper {
        &self.keeper_sleeper
    }

    /// The keeper's rest, as the writer sees it: nothing was committed for a while, and the next commit rings.
    pub fn keeper_rest(&self) -> &Sleeper {
        &self.keeper_rest
    }

    /// The absorber's rest: nothing waits for being put into the log, and the next commit rings.
    pub fn absorber_rest(&self) -> &Sleeper {
        &self.absorber_rest
    }

    /// Hands a question about stored messages to the historian; gives it back when its queue is full.
    pub fn push_historian(&self, asker: ShardId, question: Question) -> Result<(), (ShardId, Question)> {
        self.historian.push((asker, question))
    }

    /// The next question about stored messages.
    pub fn pop_historian(&self) -> Option<(ShardId, Question)> {
        self.historian.pop()
    }

    /// Hands what agents of a shard say to have read to the historian. A shard has one such question on its way at most, so
    /// there is room for it.
    pub fn push_readings(&self, asker: ShardId, readings: Vec<Reading>) {
        let _ = self.readings.push((asker, readings));
    }

    /// The next such question.
    pub fn pop_readings(&self) -> Option<(ShardId, Vec<Reading>)> {
        self.readings.pop()
    }

    /// Answers it. There is room for the one answer that a shard waits for.
    pub fn answer_readings(&self, to: ShardId, answers: Vec<LookedUp>) {
        let _ = self.port(to).looked_up.push(answers);
    }

    /// The answer for a shard.
    pub fn pop_looked_up(&self, shard: ShardId) -> Option<Vec<LookedUp>> {
        self.port(shard).looked_up.pop()
    }

    /// Whether there is a question about stored messages.
    pub fn anything_for_historian(&self) -> bool {
        !self.historian.is_empty() || !self.readings.is_empty()
    }

    /// The historian's sleep.
    pub fn historian_sleeper(&self) -> &Sleeper {
        &self.historian_sleeper
    }

    /// A shard's sleep.
    pub fn shard_sleeper(&self, shard: ShardId) -> &Sleeper {
        &self.port(shard).sleeper
    }

    /// The writer's sleep.
    pub fn writer_sleeper(&self) -> &Sleeper {
        &self.writer_sleeper
    }

    /// The clerk's sleep.
    pub fn clerk_sleeper(&self) -> &Sleeper {
        &self.clerk_sleeper
    }

    /// Whether anything waits for a shard; `committed` is what it knows to be committed, if it waits for more.
    pub fn anything_for(&self, shard: ShardId, committed: Option<u64>) -> bool {
        let port = self.port(shard);
        port.lanes.iter().any(|lane| !lane.outcomes.is_empty() || !lane.mail.is_empty())
            || !port.notices.is_empty()
            || !port.looked_up.is_empty()
            || self.flush_wanted(shard).is_some()
            || committed.is_some_and(|known| port.committed.load(Ordering::Acquire) != known)
    }

    /// Whether records wait for the writer.
    pub fn any_batch_for_writer(&self) -> bool {
        self.shards.iter().any(|port| !port.batches.is_empty())
    }

    /// Whether anything waits for the clerk.
    pub fn anything_for_clerk(&self) -> bool {
        !self.clerk.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_lane_gives_the_mail_back_and_keeps_the_order() {
        let mesh = Mesh::new(2);
        let (here, there) = (ShardId(0), ShardId(1));
        let asked = |number| Mail::GiveBack(crate::base::MessageId { sender: crate::base::AgentId(1), number });
        let mut pushed = 0;
        while mesh.push_mail(here, there, Post::Mail(asked(pushed))).is_ok() {
            pushed += 1;
        }
        assert_eq!(pushed as usize, LANE_MAILS_MAX);
        for expected in 0..pushed {
            match mesh.pop_mail(here, there) {
                Some(Post::Mail(Mail::GiveBack(id))) => assert_eq!(id.number, expected),
                _ => panic!("the lane holds what was pushed"),
            }
        }
        assert!(mesh.pop_mail(here, there).is_none() && mesh.pop_mail(there, here).is_none());
    }

    #[test]
    fn whoever_pushes_is_seen_or_rings() {
        let mesh = std::sync::Arc::new(Mesh::new(2));
        let total = 20_000u64;
        let consumer = {
            let mesh = mesh.clone();
            std::thread::spawn(move || {
                let (mut seen, sleeper) = (0, mesh.shard_sleeper(ShardId(1)));
                while seen < total {
                    sleeper.doze();
                    if mesh.committed(ShardId(1)) == seen {
                        std::thread::park();
                    }
                    sleeper.awake();
                    seen = mesh.committed(ShardId(1));
                }
            })
        };
        for number in 1..=total {
            mesh.commit(ShardId(1), number);
            if mesh.shard_sleeper(ShardId(1)).rouse() {
                consumer.thread().unpark();
            }
        }
        consumer.join().expect("a lost wake-up would hang here");
    }
}
