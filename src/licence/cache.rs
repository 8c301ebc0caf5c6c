//! What is kept between two runs: signed documents, by the key they are about, and the clock. A document in it is believed
//! for its signature, not for being there.

use super::clock::KeptClock;
use super::document::Signed;
use super::key::KeyHash;
use super::signature::PublicKey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Licences of one machine that are remembered; those heard of longest ago leave.
const DOCUMENTS_MAX: usize = 16;
/// Largest file that is looked at.
pub const CACHE_BYTES_MAX: usize = 512 * 1024;

/// The cache.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    /// The time when it was written.
    pub clock: Option<KeptClock>,
    documents: BTreeMap<KeyHash, Signed>,
}

/// As it lies in the file.
#[derive(Serialize, Deserialize, Default)]
struct File {
    #[serde(default)]
    clock: Option<KeptClock>,
    #[serde(default)]
    documents: Vec<String>,
}

impl Cache {
    /// Reads the file's text. What cannot be read or bears no good signature is as if it were not there.
    pub fn parse(text: &str, public: PublicKey) -> Cache {
        if text.len() > CACHE_BYTES_MAX {
            return Cache::default();
        }
        let file: File = serde_json::from_str(text).unwrap_or_default();
        let clock = file.clock.filter(|clock| clock.boot.len() <= 64);
        let mut cache = Cache { clock, documents: BTreeMap::new() };
        for text in file.documents.iter().take(DOCUMENTS_MAX) {
            if let Ok(signed) = Signed::open(text, public) {
                cache.insert(signed);
            }
        }
        cache
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let documents = self.documents.values().map(|signed| signed.text().to_owned()).collect();
        serde_json::to_string(&File { clock: self.clock.clone(), documents })
            .expect("texts and numbers have a JSON form")
    }

    /// What was last heard about a key.
    pub fn document(&self, key: &KeyHash) -> Option<&Signed> {
        self.documents.get(key)
    }

    /// Keeps what was heard, if it is the newest about its key.
    pub fn insert(&mut self, signed: Signed) {
        let key = signed.document().key_hash;
        let known = self.documents.get(&key).map(|known| known.document().issued_at_ms);
        if known.is_some_and(|known| known > signed.document().issued_at_ms) {
            return;
        }
        self.documents.insert(key, signed);
        while self.documents.len() > DOCUMENTS_MAX {
            let oldest = self.documents.iter().min_by_key(|(_, signed)| signed.document().issued_at_ms);
            let Some(oldest) = oldest.map(|(key, _)| *key) else { return };
            self.documents.remove(&oldest);
        }
    }

    /// Forgets what was heard about a key.
    pub fn remove(&mut self, key: &KeyHash) {
        self.documents.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tier::Tier;
    use crate::licence::{Document, LicenceKey, SigningKey};

    fn signed(key: u128, issued_at_ms: u64, signing: &SigningKey) -> Signed {
        let hash = LicenceKey::from_random(Tier::Pro, key).unwrap().hash();
        let text = Document::of_tier(Tier::Pro, hash, issued_at_ms, 99).sign(signing);
        Signed::open(&text, signing.public()).unwrap()
    }

    #[test]
    fn only_signed_documents_come_back_and_the_newest_of_each_key() {
        let (ours, theirs) = (SigningKey::from_random([1; 32]), SigningKey::from_random([2; 32]));
        let mut cache =
            Cache { clock: Some(KeptClock { time_ms: 5, boot: "b".into(), boot_ms: 1 }), ..Cache::default() };
        cache.insert(signed(1, 10, &ours));
        cache.insert(signed(1, 5, &ours));
        cache.insert(signed(2, 7, &theirs));
        let read = Cache::parse(&cache.to_text(), ours.public());
        assert_eq!((read.documents.len(), read.clock), (1, cache.clock));
        assert_eq!(read.documents.values().next().unwrap().document().issued_at_ms, 10);
        for garbage in ["", "{", "[]", "{\"documents\":[1]}", "{\"documents\":[\"a.b\",\"\"]}"] {
            assert!(Cache::parse(garbage, ours.public()).documents.is_empty());
        }
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let key = SigningKey::from_random([1; 32]);
        let mut cache = Cache::default();
        for number in 0..40 {
            cache.insert(signed(number, 1_000 - number as u64, &key));
        }
        assert_eq!(cache.documents.len(), DOCUMENTS_MAX);
        assert!(cache.document(&LicenceKey::from_random(Tier::Pro, 0).unwrap().hash()).is_some());
        assert!(cache.to_text().len() < CACHE_BYTES_MAX);
    }
}
