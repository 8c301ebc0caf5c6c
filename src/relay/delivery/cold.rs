//! The part of one recipient's mail that waits in the store alone: counted here, fetched back in order when there is room.

use super::{Ask, Entry, News, Queue, Seen, State};
use crate::base::limits::{FETCH_BYTES_MAX, FETCH_MESSAGES_MAX, NAME_BYTES_MAX, SETTLED_RUNS_MAX};
use crate::base::{AgentId, Bytes, MessageId, Mono, Now, RefuseReason, Sequence, ShardId};
use crate::relay::event::{Origin, What};
use crate::relay::outbox::{Addressee, Fetch, Fetched, FetchedMessage, Place, Wanted};
use crate::relay::{Remembered, event};
use crate::wire::{Message, Wants};
use std::collections::VecDeque;

/// Who asked for later receipts of cold messages: so many are kept word for word; for more, the sender is found by name.
const ASKS_MAX: usize = 256;
/// Expired messages that are told as failed at once.
const EXPIRED_AT_ONCE: u32 = 256;
/// Less than this, unsent in memory, and more is fetched.
const REFILL_BELOW_BYTES: usize = FETCH_BYTES_MAX as usize / 2;

/// When to look again for what has expired, if not all of it was committed at the last look.
const UNCOMMITTED_AGAIN: u64 = Mono::ms(1_000);

/// What waits in the store.
///
/// Law: `messages` and `bytes` count what is behind `after`, up to `last`, and neither skipped nor handled.
#[derive(Debug)]
pub(super) struct Cold {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// The last sequence that is hot, or was: fetches go on behind it.
    after: Sequence,
    last: Sequence,
    /// Number of the record that holds the last of them; 0: committed by an earlier process.
    record: u64,
    place: Place,
    /// What was asked of the store, and what was certain to be there then.
    asked: Option<Asked>,
    /// A fetch came back without what is not committed yet: worth asking again after a commit.
    hungry: bool,
    /// All of it has failed, and nothing has come since: it stays for what is hot before it.
    over: bool,
    next_expiry: Mono,
    /// What expired by then has been told.
    expired_before_ms: u64,
    /// Up to here the recipient said it had handled everything when it came back.
    handled: Sequence,
    /// Settled out of order, in an earlier process or because it expired here: first and last of each run, in order.
    skip: VecDeque<(Sequence, Sequence)>,
    asks: VecDeque<(Sequence, Box<Ask>)>,
}

/// A fetch that is under way.
#[derive(Clone, Copy, Debug)]
struct Asked {
    fetch: Fetch,
    /// Everything up to here was committed when it was sent.
    certain: Option<Sequence>,
    /// The earliest expiry of what has come since, milliseconds since 1970.
    expires_ms: u64,
}

impl Cold {
    pub(super) fn new(after: Sequence) -> Cold {
        Cold {
            messages: 0,
            bytes: 0,
            after,
            last: after,
            record: 0,
            place: Place::default(),
            asked: None,
            hungry: false,
            over: false,
            next_expiry: Mono(u64::MAX),
            expired_before_ms: 0,
            handled: Sequence::default(),
            skip: VecDeque::new(),
            asks: VecDeque::new(),
        }
    }

    pub(super) fn offer(
        &mut self,
        sequence: Sequence,
        weight: u64,
        record: u64,
        (expires_at, expires_ms): (Mono, u64),
        ask: Option<Box<Ask>>,
    ) {
        self.messages += 1;
        self.bytes += weight;
        self.over = false;
        self.last = sequence;
        self.record = record;
        self.next_expiry = self.next_expiry.min(expires_at);
        // The wall clock may have been set back since the last look: nobody has told of this one.
        self.expired_before_ms = self.expired_before_ms.min(expires_ms.saturating_sub(1));
        if let Some(asked) = &mut self.asked {
            asked.expires_ms = asked.expires_ms.min(expires_ms);
        }
        if let Some(ask) = ask
            && self.asks.len() < ASKS_MAX
        {
            self.asks.push_back((sequence, ask));
        }
    }

    /// When to look for what has expired; not while an answer is on its way.
    pub(super) fn next_expiry(&self) -> Mono {
        if self.asked.is_some() { Mono(u64::MAX) } else { self.next_expiry }
    }

    pub(super) fn handled_through(&mut self, through: Sequence) {
        self.handled = self.handled.max(through);
    }

    pub(super) fn skipped(&self) -> impl Iterator<Item = (Sequence, Sequence)> + '_ {
        self.skip.iter().copied()
    }

    /// As `is_in_skip`, for messages that come back in order: what lies before them is let go.
    fn is_skipped(&mut self, sequence: Sequence) -> bool {
        while self.skip.front().is_some_and(|(_, last)| *last < sequence) {
            self.skip.pop_front();
        }
        self.skip.front().is_some_and(|(first, _)| *first <= sequence)
    }

    /// It is settled, and stays in the store for a while. What there is no room for, `expired_before_ms` keeps out.
    fn skip_one(&mut self, sequence: Sequence) {
        let index = self.skip.partition_point(|(_, last)| *last < sequence);
        let follows =
            |(_, last): &(Sequence, Sequence)| last.epoch == sequence.epoch && last.counter + 1 == sequence.counter;
        if let Some(before) = index.checked_sub(1).and_then(|index| self.skip.get_mut(index))
            && follows(before)
        {
            before.1 = sequence;
        } else if self.skip.len() < SETTLED_RUNS_MAX {
            self.skip.insert(index, (sequence, sequence));
        }
    }

    /// The ask that was kept for this message; those before it have nobody to tell any more.
    fn ask_of(&mut self, sequence: Sequence) -> Option<Box<Ask>> {
        while self.asks.front().is_some_and(|(kept, _)| *kept < sequence) {
            self.asks.pop_front();
        }
        self.asks.pop_front_if(|(kept, _)| *kept == sequence).map(|(_, ask)| ask)
    }

    fn count_off(&mut self, length: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(Queue::weight(length) as u64);
    }
}

/// What is needed to make sense of a message that comes back.
pub struct Return<'a> {
    /// Both clocks.
    pub now: Now,
    /// Nanoseconds that messages without a time to live of their own are kept.
    pub retention: u64,
    /// Number of the last record that is committed.
    pub committed: u64,
    /// Where a sender's home is, by its name.
    pub home_of: &'a dyn Fn(&[u8]) -> ShardId,
}

impl Queue {
    /// The queue of an agent that an earlier process knew: all it is owed is in the store.
    pub fn restored(epoch: u32, row: &Remembered, look_at: Mono) -> Queue {
        let mut queue = Queue::new(epoch, 1);
        queue.through = row.acknowledged;
        if row.owed.messages > 0 {
            let mut cold = Cold::new(row.acknowledged);
            (cold.messages, cold.bytes) = (row.owed.messages, row.owed.bytes);
            cold.last = row.last.max(row.acknowledged);
            cold.next_expiry = look_at;
            cold.skip = row.settled.iter().copied().collect();
            queue.cold = Some(Box::new(cold));
        } else {
            queue.through = row.last.max(row.acknowledged);
        }
        queue
    }

    /// Asks the store for more when there is room for it. `committed` is the last record that is certainly there.
    pub fn refill(&mut self, agent: AgentId, now: Now, retention: u64, committed: u64) -> Option<Fetch> {
        let unsent = self.waiting_bytes();
        let cold = self.cold.as_mut()?;
        if cold.asked.is_some() || cold.hungry || unsent >= REFILL_BELOW_BYTES {
            return None;
        }
        // What has expired comes back as well, and keeps its place as settled; unless there was too much of it to note.
        let expired_before_ms = if cold.skip.len() < SETTLED_RUNS_MAX { 0 } else { cold.expired_before_ms };
        let wanted = Wanted::Mail { messages_max: FETCH_MESSAGES_MAX, bytes_max: FETCH_BYTES_MAX, expired_before_ms };
        Some(cold.ask(agent, now, retention, committed, wanted))
    }

    /// Asks the store for what has expired, when it is time.
    pub fn sweep(&mut self, agent: AgentId, now: Now, retention: u64, committed: u64) -> Option<Fetch> {
        let cold = self.cold.as_mut()?;
        if cold.next_expiry() > now.mono {
            return None;
        }
        cold.next_expiry = Mono(u64::MAX);
        let expired_before_ms = cold.expired_before_ms;
        let wanted = Wanted::Expired { messages_max: EXPIRED_AT_ONCE, expired_before_ms };
        Some(cold.ask(agent, now, retention, committed, wanted))
    }

    /// Something was committed: what was missing may be there. Says whether to try `refill`.
    pub fn is_hungry(&mut self) -> bool {
        self.cold.as_mut().is_some_and(|cold| std::mem::take(&mut cold.hungry))
    }

    /// Takes what came back; gives the fetch that goes on with a sweep, and whether a commit must be waited for.
    pub fn take_fetched(&mut self, fetched: Fetched, how: &Return<'_>, news: &mut Vec<News>) -> (Option<Fetch>, bool) {
        let asked = match self.cold.as_mut().and_then(|cold| cold.asked.take()) {
            Some(asked) if asked.fetch == fetched.fetch => asked,
            other => {
                // An answer to somebody else's question: an agent of the same name before it was forgotten.
                if let Some(cold) = &mut self.cold {
                    cold.asked = other;
                }
                return (None, false);
            }
        };
        match fetched.fetch.wanted {
            Wanted::Mail { .. } => (None, self.take_mail(fetched, asked, how, news)),
            Wanted::Expired { .. } => (self.take_expired(fetched, asked, how, news), false),
        }
    }

    fn take_mail(&mut self, fetched: Fetched, asked: Asked, how: &Return<'_>, news: &mut Vec<News>) -> bool {
        let nothing = fetched.messages.is_empty();
        for message in fetched.messages {
            let Some(cold) = &mut self.cold else { break };
            let sequence = message.to.sequence;
            if sequence <= cold.after {
                continue;
            }
            cold.after = sequence;
            if cold.is_skipped(sequence) {
                // It keeps its place until all before it is settled: what is told of progress counts on it.
                self.put_settled(message.to, message.checksum);
                continue;
            }
            cold.count_off(message.raw.len());
            let handled = sequence <= cold.handled;
            let ask = cold.ask_of(sequence);
            self.take_one(message, ask, handled, how, news);
        }
        let Some(cold) = &mut self.cold else { return false };
        cold.place = fetched.place;
        // What was there when it was asked has come; whatever the counts say, there is no more of it.
        let all = fetched.complete && asked.certain.is_some_and(|certain| certain == cold.last);
        if all || cold.after >= cold.last {
            let last = cold.last;
            self.cold = None;
            if self.entries.is_empty() {
                self.through = self.through.max(last);
            }
            self.trim(how.now.mono);
            return false;
        }
        // The commit that it is to wait for may have come while the answer was on its way.
        let hungry = (nothing || fetched.complete) && cold.record > how.committed;
        cold.hungry = hungry;
        self.trim(how.now.mono);
        hungry
    }

    /// One message is in memory again: waiting, or settled at once.
    fn take_one(
        &mut self,
        message: FetchedMessage,
        ask: Option<Box<Ask>>,
        handled: bool,
        how: &Return<'_>,
        news: &mut Vec<News>,
    ) {
        // What the store gives back was checked when it was relayed, and again when it was read.
        let Some(checked) = Message::check(&message.raw, message.checksum) else { return };
        let (id, ttl_ms) = (checked.id(), checked.ttl_ms());
        let ask = ask.or_else(|| ask_again(&checked, how));
        let sequence = message.to.sequence;
        let kept = match ttl_ms {
            0 => how.retention,
            ttl_ms => Mono::ms(u64::from(ttl_ms)).min(how.retention),
        };
        let age = Mono::ms(how.now.wall_ms.saturating_sub(message.accepted_at_ms));
        let expires_at = how.now.mono + kept.saturating_sub(age);
        let earlier = sequence.epoch < self.epoch;
        self.bytes += Queue::weight(message.raw.len());
        self.next_expiry = self.next_expiry.min(expires_at);
        self.awaited += u32::from(message.to.channel || ask.is_some());
        self.entries.push_back(Entry {
            sequence,
            record: 0,
            raw: message.raw,
            checksum: message.checksum,
            id,
            sent_at: Mono(0),
            expires_at,
            // An earlier process may have sent it: nobody knows, so it is marked.
            attempts: u8::from(earlier),
            channel: message.to.channel,
            mortal: ttl_ms != 0,
            detached: true,
            state: State::Open,
            seen: Seen::Perhaps,
            ask,
        });
        let index = self.entries.len() - 1;
        if handled {
            self.settle(index, What::Acknowledged, news);
        } else if message.expired {
            let reason = self.entries[index].why_expired();
            self.settle(index, What::Failed(reason), news);
        }
    }

    /// A message that was settled before it came back.
    fn put_settled(&mut self, to: Addressee, checksum: u32) {
        self.entries.push_back(Entry {
            sequence: to.sequence,
            record: 0,
            raw: Bytes::new(),
            checksum,
            id: MessageId { sender: AgentId(0), number: 0 },
            sent_at: Mono(0),
            expires_at: Mono(u64::MAX),
            attempts: 0,
            channel: to.channel,
            mortal: false,
            detached: true,
            state: State::Settled,
            seen: Seen::Perhaps,
            ask: None,
        });
        self.settled_inside += 1;
    }

    fn take_expired(
        &mut self,
        fetched: Fetched,
        asked: Asked,
        how: &Return<'_>,
        news: &mut Vec<News>,
    ) -> Option<Fetch> {
        let cold = self.cold.as_mut()?;
        let mut through = fetched.fetch.after;
        for message in fetched.messages {
            let sequence = message.to.sequence;
            through = through.max(sequence);
            if cold.is_in_skip(sequence) || sequence <= cold.handled {
                continue;
            }
            cold.count_off(message.raw.len());
            cold.skip_one(sequence);
            let Some(checked) = Message::check(&message.raw, message.checksum) else { continue };
            let reason = if checked.ttl_ms() != 0 { RefuseReason::Expired } else { RefuseReason::Retention };
            let kept = cold.asks.iter().position(|(kept, _)| *kept == sequence);
            let ask = kept.and_then(|index| cold.asks.remove(index)).map(|(_, ask)| ask);
            let ask = ask.or_else(|| ask_again(&checked, how));
            let id = checked.id();
            news.push(News { id, what: What::Failed(reason), ask, raw: Some(message.raw) });
        }
        // Of each part, since the next one begins behind it.
        if fetched.next_expiry_ms != u64::MAX {
            let wait = Mono::ms(fetched.next_expiry_ms.saturating_sub(how.now.wall_ms).max(1));
            cold.next_expiry = cold.next_expiry.min(how.now.mono + wait);
        }
        if !fetched.complete {
            // More than one answer's worth: go on behind these, as of the same time.
            let fetch = Fetch { after: through, place: fetched.place, ..fetched.fetch };
            cold.asked = Some(Asked { fetch, ..asked });
            return Some(fetch);
        }
        if asked.certain.is_some() {
            cold.expired_before_ms = fetched.fetch.now_ms.min(asked.expires_ms.saturating_sub(1));
        } else {
            // What was not committed yet may have expired as well, and nobody has told of it.
            cold.next_expiry = cold.next_expiry.min(how.now.mono + UNCOMMITTED_AGAIN);
        }
        // Nothing that was there when it was asked lives any more; the counts may be off by what a crash has undone.
        let all = cold.next_expiry == Mono(u64::MAX) && asked.certain.is_some_and(|certain| certain == cold.last);
        // Behind hot entries it stays, with what it skips: what is told of progress counts on it.
        cold.over = all;
        self.let_go_of_cold();
        None
    }

    /// Lets go of what waited in the store and has failed, once nothing hot is before it.
    pub(super) fn let_go_of_cold(&mut self) {
        if self.entries.is_empty()
            && let Some(cold) = self.cold.take_if(|cold| cold.over)
        {
            self.through = self.through.max(cold.last);
        }
    }
}

impl Cold {
    fn ask(&mut self, agent: AgentId, now: Now, retention: u64, committed: u64, wanted: Wanted) -> Fetch {
        let retention_ms = retention / Mono::ms(1);
        let fetch = Fetch { agent, after: self.after, place: self.place, wanted, now_ms: now.wall_ms, retention_ms };
        let certain = (self.record <= committed).then_some(self.last);
        self.asked = Some(Asked { fetch, certain, expires_ms: u64::MAX });
        fetch
    }

    pub(super) fn is_in_skip(&self, sequence: Sequence) -> bool {
        self.skip.iter().any(|(first, last)| *first <= sequence && sequence <= *last)
    }
}

/// Who wants to hear of a message whose asker nobody kept: its sender, wherever that is connected by then.
fn ask_again(message: &Message<'_>, how: &Return<'_>) -> Option<Box<Ask>> {
    let later = Wants::DELIVERED | Wants::ACKNOWLEDGED | Wants::READ;
    let wants = Wants(message.wants().0 & later.0);
    if wants == Wants::default() {
        return None;
    }
    let origin = Origin { shard: (how.home_of)(message.from()), session: event::NOBODY, ordinal: 0, submitted: false };
    debug_assert!(message.from().len() <= NAME_BYTES_MAX);
    Some(Box::new(Ask { origin, wants, label: Bytes::copy_from_slice(message.label()) }))
}
