//! Questions, answers and lists: what is asked on a connection and what the clerk wants to know.

use super::Relay;
use super::counters::Gauges;
use super::home::AgentSlot;
use super::outbox::{AgentRow, CensusPart, CensusTicket, Outbox, Question};
use crate::base::{CloseReason, Now, SessionId};
use crate::wire::{Dialect, ErrorCode, Frame, Query, QueryKind};
use std::borrow::Cow;

/// Rows of one census part: some tens of microseconds of a shard's time.
const CENSUS_ROWS: u32 = 256;

impl Relay {
    /// What is here and what has happened.
    pub fn gauges(&self) -> Gauges {
        let (seats, seats_peak, seats_today) = self.seats.counts();
        Gauges {
            counters: self.counters.clone(),
            connections: self.sessions.len() as u32,
            half_open: self.half_open.iter().map(super::crowd::Crowd::len).sum::<usize>() as u32,
            live: self.live as u32,
            known: self.agents.len() as u32,
            waiting_messages: self.waiting.messages,
            waiting_bytes: self.waiting.bytes,
            resident_bytes: self.waiting.resident,
            grace: self.grace.len() as u32,
            topics: self.topics.len() as u32,
            paused: self.meters.paused,
            pressed: self.pressed.len() as u32,
            seats,
            seats_peak,
            seats_today,
            keys: self.meters.uses(),
            sightings: Vec::new(),
        }
    }

    /// The same with what was seen of credentials since this was last asked.
    pub fn take_gauges(&mut self) -> Gauges {
        let sightings = self.sightings.take();
        Gauges { sightings, ..self.gauges() }
    }

    pub(super) fn on_query(&mut self, now: Now, id: SessionId, query: &Query<'_>, outbox: &mut Outbox) {
        let Some(session) = self.sessions.find(id) else { return };
        let by = session.grant.as_ref().map(|grant| grant.key);
        let by_token = session.grant.as_ref().is_some_and(|grant| grant.by_token);
        if !session.may_administer() {
            let text = "Questions are answered on the Unix socket, for the daemon's own user, or to a key with the admin scope";
            return self.fatal(id, ErrorCode::Forbidden, text, CloseReason::Forbidden, outbox);
        }
        if matches!(query.kind, QueryKind::Message | QueryKind::History) {
            // What the writer knows of progress may lag by one flush; the question travels behind this.
            self.tell_progress(now, outbox);
        }
        outbox.questions.push(Question {
            session: id,
            number: query.number,
            kind: query.kind,
            arguments: query.arguments.as_ref().into(),
            by,
            by_token,
        });
    }

    pub(super) fn on_answered(
        &mut self,
        now: Now,
        id: SessionId,
        number: u64,
        failed: bool,
        json: Vec<u8>,
        outbox: &mut Outbox,
    ) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        // The asker has shown that it is alive and allowed; it may ask again.
        session.opened_at = now.mono;
        let answer = crate::wire::Answer { number, more: false, failed, json: Cow::Owned(json) };
        outbox.reply(id, Frame::Answer(Box::new(answer)));
    }

    pub(super) fn on_census(&mut self, now: Now, ticket: CensusTicket, outbox: &mut Outbox) {
        self.seats.look(now.wall_ms);
        let end = self.agents.slots().min(ticket.cursor.saturating_add(CENSUS_ROWS));
        let rows =
            (ticket.cursor.min(end)..end).filter_map(|slot| self.agents.peek(AgentSlot(slot))).map(|agent| AgentRow {
                name: agent.name.clone(),
                live: agent.session().is_some(),
                json: agent.dialect == Dialect::Json,
                profile: agent.profile.clone(),
                first_seen_ms: agent.first_seen_ms,
                last_seen_ms: agent.last_seen.wall_ms,
                messages_sent: agent.messages_sent,
                messages_received: agent.messages_received,
                waiting_messages: agent.queue.owed(now).messages as u32,
                waiting_bytes: agent.queue.load().bytes.min(u64::from(u32::MAX)) as u32,
                in_flight: agent.queue.in_flight(),
                oldest_unacknowledged_ms: agent.queue.oldest_sent_at().map(|at| now.mono.since(at) / 1_000_000),
                topics: agent.subscriptions.iter().filter_map(|(topic, _)| self.topics.name(*topic).cloned()).collect(),
            });
        let rows = rows.collect();
        let next = (end < self.agents.slots()).then_some(end);
        let gauges = next.is_none().then(|| Box::new(self.take_gauges()));
        outbox.census.push(CensusPart { ticket: ticket.ticket, shard: self.options.shard, next, rows, gauges });
    }
}
