//! From the outbox to sockets, lanes and the writer. Everything a turn says to a connection leaves in one send.

use super::connections::{Connection, Stage};
use super::{EARLY_EGRESS_BYTES_MAX, EGRESS_BYTES_MAX, Inner, LINGER, Pressing, Spares};
use crate::base::limits::{
    WRITER_AHEAD, WRITER_BATCH_BYTES_MAX, WRITER_BATCH_RECORDS_MAX, WRITER_BEHIND, WRITER_CAUGHT_UP,
    WRITER_RECORD_COST, WRITER_STUCK,
};
use crate::base::{CloseReason, Mono, Sequence, SessionId, ShardId};
use crate::mesh::{ClerkPost, Moved, Post, WriterPost};
use crate::relay::{Delivery, Event, Mail, Output, Question, Record};
use crate::uring::{Driver, ReceiveMode, SendBuffer};
use crate::wire::{self, Dialect, FLAG_REDELIVERED, Frame, Message, QueryKind};

/// Bodies above this size are not copied into the send buffer: they leave by vectored send.
const COPIED_BODY_BYTES_MAX: usize = 4096;

/// The writer is rung at most this often for batches that nobody waits for and that are not large: it may be on this very
/// core, and each commit holds up whoever is answered meanwhile …
const RING_INTERVAL: u64 = Mono::ms(20);
/// … and a batch of this many records is large.
const LARGE_BATCH: usize = 1024;
/// Where many sessions begin, each waits so long to share a commit with others.
pub(super) const SESSIONS_INTERVAL: u64 = Mono::ms(5);

impl Inner {
    /// Performs everything the heart asked for in this turn. Law: the outbox is empty afterwards.
    pub(super) fn perform(&mut self, driver: &mut Driver) {
        let mut outputs = std::mem::take(&mut self.outbox.outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Deliver(delivery) => self.deliver(&delivery),
                Output::Reply { session, frame } => self.reply(session, &frame),
                Output::Receipt { session, receipt } => {
                    let Some(connection) = self.connections.find_mut(session) else { continue };
                    let out = self.spares.lend(&mut connection.pending);
                    wire::encode::receipts(&mut out.bytes, &[receipt], Sequence::default());
                    self.after_reply(session);
                }
                Output::Settle { session, name, agent, token } => {
                    let Some(connection) = self.connections.find_mut(session) else { continue };
                    (connection.name, connection.agent, connection.token) = (name, agent, token);
                    connection.stage = Stage::Live;
                    driver.receive(session, ReceiveMode::Stream);
                    if !connection.stash.is_empty() {
                        self.unread.push(session);
                    }
                }
                Output::Pause { session } => {
                    let Some(connection) = self.connections.find_mut(session) else { continue };
                    connection.paused = true;
                    driver.pause_receiving(session, true);
                }
                Output::Resume { session } => {
                    let Some(connection) = self.connections.find_mut(session) else { continue };
                    connection.paused = false;
                    // The stash is read before the driver hands out anything more.
                    if !connection.stash.is_empty() || connection.ended {
                        self.unread.push(session);
                    }
                    driver.pause_receiving(session, false);
                }
                Output::Move { session, to, hello, grant } => {
                    let Some(connection) = self.connections.find_mut(session) else { continue };
                    connection.moving = Some((to, hello, grant));
                    // What was said to it goes out first; the heart knows it no more, so nobody else looks after it.
                    self.lingering.push_back((self.now.mono + LINGER, session));
                    self.mark_due(session);
                }
                Output::Close { session, reason } => {
                    if let Some(connection) = self.connections.find_mut(session) {
                        connection.closing = Some(reason);
                        self.lingering.push_back((self.now.mono + LINGER, session));
                        self.mark_due(session);
                        tracing::debug!(reason = reason.name(), slot = session.slot, "connection closes");
                    }
                }
            }
        }
        self.outbox.outputs = outputs;
        let mut mails = std::mem::take(&mut self.outbox.mails);
        for (to, mail) in mails.drain(..) {
            match mail {
                Mail::Outcome(_) => self.hold_outcome(to, mail),
                _ => self.hold_post(to, Post::Mail(mail)),
            }
        }
        self.outbox.mails = mails;
        self.keep_records();
        self.fetch_hold.extend(self.outbox.fetches.drain(..));
        self.readings.append(&mut self.outbox.readings);
        for question in std::mem::take(&mut self.outbox.questions) {
            self.ask(question);
        }
        for part in std::mem::take(&mut self.outbox.census) {
            let gauges = self.gauges();
            if self.mesh.push_clerk(ClerkPost::Census(part, gauges)).is_err() {
                // The clerk asks for one part at a time and gives up on it after a while.
                tracing::warn!("the clerk's queue is full");
            }
            self.clerk_pushed = true;
        }
        assert!(self.outbox.is_empty(), "nothing is forgotten between turns");
        self.relay.end_turn();
    }

    /// Starts the sends of this turn, and closes what has nothing left to say.
    pub(super) fn flush(&mut self, driver: &mut Driver) {
        let mut due = std::mem::take(&mut self.due);
        for id in due.drain(..) {
            let Some(connection) = self.connections.find_mut(id) else { continue };
            connection.due = false;
            if connection.sending {
                continue;
            }
            if connection.moving.is_some() {
                self.move_home(id, driver);
                continue;
            }
            if connection.muted {
                connection.silence();
            }
            let buffer = if connection.muted {
                None
            } else if connection.tls.is_some() {
                self.encrypt(id)
            } else if !connection.pending.is_empty() {
                // Nothing is kept for a connection that has nothing to say: ten thousand of them are silent.
                Some(std::mem::take(&mut connection.pending))
            } else {
                None
            };
            let Some(connection) = self.connections.find_mut(id) else { continue };
            if let Some(buffer) = buffer {
                connection.sending = true;
                connection.sending_through = std::mem::take(&mut connection.pending_through);
                self.bytes_out += buffer.len() as u64;
                if std::mem::take(&mut connection.pending_awaited) || connection.closing.is_some() {
                    driver.send(id, buffer);
                } else {
                    driver.send_quietly(id, buffer);
                }
            }
            if connection.closing.is_some() && connection.pending.is_empty() {
                // `close_after_send` lets the send in flight finish; the linger deadline bounds how long that may take.
                if connection.sending {
                    driver.close_after_send(id);
                } else {
                    driver.close(id);
                }
                self.forget(id);
            }
        }
        self.due = due;
        for id in std::mem::take(&mut self.doomed) {
            driver.close(id);
        }
    }

    /// Hands a connection on which nothing is in flight to the shard where its agent lives.
    fn move_home(&mut self, id: SessionId, driver: &mut Driver) {
        let Some(Connection {
            dialect: Some(dialect),
            peer,
            stash,
            tls,
            pending,
            moving: Some((to, hello, grant)),
            ..
        }) = self.connections.remove(id)
        else {
            return driver.close(id);
        };
        match driver.detach(id) {
            Some(descriptor) => {
                // Replies alone: nothing is delivered before HELLO, so there are no big frames among them.
                let unsent = pending.bytes;
                let (link, sealed) = match tls {
                    Some(tls) => (Some(Box::new(tls.link)), tls.sealed),
                    None => (None, Vec::new()),
                };
                let moved = Moved { descriptor, dialect, peer, hello, grant, link, sealed, unread: stash, unsent };
                self.hold_post(to, Post::Connection(Box::new(moved)));
                self.push_holds();
            }
            // Before HELLO there is one receive at a time, and its completion was the HELLO; a lost connection is the safe
            // answer to whatever else is in flight.
            None => driver.close(id),
        }
    }

    fn forget(&mut self, id: SessionId) {
        if let Some(mut connection) = self.connections.remove(id) {
            self.spares.keep_buffer(std::mem::take(&mut connection.pending));
        }
    }

    /// Connections that were told to close and whose peers do not read: enough waited.
    pub(super) fn end_lingering(&mut self, driver: &mut Driver) {
        while let Some((until, id)) = self.lingering.front().copied() {
            if until > self.now.mono {
                break;
            }
            self.lingering.pop_front();
            // A stale id, when it has closed by itself: then this does nothing.
            driver.close(id);
            self.forget(id);
        }
    }

    pub(super) fn mark_due(&mut self, id: SessionId) {
        if let Some(connection) = self.connections.find_mut(id)
            && !connection.due
        {
            connection.due = true;
            self.due.push(id);
        }
    }

    fn deliver(&mut self, delivery: &Delivery) {
        let Some(connection) = self.connections.find_mut(delivery.session) else { return };
        let out = self.spares.lend(&mut connection.pending);
        match connection.dialect {
            Some(Dialect::Json) => {
                let Some(message) = Message::check(&delivery.raw, delivery.checksum) else { return };
                let (name, token) = (&connection.name, connection.token);
                wire::json::deliver(&mut out.bytes, &message, delivery.sequence, delivery.flags, name, token);
            }
            _ => {
                let flags = delivery.flags & FLAG_REDELIVERED;
                let (sequence, checksum) = (delivery.sequence, delivery.checksum);
                if delivery.raw.len() <= COPIED_BODY_BYTES_MAX {
                    wire::encode::deliver(&mut out.bytes, flags, sequence, &delivery.raw, checksum);
                } else {
                    let length = delivery.raw.len() as u32;
                    out.bytes.extend_from_slice(&wire::encode::deliver_header(flags, sequence, length, checksum));
                    out.frames.push((out.bytes.len(), delivery.raw.clone()));
                }
            }
        }
        // Repeats come behind later deliveries: the mark only grows.
        connection.pending_through = connection.pending_through.max(delivery.sequence);
        connection.pending_awaited |= delivery.awaited;
        if !connection.due {
            connection.due = true;
            self.due.push(delivery.session);
        }
    }

    pub(super) fn reply(&mut self, id: SessionId, frame: &Frame<'_>) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        if connection.closing.is_some() {
            return;
        }
        if connection.dialect.is_none() && matches!(frame, Frame::Bye) {
            // It has said nothing yet: a client of the JSON dialect would read our own magic as a length.
            return;
        }
        let out = self.spares.lend(&mut connection.pending);
        match connection.dialect {
            Some(Dialect::Json) => {
                connection.frames_out += 1;
                let stamp = wire::json::Stamp { wall_ms: self.now.wall_ms, ordinal: connection.frames_out };
                wire::json::encode(&mut out.bytes, frame, stamp);
            }
            _ => wire::encode::frame(&mut out.bytes, frame, Sequence::default()),
        }
        self.after_reply(id);
    }

    fn after_reply(&mut self, id: SessionId) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        let trusted = connection.stage == Stage::Live || connection.peer.owner;
        let room = if trusted { EGRESS_BYTES_MAX } else { EARLY_EGRESS_BYTES_MAX };
        if connection.pending.bytes.len() > room {
            // Deliveries are bounded by the window; this peer asks and asks and does not read the answers.
            connection.pending = SendBuffer::default();
            let event = Event::Closed { session: id, reason: CloseReason::SlowReader };
            self.relay.handle(self.now, event, &mut self.outbox);
            self.connections.remove(id);
            self.doomed.push(id);
            return;
        }
        self.mark_due(id);
    }

    /// Hands mail over, behind what the lane could not take before.
    fn hold_post(&mut self, to: ShardId, post: Post) {
        let hold = &mut self.holds[usize::from(to.0)];
        hold.posts.push_back(post);
        self.pushed[usize::from(to.0)] = true;
    }

    fn hold_outcome(&mut self, to: ShardId, mail: Mail) {
        let hold = &mut self.holds[usize::from(to.0)];
        hold.outcomes.push_back(mail);
        self.pushed[usize::from(to.0)] = true;
    }

    /// Moves what is held into the lanes, as far as they take it. While anything is held, this shard reads nothing from
    /// its connections, so that a hold is bounded by what one turn can produce.
    pub(super) fn push_holds(&mut self) {
        for to in 0..self.holds.len() {
            let shard = ShardId(to as u16);
            let hold = &mut self.holds[to];
            while let Some(post) = hold.posts.pop_front() {
                if let Err(post) = self.mesh.push_mail(self.shard, shard, post) {
                    hold.posts.push_front(post);
                    self.pushed[to] = true;
                    break;
                }
            }
            while let Some(mail) = hold.outcomes.pop_front() {
                if let Err(mail) = self.mesh.push_outcome(self.shard, shard, mail) {
                    hold.outcomes.push_front(mail);
                    self.pushed[to] = true;
                    break;
                }
            }
        }
    }

    fn keep_records(&mut self) {
        self.urgent |= std::mem::take(&mut self.outbox.records_urgent);
        self.batch.append(&mut self.outbox.records);
        self.batch_bytes += std::mem::take(&mut self.outbox.records_weight);
        while self.batch.len() > WRITER_BATCH_RECORDS_MAX {
            // About evenly long: each is not weighed again.
            let left = self.batch.len() - WRITER_BATCH_RECORDS_MAX;
            let rest_bytes = (self.batch_bytes as u64 * left as u64 / self.batch.len() as u64) as usize;
            let rest = self.batch.split_off(WRITER_BATCH_RECORDS_MAX);
            self.hand_batch(rest, rest_bytes);
        }
        if self.batch_bytes >= WRITER_BATCH_BYTES_MAX {
            let spare = self.mesh.spare_batch(self.shard);
            self.hand_batch(spare, 0);
        }
    }

    /// Puts the batch behind those for the writer; `next` takes its place.
    fn hand_batch(&mut self, next: Vec<Record>, next_bytes: usize) {
        let cost = self.batch_cost();
        let batch = std::mem::replace(&mut self.batch, next);
        self.batch_bytes = next_bytes;
        self.writer_hold_cost += cost;
        self.writer_hold.push_back((WriterPost::Records(batch), cost));
    }

    /// What the batch that is being filled counts as.
    fn batch_cost(&self) -> u64 {
        self.batch_bytes as u64 + self.batch.len() as u64 * WRITER_RECORD_COST
    }

    /// Hands records to the writer when it is time: enough of them, old enough, or somebody waits for the commit.
    pub(super) fn flush_records(&mut self, at_once: bool) {
        self.push_writer_hold();
        self.behind = false;
        let wish = self.mesh.flush_wanted(self.shard);
        let at_once = at_once || wish.is_some();
        if !self.writer_hold.is_empty() {
            // The writer does not keep up, or its disk is in trouble: what waits here is bounded by what the heart still
            // accepts, and progress stays where each agent has one place for it.
        } else if self.batch.is_empty() && !self.relay.progress_is_due() {
            self.records_since = None;
        } else {
            let since = *self.records_since.get_or_insert(self.now.mono);
            let due = since + self.options.flush_interval <= self.now.mono;
            // A writer that has not taken the last batch gains nothing from a smaller one behind it, nor does one that was
            // rung a moment ago: under load a ring costs as much as some hundred records.
            let waiting = self.mesh.batches_waiting(self.shard);
            let idle = waiting == 0;
            let rest = self.now.mono.since(self.rang_writer_at);
            let rested = rest >= RING_INTERVAL.min(self.options.flush_interval);
            let enough = self.batch.len() >= self.options.batch_trigger && (rested || self.batch.len() >= LARGE_BATCH);
            let triggered = idle && enough;
            // Somebody waits: at once, unless the writer has enough to do. It rings after its commit, and finds the rest.
            let hurried = self.relay.awaits_commit();
            let awaited = (hurried || (self.urgent && rest >= SESSIONS_INTERVAL)) && waiting < WRITER_AHEAD;
            self.behind = waiting >= WRITER_AHEAD;
            if at_once || (due && !self.behind) || triggered || awaited {
                self.mesh.hurry(self.shard, hurried);
                self.urgent = false;
                self.relay.tell_progress(self.now, &mut self.outbox);
                self.keep_records();
                self.records_since = None;
                self.rang_writer_at = self.now.mono;
                if !self.batch.is_empty() {
                    let spare = self.mesh.spare_batch(self.shard);
                    self.hand_batch(spare, 0);
                }
            }
        }
        if self.batch.is_empty() && !self.readings.is_empty() {
            // Nobody waits for them: they hurry no record, and ride behind.
            let readings = std::mem::take(&mut self.readings);
            self.writer_hold.push_back((WriterPost::Readings(self.shard, readings), 0));
        }
        self.push_writer_hold();
        self.press();
        let full = !self.writer_hold.is_empty();
        if let Some(wish) = wish
            && !full
            && self.batch.is_empty()
        {
            self.mesh.set_flushed(self.shard, wish);
            self.writer_pushed = true;
        }
        if full != self.writer_was_full {
            self.writer_was_full = full;
            self.relay.handle(self.now, Event::WriterFull(full), &mut self.outbox);
        }
    }

    fn push_writer_hold(&mut self) {
        while let Some((batch, cost)) = self.writer_hold.pop_front() {
            self.writer_pushed = true;
            if let Err(batch) = self.mesh.push_batch(self.shard, batch, cost) {
                self.writer_hold.push_front((batch, cost));
                break;
            }
            self.writer_hold_cost -= cost;
        }
    }

    /// Leaves senders unread from now on if the writer is behind: it works, and they are faster than the disk. When the disk
    /// refuses they are read on: they are to hear BUSY, and why.
    pub(super) fn press(&mut self) {
        if self.pressing != Pressing::No {
            return;
        }
        let (waiting, taken) = self.mesh.waiting_for_writer();
        // What this shard has not handed over yet comes on top.
        if waiting + self.writer_hold_cost + self.batch_cost() > WRITER_BEHIND && !self.mesh.writer_in_trouble() {
            self.pressing = Pressing::Since(self.now.mono, taken);
            self.relay.handle(self.now, Event::WriterBehind(true), &mut self.outbox);
        }
    }

    /// Senders are read again if the writer has caught up; or if it takes nothing at all any more.
    pub(super) fn release(&mut self) {
        let (waiting, taken) = self.mesh.waiting_for_writer();
        match self.pressing {
            Pressing::No => {}
            Pressing::Since(..) if self.mesh.writer_has_caught_up() => self.pressing = Pressing::No,
            Pressing::Since(_, before) if before != taken => self.pressing = Pressing::Since(self.now.mono, taken),
            Pressing::Since(at, _) if self.now.mono.since(at) >= WRITER_STUCK => {
                tracing::warn!(reason = "writer_stuck", "the disk has taken nothing for seconds, and reports no error");
                self.pressing = Pressing::InVain;
            }
            Pressing::Since(..) => return,
            Pressing::InVain if waiting <= WRITER_CAUGHT_UP => self.pressing = Pressing::No,
            Pressing::InVain => return,
        }
        if !matches!(self.pressing, Pressing::Since(..)) {
            self.relay.handle(self.now, Event::WriterBehind(false), &mut self.outbox);
        }
    }

    /// Passes requests for owed messages to the keeper, as far as its queue takes them.
    pub(super) fn push_fetches(&mut self) {
        while let Some(fetch) = self.fetch_hold.pop_front() {
            self.keeper_pushed = true;
            if let Err(fetch) = self.mesh.push_fetch(self.shard, fetch) {
                self.fetch_hold.push_front(fetch);
                break;
            }
        }
    }

    fn ask(&mut self, question: Question) {
        let (session, number) = (question.session, question.number);
        let taken = match question.kind {
            QueryKind::Message | QueryKind::History => {
                // The writer wishes for everything that shards have before it passes the question on; what is here goes
                // at once, and saves it the wait.
                self.flush_records(true);
                self.writer_pushed = true;
                self.mesh.push_writer_question(self.shard, question).is_ok()
            }
            QueryKind::Status | QueryKind::Agents | QueryKind::Stop | QueryKind::Keys | QueryKind::License => {
                self.clerk_pushed = true;
                self.mesh.push_clerk(ClerkPost::Question(self.shard, question)).is_ok()
            }
        };
        if !taken {
            let json = br#"{"error":"too many questions at once; ask again in a moment"}"#.to_vec();
            let event = Event::Answered { session, number, failed: true, json };
            self.relay.handle(self.now, event, &mut self.outbox);
        }
    }

    /// Rings whoever sleeps and has been given something. After the sends, so that nobody waits for a bell.
    pub(super) fn rouse(&mut self, driver: &mut Driver) {
        for to in 0..self.pushed.len() {
            if std::mem::take(&mut self.pushed[to]) && self.mesh.shard_sleeper(ShardId(to as u16)).rouse() {
                driver.wake(&self.bells.shards[to]);
            }
        }
        if std::mem::take(&mut self.writer_pushed) && self.mesh.writer_sleeper().rouse() {
            driver.wake(&self.bells.writer);
        }
        if std::mem::take(&mut self.keeper_pushed) && self.mesh.keeper_sleeper().rouse() {
            driver.wake(&self.bells.keeper);
        }
        if std::mem::take(&mut self.clerk_pushed) && self.mesh.clerk_sleeper().rouse() {
            driver.wake(&self.bells.clerk);
        }
    }
}

impl Spares {
    /// `pending`, with memory of a spare if it has none of its own.
    fn lend<'a>(&mut self, pending: &'a mut SendBuffer) -> &'a mut SendBuffer {
        if pending.bytes.capacity() == 0
            && let Some(spare) = self.buffers.pop()
        {
            *pending = spare;
        }
        pending
    }

    pub(super) fn keep_buffer(&mut self, mut buffer: SendBuffer) {
        if buffer.bytes.capacity() == 0 {
            return;
        }
        let room = if buffer.bytes.capacity() <= super::SMALL_SPARE_BYTES {
            super::SMALL_SPARES_MAX
        } else {
            super::SPARES_MAX
        };
        if buffer.bytes.capacity() <= super::SPARE_BYTES_MAX && self.buffers.len() < room {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }
}
