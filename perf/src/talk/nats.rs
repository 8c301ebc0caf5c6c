//! NATS core pub/sub, verbose off. No acknowledgements exist.
#![forbid(unsafe_code)]

use super::{Dialect, Heard, Part, TOPIC, Target, blank_body, decimal, line_end, name, read_stamp, write_stamp};

/// One NATS client.
pub struct Nats {
    part: Part,
    template: Vec<u8>,
    body_at: usize,
}

impl Dialect for Nats {
    fn new(part: Part) -> Nats {
        let mut nats = Nats { part, template: Vec::new(), body_at: 0 };
        nats.address(part.target);
        nats
    }

    fn introduce(&mut self, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"1\"}\r\n",
        );
        out.extend_from_slice(format!("SUB {} 1\r\n", name(self.part.number)).as_bytes());
        if self.part.listens {
            out.extend_from_slice(format!("SUB {TOPIC} 2\r\n").as_bytes());
        }
        out.extend_from_slice(b"PING\r\n");
        true
    }

    fn address(&mut self, target: Target) {
        let subject = match target {
            Target::Nobody => return,
            Target::Agent(number) => name(number),
            Target::Topic => TOPIC.to_owned(),
        };
        let body = blank_body(self.part.body_bytes);
        let head = format!("PUB {subject} {}\r\n", body.len());
        self.body_at = head.len();
        self.template = [head.as_bytes(), &body, b"\r\n"].concat();
    }

    fn speak(&mut self, stamp: u64, out: &mut Vec<u8>) {
        write_stamp(stamp, &mut self.template[self.body_at..]);
        out.extend_from_slice(&self.template);
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>, heard: &mut Heard) -> Result<usize, String> {
        let mut used = 0;
        while let Some(line) = line_end(bytes, used) {
            let text = &bytes[used..line];
            let next = line + 2;
            if text.starts_with(b"MSG ") {
                let digits = text.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
                let length = decimal(digits).ok_or("MSG without a length")?;
                if bytes.len() < next + length + 2 {
                    break;
                }
                heard.stamps.push(read_stamp(&bytes[next..next + length])?);
                used = next + length + 2;
                continue;
            }
            match text {
                b"PONG" => heard.ready = true,
                b"PING" => out.extend_from_slice(b"PONG\r\n"),
                _ if text.starts_with(b"-ERR") => {
                    return Err(format!("nats-server said {}", String::from_utf8_lossy(text)));
                }
                _ => {}
            }
            used = next;
        }
        Ok(used)
    }
}
