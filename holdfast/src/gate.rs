//! The ports of one VM as the gate that the checkpoint side holds.

use holdfast_checkpoint::gate::{CutReport, GateError, GateState, OutputGate, Stream};
use holdfast_dataplane::kept::KeptPorts;
use holdfast_dataplane::{GateError as PortError, Handle, LedgerLimits, Mode, PortId};
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
    /// None for a VM that never speculates.
    stream: Option<Stream>,
    /// What came with the commits of the other host.
    kept: KeptPorts,
    /// Whether anything was kept since it was last gone on from.
    has_kept: bool,
}

impl PortGate {
    /// The gate of `ports`, which were added fenced; `limits` is of what is kept of each port's flows, none
    /// for a port that never speculates.
    pub(crate) fn new(
        vm: &str,
        handle: &Handle,
        ports: Vec<PortId>,
        limits: &[Option<LedgerLimits>],
    ) -> Result<Self, PortError> {
        let handle = handle.with_deadline(DEADLINE);
        let lease = handle.lease(&ports)?;
        let stream = match limits.iter().any(Option::is_some) {
            true => {
                let streamed = handle.stream(&ports)?;
                Some(Stream { chunks: streamed.chunks, spare: streamed.spare })
            }
            false => None,
        };
        Ok(Self {
            vm: vm.to_owned(),
            handle,
            ports,
            lease,
            until_ns: 0,
            protected: false,
            stream,
            kept: KeptPorts::new(limits),
            has_kept: false,
        })
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
    fn cut(&mut self, epoch: EpochId, whole: bool) -> Result<CutReport, GateError> {
        let report = self.handle.cut(&self.ports, epoch, whole).map_err(told)?;
        let state = GateState { bytes: report.port_state, self_contained: report.self_contained };
        Ok(CutReport { frames: report.frames, bytes: report.bytes, state })
    }

    fn stream(&self) -> Option<Stream> {
        self.stream.clone()
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
        self.kept.apply(state, stream).map_err(|fault| GateError::State(fault.to_string()))?;
        self.has_kept = true;
        Ok(())
    }

    fn restore(&mut self) -> Result<(), GateError> {
        if !std::mem::take(&mut self.has_kept) {
            return Err(GateError::Misuse("nothing was kept".to_owned()));
        }
        if !self.kept.is_sound() {
            return Err(GateError::State("the flows kept are of different epochs".to_owned()));
        }
        self.handle.restore(&self.ports, &mut self.kept).map_err(told)
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
