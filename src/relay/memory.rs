//! What outlives the process: one row per known agent, made by applying records in the order in which they were kept.
//! Pure; the same code follows the log while the daemon runs and replays its end at the next start.

use super::outbox::{Addressee, Profile};
use crate::base::ids::{NUMBER_FROM_LABEL, Token};
use crate::base::limits::{LABELS_REMEMBERED, NUMBERS_REMEMBERED};
use crate::base::{AgentId, MessageId, Name, Sequence, Shared};
use crate::wire::Dialect;
use hashbrown::HashTable;
use std::collections::VecDeque;

/// Unfinished fan-outs of one sender: as many as numbers are remembered.
pub const PARTIAL_MAX: usize = NUMBERS_REMEMBERED as usize;

/// Senders whose name nobody has met that are kept in mind.
pub(super) const NAMELESS_MAX: usize = 1024;

/// One agent, as far as the store knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Its number.
    pub agent: AgentId,
    /// Its name; none while only messages from it were seen (the command line sends under any name).
    pub name: Option<Name>,
    /// Everything in the log up to and including this segment is in this row.
    pub as_of: u64,
    /// When it was first met, milliseconds since 1970.
    pub first_seen_ms: u64,
    /// When it was last heard of, milliseconds since 1970.
    pub last_seen_ms: u64,
    /// Whether its last session ended with BYE. False while it is connected: whoever was connected when the daemon
    /// ended was lost.
    pub left: bool,
    /// Whether a session is going on.
    pub live: bool,
    /// What it spoke last.
    pub dialect: Dialect,
    /// What it said about itself.
    pub profile: Option<Shared<Profile>>,
    /// Its session's id.
    pub session: Token,
    /// What resumes its session.
    pub resume: Token,
    /// What resumes it as well, until a frame has come under the new one.
    pub resume_before: Option<Token>,
    /// Topics it wants to hear of; and whether as a channel.
    pub subscriptions: Vec<(Name, bool)>,
    /// What it has sent.
    pub sent: SentMarks,
    /// The last place given in its order.
    pub last: Sequence,
    /// Everything up to here was written to its socket.
    pub delivered: Sequence,
    /// Everything up to here is acknowledged or has failed.
    pub acknowledged: Sequence,
    /// Beyond that, these are as well: first and last of each run, in order.
    pub settled: Vec<(Sequence, Sequence)>,
    /// What is owed.
    pub owed: Owed,
    /// Messages it sent that were accepted.
    pub messages_sent: u64,
    /// Messages it was given a place for.
    pub messages_received: u64,
}

/// How much is owed to one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// Messages that are neither acknowledged nor failed.
    pub messages: u64,
    /// Their bytes, with what each is counted as on top.
    pub bytes: u64,
    /// No message among them expires before this time, milliseconds since 1970.
    pub next_expiry_ms: u64,
}

impl Default for Owed {
    fn default() -> Owed {
        Owed { messages: 0, bytes: 0, next_expiry_ms: u64::MAX }
    }
}

/// The numbers under which one agent's messages were accepted, so that the same SEND twice is one message. After a crash
/// those just below the highest may be missing, and may then be sent again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentMarks {
    /// The highest number a native session used; 0: none.
    pub high: u64,
    /// Of the `NUMBERS_REMEMBERED` numbers up to `high`, number `n` was accepted if bit `n % NUMBERS_REMEMBERED` is set.
    /// Empty until the first.
    pub taken: Box<[u64]>,
    /// Numbers of the last 4,096 textual ids, oldest first.
    pub labels: VecDeque<u64>,
    /// How many labels were ever pushed: says which of a stored ring's parts have changed.
    pub labels_pushed: u64,
    /// Fan-outs of which some homes' parts are in the log and others are not: not taken yet. After a crash such a one may
    /// be sent again, and those who have it must not get it twice. Oldest first.
    pub partial: VecDeque<Partial>,
}

/// A fan-out, as far as its parts are in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// The sender's number for it.
    pub number: u64,
    /// The start of the daemon whose parts are counted.
    pub epoch: u32,
    /// How many there are to be.
    pub parts: u16,
    /// How many have been seen.
    pub seen: u16,
    /// Who has it.
    pub recipients: Vec<AgentId>,
}

impl SentMarks {
    /// Takes note of an accepted message.
    pub fn take(&mut self, number: u64) {
        if number & NUMBER_FROM_LABEL != 0 {
            if self.labels.len() == LABELS_REMEMBERED {
                self.labels.pop_front();
            }
            self.labels.push_back(number);
            self.labels_pushed += 1;
            return;
        }
        if self.taken.is_empty() {
            self.taken = vec![0; (NUMBERS_REMEMBERED / 64) as usize].into_boxed_slice();
        }
        if number > self.high {
            let fresh = (number - self.high).min(NUMBERS_REMEMBERED);
            for passed in number - fresh + 1..=number {
                let bit = passed % NUMBERS_REMEMBERED;
                self.taken[(bit / 64) as usize] &= !(1 << (bit % 64));
            }
            self.high = number;
        }
        if self.high - number < NUMBERS_REMEMBERED {
            let bit = number % NUMBERS_REMEMBERED;
            self.taken[(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }

    /// Takes note of a number that is in use without being taken.
    fn see(&mut self, number: u64) {
        if number & NUMBER_FROM_LABEL == 0 && number > self.high {
            self.take(number);
            let bit = number % NUMBERS_REMEMBERED;
            self.taken[(bit / 64) as usize] &= !(1 << (bit % 64));
        }
    }

    /// Takes note of one home's part of a fan-out; says whether that was the last.
    fn take_part(&mut self, number: u64, epoch: u32, parts: u16, recipients: impl Iterator<Item = AgentId>) -> bool {
        let index = match self.partial.iter().position(|partial| partial.number == number) {
            Some(index) => index,
            None => {
                if self.partial.len() == PARTIAL_MAX {
                    self.partial.pop_front();
                }
                self.partial.push_back(Partial { number, epoch, parts, seen: 0, recipients: Vec::new() });
                self.partial.len() - 1
            }
        };
        let partial = &mut self.partial[index];
        if partial.epoch != epoch {
            // Sent again after a crash: every home has its say once more, and who has it keeps it.
            (partial.epoch, partial.parts, partial.seen) = (epoch, parts, 0);
        }
        partial.seen += 1;
        partial.recipients.extend(recipients);
        let complete = partial.seen >= partial.parts;
        if complete {
            self.partial.remove(index);
            self.take(number);
        } else {
            self.see(number);
        }
        complete
    }

    /// Whether a native number was accepted. What is too old to be known counts as accepted.
    pub fn is_taken(&self, number: u64) -> bool {
        if number > self.high {
            return false;
        }
        if self.high - number >= NUMBERS_REMEMBERED || self.taken.is_empty() {
            return true;
        }
        let bit = number % NUMBERS_REMEMBERED;
        self.taken[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }

    /// Numbers at or below `high` that may be sent again, ascending.
    pub fn missing(&self) -> impl Iterator<Item = u64> + '_ {
        let first = self.high.saturating_sub(NUMBERS_REMEMBERED - 1).max(1);
        (first..=self.high).filter(|number| !self.is_taken(*number))
    }
}

impl Remembered {
    /// A row about which nothing is known but its number.
    pub fn new(agent: AgentId) -> Remembered {
        Remembered {
            agent,
            name: None,
            as_of: 0,
            first_seen_ms: 0,
            last_seen_ms: 0,
            left: true,
            live: false,
            dialect: Dialect::Native,
            profile: None,
            session: Token::default(),
            resume: Token::default(),
            resume_before: None,
            subscriptions: Vec::new(),
            sent: SentMarks::default(),
            last: Sequence::default(),
            delivered: Sequence::default(),
            acknowledged: Sequence::default(),
            settled: Vec::new(),
            owed: Owed::default(),
            messages_sent: 0,
            messages_received: 0,
        }
    }

    /// What is known of the message that has this place in its order.
    pub fn state_of(&self, sequence: Sequence) -> Progress {
        let settled = self.settled.iter().any(|(first, last)| *first <= sequence && sequence <= *last);
        if sequence <= self.acknowledged || settled {
            Progress::Acknowledged
        } else if sequence <= self.delivered {
            Progress::Delivered
        } else {
            Progress::Waiting
        }
    }
}

/// How far one message has got with one recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It waits.
    Waiting,
    /// It was written to the recipient's socket.
    Delivered,
    /// It was acknowledged (or has failed: a record of its own says so).
    Acknowledged,
}

/// What a heart tells about a session; see `Record::Session`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SessionRecord {
    pub agent: AgentId,
    pub at_ms: u64,
    pub dialect: Dialect,
    pub session: Token,
    pub resume: Token,
    pub resume_before: Option<Token>,
    pub profile: Option<Shared<Profile>>,
}

/// What a heart tells about one recipient's progress; see `Record::Progress`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ProgressRecord {
    pub agent: AgentId,
    pub delivered: Sequence,
    pub acknowledged: Sequence,
    /// Runs beyond `acknowledged` that are settled as well, in order; at most `SETTLED_RUNS_MAX`.
    pub settled: Box<[(Sequence, Sequence)]>,
    /// What is owed when this was said.
    pub owed: Owed,
}

/// All rows.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// In no order, and without a gap. Not in the table itself: that has room for up to twice as many, all over it.
    rows: Vec<Kept>,
    /// Where each one is, by its number, which is the uniform half of a SHA-256.
    places: HashTable<u32>,
    /// Agents whose row has changed since it was last taken, each once.
    dirty: Vec<AgentId>,
    /// Agents that were forgotten since the last time that was asked.
    forgotten: Vec<AgentId>,
    /// Kept without a name, oldest first; some have one by now.
    nameless: VecDeque<AgentId>,
}

/// A row, and whether it is in the list of those that have changed.
#[derive(Clone, Debug)]
struct Kept {
    row: Remembered,
    dirty: bool,
}

impl Memory {
    /// Makes room for so many rows.
    pub fn reserve(&mut self, rows: usize) {
        self.rows.reserve(rows);
        let rows_there = &self.rows;
        self.places.reserve(rows, |place| rows_there[*place as usize].row.agent.0);
    }

    /// A row that was kept.
    pub fn restore(&mut self, row: Remembered) {
        let agent = row.agent;
        self.remove(agent);
        if row.name.is_none() {
            self.keep_nameless(agent);
        }
        let place = self.place_or_new(agent);
        self.rows[place] = Kept { row, dirty: false };
    }

    /// One agent.
    pub fn row(&self, agent: AgentId) -> Option<&Remembered> {
        self.place(agent).map(|place| &self.rows[place].row)
    }

    /// All of them, in no order.
    pub fn rows(&self) -> impl Iterator<Item = &Remembered> {
        self.rows.iter().map(|kept| &kept.row)
    }

    /// All of them, given away.
    pub fn into_rows(self) -> impl Iterator<Item = Remembered> {
        self.rows.into_iter().map(|kept| kept.row)
    }

    /// Whether anything has changed since `take_dirty`.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.forgotten.is_empty()
    }

    /// Agents known by name, or by messages alone.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Agents whose rows have changed since this was last asked, each once, in ascending order.
    pub fn take_dirty(&mut self) -> Vec<AgentId> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        for agent in &dirty {
            if let Some(kept) = self.kept(*agent) {
                kept.dirty = false;
            }
        }
        dirty
    }

    /// Agents that were forgotten since this was last asked.
    pub fn take_forgotten(&mut self) -> Vec<AgentId> {
        std::mem::take(&mut self.forgotten)
    }

    fn place(&self, agent: AgentId) -> Option<usize> {
        self.places.find(agent.0, |place| self.rows[*place as usize].row.agent == agent).map(|place| *place as usize)
    }

    fn kept(&mut self, agent: AgentId) -> Option<&mut Kept> {
        self.place(agent).map(|place| &mut self.rows[place])
    }

    fn place_or_new(&mut self, agent: AgentId) -> usize {
        let (rows, next) = (&self.rows, self.rows.len() as u32);
        let number = |place: &u32| rows[*place as usize].row.agent;
        let entry = self.places.entry(agent.0, |place| number(place) == agent, |place| number(place).0);
        let place = *entry.or_insert(next).get();
        if place == next {
            self.rows.push(Kept { row: Remembered::new(agent), dirty: false });
        }
        place as usize
    }

    fn remove(&mut self, agent: AgentId) {
        let Some(place) = self.place(agent) else { return };
        if let Ok(entry) = self.places.find_entry(agent.0, |other| *other as usize == place) {
            entry.remove();
        }
        self.rows.swap_remove(place);
        // The last one has taken its place.
        let last = self.rows.len();
        if let Some(moved) = self.rows.get(place)
            && let Some(known) = self.places.find_mut(moved.row.agent.0, |other| *other as usize == last)
        {
            *known = place as u32;
        }
    }

    /// The row to change, unless it holds this segment already.
    fn touch(&mut self, segment: u64, agent: AgentId) -> Option<&mut Remembered> {
        let place = self.place_or_new(agent);
        let kept = &mut self.rows[place];
        if segment <= kept.row.as_of {
            return None;
        }
        if !std::mem::replace(&mut kept.dirty, true) {
            self.dirty.push(agent);
        }
        Some(&mut kept.row)
    }

    /// The row as it is to be kept, stamped with the last segment that was applied as a whole. A message may be committed
    /// before the name of its sender, by whom another shard is home, and a crash may come between: so rows without a name
    /// are kept as well. Most are of the command line, which sends under names that nobody ever meets: of those the oldest
    /// are let go.
    pub fn stamp(&mut self, agent: AgentId, segment: u64) -> Option<&Remembered> {
        let kept = self.kept(agent)?;
        let before = kept.row.as_of;
        kept.row.as_of = before.max(segment);
        if kept.row.name.is_none() && before == 0 {
            self.keep_nameless(agent);
        }
        self.row(agent)
    }

    fn keep_nameless(&mut self, agent: AgentId) {
        self.nameless.push_back(agent);
        if self.nameless.len() > NAMELESS_MAX
            && let Some(oldest) = self.nameless.pop_front()
            && self.row(oldest).is_some_and(|row| row.name.is_none())
        {
            self.remove(oldest);
            self.forgotten.push(oldest);
        }
    }

    /// A name was met.
    pub fn known(&mut self, segment: u64, agent: AgentId, name: &Name, at_ms: u64) {
        if let Some(row) = self.touch(segment, agent) {
            row.name = Some(name.clone());
            row.first_seen_ms = at_ms;
            row.last_seen_ms = at_ms;
        }
    }

    /// A session began, or went on.
    pub fn session(&mut self, segment: u64, record: &SessionRecord) {
        if let Some(row) = self.touch(segment, record.agent) {
            (row.live, row.left) = (true, false);
            row.last_seen_ms = record.at_ms;
            row.dialect = record.dialect;
            row.profile = record.profile.clone();
            row.session = record.session;
            row.resume = record.resume;
            row.resume_before = record.resume_before;
        }
    }

    /// A session ended.
    pub fn gone(&mut self, segment: u64, agent: AgentId, at_ms: u64, bye: bool) {
        if let Some(row) = self.touch(segment, agent) {
            (row.live, row.left) = (false, bye);
            row.last_seen_ms = at_ms;
        }
    }

    /// An agent wants to hear of a topic.
    pub fn subscribed(&mut self, segment: u64, agent: AgentId, topic: &Name, channel: bool) {
        if let Some(row) = self.touch(segment, agent) {
            match row.subscriptions.iter_mut().find(|(known, _)| known == topic) {
                Some((_, as_channel)) => *as_channel = channel,
                None => row.subscriptions.push((topic.clone(), channel)),
            }
        }
    }

    /// It no longer does.
    pub fn unsubscribed(&mut self, segment: u64, agent: AgentId, topic: &Name) {
        if let Some(row) = self.touch(segment, agent) {
            row.subscriptions.retain(|(known, _)| known != topic);
        }
    }

    /// Nobody has seen it within the retention time, and nothing is owed to it.
    pub fn forgotten(&mut self, segment: u64, agent: AgentId) {
        if self.touch(segment, agent).is_some() {
            self.remove(agent);
            self.forgotten.push(agent);
        }
    }

    /// A message was accepted from `id.sender`: its number is taken.
    pub fn sent(&mut self, segment: u64, id: MessageId, at_ms: u64) {
        if let Some(row) = self.touch(segment, id.sender) {
            row.sent.take(id.number);
            row.messages_sent += 1;
            row.last_seen_ms = row.last_seen_ms.max(at_ms);
        }
    }

    /// One home's part of a message was accepted from `id.sender`; `parts` of them make it whole.
    pub fn part(
        &mut self,
        segment: u64,
        id: MessageId,
        at_ms: u64,
        epoch: u32,
        parts: u16,
        recipients: impl Iterator<Item = AgentId>,
    ) {
        if parts <= 1 {
            return self.sent(segment, id, at_ms);
        }
        if let Some(row) = self.touch(segment, id.sender) {
            row.messages_sent += u64::from(row.sent.take_part(id.number, epoch, parts, recipients));
            row.last_seen_ms = row.last_seen_ms.max(at_ms);
        }
    }

    /// It was given a place in one recipient's order. `weight` is what it is counted as while it waits, `expires_ms` when
    /// it expires by its own time to live, `u64::MAX` when it has none.
    pub fn placed(&mut self, segment: u64, to: &Addressee, weight: u64, expires_ms: u64) {
        if let Some(row) = self.touch(segment, to.agent) {
            row.last = row.last.max(to.sequence);
            row.owed.messages += 1;
            row.owed.bytes += weight;
            row.owed.next_expiry_ms = row.owed.next_expiry_ms.min(expires_ms);
            row.messages_received += 1;
        }
    }

    /// A recipient has got further.
    pub fn progress(&mut self, segment: u64, record: &ProgressRecord) {
        if let Some(row) = self.touch(segment, record.agent) {
            row.delivered = record.delivered;
            row.acknowledged = record.acknowledged;
            row.settled.clear();
            row.settled.extend_from_slice(&record.settled);
            row.owed = record.owed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_never_arrived_may_be_sent_again_and_old_ones_count_as_taken() {
        let mut marks = SentMarks::default();
        for number in [1, 2, 5] {
            marks.take(number);
        }
        assert_eq!(marks.missing().collect::<Vec<_>>(), [3, 4]);
        marks.take(3);
        assert_eq!(marks.missing().collect::<Vec<_>>(), [4]);
        marks.take(NUMBERS_REMEMBERED + 4);
        assert!(marks.is_taken(4), "too old to be known");
        assert!(!marks.is_taken(6) && marks.is_taken(5) && !marks.is_taken(NUMBERS_REMEMBERED + 5));
        assert_eq!(marks.missing().count() as u64, NUMBERS_REMEMBERED - 2);
        marks.take(10 * NUMBERS_REMEMBERED);
        assert_eq!(marks.missing().count() as u64, NUMBERS_REMEMBERED - 1, "a jump leaves nothing of what was before");
    }

    #[test]
    fn marks_of_a_sender_whose_name_comes_later_are_kept_and_the_oldest_of_nobody_let_go() {
        let id = |sender| MessageId { sender: AgentId(sender), number: 1 };
        let mut memory = Memory::default();
        memory.sent(1, id(7), 0);
        memory.sent(1, id(8), 0);
        assert_eq!(memory.take_dirty(), [AgentId(7), AgentId(8)]);
        let kept: Vec<Remembered> =
            [7, 8].into_iter().filter_map(|agent| memory.stamp(AgentId(agent), 1).cloned()).collect();
        // A crash; the rows are found again, and then the name of one.
        let mut memory = Memory::default();
        kept.into_iter().for_each(|row| memory.restore(row));
        memory.known(2, AgentId(7), &"ann".into(), 0);
        assert!(memory.stamp(AgentId(7), 2).is_some_and(|row| row.sent.is_taken(1)));
        for sender in 100..100 + NAMELESS_MAX as u64 {
            memory.sent(3, id(sender), 0);
            memory.stamp(AgentId(sender), 3);
        }
        assert_eq!(memory.take_forgotten(), [AgentId(8)], "the other has a name");
        assert_eq!(memory.len(), 1 + NAMELESS_MAX);
    }

    #[test]
    fn a_fan_out_is_taken_when_every_home_has_had_its_say() {
        let mut marks = SentMarks::default();
        assert!(!marks.take_part(5, 1, 2, [AgentId(1)].into_iter()));
        assert!(!marks.is_taken(5) && marks.high == 5, "in use, and may be sent again");
        // A crash; it is sent again: the parts are counted anew, and who has it is remembered.
        assert!(!marks.take_part(5, 2, 3, [].into_iter()));
        assert!(!marks.take_part(5, 2, 3, [AgentId(2)].into_iter()));
        assert_eq!(marks.partial[0].recipients, [AgentId(1), AgentId(2)]);
        assert!(marks.take_part(5, 2, 3, [AgentId(3)].into_iter()));
        assert!(marks.is_taken(5) && marks.partial.is_empty());
    }

    #[test]
    fn whoever_is_forgotten_leaves_everybody_else_where_they_can_be_found() {
        let mut memory = Memory::default();
        for agent in 1..=100u64 {
            memory.known(1, AgentId(agent << 32), &agent.to_string().as_str().into(), agent);
        }
        for agent in (1..=100u64).filter(|agent| agent % 3 != 0) {
            memory.forgotten(2, AgentId(agent << 32));
        }
        for agent in 1..=100u64 {
            let kept = (agent % 3 == 0).then_some(agent);
            assert_eq!(memory.row(AgentId(agent << 32)).map(|row| row.first_seen_ms), kept);
        }
        assert_eq!((memory.len(), memory.rows().count()), (33, 33));
        memory.restore(Remembered { first_seen_ms: 7, ..Remembered::new(AgentId(3 << 32)) });
        assert_eq!(memory.row(AgentId(3 << 32)).map(|row| row.first_seen_ms), Some(7));
        assert_eq!((memory.len(), memory.into_rows().count()), (33, 33));
    }

    #[test]
    fn a_row_that_holds_a_segment_is_not_changed_by_it_again() {
        let agent = AgentId(7);
        let to = Addressee { agent, sequence: Sequence { epoch: 1, counter: 1 }, channel: false };
        let mut memory = Memory::default();
        memory.known(2, agent, &"ann".into(), 0);
        memory.placed(3, &to, 200, u64::MAX);
        assert_eq!(memory.stamp(agent, 3).map(|row| row.as_of), Some(3));
        memory.placed(3, &to, 200, u64::MAX);
        assert_eq!(memory.row(agent).map(|row| row.owed.messages), Some(1));
        memory.placed(4, &to, 200, u64::MAX);
        assert_eq!(memory.row(agent).map(|row| row.owed.messages), Some(2));
        assert_eq!(memory.take_dirty(), [agent]);
        assert!(memory.take_dirty().is_empty());
    }
}
