//! Stores of each format that was ever released, and of one that does not exist yet.

use crate::damage::{put, raw_values};
use crate::made::*;
use agent_relay::store::{Key, OpenError, RowChange, SCHEMA, Store};
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/fixtures").join(name)
}

/// What every fixture holds.
fn write_fixture(folder: &Path, key: Option<Key>) -> Store {
    let store = open(folder, key);
    store.append(&mut segment(&every_kind())).unwrap();
    let mut memory = store.recover(|_| {}).unwrap();
    let id = agent_relay::base::MessageId { sender: agent(1), number: 1 << 63 | 5 };
    memory.sent(2, id, START_MS);
    let agents = memory.take_dirty();
    for agent in agents {
        if let Some(row) = memory.stamp(agent, 1) {
            let labels_pushed = row.sent.labels_pushed;
            store.keep_rows(&[RowChange { row, labels_pushed }], &[]).unwrap();
        }
    }
    store.mark_applied(1).unwrap();
    fill(&store, 2, 10, 200);
    store.absorb().unwrap();
    // The last one is in the journal alone.
    store.append(&mut segment(&[message(40, 1, 70_000)])).unwrap();
    crate::control::fill_control(&store);
    store
}

/// Run by hand when a format is released: `cargo test --test store write_the_fixtures -- --ignored`.
#[test]
#[ignore = "writes into the source tree"]
fn write_the_fixtures() {
    for (name, key) in [("plain", None), ("sealed", key())] {
        let folder = tempfile::tempdir().unwrap();
        write_fixture(folder.path(), key);
        let target = fixture(&format!("v{SCHEMA}-{name}"));
        fs::create_dir_all(&target).unwrap();
        for file in ["data.mdb", "journal"] {
            fs::copy(folder.path().join(file), target.join(file)).unwrap();
        }
    }
}

#[test]
fn stores_of_every_released_format_open_and_hold_everything() {
    for (name, key, has_control) in
        [("v1", false), ("v2", true), ("v3", true)].into_iter().flat_map(|(format, has_control)| {
            [(format!("{format}-plain"), None, has_control), (format!("{format}-sealed"), key(), has_control)]
        })
    {
        let folder = tempfile::tempdir().unwrap();
        for file in fs::read_dir(fixture(&name)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        let store = Store::open(options(folder.path(), key)).unwrap();
        let report = store.check(|_| {}).unwrap();
        assert_eq!(report.damages, []);
        assert_eq!((report.segments, report.applied, report.messages, report.agents), ((1, 4), 1, 24, 2));
        assert_eq!((report.keys, report.events), if has_control { (3, 3) } else { (0, 0) });
        if has_control {
            let made = [1, 2, 3].map(crate::control::api_key);
            assert_eq!(crate::control::keys(&store), made);
            assert_eq!(&*crate::control::events(&store, 2)[0].text, crate::control::event_text(3));
        }
        let memory = store.recover(|_| {}).unwrap();
        let first = memory.row(agent(1)).unwrap();
        assert_eq!(first.name.as_deref(), Some(name_of(1).as_str()));
        assert_eq!(first.sent.labels, [1 << 63 | 5]);
        assert_eq!(first.subscriptions.len(), 1);
        assert_eq!(memory.row(agent(0)).unwrap().profile.as_ref().unwrap().cli.as_ref(), "claude");
        let found = messages(&store);
        assert_eq!(found.len(), 24);
        assert!(found.iter().all(|(_, body)| String::from_utf8_lossy(body).contains(SECRET_WORD)));
        assert!(store.begin_epoch(0, 0).unwrap() > 1000);
        fill(&store, 1, 1, 1);
        assert_eq!(store.last_segment(), Ok(5));
    }
}

fn name_of(number: u64) -> String {
    name(number)
}

#[test]
fn a_newer_format_is_refused_and_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    write_fixture(folder.path(), None).absorb().unwrap();
    put(folder.path(), "meta", b"schema", &(SCHEMA + 1).to_be_bytes());
    let before = fs::read(folder.path().join("data.mdb")).unwrap();
    for options in [options(folder.path(), None), options(folder.path(), key())] {
        let error = Store::open(options).err().unwrap();
        assert!(matches!(error, OpenError::Newer { found: 4, known: 3, .. }), "{error}");
        assert!(error.to_string().contains("newer relay"));
    }
    assert_eq!(before, fs::read(folder.path().join("data.mdb")).unwrap());
    assert_eq!(raw_values(folder.path(), "log").len(), 4);
}
