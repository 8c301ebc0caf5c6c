//! One connection with a name: HELLO and WELCOME, messages out and in, acknowledgements that ride along.

use super::link::Link;
use super::{Address, Credential, Error, Incoming, Outgoing, Received, Security};
use crate::base::ids::Token;
use crate::base::limits::{ACK_DELAY, ACK_STRIDE, DEAD_AFTER, HELLO_BYTES_MAX, PING_AFTER};
use crate::base::{AgentId, MessageId, Sequence, name};
use crate::wire::{Ack, CAPABILITIES, FLAG_REDELIVERED, Frame, Header, Hello, Kind, Receipt, Secret, Topic, encode};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const ASK_AFTER: Duration = Duration::from_nanos(PING_AFTER);
const GIVE_UP_AFTER: Duration = Duration::from_nanos(DEAD_AFTER - PING_AFTER);
const ACKNOWLEDGE_AFTER: Duration = Duration::from_nanos(ACK_DELAY);
/// A wait that ends with an acknowledgement: half the delay that is allowed, since kernels round waits up.
const ACKNOWLEDGE_WAIT: Duration = Duration::from_nanos(ACK_DELAY / 2);
/// How long `close` waits for the relay's BYE.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// How to connect, and as whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// The agent's name.
    pub name: String,
    /// Unacknowledged messages this program will hold; 0: the relay's default.
    pub in_flight_max: u32,
    /// The session to go on with.
    pub resume: Option<Resume>,
    /// Which program the agent is (claude, codex, gemini, …).
    pub cli: String,
    /// The program's own name.
    pub program: String,
    /// The model it runs.
    pub model: String,
    /// What it works on.
    pub task: String,
    /// Where.
    pub working_directory: String,
    /// What is shown to a relay that wants to know who it is.
    pub credential: Credential,
    /// Whether and how TLS is spoken.
    pub security: Security,
    /// From connecting to WELCOME.
    pub connect_timeout: Duration,
}

impl Options {
    /// Connect as `name`, everything else as usual.
    pub fn named(name: impl Into<String>) -> Options {
        Options {
            name: name.into(),
            in_flight_max: 0,
            resume: None,
            cli: String::new(),
            program: String::new(),
            model: String::new(),
            task: String::new(),
            working_directory: String::new(),
            credential: Credential::default(),
            security: Security::default(),
            connect_timeout: Duration::from_secs(5),
        }
    }

    fn hello(&self) -> Hello<'_> {
        Hello {
            claimed_name: self.name.as_bytes().into(),
            capabilities: CAPABILITIES,
            in_flight_max: self.in_flight_max,
            resume: self.resume.map(|resume| resume.token),
            resume_presented: self.resume.is_some(),
            handled: self.resume.map_or(Sequence::default(), |resume| resume.handled),
            cli: self.cli.as_str().into(),
            program: self.program.as_str().into(),
            model: self.model.as_str().into(),
            task: self.task.as_str().into(),
            working_directory: self.working_directory.as_str().into(),
            auth_type: self.credential.kind().into(),
            credential: Secret::new(self.credential.reveal()),
        }
    }
}

/// What it takes to go on with a session after its connection is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resume {
    /// The token of the last WELCOME.
    pub token: Token,
    /// The last sequence that was handled.
    pub handled: Sequence,
}

/// What WELCOME said.
#[derive(Clone, Debug)]
pub struct Session {
    /// The agent's number.
    pub agent: AgentId,
    /// This session.
    pub id: Token,
    /// Whether an earlier session goes on.
    pub resumed: bool,
    /// Which start of the daemon.
    pub epoch: u32,
    /// Unacknowledged messages the relay will have in flight.
    pub in_flight_max: u32,
    /// The relay's name and version.
    pub server: String,
    /// The licence in force as JSON; empty: nothing to say.
    pub license: String,
    token: Token,
    number: u64,
}

/// A session on one connection. Call [`Client::next`] at least every 20 s: it answers the relay's PING, and a client that
/// says nothing for 30 s is given up.
pub struct Client {
    pub(super) link: Link,
    address: Address,
    name: String,
    session: Session,
    /// The last number used.
    pub(super) number: u64,
    /// Law: `handled <= handed_out`. What is handed out is handled when the program comes back for more.
    pub(super) handed_out: Sequence,
    pub(super) handled: Sequence,
    /// Messages that came since the last acknowledgement, and when the first of them did.
    unacknowledged: u64,
    unacknowledged_since: Instant,
    receipts: VecDeque<Receipt>,
    /// When the relay was asked for a sign of life and has not given one.
    asked: Option<Instant>,
}

/// A frame as this client understands it.
enum Heard {
    Incoming(Incoming),
    Receipts(Vec<Receipt>),
    Repeat,
    Ping(Vec<u8>),
    Welcome(Box<Session>),
    Nothing,
}

fn heard(header: &Header, frame: Frame<'_>, handed_out: Sequence) -> Heard {
    Heard::Incoming(match frame {
        Frame::Deliver(_) if header.sequence <= handed_out => return Heard::Repeat,
        Frame::Deliver(message) => {
            Incoming::Message(Received::new(message, header.sequence, header.flags & FLAG_REDELIVERED != 0))
        }
        Frame::Receipt(receipts) => return Heard::Receipts(receipts),
        Frame::Ping(payload) => return Heard::Ping(payload.into_owned()),
        // About no message: the relay reads this connection later, and loses nothing of it.
        Frame::Busy(busy) if busy.number == 0 && busy.label.is_empty() => {
            Incoming::Slowed { reason: busy.reason, for_ms: busy.retry_after_ms }
        }
        Frame::Busy(busy) => Incoming::Busy {
            number: busy.number,
            reason: busy.reason,
            retry_after_ms: busy.retry_after_ms,
            queue_depth: busy.queue_depth,
            recipient: busy.recipient.into_owned(),
        },
        Frame::Error(error) => Incoming::Error {
            code: error.code,
            message: error.message.into_owned(),
            number: error.number,
            outcome: error.outcome,
            fatal: error.fatal,
        },
        Frame::Bye => Incoming::Bye,
        // From a relay of a later minor version: a reason or state this program has no word for.
        Frame::Malformed { number, problem, .. } => Incoming::Error {
            code: crate::wire::ErrorCode::Internal,
            message: problem.into_owned(),
            number,
            outcome: None,
            fatal: false,
        },
        Frame::Welcome(welcome) => {
            return Heard::Welcome(Box::new(Session {
                agent: welcome.agent,
                id: welcome.session,
                resumed: welcome.resumed,
                epoch: welcome.epoch,
                in_flight_max: welcome.in_flight_max,
                server: welcome.server.into_owned(),
                license: welcome.license.into_owned(),
                token: welcome.resume,
                number: welcome.number,
            }));
        }
        _ => return Heard::Nothing,
    })
}

impl Client {
    /// Connects, says HELLO and waits for WELCOME.
    pub fn connect(address: &Address, options: &Options) -> Result<Client, Error> {
        name::check_agent(options.name.as_bytes())
            .map_err(|rule| Error::Rule(format!("the name {:?}: {rule}", options.name)))?;
        let deadline = Instant::now() + options.connect_timeout;
        let mut link = Link::connect(address, &options.security, options.connect_timeout)?;
        // Room for all of it, so that no piece of the credential stays behind where a smaller buffer was.
        link.queued.reserve(HELLO_BYTES_MAX);
        encode::frame(&mut link.queued, &Frame::Hello(Box::new(options.hello())), Sequence::default());
        let said = link.flush();
        link.wipe_queue();
        said.map_err(|problem| last_word(&mut link, problem))?;
        let session = loop {
            let taken = link.take(|header, frame| heard(header, frame, Sequence::default()));
            match taken.map_err(|problem| problem.before_welcome(address, options))? {
                Some(Heard::Welcome(session)) => break *session,
                Some(Heard::Incoming(Incoming::Error { code, message, fatal: true, .. })) => {
                    return Err(Error::Refused { code, message });
                }
                Some(Heard::Incoming(Incoming::Bye)) => return Err(Error::Lost("the relay said BYE to HELLO".into())),
                Some(_) => {}
                None => {
                    let wait = deadline.saturating_duration_since(Instant::now());
                    let came = if wait.is_zero() { Ok(false) } else { link.receive(wait) };
                    if !came.map_err(|problem| problem.before_welcome(address, options))? && Instant::now() >= deadline
                    {
                        return Err(Error::Timeout(address.clone()));
                    }
                }
            }
        };
        let mut handled = options.resume.map_or(Sequence::default(), |resume| resume.handled);
        if handled.epoch > session.epoch {
            // Epochs only grow: this daemon has lost its store and counts from the start again.
            handled = Sequence::default();
        }
        Ok(Client {
            link,
            address: address.clone(),
            name: options.name.clone(),
            number: session.number,
            session,
            handed_out: handled,
            handled,
            unacknowledged: 0,
            unacknowledged_since: Instant::now(),
            receipts: VecDeque::new(),
            asked: None,
        })
    }

    /// Sends a message; its number is told back in receipts.
    pub fn send(&mut self, message: &Outgoing<'_>) -> Result<u64, Error> {
        let number = self.queue(message)?;
        self.flush()?;
        Ok(number)
    }

    /// As `send`, but the bytes leave with the next `flush`, `send` or `next`: for many messages at once.
    pub fn queue(&mut self, message: &Outgoing<'_>) -> Result<u64, Error> {
        self.queue_as(self.number + 1, message)?;
        self.number += 1;
        Ok(self.number)
    }

    /// Sends a message again that was answered with BUSY, under the number it had.
    pub fn send_again(&mut self, number: u64, message: &Outgoing<'_>) -> Result<(), Error> {
        if number == 0 || number > self.number {
            return Err(Error::Rule(format!("no message with the number {number} was sent")));
        }
        self.queue_as(number, message)?;
        self.flush()
    }

    fn queue_as(&mut self, number: u64, message: &Outgoing<'_>) -> Result<(), Error> {
        let id = MessageId { sender: self.session.agent, number };
        let fields = message.fields(id, &self.name)?;
        encode::send(&mut self.link.queued, Kind::Send, &fields, self.handled);
        self.ack_to_ride_along();
        self.link.flush_if_full().map_err(|problem| last_word(&mut self.link, problem))
    }

    /// Writes what `queue` gathered.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.link.flush().map_err(|problem| last_word(&mut self.link, problem))
    }

    /// Messages to `topic` are for this agent too.
    pub fn subscribe(&mut self, topic: &str) -> Result<(), Error> {
        let topic = checked_topic(topic)?;
        self.say(&Frame::Subscribe(topic))
    }

    /// No longer.
    pub fn unsubscribe(&mut self, topic: &str) -> Result<(), Error> {
        let topic = checked_topic(topic)?;
        self.say(&Frame::Unsubscribe(topic))
    }

    /// Tells the sender of `message` that a person or agent has seen it.
    pub fn read(&mut self, message: &Received) -> Result<(), Error> {
        let receipt = Receipt {
            id: message.id(),
            count: 1,
            state: crate::wire::ReceiptState::Read,
            recipient: self.session.agent,
        };
        self.say(&Frame::Receipt(vec![receipt]))
    }

    /// What came, waiting for it at most `timeout`. Coming back for more says that what was handed out is handled.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Incoming>, Error> {
        self.handled = self.handed_out;
        if let Some(receipt) = self.receipts.pop_front() {
            return Ok(Some(Incoming::Receipt(receipt)));
        }
        let start = Instant::now();
        self.acknowledge_if_due(start);
        self.link.flush()?;
        let mut remaining = timeout;
        loop {
            let seen = self.handed_out;
            if let Some(heard) = self.link.take(|header, frame| heard(header, frame, seen))? {
                if let Some(incoming) = self.understand(heard)? {
                    return Ok(Some(incoming));
                }
                continue;
            }
            self.link.flush()?;
            let wait = if self.unacknowledged > 0 { ACKNOWLEDGE_WAIT } else { ASK_AFTER };
            if self.link.receive(wait.min(remaining))? {
                self.asked = None;
                continue;
            }
            let now = Instant::now();
            let idle_wait_over = self.unacknowledged > 0 && wait <= remaining;
            if idle_wait_over {
                self.queue_ack();
            }
            self.ask_for_life(now)?;
            self.link.flush()?;
            remaining = timeout.saturating_sub(now - start);
            if remaining.is_zero() {
                return Ok(None);
            }
        }
    }

    /// What was handed out is handled: acknowledges it now instead of with the following `next`.
    pub fn handled(&mut self) -> Result<(), Error> {
        self.handled = self.handed_out;
        if self.unacknowledged > 0 {
            self.queue_ack();
        }
        self.link.flush()
    }

    /// What it takes to go on with this session on another connection.
    pub fn resume(&self) -> Resume {
        Resume { token: self.session.token, handled: self.handled }
    }

    /// What WELCOME said.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Where this client is connected.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Acknowledges what was handed out, says BYE and waits a moment for the relay's.
    pub fn close(mut self) -> Result<(), Error> {
        self.handled = self.handed_out;
        encode::frame(&mut self.link.queued, &Frame::Bye, self.handled);
        self.link.flush()?;
        let deadline = Instant::now() + CLOSE_WAIT;
        loop {
            // Whatever still comes was not handled: the relay keeps it for the next session.
            match self.link.take(|_, frame| matches!(frame, Frame::Bye))? {
                Some(true) => return Ok(()),
                Some(false) => {}
                None => match self.link.receive(deadline.saturating_duration_since(Instant::now())) {
                    Ok(true) => {}
                    Ok(false) if Instant::now() < deadline => {}
                    // The relay may close without a BYE of its own, or not in time: either way this side is done.
                    Ok(false) | Err(_) => return Ok(()),
                },
            }
        }
    }

    fn understand(&mut self, heard: Heard) -> Result<Option<Incoming>, Error> {
        match heard {
            Heard::Incoming(Incoming::Message(message)) => {
                self.handed_out = message.sequence;
                self.came();
                return Ok(Some(Incoming::Message(message)));
            }
            Heard::Incoming(other) => return Ok(Some(other)),
            Heard::Receipts(receipts) => {
                self.receipts.extend(receipts);
                return Ok(self.receipts.pop_front().map(Incoming::Receipt));
            }
            // The relay has not seen the acknowledgement: it gets another one in due time.
            Heard::Repeat => self.came(),
            Heard::Ping(payload) => self.say(&Frame::Pong(payload.into()))?,
            Heard::Welcome(_) | Heard::Nothing => {}
        }
        Ok(None)
    }

    fn came(&mut self) {
        if self.unacknowledged == 0 {
            self.unacknowledged_since = Instant::now();
        }
        self.unacknowledged += 1;
    }

    pub(super) fn say(&mut self, frame: &Frame<'_>) -> Result<(), Error> {
        let ack = self.ack_to_ride_along();
        encode::frame(&mut self.link.queued, frame, ack);
        self.link.flush()
    }

    /// What is handled rides along with the frame that is about to be queued.
    pub(super) fn ack_to_ride_along(&mut self) -> Sequence {
        // One message may be handed out and not handled: it stays unacknowledged.
        self.unacknowledged = u64::from(self.unacknowledged > 0 && self.handed_out > self.handled);
        self.handled
    }

    fn acknowledge_if_due(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.unacknowledged_since) >= ACKNOWLEDGE_AFTER;
        if self.unacknowledged >= ACK_STRIDE || self.unacknowledged > 0 && late {
            self.queue_ack();
        }
    }

    fn queue_ack(&mut self) {
        self.unacknowledged = 0;
        encode::frame(&mut self.link.queued, &Frame::Ack(Ack::Through(self.handled)), Sequence::default());
    }

    /// Asks a silent relay for a sign of life, and gives up one that does not answer.
    fn ask_for_life(&mut self, now: Instant) -> Result<(), Error> {
        match self.asked {
            Some(asked) if now.saturating_duration_since(asked) >= GIVE_UP_AFTER => {
                Err(Error::Lost("the relay gave no sign of life for 30 s".into()))
            }
            None if now.saturating_duration_since(self.link.heard) >= ASK_AFTER => {
                self.asked = Some(now);
                self.say(&Frame::Ping(b"alive?"[..].into()))
            }
            _ => Ok(()),
        }
    }
}

/// Why the connection went: a relay that closes one says so first, and may have done so while this side was writing.
fn last_word(link: &mut Link, problem: Error) -> Error {
    if !matches!(problem, Error::Lost(_)) {
        return problem;
    }
    // As much as came; the rest of a stream that is closed comes without waiting.
    while let Ok(true) = link.receive(Duration::ZERO) {}
    loop {
        match link.take(|header, frame| heard(header, frame, Sequence::default())) {
            Ok(Some(Heard::Incoming(Incoming::Error { code, message, fatal: true, .. }))) => {
                return Error::Refused { code, message };
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return problem,
        }
    }
}

pub(super) fn checked_topic(topic: &str) -> Result<Topic<'_>, Error> {
    let topic = name::topic_of(topic.as_bytes());
    name::check_topic(topic).map_err(|rule| {
        let topic = String::from_utf8_lossy(topic);
        Error::Rule(format!("the topic {topic:?}: {rule}"))
    })?;
    Ok(Topic { name: topic.into(), channel: false })
}
