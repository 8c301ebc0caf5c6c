//! Sealing: AES-256-GCM under a subkey of each epoch, with a nonce that is never used twice, bound to the place a value
//! has in the store. In a plain store the same values carry a checksum instead.
//!
//! The nonce argument: a subkey is derived from the key and 256 random bits that were committed before its first use, so
//! no two openings of the store, of a copy of it, or of a restored backup share a subkey. Within one opening the nonce is
//! a counter that is only ever counted up, whether or not what it sealed was committed in the end.

use super::error::{Part, StoreError};
use super::key::Key;
use parking_lot::RwLock;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of an authentication tag.
pub(super) const TAG_BYTES: usize = 16;
/// Bytes of a salt.
pub(super) const SALT_BYTES: usize = 32;
/// Bytes before the payload of a value that [`Seal::wrap`] made.
pub(super) const VALUE_HEADER_BYTES: usize = 20;
/// In the flags of a value or segment: it is sealed.
pub(super) const FLAG_SEALED: u16 = 1;
/// The version [`Seal::wrap`] writes.
const VALUE_VERSION: u16 = 1;
/// The largest nonce counter: far from a wrap-around, and from AES-GCM's bound of 2^32 random nonces, which counters do
/// not have.
const COUNTER_MAX: u64 = 1 << 60;

/// The subkey under which this process seals.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) epoch: u32,
    key: Option<Arc<LessSafeKey>>,
}

/// All that is needed to seal and open values of one store.
pub(super) struct Seal {
    pub(super) store_id: [u8; 16],
    master: Option<Key>,
    /// Subkeys of the epochs that values were sealed in, as far as anybody asked.
    known: RwLock<BTreeMap<u32, Arc<LessSafeKey>>>,
    current: RwLock<Option<Current>>,
    counter: AtomicU64,
}

/// What a sealed value is bound to, besides the store.
#[derive(Clone, Copy)]
pub(super) struct Binding<'a> {
    pub(super) part: Part,
    pub(super) key: &'a [u8],
    pub(super) piece: u32,
    pub(super) header: &'a [u8],
}

impl Seal {
    pub(super) fn new(store_id: [u8; 16], master: Option<Key>) -> Seal {
        Seal { store_id, master, known: RwLock::default(), current: RwLock::default(), counter: AtomicU64::new(1) }
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.master.is_some()
    }

    /// From here on values are sealed under the subkey of `epoch`, whose salt is on the disk.
    pub(super) fn begin(&self, epoch: u32, salt: &[u8]) {
        let key = self.master.as_ref().map(|master| Arc::new(subkey(master, salt, &self.store_id, b"values")));
        if let Some(key) = &key {
            self.known.write().insert(epoch, key.clone());
        }
        *self.current.write() = Some(Current { epoch, key });
    }

    /// The subkey to seal with. A plain store has no need of one.
    pub(super) fn current(&self) -> Result<Current, StoreError> {
        match &*self.current.read() {
            Some(current) => Ok(current.clone()),
            None if self.is_sealed() => Err(StoreError::NoEpoch),
            None => Ok(Current { epoch: 0, key: None }),
        }
    }

    /// `count` nonce counters that were never given before; the first of them.
    pub(super) fn counters(&self, count: u32) -> Result<u64, StoreError> {
        let first = self.counter.fetch_add(u64::from(count), Ordering::Relaxed);
        if first >= COUNTER_MAX { Err(StoreError::NoEpoch) } else { Ok(first) }
    }

    /// The subkey of an epoch that is over, or of another process; `salt` reads its salt if it is not known yet.
    pub(super) fn subkey(
        &self,
        epoch: u32,
        salt: impl FnOnce() -> Result<Option<[u8; SALT_BYTES]>, StoreError>,
    ) -> Result<Option<Arc<LessSafeKey>>, StoreError> {
        let Some(master) = &self.master else { return Ok(None) };
        if let Some(key) = self.known.read().get(&epoch) {
            return Ok(Some(key.clone()));
        }
        let Some(salt) = salt()? else { return Ok(None) };
        let key = Arc::new(subkey(master, &salt, &self.store_id, b"values"));
        self.known.write().insert(epoch, key.clone());
        Ok(Some(key))
    }

    /// Seals `data` where it lies; the tag is returned.
    pub(super) fn seal(
        &self,
        current: &Current,
        counter: u64,
        binding: Binding<'_>,
        data: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], StoreError> {
        let Some(key) = &current.key else { return Ok([0; TAG_BYTES]) };
        let bound = bound(&self.store_id, binding);
        let tag = key.seal_in_place_separate_tag(nonce(counter), Aad::from(&bound), data);
        let tag = tag.map_err(|_| StoreError::TooLong(data.len()))?;
        let mut bytes = [0; TAG_BYTES];
        bytes.copy_from_slice(tag.as_ref());
        Ok(bytes)
    }

    /// Opens `data` where it lies. False: it is not what was sealed there.
    pub(super) fn open(
        &self,
        key: &LessSafeKey,
        counter: u64,
        binding: Binding<'_>,
        data: &mut [u8],
        tag: [u8; TAG_BYTES],
    ) -> bool {
        let bound = bound(&self.store_id, binding);
        key.open_in_place_separate_tag(nonce(counter), Aad::from(&bound), Tag::from(tag), data, 0..).is_ok()
    }

    /// Writes `payload` as a value of `part` under `key` to the end of `out`.
    pub(super) fn wrap(&self, part: Part, key: &[u8], payload: &[u8], out: &mut Vec<u8>) -> Result<(), StoreError> {
        let current = self.current()?;
        let counter = if self.is_sealed() { self.counters(1)? } else { 0 };
        let start = out.len();
        out.extend_from_slice(&VALUE_VERSION.to_le_bytes());
        out.extend_from_slice(&if self.is_sealed() { FLAG_SEALED } else { 0 }.to_le_bytes());
        out.extend_from_slice(&current.epoch.to_le_bytes());
        out.extend_from_slice(&counter.to_le_bytes());
        let checksum = if self.is_sealed() { 0 } else { checksum(part, key, &out[start..], payload) };
        out.extend_from_slice(&checksum.to_le_bytes());
        out.extend_from_slice(payload);
        if self.is_sealed() {
            let (header, data) = out[start..].split_at_mut(VALUE_HEADER_BYTES);
            let tag = self.seal(&current, counter, Binding { part, key, piece: 0, header }, data)?;
            out.extend_from_slice(&tag);
        }
        Ok(())
    }

    /// The payload of a value of `part` under `key`; `buffer` is used when it must be opened. `salt` as for
    /// [`Seal::subkey`].
    pub(super) fn unwrap<'a>(
        &self,
        part: Part,
        key: &[u8],
        value: &'a [u8],
        buffer: &'a mut Vec<u8>,
        salt: impl FnOnce(u32) -> Result<Option<[u8; SALT_BYTES]>, StoreError>,
    ) -> Result<&'a [u8], StoreError> {
        let corrupt = |what| StoreError::corrupt(part, number_of(key), what);
        let (header, rest) = value.split_at_checked(VALUE_HEADER_BYTES).ok_or(corrupt("it is too short"))?;
        let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if u32_at(0) & 0xffff != u32::from(VALUE_VERSION) {
            return Err(corrupt("its format is unknown"));
        }
        if u32_at(0) >> 16 != u32::from(if self.is_sealed() { FLAG_SEALED } else { 0 }) {
            return Err(corrupt("it is not encrypted as the rest of the store"));
        }
        if !self.is_sealed() {
            let fits = u32_at(16) == checksum(part, key, &header[..VALUE_HEADER_BYTES - 4], rest);
            return if fits { Ok(rest) } else { Err(corrupt("its checksum does not fit")) };
        }
        let (data, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(corrupt("it is too short"))?;
        let epoch = u32_at(4);
        let counter = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        let subkey = self.subkey(epoch, || salt(epoch))?.ok_or(corrupt("the salt of its epoch is missing"))?;
        buffer.clear();
        buffer.extend_from_slice(data);
        if !self.open(&subkey, counter, Binding { part, key, piece: 0, header }, buffer, *tag) {
            return Err(corrupt("it is not what was encrypted here"));
        }
        Ok(buffer)
    }
}

/// The first bytes of a key, as a number for people.
pub(super) fn number_of(key: &[u8]) -> u64 {
    key.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The checksum of a plain value: a value under another key does not fit.
fn checksum(part: Part, key: &[u8], header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[part as u8]);
    hasher.update(key);
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

/// Seals a few bytes under a subkey of their own, whose salt stands before them: what is written before any epoch.
pub(super) fn seal_alone(master: &Key, store_id: &[u8; 16], purpose: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let salt: [u8; SALT_BYTES] = random()?;
    let key = subkey(master, &salt, store_id, purpose);
    let mut sealed = data.to_vec();
    let tag = key.seal_in_place_separate_tag(nonce(0), Aad::from(purpose), &mut sealed).ok()?;
    Some([&salt[..], &sealed, tag.as_ref()].concat())
}

/// Opens what [`seal_alone`] made; none when the key is another one.
pub(super) fn open_alone(master: &Key, store_id: &[u8; 16], purpose: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (salt, data) = sealed.split_at_checked(SALT_BYTES)?;
    let key = subkey(master, salt, store_id, purpose);
    let mut data = data.to_vec();
    let length = key.open_in_place(nonce(0), Aad::from(purpose), &mut data).ok()?.len();
    data.truncate(length);
    Some(data)
}

/// Random bytes from the kernel.
pub(super) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

fn subkey(master: &Key, salt: &[u8], store_id: &[u8; 16], purpose: &[u8]) -> LessSafeKey {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(master.bytes());
    let info: [&[u8]; 3] = [b"relay store 1 ", store_id, purpose];
    let output = secret.expand(&info, &AES_256_GCM).expect("32 bytes are far less than HKDF can give");
    LessSafeKey::new(UnboundKey::from(output))
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Bytes that are authenticated with a value. Keys have at most 16 bytes and headers at most 64.
struct Bound {
    bytes: [u8; 128],
    length: usize,
}

impl AsRef<[u8]> for Bound {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn bound(store_id: &[u8; 16], binding: Binding<'_>) -> Bound {
    let mut bound = Bound { bytes: [0; 128], length: 0 };
    let lengths = [binding.part as u8, binding.key.len() as u8, binding.header.len() as u8];
    for part in [&store_id[..], &lengths, binding.key, &binding.piece.to_le_bytes(), binding.header] {
        bound.bytes[bound.length..bound.length + part.len()].copy_from_slice(part);
        bound.length += part.len();
    }
    bound
}
