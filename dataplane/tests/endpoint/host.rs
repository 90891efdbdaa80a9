//! A host: two polling cores on threads, the first of which has a wire in memory, and devices on sockets.

use holdfast_dataplane::heap::{HeapPeer, HeapWire};
use holdfast_dataplane::{Card, Core, Handle, IdlePolicy, PortConfig, PortId};
use holdfast_epoch::{Confirmation, Digest, Epoch, EpochId, ReleaseToken, Term};
use holdfast_vhost_user::{Device, DeviceConfig, MemoryFiles};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for something that should come at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Host {
    pub(crate) handle: Handle,
    pub(crate) peer: HeapPeer,
    pub(crate) devices: Vec<Device>,
    dir: TempDir,
    files: MemoryFiles,
    /// Of the second core, which has no wire.
    carrying: Handle,
    threads: Vec<JoinHandle<()>>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let (wire, peer) = HeapWire::new(1500, 4096, true).expect("a wire");
        let idle = IdlePolicy::Adaptive { spin: Duration::from_micros(20) };
        let (mut core, handle) = Core::new(vec![wire], idle, None).expect("a core");
        let (mut second, carrying) = Core::<HeapWire>::new(Vec::new(), idle, None).expect("a core");
        let threads = vec![thread::spawn(move || core.run()), thread::spawn(move || second.run())];
        let dir = tempfile::tempdir().expect("a directory");
        Self { handle, peer, devices: Vec::new(), dir, files: MemoryFiles::default(), carrying, threads }
    }

    /// Adds a device with a port of this number; returns its socket.
    pub(crate) fn device(&mut self, number: u16, config: PortConfig) -> PathBuf {
        self.device_over(number, &[0], config)
    }

    /// The same with a pair of queues for each entry, which is the first core's or the second's.
    pub(crate) fn device_over(&mut self, number: u16, core_of: &[usize], config: PortConfig) -> PathBuf {
        let path = self.dir.path().join(format!("net{number}"));
        let device = device_config(&path, core_of.len() as u16, &self.files);
        let wakers = vec![self.handle.waker(), self.carrying.waker()];
        let (device, mut endpoints) = Device::spawn_over(device, wakers, core_of).expect("a device");
        let second = endpoints.remove(1);
        let carried = self.carrying.carry(second, &self.handle).expect("carried");
        let card = Card::new(endpoints.remove(0)).with_carried(carried);
        self.handle.add_port(PortId(number), Box::new(card), config).expect("a port");
        self.devices.push(device);
        path
    }

    /// Frames that the second core has carried, and that it has lost.
    pub(crate) fn carried(&self) -> [u64; 2] {
        let counted = self.carrying.counters().core;
        ["carried_frames", "carried_lost_frames"].map(|name| counted.get(name))
    }

    /// Returns when both cores have found nothing to do, and sleep.
    pub(crate) fn wait_asleep(&self) {
        for handle in [&self.handle, &self.carrying] {
            let sleeps = || handle.counters().core.get("sleeps");
            let before = sleeps();
            drop(handle.status(&[]).expect("the core answers"));
            wait_until(|| sleeps() > before);
        }
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

    /// Waits for two whole turns of the cores, one after the other.
    pub(crate) fn settle(&self) {
        for handle in [&self.handle, &self.carrying, &self.handle].repeat(9) {
            drop(handle.status(&[]).expect("the core answers"));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Devices first: their control threads need the core to answer.
        self.devices.clear();
        self.handle.stop();
        self.carrying.stop();
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || thread::panicking(), "a core panicked");
        }
    }
}

/// A device that listens at `path`.
pub(crate) fn device_config(path: &Path, queue_pairs: u16, files: &MemoryFiles) -> DeviceConfig {
    DeviceConfig { files: files.clone(), ..DeviceConfig::listening(path, queue_pairs) }
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
