//! Which flow a segment belongs to.
//!
//! The key has the addresses, the ports and the VLAN tags; the port of the machine is part of it in
//! that each port has an engine of its own. Priorities within the tags may differ from segment to
//! segment and are no part of it.

use holdfast_packet::headers::{Network, Tags, Tcp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who sent a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Guest,
    Client,
}

/// An address of either family; IPv4 in the first four bytes, the others zero.
pub(crate) type RawAddress = [u8; 16];

/// Key of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowKey {
    pub(crate) v6: bool,
    pub(crate) guest: RawAddress,
    pub(crate) client: RawAddress,
    pub(crate) guest_port: u16,
    pub(crate) client_port: u16,
    /// Protocol and number of each tag, outermost first; zero for none.
    pub(crate) tags: [u32; 2],
}

impl FlowKey {
    /// Key of a TCP segment that `sender` sent; none when it is not IP.
    pub(crate) fn of(tags: &Tags, network: &Network, tcp: &Tcp, sender: Side) -> Option<Self> {
        let (v6, source, destination) = match network {
            Network::V4(ip) => (false, widened(&ip.source), widened(&ip.destination)),
            Network::V6(ip) => (true, ip.source, ip.destination),
            Network::Arp { .. } | Network::Opaque => return None,
        };
        let (guest, client, guest_port, client_port) = match sender {
            Side::Guest => (source, destination, tcp.source_port, tcp.destination_port),
            Side::Client => (destination, source, tcp.destination_port, tcp.source_port),
        };
        Some(Self { v6, guest, client, guest_port, client_port, tags: numbers(tags) })
    }

    /// Addresses of sender and receiver, as they are in the header.
    pub(crate) fn addresses(&self, sender: Side) -> (&[u8], &[u8]) {
        let len = if self.v6 { 16 } else { 4 };
        match sender {
            Side::Guest => (&self.guest[..len], &self.client[..len]),
            Side::Client => (&self.client[..len], &self.guest[..len]),
        }
    }

    /// Ports of sender and receiver.
    pub(crate) const fn ports(&self, sender: Side) -> (u16, u16) {
        match sender {
            Side::Guest => (self.guest_port, self.client_port),
            Side::Client => (self.client_port, self.guest_port),
        }
    }

    /// The guest's address.
    pub(crate) fn guest_address(&self) -> IpAddr {
        readable(&self.guest, self.v6)
    }

    /// The client's address.
    pub(crate) fn client_address(&self) -> IpAddr {
        readable(&self.client, self.v6)
    }

    /// Its hash under a key that the world does not know, so that nobody can aim at one bucket (RB-1):
    /// SipHash-1-3. Cost: about 20 ns.
    pub(crate) fn hash(&self, seed: u64) -> u64 {
        let long =
            |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
        let ends = u64::from(self.guest_port) << 16 | u64::from(self.client_port) | u64::from(self.v6) << 32;
        let mut sip = Sip::new(seed);
        sip.add(ends);
        sip.add(u64::from(self.tags[0]) << 32 | u64::from(self.tags[1]));
        sip.add(long(&self.guest[..8]));
        sip.add(long(&self.client[..8]));
        if self.v6 {
            sip.add(long(&self.guest[8..]));
            sip.add(long(&self.client[8..]));
        }
        sip.finish()
    }
}

/// Protocol and number of each tag, without its priority.
pub(crate) fn numbers(tags: &Tags) -> [u32; 2] {
    let mut numbers = [0; 2];
    for (number, tag) in numbers.iter_mut().zip(tags.as_slice()) {
        *number = u32::from_be_bytes(*tag) & 0xffff_0fff;
    }
    numbers
}

/// An IPv4 address in the form of a key.
pub(crate) fn widened(address: &[u8; 4]) -> RawAddress {
    let mut wide = [0; 16];
    wide[..4].copy_from_slice(address);
    wide
}

fn readable(address: &RawAddress, v6: bool) -> IpAddr {
    match v6 {
        true => Ipv6Addr::from(*address).into(),
        false => Ipv4Addr::new(address[0], address[1], address[2], address[3]).into(),
    }
}

/// SipHash with one round a word and three at the end.
struct Sip([u64; 4]);

impl Sip {
    fn new(seed: u64) -> Self {
        let second = seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15;
        Self([
            seed ^ 0x736f_6d65_7073_6575,
            second ^ 0x646f_7261_6e64_6f6d,
            seed ^ 0x6c79_6765_6e65_7261,
            second ^ 0x7465_6462_7974_6573,
        ])
    }

    fn round(&mut self) {
        let [a, b, c, d] = &mut self.0;
        *a = a.wrapping_add(*b);
        *b = b.rotate_left(13) ^ *a;
        *a = a.rotate_left(32);
        *c = c.wrapping_add(*d);
        *d = d.rotate_left(16) ^ *c;
        *a = a.wrapping_add(*d);
        *d = d.rotate_left(21) ^ *a;
        *c = c.wrapping_add(*b);
        *b = b.rotate_left(17) ^ *c;
        *c = c.rotate_left(32);
    }

    fn add(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }

    fn finish(mut self) -> u64 {
        self.0[2] ^= 0xff;
        (0..3).for_each(|_| self.round());
        self.0.iter().fold(0, |sum, word| sum ^ word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_packet::headers::{Layout, Transport};
    use holdfast_packet::sample;

    fn key(bytes: &[u8], sender: Side) -> FlowKey {
        let layout = Layout::parse(bytes).expect("a whole header");
        let Transport::Tcp(tcp) = layout.transport else { panic!("{layout:?}") };
        FlowKey::of(&layout.link.tags, &layout.network, &tcp, sender).expect("an IP packet")
    }

    #[test]
    fn both_directions_of_a_flow_have_one_key_and_vlans_keep_flows_apart() {
        for v6 in [false, true] {
            let there = sample::Tcp::data(v6, vec![1]);
            let ours = key(&there.bytes(), Side::Guest);
            let mut back = there.bytes();
            let at = there.transport();
            let len = if v6 { 16 } else { 4 };
            let (sources, destinations) = back[at - 2 * len..at].split_at_mut(len);
            sources.swap_with_slice(destinations);
            back[at..at + 4].rotate_left(2);
            assert_eq!(key(&back, Side::Client), ours);
            let mut tagged = there.clone();
            tagged.tags = vec![[0x81, 0, 0x20, 7]];
            let other = key(&tagged.bytes(), Side::Guest);
            assert_ne!(other, ours);
            tagged.tags = vec![[0x81, 0, 0xe0, 7]];
            assert_eq!(key(&tagged.bytes(), Side::Guest), other, "the priority is no part of it");
        }
    }

    #[test]
    fn hashes_depend_on_the_seed_and_spread_ports() {
        let mut counts = [0; 8];
        let base = FlowKey { guest_port: 80, ..FlowKey::default() };
        assert_ne!(base.hash(1), base.hash(2));
        for client_port in 0..8000 {
            counts[FlowKey { client_port, ..base }.hash(7) as usize % 8] += 1;
        }
        assert!(counts.iter().all(|&flows| (800..1200).contains(&flows)), "{counts:?}");
    }
}
