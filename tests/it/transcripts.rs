//! Sessions recorded between agent-relay 1.6.0 and its own client: the client's side is sent to our daemon, whose
//! answers must have everything that the recorded client needs.

use crate::harness::{Daemon, every_way};
use crate::peers::JsonPeer;
use serde_json::Value;
use std::collections::HashMap;

struct Line {
    connection: u32,
    from_client: bool,
    json: Value,
}

/// «ab×n» stands for ab, n times.
fn expand(text: &str) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('«') {
        let (pattern, after) = after.split_once('»').unwrap();
        let (unit, count) = pattern.rsplit_once('×').unwrap();
        expanded.push_str(before);
        expanded.push_str(&unit.repeat(count.parse().unwrap()));
        rest = after;
    }
    expanded + rest
}

fn lines(transcript: &str) -> Vec<Line> {
    let lines = transcript.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let mut parts = line.splitn(3, ' ');
            let connection = parts.next().unwrap().parse().unwrap();
            let from_client = parts.next().unwrap() == ">";
            let json =
                serde_json::from_str(&expand(parts.next().unwrap())).unwrap_or_else(|error| panic!("{error}: {line}"));
            Line { connection, from_client, json }
        })
        .collect()
}

/// The conversation as it goes on with our daemon.
struct Replay<'a> {
    daemon: &'a Daemon,
    peers: HashMap<u32, JsonPeer>,
    /// What our daemon said where the recorded one said something else: tokens, sessions and ids.
    translated: HashMap<String, String>,
    /// The DELIVERs of ours that the recorded one has not sent yet.
    early: HashMap<u32, Vec<Value>>,
}

impl Replay<'_> {
    fn translate(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.translated.get(text).unwrap_or(text).clone().into(),
            Value::Array(items) => items.iter().map(|item| self.translate(item)).collect(),
            Value::Object(members) => members
                .iter()
                .map(|(key, member)| (key.clone(), self.translate(member)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other.clone(),
        }
    }

    /// The next frame of a kind that the recorded client looks at.
    fn hear(&mut self, connection: u32, kind: &str) -> Value {
        let early = self.early.entry(connection).or_default();
        if let Some(index) = early.iter().position(|value| value["type"] == kind) {
            return early.remove(index);
        }
        let peer = self.peers.get_mut(&connection).unwrap();
        loop {
            let value = peer.hear().unwrap_or_else(|| panic!("connection {connection} closed instead of a {kind}"));
            if value["type"] == kind {
                return value;
            }
            self.early.entry(connection).or_default().push(value);
        }
    }

    fn remember(&mut self, theirs: &Value, ours: &Value) {
        if let (Some(theirs), Some(ours)) = (theirs.as_str(), ours.as_str()) {
            self.translated.insert(theirs.to_owned(), ours.to_owned());
        }
    }

    fn client_says(&mut self, line: &Line) {
        let value = self.translate(&line.json);
        let name = value["payload"]["agent"].as_str().unwrap_or("-").to_owned();
        let daemon = self.daemon;
        let peer = self.peers.entry(line.connection).or_insert_with(|| JsonPeer::bare(daemon.stream(), &name));
        peer.say(&value);
    }

    fn relay_says(&mut self, line: &Line) {
        let theirs = &line.json;
        let kind = theirs["type"].as_str().unwrap();
        if matches!(kind, "PING" | "CHANNEL_JOIN" | "CHANNEL_LEAVE") {
            // PINGs come when they come; joining and leaving is not announced to others: no client needs it.
            return;
        }
        let ours = self.hear(line.connection, kind);
        let get = |value: &Value, path: &str| value.pointer(path).cloned().unwrap_or(Value::Null);
        match kind {
            "WELCOME" => {
                for path in ["/payload/session_id", "/payload/resume_token"] {
                    assert!(get(&ours, path).is_string(), "{ours}");
                    self.remember(&get(theirs, path), &get(&ours, path));
                }
                assert_eq!(
                    get(&ours, "/payload/server/max_frame_bytes"),
                    get(theirs, "/payload/server/max_frame_bytes")
                );
                assert_eq!(get(&ours, "/payload/server/heartbeat_ms"), get(theirs, "/payload/server/heartbeat_ms"));
            }
            "DELIVER" => {
                for path in
                    ["/from", "/to", "/topic", "/payload/kind", "/payload/body", "/payload/thread", "/payload_meta"]
                {
                    let (ours, theirs) = (get(&ours, path), get(theirs, path));
                    assert!(ours == theirs, "{path}: {ours} instead of {theirs}");
                }
                let data = get(theirs, "/payload/data");
                if data.get("_offlineQueued").is_none() {
                    assert_eq!(get(&ours, "/payload/data"), data);
                }
                assert_eq!(
                    get(&ours, "/delivery/originalTo").as_str() == Some("*"),
                    get(theirs, "/delivery/originalTo") == "*" && theirs.get("topic").is_none()
                );
                assert!(get(&ours, "/delivery/seq").is_u64() && get(&ours, "/delivery/session_id").is_string());
                self.remember(&theirs["id"], &ours["id"]);
            }
            "CHANNEL_MESSAGE" => {
                assert_eq!(ours["from"], theirs["from"]);
                assert_eq!(ours["payload"], theirs["payload"]);
            }
            "ERROR" => {
                for path in ["/payload/code", "/payload/fatal"] {
                    assert_eq!(get(&ours, path), get(theirs, path), "{ours}");
                }
            }
            _ => {}
        }
    }
}

fn replay(transcript: &str, skip: impl Fn(&Line) -> bool + Sync) {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut replay =
            Replay { daemon: &daemon, peers: HashMap::new(), translated: HashMap::new(), early: HashMap::new() };
        let lines = lines(transcript);
        let mut last = HashMap::new();
        for (index, line) in lines.iter().enumerate() {
            last.insert(line.connection, index);
        }
        let mut joined = false;
        for (index, line) in lines.iter().enumerate() {
            // The recording waited a moment after each membership frame; here the connections say when they are read.
            if joined && !(line.from_client && membership(&line.json)) {
                joined = false;
                for (connection, peer) in &mut replay.peers {
                    let before = peer.barrier();
                    replay.early.entry(*connection).or_default().extend(before);
                }
            }
            if skip(line) {
                continue;
            }
            if line.from_client {
                replay.client_says(line)
            } else {
                replay.relay_says(line)
            }
            joined |= line.from_client && membership(&line.json);
            // A connection whose part is over is gone, and the next one with its name may come.
            if last[&line.connection] == index
                && let Some(peer) = replay.peers.remove(&line.connection)
            {
                let next = lines[index + 1..].iter().any(|later| later.json["type"] == "HELLO");
                let name = peer.name.clone();
                if next && name != "-" {
                    drop(peer);
                    if daemon.agent(&name).is_some() {
                        daemon.until_away(&name);
                    }
                } else {
                    replay.peers.insert(line.connection, peer);
                }
            }
        }
        daemon.until("nothing waits", |daemon| {
            let waiting = daemon.status()["messages"]["waiting"].as_u64().unwrap();
            waiting <= lines.iter().filter(|line| line.json["type"] == "DELIVER").count() as u64
        });
    });
}

fn membership(value: &Value) -> bool {
    matches!(value["type"].as_str(), Some("SUBSCRIBE" | "UNSUBSCRIBE" | "CHANNEL_JOIN" | "CHANNEL_LEAVE"))
}

#[test]
fn recorded_direct_messages() {
    replay(include_str!("../transcripts/direct.txt"), |_| false);
}

#[test]
fn recorded_broadcasts_and_topics() {
    replay(include_str!("../transcripts/broadcast_and_topic.txt"), |_| false);
}

#[test]
fn recorded_channels() {
    replay(include_str!("../transcripts/channels.txt"), |_| false);
}

#[test]
fn recorded_large_bodies() {
    replay(include_str!("../transcripts/large.txt"), |_| false);
}

#[test]
fn recorded_mistakes() {
    // The recorded daemon dies of a body that is a number (its BYE is line 20), ours complains and goes on.
    replay(include_str!("../transcripts/mistakes.txt"), |line| {
        line.json["type"] == "PONG" || line.json["type"] == "BYE"
    });
}

#[test]
fn recorded_resumes() {
    // In the recording the fourth connection takes the name from the living third one with a wrong token: ours refuses
    // that on purpose, so the third one leaves first. The sixth takes over with the holder's token, as it may.
    replay(include_str!("../transcripts/resume.txt"), |_| false);
}

#[test]
fn recorded_disconnects() {
    replay(include_str!("../transcripts/disconnect.txt"), |line| line.connection == 2 && !line.from_client);
}

#[test]
fn recorded_retries() {
    // The deaf one does not acknowledge until it is told again; how long that takes is ours to choose.
    replay(include_str!("../transcripts/retry.txt"), |line| line.json["type"] == "PONG");
}
