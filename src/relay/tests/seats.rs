//! Seats: exact over two shards, whatever crosses on the way.

use super::*;
use crate::base::tier::{Entitled, Tier};

fn limited(agents_max: Option<u32>) -> Entitled {
    Entitled::new(Entitlement { agents_max, ..Entitlement::of_tier(Tier::Pro) })
}

fn pair_of(agents_max: u32) -> Pair {
    Pair::shaped(|options| options.entitlement = limited(Some(agents_max)))
}

const FULL: [&str; 2] = ["QUOTA_EXCEEDED: Agent limit reached (2). Upgrade to increase limit.", "close agent_limit"];

fn seats(pair: &Pair) -> u32 {
    pair.hearts[0].gauges().seats
}

fn home(name: &str) -> u16 {
    NameHasher::new(1).hash(name.as_bytes()).home(2).0
}

#[test]
fn one_too_many_is_told_so_and_its_name_is_not_known() {
    let mut pair = pair_of(2);
    let sessions: Vec<_> =
        (0..3).map(|n| pair.hello_as(1, n, Peer::default(), named(&Pair::name(1, n as usize)))).collect();
    assert!(pair.said.is_empty(), "nobody is welcome before the ledger has answered");
    pair.carry();
    assert_eq!((pair.heard(sessions[0]), pair.heard(sessions[1])), (vec!["welcome".into()], vec!["welcome".into()]));
    assert_eq!(pair.heard(sessions[2]), FULL);
    assert_eq!((seats(&pair), pair.hearts[1].gauges().known), (2, 2));
    let local = pair.hello_as(0, 9, Peer::default(), named(&Pair::name(0, 0)));
    assert_eq!(pair.heard(local), FULL);
    let internal = |wanted| (0..).map(|n| format!("__helper-{n}")).filter(|name| home(name) == 0).nth(wanted).unwrap();
    let owner = Peer { owner: true, ..Peer::default() };
    let helper = pair.hello_as(0, 10, owner, named(&internal(0)));
    assert_eq!(pair.heard(helper), ["welcome"], "helpers hold no seat");
    let stranger = pair.hello_as(0, 12, Peer::default(), named(&internal(1)));
    assert_eq!(pair.heard(stranger), FULL, "unless anybody could say to be one");
    pair.frame(1, sessions[0], Frame::Bye);
    pair.carry();
    let local = pair.hello_as(0, 11, Peer::default(), named(&Pair::name(0, 0)));
    assert_eq!(pair.heard(local), ["welcome"]);
    assert_eq!(pair.hearts[0].gauges().seats_peak, 2);
}

#[test]
fn whoever_leaves_before_the_answer_gives_the_seat_back() {
    let mut pair = pair_of(2);
    let session = pair.hello_as(1, 0, Peer::default(), named(&Pair::name(1, 0)));
    pair.tell(1, Event::Closed { session, reason: CloseReason::Lost });
    pair.carry();
    assert_eq!((seats(&pair), pair.hearts[1].gauges().half_open), (0, 0));
}

#[test]
fn two_hellos_of_one_name_at_once_take_one_seat() {
    let mut pair = pair_of(2);
    let name = Pair::name(1, 0);
    let first = pair.hello_as(1, 0, Peer::default(), named(&name));
    let second = pair.hello_as(1, 1, Peer::default(), named(&name));
    assert_eq!(pair.heard(second)[1], "close duplicate_connection");
    pair.tell(1, Event::Closed { session: first, reason: CloseReason::Lost });
    let third = pair.hello_as(1, 2, Peer::default(), named(&name));
    pair.carry();
    assert_eq!(pair.heard(third), ["welcome"], "the answer to the first one's question is its own");
    assert_eq!(seats(&pair), 1);
}

#[test]
fn a_take_over_inherits_the_seat() {
    let mut pair = pair_of(1);
    let name = Pair::name(0, 0);
    let first = pair.hello(0, 0, &name);
    pair.now.mono = pair.now.mono + limits::TAKE_OVER_SILENCE;
    let second = pair.hello_as(0, 1, Peer::default(), named(&name));
    assert_eq!(pair.heard(second), ["welcome"]);
    assert_eq!((pair.heard(first).len(), seats(&pair)), (2, 1));
}

#[test]
fn a_lower_limit_drops_nobody_and_a_higher_one_lets_in_at_once() {
    let mut pair = pair_of(2);
    let first = pair.hello(0, 0, &Pair::name(0, 0));
    pair.hello(0, 1, &Pair::name(0, 1));
    pair.tell(0, Event::Entitled(limited(Some(1))));
    assert_eq!(pair.hearts[0].gauges().live, 2);
    pair.frame(0, first, Frame::Bye);
    let late = pair.hello_as(0, 2, Peer::default(), named(&Pair::name(0, 0)));
    assert_eq!(pair.heard(late)[1], "close agent_limit");
    pair.tell(0, Event::Entitled(limited(None)));
    pair.tell(1, Event::Entitled(limited(None)));
    pair.hello(0, 3, &Pair::name(0, 0));
    pair.hello(1, 4, &Pair::name(1, 0));
    pair.carry();
    assert_eq!(seats(&pair), 3, "where there is no limit, seats are counted all the same");
}

#[test]
fn mail_for_a_name_that_waits_for_its_seat_is_delivered_when_it_has_it() {
    let mut pair = pair_of(2);
    let (from, to) = (Pair::name(0, 0), Pair::name(1, 0));
    let sender = pair.hello(0, 0, &from);
    pair.send(0, sender, &from, &to, 1, Wants::ACCEPTED);
    pair.carry();
    let recipient = pair.hello_as(1, 1, Peer::default(), named(&to));
    pair.send(0, sender, &from, &to, 2, Wants::ACCEPTED);
    pair.carry();
    let delivered = |output: &&Output| matches!(output, Output::Deliver(delivery) if delivery.session == recipient);
    assert_eq!(pair.outputs.iter().filter(delivered).count(), 2);
}

#[test]
fn strangers_that_say_nothing_do_not_lock_the_owner_out() {
    let mut pair = Pair::with(Bounds { half_open_max: 2, ..Bounds::default() });
    let mut open = |slot, owner| {
        let session = SessionId { slot, generation: 1 };
        pair.tell(0, Event::Opened { session, peer: Peer { owner, ..Peer::default() } });
        let heard = pair.heard(session);
        (heard, pair.hearts[0].gauges().half_open)
    };
    assert_eq!([open(0, false).1, open(1, false).1], [1, 2]);
    assert_eq!(open(2, false), (vec!["close half_open_full".to_owned()], 2));
    assert_eq!(open(3, true), (vec![], 3));
}

#[test]
fn a_newcomer_from_elsewhere_gets_the_place_of_the_oldest_of_the_largest_crowd() {
    let mut pair = Pair::with(Bounds { half_open_max: 4, ..Bounds::default() });
    let id = |slot| SessionId { slot, generation: 1 };
    let mut open = |slot, user| {
        let peer = Peer { source: crate::base::keys::Source::of_user(user), ..Peer::default() };
        pair.tell(0, Event::Opened { session: id(slot), peer });
        (pair.heard(id(slot)), pair.heard(id(0)), pair.hearts[0].gauges().half_open)
    };
    let (none, full, crowd): (Vec<String>, _, _) =
        (vec![], vec!["close half_open_full".to_owned()], vec!["close half_open_crowd".to_owned()]);
    (0..4).for_each(|slot| assert_eq!(open(slot, 1), (none.clone(), none.clone(), slot + 1)));
    assert_eq!(open(4, 1), (full, none.clone(), 4), "who came first from there gets through first");
    assert_eq!(open(5, 2), (none.clone(), crowd, 4));
    let name = Pair::name(0, 0);
    pair.frame(0, id(5), Frame::Hello(Box::new(named(&name))));
    assert_eq!((pair.heard(id(5)), pair.hearts[0].gauges().half_open), (vec!["welcome".to_owned()], 3));
}
