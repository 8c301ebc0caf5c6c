//! Start, second start, stop, crash; the service manager's protocol.

use crate::harness::{Daemon, EPOLL_TWO, PATIENCE, Setup, every_way};
use crate::peers::{Owned, ends};
use agent_relay::wire::Wants;
use rustix::process::Signal;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

#[test]
fn a_second_up_says_who_is_running_and_changes_nothing() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut ann = daemon.native("ann");
        let second = daemon.run(&["up", "--global"]);
        assert_eq!(second.status.code(), Some(1));
        let said = String::from_utf8(second.stderr).unwrap();
        assert!(said.contains(&format!("pid {}", daemon.pid())) && said.contains("relay.sock"), "{said}");
        ann.barrier();
        daemon.native("bob").barrier();
    });
}

#[test]
fn after_a_crash_the_next_one_takes_the_place_of_the_dead() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut ann = daemon.native("ann");
        let old = ann.welcome;
        let directory = daemon.crash();
        assert!(ann.hear().is_none());
        assert!(directory.path().join("relay.sock").exists(), "a stale socket");
        let daemon = Setup { directory: Some(directory), ..Setup::new(way) }.start();
        // Its session goes on if its beginning was on the disk in time; it is welcome in any case.
        let (mut ann, said) = crate::peers::NativePeer::resume(daemon.stream(), "ann", old.resume, Default::default());
        assert_eq!(said.len(), usize::from(!ann.welcome.resumed));
        ann.barrier();
    });
}

#[test]
fn sigterm_says_bye_to_everyone_and_leaves_nothing_behind() {
    every_way(|way| {
        let mut daemon = Daemon::start(way);
        let (mut ann, mut jay, mut shy) = (daemon.native("ann"), daemon.json("Jay"), daemon.stream());
        ann.send("Jay", "the last word", Wants::default());
        ann.barrier();
        daemon.signal(Signal::TERM);
        assert_eq!(jay.body(), "the last word");
        assert!(matches!(ann.rest()[..], [Owned::Bye]));
        assert_eq!(jay.rest().iter().map(|frame| frame["type"].clone()).collect::<Vec<_>>(), ["BYE"]);
        assert!(ends(&mut shy).is_empty(), "who has said nothing is told nothing: its dialect is not known");
        daemon.notice("STOPPING=1");
        assert!(daemon.end().success());
        assert!(!daemon.socket().exists() && !daemon.directory.path().join("relay.sock.pid").exists());
    });
}

#[test]
fn down_stops_it_and_a_second_down_has_nothing_to_stop() {
    every_way(|way| {
        let mut daemon = Daemon::start(way);
        let mut ann = daemon.native("ann");
        let down = daemon.run(&["down", "--global"]);
        assert_eq!(down.status.code(), Some(0), "{}", String::from_utf8_lossy(&down.stderr));
        assert!(matches!(ann.rest()[..], [Owned::Bye]));
        assert!(daemon.end().success() && !daemon.socket().exists());
        assert_eq!(daemon.run(&["down", "--global"]).status.code(), Some(1));
    });
}

#[test]
fn a_peer_that_does_not_read_holds_the_stop_up_for_a_moment_and_a_second_sigint_not_at_all() {
    every_way(|way| {
        for twice in [false, true] {
            let mut daemon = Daemon::start(way);
            let (deaf, mut ann) = (daemon.native("deaf"), daemon.native("ann"));
            let text = "x".repeat(60_000);
            // More than the socket's buffers take: a send is in flight, and stays so.
            for _ in 0..12 {
                ann.send("deaf", &text, Wants::default());
            }
            daemon.until("a send is in flight", |daemon| daemon.agent("deaf").unwrap()["waiting"] == 12);
            let begun = Instant::now();
            daemon.signal(Signal::INT);
            daemon.notice("STOPPING=1");
            if twice {
                daemon.signal(Signal::INT);
            }
            daemon.end();
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(if twice { 2 } else { 8 }), "{took:?} (twice: {twice})");
            assert!(!daemon.socket().exists() && !daemon.directory.path().join("relay.sock.pid").exists());
            drop(deaf);
        }
    });
}

#[test]
fn a_socket_that_the_service_manager_opened_is_served_and_not_unlinked() {
    every_way(|way| {
        let directory = tempfile::Builder::new().prefix("relay-it").tempdir().unwrap();
        let path = directory.path().join("activated.sock");
        let listener = UnixListener::bind(&path).unwrap();
        // Who connects before the daemon is up waits in the backlog.
        let early = UnixStream::connect(&path).unwrap();
        early.set_read_timeout(Some(PATIENCE)).unwrap();
        let setup = Setup { stdin: Some(listener.into()), directory: Some(directory), ..Setup::new(way) };
        let mut daemon = setup.shell("exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1").start();
        let mut ann = crate::peers::NativePeer::connect(early, "ann");
        let bob = UnixStream::connect(&path).unwrap();
        bob.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bob = crate::peers::NativePeer::connect(bob, "bob");
        ann.send("bob", "activated", Wants::default());
        assert_eq!(bob.delivery().1, "activated");
        assert!(!daemon.socket().exists(), "it binds none of its own");
        daemon.signal(Signal::TERM);
        assert!(matches!(bob.rest()[..], [Owned::Bye]));
        daemon.end();
        assert!(path.exists(), "not its own to unlink");
    });
}

#[test]
fn a_socket_of_the_service_manager_that_others_can_reach_needs_tls_as_well() {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let setup = Setup { stdin: Some(listener.into()), ..Setup::new(EPOLL_TWO) };
    let started = setup.shell("exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1").try_start();
    let (said, _) = started.err().expect("it does not start");
    assert!(said.contains("TLS is required there"), "{said}");
}

#[test]
fn loopback_tcp_is_served_beside_the_unix_socket_and_only_to_agents() {
    let daemon = Setup::new(EPOLL_TWO).argument("--listen").argument("127.0.0.1:0").start();
    let status = daemon.status();
    let address = status["listen"][0].as_str().unwrap();
    let tcp: agent_relay::client::Address = address.parse().unwrap();
    let mut bob = agent_relay::client::Client::connect(&tcp, &agent_relay::client::Options::named("bob")).unwrap();
    let mut ann = daemon.native("ann");
    ann.send("bob", "over tcp", Wants::default());
    assert_eq!(crate::peers::text(&mut bob), "over tcp");
    let outgoing = agent_relay::client::Outgoing { to: "ann", text: Some("back"), ..Default::default() };
    bob.send(&outgoing).unwrap();
    assert_eq!(ann.delivery().1, "back");
    let refused = agent_relay::client::ask(&tcp, agent_relay::wire::QueryKind::Status, "{}", PATIENCE).unwrap_err();
    assert!(refused.to_string().contains("FORBIDDEN"), "{refused}");
    let refused = agent_relay::client::submit(&tcp, &outgoing, "eve", Wants::ACCEPTED, PATIENCE).unwrap_err();
    assert!(refused.to_string().contains("FORBIDDEN"), "{refused}");
}

#[test]
fn the_files_that_existing_tools_read_are_kept() {
    let daemon = Daemon::start(EPOLL_TWO);
    let _jay = daemon.json("Jay");
    let path = daemon.directory.path().join("team/agents.json");
    daemon.until("agents.json names Jay", |_| {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        value["agents"][0]["name"] == "Jay" && value["agents"][0]["cli"] == "test"
    });
    let pid = std::fs::read_to_string(daemon.directory.path().join("relay.sock.pid")).unwrap();
    assert_eq!(pid, format!("{}\n", daemon.pid()));
}

#[test]
fn a_watchdog_gets_its_signs_of_life_and_one_that_does_not_read_them_holds_nobody_up() {
    let mut daemon = Setup::new(EPOLL_TWO).shell("export WATCHDOG_USEC=10000").start();
    daemon.notice("WATCHDOG=1");
    // From here on nobody reads them; ten fill the queue.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        daemon.status();
    }
    daemon.signal(Signal::TERM);
    assert!(daemon.end().success());
}
