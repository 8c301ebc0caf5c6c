//! API keys on disks that are full: what could not be kept did not happen and is said, what was printed is never lost.

use crate::broken_disk::{BrokenDisk, Calls, Failure};
use crate::daemon::Place;
use crate::disk::fill;
use crate::mount::{Memory, with_own_mounts};
use crate::tally::skip;
use agent_relay::client::{Address, Client, Credential, Options};
use rustix::io::Errno;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

/// The keys that the command line has promised: by id, its secret, and whether it was revoked.
#[derive(Default)]
struct Promised {
    keys: BTreeMap<String, (String, bool)>,
}

/// What a command said: its answer, or the sentence of its failure.
fn keys(place: &Place, line: &[&str]) -> Result<Value, String> {
    let socket = place.socket();
    let here = ["--json", "--global", "--socket", socket.to_str().unwrap()];
    let out = place.run(&[&["keys"], line, &here[..]].concat());
    let answer: Value = serde_json::from_slice(&out.stdout).unwrap();
    match out.status.code() {
        Some(0) => Ok(answer),
        Some(1) => {
            let sentence = String::from_utf8(out.stderr).unwrap();
            assert_eq!(format!("relay: {}\n", answer["error"].as_str().unwrap()), sentence);
            assert!(answer["key"].is_null(), "a secret of a key that was not made");
            Err(sentence)
        }
        other => panic!("{other:?}: {}", String::from_utf8_lossy(&out.stderr)),
    }
}

impl Promised {
    fn create(&mut self, place: &Place) -> Result<String, String> {
        let name = format!("key {}", self.keys.len());
        // A long description, so that the store has to grow.
        let made = keys(place, &["create", "--name", &name, "--description", &"d".repeat(1_000)])?;
        let id = made["id"].as_str().unwrap().to_owned();
        self.keys.insert(id.clone(), (made["key"].as_str().unwrap().to_owned(), false));
        Ok(id)
    }

    fn revoke(&mut self, place: &Place, id: &str) -> Result<(), String> {
        keys(place, &["revoke", id])?;
        self.keys.get_mut(id).unwrap().1 = true;
        Ok(())
    }

    /// Nothing more and nothing less is there, and every good key opens the door.
    fn check(&self, place: &Place) {
        let listed = keys(place, &["list", "--all"]).unwrap();
        let told: BTreeSet<(String, bool)> = listed["keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| (key["id"].as_str().unwrap().to_owned(), !key["revokedAt"].is_null()))
            .collect();
        let promised = self.keys.iter().map(|(id, (_, revoked))| (id.clone(), *revoked)).collect();
        assert_eq!(told, promised);
        for (secret, revoked) in self.keys.values().take(8) {
            let credential = Credential::read(secret.clone()).unwrap();
            let options = Options { credential, connect_timeout: Duration::from_secs(20), ..Options::named("probe") };
            let opened = Client::connect(&Address::Unix(place.socket()), &options);
            assert_eq!(opened.is_err(), *revoked);
            opened.into_iter().for_each(|client| drop(client.close()));
        }
    }
}

fn is_refusal(said: &str) -> bool {
    said.contains("nothing was changed: the disk is full")
}

#[test]
fn keys_on_a_full_disk_are_not_changed_and_said_so_and_none_is_lost_by_a_kill() {
    with_own_mounts("keys on a full disk", || {
        let disk = Memory::new("24m");
        let outside = tempfile::Builder::new().prefix("relay-keys").tempdir().unwrap();
        let mut place = Place::new(&disk.path().join("data"), outside.path());
        place.arguments.push("--require-auth".to_owned());
        fs::create_dir_all(&place.data).unwrap();
        let ballast = disk.path().join("ballast");
        let mut promised = Promised::default();
        let daemon = place.start();
        let first = promised.create(&place).unwrap();
        fill(&ballast);
        // What the file has room for still goes in.
        let mut made = 0;
        let said = loop {
            match promised.create(&place) {
                Ok(_) => made += 1,
                Err(said) => break said,
            }
            assert!(made < 500, "the disk does not become full");
        };
        assert!(is_refusal(&said), "{said}");
        // Taking one back may find room where the last one left some; then it holds, else it does not.
        if let Err(said) = promised.revoke(&place, &first) {
            assert!(is_refusal(&said), "{said}");
        }
        promised.check(&place);
        daemon.kill();
        fs::remove_file(&ballast).unwrap();
        let daemon = place.start();
        promised.check(&place);
        let another = promised.create(&place).unwrap();
        promised.revoke(&place, &another).unwrap();
        promised.check(&place);
        daemon.kill();
        let daemon = place.start();
        promised.check(&place);
        eprintln!("keys on a full disk: {made} went in before it was full, 0 lost");
        daemon.kill();
    });
}

#[test]
fn keys_go_on_when_a_disk_that_took_nothing_has_room_again() {
    let directory = tempfile::Builder::new().prefix("relay-keys").tempdir().unwrap();
    let mut place = Place::new(&directory.path().join("data"), directory.path());
    place.arguments.push("--require-auth".to_owned());
    fs::create_dir_all(&place.data).unwrap();
    let disk = match BrokenDisk::under(&mut place) {
        Ok(disk) => disk,
        Err(why) => return skip("cc", "keys on a disk that takes nothing", &why),
    };
    let mut promised = Promised::default();
    let mut daemon = place.start();
    let kept = promised.create(&place).unwrap();
    let other = promised.create(&place).unwrap();
    for killed in [false, true] {
        disk.fail(Calls::All, 0, u64::MAX, Failure::Error(Errno::NOSPC));
        let refusals = [
            promised.create(&place).unwrap_err(),
            promised.revoke(&place, &kept).unwrap_err(),
            keys(&place, &["rotate", &kept]).unwrap_err(),
        ];
        assert!(refusals.iter().all(|said| is_refusal(said)), "{refusals:?}");
        assert!(disk.failed() >= 3);
        promised.check(&place);
        if killed {
            daemon.kill();
            disk.heal();
            daemon = place.start();
        }
        disk.heal();
        promised.check(&place);
        promised.create(&place).unwrap();
        promised.check(&place);
    }
    promised.revoke(&place, &other).unwrap();
    daemon.kill();
    let daemon = place.start();
    promised.check(&place);
    daemon.kill();
}
