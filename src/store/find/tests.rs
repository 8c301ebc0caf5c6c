//! Finding, held against a plain list of everything that was ever written: the same questions, answered by looking at all
//! of it.

use super::*;
use crate::base::Sequence;
use crate::relay::{Fetch, Recipients, Record, Wanted};
use crate::store::index::{Group, GroupLimits, Tail};
use crate::store::{Options, Segment, Store};
use crate::wire::{MessageFields, encode};
use parking_lot::RwLock;
use std::collections::{HashMap, VecDeque};

const AGENTS: [&str; 6] = ["ann", "bob", "cy", "dora", "eve", "fred"];
const TOPICS: [&str; 3] = ["builds", "dm:ann:bob", "x"];
const THREADS: [&str; 3] = ["t1", "t2", "a thread with a longer name"];
const START_MS: u64 = 1_790_000_000_000;

/// Numbers that are the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % sides
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len() as u64) as usize]
    }
}

/// A message as it was written.
#[derive(Clone, Debug)]
struct Part {
    place: Place,
    id: MessageId,
    from: String,
    to: String,
    topic: String,
    thread: String,
    accepted_at_ms: u64,
    ttl_ms: u32,
    raw: Bytes,
    recipients: Vec<Addressee>,
}

/// A store, and beside it the list.
struct World {
    dice: Dice,
    folder: tempfile::TempDir,
    store: Store,
    tail: RwLock<Tail>,
    parts: Vec<Part>,
    outcomes: HashMap<(MessageId, AgentId), Outcome>,
    refused: Vec<(Place, MessageId)>,
    counters: HashMap<AgentId, u64>,
    epoch: u32,
    now_ms: u64,
    number: u64,
    /// Parts of fan-outs that another shard has not handed over yet.
    late: VecDeque<(Record, Part)>,
}

impl World {
    fn new(seed: u64, limits: GroupLimits, key: Option<crate::store::Key>) -> World {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { map_bytes: 1 << 28, ..Options::new(folder.path().join("store"), key) };
        let store = Store::open(options).unwrap();
        store.begin_epoch(1, 1).unwrap();
        let tail = RwLock::new(store.tail(limits).unwrap());
        World {
            dice: Dice(seed),
            folder,
            store,
            tail,
            parts: Vec::new(),
            outcomes: HashMap::new(),
            refused: Vec::new(),
            counters: HashMap::new(),
            epoch: 1,
            now_ms: START_MS + 100_000,
            number: 0,
            late: VecDeque::new(),
        }
    }

    fn small_groups() -> GroupLimits {
        GroupLimits { messages: 12, plaintext_bytes: 1 << 20, segments: 9 }
    }

    fn place_for(&mut self, name: &str) -> Addressee {
        let agent = AgentId::of(name.as_bytes());
        let counter = self.counters.entry(agent).or_default();
        *counter += 1;
        Addressee {
            agent,
            sequence: Sequence { epoch: self.epoch, counter: *counter },
            channel: counter.is_multiple_of(5),
        }
    }

    /// A message and its parts: the first to be written now, the others a little later.
    fn message(&mut self) -> (Record, Part) {
        self.number += 1;
        self.now_ms += self.dice.roll(400);
        if self.dice.roll(40) == 0 {
            self.now_ms -= 3_000;
        }
        let from = self.dice.pick(&AGENTS).to_owned();
        let kind = self.dice.roll(10);
        let topic = if self.dice.roll(3) == 0 { self.dice.pick(&TOPICS) } else { "" };
        let (to, topic) = match kind {
            0 => ("*".to_owned(), topic.to_owned()),
            1 | 2 => (format!("#{}", self.dice.pick(&TOPICS)), String::new()),
            _ => (self.dice.pick(&AGENTS).to_owned(), topic.to_owned()),
        };
        let thread = if self.dice.roll(2) == 0 { self.dice.pick(&THREADS) } else { "" };
        let id = MessageId { sender: AgentId::of(from.as_bytes()), number: self.number };
        let text = vec![b'x'; self.dice.roll(300) as usize];
        let ttl_ms = if self.dice.roll(4) == 0 { 1 + self.dice.roll(20_000) as u32 } else { 0 };
        let fields = MessageFields {
            id,
            from: from.as_bytes(),
            to: to.as_bytes(),
            topic: topic.as_bytes(),
            thread: thread.as_bytes(),
            text: &text,
            ttl_ms,
            ..Default::default()
        };
        let mut raw = Vec::new();
        let checksum = encode::message_body(&mut raw, &fields);
        let part = Part {
            place: Place::default(),
            id,
            from,
            to: to.clone(),
            topic: topic_of(&to, &topic).to_owned(),
            thread: thread.to_owned(),
            accepted_at_ms: self.now_ms,
            ttl_ms,
            raw: raw.into(),
            recipients: Vec::new(),
        };
        let record = |part: &Part, recipients| Record::Message {
            id,
            raw: part.raw.clone(),
            checksum,
            accepted_at_ms: part.accepted_at_ms,
            ttl_ms,
            parts: 1,
            recipients,
        };
        if kind > 2 {
            let one = self.place_for(&to);
            let part = Part { recipients: vec![one], ..part };
            return (record(&part, Recipients::One(one)), part);
        }
        // Some agents live at each of up to three shards; those of the later parts are given their places later.
        let shards = 1 + self.dice.roll(3) as usize;
        let mut first = None;
        for shard in 0..shards {
            let names: Vec<&str> = AGENTS.into_iter().skip(shard).step_by(shards).collect();
            let recipients: Vec<Addressee> = names.into_iter().map(|name| self.place_for(name)).collect();
            let accepted_at_ms = part.accepted_at_ms + self.dice.roll(50);
            let part = Part { recipients: recipients.clone(), accepted_at_ms, ..part.clone() };
            let made = (record(&part, Recipients::Many(recipients.into_boxed_slice())), part);
            if first.is_none() { first = Some(made) } else { self.late.push_back(made) }
        }
        first.expect("there is one shard at least")
    }

    fn write_segment(&mut self) {
        let mut segment = Segment::new();
        let mut parts = Vec::new();
        let number = self.store.last_segment().unwrap() + 1;
        for _ in 0..1 + self.dice.roll(5) {
            // Each agent's own order is kept: what is late comes before anything new.
            while let Some((record, part)) = self.late.pop_front() {
                let offset = segment.push(&record);
                parts.push(Part { place: Place { segment: number, offset }, ..part });
                if self.dice.roll(3) == 0 {
                    break;
                }
            }
            if self.late.is_empty() {
                let (record, part) = self.message();
                let offset = segment.push(&record);
                parts.push(Part { place: Place { segment: number, offset }, ..part });
            }
            self.push_outcome(&mut segment, number);
        }
        assert_eq!(self.store.append(&mut segment).unwrap(), number);
        self.parts.extend(parts);
        if self.dice.roll(60) == 0 {
            self.epoch += 1;
            self.counters.clear();
        }
    }

    fn push_outcome(&mut self, segment: &mut Segment, number: u64) {
        let recent = self.parts.len().saturating_sub(40);
        match (self.dice.roll(6), self.parts.get(recent + self.dice.roll(40) as usize).cloned()) {
            (0, Some(part)) => {
                let recipient = part.recipients[0].agent;
                let reason = RefuseReason::Expired;
                segment.push(&Record::Failed { id: part.id, recipient, reason });
                self.outcomes.insert((part.id, recipient), Outcome::Failed(reason));
            }
            (1, Some(part)) => {
                let recipient = part.recipients[0].agent;
                segment.push(&Record::Read { id: part.id, recipient });
                self.outcomes.entry((part.id, recipient)).or_insert(Outcome::Read);
            }
            (2, _) if self.dice.roll(4) == 0 => {
                self.number += 1;
                let id = MessageId { sender: AgentId::of(b"ann"), number: self.number };
                let record = Record::Refused { id, reason: RefuseReason::NotFound, at_ms: self.now_ms };
                let offset = segment.push(&record);
                self.refused.push((Place { segment: number, offset }, id));
            }
            _ => {}
        }
    }

    fn query(&mut self) -> HistoryQuery {
        let mut query = HistoryQuery { limit: 1 + self.dice.roll(12) as usize, ..Default::default() };
        let some = |dice: &mut Dice, of: &[&str]| (dice.roll(3) == 0).then(|| dice.pick(of).to_owned());
        query.from = some(&mut self.dice, &AGENTS);
        query.agent = some(&mut self.dice, &["ann", "fred", "nobody"]);
        query.to = some(&mut self.dice, &["ann", "cy", "*", "#builds", "#x"]);
        query.thread = some(&mut self.dice, &THREADS);
        query.topic = some(&mut self.dice, &["builds", "#x", "dm:ann:bob"]);
        let span = self.now_ms - START_MS + 1;
        query.since_ms = (self.dice.roll(4) == 0).then(|| START_MS + self.dice.roll(span));
        query.until_ms = (self.dice.roll(4) == 0).then(|| START_MS + self.dice.roll(span));
        query
    }

    /// The rows that a query has in all: oldest first, each with all its recipients.
    fn expected(&self, query: &HistoryQuery, seen: usize) -> Vec<(Place, MessageId, usize)> {
        let fits = |part: &Part| {
            let has = |name: &String| part.recipients.iter().any(|to| to.agent == AgentId::of(name.as_bytes()));
            let fanout = is_fanout(part.to.as_bytes());
            query.from.as_ref().is_none_or(|from| *from == part.from)
                && query.agent.as_ref().is_none_or(|agent| *agent == part.from || has(agent))
                && query.to.as_ref().is_none_or(|to| match to.strip_prefix('#') {
                    Some(topic) => fanout && part.topic == topic,
                    None if to == "*" => part.to == "*",
                    None => has(to),
                })
                && query.thread.as_ref().is_none_or(|thread| *thread == part.thread)
                && query.topic.as_ref().is_none_or(|topic| topic.trim_start_matches('#') == part.topic)
                && query.since_ms.is_none_or(|since_ms| part.accepted_at_ms >= since_ms)
                && query.until_ms.is_none_or(|until_ms| part.accepted_at_ms < until_ms)
        };
        let mut rows: Vec<(Place, MessageId, usize)> = Vec::new();
        for part in self.parts[..seen].iter().filter(|part| fits(part)) {
            if !rows.iter().any(|(_, id, _)| *id == part.id) {
                let all = self.parts.iter().filter(|other| other.id == part.id);
                rows.push((part.place, part.id, all.map(|part| part.recipients.len()).sum()));
            }
        }
        rows
    }

    fn check_outcomes(&self, rows: &[FoundMessage]) {
        for row in rows {
            for recipient in &row.recipients {
                assert_eq!(recipient.outcome, self.outcomes.get(&(row.id, recipient.to.agent)).copied());
            }
        }
    }
}

fn topic_of<'a>(to: &'a str, topic: &'a str) -> &'a str {
    to.strip_prefix('#').unwrap_or(topic)
}

fn shape(rows: &[FoundMessage]) -> Vec<(Place, MessageId, usize)> {
    rows.iter().map(|row| (row.place, row.id, row.recipients_total)).collect()
}

/// All pages of a query, oldest row first; `between` runs before each page but the first.
fn all_pages(world: &mut World, query: &HistoryQuery, mut between: impl FnMut(&mut World)) -> Vec<FoundMessage> {
    let mut query = query.clone();
    let mut rows = Vec::new();
    loop {
        let page = history(&world.store, &world.tail, &query).unwrap();
        assert!(page.rows.len() <= query.limit && page.damaged.is_none());
        assert!(page.rows.is_sorted_by(|newer, older| newer.place > older.place));
        world.check_outcomes(&page.rows);
        rows.extend(page.rows);
        query.before = page.next;
        if page.next.is_none() {
            rows.reverse();
            return rows;
        }
        between(world);
    }
}

#[test]
fn every_filter_finds_what_a_look_at_everything_finds() {
    for seed in 0..4 {
        let key = (seed % 2 == 1).then(|| crate::store::Key::generate().unwrap());
        let mut world = World::new(seed, World::small_groups(), key);
        for round in 0..60 {
            world.write_segment();
            // Sometimes the index lies behind.
            if world.dice.roll(3) > 0 {
                world.store.index(&world.tail, false).unwrap();
            }
            for _ in 0..if round % 10 == 9 { 30 } else { 2 } {
                let query = world.query();
                let found = shape(&all_pages(&mut world, &query, |_| {}));
                assert_eq!(found, world.expected(&query, world.parts.len()), "seed {seed}, round {round}: {query:?}");
            }
        }
        assert!(world.store.snapshot().unwrap().indexed_through().unwrap() > 20, "groups were closed");
    }
}

#[test]
fn pages_stay_what_they_are_while_messages_come_in() {
    for seed in 10..13 {
        let mut world = World::new(seed, World::small_groups(), None);
        for _ in 0..40 {
            world.write_segment();
        }
        for _ in 0..25 {
            // No part is still to come, so that each row is as long before as after.
            while !world.late.is_empty() {
                world.write_segment();
            }
            let mut query = world.query();
            (query.since_ms, query.until_ms) = (None, None);
            let seen = world.parts.len();
            let expected = world.expected(&query, seen);
            let found = all_pages(&mut world, &query, |world| {
                world.write_segment();
                if world.dice.roll(2) == 0 {
                    world.store.index(&world.tail, false).unwrap();
                }
            });
            assert_eq!(shape(&found), expected, "seed {seed}: {query:?}");
        }
    }
}

#[test]
fn following_sees_each_message_once_in_the_order_of_the_log() {
    for seed in 20..24 {
        let mut world = World::new(seed, World::small_groups(), None);
        for _ in 0..30 {
            world.write_segment();
        }
        let mut query = HistoryQuery { limit: 7, agent: Some("ann".into()), ..Default::default() };
        let mut seen = shape(&all_pages(&mut world, &query, |_| {}));
        // From what the first look saw on.
        query.after = Some(history(&world.store, &world.tail, &query).unwrap().end);
        for _ in 0..60 {
            if world.dice.roll(2) == 0 {
                world.write_segment();
            }
            if world.dice.roll(3) == 0 {
                world.store.index(&world.tail, false).unwrap();
            }
            let page = history(&world.store, &world.tail, &query).unwrap();
            assert!(page.rows.is_sorted_by(|older, newer| older.place < newer.place));
            seen.extend(shape(&page.rows));
            query.after = page.next;
        }
        while let page = history(&world.store, &world.tail, &query).unwrap()
            && !page.rows.is_empty()
        {
            seen.extend(shape(&page.rows));
            query.after = page.next;
        }
        let ids =
            |rows: &[(Place, MessageId, usize)]| rows.iter().map(|(place, id, _)| (*place, *id)).collect::<Vec<_>>();
        assert_eq!(ids(&seen), ids(&world.expected(&query, world.parts.len())), "seed {seed}");
    }
}

#[test]
fn a_message_is_found_by_any_beginning_of_its_id() {
    for seed in 30..33 {
        let mut world = World::new(seed, World::small_groups(), None);
        for _ in 0..80 {
            world.write_segment();
            if world.dice.roll(3) == 0 {
                world.store.index(&world.tail, false).unwrap();
            }
        }
        let mut ids: Vec<(Place, MessageId)> = world.parts.iter().map(|part| (part.place, part.id)).collect();
        ids.extend(&world.refused);
        ids.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
        for _ in 0..300 {
            let (_, id) = ids[world.dice.roll(ids.len() as u64) as usize];
            let digits = 1 + world.dice.roll(32) as usize;
            let prefix = &id.to_string()[..digits];
            let mut fitting: Vec<MessageId> = Vec::new();
            for (_, other) in ids.iter().filter(|(_, other)| other.to_string().starts_with(prefix)) {
                if !fitting.contains(other) && fitting.len() < MATCHES_MAX {
                    fitting.push(*other);
                }
            }
            let by_prefix = if digits.is_multiple_of(2) { prefix.to_uppercase() } else { prefix.to_owned() };
            match message_by_prefix(&world.store, &world.tail, &by_prefix).unwrap() {
                Found::Several(several) => assert_eq!(several, fitting, "{prefix}"),
                Found::Refused { id: found, .. } => assert_eq!(vec![found], fitting),
                Found::Message(found) => {
                    assert_eq!(vec![found.id], fitting);
                    let parts = world.parts.iter().filter(|part| part.id == found.id);
                    let recipients: Vec<Addressee> = parts.flat_map(|part| part.recipients.clone()).collect();
                    assert_eq!(found.recipients.iter().map(|one| one.to).collect::<Vec<_>>(), recipients);
                    world.check_outcomes(std::slice::from_ref(&found));
                }
                Found::None => panic!("{prefix} is there"),
            }
        }
        let absent = MessageId { sender: AgentId::of(b"ann"), number: 1 << 40 };
        assert!(matches!(message(&world.store, &world.tail, absent).unwrap(), Found::None));
        for none in ["", "xyz", "é", &"0".repeat(33)] {
            assert!(matches!(message_by_prefix(&world.store, &world.tail, none).unwrap(), Found::None));
        }
    }
}

#[test]
fn owed_mail_comes_back_in_order_whatever_the_bounds_and_hints() {
    for seed in 40..43 {
        let mut world = World::new(seed, World::small_groups(), None);
        for _ in 0..90 {
            world.write_segment();
            if world.dice.roll(3) == 0 {
                world.store.index(&world.tail, false).unwrap();
            }
        }
        for _ in 0..60 {
            let agent = AgentId::of(world.dice.pick(&AGENTS).as_bytes());
            let all: Vec<(Addressee, Part)> = world
                .parts
                .iter()
                .flat_map(|part| part.recipients.iter().map(move |to| (*to, part.clone())))
                .filter(|(to, _)| to.agent == agent)
                .collect();
            assert!(all.is_sorted_by(|one, next| one.0.sequence < next.0.sequence), "the list is as the homes made it");
            let after = all[world.dice.roll(all.len() as u64) as usize].0.sequence;
            let (now_ms, retention_ms) = (world.now_ms - world.dice.roll(20_000), 1 + world.dice.roll(60_000));
            let expired_before_ms = now_ms - world.dice.roll(10_000);
            let wants_mail = world.dice.roll(3) > 0;
            let wanted = if wants_mail {
                let bytes_max = if world.dice.roll(2) == 0 { 700 } else { 1 << 20 };
                Wanted::Mail { messages_max: 1 + world.dice.roll(9) as u32, bytes_max, expired_before_ms }
            } else {
                Wanted::Expired { messages_max: 1 + world.dice.roll(9) as u32, expired_before_ms }
            };
            let expiry = |part: &Part| {
                let kept_ms = if part.ttl_ms == 0 { retention_ms } else { retention_ms.min(u64::from(part.ttl_ms)) };
                part.accepted_at_ms + kept_ms
            };
            let owed = all.iter().filter(|(to, _)| to.sequence > after);
            let expected: Vec<(Addressee, Bytes, bool)> = owed
                .clone()
                .filter(|(_, part)| expiry(part) > expired_before_ms && (wants_mail || expiry(part) <= now_ms))
                .map(|(to, part)| (*to, part.raw.clone(), expiry(part) <= now_ms))
                .collect();
            let mut ask = Fetch { agent, after, place: Place::default(), wanted, now_ms, retention_ms };
            let (mut got, mut next_expiry_ms) = (Vec::new(), u64::MAX);
            loop {
                let (fetched, damaged) = fetch(&world.store, &world.tail, &ask).unwrap();
                assert_eq!(damaged, None);
                if let Wanted::Mail { messages_max, bytes_max, .. } = wanted {
                    let bytes: usize = fetched.messages.iter().map(|message| message.raw.len()).sum();
                    let one = fetched.messages.len() <= 1;
                    assert!(fetched.messages.len() <= messages_max as usize && (one || bytes <= bytes_max as usize));
                }
                got.extend(fetched.messages.iter().map(|message| (message.to, message.raw.clone(), message.expired)));
                next_expiry_ms = next_expiry_ms.min(fetched.next_expiry_ms);
                ask.after = fetched.messages.last().map_or(ask.after, |message| message.to.sequence);
                // With the hint and without it.
                ask.place = if world.dice.roll(2) == 0 { fetched.place } else { Place::default() };
                if fetched.complete {
                    break;
                }
                assert!(!fetched.messages.is_empty());
            }
            assert_eq!(got, expected, "seed {seed}");
            if !wants_mail {
                let stays = owed.map(|(_, part)| expiry(part)).filter(|expiry_ms| *expiry_ms > now_ms).min();
                assert_eq!(next_expiry_ms, stays.unwrap_or(u64::MAX));
            }
        }
    }
}

#[test]
fn lost_and_damaged_groups_are_read_from_the_log_and_made_again() {
    let mut world = World::new(50, World::small_groups(), None);
    for _ in 0..100 {
        world.write_segment();
    }
    world.store.index(&world.tail, false).unwrap();
    let groups = |world: &World| {
        let snapshot = world.store.snapshot().unwrap();
        let mut groups: Vec<(u64, Vec<u8>)> = Vec::new();
        while let Some((key, value)) = snapshot.group_behind(groups.last().map_or(0, |(key, _)| *key)).unwrap() {
            groups.push((key, value.to_vec()));
        }
        groups
    };
    let before = groups(&world);
    assert!(before.len() > 6);
    let queries: Vec<HistoryQuery> = (0..40).map(|_| world.query()).collect();
    // Damaged here and there: in a header, in a dictionary, at the end, cut off.
    for (number, (key, value)) in before.iter().enumerate().take(5) {
        let mut value = value.clone();
        match number {
            0 => value[9] ^= 1,
            1 => value[100] ^= 0x80,
            2 => *value.last_mut().unwrap() ^= 1,
            3 => value.truncate(70),
            _ => value.clear(),
        }
        world.store.append_group(&value, *key).unwrap();
    }
    for query in &queries {
        let found = shape(&all_pages(&mut world, query, |_| {}));
        assert_eq!(found, world.expected(query, world.parts.len()), "{query:?}");
    }
    // Some are gone, the last among them.
    for (key, _) in [&before[1], &before[5], &before[before.len() - 1]] {
        world
            .store
            .write(|transaction, databases| Ok(databases.index.delete(transaction, &key.to_be_bytes())?))
            .unwrap();
    }
    world.tail = RwLock::new(world.store.tail(World::small_groups()).unwrap());
    assert_eq!(world.store.index(&world.tail, true).unwrap(), None);
    let after = groups(&world);
    let checked = |(key, value): &(u64, Vec<u8>)| Group::check(*key, value).map(|group| group.last_segment());
    let mut next = 1;
    for group in &after {
        assert_eq!(group.0, next, "nothing is left out");
        next = checked(group).unwrap() + 1;
    }
    assert_eq!(after.last(), before.last());
    for query in &queries {
        let found = shape(&all_pages(&mut world, query, |_| {}));
        assert_eq!(found, world.expected(query, world.parts.len()), "{query:?}");
    }
    assert!(world.folder.path().exists());
}

#[test]
fn what_retention_has_taken_is_not_found_and_the_rest_is() {
    for seed in 70..72 {
        let mut world = World::new(seed, World::small_groups(), None);
        for _ in 0..70 {
            world.write_segment();
        }
        world.store.index(&world.tail, false).unwrap();
        // In the middle of a group, and then everything.
        for through in [31, 70] {
            world.store.mark_applied(through).unwrap();
            while !world.store.sweep_step(u64::MAX, u64::MAX, 50).unwrap().done {}
            world.parts.retain(|part| part.place.segment > through);
            for _ in 0..30 {
                let query = world.query();
                let found = shape(&all_pages(&mut world, &query, |_| {}));
                assert_eq!(found, world.expected(&query, world.parts.len()), "seed {seed}: {query:?}");
            }
            let agent = AgentId::of(b"bob");
            let expected: Vec<Addressee> =
                world.parts.iter().flat_map(|part| part.recipients.clone()).filter(|to| to.agent == agent).collect();
            let wanted = Wanted::Mail { messages_max: 1_000, bytes_max: 1 << 20, expired_before_ms: 0 };
            let (after, place) = (Sequence::default(), Place::default());
            let ask = Fetch { agent, after, place, wanted, now_ms: START_MS, retention_ms: u64::MAX / 2 };
            let (fetched, _) = fetch(&world.store, &world.tail, &ask).unwrap();
            assert_eq!(fetched.messages.iter().map(|message| message.to).collect::<Vec<_>>(), expected);
            assert!(fetched.complete);
        }
        world.write_segment();
        world.tail = RwLock::new(world.store.tail(World::small_groups()).unwrap());
        world.store.index(&world.tail, true).unwrap();
        let query = HistoryQuery { limit: 9, ..Default::default() };
        let found = shape(&all_pages(&mut world, &query, |_| {}));
        assert_eq!(found, world.expected(&query, world.parts.len()));
    }
}

#[test]
fn a_hostile_group_is_refused_or_answers_and_never_panics() {
    let mut world = World::new(60, GroupLimits { messages: 400, ..GroupLimits::default() }, None);
    for _ in 0..80 {
        world.write_segment();
    }
    let mut tail = world.store.tail(GroupLimits::default()).unwrap();
    let snapshot = world.store.snapshot().unwrap();
    for segment in 1..=80 {
        tail.add_segment(&mut snapshot.segment(segment).unwrap().unwrap()).unwrap();
    }
    let good = tail.close();
    let terms = world.store.terms();
    let wanted = crate::store::index::Wanted {
        clauses: vec![vec![terms.sender(AgentId::of(b"ann")), terms.recipient(AgentId::of(b"bob"))]],
    };
    let ask = |value: &[u8]| {
        let group = Group::check(1, value).ok()?;
        let all = group.candidates(&crate::store::index::Wanted::default(), Place::default(), tail_end());
        let some = group.candidates(&wanted, Place { segment: 3, offset: 0 }, tail_end());
        let ids = group.with_fingerprint(0, u32::MAX);
        Some((all.ok()?, some.ok()?, ids.ok()?))
    };
    let answers = ask(&good).expect("it is good");
    assert_eq!((answers.0.len(), answers.2.len()), (world.parts.len(), world.parts.len() + world.refused.len()));
    assert_eq!(answers.1, tail.candidates(&wanted, Place { segment: 3, offset: 0 }, tail_end()));
    let body = good.len() - body_bytes(&good);
    for turn in 0..6_000u32 {
        let mut value = good.clone();
        for _ in 0..1 + world.dice.roll(3) {
            let at = world.dice.roll(value.len() as u64) as usize;
            value[at] = world.dice.roll(256) as u8;
        }
        if turn.is_multiple_of(3) {
            value.truncate(world.dice.roll(value.len() as u64 + 1) as usize);
        }
        // An attacker who can write the file knows how to make checksums.
        if turn % 3 == 1 {
            for (block, sum) in good[body..].chunks(4096).enumerate().map(|(block, bytes)| (block, bytes.len())) {
                let sum = crc32fast::hash(&value[body + block * 4096..][..sum]).to_le_bytes();
                value[64 + block * 4..][..4].copy_from_slice(&sum);
            }
            let sum = crc32fast::hash(&value[4..body]).to_le_bytes();
            value[..4].copy_from_slice(&sum);
        }
        let _ = ask(&value);
    }
}

fn tail_end() -> Place {
    Place { segment: u64::MAX, offset: u32::MAX }
}

/// Bytes behind header and checksums.
fn body_bytes(value: &[u8]) -> usize {
    (1..value.len()).find(|body| 64 + body.div_ceil(4096) * 4 + body == value.len()).unwrap()
}
