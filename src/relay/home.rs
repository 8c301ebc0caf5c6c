//! Who lives here, and who is known to live here. An agent's home is the shard that its name hashes to; everything about
//! it (session, order, window, subscriptions, whether the name is free) is owned by that one thread.

use super::away::Away;
use super::delivery::Queue;
use super::ledger::Sitter;
use super::memory::{Remembered, SentMarks};
use super::outbox::Profile;
use super::route::TopicSlot;
use crate::base::ids::Token;
use crate::base::limits::{LABELS_REMEMBERED, REFUSED_REMEMBERED};
use crate::base::{AgentId, Mono, Name, NameHash, Now, Sequence, SessionId, Shared};
use crate::wire::Dialect;
use hashbrown::HashTable;
use std::collections::VecDeque;

/// An agent's place in its home's table. Valid as long as the agent is known: a slot is reused only after `forget`,
/// which nothing refers to any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(super) struct AgentSlot(pub(super) u32);

/// What is known of one agent.
pub(super) struct Agent {
    pub(super) name: Name,
    pub(super) hash: NameHash,
    pub(super) id: AgentId,
    pub(super) presence: Presence,
    /// As what it stands in the list of those who may be forgotten.
    pub(super) listed: Option<Presence>,
    /// What it spoke last.
    pub(super) dialect: Dialect,
    pub(super) profile: Option<Shared<Profile>>,
    pub(super) queue: Queue,
    pub(super) in_flight_max: u32,
    /// As what it holds one of the seats of the licence.
    pub(super) seated: Option<Sitter>,
    /// Whether its session may receive.
    pub(super) receives: bool,
    pub(super) session_token: Token,
    pub(super) resume: Token,
    /// The token before: valid until a frame arrives under the new one, since a WELCOME can be lost.
    pub(super) resume_before: Option<Token>,
    /// When the last two take-overs of this name were.
    pub(super) taken_over_at: [Option<Mono>; 2],
    pub(super) subscriptions: Vec<(TopicSlot, bool)>,
    pub(super) numbers: Numbers,
    /// Whether a retry timer is running.
    pub(super) retry_armed: bool,
    /// The expiry that a timer is running for.
    pub(super) expiry_armed: Mono,
    /// What the writer was last told of its progress.
    pub(super) progress_told: (Sequence, Sequence, u64),
    /// Whether it is in the list of agents whose progress is to be told.
    pub(super) progress_due: bool,
    pub(super) first_seen_ms: u64,
    pub(super) last_seen: Now,
    pub(super) messages_sent: u64,
    pub(super) messages_received: u64,
}

/// Where an agent is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    /// Connected.
    Live(SessionId),
    /// Its connection broke, then.
    Lost(Mono),
    /// It said BYE, then.
    Left(Mono),
}

impl Agent {
    pub(super) fn new(name: Name, hash: NameHash, id: AgentId, queue: Queue, now: Now) -> Agent {
        Agent {
            name,
            hash,
            id,
            presence: Presence::Left(now.mono),
            listed: None,
            dialect: Dialect::Native,
            profile: None,
            queue,
            in_flight_max: 0,
            seated: None,
            receives: true,
            session_token: Token::default(),
            resume: Token::default(),
            resume_before: None,
            taken_over_at: [None; 2],
            subscriptions: Vec::new(),
            numbers: Numbers::default(),
            retry_armed: false,
            expiry_armed: Mono(u64::MAX),
            progress_told: (Sequence::default(), Sequence::default(), 0),
            progress_due: false,
            first_seen_ms: now.wall_ms,
            last_seen: now,
            messages_sent: 0,
            messages_received: 0,
        }
    }

    /// What an earlier process knew of it. Whoever was connected when that ended was lost.
    pub(super) fn restore(&mut self, now: Now, row: Remembered) {
        let at = |wall_ms: u64| now.mono - Mono::ms(now.wall_ms.saturating_sub(wall_ms));
        let seen_ms = if row.live { now.wall_ms } else { row.last_seen_ms.min(now.wall_ms) };
        self.presence = if row.left { Presence::Left(at(seen_ms)) } else { Presence::Lost(at(seen_ms)) };
        self.last_seen = Now { mono: at(seen_ms), wall_ms: seen_ms };
        self.first_seen_ms = row.first_seen_ms;
        self.dialect = row.dialect;
        self.profile = row.profile;
        self.session_token = row.session;
        self.resume = row.resume;
        self.resume_before = row.resume_before;
        self.numbers = Numbers::restored(row.sent);
        self.messages_sent = row.messages_sent;
        self.messages_received = row.messages_received;
        self.progress_told = (row.delivered, row.acknowledged, 0);
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        match self.presence {
            Presence::Live(session) => Some(session),
            _ => None,
        }
    }
}

/// What a sender has already sent, so that the same SEND twice is one message.
#[derive(Default)]
pub(super) struct Numbers {
    /// The highest number a native session has sent.
    pub(super) high: u64,
    /// Numbers at or below `high` that were refused: those may be sent again.
    refused: VecDeque<u64>,
    /// The last numbers that were given back, each with how many here had been by then.
    given_back: VecDeque<(u64, u64)>,
    /// Of those given back up to here nothing is known.
    pub(super) told_apart_from: u64,
    /// Numbers of textual ids, oldest first.
    labels: Option<Box<Labels>>,
}

/// A refusal must be remembered for one mail's way to another shard and back, no longer.
const GIVEN_BACK_REMEMBERED: usize = 1024;

#[derive(Default)]
struct Labels {
    order: VecDeque<u64>,
    set: HashTable<u64>,
}

impl Numbers {
    /// Takes note of a native number; says whether it is new.
    pub(super) fn take(&mut self, number: u64) -> bool {
        if number > self.high {
            self.high = number;
            self.refused.retain(|refused| *refused != number);
            return true;
        }
        match self.refused.iter().position(|refused| *refused == number) {
            Some(index) => self.refused.remove(index).is_some(),
            None => false,
        }
    }

    /// Takes note of a textual id's number; says whether it is new among the last 4,096.
    pub(super) fn take_label(&mut self, number: u64) -> bool {
        let labels = self.labels.get_or_insert_default();
        if labels.set.find(number, |known| *known == number).is_some() {
            return false;
        }
        if labels.order.len() == LABELS_REMEMBERED
            && let Some(oldest) = labels.order.pop_front()
        {
            labels.forget(oldest);
        }
        labels.order.push_back(number);
        labels.set.insert_unique(number, number, |known| *known);
        true
    }

    /// As an earlier process left them: numbers whose messages the disk did not keep may be sent again.
    pub(super) fn restored(marks: SentMarks) -> Numbers {
        let refused = marks.missing().collect();
        let labels = (!marks.labels.is_empty()).then(|| {
            let mut set = HashTable::with_capacity(marks.labels.len());
            for label in &marks.labels {
                set.insert_unique(*label, *label, |known| *known);
            }
            Box::new(Labels { order: marks.labels, set })
        });
        Numbers { high: marks.high, refused, labels, ..Numbers::default() }
    }

    /// Whether it was refused after the `asked`-th time that any number here was. Where nobody can tell any more, the
    /// answer is yes: then the sender hears nothing, and asks again.
    pub(super) fn was_given_back_since(&self, asked: u64, number: u64) -> bool {
        let mut since = self.given_back.iter().rev().take_while(|(at, _)| *at > asked);
        self.told_apart_from > asked || since.any(|(_, given_back)| *given_back == number)
    }

    /// It was refused, which is the `at`-th time here that any number was: it may come again.
    pub(super) fn give_back(&mut self, number: u64, at: u64) {
        if self.given_back.len() == GIVEN_BACK_REMEMBERED
            && let Some((oldest, _)) = self.given_back.pop_front()
        {
            self.told_apart_from = oldest;
        }
        self.given_back.push_back((at, number));
        if self.refused.contains(&number) {
            return;
        }
        if number & crate::base::ids::NUMBER_FROM_LABEL == 0 {
            if self.refused.len() == REFUSED_REMEMBERED {
                self.refused.pop_front();
            }
            self.refused.push_back(number);
        } else if let Some(labels) = &mut self.labels {
            labels.forget(number);
            labels.order.retain(|known| *known != number);
        }
    }
}

impl Labels {
    fn forget(&mut self, number: u64) {
        // A number is already the uniform half of a SHA-256.
        if let Ok(entry) = self.set.find_entry(number, |known| *known == number) {
            entry.remove();
        }
    }
}

/// The agents whose home is here.
#[derive(Default)]
pub(super) struct Agents {
    slots: Vec<Option<Agent>>,
    /// Free slots, and whether a retry timer is still running for the agent that was there.
    free: Vec<(u32, bool)>,
    away: Away,
    by_name: HashTable<u32>,
    by_id: HashTable<u32>,
}

impl Agents {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// One past the highest slot in use: bounds a walk over all of them.
    pub(super) fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(super) fn find(&self, hash: NameHash, name: &[u8]) -> Option<AgentSlot> {
        let same = |slot: &u32| self.slots[*slot as usize].as_ref().is_some_and(|agent| agent.name.as_bytes() == name);
        self.by_name.find(hash.0, same).map(|slot| AgentSlot(*slot))
    }

    pub(super) fn find_id(&self, id: AgentId) -> Option<AgentSlot> {
        let same = |slot: &u32| self.slots[*slot as usize].as_ref().is_some_and(|agent| agent.id == id);
        self.by_id.find(id.0, same).map(|slot| AgentSlot(*slot))
    }

    /// Makes room for so many more.
    pub(super) fn reserve(&mut self, more: usize) {
        self.slots.reserve(more);
        let slots = &self.slots;
        let name_hash = |slot: &u32| slots[*slot as usize].as_ref().map_or(0, |agent| agent.hash.0);
        self.by_name.reserve(more, name_hash);
        let id_hash = |slot: &u32| slots[*slot as usize].as_ref().map_or(0, |agent| agent.id.0);
        self.by_id.reserve(more, id_hash);
    }

    pub(super) fn insert(&mut self, mut agent: Agent) -> AgentSlot {
        let (hash, id) = (agent.hash, agent.id);
        let slot = match self.free.pop() {
            Some((slot, retry_armed)) => {
                agent.retry_armed = retry_armed;
                slot
            }
            None => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
        };
        self.slots[slot as usize] = Some(agent);
        let slots = &self.slots;
        let name_hash = |slot: &u32| slots[*slot as usize].as_ref().map_or(0, |agent| agent.hash.0);
        self.by_name.insert_unique(hash.0, slot, name_hash);
        let id_hash = |slot: &u32| slots[*slot as usize].as_ref().map_or(0, |agent| agent.id.0);
        self.by_id.insert_unique(id.0, slot, id_hash);
        AgentSlot(slot)
    }

    /// Removes an agent that nothing refers to any more.
    pub(super) fn forget(&mut self, slot: AgentSlot) -> Option<Agent> {
        let agent = self.slots.get_mut(slot.0 as usize)?.take()?;
        if let Ok(entry) = self.by_name.find_entry(agent.hash.0, |other| *other == slot.0) {
            entry.remove();
        }
        if let Ok(entry) = self.by_id.find_entry(agent.id.0, |other| *other == slot.0) {
            entry.remove();
        }
        if let Some(listed) = agent.listed {
            self.away.remove(slot, listed);
        }
        self.free.push((slot.0, agent.retry_armed));
        Some(agent)
    }

    /// Keeps the list of those who may be forgotten: everyone who is away and owed nothing. To be called when either may
    /// have changed.
    pub(super) fn list(&mut self, slot: AgentSlot) {
        let agent = &mut self[slot];
        let may_go = agent.session().is_none() && agent.queue.is_empty();
        let listed = may_go.then_some(agent.presence);
        let before = std::mem::replace(&mut agent.listed, listed);
        if before != listed {
            before.into_iter().for_each(|presence| self.away.remove(slot, presence));
            listed.into_iter().for_each(|presence| self.away.insert(slot, presence));
        }
    }

    /// Everyone who may be forgotten, and who first.
    pub(super) fn away(&self) -> &Away {
        &self.away
    }

    /// The agent in `slot`, if any is there: for walks and for timers that may have outlived their agent.
    pub(super) fn peek(&self, slot: AgentSlot) -> Option<&Agent> {
        self.slots.get(slot.0 as usize)?.as_ref()
    }

    pub(super) fn peek_mut(&mut self, slot: AgentSlot) -> Option<&mut Agent> {
        self.slots.get_mut(slot.0 as usize)?.as_mut()
    }
}

impl std::ops::Index<AgentSlot> for Agents {
    type Output = Agent;
    fn index(&self, slot: AgentSlot) -> &Agent {
        self.slots[slot.0 as usize].as_ref().expect("sessions, subscriptions and names refer to known agents only")
    }
}

impl std::ops::IndexMut<AgentSlot> for Agents {
    fn index_mut(&mut self, slot: AgentSlot) -> &mut Agent {
        self.slots[slot.0 as usize].as_mut().expect("sessions, subscriptions and names refer to known agents only")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_new_once_and_again_after_a_refusal() {
        let mut numbers = Numbers::default();
        assert!(numbers.take(1) && numbers.take(5));
        assert!(!numbers.take(5) && !numbers.take(3), "numbers grow");
        numbers.give_back(5, 1);
        assert!(numbers.take(5) && !numbers.take(5));
    }

    #[test]
    fn a_refusal_is_told_apart_from_an_answer_to_a_question_asked_before_it() {
        let mut numbers = Numbers::default();
        numbers.give_back(5, 8);
        assert!(numbers.was_given_back_since(7, 5) && !numbers.was_given_back_since(8, 5));
        assert!(!numbers.was_given_back_since(7, 6));
        numbers.take(5);
        assert!(numbers.was_given_back_since(7, 5), "it may have been sent anew");
        for at in 9..9 + GIVEN_BACK_REMEMBERED as u64 {
            numbers.give_back(6, at);
        }
        assert!(numbers.was_given_back_since(7, 5) && !numbers.was_given_back_since(8, 5), "in doubt: yes");
    }

    #[test]
    fn textual_ids_are_remembered_for_4096_messages() {
        let mut numbers = Numbers::default();
        let label = |n: u64| crate::base::ids::number_of_label(&n.to_le_bytes());
        for n in 0..4096 {
            assert!(numbers.take_label(label(n)));
        }
        assert!(!numbers.take_label(label(0)));
        numbers.give_back(label(7), 1);
        assert!(numbers.take_label(label(7)), "a refused one may come again");
        assert!(numbers.take_label(label(4096)) && numbers.take_label(label(0)), "the oldest has made room");
        assert!(!numbers.take_label(label(4096)));
    }

    #[test]
    fn a_forgotten_agent_is_not_found_under_name_or_id() {
        let mut agents = Agents::default();
        let hasher = crate::base::NameHasher::new(1);
        let agent = |name: &str| {
            Agent::new(
                name.into(),
                hasher.hash(name.as_bytes()),
                AgentId::of(name.as_bytes()),
                Queue::new(1, 1),
                Now::default(),
            )
        };
        let first = agents.insert(agent("ann"));
        let second = agents.insert(agent("bob"));
        assert!(agents.forget(first).is_some());
        assert_eq!(agents.find(hasher.hash(b"ann"), b"ann"), None);
        assert_eq!(agents.find_id(AgentId::of(b"ann")), None);
        assert_eq!(agents.find(hasher.hash(b"bob"), b"bob"), Some(second));
        assert_eq!(agents.len(), 1);
    }
}
