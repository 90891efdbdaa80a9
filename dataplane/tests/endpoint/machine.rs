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
/// Bytes from the ring of one pair to that of the next, and likewise of their buffers.
const RING_BYTES: u64 = 0x3000;
const BUFFERS_BYTES: u64 = RING as u64 * BUFFER;

/// A machine and its guest.
pub(crate) struct Machine<'r> {
    frontend: Frontend,
    ram: &'r GuestRam,
    /// Two for each pair: by which the guest receives, and by which it sends.
    pub(crate) queues: Vec<DriverQueue<'r>>,
    features: u64,
    bases: Vec<u16>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    /// Next descriptor of each transmit ring; frames take several.
    next: Vec<u16>,
}

fn event_fd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("an eventfd")
}

impl<'r> Machine<'r> {
    /// A machine that has booted, with a driver that knows all offloads, connected to the device at
    /// `path`.
    pub(crate) fn boot(path: &Path, ram: &'r GuestRam) -> Self {
        Self::boot_of_pairs(path, ram, 1)
    }

    /// The same with so many pairs of queues, all of them enabled.
    pub(crate) fn boot_of_pairs(path: &Path, ram: &'r GuestRam, pairs: u64) -> Self {
        let stream = UnixStream::connect(path).expect("connects");
        let ring = |at| DriverQueue::new(ram, at, RING, 0);
        let of_pair = |pair| [ring(0x1000 + RING_BYTES * pair), ring(0x1_0000_0000 + RING_BYTES * pair)];
        let queues: Vec<_> = (0..pairs).flat_map(of_pair).collect();
        let event_fds = || -> Vec<EventFd> { queues.iter().map(|_| event_fd()).collect() };
        let mut machine = Self {
            frontend: Frontend::from_stream(stream, 2 * pairs),
            ram,
            features: 0,
            bases: vec![0; queues.len()],
            kicks: event_fds(),
            calls: event_fds(),
            next: vec![0; pairs as usize],
            queues,
        };
        machine.negotiate();
        for pair in 0..pairs as usize {
            (0..RING).for_each(|slot| machine.give_buffer(pair, slot));
        }
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

    /// The next driver knows no offload.
    pub(crate) fn forget_offloads(&mut self) {
        self.features &= !(bits::NET_GUEST_TSO4 | bits::NET_GUEST_TSO6);
    }

    /// What QEMU does at `cont`, with all pairs enabled.
    pub(crate) fn cont(&mut self) {
        self.cont_with(&vec![true; self.queues.len() / 2]);
    }

    /// The same with those pairs enabled.
    pub(crate) fn cont_with(&mut self, enabled: &[bool]) {
        for (pair, enabled) in enabled.iter().enumerate() {
            self.cont_pair(pair);
            self.enable(pair, *enabled);
        }
    }

    /// The part of it that is about one pair: QEMU has a connection's worth to say of each.
    pub(crate) fn cont_pair(&mut self, pair: usize) {
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
        for (ring, queue) in self.queues.iter().enumerate().skip(2 * pair).take(2) {
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
    }

    /// What QEMU does when the guest's driver uses a pair, or does so no more.
    pub(crate) fn enable(&mut self, pair: usize, wanted: bool) {
        for ring in [2 * pair + RX, 2 * pair + TX] {
            self.frontend.set_vring_enable(ring, wanted).expect("a state");
        }
    }

    /// What QEMU does at `stop`: returns when the core has left all rings.
    pub(crate) fn stop(&mut self) {
        (0..self.queues.len() / 2).for_each(|pair| self.stop_pair(pair));
    }

    /// The part of it that is about one pair.
    pub(crate) fn stop_pair(&mut self, pair: usize) {
        for (ring, base) in self.bases.iter_mut().enumerate().skip(2 * pair).take(2) {
            let found = self.frontend.get_vring_base(ring).expect("base");
            *base = u16::try_from(found).expect("an index");
        }
    }

    /// Where the guest expects each ring to go on after a stop.
    pub(crate) fn bases(&self) -> &[u16] {
        &self.bases
    }

    pub(crate) fn give_buffer(&mut self, pair: usize, slot: u16) {
        let gpa = RX_BUFFERS + BUFFERS_BYTES * pair as u64 + BUFFER * u64::from(slot);
        let queue = &mut self.queues[2 * pair + RX];
        queue.set_descriptor(slot, descriptor(gpa, BUFFER as u32, WRITE, 0));
        queue.offer(slot);
    }

    /// The guest sends a frame with this offload header, in as many buffers as it takes. The caller
    /// lets no more than a ring's worth of buffers be under way.
    pub(crate) fn send_offloaded(&mut self, header: &VirtioNetHdr, frame: &[u8]) {
        self.send_offloaded_by(0, header, frame);
    }

    /// The same by that pair.
    pub(crate) fn send_offloaded_by(&mut self, pair: usize, header: &VirtioNetHdr, frame: &[u8]) {
        self.queue_offloaded(pair, header, frame);
        self.kick();
    }

    fn queue_offloaded(&mut self, pair: usize, header: &VirtioNetHdr, frame: &[u8]) {
        let bytes = [&header.to_bytes()[..], frame].concat();
        let (queue, at) = (&mut self.queues[2 * pair + TX], &mut self.next[pair]);
        let head = *at % RING;
        let count = bytes.len().div_ceil(BUFFER as usize);
        for (nth, chunk) in bytes.chunks(BUFFER as usize).enumerate() {
            let slot = *at % RING;
            let gpa = TX_BUFFERS + BUFFERS_BYTES * pair as u64 + BUFFER * u64::from(slot);
            let (flags, next) = if nth + 1 < count { (NEXT, (slot + 1) % RING) } else { (0, 0) };
            self.ram.write(gpa, chunk);
            queue.set_descriptor(slot, descriptor(gpa, chunk.len() as u32, flags, next));
            *at = at.wrapping_add(1);
        }
        queue.offer(head);
    }

    /// The guest sends a frame as it is.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.send_offloaded(&VirtioNetHdr::default(), frame);
    }

    /// The guest sends a frame as it is by that pair.
    pub(crate) fn send_by(&mut self, pair: usize, frame: &[u8]) {
        self.queue_offloaded(pair, &VirtioNetHdr::default(), frame);
        self.kicks[2 * pair + TX].write(1).expect("an eventfd");
    }

    /// The guest notifies the device of frames to send, by all pairs.
    pub(crate) fn kick(&self) {
        for kick in self.kicks.iter().skip(TX).step_by(2) {
            kick.write(1).expect("an eventfd");
        }
    }

    /// Waits until `count` frames have been taken from the transmit ring in all.
    pub(crate) fn wait_taken(&self, count: u16) {
        self.wait_taken_by(0, count);
    }

    /// The same of that pair.
    pub(crate) fn wait_taken_by(&self, pair: usize, count: u16) {
        wait_until(|| self.queues[2 * pair + TX].used_index() == count);
    }

    /// Frames that the guest has received by that pair, each in one buffer; it gives the buffers back.
    pub(crate) fn receive_small(&mut self, pair: usize) -> Vec<Vec<u8>> {
        let used = self.queues[2 * pair + RX].take_used();
        let buffers = RX_BUFFERS + BUFFERS_BYTES * pair as u64;
        let frames = used.iter().map(|&(head, len)| {
            let bytes = self.ram.read(buffers + BUFFER * u64::from(head), len as usize);
            bytes[HEADER..].to_vec()
        });
        let frames = frames.collect();
        used.iter().for_each(|&(head, _)| self.give_buffer(pair, head as u16));
        self.kicks[2 * pair + RX].write(1).expect("an eventfd");
        frames
    }

    /// Waits for the next frame that the guest receives: its offload header and its bytes.
    pub(crate) fn receive(&mut self) -> (VirtioNetHdr, Vec<u8>) {
        self.receive_by(0)
    }

    /// The same by that pair.
    pub(crate) fn receive_by(&mut self, pair: usize) -> (VirtioNetHdr, Vec<u8>) {
        let ring = 2 * pair + RX;
        let mut used = Vec::new();
        wait_until(|| {
            used.extend(self.queues[ring].take_used());
            !used.is_empty()
        });
        let buffers = RX_BUFFERS + BUFFERS_BYTES * pair as u64;
        let buffer = |machine: &Self, (head, len): (u32, u32)| {
            machine.ram.read(buffers + BUFFER * u64::from(head), len as usize)
        };
        let mut bytes = buffer(self, used[0]);
        let head: [u8; HEADER] = bytes[..HEADER].try_into().expect("a header");
        let header = VirtioNetHdr::parse(&head);
        bytes.drain(..HEADER);
        wait_until(|| {
            used.extend(self.queues[ring].take_used());
            used.len() >= usize::from(header.num_buffers)
        });
        assert_eq!(used.len(), usize::from(header.num_buffers), "one frame at a time");
        for &chunk in &used[1..] {
            bytes.extend(buffer(self, chunk));
        }
        used.iter().for_each(|&(head, _)| self.give_buffer(pair, head as u16));
        self.kicks[ring].write(1).expect("an eventfd");
        (header, bytes)
    }
}
