//! A frame that the engine let out, read completely: every length and both checksums must be right.
//!
//! This reader shares no code with the parser under test.

use crate::frame::{fold, words};
use crate::script::{Family, TcpOption};

/// A frame as it was read.
#[derive(Clone, Debug)]
pub struct Seen {
    /// VLAN numbers, outermost first.
    pub vlans: Vec<u16>,
    /// MAC of the receiver, then of the sender.
    pub macs: ([u8; 6], [u8; 6]),
    /// What it carries.
    pub packet: SeenPacket,
}

/// What a frame carries.
#[derive(Clone, Debug)]
pub enum SeenPacket {
    /// TCP.
    Tcp(SeenTcp),
    /// UDP: ports of sender and receiver, bytes of payload.
    Udp((u16, u16), usize),
    /// A packet was too big.
    TooBig {
        /// For a link of this MTU.
        mtu: u32,
        /// Ports of the packet that is quoted.
        ports: (u16, u16),
        /// Its sequence number.
        sequence: u32,
    },
    /// A fragment, or nothing that is looked into; length of the whole frame.
    Opaque(usize),
}

/// A TCP segment as it was read.
#[derive(Clone, Debug)]
pub struct SeenTcp {
    /// Family of IP.
    pub family: Family,
    /// ECN bits.
    pub ecn: u8,
    /// Extension headers, or words of IPv4 options.
    pub extensions: u8,
    /// Ports of the sender and the receiver.
    pub ports: (u16, u16),
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Control bits.
    pub flags: u8,
    /// The AE bit of RFC 9768.
    pub accurate_ecn: bool,
    /// Window, unscaled.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options, without those that only fill space.
    pub options: Vec<TcpOption>,
    /// Payload.
    pub payload: Vec<u8>,
}

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
#[error("the frame is broken: {what}: {bytes:02x?}")]
pub struct Broken {
    what: &'static str,
    bytes: Vec<u8>,
}

impl Seen {
    /// Reads a frame.
    ///
    /// # Errors
    /// What does not add up; whose fault: of whoever made the frame.
    pub fn read(frame: &[u8]) -> Result<Self, Broken> {
        read(frame).map_err(|what| Broken { what, bytes: frame[..frame.len().min(128)].to_vec() })
    }
}

impl SeenTcp {
    /// The timestamps, if there are any.
    #[must_use]
    pub fn timestamps(&self) -> Option<(u32, u32)> {
        self.options.iter().find_map(|option| match option {
            TcpOption::Timestamps(Some(value), Some(echo)) => Some((*value, *echo)),
            _ => None,
        })
    }
}

fn read(frame: &[u8]) -> Result<Seen, &'static str> {
    let mac = |at: usize| -> Result<[u8; 6], &'static str> {
        frame.get(at..at + 6).and_then(|bytes| bytes.try_into().ok()).ok_or("no link header")
    };
    let macs = (mac(0)?, mac(6)?);
    let mut vlans = Vec::new();
    let mut at = 12;
    let mut ethertype = word(frame, at)?;
    while matches!(ethertype, 0x8100 | 0x88a8) {
        vlans.push(word(frame, at + 2)? & 0xfff);
        at += 4;
        ethertype = word(frame, at)?;
    }
    let bytes = &frame[at + 2..];
    let packet = match ethertype {
        0x0800 => v4(bytes)?,
        0x86dd => v6(bytes)?,
        _ => SeenPacket::Opaque(frame.len()),
    };
    Ok(Seen { vlans, macs, packet })
}

fn v4(bytes: &[u8]) -> Result<SeenPacket, &'static str> {
    if bytes.len() < 20 || bytes[0] >> 4 != 4 {
        return Err("no IPv4 header");
    }
    let header_len = usize::from(bytes[0] & 15) * 4;
    let total = usize::from(word(bytes, 2)?);
    if header_len < 20 || total < header_len || total > bytes.len() {
        return Err("lengths of the IPv4 header");
    }
    if fold(words(&bytes[..header_len])) != 0xffff {
        return Err("checksum of the IPv4 header");
    }
    if word(bytes, 6)? & 0x3fff != 0 {
        return Ok(SeenPacket::Opaque(bytes.len()));
    }
    let network = NetworkPart {
        family: Family::V4,
        addresses: &bytes[12..20],
        ecn: bytes[1] & 3,
        extensions: ((header_len - 20) / 4) as u8,
    };
    transport(&network, bytes[9], &bytes[header_len..total])
}

fn v6(bytes: &[u8]) -> Result<SeenPacket, &'static str> {
    if bytes.len() < 40 || bytes[0] >> 4 != 6 {
        return Err("no IPv6 header");
    }
    let total = 40 + usize::from(word(bytes, 4)?);
    if total > bytes.len() {
        return Err("length of the IPv6 packet");
    }
    let (mut number, mut at, mut extensions) = (bytes[6], 40, 0);
    while matches!(number, 0 | 43 | 44 | 60) {
        if number == 44 {
            return Ok(SeenPacket::Opaque(bytes.len()));
        }
        let [next, len] = *bytes.get(at..at + 2).ok_or("an extension header that is cut off")? else {
            return Err("an extension header that is cut off");
        };
        number = next;
        at += 8 * (usize::from(len) + 1);
        extensions += 1;
    }
    if at > total {
        return Err("an extension header beyond the packet");
    }
    let network =
        NetworkPart { family: Family::V6, addresses: &bytes[8..40], ecn: bytes[1] >> 4 & 3, extensions };
    transport(&network, number, &bytes[at..total])
}

struct NetworkPart<'a> {
    family: Family,
    addresses: &'a [u8],
    ecn: u8,
    extensions: u8,
}

fn transport(network: &NetworkPart<'_>, number: u8, bytes: &[u8]) -> Result<SeenPacket, &'static str> {
    let pseudo = words(network.addresses) + u64::from(number) + bytes.len() as u64;
    let whole = fold(pseudo + words(bytes)) == 0xffff;
    match number {
        6 if !whole => Err("checksum of TCP"),
        6 => tcp(network, bytes).map(SeenPacket::Tcp),
        17 if !whole => Err("checksum of UDP"),
        17 => Ok(SeenPacket::Udp((word(bytes, 0)?, word(bytes, 2)?), bytes.len().saturating_sub(8))),
        1 if fold(words(bytes)) != 0xffff => Err("checksum of ICMP"),
        1 if bytes.get(..2) == Some(&[3, 4]) => {
            let mtu = u32::from(word(bytes, 6)?);
            let inner = bytes.get(8..).ok_or("ICMP without a quotation")?;
            quotation(inner, usize::from(inner.first().unwrap_or(&0) & 15) * 4, mtu)
        }
        58 if !whole => Err("checksum of ICMPv6"),
        58 if bytes.first() == Some(&2) => {
            let mtu = long(bytes, 4)?;
            quotation(bytes.get(8..).ok_or("ICMP without a quotation")?, 40, mtu)
        }
        _ => Ok(SeenPacket::Opaque(bytes.len())),
    }
}

fn quotation(inner: &[u8], header_len: usize, mtu: u32) -> Result<SeenPacket, &'static str> {
    Ok(SeenPacket::TooBig {
        mtu,
        ports: (word(inner, header_len)?, word(inner, header_len + 2)?),
        sequence: long(inner, header_len + 4)?,
    })
}

fn tcp(network: &NetworkPart<'_>, bytes: &[u8]) -> Result<SeenTcp, &'static str> {
    if bytes.len() < 20 {
        return Err("no TCP header");
    }
    let header_len = usize::from(bytes[12] >> 4) * 4;
    if header_len < 20 || header_len > bytes.len() {
        return Err("length of the TCP header");
    }
    Ok(SeenTcp {
        family: network.family,
        ecn: network.ecn,
        extensions: network.extensions,
        ports: (word(bytes, 0)?, word(bytes, 2)?),
        sequence: long(bytes, 4)?,
        ack: long(bytes, 8)?,
        flags: bytes[13],
        accurate_ecn: bytes[12] & 1 == 1,
        window: word(bytes, 14)?,
        urgent: word(bytes, 18)?,
        options: options(&bytes[20..header_len])?,
        payload: bytes[header_len..].to_vec(),
    })
}

fn options(mut bytes: &[u8]) -> Result<Vec<TcpOption>, &'static str> {
    let mut options = Vec::new();
    while let [kind, rest @ ..] = bytes {
        match kind {
            0 => break,
            1 => bytes = rest,
            _ => {
                let len = usize::from(*rest.first().ok_or("a TCP option without a length")?);
                if len < 2 || len > bytes.len() {
                    return Err("length of a TCP option");
                }
                options.push(option(*kind, &bytes[2..len])?);
                bytes = &bytes[len..];
            }
        }
    }
    Ok(options)
}

fn option(kind: u8, body: &[u8]) -> Result<TcpOption, &'static str> {
    Ok(match (kind, body.len()) {
        (2, 2) => TcpOption::Mss(word(body, 0)?),
        (3, 1) => TcpOption::Scale(body[0]),
        (4, 0) => TcpOption::SackPermitted,
        (5, len) if len % 8 == 0 => {
            let mut blocks = Vec::new();
            for at in (0..len).step_by(8) {
                blocks.push((long(body, at)?, long(body, at + 4)?));
            }
            TcpOption::Sack(blocks)
        }
        (8, 8) => TcpOption::Timestamps(Some(long(body, 0)?), Some(long(body, 4)?)),
        (2..=5 | 8, _) => return Err("length of a TCP option of a known kind"),
        (kind, len) => TcpOption::Other(kind, len as u8),
    })
}

fn word(bytes: &[u8], at: usize) -> Result<u16, &'static str> {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => Ok(u16::from_be_bytes([high, low])),
        _ => Err("a frame that is cut off"),
    }
}

fn long(bytes: &[u8], at: usize) -> Result<u32, &'static str> {
    Ok(u32::from(word(bytes, at)?) << 16 | u32::from(word(bytes, at + 2)?))
}
