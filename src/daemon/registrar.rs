//! The registrar: makes, lists, revokes and rotates API keys, mints tokens from them, counts their use, and writes down
//! what was done. Runs on the clerk's thread. The store is the truth: what could not be committed did not happen. Verifies
//! no credential; whoever does holds the ring that is made here.

use super::audit::{AuditEvent, uuid_bytes};
use super::presence::time_of;
use super::trail;
use super::witness::{Witness, meta_of};
use crate::base::Name;
use crate::base::keys::{
    ALLOWED_AGENTS_MAX, ApiKey, KEY_LENGTH, KEY_PREFIX, KEYS_MAX, KeyId, KeyRing, PER_MINUTE, PER_MINUTE_MAX, Ring,
    SHOWN_LENGTH, Scopes, TOKEN_LIFE_MS, hash_of,
};
use crate::base::name::check_agent;
use crate::base::tier::{Entitlement, Feature};
use crate::relay::{KeyUse, Sighting};
use crate::store::control::{
    CREATED_BY_BYTES_MAX, ControlChange, EVENT_BYTES_MAX, KEY_DESCRIPTION_BYTES_MAX, KEY_NAME_BYTES_MAX,
};
use crate::store::{Store, StoreError};
use base64::Engine;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// What is said with a new secret.
const SAVE_IT: &str = "Save this key now. It will not be shown again.";
/// The name of the secret that tokens are signed with.
const TOKEN_SECRET: &[u8] = b"token";
/// How often counters and last uses are written, when any have changed.
const USAGE_EVERY: Duration = Duration::from_secs(60);
/// Keys of one transaction that writes counters: commits of messages wait meanwhile.
const KEYS_AT_ONCE: usize = 128;
/// Events of one transaction, likewise.
const EVENTS_AT_ONCE: usize = 64;
/// How often what has outlived its time is deleted.
const SWEEP_EVERY: Duration = Duration::from_secs(3_600);
/// Revoked and expired keys are remembered this long.
const REMEMBERED_MS: u64 = 90 * DAY_MS;
/// How long a rotated secret lives when nothing else is said, and at most.
const OVERLAP_MS: u64 = DAY_MS;
const OVERLAP_MS_MAX: u64 = 30 * DAY_MS;
/// The longest life of a key: a hundred years.
const LIFE_MS_MAX: u64 = 36_500 * DAY_MS;
/// Hexadecimal digits of an id that are enough to look for it.
const ID_DIGITS_MIN: usize = 4;
/// Ids that are named when several fit.
const MATCHES_SHOWN: usize = 5;
const DAY_MS: u64 = 24 * 3_600_000;

/// Who keeps the API keys.
pub(super) struct Registrar {
    store: Store,
    /// All of them, revoked ones too.
    keys: BTreeMap<KeyId, ApiKey>,
    token_secret: Zeroizing<[u8; 32]>,
    /// Messages that each shard has counted since the start, as far as they are in `keys`.
    counted: HashMap<(u16, KeyId), u64>,
    /// Keys whose counters have changed since they were written, or whose row may be another than here.
    used: BTreeSet<KeyId>,
    used_written: Instant,
    swept: Option<Instant>,
    witness: Witness,
    /// How long events are kept.
    retention_ms: u64,
}

impl Registrar {
    /// Reads what the store has; draws the secret of tokens when there is none yet.
    pub(super) fn open(store: Store, retention_ms: u64) -> Result<Registrar, StoreError> {
        let token_secret = store.secret(TOKEN_SECRET)?;
        let keys = read_keys(&store)?;
        let witness = Witness::of(&store);
        Ok(Registrar {
            store,
            keys,
            token_secret,
            counted: HashMap::new(),
            used: BTreeSet::new(),
            used_written: Instant::now(),
            swept: None,
            witness,
            retention_ms,
        })
    }

    /// The keys in force, for the shards.
    pub(super) fn ring(&self) -> Ring {
        Arc::new(KeyRing::new(self.keys.values().cloned(), *self.token_secret))
    }

    /// Does what `arguments` ask for in the name of `who`; the answer, and whether the shards need a new ring.
    pub(super) fn answer(
        &mut self,
        arguments: &Value,
        who: &str,
        entitlement: &Entitlement,
        now_ms: u64,
    ) -> Result<(Value, bool), String> {
        let op = arguments["op"].as_str().unwrap_or_default();
        // Keys that were made under a licence that has ended are still believed: they can be looked at, and taken back.
        let is_left = matches!(op, "list" | "revoke" | "log") && !self.keys.is_empty();
        if !is_left {
            entitlement.require(Feature::ApiKeys).map_err(|refused| refused.to_string())?;
        }
        let who = &who[..who.floor_char_boundary(CREATED_BY_BYTES_MAX)];
        // A wish that is not understood must not become a key without it.
        let unknown = arguments.as_object().into_iter().flat_map(Map::keys).find(|name| !is_member(op, name));
        if let Some(name) = unknown
            && is_op(op)
        {
            return Err(format!("\"{op}\" does not know {name:?}"));
        }
        match op {
            "list" => Ok((self.list(arguments["all"] == true), false)),
            "log" => trail::page(&self.store, arguments).map(|answer| (answer, false)),
            "create" => self.create(arguments, who, now_ms).map(|answer| (answer, true)),
            "revoke" => self.revoke(arguments, who, now_ms).map(|answer| (answer, true)),
            "rotate" => self.rotate(arguments, who, now_ms).map(|answer| (answer, true)),
            "token" => self.token(arguments, who, now_ms).map(|answer| (answer, false)),
            _ => Err("\"op\" must be one of list, create, revoke, rotate, token, log".to_owned()),
        }
    }

    /// Newest first.
    fn list(&self, all: bool) -> Value {
        let mut shown: Vec<&ApiKey> = self.keys.values().filter(|key| all || key.revoked_at_ms.is_none()).collect();
        shown.sort_by_key(|key| (std::cmp::Reverse(key.created_at_ms), key.id));
        json!({ "keys": shown.into_iter().map(as_json).collect::<Vec<_>>() })
    }

    fn create(&mut self, arguments: &Value, who: &str, now_ms: u64) -> Result<Value, String> {
        if self.keys.values().filter(|key| key.revoked_at_ms.is_none()).count() >= KEYS_MAX {
            return Err(format!("there are {KEYS_MAX} API keys, and there can be no more: revoke some first"));
        }
        let secret = new_secret()?;
        let key = ApiKey {
            id: KeyId(uuid_bytes(random_bytes().ok_or(NO_RANDOMNESS)?)),
            hash: hash_of(&secret),
            hash_before: None,
            prefix: secret[..SHOWN_LENGTH].into(),
            name: name_of(&arguments["name"])?,
            description: description_of(&arguments["description"])?,
            scopes: scopes_of(&arguments["scopes"])?,
            agents: agents_of(&arguments["agents"])?,
            per_minute: per_minute_of(&arguments["rate"])?,
            created_at_ms: now_ms,
            created_by: who.into(),
            expires_at_ms: life_ms_of(&arguments["expires_ms"])?.map(|life_ms| now_ms + life_ms),
            revoked_at_ms: None,
            last_used_at_ms: None,
            total_messages: 0,
        };
        self.keep(&key, event("ssh_key.created", who, &key, [], now_ms))?;
        Ok(json!({
            "id": key.id.to_string(), "key": &*secret, "keyPrefix": key.prefix, "name": key.name,
            "scopes": key.scopes.names(), "expiresAt": key.expires_at_ms.and_then(time_of), "message": SAVE_IT,
        }))
    }

    fn revoke(&mut self, arguments: &Value, who: &str, now_ms: u64) -> Result<Value, String> {
        let mut key = self.find(&arguments["id"])?.clone();
        key.revoked_at_ms = Some(now_ms);
        key.hash_before = None;
        self.keep(&key, event("ssh_key.deleted", who, &key, [], now_ms))?;
        Ok(json!({ "success": true, "id": key.id.to_string(), "name": key.name }))
    }

    fn rotate(&mut self, arguments: &Value, who: &str, now_ms: u64) -> Result<Value, String> {
        let mut key = self.find_alive(&arguments["id"], now_ms)?.clone();
        let overlap_ms = match &arguments["overlap_ms"] {
            Value::Null => OVERLAP_MS,
            value => value.as_u64().filter(|ms| *ms <= OVERLAP_MS_MAX).ok_or("the overlap is from 0 to 30 days")?,
        };
        let secret = new_secret()?;
        let (prefix_before, until_ms) = (key.prefix.clone(), now_ms + overlap_ms);
        // The secret before that one, should it still live, ends here: two are enough.
        key.hash_before = (overlap_ms > 0).then_some((key.hash, until_ms));
        key.hash = hash_of(&secret);
        key.prefix = secret[..SHOWN_LENGTH].into();
        let meta = [
            ("rotated", json!(true)),
            ("key_prefix_before", json!(prefix_before)),
            ("before_until", json!(time_of(until_ms))),
        ];
        self.keep(&key, event("ssh_key.created", who, &key, meta, now_ms))?;
        Ok(json!({
            "id": key.id.to_string(), "key": &*secret, "keyPrefix": key.prefix, "name": key.name,
            "previousUntil": time_of(until_ms), "message": SAVE_IT,
        }))
    }

    fn token(&mut self, arguments: &Value, who: &str, now_ms: u64) -> Result<Value, String> {
        const MINUTES_MAX: u64 = TOKEN_LIFE_MS / 60_000;
        let minutes = match &arguments["minutes"] {
            Value::Null => MINUTES_MAX,
            value => value
                .as_u64()
                .filter(|minutes| (1..=MINUTES_MAX).contains(minutes))
                .ok_or_else(|| format!("a token lives from 1 to {MINUTES_MAX} minutes"))?,
        };
        let key = self.find_alive(&arguments["id"], now_ms)?;
        let ends_ms = key.expires_at_ms.unwrap_or(u64::MAX).min(now_ms + minutes * 60_000);
        let alone = KeyRing::new([key.clone()], *self.token_secret);
        let token = Zeroizing::new(alone.mint(key.id, ends_ms).ok_or("the key is gone")?);
        let meta = [("token_expires_at", json!(time_of(ends_ms)))];
        let (id, event) = (key.id, event("ssh_key.used", who, key, meta, now_ms));
        self.commit(&[], &[], &[event]).map_err(|error| sentence(&error))?;
        Ok(json!({ "id": id.to_string(), "token": &*token, "expiresAt": time_of(ends_ms) }))
    }

    /// The key that is not revoked and whose id this is, or begins so.
    fn find(&self, id: &Value) -> Result<&ApiKey, String> {
        let text = id.as_str().unwrap_or_default();
        let wanted: String = text.chars().filter(|character| *character != '-').collect();
        let is_id = (ID_DIGITS_MIN..=32).contains(&wanted.len()) && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_id {
            return Err(format!(
                "the id of a key has {ID_DIGITS_MIN} to 32 hexadecimal digits; `relay keys list` shows them"
            ));
        }
        let wanted = wanted.to_ascii_lowercase();
        let digits = |key: &ApiKey| key.id.to_string().replace('-', "");
        let fits: Vec<&ApiKey> = self.keys.values().filter(|key| digits(key).starts_with(&wanted)).collect();
        let alive: Vec<&ApiKey> = fits.iter().filter(|key| key.revoked_at_ms.is_none()).copied().collect();
        match (&alive[..], &fits[..]) {
            ([key], _) => Ok(key),
            ([], []) => Err(format!("there is no API key {wanted}; `relay keys list` shows those there are")),
            ([], [key, ..]) => Err(format!("the API key {} is revoked already", key.id)),
            (several, _) => {
                let ids: Vec<String> = several.iter().take(MATCHES_SHOWN).map(|key| key.id.to_string()).collect();
                Err(format!("{} API keys begin with {wanted}; say more of it: {}", several.len(), ids.join(", ")))
            }
        }
    }

    /// As [`Registrar::find`], but not one that has expired.
    fn find_alive(&self, id: &Value, now_ms: u64) -> Result<&ApiKey, String> {
        let key = self.find(id)?;
        match key.expires_at_ms {
            Some(at_ms) if at_ms <= now_ms => Err(format!("the API key {} has expired: make a new one", key.id)),
            _ => Ok(key),
        }
    }

    /// Keeps a key and what was done to it; then it holds.
    fn keep(&mut self, key: &ApiKey, event: AuditEvent) -> Result<(), String> {
        if let Err(error) = self.commit(&[key], &[], &[event]) {
            // The disk may have kept what it said it had not: what holds here is written again, or taken away.
            self.used.insert(key.id);
            return Err(sentence(&error));
        }
        self.used.remove(&key.id);
        self.keys.insert(key.id, key.clone());
        Ok(())
    }

    fn commit(&mut self, keys: &[&ApiKey], gone: &[KeyId], events: &[AuditEvent]) -> Result<(), StoreError> {
        let texts: Vec<(u64, String)> = events.iter().map(|event| (event.at_ms(), event.to_json())).collect();
        let rows: Vec<(u64, &str)> = texts.iter().map(|(at_ms, text)| (*at_ms, text.as_str())).collect();
        match self.store.change_control(ControlChange { keys, gone, events: &rows }) {
            Ok(()) => {
                events.iter().for_each(AuditEvent::log);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(reason = error.kind(), "a change of API keys or an audit event was not kept: {error}");
                Err(error)
            }
        }
    }

    /// Keeps an event about something else: a licence, a setting, a certificate. A disk that refuses is logged.
    pub(super) fn record(&mut self, event: AuditEvent) {
        if event.to_json().len() <= EVENT_BYTES_MAX {
            let _ = self.commit(&[], &[], &[event]);
        }
    }

    /// Keeps what a shard has seen of credentials, as far as it is news. A disk that refuses is logged.
    pub(super) fn witness(&mut self, seen: &[Sighting], now_ms: u64) {
        let events = self.witness.events(seen, &self.keys, now_ms);
        for some in events.chunks(EVENTS_AT_ONCE) {
            let _ = self.commit(&[], &[], some);
        }
    }

    /// Takes what `shard` has counted since the start, all in all: key, messages, last use.
    pub(super) fn absorb(&mut self, shard: u16, uses: &[KeyUse]) {
        for KeyUse { key: id, messages, last_used_ms } in uses {
            let Some(key) = self.keys.get_mut(id) else { continue };
            let counted = self.counted.entry((shard, *id)).or_default();
            // A count that is lower than before began anew.
            let more = if messages < counted { *messages } else { messages - *counted };
            *counted = *messages;
            let later = (*last_used_ms > 0).then_some(*last_used_ms).max(key.last_used_at_ms);
            if more > 0 || later != key.last_used_at_ms {
                key.total_messages = key.total_messages.saturating_add(more);
                key.last_used_at_ms = later;
                self.used.insert(*id);
            }
        }
    }

    /// Another retention time from now on.
    pub(super) fn keep_events_for(&mut self, retention_ms: u64) {
        self.retention_ms = retention_ms;
    }

    /// What time brings: overlaps end, counters are written, what is too old is deleted, by
    /// `sweep_ms`, the time that retention goes by. Whether the shards need a new ring.
    pub(super) fn tick(&mut self, now: Instant, now_ms: u64, sweep_ms: u64) -> bool {
        let mut changed = self.end_overlaps(now_ms);
        if now.saturating_duration_since(self.used_written) >= USAGE_EVERY {
            self.used_written = now;
            self.write_usage();
        }
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_EVERY) {
            self.swept = Some(now);
            changed |= self.sweep(sweep_ms);
        }
        changed
    }

    /// The last thing: counters are written.
    pub(super) fn stop(&mut self) {
        self.write_usage();
    }

    /// Rotated secrets whose overlap is over are forgotten, so that connections under them end. The row may keep it: a
    /// ring knows its time.
    fn end_overlaps(&mut self, now_ms: u64) -> bool {
        let mut changed = false;
        for key in self.keys.values_mut() {
            if key.hash_before.is_some_and(|(_, until_ms)| until_ms <= now_ms) {
                key.hash_before = None;
                changed = true;
            }
        }
        changed
    }

    fn write_usage(&mut self) {
        while !self.used.is_empty() {
            let some: Vec<KeyId> = self.used.iter().take(KEYS_AT_ONCE).copied().collect();
            let rows: Vec<&ApiKey> = some.iter().filter_map(|id| self.keys.get(id)).collect();
            let gone: Vec<KeyId> = some.iter().filter(|id| !self.keys.contains_key(id)).copied().collect();
            let change = ControlChange { keys: &rows, gone: &gone, events: &[] };
            if let Err(error) = self.store.change_control(change) {
                // They stay counted here, and the next minute tries again.
                tracing::warn!(reason = error.kind(), "the use of API keys was not written: {error}");
                return;
            }
            for id in some {
                self.used.remove(&id);
            }
        }
    }

    /// Deletes keys that ended long ago, revoked ones beyond their bound, and events that have outlived the retention time.
    fn sweep(&mut self, time_ms: u64) -> bool {
        let ended = |key: &ApiKey| key.revoked_at_ms.or(key.expires_at_ms);
        let mut gone: Vec<KeyId> = self
            .keys
            .values()
            .filter(|key| ended(key).is_some_and(|at_ms| at_ms.saturating_add(REMEMBERED_MS) <= time_ms))
            .map(|key| key.id)
            .collect();
        let mut revoked: Vec<(u64, KeyId)> =
            self.keys.values().filter_map(|key| Some((key.revoked_at_ms?, key.id))).collect();
        revoked.sort_unstable();
        gone.extend(revoked.iter().take(revoked.len().saturating_sub(KEYS_MAX)).map(|(_, id)| *id));
        let mut changed = false;
        for some in gone.chunks(KEYS_AT_ONCE) {
            if self.commit(&[], some, &[]).is_err() {
                break;
            }
            for id in some {
                changed |= self.keys.remove(id).is_some_and(|key| key.revoked_at_ms.is_none());
                self.used.remove(id);
            }
        }
        self.counted.retain(|(_, id), _| self.keys.contains_key(id));
        let cutoff_ms = time_ms.saturating_sub(self.retention_ms);
        loop {
            match self.store.sweep_events(cutoff_ms) {
                Ok(0) => return changed,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(reason = error.kind(), "old audit events were not deleted: {error}");
                    return changed;
                }
            }
        }
    }
}

/// What can be asked for, each with what may be said about it.
const OPS: [(&str, &[&str]); 6] = [
    ("list", &["all"]),
    ("create", &["name", "description", "scopes", "agents", "expires_ms", "rate"]),
    ("revoke", &["id"]),
    ("rotate", &["id", "overlap_ms"]),
    ("token", &["id", "minutes"]),
    ("log", &["limit", "before", "since_ms", "until_ms"]),
];

fn is_op(op: &str) -> bool {
    OPS.iter().any(|(known, _)| *known == op)
}

fn is_member(op: &str, name: &str) -> bool {
    name == "op" || OPS.iter().any(|(known, members)| *known == op && members.contains(&name))
}

/// What the operator reads when a change could not be kept.
fn sentence(error: &StoreError) -> String {
    format!("nothing was changed: {error}")
}

fn read_keys(store: &Store) -> Result<BTreeMap<KeyId, ApiKey>, StoreError> {
    let mut keys = BTreeMap::new();
    store.snapshot()?.keys(|key| {
        keys.insert(key.id, key);
        ControlFlow::Continue(())
    })?;
    Ok(keys)
}

const NO_RANDOMNESS: &str = "the kernel gives no random bytes: nothing was changed";

/// Sixteen random bytes from the kernel.
pub(super) fn random_bytes() -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}

/// A new API key.
fn new_secret() -> Result<Zeroizing<String>, String> {
    let mut bytes = Zeroizing::new([0; 24]);
    getrandom::fill(&mut *bytes).map_err(|_| NO_RANDOMNESS)?;
    // Room for all of it at once: a string that grows leaves its former self behind.
    let mut secret = Zeroizing::new(String::with_capacity(KEY_LENGTH));
    secret.push_str(KEY_PREFIX);
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode_string(*bytes, &mut secret);
    Ok(secret)
}

/// An event about `key`.
fn event<const N: usize>(
    event_type: &'static str,
    who: &str,
    key: &ApiKey,
    more: [(&str, Value); N],
    now_ms: u64,
) -> AuditEvent {
    let mut meta = meta_of(key);
    meta.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
    AuditEvent::new(event_type, who, ("ssh_key", &key.id.to_string()), meta, now_ms)
}

fn as_json(key: &ApiKey) -> Value {
    json!({
        "id": key.id.to_string(),
        "keyPrefix": key.prefix,
        "name": key.name,
        "description": (!key.description.is_empty()).then_some(&key.description),
        "scopes": key.scopes.names(),
        "allowedAgents": key.agents.as_ref().map(|agents| agents.iter().map(|agent| &**agent).collect::<Vec<_>>()),
        "rateLimitPerMinute": key.per_minute,
        "createdAt": time_of(key.created_at_ms),
        "createdBy": key.created_by,
        "lastUsedAt": key.last_used_at_ms.and_then(time_of),
        "expiresAt": key.expires_at_ms.and_then(time_of),
        "revokedAt": key.revoked_at_ms.and_then(time_of),
        "previousUntil": key.hash_before.and_then(|(_, until_ms)| time_of(until_ms)),
        "totalMessages": key.total_messages,
    })
}

fn name_of(value: &Value) -> Result<Box<str>, String> {
    let name = value.as_str().unwrap_or_default().trim();
    if name.is_empty() {
        return Err("Name is required".to_owned());
    }
    bounded(name, "the name", KEY_NAME_BYTES_MAX)
}

fn description_of(value: &Value) -> Result<Box<str>, String> {
    match value {
        Value::Null => Ok("".into()),
        Value::String(text) => bounded(text.trim(), "the description", KEY_DESCRIPTION_BYTES_MAX),
        _ => Err("the description must be a text".to_owned()),
    }
}

fn bounded(text: &str, what: &str, bytes_max: usize) -> Result<Box<str>, String> {
    if text.len() > bytes_max {
        return Err(format!("{what} has at most {bytes_max} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{what} must not contain control characters"));
    }
    Ok(text.into())
}

fn scopes_of(value: &Value) -> Result<Scopes, String> {
    let names = match value {
        Value::Null => return Ok(Scopes::USUAL),
        Value::Array(names) => names,
        _ => return Err("the scopes must be a list of names".to_owned()),
    };
    let mut scopes = Scopes::default();
    for name in names.iter().take(16) {
        let name = name.as_str().unwrap_or_default();
        let scope =
            Scopes::of(name).ok_or_else(|| format!("{name:?} is no scope: they are send, receive and admin"))?;
        scopes = scopes | scope;
    }
    if scopes == Scopes::default() {
        return Err("a key needs at least one scope: send, receive, admin".to_owned());
    }
    Ok(scopes)
}

fn agents_of(value: &Value) -> Result<Option<Arc<[Name]>>, String> {
    let names = match value {
        Value::Null => return Ok(None),
        Value::Array(names) => names,
        _ => return Err("the allowed agents must be a list of names".to_owned()),
    };
    if names.is_empty() || names.len() > ALLOWED_AGENTS_MAX {
        return Err(format!("a key is bound to 1 to {ALLOWED_AGENTS_MAX} agents, or to none in particular"));
    }
    let mut agents = BTreeSet::new();
    for name in names {
        let name = name.as_str().unwrap_or_default();
        let name = check_agent(name.as_bytes()).map_err(|rule| format!("the agent {name:?}: {rule}"))?;
        agents.insert(Name::from(name));
    }
    Ok(Some(agents.into_iter().collect()))
}

fn per_minute_of(value: &Value) -> Result<u32, String> {
    if value.is_null() {
        return Ok(PER_MINUTE);
    }
    let rate = value.as_u64().filter(|rate| (1..=PER_MINUTE_MAX).contains(rate));
    let rate = rate.and_then(|rate| u32::try_from(rate).ok());
    rate.ok_or_else(|| format!("the rate is from 1 to {PER_MINUTE_MAX} messages per minute"))
}

/// How long the key is to live, milliseconds.
fn life_ms_of(value: &Value) -> Result<Option<u64>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let life_ms = value.as_u64().filter(|ms| (1..=LIFE_MS_MAX).contains(ms));
    life_ms.map(Some).ok_or_else(|| "a key expires after a positive time of at most 36,500 days".to_owned())
}

#[cfg(test)]
mod tests;
