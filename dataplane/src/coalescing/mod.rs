//! Merging of TCP segments into large frames, for a guest or a wire that takes them.
//!
//! A burst of frames for one receiver becomes a list of groups: in-order segments of one flow whose
//! headers differ in nothing but sequence number, PSH and lengths make one group, up to 64 KiB; every
//! other frame is a group of its own. A guest then handles one frame where there were up to 45. Only
//! segments whose checksums were verified are merged; a frame that does not add up is passed on as it
//! came, for the guest to judge.
//!
//! The groups of a flow are delivered in the order in which they began, and a frame only ever joins
//! the newest group of its flow, so that a flow's order is kept (OC-2). Frames are not written to: the
//! merged headers are made in a buffer of their own when the group is delivered.
//!
//! Owned by the polling core. Bound: [`BURST`] frames. Allocations: none.

mod flow;

use crate::checksum::{Sum, replaced};
use crate::frame::Frame;
use crate::guest::{Offloads, VirtioNetHdr};
use crate::headers::{Layout, MAX_HEADERS, Network, Transport, flag, protocol};
use arrayvec::ArrayVec;
use flow::{Flow, Judgement, Segment, judge};

/// Frames of one burst.
pub const BURST: usize = 64;

/// Longest merged packet with its network header, in bytes: what an IPv4 length can say.
const MAX_PACKET: usize = 65535;

const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const NOBODY: u8 = u8::MAX;
const _: () = assert!(BURST < NOBODY as usize);

/// Frames of a burst that the guest gets as one.
#[derive(Clone, Copy, Debug)]
struct Group {
    first: u8,
    last: u8,
    count: u8,
    /// Whether the checksum was verified.
    verified: bool,
    /// What the next segment must look like; none when nothing may join.
    open: Option<Segment>,
    /// Payload of each segment but the last.
    size: usize,
    /// Whether the last segment had PSH.
    push: bool,
    /// Length of the merged packet.
    packet: usize,
}

/// Takes one merged frame: its offload header, its bytes in parts, and how many frames it was. Returns
/// whether there was room for it.
pub type Offer<'a> = dyn FnMut(&VirtioNetHdr, &[&[u8]], usize) -> bool + 'a;

/// A burst of frames on its way to one guest.
#[derive(Debug)]
pub struct Burst<F> {
    frames: ArrayVec<F, BURST>,
    /// Place of the next frame of the same group.
    next: [u8; BURST],
    /// Where each frame's bytes that count begin and end: headers of the first frame of a group,
    /// payload of the others.
    spans: [(u32, u32); BURST],
    groups: ArrayVec<Group, BURST>,
    delivered: usize,
    offloads: Offloads,
    /// What is merged will be cut again, and must become the same frames.
    exact: bool,
}

impl<F: Frame> Burst<F> {
    /// An empty burst.
    #[must_use]
    pub fn new() -> Self {
        Self {
            frames: ArrayVec::new(),
            next: [NOBODY; BURST],
            spans: [(0, 0); BURST],
            groups: ArrayVec::new(),
            delivered: 0,
            offloads: Offloads::default(),
            exact: false,
        }
    }

    /// An empty burst for a wire that cuts large frames, as `offloads` of [`Burst::fill`] say. What it
    /// merges becomes, when it is cut as a card does, the same frames byte for byte.
    #[must_use]
    pub fn for_wire() -> Self {
        Self { exact: true, ..Self::new() }
    }

    /// Whether all of it has been delivered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Frames that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// What the guest could take when the burst was made.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Drops what has not been delivered; returns how many frames those were.
    pub fn clear(&mut self) -> usize {
        let left: usize = self.groups[self.delivered..].iter().map(|group| usize::from(group.count)).sum();
        self.frames.clear();
        self.groups.clear();
        self.delivered = 0;
        left
    }

    /// Drops the group that is next to be delivered; returns how many frames it was.
    pub fn skip(&mut self) -> usize {
        let Some(group) = self.groups.get(self.delivered) else { return 0 };
        let count = usize::from(group.count);
        self.delivered += 1;
        if self.delivered == self.groups.len() {
            self.clear();
        }
        count
    }

    /// Gives back what has not been delivered, the last frame first, and is empty then.
    pub fn take_back(&mut self) -> impl DoubleEndedIterator<Item = F> + use<F> {
        let mut left = [false; BURST];
        for group in &self.groups[self.delivered..] {
            let mut place = group.first;
            while place != NOBODY {
                left[usize::from(place)] = true;
                place = self.next[usize::from(place)];
            }
        }
        self.groups.clear();
        self.delivered = 0;
        let frames = std::mem::take(&mut self.frames);
        frames.into_iter().enumerate().rev().filter(move |(place, _)| left[*place]).map(|(_, frame)| frame)
    }

    /// Takes up to [`BURST`] frames, for a receiver that negotiated `offloads`. The burst must be empty.
    ///
    /// Bound: [`BURST`] frames, each compared with the open groups of the burst. Allocations: none.
    /// Cost: 98 ns a segment of 1448 bytes of one flow, 113 where each is of its own, with their delivery
    /// (`cargo bench -p holdfast-dataplane`).
    pub fn fill(&mut self, offloads: Offloads, frames: &mut dyn Iterator<Item = F>) {
        assert!(self.is_empty(), "a burst is delivered before the next begins");
        self.offloads = offloads;
        for frame in frames.take(BURST) {
            self.add(frame);
        }
    }

    fn add(&mut self, frame: F) {
        let place = self.frames.len();
        let bytes = frame.bytes();
        let frame_is =
            if self.offloads.checksum { judge(bytes, frame.is_sound()) } else { Judgement::default() };
        let segment = frame_is.segment.filter(|segment| match segment.key.flow.v6 {
            false => self.offloads.tso4,
            true => self.offloads.tso6,
        });
        self.next[place] = NOBODY;
        self.spans[place] = (0, bytes.len() as u32);
        if !segment.as_ref().is_some_and(|segment| self.join(place, segment)) {
            // Nothing may pass a frame of its flow: the groups before it take no more.
            if let Some(flow) = frame_is.flow {
                self.close(&flow);
            }
            self.groups.push(Group {
                first: place as u8,
                last: place as u8,
                count: 1,
                verified: frame_is.verified,
                size: segment.as_ref().map_or(0, Segment::payload_len),
                push: segment.as_ref().is_some_and(|segment| segment.push),
                packet: segment.as_ref().map_or(0, |segment| segment.end - segment.network),
                open: segment.filter(|segment| !segment.push).map(Segment::next),
            });
        }
        self.frames.push(frame);
    }

    /// Closes the groups to which a frame of this flow might belong.
    fn close(&mut self, flow: &Flow) {
        for group in &mut self.groups {
            if group.open.as_ref().is_some_and(|open| open.key.flow.may_be(flow)) {
                group.open = None;
            }
        }
    }

    /// The open group of this segment's flow, if any; there is at most one.
    fn open_group(&self, segment: &Segment) -> Option<usize> {
        self.groups
            .iter()
            .rposition(|group| group.open.as_ref().is_some_and(|open| open.key.flow == segment.key.flow))
    }

    fn join(&mut self, place: usize, segment: &Segment) -> bool {
        let Some(index) = self.open_group(segment) else { return false };
        let group = &mut self.groups[index];
        let Some(open) = &mut group.open else { return false };
        let len = segment.payload_len();
        let fits = open.precedes(segment, self.exact) && len <= group.size;
        if !fits || group.packet + len > MAX_PACKET {
            return false;
        }
        self.next[usize::from(group.last)] = place as u8;
        self.spans[place] = (segment.payload as u32, segment.end as u32);
        group.last = place as u8;
        group.count += 1;
        group.packet += len;
        group.push = segment.push;
        *open = segment.next();
        // A short segment or a push ends the group, as a card would.
        if len < group.size || segment.push {
            group.open = None;
        }
        true
    }

    /// Offers the groups that have not been delivered, in order, until `offer` returns false or all
    /// are delivered. Then the frames are dropped and the burst is empty.
    ///
    /// Bound: [`BURST`] groups. Allocations: none.
    /// Its cost is in that of [`Burst::fill`].
    pub fn deliver(&mut self, offer: &mut Offer<'_>) {
        while let Some(group) = self.groups.get(self.delivered) {
            let mut headers = ArrayVec::<u8, MAX_HEADERS>::new();
            let mut parts = ArrayVec::<&[u8], { BURST + 1 }>::new();
            let first = self.frames[usize::from(group.first)].bytes();
            let header = if group.count == 1 {
                parts.push(first);
                VirtioNetHdr { flags: if group.verified { DATA_VALID } else { 0 }, ..VirtioNetHdr::default() }
            } else {
                let header = merged(first, group, &mut headers);
                parts.push(&headers);
                let end = headers.len() + group.size;
                parts.push(&first[headers.len()..end]);
                let mut place = self.next[usize::from(group.first)];
                while place != NOBODY {
                    let (begin, end) = self.spans[usize::from(place)];
                    parts.push(&self.frames[usize::from(place)].bytes()[begin as usize..end as usize]);
                    place = self.next[usize::from(place)];
                }
                header
            };
            if !offer(&header, &parts, usize::from(group.count)) {
                return;
            }
            self.delivered += 1;
        }
        self.clear();
    }
}

impl<F: Frame> Default for Burst<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes the headers of a merged frame in `out`, from those of its first segment, and the offload
/// header that goes with them.
fn merged(first: &[u8], group: &Group, out: &mut ArrayVec<u8, MAX_HEADERS>) -> VirtioNetHdr {
    let layout = Layout::parse(first).expect("a merged segment was parsed before");
    let Transport::Tcp(tcp) = layout.transport else { unreachable!("only TCP is merged") };
    let end = tcp.offset + tcp.header_len;
    out.try_extend_from_slice(&first[..end]).expect("headers lie within their bound");
    let (network, source, destination) = match layout.network {
        Network::V4(ip) => {
            let old = u16::from_be_bytes([out[ip.offset + 2], out[ip.offset + 3]]);
            let sum = u16::from_be_bytes([out[ip.offset + 10], out[ip.offset + 11]]);
            let sum = replaced(sum, old, group.packet as u16);
            out[ip.offset + 2..ip.offset + 4].copy_from_slice(&(group.packet as u16).to_be_bytes());
            out[ip.offset + 10..ip.offset + 12].copy_from_slice(&sum.to_be_bytes());
            (ip.offset, ip.offset + 12..ip.offset + 16, ip.offset + 16..ip.offset + 20)
        }
        Network::V6(ip) => {
            let len = (group.packet - 40) as u16;
            out[ip.offset + 4..ip.offset + 6].copy_from_slice(&len.to_be_bytes());
            (ip.offset, ip.offset + 8..ip.offset + 24, ip.offset + 24..ip.offset + 40)
        }
        Network::Arp { .. } | Network::Opaque => unreachable!("only IP is merged"),
    };
    if group.push {
        out[tcp.offset + 13] |= flag::PSH;
    }
    let len = group.packet - (tcp.offset - network);
    let partial = Sum::ZERO.pseudo(&first[source], &first[destination], protocol::TCP, len).fold();
    out[tcp.offset + 16..tcp.offset + 18].copy_from_slice(&partial.to_be_bytes());
    VirtioNetHdr {
        flags: NEEDS_CHECKSUM,
        gso_type: if matches!(layout.network, Network::V6(_)) { 4 } else { 1 },
        hdr_len: end as u16,
        gso_size: group.size as u16,
        csum_start: tcp.offset as u16,
        csum_offset: 16,
        num_buffers: 0,
    }
}

#[cfg(test)]
mod tests;
