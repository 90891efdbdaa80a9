//! What a guest's network card is to the dataplane: bursts of frames with their offload header.
//!
//! The core loop sees a [`GuestPort`]; the vhost-user endpoint is one, and tests have another. All
//! calls are made by the polling core that owns the port.

use std::os::fd::BorrowedFd;

pub use holdfast_vhost_user::{SMALL_FRAME_BYTES, Verdict, VirtioNetHdr};

/// For how long frames wait for a guest that stands still. A checkpoint takes milliseconds; a guest
/// that stays away longer wants nothing old.
pub(crate) const PATIENCE_NS: u64 = 2_000_000_000;

/// For how long a frame waits for buffers of a guest that runs. It may be larger than any that the
/// guest will ever have, and must not block those behind it for good.
pub(crate) const STUCK_NS: u64 = 1_000_000_000;

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

    /// All bytes of the frame, if they have been copied out already; of frames of up to [`SMALL_FRAME_BYTES`] only.
    fn copied(&self) -> Option<&[u8]> {
        None
    }
}

impl GuestFrame for &[u8] {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn copy_to(&self, offset: usize, out: &mut [u8]) {
        let there = self.get(offset..).unwrap_or_default();
        let (copied, beyond) = out.split_at_mut(there.len().min(out.len()));
        copied.copy_from_slice(&there[..copied.len()]);
        beyond.fill(0);
    }
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

/// A guest's network card, owned by the polling core.
pub trait GuestPort: Send {
    /// Takes up what the control side changed: starts and parks rings. Cheap when nothing changed.
    fn poll_control(&mut self);

    /// Whether any ring runs: the driver is there and the guest is not paused.
    fn is_running(&self) -> bool;

    /// What the driver negotiated; meaningful while rings run.
    fn offloads(&self) -> Offloads;

    /// Takes up to `max` frames that the guest sent; a refused one stays in its ring, first in line.
    /// Several rings have their turns one after the other; what is in one keeps its order.
    /// Returns how many were taken. A ring fault stops the device and is counted by it (RB-1).
    fn capture(
        &mut self,
        max: usize,
        sink: &mut dyn FnMut(&VirtioNetHdr, &dyn GuestFrame) -> Verdict,
    ) -> usize;

    /// Gives the guest one frame, made of `parts` in order, the first of which has its headers; false
    /// when there are no buffers for it now. All frames of a flow go by one queue, so that their order
    /// is kept (OC-2).
    fn deliver(&mut self, header: &VirtioNetHdr, parts: &[&[u8]]) -> bool;

    /// FO-1: the port is fenced, or is no longer. What has left the guest's rings and was not captured is dropped; how many
    /// frames that was.
    fn fence(&mut self, _fenced: bool) -> usize {
        0
    }

    /// Whether frames wait that have left the guest's rings already, on their way from another core.
    fn has_backlog(&self) -> bool {
        false
    }

    /// Publishes what was captured and delivered since the last call; at most one notification each.
    fn flush(&mut self);

    /// Asks for notifications, as the core is about to sleep: of frames to send if `capturing`, of
    /// new buffers if `delivering`. Returns whether the guest has frames to send: then do not sleep.
    fn arm(&mut self, capturing: bool, delivering: bool) -> bool;

    /// Asks for no more notifications and takes those that have come, as the core polls again.
    fn disarm(&mut self);

    /// Tells the descriptors that a notification of the guest makes readable.
    fn kick_fds<'a>(&'a self, take: &mut dyn FnMut(BorrowedFd<'a>));
}
