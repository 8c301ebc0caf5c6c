//! Delivery: the promises made to one recipient. Pure; lives on the recipient's home shard.
//! Order here is the order on the wire. Never reads a socket or the clock.
//!
//! ```text
//!  base                      base + sent                    base + len
//!   | in flight, or resting, or settled | waiting for the window |
//! ```

use super::event::{Origin, What};
use super::outbox::{Delivery, Outbox, Output};
use crate::base::limits::{ATTEMPTS_MAX, IN_FLIGHT_MAX, RETRY_AFTER, WAITING_OVERHEAD_BYTES};
use crate::base::{Bytes, MessageId, Mono, RefuseReason, Sequence, SessionId};
use crate::wire::{FLAG_CHANNEL, FLAG_REDELIVERED, Parcel, Wants};
use std::collections::VecDeque;

/// How many of the oldest messages an acknowledgement by id is looked for among, before the newest.
const LOOK_AHEAD: usize = 8;
/// How far back an acknowledgement by id is looked for: four windows.
const LOOK_BACK: usize = 4 * IN_FLIGHT_MAX as usize;

/// What waits for one recipient, in its order, until it is acknowledged.
///
/// Law: counters are contiguous: entry `i` has counter `base + i`. The first `sent` entries have been handed to the
/// current session; `in_flight` of them are neither settled nor resting. `bytes` is the sum of all entries' weights.
#[derive(Debug)]
pub struct Queue {
    entries: VecDeque<Entry>,
    epoch: u32,
    base: u64,
    sent: usize,
    in_flight: u32,
    in_flight_bytes: usize,
    bytes: usize,
    /// Everything up to here has been written to the current session's socket.
    written: u64,
    /// Entries that mean something when they have been written: somebody asked, or they are channel messages.
    awaited: u32,
    /// The earliest time to live that ends; `Mono(u64::MAX)` when none does.
    next_expiry: Mono,
    rate: DrainRate,
}

#[derive(Debug)]
struct Entry {
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
            base: first,
            sent: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            bytes: 0,
            written: 0,
            awaited: 0,
            next_expiry: Mono(u64::MAX),
            rate: DrainRate::default(),
        }
    }

    /// Messages that wait, in flight included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that wait, in flight included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that wait behind what is in flight.
    pub fn waiting_bytes(&self) -> usize {
        self.bytes - self.in_flight_bytes
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
        Sequence { epoch: self.epoch, counter: self.base + self.entries.len() as u64 }
    }

    /// Everything up to here is acknowledged or has failed.
    pub fn settled_through(&self) -> Sequence {
        Sequence { epoch: self.epoch, counter: self.base - 1 }
    }

    /// Everything up to here has been written to a socket.
    pub fn written_through(&self) -> Sequence {
        Sequence { epoch: self.epoch, counter: self.written.max(self.base - 1) }
    }

    /// The earliest time to live that ends.
    pub fn next_expiry(&self) -> Mono {
        self.next_expiry
    }

    /// What a message of `length` bytes is counted as.
    pub fn weight(length: usize) -> usize {
        length + WAITING_OVERHEAD_BYTES
    }

    /// Puts a message at the end of the order; gives its place there. The caller has checked the bounds.
    pub fn offer(&mut self, parcel: &Parcel, expires_at: Mono, channel: bool, ask: Option<Box<Ask>>) -> Sequence {
        let sequence = self.next_sequence();
        self.bytes += Queue::weight(parcel.raw.len());
        self.next_expiry = self.next_expiry.min(expires_at);
        self.awaited += u32::from(channel || ask.is_some());
        self.entries.push_back(Entry {
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
            ask,
        });
        sequence
    }

    /// Hands out what the window allows.
    pub fn pump(&mut self, now: Mono, session: SessionId, window: Window, outbox: &mut Outbox) -> Pumped {
        let mut pumped = Pumped::default();
        while self.sent < self.entries.len() {
            let entry = &mut self.entries[self.sent];
            if entry.state == State::Open {
                let weight = Queue::weight(entry.raw.len());
                let full = self.in_flight >= window.messages_max || self.in_flight_bytes + weight > window.bytes_max;
                if full && self.in_flight > 0 {
                    break;
                }
                self.in_flight += 1;
                self.in_flight_bytes += weight;
                let sequence = Sequence { epoch: self.epoch, counter: self.base + self.sent as u64 };
                pumped.redelivered += u64::from(entry.attempts > 0);
                pumped.messages += 1;
                entry.hand_out(now, session, sequence, outbox);
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
        if through.epoch != self.epoch || through.counter < self.base {
            return 0;
        }
        let count = (through.counter - self.base + 1).min(self.sent as u64) as usize;
        let mut acknowledged = 0;
        for index in 0..count {
            acknowledged += u64::from(self.settle(index, What::Acknowledged, news));
        }
        self.trim(now);
        acknowledged
    }

    /// The recipient presents the last sequence it handled in a session that is over: nothing is `sent` yet in the new one.
    pub fn acknowledge_resumed(&mut self, now: Mono, through: Sequence, news: &mut Vec<News>) {
        if through.epoch == self.epoch && through.counter >= self.base {
            let count = (through.counter - self.base + 1).min(self.entries.len() as u64) as usize;
            for index in 0..count {
                // Never sent means never handled: a recipient that claims otherwise is not believed.
                if self.entries[index].attempts > 0 {
                    self.settle(index, What::Acknowledged, news);
                }
            }
            self.trim(now);
        }
    }

    /// The recipient has handled this one message.
    pub fn acknowledge_one(&mut self, now: Mono, sequence: Sequence, news: &mut Vec<News>) -> u64 {
        if sequence.epoch != self.epoch || sequence.counter < self.base {
            return 0;
        }
        let index = (sequence.counter - self.base) as usize;
        if index >= self.sent {
            return 0;
        }
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
        Some(Sequence { epoch: self.epoch, counter: self.base + index as u64 })
    }

    /// Everything up to `through` has been written to the session's socket. Channel messages are settled by that.
    pub fn mark_written(&mut self, now: Mono, through: Sequence, news: &mut Vec<News>) {
        if through.epoch != self.epoch || through.counter <= self.written {
            return;
        }
        let first = (self.written.max(self.base - 1) + 1 - self.base) as usize;
        let last = ((through.counter + 1).saturating_sub(self.base) as usize).min(self.sent);
        self.written = through.counter;
        if self.awaited == 0 {
            return;
        }
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
            let counter = self.base + index as u64;
            if entry.sent_at + RETRY_AFTER <= now {
                if counter > self.written {
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
                    entry.hand_out(now, session, Sequence { epoch: self.epoch, counter }, outbox);
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
        self.written = 0;
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
                let reason = if entry.mortal { RefuseReason::Expired } else { RefuseReason::Retention };
                self.settle(index, What::Failed(reason), news);
            } else {
                self.next_expiry = self.next_expiry.min(entry.expires_at);
            }
        }
        self.trim(now);
    }

    /// How long a sender should wait until about a quarter of the queue has drained, from how fast it drains now.
    pub fn retry_after_ms(&self, now: Mono) -> u32 {
        self.rate.time_for(now, self.bytes / 4)
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
            self.entries.pop_front();
            self.base += 1;
            self.sent = self.sent.saturating_sub(1);
        }
        if self.entries.is_empty() {
            self.next_expiry = Mono(u64::MAX);
            // A burst must not leave its memory with an idle agent.
            if self.entries.capacity() > 2048 {
                self.entries = VecDeque::new();
            }
        }
        debug_assert!(self.sent <= self.entries.len() && self.in_flight as usize <= self.sent);
    }
}

impl Entry {
    fn hand_out(&mut self, now: Mono, session: SessionId, sequence: Sequence, outbox: &mut Outbox) {
        let mut flags = 0;
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
mod tests {
    use super::*;
    use crate::base::AgentId;
    use crate::wire::Message;

    const SESSION: SessionId = SessionId { slot: 0, generation: 0 };
    const WINDOW: Window = Window { messages_max: 4, bytes_max: 4096 };

    fn parcel(number: u64) -> Parcel {
        let mut raw = Vec::new();
        let fields = crate::wire::MessageFields {
            id: MessageId { sender: AgentId(1), number },
            from: b"a",
            to: b"b",
            text: b"x",
            ..Default::default()
        };
        let checksum = crate::wire::encode::message_body(&mut raw, &fields);
        Message::check(&raw, checksum).expect("valid").parcel(Bytes::copy_from_slice(&raw))
    }

    fn filled(count: u64) -> Queue {
        let mut queue = Queue::new(9, 1);
        for number in 1..=count {
            queue.offer(&parcel(number), Mono(u64::MAX), false, None);
        }
        queue
    }

    fn sent(outbox: &mut Outbox) -> Vec<(u64, bool)> {
        outbox
            .outputs
            .drain(..)
            .map(|output| match output {
                Output::Deliver(delivery) => (delivery.sequence.counter, delivery.flags & FLAG_REDELIVERED != 0),
                other => panic!("only deliveries here: {other:?}"),
            })
            .collect()
    }

    fn at(counter: u64) -> Sequence {
        Sequence { epoch: 9, counter }
    }

    #[test]
    fn the_window_bounds_what_is_in_flight_and_acknowledgements_move_it() {
        let (mut queue, mut outbox, mut news) = (filled(10), Outbox::default(), Vec::new());
        queue.pump(Mono(0), SESSION, WINDOW, &mut outbox);
        assert_eq!(sent(&mut outbox), [(1, false), (2, false), (3, false), (4, false)]);
        assert_eq!(queue.acknowledge_through(Mono(0), at(2), &mut news), 2);
        queue.pump(Mono(0), SESSION, WINDOW, &mut outbox);
        assert_eq!(sent(&mut outbox), [(5, false), (6, false)]);
        assert_eq!((queue.in_flight(), queue.len()), (4, 8));
    }

    #[test]
    fn nobody_acknowledges_what_was_never_sent() {
        let (mut queue, mut outbox, mut news) = (filled(10), Outbox::default(), Vec::new());
        queue.pump(Mono(0), SESSION, WINDOW, &mut outbox);
        queue.acknowledge_through(Mono(0), at(u64::MAX), &mut news);
        assert_eq!((queue.len(), queue.settled_through()), (6, at(4)));
        assert_eq!(queue.acknowledge_one(Mono(0), at(9), &mut news), 0);
        assert_eq!(queue.acknowledge_through(Mono(0), Sequence { epoch: 8, counter: 99 }, &mut news), 0);
    }

    #[test]
    fn single_acknowledgements_leave_no_hole_in_the_order() {
        let (mut queue, mut outbox, mut news) = (filled(4), Outbox::default(), Vec::new());
        queue.pump(Mono(0), SESSION, WINDOW, &mut outbox);
        assert_eq!(queue.acknowledge_one(Mono(0), at(2), &mut news), 1);
        assert_eq!(queue.acknowledge_one(Mono(0), at(2), &mut news), 0);
        assert_eq!((queue.len(), queue.in_flight()), (4, 3));
        queue.acknowledge_one(Mono(0), at(1), &mut news);
        assert_eq!((queue.len(), queue.settled_through()), (2, at(2)));
    }

    #[test]
    fn an_unacknowledged_message_is_sent_five_times_and_then_rests_still_owed() {
        let (mut queue, mut outbox, mut news) = (filled(1), Outbox::default(), Vec::new());
        let mut now = Mono(1);
        queue.pump(now, SESSION, WINDOW, &mut outbox);
        queue.mark_written(now, at(1), &mut news);
        for attempt in 2..=5 {
            now = now + RETRY_AFTER;
            let (next, _) = queue.retry(now, SESSION, &mut outbox);
            assert_eq!(next, Some(now + RETRY_AFTER), "attempt {attempt}");
        }
        assert_eq!(sent(&mut outbox), [(1, false), (1, true), (1, true), (1, true), (1, true)]);
        assert_eq!(queue.retry(now + RETRY_AFTER, SESSION, &mut outbox).0, None);
        assert_eq!((queue.in_flight(), queue.len()), (0, 1));
        queue.rewind();
        queue.pump(now, SESSION, WINDOW, &mut outbox);
        assert_eq!(sent(&mut outbox), [(1, true)]);
    }

    #[test]
    fn what_is_still_in_our_send_buffer_is_not_sent_again() {
        let (mut queue, mut outbox) = (filled(1), Outbox::default());
        queue.pump(Mono(0), SESSION, WINDOW, &mut outbox);
        sent(&mut outbox);
        queue.retry(Mono(0) + RETRY_AFTER, SESSION, &mut outbox);
        assert_eq!(sent(&mut outbox), []);
    }

    #[test]
    fn a_message_that_outlived_its_time_fails_and_the_rest_goes_on() {
        let (mut queue, mut outbox, mut news) = (Queue::new(9, 1), Outbox::default(), Vec::new());
        let mut mortal = parcel(1);
        mortal.ttl_ms = 1;
        queue.offer(&mortal, Mono(100), false, None);
        queue.offer(&parcel(2), Mono(u64::MAX), false, None);
        queue.offer(&parcel(3), Mono(100), false, None);
        queue.expire(Mono(99), &mut news);
        assert!(news.is_empty());
        queue.expire(Mono(100), &mut news);
        let whats: Vec<_> = news.iter().map(|news| (news.id.number, &news.what)).collect();
        let (expired, kept) = (What::Failed(RefuseReason::Expired), What::Failed(RefuseReason::Retention));
        assert_eq!(whats, [(1, &expired), (3, &kept)], "its own time, or the time that everything is kept");
        queue.pump(Mono(101), SESSION, WINDOW, &mut outbox);
        assert_eq!(sent(&mut outbox), [(2, false)]);
        assert_eq!(queue.next_expiry(), Mono(u64::MAX));
    }

    #[test]
    fn one_message_larger_than_the_window_still_goes_out() {
        let (mut queue, mut outbox) = (filled(2), Outbox::default());
        queue.pump(Mono(0), SESSION, Window { messages_max: 4, bytes_max: 1 }, &mut outbox);
        assert_eq!(sent(&mut outbox), [(1, false)]);
    }

    #[test]
    fn the_retry_time_follows_the_measured_drain() {
        let (mut queue, mut outbox, mut news) = (filled(8), Outbox::default(), Vec::new());
        assert_eq!(queue.retry_after_ms(Mono(0)), 5_000, "nothing drains");
        queue.pump(Mono::default() + Mono::ms(1), SESSION, WINDOW, &mut outbox);
        queue.acknowledge_through(Mono(Mono::ms(1_000)), at(4), &mut news);
        let wait = queue.retry_after_ms(Mono(Mono::ms(1_000)));
        assert!((200..300).contains(&wait), "a quarter of four messages at four a second: {wait}");
    }

    #[test]
    fn what_is_acknowledged_before_it_is_known_to_be_written_was_delivered_all_the_same() {
        let (mut queue, mut outbox, mut news) = (Queue::new(9, 1), Outbox::default(), Vec::new());
        let origin = Origin { shard: crate::base::ShardId(0), session: SESSION, ordinal: 1 };
        let ask = Ask { origin, wants: Wants::DELIVERED, label: Bytes::new() };
        queue.offer(&parcel(1), Mono(u64::MAX), false, Some(Box::new(ask)));
        queue.pump(Mono(0), SESSION, WINDOW, &mut outbox);
        queue.acknowledge_through(Mono(0), at(1), &mut news);
        queue.mark_written(Mono(0), at(1), &mut news);
        let whats: Vec<_> = news.iter().map(|news| news.what.clone()).collect();
        assert_eq!(whats, [What::Delivered]);
    }

    #[test]
    fn only_who_asked_hears_of_acknowledgements() {
        let (mut queue, mut outbox, mut news) = (Queue::new(9, 1), Outbox::default(), Vec::new());
        let origin = Origin { shard: crate::base::ShardId(0), session: SESSION, ordinal: 1 };
        let wants = Wants::DELIVERED | Wants::ACKNOWLEDGED;
        queue.offer(&parcel(1), Mono(u64::MAX), false, Some(Box::new(Ask { origin, wants, label: Bytes::new() })));
        queue.offer(&parcel(2), Mono(u64::MAX), false, None);
        queue.pump(Mono(0), SESSION, WINDOW, &mut outbox);
        queue.mark_written(Mono(0), at(2), &mut news);
        queue.acknowledge_through(Mono(0), at(2), &mut news);
        let whats: Vec<_> = news.iter().map(|news| (news.id.number, news.what.clone())).collect();
        assert_eq!(whats, [(1, What::Delivered), (1, What::Acknowledged)]);
    }
}
