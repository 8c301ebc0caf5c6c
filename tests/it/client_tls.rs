//! Our client library and our command line against the real daemon over TLS, by TCP and by its socket.

use crate::certificates::{Authority, Pair, Wanted};
use crate::harness::{Daemon, EPOLL_TWO, PATIENCE, Setup, URING_ONE, Way, available, every_way};
use crate::peers::text;
use agent_relay::client::{Address, Client, ClientFiles, Error, Options, Outgoing, Reconnecting, Security, Tls};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use tempfile::TempDir;

/// An authority, and the relay's certificate of it.
struct Papers {
    folder: TempDir,
    authority: Authority,
    relay: Pair,
}

impl Papers {
    fn new() -> Papers {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        let relay = authority.issue(folder.path(), &Wanted::named("relay"));
        Papers { folder, authority, relay }
    }

    fn files(&self) -> ClientFiles {
        ClientFiles { ca: Some(self.authority.file.clone()), ..ClientFiles::default() }
    }

    fn ca(&self) -> &str {
        self.authority.file.to_str().unwrap()
    }
}

fn with_tls(way: Way, pair: &Pair) -> Setup {
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let setup = Setup::new(way).argument("--listen").argument("127.0.0.1:0");
    setup.argument("--tls-cert").argument(&path(&pair.cert)).argument("--tls-key").argument(&path(&pair.key))
}

fn port(daemon: &Daemon) -> Address {
    daemon.status()["listen"][0].as_str().unwrap().parse().unwrap()
}

fn options(name: &str, files: &ClientFiles, server_name: Option<&str>) -> Options {
    let tls = Tls::new(files, server_name.map(str::to_owned)).unwrap();
    Options { security: Security::Tls(tls), connect_timeout: PATIENCE, ..Options::named(name) }
}

/// The sentence with which connecting fails for good.
fn refused(address: &Address, options: &Options) -> String {
    match Client::connect(address, options) {
        Err(Error::Tls(sentence)) => sentence,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it is connected"),
    }
}

fn to<'a>(to: &'a str, text: &'a str) -> Outgoing<'a> {
    Outgoing { to, text: Some(text), ..Outgoing::default() }
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn clients_talk_over_tls_by_port_and_by_socket_whatever_the_length() {
    every_way(|way| {
        let papers = Papers::new();
        let daemon = with_tls(way, &papers.relay).start();
        let mut ann = Client::connect(&port(&daemon), &options("ann", &papers.files(), None)).unwrap();
        let mut bob = Client::connect(&daemon.address(), &options("bob", &papers.files(), None)).unwrap();
        let mut plain = daemon.client("plain");
        let long = "long → ".repeat(100_000);
        for body in ["", "hi", &long] {
            ann.send(&to("bob", body)).unwrap();
            assert!(text(&mut bob) == body);
            bob.send(&to("ann", body)).unwrap();
            assert!(text(&mut ann) == body);
            plain.send(&to("ann", body)).unwrap();
            assert!(text(&mut ann) == body);
        }
        // More than the sockets between them hold, before anybody reads.
        let body = "x".repeat(40_000);
        for _ in 0..200 {
            ann.queue(&to("bob", &body)).unwrap();
        }
        ann.flush().unwrap();
        (0..200).for_each(|_| assert_eq!(text(&mut bob).len(), 40_000));
        (ann.close().unwrap(), bob.close().unwrap());
    });
}

#[test]
fn whatever_is_wrong_between_two_certificates_is_a_sentence_that_says_what_to_do() {
    let papers = Papers::new();
    let daemon = with_tls(EPOLL_TWO, &papers.relay).start();
    let address = port(&daemon);
    let stranger = Authority::new(papers.folder.path(), "stranger");
    let files = ClientFiles { ca: Some(stranger.file.clone()), ..ClientFiles::default() };
    let sentence = refused(&address, &options("ann", &files, None));
    assert!(
        sentence.contains("is not signed by an authority of ") && sentence.contains("stranger.ca.pem"),
        "{sentence}"
    );
    let sentence = refused(&address, &options("ann", &papers.files(), Some("relay.example")));
    let wanted = ["\"relay.example\"", "localhost", "--server-name"];
    assert!(wanted.iter().all(|part| sentence.contains(part)), "{sentence}");
    // Without TLS where it is spoken: the library does not go on without.
    match Client::connect(&address, &Options { security: Security::Plain, ..Options::named("ann") }) {
        Err(error) => assert!(error.to_string().contains("--ca") || error.to_string().contains("TLS"), "{error}"),
        Ok(_) => panic!("it is connected"),
    }

    let old = papers.authority.issue(papers.folder.path(), &Wanted { expired: true, ..Wanted::named("old") });
    let expired = with_tls(EPOLL_TWO, &old).start();
    let sentence = refused(&port(&expired), &options("ann", &papers.files(), None));
    assert!(sentence.contains("has expired"), "{sentence}");

    let plain = Setup::new(EPOLL_TWO).argument("--listen").argument("127.0.0.1:0").start();
    for address in [port(&plain), plain.address()] {
        let Err(error) = Client::connect(&address, &options("ann", &papers.files(), None)) else { panic!() };
        let sentence = error.to_string();
        assert!(sentence.contains("does not speak TLS") && sentence.contains("--tls-cert"), "{sentence}");
    }
}

#[test]
fn a_relay_that_wants_a_client_certificate_says_so_and_is_shown_one() {
    for way in [URING_ONE, EPOLL_TWO].into_iter().filter(|way| available(*way)) {
        let papers = Papers::new();
        let setup = with_tls(way, &papers.relay).argument("--tls-ca").argument(papers.ca()).argument("--tls-mutual");
        let daemon = setup.start();
        let address = port(&daemon);
        let sentence = refused(&address, &options("ann", &papers.files(), None));
        assert!(sentence.contains("client certificate") && sentence.contains("--client-cert"), "{sentence}");
        let mine = papers.authority.issue(papers.folder.path(), &Wanted { hosts: &[], ..Wanted::named("ann") });
        let files = ClientFiles { cert: Some(mine.cert.clone()), key: Some(mine.key.clone()), ..papers.files() };
        let mut ann = Client::connect(&address, &options("ann", &files, None)).unwrap();
        ann.send(&to("ann", "to myself")).unwrap();
        assert_eq!(text(&mut ann), "to myself");
        let (address, cert, key) = (address.to_string(), mine.cert.to_str().unwrap(), mine.key.to_str().unwrap());
        let tls = ["--connect", &address, "--ca", papers.ca(), "--client-cert", cert, "--client-key", key];
        let sent = daemon.run(&[&["send", "--from", "shell", "--to", "ann", "from a shell"], &tls[..]].concat());
        assert_eq!(sent.status.code(), Some(0), "{}", said(&sent));
        assert_eq!(text(&mut ann), "from a shell");
        let sent = daemon.run(&[&["send", "--from", "shell", "--to", "ann", "x"], &tls[..4]].concat());
        assert_eq!(sent.status.code(), Some(1));
        assert!(said(&sent).contains("--client-cert"), "{}", said(&sent));
    }
}

#[test]
fn a_session_goes_on_over_tls_after_the_daemon_was_killed() {
    every_way(|way| {
        let papers = Papers::new();
        let daemon = with_tls(way, &papers.relay).start();
        let address = daemon.address();
        let mut ann = Reconnecting::connect(&address, &options("ann", &papers.files(), None)).unwrap();
        let mut bob = Reconnecting::connect(&address, &options("bob", &papers.files(), None)).unwrap();
        let wants = agent_relay::wire::Wants::DURABLE;
        let next = |client: &mut Reconnecting| loop {
            if let Some(agent_relay::client::Incoming::Message(message)) = client.next(PATIENCE).unwrap() {
                break message.text().into_owned();
            }
        };
        ann.send(&Outgoing { wants, ..to("bob", "before") }).unwrap();
        while ann.pending() > 0 {
            ann.next(PATIENCE).unwrap();
        }
        assert_eq!(next(&mut bob), "before");
        bob.handled().unwrap();
        let directory = daemon.crash();
        ann.send(&Outgoing { wants, ..to("bob", "meanwhile") }).unwrap();
        let daemon = Setup { directory: Some(directory), ..with_tls(way, &papers.relay) }.start();
        // Each goes on when it looks.
        while ann.pending() > 0 {
            ann.next(PATIENCE).unwrap();
        }
        assert_eq!(next(&mut bob), "meanwhile");
        assert!(ann.connections() == 2 && bob.connections() == 2);
        drop(daemon);
    });
}

/// A daemon that wants to know who everybody is, and a key of the owner's making.
fn guarded(papers: &Papers) -> (Daemon, String) {
    let daemon = with_tls(EPOLL_TWO, &papers.relay).argument("--require-auth").start();
    let made = daemon.run(&["keys", "create", "--global", "--name", "shell", "--scopes", "send,receive,admin"]);
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    assert!(key.starts_with("ar_key_"), "{key}");
    (daemon, key)
}

#[test]
fn a_shell_elsewhere_asks_sends_listens_and_stops_with_a_key() {
    let papers = Papers::new();
    let (mut daemon, key) = guarded(&papers);
    let address = port(&daemon).to_string();
    let there = ["--connect", address.as_str(), "--ca", papers.ca()];
    let run = |daemon: &Daemon, line: &[&str]| {
        daemon.command(&[line, &there[..]].concat()).env("AGENT_RELAY_API_KEY", &key).output().unwrap()
    };
    let json = |daemon: &Daemon, line: &[&str]| -> Value {
        let output = run(daemon, line);
        assert_eq!(output.status.code(), Some(0), "{line:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(json(&daemon, &["status", "--json"])["pid"], daemon.pid());
    let mut listener =
        daemon.command(&[&["listen", "--as", "bob", "--count", "2", "--timeout", "60"], &there[..]].concat());
    let listener = listener.env("AGENT_RELAY_API_KEY", &key).stdout(Stdio::piped()).spawn().unwrap();
    let listener = Ended(Some(listener));
    let sent = json(&daemon, &["send", "--from", "alice", "--to", "bob", "--wait", "durable", "--json", "one"]);
    assert_eq!((&sent["state"], &sent["reached"]), (&"durable".into(), &true.into()));
    // Nobody who lists processes sees the key.
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", listener.0.as_ref().unwrap().id())).unwrap();
    let cmdline = String::from_utf8_lossy(&cmdline).into_owned();
    assert!(cmdline.contains("listen") && !cmdline.contains("ar_key_"), "{cmdline}");
    let id = sent["id"].as_str().unwrap();
    daemon.until("it can be read", |daemon| run(daemon, &["read", id, "--json"]).status.success());
    assert_eq!(json(&daemon, &["read", id, "--json"])["text"], "one");
    let history = run(&daemon, &["history", "--json"]);
    assert!(String::from_utf8_lossy(&history.stdout).contains("\"one\""), "{}", said(&history));
    assert!(json(&daemon, &["agents", "--json"])["agents"].as_array().unwrap().len() >= 2);
    let sent = run(&daemon, &["send", "--from", "alice", "--to", "bob", "two"]);
    assert_eq!(sent.status.code(), Some(0), "{}", said(&sent));
    let heard = listener.output();
    let heard = String::from_utf8(heard.stdout).unwrap();
    assert!(heard.contains(": one\n") && heard.contains(": two\n"), "{heard}");

    let without = daemon.run(&[&["status"], &there[..]].concat());
    assert_eq!(without.status.code(), Some(1));
    assert!(said(&without).contains("Authentication required"), "{}", said(&without));
    assert!(said(&without).contains("AGENT_RELAY_API_KEY"), "{}", said(&without));
    let stopped = run(&daemon, &["down"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", said(&stopped));
    assert!(daemon.end().success());
}

#[test]
fn a_shell_elsewhere_sends_under_a_name_that_is_free_and_leaves_what_is_owed_to_it() {
    let papers = Papers::new();
    let daemon = with_tls(EPOLL_TWO, &papers.relay).start();
    let address = port(&daemon).to_string();
    let send = |from: &str| {
        let there = ["--connect", address.as_str(), "--ca", papers.ca()];
        daemon.run(&[&["send", "--from", from, "--to", "bob", "hi"], &there[..]].concat())
    };
    let mut bob = daemon.client("bob");
    let ann = daemon.client("ann");
    let refused = send("ann");
    assert_eq!(refused.status.code(), Some(1), "her name is hers while she is connected");
    assert!(said(&refused).contains("ann is connected"), "{}", said(&refused));
    ann.close().unwrap();
    daemon.until_away("ann");
    bob.send(&to("ann", "for ann, not for the shell")).unwrap();
    daemon.until("it waits for ann", |daemon| daemon.agent("ann").unwrap()["waiting"] == 1);
    let sent = send("ann");
    assert_eq!(sent.status.code(), Some(0), "{}", said(&sent));
    assert_eq!(text(&mut bob), "hi");
    assert_eq!(text(&mut daemon.client("ann")), "for ann, not for the shell");
}

/// A child that does not outlive the test.
struct Ended(Option<Child>);

impl Ended {
    fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
