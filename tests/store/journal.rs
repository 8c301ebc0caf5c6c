//! The journal: what was appended and is not in the log yet, over crashes, failures and copies.

use crate::made::*;
use agent_relay::store::index::GroupLimits;
use agent_relay::store::{Key, RowChange, Segment, Store};
use parking_lot::RwLock;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

fn numbers(store: &Store) -> Vec<u64> {
    messages(store).into_iter().map(|(number, _)| number).collect()
}

fn append(store: &Store, number: u64, body_bytes: usize) -> u64 {
    store.append(&mut segment(&[message(number, 1, body_bytes)])).unwrap()
}

/// The folder as a crash leaves it: everything that was written, nothing that would have been.
fn crashed(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in ["data.mdb", "journal"] {
        fs::copy(folder.join(file), copy.path().join(file)).unwrap();
    }
    copy
}

#[test]
fn what_was_appended_is_seen_at_once_and_after_a_crash_with_or_without_a_key() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), key.clone());
        for number in 1..=3 {
            assert_eq!(append(&store, number, 100), number);
        }
        assert!(store.unabsorbed_bytes() > 0);
        assert!((3 * 4096..=32 << 20).contains(&store.journal_bytes().unwrap()));
        assert_eq!((store.first_segment().unwrap(), store.last_segment().unwrap()), (1, 3));
        assert_eq!(numbers(&store), [1, 2, 3]);
        // Whoever only reads changes nothing.
        let crash = crashed(folder.path());
        let reader = Store::open(options(crash.path(), key.clone()).reading()).unwrap();
        assert_eq!(numbers(&reader), [1, 2, 3]);
        assert_eq!(reader.check(|_| {}).unwrap().damages, []);
        drop(reader);
        let crash = crashed(folder.path());
        let again = open(crash.path(), key.clone());
        assert_eq!((again.unabsorbed_bytes(), numbers(&again)), (3 * 4096, vec![1, 2, 3]));
        assert_eq!(append(&again, 4, 100), 4);
        // A copy holds what the journal holds.
        let copy = tempfile::tempdir().unwrap();
        again.backup(&copy.path().join("copy"), |_| {}).unwrap();
        let copy = Store::open(options(&copy.path().join("copy"), key).reading()).unwrap();
        assert_eq!((copy.journal_bytes(), numbers(&copy)), (Ok(0), vec![1, 2, 3, 4]));
    }
}

#[test]
fn rows_marks_and_groups_never_speak_of_segments_that_the_log_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), None);
    // As another process finds it that has read the journal before.
    let without_journal = |what: &str| {
        let crash = crashed(folder.path());
        fs::remove_file(crash.path().join("journal")).unwrap();
        let reader = Store::open(options(crash.path(), None).reading()).unwrap();
        assert_eq!(reader.check(|_| {}).unwrap().damages, [], "{what}");
        reader.last_segment().unwrap()
    };
    let limits = GroupLimits { messages: 1, ..GroupLimits::default() };
    let tail = RwLock::new(store.tail(limits).unwrap());
    append(&store, 1, 100);
    assert_eq!(without_journal("nothing was absorbed"), 0);
    let mut memory = store.recover(|_| {}).unwrap();
    let row = memory.stamp(agent(1), 1).unwrap();
    store.keep_rows(&[RowChange { row, labels_pushed: 0 }], &[]).unwrap();
    assert_eq!(without_journal("rows"), 1);
    append(&store, 2, 100);
    store.index(&tail, false).unwrap();
    assert_eq!(without_journal("a group"), 2);
    append(&store, 3, 100);
    store.mark_applied(3).unwrap();
    assert_eq!(without_journal("a mark"), 3);
    assert_eq!((store.unabsorbed_bytes(), numbers(&store)), (0, vec![1, 2, 3]));
}

#[test]
fn a_half_is_used_again_only_behind_the_log_and_its_last_use_is_never_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), None);
    let mut number = 0;
    // 100 KiB each: over both halves some times, absorbed little by little, now and then all of it.
    for round in 1..=900u64 {
        number += 1;
        append(&store, number, 100 * 1024);
        if round % 7 == 0 {
            store.absorb_some(300 * 1024).unwrap();
        }
        if round % 250 == 0 {
            let again = Store::open(options(crashed(folder.path()).path(), None)).unwrap();
            assert_eq!(numbers(&again), (1..=number).collect::<Vec<_>>(), "round {round}");
        }
        if round % 400 == 0 {
            store.absorb().unwrap();
            assert_eq!(store.unabsorbed_bytes(), 0);
        }
    }
    assert!(fs::metadata(folder.path().join("journal")).unwrap().len() <= 32 * 1024 * 1024);
    assert_eq!(store.check(|_| {}).unwrap().damages, []);
}

#[test]
fn what_is_too_large_or_not_awaited_goes_past_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), key());
    append(&store, 1, 100);
    assert_eq!(store.append_at_once(&mut segment(&[message(2, 1, 100)])), Ok(2));
    assert_eq!(store.unabsorbed_bytes(), 0, "it takes along what waits");
    append(&store, 3, 100);
    assert_eq!(append(&store, 4, 2_000_000), 4);
    append(&store, 5, 100);
    let again = open(crashed(folder.path()).path(), key());
    assert_eq!(numbers(&again), [1, 2, 3, 4, 5]);
}

#[test]
fn a_log_that_was_swept_empty_does_not_hide_what_the_journal_holds_nor_bring_back_what_it_held() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), None);
    (1..=5).for_each(|number| _ = append(&store, number, 100));
    store.mark_applied(5).unwrap();
    while !store.sweep_step(u64::MAX, u64::MAX, 1000).unwrap().done {}
    let again = open(crashed(folder.path()).path(), None);
    assert!(numbers(&again).is_empty(), "what was deleted stays deleted");
    assert_eq!(append(&store, 6, 100), 6);
    assert_eq!((store.first_segment().unwrap(), store.last_segment().unwrap()), (6, 6));
    store.mark_applied(6).unwrap();
    append(&store, 7, 100);
    assert_eq!(numbers(&open(crashed(folder.path()).path(), None)), [6, 7]);
}

#[test]
fn a_journal_of_another_store_or_another_time_is_passed_over() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(open(folder.path(), None));
    let stranger = open(other.path(), None);
    append(&stranger, 1, 100);
    fs::copy(other.path().join("journal"), folder.path().join("journal")).unwrap();
    let store = open(folder.path(), None);
    assert!(numbers(&store).is_empty());
    append(&store, 1, 100);
    let early = crashed(folder.path());
    store.absorb().unwrap();
    append(&store, 2, 100);
    store.absorb().unwrap();
    append(&store, 3, 100);
    // A log from before, a journal from later.
    fs::copy(folder.path().join("journal"), early.path().join("journal")).unwrap();
    let again = open(early.path(), None);
    assert!(again.last_segment().unwrap() <= 1, "{:?}", numbers(&again));
    assert!(again.journal_gap().is_some() && store.journal_gap().is_none());
}

#[test]
fn a_vanished_journal_takes_nothing_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), None);
    append(&store, 1, 100);
    fs::rename(folder.path().join("journal"), folder.path().join("elsewhere")).unwrap();
    let mut more = segment(&[message(2, 1, 100)]);
    assert_eq!(store.append(&mut more).unwrap_err().kind(), "gone");
    fs::rename(folder.path().join("elsewhere"), folder.path().join("journal")).unwrap();
    assert_eq!(store.append(&mut more), Ok(2));
    assert_eq!(numbers(&store), [1, 2]);
}

#[test]
fn a_file_system_that_keeps_zeros_as_a_hole_costs_no_entry() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), None);
    store.append(&mut segment(&[message_of(1, &[1], vec![0; 600_000])])).unwrap();
    append(&store, 2, 100);
    let crash = crashed(folder.path());
    let file = fs::OpenOptions::new().write(true).open(crash.path().join("journal")).unwrap();
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    if rustix::fs::fallocate(&file, flags, 65_536, 262_144).is_err() {
        eprintln!("SKIPPED: this file system has no holes");
        return;
    }
    let again = open(crash.path(), None);
    append(&again, 3, 400_000);
    assert_eq!(numbers(&Store::open(options(crashed(crash.path()).path(), None)).unwrap()), [1, 2, 3]);
}

/// A journal of five segments, as a crash leaves it.
fn five(key: Option<Key>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), key);
    let mut segment = Segment::new();
    for number in 1..=5 {
        segment.clear();
        segment.push(&message(number, 1, 3_000));
        segment.push(&message(number + 100, 2, 3_000));
        store.append(&mut segment).unwrap();
    }
    crashed(folder.path())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_torn_or_damaged_journal_gives_a_beginning_of_what_was_appended_and_never_panics(
        cut in 0u64..60_000,
        at in 0u64..40_000,
        wrong in prop::collection::vec(any::<u8>(), 0..64),
        sealed in any::<bool>(),
    ) {
        let folder = five(sealed.then(key).flatten());
        let file = fs::OpenOptions::new().write(true).open(folder.path().join("journal")).unwrap();
        file.write_all_at(&wrong, at).unwrap();
        file.set_len(cut).unwrap();
        let store = open(folder.path(), sealed.then(key).flatten());
        let found = messages(&store);
        prop_assert_eq!(found.len() % 2, 0, "a segment is whole or not there");
        let first: Vec<u64> = found.iter().map(|(number, _)| *number).filter(|number| *number < 100).collect();
        prop_assert_eq!(&first, &(1..=first.len() as u64).collect::<Vec<_>>());
        prop_assert_eq!(store.check(|_| {}).unwrap().damages, []);
    }
}
