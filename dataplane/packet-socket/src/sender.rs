//! Frames out: each a packet of the interface, or up to 64 KiB that the kernel cuts.

use crate::socket::{OpenError, Place, is_absence};
use arrayvec::ArrayVec;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of the offload header before each frame: a `struct virtio_net_hdr` without its count of
/// buffers, little-endian.
pub const HEADER_LEN: usize = 10;

/// Parts of which a frame may be made.
pub const PARTS_MAX: usize = 68;

/// Bytes that may be on their way to the interface: some of the largest frames with what the kernel
/// keeps for each.
const BACKLOG: i32 = 8 << 20;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The interface has it.
    Taken,
    /// There is no room for it now.
    Full,
    /// The kernel refuses it for good: the interface is down, or the frame is none that it carries.
    Refused,
}

/// The sending half.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    refused: u64,
    /// The kernel said that the interface is down or gone.
    pub(crate) suspects: bool,
}

impl Sender {
    pub(crate) fn open(place: &Place) -> Result<Self, OpenError> {
        let socket = place.socket()?;
        place.set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1i32)?;
        // Forced, as the host's bound is made for programs that are one of many; without the privilege
        // the bound holds.
        place
            .set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BACKLOG)
            .or_else(|_| place.set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, BACKLOG))?;
        let sender = Self { socket, refused: 0, suspects: false };
        sender.follow(place)?;
        Ok(sender)
    }

    /// Sends to the interface, unless it does so already.
    pub(crate) fn follow(&self, place: &Place) -> Result<(), OpenError> {
        if place.is_bound(&self.socket) { Ok(()) } else { place.bind(&self.socket, 0) }
    }

    /// Sends one frame, made of at most [`PARTS_MAX`] `parts` in order, with its offload header, which the
    /// kernel cuts into `frames`. It is copied before this returns.
    ///
    /// Never waits; no allocation; one system call. Most of its cost is the kernel's path to the other
    /// end of the interface: into a veth pair 1.5 us a frame of 60 bytes, 1.5 of 1514, 2.1 of 9014
    /// (`cargo bench -p holdfast-packet-socket`).
    pub fn send(&mut self, header: &[u8; HEADER_LEN], parts: &[&[u8]], frames: usize) -> Sent {
        let mut pieces = ArrayVec::<IoSlice<'_>, { PARTS_MAX + 1 }>::new();
        pieces.push(IoSlice::new(header));
        if parts.len() > PARTS_MAX {
            self.refused += frames as u64;
            return Sent::Refused;
        }
        pieces.extend(parts.iter().map(|part| IoSlice::new(part)));
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &pieces, &[], MsgFlags::MSG_DONTWAIT, None) {
                Ok(_) => return Sent::Taken,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return Sent::Full,
                Err(errno) => {
                    self.suspects |= is_absence(errno);
                    self.refused += frames as u64;
                    return Sent::Refused;
                }
            }
        }
    }

    /// Frames that the kernel refused so far; a large one counts as those into which it was to be cut.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }
}
