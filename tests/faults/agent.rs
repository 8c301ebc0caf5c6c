//! One agent at one connection at a time, in either dialect: nothing here waits, and everything said or heard is told to
//! the ledger.

use crate::dice::{Dice, mixed};
use crate::ledger::{Arrival, Delivery, Ledger, Letter, Micros, To};
use agent_relay::base::ids::Token;
use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::wire::{
    self, Ack, CAPABILITIES, FLAG_REDELIVERED, Frame, Hello, Kind, MessageFields, ReceiptState, Wants,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    Native,
    Json,
}

/// How an agent comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Return {
    /// With its token and the last sequence that it handled.
    Resume,
    /// With its token; it has forgotten what it handled.
    Forgetful,
    /// As a stranger with the same name.
    Fresh,
}

/// A message without an outcome.
#[derive(Clone, Copy)]
struct Pending {
    to: To,
    kibibytes: usize,
}

pub(crate) struct Agent {
    pub index: usize,
    pub name: String,
    pub dialect: Dialect,
    pub stream: Option<UnixStream>,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    pub welcome: bool,
    /// Of the last WELCOME; the JSON dialect's are text.
    token: Option<Token>,
    token_text: String,
    asked: bool,
    presented: Sequence,
    /// The last sequence that the program has seen.
    handled: Sequence,
    /// The last sequence that came on this connection; what came on an earlier one is not this session's to acknowledge.
    heard: Sequence,
    acknowledged: Sequence,
    number: u64,
    pending: BTreeMap<u64, Pending>,
    /// Bodies are derived from it.
    seed: u64,
    /// When the socket was last seen empty: what is read now was written after that.
    emptied_at: Micros,
    /// Refusals: what was refused is not said again.
    pub busy: u64,
    pub busy_reasons: BTreeSet<String>,
    /// Durable receipts that were news.
    pub receipts: u64,
}

/// The name of the agent with this index.
pub(crate) fn name_of(index: usize) -> String {
    format!("agent-{index:02}")
}

/// What a message says: who, which, for whom, and filling: of so many KiB, or (0) of a length that depends on the seed.
pub(crate) fn body(seed: u64, letter: Letter, to: To, kibibytes: usize) -> String {
    let whom = match to {
        To::One(index) => index.to_string(),
        To::Everyone => "*".to_owned(),
    };
    let mut text = format!("{seed:x} {} {} {whom} {kibibytes} ", letter.sender, letter.number);
    let word = mixed(seed ^ mixed(letter.number << 8 | letter.sender as u64));
    let length = match word % 64 {
        _ if kibibytes > 0 => kibibytes as u64 * 1024,
        0 => 20_000 + word % 70_000,
        1..=4 => 1_000 + word % 5_000,
        _ => word % 256,
    } as usize;
    let mut filling = word;
    while text.len() < length {
        filling = mixed(filling);
        text.push_str(&format!("{filling:016x}"));
    }
    text
}

/// Who and which, from a body.
fn letter_of(text: &str) -> Option<Letter> {
    let mut words = text.split(' ').skip(1);
    let sender = words.next()?.parse().ok()?;
    Some(Letter { sender, number: words.next()?.parse().ok()? })
}

/// What a message with this beginning says in full, if anybody wrote such a one.
fn said(seed: u64, letter: Letter, text: &str) -> Option<String> {
    let mut words = text.split(' ').skip(3);
    let whom = words.next()?;
    let to = if whom == "*" { To::Everyone } else { To::One(whom.parse().ok()?) };
    let kibibytes = words.next()?.parse().ok().filter(|kibibytes| *kibibytes < 1024)?;
    Some(body(seed, letter, to, kibibytes))
}

impl Agent {
    pub(crate) fn new(index: usize, dialect: Dialect, seed: u64) -> Agent {
        Agent {
            index,
            name: name_of(index),
            dialect,
            stream: None,
            inbox: Vec::new(),
            outbox: Vec::new(),
            welcome: false,
            token: None,
            token_text: String::new(),
            asked: false,
            presented: Sequence::default(),
            handled: Sequence::default(),
            heard: Sequence::default(),
            acknowledged: Sequence::default(),
            number: 0,
            pending: BTreeMap::new(),
            seed,
            emptied_at: 0,
            busy: 0,
            busy_reasons: BTreeSet::new(),
            receipts: 0,
        }
    }

    /// Messages without an outcome.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether bytes wait for the socket.
    pub(crate) fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Connects and says HELLO. Whether somebody listens.
    pub(crate) fn connect(&mut self, socket: &Path, how: Return) -> bool {
        let Ok(stream) = UnixStream::connect(socket) else { return false };
        stream.set_nonblocking(true).unwrap();
        self.stream = Some(stream);
        self.inbox.clear();
        self.outbox.clear();
        self.emptied_at = 0;
        self.welcome = false;
        let knows = self.token.is_some() || !self.token_text.is_empty();
        self.asked = how != Return::Fresh && knows;
        self.presented = if self.asked && how == Return::Resume { self.handled } else { Sequence::default() };
        (self.heard, self.acknowledged) = (Sequence::default(), self.presented);
        match self.dialect {
            Dialect::Native => {
                let hello = Hello {
                    claimed_name: self.name.as_bytes().into(),
                    capabilities: CAPABILITIES,
                    resume: self.token.filter(|_| self.asked),
                    resume_presented: self.asked,
                    handled: self.presented,
                    ..Hello::default()
                };
                wire::encode::frame(&mut self.outbox, &Frame::Hello(Box::new(hello)), Sequence::default());
            }
            Dialect::Json => {
                let mut hello = json!({
                    "v": 1, "type": "HELLO", "id": "hello", "ts": 1,
                    "payload": { "agent": self.name, "cli": "test",
                        "capabilities": { "ack": true, "resume": true, "max_inflight": 256, "supports_topics": true } },
                });
                if self.asked {
                    hello["payload"]["session"] = json!({ "resume_token": self.token_text });
                }
                self.queue_json(&hello);
            }
        }
        self.flush();
        true
    }

    /// The connection is gone.
    fn lose(&mut self, ledger: &mut Ledger) {
        if self.stream.take().is_some() {
            ledger.lost(self.index);
        }
        self.welcome = false;
    }

    /// Closes without a word, as a program that dies.
    pub(crate) fn hang_up(&mut self, ledger: &mut Ledger) {
        self.lose(ledger);
    }

    fn queue_json(&mut self, value: &Value) {
        let text = value.to_string();
        self.outbox.extend_from_slice(&(text.len() as u32).to_be_bytes());
        self.outbox.extend_from_slice(text.as_bytes());
    }

    /// Says a new message.
    pub(crate) fn say(&mut self, to: To, kibibytes: usize, ledger: &mut Ledger, now: Micros) {
        self.number += 1;
        let pending = Pending { to, kibibytes };
        self.pending.insert(self.number, pending);
        self.say_as(self.number, pending, ledger, now);
    }

    fn say_as(&mut self, number: u64, pending: Pending, ledger: &mut Ledger, now: Micros) {
        let Pending { to, kibibytes } = pending;
        let letter = Letter { sender: self.index, number };
        ledger.said(letter, to, now);
        let text = body(self.seed, letter, to, kibibytes);
        let whom = match to {
            To::One(index) => name_of(index),
            To::Everyone => "*".to_owned(),
        };
        match self.dialect {
            Dialect::Native => {
                let fields = MessageFields {
                    id: MessageId { sender: AgentId::of(self.name.as_bytes()), number },
                    wants: Wants::DURABLE,
                    from: self.name.as_bytes(),
                    to: whom.as_bytes(),
                    text: text.as_bytes(),
                    importance: 50,
                    ..MessageFields::default()
                };
                wire::encode::send(&mut self.outbox, Kind::Send, &fields, Sequence::default());
            }
            Dialect::Json => {
                let id = format!("{}/{number}", self.name);
                self.queue_json(&json!({
                    "v": 1, "type": "SEND", "id": id, "ts": 1, "to": whom,
                    "payload": { "kind": "message", "body": text }, "payload_meta": { "requires_ack": true },
                }));
            }
        }
    }

    /// Acknowledges what the program has seen.
    pub(crate) fn acknowledge(&mut self, ledger: &mut Ledger, now: Micros) {
        if self.dialect == Dialect::Native && self.welcome && self.heard > self.acknowledged {
            self.acknowledged = self.heard;
            wire::encode::frame(&mut self.outbox, &Frame::Ack(Ack::Through(self.heard)), Sequence::default());
            ledger.acknowledged(self.index, self.heard, now);
        }
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let mut written = 0;
        while written < self.outbox.len() {
            match stream.write(&self.outbox[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What a dead daemon does not take is seen when it is read from.
                Err(_) => break,
            }
        }
        self.outbox.drain(..written);
    }

    /// Reads what has come. Whether the connection still is.
    pub(crate) fn hear(&mut self, ledger: &mut Ledger, dice: &mut Dice, now: Micros) -> bool {
        let mut chunk = [0; 65_536];
        let mut empty = true;
        let Some(stream) = &mut self.stream else { return false };
        let gone = match stream.read(&mut chunk) {
            Ok(0) => true,
            Ok(count) => {
                self.inbox.extend_from_slice(&chunk[..count]);
                empty = count < chunk.len();
                false
            }
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        let inbox = std::mem::take(&mut self.inbox);
        let used = match self.dialect {
            Dialect::Native => self.hear_native(&inbox, ledger, now),
            Dialect::Json => self.hear_json(&inbox, ledger, now),
        };
        self.inbox = inbox;
        self.inbox.drain(..used);
        if empty {
            self.emptied_at = now;
        }
        if gone {
            self.lose(ledger);
        } else if !dice.one_in(8) {
            self.acknowledge(ledger, now);
        }
        !gone
    }

    fn hear_native(&mut self, inbox: &[u8], ledger: &mut Ledger, now: Micros) -> usize {
        let mut at = 0;
        while let wire::decode::Decoded::Whole { header, frame, length } = wire::decode::frame(&inbox[at..])
            .unwrap_or_else(|corrupt| panic!("{}: the relay wrote what is no frame: {corrupt}", self.name))
        {
            at += length;
            match frame {
                Frame::Deliver(message) => {
                    let fields = message.fields();
                    let redelivered = header.flags & FLAG_REDELIVERED != 0;
                    let (from, sequence) = (fields.from, Some(header.sequence));
                    self.take(&String::from_utf8_lossy(fields.text), from, sequence, redelivered, ledger, now);
                    self.heard = self.heard.max(header.sequence);
                    self.handled = self.handled.max(header.sequence);
                }
                Frame::Receipt(receipts) => {
                    for receipt in receipts {
                        for number in receipt.id.number..receipt.id.number + u64::from(receipt.count) {
                            match receipt.state {
                                ReceiptState::Durable => self.durable(number, ledger, now),
                                ReceiptState::Failed(_) => ledger.failed(Letter { sender: self.index, number }),
                                _ => {}
                            }
                        }
                    }
                }
                Frame::Busy(busy) => self.refused(busy.number, busy.reason.name(), ledger),
                Frame::Error(error) if error.number != 0 => self.refused(error.number, error.code.name(), ledger),
                // RESUME_TOO_OLD, which WELCOME says again; anything fatal is followed by the end of the connection.
                Frame::Error(error) => {
                    assert!(!error.fatal, "{}: {}", self.name, error.message);
                }
                Frame::Ping(payload) => {
                    let pong = Frame::Pong(payload.into_owned().into());
                    wire::encode::frame(&mut self.outbox, &pong, Sequence::default());
                }
                Frame::Welcome(welcome) => {
                    self.token = Some(welcome.resume);
                    let arrival = Arrival {
                        session: welcome.session,
                        resumed: welcome.resumed,
                        asked: self.asked,
                        handled: self.presented,
                        epoch: Some(welcome.epoch),
                        number: welcome.number,
                    };
                    self.welcomed(&arrival, ledger, now);
                }
                _ => {}
            }
        }
        at
    }

    fn hear_json(&mut self, inbox: &[u8], ledger: &mut Ledger, now: Micros) -> usize {
        let mut at = 0;
        while let Some(prefix) = inbox[at..].first_chunk::<4>() {
            let length = u32::from_be_bytes(*prefix) as usize;
            let Some(text) = inbox.get(at + 4..at + 4 + length) else { break };
            at += 4 + length;
            let value: Value = serde_json::from_slice(text).expect("the relay writes JSON");
            let payload = &value["payload"];
            let number = |id: &Value| id.as_str().and_then(|id| id.rsplit_once('/')?.1.parse::<u64>().ok());
            match value["type"].as_str() {
                Some("DELIVER") => {
                    let redelivered = value["delivery"]["redelivered"] == true;
                    let (text, from) = (payload["body"].as_str().unwrap(), value["from"].as_str().unwrap());
                    self.take(text, from.as_bytes(), None, redelivered, ledger, now);
                    let ack = json!({ "ack_id": value["id"], "seq": value["delivery"]["seq"] });
                    self.queue_json(&json!({ "v": 1, "type": "ACK", "id": "ack", "ts": 1, "payload": ack }));
                }
                Some("ACK") => self.durable(number(&payload["ack_id"]).unwrap(), ledger, now),
                Some("BUSY") => {
                    let reason = payload["reason"].as_str().unwrap_or_default();
                    self.refused(number(&payload["replyTo"]).unwrap(), reason, ledger);
                }
                Some("ERROR") => match number(&payload["replyTo"]) {
                    Some(number) => self.refused(number, payload["code"].as_str().unwrap_or_default(), ledger),
                    None => assert_eq!(payload["fatal"], false, "{}: {value}", self.name),
                },
                Some("PING") => self.queue_json(&json!({ "type": "PONG", "id": "pong", "payload": payload })),
                Some("WELCOME") => {
                    self.token_text = payload["resume_token"].as_str().unwrap().to_owned();
                    let hex = payload["session_id"].as_str().unwrap().replace('-', "");
                    let session = Token(u128::from_str_radix(&hex, 16).unwrap().to_be_bytes());
                    // This dialect does not say whether; the ledger compares the sessions.
                    let arrival = Arrival {
                        session,
                        resumed: ledger.is_session_of(self.index, session),
                        asked: self.asked,
                        handled: Sequence::default(),
                        epoch: None,
                        number: 0,
                    };
                    self.welcomed(&arrival, ledger, now);
                }
                _ => {}
            }
        }
        at
    }

    fn welcomed(&mut self, arrival: &Arrival, ledger: &mut Ledger, now: Micros) {
        self.welcome = true;
        ledger.arrived(self.index, arrival, now);
        // Whatever has no outcome is said again, in order and under the same numbers.
        let again: Vec<(u64, Pending)> = self.pending.iter().map(|(number, pending)| (*number, *pending)).collect();
        for (number, pending) in again {
            self.say_as(number, pending, ledger, now);
        }
    }

    fn take(
        &mut self,
        text: &str,
        from: &[u8],
        sequence: Option<Sequence>,
        redelivered: bool,
        ledger: &mut Ledger,
        now: Micros,
    ) {
        let unknown = Letter { sender: usize::MAX, number: u64::MAX };
        let letter = letter_of(text).unwrap_or(unknown);
        let genuine =
            said(self.seed, letter, text).as_deref() == Some(text) && from == name_of(letter.sender).as_bytes();
        ledger.delivered(self.index, &Delivery { letter, sequence, redelivered, genuine, since: self.emptied_at }, now);
    }

    fn durable(&mut self, number: u64, ledger: &mut Ledger, now: Micros) {
        self.pending.remove(&number);
        if ledger.durable(Letter { sender: self.index, number }, now) {
            self.receipts += 1;
        }
    }

    fn refused(&mut self, number: u64, reason: &str, ledger: &mut Ledger) {
        self.busy += 1;
        self.busy_reasons.insert(reason.to_owned());
        self.pending.remove(&number);
        ledger.refused(Letter { sender: self.index, number });
    }
}
