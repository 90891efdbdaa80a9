//! Packets and guest frames made by hand, for tests and benches.

use crate::guest::VirtioNetHdr;

pub use holdfast_packet::sample::*;

/// A segment as a guest hands it to its card.
pub trait Offloaded {
    /// The frame for a card that computes the checksum, and its offload header; `size` is the segment
    /// size in bytes, zero for none.
    fn offloaded(&self, size: u16) -> (VirtioNetHdr, Vec<u8>);
}

impl Offloaded for Tcp {
    fn offloaded(&self, size: u16) -> (VirtioNetHdr, Vec<u8>) {
        let mut bytes = self.bytes();
        let at = self.transport();
        bytes[at + 16..at + 18].fill(0);
        let sum = partial_sum(&bytes, at, self.v6, 6);
        bytes[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
        let header = VirtioNetHdr {
            flags: 1,
            gso_type: match (size, self.v6) {
                (0, _) => 0,
                (_, false) => 1,
                (_, true) => 4,
            },
            hdr_len: self.headers() as u16,
            gso_size: size,
            csum_start: at as u16,
            csum_offset: 16,
            num_buffers: 0,
        };
        (header, bytes)
    }
}

impl Offloaded for Udp {
    fn offloaded(&self, size: u16) -> (VirtioNetHdr, Vec<u8>) {
        let mut bytes = self.bytes();
        let at = self.transport();
        let sum = partial_sum(&bytes, at, self.v6, 17);
        bytes[at + 6..at + 8].copy_from_slice(&sum.to_be_bytes());
        let header = VirtioNetHdr {
            flags: 1,
            gso_type: if size == 0 { 0 } else { 5 },
            hdr_len: at as u16 + 8,
            gso_size: size,
            csum_start: at as u16,
            csum_offset: 6,
            num_buffers: 0,
        };
        (header, bytes)
    }
}
