//! What one shard has been handed of a rate, and the connections that wait for more. Pure.

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
    /// A question is on its way, or waits at the ledger.
    asked: bool,
    /// When the first of the tokens that were asked for comes, as the ledger says.
    pub(super) expected: Option<Mono>,
    /// Tokens that are owed by nobody who is still here.
    debt: u32,
    /// Connections that are left unread until what they owe is paid, in order.
    waiting: VecDeque<(SessionId, u32)>,
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
        match self.waiting.iter_mut().find(|(waiting, _)| *waiting == id) {
            Some((_, owed)) => *owed += 1,
            None => self.waiting.push_back((id, 1)),
        }
    }

    /// One more is owed by nobody in particular.
    pub(super) fn owe_alone(&mut self, owed: u32) {
        self.debt = self.debt.saturating_add(owed).min(DEBT_MAX);
    }

    /// The connection is gone; what it owes is owed all the same.
    pub(super) fn forget(&mut self, id: SessionId) {
        if let Some(index) = self.waiting.iter().position(|(waiting, _)| *waiting == id)
            && let Some((_, owed)) = self.waiting.remove(index)
        {
            self.owe_alone(owed);
        }
    }

    /// A connection is gone whose message was prepaid and never came: nothing is owed for it, and what was paid is back.
    pub(super) fn forget_prepaid(&mut self, id: SessionId) {
        match self.waiting.iter().position(|(waiting, _)| *waiting == id) {
            Some(index) => {
                if let Some((_, owed)) = self.waiting.remove(index) {
                    self.owe_alone(owed.saturating_sub(1));
                }
            }
            None if self.spent > 0 => (self.spent, self.tokens) = (self.spent - 1, self.tokens + 1),
            // It has been reported as spent.
            None => {}
        }
    }

    /// How many are owed before a newcomer's; none while there are tokens.
    pub(super) fn owed(&self) -> u32 {
        match self.tokens {
            0 => self.waiting.iter().fold(self.debt, |all, (_, owed)| all.saturating_add(*owed)),
            _ => 0,
        }
    }

    /// Whether nothing need be asked for: the one look that a message within the rate costs.
    pub(super) fn is_well_filled(&self) -> bool {
        self.tokens > self.low && self.waiting.is_empty() && self.debt == 0
    }

    /// What to ask the ledger for now, if anything; it counts as asked from then on.
    pub(super) fn request(&mut self) -> Option<Request> {
        if self.asked || self.is_well_filled() {
            return None;
        }
        self.asked = true;
        let wanted = self.waiting.len() as u32 + self.debt;
        Some(Request { wanted, spent: std::mem::take(&mut self.spent) })
    }

    /// The answer to what was asked for.
    pub(super) fn receive(&mut self, tokens: u32) {
        self.asked = false;
        self.expected = None;
        self.tokens = self.tokens.saturating_add(tokens);
        self.low = tokens / 4;
    }

    /// Pays what is owed, as far as the tokens go: gives the next connection that owes nothing any more.
    pub(super) fn pay(&mut self) -> Option<SessionId> {
        while self.debt > 0 && self.spend() {
            self.debt -= 1;
        }
        while !self.waiting.is_empty() && self.spend() {
            let (id, owed) = self.waiting.front_mut()?;
            *owed -= 1;
            if *owed == 0 {
                let id = *id;
                self.waiting.pop_front();
                return Some(id);
            }
        }
        None
    }

    /// Nobody is left to spend it: what was spent, and what is given back.
    pub(super) fn empty(&mut self) -> (u32, u32) {
        (std::mem::take(&mut self.spent), std::mem::take(&mut self.tokens))
    }

    /// Who waits, in order.
    pub(super) fn waiting(&self) -> impl Iterator<Item = SessionId> {
        self.waiting.iter().map(|(id, _)| *id)
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
    fn who_waits_is_paid_for_in_order_and_debts_of_the_gone_first() {
        let mut purse = Purse::default();
        for slot in [1, 2, 2, 3] {
            assert!(!purse.spend());
            purse.owe(id(slot));
        }
        purse.forget(id(1));
        assert_eq!(purse.request(), Some(Request { wanted: 3, spent: 0 }));
        purse.receive(2);
        assert_eq!(purse.pay(), None, "one for who is gone, one of two for the next");
        purse.request();
        purse.receive(2);
        assert_eq!((purse.pay(), purse.pay(), purse.pay()), (Some(id(2)), Some(id(3)), None));
        assert_eq!(purse.empty(), (2, 0));
    }
}
