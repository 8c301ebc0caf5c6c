//! JSON frames from a receive buffer to [`Frame`]. Total over arbitrary bytes: no panic, no recursion, memory within a
//! small multiple of the frame.
//!
//! serde_json checks that a frame is JSON; after that it is cut into members where it lies and only what is needed is read.
//! Names are not judged here, except that they must be strings.

use super::text::{self, DEPTH_MAX, Members, Sink, name, number, string, trim};
use super::{DIRECT_CHANNEL, FLAG_NO_TEXT, KIND_IN_DATA, KINDS, PREFIX_BYTES, topic_of_channel};
use crate::base::ids::{Token, number_of_label};
use crate::base::limits::{FRAME_BYTES_MAX, LABEL_BYTES_MAX};
use crate::base::name::topic_of;
use crate::base::{AgentId, MessageId};
use crate::wire::{
    Ack, CAPABILITY_RESUME, Corrupt, Enrol, Frame, Hello, Message, MessageFields, Secret, Text, Topic, Wants, body,
};
use std::borrow::Cow;

/// What the bytes at hand are.
#[derive(Debug)]
pub enum Decoded<'a> {
    /// The start of a frame.
    Partial {
        /// How many bytes, from its start, are needed to go on.
        needed: usize,
    },
    /// A frame.
    Whole {
        /// What it says.
        frame: Frame<'a>,
        /// Bytes it took.
        length: usize,
    },
}

/// Where decoded SENDs are built; one per thread, reused.
#[derive(Default, Debug)]
pub struct Scratch {
    /// The frame's text, when it was not valid UTF-8 and had to be mended.
    mended: String,
    /// Members of the payload on their way into the body.
    data: Vec<u8>,
    /// The archived body.
    body: Vec<u8>,
}

/// Who speaks on a connection that has been welcomed. SENDs become messages from this agent, whatever they claim.
#[derive(Clone, Copy, Debug)]
pub struct Speaker<'s> {
    /// The session's own name.
    pub name: &'s str,
    /// Its number.
    pub agent: AgentId,
    /// The session, and how many SENDs it has made: together they name a SEND that came without an id. Nothing in such a
    /// frame tells a repetition from a second message of the same text, so each is taken as new.
    pub session: Token,
    /// The ordinal of the next SEND.
    pub ordinal: u64,
    /// Milliseconds since 1970, for a SEND that came without `ts`.
    pub wall_ms: u64,
}

/// Requests of 2.x clients that wait for an answer: they are told at once that there is none.
const UNSERVED: [&str; 15] = [
    "SPAWN",
    "RELEASE",
    "SEND_INPUT",
    "SET_MODEL",
    "LIST_WORKERS",
    "STATUS",
    "INBOX",
    "LIST_AGENTS",
    "LIST_CONNECTED_AGENTS",
    "REMOVE_AGENT",
    "HEALTH",
    "METRICS",
    "MESSAGES_QUERY",
    "PROPOSAL_CREATE",
    "VOTE",
];

/// The latest time that JavaScript knows (ECMA-262, time values).
const TIME_MS_MAX: u64 = 8_640_000_000_000_000;

/// Digits of a message id in its textual form.
const MESSAGE_ID_DIGITS: usize = 32;

/// Reads the first frame of `bytes`. `speaker` is `None` until the session is welcomed.
pub fn frame<'a>(
    bytes: &'a [u8],
    speaker: Option<&Speaker<'_>>,
    scratch: &'a mut Scratch,
) -> Result<Decoded<'a>, Corrupt> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Ok(Decoded::Partial { needed: PREFIX_BYTES });
    };
    let announced = u32::from_be_bytes(*prefix) as usize;
    if announced > FRAME_BYTES_MAX {
        return Err(Corrupt::TooLong { length: announced as u64 });
    }
    let length = PREFIX_BYTES + announced;
    let Some(json) = rest.get(..announced) else { return Ok(Decoded::Partial { needed: length }) };
    if let Some(ack) = usual_ack(json) {
        return Ok(Decoded::Whole { frame: Frame::Ack(ack), length });
    }
    let Scratch { mended, data, body } = scratch;
    let json = match std::str::from_utf8(json) {
        Ok(json) => json,
        Err(_) => {
            mended.clear();
            mended.extend(json.utf8_chunks().flat_map(|chunk| {
                let replacement = if chunk.invalid().is_empty() { "" } else { "\u{FFFD}" };
                [chunk.valid(), replacement]
            }));
            mended.as_str()
        }
    };
    text::check(json).map_err(|error| Corrupt::Json(error.to_string()))?;
    let json = trim(json);
    if json == "null" {
        return Err(Corrupt::Json("a frame cannot be null".into()));
    }
    let envelope = Envelope::of(json);
    let frame = envelope.frame(speaker, data, body)?;
    Ok(Decoded::Whole { frame, length })
}

/// An ACK in the one spelling that npm clients of all versions use; half of what they send. Whatever is not letter for
/// letter `{"v":1,"type":"ACK","id":"…","ts":…,"payload":{"ack_id":"…","seq":…}}`, with plain letters and digits in its
/// places, is read as any other frame is.
fn usual_ack(json: &[u8]) -> Option<Ack> {
    let rest = json.strip_prefix(br#"{"v":1,"type":"ACK","id":""#)?;
    let plain = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'-').count();
    let rest = &rest[plain..];
    let rest = digits(rest.strip_prefix(br#"","ts":"#)?)?;
    let rest = rest.strip_prefix(br#","payload":{"ack_id":""#)?;
    let (id, rest) = rest.split_at_checked(MESSAGE_ID_DIGITS)?;
    let rest = digits(rest.strip_prefix(br#"","seq":"#)?)?;
    if rest != b"}}" {
        return None;
    }
    MessageId::parse(std::str::from_utf8(id).ok()?).map(Ack::Message)
}

/// What follows a JSON number without sign, fraction or exponent.
fn digits(text: &[u8]) -> Option<&[u8]> {
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (count == 1 || (count > 1 && text[0] != b'0')).then(|| &text[count..])
}

/// The members that any type of frame may have, each as it stands in the text. Of repeated members the last counts.
/// JSON null is the same as absent.
#[derive(Default)]
struct Envelope<'t> {
    kind: Option<&'t str>,
    id: Option<&'t str>,
    ts: Option<&'t str>,
    to: Option<&'t str>,
    topic: Option<&'t str>,
    payload: Option<&'t str>,
    meta: Option<&'t str>,
}

fn present(value: &str) -> Option<&str> {
    (value != "null").then_some(value)
}

impl<'t> Envelope<'t> {
    fn of(json: &'t str) -> Envelope<'t> {
        let mut envelope = Envelope::default();
        for (key, value) in Members::of(json) {
            let place = match name(key).as_ref() {
                "type" => &mut envelope.kind,
                "id" => &mut envelope.id,
                "ts" => &mut envelope.ts,
                "to" => &mut envelope.to,
                "topic" => &mut envelope.topic,
                "payload" => &mut envelope.payload,
                "payload_meta" => &mut envelope.meta,
                _ => continue,
            };
            *place = present(value);
        }
        envelope
    }

    fn frame(
        &self,
        speaker: Option<&Speaker<'_>>,
        data: &'t mut Vec<u8>,
        body: &'t mut Vec<u8>,
    ) -> Result<Frame<'t>, Corrupt> {
        let Some(kind) = self.kind.and_then(string) else { return Ok(Frame::Ignored) };
        let payload = self.payload.unwrap_or("");
        Ok(match kind.as_ref() {
            "SEND" if self.payload.is_none() => return Err(Corrupt::Body("SEND")),
            "HELLO" if self.payload.is_none() => return Err(Corrupt::Body("HELLO")),
            "CHANNEL_MESSAGE" if self.payload.is_none() => return Err(Corrupt::Body("CHANNEL_MESSAGE")),
            "SEND" | "CHANNEL_MESSAGE" => {
                let Some(speaker) = speaker else { return Ok(self.malformed("Not in ACTIVE state: say HELLO first")) };
                let parts = if kind == "SEND" { self.send(data) } else { self.channel_message(speaker, data) };
                match parts {
                    Ok(parts) => self.message(parts, speaker, data, body)?,
                    Err(problem) => self.malformed(problem),
                }
            }
            "ACK" => Frame::Ack(
                member(payload, "ack_id")
                    .and_then(string)
                    .and_then(|id| MessageId::parse(&id))
                    .map_or(Ack::Unknown, Ack::Message),
            ),
            "PING" => Frame::Ping(nonce(payload)),
            "PONG" => Frame::Pong(nonce(payload)),
            "HELLO" => self.hello(payload),
            "BYE" => Frame::Bye,
            "SUBSCRIBE" | "UNSUBSCRIBE" => match self.topic.map(string) {
                None => Frame::Ignored,
                Some(None) => self.malformed("topic must be a string"),
                Some(Some(topic)) if topic.is_empty() => Frame::Ignored,
                Some(Some(topic)) => {
                    let topic = Topic { name: without_hash(topic), channel: false };
                    if kind == "SUBSCRIBE" { Frame::Subscribe(topic) } else { Frame::Unsubscribe(topic) }
                }
            },
            "CHANNEL_JOIN" | "CHANNEL_LEAVE" => self.membership(kind == "CHANNEL_JOIN", payload, speaker),
            other if UNSERVED.contains(&other) => Frame::Unserved { label: self.label(), kind },
            _ => Frame::Ignored,
        })
    }

    /// The frame's own id, for answers about it; a number stands as its digits.
    fn label(&self) -> Text<'t> {
        let Some(id) = self.id else { return Cow::Borrowed("") };
        let label = string(id).unwrap_or(Cow::Borrowed(id));
        if label.len() <= LABEL_BYTES_MAX {
            return label;
        }
        let end = label.floor_char_boundary(LABEL_BYTES_MAX);
        match label {
            Cow::Borrowed(label) => Cow::Borrowed(&label[..end]),
            Cow::Owned(mut label) => {
                label.truncate(end);
                Cow::Owned(label)
            }
        }
    }

    fn malformed(&self, problem: &'static str) -> Frame<'t> {
        Frame::Malformed { label: self.label(), number: 0, problem: Cow::Borrowed(problem) }
    }

    fn hello(&self, payload: &'t str) -> Frame<'t> {
        if !payload.starts_with('{') {
            return self.malformed("payload must be an object");
        }
        let mut hello = Hello::default();
        for (key, value) in Members::of(payload) {
            let Some(value) = present(value) else { continue };
            let place = match name(key).as_ref() {
                "agent" => {
                    let Some(name) = string(value) else { return self.malformed("payload.agent must be a string") };
                    hello.claimed_name = into_bytes(name);
                    continue;
                }
                "capabilities" => {
                    if member(value, "resume") == Some("true") {
                        hello.capabilities |= CAPABILITY_RESUME;
                    }
                    // A float to integer cast saturates, so any number is a bound.
                    hello.in_flight_max = member(value, "max_inflight").and_then(number).unwrap_or(0.0) as u32;
                    continue;
                }
                "session" => {
                    let token = member(value, "resume_token").filter(|token| *token != r#""""#);
                    hello.resume_presented = token.is_some();
                    hello.resume = token.and_then(string).and_then(|token| Token::parse(token.as_bytes()));
                    continue;
                }
                "auth" => {
                    hello.auth_type = member(value, "type").and_then(string).unwrap_or_default();
                    hello.credential = Secret::new(member(value, "credential").and_then(string).unwrap_or_default());
                    continue;
                }
                "cli" => &mut hello.cli,
                "program" => &mut hello.program,
                "model" => &mut hello.model,
                "task" => &mut hello.task,
                "workingDirectory" => &mut hello.working_directory,
                _ => continue,
            };
            *place = string(value).unwrap_or_default();
        }
        Frame::Hello(Box::new(hello))
    }

    fn membership(&self, join: bool, payload: &'t str, speaker: Option<&Speaker<'_>>) -> Frame<'t> {
        let Some(channel) = member(payload, "channel").and_then(string).filter(|channel| !channel.is_empty()) else {
            return self.malformed("payload.channel must be a string, for instance \"#general\"");
        };
        let member = member(payload, "member").filter(|member| *member != r#""""#);
        let Some(member) = member.map_or(Some(Cow::Borrowed("")), string) else {
            return self.malformed("payload.member must be a string, the name of an agent");
        };
        let own = member.is_empty() || speaker.is_some_and(|own| own.name == member);
        let name = match channel {
            Cow::Borrowed(channel) => into_bytes(topic_of_channel(channel)),
            Cow::Owned(channel) => Cow::Owned(topic_of_channel(&channel).into_owned().into_bytes()),
        };
        let topic = Topic { name, channel: true };
        match (own, join) {
            (true, true) => Frame::Subscribe(topic),
            (true, false) => Frame::Unsubscribe(topic),
            (false, _) => Frame::Enrol(Box::new(Enrol { topic, member, join, label: self.label() })),
        }
    }

    /// A SEND's destination and payload.
    fn send(&self, data: &mut Vec<u8>) -> Result<Parts<'t>, &'static str> {
        let to = self.to.map_or(Ok(Cow::Borrowed("")), |to| string(to).ok_or("to must be a string"))?;
        let topic = self.topic.map_or(Ok(Cow::Borrowed("")), |topic| string(topic).ok_or("topic must be a string"))?;
        if to.is_empty() {
            return Err("to is missing: name an agent, \"*\" for all, or \"#topic\"; a topic alone reaches nobody");
        }
        let mut parts = self.payload_parts(data, None)?;
        let is_topic = to.starts_with('#');
        (parts.to, parts.topic) =
            if is_topic { (Cow::Borrowed(&b"*"[..]), without_hash(to)) } else { (into_bytes(to), without_hash(topic)) };
        if is_topic && parts.topic.is_empty() {
            return Err("to is \"#\": the topic's name is missing");
        }
        Ok(parts)
    }

    /// A CHANNEL_MESSAGE is a SEND to the channel's topic, or to the other of two agents.
    fn channel_message(&self, speaker: &Speaker<'_>, data: &mut Vec<u8>) -> Result<Parts<'t>, &'static str> {
        let channel = member(self.payload.unwrap_or(""), "channel").and_then(string).unwrap_or_default();
        let topic = topic_of_channel(&channel);
        if topic.is_empty() {
            return Err("payload.channel must be a string, for instance \"#general\"");
        }
        // What recipients are shown is the sender's spelling.
        let spelled = (channel.strip_prefix('#').unwrap_or(&channel) != topic).then_some(channel.as_ref());
        let mut parts = self.payload_parts(data, Some(spelled))?;
        parts.to = match topic.strip_prefix(DIRECT_CHANNEL).and_then(|pair| pair.split_once(':')) {
            Some((one, other)) if !other.contains(':') => {
                let own = |name: &str| name.to_lowercase() == speaker.name.to_lowercase();
                let peer = match (one == speaker.name, other == speaker.name) {
                    (true, _) => other,
                    (_, true) => one,
                    _ if own(one) => other,
                    _ if own(other) => one,
                    _ => return Err("this channel is between two other agents"),
                };
                Cow::Owned(peer.as_bytes().to_vec())
            }
            _ => Cow::Borrowed(&b"*"[..]),
        };
        parts.topic = Cow::Owned(topic.into_owned().into_bytes());
        Ok(parts)
    }

    /// What both kinds of payload have in common. `channel`: it is a channel's, whose name is dropped from the members
    /// or, where its spelling must be kept, replaced by it.
    fn payload_parts(&self, data: &mut Vec<u8>, channel: Option<Option<&str>>) -> Result<Parts<'t>, &'static str> {
        let payload = self.payload.unwrap_or("");
        if !payload.starts_with('{') {
            return Err("payload must be an object");
        }
        data.clear();
        let mut parts = Parts { kind: KIND_IN_DATA, text: None, ..Parts::default() };
        if let Some(spelled) = channel {
            parts.kind = 0;
            if let Some(spelled) = spelled {
                data.put(b"{\"channel\":");
                data.put_string(spelled.as_bytes());
            }
        }
        for (key, value) in Members::of(payload) {
            match name(key).as_ref() {
                "body" => {
                    let text = present(value).map(|value| string(value).ok_or("payload.body must be a string"));
                    parts.text = text.transpose()?;
                    continue;
                }
                "thread" => {
                    if let Some(thread) = string(value).filter(|thread| !thread.is_empty()) {
                        parts.thread = thread;
                        continue;
                    }
                    parts.thread = Cow::Borrowed("");
                }
                "kind" => {
                    parts.kind = KIND_IN_DATA;
                    if channel.is_none()
                        && let Some(code) = string(value).and_then(|kind| KINDS.iter().position(|name| *name == kind))
                    {
                        parts.kind = code as u8;
                        continue;
                    }
                }
                "channel" if channel.is_some() => continue,
                _ => {}
            }
            data.put(if data.is_empty() { b"{" } else { b"," });
            data.put(key.as_bytes());
            data.put(b":");
            data.put(value.as_bytes());
            if text::too_deep(value, DEPTH_MAX) {
                return Err("payload is nested too deeply: at most 128 levels");
            }
        }
        if !data.is_empty() {
            data.put(b"}");
        }
        parts.meta = self.meta.filter(|meta| meta.starts_with('{')).unwrap_or("");
        if text::too_deep(parts.meta, DEPTH_MAX) {
            return Err("payload_meta is nested too deeply: at most 128 levels");
        }
        Ok(parts)
    }

    /// The message as every other one: an archived body.
    fn message(
        &self,
        parts: Parts<'t>,
        speaker: &Speaker<'_>,
        data: &[u8],
        body: &'t mut Vec<u8>,
    ) -> Result<Frame<'t>, Corrupt> {
        let is_long = self.id.is_some_and(|id| id.len() > LABEL_BYTES_MAX)
            && self.id.and_then(string).is_none_or(|id| id.len() > LABEL_BYTES_MAX);
        if is_long {
            return Ok(self.malformed("id is longer than 256 bytes"));
        }
        let mut label = self.label();
        if label.is_empty() {
            label = Cow::Owned(format!("{}:{}", speaker.session, speaker.ordinal));
        }
        let mut fields = MessageFields {
            id: MessageId { sender: speaker.agent, number: number_of_label(label.as_bytes()) },
            // A cast from a float saturates; what is not a time is the relay's.
            sent_at_ms: self.ts.and_then(number).map_or(speaker.wall_ms, |ts| (ts as u64).min(TIME_MS_MAX)),
            kind: parts.kind,
            flags: if parts.text.is_none() { FLAG_NO_TEXT } else { 0 },
            from: speaker.name.as_bytes(),
            to: &parts.to,
            topic: &parts.topic,
            thread: parts.thread.as_bytes(),
            label: label.as_bytes(),
            text: parts.text.as_deref().unwrap_or("").as_bytes(),
            data,
            meta: parts.meta.as_bytes(),
            ..MessageFields::default()
        };
        for (key, value) in Members::of(parts.meta) {
            match name(key).as_ref() {
                // Rounded up, so that a fraction of a millisecond is not "no end"; a negative time is none.
                "ttl_ms" => fields.ttl_ms = number(value).map_or(0, |ms| ms.ceil() as u32),
                "importance" => {
                    fields.importance =
                        number(value).map_or(0, |importance| importance.clamp(0.0, 100.0).round() as u8);
                }
                "requires_ack" => fields.wants = if value == "true" { Wants::DURABLE } else { Wants::default() },
                _ => {}
            }
        }
        body.clear();
        body::append(&fields, body);
        let checksum = crc32fast::hash(body);
        Message::check(body, checksum).map(Frame::Send).ok_or(Corrupt::Body("SEND"))
    }
}

/// What a SEND or CHANNEL_MESSAGE is made of.
#[derive(Default)]
struct Parts<'t> {
    to: Cow<'t, [u8]>,
    topic: Cow<'t, [u8]>,
    kind: u8,
    text: Option<Text<'t>>,
    thread: Text<'t>,
    meta: &'t str,
}

/// A member of an object; the last of that name, and `None` for JSON null.
fn member<'t>(object: &'t str, wanted: &str) -> Option<&'t str> {
    Members::of(object).filter(|(key, _)| name(key) == wanted).last().and_then(|(_, value)| present(value))
}

fn nonce(payload: &str) -> Cow<'_, [u8]> {
    member(payload, "nonce").and_then(string).map(into_bytes).unwrap_or_default()
}

fn into_bytes(text: Text<'_>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

fn without_hash(topic: Text<'_>) -> Cow<'_, [u8]> {
    match topic {
        Cow::Borrowed(topic) => Cow::Borrowed(topic_of(topic.as_bytes())),
        Cow::Owned(topic) => Cow::Owned(topic_of(topic.as_bytes()).to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(json: &str) -> (Option<Ack>, Option<Ack>) {
        let slow = match Envelope::of(json).frame(None, &mut Vec::new(), &mut Vec::new()) {
            Ok(Frame::Ack(ack)) => Some(ack),
            _ => None,
        };
        (usual_ack(json.as_bytes()), slow)
    }

    #[test]
    fn the_usual_ack_is_read_as_the_general_way_reads_it_and_nothing_else_is_taken_for_one() {
        let id = MessageId { sender: AgentId::of(b"ann"), number: 7 };
        let ack = |id: &str, ts: &str, seq: &str| {
            format!(r#"{{"v":1,"type":"ACK","id":"m-0-x","ts":{ts},"payload":{{"ack_id":"{id}","seq":{seq}}}}}"#)
        };
        let usual = ack(&id.to_string(), "1766966970000", "12");
        assert_eq!(both(&usual), (Some(Ack::Message(id)), Some(Ack::Message(id))));
        for other in [
            usual.replace("m-0-x", r"m\u0030"),
            usual.replace("}}", "} }"),
            usual.replace("}}", ",\"sack\":[]}}"),
            usual.replace("\"v\":1", "\"v\":2"),
            usual.replace("\"seq\":12", "\"seq\":"),
            ack(&id.to_string(), "01", "1"),
            ack(&id.to_string(), "-1", "1"),
            ack("mwqa2ih5-0000-jugwpi", "1", "1"),
            format!("{usual} "),
        ] {
            assert_eq!(both(&other).0, None, "{other}");
        }
        for end in 0..usual.len() {
            assert_eq!(usual_ack(&usual.as_bytes()[..end]), None);
        }
    }
}
