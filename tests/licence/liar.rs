//! Servers that a licence must not believe, and ones that never come to an end.

use crate::evaluation;
use agent_relay::base::tier::Tier;
use agent_relay::licence::{Document, KeyHash, LicenceKey, SigningKey};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// What the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Not a lie: the vendor's own word that the licence has ended.
    Ended,
    WrongSignature,
    OtherKey,
    OtherQuestion,
    ForgedRevocation,
    PlainRefusal,
    Garbage,
    Html,
    NotText,
    Failing,
    Busy,
    Redirect,
    Endless,
    Hang,
    HangAfterHead,
    Drip,
    CutOff,
    Slammed,
    NotHttp,
}

impl Lie {
    pub(crate) const ALL: [Lie; 18] = [
        Lie::WrongSignature,
        Lie::OtherKey,
        Lie::OtherQuestion,
        Lie::ForgedRevocation,
        Lie::PlainRefusal,
        Lie::Garbage,
        Lie::Html,
        Lie::NotText,
        Lie::Failing,
        Lie::Busy,
        Lie::Redirect,
        Lie::Endless,
        Lie::Hang,
        Lie::HangAfterHead,
        Lie::Drip,
        Lie::CutOff,
        Lie::Slammed,
        Lie::NotHttp,
    ];

    /// Words of the sentence that the operator reads.
    pub(crate) fn is_told_as(self) -> &'static str {
        match self {
            Lie::Ended => "ended on",
            Lie::WrongSignature | Lie::ForgedRevocation => "does not bear the signature",
            Lie::OtherKey => "about another licence key",
            Lie::OtherQuestion => "not to this question",
            Lie::PlainRefusal => "answered 403",
            Lie::Garbage | Lie::Html => "not a licence document",
            Lie::NotText => "not text",
            Lie::Failing => "answered 500",
            Lie::Busy => "answered 503",
            Lie::Redirect => "answered 307",
            Lie::Endless => "longer than",
            Lie::Hang | Lie::HangAfterHead | Lie::Drip => "in time",
            Lie::CutOff | Lie::Slammed | Lie::NotHttp => "cannot be asked since",
        }
    }
}

/// A running liar.
pub(crate) struct Liar {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    pub(crate) fn start(lie: Lie) -> Liar {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                if seen.load(Ordering::Acquire) {
                    return;
                }
                // Whoever is lied to may be gone in the middle of it.
                if let Ok(stream) = stream {
                    held.extend(tell(lie, stream, &seen));
                }
            }
        });
        Liar { address, over, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn stop(mut self) {
        self.over.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// One conversation. A stream that is given back stays open.
fn tell(lie: Lie, mut stream: TcpStream, over: &AtomicBool) -> Option<TcpStream> {
    if lie == Lie::Slammed {
        return None;
    }
    let asked = question(&mut stream)?;
    let text = |status: &str, body: &str| format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let document = |key: &SigningKey, change: &dyn Fn(Document) -> Document| {
        let hash = KeyHash::parse(asked["key_hash"].as_str().unwrap()).unwrap();
        let now = agent_relay::daemon::licence_desk::reading().wall_ms;
        let nonce = asked["nonce"].as_str().unwrap().to_owned();
        let honest = Document { nonce, ..Document::of_tier(Tier::Enterprise, hash, now, now + 1_000_000_000) };
        text("200 OK", &change(honest).sign(key))
    };
    let stranger = SigningKey::from_random([9; 32]);
    let revoked = |document: Document| Document { revoked_at_ms: Some(1), ..document };
    let other =
        |document: Document| Document { key_hash: LicenceKey::from_random(Tier::Pro, 99).unwrap().hash(), ..document };
    let replayed = |document: Document| Document { nonce: "an earlier one".into(), ..document };
    let said = match lie {
        Lie::Ended => {
            document(&evaluation(), &|document| Document { valid_until_ms: document.issued_at_ms - 1_000, ..document })
        }
        Lie::WrongSignature => document(&stranger, &|document| document),
        Lie::ForgedRevocation => document(&stranger, &revoked),
        Lie::OtherKey => document(&evaluation(), &other),
        Lie::OtherQuestion => document(&evaluation(), &replayed),
        Lie::PlainRefusal => text("403 Forbidden", "{\"error\":\"revoked\"}"),
        Lie::Garbage => text("200 OK", "}{"),
        Lie::Html => text("200 OK", "<html>Please sign in to the hotel.</html>"),
        Lie::NotText => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".to_owned(),
        Lie::Failing => text("500 Internal Server Error", "oops"),
        Lie::Busy => text("503 Service Unavailable", ""),
        Lie::Redirect => {
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".to_owned()
        }
        Lie::Endless => text("200 OK", &"x".repeat(1024 * 1024)),
        Lie::CutOff => {
            let whole = document(&evaluation(), &|document| document);
            whole[..whole.len() - 40].to_owned()
        }
        Lie::HangAfterHead | Lie::Drip => "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n".to_owned(),
        Lie::NotHttp => "SSH-2.0-OpenSSH_9.9\r\n".to_owned(),
        Lie::Hang | Lie::Slammed => String::new(),
    };
    let _ = stream.write_all(said.as_bytes());
    match lie {
        Lie::NotText => drop(stream.write_all(&[0xff, 0xfe])),
        Lie::Drip => {
            // Slower than anybody waits, never silent, and over when the other end has gone.
            while !over.load(Ordering::Acquire) && stream.write_all(b"a").is_ok() && !gone_within(&stream, PACE) {}
        }
        Lie::CutOff | Lie::NotHttp => drop(stream.shutdown(Shutdown::Both)),
        _ => {}
    }
    Some(stream)
}

/// How often a dripping server says something.
const PACE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Waits so long, or until the other end has closed the connection.
fn gone_within(stream: &TcpStream, time: Timespec) -> bool {
    let mut watched = [PollFd::new(stream, PollFlags::RDHUP)];
    rustix::event::poll(&mut watched, Some(&time)).is_ok_and(|ready| ready > 0)
}

/// Reads the whole request, so that closing does not reset it; its body is JSON.
fn question(stream: &mut TcpStream) -> Option<Value> {
    stream.set_read_timeout(Some(crate::PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
        bytes.extend_from_slice(&buffer[..length]);
        let text = String::from_utf8_lossy(&bytes);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && let Ok(value) = serde_json::from_str(body)
        {
            return Some(value);
        }
    }
}
