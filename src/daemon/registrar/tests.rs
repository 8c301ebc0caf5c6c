//! The registrar over a real store, the clock in the test's hand.

use super::*;
use crate::base::keys::{AuthError, Source};
use crate::base::tier::Tier;
use crate::relay::Sighted;
use crate::store::{Key, Options};
use std::path::Path;

const NOW: u64 = 1_800_000_000_000;
const YEAR_MS: u64 = 365 * DAY_MS;

fn counted(key: KeyId, messages: u64, last_used_ms: u64) -> KeyUse {
    KeyUse { key, messages, last_used_ms }
}

fn store(folder: &Path) -> Store {
    let key = Key::parse(&format!("relay-key-v1:{}", "07".repeat(32))).unwrap();
    let store = Store::open(Options { map_bytes: 1 << 28, ..Options::new(folder, Some(key)) }).unwrap();
    store.begin_epoch(0, 0).unwrap();
    store
}

struct Desk {
    registrar: Registrar,
    tier: Entitlement,
}

impl Desk {
    fn open(store: Store) -> Desk {
        let registrar = Registrar::open(store, 7 * DAY_MS).unwrap();
        Desk { registrar, tier: Entitlement::of_tier(Tier::Pro) }
    }

    fn ask(&mut self, arguments: Value, now_ms: u64) -> Result<(Value, bool), String> {
        self.registrar.answer(&arguments, "uid:1000", &self.tier, now_ms)
    }

    fn create(&mut self, mut arguments: Value) -> (String, String) {
        arguments["op"] = json!("create");
        let (answer, changed) = self.ask(arguments, NOW).unwrap();
        assert!(changed);
        (answer["id"].as_str().unwrap().to_owned(), answer["key"].as_str().unwrap().to_owned())
    }

    fn list(&mut self, all: bool) -> Vec<Value> {
        let (mut answer, changed) = self.ask(json!({ "op": "list", "all": all }), NOW).unwrap();
        assert!(!changed);
        serde_json::from_value(answer["keys"].take()).unwrap()
    }

    fn verify(&self, secret: &str, now_ms: u64) -> Result<KeyId, AuthError> {
        self.registrar.ring().verify("api_key", secret, now_ms).map(|grant| grant.key)
    }

    fn events(&self) -> Vec<Value> {
        let mut events = Vec::new();
        let snapshot = self.registrar.store.snapshot().unwrap();
        let each = |row: crate::store::control::EventRow| {
            events.push(serde_json::from_str(&row.text).unwrap());
            ControlFlow::Continue(())
        };
        snapshot.events(0, each).unwrap();
        events
    }
}

#[test]
fn a_key_is_shown_once_listed_without_its_secret_and_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let opened = store(folder.path());
    let mut desk = Desk::open(opened.clone());
    let agents = json!(["bob", "ann", "bob"]);
    let (id, secret) = desk.create(json!({
        "name": " build ", "description": "nightly", "scopes": ["send"], "agents": agents,
        "expires_ms": 30 * DAY_MS, "rate": 60,
    }));
    assert_eq!(secret.len(), KEY_LENGTH);
    let (other, _) = desk.create(json!({ "name": "build" }));
    assert_ne!(id, other, "names need not be unique");
    let listed = desk.list(false);
    assert!(!json!(listed).to_string().contains(&secret[SHOWN_LENGTH..]));
    let key = listed.iter().find(|key| key["id"] == id).unwrap();
    assert_eq!(
        (&key["name"], &key["scopes"], &key["allowedAgents"], &key["rateLimitPerMinute"], &key["keyPrefix"]),
        (&json!("build"), &json!(["send"]), &json!(["ann", "bob"]), &json!(60), &json!(&secret[..SHOWN_LENGTH]))
    );
    assert_eq!(key["expiresAt"], json!(time_of(NOW + 30 * DAY_MS)));
    assert_eq!(
        listed.iter().find(|key| key["id"] == other).unwrap()["scopes"],
        json!(["send", "receive"]),
        "what a key has when nothing else is said"
    );
    let token = desk.ask(json!({ "op": "token", "id": &id[..8], "minutes": 5 }), NOW).unwrap().0;
    drop(desk);

    let desk = Desk::open(opened);
    assert!(desk.verify(&secret, NOW).is_ok());
    assert_eq!(desk.verify(&secret, NOW + 30 * DAY_MS), Err(AuthError::Expired));
    let ring = desk.registrar.ring();
    let verified = ring.verify("token", token["token"].as_str().unwrap(), NOW + 4 * 60_000).unwrap();
    assert_eq!(verified.key.to_string(), id);
    let late = ring.verify("token", token["token"].as_str().unwrap(), NOW + 5 * 60_000);
    assert_eq!(late, Err(AuthError::Invalid));
}

#[test]
fn where_a_key_came_from_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let opened = store(folder.path());
    let mut desk = Desk::open(opened.clone());
    let (id, _) = desk.create(json!({ "name": "a" }));
    let seen = |source: Source| Sighting {
        what: Sighted::Used { key: KeyId::parse(&id).unwrap(), by_token: false },
        source,
        agent: "ann".into(),
        at_ms: NOW,
        count: 1,
    };
    let address = |text: &str| Source::of_address(text.parse().unwrap());
    let places = [Source::of_user(7), address("192.0.2.1"), address("2001:db8::1")];
    let used = |desk: &Desk| desk.events().iter().filter(|event| event["event_type"] == "ssh_key.used").count();
    desk.registrar.witness(&places.map(seen), NOW);
    assert_eq!(used(&desk), 3);
    drop(desk);
    let mut desk = Desk::open(opened);
    desk.registrar.witness(&places.map(seen), NOW);
    assert_eq!(used(&desk), 3, "none of them is new");
    desk.registrar.witness(&[seen(address("192.0.2.2"))], NOW);
    assert_eq!(used(&desk), 4);
}

#[test]
fn the_trail_of_keys_is_read_in_pages_and_holds_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(store(folder.path()));
    let events: Vec<String> = (0..450)
        .map(|number| {
            let event_type = if number % 2 == 0 { "ssh_key.created" } else { "settings.updated" };
            json!({ "event_type": event_type, "n": number }).to_string()
        })
        .collect();
    let rows: Vec<(u64, &str)> =
        events.iter().enumerate().map(|(number, text)| (NOW + number as u64, text.as_str())).collect();
    desk.registrar.store.change_control(ControlChange { events: &rows, ..ControlChange::default() }).unwrap();
    let mut page = |arguments: Value| {
        let mut arguments = arguments;
        arguments["op"] = json!("log");
        desk.ask(arguments, NOW).unwrap().0
    };
    let numbers = |page: &Value| -> Vec<u64> {
        page["events"].as_array().unwrap().iter().map(|event| event["n"].as_u64().unwrap()).collect()
    };
    let first = page(json!({}));
    assert_eq!((numbers(&first).len(), numbers(&first)[0]), (200, 448));
    let second = page(json!({ "before": first["next"] }));
    assert_eq!((numbers(&second).last(), &second["next"]), (Some(&0), &Value::Null));
    assert_eq!(numbers(&first).len() + numbers(&second).len(), 225);
    assert_eq!(numbers(&page(json!({ "since_ms": NOW + 10, "until_ms": NOW + 13 }))), [12, 10]);
    assert_eq!(numbers(&page(json!({ "limit": 1, "before": 400 }))), [398]);
    assert!(desk.ask(json!({ "op": "log", "limit": "many" }), NOW).is_err());
    assert!(desk.ask(json!({ "op": "log", "colour": 1 }), NOW).is_err());
}

#[test]
fn a_revoked_key_is_unknown_and_a_rotated_one_lives_for_its_overlap() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(store(folder.path()));
    let (id, first) = desk.create(json!({ "name": "a" }));
    let rotate = |desk: &mut Desk, overlap: Value| {
        let (answer, changed) = desk.ask(json!({ "op": "rotate", "id": &id, "overlap_ms": overlap }), NOW).unwrap();
        assert!(changed && answer["message"] == SAVE_IT);
        answer["key"].as_str().unwrap().to_owned()
    };
    let second = rotate(&mut desk, json!(1_000));
    assert!(desk.verify(&first, NOW + 999).is_ok() && desk.verify(&second, NOW).is_ok());
    assert!(!desk.registrar.tick(Instant::now(), NOW + 999, NOW));
    assert!(desk.registrar.tick(Instant::now(), NOW + 1_000, NOW), "the shards are told when the overlap ends");
    assert_eq!(desk.verify(&first, NOW), Err(AuthError::Unknown));
    let third = rotate(&mut desk, json!(0));
    assert_eq!(desk.verify(&second, NOW), Err(AuthError::Unknown), "no overlap");
    rotate(&mut desk, Value::Null);
    assert!(desk.verify(&third, NOW + OVERLAP_MS - 1).is_ok());
    assert!(desk.ask(json!({ "op": "rotate", "id": &id, "overlap_ms": OVERLAP_MS_MAX + 1 }), NOW).is_err());

    assert_eq!(desk.ask(json!({ "op": "revoke", "id": &id[..6] }), NOW).unwrap().0["success"], true);
    assert_eq!(desk.verify(&third, NOW), Err(AuthError::Unknown));
    assert!(desk.list(false).is_empty());
    assert_eq!(desk.list(true)[0]["revokedAt"], json!(time_of(NOW)));
    for op in ["revoke", "rotate", "token"] {
        let refused = desk.ask(json!({ "op": op, "id": id }), NOW).unwrap_err();
        assert!(refused.contains("revoked already"), "{refused}");
    }
}

#[test]
fn each_wrong_wish_is_refused_with_a_sentence_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(store(folder.path()));
    let (id, _) = desk.create(json!({ "name": "short", "expires_ms": 1 }));
    let cases = [
        (json!({}), "\"op\" must be one of"),
        (json!({ "op": "create" }), "Name is required"),
        (json!({ "op": "create", "name": "  " }), "Name is required"),
        (json!({ "op": "create", "name": 7 }), "Name is required"),
        (json!({ "op": "create", "name": "x".repeat(129) }), "at most 128 bytes"),
        (json!({ "op": "create", "name": "a\u{1b}b" }), "control characters"),
        (json!({ "op": "create", "name": "a", "description": "x".repeat(1025) }), "at most 1024 bytes"),
        (json!({ "op": "create", "name": "a", "scopes": ["root"] }), "send, receive and admin"),
        (json!({ "op": "create", "name": "a", "scopes": [] }), "at least one scope"),
        (json!({ "op": "create", "name": "a", "scopes": "send" }), "a list of names"),
        (json!({ "op": "create", "name": "a", "agents": ["a/b"] }), "must not contain '/'"),
        (json!({ "op": "create", "name": "a", "agents": [] }), "1 to 256 agents"),
        (json!({ "op": "create", "name": "a", "expires_ms": 0 }), "a positive time"),
        (json!({ "op": "create", "name": "a", "expires_ms": -1 }), "a positive time"),
        (json!({ "op": "create", "name": "a", "expires_ms": LIFE_MS_MAX + 1 }), "a positive time"),
        (json!({ "op": "create", "name": "a", "rate": 0 }), "from 1 to"),
        (json!({ "op": "create", "name": "a", "expires": "30d" }), "does not know \"expires\""),
        (json!({ "op": "revoke", "id": "zz" }), "hexadecimal"),
        (json!({ "op": "revoke" }), "hexadecimal"),
        (json!({ "op": "revoke", "id": "00000000" }), "there is no API key"),
        (json!({ "op": "token", "id": &id, "minutes": 16 }), "from 1 to 15 minutes"),
        (json!({ "op": "token", "id": &id }), "has expired"),
        (json!({ "op": "rotate", "id": &id }), "has expired"),
    ];
    for (arguments, wanted) in cases {
        let refused = desk.ask(arguments.clone(), NOW + 1).unwrap_err();
        assert!(refused.contains(wanted), "{arguments}: {refused}");
    }
    assert_eq!((desk.list(true).len(), desk.events().len()), (1, 1));
    desk.tier = Entitlement::of_tier(Tier::Community);
    let gated = |desk: &mut Desk, op: &str| {
        let refused = desk.ask(json!({ "op": op }), NOW).unwrap_err();
        assert!(refused.starts_with("Pro tier required for API key management"), "{refused}");
    };
    ["create", "rotate", "token"].iter().for_each(|op| gated(&mut desk, op));
    // What was made before the licence ended can be looked at and taken back.
    assert!(desk.ask(json!({ "op": "list" }), NOW).is_ok());
    assert!(desk.ask(json!({ "op": "revoke", "id": &id }), NOW).is_ok());
    let empty = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(store(empty.path()));
    desk.tier = Entitlement::of_tier(Tier::Community);
    ["list", "create", "revoke", "rotate", "token"].iter().for_each(|op| gated(&mut desk, op));
}

#[test]
fn counts_of_all_shards_are_added_and_written_in_time_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let opened = store(folder.path());
    let mut desk = Desk::open(opened.clone());
    let (id, _) = desk.create(json!({ "name": "a" }));
    let key = KeyId::parse(&id).unwrap();
    let start = Instant::now();
    desk.registrar.absorb(0, &[counted(key, 10, NOW + 5)]);
    desk.registrar.absorb(1, &[counted(key, 4, NOW + 3), counted(KeyId([1; 16]), 9, NOW)]);
    desk.registrar.absorb(0, &[counted(key, 12, NOW + 6)]);
    let shown = desk.list(false);
    assert_eq!((&shown[0]["totalMessages"], &shown[0]["lastUsedAt"]), (&json!(16), &json!(time_of(NOW + 6))));
    let written = |store: &Store| read_keys(store).unwrap()[&key].total_messages;
    desk.registrar.tick(start, NOW, NOW);
    assert_eq!(written(&opened), 0, "not before its time");
    desk.registrar.tick(start + USAGE_EVERY * 2, NOW, NOW);
    assert_eq!(written(&opened), 16);
    desk.registrar.absorb(1, &[counted(key, 5, NOW + 7)]);
    desk.registrar.stop();
    assert_eq!(written(&opened), 17);
    // After a restart shards count from nothing.
    let mut desk = Desk::open(opened.clone());
    desk.registrar.absorb(1, &[counted(key, 3, NOW + 8)]);
    desk.registrar.stop();
    assert_eq!(written(&opened), 20);
}

#[test]
fn what_ended_long_ago_is_deleted_but_not_by_a_clock_that_jumps() {
    let folder = tempfile::tempdir().unwrap();
    let opened = store(folder.path());
    let mut desk = Desk::open(opened.clone());
    desk.create(json!({ "name": "expires", "expires_ms": DAY_MS }));
    let (revoked, _) = desk.create(json!({ "name": "revoked" }));
    desk.create(json!({ "name": "stays" }));
    desk.ask(json!({ "op": "revoke", "id": revoked }), NOW).unwrap();
    let start = Instant::now();
    desk.registrar.tick(start, NOW + YEAR_MS, NOW);
    assert_eq!((desk.list(true).len(), desk.events().len()), (3, 4), "only the wall clock moved");
    let later = |days: u64| (start + Duration::from_millis(days * DAY_MS), NOW + days * DAY_MS);
    let (now, now_ms) = later(8);
    assert!(!desk.registrar.tick(now, now_ms, now_ms));
    assert_eq!((desk.list(true).len(), desk.events().len()), (3, 1), "the last event stays");
    let (now, now_ms) = later(92);
    assert!(desk.registrar.tick(now, now_ms, now_ms), "an expired key leaves the ring");
    assert_eq!(desk.list(true).len(), 1);
    assert_eq!(read_keys(&opened).unwrap().len(), 1);
}

#[test]
fn every_change_leaves_one_event_of_fourteen_fields_without_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(store(folder.path()));
    let (id, first) = desk.create(json!({ "name": "a" }));
    let second = desk.ask(json!({ "op": "rotate", "id": id }), NOW + 1).unwrap().0;
    let token = desk.ask(json!({ "op": "token", "id": id }), NOW + 2).unwrap().0;
    desk.ask(json!({ "op": "revoke", "id": id }), NOW + 3).unwrap();
    let meta = Map::from_iter([("changed".to_owned(), json!(["licence"]))]);
    desk.registrar.record(AuditEvent::new("settings.updated", "uid:1000", ("settings", "licence"), meta, NOW + 4));
    let events = desk.events();
    let types: Vec<&str> = events.iter().map(|event| event["event_type"].as_str().unwrap()).collect();
    assert_eq!(types, ["ssh_key.created", "ssh_key.created", "ssh_key.used", "ssh_key.deleted", "settings.updated"]);
    assert_eq!(events[0]["timestamp"], "2027-01-15T08:00:00+00:00");
    assert_eq!(events[1]["timestamp"], "2027-01-15T08:00:00.001000+00:00");
    assert_eq!((&events[0]["target_id"], &events[0]["username"]), (&json!(id), &json!("uid:1000")));
    assert_eq!(events[0]["action"], "ssh_key_created");
    assert_eq!(events[0]["meta"]["key_prefix"], json!(&first[..SHOWN_LENGTH]));
    assert_eq!(events[1]["meta"]["rotated"], true);
    let all = json!(events).to_string();
    for secret in [&first, second["key"].as_str().unwrap(), token["token"].as_str().unwrap()] {
        assert!(!all.contains(&secret[SHOWN_LENGTH..]));
    }
    let event = AuditEvent::new("settings.updated", "uid:1", ("settings", "x"), Map::new(), NOW);
    let text = event.to_json();
    let order = [
        "event_id",
        "event_type",
        "timestamp",
        "user_id",
        "username",
        "server_id",
        "server_name",
        "target_type",
        "target_id",
        "action",
        "meta",
        "ip",
        "user_agent",
        "severity",
    ];
    let places: Vec<usize> = order.iter().map(|name| text.find(&format!("\"{name}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "{text}");
    assert_eq!(events[0].as_object().unwrap().len(), order.len());
}

#[test]
fn when_the_disk_refuses_nothing_is_changed_and_the_sentence_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let opened = store(folder.path());
    let mut desk = Desk::open(opened.clone());
    let (id, secret) = desk.create(json!({ "name": "a" }));
    let file = folder.path().join("data.mdb");
    std::fs::rename(&file, folder.path().join("elsewhere")).unwrap();
    for op in ["create", "revoke", "rotate", "token"] {
        let about = if op == "create" { ("name", "b") } else { ("id", &*id) };
        let refused = desk.ask(json!({ "op": op, about.0: about.1 }), NOW).unwrap_err();
        assert!(refused.starts_with("nothing was changed: the store's file is gone"), "{refused}");
    }
    assert!(desk.verify(&secret, NOW).is_ok());
    std::fs::rename(folder.path().join("elsewhere"), &file).unwrap();
    desk.registrar.stop();
    assert_eq!(desk.list(true).len(), 1);
    assert_eq!(read_keys(&opened).unwrap().len(), 1);
}
