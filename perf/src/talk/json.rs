//! The JSON wire of `agent-relay`: the relay's second dialect, and the npm daemon's only one.
//!
//! As npm clients do, each DELIVER is acknowledged by an ACK of its own. Places of members are remembered from frame to
//! frame and checked, so that the generator does not parse JSON per message.
#![forbid(unsafe_code)]

use super::{Dialect, Heard, Part, STAMP_BYTES, TOPIC, Target, blank_body, find, name, read_stamp, write_stamp};

/// One npm-like client.
pub struct Json {
    part: Part,
    template: Vec<u8>,
    id_at: usize,
    stamp_at: usize,
    number: u64,
    /// Where the last DELIVER had its body's text.
    body_at: usize,
}

impl Dialect for Json {
    fn new(part: Part) -> Json {
        let mut json = Json { part, template: Vec::new(), id_at: 0, stamp_at: 0, number: 0, body_at: 0 };
        json.address(part.target);
        json
    }

    fn introduce(&mut self, out: &mut Vec<u8>) -> bool {
        let number = self.part.number;
        frame(
            format!(
                r#"{{"v":1,"type":"HELLO","id":"hello-{number}","ts":1766966970000,"payload":{{"agent":"{}","cli":"other","capabilities":{{"ack":true,"resume":false,"max_inflight":256,"supports_topics":true}}}}}}"#,
                name(number)
            )
            .as_bytes(),
            out,
        );
        if self.part.listens {
            let text = format!(
                r#"{{"v":1,"type":"SUBSCRIBE","id":"subscribe-{number}","ts":1766966970000,"topic":"{TOPIC}","payload":{{}}}}"#
            );
            frame(text.as_bytes(), out);
        }
        true
    }

    fn address(&mut self, target: Target) {
        let to = match target {
            Target::Nobody => return,
            Target::Agent(number) => format!(r#""to":"{}""#, name(number)),
            Target::Topic => format!(r#""to":"*","topic":"{TOPIC}""#),
        };
        let body = String::from_utf8_lossy(&blank_body(self.part.body_bytes)).into_owned();
        let head = format!(r#"{{"v":1,"type":"SEND","id":"{:08x}-"#, self.part.number);
        let middle = format!(r#"{:016x}","ts":1766966970000,{to},"payload":{{"kind":"message","body":""#, 0);
        self.template.clear();
        frame(format!(r#"{head}{middle}{body}"}}}}"#).as_bytes(), &mut self.template);
        self.id_at = 4 + head.len();
        self.stamp_at = 4 + head.len() + middle.len();
    }

    fn speak(&mut self, stamp: u64, out: &mut Vec<u8>) {
        self.number += 1;
        // Both are sixteen hexadecimal digits.
        write_stamp(self.number, &mut self.template[self.id_at..]);
        write_stamp(stamp, &mut self.template[self.stamp_at..]);
        out.extend_from_slice(&self.template);
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>, heard: &mut Heard) -> Result<usize, String> {
        let mut used = 0;
        while let Some(head) = bytes[used..].first_chunk::<4>() {
            let start = used + 4;
            let Some(text) = bytes.get(start..start + u32::from_be_bytes(*head) as usize) else { break };
            let kind = member(text, b"\"type\":\"").ok_or("a frame without a type arrived")?;
            match kind {
                b"DELIVER" => {
                    heard.stamps.push(self.stamp_of(text)?);
                    acknowledge(text, out)?;
                }
                b"WELCOME" => heard.ready = true,
                b"PING" => {
                    let payload = find(text, b"\"payload\":").ok_or("a PING without a payload arrived")?;
                    let head = br#"{"v":1,"type":"PONG","id":"pong","ts":1766966970000,"#;
                    frame(&[&head[..], &text[payload..]].concat(), out);
                }
                b"ERROR" | b"BUSY" | b"BYE" => {
                    return Err(format!("the daemon said {}", String::from_utf8_lossy(text)));
                }
                _ => {}
            }
            used = start + text.len();
        }
        Ok(used)
    }
}

impl Json {
    fn stamp_of(&mut self, text: &[u8]) -> Result<u64, String> {
        const BODY: &[u8] = b"\"body\":\"";
        let remembered = self.body_at.checked_sub(BODY.len()).and_then(|at| text.get(at..self.body_at));
        if remembered != Some(BODY) {
            self.body_at = find(text, BODY).ok_or("a DELIVER without a body arrived")? + BODY.len();
        }
        read_stamp(text.get(self.body_at..self.body_at + STAMP_BYTES).unwrap_or_default())
    }
}

fn acknowledge(text: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let id = member(text, b"\"id\":\"").ok_or("a DELIVER without an id arrived")?;
    // `delivery` is the last member; its session id is the only long thing in it.
    let tail = &text[text.len().saturating_sub(128)..];
    let sequence = find(tail, b"\"seq\":").map_or(&b"0"[..], |at| {
        let digits = &tail[at + 6..];
        &digits[..digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len())]
    });
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(br#"{"v":1,"type":"ACK","id":"ack","ts":1766966970000,"payload":{"ack_id":""#);
    out.extend_from_slice(id);
    out.extend_from_slice(b"\",\"seq\":");
    out.extend_from_slice(sequence);
    out.extend_from_slice(b"}}");
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// The string after `key`, which the daemons write near the start of a frame.
fn member<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let at = find(text, key)? + key.len();
    let end = text[at..].iter().position(|byte| *byte == b'"')?;
    Some(&text[at..at + end])
}

fn frame(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text);
}
