//! Questions about stored messages while the disk takes nothing new: what is there is found, and what is not may be waiting.

use crate::broken_disk::{BrokenDisk, Calls, Failure};
use crate::daemon::Place;
use crate::dice;
use crate::swarm::Swarm;
use crate::tally::skip;
use rustix::io::Errno;
use std::fs;

#[test]
fn with_megabytes_waiting_for_a_broken_disk_stored_messages_can_be_read() {
    let directory = tempfile::Builder::new().prefix("relay-broken").tempdir().unwrap();
    let mut place = Place::new(&directory.path().join("data"), directory.path());
    fs::create_dir_all(&place.data).unwrap();
    let disk = match BrokenDisk::under(&mut place) {
        Ok(disk) => disk,
        Err(why) => return skip("cc", "questions", &why),
    };
    let mut swarm = Swarm::new(10, 2, place.socket(), dice::seed("questions"));
    let daemon = place.start();
    swarm.gather();
    swarm.saturate(8, 50);
    swarm.calm();
    let socket = place.socket();
    let ask = |line: &[&str]| {
        let out = place.run(&[line, &["--global", "--socket", socket.to_str().unwrap()]].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.success(), text(&out.stdout), text(&out.stderr))
    };
    let (_, before, _) = ask(&["history", "--json", "--limit", "1"]);
    let known: serde_json::Value = serde_json::from_str(before.trim()).unwrap();
    let known = known["id"].as_str().unwrap().to_owned();
    disk.fail(Calls::All, 0, u64::MAX, Failure::Error(Errno::IO));
    swarm.disk_fails();
    swarm.overfill();
    let (good, page, said) = ask(&["history", "--limit", "5"]);
    assert!(good && page.lines().count() == 6, "{page}{said}");
    let (good, message, said) = ask(&["read", &known]);
    assert!(good && message.contains(&known), "{message}{said}");
    let (good, _, said) = ask(&["read", &"f".repeat(32)]);
    assert!(!good && said.contains("taken nothing since"), "{said}");
    disk.heal();
    swarm.disk_works();
    swarm.kibibytes = 0;
    swarm.calm();
    let (good, _, said) = ask(&["read", &"f".repeat(32)]);
    assert!(!good && said.contains("no message with that id") && !said.contains("since"), "{said}");
    daemon.kill();
    swarm.bury();
}
