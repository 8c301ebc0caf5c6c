//! Rates of the tier and of keys: each SEND is paid for out of this shard's purse. Who finds it empty is heard once more
//! and then left unread until the debt is paid: nothing is lost, and whoever sends too fast slows down.

use super::Relay;
use super::counters::KeyUse;
use super::event::{Account, Mail};
use super::fund::{Dole, Fund, Rate};
use super::outbox::{Outbox, Output};
use super::purse::{Purse, Request};
use super::seats::LEDGER;
use super::session::Session;
use super::timers::Timer;
use crate::base::keys::{Grant, KeyId, Scopes};
use crate::base::tier::Entitled;
use crate::base::{Mono, Now, RefuseReason, SessionId, ShardId};
use crate::wire::{Busy, Frame};
use std::collections::BTreeMap;

/// How often a connection that is left unread is told so.
const TOLD_EVERY: u64 = Mono::ms(1_000);
/// What a shard that has not heard yet that there is no limit any more is handed.
const PLENTY: u32 = 64;
/// As many may be owed before the command line, which is never left unread, is told to come again.
const SUBMITTED_ON_CREDIT: u32 = 64;

/// The purses of one shard.
#[derive(Default)]
pub(super) struct Meters {
    /// Whether there is any rate to keep: the one look that relaying without limits costs.
    pub(super) any: bool,
    daemon: Option<Purse>,
    keys: Vec<KeyMeter>,
    by_key: BTreeMap<KeyId, u32>,
    /// Connections that are left unread.
    pub(super) paused: u32,
    /// Whether a timer is running for telling them.
    telling: bool,
}

/// A key that was used here.
struct KeyMeter {
    used: KeyUse,
    per_minute: u32,
    /// Connections under it.
    sessions: u32,
    purse: Purse,
}

/// The funds of the whole daemon; at shard 0 alone.
pub(super) struct Funds {
    daemon: Option<Fund>,
    keys: BTreeMap<KeyId, (u32, Fund)>,
    /// When a timer ends for whoever waits.
    served_at: Mono,
}

/// One of this shard's purses. As a bit: why a connection is left unread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pocket {
    Daemon,
    Key(u32),
}

impl Pocket {
    /// Beside the bits of pockets: why a connection that has said too much of other things is left unread.
    pub(super) const TOIL: u8 = 4;
    /// The same: why one that sends while the writer is behind is.
    pub(super) const PRESS: u8 = 8;

    fn place(self) -> usize {
        match self {
            Pocket::Daemon => 0,
            Pocket::Key(_) => 1,
        }
    }

    fn bit(self) -> u8 {
        match self {
            Pocket::Daemon => 1,
            Pocket::Key(_) => 2,
        }
    }
}

impl Meters {
    /// Those of a shard that just started.
    pub(super) fn new(per_second: Option<u32>) -> Meters {
        Meters { any: per_second.is_some(), daemon: per_second.map(|_| Purse::default()), ..Meters::default() }
    }

    fn purse(&mut self, pocket: Pocket) -> Option<&mut Purse> {
        match pocket {
            Pocket::Daemon => self.daemon.as_mut(),
            Pocket::Key(index) => self.keys.get_mut(index as usize).map(|meter| &mut meter.purse),
        }
    }

    fn account(&self, pocket: Pocket) -> Account {
        match pocket {
            Pocket::Daemon => Account::Daemon,
            Pocket::Key(index) => {
                let meter = &self.keys[index as usize];
                Account::Key { key: meter.used.key, per_minute: meter.per_minute }
            }
        }
    }

    pub(super) fn uses(&self) -> Vec<KeyUse> {
        self.keys.iter().map(|meter| meter.used).collect()
    }
}

impl Relay {
    /// Whether nothing more of this connection may be handed over: what was read waits until `Output::Resume`.
    pub fn is_paused(&self, id: SessionId) -> bool {
        self.meters.paused > 0 && self.sessions.find(id).is_some_and(|session| session.paused != 0)
    }

    /// The licence grants something else. Who is connected stays connected.
    pub(super) fn on_entitled(&mut self, now: Now, entitlement: Entitled, outbox: &mut Outbox) {
        self.license = super::hello::license_of(&entitlement);
        let rate = entitlement.messages_per_second;
        self.options.entitlement = entitlement;
        self.limit(now, rate, outbox);
    }

    /// So many messages per second from now on.
    pub(super) fn limit(&mut self, now: Now, per_second: Option<u32>, outbox: &mut Outbox) {
        if self.keeps_ledger() {
            match (per_second.map(Rate::per_second), &mut self.funds.daemon) {
                (None, fund) => *fund = None,
                (Some(rate), Some(fund)) => fund.rerate(now.mono, rate),
                (Some(rate), fund) => *fund = Some(Fund::full(now.mono, rate)),
            }
        }
        if per_second.is_some() {
            self.meters.daemon.get_or_insert_default();
        } else if let Some(purse) = self.meters.daemon.take() {
            for id in purse.waiting() {
                self.unpause(now, id, Pocket::Daemon, outbox);
            }
        }
        self.meters.any = self.meters.daemon.is_some() || !self.meters.keys.is_empty();
        self.serve(now, outbox);
    }

    /// A connection came in with this grant: its messages count for the key.
    pub(super) fn open_meter(&mut self, now: Now, id: SessionId, grant: &Grant) {
        let meters = &mut self.meters;
        let index = match meters.by_key.get(&grant.key) {
            Some(index) => *index,
            None => {
                let used = KeyUse { key: grant.key, messages: 0, last_used_ms: 0 };
                let fresh = KeyMeter { used, per_minute: 0, sessions: 0, purse: Purse::default() };
                let keys = &self.options.keys;
                // Places of keys that are gone are used again.
                let is_free = |meter: &KeyMeter| meter.sessions == 0 && keys.find(meter.used.key).is_none();
                let index = match meters.keys.iter().position(is_free) {
                    Some(index) => {
                        let old = std::mem::replace(&mut meters.keys[index], fresh);
                        meters.by_key.remove(&old.used.key);
                        index as u32
                    }
                    None => {
                        meters.keys.push(fresh);
                        (meters.keys.len() - 1) as u32
                    }
                };
                meters.by_key.insert(grant.key, index);
                index
            }
        };
        let meter = &mut meters.keys[index as usize];
        (meter.per_minute, meter.used.last_used_ms) = (grant.per_minute, now.wall_ms);
        meter.sessions += 1;
        meters.any = true;
        if let Some(session) = self.sessions.find_mut(id) {
            session.key = Some(index);
        }
    }

    /// The connection is gone, with what it had of the key and of its debts.
    pub(super) fn close_meter(&mut self, id: SessionId, session: &Session, outbox: &mut Outbox) {
        let (key, paused, prepaid) = (session.key, session.paused, session.prepaid);
        for pocket in [Some(Pocket::Daemon), key.map(Pocket::Key)].into_iter().flatten() {
            let Some(purse) = self.meters.purse(pocket) else { continue };
            if prepaid & pocket.bit() != 0 {
                purse.forget_prepaid(id);
                self.pay(self.now, pocket, outbox);
            } else if paused & pocket.bit() != 0 {
                purse.forget(id);
            }
        }
        self.meters.paused -= u32::from(paused != 0);
        let Some(index) = key else { return };
        let meter = &mut self.meters.keys[index as usize];
        meter.sessions -= 1;
        if meter.sessions == 0 {
            let (spent, unused) = meter.purse.empty();
            let account = self.meters.account(Pocket::Key(index));
            self.report(account, spent, unused, outbox);
        }
    }

    /// Asks for tokens before they are needed.
    pub(super) fn prefetch(&mut self, now: Now, key: Option<u32>, outbox: &mut Outbox) {
        if self.meters.any {
            self.refill(now, Pocket::Daemon, outbox);
            key.into_iter().for_each(|index| self.refill(now, Pocket::Key(index), outbox));
        }
    }

    /// A connection is welcome under a key: where others of that key wait already its first message is paid for before it
    /// is read. Otherwise each new connection would get one message on credit. (Of the tier's rate that is no concern:
    /// there are no more connections in debt than seats.)
    pub(super) fn prepay(&mut self, now: Now, id: SessionId, outbox: &mut Outbox) {
        if !self.meters.any {
            return;
        }
        let Some(session) = self.sessions.find(id) else { return };
        if !session.scopes.contains(Scopes::SEND) {
            return;
        }
        let Some(pocket) = session.key.map(Pocket::Key) else { return };
        let Some(purse) = self.meters.purse(pocket).filter(|purse| purse.owed() > 0) else { return };
        purse.owe(id);
        if let Some(session) = self.sessions.find_mut(id) {
            session.prepaid |= pocket.bit();
        }
        self.pause(id, pocket, outbox);
        self.refill(now, pocket, outbox);
        self.tell_paused(now, pocket, outbox);
    }

    /// A SEND is taken from this connection, which came in with this key and prepaid so much: somebody pays.
    pub(super) fn charge(&mut self, now: Now, id: SessionId, key: Option<u32>, prepaid: u8, outbox: &mut Outbox) {
        if self.meters.daemon.is_some() {
            self.charge_pocket(now, id, Pocket::Daemon, prepaid, outbox);
        }
        if let Some(index) = key {
            let used = &mut self.meters.keys[index as usize].used;
            (used.messages, used.last_used_ms) = (used.messages + 1, now.wall_ms);
            self.charge_pocket(now, id, Pocket::Key(index), prepaid, outbox);
        }
    }

    fn charge_pocket(&mut self, now: Now, id: SessionId, pocket: Pocket, prepaid: u8, outbox: &mut Outbox) {
        if prepaid & pocket.bit() != 0 {
            if let Some(session) = self.sessions.find_mut(id) {
                session.prepaid &= !pocket.bit();
            }
            return;
        }
        let Some(purse) = self.meters.purse(pocket) else { return };
        let paid = purse.spend();
        if paid && purse.is_well_filled() {
            return;
        }
        if !paid {
            purse.owe(id);
            self.pause(id, pocket, outbox);
        }
        self.refill(now, pocket, outbox);
        if !paid {
            self.tell_paused(now, pocket, outbox);
        }
    }

    /// A message of the command line: paid for, too, but its connection is read on; agents wait for it instead. When too
    /// much is owed already: in how many milliseconds it is worth trying again.
    pub(super) fn charge_submitted(&mut self, now: Now, outbox: &mut Outbox) -> Result<(), u32> {
        let rate = self.rate(Pocket::Daemon);
        let Some(purse) = self.meters.purse(Pocket::Daemon) else { return Ok(()) };
        let owed = purse.owed();
        if owed >= SUBMITTED_ON_CREDIT {
            let known = purse.last_due(rate).map(|due| due.since(now.mono));
            return Err(milliseconds(known.unwrap_or_else(|| rate.time_for(u64::from(owed)))));
        }
        if !purse.spend() {
            purse.owe_alone();
        }
        self.refill(now, Pocket::Daemon, outbox);
        Ok(())
    }

    fn rate(&self, pocket: Pocket) -> Rate {
        match self.meters.account(pocket) {
            Account::Key { per_minute, .. } => Rate::per_minute(per_minute),
            Account::Daemon => Rate::per_second(self.options.entitlement.messages_per_second.unwrap_or(u32::MAX)),
        }
    }

    fn pause(&mut self, id: SessionId, pocket: Pocket, outbox: &mut Outbox) {
        if let Some(session) = self.sessions.find_mut(id)
            && session.paused & pocket.bit() == 0
        {
            session.due[pocket.place()] = Mono(0);
        }
        self.pause_for(id, pocket.bit(), outbox);
    }

    /// Leaves a connection unread, for this reason as well.
    pub(super) fn pause_for(&mut self, id: SessionId, reason: u8, outbox: &mut Outbox) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        if session.paused == 0 {
            self.meters.paused += 1;
            self.counters.pauses += 1;
            outbox.outputs.push(Output::Pause { session: id });
        }
        session.paused |= reason;
    }

    fn unpause(&mut self, now: Now, id: SessionId, pocket: Pocket, outbox: &mut Outbox) {
        self.unpause_for(now, id, pocket.bit(), outbox);
    }

    /// This reason is gone.
    pub(super) fn unpause_for(&mut self, now: Now, id: SessionId, reason: u8, outbox: &mut Outbox) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        if session.paused == 0 {
            return;
        }
        session.paused &= !reason;
        if session.paused == 0 {
            // It was not silent: it was not heard.
            (session.last_heard, session.pinged_at, session.resumed_at) = (now.mono, None, now.mono);
            self.meters.paused -= 1;
            outbox.outputs.push(Output::Resume { session: id });
        }
    }

    /// Asks for more when little is left, and hands on what comes at once.
    fn refill(&mut self, now: Now, pocket: Pocket, outbox: &mut Outbox) {
        // Idle purses would hold all there is of a low rate: nothing is asked for ahead of need.
        let (rate, shards) = (self.rate(pocket), self.options.shards);
        let low = rate.is_low(shards);
        while let Some(purse) = self.meters.purse(pocket) {
            let nothing_needed = low && purse.owed() == 0;
            let Some(request) = (if nothing_needed { None } else { purse.request() }) else {
                // What comes without being asked for is spent without being asked: others may wait until that is known.
                if let Some(spent) = purse.unreported(rate.share(shards)) {
                    let account = self.meters.account(pocket);
                    self.report(account, spent, 0, outbox);
                }
                return;
            };
            let account = self.meters.account(pocket);
            if !self.keeps_ledger() {
                let mail = Mail::TokensAsked { account, wanted: request.wanted, spent: request.spent };
                return outbox.mails.push((LEDGER, mail));
            }
            match self.dole(now, LEDGER, account, request) {
                Dole::Tokens(tokens) => self.put(now, pocket, tokens, true, outbox),
                Dole::Later(wait) => self.expect(now, pocket, wait, outbox),
            }
        }
    }

    fn put(&mut self, now: Now, pocket: Pocket, tokens: u32, answers: bool, outbox: &mut Outbox) {
        let rate = self.rate(pocket);
        let Some(purse) = self.meters.purse(pocket) else { return };
        match answers {
            true => purse.receive(tokens),
            false => purse.arrive(tokens, rate),
        }
        self.pay(now, pocket, outbox);
    }

    fn pay(&mut self, now: Now, pocket: Pocket, outbox: &mut Outbox) {
        while let Some(id) = self.meters.purse(pocket).and_then(Purse::pay) {
            self.unpause(now, id, pocket, outbox);
        }
    }

    fn expect(&mut self, now: Now, pocket: Pocket, wait: u64, outbox: &mut Outbox) {
        if let Some(purse) = self.meters.purse(pocket) {
            purse.expect(now.mono + wait);
            self.tell_paused(now, pocket, outbox);
        }
    }

    /// Tells connections that wait how long, each at most once a second.
    fn tell_paused(&mut self, now: Now, pocket: Pocket, outbox: &mut Outbox) {
        if self.meters.paused == 0 {
            return;
        }
        let rate = self.rate(pocket);
        let Some(purse) = self.meters.purse(pocket) else { return };
        let dues = purse.dues(rate);
        if dues.is_empty() {
            return;
        }
        for (id, due) in dues {
            let Some(session) = self.sessions.find_mut(id) else { continue };
            session.due[pocket.place()] = due;
            let pockets = [(Pocket::Daemon.bit(), session.due[0]), (Pocket::Key(0).bit(), session.due[1])];
            let waits = || pockets.into_iter().filter(|(bit, _)| session.paused & bit != 0).map(|(_, due)| due);
            // Before it knows of both nobody can say how long.
            if waits().all(|due| due > Mono(0))
                && let Some(last) = waits().max()
            {
                self.tell_slow(now, id, last.since(now.mono), outbox);
            }
        }
        if !self.meters.telling {
            self.meters.telling = true;
            self.timers.set(now.mono + TOLD_EVERY, Timer::Paused);
        }
    }

    /// Tells a connection that it is left unread, and how long; at most once a second.
    pub(super) fn tell_slow(&mut self, now: Now, id: SessionId, wait: u64, outbox: &mut Outbox) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        if session.told_at.is_some_and(|at| now.mono.since(at) < TOLD_EVERY) {
            return;
        }
        session.told_at = Some(now.mono);
        let busy = Busy {
            number: 0,
            label: "".into(),
            reason: RefuseReason::RateLimited,
            retry_after_ms: milliseconds(wait),
            queue_depth: 0,
            recipient: "".into(),
        };
        outbox.reply(id, Frame::Busy(Box::new(busy)));
    }

    /// A second has passed.
    pub(super) fn tell_all_paused(&mut self, now: Now, outbox: &mut Outbox) {
        self.meters.telling = false;
        if self.meters.paused > 0 {
            self.meters.telling = true;
            self.timers.set(now.mono + TOLD_EVERY, Timer::Paused);
            self.tell_paused(now, Pocket::Daemon, outbox);
            for index in 0..self.meters.keys.len() as u32 {
                self.tell_paused(now, Pocket::Key(index), outbox);
            }
        }
    }

    /// Tokens have come from the ledger, or the word that they come later; as the answer to the last question or as what
    /// earlier ones were answered with.
    pub(super) fn on_tokens(
        &mut self,
        now: Now,
        account: Account,
        (tokens, wait, answers): (u32, u64, bool),
        outbox: &mut Outbox,
    ) {
        let pocket = match account {
            Account::Daemon => self.meters.daemon.as_ref().map(|_| Pocket::Daemon),
            Account::Key { key, .. } => self.meters.by_key.get(&key).copied().map(Pocket::Key),
        };
        match pocket {
            Some(pocket) if tokens > 0 => self.put(now, pocket, tokens, answers, outbox),
            Some(pocket) => self.expect(now, pocket, wait, outbox),
            None => return self.report(account, 0, tokens, outbox),
        }
        match pocket {
            Some(Pocket::Key(index)) if self.meters.keys[index as usize].sessions == 0 => {
                let (spent, unused) = self.meters.keys[index as usize].purse.empty();
                self.report(account, spent, unused, outbox);
            }
            Some(pocket) => self.refill(now, pocket, outbox),
            None => {}
        }
    }

    /// Nobody here can spend it any more.
    fn report(&mut self, account: Account, spent: u32, unused: u32, outbox: &mut Outbox) {
        if spent + unused == 0 {
            return;
        }
        if self.keeps_ledger() {
            self.on_tokens_left(self.now, account, spent, unused, outbox);
        } else {
            outbox.mails.push((LEDGER, Mail::TokensLeft { account, spent, unused }));
        }
    }

    pub(super) fn on_tokens_left(&mut self, now: Now, account: Account, spent: u32, unused: u32, outbox: &mut Outbox) {
        if let Some(fund) = self.funds.find(account) {
            fund.report(now.mono, spent, unused);
        }
        if unused > 0 {
            self.serve(now, outbox);
        }
    }

    /// The ledger is asked by another shard.
    pub(super) fn on_tokens_asked(
        &mut self,
        now: Now,
        from: ShardId,
        account: Account,
        request: Request,
        outbox: &mut Outbox,
    ) {
        let (tokens, wait) = match self.dole(now, from, account, request) {
            Dole::Tokens(tokens) => (tokens, 0),
            Dole::Later(wait) => (0, wait),
        };
        outbox.mails.push((from, Mail::Tokens { account, tokens, wait, answers: true }));
    }

    fn dole(&mut self, now: Now, shard: ShardId, account: Account, request: Request) -> Dole {
        let Some(fund) = self.funds.open(now.mono, account) else {
            // It has not heard yet that there is no limit any more.
            return Dole::Tokens(request.wanted.max(PLENTY));
        };
        fund.report(now.mono, request.spent, 0);
        let dole = fund.ask(now.mono, shard, request.wanted, self.options.shards);
        let next = fund.next();
        self.serve_after(now, next);
        dole
    }

    /// Hands out what has come meanwhile to the shards that wait.
    pub(super) fn serve(&mut self, now: Now, outbox: &mut Outbox) {
        if !self.keeps_ledger() {
            return;
        }
        if self.funds.served_at <= now.mono {
            self.funds.served_at = Mono(u64::MAX);
        }
        let mut doles = Vec::new();
        let mut next = None;
        let shards = self.options.shards;
        let mut serve = |account: Account, fund: &mut Fund| {
            while let Some((shard, tokens)) = fund.serve(now.mono, shards) {
                doles.push((shard, account, tokens));
            }
            next = [next, fund.next()].into_iter().flatten().min();
        };
        if let Some(fund) = &mut self.funds.daemon {
            serve(Account::Daemon, fund);
        }
        self.funds.keys.retain(|key, (per_minute, fund)| {
            serve(Account::Key { key: *key, per_minute: *per_minute }, fund);
            !fund.is_idle(now.mono)
        });
        self.serve_after(now, next);
        for (shard, account, tokens) in doles {
            if shard == LEDGER {
                self.on_tokens(now, account, (tokens, 0, false), outbox);
            } else {
                outbox.mails.push((shard, Mail::Tokens { account, tokens, wait: 0, answers: false }));
            }
        }
    }

    /// Of keys that are gone nothing is kept, unless a shard waits: it may have heard of a key before this one.
    pub(super) fn forget_funds(&mut self) {
        let keys = &self.options.keys;
        self.funds.keys.retain(|key, (_, fund)| keys.find(*key).is_some() || fund.next().is_some());
    }

    fn serve_after(&mut self, now: Now, wait: Option<u64>) {
        if let Some(wait) = wait
            && now.mono + wait < self.funds.served_at
        {
            self.funds.served_at = now.mono + wait;
            self.timers.set(now.mono + wait, Timer::Funds);
        }
    }
}

fn milliseconds(wait: u64) -> u32 {
    u32::try_from(wait.div_ceil(1_000_000)).unwrap_or(u32::MAX).max(1)
}

impl Funds {
    /// Those of a daemon that just started.
    pub(super) fn new(per_second: Option<u32>) -> Funds {
        let daemon = per_second.map(|count| Fund::full(Mono(0), Rate::per_second(count)));
        Funds { daemon, keys: BTreeMap::new(), served_at: Mono(u64::MAX) }
    }

    fn find(&mut self, account: Account) -> Option<&mut Fund> {
        match account {
            Account::Daemon => self.daemon.as_mut(),
            Account::Key { key, .. } => self.keys.get_mut(&key).map(|(_, fund)| fund),
        }
    }

    /// The same; a key's is made when it is first asked for.
    fn open(&mut self, now: Mono, account: Account) -> Option<&mut Fund> {
        match account {
            Account::Daemon => self.daemon.as_mut(),
            Account::Key { key, per_minute } => {
                let rate = Rate::per_minute(per_minute);
                let (known, fund) = self.keys.entry(key).or_insert_with(|| (per_minute, Fund::full(now, rate)));
                *known = per_minute;
                fund.rerate(now, rate);
                Some(fund)
            }
        }
    }
}
