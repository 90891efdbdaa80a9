//! What a guest's network card is to the dataplane: bursts of frames with their offload header.
//!
//! The core loop sees a [`GuestPort`]; the vhost-user endpoint is one, and tests have another. All
//! calls are made by the polling core that owns the port.

use std::os::fd::RawFd;

/// The offload header in front of every frame, as the guest wrote it: nothing in it is to be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHdr {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of all headers, a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksum begins.
    pub csum_start: u16,
    /// Where it is put, from there.
    pub csum_offset: u16,
    /// Buffers that the frame took.
    pub num_buffers: u16,
}

/// Whether a frame of the guest was taken from its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was.
    Taken,
    /// It stays in the ring, first in line.
    Refused,
}

/// Bytes of one frame in the guest's memory, after the offload header. The guest may write to them
/// at any time: what is to be judged is copied out first, once.
pub trait GuestFrame {
    /// Length in bytes.
    fn len(&self) -> usize;

    /// Whether there is no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `out.len()` bytes from `offset` on; bytes beyond the end of the frame are zero.
    fn copy_to(&self, offset: usize, out: &mut [u8]);
}

/// What the guest's driver negotiated for frames that it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// It trusts the device's word on checksums (`VIRTIO_NET_F_GUEST_CSUM`).
    pub checksum: bool,
    /// It takes TCPv4 frames beyond its MTU (`VIRTIO_NET_F_GUEST_TSO4`).
    pub tso4: bool,
    /// It takes TCPv6 frames beyond its MTU (`VIRTIO_NET_F_GUEST_TSO6`).
    pub tso6: bool,
}

/// What became of a frame that was offered to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The guest has it.
    Done,
    /// The guest has no buffers for it now.
    NoRoom,
    /// The receive ring stands still: the guest is paused, gone, or has not started its driver.
    Stopped,
}

/// A guest's network card, owned by the polling core.
pub trait GuestPort: Send {
    /// Takes up what the control side changed: starts and parks rings. Cheap when nothing changed.
    fn poll_control(&mut self);

    /// Counts connections and resets: a change means that another driver may be at the other end.
    fn incarnation(&self) -> u64;

    /// What the driver negotiated.
    fn offloads(&self) -> Offloads;

    /// Takes up to `max` frames that the guest sent; a refused one stays in the ring, first in line.
    /// Returns how many were taken. A ring fault stops the device and is counted by it (RB-1).
    fn capture(
        &mut self,
        max: usize,
        sink: &mut dyn FnMut(&VirtioNetHdr, &dyn GuestFrame) -> Verdict,
    ) -> usize;

    /// Gives the guest one frame, made of `parts` in order.
    fn deliver(&mut self, header: &VirtioNetHdr, parts: &[&[u8]]) -> Delivery;

    /// Publishes what was captured and delivered since the last call; at most one notification each.
    fn flush(&mut self);

    /// Asks for notifications, as the core is about to sleep; `capturing` is false while the port
    /// takes nothing from the guest. Returns whether work has arrived meanwhile: then do not sleep.
    fn arm(&mut self, capturing: bool) -> bool;

    /// Asks for no more notifications, as the core polls again.
    fn disarm(&mut self);

    /// Appends the descriptors that a notification of the guest makes readable.
    fn kick_fds(&self, out: &mut Vec<RawFd>);
}
