//! Questions as the command line asks them, answered from a store.

use super::*;
use crate::base::{RefuseReason, Sequence};
use crate::relay::{Addressee, Owed, ProgressRecord, Recipients, Record};
use crate::store::index::GroupLimits;
use crate::store::{Options, Segment, replay};
use crate::wire::{MessageFields, encode};
use std::ops::ControlFlow;

struct World {
    _folder: tempfile::TempDir,
    store: Store,
    tail: RwLock<Tail>,
    memory: RwLock<Memory>,
    beside: Beside,
}

impl World {
    fn new(records: &[Record]) -> World {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { map_bytes: 1 << 28, ..Options::new(folder.path().join("store"), None) };
        let store = Store::open(options).unwrap();
        store.begin_epoch(1, 1).unwrap();
        let tail = RwLock::new(store.tail(GroupLimits::default()).unwrap());
        let world = World { _folder: folder, store, tail, memory: RwLock::default(), beside: Beside::default() };
        world.write(records);
        world
    }

    fn write(&self, records: &[Record]) {
        let mut segment = Segment::new();
        for record in records {
            segment.push(record);
        }
        let number = self.store.append(&mut segment).unwrap();
        let snapshot = self.store.snapshot().unwrap();
        let mut memory = self.memory.write();
        let each = |_, record: &crate::store::RecordRef<'_>| {
            replay::apply(&mut memory, number, record);
            ControlFlow::Continue(())
        };
        snapshot.segment(number).unwrap().unwrap().records(each).unwrap();
    }

    fn ask(&self, kind: QueryKind, arguments: Value) -> (bool, Value) {
        let beside = &self.beside;
        let (failed, json) = answer(&self.store, &self.tail, &self.memory, beside, kind, &arguments.to_string());
        assert!(kind == QueryKind::Message || json.len() <= ANSWER_PART_BYTES_MAX, "a page is one answer");
        (failed, serde_json::from_slice(&json).expect("answers are JSON"))
    }

    fn message(&self, arguments: Value) -> (bool, Value) {
        self.ask(QueryKind::Message, arguments)
    }

    fn page(&self, arguments: Value) -> Value {
        let (failed, page) = self.ask(QueryKind::History, arguments);
        assert!(!failed, "{page}");
        page
    }
}

fn at(counter: u64) -> Sequence {
    Sequence { epoch: 1, counter }
}

fn bob(counter: u64) -> Addressee {
    Addressee { agent: AgentId::of(b"bob"), sequence: at(counter), channel: false }
}

fn id(number: u64) -> MessageId {
    MessageId { sender: AgentId::of(b"ann"), number }
}

fn message(number: u64, text: &[u8]) -> Record {
    to_many(number, b"bob", text, Recipients::One(bob(number)))
}

fn to_many(number: u64, to: &[u8], text: &[u8], recipients: Recipients) -> Record {
    let fields = MessageFields {
        id: id(number),
        from: b"ann",
        to,
        text,
        thread: b"t",
        data: b"{\"a\":1}",
        ..Default::default()
    };
    let mut raw = Vec::new();
    let checksum = encode::message_body(&mut raw, &fields);
    let accepted_at_ms = 1_766_966_970_000 + number;
    Record::Message { id: id(number), raw: raw.into(), checksum, accepted_at_ms, ttl_ms: 0, parts: 1, recipients }
}

fn known(name: &str) -> Record {
    Record::Known { agent: AgentId::of(name.as_bytes()), name: name.into(), at_ms: 1 }
}

fn progress(delivered: u64, acknowledged: u64) -> Record {
    Record::Progress(ProgressRecord {
        agent: AgentId::of(b"bob"),
        delivered: at(delivered),
        acknowledged: at(acknowledged),
        settled: Box::new([]),
        owed: Owed::default(),
    })
}

#[test]
fn a_message_is_found_by_prefix_and_by_the_senders_number_with_its_state() {
    let world =
        World::new(&[known("bob"), message(1, b"one"), message(2, b"two"), message(3, b"three"), progress(2, 1)]);
    let state = |number: u64| world.message(json!({ "from": "ann", "number": number })).1["state"].take();
    assert_eq!([state(1), state(2), state(3)], ["acknowledged", "delivered", "durable"]);
    world.write(&[Record::Read { id: id(1), recipient: AgentId::of(b"bob") }]);
    assert_eq!(state(1), "read");
    let text = id(2).to_string();
    let (failed, found) = world.message(json!({ "id": &text[..8] }));
    assert!(!failed);
    assert_eq!(
        found,
        json!({
            "id": text, "from": "ann", "to": "bob", "topic": null, "thread": "t", "label": null, "sent_at": "1970-01-01T00:00:00.000Z",
            "accepted_at": "2025-12-29T00:09:30.002Z", "text": "two", "kind": "message", "importance": null, "data": { "a": 1 }, "meta": null, "state": "delivered",
            "recipients": [
                { "name": "bob", "state": "delivered", "sequence": { "epoch": 1, "counter": 2 }, "reason": null }
            ],
        })
    );
}

#[test]
fn refusals_and_failures_are_outcomes_too() {
    let refused = Record::Refused { id: id(9), reason: RefuseReason::NotFound, at_ms: 5 };
    let failed = Record::Failed { id: id(1), recipient: AgentId::of(b"bob"), reason: RefuseReason::Expired };
    let world = World::new(&[refused, message(1, b"late"), failed]);
    let (no, found) = world.message(json!({ "from": "ann", "number": 9 }));
    assert_eq!((no, &found["state"], &found["reason"]), (false, &json!("refused"), &json!("not_found")));
    let labelled = MessageId { number: number_of_label(b"their-own"), ..id(0) };
    world.write(&[Record::Refused { id: labelled, reason: RefuseReason::NotFound, at_ms: 5 }]);
    let (no, found) = world.message(json!({ "from": "ann", "label": "their-own" }));
    assert_eq!((no, &found["state"], &found["reason"]), (false, &json!("refused"), &json!("not_found")));
    assert_eq!((&found["id"], &found["label"]), (&json!(labelled.to_string()), &json!("their-own")));
    let (_, found) = world.message(json!({ "from": "ann", "number": 1 }));
    assert_eq!((&found["state"], &found["reason"]), (&json!("failed"), &json!("expired")));
    assert_eq!(found["recipients"][0]["reason"], "expired");
    let page = world.page(json!({ "agent": "bob" }));
    assert_eq!(page["messages"][0], found, "a page says the same");
}

#[test]
fn what_is_not_here_or_not_asked_well_is_said() {
    let world = World::new(&[message(1, b"one"), message(2, b"two")]);
    for (arguments, part) in [
        (json!({ "id": "f".repeat(32) }), "no message with that id"),
        (json!({ "id": "not hex" }), "no message with that id"),
        (json!({ "from": "ann", "number": 7 }), "no such message"),
        (json!({ "from": "ann" }), "with `from`"),
        (json!({}), "give `id`"),
    ] {
        let (failed, said) = world.message(arguments);
        assert!(failed && said["error"].as_str().unwrap().contains(part), "{said}");
    }
    for (arguments, part) in [
        (json!({ "before": "1.1", "after": "1.1" }), "not both"),
        (json!({ "before": 7 }), "`before` must be"),
        (json!({ "after": "x.y" }), "`after` must be"),
        (json!({ "from": "" }), "`from` must be"),
        (json!({ "since_ms": -1 }), "`since_ms` must be"),
        (json!([]), "not a JSON object"),
    ] {
        let (failed, said) = world.ask(QueryKind::History, arguments);
        assert!(failed && said["error"].as_str().unwrap().contains(part), "{said}");
    }
    assert!(answer(&world.store, &world.tail, &world.memory, &world.beside, QueryKind::Message, "not json").0);
    assert!(answer(&world.store, &world.tail, &world.memory, &world.beside, QueryKind::Status, "{}").0);
    let ambiguous = World::new(&(1..=40).map(|number| message(number, b"x")).collect::<Vec<_>>());
    let several = (0..16).map(|digit| ambiguous.message(json!({ "id": format!("{digit:x}") })));
    let found = several.filter(|(failed, said)| *failed && said["matches"].as_array().is_some_and(|all| all.len() > 1));
    assert!(found.count() > 0, "forty ids share first digits");
}

#[test]
fn pages_go_back_to_the_beginning_and_following_goes_on_from_the_newest() {
    let world = World::new(&(1..=10).map(|number| message(number, b"x")).collect::<Vec<_>>());
    let ids =
        |page: &Value| page["messages"].as_array().unwrap().iter().map(|row| row["id"].clone()).collect::<Vec<_>>();
    let (mut seen, mut before) = (Vec::new(), Value::Null);
    let newest = world.page(json!({}))["newest"].clone();
    loop {
        let page = world.page(json!({ "limit": 3, "before": before }));
        seen.extend(ids(&page));
        before = page["next"].clone();
        if before.is_null() {
            break;
        }
    }
    assert_eq!(seen, (1..=10).rev().map(|number| json!(id(number).to_string())).collect::<Vec<_>>());
    let nothing = world.page(json!({ "after": newest }));
    assert_eq!((ids(&nothing).len(), &nothing["next"]), (0, &newest));
    world.write(&[message(11, b"x"), message(12, b"x")]);
    let page = world.page(json!({ "after": newest, "limit": 1 }));
    assert_eq!(ids(&page), [id(11).to_string()]);
    assert_eq!(ids(&world.page(json!({ "after": page["next"] }))), [id(12).to_string()]);
}

#[test]
fn a_page_is_one_answer_however_long_its_messages_are() {
    // Each of these bytes becomes six in JSON.
    let long = vec![1u8; 700_000];
    let middle = vec![b'm'; 300_000];
    let records =
        [message(1, &middle), message(2, &long), message(3, &middle), message(4, &middle), message(5, b"short")];
    let world = World::new(&records);
    let (mut rows, mut before) = (Vec::new(), Value::Null);
    loop {
        let page = world.page(json!({ "before": before }));
        rows.extend(page["messages"].as_array().unwrap().clone());
        before = page["next"].clone();
        if before.is_null() {
            break;
        }
    }
    let numbers: Vec<u64> =
        rows.iter().map(|row| row["recipients"][0]["sequence"]["counter"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [5, 4, 3, 2, 1]);
    let cut: Vec<bool> = rows.iter().map(|row| row["text_truncated"] == true).collect();
    assert_eq!(cut, [false, false, false, true, false]);
    let (_, whole) = world.message(json!({ "from": "ann", "number": 2 }));
    assert_eq!(whole["text"].as_str().map(str::len), Some(700_000), "who asks for it alone gets all of it");
}

#[test]
fn a_page_tells_of_a_thousand_recipients_and_how_many_there_are() {
    let many = (0..1_500u64).map(|agent| Addressee { agent: AgentId(agent), sequence: at(1), channel: false });
    let world = World::new(&[to_many(1, b"*", b"all", Recipients::Many(many.collect()))]);
    let page = world.page(json!({ "to": "*" }));
    let row = &page["messages"][0];
    assert_eq!((row["recipients"].as_array().unwrap().len(), &row["recipients_total"]), (1_000, &json!(1_500)));
    let (_, whole) = world.message(json!({ "from": "ann", "number": 1 }));
    assert_eq!((whole["recipients"].as_array().unwrap().len(), &whole["recipients_total"]), (1_500, &Value::Null));
}

#[test]
fn what_was_read_is_looked_up_by_message_and_recipient() {
    use crate::relay::Reading;
    use crate::relay::readings::ReadingFound;
    use crate::wire::Wants;
    let agent = |name: &str| AgentId::of(name.as_bytes());
    let part = |counter, name: &str| Addressee { agent: agent(name), ..bob(counter) };
    let parted = |recipients: Vec<Addressee>| match to_many(4, b"*", b"all", Recipients::Many(recipients.into())) {
        Record::Message { id, raw, checksum, accepted_at_ms, ttl_ms, recipients, .. } => {
            Record::Message { id, raw, checksum, accepted_at_ms, ttl_ms, parts: 2, recipients }
        }
        other => other,
    };
    let world = World::new(&[message(1, b"one"), message(2, b"two"), message(3, b"three")]);
    world.write(&[parted(vec![part(4, "bob"), part(1, "cid")])]);
    world.write(&[parted(vec![part(1, "dan")])]);
    world.write(&[
        Record::Read { id: id(2), recipient: agent("bob") },
        Record::Read { id: id(4), recipient: agent("cid") },
        Record::Failed { id: id(3), recipient: agent("bob"), reason: RefuseReason::Expired },
    ]);
    let asked = |name: &str, number| Reading { id: id(number), recipient: agent(name) };
    let news = |counter| ReadingFound::News { sequence: at(counter), wants: Wants::default(), from: "ann".into() };
    let expected = [
        (asked("bob", 1), news(1)),
        (asked("ann", 1), ReadingFound::Nothing),
        (asked("bob", 2), ReadingFound::Known),
        (asked("bob", 3), ReadingFound::Failed),
        (asked("bob", 4), news(4)),
        (asked("cid", 4), ReadingFound::Known),
        (asked("dan", 4), news(1)),
        (asked("eve", 4), ReadingFound::Nothing),
        (asked("bob", 5), ReadingFound::Nothing),
    ];
    let twice = expected.iter().chain(&expected).map(|(reading, _)| *reading).collect();
    let answers = reads::look_up(&world.store, &world.tail, twice, || true);
    assert_eq!(answers.len(), expected.len(), "each once");
    for (reading, found) in expected {
        let answer = answers.iter().find(|answer| answer.reading == reading).map(|answer| &answer.found);
        assert_eq!(answer, Some(&found), "{reading:?}");
    }
    let mut looks = 0;
    let some = reads::look_up(&world.store, &world.tail, vec![asked("bob", 1), asked("bob", 2)], || {
        looks += 1;
        looks < 2
    });
    assert_eq!(some.len(), 1, "it is told to stop");
}

#[test]
fn while_nothing_is_committed_what_is_not_found_may_be_waiting() {
    let mut world = World::new(&[message(1, b"one")]);
    assert_eq!(world.page(json!({}))["uncommitted_since"], Value::Null);
    let (_, said) = world.message(json!({ "from": "ann", "number": 7 }));
    assert_eq!(said, json!({ "error": "no such message is kept here" }));
    let sentence = "the disk is full".to_owned();
    world.beside.trouble = Some(Trouble { kind: "full", sentence, since_ms: 1_766_966_970_000 });
    let since = "2025-12-29T00:09:30.000Z";
    for arguments in [json!({ "from": "ann", "number": 7 }), json!({ "id": "f".repeat(32) })] {
        let (failed, said) = world.message(arguments);
        assert!(failed);
        assert_eq!((&said["state"], &said["uncommitted_since"]), (&json!("unknown"), &json!(since)));
        let text = said["error"].as_str().unwrap();
        assert!(text.contains("taken nothing since 2025") && text.contains("the disk is full"), "{text}");
        assert!(text.contains("ask again") && text.contains("`relay status`"), "says what to do: {text}");
    }
    assert_eq!(world.page(json!({}))["uncommitted_since"], since);
    assert!(!world.message(json!({ "from": "ann", "number": 1 })).0, "what is stored is found");
}

#[test]
fn damage_that_was_met_is_said_with_every_page_and_with_what_is_not_found() {
    let mut world = World::new(&[message(1, b"one")]);
    assert_eq!(world.page(json!({}))["damaged"], Value::Null);
    world.beside.damage = Some(Damage { part: Part::Log, key: 7, what: "a checksum does not fit" });
    assert_eq!(world.page(json!({}))["damaged"], "log 7: a checksum does not fit");
    let (_, said) = world.message(json!({ "from": "ann", "number": 7 }));
    assert!(said["error"].as_str().unwrap().contains("the store is damaged (log 7"), "{said}");
}
