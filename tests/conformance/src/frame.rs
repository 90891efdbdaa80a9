//! Frames made from what a script says.
//!
//! Checksums are computed here word by word, apart from the code under test.

use crate::script::{Family, Side};
use holdfast_packet::headers::protocol;
use holdfast_packet::sample;

/// Address of an end of every flow, in the family of the run.
#[must_use]
pub fn address(family: Family, side: Side) -> Vec<u8> {
    let last = if side == Side::Guest { 2 } else { 9 };
    match family {
        Family::V4 => vec![10, 0, 0, last],
        Family::V6 => {
            let mut bytes = vec![0; 16];
            (bytes[0], bytes[15]) = (0xfd, last);
            bytes
        }
    }
}

/// Address of the router that says that a packet was too big.
fn router(family: Family) -> Vec<u8> {
    let mut bytes = address(family, Side::Client);
    if let Some(last) = bytes.last_mut() {
        *last = 1;
    }
    bytes
}

/// The link and the network header of a frame to be made.
#[derive(Clone, Debug)]
pub struct Path {
    /// Family of IP.
    pub family: Family,
    /// Who sends.
    pub from: Side,
    /// VLAN numbers, outermost first.
    pub vlans: Vec<u16>,
    /// ECN bits.
    pub ecn: u8,
    /// Extension headers before the transport; over IPv4, words of options.
    pub extensions: u8,
    /// Whether it is the first fragment of a larger packet.
    pub fragment: bool,
}

impl Path {
    /// Nothing special.
    #[must_use]
    pub const fn plain(family: Family, from: Side) -> Self {
        Self { family, from, vlans: Vec::new(), ecn: 0, extensions: 0, fragment: false }
    }
}

/// A TCP header to be made, with absolute numbers.
#[derive(Clone, Debug, Default)]
pub struct Header {
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
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
}

/// How the TCP checksum is filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Right.
    Right,
    /// Wrong in one bit.
    Wrong,
    /// Left to a card: the sum of the pseudo header alone.
    Partial,
}

/// A TCP frame.
#[must_use]
pub fn tcp(path: &Path, header: &Header, payload: &[u8], checksum: Checksum) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(header.ports.0.to_be_bytes());
    segment.extend(header.ports.1.to_be_bytes());
    segment.extend(header.sequence.to_be_bytes());
    segment.extend(header.ack.to_be_bytes());
    let words_of_header = (5 + header.options.len().div_ceil(4)) as u8;
    segment.extend([words_of_header << 4 | u8::from(header.accurate_ecn), header.flags]);
    segment.extend(header.window.to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(header.urgent.to_be_bytes());
    segment.extend(&header.options);
    segment.extend(payload);
    let pseudo = pseudo(path, protocol::TCP, segment.len());
    let sum = match checksum {
        Checksum::Right => !fold(pseudo + words(&segment)),
        Checksum::Wrong => !fold(pseudo + words(&segment)) ^ 0x0400,
        Checksum::Partial => fold(pseudo),
    };
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    packet(path, protocol::TCP, &segment, None)
}

/// A UDP frame with this many bytes of payload.
#[must_use]
pub fn udp(path: &Path, ports: (u16, u16), len: usize) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(ports.0.to_be_bytes());
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend((8 + len as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.resize(8 + len, 0x55);
    let sum = !fold(pseudo(path, protocol::UDP, datagram.len()) + words(&datagram));
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    packet(path, protocol::UDP, &datagram, None)
}

/// ICMP to the guest from a router: a packet of the guest with these ports and this sequence number
/// did not fit a link of this MTU (RFC 792, RFC 1191 §4; RFC 4443 §3.2).
#[must_use]
pub fn too_big(path: &Path, ports: (u16, u16), sequence: u32, mtu: u32) -> Vec<u8> {
    let quoted = Path { from: path.from.other(), vlans: Vec::new(), ..path.clone() };
    let header = Header { ports, sequence, flags: 0x10, ..Header::default() };
    let inner = tcp(&quoted, &header, &[0x77; 64], Checksum::Right);
    // What the router quotes is of a packet that was larger than the link.
    let mut inner = inner[14..].to_vec();
    let len = (mtu as u16).saturating_add(100);
    match path.family {
        Family::V4 => {
            inner[2..4].copy_from_slice(&len.to_be_bytes());
            inner[10..12].fill(0);
            let sum = !fold(words(&inner[..20]));
            inner[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Family::V6 => inner[4..6].copy_from_slice(&len.to_be_bytes()),
    }
    let (number, mut message) = match path.family {
        Family::V4 => (1, vec![3, 4, 0, 0, 0, 0, (mtu >> 8) as u8, mtu as u8]),
        Family::V6 => {
            let mut message = vec![2, 0, 0, 0];
            message.extend(mtu.to_be_bytes());
            (protocol::ICMPV6, message)
        }
    };
    message.extend(inner);
    let source = router(path.family);
    let pseudo = match path.family {
        Family::V4 => 0,
        Family::V6 => {
            words(&source)
                + words(&address(path.family, path.from.other()))
                + u64::from(number)
                + message.len() as u64
        }
    };
    let sum = !fold(pseudo + words(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(path, number, &message, Some(source))
}

/// Makes the checksums of a frame right whose network header is at `network` and whose TCP header is at
/// `transport`; one whose lengths make no sense stays as it is.
pub fn finish(frame: &mut [u8], network: usize, transport: usize) {
    let Some(head) = frame.get(network..transport) else { return };
    let v4 = head.first().is_some_and(|first| first >> 4 == 4);
    if transport - network < if v4 { 20 } else { 40 } {
        return;
    }
    let word = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
    let (end, addresses) =
        if v4 { (network + word(2), network + 12) } else { (network + 40 + word(4), network + 8) };
    if end > frame.len() || end < transport + 20 {
        return;
    }
    if v4 {
        frame[network + 10..network + 12].fill(0);
        let sum = !fold(words(&frame[network..transport]));
        frame[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let len = if v4 { 8 } else { 32 };
    let pseudo =
        words(&frame[addresses..addresses + len]) + u64::from(protocol::TCP) + (end - transport) as u64;
    frame[transport + 16..transport + 18].fill(0);
    let sum = !fold(pseudo + words(&frame[transport..end]));
    frame[transport + 16..transport + 18].copy_from_slice(&sum.to_be_bytes());
}

/// A frame of no protocol that is looked into.
#[must_use]
pub fn opaque(path: &Path, len: usize) -> Vec<u8> {
    let mut bytes = link(path);
    bytes.extend([0x88, 0xb5]);
    bytes.resize(len.max(bytes.len()), 0xa5);
    bytes
}

fn link(path: &Path) -> Vec<u8> {
    let (guest, client) = (sample::GUEST, sample::CLIENT);
    let mut bytes = Vec::new();
    match path.from {
        Side::Guest => [client, guest].iter().for_each(|mac| bytes.extend(mac)),
        Side::Client => [guest, client].iter().for_each(|mac| bytes.extend(mac)),
    }
    for (nth, vlan) in path.vlans.iter().enumerate() {
        bytes.extend(if nth + 1 < path.vlans.len() { [0x88, 0xa8] } else { [0x81, 0x00] });
        bytes.extend(vlan.to_be_bytes());
    }
    bytes
}

fn packet(path: &Path, number: u8, transport: &[u8], source: Option<Vec<u8>>) -> Vec<u8> {
    let mut bytes = link(path);
    let source = source.unwrap_or_else(|| address(path.family, path.from));
    let destination = address(path.family, path.from.other());
    match path.family {
        Family::V4 => {
            let words_of_options = usize::from(path.extensions);
            let begin = bytes.len() + 2;
            let header_len = 20 + 4 * words_of_options;
            bytes.extend([0x08, 0x00, 0x45 + path.extensions, path.ecn]);
            bytes.extend(((header_len + transport.len()) as u16).to_be_bytes());
            bytes.extend([0x12, 0x34]);
            bytes.extend(if path.fragment { [0x20, 0] } else { [0x40, 0] });
            bytes.extend([64, number, 0, 0]);
            bytes.extend(source);
            bytes.extend(destination);
            bytes.resize(begin + header_len, 1);
            let sum = !fold(words(&bytes[begin..]));
            bytes[begin + 10..begin + 12].copy_from_slice(&sum.to_be_bytes());
        }
        Family::V6 => {
            let mut chain = vec![60u8; usize::from(path.extensions)];
            chain.extend(path.fragment.then_some(44));
            chain.push(number);
            let len = 8 * (chain.len() - 1) + transport.len();
            bytes.extend([0x86, 0xdd, 0x60, path.ecn << 4, 0, 7]);
            bytes.extend((len as u16).to_be_bytes());
            bytes.extend([chain[0], 64]);
            bytes.extend(source);
            bytes.extend(destination);
            for pair in chain.windows(2) {
                // Destination options: a PadN of four bytes. A fragment: offset 0, more to come.
                let body = if pair[0] == 44 { [0, 0, 1, 0, 0, 0, 9] } else { [0, 1, 4, 0, 0, 0, 0] };
                bytes.push(pair[1]);
                bytes.extend(body);
            }
        }
    }
    bytes.extend(transport);
    bytes
}

fn pseudo(path: &Path, number: u8, len: usize) -> u64 {
    words(&address(path.family, path.from))
        + words(&address(path.family, path.from.other()))
        + u64::from(number)
        + len as u64
}

/// Sum of 16-bit words (RFC 1071 §4.1).
pub(crate) fn words(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0))).sum()
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The byte that a side has at this place of its stream; 1 is the first behind the SYN.
#[must_use]
pub const fn pattern(side: Side, place: u32) -> u8 {
    let factor = match side {
        Side::Guest => 2_654_435_761,
        Side::Client => 2_246_822_519,
    };
    (place.wrapping_mul(factor) >> 21) as u8
}

/// A range of a side's stream.
#[must_use]
pub fn payload(side: Side, begin: u32, len: u32) -> Vec<u8> {
    (0..len).map(|nth| pattern(side, begin.wrapping_add(nth))).collect()
}
