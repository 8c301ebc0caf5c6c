//! Backups, restorations and new keys that are cut off at every call that reaches the disk, by a kill and by a power cut:
//! afterwards the store is the old one or the new one, whole, or says what to do; and the same command once more does it.

use crate::broken_disk::{BrokenDisk, Calls, Failure};
use crate::daemon::Place;
use crate::dice;
use crate::mount::{Ext4, with_own_mounts};
use crate::retention::{message, wall_ms};
use crate::swarm::Swarm;
use crate::tally::skip;
use agent_relay::base::AgentId;
use agent_relay::relay::Record;
use agent_relay::store::{KeptTime, Key, Options, RowChange, Segment, Store};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// Keys for stores that nobody else will ever open.
const KEYS: [&str; 2] = [
    "relay-key-v1:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    "relay-key-v1:ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
];
/// Calls of one command, at most.
const CALLS_MAX: u64 = 300;
/// Messages of one segment.
const SEGMENT_MESSAGES: u64 = 10;
/// Segments that are in the log, and those that are in the journal alone.
const SEGMENTS: (u64, u64) = (3, 2);
/// Messages of a store that `fill` makes.
const MESSAGES: u64 = SEGMENT_MESSAGES * (SEGMENTS.0 + SEGMENTS.1);
/// When the store was last used, as it says.
const KEPT: KeptTime = KeptTime { time_ms: 1_790_000_000_000, boot: [7; 16], boot_ms: 5, doubted_ms: 0 };

fn options(folder: &Path, key: Option<&str>) -> Options {
    Options { map_bytes: 1 << 28, ..Options::new(folder, key.map(|text| Key::parse(text).unwrap())) }
}

fn append(store: &Store, segments: u64, first: u64) {
    let mut segment = Segment::new();
    for index in 0..segments {
        segment.clear();
        for number in 1..=SEGMENT_MESSAGES {
            segment.push(&message("bob", first + index * SEGMENT_MESSAGES + number, wall_ms() - 1_000));
        }
        store.append(&mut segment).unwrap();
    }
}

/// A store in `folder` as a crash leaves it: its last messages are in the journal alone.
fn fill(folder: &Path, key: Option<&str>) {
    let making = tempfile::tempdir().unwrap();
    let store = Store::open(options(making.path(), key)).unwrap();
    store.begin_epoch(1, 0).unwrap();
    let mut segment = Segment::new();
    segment.push(&Record::Known { agent: AgentId::of(b"bob"), name: "bob".into(), at_ms: wall_ms() });
    store.append(&mut segment).unwrap();
    append(&store, SEGMENTS.0, 0);
    let through = store.last_segment().unwrap();
    let mut memory = store.recover(|_| {}).unwrap();
    for agent in memory.take_dirty() {
        if let Some(row) = memory.stamp(agent, through) {
            store.keep_rows(&[RowChange { row, labels_pushed: 0 }], &[]).unwrap();
        }
    }
    store.mark_applied(through).unwrap();
    store.keep_time(&KEPT).unwrap();
    append(&store, SEGMENTS.1, SEGMENTS.0 * SEGMENT_MESSAGES);
    assert!(store.unabsorbed_bytes() > 0);
    fs::create_dir_all(folder).unwrap();
    for file in ["data.mdb", "journal"] {
        fs::copy(making.path().join(file), folder.join(file)).unwrap();
    }
}

/// How many messages a whole store in `folder` holds, and that it holds all else; or why it cannot be opened.
fn messages_in(folder: &Path, key: Option<&str>) -> Result<u64, String> {
    let (messages, kept) = messages_and_time(folder, key)?;
    assert_eq!(kept, Some(KEPT), "{}", folder.display());
    Ok(messages)
}

/// The same where a daemon may have kept a time of its own since.
fn messages_and_time(folder: &Path, key: Option<&str>) -> Result<(u64, Option<KeptTime>), String> {
    let store = Store::open(options(folder, key).reading()).map_err(|error| error.to_string())?;
    let report = store.check(|_| {}).unwrap();
    assert_eq!(report.damages, [], "{}", folder.display());
    assert!(report.agents > 0, "{}", folder.display());
    Ok((report.messages, store.kept_time().unwrap()))
}

/// Where the command runs, whose calls are counted.
struct Cutting {
    place: Place,
    breaking: BrokenDisk,
    /// Its power is cut; else the command is killed and no more.
    disk: Option<Ext4>,
    base: PathBuf,
    _outside: tempfile::TempDir,
}

impl Cutting {
    fn new(name: &str, disk: Option<Ext4>) -> Option<Cutting> {
        let outside = tempfile::Builder::new().prefix("relay-copies").tempdir().unwrap();
        let mut place = Place::new(Path::new("/"), outside.path());
        let breaking = match BrokenDisk::under(&mut place) {
            Ok(breaking) => breaking,
            Err(why) => {
                skip("cc", name, &why);
                return None;
            }
        };
        let base = disk.as_ref().map_or_else(|| outside.path().join("data"), |disk| disk.path().join("data"));
        Some(Cutting { place, breaking, disk, base, _outside: outside })
    }

    /// Cuts the command off at each of its calls, on data that `prepare` makes; `check` sees what is left. How many calls
    /// there were.
    fn at_every_call(
        &mut self,
        prepare: impl Fn(&Path),
        line: impl Fn(&Path) -> Vec<String>,
        mut check: impl FnMut(&mut Place, &str, &Output),
    ) -> u64 {
        for call in 0..CALLS_MAX {
            self.place.data = self.base.join(call.to_string());
            fs::create_dir_all(&self.place.data).unwrap();
            prepare(&self.place.data);
            if self.disk.is_some() {
                rustix::fs::sync();
            }
            let line = line(&self.place.data);
            let line: Vec<&str> = line.iter().map(String::as_str).collect();
            self.breaking.fail(Calls::Everything, call, 1, Failure::Kill);
            let out = self.place.spawn(&line).wait_with_output().unwrap();
            let reached = self.breaking.failed() > 0;
            self.breaking.heal();
            let story = format!("{line:?} at call {call}: {}", String::from_utf8_lossy(&out.stderr));
            assert_eq!(out.status.signal(), reached.then_some(9), "{story}");
            assert!(reached || out.status.success(), "{story}");
            if let Some(disk) = &self.disk {
                disk.cut();
                disk.restore();
            }
            check(&mut self.place, &story, &out);
            fs::remove_dir_all(&self.place.data).unwrap();
            if !reached {
                return call;
            }
        }
        panic!("more than {CALLS_MAX} calls");
    }
}

/// Runs `test` with kills alone, and with power cuts.
fn both_ways(name: &'static str, test: impl Fn(&mut Cutting) + Send + Copy + 'static) {
    if let Some(mut cutting) = Cutting::new(name, None) {
        test(&mut cutting);
    }
    with_own_mounts(name, move || match Ext4::new(200) {
        Ok(disk) => Cutting::new(name, Some(disk)).iter_mut().for_each(test),
        Err(why) => skip("root", name, &why),
    });
}

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn succeeds(place: &Place, line: &[&str]) -> String {
    let out = place.run(line);
    assert!(out.status.success(), "{line:?}: {}", said(&out));
    said(&out)
}

/// What fails does so with a sentence.
fn fails(place: &Place, line: &[&str]) -> String {
    let out = place.run(line);
    assert_eq!(out.status.code(), Some(1), "{line:?}: {}", said(&out));
    said(&out)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Names in a folder that begin so.
fn names(folder: &Path, beginning: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap());
    entries
        .filter(|entry| entry.file_name().to_str().unwrap().starts_with(beginning))
        .map(|entry| entry.path())
        .collect()
}

#[test]
fn a_new_key_that_was_cut_off_leaves_the_store_whole_under_the_old_key_or_the_new_one() {
    both_ways("rekey", |cutting| {
        let files = KEYS.map(|key| {
            let path = cutting.place.outside.join(&key[key.len() - 64..key.len() - 60]);
            fs::write(&path, key).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            text(&path)
        });
        for (old, new) in [(None, Some(0)), (Some(0), Some(1)), (Some(1), None)] {
            let key = |index: Option<usize>| index.map(|index| KEYS[index]);
            let mut line = vec!["rekey".to_owned(), "--global".to_owned()];
            line.extend(old.iter().flat_map(|index| ["--db-key".to_owned(), files[*index].clone()]));
            line.extend(new.map_or(vec!["--to-plain".to_owned()], |index: usize| {
                vec!["--new-db-key".to_owned(), files[index].clone()]
            }));
            let again: Vec<&str> = line.iter().map(String::as_str).collect();
            let (mut olds, mut news) = (0, 0);
            let calls = cutting.at_every_call(
                |data| fill(&data.join("store"), key(old)),
                |_| line.clone(),
                |place, story, _| {
                    let store = place.data.join("store");
                    match (messages_in(&store, key(old)), messages_in(&store, key(new))) {
                        (Ok(MESSAGES), Err(refusal)) => {
                            olds += 1;
                            assert!(refusal.contains("--db-key"), "{refusal}: {story}");
                            succeeds(place, &again);
                        }
                        (Err(refusal), Ok(MESSAGES)) => {
                            news += 1;
                            assert!(refusal.contains("--db-key"), "{refusal}: {story}");
                            // What is under the old key, or none, is named as long as it is there.
                            let leftovers = names(&place.data, ".store.");
                            let doctor = said(&place.run(&["doctor", "--global"]));
                            assert_eq!(doctor.contains("store leftovers"), !leftovers.is_empty(), "{doctor}: {story}");
                            place.environment.extend(key(new).map(|key| ("AGENT_RELAY_DB_KEY".into(), key.into())));
                            let daemon = place.start();
                            let warned = daemon.kill().contains("copy that did not end");
                            place.environment.retain(|(name, _)| name != "AGENT_RELAY_DB_KEY");
                            assert_eq!(warned, !leftovers.is_empty(), "{story}");
                        }
                        other => panic!("{other:?}: {story}"),
                    }
                    let (messages, _) = messages_and_time(&store, key(new)).expect(story);
                    assert_eq!(messages, MESSAGES, "{story}");
                },
            );
            assert!(olds > 0 && news > 0);
            eprintln!(
                "RESULT rekey {old:?} to {new:?}: cut off at each of {calls} calls: {olds} old, {news} new, 0 lost"
            );
        }
    });
}

#[test]
fn a_restoration_that_was_cut_off_leaves_the_old_store_or_the_new_one_or_says_what_to_do() {
    both_ways("restore", |cutting| {
        let backup = cutting.place.outside.join("saved");
        {
            let making = tempfile::tempdir().unwrap();
            fill(&making.path().join("s"), None);
            let store = Store::open(options(&making.path().join("s"), None)).unwrap();
            store.begin_epoch(1, 0).unwrap();
            append(&store, 2, MESSAGES);
            store.backup(&backup, |_| {}).unwrap();
        }
        let restored = MESSAGES + 2 * SEGMENT_MESSAGES;
        assert_eq!(messages_in(&backup, None), Ok(restored));
        let backup = text(&backup);
        let line = ["restore", "--global", "--replace", &backup];
        for occupied in [true, false] {
            let (mut olds, mut news, mut refusals) = (0, 0, 0);
            let calls = cutting.at_every_call(
                |data| {
                    if occupied {
                        fill(&data.join("store"), None);
                    }
                },
                |_| line.map(str::to_owned).to_vec(),
                |place, story, _| {
                    let store = place.data.join("store");
                    // A daemon makes a new store where there is none.
                    match place.try_start() {
                        Ok(daemon) => drop(daemon.kill()),
                        Err(refusal) => {
                            refusals += 1;
                            let doctor = said(&place.run(&["doctor", "--global"]));
                            assert!(doctor.contains("`relay restore` was interrupted"), "{doctor}: {story}");
                            assert!(refusal.contains("relay restore"), "{refusal}: {story}");
                        }
                    }
                    let out = place.run(&["doctor", "--check-store", "--global"]);
                    let found = said(&out);
                    let holds = |messages: u64| found.contains(&format!("sound: {messages} message"));
                    if holds(restored) {
                        news += 1;
                    } else if holds(if occupied { MESSAGES } else { 0 }) {
                        olds += 1;
                    } else {
                        assert!(!out.status.success() && found.contains("relay restore"), "{found}: {story}");
                    }
                    succeeds(place, &line);
                    assert_eq!(messages_in(&store, None), Ok(restored), "{story}");
                    if occupied {
                        let aside = names(&place.data, "store.replaced-");
                        let kept = |path: &PathBuf| {
                            Store::open(options(path, None).reading()).unwrap().check(|_| {}).unwrap().messages
                                == MESSAGES
                        };
                        assert!(aside.iter().any(kept), "the old store is gone ({aside:?}): {story}");
                    }
                    assert_eq!(names(&place.data, ".store"), Vec::<PathBuf>::new(), "{story}");
                },
            );
            eprintln!(
                "RESULT restore over {}: cut off at each of {calls} calls: {olds} old, {news} new, {refusals} refused, 0 lost",
                if occupied { "a store" } else { "nothing" }
            );
            assert!(olds > 0 && news > 0);
        }
    });
}

/// Stops a backup at one of its calls.
fn stopped_backup(place: &Place, breaking: &BrokenDisk, to: &Path, call: u64) -> Child {
    breaking.fail(Calls::Everything, call, 1, Failure::Stop);
    let backup = place.spawn(&["backup", "--global", to.to_str().unwrap()]);
    let pid = Pid::from_raw(backup.id().cast_signed()).unwrap();
    let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
    assert!(status.stopped(), "the backup has no call {call}: {status:?}");
    backup
}

#[test]
fn a_backup_that_is_killed_holds_no_daemon_up_and_one_outlives_its_daemon() {
    let outside = tempfile::Builder::new().prefix("relay-copies").tempdir().unwrap();
    let place = Place::new(&outside.path().join("data"), outside.path());
    fs::create_dir(&place.data).unwrap();
    // The backups' disk alone.
    let mut backing = Place::new(&place.data, outside.path());
    let breaking = match BrokenDisk::under(&mut backing) {
        Ok(breaking) => breaking,
        Err(why) => return skip("cc", "backups of a busy daemon", &why),
    };
    let target = place.data.join("copies/backup");
    let mut swarm = Swarm::new(6, 2, place.socket(), dice::seed("backups of a busy daemon"));
    let daemon = place.start();
    swarm.gather();
    swarm.saturate(16, 500);
    for call in [5, 9, 14, 18, 23, 29] {
        let mut backup = stopped_backup(&backing, &breaking, &target, call);
        // A second one at the same time is told so, and does the first no harm.
        let refusal = fails(&place, &["backup", "--global", &text(&target)]);
        assert!(refusal.contains("another copy"), "{refusal}");
        swarm.saturate(16, 200);
        backup.kill().unwrap();
        backup.wait().unwrap();
        assert!(!target.exists(), "call {call}");
    }
    swarm.calm();
    let promised = swarm.receipts();
    let backup = stopped_backup(&backing, &breaking, &target, 12);
    swarm.saturate(16, 200);
    daemon.kill();
    swarm.bury();
    let daemon = place.start();
    swarm.gather();
    swarm.saturate(16, 500);
    let pid = Pid::from_raw(backup.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    let out = backup.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
    swarm.calm();
    daemon.kill();
    let elsewhere = Place::new(&outside.path().join("elsewhere"), outside.path());
    succeeds(&elsewhere, &["restore", "--global", &text(&target)]);
    let store = Store::open(options(&elsewhere.data.join("store"), None).reading()).unwrap();
    let report = store.check(|_| {}).unwrap();
    assert_eq!(report.damages, []);
    assert!(report.messages >= promised, "{} of {promised} that were durable when it began", report.messages);
    assert_eq!(names(&place.data.join("copies"), "").len(), 1);
}

/// Says which store the process of its own is to read, until it is killed.
const READS: &str = "RELAY_FAULT_READS";

#[test]
fn a_reader_until_it_is_killed() {
    // Of use to the test below alone.
    let Some(folder) = std::env::var_os(READS) else { return };
    let store = Store::open(options(Path::new(&folder), None).reading()).unwrap();
    let snapshot = store.snapshot().unwrap();
    println!("reading {}", snapshot.last_segment().unwrap());
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_reader_that_was_killed_keeps_old_pages_for_seconds_and_no_longer() {
    let outside = tempfile::Builder::new().prefix("relay-readers").tempdir().unwrap();
    let place = Place::new(&outside.path().join("data"), outside.path());
    fs::create_dir(&place.data).unwrap();
    let mut swarm = Swarm::new(4, 0, place.socket(), dice::seed("killed reader"));
    let daemon = place.start();
    swarm.gather();
    swarm.saturate(8, 100);
    let store = place.data.join("store");
    let mut reader = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "copies::a_reader_until_it_is_killed", "--nocapture"])
        .env(READS, &store)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("reading ")));
    // LMDB's table of readers has their processes in it.
    let pid = reader.id().to_ne_bytes();
    let is_listed = || fs::read(store.join("lock.mdb")).unwrap().chunks_exact(4).any(|word| word == pid);
    assert!(is_listed());
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert!(is_listed());
    swarm.until("the place of the killed reader to be free", |swarm| {
        swarm.fill(4);
        !is_listed()
    });
    swarm.calm();
    daemon.kill();
}

#[test]
fn a_backup_that_was_cut_off_is_not_there_or_is_whole_and_can_be_made_again() {
    both_ways("backup", |cutting| {
        let (mut absent, mut whole) = (0, 0);
        let outside = cutting.place.outside.clone();
        let target = |data: &Path| data.join("copies/backup");
        let calls = cutting.at_every_call(
            |data| fill(&data.join("store"), None),
            |data| vec!["backup".to_owned(), "--global".to_owned(), text(&target(data))],
            |place, story, _| {
                let (target, elsewhere) = (target(&place.data), place.data.join("elsewhere"));
                let mut other = Place::new(&elsewhere, &outside);
                other.environment.clear();
                let restore = |from: &Path| ["restore".to_owned(), "--global".to_owned(), text(from)];
                // What the cut-off one has left is no backup.
                for left in names(&place.data.join("copies"), ".backup") {
                    let line = restore(&left);
                    let out = other.run(&line.each_ref().map(String::as_str));
                    if out.status.success() {
                        // All but its name was there.
                        assert_eq!(messages_in(&elsewhere.join("store"), None), Ok(MESSAGES), "{story}");
                        fs::remove_dir_all(&elsewhere).unwrap();
                        continue;
                    }
                    let refusal = said(&out);
                    assert!(refusal.contains("backup") && !elsewhere.join("store").exists(), "{refusal}: {story}");
                }
                let backup = text(&target);
                if target.exists() {
                    whole += 1;
                    let refusal = fails(place, &["backup", "--global", &backup]);
                    assert!(refusal.contains("choose another folder"), "{refusal}: {story}");
                } else {
                    absent += 1;
                    let line = restore(&target);
                    fails(&other, &line.each_ref().map(String::as_str));
                    succeeds(place, &["backup", "--global", &backup]);
                }
                let line = restore(&target);
                succeeds(&other, &line.each_ref().map(String::as_str));
                assert_eq!(messages_in(&elsewhere.join("store"), None), Ok(MESSAGES), "{story}");
                assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1, "{story}");
            },
        );
        assert!(absent > 0 && whole > 0);
        eprintln!("RESULT backup: cut off at each of {calls} calls: {absent} not there, {whole} whole, 0 half");
    });
}
