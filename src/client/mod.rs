//! A blocking client of the native wire over std sockets: for the command line, tests and measurements.
//!
//! [`Client`] is one connection. [`Reconnecting`] keeps a session alive over lost ones and hands out each message once.
//! [`submit`] and [`ask`] need no session; [`submit_as`] and [`Inquiry`] do the same in one, for a relay elsewhere. Nothing here starts a thread; time passes only inside the calls.
#![forbid(unsafe_code)]

mod address;
mod credential;
mod errand;
mod error;
mod link;
mod message;
mod reconnect;
mod secure;
mod session;
#[cfg(test)]
mod tests;

pub use crate::tls::ClientFiles;
pub use address::Address;
pub use credential::Credential;
pub use errand::{ANSWER_BYTES_MAX, Fate, Inquiry, Outcome, ask, submit, submit_as};
pub use error::Error;
pub use message::{Incoming, Outgoing, Received};
pub use reconnect::{PENDING_MAX, Reconnecting};
pub use secure::{Security, Tls};
pub use session::{Client, Options, Resume, Session};
