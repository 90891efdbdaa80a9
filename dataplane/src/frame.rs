//! What a wire is to the dataplane: frames in bursts, both ways.
//!
//! The dataplane does not know DPDK. It is generic over a [`Wire`], which hands out owned frames of
//! its own memory, so that a guest's bytes are copied once: from the guest straight into the frame
//! that leaves.
//!
//! Threading: a wire belongs to one polling core and is used by `&mut self`; frames may be held for
//! long (the escrow does) and dropped anywhere, which gives their memory back.

use crate::guest::VirtioNetHdr;
use std::collections::VecDeque;
use std::os::fd::RawFd;

/// One frame as it is on the wire: from the destination MAC to the last byte before the checksum.
pub trait Frame: Send {
    /// All bytes of the frame.
    fn bytes(&self) -> &[u8];

    /// All bytes of the frame, to be written.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// Whether all its checksums are known to be right, as they were made here.
    fn is_sound(&self) -> bool {
        false
    }

    /// Its checksums were made here, and are kept right by whoever writes to it from now on. A frame that does
    /// not keep this in mind has its checksums verified where they matter.
    fn set_sound(&mut self) {}

    /// Has its first bytes fetched, as it will be looked at soon. A hint.
    fn prefetch(&self) {}
}

/// A frame in memory of its own.
impl Frame for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// A port to the world, as one polling core sees it.
pub trait Wire {
    /// Owned frames of this wire's memory.
    type Frame: Frame;

    /// A frame of exactly `len` bytes with unspecified content, or none when the memory set aside
    /// for frames is used up. A frame must hold at least the MTU and 22 bytes of link header; for a
    /// longer one there is none. Must not allocate otherwise.
    fn alloc(&mut self, len: usize) -> Option<Self::Frame>;

    /// A frame of these bytes, as [`Wire::alloc`] has it.
    #[inline]
    fn copy(&mut self, bytes: &[u8]) -> Option<Self::Frame> {
        let mut frame = self.alloc(bytes.len())?;
        frame.bytes_mut().copy_from_slice(bytes);
        Some(frame)
    }

    /// Appends up to `max` received frames to `out`, which has room for them; returns how many.
    fn rx_burst(&mut self, out: &mut Vec<Self::Frame>, max: usize) -> usize;

    /// Sends up to `max` frames from the front of `frames` and removes those it took, in order;
    /// returns how many. Frames after the first that does not go now stay where they are.
    fn tx_burst(&mut self, frames: &mut VecDeque<Self::Frame>, max: usize) -> usize;

    /// Whether [`Wire::tx_large`] does anything.
    fn takes_large(&self) -> bool {
        false
    }

    /// Sends a large frame of TCP, which the wire cuts into so many frames of its MTU as a card does, by its
    /// offload header; behind everything taken before. False when there is no room for it now.
    fn tx_large(&mut self, _header: &VirtioNetHdr, _frame: &[u8], _segments: usize) -> bool {
        false
    }

    /// Makes sure that everything taken by [`Wire::tx_burst`] is on its way; once a turn of the core.
    fn flush(&mut self);

    /// Longest network-layer packet that the wire carries, in bytes (without the Ethernet header).
    fn mtu(&self) -> u16;

    /// The wire's own address.
    fn mac(&self) -> [u8; 6];

    /// A descriptor that becomes readable when frames have arrived, if the wire has one. Without it
    /// an idle core looks at the wire again after a short timed wait.
    fn readable_fd(&self) -> Option<RawFd>;

    /// Called before the core sleeps, and before it looks for frames a last time: the descriptor of
    /// [`Wire::readable_fd`] is to tell of the next frame.
    fn arm(&mut self) {}

    /// Called when the core polls again.
    fn disarm(&mut self) {}

    /// About how many frames [`Wire::alloc`] could still hand out; asked once a burst.
    fn free_frames(&self) -> usize;

    /// Frames dropped so far, in either direction, because the wire could not carry them: longer than
    /// its frames, or with headers that lie. Asked once a turn.
    fn lost(&self) -> u64 {
        0
    }
}

impl<W: Wire + ?Sized> Wire for Box<W> {
    type Frame = W::Frame;

    fn alloc(&mut self, len: usize) -> Option<Self::Frame> {
        (**self).alloc(len)
    }

    fn rx_burst(&mut self, out: &mut Vec<Self::Frame>, max: usize) -> usize {
        (**self).rx_burst(out, max)
    }

    fn tx_burst(&mut self, frames: &mut VecDeque<Self::Frame>, max: usize) -> usize {
        (**self).tx_burst(frames, max)
    }

    fn takes_large(&self) -> bool {
        (**self).takes_large()
    }

    fn tx_large(&mut self, header: &VirtioNetHdr, frame: &[u8], segments: usize) -> bool {
        (**self).tx_large(header, frame, segments)
    }

    fn flush(&mut self) {
        (**self).flush();
    }

    fn mtu(&self) -> u16 {
        (**self).mtu()
    }

    fn mac(&self) -> [u8; 6] {
        (**self).mac()
    }

    fn readable_fd(&self) -> Option<RawFd> {
        (**self).readable_fd()
    }

    fn arm(&mut self) {
        (**self).arm();
    }

    fn disarm(&mut self) {
        (**self).disarm();
    }

    fn free_frames(&self) -> usize {
        (**self).free_frames()
    }

    fn lost(&self) -> u64 {
        (**self).lost()
    }
}
