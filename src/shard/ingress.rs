//! From bytes to frames to the heart. Whole frames are decoded where they were received; only the beginning of a frame
//! whose end has not arrived is copied.

use super::connections::Stage;
use super::{Inner, Spares};
use crate::base::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX};
use crate::base::{CloseReason, Sequence, SessionId};
use crate::relay::Event;
use crate::tls::FIRST_BYTE;
use crate::uring::Completion;
use crate::wire::{self, Corrupt, Dialect, Frame};
use zeroize::Zeroize;

/// How far decoding a run of bytes went.
enum Outcome {
    /// This many bytes were whole frames; the frame after them needs so many.
    Partial { consumed: usize, needed: usize },
    /// This many bytes were read; nothing behind them may be read now.
    Stop { consumed: usize },
}

impl Inner {
    /// Takes one completion of the driver.
    pub(super) fn take(&mut self, completion: Completion<'_>) {
        self.tick();
        match completion {
            Completion::Received { id, bytes } => self.receive(id, bytes),
            Completion::Sent { id, buffer, result } => {
                self.spares.keep_buffer(buffer);
                let Some(connection) = self.connections.find_mut(id) else { return };
                connection.sending = false;
                let through = std::mem::take(&mut connection.sending_through);
                let more = connection.has_more();
                if result.is_err() && !connection.paused {
                    return self.lose(id);
                }
                connection.muted |= result.is_err();
                if more {
                    self.mark_due(id);
                }
                if through != Sequence::default() {
                    self.relay.handle(self.now, Event::Written { session: id, through }, &mut self.outbox);
                }
            }
            Completion::Ended { id, .. } => self.end(id),
            Completion::Accepted { fd, listener } => self.accepted.push((listener, fd)),
            Completion::AcceptFailed { listener, error } => {
                tracing::warn!(%error, "accepting is paused for a moment; `relay doctor` shows the descriptor limit");
                self.paused.push((self.now.mono + super::ACCEPT_PAUSE, listener));
            }
            Completion::Woken => {}
        }
    }

    /// The peer is gone: what waits for it waits for its next session.
    pub(super) fn lose(&mut self, id: SessionId) {
        if self.connections.remove(id).is_some() {
            self.relay.handle(self.now, Event::Closed { session: id, reason: CloseReason::Lost }, &mut self.outbox);
            self.doomed.push(id);
        }
    }

    /// The peer has closed. What it sent before it did is read first, even if that takes a while.
    pub(super) fn end(&mut self, id: SessionId) {
        match self.connections.find_mut(id) {
            Some(connection) if connection.paused && !connection.stash.is_empty() => connection.ended = true,
            _ => self.lose(id),
        }
    }

    /// Takes what the driver received.
    pub(super) fn receive(&mut self, id: SessionId, bytes: &[u8]) {
        self.bytes_in += bytes.len() as u64;
        let Some(connection) = self.connections.find_mut(id) else { return };
        if connection.closing.is_some() {
            return;
        }
        if connection.is_undecided() && bytes.first() == Some(&FIRST_BYTE) && !self.begin_tls(id) {
            return;
        }
        match self.connections.find_mut(id).map(|connection| connection.tls.is_some()) {
            Some(true) => self.decrypt(id, bytes),
            Some(false) => self.read(id, bytes),
            None => {}
        }
    }

    /// Takes bytes in a dialect of ours.
    pub(super) fn read(&mut self, id: SessionId, bytes: &[u8]) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        if connection.closing.is_some() {
            return;
        }
        match connection.stage {
            Stage::Live if connection.paused => return connection.stash.extend_from_slice(bytes),
            Stage::Live => {}
            Stage::Fresh => self.rearm.push(id),
            Stage::Greeting => return connection.stash.extend_from_slice(bytes),
        }
        if connection.dialect.is_none() {
            let Some(first) = connection.stash.first().or(bytes.first()) else { return };
            match Dialect::of(*first) {
                Some(dialect) => {
                    connection.dialect = Some(dialect);
                    if connection.needs_tls && connection.tls.is_none() {
                        return self.refuse_plain(id);
                    }
                }
                None => {
                    let corrupt = Corrupt::Magic(*first);
                    let event = Event::Corrupt { session: id, dialect: None, corrupt };
                    return self.relay.handle(self.now, event, &mut self.outbox);
                }
            }
        }
        let mut bytes = bytes;
        if !connection.stash.is_empty() {
            // Finish the frame that has begun, with no more bytes than it needs; what follows is read where it lies.
            let mut stash = std::mem::take(&mut connection.stash);
            // Until WELCOME it holds credentials, and leaves none of them behind.
            let wipes = connection.stage == Stage::Fresh;
            loop {
                match self.decode(id, &stash) {
                    Outcome::Partial { consumed, needed } => {
                        discard(&mut stash, consumed, wipes);
                        if stash.is_empty() {
                            break;
                        }
                        let missing = needed.saturating_sub(stash.len()).min(bytes.len());
                        if missing == 0 {
                            return self.keep_rest(id, stash, needed);
                        }
                        append(&mut stash, &bytes[..missing], wipes);
                        bytes = &bytes[missing..];
                    }
                    Outcome::Stop { consumed } => {
                        discard(&mut stash, consumed, wipes);
                        stash.extend_from_slice(bytes);
                        return self.keep_rest(id, stash, 0);
                    }
                }
            }
            self.spares.keep_stash(stash);
        }
        let (consumed, needed) = match self.decode(id, bytes) {
            Outcome::Partial { consumed, needed } => (consumed, needed),
            Outcome::Stop { consumed } => (consumed, 0),
        };
        if consumed < bytes.len() {
            let mut stash = self.spares.stash();
            stash.extend_from_slice(&bytes[consumed..]);
            self.keep_rest(id, stash, needed);
        }
    }

    /// Keeps the beginning of a frame; who has not said HELLO may not begin a long one, unless it is the owner.
    fn keep_rest(&mut self, id: SessionId, mut stash: Vec<u8>, needed: usize) {
        let Some(connection) = self.connections.find_mut(id) else { return self.spares.keep_stash(stash) };
        if connection.closing.is_some() {
            return self.spares.keep_stash(stash);
        }
        let length = needed.max(stash.len());
        if connection.stage == Stage::Fresh && !connection.peer.owner && length > HELLO_BYTES_MAX {
            let corrupt = Corrupt::HelloTooLong { length: length as u64 };
            let event = Event::Corrupt { session: id, dialect: connection.dialect, corrupt };
            self.relay.handle(self.now, event, &mut self.outbox);
            stash.zeroize();
            return self.spares.keep_stash(stash);
        }
        debug_assert!(needed <= FRAME_BYTES_MAX + 4);
        connection.stash = stash;
    }

    /// Hands every whole frame of `bytes` to the heart, until something says that no more may be read.
    fn decode(&mut self, id: SessionId, bytes: &[u8]) -> Outcome {
        let Some(connection) = self.connections.find_mut(id) else { return Outcome::Stop { consumed: bytes.len() } };
        let fresh = connection.stage == Stage::Fresh;
        match connection.dialect {
            Some(Dialect::Json) => self.decode_json(id, bytes, fresh),
            _ => self.decode_native(id, bytes, fresh),
        }
    }

    fn decode_native(&mut self, session: SessionId, bytes: &[u8], fresh: bool) -> Outcome {
        let mut consumed = 0;
        loop {
            match wire::decode::frame(&bytes[consumed..]) {
                Ok(wire::decode::Decoded::Whole { header, frame, length }) => {
                    consumed += length;
                    let stop = self.is_last(session, &frame, fresh);
                    let sent = matches!(frame, Frame::Send(_));
                    let event = Event::Frame { session, dialect: Dialect::Native, ack: header.ack, frame };
                    self.relay.handle(self.now, event, &mut self.outbox);
                    if stop || (sent && self.has_paused(session)) {
                        return Outcome::Stop { consumed };
                    }
                }
                Ok(wire::decode::Decoded::Partial { needed }) => return Outcome::Partial { consumed, needed },
                Err(corrupt) => {
                    let event = Event::Corrupt { session, dialect: Some(Dialect::Native), corrupt };
                    self.relay.handle(self.now, event, &mut self.outbox);
                    return Outcome::Stop { consumed: bytes.len() };
                }
            }
        }
    }

    fn decode_json(&mut self, session: SessionId, bytes: &[u8], fresh: bool) -> Outcome {
        let Some(connection) = self.connections.find_mut(session) else {
            return Outcome::Stop { consumed: bytes.len() };
        };
        let (name, agent, token) = (connection.name.clone(), connection.agent, connection.token);
        let mut ordinal = connection.sends;
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut consumed = 0;
        let outcome = loop {
            let speaker = (!fresh).then_some(wire::json::Speaker {
                name: &name,
                agent,
                session: token,
                ordinal,
                wall_ms: self.now.wall_ms,
            });
            match wire::json::decode(&bytes[consumed..], speaker.as_ref(), &mut scratch) {
                Ok(wire::json::Decoded::Whole { frame, length }) => {
                    consumed += length;
                    let sent = matches!(frame, Frame::Send(_));
                    ordinal += u64::from(sent);
                    let stop = self.is_last(session, &frame, fresh);
                    let ack = Sequence::default();
                    let event = Event::Frame { session, dialect: Dialect::Json, ack, frame };
                    self.relay.handle(self.now, event, &mut self.outbox);
                    if stop || (sent && self.has_paused(session)) {
                        break Outcome::Stop { consumed };
                    }
                }
                Ok(wire::json::Decoded::Partial { needed }) => break Outcome::Partial { consumed, needed },
                Err(corrupt) => {
                    let event = Event::Corrupt { session, dialect: Some(Dialect::Json), corrupt };
                    self.relay.handle(self.now, event, &mut self.outbox);
                    break Outcome::Stop { consumed: bytes.len() };
                }
            }
        };
        self.scratch = scratch;
        if let Some(connection) = self.connections.find_mut(session) {
            connection.sends = ordinal;
        }
        outcome
    }

    /// Whether the SEND that was just handed to the heart made it pause this connection: nothing behind it is read now.
    fn has_paused(&mut self, id: SessionId) -> bool {
        let paused = self.relay.is_paused(id);
        if paused && let Some(connection) = self.connections.find_mut(id) {
            connection.paused = true;
        }
        paused
    }

    /// Behind a HELLO nothing is read until the connection is at home; behind a BYE nothing at all.
    fn is_last(&mut self, id: SessionId, frame: &Frame<'_>, fresh: bool) -> bool {
        match frame {
            Frame::Hello(_) if fresh => {
                if let Some(connection) = self.connections.find_mut(id) {
                    connection.stage = Stage::Greeting;
                }
                true
            }
            Frame::Bye => true,
            _ => false,
        }
    }
}

/// Takes the first bytes away.
fn discard(stash: &mut Vec<u8>, count: usize, wipes: bool) {
    if wipes {
        stash[..count].zeroize();
    }
    stash.drain(..count);
}

/// Adds bytes; where it grows, the place that it leaves is cleared.
fn append(stash: &mut Vec<u8>, bytes: &[u8], wipes: bool) {
    if wipes && stash.capacity() - stash.len() < bytes.len() {
        let mut larger = Vec::with_capacity(2 * (stash.len() + bytes.len()));
        larger.extend_from_slice(stash);
        std::mem::replace(stash, larger).zeroize();
    }
    stash.extend_from_slice(bytes);
}

impl Spares {
    fn stash(&mut self) -> Vec<u8> {
        self.stashes.pop().unwrap_or_default()
    }

    pub(super) fn keep_stash(&mut self, mut stash: Vec<u8>) {
        if stash.capacity() <= super::SPARE_BYTES_MAX && self.stashes.len() < super::SPARES_MAX {
            stash.clear();
            self.stashes.push(stash);
        }
    }
}
