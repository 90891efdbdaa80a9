//! IPv4 and IPv6, with a bounded walk over extension headers.

use super::{Link, array, ethertype, word};

/// IPv6 extension headers that are followed.
pub const MAX_EXTENSIONS: usize = 4;

/// What the link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// IPv4 with a whole header.
    V4(Ipv4),
    /// IPv6 with whole headers.
    V6(Ipv6),
    /// ARP, not looked into; see [`super::claim`].
    Arp {
        /// Where it begins.
        offset: usize,
    },
    /// Something else, or something broken.
    Opaque,
}

/// An IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Where it begins in the frame.
    pub offset: usize,
    /// Its length with options, in bytes.
    pub header_len: usize,
    /// Length of the packet as the header says it; the frame may be longer or shorter.
    pub total_len: usize,
    /// Differentiated services and ECN.
    pub service: u8,
    /// Identification.
    pub identification: u16,
    /// Whether routers may not fragment it.
    pub dont_fragment: bool,
    /// Whether it is a piece of a larger packet.
    pub fragment: bool,
    /// Time to live.
    pub hops: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Sender.
    pub source: [u8; 4],
    /// Receiver.
    pub destination: [u8; 4],
}

/// An IPv6 header with its extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Where it begins in the frame.
    pub offset: usize,
    /// Its length with extension headers, in bytes.
    pub header_len: usize,
    /// Length of the packet as the header says it, the 40 bytes of the fixed header included.
    pub total_len: usize,
    /// Version, traffic class and flow label.
    pub flow: u32,
    /// Whether it is a piece of a larger packet.
    pub fragment: bool,
    /// Hop limit.
    pub hops: u8,
    /// Protocol of the payload, behind the extension headers.
    pub protocol: u8,
    /// Sender.
    pub source: [u8; 16],
    /// Receiver.
    pub destination: [u8; 16],
}

impl Network {
    /// Parses what follows the link header.
    #[must_use]
    pub fn parse(bytes: &[u8], link: &Link) -> Self {
        let offset = link.len();
        match link.ethertype {
            ethertype::IPV4 => Ipv4::parse(bytes, offset).map_or(Self::Opaque, Self::V4),
            ethertype::IPV6 => Ipv6::parse(bytes, offset).map_or(Self::Opaque, Self::V6),
            ethertype::ARP => Self::Arp { offset },
            _ => Self::Opaque,
        }
    }
}

impl Ipv4 {
    fn parse(bytes: &[u8], offset: usize) -> Option<Self> {
        let head: [u8; 20] = array(bytes, offset)?;
        let header_len = usize::from(head[0] & 0xf) * 4;
        if head[0] >> 4 != 4 || header_len < 20 || offset + header_len > bytes.len() {
            return None;
        }
        let total_len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let pieces = u16::from_be_bytes([head[6], head[7]]);
        Some(Self {
            offset,
            header_len,
            total_len,
            service: head[1],
            identification: u16::from_be_bytes([head[4], head[5]]),
            dont_fragment: pieces & 0x4000 != 0,
            fragment: pieces & 0x3fff != 0,
            hops: head[8],
            protocol: head[9],
            source: [head[12], head[13], head[14], head[15]],
            destination: [head[16], head[17], head[18], head[19]],
        })
    }
}

impl Ipv6 {
    fn parse(bytes: &[u8], offset: usize) -> Option<Self> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION: u8 = 60;
        let head: [u8; 40] = array(bytes, offset)?;
        let flow = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if flow >> 28 != 6 {
            return None;
        }
        let mut protocol = head[6];
        let mut header_len = 40;
        let mut fragment = false;
        for _ in 0..MAX_EXTENSIONS {
            let len = match protocol {
                HOP_BY_HOP | ROUTING | DESTINATION => {
                    8 * (usize::from(*bytes.get(offset + header_len + 1)?) + 1)
                }
                FRAGMENT => {
                    fragment |= word(bytes, offset + header_len + 2)? & 0xfff9 != 0;
                    8
                }
                _ => break,
            };
            protocol = *bytes.get(offset + header_len)?;
            header_len += len;
            if offset + header_len > bytes.len() {
                return None;
            }
        }
        Some(Self {
            offset,
            header_len,
            total_len: 40 + usize::from(u16::from_be_bytes([head[4], head[5]])),
            flow,
            fragment,
            hops: head[7],
            protocol,
            source: array(&head, 8)?,
            destination: array(&head, 24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Layout, Transport};
    use super::*;

    fn frame(ethertype: u16, packet: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2; 12];
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(packet);
        bytes
    }

    #[test]
    fn extension_headers_are_followed_up_to_the_bound() {
        for count in 0..=MAX_EXTENSIONS + 1 {
            let mut packet = vec![0x60, 0, 0, 0, 0, 200, if count == 0 { 6 } else { 60 }, 64];
            packet.extend([0; 32]);
            for nth in 1..=count {
                packet.extend([if nth == count { 6 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
            }
            packet.extend([0u8; 12]);
            packet.extend([0x50, 0x10, 0, 0, 0, 0, 0, 0]);
            let layout = Layout::parse(&frame(ethertype::IPV6, &packet)).expect("a whole header");
            let Network::V6(ip) = layout.network else { panic!("{layout:?}") };
            let found = matches!(layout.transport, Transport::Tcp(_));
            assert_eq!(found, count <= MAX_EXTENSIONS, "{count} extension headers");
            if found {
                assert_eq!(ip.header_len, 40 + 8 * count);
            }
        }
    }

    #[test]
    fn a_fragment_has_no_transport() {
        let mut packet = vec![0x45, 0, 0, 60, 0, 1, 0x20, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0; 40]);
        let layout = Layout::parse(&frame(ethertype::IPV4, &packet)).expect("a whole header");
        let Network::V4(ip) = layout.network else { panic!("{layout:?}") };
        assert!(ip.fragment);
        assert_eq!(layout.transport, Transport::Opaque);
    }

    #[test]
    fn a_wrong_version_or_a_short_header_is_opaque() {
        for first in [0x44u8, 0x65, 0x00] {
            let mut packet = vec![first];
            packet.extend([0; 30]);
            let layout = Layout::parse(&frame(ethertype::IPV4, &packet)).expect("a whole link header");
            assert_eq!(layout.network, Network::Opaque);
        }
    }
}
