//! The page pipeline of the primary.
//!
//! Three threads work on a protected guest:
//!
//! ```text
//! supervisor                     stop, cut ---------------- save devices ---------- cont, seal ...
//!                                   |  (side by side)                        |          |
//! capture        scan, copy ahead   '-> scan, copy into chunks ... last scan, copy      |
//!                      |                       | chunks (bounded pool)                  v
//! replication          '-> reduce, digest, send '-> reduce, digest, send ............. seal, send
//!   the gate's stream --------------> digest, send (SP-2) .........^
//!                                   committed -> token -> gate.release (OC-1)
//! ```
//!
//! The supervisor decides when; it is the only one to speak with QEMU. The capture thread owns the
//! guest's memory, the tracker and the set of pages that some epoch still has to carry (CK-2): what an
//! aborted epoch carried goes back there. The replication thread owns the epochs in flight and is the
//! only one to turn a confirmation into a token.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod ahead;
mod capture;
mod policy;
mod replicator;
mod staging;
mod stats;
mod stream;

pub use policy::{EpochFacts, EpochPolicy, FixedLength, FollowOutput, OnOutput};
pub use staging::StagingPages;
pub use stats::{EpochRecord, PauseParts, SpreadUs, StatsSnapshot};

pub(crate) use ahead::LEAST_OF_EPOCH;
pub(crate) use capture::{Capture, CaptureError, Captured, Round, RoundEnd};
pub(crate) use replicator::{Contents, Ending, Report, SealedEpoch, Session, SessionSettings, begin};
pub(crate) use staging::{CHUNK_BYTES, Chunk, Staging};
pub(crate) use stats::{SealTimes, Stats};

use crate::gate::{CutReport, GateError, OutputGate, PortLimits, Stream, Traffic};
use crate::protocol::BATCH_PAGES;
use holdfast_epoch::{EpochId, ReleaseToken, Term};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Pages in a chunk, and so in a frame at the most.
pub(crate) const CHUNK_PAGES: usize = BATCH_PAGES as usize;

/// The gate, shared by the supervisor and the replication thread. The lock is held for one call.
#[derive(Clone)]
pub(crate) struct SharedGate(Arc<Mutex<Box<dyn OutputGate>>>);

impl SharedGate {
    pub(crate) fn new(gate: Box<dyn OutputGate>) -> Self {
        Self(Arc::new(Mutex::new(Box::new(HoldingGate { gate, holds_nothing: false }))))
    }

    #[expect(clippy::disallowed_methods, reason = "of an epoch or a heartbeat, not of pages")]
    pub(crate) fn lock(&self) -> MutexGuard<'_, Box<dyn OutputGate>> {
        // A panic of the gate's own code leaves the gate as it is: to be fenced, if anything.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A gate that is told of a commit only while it holds output. A commit that was on its way when the
/// supervisor fenced or opened it has nothing left to release (FO-1).
struct HoldingGate {
    gate: Box<dyn OutputGate>,
    /// It was fenced or opened, and has not been told to hold since.
    holds_nothing: bool,
}

impl OutputGate for HoldingGate {
    fn cut(&mut self, epoch: EpochId, whole: bool) -> Result<CutReport, GateError> {
        self.gate.cut(epoch, whole)
    }

    fn limits(&self) -> Vec<PortLimits> {
        self.gate.limits()
    }

    fn stream(&self) -> Option<Stream> {
        self.gate.stream()
    }

    fn traffic(&self) -> Option<Traffic> {
        self.gate.traffic()
    }

    fn release(&mut self, token: ReleaseToken) -> Result<(), GateError> {
        if self.holds_nothing {
            tracing::debug!(epoch = %token.epoch(), "a late commit: nothing is held for it any more");
            return Ok(());
        }
        self.gate.release(token)
    }

    fn protect(&mut self, first: EpochId) -> Result<(), GateError> {
        self.gate.protect(first)?;
        self.holds_nothing = false;
        Ok(())
    }

    fn open(&mut self) -> Result<(), GateError> {
        self.gate.open()?;
        self.holds_nothing = true;
        Ok(())
    }

    fn fence(&mut self) {
        self.gate.fence();
        self.holds_nothing = true;
    }

    fn admit(&mut self, term: Term) -> Result<(), GateError> {
        self.gate.admit(term)
    }

    fn extend_lease(&mut self, until: Instant) {
        self.gate.extend_lease(until);
    }

    fn keep(&mut self, state: &[u8], stream: &[&[u8]]) -> Result<(), GateError> {
        self.gate.keep(state, stream)
    }

    fn restore(&mut self) -> Result<(), GateError> {
        self.gate.restore()
    }

    fn announce(&mut self) {
        self.gate.announce();
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
