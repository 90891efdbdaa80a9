//! A machine: the frontend as QEMU drives it, and its guest's driver.

use crate::core::Core;
use crate::driver::{DriverQueue, FRONTEND, GuestRam, REGIONS, WRITE, descriptor};
use holdfast_vhost_user::{
    Device, DeviceConfig, DeviceEvent, Endpoint, MemoryFiles, SocketAccess, SocketRole, features,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;
const RX_BUFFERS: u64 = 0x1_0004_0000;
const TX_BUFFERS: u64 = 0x2_0000;
const BUFFER: u64 = 2048;
const RING: u16 = 32;

/// Longest wait for something that should come at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A device at `path` whose rings `core` is to run.
pub(crate) fn device(core: &Core, socket: SocketRole, files: &MemoryFiles) -> (Device, Endpoint) {
    device_of_pairs(core, socket, files, 1)
}

/// The same with so many queue pairs.
pub(crate) fn device_of_pairs(
    core: &Core,
    socket: SocketRole,
    files: &MemoryFiles,
    queue_pairs: u16,
) -> (Device, Endpoint) {
    let config = DeviceConfig {
        name: "net0".to_owned(),
        socket,
        access: SocketAccess::default(),
        queue_pairs,
        offloads: true,
        mtu: Some(1500),
        files: files.clone(),
    };
    Device::spawn(config, core.waker()).expect("a device")
}

/// A device behind a socket, whose core runs.
pub(crate) struct Served {
    pub(crate) device: Device,
    pub(crate) core: Core,
    pub(crate) path: PathBuf,
    _dir: TempDir,
}

/// A device with a socket of its own that a frontend may connect to.
pub(crate) fn served() -> Served {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net0");
    let mut core = Core::new();
    let (device, endpoint) = device(&core, SocketRole::Server(path.clone()), &MemoryFiles::default());
    core.run(vec![endpoint]);
    Served { device, core, path, _dir: dir }
}

/// Waits for an event that `wanted` recognises; those before it are returned too.
pub(crate) fn wait_event(device: &Device, wanted: impl Fn(&DeviceEvent) -> bool) -> Vec<DeviceEvent> {
    let events = device.events();
    let mut seen = Vec::new();
    loop {
        let event = events.recv_timeout(SOON).unwrap_or_else(|_| panic!("no such event after {seen:?}"));
        let found = wanted(&event);
        seen.push(event);
        if found {
            return seen;
        }
    }
}

/// One region of a table.
pub(crate) fn region(gpa: u64, bytes: u64, offset: u64, file: &File) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: gpa,
        memory_size: bytes,
        userspace_addr: FRONTEND + gpa,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

fn event_fd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("an eventfd")
}

pub(crate) struct Machine<'r> {
    pub(crate) frontend: Frontend,
    pub(crate) ram: &'r GuestRam,
    pub(crate) queues: [DriverQueue<'r>; 2],
    pub(crate) features: u64,
    pub(crate) bases: [u16; 2],
    kicks: [EventFd; 2],
    pub(crate) calls: [EventFd; 2],
    pub(crate) errors: [EventFd; 2],
    received: VecDeque<Vec<u8>>,
}

impl<'r> Machine<'r> {
    /// A machine that has just booted: fresh rings.
    pub(crate) fn boot(stream: UnixStream, ram: &'r GuestRam) -> Self {
        let mut machine = Self::with_queues(stream, ram, Self::fresh_queues(ram));
        (0..RING).for_each(|slot| machine.give_buffer(slot));
        machine
    }

    fn fresh_queues(ram: &'r GuestRam) -> [DriverQueue<'r>; 2] {
        [DriverQueue::new(ram, 0x1000, RING, 0), DriverQueue::new(ram, 0x1_0000_0000, RING, 0)]
    }

    /// The driver resets the device, which QEMU has stopped, and sets it up anew.
    pub(crate) fn reset(&mut self) {
        (self.queues, self.bases) = (Self::fresh_queues(self.ram), [0; 2]);
        (0..RING).for_each(|slot| self.give_buffer(slot));
    }

    pub(crate) fn connect(path: &Path, ram: &'r GuestRam) -> Self {
        Self::boot(UnixStream::connect(path).expect("connects"), ram)
    }

    fn with_queues(stream: UnixStream, ram: &'r GuestRam, queues: [DriverQueue<'r>; 2]) -> Self {
        let frontend = Frontend::from_stream(stream, 2);
        let mut machine = Self {
            frontend,
            ram,
            queues,
            features: 0,
            bases: [0; 2],
            kicks: [event_fd(), event_fd()],
            calls: [event_fd(), event_fd()],
            errors: [event_fd(), event_fd()],
            received: VecDeque::new(),
        };
        machine.negotiate();
        machine
    }

    /// The same machine after its socket was lost: its guest has not noticed.
    pub(crate) fn reconnect(self, stream: UnixStream) -> Self {
        let mut machine = Self::with_queues(stream, self.ram, self.queues);
        // As QEMU does when GET_VRING_BASE is not answered.
        machine.bases = [0, 1].map(|ring: usize| machine.queues[ring].used_index());
        machine.received = self.received;
        machine
    }

    fn negotiate(&mut self) {
        self.frontend.set_owner().expect("owner");
        let offered = self.frontend.get_features().expect("features");
        self.features =
            offered & !(features::bits::LOG_ALL | features::bits::EVENT_IDX | features::bits::RING_PACKED);
        let protocol = self.frontend.get_protocol_features().expect("protocol features");
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RARP
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::MTU;
        assert!(protocol.contains(wanted), "{protocol:?}");
        self.frontend.set_protocol_features(wanted).expect("protocol features");
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        for ring in [RX, TX] {
            self.frontend.set_vring_err(ring, &self.errors[ring]).expect("error descriptor");
        }
    }

    /// The memory table, with descriptors of its own, as QEMU sends it at each `cont`.
    pub(crate) fn set_memory(&self, regions: &[(u64, u64, u64)]) {
        let files: Vec<File> = regions.iter().map(|_| self.ram.descriptor()).collect();
        let table: Vec<_> = regions
            .iter()
            .zip(&files)
            .map(|(&(gpa, bytes, offset), file)| region(gpa, bytes, offset, file))
            .collect();
        self.frontend.set_mem_table(&table).expect("a possible table");
    }

    pub(crate) fn set_addresses(&self, ring: usize, log: bool) {
        let queue = &self.queues[ring];
        let data = VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: u32::from(log),
            desc_table_addr: FRONTEND + queue.at,
            used_ring_addr: FRONTEND + queue.used_gpa(),
            avail_ring_addr: FRONTEND + queue.available_gpa(),
            log_addr: log.then(|| queue.used_gpa()),
        };
        self.frontend.set_vring_addr(ring, &data).expect("addresses");
    }

    /// What QEMU does at `cont`.
    pub(crate) fn start(&mut self) {
        self.start_with(&[RX, TX]);
    }

    /// The same where the driver uses only those rings.
    pub(crate) fn start_with(&mut self, enabled: &[usize]) {
        self.frontend.set_features(self.features).expect("features");
        self.set_memory(&REGIONS);
        for ring in [RX, TX] {
            self.kicks[ring] = event_fd();
            self.frontend.set_vring_num(ring, RING).expect("size");
            self.frontend.set_vring_base(ring, self.bases[ring]).expect("base");
            self.set_addresses(ring, false);
            self.frontend.set_vring_kick(ring, &self.kicks[ring]).expect("kick");
            self.frontend.set_vring_call(ring, &self.calls[ring]).expect("call");
        }
        for ring in enabled {
            self.frontend.set_vring_enable(*ring, true).expect("enable");
        }
    }

    /// What QEMU does at `stop`; the rings' indices.
    pub(crate) fn stop(&mut self) -> [u16; 2] {
        self.bases = [RX, TX]
            .map(|ring| u16::try_from(self.frontend.get_vring_base(ring).expect("base")).expect("an index"));
        self.bases
    }

    fn give_buffer(&mut self, slot: u16) {
        let gpa = RX_BUFFERS + BUFFER * u64::from(slot);
        self.queues[RX].set_descriptor(slot, descriptor(gpa, BUFFER as u32, WRITE, 0));
        self.queues[RX].offer(slot);
    }

    /// The guest sends a frame and notifies.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.queue_frame(frame);
        self.kicks[TX].write(1).expect("an eventfd");
    }

    /// The guest makes a frame available without a notification.
    pub(crate) fn queue_frame(&mut self, frame: &[u8]) {
        let slot = self.queues[TX].available % RING;
        let gpa = TX_BUFFERS + BUFFER * u64::from(slot);
        self.ram.write(gpa, &[&[0; 12], frame].concat());
        self.queues[TX].set_descriptor(slot, descriptor(gpa, 12 + frame.len() as u32, 0, 0));
        self.queues[TX].offer(slot);
    }

    pub(crate) fn kick(&self) {
        self.kicks[TX].write(1).expect("an eventfd");
    }

    /// Waits for the next frame that the guest receives.
    pub(crate) fn receive(&mut self) -> Vec<u8> {
        loop {
            if let Some(frame) = self.received.pop_front() {
                return frame;
            }
            self.collect();
            if self.received.is_empty() {
                wait_signal(&self.calls[RX]).unwrap_or_else(|| panic!("no frame came back"));
            }
        }
    }

    /// Takes the frames that have arrived.
    pub(crate) fn collect(&mut self) -> usize {
        for (head, len) in self.queues[RX].take_used() {
            let gpa = RX_BUFFERS + BUFFER * u64::from(head);
            self.received.push_back(self.ram.read(gpa + 12, len as usize - 12));
            self.give_buffer(head as u16);
        }
        self.received.len()
    }

    /// Sends a frame and waits for its echo.
    pub(crate) fn echo(&mut self, number: u32) {
        let frame: Vec<u8> = number.to_be_bytes().repeat(20);
        self.send(&frame);
        assert_eq!(self.receive(), frame, "frame {number}");
    }
}

/// Waits until the device has signalled; `None` when it does not.
pub(crate) fn wait_signal(event: &EventFd) -> Option<u64> {
    // The descriptor lives as long as the reference.
    let fd = borrow(event);
    let timeout = PollTimeout::try_from(SOON).expect("a timeout");
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).expect("poll");
    event.read().ok()
}

#[expect(unsafe_code, reason = "the eventfd of vmm-sys-util lends only a raw descriptor")]
fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
