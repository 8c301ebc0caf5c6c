//! Any bytes as a stream of native frames, and as bodies behind a header that fits: no panic, and what was understood
//! means the same after it is written and read again.
#![no_main]

use agent_relay::base::{Bytes, Sequence};
use agent_relay::wire::decode::{self, Decoded};
use agent_relay::wire::{Frame, HEADER_BYTES, Header, Kind, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    stream(bytes);
    // Random bytes rarely have the right checksum: give the rest one, so that every body's decoder is reached.
    if let Some((kind, body)) = bytes.split_first() {
        let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
        framed(kind, body);
        // The corpus holds whole frames: their bodies start after the header.
        if let Some(body) = bytes.get(HEADER_BYTES..) {
            framed(Kind::ALL[usize::from(bytes[2].wrapping_sub(1)) % Kind::ALL.len()], body);
        }
    }
});

/// Every frame of a stream.
fn stream(mut bytes: &[u8]) {
    while let Ok(Decoded::Whole { header, frame, length }) = decode::frame(bytes) {
        assert!(length >= HEADER_BYTES && length <= bytes.len());
        understood(&header, &frame);
        bytes = &bytes[length..];
    }
}

/// `body` as that of a `kind` frame. The number of a message is repeated in the header, as SEND demands.
fn framed(kind: Kind, body: &[u8]) {
    const NUMBER_FROM_END: usize = 104 - 8;
    let counter = body
        .len()
        .checked_sub(NUMBER_FROM_END)
        .map_or(0, |at| u64::from_le_bytes(std::array::from_fn(|byte| body[at + byte])));
    let header = Header {
        length: body.len() as u32,
        checksum: crc(body),
        sequence: Sequence { epoch: 0, counter },
        ..Header::of(kind)
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(body);
    stream(&bytes);
}

/// CRC-32, written once more: an independent check of the one in use.
fn crc(body: &[u8]) -> u32 {
    let mut table = [0u32; 256];
    for (index, entry) in table.iter_mut().enumerate() {
        *entry = (0..8).fold(index as u32, |word, _| (word >> 1) ^ (0xEDB8_8320 * (word & 1)));
    }
    !body.iter().fold(!0u32, |word, byte| (word >> 8) ^ table[usize::from(word as u8 ^ byte)])
}

fn understood(header: &Header, frame: &Frame<'_>) {
    if let Frame::Send(message) | Frame::Submit(message) | Frame::Deliver(message) = frame {
        let parcel = message.parcel(Bytes::copy_from_slice(message.raw));
        assert_eq!((parcel.from(), parcel.to()), (message.from(), message.to()));
        assert_eq!((parcel.topic(), parcel.label()), (message.topic(), message.label()));
        let mut again = Vec::new();
        let checksum = encode::message_body(&mut again, &message.fields());
        if let Kind::Send | Kind::Submit = header.kind {
            let ours = Header { length: again.len() as u32, checksum, ..*header };
            let mut bytes = ours.encode().to_vec();
            bytes.extend_from_slice(&again);
            let read = decode::frame(&bytes);
            let Ok(Decoded::Whole { frame: Frame::Send(copy) | Frame::Submit(copy), .. }) = read else {
                panic!("a message that was understood is not understood when written again: {read:?}");
            };
            assert_eq!(copy.fields(), message.fields());
        }
        return;
    }
    let mut written = Vec::new();
    encode::frame(&mut written, frame, header.ack);
    if written.is_empty() {
        return;
    }
    let Ok(Decoded::Whole { header: again_header, frame: again, length }) = decode::frame(&written) else {
        panic!("a frame that was understood is not understood when written again: {frame:?}");
    };
    assert_eq!(format!("{again:?}"), match frame {
        // Repaired or unreadable parts are written as they were understood.
        Frame::Hello(hello) => {
            let mut hello = hello.clone();
            hello.resume_presented = hello.resume.is_some();
            format!("{:?}", Frame::Hello(hello))
        }
        other => format!("{other:?}"),
    });
    let mut twice = Vec::new();
    encode::frame(&mut twice, &again, again_header.ack);
    assert_eq!(&twice[..length], &written[..length]);
}
