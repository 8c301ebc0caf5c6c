//! Micro benchmarks: the codec, the heart, the lanes, the chunks. `cargo bench -p relay-bench`; a filter may follow `--`.

use agent_relay::base::ids::Token;
use agent_relay::base::{AgentId, Bytes, Chunks, MessageId, Sequence, ShardId};
use agent_relay::mesh::{Mesh, Post};
use agent_relay::relay::Mail;
use agent_relay::wire::{Dialect, Frame, Message, decode, encode, json};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use relay_bench::heart::World;
use relay_bench::messages::{TEXT_BYTES, json_send, native_send, text};
use std::sync::Arc;

fn main() {
    divan::main();
}

const SEQUENCE: Sequence = Sequence { epoch: 1, counter: 1 };

#[divan::bench(args = TEXT_BYTES)]
fn native_decode(bencher: Bencher<'_, '_>, length: usize) {
    let mut frame = Vec::new();
    native_send(&mut frame, "ann", "bob", 1, &text(length));
    bencher.bench(|| match decode::frame(black_box(&frame)) {
        Ok(decode::Decoded::Whole { length, .. }) => length,
        other => panic!("one whole frame, not {other:?}"),
    });
}

#[divan::bench(args = TEXT_BYTES)]
fn native_encode_delivery(bencher: Bencher<'_, '_>, length: usize) {
    let (raw, checksum) = body(length);
    let mut out = Vec::new();
    bencher.bench_local(|| {
        out.clear();
        encode::deliver(&mut out, 0, SEQUENCE, black_box(&raw), checksum);
        out.len()
    });
}

#[divan::bench(args = TEXT_BYTES)]
fn json_decode(bencher: Bencher<'_, '_>, length: usize) {
    let frame = json_send("bob", "3f2b8c1e-5a0d-4a58-9f6e-2f6f1f0b7c11", &text(length));
    let agent = AgentId::of(b"ann");
    let speaker = json::Speaker { name: "ann", agent, session: Token::default(), ordinal: 0, wall_ms: 1 };
    let mut scratch = json::Scratch::default();
    bencher.bench_local(|| match json::decode(black_box(&frame), Some(&speaker), &mut scratch) {
        Ok(json::Decoded::Whole { frame: Frame::Send(_), length }) => length,
        _ => panic!("one SEND"),
    });
}

#[divan::bench(args = TEXT_BYTES)]
fn json_encode_delivery(bencher: Bencher<'_, '_>, length: usize) {
    let (raw, checksum) = body(length);
    let message = Message::check(&raw, checksum).expect("our own body");
    let mut out = Vec::new();
    bencher.bench_local(|| {
        out.clear();
        json::deliver(&mut out, black_box(&message), SEQUENCE, 0, "bob", Token::default());
        out.len()
    });
}

/// SEND decoded, routed, accepted, delivered, acknowledged; so many in one turn, one acknowledgement for all.
#[divan::bench(args = [1, 16, 64])]
fn heart_direct_128(bencher: Bencher<'_, '_>, messages: u32) {
    let (world, text) = (std::cell::RefCell::new(World::new(1)), text(128));
    bencher
        .counter(ItemsCount::new(messages))
        .with_inputs(|| world.borrow_mut().messages(messages, "r0", &text))
        .bench_local_refs(|bytes| world.borrow_mut().relay(bytes));
}

/// One SEND to a topic with a hundred subscribers; a hundred acknowledgements. Items are deliveries.
#[divan::bench]
fn heart_topic_1_to_100_128(bencher: Bencher<'_, '_>) {
    let (world, text) = (std::cell::RefCell::new(World::new(100)), text(128));
    bencher
        .counter(ItemsCount::new(100u32))
        .with_inputs(|| world.borrow_mut().messages(1, "#all", &text))
        .bench_local_refs(|bytes| world.borrow_mut().relay(bytes));
}

/// Mail pushed into a lane by one thread and taken by another that looks all the time; ends when the last was taken.
#[divan::bench(args = [1, 16, 64])]
fn mesh_burst_to_a_spinning_thread(bencher: Bencher<'_, '_>, burst: u64) {
    hand_over(bencher, burst, false);
}

/// The same with a receiver that sleeps when there is nothing, so that each burst pays for one wake-up.
#[divan::bench(args = [1, 16, 64])]
fn mesh_burst_to_a_sleeping_thread(bencher: Bencher<'_, '_>, burst: u64) {
    hand_over(bencher, burst, true);
}

const HERE: ShardId = ShardId(0);
const THERE: ShardId = ShardId(1);
const END: u64 = u64::MAX;

fn mail(number: u64) -> Post {
    Post::Mail(Mail::GiveBack(MessageId { sender: AgentId(1), number }))
}

fn hand_over(bencher: Bencher<'_, '_>, burst: u64, sleeps: bool) {
    let mesh = Arc::new(Mesh::new(2));
    let receiver = {
        let mesh = mesh.clone();
        std::thread::spawn(move || {
            let mut taken = 0;
            loop {
                while let Some(Post::Mail(Mail::GiveBack(id))) = mesh.pop_mail(HERE, THERE) {
                    if id.number == END {
                        return;
                    }
                    taken += 1;
                }
                mesh.commit(HERE, taken);
                if sleeps {
                    mesh.shard_sleeper(THERE).doze();
                    if !mesh.anything_for(THERE, None) {
                        std::thread::park();
                    }
                    mesh.shard_sleeper(THERE).awake();
                }
            }
        })
    };
    let mut pushed = 0;
    bencher.counter(ItemsCount::new(burst)).bench_local(|| {
        for _ in 0..burst {
            pushed += 1;
            assert!(mesh.push_mail(HERE, THERE, mail(pushed)).is_ok(), "a burst fits a lane");
        }
        if mesh.shard_sleeper(THERE).rouse() {
            receiver.thread().unpark();
        }
        while mesh.committed(HERE) != pushed {
            std::hint::spin_loop();
        }
    });
    assert!(mesh.push_mail(HERE, THERE, mail(END)).is_ok(), "the lane is empty");
    receiver.thread().unpark();
    receiver.join().expect("the receiver only counts");
}

/// What every accepted message costs: one copy into a shared chunk, dropped at once.
#[divan::bench(args = TEXT_BYTES)]
fn chunk_copy(bencher: Bencher<'_, '_>, length: usize) {
    let (frame, mut chunks) = (vec![7u8; length], Chunks::default());
    bencher.bench_local(|| chunks.copy(black_box(&frame)));
}

/// What it would cost as an allocation of its own.
#[divan::bench(args = TEXT_BYTES)]
fn chunk_copy_allocated_each(bencher: Bencher<'_, '_>, length: usize) {
    let frame = vec![7u8; length];
    bencher.bench(|| Bytes::copy_from_slice(black_box(&frame)));
}

fn body(length: usize) -> (Vec<u8>, u32) {
    let mut frame = Vec::new();
    native_send(&mut frame, "ann", "bob", 1, &text(length));
    let Ok(decode::Decoded::Whole { frame: Frame::Send(message), .. }) = decode::frame(&frame) else {
        panic!("one SEND");
    };
    assert_eq!(Dialect::of(frame[0]), Some(Dialect::Native));
    (message.raw.to_vec(), message.checksum)
}
