//! Redis pub/sub in RESP3, in which one connection may both subscribe and publish. No acknowledgements exist.
#![forbid(unsafe_code)]

use super::{Dialect, Heard, Part, TOPIC, Target, blank_body, decimal, line_end, name, read_stamp, write_stamp};

/// One Redis client.
pub struct Resp {
    part: Part,
    template: Vec<u8>,
    body_at: usize,
}

/// Deeper answers than this are not Redis's.
const DEPTH_MAX: usize = 8;

impl Dialect for Resp {
    fn new(part: Part) -> Resp {
        let mut resp = Resp { part, template: Vec::new(), body_at: 0 };
        resp.address(part.target);
        resp
    }

    fn introduce(&mut self, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(b"HELLO 3\r\n");
        let mut line = format!("SUBSCRIBE {}", name(self.part.number));
        if self.part.listens {
            line = format!("{line} {TOPIC}");
        }
        out.extend_from_slice(format!("{line}\r\nPING\r\n").as_bytes());
        true
    }

    fn address(&mut self, target: Target) {
        let channel = match target {
            Target::Nobody => return,
            Target::Agent(number) => name(number),
            Target::Topic => TOPIC.to_owned(),
        };
        let body = blank_body(self.part.body_bytes);
        let head = format!("*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n", channel.len(), body.len());
        self.body_at = head.len();
        self.template = [head.as_bytes(), &body, b"\r\n"].concat();
    }

    fn speak(&mut self, stamp: u64, out: &mut Vec<u8>) {
        write_stamp(stamp, &mut self.template[self.body_at..]);
        out.extend_from_slice(&self.template);
    }

    fn hear(&mut self, bytes: &[u8], _out: &mut Vec<u8>, heard: &mut Heard) -> Result<usize, String> {
        let mut used = 0;
        while let Some(end) = skip(bytes, used, 0)? {
            let value = &bytes[used..end];
            if value.starts_with(b">3\r\n$7\r\nmessage\r\n") {
                // The last of three: ends in CR LF, and its length is known.
                let body = value.len().checked_sub(2 + self.part.body_bytes).ok_or("a short message arrived")?;
                heard.stamps.push(read_stamp(&value[body..])?);
            } else if value.starts_with(b"+PONG") {
                heard.ready = true;
            } else if value.starts_with(b"-") {
                return Err(format!("redis said {}", String::from_utf8_lossy(value)));
            }
            used = end;
        }
        Ok(used)
    }
}

/// Where the value that starts at `at` ends; `None`: more bytes are needed.
pub(super) fn skip(bytes: &[u8], at: usize, depth: usize) -> Result<Option<usize>, String> {
    let Some(kind) = bytes.get(at) else { return Ok(None) };
    let Some(line) = line_end(bytes, at) else { return Ok(None) };
    let (rest, next) = (&bytes[at + 1..line], line + 2);
    let items = match kind {
        b'$' => {
            let length = decimal(rest).ok_or("a length is not a number")?;
            return Ok((bytes.len() >= next + length + 2).then_some(next + length + 2));
        }
        b'>' | b'*' | b'~' => decimal(rest).ok_or("a count is not a number")?,
        b'%' => 2 * decimal(rest).ok_or("a count is not a number")?,
        _ => return Ok(Some(next)),
    };
    if depth > DEPTH_MAX {
        return Err("an answer is nested too deeply".to_owned());
    }
    let mut end = next;
    for _ in 0..items {
        match skip(bytes, end, depth + 1)? {
            Some(next) => end = next,
            None => return Ok(None),
        }
    }
    Ok(Some(end))
}
