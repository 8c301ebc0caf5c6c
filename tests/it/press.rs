//! A disk that is slow and well slows senders down and refuses nobody; one that fails makes them hear BUSY, as ever. The
//! disk is `tests/faults/broken_disk.c`, in front of the C library.

use crate::harness::{Daemon, EPOLL_TWO, PATIENCE, Setup, Way, every_way};
use crate::peers::{Heard, NativePeer, Owned};
use agent_relay::base::limits::WRITER_STUCK;
use agent_relay::base::{AgentId, Mono};
use agent_relay::wire::{FLAG_REDELIVERED, Wants};
use rustix::io::Errno;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A disk whose flushes take longer, or fail, as the test says.
struct Disk {
    words: File,
    folder: TempDir,
}

impl Disk {
    /// None, visibly, without a C compiler.
    fn new() -> Option<Disk> {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/broken_disk.c");
        let library = folder.path().join("disk.so");
        let built =
            Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(library).arg(source).arg("-ldl").status();
        let Ok(status) = built else {
            eprintln!("SKIPPED: there is no C compiler");
            return None;
        };
        assert!(status.success());
        let path = folder.path().join("words");
        let words = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        words.set_len(4096).unwrap();
        Some(Disk { words, folder })
    }

    fn set(&self, index: u64, value: u64) {
        self.words.write_all_at(&value.to_ne_bytes(), index * 8).unwrap();
    }

    fn slow(&self, flush: Duration) {
        self.set(10, flush.as_micros() as u64);
    }

    /// From now on every flush and every write fails, or none.
    fn fail(&self, fails: bool) {
        self.set(1, 7);
        self.set(3, u64::MAX);
        self.set(4, Errno::IO.raw_os_error() as u64);
        self.set(0, u64::from(fails));
    }

    fn start(&self, way: Way) -> Daemon {
        let folder = self.folder.path().display();
        let shell = format!("export LD_PRELOAD={folder}/disk.so RELAY_BROKEN_DISK={folder}/words");
        Setup::new(way).shell(&shell).start()
    }
}

/// Says `messages` of some KiB as fast as they are taken; gives what it has heard by then beside the receipt of the last one.
fn flood(sender: &mut NativePeer, to: &str, messages: u64) -> Vec<Heard> {
    let text = "z".repeat(BODY_BYTES);
    for number in 1..=messages {
        let wants = if number == messages { Wants::ACCEPTED } else { Wants::default() };
        let said = sender.encode(to, &text, wants);
        sender.stream.write_all(&said).unwrap();
    }
    let mut heard = Vec::new();
    loop {
        let next = sender.hear().expect("a connection that lasts");
        match next.frame {
            Owned::Receipts(_) => return heard,
            _ => heard.push(next),
        }
    }
}

const BODY_BYTES: usize = 8 * 1024;
const SENDERS: usize = 3;
/// Of a client that hears nothing while it speaks, as npm ones.
const JSON_MESSAGES: u64 = 500;
/// Of each sender: together many times what may wait for the writer before they are slowed.
const MESSAGES: u64 = 2_500;

#[test]
fn a_disk_that_is_slow_and_well_slows_senders_down_and_refuses_nobody() {
    every_way(|way| {
        let Some(disk) = Disk::new() else { return };
        let daemon = disk.start(way);
        let mut bob = daemon.native("bob");
        let (mut idle, mut carl, mut json) = (daemon.native("idle"), daemon.native("carl"), daemon.json("jo"));
        let mut senders: Vec<NativePeer> = (0..SENDERS).map(|index| daemon.native(&format!("ann-{index}"))).collect();
        let before_kib = daemon.proc_status("RssAnon");
        disk.slow(Duration::from_millis(40));
        let most_kib = std::thread::scope(|scope| {
            let mut floods = Vec::new();
            for sender in &mut senders {
                floods.push(scope.spawn(|| flood(sender, "bob", MESSAGES)));
            }
            floods.push(scope.spawn(|| {
                let text = "j".repeat(BODY_BYTES);
                for _ in 0..JSON_MESSAGES {
                    json.send("carl", &text);
                }
                json.say(
                    &serde_json::json!({ "v": 1, "type": "PING", "id": "p", "ts": 1, "payload": { "nonce": "n" } }),
                );
                assert_eq!(json.hear().unwrap()["type"], "PONG", "nobody is refused, or told to wait");
                Vec::new()
            }));
            scope.spawn(|| {
                for _ in 0..JSON_MESSAGES {
                    let (heard, _) = carl.delivery();
                    carl.acknowledge(heard.header.sequence);
                }
            });
            let names = (0..SENDERS).map(|index| AgentId::of(format!("ann-{index}").as_bytes()));
            let mut last: BTreeMap<AgentId, u64> = names.map(|name| (name, 0)).collect();
            let (mut count, mut most_kib) = (0, 0);
            while count < SENDERS as u64 * MESSAGES {
                let heard = bob.hear().unwrap();
                let Owned::Deliver { id, .. } = heard.frame else { panic!("{heard:?}") };
                let last = last.get_mut(&id.sender).expect("one of them");
                if heard.header.flags & FLAG_REDELIVERED != 0 && id.number <= *last {
                    // On a loaded machine.
                    continue;
                }
                assert_eq!(id.number, *last + 1, "each sender's in order, and none is missing");
                *last = id.number;
                count += 1;
                if count % 16 == 0 {
                    bob.acknowledge(heard.header.sequence);
                }
                if count % 500 == 0 {
                    most_kib = most_kib.max(daemon.proc_status("RssAnon"));
                    // Whoever says little is heard.
                    idle.send("idle", "still there?", Wants::default());
                    let (heard, text) = idle.delivery();
                    idle.acknowledge(heard.header.sequence);
                    assert_eq!(text, "still there?");
                }
            }
            for flood in floods {
                let heard = flood.join().unwrap();
                assert!(heard.is_empty(), "nobody is refused, or told to wait: {:?}", heard[0]);
            }
            most_kib
        });
        disk.slow(Duration::ZERO);
        let status = daemon.status();
        assert_eq!(status["refusals"]["writer_full"].as_u64().unwrap_or(0), 0, "{status:#}");
        let paused = status["paused"]["writer_behind"]["ever"].as_u64().unwrap();
        assert!(paused > 0, "nobody was left unread");
        assert!(most_kib < before_kib + 48 * 1024, "{before_kib} KiB before, {most_kib} KiB at most");
        eprintln!("{way:?}: left unread {paused} times, {before_kib} KiB before, {most_kib} KiB at most");
        daemon.until("everyone is read again", |daemon| daemon.status()["paused"]["now"] == 0);
    });
}

#[test]
fn a_stop_does_not_wait_for_senders_that_are_left_unread() {
    every_way(|way| {
        let Some(disk) = Disk::new() else { return };
        let mut daemon = disk.start(way);
        let (_bob, mut ann) = (daemon.native("bob"), daemon.native("ann"));
        disk.slow(Duration::from_millis(100));
        let mut mouth =
            NativePeer { stream: ann.stream.try_clone().unwrap(), ..NativePeer::bare(daemon.stream(), "ann") };
        std::thread::scope(|scope| {
            let talking = scope.spawn(move || {
                let text = "w".repeat(16 * 1024);
                loop {
                    let said = mouth.encode("bob", &text, Wants::default());
                    if mouth.stream.write_all(&said).is_err() {
                        break;
                    }
                }
            });
            daemon.until("the flood is slowed", |daemon| daemon.status()["paused"]["writer_behind"]["now"] == 1);
            daemon.signal(Signal::TERM);
            assert!(matches!(ann.hear().map(|heard| heard.frame), Some(Owned::Bye)), "nothing is refused before it");
            assert!(daemon.end().success());
            talking.join().unwrap();
        });
    });
}

#[test]
fn a_disk_that_hangs_is_not_waited_for_and_makes_senders_hear_busy() {
    let Some(disk) = Disk::new() else { return };
    let daemon = disk.start(EPOLL_TWO);
    let (_bob, mut ann) = (daemon.native("bob"), daemon.native("ann"));
    let mut mouth = NativePeer { stream: ann.stream.try_clone().unwrap(), ..NativePeer::bare(daemon.stream(), "ann") };
    disk.slow(PATIENCE);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let talking = scope.spawn(move || {
            let text = "x".repeat(64 * 1024);
            loop {
                let said = mouth.encode("bob", &text, Wants::default());
                if mouth.stream.write_all(&said).is_err() {
                    break;
                }
            }
        });
        let busy = ann.hear().expect("a connection that lasts").frame;
        assert!(matches!(busy, Owned::Busy { number: 1.., reason: "writer_full", .. }), "{busy:?}");
        assert!(began.elapsed() >= Duration::from_millis(WRITER_STUCK / Mono::ms(1)), "{:?}", began.elapsed());
        ann.stream.shutdown(std::net::Shutdown::Both).unwrap();
        talking.join().unwrap();
    });
    assert!(daemon.said().contains("writer_stuck"), "{}", daemon.said());
}

#[test]
fn a_disk_that_fails_while_senders_are_left_unread_makes_them_hear_busy() {
    every_way(|way| {
        let Some(disk) = Disk::new() else { return };
        let daemon = disk.start(way);
        let (mut bob, mut ann) = (daemon.native("bob"), daemon.native("ann"));
        disk.slow(Duration::from_millis(30));
        let mut mouth =
            NativePeer { stream: ann.stream.try_clone().unwrap(), ..NativePeer::bare(daemon.stream(), "ann") };
        std::thread::scope(|scope| {
            let receiving = scope.spawn(move || {
                loop {
                    let (heard, text) = bob.delivery();
                    bob.acknowledge(heard.header.sequence);
                    if text == "the end" {
                        break;
                    }
                }
            });
            let talking = scope.spawn(move || {
                let text = "y".repeat(16 * 1024);
                loop {
                    let said = mouth.encode("bob", &text, Wants::default());
                    if mouth.stream.write_all(&said).is_err() {
                        break;
                    }
                }
            });
            let ever = |daemon: &Daemon| daemon.status()["paused"]["writer_behind"]["ever"].as_u64();
            daemon.until("the flood is slowed", |daemon| ever(daemon) > Some(0));
            disk.fail(true);
            match ann.hear().expect("a connection that lasts").frame {
                Owned::Busy { number: 1.., reason, retry_after_ms } => {
                    assert_eq!((reason, retry_after_ms), ("writer_full", 50));
                }
                other => panic!("{other:?}"),
            }
            let status = daemon.status();
            assert_eq!(status["store"]["health"]["ok"], false, "{status:#}");
            assert_eq!(status["paused"]["now"], 0, "{status:#}");
            disk.fail(false);
            disk.slow(Duration::ZERO);
            daemon.until("the disk is well again", |daemon| daemon.status()["store"]["health"]["ok"] == true);
            ann.stream.shutdown(std::net::Shutdown::Both).unwrap();
            talking.join().unwrap();
            let mut last = daemon.native("last");
            daemon.until("there is room again", |daemon| {
                last.send("bob", "the end", Wants::ACCEPTED);
                let _ = daemon;
                matches!(last.hear().unwrap().frame, Owned::Receipts(_))
            });
            receiving.join().unwrap();
        });
    });
}
