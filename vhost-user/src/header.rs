//! The header that virtio-net puts before each frame.

/// Header as the specification lays it out; little-endian on the wire, host order here.
///
/// Values that the guest wrote are not judged here: whoever uses `csum_start` or `gso_size` checks
/// them against the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHdr {
    /// [`Self::NEEDS_CSUM`], [`Self::DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` values, with or without [`Self::GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of all protocol headers of a large frame; a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment of a large frame.
    pub gso_size: u16,
    /// Where the checksum begins, from the start of the frame.
    pub csum_start: u16,
    /// Where it is to be stored, from `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers that the frame takes; the ring fills it in.
    pub num_buffers: u16,
}

impl VirtioNetHdr {
    /// Bytes of a full header.
    pub const BYTES: usize = 12;
    /// The checksum at `csum_start + csum_offset` is to be completed.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum has been verified.
    pub const DATA_VALID: u8 = 2;
    /// An ordinary frame.
    pub const GSO_NONE: u8 = 0;
    /// A large TCP/IPv4 frame.
    pub const GSO_TCPV4: u8 = 1;
    /// A large UDP frame to be fragmented; never offered.
    pub const GSO_UDP: u8 = 3;
    /// A large TCP/IPv6 frame.
    pub const GSO_TCPV6: u8 = 4;
    /// A large frame of UDP datagrams; never offered.
    pub const GSO_UDP_L4: u8 = 5;
    /// The large frame has CWR set.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header from its bytes; `num_buffers` of a short header is 0.
    ///
    /// In two loads, of what was written in two: a load across both would wait for them to reach the cache.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Self {
        let (low, high) = bytes.split_first_chunk().expect("eight bytes and four");
        let low = u64::from_le_bytes(*low);
        let high = u32::from_le_bytes(*high.first_chunk().expect("four bytes"));
        Self {
            flags: low as u8,
            gso_type: (low >> 8) as u8,
            hdr_len: (low >> 16) as u16,
            gso_size: (low >> 32) as u16,
            csum_start: (low >> 48) as u16,
            csum_offset: high as u16,
            num_buffers: (high >> 16) as u16,
        }
    }

    /// The bytes of the header.
    #[must_use]
    #[inline]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let low = u64::from(self.flags)
            | u64::from(self.gso_type) << 8
            | u64::from(self.hdr_len) << 16
            | u64::from(self.gso_size) << 32
            | u64::from(self.csum_start) << 48;
        let high = u32::from(self.csum_offset) | u32::from(self.num_buffers) << 16;
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_survives_its_bytes(bytes: [u8; 12]) {
            prop_assert_eq!(VirtioNetHdr::parse(&bytes).to_bytes(), bytes);
        }
    }
}
