//! Model clients: they keep a client's rules (or break them on purpose), and tell the ledger what they say and see.

use super::dice::Dice;
use super::ledger::{Ledger, Sent, To, Told};
use super::link::{End, Link};
use super::marks::Marks;
use super::speech;
use super::swarm::Swarm;
use agent_relay::base::ids::{Token, number_of_label};
use agent_relay::base::{AgentId, MessageId, Mono, RefuseReason, Sequence};
use agent_relay::wire::{
    Ack, Dialect, ErrorCode, FLAG_CHANNEL, Frame, Hello, Kind, Message, MessageFields, Receipt, ReceiptState, Topic,
    Wants,
};
use std::collections::BTreeMap;

/// How a client acknowledges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acks {
    /// Everything so far, riding on frames or alone.
    Through,
    /// Each message on its own.
    Single,
    /// Not at all.
    Never,
}

/// A program and its client.
pub struct Agent {
    pub index: usize,
    pub name: String,
    /// Programs with the same name share this.
    pub name_index: usize,
    pub id: AgentId,
    pub dialect: Dialect,
    pub acks: Acks,
    pub liar: bool,
    pub submitter: bool,
    /// The number of its key.
    pub key: Option<usize>,
    /// Keeps the rules and is alone with its name.
    pub ruly: bool,
    pub loses_state: bool,
    pub link: Option<usize>,
    pub connect_at: Mono,
    pub welcomed: bool,
    /// Takes no further part.
    pub retired: bool,
    pub token: Option<Token>,
    session: Option<Token>,
    epoch: u32,
    pub handled: Sequence,
    pub told_handled: Sequence,
    single: Vec<(Sequence, MessageId)>,
    number: u64,
    by_number: BTreeMap<u64, usize>,
    /// Sent, and no definite outcome heard.
    pub unknown: BTreeMap<usize, u64>,
    /// Refused, to be sent again.
    pub again: Vec<(Mono, usize)>,
    pub budget: u64,
    pub deaf_until: Mono,
    seen: BTreeMap<AgentId, u64>,
}

/// What an agent may touch.
pub struct Around<'a> {
    pub now: Mono,
    pub faults: bool,
    pub verbose: bool,
    pub swarm: &'a Swarm,
    pub names: &'a [String],
    pub secrets: &'a [String],
    pub dice: &'a mut Dice,
    pub links: &'a mut Vec<Link>,
    pub ledger: &'a mut Ledger,
    pub marks: &'a mut Marks,
}

impl Agent {
    pub fn new(index: usize, name_index: usize, name: &str, swarm: &Swarm, dice: &mut Dice) -> Agent {
        let acks = if dice.chance(swarm.never_ack) {
            Acks::Never
        } else if dice.chance(swarm.single_ack) {
            Acks::Single
        } else {
            Acks::Through
        };
        let late = if dice.chance(swarm.late) { Mono(dice.below(swarm.rounds * swarm.step / 2)) } else { Mono(0) };
        let dialect = if dice.chance(swarm.json) { Dialect::Json } else { Dialect::Native };
        Agent {
            index,
            name: name.to_owned(),
            name_index,
            id: AgentId::of(name.as_bytes()),
            dialect,
            acks: if dialect == Dialect::Json && acks == Acks::Through { Acks::Single } else { acks },
            liar: dice.chance(swarm.liars),
            submitter: false,
            key: None,
            ruly: true,
            loses_state: dice.chance(swarm.loses_state),
            link: None,
            connect_at: late,
            welcomed: false,
            retired: false,
            token: None,
            session: None,
            epoch: 0,
            handled: Sequence::default(),
            told_handled: Sequence::default(),
            single: Vec::new(),
            number: 0,
            by_number: BTreeMap::new(),
            unknown: BTreeMap::new(),
            again: Vec::new(),
            budget: dice.below(swarm.messages * 2 + 1),
            deaf_until: Mono(0),
            seen: BTreeMap::new(),
        }
    }

    /// One step of the program.
    pub fn step(&mut self, around: &mut Around<'_>) {
        let Some(link) = self.link else {
            if !self.retired && around.now >= self.connect_at {
                self.connect(around);
            }
            return;
        };
        if around.links[link].broken && around.now >= around.links[link].client_notices_at {
            return self.part(around, link);
        }
        if around.faults && self.deaf_until > around.now {
            return;
        }
        if around.faults && around.dice.chance(around.swarm.stops_reading) {
            self.deaf_until = around.now + around.dice.below(Mono::ms(20_000));
        }
        self.listen(around, link);
        if self.link != Some(link) {
            return;
        }
        if around.links[link].ended && around.links[link].down.is_empty() && around.links[link].heard.is_empty() {
            return self.part(around, link);
        }
        if self.submitter {
            return self.submit(around, link);
        }
        if !self.welcomed {
            return;
        }
        self.acknowledge(around, link);
        self.speak(around, link);
        if around.faults && around.dice.chance(around.swarm.bye) {
            around.links[link].say(&Frame::Bye, Sequence::default());
            self.welcomed = false;
        }
    }

    fn connect(&mut self, around: &mut Around<'_>) {
        let shard = around.dice.index(usize::from(around.swarm.shards));
        let mut link = Link::new(self.index, self.dialect, self.submitter, shard);
        let index = around.links.len();
        if !self.submitter {
            if around.faults && self.liar && around.dice.chance(300) {
                let to = To::Name(AgentId::of(around.names[0].as_bytes()));
                let void = self.compose(around, around.names[0].clone(), to, 1 << 40, true);
                let ledger = &around.ledger.sent[void];
                let (id, raw) = (ledger.id, ledger.raw.clone());
                let fields = Message::check(&raw, 0).expect("ours").fields();
                debug_assert_eq!(fields.id, id);
                speech::send(&mut link.up, self.dialect, Kind::Send, &fields, Sequence::default());
            }
            if !(around.faults && self.liar && around.dice.chance(100)) {
                let guesses = around.faults && self.liar && self.key.is_some() && around.dice.chance(300);
                link.secret = match self.key {
                    Some(_) if guesses => Some("ar_key_of_somebody_else".to_owned()),
                    key => key.map(|key| around.secrets[key].clone()),
                };
                let hello = Hello {
                    auth_type: if link.secret.is_some() { "api_key".into() } else { "".into() },
                    credential: wire_secret(&link.secret),
                    claimed_name: self.name.as_bytes().into(),
                    in_flight_max: around.swarm.window,
                    resume: self.token,
                    resume_presented: self.token.is_some(),
                    handled: if self.dialect == Dialect::Native { self.handled } else { Sequence::default() },
                    ..Hello::default()
                };
                link.handled = hello.handled;
                link.presented = hello.resume;
                link.say(&Frame::Hello(Box::new(hello)), Sequence::default());
            }
        }
        around.links.push(link);
        if around.faults
            && self.ruly
            && !self.liar
            && !self.submitter
            && !self.loses_state
            && self.unknown.is_empty()
            && self.again.is_empty()
        {
            // Some do not wait for WELCOME.
            for _ in 0..around.dice.below(3).min(self.budget) {
                self.budget -= 1;
                self.number += 1;
                let (name, to) = whom(around);
                let message = self.compose(around, name, to, self.number, false);
                self.say(around, index, message);
            }
        }
        self.link = Some(index);
        self.welcomed = false;
        self.told_handled = Sequence::default();
        self.single.clear();
    }

    /// The connection is over for the program.
    fn part(&mut self, around: &mut Around<'_>, link: usize) {
        let gone = &mut around.links[link];
        gone.client_gone = true;
        gone.tear(around.now + around.dice.below(Mono::ms(if around.faults { 3_000 } else { 10 })), around.now);
        self.link = None;
        self.welcomed = false;
        let pause = if around.faults { around.dice.pick(&[0, 10, 1_000, 5_000]) } else { 300 };
        let pause = if around.faults && around.dice.chance(around.swarm.away) { 10_000_000 } else { pause };
        self.connect_at = around.now + Mono::ms(pause).max(self.connect_at.since(around.now));
        if self.submitter {
            self.retired |= self.budget == 0 || !around.faults;
            self.unknown.clear();
        } else if around.faults && self.loses_state && around.dice.chance(500) {
            around.marks.hit("lost its state");
            self.token = None;
            self.handled = Sequence::default();
            self.unknown.clear();
            self.again.clear();
            self.by_number.clear();
            self.number = 0;
            self.seen.clear();
        }
    }

    fn listen(&mut self, around: &mut Around<'_>, link: usize) {
        let heard = std::mem::take(&mut around.links[link].heard);
        let mut at = 0;
        while let Some(said) = speech::read(self.dialect, &heard[at..]).expect("the relay speaks well") {
            at += said.length;
            match said.frame {
                Frame::Welcome(welcome) => {
                    self.welcomed = true;
                    self.token = Some(welcome.resume);
                    assert_eq!(welcome.agent, self.id);
                    self.number = self.number.max(welcome.number);
                    if welcome.resumed {
                        around.marks.hit("resumed");
                        assert!(
                            !self.ruly || self.session == Some(welcome.session),
                            "{} has another session",
                            self.name
                        );
                    }
                    self.session = Some(welcome.session);
                    if welcome.epoch != self.epoch {
                        self.epoch = welcome.epoch;
                        for index in self.by_number.values() {
                            around.ledger.sent[*index].told.forget_states();
                        }
                    }
                    // Numbers grow on each connection: what was refused before goes first, in its place.
                    let again = std::mem::take(&mut self.again);
                    if !around.faults || around.dice.chance(800) {
                        // What may or may not have arrived is said again, in its order, under its numbers.
                        let mut unknown: Vec<usize> = self.unknown.keys().copied().collect();
                        unknown.extend(again.iter().map(|(_, message)| *message));
                        unknown.sort_unstable();
                        unknown.dedup();
                        for message in unknown {
                            self.say(around, link, message);
                        }
                    } else {
                        self.unknown.clear();
                    }
                }
                Frame::Deliver(message) => self.deliver(around, said.sequence, said.flags, &message),
                Frame::Receipt(receipts) => {
                    for receipt in receipts {
                        for number in receipt.id.number..receipt.id.number + u64::from(receipt.count) {
                            self.outcome(around, Receipt { id: MessageId { number, ..receipt.id }, ..receipt });
                        }
                    }
                }
                Frame::SendAck { label, .. } => {
                    let id = MessageId { sender: self.id, number: number_of_label(label.as_bytes()) };
                    let receipt = Receipt { id, count: 1, state: ReceiptState::Durable, recipient: AgentId(0) };
                    self.outcome(around, receipt);
                }
                Frame::Busy(busy) => {
                    around.marks.hit("busy");
                    if busy.reason == RefuseReason::RateLimited {
                        around.marks.hit("told to slow down");
                        let id = MessageId { sender: self.id, number: busy.number };
                        let sent = around.ledger.by_id.get(&id).map(|index| &around.ledger.sent[*index]);
                        let submitted = sent.is_some_and(|sent| sent.submitted);
                        assert!(busy.retry_after_ms > 0);
                        assert!(busy.number == 0 || submitted, "it is no SEND that is refused");
                    }
                    // Of many recipients, one could not take it; the others may have it.
                    let whole = busy.recipient == "*" || busy.recipient.starts_with('#');
                    self.refused(around, busy.number, whole, busy.retry_after_ms);
                }
                Frame::Error(error) => {
                    if matches!(
                        error.code,
                        ErrorCode::DuplicateConnection | ErrorCode::QuotaExceeded | ErrorCode::Unauthorized
                    ) {
                        let pause = Mono::ms(around.dice.range(100, 4_000));
                        self.connect_at = self.connect_at.max(around.now + pause);
                        if error.code == ErrorCode::QuotaExceeded && !around.faults {
                            self.retired = true;
                        }
                    }
                    match error.outcome {
                        Some(RefuseReason::Expired | RefuseReason::Retention) if self.dialect == Dialect::Json => {
                            around.marks.hit("failed receipt");
                        }
                        Some(RefuseReason::NotFound) => self.refused(around, error.number, true, 1_000),
                        _ => {}
                    }
                }
                Frame::Ping(nonce) => around.links[link].say(&Frame::Pong(nonce), Sequence::default()),
                Frame::Bye | Frame::Pong(_) => {}
                other => panic!("the relay does not say {other:?}"),
            }
        }
        around.links[link].heard.splice(0..0, heard[at..].iter().copied());
    }

    fn deliver(&mut self, around: &mut Around<'_>, sequence: Sequence, flags: u8, message: &Message<'_>) {
        // Clients of 1.6.0 do not acknowledge channel messages.
        if self.dialect == Dialect::Native || flags & FLAG_CHANNEL == 0 {
            self.single.push((sequence, message.id()));
        }
        if sequence <= self.handled {
            // A repeat says that the relay has not heard of it.
            self.told_handled = Sequence::default();
            return;
        }
        self.handled = sequence;
        if self.dialect == Dialect::Json {
            around.marks.hit("json delivery");
        }
        let once = self.ruly && !self.loses_state;
        around.ledger.handled(self.id, sequence, message.raw, once, &mut self.seen);
    }

    fn acknowledge(&mut self, around: &mut Around<'_>, link: usize) {
        let link = &mut around.links[link];
        if around.faults && self.liar && around.dice.chance(30) {
            let beyond = Sequence { epoch: self.handled.epoch.max(around.ledger.epoch), counter: around.dice.any() };
            link.say(
                &Frame::Ack(if around.dice.chance(500) { Ack::Through(beyond) } else { Ack::One(beyond) }),
                beyond,
            );
        }
        let acks = match (around.faults, self.acks) {
            (false, Acks::Never) if self.dialect == Dialect::Native => Acks::Through,
            (false, Acks::Never) => Acks::Single,
            (_, acks) => acks,
        };
        match acks {
            Acks::Never => {}
            Acks::Single => {
                let hold = if around.faults { around.dice.index(self.single.len() + 1) } else { 0 };
                for (sequence, id) in self.single.drain(hold..) {
                    let ack = if self.dialect == Dialect::Json { Ack::Message(id) } else { Ack::One(sequence) };
                    link.say(&Frame::Ack(ack), Sequence::default());
                }
            }
            Acks::Through => {
                self.single.clear();
                if self.handled != self.told_handled && (!around.faults || around.dice.chance(400)) {
                    self.told_handled = self.handled;
                    link.say(&Frame::Ack(Ack::Through(self.handled)), Sequence::default());
                }
            }
        }
        if !around.faults && self.dialect == Dialect::Native && self.handled != self.told_handled {
            // What an earlier style of acknowledging left out.
            self.told_handled = self.handled;
            link.say(&Frame::Ack(Ack::Through(self.handled)), Sequence::default());
        }
    }

    fn speak(&mut self, around: &mut Around<'_>, link: usize) {
        let due = around.now;
        let mut index = 0;
        while index < self.again.len() {
            if self.again[index].0 <= due {
                let (_, message) = self.again.remove(index);
                around.marks.hit("refused, then sent again");
                self.say(around, link, message);
            } else {
                index += 1;
            }
        }
        if !around.faults {
            self.budget = 0;
            return;
        }
        if self.liar && around.dice.chance(100) {
            self.lie(around, link);
        }
        if around.dice.chance(around.swarm.topics / 4) {
            let name = around.dice.pick(&["builds", "tests", "news"]);
            around.ledger.subscribed.insert((self.id, name.to_owned()));
            let topic = Topic { name: name.as_bytes().into(), channel: around.dice.chance(200) };
            let leave = around.dice.chance(200);
            let frame = if leave { Frame::Unsubscribe(topic) } else { Frame::Subscribe(topic) };
            around.links[link].say(&frame, Sequence::default());
        }
        let burst = around.dice.below(4).min(self.budget);
        for _ in 0..burst {
            self.budget -= 1;
            self.number += 1;
            let (name, to) = whom(around);
            let message = self.compose(around, name, to, self.number, false);
            self.say(around, link, message);
        }
    }

    /// Writes a message down; `number` is the native one.
    fn compose(&mut self, around: &mut Around<'_>, to_name: String, to: To, number: u64, void: bool) -> usize {
        let index = around.ledger.sent.len();
        let label = format!("m{index}");
        let labelled = self.dialect == Dialect::Json || self.submitter;
        let number = if labelled { number_of_label(label.as_bytes()) } else { number };
        let wants = match self.dialect {
            Dialect::Json => around.dice.pick(&[Wants(0), Wants::DURABLE]),
            Dialect::Native if around.dice.chance(300) => Wants(0),
            Dialect::Native => Wants(around.dice.below(16) as u8 | 1),
        };
        let mut text = (index as u64).to_le_bytes().to_vec();
        let length = if around.dice.chance(around.swarm.big) {
            around.dice.pick(&[2_000, 5_000, 70_000])
        } else {
            around.dice.below(60)
        };
        text.resize(8 + length as usize, b'x');
        let ttl_ms = if around.dice.chance(around.swarm.ttl) { around.dice.pick(&[1, 50, 3_000]) } else { 0 };
        let fields = MessageFields {
            id: MessageId { sender: self.id, number },
            ttl_ms: ttl_ms as u32,
            wants,
            from: self.name.as_bytes(),
            to: to_name.as_bytes(),
            label: if labelled { label.as_bytes() } else { b"" },
            text: &text,
            ..MessageFields::default()
        };
        let mut raw = Vec::new();
        agent_relay::wire::encode::message_body(&mut raw, &fields);
        around.ledger.sent.push(Sent {
            id: fields.id,
            raw,
            to,
            wants,
            ruly: self.ruly && !self.liar,
            submitted: self.submitter,
            void,
            said: Vec::new(),
            accepted: Vec::new(),
            lost: Default::default(),
            refused: 0,
            failed: Default::default(),
            mails: 0,
            told: Told::default(),
        });
        if !void {
            self.by_number.insert(number, index);
        }
        index
    }

    /// Puts a SEND on the link, for the first time or again.
    fn say(&mut self, around: &mut Around<'_>, link: usize, message: usize) {
        around.ledger.said(message, link);
        if around.verbose {
            eprintln!("{} says message {message} to {:?} on link {link}", self.name, around.ledger.sent[message].to);
        }
        let sent = &around.ledger.sent[message];
        let fields = Message::check(&sent.raw, 0).expect("ours").fields();
        let rides = self.acks == Acks::Through && around.dice.chance(500);
        let ack = if rides { self.handled } else { Sequence::default() };
        if rides {
            self.told_handled = self.handled;
        }
        let kind = if self.submitter { Kind::Submit } else { Kind::Send };
        speech::send(&mut around.links[link].up, self.dialect, kind, &fields, ack);
        let promised = if self.dialect == Dialect::Json { Wants::DURABLE } else { Wants::ACCEPTED };
        if sent.wants.contains(promised) {
            self.unknown.insert(message, fields.id.number);
        }
    }

    fn outcome(&mut self, around: &mut Around<'_>, receipt: Receipt) {
        let Some(index) = self.by_number.get(&receipt.id.number).copied() else { return };
        let sent = &mut around.ledger.sent[index];
        if sent.id != receipt.id || !sent.ruly {
            self.unknown.remove(&index);
            return;
        }
        let said = sent.said.len() as u64;
        // Whose numbers may be forgotten, its messages may be accepted twice.
        let again = around.ledger.forgotten.contains(&self.id);
        match receipt.state {
            ReceiptState::Accepted => {
                sent.told.accepted += 1;
                assert!(sent.told.accepted + sent.told.refused <= said, "message {index}: more outcomes than SENDs");
                if !sent.wants.contains(Wants::DURABLE) {
                    // Who wants to survive a crash asks for more.
                    self.unknown.remove(&index);
                }
            }
            ReceiptState::Durable => {
                around.marks.hit("durable receipt");
                sent.told.durable += 1;
                assert!(sent.told.durable <= said, "message {index} became durable twice");
                self.unknown.remove(&index);
            }
            ReceiptState::Delivered => {
                around.marks.hit("delivered receipt");
                assert!(sent.told.delivered.insert(receipt.recipient) || again, "message {index} was delivered twice");
            }
            ReceiptState::Acknowledged => {
                around.marks.hit("acknowledged");
                assert!(
                    sent.told.acknowledged.insert(receipt.recipient) || again,
                    "message {index} was acknowledged twice"
                );
            }
            ReceiptState::Failed(_) => {
                around.marks.hit("failed receipt");
                assert!(sent.told.failed.insert(receipt.recipient) || again, "message {index} failed twice");
            }
            ReceiptState::Read => {}
        }
    }

    fn refused(&mut self, around: &mut Around<'_>, number: u64, whole: bool, retry_after_ms: u32) {
        let Some(index) = self.by_number.get(&number).copied() else { return };
        let sent = &mut around.ledger.sent[index];
        let direct = matches!(sent.to, To::Name(_));
        if !direct && !whole {
            return;
        }
        self.unknown.remove(&index);
        if !sent.ruly {
            return;
        }
        sent.told.refused += 1;
        assert!(
            sent.told.accepted + sent.told.refused <= sent.said.len() as u64,
            "message {index}: more outcomes than SENDs"
        );
        if direct && !self.submitter && around.dice.chance(if around.faults { 700 } else { 0 }) {
            self.again.push((around.now + Mono::ms(u64::from(retry_after_ms)), index));
        }
    }

    fn lie(&mut self, around: &mut Around<'_>, link: usize) {
        let victim = around.dice.pick(&around.names.iter().map(String::as_str).collect::<Vec<_>>()).to_owned();
        match around.dice.below(6) {
            0 => {
                // In somebody else's name, under a number that it has used.
                let to = To::Name(AgentId::of(self.name.as_bytes()));
                let theirs = AgentId::of(victim.as_bytes());
                let used = around.ledger.by_id.keys().filter(|id| id.sender == theirs).map(|id| id.number).next_back();
                let forged = self.compose(around, self.name.clone(), to, used.unwrap_or(1), true);
                let raw = around.ledger.sent[forged].raw.clone();
                let mut fields = Message::check(&raw, 0).expect("ours").fields();
                fields.id = MessageId { sender: theirs, number: used.unwrap_or(1) };
                if around.dice.chance(500) {
                    fields.from = victim.as_bytes();
                }
                if victim != self.name {
                    speech::send(&mut around.links[link].up, self.dialect, Kind::Send, &fields, Sequence::default());
                }
            }
            1 => {
                // The same number again, with other words.
                let to = To::Name(AgentId::of(victim.as_bytes()));
                let number = self.number.max(1);
                let other = self.compose(around, victim, to, number, false);
                self.say(around, link, other);
            }
            2 => {
                for _ in 0..100 {
                    self.number += 1;
                    let (name, to) = whom(around);
                    let message = self.compose(around, name, to, self.number, false);
                    self.say(around, link, message);
                }
            }
            3 => around.links[link].say(&Frame::Hello(Box::default()), Sequence::default()),
            4 => around.links[link].say(&Frame::Welcome(Box::default()), Sequence::default()),
            _ => around.links[link].up.extend_from_slice(&[0xff; 50]),
        }
    }

    fn submit(&mut self, around: &mut Around<'_>, link: usize) {
        if self.budget > 0 && around.faults {
            self.budget -= 1;
            let message = if !self.by_number.is_empty() && around.dice.chance(400) {
                // In doubt, or out of habit: the same label is the same message.
                around.marks.hit("submitted again");
                let which = around.dice.index(self.by_number.len());
                self.by_number.values().copied().nth(which).expect("there are so many")
            } else {
                let (name, to) = whom(around);
                around.marks.hit("submitted");
                self.compose(around, name, to, 0, false)
            };
            let times = if self.liar { 2 } else { 1 };
            for _ in 0..times {
                self.say(around, link, message);
            }
        } else if (self.unknown.is_empty() || !around.faults)
            && !matches!(around.links[link].end, End::Gone)
            && around.dice.chance(300)
        {
            around.links[link].say(&Frame::Bye, Sequence::default());
        }
    }
}

fn wire_secret(secret: &Option<String>) -> agent_relay::wire::Secret<'static> {
    agent_relay::wire::Secret(secret.clone().unwrap_or_default().into())
}

/// Draws a destination.
fn whom(around: &mut Around<'_>) -> (String, To) {
    if around.dice.chance(around.swarm.topics / 2) {
        let topic = around.dice.pick(&["builds", "tests", "news"]);
        return (format!("#{topic}"), To::Topic(topic.to_owned()));
    }
    if around.dice.chance(around.swarm.fanout) {
        return ("*".to_owned(), To::Everyone);
    }
    let name = if around.dice.chance(around.swarm.ghosts) {
        format!("ghost-{}", around.dice.below(3))
    } else {
        around.names[around.dice.index(around.names.len())].clone()
    };
    let to = To::Name(AgentId::of(name.as_bytes()));
    (name, to)
}
