//! Errands: hand in one message, or ask questions, and go. Without a session where the relay takes the socket's owner at
//! their word, in a session of their own elsewhere.

use super::link::Link;
use super::{Address, Client, Error, Options, Outgoing, Security};
use crate::base::ids::{Token, number_of_label};
use crate::base::{AgentId, MessageId, RefuseReason, Sequence, name};
use crate::wire::{Answer, ErrorCode, Frame, Kind, Query, QueryKind, ReceiptState, Wants, encode};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// The longest answer that `ask` gathers.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What became of a submitted message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Its id; `relay read` finds it.
    pub id: MessageId,
    /// What is known of it.
    pub fate: Fate,
    /// Whether the time was over before what was waited for happened.
    pub timed_out: bool,
}

/// How far a submitted message came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Nothing was heard; it may have been accepted. Submitting it again under the same label is safe.
    Unknown,
    /// It reached this state, or failed after it was accepted.
    Reached(ReceiptState),
    /// It was not accepted.
    Refused {
        /// Why.
        reason: RefuseReason,
        /// When it is worth trying again.
        retry_after_ms: u32,
    },
    /// Nobody of that name is known.
    NotFound(String),
}

/// Hands in `message` in the name of `from`, without a session of that name, and waits until all of `wait_for` is
/// reported or `timeout` is over. A message without a label gets a random one.
pub fn submit(
    address: &Address,
    message: &Outgoing<'_>,
    from: &str,
    wait_for: Wants,
    timeout: Duration,
) -> Result<Outcome, Error> {
    name::check_agent(from.as_bytes()).map_err(|rule| Error::Rule(format!("the sender {from:?}: {rule}")))?;
    let random = random_label();
    let label = if message.label.is_empty() { &random } else { message.label };
    let id = MessageId { sender: AgentId::of(from.as_bytes()), number: number_of_label(label.as_bytes()) };
    // The relay's "no" comes as BUSY or ERROR in any case; the first "yes" only when asked for.
    let wants = message.wants | wait_for | Wants::ACCEPTED;
    let message = Outgoing { label, wants, ..*message };
    let fields = message.fields(id, from)?;
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut link = Link::connect(address, &Security::Plain, left)?;
        encode::send(&mut link.queued, Kind::Submit, &fields, Sequence::default());
        link.flush()?;
        let outcome = outcome_of(&mut link, id, wait_for, deadline)?;
        // The tier's rate is used up: whoever sends in a loop slows down to it. The label makes sending again safe.
        let Fate::Refused { reason: RefuseReason::RateLimited, retry_after_ms } = outcome.fate else {
            return Ok(outcome);
        };
        let wait = Duration::from_millis(u64::from(retry_after_ms));
        if wait >= deadline.saturating_duration_since(Instant::now()) {
            return Ok(outcome);
        }
        std::thread::sleep(wait);
    }
}

/// As [`submit`], in a session under the name that `options` say: for a relay that wants to know who sends. Fails where
/// that name is connected. What is owed to the name stays owed.
pub fn submit_as(
    address: &Address,
    options: &Options,
    message: &Outgoing<'_>,
    wait_for: Wants,
    timeout: Duration,
) -> Result<Outcome, Error> {
    let deadline = Instant::now() + timeout;
    let random = random_label();
    let label = if message.label.is_empty() { &random } else { message.label };
    let mut client = Client::connect(address, &Options { in_flight_max: 1, ..options.clone() })?;
    let wants = message.wants | wait_for | Wants::ACCEPTED;
    let number = client.send(&Outgoing { label, wants, ..*message })?;
    let id = MessageId { sender: client.session().agent, number };
    let outcome = outcome_of(&mut client.link, id, wait_for, deadline)?;
    // Its outcome is known; how the connection ends does not change that.
    drop(client.close());
    Ok(outcome)
}

/// Listens for what becomes of the message `id`. Deliveries are left unread: they stay owed.
fn outcome_of(link: &mut Link, id: MessageId, wait_for: Wants, deadline: Instant) -> Result<Outcome, Error> {
    let mut outcome = Outcome { id, fate: Fate::Unknown, timed_out: false };
    loop {
        let heard = hear(link, deadline, |frame| match frame {
            Frame::Receipt(receipts) => {
                let mine = receipts.iter().filter(|receipt| receipt.id.number == id.number);
                mine.max_by_key(|receipt| rank(receipt.state)).map(|receipt| Fate::Reached(receipt.state)).map(Ok)
            }
            Frame::Busy(busy) if busy.number == id.number => {
                Some(Ok(Fate::Refused { reason: busy.reason, retry_after_ms: busy.retry_after_ms }))
            }
            Frame::Error(error) => Some(match (error.code, error.outcome) {
                (ErrorCode::NotFound, _) | (_, Some(RefuseReason::NotFound)) => {
                    Ok(Fate::NotFound(error.message.into_owned()))
                }
                (_, Some(reason)) => Ok(Fate::Refused { reason, retry_after_ms: 0 }),
                (code, None) => Err(Error::Refused { code, message: error.message.into_owned() }),
            }),
            Frame::Bye => Some(Err(Error::Lost("the relay said BYE".into()))),
            _ => None,
        });
        match heard {
            Ok(Some(fate)) => {
                let fate = fate?;
                let Fate::Reached(state) = fate else { return Ok(Outcome { fate, ..outcome }) };
                let better = !matches!(outcome.fate, Fate::Reached(known) if rank(known) >= rank(state));
                if better {
                    outcome.fate = fate;
                }
                if rank(state) >= rank_of(wait_for) {
                    return Ok(outcome);
                }
            }
            Ok(None) => return Ok(Outcome { timed_out: true, ..outcome }),
            // What is known stays known.
            Err(Error::Lost(_)) if outcome.fate != Fate::Unknown => return Ok(Outcome { timed_out: true, ..outcome }),
            Err(problem) => return Err(problem),
        }
    }
}

/// Asks the daemon and gathers the answer, a JSON value.
pub fn ask(address: &Address, kind: QueryKind, arguments: &str, timeout: Duration) -> Result<Vec<u8>, Error> {
    let deadline = Instant::now() + timeout;
    let mut link = Link::connect(address, &Security::Plain, timeout)?;
    match answer_of(&mut link, 1, kind, arguments, deadline)? {
        Some(answer) => Ok(answer),
        None => Err(Error::Timeout(address.clone())),
    }
}

/// A session that only asks. Its name is of the relay's own kind, so it takes nobody's seat.
pub struct Inquiry {
    /// None only while it is dropped.
    client: Option<Client>,
    questions: u64,
}

impl Inquiry {
    /// Connects with everything that `options` say but the name.
    pub fn open(address: &Address, options: &Options) -> Result<Inquiry, Error> {
        let name = format!("{}{}", name::ERRAND_PREFIX, &random_label()[..13]);
        let client = Client::connect(address, &Options { name, in_flight_max: 1, ..options.clone() })?;
        Ok(Inquiry { client: Some(client), questions: 0 })
    }

    /// Asks and gathers the answer, a JSON value.
    pub fn ask(&mut self, kind: QueryKind, arguments: &str, timeout: Duration) -> Result<Vec<u8>, Error> {
        self.questions += 1;
        let deadline = Instant::now() + timeout;
        let number = self.questions;
        let client = self.session();
        let answer = answer_of(&mut client.link, number, kind, arguments, deadline)?;
        answer.ok_or_else(|| Error::Timeout(client.address().clone()))
    }

    /// Waits until the relay ends the session, at most so long; says whether it has.
    pub fn until_closed(&mut self, timeout: Duration) -> bool {
        let bye = |frame: Frame<'_>| matches!(frame, Frame::Bye).then_some(());
        !matches!(hear(&mut self.session().link, Instant::now() + timeout, bye), Ok(None))
    }

    fn session(&mut self) -> &mut Client {
        self.client.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Inquiry {
    fn drop(&mut self) {
        // Every answer is there: how the connection ends changes none of them.
        drop(self.client.take().map(Client::close));
    }
}

/// The answer to one question; `None` when the time is over.
fn answer_of(
    link: &mut Link,
    number: u64,
    kind: QueryKind,
    arguments: &str,
    deadline: Instant,
) -> Result<Option<Vec<u8>>, Error> {
    let query = Query { number, kind, arguments: arguments.into() };
    encode::frame(&mut link.queued, &Frame::Query(Box::new(query)), Sequence::default());
    link.flush()?;
    let mut gathered = Vec::new();
    loop {
        let more = hear(link, deadline, |frame| match frame {
            Frame::Answer(answer) if answer.number == number => Some(gather(&mut gathered, &answer)),
            Frame::Error(error) => Some(Err(Error::Refused { code: error.code, message: error.message.into_owned() })),
            _ => None,
        })?;
        match more {
            Some(more) => {
                if !more? {
                    return Ok(Some(gathered));
                }
            }
            None => return Ok(None),
        }
    }
}

/// Takes a part; whether more follow.
fn gather(gathered: &mut Vec<u8>, answer: &Answer<'_>) -> Result<bool, Error> {
    if gathered.len() + answer.json.len() > ANSWER_BYTES_MAX {
        return Err(Error::AnswerTooLong(ANSWER_BYTES_MAX));
    }
    gathered.extend_from_slice(&answer.json);
    if answer.failed && !answer.more {
        let value: Option<serde_json::Value> = serde_json::from_slice(gathered).ok();
        let text = value.as_ref().and_then(|value| value["error"].as_str());
        let mut text = text.unwrap_or("the relay could not answer").to_owned();
        // An ambiguous id: the ids it could be.
        for id in value.iter().filter_map(|value| value["matches"].as_array()).flatten().filter_map(|id| id.as_str()) {
            text.push_str("\n  ");
            text.push_str(id);
        }
        return Err(Error::Question(text));
    }
    Ok(answer.more)
}

/// The next frame that `read` makes something of; `None` when the time is over.
fn hear<T>(
    link: &mut Link,
    deadline: Instant,
    mut read: impl FnMut(Frame<'_>) -> Option<T>,
) -> Result<Option<T>, Error> {
    loop {
        match link.take(|_, frame| match frame {
            Frame::Ping(payload) => Err(payload.into_owned()),
            other => Ok(read(other)),
        })? {
            Some(Ok(Some(value))) => return Ok(Some(value)),
            Some(Ok(None)) => {}
            Some(Err(payload)) => {
                encode::frame(&mut link.queued, &Frame::Pong(payload.into()), Sequence::default());
                link.flush()?;
            }
            None => {
                let wait = deadline.saturating_duration_since(Instant::now());
                if wait.is_zero() {
                    return Ok(None);
                }
                link.receive(wait)?;
            }
        }
    }
}

/// How far a state is along a message's way; a failure ends it.
fn rank(state: ReceiptState) -> u8 {
    match state {
        ReceiptState::Accepted => 1,
        ReceiptState::Durable => 2,
        ReceiptState::Delivered => 3,
        ReceiptState::Acknowledged => 4,
        ReceiptState::Read => 5,
        ReceiptState::Failed(_) => 6,
    }
}

fn rank_of(wants: Wants) -> u8 {
    // Bit n stands for the state of rank n + 1.
    (8 - wants.0.leading_zeros() as u8).max(1)
}

/// Unpredictable enough to be unique: the standard library seeds each hasher from the system's randomness.
fn random_label() -> String {
    let word = || RandomState::new().hash_one((std::process::id(), Instant::now()));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&word().to_le_bytes());
    bytes[8..].copy_from_slice(&word().to_le_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Token(bytes).to_string()
}
