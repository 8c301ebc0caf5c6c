//! Power cuts while a store is made, and while one of an older format is made a newer one: at every call that reaches the
//! disk. Afterwards there is nothing yet, or all of it; never something between that nobody can open.

use crate::broken_disk::{BrokenDisk, Calls, Failure};
use crate::daemon::Place;
use crate::dice;
use crate::mount::{Ext4, with_own_mounts};
use crate::swarm::Swarm;
use crate::tally::skip;
use rustix::io::Errno;
use std::fs;
use std::path::Path;

/// A key for stores that nobody else will ever open: that of `tests/store/made.rs`.
const DB_KEY: &str = "relay-key-v1:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
/// Calls of a start, at most; those of the upkeep behind it are among them.
const CALLS_MAX: u64 = 60;
/// What the doctor says of each store of `tests/store/fixtures` that holds everything.
const FIXTURE_HOLDS: &str = "sound: 24 messages";

/// Cuts the power at each call of a start in a folder that `prepare` has filled; `check` sees the daemon that is started
/// when the power is back. How many calls there were.
fn at_every_call(
    name: &str,
    disk: &Ext4,
    key: Option<&str>,
    prepare: impl Fn(&Path),
    check: impl Fn(&Place, u64),
) -> Option<u64> {
    let outside = tempfile::Builder::new().prefix("relay-beginning").tempdir().unwrap();
    let mut place = Place::new(Path::new("/"), outside.path());
    // The stores of old formats speak of a time of their own.
    place.arguments = vec!["--retention".into(), "unlimited".into()];
    place.environment.extend(key.map(|key| ("AGENT_RELAY_DB_KEY".to_owned(), key.to_owned())));
    let breaking = match BrokenDisk::under(&mut place) {
        Ok(breaking) => breaking,
        Err(why) => {
            skip("cc", name, &why);
            return None;
        }
    };
    for call in 0..CALLS_MAX {
        place.data = disk.path().join(format!("{name}-{call}"));
        fs::create_dir(&place.data).unwrap();
        prepare(&place.data);
        rustix::fs::sync();
        // From this call on nothing reaches the disk; and what was written before and not flushed goes with the power.
        breaking.fail(Calls::All, call, u64::MAX, Failure::Error(Errno::IO));
        let started = place.try_start();
        let reached = breaking.failed() > 0;
        disk.cut();
        if let Err(said) = &started {
            assert!(reached && !said.contains("panicked"), "call {call}: {said}");
        }
        drop(started);
        breaking.heal();
        disk.restore();
        let daemon = place.start();
        check(&place, call);
        daemon.kill();
        if !reached {
            return Some(call);
        }
    }
    Some(CALLS_MAX)
}

#[test]
fn a_store_whose_making_was_cut_off_is_made_again() {
    let seed = dice::seed("first starts");
    with_own_mounts("first starts", move || {
        let disk = match Ext4::new(200) {
            Ok(disk) => disk,
            Err(why) => return skip("root", "first starts", &why),
        };
        for key in [None, Some(DB_KEY)] {
            let name = if key.is_some() { "sealed" } else { "plain" };
            let calls = at_every_call(
                name,
                &disk,
                key,
                |_| {},
                |place, call| {
                    let mut swarm = Swarm::new(4, 1, place.socket(), seed ^ call);
                    swarm.gather();
                    swarm.saturate(8, 20);
                    swarm.calm();
                },
            );
            eprintln!("RESULT first start, {name}: the power was cut at each of {calls:?} calls");
        }
    });
}

#[test]
fn a_store_whose_upgrade_was_cut_off_is_the_old_one_or_the_new_one() {
    with_own_mounts("upgrades", || {
        let disk = match Ext4::new(200) {
            Ok(disk) => disk,
            Err(why) => return skip("root", "upgrades", &why),
        };
        for (fixture, key) in [("v1-plain", None), ("v1-sealed", Some(DB_KEY))] {
            let prepare = |data: &Path| {
                let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/fixtures").join(fixture);
                fs::create_dir(data.join("store")).unwrap();
                fs::copy(from.join("data.mdb"), data.join("store/data.mdb")).unwrap();
            };
            let check = |place: &Place, call: u64| {
                let doctor = place.run_with_environment(&["doctor", "--check-store", "--global"]);
                let said =
                    String::from_utf8_lossy(&doctor.stdout).into_owned() + &String::from_utf8_lossy(&doctor.stderr);
                assert!(said.contains(FIXTURE_HOLDS), "call {call}: {said}");
            };
            let calls = at_every_call(fixture, &disk, key, prepare, check);
            eprintln!("RESULT upgrade of {fixture}: the power was cut at each of {calls:?} calls");
        }
    });
}
