//! Delivery: the promises made to one recipient. Pure; lives on the recipient's home shard.
//! Order here is the order on the wire. Never reads a socket or the clock.
//!
//! ```text
//!  front                            sent                     hot end                         end
//!   | in flight, or resting, or settled | waiting for the window | cold: in the store alone |
//! ```

mod cold;

use cold::Cold;
pub use cold::Return;

use super::event::{Origin, What};
use super::memory::Owed;
use super::outbox::{Delivery, Outbox, Output};
use crate::base::limits::{ATTEMPTS_MAX, IN_FLIGHT_MAX, RETRY_AFTER, WAITING_OVERHEAD_BYTES};
use crate::base::{Bytes, MessageId, Mono, Now, RefuseReason, Sequence, SessionId};
use crate::wire::{FLAG_CHANNEL, FLAG_REDELIVERED, Parcel, Wants};
use std::collections::VecDeque;

/// How many of the oldest messages an acknowledgement by id is looked for among, before the newest.
const LOOK_AHEAD: usize = 8;
/// How far back an acknowledgement by id is looked for: four windows.
const LOOK_BACK: usize = 4 * IN_FLIGHT_MAX as usize;

/// How far back a message that was read is looked for before the store is asked: those who read do so at once.
const READ_LOOK_BACK: usize = 128;

/// What waits for one recipient, in its order, until it is acknowledged.
///
/// Law: sequences ascend; entries of this epoch are contiguous unless they came back from the store. The first `sent`
/// entries have been handed to the current session; `in_flight` of them are neither settled nor resting. `bytes` is the
/// sum of all entries' weights. While anything is cold, whatever comes new is cold as well.
#[derive(Debug)]
pub struct Queue {
    entries: VecDeque<Entry>,
    epoch: u32,
    /// The counter that the next message will get, in this epoch.
    next: u64,
    /// Everything up to here is settled.
    through: Sequence,
    /// Entries that are settled and still there, behind one that is not.
    settled_inside: usize,
    /// Entries that were ever settled.
    settled_ever: u64,
    cold: Option<Box<Cold>>,
    sent: usize,
    in_flight: u32,
    in_flight_bytes: usize,
    bytes: usize,
    /// Everything up to here has been written to the current session's socket.
    written: Sequence,
    /// Entries that mean something when they have been written: somebody asked, or they are channel messages.
    awaited: u32,
    /// The earliest time to live that ends; `Mono(u64::MAX)` when none does.
    next_expiry: Mono,
    rate: DrainRate,
}

#[derive(Debug)]
struct Entry {
    sequence: Sequence,
    /// Number of the record that holds it.
    record: u64,
    raw: Bytes,
    checksum: u32,
    id: MessageId,
    sent_at: Mono,
    expires_at: Mono,
    attempts: u8,
    channel: bool,
    /// Whether the sender gave it a time to live; otherwise it is kept as long as retention says.
    mortal: bool,
    /// Whether `raw` is memory of its own, not a part of a shared chunk.
    detached: bool,
    state: State,
    seen: Seen,
    /// Boxed: few senders ask for more than acceptance and durability.
    ask: Option<Box<Ask>>,
}

/// An entry's life. Waiting entries and in-flight ones are told apart by `sent`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    /// Sent often enough; still owed, but out of the window.
    Resting,
    /// Acknowledged or failed; leaves when it is at the front.
    Settled,
}

/// Whether its recipient has said that it has read an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    No,
    Yes,
    /// It came back from the store, and may have been read before.
    Perhaps,
}

/// What a queue knows of a message that its recipient says to have read.
#[derive(Debug, PartialEq, Eq)]
pub enum Sight {
    /// It was handed out, and this is the first time that it is said. Who wants to hear what of it, if anybody does.
    Unread(Option<Ask>),
    /// That was said before.
    Read,
    /// It is not among those that can be told at once.
    Unknown,
}

/// Whom to tell about a delivery's later states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Where the message came from.
    pub origin: Origin,
    /// What is wanted.
    pub wants: Wants,
    /// The sender's textual id.
    pub label: Bytes,
}

/// What became of an entry that left or moved on; told to the sender by the caller.
#[derive(Debug, PartialEq, Eq)]
pub struct News {
    /// The message.
    pub id: MessageId,
    /// What happened.
    pub what: What,
    /// Who asked; for failures also without an ask, through `raw`.
    pub ask: Option<Box<Ask>>,
    /// The body, for failures: says who sent it.
    pub raw: Option<Bytes>,
}

/// How a message takes its place.
#[derive(Debug)]
pub struct Offer {
    /// When its time to live, or the retention time, ends.
    pub expires_at: Mono,
    /// The same by the wall clock, milliseconds since 1970: as the store will tell it.
    pub expires_ms: u64,
    /// Whether it is a channel's message, which is settled by being written.
    pub channel: bool,
    /// Who wants to hear of it.
    pub ask: Option<Box<Ask>>,
    /// Number of the record that will hold it.
    pub record: u64,
    /// Memory is full: it waits in the store.
    pub spill: bool,
}

/// How much waits for one recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of those, bytes in memory.
    pub resident: u64,
}

impl Load {
    /// A sum of which one part has changed.
    pub fn changed(self, before: Load, after: Load) -> Load {
        Load {
            messages: self.messages - before.messages + after.messages,
            bytes: self.bytes - before.bytes + after.bytes,
            resident: self.resident - before.resident + after.resident,
        }
    }
}

/// The bounds of one recipient's window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Unacknowledged messages at once.
    pub messages_max: u32,
    /// Their bytes; at least one message always fits.
    pub bytes_max: usize,
}

impl Queue {
    /// Nothing waits; the next message gets counter `first` of `epoch`.
    pub fn new(epoch: u32, first: u64) -> Queue {
        Queue {
            entries: VecDeque::new(),
            epoch,
            next: first,
            through: Sequence { epoch, counter: first - 1 },
            settled_inside: 0,
            settled_ever: 0,
            cold: None,
            sent: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            bytes: 0,
            written: Sequence::default(),
            awaited: 0,
            next_expiry: Mono(u64::MAX),
            rate: DrainRate::default(),
        }
    }

    /// Messages that wait, in flight and cold included.
    pub fn len(&self) -> usize {
        self.entries.len() + self.cold.as_ref().map_or(0, |cold| cold.messages as usize)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.cold.is_none()
    }

    /// What waits: messages, their bytes, and those of them that are in memory.
    pub fn load(&self) -> Load {
        let cold = self.cold.as_ref().map_or(0, |cold| cold.bytes);
        Load { messages: self.len() as u64, bytes: self.bytes as u64 + cold, resident: self.bytes as u64 }
    }

    /// Bytes that wait in memory behind what is in flight.
    pub fn waiting_bytes(&self) -> usize {
        self.bytes - self.in_flight_bytes
    }

    /// Whether something waits in the store alone.
    pub fn is_cold(&self) -> bool {
        self.cold.is_some()
    }

    /// Messages sent and not acknowledged.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// When the oldest unacknowledged message was sent.
    pub fn oldest_sent_at(&self) -> Option<Mono> {
        let first = self.entries.iter().take(self.sent).find(|entry| entry.state == State::Open)?;
        Some(first.sent_at)
    }

    /// The sequence that the next message will get.
    pub fn next_sequence(&self) -> Sequence {
        Sequence { epoch: self.epoch, counter: self.next }
    }

    /// Everything up to here is acknowledged or has failed.
    pub fn settled_through(&self) -> Sequence {
        self.through
    }

    /// Everything up to here has been written to a socket.
    pub fn written_through(&self) -> Sequence {
        self.written.max(self.through)
    }

    /// The earliest time to live that ends.
    pub fn next_expiry(&self) -> Mono {
        self.next_expiry.min(self.cold.as_ref().map_or(Mono(u64::MAX), |cold| cold.next_expiry()))
    }

    /// Entries that were ever settled: changes whenever there is something new to tell.
    pub fn settled_ever(&self) -> u64 {
        self.settled_ever
    }

    /// What is owed, for the row that outlives the process.
    pub fn owed(&self, now: Now) -> Owed {
        let next_expiry_ms = match self.next_expiry() {
            Mono(u64::MAX) => u64::MAX,
            at => now.wall_ms + at.since(now.mono) / Mono::ms(1),
        };
        let load = self.load();
        Owed { messages: load.messages - self.settled_inside as u64, bytes: load.bytes, next_expiry_ms }
    }

    /// What is settled behind `settled_through`: first and last of each run, at most `runs_max`.
    pub fn settled_runs(&self, runs_max: usize) -> Box<[(Sequence, Sequence)]> {
        let mut runs: Vec<(Sequence, Sequence)> = Vec::new();
        if self.settled_inside > 0 {
            let mut open = true;
            for entry in &self.entries {
                let settled = entry.state == State::Settled;
                if settled && open {
                    if runs.len() == runs_max {
                        break;
                    }
                    runs.push((entry.sequence, entry.sequence));
                } else if settled && let Some((_, last)) = runs.last_mut() {
                    *last = entry.sequence;
                }
                open = !settled;
            }
        }
        if let Some(cold) = &self.cold {
            runs.extend(cold.skipped().take(runs_max.saturating_sub(runs.len())));
        }
        runs.into_boxed_slice()
    }

    /// Entries whose sequence is at most `through`.
    fn count_through(&self, through: Sequence) -> usize {
        let (Some(front), Some(back)) = (self.entries.front(), self.entries.back()) else { return 0 };
        let (first, last) = (front.sequence, back.sequence);
        if through < first {
            0
        } else if last <= through {
            self.entries.len()
        } else if first.epoch == last.epoch && last.counter - first.counter + 1 == self.entries.len() as u64 {
            // Without a gap, which is the usual case, the place is the difference.
            (through.counter - first.counter + 1) as usize
        } else {
            self.entries.partition_point(|entry| entry.sequence <= through)
        }
    }

    /// The entry with this sequence.
    fn index_of(&self, sequence: Sequence) -> Option<usize> {
        let index = self.count_through(sequence).checked_sub(1)?;
        (self.entries[index].sequence == sequence).then_some(index)
    }

    /// What a message of `length` bytes is counted as.
    pub fn weight(length: usize) -> usize {
        length + WAITING_OVERHEAD_BYTES
    }

    /// Puts a message at the end of the order; gives its place there. The caller has checked the bounds.
    pub fn offer(&mut self, parcel: &Parcel, offer: Offer) -> Sequence {
        let sequence = self.next_sequence();
        self.next += 1;
        let Offer { expires_at, expires_ms, channel, ask, record, spill } = offer;
        if spill || self.cold.is_some() {
            // Where the hot part ends, the cold one begins.
            let after = self.entries.back().map_or(self.through, |last| last.sequence);
            let cold = self.cold.get_or_insert_with(|| Box::new(Cold::new(after)));
            cold.offer(sequence, Queue::weight(parcel.raw.len()) as u64, record, (expires_at, expires_ms), ask);
            return sequence;
        }
        self.bytes += Queue::weight(parcel.raw.len());
        self.next_expiry = self.next_expiry.min(expires_at);
        self.awaited += u32::from(channel || ask.is_some());
        self.entries.push_back(Entry {
            sequence,
            record,
            raw: parcel.raw.clone(),
            checksum: parcel.checksum,
            id: parcel.id,
            sent_at: Mono(0),
            expires_at,
            attempts: 0,
            channel,
            mortal: parcel.ttl_ms != 0,
            detached: false,
            state: State::Open,
            seen: Seen::No,
            ask,
        });
        sequence
    }

    /// Hands out what the window allows, as far as record `committed`.
    pub fn pump(
        &mut self,
        now: Mono,
        session: SessionId,
        window: Window,
        committed: u64,
        outbox: &mut Outbox,
    ) -> Pumped {
        let mut pumped = Pumped::default();
        while self.sent < self.entries.len() {
            let entry = &mut self.entries[self.sent];
            if entry.state == State::Open {
                let weight = Queue::weight(entry.raw.len());
                let full = self.in_flight >= window.messages_max || self.in_flight_bytes + weight > window.bytes_max;
                if (full && self.in_flight > 0) || entry.record > committed {
                    break;
                }
                self.in_flight += 1;
                self.in_flight_bytes += weight;
                pumped.redelivered += u64::from(entry.attempts > 0);
                pumped.messages += 1;
                entry.hand_out(now, session, outbox);
            }
            self.sent += 1;
        }
        pumped
    }

    /// What did not fit the window waits in memory of its own, so that it does not pin a shared chunk.
    pub fn detach_last(&mut self) {
        if self.sent < self.entries.len()
            && let Some(last) = self.entries.back_mut()
        {
            last.detach();
        }
    }

    /// The recipient has handled everything up to `through`. Unsent messages are not acknowledged by it.
    pub fn acknowledge_through(&mut self, now: Mono, through: Sequence, news: &mut Vec<News>) -> u64 {
        let count = self.count_through(through).min(self.sent);
        if count == 0 {
            return 0;
        }
        let mut acknowledged = 0;
        for index in 0..count {
            acknowledged += u64::from(self.settle(index, What::Acknowledged, news));
        }
        self.trim(now);
        acknowledged
    }

    /// The recipient presents the last sequence it handled in a session that is over: nothing is `sent` yet in the new one.
    pub fn acknowledge_resumed(&mut self, now: Mono, through: Sequence, news: &mut Vec<News>) {
        for index in 0..self.count_through(through) {
            // Never sent means never handled: a recipient that claims otherwise is not believed.
            if self.entries[index].attempts > 0 {
                self.settle(index, What::Acknowledged, news);
            }
        }
        if let Some(cold) = &mut self.cold
            && through.epoch < self.epoch
        {
            // Whether it was sent, the epoch that sent it knew; this one believes the recipient.
            cold.handled_through(through);
        }
        self.trim(now);
    }

    /// The recipient has handled this one message.
    pub fn acknowledge_one(&mut self, now: Mono, sequence: Sequence, news: &mut Vec<News>) -> u64 {
        let Some(index) = self.index_of(sequence).filter(|index| *index < self.sent) else { return 0 };
        let acknowledged = u64::from(self.settle(index, What::Acknowledged, news));
        self.trim(now);
        acknowledged
    }

    /// The sequence of a message that has been sent and not settled, by its id.
    pub fn find_sent(&self, id: MessageId) -> Option<Sequence> {
        // Programs acknowledge in order, so it is one of the oldest; behind one that is never acknowledged, thousands of
        // settled ones may lie, and then it is one of the newest.
        let first = self.sent.min(LOOK_AHEAD);
        let newest = (first.max(self.sent.saturating_sub(LOOK_BACK))..self.sent).rev();
        let open = |index: &usize| self.entries[*index].id == id && self.entries[*index].state != State::Settled;
        let index = (0..first).chain(newest).find(open)?;
        Some(self.entries[index].sequence)
    }

    /// The recipient says that it has read this message.
    pub fn read(&mut self, id: MessageId) -> Sight {
        let first = self.sent.min(LOOK_AHEAD);
        let newest = (first.max(self.sent.saturating_sub(READ_LOOK_BACK))..self.sent).rev();
        let open = |index: &usize| self.entries[*index].id == id && self.entries[*index].state != State::Settled;
        let Some(index) = (0..first).chain(newest).find(open) else { return Sight::Unknown };
        let entry = &mut self.entries[index];
        match entry.seen {
            Seen::Perhaps => Sight::Unknown,
            Seen::Yes => Sight::Read,
            Seen::No => {
                entry.seen = Seen::Yes;
                Sight::Unread(entry.ask.as_deref().cloned())
            }
        }
    }

    /// The same of the message in this place of the order, which the store knows. Whether it was ever handed out.
    pub fn read_at(&mut self, sequence: Sequence) -> bool {
        let Some(index) = self.index_of(sequence) else {
            return sequence <= self.through || self.cold.as_ref().is_some_and(|cold| cold.is_in_skip(sequence));
        };
        let entry = &mut self.entries[index];
        // Of those that an earlier process may have sent, nobody knows whether it did.
        let sent = index < self.sent || (entry.attempts > 0 && sequence.epoch == self.epoch);
        if sent {
            entry.seen = Seen::Yes;
        }
        sent || entry.state == State::Settled
    }

    /// Everything up to `through` has been written to the session's socket. Channel messages are settled by that.
    pub fn mark_written(&mut self, now: Mono, through: Sequence, news: &mut Vec<News>) {
        if through <= self.written {
            return;
        }
        let before = std::mem::replace(&mut self.written, through);
        if self.awaited == 0 {
            return;
        }
        let (first, last) = (self.count_through(before), self.count_through(through).min(self.sent));
        for index in first..last {
            let entry = &mut self.entries[index];
            if let Some(ask) = &mut entry.ask
                && ask.wants.contains(Wants::DELIVERED)
            {
                news.push(News { id: entry.id, what: What::Delivered, ask: Some(ask.clone()), raw: None });
                ask.wants = ask.wants.without(Wants::DELIVERED);
            }
            if entry.channel {
                self.settle(index, What::Acknowledged, news);
            }
        }
        self.trim(now);
    }

    /// Sends again what has been in flight for too long; puts to rest what was sent often enough.
    /// Gives the next time to look, when something is in flight.
    pub fn retry(&mut self, now: Mono, session: SessionId, outbox: &mut Outbox) -> (Option<Mono>, Pumped) {
        let mut next = None::<Mono>;
        let mut pumped = Pumped::default();
        for index in 0..self.sent {
            let entry = &mut self.entries[index];
            if entry.state != State::Open {
                continue;
            }
            if entry.sent_at + RETRY_AFTER <= now {
                if entry.sequence > self.written {
                    // Still in our own send buffer: another copy would only make that longer.
                    entry.sent_at = now;
                } else if entry.attempts >= ATTEMPTS_MAX {
                    entry.state = State::Resting;
                    self.in_flight -= 1;
                    self.in_flight_bytes -= Queue::weight(entry.raw.len());
                    entry.detach();
                    continue;
                } else {
                    entry.detach();
                    entry.hand_out(now, session, outbox);
                    pumped.messages += 1;
                    pumped.redelivered += 1;
                }
            }
            let due = entry.sent_at + RETRY_AFTER;
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        (next, pumped)
    }

    /// The session is over: everything unsettled will be sent again, in order, to the next one.
    pub fn rewind(&mut self) {
        self.sent = 0;
        self.in_flight = 0;
        self.in_flight_bytes = 0;
        self.written = Sequence::default();
        for entry in &mut self.entries {
            if entry.state == State::Resting {
                entry.state = State::Open;
            }
            // A new session is a new chance: what was sent before stays marked so, and may be tried again.
            entry.attempts = entry.attempts.min(1);
            entry.detach();
        }
    }

    /// Gives up what has outlived its time to live.
    pub fn expire(&mut self, now: Mono, news: &mut Vec<News>) {
        if now < self.next_expiry {
            return;
        }
        self.next_expiry = Mono(u64::MAX);
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            if entry.state == State::Settled {
                continue;
            }
            if entry.expires_at <= now {
                let reason = entry.why_expired();
                self.settle(index, What::Failed(reason), news);
            } else {
                self.next_expiry = self.next_expiry.min(entry.expires_at);
            }
        }
        self.trim(now);
    }

    /// How long a sender should wait until about a quarter of the queue has drained, from how fast it drains now.
    pub fn retry_after_ms(&self, now: Mono) -> u32 {
        self.rate.time_for(now, self.load().bytes as usize / 4)
    }

    /// Settles entry `index`; says whether it was open until now.
    fn settle(&mut self, index: usize, what: What, news: &mut Vec<News>) -> bool {
        let entry = &mut self.entries[index];
        if entry.state == State::Settled {
            return false;
        }
        let weight = Queue::weight(entry.raw.len());
        if entry.state == State::Open && index < self.sent {
            self.in_flight -= 1;
            self.in_flight_bytes -= weight;
        }
        entry.state = State::Settled;
        self.settled_inside += 1;
        self.settled_ever += 1;
        self.awaited -= u32::from(entry.channel || entry.ask.is_some());
        self.bytes -= weight;
        self.rate.bytes += weight as u64;
        let ask = entry.ask.take();
        let raw = std::mem::take(&mut entry.raw);
        if let (What::Acknowledged, Some(ask)) = (&what, &ask)
            && ask.wants.contains(Wants::DELIVERED)
        {
            // It can be acknowledged before we hear that it is written, or after that connection is gone.
            news.push(News { id: entry.id, what: What::Delivered, ask: Some(ask.clone()), raw: None });
        }
        let wanted = match &what {
            What::Acknowledged => ask.as_ref().is_some_and(|ask| ask.wants.contains(Wants::ACKNOWLEDGED)),
            _ => true,
        };
        if wanted {
            let raw = matches!(what, What::Failed(_)).then_some(raw);
            news.push(News { id: entry.id, what, ask, raw });
        }
        true
    }

    fn trim(&mut self, now: Mono) {
        self.rate.measure(now);
        while self.entries.front().is_some_and(|entry| entry.state == State::Settled) {
            if let Some(entry) = self.entries.pop_front() {
                self.through = entry.sequence;
            }
            self.settled_inside -= 1;
            self.sent = self.sent.saturating_sub(1);
        }
        if self.entries.is_empty() {
            self.next_expiry = Mono(u64::MAX);
            self.let_go_of_cold();
            // A burst must not leave its memory with an idle agent.
            if self.entries.capacity() > 2048 {
                self.entries = VecDeque::new();
            }
        }
        debug_assert!(self.sent <= self.entries.len() && self.in_flight as usize <= self.sent);
    }
}

impl Entry {
    fn hand_out(&mut self, now: Mono, session: SessionId, outbox: &mut Outbox) {
        let (sequence, mut flags) = (self.sequence, 0);
        if self.attempts > 0 {
            flags |= FLAG_REDELIVERED;
        }
        if self.channel {
            flags |= FLAG_CHANNEL;
        }
        self.attempts = self.attempts.saturating_add(1);
        self.sent_at = now;
        let (checksum, raw) = (self.checksum, self.raw.clone());
        let awaited = self.channel || self.ask.as_ref().is_some_and(|ask| ask.wants.contains(Wants::DELIVERED));
        outbox.outputs.push(Output::Deliver(Delivery { session, sequence, flags, awaited, checksum, raw }));
    }

    /// Its own time is over, or the time that everything is kept.
    fn why_expired(&self) -> RefuseReason {
        if self.mortal { RefuseReason::Expired } else { RefuseReason::Retention }
    }

    /// Leaves the shared chunk for memory of its own size.
    fn detach(&mut self) {
        if !self.detached {
            self.raw = Bytes::copy_from_slice(&self.raw);
            self.detached = true;
        }
    }
}

/// What a pump handed out.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Pumped {
    /// Messages.
    pub messages: u64,
    /// Of those, sent before.
    pub redelivered: u64,
}

/// How fast a queue drains, measured over spans of at least a tenth of a second.
#[derive(Clone, Copy, Debug, Default)]
struct DrainRate {
    since: Mono,
    bytes: u64,
    bytes_per_second: u64,
}

impl DrainRate {
    const SPAN: u64 = Mono::ms(100);

    /// Called once after each batch of settlements.
    fn measure(&mut self, now: Mono) {
        let span = now.since(self.since);
        if span >= Self::SPAN && self.bytes > 0 {
            self.bytes_per_second = self.bytes.saturating_mul(1_000_000_000) / span;
            self.since = now;
            self.bytes = 0;
        }
    }

    /// Milliseconds until `bytes` more have drained: at least 10, at most 5,000, and that when nothing drains.
    fn time_for(&self, now: Mono, bytes: usize) -> u32 {
        let stalled = now.since(self.since) > RETRY_AFTER;
        if self.bytes_per_second == 0 || stalled {
            return 5_000;
        }
        ((bytes as u64).saturating_mul(1_000) / self.bytes_per_second).clamp(10, 5_000) as u32
    }
}

#[cfg(test)]
mod tests;
