//! From a guest's frame with its offload header to frames as the wire carries them.
//!
//! A guest leaves checksums and the cutting of large TCP frames to its card. Here that happens at
//! capture, so that all that follows holds plain, complete frames. [`Plan::new`] reads the headers
//! once into owned bytes and validates them against the offload header; [`Plan::write`] then copies
//! payload from the guest's memory straight into a frame of the wire: one copy. A header that lies is
//! the guest's own loss, a counted [`DropReason`], and nobody else's fault (RB-1).
//!
//! A wire receives such frames too, from a kernel whose offloads are on: large UDP among them, which is
//! never offered to a guest ([`Plan::received`]).
//!
//! Segments differ from the guest's frame as if a card had cut it: lengths and checksums, IPv4
//! identification counting up, sequence numbers advancing, FIN and PSH on the last alone, CWR on the
//! first alone (RFC 3168 §6.1.2).
//!
//! Pure: no I/O, no clock, no threads, no allocation.

use crate::checksum::Sum;
use crate::counters::DropReason;
use crate::guest::{GuestFrame, VirtioNetHdr};
use crate::headers::{ETHERNET_LEN, Layout, MAX_HEADERS, MAX_TAGS, Network, Transport, flag, protocol};
use arrayvec::ArrayVec;

/// Most segments that one frame of a guest becomes: 64 KiB at the smallest segment that Linux sends.
pub const MAX_SEGMENTS: usize = 1400;

/// Longest frame that is taken from a guest, in bytes: 64 KiB of IP packet and its link header.
pub const MAX_GUEST_FRAME: usize = 65535 + ETHERNET_LEN + 4 * MAX_TAGS;

const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;
const TCP_CHECKSUM_AT: usize = 16;
const UDP_CHECKSUM_AT: usize = 6;
const UDP_HEADER_LEN: usize = 8;
const SCTP_CHECKSUM_AT: usize = 8;
const IPV4_CHECKSUM_AT: usize = 10;

/// How a guest's frame becomes frames of the wire.
#[derive(Debug)]
pub struct Plan {
    len: usize,
    kind: Kind,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a plan lives on the stack for one frame; a box would allocate"
)]
enum Kind {
    /// As it is.
    Plain,
    /// One checksum is to be completed.
    Checksum { start: usize, at: usize },
    /// The checksum of SCTP, a CRC32c and not the Internet's, is to be made.
    Crc { start: usize },
    /// To be cut.
    Segments(Segments),
}

#[derive(Debug)]
struct Segments {
    headers: ArrayVec<u8, MAX_HEADERS>,
    network: usize,
    transport: usize,
    v6: bool,
    udp: bool,
    size: usize,
    count: usize,
    /// [`GSO_ECN`], if the guest said so.
    ecn: u8,
    /// Sum of what all segments' checksums share: addresses and protocol.
    shared: Sum,
}

/// What a large frame says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Large {
    Tcp4,
    Tcp6,
    /// Datagrams of equal length, over IPv4 or IPv6; the last one may be shorter.
    Udp,
}

impl Plan {
    /// Judges a frame of the guest for a wire of this MTU.
    ///
    /// Cost: 85 ns for a large frame, whose headers are copied (`cargo bench -p holdfast-dataplane`).
    ///
    /// # Errors
    /// The reason for which the frame has to be dropped; all of them are the guest's fault.
    pub fn new(header: &VirtioNetHdr, frame: &dyn GuestFrame, mtu: u16) -> Result<Self, DropReason> {
        if header.gso_type & !GSO_ECN == GSO_UDP_L4 {
            return Err(DropReason::Offload);
        }
        Self::received(header, frame, mtu)
    }

    /// Judges a frame that an interface of the kernel received, for a wire of this MTU. It may be anything that
    /// a guest may send, and large UDP.
    ///
    /// # Errors
    /// The reason for which the frame has to be dropped.
    pub fn received(header: &VirtioNetHdr, frame: &dyn GuestFrame, mtu: u16) -> Result<Self, DropReason> {
        let len = frame.len();
        if len < ETHERNET_LEN {
            return Err(DropReason::Runt);
        }
        if len > MAX_GUEST_FRAME {
            return Err(DropReason::Oversize);
        }
        let kind = match header.gso_type & !GSO_ECN {
            GSO_NONE => Self::whole(header, frame, mtu)?,
            GSO_TCPV4 => Kind::Segments(Segments::new(header, frame, mtu, Large::Tcp4)?),
            GSO_TCPV6 => Kind::Segments(Segments::new(header, frame, mtu, Large::Tcp6)?),
            GSO_UDP_L4 => Kind::Segments(Segments::new(header, frame, mtu, Large::Udp)?),
            _ => return Err(DropReason::Offload),
        };
        Ok(Self { len, kind })
    }

    /// Whether a frame of the guest becomes one of the wire by a copy alone.
    #[must_use]
    #[inline]
    pub fn is_plain(header: &VirtioNetHdr, len: usize, mtu: u16) -> bool {
        header.gso_type == GSO_NONE
            && header.flags & NEEDS_CHECKSUM == 0
            && (ETHERNET_LEN..=usize::from(mtu) + ETHERNET_LEN + 4 * MAX_TAGS).contains(&len)
    }

    fn whole(header: &VirtioNetHdr, frame: &dyn GuestFrame, mtu: u16) -> Result<Kind, DropReason> {
        let len = frame.len();
        // Tags are looked for once the frame is ours: `fits` is the precise check.
        if len > usize::from(mtu) + ETHERNET_LEN + 4 * MAX_TAGS {
            return Err(DropReason::Oversize);
        }
        if header.flags & NEEDS_CHECKSUM == 0 {
            return Ok(Kind::Plain);
        }
        let start = usize::from(header.csum_start);
        let at = start + usize::from(header.csum_offset);
        if start < ETHERNET_LEN || at + 2 > len {
            return Err(DropReason::Offload);
        }
        if usize::from(header.csum_offset) == SCTP_CHECKSUM_AT && carries_sctp(frame) {
            return if at + 4 > len { Err(DropReason::Offload) } else { Ok(Kind::Crc { start }) };
        }
        Ok(Kind::Checksum { start, at })
    }

    /// How many frames it becomes, at most [`MAX_SEGMENTS`].
    #[must_use]
    pub fn frames(&self) -> usize {
        match &self.kind {
            Kind::Plain | Kind::Checksum { .. } | Kind::Crc { .. } => 1,
            Kind::Segments(segments) => segments.count,
        }
    }

    /// Whether all checksums of the frames are made here, from the first byte; else some are the guest's word.
    #[must_use]
    pub const fn makes_checksums(&self) -> bool {
        matches!(self.kind, Kind::Segments(_))
    }

    /// The offload header of a frame of TCP that is to be cut, with nothing in it that was not judged.
    #[must_use]
    pub fn offload_header(&self) -> Option<VirtioNetHdr> {
        let Kind::Segments(segments) = &self.kind else { return None };
        if segments.udp {
            return None;
        }
        Some(VirtioNetHdr {
            flags: NEEDS_CHECKSUM,
            gso_type: if segments.v6 { GSO_TCPV6 } else { GSO_TCPV4 } | segments.ecn,
            hdr_len: segments.headers.len() as u16,
            gso_size: segments.size as u16,
            csum_start: segments.transport as u16,
            csum_offset: TCP_CHECKSUM_AT as u16,
            num_buffers: 0,
        })
    }

    /// Length of the frame `index`, in bytes.
    #[must_use]
    pub fn frame_len(&self, index: usize) -> usize {
        match &self.kind {
            Kind::Plain | Kind::Checksum { .. } | Kind::Crc { .. } => self.len,
            Kind::Segments(segments) => segments.headers.len() + segments.chunk(index, self.len),
        }
    }

    /// Writes the frame `index` into `out`, which has [`Plan::frame_len`] bytes.
    ///
    /// Bound: `out.len()` bytes are copied and summed once. Allocations: none. Cost: 61 ns a
    /// segment of 1448 bytes (`cargo bench -p holdfast-dataplane`).
    pub fn write(&self, index: usize, frame: &dyn GuestFrame, out: &mut [u8]) {
        match &self.kind {
            Kind::Plain => frame.copy_to(0, out),
            Kind::Checksum { start, at } => {
                frame.copy_to(0, out);
                // The field holds the sum of the pseudo header, so it is summed with the rest.
                let sum = Sum::ZERO.bytes(&out[*start..]).finish_nonzero();
                out[*at..*at + 2].copy_from_slice(&sum.to_be_bytes());
            }
            Kind::Crc { start } => {
                frame.copy_to(0, out);
                let at = start + SCTP_CHECKSUM_AT;
                out[at..at + 4].fill(0);
                let sum = crc32c(&out[*start..]);
                // The low byte first, as RFC 9260 appendix A explains.
                out[at..at + 4].copy_from_slice(&sum.to_le_bytes());
            }
            Kind::Segments(segments) => segments.write(index, frame, out),
        }
    }
}

/// Whether a whole frame with this link header is short enough for a wire of this MTU.
#[must_use]
pub fn fits(len: usize, link_len: usize, mtu: u16) -> bool {
    len <= usize::from(mtu) + link_len
}

/// Copies the first bytes of a frame, in which all headers that are looked into must lie.
fn head(frame: &dyn GuestFrame) -> ArrayVec<u8, MAX_HEADERS> {
    let mut head = ArrayVec::from([0; MAX_HEADERS]);
    head.truncate(frame.len());
    frame.copy_to(0, &mut head);
    head
}

fn carries_sctp(frame: &dyn GuestFrame) -> bool {
    match Layout::parse(&head(frame)).map(|layout| layout.network) {
        Some(Network::V4(ip)) => ip.protocol == protocol::SCTP,
        Some(Network::V6(ip)) => ip.protocol == protocol::SCTP,
        _ => false,
    }
}

impl Segments {
    fn new(
        header: &VirtioNetHdr,
        frame: &dyn GuestFrame,
        mtu: u16,
        large: Large,
    ) -> Result<Self, DropReason> {
        let mut headers = head(frame);
        let layout = Layout::parse(&headers).ok_or(DropReason::Runt)?;
        let udp = large == Large::Udp;
        let number = if udp { protocol::UDP } else { protocol::TCP };
        let (network, shared, v6) = match layout.network {
            Network::V4(ip) if large != Large::Tcp6 => {
                (ip.offset, Sum::ZERO.pseudo(&ip.source, &ip.destination, number, 0), false)
            }
            Network::V6(ip) if large != Large::Tcp4 => {
                (ip.offset, Sum::ZERO.pseudo(&ip.source, &ip.destination, number, 0), true)
            }
            _ => return Err(DropReason::Offload),
        };
        let starts = |at: usize, checksum_at: usize| {
            header.flags & NEEDS_CHECKSUM != 0
                && usize::from(header.csum_start) == at
                && usize::from(header.csum_offset) == checksum_at
        };
        let (transport, end, honest) = match layout.transport {
            Transport::Tcp(tcp) if !udp => {
                let honest = starts(tcp.offset, TCP_CHECKSUM_AT) && tcp.flags & (flag::SYN | flag::RST) == 0;
                (tcp.offset, tcp.offset + tcp.header_len, honest)
            }
            Transport::Udp(found) if udp => {
                // A kernel that keeps received datagrams apart in one frame has verified each.
                let verified = header.flags & (NEEDS_CHECKSUM | CHECKSUM_VALID) == CHECKSUM_VALID;
                let honest = starts(found.offset, UDP_CHECKSUM_AT) || verified;
                (found.offset, found.offset + UDP_HEADER_LEN, honest)
            }
            _ => return Err(DropReason::Offload),
        };
        let size = usize::from(header.gso_size);
        if !honest || size == 0 || frame.len() <= end {
            return Err(DropReason::Offload);
        }
        let payload = frame.len() - end;
        if !fits(end + size.min(payload), layout.link.len(), mtu) {
            return Err(DropReason::Oversize);
        }
        let count = payload.div_ceil(size);
        if count > MAX_SEGMENTS {
            return Err(DropReason::Segments);
        }
        headers.truncate(end);
        let ecn = header.gso_type & GSO_ECN;
        Ok(Self { headers, network, transport, v6, udp, size, count, ecn, shared })
    }

    /// Payload bytes of the segment `index` of a frame of `len` bytes.
    fn chunk(&self, index: usize, len: usize) -> usize {
        let payload = len - self.headers.len();
        self.size.min(payload - index * self.size)
    }

    fn write(&self, index: usize, frame: &dyn GuestFrame, out: &mut [u8]) {
        let (headers, payload) = out.split_at_mut(self.headers.len());
        headers.copy_from_slice(&self.headers);
        let done = index * self.size;
        frame.copy_to(self.headers.len() + done, payload);

        let (lower, transport) = headers.split_at_mut(self.transport);
        let ip = &mut lower[self.network..];
        let transport_len = transport.len() + payload.len();
        if self.v6 {
            // The fixed header is not counted, extension headers are.
            let len = ip.len() - 40 + transport_len;
            put(ip, 4, len as u16);
        } else {
            put(ip, 2, (ip.len() + transport_len) as u16);
            put(ip, 4, get(ip, 4).wrapping_add(index as u16));
            put(ip, IPV4_CHECKSUM_AT, 0);
            let sum = Sum::ZERO.bytes(ip).finish();
            put(ip, IPV4_CHECKSUM_AT, sum);
        }

        let shared = self.shared.long(transport_len as u32);
        if self.udp {
            put(transport, 4, transport_len as u16);
            put(transport, UDP_CHECKSUM_AT, 0);
            let sum = shared.bytes(transport).bytes(payload).finish_nonzero();
            put(transport, UDP_CHECKSUM_AT, sum);
            return;
        }
        let tcp = transport;
        let sequence = u32::from(get(tcp, 4)) << 16 | u32::from(get(tcp, 6));
        let sequence = sequence.wrapping_add(done as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if index > 0 {
            tcp[13] &= !flag::CWR;
        }
        if index + 1 < self.count {
            tcp[13] &= !(flag::FIN | flag::PSH);
        }
        put(tcp, TCP_CHECKSUM_AT, 0);
        let sum = shared.bytes(tcp).bytes(payload).finish();
        put(tcp, TCP_CHECKSUM_AT, sum);
    }
}

/// CRC32c, of which SCTP makes its checksum (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut rest = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                rest = if rest & 1 == 1 { (rest >> 1) ^ 0x82f6_3b78 } else { rest >> 1 };
                bit += 1;
            }
            table[byte] = rest;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

fn get(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes([bytes[offset], bytes[offset + 1]])
}

fn put(bytes: &mut [u8], offset: usize, word: u16) {
    bytes[offset..offset + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests;
