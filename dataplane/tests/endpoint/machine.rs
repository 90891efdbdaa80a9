//! A machine with one network card: the frontend as QEMU drives it, and its guest's driver, which
//! sends and receives large frames.

use crate::driver::{DriverQueue, FRONTEND, GuestRam, NEXT, REGIONS, WRITE, descriptor};
use crate::host::wait_until;
use holdfast_dataplane::guest::VirtioNetHdr;
use holdfast_vhost_user::features::bits;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;
const RING: u16 = 64;
const RX_BUFFERS: u64 = 0x1_0004_0000;
const TX_BUFFERS: u64 = 0x2_0000;
const BUFFER: u64 = 2048;
const HEADER: usize = 12;

/// A machine and its guest.
pub(crate) struct Machine<'r> {
    frontend: Frontend,
    ram: &'r GuestRam,
    pub(crate) queues: [DriverQueue<'r>; 2],
    features: u64,
    bases: [u16; 2],
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
    /// Next descriptor of the transmit ring; frames take several.
    next: u16,
}

fn event_fd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("an eventfd")
}

impl<'r> Machine<'r> {
    /// A machine that has booted, with a driver that knows all offloads, connected to the device at
    /// `path`.
    pub(crate) fn boot(path: &Path, ram: &'r GuestRam) -> Self {
        let stream = UnixStream::connect(path).expect("connects");
        let queues = [DriverQueue::new(ram, 0x1000, RING, 0), DriverQueue::new(ram, 0x1_0000_0000, RING, 0)];
        let mut machine = Self {
            frontend: Frontend::from_stream(stream, 2),
            ram,
            queues,
            features: 0,
            bases: [0; 2],
            kicks: [event_fd(), event_fd()],
            calls: [event_fd(), event_fd()],
            next: 0,
        };
        machine.negotiate();
        (0..RING).for_each(|slot| machine.give_buffer(slot));
        machine.cont();
        machine
    }

    fn negotiate(&mut self) {
        self.frontend.set_owner().expect("owner");
        let offered = self.frontend.get_features().expect("features");
        self.features = offered & !(bits::LOG_ALL | bits::EVENT_IDX | bits::RING_PACKED);
        self.frontend.get_protocol_features().expect("protocol features");
        let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        self.frontend.set_protocol_features(wanted).expect("protocol features");
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    /// What QEMU does at `cont`.
    pub(crate) fn cont(&mut self) {
        self.frontend.set_features(self.features).expect("features");
        let files = REGIONS.map(|_| self.ram.descriptor());
        let regions = REGIONS.into_iter().zip(&files);
        let table: Vec<_> = regions
            .map(|((gpa, bytes, offset), file)| VhostUserMemoryRegionInfo {
                guest_phys_addr: gpa,
                memory_size: bytes,
                userspace_addr: FRONTEND + gpa,
                mmap_offset: offset,
                mmap_handle: file.as_raw_fd(),
            })
            .collect();
        self.frontend.set_mem_table(&table).expect("a possible table");
        for ring in [RX, TX] {
            let queue = &self.queues[ring];
            let addresses = VringConfigData {
                queue_max_size: RING,
                queue_size: RING,
                flags: 0,
                desc_table_addr: FRONTEND + queue.at,
                used_ring_addr: FRONTEND + queue.used_gpa(),
                avail_ring_addr: FRONTEND + queue.available_gpa(),
                log_addr: None,
            };
            self.frontend.set_vring_num(ring, RING).expect("size");
            self.frontend.set_vring_base(ring, self.bases[ring]).expect("base");
            self.frontend.set_vring_addr(ring, &addresses).expect("addresses");
            self.frontend.set_vring_kick(ring, &self.kicks[ring]).expect("kick");
            self.frontend.set_vring_call(ring, &self.calls[ring]).expect("call");
        }
        for ring in [RX, TX] {
            self.frontend.set_vring_enable(ring, true).expect("enable");
        }
    }

    /// What QEMU does at `stop`: returns when the core has left both rings.
    pub(crate) fn stop(&mut self) {
        self.bases = [RX, TX]
            .map(|ring| u16::try_from(self.frontend.get_vring_base(ring).expect("base")).expect("an index"));
    }

    pub(crate) fn give_buffer(&mut self, slot: u16) {
        let gpa = RX_BUFFERS + BUFFER * u64::from(slot);
        self.queues[RX].set_descriptor(slot, descriptor(gpa, BUFFER as u32, WRITE, 0));
        self.queues[RX].offer(slot);
    }

    /// The guest sends a frame with this offload header, in as many buffers as it takes. The caller
    /// lets no more than a ring's worth of buffers be under way.
    pub(crate) fn send_offloaded(&mut self, header: &VirtioNetHdr, frame: &[u8]) {
        let bytes = [&header.to_bytes()[..], frame].concat();
        let head = self.next % RING;
        let count = bytes.len().div_ceil(BUFFER as usize);
        for (nth, chunk) in bytes.chunks(BUFFER as usize).enumerate() {
            let slot = self.next % RING;
            let gpa = TX_BUFFERS + BUFFER * u64::from(slot);
            let (flags, next) = if nth + 1 < count { (NEXT, (slot + 1) % RING) } else { (0, 0) };
            self.ram.write(gpa, chunk);
            self.queues[TX].set_descriptor(slot, descriptor(gpa, chunk.len() as u32, flags, next));
            self.next = self.next.wrapping_add(1);
        }
        self.queues[TX].offer(head);
        self.kick();
    }

    /// The guest sends a frame as it is.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.send_offloaded(&VirtioNetHdr::default(), frame);
    }

    /// The guest notifies the device of frames to send.
    pub(crate) fn kick(&self) {
        self.kicks[TX].write(1).expect("an eventfd");
    }

    /// Waits until `count` frames have been taken from the transmit ring in all.
    pub(crate) fn wait_taken(&self, count: u16) {
        wait_until(|| self.queues[TX].used_index() == count);
    }

    /// Waits for the next frame that the guest receives: its offload header and its bytes.
    pub(crate) fn receive(&mut self) -> (VirtioNetHdr, Vec<u8>) {
        let mut used = Vec::new();
        wait_until(|| {
            used.extend(self.queues[RX].take_used());
            !used.is_empty()
        });
        let buffer = |machine: &Self, (head, len): (u32, u32)| {
            machine.ram.read(RX_BUFFERS + BUFFER * u64::from(head), len as usize)
        };
        let mut bytes = buffer(self, used[0]);
        let head: [u8; HEADER] = bytes[..HEADER].try_into().expect("a header");
        let header = VirtioNetHdr::parse(&head);
        bytes.drain(..HEADER);
        wait_until(|| {
            used.extend(self.queues[RX].take_used());
            used.len() >= usize::from(header.num_buffers)
        });
        assert_eq!(used.len(), usize::from(header.num_buffers), "one frame at a time");
        for &chunk in &used[1..] {
            bytes.extend(buffer(self, chunk));
        }
        used.iter().for_each(|&(head, _)| self.give_buffer(head as u16));
        self.kicks[RX].write(1).expect("an eventfd");
        (header, bytes)
    }
}
