//! What agents say to have read: whose word is taken, who hears it, and what it may cost.

use super::*;
use crate::base::limits::{READINGS_AT_ONCE_MAX, READINGS_COST, READINGS_WAITING_MAX};
use crate::relay::readings::{LookedUp, ReadingFound};
use crate::wire::{Receipt, ReceiptState};

const READ: Wants = Wants::READ;

impl Pair {
    fn says_read(&mut self, shard: u16, session: SessionId, reader: &str, ids: impl IntoIterator<Item = MessageId>) {
        let receipt =
            |id| Receipt { id, count: 1, state: ReceiptState::Read, recipient: AgentId::of(reader.as_bytes()) };
        self.frame(shard, session, Frame::Receipt(ids.into_iter().map(receipt).collect()));
    }

    /// Records of readings so far.
    fn kept(&self) -> usize {
        self.records.iter().filter(|record| matches!(record, Record::Read { .. })).count()
    }

    /// What the store is asked.
    fn asked(&mut self) -> Vec<Reading> {
        std::mem::take(&mut self.readings)
    }

    fn answer(&mut self, shard: u16, readings: Vec<Reading>, found: impl Fn(&Reading) -> ReadingFound) {
        let answer = |reading| LookedUp { reading, found: found(&reading) };
        self.tell(shard, Event::LookedUp(readings.into_iter().map(answer).collect()));
    }

    /// How often it was ignored: unknown, not delivered, repeated, busy.
    fn ignored(&self, shard: usize) -> [u64; 4] {
        self.hearts[shard].gauges().counters.reads_ignored
    }
}

fn id(sender: &str, number: u64) -> MessageId {
    MessageId { sender: AgentId::of(sender.as_bytes()), number }
}

fn news(from: &str, counter: u64, wants: Wants) -> ReadingFound {
    ReadingFound::News { sequence: Sequence { epoch: 3, counter }, wants, from: from.into() }
}

#[test]
fn what_was_handed_out_and_is_read_before_it_is_acknowledged_is_known_at_once_and_told_once() {
    let mut pair = Pair::new();
    let (from, to) = (Pair::name(0, 0), Pair::name(1, 0));
    let (sender, recipient) = (pair.hello(0, 0, &from), pair.hello(1, 0, &to));
    pair.send(0, sender, &from, &to, 1, READ);
    pair.send(0, sender, &from, &to, 2, Wants::ACCEPTED);
    pair.carry();
    assert_eq!(pair.heard(sender), ["Accepted 2"]);
    for _ in 0..3 {
        pair.says_read(1, recipient, &to, [id(&from, 1), id(&from, 2), id(&from, 1)]);
        pair.carry();
    }
    assert_eq!(pair.heard(sender), ["Read 1"], "nobody asked about the other");
    assert_eq!((pair.kept(), pair.asked().len()), (2, 0));
    assert_eq!((pair.hearts[1].gauges().counters.reads, pair.ignored(1)), (2, [0, 0, 7, 0]));
}

#[test]
fn a_stranger_is_not_believed_and_nobody_hears_of_it() {
    let mut pair = Pair::new();
    let (from, to, liar) = (Pair::name(0, 0), Pair::name(0, 1), Pair::name(0, 2));
    let (sender, lying) = (pair.hello(0, 0, &from), pair.hello(0, 2, &liar));
    pair.hello(0, 1, &to);
    pair.send(0, sender, &from, &to, 1, READ);
    pair.says_read(0, lying, &liar, (1..=1024).map(|number| id(&from, number)));
    let asked = pair.asked();
    assert_eq!(asked.len(), 1024);
    pair.answer(0, asked, |_| ReadingFound::Nothing);
    assert_eq!((pair.heard(sender), pair.kept(), pair.mails.len()), (vec![], 0, 0));
    assert_eq!(pair.ignored(0), [1024, 0, 0, 0]);
}

#[test]
fn what_was_acknowledged_before_it_was_read_is_looked_up_behind_the_records_and_told_if_asked_for() {
    let mut pair = Pair::new();
    let (from, to) = (Pair::name(0, 0), Pair::name(1, 0));
    let (sender, recipient) = (pair.hello(0, 0, &from), pair.hello(1, 0, &to));
    for number in 1..=3 {
        pair.send(0, sender, &from, &to, number, Wants::default());
    }
    pair.carry();
    let through = Sequence { epoch: 3, counter: 2 };
    pair.frame(1, recipient, Frame::Ack(Ack::Through(through)));
    pair.says_read(1, recipient, &to, [id(&from, 1), id(&from, 2)]);
    pair.says_read(1, recipient, &to, [id(&from, 2), id(&from, 9)]);
    let asked = pair.asked();
    assert_eq!(asked.len(), 2, "the second question waits for the answer to the first");
    pair.answer(1, asked, |reading| news(&from, reading.id.number, Wants(READ.0 * (reading.id.number as u8 % 2))));
    pair.carry();
    assert_eq!((pair.heard(sender), pair.kept()), (vec!["Read 1".to_owned()], 2));
    let asked = pair.asked();
    assert_eq!(asked.iter().map(|reading| reading.id.number).collect::<Vec<_>>(), [9]);
    // A message for it that it has not been given, and one that it was given in the meantime.
    pair.answer(1, asked, |_| news(&from, 9, READ));
    pair.says_read(1, recipient, &to, [id(&from, 1), id(&from, 2), id(&from, 3)]);
    pair.carry();
    assert_eq!((pair.heard(sender), pair.kept(), pair.asked().len()), (vec![], 3, 0));
    assert_eq!(pair.ignored(1), [0, 1, 3, 0]);
}

#[test]
fn what_is_handed_out_while_the_store_is_asked_is_kept_once() {
    let mut pair = Pair::with(Bounds { in_flight_max: 1, ..Bounds::default() });
    let (from, to) = (Pair::name(0, 0), Pair::name(0, 1));
    let (sender, recipient) = (pair.hello(0, 0, &from), pair.hello(0, 1, &to));
    pair.send(0, sender, &from, &to, 1, READ);
    pair.send(0, sender, &from, &to, 2, READ);
    pair.says_read(0, recipient, &to, [id(&from, 2)]);
    let asked = pair.asked();
    assert_eq!(asked.len(), 1, "it waits for the window");
    pair.frame(0, recipient, Frame::Ack(Ack::Through(Sequence { epoch: 3, counter: 1 })));
    pair.says_read(0, recipient, &to, [id(&from, 2)]);
    assert_eq!(pair.kept(), 0, "the answer decides");
    pair.answer(0, asked, |_| news(&from, 2, READ));
    pair.says_read(0, recipient, &to, [id(&from, 2)]);
    assert_eq!((pair.kept(), pair.heard(sender)), (1, vec!["Read 2".to_owned()]));
}

#[test]
fn more_than_can_be_looked_up_is_dropped_and_leaves_room_for_others() {
    let mut pair = Pair::new();
    let (liar, honest, from) = (Pair::name(0, 0), Pair::name(0, 1), Pair::name(0, 2));
    let (lying, reader) = (pair.hello(0, 0, &liar), pair.hello(0, 1, &honest));
    for frame in 0..10 {
        pair.says_read(0, lying, &liar, (0..1024).map(|number| id(&from, 1024 * frame + number)));
    }
    let half = READINGS_WAITING_MAX as u64 / 2;
    assert_eq!(pair.ignored(0), [0, 0, 0, 10 * 1024 - half]);
    pair.says_read(0, reader, &honest, [id(&from, 1)]);
    assert_eq!(pair.ignored(0)[3], 10 * 1024 - half, "this one waits in line");
    let mut looked_up = 0;
    while let asked @ [_, ..] = &pair.asked()[..] {
        assert!(asked.len() <= READINGS_AT_ONCE_MAX);
        looked_up += asked.len() as u64;
        pair.answer(0, asked.to_vec(), |_| ReadingFound::Nothing);
    }
    assert_eq!((looked_up, pair.kept()), (half + 1, 0));
    // An answer without some of what was asked: nothing of it stays.
    pair.says_read(0, reader, &honest, [id(&from, 2)]);
    assert_eq!(pair.asked().len(), 1);
    pair.answer(0, Vec::new(), |_| ReadingFound::Nothing);
    pair.says_read(0, reader, &honest, [id(&from, 2)]);
    assert_eq!(pair.asked().len(), 1, "it may be asked again");
}

#[test]
fn whoever_makes_up_what_it_has_read_is_left_unread_sooner() {
    let burst = 4 * READINGS_COST as u32;
    let mut pair = Pair::with(Bounds { control_per_second: 10, control_burst: burst, ..Bounds::default() });
    let (liar, from) = (Pair::name(0, 0), Pair::name(0, 1));
    let lying = pair.hello(0, 0, &liar);
    for number in 1..=4 {
        assert!(!pair.hearts[0].is_paused(lying), "{number}");
        pair.says_read(0, lying, &liar, [id(&from, number)]);
        let asked = pair.asked();
        pair.answer(0, asked, |_| ReadingFound::Nothing);
    }
    assert!(pair.hearts[0].is_paused(lying));
}

#[test]
fn nothing_is_believed_that_cannot_be_kept() {
    let mut pair = Pair::new();
    let (from, to) = (Pair::name(0, 0), Pair::name(0, 1));
    let (sender, recipient) = (pair.hello(0, 0, &from), pair.hello(0, 1, &to));
    pair.send(0, sender, &from, &to, 1, READ);
    pair.tell(0, Event::WriterFull(true));
    pair.says_read(0, recipient, &to, [id(&from, 1)]);
    assert_eq!((pair.kept(), pair.heard(sender), pair.ignored(0)), (0, vec![], [0, 0, 0, 1]));
    pair.tell(0, Event::WriterFull(false));
    pair.says_read(0, recipient, &to, [id(&from, 1)]);
    assert_eq!((pair.kept(), pair.heard(sender)), (1, vec!["Read 1".to_owned()]));
}
