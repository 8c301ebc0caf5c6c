//! Files that are not what was written. The tests write into them with the library alone, past the store.

use crate::made::*;
use agent_relay::store::{OpenError, RowChange, Store, StoreError};
use heed::types::Bytes;
use heed::{CommitOrAbort, Env, EnvOpenOptions, WithoutTls};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

type Raw = heed::Database<'static, Bytes, Bytes>;

#[allow(unsafe_code, reason = "a test that damages a file must get at it")]
fn raw(folder: &Path, name: &str) -> (Env<WithoutTls>, Raw) {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(1 << 30).max_dbs(16);
    // SAFETY: the store is closed; nobody else has the file.
    let env = unsafe { options.open(folder) }.unwrap();
    let transaction = env.read_txn().unwrap();
    let database = env
        .open_databases_and_commit(transaction, |opener, transaction| {
            let database = opener.open_database::<Bytes, Bytes>(transaction, Some(name))?;
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(database))
        })
        .unwrap()
        .unwrap_commit()
        .unwrap();
    (env, database)
}

/// All of a database, as it lies in the file.
pub(crate) fn raw_values(folder: &Path, name: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (env, database) = raw(folder, name);
    let transaction = env.read_txn().unwrap();
    let all = database.iter(&transaction).unwrap().map(|item| item.unwrap());
    all.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

pub(crate) fn put(folder: &Path, name: &str, key: &[u8], value: &[u8]) {
    let (env, database) = raw(folder, name);
    let mut transaction = env.write_txn().unwrap();
    database.put(&mut transaction, key, value).unwrap();
    transaction.commit().unwrap();
}

fn reads(store: &Store, number: u64) -> Result<usize, StoreError> {
    let snapshot = store.snapshot().unwrap();
    let mut count = 0;
    snapshot.segment(number)?.unwrap().records(|_, _| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

#[test]
fn a_segment_or_row_that_was_moved_is_refused() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), key.clone());
        store.append(&mut segment(&every_kind())).unwrap();
        let memory = store.recover(|_| {}).unwrap();
        fill(&store, 3, 5, 100);
        let changes: Vec<_> = memory.rows().map(|row| RowChange { row, labels_pushed: 0 }).collect();
        store.keep_rows(&changes, &[]).unwrap();
        store.absorb().unwrap();
        drop(store);
        let log = raw_values(folder.path(), "log");
        put(folder.path(), "log", &2u64.to_be_bytes(), &log[2].1);
        let agents = raw_values(folder.path(), "agents");
        put(folder.path(), "agents", &agents[0].0, &agents[1].1);
        let store = Store::open(options(folder.path(), key)).unwrap();
        assert_eq!(reads(&store, 4), Ok(5));
        assert!(matches!(reads(&store, 2), Err(StoreError::Corrupt(damage)) if damage.key == 2));
        assert!(matches!(store.recover(|_| {}), Err(StoreError::Corrupt(_))));
        let report = store.check(|_| {}).unwrap();
        assert_eq!(report.damage_count, 2, "{:?}", report.damages);
        assert!(StoreError::Corrupt(report.damages[0]).to_string().contains("relay doctor"));
    }
}

#[test]
fn a_piece_that_was_exchanged_with_another_is_refused() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), key.clone());
        store.append(&mut segment(&[message(1, 1, 70_000), message(2, 1, 70_000)])).unwrap();
        store.absorb().unwrap();
        drop(store);
        let value = raw_values(folder.path(), "log").remove(0).1;
        let head = 44 + 2 * 20;
        let half = (value.len() - head) / 2;
        let moved = [&value[..head], &value[head + half..], &value[head..head + half]].concat();
        put(folder.path(), "log", &1u64.to_be_bytes(), &moved);
        let store = Store::open(options(folder.path(), key)).unwrap();
        assert!(matches!(reads(&store, 1), Err(StoreError::Corrupt(_))));
    }
}

#[test]
fn any_changed_byte_of_a_segment_row_or_label_is_found() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), key.clone());
        store.append(&mut segment(&every_kind())).unwrap();
        let mut memory = store.recover(|_| {}).unwrap();
        let id = agent_relay::base::MessageId { sender: agent(1), number: 1 << 63 };
        memory.sent(2, id, START_MS);
        let changes: Vec<_> = memory.rows().map(|row| RowChange { row, labels_pushed: 1 }).collect();
        store.keep_rows(&changes, &[]).unwrap();
        store.mark_applied(1).unwrap();
        drop(store);
        for name in ["log", "agents", "labels"] {
            let (place, value) = raw_values(folder.path(), name).remove(0);
            for at in (0..value.len()).step_by(7).chain([value.len() - 1]) {
                let mut changed = value.clone();
                changed[at] ^= 0x10;
                put(folder.path(), name, &place, &changed);
                let store = Store::open(options(folder.path(), key.clone())).unwrap();
                let report = store.check(|_| {}).unwrap();
                assert!(report.damage_count > 0, "{name} byte {at} of {}", value.len());
                // Reading it anyway is an error, or the bytes before the damage; never a panic.
                let _ = store.recover(|_| {});
            }
            for length in [0, 1, 19, 20, 43, 44, value.len() - 1] {
                put(folder.path(), name, &place, &value[..length.min(value.len() - 1)]);
                let store = Store::open(options(folder.path(), key.clone())).unwrap();
                assert!(store.check(|_| {}).unwrap().damage_count > 0);
            }
            put(folder.path(), name, &place, &value);
        }
        let store = Store::open(options(folder.path(), key)).unwrap();
        assert_eq!(store.check(|_| {}).unwrap().damages, []);
    }
}

#[test]
fn files_that_are_cut_off_or_not_lmdbs_are_refused_before_they_are_mapped() {
    let folder = tempfile::tempdir().unwrap();
    fill(&open(folder.path(), None), 20, 10, 1000);
    let file = folder.path().join("data.mdb");
    let whole = fs::read(&file).unwrap();
    let mut garbled = whole.clone();
    garbled[16] ^= 1;
    let mut other_version = whole.clone();
    other_version[4096 + 20] = 9;
    let noise: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let cut = [100, 4096, 8192, whole.len() / 2, whole.len() - 4096].map(|length| whole[..length].to_vec());
    for bytes in cut.into_iter().chain([garbled, other_version, noise, b"hello".to_vec()]) {
        fs::write(&file, &bytes).unwrap();
        for options in [options(folder.path(), None), options(folder.path(), None).reading()] {
            let error = Store::open(options).err().unwrap();
            assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("nothing was changed"));
            assert_eq!(fs::read(&file).unwrap(), bytes);
        }
    }
    fs::write(&file, &whole).unwrap();
    assert_eq!(messages(&Store::open(options(folder.path(), None)).unwrap()).len(), 200);
}

#[test]
fn meta_values_that_are_missing_or_wrong_are_refused() {
    for (name, value) in [
        ("schema", &b"\0\0\0\0"[..]),
        ("schema", b"1"),
        ("store_id", b"short"),
        ("cipher", b"\x07"),
        ("cipher", b""),
        ("applied", b"x"),
        ("epoch", b"123456789"),
        ("index_key", b"123"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fill(&open(folder.path(), None), 1, 1, 1);
        put(folder.path(), "meta", name.as_bytes(), value);
        assert!(Store::open(options(folder.path(), None)).is_err(), "{name} {value:?}");
    }
}

#[test]
fn a_journal_with_entries_and_no_store_beside_it_is_refused_and_left_as_it_is() {
    for (key, left) in [(None, None), (key(), Some(Vec::new())), (None, Some(blank()))] {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("store");
        let store = open(&folder, key.clone());
        store.append(&mut segment(&[message(1, 2, 100)])).unwrap();
        drop(store);
        let (data, journal) = (folder.join("data.mdb"), folder.join("journal"));
        let (intact, entries) = (fs::read(&data).unwrap(), fs::read(&journal).unwrap());
        match &left {
            None => fs::remove_file(&data).unwrap(),
            Some(bytes) => fs::write(&data, bytes).unwrap(),
        }
        let options = options(&folder, key.clone());
        for options in [options.clone(), options.clone().reading()] {
            match Store::open(options).map(drop) {
                Err(OpenError::Bereft(named)) => assert_eq!(named, folder),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((fs::read(&data).ok(), fs::read(&journal).unwrap()), (left, entries));
        fs::write(&data, intact).unwrap();
        assert_eq!(Store::open(options).unwrap().last_segment(), Ok(1));
    }
}

/// The file of an environment that never got its first commit.
fn blank() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    drop(agent_relay::store::open_environment(folder.path(), 1 << 20).unwrap());
    fs::read(folder.path().join("data.mdb")).unwrap()
}

#[test]
fn a_store_whose_making_was_cut_off_before_its_first_commit_is_made() {
    for data in [None, Some(Vec::new()), Some(blank())] {
        // A journal without entries: none, an empty one, room that was given to it.
        for journal in [None, Some(0), Some(1 << 18)] {
            let folder = tempfile::tempdir().unwrap();
            let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
            data.iter().for_each(|bytes| put("data.mdb", bytes));
            journal.iter().for_each(|length| put("journal", &vec![0; *length]));
            let store = open(folder.path(), None);
            assert_eq!(store.append(&mut segment(&[message(1, 2, 100)])), Ok(1));
        }
    }
}
