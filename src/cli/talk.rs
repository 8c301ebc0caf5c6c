//! Everything the commands say to a daemon, through `client`; turns its errors into sentences.

use super::Failure;
pub(super) use super::reach::Reach;
use crate::base::{RefuseReason, Sequence};
use crate::client::{self, Incoming, Outcome, Outgoing, Received};
use crate::wire::{ErrorCode, QueryKind, ReceiptState, Wants};
use serde_json::{Value, json};
use std::time::Duration;

/// How long a question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the daemon; the answer is a JSON value.
pub(super) fn ask(reach: &Reach, kind: QueryKind, arguments: &Value) -> Result<Value, Failure> {
    let answer = reach.ask(kind, &arguments.to_string(), ASK_TIMEOUT)?;
    serde_json::from_slice(&answer)
        .map_err(|error| Failure::Failed(format!("the relay's answer is not JSON ({error}); is it another version?")))
}

/// A message of `relay send`.
pub(super) struct Letter<'a> {
    pub(super) from: &'a str,
    pub(super) to: &'a str,
    pub(super) topic: &'a str,
    pub(super) thread: &'a str,
    pub(super) text: &'a str,
    pub(super) ttl_ms: u32,
}

/// How far a message is to have got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stage {
    name: &'static str,
    wants: Wants,
}

impl Stage {
    /// The stage called `name`.
    pub(super) fn of(name: &str) -> Option<Stage> {
        const STAGES: [Stage; 4] = [
            Stage { name: "accepted", wants: Wants::ACCEPTED },
            Stage { name: "durable", wants: Wants::DURABLE },
            Stage { name: "delivered", wants: Wants::DELIVERED },
            Stage { name: "acknowledged", wants: Wants::ACKNOWLEDGED },
        ];
        STAGES.into_iter().find(|stage| stage.name == name)
    }
}

/// What became of a message of `relay send`, as far as was waited for.
#[derive(Debug)]
pub(super) struct Fate {
    /// Its id; `relay read` takes it.
    pub(super) id: String,
    /// accepted, durable, delivered, acknowledged, read, failed, refused, not_found or unknown.
    pub(super) state: &'static str,
    /// Whether it got as far as was asked for.
    pub(super) good: bool,
    reason: Option<&'static str>,
    retry_after_ms: Option<u32>,
    waited_for: &'static str,
}

impl Fate {
    fn of(outcome: &Outcome, wait: Stage) -> Fate {
        let (state, reason, retry_after_ms) = match &outcome.fate {
            client::Fate::Unknown => ("unknown", None, None),
            client::Fate::Reached(state) => match state {
                ReceiptState::Accepted => ("accepted", None, None),
                ReceiptState::Durable => ("durable", None, None),
                ReceiptState::Delivered => ("delivered", None, None),
                ReceiptState::Acknowledged => ("acknowledged", None, None),
                ReceiptState::Read => ("read", None, None),
                ReceiptState::Failed(reason) => ("failed", Some(reason.name()), None),
            },
            client::Fate::Refused { reason, retry_after_ms } => ("refused", Some(reason.name()), Some(*retry_after_ms)),
            client::Fate::NotFound(_) => ("not_found", Some(RefuseReason::NotFound.name()), None),
        };
        let reached =
            matches!(&outcome.fate, client::Fate::Reached(state) if !matches!(state, ReceiptState::Failed(_)));
        Fate {
            id: outcome.id.to_string(),
            state,
            good: reached && !outcome.timed_out,
            reason,
            retry_after_ms: retry_after_ms.filter(|ms| *ms > 0),
            waited_for: wait.name,
        }
    }

    /// For programs.
    pub(super) fn as_json(&self) -> Value {
        json!({
            "id": self.id, "state": self.state, "reached": self.good, "reason": self.reason,
            "retry_after_ms": self.retry_after_ms,
        })
    }

    /// Why it is not good.
    pub(super) fn sentence(&self, to: &str) -> String {
        let again = self.retry_after_ms.map_or(String::new(), |ms| format!("; try again in {ms} ms"));
        match (self.state, self.reason) {
            ("not_found", _) => {
                format!("nobody called \"{to}\" has ever connected here; `relay agents` lists who has")
            }
            // Only a key's scopes forbid a message; this is the relay's own sentence.
            ("refused", Some(reason)) if reason == RefuseReason::Forbidden.name() => {
                "not accepted: This credential may not send messages; it needs a key with the scope send".to_owned()
            }
            ("refused", Some(reason)) => format!("not accepted: {reason}{again}"),
            ("failed", Some(reason)) => format!("accepted, but it will not arrive: {reason} (message {})", self.id),
            ("unknown", _) => {
                "the relay did not say in time what became of it; `relay status` shows how it is".to_owned()
            }
            (state, _) => format!(
                "{state}, but not yet {} within the time given; `relay read {}` tells later",
                self.waited_for, self.id
            ),
        }
    }
}

/// Hands a message in and waits until it has reached `wait`.
pub(super) fn submit(reach: &Reach, letter: &Letter<'_>, wait: Stage, timeout: Duration) -> Result<Fate, Failure> {
    let message = Outgoing {
        to: letter.to,
        topic: letter.topic,
        text: Some(letter.text),
        thread: letter.thread,
        ttl_ms: letter.ttl_ms,
        ..Outgoing::default()
    };
    let outcome = if reach.needs_session() {
        let options = reach.options(letter.from, "relay send")?;
        client::submit_as(reach.address(), &options, &message, wait.wants, timeout)
    } else {
        client::submit(reach.address(), &message, letter.from, wait.wants, timeout)
    };
    match outcome {
        Ok(outcome) => Ok(Fate::of(&outcome, wait)),
        Err(client::Error::Refused { code: ErrorCode::DuplicateConnection, .. }) => Err(Failure::Failed(format!(
            "{} is connected, and only the owner of the relay's own socket may send in its name meanwhile; use another name",
            letter.from
        ))),
        Err(error) => Err(reach.explain(error)),
    }
}

/// A message that came, as `relay listen` prints it.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) id: String,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) topic: String,
    pub(super) thread: String,
    pub(super) sent_at_ms: u64,
    pub(super) text: String,
    /// JSON; empty: none.
    pub(super) data: String,
    /// JSON; empty: none.
    pub(super) meta: String,
    pub(super) sequence: Sequence,
}

impl Heard {
    fn of(message: &Received) -> Heard {
        let fields = message.fields();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Heard {
            id: fields.id.to_string(),
            from: text(fields.from),
            to: text(fields.to),
            topic: text(fields.topic),
            thread: text(fields.thread),
            sent_at_ms: fields.sent_at_ms,
            text: text(fields.text),
            data: text(fields.data),
            meta: text(fields.meta),
            sequence: message.sequence,
        }
    }
}

/// The agent behind `relay listen`: reconnects and goes on where it was.
pub(super) struct Session<'a> {
    reach: &'a Reach,
    client: client::Reconnecting,
}

impl<'a> Session<'a> {
    pub(super) fn open(reach: &'a Reach, name: &str, topics: &[String]) -> Result<Session<'a>, Failure> {
        let options = reach.options(name, "relay listen")?;
        let client = client::Reconnecting::connect(reach.address(), &options).map_err(|error| reach.explain(error))?;
        let mut session = Session { reach, client };
        for topic in topics {
            session.client.subscribe(topic).map_err(|error| reach.explain(error))?;
        }
        Ok(session)
    }

    /// The next message, within `timeout`.
    pub(super) fn next(&mut self, timeout: Duration) -> Result<Option<Heard>, Failure> {
        match self.client.next(timeout).map_err(|error| self.reach.explain(error))? {
            Some(Incoming::Message(message)) => Ok(Some(Heard::of(&message))),
            Some(Incoming::Error { message, .. }) => Err(Failure::Failed(message)),
            _ => Ok(None),
        }
    }

    /// It has been printed: only now does the relay hear that it arrived.
    pub(super) fn handled(&mut self) -> Result<(), Failure> {
        self.client.handled().map_err(|error| self.reach.explain(error))
    }

    pub(super) fn close(self) {
        // Everything is acknowledged; a relay that is already gone misses only our BYE.
        drop(self.client.close());
    }
}
