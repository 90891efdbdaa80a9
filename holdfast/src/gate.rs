//! The ports of one VM as the gate that the checkpoint side holds.

use holdfast_checkpoint::gate::{CutReport, GateError, GateState, OutputGate, Stream};
use holdfast_dataplane::{GateError as PortError, Handle, Mode, PortId};
use holdfast_epoch::{EpochId, ReleaseToken, Term};
use nix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The lease of a port that needs none.
const NO_LEASE: u64 = u64::MAX;
/// How long a call waits for the polling core.
const DEADLINE: Duration = Duration::from_secs(2);

/// All ports of one VM.
pub(crate) struct PortGate {
    vm: String,
    handle: Handle,
    ports: Vec<PortId>,
    lease: Arc<AtomicU64>,
    /// End of the lease granted so far, whether or not it counts now.
    until_ns: u64,
    protected: bool,
    /// The state of the last commit that came here.
    kept: Option<Vec<u8>>,
}

impl PortGate {
    /// The gate of `ports`, which were added fenced.
    pub(crate) fn new(vm: &str, handle: &Handle, ports: Vec<PortId>) -> Result<Self, PortError> {
        let handle = handle.with_deadline(DEADLINE);
        let lease = handle.lease(&ports)?;
        Ok(Self { vm: vm.to_owned(), handle, ports, lease, until_ns: 0, protected: false, kept: None })
    }
}

/// The dataplane's word in the checkpoint side's terms.
fn told(fault: PortError) -> GateError {
    match fault {
        PortError::NoAnswer => GateError::CoreSilent { waited_ms: DEADLINE.as_millis() as u64 },
        PortError::CoreGone => GateError::Gone,
        PortError::State(_) | PortError::StateCount { .. } => GateError::State(fault.to_string()),
        other => GateError::Misuse(other.to_string()),
    }
}

impl OutputGate for PortGate {
    /// The state of a port that does not speculate is always whole.
    fn cut(&mut self, epoch: EpochId, _whole: bool) -> Result<CutReport, GateError> {
        let report = self.handle.cut(&self.ports, epoch).map_err(told)?;
        let state = GateState::whole(report.port_state);
        Ok(CutReport { frames: report.frames, bytes: report.bytes, state })
    }

    fn stream(&self) -> Option<Stream> {
        None
    }

    fn release(&mut self, token: ReleaseToken) -> Result<(), GateError> {
        self.handle.release(&self.ports, token).map(drop).map_err(told)
    }

    fn protect(&mut self, first: EpochId) -> Result<(), GateError> {
        self.lease.store(self.until_ns, Ordering::Release);
        self.handle.set_mode(&self.ports, Mode::Commit { first }).map_err(|fault| {
            self.lease.store(NO_LEASE, Ordering::Release);
            told(fault)
        })?;
        self.protected = true;
        Ok(())
    }

    fn open(&mut self) -> Result<(), GateError> {
        self.handle.set_mode(&self.ports, Mode::Native).map_err(told)?;
        self.protected = false;
        self.lease.store(NO_LEASE, Ordering::Release);
        Ok(())
    }

    /// FO-1: a core that cannot be told to be silent is silenced with the process.
    fn fence(&mut self) {
        if let Err(fault) = self.handle.fence(&self.ports) {
            tracing::error!("VM {}: cannot fence its ports ({fault}); ending the process instead", self.vm);
            std::process::abort();
        }
        self.protected = false;
        self.lease.store(NO_LEASE, Ordering::Release);
    }

    fn admit(&mut self, term: Term) -> Result<(), GateError> {
        self.handle.unfence(&self.ports, term).map_err(told)?;
        // A port keeps its mode behind the fence: one that was protected in an earlier term would hold
        // the output of this one, which nobody confirms.
        self.handle.set_mode(&self.ports, Mode::Native).map_err(told)
    }

    fn extend_lease(&mut self, until: Instant) {
        let ahead = until.saturating_duration_since(Instant::now());
        self.until_ns = self.until_ns.max(monotonic_ns().saturating_add(ahead.as_nanos() as u64));
        if self.protected {
            self.lease.store(self.until_ns, Ordering::Release);
        }
    }

    fn keep(&mut self, state: &[u8], stream: &[u8]) -> Result<(), GateError> {
        if !stream.is_empty() {
            return Err(GateError::State("it speaks of speculation, which this host does not do".to_owned()));
        }
        let kept = self.kept.get_or_insert_default();
        kept.clear();
        kept.extend_from_slice(state);
        Ok(())
    }

    fn restore(&mut self) -> Result<(), GateError> {
        let kept = self.kept.take().ok_or_else(|| GateError::Misuse("nothing was kept".to_owned()))?;
        self.handle.restore(&self.ports, &kept).map_err(told)
    }

    fn announce(&mut self) {
        if let Err(fault) = self.handle.announce(&self.ports) {
            tracing::warn!("VM {}: its new place is not announced: {fault}", self.vm);
        }
    }
}

fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
