//! A frame read back: a parser of its own, so that the engine's is not its own judge.

use holdfast_speculation::SeqNum;
use std::fmt;
use std::ops::Range;

/// Control bits of TCP (RFC 9293 §3.1).
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const URG: u8 = 0x20;
    pub(crate) const ECE: u8 = 0x40;
    pub(crate) const CWR: u8 = 0x80;
}

/// Kinds of TCP options.
pub(crate) mod option {
    pub(crate) const END: u8 = 0;
    pub(crate) const NOP: u8 = 1;
    pub(crate) const MSS: u8 = 2;
    pub(crate) const WINDOW_SCALE: u8 = 3;
    pub(crate) const SACK_PERMITTED: u8 = 4;
    pub(crate) const SACK: u8 = 5;
    pub(crate) const TIMESTAMPS: u8 = 8;
}

/// Where the headers of a TCP frame are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// IPv6 rather than IPv4.
    pub(crate) v6: bool,
    /// Where the IP header begins.
    pub(crate) ip: usize,
    /// Where the TCP header begins.
    pub(crate) tcp: usize,
    /// Where the payload begins.
    pub(crate) payload: usize,
    /// Where the packet ends.
    pub(crate) end: usize,
}

impl Place {
    /// Of a TCP segment that is no fragment.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let mut at = 12;
        let mut kind = word(frame, at)?;
        while matches!(kind, 0x8100 | 0x88a8) {
            at += 4;
            kind = word(frame, at)?;
        }
        let ip = at + 2;
        let (v6, tcp, protocol, end) = match kind {
            0x0800 => {
                if word(frame, ip + 6)? & 0x3fff != 0 {
                    return None;
                }
                let len = usize::from(frame.get(ip)? & 0xf) * 4;
                (false, ip + len, *frame.get(ip + 9)?, ip + usize::from(word(frame, ip + 2)?))
            }
            0x86dd => (true, ip + 40, *frame.get(ip + 6)?, ip + 40 + usize::from(word(frame, ip + 4)?)),
            _ => return None,
        };
        let payload = tcp + usize::from(frame.get(tcp + 12)? >> 4) * 4;
        let whole = protocol == 6 && payload >= tcp + 20 && payload <= end && end <= frame.len();
        whole.then_some(Self { v6, ip, tcp, payload, end })
    }
}

/// A TCP segment as a frame carries it.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) place: Place,
    pub(crate) ports: (u16, u16),
    pub(crate) seq: SeqNum,
    pub(crate) ack: Option<SeqNum>,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) scale: Option<u8>,
    pub(crate) timestamp: Option<(u32, u32)>,
    pub(crate) sacks: Vec<(SeqNum, SeqNum)>,
    pub(crate) mss: Option<u16>,
    pub(crate) payload: Range<usize>,
}

impl Segment {
    /// Reads a frame; none when it carries no whole TCP segment.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let place = Place::of(frame)?;
        let tcp = place.tcp;
        let flags = frame[tcp + 13];
        let mut segment = Self {
            place,
            ports: (word(frame, tcp)?, word(frame, tcp + 2)?),
            seq: SeqNum::new(long(frame, tcp + 4)?),
            ack: (flags & flag::ACK != 0).then_some(SeqNum::new(long(frame, tcp + 8)?)),
            flags,
            window: word(frame, tcp + 14)?,
            scale: None,
            timestamp: None,
            sacks: Vec::new(),
            mss: None,
            payload: place.payload..place.end,
        };
        for (kind, value) in options(&frame[tcp + 20..place.payload]) {
            match (kind, value.len()) {
                (option::MSS, 2) => segment.mss = word(value, 0),
                (option::WINDOW_SCALE, 1) => segment.scale = Some(value[0]),
                (option::TIMESTAMPS, 8) => segment.timestamp = long(value, 0).zip(long(value, 4)),
                (option::SACK, _) => {
                    for block in value.chunks_exact(8) {
                        let (left, right) = (long(block, 0)?, long(block, 4)?);
                        segment.sacks.push((SeqNum::new(left), SeqNum::new(right)));
                    }
                }
                _ => {}
            }
        }
        Some(segment)
    }

    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of payload.
    pub(crate) fn len(&self) -> u32 {
        self.payload.len() as u32
    }

    /// The sequence number after the last that the segment takes, its SYN and FIN included.
    pub(crate) fn end(&self) -> SeqNum {
        self.seq + self.len() + u32::from(self.has(flag::SYN)) + u32::from(self.has(flag::FIN))
    }

    /// The sequence number of its first byte of payload.
    pub(crate) fn data(&self) -> SeqNum {
        self.seq + u32::from(self.has(flag::SYN))
    }
}

/// The options of a header, with their values, up to what is broken.
pub(crate) fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            match *bytes.first()? {
                option::END => return None,
                option::NOP => bytes = &bytes[1..],
                kind => {
                    let len = usize::from(*bytes.get(1)?);
                    let value = bytes.get(2..len.max(2))?;
                    bytes = bytes.get(len.max(2)..)?;
                    return Some((kind, value));
                }
            }
        }
    })
}

/// Whether the checksums of an IP frame that is TCP add up, word by word (RFC 1071 §4.1).
pub(crate) fn adds_up(frame: &[u8]) -> bool {
    let Some(place) = Place::of(frame) else { return false };
    transport_sum(frame, &place) == 0xffff && (place.v6 || fold(words(&frame[place.ip..place.tcp])) == 0xffff)
}

/// The folded sum of the pseudo header and the segment, its checksum field included.
pub(crate) fn transport_sum(frame: &[u8], place: &Place) -> u16 {
    fold(pseudo_sum(frame, place) + words(&frame[place.tcp..place.end]))
}

/// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
pub(crate) fn pseudo_sum(frame: &[u8], place: &Place) -> u64 {
    let addresses = if place.v6 { 32 } else { 8 };
    let start = place.ip + if place.v6 { 8 } else { 12 };
    words(&frame[start..start + addresses]) + 6 + (place.end - place.tcp) as u64
}

pub(crate) fn words(bytes: &[u8]) -> u64 {
    let mut pairs = bytes.chunks_exact(4);
    let sum: u64 = (&mut pairs).map(|b| u64::from(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))).sum();
    let rest = pairs.remainder();
    sum + rest.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0))).sum::<u64>()
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl fmt::Display for Segment {
    /// As tcpdump writes it, with absolute numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} [", self.ports.0, self.ports.1)?;
        for (bit, letter) in [
            (flag::SYN, "S"),
            (flag::FIN, "F"),
            (flag::RST, "R"),
            (flag::PSH, "P"),
            (flag::ACK, "."),
            (flag::URG, "U"),
            (flag::ECE, "E"),
            (flag::CWR, "W"),
        ] {
            if self.has(bit) {
                f.write_str(letter)?;
            }
        }
        write!(f, "] seq {}", self.seq)?;
        if self.end() != self.seq {
            write!(f, ":{}", self.end())?;
        }
        if let Some(ack) = self.ack {
            write!(f, " ack {ack}")?;
        }
        write!(f, " win {}", self.window)?;
        if let Some(scale) = self.scale {
            write!(f, " wscale {scale}")?;
        }
        if let Some(mss) = self.mss {
            write!(f, " mss {mss}")?;
        }
        if let Some((value, echo)) = self.timestamp {
            write!(f, " ts {value}/{echo}")?;
        }
        for (left, right) in &self.sacks {
            write!(f, " sack {left}:{right}")?;
        }
        write!(f, " len {}", self.len())
    }
}
