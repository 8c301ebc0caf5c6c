//! Who may come in: credentials, certificates, the names they may speak for; and who must go when a key is gone.
//! Nothing here depends on whether the claimed name is known: both get the same answers.

use super::Relay;
use super::counters::AuthFailure;
use super::outbox::Outbox;
use super::session::{Penalty, State};
use super::sources::Verdict;
use super::timers::Timer;
use crate::base::keys::{AuthError, Grant, KeyRing, Ring};
use crate::base::tier::Feature;
use crate::base::{CloseReason, Mono, Name, Now, SessionId};
use crate::wire::{ErrorCode, Hello};

/// How often the wall clock is compared with the end of the credential that ends first: it may jump.
const LOOK_EVERY: u64 = Mono::ms(1_000);

/// Why a HELLO goes no further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Denied {
    Credential(AuthError),
    /// The key does not speak for that name.
    KeyName,
    /// The certificate does not.
    CertificateName,
}

impl Denied {
    fn kind(self) -> AuthFailure {
        match self {
            Denied::Credential(AuthError::Missing) => AuthFailure::Missing,
            Denied::Credential(AuthError::Unknown) => AuthFailure::UnknownKey,
            Denied::Credential(AuthError::Expired) => AuthFailure::Expired,
            Denied::Credential(AuthError::Invalid) => AuthFailure::Invalid,
            Denied::KeyName | Denied::CertificateName => AuthFailure::NameNotAllowed,
        }
    }
}

impl Relay {
    /// What this HELLO's credential grants; nothing where none is needed.
    pub(super) fn authenticate(
        &self,
        now: Now,
        id: SessionId,
        claimed: &str,
        hello: &Hello<'_>,
    ) -> Result<Option<Box<Grant>>, Denied> {
        let Some(session) = self.sessions.find(id) else { return Ok(None) };
        let peer = &session.peer;
        let (kind, credential) = (hello.auth_type.as_ref(), hello.credential.reveal());
        let presented = !kind.is_empty() || !credential.is_empty();
        let needed = self.options.require_auth || peer.exposed;
        // A licence that has lapsed neither opens the door nor locks everyone out.
        let checked = needed || self.options.entitlement.require(Feature::Authentication).is_ok();
        let grant = if presented && checked {
            let grant = self.options.keys.verify(kind, credential, now.wall_ms).map_err(Denied::Credential)?;
            Some(Box::new(grant))
        } else if self.options.require_auth || (peer.exposed && peer.certificate.is_none()) {
            return Err(Denied::Credential(AuthError::Missing));
        } else {
            None
        };
        if let Some(names) = grant.as_ref().and_then(|grant| grant.agents.as_ref())
            && !names.iter().any(|name: &Name| **name == *claimed)
        {
            return Err(Denied::KeyName);
        }
        if self.options.bind_certificates
            && let Some(identity) = &peer.certificate
            && !identity.names.iter().any(|name| **name == *claimed)
        {
            return Err(Denied::CertificateName);
        }
        Ok(grant)
    }

    /// Says so and closes; late, when wrong credentials come from there again and again.
    pub(super) fn deny(&mut self, now: Now, id: SessionId, claimed: &str, denied: Denied, outbox: &mut Outbox) {
        self.counters.auth_failures[denied.kind() as usize] += 1;
        if let Some(session) = self.sessions.find(id) {
            self.sightings.refused(denied.kind(), session.peer.source, claimed, now.wall_ms);
        }
        let error = match denied {
            Denied::Credential(error) => error,
            Denied::KeyName | Denied::CertificateName => {
                let what = if denied == Denied::KeyName { "key" } else { "certificate" };
                let text = format!("Agent name \"{claimed}\" not allowed for this {what}");
                return self.fatal(id, ErrorCode::Forbidden, &text, CloseReason::Forbidden, outbox);
            }
        };
        let Some(session) = self.sessions.find_mut(id) else { return };
        // Whoever presents nothing guesses nothing.
        let guessed = error != AuthError::Missing;
        let verdict = if guessed { self.sources.failed(now.mono, session.peer.source) } else { Verdict::AtOnce };
        match verdict {
            Verdict::AtOnce => self.say_unauthorized(id, error, CloseReason::Unauthorized, outbox),
            Verdict::After(delay) => {
                let until = now.mono + delay;
                session.state = State::Penalized(Penalty { error, until });
                self.counters.auth_delayed += 1;
                self.timers.set(until, Timer::Session(id));
            }
            Verdict::Never => self.close(id, CloseReason::Throttled, outbox),
        }
    }

    /// The late answer is due.
    pub(super) fn end_penalty(&mut self, now: Now, id: SessionId, penalty: Penalty, outbox: &mut Outbox) {
        if now.mono >= penalty.until {
            self.say_unauthorized(id, penalty.error, CloseReason::Unauthorized, outbox);
        } else {
            self.timers.set(penalty.until, Timer::Session(id));
        }
    }

    fn say_unauthorized(&mut self, id: SessionId, error: AuthError, reason: CloseReason, outbox: &mut Outbox) {
        self.fatal(id, ErrorCode::Unauthorized, &error.to_string(), reason, outbox);
    }

    /// The connection speaks with this grant from now on; says whether it is still good, and ends the connection if not.
    pub(super) fn equip(&mut self, now: Now, id: SessionId, grant: Option<Box<Grant>>, outbox: &mut Outbox) -> bool {
        let Some(grant) = grant else { return true };
        match good_until_ms(&self.options.keys, &grant) {
            Some(until_ms) if now.wall_ms < until_ms => self.watch_credential(now, until_ms),
            ended => {
                self.turn_out(id, ended, outbox);
                return false;
            }
        }
        self.open_meter(now, id, &grant);
        if let Some(session) = self.sessions.find_mut(id) {
            session.scopes = grant.scopes;
            session.grant = Some(grant);
        }
        true
    }

    /// There are other keys from now on.
    pub(super) fn on_keys(&mut self, now: Now, keys: Ring, outbox: &mut Outbox) {
        self.options.keys = keys;
        self.forget_funds();
        self.turn_out_expired(now, outbox);
    }

    /// A look at the wall clock.
    pub(super) fn check_credentials(&mut self, now: Now, outbox: &mut Outbox) {
        self.credentials_watched = false;
        if self.credential_ends_at_ms <= now.wall_ms {
            self.turn_out_expired(now, outbox);
        } else {
            self.watch_credential(now, u64::MAX);
        }
    }

    /// Ends every connection of this shard whose credential is no longer good.
    fn turn_out_expired(&mut self, now: Now, outbox: &mut Outbox) {
        self.credential_ends_at_ms = u64::MAX;
        for id in self.sessions.ids() {
            let Some(grant) = self.sessions.find(id).and_then(|session| session.grant.as_ref()) else { continue };
            match good_until_ms(&self.options.keys, grant) {
                Some(until_ms) if now.wall_ms < until_ms => self.watch_credential(now, until_ms),
                ended => self.turn_out(id, ended, outbox),
            }
        }
    }

    fn turn_out(&mut self, id: SessionId, ended_at_ms: Option<u64>, outbox: &mut Outbox) {
        let (error, reason) = match ended_at_ms {
            Some(_) => (AuthError::Expired, CloseReason::KeyExpired),
            None => (AuthError::Unknown, CloseReason::KeyRevoked),
        };
        self.say_unauthorized(id, error, reason, outbox);
    }

    /// Makes sure that somebody looks when a credential ends that ends then.
    fn watch_credential(&mut self, now: Now, until_ms: u64) {
        self.credential_ends_at_ms = self.credential_ends_at_ms.min(until_ms);
        if self.credential_ends_at_ms < u64::MAX && !self.credentials_watched {
            self.credentials_watched = true;
            let left = Mono::ms(self.credential_ends_at_ms.saturating_sub(now.wall_ms).max(1));
            self.timers.set(now.mono + left.min(LOOK_EVERY), Timer::Credentials);
        }
    }
}

/// Until when a connection that was let in with `grant` may stay; none when its key, or its secret, is gone.
fn good_until_ms(keys: &KeyRing, grant: &Grant) -> Option<u64> {
    let key = keys.find(grant.key)?;
    let secret_until_ms = match key.hash_before {
        _ if key.hash == grant.secret => u64::MAX,
        Some((hash, until_ms)) if hash == grant.secret => until_ms,
        _ => return None,
    };
    Some(secret_until_ms.min(grant.expires_at_ms).min(key.expires_at_ms.unwrap_or(u64::MAX)))
}
