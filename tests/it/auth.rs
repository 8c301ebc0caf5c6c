//! The auth matrix: every credential on both wires, over the Unix socket and over TCP with TLS, with the exact code, text
//! and fatal flag of what is said, and what happens to the connection.

use crate::certificates::{Authority, Wanted};
use crate::harness::{Daemon, Setup, every_way};
use crate::peers::{JsonPeer, NativePeer, Owned};
use crate::tunnel;
use agent_relay::base::keys::{ApiKey, KeyId, KeyRing};
use agent_relay::store::{Options, Store};
use agent_relay::tls::{ClientFiles, Connector};
use agent_relay::wire::{CAPABILITIES, Frame, Hello, QueryKind, Secret, Wants};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

/// What becomes of a HELLO.
#[derive(Clone, Debug)]
enum Expected {
    /// This ERROR, fatal; BYE; the end.
    Refused(&'static str, String),
    /// WELCOME; sends, and receives.
    Good,
    /// WELCOME; a SEND gets an ERROR that is not fatal.
    NoSend,
    /// WELCOME; what is sent to it stays owed.
    NoReceive,
}

struct Row {
    /// What it shows, and the agent's name.
    what: &'static str,
    kind: &'static str,
    credential: String,
    expected: Expected,
}

/// Says HELLO in the native dialect.
pub(crate) fn native(stream: UnixStream, name: &str, kind: &str, credential: &str) -> NativePeer {
    let mut peer = NativePeer::bare(stream, name);
    let hello = Hello {
        claimed_name: name.as_bytes().to_vec().into(),
        capabilities: CAPABILITIES,
        auth_type: kind.to_owned().into(),
        credential: Secret::new(credential.to_owned()),
        ..Hello::default()
    };
    peer.say(&Frame::Hello(Box::new(hello)));
    peer
}

/// Says HELLO in JSON; without a kind it presents nothing.
pub(crate) fn in_json(stream: UnixStream, name: &str, kind: &str, credential: &str) -> JsonPeer {
    let mut peer = JsonPeer::bare(stream, name);
    let mut hello = json!({
        "v": 1, "type": "HELLO", "id": "hello", "ts": 1,
        "payload": { "agent": name, "capabilities": { "ack": true, "resume": true, "max_inflight": 256 } },
    });
    if !kind.is_empty() {
        hello["payload"]["auth"] = json!({ "type": kind, "credential": credential });
    }
    peer.say(&hello);
    peer
}

pub(crate) fn make(daemon: &Daemon, mut arguments: Value) -> (String, String) {
    arguments["op"] = json!("create");
    let made = daemon.ask(QueryKind::Keys, &arguments);
    (made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned())
}

/// A token of this key whose time is over, signed with the daemon's own secret.
fn expired_token(daemon: &Daemon, id: &str) -> String {
    let store = Store::open(Options::new(daemon.directory.path().join("store"), None).reading()).unwrap();
    let mut found: Option<ApiKey> = None;
    let wanted = KeyId::parse(id).unwrap();
    let each = |key: ApiKey| {
        if key.id == wanted {
            found = Some(key);
        }
        ControlFlow::Continue(())
    };
    store.snapshot().unwrap().keys(each).unwrap();
    let ring = KeyRing::new(found, *store.secret(b"token").unwrap());
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    ring.mint(wanted, now_ms - 1).unwrap()
}

fn rows(daemon: &Daemon) -> Vec<Row> {
    let (id, good) = make(daemon, json!({ "name": "good" }));
    let (_, expired) = make(daemon, json!({ "name": "expired", "expires_ms": 1 }));
    let (gone, revoked) = make(daemon, json!({ "name": "revoked" }));
    daemon.ask(QueryKind::Keys, &json!({ "op": "revoke", "id": gone }));
    let (_, bound) = make(daemon, json!({ "name": "bound", "agents": ["somebody-else", "own-agent"] }));
    let (_, deaf) = make(daemon, json!({ "name": "deaf", "scopes": ["send"] }));
    let (_, mute) = make(daemon, json!({ "name": "mute", "scopes": ["receive"] }));
    let token = daemon.ask(QueryKind::Keys, &json!({ "op": "token", "id": id }));
    let token = token["token"].as_str().unwrap().to_owned();
    let mut forged = token.clone();
    let last = forged.pop().unwrap();
    forged.push(if last == '0' { '1' } else { '0' });
    let unauthorized = |text: &str| Expected::Refused("UNAUTHORIZED", text.to_owned());
    let unknown = || unauthorized("Invalid API key");
    let row = |what, kind, credential: &str, expected| Row { what, kind, credential: credential.to_owned(), expected };
    let foreign = "Agent name \"wrong-agent\" not allowed for this key".to_owned();
    vec![
        row("no-credential", "", "", unauthorized("Authentication required")),
        // Ten wrong ones, and no more: further ones of one source are answered later and later.
        row("empty", "api_key", "", unknown()),
        row("malformed", "api_key", "hello", unknown()),
        row("bad", "api_key", &format!("ar_key_{}", "x".repeat(32)), unknown()),
        row("prefix", "api_key", &good[..good.len() - 1], unknown()),
        row("trailing-space", "api_key", &format!("{good} "), unknown()),
        row("revoked", "api_key", &revoked, unknown()),
        row("expired", "api_key", &expired, unauthorized("API key expired")),
        row("unknown-type", "password", &good, unauthorized("Invalid credentials")),
        row("expired-token", "token", &expired_token(daemon, &id), unauthorized("Invalid credentials")),
        row("forged-token", "token", &forged, unauthorized("Invalid credentials")),
        row("wrong-agent", "api_key", &bound, Expected::Refused("FORBIDDEN", foreign)),
        row("own-agent", "api_key", &bound, Expected::Good),
        row("no-send", "api_key", &mute, Expected::NoSend),
        row("no-receive", "api_key", &deaf, Expected::NoReceive),
        row("good-key", "api_key", &good, Expected::Good),
        row("good-token", "token", &token, Expected::Good),
    ]
}

const NO_SEND: &str = "This credential may not send messages";

fn try_native(row: &Row, mut peer: NativePeer, owed: impl FnOnce(&str)) {
    let first = peer.hear().unwrap_or_else(|| panic!("{}: closed without a word", row.what)).frame;
    if let Expected::Refused(wanted, text) = &row.expected {
        let Owned::Error { code, fatal, message, .. } = first else { panic!("{}: {first:?}", row.what) };
        assert_eq!((code, &message, fatal), (*wanted, text, true), "{}", row.what);
        assert!(matches!(peer.rest()[..], [Owned::Bye]), "{}: BYE, and the end", row.what);
        return;
    }
    assert!(matches!(first, Owned::Welcome(_)), "{}: {first:?}", row.what);
    match row.expected {
        Expected::NoSend => {
            let number = peer.send(row.what, "not sent", Wants::ACCEPTED);
            let heard = peer.hear().unwrap().frame;
            let Owned::Error { code, fatal, message, number: of, outcome } = heard else { panic!("{heard:?}") };
            assert_eq!((code, &*message, fatal, of), ("FORBIDDEN", NO_SEND, false, number));
            assert_eq!(outcome, Some("forbidden"));
            assert!(peer.barrier().is_empty(), "it stays connected");
        }
        Expected::NoReceive => {
            owed(row.what);
            let before = peer.barrier();
            assert!(before.is_empty(), "{before:?}");
        }
        _ => {
            peer.send(row.what, "to myself", Wants::default());
            assert_eq!(peer.delivery().1, "to myself");
        }
    }
}

fn try_json(row: &Row, mut peer: JsonPeer, owed: impl FnOnce(&str)) {
    let error = |heard: &Value, code: &str, text: &str, fatal: bool| {
        let payload = &heard["payload"];
        let said = (payload["code"].as_str(), payload["message"].as_str(), payload["fatal"].as_bool());
        assert_eq!(said, (Some(code), Some(text), Some(fatal)), "{}: {heard}", row.what);
    };
    if let Expected::Refused(code, text) = &row.expected {
        error(&peer.hear_kind("ERROR"), code, text, true);
        peer.hear_kind("BYE");
        assert!(peer.hear().is_none(), "{}: it is closed", row.what);
        return;
    }
    peer.hear_kind("WELCOME");
    match row.expected {
        Expected::NoSend => {
            peer.send(row.what, "not sent");
            error(&peer.hear_kind("ERROR"), "FORBIDDEN", NO_SEND, false);
            assert!(peer.barrier().is_empty(), "it stays connected");
        }
        Expected::NoReceive => {
            owed(row.what);
            let before = peer.barrier();
            assert!(before.is_empty(), "{before:?}");
        }
        _ => {
            peer.send(row.what, "to myself");
            assert_eq!(peer.body(), "to myself");
        }
    }
}

/// Sends to an agent that is connected and may not receive; its home has the message when this returns.
fn send_to_the_deaf(daemon: &Daemon, good: &Row, to: &str) {
    let mut peer = native(daemon.stream(), "sender", good.kind, &good.credential);
    assert!(peer.welcomed());
    peer.send(to, "kept for later", Wants::ACCEPTED);
    let heard = peer.hear().unwrap().frame;
    assert!(matches!(heard, Owned::Receipts(_)), "{heard:?}");
    assert_eq!(daemon.agent(to).unwrap()["waiting"], 1);
}

#[test]
fn the_auth_matrix() {
    let papers = tempfile::tempdir().unwrap();
    let authority = Authority::new(papers.path(), "authority");
    let pair = authority.issue(papers.path(), &Wanted::named("relay"));
    let files = ClientFiles { ca: Some(authority.file.clone()), ..ClientFiles::default() };
    let connector = Connector::new(&files).unwrap();
    every_way(|way| {
        for over_tls in [false, true] {
            for json in [false, true] {
                // A daemon of its own for each quarter: wrong credentials are counted by where they come from.
                let daemon = Setup::new(way).argument("--require-auth").tls(&pair).start();
                let address = daemon.status()["listen"][0].as_str().unwrap().to_owned();
                let connect = || match over_tls {
                    true => tunnel::open(&connector, "localhost", tunnel::tcp(&address), usize::MAX).0,
                    false => daemon.stream(),
                };
                let rows = rows(&daemon);
                let good = rows.iter().find(|row| row.what == "good-key").unwrap();
                for row in &rows {
                    let owed = |to: &str| send_to_the_deaf(&daemon, good, to);
                    if json {
                        try_json(row, in_json(connect(), row.what, row.kind, &row.credential), owed);
                    } else {
                        try_native(row, native(connect(), row.what, row.kind, &row.credential), owed);
                    }
                }
                // What could not be delivered is there for whoever may receive it.
                daemon.until_away("no-receive");
                let mut later = native(daemon.stream(), "no-receive", good.kind, &good.credential);
                assert!(later.welcomed());
                assert_eq!(later.delivery().1, "kept for later");
                let status = daemon.status();
                let refused = rows.iter().filter(|row| matches!(row.expected, Expected::Refused("UNAUTHORIZED", _)));
                assert_eq!(status["closes"]["unauthorized"], refused.count());
                assert_eq!(status["closes"]["forbidden"], 1);
            }
        }
    });
}

#[test]
fn without_require_auth_a_presented_credential_is_checked_all_the_same() {
    every_way(|way| {
        let daemon = Setup::new(way).start();
        daemon.native("ann");
        let (_, good) = make(&daemon, json!({ "name": "good" }));
        assert!(native(daemon.stream(), "bob", "api_key", &good).welcomed());
        assert!(!native(daemon.stream(), "cat", "api_key", "ar_key_wrong").welcomed());
        let mut dan = in_json(daemon.stream(), "Dan", "token", "ar_tok_wrong");
        assert_eq!(dan.hear_kind("ERROR")["payload"]["message"], "Invalid credentials");
    });
}
