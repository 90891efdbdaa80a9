//! A host: a polling core on a thread, with a wire in memory and devices on sockets.

use holdfast_dataplane::heap::{HeapPeer, HeapWire};
use holdfast_dataplane::{Card, Core, Handle, IdlePolicy, PortConfig, PortId};
use holdfast_epoch::{Confirmation, Digest, Epoch, EpochId, ReleaseToken, Term};
use holdfast_vhost_user::{Device, DeviceConfig, MemoryFiles, SocketAccess, SocketRole};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for something that should come at once.
const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Host {
    pub(crate) handle: Handle,
    pub(crate) peer: HeapPeer,
    pub(crate) devices: Vec<Device>,
    dir: TempDir,
    files: MemoryFiles,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let (wire, peer) = HeapWire::new(1500, 4096, true).expect("a wire");
        let idle = IdlePolicy::Adaptive { spin: Duration::from_micros(20) };
        let (mut core, handle) = Core::new(vec![wire], idle, None).expect("a core");
        let thread = Some(thread::spawn(move || core.run()));
        let dir = tempfile::tempdir().expect("a directory");
        Self { handle, peer, devices: Vec::new(), dir, files: MemoryFiles::default(), thread }
    }

    /// Adds a device with a port of this number; returns its socket.
    pub(crate) fn device(&mut self, number: u16, config: PortConfig) -> PathBuf {
        self.device_of_pairs(number, 1, config)
    }

    /// The same with so many pairs of queues.
    pub(crate) fn device_of_pairs(&mut self, number: u16, queue_pairs: u16, config: PortConfig) -> PathBuf {
        let path = self.dir.path().join(format!("net{number}"));
        let device = device_config(&path, queue_pairs, &self.files);
        let (device, endpoint) = Device::spawn(device, self.handle.waker()).expect("a device");
        self.handle.add_port(PortId(number), Box::new(Card::new(endpoint)), config).expect("a port");
        self.devices.push(device);
        path
    }

    /// Waits until `count` frames have come out at the far end of the wire.
    pub(crate) fn wire(&self, count: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        wait_until(|| {
            frames.extend(self.peer.take());
            frames.len() >= count
        });
        frames
    }

    /// Waits for two whole turns of the core.
    pub(crate) fn settle(&self) {
        for _ in 0..9 {
            drop(self.handle.status(&[]).expect("the core answers"));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Devices first: their control threads need the core to answer.
        self.devices.clear();
        self.handle.stop();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the core panicked");
    }
}

/// A device that listens at `path`.
pub(crate) fn device_config(path: &Path, queue_pairs: u16, files: &MemoryFiles) -> DeviceConfig {
    DeviceConfig {
        name: path.file_name().expect("a name").to_string_lossy().into_owned(),
        socket: SocketRole::Server(path.to_owned()),
        access: SocketAccess::default(),
        queue_pairs,
        offloads: true,
        mtu: None,
        files: files.clone(),
    }
}

/// Waits for something that another thread does, and fails when it does not happen.
pub(crate) fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "it did not happen in time");
        thread::yield_now();
    }
}

/// The proof that an epoch was committed, as the checkpointing makes it.
pub(crate) fn token(term: u64, epoch: u64) -> ReleaseToken {
    let (term, id, digest) = (Term::new(term), EpochId::new(epoch), Digest([1; 32]));
    let (sealed, _) = Epoch::open(term, id).seal(());
    let sent = sealed.replicated(digest, |()| ());
    let word = Confirmation { term, epoch: id, digest };
    let (done, ()) = sent.commit(&word).map_err(|(_, fault)| fault).expect("the right word");
    done.into_release_token()
}
