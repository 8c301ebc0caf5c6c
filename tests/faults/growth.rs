//! A store that outgrows its map while everybody is at work: senders wait for receipts, history is read, the store is read
//! by other programs. Nothing is refused, nothing is lost.

use crate::daemon::Place;
use crate::dice;
use crate::swarm::{PATIENCE, Swarm};
use agent_relay::client::{self, Address};
use agent_relay::wire::QueryKind;
use serde_json::{Value, json};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The first map; the file becomes more than thirty times as large.
const MAP_BYTES: u64 = 1 << 20;
const FILE_BYTES: u64 = 32 << 20;
/// What a daemon's address space may be when its map is not the usual one of 64 GiB.
const SPACE_KIB: u64 = 16 << 20;

/// Set when it is dropped, also by a panic.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Asks for the newest messages again and again; how often, and how many came.
fn read_on(place: &Place, stop: &AtomicBool) -> (u64, u64) {
    let address = Address::Unix(place.socket());
    let (mut answers, mut messages) = (0, 0);
    while !stop.load(Ordering::Acquire) {
        let question = json!({ "limit": 200, "from": format!("agent-{}", answers % 8) });
        for question in [json!({ "limit": 50 }), question] {
            let answer = client::ask(&address, QueryKind::History, &question.to_string(), PATIENCE).unwrap();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert!(answer["error"].is_null(), "{answer}");
            messages += answer["messages"].as_array().unwrap().len() as u64;
            answers += 1;
        }
    }
    (answers, messages)
}

fn space_kib(pid: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
fn a_map_that_grows_under_senders_and_readers_refuses_nothing_and_loses_nothing() {
    let outside = tempfile::Builder::new().prefix("relay-growth").tempdir().unwrap();
    let place = Place::new(&outside.path().join("data"), outside.path());
    fs::create_dir(&place.data).unwrap();
    fs::write(place.data.join("relay.toml"), format!("[persistence]\nmap_bytes = {MAP_BYTES}\n")).unwrap();
    let mut swarm = Swarm::new(10, 2, place.socket(), dice::seed("growth"));
    let daemon = place.start();
    swarm.gather();
    swarm.kibibytes = 8;
    let stop = Arc::new(AtomicBool::new(false));
    let receipts = AtomicU64::new(0);
    let (answers, read, exported) = std::thread::scope(|scope| {
        let ending = Stop(stop.clone());
        let reader = scope.spawn(|| read_on(&place, &stop));
        let exporter = scope.spawn(|| {
            let mut lines = 0;
            while !stop.load(Ordering::Acquire) {
                let promised = receipts.load(Ordering::Acquire);
                let out = place.run(&["export", "--global"]);
                assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                lines = out.stdout.iter().filter(|byte| **byte == b'\n').count() as u64;
                assert!(lines >= promised, "{lines} of {promised} that were durable before");
            }
            lines
        });
        let size = |status: &Value| status["store"]["file_bytes"].as_u64().unwrap();
        while size(&place.status()) < FILE_BYTES {
            swarm.saturate(16, 400);
            receipts.store(swarm.receipts(), Ordering::Release);
        }
        swarm.calm();
        drop(ending);
        let (answers, read) = reader.join().unwrap();
        (answers, read, exporter.join().unwrap())
    });
    let status = place.status();
    assert_eq!(status["store"]["health"]["ok"], true, "{status}");
    assert_eq!((swarm.busy(), &status["store"]["upkeep_failures"]), (0, &json!(0)), "{status}");
    assert!(space_kib(status["pid"].as_u64().unwrap()) < SPACE_KIB, "the map is as small as it was asked to be");
    assert!(answers > 0 && read > 0 && exported > 0);
    let said = daemon.kill();
    assert_eq!(said, "", "nothing to warn of");
    swarm.bury();
    // The next one begins with a map that is too small for what is there.
    let daemon = place.start();
    swarm.gather();
    swarm.saturate(16, 400);
    swarm.calm();
    let status = place.status();
    assert_eq!((swarm.busy(), &status["store"]["health"]["ok"]), (0, &json!(true)), "{status}");
    daemon.kill();
    eprintln!(
        "RESULT growing map: {} messages durable, 0 refused, 0 lost, {answers} answers with {read} messages, {exported} exported",
        swarm.ledger.durable
    );
}
