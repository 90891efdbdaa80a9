//! Ends of TCP connections that tests play by hand: as little of a TCP as they need.

use crate::headers::flag;
use crate::sample;

/// One end: who it is, and how far it is.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) mac: [u8; 6],
    pub(super) ip: [u8; 4],
    tcp_port: u16,
    /// Number of the next byte that it sends.
    next: u32,
    /// Number of the next byte that it awaits.
    awaited: u32,
    /// What it was told to have arrived, and the window from there.
    pub(super) acked: u32,
    pub(super) open: u16,
    /// The window that it gives, and where what it gave ends: beyond that it takes nothing, as from a probe.
    pub(super) window: u16,
    edge: u32,
    /// Bytes that it got, in order; what came out of order was dropped.
    pub(super) got: Vec<u8>,
    /// What it sent: its bytes are told from others' by their seed.
    pub(super) sent: usize,
    seed: u8,
}

impl End {
    /// The `number`-th end; numbers beyond nine are of stations on the wire.
    pub(super) fn new(number: u8) -> Self {
        Self {
            mac: [0x52, 0x54, 0, 0, 0, number],
            ip: [10, 0, 0, number],
            tcp_port: 5000 + u16::from(number),
            next: u32::from(number) << 28,
            awaited: 0,
            acked: u32::from(number) << 28,
            open: 0,
            window: 60_000,
            edge: 0,
            got: Vec::new(),
            sent: 0,
            seed: number,
        }
    }

    fn segment(&mut self, to: &Self, flags: u8, payload: Vec<u8>) -> Vec<u8> {
        // A window that was given is not taken back.
        self.edge = self.edge.max(self.awaited + u32::from(self.window));
        let window = self.edge - self.awaited;
        let segment = sample::Tcp {
            v6: false,
            destination: to.mac,
            source: self.mac,
            ports: (self.tcp_port, to.tcp_port),
            sequence: self.next,
            acknowledgement: if flags & flag::ACK != 0 { self.awaited } else { 0 },
            flags,
            window: u16::try_from(window).expect("no window is scaled"),
            options: if flags & flag::SYN != 0 { vec![2, 4, 5, 180] } else { vec![] },
            payload,
            ..sample::Tcp::data(false, vec![])
        };
        let mut bytes = segment.bytes();
        bytes[26..30].copy_from_slice(&self.ip);
        bytes[30..34].copy_from_slice(&to.ip);
        sample::complete(&mut bytes, segment.transport(), false);
        bytes
    }

    /// Asks for a connection.
    pub(super) fn syn(&mut self, to: &Self) -> Vec<u8> {
        let bytes = self.segment(to, flag::SYN, vec![]);
        self.next += 1;
        bytes
    }

    /// Takes it.
    pub(super) fn syn_ack(&mut self, to: &Self) -> Vec<u8> {
        let bytes = self.segment(to, flag::SYN | flag::ACK, vec![]);
        self.next += 1;
        bytes
    }

    /// Says what has arrived.
    pub(super) fn ack(&mut self, to: &Self) -> Vec<u8> {
        self.segment(to, flag::ACK, vec![])
    }

    /// The next `len` bytes.
    pub(super) fn data(&mut self, to: &Self, len: usize) -> Vec<u8> {
        let content = self.content(self.sent..self.sent + len);
        let bytes = self.segment(to, flag::ACK | flag::PSH, content);
        self.next += len as u32;
        self.sent += len;
        bytes
    }

    /// What its bytes are there.
    pub(super) fn content(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        range.map(|at| (at as u32).wrapping_mul(0x9e37_79b1).to_be_bytes()[0] ^ self.seed).collect()
    }

    /// Bytes that it may still send into the window that it was shown.
    pub(super) fn room(&self) -> usize {
        (self.acked + u32::from(self.open)).saturating_sub(self.next) as usize
    }

    /// Takes a frame if it is one of this connection; says whether it was.
    pub(super) fn hear(&mut self, from: &Self, frame: &[u8]) -> bool {
        let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        let half = |at: usize| u16::from_be_bytes(frame[at..at + 2].try_into().expect("two bytes"));
        let of_us = frame.len() >= 54 && frame[26..30] == from.ip && frame[30..34] == self.ip;
        if !of_us || (half(34), half(36)) != (from.tcp_port, self.tcp_port) {
            return false;
        }
        assert_eq!((&frame[..6], &frame[6..12]), (&self.mac[..], &from.mac[..]));
        let (sequence, flags) = (word(38), frame[47]);
        assert_eq!(flags & flag::RST, 0, "the connection was reset");
        let end = 14 + usize::from(half(16));
        let payload = &frame[34 + usize::from(frame[46] >> 4) * 4..end];
        if flags & flag::SYN != 0 {
            self.awaited = sequence + 1;
            self.edge = self.awaited + u32::from(self.window);
        } else if sequence <= self.awaited && sequence + payload.len() as u32 > self.awaited {
            let new = &payload[(self.awaited - sequence) as usize..];
            let new = &new[..new.len().min(self.edge.saturating_sub(self.awaited) as usize)];
            self.got.extend(new);
            self.awaited += new.len() as u32;
        }
        if flags & flag::ACK != 0 && word(42) >= self.acked {
            self.acked = word(42);
            self.open = half(48);
        }
        true
    }
}
