//! What was sent under names that nobody has met: the command line sends under any name. Here, so that the same label is the
//! same message for them too; and of earlier processes, as far as it was committed.

use super::home::Numbers;
use super::memory::{NAMELESS_MAX, SentMarks};
use crate::base::AgentId;
use std::collections::{BTreeMap, VecDeque};

/// Numbers by sender. Those who sent first are forgotten first.
#[derive(Default)]
pub(super) struct Strangers {
    /// As an earlier process left them, until one of them is asked for: small, and many of them never are.
    restored: BTreeMap<AgentId, SentMarks>,
    numbers: BTreeMap<AgentId, Numbers>,
    /// The keys of `numbers`, oldest first; some have been met since.
    order: VecDeque<AgentId>,
}

impl Strangers {
    /// What the store has kept of one.
    pub(super) fn restore(&mut self, agent: AgentId, marks: SentMarks) {
        self.restored.insert(agent, marks);
    }

    /// Of this one, who is known from now on if it was not.
    pub(super) fn numbers(&mut self, agent: AgentId) -> &mut Numbers {
        if !self.numbers.contains_key(&agent) {
            while self.order.len() >= NAMELESS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.numbers.remove(&oldest);
            }
            self.order.push_back(agent);
        }
        let restored = &mut self.restored;
        let fresh = || restored.remove(&agent).map(Numbers::restored).unwrap_or_default();
        self.numbers.entry(agent).or_insert_with(fresh)
    }

    /// One of them has a name now, and takes what it has sent along.
    pub(super) fn meet(&mut self, agent: AgentId) -> Option<Numbers> {
        self.order.retain(|known| *known != agent);
        self.numbers.remove(&agent).or_else(|| self.restored.remove(&agent).map(Numbers::restored))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::number_of_label;

    #[test]
    fn a_label_is_taken_once_by_each_of_the_last_senders_also_over_a_restart() {
        let mut strangers = Strangers::default();
        let (label, agent) = (number_of_label(b"one"), |number: usize| AgentId(number as u64));
        let mut marks = SentMarks::default();
        marks.take(label);
        strangers.restore(agent(0), marks);
        assert!(!strangers.numbers(agent(0)).take_label(label), "an earlier process has taken it");
        for number in 1..=NAMELESS_MAX {
            assert!(strangers.numbers(agent(number)).take_label(label));
        }
        assert!(!strangers.numbers(agent(NAMELESS_MAX)).take_label(label));
        assert!(strangers.numbers(agent(0)).take_label(label), "the oldest has made room");
        let mut met = strangers.meet(agent(NAMELESS_MAX)).unwrap();
        assert!(!met.take_label(label) && strangers.meet(agent(NAMELESS_MAX)).is_none());
    }
}
