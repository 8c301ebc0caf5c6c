//! NATS JetStream: one stream in files, published to with an answer each; push consumers that acknowledge cumulatively,
//! once per read. A message counts when it arrives, or when its publication is answered.
#![forbid(unsafe_code)]

use super::{Dialect, Heard, Part, Target, blank_body, decimal, find, line_end, name, read_stamp, write_stamp};
use std::collections::VecDeque;

/// One NATS client.
pub struct JetStream {
    part: Part,
    template: Vec<u8>,
    body_at: usize,
    /// Stamps of what was published and not answered.
    in_doubt: VecDeque<u64>,
}

impl Dialect for JetStream {
    fn new(part: Part) -> JetStream {
        let mut jetstream = JetStream { part, template: Vec::new(), body_at: 0, in_doubt: VecDeque::new() };
        jetstream.address(part.target);
        jetstream
    }

    fn introduce(&mut self, out: &mut Vec<u8>) -> bool {
        let own = name(self.part.number);
        out.extend_from_slice(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"1\"}\r\n",
        );
        out.extend_from_slice(format!("SUB answers.{own} 1\r\nSUB mail.{own} 2\r\n").as_bytes());
        // Everyone asks for the same stream: the first makes it.
        let stream = r#"{"name":"relay","subjects":["to.*"],"retention":"limits","storage":"file","num_replicas":1}"#;
        self.ask("$JS.API.STREAM.CREATE.relay", stream, out);
        true
    }

    fn address(&mut self, target: Target) {
        let Target::Agent(number) = target else { return };
        let body = blank_body(self.part.body_bytes);
        let head = format!("PUB to.{} answers.{} {}\r\n", name(number), name(self.part.number), body.len());
        self.body_at = head.len();
        self.template = [head.as_bytes(), &body, b"\r\n"].concat();
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
        let mut last_mail: &[u8] = b"";
        while let Some(line) = line_end(bytes, used) {
            let text = &bytes[used..line];
            let next = line + 2;
            if text.starts_with(b"MSG ") {
                // MSG subject number [where to answer] length
                let words: Vec<&[u8]> = text.split(|byte| *byte == b' ').collect();
                let length = words.last().and_then(|digits| decimal(digits)).ok_or("MSG without a length")?;
                if bytes.len() < next + length + 2 {
                    break;
                }
                let body = &bytes[next..next + length];
                if words.get(2) == Some(&&b"2"[..]) {
                    let stamp = read_stamp(body)?;
                    if !self.part.durable {
                        heard.stamps.push(stamp);
                    }
                    last_mail = words.get(3).copied().unwrap_or_default();
                } else {
                    self.answered(body, out, heard)?;
                }
                used = next + length + 2;
                continue;
            }
            match text {
                b"PING" => out.extend_from_slice(b"PONG\r\n"),
                _ if text.starts_with(b"-ERR") => {
                    return Err(format!("nats-server said {}", String::from_utf8_lossy(text)));
                }
                _ => {}
            }
            used = next;
        }
        if !last_mail.is_empty() {
            out.extend_from_slice(b"PUB ");
            out.extend_from_slice(last_mail);
            out.extend_from_slice(b" 0\r\n\r\n");
        }
        Ok(used)
    }
}

impl JetStream {
    fn ask(&self, what: &str, json: &str, out: &mut Vec<u8>) {
        let own = name(self.part.number);
        out.extend_from_slice(format!("PUB {what} answers.{own} {}\r\n{json}\r\n", json.len()).as_bytes());
    }

    fn answered(&mut self, body: &[u8], out: &mut Vec<u8>, heard: &mut Heard) -> Result<(), String> {
        if find(body, b"\"error\":").is_some() {
            return Err(format!("JetStream said {}", String::from_utf8_lossy(body)));
        }
        if find(body, b"stream_create_response").is_some() {
            if self.part.target != Target::Nobody {
                heard.ready = true;
                return Ok(());
            }
            let own = name(self.part.number);
            let consumer = format!(
                r#"{{"stream_name":"relay","config":{{"deliver_subject":"mail.{own}","deliver_policy":"all","ack_policy":"all","ack_wait":30000000000,"max_ack_pending":100000,"filter_subject":"to.{own}"}}}}"#
            );
            self.ask("$JS.API.CONSUMER.CREATE.relay", &consumer, out);
        } else if find(body, b"consumer_create_response").is_some() {
            heard.ready = true;
        } else if self.part.durable {
            heard.stamps.push(self.in_doubt.pop_front().ok_or("an answer came to what was not asked")?);
        }
        Ok(())
    }
}
