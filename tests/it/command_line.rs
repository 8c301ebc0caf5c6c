//! Messages from a shell: what the commands print and how they exit, with the real daemon behind them.

use crate::harness::{Daemon, EPOLL_TWO, every_way};
use crate::peers::text;
use serde_json::Value;
use std::io::Write;
use std::process::{Output, Stdio};

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {} {}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    })
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn send_waits_until_the_message_has_got_as_far_as_asked() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut bob = daemon.client("bob");
        for stage in ["accepted", "durable", "delivered"] {
            let line = ["send", "--global", "--from", "ann", "--to", "bob", "--wait", stage, "--json", stage];
            let output = daemon.run(&line);
            assert_eq!(output.status.code(), Some(0), "{stage}: {}", said(&output));
            let value = json(&output);
            assert_eq!((&value["state"], &value["reached"]), (&stage.into(), &true.into()));
            assert_eq!(text(&mut bob), stage);
        }
        bob.handled().unwrap();
        let line = ["send", "--global", "--from", "ann", "--to", "bob", "--wait", "acknowledged", "hi"];
        let waiting = daemon.command(&line).stdout(Stdio::piped()).spawn().unwrap();
        let message = crate::peers::message(&mut bob);
        bob.handled().unwrap();
        let output = waiting.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("acknowledged {}\n", message.id()));
    });
}

#[test]
fn the_body_may_come_from_standard_input_and_topics_and_everybody_are_recipients() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut bob = daemon.client("bob");
        bob.subscribe("builds").unwrap();
        daemon.until("bob has subscribed", |daemon| daemon.agent("bob").unwrap()["topics"][0] == "builds");
        let send = |line: &[&str], stdin: &str| {
            let mut child = daemon
                .command(line)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        let output = send(&["send", "--global", "--from", "ci", "--to", "#builds", "--thread", "t"], "two\nlines\n");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let message = crate::peers::message(&mut bob);
        assert_eq!((&*message.text(), &*message.topic(), &*message.thread()), ("two\nlines", "builds", "t"));
        let output = send(&["send", "--global", "--from", "ci", "--to", "*", "-"], "all");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert_eq!(text(&mut bob), "all");
    });
}

#[test]
fn listen_prints_what_comes_and_ends_after_its_count() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let listener = daemon
            .command(&["listen", "--global", "--as", "bob", "--count", "3", "--timeout", "30", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for body in ["one", "two", "three"] {
            // Bob may not be up yet: then it waits for him, as the grace has it.
            let output = daemon.run(&["send", "--global", "--from", "ann", "--to", "bob", body]);
            assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        }
        let output = listener.wait_with_output().unwrap();
        assert!(output.status.success());
        let lines: Vec<Value> = output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let bodies: Vec<&str> = lines.iter().map(|line| line["text"].as_str().unwrap()).collect();
        assert_eq!(bodies, ["one", "two", "three"]);

        // A unique prefix finds a message.
        let id = lines[0]["id"].as_str().unwrap();
        daemon.until("it counts as acknowledged", |daemon| {
            let output = daemon.run(&["read", "--global", &id[..12], "--json"]);
            // A record that another shard still holds is found after the next flush.
            if !output.status.success() {
                return false;
            }
            let value = json(&output);
            assert_eq!((&value["id"], &value["text"], &value["from"]), (&id.into(), &"one".into(), &"ann".into()));
            value["state"] == "acknowledged" && value["recipients"][0]["name"] == "bob"
        });
        let output = daemon.run(&["read", "--global", "ffffffffffffffffffffffffffffffff"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("no message with that id"), "{}", said(&output));
        let output = daemon.run(&["listen", "--global", "--as", "cat", "--count", "1", "--timeout", "1"]);
        assert_eq!(output.status.code(), Some(1), "fewer than asked for");
    });
}

#[test]
fn every_question_is_answered_in_json_and_in_words() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let _ann = daemon.client("ann");
        let _jay = daemon.json("Jay");
        daemon.client("gone").close().unwrap();
        daemon.until_away("gone");
        let status = json(&daemon.run(&["status", "--global", "--json"]));
        assert_eq!((&status["pid"], &status["agents"]["connected"]), (&daemon.pid().into(), &2.into()));
        assert_eq!(status["shards"].as_array().unwrap().len(), usize::from(way.cores));
        let names = |line: &[&str]| -> Vec<String> {
            let value = json(&daemon.run(line));
            let agents = value["agents"].as_array().unwrap_or_else(|| panic!("{value}")).clone();
            agents.iter().map(|agent| agent["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(&["agents", "--global", "--all", "--json"]), ["Jay", "ann", "gone"]);
        assert!(names(&["who", "--global", "--json"]).contains(&"ann".to_owned()));
        let doctor = daemon.run(&["doctor", "--global", "--json"]);
        assert!(json(&doctor)["checks"].is_array());
        assert!(json(&daemon.run(&["config", "--global", "--json"]))["settings"].is_array());
        for line in [["status", "--global"], ["agents", "--global"], ["who", "--global"], ["config", "--global"]] {
            let output = daemon.run(&line);
            assert_eq!(output.status.code(), Some(0), "{line:?}: {}", said(&output));
            assert!(!output.stdout.is_empty());
        }
        assert_eq!(daemon.run(&["status", "--nonsense"]).status.code(), Some(2));
    });
}

#[test]
fn a_message_to_nobody_exits_with_one_and_says_so() {
    let daemon = Daemon::start(EPOLL_TWO);
    let output = daemon.run(&["send", "--global", "--from", "ann", "--to", "nobody", "--json", "hi"]);
    assert_eq!(output.status.code(), Some(1));
    let value = json(&output);
    assert_eq!((&value["state"], &value["reason"]), (&"not_found".into(), &"not_found".into()));
    assert!(said(&output).contains("nobody"), "{}", said(&output));
    // Accepted, but not acknowledged within the time.
    daemon.client("bob").close().unwrap();
    let line = [
        "send",
        "--global",
        "--from",
        "ann",
        "--to",
        "bob",
        "--wait",
        "acknowledged",
        "--timeout",
        "1",
        "--json",
        "hi",
    ];
    let output = daemon.run(&line);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((&json(&output)["state"], &json(&output)["reached"]), (&"accepted".into(), &false.into()));
    let output =
        daemon.run(&["send", "--global", "--from", "ann", "--to", "bob", "--ttl", "50ms", "--wait", "delivered", "hi"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("expired"), "{}", said(&output));
}

#[test]
fn the_shells_name_is_not_taken_from_an_agent_that_has_it() {
    let daemon = Daemon::start(EPOLL_TWO);
    let (mut ann, mut bob) = (daemon.client("ann"), daemon.client("bob"));
    let output = daemon.run(&["send", "--global", "--from", "ann", "--to", "bob", "in ann's name"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(text(&mut bob), "in ann's name");
    ann.send(&agent_relay::client::Outgoing { to: "bob", text: Some("myself"), ..Default::default() }).unwrap();
    assert_eq!(text(&mut bob), "myself");
}
