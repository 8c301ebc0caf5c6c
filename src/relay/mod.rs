//! The heart of a shard: events in, outbox out. Pure and deterministic: no socket, thread, clock, disk or randomness here;
//! `now` is an argument, seeds are options, and whoever drives it (a shard, a simulated world) performs the outbox.

#![forbid(unsafe_code)]

mod ask;
mod auth;
mod away;
mod control;
pub mod counters;
mod crowd;
pub mod delivery;
mod event;
mod fund;
mod gate;
mod grace;
mod hello;
mod home;
mod ledger;
pub mod memory;
mod meter;
mod options;
mod outbox;
mod presence;
mod press;
mod purse;
pub mod readings;
mod route;
mod seats;
mod send;
mod session;
mod sightings;
mod sources;
mod strangers;
mod subscribe;
mod tell;
#[cfg(test)]
mod tests;
mod timers;

pub use counters::{AuthFailure, Counters, Gauges, KeyUse, ReadIgnored};
pub use event::{Account, Again, Event, Mail, Origin, Outcome, Peer, What};
pub use ledger::Sitter;
pub use memory::{Memory, Owed, ProgressRecord, Remembered, SentMarks, SessionRecord};
pub use options::{Bounds, Options};
pub use outbox::{
    Addressee, AgentRow, CensusPart, CensusTicket, Delivery, Fetch, Fetched, FetchedMessage, Outbox, Output, Place,
    Profile, Question, Reading, Recipients, Record, Wanted,
};
pub use sightings::{Sighted, Sighting};

use crate::base::ids::TokenSource;
use crate::base::limits;
use crate::base::tier::Entitlement;
use crate::base::{
    AgentId, Bytes, Chunks, MessageId, Mono, NameHasher, Now, RefuseReason, Sequence, SessionId, ShardId,
};
use crate::wire::{Ack, Dialect, ErrorCode, ErrorFrame, Frame};
use crowd::Crowd;
use delivery::{Load, News, Queue, Return, Window};
use grace::Grace;
use home::{AgentSlot, Agents};
use ledger::Seats;
use meter::{Funds, Meters};
use purse::Request;
use readings::Readings;
use route::Topics;
use session::{Session, Sessions, State};
use sightings::Sightings;
use sources::Sources;
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use strangers::Strangers;
use timers::{Timer, Timers};

/// One shard's heart.
pub struct Relay {
    options: Options,
    /// How long messages are to be kept, as far as the licence allows.
    retention_asked: u64,
    hasher: NameHasher,
    tokens: TokenSource,
    chunks: Chunks,
    sessions: Sessions,
    /// Of strangers, and of the daemon's own user: strangers must not lock that one out.
    half_open: [Crowd; 2],
    live: usize,
    presence_generation: u64,
    agents: Agents,
    topics: Topics,
    /// The highest counter of any agent that was forgotten. Whoever is met later begins above it: nobody's order may
    /// use a sequence twice within an epoch.
    forgotten_through: u64,
    grace: Grace,
    /// How often any sender's number was given back.
    given_back: u64,
    timers: Timers,
    counters: Counters,
    /// Sum over all queues.
    waiting: Load,
    /// Number of the last record pushed.
    records: u64,
    /// Number of the last record committed.
    committed: u64,
    /// Messages whose sender waits for their commit, in record order.
    uncommitted: VecDeque<(u64, Outcome)>,
    /// Agents with messages that are handed out when the record of this number is committed; in strict mode alone.
    held: VecDeque<(u64, AgentSlot)>,
    /// Agents whose cold mail was not committed yet when it was asked for.
    hungry: Vec<AgentSlot>,
    /// Agents whose progress the writer has not been told.
    progress: Vec<AgentSlot>,
    /// What was sent by whom a crash has made nameless: their messages were on the disk before their names.
    strangers: Strangers,
    /// Submitted messages that were refused here, of which the home of their sender's name may not have heard; bounded.
    refused_lately: VecDeque<(MessageId, RefuseReason)>,
    /// Fan-outs that a crash parted, in order, and who has them already.
    parted: Vec<(MessageId, Vec<AgentId>)>,
    /// Where wrong credentials come from.
    sources: Sources,
    /// What the audit trail is to be told of credentials.
    sightings: Sightings,
    /// When the first credential of a connection here ends, milliseconds since 1970.
    credential_ends_at_ms: u64,
    /// Whether a timer is running for that.
    credentials_watched: bool,
    /// When mail and agents were taken up by a wall clock that is not believed, and what the time was then.
    doubted: Option<Now>,
    /// Of shard 0 alone.
    seats: Seats,
    /// Agents for whom a seat was asked for, and the connection that waits for it; none when that has left meanwhile. One
    /// question at a time for each.
    asking: BTreeMap<AgentId, Option<SessionId>>,
    /// Rates, as this shard has them.
    meters: Meters,
    /// Of shard 0 alone.
    funds: Funds,
    /// The time of this event, for what follows from it far from where it came in.
    now: Now,
    /// The licence as WELCOME tells it.
    license: String,
    /// What agents here say to have read.
    readings: Readings,
    writer_full: bool,
    writer_behind: bool,
    /// Connections that are left unread for that, in the order in which they sent.
    pressed: Vec<SessionId>,
    /// Records beside messages since the writer became full.
    notes: u32,
    stopping: bool,
    /// Counts calls of `take_turn`, so that marks into an outbox go stale with it.
    turn: u64,
    /// Reused by acknowledgements; empty between calls.
    news: Vec<News>,
}

impl Relay {
    /// A heart that knows nobody.
    pub fn new(mut options: Options) -> Relay {
        let retention_asked = options.bounds.retention;
        options.bounds.retention = entitled_retention(retention_asked, &options.entitlement);
        Relay {
            retention_asked,
            hasher: NameHasher::new(options.name_seed),
            tokens: TokenSource::new(options.token_seed),
            chunks: Chunks::default(),
            sessions: Sessions::default(),
            half_open: Default::default(),
            live: 0,
            presence_generation: 0,
            agents: Agents::default(),
            topics: Topics::default(),
            forgotten_through: 0,
            grace: Grace::default(),
            given_back: 0,
            timers: Timers::default(),
            counters: Counters::default(),
            waiting: Load::default(),
            records: 0,
            committed: 0,
            uncommitted: VecDeque::new(),
            held: VecDeque::new(),
            hungry: Vec::new(),
            progress: Vec::new(),
            strangers: Strangers::default(),
            refused_lately: VecDeque::new(),
            parted: Vec::new(),
            doubted: None,
            sources: Sources::default(),
            sightings: Sightings::default(),
            credential_ends_at_ms: u64::MAX,
            credentials_watched: false,
            seats: Seats::default(),
            asking: BTreeMap::new(),
            meters: Meters::new(options.entitlement.messages_per_second),
            funds: Funds::new(options.entitlement.messages_per_second),
            now: Now::default(),
            license: hello::license_of(&options.entitlement),
            readings: Readings::default(),
            writer_full: false,
            writer_behind: false,
            pressed: Vec::new(),
            notes: 0,
            stopping: false,
            turn: 0,
            news: Vec::new(),
            options,
        }
    }

    /// Decides what one event means. Everything it wants done is in `outbox` afterwards.
    pub fn handle(&mut self, now: Now, event: Event<'_>, outbox: &mut Outbox) {
        self.now = now;
        match event {
            Event::Frame { session, dialect, ack, frame } => self.on_frame(now, session, dialect, ack, frame, outbox),
            Event::Written { session, through } => self.on_written(now, session, through, outbox),
            Event::Opened { session, peer } => self.on_opened(now, session, peer, outbox),
            Event::Entitled(entitlement) => {
                self.options.bounds.retention = entitled_retention(self.retention_asked, &entitlement);
                self.on_entitled(now, entitlement, outbox);
            }
            Event::Keys(keys) => self.on_keys(now, keys, outbox),
            Event::Adopted { session, peer, dialect, hello, grant } => {
                let adopted = Session { dialect, grant, ..Session::fresh(now.mono, peer) };
                self.on_adopted(now, session, adopted, *hello, outbox);
            }
            Event::Certified { session, certificate } => {
                if let Some(session) = self.sessions.find_mut(session) {
                    session.peer.certificate = Some(certificate);
                }
            }
            Event::Corrupt { session, dialect, corrupt } => self.on_corrupt(session, dialect, &corrupt, outbox),
            Event::Closed { session, reason } => self.on_closed(now, session, reason, outbox),
            Event::Mail { from, mail } => self.on_mail(now, from, mail, outbox),
            Event::Committed { through } => self.on_committed(now, through, outbox),
            Event::Fetched(fetched) => self.on_fetched(now, *fetched, outbox),
            Event::LookedUp(answers) => self.on_looked_up(now, answers, outbox),
            Event::WriterFull(full) => self.writer_full = full,
            Event::WriterBehind(behind) => self.on_writer_behind(now, behind, outbox),
            Event::Answered { session, number, failed, json } => {
                self.on_answered(now, session, number, failed, json, outbox)
            }
            Event::Census(ticket) => self.on_census(now, ticket, outbox),
            Event::Stop => self.on_stop(now, outbox),
        }
    }

    /// The outbox has been performed and emptied: marks into it are stale.
    pub fn end_turn(&mut self) {
        self.turn += 1;
    }

    /// When `expire` has something to do.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.timers.next()
    }

    /// Does what has become due.
    pub fn expire(&mut self, now: Now, outbox: &mut Outbox) {
        self.now = now;
        while let Some(timer) = self.timers.due(now.mono) {
            match timer {
                Timer::Session(session) => self.check_session(now, session, outbox),
                Timer::Retry(agent) => self.retry(now, agent, outbox),
                Timer::Expiry(agent) => self.expire_owed(now, agent, outbox),
                Timer::Grace => self.expire_grace(now, outbox),
                Timer::Forget => self.forget_agents(now, outbox),
                Timer::Credentials => self.check_credentials(now, outbox),
                Timer::Paused => self.tell_all_paused(now, outbox),
                Timer::Funds => self.serve(now, outbox),
                Timer::Rested(session) => self.on_rested(now, session, outbox),
            }
        }
    }

    /// Tells the writer how far recipients have got since it was last told.
    pub fn tell_progress(&mut self, now: Now, outbox: &mut Outbox) {
        while let Some(slot) = self.progress.pop() {
            let Some(agent) = self.agents.peek_mut(slot) else { continue };
            agent.progress_due = false;
            let (delivered, acknowledged) = (agent.queue.written_through(), agent.queue.settled_through());
            let told = (delivered, acknowledged, agent.queue.settled_ever());
            let owed = agent.queue.owed(now);
            if agent.progress_told != told {
                agent.progress_told = told;
                let settled = agent.queue.settled_runs(limits::SETTLED_RUNS_MAX);
                let record = ProgressRecord { agent: agent.id, delivered, acknowledged, settled, owed };
                self.push_record(Record::Progress(record), outbox);
            }
        }
    }

    /// Whether recipients have got further than the writer knows.
    pub fn progress_is_due(&self) -> bool {
        !self.progress.is_empty()
    }

    /// Changes whenever somebody comes or goes.
    pub fn presence_generation(&self) -> u64 {
        self.presence_generation
    }

    /// Whether somebody waits for a commit.
    pub fn awaits_commit(&self) -> bool {
        !self.uncommitted.is_empty() || !self.held.is_empty() || !self.hungry.is_empty()
    }

    /// Every connection has been told BYE and is gone.
    pub fn is_drained(&self) -> bool {
        self.stopping && self.sessions.len() == 0
    }

    fn on_frame(
        &mut self,
        now: Now,
        id: SessionId,
        dialect: Dialect,
        ack: Sequence,
        frame: Frame<'_>,
        outbox: &mut Outbox,
    ) {
        // A connection that was closed in this turn may still have frames behind it: they are nobody's.
        let Some(session) = self.sessions.find_mut(id) else { return };
        session.last_heard = now.mono;
        session.pinged_at = None;
        if matches!(session.state, State::Seating(_) | State::Penalized(_)) {
            // Behind a HELLO nothing is read until it is answered.
            return;
        }
        let agent = session.agent();
        if let Some(slot) = agent {
            let agent = &mut self.agents[slot];
            agent.last_seen = now;
            agent.resume_before = None;
            if ack != Sequence::default() {
                self.on_ack(now, id, slot, Ack::Through(ack), outbox);
            }
        } else {
            session.dialect = dialect;
        }
        match (frame, agent) {
            (Frame::Send(message), Some(slot)) => self.on_send(now, id, slot, message, outbox),
            (Frame::Ack(ack), Some(slot)) => self.on_ack(now, id, slot, ack, outbox),
            (frame, agent) => self.on_control(now, id, agent, frame, outbox),
        }
    }

    fn on_mail(&mut self, now: Now, from: ShardId, mail: Mail, outbox: &mut Outbox) {
        match mail {
            Mail::Send { parcel, origin } => self.accept_one(now, parcel, origin, outbox),
            Mail::Submit { parcel, origin } => self.on_submitted(now, parcel, origin, outbox),
            Mail::GiveBack(id) => self.on_given_back(id),
            Mail::Fanout { parcel, origin } => self.accept_many(now, &parcel, origin, outbox),
            Mail::Again(again) => self.answer_again(&again.parcel, again.origin, again.asked, outbox),
            Mail::Outcome(outcome) => self.tell(*outcome, outbox),
            Mail::Enrol { member, topic, join } => self.enrol(&member, &topic, join, outbox),
            Mail::SeatAsked { agent, sitter } => self.on_seat_asked(now, from, agent, sitter, outbox),
            Mail::SeatTaken { sitter } => self.on_seat_taken(now, sitter),
            Mail::SeatAnswer { agent, sitter, refused } => {
                self.on_seat_answer(now, agent, sitter, refused, outbox);
            }
            Mail::SeatFreed { sitter } => self.seats.give_back(now.wall_ms, sitter),
            Mail::TokensAsked { account, wanted, spent } => {
                self.on_tokens_asked(now, from, account, Request { wanted, spent }, outbox);
            }
            Mail::Tokens { account, tokens, wait, answers } => {
                self.on_tokens(now, account, (tokens, wait, answers), outbox);
            }
            Mail::TokensLeft { account, spent, unused } => self.on_tokens_left(now, account, spent, unused, outbox),
        }
    }

    fn on_ack(&mut self, now: Now, id: SessionId, slot: AgentSlot, ack: Ack, outbox: &mut Outbox) {
        let agent = &mut self.agents[slot];
        let before = agent.queue.load();
        let mut news = std::mem::take(&mut self.news);
        let acknowledged = match ack {
            Ack::Through(through) => agent.queue.acknowledge_through(now.mono, through, &mut news),
            Ack::One(sequence) => agent.queue.acknowledge_one(now.mono, sequence, &mut news),
            Ack::Message(message) => match agent.queue.find_sent(message) {
                Some(sequence) => agent.queue.acknowledge_one(now.mono, sequence, &mut news),
                None => 0,
            },
            Ack::Unknown => 0,
        };
        if acknowledged > 0 {
            self.counters.acknowledged += acknowledged;
            self.after_settling(slot, before, &mut news, outbox);
            self.pump(now, slot, id, outbox);
        } else if matches!(ack, Ack::Message(_)) {
            // It was looked for far and wide. (What rides on frames is often said again, and costs nothing.)
            self.toil(now, id, 1, outbox);
        }
        self.news = news;
    }

    fn on_written(&mut self, now: Now, id: SessionId, through: Sequence, outbox: &mut Outbox) {
        let Some(slot) = self.sessions.find(id).and_then(Session::agent) else { return };
        let agent = &mut self.agents[slot];
        let before = agent.queue.load();
        let mut news = std::mem::take(&mut self.news);
        agent.queue.mark_written(now.mono, through, &mut news);
        let settled = agent.queue.load() != before;
        self.after_settling(slot, before, &mut news, outbox);
        self.news = news;
        if settled {
            self.pump(now, slot, id, outbox);
        }
    }

    /// Keeps the sums, remembers that there is progress to tell, and passes news on to the senders.
    fn after_settling(&mut self, slot: AgentSlot, before: Load, news: &mut Vec<News>, outbox: &mut Outbox) {
        let agent = &mut self.agents[slot];
        self.waiting = self.waiting.changed(before, agent.queue.load());
        if !agent.progress_due {
            agent.progress_due = true;
            self.progress.push(slot);
        }
        if agent.session().is_none() {
            // What it was owed has failed, perhaps all of it.
            self.agents.list(slot);
        }
        let agent = &self.agents[slot];
        if !news.is_empty() {
            let recipient = agent.id;
            for item in news.drain(..) {
                self.tell_news(recipient, item, outbox);
            }
        }
    }

    /// Owed messages are back from the store.
    fn on_fetched(&mut self, now: Now, fetched: Fetched, outbox: &mut Outbox) {
        let Some(slot) = self.agents.find_id(fetched.fetch.agent) else { return };
        let mut news = std::mem::take(&mut self.news);
        let (hasher, shards) = (&self.hasher, self.options.shards);
        let home_of = |name: &[u8]| hasher.hash(name).home(shards);
        let (retention, committed) = (self.options.bounds.retention, self.committed);
        let how = Return { now: self.believed(now), retention, committed, home_of: &home_of };
        let agent = &mut self.agents[slot];
        let before = agent.queue.load();
        let (more, hungry) = agent.queue.take_fetched(fetched, &how, &mut news);
        let session = agent.session();
        self.after_settling(slot, before, &mut news, outbox);
        self.news = news;
        outbox.fetches.extend(more);
        if hungry {
            self.hungry.push(slot);
        }
        self.arm_expiry(slot);
        if let Some(id) = session {
            self.pump(now, slot, id, outbox);
        }
    }

    /// Makes sure that somebody looks when the first of an agent's messages expires.
    fn arm_expiry(&mut self, slot: AgentSlot) {
        let agent = &mut self.agents[slot];
        let next = agent.queue.next_expiry();
        if agent.expiry_armed > next {
            self.timers.move_expiry(slot, agent.expiry_armed, next);
            agent.expiry_armed = next;
        }
    }

    /// What waited for a commit goes on: messages in strict mode, fetches that came too early.
    fn after_commit(&mut self, now: Now, outbox: &mut Outbox) {
        while let Some((_, slot)) = self.held.pop_front_if(|(record, _)| *record <= self.committed) {
            self.pump_if_live(now, slot, outbox);
        }
        for slot in std::mem::take(&mut self.hungry) {
            if self.agents.peek_mut(slot).is_some_and(|agent| agent.queue.is_hungry()) {
                self.pump_if_live(now, slot, outbox);
            }
        }
    }

    fn pump_if_live(&mut self, now: Now, slot: AgentSlot, outbox: &mut Outbox) {
        if let Some(id) = self.agents.peek(slot).and_then(home::Agent::session) {
            self.pump(now, slot, id, outbox);
        }
    }

    /// Takes up which fan-outs a crash parted, of whatever sender: see `SentMarks::partial`.
    pub fn restore_parted(&mut self, mut parted: Vec<(MessageId, Vec<AgentId>)>) {
        parted.sort_unstable();
        self.parted = parted;
    }

    /// Takes up what an earlier process knew of the agents whose home is here, and of those whose name nobody knows. Before
    /// the first event.
    pub fn restore(&mut self, now: Now, rows: impl IntoIterator<Item = Remembered>) {
        let ahead_ms = self.options.bounds.clock_ahead_ms;
        self.doubted = (ahead_ms > 0).then(|| Now { wall_ms: now.wall_ms.saturating_sub(ahead_ms), ..now });
        let now = self.believed(now);
        // An answer that is merely due is not urgent: a hundred thousand of them are spread over a quarter of an hour.
        const LOOK_AFTER: u64 = Mono::ms(30_000);
        const SPREAD: u64 = Mono::ms(10);
        let rows = rows.into_iter();
        let (at_least, at_most) = rows.size_hint();
        self.agents.reserve(at_most.unwrap_or(at_least).min(self.options.bounds.known_agents_max));
        for (index, mut row) in rows.enumerate() {
            let Some(name) = row.name.take() else {
                self.strangers.restore(row.agent, row.sent);
                continue;
            };
            let hash = self.hasher.hash(name.as_bytes());
            debug_assert_eq!(hash.home(self.options.shards), self.options.shard);
            let look_after = LOOK_AFTER + SPREAD * index as u64;
            let mortal_ms = row.owed.next_expiry_ms.saturating_sub(now.wall_ms).min(look_after / Mono::ms(1));
            let look_at = now.mono + Mono::ms(mortal_ms);
            let queue = Queue::restored(self.options.epoch, &row, look_at);
            let load = queue.load();
            let mut agent = home::Agent::new(name, hash, row.agent, queue, now);
            let subscriptions = std::mem::take(&mut row.subscriptions);
            agent.restore(now, row);
            let slot = self.agents.insert(agent);
            for (topic, channel) in &subscriptions {
                // A refusal only means that there are as many as there may be.
                let _ = self.subscribe_quietly(slot, topic, *channel);
            }
            self.waiting = self.waiting.changed(Load::default(), load);
            self.agents.list(slot);
            self.arm_expiry(slot);
        }
        if self.agents.len() > 0 {
            self.timers.set(now.mono + FORGET_EVERY, Timer::Forget);
        }
    }

    /// The time by which stored mail ages: a wall clock that was doubted at the start is not asked any more.
    fn believed(&self, now: Now) -> Now {
        match self.doubted {
            None => now,
            Some(start) => Now { wall_ms: start.wall_ms + now.mono.since(start.mono) / Mono::ms(1), ..now },
        }
    }

    /// Hands out what the agent's window allows, and makes sure that somebody looks after it in time.
    fn pump(&mut self, now: Now, slot: AgentSlot, id: SessionId, outbox: &mut Outbox) {
        let believed = self.believed(now);
        let agent = &mut self.agents[slot];
        if !agent.receives {
            // It stays owed, for a session that may receive.
            return;
        }
        let window = Window { messages_max: agent.in_flight_max, bytes_max: self.options.bounds.in_flight_bytes_max };
        let committed = if self.options.strict { self.committed } else { u64::MAX };
        let pumped = agent.queue.pump(now.mono, id, window, committed, outbox);
        if agent.queue.is_cold()
            && let Some(fetch) = agent.queue.refill(agent.id, believed, self.options.bounds.retention, self.committed)
        {
            outbox.fetches.push(fetch);
        }
        if pumped.messages > 0 {
            agent.messages_received += pumped.messages - pumped.redelivered;
            self.counters.messages_out += pumped.messages;
            self.counters.redelivered += pumped.redelivered;
            if !agent.retry_armed {
                agent.retry_armed = true;
                self.timers.set_retry(now.mono, slot);
            }
        }
    }

    fn retry(&mut self, now: Now, slot: AgentSlot, outbox: &mut Outbox) {
        let Some(agent) = self.agents.peek_mut(slot) else { return };
        agent.retry_armed = false;
        let Some(id) = agent.session() else { return };
        let unread = self.sessions.find(id).map_or(0, |session| session.unread_until(now.mono).0);
        if now.mono.0 < unread.saturating_add(limits::RETRY_AFTER) {
            // Acknowledgements may lie where nobody has read them.
            agent.retry_armed = true;
            return self.timers.set(Mono(unread) + limits::RETRY_AFTER, Timer::Retry(slot));
        }
        let (next, pumped) = agent.queue.retry(now.mono, id, outbox);
        self.counters.messages_out += pumped.messages;
        self.counters.redelivered += pumped.redelivered;
        if let Some(next) = next {
            agent.retry_armed = true;
            self.timers.set(next, Timer::Retry(slot));
        }
        // What rests has left the window.
        self.pump(now, slot, id, outbox);
    }

    fn expire_owed(&mut self, now: Now, slot: AgentSlot, outbox: &mut Outbox) {
        let believed = self.believed(now);
        let Some(agent) = self.agents.peek_mut(slot) else { return };
        agent.expiry_armed = Mono(u64::MAX);
        let before = agent.queue.load();
        let mut news = std::mem::take(&mut self.news);
        agent.queue.expire(now.mono, &mut news);
        if let Some(fetch) = agent.queue.sweep(agent.id, believed, self.options.bounds.retention, self.committed) {
            outbox.fetches.push(fetch);
        }
        let next = agent.queue.next_expiry();
        self.timers.move_expiry(slot, Mono(u64::MAX), next);
        agent.expiry_armed = next;
        let session = agent.session();
        self.after_settling(slot, before, &mut news, outbox);
        self.news = news;
        if let Some(id) = session {
            self.pump(now, slot, id, outbox);
        }
    }

    /// Agents that nobody has seen within the retention time, and that are owed nothing, are forgotten.
    fn forget_agents(&mut self, now: Now, outbox: &mut Outbox) {
        for slot in self.agents.away().for_longer_than(now.mono, self.options.bounds.retention) {
            if !self.comes_back(slot) {
                self.forget(slot, outbox);
            }
        }
        if self.agents.len() > 0 {
            // The next agent that is met sets it again.
            self.timers.set(now.mono + FORGET_EVERY, Timer::Forget);
        }
    }

    /// An agent that nothing is owed to, and that is not here, is not known any more.
    fn forget(&mut self, slot: AgentSlot, outbox: &mut Outbox) {
        let Some(agent) = self.agents.peek(slot) else { return };
        self.forgotten_through = self.forgotten_through.max(agent.queue.next_sequence().counter - 1);
        for (topic, _) in agent.subscriptions.clone() {
            self.topics.unsubscribe(topic, slot);
        }
        if let Some(agent) = self.agents.forget(slot) {
            self.timers.move_expiry(slot, agent.expiry_armed, Mono(u64::MAX));
            self.push_note(Record::Forgotten { agent: agent.id }, outbox);
        }
    }

    /// Pushes a record that is not a message. Those are refused while the writer is full; of these so many may still
    /// come, so that a refusal can be looked up and a flood of them stays bounded.
    fn push_note(&mut self, record: Record, outbox: &mut Outbox) {
        self.notes = if self.writer_full { self.notes + 1 } else { 0 };
        if self.notes <= limits::NOTES_WHILE_FULL_MAX {
            self.push_record(record, outbox);
        }
    }

    /// Pushes a record and gives its number.
    fn push_record(&mut self, record: Record, outbox: &mut Outbox) -> u64 {
        self.records += 1;
        outbox.records_weight += record.weight();
        outbox.records.push(record);
        self.records
    }
}

/// How often agents that have outlived the retention time are looked for.
const FORGET_EVERY: u64 = Mono::ms(3_600_000);

/// What is kept of the retention that was asked for.
fn entitled_retention(asked: u64, entitlement: &Entitlement) -> u64 {
    let day = Mono::ms(24 * 3_600_000);
    entitlement.retention_days_max.map_or(asked, |days| asked.min(u64::from(days) * day))
}

fn error(code: ErrorCode, message: &str, fatal: bool) -> Frame<'static> {
    let message = Cow::Owned(message.to_owned());
    Frame::Error(Box::new(ErrorFrame { code, fatal, message, number: 0, label: "".into(), outcome: None }))
}

/// A name's or label's bytes as text, for people and for the JSON wire.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An empty label.
fn no_label() -> Bytes {
    Bytes::new()
}
