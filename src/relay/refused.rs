//! Messages that this home refused lately: asked whether one was accepted, it must not say yes while the refusal is still
//! on its way to the sender. A table of fixed size; where two meet, the older is forgotten.

use crate::base::MessageId;

/// Places in the table. A refusal must outlive one mail's way to another shard, no more.
const PLACES: usize = 4096;

/// The refused ones.
#[derive(Default)]
pub(super) struct RefusedLately {
    /// Empty until something is refused.
    places: Vec<MessageId>,
}

impl RefusedLately {
    pub(super) fn insert(&mut self, id: MessageId) {
        if self.places.is_empty() {
            self.places.resize(PLACES, MessageId::default());
        }
        self.places[place(id)] = id;
    }

    /// It was sent again and is accepted now.
    pub(super) fn remove(&mut self, id: MessageId) {
        if self.contains(id) {
            self.places[place(id)] = MessageId::default();
        }
    }

    pub(super) fn contains(&self, id: MessageId) -> bool {
        self.places.get(place(id)) == Some(&id)
    }
}

/// Sender ids are uniform already, and a sender's numbers lie side by side.
fn place(id: MessageId) -> usize {
    (id.sender.0.wrapping_add(id.number) % PLACES as u64) as usize
}
