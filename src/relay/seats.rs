//! A seat for each connected agent: asked for at its home, counted at shard 0. While a question is on its way the
//! connection waits, and nothing behind its HELLO is read.

use super::Relay;
use super::event::Mail;
use super::home::AgentSlot;
use super::outbox::Outbox;
use super::session::{Session, State};
use crate::base::{AgentId, CloseReason, Now, SessionId, ShardId, name};
use crate::wire::{ErrorCode, Hello};

/// The shard that keeps what all shards share.
pub(super) const LEDGER: ShardId = ShardId(0);

impl Relay {
    pub(super) fn keeps_ledger(&self) -> bool {
        self.options.shard == LEDGER
    }

    /// The name is free for this connection: it is welcome as soon as there is a seat. Until then the agent is no better
    /// known than before.
    pub(super) fn seat(
        &mut self,
        now: Now,
        id: SessionId,
        agent: AgentId,
        slot: Option<AgentSlot>,
        hello: Hello<'_>,
        outbox: &mut Outbox,
    ) {
        let seats_max = self.options.entitlement.agents_max;
        let seated = slot.is_some_and(|slot| self.agents[slot].seated);
        let internal = std::str::from_utf8(&hello.claimed_name).is_ok_and(name::is_internal)
            && self.sessions.find(id).is_some_and(Session::is_administrator);
        if internal {
            if seated {
                // Somebody else's, who needed one.
                self.give_seat_back(now, outbox);
            }
            return self.enter(now, id, false, &hello, outbox);
        }
        if seated {
            return self.enter(now, id, seated, &hello, outbox);
        }
        if let Some(asker) = self.asking.get_mut(&agent) {
            // The answer is on its way already.
            *asker = Some(id);
        } else if self.keeps_ledger() {
            return match self.seats.take(now.wall_ms, seats_max) {
                Ok(()) => self.enter(now, id, true, &hello, outbox),
                Err(seats_max) => self.refuse_seat(id, seats_max, outbox),
            };
        } else if seats_max.is_none() {
            // Nobody could refuse it.
            outbox.mails.push((LEDGER, Mail::SeatTaken));
            return self.enter(now, id, true, &hello, outbox);
        } else {
            outbox.mails.push((LEDGER, Mail::SeatAsked { agent }));
            self.asking.insert(agent, Some(id));
        }
        if let Some(session) = self.sessions.find_mut(id) {
            session.state = State::Seating(agent);
            self.half_open[usize::from(session.peer.owner)].leave(id, session.peer.source);
            session.hello = Some(Box::new(hello.into_owned()));
        }
    }

    /// The ledger is asked for a seat.
    pub(super) fn on_seat_asked(&mut self, now: Now, from: ShardId, agent: AgentId, outbox: &mut Outbox) {
        let refused = self.seats.take(now.wall_ms, self.options.entitlement.agents_max).err();
        outbox.mails.push((from, Mail::SeatAnswer { agent, refused }));
    }

    /// The ledger is told that one is taken.
    pub(super) fn on_seat_taken(&mut self, now: Now) {
        // Without a limit this is always granted.
        let _ = self.seats.take(now.wall_ms, None);
    }

    pub(super) fn on_seat_answer(&mut self, now: Now, agent: AgentId, refused: Option<u32>, outbox: &mut Outbox) {
        let asker = self.asking.remove(&agent);
        debug_assert!(asker.is_some(), "an answer has a question");
        let waiting = asker.flatten().and_then(|id| Some((id, self.sessions.find_mut(id)?.hello.take()?)));
        match (waiting, refused) {
            (Some((id, hello)), None) => self.enter(now, id, true, &hello, outbox),
            (Some((id, _)), Some(seats_max)) => self.refuse_seat(id, seats_max, outbox),
            // Whoever asked has left.
            (None, None) => self.give_seat_back(now, outbox),
            (None, Some(_)) => {}
        }
    }

    /// The agent no longer needs its seat.
    pub(super) fn leave_seat(&mut self, now: Now, slot: AgentSlot, outbox: &mut Outbox) {
        if std::mem::take(&mut self.agents[slot].seated) {
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

    fn refuse_seat(&mut self, id: SessionId, seats_max: u32, outbox: &mut Outbox) {
        let text = format!("Agent limit reached ({seats_max}). Upgrade to increase limit.");
        self.fatal(id, ErrorCode::QuotaExceeded, &text, CloseReason::AgentLimit, outbox);
    }
}
