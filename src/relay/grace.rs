//! SENDs to names that nobody has used yet: agents are often greeted before they are up, so these wait two seconds.

use super::event::Origin;
use crate::base::limits::{GRACE, GRACE_MAX, GRACE_PER_SENDER_MAX};
use crate::base::{AgentId, MessageId, Mono};
use crate::wire::Parcel;
use std::collections::VecDeque;

/// A SEND that waits.
pub(super) struct Waiting {
    pub(super) parcel: Parcel,
    pub(super) origin: Origin,
    until: Mono,
}

/// All that wait at this shard, oldest first.
#[derive(Default)]
pub(super) struct Grace {
    queue: VecDeque<Waiting>,
}

impl Grace {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Lets a SEND wait; gives its deadline, or nothing when there is no room for it (the parcel is then refused).
    pub(super) fn wait(&mut self, now: Mono, parcel: Parcel, origin: Origin) -> Result<Mono, Parcel> {
        let sender: AgentId = parcel.id.sender;
        let waiting = self.queue.iter().filter(|waiting| waiting.parcel.id.sender == sender).count();
        if self.queue.len() >= GRACE_MAX || waiting >= GRACE_PER_SENDER_MAX {
            return Err(parcel);
        }
        let until = now + GRACE;
        self.queue.push_back(Waiting { parcel, origin, until });
        Ok(until)
    }

    /// Whether this message waits here; if so, whoever asked last hears what becomes of it.
    pub(super) fn ask(&mut self, id: MessageId, origin: Origin) -> bool {
        match self.queue.iter_mut().find(|waiting| waiting.parcel.id == id) {
            Some(waiting) => {
                waiting.origin = origin;
                true
            }
            None => false,
        }
    }

    /// Takes out what waits for `name`, in the order it came.
    pub(super) fn take(&mut self, name: &[u8]) -> Vec<Waiting> {
        if self.queue.is_empty() {
            return Vec::new();
        }
        let (taken, kept) =
            std::mem::take(&mut self.queue).into_iter().partition(|waiting| waiting.parcel.to() == name);
        self.queue = kept;
        Vec::from_iter::<VecDeque<Waiting>>(taken)
    }

    /// Takes out one whose time is over.
    pub(super) fn overdue(&mut self, now: Mono) -> Option<Waiting> {
        if self.queue.front()?.until > now {
            return None;
        }
        self.queue.pop_front()
    }
}
