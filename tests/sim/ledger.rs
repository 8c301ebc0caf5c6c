//! What truly happened, and the checkers: every fact is written down where it can be seen and compared with the promises.

use super::marks::Marks;
use super::swarm::Swarm;
use agent_relay::base::ids::Token;
use agent_relay::base::{AgentId, Bytes, MessageId, Mono, Now, RefuseReason, Sequence};
use agent_relay::relay::{ProgressRecord, Record, Remembered};
use agent_relay::store::RecordRef;
use agent_relay::wire::{FLAG_CHANNEL, FLAG_REDELIVERED, Message, Wants};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// Recipients that it was accepted for, and the record that holds it; without those that a crash has undone.
    pub accepted: Vec<Accepted>,
    /// Recipients whose part a crash has undone, and that have not got it again.
    pub lost: BTreeSet<AgentId>,
    /// How often it was refused as a whole.
    pub refused: u64,
    /// Recipients that it failed for.
    pub failed: BTreeSet<AgentId>,
    /// Mails that carry it and have not been taken.
    pub mails: u64,
    pub told: Told,
}

/// A recipient that a message was accepted for.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    pub recipient: AgentId,
    pub epoch: u32,
    pub shard: usize,
    pub record: u64,
    /// It was called durable, by rules that hold for it.
    pub durable: bool,
}

/// What its sender was told, since the last start of the daemon.
#[derive(Default)]
pub struct Told {
    pub accepted: u64,
    pub durable: u64,
    pub refused: u64,
    pub delivered: BTreeSet<AgentId>,
    pub acknowledged: BTreeSet<AgentId>,
    pub failed: BTreeSet<AgentId>,
}

impl Told {
    /// After a restart they may be told again.
    pub fn forget_states(&mut self) {
        self.delivered.clear();
        self.acknowledged.clear();
        self.failed.clear();
    }
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
    /// The shard and the number of the record that holds it.
    pub record: (usize, u64),
    /// It was accepted then.
    pub accepted_at: Now,
    /// A crash has undone it.
    pub lost: bool,
    /// A failure of it is on disk.
    pub failed_on_disk: bool,
    pub handed: u64,
    /// On the link that it was last handed to.
    pub handed_here: u64,
    pub handed_on: usize,
    pub handed_at: Mono,
    pub written: bool,
    pub acknowledged: bool,
    pub acknowledged_at: Mono,
    /// It may be acknowledged: by its id, which others may have as well, or in the turn that closed its connection.
    pub named: bool,
    pub failed: bool,
    /// It has failed, whether or not a crash has undone that.
    pub failed_once: bool,
    pub failed_at: Mono,
    /// Its recipient was forgotten since: it is over, and nothing more is heard of it.
    pub forgotten: bool,
    pub seen: bool,
    /// Handed out as a channel message, which being written settles.
    pub channel: bool,
}

impl Place {
    /// A place that no message has.
    fn skipped() -> Place {
        Place {
            message: usize::MAX,
            record: (0, 0),
            accepted_at: Now::default(),
            lost: false,
            failed_on_disk: false,
            handed: 0,
            handed_here: 0,
            handed_on: 0,
            handed_at: Mono(0),
            written: false,
            acknowledged: false,
            acknowledged_at: Mono(0),
            named: false,
            failed: true,
            failed_once: false,
            failed_at: Mono(0),
            forgotten: false,
            seen: false,
            channel: false,
        }
    }
}

/// One recipient's order.
#[derive(Default)]
pub struct Order {
    /// Of each epoch, counters from 1.
    epochs: BTreeMap<u32, Vec<Place>>,
    /// Highest sequence handed to the link in use.
    pub handed_through: (usize, Sequence),
    /// The last progress that is on disk.
    on_disk: (Sequence, Vec<(Sequence, Sequence)>),
    /// The last place when its agent was forgotten, each time, until that is on disk.
    forgotten_at: VecDeque<Sequence>,
}

impl Order {
    /// All places, in order.
    pub fn places(&self) -> impl DoubleEndedIterator<Item = (Sequence, &Place)> {
        self.epochs.iter().flat_map(|(epoch, places)| {
            let sequence = move |index| Sequence { epoch: *epoch, counter: index as u64 + 1 };
            places.iter().enumerate().map(move |(index, place)| (sequence(index), place))
        })
    }

    fn places_mut(&mut self) -> impl DoubleEndedIterator<Item = (Sequence, &mut Place)> {
        self.epochs.iter_mut().flat_map(|(epoch, places)| {
            let sequence = move |index| Sequence { epoch: *epoch, counter: index as u64 + 1 };
            places.iter_mut().enumerate().map(move |(index, place)| (sequence(index), place))
        })
    }

    fn through(&mut self, through: Sequence) -> impl DoubleEndedIterator<Item = &mut Place> {
        self.epochs.range_mut(..=through.epoch).flat_map(move |(epoch, places)| {
            let count =
                if *epoch == through.epoch { (through.counter as usize).min(places.len()) } else { places.len() };
            places[..count].iter_mut()
        })
    }

    fn place(&mut self, sequence: Sequence) -> Option<&mut Place> {
        self.epochs.get_mut(&sequence.epoch)?.get_mut((sequence.counter as usize).wrapping_sub(1))
    }

    fn is_settled_on_disk(&self, sequence: Sequence) -> bool {
        let (through, runs) = &self.on_disk;
        sequence <= *through || runs.iter().any(|(first, last)| *first <= sequence && sequence <= *last)
    }
}

/// Everything known.
pub struct Ledger {
    pub epoch: u32,
    /// Nothing is handed out before it is committed.
    pub strict: bool,
    /// The wall clock jumps: what has expired by it says nothing.
    pub wall_jumps: bool,
    /// Nanoseconds that messages are kept.
    pub retention: u64,
    /// The tokens that must resume each session after the last start.
    pub resumable: BTreeMap<AgentId, Vec<Token>>,
    sessions_on_disk: BTreeMap<AgentId, Vec<Token>>,
    /// Agents that were ever forgotten, and with them their numbers.
    pub forgotten: BTreeSet<AgentId>,
    /// Somebody was forgotten since the last start: whoever is met later begins above it.
    forgot: bool,
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
    pub fn new(shards: usize, epoch: u32, swarm: &Swarm) -> Ledger {
        Ledger {
            epoch,
            strict: swarm.strict,
            wall_jumps: swarm.wall_jumps > 0,
            retention: swarm.bounds.retention,
            resumable: BTreeMap::new(),
            sessions_on_disk: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            forgot: false,
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

    /// The same for what a liar may have forged.
    pub fn find_index(&self, raw: &[u8]) -> Option<usize> {
        let text = Message::check(raw, 0)?.fields().text;
        let index = u64::from_le_bytes(*text.first_chunk()?) as usize;
        (self.sent.get(index)?.raw == raw).then_some(index)
    }

    /// A SEND goes onto a link.
    pub fn said(&mut self, index: usize, link: usize) {
        self.clock += 1;
        let sent = &mut self.sent[index];
        sent.said.push((self.clock, link));
        self.by_id.insert(sent.id, index);
    }

    /// A record was pushed at a shard.
    pub fn recorded(&mut self, now: Now, shard: usize, record: &Record, minds: bool, marks: &mut Marks) {
        self.pushed[shard] += 1;
        let number = self.pushed[shard];
        match record {
            Record::Message { id, raw, recipients, .. } => {
                let index = self.index_of(raw);
                let (epoch, ledger) = (self.epoch, &mut *self);
                let sent = &mut ledger.sent[index];
                assert_eq!(sent.id, *id, "a record names the message it holds");
                assert!(!sent.void && !sent.said.is_empty(), "message {index} was accepted though nobody sent it");
                for to in recipients.as_slice() {
                    let (recipient, sequence) = (to.agent, to.sequence);
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
                    let before = sent.accepted.iter().filter(|accepted| accepted.recipient == recipient).count();
                    let forgotten = ledger.forgotten.contains(&sent.id.sender);
                    let allowed = if !sent.ruly || forgotten { sent.said.len() } else { 1 };
                    assert!(before < allowed, "message {index} was accepted {} times for one recipient", before + 1);
                    assert!(
                        !sent.ruly || !matches!(sent.to, To::Name(_)) || sent.refused < sent.said.len() as u64,
                        "message {index} was refused and then accepted without being sent again"
                    );
                    sent.accepted.push(Accepted { recipient, epoch, shard, record: number, durable: false });
                    if sent.lost.remove(&recipient) {
                        marks.hit("lost in a crash, then sent again");
                    }
                    let places = ledger.orders.entry(recipient).or_default().epochs.entry(epoch).or_default();
                    let met_late = ledger.forgotten.contains(&recipient) || places.is_empty();
                    while ledger.forgot && met_late && (places.len() as u64) + 1 < sequence.counter {
                        // It was forgotten and is known again, or known late: its order goes on at a higher place.
                        places.push(Place::skipped());
                    }
                    let next = Sequence { epoch, counter: places.len() as u64 + 1 };
                    assert_eq!(sequence, next, "the order of {recipient:?} has no holes and repeats nothing");
                    let record = (shard, number);
                    places.push(Place { message: index, record, accepted_at: now, failed: false, ..Place::skipped() });
                }
                let shards = sent.accepted.iter().map(|accepted| accepted.shard).collect::<BTreeSet<_>>();
                if shards.len() > 1 {
                    marks.hit("fan-out over shards");
                }
            }
            Record::Failed { .. } => marks.hit("expired"),
            Record::Refused { id, reason, .. } => {
                if *reason != RefuseReason::Malformed
                    && let Some(index) = self.by_id.get(id)
                {
                    self.sent[*index].refused += 1;
                }
            }
            Record::Progress(progress) => self.check_progress(progress, minds),
            Record::Forgotten { agent } => {
                marks.hit("forgotten record");
                self.resumable.remove(agent);
                self.forgotten.insert(*agent);
                self.forgot = true;
                let order = self.orders.entry(*agent).or_default();
                let last = order.places().next_back().map_or(Sequence::default(), |(sequence, _)| sequence);
                order.forgotten_at.push_back(last);
            }
            _ => {}
        }
    }

    /// Nobody is forgotten who is owed something. After what failed in the same turn is noted.
    pub fn check_forgotten(&mut self, agent: AgentId, minds: bool) {
        let Some(order) = self.orders.get_mut(&agent) else { return };
        let Some(last) = order.forgotten_at.back().copied() else { return };
        for (sequence, place) in order.places_mut().take_while(|(sequence, _)| *sequence <= last) {
            let over = place.acknowledged || place.failed || place.lost || (place.channel && place.written);
            let over = over || place.named || place.forgotten;
            assert!(over || !minds, "{agent:?} is forgotten while {sequence:?} is owed to it");
            place.forgotten = true;
        }
    }

    /// What is called settled is: acknowledged, failed, or a channel's and written.
    fn check_progress(&mut self, progress: &ProgressRecord, minds: bool) {
        let Some(order) = self.orders.get_mut(&progress.agent) else { return };
        if !minds {
            return;
        }
        let mut owed = (0, 0);
        // It may have been forgotten and met again in this very turn.
        let gone = order.forgotten_at.back().copied();
        for (sequence, place) in order.places_mut() {
            let is_in = |(first, last): &(Sequence, Sequence)| *first <= sequence && sequence <= *last;
            let settled = sequence <= progress.acknowledged || progress.settled.iter().any(is_in);
            let heard = place.acknowledged || place.failed || place.lost || (place.channel && place.written);
            let over = heard || place.forgotten || gone.is_some_and(|gone| sequence <= gone);
            assert!(!settled || over || place.named, "{sequence:?} is called settled and is not: {progress:?}");
            owed.0 += u64::from(!over && !place.named);
            owed.1 += u64::from(!over || (!settled && !place.lost));
        }
        let said = progress.owed.messages;
        assert!(owed.0 <= said && said <= owed.1, "{said} are called owed to {:?}, {owed:?} are", progress.agent);
    }

    /// A record is on disk.
    pub fn kept(&mut self, record: &RecordRef<'_>) {
        match record {
            RecordRef::Progress(progress) => {
                let order = self.orders.entry(progress.agent).or_default();
                order.on_disk = (progress.acknowledged, progress.settled.to_vec());
            }
            RecordRef::Failed { id, recipient, .. } => {
                let Some(order) = self.orders.get_mut(recipient) else { return };
                let sent = &self.sent;
                let failed = |place: &Place| place.failed && !place.failed_on_disk && place.message != usize::MAX;
                let mut places = order.places_mut().map(|(_, place)| place);
                if let Some(place) = places.find(|place| failed(place) && sent[place.message].id == *id) {
                    place.failed_on_disk = true;
                }
            }
            RecordRef::Session(session) => {
                let mut tokens = vec![session.resume];
                tokens.extend(session.resume_before);
                self.sessions_on_disk.insert(session.agent, tokens);
            }
            RecordRef::Forgotten { agent } => {
                self.sessions_on_disk.remove(agent);
                let order = self.orders.get_mut(agent).expect("it was noted when it was recorded");
                let last = order.forgotten_at.pop_front().expect("each record is kept once");
                order.on_disk = (last.max(order.on_disk.0), Vec::new());
            }
            _ => {}
        }
    }

    /// The daemon is gone, and starts again under another epoch with so many shards.
    pub fn crashed(&mut self, shards: usize, epoch: u32, marks: &mut Marks) {
        let (ended, committed) = (self.epoch, std::mem::replace(&mut self.committed, vec![0; shards]));
        for (index, sent) in self.sent.iter_mut().enumerate() {
            sent.mails = 0;
            let is_kept = |accepted: &Accepted| accepted.epoch < ended || accepted.record <= committed[accepted.shard];
            for lost in sent.accepted.iter().filter(|accepted| !is_kept(accepted)) {
                marks.hit("lost in a crash");
                assert!(!lost.durable, "message {index} was called durable and is gone");
                sent.lost.insert(lost.recipient);
            }
            sent.accepted.retain(is_kept);
            sent.told.forget_states();
        }
        for order in self.orders.values_mut() {
            order.forgotten_at.clear();
            let (through, runs) = order.on_disk.clone();
            let is_settled = |sequence: Sequence| {
                sequence <= through || runs.iter().any(|(first, last)| *first <= sequence && sequence <= *last)
            };
            for (sequence, place) in order.places_mut() {
                if sequence.epoch == ended && place.record.1 > committed[place.record.0] {
                    place.lost = true;
                } else if !is_settled(sequence) && place.message != usize::MAX {
                    // What the disk does not know to be over is owed again.
                    (place.acknowledged, place.named, place.failed, place.forgotten) = (false, false, false, false);
                }
            }
        }
        self.forgot = false;
        self.pushed = vec![0; shards];
        self.taken_over.clear();
        self.resumable = self.sessions_on_disk.clone();
        self.epoch = epoch;
    }

    /// What is remembered of an agent is what the disk says: nothing twice, nothing left out.
    pub fn check_row(&self, row: &Remembered) {
        let Some(order) = self.orders.get(&row.agent) else {
            return assert_eq!(row.owed.messages, 0, "{:?} is owed nothing", row.agent);
        };
        let on_disk = |(sequence, place): &(Sequence, &Place)| !place.lost && !order.is_settled_on_disk(*sequence);
        let most = order.places().filter(on_disk).count() as u64;
        let least = most - order.places().filter(on_disk).filter(|(_, place)| place.failed_on_disk).count() as u64;
        let owed = row.owed.messages;
        assert!(least <= owed && owed <= most, "{owed} are owed to {:?}, {least} to {most} are on disk", row.agent);
    }

    /// An accepted message will not arrive: noted after what was handed out earlier in the same turn.
    pub fn failed(&mut self, now: Now, id: MessageId, recipient: AgentId, reason: RefuseReason) {
        let order = self.orders.get_mut(&recipient).expect("only what was accepted can fail");
        let sent = &mut self.sent;
        let owed = |place: &Place| {
            // Within one turn we do not know what came first.
            let open = !place.acknowledged || place.acknowledged_at == now.mono;
            !place.failed && !place.lost && !place.forgotten && sent[place.message].id == id && open
        };
        let mut places = order.places_mut().map(|(_, place)| place).filter(|place| owed(place));
        let place = match places.next() {
            Some(place) => place,
            None => panic!("{id:?} fails for {recipient:?} and is not owed"),
        };
        // Accepted for it more than once, one of them has failed: which, only their order says.
        (place.failed_once, place.failed_at) = (true, now.mono);
        let mut alone = true;
        for twin in places {
            (twin.named, twin.failed_once, alone) = (true, true, false);
        }
        (place.failed, place.named) = (alone, place.named || !alone);
        if alone && !self.wall_jumps {
            let ttl_ms = Message::check(&sent[place.message].raw, 0).expect("ours").ttl_ms();
            let (kept, true_reason) = match ttl_ms {
                0 => (self.retention, RefuseReason::Retention),
                ttl_ms => (Mono::ms(u64::from(ttl_ms)).min(self.retention), RefuseReason::Expired),
            };
            let age = now.mono.since(place.accepted_at.mono);
            assert_eq!(reason, true_reason, "message {} failed for a wrong reason", place.message);
            // Clocks of two kinds meet here: a millisecond is the finer of them.
            assert!(age + Mono::ms(2) >= kept, "message {} failed {age} ns after it was accepted", place.message);
        }
        sent[place.message].failed.insert(recipient);
    }

    /// A delivery leaves the heart for a link.
    /// Gives how often it was handed to this link.
    pub fn handed(&mut self, name: AgentId, link: usize, now: Mono, sequence: Sequence, flags: u8, raw: &Bytes) -> u64 {
        let index = self.index_of(raw);
        let (epoch, strict) = (self.epoch, self.strict);
        let order = self.orders.get_mut(&name).expect("only what was accepted is delivered");
        let (last_link, last) = order.handed_through;
        assert!(!order.is_settled_on_disk(sequence), "{sequence:?} is over, as the disk knows, and is delivered again");
        let place = order.place(sequence).expect("only what was accepted is delivered");
        assert_eq!(place.message, index, "{name:?} gets another message at {sequence:?} than was recorded");
        assert!(!place.lost, "{sequence:?} was undone by a crash and is delivered");
        assert!(!place.forgotten, "{sequence:?} is delivered though its recipient was forgotten since");
        assert!(!place.failed, "{sequence:?} failed and was delivered later");
        assert!(!place.acknowledged, "{sequence:?} was acknowledged and delivered again");
        let (shard, record) = place.record;
        let committed = sequence.epoch < epoch || record <= self.committed[shard];
        assert!(committed || !strict, "{sequence:?} is delivered before its record is committed");
        let before = place.handed > 0 || sequence.epoch < epoch;
        assert_eq!(flags & FLAG_REDELIVERED != 0, before, "{sequence:?} is marked wrongly");
        let again = place.handed > 0 && place.handed_on == link;
        if again {
            assert!(now.since(place.handed_at) >= Mono::ms(5_000), "{sequence:?} was repeated too early");
        } else {
            assert!(last_link != link || last < sequence, "{sequence:?} after {last:?} on one connection");
        }
        place.channel |= flags & FLAG_CHANNEL != 0;
        place.handed_here = if again { place.handed_here + 1 } else { 1 };
        (place.handed, place.handed_on, place.handed_at) = (place.handed + 1, link, now);
        let times = place.handed_here;
        if !again {
            order.handed_through = (link, sequence);
        }
        times
    }

    /// Everything up to here has been written to a socket.
    pub fn written(&mut self, name: AgentId, link: usize, through: Sequence) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        for place in order.through(through) {
            place.written |= place.handed > 0 && place.handed_on == link;
        }
    }

    /// A message that its recipient knows of has been written.
    pub fn written_message(&mut self, name: AgentId, id: MessageId) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        for (_, place) in order.places_mut().filter(|(_, place)| place.handed > 0 && self.sent[place.message].id == id)
        {
            place.written = true;
        }
    }

    /// A program says HELLO and what it has handled before.
    pub fn written_before(&mut self, name: AgentId, through: Sequence) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        for place in order.through(through) {
            place.written |= place.handed > 0;
        }
    }

    /// The relay has read an acknowledgement of everything up to here.
    pub fn acknowledged_through(&mut self, now: Mono, name: AgentId, link: Option<usize>, through: Sequence) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        for place in order.through(through) {
            if !place.acknowledged && place.handed > 0 && link.is_none_or(|link| link == place.handed_on) {
                (place.acknowledged, place.acknowledged_at) = (true, now);
            }
        }
    }

    /// What was handed to this link, up to here, may or may not be acknowledged.
    pub fn maybe_acknowledged(&mut self, name: AgentId, link: usize, through: Sequence) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        for place in order.through(through) {
            place.named |= place.handed_on == link && place.handed > 0;
        }
    }

    /// The relay believes what a program says to have handled of earlier epochs, whatever became of it then.
    pub fn believed(&mut self, name: AgentId, through: Sequence) {
        let epoch = self.epoch;
        let Some(order) = self.orders.get_mut(&name) else { return };
        if through.epoch < epoch {
            order.through(through).for_each(|place| place.named = true);
        }
    }

    /// The relay has read an acknowledgement of the message with this id.
    pub fn acknowledged_message(&mut self, name: AgentId, link: usize, id: MessageId) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        for (_, place) in order.places_mut() {
            place.named |= place.handed_on == link && place.handed > 0 && self.sent[place.message].id == id;
        }
    }

    /// The relay has read an acknowledgement of this one alone.
    pub fn acknowledged_one(&mut self, name: AgentId, link: usize, sequence: Sequence) {
        let Some(order) = self.orders.get_mut(&name) else { return };
        if let Some(place) = order.place(sequence) {
            place.acknowledged |= place.handed_on == link && place.handed > 0;
        }
    }

    /// A program handles a message that it has not handled before. `seen`: when, at the earliest, the latest of each
    /// sender's messages that it has handled were said.
    pub fn handled(
        &mut self,
        name: AgentId,
        sequence: Sequence,
        raw: &[u8],
        once: bool,
        seen: &mut BTreeMap<AgentId, u64>,
    ) {
        let index = self.index_of(raw);
        let sent = &self.sent[index];
        let order = self.orders.get_mut(&name).expect("only what was accepted is delivered");
        let place = order.place(sequence).expect("only what was accepted is delivered");
        assert_eq!(place.message, index, "{name:?} sees another message at {sequence:?} than was recorded");
        assert!(!place.seen || !once, "{name:?} sees message {index} at {sequence:?} twice");
        place.seen = true;
        let (strict, lost) = (self.strict, place.lost);
        let forgotten = self.forgotten.contains(&sent.id.sender);
        if sent.ruly && once && !forgotten {
            let twice = order.places().find(|(at, place)| *at != sequence && place.message == index && place.seen);
            // What a crash has undone was handed out before it was committed, and is sent again.
            assert!(
                twice.is_none_or(|(_, place)| !strict && (place.lost || lost)),
                "{name:?} sees message {index} at {sequence:?} and at {:?}",
                twice.map(|(at, _)| at)
            );
        }
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
        let forgotten = self.forgotten.contains(&sent.id.sender);
        let once = sent.ruly && !forgotten;
        if once || sent.said.len() == 1 {
            self.says_accepted(id);
            let sent = &self.sent[self.by_id[&id]];
            let late = sent
                .accepted
                .iter()
                .find(|accepted| accepted.epoch == self.epoch && self.committed[accepted.shard] < accepted.record);
            assert!(late.is_none(), "{id:?} is called durable before its record is committed: {late:?}");
            let lost = &sent.lost;
            assert!(lost.is_empty(), "{id:?} is called durable, and a crash has undone it for {lost:?}");
            let index = self.by_id[&id];
            self.sent[index].accepted.iter_mut().for_each(|accepted| accepted.durable = true);
        }
    }

    /// The heart says that a message was refused.
    pub fn says_refused(&mut self, id: MessageId) {
        let Some(index) = self.by_id.get(&id) else { return };
        let sent = &self.sent[*index];
        if sent.ruly && matches!(sent.to, To::Name(_)) {
            // A refusal that was true may be told in the turn in which the same is sent again.
            let refused = sent.refused > 0 && sent.said.len() > 1;
            assert!(sent.accepted.is_empty() || refused, "message {index} was accepted, and is called refused");
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
