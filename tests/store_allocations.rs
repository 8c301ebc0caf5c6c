//! A commit allocates nothing once everything is warm: the store under an allocator that counts. LMDB's own, in C, are not
//! counted.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait; nothing else here is")]

use agent_relay::base::{AgentId, Bytes, MessageId, Sequence};
use agent_relay::relay::{Addressee, Recipients, Record};
use agent_relay::store::{Key, Options, Segment, Store};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System`, as all of ours do, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_commit_of_messages_allocates_nothing_plain_or_sealed() {
    for key in [None, Key::generate()] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Options::new(folder.path(), key)).unwrap();
        store.begin_epoch(1, 0).unwrap();
        let (raw, mut segment) = (Bytes::from(vec![7; 300]), Segment::new());
        let mut counted = 0;
        for round in 0..40u64 {
            let before = COUNT.with(Cell::get);
            segment.clear();
            for number in round * 300 + 1..=round * 300 + 300 {
                let sequence = Sequence { epoch: 1, counter: number };
                segment.push(&Record::Message {
                    id: MessageId { sender: AgentId(1), number },
                    raw: raw.clone(),
                    checksum: 0,
                    accepted_at_ms: number,
                    ttl_ms: 0,
                    parts: 1,
                    recipients: Recipients::One(Addressee { agent: AgentId(2), sequence, channel: false }),
                });
            }
            if round % 2 == 0 { store.append(&mut segment) } else { store.append_at_once(&mut segment) }.unwrap();
            if round >= 10 {
                counted += COUNT.with(Cell::get) - before;
            }
        }
        assert_eq!(counted, 0);
    }
}
