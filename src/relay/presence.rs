//! Connections as they come and go: opened, closed, silent, stopped; and the agent that was on them.

use super::event::Peer;
use super::home::Presence;
use super::outbox::{Outbox, Output, Record};
use super::session::{Session, State};
use super::timers::{self, Timer};
use super::{Relay, error};
use crate::base::{CloseReason, Now, SessionId, limits, name};
use crate::wire::{Corrupt, Dialect, ErrorCode, Frame};
use std::borrow::Cow;

impl Relay {
    pub(super) fn on_opened(&mut self, now: Now, id: SessionId, peer: Peer, outbox: &mut Outbox) {
        let (kind, source) = (usize::from(peer.owner), peer.source);
        self.sessions.insert(id, Session::fresh(now.mono, peer));
        self.half_open[kind].join(id, source);
        if self.half_open[kind].len() > self.options.bounds.half_open_max {
            match self.half_open[kind].too_many(source) {
                Some(other) => self.close(other, CloseReason::HalfOpenCrowd, outbox),
                None => return self.close(id, CloseReason::HalfOpenFull, outbox),
            }
        }
        if self.stopping {
            self.close(id, CloseReason::Shutdown, outbox);
        } else {
            self.timers.set(now.mono + limits::HELLO_DEADLINE, Timer::Session(id));
        }
    }

    pub(super) fn on_corrupt(
        &mut self,
        id: SessionId,
        dialect: Option<Dialect>,
        corrupt: &Corrupt,
        outbox: &mut Outbox,
    ) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        let Some(dialect) = dialect else {
            // Whatever speaks there would not understand an answer.
            return self.close(id, corrupt.close_reason(), outbox);
        };
        session.dialect = dialect;
        let text = match dialect {
            Dialect::Json => format!("Frame error: Error: {corrupt}"),
            Dialect::Native => corrupt.to_string(),
        };
        self.fatal(id, ErrorCode::BadRequest, &text, corrupt.close_reason(), outbox);
    }

    pub(super) fn say_bye(&mut self, now: Now, id: SessionId, outbox: &mut Outbox) {
        let slot = self.sessions.find(id).and_then(Session::agent);
        outbox.reply(id, Frame::Bye);
        self.leave(now, id, CloseReason::Bye, outbox);
        self.close(id, CloseReason::Bye, outbox);
        // A name made up for one errand would otherwise be known for as long as retention says.
        if let Some(slot) = slot
            && let Some(agent) = self.agents.peek(slot)
            && agent.name.starts_with(name::ERRAND_PREFIX)
            && agent.session().is_none()
            && agent.queue.is_empty()
        {
            self.forget(slot, outbox);
        }
    }

    /// The connection is gone without our doing.
    pub(super) fn on_closed(&mut self, now: Now, id: SessionId, reason: CloseReason, outbox: &mut Outbox) {
        if self.sessions.find(id).is_some() {
            self.leave(now, id, reason, outbox);
            self.counters.closes[reason as usize] += 1;
            self.drop_session(id, outbox);
        }
    }

    /// Closes a connection; its agent, if it has one, has left before or is lost now.
    pub(super) fn close(&mut self, id: SessionId, reason: CloseReason, outbox: &mut Outbox) {
        if self.sessions.find(id).is_none() {
            return;
        }
        self.counters.closes[reason as usize] += 1;
        outbox.outputs.push(Output::Close { session: id, reason });
        self.drop_session(id, outbox);
    }

    pub(super) fn drop_session(&mut self, id: SessionId, outbox: &mut Outbox) {
        let Some(session) = self.sessions.remove(id) else { return };
        if session.key.is_some() || session.paused != 0 || session.prepaid != 0 {
            self.close_meter(id, &session, outbox);
            self.forget_pressed(id, &session);
        }
        match session.state {
            State::Live(_) => {}
            State::Fresh => self.half_open[usize::from(session.peer.owner)].leave(id, session.peer.source),
            State::Penalized(_) => {
                self.half_open[usize::from(session.peer.owner)].leave(id, session.peer.source);
                self.sources.answered(session.peer.source);
            }
            State::Seating(agent) => {
                if let Some(asker) = self.asking.get_mut(&agent)
                    && *asker == Some(id)
                {
                    *asker = None;
                }
            }
        }
    }

    /// The agent on this connection is no longer here; what it is owed stays.
    pub(super) fn leave(&mut self, now: Now, id: SessionId, reason: CloseReason, outbox: &mut Outbox) {
        let Some(session) = self.sessions.find(id) else { return };
        let Some(slot) = session.agent() else { return };
        let agent = &mut self.agents[slot];
        if agent.presence != Presence::Live(id) {
            // Its name lives on another connection by now.
            return;
        }
        self.live -= 1;
        self.presence_generation += 1;
        agent.last_seen = now;
        agent.presence = match reason {
            CloseReason::Bye => Presence::Left(now.mono),
            _ => Presence::Lost(now.mono),
        };
        agent.queue.rewind();
        self.agents.list(slot);
        self.leave_seat(now, slot, outbox);
        let agent = &self.agents[slot];
        let record = Record::Gone { agent: agent.id, at_ms: now.wall_ms, bye: reason == CloseReason::Bye };
        self.push_note(record, outbox);
    }

    pub(super) fn on_stop(&mut self, now: Now, outbox: &mut Outbox) {
        self.stopping = true;
        for id in self.sessions.ids() {
            outbox.reply(id, Frame::Bye);
            // Mail may still come for its agent: that is owed, and not for a connection that is closed.
            self.leave(now, id, CloseReason::Shutdown, outbox);
            self.close(id, CloseReason::Shutdown, outbox);
        }
    }

    /// Is the peer still there? Any traffic counts as life.
    pub(super) fn check_session(&mut self, now: Now, id: SessionId, outbox: &mut Outbox) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        match session.state {
            State::Live(_) => {}
            State::Penalized(penalty) => return self.end_penalty(now, id, penalty, outbox),
            // Its answer is on its way.
            State::Seating(_) => {
                return self.timers.set(timers::coalesced(now.mono + limits::PING_AFTER), Timer::Session(id));
            }
            State::Fresh => {
                let deadline = session.opened_at + limits::HELLO_DEADLINE;
                if now.mono >= deadline {
                    self.close(id, CloseReason::HelloTimeout, outbox);
                } else {
                    self.timers.set(deadline, Timer::Session(id));
                }
                return;
            }
        }
        if session.paused != 0 {
            // It is not silent: it is not heard.
            session.last_heard = now.mono;
        }
        let silent = now.mono.since(session.last_heard);
        if silent >= limits::DEAD_AFTER {
            self.leave(now, id, CloseReason::Silent, outbox);
            self.close(id, CloseReason::Silent, outbox);
            return;
        }
        let next = if silent < limits::PING_AFTER {
            session.last_heard + limits::PING_AFTER
        } else {
            if session.pinged_at.is_none() {
                session.pinged_at = Some(now.mono);
                let nonce = self.tokens.issue().to_string().into_bytes();
                outbox.reply(id, Frame::Ping(Cow::Owned(nonce)));
            }
            session.last_heard + limits::DEAD_AFTER
        };
        self.timers.set(timers::coalesced(next), Timer::Session(id));
    }

    /// An error that the connection survives.
    pub(super) fn complain(&mut self, id: SessionId, message: &str, outbox: &mut Outbox) {
        outbox.reply(id, error(ErrorCode::BadRequest, message, false));
    }

    /// An error that ends the connection: ERROR, BYE, close.
    pub(super) fn fatal(
        &mut self,
        id: SessionId,
        code: ErrorCode,
        message: &str,
        reason: CloseReason,
        outbox: &mut Outbox,
    ) {
        outbox.reply(id, error(code, message, true));
        outbox.reply(id, Frame::Bye);
        if let Some(slot) = self.sessions.find(id).and_then(Session::agent)
            && self.agents[slot].presence == Presence::Live(id)
        {
            self.leave(self.now, id, reason, outbox);
        }
        self.close(id, reason, outbox);
    }
}
