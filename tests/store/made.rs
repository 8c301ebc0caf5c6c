//! Stores and records to try things on.

use agent_relay::base::{AgentId, Bytes, MessageId, RefuseReason, Sequence, ids::Token};
use agent_relay::relay::{Addressee, Owed, Profile, ProgressRecord, Recipients, Record, SessionRecord};
use agent_relay::store::{Access, Key, Options, RecordRef, Segment, Store};
use agent_relay::wire::Dialect;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

pub(crate) const TEST_KEY: &str = "relay-key-v1:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
pub(crate) const OTHER_KEY: &str = "relay-key-v1:ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
/// A word that stands in each body, and one in each name.
pub(crate) const SECRET_WORD: &str = "zanzibar-manuscript";
pub(crate) const NAME_WORD: &str = "quixotic";
pub(crate) const START_MS: u64 = 1_800_000_000_000;

pub(crate) fn key() -> Option<Key> {
    Some(Key::parse(TEST_KEY).unwrap())
}

pub(crate) fn options(folder: &Path, key: Option<Key>) -> Options {
    Options { folder: folder.to_path_buf(), key, map_bytes: 1 << 30, access: Access::Write }
}

/// Opened for writing, an epoch begun.
pub(crate) fn open(folder: &Path, key: Option<Key>) -> Store {
    let store = Store::open(options(folder, key)).unwrap();
    store.begin_epoch(1000, 0).unwrap();
    store
}

pub(crate) fn name(number: u64) -> String {
    format!("{NAME_WORD}-{number}")
}

pub(crate) fn agent(number: u64) -> AgentId {
    AgentId::of(name(number).as_bytes())
}

/// The `number`-th message, to one agent.
pub(crate) fn message(number: u64, to: u64, body_bytes: usize) -> Record {
    let mut body = format!("{number:012} {SECRET_WORD} ").into_bytes();
    body.resize(body_bytes.max(body.len()), b'.');
    message_of(number, &[to], body)
}

pub(crate) fn message_of(number: u64, to: &[u64], body: Vec<u8>) -> Record {
    let addressee = |to: &u64| Addressee {
        agent: agent(*to),
        sequence: Sequence { epoch: 1000, counter: number },
        channel: number.is_multiple_of(2),
    };
    let recipients = match to {
        [one] => Recipients::One(addressee(one)),
        many => Recipients::Many(many.iter().map(addressee).collect()),
    };
    Record::Message {
        id: MessageId { sender: agent(0), number },
        checksum: crc32(&body),
        raw: Bytes::from(body),
        accepted_at_ms: START_MS + number,
        ttl_ms: if number.is_multiple_of(3) { 60_000 } else { 0 },
        parts: 1,
        recipients,
    }
}

pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
        }
    }
    !crc
}

/// One record of each kind, about agents 0 and 1.
pub(crate) fn every_kind() -> Vec<Record> {
    let profile = Profile { cli: "claude".into(), task: "build".into(), ..Profile::default() };
    let id = MessageId { sender: agent(0), number: 1 };
    let sequence = |counter| Sequence { epoch: 1000, counter };
    let session = SessionRecord {
        agent: agent(0),
        at_ms: START_MS,
        dialect: Dialect::Json,
        session: Token([1; 16]),
        resume: Token([2; 16]),
        resume_before: Some(Token([3; 16])),
        profile: Some(Arc::new(profile)),
    };
    let progress = ProgressRecord {
        agent: agent(1),
        delivered: sequence(3),
        acknowledged: sequence(1),
        settled: [(sequence(3), sequence(3))].into(),
        owed: Owed { messages: 1, bytes: 200, next_expiry_ms: START_MS + 60_000 },
    };
    let known = |number| Record::Known { agent: agent(number), name: name(number).into(), at_ms: START_MS };
    vec![
        known(0),
        known(1),
        Record::Session(Box::new(session)),
        Record::Subscribed { agent: agent(1), topic: format!("{NAME_WORD}-builds").into(), channel: true },
        Record::Subscribed { agent: agent(1), topic: "gone".into(), channel: false },
        Record::Unsubscribed { agent: agent(1), topic: "gone".into() },
        message(1, 1, 100),
        message(2, 1, 100),
        message_of(3, &[1, 2, 3], format!("to many {SECRET_WORD}").into_bytes()),
        Record::Progress(progress),
        Record::Failed { id, recipient: agent(1), reason: RefuseReason::Expired },
        Record::Read { id, recipient: agent(1) },
        Record::Refused { id, reason: RefuseReason::NotFound, at_ms: START_MS + 5 },
        Record::Gone { agent: agent(0), at_ms: START_MS + 9, bye: true },
        Record::Known { agent: agent(9), name: "short-lived".into(), at_ms: START_MS },
        Record::Forgotten { agent: agent(9) },
    ]
}

pub(crate) fn segment(records: &[Record]) -> Segment {
    let mut segment = Segment::new();
    for record in records {
        segment.push(record);
    }
    segment
}

/// `segments` segments of `messages` messages each.
pub(crate) fn fill(store: &Store, segments: u64, messages: u64, body_bytes: usize) {
    let mut segment = Segment::new();
    for _ in 0..segments {
        let first = store.last_segment().unwrap() * messages;
        segment.clear();
        for number in 1..=messages {
            segment.push(&message(first + number, number % 4, body_bytes));
        }
        store.append(&mut segment).unwrap();
    }
}

/// Every message in the log, in order: number and body.
pub(crate) fn messages(store: &Store) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    let snapshot = store.snapshot().unwrap();
    for number in snapshot.first_segment().unwrap()..=snapshot.last_segment().unwrap() {
        let mut view = snapshot.segment(number).unwrap().unwrap();
        view.records(|_, record| {
            if let RecordRef::Message(message) = record {
                found.push((message.id.number, message.raw.to_vec()));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    }
    found
}
