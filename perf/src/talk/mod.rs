//! How each server is spoken to: bytes out, bytes in, no socket. One [`Dialect`] value is one agent on one connection.
//!
//! A message's body starts with [`STAMP_BYTES`] hexadecimal digits, the nanosecond at which it was (meant to be) sent;
//! the rest is filling. Text, so that the JSON and the binary wires carry the same body.
#![forbid(unsafe_code)]

pub mod jetstream;
pub mod json;
pub mod mqtt;
pub mod native;
pub mod nats;
pub mod resp;
pub mod streams;

/// The stamp at the start of each body.
pub const STAMP_BYTES: usize = 16;

/// Whom an agent's messages are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Nobody: it only receives.
    Nobody,
    /// The agent with this number.
    Agent(u32),
    /// Everyone who listens to the one topic.
    Topic,
}

/// Who an agent is in this run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Its number, which makes its name.
    pub number: u32,
    /// Whom it talks to.
    pub target: Target,
    /// Whether it listens to the one topic as well as to its own name.
    pub listens: bool,
    /// Bytes of each body.
    pub body_bytes: usize,
    /// Whether its messages count when the server says to their sender that they are on disk, instead of when they arrive.
    pub durable: bool,
    /// The API key that it shows, where one is wanted. Keys live as long as the program.
    pub key: Option<&'static str>,
}

/// What a stretch of incoming bytes said.
#[derive(Default, Debug)]
pub struct Heard {
    /// The agent is in: from now on it may be sent to.
    pub ready: bool,
    /// The stamps of the messages that arrived (or, where disks are waited for, that are on disk), in order.
    pub stamps: Vec<u64>,
}

/// One agent's side of a protocol.
pub trait Dialect: Sized {
    /// Whether [`Dialect::settle`] has anything to do.
    const ACKNOWLEDGES: bool = false;

    /// An agent that has not spoken yet.
    fn new(part: Part) -> Self;
    /// Introduces itself; false when there is nobody to introduce oneself to.
    fn introduce(&mut self, out: &mut Vec<u8>) -> bool;
    /// Changes whom the following messages are for.
    fn address(&mut self, target: Target);
    /// Appends one message.
    fn speak(&mut self, stamp: u64, out: &mut Vec<u8>);
    /// Takes whole frames from the start of `bytes`, says how many bytes they were; answers go to `out`.
    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>, heard: &mut Heard) -> Result<usize, String>;
    /// Appends an acknowledgement if one is due at `now` (nanoseconds).
    fn settle(&mut self, _now: u64, _out: &mut Vec<u8>) {}
    /// Says that it leaves, where that is said.
    fn farewell(&mut self, _out: &mut Vec<u8>) {}
}

/// The name of agent `number`.
pub fn name(number: u32) -> String {
    format!("agent-{number:05}")
}

/// The one topic.
pub const TOPIC: &str = "builds";

/// A body with room for the stamp.
pub fn blank_body(body_bytes: usize) -> Vec<u8> {
    vec![b'x'; body_bytes.max(STAMP_BYTES)]
}

/// Writes the stamp at the start of a body.
pub fn write_stamp(stamp: u64, body: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (place, byte) in stamp.to_be_bytes().into_iter().enumerate() {
        body[2 * place] = DIGITS[usize::from(byte >> 4)];
        body[2 * place + 1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Reads the stamp at the start of a body.
pub fn read_stamp(body: &[u8]) -> Result<u64, String> {
    let digits = body.get(..STAMP_BYTES).ok_or("a body without a stamp arrived")?;
    let mut stamp = 0u64;
    for &digit in digits {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return Err(format!("a body that nobody sent arrived: {:?}", String::from_utf8_lossy(digits))),
        };
        stamp = stamp << 4 | u64::from(value);
    }
    Ok(stamp)
}

/// The number in decimal digits, as length fields of text protocols are.
pub fn decimal(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.trim().parse().ok()
}

/// Where the line that starts at `at` ends, its CR LF excluded.
pub fn line_end(bytes: &[u8], at: usize) -> Option<usize> {
    let newline = at + bytes.get(at..)?.iter().position(|byte| *byte == b'\n')?;
    Some(newline.saturating_sub(1).max(at))
}

/// Where `pattern` starts in `bytes`.
pub fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_the_body() {
        let mut body = blank_body(128);
        write_stamp(0x0123_4567_89ab_cdef, &mut body);
        assert_eq!(body.len(), 128);
        assert_eq!(read_stamp(&body), Ok(0x0123_4567_89ab_cdef));
        assert!(read_stamp(b"xxxxxxxxxxxxxxxxxx").is_err());
    }
}
