//! Keys, seats and rates of a simulated world: what changes them, and the checkers that know nothing of how they are kept.

use super::dice::Dice;
use super::ledger::Place;
use super::link::{End, Link};
use super::shard::Shard;
use super::swarm::{Mutation, Swarm};
use super::world::World;
use agent_relay::base::keys::{ApiKey, KEY_PREFIX, KeyId, KeyRing, Ring, Scopes, hash_of};
use agent_relay::base::limits::KNOWN_AGENTS_MAX;
use agent_relay::base::tier::{Entitled, Entitlement};
use agent_relay::base::{AgentId, CloseReason, Mono, RefuseReason};
use agent_relay::relay::{CensusTicket, Counters, Event, Mail, Outbox};
use std::collections::VecDeque;

/// What a shard is told, in its time.
pub enum Notice {
    Keys(Ring),
    Entitled(Entitled),
}

/// Keys and limits in force, and what has been used of them.
pub struct Limits {
    /// By the number that agents know them by.
    keys: Vec<ApiKey>,
    /// What agents present.
    pub secrets: Vec<String>,
    made: u64,
    pub ring: Ring,
    pub entitlement: Entitled,
    /// For each shard.
    pub notices: Vec<VecDeque<(Mono, Notice)>>,
    /// The most seats there ever were; none when there is no limit.
    seats_bound: Option<u32>,
    /// Tokens left of the rate, times a second's nanoseconds, and when.
    level: i128,
    level_at: Mono,
    /// Connections that went while they owed a token, and messages of the command line.
    debts: u64,
}

const SECOND: i128 = 1_000_000_000;

impl Limits {
    pub fn new(swarm: &Swarm, dice: &mut Dice) -> Limits {
        let entitlement = Entitled::new(Entitlement {
            agents_max: swarm.seats,
            messages_per_second: swarm.rate,
            ..(*Entitlement::unlimited()).clone()
        });
        let mut limits = Limits {
            keys: Vec::new(),
            secrets: Vec::new(),
            made: 0,
            ring: KeyRing::empty(),
            entitlement,
            notices: Vec::new(),
            seats_bound: swarm.seats,
            level: 0,
            level_at: Mono(0),
            debts: 0,
        };
        for _ in 0..if swarm.keys > 0 { dice.range(1, 4) } else { 0 } {
            let (key, secret) = limits.make(swarm);
            limits.keys.push(key);
            limits.secrets.push(secret);
        }
        limits.ring = limits.ring_of();
        limits
    }

    /// A daemon starts: nothing is used, and everyone knows what is in force.
    pub fn start(&mut self, now: Mono, shards: usize) {
        self.notices = (0..shards).map(|_| VecDeque::new()).collect();
        self.level_at = now;
        self.level = self.burst();
        self.debts = 0;
    }

    fn burst(&self) -> i128 {
        i128::from(self.entitlement.messages_per_second.unwrap_or(0)) * 10 * SECOND
    }

    fn make(&mut self, swarm: &Swarm) -> (ApiKey, String) {
        self.made += 1;
        let secret = format!("{KEY_PREFIX}{:032}", self.made);
        let key = ApiKey {
            id: KeyId(u128::from(self.made).to_be_bytes()),
            hash: hash_of(&secret),
            hash_before: None,
            prefix: "".into(),
            name: "".into(),
            description: "".into(),
            scopes: Scopes::USUAL,
            agents: None,
            per_minute: swarm.per_minute,
            created_at_ms: 0,
            created_by: "".into(),
            expires_at_ms: None,
            revoked_at_ms: None,
            last_used_at_ms: None,
            total_messages: 0,
        };
        (key, secret)
    }

    fn ring_of(&self) -> Ring {
        Ring::new(KeyRing::new(self.keys.iter().cloned(), [1; 32]))
    }
}

impl Limits {
    /// Somebody owes a token and cannot be held to it.
    pub fn note_debt(&mut self) {
        self.debts += 1;
    }
}

impl World {
    /// Keys are revoked and made anew, licences change.
    pub fn change_limits(&mut self) {
        if self.dice.chance(self.swarm.revokes) && !self.limits.keys.is_empty() {
            let number = self.dice.index(self.limits.keys.len());
            let (key, secret) = self.limits.make(&self.swarm);
            (self.limits.keys[number], self.limits.secrets[number]) = (key, secret);
            self.limits.ring = self.limits.ring_of();
            self.say(&format!("key {number} is revoked, and there is another one"));
            for shard in 0..self.shards.len() {
                let delay = self.dice.below(self.swarm.mail_delay + 1);
                let notice = Notice::Keys(self.limits.ring.clone());
                self.limits.notices[shard].push_back((self.now.mono + delay, notice));
            }
        }
        if self.swarm.seats.is_some() && self.dice.chance(self.swarm.licences) {
            let seats = self.dice.range(1, 12) as u32;
            let entitlement = Entitlement { agents_max: Some(seats), ..(*self.limits.entitlement).clone() };
            self.limits.seats_bound = self.limits.seats_bound.max(Some(seats));
            self.say(&format!("the licence allows {seats} agents"));
            self.entitle(entitlement);
        }
    }

    /// From here on senders are not slowed to a crawl.
    pub fn lift_rate(&mut self) {
        if self.limits.entitlement.messages_per_second.is_some_and(|rate| rate < 100) {
            let entitlement = Entitlement { messages_per_second: None, ..(*self.limits.entitlement).clone() };
            self.entitle(entitlement);
        }
    }

    fn entitle(&mut self, entitlement: Entitlement) {
        self.limits.entitlement = Entitled::new(entitlement);
        for shard in 0..self.shards.len() {
            let delay = self.dice.below(self.swarm.mail_delay + 1);
            let notice = Notice::Entitled(self.limits.entitlement.clone());
            self.limits.notices[shard].push_back((self.now.mono + delay, notice));
        }
    }

    /// What the shard has been told reaches its heart, before anything that may follow from it.
    pub fn take_notices(&mut self, me: usize) {
        let now = self.now.mono;
        while let Some((_, notice)) = self.limits.notices[me].pop_front_if(|(at, _)| *at <= now) {
            match notice {
                Notice::Entitled(entitlement) => {
                    self.shards[me].entitlement = entitlement.clone();
                    self.handle(me, Event::Entitled(entitlement));
                    self.perform(me);
                }
                Notice::Keys(ring) => {
                    if !self.strikes(Mutation::KeepRevoked) {
                        self.handle(me, Event::Keys(ring.clone()));
                    }
                    self.perform(me);
                    for link in
                        self.links.iter().filter(|link| link.settled && matches!(link.end, End::At(at, _) if at == me))
                    {
                        let Some(secret) = &link.secret else { continue };
                        let good = ring.verify("api_key", secret, self.now.wall_ms).is_ok();
                        assert!(good, "a connection outlives its key by a turn");
                    }
                }
            }
        }
    }

    /// Lets a heart decide; at the ledger's shard nobody is refused a seat while one is free.
    pub fn handle(&mut self, me: usize, event: Event<'_>) {
        let watched = me == 0 && self.swarm.seats.is_some();
        let before = watched.then(|| refusals(&self.shards[0]));
        let crowded = self.swarm.bounds.known_agents_max < KNOWN_AGENTS_MAX;
        let shut_out = |shard: &Shard| shard.relay.gauges().counters.closes[CloseReason::KnownAgentsFull as usize];
        let before_shut_out = if crowded { shut_out(&self.shards[me]) } else { 0 };
        let shard = &mut self.shards[me];
        shard.relay.handle(self.now, event, &mut shard.outbox);
        if crowded && (shut_out(&self.shards[me]) > before_shut_out || self.strikes(Mutation::RefuseNewcomers)) {
            self.check_crowded(me);
        }
        if let Some(before) = before
            && refusals(&self.shards[0]) > before
        {
            let (seats, max) = (self.shards[0].relay.gauges().seats, self.shards[0].entitlement.agents_max);
            assert!(max.is_some_and(|max| seats >= max), "a seat is refused while {seats} of {max:?} are taken");
        }
    }

    /// Somebody new was shut out: everyone who is known is here, or about to be, or owed something.
    fn check_crowded(&mut self, me: usize) {
        let mut outbox = Outbox::default();
        let ticket = CensusTicket { ticket: 8, cursor: 0 };
        self.shards[me].relay.handle(self.now, Event::Census(ticket), &mut outbox);
        for row in outbox.census.into_iter().flat_map(|part| part.rows) {
            let comes = self.links.iter().any(|link| {
                let here = matches!(link.end, End::At(at, _) if at == me);
                here && link.hello_read && !link.settled && *self.agents[link.agent].name == *row.name
            });
            // What expired before it was committed is looked for once more a second later, and until then not given up.
            let id = AgentId::of(row.name.as_bytes());
            let lately = |place: &Place| {
                let open = !place.acknowledged && !place.failed && !place.lost && !place.forgotten;
                open || self.now.mono.since(place.failed_at) < Mono::ms(5_000)
            };
            let looked_for =
                self.ledger.orders.get(&id).is_some_and(|order| order.places().any(|(_, place)| lately(place)));
            let stays = row.live || row.waiting_messages > 0 || comes || looked_for;
            assert!(stays, "somebody new is shut out, and {} is away and owed nothing", row.name);
        }
    }

    /// Agents that are connected and hold a seat; eight helpers of the owner's hold none.
    pub fn seated(&self) -> u32 {
        let settled = self.links.iter().filter(|link| link.settled && matches!(link.end, End::At(..)));
        let is_helper = |link: &&Link| link.owner && self.agents[link.agent].name.starts_with("__");
        let (helpers, agents): (Vec<&Link>, Vec<&Link>) = settled.partition(is_helper);
        (agents.len() + helpers.len().saturating_sub(8)) as u32
    }

    pub fn check_seats(&self) {
        if let Some(bound) = self.limits.seats_bound {
            let seated = self.seated();
            assert!(seated <= bound, "{seated} agents are connected, and {bound} may be");
        }
    }

    /// Everybody has settled, and no mail is on its way.
    pub fn check_seats_exactly(&self) {
        assert_eq!(
            self.shards[0].relay.gauges().seats,
            self.seated(),
            "each seat that is taken is an agent that is here"
        );
    }

    /// A SEND was handed to a heart, whose counters were these before.
    pub fn check_rate(&mut self, me: usize, before: &Counters) {
        let after = self.shards[me].relay.gauges().counters;
        let Some(rate) = self.limits.entitlement.messages_per_second else { return };
        let free = after.messages_in == before.messages_in
            || after.duplicates > before.duplicates
            || after.refusals[RefuseReason::Malformed as usize] > before.refusals[RefuseReason::Malformed as usize];
        if free {
            return;
        }
        let came = i128::from(self.now.mono.since(self.limits.level_at)) * i128::from(rate);
        self.limits.level = (self.limits.level + came).min(self.limits.burst()) - SECOND;
        self.limits.level_at = self.now.mono;
        let owing = self.links.iter().filter(|link| matches!(link.end, End::At(..)) && link.paused).count() as u64;
        // Those of this turn have not been told yet.
        let pausing: u64 = self
            .shards
            .iter()
            .map(|shard| {
                shard
                    .outbox
                    .outputs
                    .iter()
                    .filter(|output| matches!(output, agent_relay::relay::Output::Pause { .. }))
                    .count() as u64
            })
            .sum();
        let allowed = i128::from(owing + pausing + self.limits.debts) * SECOND;
        assert!(self.limits.level >= -allowed, "more is taken than {rate} per second allow: {}", self.limits.level);
    }

    /// Planted bugs: the mail as it arrives, if it does.
    pub fn spoil(&mut self, mail: Mail) -> Option<Mail> {
        let lost = match &mail {
            Mail::SeatFreed { .. } => self.strikes(Mutation::LoseSeatFreed),
            Mail::SeatAnswer { .. } => self.strikes(Mutation::LoseSeatAnswer),
            _ => false,
        };
        if lost || self.strikes(Mutation::DropMail) {
            return None;
        }
        match mail {
            Mail::SeatAnswer { agent, sitter, refused: Some(_) } if self.strikes(Mutation::GrantAnySeat) => {
                Some(Mail::SeatAnswer { agent, sitter, refused: None })
            }
            mail => Some(mail),
        }
    }

    /// Planted bugs: the same mail once more. It is not meant to be copied.
    pub fn twice(&mut self, mail: &Mail) -> Option<Mail> {
        match mail {
            Mail::Send { parcel, origin } if self.strikes(Mutation::RepeatMail) => {
                Some(Mail::Send { parcel: parcel.clone(), origin: *origin })
            }
            Mail::Fanout { parcel, origin } if self.strikes(Mutation::RepeatMail) => {
                Some(Mail::Fanout { parcel: parcel.clone(), origin: *origin })
            }
            Mail::SeatAsked { agent, sitter } if self.strikes(Mutation::RepeatSeatAsked) => {
                Some(Mail::SeatAsked { agent: *agent, sitter: *sitter })
            }
            Mail::Tokens { account, tokens, wait, answers } if self.strikes(Mutation::RepeatTokens) => {
                Some(Mail::Tokens { account: *account, tokens: *tokens, wait: *wait, answers: *answers })
            }
            _ => None,
        }
    }

    /// A connection was paused, or is read again.
    pub fn paused(&mut self, link: usize, paused: bool) {
        if !paused && self.strikes(Mutation::ForgetResume) {
            self.links[link].stuck = true;
        }
        assert_ne!(self.links[link].paused, paused, "paused once, read again once");
        self.links[link].paused = paused;
        self.marks.hit(if paused { "paused" } else { "read again" });
    }

    pub fn mark_limits(&mut self, reason: CloseReason) {
        match reason {
            CloseReason::AgentLimit => self.marks.hit("close: agent_limit"),
            CloseReason::Unauthorized => self.marks.hit("close: unauthorized"),
            CloseReason::KeyRevoked => self.marks.hit("close: key_revoked"),
            _ => {}
        }
    }
}

fn refusals(shard: &Shard) -> u64 {
    let by_mail =
        shard.outbox.mails.iter().filter(|(_, mail)| matches!(mail, Mail::SeatAnswer { refused: Some(_), .. }));
    shard.relay.gauges().counters.closes[CloseReason::AgentLimit as usize] + by_mail.count() as u64
}
