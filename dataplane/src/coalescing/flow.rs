//! Which segment continues which.

use crate::checksum::Sum;
use crate::headers::{Layout, Link, Network, Tags, Transport, flag, protocol};
use arrayvec::ArrayVec;

/// Addresses and ports of a TCP flow; a fragment has no ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    ports: Option<(u16, u16)>,
    tags: Tags,
    pub(super) v6: bool,
    source: [u8; 16],
    destination: [u8; 16],
}

impl Flow {
    /// Whether a frame of `other` may belong to this flow.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        (other.ports.is_none() || self.ports == other.ports)
            && self.source == other.source
            && self.destination == other.destination
            && self.tags == other.tags
    }
}

/// Everything in which the segments of one merged frame are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) flow: Flow,
    link: Link,
    /// Version, traffic class and flow label of IPv6; service of IPv4.
    traffic: u32,
    hops: u8,
    dont_fragment: bool,
}

/// What a frame is to the merging.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judgement {
    /// Whether its transport checksum was verified.
    pub(super) verified: bool,
    /// The TCP flow that it belongs to or may belong to.
    pub(super) flow: Option<Flow>,
    /// The segment that it is, if it may be merged.
    pub(super) segment: Option<Segment>,
}

/// A TCP segment that may begin or continue a merged frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) key: Key,
    /// Where the network header begins.
    pub(super) network: usize,
    /// Where the payload begins.
    pub(super) payload: usize,
    /// Where the payload ends; the frame may be padded.
    pub(super) end: usize,
    pub(super) push: bool,
    sequence: u32,
    acknowledgement: u32,
    window: u16,
    identification: u16,
    /// Options, which must be equal byte for byte.
    options: [u8; 40],
    options_len: u8,
}

impl Segment {
    pub(super) fn payload_len(&self) -> usize {
        self.end - self.payload
    }

    /// What the segment after this one looks like.
    pub(super) fn next(mut self) -> Self {
        self.sequence = self.sequence.wrapping_add(self.payload_len() as u32);
        self.identification = self.identification.wrapping_add(1);
        self
    }

    /// Whether `found` is what this one, made by [`Segment::next`], says must follow: alike in
    /// all but what may differ.
    ///
    /// `exact`: a card that cuts the merged frame must make this very segment.
    pub(super) fn precedes(&self, found: &Self, exact: bool) -> bool {
        self.sequence == found.sequence
            && self.acknowledgement == found.acknowledgement
            && self.window == found.window
            && self.key == found.key
            && self.options_len == found.options_len
            && self.options == found.options
            // Without DF the identification may matter to a reassembly: it must count up, as a card
            // that cuts the frame makes it do.
            && (self.identification == found.identification
                || self.key.flow.v6
                || self.key.dont_fragment && !exact)
    }
}

/// Looks at a frame: verifies its checksum, unless it is known to be `sound`, and finds out whether it may be
/// merged.
///
/// Bound: the frame is read once. Allocations: none. Cost: 30 ns, and about 0.1 ns a byte that is verified.
pub(super) fn judge(bytes: &[u8], sound: bool) -> Judgement {
    let mut found = Judgement::default();
    let Some(layout) = Layout::parse(bytes) else { return found };
    let Some(packet) = Packet::new(bytes, &layout, sound) else { return found };
    let ports = match layout.transport {
        Transport::Tcp(tcp) => Some((tcp.source_port, tcp.destination_port)),
        _ => None,
    };
    if packet.protocol == protocol::TCP || packet.fragment {
        found.flow = Some(Flow {
            ports,
            tags: layout.link.tags,
            v6: packet.v6,
            source: packet.source,
            destination: packet.destination,
        });
    }
    let offset = match layout.transport {
        Transport::Tcp(tcp) => tcp.offset,
        Transport::Udp(udp) if udp.checksum != 0 && udp.offset + udp.len == packet.end => udp.offset,
        _ => return found,
    };
    let Some(body) = bytes.get(offset..packet.end) else { return found };
    let sum = || Sum::ZERO.pseudo(packet.source(), packet.destination(), packet.protocol, body.len());
    found.verified = sound || sum().bytes(body).verifies();
    if let (true, Some(flow)) = (found.verified, found.flow) {
        found.segment = segment(bytes, &layout, &packet, flow);
    }
    found
}

fn segment(bytes: &[u8], layout: &Layout, packet: &Packet, flow: Flow) -> Option<Segment> {
    let Transport::Tcp(tcp) = layout.transport else { return None };
    let payload = tcp.offset + tcp.header_len;
    if packet.plain_header != Some(tcp.offset)
        || tcp.flags & !flag::PSH != flag::ACK
        || payload >= packet.end
        || !packet.header_verified
        // What one header cannot say for all: bits that are reserved, or AccECN's, and urgent data.
        || bytes[tcp.offset + 12] & 0x0f != 0
        || bytes[tcp.offset + 18..tcp.offset + 20] != [0, 0]
        || packet.reserved
    {
        return None;
    }
    let mut options = ArrayVec::<u8, 40>::new();
    options.try_extend_from_slice(bytes.get(tcp.offset + 20..payload)?).ok()?;
    let options_len = options.len() as u8;
    while !options.is_full() {
        options.push(0);
    }
    Some(Segment {
        key: Key {
            flow,
            link: layout.link,
            traffic: packet.traffic,
            hops: packet.hops,
            dont_fragment: packet.dont_fragment,
        },
        network: layout.link.len(),
        payload,
        end: packet.end,
        push: tcp.flags & flag::PSH != 0,
        sequence: tcp.sequence,
        acknowledgement: tcp.acknowledgement,
        window: tcp.window,
        identification: packet.identification,
        options: options.into_inner().ok()?,
        options_len,
    })
}

/// What IPv4 and IPv6 have in common here.
struct Packet {
    v6: bool,
    source: [u8; 16],
    destination: [u8; 16],
    /// End of the packet in the frame.
    end: usize,
    /// End of the network header, if it has neither options nor extension headers.
    plain_header: Option<usize>,
    header_verified: bool,
    protocol: u8,
    fragment: bool,
    traffic: u32,
    hops: u8,
    dont_fragment: bool,
    /// The bit of IPv4 that is reserved.
    reserved: bool,
    identification: u16,
}

impl Packet {
    fn new(bytes: &[u8], layout: &Layout, sound: bool) -> Option<Self> {
        match layout.network {
            Network::V4(ip) => {
                let header = ip.offset..ip.offset + ip.header_len;
                let mut packet = Self {
                    v6: false,
                    source: [0; 16],
                    destination: [0; 16],
                    end: ip.offset + ip.total_len,
                    plain_header: (ip.header_len == 20).then_some(header.end),
                    header_verified: sound || Sum::ZERO.bytes(&bytes[header]).verifies(),
                    protocol: ip.protocol,
                    fragment: ip.fragment,
                    traffic: u32::from(ip.service),
                    hops: ip.hops,
                    dont_fragment: ip.dont_fragment,
                    reserved: bytes[ip.offset + 6] & 0x80 != 0,
                    identification: ip.identification,
                };
                packet.source[..4].copy_from_slice(&ip.source);
                packet.destination[..4].copy_from_slice(&ip.destination);
                Some(packet)
            }
            Network::V6(ip) => Some(Self {
                v6: true,
                source: ip.source,
                destination: ip.destination,
                end: ip.offset + ip.total_len,
                plain_header: (ip.header_len == 40).then_some(ip.offset + 40),
                header_verified: true,
                protocol: ip.protocol,
                fragment: ip.fragment,
                traffic: ip.flow,
                hops: ip.hops,
                dont_fragment: true,
                reserved: false,
                identification: 0,
            }),
            Network::Arp { .. } | Network::Opaque => None,
        }
        .filter(|packet| packet.end <= bytes.len())
    }

    fn source(&self) -> &[u8] {
        if self.v6 { &self.source } else { &self.source[..4] }
    }

    fn destination(&self) -> &[u8] {
        if self.v6 { &self.destination } else { &self.destination[..4] }
    }
}
