//! A sender that is above its rate is not read for a while. What it wrote, and that it closed, waits; with TLS and without.

use crate::certificates::{Authority, Wanted};
use crate::evaluation::{self, VARIABLE};
use crate::harness::{Setup, every_way};
use crate::peers::NativePeer;
use crate::tunnel;
use agent_relay::base::tier::Tier;
use agent_relay::licence::{Document, KeyHash, LimitTerms};
use agent_relay::tls::{ClientFiles, Connector};
use agent_relay::wire::Wants;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

/// An enterprise licence of one hundred messages a second.
fn slow_licence() -> String {
    let now_ms = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let document = Document::of_tier(Tier::Enterprise, KeyHash([1; 32]), now_ms - 1_000, now_ms + 3_600_000);
    let limits = LimitTerms { messages_per_second: Some(Some(100)), ..document.limits };
    Document { offline: true, limits, ..document }.sign(&evaluation::signing_key())
}

#[test]
fn all_that_was_written_before_a_sender_closed_arrives_however_slowly_it_is_read() {
    every_way(|way| {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        let pair = authority.issue(folder.path(), &Wanted::named("relay"));
        let licence = format!("export {VARIABLE}={}", slow_licence());
        let daemon = Setup::new(way).tls(&pair).shell(&licence).start();
        let files = ClientFiles { ca: Some(authority.file.clone()), cert: None, key: None };
        let connector = Connector::new(&files).unwrap();
        let mut bob = daemon.native("bob");
        let stream = |name: &str| match name {
            "plain" => daemon.stream(),
            _ => tunnel::open(&connector, "localhost", tunnel::tcp(&daemon.tcp()), usize::MAX).0,
        };
        let (mut expected, began) = (Vec::new(), Instant::now());
        // Ten seconds' worth has been saved up; what is above it is slowed.
        for (name, messages) in [("plain", 1_200), ("secret", 100)] {
            let mut sender = NativePeer::connect(stream(name), name);
            let mut said = Vec::new();
            for number in 0..messages {
                said.extend_from_slice(&sender.encode("bob", &format!("{name} {number}"), Wants::default()));
                expected.push(format!("{name} {number}"));
            }
            sender.stream.write_all(&said).unwrap();
            drop(sender);
        }
        let mut heard: Vec<String> = Vec::new();
        while heard.len() < expected.len() {
            let (delivery, text) = bob.delivery();
            bob.acknowledge(delivery.header.sequence);
            heard.push(text);
        }
        // 300 more than were saved up, at a hundred a second: nobody was let through.
        assert!(began.elapsed() > Duration::from_millis(1_500), "{:?}", began.elapsed());
        // Each sender's in its order; the two are not one.
        heard.sort_by_key(|text| text.starts_with("secret"));
        assert_eq!(heard, expected);
        daemon.until_away("secret");
        daemon.until_away("plain");
    });
}
