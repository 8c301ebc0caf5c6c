//! HELLO: is the name good, is this its home, is it free or may it be taken over, does a session go on?

use super::delivery::Queue;
use super::home::{Agent, AgentSlot, Presence};
use super::ledger::Sitter;
use super::memory::{Owed, ProgressRecord, SessionRecord};
use super::outbox::{Outbox, Output, Profile, Record};
use super::session::{Session, State};
use super::timers::{self, Timer};
use super::{Relay, error};
use crate::base::keys::Scopes;
use crate::base::limits::{
    DEAD_AFTER, FRAME_BYTES_MAX, HEARTBEAT_MS, KNOWN_AGENTS_MAX, PING_AFTER, RESUME_TTL, TAKE_OVER_DAMPER,
    TAKE_OVER_SILENCE,
};
use crate::base::tier::Entitlement;
use crate::base::{AgentId, CloseReason, Mono, Name, Now, SessionId, Shared, name};
use crate::wire::{CAPABILITIES, Dialect, ErrorCode, Frame, Hello, Welcome};

/// The channel that every JSON client is in, as in agent-relay 1.6.0.
const GENERAL: &str = "general";

impl Relay {
    pub(super) fn on_hello(&mut self, now: Now, id: SessionId, hello: Hello<'_>, outbox: &mut Outbox) {
        let claimed = match name::check_agent(&hello.claimed_name) {
            Ok(claimed) => claimed,
            Err(problem) => {
                let text = format!("Not an agent name: {problem}");
                return self.fatal(id, ErrorCode::BadRequest, &text, CloseReason::BadName, outbox);
            }
        };
        if self.stopping {
            return self.close(id, CloseReason::Shutdown, outbox);
        }
        let grant = match self.authenticate(now, id, claimed, &hello) {
            Ok(grant) => grant,
            Err(denied) => return self.deny(now, id, claimed, denied, outbox),
        };
        if let (Some(grant), Some(session)) = (&grant, self.sessions.find(id)) {
            self.sightings.used(grant, session.peer.source, claimed, now.wall_ms);
        }
        let home = self.hasher.hash(claimed.as_bytes()).home(self.options.shards);
        // From here on nobody needs the credential itself.
        let hello = Hello { auth_type: "".into(), credential: Default::default(), ..hello };
        if home != self.options.shard {
            // Nothing is in flight on a connection before its HELLO, so it can move.
            self.drop_session(id, outbox);
            let hello = Box::new(hello.into_owned());
            outbox.outputs.push(Output::Move { session: id, to: home, hello, grant });
            return;
        }
        if self.equip(now, id, grant, outbox) {
            self.claim(now, id, hello, outbox);
        }
    }

    /// A connection is at home, and its credential was good where it was accepted.
    pub(super) fn on_adopted(
        &mut self,
        now: Now,
        id: SessionId,
        session: Session,
        hello: Hello<'_>,
        outbox: &mut Outbox,
    ) {
        self.half_open[usize::from(session.peer.owner)].join(id, session.peer.source);
        self.sessions.insert(id, session);
        self.timers.set(timers::coalesced(now.mono + PING_AFTER), Timer::Session(id));
        if self.stopping {
            return self.close(id, CloseReason::Shutdown, outbox);
        }
        let grant = self.sessions.find_mut(id).and_then(|session| session.grant.take());
        if self.equip(now, id, grant, outbox) {
            self.claim(now, id, hello, outbox);
        }
    }

    /// Whose is the name?
    fn claim(&mut self, now: Now, id: SessionId, hello: Hello<'_>, outbox: &mut Outbox) {
        let Ok(claimed) = name::check_agent(&hello.claimed_name) else { return };
        let (slot, agent) = (self.find_agent(claimed), AgentId::of(claimed.as_bytes()));
        if slot.is_none() && self.knows_too_many() && self.first_to_forget(now).is_none() {
            return self.refuse_unknown(id, outbox);
        }
        // Whoever waits for the agent's seat holds the name as well.
        let holder = match self.asking.get(&agent) {
            Some(asker) => *asker,
            None => slot.and_then(|slot| self.agents[slot].session()),
        };
        if let Some(holder) = holder
            && !self.take_over(now, slot, holder, id, &hello, outbox)
        {
            let text = format!("Agent name \"{claimed}\" is in use by another connection");
            return self.fatal(id, ErrorCode::DuplicateConnection, &text, CloseReason::DuplicateConnection, outbox);
        }
        self.seat(now, id, agent, slot, hello, outbox);
    }

    /// Nothing stands in the way any more.
    pub(super) fn enter(&mut self, now: Now, id: SessionId, sitter: Sitter, hello: &Hello<'_>, outbox: &mut Outbox) {
        let Ok(claimed) = name::check_agent(&hello.claimed_name) else { return };
        let slot = match self.find_agent(claimed) {
            Some(slot) => slot,
            None if !self.make_room(now, outbox) => {
                self.give_seat_back(now, sitter, outbox);
                return self.refuse_unknown(id, outbox);
            }
            None => self.meet(now, claimed.into(), outbox),
        };
        self.agents[slot].seated = Some(sitter);
        self.welcome(now, id, slot, hello, outbox);
    }

    fn find_agent(&self, name: &str) -> Option<AgentSlot> {
        self.agents.find(self.hasher.hash(name.as_bytes()), name.as_bytes())
    }

    fn knows_too_many(&self) -> bool {
        let share = self.options.bounds.known_agents_max.min(KNOWN_AGENTS_MAX) / usize::from(self.options.shards);
        self.agents.len() >= share.max(1)
    }

    fn refuse_unknown(&mut self, id: SessionId, outbox: &mut Outbox) {
        let text = "The relay knows as many agents as it can, and each of them is connected or has mail waiting";
        self.fatal(id, ErrorCode::QuotaExceeded, text, CloseReason::KnownAgentsFull, outbox);
    }

    /// Who is to be forgotten next: away, owed nothing, and not about to come back.
    fn first_to_forget(&self, now: Now) -> Option<AgentSlot> {
        // Those who wait for a seat are few: as many as connections without one.
        self.agents.away().in_order(now.mono).find(|slot| !self.comes_back(*slot))
    }

    /// Whether somebody waits for a seat under this agent's name.
    pub(super) fn comes_back(&self, slot: AgentSlot) -> bool {
        self.asking.get(&self.agents[slot].id).is_some_and(Option::is_some)
    }

    /// Somebody new is to be known. Says whether there is room, or was made.
    fn make_room(&mut self, now: Now, outbox: &mut Outbox) -> bool {
        let mut room = !self.knows_too_many();
        // Two for one, so that a bound that was lowered is kept again in time.
        for _ in 0..2 {
            if self.knows_too_many()
                && let Some(slot) = self.first_to_forget(now)
            {
                self.forget(slot, outbox);
                self.counters.forgotten_early += 1;
                room = true;
            }
        }
        room
    }

    /// A name that was not known until now.
    fn meet(&mut self, now: Now, name: Name, outbox: &mut Outbox) -> AgentSlot {
        let (hash, agent) = (self.hasher.hash(name.as_bytes()), AgentId::of(name.as_bytes()));
        if self.agents.len() == 0 {
            self.timers.set(now.mono + super::FORGET_EVERY, Timer::Forget);
        }
        self.push_record(Record::Known { agent, name: name.clone(), at_ms: now.wall_ms }, outbox);
        let queue = Queue::new(self.options.epoch, self.forgotten_through + 1);
        // The log may hold messages to an agent of this name that was forgotten: they are not owed to this one.
        let nothing = ProgressRecord {
            agent,
            delivered: queue.settled_through(),
            acknowledged: queue.settled_through(),
            settled: Box::default(),
            owed: Owed::default(),
        };
        self.push_record(Record::Progress(nothing), outbox);
        let mut agent = Agent::new(name, hash, agent, queue, now);
        if let Some(numbers) = self.strangers.meet(agent.id) {
            agent.numbers = numbers;
        }
        // Answers may be on their way to one of this name that was forgotten.
        agent.numbers.told_apart_from = self.given_back;
        self.agents.insert(agent)
    }

    /// Ends the holder's connection if the newcomer may have the name: it presents the holder's token, or came in with the
    /// holder's key, or the holder has been silent. The seat is inherited. Two clients with one name do not flap: after two take-overs in 10 s the holder stays.
    fn take_over(
        &mut self,
        now: Now,
        slot: Option<AgentSlot>,
        holder: SessionId,
        newcomer: SessionId,
        hello: &Hello<'_>,
        outbox: &mut Outbox,
    ) -> bool {
        let agent = slot.map(|slot| &self.agents[slot]);
        let key_of = |id| Some(self.sessions.find(id)?.grant.as_ref()?.key);
        let same_key = key_of(newcomer).is_some() && key_of(newcomer) == key_of(holder);
        let is_silent = |held: &Session| held.paused == 0 && now.mono.since(held.last_heard) >= TAKE_OVER_SILENCE;
        let silent = self.sessions.find(holder).is_none_or(is_silent);
        let entitled = silent
            || same_key
            || hello.resume.is_some_and(|token| agent.is_some_and(|agent| self.token_is_good(now, agent, token)));
        let lately = |at: &Option<Mono>| at.is_some_and(|at| now.mono.since(at) < TAKE_OVER_DAMPER);
        let damped = agent.is_some_and(|agent| agent.taken_over_at.iter().all(lately));
        if !entitled || damped {
            return false;
        }
        let seated = slot.and_then(|slot| {
            let agent = &mut self.agents[slot];
            agent.taken_over_at = [agent.taken_over_at[1], Some(now.mono)];
            agent.seated.take()
        });
        self.counters.taken_over += 1;
        outbox
            .reply(holder, error(ErrorCode::DuplicateConnection, "Another connection has taken this agent name", true));
        outbox.reply(holder, Frame::Bye);
        self.leave(now, holder, CloseReason::DuplicateConnection, outbox);
        self.close(holder, CloseReason::DuplicateConnection, outbox);
        slot.into_iter().for_each(|slot| self.agents[slot].seated = seated);
        true
    }

    /// Whether `token` resumes this agent's session. (Tokens are 122 random bits and live for a day: a timing difference
    /// in comparing them tells nobody anything within that time.)
    fn token_is_good(&self, now: Now, agent: &Agent, token: crate::base::ids::Token) -> bool {
        let ended = match agent.presence {
            Presence::Live(_) => None,
            Presence::Lost(at) | Presence::Left(at) => Some(at),
        };
        let known = token == agent.resume || agent.resume_before == Some(token);
        known && agent.resume != Default::default() && ended.is_none_or(|at| now.mono.since(at) < RESUME_TTL)
    }

    /// The session begins, or goes on; and whoever was greeted before is told now.
    pub(super) fn welcome(&mut self, now: Now, id: SessionId, slot: AgentSlot, hello: &Hello<'_>, outbox: &mut Outbox) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        let (dialect, was) = (session.dialect, session.state);
        let (peer, grant, scopes, key) = (session.peer.clone(), session.grant.take(), session.scopes, session.key);
        *session = Session { dialect, state: State::Live(slot), grant, scopes, key, ..Session::fresh(now.mono, peer) };
        let receives = session.scopes.contains(Scopes::RECEIVE);
        if was == State::Fresh {
            self.half_open[usize::from(session.peer.owner)].leave(id, session.peer.source);
        }
        self.prefetch(now, key, outbox);
        let resumed = hello.resume.is_some_and(|token| self.token_is_good(now, &self.agents[slot], token));
        let (fresh_session, resume) = (self.tokens.issue(), self.tokens.issue());
        let in_flight_max = match hello.in_flight_max {
            0 => self.options.bounds.in_flight_max,
            asked => asked.min(self.options.bounds.in_flight_max),
        };
        let agent = &mut self.agents[slot];
        // The token that was presented stays good until a frame arrives under the new one.
        agent.resume_before = if resumed { hello.resume } else { None };
        agent.resume = resume;
        if !resumed {
            agent.session_token = fresh_session;
        }
        agent.presence = Presence::Live(id);
        self.agents.list(slot);
        let agent = &mut self.agents[slot];
        agent.dialect = dialect;
        agent.in_flight_max = in_flight_max;
        agent.receives = receives;
        agent.last_seen = now;
        agent.profile = profile_of(hello);
        let (name, number, session_token, agent_id) =
            (agent.name.clone(), agent.numbers.high, agent.session_token, agent.id);
        if resumed {
            let before = agent.queue.load();
            let mut news = std::mem::take(&mut self.news);
            agent.queue.acknowledge_resumed(now.mono, hello.handled, &mut news);
            self.after_settling(slot, before, &mut news, outbox);
            self.news = news;
            self.counters.resumed += 1;
        } else if hello.resume_presented {
            let text = "Resume token rejected; starting new session";
            outbox.reply(id, error(ErrorCode::ResumeTooOld, text, false));
        }
        self.live += 1;
        self.presence_generation += 1;
        self.counters.welcomed += 1;
        let agent = &self.agents[slot];
        let record = SessionRecord {
            agent: agent.id,
            at_ms: now.wall_ms,
            dialect,
            session: agent.session_token,
            resume: agent.resume,
            resume_before: agent.resume_before,
            profile: agent.profile.clone(),
        };
        self.push_note(Record::Session(Box::new(record)), outbox);
        outbox.records_urgent = true;
        if dialect == Dialect::Json {
            // A refusal here only means that the agent has all the subscriptions it may have.
            let _ = self.subscribe(slot, GENERAL, true, outbox);
        }
        outbox.outputs.push(Output::Settle { session: id, name, agent: agent_id, token: session_token });
        let welcome = Welcome {
            agent: agent_id,
            session: session_token,
            resume,
            resumed,
            number,
            capabilities: CAPABILITIES,
            epoch: self.options.epoch,
            in_flight_max,
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            heartbeat_ms: HEARTBEAT_MS,
            server: concat!("relay/", env!("CARGO_PKG_VERSION")).into(),
            license: self.license.clone().into(),
        };
        outbox.reply(id, Frame::Welcome(Box::new(welcome)));
        self.pump(now, slot, id, outbox);
        let waiting = self.grace.take(self.agents[slot].name.clone().as_bytes());
        for waiting in waiting {
            self.accept_one(now, waiting.parcel, waiting.origin, outbox);
        }
        self.prepay(now, id, outbox);
    }
}

/// The licence as WELCOME tells it.
pub(super) fn license_of(entitlement: &Entitlement) -> String {
    let features: Vec<String> = entitlement.features.iter().map(|feature| format!("\"{}\"", feature.name())).collect();
    let limit = |limit: Option<u32>| limit.map_or("null".to_owned(), |limit| limit.to_string());
    format!(
        "{{\"tier\":\"{}\",\"features\":[{}],\"limits\":{{\"maxAgents\":{},\"retentionDays\":{}}}}}",
        entitlement.tier.name(),
        features.join(","),
        limit(entitlement.agents_max),
        limit(entitlement.retention_days_max),
    )
}

fn profile_of(hello: &Hello<'_>) -> Option<Shared<Profile>> {
    let profile = Profile {
        cli: hello.cli.as_ref().into(),
        program: hello.program.as_ref().into(),
        model: hello.model.as_ref().into(),
        task: hello.task.as_ref().into(),
        working_directory: hello.working_directory.as_ref().into(),
    };
    (profile != Profile::default()).then(|| Shared::new(profile))
}

const _: () =
    assert!(PING_AFTER < DEAD_AFTER && DEAD_AFTER > Mono::ms(0), "a silent peer is asked before it is given up");
