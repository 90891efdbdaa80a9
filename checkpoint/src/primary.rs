//! The page pipeline of the primary.
//!
//! Three threads work on a protected guest:
//!
//! ```text
//! supervisor      stop, cut ---------------- save devices ---------- cont, seal ...
//!                    |  (side by side)                        |          |
//! capture            '-> scan, copy into chunks ... last scan, copy      |
//!                               | chunks (bounded pool)                  v
//! replication                   '-> reduce, digest, send ............. seal, send
//!                                   committed -> token -> gate.release (OC-1)
//! ```
//!
//! The supervisor decides when; it is the only one to speak with QEMU. The capture thread owns the
//! guest's memory, the tracker and the set of pages that some epoch still has to carry (CK-2): what an
//! aborted epoch carried goes back there. The replication thread owns the epochs in flight and is the
//! only one to turn a confirmation into a token.

mod capture;
mod policy;
mod replicator;
mod stats;

pub use policy::{EpochPolicy, FixedLength};
pub use stats::{SpreadUs, StatsSnapshot};

pub(crate) use capture::{Capture, CaptureError, Captured, Round, RoundEnd};
pub(crate) use replicator::{Contents, Ending, Report, SealedEpoch, Session, SessionSettings, begin};
pub(crate) use stats::{SealTimes, Stats};

use crate::gate::OutputGate;
use crate::pages::{PAGE_SIZE, PageIndex};
use holdfast_epoch::EpochId;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pages in a chunk, and so in a frame at the most.
pub(crate) const CHUNK_PAGES: usize = 256;

/// The gate, shared by the supervisor and the replication thread. The lock is held for one call.
#[derive(Clone)]
pub(crate) struct SharedGate(Arc<Mutex<Box<dyn OutputGate>>>);

impl SharedGate {
    pub(crate) fn new(gate: Box<dyn OutputGate>) -> Self {
        Self(Arc::new(Mutex::new(gate)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Box<dyn OutputGate>> {
        // A panic of the gate's own code leaves the gate as it is: to be fenced, if anything.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Some captured pages; the buffers are used again and again.
#[derive(Debug)]
pub(crate) struct Chunk {
    pages: Vec<PageIndex>,
    bytes: Box<[u8]>,
}

impl Chunk {
    fn new() -> Self {
        let bytes = vec![0; CHUNK_PAGES * PAGE_SIZE].into_boxed_slice();
        Self { pages: Vec::with_capacity(CHUNK_PAGES), bytes }
    }

    fn room(&self) -> usize {
        CHUNK_PAGES - self.pages.len()
    }

    fn iter(&self) -> impl Iterator<Item = (PageIndex, &[u8])> {
        self.pages.iter().copied().zip(self.bytes.chunks_exact(PAGE_SIZE))
    }
}

/// What the replication thread is given to send, in this order.
#[derive(Debug)]
pub(crate) enum Work {
    /// Pages: of the full synchronisation, or of an epoch.
    Pages(Option<EpochId>, Chunk),
    /// The end of an epoch.
    Seal(Box<SealedEpoch>),
}

#[cfg(test)]
mod tests;
