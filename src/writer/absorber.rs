//! The absorber: one thread that puts what the writer has appended into the log, behind its back: many commits with one of
//! LMDB's. Nobody waits for it but a writer whose journal is full.

use super::{Gauges, Trouble, wall_ms};
use crate::mesh::Mesh;
use crate::store::{ABSORBED_AT_ONCE, Store};
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
    /// Whether the trouble that `status` shows was put there by this thread.
    in_trouble: bool,
}

impl Absorber {
    /// An absorber that has done nothing yet. It returns after `stop`, with nothing left where the disk allows.
    pub fn new(mesh: Arc<Mesh>, store: Store, own: Waker, gauges: Arc<Gauges>, stop: Arc<AtomicBool>) -> Absorber {
        Absorber { mesh, store, own, gauges, stop, in_trouble: false }
    }

    /// Rests until something is appended, waits a moment for more, absorbs; until told to stop.
    pub fn run(mut self) {
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
                ..ABSORBED_AT_ONCE => Some(INTERVAL),
                _ => Some(Duration::ZERO),
            };
            if timeout != Some(Duration::ZERO) && !self.stop.load(Ordering::Acquire) {
                self.own.wait(timeout);
            }
            self.mesh.absorber_rest().awake();
        }
    }

    fn absorb(&mut self, bytes: u64) -> bool {
        let mut trouble = match self.store.absorb_some(bytes) {
            Ok(()) => {
                if std::mem::take(&mut self.in_trouble) {
                    *self.gauges.trouble.lock() = None;
                    tracing::info!("the log takes what it is given again");
                }
                return true;
            }
            Err(error) => Trouble { kind: error.kind(), sentence: error.to_string(), since_ms: wall_ms() },
        };
        // What was appended is on the disk and stays there; the writer takes no more until this is over.
        let mut shown = self.gauges.trouble.lock();
        match &*shown {
            Some(shown) => trouble.since_ms = shown.since_ms,
            None => tracing::error!(reason = trouble.kind, "the log takes nothing: {}", trouble.sentence),
        }
        *shown = Some(trouble);
        self.in_trouble = true;
        false
    }
}
