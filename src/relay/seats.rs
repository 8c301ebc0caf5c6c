//! A seat for each connected agent: asked for at its home, counted at shard 0. While a question is on its way the
//! connection waits, and nothing behind its HELLO is read.

use super::Relay;
use super::event::Mail;
use super::home::AgentSlot;
use super::ledger::Sitter;
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
        let internal = std::str::from_utf8(&hello.claimed_name).is_ok_and(name::is_internal)
            && self.sessions.find(id).is_some_and(Session::is_administrator);
        let sitter = if internal { Sitter::Helper } else { Sitter::Agent };
        if let Some(seated) = slot.and_then(|slot| self.agents[slot].seated.take()) {
            if seated == sitter {
                return self.enter(now, id, sitter, &hello, outbox);
            }
            // Somebody else's, whose name was the same.
            self.give_seat_back(now, seated, outbox);
        }
        if let Some(asker) = self.asking.get_mut(&agent) {
            // The answer is on its way already.
            *asker = Some(id);
        } else if self.keeps_ledger() {
            return match self.seats.take(now.wall_ms, sitter, seats_max) {
                Ok(()) => self.enter(now, id, sitter, &hello, outbox),
                Err(seats_max) => self.refuse_seat(id, seats_max, outbox),
            };
        } else if seats_max.is_none() {
            // Nobody could refuse it.
            outbox.mails.push((LEDGER, Mail::SeatTaken { sitter }));
            return self.enter(now, id, sitter, &hello, outbox);
        } else {
            outbox.mails.push((LEDGER, Mail::SeatAsked { agent, sitter }));
            self.asking.insert(agent, Some(id));
        }
        if let Some(session) = self.sessions.find_mut(id) {
            session.state = State::Seating(agent);
            self.half_open[usize::from(session.peer.owner)].leave(id, session.peer.source);
            session.hello = Some(Box::new(hello.into_owned()));
        }
    }

    /// The ledger is asked for a seat.
    pub(super) fn on_seat_asked(
        &mut self,
        now: Now,
        from: ShardId,
        agent: AgentId,
        sitter: Sitter,
        outbox: &mut Outbox,
    ) {
        let refused = self.seats.take(now.wall_ms, sitter, self.options.entitlement.agents_max).err();
        outbox.mails.push((from, Mail::SeatAnswer { agent, sitter, refused }));
    }

    /// The ledger is told that one is taken.
    pub(super) fn on_seat_taken(&mut self, now: Now, sitter: Sitter) {
        // Without a limit this is always granted.
        let _ = self.seats.take(now.wall_ms, sitter, None);
    }

    pub(super) fn on_seat_answer(
        &mut self,
        now: Now,
        agent: AgentId,
        sitter: Sitter,
        refused: Option<u32>,
        outbox: &mut Outbox,
    ) {
        let asker = self.asking.remove(&agent);
        debug_assert!(asker.is_some(), "an answer has a question");
        let waiting = asker.flatten().and_then(|id| Some((id, self.sessions.find_mut(id)?.hello.take()?)));
        match (waiting, refused) {
            (Some((id, hello)), None) => self.enter(now, id, sitter, &hello, outbox),
            (Some((id, _)), Some(seats_max)) => self.refuse_seat(id, seats_max, outbox),
            // Whoever asked has left.
            (None, None) => self.give_seat_back(now, sitter, outbox),
            (None, Some(_)) => {}
        }
    }

    /// The agent no longer needs its seat.
    pub(super) fn leave_seat(&mut self, now: Now, slot: AgentSlot, outbox: &mut Outbox) {
        if let Some(sitter) = self.agents[slot].seated.take() {
            self.give_seat_back(now, sitter, outbox);
        }
    }

    pub(super) fn give_seat_back(&mut self, now: Now, sitter: Sitter, outbox: &mut Outbox) {
        if self.keeps_ledger() {
            self.seats.give_back(now.wall_ms, sitter);
        } else {
            outbox.mails.push((LEDGER, Mail::SeatFreed { sitter }));
        }
    }

    fn refuse_seat(&mut self, id: SessionId, seats_max: u32, outbox: &mut Outbox) {
        let text = format!("Agent limit reached ({seats_max}). Upgrade to increase limit.");
        self.fatal(id, ErrorCode::QuotaExceeded, &text, CloseReason::AgentLimit, outbox);
    }
}
