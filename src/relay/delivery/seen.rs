//! What a queue knows of a message that its recipient says to have read.

use super::{Ask, LOOK_AHEAD, Queue, State};
use crate::base::{MessageId, Sequence};

/// How far back a message that was read is looked for before the store is asked: those who read do so at once.
const READ_LOOK_BACK: usize = 128;

/// Whether its recipient has said that it has read an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    No,
    Yes,
    /// It came back from the store, and may have been read before.
    Perhaps,
}

/// What a queue knows of a message that its recipient says to have read.
#[derive(Debug, PartialEq, Eq)]
pub enum Sight {
    /// It was handed out, and this is the first time that it is said. Who wants to hear what of it, if anybody does.
    Unread(Option<Ask>),
    /// That was said before.
    Read,
    /// It is not among those that can be told at once.
    Unknown,
}

impl Queue {
    /// The recipient says that it has read this message.
    pub fn read(&mut self, id: MessageId) -> Sight {
        let first = self.sent.min(LOOK_AHEAD);
        let newest = (first.max(self.sent.saturating_sub(READ_LOOK_BACK))..self.sent).rev();
        let open = |index: &usize| self.entries[*index].id == id && self.entries[*index].state != State::Settled;
        let Some(index) = (0..first).chain(newest).find(open) else { return Sight::Unknown };
        let entry = &mut self.entries[index];
        match entry.seen {
            Seen::Perhaps => Sight::Unknown,
            Seen::Yes => Sight::Read,
            Seen::No => {
                entry.seen = Seen::Yes;
                Sight::Unread(entry.ask.as_deref().cloned())
            }
        }
    }

    /// The same of the message in this place of the order, which the store knows. Whether it was ever handed out.
    pub fn read_at(&mut self, sequence: Sequence) -> bool {
        let Some(index) = self.index_of(sequence) else {
            return sequence <= self.through || self.cold.as_ref().is_some_and(|cold| cold.is_in_skip(sequence));
        };
        let entry = &mut self.entries[index];
        // Of those that an earlier process may have sent, nobody knows whether it did.
        let sent = index < self.sent || (entry.attempts > 0 && sequence.epoch == self.epoch);
        if sent {
            entry.seen = Seen::Yes;
        }
        sent || entry.state == State::Settled
    }
}
