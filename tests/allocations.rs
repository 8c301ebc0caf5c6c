//! Relaying a message allocates nothing once everything is warm: the heart and the codec driven as a shard drives them,
//! under an allocator that counts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait; nothing else here is")]

use agent_relay::base::keys::KeyRing;
use agent_relay::base::tier::Entitlement;
use agent_relay::base::{AgentId, MessageId, Mono, Now, Sequence, SessionId, ShardId};
use agent_relay::relay::{Bounds, Event, Options, Outbox, Output, Peer, Record, Relay};
use agent_relay::wire::{self, CAPABILITIES, Dialect, FLAG_REDELIVERED, Frame, Hello, Kind, MessageFields, Wants};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    /// Of this thread alone: the test harness has others.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // A thread that is ending has no counter any more, and is not the one that is measured.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    let _ = BYTES.try_with(|count| count.set(count.get() + bytes as u64));
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System`, as all of ours do, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: `pointer` came from `System`, as all of ours do, with this layout; `size` is the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ANN: SessionId = SessionId { slot: 0, generation: 0 };
const BOB: SessionId = SessionId { slot: 1, generation: 0 };

/// What a shard is around its heart, without sockets: buffers that are used again and again.
struct World {
    relay: Relay,
    outbox: Outbox,
    now: Now,
    to_ann: Vec<u8>,
    to_bob: Vec<u8>,
    batch: Vec<Record>,
    spare: Vec<Record>,
    committed: u64,
    delivered: Sequence,
    deliveries: u64,
}

impl World {
    fn new() -> World {
        let relay = Relay::new(Options {
            shard: ShardId(0),
            shards: 1,
            epoch: 1,
            name_seed: 1,
            token_seed: [1; 32],
            strict: false,
            bounds: Bounds::default(),
            entitlement: Entitlement::unlimited(),
            require_auth: false,
            bind_certificates: false,
            keys: KeyRing::empty(),
        });
        let mut world = World {
            relay,
            outbox: Outbox::default(),
            now: Now { mono: Mono(Mono::ms(1_000)), wall_ms: 1_766_966_970_000 },
            to_ann: Vec::new(),
            to_bob: Vec::new(),
            batch: Vec::new(),
            spare: Vec::new(),
            committed: 0,
            delivered: Sequence::default(),
            deliveries: 0,
        };
        for (session, name) in [(ANN, "ann"), (BOB, "bob")] {
            let opened = Event::Opened { session, peer: Peer { owner: true, ..Peer::default() } };
            world.relay.handle(world.now, opened, &mut world.outbox);
            let hello = Hello { claimed_name: name.as_bytes().into(), capabilities: CAPABILITIES, ..Hello::default() };
            let mut bytes = Vec::new();
            wire::encode::frame(&mut bytes, &Frame::Hello(Box::new(hello)), Sequence::default());
            world.receive(session, &bytes);
            world.perform();
        }
        world
    }

    /// As a shard reads: every whole frame of what came.
    fn receive(&mut self, session: SessionId, bytes: &[u8]) {
        let mut consumed = 0;
        while let Ok(wire::decode::Decoded::Whole { header, frame, length }) = wire::decode::frame(&bytes[consumed..]) {
            consumed += length;
            let event = Event::Frame { session, dialect: Dialect::Native, ack: header.ack, frame };
            self.relay.handle(self.now, event, &mut self.outbox);
        }
        assert_eq!(consumed, bytes.len());
    }

    /// As a shard acts: deliveries into send buffers, records to the writer, batches going round.
    fn perform(&mut self) {
        for output in self.outbox.outputs.drain(..) {
            match output {
                Output::Deliver(delivery) => {
                    assert_eq!(delivery.session, BOB);
                    let flags = delivery.flags & FLAG_REDELIVERED;
                    wire::encode::deliver(&mut self.to_bob, flags, delivery.sequence, &delivery.raw, delivery.checksum);
                    self.delivered = delivery.sequence;
                    self.deliveries += 1;
                }
                Output::Receipt { receipt, .. } => {
                    wire::encode::receipts(&mut self.to_ann, &[receipt], Sequence::default());
                }
                Output::Reply { session, frame } => {
                    let out = if session == ANN { &mut self.to_ann } else { &mut self.to_bob };
                    wire::encode::frame(out, &frame, Sequence::default());
                }
                Output::Settle { .. } | Output::Move { .. } | Output::Close { .. } => {}
                Output::Pause { .. } | Output::Resume { .. } => panic!("nothing limits these two"),
            }
        }
        self.batch.append(&mut self.outbox.records);
        assert!(self.outbox.mails.is_empty());
        self.relay.end_turn();
    }

    /// One turn: what came is relayed, written, acknowledged, committed.
    fn turn(&mut self, from_ann: &[u8]) {
        self.now.mono = self.now.mono + Mono::ms(1);
        self.receive(ANN, from_ann);
        self.perform();
        self.to_bob.clear();
        self.relay.handle(self.now, Event::Written { session: BOB, through: self.delivered }, &mut self.outbox);
        let acknowledgement = wire::Header { sequence: self.delivered, ..wire::Header::of(Kind::Ack) }.encode();
        self.receive(BOB, &acknowledgement);
        self.relay.tell_progress(self.now, &mut self.outbox);
        self.perform();
        self.committed += self.batch.len() as u64;
        self.relay.handle(self.now, Event::Committed { through: self.committed }, &mut self.outbox);
        self.perform();
        // The writer gives the emptied batch back.
        std::mem::swap(&mut self.batch, &mut self.spare);
        self.spare.clear();
        self.to_ann.clear();
        self.relay.expire(self.now, &mut self.outbox);
        self.perform();
    }
}

/// SENDs whose text is 128 bytes.
fn sends(count: u64, first: u64, wants: Wants) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in first..first + count {
        let fields = MessageFields {
            id: MessageId { sender: AgentId::of(b"ann"), number },
            from: b"ann",
            to: b"bob",
            text: &[b'x'; 128],
            wants,
            ..MessageFields::default()
        };
        wire::encode::send(&mut bytes, Kind::Send, &fields, Sequence::default());
    }
    bytes
}

fn measure(per_turn: u64, wants: Wants) -> (u64, u64, u64) {
    const FRAMES: u64 = 100_000;
    let mut world = World::new();
    let mut number = 1;
    let mut turn = |world: &mut World| {
        let bytes = sends(per_turn, number, wants);
        number += per_turn;
        let before = (COUNT.get(), BYTES.get());
        world.turn(&bytes);
        (COUNT.get() - before.0, BYTES.get() - before.1)
    };
    for _ in 0..20_000u64.div_ceil(per_turn) {
        turn(&mut world);
    }
    let (mut allocations, mut allocated, before) = (0, 0, world.deliveries);
    for _ in 0..FRAMES / per_turn {
        let (count, bytes) = turn(&mut world);
        allocations += count;
        allocated += bytes;
    }
    (allocations, allocated, world.deliveries - before)
}

/// Nothing at all, not even chunks for the bodies: those go round once what lies in them is acknowledged and kept. (A
/// writer that keeps history holds chunks for longer; that memory is its own bound's, not counted here.)
#[test]
fn relaying_one_hundred_thousand_frames_allocates_nothing() {
    for (per_turn, wants) in
        [(1, Wants::default()), (64, Wants::default()), (64, Wants::ACCEPTED), (64, Wants::ACCEPTED | Wants::DURABLE)]
    {
        let (allocations, allocated, deliveries) = measure(per_turn, wants);
        eprintln!(
            "{per_turn} a turn, {wants:?}: {allocations} allocations, {allocated} bytes, for {deliveries} frames"
        );
        assert_eq!(deliveries, 100_000 / per_turn * per_turn);
        assert_eq!(allocations, 0, "{per_turn} a turn, {wants:?}: {allocated} bytes");
    }
}
