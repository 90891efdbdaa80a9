//! What a frame of a guest says about who has which address: ARP and IPv6 neighbour discovery.

use super::{Layout, Mac, Network, Tags, Transport, array, word};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A network address of either family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// IPv4.
    V4([u8; 4]),
    /// IPv6.
    V6([u8; 16]),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::V4(bytes) => Ipv4Addr::from(bytes).fmt(f),
            Self::V6(bytes) => Ipv6Addr::from(bytes).fmt(f),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// *I have this address at this MAC in this VLAN.*
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where it is reached.
    pub mac: Mac,
    /// In which VLAN.
    pub tags: Tags,
    /// The address claimed.
    pub address: Address,
}

/// The claim that a frame makes, if it is ARP, a neighbour solicitation or a neighbour
/// advertisement. The source address of other packets is no claim: a guest that routes sends packets
/// from addresses that are not its own.
#[must_use]
pub fn claim(bytes: &[u8], layout: &Layout) -> Option<Claim> {
    let (mac, address) = match (layout.network, layout.transport) {
        (Network::Arp { offset }, _) => arp(bytes, offset)?,
        (Network::V6(ip), Transport::Icmpv6 { offset }) => {
            // RFC 4861 §7.1: anything from beyond the link has passed a router and is no claim.
            if ip.hops != 255 {
                return None;
            }
            match bytes.get(offset)? {
                135 => (layout.link.source, Address::V6(ip.source)),
                136 => (layout.link.source, Address::V6(array(bytes, offset + 8)?)),
                _ => return None,
            }
        }
        _ => return None,
    };
    let usable = match address {
        Address::V4(bytes) => {
            let ip = Ipv4Addr::from(bytes);
            !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback())
        }
        Address::V6(bytes) => {
            let ip = Ipv6Addr::from(bytes);
            !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback())
        }
    };
    (usable && mac == layout.link.source && mac.is_station()).then_some(Claim {
        mac,
        tags: layout.link.tags,
        address,
    })
}

/// Sender of an ARP request or reply for IPv4 over Ethernet (RFC 826).
fn arp(bytes: &[u8], offset: usize) -> Option<(Mac, Address)> {
    let usual = word(bytes, offset)? == 1
        && word(bytes, offset + 2)? == super::ethertype::IPV4
        && array(bytes, offset + 4)? == [6, 4]
        && matches!(word(bytes, offset + 6)?, 1 | 2);
    if !usual {
        return None;
    }
    Some((Mac(array(bytes, offset + 8)?), Address::V4(array(bytes, offset + 14)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn arp_request(sender: [u8; 6], address: [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![0xff; 6];
        bytes.extend(GUEST);
        bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        bytes.extend(sender);
        bytes.extend(address);
        bytes.extend([0; 6]);
        bytes.extend([10, 0, 0, 1]);
        bytes
    }

    fn claimed(bytes: &[u8]) -> Option<Claim> {
        claim(bytes, &Layout::parse(bytes).expect("a whole link header"))
    }

    #[test]
    fn an_arp_request_claims_its_sender() {
        let found = claimed(&arp_request(GUEST, [10, 0, 0, 7])).expect("a claim");
        assert_eq!((found.mac, found.address), (Mac(GUEST), Address::V4([10, 0, 0, 7])));
    }

    #[test]
    fn a_probe_and_a_foreign_sender_claim_nothing() {
        assert_eq!(claimed(&arp_request(GUEST, [0; 4])), None);
        assert_eq!(claimed(&arp_request([2; 6], [10, 0, 0, 7])), None);
    }

    #[test]
    fn an_advertisement_claims_its_target_only_from_the_link_itself() {
        for (hops, expected) in [(255, true), (254, false)] {
            let mut bytes = vec![0x33, 0x33, 0, 0, 0, 1];
            bytes.extend(GUEST);
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, hops]);
            bytes.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            bytes.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            bytes.extend([136, 0, 0, 0, 0x20, 0, 0, 0]);
            bytes.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
            let found = claimed(&bytes);
            assert_eq!(found.is_some(), expected);
            if let Some(found) = found {
                assert_eq!(found.address.to_string(), "2001:db8::9");
            }
        }
    }
}
