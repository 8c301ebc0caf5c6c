//! One shard's heart among agents that do nothing but what is measured. Plays the shard: decodes, handles, performs.

use crate::messages;
use agent_relay::base::keys::KeyRing;
use agent_relay::base::tier::Entitlement;
use agent_relay::base::{Mono, Now, Sequence, SessionId, ShardId};
use agent_relay::relay::{Bounds, Event, Options, Outbox, Output, Peer, Relay};
use agent_relay::wire::{Ack, Dialect, Frame, Hello, Topic, decode, encode};

/// A heart, its outbox, and the bytes that its agents would be sent.
pub struct World {
    relay: Relay,
    outbox: Outbox,
    now: Now,
    sent: Vec<u8>,
    /// The last sequence delivered on each connection in this turn.
    delivered: Vec<Sequence>,
    acknowledgement: Vec<u8>,
    next_number: u64,
}

/// The sender's connection; the recipients' follow.
const SENDER: u32 = 0;

/// How a heart alone is set up, in the daemon's start `epoch`.
pub fn options(epoch: u32) -> Options {
    Options {
        shard: ShardId(0),
        shards: 1,
        epoch,
        strict: false,
        name_seed: 7,
        token_seed: [7; 32],
        bounds: Bounds::default(),
        entitlement: Entitlement::unlimited(),
        require_auth: false,
        bind_certificates: false,
        keys: KeyRing::empty(),
    }
}

impl World {
    /// A sender `ann` and `recipients` agents, all subscribed to `#all`; the first is called `r0`.
    pub fn new(recipients: u32) -> World {
        let mut world = World {
            relay: Relay::new(options(1)),
            outbox: Outbox::default(),
            now: Now { mono: Mono(Mono::ms(1_000)), wall_ms: 1_766_966_970_000 },
            sent: Vec::new(),
            delivered: vec![Sequence::default(); recipients as usize + 1],
            acknowledgement: Vec::new(),
            next_number: 1,
        };
        world.join(SENDER, "ann");
        for recipient in 1..=recipients {
            world.join(recipient, &format!("r{}", recipient - 1));
            world.say(recipient, Frame::Subscribe(Topic { name: b"all".as_slice().into(), channel: false }));
        }
        world.turn();
        world
    }

    /// The next `count` messages to `to` as one run of bytes; to be relayed in this order.
    pub fn messages(&mut self, count: u32, to: &str, text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            messages::native_send(&mut bytes, "ann", to, self.next_number, text);
            self.next_number += 1;
        }
        bytes
    }

    /// One turn: takes what the sender wrote, delivers it, then takes one acknowledgement from each who was delivered to.
    /// Gives the bytes that went to recipients.
    pub fn relay(&mut self, received: &[u8]) -> usize {
        self.now.mono = self.now.mono + 100_000;
        self.take(SENDER, received);
        self.relay.expire(self.now, &mut self.outbox);
        self.turn();
        let bytes = self.sent.len();
        self.sent.clear();
        for slot in 1..self.delivered.len() {
            let through = std::mem::take(&mut self.delivered[slot]);
            if through != Sequence::default() {
                let session = id(slot as u32);
                self.relay.handle(self.now, Event::Written { session, through }, &mut self.outbox);
                let mut acknowledgement = std::mem::take(&mut self.acknowledgement);
                acknowledgement.clear();
                encode::frame(&mut acknowledgement, &Frame::Ack(Ack::Through(through)), Sequence::default());
                self.take(slot as u32, &acknowledgement);
                self.acknowledgement = acknowledgement;
            }
        }
        self.turn();
        bytes
    }

    /// Messages that wait for an acknowledgement.
    pub fn waiting(&self) -> u64 {
        self.relay.gauges().waiting_messages
    }

    fn join(&mut self, slot: u32, name: &str) {
        let session = id(slot);
        let opened = Event::Opened { session, peer: Peer { owner: true, ..Peer::default() } };
        self.relay.handle(self.now, opened, &mut self.outbox);
        let hello = Hello { claimed_name: name.as_bytes().into(), ..Hello::default() };
        self.say(slot, Frame::Hello(Box::new(hello)));
    }

    fn say(&mut self, slot: u32, frame: Frame<'_>) {
        let event = Event::Frame { session: id(slot), dialect: Dialect::Native, ack: Sequence::default(), frame };
        self.relay.handle(self.now, event, &mut self.outbox);
    }

    fn take(&mut self, slot: u32, mut bytes: &[u8]) {
        while let Ok(decode::Decoded::Whole { header, frame, length }) = decode::frame(bytes) {
            let event = Event::Frame { session: id(slot), dialect: Dialect::Native, ack: header.ack, frame };
            self.relay.handle(self.now, event, &mut self.outbox);
            bytes = &bytes[length..];
        }
        assert!(bytes.is_empty(), "whole frames only");
    }

    /// Performs the outbox: what a shard would send is encoded, what it would pass on is dropped.
    fn turn(&mut self) {
        for output in self.outbox.outputs.drain(..) {
            if let Output::Deliver(delivery) = output {
                let (flags, sequence) = (0, delivery.sequence);
                encode::deliver(&mut self.sent, flags, sequence, &delivery.raw, delivery.checksum);
                self.delivered[delivery.session.slot as usize] = sequence;
            }
        }
        self.outbox.records.clear();
        self.outbox.mails.clear();
        self.relay.tell_progress(self.now, &mut self.outbox);
        self.outbox.records.clear();
        self.relay.end_turn();
    }
}

fn id(slot: u32) -> SessionId {
    SessionId { slot, generation: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direct_message_is_delivered_and_acknowledged() {
        let mut world = World::new(1);
        for _ in 0..100 {
            let bytes = world.messages(64, "r0", "hello");
            // SEND and DELIVER are equally long: only the header changes.
            assert_eq!(world.relay(&bytes), bytes.len());
            assert_eq!(world.waiting(), 0);
        }
    }

    #[test]
    fn a_topic_reaches_every_subscriber_and_not_the_sender() {
        let mut world = World::new(100);
        let bytes = world.messages(1, "#all", "hello");
        assert_eq!(world.relay(&bytes), 100 * bytes.len());
        assert_eq!(world.waiting(), 0);
    }
}
