//! A seat for each connected agent: asked for at its home, counted at shard 0. While a question is on its way the
//! connection waits, and nothing behind its HELLO is read.

use super::Relay;
use super::event::Mail;
use super::home::AgentSlot;
use super::outbox::{Outbox, Record};
use super::session::State;
use crate::base::ids::Token;
use crate::base::{AgentId, CloseReason, Now, SessionId, ShardId, name};
use crate::wire::{ErrorCode, Hello};

/// The shard that keeps what all shards share.
pub(super) const LEDGER: ShardId = ShardId(0);

/// Where an agent stands with its seat.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Seat {
    /// It has none: it is away, or needs none.
    #[default]
    None,
    /// Asked for, for this connection; none when that has left meanwhile. One question at a time.
    Asked(Option<SessionId>),
    /// It has one.
    Held,
}

impl Relay {
    pub(super) fn keeps_ledger(&self) -> bool {
        self.options.shard == LEDGER
    }

    /// The name is free for this connection: it is welcome as soon as there is a seat.
    pub(super) fn seat(&mut self, now: Now, id: SessionId, slot: AgentSlot, hello: Hello<'_>, outbox: &mut Outbox) {
        let seats_max = self.options.entitlement.agents_max;
        let agent = &mut self.agents[slot];
        match agent.seat {
            Seat::Held => return self.welcome(now, id, slot, &hello, outbox),
            Seat::None if name::is_internal(&agent.name) => return self.welcome(now, id, slot, &hello, outbox),
            Seat::None if self.options.shard == LEDGER => {
                return match self.seats.take(now.wall_ms, seats_max) {
                    Ok(()) => {
                        agent.seat = Seat::Held;
                        self.welcome(now, id, slot, &hello, outbox);
                    }
                    Err(seats_max) => self.refuse_seat(id, slot, seats_max, outbox),
                };
            }
            Seat::None if seats_max.is_none() => {
                // Nobody could refuse it.
                agent.seat = Seat::Held;
                outbox.mails.push((LEDGER, Mail::SeatTaken));
                return self.welcome(now, id, slot, &hello, outbox);
            }
            Seat::None => outbox.mails.push((LEDGER, Mail::SeatAsked { agent: agent.id })),
            // The answer is on its way already.
            Seat::Asked(_) => {}
        }
        agent.seat = Seat::Asked(Some(id));
        if let Some(session) = self.sessions.find_mut(id) {
            session.state = State::Seating(slot);
            self.half_open -= 1;
            session.hello = Some(Box::new(hello.into_owned()));
        }
    }

    /// The ledger is asked for a seat, or told of one.
    pub(super) fn on_seat_asked(&mut self, now: Now, from: ShardId, agent: AgentId, outbox: &mut Outbox) {
        let refused = self.seats.take(now.wall_ms, self.options.entitlement.agents_max).err();
        outbox.mails.push((from, Mail::SeatAnswer { agent, refused }));
    }

    pub(super) fn on_seat_taken(&mut self, now: Now) {
        // Without a limit this is always granted.
        let _ = self.seats.take(now.wall_ms, None);
    }

    pub(super) fn on_seat_answer(&mut self, now: Now, agent: AgentId, refused: Option<u32>, outbox: &mut Outbox) {
        let slot = self.agents.find_id(agent);
        let asked = slot.map(|slot| std::mem::take(&mut self.agents[slot].seat));
        let (Some(slot), Some(Seat::Asked(id))) = (slot, asked) else {
            debug_assert!(false, "an agent with an open question stays known, and has no seat");
            return;
        };
        let waiting = id.and_then(|id| Some((id, self.sessions.find_mut(id)?.hello.take()?)));
        match (waiting, refused) {
            (Some((id, hello)), None) => {
                self.agents[slot].seat = Seat::Held;
                self.welcome(now, id, slot, &hello, outbox);
            }
            (Some((id, _)), Some(seats_max)) => self.refuse_seat(id, slot, seats_max, outbox),
            // Whoever asked has left.
            (None, None) => self.give_seat_back(now, outbox),
            (None, Some(_)) => self.unmeet(slot, outbox),
        }
    }

    /// The agent no longer needs its seat.
    pub(super) fn leave_seat(&mut self, now: Now, slot: AgentSlot, outbox: &mut Outbox) {
        let seat = &mut self.agents[slot].seat;
        if *seat == Seat::Held {
            *seat = Seat::None;
            self.give_seat_back(now, outbox);
        }
    }

    pub(super) fn give_seat_back(&mut self, now: Now, outbox: &mut Outbox) {
        if self.keeps_ledger() {
            self.seats.give_back(now.wall_ms);
        } else {
            outbox.mails.push((LEDGER, Mail::SeatFreed));
        }
    }

    fn refuse_seat(&mut self, id: SessionId, slot: AgentSlot, seats_max: u32, outbox: &mut Outbox) {
        let text = format!("Agent limit reached ({seats_max}). Upgrade to increase limit.");
        self.fatal(id, ErrorCode::QuotaExceeded, &text, CloseReason::AgentLimit, outbox);
        self.unmeet(slot, outbox);
    }

    /// An agent that was met by a HELLO that went no further is not known after all.
    fn unmeet(&mut self, slot: AgentSlot, outbox: &mut Outbox) {
        let Some(agent) = self.agents.peek(slot) else { return };
        let untouched = agent.queue.next_sequence().counter == self.forgotten_through + 1
            && agent.queue.is_empty()
            && agent.subscriptions.is_empty();
        if agent.seat == Seat::None
            && agent.session().is_none()
            && agent.resume == Token::default()
            && untouched
            && let Some(agent) = self.agents.forget(slot)
        {
            self.push_note(Record::Forgotten { agent: agent.id }, outbox);
        }
    }
}
