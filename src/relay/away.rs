//! Agents that are not here and are owed nothing, in the order in which they went: who may be forgotten, and who first.

use super::home::{AgentSlot, Presence};
use crate::base::Mono;
use crate::base::limits::RESUME_TTL;
use std::collections::BTreeSet;

/// Everyone who is away and owed nothing.
#[derive(Default)]
pub(super) struct Away {
    /// They said BYE.
    left: BTreeSet<(Mono, AgentSlot)>,
    /// Their connection broke: broadcasts reach them for a day.
    lost: BTreeSet<(Mono, AgentSlot)>,
}

impl Away {
    fn of(&mut self, presence: Presence) -> Option<(&mut BTreeSet<(Mono, AgentSlot)>, Mono)> {
        match presence {
            Presence::Live(_) => None,
            Presence::Left(at) => Some((&mut self.left, at)),
            Presence::Lost(at) => Some((&mut self.lost, at)),
        }
    }

    /// It is away in this way, and owed nothing.
    pub(super) fn insert(&mut self, slot: AgentSlot, presence: Presence) {
        if let Some((all, at)) = self.of(presence) {
            all.insert((at, slot));
        }
    }

    /// It was away in this way, and is here, or owed something, or forgotten.
    pub(super) fn remove(&mut self, slot: AgentSlot, presence: Presence) {
        if let Some((all, at)) = self.of(presence) {
            all.remove(&(at, slot));
        }
    }

    /// Those to be forgotten, the first one first: whoever cannot resume its session any more, longest away first; then
    /// whoever said BYE; then whoever was lost. The last two lose a session that they could have resumed, and nothing that
    /// is owed: otherwise whoever can connect under made-up names would shut everybody else out for a day.
    pub(super) fn in_order(&self, now: Mono) -> impl Iterator<Item = AgentSlot> {
        let ended = move |(at, _): &&(Mono, AgentSlot)| now.since(*at) >= RESUME_TTL;
        let (mut left, mut lost) = (self.left.iter().peekable(), self.lost.iter().peekable());
        std::iter::from_fn(move || {
            let from_left = match (left.peek(), lost.peek()) {
                (Some(left), Some(lost)) => !ended(lost) || left.0 <= lost.0,
                (left, _) => left.is_some(),
            };
            let next = if from_left { left.next() } else { lost.next() };
            next.map(|(_, slot)| *slot)
        })
    }

    /// Those that went at least `span` ago.
    pub(super) fn for_longer_than(&self, now: Mono, span: u64) -> Vec<AgentSlot> {
        let old = |(at, _): &&(Mono, AgentSlot)| now.since(*at) > span;
        let (left, lost) = (self.left.iter().take_while(old), self.lost.iter().take_while(old));
        left.chain(lost).map(|(_, slot)| *slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: u64) -> Mono {
        Mono(Mono::ms((100 + hours) * 3_600_000))
    }

    #[test]
    fn sessions_that_are_over_go_first_then_whoever_said_bye_then_whoever_was_lost() {
        let mut away = Away::default();
        let all = [
            (1, Presence::Lost(at(1))),
            (2, Presence::Left(at(2))),
            (3, Presence::Lost(at(30))),
            (4, Presence::Left(at(40))),
            (5, Presence::Left(at(31))),
        ];
        for (slot, presence) in all {
            away.insert(AgentSlot(slot), presence);
        }
        let order = |away: &Away| away.in_order(at(48)).map(|slot| slot.0).collect::<Vec<_>>();
        assert_eq!(order(&away), [1, 2, 5, 4, 3]);
        away.remove(AgentSlot(2), Presence::Left(at(2)));
        assert_eq!(order(&away), [1, 5, 4, 3]);
        assert_eq!(away.for_longer_than(at(48), Mono::ms(17 * 3_600_000)), [AgentSlot(1), AgentSlot(3)]);
    }
}
