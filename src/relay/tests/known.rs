//! Who is forgotten when as many are known as may be: whoever has been away the longest, and nobody who is owed anything.

use super::*;

fn crowded(known_agents_max: usize) -> Pair {
    Pair::with(Bounds { known_agents_max, ..Bounds::default() })
}

impl Pair {
    fn leaves(&mut self, session: SessionId) {
        self.frame(0, session, Frame::Bye);
        self.now.mono = self.now.mono + Mono::ms(1_000);
    }

    fn breaks(&mut self, session: SessionId) {
        self.tell(0, Event::Closed { session, reason: CloseReason::Lost });
        self.now.mono = self.now.mono + Mono::ms(1_000);
    }

    fn forgotten(&mut self) -> Vec<AgentId> {
        let mut forgotten = Vec::new();
        for record in self.records.drain(..) {
            if let Record::Forgotten { agent } = record {
                forgotten.push(agent);
            }
        }
        forgotten
    }
}

fn id(name: usize) -> AgentId {
    AgentId::of(Pair::name(0, name).as_bytes())
}

#[test]
fn somebody_new_takes_the_place_of_whoever_has_been_away_the_longest() {
    // Two homes: three agents each.
    let mut pair = crowded(6);
    let sessions: Vec<SessionId> = (0..3).map(|slot| pair.hello(0, slot, &Pair::name(0, slot as usize))).collect();
    let refused = pair.hello_as(0, 3, Peer::default(), named(&Pair::name(0, 3)));
    let heard = pair.heard(refused);
    assert!(heard.iter().any(|text| text == "close known_agents_full"), "all are here: {heard:?}");
    for leaving in [1, 0, 2] {
        pair.leaves(sessions[leaving]);
    }
    assert_eq!(pair.forgotten(), []);
    pair.hello(0, 4, &Pair::name(0, 3));
    assert_eq!(pair.forgotten(), [id(1)]);
    // Who comes back in time is not forgotten, and whoever was, is met anew.
    pair.hello(0, 5, &Pair::name(0, 0));
    pair.hello(0, 6, &Pair::name(0, 1));
    assert_eq!(pair.forgotten(), [id(2)]);
    let gauges = pair.hearts[0].gauges();
    assert_eq!((gauges.known, gauges.counters.forgotten_early), (3, 2));
}

#[test]
fn whoever_is_owed_something_is_not_forgotten_until_that_has_failed() {
    let mut pair = crowded(4);
    let (ann, bob) = (pair.hello(0, 0, &Pair::name(0, 0)), pair.hello(0, 1, &Pair::name(0, 1)));
    pair.leaves(bob);
    let (from, to) = (Pair::name(0, 0), Pair::name(0, 1));
    let sender = AgentId::of(from.as_bytes());
    let fields = MessageFields {
        id: MessageId { sender, number: 1 },
        from: from.as_bytes(),
        to: to.as_bytes(),
        ttl_ms: 60_000,
        ..MessageFields::default()
    };
    pair.send_fields(0, ann, &fields);
    let refused = pair.hello_as(0, 2, Peer::default(), named(&Pair::name(0, 2)));
    assert!(pair.heard(refused).iter().any(|text| text == "close known_agents_full"));
    assert_eq!(pair.forgotten(), []);
    pair.now.mono = pair.now.mono + Mono::ms(61_000);
    pair.expire(0);
    pair.hello(0, 3, &Pair::name(0, 2));
    assert_eq!(pair.forgotten(), [id(1)], "its time is over, and the sender was told");
}

#[test]
fn a_broken_connection_is_waited_for_longer_than_a_bye_and_a_day_is_a_day() {
    let mut pair = crowded(6);
    let sessions: Vec<SessionId> = (0..3).map(|slot| pair.hello(0, slot, &Pair::name(0, slot as usize))).collect();
    pair.breaks(sessions[0]);
    pair.leaves(sessions[1]);
    let session = pair.hello(0, 3, &Pair::name(0, 3));
    assert_eq!(pair.forgotten(), [id(1)], "broadcasts still reach the one that was lost, though it went earlier");
    pair.now.mono = pair.now.mono + limits::RESUME_TTL;
    pair.frame(0, session, Frame::Ping(b"1".as_slice().into()));
    pair.leaves(session);
    pair.hello(0, 4, &Pair::name(0, 4));
    assert_eq!(pair.forgotten(), [id(0)], "after a day nothing resumes its session");
}

#[test]
fn a_message_to_somebody_forgotten_is_to_nobody_and_old_mail_is_not_owed_to_a_namesake() {
    let mut pair = crowded(4);
    let (ann, bob) = (pair.hello(0, 0, &Pair::name(0, 0)), pair.hello(0, 1, &Pair::name(0, 1)));
    pair.leaves(bob);
    let other = pair.hello(0, 2, &Pair::name(0, 2));
    pair.send(0, ann, &Pair::name(0, 0), &Pair::name(0, 1), 1, Wants::ACCEPTED);
    pair.now.mono = pair.now.mono + Mono::ms(2_001);
    pair.expire(0);
    assert_eq!(pair.heard(ann), ["welcome", "error 1 not_found"][1..]);
    pair.leaves(other);
    pair.records.clear();
    pair.hello(0, 3, &Pair::name(0, 1));
    let told = pair.records.iter().find_map(|record| match record {
        Record::Progress(progress) if progress.agent == id(1) => Some((progress.acknowledged, progress.owed)),
        _ => None,
    });
    let (acknowledged, owed) = told.expect("it is said where its order begins");
    assert_eq!((acknowledged.epoch, owed.messages), (3, 0));
}

#[test]
fn an_agent_that_waits_for_a_seat_is_not_forgotten_meanwhile() {
    let mut pair = Pair::shaped(|options| {
        options.bounds.known_agents_max = 2;
        options.entitlement = crate::base::tier::Entitled::new(Entitlement::of_tier(crate::base::tier::Tier::Pro));
    });
    let (bob, cid) = (Pair::name(1, 0), Pair::name(1, 1));
    let session = pair.hello_as(1, 0, Peer::default(), named(&bob));
    pair.carry();
    pair.frame(1, session, Frame::Bye);
    pair.carry();
    let back = pair.hello_as(1, 1, Peer::default(), named(&bob));
    let newcomer = pair.hello_as(1, 2, Peer::default(), named(&cid));
    assert!(pair.heard(newcomer).iter().any(|text| text == "close known_agents_full"));
    pair.carry();
    assert_eq!(pair.heard(back), ["welcome"]);
}
