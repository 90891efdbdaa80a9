//! The ports of one VM as the gate that the checkpoint side holds.

use crate::treatment::{Output, Treatment};
use crossbeam_channel::Receiver;
use holdfast_checkpoint::gate::{CutReport, GateError, GateState, OutputGate, PortLimits, Stream, Traffic};
use holdfast_dataplane::counters::{PortCounter, PortCounters};
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
    /// Told of the guest's first output in each epoch.
    said: Receiver<()>,
    /// None for a VM that never speculates.
    stream: Option<Stream>,
    limits: Vec<PortLimits>,
    /// What came with the commits of the other host.
    kept: KeptPorts,
    output: Arc<Output>,
    /// How what was kept is treated, unless nothing was since it was last gone on from.
    treatment: Option<Treatment>,
}

impl PortGate {
    /// The gate of `ports`, which were added fenced; `queue_pairs` are those of each port's card, and `limits` is
    /// of what is kept of its flows, none for a port that never speculates.
    pub(crate) fn new(
        vm: &str,
        handle: &Handle,
        ports: Vec<PortId>,
        queue_pairs: &[u16],
        limits: &[Option<LedgerLimits>],
        output: Arc<Output>,
    ) -> Result<Self, PortError> {
        let handle = handle.with_deadline(DEADLINE);
        let lease = handle.lease(&ports)?;
        let said = handle.output(&ports)?;
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
            said,
            stream,
            limits: limits.iter().zip(queue_pairs).map(limits_of).collect(),
            kept: KeptPorts::new(limits),
            output,
            treatment: None,
        })
    }
}

/// The limits of a port, nothing for one that never speculates.
fn limits_of((limits, &queue_pairs): (&Option<LedgerLimits>, &u16)) -> PortLimits {
    let none = PortLimits { queue_pairs, ..PortLimits::default() };
    limits.map_or(none, |limits| PortLimits {
        queue_pairs,
        flows: u32::try_from(limits.max_flows).unwrap_or(u32::MAX),
        bytes: limits.held_bytes as u64,
    })
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
        let cut = |treatment: &Treatment| {
            self.handle.cut_behind(&treatment.encode(), &self.ports, epoch, whole).map_err(told)
        };
        let report = self.output.cut(cut)?;
        let state = GateState { bytes: report.port_state, self_contained: report.self_contained };
        Ok(CutReport { frames: report.frames, bytes: report.bytes, state })
    }

    fn limits(&self) -> Vec<PortLimits> {
        self.limits.clone()
    }

    fn stream(&self) -> Option<Stream> {
        self.stream.clone()
    }

    fn traffic(&self) -> Option<Traffic> {
        let counters: Vec<_> =
            self.ports.iter().filter_map(|&port| self.handle.port_counters(port)).collect();
        let bytes = move || {
            let sum = |port: &Arc<PortCounters>| {
                port.events.get(PortCounter::CapturedBytes) + port.events.get(PortCounter::DeliveredBytes)
            };
            counters.iter().map(sum).sum()
        };
        Some(Traffic { output: self.said.clone(), bytes: Box::new(bytes) })
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

    fn keep(&mut self, state: &[u8], stream: &[&[u8]]) -> Result<(), GateError> {
        let (treatment, ports) = Treatment::decode(state).map_err(GateError::State)?;
        self.kept.apply(ports, stream).map_err(|fault| GateError::State(fault.to_string()))?;
        self.output.foresee(&treatment);
        self.treatment = Some(treatment);
        Ok(())
    }

    fn restore(&mut self) -> Result<(), GateError> {
        let Some(treatment) = self.treatment.take() else {
            return Err(GateError::Misuse("nothing was kept".to_owned()));
        };
        self.handle.restore(&self.ports, &mut self.kept).map_err(told)?;
        self.output.take_over(treatment).map_err(told)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode as Asked;
    use holdfast_dataplane::headers::flag;
    use holdfast_dataplane::heap::{HeapDriver, HeapGuest, HeapPeer, HeapWire};
    use holdfast_dataplane::{Core, EngineConfig, IdlePolicy, PortConfig, sample};
    use holdfast_epoch::{Confirmation, Digest, Epoch};
    use std::thread::{self, JoinHandle};

    const PORT: PortId = PortId(1);
    const LONG: Duration = Duration::from_secs(3600);

    /// A gate with its polling core, one guest and its wire.
    struct Gated {
        gate: PortGate,
        handle: Handle,
        output: Arc<Output>,
        guest: HeapDriver,
        peer: HeapPeer,
        sent: u8,
        core: Option<JoinHandle<()>>,
    }

    impl Gated {
        /// As the program makes it: fenced, and without a term.
        fn new() -> Self {
            let (wire, peer) = HeapWire::new(1500, 4096, true).expect("a wire");
            let idle = IdlePolicy::Adaptive { spin: Duration::from_micros(50) };
            let (mut core, handle) = Core::new(vec![wire], idle, None).expect("a core");
            let core = Some(thread::spawn(move || core.run()));
            let (port, guest) = HeapGuest::new().expect("a guest");
            let engine =
                Box::new(EngineConfig { max_flows: 64, held_bytes: 1 << 20, ..EngineConfig::default() });
            let config = PortConfig { fenced: true, speculation: Some(engine), ..PortConfig::default() };
            handle.add_port(PORT, Box::new(port), config).expect("a port");
            let limits = [Some(LedgerLimits { max_flows: 64, held_bytes: 1 << 20 })];
            let output = Arc::new(Output::new(&handle, vec![PORT], Asked::Commit, &[]).expect("an output"));
            let gate = PortGate::new("web", &handle, vec![PORT], &[1], &limits, Arc::clone(&output))
                .expect("a gate");
            Self { gate, handle, output, guest, peer, sent: 0, core }
        }

        /// In native mode, in the term of this number.
        fn admitted(term: u64) -> Self {
            let mut gated = Self::new();
            gated.gate.admit(Term::new(term)).expect("admitted");
            gated
        }

        /// Lets the guest send a frame, and the core take it if it takes any.
        fn send(&mut self) -> Vec<u8> {
            self.sent += 1;
            let frame = sample::opaque(sample::CLIENT, [0x52, 0x54, 0, 0, 0, 1], 64, self.sent);
            self.guest.send(frame.clone());
            self.settle();
            frame
        }

        /// Waits for whole turns of the core, of which each may serve several commands.
        fn settle(&self) {
            for _ in 0..9 {
                self.handle.status(&[]).expect("the core answers");
            }
        }

        /// What has come out on the wire since the last look.
        fn wire(&self) -> Vec<Vec<u8>> {
            self.settle();
            self.peer.take()
        }

        /// Waits for what comes out on the wire.
        fn wait_for_wire(&self) -> Vec<Vec<u8>> {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                let frames = self.wire();
                if !frames.is_empty() {
                    return frames;
                }
                assert!(Instant::now() < deadline, "nothing comes out");
            }
        }

        /// Connects a client to that port of the guest, commits it as that epoch, and lets the guest send; gives
        /// the state of the flow.
        fn connect(&mut self, port: u16, term: u64, epoch: u64) -> String {
            let guest = |flags, sequence, options: &[u8], payload: &[u8]| sample::Tcp {
                flags,
                sequence,
                acknowledgement: 7001,
                ports: (port, 40000),
                options: options.to_vec(),
                ..sample::Tcp::data(false, payload.to_vec())
            };
            let client = |flags, sequence, acknowledgement, options: &[u8]| {
                let segment = sample::Tcp {
                    destination: sample::GUEST,
                    source: sample::CLIENT,
                    ports: (40000, port),
                    acknowledgement,
                    ..guest(flags, sequence, options, &[])
                };
                let mut bytes = segment.bytes();
                bytes[26..34].copy_from_slice(&[10, 0, 0, 9, 10, 0, 0, 2]);
                sample::complete(&mut bytes, segment.transport(), false);
                bytes
            };
            let mss = [2, 4, 5, 180];
            self.peer.put(&client(flag::SYN, 7000, 0, &mss));
            self.settle();
            self.guest.send(guest(flag::SYN | flag::ACK, 1000, &mss, &[]).bytes());
            self.settle();
            self.commit(term, epoch);
            self.wait_for_wire();
            self.peer.put(&client(flag::ACK, 7001, 1001, &[]));
            self.settle();
            self.guest.send(guest(flag::ACK | flag::PSH, 1001, &[], &[5; 100]).bytes());
            self.settle();
            let flows = self.handle.flows(&[PORT]).expect("told");
            let flow = flows.into_iter().find(|(_, flow)| flow.guest.1 == port).expect("known");
            flow.1.state.to_string()
        }

        /// Seals an epoch and releases it as committed.
        fn commit(&mut self, term: u64, epoch: u64) {
            let (term, id, digest) = (Term::new(term), EpochId::new(epoch), Digest([1; 32]));
            self.gate.cut(id, false).expect("cut");
            let (sealed, _) = Epoch::open(term, id).seal(());
            let word = Confirmation { term, epoch: id, digest };
            let committed = sealed.replicated(digest, |()| ()).commit(&word).map_err(|(_, fault)| fault);
            self.gate.release(committed.expect("right").0.into_release_token()).expect("released");
        }
    }

    impl Drop for Gated {
        fn drop(&mut self) {
            self.handle.stop();
            let ended = self.core.take().map(JoinHandle::join);
            assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the core panicked");
        }
    }

    /// SP-3: a machine that comes here is treated as it was as the committed epoch ended, whatever this host
    /// began with; what was changed later is of a later epoch.
    #[test]
    fn a_mode_and_exceptions_that_were_changed_come_with_the_machine() {
        let exceptions =
            |texts: &[&str]| texts.iter().map(|text| text.parse().expect("one")).collect::<Vec<_>>();
        let mut old = Gated::admitted(1);
        old.gate.protect(EpochId::FIRST).expect("protected");
        old.output.speculate(Asked::Aware).expect("changed");
        old.output.set_exceptions(exceptions(&["5001", "fd00::/8"])).expect("changed");
        let state = old.gate.cut(EpochId::FIRST, true).expect("cut").state;
        old.output.set_exceptions(exceptions(&["5002"])).expect("changed");

        let mut new = Gated::new();
        assert_eq!(new.output.shown(), (Asked::Commit, vec![]));
        new.gate.keep(&state.bytes, &[]).expect("kept");
        let carried = (Asked::Aware, exceptions(&["5001", "fd00::/8"]));
        assert_eq!(new.output.shown(), carried, "the backup says what it would go on with");
        assert!(!new.handle.status(&[PORT]).expect("told")[0].speculative, "and does nothing of it yet");
        new.gate.restore().expect("restored");
        new.gate.admit(Term::new(2)).expect("admitted");
        assert_eq!(new.output.shown(), carried);
        assert!(new.handle.status(&[PORT]).expect("told")[0].speculative);
        new.gate.protect(EpochId::FIRST).expect("protected");
        new.gate.extend_lease(Instant::now() + LONG);
        assert_eq!(new.connect(5001, 2, 1), "plain", "the exception is in force");
        assert_eq!(new.connect(5002, 2, 2), "speculating");

        // It goes on from here with what the next cut says.
        let state = new.gate.cut(EpochId::new(3), true).expect("cut").state;
        let (treatment, _) = Treatment::decode(&state.bytes).expect("a treatment");
        assert_eq!((treatment.speculative, treatment.except), (true, carried.1));
    }

    /// FO-1: committed or not, what a protected guest sent leaves only while the lease runs.
    #[test]
    fn a_protected_port_transmits_within_its_lease_only() {
        let mut gated = Gated::admitted(1);
        gated.gate.protect(EpochId::FIRST).expect("protected");
        let frame = gated.send();
        gated.commit(1, 1);
        assert_eq!(gated.wire(), Vec::<Vec<u8>>::new(), "no lease was granted yet");
        gated.gate.extend_lease(Instant::now());
        assert_eq!(gated.wire(), Vec::<Vec<u8>>::new(), "one that is over grants nothing");
        gated.gate.extend_lease(Instant::now() + LONG);
        assert_eq!(gated.wait_for_wire(), [frame]);
        // An older word does not take back what was granted.
        gated.gate.extend_lease(Instant::now());
        let frame = gated.send();
        gated.commit(1, 2);
        assert_eq!(gated.wait_for_wire(), [frame]);
    }

    /// FO-1: what was granted before a port is protected counts for it from then on.
    #[test]
    fn a_lease_that_was_granted_before_counts_from_the_protection_on() {
        let mut gated = Gated::admitted(1);
        gated.gate.extend_lease(Instant::now());
        let free = gated.send();
        assert_eq!(gated.wait_for_wire(), [free], "a port that nobody may ask for needs none");
        gated.gate.protect(EpochId::FIRST).expect("protected");
        let frame = gated.send();
        gated.commit(1, 1);
        assert_eq!(gated.wire(), Vec::<Vec<u8>>::new(), "the lease is over");
        // Alone by the arbiter's word, it needs none again.
        gated.gate.open().expect("opened");
        assert_eq!(gated.wait_for_wire(), [frame]);
    }

    /// FO-1: a fenced port transmits nothing, whatever lease runs, and takes nothing from its guest.
    #[test]
    fn a_fenced_port_is_silent_until_it_is_admitted_in_a_newer_term() {
        let mut gated = Gated::new();
        gated.gate.extend_lease(Instant::now() + LONG);
        let first = gated.send();
        assert_eq!(gated.wire(), Vec::<Vec<u8>>::new(), "it holds no term");
        gated.gate.admit(Term::new(4)).expect("admitted");
        assert_eq!(gated.wait_for_wire(), [first]);
        gated.gate.protect(EpochId::FIRST).expect("protected");
        let lost = gated.send();
        gated.gate.fence();
        let second = gated.send();
        assert_eq!(gated.wire(), Vec::<Vec<u8>>::new());
        assert!(gated.gate.admit(Term::new(3)).is_err(), "terms only grow");
        assert_eq!(gated.wire(), Vec::<Vec<u8>>::new());
        gated.gate.admit(Term::new(5)).expect("admitted");
        let sent = gated.wait_for_wire();
        assert_eq!(sent, [second]);
        assert!(!sent.contains(&lost), "what was not committed is gone");
    }

    /// OC-1: a gate holds as often as it is told to, be it after it was opened or after it was fenced.
    #[test]
    fn a_port_is_protected_anew_each_time() {
        let mut gated = Gated::admitted(1);
        gated.gate.extend_lease(Instant::now() + LONG);
        let mut epoch = 1;
        for term in [2, 4, 6, 8] {
            gated.gate.protect(EpochId::new(epoch)).expect("protected");
            let held = gated.send();
            assert_eq!(gated.wire(), Vec::<Vec<u8>>::new(), "nothing was committed in term {term}");
            gated.commit(term, epoch);
            assert_eq!(gated.wait_for_wire(), [held]);
            let held = gated.send();
            assert_eq!(gated.wire(), Vec::<Vec<u8>>::new(), "the next epoch is not committed");
            if term % 4 == 0 {
                gated.gate.open().expect("opened");
                assert_eq!(gated.wait_for_wire(), [held], "alone");
            } else {
                gated.gate.fence();
                gated.gate.admit(Term::new(term + 1)).expect("admitted");
            }
            epoch += 2;
            let free = gated.send();
            assert_eq!(gated.wait_for_wire(), [free], "native");
        }
    }
}
