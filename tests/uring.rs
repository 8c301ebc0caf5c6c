//! The driver's promises, the same over every kernel interface and every way to receive.

#![allow(clippy::unwrap_used)]

use agent_relay::base::{Bytes, SessionId};
use agent_relay::uring::{Backend, Completion, Driver, ListenerId, Options, Receive, ReceiveMode, SendBuffer};
use rustix::net::sockopt;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

const WAYS: [(Backend, Receive); 5] = [
    (Backend::Uring, Receive::Incremental),
    (Backend::Uring, Receive::Bundle),
    (Backend::Uring, Receive::Provided),
    (Backend::Uring, Receive::Single),
    (Backend::Epoll, Receive::Auto),
];

/// Runs `test` in every way this kernel has; at least epoll it has.
fn every_way(test: impl Fn(&Options)) {
    for (backend, receive) in WAYS {
        let options = Options { backend, receive, connections_max: 2_000, ..Options::default() };
        match Driver::new(&options) {
            Ok(_) => {
                eprintln!("{backend:?} {receive:?}");
                test(&options);
            }
            Err(error) => eprintln!("{backend:?} {receive:?}: not here: {error}"),
        }
    }
}

/// A driver, and all it has said.
struct World {
    driver: Driver,
    received: HashMap<SessionId, Vec<u8>>,
    ended: HashMap<SessionId, Option<io::Error>>,
    sent: Vec<(SessionId, SendBuffer, io::Result<()>)>,
    accepted: Vec<(ListenerId, OwnedFd)>,
    refused: Vec<(ListenerId, io::Error)>,
    woken: usize,
}

impl World {
    fn new(options: &Options) -> World {
        World {
            driver: Driver::new(options).unwrap(),
            received: HashMap::new(),
            ended: HashMap::new(),
            sent: Vec::new(),
            accepted: Vec::new(),
            refused: Vec::new(),
            woken: 0,
        }
    }

    fn turn(&mut self, timeout: Option<Duration>) {
        let World { driver, received, ended, sent, accepted, refused, woken } = self;
        let mut woken_now = 0;
        driver
            .turn(timeout, |completion| match completion {
                Completion::Received { id, bytes } => {
                    assert!(!bytes.is_empty() && !ended.contains_key(&id), "bytes, and before the end");
                    received.entry(id).or_default().extend_from_slice(bytes);
                }
                Completion::Ended { id, error } => assert!(ended.insert(id, error).is_none(), "once"),
                Completion::Sent { id, buffer, result } => sent.push((id, buffer, result)),
                Completion::Accepted { listener, fd } => accepted.push((listener, fd)),
                Completion::AcceptFailed { listener, error } => refused.push((listener, error)),
                Completion::Woken => woken_now += 1,
            })
            .unwrap();
        assert!(woken_now <= 1);
        *woken += woken_now;
    }

    /// Turns until `done`, or fails after a while.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut World) -> bool) {
        let patience = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < patience, "waited too long: {what}");
            self.turn(Some(Duration::from_millis(100)));
        }
    }

    fn attach(&mut self, stream: impl Into<OwnedFd>) -> SessionId {
        self.driver.attach(stream.into()).unwrap()
    }

    fn pair(&mut self) -> (SessionId, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (self.attach(ours), theirs)
    }

    fn stream(&mut self) -> (SessionId, UnixStream) {
        let (id, peer) = self.pair();
        self.driver.receive(id, ReceiveMode::Stream);
        (id, peer)
    }

    fn send(&mut self, id: SessionId, bytes: &[u8]) {
        self.driver.send(id, SendBuffer { bytes: bytes.to_vec(), frames: Vec::new() });
    }

    fn bytes(&self, id: SessionId) -> &[u8] {
        self.received.get(&id).map_or(&[], |bytes| bytes)
    }

    fn until_received(&mut self, id: SessionId, bytes: &[u8]) {
        self.until("bytes", |world| world.bytes(id).len() >= bytes.len());
        assert!(self.bytes(id) == bytes, "the same bytes in the same order");
    }
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

const NOW: Option<Duration> = Some(Duration::ZERO);

#[test]
fn what_comes_in_goes_out_again_however_it_is_sliced() {
    every_way(|options| {
        let mut world = World::new(options);
        let (id, mut peer) = world.stream();
        let sent = pattern(300_000, 1);
        let (mut rest, mut echoed, mut slice) = (&sent[..], 0, 1);
        peer.set_nonblocking(true).unwrap();
        let mut back = Vec::new();
        let mut scratch = [0; 65_536];
        world.until("the echo", |world| {
            let length = rest.len().min(slice % 9_973 + 1);
            if let Ok(written) = peer.write(&rest[..length]) {
                rest = &rest[written..];
                slice = slice * 3 % 1_000_003 + 7;
            }
            let idle = world.sent.pop().is_some_and(|(_, _, result)| result.is_ok()) || echoed == 0;
            let received = world.bytes(id);
            if idle && received.len() > echoed {
                let bytes = received[echoed..].to_vec();
                echoed = received.len();
                world.send(id, &bytes);
            } else if idle && echoed > 0 {
                world.sent.push((id, SendBuffer::default(), Ok(())));
            }
            while let Ok(length) = peer.read(&mut scratch) {
                back.extend_from_slice(&scratch[..length]);
            }
            back.len() == sent.len()
        });
        assert!(back == sent);
        drop(peer);
        world.until("the end", |world| world.ended.contains_key(&id));
    });
}

#[test]
fn big_frames_go_out_between_the_small_ones_and_the_buffer_comes_back() {
    every_way(|options| {
        let mut world = World::new(options);
        let (id, mut peer) = world.pair();
        let small = pattern(10_000, 2);
        let big = Bytes::from(pattern(1024 * 1024, 3));
        let frames: Vec<_> = [0, 100, 100, 5_000, 10_000].map(|offset| (offset, big.clone())).into();
        let mut frames = frames;
        frames.splice(1..1, (0..300).map(|index| (index / 3, big.slice(index..index + 5_000))));
        let mut expected = Vec::new();
        let mut start = 0;
        for (offset, frame) in &frames {
            expected.extend_from_slice(&small[start..*offset]);
            expected.extend_from_slice(frame);
            start = *offset;
        }
        expected.extend_from_slice(&small[start..]);
        world.driver.send(id, SendBuffer { bytes: small.clone(), frames: frames.clone() });
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; expected.len()];
            peer.read_exact(&mut bytes).unwrap();
            assert!(bytes == expected);
        });
        world.until("the buffer", |world| !world.sent.is_empty());
        let (sender, buffer, result) = world.sent.pop().unwrap();
        result.unwrap();
        assert!(sender == id && buffer.bytes == small && buffer.frames == frames);
        reader.join().unwrap();
    });
}

#[test]
fn a_slow_reader_gets_everything_in_pieces_and_nobody_else_waits() {
    every_way(|options| {
        let mut world = World::new(options);
        let (slow, mut slow_peer) = world.pair();
        let (quick, mut quick_peer) = world.stream();
        let sent = pattern(3_000_000, 4);
        world.send(slow, &sent);
        world.turn(NOW);
        quick_peer.write_all(b"still here").unwrap();
        world.until_received(quick, b"still here");
        assert!(world.sent.is_empty(), "three megabytes do not fit a socket");
        let mut read = Vec::new();
        let mut piece = vec![0; 50_000];
        while read.len() < sent.len() {
            let length = slow_peer.read(&mut piece).unwrap();
            read.extend_from_slice(&piece[..length]);
            world.turn(NOW);
        }
        assert!(read == sent);
        world.until("sent", |world| world.sent.len() == 1);
        world.sent.pop().unwrap().2.unwrap();
    });
}

#[test]
fn a_quiet_send_is_whole_whether_it_fits_or_not_and_is_told_with_the_next_thing() {
    every_way(|options| {
        let mut world = World::new(options);
        let (id, mut peer) = world.stream();
        for size in [1, 300, 3_000_000, 5] {
            let sent = pattern(size, 4);
            world.driver.send_quietly(id, SendBuffer { bytes: sent.clone(), frames: Vec::new() });
            world.turn(NOW);
            let mut read = vec![0; sent.len()];
            let reader = std::thread::spawn(move || {
                peer.read_exact(&mut read).unwrap();
                peer.write_all(b"!").unwrap();
                (peer, read)
            });
            // What the peer says ends the wait; by then the send has been told of, and not before it was whole.
            world.until_received(id, b"!");
            world.received.clear();
            let (back, read) = reader.join().unwrap();
            peer = back;
            assert!(read == sent, "{size} bytes");
            world.until("sent", |world| world.sent.len() == 1);
            world.sent.pop().unwrap().2.unwrap();
        }
        // One that is still under way when its connection closes leaves nothing behind.
        world.driver.send_quietly(id, SendBuffer { bytes: pattern(3_000_000, 1), frames: Vec::new() });
        world.turn(NOW);
        world.driver.close(id);
        world.until("closed", |world| world.driver.connections() == 0);
    });
}

#[test]
fn a_quiet_send_is_told_by_the_turn_that_a_bell_ends() {
    every_way(|options| {
        let mut world = World::new(options);
        let (id, _peer) = world.stream();
        world.turn(NOW);
        let waker = world.driver.waker();
        for _ in 0..3 {
            world.driver.send_quietly(id, SendBuffer { bytes: pattern(300, 4), frames: Vec::new() });
            waker.wake();
            let woken = world.woken;
            while world.woken == woken {
                world.turn(Some(Duration::from_secs(20)));
            }
            // What follows it on the connection must not wait for whatever ends the next turn.
            world.sent.pop().unwrap().2.unwrap();
        }
    });
}

#[test]
fn connections_are_accepted_on_unix_and_tcp_until_the_listener_pauses_or_closes() {
    every_way(|options| {
        let mut world = World::new(options);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let unix = world.driver.listen(UnixListener::bind(&path).unwrap().into());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let tcp = world.driver.listen(tcp.into());
        assert_ne!(unix, tcp);
        let mut peers: Vec<Box<dyn Write>> = Vec::new();
        for _ in 0..3 {
            peers.push(Box::new(UnixStream::connect(&path).unwrap()));
            peers.push(Box::new(TcpStream::connect(address).unwrap()));
        }
        world.until("six connections", |world| world.accepted.len() == 6);
        assert_eq!(world.accepted.iter().filter(|(listener, _)| *listener == unix).count(), 3);
        for (index, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&[index as u8; 100]).unwrap();
        }
        let accepted: Vec<_> = world.accepted.drain(..).collect();
        let ids: Vec<_> = accepted.into_iter().map(|(_, fd)| world.attach(fd)).collect();
        for &id in &ids {
            world.driver.receive(id, ReceiveMode::Stream);
        }
        world.until("their bytes", |world| ids.iter().all(|&id| world.bytes(id).len() == 100));

        world.driver.pause_accepting(unix, true);
        world.turn(NOW);
        let _waiting = UnixStream::connect(&path).unwrap();
        world.turn(NOW);
        world.turn(NOW);
        assert_eq!(world.accepted.len(), 0);
        world.driver.pause_accepting(unix, false);
        world.until("the one that waited", |world| world.accepted.len() == 1);

        world.driver.close_listener(unix);
        world.driver.close_listener(unix);
        world.driver.pause_accepting(unix, false);
        world.turn(NOW);
        world.turn(NOW);
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let next = world.driver.listen(TcpListener::bind("127.0.0.1:0").unwrap().into());
        assert_ne!(next, unix);
    });
}

#[test]
fn a_connection_moves_to_another_driver_without_losing_a_byte() {
    every_way(|options| {
        let (mut first, mut second) = (World::new(options), World::new(options));
        let (id, mut peer) = first.pair();
        let sent = pattern(100_000, 5);
        first.driver.receive(id, ReceiveMode::Once);
        first.turn(NOW);
        assert!(first.driver.detach(id).is_none(), "a receive is in flight");
        peer.write_all(&sent[..600]).unwrap();
        first.until("its HELLO", |world| !world.bytes(id).is_empty());
        first.driver.receive(id, ReceiveMode::Once);
        peer.write_all(&sent[600..50_000]).unwrap();
        first.until("more", |world| world.bytes(id).len() > 600);
        for _ in 0..3 {
            first.turn(NOW);
        }
        let mut bytes = first.bytes(id).to_vec();
        assert!(bytes.len() < 50_000 || first.driver.report().backend == "epoll" || options.receive == Receive::Single);
        let fd = first.driver.detach(id).unwrap();
        assert!(first.driver.detach(id).is_none());
        assert_eq!(first.driver.connections(), 0);
        let moved = second.attach(fd);
        second.driver.receive(moved, ReceiveMode::Stream);
        peer.write_all(&sent[50_000..]).unwrap();
        let rest = &sent[bytes.len()..];
        second.until("the rest", |world| world.bytes(moved).len() >= rest.len());
        bytes.extend_from_slice(second.bytes(moved));
        assert!(bytes == sent);
        second.send(moved, b"welcome");
        second.until("sent", |world| world.sent.len() == 1);
        let mut welcome = [0; 7];
        peer.read_exact(&mut welcome).unwrap();
        assert_eq!(&welcome, b"welcome");
    });
}

#[test]
fn nothing_is_said_of_a_closed_connection_even_when_its_place_is_taken_at_once() {
    every_way(|options| {
        let mut world = World::new(options);
        let mut peers = Vec::new();
        for round in 0..50 {
            let (id, mut peer) = world.stream();
            if round % 2 == 0 {
                world.turn(NOW);
            }
            peer.write_all(b"old").unwrap();
            world.send(id, &pattern(600_000, 6));
            if round % 3 == 0 {
                world.turn(NOW);
            }
            world.driver.close(id);
            world.driver.close(id);
            world.received.remove(&id);
            let (ended, sent) = (world.ended.len(), world.sent.len());
            let (next, mut next_peer) = world.stream();
            assert_ne!(next, id);
            next_peer.write_all(b"new").unwrap();
            world.until_received(next, b"new");
            assert!(world.bytes(id).is_empty(), "round {round}");
            assert_eq!((world.ended.len(), world.sent.len()), (ended, sent));
            // The descriptor is closed, so the peer sees what got through, then the end or a reset.
            let mut rest = Vec::new();
            let end = peer.read_to_end(&mut rest);
            assert!(end.is_ok() || end.unwrap_err().kind() == io::ErrorKind::ConnectionReset);
            peers.push(next_peer);
        }
        assert_eq!(world.driver.connections(), 50);
    });
}

#[test]
fn a_gentle_close_sends_what_it_has_and_waits_for_the_peer() {
    every_way(|options| {
        let mut world = World::new(options);
        let (id, mut peer) = world.stream();
        let last = pattern(1_000_000, 7);
        world.send(id, &last);
        world.driver.close_after_send(id);
        peer.write_all(b"ignored").unwrap();
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            peer.read_to_end(&mut bytes).unwrap();
            peer.write_all(b"ignored as well").unwrap();
            bytes
        });
        world.until("the end", |world| world.ended.contains_key(&id));
        assert!(reader.join().unwrap() == last);
        world.sent.pop().unwrap().2.unwrap();
        assert!(world.bytes(id).is_empty());
        world.until("its place", |world| world.driver.connections() == 0);

        let (stubborn, peer) = world.pair();
        world.driver.close_after_send(stubborn);
        for _ in 0..3 {
            world.turn(NOW);
        }
        assert!(!world.ended.contains_key(&stubborn));
        world.driver.close(stubborn);
        world.until("its place", |world| world.driver.connections() == 0);
        drop(peer);
    });
}

#[test]
fn while_receiving_is_off_nothing_comes_and_afterwards_everything_does_in_order() {
    every_way(|options| {
        let options = Options { pool_buffers: 4, pool_buffer_bytes: 32 * 1024, ..options.clone() };
        let mut world = World::new(&options);
        let mut streams: Vec<_> = (0..20).map(|_| world.stream()).collect();
        for (_, peer) in &mut streams {
            peer.write_all(b"first").unwrap();
        }
        let ids: Vec<_> = streams.iter().map(|(id, _)| *id).collect();
        world.until("the first", |world| ids.iter().all(|&id| world.bytes(id).len() == 5));
        world.driver.set_receiving(false);
        let sent: Vec<_> = (0..20).map(|index| pattern(20_000, index)).collect();
        for start in (0..20_000).step_by(500) {
            for ((_, peer), sent) in streams.iter_mut().zip(&sent) {
                peer.write_all(&sent[start..start + 500]).unwrap();
            }
            world.turn(NOW);
        }
        let closed = streams.pop().unwrap();
        world.driver.close(closed.0);
        streams[0].1.shutdown(Shutdown::Write).unwrap();
        for _ in 0..5 {
            world.turn(NOW);
        }
        assert!(ids.iter().all(|&id| world.bytes(id) == b"first"));
        assert!(world.driver.detach(ids[1]).is_none());
        world.driver.set_receiving(true);
        world.until("all of it", |world| streams.iter().all(|(id, _)| world.bytes(*id).len() == 20_005));
        for ((id, _), sent) in streams.iter().zip(&sent) {
            assert!(world.bytes(*id)[5..] == *sent);
        }
        world.until("the end", |world| world.ended.contains_key(&ids[0]));
        assert_eq!(world.bytes(closed.0), b"first");
        for (id, peer) in &mut streams[1..] {
            peer.write_all(b"last").unwrap();
            world.until("the last", |world| world.bytes(*id).ends_with(b"last"));
        }
    });
}

#[test]
fn more_bytes_at_once_than_the_pool_holds_all_arrive() {
    every_way(|options| {
        let options = Options { pool_buffers: 2, pool_buffer_bytes: 32 * 1024, queue_entries: 8, ..options.clone() };
        let mut world = World::new(&options);
        let mut streams: Vec<_> = (0..200).map(|_| world.stream()).collect();
        world.turn(NOW);
        let sent = pattern(30_000, 9);
        for (_, peer) in &mut streams {
            peer.write_all(&sent).unwrap();
        }
        world.until("everything", |world| streams.iter().all(|(id, _)| world.bytes(*id).len() == sent.len()));
        assert!(streams.iter().all(|(id, _)| world.bytes(*id) == sent));
        for (id, _) in &streams {
            world.send(*id, b"thank you");
        }
        world.until("answers", |world| world.sent.len() == streams.len());
        assert!(world.sent.iter().all(|(_, _, result)| result.is_ok()));
    });
}

#[test]
fn wakes_arrive_from_threads_and_from_drivers_of_either_kind() {
    every_way(|options| {
        let mut world = World::new(options);
        let waker = world.driver.waker();
        let thread = std::thread::spawn({
            let waker = waker.clone();
            move || {
                for _ in 0..1_000 {
                    waker.wake();
                }
            }
        });
        world.until("the thread", |world| world.woken > 0);
        thread.join().unwrap();
        world.turn(NOW);
        let woken = world.woken;
        world.turn(NOW);
        assert_eq!(world.woken, woken, "no wake is said twice");
        for (backend, receive) in WAYS {
            let Ok(mut other) = Driver::new(&Options { backend, receive, ..options.clone() }) else { continue };
            for round in 0..3 {
                let woken = world.woken;
                other.wake(&waker);
                other.wake(&waker);
                other.turn(NOW, |_| {}).unwrap();
                world.until("the driver", |world| world.woken > woken);
                world.driver.wake(&other.waker());
                world.turn(NOW);
                let mut answered = false;
                while !answered {
                    other.turn(None, |completion| answered |= matches!(completion, Completion::Woken)).unwrap();
                }
                assert!(round < 3);
            }
        }
        world.turn(NOW);
        let woken = world.woken;
        world.driver.wake(&waker);
        world.until("itself", |world| world.woken > woken);
    });
}

#[test]
fn a_wake_of_a_driver_that_is_gone_harms_nobody() {
    every_way(|options| {
        let mut world = World::new(options);
        let gone = Driver::new(options).unwrap().waker();
        gone.wake();
        world.driver.wake(&gone);
        world.turn(NOW);
        let gone = Driver::new(options).unwrap().waker();
        world.driver.wake(&gone);
        world.turn(NOW);
        let (id, mut peer) = world.stream();
        peer.write_all(b"fine").unwrap();
        world.until_received(id, b"fine");
    });
}

#[test]
fn a_turn_ends_at_its_timeout_and_an_instant_one_at_once() {
    every_way(|options| {
        let mut world = World::new(options);
        world.turn(NOW);
        let start = Instant::now();
        // A signal may end a turn early, and the kernel uses one to take down the rings of earlier drivers.
        let mut turns = 0;
        while start.elapsed() < Duration::from_millis(30) {
            world.turn(Some(Duration::from_millis(30)));
            turns += 1;
        }
        assert!(turns < 20, "{turns}");
        world.driver.waker().wake();
        world.turn(Some(Duration::MAX));
        assert_eq!(world.woken, 1);
    });
}

#[test]
fn a_thousand_connections_are_served_and_the_next_one_is_given_back() {
    every_way(|options| {
        let options = Options { connections_max: 1_000, ..options.clone() };
        let mut world = World::new(&options);
        let mut streams: Vec<_> = (0..1_000).map(|_| world.stream()).collect();
        assert!(world.driver.attach(UnixStream::pair().unwrap().0.into()).is_err());
        for round in 1..=5 {
            for (index, (_, peer)) in streams.iter_mut().enumerate() {
                peer.write_all(&pattern(128, index as u64)).unwrap();
            }
            world.until("a round", |world| streams.iter().all(|(id, _)| world.bytes(*id).len() == round * 128));
            for (id, _) in &streams {
                world.send(*id, &[round as u8; 64]);
            }
            world.until("its answers", |world| world.sent.len() == round * 1_000);
        }
        for (index, (id, peer)) in streams.iter_mut().enumerate() {
            assert!(world.bytes(*id)[512..] == pattern(128, index as u64));
            let mut answers = [0; 320];
            peer.read_exact(&mut answers).unwrap();
            assert_eq!(answers[319], 5);
        }
        let ids: Vec<_> = streams.drain(..).map(|(id, _)| id).collect();
        world.until("the ends", |world| ids.iter().all(|id| world.ended.contains_key(id)));
        ids.iter().for_each(|id| world.driver.close(*id));
        world.until("their places", |world| world.driver.connections() == 0);
    });
}

#[test]
fn connections_that_come_speak_and_go_disturb_nobody() {
    every_way(|options| {
        let options = Options { pool_buffers: 2, pool_buffer_bytes: 16 * 1024, ..options.clone() };
        let mut world = World::new(&options);
        let (steady, mut steady_peer) = world.stream();
        let sent = pattern(120_000, 11);
        for (round, part) in sent.chunks(300).enumerate() {
            let (id, mut peer) = world.pair();
            let mode = if round % 3 == 0 { ReceiveMode::Once } else { ReceiveMode::Stream };
            world.driver.receive(id, mode);
            peer.write_all(&part[..50]).unwrap();
            steady_peer.write_all(part).unwrap();
            if round % 2 == 0 {
                drop(peer);
            }
            world.until("both", |world| {
                world.bytes(id).len() == 50 && world.bytes(steady).len() == round * 300 + part.len()
            });
            assert_eq!(world.bytes(id), &part[..50]);
            world.driver.close(id);
        }
        assert!(world.bytes(steady) == sent);
    });
}

#[test]
fn a_reset_is_an_end_with_an_error_and_a_send_to_the_dead_says_so() {
    every_way(|options| {
        let mut world = World::new(options);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let id = world.attach(listener.accept().unwrap().0);
        world.driver.receive(id, ReceiveMode::Stream);
        world.turn(NOW);
        sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
        drop(peer);
        world.until("the reset", |world| world.ended.contains_key(&id));
        let error = world.ended[&id].as_ref().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        world.driver.receive(id, ReceiveMode::Stream);
        world.send(id, b"anybody?");
        world.until("the answer", |world| world.sent.len() == 1);
        assert_eq!(world.sent.pop().unwrap().2.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn a_listener_out_of_descriptors_says_so_and_waits_to_be_resumed() {
    // The limit is the process's, so this test has one of its own.
    const OURSELVES: &str = "URING_TEST_DESCRIPTORS";
    let name = "a_listener_out_of_descriptors_says_so_and_waits_to_be_resumed";
    if std::env::var_os(OURSELVES).is_none() {
        let program = std::env::current_exe().unwrap();
        let status = std::process::Command::new(program).args(["--exact", name]).env(OURSELVES, "1").status();
        return assert!(status.unwrap().success());
    }
    // Before anything is armed: the kernel reads the limit then.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let few = rustix::process::Rlimit { current: Some(64), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
    every_way(|options| {
        let mut world = World::new(options);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let id = world.driver.listen(listener.into());
        world.turn(NOW);
        let peer = TcpStream::connect(address).unwrap();
        world.until("the first", |world| world.accepted.len() == 1);
        let second = std::thread::spawn(move || TcpStream::connect(address).unwrap());
        let second = second.join().unwrap();
        world.until("the second", |world| world.accepted.len() == 2);
        let mut hoard = vec![std::fs::File::open("/dev/null").unwrap()];
        while let Ok(file) = hoard[0].try_clone() {
            hoard.push(file);
        }
        hoard.pop();
        let third = TcpStream::connect(address).unwrap();
        world.until("the refusal", |world| !world.refused.is_empty());
        let (listener, error) = world.refused.pop().unwrap();
        assert_eq!((listener, error.raw_os_error()), (id, Some(rustix::io::Errno::MFILE.raw_os_error())));
        world.turn(NOW);
        world.turn(NOW);
        assert!(world.refused.is_empty(), "said once, not in a loop");
        drop(hoard);
        world.driver.pause_accepting(id, false);
        world.until("the third", |world| world.accepted.len() == 3);
        drop((peer, second, third));
    });
}

#[test]
fn where_io_uring_is_forbidden_epoll_takes_over_and_says_so() {
    for errno in [rustix::io::Errno::PERM, rustix::io::Errno::NOSYS] {
        // The filter holds for this thread alone, and ends with it.
        let thread = std::thread::spawn(move || {
            forbid_io_uring(errno);
            let mut world = World::new(&Options::default());
            let report = world.driver.report().clone();
            assert_eq!((report.backend, report.receive), ("epoll", "readiness"));
            let why = report.fallback.unwrap();
            assert!(why.contains("io_uring") && why.contains(&io::Error::from(errno).to_string()), "{why}");
            let (id, mut peer) = world.stream();
            peer.write_all(b"served all the same").unwrap();
            world.until_received(id, b"served all the same");
            let uring = Options { backend: Backend::Uring, ..Options::default() };
            assert!(Driver::new(&uring).err().unwrap().to_string().contains("io_uring"));
        });
        thread.join().unwrap();
    }
}

fn forbid_io_uring(errno: rustix::io::Errno) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    const IO_URING_SETUP: i64 = 425;
    let filter = SeccompFilter::new(
        [(IO_URING_SETUP, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.raw_os_error() as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn the_best_way_this_kernel_has_is_taken_without_excuses() {
    let driver = Driver::new(&Options::default()).unwrap();
    let report = driver.report();
    eprintln!("{report:?}");
    assert_eq!(report.fallback.is_none(), report.receive == "incremental");
}

#[test]
fn a_driver_dropped_in_full_flight_lets_go_of_every_socket() {
    every_way(|options| {
        let mut world = World::new(options);
        let mut streams: Vec<_> = (0..50).map(|_| world.stream()).collect();
        for (id, _) in &streams {
            world.send(*id, &pattern(1_000_000, 10));
        }
        world.turn(NOW);
        let start = Instant::now();
        drop(world);
        assert!(start.elapsed() < Duration::from_secs(4), "nothing had to be leaked");
        for (_, peer) in &mut streams {
            let mut rest = Vec::new();
            peer.read_to_end(&mut rest).unwrap();
        }
    });
}

#[test]
fn a_paused_connection_keeps_its_bytes_in_order_and_pins_nothing() {
    every_way(|options| {
        let mut world = World::new(options);
        let (id, mut peer) = world.stream();
        let (other, mut other_peer) = world.stream();
        peer.write_all(b"before ").unwrap();
        world.until_received(id, b"before ");
        let sent = pattern(20_000_000, 9);
        let writer = std::thread::spawn({
            let sent = sent.clone();
            move || {
                peer.write_all(&sent).unwrap();
                peer
            }
        });
        // However often it is paused and resumed, and whatever was in flight when it was.
        for round in 0..200 {
            world.driver.pause_receiving(id, round % 3 != 2);
            world.turn(if round % 2 == 0 { NOW } else { Some(Duration::from_millis(1)) });
        }
        world.driver.pause_receiving(id, true);
        for _ in 0..5 {
            world.turn(Some(Duration::from_millis(2)));
        }
        let length = world.bytes(id).len();
        assert!(length < sent.len(), "its peer has to wait");
        // More than the pool holds goes through for the others meanwhile.
        let loud = pattern(16_000_000, 10);
        let other_writer = std::thread::spawn({
            let loud = loud.clone();
            move || {
                other_peer.write_all(&loud).unwrap();
                other_peer
            }
        });
        world.until_received(other, &loud);
        other_writer.join().unwrap();
        assert_eq!(world.bytes(id).len(), length, "nothing more came of the paused one");
        world.driver.pause_receiving(id, false);
        let mut expected = b"before ".to_vec();
        expected.extend_from_slice(&sent);
        world.until_received(id, &expected);
        drop(writer.join().unwrap());
        world.until("its end", |world| world.ended.contains_key(&id));
    });
}

#[test]
fn a_peer_that_closes_while_it_is_paused_is_heard_out_first() {
    every_way(|options| {
        let mut world = World::new(options);
        let ids: Vec<_> = (0..100)
            .map(|index| {
                let (id, mut peer) = world.stream();
                if index % 2 == 0 {
                    world.turn(NOW);
                }
                world.driver.pause_receiving(id, true);
                if index % 3 == 0 {
                    world.turn(NOW);
                }
                peer.write_all(&pattern(3_000, index)).unwrap();
                (id, index)
            })
            .collect();
        for _ in 0..5 {
            world.turn(Some(Duration::from_millis(1)));
        }
        for &(id, _) in &ids {
            world.driver.pause_receiving(id, false);
        }
        world.until("all ends", |world| ids.iter().all(|(id, _)| world.ended.contains_key(id)));
        for &(id, index) in &ids {
            assert!(world.bytes(id) == pattern(3_000, index), "{index}");
        }
        // One that is closed, either way, while it is paused leaves nothing behind.
        for gently in [false, true] {
            let (id, peer) = world.stream();
            world.turn(NOW);
            world.driver.pause_receiving(id, true);
            drop(peer);
            if gently { world.driver.close_after_send(id) } else { world.driver.close(id) }
        }
        for (id, _) in ids {
            world.driver.close(id);
        }
        world.until("closed", |world| world.driver.connections() == 0);
    });
}
