//! A disk that works and is slower than the senders: whoever sends is heard once more and then left unread, until the writer
//! has caught up. Nothing is refused and nothing lost: the socket's buffer, and TCP, tell the sender to slow down. Who sends
//! nothing is read on, so that acknowledgements come in.

use super::Relay;
use super::meter::Pocket;
use super::outbox::Outbox;
use super::session::Session;
use crate::base::{Now, SessionId};

impl Relay {
    /// So much waits for the writer that nobody may send more; or so little again that everybody may.
    pub(super) fn on_writer_behind(&mut self, now: Now, behind: bool, outbox: &mut Outbox) {
        self.writer_behind = behind;
        if behind {
            return;
        }
        // Who has waited longest is read first.
        let mut pressed = std::mem::take(&mut self.pressed);
        for id in pressed.drain(..) {
            self.unpause_for(now, id, Pocket::PRESS, outbox);
        }
        self.pressed = pressed;
    }

    /// A SEND is taken from this connection while the writer is behind.
    pub(super) fn press(&mut self, id: SessionId, outbox: &mut Outbox) {
        let pressed = self.sessions.find(id).is_none_or(|session| session.paused & Pocket::PRESS != 0);
        if !pressed {
            self.counters.pressed += 1;
            self.pressed.push(id);
            self.pause_for(id, Pocket::PRESS, outbox);
        }
    }

    /// The connection is gone.
    pub(super) fn forget_pressed(&mut self, id: SessionId, session: &Session) {
        if session.paused & Pocket::PRESS != 0 {
            self.pressed.retain(|other| *other != id);
        }
    }
}
