//! Frames in, by bursts: each a packet of the interface, or a large one that the other end, or the
//! kernel, has not cut.
#![expect(
    unsafe_code,
    reason = "recvmmsg with control messages, which nix has no form without allocation of"
)]

use crate::sender::HEADER_LEN;
use crate::socket::{OpenError, Place, is_absence};
use nix::errno::Errno;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;

/// Frames received at once, at most.
pub const BURST: usize = 64;

/// Bytes that may wait to be received, with what the kernel keeps for each frame.
const BACKLOG: i32 = 16 << 20;

/// Longest frame, in bytes: what an IPv4 length can say, and its link header.
const FRAME_MAX: usize = 65535 + 64;

/// Room for one control message: the frame's `tpacket_auxdata`, 20 bytes behind a header of 16.
const CONTROL_LEN: usize = 64;

/// The kernel's word that a frame had a tag, and that the tag's own type is known.
const TAG_VALID: u32 = libc::TP_STATUS_VLAN_VALID;
const TYPE_VALID: u32 = libc::TP_STATUS_VLAN_TPID_VALID;
const TYPE_DEFAULT: u16 = 0x8100;

/// The outermost VLAN tag of a frame, which the kernel takes out: 4 bytes that belong behind the
/// addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Its EtherType.
    pub kind: u16,
    /// Priority, eligibility and number.
    pub control: u16,
}

/// A frame that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Place of its buffer. What did not fit there is in [`Receiver::overflow`].
    pub place: usize,
    /// Its length in bytes.
    pub len: usize,
    /// Its offload header: checksums that are to be completed, and the size into which a large frame is
    /// to be cut.
    pub header: [u8; HEADER_LEN],
    /// The tag that the kernel took out of it; offsets in the header are without it.
    pub tag: Option<Tag>,
}

#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);

/// What the kernel is told and tells of a burst.
struct Slots {
    messages: [libc::mmsghdr; BURST],
    /// Header, the caller's buffer, overflow.
    pieces: [[libc::iovec; 3]; BURST],
    headers: [[u8; HEADER_LEN]; BURST],
    controls: [Control; BURST],
}

/// The receiving half.
pub struct Receiver {
    socket: OwnedFd,
    slots: Box<Slots>,
    /// [`FRAME_MAX`] bytes for each of a burst; pages that no large frame ever used are never there.
    overflow: Vec<u8>,
    oversized: u64,
    /// The kernel said that the interface is down or gone.
    pub(crate) suspects: bool,
}

// SAFETY: the pointers in the slots are set anew by each burst and used by it alone.
unsafe impl Send for Receiver {}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Receiver {
    pub(crate) fn open(place: &Place) -> Result<Self, OpenError> {
        let socket = place.socket()?;
        place.set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1i32)?;
        place.set(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1i32)?;
        place.set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1i32)?;
        place
            .set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BACKLOG)
            .or_else(|_| place.set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, BACKLOG))?;
        // SAFETY: all bits zero is a valid value of each of these.
        let slots = Box::new(unsafe { zeroed() });
        let overflow = vec![0; BURST * FRAME_MAX];
        let receiver = Self { socket, slots, overflow, oversized: 0, suspects: false };
        receiver.follow(place)?;
        Ok(receiver)
    }

    /// Hears what comes by the interface, unless it does so already.
    pub(crate) fn follow(&self, place: &Place) -> Result<(), OpenError> {
        if place.is_bound(&self.socket) {
            return Ok(());
        }
        place.listen_to_all(&self.socket)?;
        place.bind(&self.socket, libc::ETH_P_ALL)
    }

    /// Receives up to [`BURST`] frames, each into one of `buffers` from the first on, and tells `done` of
    /// each. Returns how many buffers were used. A frame that is longer than any of IP is dropped and
    /// counted: its buffer is used and not told of.
    ///
    /// Never waits; no allocation; one system call. From one end of a veth pair, in full bursts: 0.52 us a frame of 60 bytes, 0.54 of
    /// 1514, 1.0 of 9014 (`cargo bench -p holdfast-packet-socket`).
    pub fn burst<B: AsMut<[u8]>>(&mut self, buffers: &mut [B], mut done: impl FnMut(Received)) -> usize {
        let count = buffers.len().min(BURST);
        let Slots { messages, pieces, headers, controls } = &mut *self.slots;
        let overflow = self.overflow.chunks_exact_mut(FRAME_MAX);
        for ((place, buffer), rest) in buffers[..count].iter_mut().enumerate().zip(overflow) {
            let piece =
                |bytes: &mut [u8]| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            pieces[place] = [piece(&mut headers[place]), piece(buffer.as_mut()), piece(rest)];
            let message = &mut messages[place].msg_hdr;
            message.msg_name = ptr::null_mut();
            message.msg_namelen = 0;
            message.msg_iov = pieces[place].as_mut_ptr();
            message.msg_iovlen = pieces[place].len();
            message.msg_control = controls[place].0.as_mut_ptr().cast();
            message.msg_controllen = CONTROL_LEN as _;
            message.msg_flags = 0;
        }
        // SAFETY: `count` messages name headers, buffers, overflow and control room that live, and are
        // borrowed alone, until the call returns.
        let got = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        if got < 0 {
            self.suspects |= is_absence(Errno::last());
        }
        // No frame, or an interface that is down: both mean that there is nothing now.
        let got = usize::try_from(got).unwrap_or(0);
        for (place, message) in messages[..got].iter().enumerate() {
            let len = (message.msg_len as usize).checked_sub(HEADER_LEN);
            match len.filter(|_| message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0) {
                Some(len) => {
                    done(Received { place, len, header: headers[place], tag: tag(&message.msg_hdr) });
                }
                None => self.oversized += 1,
            }
        }
        got
    }

    /// What of a frame of the last burst did not fit its buffer of `buffer_len` bytes.
    #[must_use]
    pub fn overflow(&self, received: &Received, buffer_len: usize) -> &[u8] {
        let begin = received.place * FRAME_MAX;
        &self.overflow[begin..begin + received.len.saturating_sub(buffer_len)]
    }

    /// Readable while frames wait. It belongs to the receiver: poll it, never read or close it.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Frames dropped so far because they were longer than any of IP.
    #[must_use]
    pub const fn oversized(&self) -> u64 {
        self.oversized
    }
}

/// The tag in a message's control data.
fn tag(message: &libc::msghdr) -> Option<Tag> {
    // SAFETY: the kernel filled in the control data, of which the message names start and length.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    let wanted = header.cmsg_level == libc::SOL_PACKET && header.cmsg_type == libc::PACKET_AUXDATA;
    let len = size_of::<libc::tpacket_auxdata>();
    // SAFETY: arithmetic on a length.
    if !wanted || (header.cmsg_len as usize) < unsafe { libc::CMSG_LEN(len as u32) } as usize {
        return None;
    }
    // SAFETY: the data of a control message of this type is this structure, of which any bits are
    // valid; it may be unaligned.
    let found = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
    (found.tp_status & TAG_VALID != 0).then_some(Tag {
        kind: if found.tp_status & TYPE_VALID != 0 { found.tp_vlan_tpid } else { TYPE_DEFAULT },
        control: found.tp_vlan_tci,
    })
}
