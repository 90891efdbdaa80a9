//! Ethernet, IPv4, IPv6 and UDP around a datagram.
//!
//! Untagged frames, no options, no fragments: both ends make them here. Over IPv4 the UDP checksum is
//! left out, as each datagram is sealed; over IPv6 it is there, as cards drop what lacks it.

use crate::counters::Counter;
use holdfast_packet::checksum::Sum;
use holdfast_packet::headers::{ETHERNET_LEN, ethertype, protocol};
use std::net::IpAddr;
use std::ops::Range;

/// Bytes of a frame beyond its MTU.
pub const FRAME_EXTRA: usize = ETHERNET_LEN;
/// QUIC needs datagrams of 1200 bytes, and IPv6 takes no less than this.
pub const MTU_MIN: u16 = 1280;

/// The packets of a handshake are as long as any, and have 14 bits for their length.
pub const MTU_MAX: u16 = 16_384;

const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const TTL: u8 = 64;

/// Two stations, and the UDP port on both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) own_mac: [u8; 6],
    pub(crate) own: IpAddr,
    pub(crate) peer: IpAddr,
    pub(crate) port: u16,
}

impl Addresses {
    /// Bytes of a frame before its datagram.
    pub(crate) const fn headers(&self) -> usize {
        ETHERNET_LEN + UDP + if self.own.is_ipv4() { IPV4 } else { IPV6 }
    }

    /// Longest datagram in a packet of `mtu` bytes.
    pub(crate) fn datagram_max(&self, mtu: u16) -> u16 {
        mtu - (self.headers() - ETHERNET_LEN) as u16
    }

    /// Writes the frame of `datagram` for the station `to`; `frame` is exactly as long as it becomes.
    ///
    /// Bound: one copy, and over IPv6 one checksum. Allocations: none. Its cost is in that of
    /// [`next_frame`](crate::Port::next_frame).
    pub(crate) fn write(&self, to: [u8; 6], datagram: &[u8], frame: &mut [u8]) {
        assert_eq!(frame.len(), self.headers() + datagram.len(), "the caller asked for the length");
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&self.own_mac);
        let (headers, payload) = frame.split_at_mut(self.headers());
        payload.copy_from_slice(datagram);
        let (link, network) = headers.split_at_mut(ETHERNET_LEN);
        let udp_len = (UDP + payload.len()) as u16;
        match (self.own, self.peer) {
            (IpAddr::V4(own), IpAddr::V4(peer)) => {
                link[12..].copy_from_slice(&ethertype::IPV4.to_be_bytes());
                let (ip, udp) = network.split_at_mut(IPV4);
                ip.fill(0);
                ip[0] = 0x45;
                ip[2..4].copy_from_slice(&(IPV4 as u16 + udp_len).to_be_bytes());
                ip[6] = 0x40; // not to be fragmented
                ip[8] = TTL;
                ip[9] = protocol::UDP;
                ip[12..16].copy_from_slice(&own.octets());
                ip[16..20].copy_from_slice(&peer.octets());
                let sum = Sum::ZERO.bytes(ip).finish();
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                self.write_udp(udp, udp_len);
            }
            (IpAddr::V6(own), IpAddr::V6(peer)) => {
                link[12..].copy_from_slice(&ethertype::IPV6.to_be_bytes());
                let (ip, udp) = network.split_at_mut(IPV6);
                ip.fill(0);
                ip[0] = 0x60;
                ip[4..6].copy_from_slice(&udp_len.to_be_bytes());
                ip[6] = protocol::UDP;
                ip[7] = TTL;
                ip[8..24].copy_from_slice(&own.octets());
                ip[24..40].copy_from_slice(&peer.octets());
                self.write_udp(udp, udp_len);
                let sum = Sum::ZERO
                    .pseudo(&own.octets(), &peer.octets(), protocol::UDP, udp_len.into())
                    .bytes(udp)
                    .bytes(payload);
                udp[6..].copy_from_slice(&sum.finish_nonzero().to_be_bytes());
            }
            _ => unreachable!("the settings were checked"),
        }
    }

    fn write_udp(&self, udp: &mut [u8], len: u16) {
        udp[..2].copy_from_slice(&self.port.to_be_bytes());
        udp[2..4].copy_from_slice(&self.port.to_be_bytes());
        udp[4..6].copy_from_slice(&len.to_be_bytes());
        udp[6..].fill(0);
    }

    /// Where the peer's datagram is in a frame whose Ethernet header names an IP packet; else what to count.
    ///
    /// Its cost is in that of [`handle_frame`](crate::Port::handle_frame).
    pub(crate) fn datagram(&self, frame: &[u8]) -> Result<Range<usize>, Counter> {
        let packet = frame.get(ETHERNET_LEN..).ok_or(Counter::Malformed)?;
        let udp = match (self.own, self.peer) {
            (IpAddr::V4(own), IpAddr::V4(peer)) => {
                let ip = packet.first_chunk::<IPV4>().ok_or(Counter::Malformed)?;
                let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff;
                if ip[0] != 0x45 || fragment != 0 || !Sum::ZERO.bytes(ip).verifies() {
                    return Err(Counter::Malformed);
                }
                if ip[9] != protocol::UDP || ip[12..16] != peer.octets() || ip[16..20] != own.octets() {
                    return Err(Counter::Foreign);
                }
                let len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
                packet.get(IPV4..len).ok_or(Counter::Malformed)?
            }
            (IpAddr::V6(own), IpAddr::V6(peer)) => {
                let ip = packet.first_chunk::<IPV6>().ok_or(Counter::Malformed)?;
                if ip[0] >> 4 != 6 {
                    return Err(Counter::Malformed);
                }
                if ip[6] != protocol::UDP || ip[8..24] != peer.octets() || ip[24..40] != own.octets() {
                    return Err(Counter::Foreign);
                }
                let len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
                packet.get(IPV6..IPV6 + len).ok_or(Counter::Malformed)?
            }
            _ => unreachable!("the settings were checked"),
        };
        let head = udp.first_chunk::<UDP>().ok_or(Counter::Malformed)?;
        let number = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        if number(0) != self.port || number(2) != self.port {
            return Err(Counter::Foreign);
        }
        if usize::from(number(4)) != udp.len() {
            return Err(Counter::Malformed);
        }
        Ok(self.headers()..self.headers() + udp.len() - UDP)
    }
}
