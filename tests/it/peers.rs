//! Connections whose every byte the test sees: one for each dialect.

use crate::harness::PATIENCE;
use agent_relay::base::ids::Token;
use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::client::{Client, Incoming, Received};
use agent_relay::wire::{self, Ack, CAPABILITIES, Frame, Header, Hello, Kind, MessageFields, Receipt, Wants};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// A frame of the relay's, owned.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub header: Header,
    /// The body as it lay on the wire.
    pub body: Vec<u8>,
    pub frame: Owned,
}

#[derive(Debug, Clone)]
pub(crate) enum Owned {
    Deliver { id: MessageId, text: String },
    Receipts(Vec<Receipt>),
    Busy { number: u64, reason: &'static str, retry_after_ms: u32 },
    Error { code: &'static str, fatal: bool, message: String, number: u64, outcome: Option<&'static str> },
    Bye,
    Pong,
    Welcome(Welcome),
    Other,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Welcome {
    pub session: Token,
    pub resume: Token,
    pub resumed: bool,
    pub number: u64,
}

/// What comes until the connection ends: also one that the relay had not accepted, or whose words it has not read, which the
/// kernel ends with a reset.
pub(crate) fn ends(stream: &mut UnixStream) -> Vec<u8> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => rest,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => rest,
        Err(error) => panic!("not closed: {error}"),
    }
}

pub(crate) struct NativePeer {
    pub stream: UnixStream,
    pub buffer: Vec<u8>,
    pub name: String,
    pub welcome: Welcome,
    pub number: u64,
}

impl NativePeer {
    /// Connects and expects to be welcome.
    pub(crate) fn connect(stream: UnixStream, name: &str) -> NativePeer {
        let (mut peer, heard) = NativePeer::hello(stream, name, None, Sequence::default());
        let Owned::Welcome(welcome) = heard.frame else { panic!("{name} is not welcome: {heard:?}") };
        peer.welcome = welcome;
        peer.number = welcome.number;
        peer
    }

    /// Resumes with `token`; what the relay said before WELCOME comes back with it.
    pub(crate) fn resume(stream: UnixStream, name: &str, token: Token, handled: Sequence) -> (NativePeer, Vec<Heard>) {
        let (mut peer, mut heard) = NativePeer::hello(stream, name, Some(token), handled);
        let mut before = Vec::new();
        loop {
            match heard.frame {
                Owned::Welcome(welcome) => {
                    peer.welcome = welcome;
                    peer.number = welcome.number;
                    return (peer, before);
                }
                _ => before.push(heard),
            }
            heard = peer.hear().expect("a WELCOME");
        }
    }

    /// Has said nothing yet.
    pub(crate) fn bare(stream: UnixStream, name: &str) -> NativePeer {
        let none = Welcome { session: Token::default(), resume: Token::default(), resumed: false, number: 0 };
        NativePeer { stream, buffer: Vec::new(), name: name.to_owned(), welcome: none, number: 0 }
    }

    /// Hears the answer to HELLO: WELCOME, or else a fatal ERROR.
    pub(crate) fn welcomed(&mut self) -> bool {
        match self.hear().map(|heard| heard.frame) {
            Some(Owned::Welcome(welcome)) => {
                self.welcome = welcome;
                self.number = welcome.number;
                true
            }
            Some(Owned::Error { fatal: true, .. }) => false,
            other => panic!("{}: neither WELCOME nor a fatal ERROR: {other:?}", self.name),
        }
    }

    /// Says HELLO; gives the first frame that comes back.
    pub(crate) fn hello(
        stream: UnixStream,
        name: &str,
        resume: Option<Token>,
        handled: Sequence,
    ) -> (NativePeer, Heard) {
        let mut peer = NativePeer::bare(stream, name);
        let hello = Hello {
            claimed_name: name.as_bytes().into(),
            capabilities: CAPABILITIES,
            resume,
            resume_presented: resume.is_some(),
            handled,
            ..Hello::default()
        };
        peer.say(&Frame::Hello(Box::new(hello)));
        let heard = peer.hear().expect("an answer to HELLO");
        (peer, heard)
    }

    pub(crate) fn say(&mut self, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        wire::encode::frame(&mut bytes, frame, Sequence::default());
        self.stream.write_all(&bytes).unwrap();
    }

    pub(crate) fn fields<'a>(&'a self, number: u64, to: &'a str, text: &'a str) -> MessageFields<'a> {
        let id = MessageId { sender: AgentId::of(self.name.as_bytes()), number };
        let (from, to, text) = (self.name.as_bytes(), to.as_bytes(), text.as_bytes());
        MessageFields { id, from, to, text, importance: 50, ..MessageFields::default() }
    }

    /// The bytes of the next SEND.
    pub(crate) fn encode(&mut self, to: &str, text: &str, wants: Wants) -> Vec<u8> {
        self.number += 1;
        let fields = MessageFields { wants, ..self.fields(self.number, to, text) };
        let mut bytes = Vec::new();
        wire::encode::send(&mut bytes, Kind::Send, &fields, Sequence::default());
        bytes
    }

    pub(crate) fn send(&mut self, to: &str, text: &str, wants: Wants) -> u64 {
        let bytes = self.encode(to, text, wants);
        self.stream.write_all(&bytes).unwrap();
        self.number
    }

    pub(crate) fn acknowledge(&mut self, through: Sequence) {
        self.say(&Frame::Ack(Ack::Through(through)));
    }

    /// The next frame, PINGs answered; none when the relay has closed.
    pub(crate) fn hear(&mut self) -> Option<Heard> {
        loop {
            if let Some((heard, length, ping)) = self.whole() {
                self.buffer.drain(..length);
                let Some(payload) = ping else { return Some(heard) };
                self.say(&Frame::Pong(payload.into()));
                continue;
            }
            let mut chunk = [0; 65_536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(length) => self.buffer.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("{}: nothing came: {error}", self.name),
            }
        }
    }

    fn whole(&self) -> Option<(Heard, usize, Option<Vec<u8>>)> {
        let wire::decode::Decoded::Whole { header, frame, length } = wire::decode::frame(&self.buffer).unwrap() else {
            return None;
        };
        let body = self.buffer[wire::HEADER_BYTES..length].to_vec();
        let mut ping = None;
        let frame = match frame {
            Frame::Deliver(message) => {
                Owned::Deliver { id: message.id(), text: String::from_utf8_lossy(message.fields().text).into_owned() }
            }
            Frame::Receipt(receipts) => Owned::Receipts(receipts),
            Frame::Busy(busy) => {
                Owned::Busy { number: busy.number, reason: busy.reason.name(), retry_after_ms: busy.retry_after_ms }
            }
            Frame::Error(error) => Owned::Error {
                code: error.code.name(),
                fatal: error.fatal,
                message: error.message.into_owned(),
                number: error.number,
                outcome: error.outcome.map(|reason| reason.name()),
            },
            Frame::Bye => Owned::Bye,
            Frame::Pong(_) => Owned::Pong,
            Frame::Ping(payload) => {
                ping = Some(payload.into_owned());
                Owned::Other
            }
            Frame::Welcome(welcome) => Owned::Welcome(Welcome {
                session: welcome.session,
                resume: welcome.resume,
                resumed: welcome.resumed,
                number: welcome.number,
            }),
            _ => Owned::Other,
        };
        Some((Heard { header, body, frame }, length, ping))
    }

    /// The next DELIVER; anything else fails the test.
    pub(crate) fn delivery(&mut self) -> (Heard, String) {
        let heard = self.hear().unwrap_or_else(|| panic!("{}: closed instead of a DELIVER", self.name));
        let Owned::Deliver { text, .. } = &heard.frame else { panic!("{}: not a DELIVER: {heard:?}", self.name) };
        let text = text.clone();
        (heard, text)
    }

    /// Everything until the relay closes.
    pub(crate) fn rest(&mut self) -> Vec<Owned> {
        std::iter::from_fn(|| self.hear().map(|heard| heard.frame)).collect()
    }

    /// After this, the relay has read all that was written here before.
    pub(crate) fn barrier(&mut self) -> Vec<Heard> {
        self.say(&Frame::Ping(b"barrier"[..].into()));
        let mut before = Vec::new();
        loop {
            let heard = self.hear().expect("a PONG");
            if matches!(heard.frame, Owned::Pong) {
                return before;
            }
            before.push(heard);
        }
    }
}

pub(crate) struct JsonPeer {
    pub stream: UnixStream,
    buffer: Vec<u8>,
    pub name: String,
    pub welcome: Value,
    sent: u64,
}

/// One JSON frame's bytes.
pub(crate) fn json_frame(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

impl JsonPeer {
    pub(crate) fn bare(stream: UnixStream, name: &str) -> JsonPeer {
        JsonPeer { stream, buffer: Vec::new(), name: name.to_owned(), welcome: Value::Null, sent: 0 }
    }

    pub(crate) fn connect(stream: UnixStream, name: &str) -> JsonPeer {
        let mut peer = JsonPeer::bare(stream, name);
        peer.hello(None);
        peer.welcome = peer.hear().unwrap();
        assert_eq!(peer.welcome["type"], "WELCOME", "{}", peer.welcome);
        peer
    }

    pub(crate) fn hello(&mut self, resume: Option<&str>) {
        let mut hello = json!({
            "v": 1, "type": "HELLO", "id": "hello", "ts": 1,
            "payload": { "agent": self.name, "cli": "test",
                "capabilities": { "ack": true, "resume": true, "max_inflight": 256, "supports_topics": true } },
        });
        if let Some(token) = resume {
            hello["payload"]["session"] = json!({ "resume_token": token });
        }
        self.say(&hello);
    }

    pub(crate) fn say(&mut self, value: &Value) {
        self.say_text(&value.to_string());
    }

    pub(crate) fn say_text(&mut self, text: &str) {
        self.stream.write_all(&json_frame(text)).unwrap();
    }

    /// A plain message; gives its id.
    pub(crate) fn send(&mut self, to: &str, body: &str) -> String {
        self.sent += 1;
        let id = format!("{}-{}", self.name, self.sent);
        let payload = json!({ "kind": "message", "body": body });
        self.say(&json!({ "v": 1, "type": "SEND", "id": id, "ts": 1, "to": to, "payload": payload }));
        id
    }

    /// The next frame's text, PINGs included; none when the relay has closed.
    pub(crate) fn hear_text(&mut self) -> Option<String> {
        loop {
            if let Some(prefix) = self.buffer.first_chunk::<4>() {
                let end = 4 + u32::from_be_bytes(*prefix) as usize;
                assert!(end <= 4 + 1024 * 1024, "{}: the relay never sends more than 1 MiB", self.name);
                if self.buffer.len() >= end {
                    let text = String::from_utf8(self.buffer[4..end].to_vec()).unwrap();
                    self.buffer.drain(..end);
                    return Some(text);
                }
            }
            let mut chunk = [0; 65_536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(length) => self.buffer.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("{}: nothing came: {error}", self.name),
            }
        }
    }

    /// The next frame, PINGs answered.
    pub(crate) fn hear(&mut self) -> Option<Value> {
        loop {
            let value: Value = serde_json::from_str(&self.hear_text()?).unwrap();
            if value["type"] != "PING" {
                return Some(value);
            }
            self.say(&json!({ "type": "PONG", "id": "pong", "payload": value["payload"] }));
        }
    }

    /// The next frame, of this type; a DELIVER is acknowledged.
    pub(crate) fn hear_kind(&mut self, kind: &str) -> Value {
        let value = self.hear().unwrap_or_else(|| panic!("{}: closed instead of a {kind}", self.name));
        assert_eq!(value["type"], kind, "{}: {value}", self.name);
        if kind == "DELIVER" {
            self.acknowledge(&value);
        }
        value
    }

    pub(crate) fn acknowledge(&mut self, delivery: &Value) {
        let payload = json!({ "ack_id": delivery["id"], "seq": delivery["delivery"]["seq"] });
        self.say(&json!({ "v": 1, "type": "ACK", "id": "ack", "ts": 1, "payload": payload }));
    }

    /// The next DELIVER's body.
    pub(crate) fn body(&mut self) -> String {
        self.hear_kind("DELIVER")["payload"]["body"].as_str().unwrap().to_owned()
    }

    /// After this, the relay has read all that was written here before; gives what came until then.
    pub(crate) fn barrier(&mut self) -> Vec<Value> {
        self.say(&json!({ "type": "PING", "id": "barrier", "payload": { "nonce": "barrier" } }));
        let mut before = Vec::new();
        loop {
            let value = self.hear().expect("a PONG");
            if value["type"] == "PONG" {
                return before;
            }
            before.push(value);
        }
    }

    pub(crate) fn rest(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.hear()).collect()
    }

    pub(crate) fn session(&self) -> &str {
        self.welcome["payload"]["session_id"].as_str().unwrap()
    }

    pub(crate) fn token(&self) -> String {
        self.welcome["payload"]["resume_token"].as_str().unwrap().to_owned()
    }
}

/// The next thing other than silence.
pub(crate) fn incoming(client: &mut Client) -> Incoming {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(incoming) = client.next(PATIENCE).unwrap() {
            return incoming;
        }
        assert!(Instant::now() < deadline, "nothing came");
    }
}

/// The next message; anything else fails the test.
pub(crate) fn message(client: &mut Client) -> Received {
    match incoming(client) {
        Incoming::Message(message) => message,
        other => panic!("not a message: {other:?}"),
    }
}

pub(crate) fn text(client: &mut Client) -> String {
    message(client).text().into_owned()
}
