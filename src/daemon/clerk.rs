//! The clerk: answers questions about the daemon and its agents, and keeps the presence files. Runs on the main thread,
//! between signals. It asks one shard at a time for one part of its list, so no shard's turn grows with the fleet.

use super::audit::AuditEvent;
use super::headroom;
use super::licence::Licence;
use super::presence::{Presence, time_of};
use super::registrar::Registrar;
use super::run::days_ms;
use super::settings::Settings;
use super::storage::{RetentionClock, StorageGauges};
use crate::base::name::is_internal;
use crate::base::tier::Entitled;
use crate::base::{CloseReason, RefuseReason, SessionId, ShardId};
use crate::keeper;
use crate::mesh::{Answered, ClerkPost, Mesh, Notice, ShardGauges};
use crate::relay::counters::{AuthFailure, ReadIgnored};
use crate::relay::{AgentRow, CensusPart, CensusTicket, Gauges, Question};
use crate::shard::Bells;
use crate::store::{Follower, Store, StoreError};
use crate::wire::QueryKind;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the presence files may be replaced when somebody came or went.
const PRESENCE_INTERVAL: Duration = Duration::from_millis(500);
/// How often they are replaced so that counters and last sight move on.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);
/// How long messages are counted before their rate is worked out anew.
const RATE_WINDOW: Duration = Duration::from_secs(2);
/// How long a shard may take for one part of its list.
const PART_DEADLINE: Duration = Duration::from_secs(5);

/// What the clerk knows from the start.
pub(super) struct Facts {
    pub(super) started_at_ms: u64,
    pub(super) started: Instant,
    pub(super) listen: Vec<String>,
    pub(super) cpus: Vec<usize>,
    pub(super) reports: Vec<crate::uring::Report>,
    pub(super) store: Store,
    pub(super) follower: Arc<Follower>,
    pub(super) storage: StorageGauges,
    pub(super) entitlement: Entitled,
    pub(super) registrar: Registrar,
    /// None for a temporary daemon, which has no limits.
    pub(super) licence: Option<Licence>,
    /// How long messages are kept, for whoever deletes.
    pub(super) retention_ms: Arc<AtomicU64>,
    /// What they go by.
    pub(super) retention_clock: RetentionClock,
}

pub(super) struct Clerk {
    mesh: Arc<Mesh>,
    bells: Bells,
    settings: Settings,
    facts: Facts,
    presence: Presence,
    presence_seen: u64,
    presence_written: Option<Instant>,
    errands: VecDeque<Errand>,
    census: Option<Census>,
    tickets: u64,
    finished: Vec<bool>,
    /// Shards that do not have the newest keys yet.
    untold: Vec<u16>,
    /// Shards that do not know the newest entitlement yet.
    unentitled: Vec<u16>,
    rate: Rate,
    pub(super) stop_asked: bool,
}

/// Messages a second, measured over a while.
struct Rate {
    since: Instant,
    /// As counted then.
    messages: u64,
    per_second: u64,
}

/// Something that needs the shards' lists.
enum Errand {
    Answer {
        shard: ShardId,
        question: Question,
    },
    /// An answer about keys, held back until every shard goes by what was changed.
    Told {
        shard: ShardId,
        session: SessionId,
        number: u64,
        value: Value,
    },
    Presence,
}

/// A list being gathered.
struct Census {
    errand: Errand,
    ticket: u64,
    shard: u16,
    asked: Instant,
    gauges_only: bool,
    rows: Vec<(ShardId, AgentRow)>,
    gauges: Vec<(Gauges, ShardGauges)>,
}

impl Clerk {
    pub(super) fn new(mesh: Arc<Mesh>, bells: Bells, settings: Settings, facts: Facts) -> Clerk {
        let presence = Presence::load(&settings.layout.folder.join("team"));
        let finished = vec![false; usize::from(mesh.shards())];
        Clerk {
            mesh,
            bells,
            settings,
            facts,
            presence,
            presence_seen: 0,
            presence_written: None,
            errands: VecDeque::new(),
            census: None,
            tickets: 0,
            finished,
            untold: Vec::new(),
            unentitled: Vec::new(),
            rate: Rate { since: Instant::now(), messages: 0, per_second: 0 },
            stop_asked: false,
        }
    }

    /// Does what there is to do; gives how long it may sleep.
    pub(super) fn turn(&mut self) -> Duration {
        while let Some(post) = self.mesh.pop_clerk() {
            match post {
                ClerkPost::Question(shard, question) if question.kind == QueryKind::Stop => {
                    self.stop_asked = true;
                    self.answer(shard, question.session, question.number, Ok(json!({ "stopping": true })));
                }
                ClerkPost::Question(shard, question) if question.kind == QueryKind::Keys => self.keys(shard, question),
                ClerkPost::Question(shard, question) if question.kind == QueryKind::License => {
                    let answer = match &self.facts.licence {
                        Some(licence) => licence.answer(&question.arguments),
                        None => Err("a temporary relay has no licence".to_owned()),
                    };
                    self.answer(shard, question.session, question.number, answer);
                }
                ClerkPost::Question(shard, question) => self.errands.push_back(Errand::Answer { shard, question }),
                ClerkPost::Census(part, gauges) => self.take_part(part, gauges),
                ClerkPost::Finished(shard, uses, sightings) => {
                    self.facts.registrar.absorb(shard.0, &uses);
                    self.facts.registrar.witness(&sightings, wall_ms());
                    self.finished[usize::from(shard.0)] = true;
                }
            }
        }
        self.look_at_presence();
        self.look_at_licence();
        let sweep_ms = self.facts.retention_clock.sweep_ms();
        if self.facts.registrar.tick(Instant::now(), wall_ms(), sweep_ms) {
            self.publish_keys();
        }
        self.tell_changes();
        if let Some(census) = &self.census
            && census.asked.elapsed() > PART_DEADLINE
            && let Some(census) = self.census.take()
        {
            tracing::warn!(shard = census.shard, "a shard did not tell its list in time");
            match census.errand {
                Errand::Answer { shard, question } => {
                    let text = format!("shard {} did not answer within 5 s", census.shard);
                    self.answer(shard, question.session, question.number, Err(text));
                }
                // It is done, and that shard will hear of it before anything else.
                Errand::Told { shard, session, number, value } => self.answer(shard, session, number, Ok(value)),
                Errand::Presence => {}
            }
        }
        // What is asked behind a change must find it: a shard takes its notices in order.
        let waits = !self.untold.is_empty() && matches!(self.errands.front(), Some(Errand::Told { .. }));
        if self.census.is_none()
            && !waits
            && let Some(errand) = self.errands.pop_front()
        {
            self.begin(errand);
        }
        PRESENCE_INTERVAL
    }

    /// Whether every shard has returned.
    pub(super) fn all_finished(&self) -> bool {
        self.finished.iter().all(|finished| *finished)
    }

    /// Writes the presence files one last time from what was gathered before.
    pub(super) fn tell_shards_to_stop(&self) {
        for shard in 0..self.mesh.shards() {
            // A full queue is emptied each turn; a shard that does not turn is what the drain deadline is for.
            if self.mesh.notify(ShardId(shard), Notice::Stop).is_err() {
                tracing::error!(shard, "a shard's queue is full and it was not told to stop");
            }
            self.bells.shards[usize::from(shard)].wake();
        }
    }

    /// Makes and takes back API keys. Whoever is given a key may present it to any shard at once, and whoever revokes one
    /// may rely on it: the answer comes behind the news.
    fn keys(&mut self, shard: ShardId, question: Question) {
        let arguments: Value = serde_json::from_str(&question.arguments).unwrap_or_default();
        if matches!(arguments["op"].as_str(), Some("list" | "log")) {
            // With what the shards have counted and seen until now.
            return self.errands.push_back(Errand::Answer { shard, question });
        }
        let (session, number) = (question.session, question.number);
        match self.ask_registrar(&question) {
            Ok((value, true)) => {
                self.publish_keys();
                self.errands.push_back(Errand::Told { shard, session, number, value });
            }
            other => self.answer(shard, session, number, other.map(|(value, _)| value)),
        }
    }

    fn ask_registrar(&mut self, question: &Question) -> Result<(Value, bool), String> {
        let arguments: Value = serde_json::from_str(&question.arguments).unwrap_or_default();
        // Or it would outlive itself.
        if question.by_token && matches!(arguments["op"].as_str(), Some("create" | "rotate" | "token")) {
            return Err(
                "an access token may not make keys or tokens, nor rotate keys; present the key itself".to_owned()
            );
        }
        let who = match question.by {
            Some(key) => format!("key:{key}"),
            None => format!("uid:{}", rustix::process::getuid().as_raw()),
        };
        self.facts.registrar.answer(&arguments, &who, &self.facts.entitlement, wall_ms())
    }

    /// Every shard gets the keys as they are now; connections under others end.
    fn publish_keys(&mut self) {
        self.untold = (0..self.mesh.shards()).collect();
        self.tell_changes();
    }

    /// The last thing.
    pub(super) fn stop(&mut self) {
        self.facts.registrar.stop();
        if let Some(licence) = self.facts.licence.take() {
            licence.stop();
        }
    }

    fn look_at_presence(&mut self) {
        let generation = self.mesh.presence();
        let since = self.presence_written.map_or(Duration::MAX, |written| written.elapsed());
        let changed = generation != self.presence_seen && since >= PRESENCE_INTERVAL;
        let stale = since >= REFRESH_INTERVAL;
        if changed || stale {
            self.presence_seen = generation;
            self.presence_written = Some(Instant::now());
            self.errands.push_back(Errand::Presence);
        }
    }

    fn begin(&mut self, errand: Errand) {
        let gauges_only = match &errand {
            Errand::Answer { question, .. } => matches!(question.kind, QueryKind::Status | QueryKind::Keys),
            Errand::Told { .. } => true,
            Errand::Presence => {
                self.presence.begin();
                false
            }
        };
        self.tickets += 1;
        self.census = Some(Census {
            errand,
            ticket: self.tickets,
            shard: 0,
            asked: Instant::now(),
            gauges_only,
            rows: Vec::new(),
            gauges: Vec::new(),
        });
        self.ask_for(0, if gauges_only { u32::MAX } else { 0 });
    }

    fn ask_for(&mut self, shard: u16, cursor: u32) {
        let ticket = CensusTicket { ticket: self.tickets, cursor };
        // If its queue is full, the part's deadline says so to whoever asked.
        let _ = self.mesh.notify(ShardId(shard), Notice::Census(ticket));
        if self.mesh.shard_sleeper(ShardId(shard)).rouse() {
            self.bells.shards[usize::from(shard)].wake();
        }
    }

    fn take_part(&mut self, part: CensusPart, shard_gauges: ShardGauges) {
        let Some(census) = &mut self.census else { return };
        if part.ticket != census.ticket || part.shard.0 != census.shard {
            return;
        }
        census.asked = Instant::now();
        match census.errand {
            Errand::Presence => self.presence.take(part.rows),
            _ => census.rows.extend(part.rows.into_iter().map(|row| (part.shard, row))),
        }
        if let Some(next) = part.next {
            let shard = census.shard;
            return self.ask_for(shard, next);
        }
        let gauges = part.gauges.map(|gauges| *gauges).unwrap_or_default();
        self.facts.registrar.absorb(part.shard.0, &gauges.keys);
        self.facts.registrar.witness(&gauges.sightings, wall_ms());
        census.gauges.push((gauges, shard_gauges));
        census.shard += 1;
        if census.shard < self.mesh.shards() {
            let (shard, cursor) = (census.shard, if census.gauges_only { u32::MAX } else { 0 });
            return self.ask_for(shard, cursor);
        }
        if let Some(census) = self.census.take() {
            self.look_at_rate(&census.gauges);
            if let Some(licence) = &self.facts.licence {
                let sum = |of: fn(&Gauges) -> u64| census.gauges.iter().map(|(heart, _)| of(heart)).sum::<u64>();
                // The peak of the day, not of the moments at which somebody looked.
                let agents = sum(|heart| u64::from(heart.seats_today.1.max(heart.seats)));
                licence.note_usage(agents, sum(|heart| heart.counters.messages_in));
            }
            self.finish(census);
        }
    }

    /// How many messages a second came in of late.
    fn look_at_rate(&mut self, gauges: &[(Gauges, ShardGauges)]) {
        let messages = gauges.iter().map(|(heart, _)| heart.counters.messages_in).sum::<u64>();
        let elapsed = self.rate.since.elapsed();
        if elapsed >= RATE_WINDOW {
            let more = messages.saturating_sub(self.rate.messages);
            let per_second = (more as u128 * 1_000 / elapsed.as_millis().max(1)) as u64;
            self.rate = Rate { since: Instant::now(), messages, per_second };
        }
    }

    fn look_at_licence(&mut self) {
        let Some(licence) = &self.facts.licence else { return };
        let in_force = licence.in_force();
        if in_force != self.facts.entitlement {
            self.entitle(in_force);
        }
    }

    /// What the licence grants from now on: every shard is told, and retention follows. Nobody is dropped.
    fn entitle(&mut self, entitlement: Entitled) {
        let days = entitlement.retention_days(self.settings.retention_days);
        self.facts.retention_ms.store(days_ms(days), Ordering::Relaxed);
        self.facts.registrar.keep_events_for(days_ms(days));
        self.facts.entitlement = entitlement;
        self.note_change("licence");
        self.unentitled = (0..self.mesh.shards()).collect();
        self.tell_changes();
    }

    /// Writes down that something is not as it was: `licence`, `tls`.
    pub(super) fn note_change(&mut self, what: &'static str) {
        let mut meta = Map::new();
        meta.insert("changed".to_owned(), json!([what]));
        if what == "licence" {
            meta.insert("tier".to_owned(), json!(self.facts.entitlement.tier.name()));
        }
        self.facts.registrar.record(AuditEvent::new("settings.updated", "relay", ("settings", what), meta, wall_ms()));
    }

    /// What changed is told to the shards that have not heard of it. One whose queue is full is told at the next turn.
    fn tell_changes(&mut self) {
        if !self.untold.is_empty() {
            let ring = self.facts.registrar.ring();
            tell(&self.mesh, &self.bells, &mut self.untold, || Notice::Keys(ring.clone()));
        }
        let entitlement = &self.facts.entitlement;
        tell(&self.mesh, &self.bells, &mut self.unentitled, || Notice::Entitled(entitlement.clone()));
    }

    fn finish(&mut self, census: Census) {
        match census.errand {
            Errand::Presence => {
                if let Err(error) = self.presence.write(wall_ms()) {
                    tracing::warn!(%error, "team/agents.json could not be written; `agent-relay agents` will be out of date");
                }
            }
            Errand::Answer { shard, question } => {
                let value = match question.kind {
                    QueryKind::Agents => Ok(agents(&census.rows, &question.arguments)),
                    QueryKind::Keys => self.ask_registrar(&question).map(|(value, _)| value),
                    _ => Ok(self.status(&census.gauges)),
                };
                self.answer(shard, question.session, question.number, value);
            }
            Errand::Told { shard, session, number, value } => self.answer(shard, session, number, Ok(value)),
        }
    }

    fn answer(&self, shard: ShardId, session: SessionId, number: u64, value: Result<Value, String>) {
        let (failed, value) = match value {
            Ok(value) => (false, value),
            Err(text) => (true, json!({ "error": text })),
        };
        let answer = Answered { session, number, failed, json: value.to_string().into_bytes() };
        // A full queue means a thousand unread answers: the asker's own deadline will tell it.
        let _ = self.mesh.notify(shard, Notice::Answered(answer));
        if self.mesh.shard_sleeper(shard).rouse() {
            self.bells.shards[usize::from(shard.0)].wake();
        }
    }

    fn status(&self, gauges: &[(Gauges, ShardGauges)]) -> Value {
        let sum = |of: fn(&Gauges) -> u64| gauges.iter().map(|(heart, _)| of(heart)).sum::<u64>();
        let shards: Vec<Value> =
            gauges.iter().enumerate().map(|(index, pair)| self.shard_status(index, pair)).collect();
        let mut closes = Map::new();
        for reason in CloseReason::ALL {
            let count = gauges.iter().map(|(heart, _)| heart.counters.closes[reason as usize]).sum::<u64>();
            if count > 0 {
                closes.insert(reason.name().into(), json!(count));
            }
        }
        let mut refusals = Map::new();
        for reason in RefuseReason::ALL {
            let count = gauges.iter().map(|(heart, _)| heart.counters.refusals[reason as usize]).sum::<u64>();
            if count > 0 {
                refusals.insert(reason.name().into(), json!(count));
            }
        }
        let mut failures = Map::new();
        for failure in AuthFailure::ALL {
            let count = gauges.iter().map(|(heart, _)| heart.counters.auth_failures[failure as usize]).sum::<u64>();
            if count > 0 {
                failures.insert(failure.name().into(), json!(count));
            }
        }
        let mut ignored = Map::new();
        for why in ReadIgnored::ALL {
            let count = gauges.iter().map(|(heart, _)| heart.counters.reads_ignored[why as usize]).sum::<u64>();
            if count > 0 {
                ignored.insert(why.name().into(), json!(count));
            }
        }
        let uptime = self.facts.started.elapsed();
        let entitlement = &self.facts.entitlement;
        let licence = self.facts.licence.as_ref().map(|licence| {
            let (state, sentence) = licence.standing();
            json!({ "state": state, "sentence": sentence, "warnings": licence.warnings() })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "started_at": time_of(self.facts.started_at_ms),
            "uptime_s": uptime.as_secs(),
            "socket": self.settings.layout.socket,
            "listen": self.facts.listen,
            "tls": {
                "on": self.settings.tls.is_some(),
                "mutual": self.settings.tls.as_ref().is_some_and(|tls| tls.mutual),
            },
            "store": self.store_status(sum(|heart| heart.waiting_messages), sum(|heart| heart.waiting_bytes)),
            "durability": {
                "mode": self.settings.durability.name(),
                "survives": self.settings.durability.survives(),
            },
            "tier": entitlement.tier.name(),
            "license": licence,
            "agents": {
                "connected": sum(|heart| u64::from(heart.live)),
                "known": sum(|heart| u64::from(heart.known)),
                "forgotten_early": sum(|heart| heart.counters.forgotten_early),
                "seats": sum(|heart| u64::from(heart.seats)),
                "seats_peak": sum(|heart| u64::from(heart.seats_peak)),
                "max": entitlement.agents_max,
            },
            "messages": {
                "in": sum(|heart| heart.counters.messages_in),
                "accepted": sum(|heart| heart.counters.accepted),
                "out": sum(|heart| heart.counters.messages_out),
                "acknowledged": sum(|heart| heart.counters.acknowledged),
                "redelivered": sum(|heart| heart.counters.redelivered),
                "duplicates": sum(|heart| heart.counters.duplicates),
                "waiting": sum(|heart| heart.waiting_messages),
                "max_per_second": entitlement.messages_per_second,
            },
            "sessions": {
                "welcomed": sum(|heart| heart.counters.welcomed),
                "resumed": sum(|heart| heart.counters.resumed),
                "taken_over": sum(|heart| heart.counters.taken_over),
            },
            "reads": { "taken": sum(|heart| heart.counters.reads), "ignored": ignored },
            "shards": shards,
            "writer": {
                "queued": (0..self.mesh.shards()).map(|shard| self.mesh.batches_waiting(ShardId(shard))).sum::<usize>(),
                "committed": self.facts.storage.writer.committed.load(Ordering::Relaxed),
                "messages": self.facts.storage.writer.messages.load(Ordering::Relaxed),
                "commits": self.facts.storage.writer.commits.load(Ordering::Relaxed),
                "pending": self.facts.storage.writer.pending.load(Ordering::Relaxed),
            },
            "authentication": {
                "required": self.settings.require_auth,
                "failures": failures,
                "delayed": sum(|heart| heart.counters.auth_delayed),
            },
            "paused": {
                "now": sum(|heart| u64::from(heart.paused)),
                "ever": sum(|heart| heart.counters.pauses),
                "writer_behind": {
                    "now": sum(|heart| u64::from(heart.pressed)),
                    "ever": sum(|heart| heart.counters.pressed),
                },
            },
            "advice": headroom::advice(entitlement, sum(|heart| u64::from(heart.seats)), self.rate.per_second),
            "closes": closes,
            "refusals": refusals,
            "clock_warning": self.clock_warning(uptime),
            "clock_doubt_ms": self.facts.storage.keeper.clock_doubt_ms.load(Ordering::Relaxed),
        })
    }

    /// The store, its health, and how far its threads have got.
    fn store_status(&self, owed_messages: u64, owed_bytes: u64) -> Value {
        let (writer, keeper) = (&self.facts.storage.writer, &self.facts.storage.keeper);
        let shown = [&writer.trouble, &writer.log_trouble, &keeper.trouble];
        let trouble = shown.into_iter().find_map(|trouble| trouble.lock().clone());
        let damage = self.facts.follower.damage();
        let health = match &trouble {
            None if damage.is_some() => json!({
                "ok": false,
                "problem": "corrupt",
                "since_ms": null,
                "sentence": damage.map(|damage| StoreError::Corrupt(damage).to_string()),
            }),
            None => json!({ "ok": true, "problem": null, "since_ms": null, "sentence": null }),
            Some(trouble) => json!({
                "ok": false,
                "problem": trouble.kind,
                "since_ms": trouble.since_ms,
                "sentence": trouble.sentence,
            }),
        };
        let refused = writer.trouble.lock().as_ref().map(|trouble| (trouble.kind, trouble.sentence.clone()));
        let unwritten = writer.unwritten.load(Ordering::Relaxed);
        let batches = (0..self.mesh.shards()).map(|shard| self.mesh.batches_waiting(ShardId(shard))).sum::<usize>();
        // What would be lost with the process now: only while the disk refuses, else it is written before the end.
        let at_stake = refused.filter(|_| unwritten > 0 || batches > 0).map(|(reason, sentence)| {
            json!({ "messages": unwritten, "batches": batches, "reason": reason, "sentence": sentence })
        });
        let (file_bytes, used_bytes) = self.facts.store.file_bytes().unwrap_or_default();
        let (first, last) = (self.facts.store.first_segment().ok(), self.facts.store.last_segment().ok());
        let applied = keeper.applied.load(Ordering::Relaxed);
        let swept_at_ms = keeper.swept_at_ms.load(Ordering::Relaxed);
        let entitlement = &self.facts.entitlement;
        json!({
            "path": self.facts.store.folder(),
            "durability": self.settings.durability.name(),
            "encrypted": self.facts.store.is_encrypted(),
            "file_bytes": file_bytes,
            "used_bytes": used_bytes,
            "journal_bytes": self.facts.store.journal_bytes().unwrap_or_default(),
            "first_segment": first,
            "last_segment": last,
            "unindexed_segments": keeper.unindexed_segments.load(Ordering::Relaxed),
            "checkpoint_lag_segments": last.map(|last| last.saturating_sub(applied)),
            "health": health,
            "at_stake": at_stake,
            "owed_messages": owed_messages,
            "owed_bytes": owed_bytes,
            "pending_records": writer.pending.load(Ordering::Relaxed),
            "fetched_messages": keeper.fetched_messages.load(Ordering::Relaxed),
            "upkeep_failures": keeper.failures.load(Ordering::Relaxed),
            "retention_days": entitlement.retention_days(self.settings.retention_days),
            "retention_max_days": entitlement.retention_days_max,
            "tier": entitlement.tier.name(),
            "swept_messages": keeper.swept_messages.load(Ordering::Relaxed),
            "last_sweep_ms": (swept_at_ms > 0).then_some(swept_at_ms),
        })
    }

    fn shard_status(&self, index: usize, (heart, shard): &(Gauges, ShardGauges)) -> Value {
        let report = &self.facts.reports[index];
        json!({
            "id": index,
            "cpu": self.facts.cpus.get(index),
            "backend": report.backend,
            "receive": report.receive,
            "fallback": report.fallback,
            "agents": heart.live,
            "connections": heart.connections,
            "half_open": heart.half_open,
            "messages_in": heart.counters.messages_in,
            "messages_out": heart.counters.messages_out,
            "bytes_in": shard.bytes_in,
            "bytes_out": shard.bytes_out,
            "waiting_messages": heart.waiting_messages,
            "waiting_bytes": heart.waiting_bytes,
            "resident_bytes": heart.resident_bytes,
            "topics": heart.topics,
            "grace": heart.grace,
            "lane_hold": shard.lane_hold,
            "turns": shard.turns,
            "busy_us": shard.busy_us,
        })
    }

    /// The wall clock should have moved as far as the monotonic one since the start, and say what the store can believe.
    fn clock_warning(&self, uptime: Duration) -> Option<String> {
        let doubt_ms = self.facts.storage.keeper.clock_doubt_ms.load(Ordering::Relaxed);
        if doubt_ms != 0 {
            return Some(keeper::sentence(doubt_ms));
        }
        let expected = self.facts.started_at_ms as i128 + uptime.as_millis() as i128;
        let drift_s = (i128::from(wall_ms()) - expected) / 1_000;
        (drift_s.abs() > 60).then(|| format!("the wall clock has jumped by {drift_s} s since the start"))
    }
}

/// Tells `notice` to the shards of `untold`, and takes those out that have room for it.
fn tell(mesh: &Mesh, bells: &Bells, untold: &mut Vec<u16>, notice: impl Fn() -> Notice) {
    untold.retain(|shard| {
        let full = mesh.notify(ShardId(*shard), notice()).is_err();
        if mesh.shard_sleeper(ShardId(*shard)).rouse() {
            bells.shards[usize::from(*shard)].wake();
        }
        full
    });
}

fn agents(rows: &[(ShardId, AgentRow)], arguments: &str) -> Value {
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_default();
    let all = arguments.get("all").and_then(Value::as_bool).unwrap_or(false);
    let mut shown: Vec<&(ShardId, AgentRow)> = rows.iter().filter(|(_, row)| all || !is_internal(&row.name)).collect();
    shown.sort_by(|left, right| left.1.name.cmp(&right.1.name));
    let list: Vec<Value> = shown.into_iter().map(|(shard, row)| agent(*shard, row)).collect();
    json!({ "agents": list })
}

fn agent(shard: ShardId, row: &AgentRow) -> Value {
    let profile = row.profile.as_deref().cloned().unwrap_or_default();
    json!({
        "name": row.name.as_ref(),
        "state": if row.live { "live" } else { "away" },
        "cli": profile.cli,
        "program": profile.program,
        "model": profile.model,
        "task": profile.task,
        "working_directory": profile.working_directory,
        "dialect": if row.json { "json" } else { "native" },
        "shard": shard.0,
        "first_seen": time_of(row.first_seen_ms),
        "last_seen": time_of(row.last_seen_ms),
        "messages_sent": row.messages_sent,
        "messages_received": row.messages_received,
        "waiting": row.waiting_messages,
        "waiting_bytes": row.waiting_bytes,
        "in_flight": row.in_flight,
        "oldest_unacknowledged_ms": row.oldest_unacknowledged_ms,
        "topics": row.topics.iter().map(|topic| topic.as_ref()).collect::<Vec<&str>>(),
    })
}

/// Milliseconds since 1970.
pub(super) fn wall_ms() -> u64 {
    jiff::Timestamp::now().as_millisecond().max(0) as u64
}
