//! Topics: who at this shard wants to hear of what. Pure; slots are reused when the last subscriber leaves.

use super::home::AgentSlot;
use crate::base::limits::TOPICS_MAX;
use crate::base::{Name, NameHash};
use hashbrown::HashTable;

/// A topic's place in its shard's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(super) struct TopicSlot(u32);

struct Topic {
    name: Name,
    hash: NameHash,
    /// Subscribers in the order they came; and whether each joined it as a channel.
    subscribers: Vec<(AgentSlot, bool)>,
}

/// The topics that have subscribers here.
#[derive(Default)]
pub(super) struct Topics {
    slots: Vec<Option<Topic>>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
}

impl Topics {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn find(&self, hash: NameHash, name: &[u8]) -> Option<TopicSlot> {
        let same = |slot: &u32| self.slots[*slot as usize].as_ref().is_some_and(|topic| topic.name.as_bytes() == name);
        self.by_name.find(hash.0, same).map(|slot| TopicSlot(*slot))
    }

    pub(super) fn name(&self, slot: TopicSlot) -> Option<&Name> {
        self.slots.get(slot.0 as usize)?.as_ref().map(|topic| &topic.name)
    }

    pub(super) fn subscribers(&self, slot: TopicSlot) -> &[(AgentSlot, bool)] {
        match self.slots.get(slot.0 as usize) {
            Some(Some(topic)) => &topic.subscribers,
            _ => &[],
        }
    }

    /// Adds a subscriber that is not there yet (its own list of subscriptions says so, without a walk over this one);
    /// none when there are too many topics.
    pub(super) fn subscribe(
        &mut self,
        hash: NameHash,
        name: &str,
        agent: AgentSlot,
        channel: bool,
    ) -> Option<TopicSlot> {
        let slot = match self.find(hash, name.as_bytes()) {
            Some(slot) => slot,
            None if self.len() >= TOPICS_MAX => return None,
            None => self.insert(Topic { name: name.into(), hash, subscribers: Vec::new() }),
        };
        if let Some(Some(topic)) = self.slots.get_mut(slot.0 as usize) {
            topic.subscribers.push((agent, channel));
        }
        Some(slot)
    }

    /// Changes how a subscriber wants to hear of it.
    pub(super) fn set_channel(&mut self, slot: TopicSlot, agent: AgentSlot, channel: bool) {
        let Some(Some(topic)) = self.slots.get_mut(slot.0 as usize) else { return };
        if let Some(subscriber) = topic.subscribers.iter_mut().find(|(subscriber, _)| *subscriber == agent) {
            subscriber.1 = channel;
        }
    }

    pub(super) fn unsubscribe(&mut self, slot: TopicSlot, agent: AgentSlot) {
        let Some(Some(topic)) = self.slots.get_mut(slot.0 as usize) else { return };
        topic.subscribers.retain(|(subscriber, _)| *subscriber != agent);
        if topic.subscribers.is_empty() {
            if let Ok(entry) = self.by_name.find_entry(topic.hash.0, |other| *other == slot.0) {
                entry.remove();
            }
            self.slots[slot.0 as usize] = None;
            self.free.push(slot.0);
        }
    }

    fn insert(&mut self, topic: Topic) -> TopicSlot {
        let hash = topic.hash;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
        };
        self.slots[slot as usize] = Some(topic);
        let slots = &self.slots;
        self.by_name.insert_unique(hash.0, slot, |slot| slots[*slot as usize].as_ref().map_or(0, |topic| topic.hash.0));
        TopicSlot(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NameHasher;

    #[test]
    fn a_topic_lives_as_long_as_its_subscribers() {
        let mut topics = Topics::default();
        let hash = NameHasher::new(3).hash(b"builds");
        let slot = topics.subscribe(hash, "builds", AgentSlot(1), false).expect("room");
        topics.subscribe(hash, "builds", AgentSlot(2), true);
        topics.set_channel(slot, AgentSlot(1), true);
        assert_eq!(topics.subscribers(slot), [(AgentSlot(1), true), (AgentSlot(2), true)]);
        topics.unsubscribe(slot, AgentSlot(1));
        topics.unsubscribe(slot, AgentSlot(2));
        assert_eq!((topics.len(), topics.find(hash, b"builds")), (0, None));
        assert!(topics.subscribers(slot).is_empty());
    }
}
