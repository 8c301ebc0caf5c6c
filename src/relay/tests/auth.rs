//! Credentials: who comes in, who is turned away with which words, and who must go.

use super::*;
use crate::base::keys::{ApiKey, Certificate, Identity, KEY_PREFIX, KeyId, Ring, Scopes, Source, hash_of};
use crate::base::tier::{Entitled, Tier};
use crate::wire::Secret;

const WALL: u64 = 1_800_000_000_000;

pub(super) fn secret(last: char) -> String {
    format!("{KEY_PREFIX}{}{last}", "a".repeat(31))
}

pub(super) fn key(last: char) -> ApiKey {
    ApiKey {
        id: KeyId([last as u8; 16]),
        hash: hash_of(&secret(last)),
        hash_before: None,
        prefix: "".into(),
        name: "".into(),
        description: "".into(),
        scopes: Scopes::USUAL,
        agents: None,
        per_minute: 1_000,
        created_at_ms: 0,
        created_by: "".into(),
        expires_at_ms: None,
        revoked_at_ms: None,
        last_used_at_ms: None,
        total_messages: 0,
    }
}

pub(super) fn ring(keys: impl IntoIterator<Item = ApiKey>) -> Ring {
    Ring::new(KeyRing::new(keys, [7; 32]))
}

/// Two hearts that ask everyone for a credential.
fn strict(keys: impl IntoIterator<Item = ApiKey>) -> Pair {
    let keys = ring(keys);
    let mut pair = Pair::shaped(|options| (options.require_auth, options.keys) = (true, keys.clone()));
    pair.now.wall_ms = WALL;
    pair
}

pub(super) fn presenting(name: &str, kind: &'static str, credential: &str) -> Hello<'static> {
    Hello { auth_type: kind.into(), credential: Secret::new(credential.to_owned()), ..named(name) }
}

pub(super) fn with_key(name: &str, last: char) -> Hello<'static> {
    presenting(name, "api_key", &secret(last))
}

/// What a HELLO is answered; each comes on a connection of its own.
fn answer(pair: &mut Pair, slot: u32, peer: Peer, hello: Hello<'static>) -> Vec<String> {
    let session = pair.hello_as(0, slot, peer, hello);
    pair.carry();
    pair.heard(session)
}

fn certificate_of(exposed: bool, certificate: Option<Certificate>) -> Peer {
    Peer { owner: false, exposed, source: Source::of_user(1), certificate }
}

#[test]
fn each_credential_has_its_answer_and_unknown_and_known_names_have_the_same() {
    let (ann, bob) = (Pair::name(0, 0), Pair::name(0, 1));
    let bound = ApiKey { agents: Some([bob.as_str().into()].into()), ..key('b') };
    let old = ApiKey { expires_at_ms: Some(WALL), ..key('o') };
    let mut pair = strict([key('k'), bound, old]);
    let mut slot = 0;
    let mut try_it = |pair: &mut Pair, hello| {
        slot += 1;
        answer(pair, slot, Peer { source: Source::of_user(slot), ..Peer::default() }, hello)
    };
    assert_eq!(try_it(&mut pair, with_key(&ann, 'k')), ["welcome"]);
    for name in [ann, Pair::name(0, 2)] {
        let refused = [
            (named(&name), "Authentication required"),
            (with_key(&name, 'x'), "Invalid API key"),
            (presenting(&name, "api_key", ""), "Invalid API key"),
            (with_key(&name, 'o'), "API key expired"),
            (presenting(&name, "password", "x"), "Invalid credentials"),
            (presenting(&name, "token", "ar_tok_x"), "Invalid credentials"),
        ];
        for (hello, text) in refused {
            assert_eq!(try_it(&mut pair, hello), [&format!("UNAUTHORIZED: {text}"), "close unauthorized"]);
        }
        let text = format!("FORBIDDEN: Agent name \"{name}\" not allowed for this key");
        assert_eq!(try_it(&mut pair, with_key(&name, 'b')), [&text, "close forbidden"]);
    }
    assert_eq!(try_it(&mut pair, with_key(&bob, 'b')), ["welcome"]);
    assert_eq!(pair.hearts[0].gauges().counters.auth_failures, [2, 4, 2, 4, 2]);
    assert_eq!(pair.hearts[0].gauges().known, 2, "whoever is turned away is not met");
}

#[test]
fn a_credential_is_needed_where_others_can_reach_and_checked_wherever_it_is_presented() {
    let keys = ring([key('k')]);
    let mut pair = Pair::shaped(|options| (options.keys, options.bind_certificates) = (keys.clone(), true));
    pair.now.wall_ms = WALL;
    let (ann, bob) = (Pair::name(0, 0), Pair::name(0, 1));
    let shown: Certificate = Certificate::new(Identity { names: [bob.as_str().into()].into(), fingerprint: [0; 32] });
    let missing = ["UNAUTHORIZED: Authentication required", "close unauthorized"];
    assert_eq!(answer(&mut pair, 0, Peer::default(), named(&ann)), ["welcome"]);
    assert_eq!(answer(&mut pair, 1, certificate_of(true, None), named(&bob)), missing);
    let wrong = ["UNAUTHORIZED: Invalid API key", "close unauthorized"];
    assert_eq!(answer(&mut pair, 2, Peer::default(), with_key(&bob, 'x')), wrong);
    let other = format!("FORBIDDEN: Agent name \"{ann}\" not allowed for this certificate");
    let peer = certificate_of(true, Some(shown.clone()));
    assert_eq!(answer(&mut pair, 3, peer.clone(), named(&ann)), [&other, "close forbidden"]);
    assert_eq!(answer(&mut pair, 4, peer.clone(), with_key(&ann, 'k')), [&other, "close forbidden"]);
    assert_eq!(answer(&mut pair, 5, peer, named(&bob)), ["welcome"], "the certificate is its credential");
    let mut pair = strict([key('k')]);
    assert_eq!(answer(&mut pair, 6, certificate_of(true, Some(shown)), named(&bob)), missing, "a key is asked for");
}

#[test]
fn a_tier_without_authentication_ignores_what_is_presented_unless_it_is_needed() {
    let community = crate::base::tier::Entitlement::of_tier(Tier::Community);
    let mut pair = Pair::shaped(|options| options.entitlement = Entitled::new(community.clone()));
    assert_eq!(answer(&mut pair, 0, Peer::default(), with_key(&Pair::name(0, 0), 'x')), ["welcome"]);
    let mut pair = strict([key('k')]);
    pair.tell(0, Event::Entitled(Entitled::new(community)));
    let wrong = ["UNAUTHORIZED: Invalid API key", "close unauthorized"];
    assert_eq!(answer(&mut pair, 0, Peer::default(), with_key(&Pair::name(0, 0), 'x')), wrong);
    assert_eq!(answer(&mut pair, 1, Peer::default(), with_key(&Pair::name(0, 0), 'k')), ["welcome"]);
}

#[test]
fn a_connection_goes_home_with_its_grant_and_not_with_its_credential() {
    let mut pair = strict([key('k')]);
    let session = pair.hello_as(0, 0, Peer::default(), with_key(&Pair::name(1, 0), 'k'));
    let Some(Output::Move { to: ShardId(1), hello, grant: Some(grant), .. }) = pair.outputs.pop() else {
        panic!("it moves");
    };
    assert!(hello.credential.reveal().is_empty() && hello.auth_type.is_empty());
    let adopted = |hello, grant| Event::Adopted {
        session,
        peer: Peer::default(),
        dialect: Dialect::Native,
        hello,
        grant: Some(grant),
    };
    pair.tell(1, Event::Keys(ring([])));
    pair.tell(1, adopted(hello.clone(), grant.clone()));
    assert_eq!(pair.heard(session), ["UNAUTHORIZED: Invalid API key", "close key_revoked"], "revoked on its way");
    pair.tell(1, Event::Keys(ring([key('k')])));
    pair.tell(1, adopted(hello, grant));
    assert_eq!(pair.heard(session), ["welcome"]);
}

#[test]
fn guessing_is_answered_ever_later_and_a_good_credential_never_is() {
    let mut pair = strict([key('k')]);
    let name = Pair::name(0, 0);
    let wrong = ["UNAUTHORIZED: Invalid API key", "close unauthorized"];
    for slot in 0..10 {
        assert_eq!(answer(&mut pair, slot, Peer::default(), with_key(&name, 'x')), wrong);
    }
    for slot in 10..26 {
        assert_eq!(answer(&mut pair, slot, Peer::default(), with_key(&name, 'x')), [""; 0]);
    }
    assert_eq!(answer(&mut pair, 26, Peer::default(), with_key(&name, 'x')), ["close throttled"]);
    assert_eq!(answer(&mut pair, 27, Peer::default(), with_key(&name, 'k')), ["welcome"]);
    let gauges = pair.hearts[0].gauges();
    assert_eq!((gauges.half_open, gauges.counters.auth_delayed), (16, 16));
    pair.now.mono = pair.now.mono + Mono::ms(999);
    pair.expire(0);
    assert!(pair.said.is_empty());
    pair.now.mono = pair.now.mono + Mono::ms(1);
    pair.expire(0);
    assert_eq!(pair.heard(SessionId { slot: 10, generation: 1 }), wrong);
    pair.tell(0, Event::Closed { session: SessionId { slot: 11, generation: 1 }, reason: CloseReason::Lost });
    pair.now.mono = pair.now.mono + Mono::ms(7_000);
    pair.expire(0);
    let answered = pair.said.iter().filter(|(_, text)| text == wrong[0]).count();
    assert_eq!((answered, pair.hearts[0].gauges().half_open), (14, 0));
}

#[test]
fn a_key_that_is_gone_ends_its_connections_in_that_turn_and_a_rotated_one_at_its_end() {
    let mut pair = strict([key('k'), key('m')]);
    let (mine, other) = (Pair::name(0, 0), Pair::name(0, 1));
    let first = pair.hello_as(0, 0, Peer::default(), with_key(&mine, 'k'));
    let second = pair.hello_as(0, 1, Peer::default(), with_key(&other, 'm'));
    pair.said.clear();
    let rotated =
        ApiKey { hash: hash_of(&secret('n')), hash_before: Some((hash_of(&secret('m')), WALL + 2_500)), ..key('m') };
    pair.tell(0, Event::Keys(ring([rotated])));
    assert_eq!(pair.heard(first), ["UNAUTHORIZED: Invalid API key", "close key_revoked"]);
    assert_eq!((pair.hearts[0].gauges().live, pair.heard(second)), (1, vec![]));
    for _ in 0..2 {
        pair.now = Now { mono: pair.now.mono + Mono::ms(1_000), wall_ms: pair.now.wall_ms + 1_000 };
        pair.expire(0);
        assert_eq!(pair.heard(second), [""; 0]);
    }
    // The wall clock jumps: it is looked at once a second.
    pair.now = Now { mono: pair.now.mono + Mono::ms(1_000), wall_ms: pair.now.wall_ms + 600 };
    pair.expire(0);
    assert_eq!(pair.heard(second), ["UNAUTHORIZED: API key expired", "close key_expired"]);
    assert_eq!(pair.hearts[0].gauges().connections, 0);
}

#[test]
fn scopes_decide_who_sends_who_receives_and_who_asks() {
    let only = |last, scopes| ApiKey { scopes, ..key(last) };
    let mut pair = strict([key('k'), only('s', Scopes::SEND), only('r', Scopes::RECEIVE), only('a', Scopes::ADMIN)]);
    let names: Vec<String> = (0..4).map(|wanted| Pair::name(0, wanted)).collect();
    let mut sessions = Vec::new();
    for (slot, last) in ['k', 's', 'r', 'a'].into_iter().enumerate() {
        sessions.push(pair.hello_as(0, slot as u32, Peer::default(), with_key(&names[slot], last)));
    }
    pair.said.clear();
    pair.send(0, sessions[1], &names[1], &names[2], 1, Wants::ACCEPTED);
    pair.send(0, sessions[2], &names[2], &names[1], 1, Wants::ACCEPTED);
    pair.send(0, sessions[0], &names[0], &names[1], 1, Wants::ACCEPTED);
    assert_eq!(pair.heard(sessions[1]), ["Accepted 1"]);
    assert_eq!(pair.heard(sessions[2]), ["error 1 forbidden"], "not fatal");
    let deliveries = |pair: &Pair, to: SessionId| {
        let is_to = |output: &&Output| matches!(output, Output::Deliver(delivery) if delivery.session == to);
        pair.outputs.iter().filter(is_to).count()
    };
    assert_eq!((deliveries(&pair, sessions[2]), deliveries(&pair, sessions[1])), (1, 0));
    assert_eq!(pair.hearts[0].gauges().waiting_messages, 2, "what may not be received stays owed");
    let query = || {
        Frame::Query(Box::new(crate::wire::Query {
            number: 1,
            kind: crate::wire::QueryKind::Agents,
            arguments: "".into(),
        }))
    };
    pair.frame(0, sessions[3], query());
    assert_eq!(pair.outbox.questions.len(), 1);
    pair.outbox.questions.clear();
    pair.frame(0, sessions[0], query());
    assert_eq!(pair.outbox.questions.len(), 0);
    assert_eq!(pair.heard(sessions[0]).last().map(String::as_str), Some("close forbidden"));
    let enrol = |member: &str| {
        let topic = crate::wire::Topic { name: b"news"[..].into(), channel: true };
        let (member, label) = (member.to_owned().into(), "j".into());
        Frame::Enrol(Box::new(crate::wire::Enrol { topic, member, join: true, label }))
    };
    pair.frame(0, sessions[1], enrol(&names[2]));
    assert_eq!(pair.heard(sessions[1]), ["error 0 "], "only an admin adds others");
    pair.frame(0, sessions[3], enrol(&names[2]));
    pair.frame(0, sessions[3], enrol("nobody"));
    assert_eq!((pair.heard(sessions[3]), pair.hearts[0].gauges().topics), (vec![], 1));
    let again = pair.hello_as(0, 9, Peer::default(), with_key(&names[1], 'k'));
    assert_eq!(pair.heard(again)[1], "close duplicate_connection", "another key's name is not taken over");
    pair.frame(0, sessions[1], Frame::Bye);
    let again = pair.hello_as(0, 10, Peer::default(), with_key(&names[1], 'k'));
    assert_eq!((pair.heard(again), deliveries(&pair, again)), (vec!["welcome".to_owned()], 1));
}

#[test]
fn the_same_key_takes_its_name_over() {
    let mut pair = strict([key('k')]);
    let name = Pair::name(0, 0);
    let first = pair.hello_as(0, 0, Peer::default(), with_key(&name, 'k'));
    let second = pair.hello_as(0, 1, Peer::default(), with_key(&name, 'k'));
    assert_eq!(pair.heard(first).last().map(String::as_str), Some("close duplicate_connection"));
    assert_eq!(pair.heard(second), ["welcome"]);
}

#[test]
fn welcome_tells_the_licence() {
    let text = |tier| crate::relay::hello::license_of(&Entitlement::of_tier(tier));
    let community = r#"{"tier":"community","features":["basic_messaging","dashboard_basic","sqlite_storage"],"limits":{"maxAgents":10,"retentionDays":7}}"#;
    assert_eq!(text(Tier::Community), community);
    assert!(text(Tier::Enterprise).ends_with(r#""limits":{"maxAgents":null,"retentionDays":null}}"#));
}
