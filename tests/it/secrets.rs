//! Secrets that are planted wherever the relay takes one, and looked for wherever it writes, answers or shows itself.

use crate::evaluation;
use crate::harness::{Daemon, EPOLL_TWO, Setup, URING_TWO, available};
use crate::peers::{JsonPeer, NativePeer, json_frame};
use agent_relay::base::Sequence;
use agent_relay::base::tier::Tier;
use agent_relay::wire::{CAPABILITIES, Frame, Hello, QueryKind, Secret, Wants};
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A secret, and what it is called where it is found.
struct Planted {
    what: &'static str,
    bytes: Vec<u8>,
}

fn planted(what: &'static str, text: &str) -> Planted {
    assert!(text.len() >= 16, "{what} would be found by chance");
    Planted { what, bytes: text.as_bytes().to_vec() }
}

fn look(secrets: &[Planted], place: &str, bytes: &[u8]) {
    for secret in secrets {
        let found = bytes.windows(secret.bytes.len()).any(|window| window == secret.bytes);
        assert!(!found, "{place} shows {}", secret.what);
    }
}

/// Every file below `folder`, but those that hold a secret on purpose.
fn look_in(secrets: &[Planted], folder: &Path, but: &[&Path]) -> usize {
    let mut looked_at = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            looked_at += look_in(secrets, &path, but);
        } else if kind.is_file() && !but.contains(&path.as_path()) {
            look(secrets, &path.display().to_string(), &std::fs::read(&path).unwrap());
            looked_at += 1;
        }
    }
    looked_at
}

fn keys(daemon: &Daemon, arguments: &Value) -> Value {
    daemon.ask(QueryKind::Keys, arguments)
}

/// A HELLO with a credential; gives the peer and whether it is welcome.
fn present(daemon: &Daemon, name: &str, credential: &str) -> Option<NativePeer> {
    let mut peer = NativePeer::bare(daemon.stream(), name);
    peer.say(&Frame::Hello(Box::new(Hello {
        claimed_name: name.as_bytes().into(),
        capabilities: CAPABILITIES,
        auth_type: "api_key".into(),
        credential: Secret::new(credential),
        ..Hello::default()
    })));
    peer.welcomed().then_some(peer)
}

#[test]
fn no_planted_secret_is_found_in_logs_store_answers_or_the_process_itself() {
    let directory = tempfile::Builder::new().prefix("relay-it").tempdir().unwrap();
    let path = |file: &str| directory.path().join(file);
    let database_key = agent_relay::store::Key::generate().unwrap().to_text();
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let private_key = certificate.signing_key.serialize_pem();
    std::fs::write(path("db.key"), database_key.as_str()).unwrap();
    std::fs::write(path("tls.pem"), certificate.cert.pem()).unwrap();
    std::fs::write(path("tls.key"), &private_key).unwrap();
    let licence = evaluation::licence(Tier::Enterprise);
    let (database_key_file, tls_key_file) = (path("db.key"), path("tls.key"));
    let text = |path: &Path| path.display().to_string();
    let arguments = vec![
        "--log".into(),
        "trace".into(),
        "--require-auth".into(),
        "--db-key".into(),
        text(&database_key_file),
        "--tls-cert".into(),
        text(&path("tls.pem")),
        "--tls-key".into(),
        text(&tls_key_file),
    ];
    let setup = Setup { directory: Some(directory), arguments, ..Setup::new(URING_TWO) };
    // The harness hands over a licence of its own: ours is the one that is looked for.
    let daemon = setup.shell(&format!("export {}={licence}", evaluation::VARIABLE)).start();

    let made = keys(&daemon, &json!({ "op": "create", "name": "planted" }));
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    let rotated = keys(&daemon, &json!({ "op": "rotate", "id": id, "overlap_ms": 60_000 }));
    let fresh = rotated["key"].as_str().unwrap();
    let minted = keys(&daemon, &json!({ "op": "token", "id": id }));
    let token = minted["token"].as_str().unwrap();
    let wrong = format!("ar_key_{}", "planted-but-wrong-credential-000");

    let mut ann = present(&daemon, "ann", key).expect("the secret before the rotation is good for a while");
    assert!(present(&daemon, "ann2", fresh).is_some() && present(&daemon, "eve", &wrong).is_none());
    ann.send("bob", "to somebody unknown", Wants::default());
    ann.send("ann2", "to somebody away", Wants::DURABLE);
    let mut jay = JsonPeer::bare(daemon.stream(), "Jay");
    jay.say(&json!({
        "v": 1, "type": "HELLO", "id": "hello", "ts": 1,
        "payload": { "agent": "Jay", "auth": { "type": "token", "credential": token } },
    }));
    let welcome = jay.hear_kind("WELCOME");
    let resume = welcome["payload"]["resume_token"].as_str().unwrap();
    jay.barrier();
    let key_line = private_key.lines().nth(1).unwrap();
    let secrets = [
        planted("the API key", key),
        planted("the rotated API key", fresh),
        planted("a wrong API key", &wrong),
        planted("the access token", token),
        planted("the licence", &licence),
        planted("the storage key", &database_key),
        planted("the TLS private key", key_line),
        planted("the resume token", resume),
    ];

    // What it answers.
    for (kind, arguments) in [
        (QueryKind::Status, json!({ "verbose": true })),
        (QueryKind::Agents, json!({ "all": true })),
        (QueryKind::History, json!({})),
        (QueryKind::Keys, json!({ "op": "list", "all": true })),
        (QueryKind::License, json!({ "op": "show" })),
    ] {
        look(&secrets, &format!("{kind:?}"), daemon.ask(kind, &arguments).to_string().as_bytes());
    }
    let shown = daemon.run(&["config", "--global", "--json"]);
    look(&secrets, "relay config", &shown.stdout);
    // What it shows of itself to its own user. (Root may read everything: then its environment is not looked at.)
    let process = |file: &str| std::fs::read(format!("/proc/{}/{file}", daemon.pid()));
    look(&secrets, "the process list", &process("cmdline").unwrap());
    if !rustix::process::getuid().is_root() {
        assert!(process("environ").is_err(), "its environment can be read");
    }
    let limits = String::from_utf8(process("limits").unwrap()).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");

    // What it leaves behind, killed.
    let said = daemon.said();
    assert!(said.contains("TRACE") || said.contains("DEBUG") || said.contains("INFO"), "{said}");
    let directory = daemon.crash();
    look(&secrets, "the log", said.as_bytes());
    assert!(
        look_in(&secrets, directory.path(), &[&database_key_file, &tls_key_file]) >= 3,
        "store, settings, presence"
    );
}

#[test]
fn a_plain_store_keeps_no_secret_but_its_hash() {
    let daemon = Setup::new(URING_TWO).argument("--require-auth").start();
    let made = keys(&daemon, &json!({ "op": "create", "name": "planted" }));
    let key = made["key"].as_str().unwrap();
    let mut ann = present(&daemon, "ann", key).unwrap();
    ann.send("ann", "to myself", Wants::DURABLE);
    ann.hear();
    let directory = daemon.crash();
    look_in(&[planted("the API key", key)], directory.path(), &[]);
    // The test can find something: the prefix is kept, to be shown.
    let store = directory.path().join("store");
    let prefix = &key.as_bytes()[..15];
    let kept = std::fs::read_dir(&store).unwrap().any(|file| {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        bytes.windows(prefix.len()).any(|window| window == prefix)
    });
    assert!(kept);
}

#[test]
fn the_first_frame_behind_a_refused_hello_is_not_read() {
    let daemon = Setup::new(URING_TWO).argument("--require-auth").start();
    let (mut eve, _) = NativePeer::hello(daemon.stream(), "eve", None, Sequence::default());
    let send = eve.encode("ann", "in", Wants::default());
    // It may be closed by now.
    let _ = std::io::Write::write_all(&mut eve.stream, &send);
    eve.rest();
    assert_eq!(daemon.status()["messages"]["in"], 0);
}

/// Where in the memory of this process, and behind which bytes, a secret lies; none when the kernel does not let us look.
fn places_in_memory(pid: u32, secret: &[u8]) -> Option<Vec<String>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut places = Vec::new();
    let mut could_read = false;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        // In pieces that overlap by a secret; an address space that was only reserved is not memory.
        let mut piece = vec![0; 1 << 20];
        let mut at = from;
        while at < to {
            let length = piece.len().min((to - at) as usize);
            if memory.read_exact_at(&mut piece[..length], at).is_err() {
                break;
            }
            could_read = true;
            for index in memchr_all(&piece[..length], secret) {
                places.push(format!("{:x} {line}", at + index as u64));
            }
            at += (length - secret.len().min(length - 1)) as u64;
            if at + secret.len() as u64 >= to {
                break;
            }
        }
    }
    could_read.then_some(places)
}

fn memchr_all(bytes: &[u8], secret: &[u8]) -> Vec<usize> {
    let first = secret[0];
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == first).map(|(index, _)| index);
    starts.filter(|index| bytes[*index..].starts_with(secret)).collect()
}

#[test]
fn an_api_key_does_not_stay_in_memory_when_its_connection_has_ended() {
    for way in [URING_TWO, EPOLL_TWO].into_iter().filter(|way| available(*way)) {
        let daemon = Setup::new(way).argument("--require-auth").start();
        let made: Vec<String> = (0..2)
            .map(|_| keys(&daemon, &json!({ "op": "create", "name": "planted" }))["key"].as_str().unwrap().to_owned())
            .collect();
        // Making a key puts it into an answer: the process that is looked into has made none.
        let again = Setup { directory: Some(daemon.crash()), ..Setup::new(way) };
        let daemon = again.argument("--require-auth").start();
        let ann = present(&daemon, "ann", &made[0]).unwrap();
        let mut jay = JsonPeer::bare(daemon.stream(), "Jay");
        let hello = json!({
            "v": 1, "type": "HELLO", "id": "hello", "ts": 1,
            "payload": { "agent": "Jay", "auth": { "type": "api_key", "credential": made[1] } },
        });
        // In pieces, so that it is put together in the relay.
        let frame = json_frame(&hello.to_string());
        for piece in frame.chunks(40) {
            jay.stream.write_all(piece).unwrap();
            // What has arrived is read before the next comes.
            daemon.status();
        }
        jay.hear_kind("WELCOME");
        drop((ann, jay));
        daemon.until_away("ann");
        daemon.until_away("Jay");
        // Somebody else, who gives the threads something else to do.
        let other = format!("ar_key_{}", "planted-but-wrong-credential-000");
        for _ in 0..8 {
            assert!(present(&daemon, "eve", &other).is_none());
        }
        for (dialect, key) in ["native", "JSON"].iter().zip(&made) {
            // The name of its prefix is kept to be shown; what follows is the secret.
            match places_in_memory(daemon.pid(), &key.as_bytes()[15..]) {
                None => return eprintln!("SKIP: this user may not look into the memory of another process"),
                Some(places) => assert!(places.is_empty(), "{way:?}, {dialect}: {places:#?}"),
            }
        }
        // The test can find something.
        let known = places_in_memory(daemon.pid(), &made[0].as_bytes()[..15]).unwrap();
        assert!(!known.is_empty(), "the prefix of a key is kept");
    }
}
