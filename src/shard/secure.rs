//! TLS between the driver and the decoders: handshakes, a few at a time; decryption on the way in, encryption at flush.

use super::connections::{Secured, Stage};
use super::{Inner, LINGER, SPARE_BYTES_MAX, clock};
use crate::base::{CloseReason, Mono, SessionId};
use crate::relay::Event;
use crate::tls::LinkError;
use crate::uring::SendBuffer;
use crate::wire::{ErrorCode, ErrorFrame, Frame};
use zeroize::Zeroize;

/// How long handshakes may keep a turn, nanoseconds: an agent's message must not wait for a crowd at the door. One is
/// finished, however long it takes.
const HANDSHAKES_TURN: u64 = Mono::ms(1) / 4;

impl Inner {
    /// The first byte of a connection was one of TLS. Says whether there is a link now.
    pub(super) fn begin_tls(&mut self, id: SessionId) -> bool {
        let link = self.options.tls.as_ref().map(|acceptor| acceptor.link());
        match (link, self.connections.find_mut(id)) {
            (Some(Ok(link)), Some(connection)) => {
                connection.tls = Some(Box::new(Secured::new(link)));
                return true;
            }
            (Some(Err(error)), _) => self.fail_tls(id, &error),
            (None, _) => {
                tracing::debug!(reason = CloseReason::TlsOff.name(), slot = id.slot, "TLS was spoken where it is off");
                self.refuse(id, CloseReason::TlsOff);
            }
            (_, None) => {}
        }
        false
    }

    /// Something else than TLS was spoken where it is required.
    pub(super) fn refuse_plain(&mut self, id: SessionId) {
        let message = "This relay speaks TLS here; connect with TLS".into();
        let error = ErrorFrame {
            code: ErrorCode::BadRequest,
            fatal: true,
            message,
            number: 0,
            label: "".into(),
            outcome: None,
        };
        self.reply(id, &Frame::Error(Box::new(error)));
        self.reply(id, &Frame::Bye);
        self.refuse(id, CloseReason::TlsRequired);
    }

    /// Closes a connection that has not got as far as the heart; what was said to it goes out first.
    fn refuse(&mut self, id: SessionId, reason: CloseReason) {
        self.relay.handle(self.now, Event::Closed { session: id, reason }, &mut self.outbox);
        if let Some(connection) = self.connections.find_mut(id) {
            connection.closing = Some(reason);
            self.lingering.push_back((self.now.mono + LINGER, id));
            self.mark_due(id);
        }
    }

    /// Takes bytes of TLS.
    pub(super) fn decrypt(&mut self, id: SessionId, bytes: &[u8]) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        let Some(tls) = &mut connection.tls else { return };
        if tls.link.is_ready() {
            return self.feed(id, bytes);
        }
        if tls.waiting.is_empty() {
            self.shaking.push_back(id);
        }
        // One receive at a time comes before HELLO, and the next is asked for when this one has been looked at.
        tls.waiting.extend_from_slice(bytes);
    }

    /// Goes on with the handshakes that have something to read, for as long as a turn may give them.
    pub(super) fn shake_hands(&mut self) {
        if self.shaking.is_empty() {
            return;
        }
        let until = clock().mono + HANDSHAKES_TURN;
        while let Some(id) = self.shaking.pop_front() {
            if let Some(tls) = self.connections.find_mut(id).and_then(|connection| connection.tls.as_mut()) {
                let bytes = std::mem::take(&mut tls.waiting);
                self.feed(id, &bytes);
                if clock().mono >= until {
                    break;
                }
            }
        }
    }

    fn feed(&mut self, id: SessionId, bytes: &[u8]) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        let Some(tls) = &mut connection.tls else { return };
        if connection.closing.is_some() {
            return;
        }
        let mut plaintext = std::mem::take(&mut self.plaintext);
        let was_ready = tls.link.is_ready();
        let outcome = tls.link.feed(bytes, &mut self.workspace, &mut plaintext, &mut tls.sealed);
        let (ready, closed) = (tls.link.is_ready(), tls.link.peer_closed());
        let fresh = connection.stage == Stage::Fresh;
        if !tls.sealed.is_empty() {
            self.mark_due(id);
        }
        if ready && !was_ready {
            self.greet(id);
        }
        if !plaintext.is_empty() {
            self.read(id, &plaintext);
        } else if fresh {
            self.rearm.push(id);
        }
        if fresh {
            // What comes before WELCOME holds credentials.
            self.workspace.wipe();
            plaintext.zeroize();
        }
        plaintext.clear();
        if plaintext.capacity() <= 2 * SPARE_BYTES_MAX {
            self.plaintext = plaintext;
        }
        match outcome {
            Err(error) => self.fail_tls(id, &error),
            Ok(()) if closed => self.end(id),
            Ok(()) => {}
        }
    }

    /// The handshake is complete.
    fn greet(&mut self, id: SessionId) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        let Some(tls) = &connection.tls else { return };
        let (version, resumed) = (tls.link.version(), tls.link.is_resumed());
        tracing::debug!(slot = id.slot, version, resumed, "TLS handshake done");
        if let Some(certificate) = tls.link.certificate().cloned() {
            // It goes home with the connection.
            connection.peer.certificate = Some(certificate.clone());
            let event = Event::Certified { session: id, certificate };
            self.relay.handle(self.now, event, &mut self.outbox);
        }
    }

    fn fail_tls(&mut self, id: SessionId, error: &LinkError) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        if connection.closing.is_some() {
            return;
        }
        // Nothing can be said any more but the alert, which lies sealed.
        connection.pending.clear();
        tracing::debug!(reason = CloseReason::TlsHandshake.name(), slot = id.slot, %error, "TLS has failed");
        self.refuse(id, CloseReason::TlsHandshake);
    }

    /// What a connection with TLS is to be sent now.
    pub(super) fn encrypt(&mut self, id: SessionId) -> Option<SendBuffer> {
        let connection = self.connections.find_mut(id)?;
        let tls = connection.tls.as_mut()?;
        let mut buffer = self.spares.buffers.pop().unwrap_or_default();
        let out = &mut buffer.bytes;
        out.append(&mut std::mem::take(&mut tls.sealed));
        let mut outcome = Ok(());
        if tls.link.is_ready() && !connection.pending.is_empty() {
            // A record for each 16 KiB, each some bytes longer than what is in it.
            out.reserve(connection.pending.len() + connection.pending.len() / 256 + 64);
            outcome = tls.link.seal(connection.pending.pieces(0), &mut self.workspace, out);
            self.spares.keep_buffer(std::mem::take(&mut connection.pending));
        }
        if connection.closing.is_some() {
            connection.pending.clear();
            tls.link.close(out);
        }
        if let Err(error) = outcome {
            self.fail_tls(id, &error);
        }
        if buffer.is_empty() {
            self.spares.keep_buffer(buffer);
            return None;
        }
        Some(buffer)
    }
}
