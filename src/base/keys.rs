//! API keys and access tokens as values: what a credential is, what it grants, and the table it is looked up in.
//! The table is immutable: a change makes a new one, which every shard is handed. No secret is kept here, only hashes.

use super::ids::{UUID_LENGTH, read_uuid, write_uuid};
use super::name::Name;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// What every API key begins with.
pub const KEY_PREFIX: &str = "ar_key_";
/// Characters of an API key: the prefix and 24 random bytes as base64url.
pub const KEY_LENGTH: usize = KEY_PREFIX.len() + 32;
/// Characters of it that may be shown.
pub const SHOWN_LENGTH: usize = 15;
/// What every access token begins with.
pub const TOKEN_PREFIX: &str = "ar_tok_";
/// Messages per minute of a key when nothing else is said.
pub const PER_MINUTE: u32 = 1_000;
/// The most messages per minute that a key may be given.
pub const PER_MINUTE_MAX: u64 = 60_000_000;
/// Longest credential there is: a token has 119 characters.
pub const CREDENTIAL_BYTES_MAX: usize = 256;
/// API keys of one daemon, revoked ones not counted: each shard holds the table in memory.
pub const KEYS_MAX: usize = 10_000;
/// Agent names that one key may be bound to.
pub const ALLOWED_AGENTS_MAX: usize = 256;
/// How long an access token lives when nothing else is said, milliseconds.
pub const TOKEN_LIFE_MS: u64 = 15 * 60_000;

/// A key's number: a UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct KeyId(pub [u8; 16]);

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, out)
    }
}

impl KeyId {
    /// The id that `text` is, hyphens or not.
    pub fn parse(text: &str) -> Option<KeyId> {
        if text.len() <= UUID_LENGTH { read_uuid(text.as_bytes()).map(KeyId) } else { None }
    }
}

/// What a credential may do; a set of bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scopes(pub u8);

impl Scopes {
    /// Send messages.
    pub const SEND: Scopes = Scopes(1);
    /// Receive messages.
    pub const RECEIVE: Scopes = Scopes(2);
    /// Ask, administer, and add others to channels.
    pub const ADMIN: Scopes = Scopes(4);
    /// What a key has when nothing else is said.
    pub const USUAL: Scopes = Scopes(1 | 2);
    /// Names, in the order they are printed.
    pub const NAMED: [(Scopes, &str); 3] =
        [(Scopes::SEND, "send"), (Scopes::RECEIVE, "receive"), (Scopes::ADMIN, "admin")];

    /// Whether every bit of `other` is set here.
    pub fn contains(self, other: Scopes) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of what is set.
    pub fn names(self) -> Vec<&'static str> {
        Scopes::NAMED.into_iter().filter(|(scope, _)| self.contains(*scope)).map(|(_, name)| name).collect()
    }

    /// The scope of this name.
    pub fn of(name: &str) -> Option<Scopes> {
        Scopes::NAMED.into_iter().find(|(_, known)| *known == name).map(|(scope, _)| scope)
    }
}

impl std::ops::BitOr for Scopes {
    type Output = Scopes;
    fn bitor(self, other: Scopes) -> Scopes {
        Scopes(self.0 | other.0)
    }
}

/// The agents that a credential may speak for; `None`: any.
pub type AllowedAgents = Option<Arc<[Name]>>;

/// One API key as it is stored. Its secret is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its number.
    pub id: KeyId,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// SHA-256 of the secret before the last rotation, and until when (milliseconds since 1970) that one is good too.
    pub hash_before: Option<([u8; 32], u64)>,
    /// The first [`SHOWN_LENGTH`] characters.
    pub prefix: Box<str>,
    /// What people call it.
    pub name: Box<str>,
    /// What it is for.
    pub description: Box<str>,
    /// What it may do.
    pub scopes: Scopes,
    /// For whom it may speak.
    pub agents: AllowedAgents,
    /// Messages per minute, over all its connections.
    pub per_minute: u32,
    /// When it was made, milliseconds since 1970.
    pub created_at_ms: u64,
    /// By whom: `uid:1000`, or the key that did.
    pub created_by: Box<str>,
    /// When it ends by itself.
    pub expires_at_ms: Option<u64>,
    /// When it was revoked.
    pub revoked_at_ms: Option<u64>,
    /// When it was last used, to within the interval at which that is written.
    pub last_used_at_ms: Option<u64>,
    /// Messages sent under it, likewise.
    pub total_messages: u64,
}

/// What a good credential grants its connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The key behind it.
    pub key: KeyId,
    /// What the connection may do.
    pub scopes: Scopes,
    /// For whom it may speak.
    pub agents: AllowedAgents,
    /// Messages per minute, over all connections of the key.
    pub per_minute: u32,
    /// When the credential ends, milliseconds since 1970; `u64::MAX`: never.
    pub expires_at_ms: u64,
    /// SHA-256 of the secret that was presented (of the key's, for a token): it may have been rotated away since.
    pub secret: [u8; 32],
    /// Whether a token was presented, which ends; not the key itself.
    pub by_token: bool,
}

/// Why a credential is not good; the texts are the product's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuthError {
    /// None was presented where one is needed.
    #[error("Authentication required")]
    Missing,
    /// No such API key, or it is revoked.
    #[error("Invalid API key")]
    Unknown,
    /// It was good once.
    #[error("API key expired")]
    Expired,
    /// A type that does not exist, or a token that is forged, garbled, too old, or of a key that is gone.
    #[error("Invalid credentials")]
    Invalid,
}

/// The table in force, shared by all threads; a change is a new one.
pub type Ring = Arc<KeyRing>;

/// Where a connection comes from, for counting what it gets wrong: a user of this machine, an address, or a network
/// (IPv6 by /64, since whoever has one address there has all of them).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Source(u128);

impl Source {
    /// A user on the Unix socket.
    pub fn of_user(uid: u32) -> Source {
        // 0100::/64 is the discard prefix: no peer has such an address.
        Source(0x0100 << 112 | u128::from(uid))
    }

    /// A peer on TCP.
    pub fn of_address(address: IpAddr) -> Source {
        match address.to_canonical() {
            IpAddr::V4(address) => Source(address.to_ipv6_mapped().to_bits()),
            IpAddr::V6(address) => Source(address.to_bits() & !u128::from(u64::MAX)),
        }
    }
}

impl Source {
    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<Source> {
        if let Some(uid) = text.strip_prefix("uid:") {
            return uid.parse().ok().map(Source::of_user);
        }
        text.strip_suffix("/64").unwrap_or(text).parse().ok().map(Source::of_address)
    }
}

impl fmt::Display for Source {
    /// `uid:1000`, `192.0.2.1` or `2001:db8::/64`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >> 64 == 0x0100 << 48 {
            return write!(out, "uid:{}", self.0 as u64);
        }
        match std::net::Ipv6Addr::from_bits(self.0).to_canonical() {
            IpAddr::V4(address) => address.fmt(out),
            IpAddr::V6(network) => write!(out, "{network}/64"),
        }
    }
}

/// Whom a verified client certificate speaks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its subject's common name and its subject alternative names (DNS, URI, e-mail, IP), as text.
    pub names: Box<[Box<str>]>,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
}

impl Identity {
    /// Whom `certificate`, as it was shown, speaks for.
    pub fn new(names: Vec<Box<str>>, certificate: &[u8]) -> Identity {
        Identity { names: names.into(), fingerprint: Sha256::digest(certificate).into() }
    }
}

/// An identity that goes wherever its connection goes.
pub type Certificate = Arc<Identity>;

/// Every key that can be presented, and the secret that tokens are signed with.
pub struct KeyRing {
    by_hash: BTreeMap<[u8; 32], (Arc<ApiKey>, u64)>,
    by_id: BTreeMap<KeyId, Arc<ApiKey>>,
    token_secret: [u8; 32],
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "KeyRing({} keys)", self.by_id.len())
    }
}

impl Drop for KeyRing {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.token_secret);
    }
}

impl KeyRing {
    /// A ring of `keys`; revoked ones are left out.
    pub fn new(keys: impl IntoIterator<Item = ApiKey>, token_secret: [u8; 32]) -> KeyRing {
        let mut ring = KeyRing { by_hash: BTreeMap::new(), by_id: BTreeMap::new(), token_secret };
        for key in keys.into_iter().filter(|key| key.revoked_at_ms.is_none()) {
            let key = Arc::new(key);
            ring.by_hash.insert(key.hash, (key.clone(), u64::MAX));
            if let Some((hash, until_ms)) = key.hash_before {
                ring.by_hash.insert(hash, (key.clone(), until_ms));
            }
            ring.by_id.insert(key.id, key);
        }
        ring
    }

    /// No key at all: whatever is presented is wrong.
    pub fn empty() -> Arc<KeyRing> {
        Arc::new(KeyRing::new([], [0; 32]))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// What `credential` of type `kind` (`api_key` or `token`) grants at `wall_ms`. Keys are looked up by their hash: how
    /// far a comparison of hashes got tells nobody anything about a key (192 random bits). Tokens are compared in
    /// constant time.
    pub fn verify(&self, kind: &str, credential: &str, wall_ms: u64) -> Result<Grant, AuthError> {
        match kind {
            "" if credential.is_empty() => Err(AuthError::Missing),
            "api_key" => self.verify_key(credential, wall_ms),
            "token" => self.verify_token(credential, wall_ms),
            _ => Err(AuthError::Invalid),
        }
    }

    fn verify_key(&self, credential: &str, wall_ms: u64) -> Result<Grant, AuthError> {
        if credential.len() != KEY_LENGTH || !credential.starts_with(KEY_PREFIX) {
            return Err(AuthError::Unknown);
        }
        let hash = hash_of(credential);
        let (key, until_ms) = self.by_hash.get(&hash).ok_or(AuthError::Unknown)?;
        // A secret that was rotated away is as unknown as one that never was.
        if *until_ms <= wall_ms {
            return Err(AuthError::Unknown);
        }
        let expires_at_ms = key.expires_at_ms.unwrap_or(u64::MAX).min(*until_ms);
        if expires_at_ms <= wall_ms {
            return Err(AuthError::Expired);
        }
        Ok(Grant {
            key: key.id,
            scopes: key.scopes,
            agents: key.agents.clone(),
            per_minute: key.per_minute,
            expires_at_ms,
            secret: hash,
            by_token: false,
        })
    }

    fn verify_token(&self, credential: &str, wall_ms: u64) -> Result<Grant, AuthError> {
        let (id, expires_at_ms) = self.read_token(credential).ok_or(AuthError::Invalid)?;
        let key = self.by_id.get(&id).ok_or(AuthError::Invalid)?;
        let ends_at_ms = expires_at_ms.min(key.expires_at_ms.unwrap_or(u64::MAX));
        if ends_at_ms <= wall_ms {
            return Err(AuthError::Invalid);
        }
        Ok(Grant {
            key: key.id,
            scopes: key.scopes,
            agents: key.agents.clone(),
            per_minute: key.per_minute,
            expires_at_ms: ends_at_ms,
            secret: key.hash,
            by_token: true,
        })
    }

    /// A token that speaks for `key` until `expires_at_ms`. None: there is no such key.
    pub fn mint(&self, key: KeyId, expires_at_ms: u64) -> Option<String> {
        self.by_id.get(&key)?;
        let mut token = Vec::with_capacity(56);
        token.extend_from_slice(&key.0);
        token.extend_from_slice(&expires_at_ms.to_be_bytes());
        let tag = self.signer(&token).finalize().into_bytes();
        token.extend_from_slice(&tag);
        Some(format!("{TOKEN_PREFIX}{}", hex(&token)))
    }

    /// The key and the end of a token with a good signature.
    fn read_token(&self, credential: &str) -> Option<(KeyId, u64)> {
        let token = unhex::<56>(credential.strip_prefix(TOKEN_PREFIX)?)?;
        let (said, tag) = token.split_at(24);
        self.signer(said).verify_slice(tag).ok()?;
        let (id, end) = said.split_at(16);
        Some((KeyId(id.try_into().ok()?), u64::from_be_bytes(end.try_into().ok()?)))
    }

    fn signer(&self, said: &[u8]) -> Hmac<Sha256> {
        let mut signer = Hmac::<Sha256>::new_from_slice(&self.token_secret).expect("HMAC takes a key of any length");
        signer.update(said);
        signer
    }

    /// Whether a connection that was let in with `grant` may still be here at `wall_ms`.
    pub fn still_good(&self, grant: &Grant, wall_ms: u64) -> bool {
        let Some(key) = self.by_id.get(&grant.key) else { return false };
        let known = key.hash == grant.secret
            || key.hash_before.is_some_and(|(hash, until_ms)| hash == grant.secret && wall_ms < until_ms);
        known && wall_ms < grant.expires_at_ms && key.expires_at_ms.is_none_or(|at| wall_ms < at)
    }

    /// The key of this id.
    pub fn find(&self, id: KeyId) -> Option<&ApiKey> {
        self.by_id.get(&id).map(|key| &**key)
    }
}

/// SHA-256 of a credential.
pub fn hash_of(credential: &str) -> [u8; 32] {
    Sha256::digest(credential.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |character: u8| char::from(character).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn secret(last: char) -> String {
        format!("{KEY_PREFIX}{}{last}", "a".repeat(31))
    }

    fn key(last: char) -> ApiKey {
        ApiKey {
            id: KeyId([last as u8; 16]),
            hash: hash_of(&secret(last)),
            hash_before: None,
            prefix: secret(last)[..SHOWN_LENGTH].into(),
            name: "test".into(),
            description: "".into(),
            scopes: Scopes::USUAL,
            agents: None,
            per_minute: PER_MINUTE,
            created_at_ms: NOW,
            created_by: "uid:0".into(),
            expires_at_ms: None,
            revoked_at_ms: None,
            last_used_at_ms: None,
            total_messages: 0,
        }
    }

    #[test]
    fn each_way_of_being_wrong_has_its_own_answer() {
        let old = ApiKey { expires_at_ms: Some(NOW), ..key('o') };
        let gone = ApiKey { revoked_at_ms: Some(NOW - 1), ..key('g') };
        let ring = KeyRing::new([key('k'), old, gone], [7; 32]);
        let verify = |kind: &str, credential: &str| ring.verify(kind, credential, NOW).map(|grant| grant.key);
        assert_eq!(verify("api_key", &secret('k')), Ok(KeyId([b'k'; 16])));
        assert_eq!(verify("", ""), Err(AuthError::Missing));
        assert_eq!(verify("api_key", ""), Err(AuthError::Unknown));
        assert_eq!(verify("api_key", &secret('x')), Err(AuthError::Unknown));
        assert_eq!(verify("api_key", &secret('g')), Err(AuthError::Unknown));
        assert_eq!(verify("api_key", &secret('o')), Err(AuthError::Expired));
        assert_eq!(verify("api_key", &secret('k')[..38]), Err(AuthError::Unknown));
        assert_eq!(verify("api_key", &format!("{} ", secret('k'))), Err(AuthError::Unknown));
        assert_eq!(verify("password", &secret('k')), Err(AuthError::Invalid));
        assert_eq!(verify("", &secret('k')), Err(AuthError::Invalid));
        assert_eq!(verify("token", &secret('k')), Err(AuthError::Invalid));
    }

    #[test]
    fn a_rotated_secret_lives_for_its_overlap_and_no_longer() {
        let rotated =
            ApiKey { hash: hash_of(&secret('n')), hash_before: Some((hash_of(&secret('k')), NOW + 10)), ..key('k') };
        let ring = KeyRing::new([rotated], [7; 32]);
        let old = ring.verify("api_key", &secret('k'), NOW).unwrap();
        let new = ring.verify("api_key", &secret('n'), NOW).unwrap();
        assert!(ring.still_good(&old, NOW + 9) && !ring.still_good(&old, NOW + 10));
        assert!(ring.still_good(&new, NOW + 10));
        assert_eq!(ring.verify("api_key", &secret('k'), NOW + 10), Err(AuthError::Unknown));
    }

    #[test]
    fn a_token_speaks_for_its_key_until_it_ends_and_cannot_be_forged() {
        let ring = KeyRing::new([key('k')], [7; 32]);
        let token = ring.mint(KeyId([b'k'; 16]), NOW + 5).unwrap();
        let grant = ring.verify("token", &token, NOW).unwrap();
        assert_eq!((grant.key, grant.expires_at_ms), (KeyId([b'k'; 16]), NOW + 5));
        assert!(ring.still_good(&grant, NOW) && !ring.still_good(&grant, NOW + 5));
        assert_eq!(ring.verify("token", &token, NOW + 5), Err(AuthError::Invalid));
        assert_eq!(KeyRing::new([key('k')], [8; 32]).verify("token", &token, NOW), Err(AuthError::Invalid));
        assert_eq!(KeyRing::new([], [7; 32]).verify("token", &token, NOW), Err(AuthError::Invalid));
        for at in TOKEN_PREFIX.len()..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(ring.verify("token", &forged, NOW), Err(AuthError::Invalid), "{at}");
        }
    }

    #[test]
    fn a_source_is_a_user_an_address_or_a_network() {
        let of = |text: &str| Source::of_address(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(Source::of_user(0), Source::of_user(1));
        let shown = ["192.0.2.1", "2001:db8::1", "::1"].map(|text| of(text).to_string());
        assert_eq!(shown, ["192.0.2.1", "2001:db8::/64", "::/64"]);
        assert_eq!(Source::of_user(1000).to_string(), "uid:1000");
        for source in [of("192.0.2.1"), of("2001:db8::1"), of("::1"), Source::of_user(u32::MAX)] {
            assert_eq!(Source::parse(&source.to_string()), Some(source));
        }
        assert_eq!(["", "uid:", "uid:-1", "somewhere", "::/32"].map(Source::parse), [None; 5]);
    }

    #[test]
    fn an_id_is_printed_as_a_uuid_and_read_back() {
        let id = KeyId([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(id.to_string(), "12345678-9abc-def0-0102-030405060708");
        assert_eq!(KeyId::parse(&id.to_string()), Some(id));
        assert_eq!(KeyId::parse("12345678"), None);
    }
}
