//! The channel to Holdfast: a packet socket that asks by each network card and takes the answers.
//!
//! Messages: [`holdfast_packet::guest_channel`]. An answer counts when it returns the nonce of the question that
//! was asked last by that card: whoever has not heard the question cannot answer it.
#![expect(unsafe_code, reason = "addresses of packet sockets have no safe form")]

use crate::clock::kernel::raw_ns;
use crate::clock::servo::Exchange;
use holdfast_packet::guest_channel::{Answer, Ask, ETHERTYPE, LINK, LONGEST};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// As in the kernel's `asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The socket and what was asked.
pub(crate) struct Channel {
    socket: OwnedFd,
    random: File,
    /// Nonce and time, by card.
    asked: HashMap<i32, (u64, i64)>,
}

impl Channel {
    /// A socket for the channel's frames, of all cards.
    pub(crate) fn open() -> io::Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: a call without pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(ETHERTYPE.to_be())) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { socket, random: File::open("/dev/urandom")?, asked: HashMap::new() })
    }

    /// The network namespace that this is in, as the kernel numbers it.
    pub(crate) fn namespace(&self) -> io::Result<u64> {
        let mut cookie = 0u64;
        let mut len = size_of::<u64>() as libc::socklen_t;
        // SAFETY: both live until the call returns, and the length is that of the word.
        let done = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
    }

    /// Asks by the card of that index.
    pub(crate) fn ask(&mut self, ifindex: i32) -> io::Result<()> {
        let mut nonce = [0; 8];
        self.random.read_exact(&mut nonce)?;
        let nonce = u64::from_ne_bytes(nonce);
        self.asked.insert(ifindex, (nonce, raw_ns()));
        let message = Ask { nonce }.encode();
        // SAFETY: all bits zero is a valid address.
        let mut to: libc::sockaddr_ll = unsafe { zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = ETHERTYPE.to_be();
        to.sll_ifindex = ifindex;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&LINK.0);
        // SAFETY: message and address live until the call returns, and their lengths are theirs.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether that card's last question has not been answered.
    pub(crate) fn is_waiting(&self, ifindex: i32) -> bool {
        self.asked.contains_key(&ifindex)
    }

    /// The next answer that has come, with the index of its card, and when it was asked for and heard; what is none
    /// is passed over.
    pub(crate) fn answer(&mut self) -> io::Result<Option<(i32, Answer, Exchange)>> {
        loop {
            let mut bytes = [0; LONGEST];
            // SAFETY: all bits zero is a valid address.
            let mut from: libc::sockaddr_ll = unsafe { zeroed() };
            let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: buffer and address live until the call returns, and their lengths are theirs.
            let got = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut from_len,
                )
            };
            let Ok(len) = usize::try_from(got) else {
                let fault = io::Error::last_os_error();
                return match fault.kind() {
                    io::ErrorKind::WouldBlock => Ok(None),
                    io::ErrorKind::Interrupted => continue,
                    // A card that went down; the others go on.
                    _ if fault.raw_os_error() == Some(libc::ENETDOWN) => continue,
                    _ => Err(fault),
                };
            };
            let Ok(answer) = Answer::decode(&bytes[..len.min(LONGEST)]) else { continue };
            // Each question has one answer.
            let Some(&(nonce, asked_ns)) = self.asked.get(&from.sll_ifindex) else { continue };
            if nonce == answer.nonce {
                self.asked.remove(&from.sll_ifindex);
                let host_ns = i64::try_from(answer.host_realtime_ns).unwrap_or(0);
                let exchange = Exchange { asked_ns, heard_ns: raw_ns(), host_ns };
                return Ok(Some((from.sll_ifindex, answer, exchange)));
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
