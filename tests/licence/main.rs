//! Licences against the vendor's real program, started and stopped, and against servers that lie, hang and break off. Time
//! is an argument; connections are counted by the sockets they arrive at.
#![allow(missing_docs, clippy::unwrap_used, reason = "the whole file is a test")]

#[path = "../it/certificates.rs"]
mod certificates;
mod command_line;
mod daemon;
mod https;
mod liar;
mod vendor;

use agent_relay::base::tier::Tier;
use agent_relay::daemon::licence::{Licence, START_PATIENCE};
use agent_relay::daemon::licence_desk::{Desk, DeskPlace, reading};
use agent_relay::licence::{Document, LicenceKey, Reading, SigningKey, Standing};
use heed::CommitOrAbort;
use heed::types::Bytes;
use liar::{Liar, Lie};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};
use vendor::Vendor;
use zeroize::Zeroizing;

const PATIENCE: Duration = Duration::from_secs(20);
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// The key whose licences this build believes.
fn evaluation() -> SigningKey {
    SigningKey::parse(include_str!("../../scripts/evaluation.key")).unwrap()
}

fn place(folder: &Path, given: &str, server: &str) -> DeskPlace {
    DeskPlace {
        base: folder.to_owned(),
        folder: folder.to_owned(),
        project: "test".into(),
        given: Some(Zeroizing::new(given.to_owned())),
        server: server.to_owned(),
        server_ca: None,
        telemetry: false,
        retention_days: Some(7),
    }
}

/// So much later, on both clocks.
fn later(now: Reading, by_ms: u64) -> Reading {
    Reading { wall_ms: now.wall_ms + by_ms, boot_ms: now.boot_ms + by_ms }
}

/// An offline enterprise licence of the evaluation build.
fn offline(days: u64) -> String {
    let now = reading().wall_ms;
    let key = LicenceKey::from_random(Tier::Enterprise, 7).unwrap();
    let document = Document::of_tier(Tier::Enterprise, key.hash(), now, now + days * DAY);
    Document { offline: true, serial: 1, ..document }.sign(&evaluation())
}

#[test]
fn a_licence_that_was_issued_is_good_until_it_is_revoked() {
    let vendor = Vendor::start();
    let key = vendor.issue(&["--tier", "pro", "--days", "30"]);
    let folder = tempfile::tempdir().unwrap();
    let now = reading();
    let mut desk = Desk::open(place(folder.path(), &key, &vendor.url()), now);
    assert_eq!(desk.holder().standing(now), Standing::Pending);
    assert_eq!(desk.check(now, PATIENCE).unwrap().tier, Tier::Pro);
    desk.save(now).unwrap();
    vendor.run(&["revoke", &key]);
    // What was heard less than a day ago is good enough …
    let mut again = Desk::open(place(folder.path(), &key, &vendor.url()), now);
    assert_eq!((again.holder().standing(now), again.errand(now).is_none()), (Standing::Good, true));
    // … and after a day it is not.
    let tomorrow = later(now, DAY);
    let lapsed = again.check(tomorrow, PATIENCE).unwrap();
    assert_eq!((lapsed.tier, again.holder().standing(tomorrow)), (Tier::Community, Standing::Revoked));
    assert_eq!(again.holder().retention_days_max(), Some(90), "nothing is deleted before a week of warning");
}

#[test]
fn a_key_that_nobody_issued_and_one_that_has_ended_grant_nothing() {
    let vendor = Vendor::start();
    let folder = tempfile::tempdir().unwrap();
    let now = reading();
    let unknown = LicenceKey::from_random(Tier::Team, 1).unwrap();
    let mut desk = Desk::open(place(folder.path(), unknown.reveal(), &vendor.url()), now);
    assert_eq!(desk.check(now, PATIENCE), None);
    assert_eq!(desk.holder().standing(now), Standing::NotIssued);
    let limited = vendor.issue(&["--tier", "team", "--days", "1", "--agents", "7", "--rate", "unlimited"]);
    let mut desk = Desk::open(place(folder.path(), &limited, &vendor.url()), now);
    let entitlement = desk.check(now, PATIENCE).unwrap();
    assert_eq!((entitlement.agents_max, entitlement.messages_per_second), (Some(7), None));
}

#[test]
fn a_paid_up_licence_goes_on_without_its_server_and_comes_back_to_it() {
    let vendor = Vendor::start();
    let key = vendor.issue(&["--tier", "team", "--days", "30"]);
    let folder = tempfile::tempdir().unwrap();
    let now = reading();
    let mut desk = Desk::open(place(folder.path(), &key, &vendor.url()), now);
    desk.check(now, PATIENCE).unwrap();
    desk.save(now).unwrap();
    let registry = vendor.stop();
    let url = format!("http://{}", free_address());
    for day in 1..37 {
        let mut desk = Desk::open(place(folder.path(), &key, &url), later(now, day * DAY));
        assert_eq!(desk.check(later(now, day * DAY), PATIENCE), None, "day {day}");
        assert_eq!(desk.holder().entitlement().tier, Tier::Team, "day {day}");
        desk.save(later(now, day * DAY)).unwrap();
    }
    let over = later(now, 37 * DAY);
    let desk = Desk::open(place(folder.path(), &key, &url), over);
    assert_eq!((desk.holder().standing(over), desk.holder().entitlement().tier), (Standing::Expired, Tier::Community));
    // The vendor's clock says what day it really is.
    let vendor = Vendor::with(registry);
    let mut desk = Desk::open(place(folder.path(), &key, &vendor.url()), over);
    assert_eq!(desk.check(over, PATIENCE).unwrap().tier, Tier::Team);
    assert!(
        desk.holder().warnings(over)[0].contains("the clock was set forward by 3"),
        "{:?}",
        desk.holder().warnings(over)
    );
}

/// An address where nobody listens.
fn free_address() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn no_lie_takes_a_licence_away_or_gives_one() {
    for lie in Lie::ALL {
        let liar = Liar::start(lie);
        let folder = tempfile::tempdir().unwrap();
        let key = LicenceKey::from_random(Tier::Pro, 3).unwrap();
        let now = reading();
        let mut desk = Desk::open(place(folder.path(), key.reveal(), &liar.url()), now);
        let begun = Instant::now();
        assert_eq!(desk.check(now, Duration::from_secs(1)), None, "{lie:?}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{lie:?} took {:?}", begun.elapsed());
        assert_eq!(desk.holder().standing(now), Standing::Pending, "{lie:?}");
        let sentence = desk.holder().sentence(now);
        assert!(sentence.contains(lie.is_told_as()), "{lie:?}: {sentence}");
        // A day after it was paid for and confirmed.
        let paid =
            Document::of_tier(Tier::Pro, key.hash(), now.wall_ms - DAY, now.wall_ms + 30 * DAY).sign(&evaluation());
        let cache = serde_json::json!({ "documents": [paid] });
        std::fs::write(folder.path().join("license.cache"), cache.to_string()).unwrap();
        let mut desk = Desk::open(place(folder.path(), key.reveal(), &liar.url()), now);
        assert_eq!(desk.check(now, Duration::from_secs(1)), None, "{lie:?}");
        let standing = desk.holder().standing(now);
        assert_eq!((standing, desk.holder().entitlement().tier), (Standing::Unreachable, Tier::Pro), "{lie:?}");
        liar.stop();
    }
}

#[test]
fn a_signed_word_that_the_licence_has_ended_is_believed_at_once() {
    let liar = Liar::start(Lie::Ended);
    let folder = tempfile::tempdir().unwrap();
    let key = LicenceKey::from_random(Tier::Enterprise, 3).unwrap();
    let now = reading();
    for cached in [false, true] {
        if cached {
            // Said a day ago, when it was still paid for.
            let (from, until) = (now.wall_ms - DAY, now.wall_ms + 30 * DAY);
            let paid = Document::of_tier(Tier::Enterprise, key.hash(), from, until).sign(&evaluation());
            let cache = serde_json::json!({ "documents": [paid] });
            std::fs::write(folder.path().join("license.cache"), cache.to_string()).unwrap();
        }
        let mut desk = Desk::open(place(folder.path(), key.reveal(), &liar.url()), now);
        let lapsed = desk.check(now, PATIENCE);
        assert_eq!(lapsed.map(|entitlement| entitlement.tier), cached.then_some(Tier::Community));
        let (standing, tier) = (desk.holder().standing(now), desk.holder().entitlement().tier);
        assert_eq!(
            (standing, tier),
            (Standing::Expired, Tier::Community),
            "without the grace of a server that is silent"
        );
        let sentence = desk.holder().sentence(now);
        assert!(sentence.contains(Lie::Ended.is_told_as()), "{sentence}");
    }
    liar.stop();
}

/// The licence of this number ends then.
fn end_in_registry(folder: &Path, serial: u64, valid_until_ms: u64) {
    let env = agent_relay::store::open_environment(folder, 1 << 32).unwrap();
    let opened = env.open_databases_and_commit(env.read_txn().unwrap(), |opener, transaction| {
        let licences = opener.open_database::<Bytes, Bytes>(transaction, Some("licences"))?;
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(licences))
    });
    let licences = opened.unwrap().commit().unwrap().unwrap();
    let mut transaction = env.write_txn().unwrap();
    let row = licences.get(&transaction, &serial.to_be_bytes()).unwrap().unwrap();
    let mut row: serde_json::Value = serde_json::from_slice(row).unwrap();
    row["valid_until"] = valid_until_ms.into();
    licences.put(&mut transaction, &serial.to_be_bytes(), row.to_string().as_bytes()).unwrap();
    transaction.commit().unwrap();
}

#[test]
fn a_key_whose_licence_has_expired_grants_nothing_by_the_word_of_the_real_server() {
    let vendor = Vendor::start();
    let key = vendor.issue(&["--tier", "team", "--days", "1"]);
    let registry = vendor.stop();
    // Nobody waits for a day here: its end is moved to yesterday in the registry.
    let now = reading();
    end_in_registry(&registry.path().join("db"), 2, now.wall_ms - DAY);
    let vendor = Vendor::with(registry);
    assert_eq!(vendor.list()["licences"][1]["valid_until"], now.wall_ms - DAY);
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::open(place(folder.path(), &key, &vendor.url()), now);
    desk.check(now, PATIENCE);
    assert_eq!((desk.holder().standing(now), desk.holder().entitlement().tier), (Standing::Expired, Tier::Community));
}

#[test]
fn the_start_never_waits_longer_than_three_seconds() {
    // What the machine may take on top when it is busy with other tests.
    let slack = Duration::from_secs(2);
    for lie in [Lie::Hang, Lie::Drip, Lie::HangAfterHead] {
        let liar = Liar::start(lie);
        let folder = tempfile::tempdir().unwrap();
        let key = LicenceKey::from_random(Tier::Pro, 3).unwrap();
        let begun = Instant::now();
        let licence = Licence::at(place(folder.path(), key.reveal(), &liar.url()));
        let took = begun.elapsed();
        eprintln!("{lie:?}: the start took {took:?}");
        assert!(took < START_PATIENCE + slack, "{lie:?}: {took:?}");
        assert_eq!((licence.in_force().tier, licence.standing().0), (Tier::Community, "pending"));
        let begun = Instant::now();
        licence.stop();
        assert!(begun.elapsed() < slack, "nor does the end: {:?}", begun.elapsed());
        liar.stop();
    }
}

#[test]
fn a_start_with_a_good_server_begins_with_what_was_bought() {
    let vendor = Vendor::start();
    let key = vendor.issue(&["--tier", "enterprise", "--days", "30"]);
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let licence = Licence::at(place(folder.path(), &key, &vendor.url()));
    eprintln!("a start that asks took {:?}", begun.elapsed());
    assert_eq!(licence.in_force().tier, Tier::Enterprise);
    licence.stop();
    // The cache is enough for the next one, whatever has become of the server.
    drop(vendor);
    let begun = Instant::now();
    let licence = Licence::at(place(folder.path(), &key, &format!("http://{}", free_address())));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(licence.in_force().tier, Tier::Enterprise);
}

#[test]
fn a_reload_is_in_force_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let place = DeskPlace { given: None, ..place(folder.path(), "", "") };
    let licence = Licence::at(place.clone());
    assert_eq!(licence.in_force().tier, Tier::Community);
    Desk::open(place, reading()).activate(&offline(30), reading()).unwrap();
    let shown = licence.reload();
    assert_eq!((shown["tier"].as_str(), shown["state"].as_str()), (Some("enterprise"), Some("good")));
    assert_eq!(licence.in_force().tier, Tier::Enterprise);
    assert_eq!(licence.answer("{\"op\":\"show\"}").unwrap()["offline"], true);
    assert!(licence.answer("{\"op\":\"dance\"}").is_err());
    licence.stop();
}

#[test]
fn a_path_where_the_text_belongs_is_told_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let sentence = |given: &str| {
        let now = reading();
        Desk::open(place(folder.path(), given, ""), now).holder().sentence(now)
    };
    assert!(sentence("/etc/acme.licence").contains("takes the licence's text, not a path: \"$(cat FILE)\""));
    assert!(sentence("ar_pro_0000").contains("characters"));
    assert!(sentence(&offline(3)).starts_with("an offline Enterprise licence"));
}

#[test]
fn a_licence_that_another_program_activates_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let place = DeskPlace { given: None, ..place(folder.path(), "", "") };
    let mut desk = Desk::open(place.clone(), reading());
    assert!(!desk.is_overtaken());
    let mut other = Desk::open(place.clone(), reading());
    other.activate(&offline(30), reading()).unwrap();
    assert!(desk.is_overtaken() && !other.is_overtaken());
    assert_eq!(desk.reload(reading()).unwrap().tier, Tier::Enterprise);
    assert!(!desk.is_overtaken());
    other.deactivate(reading()).unwrap();
    assert!(desk.is_overtaken());
    // One from the environment goes before it, whatever becomes of it.
    let desk = Desk::open(DeskPlace { given: Some(Zeroizing::new(offline(3))), ..place }, reading());
    other.activate(&offline(30), reading()).unwrap();
    assert!(!desk.is_overtaken());
}

#[test]
fn an_offline_licence_makes_no_connection_to_anybody() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let place = DeskPlace { telemetry: true, ..place(folder.path(), &offline(30), &url) };
    let now = reading();
    let mut desk = Desk::open(place.clone(), now);
    let mut asked = 0;
    // Past its end, too, and with usage that could be reported.
    for hour in 0..40 * 24 {
        let now = later(now, hour * HOUR);
        desk.note_usage(now, 5, hour);
        asked += u32::from(desk.errand(now).is_some());
        desk.check(now, PATIENCE);
    }
    assert_eq!(desk.holder().standing(later(now, 40 * DAY)), Standing::Expired);
    let licence = Licence::at(place);
    assert_eq!(licence.in_force().tier, Tier::Enterprise);
    licence.reload();
    licence.stop();
    assert_eq!(asked, 0);
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
    // The same with a key is seen: the socket can count.
    let key = LicenceKey::from_random(Tier::Pro, 3).unwrap();
    let mut desk = Desk::open(self::place(folder.path(), key.reveal(), &url), now);
    desk.check(now, Duration::from_millis(100));
    assert!(listener.accept().is_ok());
}

#[test]
fn usage_is_reported_once_a_day_and_only_where_it_is_allowed() {
    let vendor = Vendor::start();
    let key = vendor.issue(&["--tier", "pro", "--days", "30"]);
    let folder = tempfile::tempdir().unwrap();
    let now = reading();
    let reported = || vendor.list()["licences"][1]["usage"].clone();
    for telemetry in [false, true] {
        let mut desk = Desk::open(DeskPlace { telemetry, ..place(folder.path(), &key, &vendor.url()) }, now);
        let mut errands = 0;
        for hour in 0..72 {
            let now = later(now, hour * HOUR);
            desk.note_usage(now, 3, 10 * (hour + 1));
            // Asked about its licence, or told of usage.
            while let Some(errand) = desk.errand(now) {
                errands += u32::from(telemetry);
                let answer = errand.run(PATIENCE);
                desk.answered(now, &errand, answer);
            }
            desk.look(now);
        }
        desk.save(later(now, 72 * HOUR)).unwrap();
        if telemetry {
            assert!(errands <= 3 + 4, "{errands}");
            let usage = reported();
            assert!(usage["rows"].as_u64().unwrap() >= 2 && usage["agents_peak"] == 3, "{usage}");
        } else {
            assert_eq!(reported()["rows"], 0);
        }
    }
}
