//! What both sockets need: their making, options and binding.
#![expect(unsafe_code, reason = "calls that nix has no safe form of")]

use nix::errno::Errno;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use thiserror::Error;

/// What was being done when an interface could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was looked up.
    Find,
    /// It was asked what it is.
    Ask,
    /// It was found to be no Ethernet interface.
    Kind,
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
            Self::Ask => "what it is cannot be read",
            Self::Kind => "it is not Ethernet",
            Self::Socket => "a packet socket cannot be made",
            Self::Option => "the kernel refuses an option of its packet sockets",
            Self::Bind => "a packet socket cannot be bound to it",
        }
    }

    const fn mend(self) -> &'static str {
        match self {
            Self::Find | Self::Ask | Self::Bind => "name one of those that `ip link` shows",
            Self::Kind => "name a card, a veth end, a bridge or a TAP: `ip link` shows link/ether for them",
            Self::Socket => "give the process CAP_NET_RAW, or run it by the systemd unit",
            Self::Option => "Linux 4.20 or later is needed",
        }
    }
}

/// An interface that was found.
#[derive(Debug)]
pub(crate) struct Place {
    name: String,
    /// A socket to ask by, in the namespace of the interface.
    control: OwnedFd,
    index: i32,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u16,
    pub(crate) up: bool,
}

impl Place {
    pub(crate) fn find(name: &str) -> Result<Self, OpenError> {
        // SAFETY: a call without pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return Err(OpenError { interface: name.to_owned(), step: Step::Ask, error });
        }
        // SAFETY: the descriptor is new and ours.
        let control = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut place = Self { name: name.to_owned(), control, index: 0, mac: [0; 6], mtu: 0, up: false };
        place.look()?;
        Ok(place)
    }

    /// Finds what has the name now.
    pub(crate) fn look(&mut self) -> Result<(), OpenError> {
        let found = self.ask(libc::SIOCGIFINDEX, Step::Find)?;
        // SAFETY: this request answers with the index.
        self.index = unsafe { found.ifru_ifindex };
        let found = self.ask(libc::SIOCGIFHWADDR, Step::Ask)?;
        // SAFETY: this request answers with the hardware address, its type in the place of a family.
        let address = unsafe { found.ifru_hwaddr };
        if address.sa_family != libc::ARPHRD_ETHER {
            let error = io::Error::other(format!("its hardware type is {}", address.sa_family));
            return Err(OpenError { interface: self.name.clone(), step: Step::Kind, error });
        }
        for (to, from) in self.mac.iter_mut().zip(address.sa_data) {
            *to = from as u8;
        }
        let found = self.ask(libc::SIOCGIFMTU, Step::Ask)?;
        // SAFETY: this request answers with the MTU.
        self.mtu = u16::try_from(unsafe { found.ifru_mtu }).unwrap_or(u16::MAX);
        let found = self.ask(libc::SIOCGIFFLAGS, Step::Ask)?;
        // SAFETY: this request answers with the flags.
        self.up = i32::from(unsafe { found.ifru_flags }) & libc::IFF_UP != 0;
        Ok(())
    }

    fn ask(&self, what: libc::Ioctl, step: Step) -> Result<libc::__c_anonymous_ifr_ifru, OpenError> {
        // SAFETY: all bits zero is a valid request.
        let mut request: libc::ifreq = unsafe { zeroed() };
        let last = request.ifr_name.len() - 1;
        if self.name.len() > last {
            let error = Errno::ENODEV.into();
            return Err(OpenError { interface: self.name.clone(), step, error });
        }
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the kernel reads the name, which ends with a zero, and writes its answer.
        let done = unsafe { libc::ioctl(self.control.as_raw_fd(), what as _, &raw mut request) };
        if done < 0 { Err(self.fault(step)) } else { Ok(request.ifr_ifru) }
    }

    /// Whether a socket is bound to this very interface. One whose interface was deleted is bound to none.
    pub(crate) fn is_bound(&self, socket: &OwnedFd) -> bool {
        // SAFETY: all bits zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes, the size of the address.
        let done = unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut len) };
        done == 0 && address.sll_ifindex == self.index
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

    /// Binds to the interface, for frames of this `ETH_P_` protocol (0: none).
    pub(crate) fn bind(&self, socket: &OwnedFd, protocol: i32) -> Result<(), OpenError> {
        // SAFETY: all bits zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (protocol as u16).to_be();
        address.sll_ifindex = self.index;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel reads `len` bytes of an address that lives until the call returns.
        let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
        if done < 0 { Err(self.fault(Step::Bind)) } else { Ok(()) }
    }
}

/// Whether an error of a socket says that its interface is down or gone.
pub(crate) const fn is_absence(errno: Errno) -> bool {
    matches!(errno, Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV)
}
