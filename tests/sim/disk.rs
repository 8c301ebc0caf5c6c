//! The simulated disk and the two threads beside it. Only what was committed is there after a crash: batches in queues,
//! the segment under way and rows that were not written are gone. Records are the real store's bytes, read back by its
//! decoder and applied by its code.

use super::swarm::Mutation;
use super::world::World;
use agent_relay::base::{AgentId, Bytes, MessageId, Mono, ShardId};
use agent_relay::relay::{Fetch, Fetched, FetchedMessage, Memory, Place, Record, Remembered, Wanted};
use agent_relay::store::{RecordRef, Segment, replay};
use std::collections::{BTreeMap, VecDeque};

/// What the writer and the keeper hold, and what is on disk.
pub struct Disk {
    /// Batches that the writer has not taken, per shard.
    queues: Vec<VecDeque<Vec<Record>>>,
    segment: Segment,
    /// Per shard: records in segments, up to the one under way.
    taken: Vec<u64>,
    /// A planted bug has dropped records of these shards: nothing behind them counts as committed.
    gap: Vec<bool>,
    /// When the commit under way ends.
    attempt: Option<Mono>,
    retry_at: Mono,
    full_until: Mono,
    since: Option<Mono>,
    urgent: bool,
    /// A commit failed, and nothing has been committed since.
    failing: bool,
    /// On disk. Segments are numbered from 1.
    log: Vec<Segment>,
    /// Where each agent's messages lie: the index of the log, derived from it.
    owed: BTreeMap<AgentId, Vec<Place>>,
    rows: BTreeMap<AgentId, Remembered>,
    applied: u64,
    /// The keeper's.
    memory: Memory,
    position: u64,
    checkpoint: Option<Checkpoint>,
    fetches: VecDeque<(Mono, usize, Fetch)>,
}

/// Fan-outs of which some parts are on disk, and who has them.
type Parted = Vec<(MessageId, Vec<AgentId>)>;

/// Rows on their way to the disk.
struct Checkpoint {
    through: u64,
    rows: Vec<AgentId>,
    forgotten: Vec<AgentId>,
}

impl Disk {
    pub fn new(shards: usize) -> Disk {
        Disk {
            queues: (0..shards).map(|_| VecDeque::new()).collect(),
            segment: Segment::new(),
            taken: vec![0; shards],
            gap: vec![false; shards],
            attempt: None,
            retry_at: Mono(0),
            full_until: Mono(0),
            since: None,
            urgent: false,
            failing: false,
            log: Vec::new(),
            owed: BTreeMap::new(),
            rows: BTreeMap::new(),
            applied: 0,
            memory: Memory::default(),
            position: 0,
            checkpoint: None,
            fetches: VecDeque::new(),
        }
    }

    /// A shard hands over what it has.
    pub fn hand(&mut self, shard: usize, batch: Vec<Record>) {
        if !batch.is_empty() {
            self.queues[shard].push_back(batch);
        }
    }

    /// Batches that wait for the writer.
    pub fn waiting(&self, shard: usize) -> usize {
        self.queues[shard].len()
    }

    /// Nothing is on its way.
    pub fn is_quiet(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty) && self.segment.is_empty() && self.fetches.is_empty()
    }

    /// A shard wants owed messages back.
    pub fn ask(&mut self, at: Mono, shard: usize, fetch: Fetch) {
        self.fetches.push_back((at, shard, fetch));
    }

    fn take(&mut self, batch_max: u32) {
        loop {
            let mut took = false;
            for shard in 0..self.queues.len() {
                if self.segment.records() >= batch_max {
                    return;
                }
                let Some(batch) = self.queues[shard].pop_front() else { continue };
                self.taken[shard] += batch.len() as u64;
                for record in &batch {
                    self.urgent |= matches!(record, Record::Session(_));
                    self.segment.push(record);
                }
                took = true;
            }
            if !took {
                return;
            }
        }
    }

    /// The segment is on disk.
    fn append(&mut self) {
        let segment = std::mem::take(&mut self.segment);
        let number = self.log.len() as u64 + 1;
        let mut records = 0;
        for (offset, record) in segment.records_pushed() {
            records += 1;
            if let RecordRef::Message(message) = &record {
                for to in message.recipients.iter() {
                    self.owed.entry(to.agent).or_default().push(Place { segment: number, offset });
                }
            }
        }
        assert_eq!(records, segment.records(), "what was encoded can be decoded");
        self.log.push(segment);
    }

    fn follow(&mut self, through: u64) {
        while self.position < through {
            self.position += 1;
            for (_, record) in self.log[self.position as usize - 1].records_pushed() {
                replay::apply(&mut self.memory, self.position, &record);
            }
        }
    }

    /// Writes some rows; the mark rides on the last of them.
    fn write_rows(&mut self, count: usize) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        // One of them may have been met again: its row is not to go with the old one.
        for agent in checkpoint.forgotten.drain(..) {
            self.rows.remove(&agent);
        }
        let first = checkpoint.rows.len().saturating_sub(count);
        for agent in checkpoint.rows.split_off(first) {
            if let Some(row) = self.memory.stamp(agent, self.position) {
                self.rows.insert(agent, row.clone());
            }
        }
        if checkpoint.rows.is_empty() {
            self.applied = checkpoint.through;
            self.checkpoint = None;
        }
    }

    /// What the store answers, as documented beside `Fetch`. `messages_most`: an answer may be cut short.
    fn answer(&self, fetch: &Fetch, messages_most: usize) -> Fetched {
        let mut fetched = Fetched {
            fetch: *fetch,
            messages: Vec::new(),
            place: Place { segment: self.log.len() as u64 + 1, offset: 0 },
            complete: true,
            next_expiry_ms: u64::MAX,
        };
        let places = self.owed.get(&fetch.agent).map_or(&[][..], Vec::as_slice);
        let mut bytes = 0;
        for place in &places[places.partition_point(|place| *place < fetch.place)..] {
            let Some(RecordRef::Message(message)) = self.log[place.segment as usize - 1].record_at(place.offset) else {
                panic!("the index points at messages")
            };
            let to = message.recipients.iter().find(|to| to.agent == fetch.agent).expect("indexed by recipient");
            if to.sequence <= fetch.after {
                continue;
            }
            let kept_ms = match message.ttl_ms {
                0 => fetch.retention_ms,
                ttl_ms => u64::from(ttl_ms).min(fetch.retention_ms),
            };
            let expiry_ms = message.accepted_at_ms.saturating_add(kept_ms);
            let expired = expiry_ms <= fetch.now_ms;
            let (told_before, wanted, most, room) = match fetch.wanted {
                Wanted::Mail { messages_max, bytes_max, expired_before_ms } => {
                    let room = bytes + message.raw.len() <= bytes_max as usize;
                    (expiry_ms <= expired_before_ms, true, messages_max, room)
                }
                Wanted::Expired { messages_max, expired_before_ms } => {
                    (expired && expiry_ms <= expired_before_ms, expired, messages_max, true)
                }
            };
            if !wanted {
                fetched.next_expiry_ms = fetched.next_expiry_ms.min(expiry_ms);
            }
            if told_before || !wanted {
                continue;
            }
            let count = fetched.messages.len();
            if count > 0 && (count >= (most as usize).min(messages_most) || !room) {
                fetched.place = *place;
                fetched.complete = false;
                break;
            }
            bytes += message.raw.len();
            fetched.messages.push(FetchedMessage {
                to,
                raw: Bytes::copy_from_slice(message.raw),
                checksum: message.checksum,
                accepted_at_ms: message.accepted_at_ms,
                expired,
            });
        }
        fetched
    }
}

impl World {
    /// The writer: takes what the shards have handed over, and commits it, late and in batches; or the disk refuses.
    pub fn write(&mut self) {
        let now = self.now.mono;
        if self.disk.attempt.is_some_and(|at| at <= now) {
            self.disk.attempt = None;
            let fails = self.faults && (self.disk.full_until > now || self.dice.chance(self.swarm.commit_fails));
            if !fails {
                self.commit();
            } else if self.strikes(Mutation::DropFailedCommit) {
                self.disk.segment.clear();
                for shard in 0..self.shards.len() {
                    self.disk.gap[shard] |= self.disk.taken[shard] > self.ledger.committed[shard];
                }
            } else {
                self.marks.hit("commit failed");
                self.disk.failing = true;
                self.disk.retry_at = now + Mono::ms(self.dice.range(50, 1_000));
            }
        }
        if self.faults && self.dice.chance(self.swarm.disk_full) {
            self.marks.hit("disk full");
            self.disk.full_until = now + self.dice.below(Mono::ms(5_000)) + self.swarm.step * self.dice.below(30);
        }
        if self.disk.attempt.is_none() {
            self.disk.take(if self.faults { self.swarm.batch } else { 1_024 });
            let waits = self.swarm.relaxed && self.faults && !self.disk.urgent;
            let since = *self.disk.since.get_or_insert(now);
            let due = !self.faults || (self.disk.retry_at <= now && (!waits || now.since(since) >= Mono::ms(1_000)));
            if self.disk.segment.is_empty() {
                self.disk.since = None;
            } else if due {
                let delay = if self.faults { self.dice.below(self.swarm.writer_delay + 1) } else { 0 };
                self.disk.attempt = Some(now + delay);
            }
        }
        if self.strikes(Mutation::CommitEarly) {
            for shard in 0..self.shards.len() {
                self.shards[shard].committed = self.ledger.pushed[shard];
            }
        }
        if self.dice.chance(self.swarm.writer_full) || !self.faults {
            self.writer_full = self.faults && !self.writer_full;
        }
        for shard in 0..self.shards.len() {
            let full = self.writer_full || self.disk.waiting(shard) > self.swarm.queue;
            self.shards[shard].note_full(full);
        }
        if self.dice.chance(self.swarm.writer_behind) || !self.faults {
            self.writer_behind = self.faults && !self.writer_behind;
        }
        let waiting: usize = (0..self.shards.len()).map(|shard| self.disk.waiting(shard)).sum();
        for shard in &mut self.shards {
            // A disk in trouble is not behind: senders are to hear BUSY.
            let press = self.swarm.press;
            let behind = |was| self.writer_behind || waiting > if was { press / 2 } else { press };
            shard.note_behind(|was| !self.disk.failing && behind(was));
        }
    }

    /// The segment under way is on disk, and each shard hears of it.
    fn commit(&mut self) {
        self.commit_unheard();
        for shard in 0..self.shards.len() {
            if !self.strikes(Mutation::LoseCommits) && !self.stuck(Mutation::LoseCommits) {
                self.shards[shard].committed = self.disk.taken[shard];
            }
        }
    }

    fn commit_unheard(&mut self) {
        for (_, record) in self.disk.segment.records_pushed() {
            self.ledger.kept(&record);
        }
        if self.disk.segment.records() > 0 {
            self.disk.append();
        }
        (self.disk.since, self.disk.urgent) = (None, false);
        if std::mem::take(&mut self.disk.failing) {
            self.marks.hit("committed after a failure");
        }
        for shard in 0..self.shards.len() {
            if !self.disk.gap[shard] {
                self.ledger.committed[shard] = self.disk.taken[shard];
            }
        }
    }

    /// The keeper: follows the log, writes rows late and a few at a time, answers fetches.
    pub fn keep(&mut self) {
        let end = self.disk.log.len() as u64;
        if !self.faults {
            self.disk.follow(end);
        } else if self.dice.chance(500) {
            let through = end.min(self.disk.position + self.dice.range(1, 8));
            self.disk.follow(through);
        }
        if self.disk.checkpoint.is_none() && self.disk.memory.is_dirty() && self.dice.chance(self.swarm.checkpoints) {
            let (rows, forgotten) = (self.disk.memory.take_dirty(), self.disk.memory.take_forgotten());
            self.disk.checkpoint = Some(Checkpoint { through: self.disk.position, rows, forgotten });
        }
        if self.disk.checkpoint.is_some() && self.dice.chance(500) {
            let count = self.dice.range(1, 5) as usize;
            self.disk.write_rows(count);
        }
        while self.disk.fetches.front().is_some_and(|(at, ..)| *at <= self.now.mono) {
            let Some((_, shard, fetch)) = self.disk.fetches.pop_front() else { break };
            // What the shard knows to be committed must be found.
            self.disk.follow(end);
            let cut = self.faults && self.dice.chance(self.swarm.fetch_cuts);
            let most = if cut { self.dice.range(1, 3) as usize } else { usize::MAX };
            let mut fetched = self.disk.answer(&fetch, most);
            if !fetched.complete {
                self.marks.hit("fetched in parts");
            }
            if fetched.messages.is_empty() && matches!(fetch.wanted, Wanted::Mail { .. }) {
                self.marks.hit("fetched too early");
            }
            if !fetched.messages.is_empty() {
                self.marks.hit(match fetch.wanted {
                    Wanted::Mail { .. } => "fetched",
                    Wanted::Expired { .. } => "swept cold mail",
                });
            }
            if fetched.messages.len() > 1 && self.strikes(Mutation::FetchSkips) {
                fetched.messages.remove(0);
            }
            if let [first, second, ..] = &mut fetched.messages[..]
                && self.strikes(Mutation::FetchRepeats)
            {
                (second.raw, second.checksum) = (first.raw.clone(), first.checksum);
            }
            self.say(&format!(
                "fetched {:?} for shard {shard}: {:?}, complete {}",
                fetch,
                fetched.messages.iter().map(|message| (message.to.sequence, message.expired)).collect::<Vec<_>>(),
                fetched.complete
            ));
            let delay = if self.faults { self.dice.below(self.swarm.fetch_delay + 1) } else { 0 };
            self.shards[shard].fetched.push_back((self.now.mono + delay, fetched));
        }
    }

    /// The daemon is gone: what was committed stays. A commit under way may have reached the disk, unheard.
    pub fn lose_power(&mut self) {
        if self.disk.attempt.is_some() && self.dice.chance(500) {
            self.marks.hit("committed unheard");
            self.commit_unheard();
        }
        self.disk.segment = Segment::new();
    }

    /// Everything handed over is committed, and all rows are written.
    pub fn finish_disk(&mut self) {
        while !self.disk.segment.is_empty() || self.disk.queues.iter().any(|queue| !queue.is_empty()) {
            self.disk.take(u32::MAX);
            self.commit();
        }
        self.disk.follow(self.disk.log.len() as u64);
        while self.disk.checkpoint.is_some() {
            self.disk.write_rows(10);
        }
        if self.disk.memory.is_dirty() {
            let (rows, forgotten) = (self.disk.memory.take_dirty(), self.disk.memory.take_forgotten());
            self.disk.checkpoint = Some(Checkpoint { through: self.disk.position, rows, forgotten });
            self.disk.write_rows(usize::MAX);
        }
    }

    /// Reads rows and the end of the log; gives the rows of each of `shards` homes, and the fan-outs that were parted.
    pub fn recover(&mut self, shards: usize, home_of: impl Fn(&str) -> ShardId) -> (Vec<Vec<Remembered>>, Parted) {
        let disk = &mut self.disk;
        let mut memory = Memory::default();
        for row in disk.rows.values() {
            let mut row = row.clone();
            if row.as_of > disk.applied {
                self.marks.hit("row newer than the mark");
            }
            if self.swarm.mutation == Some(Mutation::ApplyTwice) {
                row.as_of = 0;
            }
            memory.restore(row);
        }
        let (end, applied) = (disk.log.len() as u64, disk.applied);
        if end > applied {
            self.marks.hit("replayed");
        }
        (disk.memory, disk.position) = (memory, applied);
        disk.follow(end);
        disk.queues = (0..shards).map(|_| VecDeque::new()).collect();
        (disk.taken, disk.attempt, disk.checkpoint) = (vec![0; shards], None, None);
        disk.gap = vec![false; shards];
        (disk.since, disk.urgent, disk.failing) = (None, false, false);
        (disk.retry_at, disk.full_until) = (Mono(0), Mono(0));
        disk.fetches.clear();
        let mut all: Vec<Remembered> = disk.memory.rows().cloned().collect();
        all.sort_by_key(|row| row.agent);
        let mut homes: Vec<Vec<Remembered>> = (0..shards).map(|_| Vec::new()).collect();
        let mut parted = Parted::new();
        for mut row in all {
            for partial in &row.sent.partial {
                self.marks.hit("a fan-out was parted");
                let id = MessageId { sender: row.agent, number: partial.number };
                parted.push((id, partial.recipients.clone()));
            }
            self.ledger.check_row(&row);
            if row.owed.messages > 0 {
                self.marks.hit("restored cold");
            }
            if !row.settled.is_empty() {
                self.marks.hit("restored settled runs");
            }
            if row.sent.missing().next().is_some() {
                self.marks.hit("numbers missing after a restart");
            }
            match self.swarm.mutation {
                Some(Mutation::ForgetMarks) => row.sent = Default::default(),
                Some(Mutation::HighMarkOnly) => row.sent.taken.fill(u64::MAX),
                Some(Mutation::ForgetRuns) => row.settled.clear(),
                _ => {}
            }
            match row.name.as_deref().map(&home_of) {
                Some(home) => homes[usize::from(home.0)].push(row),
                None => {
                    self.marks.hit("a nameless sender");
                    homes.iter_mut().for_each(|home| home.push(row.clone()));
                }
            }
        }
        (homes, parted)
    }
}
