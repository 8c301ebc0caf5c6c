//! The absorber: one thread that puts what the writer has appended into the log, behind its back: many commits with one of
//! LMDB's. Nobody waits for it but a writer whose journal is full.

use super::{Gauges, wall_ms};
use crate::mesh::Mesh;
use crate::store::{ABSORBED_AT_ONCE, Store, Trouble};
use crate::uring::Waker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What has come since is absorbed this often.
const INTERVAL: Duration = Duration::from_millis(20);
/// The absorber's nice value: behind those who answer, before the keeper.
const NICENESS: i32 = 10;
/// How long the disk may refuse before it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The absorber, on its own thread.
pub struct Absorber {
    mesh: Arc<Mesh>,
    store: Store,
    own: Waker,
    gauges: Arc<Gauges>,
    stop: Arc<AtomicBool>,
}

impl Absorber {
    /// An absorber that has done nothing yet. It returns after `stop`, with nothing left where the disk allows.
    pub fn new(mesh: Arc<Mesh>, store: Store, own: Waker, gauges: Arc<Gauges>, stop: Arc<AtomicBool>) -> Absorber {
        Absorber { mesh, store, own, gauges, stop }
    }

    /// Rests until something is appended, waits a moment for more, absorbs; until told to stop.
    pub fn run(self) {
        let _ = rustix::process::setpriority_process(None, NICENESS);
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            let absorbed = self.absorb(if stopping { u64::MAX } else { ABSORBED_AT_ONCE });
            if stopping {
                return;
            }
            self.mesh.absorber_rest().doze();
            let timeout = match self.store.unabsorbed_bytes() {
                _ if !absorbed => Some(RETRY),
                0 => None,
                1..ABSORBED_AT_ONCE => Some(INTERVAL),
                _ => Some(Duration::ZERO),
            };
            if timeout != Some(Duration::ZERO) && !self.stop.load(Ordering::Acquire) {
                self.own.wait(timeout);
            }
            self.mesh.absorber_rest().awake();
        }
    }

    fn absorb(&self, bytes: u64) -> bool {
        match self.store.absorb_some(bytes) {
            Ok(()) => {
                // Where that fails the writer will say it.
                let _ = self.store.make_room();
                if self.gauges.log_trouble.lock().take().is_some() {
                    tracing::info!("the log takes what it is given again");
                }
                true
            }
            Err(error) => {
                // What was appended is on the disk and stays there; the writer takes no more until this is over.
                let mut trouble = self.gauges.log_trouble.lock();
                if trouble.is_none() {
                    tracing::error!(reason = error.kind(), "the log takes nothing: {}", error.while_running());
                }
                let since_ms = trouble.as_ref().map_or_else(wall_ms, |trouble| trouble.since_ms);
                *trouble = Some(Trouble::of(&error, since_ms));
                false
            }
        }
    }
}
