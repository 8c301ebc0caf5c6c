//! Subscriptions: who wants to hear of which topic from now on.

use super::Relay;
use super::event::Mail;
use super::home::AgentSlot;
use super::outbox::{Outbox, Record};
use super::session::Session;
use crate::base::{SessionId, name};
use crate::wire::{Enrol, ErrorCode, ErrorFrame, Frame, Topic};

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

    /// Another agent is to join a channel, or to leave it.
    pub(super) fn on_enrol(&mut self, id: SessionId, enrol: &Enrol<'_>, outbox: &mut Outbox) {
        let mut say = |code, message: String| {
            let label = enrol.label.clone().into_owned().into();
            let error = ErrorFrame { code, fatal: false, message: message.into(), number: 0, label, outcome: None };
            outbox.reply(id, Frame::Error(Box::new(error)));
        };
        if !self.sessions.find(id).is_some_and(Session::may_administer) {
            let text = "payload.member names another agent; only an admin may join or remove others";
            return say(ErrorCode::Forbidden, text.to_owned());
        }
        let topic = match name::check_topic(name::topic_of(&enrol.topic.name)) {
            Ok(topic) => topic,
            Err(error) => return say(ErrorCode::BadRequest, format!("Not a topic: {error}")),
        };
        let member = match name::check_agent(enrol.member.as_bytes()) {
            Ok(member) => member,
            Err(error) => return say(ErrorCode::BadRequest, format!("Not an agent name: {error}")),
        };
        let home = self.hasher.hash(member.as_bytes()).home(self.options.shards);
        if home == self.options.shard {
            self.enrol(member, topic, enrol.join, outbox);
        } else {
            outbox.mails.push((home, Mail::Enrol { member: member.into(), topic: topic.into(), join: enrol.join }));
        }
    }

    /// The member's home does it; of an agent that nobody knows nothing is kept.
    pub(super) fn enrol(&mut self, member: &str, topic: &str, join: bool, outbox: &mut Outbox) {
        let hash = self.hasher.hash(member.as_bytes());
        let Some(slot) = self.agents.find(hash, member.as_bytes()) else { return };
        if join {
            // A refusal here only means that the agent has all the subscriptions it may have.
            let _ = self.subscribe(slot, topic, true, outbox);
        } else {
            self.on_unsubscribe(slot, &Topic { name: topic.as_bytes().into(), channel: true }, outbox);
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
