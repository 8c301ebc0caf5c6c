//! What truly happened, and the checkers: every fact is written down where it can be seen and compared with the promises.

use super::marks::Marks;
use agent_relay::base::{AgentId, Bytes, MessageId, Mono, RefuseReason, Sequence};
use agent_relay::relay::Record;
use agent_relay::wire::{FLAG_CHANNEL, FLAG_REDELIVERED, Message, Wants};
use std::collections::{BTreeMap, BTreeSet};

/// A message that a program wrote once, however often it was sent.
pub struct Sent {
    pub id: MessageId,
    pub raw: Vec<u8>,
    pub to: To,
    pub wants: Wants,
    /// Its sender keeps the rules and is alone with its name: all promises hold for it.
    pub ruly: bool,
    pub submitted: bool,
    /// It was said where nothing may come of it.
    pub void: bool,
    /// When and on which link it was said.
    pub said: Vec<(u64, usize)>,
    /// Recipients that it was accepted for, and the record that holds it.
    pub accepted: Vec<(AgentId, usize, u64)>,
    /// How often it was refused as a whole.
    pub refused: u64,
    /// Recipients that it failed for.
    pub failed: BTreeSet<AgentId>,
    /// Mails that carry it and have not been taken.
    pub mails: u64,
    pub told: Told,
}

/// What its sender was told.
#[derive(Default)]
pub struct Told {
    pub accepted: u64,
    pub durable: u64,
    pub refused: u64,
    pub delivered: BTreeSet<AgentId>,
    pub acknowledged: BTreeSet<AgentId>,
    pub failed: BTreeSet<AgentId>,
}

/// Whom a message is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum To {
    Name(AgentId),
    Everyone,
    Topic(String),
}

/// One place in a recipient's order.
pub struct Place {
    pub message: usize,
    pub handed: u64,
    /// On the link that it was last handed to.
    pub handed_here: u64,
    pub handed_on: usize,
    pub handed_at: Mono,
    pub written: bool,
    pub acknowledged: bool,
    pub failed: bool,
    pub seen: bool,
    /// Handed out as a channel message, which being written settles.
    pub channel: bool,
}

impl Place {
    /// A place that no message has.
    fn skipped() -> Place {
        Place {
            message: usize::MAX,
            handed: 0,
            handed_here: 0,
            handed_on: 0,
            handed_at: Mono(0),
            written: false,
            acknowledged: false,
            failed: true,
            seen: false,
            channel: false,
        }
    }
}

/// One recipient's order, counters from 1.
#[derive(Default)]
pub struct Order {
    pub places: Vec<Place>,
    /// Highest counter handed to the link in use.
    pub handed_through: (usize, u64),
}

/// Everything known.
pub struct Ledger {
    pub epoch: u32,
    /// The retention time can end: then names and numbers are forgotten.
    pub forgetful: bool,
    pub sent: Vec<Sent>,
    pub by_id: BTreeMap<MessageId, usize>,
    pub orders: BTreeMap<AgentId, Order>,
    /// Topics that agents have ever subscribed to.
    pub subscribed: BTreeSet<(AgentId, String)>,
    /// Records pushed, and committed on disk, per shard.
    pub pushed: Vec<u64>,
    pub committed: Vec<u64>,
    /// When each name was taken over.
    pub taken_over: BTreeMap<usize, Vec<Mono>>,
    clock: u64,
}

impl Ledger {
    pub fn new(shards: usize, epoch: u32, forgetful: bool) -> Ledger {
        Ledger {
            epoch,
            forgetful,
            sent: Vec::new(),
            by_id: BTreeMap::new(),
            orders: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            pushed: vec![0; shards],
            committed: vec![0; shards],
            taken_over: BTreeMap::new(),
            clock: 0,
        }
    }

    /// The index of the message that `raw` is, by the number at the beginning of its text.
    pub fn index_of(&self, raw: &[u8]) -> usize {
        let message = Message::check(raw, 0).expect("the relay passes on valid bodies only");
        let text = message.fields().text;
        let index = u64::from_le_bytes(text[..8].try_into().expect("texts start with a number")) as usize;
        assert!(self.sent[index].raw == raw, "message {index} was changed on its way");
        index
    }

    /// A SEND goes onto a link.
    pub fn said(&mut self, index: usize, link: usize) {
        self.clock += 1;
        let sent = &mut self.sent[index];
        sent.said.push((self.clock, link));
        self.by_id.insert(sent.id, index);
    }

    /// A record was pushed at a shard.
    pub fn recorded(&mut self, shard: usize, record: &Record, marks: &mut Marks) {
        self.pushed[shard] += 1;
        let number = self.pushed[shard];
        match record {
            Record::Message { id, raw, recipients, .. } => {
                let index = self.index_of(raw);
                let (epoch, ledger) = (self.epoch, &mut *self);
                let sent = &mut ledger.sent[index];
                assert_eq!(sent.id, *id, "a record names the message it holds");
                assert!(!sent.void && !sent.said.is_empty(), "message {index} was accepted though nobody sent it");
                for (recipient, sequence) in recipients.as_slice() {
                    marks.hit("accepted");
                    match &sent.to {
                        To::Name(name) => assert_eq!(*name, recipient, "message {index} went to a wrong recipient"),
                        To::Everyone => assert_ne!(sent.id.sender, recipient, "nobody hears its own broadcast"),
                        To::Topic(topic) => {
                            assert_ne!(sent.id.sender, recipient, "nobody hears its own topic message");
                            let known = ledger.subscribed.contains(&(recipient, topic.clone()));
                            assert!(known, "message {index} to {topic} went to {recipient:?}, which never subscribed");
                            marks.hit("topic delivery");
                        }
                    }
                    let before = sent.accepted.iter().filter(|(who, ..)| *who == recipient).count();
                    let allowed = if sent.submitted || !sent.ruly || ledger.forgetful { sent.said.len() } else { 1 };
                    assert!(before < allowed, "message {index} was accepted {} times for one recipient", before + 1);
                    assert!(
                        !sent.ruly
                            || sent.submitted
                            || !matches!(sent.to, To::Name(_))
                            || sent.refused < sent.said.len() as u64,
                        "message {index} was refused and then accepted without being sent again"
                    );
                    sent.accepted.push((recipient, shard, number));
                    let order = ledger.orders.entry(recipient).or_default();
                    while ledger.forgetful && (order.places.len() as u64) + 1 < sequence.counter {
                        // It was forgotten and is known again: its order goes on at a higher place.
                        order.places.push(Place::skipped());
                    }
                    let next = Sequence { epoch, counter: order.places.len() as u64 + 1 };
                    assert_eq!(sequence, next, "the order of {recipient:?} has no holes and repeats nothing");
                    order.places.push(Place { message: index, failed: false, ..Place::skipped() });
                }
                let shards = sent.accepted.iter().map(|(_, shard, _)| *shard).collect::<BTreeSet<_>>();
                if shards.len() > 1 {
                    marks.hit("fan-out over shards");
                }
            }
            Record::Failed { .. } => marks.hit("expired"),
            Record::Refused { id, reason } => {
                if *reason != RefuseReason::Malformed
                    && let Some(index) = self.by_id.get(id)
                {
                    self.sent[*index].refused += 1;
                }
            }
            Record::Progress { agent, delivered, acknowledged } => {
                let places = self.orders.get(agent).map_or(0, |order| order.places.len() as u64);
                assert!(
                    self.forgetful || delivered.counter.max(acknowledged.counter) <= places,
                    "progress of {agent:?}"
                );
            }
            Record::Known { .. } | Record::Read { .. } => {}
        }
    }

    /// An accepted message will not arrive: noted after what was handed out earlier in the same turn.
    pub fn failed(&mut self, id: MessageId, recipient: AgentId) {
        let order = self.orders.get_mut(&recipient).expect("only what was accepted can fail");
        let sent = &mut self.sent;
        let owed = |place: &&mut Place| !place.failed && sent[place.message].id == id && !place.acknowledged;
        let place = order.places.iter_mut().find(owed).expect("only what is owed can fail");
        place.failed = true;
        sent[place.message].failed.insert(recipient);
    }

    /// A delivery leaves the heart for a link.
    /// Gives how often it was handed to this link.
    pub fn handed(&mut self, name: AgentId, link: usize, now: Mono, sequence: Sequence, flags: u8, raw: &Bytes) -> u64 {
        assert_eq!(sequence.epoch, self.epoch);
        let index = self.index_of(raw);
        let order = self.orders.get_mut(&name).expect("only what was accepted is delivered");
        let place = order.places.get_mut(sequence.counter as usize - 1).expect("only what was accepted is delivered");
        assert_eq!(place.message, index, "{name:?} gets another message at {sequence:?} than was recorded");
        assert!(!place.failed, "{sequence:?} failed and was delivered later");
        assert!(!place.acknowledged, "{sequence:?} was acknowledged and delivered again");
        assert_eq!(flags & FLAG_REDELIVERED != 0, place.handed > 0, "{sequence:?} is marked wrongly");
        let again = place.handed > 0 && place.handed_on == link;
        if again {
            assert!(now.since(place.handed_at) >= Mono::ms(5_000), "{sequence:?} was repeated too early");
        } else {
            let (last_link, last) = order.handed_through;
            assert!(last_link != link || last < sequence.counter, "{sequence:?} after {last} on one connection");
            order.handed_through = (link, sequence.counter);
        }
        place.channel |= flags & FLAG_CHANNEL != 0;
        place.handed_here = if again { place.handed_here + 1 } else { 1 };
        (place.handed, place.handed_on, place.handed_at) = (place.handed + 1, link, now);
        place.handed_here
    }

    /// Everything up to here has been written to a socket.
    pub fn written(&mut self, name: AgentId, link: usize, through: Sequence) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        for place in order.places.iter_mut().take(through.counter as usize).rev() {
            if place.written && place.handed_on == link {
                break;
            }
            place.written |= place.handed > 0 && place.handed_on == link;
        }
    }

    /// A message that its recipient knows of has been written.
    pub fn written_message(&mut self, name: AgentId, id: MessageId) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        for place in order.places.iter_mut().filter(|place| place.handed > 0 && self.sent[place.message].id == id) {
            place.written = true;
        }
    }

    /// A program says HELLO and what it has handled before.
    pub fn written_before(&mut self, name: AgentId, through: Sequence) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        if through.epoch == self.epoch {
            for place in order.places.iter_mut().take(through.counter as usize) {
                place.written |= place.handed > 0;
            }
        }
    }

    /// The relay has read an acknowledgement of everything up to here.
    pub fn acknowledged_through(&mut self, name: AgentId, link: Option<usize>, through: Sequence) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        if through.epoch == self.epoch {
            for place in order.places.iter_mut().take(through.counter as usize) {
                place.acknowledged |= place.handed > 0 && link.is_none_or(|link| link == place.handed_on);
            }
        }
    }

    /// The relay has read an acknowledgement of this one alone.
    pub fn acknowledged_one(&mut self, name: AgentId, link: usize, sequence: Sequence) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        if sequence.epoch == self.epoch
            && let Some(place) = order.places.get_mut((sequence.counter as usize).wrapping_sub(1))
        {
            place.acknowledged |= place.handed_on == link && place.handed > 0;
        }
    }

    /// A program handles a message that it has not handled before. `seen`: when, at the earliest, the latest of each
    /// sender's messages that it has handled were said.
    pub fn handled(&mut self, name: AgentId, sequence: Sequence, raw: &[u8], seen: &mut BTreeMap<AgentId, u64>) {
        let index = self.index_of(raw);
        let sent = &self.sent[index];
        let order = self.orders.get_mut(&name).expect("only what was accepted is delivered");
        let place = &mut order.places[sequence.counter as usize - 1];
        assert_eq!(place.message, index, "{name:?} sees another message at {sequence:?} than was recorded");
        place.seen = true;
        if sent.ruly && !sent.submitted {
            let (first, last) = (sent.said[0].0, sent.said[sent.said.len() - 1].0);
            let before = seen.entry(sent.id.sender).or_default();
            assert!(*before < last, "message {index} at {sequence:?} overtakes, or comes after, a later one");
            *before = (*before).max(first);
        }
    }

    /// The heart says that a message is accepted.
    pub fn says_accepted(&mut self, id: MessageId) {
        let Some(index) = self.by_id.get(&id) else { panic!("{id:?} was never sent, and is called accepted") };
        let sent = &self.sent[*index];
        if sent.ruly {
            let done = match sent.to {
                To::Name(_) => !sent.accepted.is_empty(),
                _ => sent.mails == 0,
            };
            assert!(done, "{id:?} is called accepted and is not: to {:?}", sent.to);
        }
    }

    /// The heart says that a message is durable.
    pub fn says_durable(&mut self, id: MessageId) {
        let Some(index) = self.by_id.get(&id) else { panic!("{id:?} was never sent, and is called durable") };
        let sent = &self.sent[*index];
        if (sent.ruly && !sent.submitted) || sent.said.len() == 1 {
            self.says_accepted(id);
            let sent = &self.sent[self.by_id[&id]];
            let late = sent.accepted.iter().find(|(_, shard, number)| self.committed[*shard] < *number);
            assert!(late.is_none(), "{id:?} is called durable before its record is committed: {late:?}");
        }
    }

    /// The heart says that a message was refused.
    pub fn says_refused(&mut self, id: MessageId) {
        let Some(index) = self.by_id.get(&id) else { return };
        let sent = &self.sent[*index];
        if sent.ruly && !sent.submitted && matches!(sent.to, To::Name(_)) {
            assert!(sent.accepted.is_empty(), "message {index} was accepted, and is called refused");
        }
    }

    /// A name changes hands.
    pub fn name_taken_over(&mut self, name: usize, now: Mono) {
        let times = self.taken_over.entry(name).or_default();
        times.push(now);
        if let [.., first, _, last] = times[..] {
            assert!(last.since(first) >= Mono::ms(10_000), "two clients with one name flap");
        }
    }
}
