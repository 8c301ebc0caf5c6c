//! Everything a client says beside messages and acknowledgements; and a bound on how much of it one connection may say,
//! so that nobody keeps a shard busy with what no rate of messages counts.

use super::Relay;
use super::home::AgentSlot;
use super::meter::Pocket;
use super::outbox::Outbox;
use super::session::State;
use super::timers::Timer;
use crate::base::{CloseReason, Mono, Now, RefuseReason, SessionId};
use crate::wire::{ErrorCode, ErrorFrame, Frame, QueryKind};
use std::borrow::Cow;

/// Whoever is left unread stays so for at least this long: otherwise each frame would be a wake-up of its own.
const REST: u64 = Mono::ms(20);
/// What a connection without HELLO may owe, in time.
const FRESH_DEBT_MAX: u64 = Mono::ms(8_000);
/// A question makes work for other threads as well.
const QUERY_COST: usize = 16;
/// So many bytes that are copied back count as one more.
const BYTES_PER_COST: usize = 1024;

impl Relay {
    pub(super) fn on_control(
        &mut self,
        now: Now,
        id: SessionId,
        agent: Option<AgentSlot>,
        frame: Frame<'_>,
        outbox: &mut Outbox,
    ) {
        let cost = cost_of(&frame, agent.is_some());
        match (frame, agent) {
            (Frame::Receipt(receipts), Some(slot)) => self.on_receipts(slot, &receipts, outbox),
            (Frame::Subscribe(topic), Some(slot)) => self.on_subscribe(id, slot, &topic, outbox),
            (Frame::Unsubscribe(topic), Some(slot)) => self.on_unsubscribe(slot, &topic, outbox),
            (Frame::Enrol(enrol), Some(_)) => self.on_enrol(id, &enrol, outbox),
            (Frame::Hello(hello), None) => self.on_hello(now, id, *hello, outbox),
            (Frame::Hello(_), Some(_)) => self.complain(id, "Unexpected HELLO", outbox),
            (Frame::Ping(nonce), Some(_)) => outbox.reply(id, Frame::Pong(Cow::Owned(nonce.into_owned()))),
            (Frame::Submit(message), None) => self.on_submit(now, id, message, outbox),
            (Frame::Query(query), _) => self.on_query(now, id, &query, outbox),
            (Frame::Bye, _) => self.say_bye(now, id, outbox),
            (Frame::Malformed { label, number, problem }, _) => {
                self.counters.refusals[RefuseReason::Malformed as usize] += 1;
                let error = ErrorFrame {
                    code: ErrorCode::BadRequest,
                    fatal: false,
                    message: problem.into_owned().into(),
                    number,
                    label: label.into_owned().into(),
                    outcome: Some(RefuseReason::Malformed),
                };
                outbox.reply(id, Frame::Error(Box::new(error)));
            }
            (Frame::Unserved { label, kind }, _) => {
                let error = ErrorFrame {
                    code: ErrorCode::BadRequest,
                    fatal: false,
                    message: format!("{kind} requests are not served by this relay").into(),
                    number: 0,
                    label: label.into_owned().into(),
                    outcome: None,
                };
                outbox.reply(id, Frame::Error(Box::new(error)));
            }
            (Frame::Pong(_) | Frame::Ignored | Frame::Ack(_), _) => {}
            (Frame::Send(_), _) => self.complain(id, "Not in ACTIVE state", outbox),
            (Frame::Submit(_), Some(_)) => {
                self.complain(id, "SUBMIT is for connections without a session; use SEND", outbox)
            }
            // As the original: these need no answer before HELLO, and mean nothing then.
            (
                Frame::Receipt(_) | Frame::Subscribe(_) | Frame::Unsubscribe(_) | Frame::Enrol(_) | Frame::Ping(_),
                None,
            ) => {}
            (
                Frame::Welcome(_)
                | Frame::Deliver(_)
                | Frame::Busy(_)
                | Frame::Error(_)
                | Frame::Answer(_)
                | Frame::SendAck { .. },
                _,
            ) => {
                self.fatal(
                    id,
                    ErrorCode::BadRequest,
                    "only the relay sends this kind of frame",
                    CloseReason::Protocol,
                    outbox,
                );
            }
        }
        // Whoever asked has its answer; then it may have to wait.
        self.toil(now, id, cost, outbox);
    }

    /// A connection has made work that no rate of messages counts. When it has used up what it may, nothing is refused and
    /// nothing lost: it is left unread until it may go on, as one that sends too fast.
    pub(super) fn toil(&mut self, now: Now, id: SessionId, cost: usize, outbox: &mut Outbox) {
        let (rate, burst) = (self.options.bounds.control_per_second, self.options.bounds.control_burst);
        let Some(session) = self.sessions.find_mut(id) else { return };
        let wait = session.toil.spend(now.mono, cost as u64, rate, burst);
        if wait == 0 {
            return;
        }
        match session.state {
            State::Live(_) => {}
            // It has ten seconds, and is closed earlier if it does not read what it is told. (The command line is the daemon's
            // own user.)
            State::Fresh if !session.peer.owner && wait >= FRESH_DEBT_MAX => {
                let text = "Too many frames before HELLO";
                return self.fatal(id, ErrorCode::BadRequest, text, CloseReason::Protocol, outbox);
            }
            _ => return,
        }
        if session.paused & Pocket::TOIL == 0 {
            self.pause_for(id, Pocket::TOIL, outbox);
            self.timers.set(now.mono + wait.max(REST), Timer::Rested(id));
            self.tell_slow(now, id, wait.max(REST), outbox);
        }
    }

    /// It may say more now.
    pub(super) fn on_rested(&mut self, now: Now, id: SessionId, outbox: &mut Outbox) {
        let (rate, burst) = (self.options.bounds.control_per_second, self.options.bounds.control_burst);
        let Some(session) = self.sessions.find_mut(id) else { return };
        if session.paused & Pocket::TOIL == 0 {
            return;
        }
        // What was read in the same turn may have cost more since.
        match session.toil.spend(now.mono, 0, rate, burst) {
            0 => self.unpause_for(now, id, Pocket::TOIL, outbox),
            wait => self.timers.set(now.mono + wait.max(REST), Timer::Rested(id)),
        }
    }
}

/// What a frame is counted as: about the work of one small message each.
fn cost_of(frame: &Frame<'_>, welcome: bool) -> usize {
    match frame {
        // Those begin or end a session; messages have rates of their own.
        Frame::Hello(_) if !welcome => 0,
        Frame::Bye | Frame::Submit(_) | Frame::Pong(_) => 0,
        Frame::Receipt(receipts) => receipts.len(),
        Frame::Query(query) if query.kind == QueryKind::Stop => 0,
        Frame::Query(_) => QUERY_COST,
        Frame::Ping(nonce) => 1 + nonce.len() / BYTES_PER_COST,
        Frame::Malformed { label, problem, .. } => 1 + (label.len() + problem.len()) / BYTES_PER_COST,
        _ => 1,
    }
}
