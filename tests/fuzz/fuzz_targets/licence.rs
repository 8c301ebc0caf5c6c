//! Any text as a licence key, a document, a cache, and as the content of a document that is truly signed: no panic, what
//! is read reads back the same, and nothing is granted that its tier and its features do not allow.
#![no_main]

use agent_relay::base::tier::{Entitlement, Feature, Features, Tier};
use agent_relay::licence::{Cache, DocumentError, Given, KeyHash, LicenceKey, PublicKey, Signed, SigningKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use ring::signature::Ed25519KeyPair;
use std::sync::LazyLock;

const SEED: [u8; 32] = [7; 32];

/// The vendor, for the relay and as anybody may write one.
static VENDOR: LazyLock<(PublicKey, Ed25519KeyPair)> = LazyLock::new(|| {
    let pair = Ed25519KeyPair::from_seed_unchecked(&SEED).expect("a seed has 32 bytes");
    (SigningKey::from_random(SEED).public(), pair)
});

fuzz_target!(|input: &[u8]| {
    let (public, pair) = (VENDOR.0, &VENDOR.1);
    // What the vendor signed, whatever it is.
    let payload = URL_SAFE_NO_PAD.encode(input);
    let signature = pair.sign(format!("relay-licence-v1:{payload}").as_bytes());
    let text = format!("{payload}.{}", URL_SAFE_NO_PAD.encode(signature));
    let opened = Signed::open(&text, public);
    assert_ne!(opened, Err(DocumentError::Signature), "it is truly signed");
    if let Ok(signed) = opened {
        let again = Signed::open(signed.text(), public).expect("it has just been read");
        assert_eq!(again.document(), signed.document());
        check(&signed);
        let mut cache = Cache::default();
        cache.insert(signed.clone());
        let read = Cache::parse(&cache.to_text(), public);
        assert_eq!(read.document(&signed.document().key_hash), Some(&signed));
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(key) = LicenceKey::parse(text) {
        assert_eq!(LicenceKey::parse(key.reveal()).as_ref(), Ok(&key));
        assert!(key.shown().chars().count() <= 13);
        assert_eq!(KeyHash::parse(&key.hash().to_string()), Some(key.hash()));
    }
    let _ = KeyHash::parse(text);
    if let Ok(signed) = Signed::open(text, public) {
        check(&signed);
    }
    let _ = Given::parse(text, public);
    let cache = Cache::parse(text, public);
    let _ = Cache::parse(&cache.to_text(), public);
});

/// What a document grants is within what it may.
fn check(signed: &Signed) {
    let granted = signed.document().entitlement();
    let free = Entitlement::of_tier(Tier::Community);
    let beyond =
        |limit: Option<u32>, most: Option<u32>| most.is_some_and(|most| limit.is_none_or(|limit| limit > most));
    if Tier::of(&signed.document().tier).is_none() {
        assert_eq!(granted, Entitlement { features: Features::default(), ..free });
        return;
    }
    assert!(granted.features.has(Feature::BasicMessaging));
    if !granted.features.has(Feature::HighThroughput) {
        assert!(!beyond(granted.messages_per_second, free.messages_per_second));
    }
    if !granted.features.has(Feature::ExtendedRetention) {
        assert!(!beyond(granted.retention_days_max, free.retention_days_max));
    }
    if !granted.features.has(Feature::UnlimitedRetention) {
        assert!(granted.retention_days_max.is_some());
    }
    if !granted.features.has(Feature::Webhooks) {
        assert_eq!(granted.webhooks_max, free.webhooks_max);
    }
}
