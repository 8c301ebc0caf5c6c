//! The client against a relay of a few lines: scripted frames over a real socket, no daemon.

use super::*;
use crate::base::ids::Token;
use crate::base::{AgentId, MessageId, RefuseReason, Sequence};
use crate::wire::decode::{self, Decoded};
use crate::wire::{
    Ack, Answer, Busy, ErrorCode, ErrorFrame, FLAG_REDELIVERED, Frame, Header, MessageFields, QueryKind, Receipt,
    ReceiptState, Wants, Welcome, encode,
};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than any of these conversations takes: a bound for failing, not for passing.
const LONG: Duration = Duration::from_secs(20);

/// One accepted connection of the scripted relay.
struct Peer {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Peer {
    fn accept(listener: &UnixListener) -> Peer {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Peer { stream, received: Vec::new() }
    }

    /// The next frame, shown to `look`.
    fn expect<T>(&mut self, look: impl FnOnce(Header, Frame<'_>) -> T) -> T {
        loop {
            if let Decoded::Whole { header, frame, length } = decode::frame(&self.received).unwrap() {
                let seen = look(header, frame);
                self.received.drain(..length);
                return seen;
            }
            let mut piece = [0; 4096];
            let count = self.stream.read(&mut piece).unwrap();
            assert!(count > 0, "the client closed early");
            self.received.extend_from_slice(&piece[..count]);
        }
    }

    fn say(&mut self, frame: &Frame<'_>) {
        let mut out = Vec::new();
        encode::frame(&mut out, frame, Sequence::default());
        self.stream.write_all(&out).unwrap();
    }

    /// Answers HELLO; gives what it said about resuming.
    fn welcome(&mut self, epoch: u32, number: u64) -> (Option<Token>, Sequence) {
        let said = self.expect(|_, frame| match frame {
            Frame::Hello(hello) => (hello.resume, hello.handled),
            other => panic!("{other:?}"),
        });
        self.say(&Frame::Welcome(Box::new(Welcome {
            agent: AgentId::of(b"ann"),
            resume: Token([epoch as u8; 16]),
            number,
            epoch,
            ..Welcome::default()
        })));
        said
    }

    fn deliver(&mut self, epoch: u32, counter: u64, flags: u8) {
        let fields = MessageFields {
            id: MessageId { sender: AgentId::of(b"bob"), number: counter },
            from: b"bob",
            to: b"ann",
            text: format!("text {counter}").leak().as_bytes(),
            ..MessageFields::default()
        };
        let (mut body, mut out) = (Vec::new(), Vec::new());
        let checksum = encode::message_body(&mut body, &fields);
        encode::deliver(&mut out, flags, Sequence { epoch, counter }, &body, checksum);
        self.stream.write_all(&out).unwrap();
    }

    /// A SEND's number and text.
    fn sent(&mut self) -> (u64, String) {
        self.expect(|_, frame| match frame {
            Frame::Send(message) => (message.id().number, String::from_utf8_lossy(message.fields().text).into_owned()),
            other => panic!("{other:?}"),
        })
    }

    fn accept_number(&mut self, number: u64) {
        let id = MessageId { sender: AgentId::of(b"ann"), number };
        let receipt = Receipt { id, count: 1, state: ReceiptState::Accepted, recipient: AgentId(0) };
        self.say(&Frame::Receipt(vec![receipt]));
    }
}

/// A relay that follows `script`, and where it listens. The directory lives as long as the conversation.
fn relay(script: impl FnOnce(UnixListener) + Send + 'static) -> (Address, JoinHandle<()>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (Address::Unix(path), std::thread::spawn(move || script(listener)), directory)
}

fn text_of(incoming: Option<Incoming>) -> String {
    match incoming {
        Some(Incoming::Message(message)) => message.text().into_owned(),
        other => panic!("{other:?}"),
    }
}

fn to_bob(text: &str) -> Outgoing<'_> {
    Outgoing { to: "bob", text: Some(text), ..Outgoing::default() }
}

#[test]
fn nobody_listening_says_how_to_start_a_daemon() {
    let address = Address::Unix("/nonexistent/relay.sock".into());
    let Err(problem) = Client::connect(&address, &Options::named("ann")) else { panic!() };
    assert_eq!(problem.to_string(), "no daemon listens at /nonexistent/relay.sock; start one with `relay up`");
    let Err(problem) = Client::connect(&address, &Options::named("a:b")) else { panic!() };
    assert_eq!(problem.to_string(), "the name \"a:b\": a name must not contain ':'");
}

#[test]
fn messages_go_both_ways_and_acknowledgements_ride_along() {
    let (address, script, _directory) = relay(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.welcome(1, 17);
        assert_eq!(peer.sent(), (18, "hi".into()), "numbers go on where WELCOME says");
        peer.deliver(1, 1, 0);
        peer.deliver(1, 2, 0);
        // The second message was handed out but not handled when this was sent.
        let ack = peer.expect(|header, frame| {
            assert!(matches!(frame, Frame::Send(message) if message.to() == b"*" && message.topic() == b"builds"));
            header.ack
        });
        assert_eq!(ack, Sequence { epoch: 1, counter: 1 });
        peer.say(&Frame::Ping(b"you?"[..].into()));
        let ack = peer.expect(|header, frame| match frame {
            Frame::Pong(payload) if &payload[..] == b"you?" => header.ack,
            other => panic!("{other:?}"),
        });
        assert_eq!(ack, Sequence { epoch: 1, counter: 2 });
        peer.deliver(1, 2, FLAG_REDELIVERED);
        peer.deliver(1, 3, 0);
        let ack = peer.expect(|header, frame| match frame {
            Frame::Bye => header.ack,
            Frame::Ack(Ack::Through(sequence)) => sequence,
            other => panic!("{other:?}"),
        });
        assert!(ack.counter >= 2);
    });
    let mut client = Client::connect(&address, &Options::named("ann")).unwrap();
    assert_eq!(client.send(&to_bob("hi")).unwrap(), 18);
    assert_eq!(text_of(client.next(LONG).unwrap()), "text 1");
    assert_eq!(text_of(client.next(LONG).unwrap()), "text 2");
    client.send(&Outgoing { to: "#builds", text: Some("done"), ..Outgoing::default() }).unwrap();
    assert_eq!(text_of(client.next(LONG).unwrap()), "text 3", "the repeat is dropped, PING is answered");
    client.close().unwrap();
    script.join().unwrap();
}

#[test]
fn an_idle_client_acknowledges_without_being_asked() {
    let (address, script, _directory) = relay(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.welcome(1, 0);
        peer.deliver(1, 1, 0);
        let through = |counter| {
            move |_: Header, frame: Frame<'_>| match frame {
                Frame::Ack(Ack::Through(sequence)) => assert_eq!(sequence.counter, counter),
                other => panic!("{other:?}"),
            }
        };
        peer.expect(through(1));
        peer.say(&Frame::Bye);
    });
    let mut client = Client::connect(&address, &Options::named("ann")).unwrap();
    assert_eq!(text_of(client.next(LONG).unwrap()), "text 1");
    assert!(matches!(client.next(LONG).unwrap(), Some(Incoming::Bye)));
    assert!(matches!(client.next(LONG), Err(Error::Lost(_))));
    script.join().unwrap();
}

#[test]
fn a_refusal_of_hello_is_told() {
    let (address, script, _directory) = relay(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.expect(|_, frame| assert!(matches!(frame, Frame::Hello(_))));
        peer.say(&Frame::Error(Box::new(ErrorFrame {
            code: ErrorCode::DuplicateConnection,
            fatal: true,
            message: "ann is connected".into(),
            number: 0,
            label: "".into(),
            outcome: None,
        })));
    });
    let Err(problem) = Client::connect(&address, &Options::named("ann")) else { panic!() };
    assert_eq!(problem.to_string(), "the relay refused: ann is connected (DUPLICATE_CONNECTION)");
    script.join().unwrap();
}

#[test]
fn a_lost_connection_is_resumed_and_open_messages_are_said_again() {
    let (address, script, _directory) = relay(|listener| {
        let mut peer = Peer::accept(&listener);
        assert_eq!(peer.welcome(1, 0), (None, Sequence::default()));
        peer.expect(|_, frame| assert!(matches!(frame, Frame::Subscribe(topic) if &topic.name[..] == b"builds")));
        assert_eq!(peer.sent(), (1, "one".into()));
        assert_eq!(peer.sent(), (2, "two".into()));
        peer.accept_number(1);
        peer.deliver(1, 1, 0);
        peer.deliver(1, 2, 0);
        // The acknowledgement of the first proves that the receipt was read before the connection goes.
        peer.expect(|_, frame| assert!(matches!(frame, Frame::Ack(Ack::Through(sequence)) if sequence.counter == 1)));
        drop(peer);
        let mut peer = Peer::accept(&listener);
        let (token, handled) = peer.welcome(2, 2);
        assert_eq!((token, handled), (Some(Token([1; 16])), Sequence { epoch: 1, counter: 2 }));
        peer.expect(|_, frame| assert!(matches!(frame, Frame::Subscribe(_))));
        assert_eq!(peer.sent(), (2, "two".into()), "what was answered is not said again");
        peer.deliver(1, 2, FLAG_REDELIVERED);
        peer.deliver(2, 1, 0);
        peer.accept_number(2);
        peer.expect(|_, frame| assert!(matches!(frame, Frame::Ack(_) | Frame::Bye)));
    });
    let mut client = Reconnecting::connect(&address, &Options::named("ann")).unwrap();
    client.subscribe("#builds").unwrap();
    client.send(&to_bob("one")).unwrap();
    client.send(&to_bob("two")).unwrap();
    assert_eq!(text_of(client.next(LONG).unwrap()), "text 1");
    client.handled().unwrap();
    assert_eq!(text_of(client.next(LONG).unwrap()), "text 2");
    assert_eq!(text_of(client.next(LONG).unwrap()), "text 1", "of the second epoch; the repeat is dropped");
    while client.pending() > 0 {
        client.next(Duration::from_millis(20)).unwrap();
    }
    assert_eq!(client.connections(), 2);
    client.close().unwrap();
    script.join().unwrap();
}

#[test]
fn a_relay_that_reads_later_refuses_nothing_and_a_key_that_is_gone_is_not_tried_again() {
    let slowed = |number| {
        Frame::Busy(Box::new(Busy {
            number,
            label: "".into(),
            reason: RefuseReason::RateLimited,
            retry_after_ms: 1_000,
            queue_depth: 0,
            recipient: "".into(),
        }))
    };
    let (address, script, _directory) = relay(move |listener| {
        let mut peer = Peer::accept(&listener);
        peer.welcome(1, 0);
        assert_eq!(peer.sent(), (1, "one".into()));
        peer.say(&slowed(0));
        peer.accept_number(1);
        assert_eq!(peer.sent(), (2, "two".into()));
        drop(peer);
        let mut peer = Peer::accept(&listener);
        peer.expect(|_, frame| match frame {
            Frame::Hello(hello) => assert_eq!((&*hello.auth_type, hello.credential.reveal()), ("api_key", "ar_key_x")),
            other => panic!("{other:?}"),
        });
        peer.say(&Frame::Error(Box::new(ErrorFrame {
            code: ErrorCode::Unauthorized,
            fatal: true,
            message: "Invalid API key".into(),
            number: 0,
            label: "".into(),
            outcome: None,
        })));
    });
    let credential = Credential::read("ar_key_x".into()).unwrap();
    let mut client = Reconnecting::connect(&address, &Options { credential, ..Options::named("ann") }).unwrap();
    client.send(&to_bob("one")).unwrap();
    match client.next(LONG).unwrap() {
        Some(Incoming::Slowed { reason: RefuseReason::RateLimited, for_ms: 1_000 }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(client.pending(), 1, "it may still be accepted");
    while client.pending() > 0 {
        client.next(Duration::from_millis(20)).unwrap();
    }
    client.send(&to_bob("two")).unwrap();
    match client.next(LONG) {
        Err(Error::Refused { code: ErrorCode::Unauthorized, message }) => assert_eq!(message, "Invalid API key"),
        other => panic!("{other:?}"),
    }
    script.join().unwrap();
}

#[test]
fn what_a_relay_says_before_it_closes_is_heard_even_by_one_who_is_writing() {
    let (address, script, _directory) = relay(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.welcome(1, 0);
        // It reads nothing any more, says why it goes, and goes.
        peer.say(&Frame::Error(Box::new(ErrorFrame {
            code: ErrorCode::Unauthorized,
            fatal: true,
            message: "API key expired".into(),
            number: 0,
            label: "".into(),
            outcome: None,
        })));
    });
    let mut client = Client::connect(&address, &Options::named("ann")).unwrap();
    let body = "x".repeat(100_000);
    let refusal = loop {
        if let Err(problem) = client.send(&to_bob(&body)) {
            break problem;
        }
    };
    assert!(matches!(refusal, Error::Refused { code: ErrorCode::Unauthorized, .. }), "{refusal:?}");
    script.join().unwrap();
}

#[test]
fn a_relay_that_takes_nothing_for_a_while_is_listened_to_meanwhile() {
    let (address, script, _directory) = relay(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.welcome(1, 0);
        // More than the socket holds comes before anything is read here.
        for counter in 1..=100 {
            let fields = MessageFields {
                id: MessageId { sender: AgentId::of(b"bob"), number: counter },
                from: b"bob",
                to: b"ann",
                text: &[b'y'; 10_000],
                ..MessageFields::default()
            };
            let (mut body, mut out) = (Vec::new(), Vec::new());
            let checksum = encode::message_body(&mut body, &fields);
            encode::deliver(&mut out, 0, Sequence { epoch: 1, counter }, &body, checksum);
            peer.stream.write_all(&out).unwrap();
        }
        (1..=100).for_each(|number| assert_eq!(peer.sent().0, number));
        while !peer.expect(|_, frame| matches!(frame, Frame::Bye)) {}
    });
    let mut client = Client::connect(&address, &Options::named("ann")).unwrap();
    let body = "x".repeat(10_000);
    for number in 1..=100 {
        assert_eq!(client.send(&to_bob(&body)).unwrap(), number);
    }
    (0..100).for_each(|_| assert_eq!(text_of(client.next(LONG).unwrap()).len(), 10_000));
    client.close().unwrap();
    script.join().unwrap();
}

#[test]
fn a_submitted_message_reports_its_fate() {
    let number = |peer: &mut Peer| {
        peer.expect(|_, frame| match frame {
            Frame::Submit(message) => {
                assert_eq!((message.from(), message.fields().label.len()), (&b"ann"[..], 36));
                message.id().number
            }
            other => panic!("{other:?}"),
        })
    };
    let (address, script, _directory) = relay(move |listener| {
        let mut peer = Peer::accept(&listener);
        let first = number(&mut peer);
        peer.accept_number(first);
        let id = MessageId { sender: AgentId::of(b"ann"), number: first };
        let receipt = Receipt { id, count: 1, state: ReceiptState::Durable, recipient: AgentId(0) };
        peer.say(&Frame::Receipt(vec![receipt]));
        let mut peer = Peer::accept(&listener);
        let number = number(&mut peer);
        peer.say(&Frame::Busy(Box::new(Busy {
            number,
            label: "".into(),
            reason: RefuseReason::RecipientFull,
            retry_after_ms: 250,
            queue_depth: 9,
            recipient: "bob".into(),
        })));
    });
    let outcome = submit(&address, &to_bob("hi"), "ann", Wants::DURABLE, LONG).unwrap();
    assert_eq!((outcome.fate, outcome.timed_out), (Fate::Reached(ReceiptState::Durable), false));
    let outcome = submit(&address, &to_bob("hi"), "ann", Wants::ACCEPTED, LONG).unwrap();
    assert_eq!(outcome.fate, Fate::Refused { reason: RefuseReason::RecipientFull, retry_after_ms: 250 });
    script.join().unwrap();
}

#[test]
fn an_answer_in_parts_is_gathered_and_a_failed_one_is_an_error() {
    let (address, script, _directory) = relay(|listener| {
        for failed in [false, true] {
            let mut peer = Peer::accept(&listener);
            peer.expect(|_, frame| assert!(matches!(frame, Frame::Query(query) if query.kind == QueryKind::Status)));
            let json = if failed { b"{\"error\":\"no\"}".to_vec() } else { vec![b' '; 2_000_000] };
            peer.say(&Frame::Answer(Box::new(Answer { number: 1, more: false, failed, json: json.into() })));
        }
    });
    assert_eq!(ask(&address, QueryKind::Status, "", LONG).unwrap().len(), 2_000_000);
    assert_eq!(ask(&address, QueryKind::Status, "", LONG).unwrap_err().to_string(), "no");
    script.join().unwrap();
}

#[test]
fn a_message_that_does_not_fit_is_refused_before_it_is_sent() {
    let (address, script, _directory) = relay(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.welcome(1, 0);
        assert_eq!(peer.sent(), (1, "fits".into()), "the refused ones used no number");
    });
    let mut client = Client::connect(&address, &Options::named("ann")).unwrap();
    let long = "x".repeat(1024 * 1024);
    assert!(matches!(client.send(&to_bob(&long)), Err(Error::TooLong(_))));
    assert!(matches!(client.send(&Outgoing { to: "a/b", ..to_bob("x") }), Err(Error::Rule(_))));
    assert_eq!(client.send(&to_bob("fits")).unwrap(), 1);
    script.join().unwrap();
}
