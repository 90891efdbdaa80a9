//! A network device: its socket, its control thread, and what the program sees of it.

use crate::connection::{self, Stop};
use crate::control::{Control, Cores};
use crate::endpoint::Endpoint;
use crate::features::offered;
use crate::mailbox::{Waker, mailboxes};
use crate::memory::{GuestMemory, MemoryFiles};
use crate::shared::{DeviceEvent, DeviceSnapshot, Shared};
use crossbeam_channel::Receiver;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use thiserror::Error;

/// Queue pairs of a device, at most.
pub const MAX_QUEUE_PAIRS: u16 = 16;

/// Which side of the socket the device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketRole {
    /// The device listens; QEMU connects (`-chardev socket,path=…,reconnect=1`).
    Server(PathBuf),
    /// QEMU listens (`-chardev socket,path=…,server=on`); the device connects, again and again.
    Client(PathBuf),
}

/// Who may connect to the socket of a [`SocketRole::Server`]; where nothing is said, as the process's umask and
/// group have it. A frontend of another user needs leave to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits, such as `0o660`.
    pub mode: Option<u32>,
    /// Number of the group that the socket belongs to.
    pub group: Option<u32>,
}

/// What a device is made from.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Name in logs and counters.
    pub name: String,
    /// Its socket.
    pub socket: SocketRole,
    /// Who may connect to it.
    pub access: SocketAccess,
    /// Queue pairs, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u16,
    /// Whether checksum and segmentation offloads are offered, in both directions.
    pub offloads: bool,
    /// Largest MTU that the frontend may tell the guest; `None`: any.
    pub mtu: Option<u16>,
    /// The process's memory files. Give all devices the same, so that several network cards of one
    /// machine share one mapping and one dirty bitmap.
    pub files: MemoryFiles,
}

impl DeviceConfig {
    /// A device of so many pairs that listens at `path` and is named after that file. It offers what it can, and takes any
    /// MTU; its memory files are its own.
    #[must_use]
    pub fn listening(path: &Path, queue_pairs: u16) -> Self {
        Self {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            socket: SocketRole::Server(path.to_owned()),
            access: SocketAccess::default(),
            queue_pairs,
            offloads: true,
            mtu: None,
            files: MemoryFiles::default(),
        }
    }
}

/// Why a device could not be made.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The number of queue pairs is not possible.
    #[error("operator: {0} queue pairs; 1 to {MAX_QUEUE_PAIRS} are possible")]
    QueuePairs(u16),
    /// Somebody else serves the socket.
    #[error("operator: {} is served by another process; give the device a path of its own", .0.display())]
    SocketInUse(PathBuf),
    /// There is a file in the way that is no socket.
    #[error("operator: {} exists and is not a socket; remove it or give the device another path", .0.display())]
    NotASocket(PathBuf),
    /// The host refused the socket.
    #[error("host: cannot listen at {}: {error}; the directory must exist and be writable", path.display())]
    Listen {
        /// Path of the socket.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// The socket cannot be given to those who are to connect.
    #[error(
        "operator: the access to {} cannot be set: {error}; run as root, or leave its mode and group alone",
        path.display()
    )]
    Access {
        /// Path of the socket.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// The host refused something else.
    #[error("host: cannot start the control thread of a device: {0}")]
    Host(#[from] io::Error),
}

/// The program's end of a device. Dropping it closes the connection and ends the control thread; the
/// polling core leaves the rings at its next turn.
#[derive(Debug)]
pub struct Device {
    shared: Arc<Shared>,
    events: Receiver<DeviceEvent>,
    /// None once it was closed.
    serving: Mutex<Option<(Stop, JoinHandle<()>)>>,
}

impl Device {
    /// Makes a device and starts its control thread. The endpoint goes to the polling core that
    /// `waker` wakes.
    ///
    /// # Errors
    /// When the configuration is not possible or the host refuses.
    pub fn spawn(config: DeviceConfig, waker: Waker) -> Result<(Self, Endpoint), SpawnError> {
        let pairs = usize::from(config.queue_pairs);
        let (device, mut endpoints) = Self::spawn_over(config, vec![waker], &vec![0; pairs])?;
        Ok((device, endpoints.remove(0)))
    }

    /// As [`Self::spawn`], with an endpoint for each of several polling cores, in the order of their `wakers`.
    /// `core_of` says for each pair of queues whose it is: a place in that order.
    ///
    /// # Errors
    /// When the configuration is not possible or the host refuses.
    ///
    /// # Panics
    /// When `core_of` has another length than the device has pairs, or names a core that is not there.
    pub fn spawn_over(
        config: DeviceConfig,
        wakers: Vec<Waker>,
        core_of: &[usize],
    ) -> Result<(Self, Vec<Endpoint>), SpawnError> {
        let DeviceConfig { name, socket, access, queue_pairs, offloads, mtu, files } = config;
        if queue_pairs == 0 || queue_pairs > MAX_QUEUE_PAIRS {
            return Err(SpawnError::QueuePairs(queue_pairs));
        }
        let is_map =
            core_of.len() == usize::from(queue_pairs) && core_of.iter().all(|&core| core < wakers.len());
        assert!(is_map, "a core that is there for each pair");
        let source = connection::Source::open(socket, access)?;
        let (stop, stopped) = Stop::new()?;
        let rings = usize::from(queue_pairs) * 2;
        let (shared, events) = Shared::new(&name, rings);
        let (control_sides, core_sides) = mailboxes(&name, wakers, &stopped.receiver());
        let pairs_of = |core: usize| {
            let own = core_of.iter().enumerate().filter(|(_, of)| **of == core);
            own.fold(0, |pairs, (pair, _)| pairs | 1 << pair)
        };
        let endpoint = |(core, side)| Endpoint::new(Arc::clone(&shared), side, queue_pairs, pairs_of(core));
        let endpoints = core_sides.into_iter().enumerate().map(endpoint).collect();
        let control = Control::new(
            Arc::clone(&shared),
            Cores::new(control_sides, core_of),
            files,
            offered(queue_pairs, offloads),
            queue_pairs,
            mtu,
        );
        let control = Arc::new(Mutex::new(control));
        let thread = std::thread::Builder::new()
            .name(format!("vu-{name}"))
            .spawn(move || connection::serve(&source, &control, &stopped))?;
        Ok((Self { shared, events, serving: Mutex::new(Some((stop, thread))) }, endpoints))
    }

    /// Guest memory as last described; kept when the frontend disconnects.
    #[must_use]
    pub fn memory(&self) -> Option<Arc<GuestMemory>> {
        self.shared.memory().clone()
    }

    /// Process id of the connected frontend.
    #[must_use]
    pub fn peer_pid(&self) -> Option<i32> {
        self.shared.state().peer_pid
    }

    /// The state of the device now.
    #[must_use]
    pub fn snapshot(&self) -> DeviceSnapshot {
        self.shared.snapshot()
    }

    /// What happens to the device. Bounded: events that nobody takes are dropped and counted.
    #[must_use]
    pub fn events(&self) -> Receiver<DeviceEvent> {
        self.events.clone()
    }

    /// Does what dropping does, while others hold the device: the connection is closed, and the file of a
    /// socket that it listens on is gone at the return.
    #[expect(clippy::disallowed_methods, reason = "of whoever ends the device")]
    pub fn close(&self) {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((stop, thread)) = serving else { return };
        drop(stop);
        if thread.join().is_err() {
            tracing::error!(device = self.shared.name(), "the control thread panicked: a bug");
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.close();
    }
}
