//! An interface of the kernel as a wire of the dataplane.
//!
//! Segments that follow each other are merged on their way out, and cut by the kernel or the card into
//! the same frames again ([`Burst::for_wire`]): the kernel's path to the interface is paid once for up
//! to 45 of them. Large frames that come in, because the other end or the interface itself has offloads
//! switched on, are cut here to the wire's MTU.

use super::MbufFrame;
use arrayvec::ArrayVec;
use holdfast_dataplane::coalescing::{self, Burst};
use holdfast_dataplane::frame::Wire;
use holdfast_dataplane::guest::{GuestFrame, Offloads, VirtioNetHdr};
use holdfast_dataplane::segmentation::Plan;
use holdfast_dpdk::Pool;
use holdfast_packet_socket::{
    BURST, HEADER_LEN, Interface, Link, PARTS_MAX, Received, Receiver, Sender, Sent, State, Tag,
};
use std::collections::VecDeque;
use std::os::fd::RawFd;

/// The kernel cuts what the card does not.
const OFFLOADS: Offloads = Offloads { checksum: true, tso4: true, tso6: true };

const ETHERNET_LEN: usize = 14;
/// Bytes of the two addresses, behind which a tag has its place.
const ADDRESSES_LEN: usize = 12;
const TAG_LEN: usize = 4;

/// An interface, on one polling core.
pub(crate) struct KernelWire {
    receiver: Receiver,
    sender: Sender,
    pool: Pool,
    mtu: u16,
    link: Link,
    /// What the log calls it: the wire and its interface.
    name: String,
    /// Frames to receive into.
    spare: ArrayVec<MbufFrame, BURST>,
    /// Received, beyond what the last burst had room for.
    received: VecDeque<MbufFrame>,
    /// Frames that could not be received whole.
    broken: u64,
    /// The burst on its way out.
    outgoing: Burst<MbufFrame>,
}

impl KernelWire {
    /// A wire of packets up to `mtu` bytes, with frames from `pool`; `name` is what the log calls it.
    pub(crate) fn new(name: String, interface: Interface, pool: Pool, mtu: u16) -> Self {
        let Interface { receiver, sender, link, .. } = interface;
        if link.state() != State::Up {
            tell_absent(&name);
        }
        Self {
            receiver,
            sender,
            pool,
            mtu,
            link,
            name,
            spare: ArrayVec::new(),
            received: VecDeque::with_capacity(BURST),
            broken: 0,
            outgoing: Burst::for_wire(),
        }
    }

    /// Longest frame that is received: the MTU, the Ethernet header and two tags.
    fn frame_max(&self) -> usize {
        (usize::from(self.mtu) + ETHERNET_LEN + 2 * TAG_LEN).min(self.pool.frame_max())
    }

    /// Receives a burst of the socket into [`Self::received`].
    fn receive(&mut self, max: usize) {
        while self.spare.len() < max {
            let Some(frame) = self.pool.alloc(self.frame_max()) else { break };
            self.spare.push(frame.into());
        }
        let count = self.spare.len().min(max);
        let mut told = ArrayVec::<Received, BURST>::new();
        let used = self.receiver.burst(&mut self.spare[..count], |received| told.push(received));
        let mut told = told.into_iter().peekable();
        let Self { spare, received, receiver, pool, mtu, broken, .. } = self;
        for (place, mut frame) in spare.drain(..used).enumerate() {
            let Some(found) = told.next_if(|found| found.place == place) else { continue };
            let room = frame.mbuf.len();
            let rest = receiver.overflow(&found, room);
            let header = offload_header_of(&found.header);
            let whole = header.flags & VirtioNetHdr::NEEDS_CSUM == 0
                && header.gso_type == VirtioNetHdr::GSO_NONE
                && rest.is_empty();
            if !whole {
                let pieces = Pieces(&frame.mbuf.bytes()[..found.len.min(room)], rest);
                cut(&header, &pieces, found.tag, *mtu, pool, received).unwrap_or_else(|Broken| *broken += 1);
            } else if finish(&mut frame, found.len, found.tag) {
                received.push_back(frame);
            } else {
                *broken += 1;
            }
        }
    }
}

impl Wire for KernelWire {
    type Frame = MbufFrame;

    fn alloc(&mut self, len: usize) -> Option<MbufFrame> {
        self.pool.alloc(len).map(MbufFrame::from)
    }

    fn rx_burst(&mut self, out: &mut Vec<MbufFrame>, max: usize) -> usize {
        if self.received.is_empty() {
            self.receive(max.min(BURST));
        }
        let count = max.min(self.received.len());
        out.extend(self.received.drain(..count));
        count
    }

    fn tx_burst(&mut self, frames: &mut VecDeque<MbufFrame>, max: usize) -> usize {
        let burst = max.min(coalescing::BURST).min(frames.len());
        self.outgoing.fill(OFFLOADS, &mut frames.drain(..burst));
        let mut sent = 0;
        let sender = &mut self.sender;
        self.outgoing.deliver(&mut |header, parts, count| {
            // One that the kernel refuses for good is gone as on any wire that is down.
            let gone = sender.send(&offload_header(header), parts, count) != Sent::Full;
            sent += if gone { count } else { 0 };
            gone
        });
        // What there was no room for goes back to the front, in order (OC-2).
        for frame in self.outgoing.take_back() {
            frames.push_front(frame);
        }
        sent
    }

    fn takes_large(&self) -> bool {
        true
    }

    fn tx_large(&mut self, header: &VirtioNetHdr, frame: &[u8], segments: usize) -> bool {
        // One that the kernel refuses for good is gone as on any wire that is down.
        self.sender.send(&offload_header(header), &[frame], segments) != Sent::Full
    }

    fn flush(&mut self) {
        // The kernel has everything that it was given. Once a turn is often enough to see whether the
        // interface is still there.
        match self.link.watch(&mut self.receiver, &mut self.sender) {
            Ok(None) => {}
            Ok(Some(State::Up)) if self.link.mtu() < self.mtu => tracing::error!(
                "{} is back, but carries packets of {} bytes, fewer than the mtu {} of the wire\n  mend: \
                 raise it by `ip link set`, or lower mtu in the wire's section and start again",
                self.name,
                self.link.mtu(),
                self.mtu
            ),
            Ok(Some(State::Up)) => tracing::info!("{} is back", self.name),
            Ok(Some(State::Down | State::Gone)) => tell_absent(&self.name),
            Err(fault) => tracing::error!("{} cannot be used: {fault}", self.name),
        }
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn mac(&self) -> [u8; 6] {
        self.link.mac()
    }

    fn readable_fd(&self) -> Option<RawFd> {
        Some(self.receiver.fd())
    }

    fn free_frames(&self) -> usize {
        self.pool.free_frames()
    }

    fn lost(&self) -> u64 {
        self.receiver.oversized() + self.broken + self.sender.refused()
    }
}

fn tell_absent(name: &str) {
    tracing::error!("{name} is down or gone\n  mend: `ip link set … up`, or make it again under its name");
}

/// A frame that came in cannot be taken: its headers lie, or the memory for frames is used up.
struct Broken;

/// Cuts and completes a received frame as its offload header says, and puts back its tag.
fn cut(
    header: &VirtioNetHdr,
    frame: &Pieces<'_>,
    tag: Option<Tag>,
    mtu: u16,
    pool: &Pool,
    out: &mut VecDeque<MbufFrame>,
) -> Result<(), Broken> {
    let plan = Plan::received(header, frame, mtu).map_err(|_| Broken)?;
    for index in 0..plan.frames() {
        let len = plan.frame_len(index);
        let mut made = MbufFrame::from(pool.alloc(len).ok_or(Broken)?);
        plan.write(index, frame, &mut made.mbuf.bytes_mut()[..len]);
        if !finish(&mut made, len, tag) {
            return Err(Broken);
        }
        out.push_back(made);
    }
    Ok(())
}

/// Gives a received frame its length, and the tag that the kernel took out; false when there is no room
/// for it.
fn finish(frame: &mut MbufFrame, len: usize, tag: Option<Tag>) -> bool {
    let Some(tag) = tag.filter(|_| len >= ADDRESSES_LEN) else { return frame.mbuf.set_len(len) };
    if !frame.mbuf.set_len(len + TAG_LEN) {
        return false;
    }
    insert(tag, frame.mbuf.bytes_mut(), len);
    true
}

/// Puts back the tag that the kernel took out of a frame of `len` bytes, which has room for it.
fn insert(tag: Tag, bytes: &mut [u8], len: usize) {
    bytes.copy_within(ADDRESSES_LEN..len, ADDRESSES_LEN + TAG_LEN);
    bytes[ADDRESSES_LEN..ADDRESSES_LEN + 2].copy_from_slice(&tag.kind.to_be_bytes());
    bytes[ADDRESSES_LEN + 2..ADDRESSES_LEN + TAG_LEN].copy_from_slice(&tag.control.to_be_bytes());
}

/// A received frame in its two places.
struct Pieces<'a>(&'a [u8], &'a [u8]);

impl GuestFrame for Pieces<'_> {
    fn len(&self) -> usize {
        self.0.len() + self.1.len()
    }

    fn copy_to(&self, offset: usize, out: &mut [u8]) {
        let first = self.0.get(offset..).unwrap_or_default();
        let (head, tail) = out.split_at_mut(first.len().min(out.len()));
        head.copy_from_slice(&first[..head.len()]);
        let second = self.1.get((offset + head.len()).saturating_sub(self.0.len())..).unwrap_or_default();
        let (copied, beyond) = tail.split_at_mut(second.len().min(tail.len()));
        copied.copy_from_slice(&second[..copied.len()]);
        beyond.fill(0);
    }
}

/// The offload header as a packet socket takes it. A whole frame is sent as it is: only one that is cut
/// needs the kernel's help.
fn offload_header(header: &VirtioNetHdr) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    if header.gso_type != VirtioNetHdr::GSO_NONE {
        bytes.copy_from_slice(&header.to_bytes()[..HEADER_LEN]);
    }
    bytes
}

/// The offload header as the dataplane knows it.
fn offload_header_of(bytes: &[u8; HEADER_LEN]) -> VirtioNetHdr {
    let mut whole = [0; VirtioNetHdr::BYTES];
    whole[..HEADER_LEN].copy_from_slice(bytes);
    VirtioNetHdr::parse(&whole)
}

const _: () = assert!(coalescing::BURST < PARTS_MAX, "a merged frame has its headers and a part a segment");

#[cfg(test)]
mod tests;
