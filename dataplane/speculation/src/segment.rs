//! A TCP segment as it lies in a frame.

use crate::key::{FlowKey, Side};
use crate::options::Options;
use crate::seq::SeqNum;
use holdfast_packet::checksum::Sum;
use holdfast_packet::headers::{Layout, Link, Network, Tcp, Transport, flag, protocol};

/// What a frame turned out to be.
#[derive(Clone, Debug)]
pub(crate) enum Parsed {
    /// A TCP segment.
    Tcp(Segment),
    /// A TCP segment whose lengths contradict each other.
    Malformed(FlowKey),
    /// Something else.
    Other(Layout),
    /// No frame at all.
    Nothing,
}

/// A TCP segment: where it is in its frame, and what its header says.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) key: FlowKey,
    pub(crate) link: Link,
    pub(crate) network: Network,
    /// Where the TCP header begins.
    pub(crate) tcp_at: usize,
    /// Where the payload begins.
    pub(crate) payload_at: usize,
    /// Bytes of payload.
    pub(crate) len: u32,
    pub(crate) seq: SeqNum,
    pub(crate) ack: SeqNum,
    pub(crate) flags: u8,
    /// AE, the bit before CWR, asks for AccECN (RFC 9768).
    pub(crate) accurate_ecn: bool,
    pub(crate) window: u16,
    pub(crate) options: Options,
    /// The IP header has options or extension headers.
    pub(crate) ip_options: bool,
}

impl Segment {
    /// Parses a frame of `len` bytes by its first bytes, `head`.
    ///
    /// Bound: [`holdfast_packet::headers::MAX_HEADERS`] bytes. Allocations: none.
    pub(crate) fn parse(head: &[u8], len: usize, sender: Side) -> Parsed {
        let Some(layout) = Layout::parse(head) else { return Parsed::Nothing };
        let Transport::Tcp(tcp) = layout.transport else { return Parsed::Other(layout) };
        let Some(key) = FlowKey::of(&layout.link.tags, &layout.network, &tcp, sender) else {
            return Parsed::Other(layout);
        };
        let (end, ip_options) = match layout.network {
            Network::V4(ip) => (ip.offset + ip.total_len, ip.header_len > 20),
            Network::V6(ip) => (ip.offset + ip.total_len, ip.header_len > 40),
            Network::Arp { .. } | Network::Opaque => return Parsed::Other(layout),
        };
        let payload_at = tcp.offset + tcp.header_len;
        if end > len || end < payload_at {
            return Parsed::Malformed(key);
        }
        let options = head.get(tcp.offset + 20..payload_at).unwrap_or_default();
        let reserved = head.get(tcp.offset + 12).copied().unwrap_or_default();
        Parsed::Tcp(Self {
            key,
            link: layout.link,
            network: layout.network,
            tcp_at: tcp.offset,
            payload_at,
            len: (end - payload_at) as u32,
            seq: SeqNum::new(tcp.sequence),
            ack: SeqNum::new(tcp.acknowledgement),
            flags: tcp.flags,
            accurate_ecn: reserved & 1 != 0,
            window: tcp.window,
            options: Options::parse(options),
            ip_options,
        })
    }

    /// The flow of a TCP segment of which this is the first fragment, and where its TCP header begins; the
    /// others do not say.
    pub(crate) fn flow_of_fragment(layout: &Layout, head: &[u8], sender: Side) -> Option<(FlowKey, usize)> {
        // RFC 791 §3.1: the offset is in the low bits; RFC 8200 §4.5: in the high ones.
        let (transport, offset_at, mask, number, fragment) = match layout.network {
            Network::V4(ip) => (ip.offset + ip.header_len, ip.offset + 6, 0x1fff, ip.protocol, ip.fragment),
            Network::V6(ip) => {
                let transport = ip.offset + ip.header_len;
                (transport, transport - 6, 0xfff8, ip.protocol, ip.fragment)
            }
            Network::Arp { .. } | Network::Opaque => return None,
        };
        let word = |at: usize| Some(u16::from_be_bytes([*head.get(at)?, *head.get(at + 1)?]));
        if !fragment || number != protocol::TCP || word(offset_at)? & mask != 0 {
            return None;
        }
        let tcp = Tcp {
            offset: transport,
            header_len: 20,
            source_port: word(transport)?,
            destination_port: word(transport + 2)?,
            sequence: 0,
            acknowledgement: 0,
            flags: 0,
            window: 0,
        };
        FlowKey::of(&layout.link.tags, &layout.network, &tcp, sender).map(|key| (key, transport))
    }

    /// Whether all of these control bits are set.
    pub(crate) const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Sequence space that it takes (RFC 9293 §3.4): SYN and FIN count.
    pub(crate) const fn space(&self) -> u32 {
        self.len + self.has(flag::SYN) as u32 + self.has(flag::FIN) as u32
    }

    /// First sequence number beyond its payload.
    pub(crate) fn end(&self) -> SeqNum {
        self.seq + self.len
    }

    /// Whether it carries an acknowledgement and nothing else.
    pub(crate) const fn is_pure_ack(&self) -> bool {
        self.len == 0 && self.flags & (flag::ACK | flag::SYN | flag::FIN | flag::RST) == flag::ACK
    }

    /// Sum of the pseudo header and of the TCP header, which is in `head`.
    pub(crate) fn header_sum(&self, head: &[u8], sender: Side) -> Sum {
        let (source, destination) = self.key.addresses(sender);
        let len = self.payload_at - self.tcp_at + self.len as usize;
        Sum::ZERO.pseudo(source, destination, protocol::TCP, len).bytes(&head[self.tcp_at..self.payload_at])
    }

    /// Whether the checksum of a segment that lies in `frame` as a whole is right (RFC 9293 §3.1).
    ///
    /// Bound: the frame's length. Allocations: none.
    pub(crate) fn verifies(&self, frame: &[u8], sender: Side) -> bool {
        let end = self.payload_at + self.len as usize;
        let Some(payload) = frame.get(self.payload_at..end) else { return false };
        self.header_sum(frame, sender).bytes(payload).verifies()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_packet::sample;

    #[test]
    fn a_segment_is_found_in_padding_and_one_that_lies_about_its_length_is_not() {
        for v6 in [false, true] {
            let sample = sample::Tcp::data(v6, vec![7; 5]);
            let mut bytes = sample.bytes();
            bytes.resize(bytes.len() + 9, 0);
            let Parsed::Tcp(found) = Segment::parse(&bytes, bytes.len(), Side::Guest) else { panic!() };
            assert_eq!((found.len, found.payload_at), (5, sample.headers()));
            assert!(found.verifies(&bytes, Side::Guest));
            let cut = sample.bytes().len() - 1;
            assert!(matches!(Segment::parse(&bytes[..cut], cut, Side::Guest), Parsed::Malformed(_)));
        }
    }

    #[test]
    fn a_changed_bit_is_found() {
        let sample = sample::Tcp::data(false, vec![7; 31]);
        for at in sample.transport()..sample.bytes().len() {
            // The ports decide the key, the data offset and the flags what is looked at.
            let mut bytes = sample.bytes();
            bytes[at] ^= 4;
            if let Parsed::Tcp(found) = Segment::parse(&bytes, bytes.len(), Side::Guest) {
                assert!(!found.verifies(&bytes, Side::Guest), "byte {at}");
            }
        }
    }
}
