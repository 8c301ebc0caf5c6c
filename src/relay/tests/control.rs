//! What a connection says beside messages: answered, and above its rate left unread, not refused.

use super::*;
use crate::wire::Topic;

fn pair() -> Pair {
    Pair::with(Bounds { control_per_second: 100, control_burst: 10, ..Bounds::default() })
}

impl Pair {
    fn said_pongs(&mut self) -> usize {
        let pong = |output: &Output| matches!(output, Output::Reply { frame: Frame::Pong(_), .. });
        let pongs = self.outputs.iter().filter(|output| pong(output)).count();
        self.outputs.clear();
        pongs
    }

    fn ping_until_paused(&mut self, session: SessionId) -> usize {
        let mut pings = 0;
        while !self.hearts[0].is_paused(session) {
            self.frame(0, session, Frame::Ping(b"1".as_slice().into()));
            pings += 1;
            assert!(pings < 1_000, "nothing ends it");
        }
        pings
    }

    fn later(&mut self, ms: u64) {
        self.now.mono = self.now.mono + Mono::ms(ms);
        self.expire(0);
    }
}

#[test]
fn whoever_says_too_much_is_answered_and_then_left_unread_until_it_may_go_on() {
    let mut pair = pair();
    let session = pair.hello(0, 0, &Pair::name(0, 0));
    let pings = pair.ping_until_paused(session);
    assert_eq!((pings, pair.said_pongs()), (11, 11), "each is answered, also the one that was too many");
    assert_eq!(pair.heard(session), ["busy 0 rate_limited"], "it is told");
    pair.later(19);
    assert!(pair.hearts[0].is_paused(session));
    pair.later(1);
    assert!(!pair.hearts[0].is_paused(session));
    let resumed = pair.outputs.iter().any(|output| matches!(output, Output::Resume { .. }));
    assert!(resumed && pair.hearts[0].gauges().paused == 0);
    let pings = pair.ping_until_paused(session);
    assert!((1..=3).contains(&pings), "what has come back meanwhile: {pings}");
    pair.later(1_000);
    assert_eq!(pair.ping_until_paused(session), 11, "no more than the burst is saved up");
}

#[test]
fn every_frame_that_makes_work_counts_and_messages_and_acknowledgements_do_not() {
    let mut pair = pair();
    let name = Pair::name(0, 0);
    let session = pair.hello(0, 0, &name);
    for number in 1..=100 {
        pair.send(0, session, &name, &name, number, Wants::default());
        pair.frame(0, session, Frame::Ack(Ack::Through(Sequence { epoch: 3, counter: number })));
        pair.frame(0, session, Frame::Ack(Ack::Through(Sequence { epoch: 3, counter: number })));
        pair.frame(0, session, Frame::Pong(b"1".as_slice().into()));
    }
    assert!(!pair.hearts[0].is_paused(session));
    let topic = || Topic { name: b"builds".as_slice().into(), channel: false };
    let unknown = MessageId { sender: AgentId(1), number: 1 };
    let frames: [fn(Topic<'static>, MessageId) -> Frame<'static>; 6] = [
        |topic, _| Frame::Subscribe(topic),
        |topic, _| Frame::Unsubscribe(topic),
        |_, _| Frame::Hello(Box::default()),
        |_, _| Frame::Ignored,
        |_, id| Frame::Ack(Ack::Message(id)),
        |_, _| Frame::Unserved { label: "".into(), kind: "SPAWN".into() },
    ];
    for frame in frames {
        for _ in 0..10 {
            pair.frame(0, session, frame(topic(), unknown));
        }
        assert!(!pair.hearts[0].is_paused(session));
        pair.frame(0, session, frame(topic(), unknown));
        assert!(pair.hearts[0].is_paused(session));
        pair.later(1_000);
        assert!(!pair.hearts[0].is_paused(session));
    }
    for _ in 0..11 {
        pair.send(0, session, &name, &name, 100, Wants::ACCEPTED);
    }
    assert!(pair.hearts[0].is_paused(session), "sent before");
}

#[test]
fn a_connection_that_goes_while_it_is_left_unread_leaves_nothing_behind() {
    let mut pair = pair();
    let session = pair.hello(0, 0, &Pair::name(0, 0));
    pair.ping_until_paused(session);
    pair.tell(0, Event::Closed { session, reason: CloseReason::Lost });
    pair.later(1_000);
    assert_eq!((pair.hearts[0].gauges().paused, pair.hearts[0].gauges().connections), (0, 0));
}

#[test]
fn a_stranger_that_never_says_hello_is_closed_for_saying_too_much_else() {
    let mut pair = pair();
    let session = SessionId { slot: 0, generation: 1 };
    pair.tell(0, Event::Opened { session, peer: Peer::default() });
    for _ in 0..2_000 {
        pair.frame(0, session, Frame::Ignored);
    }
    assert!(pair.heard(session).contains(&"close protocol".to_owned()));
}
