//! Feature bits of virtio and virtio-net that the device offers, and what was agreed.

/// Bits as the virtio and vhost-user specifications number them.
pub mod bits {
    /// The guest may leave checksums of what it sends to the device.
    pub const NET_CSUM: u64 = 1 << 0;
    /// The guest takes frames whose checksum is not complete.
    pub const NET_GUEST_CSUM: u64 = 1 << 1;
    /// The device tells the guest its MTU.
    pub const NET_MTU: u64 = 1 << 3;
    /// The guest takes TCP/IPv4 frames larger than the MTU.
    pub const NET_GUEST_TSO4: u64 = 1 << 7;
    /// The guest takes TCP/IPv6 frames larger than the MTU.
    pub const NET_GUEST_TSO6: u64 = 1 << 8;
    /// The guest takes large frames with ECN.
    pub const NET_GUEST_ECN: u64 = 1 << 9;
    /// The guest may send TCP/IPv4 frames larger than the MTU.
    pub const NET_HOST_TSO4: u64 = 1 << 11;
    /// The guest may send TCP/IPv6 frames larger than the MTU.
    pub const NET_HOST_TSO6: u64 = 1 << 12;
    /// The guest may send large frames with ECN.
    pub const NET_HOST_ECN: u64 = 1 << 13;
    /// A frame may take several receive buffers.
    pub const NET_MRG_RXBUF: u64 = 1 << 15;
    /// The guest announces itself after a move.
    pub const NET_GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several pairs of queues.
    pub const NET_MQ: u64 = 1 << 22;
    /// The device logs the pages it writes.
    pub const LOG_ALL: u64 = 1 << 26;
    /// Descriptors may be laid out at will (drivers older than virtio 1).
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are asked for by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Protocol features can be negotiated.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Virtio 1.
    pub const VERSION_1: u64 = 1 << 32;
    /// Rings have the packed layout.
    pub const RING_PACKED: u64 = 1 << 34;
}

/// Features that the guest's driver and the frontend agreed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// The features of these bits.
    #[must_use]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `bits` were agreed.
    #[must_use]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Frames of the guest may come without their checksum.
    #[must_use]
    pub const fn csum(self) -> bool {
        self.has(bits::NET_CSUM)
    }

    /// The guest takes frames without their checksum.
    #[must_use]
    pub const fn guest_csum(self) -> bool {
        self.has(bits::NET_GUEST_CSUM)
    }

    /// The guest takes large TCP/IPv4 frames.
    #[must_use]
    pub const fn guest_tso4(self) -> bool {
        self.has(bits::NET_GUEST_TSO4)
    }

    /// The guest takes large TCP/IPv6 frames.
    #[must_use]
    pub const fn guest_tso6(self) -> bool {
        self.has(bits::NET_GUEST_TSO6)
    }

    /// The guest takes large TCP frames with ECN.
    #[must_use]
    pub const fn guest_ecn(self) -> bool {
        self.has(bits::NET_GUEST_ECN)
    }

    /// The guest may send large TCP/IPv4 frames.
    #[must_use]
    pub const fn host_tso4(self) -> bool {
        self.has(bits::NET_HOST_TSO4)
    }

    /// The guest may send large TCP/IPv6 frames.
    #[must_use]
    pub const fn host_tso6(self) -> bool {
        self.has(bits::NET_HOST_TSO6)
    }

    /// A frame may take several receive buffers.
    #[must_use]
    pub const fn mrg_rxbuf(self) -> bool {
        self.has(bits::NET_MRG_RXBUF)
    }

    /// The guest announces itself after a move.
    #[must_use]
    pub const fn guest_announce(self) -> bool {
        self.has(bits::NET_GUEST_ANNOUNCE)
    }

    /// Bytes of the header before each frame: 10 for drivers that know neither virtio 1 nor merged
    /// buffers, 12 for all others.
    #[must_use]
    pub const fn header_len(self) -> usize {
        if self.has(bits::VERSION_1) || self.has(bits::NET_MRG_RXBUF) { 12 } else { 10 }
    }
}

/// What a network device offers.
#[must_use]
pub const fn offered(queue_pairs: u16, offloads: bool) -> u64 {
    let mut offer = bits::NET_MTU
        | bits::NET_MRG_RXBUF
        | bits::NET_GUEST_ANNOUNCE
        | bits::LOG_ALL
        | bits::ANY_LAYOUT
        | bits::INDIRECT_DESC
        | bits::EVENT_IDX
        | bits::PROTOCOL_FEATURES
        | bits::VERSION_1
        | bits::RING_PACKED;
    if offloads {
        offer |= bits::NET_CSUM
            | bits::NET_GUEST_CSUM
            | bits::NET_GUEST_TSO4
            | bits::NET_GUEST_TSO6
            | bits::NET_GUEST_ECN
            | bits::NET_HOST_TSO4
            | bits::NET_HOST_TSO6
            | bits::NET_HOST_ECN;
    }
    if queue_pairs > 1 {
        offer |= bits::NET_MQ;
    }
    offer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_drivers_get_the_short_header() {
        assert_eq!(Features::new(0).header_len(), 10);
        assert_eq!(Features::new(bits::NET_MRG_RXBUF).header_len(), 12);
        assert_eq!(Features::new(bits::VERSION_1).header_len(), 12);
    }

    #[test]
    fn a_device_without_offloads_offers_none_and_one_pair_offers_no_more() {
        let plain = Features::new(offered(1, false));
        assert!(!plain.csum() && !plain.guest_csum() && !plain.host_tso4() && !plain.guest_tso6());
        assert!(plain.mrg_rxbuf() && !plain.has(bits::NET_MQ));
        assert!(Features::new(offered(2, true)).has(bits::NET_MQ | bits::NET_HOST_TSO4));
    }
}
