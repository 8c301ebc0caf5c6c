//! Fixed-capacity slots with generations: a stale id finds nothing, a full table says so.

use super::SessionId;

/// A table of at most `capacity` values, each found by the id that `insert` gave.
/// Law: a slot's generation grows by one whenever its value is removed, so an old id never finds a new value.
pub struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    capacity: usize,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Table<T> {
    /// An empty table; memory grows with use, up to `capacity` values.
    pub fn new(capacity: usize) -> Table<T> {
        assert!(capacity < u32::MAX as usize, "slots are 32-bit");
        Table { slots: Vec::new(), free: Vec::new(), capacity }
    }

    /// How many values are here.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts `value` into a free slot; gives it back when the table is full.
    pub fn insert(&mut self, value: T) -> Result<SessionId, T> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.capacity => {
                self.slots.push(Slot { generation: 0, value: None });
                (self.slots.len() - 1) as u32
            }
            None => return Err(value),
        };
        let entry = &mut self.slots[slot as usize];
        entry.value = Some(value);
        Ok(SessionId { slot, generation: entry.generation })
    }

    /// The value of `id`, if it is still the same one.
    pub fn find(&self, id: SessionId) -> Option<&T> {
        let slot = self.slots.get(id.slot as usize)?;
        if slot.generation == id.generation { slot.value.as_ref() } else { None }
    }

    /// The value of `id`, to change, if it is still the same one.
    pub fn find_mut(&mut self, id: SessionId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.value.as_mut() } else { None }
    }

    /// Takes the value of `id` out; the id is stale from now on.
    pub fn remove(&mut self, id: SessionId) -> Option<T> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        Some(value)
    }

    /// Every id and value, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, entry)| {
            let id = SessionId { slot: slot as u32, generation: entry.generation };
            entry.value.as_ref().map(|value| (id, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_finds_nothing_and_a_full_table_says_so() {
        let mut table = Table::new(2);
        let first = table.insert('a').expect("room");
        let second = table.insert('b').expect("room");
        assert_eq!(table.insert('c'), Err('c'));
        assert_eq!(table.remove(first), Some('a'));
        assert_eq!(table.remove(first), None);
        let third = table.insert('c').expect("room");
        assert_eq!(third.slot, first.slot);
        assert_eq!(table.find(first), None);
        assert_eq!((table.find(second), table.find(third), table.len()), (Some(&'b'), Some(&'c'), 2));
    }
}
