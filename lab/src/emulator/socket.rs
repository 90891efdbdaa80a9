//! A raw socket on an interface: whole frames in and out, many a system call.
#![expect(unsafe_code, reason = "packet sockets and their batched calls have no safe wrapper")]

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Frames of a system call.
pub(super) const BATCH: usize = 64;
/// Room for a frame, with a tag; the laboratory's longest MTU is 9000.
const SLOT_BYTES: usize = 9216;
/// Where a frame is read to, so that its tag can be put back.
const TAG_BYTES: usize = 4;
const MACS_BYTES: usize = 12;
/// The kernel's buffers: a burst at the line's speed while this process waits for a processor.
const BUFFER_BYTES: libc::c_int = 64 << 20;
const CONTROL_BYTES: usize = 64;
/// `tp_status` of the auxiliary data: the frame had a tag, which the kernel took out.
const TAG_VALID: u32 = 1 << 4;
const TAG_PROTOCOL_VALID: u32 = 1 << 6;

/// An open socket. Its frames are those that arrive at the interface, whomever they are for.
#[derive(Debug)]
pub(super) struct PacketSocket {
    fd: OwnedFd,
    buffer: Box<[u8]>,
    /// Frames that were longer than there is room for.
    pub(super) oversized_frames: u64,
    socket_drops: u64,
}

/// Room for control messages, aligned as they must be.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

impl PacketSocket {
    /// On the interface of that name in this thread's network namespace.
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let name = std::ffi::CString::new(interface).map_err(io::Error::other)?;
        // SAFETY: the name is a NUL-terminated string that outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0: nothing arrives before it is bound to the one interface.
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self {
            fd,
            buffer: vec![0; BATCH * SLOT_BYTES].into_boxed_slice(),
            oversized_frames: 0,
            socket_drops: 0,
        };
        socket.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER_BYTES)?;
        socket.option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &BUFFER_BYTES)?;
        let on: libc::c_int = 1;
        socket.option(libc::SOL_PACKET, libc::PACKET_AUXDATA, &on)?;
        // What this socket sends does not come back to it.
        socket.option(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &on)?;
        // The queueing discipline of a virtual interface has nothing to add.
        socket.option(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &on)?;
        // SAFETY: both are plain old data, for which all zeroes is a valid value.
        let (mut address, mut everything): (libc::sockaddr_ll, libc::packet_mreq) =
            unsafe { (zeroed(), zeroed()) };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        // SAFETY: the address is of the family's type and lives through the call.
        let bound = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        everything.mr_ifindex = index as i32;
        everything.mr_type = libc::PACKET_MR_PROMISC as u16;
        socket.option(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &everything)?;
        Ok(socket)
    }

    fn option<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: every caller passes a plain value of the type that the option takes; the kernel
        // reads its bytes during the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(value).cast(),
                size_of_val(value) as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives each of at most [`BATCH`] frames that have arrived to `each`; says how many there were.
    pub(super) fn receive(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut controls = [Control([0; CONTROL_BYTES]); BATCH];
        // SAFETY: plain old data, for which all zeroes is a valid value.
        let (mut parts, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        let slots = self.buffer.chunks_exact_mut(SLOT_BYTES);
        for (((part, header), slot), control) in
            parts.iter_mut().zip(&mut headers).zip(slots).zip(&mut controls)
        {
            part.iov_base = slot[TAG_BYTES..].as_mut_ptr().cast();
            part.iov_len = SLOT_BYTES - TAG_BYTES;
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL_BYTES;
        }
        // SAFETY: each header points at one part, which points into its own slot of the buffer, and at
        // its own control room; all of them live, unmoved, through the call, with the lengths given.
        let got = unsafe {
            libc::recvmmsg(
                self.fd.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // Taken down, which it may be for a while: a cable that is pulled.
                Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => Ok(0),
                _ => Err(error),
            };
        }
        let got = got as usize;
        for (header, slot) in headers[..got].iter().zip(self.buffer.chunks_exact_mut(SLOT_BYTES)) {
            let len = header.msg_len as usize;
            if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || len > SLOT_BYTES - TAG_BYTES {
                self.oversized_frames += 1;
                continue;
            }
            match tag(&header.msg_hdr).filter(|_| len >= MACS_BYTES) {
                None => each(&slot[TAG_BYTES..TAG_BYTES + len]),
                Some(tag) => {
                    slot.copy_within(TAG_BYTES..TAG_BYTES + MACS_BYTES, 0);
                    slot[MACS_BYTES..MACS_BYTES + TAG_BYTES].copy_from_slice(&tag);
                    each(&slot[..TAG_BYTES + len]);
                }
            }
        }
        Ok(got)
    }

    /// Sends the first of `frames`; says how many, which is none while the interface has no room.
    pub(super) fn send(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        // SAFETY: plain old data, for which all zeroes is a valid value.
        let (mut parts, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        let count = frames.len().min(BATCH);
        for ((part, header), frame) in parts.iter_mut().zip(&mut headers).zip(frames) {
            part.iov_base = frame.as_ptr().cast_mut().cast();
            part.iov_len = frame.len();
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: each header points at one part, which points at its frame; all live, unmoved, through
        // the call, with the lengths given. The kernel only reads what is sent.
        let sent = unsafe {
            libc::sendmmsg(
                self.fd.as_raw_fd(),
                headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        if sent >= 0 {
            return Ok(sent as usize);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS) => Ok(0),
            _ => Err(error),
        }
    }

    /// Frames that the kernel dropped so far, as this process was too slow to fetch them.
    pub(super) fn dropped_frames(&mut self) -> u64 {
        // SAFETY: plain old data, for which all zeroes is a valid value.
        let mut counts: libc::tpacket_stats = unsafe { zeroed() };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the option fills the structure of that length, which lives through the call.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut counts).cast(),
                &raw mut len,
            )
        };
        if result == 0 {
            // Asking sets them back.
            self.socket_drops += u64::from(counts.tp_drops);
        }
        self.socket_drops
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The tag of a received frame, which the kernel gives beside it.
fn tag(header: &libc::msghdr) -> Option<[u8; TAG_BYTES]> {
    // SAFETY: the header is as the kernel left it, its control room still alive in the caller.
    let message = unsafe { libc::CMSG_FIRSTHDR(header).as_ref() }?;
    let wanted = (libc::SOL_PACKET, libc::PACKET_AUXDATA);
    if (message.cmsg_level, message.cmsg_type) != wanted {
        return None;
    }
    // SAFETY: a message of this kind carries the structure; it may lie unaligned.
    let data: libc::tpacket_auxdata =
        unsafe { libc::CMSG_DATA(message).cast::<libc::tpacket_auxdata>().read_unaligned() };
    if data.tp_status & TAG_VALID == 0 {
        return None;
    }
    let protocol =
        if data.tp_status & TAG_PROTOCOL_VALID != 0 { data.tp_vlan_tpid } else { libc::ETH_P_8021Q as u16 };
    let ([a, b], [c, d]) = (protocol.to_be_bytes(), data.tp_vlan_tci.to_be_bytes());
    Some([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Namespace;
    use crate::requirements::{Need, can_run};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    #[test]
    fn frames_of_every_kind_pass_from_socket_to_socket_unharmed() {
        if !can_run(&[Need::Root]) {
            return;
        }
        let namespace = Namespace::create("unit").expect("made");
        namespace.set("net/ipv6/conf/default/disable_ipv6", "1").expect("silent");
        namespace.add_veth(["left", "right"], 9000, true).expect("made");
        let open = |name| namespace.run(|| PacketSocket::open(name)).expect("entered").expect("opened");
        let (left, mut right) = (open("left"), open("right"));
        let mut frame = vec![7; 9014];
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        let short = frame[..60].to_vec();
        let mut tagged = short.clone();
        tagged[12..18].copy_from_slice(&[0x81, 0x00, 0x20, 77, 0x88, 0xb5]);
        let mut provider = tagged.clone();
        provider[12..14].copy_from_slice(&[0x88, 0xa8]);
        let frames = [frame, short, tagged, provider];
        assert_eq!(left.send(&frames).expect("sent"), frames.len());
        let mut got = Vec::new();
        while got.len() < frames.len() {
            let mut watched = [PollFd::new(right.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut watched, PollTimeout::from(5000u16)).expect("waited"), 1, "{}", got.len());
            right.receive(|frame| got.push(frame.to_vec())).expect("received");
        }
        assert!(got == frames, "a frame was changed");
        assert_eq!((right.oversized_frames, right.dropped_frames()), (0, 0));
    }
}
