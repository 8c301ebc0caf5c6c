//! A connection of the test's that speaks TLS to the relay: what the test writes comes out of a tunnel encrypted.

use crate::harness::PATIENCE;
use agent_relay::tls::{ClientLink, Connector, LinkError};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

/// The other end of a tunnel: what became of it.
#[derive(Clone, Default)]
pub(crate) struct Fate(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    error: Option<LinkError>,
    resumed: bool,
}

impl Fate {
    pub(crate) fn error(&self) -> Option<LinkError> {
        self.0.lock().unwrap().error.clone()
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.0.lock().unwrap().resumed
    }
}

/// A socket to the relay, TCP or Unix.
pub(crate) fn tcp(address: &str) -> UnixStream {
    // Both are stream sockets; the standard library's reads and writes know no difference.
    UnixStream::from(OwnedFd::from(TcpStream::connect(address).unwrap()))
}

/// A tunnel over `socket`. Ciphertext goes out in pieces of at most `slice` bytes.
pub(crate) fn open(connector: &Connector, name: &str, socket: UnixStream, slice: usize) -> (UnixStream, Fate) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    for stream in [&ours, &theirs, &socket] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    let (link, fate) = (connector.link(name).unwrap(), Fate::default());
    let told = fate.clone();
    std::thread::spawn(move || carry(link, socket, theirs, slice, &told));
    (ours, fate)
}

fn carry(mut link: ClientLink, mut socket: UnixStream, mut plain: UnixStream, slice: usize, fate: &Fate) {
    let (mut heard, mut out, mut chunk) = (Vec::new(), Vec::new(), vec![0; 65_536]);
    let mut outcome = link.feed(&[], &mut heard, &mut out);
    let mut plain_open = true;
    // The test may write much before it reads: neither direction waits for the other.
    plain.set_nonblocking(true).unwrap();
    loop {
        // Nobody may be there any more: then the next read says so.
        for piece in out.chunks(slice) {
            let _ = socket.write_all(piece);
        }
        out.clear();
        match plain.write(&heard) {
            Ok(length) => drop(heard.drain(..length)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => heard.clear(),
        }
        if link.is_ready() {
            fate.0.lock().unwrap().resumed = link.is_resumed();
        }
        if let Err(error) = outcome {
            fate.0.lock().unwrap().error = Some(error);
            break;
        }
        let mut interest = if plain_open && link.is_ready() { PollFlags::IN } else { PollFlags::empty() };
        interest.set(PollFlags::OUT, !heard.is_empty());
        let (from_socket, from_plain) = {
            let both = [(socket.as_fd(), PollFlags::IN), (plain.as_fd(), interest)];
            let mut both = both.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
            if poll(&mut both, None).is_err() {
                continue;
            }
            let readable = both[1].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
            (!both[0].revents().is_empty(), plain_open && link.is_ready() && readable)
        };
        if from_plain {
            match plain.read(&mut chunk) {
                Ok(length) if length > 0 => outcome = link.seal(&chunk[..length], &mut out),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => {
                    plain_open = false;
                    link.close(&mut out);
                    let _ = socket.write_all(&out);
                    out.clear();
                    let _ = socket.shutdown(Shutdown::Write);
                }
            }
        }
        if from_socket {
            match socket.read(&mut chunk) {
                Ok(length) if length > 0 => outcome = link.feed(&chunk[..length], &mut heard, &mut out),
                _ => break,
            }
        }
    }
    plain.set_nonblocking(false).unwrap();
    let _ = plain.write_all(&heard);
    let _ = plain.shutdown(Shutdown::Both);
}
