//! Rates of the tier and of keys: exact over two shards, and nobody is lost, dropped or thought silent for them.

use super::auth::{key, ring, with_key};
use super::*;
use crate::base::keys::ApiKey;
use crate::base::tier::{Entitled, Tier};

fn limited(messages_per_second: Option<u32>) -> Entitled {
    Entitled::new(Entitlement { agents_max: None, messages_per_second, ..Entitlement::of_tier(Tier::Pro) })
}

fn pair_of(messages_per_second: u32) -> Pair {
    Pair::shaped(|options| options.entitlement = limited(Some(messages_per_second)))
}

/// Somebody who sends as fast as it is read, to itself.
struct Sender {
    shard: u16,
    session: SessionId,
    name: String,
    number: u64,
}

impl Sender {
    fn new(pair: &mut Pair, shard: u16, slot: u32) -> Sender {
        let name = Pair::name(shard, slot as usize);
        let session = pair.hello(shard, slot, &name);
        pair.carry();
        Sender { shard, session, name, number: 0 }
    }

    /// Sends until it is left unread, or so many; gives how many were taken.
    fn flood(&mut self, pair: &mut Pair, most: u64) -> u64 {
        let before = self.number;
        while !pair.hearts[usize::from(self.shard)].is_paused(self.session) && self.number < before + most {
            self.number += 1;
            pair.send(self.shard, self.session, &self.name, &self.name, self.number, Wants::default());
            pair.carry();
        }
        self.number - before
    }
}

impl Pair {
    fn pass(&mut self, ms: u64) {
        self.now = Now { mono: self.now.mono + Mono::ms(ms), wall_ms: self.now.wall_ms + ms };
        self.expire(0);
        self.expire(1);
        self.carry();
    }

    fn accepted(&self) -> u64 {
        self.hearts.iter().map(|heart| heart.gauges().counters.accepted).sum()
    }

    /// What BUSY said to wait, of the last one.
    fn told(&self) -> Vec<(u64, u32)> {
        let busy = self.outputs.iter().filter_map(|output| match output {
            Output::Reply { frame: Frame::Busy(busy), .. } => Some((busy.number, busy.retry_after_ms)),
            _ => None,
        });
        busy.collect()
    }
}

#[test]
fn ten_seconds_of_the_rate_and_one_owed_then_the_sender_waits_as_long_as_it_is_told() {
    let mut pair = pair_of(100);
    let mut sender = Sender::new(&mut pair, 0, 0);
    assert_eq!(sender.flood(&mut pair, 5_000), 1_001);
    assert!(matches!(pair.outputs.iter().filter(|output| matches!(output, Output::Pause { .. })).count(), 1));
    assert_eq!(pair.told(), [(0, 10)]);
    pair.pass(9);
    assert!(pair.hearts[0].is_paused(sender.session));
    pair.pass(1);
    assert!(!pair.hearts[0].is_paused(sender.session));
    assert!(pair.outputs.iter().any(|output| matches!(output, Output::Resume { .. })));
    assert_eq!(pair.accepted(), 1_001, "what was taken is not lost");
}

#[test]
fn over_two_shards_no_more_is_taken_than_the_burst_the_rate_and_one_for_each_connection() {
    let mut pair = pair_of(100);
    let mut senders: Vec<Sender> = (0..6).map(|n| Sender::new(&mut pair, n % 2, u32::from(n))).collect();
    let (mut taken, mut after) = (0, Vec::new());
    for step in 0..400u64 {
        for sender in &mut senders {
            taken += sender.flood(&mut pair, 50);
        }
        assert!(taken <= 1_000 + step + senders.len() as u64, "{taken} after {step} steps of 10 ms");
        after.push(taken);
        pair.pass(10);
    }
    let rate = after[399] - after[199];
    assert!((198..=202).contains(&rate), "and no fewer: {rate} in 2 s");
    assert!(after[399] >= 1_000 + 390, "the burst is there whoever spends it: {}", after[399]);
}

#[test]
fn who_is_left_unread_is_told_once_a_second_and_is_neither_silent_nor_sent_anything_twice() {
    let slow = ApiKey { per_minute: 1, ..key('s') };
    let keys = ring([slow]);
    let mut pair = Pair::shaped(|options| options.keys = keys.clone());
    let name = Pair::name(0, 0);
    let session = pair.hello_as(0, 0, Peer::default(), with_key(&name, 's'));
    for number in 1..=2 {
        pair.send(0, session, &name, &name, number, Wants::default());
    }
    assert!(pair.hearts[0].is_paused(session));
    for _ in 0..59 {
        pair.pass(1_000);
    }
    assert!(pair.hearts[0].is_paused(session) && pair.hearts[0].gauges().live == 1);
    let told = pair.told();
    assert_eq!((told.len(), told[0], told[30]), (60, (0, 60_000), (0, 30_000)));
    let deliveries = || pair.outputs.iter().filter(|output| matches!(output, Output::Deliver(_))).count();
    assert_eq!(deliveries(), 2);
    pair.pass(1_000);
    assert!(!pair.hearts[0].is_paused(session));
    pair.pass(4_999);
    assert_eq!(pair.hearts[0].gauges().counters.redelivered, 0);
    let used = &pair.hearts[0].gauges().keys[0];
    assert_eq!((used.messages, used.last_used_ms), (2, 1));
}

#[test]
fn a_key_is_one_rate_wherever_its_connections_live() {
    let keys = ring([ApiKey { per_minute: 60, ..key('k') }]);
    let mut pair = Pair::shaped(|options| options.keys = keys.clone());
    let mut senders = Vec::new();
    for shard in 0..2 {
        let name = Pair::name(shard, 0);
        let slot = u32::from(shard);
        let session = pair.hello_as(0, slot, Peer::default(), with_key(&name, 'k'));
        if let Some(Output::Move { hello, grant, .. }) =
            pair.outputs.pop_if(|output| matches!(output, Output::Move { .. }))
        {
            let (peer, dialect) = (Peer::default(), Dialect::Native);
            pair.tell(shard, Event::Adopted { session, peer, dialect, hello, grant });
        }
        pair.carry();
        senders.push(Sender { shard, session, name, number: 0 });
    }
    let mut taken = 0;
    for seconds in 0..30 {
        for sender in &mut senders {
            taken += sender.flood(&mut pair, 1_000);
        }
        assert!(taken <= 60 + seconds + 2, "{taken} after {seconds} s");
        pair.pass(1_000);
    }
    assert!(taken >= 60 + 28, "{taken}");
}

/// Three connections at each shard that send as fast as they are read, under keys of so many a minute, for some minutes:
/// whether what BUSY tells each of them is when it is read again, to the 10 ms at which the ledger serves.
fn told_is_true(mut pair: Pair, keyed: bool, minutes: u64) {
    let mut senders: Vec<Sender> = Vec::new();
    for number in 0..6u32 {
        let shard = (number % 2) as u16;
        let name = Pair::name(shard, number as usize);
        let hello = if keyed { with_key(&name, 'k') } else { named(&name) };
        let session = pair.hello_as(shard, number, Peer::default(), hello);
        pair.carry();
        senders.push(Sender { shard, session, name, number: 0 });
    }
    let mut told: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    let (mut checked, mut longest) = (0, 0);
    for _ in 0..minutes * 6_000 {
        // Of two that are owed at once one has asked first: whoever comes last today is the first one tomorrow.
        senders.rotate_left(1);
        for sender in &mut senders {
            sender.flood(&mut pair, 20);
        }
        let now_ms = pair.now.mono.0 / Mono::ms(1);
        for output in pair.outputs.drain(..) {
            match output {
                Output::Reply { session, frame: Frame::Busy(busy) } => {
                    assert_eq!(busy.number, 0);
                    told.entry(session.slot).or_default().push((now_ms, u64::from(busy.retry_after_ms)));
                }
                Output::Resume { session } => {
                    for (at, wait) in told.remove(&session.slot).unwrap_or_default() {
                        let real = now_ms - at;
                        assert!(real.abs_diff(wait) <= 10, "{session:?} told {wait} ms, real {real} ms");
                        (checked, longest) = (checked + 1, longest.max(wait));
                    }
                }
                _ => {}
            }
        }
        pair.pass(10);
    }
    assert!(checked >= 20 * minutes && longest > 0, "{checked} were told, {longest} ms at most");
    if keyed {
        assert!(longest >= 5_000, "six wait for one token a second: {longest} ms");
    }
}

#[test]
fn the_wait_that_busy_tells_is_when_the_connection_is_read_again_whatever_others_wait_on_other_shards() {
    let keys = ring([ApiKey { per_minute: 60, ..key('k') }]);
    let with = |entitlement: Entitled| {
        let keys = keys.clone();
        Pair::shaped(move |options| {
            (options.keys, options.entitlement) = (keys.clone(), entitlement.clone());
        })
    };
    told_is_true(with(limited(None)), true, 3);
    told_is_true(with(limited(Some(2))), false, 3);
    told_is_true(with(limited(Some(1))), true, 3);
    told_is_true(with(limited(Some(10))), false, 3);
}

#[test]
fn a_rate_lower_than_there_are_shards_is_spent_wherever_its_connections_live() {
    let keys = ring([ApiKey { per_minute: 1, ..key('k') }]);
    let mut pair = Pair::shaped(|options| options.keys = keys.clone());
    let mut senders = [0, 1].map(|shard: u16| {
        let name = Pair::name(shard, 0);
        let session = pair.hello_as(shard, u32::from(shard), Peer::default(), with_key(&name, 'k'));
        pair.carry();
        Sender { shard, session, name, number: 0 }
    });
    assert_eq!((senders[1].flood(&mut pair, 1), senders[0].flood(&mut pair, 1)), (1, 1));
    assert!(pair.hearts[0].is_paused(senders[0].session), "shard 1 has spent what there is of this minute");
    pair.pass(60_000);
    assert!(!pair.hearts[0].is_paused(senders[0].session), "and has said so, though it asks for nothing more");
}

#[test]
fn whoever_breaks_off_does_not_shake_off_what_it_owes() {
    let mut pair = pair_of(10);
    let mut sender = Sender::new(&mut pair, 0, 0);
    assert_eq!(sender.flood(&mut pair, 1_000), 101);
    for slot in 1..11 {
        pair.tell(0, Event::Closed { session: sender.session, reason: CloseReason::Lost });
        sender = Sender::new(&mut pair, 0, slot);
        assert_eq!(sender.flood(&mut pair, 10), 1);
    }
    assert_eq!(pair.hearts[0].gauges().paused, 1);
    for _ in 0..10 {
        pair.pass(100);
    }
    assert!(pair.hearts[0].is_paused(sender.session), "eleven are owed, and it is the last");
    pair.pass(100);
    assert!(!pair.hearts[0].is_paused(sender.session));
}

#[test]
fn without_a_limit_nobody_waits_any_more_and_with_another_one_the_rate_is_that() {
    let mut pair = pair_of(10);
    let mut sender = Sender::new(&mut pair, 1, 0);
    sender.flood(&mut pair, 1_000);
    assert!(pair.hearts[1].is_paused(sender.session));
    for shard in [1, 0] {
        pair.tell(shard, Event::Entitled(limited(None)));
    }
    pair.carry();
    assert!(!pair.hearts[1].is_paused(sender.session));
    assert_eq!(sender.flood(&mut pair, 5_000), 5_000);
    for shard in [0, 1] {
        pair.tell(shard, Event::Entitled(limited(Some(20))));
    }
    pair.carry();
    let taken = sender.flood(&mut pair, 5_000);
    assert!((190..=202).contains(&taken), "{taken}");
    assert_eq!(pair.hearts[1].gauges().paused, 1);
}

#[test]
fn without_limits_no_mail_is_sent_for_them() {
    let mut pair = Pair::new();
    let mut sender = Sender::new(&mut pair, 1, 0);
    pair.mails.clear();
    sender.flood(&mut pair, 100);
    assert!(pair.mails.is_empty());
}

#[test]
fn connections_that_come_and_go_send_no_faster_than_their_key_may() {
    let keys = ring([ApiKey { per_minute: 1, ..key('s') }]);
    let mut pair = Pair::shaped(|options| options.keys = keys.clone());
    let name = Pair::name(0, 0);
    for slot in 0..1_500 {
        let session = pair.hello_as(0, slot, Peer::default(), with_key(&name, 's'));
        if !pair.hearts[0].is_paused(session) {
            pair.send(0, session, &name, &name, u64::from(slot) + 1, Wants::default());
        }
        pair.tell(0, Event::Closed { session, reason: CloseReason::Lost });
        pair.pass(100);
    }
    let accepted = pair.accepted();
    assert!((2..=5).contains(&accepted), "{accepted} in two and a half minutes");
}
