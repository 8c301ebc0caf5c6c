//! A store's life: opened, written, read, recovered, swept.

use crate::made::*;
use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::relay::{Memory, Record, Remembered};
use agent_relay::store::{Follower, OpenError, Options, RecordRef, RowChange, Segment, Store, StoreError, replay};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;

/// As text, so that records and what was read can be compared: kinds, names, numbers.
fn told(record: &RecordRef<'_>) -> String {
    match record {
        RecordRef::Message(message) => {
            let to: Vec<_> = message.recipients.iter().collect();
            format!(
                "{:?} {:?} {} {} {} {to:?}",
                message.id, message.raw, message.checksum, message.accepted_at_ms, message.ttl_ms
            )
        }
        RecordRef::Session(session) => format!("{session:?} {:?}", session.resume.0),
        other => format!("{other:?}"),
    }
}

fn expected(record: &Record) -> String {
    match record {
        Record::Message { id, raw, checksum, accepted_at_ms, ttl_ms, recipients, .. } => {
            let raw = raw.to_vec();
            format!("{id:?} {raw:?} {checksum} {accepted_at_ms} {ttl_ms} {:?}", recipients.as_slice())
        }
        Record::Session(session) => format!("{session:?} {:?}", session.resume.0),
        other => format!("{other:?}"),
    }
}

#[test]
fn every_kind_of_record_reads_back_plain_and_sealed() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), key);
        let records = every_kind();
        let mut segment = Segment::new();
        let offsets: Vec<u32> = records.iter().map(|record| segment.push(record)).collect();
        assert_eq!(store.append(&mut segment).unwrap(), 1);
        let snapshot = store.snapshot().unwrap();
        let mut view = snapshot.segment(1).unwrap().unwrap();
        assert_eq!((view.header().records as usize, view.header().messages), (records.len(), 3));
        assert_eq!((view.header().first_ms, view.header().last_ms), (START_MS, START_MS + 9));
        let mut found = Vec::new();
        view.records(|offset, record| {
            found.push((offset, told(record)));
            ControlFlow::Continue(())
        })
        .unwrap();
        let wanted: Vec<_> = offsets.iter().zip(&records).map(|(offset, record)| (*offset, expected(record))).collect();
        assert_eq!(found, wanted);
        for (offset, record) in wanted.iter().rev() {
            assert_eq!(&told(&view.record_at(*offset).unwrap()), record);
        }
        assert!(snapshot.segment(2).unwrap().is_none());
    }
}

#[test]
fn large_segments_are_cut_into_pieces_and_read_from_anywhere() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), key);
        let sizes = [10, 70_000, 300, 60_000, 5_000, 1_000_000, 20, 64 * 1024 - 61, 1];
        let mut segment = Segment::new();
        let offsets: Vec<u32> = (1..).zip(sizes).map(|(n, size)| segment.push(&message(n, 1, size))).collect();
        store.append(&mut segment).unwrap();
        let snapshot = store.snapshot().unwrap();
        let mut view = snapshot.segment(1).unwrap().unwrap();
        for index in [8, 0, 5, 1, 7, 2, 6, 3, 4] {
            let RecordRef::Message(found) = view.record_at(offsets[index]).unwrap() else { panic!() };
            assert_eq!(found.id.number, index as u64 + 1);
            assert_eq!(crc32(found.raw), found.checksum);
        }
        assert!(view.record_at(offsets[8] + 1_000_000).is_err());
    }
}

#[test]
fn a_segment_is_used_again_and_keeps_its_buffers() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), key());
    fill(&store, 50, 20, 500);
    let found = messages(&store);
    assert_eq!(found.len(), 1000);
    assert!(found.iter().zip(1..).all(|((number, _), wanted)| *number == wanted));
    assert_eq!((store.first_segment().unwrap(), store.last_segment().unwrap()), (1, 50));
}

#[test]
fn a_commit_that_was_reported_as_failed_and_kept_after_all_is_not_repeated() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), key);
        fill(&store, 2, 3, 100);
        let mut again = segment(&[message(7, 1, 40_000), message(8, 1, 10)]);
        assert_eq!(store.append_at_once(&mut again), Ok(3));
        // As whoever got an error instead: once as it was, and once with more behind it.
        assert_eq!(store.append_at_once(&mut again), Ok(3));
        let mut more = segment(&[message(9, 1, 40_000)]);
        assert_eq!(store.append_at_once(&mut more), Ok(4));
        (10..14).for_each(|number| _ = more.push(&message(number, 1, 40_000)));
        assert_eq!(store.append_at_once(&mut more), Ok(5));
        assert_eq!((more.records(), more.messages()), (4, 4));
        let found: Vec<u64> = messages(&store).into_iter().map(|(number, _)| number).collect();
        assert_eq!(found, (1..14).collect::<Vec<u64>>());
        assert_eq!(store.check(|_| {}).unwrap().damages, []);
    }
}

#[test]
fn segments_without_a_time_have_the_last_one_seen() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), None);
    let mut segment = segment(&[message(7, 1, 10)]);
    store.append(&mut segment).unwrap();
    segment.clear();
    segment.push(&Record::Forgotten { agent: AgentId(1) });
    store.append(&mut segment).unwrap();
    let header = store.snapshot().unwrap().segment_header(2).unwrap().unwrap();
    assert_eq!((header.first_ms, header.last_ms), (START_MS + 7, START_MS + 7));
}

#[test]
fn epochs_only_grow_and_are_on_the_disk_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(options(folder.path(), key())).unwrap();
    assert_eq!(store.append(&mut segment(&[message(1, 1, 1)])), Err(StoreError::NoEpoch));
    assert_eq!(store.begin_epoch(500, 0), Ok(500));
    assert_eq!(store.begin_epoch(10, 0), Ok(501), "a clock that went back");
    assert_eq!(store.begin_epoch(10, 900), Ok(900));
    drop(store);
    let store = Store::open(options(folder.path(), key())).unwrap();
    assert_eq!(store.begin_epoch(600, 0), Ok(901));
}

#[test]
fn folder_and_files_are_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("project").join("store");
    let _store = open(&place, None);
    assert_eq!(place.metadata().unwrap().mode() & 0o777, 0o700);
    for entry in place.read_dir().unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_store_is_opened_once_in_a_program_and_read_only_means_it() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent");
    assert!(matches!(Store::open(Options::new(&absent, None).reading()), Err(OpenError::Absent(_))));
    assert!(!absent.exists());
    let store = open(folder.path(), None);
    assert!(matches!(Store::open(options(folder.path(), None)), Err(OpenError::InUse(_))));
    fill(&store, 1, 1, 10);
    drop(store);
    let store = Store::open(options(folder.path(), None).reading()).unwrap();
    assert_eq!(messages(&store).len(), 1);
    assert_eq!(store.append(&mut segment(&[message(1, 1, 1)])), Err(StoreError::ReadOnly));
    assert_eq!(store.begin_epoch(1, 0), Err(StoreError::ReadOnly));
    let file = folder.path().join("data.mdb");
    assert!(matches!(Store::open(options(&file, None)), Err(OpenError::NotAFolder(_))));
}

fn rows() -> Memory {
    let mut memory = Memory::default();
    let mut labelled = 0;
    for number in 0..5 {
        memory.known(1, agent(number), &name(number).into(), START_MS);
        for label in 0..[0, 1, 64, 4096, 10_000][number as usize] {
            labelled += 1;
            let id = agent_relay::base::MessageId { sender: agent(number), number: 1 << 63 | labelled << 20 | label };
            memory.sent(1, id, START_MS);
        }
        memory.sent(1, agent_relay::base::MessageId { sender: agent(number), number: 77 }, START_MS);
    }
    memory
}

#[test]
fn rows_and_labels_read_back_and_the_forgotten_are_gone() {
    for key in [None, key()] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), key.clone());
        let mut memory = rows();
        let changes: Vec<_> =
            memory.rows().map(|row| RowChange { row, labels_pushed: row.sent.labels_pushed }).collect();
        store.keep_rows(&changes, &[]).unwrap();
        // Then only what has changed is written: three labels of a full ring.
        for label in 0..3 {
            memory.sent(2, agent_relay::base::MessageId { sender: agent(4), number: 1 << 63 | label }, START_MS);
        }
        store.keep_rows(&[RowChange { row: memory.row(agent(4)).unwrap(), labels_pushed: 3 }], &[]).unwrap();
        drop(store);
        let store = open(folder.path(), key);
        let found = store.recover(|_| {}).unwrap();
        assert_eq!(found.len(), 5);
        for row in memory.rows() {
            assert_eq!(found.row(row.agent), Some(row));
            assert_eq!(store.snapshot().unwrap().row(row.agent).unwrap().as_ref(), Some(row));
        }
        store.keep_rows(&[], &[agent(3), agent(4)]).unwrap();
        assert_eq!(store.recover(|_| {}).unwrap().len(), 3);
        assert_eq!(store.check(|_| {}).unwrap().damages, []);
    }
}

#[test]
fn an_agent_that_was_forgotten_and_met_again_within_one_checkpoint_keeps_its_new_row() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), None);
    let follower = Follower::recover(&store).unwrap();
    let known = |at_ms| Record::Known { agent: agent(1), name: name(1).as_str().into(), at_ms };
    let labelled = |label: u64| {
        let Record::Message { raw, checksum, recipients, .. } = message(label, 2, 100) else { panic!() };
        let id = MessageId { sender: agent(1), number: 1 << 63 | label };
        let accepted_at_ms = START_MS;
        Record::Message { id, raw, checksum, accepted_at_ms, ttl_ms: 0, parts: 1, recipients }
    };
    let checkpoint = |records: &[Record]| {
        store.append(&mut segment(records)).unwrap();
        follower.catch_up(&store).unwrap();
        let (through, rows, forgotten) = follower.take_changes().unwrap();
        follower.keep_rows(&store, &[], &forgotten).unwrap();
        follower.keep_rows(&store, &rows, &[]).unwrap();
        store.mark_applied(through).unwrap();
    };
    checkpoint(&[known(1), labelled(1), labelled(2), labelled(3)]);
    checkpoint(&[Record::Forgotten { agent: agent(1) }, known(9), labelled(4)]);
    let row = store.snapshot().unwrap().row(agent(1)).unwrap().expect("it is known again");
    assert_eq!((row.first_seen_ms, row.sent.labels.len()), (9, 1), "and nothing of the old one is left");
    assert_eq!(row.sent.labels, [1 << 63 | 4]);
}

#[test]
fn recovery_is_rows_and_the_log_behind_them_whatever_was_kept_when() {
    for kept_at in 0..=8u64 {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), key());
        let mut memory = Memory::default();
        store.append(&mut segment(&every_kind())).unwrap();
        fill(&store, 7, 30, 50);
        let snapshot = store.snapshot().unwrap();
        for number in 1..=8 {
            let mut view = snapshot.segment(number).unwrap().unwrap();
            view.records(|_, record| {
                replay::apply(&mut memory, number, record);
                ControlFlow::Continue(())
            })
            .unwrap();
            if number == kept_at {
                // Some rows are kept, at a moment of their own; the others, and `applied`, are not.
                let mut changed = memory.clone();
                for (index, agent) in memory.clone().take_dirty().into_iter().enumerate() {
                    if index % 2 == 0
                        && let Some(row) = changed.stamp(agent, number)
                    {
                        let labels_pushed = row.sent.labels_pushed;
                        store.keep_rows(&[RowChange { row, labels_pushed }], &[]).unwrap();
                    }
                }
            }
        }
        drop(snapshot);
        let mut seen = Vec::new();
        let found = store.recover(|segment| seen.push(segment)).unwrap();
        assert_eq!(seen, [8]);
        let unstamped = |row: &Remembered| Remembered { as_of: 0, ..row.clone() };
        for row in memory.rows() {
            assert_eq!(found.row(row.agent).map(unstamped), Some(unstamped(row)));
        }
        assert_eq!(found.len(), memory.len());
        assert_eq!(found.row(agent(1)).unwrap().last, Sequence { epoch: 1000, counter: 239 });
    }
}

#[test]
fn the_sweep_takes_whole_old_segments_in_small_steps_and_nothing_that_is_not_in_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), None);
    fill(&store, 40, 10, 50);
    let all = u64::MAX;
    let step = store.sweep_step(all, u64::MAX, 35).unwrap();
    assert_eq!((step.segments, step.done, step.first_segment), (0, true, 1), "nothing was applied yet");
    store.mark_applied(30).unwrap();
    // Segment n holds times START + 10 (n - 1) + 1 to START + 10 n.
    let step = store.sweep_step(START_MS + 101, u64::MAX, 35).unwrap();
    assert_eq!((step.segments, step.messages, step.done, step.first_segment), (3, 30, false, 4));
    let step = store.sweep_step(START_MS + 101, u64::MAX, 1000).unwrap();
    assert_eq!((step.segments, step.done, step.first_segment), (7, true, 11));
    while !store.sweep_step(all, u64::MAX, 1).unwrap().done {}
    assert_eq!((store.first_segment().unwrap(), store.last_segment().unwrap()), (31, 40));
    store.mark_applied(40).unwrap();
    while !store.sweep_step(all, u64::MAX, 1000).unwrap().done {}
    assert_eq!((store.first_segment().unwrap(), store.last_segment().unwrap()), (41, 40));
    fill(&store, 1, 1, 1);
    assert_eq!((store.first_segment().unwrap(), store.last_segment().unwrap()), (41, 41), "numbers go on");
}

/// A message that was accepted at this time, alone in its segment.
fn one_at(store: &Store, number: u64, at_ms: u64) {
    let mut record = message(number, 1, 10);
    if let Record::Message { accepted_at_ms, .. } = &mut record {
        *accepted_at_ms = at_ms;
    }
    store.append(&mut segment(&[record])).unwrap();
}

#[test]
fn a_time_in_the_future_holds_back_nothing_behind_it() {
    const DAY: u64 = 24 * 3_600_000;
    let (now, cutoff) = (START_MS + 100 * DAY, START_MS + 93 * DAY);
    let future = START_MS + 9_000 * DAY;
    let swept = |days: &[u64]| {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), None);
        for (number, at_ms) in days.iter().enumerate() {
            one_at(&store, number as u64 + 1, *at_ms);
        }
        store.absorb().unwrap();
        store.mark_applied(days.len() as u64).unwrap();
        let mut steps = 0;
        while !store.sweep_step(cutoff, now, 1_000).unwrap().done {
            steps += 1;
            assert!(steps < 100, "it ends");
        }
        store.first_segment().unwrap() - 1
    };
    let (old, young) = (START_MS, now - DAY);
    assert_eq!(swept(&[old, future, old, old, young]), 4);
    assert_eq!(swept(&[old, future, future, young, young]), 1, "they are as old as what is behind them");
    assert_eq!(swept(&[future, old, future, old, future, young]), 4);
    assert_eq!(swept(&[old, future, future]), 1, "nothing says that they are old");
    // Slightly ahead: so is many a clock.
    assert_eq!(swept(&[old, now + DAY / 2, old, young]), 1);
    // A clock was ahead for so long that more than one step has to look for its end.
    let ahead: Vec<u64> = [old].into_iter().chain((0..1_100).map(|n| future + n)).chain([old, young]).collect();
    assert_eq!(swept(&ahead), 1_102);
}

#[test]
fn a_full_map_grows_and_readers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut small = options(folder.path(), key());
    small.map_bytes = 256 * 1024;
    let store = Store::open(small).unwrap();
    store.begin_epoch(1, 0).unwrap();
    let stop = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = store.clone();
        scope.spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let last = reader.last_segment().unwrap();
                assert!(messages(&reader).len() as u64 >= last * 10);
            }
        });
        fill(&store, 100, 10, 3000);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(messages(&store).len(), 1000);
    store.absorb().unwrap();
    assert!(store.file_bytes().unwrap().0 > 3_000_000);
}

/// Set for the process that is to die while it reads.
const READER_FOLDER: &str = "RELAY_TEST_READER_FOLDER";

/// Not a test but the other process of the next one.
#[test]
fn the_reader_that_is_killed() {
    use std::io::Read;
    let Some(folder) = std::env::var_os(READER_FOLDER) else { return };
    let store = Store::open(options(std::path::Path::new(&folder), None).reading()).unwrap();
    let snapshot = store.snapshot().unwrap();
    std::fs::write(std::path::Path::new(&folder).join("reads"), snapshot.last_segment().unwrap().to_string()).unwrap();
    // Until it is killed: nobody writes, and the end of it never comes.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_reader_that_was_killed_holds_nothing_back_once_it_is_cleared_away() {
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), None);
    fill(&store, 20, 50, 1000);
    let mut reader = Command::new(std::env::current_exe().unwrap());
    reader.args(["--exact", "life::the_reader_that_is_killed"]).env(READER_FOLDER, folder.path());
    let mut reader = reader.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let reads = folder.path().join("reads");
    let begun = std::time::Instant::now();
    while !std::fs::read_to_string(&reads).is_ok_and(|text| text == "20") {
        assert!(begun.elapsed().as_secs() < 30 && reader.try_wait().unwrap().is_none(), "the reader does not read");
        std::thread::yield_now();
    }
    // What is deleted and written again a few times over: as much as the store holds each time.
    let turn_over = || {
        for _ in 0..5 {
            store.mark_applied(store.last_segment().unwrap()).unwrap();
            while !store.sweep_step(u64::MAX, u64::MAX, 1000).unwrap().done {}
            fill(&store, 20, 50, 1000);
        }
        store.file_bytes().unwrap().0
    };
    let before = store.file_bytes().unwrap().0;
    let held = turn_over();
    assert!(held > 3 * before, "a reader holds back what was deleted since it began: {before} {held}");
    assert_eq!(store.clear_stale_readers().unwrap(), 0, "it lives");
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert_eq!(store.clear_stale_readers().unwrap(), 1);
    assert_eq!(turn_over(), held, "what it held back is used again");
}
