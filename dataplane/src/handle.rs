//! The control threads' end of a polling core.
//!
//! Commands go through a bounded channel and a wake descriptor, and are answered when they are done;
//! every call has a deadline. Leases are the one thing that is written without a command: extending
//! one is a single atomic store, and a core that runs late finds it expired by itself (FO-1).
//!
//! Threading: clone it freely; calls from several threads are carried out one after the other.

use crate::carrying::{LaneEnd, carry};
use crate::core_loop::{Action, Answer, NewPort, PortId};
use crate::counters::{Block, CoreCounter, PortCounters, Snapshot};
use crate::escrow::{Amount, EscrowError, Limits};
use crate::guest::GuestPort;
use crate::identity::{Identity, IdentityError, MAX_ENCODED};
use crate::kept::KeptPorts;
use crate::sleep::Sleep;
use crate::stream::{self, Stream};
use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use holdfast_epoch::{EpochId, ReleaseToken, Term};
use holdfast_speculation::{EngineConfig, FlowReport, Rules};
use holdfast_vhost_user::Endpoint;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Commands that wait for the core, at most.
const MAX_WAITING: usize = 64;

/// How long a call waits for the core, unless [`Handle::with_deadline`] says otherwise.
const DEADLINE: Duration = Duration::from_secs(2);

/// Version of the encoding of several ports' state.
const STATES_VERSION: u8 = 2;

/// Protection of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Output goes at once.
    Native,
    /// Output is held until the commit of the epoch in which it was sent.
    Commit {
        /// The epoch that runs.
        first: EpochId,
    },
}

/// What a port is made from, beside its guest.
#[derive(Clone, Debug, Default)]
pub struct PortConfig {
    /// Place of its wire in the core's list.
    pub wire: usize,
    /// Bounds.
    pub limits: Limits,
    /// Whether it begins fenced, as the port of a standby does, until [`Handle::unfence`].
    pub fenced: bool,
    /// How its flows speculate while it is protected; none for a port that never does.
    pub speculation: Option<Box<EngineConfig>>,
}

/// What was cut off at a seal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CutReport {
    /// Frames that belong to the epoch.
    pub frames: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Who the ports are and how their flows stand, for [`KeptPorts`] on the other host, in the order of
    /// the ports; behind the head, if one was given.
    pub port_state: Vec<u8>,
    /// Whether that says all by itself, without what came for the epochs before and by the stream.
    pub self_contained: bool,
}

/// A port as it is now.
#[derive(Clone, Debug)]
pub struct PortStatus {
    /// Which.
    pub port: PortId,
    /// Its mode, with the epoch that is open now.
    pub mode: Mode,
    /// Whether it is fenced.
    pub fenced: bool,
    /// Newest term heard of.
    pub term: Term,
    /// Whether its flows speculate while it is protected.
    pub speculative: bool,
    /// Since when the guest's agent has been silent; none when it has never asked.
    pub agent_silence: Option<Duration>,
    /// Frames that wait for a commit.
    pub held: Amount,
    /// Bytes of speculating flows that clients have not confirmed.
    pub unconfirmed_bytes: usize,
    /// What may go and waits for the wire or the lease.
    pub waiting: Amount,
    /// Whether it needs a lease to transmit.
    pub leased: bool,
    /// Whether the guest's driver runs.
    pub running: bool,
    /// MACs and addresses learned.
    pub identity: Identity,
}

/// Why a command was not carried out. Nothing has changed then, unless it says so.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GateError {
    /// The core did not answer in time. The command is not carried out later, but for a fence.
    #[error("host: the polling core did not answer in time; is its CPU taken by something else?")]
    NoAnswer,
    /// The core has ended.
    #[error("the polling core has ended; restart the appliance")]
    CoreGone,
    /// No such port.
    #[error("operator: port {port} is not on this core; add it first")]
    UnknownPort {
        /// The port named.
        port: PortId,
    },
    /// The number is taken.
    #[error("operator: port {port} is there already; give the new one another number")]
    PortExists {
        /// The port named.
        port: PortId,
    },
    /// No such wire.
    #[error("operator: wire {wire} does not exist, the core has {wires}")]
    NoSuchWire {
        /// The wire named.
        wire: usize,
        /// How many there are.
        wires: usize,
    },
    /// The bound of ports is reached.
    #[error("operator: the core has {limit} ports already; put the port on another core")]
    TooManyPorts {
        /// The bound.
        limit: usize,
    },
    /// The wire's memory is too small.
    #[error("operator: the wire has memory for {frames} frames, but {needed} are needed; enlarge its pool")]
    FewFrames {
        /// Frames free now.
        frames: usize,
        /// Frames needed.
        needed: usize,
    },
    /// The host has no address space for frames that wait.
    #[error("host: no memory for the frames of port {port} that wait; free some, or raise `ulimit -v`")]
    NoMemory {
        /// The port.
        port: PortId,
    },
    /// The escrow of a port refused.
    #[error("port {port}: {error}")]
    Escrow {
        /// The port.
        port: PortId,
        /// Why.
        error: EscrowError,
    },
    /// The state of the ports cannot be read.
    #[error("peer: {0}")]
    State(#[from] IdentityError),
    /// The state is of another number of ports.
    #[error(
        "peer: the state is of {found} ports, but {expected} are to be restored; configure both hosts alike"
    )]
    StateCount {
        /// Ports to be restored.
        expected: usize,
        /// Ports in the state.
        found: usize,
    },
}

/// A command on its way.
pub(crate) struct Request {
    pub(crate) ports: Vec<PortId>,
    pub(crate) action: Action,
    pub(crate) deadline: Instant,
    pub(crate) reply: Sender<Result<Answer, GateError>>,
}

/// What a core and its handles, and other cores, share beside the channel.
#[derive(Debug)]
pub(crate) struct Link {
    wake: EventFd,
    sleep: Sleep,
    stopped: AtomicBool,
}

impl Link {
    /// Of the core itself: it looks around once more after this, and sleeps if it finds nothing.
    pub(crate) fn begin_sleep(&self) {
        self.sleep.begins();
    }

    /// Of the core itself, which polls again.
    pub(crate) fn end_sleep(&self) {
        self.sleep.ends();
    }

    /// Of another core, which has left something for this one: one fence, and a system call only if it sleeps.
    #[inline]
    pub(crate) fn wake_if_asleep(&self) {
        if self.sleep.is_to_be_woken() {
            self.signal();
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Takes the wake-ups that have come.
    pub(crate) fn clear_wake(&self) {
        match self.wake.read() {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(errno) => debug_assert!(false, "reading an eventfd of ours: {errno}"),
        }
    }

    fn signal(&self) {
        match self.wake.write(1) {
            // A full counter wakes the core all the same.
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(errno) => debug_assert!(false, "writing an eventfd of ours: {errno}"),
        }
    }
}

/// The control threads' end of a polling core.
#[derive(Clone)]
pub struct Handle {
    requests: Sender<Request>,
    link: Arc<Link>,
    core: Arc<Block<CoreCounter>>,
    ports: Arc<Mutex<BTreeMap<PortId, Arc<PortCounters>>>>,
    deadline: Duration,
}

/// Counters of a core and its ports at one time.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Of the core.
    pub core: Snapshot,
    /// Of each port: events, then drops by reason.
    pub ports: Vec<(PortId, Snapshot, Snapshot)>,
}

impl Handle {
    pub(crate) fn new(core: Arc<Block<CoreCounter>>) -> io::Result<(Self, Arc<Link>, Receiver<Request>)> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let link = Arc::new(Link { wake, sleep: Sleep::new(), stopped: AtomicBool::new(false) });
        let (requests, inbox) = bounded(MAX_WAITING);
        let handle =
            Self { requests, link: Arc::clone(&link), core, ports: Arc::default(), deadline: DEADLINE };
        Ok((handle, link, inbox))
    }

    /// The same handle with another deadline for its calls.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// Something that wakes the core, for those who leave it work in another way (a vhost-user
    /// device, for one).
    #[must_use]
    pub fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let link = Arc::clone(&self.link);
        Arc::new(move || link.signal())
    }

    /// Ends the core's loop; what it holds is dropped with it.
    pub fn stop(&self) {
        self.link.stopped.store(true, Ordering::Release);
        self.link.signal();
    }

    /// Adds a port; the core owns its guest from now on.
    ///
    /// # Errors
    /// [`GateError`]; the guest's end is dropped then.
    pub fn add_port(
        &self,
        port: PortId,
        guest: Box<dyn GuestPort>,
        config: PortConfig,
    ) -> Result<(), GateError> {
        let PortConfig { wire, limits, fenced, speculation } = config;
        let counters = Arc::new(PortCounters::default());
        let counted = Arc::clone(&counters);
        let new = NewPort { id: port, wire, guest, limits, fenced, speculation, counters: counted };
        self.call(&[], Action::Add(Box::new(new)))?;
        self.registry().insert(port, counters);
        Ok(())
    }

    /// Lets the core carry the pairs of this endpoint for `card`, which is the core that has the card's port; what
    /// that core needs of them, for [`crate::Card::with_carried`]. They are carried until the device is dropped.
    ///
    /// # Errors
    /// [`GateError`]; the endpoint is dropped then.
    pub fn carry(&self, endpoint: Endpoint, card: &Self) -> Result<Vec<LaneEnd>, GateError> {
        let (carrier, ends) = carry(endpoint, Arc::clone(&self.link), Arc::clone(&card.link));
        self.call(&[], Action::Carry(Box::new(carrier)))?;
        Ok(ends)
    }

    /// Removes ports with all that they hold.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn remove_ports(&self, ports: &[PortId]) -> Result<(), GateError> {
        self.call(ports, Action::Remove)?;
        self.registry().retain(|port, _| !ports.contains(port));
        Ok(())
    }

    /// Cuts the escrow while the guest stands still: everything that was taken from it so far belongs
    /// to `epoch`. A port that is not protected has nothing to cut, but has state. With `whole` the state
    /// has all that is held for flows; otherwise what has changed since the last cut, and their bytes came
    /// by the [`Stream`].
    ///
    /// # Errors
    /// [`GateError`]; no port is cut then.
    pub fn cut(&self, ports: &[PortId], epoch: EpochId, whole: bool) -> Result<CutReport, GateError> {
        self.cut_behind(&[], ports, epoch, whole)
    }

    /// As [`Handle::cut`]; the state is written behind `head`, so that nobody copies it while the guest stands
    /// still.
    ///
    /// # Errors
    /// As of [`Handle::cut`].
    pub fn cut_behind(
        &self,
        head: &[u8],
        ports: &[PortId],
        epoch: EpochId,
        whole: bool,
    ) -> Result<CutReport, GateError> {
        let mut state = Vec::with_capacity(head.len() + 3 + ports.len() * (6 + MAX_ENCODED));
        state.extend(head);
        match self.call(ports, Action::Cut { epoch, whole, state })? {
            Answer::Cut(report) => Ok(report),
            _ => Err(GateError::CoreGone),
        }
    }

    /// Lets the output of the token's epoch and of all before it go (OC-1).
    ///
    /// # Errors
    /// [`GateError`], notably [`EscrowError::NotSealed`] and [`EscrowError::StaleTerm`]; nothing goes
    /// then.
    pub fn release(&self, ports: &[PortId], token: ReleaseToken) -> Result<Amount, GateError> {
        match self.call(ports, Action::Release(token))? {
            Answer::Released(amount) => Ok(amount),
            _ => Err(GateError::CoreGone),
        }
    }

    /// Changes the protection of ports. To [`Mode::Native`] everything held goes: only for a VM that
    /// the arbiter lets run alone, or whose protection its operator ended.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn set_mode(&self, ports: &[PortId], mode: Mode) -> Result<(), GateError> {
        self.call(ports, Action::SetMode(mode)).map(drop)
    }

    /// Fences ports: when this returns, nothing is transmitted for them any more, what they held is
    /// dropped, and nothing more is taken from their guests, until [`Handle::unfence`] (FO-1).
    ///
    /// # Errors
    /// [`GateError`]. After [`GateError::NoAnswer`] the fence still falls when the core goes on, and
    /// after [`GateError::UnknownPort`] it has fallen for the ports that are known.
    pub fn fence(&self, ports: &[PortId]) -> Result<(), GateError> {
        self.call(ports, Action::Fence).map(drop)
    }

    /// Lets ports transmit in `term`, which the caller holds by the arbiter's word.
    ///
    /// # Errors
    /// [`EscrowError::OldTerm`] when the term is not newer than all that were heard of (FO-1).
    pub fn unfence(&self, ports: &[PortId], term: Term) -> Result<(), GateError> {
        self.call(ports, Action::Unfence(term)).map(drop)
    }

    /// Gives ports a common lease: `CLOCK_MONOTONIC` in nanoseconds until which they may transmit.
    /// It begins as `u64::MAX`, which stands for *no lease needed*; store a time to make it count.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn lease(&self, ports: &[PortId]) -> Result<Arc<AtomicU64>, GateError> {
        let lease = Arc::new(AtomicU64::new(u64::MAX));
        self.call(ports, Action::Lease(Arc::clone(&lease)))?;
        Ok(lease)
    }

    /// Something to hear these ports by, all of one VM: it is told when their guest says something for
    /// the first time since the last cut, while they are protected. What was not heard is told once.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn output(&self, ports: &[PortId]) -> Result<Receiver<()>, GateError> {
        let (rope, heard) = bounded(1);
        self.call(ports, Action::Notify(rope))?;
        Ok(heard)
    }

    /// Makes a stream for the speculative bytes of these ports, all of one VM; a port that had another
    /// leaves it.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn stream(&self, ports: &[PortId]) -> Result<Stream, GateError> {
        let (tap, stream) = stream::pair();
        self.call(ports, Action::Attach(tap))?;
        Ok(stream)
    }

    /// Whether the flows of these ports speculate while they are protected. Changes at any time without
    /// a lost byte: flows that have run ahead are worked off.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn speculate(&self, ports: &[PortId], wanted: bool) -> Result<(), GateError> {
        self.call(ports, Action::Speculate(wanted)).map(drop)
    }

    /// Whether the agent in the guest is told that its congestion control may attach, while flows speculate.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn let_agent_attach(&self, ports: &[PortId], wanted: bool) -> Result<(), GateError> {
        self.call(ports, Action::LetAgentAttach(wanted)).map(drop)
    }

    /// Changes which flows of these ports may speculate; those that may no longer are worked off.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn set_rules(&self, ports: &[PortId], rules: Rules) -> Result<(), GateError> {
        self.call(ports, Action::SetRules(rules)).map(drop)
    }

    /// The flows of these ports that are known.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn flows(&self, ports: &[PortId]) -> Result<Vec<(PortId, FlowReport)>, GateError> {
        match self.call(ports, Action::Flows)? {
            Answer::Flows(flows) => Ok(flows),
            _ => Err(GateError::CoreGone),
        }
    }

    /// Makes ports known as they were on the other host, and takes their flows over. What was kept is
    /// given up by that.
    ///
    /// # Errors
    /// [`GateError::StateCount`] when it is of other ports.
    pub fn restore(&self, ports: &[PortId], kept: &mut KeptPorts) -> Result<(), GateError> {
        self.call(ports, Action::Restore(kept.take())).map(drop)
    }

    /// Says to the network that the guests of these ports are here now, several times over the next
    /// second. A port that is fenced says nothing.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn announce(&self, ports: &[PortId]) -> Result<(), GateError> {
        self.call(ports, Action::Announce).map(drop)
    }

    /// The ports as they are now.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn status(&self, ports: &[PortId]) -> Result<Vec<PortStatus>, GateError> {
        match self.call(ports, Action::Status)? {
            Answer::Status(status) => Ok(status),
            _ => Err(GateError::CoreGone),
        }
    }

    /// Counters of the core and all its ports; read without disturbing the core.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let ports = self.registry();
        let ports = ports.iter().map(|(id, port)| (*id, port.events.snapshot(), port.drops.snapshot()));
        Counters { core: self.core.snapshot(), ports: ports.collect() }
    }

    /// Counters of one port, if it is there.
    #[must_use]
    pub fn port_counters(&self, port: PortId) -> Option<Arc<PortCounters>> {
        self.registry().get(&port).cloned()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "of control threads alone: a core has its own list of ports"
    )]
    fn registry(&self) -> MutexGuard<'_, BTreeMap<PortId, Arc<PortCounters>>> {
        // The map is never left half changed, so a panic elsewhere does not spoil it.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[expect(clippy::disallowed_methods, reason = "a control thread waits for the core")]
    fn call(&self, ports: &[PortId], action: Action) -> Result<Answer, GateError> {
        let deadline = Instant::now() + self.deadline;
        let (reply, answer) = bounded(1);
        let request = Request { ports: ports.to_vec(), action, deadline, reply };
        match self.requests.send_deadline(request, deadline) {
            Ok(()) => self.link.signal(),
            Err(SendTimeoutError::Timeout(_)) => return Err(GateError::NoAnswer),
            Err(SendTimeoutError::Disconnected(_)) => return Err(GateError::CoreGone),
        }
        match answer.recv_deadline(deadline) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(GateError::NoAnswer),
            Err(RecvTimeoutError::Disconnected) => Err(GateError::CoreGone),
        }
    }
}

/// The state of one port as it travels.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PortState<'a> {
    pub(crate) identity: Identity,
    /// As its engine wrote it.
    pub(crate) flows: &'a [u8],
}

/// Begins the state of several ports: version, number of ports; each then comes by [`encode_state`].
pub(crate) fn begin_states(ports: usize, out: &mut Vec<u8>) {
    out.push(STATES_VERSION);
    out.extend((ports as u16).to_le_bytes());
}

/// Appends the state of one port: its identity with its length, then its flows with theirs.
pub(crate) fn encode_state(identity: &Identity, out: &mut Vec<u8>, flows: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0, 0]);
    identity.encode(out);
    let len = (out.len() - at - 2) as u16;
    out[at..at + 2].copy_from_slice(&len.to_le_bytes());
    let at = out.len();
    out.extend([0; 4]);
    flows(out);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// Reads the state of `expected` ports.
pub(crate) fn decode_states(bytes: &[u8], expected: usize) -> Result<Vec<PortState<'_>>, GateError> {
    let broken = |rest: &[u8]| IdentityError::Broken { offset: bytes.len() - rest.len() };
    let Some((&[version, low, high], mut rest)) = bytes.split_first_chunk() else {
        return Err(broken(bytes).into());
    };
    if version != STATES_VERSION {
        return Err(IdentityError::Version { found: version }.into());
    }
    let found = usize::from(u16::from_le_bytes([low, high]));
    if found != expected {
        return Err(GateError::StateCount { expected, found });
    }
    let mut states = Vec::with_capacity(expected);
    for _ in 0..expected {
        let (&len, after) = rest.split_first_chunk().ok_or_else(|| broken(rest))?;
        let (state, after) =
            after.split_at_checked(usize::from(u16::from_le_bytes(len))).ok_or_else(|| broken(rest))?;
        let identity = Identity::decode(state)?;
        let (&len, after) = after.split_first_chunk().ok_or_else(|| broken(after))?;
        let (flows, after) =
            after.split_at_checked(u32::from_le_bytes(len) as usize).ok_or_else(|| broken(after))?;
        states.push(PortState { identity, flows });
        rest = after;
    }
    if rest.is_empty() { Ok(states) } else { Err(broken(rest).into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::{Mac, Tags};
    use proptest::prelude::*;

    #[test]
    fn the_state_of_several_ports_keeps_their_order() {
        let mut identities = [Identity::default(), Identity::default()];
        identities[1].sent_from(Mac([2; 6]), Tags::default());
        let mut bytes = Vec::new();
        begin_states(2, &mut bytes);
        for (identity, flows) in identities.iter().zip([&b"ab"[..], b""]) {
            encode_state(identity, &mut bytes, |out| out.extend(flows));
        }
        let states = decode_states(&bytes, 2).expect("what was encoded");
        let [first, second] = identities;
        let expected =
            [PortState { identity: first, flows: b"ab" }, PortState { identity: second, flows: b"" }];
        assert_eq!(states, expected);
        assert_eq!(decode_states(&bytes, 1), Err(GateError::StateCount { expected: 1, found: 2 }));
    }

    #[test]
    fn a_core_that_does_not_answer_is_an_error_in_time() {
        let (handle, _link, requests) = Handle::new(Arc::default()).expect("an eventfd");
        let handle = handle.with_deadline(Duration::from_millis(20));
        assert_eq!(handle.fence(&[PortId(1)]), Err(GateError::NoAnswer));
        drop(requests);
        assert_eq!(handle.fence(&[PortId(1)]), Err(GateError::CoreGone));
    }

    proptest! {
        /// RB-1: no bytes of a peer make the decoding panic or allocate beyond the ports expected.
        #[test]
        fn no_bytes_make_the_decoding_panic(
            count in 0u8..4,
            rest in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(3), any::<u8>()], 0..100),
        ) {
            let mut bytes = vec![STATES_VERSION, count, 0];
            bytes.extend(rest);
            drop(decode_states(&bytes, 2));
            drop(decode_states(&bytes[1..], 2));
        }
    }
}
