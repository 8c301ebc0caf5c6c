//! What one recipient is promised, tried one queue at a time.

use super::*;
use crate::base::AgentId;
use crate::relay::{Addressee, Fetch, Fetched, FetchedMessage, Place, Wanted};
use crate::wire::Message;

const SESSION: SessionId = SessionId { slot: 0, generation: 0 };
const WINDOW: Window = Window { messages_max: 4, bytes_max: 4096 };

fn parcel(number: u64) -> Parcel {
    let mut raw = Vec::new();
    let fields = crate::wire::MessageFields {
        id: MessageId { sender: AgentId(1), number },
        from: b"a",
        to: b"b",
        text: b"x",
        ..Default::default()
    };
    let checksum = crate::wire::encode::message_body(&mut raw, &fields);
    Message::check(&raw, checksum).expect("valid").parcel(Bytes::copy_from_slice(&raw))
}

fn plain() -> Offer {
    Offer { expires_at: Mono(u64::MAX), expires_ms: u64::MAX, channel: false, ask: None, record: 1, spill: false }
}

fn filled(count: u64) -> Queue {
    let mut queue = Queue::new(9, 1);
    for number in 1..=count {
        queue.offer(&parcel(number), plain());
    }
    queue
}

fn sent(outbox: &mut Outbox) -> Vec<(u64, bool)> {
    outbox
        .outputs
        .drain(..)
        .map(|output| match output {
            Output::Deliver(delivery) => (delivery.sequence.counter, delivery.flags & FLAG_REDELIVERED != 0),
            other => panic!("only deliveries here: {other:?}"),
        })
        .collect()
}

fn at(counter: u64) -> Sequence {
    Sequence { epoch: 9, counter }
}

#[test]
fn the_window_bounds_what_is_in_flight_and_acknowledgements_move_it() {
    let (mut queue, mut outbox, mut news) = (filled(10), Outbox::default(), Vec::new());
    queue.pump(Mono(0), SESSION, WINDOW, u64::MAX, &mut outbox);
    assert_eq!(sent(&mut outbox), [(1, false), (2, false), (3, false), (4, false)]);
    assert_eq!(queue.acknowledge_through(Mono(0), at(2), &mut news), 2);
    queue.pump(Mono(0), SESSION, WINDOW, u64::MAX, &mut outbox);
    assert_eq!(sent(&mut outbox), [(5, false), (6, false)]);
    assert_eq!((queue.in_flight(), queue.len()), (4, 8));
}

#[test]
fn nobody_acknowledges_what_was_never_sent() {
    let (mut queue, mut outbox, mut news) = (filled(10), Outbox::default(), Vec::new());
    queue.pump(Mono(0), SESSION, WINDOW, u64::MAX, &mut outbox);
    queue.acknowledge_through(Mono(0), at(u64::MAX), &mut news);
    assert_eq!((queue.len(), queue.settled_through()), (6, at(4)));
    assert_eq!(queue.acknowledge_one(Mono(0), at(9), &mut news), 0);
    assert_eq!(queue.acknowledge_through(Mono(0), Sequence { epoch: 8, counter: 99 }, &mut news), 0);
}

#[test]
fn single_acknowledgements_leave_no_hole_in_the_order() {
    let (mut queue, mut outbox, mut news) = (filled(4), Outbox::default(), Vec::new());
    queue.pump(Mono(0), SESSION, WINDOW, u64::MAX, &mut outbox);
    assert_eq!(queue.acknowledge_one(Mono(0), at(2), &mut news), 1);
    assert_eq!(queue.acknowledge_one(Mono(0), at(2), &mut news), 0);
    assert_eq!((queue.len(), queue.in_flight()), (4, 3));
    queue.acknowledge_one(Mono(0), at(1), &mut news);
    assert_eq!((queue.len(), queue.settled_through()), (2, at(2)));
}

#[test]
fn an_unacknowledged_message_is_sent_five_times_and_then_rests_still_owed() {
    let (mut queue, mut outbox, mut news) = (filled(1), Outbox::default(), Vec::new());
    let mut now = Mono(1);
    queue.pump(now, SESSION, WINDOW, u64::MAX, &mut outbox);
    queue.mark_written(now, at(1), &mut news);
    for attempt in 2..=5 {
        now = now + RETRY_AFTER;
        let (next, _) = queue.retry(now, SESSION, &mut outbox);
        assert_eq!(next, Some(now + RETRY_AFTER), "attempt {attempt}");
    }
    assert_eq!(sent(&mut outbox), [(1, false), (1, true), (1, true), (1, true), (1, true)]);
    assert_eq!(queue.retry(now + RETRY_AFTER, SESSION, &mut outbox).0, None);
    assert_eq!((queue.in_flight(), queue.len()), (0, 1));
    queue.rewind();
    queue.pump(now, SESSION, WINDOW, u64::MAX, &mut outbox);
    assert_eq!(sent(&mut outbox), [(1, true)]);
}

#[test]
fn what_is_still_in_our_send_buffer_is_not_sent_again() {
    let (mut queue, mut outbox) = (filled(1), Outbox::default());
    queue.pump(Mono(0), SESSION, WINDOW, u64::MAX, &mut outbox);
    sent(&mut outbox);
    queue.retry(Mono(0) + RETRY_AFTER, SESSION, &mut outbox);
    assert_eq!(sent(&mut outbox), []);
}

#[test]
fn a_message_that_outlived_its_time_fails_and_the_rest_goes_on() {
    let (mut queue, mut outbox, mut news) = (Queue::new(9, 1), Outbox::default(), Vec::new());
    let mut mortal = parcel(1);
    mortal.ttl_ms = 1;
    queue.offer(&mortal, Offer { expires_at: Mono(100), ..plain() });
    queue.offer(&parcel(2), plain());
    queue.offer(&parcel(3), Offer { expires_at: Mono(100), ..plain() });
    queue.expire(Mono(99), &mut news);
    assert!(news.is_empty());
    queue.expire(Mono(100), &mut news);
    let whats: Vec<_> = news.iter().map(|news| (news.id.number, &news.what)).collect();
    let (expired, kept) = (What::Failed(RefuseReason::Expired), What::Failed(RefuseReason::Retention));
    assert_eq!(whats, [(1, &expired), (3, &kept)], "its own time, or the time that everything is kept");
    queue.pump(Mono(101), SESSION, WINDOW, u64::MAX, &mut outbox);
    assert_eq!(sent(&mut outbox), [(2, false)]);
    assert_eq!(queue.next_expiry(), Mono(u64::MAX));
}

#[test]
fn one_message_larger_than_the_window_still_goes_out() {
    let (mut queue, mut outbox) = (filled(2), Outbox::default());
    queue.pump(Mono(0), SESSION, Window { messages_max: 4, bytes_max: 1 }, u64::MAX, &mut outbox);
    assert_eq!(sent(&mut outbox), [(1, false)]);
}

#[test]
fn the_retry_time_follows_the_measured_drain() {
    let (mut queue, mut outbox, mut news) = (filled(8), Outbox::default(), Vec::new());
    assert_eq!(queue.retry_after_ms(Mono(0)), 5_000, "nothing drains");
    queue.pump(Mono::default() + Mono::ms(1), SESSION, WINDOW, u64::MAX, &mut outbox);
    queue.acknowledge_through(Mono(Mono::ms(1_000)), at(4), &mut news);
    let wait = queue.retry_after_ms(Mono(Mono::ms(1_000)));
    assert!((200..300).contains(&wait), "a quarter of four messages at four a second: {wait}");
}

#[test]
fn what_is_acknowledged_before_it_is_known_to_be_written_was_delivered_all_the_same() {
    let (mut queue, mut outbox, mut news) = (Queue::new(9, 1), Outbox::default(), Vec::new());
    let origin = Origin { shard: crate::base::ShardId(0), session: SESSION, ordinal: 1, submitted: false };
    let ask = Ask { origin, wants: Wants::DELIVERED, label: Bytes::new() };
    queue.offer(&parcel(1), Offer { ask: Some(Box::new(ask)), ..plain() });
    queue.pump(Mono(0), SESSION, WINDOW, u64::MAX, &mut outbox);
    queue.acknowledge_through(Mono(0), at(1), &mut news);
    queue.mark_written(Mono(0), at(1), &mut news);
    let whats: Vec<_> = news.iter().map(|news| news.what.clone()).collect();
    assert_eq!(whats, [What::Delivered]);
}

#[test]
fn only_who_asked_hears_of_acknowledgements() {
    let (mut queue, mut outbox, mut news) = (Queue::new(9, 1), Outbox::default(), Vec::new());
    let origin = Origin { shard: crate::base::ShardId(0), session: SESSION, ordinal: 1, submitted: false };
    let wants = Wants::DELIVERED | Wants::ACKNOWLEDGED;
    let ask = Ask { origin, wants, label: Bytes::new() };
    queue.offer(&parcel(1), Offer { ask: Some(Box::new(ask)), ..plain() });
    queue.offer(&parcel(2), plain());
    queue.pump(Mono(0), SESSION, WINDOW, u64::MAX, &mut outbox);
    queue.mark_written(Mono(0), at(2), &mut news);
    queue.acknowledge_through(Mono(0), at(2), &mut news);
    let whats: Vec<_> = news.iter().map(|news| (news.id.number, news.what.clone())).collect();
    assert_eq!(whats, [(1, What::Delivered), (1, What::Acknowledged)]);
}

const AGENT: AgentId = AgentId(2);
const RETENTION: u64 = Mono::ms(60_000);

/// A queue restored in epoch 10, to which so many messages of epoch 9 are owed, as the row has it.
fn restored(owed: u64, last: u64, settled: &[(Sequence, Sequence)]) -> Queue {
    let mut row = crate::relay::Remembered::new(AGENT);
    (row.last, row.settled) = (at(last), settled.to_vec());
    row.owed = Owed { messages: owed, bytes: owed * 300, next_expiry_ms: 0 };
    Queue::restored(10, &row, Mono(0))
}

fn answer(fetch: Fetch, counters: &[u64], expired: bool) -> Fetched {
    let message = |counter: &u64| {
        let Parcel { raw, checksum, .. } = parcel(*counter);
        let to = Addressee { agent: AGENT, sequence: at(*counter), channel: false };
        FetchedMessage { to, raw, checksum, accepted_at_ms: 0, expired }
    };
    let messages = counters.iter().map(message).collect();
    Fetched { fetch, messages, place: Place::default(), complete: true, next_expiry_ms: u64::MAX }
}

fn taken(queue: &mut Queue, fetched: Fetched, committed: u64) -> (Vec<News>, Option<Fetch>, bool) {
    let mut news = Vec::new();
    let home_of = |_: &[u8]| crate::base::ShardId(0);
    let how = Return { now: Now::default(), retention: RETENTION, committed, home_of: &home_of };
    let (more, hungry) = queue.take_fetched(fetched, &how, &mut news);
    (news, more, hungry)
}

#[test]
fn what_was_settled_out_of_order_stays_settled_over_two_restarts() {
    let (mut queue, mut outbox) = (restored(2, 3, &[(at(2), at(2))]), Outbox::default());
    let fetch = queue.refill(AGENT, Now::default(), RETENTION, 0).expect("there is mail");
    taken(&mut queue, answer(fetch, &[1, 2, 3], false), 0);
    queue.pump(Mono(0), SESSION, WINDOW, u64::MAX, &mut outbox);
    assert_eq!(sent(&mut outbox), [(1, true), (3, true)]);
    assert_eq!(*queue.settled_runs(10), [(at(2), at(2))], "the next row has it as well");
    assert_eq!(queue.owed(Now::default()).messages, 2);
    assert_eq!(queue.acknowledge_through(Mono(0), at(3), &mut Vec::new()), 2);
    assert!(queue.is_empty() && queue.load() == Load::default());
}

#[test]
fn what_a_sweep_told_as_failed_is_settled_and_is_not_told_again() {
    let (mut queue, mut outbox) = (restored(3, 3, &[]), Outbox::default());
    let fetch = queue.sweep(AGENT, Now::default(), RETENTION, 0).expect("it is time");
    let (news, more, _) = taken(&mut queue, Fetched { next_expiry_ms: 9, ..answer(fetch, &[2], true) }, 0);
    assert_eq!((news.len(), more), (1, None));
    assert_eq!(*queue.settled_runs(10), [(at(2), at(2))]);
    let fetch = queue.refill(AGENT, Now::default(), RETENTION, 0).expect("the rest is alive");
    assert_eq!(taken(&mut queue, answer(fetch, &[1, 2, 3], false), 0).0, []);
    queue.pump(Mono(0), SESSION, WINDOW, u64::MAX, &mut outbox);
    assert_eq!(sent(&mut outbox), [(1, true), (3, true)]);
}

#[test]
fn cold_mail_is_let_go_when_none_of_it_lives_and_not_because_a_count_says_so() {
    let mut queue = restored(1, 2, &[]);
    let fetch = queue.sweep(AGENT, Now::default(), RETENTION, 0).expect("it is time");
    let (_, more, _) = taken(&mut queue, Fetched { next_expiry_ms: 9, ..answer(fetch, &[1], true) }, 0);
    assert!(more.is_none() && queue.is_cold(), "the second is owed, whatever the row has counted");
    let now = Now { mono: Mono(Mono::ms(10)), wall_ms: 10 };
    let fetch = queue.sweep(AGENT, now, RETENTION, 0).expect("it is time again");
    taken(&mut queue, answer(fetch, &[2], true), 0);
    assert!(queue.is_empty() && queue.settled_through() == at(2));
}

#[test]
fn a_sweep_in_parts_looks_again_when_the_first_of_any_part_expires() {
    let mut queue = restored(3, 3, &[]);
    let fetch = queue.sweep(AGENT, Now::default(), RETENTION, 0).expect("it is time");
    let part = Fetched { next_expiry_ms: 9, complete: false, ..answer(fetch, &[2], true) };
    let (_, more, _) = taken(&mut queue, part, 0);
    taken(&mut queue, answer(more.expect("the second part"), &[3], true), 0);
    assert!(queue.is_cold() && queue.next_expiry() == Mono(Mono::ms(9)));
}

#[test]
fn a_fetch_that_comes_back_after_the_commit_it_would_wait_for_is_asked_again() {
    let mut queue = Queue::new(9, 1);
    queue.offer(&parcel(1), Offer { record: 5, spill: true, ..plain() });
    let fetch = queue.refill(AGENT, Now::default(), RETENTION, 4).expect("there is mail");
    let (_, _, hungry) = taken(&mut queue, answer(fetch, &[], false), 4);
    assert!(hungry && queue.refill(AGENT, Now::default(), RETENTION, 4).is_none(), "only a commit helps");
    assert!(queue.is_hungry());
    let fetch = queue.refill(AGENT, Now::default(), RETENTION, 4).expect("something was committed");
    let (_, _, hungry) = taken(&mut queue, answer(fetch, &[], false), 5);
    assert!(!hungry && queue.refill(AGENT, Now::default(), RETENTION, 5).is_some(), "it is committed by now");
}

#[test]
fn what_was_not_committed_when_expired_mail_was_looked_for_is_looked_for_again() {
    let mut queue = Queue::new(9, 1);
    let offered = Offer { record: 5, spill: true, expires_at: Mono(Mono::ms(3)), ..plain() };
    queue.offer(&parcel(1), offered);
    let now = Now { mono: Mono(Mono::ms(7)), wall_ms: 7 };
    let fetch = queue.sweep(AGENT, now, RETENTION, 4).expect("its time is over");
    taken(&mut queue, answer(fetch, &[], false), 4);
    let later = Now { mono: Mono(Mono::ms(1_007)), wall_ms: 1_007 };
    let fetch = queue.sweep(AGENT, later, RETENTION, 5).expect("it is looked for again");
    assert_eq!(fetch.wanted, Wanted::Expired { messages_max: 256, expired_before_ms: 0 }, "nobody has told of it");
    let (news, _, _) = taken(&mut queue, answer(fetch, &[1], true), 5);
    assert_eq!(news.len(), 1);
    assert!(queue.is_empty());
}

#[test]
fn mail_that_expires_after_the_clock_was_set_back_is_told_of() {
    let mut queue = Queue::new(9, 1);
    let soon = |expires_ms| Offer { spill: true, expires_at: Mono(Mono::ms(3)), expires_ms, ..plain() };
    queue.offer(&parcel(1), soon(5_000));
    let sweep = |queue: &mut Queue, wall_ms| {
        queue.sweep(AGENT, Now { mono: Mono(Mono::ms(7)), wall_ms }, RETENTION, 9).expect("its time is over")
    };
    let told_before = |fetch: &Fetch| match fetch.wanted {
        Wanted::Expired { expired_before_ms, .. } => expired_before_ms,
        Wanted::Mail { .. } => panic!("it is a sweep"),
    };
    let fetch = sweep(&mut queue, 6_000);
    // While the answer is on its way the clock goes back by five seconds; and then once more.
    queue.offer(&parcel(2), soon(1_000));
    taken(&mut queue, answer(fetch, &[1], true), 9);
    let fetch = sweep(&mut queue, 1_500);
    assert!(told_before(&fetch) < 1_000, "of the second nobody has told");
    taken(&mut queue, Fetched { next_expiry_ms: 9_000, ..answer(fetch, &[2], true) }, 9);
    queue.offer(&parcel(3), soon(500));
    assert!(told_before(&sweep(&mut queue, 600)) < 500);
}
