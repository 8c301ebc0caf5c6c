//! As many agents as a daemon may know: each says HELLO once, then all of them have something to say.
#![forbid(unsafe_code)]

use agent_relay::base::ids::number_of_label;
use agent_relay::base::{AgentId, MessageId, Sequence};
use agent_relay::wire::{CAPABILITIES, Frame, HEADER_BYTES, Header, Hello, Kind, MessageFields, encode};
use std::borrow::Cow;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Messages per second, from all of them together.
pub const RATE: u64 = 20_000;
/// Messages handed over at once.
const BURST: u64 = 20;

fn name(agent: u32) -> String {
    format!("known-{agent:06}")
}

/// Each of `agents` agents says HELLO, hears WELCOME, and leaves.
pub fn introduce(socket: &Path, agents: u32) -> Result<(), String> {
    let mut out = Vec::new();
    for agent in 0..agents {
        let mut greet = || -> std::io::Result<()> {
            let mut connection = UnixStream::connect(socket)?;
            out.clear();
            let name = name(agent);
            let hello =
                Hello { claimed_name: Cow::Borrowed(name.as_bytes()), capabilities: CAPABILITIES, ..Hello::default() };
            encode::frame(&mut out, &Frame::Hello(Box::new(hello)), Sequence::default());
            connection.write_all(&out)?;
            let mut header = [0; HEADER_BYTES];
            connection.read_exact(&mut header)?;
            out.clear();
            encode::frame(&mut out, &Frame::Bye, Sequence::default());
            connection.write_all(&out)
        };
        greet().map_err(|error| format!("agent {agent} does not get in: {error}"))?;
    }
    Ok(())
}

/// What a traffic has done.
pub struct Sent {
    /// Messages handed in.
    pub sent: u64,
    /// Answers that were refusals.
    pub refused: u64,
}

/// Messages from many agents to many agents, at [`RATE`], handed in as the command line hands them in.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Traffic {
    /// Starts it: each of `agents` agents in turn writes to the next one.
    pub fn start(socket: &Path, agents: u32) -> Traffic {
        let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (socket, stopped, counts) = (socket.to_path_buf(), stop.clone(), refused.clone());
        let thread = thread::spawn(move || {
            send(&socket, agents, &stopped, &counts).map_err(|error| format!("the traffic of {agents} agents: {error}"))
        });
        Traffic { stop, refused, thread }
    }

    /// Ends it.
    pub fn stop(self) -> Result<Sent, String> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.thread.join().map_err(|_| "the traffic panicked".to_owned())??;
        Ok(Sent { sent, refused: self.refused.load(Ordering::Relaxed) })
    }
}

fn send(socket: &PathBuf, agents: u32, stop: &AtomicBool, refused: &Arc<AtomicU64>) -> std::io::Result<u64> {
    let mut connection = UnixStream::connect(socket)?;
    let (mut answers, counts) = (connection.try_clone()?, refused.clone());
    // It ends when the connection does.
    thread::spawn(move || {
        let mut header = [0; HEADER_BYTES];
        while answers.read_exact(&mut header).is_ok() {
            let Ok(header) = Header::decode(&header) else { return };
            let mut body = vec![0; header.length as usize];
            if answers.read_exact(&mut body).is_err() {
                return;
            }
            if matches!(header.kind, Kind::Busy | Kind::Error) && counts.fetch_add(1, Ordering::Relaxed) == 0 {
                eprintln!("the first refusal: {:?}: {}", header.kind, String::from_utf8_lossy(&body).replace('\0', ""));
            }
        }
    });
    let text = [b'x'; 128];
    // Labels are taken once for good: each traffic has its own.
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let first = since.map_or(1, |since| since.as_millis() as u64);
    let (mut sent, mut out) = (0u64, Vec::new());
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        out.clear();
        for _ in 0..BURST {
            let agent = (sent % u64::from(agents)) as u32;
            let (from, to) = (name(agent), name((agent + 1) % agents));
            let label = format!("{first}-{sent}");
            let number = number_of_label(label.as_bytes());
            let fields = MessageFields {
                id: MessageId { sender: AgentId::of(from.as_bytes()), number },
                label: label.as_bytes(),
                from: from.as_bytes(),
                to: to.as_bytes(),
                text: &text,
                ..MessageFields::default()
            };
            encode::send(&mut out, Kind::Submit, &fields, Sequence::default());
            sent += 1;
        }
        connection.write_all(&out)?;
        let due = Duration::from_nanos(sent * 1_000_000_000 / RATE);
        thread::sleep(due.saturating_sub(began.elapsed()));
    }
    Ok(sent)
}
