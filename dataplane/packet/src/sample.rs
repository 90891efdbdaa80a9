//! Packets made by hand, for tests and benches.
//!
//! Checksums here are computed word by word, apart from [`crate::checksum`], so that the one can
//! judge the other.

/// MAC of the guest in samples.
pub const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// MAC of the client in samples.
pub const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// A TCP segment to be made.
#[derive(Clone, Debug)]
pub struct Tcp {
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// Receiver on the link.
    pub destination: [u8; 6],
    /// Sender on the link.
    pub source: [u8; 6],
    /// VLAN tags, outermost first.
    pub tags: Vec<[u8; 4]>,
    /// Identification of IPv4.
    pub identification: u16,
    /// Ports of the sender and the receiver.
    pub ports: (u16, u16),
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Control bits.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Tcp {
    /// A data segment of the guest with a timestamp option and this payload.
    #[must_use]
    pub fn data(v6: bool, payload: Vec<u8>) -> Self {
        Self {
            v6,
            destination: CLIENT,
            source: GUEST,
            tags: Vec::new(),
            identification: 0x1234,
            ports: (5001, 40000),
            sequence: 0xffff_fc00,
            acknowledgement: 77,
            flags: 0x10,
            window: 502,
            options: vec![1, 1, 8, 10, 0, 0, 1, 1, 0, 0, 2, 2],
            payload,
        }
    }

    /// Where the TCP header begins.
    #[must_use]
    pub fn transport(&self) -> usize {
        14 + 4 * self.tags.len() + if self.v6 { 40 } else { 20 }
    }

    /// Where the payload begins.
    #[must_use]
    pub fn headers(&self) -> usize {
        self.transport() + 20 + self.options.len()
    }

    /// The frame with all checksums.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.unfinished();
        complete(&mut bytes, self.transport(), self.v6);
        bytes
    }

    fn unfinished(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.destination);
        bytes.extend(self.source);
        bytes.extend(self.tags.iter().flatten());
        let len = 20 + self.options.len() + self.payload.len();
        if self.v6 {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 7]);
            bytes.extend((len as u16).to_be_bytes());
            bytes.extend([6, 64]);
            bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        } else {
            bytes.extend([0x08, 0x00, 0x45, 0]);
            bytes.extend((20 + len as u16).to_be_bytes());
            bytes.extend(self.identification.to_be_bytes());
            bytes.extend([0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 9]);
        }
        bytes.extend(self.ports.0.to_be_bytes());
        bytes.extend(self.ports.1.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgement.to_be_bytes());
        bytes.extend([(5 + self.options.len() / 4) as u8 * 16, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0, 0, 0, 0]);
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        bytes
    }
}

/// A UDP datagram of the guest to be made.
#[derive(Clone, Debug)]
pub struct Udp {
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// VLAN tags, outermost first.
    pub tags: Vec<[u8; 4]>,
    /// Identification of IPv4.
    pub identification: u16,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Udp {
    /// Where the UDP header begins.
    #[must_use]
    pub fn transport(&self) -> usize {
        14 + 4 * self.tags.len() + if self.v6 { 40 } else { 20 }
    }

    /// The frame with all checksums.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let like = Tcp {
            tags: self.tags.clone(),
            identification: self.identification,
            payload: self.payload.clone(),
            options: Vec::new(),
            ..Tcp::data(self.v6, Vec::new())
        };
        let mut bytes = like.unfinished();
        let at = self.transport();
        bytes.drain(at + 8..at + 20);
        let len = (bytes.len() - at) as u16;
        bytes[at + 4..at + 6].copy_from_slice(&len.to_be_bytes());
        bytes[at + 6..at + 8].fill(0);
        if self.v6 {
            bytes[at - 36..at - 34].copy_from_slice(&len.to_be_bytes());
            bytes[at - 34] = 17;
        } else {
            bytes[at - 18..at - 16].copy_from_slice(&(20 + len).to_be_bytes());
            bytes[at - 11] = 17;
            let sum = !fold(words(&bytes[at - 20..at]));
            bytes[at - 10..at - 8].copy_from_slice(&sum.to_be_bytes());
        }
        let sum = !fold(pseudo(&bytes, at, self.v6, 17, usize::from(len)) + words(&bytes[at..]));
        bytes[at + 6..at + 8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
        bytes
    }
}

/// A broadcast ARP request of a guest for its own address.
#[must_use]
pub fn arp(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend(mac);
    bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(mac);
    bytes.extend(address);
    bytes.extend([0; 6]);
    bytes.extend(address);
    bytes
}

/// A frame of no protocol that is looked into, of this length.
#[must_use]
pub fn opaque(destination: [u8; 6], source: [u8; 6], len: usize, fill: u8) -> Vec<u8> {
    let mut bytes = Vec::from(destination);
    bytes.extend(source);
    bytes.extend([0x88, 0xb5]);
    bytes.resize(len.max(14), fill);
    bytes
}

/// Writes the IPv4 and TCP checksums of a whole frame.
pub fn complete(bytes: &mut [u8], transport: usize, v6: bool) {
    if !v6 {
        let at = transport - 20;
        bytes[at + 10..at + 12].fill(0);
        let sum = !fold(words(&bytes[at..transport]));
        bytes[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes[transport + 16..transport + 18].fill(0);
    let len = bytes.len() - transport;
    let sum = pseudo(bytes, transport, v6, 6, len) + words(&bytes[transport..]);
    bytes[transport + 16..transport + 18].copy_from_slice(&(!fold(sum)).to_be_bytes());
}

/// Whether the IPv4 header and the transport of a frame without extension headers add up.
#[must_use]
pub fn adds_up(bytes: &[u8], transport: usize, v6: bool, protocol: u8) -> bool {
    let len = bytes.len() - transport;
    let whole = pseudo(bytes, transport, v6, protocol, len) + words(&bytes[transport..]);
    fold(whole) == 0xffff && (v6 || fold(words(&bytes[transport - 20..transport])) == 0xffff)
}

/// Sum of the pseudo header, folded: what a card is left in the checksum field of an unfinished frame.
#[must_use]
pub fn partial_sum(bytes: &[u8], transport: usize, v6: bool, protocol: u8) -> u16 {
    fold(pseudo(bytes, transport, v6, protocol, bytes.len() - transport))
}

fn pseudo(bytes: &[u8], transport: usize, v6: bool, protocol: u8, len: usize) -> u64 {
    let addresses = if v6 { 32 } else { 8 };
    words(&bytes[transport - addresses..transport]) + u64::from(protocol) + len as u64
}

fn words(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
