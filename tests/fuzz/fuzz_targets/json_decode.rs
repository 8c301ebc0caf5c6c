//! Any bytes, as a JSON client's first and later frames: no panic, no growth without bound, and whatever is accepted as a
//! message leaves as valid JSON within the length that was announced for it.
#![no_main]

use agent_relay::base::ids::Token;
use agent_relay::base::{AgentId, Sequence};
use agent_relay::wire::json::{self, Decoded, PREFIX_BYTES, Scratch, Speaker};
use agent_relay::wire::{FLAG_CHANNEL, FLAG_REDELIVERED, Frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let speaker =
        Speaker { name: "Ann", agent: AgentId::of(b"Ann"), session: Token::default(), ordinal: 1, wall_ms: 1 };
    // The input as a stream, and as the text of one frame: a fuzzer seldom guesses a length.
    let mut framed = (input.len() as u32).to_be_bytes().to_vec();
    framed.extend_from_slice(input);
    for mut bytes in [input, &framed] {
        let mut scratch = Scratch::default();
        while let Ok(Decoded::Whole { frame, length }) = json::decode(bytes, Some(&speaker), &mut scratch) {
            assert!(length > PREFIX_BYTES && length <= bytes.len());
            if let Frame::Send(message) = frame {
                for flags in [0, FLAG_CHANNEL, FLAG_REDELIVERED] {
                    let mut out = Vec::new();
                    json::deliver(&mut out, &message, Sequence { epoch: 1, counter: 1 }, flags, "Bob", Token::default());
                    assert!(out.len() <= json::deliver_length(&message, "Bob"));
                    assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&out[PREFIX_BYTES..]).is_ok());
                }
            }
            bytes = &bytes[length..];
        }
    }
});
