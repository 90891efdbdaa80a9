//! What is said to the network after a failover: this guest is here now.
//!
//! For each MAC a RARP frame, which moves it in the tables of switches; for each IPv4 address an ARP
//! announcement (RFC 5227 §3); for each IPv6 address an unsolicited neighbour advertisement (RFC 4861
//! §7.2.6). All of it is said several times, as any of it may be lost.
//!
//! Pure: no I/O, no clock, no threads.

use crate::checksum::Sum;
use crate::headers::{Address, Claim, Mac, Tags, ethertype, protocol};
use crate::identity::{Identity, Station};
use arrayvec::ArrayVec;
use std::time::Duration;

/// When it is said, counted from the first time.
pub const REPETITIONS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(400),
    Duration::from_millis(1000),
];

/// Longest frame of an announcement, in bytes.
pub const MAX_LEN: usize = 14 + 8 + 40 + 32;

/// Shortest frame of Ethernet without its checksum, in bytes.
const MIN_LEN: usize = 60;

/// One frame of an announcement.
pub type Announcement = ArrayVec<u8, MAX_LEN>;

/// All frames by which a port is announced.
pub fn announcements(identity: &Identity) -> impl Iterator<Item = Announcement> + '_ {
    let stations = identity.stations().iter().map(rarp);
    let addresses = identity.addresses().iter().map(|claim| match claim.address {
        Address::V4(address) => arp(claim, address),
        Address::V6(address) => advertisement(claim, address),
    });
    stations.chain(addresses)
}

fn frame(destination: Mac, source: Mac, tags: Tags, number: u16, body: &[&[u8]]) -> Announcement {
    let mut frame = Announcement::new();
    let number = number.to_be_bytes();
    let head: [&[u8]; 4] = [&destination.0, &source.0, tags.as_slice().as_flattened(), &number];
    for part in head.iter().chain(body) {
        frame.try_extend_from_slice(part).expect("announcements have a fixed length");
    }
    while frame.len() < MIN_LEN {
        frame.push(0);
    }
    frame
}

/// RARP: whose address is this MAC's? (RFC 903; nobody answers, switches learn.)
fn rarp(station: &Station) -> Announcement {
    let mac = station.mac.0;
    let body: [&[u8]; 5] = [&[0, 1, 8, 0, 6, 4, 0, 3], &mac, &[0; 4], &mac, &[0; 4]];
    frame(Mac::BROADCAST, station.mac, station.tags, ethertype::RARP, &body)
}

/// ARP: a request for the sender's own address.
fn arp(claim: &Claim, address: [u8; 4]) -> Announcement {
    let body: [&[u8]; 5] = [&[0, 1, 8, 0, 6, 4, 0, 1], &claim.mac.0, &address, &[0; 6], &address];
    frame(Mac::BROADCAST, claim.mac, claim.tags, ethertype::ARP, &body)
}

/// Neighbour advertisement to all nodes, with the override flag and the link-layer address.
fn advertisement(claim: &Claim, address: [u8; 16]) -> Announcement {
    const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let mut message = [0u8; 32];
    message[0] = 136;
    message[4] = 0x20;
    message[8..24].copy_from_slice(&address);
    message[24..26].copy_from_slice(&[2, 1]);
    message[26..32].copy_from_slice(&claim.mac.0);
    let sum = Sum::ZERO.pseudo(&address, &ALL_NODES, protocol::ICMPV6, message.len()).bytes(&message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    let body: [&[u8]; 4] = [&[0x60, 0, 0, 0, 0, 32, protocol::ICMPV6, 255], &address, &ALL_NODES, &message];
    frame(ALL_NODES_MAC, claim.mac, claim.tags, ethertype::IPV6, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::{Layout, claim};
    use crate::sample;

    #[test]
    fn every_mac_and_every_address_is_announced_in_its_vlan() {
        let mut identity = Identity::default();
        let mut tags = Tags::default();
        assert!(tags.push([0x81, 0, 0, 5]));
        let mac = Mac(sample::GUEST);
        for tags in [Tags::default(), tags] {
            identity.sent_from(mac, tags);
            identity.claimed(Claim { mac, tags, address: Address::V4([10, 0, 0, 2]) });
            identity.claimed(Claim { mac, tags, address: Address::V6([0xfd; 16]) });
        }
        let frames: Vec<_> = announcements(&identity).collect();
        assert_eq!(frames.len(), 6);
        let mut found = Vec::new();
        for frame in &frames {
            let layout = Layout::parse(frame).expect("a whole header");
            assert_eq!(layout.link.source, mac);
            assert!(layout.link.destination.is_group());
            assert!(frame.len() >= MIN_LEN);
            match layout.link.ethertype {
                ethertype::RARP => assert_eq!(frame[layout.link.len()..][..8], [0, 1, 8, 0, 6, 4, 0, 3]),
                _ => found.push(claim(frame, &layout).expect("what is announced is a claim")),
            }
            if layout.link.ethertype == ethertype::IPV6 {
                let transport = layout.link.len() + 40;
                assert!(sample::adds_up(frame, transport, true, protocol::ICMPV6));
            }
        }
        assert_eq!(found, identity.addresses());
    }
}
