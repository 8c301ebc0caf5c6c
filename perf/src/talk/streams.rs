//! Redis streams in RESP2: XADD, whose answer comes after the flush where Redis flushes always; XREADGROUP and XACK at the
//! other end. A message counts when it arrives, or when XADD is answered.
#![forbid(unsafe_code)]

use super::resp::skip;
use super::{Dialect, Heard, Part, Target, blank_body, decimal, line_end, name, read_stamp, write_stamp};
use std::collections::VecDeque;

/// One Redis client: it adds to its target's stream, or reads its own.
pub struct Streams {
    part: Part,
    template: Vec<u8>,
    body_at: usize,
    /// Stamps of what was added and not answered.
    in_doubt: VecDeque<u64>,
    /// The command that asks for the next messages.
    read: Vec<u8>,
}

/// Messages that one XREADGROUP may bring.
const READ_MAX: &str = "1000";

impl Dialect for Streams {
    fn new(part: Part) -> Streams {
        let mut streams =
            Streams { part, template: Vec::new(), body_at: 0, in_doubt: VecDeque::new(), read: Vec::new() };
        streams.address(part.target);
        streams
    }

    fn introduce(&mut self, out: &mut Vec<u8>) -> bool {
        let own = name(self.part.number);
        if self.part.target == Target::Nobody {
            command(&["XGROUP", "CREATE", &own, "readers", "$", "MKSTREAM"], out);
            command(
                &["XREADGROUP", "GROUP", "readers", "one", "COUNT", READ_MAX, "BLOCK", "0", "STREAMS", &own, ">"],
                &mut self.read,
            );
        }
        command(&["PING"], out);
        out.extend_from_slice(&self.read);
        true
    }

    fn address(&mut self, target: Target) {
        let Target::Agent(number) = target else { return };
        let body = blank_body(self.part.body_bytes);
        let text = String::from_utf8_lossy(&body);
        self.template.clear();
        command(&["XADD", &name(number), "*", "b", &text], &mut self.template);
        self.body_at = self.template.len() - 2 - body.len();
    }

    fn speak(&mut self, stamp: u64, out: &mut Vec<u8>) {
        if self.part.durable {
            self.in_doubt.push_back(stamp);
        }
        write_stamp(stamp, &mut self.template[self.body_at..]);
        out.extend_from_slice(&self.template);
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>, heard: &mut Heard) -> Result<usize, String> {
        let mut used = 0;
        while let Some(end) = skip(bytes, used, 0)? {
            let value = &bytes[used..end];
            match value.first() {
                Some(b'-') => return Err(format!("redis said {}", String::from_utf8_lossy(value))),
                Some(b'+') if value.starts_with(b"+PONG") => heard.ready = true,
                Some(b'$') if self.part.durable => {
                    heard.stamps.push(self.in_doubt.pop_front().ok_or("an answer came to what was not asked")?);
                }
                Some(b'*') => self.read(value, out, heard)?,
                _ => {}
            }
            used = end;
        }
        Ok(used)
    }
}

impl Streams {
    /// Takes what XREADGROUP brought, acknowledges it, and asks for more.
    fn read(&self, value: &[u8], out: &mut Vec<u8>, heard: &mut Heard) -> Result<(), String> {
        // The stream's name, then id, field and body of each message.
        let texts = texts(value).ok_or("a broken answer to XREADGROUP arrived")?;
        let messages = texts.get(1..).unwrap_or_default().chunks_exact(3);
        let own = name(self.part.number);
        out.extend_from_slice(format!("*{}\r\n", 3 + messages.len()).as_bytes());
        for word in [&b"XACK"[..], own.as_bytes(), b"readers"].into_iter().chain(messages.clone().map(|one| one[0])) {
            text(word, out);
        }
        out.extend_from_slice(&self.read);
        for message in messages {
            let stamp = read_stamp(message[2])?;
            if !self.part.durable {
                heard.stamps.push(stamp);
            }
        }
        Ok(())
    }
}

/// Every text of a whole value, in order.
fn texts(value: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < value.len() {
        let line = line_end(value, at)?;
        let next = line + 2;
        if value[at] == b'$' {
            let length = decimal(&value[at + 1..line])?;
            found.push(value.get(next..next + length)?);
            at = next + length + 2;
        } else {
            at = next;
        }
    }
    Some(found)
}

fn command(words: &[&str], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        text(word.as_bytes(), out);
    }
}

fn text(word: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}
