//! One end of a TLS connection, without its side: what is half-read, and the loop that rustls wants to be driven by.

use super::{HANDSHAKE_BYTES_MAX, LinkError};
use rustls::CommonState;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};
use zeroize::Zeroize;

/// Plaintext of one record at most.
const RECORD_BYTES_MAX: usize = 16 * 1024;
/// What a record is longer than its plaintext, at most: header, explicit nonce or content type, tag.
const RECORD_EXTRA_BYTES: usize = 40;
/// A workspace keeps no more than this between calls.
const KEPT_BYTES_MAX: usize = 512 * 1024;

/// Buffers that links borrow while they work; one for each thread is enough.
#[derive(Default)]
pub struct Workspace {
    /// Ciphertext is decrypted where it lies, and what was received must not be changed.
    incoming: Vec<u8>,
    /// Small pieces on their way into one record.
    record: Vec<u8>,
}

impl Workspace {
    /// Clears what was decrypted here.
    pub fn wipe(&mut self) {
        self.incoming.zeroize();
    }
}

/// What rustls has twice.
pub(super) trait End {
    type Data;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn state(&self) -> &CommonState;
}

impl End for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }
    fn state(&self) -> &CommonState {
        self
    }
}

impl End for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }
    fn state(&self) -> &CommonState {
        self
    }
}

/// One end.
pub(super) struct Link<E> {
    pub(super) end: E,
    /// The beginning of a record, or of a handshake message, whose end has not arrived.
    rest: Vec<u8>,
    /// Bytes received before the handshake was complete.
    handshake_bytes: usize,
    /// The peer has said that nothing more will come.
    peer_closed: bool,
    closed: bool,
    /// After an error nothing is read or written any more.
    failed: Option<LinkError>,
}

impl<E: End> Link<E> {
    pub(super) fn new(end: E) -> Link<E> {
        Link { end, rest: Vec::new(), handshake_bytes: 0, peer_closed: false, closed: false, failed: None }
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.end.state().is_handshaking()
    }

    pub(super) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// See [`super::ServerLink::feed`].
    pub(super) fn feed(
        &mut self,
        received: &[u8],
        work: &mut Workspace,
        plaintext: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.peer_closed {
            return Ok(());
        }
        let handshaking = !self.is_ready();
        // What is half-read is completed where it lies; else nothing stays behind in this link.
        let half_read = !self.rest.is_empty();
        let mut bytes = std::mem::take(if half_read { &mut self.rest } else { &mut work.incoming });
        bytes.extend_from_slice(received);
        let (consumed, outcome) = self.pump(&mut bytes, plaintext, out);
        if outcome.is_ok() && !self.peer_closed && consumed < bytes.len() {
            if half_read && bytes.capacity() <= 2 * RECORD_BYTES_MAX {
                bytes.drain(..consumed);
                self.rest = bytes;
            } else {
                self.rest = bytes[consumed..].to_vec();
                work.keep_incoming(bytes);
            }
        } else if !half_read || work.incoming.capacity() == 0 {
            work.keep_incoming(bytes);
        }
        if handshaking {
            self.handshake_bytes += received.len();
        }
        let outcome = outcome.and_then(|()| {
            let too_long = !self.is_ready() && self.handshake_bytes > HANDSHAKE_BYTES_MAX;
            if too_long { Err(LinkError::TooLong) } else { Ok(()) }
        });
        if let Err(error) = &outcome {
            self.failed = Some(error.clone());
            self.rest = Vec::new();
        }
        outcome
    }

    /// Reads all that is whole in `bytes`; says how many of them are done with. After an error, what the peer must be
    /// told of it is in `out`.
    fn pump(&mut self, bytes: &mut [u8], plaintext: &mut Vec<u8>, out: &mut Vec<u8>) -> (usize, Result<(), LinkError>) {
        let mut done = 0;
        let error = loop {
            let UnbufferedStatus { discard, state } = self.end.process(&mut bytes[done..]);
            let mut more = 0;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                plaintext.extend_from_slice(record.payload);
                                more += record.discard;
                            }
                            Err(error) => return (done, Err(error.into())),
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut flight)) => encode(&mut flight, out),
                Ok(ConnectionState::TransmitTlsData(flight)) => flight.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) | ConnectionState::Closed) => {
                    return (done + discard, Ok(()));
                }
                // Early data is not offered.
                Ok(_) => return (done, Err(LinkError::Broken("early data".to_owned()))),
                Err(error) => {
                    done += discard;
                    break error;
                }
            }
            done += discard + more;
        };
        // The alert, if there is one, lies ready. Nothing more may be read: rustls would look once more at what was wrong,
        // and by assertion.
        while self.end.state().wants_write() {
            match self.end.process(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut flight)) => encode(&mut flight, out),
                _ => break,
            }
        }
        (done, Err(error.into()))
    }

    /// See [`super::ServerLink::seal`].
    pub(super) fn seal<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]>,
        work: &mut Workspace,
        out: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut record = std::mem::take(&mut work.record);
        record.clear();
        let mut outcome = Ok(());
        for mut piece in pieces {
            while !piece.is_empty() && outcome.is_ok() {
                if record.is_empty() && piece.len() >= RECORD_BYTES_MAX {
                    let (whole, rest) = piece.split_at(RECORD_BYTES_MAX);
                    outcome = self.write(whole, out);
                    piece = rest;
                    continue;
                }
                let (head, rest) = piece.split_at(piece.len().min(RECORD_BYTES_MAX - record.len()));
                record.extend_from_slice(head);
                piece = rest;
                if record.len() == RECORD_BYTES_MAX {
                    outcome = self.write(&record, out);
                    record.clear();
                }
            }
        }
        if !record.is_empty() && outcome.is_ok() {
            outcome = self.write(&record, out);
        }
        work.record = record;
        if let Err(error) = &outcome {
            self.failed = Some(error.clone());
        }
        outcome
    }

    /// One record.
    fn write(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), LinkError> {
        let mut space = plaintext.len() + RECORD_EXTRA_BYTES;
        self.writing(out, |traffic, out| {
            // At most twice: rustls says how much it needs, once there is an update of keys in front of the record.
            loop {
                let from = out.len();
                out.resize(from + space, 0);
                match traffic.encrypt(plaintext, &mut out[from..]) {
                    Ok(written) => {
                        out.truncate(from + written);
                        return Ok(());
                    }
                    Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size }))
                        if required_size > space =>
                    {
                        out.truncate(from);
                        space = required_size;
                    }
                    Err(error) => {
                        out.truncate(from);
                        return Err(LinkError::Broken(error.to_string()));
                    }
                }
            }
        })
    }

    /// See [`super::ServerLink::close`].
    pub(super) fn close(&mut self, out: &mut Vec<u8>) {
        if self.closed || self.failed.is_some() || !self.is_ready() {
            return;
        }
        self.closed = true;
        // Whoever closes has nothing left to say; that this cannot be said either changes nothing.
        let _ = self.writing(out, |traffic, out| {
            let mut space = [0; 512];
            let written = traffic.queue_close_notify(&mut space);
            out.extend_from_slice(&space[..written.unwrap_or(0)]);
            Ok(())
        });
    }

    #[cfg(test)]
    pub(super) fn refresh_keys(&mut self, out: &mut Vec<u8>) {
        if let UnbufferedStatus { state: Ok(ConnectionState::WriteTraffic(traffic)), .. } = self.end.process(&mut []) {
            traffic.refresh_traffic_keys().unwrap();
        }
        self.writing(out, |_, _| Ok(())).unwrap();
    }

    /// Does something in the state in which rustls writes.
    fn writing(
        &mut self,
        out: &mut Vec<u8>,
        mut write: impl FnMut(&mut WriteTraffic<'_, E::Data>, &mut Vec<u8>) -> Result<(), LinkError>,
    ) -> Result<(), LinkError> {
        loop {
            // All that was whole in the rest has been read already; its beginnings are what rustls expects to see again.
            let UnbufferedStatus { discard, state } = self.end.process(&mut self.rest);
            let outcome = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => Some(write(&mut traffic, out)),
                Ok(ConnectionState::EncodeTlsData(mut flight)) => {
                    encode(&mut flight, out);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(flight)) => {
                    flight.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    None
                }
                Ok(_) => Some(Err(LinkError::Broken("nothing can be written now".to_owned()))),
                Err(error) => Some(Err(error.into())),
            };
            self.rest.drain(..discard);
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
}

/// Appends a record that rustls has ready.
fn encode<Data>(flight: &mut EncodeTlsData<'_, Data>, out: &mut Vec<u8>) {
    let start = out.len();
    // It tells its length only so.
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = flight.encode(&mut []) {
        out.resize(start + required_size, 0);
        let written = flight.encode(&mut out[start..]).unwrap_or(0);
        out.truncate(start + written);
    }
}

impl Workspace {
    fn keep_incoming(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() <= KEPT_BYTES_MAX {
            bytes.clear();
            self.incoming = bytes;
        }
    }
}
