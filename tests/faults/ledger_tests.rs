//! The rules are known to be able to fail: each is broken once, by the smallest story that breaks it.

use crate::ledger::{Arrival, Delivery, Ledger, Letter, Rule, SESSION_SETTLES, To};
use agent_relay::base::Sequence;
use agent_relay::base::ids::Token;

const ANN: usize = 0;
const BOB: usize = 1;
const SECOND: u64 = 1_000_000;

fn sequence(epoch: u32, counter: u64) -> Sequence {
    Sequence { epoch, counter }
}

fn letter(number: u64) -> Letter {
    Letter { sender: ANN, number }
}

/// A ledger and a clock.
struct Story {
    ledger: Ledger,
    now: u64,
    epoch: u32,
}

impl Story {
    fn new() -> Story {
        let mut story = Story { ledger: Ledger::new(3, false), now: SECOND, epoch: 1 };
        for agent in [ANN, BOB, 2] {
            story.arrive(agent, false, false, agent as u8, 0);
        }
        story
    }

    fn arrive(&mut self, agent: usize, asked: bool, resumed: bool, session: u8, handled: u64) {
        let handled = if handled == 0 { Sequence::default() } else { sequence(1, handled) };
        let session = Token([session; 16]);
        let arrival = Arrival { session, resumed, asked, handled, epoch: Some(self.epoch), number: 100 };
        self.ledger.arrived(agent, &arrival, self.now);
    }

    /// The daemon dies and comes back, and so do the agents.
    fn crash(&mut self) {
        self.now += SECOND;
        self.ledger.daemon_ended(self.now);
        self.epoch += 1;
        for agent in [ANN, BOB, 2] {
            self.arrive(agent, true, true, agent as u8, 0);
        }
    }

    fn say(&mut self, number: u64, to: To) {
        self.now += 1000;
        self.ledger.said(letter(number), to, self.now);
    }

    fn durable(&mut self, number: u64) {
        self.ledger.durable(letter(number), self.now);
    }

    fn deliver(&mut self, to: usize, number: u64, sequence: Sequence, redelivered: bool) {
        self.now += 1000;
        let delivery =
            Delivery { letter: letter(number), sequence: Some(sequence), redelivered, genuine: true, since: self.now };
        self.ledger.delivered(to, &delivery, self.now);
    }

    fn deliver_json(&mut self, to: usize, number: u64, redelivered: bool) {
        self.now += 1000;
        let delivery = Delivery { letter: letter(number), sequence: None, redelivered, genuine: true, since: self.now };
        self.ledger.delivered(to, &delivery, self.now);
    }

    fn good(&self) {
        assert!(self.ledger.violations().is_empty(), "{:?}", self.ledger.violations());
    }

    /// Exactly this rule is broken.
    fn broken(&self, rule: Rule) {
        assert!(!self.ledger.violations().is_empty(), "{rule:?} is not broken");
        assert!(self.ledger.violations().iter().all(|found| found.rule == rule), "{:?}", self.ledger.violations());
    }
}

#[test]
fn a_story_in_which_every_promise_is_kept_has_no_violations() {
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    story.deliver(BOB, 1, sequence(1, 1), false);
    story.durable(1);
    story.say(2, To::Everyone);
    story.deliver(BOB, 2, sequence(1, 2), false);
    story.say(3, To::One(2));
    story.crash();
    // Said again: number 3 was never seen, number 2 was, and has a second place.
    story.say(2, To::Everyone);
    story.say(3, To::One(2));
    story.deliver(BOB, 1, sequence(1, 1), true);
    story.deliver(BOB, 2, sequence(2, 1), false);
    story.deliver(2, 2, sequence(2, 1), false);
    story.deliver(2, 3, sequence(2, 2), false);
    assert!(!story.ledger.is_quiet());
    story.durable(2);
    story.durable(3);
    assert!(story.ledger.is_quiet());
    story.now += 6 * SECOND;
    story.deliver(2, 3, sequence(2, 2), true);
    story.ledger.settle(story.now);
    story.good();
    assert_eq!((story.ledger.repeats, story.ledger.second_places, story.ledger.durable), (3, 1, 3));
}

#[test]
fn a_second_place_that_was_durable_may_come_after_another_crash() {
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    story.deliver(BOB, 1, sequence(1, 1), false);
    story.crash();
    story.say(1, To::One(BOB));
    story.durable(1);
    story.crash();
    story.deliver(BOB, 1, sequence(2, 1), false);
    story.ledger.settle(story.now);
    story.good();
}

#[test]
fn a_durable_message_that_never_comes_is_lost() {
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    story.durable(1);
    story.crash();
    assert!(!story.ledger.is_quiet());
    story.ledger.settle(story.now);
    story.broken(Rule::Kept);
    let mut story = Story::new();
    story.say(1, To::Everyone);
    story.durable(1);
    story.deliver(BOB, 1, sequence(1, 1), false);
    story.ledger.settle(story.now);
    story.broken(Rule::Kept);
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    story.ledger.failed(letter(1));
    story.broken(Rule::Kept);
}

#[test]
fn a_later_message_that_comes_first_breaks_the_order() {
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    story.say(2, To::One(BOB));
    story.deliver(BOB, 2, sequence(1, 1), false);
    story.deliver(BOB, 1, sequence(1, 2), false);
    story.broken(Rule::Order);
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    story.say(2, To::One(BOB));
    story.deliver(BOB, 1, sequence(1, 2), false);
    story.deliver(BOB, 2, sequence(1, 1), false);
    story.broken(Rule::Order);
    // What is owed comes in order on the new connection, too.
    let mut story = Story::new();
    for number in [1, 2] {
        story.say(number, To::One(BOB));
        story.deliver(BOB, number, sequence(1, number), false);
    }
    story.crash();
    story.deliver(BOB, 2, sequence(1, 2), true);
    story.deliver(BOB, 1, sequence(1, 1), true);
    story.broken(Rule::Order);
}

#[test]
fn a_repeat_without_its_mark_or_reason_or_place_is_one_too_many() {
    let told = || {
        let mut story = Story::new();
        story.say(1, To::One(BOB));
        story.deliver(BOB, 1, sequence(1, 1), false);
        story
    };
    let mut unmarked = told();
    unmarked.crash();
    unmarked.deliver(BOB, 1, sequence(1, 1), false);
    unmarked.broken(Rule::Repeat);
    let mut early = told();
    early.now += 4 * SECOND;
    early.deliver(BOB, 1, sequence(1, 1), true);
    early.broken(Rule::Repeat);
    let mut other_message = told();
    other_message.say(2, To::One(BOB));
    other_message.crash();
    other_message.deliver(BOB, 2, sequence(1, 1), true);
    other_message.broken(Rule::Repeat);
    let mut promised = told();
    promised.durable(1);
    promised.crash();
    promised.say(1, To::One(BOB));
    promised.deliver(BOB, 1, sequence(2, 1), false);
    promised.broken(Rule::Repeat);
    let mut said_once = told();
    said_once.crash();
    said_once.deliver(BOB, 1, sequence(2, 1), false);
    said_once.broken(Rule::Repeat);
    let mut both = told();
    both.crash();
    both.say(1, To::One(BOB));
    both.deliver(BOB, 1, sequence(1, 1), true);
    both.deliver(BOB, 1, sequence(2, 1), false);
    both.broken(Rule::Repeat);
    let mut strict = told();
    strict.ledger.set_strict(true);
    strict.crash();
    strict.say(1, To::One(BOB));
    strict.deliver(BOB, 1, sequence(2, 1), false);
    strict.broken(Rule::Repeat);
    let mut json = Story::new();
    json.say(1, To::One(BOB));
    json.deliver_json(BOB, 1, false);
    json.durable(1);
    json.crash();
    json.deliver_json(BOB, 1, true);
    json.good();
    json.deliver_json(BOB, 1, true);
    json.broken(Rule::Repeat);
}

#[test]
fn other_bytes_are_found() {
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    let delivery = Delivery {
        letter: letter(1),
        sequence: Some(sequence(1, 1)),
        redelivered: false,
        genuine: false,
        since: story.now,
    };
    story.ledger.delivered(BOB, &delivery, story.now);
    story.broken(Rule::Bytes);
    let mut story = Story::new();
    story.deliver(BOB, 1, sequence(1, 1), false);
    story.broken(Rule::Bytes);
}

#[test]
fn a_message_for_others_is_found() {
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    story.deliver(2, 1, sequence(1, 1), false);
    story.broken(Rule::Recipient);
    let mut story = Story::new();
    story.say(1, To::Everyone);
    story.deliver(ANN, 1, sequence(1, 1), false);
    story.broken(Rule::Recipient);
}

#[test]
fn a_message_without_an_outcome_or_with_two_is_found() {
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    story.ledger.settle(story.now);
    story.broken(Rule::Outcome);
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    story.durable(1);
    story.ledger.refused(letter(1));
    story.broken(Rule::Outcome);
    let mut story = Story::new();
    story.durable(1);
    story.broken(Rule::Outcome);
    // A WELCOME that forgets durable numbers makes the sender use them again.
    let mut story = Story::new();
    story.say(101, To::One(BOB));
    story.durable(101);
    story.crash();
    story.broken(Rule::Outcome);
}

#[test]
fn another_session_or_an_old_epoch_is_found() {
    let mut story = Story::new();
    story.now += SESSION_SETTLES;
    story.ledger.daemon_ended(story.now);
    story.epoch += 1;
    story.arrive(BOB, true, false, 9, 0);
    story.broken(Rule::Session);
    let mut proven = Story::new();
    proven.say(1, To::One(BOB));
    proven.durable(1);
    proven.ledger.daemon_ended(proven.now);
    proven.epoch += 1;
    // It says nothing of who said it …
    proven.arrive(ANN, true, false, 9, 0);
    proven.good();
    // … and everything of who is to have it.
    proven.arrive(BOB, true, false, 9, 0);
    proven.broken(Rule::Session);
    // Nor does a receipt for what was said in an earlier life: it is in the log since then.
    let mut again = Story::new();
    again.say(1, To::One(BOB));
    again.crash();
    again.say(1, To::One(BOB));
    again.durable(1);
    again.ledger.daemon_ended(again.now);
    again.epoch += 1;
    again.arrive(BOB, true, false, 9, 0);
    again.good();
    let mut young = Story::new();
    young.now += SESSION_SETTLES - 1;
    young.ledger.daemon_ended(young.now);
    young.epoch += 1;
    young.arrive(BOB, true, false, 9, 0);
    young.good();
    let mut story = Story::new();
    story.ledger.lost(BOB);
    story.arrive(BOB, true, false, 9, 0);
    story.broken(Rule::Session);
    let mut story = Story::new();
    story.epoch = 0;
    story.crash();
    story.broken(Rule::Session);
}

#[test]
fn what_was_acknowledged_and_comes_again_is_found() {
    let mut presented = Story::new();
    presented.say(1, To::One(BOB));
    presented.deliver(BOB, 1, sequence(1, 1), false);
    presented.ledger.lost(BOB);
    presented.arrive(BOB, true, true, BOB as u8, 1);
    presented.deliver(BOB, 1, sequence(1, 1), true);
    presented.broken(Rule::Acknowledged);
    let mut committed = Story::new();
    committed.say(1, To::One(BOB));
    committed.deliver(BOB, 1, sequence(1, 1), false);
    committed.durable(1);
    let now = committed.now;
    committed.ledger.acknowledged(BOB, sequence(1, 1), now);
    committed.now += SECOND;
    for (sender, number, to) in [(BOB, 1, 2), (2, 1, BOB), (2, 2, BOB)] {
        let later = Letter { sender, number };
        committed.now += SECOND;
        committed.ledger.said(later, To::One(to), committed.now);
        committed.now += 1000;
        committed.ledger.durable(later, committed.now);
    }
    committed.crash();
    committed.deliver(BOB, 1, sequence(1, 1), true);
    committed.broken(Rule::Acknowledged);
    // Without a later commit the acknowledgement may be lost with the life.
    let mut lost = Story::new();
    lost.say(1, To::One(BOB));
    lost.deliver(BOB, 1, sequence(1, 1), false);
    lost.durable(1);
    let now = lost.now;
    lost.ledger.acknowledged(BOB, sequence(1, 1), now);
    lost.crash();
    lost.deliver(BOB, 1, sequence(1, 1), true);
    lost.good();
}

#[test]
fn what_was_settled_long_ago_and_comes_again_is_found() {
    let mut story = Story::new();
    story.say(1, To::One(BOB));
    story.deliver(BOB, 1, sequence(1, 1), false);
    story.durable(1);
    for _ in 0..4 {
        story.now += 6 * SECOND;
        story.ledger.settle(story.now);
    }
    story.good();
    story.crash();
    story.deliver(BOB, 1, sequence(1, 1), true);
    story.broken(Rule::Acknowledged);
}
