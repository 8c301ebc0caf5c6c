//! One name, two connections: who may have it. By moving the clock.

use super::auth::{key, ring, with_key};
use super::*;
use crate::base::limits::{TAKE_OVER_DAMPER, TAKE_OVER_SILENCE};

const REFUSED: &str = "is in use by another connection";

/// Whether another connection gets the name.
fn takes(pair: &mut Pair, slot: u32, hello: Hello<'static>) -> bool {
    let session = pair.hello_as(0, slot, Peer::default(), hello);
    let heard = pair.heard(session).concat();
    assert!(heard.contains("welcome") != heard.contains(REFUSED), "{heard}");
    heard.contains("welcome")
}

#[test]
fn a_holder_that_was_silent_for_fifteen_seconds_is_replaced_and_any_frame_is_a_sign_of_life() {
    let mut pair = Pair::new();
    let name = Pair::name(0, 0);
    let first = pair.hello(0, 0, &name);
    let begun = pair.now.mono;
    pair.now.mono = begun + (TAKE_OVER_SILENCE - 1);
    assert!(!takes(&mut pair, 1, named(&name)));
    pair.frame(0, first, Frame::Ping(b"here".to_vec().into()));
    pair.now.mono = begun + TAKE_OVER_SILENCE;
    assert!(!takes(&mut pair, 2, named(&name)), "it has said something meanwhile");
    pair.now.mono = begun + 2 * TAKE_OVER_SILENCE;
    assert!(takes(&mut pair, 3, named(&name)));
    let told = pair.heard(first).concat();
    assert!(told.contains("Another connection has taken this agent name"), "{told}");
}

#[test]
fn who_shows_the_holders_key_takes_the_name_over_twice_in_ten_seconds_and_another_key_does_not() {
    let keys = ring([key('k'), key('o')]);
    let mut pair = Pair::shaped(|options| (options.require_auth, options.keys) = (true, keys.clone()));
    pair.now.wall_ms = 1_800_000_000_000;
    let name = Pair::name(0, 0);
    assert!(takes(&mut pair, 0, with_key(&name, 'k')), "nobody has it");
    assert!(!takes(&mut pair, 1, with_key(&name, 'o')), "another key");
    assert!(takes(&mut pair, 2, with_key(&name, 'k')) && takes(&mut pair, 3, with_key(&name, 'k')));
    assert!(!takes(&mut pair, 4, with_key(&name, 'k')), "two programs with one name do not flap");
    pair.now.mono = pair.now.mono + TAKE_OVER_DAMPER;
    assert!(takes(&mut pair, 5, with_key(&name, 'k')));
}
