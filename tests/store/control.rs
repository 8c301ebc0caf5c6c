//! Control data: API keys, secrets and events; the store of a format that had none.

use crate::damage::{put, raw_values};
use crate::made::*;
use agent_relay::base::keys::{ApiKey, KeyId, Scopes, hash_of};
use agent_relay::store::control::{ControlChange, EVENT_BYTES_MAX, EVENTS_MAX, EventRow};
use agent_relay::store::copy::{OnDamage, rekey, restore};
use agent_relay::store::{Key, OpenError, SCHEMA, Store, StoreError};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

pub(crate) fn api_key(number: u8) -> ApiKey {
    ApiKey {
        id: KeyId([number; 16]),
        hash: hash_of(&format!("secret {number}")),
        hash_before: (number == 1).then(|| (hash_of("the one before"), START_MS + 1)),
        prefix: "ar_key_AbCdEfGh".into(),
        name: format!("{NAME_WORD} robots").into(),
        description: format!("for the {SECRET_WORD}").into(),
        scopes: Scopes::USUAL,
        agents: (number != 2).then(|| [name(1).as_str().into(), name(2).as_str().into()].into()),
        per_minute: 60,
        created_at_ms: START_MS,
        created_by: "uid:1000".into(),
        expires_at_ms: Some(START_MS + 2),
        revoked_at_ms: (number == 3).then_some(START_MS + 3),
        last_used_at_ms: Some(START_MS + 4),
        total_messages: 5,
    }
}

pub(crate) fn keys(store: &Store) -> Vec<ApiKey> {
    let mut found = Vec::new();
    let each = |key| {
        found.push(key);
        ControlFlow::Continue(())
    };
    store.snapshot().unwrap().keys(each).unwrap();
    found
}

pub(crate) fn events(store: &Store, after: u64) -> Vec<EventRow> {
    let mut found = Vec::new();
    let each = |event| {
        found.push(event);
        ControlFlow::Continue(())
    };
    store.snapshot().unwrap().events(after, each).unwrap();
    found
}

/// Numbers of the two newest events before one.
fn newest(store: &Store, before: u64) -> Vec<u64> {
    let mut found = Vec::new();
    let each = |event: EventRow| {
        found.push(event.sequence);
        if found.len() < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    store.snapshot().unwrap().events_before(before, each).unwrap();
    found
}

pub(crate) fn event_text(number: u64) -> String {
    format!("{{\"n\":{number},\"who\":\"{NAME_WORD}\"}}")
}

/// Three keys, the secret of tokens, and three events.
pub(crate) fn fill_control(store: &Store) -> [u8; 32] {
    let (one, two, three) = (api_key(1), api_key(2), api_key(3));
    let texts: Vec<String> = (1..=3).map(event_text).collect();
    let rows: Vec<(u64, &str)> = texts.iter().zip(START_MS..).map(|(text, at_ms)| (at_ms, text.as_str())).collect();
    store.change_control(ControlChange { keys: &[&one, &two, &three], gone: &[], events: &rows }).unwrap();
    *store.secret(b"token").unwrap()
}

fn add_events(store: &Store, count: u64, at_ms: u64) {
    let texts: Vec<String> = (0..count).map(event_text).collect();
    let rows: Vec<(u64, &str)> = texts.iter().map(|text| (at_ms, text.as_str())).collect();
    store.change_control(ControlChange { events: &rows, ..ControlChange::default() }).unwrap();
}

#[test]
fn control_data_is_there_after_every_opening_and_a_secret_is_drawn_once() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), key.clone());
        let secret = fill_control(&store);
        assert_ne!(secret, [0; 32]);
        assert_ne!(secret, *store.secret(b"another").unwrap());
        drop(store);
        let store = open(folder.path(), key.clone());
        assert_eq!(keys(&store), [api_key(1), api_key(2), api_key(3)]);
        assert_eq!(*store.secret(b"token").unwrap(), secret);
        assert_eq!(events(&store, 1).iter().map(|event| event.sequence).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(&*events(&store, 2)[0].text, event_text(3));
        assert_eq!(
            [u64::MAX, 4, 3, 1].map(|before| newest(&store, before)),
            [vec![3, 2], vec![3, 2], vec![2, 1], vec![]]
        );
        let changed = ApiKey { total_messages: 9, ..api_key(2) };
        let change = ControlChange { keys: &[&changed], gone: &[api_key(1).id], events: &[] };
        store.change_control(change).unwrap();
        assert_eq!(keys(&store), [changed, api_key(3)]);
        let report = store.check(|_| {}).unwrap();
        assert_eq!((report.damages.len(), report.keys, report.events), (0, 2, 3));
        drop(store);
        let reader = Store::open(options(folder.path(), key).reading()).unwrap();
        assert_eq!(keys(&reader).len(), 2);
        assert_eq!(reader.change_control(ControlChange::default()), Err(StoreError::ReadOnly));
    }
}

#[test]
fn events_are_bounded_in_number_and_age_and_their_numbers_are_never_used_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), None);
    add_events(&store, EVENTS_MAX + 5, START_MS);
    let sequences = |store: &Store| {
        let all = events(store, 0);
        (all.len() as u64, all[0].sequence, all[all.len() - 1].sequence)
    };
    assert_eq!(sequences(&store), (EVENTS_MAX, 6, EVENTS_MAX + 5));
    add_events(&store, 2, START_MS + 10);
    assert_eq!(sequences(&store), (EVENTS_MAX, 8, EVENTS_MAX + 7));
    let mut swept = 0;
    loop {
        match store.sweep_events(START_MS + 10).unwrap() {
            0 => break,
            some => swept += some,
        }
    }
    assert_eq!((swept, sequences(&store)), (EVENTS_MAX - 2, (2, EVENTS_MAX + 6, EVENTS_MAX + 7)));
    assert_eq!(store.sweep_events(u64::MAX), Ok(1));
    assert_eq!(store.sweep_events(u64::MAX), Ok(0), "the last one stays");
    add_events(&store, 1, START_MS);
    assert_eq!(sequences(&store), (2, EVENTS_MAX + 7, EVENTS_MAX + 8));
    let long = "x".repeat(EVENT_BYTES_MAX + 1);
    let change = ControlChange { keys: &[&api_key(1)], events: &[(1, &long)], ..ControlChange::default() };
    assert!(store.change_control(change).is_err());
    assert!(keys(&store).is_empty(), "all of a change holds, or nothing");
}

#[test]
fn nothing_personal_or_secret_of_control_data_can_be_read_in_an_encrypted_store() {
    let (folder, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let has = |folder: &Path, wanted: &[u8]| {
        let bytes = fs::read(folder.join("data.mdb")).unwrap();
        bytes.windows(wanted.len()).any(|window| window == wanted)
    };
    for (folder, key) in [(folder.path(), key()), (plain.path(), None)] {
        let sealed = key.is_some();
        let secret = fill_control(&open(folder, key));
        let hash = hash_of("secret 1");
        for wanted in [&secret[..], &hash, NAME_WORD.as_bytes(), SECRET_WORD.as_bytes(), b"ar_key_", b"uid:1000"] {
            assert_eq!(has(folder, wanted), !sealed, "{}", String::from_utf8_lossy(wanted));
        }
    }
}

#[test]
fn any_changed_byte_of_a_key_secret_or_event_is_found() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        fill_control(&open(folder.path(), key.clone()));
        for part in ["keys", "secrets", "events"] {
            let values = raw_values(folder.path(), part);
            let (place, value) = &values[0];
            let mut bad: Vec<Vec<u8>> = [0, 19, 20, value.len() - 1].map(|length| value[..length].to_vec()).into();
            for at in (0..value.len()).step_by(7) {
                bad.push(value.clone());
                bad.last_mut().unwrap()[at] ^= 0x10;
            }
            // Another row's value, in its own right whole.
            bad.extend(values.get(1).map(|(_, other)| other.clone()));
            for changed in bad {
                put(folder.path(), part, place, &changed);
                let store = Store::open(options(folder.path(), key.clone())).unwrap();
                assert_eq!(store.check(|_| {}).unwrap().damage_count, 1, "{part}");
                match part {
                    "keys" => assert!(store.snapshot().unwrap().keys(|_| ControlFlow::Continue(())).is_err()),
                    "secrets" => assert!(matches!(store.secret(b"token"), Err(StoreError::Corrupt(_)))),
                    _ => assert!(store.snapshot().unwrap().events(0, |_| ControlFlow::Continue(())).is_err()),
                }
            }
            put(folder.path(), part, place, value);
        }
        let store = Store::open(options(folder.path(), key)).unwrap();
        assert_eq!(store.check(|_| {}).unwrap().damages, []);
    }
}

#[test]
fn backups_restores_and_other_keys_keep_control_data() {
    let folder = tempfile::tempdir().unwrap();
    let (place, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let other = || Some(Key::parse(OTHER_KEY).unwrap());
    let secret = fill_control(&open(&place, key()));
    let same = |folder: &Path, key: Option<Key>| {
        let store = Store::open(options(folder, key)).unwrap();
        assert_eq!(keys(&store), [api_key(1), api_key(2), api_key(3)]);
        assert_eq!(events(&store, 0).len(), 3);
        store.begin_epoch(0, 0).unwrap();
        assert_eq!(*store.secret(b"token").unwrap(), secret);
        assert_eq!(store.check(|_| {}).unwrap().damages, []);
    };
    Store::open(options(&place, key())).unwrap().backup(&backup, |_| {}).unwrap();
    same(&backup, key());
    for (from, to) in [(key(), other()), (other(), None), (None, key())] {
        rekey(&place, from, to.clone(), |_| {}).unwrap();
        same(&place, to);
    }
    restore(&backup, &place, key(), true, OnDamage::Refuse, 7, |_| {}).unwrap();
    same(&place, key());
}

fn old(folder: &Path, sealed: bool) {
    let name = if sealed { "v1-sealed" } else { "v1-plain" };
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/fixtures").join(name);
    fs::create_dir_all(folder).unwrap();
    fs::copy(fixture.join("data.mdb"), folder.join("data.mdb")).unwrap();
}

#[test]
fn a_store_of_format_one_is_read_as_it_is_and_gets_its_databases_when_it_is_written() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        old(folder.path(), key.is_some());
        let before = fs::read(folder.path().join("data.mdb")).unwrap();
        let reader = Store::open(options(folder.path(), key.clone()).reading()).unwrap();
        assert!(keys(&reader).is_empty() && events(&reader, 0).is_empty());
        assert_eq!(reader.check(|_| {}).unwrap().damages, []);
        let copied = folder.path().join("copy");
        reader.backup(&copied, |_| {}).unwrap();
        drop(reader);
        assert_eq!(before, fs::read(folder.path().join("data.mdb")).unwrap());
        for place in [folder.path(), &copied] {
            let store = open(place, key.clone());
            let secret = fill_control(&store);
            drop(store);
            let store = Store::open(options(place, key.clone())).unwrap();
            assert_eq!((keys(&store).len(), *store.secret(b"token").unwrap()), (3, secret));
            assert_eq!(messages(&store).len(), 24);
            assert_eq!(store.check(|_| {}).unwrap().damages, []);
        }
        let schema = raw_values(folder.path(), "meta").into_iter().find(|(name, _)| name == b"schema").unwrap().1;
        assert_eq!(schema, SCHEMA.to_be_bytes());
    }
}

#[test]
fn a_wrong_key_does_not_upgrade_and_a_store_of_format_two_must_have_its_databases() {
    let folder = tempfile::tempdir().unwrap();
    old(folder.path(), true);
    let before = fs::read(folder.path().join("data.mdb")).unwrap();
    let wrong = Some(Key::parse(OTHER_KEY).unwrap());
    assert!(matches!(Store::open(options(folder.path(), wrong)), Err(OpenError::WrongKey(_))));
    assert_eq!(before, fs::read(folder.path().join("data.mdb")).unwrap());
    put(folder.path(), "meta", b"schema", &2u32.to_be_bytes());
    for options in [options(folder.path(), key()), options(folder.path(), key()).reading()] {
        let error = Store::open(options).err().unwrap();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn control_data_goes_in_while_segments_come() {
    let folder = tempfile::tempdir().unwrap();
    // Each doubling of so small a map is a transaction that is run again.
    let store = Store::open(agent_relay::store::Options { map_bytes: 128 * 1024, ..options(folder.path(), key()) });
    let store = store.unwrap();
    store.begin_epoch(1, 0).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| fill(&store, 200, 10, 1000));
        for number in 1..=50 {
            let text = event_text(number);
            let key = api_key(number as u8);
            store.change_control(ControlChange { keys: &[&key], gone: &[], events: &[(1, &text)] }).unwrap();
        }
    });
    assert_eq!((keys(&store).len(), events(&store, 0).len(), messages(&store).len()), (50, 50, 2000));
    let sequences: Vec<u64> = events(&store, 0).iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=50).collect::<Vec<_>>(), "no event twice");
    assert_eq!(store.check(|_| {}).unwrap().damages, []);
}
