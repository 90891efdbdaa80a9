//! What both sockets need: their making, options and binding.
#![expect(unsafe_code, reason = "calls that nix has no safe form of")]

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use thiserror::Error;

/// What was being done when an interface could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was looked up.
    Find,
    /// Its MTU was asked.
    Mtu,
    /// A socket was made.
    Socket,
    /// An option of a socket was set.
    Option,
    /// A socket was bound to it.
    Bind,
}

/// An interface could not be opened; the configuration or the host is at fault.
#[derive(Debug, Error)]
#[error("interface {interface}: {}: {error}\n  mend: {}", step.what(), step.mend())]
pub struct OpenError {
    /// Its name.
    pub interface: String,
    /// What was being done.
    pub step: Step,
    /// What the kernel said.
    pub error: io::Error,
}

impl Step {
    const fn what(self) -> &'static str {
        match self {
            Self::Find => "it is not in this network namespace",
            Self::Mtu => "its MTU cannot be read",
            Self::Socket => "a packet socket cannot be made",
            Self::Option => "the kernel refuses an option of its packet sockets",
            Self::Bind => "a packet socket cannot be bound to it",
        }
    }

    const fn mend(self) -> &'static str {
        match self {
            Self::Find | Self::Mtu | Self::Bind => "name one of those that `ip link` shows",
            Self::Socket => "give the process CAP_NET_RAW, or run it by the systemd unit",
            Self::Option => "Linux 4.20 or later is needed",
        }
    }
}

/// An interface that was found.
#[derive(Debug)]
pub(crate) struct Place {
    name: String,
    index: i32,
    pub(crate) mtu: u16,
}

impl Place {
    pub(crate) fn find(name: &str) -> Result<Self, OpenError> {
        let fault = |step, error: io::Error| OpenError { interface: name.to_owned(), step, error };
        let index = if_nametoindex(name).map_err(|errno| fault(Step::Find, errno.into()))?;
        let index = i32::try_from(index).map_err(|_| fault(Step::Find, Errno::ENODEV.into()))?;
        let mtu = mtu(name).map_err(|error| fault(Step::Mtu, error))?;
        Ok(Self { name: name.to_owned(), index, mtu })
    }

    pub(crate) fn fault(&self, step: Step) -> OpenError {
        OpenError { interface: self.name.clone(), step, error: io::Error::last_os_error() }
    }

    /// A packet socket that gets nothing until it is bound.
    pub(crate) fn socket(&self) -> Result<OwnedFd, OpenError> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: a call without pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(self.fault(Step::Socket));
        }
        // SAFETY: the descriptor is new and ours.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Sets an option of `level` to a value in the form that the kernel takes.
    pub(crate) fn set<T: Copy>(
        &self,
        socket: &OwnedFd,
        level: i32,
        option: i32,
        value: T,
    ) -> Result<(), OpenError> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel reads `len` bytes of a value that lives until the call returns.
        let done =
            unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len) };
        if done < 0 { Err(self.fault(Step::Option)) } else { Ok(()) }
    }

    /// Takes frames for all addresses while the socket lives.
    pub(crate) fn listen_to_all(&self, socket: &OwnedFd) -> Result<(), OpenError> {
        let request = libc::packet_mreq {
            mr_ifindex: self.index,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        self.set(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, request)
    }

    /// Binds to the interface, for frames of this `ETH_P_` protocol (0: none); returns its address.
    pub(crate) fn bind(&self, socket: &OwnedFd, protocol: i32) -> Result<[u8; 6], OpenError> {
        // SAFETY: all bits zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (protocol as u16).to_be();
        address.sll_ifindex = self.index;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel reads `len` bytes of an address that lives until the call returns.
        let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        if done < 0 {
            return Err(self.fault(Step::Bind));
        }
        let mut got = len;
        // SAFETY: the kernel writes at most `got` bytes, the size of the address.
        let done = unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut got) };
        if done < 0 {
            return Err(self.fault(Step::Bind));
        }
        let [a, b, c, d, e, f, ..] = address.sll_addr;
        Ok([a, b, c, d, e, f])
    }
}

fn mtu(name: &str) -> io::Result<u16> {
    // SAFETY: a call without pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all bits zero is a valid request.
    let mut request: libc::ifreq = unsafe { zeroed() };
    let last = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..last].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the kernel reads the name, which ends with a zero, and writes the MTU.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this request answers with the MTU.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}
