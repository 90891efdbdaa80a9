//! A device on an endpoint of the caller's, attached to rings in the caller's guest memory: for tests
//! and benches that are the polling core themselves.

use crate::driver::{DriverQueue, FRONTEND, GuestRam, REGIONS};
use holdfast_vhost_user::{Device, DeviceConfig, Endpoint, MemoryFiles, SocketAccess, SocketRole, features};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of both rings.
pub(crate) const RING: u16 = 256;

/// Where the indices of both rings begin: near the wrap.
pub(crate) const BASE: u16 = 65500;

/// Where packed rings begin: at the first place, in the sense of the first round.
const PACKED_BASE: u16 = 1 << 15;

/// Starts both rings (0 receives, 1 sends) as a frontend does, without protocol features.
fn start(
    frontend: &mut Frontend,
    ram: &GuestRam,
    queues: &[DriverQueue<'_>; 2],
    call: &EventFd,
    packed: bool,
) {
    frontend.set_owner().expect("owner");
    let offered = frontend.get_features().expect("features");
    frontend.get_protocol_features().expect("protocol features");
    let (base, unwanted) = if packed { (PACKED_BASE, 0) } else { (BASE, features::bits::RING_PACKED) };
    frontend.set_features(offered & !(features::bits::LOG_ALL | unwanted)).expect("features");
    let file = ram.descriptor();
    let table = REGIONS.map(|(gpa, bytes, offset)| VhostUserMemoryRegionInfo {
        guest_phys_addr: gpa,
        memory_size: bytes,
        userspace_addr: FRONTEND + gpa,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    });
    frontend.set_mem_table(&table).expect("a possible table");
    for (ring, queue) in queues.iter().enumerate() {
        let data = VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: 0,
            desc_table_addr: FRONTEND + queue.at,
            used_ring_addr: FRONTEND + queue.used_gpa(),
            avail_ring_addr: FRONTEND + queue.available_gpa(),
            log_addr: None,
        };
        frontend.set_vring_num(ring, RING).expect("size");
        frontend.set_vring_base(ring, base).expect("base");
        frontend.set_vring_addr(ring, &data).expect("addresses");
        frontend.set_vring_call(ring, call).expect("call");
        frontend.set_vring_kick(ring, call).expect("kick");
        frontend.set_vring_enable(ring, true).expect("enable");
    }
}

/// What keeps a device attached.
pub(crate) struct Attached {
    pub(crate) endpoint: Endpoint,
    _device: Device,
    _frontend: Frontend,
    _call: EventFd,
}

/// Makes a device and runs its rings, which are split.
pub(crate) fn attach(ram: &GuestRam, queues: &[DriverQueue<'_>; 2]) -> Attached {
    attach_as(ram, queues, false)
}

/// Makes a device and runs its rings, split or packed.
pub(crate) fn attach_as(ram: &GuestRam, queues: &[DriverQueue<'_>; 2], packed: bool) -> Attached {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net0");
    let config = DeviceConfig {
        name: "net0".to_owned(),
        socket: SocketRole::Server(path.clone()),
        access: SocketAccess::default(),
        queue_pairs: 1,
        offloads: true,
        mtu: None,
        files: MemoryFiles::default(),
    };
    let (device, mut endpoint) = Device::spawn(config, Arc::new(|| {})).expect("a device");
    let call = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let mut frontend = Frontend::from_stream(UnixStream::connect(&path).expect("connects"), 2);
    start(&mut frontend, ram, queues, &call, packed);
    while !(endpoint.tx_rings()[0].is_running() && endpoint.rx_rings()[0].is_running()) {
        endpoint.poll_control();
        std::thread::yield_now();
    }
    Attached { endpoint, _device: device, _frontend: frontend, _call: call }
}
