//! Backups of a store that is being written, their restoration, and other keys.

use crate::made::*;
use agent_relay::store::copy::{OnDamage, is_interrupted, leftovers, rekey, restore};
use agent_relay::store::{CopyError, Key, Options, RowChange, Store};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_backup_of_a_busy_store_is_whole_up_to_a_moment_after_it_began() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder.path().join("store"), key.clone());
        fill(&store, 300, 20, 1000);
        let backup = folder.path().join("backups").join("monday");
        let stop = AtomicBool::new(false);
        let before = store.last_segment().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // As the keeper does: rows, then `applied`, while segments come in.
                while !stop.load(Ordering::Relaxed) {
                    fill(&store, 5, 20, 1000);
                    let segment = store.last_segment().unwrap();
                    let mut memory = store.recover(|_| {}).unwrap();
                    for agent in memory.take_dirty() {
                        if let Some(row) = memory.stamp(agent, segment) {
                            store.keep_rows(&[RowChange { row, labels_pushed: 0 }], &[]).unwrap();
                        }
                    }
                    store.mark_applied(segment).unwrap();
                }
            });
            let mut told = 0;
            let copied = store.backup(&backup, |copied| told = copied.segment).unwrap();
            stop.store(true, Ordering::Relaxed);
            assert!(told >= before && copied.segment == told);
        });
        assert!(matches!(store.backup(&backup, |_| {}), Err(CopyError::Exists(_))));
        let id = store.store_id();
        drop(store);
        let copy = Store::open(options(&backup, key).reading()).unwrap();
        assert_eq!(copy.store_id(), id);
        let report = copy.check(|_| {}).unwrap();
        assert_eq!(report.damages, []);
        assert!(report.segments.0 == 1 && report.segments.1 >= before);
        let found = messages(&copy);
        assert_eq!(found.len() as u64, report.segments.1 * 20);
        copy.recover(|_| {}).unwrap();
        assert_eq!(fs::read_dir(backup.parent().unwrap()).unwrap().count(), 1, "no temporary is left");
    }
}

#[test]
fn a_restored_store_goes_on_under_a_subkey_of_its_own_and_the_old_one_is_kept_aside() {
    let folder = tempfile::tempdir().unwrap();
    let (place, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let store = open(&place, key());
    fill(&store, 3, 10, 100);
    store.backup(&backup, |_| {}).unwrap();
    fill(&store, 3, 10, 100);
    drop(store);
    assert!(matches!(restore(&backup, &place, key(), false, OnDamage::Refuse, 7, |_| {}), Err(CopyError::Occupied(_))));
    restore(&backup, &place, key(), true, OnDamage::Refuse, 7, |_| {}).unwrap();
    let store = open(&place, key());
    assert_eq!(store.last_segment(), Ok(3));
    fill(&store, 1, 10, 100);
    assert_eq!(messages(&store).len(), 40);
    drop(store);
    let aside = Store::open(options(&folder.path().join("store.replaced-7"), key())).unwrap();
    assert_eq!(aside.last_segment(), Ok(6));
    assert!(
        restore(&backup, &place, None, true, OnDamage::Refuse, 8, |_| {}).is_err(),
        "without its key nothing can be checked"
    );
    assert_eq!(leftovers(&place), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_damaged_backup_is_not_restored() {
    let folder = tempfile::tempdir().unwrap();
    let (place, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let store = open(&place, None);
    fill(&store, 3, 10, 100);
    store.backup(&backup, |_| {}).unwrap();
    drop(store);
    let mut value = crate::damage::raw_values(&backup, "log").remove(1).1;
    *value.last_mut().unwrap() ^= 1;
    crate::damage::put(&backup, "log", &2u64.to_be_bytes(), &value);
    let before = fs::read(place.join("data.mdb")).unwrap();
    assert!(matches!(
        restore(&backup, &place, None, true, OnDamage::Refuse, 7, |_| {}),
        Err(CopyError::Damaged { places: 1, .. })
    ));
    assert_eq!(before, fs::read(place.join("data.mdb")).unwrap());
}

#[test]
fn a_damaged_store_is_not_backed_up_unless_what_is_whole_is_wanted() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let store = open(&path("store"), key.clone());
        fill(&store, 3, 10, 100);
        store.backup(&path("earlier"), |_| {}).unwrap();
        store.absorb().unwrap();
        drop(store);
        let mut value = crate::damage::raw_values(&path("store"), "log").remove(1).1;
        *value.last_mut().unwrap() ^= 1;
        crate::damage::put(&path("store"), "log", &2u64.to_be_bytes(), &value);
        let store = Store::open(options(&path("store"), key.clone()).reading()).unwrap();
        let error = store.backup(&path("backup"), |_| {}).unwrap_err();
        assert!(matches!(error, CopyError::Unsound(damage) if damage.key == 2), "{error}");
        assert!(error.to_string().contains("(log 2: ") && error.to_string().contains("--damaged"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left of it");
        assert_eq!(
            Store::open(options(&path("earlier"), key.clone()).reading()).unwrap().check(|_| {}).unwrap().damages,
            []
        );
        let copied = store.backup_of(OnDamage::PassOver, &path("backup"), |_| {}).unwrap();
        assert_eq!((copied.damaged, copied.segment), (1, 3));
        drop(store);
        let refused = restore(&path("backup"), &path("store"), key.clone(), true, OnDamage::Refuse, 7, |_| {});
        assert!(refused.unwrap_err().to_string().contains("--damaged"), "the way out is named");
        let restored = restore(&path("backup"), &path("store"), key.clone(), true, OnDamage::PassOver, 7, |_| {});
        assert_eq!(restored.unwrap().copied.damaged, 1);
        let store = open(&path("store"), key);
        let snapshot = store.snapshot().unwrap();
        for number in [1, 3] {
            assert_eq!(snapshot.segment_header(number).unwrap().unwrap().messages, 10);
            assert!(
                snapshot.segment(number).unwrap().unwrap().records(|_, _| std::ops::ControlFlow::Continue(())).is_ok()
            );
        }
    }
}

#[test]
fn another_key_none_and_one_again_keep_everything() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("store");
    let other = || Some(Key::parse(OTHER_KEY).unwrap());
    let store = open(&place, None);
    store.append(&mut segment(&every_kind())).unwrap();
    fill(&store, 20, 10, 5000);
    let memory = store.recover(|_| {}).unwrap();
    let changes: Vec<_> = memory.rows().map(|row| RowChange { row, labels_pushed: 0 }).collect();
    store.keep_rows(&changes, &[]).unwrap();
    let wanted = messages(&store);
    drop(store);
    let mut from = None;
    for to in [key(), other(), None] {
        fs::create_dir_all(folder.path().join(".store.rekeyed")).unwrap();
        rekey(&place, from.clone(), to.clone(), |_| {}).unwrap();
        assert!(matches!(rekey(&place, to.clone(), to.clone(), |_| {}), Err(CopyError::SameKey)));
        let bytes = fs::read(place.join("data.mdb")).unwrap();
        let has_secret = bytes.windows(SECRET_WORD.len()).any(|window| window == SECRET_WORD.as_bytes());
        assert_eq!(has_secret, to.is_none());
        if from.is_some() {
            assert!(Store::open(options(&place, from)).is_err());
        }
        let store = Store::open(options(&place, to.clone())).unwrap();
        assert_eq!(store.check(|_| {}).unwrap().damages, []);
        assert_eq!(messages(&store), wanted);
        assert_eq!(store.recover(|_| {}).unwrap().len(), memory.len());
        assert!(store.begin_epoch(0, 0).unwrap() > 1000);
        drop(store);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        from = to;
    }
}

#[test]
fn an_interrupted_exchange_is_told_and_put_right() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("store");
    fill(&open(&place, None), 3, 10, 100);
    fs::rename(&place, folder.path().join("store.before-rekey")).unwrap();
    let error = Store::open(options(&place, None)).err().unwrap();
    assert!(error.to_string().contains("relay rekey"), "{error}");
    rekey(&place, None, key(), |_| {}).unwrap();
    assert_eq!(messages(&Store::open(options(&place, key())).unwrap()).len(), 30);
}

#[test]
fn a_restoration_that_was_cut_off_without_a_store_is_told_and_put_right() {
    let folder = tempfile::tempdir().unwrap();
    let (place, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let store = open(&place, None);
    fill(&store, 3, 10, 100);
    store.backup(&backup, |_| {}).unwrap();
    drop(store);
    // As on a file system that cannot exchange two names: the old one has gone aside, the new one has not come.
    fs::rename(&place, folder.path().join("store.replaced-7")).unwrap();
    let fresh = folder.path().join(".store.restored");
    fs::create_dir(&fresh).unwrap();
    fs::copy(backup.join("data.mdb"), fresh.join("data.mdb")).unwrap();
    for options in [options(&place, None), options(&place, None).reading()] {
        let error = Store::open(options).err().unwrap().to_string();
        assert!(error.contains("`relay restore` was interrupted: run it again"), "{error}");
    }
    assert!(!place.exists() && is_interrupted(&place));
    let restored = restore(&backup, &place, None, true, OnDamage::Refuse, 7, |_| {}).unwrap();
    assert_eq!((restored.replaced, is_interrupted(&place)), (None, false));
    assert_eq!(messages(&Store::open(options(&place, None)).unwrap()).len(), 30);
    // Names that are taken are left alone, also within the same second.
    let again = restore(&backup, &place, None, true, OnDamage::Refuse, 7, |_| {}).unwrap();
    assert_eq!(again.replaced, Some(folder.path().join("store.replaced-8")));
    assert_eq!(leftovers(&place), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_copy_has_room_for_its_original_however_small_its_map_was_asked_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let (place, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let small = |folder: &std::path::Path, key| Options { map_bytes: 1 << 20, ..options(folder, key) };
    let store = Store::open(small(&place, None)).unwrap();
    store.begin_epoch(1000, 0).unwrap();
    fill(&store, 40, 20, 10_000);
    let wanted = messages(&store);
    assert!(store.unabsorbed_bytes() > 4 << 20, "most of it is in the journal");
    drop(store);
    let reader = Store::open(small(&place, None).reading()).unwrap();
    reader.backup(&backup, |_| {}).unwrap();
    drop(reader);
    assert_eq!(messages(&Store::open(small(&backup, None)).unwrap()), wanted);
}

#[test]
fn two_backups_to_one_place_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("store"), None);
    fill(&store, 3, 10, 100);
    let backup = folder.path().join("backup");
    let mut refused = 0;
    store
        .backup(&backup, |_| {
            if let Err(CopyError::Busy(place)) = store.backup(&backup, |_| {}) {
                assert_eq!(place, backup);
                refused += 1;
            }
        })
        .unwrap();
    assert!(refused > 0);
    // Nor does one with what somebody else has put there.
    let partial = folder.path().join(".other.partial");
    let other = folder.path().join("other");
    fs::create_dir(&partial).unwrap();
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o777)).unwrap();
    let error = store.backup(&other, |_| {}).unwrap_err().to_string();
    assert!(error.contains("not yours alone"), "{error}");
    fs::remove_dir(&partial).unwrap();
    std::os::unix::fs::symlink(folder.path(), &partial).unwrap();
    assert!(matches!(store.backup(&other, |_| {}), Err(CopyError::File(..))));
    assert!(!other.exists());
    assert_eq!(messages(&Store::open(options(&backup, None)).unwrap()).len(), 30);
}
