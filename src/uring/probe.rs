//! Chooses the driver: tries each candidate on a socket pair with the code that will run, never asks for a version.

use super::epoll::Epoll;
use super::ring::Ring;
use super::setup::Age;
use super::{Backend, Completion, Driver, Inner, Options, Receive, ReceiveMode, Report};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Turns a candidate has to hand over the trial's bytes; each takes 100 ms at most.
const TRIAL_TURNS_MAX: usize = 50;
/// Longer than a provided buffer, so that a bundle is a bundle; shorter than a Unix socket's send buffer.
const TRIAL_BYTES: usize = 40_000;

pub(super) fn choose(options: &Options) -> io::Result<Driver> {
    if options.backend == Backend::Epoll {
        return epoll(options, None);
    }
    let candidates: &[Receive] = match (options.receive, options.backend) {
        // One poll and one recv at a time is what epoll does too, only with more to do around it.
        (Receive::Auto, Backend::Auto) => &[Receive::Incremental, Receive::Bundle, Receive::Provided],
        (Receive::Auto, _) => &[Receive::Incremental, Receive::Bundle, Receive::Provided, Receive::Single],
        (Receive::Incremental, _) => &[Receive::Incremental],
        (Receive::Bundle, _) => &[Receive::Bundle],
        (Receive::Provided, _) => &[Receive::Provided],
        (Receive::Single, _) => &[Receive::Single],
    };
    let mut reason = None;
    for &receive in candidates {
        match ring(options, receive, reason.take()) {
            Ok(driver) => return Ok(driver),
            Err(Refusal::Ring(error)) if options.backend == Backend::Auto => {
                return epoll(options, Some(sentence(&error)));
            }
            Err(Refusal::Ring(error)) => {
                return Err(io::Error::new(error.kind(), sentence(&error)));
            }
            // The first reason is the one that matters: why the best does not work.
            Err(Refusal::Receive(why)) => reason = Some(reason.take().unwrap_or(why)),
        }
    }
    match options.backend {
        Backend::Auto => epoll(options, reason),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, reason.unwrap_or_default())),
    }
}

enum Refusal {
    /// There is no io_uring at all.
    Ring(io::Error),
    /// It does not receive in this way.
    Receive(String),
}

fn ring(options: &Options, receive: Receive, fallback: Option<String>) -> Result<Driver, Refusal> {
    // Whether a failure is the ring's or the buffers' shows only without buffers.
    let ring = Ring::open(options, receive).map_err(|error| match super::setup::open(8, Age::Any) {
        Ok((ring, _)) if super::setup::missing(&ring).is_none() => Refusal::Receive(format!(
            "io_uring receives less well than it could: no {} buffers ({error})",
            name(receive)
        )),
        _ => Refusal::Ring(error),
    })?;
    let report = Report {
        backend: "io_uring",
        receive: name(receive),
        setup: ring.setup(),
        msg_ring: ring.msg_ring(),
        fallback,
    };
    let mut driver = Driver::from_parts(Inner::Ring(Box::new(ring)), report);
    match try_it(&mut driver) {
        Ok(()) => Ok(driver),
        Err(error) => {
            let name = name(receive);
            Err(Refusal::Receive(format!("io_uring receives less well than it could: {name} receive failed ({error})")))
        }
    }
}

fn epoll(options: &Options, fallback: Option<String>) -> io::Result<Driver> {
    let report = Report { backend: "epoll", receive: "readiness", setup: "", msg_ring: false, fallback };
    let mut driver = Driver::from_parts(Inner::Epoll(Box::new(Epoll::open(options)?)), report);
    try_it(&mut driver)?;
    Ok(driver)
}

/// Receives what is sent in two parts, then the end.
fn try_it(driver: &mut Driver) -> io::Result<()> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let mut peer = UnixStream::from(theirs);
    peer.set_nonblocking(true)?;
    let id = driver.attach(ours).map_err(|_| io::Error::other("no room for a single connection"))?;
    let sent: Vec<u8> = (0..TRIAL_BYTES).map(|index| index as u8 ^ (index >> 8) as u8).collect();
    let (first, second) = sent.split_at(100);
    driver.receive(id, ReceiveMode::Stream);
    peer.write_all(first)?;
    let mut received = Vec::new();
    let mut ended = None;
    let mut written = first.len();
    for _ in 0..TRIAL_TURNS_MAX {
        if received.len() == first.len() && written == first.len() {
            peer.write_all(second)?;
            peer.shutdown(Shutdown::Write)?;
            written = sent.len();
        }
        driver.turn(Some(Duration::from_millis(100)), |completion| match completion {
            Completion::Received { bytes, .. } => received.extend_from_slice(bytes),
            Completion::Ended { error, .. } => ended = Some(error),
            _ => {}
        })?;
        if ended.is_some() {
            break;
        }
    }
    driver.close(id);
    driver.turn(Some(Duration::ZERO), |_| {})?;
    match ended {
        Some(Some(error)) => Err(error),
        _ if received != sent => Err(io::Error::other("bytes of a trial were lost or out of order")),
        Some(None) => Ok(()),
        None => Err(io::Error::other("the end of a trial was not seen")),
    }
}

fn name(receive: Receive) -> &'static str {
    match receive {
        Receive::Auto => "automatic",
        Receive::Incremental => "incremental",
        Receive::Bundle => "bundle",
        Receive::Provided => "provided",
        Receive::Single => "single",
    }
}

/// Why there is no io_uring, and what to do.
fn sentence(error: &io::Error) -> String {
    use io::ErrorKind::{OutOfMemory, PermissionDenied, Unsupported};
    match error.kind() {
        PermissionDenied => format!(
            "io_uring is forbidden here ({error}): allow io_uring_setup in the container's seccomp profile, or set kernel.io_uring_disabled=0"
        ),
        OutOfMemory => format!("io_uring got no memory ({error}): raise the locked-memory limit (ulimit -l)"),
        Unsupported if error.raw_os_error().is_none() => error.to_string(),
        Unsupported => format!("this kernel has no io_uring ({error}): 5.11 or later is needed"),
        _ => format!("io_uring does not work here: {error}"),
    }
}
