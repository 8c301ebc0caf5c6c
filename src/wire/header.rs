//! The fixed header of the native dialect: 40 bytes, little-endian, written anew for each recipient.
//!
//! ```text
//!  0 magic u8 = A7 | 1 version u8 = 1 | 2 kind u8 | 3 flags u8 | 4 body length u32 | 8 body CRC-32 u32
//! 12 epoch u32     | 16 counter u64                            | 24 ack epoch u32  | 28 zero u32 | 32 ack counter u64
//! ```

use super::Corrupt;
use crate::base::Sequence;
use crate::base::limits::FRAME_BYTES_MAX;

/// First byte of each native frame: not 00 (JSON), not 16 (TLS), not a letter (HTTP).
pub const MAGIC: u8 = 0xA7;
/// The only version so far.
pub const VERSION: u8 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 40;
/// DELIVER: this was sent before, in this session or an earlier one.
pub const FLAG_REDELIVERED: u8 = 1;
/// ACK: this one alone, not everything up to it.
pub const FLAG_ACK_ONE: u8 = 1;
/// DELIVER to a JSON client: as CHANNEL_MESSAGE. Not on the native wire.
pub const FLAG_CHANNEL: u8 = 2;

/// The kinds of native frames; the number is on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Hello = 1,
    Welcome = 2,
    Send = 3,
    Deliver = 4,
    Ack = 5,
    Receipt = 6,
    Subscribe = 7,
    Unsubscribe = 8,
    Ping = 9,
    Pong = 10,
    Busy = 11,
    Error = 12,
    Bye = 13,
    Submit = 14,
    Query = 15,
    Answer = 16,
}

impl Kind {
    /// Every kind, in wire order.
    pub const ALL: [Kind; 16] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Send,
        Kind::Deliver,
        Kind::Ack,
        Kind::Receipt,
        Kind::Subscribe,
        Kind::Unsubscribe,
        Kind::Ping,
        Kind::Pong,
        Kind::Busy,
        Kind::Error,
        Kind::Bye,
        Kind::Submit,
        Kind::Query,
        Kind::Answer,
    ];

    /// The kind's name in documents, logs and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Hello => "HELLO",
            Kind::Welcome => "WELCOME",
            Kind::Send => "SEND",
            Kind::Deliver => "DELIVER",
            Kind::Ack => "ACK",
            Kind::Receipt => "RECEIPT",
            Kind::Subscribe => "SUBSCRIBE",
            Kind::Unsubscribe => "UNSUBSCRIBE",
            Kind::Ping => "PING",
            Kind::Pong => "PONG",
            Kind::Busy => "BUSY",
            Kind::Error => "ERROR",
            Kind::Bye => "BYE",
            Kind::Submit => "SUBMIT",
            Kind::Query => "QUERY",
            Kind::Answer => "ANSWER",
        }
    }

    #[inline]
    fn from_wire(number: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(number).wrapping_sub(1)).copied()
    }
}

/// A decoded header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// [`FLAG_REDELIVERED`] of DELIVER, [`FLAG_ACK_ONE`] of ACK; unknown bits are ignored.
    pub flags: u8,
    /// Bytes of body that follow.
    pub length: u32,
    /// CRC-32 (IEEE) of the body.
    pub checksum: u32,
    /// DELIVER and ACK: the recipient's sequence. SEND and SUBMIT: the counter is the sender's number. Else zero.
    pub sequence: Sequence,
    /// Everything up to here is acknowledged; zero says nothing. May ride on any frame of a client.
    pub ack: Sequence,
}

impl Header {
    /// A header that carries nothing but its kind.
    pub const fn of(kind: Kind) -> Header {
        const NONE: Sequence = Sequence { epoch: 0, counter: 0 };
        Header { kind, flags: 0, length: 0, checksum: 0, sequence: NONE, ack: NONE }
    }

    /// The 40 bytes.
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = MAGIC;
        bytes[1] = VERSION;
        bytes[2] = self.kind as u8;
        bytes[3] = self.flags;
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.sequence.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.counter.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.ack.epoch.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.ack.counter.to_le_bytes());
        bytes
    }

    /// Reads and checks a header.
    #[inline]
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Corrupt> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if bytes[0] != MAGIC {
            return Err(Corrupt::Magic(bytes[0]));
        }
        if bytes[1] != VERSION {
            return Err(Corrupt::Version(bytes[1]));
        }
        let kind = Kind::from_wire(bytes[2]).ok_or(Corrupt::Kind(bytes[2]))?;
        let length = u32_at(4);
        if length as usize > FRAME_BYTES_MAX - HEADER_BYTES {
            return Err(Corrupt::TooLong { length: u64::from(length) + HEADER_BYTES as u64 });
        }
        if u32_at(28) != 0 {
            return Err(Corrupt::Reserved);
        }
        Ok(Header {
            kind,
            flags: bytes[3],
            length,
            checksum: u32_at(8),
            sequence: Sequence { epoch: u32_at(12), counter: u64_at(16) },
            ack: Sequence { epoch: u32_at(24), counter: u64_at(32) },
        })
    }
}
