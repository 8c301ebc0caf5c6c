//! The simplest relay there is: two sockets, and a blocking splice(2) for each direction. For ping-pong only.
//! It shows that the floor is one: what the kernel costs when a process does nothing but move the bytes.
#![forbid(unsafe_code)]

use rustix::pipe::{SpliceFlags, pipe, splice};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

/// As much as a pipe holds.
const PIPE_BYTES: usize = 64 * 1024;

/// Binds `path` and joins each two connections that follow each other, until the process ends.
pub fn serve(path: &str) -> io::Result<()> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    loop {
        let (one, _) = listener.accept()?;
        let (other, _) = listener.accept()?;
        let (one_again, other_again) = (one.try_clone()?, other.try_clone()?);
        let back = thread::spawn(move || carry(&other_again, &one_again));
        // An error is the end of a connection.
        let _ = carry(&one, &other);
        let _ = back.join();
    }
}

fn carry(from: &UnixStream, to: &UnixStream) -> io::Result<()> {
    let (take, give) = pipe()?;
    loop {
        let mut moved = splice(from, None, &give, None, PIPE_BYTES, SpliceFlags::MOVE)?;
        if moved == 0 {
            return to.shutdown(std::net::Shutdown::Both);
        }
        while moved > 0 {
            moved -= splice(&take, None, to, None, moved, SpliceFlags::MOVE)?;
        }
    }
}
