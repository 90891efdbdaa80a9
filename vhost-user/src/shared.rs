//! What the control thread, the polling core and the program see of a device.

use crate::features::Features;
use crate::memory::GuestMemory;
use crate::ring::RingFault;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Events that wait for a reader, at most; more are dropped and counted.
const EVENT_LIMIT: usize = 1024;

const FAULT_KINDS: usize = RingFault::NAMES.len();

/// What happened to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// A frontend connected; its process, when the host tells.
    Connected {
        /// Process id of the frontend.
        pid: Option<i32>,
    },
    /// Guest memory is another than before: see [`crate::Device::memory`].
    MemoryChanged,
    /// The first ring runs.
    Started,
    /// The last ring was left.
    Stopped,
    /// The frontend asks that the guest's address be announced (the guest cannot do it itself).
    AnnounceRequested {
        /// Address of the guest's network card.
        mac: [u8; 6],
    },
    /// The guest's driver broke the rules; all rings are left. [`Self::Stopped`] follows when the
    /// frontend stops the device too.
    Fault(RingFault),
    /// The frontend broke the rules; the connection is being closed.
    PeerFault(String),
    /// The connection is gone; all rings are left.
    Disconnected,
}

/// The state of a device, for status and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceSnapshot {
    /// Name, as configured.
    pub name: String,
    /// Whether a frontend is connected.
    pub connected: bool,
    /// Process id of the frontend.
    pub peer_pid: Option<i32>,
    /// Connections so far.
    pub connections: u64,
    /// Virtio features agreed in this connection.
    pub features: Features,
    /// Protocol features agreed in this connection.
    pub protocol_features: u64,
    /// MTU that the frontend tells the guest, when it does.
    pub mtu: Option<u16>,
    /// For each ring of the frontend's numbering, whether it runs.
    pub rings_running: Vec<bool>,
    /// For each of these rings, whether the frontend enabled it; it runs when the guest does as well.
    pub rings_enabled: Vec<bool>,
    /// For each of these rings, frames that have passed it.
    pub ring_frames: Vec<u64>,
    /// Whether writes are logged for a live migration.
    pub logging: bool,
    /// Faults of the guest by kind, those that occurred.
    pub faults: Vec<(&'static str, u64)>,
    /// Connections closed for a fault of the frontend.
    pub peer_faults: u64,
    /// The last one of these.
    pub last_peer_fault: Option<String>,
    /// Events that nobody took in time.
    pub events_lost: u64,
}

#[derive(Debug)]
pub(crate) struct Shared {
    events: Sender<DeviceEvent>,
    events_lost: AtomicU64,
    faults: [AtomicU64; FAULT_KINDS],
    /// One bit a ring that a polling core runs.
    running: AtomicU64,
    /// One bit a pair by which the guest receives, also while its rings stand still.
    in_use: AtomicU32,
    /// What the guest's driver agreed to, as of the last ring that was started.
    features: AtomicU64,
    /// How often a fault of the guest stopped the device.
    stops: AtomicU64,
    /// Frames that have passed each ring; written by the polling core of the ring alone.
    frames: Box<[AtomicU64]>,
    memory: Mutex<Option<Arc<GuestMemory>>>,
    state: Mutex<DeviceSnapshot>,
    name: String,
}

impl Shared {
    pub(crate) fn new(name: &str, rings: usize) -> (Arc<Self>, Receiver<DeviceEvent>) {
        let (events, receiver) = bounded(EVENT_LIMIT);
        let state = DeviceSnapshot {
            name: name.to_owned(),
            rings_running: vec![false; rings],
            rings_enabled: vec![false; rings],
            ..DeviceSnapshot::default()
        };
        let shared = Self {
            events,
            events_lost: AtomicU64::new(0),
            faults: [const { AtomicU64::new(0) }; FAULT_KINDS],
            running: AtomicU64::new(0),
            in_use: AtomicU32::new(0),
            features: AtomicU64::new(Features::default().bits()),
            stops: AtomicU64::new(0),
            frames: (0..rings).map(|_| AtomicU64::new(0)).collect(),
            memory: Mutex::new(None),
            state: Mutex::new(state),
            name: name.to_owned(),
        };
        (Arc::new(shared), receiver)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn send(&self, event: DeviceEvent) {
        if let Err(TrySendError::Full(_)) = self.events.try_send(event) {
            self.events_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_fault(&self, fault: &RingFault) {
        self.faults[fault.index()].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn ring_running(&self, index: usize, runs: bool) {
        if runs {
            self.running.fetch_or(1 << index, Ordering::Relaxed);
        } else {
            self.running.fetch_and(!(1 << index), Ordering::Relaxed);
        }
    }

    /// Whether a polling core runs any ring.
    #[inline]
    pub(crate) fn any_running(&self) -> bool {
        self.running.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn pairs_in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Of the pairs of `mask` those of `pairs` are in use from now on.
    pub(crate) fn use_pairs(&self, mask: u32, pairs: u32) {
        let changed = |before| Some((before & !mask) | (pairs & mask));
        self.in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed).unwrap_or_default();
    }

    pub(crate) fn features(&self) -> Features {
        Features::new(self.features.load(Ordering::Relaxed))
    }

    pub(crate) fn agreed(&self, features: Features) {
        self.features.store(features.bits(), Ordering::Relaxed);
    }

    /// The device stops; as of which stop.
    pub(crate) fn stop(&self) -> u64 {
        self.stops.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn stops(&self) -> u64 {
        self.stops.load(Ordering::Relaxed)
    }

    /// Counts frames that passed a ring. One thread writes, so that this is no locked instruction.
    #[inline]
    pub(crate) fn count_frames(&self, index: usize, frames: u64) {
        if let Some(counter) = self.frames.get(index) {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(frames), Ordering::Relaxed);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "never called by a polling core")]
    pub(crate) fn memory(&self) -> MutexGuard<'_, Option<Arc<GuestMemory>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The snapshot that the control thread keeps; never locked by a polling core.
    #[expect(clippy::disallowed_methods, reason = "never called by a polling core")]
    pub(crate) fn state(&self) -> MutexGuard<'_, DeviceSnapshot> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn snapshot(&self) -> DeviceSnapshot {
        let mut snapshot = self.state().clone();
        snapshot.events_lost = self.events_lost.load(Ordering::Relaxed);
        let running = self.running.load(Ordering::Relaxed);
        for (index, runs) in snapshot.rings_running.iter_mut().enumerate() {
            *runs = running & (1 << index) != 0;
        }
        snapshot.ring_frames = self.frames.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let counts = self.faults.iter().map(|count| count.load(Ordering::Relaxed));
        snapshot.faults = RingFault::NAMES.into_iter().zip(counts).filter(|(_, n)| *n > 0).collect();
        snapshot
    }
}
