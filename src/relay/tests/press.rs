//! A writer that is behind: whoever sends is accepted once more and left unread until it has caught up; nobody is refused.

use super::auth::{key, ring, with_key};
use super::*;
use crate::base::ids::number_of_label;
use crate::base::keys::ApiKey;

impl Pair {
    fn behind(&mut self, behind: bool) {
        self.tell(0, Event::WriterBehind(behind));
    }

    /// Who was left unread (true) or is read again (false) since this was last asked, in order.
    fn pauses(&mut self) -> Vec<(u32, bool)> {
        let pause = |output: Output| match output {
            Output::Pause { session } => Some((session.slot, true)),
            Output::Resume { session } => Some((session.slot, false)),
            _ => None,
        };
        std::mem::take(&mut self.outputs).into_iter().filter_map(pause).collect()
    }

    fn unread(&self) -> (u32, u32) {
        let gauges = self.hearts[0].gauges();
        (gauges.paused, gauges.pressed)
    }
}

/// Agents of shard 0 on the connections 0, 1, 2, …
fn gathered(pair: &mut Pair, count: usize) -> Vec<(SessionId, String)> {
    let names = (0..count).map(|index| Pair::name(0, index));
    names.enumerate().map(|(slot, name)| (pair.hello(0, slot as u32, &name), name)).collect()
}

#[test]
fn whoever_sends_is_accepted_and_then_left_unread_and_whoever_receives_is_read() {
    let mut pair = Pair::new();
    let agents = gathered(&mut pair, 2);
    let [(ann, ann_name), (bob, bob_name)] = &agents[..] else { panic!("two") };
    pair.send(0, *ann, ann_name, bob_name, 1, Wants::ACCEPTED);
    pair.behind(true);
    assert!(!pair.hearts[0].is_paused(*ann), "who says nothing is read on");
    pair.send(0, *ann, ann_name, bob_name, 2, Wants::ACCEPTED);
    // What was read together with it comes as well, and is not counted twice.
    pair.send(0, *ann, ann_name, bob_name, 3, Wants::ACCEPTED);
    assert_eq!(pair.heard(*ann), ["Accepted 1", "Accepted 2", "Accepted 3"]);
    pair.frame(0, *bob, Frame::Ack(Ack::Through(Sequence { epoch: 3, counter: 3 })));
    assert!(pair.hearts[0].is_paused(*ann) && !pair.hearts[0].is_paused(*bob));
    assert_eq!((pair.unread(), pair.hearts[0].gauges().waiting_messages), ((1, 1), 0));
    assert_eq!(pair.pauses(), [(0, true)]);
    pair.behind(false);
    assert_eq!((pair.pauses(), pair.unread()), (vec![(0, false)], (0, 0)));
    pair.send(0, *ann, ann_name, bob_name, 4, Wants::ACCEPTED);
    assert_eq!((pair.heard(*ann), pair.unread()), (vec!["Accepted 4".to_owned()], (0, 0)));
    assert_eq!((pair.hearts[0].gauges().counters.pauses, pair.hearts[0].gauges().counters.pressed), (1, 1));
}

#[test]
fn whoever_was_left_unread_first_is_read_first_also_the_next_time() {
    let mut pair = Pair::new();
    let agents = gathered(&mut pair, 5);
    for order in [[3, 0, 4, 1, 2], [2, 4, 0, 3, 1]] {
        pair.behind(true);
        for index in order {
            let (session, name) = &agents[index];
            let number = pair.records.len() as u64 + 1;
            pair.send(0, *session, name, name, number, Wants::default());
        }
        pair.behind(false);
        let expected = order.map(|slot| (slot as u32, true)).into_iter().chain(order.map(|slot| (slot as u32, false)));
        assert_eq!(pair.pauses(), expected.collect::<Vec<_>>());
    }
}

#[test]
fn in_trouble_everyone_is_read_again_and_hears_busy() {
    let mut pair = Pair::new();
    let agents = gathered(&mut pair, 1);
    let (ann, name) = &agents[0];
    pair.behind(true);
    pair.send(0, *ann, name, name, 1, Wants::ACCEPTED);
    pair.behind(false);
    pair.tell(0, Event::WriterFull(true));
    pair.send(0, *ann, name, name, 2, Wants::ACCEPTED);
    assert_eq!((pair.heard(*ann), pair.unread()), (vec!["Accepted 1".into(), "busy 2 writer_full".into()], (0, 0)));
    // The queue can be full for other reasons: then both hold.
    pair.behind(true);
    pair.send(0, *ann, name, name, 2, Wants::ACCEPTED);
    assert_eq!((pair.heard(*ann), pair.unread()), (vec!["busy 2 writer_full".into()], (1, 1)));
    pair.tell(0, Event::WriterFull(false));
    pair.behind(false);
    pair.send(0, *ann, name, name, 2, Wants::ACCEPTED);
    assert_eq!((pair.heard(*ann), pair.unread()), (vec!["Accepted 2".into()], (0, 0)));
}

#[test]
fn a_connection_that_goes_while_it_is_left_unread_for_the_writer_leaves_nothing_behind() {
    let mut pair = Pair::new();
    let agents = gathered(&mut pair, 3);
    pair.behind(true);
    for (session, name) in &agents {
        pair.send(0, *session, name, name, 1, Wants::default());
    }
    assert_eq!(pair.unread(), (3, 3));
    pair.tell(0, Event::Closed { session: agents[1].0, reason: CloseReason::Lost });
    pair.frame(0, agents[2].0, Frame::Bye);
    assert_eq!(pair.unread(), (1, 1));
    pair.pauses();
    pair.behind(false);
    assert_eq!((pair.pauses(), pair.unread()), (vec![(0, false)], (0, 0)));
    pair.behind(true);
    pair.send(0, agents[0].0, &agents[0].1, &agents[0].1, 2, Wants::default());
    pair.tell(0, Event::Stop);
    assert_eq!(pair.unread(), (0, 0));
    assert!(pair.hearts[0].is_drained(), "a stop waits for nobody who is left unread");
}

#[test]
fn a_rate_and_the_writer_are_two_reasons_and_both_must_be_gone() {
    let keys = ring([ApiKey { per_minute: 1, ..key('s') }]);
    let mut pair = Pair::shaped(|options| options.keys = keys.clone());
    let name = Pair::name(0, 0);
    let session = pair.hello_as(0, 0, Peer::default(), with_key(&name, 's'));
    pair.behind(true);
    pair.send(0, session, &name, &name, 1, Wants::default());
    assert_eq!(pair.pauses().last(), Some(&(0, true)));
    pair.behind(false);
    assert_eq!(pair.pauses(), [(0, false)], "one was saved up");
    pair.behind(true);
    pair.send(0, session, &name, &name, 2, Wants::default());
    assert_eq!(pair.pauses(), [(0, true)], "this one is owed for, for a minute");
    pair.behind(false);
    assert!(pair.hearts[0].is_paused(session) && pair.pauses().is_empty());
    pair.behind(true);
    pair.now.mono = pair.now.mono + Mono::ms(60_000);
    pair.expire(0);
    assert_eq!((pair.pauses(), pair.unread()), (vec![(0, false)], (0, 0)));
}

#[test]
fn whoever_is_left_unread_for_the_writer_is_not_thought_silent() {
    let mut pair = Pair::new();
    let agents = gathered(&mut pair, 2);
    pair.behind(true);
    pair.send(0, agents[0].0, &agents[0].1, &agents[0].1, 1, Wants::default());
    for _ in 0..60 {
        pair.now.mono = pair.now.mono + Mono::ms(1_000);
        pair.expire(0);
    }
    assert_eq!(pair.heard(agents[1].0).last().map(String::as_str), Some("close silent"), "the other one is");
    assert_eq!((pair.hearts[0].gauges().live, pair.unread()), (1, (1, 1)));
}

#[test]
fn the_command_line_is_not_left_unread() {
    let mut pair = Pair::new();
    let agents = gathered(&mut pair, 1);
    let (session, peer) = (SessionId { slot: 9, generation: 1 }, Peer { owner: true, ..Peer::default() });
    pair.tell(0, Event::Opened { session, peer });
    pair.behind(true);
    let number = number_of_label(b"once");
    let fields = MessageFields {
        id: MessageId { sender: AgentId::of(b"cli"), number },
        label: b"once",
        from: b"cli",
        to: agents[0].1.as_bytes(),
        wants: Wants::ACCEPTED,
        ..MessageFields::default()
    };
    let mut raw = Vec::new();
    let checksum = crate::wire::encode::message_body(&mut raw, &fields);
    let message = crate::wire::Message::check(&raw, checksum).expect("valid");
    pair.frame(0, session, Frame::Submit(message));
    assert_eq!((pair.heard(session), pair.unread()), (vec![format!("Accepted {number}")], (0, 0)));
}
