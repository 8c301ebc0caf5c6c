//! TLS on the real daemon: who talks to whom, who is refused, and how; with links of ours and with openssl's client.

use crate::certificates::{Authority, Pair, Wanted};
use crate::harness::{Daemon, EPOLL_TWO, PATIENCE, Setup, URING_TWO, Way, available, every_way};
use crate::peers::{JsonPeer, NativePeer, Owned, json_frame};
use crate::tunnel::{self, Fate};
use agent_relay::base::Sequence;
use agent_relay::tls::{ClientFiles, Connector, LinkError};
use agent_relay::wire::Wants;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Certificates, and a daemon that shows one of them.
struct Secure {
    folder: TempDir,
    authority: Authority,
    relay: Pair,
}

impl Secure {
    fn new() -> Secure {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        let relay = authority.issue(folder.path(), &Wanted::named("relay"));
        Secure { folder, authority, relay }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn setup(&self, way: Way) -> Setup {
        Setup::new(way).tls(&self.relay)
    }

    fn asking(&self, way: Way) -> Setup {
        self.setup(way).argument("--tls-ca").argument(self.authority.file.to_str().unwrap())
    }

    fn connector(&self) -> Connector {
        Connector::new(&ClientFiles { ca: Some(self.authority.file.clone()), cert: None, key: None }).unwrap()
    }

    fn showing(&self, pair: &Pair) -> Connector {
        let (cert, key) = (Some(pair.cert.clone()), Some(pair.key.clone()));
        Connector::new(&ClientFiles { ca: Some(self.authority.file.clone()), cert, key }).unwrap()
    }
}

/// A stream to the daemon's TCP port, through TLS.
fn over_tcp(daemon: &Daemon, connector: &Connector) -> UnixStream {
    tunnel::open(connector, "127.0.0.1", tunnel::tcp(&daemon.tcp()), usize::MAX).0
}

/// The handshake fails, or the connection ends before anything is said; why, as the client sees it.
fn refused(daemon: &Daemon, connector: &Connector) -> Option<LinkError> {
    let (mut stream, fate): (UnixStream, Fate) =
        tunnel::open(connector, "127.0.0.1", tunnel::tcp(&daemon.tcp()), usize::MAX);
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    assert!(said.is_empty());
    fate.error()
}

fn closes(daemon: &Daemon, reason: &str) -> u64 {
    daemon.status()["closes"][reason].as_u64().unwrap_or(0)
}

#[test]
fn agents_over_tls_and_plain_owners_talk_to_each_other() {
    every_way(|way| {
        let secure = Secure::new();
        let daemon = secure.setup(way).start();
        let connector = secure.connector();
        let socket = |slice| tunnel::open(&connector, "localhost", daemon.stream(), slice).0;
        let mut plain = daemon.native("plain");
        let mut native = NativePeer::connect(over_tcp(&daemon, &connector), "native");
        let mut json = JsonPeer::connect(over_tcp(&daemon, &connector), "json");
        let mut inside = JsonPeer::connect(socket(usize::MAX), "inside");
        // Whoever sends a byte at a time is understood, too.
        let mut sliced = NativePeer::connect(socket(1), "sliced");
        for round in 0..100 {
            let text = format!("round {round}");
            plain.send("native", &text, Wants::default());
            let (heard, said) = native.delivery();
            assert_eq!(said, text);
            native.acknowledge(heard.header.sequence);
            native.send("json", &text, Wants::default());
            assert_eq!(json.body(), text);
            json.send("inside", &text);
            assert_eq!(inside.body(), text);
            inside.send("sliced", &text);
            let (heard, said) = sliced.delivery();
            assert_eq!(said, text);
            sliced.acknowledge(heard.header.sequence);
            sliced.send("plain", &text, Wants::default());
            let (heard, said) = plain.delivery();
            assert_eq!(said, text);
            plain.acknowledge(heard.header.sequence);
        }
        // And the largest there are, which leave by vectored send where there is no TLS.
        let large = "m".repeat(1_000_000);
        for _ in 0..5 {
            plain.send("native", &large, Wants::default());
            native.send("json", &large, Wants::default());
            assert!(json.body() == large);
            let (heard, said) = native.delivery();
            assert!(said == large);
            native.acknowledge(heard.header.sequence);
            json.send("plain", &large);
            let (heard, said) = plain.delivery();
            assert!(said == large);
            plain.acknowledge(heard.header.sequence);
        }
    });
}

#[test]
fn what_is_said_behind_hello_in_one_breath_moves_home_with_the_connection() {
    every_way(|way| {
        let secure = Secure::new();
        let daemon = secure.setup(way).start();
        let connector = secure.connector();
        let mut sink = daemon.json("sink");
        for index in 0..20 {
            // Whatever the name, its home is here or there; everything is in the socket before any of it is read.
            let mut stream = over_tcp(&daemon, &connector);
            let name = format!("agent-{index}");
            let hello = format!(
                r#"{{"v":1,"type":"HELLO","id":"h","ts":1,"payload":{{"agent":"{name}","cli":"t","capabilities":{{"ack":true,"resume":true,"max_inflight":256,"supports_topics":true}}}}}}"#
            );
            let mut said = json_frame(&hello);
            for number in 0..200 {
                let send = format!(
                    r#"{{"v":1,"type":"SEND","id":"{name}-{number}","ts":1,"to":"sink","payload":{{"kind":"message","body":"{name} {number}"}}}}"#
                );
                said.extend_from_slice(&json_frame(&send));
            }
            stream.write_all(&said).unwrap();
            for number in 0..200 {
                assert_eq!(sink.body(), format!("{name} {number}"));
            }
            drop(stream);
        }
    });
}

#[test]
fn a_session_is_resumed_over_tls_with_all_that_is_owed() {
    every_way(|way| {
        let secure = Secure::new();
        let daemon = secure.setup(way).start();
        let connector = secure.connector();
        let mut ann = daemon.native("ann");
        let bob = NativePeer::connect(over_tcp(&daemon, &connector), "bob");
        let token = bob.welcome.resume;
        drop(bob);
        daemon.until_away("bob");
        for number in 0..10 {
            ann.send("bob", &format!("{number}"), Wants::default());
        }
        let (stream, fate) = tunnel::open(&connector, "127.0.0.1", tunnel::tcp(&daemon.tcp()), usize::MAX);
        let (mut bob, _) = NativePeer::resume(stream, "bob", token, Sequence::default());
        assert!(bob.welcome.resumed && fate.is_resumed(), "both sessions are");
        for number in 0..10 {
            assert_eq!(bob.delivery().1, number.to_string());
        }
    });
}

#[test]
fn who_does_not_speak_tls_where_it_is_required_is_told_so_in_its_own_dialect() {
    every_way(|way| {
        let secure = Secure::new();
        let daemon = secure.setup(way).start();
        let (_, heard) = NativePeer::hello(tunnel::tcp(&daemon.tcp()), "native", None, Sequence::default());
        let Owned::Error { code, fatal, message, .. } = heard.frame else { panic!("{heard:?}") };
        assert_eq!((code, fatal, &*message), ("BAD_REQUEST", true, "This relay speaks TLS here; connect with TLS"));
        let mut json = JsonPeer::bare(tunnel::tcp(&daemon.tcp()), "json");
        json.hello(None);
        let error = json.hear().unwrap();
        assert_eq!(error["payload"]["message"], "This relay speaks TLS here; connect with TLS");
        assert!(error["payload"]["fatal"].as_bool().unwrap());
        json.rest();
        // Something that is neither.
        let mut noise = tunnel::tcp(&daemon.tcp());
        noise.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(noise.read(&mut [0; 100]).unwrap_or(0), 0);
        daemon.until("they are counted", |daemon| closes(daemon, "tls_required") == 2);
        // The owner on the Unix socket may stay plain.
        daemon.native("owner");
    });
}

#[test]
fn tls_where_it_is_off_is_closed_at_once() {
    every_way(|way| {
        let secure = Secure::new();
        let daemon = Setup::new(way).argument("--listen").argument("127.0.0.1:0").start();
        assert_eq!(refused(&daemon, &secure.connector()), None);
        daemon.until("it is counted", |daemon| closes(daemon, "tls_off") == 1);
        NativePeer::connect(tunnel::tcp(&daemon.tcp()), "plain");
    });
}

#[test]
fn a_client_certificate_is_required_and_only_a_good_one_will_do() {
    every_way(|way| {
        let secure = Secure::new();
        let daemon = secure.asking(way).argument("--tls-mutual").start();
        let issue = |wanted: Wanted<'_>| secure.authority.issue(secure.path(), &wanted);
        let good = issue(Wanted::named("good"));
        let expired = issue(Wanted { expired: true, ..Wanted::named("expired") });
        let strangers = Authority::new(secure.path(), "strangers");
        let stranger = strangers.issue(secure.path(), &Wanted::named("stranger"));
        NativePeer::connect(over_tcp(&daemon, &secure.showing(&good)), "good");
        let alert =
            |connector: Connector| refused(&daemon, &connector).map(|error| error.to_string()).unwrap_or_default();
        assert!(alert(secure.connector()).contains("requires a client certificate"));
        assert!(alert(secure.showing(&expired)).contains("our certificate has expired"));
        assert!(alert(secure.showing(&stranger)).contains("does not believe the authority"));
        // A client that does not believe the relay.
        let other = ClientFiles { ca: Some(strangers.file.clone()), cert: None, key: None };
        assert_eq!(refused(&daemon, &Connector::new(&other).unwrap()), Some(LinkError::Untrusted));
        let (mut stream, fate) =
            tunnel::open(&secure.showing(&good), "relay.example.org", tunnel::tcp(&daemon.tcp()), usize::MAX);
        let _ = stream.read(&mut [0]);
        assert!(matches!(fate.error(), Some(LinkError::WrongName(_))), "{:?}", fate.error());
        daemon.until("they are counted", |daemon| closes(daemon, "tls_handshake") == 5);
    });
}

#[test]
fn a_hangup_signal_changes_the_certificate_for_those_who_come_and_disturbs_nobody() {
    every_way(|way| {
        let secure = Secure::new();
        let daemon = secure.setup(way).start();
        let before = secure.connector();
        let mut ann = NativePeer::connect(over_tcp(&daemon, &before), "ann");
        let mut bob = NativePeer::connect(over_tcp(&daemon, &before), "bob");
        // What does not load changes nothing.
        std::fs::write(&secure.relay.key, "nothing that is a key").unwrap();
        daemon.signal(Signal::HUP);
        daemon.until("it complains", |daemon| daemon.said().contains("stay in use"));
        NativePeer::connect(over_tcp(&daemon, &before), "cid");
        let successors = Authority::new(secure.path(), "successors");
        successors.issue(secure.path(), &Wanted::named("relay"));
        daemon.signal(Signal::HUP);
        daemon.until("it says so", |daemon| daemon.said().contains("as they are now"));
        let files = ClientFiles { ca: Some(successors.file.clone()), cert: None, key: None };
        let after = Connector::new(&files).unwrap();
        // Each shard takes it in its next turn.
        daemon.until("it is shown", |daemon| {
            let (mut stream, fate) = tunnel::open(&after, "127.0.0.1", tunnel::tcp(&daemon.tcp()), usize::MAX);
            let mut json = JsonPeer::bare(stream.try_clone().unwrap(), "dan");
            json.hello(None);
            let heard = stream.read(&mut [0; 1]).unwrap_or(0);
            heard == 1 && fate.error().is_none()
        });
        ann.send("bob", "still here", Wants::default());
        assert_eq!(bob.delivery().1, "still here");
    });
}

#[test]
fn a_thousand_half_open_handshakes_hold_nobody_up() {
    for way in [URING_TWO, EPOLL_TWO].into_iter().filter(|way| available(*way)) {
        let secure = Secure::new();
        let daemon = secure.setup(way).shell("ulimit -n 4096").start();
        let connector = secure.connector();
        let mut ann = NativePeer::connect(over_tcp(&daemon, &connector), "ann");
        let mut bob = NativePeer::connect(over_tcp(&daemon, &connector), "bob");
        let (mut hello, mut heard) = (Vec::new(), Vec::new());
        connector.link("127.0.0.1").unwrap().feed(&[], &mut heard, &mut hello).unwrap();
        let address = daemon.tcp();
        let mut crowd: Vec<UnixStream> = (0..1_000).map(|_| tunnel::tcp(&address)).collect();
        // Each says one byte of its handshake after the other and never comes to the end; some leave, some say nonsense.
        for (round, byte) in hello.iter().enumerate().take(40) {
            for (index, one) in crowd.iter_mut().enumerate() {
                let byte = if index % 100 == 99 && round == 30 { !byte } else { *byte };
                let _ = one.write_all(&[byte]);
            }
            let text = format!("{round}");
            ann.send("bob", &text, Wants::default());
            let (heard, said) = bob.delivery();
            assert_eq!(said, text);
            bob.acknowledge(heard.header.sequence);
        }
        // All at once to the end of their ClientHello: each costs a signature.
        for one in &mut crowd {
            let _ = one.write_all(&hello[40..]);
        }
        for round in 0..200 {
            ann.send("bob", &format!("crowded {round}"), Wants::default());
            let (heard, said) = bob.delivery();
            assert_eq!(said, format!("crowded {round}"));
            bob.acknowledge(heard.header.sequence);
        }
        drop(crowd);
        daemon.until("they are gone", |daemon| daemon.status()["connections"]["half_open"].as_u64().unwrap_or(0) <= 1);
    }
}

/// What openssl's client says when it connects with these arguments and says nothing; none: there is no openssl.
fn openssl(daemon: &Daemon, secure: &Secure, arguments: &[&str]) -> Option<String> {
    openssl_says(daemon, secure, arguments, "")
}

/// The same, with a line of its commands.
fn openssl_says(daemon: &Daemon, secure: &Secure, arguments: &[&str], line: &str) -> Option<String> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &daemon.tcp(), "-CAfile"]).arg(&secure.authority.file).args(arguments);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    match child {
        Ok(mut child) => {
            child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            Some(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
        }
        Err(error) => {
            eprintln!("SKIPPED: no openssl here: {error}");
            None
        }
    }
}

#[test]
fn openssl_gets_1_2_and_1_3_with_good_suites_and_nothing_else() {
    every_way(|way| {
        let secure = Secure::new();
        let daemon = secure.setup(way).start();
        let says = |arguments: &[&str]| openssl(&daemon, &secure, arguments);
        let Some(text) = says(&["-tls1_3"]) else { return };
        assert!(text.contains("TLSv1.3") && text.contains("Verify return code: 0 (ok)"), "{text}");
        assert!(text.contains("TLS_AES_") && text.contains("X25519"), "{text}");
        for suite in ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"] {
            let text = says(&["-tls1_2", "-cipher", suite]).unwrap();
            assert!(
                text.contains(&format!("Cipher is {suite}")) && text.contains("Verify return code: 0 (ok)"),
                "{text}"
            );
        }
        let text = openssl_says(&daemon, &secure, &["-tls1_2"], "R\nR\nR\n").unwrap();
        assert!(text.contains("no renegotiation"), "{text}");
        for old in ["-tls1", "-tls1_1"] {
            let text = says(&[old, "-cipher", "ALL:@SECLEVEL=0"]).unwrap();
            assert!(text.contains("Cipher is (NONE)"), "{old}: {text}");
        }
        // SSL 3, which openssl itself no longer has: a ClientHello by hand.
        let mut ssl3 = vec![0x16, 3, 0, 0, 45, 1, 0, 0, 41, 3, 0];
        ssl3.extend_from_slice(&[7; 32]);
        ssl3.extend_from_slice(&[0, 0, 2, 0xc0, 0x2b, 1, 0]);
        let mut stream = tunnel::tcp(&daemon.tcp());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&ssl3).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer[0] == 0x15, "an alert or nothing: {answer:?}");
        for weak in
            ["AES128-SHA", "AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "DHE-RSA-AES128-GCM-SHA256", "NULL", "aNULL"]
        {
            let text = says(&["-tls1_2", "-cipher", &format!("{weak}:@SECLEVEL=0")]).unwrap();
            assert!(text.contains("Cipher is (NONE)") || text.contains("no cipher match"), "{weak}: {text}");
        }
    });
}

#[test]
fn openssl_resumes_and_shows_its_certificate() {
    every_way(|way| {
        let secure = Secure::new();
        let daemon = secure.asking(way).argument("--tls-mutual").start();
        let agent = secure.authority.issue(secure.path(), &Wanted::named("agent"));
        let expired = secure.authority.issue(secure.path(), &Wanted { expired: true, ..Wanted::named("old") });
        let shown = |pair: &Pair, more: &[&str]| {
            let (cert, key) = (pair.cert.to_str().unwrap().to_owned(), pair.key.to_str().unwrap().to_owned());
            let mut arguments = vec!["-cert", &cert, "-key", &key];
            arguments.extend_from_slice(more);
            openssl(&daemon, &secure, &arguments)
        };
        let Some(text) = shown(&agent, &["-tls1_2", "-reconnect"]) else { return };
        assert!(text.matches("Reused, TLSv1.2").count() >= 4, "{text}");
        let text = shown(&expired, &["-tls1_2"]).unwrap();
        assert!(text.contains("alert certificate expired"), "{text}");
        let text = openssl(&daemon, &secure, &["-tls1_2"]).unwrap();
        assert!(
            text.contains("alert") && text.contains("Cipher is (NONE)")
                || text.contains("alert certificate required")
                || text.contains("handshake failure"),
            "{text}"
        );
    });
}
