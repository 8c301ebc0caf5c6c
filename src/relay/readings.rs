//! What recipients say they have read: believed only of messages that were handed to them, kept once, and told to a sender
//! who asked. What the queue does not show is looked up in the store, by somebody else. Never waits, never reads the store.

use super::Relay;
use super::counters::ReadIgnored;
use super::delivery::{Ask, Sight};
use super::event::{NOBODY, Origin, Outcome, What};
use super::home::AgentSlot;
use super::outbox::{Outbox, Reading, Record};
use crate::base::limits::{READINGS_AT_ONCE_MAX, READINGS_COST, READINGS_KNOWN, READINGS_WAITING_MAX};
use crate::base::{AgentId, Bytes, MessageId, Name, Now, Sequence, ShardId};
use crate::wire::{Receipt, ReceiptState, Wants};
use std::collections::{BTreeSet, VecDeque};

/// What the store says of a message that somebody says to have read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LookedUp {
    /// The message, and who says so.
    pub reading: Reading,
    /// What is there.
    pub found: ReadingFound,
}

/// See `LookedUp`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadingFound {
    /// No such message was for this agent, as far as can be read.
    Nothing,
    /// It failed: it never arrived.
    Failed,
    /// That it was read is kept already.
    Known,
    /// It was for this agent, and nobody has said yet that it was read.
    News {
        /// Its place in the agent's order.
        sequence: Sequence,
        /// What the sender wants to hear.
        wants: Wants,
        /// The sender.
        from: Name,
    },
}

/// One shard's readings that are not decided yet, and some of those that were.
///
/// Law: `pending` holds what is in `waiting` and what was asked, each once; at most one question is on its way. So whatever
/// is asked is asked behind every record of a reading that this shard has made, and the answer knows them all.
#[derive(Debug, Default)]
pub(super) struct Readings {
    pending: BTreeSet<(AgentId, MessageId)>,
    waiting: VecDeque<Reading>,
    asked: bool,
    /// Some that were taken: a later one takes the place of an earlier one. Empty until the first.
    known: Vec<Option<Reading>>,
}

impl Readings {
    fn place(reading: Reading) -> usize {
        let MessageId { sender, number } = reading.id;
        // Names are hashed already, and numbers follow each other.
        let mixed = sender.0 ^ reading.recipient.0.rotate_left(32) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed % READINGS_KNOWN as u64) as usize
    }

    fn is_known(&self, reading: Reading) -> bool {
        self.known.get(Readings::place(reading)).is_some_and(|known| *known == Some(reading))
    }

    fn know(&mut self, reading: Reading) {
        self.known.resize(READINGS_KNOWN, None);
        self.known[Readings::place(reading)] = Some(reading);
    }

    fn is_pending(&self, reading: Reading) -> bool {
        self.pending.contains(&(reading.recipient, reading.id))
    }

    fn pending_of(&self, recipient: AgentId) -> usize {
        let least = MessageId { sender: AgentId(0), number: 0 };
        let greatest = MessageId { sender: AgentId(u64::MAX), number: u64::MAX };
        self.pending.range((recipient, least)..=(recipient, greatest)).count()
    }

    fn wait(&mut self, reading: Reading) {
        if self.pending.insert((reading.recipient, reading.id)) {
            self.waiting.push_back(reading);
        }
    }

    /// The next question, if there is one and none is on its way.
    fn ask(&mut self, outbox: &mut Outbox) {
        if self.asked || self.waiting.is_empty() {
            return;
        }
        let count = self.waiting.len().min(READINGS_AT_ONCE_MAX);
        outbox.readings.extend(self.waiting.drain(..count));
        self.asked = true;
    }
}

impl Relay {
    /// An agent says that it has read messages.
    pub(super) fn on_receipts(&mut self, slot: AgentSlot, receipts: &[Receipt], outbox: &mut Outbox) {
        let recipient = self.agents[slot].id;
        let mut own = None;
        for receipt in receipts.iter().filter(|receipt| receipt.state == ReceiptState::Read) {
            let reading = Reading { id: receipt.id, recipient };
            if self.readings.is_known(reading) || self.readings.is_pending(reading) {
                self.ignore_reading(ReadIgnored::Repeated);
                continue;
            }
            if self.writer_full {
                self.ignore_reading(ReadIgnored::Busy);
                continue;
            }
            match self.agents[slot].queue.read(reading.id) {
                Sight::Unread(ask) => self.take_reading(reading, ask, outbox),
                Sight::Read => self.ignore_reading(ReadIgnored::Repeated),
                Sight::Unknown => {
                    // Nobody takes more than half of what the others have left.
                    let own = own.get_or_insert_with(|| self.readings.pending_of(recipient));
                    if *own >= READINGS_WAITING_MAX.saturating_sub(self.readings.pending.len()) {
                        self.ignore_reading(ReadIgnored::Busy);
                    } else {
                        *own += 1;
                        self.readings.wait(reading);
                    }
                }
            }
        }
        self.readings.ask(outbox);
    }

    /// The store has been asked.
    pub(super) fn on_looked_up(&mut self, now: Now, answers: Vec<LookedUp>, outbox: &mut Outbox) {
        for LookedUp { reading, found } in answers {
            self.readings.pending.remove(&(reading.recipient, reading.id));
            // Whoever was forgotten meanwhile has nobody to speak for it.
            let slot = self.agents.find_id(reading.recipient);
            match (found, slot) {
                (ReadingFound::Known, _) => {
                    self.readings.know(reading);
                    self.ignore_reading(ReadIgnored::Repeated);
                }
                (ReadingFound::News { sequence, wants, from }, Some(slot)) => {
                    if self.writer_full {
                        self.ignore_reading(ReadIgnored::Busy);
                    } else if self.agents[slot].queue.read_at(sequence) {
                        let home = self.hasher.hash(from.as_bytes()).home(self.options.shards);
                        let ask = ask_of(home, wants);
                        self.take_reading(reading, Some(ask), outbox);
                    } else {
                        self.ignore_reading(ReadIgnored::Undelivered);
                    }
                }
                (ReadingFound::Failed, _) => self.ignore_reading(ReadIgnored::Undelivered),
                (ReadingFound::Nothing | ReadingFound::News { .. }, slot) => {
                    self.ignore_reading(ReadIgnored::Unknown);
                    // It was looked for everywhere: who makes things up may say less of them.
                    if let Some(session) = slot.and_then(|slot| self.agents[slot].session()) {
                        self.toil(now, session, READINGS_COST, outbox);
                    }
                }
            }
        }
        self.readings.asked = false;
        // Nothing that is left belongs to that question, whatever became of it.
        let lost = self.readings.pending.len() - self.readings.waiting.len();
        if lost > 0 {
            self.counters.reads_ignored[ReadIgnored::Busy as usize] += lost as u64;
            self.readings.pending =
                self.readings.waiting.iter().map(|reading| (reading.recipient, reading.id)).collect();
        }
        self.readings.ask(outbox);
    }

    /// It is so, and new.
    fn take_reading(&mut self, reading: Reading, ask: Option<Ask>, outbox: &mut Outbox) {
        let Reading { id, recipient } = reading;
        self.counters.reads += 1;
        self.readings.know(reading);
        self.push_record(Record::Read { id, recipient }, outbox);
        if let Some(Ask { origin, wants, label }) = ask
            && wants.contains(Wants::READ)
        {
            self.send_outcome(Outcome { origin, id, label, wants, recipient, what: What::Read }, outbox);
        }
    }

    fn ignore_reading(&mut self, why: ReadIgnored) {
        self.counters.reads_ignored[why as usize] += 1;
    }
}

/// Nobody kept the sender's session: its name finds its home, and its home finds it.
fn ask_of(home: ShardId, wants: Wants) -> Ask {
    Ask { origin: Origin { shard: home, session: NOBODY, ordinal: 0, submitted: false }, wants, label: Bytes::new() }
}
