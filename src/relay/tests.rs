//! The heart driven by hand: one short test for each bug that the simulated worlds found.

mod auth;
mod control;
mod known;
mod press;
mod rates;
mod readings;
mod seats;
mod takeover;

use super::*;
use crate::base::keys::KeyRing;
use crate::base::tier::Entitlement;
use crate::base::{CloseReason, RefuseReason};
use crate::wire::{Hello, MessageFields, Wants};

/// Two hearts and nothing between them: mail is carried when a test says so.
struct Pair {
    hearts: [Relay; 2],
    outbox: Outbox,
    now: Now,
    /// Mail under way, in order.
    mails: VecDeque<(ShardId, ShardId, Mail)>,
    /// What was said to each connection, in order.
    said: Vec<(SessionId, String)>,
    outputs: Vec<Output>,
    records: Vec<Record>,
    /// What the store was asked and nobody has answered.
    readings: Vec<Reading>,
}

impl Pair {
    fn new() -> Pair {
        Pair::shaped(|_| {})
    }

    fn with(bounds: Bounds) -> Pair {
        Pair::shaped(|options| options.bounds = bounds.clone())
    }

    /// Two hearts whose options differ from the usual ones.
    fn shaped(shape: impl Fn(&mut Options)) -> Pair {
        let heart = |shard| {
            let mut options = Options {
                shard: ShardId(shard),
                shards: 2,
                epoch: 3,
                name_seed: 1,
                token_seed: [shard as u8; 32],
                strict: false,
                bounds: Bounds::default(),
                entitlement: Entitlement::unlimited(),
                require_auth: false,
                bind_certificates: false,
                keys: KeyRing::empty(),
            };
            shape(&mut options);
            Relay::new(options)
        };
        Pair {
            hearts: [heart(0), heart(1)],
            outbox: Outbox::default(),
            now: Now { mono: Mono(Mono::ms(1_000)), wall_ms: 1 },
            mails: VecDeque::new(),
            said: Vec::new(),
            outputs: Vec::new(),
            records: Vec::new(),
            readings: Vec::new(),
        }
    }

    fn tell(&mut self, shard: u16, event: Event<'_>) {
        let heart = &mut self.hearts[usize::from(shard)];
        heart.handle(self.now, event, &mut self.outbox);
        self.settle(shard);
    }

    fn expire(&mut self, shard: u16) {
        let heart = &mut self.hearts[usize::from(shard)];
        heart.expire(self.now, &mut self.outbox);
        self.settle(shard);
    }

    fn settle(&mut self, shard: u16) {
        self.hearts[usize::from(shard)].end_turn();
        self.mails.extend(self.outbox.mails.drain(..).map(|(to, mail)| (ShardId(shard), to, mail)));
        self.records.append(&mut self.outbox.records);
        self.readings.append(&mut self.outbox.readings);
        for output in self.outbox.outputs.drain(..) {
            match &output {
                Output::Reply { session, frame: Frame::Busy(busy) } => {
                    self.said.push((*session, format!("busy {} {}", busy.number, busy.reason.name())));
                }
                Output::Reply { session, frame: Frame::Error(error) } => {
                    let outcome = error.outcome.map_or("", RefuseReason::name);
                    let text = match error.fatal {
                        true => format!("{}: {}", error.code.name(), error.message),
                        false => format!("error {} {outcome}", error.number),
                    };
                    self.said.push((*session, text));
                }
                Output::Reply { session, frame: Frame::Welcome(_) } => self.said.push((*session, "welcome".into())),
                Output::Close { session, reason } => self.said.push((*session, format!("close {}", reason.name()))),
                Output::Receipt { session, receipt } => {
                    self.said.push((*session, format!("{:?} {}", receipt.state, receipt.id.number)));
                }
                _ => {}
            }
            self.outputs.push(output);
        }
    }

    /// Carries all mail, and the mail that this causes.
    fn carry(&mut self) {
        while let Some((from, to, mail)) = self.mails.pop_front() {
            self.tell(to.0, Event::Mail { from, mail });
        }
    }

    /// A name whose home is `shard`.
    fn name(shard: u16, wanted: usize) -> String {
        let hasher = NameHasher::new(1);
        let names = (0..).map(|index| format!("agent-{index}"));
        let mut here = names.filter(|name| hasher.hash(name.as_bytes()).home(2) == ShardId(shard));
        here.nth(wanted).expect("names do not end")
    }

    fn hello(&mut self, shard: u16, slot: u32, name: &str) -> SessionId {
        let session = self.hello_as(shard, slot, Peer::default(), named(name));
        assert_eq!(self.heard(session).first().map(String::as_str), Some("welcome"), "{name}");
        session
    }

    fn hello_as(&mut self, shard: u16, slot: u32, peer: Peer, hello: Hello<'static>) -> SessionId {
        let session = SessionId { slot, generation: 1 };
        self.tell(shard, Event::Opened { session, peer });
        self.frame(shard, session, Frame::Hello(Box::new(hello)));
        session
    }

    fn frame(&mut self, shard: u16, session: SessionId, frame: Frame<'_>) {
        self.tell(shard, Event::Frame { session, dialect: Dialect::Native, ack: Sequence::default(), frame });
    }

    fn send(&mut self, shard: u16, session: SessionId, from: &str, to: &str, number: u64, wants: Wants) {
        let id = MessageId { sender: AgentId::of(from.as_bytes()), number };
        let (from, to) = (from.as_bytes(), to.as_bytes());
        self.send_fields(shard, session, &MessageFields { id, from, to, wants, ..MessageFields::default() });
    }

    fn send_fields(&mut self, shard: u16, session: SessionId, fields: &MessageFields<'_>) {
        let mut raw = Vec::new();
        let checksum = crate::wire::encode::message_body(&mut raw, fields);
        let message = crate::wire::Message::check(&raw, checksum).expect("valid");
        self.frame(shard, session, Frame::Send(message));
    }

    fn heard(&mut self, session: SessionId) -> Vec<String> {
        let (mine, others) = std::mem::take(&mut self.said).into_iter().partition(|(to, _)| *to == session);
        self.said = others;
        Vec::from_iter(mine).into_iter().map(|(_, text): (SessionId, String)| text).collect()
    }
}

/// A HELLO under this name.
fn named(name: &str) -> Hello<'static> {
    Hello { claimed_name: name.as_bytes().to_vec().into(), ..Hello::default() }
}

const BOTH: Wants = Wants(Wants::ACCEPTED.0 | Wants::DURABLE.0);

#[test]
fn a_repeated_send_is_called_accepted_only_by_the_home_that_accepted_it() {
    let mut pair = Pair::new();
    let (from, to) = (Pair::name(0, 0), Pair::name(1, 0));
    let sender = pair.hello(0, 0, &from);
    pair.send(0, sender, &from, &to, 1, BOTH);
    pair.send(0, sender, &from, &to, 1, BOTH);
    pair.carry();
    assert_eq!(pair.heard(sender), [""; 0], "its recipient has not come yet");
    let recipient = pair.hello(1, 0, &to);
    pair.carry();
    assert_eq!(pair.heard(sender), ["Accepted 1"]);
    pair.send(0, sender, &from, &to, 1, BOTH);
    pair.carry();
    assert_eq!(pair.heard(sender), ["Accepted 1"], "not durable: its record at the other shard is not committed");
    let through = pair.records.len() as u64;
    pair.tell(1, Event::Committed { through });
    pair.carry();
    assert_eq!(pair.heard(sender), ["Durable 1", "Durable 1"]);
    let deliveries = pair.outputs.iter().filter(|output| matches!(output, Output::Deliver(_))).count();
    assert_eq!(deliveries, 1, "to {recipient:?}");
}

#[test]
fn a_repeated_send_that_was_refused_is_not_called_accepted() {
    let mut pair = Pair::with(Bounds { waiting_messages_max: 1, ..Bounds::default() });
    let (from, to) = (Pair::name(0, 0), Pair::name(1, 0));
    let (sender, _) = (pair.hello(0, 0, &from), pair.hello(1, 0, &to));
    pair.send(0, sender, &from, &to, 1, Wants::ACCEPTED);
    pair.send(0, sender, &from, &to, 2, Wants::ACCEPTED);
    pair.send(0, sender, &from, &to, 2, Wants::ACCEPTED);
    pair.carry();
    assert_eq!(pair.heard(sender), ["Accepted 1", "busy 2 recipient_full"]);
}

#[test]
fn an_answer_that_a_later_refusal_has_overtaken_is_not_told() {
    let mut pair = Pair::with(Bounds { waiting_messages_max: 1, ..Bounds::default() });
    let (from, to) = (Pair::name(0, 0), Pair::name(1, 0));
    let (sender, _) = (pair.hello(0, 0, &from), pair.hello(1, 0, &to));
    pair.send(0, sender, &from, &to, 1, Wants::ACCEPTED);
    pair.carry();
    pair.send(0, sender, &from, &to, 2, Wants::ACCEPTED);
    let refused = pair.mails.pop_front().expect("the first");
    pair.send(0, sender, &from, &to, 2, Wants::ACCEPTED);
    let asked = pair.mails.pop_front().expect("the question about it");
    pair.tell(1, Event::Mail { from: refused.0, mail: refused.2 });
    let refusal = pair.mails.pop_front().expect("it is refused");
    pair.tell(1, Event::Mail { from: asked.0, mail: asked.2 });
    let answer = pair.mails.pop_front().expect("its home does not remember that");
    pair.tell(0, Event::Mail { from: refusal.0, mail: refusal.2 });
    assert_eq!(pair.heard(sender), ["Accepted 1", "busy 2 recipient_full"]);
    // It is sent anew before the answer to the old question comes.
    pair.send(0, sender, &from, &to, 2, Wants::ACCEPTED);
    pair.tell(0, Event::Mail { from: answer.0, mail: answer.2 });
    assert_eq!(pair.heard(sender), [""; 0]);
    pair.carry();
    assert_eq!(pair.heard(sender), ["busy 2 recipient_full"]);
}

#[test]
fn a_sender_whose_name_a_crash_has_undone_keeps_its_numbers() {
    let mut pair = Pair::new();
    let (from, to) = (Pair::name(0, 0), Pair::name(1, 0));
    let mut nameless = Remembered::new(AgentId::of(from.as_bytes()));
    nameless.sent.take(3);
    for heart in &mut pair.hearts {
        heart.restore(pair.now, vec![nameless.clone()]);
    }
    assert_eq!(pair.hearts[0].gauges().known, 0, "nobody knows its name");
    let (sender, _) = (pair.hello(0, 0, &from), pair.hello(1, 0, &to));
    pair.send(0, sender, &from, &to, 3, Wants::ACCEPTED);
    pair.send(0, sender, &from, &to, 2, Wants::ACCEPTED);
    pair.carry();
    let accepted = pair.records.iter().filter(|record| matches!(record, Record::Message { .. })).count();
    assert_eq!(accepted, 1, "the third was accepted before the crash, the second was not");
}

#[test]
fn the_same_fan_out_twice_on_one_connection_is_answered_twice() {
    let mut pair = Pair::new();
    let from = Pair::name(0, 0);
    let sender = pair.hello(0, 0, &from);
    pair.send(0, sender, &from, "*", 1, BOTH);
    pair.send(0, sender, &from, "*", 1, BOTH);
    pair.carry();
    let through = pair.records.len() as u64;
    pair.tell(0, Event::Committed { through });
    pair.tell(1, Event::Committed { through });
    pair.carry();
    assert_eq!(pair.heard(sender), ["Accepted 1", "Accepted 1", "Durable 1", "Durable 1"]);
}

#[test]
fn mail_that_comes_after_the_stop_is_owed_and_not_said_to_a_closed_connection() {
    let mut pair = Pair::new();
    let (from, to) = (Pair::name(0, 0), Pair::name(1, 0));
    let (sender, recipient) = (pair.hello(0, 0, &from), pair.hello(1, 1, &to));
    pair.send(0, sender, &from, &to, 1, BOTH);
    pair.tell(1, Event::Stop);
    pair.outputs.clear();
    pair.carry();
    let deliveries = pair.outputs.iter().filter(|output| matches!(output, Output::Deliver(_))).count();
    assert_eq!((deliveries, pair.heard(sender)), (0, vec!["Accepted 1".to_owned()]), "to {recipient:?}");
    assert_eq!((pair.hearts[1].gauges().live, pair.hearts[1].gauges().waiting_messages), (0, 1));
}

#[test]
fn a_forged_sender_hears_that_it_is_malformed_and_the_named_one_hears_nothing() {
    let mut pair = Pair::new();
    let (liar, victim) = (Pair::name(0, 0), Pair::name(0, 1));
    let (lying, honest) = (pair.hello(0, 0, &liar), pair.hello(0, 1, &victim));
    pair.send(0, honest, &victim, &liar, 1, Wants::ACCEPTED);
    pair.send(0, lying, &victim, &liar, 1, Wants::ACCEPTED);
    pair.send(0, lying, &victim, &liar, 1, Wants::ACCEPTED);
    pair.send(0, honest, &victim, &liar, 1, Wants::ACCEPTED);
    assert_eq!(pair.heard(lying), ["error 1 malformed", "error 1 malformed"]);
    assert_eq!(pair.heard(honest), ["Accepted 1", "Accepted 1"]);
    let deliveries = pair.outputs.iter().filter(|output| matches!(output, Output::Deliver(_))).count();
    assert_eq!(deliveries, 1);
}

#[test]
fn an_agent_that_was_forgotten_and_comes_again_gets_no_sequence_twice() {
    let mut pair = Pair::with(Bounds { retention: Mono::ms(60_000), ..Bounds::default() });
    let (from, to) = (Pair::name(0, 0), Pair::name(0, 1));
    let mut counters = Vec::new();
    for round in 0..2u32 {
        let (sender, recipient) = (pair.hello(0, 2 * round, &from), pair.hello(0, 2 * round + 1, &to));
        pair.send(0, sender, &from, &to, 1, Wants::ACCEPTED);
        for output in pair.outputs.drain(..) {
            if let Output::Deliver(delivery) = output {
                counters.push(delivery.sequence);
            }
        }
        let last = *counters.last().expect("delivered");
        pair.frame(0, recipient, Frame::Ack(Ack::Through(last)));
        pair.frame(0, recipient, Frame::Bye);
        pair.frame(0, sender, Frame::Bye);
        pair.now.mono = pair.now.mono + Mono::ms(4_000_000);
        pair.expire(0);
        assert_eq!(pair.hearts[0].gauges().known, 0);
    }
    assert!(counters[0] < counters[1], "{counters:?}");
}

#[test]
fn a_row_of_whom_nothing_is_owed_is_restored_whatever_the_clock_says() {
    let mut pair = Pair::new();
    let name = Pair::name(0, 0);
    let row = Remembered { name: Some(name.as_str().into()), ..Remembered::new(AgentId::of(name.as_bytes())) };
    pair.hearts[0].restore(pair.now, vec![row]);
    let gauges = pair.hearts[0].gauges();
    assert_eq!((gauges.known, gauges.waiting_messages), (1, 0));
}

#[test]
fn a_name_of_one_errand_that_says_bye_is_forgotten_unless_something_is_owed_to_it() {
    let mut pair = Pair::new();
    let internal = format!("{}{}", crate::base::name::ERRAND_PREFIX, Pair::name(0, 0));
    let shard = u16::from(NameHasher::new(1).hash(internal.as_bytes()).home(2) == ShardId(1));
    let ann = Pair::name(shard, 1);
    let errand = pair.hello(shard, 0, &internal);
    pair.frame(shard, errand, Frame::Bye);
    assert_eq!(pair.hearts[usize::from(shard)].gauges().known, 0);
    assert!(matches!(pair.records.last(), Some(Record::Forgotten { .. })));
    // Its answer has come while it was there, and it has not said that it has it.
    let (errand, ann_session) = (pair.hello(shard, 1, &internal), pair.hello(shard, 2, &ann));
    pair.send(shard, ann_session, &ann, &internal, 1, Wants::default());
    pair.frame(shard, errand, Frame::Bye);
    assert_eq!(pair.hearts[usize::from(shard)].gauges().known, 2);
}
