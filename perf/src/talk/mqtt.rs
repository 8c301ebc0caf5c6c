//! MQTT 3.1.1 at QoS 0: no acknowledgements.
#![forbid(unsafe_code)]

use super::{Dialect, Heard, Part, TOPIC, Target, blank_body, name, read_stamp, write_stamp};

/// One MQTT client.
pub struct Mqtt {
    part: Part,
    template: Vec<u8>,
    body_at: usize,
}

impl Dialect for Mqtt {
    fn new(part: Part) -> Mqtt {
        let mut mqtt = Mqtt { part, template: Vec::new(), body_at: 0 };
        mqtt.address(part.target);
        mqtt
    }

    fn introduce(&mut self, out: &mut Vec<u8>) -> bool {
        // Clean session, no keep-alive.
        let mut connect = b"\x00\x04MQTT\x04\x02\x00\x00".to_vec();
        text(&name(self.part.number), &mut connect);
        packet(0x10, &connect, out);
        let mut subscribe = vec![0, 1];
        text(&name(self.part.number), &mut subscribe);
        subscribe.push(0);
        if self.part.listens {
            text(TOPIC, &mut subscribe);
            subscribe.push(0);
        }
        packet(0x82, &subscribe, out);
        true
    }

    fn address(&mut self, target: Target) {
        let topic = match target {
            Target::Nobody => return,
            Target::Agent(number) => name(number),
            Target::Topic => TOPIC.to_owned(),
        };
        let body = blank_body(self.part.body_bytes);
        let mut publish = Vec::new();
        text(&topic, &mut publish);
        publish.extend_from_slice(&body);
        self.template.clear();
        packet(0x30, &publish, &mut self.template);
        self.body_at = self.template.len() - body.len();
    }

    fn speak(&mut self, stamp: u64, out: &mut Vec<u8>) {
        write_stamp(stamp, &mut self.template[self.body_at..]);
        out.extend_from_slice(&self.template);
    }

    fn hear(&mut self, bytes: &[u8], _out: &mut Vec<u8>, heard: &mut Heard) -> Result<usize, String> {
        let mut used = 0;
        while let Some((start, length)) = remaining(&bytes[used..])? {
            let start = used + start;
            let Some(rest) = bytes.get(start..start + length) else { break };
            match bytes[used] >> 4 {
                2 if rest.get(1) != Some(&0) => return Err("mosquitto refused CONNECT".to_owned()),
                9 => heard.ready = true,
                3 => {
                    let body = rest.len().checked_sub(self.part.body_bytes).ok_or("a short PUBLISH arrived")?;
                    heard.stamps.push(read_stamp(&rest[body..])?);
                }
                _ => {}
            }
            used = start + length;
        }
        Ok(used)
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn packet(first: u8, rest: &[u8], out: &mut Vec<u8>) {
    out.push(first);
    let mut length = rest.len();
    while length >= 128 {
        out.push(length as u8 & 127 | 128);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(rest);
}

/// Where a packet's rest starts and how long it is; `None`: more bytes are needed.
fn remaining(bytes: &[u8]) -> Result<Option<(usize, usize)>, String> {
    let mut length = 0;
    for (place, byte) in bytes.iter().skip(1).enumerate() {
        if place == 4 {
            return Err("a length of more than four bytes".to_owned());
        }
        length |= usize::from(byte & 127) << (7 * place);
        if byte & 128 == 0 {
            return Ok(Some((place + 2, length)));
        }
    }
    Ok(None)
}
