//! A session that outlives its connections: connect again with growing pauses, resume, say again what was not answered.
//!
//! Law: a message is sent until its outcome is known, under one number, so the relay takes it once; and a message that
//! came is handed out once, because sequences only grow.

use super::session::checked_topic;
use super::{Address, Client, Error, Incoming, Options, Outgoing, Received};
use crate::base::{MessageId, Sequence};
use crate::wire::{Frame, Message, Receipt, ReceiptState, Wants, encode};
use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Messages whose outcome is not known.
pub const PENDING_MAX: usize = 4096;
/// Bytes of them.
const PENDING_BYTES_MAX: usize = 64 * 1024 * 1024;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

struct Pending {
    number: u64,
    body: Vec<u8>,
    checksum: u32,
    /// What the program asked for; this wrapper asks for ACCEPTED besides.
    wanted: Wants,
}

/// A client that survives lost connections and restarts of the daemon.
pub struct Reconnecting {
    address: Address,
    options: Options,
    client: Option<Client>,
    /// Ordered by number.
    pending: VecDeque<Pending>,
    /// Law: the sum of their bodies.
    pending_bytes: usize,
    topics: BTreeSet<String>,
    number: u64,
    handed_out: Sequence,
    pause: Duration,
    try_at: Instant,
    jitter: RandomState,
    connections: u64,
}

impl Reconnecting {
    /// Connects for the first time; that has to succeed.
    pub fn connect(address: &Address, options: &Options) -> Result<Reconnecting, Error> {
        let client = Client::connect(address, options)?;
        Ok(Reconnecting {
            address: address.clone(),
            options: options.clone(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            topics: BTreeSet::new(),
            number: client.number,
            handed_out: client.handed_out,
            pause: PAUSE_FIRST,
            try_at: Instant::now(),
            jitter: RandomState::new(),
            connections: 1,
            client: Some(client),
        })
    }

    /// Sends a message, or keeps it until there is a connection again.
    pub fn send(&mut self, message: &Outgoing<'_>) -> Result<u64, Error> {
        if self.pending.len() >= PENDING_MAX || self.pending_bytes >= PENDING_BYTES_MAX {
            return Err(Error::Full(self.pending.len()));
        }
        let number = self.number + 1;
        let asked = Outgoing { wants: message.wants | Wants::ACCEPTED, ..*message };
        let sender = crate::base::AgentId::of(self.options.name.as_bytes());
        let fields = asked.fields(MessageId { sender, number }, &self.options.name)?;
        let mut body = Vec::new();
        let checksum = encode::message_body(&mut body, &fields);
        self.number = number;
        self.pending_bytes += body.len();
        self.pending.push_back(Pending { number, body, checksum, wanted: message.wants });
        if let Some(client) = &mut self.client {
            let pending = self.pending.back().expect("pushed above");
            if let Err(problem) = say(client, pending).and_then(|()| client.flush()) {
                self.lost(problem)?;
            }
        } else {
            self.connect_if_due()?;
        }
        Ok(number)
    }

    /// Messages to `topic` are for this agent too, on later connections as well.
    pub fn subscribe(&mut self, topic: &str) -> Result<(), Error> {
        checked_topic(topic)?;
        self.topics.insert(topic.to_owned());
        match self.client.as_mut().map(|client| client.subscribe(topic)) {
            Some(Err(problem)) => self.lost(problem),
            _ => Ok(()),
        }
    }

    /// No longer.
    pub fn unsubscribe(&mut self, topic: &str) -> Result<(), Error> {
        checked_topic(topic)?;
        self.topics.remove(topic);
        match self.client.as_mut().map(|client| client.unsubscribe(topic)) {
            Some(Err(problem)) => self.lost(problem),
            _ => Ok(()),
        }
    }

    /// What came, waiting at most `timeout` for it and for a connection. An error here is final.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Incoming>, Error> {
        let deadline = Instant::now() + timeout;
        self.note_handled();
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let Some(client) = &mut self.client else {
                let pause = self.try_at.saturating_duration_since(Instant::now());
                if pause > remaining {
                    std::thread::sleep(remaining);
                    return Ok(None);
                }
                std::thread::sleep(pause);
                self.connect_if_due()?;
                if self.client.is_none() && remaining.is_zero() {
                    return Ok(None);
                }
                continue;
            };
            match client.next(remaining) {
                Ok(None) => return Ok(None),
                Ok(Some(incoming)) => {
                    if let Some(incoming) = self.settle(incoming)? {
                        return Ok(Some(incoming));
                    }
                }
                Err(problem) => self.lost(problem)?,
            }
        }
    }

    /// What was handed out is handled.
    pub fn handled(&mut self) -> Result<(), Error> {
        self.note_handled();
        match self.client.as_mut().map(Client::handled) {
            Some(Err(problem)) => self.lost(problem),
            _ => Ok(()),
        }
    }

    /// Tells the sender of `message` that it was read, if there is a connection.
    pub fn read(&mut self, message: &Received) -> Result<(), Error> {
        match self.client.as_mut().map(|client| client.read(message)) {
            Some(Err(problem)) => self.lost(problem),
            _ => Ok(()),
        }
    }

    /// Messages whose outcome is not known.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// How often a connection was made; 1: none was lost.
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// The connection, while there is one.
    pub fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// Says BYE. What is pending is given up.
    pub fn close(self) -> Result<(), Error> {
        self.client.map_or(Ok(()), Client::close)
    }

    /// Takes note of outcomes; `None` when the program did not ask for this one.
    fn settle(&mut self, incoming: Incoming) -> Result<Option<Incoming>, Error> {
        match &incoming {
            Incoming::Message(message) => self.handed_out = message.sequence,
            Incoming::Receipt(receipt) => {
                if !self.settle_receipt(receipt) {
                    return Ok(None);
                }
            }
            // Not accepted: the program decides whether to send it again, as a new message.
            Incoming::Busy { number, .. } => self.forget(|pending| pending.number == *number),
            Incoming::Error { code, message, fatal: true, .. } => {
                self.client = None;
                return Err(Error::Refused { code: *code, message: message.clone() });
            }
            Incoming::Error { number, .. } if *number != 0 => {
                self.forget(|pending| pending.number == *number);
            }
            Incoming::Error { .. } | Incoming::Slowed { .. } => {}
            Incoming::Bye => {
                self.lost(Error::Lost("the relay said BYE".into()))?;
                return Ok(None);
            }
        }
        Ok(Some(incoming))
    }

    /// What was handed out before the connection broke is handled now that the program asks for more.
    fn note_handled(&mut self) {
        if let (None, Some(resume)) = (&self.client, &mut self.options.resume) {
            resume.handled = self.handed_out;
        }
    }

    /// The outcome of the pending messages that match is known.
    fn forget(&mut self, settled: impl Fn(&Pending) -> bool) {
        let pending_bytes = &mut self.pending_bytes;
        let mut forgotten = |pending: &Pending| {
            let known = settled(pending);
            *pending_bytes -= if known { pending.body.len() } else { 0 };
            known
        };
        // Outcomes mostly come in the order of sending.
        while self.pending.front().is_some_and(&mut forgotten) {
            self.pending.pop_front();
        }
        self.pending.retain(|pending| !forgotten(pending));
    }

    /// Forgets what is settled by `receipt`; says whether the program asked to hear of it.
    fn settle_receipt(&mut self, receipt: &Receipt) -> bool {
        let last = receipt.id.number.saturating_add(u64::from(receipt.count) - 1);
        let of_receipt = |pending: &Pending| (receipt.id.number..=last).contains(&pending.number);
        if receipt.state != ReceiptState::Accepted {
            self.forget(of_receipt);
            return true;
        }
        let asked = self.pending.iter().any(|pending| of_receipt(pending) && pending.wanted.contains(Wants::ACCEPTED));
        // Who wants to survive a crash of the daemon asks for DURABLE; accepted is not enough then.
        self.forget(|pending| of_receipt(pending) && !pending.wanted.contains(Wants::DURABLE));
        asked
    }

    /// The connection is gone; `problem` is passed on when another one would not help.
    fn lost(&mut self, problem: Error) -> Result<(), Error> {
        if let Some(client) = self.client.take() {
            self.options.resume = Some(client.resume());
            self.number = self.number.max(client.number);
            self.try_at = Instant::now();
        }
        if problem.is_passing() { Ok(()) } else { Err(problem) }
    }

    fn connect_if_due(&mut self) -> Result<(), Error> {
        if Instant::now() < self.try_at {
            return Ok(());
        }
        match Client::connect(&self.address, &self.options).and_then(|client| self.go_on_with(client)) {
            Ok(client) => {
                self.client = Some(client);
                self.pause = PAUSE_FIRST;
                self.connections += 1;
                Ok(())
            }
            Err(problem) if problem.is_passing() => {
                // Between half the pause and all of it, so that a restarted daemon is not met by everybody at once.
                let spread = self.jitter.hash_one(self.connections.wrapping_add(self.pause.as_nanos() as u64));
                let half = self.pause.as_nanos() as u64 / 2;
                self.try_at = Instant::now() + Duration::from_nanos(half + spread % half.max(1));
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                Ok(())
            }
            Err(problem) => Err(problem),
        }
    }

    /// Tells the new connection what the old one left open.
    fn go_on_with(&mut self, mut client: Client) -> Result<Client, Error> {
        // A token works once, whatever happens to this connection next.
        self.options.resume = Some(client.resume());
        if self.handed_out.epoch > client.session().epoch {
            // As in `Client::connect`: the daemon has lost its store.
            self.handed_out = Sequence::default();
        }
        client.handed_out = client.handed_out.max(self.handed_out);
        self.number = self.number.max(client.number);
        for topic in &self.topics {
            client.subscribe(topic)?;
        }
        for pending in &self.pending {
            say(&mut client, pending)?;
        }
        client.flush()?;
        Ok(client)
    }
}

fn say(client: &mut Client, pending: &Pending) -> Result<(), Error> {
    let message = Message::check(&pending.body, pending.checksum).expect("encoded by this program");
    let ack = client.ack_to_ride_along();
    encode::frame(&mut client.link.queued, &Frame::Send(message), ack);
    client.link.flush_if_full()
}
