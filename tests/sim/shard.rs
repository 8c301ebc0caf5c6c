//! One simulated shard: the turn as the real one takes it, with the harness's hands for ring, mesh and writer.

use super::dice::Dice;
use super::ledger::Place;
use super::ledger::To;
use super::limits::Limits;
use super::link::End;
use super::speech;
use super::swarm::{Mutation, Swarm};
use super::world::World;
use agent_relay::base::tier::Entitled;
use agent_relay::base::{AgentId, CloseReason, MessageId, Mono, RefuseReason, Sequence, SessionId, ShardId};
use agent_relay::relay::{Event, Fetched, Mail, Options, Outbox, Output, Peer, Record, Relay};
use agent_relay::wire::{Ack, Dialect, Frame, Hello, ReceiptState};
use std::collections::{BTreeMap, VecDeque};

/// What travels between shards.
pub enum Post {
    /// From heart to heart.
    Mail(Mail),
    /// A connection on its way home.
    Adopt { link: usize, hello: Box<Hello<'static>>, grant: Option<Box<agent_relay::base::keys::Grant>> },
}

/// A shard.
pub struct Shard {
    pub relay: Relay,
    pub outbox: Outbox,
    /// Connections by slot: generation and link.
    slots: Vec<(u32, Option<usize>)>,
    free: Vec<usize>,
    pub written: Vec<(SessionId, Sequence)>,
    /// Told by the writer, and passed on.
    pub committed: u64,
    told_committed: u64,
    writer_full: Option<bool>,
    writer_was_full: bool,
    writer_behind: Option<bool>,
    pub writer_was_behind: bool,
    /// Records pushed and not handed to the writer.
    batch: Vec<Record>,
    /// Answers of the keeper, and when they arrive.
    pub fetched: VecDeque<(Mono, Fetched)>,
    pub stopping: bool,
    /// What it was told of the licence.
    pub entitlement: Entitled,
    /// Agents known at the last census.
    pub known: u32,
    /// Agents known from the start, however many may be met.
    pub restored: usize,
    /// Of them, those that are owed more than may be, and how much at the last look.
    pub restored_owed: BTreeMap<AgentId, usize>,
    /// Acknowledgements that were read in this turn, and up to where they may reach what this turn hands out.
    read_acks: Vec<(usize, Ack, Sequence)>,
}

impl Shard {
    pub fn new(shard: usize, swarm: &Swarm, limits: &Limits, epoch: u32, name_seed: u64, dice: &mut Dice) -> Shard {
        let mut token_seed = [shard as u8; 32];
        token_seed[1..9].copy_from_slice(&dice.any().to_le_bytes());
        let options = Options {
            shard: ShardId(shard as u16),
            shards: swarm.shards,
            epoch,
            name_seed,
            token_seed,
            strict: swarm.strict && swarm.mutation != Some(Mutation::StrictEarly),
            bounds: swarm.bounds.clone(),
            entitlement: limits.entitlement.clone(),
            require_auth: swarm.require_auth,
            bind_certificates: false,
            keys: limits.ring.clone(),
        };
        Shard {
            relay: Relay::new(options),
            outbox: Outbox::default(),
            slots: Vec::new(),
            free: Vec::new(),
            written: Vec::new(),
            committed: 0,
            told_committed: 0,
            writer_full: None,
            writer_was_full: false,
            writer_behind: None,
            writer_was_behind: false,
            batch: Vec::new(),
            fetched: VecDeque::new(),
            stopping: false,
            entitlement: limits.entitlement.clone(),
            known: 0,
            restored: 0,
            restored_owed: BTreeMap::new(),
            read_acks: Vec::new(),
        }
    }

    fn seat(&mut self, link: usize) -> SessionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() - 1
        });
        self.slots[slot].0 += 1;
        self.slots[slot].1 = Some(link);
        SessionId { slot: slot as u32, generation: self.slots[slot].0 }
    }

    fn link(&self, session: SessionId) -> Option<usize> {
        let (generation, link) = self.slots.get(session.slot as usize)?;
        if *generation == session.generation { *link } else { None }
    }

    fn unseat(&mut self, session: SessionId) {
        self.slots[session.slot as usize].1 = None;
        self.free.push(session.slot as usize);
    }

    /// Whether the writer's queue has room.
    pub fn note_full(&mut self, full: bool) {
        if full != self.writer_was_full {
            self.writer_was_full = full;
            self.writer_full = Some(full);
        }
    }

    /// Whether the writer is behind, as this shard sees it: a little less than made it so must wait before it is not.
    pub fn note_behind(&mut self, behind: impl Fn(bool) -> bool) {
        let behind = behind(self.writer_was_behind);
        if behind != self.writer_was_behind {
            self.writer_was_behind = behind;
            self.writer_behind = Some(behind);
        }
    }

    /// Nothing of what was told is still to be passed on.
    pub fn is_quiet(&self) -> bool {
        self.written.is_empty()
            && self.batch.is_empty()
            && self.fetched.is_empty()
            && self.told_committed == self.committed
            && !self.relay.progress_is_due()
    }
}

const LAST: Sequence = Sequence { epoch: u32::MAX, counter: u64::MAX };

impl World {
    /// One turn of a shard.
    pub fn turn(&mut self, me: usize) {
        self.take_notices(me);
        self.take_mail(me);
        self.take_writer_news(me);
        self.take_connections(me);
        let shard = &mut self.shards[me];
        shard.relay.expire(self.now, &mut shard.outbox);
        self.perform(me);
        if (!self.shards[me].batch.is_empty() || self.shards[me].relay.progress_is_due())
            && (!self.faults || self.dice.chance(300))
        {
            self.hand_batch(me);
        }
        if self.dice.chance(50) {
            self.census(me);
        }
        let shard = &self.shards[me];
        assert!(shard.outbox.is_empty(), "nothing is forgotten between turns");
    }

    /// What the shard has recorded goes to the writer.
    pub fn hand_batch(&mut self, me: usize) {
        let shard = &mut self.shards[me];
        shard.relay.tell_progress(self.now, &mut shard.outbox);
        self.perform(me);
        let batch = std::mem::take(&mut self.shards[me].batch);
        self.disk.hand(me, batch);
    }

    fn take_mail(&mut self, me: usize) {
        let budget = if self.faults { self.dice.range(1, 40) } else { 1_000 };
        for _ in 0..budget {
            // Across pairs of shards the order is arbitrary.
            let first = self.dice.index(self.shards.len());
            let ready = (0..self.shards.len())
                .map(|offset| (first + offset) % self.shards.len())
                .find(|from| self.lanes[*from][me].front().is_some_and(|(at, _)| *at <= self.now.mono));
            let Some(from) = ready else { return };
            if self.lanes[from][me].len() > 1 && self.strikes(Mutation::SwapMails) {
                self.lanes[from][me].swap(0, 1);
            }
            let Some((_, post)) = self.lanes[from][me].pop_front() else { return };
            match post {
                Post::Adopt { link, hello, grant } => {
                    let session = self.shards[me].seat(link);
                    self.links[link].end = End::At(me, session);
                    let (peer, dialect) =
                        (Peer { owner: self.links[link].owner, ..Peer::default() }, self.links[link].dialect);
                    self.marks.hit("moved");
                    self.handle(me, Event::Adopted { session, peer, dialect, hello, grant });
                }
                Post::Mail(mail) => {
                    if let Mail::Send { parcel, .. } | Mail::Fanout { parcel, .. } = &mail {
                        let index = self.ledger.index_of(&parcel.raw);
                        self.ledger.sent[index].mails -= 1;
                    }
                    let Some(mail) = self.spoil(mail) else { continue };
                    let twice = self.twice(&mail);
                    for mail in [Some(mail), twice].into_iter().flatten() {
                        self.handle(me, Event::Mail { from: ShardId(from as u16), mail });
                    }
                }
            }
        }
    }

    fn take_writer_news(&mut self, me: usize) {
        let shard = &mut self.shards[me];
        if shard.committed > shard.told_committed {
            shard.told_committed = shard.committed;
            shard.relay.handle(self.now, Event::Committed { through: shard.committed }, &mut shard.outbox);
        }
        if let Some(full) = shard.writer_full.take() {
            shard.relay.handle(self.now, Event::WriterFull(full), &mut shard.outbox);
        }
        if let Some(behind) = shard.writer_behind.take()
            && (behind || !(self.strikes(Mutation::LoseRelease) || self.stuck(Mutation::LoseRelease)))
        {
            let shard = &mut self.shards[me];
            shard.relay.handle(self.now, Event::WriterBehind(behind), &mut shard.outbox);
        }
        let shard = &mut self.shards[me];
        while let Some((_, fetched)) = shard.fetched.pop_front_if(|(at, _)| *at <= self.now.mono) {
            shard.relay.handle(self.now, Event::Fetched(Box::new(fetched)), &mut shard.outbox);
        }
    }

    fn take_connections(&mut self, me: usize) {
        let written = std::mem::take(&mut self.shards[me].written);
        for (session, through) in written {
            if self.shards[me].link(session).is_some() {
                let shard = &mut self.shards[me];
                shard.relay.handle(self.now, Event::Written { session, through }, &mut shard.outbox);
            }
        }
        for index in 0..self.links.len() {
            let link = &mut self.links[index];
            if link.end == End::Backlog(me) {
                if link.broken && link.client_gone {
                    link.end = End::Gone;
                    continue;
                }
                let session = self.shards[me].seat(index);
                let link = &mut self.links[index];
                link.end = End::At(me, session);
                let peer = Peer { owner: link.owner, ..Peer::default() };
                let shard = &mut self.shards[me];
                shard.relay.handle(self.now, Event::Opened { session, peer }, &mut shard.outbox);
            }
            let End::At(shard, session) = self.links[index].end else { continue };
            if shard != me {
                continue;
            }
            self.read(me, index, session);
            let link = &mut self.links[index];
            if link.broken && link.relay_notices_at <= self.now.mono {
                if self.strikes(Mutation::ForgetClosed) {
                    self.links[index].relay_notices_at = Mono(u64::MAX);
                    self.links[index].end = End::Gone;
                    continue;
                }
                // The heart may have let go of it earlier in this turn.
                self.perform(me);
                if self.links[index].end != End::At(me, session) {
                    continue;
                }
                self.links[index].end = End::Gone;
                if self.links[index].paused {
                    self.limits.note_debt();
                }
                self.handle(me, Event::Closed { session, reason: CloseReason::Lost });
                self.shards[me].unseat(session);
            }
        }
    }

    fn read(&mut self, me: usize, index: usize, session: SessionId) {
        let mut budget = if self.faults { self.dice.range(0, 40) } else { 1_000 };
        let arrived = std::mem::take(&mut self.links[index].arrived);
        let dialect = self.links[index].dialect;
        let mut at = 0;
        while budget > 0 {
            let link = &mut self.links[index];
            if link.hello_read && !link.settled && self.swarm.mutation != Some(Mutation::ReadPastHello) {
                break;
            }
            let paused = self.shards[me].relay.is_paused(session) || self.links[index].stuck;
            if paused && !self.strikes(Mutation::IgnorePause) {
                break;
            }
            let link = &mut self.links[index];
            budget -= 1;
            let shard = &mut self.shards[me];
            match speech::read(dialect, &arrived[at..]) {
                Ok(None) => break,
                Ok(Some(mut heard)) => {
                    at += heard.length;
                    let mut acks = Vec::new();
                    match &heard.frame {
                        Frame::Hello(hello) => {
                            link.hello_read = true;
                            self.ledger.written_before(self.agents[link.agent].id, hello.handled);
                        }
                        Frame::Ack(ack) => acks.push(*ack),
                        _ => {}
                    }
                    if heard.ack.counter > 0 {
                        acks.push(Ack::Through(heard.ack));
                    }
                    if !acks.is_empty() {
                        // Nobody acknowledges what had not left yet when it was read.
                        let name = self.agents[link.agent].id;
                        let handed = self.ledger.orders.get(&name).map(|order| order.handed_through);
                        let most =
                            handed.filter(|handed| handed.0 == index).map_or(Sequence::default(), |handed| handed.1);
                        for ack in &acks {
                            match ack {
                                Ack::Through(through) => self.ledger.written(name, index, *through),
                                Ack::One(sequence) => self.ledger.written(name, index, *sequence),
                                Ack::Message(id) => self.ledger.written_message(name, *id),
                                Ack::Unknown => {}
                            }
                        }
                        shard.read_acks.extend(acks.into_iter().filter_map(|ack| match ack {
                            Ack::Through(through) => Some((index, Ack::Through(through.min(most)), through)),
                            Ack::One(sequence) if sequence <= most => Some((index, ack, Sequence::default())),
                            Ack::Message(_) => Some((index, ack, Sequence::default())),
                            _ => None,
                        }));
                    }
                    if self.verbose {
                        let text = match &heard.frame {
                            Frame::Send(message) | Frame::Submit(message) => format!("SEND {:?}", message.id()),
                            other => format!("{other:?}"),
                        };
                        eprintln!("link {index} -> {text}, ack {:?}", heard.ack);
                    }
                    if let Frame::Hello(hello) = &mut heard.frame
                        && self.swarm.mutation == Some(Mutation::IgnorePosition)
                    {
                        hello.handled = Sequence::default();
                    }
                    let sent = match &heard.frame {
                        Frame::Send(message) => {
                            let duplicates = shard.relay.gauges().counters.duplicates;
                            self.ledger.find_index(message.raw).map(|index| (index, duplicates))
                        }
                        _ => None,
                    };
                    let counters = (self.swarm.rate.is_some()
                        && matches!(heard.frame, Frame::Send(_) | Frame::Submit(_)))
                    .then(|| shard.relay.gauges().counters);
                    if matches!(heard.frame, Frame::Submit(_)) {
                        self.limits.note_debt();
                    }
                    let event = Event::Frame { session, dialect, ack: heard.ack, frame: heard.frame };
                    self.handle(me, event);
                    if let Some(before) = counters {
                        self.check_rate(me, &before);
                    }
                    let shard = &mut self.shards[me];
                    if let Some((index, duplicates)) = sent {
                        let sent = &mut self.ledger.sent[index];
                        if shard.relay.gauges().counters.duplicates == duplicates {
                            if !matches!(sent.to, To::Name(_)) {
                                // Sent anew, to whoever is reachable now.
                                sent.lost.clear();
                            }
                        } else if sent.accepted.iter().any(|accepted| accepted.epoch < self.ledger.epoch) {
                            self.marks.hit("duplicate after a restart");
                            if dialect == Dialect::Json {
                                self.marks.hit("label sent again after a restart");
                            }
                        }
                    }
                }
                Err(corrupt) => {
                    let event = Event::Corrupt { session, dialect: Some(dialect), corrupt };
                    shard.relay.handle(self.now, event, &mut shard.outbox);
                    at = arrived.len();
                    break;
                }
            }
        }
        self.links[index].arrived = arrived[at..].to_vec();
    }

    /// Does what the heart asks for.
    pub fn perform(&mut self, me: usize) {
        let mut outbox = std::mem::take(&mut self.shards[me].outbox);
        let (mut failed, mut met, mut forgotten) = (Vec::new(), Vec::new(), Vec::new());
        for mut record in outbox.records.drain(..) {
            if let Record::Gone { agent, .. } = record
                && self.strikes(Mutation::ForgetOwed)
            {
                record = Record::Forgotten { agent };
            }
            let minds = match &record {
                Record::Progress(progress) => self.minds(progress.agent),
                _ => true,
            };
            self.ledger.recorded(self.now, me, &record, minds, &mut self.marks);
            match &record {
                Record::Known { agent, .. } => met.push(*agent),
                Record::Forgotten { agent } => forgotten.push(*agent),
                Record::Message { raw, recipients, .. } => {
                    if recipients.as_slice().iter().any(|to| met.contains(&to.agent)) {
                        self.marks.hit("grace hit");
                    }
                    let index = self.ledger.index_of(raw);
                    self.say(&format!("shard {me} accepts message {index} for {:?}", recipients.as_slice()));
                }
                other => self.say(&format!("shard {me} records {other:?}")),
            }
            if let Record::Failed { id, recipient, reason } = record {
                failed.push((id, recipient, reason));
            }
            self.shards[me].batch.push(record);
        }
        (outbox.records_weight, outbox.records_urgent) = (0, false);
        for fetch in outbox.fetches.drain(..) {
            let delay = if self.faults { self.dice.below(self.swarm.fetch_delay + 1) } else { 0 };
            self.disk.ask(self.now.mono + delay, me, fetch);
        }
        for (to, mail) in outbox.mails.drain(..) {
            if let Mail::Send { parcel, .. } | Mail::Fanout { parcel, .. } = &mail {
                let index = self.ledger.index_of(&parcel.raw);
                self.ledger.sent[index].mails += 1;
            }
            assert_ne!(usize::from(to.0), me, "no mail to oneself");
            self.post(me, usize::from(to.0), Post::Mail(mail));
        }
        outbox.questions.clear();
        assert!(outbox.readings.is_empty(), "nobody here says to have read anything");
        for output in outbox.outputs.drain(..) {
            self.output(me, output);
        }
        for (id, recipient, reason) in failed {
            self.ledger.failed(self.now, id, recipient, reason);
        }
        self.shards[me].outbox = outbox;
        self.shards[me].relay.end_turn();
        self.check_seats();
        for (link, ack, most) in std::mem::take(&mut self.shards[me].read_acks) {
            let name = self.agents[self.links[link].agent].id;
            self.ledger.maybe_acknowledged(name, link, most);
            self.believe(link, ack);
        }
        for agent in forgotten {
            let minds = self.minds(agent);
            self.ledger.check_forgotten(agent, minds);
        }
        for link in &mut self.links {
            if matches!(link.end, End::At(shard, _) if shard == me) {
                link.start_flush();
            }
        }
    }

    /// What the relay has read as an acknowledgement must not be delivered again.
    fn believe(&mut self, link: usize, ack: Ack) {
        let name = self.agents[self.links[link].agent].id;
        if !self.links[link].settled {
            return;
        }
        if !matches!(self.links[link].end, End::At(..)) {
            // It was closed in this turn, before or after the acknowledgement.
            return self.ledger.maybe_acknowledged(name, link, LAST);
        }
        match ack {
            Ack::Through(through) => self.ledger.acknowledged_through(self.now.mono, name, Some(link), through),
            Ack::One(sequence) => self.ledger.acknowledged_one(name, link, sequence),
            Ack::Message(id) => self.ledger.acknowledged_message(name, link, id),
            Ack::Unknown => {}
        }
    }

    fn post(&mut self, from: usize, to: usize, post: Post) {
        let delay = if self.faults { self.dice.below(self.swarm.mail_delay + 1) } else { 0 };
        self.lanes[from][to].push_back((self.now.mono + delay, post));
    }

    fn output(&mut self, me: usize, output: Output) {
        match output {
            Output::Deliver(delivery) => {
                let index = self.linked(me, delivery.session);
                if self.strikes(Mutation::DropDelivery) {
                    return;
                }
                let link = &mut self.links[index];
                assert!(link.settled, "only a settled connection gets deliveries");
                let name = self.agents[link.agent].id;
                let (sequence, flags, raw) = (delivery.sequence, delivery.flags, &delivery.raw);
                if self.ledger.handed(name, index, self.now.mono, sequence, flags, raw) == 5 {
                    self.marks.hit("sent five times");
                }
                speech::deliver(&mut link.egress, link.dialect, flags, sequence, raw, delivery.checksum);
                link.egress_through = link.egress_through.max(sequence);
                self.mix(index as u64, raw.len() as u64 ^ sequence.counter << 20);
                if self.verbose {
                    let message = self.ledger.index_of(raw);
                    self.say(&format!("link {index} <- message {message} as {}, flags {flags}", sequence.counter));
                }
                if self.strikes(Mutation::RepeatDelivery) {
                    self.ledger.handed(name, index, self.now.mono, sequence, flags, raw);
                }
            }
            Output::Reply { session, frame } => {
                let index = self.linked(me, session);
                self.check_reply(index, &frame);
                let link = &mut self.links[index];
                let before = link.egress.len();
                speech::frame(&mut link.egress, link.dialect, &frame, Sequence::default());
                let said = link.egress.len() - before;
                self.mix(index as u64, said as u64);
                self.say(&format!("link {index} ({}) <- {frame:?}", self.agents[self.links[index].agent].name));
            }
            Output::Receipt { session, receipt } => {
                let index = self.linked(me, session);
                let mine = self.agents[self.links[index].agent].id == receipt.id.sender;
                assert!(mine || self.agents[self.links[index].agent].submitter, "a receipt for a stranger");
                for number in receipt.id.number..receipt.id.number + u64::from(receipt.count) {
                    let id = MessageId { number, ..receipt.id };
                    match receipt.state {
                        ReceiptState::Accepted => self.ledger.says_accepted(id),
                        ReceiptState::Durable => self.ledger.says_durable(id),
                        ReceiptState::Delivered => self.check_delivered(id, receipt.recipient, false),
                        ReceiptState::Acknowledged => self.check_delivered(id, receipt.recipient, true),
                        ReceiptState::Failed(_) | ReceiptState::Read => {}
                    }
                }
                let link = &mut self.links[index];
                let frame = Frame::Receipt(vec![receipt]);
                speech::frame(&mut link.egress, link.dialect, &frame, Sequence::default());
                self.mix(index as u64, receipt.id.number);
                self.say(&format!("link {index} ({}) <- {receipt:?}", self.agents[self.links[index].agent].name));
            }
            Output::Settle { session, name, agent, .. } => {
                let index = self.linked(me, session);
                let program = &self.agents[self.links[index].agent];
                assert_eq!((&*name, agent), (program.name.as_str(), program.id));
                let id = program.id;
                let other = self.links.iter().position(|link| {
                    link.settled && matches!(link.end, End::At(..)) && self.agents[link.agent].id == id
                });
                assert_eq!(other, None, "one name lives on two connections");
                self.links[index].settled = true;
                self.say(&format!("link {index} is {name} at shard {me}"));
            }
            Output::Move { session, to, hello, grant } => {
                let index = self.linked(me, session);
                self.shards[me].unseat(session);
                self.links[index].end = End::Moving;
                self.post(me, usize::from(to.0), Post::Adopt { link: index, hello, grant });
            }
            Output::Pause { session } => {
                let index = self.linked(me, session);
                self.paused(index, true);
            }
            Output::Resume { session } => {
                let index = self.linked(me, session);
                self.paused(index, false);
            }
            Output::Close { session, reason } => {
                let index = self.linked(me, session);
                self.say(&format!("link {index} is closed: {}", reason.name()));
                self.mark_close(index, reason);
                self.shards[me].unseat(session);
                self.links[index].end = End::Gone;
                self.links[index].closing = true;
                if self.links[index].paused {
                    self.limits.note_debt();
                }
            }
        }
    }

    /// The link of a session that an output names: the heart never speaks to one that it has closed.
    fn linked(&self, me: usize, session: SessionId) -> usize {
        self.shards[me].link(session).expect("the heart speaks to open connections only")
    }

    fn mix(&mut self, first: u64, second: u64) {
        for word in [first, second, self.now.mono.0] {
            self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(7);
        }
    }

    fn check_reply(&mut self, index: usize, frame: &Frame<'_>) {
        let agent = &self.agents[self.links[index].agent];
        let id = |number| MessageId { sender: agent.id, number };
        match frame {
            Frame::Welcome(welcome) => {
                let (handled, presented) = (self.links[index].handled, self.links[index].presented);
                if let Some(good) = self.ledger.resumable.remove(&agent.id)
                    && presented.is_some_and(|token| good.contains(&token))
                    && self.swarm.long_jumps == 0
                {
                    assert!(welcome.resumed, "the session of {} was on disk and does not go on", agent.name);
                    self.marks.hit("resumed after a restart");
                }
                if welcome.resumed {
                    self.ledger.believed(agent.id, handled);
                    self.ledger.acknowledged_through(self.now.mono, agent.id, None, handled);
                }
            }
            Frame::Busy(busy) => {
                self.ledger.says_refused(id(busy.number));
                match busy.reason {
                    RefuseReason::RecipientFull => self.marks.hit("recipient full"),
                    RefuseReason::WriterFull => self.marks.hit("writer full"),
                    _ => {}
                }
            }
            Frame::Error(error) => match error.outcome {
                Some(RefuseReason::Expired | RefuseReason::Retention) | None => {}
                Some(reason) => {
                    if reason == RefuseReason::NotFound {
                        self.marks.hit("grace expired");
                    }
                    self.ledger.says_refused(id(error.number));
                }
            },
            Frame::SendAck { label, .. } => {
                let number = agent_relay::base::ids::number_of_label(label.as_bytes());
                let id = id(number);
                self.ledger.says_durable(id);
            }
            _ => {}
        }
    }

    fn check_delivered(&mut self, id: MessageId, recipient: AgentId, acknowledged: bool) {
        let index = self.ledger.by_id[&id];
        if !self.ledger.sent[index].ruly || !self.minds(recipient) {
            return;
        }
        if self.ledger.forgotten.contains(&id.sender) {
            // Both it and the relay may have forgotten its numbers: then this one stands for two messages.
            return;
        }
        let Some(order) = self.ledger.orders.get(&recipient) else { panic!("{recipient:?} owes nothing") };
        let mut places = order.places().map(|(_, place)| place).filter(|place| place.message == index);
        let handed = |place: &Place| place.handed > 0 && (place.written || place.acknowledged || acknowledged);
        let fits = |place: &Place| handed(place) || place.named;
        assert!(places.any(fits), "message {index} is called delivered too early");
    }

    fn mark_close(&mut self, index: usize, reason: CloseReason) {
        let link = &self.links[index];
        let name_index = self.agents[link.agent].name_index;
        match reason {
            CloseReason::DuplicateConnection => {
                self.marks.hit("close: duplicate_connection");
                if link.settled {
                    self.marks.hit("taken over");
                    self.ledger.name_taken_over(name_index, self.now.mono);
                }
            }
            CloseReason::HalfOpenFull => self.marks.hit("close: half_open_full"),
            CloseReason::HalfOpenCrowd => self.marks.hit("close: half_open_crowd"),
            CloseReason::HelloTimeout => self.marks.hit("close: hello_timeout"),
            CloseReason::KnownAgentsFull => self.marks.hit("close: known_agents_full"),
            CloseReason::Protocol => self.marks.hit("close: protocol"),
            CloseReason::Corrupt => self.marks.hit("close: corrupt"),
            CloseReason::Shutdown => self.marks.hit("close: shutdown"),
            CloseReason::Silent => {
                self.marks.hit("close: silent");
                let link = &self.links[index];
                let unheard = link.settled && matches!(speech::read(link.dialect, &link.arrived), Ok(Some(_)));
                assert!(self.faults || link.broken || !unheard, "called silent, and what it has said was not read");
            }
            _ => {}
        }
        self.mark_limits(reason);
    }
}
