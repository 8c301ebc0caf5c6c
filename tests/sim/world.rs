//! The world of one seed: shards, lanes, links, writer and programs, turned by one thread.

use super::agent::{Agent, Around};
use super::dice::Dice;
use super::disk::Disk;
use super::ledger::{Ledger, Place, To};
use super::limits::Limits;
use super::link::{End, Link};
use super::marks::Marks;
use super::shard::{Post, Shard};
use super::swarm::{Mutation, Swarm};
use agent_relay::base::{AgentId, Mono, NameHasher, Now, ShardId, limits};
use agent_relay::relay::{CensusTicket, Event, Remembered};
use agent_relay::wire::{Dialect, Wants};
use std::collections::VecDeque;

/// What the longest message of these worlds is counted as.
const LONGEST: usize = 72_000;

/// A world.
pub struct World {
    pub verbose: bool,
    pub swarm: Swarm,
    pub dice: Dice,
    pub now: Now,
    pub faults: bool,
    pub shards: Vec<Shard>,
    /// Mail from a shard to a shard: when it may be taken, and what.
    pub lanes: Vec<Vec<VecDeque<(Mono, Post)>>>,
    pub links: Vec<Link>,
    pub agents: Vec<Agent>,
    pub names: Vec<String>,
    pub ledger: Ledger,
    pub marks: Marks,
    pub disk: Disk,
    pub limits: Limits,
    pub writer_full: bool,
    pub writer_behind: bool,
    /// The wall clock when the monotonic one stood at zero.
    wall_base_ms: u64,
    /// A planted bug has been at work.
    pub mutated: u64,
    /// Everything the relay said, in one number.
    pub hash: u64,
    quiet_rounds: u64,
}

/// Rounds within which everything must settle once the faults are over.
const SETTLE_ROUNDS: u64 = 3_000;

impl World {
    /// The world of `seed`.
    pub fn new(seed: u64, mutation: Option<Mutation>, verbose: bool) -> World {
        let mut dice = Dice::new(seed);
        let swarm = Swarm::draw(&mut dice, mutation);
        let shards = usize::from(swarm.shards);
        let epoch = dice.range(1, 9) as u32;
        let name_seed = dice.any();
        let mut names: Vec<String> = Vec::new();
        let mut agents: Vec<Agent> = Vec::new();
        for index in 0..swarm.agents {
            let twin = !names.is_empty() && dice.chance(swarm.twins);
            if !twin {
                let mark = if dice.chance(swarm.internal) { "__" } else { "" };
                names.push(format!("{mark}agent-{index}"));
            }
            let name_index = if twin { dice.index(names.len()) } else { names.len() - 1 };
            let name = names[name_index].clone();
            let agent = Agent::new(index, name_index, &name, &swarm, &mut dice);
            agents.push(agent);
        }
        for index in 0..agents.len() {
            let alone = agents.iter().filter(|other| other.name_index == agents[index].name_index).count() == 1;
            agents[index].ruly = alone;
        }
        for index in 0..if dice.chance(500) { dice.below(1 + swarm.submitters / 50) } else { 0 } {
            let name_index = usize::MAX - index as usize;
            let mut agent = Agent::new(agents.len(), name_index, &format!("cli-{index}"), &swarm, &mut dice);
            agent.submitter = true;
            agent.dialect = Dialect::Native;
            agents.push(agent);
        }
        let mut limits = Limits::new(&swarm, &mut dice);
        for agent in agents.iter_mut().filter(|agent| !agent.submitter) {
            agent.key = dice.chance(swarm.keys).then(|| dice.index(limits.secrets.len()));
        }
        let now = Now { mono: Mono(dice.below(1 << 40)), wall_ms: 1_700_000_000_000 };
        limits.start(now.mono, shards);
        let hearts = (0..shards).map(|shard| Shard::new(shard, &swarm, &limits, epoch, name_seed, &mut dice)).collect();
        let lanes = || (0..shards).map(|_| VecDeque::new()).collect::<Vec<_>>();
        if verbose {
            eprintln!("seed {seed}: {swarm:#?}");
        }
        World {
            verbose,
            now,
            limits,
            faults: true,
            shards: hearts,
            lanes: (0..shards).map(|_| lanes()).collect(),
            links: Vec::new(),
            agents,
            names,
            ledger: Ledger::new(shards, epoch, &swarm),
            marks: Marks::default(),
            disk: Disk::new(shards),
            wall_base_ms: 1_700_000_000_000,
            writer_full: false,
            writer_behind: false,
            mutated: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            swarm,
            dice,
            quiet_rounds: 0,
        }
    }

    /// Faults on, faults off, everybody leaves.
    pub fn run(&mut self) {
        for round in 0..self.swarm.rounds {
            if self.swarm.stop_at == Some(round) {
                return self.stop();
            }
            if self.dice.chance(self.swarm.crashes) {
                self.restart();
            }
            self.change_limits();
            self.round();
        }
        self.say("the faults are over");
        self.faults = false;
        self.lift_rate();
        self.become_kind();
        let mut rounds = 0;
        while !self.is_settled() {
            rounds += 1;
            assert!(rounds < SETTLE_ROUNDS, "does not settle: {}", self.what_is_open());
            self.round();
        }
        self.check_outcomes();
        self.check_seats_exactly();
        self.leave();
        self.check_seats_exactly();
    }

    pub fn say(&self, text: &str) {
        if self.verbose {
            eprintln!("[{:>12.6}] {text}", self.now.mono.0 as f64 / 1e9);
        }
    }

    /// Notes a mutation; says whether the planted bug strikes now.
    pub fn strikes(&mut self, mutation: Mutation) -> bool {
        // Some have few occasions.
        let often = matches!(mutation, Mutation::ForgetClosed | Mutation::DropFailedCommit | Mutation::KeepRevoked);
        if self.swarm.mutation != Some(mutation) || !self.dice.chance(if often { 500 } else { 100 }) {
            return false;
        }
        self.mutated += 1;
        true
    }

    /// A planted bug that does not go away again once it has struck.
    pub fn stuck(&self, mutation: Mutation) -> bool {
        self.swarm.mutation == Some(mutation) && self.mutated > 0
    }

    fn round(&mut self) {
        self.pass_time();
        for link in 0..self.links.len() {
            self.carry(link);
        }
        let first = self.dice.index(self.shards.len());
        for offset in 0..self.shards.len() {
            let shard = (first + offset) % self.shards.len();
            if !(self.faults && self.dice.chance(self.swarm.shard_stalls)) {
                self.turn(shard);
            }
        }
        self.write();
        self.keep();
        let first = self.dice.index(self.agents.len());
        for offset in 0..self.agents.len() {
            let index = (first + offset) % self.agents.len();
            if self.faults && self.dice.chance(300) {
                continue;
            }
            let mut around = Around {
                now: self.now.mono,
                faults: self.faults,
                verbose: self.verbose,
                swarm: &self.swarm,
                names: &self.names,
                secrets: &self.limits.secrets,
                dice: &mut self.dice,
                links: &mut self.links,
                ledger: &mut self.ledger,
                marks: &mut self.marks,
            };
            self.agents[index].step(&mut around);
        }
    }

    fn pass_time(&mut self) {
        let step = if self.faults {
            if self.dice.chance(self.swarm.long_jumps) {
                Mono::ms(self.dice.pick(&[3_700_000, 90_000_000]))
            } else if self.dice.chance(self.swarm.jumps) {
                self.dice.below(Mono::ms(40_000))
            } else {
                1 + self.dice.below(self.swarm.step)
            }
        } else {
            self.quiet_rounds += 1;
            if self.quiet_rounds < 200 { Mono::ms(2) } else { Mono::ms(100) }
        };
        self.now.mono = self.now.mono + step;
        if self.faults && self.dice.chance(self.swarm.wall_jumps) {
            self.wall_base_ms = self.dice.below(4_000_000_000_000);
        }
        self.now.wall_ms = self.wall_base_ms + self.now.mono.0 / 1_000_000;
    }

    fn carry(&mut self, index: usize) {
        let link = &self.links[index];
        if link.end == End::Gone && (link.client_gone || link.broken) {
            return;
        }
        if self.faults && self.dice.chance(self.swarm.stalls) {
            return;
        }
        if self.faults && self.dice.chance(self.swarm.breaks) {
            let relay_at = self.now.mono + self.dice.below(Mono::ms(20_000));
            let client_at = self.now.mono + self.dice.below(Mono::ms(2_000));
            self.links[index].tear(relay_at, client_at);
            self.marks.hit("broken");
        }
        let most = if self.faults { self.swarm.slice } else { u64::MAX / 2 };
        let (up, flush, down) = (self.dice.range(1, most), self.dice.range(1, most), self.dice.range(1, most));
        if self.strikes(Mutation::SwapBytes) && self.links[index].flush.len() > 2 {
            self.links[index].flush.swap(0, 1);
            self.links[index].flush.swap(1, 2);
        }
        if let Some(through) = self.links[index].carry(up as usize, flush as usize, down as usize)
            && let End::At(shard, session) = self.links[index].end
            && through.counter > 0
            && !self.strikes(Mutation::LoseWritten)
            && !self.stuck(Mutation::LoseWritten)
        {
            let name = self.agents[self.links[index].agent].id;
            self.ledger.written(name, index, through);
            self.shards[shard].written.push((session, through));
        }
    }

    /// The daemon ends, by a crash, a power cut or in order, and starts again.
    fn restart(&mut self) {
        if self.dice.chance(self.swarm.orderly) {
            self.say("an orderly end");
            self.marks.hit("orderly restart");
            for shard in &mut self.shards {
                shard.relay.handle(self.now, Event::Stop, &mut shard.outbox);
            }
            for shard in (0..self.shards.len()).cycle().take(5 * self.shards.len()) {
                self.turn(shard);
            }
            for shard in 0..self.shards.len() {
                self.hand_batch(shard);
            }
            self.finish_disk();
        } else {
            self.say("a crash");
            self.marks.hit("crashed");
            self.lose_power();
        }
        for link in 0..self.links.len() {
            let (arrives, pause) = (self.dice.chance(500), self.dice.below(Mono::ms(2_000)));
            self.links[link].die(arrives, self.now.mono + pause);
        }
        let down = if self.dice.chance(50) { 40_000 } else { 200 };
        self.now.mono = self.now.mono + self.dice.below(Mono::ms(down));
        self.now.wall_ms = self.wall_base_ms + self.now.mono.0 / 1_000_000;
        let shards = if self.dice.chance(500) { self.swarm.shards } else { self.dice.pick(&[1, 2, 3, 4, 8]) };
        if shards != self.swarm.shards {
            self.marks.hit("another number of shards");
        }
        self.swarm.shards = shards;
        let (name_seed, shards) = (self.dice.any(), usize::from(shards));
        let later = if self.swarm.mutation == Some(Mutation::KeepEpoch) { 0 } else { self.dice.range(1, 3) as u32 };
        let epoch = self.ledger.epoch + later;
        self.ledger.crashed(shards, epoch, &mut self.marks);
        let hasher = NameHasher::new(name_seed);
        let (homes, parted) = self.recover(shards, |name| hasher.hash(name.as_bytes()).home(shards as u16));
        self.lanes = (0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect();
        self.shards.clear();
        self.limits.start(self.now.mono, shards);
        for (index, rows) in homes.into_iter().enumerate() {
            let mut shard = Shard::new(index, &self.swarm, &self.limits, epoch, name_seed, &mut self.dice);
            let owed: u64 = rows.iter().map(|row| row.owed.messages).sum();
            shard.restored = rows.len();
            let most = self.swarm.bounds.waiting_messages_max;
            let above = |row: &&Remembered| row.owed.messages as usize > most;
            shard.restored_owed =
                rows.iter().filter(above).map(|row| (row.agent, row.owed.messages as usize)).collect();
            shard.relay.restore(self.now, rows);
            if self.swarm.mutation != Some(Mutation::ForgetParted) {
                shard.relay.restore_parted(parted.clone());
            }
            assert_eq!(shard.relay.gauges().waiting_messages, owed, "what is owed is counted");
            self.shards.push(shard);
        }
        self.say(&format!("it starts again: epoch {epoch}, {shards} shards"));
    }

    /// From here on everybody keeps the rules; of programs with one name one goes on.
    fn become_kind(&mut self) {
        let mut names = std::collections::BTreeSet::new();
        for index in 0..self.agents.len() {
            let agent = &mut self.agents[index];
            agent.deaf_until = Mono(0);
            if agent.liar || !agent.ruly {
                // Numbers used twice, or by two: their outcomes cannot be told apart.
                agent.unknown.clear();
            }
            agent.connect_at = agent.connect_at.min(self.now.mono + Mono::ms(5_000));
            let alone = names.insert(agent.name_index);
            if agent.submitter || !alone {
                agent.retired = true;
                if let Some(link) = agent.link.take() {
                    self.links[link].client_gone = true;
                    self.links[link].tear(self.now.mono, self.now.mono);
                }
            }
        }
        for link in &mut self.links {
            link.relay_notices_at = link.relay_notices_at.min(self.now.mono);
            link.client_notices_at = link.client_notices_at.min(self.now.mono);
        }
    }

    fn is_settled(&mut self) -> bool {
        self.agents.iter().all(|agent| {
            let open = !agent.unknown.is_empty() && agent.ruly && !agent.liar;
            let connected = agent.link.is_some_and(|link| {
                let link = &self.links[link];
                !link.broken && !link.closing && link.settled
            });
            agent.retired || (connected && agent.welcomed && !open && agent.again.is_empty() && agent.budget == 0)
        }) && self.lanes.iter().flatten().all(VecDeque::is_empty)
            && self.links.iter().all(|link| link.end == End::Gone || link.is_quiet())
            && self.ledger.committed == self.ledger.pushed
            && self.disk.is_quiet()
            && self.limits.notices.iter().all(VecDeque::is_empty)
            && self.shards.iter().all(|shard| {
                shard.is_quiet() && {
                    let gauges = shard.relay.gauges();
                    gauges.grace == 0 && (gauges.waiting_messages == 0 || self.everyone_here_has_seen_everything())
                }
            })
    }

    fn everyone_here_has_seen_everything(&self) -> bool {
        self.someone_is_shut_out()
            && self.agents.iter().filter(|agent| !agent.retired && self.minds(agent.id)).all(|agent| {
                let order = self.ledger.orders.get(&agent.id);
                order.is_none_or(|order| order.places().all(|(_, place)| is_over(place)))
            })
    }

    fn someone_is_shut_out(&self) -> bool {
        self.agents.iter().any(|agent| agent.retired && !agent.submitter)
            || self.ledger.sent.iter().any(|sent| matches!(&sent.to, To::Name(_)) && sent.submitted)
    }

    fn what_is_open(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        for agent in &self.agents {
            if !agent.retired && (!agent.welcomed || !agent.unknown.is_empty() || !agent.again.is_empty()) {
                let link = agent.link.map(|link| (link, self.links[link].end, self.links[link].broken));
                let _ = write!(
                    text,
                    "\n  {} {:?} welcomed {} unknown {:?} again {:?} link {link:?}",
                    agent.name, agent.dialect, agent.welcomed, agent.unknown, agent.again
                );
            }
        }
        for shard in &self.shards {
            let gauges = shard.relay.gauges();
            let (waiting, grace) = (gauges.waiting_messages, gauges.grace);
            let _ = write!(text, "\n  a shard: waiting {waiting}, grace {grace}, quiet {}", shard.is_quiet());
        }
        for (index, link) in self.links.iter().enumerate() {
            if link.end != End::Gone && !link.is_quiet() {
                let _ = write!(
                    text,
                    "\n  link {index} of agent {} is not quiet: {:?} {} {} {} {} {}",
                    link.agent,
                    link.end,
                    link.up.len(),
                    link.arrived.len(),
                    link.flush.len(),
                    link.down.len(),
                    link.heard.len()
                );
            }
        }
        for (agent, order) in &self.ledger.orders {
            let is_open = |place: &Place| !is_over(place);
            let open: Vec<_> = order.places().filter(|(_, place)| is_open(place)).map(|(at, _)| at).collect();
            if !open.is_empty() {
                let here: Vec<_> = self.agents.iter().filter(|other| other.id == *agent && !other.retired).collect();
                let names: Vec<_> =
                    here.iter().map(|agent| (&agent.name, agent.acks, agent.liar, agent.handled)).collect();
                let _ = write!(text, "\n  open for {agent:?} {names:?}: {open:?}");
            }
        }
        let _ = write!(text, "\n  pushed {:?} committed {:?}", self.ledger.pushed, self.ledger.committed);
        text
    }

    /// All is quiet: what does each message's story say?
    fn check_outcomes(&mut self) {
        for (index, sent) in self.ledger.sent.iter().enumerate() {
            for recipient in sent.accepted.iter().map(|accepted| &accepted.recipient) {
                let order = &self.ledger.orders[recipient];
                let away = self.agents.iter().all(|agent| agent.id != *recipient || agent.retired);
                let mut mine =
                    order.places().map(|(_, place)| place).filter(|place| place.message == index && !place.lost);
                assert!(
                    mine.all(|place| place.seen
                        || has_failed(place)
                        || place.channel
                        || away
                        || !self.minds(*recipient)),
                    "message {index} was accepted for {recipient:?}, which never saw it"
                );
            }
            let Some((_, link)) = sent.said.last() else { continue };
            // Promises to a sender end with its connection.
            let link = &self.links[*link];
            let whole = !link.broken && !link.client_gone && !matches!(link.end, End::Gone) && link.settled;
            if !sent.ruly || sent.void || sent.submitted || !whole {
                continue;
            }
            if let To::Name(name) = sent.to {
                let refused = sent.refused > 0;
                assert!(refused || !sent.accepted.is_empty(), "message {index} to {name:?} was lost without a word");
                if sent.accepted.is_empty() || sent.said.len() > 1 || link.dialect == Dialect::Json {
                    continue;
                }
                let place = self.ledger.orders[&name].places().find(|(_, place)| place.message == index && !place.lost);
                let (_, place) = place.expect("accepted means placed");
                let told = |wanted: Wants, is: bool, text: &str| {
                    assert!(!sent.wants.contains(wanted) || is, "message {index}: its sender never heard of {text}");
                };
                told(Wants::DURABLE, sent.told.durable > 0, "durability");
                if has_failed(place) {
                    assert!(sent.told.failed.contains(&name), "message {index} failed without a word");
                } else if self.agents.iter().any(|agent| agent.id == name && !agent.retired) && self.minds(name) {
                    told(Wants::DELIVERED, sent.told.delivered.contains(&name), "delivery");
                    told(Wants::ACKNOWLEDGED, sent.told.acknowledged.contains(&name), "acknowledgement");
                }
            }
        }
    }

    /// Programs that share a name, or lie, may have acknowledged what they never saw.
    pub fn minds(&self, name: agent_relay::base::AgentId) -> bool {
        self.agents.iter().all(|agent| agent.id != name || (agent.ruly && !agent.liar))
    }

    /// Everybody says BYE: nothing may be left.
    fn leave(&mut self) {
        self.say("everybody leaves");
        for agent in &mut self.agents {
            agent.retired = true;
            if let Some(link) = agent.link.take() {
                let sequence = agent_relay::base::Sequence::default();
                self.links[link].say(&agent_relay::wire::Frame::Bye, sequence);
                agent.welcomed = false;
            }
        }
        for _ in 0..60 {
            self.round();
        }
        let shut_out = self.someone_is_shut_out();
        for shard in &mut self.shards {
            let gauges = shard.relay.gauges();
            assert_eq!((gauges.connections, gauges.half_open, gauges.live, gauges.grace), (0, 0, 0, 0), "all are gone");
            if !shut_out {
                let left = (gauges.waiting_messages, gauges.waiting_bytes, gauges.resident_bytes);
                assert_eq!(left, (0, 0, 0), "nothing is owed");
            }
            self.marks.add("redelivered", gauges.counters.redelivered);
            self.marks.add("duplicate send", gauges.counters.duplicates);
        }
    }

    fn stop(&mut self) {
        self.say("stop");
        self.faults = false;
        self.marks.hit("stopped");
        for shard in &mut self.shards {
            shard.relay.handle(self.now, Event::Stop, &mut shard.outbox);
            shard.stopping = true;
        }
        for agent in &mut self.agents {
            agent.retired = true;
        }
        for _ in 0..60 {
            self.round();
        }
        for shard in &self.shards {
            let gauges = shard.relay.gauges();
            assert!(shard.relay.is_drained(), "a stopped shard has let go of every connection: {gauges:?}");
            assert_eq!((gauges.half_open, gauges.live), (0, 0));
        }
    }

    /// Asks a shard for its list of agents, to compare it with the bounds.
    pub fn census(&mut self, shard: usize) {
        let heart = &mut self.shards[shard];
        let ticket = CensusTicket { ticket: 7, cursor: 0 };
        heart.relay.handle(self.now, Event::Census(ticket), &mut heart.outbox);
        let bounds = &self.swarm.bounds;
        for part in heart.outbox.census.drain(..) {
            assert_eq!(part.shard, ShardId(shard as u16));
            for row in part.rows {
                let (messages, bytes) = (row.waiting_messages as usize, row.waiting_bytes as usize);
                // What was acknowledged and is not on disk is owed again after a crash, beside what came in its place; from
                // then on nothing is accepted until there are fewer than the bound again. So what was found above it only
                // gets less, and an agent that was not restored is never above it.
                let above = heart.restored_owed.get(&AgentId::of(row.name.as_bytes())).copied().unwrap_or(0);
                let most = bounds.waiting_messages_max.max(above);
                assert!(messages <= most, "{} has {messages} messages waiting", row.name);
                if above > 0 {
                    heart.restored_owed.insert(AgentId::of(row.name.as_bytes()), messages);
                }
                // One message always fits an empty window, and one an empty queue behind it, however long they are.
                let most = bounds.owed_bytes_max.max(LONGEST);
                assert!(bytes <= most, "{} has {bytes} bytes waiting", row.name);
                assert!(row.in_flight <= bounds.in_flight_max, "{} has {} in flight", row.name, row.in_flight);
                assert!(row.topics.len() <= bounds.subscriptions_max);
            }
        }
        let gauges = heart.relay.gauges();
        let unread = self.links.iter().filter(|link| matches!(link.end, End::At(at, _) if at == shard) && link.paused);
        assert_eq!(gauges.paused as usize, unread.count(), "each connection that is left unread is counted");
        assert!(gauges.pressed <= gauges.paused);
        if gauges.pressed > 0 {
            self.marks.hit("left unread for the writer");
            assert!(heart.writer_was_behind, "somebody is left unread for a writer that is not behind");
        }
        assert!(gauges.half_open as usize <= 2 * bounds.half_open_max, "{} half-open", gauges.half_open);
        // What comes back from the store has room of its own: one answer for each of them.
        let fetched = gauges.known as usize * 2 * limits::FETCH_BYTES_MAX as usize;
        assert!(gauges.resident_bytes as usize <= bounds.shard_waiting_bytes_max + fetched);
        if gauges.waiting_bytes > gauges.resident_bytes {
            self.marks.hit("spilled");
        }
        if gauges.known < heart.known {
            self.marks.hit("forgotten");
        }
        heart.known = gauges.known;
        let share = (bounds.known_agents_max / usize::from(self.swarm.shards)).max(1).max(heart.restored);
        assert!(gauges.known as usize <= share, "{} agents known", gauges.known);
    }
}

/// Its recipient has it, and that was heard of; or it will never get it.
fn is_over(place: &Place) -> bool {
    let heard_of = place.acknowledged || place.named || place.forgotten;
    (place.seen && heard_of) || has_failed(place) || place.channel || place.lost
}

/// Its sender was told that it failed, and that still holds. A crash can take the record of it away, and then it is owed
/// again: but a recipient that comes back and says it has handled later ones has acknowledged this one as well (PRODUCT 7:
/// the position is a cumulative acknowledgement), though it never saw it. Whatever else is owed it must see.
fn has_failed(place: &Place) -> bool {
    place.failed || (place.named && place.failed_once)
}
