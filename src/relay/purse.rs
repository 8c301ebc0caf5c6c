//! What one shard has been handed of a rate, and the connections that wait for more. Pure.

use super::fund::Rate;
use crate::base::{Mono, SessionId};
use std::collections::VecDeque;

/// Debts kept of connections that are gone, or that cannot be left unread.
const DEBT_MAX: u32 = 1024;

/// Tokens, and who waits for them.
#[derive(Debug, Default)]
pub(super) struct Purse {
    tokens: u32,
    /// Spent and not reported yet.
    spent: u32,
    /// More is asked for when fewer are left than this: a quarter of what came last.
    low: u32,
    /// A question is on its way, for so many.
    asked: Option<u32>,
    /// What comes without being asked for again, in order: so many one behind the other, the first of them at this time.
    coming: VecDeque<(u32, Mono)>,
    /// Connections that are left unread until what they owe is paid, in order; and what is owed by nobody who is still here.
    waiting: VecDeque<(Option<SessionId>, u32)>,
    /// Sum over `waiting`.
    owing: u32,
    /// The same of those that are gone.
    debt: u32,
}

/// What the ledger is asked and told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) wanted: u32,
    pub(super) spent: u32,
}

impl Purse {
    /// Pays for one message; says whether there was a token for it. If not, somebody must owe it.
    pub(super) fn spend(&mut self) -> bool {
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        self.spent += 1;
        true
    }

    /// This connection owes one; it waits from now on.
    pub(super) fn owe(&mut self, id: SessionId) {
        self.owing += 1;
        match self.waiting.iter_mut().find(|(waiting, _)| *waiting == Some(id)) {
            Some((_, owed)) => *owed += 1,
            None => self.waiting.push_back((Some(id), 1)),
        }
    }

    /// One more is owed by nobody in particular.
    pub(super) fn owe_alone(&mut self) {
        if self.debt >= DEBT_MAX {
            return;
        }
        (self.owing, self.debt) = (self.owing + 1, self.debt + 1);
        match self.waiting.back_mut() {
            Some((None, owed)) => *owed += 1,
            _ => self.waiting.push_back((None, 1)),
        }
    }

    /// The connection is gone; what it owes is owed all the same, in its place.
    pub(super) fn forget(&mut self, id: SessionId) {
        self.leave(id, 0);
    }

    /// A connection is gone whose message was prepaid and never came: nothing is owed for it, and what was paid is back.
    pub(super) fn forget_prepaid(&mut self, id: SessionId) {
        if !self.leave(id, 1) && self.spent > 0 {
            // Else it has been reported as spent.
            (self.spent, self.tokens) = (self.spent - 1, self.tokens + 1);
        }
    }

    /// So many that it owes are not owed any more, the others by nobody; says whether it owed any.
    fn leave(&mut self, id: SessionId, less: u32) -> bool {
        let Some(index) = self.waiting.iter().position(|(waiting, _)| *waiting == Some(id)) else { return false };
        let (holder, owed) = &mut self.waiting[index];
        let kept = owed.saturating_sub(less).min(DEBT_MAX - self.debt);
        self.owing -= *owed - kept;
        self.debt += kept;
        (*holder, *owed) = (None, kept);
        if kept == 0 {
            self.waiting.remove(index);
        }
        true
    }

    /// How many are owed before a newcomer's; none while there are tokens.
    pub(super) fn owed(&self) -> u32 {
        if self.tokens == 0 { self.owing } else { 0 }
    }

    /// Whether nothing need be asked for: the one look that a message within the rate costs.
    pub(super) fn is_well_filled(&self) -> bool {
        self.tokens > self.low && self.waiting.is_empty()
    }

    /// What to ask the ledger for now, if anything; it counts as asked from then on.
    pub(super) fn request(&mut self) -> Option<Request> {
        if self.asked.is_some() || self.is_well_filled() {
            return None;
        }
        let coming = self.coming.iter().fold(0, |all: u32, (count, _)| all.saturating_add(*count));
        let wanted = self.owing.saturating_sub(coming);
        if wanted == 0 && coming > 0 {
            return None;
        }
        self.asked = Some(wanted.max(1));
        Some(Request { wanted, spent: std::mem::take(&mut self.spent) })
    }

    /// The answer to what was asked for: here is some.
    pub(super) fn receive(&mut self, tokens: u32) {
        self.asked = None;
        self.fill(tokens);
    }

    /// The answer to what was asked for: it comes, the first of it at this time.
    pub(super) fn expect(&mut self, first: Mono) {
        if let Some(count) = self.asked.take() {
            self.coming.push_back((count, first));
        }
    }

    /// Some of what was to come is here.
    pub(super) fn arrive(&mut self, tokens: u32, rate: Rate) {
        let mut left = tokens;
        while left > 0
            && let Some((count, first)) = self.coming.front_mut()
        {
            let here = left.min(*count);
            (*count, *first) = (*count - here, *first + rate.time_for(u64::from(here)));
            left -= here;
            if *count == 0 {
                self.coming.pop_front();
            }
        }
        self.fill(tokens);
    }

    fn fill(&mut self, tokens: u32) {
        self.tokens = self.tokens.saturating_add(tokens);
        self.low = tokens / 4;
    }

    /// Pays what is owed, as far as the tokens go: gives the next connection that owes nothing any more.
    pub(super) fn pay(&mut self) -> Option<SessionId> {
        while !self.waiting.is_empty() && self.spend() {
            let (holder, owed) = self.waiting.front_mut()?;
            *owed -= 1;
            self.owing -= 1;
            self.debt -= u32::from(holder.is_none());
            if *owed == 0 {
                let holder = *holder;
                self.waiting.pop_front();
                if holder.is_some() {
                    return holder;
                }
            }
        }
        None
    }

    /// What the ledger is to be told of what was spent here, if that is more than it may be ignorant of.
    pub(super) fn unreported(&mut self, most: u64) -> Option<u32> {
        (u64::from(self.spent) > most).then(|| std::mem::take(&mut self.spent))
    }

    /// Nobody is left to spend it: what was spent, and what is given back.
    pub(super) fn empty(&mut self) -> (u32, u32) {
        (std::mem::take(&mut self.spent), std::mem::take(&mut self.tokens))
    }

    /// Who waits, in order.
    pub(super) fn waiting(&self) -> impl Iterator<Item = SessionId> {
        self.waiting.iter().filter_map(|(holder, _)| *holder)
    }

    /// Who waits, in order, and when what it owes is paid; of those only for whom the ledger has said so.
    pub(super) fn dues(&self, rate: Rate) -> Vec<(SessionId, Mono)> {
        let mut coming = self.coming.iter();
        let (mut run, mut before, mut through) = (coming.next(), 0, 0);
        let mut dues = Vec::new();
        for (holder, owed) in &self.waiting {
            through += u64::from(*owed);
            while let Some((count, _)) = run
                && through > before + u64::from(*count)
            {
                before += u64::from(*count);
                run = coming.next();
            }
            let Some((_, first)) = run else { break };
            dues.extend(holder.map(|id| (id, *first + rate.time_for(through - before - 1))));
        }
        dues
    }

    /// When all that is owed is paid, as far as the ledger has said so.
    pub(super) fn last_due(&self, rate: Rate) -> Option<Mono> {
        self.coming.back().map(|(count, first)| *first + rate.time_for(u64::from(*count) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> SessionId {
        SessionId { slot, generation: 0 }
    }

    #[test]
    fn more_is_asked_for_ahead_of_need_and_once() {
        let mut purse = Purse::default();
        assert_eq!(purse.request(), Some(Request { wanted: 0, spent: 0 }));
        assert_eq!(purse.request(), None);
        purse.receive(8);
        let paid = (0..6).filter(|_| purse.spend()).count();
        assert_eq!((paid, purse.request()), (6, Some(Request { wanted: 0, spent: 6 })));
    }

    #[test]
    fn who_waits_is_paid_for_in_order_and_debts_of_the_gone_in_their_place() {
        let mut purse = Purse::default();
        for slot in [1, 2, 2, 3] {
            assert!(!purse.spend());
            purse.owe(id(slot));
        }
        purse.forget(id(2));
        assert_eq!(purse.request(), Some(Request { wanted: 4, spent: 0 }));
        purse.receive(2);
        assert_eq!((purse.pay(), purse.pay()), (Some(id(1)), None), "one of two for who is gone");
        assert_eq!(purse.request(), Some(Request { wanted: 2, spent: 2 }));
        purse.receive(4);
        assert_eq!((purse.pay(), purse.pay(), purse.owed()), (Some(id(3)), None, 0));
        assert_eq!(purse.empty(), (2, 2));
    }

    #[test]
    fn what_comes_is_not_asked_for_again_and_each_one_knows_when_it_comes() {
        let (rate, mut purse) = (Rate::per_minute(60), Purse::default());
        let at = |seconds: u64| Mono(Mono::ms(1_000 * seconds));
        purse.owe(id(1));
        assert_eq!(purse.request(), Some(Request { wanted: 1, spent: 0 }));
        purse.owe(id(2));
        purse.owe(id(3));
        assert_eq!(purse.request(), None, "one question at a time");
        purse.expect(at(1));
        assert_eq!(purse.dues(rate), [(id(1), at(1))]);
        assert_eq!(purse.request(), Some(Request { wanted: 2, spent: 0 }));
        purse.expect(at(5));
        assert_eq!(purse.request(), None);
        assert_eq!(purse.dues(rate), [(id(1), at(1)), (id(2), at(5)), (id(3), at(6))]);
        purse.arrive(1, rate);
        assert_eq!((purse.pay(), purse.pay()), (Some(id(1)), None));
        purse.arrive(1, rate);
        assert_eq!((purse.pay(), purse.dues(rate)), (Some(id(2)), vec![(id(3), at(6))]));
        assert_eq!(purse.last_due(rate), Some(at(6)));
    }
}
