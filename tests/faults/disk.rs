//! Disks that are full, broken, read-only or gone: what was accepted stays, senders hear of it, health says why, and
//! everything goes on by itself when the disk does.

use crate::broken_disk::{BrokenDisk, Calls, Failure};
use crate::daemon::{Daemon, Place};
use crate::dice;
use crate::mount::{Memory, with_own_mounts};
use crate::swarm::Swarm;
use crate::tally::skip;
use rustix::io::Errno;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn is_green(health: &str) -> bool {
    health.contains("\"ok\":true")
}

/// "Within seconds".
const RECOVERY: Duration = Duration::from_secs(10);

/// Fills the file system that this file is on; the file is what has to go.
pub(crate) fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    let mut piece = vec![7; 1 << 20];
    while !piece.is_empty() {
        if file.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
}

fn place_in(data: &Path) -> (Place, TempDir) {
    let outside = tempfile::Builder::new().prefix("relay-disk").tempdir().unwrap();
    let place = Place::new(&data.join("data"), outside.path());
    fs::create_dir_all(&place.data).unwrap();
    (place, outside)
}

/// A place whose disk breaks on demand; none, visibly, without a C compiler.
fn breakable(name: &str) -> Option<(Place, TempDir, BrokenDisk)> {
    let directory = tempfile::Builder::new().prefix("relay-broken").tempdir().unwrap();
    let mut place = Place::new(&directory.path().join("data"), directory.path());
    fs::create_dir_all(&place.data).unwrap();
    match BrokenDisk::under(&mut place) {
        Ok(disk) => Some((place, directory, disk)),
        Err(why) => {
            skip("cc", name, &why);
            None
        }
    }
}

#[test]
fn a_full_disk_is_told_and_outlived() {
    let seed = dice::seed("full disk");
    with_own_mounts("full disk", move || {
        // Room for all that is accepted while there is none.
        let disk = Memory::new("800m");
        let (place, _outside) = place_in(disk.path());
        let ballast = disk.path().join("ballast");
        let mut swarm = Swarm::new(14, 2, place.socket(), seed);
        let mut daemon = place.start();
        swarm.gather();
        swarm.saturate(16, 500);
        swarm.calm();
        assert!(is_green(&place.health()), "{}", place.health());
        fill(&ballast);
        let window = swarm.overfill();
        assert_eq!(swarm.busy_reasons().into_iter().collect::<Vec<_>>(), ["writer_full"]);
        let health = place.until_health("red", |health| !is_green(health));
        assert!(health.contains("disk is full"), "{health}");
        swarm.listen_out();
        let (receipts, delivered) = (swarm.receipts(), swarm.ledger.delivered);
        swarm.fill(window);
        swarm.listen_out();
        assert_eq!(swarm.receipts(), receipts, "no receipt without a commit");
        assert!(daemon.is_alive());
        let waiting = swarm.ledger.waiting().0;
        assert!(waiting > 0, "accepted messages wait for the disk");
        let begun = Instant::now();
        fs::remove_file(&ballast).unwrap();
        swarm.until("a receipt after there was room again", |swarm| swarm.receipts() > receipts);
        assert!(begun.elapsed() < RECOVERY, "{:?}", begun.elapsed());
        swarm.kibibytes = 0;
        swarm.calm();
        place.until_health("green again", is_green);
        swarm.saturate(16, 200);
        swarm.calm();
        eprintln!(
            "full disk: {waiting} accepted messages waited and were committed, {} refused, {delivered} delivered meanwhile",
            swarm.busy()
        );
        daemon.kill();
        swarm.bury();
        // A start on a full disk is refused with a sentence.
        fill(&ballast);
        match place.try_start() {
            Ok(daemon) => {
                daemon.kill();
            }
            Err(said) => {
                let told = said.contains("disk is full") || said.contains("No space left");
                assert!(told && !said.contains("panicked"), "{said}");
            }
        }
        fs::remove_file(&ballast).unwrap();
        swarm.comes_back(&place);
    });
}

/// Sends until the disk refuses, and then five more; gives how many accepted messages the relay says are at stake.
fn five_unwritten(place: &Place) -> u64 {
    let socket = place.socket();
    let send = || {
        let socket = socket.to_str().unwrap();
        let out = place.run(&["send", "--global", "--socket", socket, "--from", "ann", "--to", "bob", "hello"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let begun = Instant::now();
    while is_green(&place.health()) {
        send();
        assert!(begun.elapsed() < crate::swarm::PATIENCE, "the disk is not full");
    }
    (0..5).for_each(|_| send());
    loop {
        let at_stake = place.status()["store"]["at_stake"]["messages"].as_u64().unwrap_or(0);
        if at_stake >= 5 {
            return at_stake;
        }
        assert!(begun.elapsed() < crate::swarm::PATIENCE, "{at_stake} of five");
    }
}

/// The number that stands before these words.
fn count_before(said: &str, words: &str) -> u64 {
    let (before, _) = said.split_once(words).unwrap_or_default();
    before.rsplit(|letter: char| !letter.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[test]
fn a_stop_on_a_full_disk_says_what_is_lost_and_is_refused_without_now() {
    with_own_mounts("stop on a full disk", || {
        let disk = Memory::new("64m");
        let (place, _outside) = place_in(disk.path());
        let ballast = disk.path().join("ballast");
        let socket = place.socket();
        let down = |more: &[&str]| {
            let line = [&["down", "--global", "--socket", socket.to_str().unwrap()], more].concat();
            let out = place.run(&line);
            let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            (out.status.code(), said)
        };
        let mut daemon = place.start();
        let bob = agent_relay::client::Options::named("bob");
        drop(agent_relay::client::Client::connect(&agent_relay::client::Address::Unix(socket.clone()), &bob).unwrap());
        // Refused, and nothing is lost.
        fill(&ballast);
        let at_stake = five_unwritten(&place);
        let (code, said) = down(&[]);
        assert_eq!(code, Some(1), "{said}");
        assert!(count_before(&said, " accepted messages are not on the disk") >= at_stake, "{said}");
        assert!(said.contains("disk is full") && said.contains("relay down --now"), "{said}");
        let (code, said) = ended(&place, &["down", "--global"]);
        assert!(code == Some(1) && said.contains("are not on the disk"), "without its socket: {said}");
        assert!(daemon.is_alive());
        let health_by_doctor = || {
            let out = place.run(&["doctor", "--global", "--json"]);
            let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
            let checks = report["checks"].as_array().unwrap();
            checks.iter().find(|check| check["check"] == "store health").unwrap().clone()
        };
        let check = health_by_doctor();
        assert!(check["verdict"] == "fail" && check["found"].as_str().unwrap().contains("disk is full"), "{check}");
        fs::remove_file(&ballast).unwrap();
        place.until_health("green again", is_green);
        assert_eq!(health_by_doctor()["verdict"], "ok");
        assert!(place.status()["store"]["at_stake"].is_null());
        let (code, said) = down(&[]);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(daemon.ended().0, Some(0));
        // All the same.
        for more in [&["--now"][..], &["--now", "--json"]] {
            let daemon = place.start();
            fill(&ballast);
            let at_stake = five_unwritten(&place);
            let (code, said) = down(more);
            assert_eq!(code, Some(1), "{said}");
            let lost = count_before(&said, " accepted messages never got to the disk");
            assert!(lost >= at_stake, "{said}");
            let (code, said) = daemon.ended();
            assert_eq!(code, Some(3), "{said}");
            assert!(said.contains(&format!("{lost} accepted messages")) && said.contains("full"), "{said}");
            fs::remove_file(&ballast).unwrap();
        }
        // A signal stops it as ever.
        let daemon = place.start();
        fill(&ballast);
        five_unwritten(&place);
        daemon.terminate();
        let (code, said) = daemon.ended();
        assert_eq!(code, Some(3), "{said}");
    });
}

/// How a command ended, and what it said.
fn ended(place: &Place, line: &[&str]) -> (Option<i32>, String) {
    let out = place.run(line);
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code(), format!("{line:?}: {}, {said}", out.status))
}

#[test]
fn commands_on_a_full_disk_end_with_a_sentence_that_names_the_folder_and_leave_nothing() {
    with_own_mounts("commands on a full disk", || {
        let disk = Memory::new("64m");
        let (place, outside) = place_in(disk.path());
        let ballast = disk.path().join("ballast");
        let mut swarm = Swarm::new(4, 1, place.socket(), dice::seed("commands on a full disk"));
        let daemon = place.start();
        swarm.gather();
        swarm.saturate(8, 200);
        swarm.calm();
        daemon.kill();
        swarm.bury();
        let folder = place.store().parent().unwrap().to_owned();
        let key = outside.path().join("key");
        let key = key.to_str().unwrap();
        assert_eq!(ended(&place, &["keygen", "--output", key]).0, Some(0));
        let (here, there) = (disk.path().join("copy"), outside.path().join("copy"));
        let (here, there) = (here.to_str().unwrap(), there.to_str().unwrap());
        let refused = |line: &[&str], named: &str| {
            let (code, said) = ended(&place, line);
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains(named) && said.contains("run it again"), "{said}");
            assert!(!said.contains("by itself"), "{said}");
            let left = [&folder, disk.path(), outside.path()].map(|folder| fs::read_dir(folder).unwrap().count());
            (left, said)
        };
        let length = |name: &str| fs::metadata(folder.join(name)).unwrap().len();
        assert_eq!(length("lock.mdb"), 8192, "as long as LMDB wants it");
        let source = folder.to_str().unwrap();
        // A lock file with holes, one that is too short, none: all that may have been left.
        for left in [Some(8192), Some(0), None] {
            let lock = folder.join("lock.mdb");
            fs::remove_file(&lock).unwrap();
            left.into_iter().for_each(|length| fs::File::create(&lock).unwrap().set_len(length).unwrap());
            fill(&ballast);
            refused(&["backup", "--global", there], source);
            refused(&["history", "--global", "--json"], source);
            let (code, said) = ended(&place, &["doctor", "--global"]);
            assert!(code == Some(1) && !said.contains("signal"), "{said}");
            fs::remove_file(&ballast).unwrap();
        }
        // The source is well, the place for the copy is not: no room at all, and a little.
        assert_eq!(ended(&place, &["history", "--global"]).0, Some(0));
        for room in [0, 48 << 10] {
            fill(&ballast);
            let file = fs::File::options().write(true).open(&ballast).unwrap();
            file.set_len(file.metadata().unwrap().len() - room).unwrap();
            let before = fs::read_dir(disk.path()).unwrap().count();
            let (left, said) = refused(&["backup", "--global", here], ".copy.partial");
            assert_eq!(left[1], before, "{said}");
            let (_, said) = refused(&["rekey", "--global", "--new-db-key", key], place.data.to_str().unwrap());
            let beside = fs::read_dir(folder.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
            let left: Vec<_> = beside.filter(|name| name.to_string_lossy().contains("rekey")).collect();
            assert!(left.is_empty(), "{left:?} {said}");
            fs::remove_file(&ballast).unwrap();
        }
        for line in [&["backup", "--global", here][..], &["rekey", "--global", "--new-db-key", key]] {
            let (code, said) = ended(&place, line);
            assert_eq!(code, Some(0), "{said}");
        }
    });
}

/// How a call fails, by lot.
fn any_failure(swarm: &mut Swarm) -> Failure {
    match swarm.dice.below(4) {
        0 => Failure::Error(Errno::NOSPC),
        1 => Failure::Error(Errno::DQUOT),
        2 => Failure::Short,
        _ => Failure::Error(Errno::IO),
    }
}

#[test]
fn commits_that_fail_are_never_acknowledged_and_always_made_up_for() {
    let Some((place, _directory, disk)) = breakable("failing commits") else { return };
    let seed = dice::seed("failing commits");
    let mut swarm = Swarm::new(10, 2, place.socket(), seed);
    let mut daemon = Some(place.start());
    swarm.gather();
    swarm.saturate(8, 50);
    let rounds = crate::tally::cycles(36);
    let mut failed = 0;
    for round in 0..rounds {
        let failure = any_failure(&mut swarm);
        let calls = match swarm.dice.below(3) {
            // Writes alone can be short.
            _ if failure == Failure::Short => Calls::Writes,
            0 => Calls::Flushes,
            1 => Calls::Writes,
            _ => Calls::All,
        };
        let lasting = swarm.dice.one_in(3);
        let passing = round % 12;
        let failing = if lasting { u64::MAX } else { 1 + swarm.dice.below(3) };
        let story = format!("round {round}: after {passing} {calls:?} calls {failing} fail with {failure:?}");
        swarm.disk_fails();
        disk.fail(calls, passing, failing, failure);
        swarm.until(&format!("a call that fails, {story}"), |swarm| {
            swarm.fill(8);
            disk.failed() >= failing.min(2)
        });
        if lasting {
            swarm.listen_out();
            let receipts = swarm.receipts();
            swarm.fill(12);
            swarm.listen_out();
            // What is written in parts is written: the journal goes on until the log says that it can not.
            if failure != Failure::Short {
                assert_eq!(swarm.receipts(), receipts, "a receipt without a commit: {story}");
            }
            let health = place.until_health("red", |health| !is_green(health));
            assert!(health.len() > 20, "says what to do: {health}");
            if swarm.dice.one_in(2) {
                daemon.take().unwrap().kill();
                swarm.bury();
            }
        }
        failed += disk.failed();
        disk.heal();
        swarm.disk_works();
        if daemon.is_none() {
            daemon = Some(place.start());
            swarm.gather();
        }
        let begun = Instant::now();
        swarm.saturate(8, 40);
        assert!(begun.elapsed() < RECOVERY, "{:?}: {story}", begun.elapsed());
        swarm.calm();
        assert!(daemon.as_mut().is_some_and(Daemon::is_alive), "{story}");
        if swarm.dice.one_in(4) {
            daemon.take().unwrap().kill();
            swarm.bury();
            daemon = Some(place.start());
            swarm.gather();
            swarm.calm();
        }
    }
    place.until_health("green", is_green);
    daemon.unwrap().kill();
    let (calls, durable) = (disk.calls(), swarm.ledger.durable);
    eprintln!("RESULT failing commits: {rounds} rounds, {failed} of {calls} calls failed, {durable} durable, 0 lost");
}

#[test]
fn a_start_on_a_failing_disk_works_or_says_why_not_and_the_next_one_works() {
    let Some((mut place, directory, disk)) = breakable("failing starts") else { return };
    let seed = dice::seed("failing starts");
    // A new store each time, then one store with mail in it.
    for fresh in [true, false] {
        let failure = if fresh { Failure::Error(Errno::NOSPC) } else { Failure::Error(Errno::IO) };
        place.data = directory.path().join(format!("data-fresh-{fresh}"));
        fs::create_dir_all(&place.data).unwrap();
        let mut swarm = Swarm::new(4, 1, place.socket(), seed);
        let (mut refused, mut call) = (0, 0);
        loop {
            if fresh {
                place.data = directory.path().join(format!("data-{call}"));
                fs::create_dir_all(&place.data).unwrap();
                swarm = Swarm::new(4, 1, place.socket(), seed);
            }
            disk.fail(Calls::All, call, 1, failure);
            let started = place.try_start();
            let reached = disk.failed() > 0;
            disk.heal();
            let daemon = started.unwrap_or_else(|said| {
                refused += 1;
                assert!(reached, "refused without a failure: {said}");
                assert!(!said.contains("panicked"), "{said}");
                assert!(said.contains("disk") || said.contains("store"), "says what is wrong: {said}");
                place.start()
            });
            swarm.gather();
            swarm.calm();
            swarm.saturate(8, 20);
            daemon.kill();
            swarm.bury();
            call += 1;
            if !reached || call > 60 {
                break;
            }
        }
        eprintln!("failing starts: {call} calls tried, fresh {fresh}, {refused} refused with a sentence");
    }
}

#[test]
fn a_file_system_that_turned_read_only_is_told() {
    let Some((place, _directory, disk)) = breakable("read-only") else { return };
    let mut swarm = Swarm::new(4, 1, place.socket(), dice::seed("read-only"));
    let daemon = place.start();
    swarm.gather();
    swarm.saturate(8, 50);
    disk.fail(Calls::All, 0, u64::MAX, Failure::Error(Errno::ROFS));
    swarm.until("a call that fails", |swarm| {
        swarm.fill(8);
        disk.failed() >= 2
    });
    let health = place.until_health("red", |health| !is_green(health));
    assert!(health.contains("read-only"), "{health}");
    disk.heal();
    swarm.calm();
    place.until_health("green", is_green);
    daemon.kill();
}

#[test]
fn a_read_only_folder_is_refused_at_the_start_and_left_as_it_is() {
    with_own_mounts("read-only folder", || {
        let disk = Memory::new("64m");
        let (place, _outside) = place_in(disk.path());
        let mut swarm = Swarm::new(4, 1, place.socket(), dice::seed("read-only folder"));
        let daemon = place.start();
        swarm.gather();
        swarm.saturate(8, 50);
        daemon.kill();
        swarm.bury();
        let before = fs::read(place.store()).unwrap();
        disk.remount("ro");
        let said = place.try_start().err().expect("nothing can be kept there");
        assert!(said.to_lowercase().contains("read-only") && !said.contains("panicked"), "{said}");
        assert!(fs::read(place.store()).unwrap() == before);
        disk.remount("rw");
        swarm.comes_back(&place);
    });
}

#[test]
fn a_store_that_vanishes_is_told_and_not_made_anew_in_silence() {
    let directory = tempfile::Builder::new().prefix("relay-gone").tempdir().unwrap();
    let (place, _outside) = place_in(directory.path());
    let mut swarm = Swarm::new(4, 1, place.socket(), dice::seed("vanished store"));
    let mut daemon = place.start();
    swarm.gather();
    swarm.saturate(8, 50);
    swarm.calm();
    let folder = place.store().parent().unwrap().to_owned();
    fs::remove_dir_all(&folder).unwrap();
    let begun = Instant::now();
    let mut health = place.health();
    while is_green(&health) {
        swarm.fill(4);
        swarm.turn(Duration::from_millis(5));
        assert!(begun.elapsed() < RECOVERY, "nobody says that the store is gone");
        health = place.health();
    }
    assert!(health.contains("gone"), "{health}");
    assert!(health.contains("put the very one back") && health.contains("do not restart"), "{health}");
    assert!(!folder.exists(), "it is not made anew while the daemon runs");
    // What is promised from now on would be lost with the process.
    swarm.listen_out();
    let receipts = swarm.receipts();
    swarm.fill(12);
    swarm.listen_out();
    assert_eq!(swarm.receipts(), receipts, "a receipt without a store");
    assert!(daemon.is_alive());
    daemon.kill();
}

#[test]
fn a_store_that_was_moved_away_and_back_goes_on_and_has_lost_nothing() {
    let directory = tempfile::Builder::new().prefix("relay-moved").tempdir().unwrap();
    let (place, _outside) = place_in(directory.path());
    let mut swarm = Swarm::new(4, 1, place.socket(), dice::seed("moved store"));
    let daemon = place.start();
    swarm.gather();
    swarm.saturate(8, 50);
    swarm.calm();
    let folder = place.store().parent().unwrap().to_owned();
    let away = directory.path().join("away");
    fs::rename(&folder, &away).unwrap();
    let (begun, mut window) = (Instant::now(), 4);
    while place.status()["store"]["at_stake"].is_null() {
        swarm.fill(window);
        window += 1;
        swarm.turn(Duration::from_millis(5));
        assert!(begun.elapsed() < RECOVERY, "nobody says that the store is gone");
    }
    let (code, said) = ended(&place, &["down", "--global"]);
    assert!(code == Some(1) && said.contains("not on the disk") && said.contains("put the very one back"), "{said}");
    fs::rename(&away, &folder).unwrap();
    place.until_health("green again", is_green);
    swarm.calm();
    daemon.kill();
    swarm.bury();
    swarm.comes_back(&place);
}
