//! An interface of the kernel by packet sockets, with segmentation offload.
//!
//! DPDK's own driver for such interfaces, `net_af_packet`, hands the kernel one frame of the MTU at a
//! time, and the kernel pays its whole path for each. Here a sender gives up to 64 KiB of TCP with an
//! offload header (`PACKET_VNET_HDR`), as QEMU gives its TAP: the kernel, or the card, cuts it at the
//! last moment. What comes in is received by bursts straight into the caller's buffers, large frames too,
//! so that an interface may be used as it is, with its offloads on.
//!
//! Linux before 6.2 has no word for large UDP and hands none of it to a packet socket: there, what comes from
//! an interface that has `tx-udp-segmentation` on is lost.
//!
//! Two sockets: one sends and hears nothing, the other hears what others send and never its own side's
//! frames (`PACKET_IGNORE_OUTGOING`). Both close when dropped; the interface itself is not changed but
//! for being promiscuous while the receiver lives.
//! An interface that is switched off or deleted is found by [`Link::watch`], and followed when it is there again.
//!
//! Threading: each half is used by one thread at a time, by `&mut self`.
//!
//! Source: packet(7); `Documentation/networking/packet_mmap.rst` and `include/uapi/linux/virtio_net.h`
//! of Linux.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod link;
mod receiver;
mod sender;
mod socket;

pub use link::{Link, State};
pub use receiver::{BURST, Received, Receiver, Tag};
pub use sender::{HEADER_LEN, PARTS_MAX, Sender, Sent};
pub use socket::{OpenError, Step};

/// An interface, opened.
#[derive(Debug)]
pub struct Interface {
    /// What comes in.
    pub receiver: Receiver,
    /// What goes out.
    pub sender: Sender,
    /// The interface's own address.
    pub mac: [u8; 6],
    /// Its longest packet, in bytes without the Ethernet header.
    pub mtu: u16,
    /// Watches over it.
    pub link: Link,
}

impl Interface {
    /// Opens the interface of this name in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`OpenError`]: there is no such interface, it is not Ethernet, or this process lacks `CAP_NET_RAW`.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        let place = socket::Place::find(name)?;
        let receiver = Receiver::open(&place)?;
        let sender = Sender::open(&place)?;
        Ok(Self { receiver, sender, mac: place.mac, mtu: place.mtu, link: Link::new(place) })
    }
}
