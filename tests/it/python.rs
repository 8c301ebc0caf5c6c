//! A client in another language, written from docs/WIRE.md alone.

use crate::harness::{Daemon, every_way};
use agent_relay::client::Outgoing;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn the_python_client_echoes_what_a_native_client_says() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return eprintln!("SKIPPED: there is no python3 here");
    }
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut python = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/relay_client.py"))
            .args([daemon.socket().to_str().unwrap(), "python", "echo"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(python.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "python echoes\n");
        let mut ann = daemon.client("ann");
        for text in ["hi", "", "long ".repeat(10_000).as_str(), "🦀"] {
            let data = "{\"data\":{\"a\":1}}";
            ann.send(&Outgoing { to: "python", text: Some(text), thread: "t", data, ..Outgoing::default() }).unwrap();
            let got = crate::peers::message(&mut ann);
            assert!(got.text() == text && got.from() == "python" && got.thread() == "t", "{} bytes", text.len());
            assert_eq!(got.fields().data, data.as_bytes());
        }
        daemon.signal(rustix::process::Signal::TERM);
        let status = python.wait().unwrap();
        assert!(status.success(), "BYE ends it: {status}");
    });
}
