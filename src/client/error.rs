//! What can go wrong for a client; each text says what to do.

use super::{Address, Options};
use crate::base::limits::FRAME_BYTES_MAX;
use crate::wire::{Corrupt, ErrorCode};
use std::io;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no daemon listens at {0}; start one with `relay up`")]
    NoDaemon(Address),
    /// The socket may not be opened by this user.
    #[error("{0} may not be opened by this user; run as the user who started the daemon")]
    NotAllowed(Address),
    /// Another failure of connecting.
    #[error("cannot connect to {address}: {problem}")]
    Connect {
        /// Where to.
        address: Address,
        /// What the system says.
        problem: io::Error,
    },
    /// The relay did not answer in time. Nothing is known about what was asked.
    #[error("the relay at {0} did not answer in time; `relay status` shows how it is")]
    Timeout(Address),
    /// The relay said no. Trying the same again gives the same.
    #[error("the relay refused: {message} ({})", code.name())]
    Refused {
        /// The kind of refusal.
        code: ErrorCode,
        /// The relay's words.
        message: String,
    },
    /// TLS as it was asked for cannot be. Trying the same again gives the same.
    #[error("{0}")]
    Tls(String),
    /// The relay closed the connection, or it broke. What was not answered may or may not have happened.
    #[error("the connection to the relay is lost: {0}")]
    Lost(String),
    /// The relay sent what is not a frame. The connection is closed.
    #[error("the relay sent bytes that are not a frame ({0}); is it a relay that listens there?")]
    Corrupt(#[from] Corrupt),
    /// The message does not fit a frame. Nothing was sent.
    #[error("the message is too long: {0} > {FRAME_BYTES_MAX} bytes; send it in parts")]
    TooLong(usize),
    /// A field of the message breaks a rule. Nothing was sent.
    #[error("{0}")]
    Rule(String),
    /// As many messages as may be are waiting for their outcome. Nothing was sent; call `next` to hear outcomes.
    #[error("{0} messages wait for their outcome; call next() until some are answered, then send again")]
    Full(usize),
    /// An answer longer than a client takes.
    #[error("the answer is longer than {0} bytes; ask for less")]
    AnswerTooLong(usize),
    /// The question failed.
    #[error("{0}")]
    Question(String),
}

impl Error {
    /// Whether connecting again may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Error::NoDaemon(_) | Error::Connect { .. } | Error::Timeout(_) | Error::Lost(_))
    }

    /// The failure of connecting to `address`.
    pub(super) fn connecting(address: &Address, problem: io::Error) -> Error {
        let address = address.clone();
        match problem.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NoDaemon(address),
            io::ErrorKind::PermissionDenied => Error::NotAllowed(address),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Error::Timeout(address),
            _ => Error::Connect { address, problem },
        }
    }

    /// The same failure, of a connection to `address` that has not been welcomed yet: in the wrong language, mostly.
    pub(super) fn before_welcome(self, address: &Address, options: &Options) -> Error {
        match self {
            Error::Lost(_) | Error::Corrupt(_) if !options.security.is_tls(address) && address.is_tcp() => {
                Error::Lost(format!(
                    "what answers at {address} ends a connection without TLS; it is a relay that wants TLS (--ca FILE says whom to believe), or no relay"
                ))
            }
            other => other,
        }
    }

    /// The failure of an open connection.
    pub(super) fn lost(problem: io::Error) -> Error {
        Error::Lost(problem.to_string())
    }
}
