//! Order per sender and recipient, each message once, whatever the sockets do to the bytes.

use crate::harness::{Daemon, PATIENCE, Setup, Way, every_way};
use crate::peers::{NativePeer, Owned};
use agent_relay::client::{Client, Incoming, Options};
use agent_relay::wire::Wants;
use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

const SENDERS: usize = 4;
const MESSAGES: usize = 2_000;

/// A generator whose sequence is the seed's.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub(crate) fn ordered_under_pressure(daemon: &Daemon) {
    let mut receiver = Client::connect(
        &daemon.address(),
        &Options { in_flight_max: 128, connect_timeout: PATIENCE, ..Options::named("receiver") },
    )
    .unwrap();
    std::thread::scope(|scope| {
        for index in 0..SENDERS {
            scope.spawn(move || sliced_sender(daemon.native(&format!("sender-{index}")), index as u64 + 1));
        }
        let mut next: HashMap<String, usize> = HashMap::new();
        for _ in 0..SENDERS * MESSAGES {
            let message = crate::peers::message(&mut receiver);
            let expected = next.entry(message.from().into_owned()).or_default();
            let number: usize = message.text().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(number, *expected, "{}", message.from());
            *expected += 1;
        }
        assert!(next.values().all(|count| *count == MESSAGES));
        // The senders wait for the last ones to be acknowledged.
        receiver.handled().unwrap();
    });
    match receiver.next(Duration::from_millis(50)).unwrap() {
        None => {}
        Some(Incoming::Message(message)) => panic!("once more: {}", message.text()),
        Some(other) => panic!("{other:?}"),
    }
}

/// Writes its messages in slices that end anywhere, and sends again, in order, what was answered with BUSY.
fn sliced_sender(mut sender: NativePeer, seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let padding = "x".repeat(1_500);
    let mut stream = sender.stream.try_clone().unwrap();
    // Few enough at once that the recipient's 1 MiB never refuses one: refusals would change the order on purpose.
    const AT_ONCE: usize = 100;
    let mut accepted = 0;
    for start in (0..MESSAGES).step_by(AT_ONCE) {
        let mut bytes = Vec::new();
        for number in start..start + AT_ONCE {
            let length = random.below(padding.len() as u64) as usize;
            let text = format!("{number} {}", &padding[..length]);
            bytes.extend(sender.encode("receiver", &text, Wants::ACKNOWLEDGED));
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let longest = if random.below(3) == 0 { 7 } else { 9_000 };
            let length = rest.len().min(1 + random.below(longest) as usize);
            stream.write_all(&rest[..length]).unwrap();
            rest = &rest[length..];
        }
        while accepted < start + AT_ONCE {
            match sender.hear().unwrap().frame {
                Owned::Receipts(receipts) => {
                    accepted += receipts.iter().map(|receipt| receipt.count as usize).sum::<usize>()
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn four_senders_are_heard_in_order_and_once() {
    every_way(|way: Way| ordered_under_pressure(&Setup::new(way).settings("[limits]\nin_flight = 128\n").start()));
}

#[test]
fn the_same_send_twice_is_one_message() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let (mut ann, mut bob, mut eve) = (daemon.native("ann"), daemon.client("bob"), daemon.json("Eve"));
        let bytes = ann.encode("bob", "once", Wants::ACCEPTED);
        ann.stream.write_all(&bytes).unwrap();
        ann.stream.write_all(&bytes).unwrap();
        let send =
            serde_json::json!({ "type": "SEND", "id": "same", "to": "bob", "payload": { "body": "once as well" } });
        eve.say(&send);
        eve.say(&send);
        eve.barrier();
        ann.send("bob", "the end", Wants::default());
        eve.send("bob", "the end");
        let mut heard: Vec<String> = (0..4).map(|_| crate::peers::text(&mut bob)).collect();
        heard.sort();
        assert_eq!(heard, ["once", "once as well", "the end", "the end"]);
        let mut receipts = 0;
        while receipts < 2 {
            let Owned::Receipts(some) = ann.hear().unwrap().frame else { panic!("the second is accepted as well") };
            receipts += some.iter().map(|receipt| receipt.count).sum::<u32>();
        }
        assert_eq!(daemon.status()["messages"]["duplicates"], 2);
    });
}
