//! Any text as a credential of any type, and a true token with any change: no panic, and nobody is let in but by the key
//! itself or by what was truly minted of it.
#![no_main]

use agent_relay::base::keys::{ApiKey, AuthError, KeyId, KeyRing, SHOWN_LENGTH, Scopes, hash_of};
use agent_relay::client::Credential;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

const NOW: u64 = 1_800_000_000_000;
const SECRET: &str = "ar_key_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const ID: KeyId = KeyId([7; 16]);

/// The key, and a token of it.
static RING: LazyLock<(KeyRing, String)> = LazyLock::new(|| {
    let key = ApiKey {
        id: ID,
        hash: hash_of(SECRET),
        hash_before: None,
        prefix: SECRET[..SHOWN_LENGTH].into(),
        name: "fuzz".into(),
        description: "".into(),
        scopes: Scopes::USUAL,
        agents: None,
        per_minute: 1,
        created_at_ms: NOW,
        created_by: "uid:0".into(),
        expires_at_ms: None,
        revoked_at_ms: None,
        last_used_at_ms: None,
        total_messages: 0,
    };
    let ring = KeyRing::new([key], [9; 32]);
    let token = ring.mint(ID, NOW + 1).expect("its key is there");
    (ring, token)
});

fuzz_target!(|input: &[u8]| {
    let (ring, token) = &*RING;
    let text = String::from_utf8_lossy(input);
    if let Some(id) = KeyId::parse(&text) {
        assert_eq!(KeyId::parse(&id.to_string()), Some(id));
    }
    let _ = Credential::read(text.to_string());
    for kind in ["", "api_key", "token", "password"] {
        match ring.verify(kind, &text, NOW) {
            Ok(grant) => {
                let is_key = kind == "api_key" && text == SECRET;
                // Digits above nine may be written large.
                let is_token = kind == "token" && text.eq_ignore_ascii_case(token);
                assert!((is_key || is_token) && grant.key == ID && ring.still_good(&grant, NOW), "{kind} {text}");
            }
            Err(AuthError::Missing) => assert!(kind.is_empty() && text.is_empty()),
            Err(_) => {}
        }
    }
    // Pairs of a place and a byte: the token, changed there.
    let mut forged = token.clone().into_bytes();
    for change in input.chunks_exact(2) {
        let at = usize::from(change[0]) % forged.len();
        forged[at] = change[1];
    }
    let forged = String::from_utf8_lossy(&forged);
    let same = forged.eq_ignore_ascii_case(token) && forged.starts_with("ar_tok_");
    assert_eq!(ring.verify("token", &forged, NOW).is_ok(), same, "{forged}");
});
