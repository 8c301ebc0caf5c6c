//! A blocking client of the native wire over std sockets: for the command line, tests and measurements.
//!
//! [`Client`] is one connection. [`Reconnecting`] keeps a session alive over lost ones and hands out each message once.
//! [`submit`] and [`ask`] need no session. Nothing here starts a thread; time passes only inside the calls.
#![forbid(unsafe_code)]

mod address;
mod errand;
mod error;
mod link;
mod message;
mod reconnect;
mod session;
#[cfg(test)]
mod tests;

pub use address::Address;
pub use errand::{ANSWER_BYTES_MAX, Fate, Outcome, ask, submit};
pub use error::Error;
pub use message::{Incoming, Outgoing, Received};
pub use reconnect::{PENDING_MAX, Reconnecting};
pub use session::{Client, Options, Resume, Session};
