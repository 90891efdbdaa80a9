//! TCP and UDP.

use super::{Network, array, long, word};

/// Numbers of what IP carries.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Control bits of TCP (RFC 9293 §3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Sequence numbers begin.
    pub const SYN: u8 = 0x02;
    /// The connection is reset.
    pub const RST: u8 = 0x04;
    /// To be handed over at once.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// ECN: congestion was seen.
    pub const ECE: u8 = 0x40;
    /// ECN: the congestion window was reduced.
    pub const CWR: u8 = 0x80;
}

/// What the network carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with a whole header.
    Tcp(Tcp),
    /// UDP with a whole header.
    Udp(Udp),
    /// ICMPv6.
    Icmpv6 {
        /// Where it begins in the frame.
        offset: usize,
    },
    /// Something else, something broken, or a fragment.
    Opaque,
}

/// A TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Where it begins in the frame.
    pub offset: usize,
    /// Its length with options, in bytes.
    pub header_len: usize,
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// Sequence number; numbers wrap, so they are not compared here, only advanced.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Control bits: see [`flag`].
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
}

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Where it begins in the frame.
    pub offset: usize,
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
    /// Length as the header says it, its own 8 bytes included.
    pub len: usize,
    /// Checksum; zero stands for none.
    pub checksum: u16,
}

impl Transport {
    /// Parses what follows the network headers.
    #[must_use]
    pub fn parse(bytes: &[u8], network: &Network) -> Self {
        let (offset, number, fragment) = match network {
            Network::V4(ip) => (ip.offset + ip.header_len, ip.protocol, ip.fragment),
            Network::V6(ip) => (ip.offset + ip.header_len, ip.protocol, ip.fragment),
            Network::Arp { .. } | Network::Opaque => return Self::Opaque,
        };
        if fragment {
            return Self::Opaque;
        }
        match number {
            protocol::TCP => Tcp::parse(bytes, offset).map_or(Self::Opaque, Self::Tcp),
            protocol::UDP => Udp::parse(bytes, offset).map_or(Self::Opaque, Self::Udp),
            protocol::ICMPV6 if offset < bytes.len() => Self::Icmpv6 { offset },
            _ => Self::Opaque,
        }
    }
}

impl Tcp {
    fn parse(bytes: &[u8], offset: usize) -> Option<Self> {
        let head: [u8; 20] = array(bytes, offset)?;
        let header_len = usize::from(head[12] >> 4) * 4;
        if header_len < 20 || offset + header_len > bytes.len() {
            return None;
        }
        Some(Self {
            offset,
            header_len,
            source_port: word(&head, 0)?,
            destination_port: word(&head, 2)?,
            sequence: long(&head, 4)?,
            acknowledgement: long(&head, 8)?,
            flags: head[13],
            window: word(&head, 14)?,
        })
    }
}

impl Udp {
    fn parse(bytes: &[u8], offset: usize) -> Option<Self> {
        let head: [u8; 8] = array(bytes, offset)?;
        Some(Self {
            offset,
            source_port: word(&head, 0)?,
            destination_port: word(&head, 2)?,
            len: usize::from(word(&head, 4)?),
            checksum: word(&head, 6)?,
        })
    }
}
