//! One message on its way in: is it legal, whose is it, where does its recipient live, may it be accepted there?
//! The recipient's home accepts: it gives the place in the order, keeps the record, and hands out what the window allows.

use super::delivery::{Ask, Offer, Queue};
use super::event::{Mail, Origin, Outcome, What};
use super::home::{AgentSlot, Presence};
use super::outbox::{Addressee, Outbox, Recipients, Record};
use super::session::{State, Tracker};
use super::timers::Timer;
use super::{Bounds, Relay, no_label, text_of};
use crate::base::ids::number_of_label;
use crate::base::keys::Scopes;
use crate::base::limits::{FRAME_BYTES_MAX, LANE_MAILS_MAX, LOST_REACHABLE};
use crate::base::{
    AgentId, Bytes, CloseReason, MessageId, Mono, NameHash, Now, RefuseReason, SessionId, ShardId, name,
};
use crate::wire::{Dialect, ErrorCode, HEADER_BYTES, Message, Parcel, Wants, json};

/// Fan-outs of one session that may be unfinished at once when their sender wants to hear of them.
const TRACKERS_MAX: usize = 1024;

/// Above this size a message's JSON form is measured before it is accepted for a JSON client: escaping makes it at most
/// six times as long.
const SURELY_FITS_JSON: usize = FRAME_BYTES_MAX / 8;

/// Submitted messages that were refused here: as many as can be asked about before the home of their sender's name hears
/// of the refusal, which a lane between two shards holds.
const REFUSED_LATELY_MAX: usize = LANE_MAILS_MAX;

impl Relay {
    pub(super) fn on_send(
        &mut self,
        now: Now,
        id: SessionId,
        slot: AgentSlot,
        message: Message<'_>,
        outbox: &mut Outbox,
    ) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        session.sends += 1;
        let (ordinal, dialect) = (session.sends, session.dialect);
        let origin = Origin { shard: self.options.shard, session: id, ordinal, submitted: false };
        let Bounds { messages_per_second, burst, .. } = self.options.bounds;
        let agent = &mut self.agents[slot];
        agent.messages_sent += 1;
        self.counters.messages_in += 1;
        // First of all, so that every refusal below gives back what was taken here.
        let number = message.id().number;
        let new = match dialect {
            Dialect::Native => agent.numbers.take(number),
            Dialect::Json => agent.numbers.take_label(number),
        };
        if message.from() != agent.name.as_bytes() || message.id().sender != agent.id {
            if new && message.id().sender != agent.id {
                // Its own number is given back, whosever number the message claims.
                self.given_back += 1;
                agent.numbers.give_back(number, self.given_back);
            }
            self.refuse(now, &message, origin, RefuseReason::Malformed, 0, outbox);
            return self.toil(now, id, 1, outbox);
        }
        if !new {
            self.counters.duplicates += 1;
            let cost = if is_fanout(message.to()) { usize::from(self.options.shards) } else { 1 };
            self.ask_again(message, origin, outbox);
            return self.toil(now, id, cost, outbox);
        }
        if !session.scopes.contains(Scopes::SEND) {
            self.refuse(now, &message, origin, RefuseReason::Forbidden, 0, outbox);
            return self.toil(now, id, 1, outbox);
        }
        let wait_ms = session.bucket.take(now.mono, messages_per_second, burst);
        if wait_ms > 0 {
            self.refuse(now, &message, origin, RefuseReason::RateLimited, wait_ms, outbox);
            return self.toil(now, id, 1, outbox);
        }
        if self.meters.any {
            let (key, prepaid) = (session.key, session.prepaid);
            self.charge(now, id, key, prepaid, outbox);
        }
        if self.writer_behind {
            self.press(id, outbox);
        }
        self.route(now, message, origin, dialect, outbox);
    }

    pub(super) fn on_submit(&mut self, now: Now, id: SessionId, message: Message<'_>, outbox: &mut Outbox) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        if !session.peer.owner {
            let text = "SUBMIT is taken on the Unix socket, from the daemon's own user";
            return self.fatal(id, ErrorCode::Forbidden, text, CloseReason::Forbidden, outbox);
        }
        session.sends += 1;
        // Whoever waits for an outcome may wait longer than a connection without HELLO usually lives.
        session.opened_at = now.mono;
        let origin = Origin { shard: self.options.shard, session: id, ordinal: session.sends, submitted: true };
        self.counters.messages_in += 1;
        let from = message.from();
        let id = message.id();
        let is_known_by_its_label = id.number == number_of_label(message.label());
        if name::check_agent(from).is_err() || id.sender != AgentId::of(from) || !is_known_by_its_label {
            return self.refuse(now, &message, origin, RefuseReason::Malformed, 0, outbox);
        }
        if self.meters.any
            && let Err(wait_ms) = self.charge_submitted(now, outbox)
        {
            return self.refuse(now, &message, origin, RefuseReason::RateLimited, wait_ms, outbox);
        }
        let Some(parcel) = self.check(now, &message, origin, Dialect::Native, outbox) else { return };
        let home = self.hasher.hash(parcel.from()).home(self.options.shards);
        if home == self.options.shard {
            self.on_submitted(now, parcel, origin, outbox);
        } else {
            outbox.mails.push((home, Mail::Submit { parcel, origin }));
        }
    }

    /// A SUBMIT has come to the home of the name that it was sent under. The same label is the same message.
    pub(super) fn on_submitted(&mut self, now: Now, parcel: Parcel, origin: Origin, outbox: &mut Outbox) {
        let numbers = match self.agents.find_id(parcel.id.sender) {
            Some(slot) => &mut self.agents[slot].numbers,
            None => self.strangers.numbers(parcel.id.sender),
        };
        if numbers.take_label(parcel.id.number) {
            self.dispatch(now, parcel, origin, outbox);
        } else {
            self.counters.duplicates += 1;
            self.ask_homes(&parcel, origin, outbox);
        }
    }

    /// What was submitted here was refused: the same may come again.
    pub(super) fn on_given_back(&mut self, id: MessageId) {
        self.given_back += 1;
        let numbers = match self.agents.find_id(id.sender) {
            Some(slot) => &mut self.agents[slot].numbers,
            None => self.strangers.numbers(id.sender),
        };
        numbers.give_back(id.number, self.given_back);
    }

    /// Why this was refused here a moment ago, if it was and has not been accepted since.
    pub(super) fn refused_lately(&self, id: MessageId) -> Option<RefuseReason> {
        self.refused_lately.iter().rev().find(|(refused, _)| *refused == id).map(|(_, reason)| *reason)
    }

    /// Where it goes, if it may go anywhere.
    fn route(&mut self, now: Now, message: Message<'_>, origin: Origin, dialect: Dialect, outbox: &mut Outbox) {
        if let Some(parcel) = self.check(now, &message, origin, dialect, outbox) {
            self.dispatch(now, parcel, origin, outbox);
        }
    }

    /// A message in the form that outlives the turn, unless it is refused at once. Answers to a fan-out find a place here.
    fn check(
        &mut self,
        now: Now,
        message: &Message<'_>,
        origin: Origin,
        dialect: Dialect,
        outbox: &mut Outbox,
    ) -> Option<Parcel> {
        let fanout = is_fanout(message.to());
        let too_long = message.raw.len() + HEADER_BYTES > FRAME_BYTES_MAX
            || (dialect == Dialect::Json && !json::deliver_fits(message));
        let refused = if too_long {
            Some((RefuseReason::TooLong, 0))
        } else if self.stopping {
            Some((RefuseReason::Stopping, 1000))
        } else if fanout && !is_topic_good(message) {
            Some((RefuseReason::Malformed, 0))
        } else {
            None
        };
        if let Some((reason, retry_after_ms)) = refused {
            self.refuse(now, message, origin, reason, retry_after_ms, outbox);
            return None;
        }
        let parcel = message.parcel(self.chunks.copy(message.raw));
        if fanout && !self.track(&parcel, origin) {
            self.refuse(now, message, origin, RefuseReason::LaneFull, 1000, outbox);
            return None;
        }
        Some(parcel)
    }

    /// Whom is it for, and where do they live?
    fn dispatch(&mut self, now: Now, parcel: Parcel, origin: Origin, outbox: &mut Outbox) {
        if !is_fanout(parcel.to()) {
            let hash = self.hasher.hash(parcel.to());
            let home = hash.home(self.options.shards);
            if home == self.options.shard {
                self.accept_hashed(now, parcel, hash, origin, outbox);
            } else {
                outbox.mails.push((home, Mail::Send { parcel, origin }));
            }
            return;
        }
        let parcel = parcel.with_topic_from_to();
        for shard in 0..self.options.shards {
            if ShardId(shard) != self.options.shard {
                outbox.mails.push((ShardId(shard), Mail::Fanout { parcel: parcel.clone(), origin }));
            }
        }
        self.accept_many(now, &parcel, origin, outbox);
    }

    /// Makes ready for the answers to a fan-out, if its sender wants any; says whether there is room for it.
    pub(super) fn track(&mut self, parcel: &Parcel, origin: Origin) -> bool {
        if parcel.wants == Wants::default() {
            return true;
        }
        let shards = self.options.shards;
        let Some(session) = self.sessions.find_mut(origin.session) else { return false };
        if session.trackers.len() >= TRACKERS_MAX {
            return false;
        }
        let tracker = Tracker { ordinal: origin.ordinal, wants: parcel.wants, untaken: shards, uncommitted: shards };
        session.trackers.push(tracker);
        true
    }

    /// A message for one agent whose home is here.
    pub(super) fn accept_one(&mut self, now: Now, parcel: Parcel, origin: Origin, outbox: &mut Outbox) {
        let hash = self.hasher.hash(parcel.to());
        self.accept_hashed(now, parcel, hash, origin, outbox);
    }

    /// The same, when the hash of its recipient's name is known already.
    fn accept_hashed(&mut self, now: Now, parcel: Parcel, hash: NameHash, origin: Origin, outbox: &mut Outbox) {
        let to = parcel.to();
        let Some(slot) = self.agents.find(hash, to) else {
            if name::check_agent(to).is_err() {
                return self.refuse_parcel(now, &parcel, origin, RefuseReason::NotFound, Crowd::default(), outbox);
            }
            match self.grace.wait(now.mono, parcel, origin) {
                Ok(until) => self.timers.set(until, Timer::Grace),
                Err(parcel) => self.refuse_parcel(
                    now,
                    &parcel,
                    origin,
                    RefuseReason::GraceFull,
                    Crowd { retry_after_ms: 2_000, depth: 0 },
                    outbox,
                ),
            }
            return;
        };
        match self.offer(now, slot, &parcel, origin, false) {
            Ok((sequence, channel)) => {
                if origin.submitted {
                    self.refused_lately.retain(|(refused, _)| *refused != parcel.id);
                }
                let agent = &self.agents[slot];
                let (recipient, session) = (agent.id, agent.session());
                let (id, checksum, ttl_ms) = (parcel.id, parcel.checksum, parcel.ttl_ms);
                let record = |raw| Record::Message {
                    id,
                    raw,
                    checksum,
                    accepted_at_ms: now.wall_ms,
                    ttl_ms,
                    parts: 1,
                    recipients: Recipients::One(Addressee { agent: recipient, sequence, channel }),
                };
                if parcel.wants == Wants::default() {
                    self.push_record(record(parcel.raw), outbox);
                } else {
                    let number = self.push_record(record(parcel.raw.clone()), outbox);
                    self.tell_accepted(&parcel, origin, recipient, What::Accepted, number, outbox);
                }
                self.hand_out(now, slot, session, outbox);
            }
            Err(reason) => {
                let agent = &self.agents[slot];
                let depth = agent.queue.len() as u32;
                let crowd = Crowd { retry_after_ms: retry_after_ms(reason, &agent.queue, now), depth };
                self.refuse_parcel(now, &parcel, origin, reason, crowd, outbox);
            }
        }
    }

    /// A message for everyone here, or for a topic's subscribers here.
    pub(super) fn accept_many(&mut self, now: Now, parcel: &Parcel, origin: Origin, outbox: &mut Outbox) {
        let recipients: Vec<(AgentSlot, bool)> = if parcel.topic().is_empty() {
            (0..self.agents.slots()).map(|slot| (AgentSlot(slot), false)).collect()
        } else {
            match self.topics.find(self.hasher.hash(parcel.topic()), parcel.topic()) {
                Some(topic) => self.topics.subscribers(topic).to_vec(),
                None => Vec::new(),
            }
        };
        let mut accepted = Vec::with_capacity(recipients.len());
        // Sent again after a crash that parted it: who has it does not get it twice.
        let had = match self.parted.binary_search_by_key(&parcel.id, |(id, _)| *id) {
            Ok(index) => std::mem::take(&mut self.parted[index].1),
            Err(_) => Vec::new(),
        };
        for (slot, channel) in recipients {
            let Some(agent) = self.agents.peek(slot) else { continue };
            let reachable = match agent.presence {
                Presence::Live(_) => true,
                Presence::Lost(at) => now.mono.since(at) < LOST_REACHABLE,
                Presence::Left(_) => false,
            };
            if !reachable || agent.id == parcel.id.sender || had.contains(&agent.id) {
                continue;
            }
            match self.offer(now, slot, parcel, origin, channel) {
                Ok((sequence, channel)) => {
                    let agent = &self.agents[slot];
                    accepted.push(Addressee { agent: agent.id, sequence, channel });
                    // At once, while all there is of this agent is in the cache.
                    let session = agent.session();
                    self.hand_out(now, slot, session, outbox);
                }
                Err(reason) => {
                    let agent = &self.agents[slot];
                    let what = What::Refused {
                        reason,
                        retry_after_ms: retry_after_ms(reason, &agent.queue, now),
                        queue_depth: agent.queue.len() as u32,
                        recipient: agent.name.as_ref().into(),
                    };
                    let recipient = agent.id;
                    self.count_refusal(reason);
                    self.send_outcome(outcome(parcel, origin, recipient, what), outbox);
                }
            }
        }
        let count = accepted.len() as u32;
        let parts = self.options.shards;
        let number = if accepted.is_empty() {
            // The other homes' parts are whole only with this one.
            let epoch = self.options.epoch;
            let record = Record::Nobody { id: parcel.id, epoch, parts, at_ms: now.wall_ms };
            (parts > 1).then(|| self.push_record(record, outbox))
        } else {
            let record = Record::Message {
                id: parcel.id,
                raw: parcel.raw.clone(),
                checksum: parcel.checksum,
                accepted_at_ms: now.wall_ms,
                ttl_ms: parcel.ttl_ms,
                parts,
                recipients: Recipients::Many(accepted.into_boxed_slice()),
            };
            Some(self.push_record(record, outbox))
        };
        if parcel.wants != Wants::default() {
            let taken = outcome(parcel, origin, AgentId(0), What::FanoutTaken { recipients: count });
            self.send_outcome(taken, outbox);
            let committed = outcome(parcel, origin, AgentId(0), What::FanoutDurable);
            match number {
                Some(number) => self.uncommitted.push_back((number, committed)),
                None => self.send_outcome(committed, outbox),
            }
        }
    }

    /// Puts a message into one agent's order, if its bounds allow.
    fn offer(
        &mut self,
        now: Now,
        slot: AgentSlot,
        parcel: &Parcel,
        origin: Origin,
        channel: bool,
    ) -> Result<(crate::base::Sequence, bool), RefuseReason> {
        let bounds = &self.options.bounds;
        let agent = &mut self.agents[slot];
        let weight = Queue::weight(parcel.raw.len());
        if self.writer_full {
            return Err(RefuseReason::WriterFull);
        }
        let load = agent.queue.load();
        let owed_too_much = load.bytes > 0 && load.bytes + weight as u64 > bounds.owed_bytes_max as u64;
        if owed_too_much || agent.queue.len() >= bounds.waiting_messages_max {
            return Err(RefuseReason::RecipientFull);
        }
        // Memory holds so much for one slow reader, and so much for all of them; the rest waits in the store.
        let waiting = agent.queue.waiting_bytes();
        let spill = (waiting > 0 && waiting + weight > bounds.waiting_bytes_max)
            || self.waiting.resident as usize + weight > bounds.shard_waiting_bytes_max;
        if agent.dialect == Dialect::Json && parcel.raw.len() > SURELY_FITS_JSON {
            let message = Message::check(&parcel.raw, parcel.checksum);
            if message.is_none_or(|message| json::deliver_length(&message, &agent.name) > FRAME_BYTES_MAX) {
                return Err(RefuseReason::TooLong);
            }
        }
        let later = Wants::DELIVERED | Wants::ACKNOWLEDGED | Wants::READ;
        let wants = Wants(parcel.wants.0 & later.0);
        let ask = (wants != Wants::default()).then(|| Box::new(Ask { origin, wants, label: parcel.label_bytes() }));
        let kept = match parcel.ttl_ms {
            0 => bounds.retention,
            ttl_ms => Mono::ms(u64::from(ttl_ms)).min(bounds.retention),
        };
        let (expires_at, expires_ms) = (now.mono + kept, now.wall_ms.saturating_add(kept / Mono::ms(1)));
        let channel = channel || (agent.dialect == Dialect::Json && parcel.topic().starts_with(b"dm:"));
        // The next record pushed is the one that holds it.
        let record = self.records + 1;
        let sequence = agent.queue.offer(parcel, Offer { expires_at, expires_ms, channel, ask, record, spill });
        self.waiting = self.waiting.changed(load, agent.queue.load());
        if agent.listed.is_some() {
            // It is away, and owed something from now on.
            self.agents.list(slot);
        }
        if self.options.strict {
            self.held.push_back((record, slot));
        }
        self.arm_expiry(slot);
        self.counters.accepted += 1;
        Ok((sequence, channel))
    }

    /// To the socket what the window allows; the rest waits in memory of its own.
    fn hand_out(&mut self, now: Now, slot: AgentSlot, session: Option<SessionId>, outbox: &mut Outbox) {
        if let Some(id) = session {
            self.pump(now, slot, id, outbox);
        }
        self.agents[slot].queue.detach_last();
    }

    pub(super) fn expire_grace(&mut self, now: Now, outbox: &mut Outbox) {
        while let Some(waiting) = self.grace.overdue(now.mono) {
            self.refuse_parcel(now, &waiting.parcel, waiting.origin, RefuseReason::NotFound, Crowd::default(), outbox);
        }
    }

    /// Not accepted, and nothing was kept of it.
    fn refuse(
        &mut self,
        now: Now,
        message: &Message<'_>,
        origin: Origin,
        reason: RefuseReason,
        retry_after_ms: u32,
        outbox: &mut Outbox,
    ) {
        self.count_refusal(reason);
        let fields = message.fields();
        let what = What::Refused { reason, retry_after_ms, queue_depth: 0, recipient: text_of(fields.to).into() };
        let label = if fields.label.is_empty() { no_label() } else { Bytes::copy_from_slice(fields.label) };
        let (id, wants) = (message.id(), message.wants());
        self.push_note(Record::Refused { id, reason, at_ms: now.wall_ms }, outbox);
        self.send_outcome(Outcome { origin, id, label, wants, recipient: AgentId(0), what }, outbox);
    }

    fn refuse_parcel(
        &mut self,
        now: Now,
        parcel: &Parcel,
        origin: Origin,
        reason: RefuseReason,
        crowd: Crowd,
        outbox: &mut Outbox,
    ) {
        self.count_refusal(reason);
        if origin.submitted {
            self.tell_sender_home(parcel, reason, outbox);
        }
        let recipient = text_of(parcel.to()).into();
        self.push_note(Record::Refused { id: parcel.id, reason, at_ms: now.wall_ms }, outbox);
        let Crowd { retry_after_ms, depth } = crowd;
        let what = What::Refused { reason, retry_after_ms, queue_depth: depth, recipient };
        self.send_outcome(outcome(parcel, origin, AgentId(0), what), outbox);
    }

    /// Nothing was kept of what was submitted: the home of its sender's name is to let it come again. Until it knows, it is
    /// remembered here.
    fn tell_sender_home(&mut self, parcel: &Parcel, reason: RefuseReason, outbox: &mut Outbox) {
        if self.refused_lately.len() == REFUSED_LATELY_MAX {
            self.refused_lately.pop_front();
        }
        self.refused_lately.push_back((parcel.id, reason));
        let home = self.hasher.hash(parcel.from()).home(self.options.shards);
        if home == self.options.shard {
            self.on_given_back(parcel.id);
        } else {
            outbox.mails.push((home, Mail::GiveBack(parcel.id)));
        }
    }

    pub(super) fn count_refusal(&mut self, reason: RefuseReason) {
        self.counters.refusals[reason as usize] += 1;
    }

    /// Whether `id` is a connection without an agent: the command line's.
    pub(super) fn is_submitter(&self, id: SessionId) -> bool {
        self.sessions.find(id).is_some_and(|session| session.state == State::Fresh)
    }
}

/// What a sender is told beside the reason: how long to wait, and how many messages wait for the recipient.
#[derive(Clone, Copy, Default)]
struct Crowd {
    retry_after_ms: u32,
    depth: u32,
}

/// Whether a fan-out names a topic as it should, or none.
fn is_topic_good(message: &Message<'_>) -> bool {
    match message.to().strip_prefix(b"#") {
        Some(topic) => name::check_topic(topic).is_ok(),
        None => message.topic().is_empty() || name::check_topic(message.topic()).is_ok(),
    }
}

/// Whether `to` is everyone or a topic.
pub(super) fn is_fanout(to: &[u8]) -> bool {
    to == b"*" || to.first() == Some(&b'#')
}

pub(super) fn outcome(parcel: &Parcel, origin: Origin, recipient: AgentId, what: What) -> Outcome {
    Outcome { origin, id: parcel.id, label: parcel.label_bytes(), wants: parcel.wants, recipient, what }
}

fn retry_after_ms(reason: RefuseReason, queue: &Queue, now: Now) -> u32 {
    match reason {
        RefuseReason::RecipientFull => queue.retry_after_ms(now.mono),
        RefuseReason::TooLong => 0,
        // The writer empties its queue at least this often.
        _ => 50,
    }
}
