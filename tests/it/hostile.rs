//! Bytes that nobody should send.

use crate::harness::{Daemon, every_way};
use crate::order::Random;
use crate::peers::json_frame;
use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::wire::{self, CAPABILITIES, Frame, Hello, Kind, MessageFields, Wants};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const CONNECTIONS: u64 = 2_000;

fn hello(name: &str) -> Vec<u8> {
    let hello = Hello { claimed_name: name.as_bytes().into(), capabilities: CAPABILITIES, ..Hello::default() };
    let mut bytes = Vec::new();
    wire::encode::frame(&mut bytes, &Frame::Hello(Box::new(hello)), Sequence::default());
    bytes
}

/// What a well-behaved native client might say.
fn native_talk(name: &str, random: &mut Random) -> Vec<u8> {
    let mut bytes = hello(name);
    for number in 1..=3 {
        let fields = MessageFields {
            id: MessageId { sender: AgentId::of(name.as_bytes()), number },
            from: name.as_bytes(),
            to: [&b"victim"[..], b"*", b"#topic", b"nobody"][random.below(4) as usize],
            text: b"text",
            data: b"{\"a\":1}",
            wants: Wants(random.next() as u8),
            ..MessageFields::default()
        };
        wire::encode::send(
            &mut bytes,
            Kind::Send,
            &fields,
            Sequence { epoch: random.next() as u32, counter: random.next() },
        );
    }
    let topic = wire::Topic { name: b"topic"[..].into(), channel: false };
    wire::encode::frame(&mut bytes, &Frame::Subscribe(topic), Sequence::default());
    bytes
}

fn json_talk(name: &str) -> Vec<u8> {
    let mut bytes = json_frame(&format!(r#"{{"type":"HELLO","id":"h","payload":{{"agent":"{name}","cli":"x"}}}}"#));
    bytes.extend(json_frame(r#"{"type":"SEND","id":"1","to":"victim","payload":{"body":"b","data":{"a":[1]}}}"#));
    bytes.extend(json_frame(r##"{"type":"CHANNEL_JOIN","id":"2","payload":{"channel":"#x"}}"##));
    bytes.extend(json_frame(r#"{"type":"ACK","id":"3","payload":{"ack_id":"00","seq":1}}"#));
    bytes
}

fn attack(index: u64) -> Vec<u8> {
    let mut random = Random((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let name = format!("hostile-{index}");
    let mutate = |mut bytes: Vec<u8>, random: &mut Random| {
        for _ in 0..1 + random.below(8) {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(4) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => bytes.truncate(at.max(1)),
                _ => {
                    let part = bytes[at..].to_vec();
                    bytes.extend(part);
                }
            }
        }
        bytes
    };
    match index % 10 {
        0 => (0..random.below(3_000)).map(|_| random.next() as u8).collect(),
        1 => b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n".to_vec(),
        2 => [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat(),
        3 => {
            // A good beginning, and then nothing more.
            let bytes = native_talk(&name, &mut random);
            let length = random.below(bytes.len() as u64) as usize;
            bytes[..length].to_vec()
        }
        4 => {
            let bytes = json_talk(&name);
            let length = random.below(bytes.len() as u64) as usize;
            bytes[..length].to_vec()
        }
        5 | 6 => {
            let bytes = native_talk(&name, &mut random);
            mutate(bytes, &mut random)
        }
        7 | 8 => mutate(json_talk(&name), &mut random),
        // A magic, and the rest at random.
        _ => [&[wire::MAGIC, wire::VERSION, random.next() as u8][..], &random.next().to_le_bytes(), &[0; 100]].concat(),
    }
}

#[test]
fn two_thousand_hostile_connections_leave_the_daemon_as_it_was() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let mut victim = daemon.client("victim");
        let mut ann = daemon.native("ann");
        daemon.status();
        let settled = |daemon: &Daemon| {
            let status = daemon.status();
            let shards = status["shards"].as_array().unwrap().clone();
            // The two agents, and the connection that asks.
            shards.iter().map(|shard| shard["connections"].as_u64().unwrap()).sum::<u64>() == 3
        };
        daemon.until("two are connected", settled);
        let descriptors = daemon.descriptors();
        std::thread::scope(|scope| {
            for lane in 0..4 {
                let daemon = &daemon;
                scope.spawn(move || {
                    let mut open: Vec<UnixStream> = Vec::new();
                    for index in (lane..CONNECTIONS).step_by(4) {
                        let mut stream = daemon.stream();
                        let bytes = attack(index);
                        let mut random = Random(index + 1);
                        let cut = random.below(bytes.len().max(1) as u64) as usize;
                        // The relay may have closed already.
                        let written = stream.write_all(&bytes[..cut]).and_then(|()| stream.write_all(&bytes[cut..]));
                        if written.is_ok() && index % 3 == 0 {
                            let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
                            let _ = stream.read(&mut [0; 1_024]);
                        }
                        open.push(stream);
                        if open.len() > 50 {
                            drop(open.remove(0));
                        }
                    }
                });
            }
            // Meanwhile the others talk.
            for number in 0..500 {
                ann.send("victim", &format!("ann {number}"), Wants::default());
            }
            let mut heard = 0;
            while heard < 500 {
                let message = crate::peers::message(&mut victim);
                if message.from() == "ann" {
                    assert_eq!(message.text(), format!("ann {heard}"));
                    heard += 1;
                }
            }
        });
        daemon.until("everybody else is gone", settled);
        daemon.until("their descriptors are closed", |daemon| daemon.descriptors() <= descriptors + 1);
        // The victim has seen the worst of it: it is owed nothing but what it can handle.
        ann.send("victim", "the end", Wants::default());
        while crate::peers::message(&mut victim).text() != "the end" {}
    });
}
