//! Control data: API keys, secrets of the daemon's own, and the events of the audit trail, as values of `keys`, `secrets`
//! and `events`. Each change is one transaction, on the disk when the call returns, whatever the durability of messages.
//! Decides nothing about who may do what. `docs/STORE.md` draws the values.

use super::error::{Part, StoreError};
use super::record::{self, Decoded, Reader};
use super::snapshot::Snapshot;
use super::{ControlDatabases, Databases, Failed, SCHEMA, SCHEMA_KEY, Store, error, meta_corrupt, open, seal};
use crate::base::Name;
use crate::base::keys::{ALLOWED_AGENTS_MAX, ApiKey, KeyId, SHOWN_LENGTH, Scopes};
use crate::base::name::check_agent;
use std::ops::{Bound, ControlFlow};
use zeroize::{Zeroize, Zeroizing};

/// Version of each of the three kinds of values.
const VERSION: u8 = 1;
/// Bytes of a key's name.
pub const KEY_NAME_BYTES_MAX: usize = 128;
/// Bytes of what a key is for.
pub const KEY_DESCRIPTION_BYTES_MAX: usize = 1024;
/// Bytes that say who made a key.
pub const CREATED_BY_BYTES_MAX: usize = 128;
/// Bytes of one event.
pub const EVENT_BYTES_MAX: usize = 16 * 1024;
/// Events that are kept: beyond it the oldest leave.
pub const EVENTS_MAX: u64 = 100_000;
/// Events that one transaction deletes at most.
const EVENTS_AT_ONCE: u64 = 2_000;

const HAS_BEFORE: u8 = 1;
const HAS_AGENTS: u8 = 2;
const HAS_EXPIRY: u8 = 4;
const HAS_REVOKED: u8 = 8;
const HAS_USED: u8 = 16;

/// What one transaction changes. Everything of it happens, or nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ControlChange<'a> {
    /// Keys as they are from now on.
    pub keys: &'a [&'a ApiKey],
    /// Keys that nobody remembers any more.
    pub gone: &'a [KeyId],
    /// Events that are added: when, milliseconds since 1970, and what, as JSON.
    pub events: &'a [(u64, &'a str)],
}

/// An event as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventRow {
    /// Its place in the order, from 1, without gaps, never used twice.
    pub sequence: u64,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// What, as JSON.
    pub text: Box<str>,
}

impl Store {
    /// Makes the databases of control data in a store of an older format, which has none, and gives it today's number.
    pub(super) fn upgrade(&self) -> Result<(), StoreError> {
        let mut guard = self.0.open.write();
        let Some(open) = guard.as_mut() else { return Ok(()) };
        let upgraded = open::upgrade(&open.env, open.databases.meta, SCHEMA_KEY, &SCHEMA.to_be_bytes());
        open.databases.control = Some(upgraded.map_err(|error| error::of_heed(error, self.folder()))?);
        Ok(())
    }

    /// Makes `change`; it is on the disk when this returns. After an error nothing of it holds, except where the disk kept
    /// what it said it had not: whoever goes on reads it again.
    pub fn change_control(&self, change: ControlChange<'_>) -> Result<(), StoreError> {
        let (mut plain, mut value) = (Vec::new(), Vec::new());
        self.write(|transaction, databases| {
            let control = control(databases)?;
            for key in change.keys {
                plain.clear();
                value.clear();
                encode_key(key, &mut plain);
                self.seal().wrap(Part::Keys, &key.id.0, &plain, &mut value)?;
                control.keys.put(transaction, &key.id.0, &value)?;
            }
            for id in change.gone {
                control.keys.delete(transaction, &id.0)?;
            }
            let mut sequence = match control.events.last(transaction)? {
                Some((key, _)) => event_number(key)?,
                None => 0,
            };
            for (at_ms, text) in change.events {
                if text.len() > EVENT_BYTES_MAX {
                    return Err(StoreError::TooLong(text.len()).into());
                }
                sequence = sequence.checked_add(1).ok_or(meta_corrupt("no event can follow the last one"))?;
                let key = sequence.to_be_bytes();
                plain.clear();
                value.clear();
                encode_event(*at_ms, text, &mut plain);
                self.seal().wrap(Part::Events, &key, &plain, &mut value)?;
                control.events.put(transaction, &key, &value)?;
            }
            let count = control.events.len(transaction)?;
            for _ in 0..count.saturating_sub(EVENTS_MAX).min(EVENTS_AT_ONCE) {
                let Some((key, _)) = control.events.first(transaction)? else { break };
                let key = event_number(key)?.to_be_bytes();
                control.events.delete(transaction, &key)?;
            }
            Ok(())
        })
    }

    /// A secret of the daemon's own: 32 random bytes, drawn when it is asked for first and the same ever after.
    /// Its name has at most 16 bytes.
    pub fn secret(&self, name: &[u8]) -> Result<Zeroizing<[u8; 32]>, StoreError> {
        {
            let snapshot = self.snapshot()?;
            let mut buffer = Zeroizing::new(Vec::new());
            if let Some(plain) = snapshot.value(Part::Secrets, name, &mut buffer)? {
                let corrupt = |what| StoreError::corrupt(Part::Secrets, seal::number_of(name), what);
                return decode_secret(plain).map(Zeroizing::new).map_err(corrupt);
            }
        }
        let secret = Zeroizing::new(seal::random::<32>().ok_or(super::no_randomness())?);
        // Room for all of it at once: a vector that grows leaves its former self behind.
        let mut plain = Zeroizing::new(Vec::with_capacity(64));
        let mut value = Zeroizing::new(Vec::with_capacity(128));
        plain.push(VERSION);
        plain.extend_from_slice(&*secret);
        self.write(|transaction, databases| {
            value.clear();
            self.seal().wrap(Part::Secrets, name, &plain, &mut value)?;
            control(databases)?.secrets.put(transaction, name, &value)?;
            Ok(())
        })?;
        Ok(secret)
    }

    /// Looks at whatever a start needs beside the log and the rows, before it writes anything: of a store in which that is
    /// damaged nothing is changed.
    pub fn look_at_control(&self) -> Result<(), StoreError> {
        self.kept_time()?;
        let snapshot = self.snapshot()?;
        snapshot.keys(|_| ControlFlow::Continue(()))?;
        let Some(control) = snapshot.databases().control else { return Ok(()) };
        let looked = control.secrets.iter(snapshot.transaction()).and_then(|mut secrets| {
            secrets.try_for_each(|item| item.map(drop))?;
            control.events.last(snapshot.transaction()).map(drop)
        });
        looked.map_err(|error| self.failed(error))
    }

    /// Deletes events older than `cutoff_ms`, from the front, in one transaction; how many. The last one stays whatever its
    /// age, since the next one's number comes from it. Call it again until it gives 0.
    pub fn sweep_events(&self, cutoff_ms: u64) -> Result<u64, StoreError> {
        let mut buffer = Vec::new();
        self.write(|transaction, databases| {
            let events = control(databases)?.events;
            let mut swept = 0;
            while swept < EVENTS_AT_ONCE && events.len(transaction)? > 1 {
                let Some((key, value)) = events.first(transaction)? else { break };
                let number = event_number(key)?;
                let salt = |epoch| -> Result<_, StoreError> {
                    let salt = databases.meta.get(transaction, &super::salt_key(epoch));
                    let salt = salt.map_err(|error| self.failed(error))?;
                    Ok(salt.and_then(|salt| salt.try_into().ok()))
                };
                let old = match self.seal().unwrap(Part::Events, key, value, &mut buffer, salt).map(decode_event) {
                    Ok(Ok((at_ms, _))) => at_ms < cutoff_ms,
                    // What cannot be read has no age; the bound on their number takes it in the end.
                    _ => false,
                };
                if !old {
                    break;
                }
                events.delete(transaction, &number.to_be_bytes())?;
                swept += 1;
            }
            Ok(swept)
        })
    }
}

impl Snapshot<'_> {
    /// Each API key, revoked ones too, until told to stop.
    pub fn keys(&self, mut each: impl FnMut(ApiKey) -> ControlFlow<()>) -> Result<(), StoreError> {
        let Some(control) = self.databases().control else { return Ok(()) };
        let mut buffer = Vec::new();
        for item in control.keys.iter(self.transaction()).map_err(|error| self.store().failed(error))? {
            let (key, value) = item.map_err(|error| self.store().failed(error))?;
            if each(self.key_of(key, value, &mut buffer)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn key_of(&self, key: &[u8], value: &[u8], buffer: &mut Vec<u8>) -> Result<ApiKey, StoreError> {
        let corrupt = |what| StoreError::corrupt(Part::Keys, seal::number_of(key), what);
        let id = KeyId(key.try_into().map_err(|_| corrupt("its key has not 16 bytes"))?);
        let plain = self.store().seal().unwrap(Part::Keys, key, value, buffer, |epoch| self.salt(epoch))?;
        decode_key(id, plain).map_err(corrupt)
    }

    /// Each event behind number `after` in order, until told to stop.
    pub fn events(&self, after: u64, mut each: impl FnMut(EventRow) -> ControlFlow<()>) -> Result<(), StoreError> {
        let Some(control) = self.databases().control else { return Ok(()) };
        let mut buffer = Vec::new();
        let after = after.to_be_bytes();
        let range = (Bound::Excluded(&after[..]), Bound::Unbounded);
        for item in control.events.range(self.transaction(), &range).map_err(|error| self.store().failed(error))? {
            let (key, value) = item.map_err(|error| self.store().failed(error))?;
            if each(self.event_of(key, value, &mut buffer)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Each event before number `before`, the newest first, until told to stop.
    pub fn events_before(
        &self,
        before: u64,
        mut each: impl FnMut(EventRow) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let Some(control) = self.databases().control else { return Ok(()) };
        let mut buffer = Vec::new();
        let before = before.to_be_bytes();
        let range = (Bound::Unbounded, Bound::Excluded(&before[..]));
        for item in control.events.rev_range(self.transaction(), &range).map_err(|error| self.store().failed(error))? {
            let (key, value) = item.map_err(|error| self.store().failed(error))?;
            if each(self.event_of(key, value, &mut buffer)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn event_of(&self, key: &[u8], value: &[u8], buffer: &mut Vec<u8>) -> Result<EventRow, StoreError> {
        let sequence = event_number(key)?;
        let plain = self.store().seal().unwrap(Part::Events, key, value, buffer, |epoch| self.salt(epoch))?;
        let (at_ms, text) = decode_event(plain).map_err(|what| StoreError::corrupt(Part::Events, sequence, what))?;
        Ok(EventRow { sequence, at_ms, text: text.into() })
    }

    /// Looks at a secret without showing it.
    pub(super) fn check_secret(&self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let mut buffer = Zeroizing::new(Vec::new());
        let plain = self.store().seal().unwrap(Part::Secrets, key, value, &mut buffer, |epoch| self.salt(epoch))?;
        let mut secret =
            decode_secret(plain).map_err(|what| StoreError::corrupt(Part::Secrets, seal::number_of(key), what))?;
        secret.zeroize();
        Ok(())
    }
}

/// The databases of control data: whatever is opened for writing has them.
fn control(databases: &Databases) -> Result<ControlDatabases, Failed> {
    databases.control.ok_or(Failed::Store(meta_corrupt("the databases of control data are missing")))
}

/// The number in a key of `events`.
pub(super) fn event_number(key: &[u8]) -> Result<u64, StoreError> {
    let number = key.try_into().map(u64::from_be_bytes);
    number.map_err(|_| StoreError::corrupt(Part::Events, seal::number_of(key), "its key has not 8 bytes"))
}

fn encode_key(key: &ApiKey, out: &mut Vec<u8>) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.push(VERSION);
    out.push(
        flag(key.hash_before.is_some(), HAS_BEFORE)
            | flag(key.agents.is_some(), HAS_AGENTS)
            | flag(key.expires_at_ms.is_some(), HAS_EXPIRY)
            | flag(key.revoked_at_ms.is_some(), HAS_REVOKED)
            | flag(key.last_used_at_ms.is_some(), HAS_USED),
    );
    out.push(key.scopes.0);
    out.extend_from_slice(&key.per_minute.to_le_bytes());
    out.extend_from_slice(&key.hash);
    record::put_u64(out, key.created_at_ms);
    record::put_u64(out, key.total_messages);
    for text in [&key.prefix, &key.name, &key.description, &key.created_by] {
        record::put_text(out, text);
    }
    if let Some((hash, until_ms)) = &key.hash_before {
        out.extend_from_slice(hash);
        record::put_u64(out, *until_ms);
    }
    if let Some(agents) = &key.agents {
        let agents = &agents[..agents.len().min(ALLOWED_AGENTS_MAX)];
        out.extend_from_slice(&(agents.len() as u16).to_le_bytes());
        agents.iter().for_each(|agent| record::put_text(out, agent));
    }
    for time in [key.expires_at_ms, key.revoked_at_ms, key.last_used_at_ms].into_iter().flatten() {
        record::put_u64(out, time);
    }
}

fn decode_key(id: KeyId, bytes: &[u8]) -> Decoded<ApiKey> {
    let mut body = Reader(bytes);
    if body.u8()? != VERSION {
        return Err("its format is unknown");
    }
    let flags = body.u8()?;
    let has = |flag: u8| flags & flag != 0;
    let scopes = Scopes(body.u8()?);
    if !(Scopes::SEND | Scopes::RECEIVE | Scopes::ADMIN).contains(scopes) || flags >= 2 * HAS_USED {
        return Err("it has a scope or a field that is unknown");
    }
    let per_minute = body.u32()?;
    let hash = digest(&mut body)?;
    let (created_at_ms, total_messages) = (body.u64()?, body.u64()?);
    let prefix = bounded(&mut body, SHOWN_LENGTH)?;
    let name = bounded(&mut body, KEY_NAME_BYTES_MAX)?;
    let description = bounded(&mut body, KEY_DESCRIPTION_BYTES_MAX)?;
    let created_by = bounded(&mut body, CREATED_BY_BYTES_MAX)?;
    let hash_before = if has(HAS_BEFORE) { Some((digest(&mut body)?, body.u64()?)) } else { None };
    let mut agents = None;
    if has(HAS_AGENTS) {
        let count = usize::from(body.u16()?);
        if count > ALLOWED_AGENTS_MAX {
            return Err("it is bound to too many agents");
        }
        let mut allowed: Vec<Name> = Vec::with_capacity(count);
        for _ in 0..count {
            let agent = check_agent(body.text()?.as_bytes()).map_err(|_| "it is bound to what is no agent's name")?;
            allowed.push(agent.into());
        }
        agents = Some(allowed.into());
    }
    let mut time = |flag: u8| -> Decoded<Option<u64>> { if has(flag) { body.u64().map(Some) } else { Ok(None) } };
    let (expires_at_ms, revoked_at_ms) = (time(HAS_EXPIRY)?, time(HAS_REVOKED)?);
    let last_used_at_ms = time(HAS_USED)?;
    if !body.0.is_empty() {
        return Err("it is longer than it should be");
    }
    Ok(ApiKey {
        id,
        hash,
        hash_before,
        prefix,
        name,
        description,
        scopes,
        agents,
        per_minute,
        created_at_ms,
        created_by,
        expires_at_ms,
        revoked_at_ms,
        last_used_at_ms,
        total_messages,
    })
}

fn digest(body: &mut Reader<'_>) -> Decoded<[u8; 32]> {
    body.take(32)?.try_into().map_err(|_| "a hash is cut off")
}

fn bounded(body: &mut Reader<'_>, bytes_max: usize) -> Decoded<Box<str>> {
    let text = body.text()?;
    if text.len() > bytes_max { Err("a text is longer than allowed") } else { Ok(text.into()) }
}

fn encode_event(at_ms: u64, text: &str, out: &mut Vec<u8>) {
    out.push(VERSION);
    record::put_u64(out, at_ms);
    out.extend_from_slice(text.as_bytes());
}

fn decode_event(bytes: &[u8]) -> Decoded<(u64, &str)> {
    let mut body = Reader(bytes);
    if body.u8()? != VERSION {
        return Err("its format is unknown");
    }
    let at_ms = body.u64()?;
    let text = std::str::from_utf8(body.rest()).map_err(|_| "it is not UTF-8")?;
    if text.len() > EVENT_BYTES_MAX { Err("it is longer than allowed") } else { Ok((at_ms, text)) }
}

fn decode_secret(bytes: &[u8]) -> Decoded<[u8; 32]> {
    match bytes.split_first() {
        Some((&VERSION, secret)) => secret.try_into().map_err(|_| "it has not 32 bytes"),
        _ => Err("its format is unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::keys::hash_of;
    use proptest::prelude::*;

    fn full_key() -> ApiKey {
        ApiKey {
            id: KeyId([9; 16]),
            hash: hash_of("now"),
            hash_before: Some((hash_of("before"), 17)),
            prefix: "ar_key_AbCdEfGh".into(),
            name: "build robots".into(),
            description: "those of the nightly build".into(),
            scopes: Scopes::USUAL | Scopes::ADMIN,
            agents: Some(["ann".into(), "bob".into()].into()),
            per_minute: 60,
            created_at_ms: 1,
            created_by: "uid:1000".into(),
            expires_at_ms: Some(2),
            revoked_at_ms: Some(3),
            last_used_at_ms: Some(4),
            total_messages: 5,
        }
    }

    #[test]
    fn a_key_reads_back_with_all_of_its_fields_and_with_none_of_those_it_may_lack() {
        let bare = ApiKey {
            hash_before: None,
            agents: None,
            expires_at_ms: None,
            revoked_at_ms: None,
            last_used_at_ms: None,
            ..full_key()
        };
        let nobody = ApiKey { agents: Some([].into()), ..full_key() };
        for key in [full_key(), bare, nobody] {
            let mut bytes = Vec::new();
            encode_key(&key, &mut bytes);
            assert_eq!(decode_key(key.id, &bytes), Ok(key.clone()));
            for length in 0..bytes.len() {
                assert!(decode_key(key.id, &bytes[..length]).is_err(), "cut off at {length}");
            }
            bytes.push(0);
            assert!(decode_key(key.id, &bytes).is_err(), "something follows");
        }
    }

    proptest! {
        #[test]
        fn whatever_bytes_control_values_have_decoding_ends(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_key(KeyId::default(), &bytes);
            let _ = decode_event(&bytes);
            let _ = decode_secret(&bytes);
        }

        #[test]
        fn a_key_with_one_wrong_byte_is_read_or_refused_and_never_panics(at in 0usize..200, byte in any::<u8>()) {
            let mut bytes = Vec::new();
            encode_key(&full_key(), &mut bytes);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = decode_key(KeyId::default(), &bytes);
        }
    }
}
