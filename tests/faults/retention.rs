//! Retention on a disk that fails: the sweep takes what it may and no more, says that it cannot go on, and goes on by
//! itself.

use crate::broken_disk::{BrokenDisk, Calls, Failure};
use crate::daemon::Place;
use crate::dice;
use crate::swarm::{PATIENCE, Swarm};
use crate::tally::skip;
use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::client::{self, Address, Client, Incoming};
use agent_relay::relay::{Addressee, Recipients, Record};
use agent_relay::store::{KeptTime, Options, Segment, Store};
use agent_relay::wire::{MessageFields, encode};
use rustix::io::Errno;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

const DAY_MS: u64 = 24 * 3_600_000;
/// Segments that have outlived the retention time, and those that have not.
const OLD_SEGMENTS: u64 = 200;
const YOUNG_SEGMENTS: u64 = 5;
const MESSAGES: u64 = 100;

pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The `number`-th message of `long-ago`, in the order of its recipient.
pub(crate) fn message(to: &str, number: u64, accepted_at_ms: u64) -> Record {
    let id = MessageId { sender: AgentId::of(b"long-ago"), number };
    let text = number.to_string();
    let fields =
        MessageFields { id, from: b"long-ago", to: to.as_bytes(), text: text.as_bytes(), ..Default::default() };
    let mut raw = Vec::new();
    let checksum = encode::message_body(&mut raw, &fields);
    let agent = AgentId::of(to.as_bytes());
    let recipient = Addressee { agent, sequence: Sequence { epoch: 1, counter: number }, channel: false };
    let recipients = Recipients::One(recipient);
    Record::Message { id, raw: raw.into(), checksum, accepted_at_ms, ttl_ms: 0, parts: 1, recipients }
}

/// A store as an earlier daemon left it: two hundred segments of ten days ago, five of an hour ago, all of it in the rows.
fn fill(data: &Path, old_ms: u64, young_ms: u64) {
    let folder = data.join("store");
    let store = Store::open(Options { map_bytes: 1 << 30, ..Options::new(folder, None) }).unwrap();
    store.begin_epoch((old_ms / 1000) as u32, 0).unwrap();
    let (mut segment, mut number) = (Segment::new(), 0);
    for index in 0..OLD_SEGMENTS + YOUNG_SEGMENTS {
        segment.clear();
        for _ in 0..MESSAGES {
            number += 1;
            let at_ms = if index < OLD_SEGMENTS { old_ms } else { young_ms } + index;
            segment.push(&message("somebody", number, at_ms));
        }
        store.append(&mut segment).unwrap();
    }
    store.mark_applied(OLD_SEGMENTS + YOUNG_SEGMENTS).unwrap();
}

/// The first segment that is kept.
fn first_segment(place: &Place) -> u64 {
    place.status()["store"]["first_segment"].as_u64().expect("status knows the first segment")
}

#[test]
fn a_sweep_on_a_failing_disk_is_told_and_goes_on_when_the_disk_does() {
    let seed = dice::seed("failing sweep");
    let failures = [
        (Calls::Flushes, Failure::Error(Errno::IO)),
        (Calls::Writes, Failure::Error(Errno::NOSPC)),
        (Calls::All, Failure::Error(Errno::IO)),
        (Calls::Writes, Failure::Error(Errno::DQUOT)),
        (Calls::Writes, Failure::Short),
    ];
    let (mut refused, mut met) = (0, 0);
    for round in 0..20u64 {
        let directory = tempfile::Builder::new().prefix("relay-sweep").tempdir().unwrap();
        let mut place = Place::new(&directory.path().join("data"), directory.path());
        fs::create_dir(&place.data).unwrap();
        let disk = match BrokenDisk::under(&mut place) {
            Ok(disk) => disk,
            Err(why) => return skip("cc", "failing sweep", &why),
        };
        fill(&place.data, wall_ms() - 10 * DAY_MS, wall_ms() - DAY_MS / 24);
        place.arguments = vec!["--retention".into(), "7d".into()];
        let (calls, failure) = failures[round as usize % failures.len()];
        let story = format!("round {round}: after {} {calls:?} calls all fail with {failure:?}", 2 * round);
        disk.fail(calls, 2 * round, u64::MAX, failure);
        let daemon = place.try_start();
        let mut daemon = match daemon {
            Ok(daemon) => {
                // Nobody has sent anything: the sweep alone has met it, or is through.
                let begun = Instant::now();
                while disk.failed() == 0 && first_segment(&place) <= OLD_SEGMENTS {
                    assert!(begun.elapsed() < PATIENCE, "neither swept nor failed: {story}");
                }
                if first_segment(&place) <= OLD_SEGMENTS {
                    met += 1;
                    let health = place.until_health("red", |health| !health.contains("\"ok\":true"));
                    assert!(health.len() > 60, "says what to do: {health}: {story}");
                }
                disk.heal();
                daemon
            }
            Err(said) => {
                refused += 1;
                assert!(disk.failed() > 0 && !said.contains("panicked"), "{said}: {story}");
                disk.heal();
                place.start()
            }
        };
        let begun = Instant::now();
        while first_segment(&place) <= OLD_SEGMENTS {
            assert!(begun.elapsed() < PATIENCE, "the sweep does not go on: {story}");
        }
        place.until_health("green", |health| health.contains("\"ok\":true"));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}: {story}", begun.elapsed());
        assert_eq!(first_segment(&place), OLD_SEGMENTS + 1, "not one segment too many: {story}");
        assert!(daemon.is_alive(), "{story}");
        let mut swarm = Swarm::new(3, 1, place.socket(), seed ^ round);
        swarm.gather();
        swarm.saturate(8, 20);
        swarm.calm();
        daemon.kill();
        swarm.bury();
        let out = place.run(&["export", "--global", "--from", "long-ago"]);
        let kept = String::from_utf8_lossy(&out.stdout).lines().count() as u64;
        assert_eq!(kept, YOUNG_SEGMENTS * MESSAGES, "{story}");
        swarm.comes_back(&place);
    }
    assert!(met > 0, "no sweep has met a failure");
    eprintln!(
        "RESULT failing sweeps: 20 rounds, {met} met by the sweep and outlived, {refused} starts refused with a sentence"
    );
}

/// Mail of a month ago to somebody who is away, in a store whose daemon kept this time.
fn store_of_a_month_ago(data: &Path, month_ago_ms: u64, kept: Option<KeptTime>) {
    let store = Store::open(Options { map_bytes: 1 << 30, ..Options::new(data.join("store"), None) }).unwrap();
    store.begin_epoch(1, 0).unwrap();
    let mut segment = Segment::new();
    for name in ["long-ago", "away"] {
        segment.push(&Record::Known { agent: AgentId::of(name.as_bytes()), name: name.into(), at_ms: month_ago_ms });
    }
    for number in 1..=MESSAGES {
        segment.push(&message("away", number, month_ago_ms));
    }
    store.append(&mut segment).unwrap();
    if let Some(kept) = kept {
        store.keep_time(&kept).unwrap();
    }
}

/// Messages that come to `away`, and whether status doubts the clock.
fn start_and_look(place: &Place) -> (u64, bool) {
    let daemon = place.start();
    let begun = Instant::now();
    let swept = loop {
        let status = place.status();
        if !status["store"]["last_sweep_ms"].is_null() {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "no sweep ends: {status}");
    };
    let doubted = swept["clock_warning"].as_str().is_some_and(|warning| warning.contains("30 days ahead"));
    assert_eq!(doctor_doubts(place), doubted, "status and doctor agree");
    let mut away = Client::connect(&Address::Unix(place.socket()), &client::Options::named("away")).unwrap();
    let mut came = 0;
    // All of it, or nothing for a while.
    while came < MESSAGES
        && let Some(Incoming::Message(_)) = away.next(Duration::from_millis(1_500)).unwrap()
    {
        came += 1;
    }
    let said = daemon.kill();
    assert_eq!(said.contains("30 days ahead"), doubted, "status and log agree: {said}");
    assert_eq!(doctor_doubts(place), doubted, "what the next start will say, doctor says before it");
    (came, doubted)
}

/// Whether `relay doctor` doubts the clock; then it says what to do.
fn doctor_doubts(place: &Place) -> bool {
    let socket = place.socket();
    let out = place.run(&["doctor", "--json", "--global", "--socket", socket.to_str().unwrap()]);
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    let clock = value["checks"].as_array().unwrap().iter().find(|check| check["check"] == "clock").unwrap();
    let doubts = clock["found"].as_str().unwrap().contains("30 days ahead");
    assert_eq!(doubts, clock["verdict"] == "warn", "{clock}");
    assert_eq!(doubts, clock["repair"].as_str().is_some_and(|repair| repair.contains("timedatectl")), "{clock}");
    doubts
}

#[test]
fn a_clock_that_jumped_while_the_relay_was_off_deletes_nothing_until_it_has_said_so_for_a_day() {
    const HOUR_MS: u64 = DAY_MS / 24;
    let month_ago_ms = wall_ms() - 30 * DAY_MS - HOUR_MS;
    // As this machine sees it, it makes no difference whether a month has passed or the clock is a month ahead.
    let kept = |doubted_ms| KeptTime { time_ms: month_ago_ms, boot: [7; 16], boot_ms: 5, doubted_ms };
    let last_hour = KeptTime { time_ms: wall_ms() - HOUR_MS, ..kept(0) };
    for (what, kept, expected) in [
        ("a store of a version that kept no time", None, (MESSAGES, true)),
        ("a time of a month ago", Some(kept(0)), (MESSAGES, true)),
        ("the same, doubted for a day", Some(kept(DAY_MS)), (0, false)),
        ("a time of an hour ago", Some(last_hour), (0, false)),
    ] {
        let directory = tempfile::Builder::new().prefix("relay-clock").tempdir().unwrap();
        let mut place = Place::new(&directory.path().join("data"), directory.path());
        fs::create_dir(&place.data).unwrap();
        place.arguments = vec!["--retention".into(), "7d".into()];
        store_of_a_month_ago(&place.data, month_ago_ms, kept);
        assert_eq!(start_and_look(&place), expected, "{what}");
        // What was believed is kept: the next start comes to the same.
        let (_, doubted) = start_and_look(&place);
        assert_eq!(doubted, expected.1, "{what}, again");
    }
}
