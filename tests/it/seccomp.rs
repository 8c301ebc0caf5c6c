//! Where io_uring is forbidden, as in Docker's default profile, epoll takes over by itself.

use crate::harness::{Daemon, Way, without_io_uring};
use agent_relay::client::Outgoing;
use std::process::Output;

#[test]
fn epoll_takes_over_says_why_and_does_everything() {
    for errno in [rustix::io::Errno::PERM, rustix::io::Errno::NOSYS] {
        let (daemon, doctor) = without_io_uring(errno, || {
            let daemon = Daemon::start(Way { backend: "auto", cores: 2 });
            let doctor: Output = daemon.run(&["doctor", "--json"]);
            (daemon, doctor)
        });
        let status = daemon.status();
        for shard in status["shards"].as_array().unwrap() {
            assert_eq!(shard["backend"], "epoll");
            let why = shard["fallback"].as_str().unwrap();
            assert!(why.contains("io_uring") && why.contains(&std::io::Error::from(errno).to_string()), "{why}");
        }
        let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["check"] == "io_uring").unwrap();
        assert!(check["verdict"] != "ok" && check["found"].as_str().unwrap().contains("epoll"), "{check}");
        let (mut ann, mut bob) = (daemon.client("ann"), daemon.client("bob"));
        ann.send(&Outgoing { to: "bob", text: Some("over epoll"), ..Outgoing::default() }).unwrap();
        assert_eq!(crate::peers::text(&mut bob), "over epoll");
        drop((ann, bob));
        crate::order::ordered_under_pressure(&daemon);
    }
}

#[test]
fn who_insists_on_io_uring_is_told_that_it_is_forbidden() {
    let (code, said) = without_io_uring(rustix::io::Errno::PERM, || {
        let directory = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_relay"));
        command.env_clear().env("AGENT_RELAY_DATA_DIR", directory.path()).current_dir(directory.path());
        let output = command.args(["up", "--global", "--backend", "uring"]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    });
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("io_uring") && said.contains("relay doctor"), "{said}");
}
