//! Connections that have not said HELLO, by where they come from: who goes when all places are taken. Pure; as large as
//! its places are many.

use crate::base::SessionId;
use crate::base::keys::Source;
use std::collections::{BTreeMap, VecDeque};

/// Those of strangers, or those of the daemon's own user.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    count: usize,
    /// Of each source, the oldest first.
    sources: BTreeMap<Source, VecDeque<SessionId>>,
}

impl Crowd {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// One more.
    pub(super) fn join(&mut self, id: SessionId, source: Source) {
        self.count += 1;
        self.sources.entry(source).or_default().push_back(id);
    }

    /// It has said HELLO, or is gone.
    pub(super) fn leave(&mut self, id: SessionId, source: Source) {
        let Some(ids) = self.sources.get_mut(&source) else { return };
        // It is among the first ones as a rule: whoever came first says HELLO first, or reaches its deadline.
        let Some(index) = ids.iter().position(|here| *here == id) else { return };
        ids.remove(index);
        self.count -= 1;
        if ids.is_empty() {
            self.sources.remove(&source);
        }
    }

    /// There is one too many, and somebody from `source` has just come: the oldest of the source that has the most, if that
    /// has more than the newcomer's; none if the newcomer must go itself. So nobody can take all places for long, and of
    /// many who come from one place at once those who came first get through.
    pub(super) fn too_many(&self, source: Source) -> Option<SessionId> {
        let own = self.sources.get(&source).map_or(0, VecDeque::len);
        let most = self.sources.values().max_by_key(|ids| ids.len())?;
        if most.len() > own { most.front().copied() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_largest_crowd_goes_unless_the_newcomer_belongs_to_it() {
        let mut crowd = Crowd::default();
        let id = |slot| SessionId { slot, generation: 1 };
        let [many, few, new] = [1, 2, 3].map(Source::of_user);
        (0..5).for_each(|slot| crowd.join(id(slot), many));
        crowd.join(id(5), few);
        crowd.join(id(6), new);
        assert_eq!(crowd.too_many(new), Some(id(0)));
        assert_eq!(crowd.too_many(many), None);
        crowd.leave(id(0), many);
        crowd.leave(id(0), many);
        assert_eq!((crowd.len(), crowd.too_many(few)), (6, Some(id(1))));
        for (slot, source) in [(1, many), (2, many), (3, many), (4, many), (5, few), (6, new)] {
            crowd.leave(id(slot), source);
        }
        assert_eq!((crowd.len(), crowd.sources.len()), (0, 0));
    }
}
