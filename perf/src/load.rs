//! The load generator: one thread, one epoll, the same few lines for each protocol, so that servers differ and it does not.
//!
//! It plays every agent of a run itself, so that one clock stamps and reads each message. Closed loops keep a window of
//! messages in flight; the open loop stamps each message with the moment it was due, so that a slow server cannot hide
//! its queue. Sends follow each read at once; nothing is verified that the protocol does not verify.
#![forbid(unsafe_code)]

mod guests;
mod homes;
mod stopped;

use crate::access::Access;
use crate::measure;
use crate::outcome::Outcome;
use crate::talk::{Dialect, Heard, Part, Target};
use agent_relay::tls::ClientLink;
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    /// Two agents, one message that goes back and forth.
    PingPong,
    /// `pairs` senders, each with its own receiver, `window` messages in flight.
    Pairs,
    /// `pairs` senders at `rate` messages per second together, whatever the server does.
    Open,
    /// One sender to `pairs` listeners of a topic, `window` messages in flight.
    Fanout,
    /// `pairs` agents that connect and then do nothing.
    Connect,
    /// As `Pairs`, both ends on the same shard of a relay with two.
    SameShard,
    /// As `Pairs`, the ends on different shards.
    CrossShard,
    /// As `Pairs`, first alone, then with `rate` others per second that connect, are welcomed and leave.
    Hello,
    /// As `Pairs` without the last one, first alone, then with that one's sender at `rate` messages per second to a
    /// receiver that has stopped reading.
    Stopped,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is measured.
    pub workload: Workload,
    /// A path, or `host:port`.
    pub address: String,
    /// The server, for its CPU time and memory; 0: this process.
    pub pid: u32,
    /// Bytes of each message's text.
    pub body_bytes: usize,
    /// Messages in flight, per pair.
    pub window: u32,
    /// Pairs, listeners or agents.
    pub pairs: u32,
    /// Messages per second, all pairs together (`Open`).
    pub rate: u64,
    /// How long is measured.
    pub measured: Duration,
    /// How many messages must have come before the measurement may end; 0: only the time counts.
    pub messages_min: u64,
    /// How long the load runs before that.
    pub warm_up: Duration,
    /// Whether a message counts when its sender hears that it is on disk, instead of when it arrives.
    pub durable: bool,
    /// The number, and so the name, of the first agent; not for workloads that place agents.
    pub first_agent: u32,
    /// How agents are let in.
    pub access: Access,
}

/// The number of the first agent that only comes and goes (`Hello`), and how many names they have.
const FIRST_GUEST: u32 = 100_000;
const GUEST_NAMES: u32 = 20_000;
/// Bytes taken per read.
const READ_BYTES: usize = 256 * 1024;
/// Agents that have said HELLO and heard nothing yet.
const GREETING_MAX: u32 = 128;
/// Unsent bytes at which the open loop gives up: the server is saturated.
const BACKLOG_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often waiting acknowledgements are looked at; well under their 10 ms.
const SETTLE_NS: u64 = 2_000_000;
/// A server that says nothing for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(20);

struct Peer<D> {
    socket: OwnedFd,
    dialect: D,
    ready: bool,
    /// Whose messages arrive here: that agent may send again.
    sender: u32,
    /// The start of a frame whose end has not arrived.
    carry: Vec<u8>,
    /// Where TLS is spoken: its state, and the records of `out` that have not left.
    secure: Option<ClientLink>,
    sealed: Vec<u8>,
    out: Vec<u8>,
    written: usize,
    awaits_room: bool,
    /// When it began to connect.
    since: u64,
}

impl<D> Peer<D> {
    /// Bytes that wait to leave.
    fn backlog(&self) -> usize {
        self.out.len() + self.sealed.len()
    }
}

struct Load<D> {
    plan: Plan,
    epoch: Instant,
    poll: OwnedFd,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
    plain: Vec<u8>,
    peers: Vec<Peer<D>>,
    /// Where guests begin among the peers, the places of those that have left, how many came, and how long it took.
    first_guest: usize,
    free: Vec<u32>,
    guests: u32,
    accepts: Histogram<u64>,
    heard: Heard,
    latencies: Histogram<u64>,
    received: u64,
    ready: u32,
    backlog_bytes: usize,
    settle_at: u64,
}

/// Runs `plan` with agents that speak `D`.
pub fn run<D: Dialect>(plan: Plan) -> Result<Outcome, String> {
    let mut load = Load::<D>::new(plan).map_err(|error| error.to_string())?;
    load.run()
}

impl<D: Dialect> Load<D> {
    fn new(plan: Plan) -> io::Result<Load<D>> {
        Ok(Load {
            epoch: Instant::now(),
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(1024),
            buffer: vec![0; READ_BYTES],
            plain: Vec::new(),
            peers: Vec::new(),
            first_guest: usize::MAX,
            free: Vec::new(),
            guests: 0,
            accepts: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds"),
            heard: Heard::default(),
            latencies: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds"),
            received: 0,
            ready: 0,
            backlog_bytes: 0,
            settle_at: 0,
            plan,
        })
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn run(&mut self) -> Result<Outcome, String> {
        match self.plan.workload {
            Workload::Connect => self.connect_only(),
            Workload::SameShard | Workload::CrossShard => {
                self.place()?;
                self.closed_loop()
            }
            _ => {
                self.join()?;
                match self.plan.workload {
                    Workload::Open => self.open_loop(),
                    Workload::Hello => self.hello_beside_load(),
                    Workload::Stopped => self.beside_stopped_reader(),
                    _ => self.closed_loop(),
                }
            }
        }
    }

    /// Who takes part: senders have even numbers, their receivers the odd ones after them.
    fn part(&self, number: u32) -> Part {
        let (target, listens) = match self.plan.workload {
            Workload::PingPong => (Target::Agent(number ^ 1), false),
            Workload::Fanout if number == 0 => (Target::Topic, false),
            Workload::Fanout => (Target::Nobody, true),
            Workload::Connect => (Target::Nobody, false),
            _ if number >= FIRST_GUEST => (Target::Nobody, false),
            // To itself, until it is known where it lives.
            Workload::SameShard | Workload::CrossShard => (Target::Agent(number), false),
            _ if number.is_multiple_of(2) => (Target::Agent(number + 1), false),
            _ => (Target::Nobody, false),
        };
        let first = self.plan.first_agent;
        let target = if let Target::Agent(to) = target { Target::Agent(to + first) } else { target };
        let key = self.plan.access.key(number);
        let (body_bytes, durable) = (self.plan.body_bytes, self.plan.durable);
        Part { number: number + first, target, listens, body_bytes, durable, key }
    }

    fn join(&mut self) -> Result<(), String> {
        let agents = match self.plan.workload {
            Workload::PingPong => 2,
            Workload::Fanout => self.plan.pairs + 1,
            Workload::Connect => self.plan.pairs,
            // Twice as many as needed, less a few: homes are a hash, and both shards must have enough.
            Workload::SameShard | Workload::CrossShard => 3 * self.plan.pairs,
            _ => 2 * self.plan.pairs,
        };
        for number in 0..agents {
            self.connect(number)?;
            while number + 1 - self.ready >= GREETING_MAX {
                self.hear_something("an answer to HELLO")?;
            }
        }
        while self.ready < agents {
            self.hear_something("an answer to HELLO")?;
        }
        Ok(())
    }

    fn connect(&mut self, number: u32) -> Result<(), String> {
        let mut peer = self.dial(self.part(number))?;
        peer.sender = match self.plan.workload {
            Workload::Fanout => 0,
            _ if self.plan.durable => number,
            _ => number ^ 1,
        };
        self.ready += u32::from(peer.ready);
        self.take_in(peer, number)
    }

    /// A connection on which its agent has introduced itself, as far as it can.
    fn dial(&self, part: Part) -> Result<Peer<D>, String> {
        let since = self.now();
        let socket = open(&self.plan.address, self.pid()).map_err(|error| format!("{}: {error}", self.plan.address))?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| error.to_string())?;
        let (mut out, mut sealed) = (Vec::new(), Vec::new());
        let mut secure = self.plan.access.link()?;
        if let Some(link) = &mut secure {
            link.feed(&[], &mut Vec::new(), &mut sealed).map_err(|error| error.to_string())?;
        }
        let mut dialect = D::new(part);
        let ready = !dialect.introduce(&mut out);
        let (carry, written, awaits_room) = (Vec::new(), 0, false);
        Ok(Peer { socket, dialect, ready, sender: u32::MAX, carry, secure, sealed, out, written, awaits_room, since })
    }

    /// Gives it this place among the peers, and lets it speak.
    fn take_in(&mut self, peer: Peer<D>, place: u32) -> Result<(), String> {
        let data = epoll::EventData::new_u64(u64::from(place));
        epoll::add(&self.poll, &peer.socket, data, epoll::EventFlags::IN).map_err(|error| error.to_string())?;
        self.backlog_bytes += peer.backlog();
        match self.peers.get_mut(place as usize) {
            Some(old) => *old = peer,
            None => self.peers.push(peer),
        }
        self.flush(place)
    }

    fn hear_something(&mut self, what: &str) -> Result<(), String> {
        let (ready, received) = (self.ready, self.received);
        let start = Instant::now();
        while (self.ready, self.received) == (ready, received) {
            if start.elapsed() > SILENCE_MAX {
                return Err(format!("{what} did not come within {SILENCE_MAX:?}"));
            }
            self.turn(Some(SETTLE_NS), false)?;
        }
        Ok(())
    }

    fn connect_only(&mut self) -> Result<Outcome, String> {
        let probe = open(&self.plan.address, self.pid()).map_err(|error| format!("{}: {error}", self.plan.address))?;
        drop(probe);
        thread::sleep(Duration::from_millis(200));
        let (memory, cpu, start) = (measure::resident_bytes(self.pid()), measure::cpu(self.pid()), Instant::now());
        self.join()?;
        let (elapsed, cpu) = (start.elapsed(), measure::cpu(self.pid()) - cpu);
        let agents = f64::from(self.plan.pairs);
        let mut outcome = Outcome { messages: u64::from(self.plan.pairs), ..Outcome::default() };
        outcome.per_second = agents / elapsed.as_secs_f64();
        outcome.cpu_us_per_message = cpu as f64 / 1000.0 / agents;
        // Let what the burst left behind settle before idleness is measured.
        self.idle(Duration::from_millis(500))?;
        outcome.bytes_per_agent = measure::resident_bytes(self.pid()).saturating_sub(memory) as f64 / agents;
        let (cpu, start) = (measure::cpu(self.pid()), Instant::now());
        self.idle(self.plan.measured)?;
        outcome.seconds = start.elapsed().as_secs_f64();
        outcome.idle_cpu_percent = (measure::cpu(self.pid()) - cpu) as f64 / start.elapsed().as_nanos() as f64 * 100.0;
        outcome.resident_bytes = measure::resident_bytes(self.pid());
        Ok(outcome)
    }

    /// Only answers heartbeats.
    fn idle(&mut self, long: Duration) -> Result<(), String> {
        let end = Instant::now() + long;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.turn(Some(left.as_nanos() as u64), false)?;
        }
        Ok(())
    }

    fn closed_loop(&mut self) -> Result<Outcome, String> {
        self.set_going()?;
        let start = self.begin();
        self.turns_until(start.at + self.plan.measured, start.received + self.plan.messages_min)?;
        Ok(self.end(&start))
    }

    /// Senders speak, and the load runs until it is warm.
    fn set_going(&mut self) -> Result<(), String> {
        // A fan-out's window counts messages; everything else's, messages per pair.
        let window = if self.plan.workload == Workload::PingPong { 1 } else { self.plan.window };
        let senders: Vec<u32> = match self.plan.workload {
            Workload::PingPong | Workload::Fanout => vec![0],
            Workload::Stopped => (0..2 * (self.plan.pairs - 1)).step_by(2).collect(),
            _ => (0..2 * self.plan.pairs).step_by(2).collect(),
        };
        for sender in senders {
            let now = self.now();
            self.speak(sender, now, window)?;
        }
        self.turns_until(Instant::now() + self.plan.warm_up, 0)
    }

    fn turns_until(&mut self, end: Instant, received_min: u64) -> Result<(), String> {
        let (mut quiet_since, mut received) = (Instant::now(), self.received);
        loop {
            // The clock is asked once in a few turns: a turn may be one message.
            for _ in 0..8 {
                self.turn(Some(SETTLE_NS * 5), true)?;
            }
            let now = Instant::now();
            if now >= end && self.received >= received_min {
                return Ok(());
            }
            if received != self.received {
                (quiet_since, received) = (now, self.received);
            } else if now - quiet_since > SILENCE_MAX {
                return Err(format!("no message arrived for {SILENCE_MAX:?}"));
            }
        }
    }

    fn open_loop(&mut self) -> Result<Outcome, String> {
        let gap = 1e9 / self.plan.rate as f64;
        let base = self.now();
        let mut sent = 0u64;
        let mut pace = |load: &mut Load<D>, until: u64, received_min: u64| -> Result<(), String> {
            loop {
                let now = load.now();
                if now >= until && load.received >= received_min {
                    return Ok(());
                }
                let mut due = base + (sent as f64 * gap) as u64;
                while due <= now {
                    let sender = 2 * (sent % u64::from(load.plan.pairs)) as u32;
                    load.speak(sender, due, 1)?;
                    sent += 1;
                    due = base + (sent as f64 * gap) as u64;
                }
                if load.backlog_bytes > BACKLOG_BYTES_MAX {
                    return Err("saturated: the server does not keep up with the rate".to_owned());
                }
                // Spins: the generator has a core of its own, and a sleep here would be in every latency.
                load.turn(Some(0), true)?;
            }
        };
        pace(self, base + self.plan.warm_up.as_nanos() as u64, 0)?;
        let start = self.begin();
        let received_min = start.received + self.plan.messages_min;
        pace(self, base + (self.plan.warm_up + self.plan.measured).as_nanos() as u64, received_min)?;
        Ok(self.end(&start))
    }

    fn pid(&self) -> u32 {
        if self.plan.pid == 0 { std::process::id() } else { self.plan.pid }
    }

    fn begin(&mut self) -> Start {
        self.latencies.reset();
        Start { at: Instant::now(), received: self.received, cpu: measure::cpu_by_thread(self.pid()) }
    }

    fn end(&mut self, start: &Start) -> Outcome {
        let by_thread = measure::cpu_by_thread(self.pid());
        let elapsed = start.at.elapsed();
        let messages = self.received - start.received;
        let mut cpu = 0;
        let mut cpu_us_by_thread = BTreeMap::<String, f64>::new();
        for (thread, after) in by_thread {
            let grown = after - start.cpu.get(&thread).copied().unwrap_or(0);
            cpu += grown;
            if grown > 0 {
                let name = measure::thread_name(self.pid(), thread);
                *cpu_us_by_thread.entry(name).or_default() += grown as f64 / 1000.0 / messages.max(1) as f64;
            }
        }
        let us = |quantile: f64| self.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Outcome {
            messages,
            seconds: elapsed.as_secs_f64(),
            per_second: messages as f64 / elapsed.as_secs_f64(),
            cpu_us_per_message: cpu as f64 / 1000.0 / messages.max(1) as f64,
            cpu_percent: cpu as f64 / elapsed.as_nanos() as f64 * 100.0,
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: self.latencies.max() as f64 / 1000.0,
            resident_bytes: measure::resident_bytes(self.pid()),
            cpu_us_by_thread,
            ..Outcome::default()
        }
    }

    /// Waits for the sockets (nanoseconds), reads what has come, answers.
    fn turn(&mut self, wait: Option<u64>, counts: bool) -> Result<(), String> {
        let wait = if D::ACKNOWLEDGES { wait.map(|wait| wait.min(SETTLE_NS)) } else { wait };
        let timeout =
            wait.map(|ns| Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 });
        self.events.clear();
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
        for index in 0..self.events.len() {
            let epoll::Event { flags, data } = self.events[index];
            let number = data.u64() as u32;
            if flags.contains(epoll::EventFlags::OUT) {
                self.flush(number)?;
            }
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                self.read(number, counts)?;
            }
        }
        if D::ACKNOWLEDGES && self.now() >= self.settle_at {
            let now = self.now();
            self.settle_at = now + SETTLE_NS;
            for number in 0..self.peers.len() as u32 {
                self.settle(number, now)?;
            }
        }
        Ok(())
    }

    fn settle(&mut self, number: u32, now: u64) -> Result<(), String> {
        let peer = &mut self.peers[number as usize];
        if !peer.ready {
            return Ok(());
        }
        let before = peer.out.len();
        peer.dialect.settle(now, &mut peer.out);
        self.backlog_bytes += peer.out.len() - before;
        if peer.out.len() > before { self.flush(number) } else { Ok(()) }
    }

    fn read(&mut self, number: u32, counts: bool) -> Result<(), String> {
        let peer = &mut self.peers[number as usize];
        let is_guest = number as usize >= self.first_guest;
        let count = match recv(&peer.socket, &mut self.buffer[..], RecvFlags::empty()) {
            // It was welcomed, and has left.
            Ok((0, _)) | Err(Errno::CONNRESET) if is_guest && peer.ready => return self.left(number),
            Ok((0, _)) => return Err(format!("the server closed the connection of agent {number}")),
            Ok((count, _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(format!("agent {number}: {error}")),
        };
        if is_guest && peer.ready {
            return Ok(());
        }
        let before = peer.backlog();
        let bytes = match &mut peer.secure {
            Some(link) => {
                self.plain.clear();
                let fed = link.feed(&self.buffer[..count], &mut self.plain, &mut peer.sealed);
                fed.map_err(|error| format!("agent {number}: {error}"))?;
                &self.plain[..]
            }
            None => &self.buffer[..count],
        };
        self.heard.stamps.clear();
        self.heard.ready = false;
        if peer.carry.is_empty() {
            let used = peer.dialect.hear(bytes, &mut peer.out, &mut self.heard)?;
            peer.carry.extend_from_slice(&bytes[used..]);
        } else {
            peer.carry.extend_from_slice(bytes);
            let used = peer.dialect.hear(&peer.carry, &mut peer.out, &mut self.heard)?;
            peer.carry.drain(..used);
        }
        if self.heard.ready && !peer.ready {
            peer.ready = true;
            self.ready += 1;
            if is_guest {
                peer.dialect.farewell(&mut peer.out);
                let took = self.epoch.elapsed().as_nanos() as u64 - peer.since;
                self.accepts.saturating_record(took);
            }
        }
        let grown = peer.backlog() - before;
        self.backlog_bytes += grown;
        if !self.heard.stamps.is_empty() {
            self.messages_arrived(number, counts)?;
        }
        if D::ACKNOWLEDGES {
            // A few messages of the window may have come together with the last ones: acknowledge at the stride.
            let now = self.now();
            self.settle(number, now)?;
        }
        self.flush(number)
    }

    fn messages_arrived(&mut self, number: u32, counts: bool) -> Result<(), String> {
        let now = self.now();
        let stamps = std::mem::take(&mut self.heard.stamps);
        let arrived = stamps.len() as u64;
        self.received += arrived;
        if counts {
            match self.plan.workload {
                // The round trip is read where it started.
                Workload::PingPong if number == 1 => {}
                // A fan-out has arrived when its last copy has.
                Workload::Fanout if self.last_copies(arrived) == 0 => {}
                _ => {
                    for stamp in &stamps {
                        self.latencies.saturating_record(now.saturating_sub(*stamp));
                    }
                }
            }
            match self.plan.workload {
                Workload::PingPong => {
                    let stamp = if number == 1 { stamps[0] } else { now };
                    self.speak(number, stamp, 1)?;
                }
                Workload::Fanout => {
                    let copies = self.last_copies(arrived);
                    if copies > 0 {
                        self.speak(0, now, copies)?;
                    }
                }
                Workload::Open | Workload::Connect => {}
                Workload::Pairs | Workload::SameShard | Workload::CrossShard | Workload::Hello | Workload::Stopped => {
                    let sender = self.peers[number as usize].sender;
                    self.speak(sender, now, arrived as u32)?;
                }
            }
        }
        self.heard.stamps = stamps;
        Ok(())
    }

    /// How many messages of a fan-out are now everywhere that were not before the last `arrived` copies.
    fn last_copies(&self, arrived: u64) -> u32 {
        let listeners = u64::from(self.plan.pairs);
        (self.received / listeners - (self.received - arrived) / listeners) as u32
    }

    fn speak(&mut self, number: u32, stamp: u64, count: u32) -> Result<(), String> {
        let peer = &mut self.peers[number as usize];
        let before = peer.out.len();
        for _ in 0..count {
            peer.dialect.speak(stamp, &mut peer.out);
        }
        self.backlog_bytes += peer.out.len() - before;
        self.flush(number)
    }

    fn flush(&mut self, number: u32) -> Result<(), String> {
        let peer = &mut self.peers[number as usize];
        if let Some(link) = &mut peer.secure
            && link.is_ready()
            && !peer.out.is_empty()
        {
            let before = peer.sealed.len();
            link.seal(&peer.out, &mut peer.sealed).map_err(|error| format!("agent {number}: {error}"))?;
            self.backlog_bytes += peer.sealed.len() - before;
            self.backlog_bytes -= peer.out.len();
            peer.out.clear();
        }
        let waiting = if peer.secure.is_some() { &mut peer.sealed } else { &mut peer.out };
        let mut full = false;
        while peer.written < waiting.len() && !full {
            match send(&peer.socket, &waiting[peer.written..], SendFlags::NOSIGNAL) {
                Ok(count) => {
                    peer.written += count;
                    self.backlog_bytes -= count;
                }
                Err(Errno::AGAIN) => full = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(format!("agent {number}: {error}")),
            }
        }
        if !full {
            waiting.clear();
            peer.written = 0;
        }
        if full != peer.awaits_room {
            peer.awaits_room = full;
            let flags = if full { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
            epoll::modify(&self.poll, &peer.socket, epoll::EventData::new_u64(u64::from(number)), flags)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

struct Start {
    at: Instant,
    received: u64,
    cpu: BTreeMap<u32, u64>,
}

/// Connects to a path or `host:port`; a server that is still starting gets some time.
pub fn open(address: &str, pid: u32) -> io::Result<OwnedFd> {
    let start = Instant::now();
    loop {
        let socket = if address.contains('/') {
            UnixStream::connect(address).map(OwnedFd::from)
        } else {
            TcpStream::connect(address).and_then(|stream| stream.set_nodelay(true).map(|()| OwnedFd::from(stream)))
        };
        match socket {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
                    && start.elapsed() < Duration::from_secs(15)
                    && measure::is_alive(pid) =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}
