//! Opens a ring with the best setup the kernel accepts.

use io_uring::{Builder, IoUring};
use std::io;

type Flags = fn(&mut Builder);

/// Setups, best first; the name is for people.
const SETUPS: [(&str, Flags); 3] = [
    // 6.1: completions are worked on in our own wait and nowhere else.
    ("single issuer, deferred task work", |builder| {
        builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_submit_all();
    }),
    // 5.19: no interruption by our own completions.
    ("cooperative task work", |builder| {
        builder.setup_coop_taskrun().setup_submit_all();
    }),
    // 5.11
    ("plain", |_| {}),
];

/// Setups that one may ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// Whatever the kernel has.
    Any,
    /// What 5.11 had.
    Old,
}

/// A ring, and the name of its setup.
pub(super) fn open(queue_entries: u32, age: Age) -> io::Result<(IoUring, &'static str)> {
    let mut failure = io::Error::from(io::ErrorKind::Unsupported);
    let mut entries = queue_entries.max(8);
    let skipped = if age == Age::Old { SETUPS.len() - 1 } else { 0 };
    for (name, flags) in SETUPS.into_iter().skip(skipped) {
        loop {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_clamp().setup_cqsize(entries * 4);
            flags(&mut builder);
            match builder.build(entries) {
                Ok(ring) => return Ok((ring, name)),
                // Before 5.12 the queues count as locked memory, and that limit may be small.
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory && entries > 64 => entries /= 2,
                // A flag the kernel does not know; the next setup has fewer.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    failure = error;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Err(failure)
}

/// What this room cannot do without, as a sentence when it is missing.
pub(super) fn missing(ring: &IoUring) -> Option<&'static str> {
    let parameters = ring.params();
    if !parameters.is_feature_nodrop() {
        Some("this kernel's io_uring may drop completions (5.5 is needed)")
    } else if !parameters.is_feature_fast_poll() {
        Some("this kernel's io_uring does not poll sockets (5.7 is needed)")
    } else if !parameters.is_feature_ext_arg() {
        Some("this kernel's io_uring cannot wait with a timeout (5.11 is needed)")
    } else {
        None
    }
}
