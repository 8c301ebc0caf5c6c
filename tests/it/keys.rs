//! API keys through the real program: made, listed, revoked, rotated, expired, counted, and there after a crash.

use crate::auth::{in_json, make, native};
use crate::certificates::{Authority, Wanted};
use crate::harness::{Daemon, EPOLL_TWO, PATIENCE, Setup, URING_TWO, Way, every_way};
use crate::peers::Owned;
use agent_relay::base::tier::Tier;
use agent_relay::client::{self, ClientFiles, Credential, Inquiry, Security, Tls};
use agent_relay::store::{Options, Store};
use agent_relay::wire::{QueryKind, Wants};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

fn strict(way: Way) -> Setup {
    Setup::new(way).argument("--require-auth")
}

fn ask(daemon: &Daemon, arguments: Value) -> Value {
    daemon.ask(QueryKind::Keys, &arguments)
}

fn listed(daemon: &Daemon, id: &str) -> Value {
    let all = ask(daemon, json!({ "op": "list", "all": true }));
    all["keys"].as_array().unwrap().iter().find(|key| key["id"] == id).unwrap().clone()
}

/// Types of the audit events in the store of this data directory.
fn events(directory: &Path) -> Vec<Value> {
    let store = Store::open(Options::new(directory.join("store"), None).reading()).unwrap();
    let mut events = Vec::new();
    let each = |row: agent_relay::store::control::EventRow| {
        events.push(serde_json::from_str::<Value>(&row.text).unwrap());
        ControlFlow::Continue(())
    };
    store.snapshot().unwrap().events(0, each).unwrap();
    events
}

/// The text of the fatal ERROR with which a connection ends.
fn last_words(frames: &[Owned]) -> String {
    match frames {
        [Owned::Error { code: "UNAUTHORIZED", fatal: true, message, .. }, Owned::Bye] => message.clone(),
        other => panic!("not a fatal UNAUTHORIZED and BYE: {other:?}"),
    }
}

#[test]
fn a_key_made_on_the_command_line_is_printed_alone_and_lives_through_a_crash() {
    every_way(|way| {
        let daemon = strict(way).start();
        let run = |line: &[&str]| {
            let output = daemon.run(&[&["keys"], line, &["--global"]].concat());
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{line:?}: {said}");
            (String::from_utf8(output.stdout).unwrap(), said)
        };
        assert!(run(&["list"]).0.starts_with("there are no API keys"));
        let (printed, said) =
            run(&["create", "--name", "build robots", "--agents", "ann,bob", "--expires", "30d", "--rate", "600"]);
        let key = printed.trim_end();
        assert!(key.len() == 39 && printed.lines().count() == 1, "{printed}");
        assert!(said.contains("Save this key now. It will not be shown again."), "{said}");
        let table = run(&["list"]).0;
        assert!(table.contains("build robots") && table.contains("ann, bob") && table.contains("600/min"), "{table}");
        assert!(!table.contains(&key[15..]));
        let keys: Value = serde_json::from_str(&run(&["list", "--json"]).0).unwrap();
        let id = keys["keys"][0]["id"].as_str().unwrap().to_owned();
        let token = run(&["token", &id[..8], "--minutes", "5"]).0;

        let directory = daemon.crash();
        let daemon = Setup { directory: Some(directory), ..strict(way) }.start();
        let mut ann = native(daemon.stream(), "ann", "api_key", key);
        assert!(ann.welcomed());
        assert!(native(daemon.stream(), "bob", "token", token.trim_end()).welcomed(), "its tokens are good, too");
        let revoked = daemon.run(&["keys", "revoke", &id[..8], "--global"]);
        assert!(String::from_utf8(revoked.stdout).unwrap().starts_with("revoked: build robots"));
        assert_eq!(last_words(&ann.rest()), "Invalid API key");

        let directory = daemon.crash();
        let all = events(directory.path());
        let (came, done): (Vec<&Value>, Vec<&Value>) = all.iter().partition(|event| event["meta"]["agent"].is_string());
        let types: Vec<&Value> = done.iter().map(|event| &event["event_type"]).collect();
        assert_eq!(types, ["ssh_key.created", "ssh_key.used", "ssh_key.deleted"]);
        assert!(came.len() <= 1, "two agents of one key from one place: {came:?}");
        let daemon = Setup { directory: Some(directory), ..strict(way) }.start();
        assert!(!native(daemon.stream(), "ann", "api_key", key).welcomed());
        assert!(listed(&daemon, &id)["revokedAt"].is_string());
    });
}

#[test]
fn the_log_of_keys_tells_who_did_what_who_came_from_where_and_who_was_refused() {
    every_way(|way| {
        let daemon = strict(way).argument("--listen").argument("127.0.0.1:0").start();
        let run = |line: &[&str]| {
            let output = daemon.run(&[&["keys", "log", "--global"], line].concat());
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let said = daemon.run(&["keys", "log", "--global"]);
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "nothing of the kind is in the audit trail\n");
        let (id, key) = make(&daemon, json!({ "name": "watched" }));
        // Enough names that every shard has some, from two places.
        let address = daemon.status()["listen"][0].as_str().unwrap().to_owned();
        for number in 0..6 {
            assert!(native(daemon.stream(), &format!("here-{number}"), "api_key", &key).welcomed());
            assert!(native(crate::tunnel::tcp(&address), &format!("there-{number}"), "api_key", &key).welcomed());
        }
        let wrong = format!("ar_key_{}", "x".repeat(32));
        for _ in 0..3 {
            let mut eve = native(crate::tunnel::tcp(&address), "eve", "api_key", &wrong);
            assert_eq!(last_words(&eve.rest()), "Invalid API key");
        }
        ask(&daemon, json!({ "op": "revoke", "id": id }));
        let text = run(&["--json"]);
        let told: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |event_type: &str| -> Vec<&Value> {
            told.iter().filter(|event| event["event_type"] == event_type).collect()
        };
        let made_and_revoked = [of("ssh_key.created").len(), of("ssh_key.deleted").len()];
        assert_eq!(made_and_revoked, [1, 1], "{text}");
        let mut places: Vec<String> = of("ssh_key.used")
            .iter()
            .map(|event| event["ip"].as_str().or(event["meta"]["source"].as_str()).unwrap().to_owned())
            .collect();
        places.sort();
        assert_eq!(places, ["127.0.0.1".to_owned(), format!("uid:{}", rustix::process::getuid().as_raw())]);
        // One shard may have told its first before the others had theirs: what comes later is in the next.
        let refused = of("user.login");
        let [refused] = refused[..] else { panic!("{text}") };
        assert_eq!(
            (&refused["severity"], &refused["ip"], &refused["meta"]["reason"], &refused["meta"]["agent"]),
            (&json!("warning"), &json!("127.0.0.1"), &json!("unknown_key"), &json!("eve"))
        );
        assert!((1..=3).contains(&refused["meta"]["count"].as_u64().unwrap()), "{refused}");
        assert!(!text.contains(&key) && !text.contains(&wrong));
        let table = run(&[]);
        for words in ["created", "revoked", "refused", "127.0.0.1", &id[..8], "unknown_key", "as here-"] {
            assert!(table.contains(words), "{words}: {table}");
        }
        assert_eq!(run(&["--limit", "2", "--json"]).lines().count(), 2);
        assert_eq!(run(&["--until", "2020-01-01T00:00:00Z", "--json"]), "");
    });
}

#[test]
fn a_revoked_keys_connections_are_closed_within_a_second_on_both_wires_and_no_others() {
    every_way(|way| {
        let daemon = strict(way).start();
        let (id, key) = make(&daemon, json!({ "name": "revoked" }));
        let (_, other) = make(&daemon, json!({ "name": "stays" }));
        // Enough names that every shard has some.
        let mut natives: Vec<_> =
            (0..8).map(|number| native(daemon.stream(), &format!("native-{number}"), "api_key", &key)).collect();
        let mut jsons: Vec<_> =
            (0..8).map(|number| in_json(daemon.stream(), &format!("Json-{number}"), "api_key", &key)).collect();
        let token = ask(&daemon, json!({ "op": "token", "id": id }))["token"].as_str().unwrap().to_owned();
        natives.push(native(daemon.stream(), "native-token", "token", &token));
        natives.iter_mut().for_each(|peer| assert!(peer.welcomed()));
        jsons.iter_mut().for_each(|peer| drop(peer.hear_kind("WELCOME")));
        let mut stays = native(daemon.stream(), "stays", "api_key", &other);
        assert!(stays.welcomed());
        let begun = Instant::now();
        ask(&daemon, json!({ "op": "revoke", "id": id }));
        for peer in &mut natives {
            assert_eq!(last_words(&peer.rest()), "Invalid API key");
        }
        for peer in &mut jsons {
            let error = peer.hear_kind("ERROR");
            let wanted = json!({ "code": "UNAUTHORIZED", "message": "Invalid API key", "fatal": true });
            assert_eq!(error["payload"], wanted);
            peer.hear_kind("BYE");
            assert!(peer.hear().is_none());
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
        assert!(stays.barrier().is_empty());
        assert_eq!(daemon.status()["closes"]["key_revoked"], 17);
    });
}

#[test]
fn a_rotated_secret_lives_for_its_overlap_and_its_connections_end_with_it() {
    every_way(|way| {
        let daemon = strict(way).start();
        let (id, old) = make(&daemon, json!({ "name": "rotated" }));
        let mut before = native(daemon.stream(), "before", "api_key", &old);
        assert!(before.welcomed());
        let overlap = Duration::from_millis(1_500);
        let begun = Instant::now();
        let rotated = ask(&daemon, json!({ "op": "rotate", "id": id, "overlap_ms": overlap.as_millis() as u64 }));
        let new = rotated["key"].as_str().unwrap();
        let mut after = native(daemon.stream(), "after", "api_key", new);
        assert!(after.welcomed());
        assert!(native(daemon.stream(), "both", "api_key", &old).welcomed(), "the old one lives on");
        last_words(&before.rest());
        assert!(begun.elapsed() >= overlap, "not before its time");
        assert!(!native(daemon.stream(), "late", "api_key", &old).welcomed());
        assert!(after.barrier().is_empty());
        // Without overlap the old secret ends at once.
        ask(&daemon, json!({ "op": "rotate", "id": id, "overlap_ms": 0 }));
        assert_eq!(last_words(&after.rest()), "Invalid API key");
    });
}

#[test]
fn a_key_that_expires_ends_its_connections() {
    every_way(|way| {
        let daemon = strict(way).start();
        let life = Duration::from_millis(1_500);
        let begun = Instant::now();
        let (id, key) = make(&daemon, json!({ "name": "short", "expires_ms": life.as_millis() as u64 }));
        let mut ann = native(daemon.stream(), "ann", "api_key", &key);
        let mut jay = in_json(daemon.stream(), "Jay", "api_key", &key);
        assert!(ann.welcomed());
        jay.hear_kind("WELCOME");
        assert_eq!(last_words(&ann.rest()), "API key expired");
        assert_eq!(jay.hear_kind("ERROR")["payload"]["message"], "API key expired");
        assert!(begun.elapsed() >= life);
        let refused = daemon.run(&["keys", "rotate", &id, "--global"]);
        assert!(String::from_utf8(refused.stderr).unwrap().contains("has expired"));
    });
}

#[test]
fn a_keys_rate_slows_all_its_connections_together_and_tells_the_true_wait() {
    every_way(|way| {
        let daemon = strict(way).start();
        // Two a second, and a minute's worth may be saved up.
        let (_, key) = make(&daemon, json!({ "name": "slow", "rate": 120 }));
        let (_, other) = make(&daemon, json!({ "name": "reader" }));
        let mut bob = native(daemon.stream(), "bob", "api_key", &other);
        assert!(bob.welcomed());
        let begun = Instant::now();
        let told: Vec<Owned> = std::thread::scope(|scope| {
            let send = |name: &'static str| {
                let (daemon, key) = (&daemon, &key);
                scope.spawn(move || {
                    let mut peer = native(daemon.stream(), name, "api_key", key);
                    assert!(peer.welcomed());
                    (0..62).for_each(|_| _ = peer.send("bob", name, Wants::default()));
                    peer.barrier().into_iter().map(|heard| heard.frame).collect::<Vec<_>>()
                })
            };
            let running = ["ann", "cat"].map(send);
            running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        for _ in 0..124 {
            let (heard, _) = bob.delivery();
            bob.acknowledge(heard.header.sequence);
        }
        assert!(begun.elapsed() >= Duration::from_millis(500), "four more than there were");
        assert!(!told.is_empty(), "who is slowed is told so");
        for frame in &told {
            let Owned::Busy { number: 0, reason: "rate_limited", retry_after_ms } = frame else { panic!("{frame:?}") };
            assert!((1..=2_000).contains(retry_after_ms), "{frame:?}");
        }
        assert!(bob.barrier().is_empty(), "another key is not slowed");
    });
}

#[test]
fn what_a_key_has_sent_and_when_is_counted_and_lives_through_a_restart() {
    for way in [URING_TWO, EPOLL_TWO] {
        if !crate::harness::available(way) {
            continue;
        }
        let mut daemon = strict(way).start();
        let (id, key) = make(&daemon, json!({ "name": "counted" }));
        assert!(listed(&daemon, &id)["lastUsedAt"].is_null());
        let mut peers: Vec<_> =
            (0..4).map(|number| native(daemon.stream(), &format!("agent-{number}"), "api_key", &key)).collect();
        for peer in &mut peers {
            assert!(peer.welcomed());
            for _ in 0..5 {
                peer.send("agent-0", "counted", Wants::default());
            }
        }
        daemon.until("twenty messages are counted", |daemon| listed(daemon, &id)["totalMessages"] == 20);
        let used = listed(&daemon, &id)["lastUsedAt"].as_str().unwrap().to_owned();
        // What the clerk has not heard of when the end comes is counted as well.
        peers[0].send("agent-0", "the last one", Wants::default());
        peers[0].barrier();
        daemon.signal(Signal::TERM);
        assert!(daemon.end().success());
        let directory = daemon.crash();
        let daemon = Setup { directory: Some(directory), ..strict(way) }.start();
        let after = listed(&daemon, &id);
        assert_eq!(after["totalMessages"], 21);
        assert!(after["lastUsedAt"].as_str().unwrap() >= &*used);
        let mut ann = native(daemon.stream(), "ann", "api_key", &key);
        assert!(ann.welcomed());
        ann.send("ann", "once more", Wants::default());
        assert_eq!(ann.delivery().1, "once more");
        daemon.until("it goes on counting", |daemon| listed(daemon, &id)["totalMessages"] == 22);
    }
}

#[test]
fn below_its_tier_no_key_is_made_or_taken_back() {
    let daemon = Setup::new(EPOLL_TWO).tier(Tier::Community).start();
    for op in ["list", "create", "revoke", "rotate", "token"] {
        let arguments = json!({ "op": op, "name": "a", "id": "00000000" }).to_string();
        let refused = client::ask(&daemon.address(), QueryKind::Keys, &arguments, PATIENCE).unwrap_err();
        let said = refused.to_string();
        assert!(said.contains("Pro tier required for API key management") && said.contains("activate KEY"), "{said}");
    }
}

#[test]
fn an_admin_key_manages_keys_over_tls_and_no_other_key_does_and_the_trail_says_who() {
    let papers = tempfile::tempdir().unwrap();
    let authority = Authority::new(papers.path(), "authority");
    let pair = authority.issue(papers.path(), &Wanted::named("relay"));
    let files = ClientFiles { ca: Some(authority.file.clone()), ..ClientFiles::default() };
    let daemon = strict(EPOLL_TWO).tls(&pair).start();
    let address: client::Address = daemon.status()["listen"][0].as_str().unwrap().parse().unwrap();
    let (admin, admin_key) = make(&daemon, json!({ "name": "admin", "scopes": ["admin"] }));
    let (_, usual_key) = make(&daemon, json!({ "name": "usual" }));
    let inquiry = |key: &str| {
        let options = client::Options {
            credential: Credential::read(key.to_owned()).unwrap(),
            security: Security::Tls(Tls::new(&files, None).unwrap()),
            connect_timeout: PATIENCE,
            ..client::Options::named("asks")
        };
        Inquiry::open(&address, &options).unwrap()
    };
    let create = json!({ "op": "create", "name": "made from afar" }).to_string();
    let refused = inquiry(&usual_key).ask(QueryKind::Keys, &create, PATIENCE).unwrap_err();
    assert!(refused.to_string().contains("FORBIDDEN"), "{refused}");
    let made: Value =
        serde_json::from_slice(&inquiry(&admin_key).ask(QueryKind::Keys, &create, PATIENCE).unwrap()).unwrap();
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert!(native(daemon.stream(), "ann", "api_key", key).welcomed());
    // What lives for minutes may look, and take back, but not make what lives longer.
    let minted = daemon.ask(QueryKind::Keys, &json!({ "op": "token", "id": admin }));
    let token = minted["token"].as_str().unwrap();
    for op in ["create", "rotate", "token"] {
        let refused = inquiry(token).ask(QueryKind::Keys, &json!({ "op": op }).to_string(), PATIENCE).unwrap_err();
        assert!(refused.to_string().contains("an access token may not"), "{op}: {refused}");
    }
    assert!(inquiry(token).ask(QueryKind::Keys, &json!({ "op": "list" }).to_string(), PATIENCE).is_ok());
    let by = format!("key:{admin}");
    assert_eq!(listed(&daemon, id)["createdBy"], by);
    daemon.signal(Signal::HUP);
    let changes = |daemon: &Daemon| -> Vec<Value> {
        let of_settings = |event: &Value| event["event_type"] == "settings.updated";
        events(daemon.directory.path()).into_iter().filter(of_settings).collect()
    };
    daemon.until("new certificates are written down", |daemon| !changes(daemon).is_empty());
    assert_eq!(changes(&daemon)[0]["meta"]["changed"], json!(["tls"]));
    let all = events(daemon.directory.path());
    let users: Vec<&Value> =
        all.iter().filter(|event| event["target_id"] == id).map(|event| &event["username"]).collect();
    // Who made it, and then it came by itself.
    assert_eq!(users, [&json!(by), &json!(format!("key:{id}"))]);
}
