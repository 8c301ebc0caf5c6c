//! TLS handshakes, one after the other on a few connections: how many a server completes, and what each costs it. A
//! handshake is over when the server's ticket has come: then it has read the client's last word.
#![forbid(unsafe_code)]

use crate::access;
use crate::load::open;
use crate::measure;
use crate::outcome::Outcome;
use agent_relay::tls::{ClientLink, Connector};
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// Connections that shake hands at once.
const AT_ONCE: usize = 16;
/// What is not measured at first.
const WARM_UP: Duration = Duration::from_millis(300);
/// A server that completes nothing for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What is to be measured.
pub struct Handshakes<'a> {
    /// Host and port.
    pub address: &'a str,
    /// The server.
    pub pid: u32,
    /// The authority of its certificate, which is for every name below `relay.test`.
    pub ca: &'a Path,
    /// Whether sessions are resumed.
    pub resume: bool,
    /// Whether the server speaks first, and in clear (NATS).
    pub greets: bool,
    /// How long.
    pub measured: Duration,
}

struct Slot {
    socket: OwnedFd,
    link: ClientLink,
    greeted: bool,
    begun: Instant,
}

struct Run<'a> {
    asked: &'a Handshakes<'a>,
    connector: Connector,
    poll: OwnedFd,
    slots: Vec<Slot>,
    names: u64,
    done: u64,
    resumed: u64,
    took: Histogram<u64>,
    buffer: Vec<u8>,
    sealed: Vec<u8>,
    plain: Vec<u8>,
}

/// Measures.
pub fn run(asked: &Handshakes<'_>) -> Result<Outcome, String> {
    let mut run = Run {
        asked,
        connector: access::connector(asked.ca)?,
        poll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| error.to_string())?,
        slots: Vec::new(),
        names: 0,
        done: 0,
        resumed: 0,
        took: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds"),
        buffer: vec![0; 64 * 1024],
        sealed: Vec::new(),
        plain: Vec::new(),
    };
    for place in 0..AT_ONCE {
        let slot = run.connect(place)?;
        run.slots.push(slot);
    }
    run.turns(WARM_UP)?;
    run.took.reset();
    let (done, resumed, cpu, start) = (run.done, run.resumed, measure::cpu(asked.pid), Instant::now());
    run.turns(asked.measured)?;
    let (cpu, elapsed) = (measure::cpu(asked.pid) - cpu, start.elapsed());
    let accepts = run.done - done;
    Ok(Outcome {
        messages: accepts,
        accepts,
        seconds: elapsed.as_secs_f64(),
        per_second: accepts as f64 / elapsed.as_secs_f64(),
        cpu_us_per_message: cpu as f64 / 1000.0 / accepts.max(1) as f64,
        cpu_percent: cpu as f64 / elapsed.as_nanos() as f64 * 100.0,
        accept_p50_us: run.took.value_at_quantile(0.5) as f64 / 1000.0,
        accept_p99_us: run.took.value_at_quantile(0.99) as f64 / 1000.0,
        resumed: (run.resumed - resumed) as f64 / accepts.max(1) as f64,
        ..Outcome::default()
    })
}

impl Run<'_> {
    fn connect(&mut self, place: usize) -> Result<Slot, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.asked.address);
        let begun = Instant::now();
        let socket = open(self.asked.address, self.asked.pid).map_err(|error| failed(&error))?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| failed(&error))?;
        // Sessions are remembered by name: a new name has none to resume.
        let name =
            if self.asked.resume { "again.relay.test".to_owned() } else { format!("n{}.relay.test", self.names) };
        let link = self.connector.link(&name).map_err(|error| failed(&error))?;
        let data = epoll::EventData::new_u64(place as u64);
        epoll::add(&self.poll, &socket, data, epoll::EventFlags::IN).map_err(|error| failed(&error))?;
        self.names += 1;
        let mut slot = Slot { socket, link, greeted: !self.asked.greets, begun };
        if slot.greeted {
            self.feed(&mut slot, &[])?;
        }
        Ok(slot)
    }

    fn feed(&mut self, slot: &mut Slot, bytes: &[u8]) -> Result<(), String> {
        (self.sealed.clear(), self.plain.clear());
        slot.link.feed(bytes, &mut self.plain, &mut self.sealed).map_err(|error| error.to_string())?;
        if !self.sealed.is_empty() {
            // A flight of a handshake fits the buffer of a new connection.
            let sent = send(&slot.socket, &self.sealed, SendFlags::NOSIGNAL).map_err(|error| error.to_string())?;
            if sent < self.sealed.len() {
                return Err("a new connection took less than a flight".to_owned());
            }
        }
        Ok(())
    }

    fn turns(&mut self, long: Duration) -> Result<(), String> {
        let end = Instant::now() + long;
        let (mut done, mut since) = (self.done, Instant::now());
        let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        let mut events = Vec::with_capacity(AT_ONCE);
        while Instant::now() < end {
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.to_string()),
            }
            for event in &events {
                let event: &epoll::Event = event;
                self.read({ event.data }.u64() as usize)?;
            }
            if self.done != done {
                (done, since) = (self.done, Instant::now());
            } else if since.elapsed() > SILENCE_MAX {
                return Err(format!("no handshake was completed for {SILENCE_MAX:?}"));
            }
        }
        Ok(())
    }

    fn read(&mut self, place: usize) -> Result<(), String> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let count = match recv(&self.slots[place].socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => return Err("the server closed a connection during its handshake".to_owned()),
            Ok((count, _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err(error.to_string()),
        };
        let outcome = if count == 0 { Ok(()) } else { self.heard(place, &buffer[..count]) };
        self.buffer = buffer;
        outcome
    }

    fn heard(&mut self, place: usize, bytes: &[u8]) -> Result<(), String> {
        // Out of its place while it is worked on; the next one takes it over or it comes back.
        let mut slot = self.slots.swap_remove(place);
        let was_ready = slot.link.is_ready();
        if !slot.greeted {
            slot.greeted = bytes.ends_with(b"\r\n");
            if slot.greeted {
                self.feed(&mut slot, &[])?;
            }
        } else {
            self.feed(&mut slot, bytes)?;
        }
        // Go's server sends its tickets before it has read that word, so nothing more comes of it.
        if was_ready || (self.asked.greets && slot.link.is_ready()) {
            self.done += 1;
            self.resumed += u64::from(slot.link.is_resumed());
            self.took.saturating_record(slot.begun.elapsed().as_nanos() as u64);
            self.sealed.clear();
            slot.link.close(&mut self.sealed);
            let _ = send(&slot.socket, &self.sealed, SendFlags::NOSIGNAL);
            drop(slot);
            slot = self.connect(place)?;
        }
        self.slots.push(slot);
        let last = self.slots.len() - 1;
        self.slots.swap(place, last);
        Ok(())
    }
}
