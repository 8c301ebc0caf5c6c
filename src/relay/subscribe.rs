//! Subscriptions: who wants to hear of which topic from now on.

use super::Relay;
use super::home::AgentSlot;
use super::outbox::{Outbox, Record};
use crate::base::{SessionId, name};
use crate::wire::Topic;

impl Relay {
    pub(super) fn on_subscribe(&mut self, id: SessionId, slot: AgentSlot, topic: &Topic<'_>, outbox: &mut Outbox) {
        let text = match name::check_topic(name::topic_of(&topic.name)) {
            Ok(text) => text,
            Err(error) => return self.complain(id, &format!("Not a topic: {error}"), outbox),
        };
        if let Err(problem) = self.subscribe(slot, text, topic.channel, outbox) {
            self.complain(id, problem, outbox);
        }
    }

    pub(super) fn subscribe(
        &mut self,
        slot: AgentSlot,
        text: &str,
        channel: bool,
        outbox: &mut Outbox,
    ) -> Result<(), &'static str> {
        if self.subscribe_quietly(slot, text, channel)? {
            let agent = self.agents[slot].id;
            self.push_note(Record::Subscribed { agent, topic: text.into(), channel }, outbox);
        }
        Ok(())
    }

    /// Subscribes without a word to the writer; says whether anything has changed.
    pub(super) fn subscribe_quietly(
        &mut self,
        slot: AgentSlot,
        text: &str,
        channel: bool,
    ) -> Result<bool, &'static str> {
        let hash = self.hasher.hash(text.as_bytes());
        if let Some(known) = self.topics.find(hash, text.as_bytes())
            && let Some(mine) = self.agents[slot].subscriptions.iter_mut().find(|(topic, _)| *topic == known)
        {
            let changed = mine.1 != channel;
            if changed {
                mine.1 = channel;
                self.topics.set_channel(known, slot, channel);
            }
            return Ok(changed);
        }
        if self.agents[slot].subscriptions.len() >= self.options.bounds.subscriptions_max {
            return Err("This agent has as many subscriptions as one may have; unsubscribe from one first");
        }
        let topic =
            self.topics.subscribe(hash, text, slot, channel).ok_or("The relay has as many topics as it can hold")?;
        self.agents[slot].subscriptions.push((topic, channel));
        Ok(true)
    }

    pub(super) fn on_unsubscribe(&mut self, slot: AgentSlot, topic: &Topic<'_>, outbox: &mut Outbox) {
        let text = name::topic_of(&topic.name);
        let Some(topic) = self.topics.find(self.hasher.hash(text), text) else { return };
        let agent = &mut self.agents[slot];
        if let Some(index) = agent.subscriptions.iter().position(|(mine, _)| *mine == topic)
            && let Some(name) = self.topics.name(topic).cloned()
        {
            agent.subscriptions.remove(index);
            let record = Record::Unsubscribed { agent: agent.id, topic: name };
            self.topics.unsubscribe(topic, slot);
            self.push_note(record, outbox);
        }
    }
}
