//! The ledger: what was said, what was promised and what came, kept in this process's memory, which no fault reaches; and
//! the rules, each of which names what it found.

use agent_relay::base::Sequence;
use agent_relay::base::ids::Token;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Microseconds since the run began.
pub(crate) type Micros = u64;

/// A WELCOME this much older than the end of a life is on disk, unless the machine stood still meanwhile; a younger one may
/// be lost with it, unless there is proof: a durable receipt for a message *to* that agent, said once, after its WELCOME. One home
/// hands both to the writer, in this order. (What an agent says itself lies with the homes of those it is for, and their
/// commits prove nothing of its own.)
pub(crate) const SESSION_SETTLES: Micros = 1_000_000;
/// What is not acknowledged comes again after 5 s; less what clocks and buffers blur, and less the longest time that the
/// agents did not look (the relay counts from when it hands a message out, an agent from when it sees it).
const REPEAT_AFTER: Micros = 4_900_000;
/// Acknowledgements are handed to the store within this time of being read by the relay.
const PROGRESS_SETTLES: Micros = 200_000;
/// What was settled this long ago, in another life, does not come again.
const FORGOTTEN_AFTER: Micros = 10_000_000;
/// An acknowledgement is known to be committed after so many durable receipts: one of the same agent for a message said
/// after it (it has been read), one for a message to that agent said when it was time to hand the acknowledgement to the
/// store (it was), and one for a message to that agent said after that (whose commit took what had been handed over).
const COMMITTED_AFTER: u8 = 3;

/// A message as its sender knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Letter {
    pub sender: usize,
    pub number: u64,
}

/// For whom it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum To {
    One(usize),
    /// Everybody but the sender.
    Everyone,
}

/// What a rule promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    /// A: what has a durable receipt is delivered.
    Kept,
    /// B: per sender and recipient, in the order of sending; on a connection, in the order of sequences.
    Order,
    /// C: a repeat has the same id and sequence, is marked, and comes after a timeout or a new connection.
    Repeat,
    /// D: bytes arrive as they were sent.
    Bytes,
    /// E: nobody gets what is for others.
    Recipient,
    /// F: each message has one definite outcome, and it is true.
    Outcome,
    /// G: who comes back goes on with the same session; epochs grow.
    Session,
    /// H: what was acknowledged, and known to be committed, does not come again.
    Acknowledged,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub rule: Rule,
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}: {}", self.rule, self.text)
    }
}

struct Sent {
    to: To,
    /// Recipients that have not seen it, a bit each.
    missing: u64,
    times: u32,
    said_at: Micros,
    said_in: u32,
    /// The life of the daemon in which its durable receipt came.
    durable_in: Option<u32>,
    refused: bool,
    round: u32,
}

/// A place in a recipient's order.
struct Place {
    letter: Letter,
    at: Micros,
    life: u32,
    connection: u64,
}

/// How often and when a recipient saw a message, under whatever sequence.
struct Seen {
    first_life: u32,
    at: Micros,
    life: u32,
    connection: u64,
    sequences: Vec<Sequence>,
}

/// An acknowledgement, and what proves that it is committed.
struct Told {
    through: Sequence,
    /// When the last proof came.
    since: Micros,
    proofs: u8,
    /// Presented with a HELLO, about mail of an earlier life: the relay settles it when it has read that mail from its
    /// store, which is when it hands out what comes behind it.
    waits_for_mail: bool,
}

impl Told {
    /// A receipt has come for what was said at `said_at` by the same agent, or to it.
    fn prove(&mut self, said_at: Micros, now: Micros) {
        let wait = if self.proofs == 1 { PROGRESS_SETTLES } else { 0 };
        if self.proofs < COMMITTED_AFTER && !self.waits_for_mail && said_at > self.since + wait {
            (self.proofs, self.since) = (self.proofs + 1, now);
        }
    }
}

#[derive(Default)]
struct Reader {
    places: BTreeMap<Sequence, Place>,
    seen: HashMap<Letter, Seen>,
    /// The last number of each sender that the program saw for the first time.
    last: HashMap<usize, u64>,
    connected: bool,
    connection: u64,
    high: Sequence,
    presented: Sequence,
    session: Option<Token>,
    welcomed_at: Micros,
    welcomed_in: u32,
    /// Whether something is durable that was said to it since its WELCOME.
    session_is_proven: bool,
    /// Acknowledgements of this life.
    acknowledged: Vec<Told>,
    /// Known to be committed in an earlier life.
    committed: Sequence,
}

/// What a WELCOME and the HELLO before it said.
pub(crate) struct Arrival {
    pub session: Token,
    pub resumed: bool,
    /// The client asked to go on with the session it had.
    pub asked: bool,
    /// It gave this as the last sequence it has handled.
    pub handled: Sequence,
    /// Unknown in the JSON dialect.
    pub epoch: Option<u32>,
    /// The highest number that the relay has taken of this agent.
    pub number: u64,
}

/// A message as it came.
pub(crate) struct Delivery {
    pub letter: Letter,
    /// The JSON dialect shows no epoch.
    pub sequence: Option<Sequence>,
    pub redelivered: bool,
    /// Every byte is as it was sent.
    pub genuine: bool,
    /// It was written after this time.
    pub since: Micros,
}

/// Everything known.
pub(crate) struct Ledger {
    /// When the agents last looked, and the longest time that they did not.
    looked: Micros,
    unseen: Micros,
    /// DELIVER waits for the commit.
    strict: bool,
    readers: Vec<Reader>,
    sent: BTreeMap<Letter, Sent>,
    /// Numbers up to this one of each sender were settled two rounds ago and are not remembered singly.
    forgotten: Vec<u64>,
    /// The highest number of each sender with a durable receipt.
    durable_through: Vec<u64>,
    life: u32,
    /// When the last life could last commit anything.
    ended_at: Micros,
    /// Since when the disk takes nothing, if it does not.
    failing_since: Option<Micros>,
    /// The highest epoch of an earlier life, and this life's; and in which life each began.
    epoch_before: u32,
    epoch: u32,
    lives: HashMap<u32, u32>,
    connections: u64,
    round: u32,
    /// Messages without an outcome, and durable ones that somebody has not seen.
    open: usize,
    owed: usize,
    pub durable: u64,
    pub delivered: u64,
    pub repeats: u64,
    /// Among the repeats: what came before it was durable, was lost, and was said again.
    pub second_places: u64,
    pub resumed: u64,
    pub refused: u64,
    violations: Vec<Violation>,
}

impl Ledger {
    /// The agents look at their connections now.
    pub(crate) fn look(&mut self, now: Micros) {
        if self.looked > 0 {
            self.unseen = self.unseen.max(now.saturating_sub(self.looked));
        }
        self.looked = now;
    }

    pub(crate) fn new(agents: usize, strict: bool) -> Ledger {
        assert!(agents <= 64, "recipients are bits of a word");
        Ledger {
            looked: 0,
            unseen: 0,
            strict,
            readers: (0..agents).map(|_| Reader::default()).collect(),
            sent: BTreeMap::new(),
            forgotten: vec![0; agents],
            durable_through: vec![0; agents],
            life: 0,
            ended_at: 0,
            failing_since: None,
            epoch_before: 0,
            epoch: 0,
            lives: HashMap::new(),
            connections: 0,
            round: 0,
            open: 0,
            owed: 0,
            durable: 0,
            delivered: 0,
            repeats: 0,
            second_places: 0,
            resumed: 0,
            refused: 0,
            violations: Vec::new(),
        }
    }

    fn broken(&mut self, rule: Rule, text: String) {
        // The first ones tell the story.
        if self.violations.len() < 20 {
            self.violations.push(Violation { rule, text });
        }
    }

    /// What was found so far.
    pub(crate) fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// No message waits for an outcome, and no durable one for a recipient.
    pub(crate) fn is_quiet(&self) -> bool {
        self.open == 0 && self.owed == 0
    }

    /// Messages without an outcome, and durable ones that somebody has not seen.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.open, self.owed)
    }

    /// From here on DELIVER waits for the commit, or no longer.
    pub(crate) fn set_strict(&mut self, strict: bool) {
        self.strict = strict;
    }

    /// A SEND is about to be written.
    pub(crate) fn said(&mut self, letter: Letter, to: To, at: Micros) {
        let missing = match to {
            To::One(recipient) => 1 << recipient,
            To::Everyone => (u64::MAX >> (64 - self.readers.len())) & !(1 << letter.sender),
        };
        let (life, round) = (self.life, self.round);
        match self.sent.get_mut(&letter) {
            Some(sent) => {
                assert!(sent.to == to, "the same number is the same message: {letter:?}");
                sent.times += 1;
                (sent.said_at, sent.said_in) = (at, life);
            }
            None => {
                self.open += 1;
                let sent =
                    Sent { to, missing, times: 1, said_at: at, said_in: life, durable_in: None, refused: false, round };
                self.sent.insert(letter, sent);
            }
        }
    }

    /// A durable receipt came. Whether it is news.
    pub(crate) fn durable(&mut self, letter: Letter, at: Micros) -> bool {
        let life = self.life;
        let Some(sent) = self.sent.get_mut(&letter) else {
            if letter.number > self.forgotten[letter.sender] {
                self.broken(Rule::Outcome, format!("a receipt for {letter:?}, which was never sent"));
            }
            return false;
        };
        // What was said before may lie in the log since an earlier life: its receipt comes at once and proves nothing.
        if sent.said_in == life && sent.times == 1 {
            let unread = self.readers[letter.sender].acknowledged.iter_mut().filter(|told| told.proofs == 0);
            unread.for_each(|told| told.prove(sent.said_at, at));
            for (index, reader) in self.readers.iter_mut().enumerate() {
                let is_for_it = match sent.to {
                    To::One(recipient) => recipient == index,
                    To::Everyone => letter.sender != index,
                };
                if !is_for_it {
                    continue;
                }
                let read = reader.acknowledged.iter_mut().filter(|told| told.proofs > 0);
                read.for_each(|told| told.prove(sent.said_at, at));
                reader.session_is_proven |= reader.connected && sent.said_at >= reader.welcomed_at;
            }
        }
        if sent.durable_in.is_some() {
            return false;
        }
        if sent.refused {
            self.broken(Rule::Outcome, format!("{letter:?} is durable after it was refused"));
            return false;
        }
        sent.durable_in = Some(life);
        let through = &mut self.durable_through[letter.sender];
        *through = letter.number.max(*through);
        self.open -= 1;
        self.owed += usize::from(sent.missing != 0);
        self.durable += 1;
        true
    }

    /// BUSY or ERROR came: not accepted.
    pub(crate) fn refused(&mut self, letter: Letter) {
        let Some(sent) = self.sent.get_mut(&letter) else {
            return self.broken(Rule::Outcome, format!("a refusal of {letter:?}, which was never sent"));
        };
        if sent.durable_in.is_some() {
            return self.broken(Rule::Outcome, format!("{letter:?} is refused after it was durable"));
        }
        if !sent.refused {
            sent.refused = true;
            self.open -= 1;
            self.refused += 1;
        }
    }

    /// A message failed after it was accepted; none here has a time to live, so none may.
    pub(crate) fn failed(&mut self, letter: Letter) {
        self.broken(Rule::Kept, format!("{letter:?} is reported as failed"));
    }

    /// From now on the disk takes nothing, or takes it again.
    pub(crate) fn disk_fails(&mut self, since: Option<Micros>) {
        self.failing_since = since;
    }

    /// The daemon is dead.
    pub(crate) fn daemon_ended(&mut self, at: Micros) {
        // What follows is another connection: a pause between two lives excuses nothing.
        (self.looked, self.unseen) = (0, 0);
        for reader in &mut self.readers {
            for told in reader.acknowledged.iter().filter(|told| told.proofs == COMMITTED_AFTER) {
                reader.committed = told.through.max(reader.committed);
            }
            reader.acknowledged.clear();
            reader.connected = false;
        }
        self.life += 1;
        self.ended_at = self.failing_since.map_or(at, |since| since.min(at));
        self.epoch_before = self.epoch_before.max(self.epoch);
        self.epoch = 0;
    }

    /// Whether this is the session that the agent had.
    pub(crate) fn is_session_of(&self, agent: usize, session: Token) -> bool {
        self.readers[agent].session == Some(session)
    }

    /// An agent's connection is gone.
    pub(crate) fn lost(&mut self, agent: usize) {
        self.readers[agent].connected = false;
    }

    /// WELCOME came.
    pub(crate) fn arrived(&mut self, agent: usize, arrival: &Arrival, at: Micros) {
        let (life, ended_at) = (self.life, self.ended_at);
        if let Some(epoch) = arrival.epoch {
            if epoch <= self.epoch_before || self.epoch != 0 && epoch != self.epoch {
                let text = format!("epoch {epoch} in life {life}, after {} and {}", self.epoch_before, self.epoch);
                self.broken(Rule::Session, text);
            }
            self.epoch = epoch;
            self.lives.insert(epoch, life);
        }
        let taken = self.durable_through[agent];
        if arrival.epoch.is_some() && arrival.number < taken {
            let text = format!("agent {agent} is told {} as its last number, but {taken} is durable", arrival.number);
            self.broken(Rule::Outcome, text);
        }
        self.connections += 1;
        let reader = &mut self.readers[agent];
        let mut problem = None;
        if arrival.asked {
            let is_young = ended_at < reader.welcomed_at + SESSION_SETTLES;
            let may_be_lost = reader.welcomed_in < life && is_young && !reader.session_is_proven;
            let same = reader.session == Some(arrival.session);
            if !(may_be_lost || arrival.resumed && same) {
                problem = Some(format!(
                    "agent {agent} asked in life {life} to go on with its session of life {} (begun {} us before it could last commit): resumed {}, same session {same}",
                    reader.welcomed_in,
                    ended_at.saturating_sub(reader.welcomed_at),
                    arrival.resumed,
                ));
            }
            self.resumed += u64::from(arrival.resumed);
        }
        reader.session = Some(arrival.session);
        (reader.welcomed_at, reader.welcomed_in) = (at, life);
        reader.session_is_proven = false;
        (reader.connected, reader.connection) = (true, self.connections);
        reader.high = Sequence::default();
        // Only a session that goes on takes the sequence as an acknowledgement.
        reader.presented = if arrival.resumed { arrival.handled } else { Sequence::default() };
        if reader.presented > Sequence::default() {
            let waits_for_mail = arrival.handled.epoch < self.epoch;
            reader.acknowledged.push(Told { through: arrival.handled, since: at, proofs: 0, waits_for_mail });
        }
        if let Some(text) = problem {
            self.broken(Rule::Session, text);
        }
    }

    /// An agent has acknowledged everything up to here.
    pub(crate) fn acknowledged(&mut self, agent: usize, through: Sequence, at: Micros) {
        let told = Told { through, since: at, proofs: 0, waits_for_mail: false };
        self.readers[agent].acknowledged.push(told);
    }

    /// DELIVER came. Whether the program sees it for the first time.
    pub(crate) fn delivered(&mut self, agent: usize, delivery: &Delivery, at: Micros) -> bool {
        let letter = delivery.letter;
        self.delivered += 1;
        if !delivery.genuine {
            self.broken(Rule::Bytes, format!("{letter:?} came to agent {agent} with other bytes"));
        }
        let Some(sent) = self.sent.get(&letter) else {
            let old = self.forgotten.get(letter.sender).is_some_and(|through| letter.number <= *through);
            if old {
                self.broken(Rule::Acknowledged, format!("{letter:?}, settled long ago, came again to agent {agent}"));
            } else {
                self.broken(Rule::Bytes, format!("{letter:?} came to agent {agent} and was never sent"));
            }
            return false;
        };
        let is_for_it = match sent.to {
            To::One(recipient) => recipient == agent,
            To::Everyone => agent != letter.sender,
        };
        if !is_for_it {
            self.broken(Rule::Recipient, format!("{letter:?}, for {:?}, came to agent {agent}", sent.to));
            return false;
        }
        let now = Now {
            unseen: self.unseen,
            at,
            life: self.life,
            strict: self.strict,
            placed_in: delivery.sequence.and_then(|sequence| self.lives.get(&sequence.epoch).copied()),
        };
        for (rule, text) in judge(agent, &self.readers[agent], sent, delivery, &now) {
            self.broken(rule, text);
        }
        self.note(agent, delivery, at)
    }

    /// Writes a delivery down.
    fn note(&mut self, agent: usize, delivery: &Delivery, at: Micros) -> bool {
        let (letter, life) = (delivery.letter, self.life);
        let at = delivery.since.min(at);
        let reader = &mut self.readers[agent];
        let connection = reader.connection;
        for told in reader.acknowledged.iter_mut().filter(|told| told.waits_for_mail) {
            (told.waits_for_mail, told.since) = (false, at);
        }
        let sent = self.sent.get_mut(&letter).expect("the caller has found it");
        if let Some(sequence) = delivery.sequence {
            reader.high = reader.high.max(sequence);
            reader.places.insert(sequence, Place { letter, at, life, connection });
        }
        let first = !reader.seen.contains_key(&letter);
        let seen =
            reader.seen.entry(letter).or_insert(Seen { first_life: life, at, life, connection, sequences: Vec::new() });
        (seen.at, seen.life, seen.connection) = (at, life, connection);
        if let Some(sequence) = delivery.sequence
            && !seen.sequences.contains(&sequence)
        {
            seen.sequences.push(sequence);
            self.second_places += u64::from(seen.sequences.len() > 1);
        }
        self.repeats += u64::from(!first);
        // Without an epoch to be seen, a second place is what is not marked.
        self.second_places += u64::from(!first && delivery.sequence.is_none() && !delivery.redelivered);
        let mut problem = None;
        if first {
            let last = reader.last.entry(letter.sender).or_default();
            if letter.number < *last {
                problem = Some(format!("agent {agent} saw {letter:?} after number {last} of the same sender"));
            }
            *last = letter.number.max(*last);
            let was_missing = sent.missing;
            sent.missing &= !(1 << agent);
            if sent.durable_in.is_some() && was_missing != 0 && sent.missing == 0 {
                self.owed -= 1;
            }
        }
        if let Some(text) = problem {
            self.broken(Rule::Order, text);
        }
        first
    }

    /// Everything should be settled now: no faults, everybody connected, and time enough has passed.
    pub(crate) fn settle(&mut self, at: Micros) {
        let mut found = Vec::new();
        for (letter, sent) in &self.sent {
            if sent.durable_in.is_none() && !sent.refused {
                found.push((
                    Rule::Outcome,
                    format!("{letter:?}, said {} times, last in life {}, has no outcome", sent.times, sent.said_in),
                ));
            }
            if let (Some(life), true) = (sent.durable_in, sent.missing != 0) {
                let missing: Vec<usize> = (0..self.readers.len()).filter(|bit| sent.missing >> bit & 1 == 1).collect();
                found.push((
                    Rule::Kept,
                    format!("{letter:?}, said {} times, last in life {}, durable in life {life}, to {:?}, never came to agents {missing:?}", sent.times, sent.said_in, sent.to),
                ));
            }
        }
        let lost = found.iter().filter(|(rule, _)| *rule == Rule::Kept).count();
        if lost > 20 {
            self.broken(Rule::Kept, format!("{lost} messages are lost in all; the first ones:"));
        }
        for (rule, text) in found {
            self.broken(rule, text);
        }
        self.forget_old(at);
    }

    /// What was settled two rounds ago is not remembered singly.
    fn forget_old(&mut self, at: Micros) {
        self.round += 1;
        let round = self.round;
        // Lives may be so short that none of several commits an acknowledgement.
        let is_old = |sent: &Sent| sent.round + 2 < round && sent.said_at + FORGOTTEN_AFTER < at;
        let forgotten = &mut self.forgotten;
        self.sent.retain(|letter, sent| {
            if is_old(sent) {
                forgotten[letter.sender] = forgotten[letter.sender].max(letter.number);
            }
            !is_old(sent)
        });
        let sent = &self.sent;
        for reader in &mut self.readers {
            reader.places.retain(|_, place| sent.contains_key(&place.letter));
            reader.seen.retain(|letter, _| sent.contains_key(letter));
        }
    }
}

/// When a delivery is judged.
struct Now {
    at: Micros,
    unseen: Micros,
    life: u32,
    strict: bool,
    /// The life in which the message got the place that it has.
    placed_in: Option<u32>,
}

/// Whether a delivery keeps the rules of repeats, order and acknowledgement.
fn judge(agent: usize, reader: &Reader, sent: &Sent, delivery: &Delivery, now: &Now) -> Vec<(Rule, String)> {
    let Now { at, unseen, life, strict, placed_in } = *now;
    let letter = delivery.letter;
    let mut found = Vec::new();
    let here = reader.connection;
    let marked = delivery.redelivered;
    if !reader.connected {
        found.push((Rule::Session, format!("{letter:?} came to agent {agent} before its WELCOME")));
    }
    if let Some(sequence) = delivery.sequence {
        let shown = format!("{letter:?} with sequence {}.{} to agent {agent}", sequence.epoch, sequence.counter);
        if sequence <= reader.presented || sequence <= reader.committed {
            let what = if sequence <= reader.presented { "presented as handled" } else { "known to be committed" };
            found.push((Rule::Acknowledged, format!("{shown}: its acknowledgement was {what}")));
        }
        let before = reader.places.get(&sequence);
        match before {
            Some(place) if place.letter != letter => {
                found.push((Rule::Repeat, format!("{shown}: that sequence was {:?}", place.letter)));
            }
            Some(place) if place.connection == here && at + unseen < place.at + REPEAT_AFTER => {
                found.push((Rule::Repeat, format!("{shown}: again after {} us", at - place.at)));
            }
            Some(_) if !marked => found.push((Rule::Repeat, format!("{shown}: again, and not marked"))),
            Some(_) => {}
            None if sequence <= reader.high => {
                let high = reader.high;
                found.push((Rule::Order, format!("{shown}: after {}.{}", high.epoch, high.counter)));
            }
            None => {}
        }
        let seen_here = before.is_some_and(|place| place.connection == here);
        if before.is_some() && !seen_here && sequence < reader.high {
            found.push((Rule::Order, format!("{shown}: the owed ones do not come in order")));
        }
    }
    let Some(seen) = reader.seen.get(&letter) else { return found };
    let is_known_place = delivery.sequence.is_none_or(|sequence| seen.sequences.contains(&sequence));
    let shown = format!("{letter:?} to agent {agent}");
    if !is_known_place || delivery.sequence.is_none() && !marked {
        // A second place: the first was lost with a life in which its sender was promised nothing, and the message was
        // said again. Where no epoch is shown, the first place is known to be of the life in which it was first seen.
        let promised = match (sent.durable_in, placed_in) {
            (Some(durable), Some(placed)) => durable < placed,
            (Some(durable), None) => durable <= seen.first_life,
            (None, _) => false,
        };
        let mut lives =
            seen.sequences.iter().filter_map(|sequence| reader.places.get(sequence).map(|place| place.life));
        if strict {
            found.push((Rule::Repeat, format!("{shown}: delivered when committed, and given a second place")));
        } else if promised {
            found.push((Rule::Repeat, format!("{shown}: durable before, and given a second place")));
        } else if sent.times < 2 {
            found.push((Rule::Repeat, format!("{shown}: said once, and has two places")));
        } else if seen.life == life || lives.any(|seen| seen == life) {
            found.push((Rule::Repeat, format!("{shown}: two places in one life")));
        }
    } else if delivery.sequence.is_none() && seen.connection == here && at + unseen < seen.at + REPEAT_AFTER {
        found.push((Rule::Repeat, format!("{shown}: again after {} us", at - seen.at)));
    }
    found
}
