//! What each tier grants, against the real daemon: seats, rate, gated flags, and what an agent is told.

use crate::evaluation;
use crate::harness::{EPOLL_TWO, Setup, URING_TWO, every_way};
use crate::peers::{JsonPeer, NativePeer, Owned};
use agent_relay::base::Sequence;
use agent_relay::base::tier::{Entitlement, Feature, Tier};
use agent_relay::wire::Wants;
use serde_json::{Value, json};
use std::sync::Barrier;

const FULL: &str = "Agent limit reached (10). Upgrade to increase limit.";

fn is_full(heard: Option<&Owned>) -> bool {
    match heard {
        Some(Owned::Error { code: "QUOTA_EXCEEDED", fatal: true, message, .. }) => {
            assert_eq!(message, FULL);
            true
        }
        Some(Owned::Welcome(_)) => false,
        other => panic!("neither welcome nor too many: {other:?}"),
    }
}

#[test]
fn the_eleventh_agent_of_the_free_tier_is_refused_and_a_seat_that_is_left_can_be_taken() {
    every_way(|way| {
        let daemon = Setup::new(way).tier(Tier::Community).start();
        let mut agents: Vec<NativePeer> = (0..9).map(|number| daemon.native(&format!("agent-{number}"))).collect();
        let jay = daemon.json("Jay");
        let advice = daemon.status()["advice"][0].as_str().unwrap().to_owned();
        assert!(advice.starts_with("10 of 10 agents: the Pro tier allows 100 agents"), "{advice}");
        let (mut late, heard) = NativePeer::hello(daemon.stream(), "late", None, Sequence::default());
        assert!(is_full(Some(&heard.frame)));
        assert!(matches!(late.rest()[..], [Owned::Bye]));
        let mut late = JsonPeer::bare(daemon.stream(), "Late");
        late.hello(None);
        let error = late.hear_kind("ERROR");
        assert_eq!(error["payload"], json!({ "code": "QUOTA_EXCEEDED", "message": FULL, "fatal": true }));
        late.hear_kind("BYE");
        assert!(late.hear().is_none());
        // Internal names and the command line hold no seat, and a session that goes on has its own.
        let helpers: Vec<NativePeer> = (0..8).map(|number| daemon.native(&format!("__internal-{number}"))).collect();
        let (_, heard) = NativePeer::hello(daemon.stream(), "__internal-9", None, Sequence::default());
        assert!(is_full(Some(&heard.frame)), "a name that begins so is no way around the limit");
        drop(helpers);
        assert!(daemon.run(&["send", "--global", "--from", "shell", "--to", "agent-0", "hello"]).status.success());
        assert_eq!(agents[0].delivery().1, "hello");
        let before = agents[1].welcome;
        let (again, _) = NativePeer::resume(daemon.stream(), "agent-1", before.resume, Sequence::default());
        assert!(again.welcome.resumed);
        drop(jay);
        daemon.until_away("Jay");
        daemon.native("late");
        assert_eq!(daemon.status()["closes"]["agent_limit"], 3);
    });
}

#[test]
fn a_storm_of_hellos_gets_exactly_as_many_seats_as_there_are() {
    every_way(|way| {
        let daemon = Setup::new(way).tier(Tier::Community).start();
        for round in 0..5 {
            let (threads, start) = (40, Barrier::new(40));
            let peers: Vec<(NativePeer, bool)> = std::thread::scope(|scope| {
                let hello = |number| {
                    let (daemon, start) = (&daemon, &start);
                    scope.spawn(move || {
                        let (stream, name) = (daemon.stream(), format!("storm-{round}-{number}"));
                        start.wait();
                        let (peer, heard) = NativePeer::hello(stream, &name, None, Sequence::default());
                        (peer, is_full(Some(&heard.frame)))
                    })
                };
                let running: Vec<_> = (0..threads).map(hello).collect();
                running.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(peers.iter().filter(|(_, full)| !full).count(), 10, "round {round}");
            let welcome: Vec<String> =
                peers.iter().filter(|(_, full)| !full).map(|(peer, _)| peer.name.clone()).collect();
            drop(peers);
            for name in welcome {
                daemon.until_away(&name);
            }
        }
    });
}

#[test]
fn beyond_the_rate_of_its_tier_a_sender_is_slowed_and_loses_nothing() {
    every_way(|way| {
        let daemon = Setup::new(way).tier(Tier::Community).start();
        let mut bob = daemon.client("bob");
        // Ten seconds' worth may be saved up: a thousand.
        let senders = ["ann", "cat"];
        let each = 540;
        let busy: Vec<Owned> = std::thread::scope(|scope| {
            let send = |name: &'static str| {
                let daemon = &daemon;
                scope.spawn(move || {
                    let mut peer = daemon.native(name);
                    for number in 0..each {
                        peer.send("bob", &format!("{name} {number}"), Wants::default());
                    }
                    peer.barrier().into_iter().map(|heard| heard.frame).collect::<Vec<_>>()
                })
            };
            let running: Vec<_> = senders.into_iter().map(send).collect();
            running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let mut next = [0, 0];
        for _ in 0..each * 2 {
            let text = crate::peers::text(&mut bob);
            let (name, number) = text.split_once(' ').unwrap();
            let sender = senders.iter().position(|known| *known == name).unwrap();
            assert_eq!(number, next[sender].to_string(), "{name}'s messages come in order, each once");
            next[sender] += 1;
        }
        assert!(!busy.is_empty(), "who is slowed is told so");
        for frame in &busy {
            let Owned::Busy { number: 0, reason: "rate_limited", retry_after_ms } = frame else { panic!("{frame:?}") };
            assert!((1..=2_000).contains(retry_after_ms), "{frame:?}");
        }
        assert_eq!(daemon.status()["refusals"], json!({}), "nothing was refused");
    });
}

#[test]
fn an_agent_is_told_what_the_licence_grants() {
    every_way(|way| {
        for tier in Tier::ALL {
            let daemon = Setup::new(way).tier(tier).start();
            let told = daemon.json("Jay").welcome["payload"]["license"].clone();
            let granted = Entitlement::of_tier(tier);
            // The free tier needs no licence; the others have one that says so.
            let told_of = |feature: &Feature| {
                granted.features.has(*feature) || (*feature == evaluation::OFFLINE && tier != Tier::Community)
            };
            let features: Vec<&str> = Feature::all().filter(told_of).map(Feature::name).collect();
            let limits = json!({ "maxAgents": granted.agents_max, "retentionDays": granted.retention_days_max });
            assert_eq!(told, json!({ "tier": tier.name(), "features": features, "limits": limits }));
            assert_eq!(daemon.status()["tier"], tier.name());
        }
    });
}

#[test]
fn each_gated_flag_is_refused_below_its_tier_with_a_sentence_and_works_from_it_on() {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for tier in Tier::ALL {
        let rows: [(Feature, &[&str], &str); 4] = [
            (Feature::Authentication, &["--require-auth"], "Authentication requires Pro tier"),
            (
                Feature::TlsEncryption,
                &["--tls-cert", "c.pem", "--tls-key", "k.pem"],
                "TLS encryption requires Pro tier",
            ),
            (Feature::StorageEncryption, &["--db-key", "db.key"], "Storage encryption requires Pro tier"),
            (
                Feature::TcpTransport,
                &["--listen", "0.0.0.0:0", "--tls-cert", "c.pem", "--tls-key", "k.pem"],
                "TCP off loopback requires Team tier",
            ),
        ];
        for (feature, flags, sentence) in rows {
            let directory = tempfile::tempdir().unwrap();
            let path = |file: &str| directory.path().join(file);
            std::fs::write(path("c.pem"), certificate.cert.pem()).unwrap();
            std::fs::write(path("k.pem"), certificate.signing_key.serialize_pem()).unwrap();
            std::fs::write(path("db.key"), agent_relay::store::Key::generate().unwrap().to_text().as_str()).unwrap();
            let arguments: Vec<String> = flags
                .iter()
                .map(|flag| match flag.ends_with(".pem") || flag.ends_with(".key") {
                    true => path(flag).display().to_string(),
                    false => (*flag).to_owned(),
                })
                .collect();
            let setup = Setup { directory: Some(directory), arguments, ..Setup::new(EPOLL_TWO).tier(tier) };
            match setup.try_start() {
                Ok(_) => assert!(Entitlement::of_tier(tier).features.has(feature), "{flags:?} runs on {tier:?}"),
                Err((said, directory)) => {
                    assert!(!Entitlement::of_tier(tier).features.has(feature), "{flags:?} on {tier:?}: {said}");
                    let expected = match tier {
                        // The lower of the two that are missing comes first.
                        Tier::Community if feature == Feature::TcpTransport => "TLS encryption requires Pro tier",
                        _ => sentence,
                    };
                    assert!(said.contains(expected) && said.contains("relay license activate KEY"), "{tier:?}: {said}");
                    assert!(!directory.path().join("relay.sock").exists(), "no listener has opened");
                }
            }
        }
    }
}

#[test]
fn commands_that_are_gated_are_refused_below_their_tier() {
    for tier in Tier::ALL {
        let daemon = Setup::new(URING_TWO).tier(tier).start();
        let output = daemon.run(&["keys", "list", "--global"]);
        let said = String::from_utf8(output.stderr).unwrap();
        let granted = Entitlement::of_tier(tier).features.has(Feature::ApiKeys);
        assert_eq!(output.status.success(), granted, "{tier:?}: {said}");
        assert!(granted || said.contains("Pro tier required for API key management"), "{tier:?}: {said}");
    }
}

#[test]
fn retention_of_more_than_the_tier_has_is_lowered_and_said() {
    for (tier, days) in [(Tier::Community, 7), (Tier::Pro, 90), (Tier::Team, 120), (Tier::Enterprise, 120)] {
        let daemon = Setup::new(EPOLL_TWO).tier(tier).argument("--retention").argument("120d").start();
        let status: Value = daemon.status();
        assert_eq!(status["store"]["retention_days"], days, "{tier:?}");
    }
}
