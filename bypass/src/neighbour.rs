//! Where the peer's station is: asked by ARP (RFC 826) or neighbour discovery (RFC 4861), or given.
//!
//! Whoever is asked answers for its own address. What another station of the network claims can lead
//! datagrams astray, and no further: each is sealed.

use crate::frame::Addresses;
use holdfast_packet::checksum::Sum;
use holdfast_packet::headers::{ETHERNET_LEN, ethertype, protocol};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Between two questions while nobody answered.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// An answer is good for this long, then asked for anew while it is still used.
const GOOD_FOR: Duration = Duration::from_secs(20);
/// Answers that may wait for the wire.
const ANSWERS: usize = 4;

const BROADCAST: [u8; 6] = [0xff; 6];
const ARP_LEN: usize = 28;
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ND_LEN: usize = 32;
/// Hop limit of neighbour discovery: nothing that a router forwarded has it.
const ON_LINK: u8 = 255;

/// What is known of the peer's station.
#[derive(Debug)]
pub(crate) struct Neighbour {
    given: bool,
    mac: Option<[u8; 6]>,
    /// When the next question is due.
    ask_at: Instant,
    answers: Vec<Vec<u8>>,
}

impl Neighbour {
    pub(crate) fn new(given: Option<[u8; 6]>, now: Instant) -> Self {
        Self { given: given.is_some(), mac: given, ask_at: now, answers: Vec::new() }
    }

    pub(crate) const fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }

    /// When a question is due, if one ever is.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (!self.given).then_some(self.ask_at)
    }

    /// A frame that has to go out now.
    pub(crate) fn poll(&mut self, addresses: &Addresses, now: Instant) -> Option<Vec<u8>> {
        if let Some(answer) = self.answers.pop() {
            return Some(answer);
        }
        if self.given || now < self.ask_at {
            return None;
        }
        self.ask_at = now + ASK_AGAIN;
        Some(match (addresses.own, addresses.peer) {
            (IpAddr::V4(_), _) => arp(addresses, ARP_REQUEST, [0; 6], BROADCAST, addresses.peer),
            (_, IpAddr::V6(peer)) => solicitation(addresses, peer),
            _ => unreachable!("the settings were checked"),
        })
    }

    /// Looks at a frame; whether it was one of these protocols.
    pub(crate) fn handle(&mut self, addresses: &Addresses, frame: &[u8], now: Instant) -> bool {
        let number = frame.get(12..ETHERNET_LEN);
        let heard = match addresses.own {
            IpAddr::V4(own) if number == Some(&ethertype::ARP.to_be_bytes()[..]) => {
                heard_arp(&frame[ETHERNET_LEN..], own.octets())
            }
            IpAddr::V6(own) if number == Some(&ethertype::IPV6.to_be_bytes()[..]) => {
                match heard_nd(&frame[ETHERNET_LEN..], own) {
                    Some(heard) => Some(heard),
                    None => return false,
                }
            }
            _ => return false,
        };
        let Some(Heard { from, mac, asks }) = heard else { return true };
        if from == addresses.peer && !self.given && mac[0] & 1 == 0 {
            self.mac = Some(mac);
            self.ask_at = now + GOOD_FOR;
        }
        if asks && self.answers.len() < ANSWERS {
            self.answers.push(match addresses.own {
                IpAddr::V4(_) => arp(addresses, ARP_REPLY, mac, mac, from),
                IpAddr::V6(own) => advertisement(addresses, own, mac, from),
            });
        }
        true
    }
}

/// Somebody spoke of its own station.
struct Heard {
    from: IpAddr,
    mac: [u8; 6],
    /// Whether it asks for ours.
    asks: bool,
}

fn heard_arp(packet: &[u8], own: [u8; 4]) -> Option<Heard> {
    let packet = packet.first_chunk::<ARP_LEN>()?;
    let known = packet[..7] == [0, 1, 8, 0, 6, 4, 0];
    if !known || ![ARP_REQUEST, ARP_REPLY].contains(&packet[7]) || packet[24..28] != own {
        return None;
    }
    let from: [u8; 4] = packet[14..18].try_into().expect("four bytes");
    let mac = packet[8..14].try_into().expect("six bytes");
    Some(Heard { from: IpAddr::from(from), mac, asks: packet[7] == ARP_REQUEST })
}

fn heard_nd(packet: &[u8], own: Ipv6Addr) -> Option<Heard> {
    let (ip, message) = packet.split_first_chunk::<40>()?;
    let message = message.get(..usize::from(u16::from_be_bytes([ip[4], ip[5]])))?;
    if ip[6] != protocol::ICMPV6 || ip[7] != ON_LINK || message.len() < ND_LEN {
        return None;
    }
    let sum = Sum::ZERO.pseudo(&ip[8..24], &ip[24..40], protocol::ICMPV6, message.len()).bytes(message);
    let target: [u8; 16] = message[8..24].try_into().expect("sixteen bytes");
    let source: [u8; 16] = ip[8..24].try_into().expect("sixteen bytes");
    let mac = message[26..32].try_into().expect("six bytes");
    match (message[0], message[24]) {
        _ if !sum.verifies() || message[25] != 1 => None,
        (SOLICITATION, 1) if target == own.octets() => {
            Some(Heard { from: IpAddr::from(source), mac, asks: true })
        }
        (ADVERTISEMENT, 2) => Some(Heard { from: IpAddr::from(target), mac, asks: false }),
        _ => None,
    }
}

fn frame(to: [u8; 6], from: [u8; 6], number: u16, body: &[&[u8]]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &number.to_be_bytes()].concat();
    body.iter().for_each(|part| frame.extend_from_slice(part));
    frame.resize(frame.len().max(60), 0);
    frame
}

fn arp(addresses: &Addresses, what: u8, of: [u8; 6], to: [u8; 6], whom: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(own), IpAddr::V4(whom)) = (addresses.own, whom) else { unreachable!("ARP is of IPv4") };
    let body: [&[u8]; 6] =
        [&[0, 1, 8, 0, 6, 4, 0, what], &addresses.own_mac, &own.octets(), &of, &whom.octets(), &[]];
    frame(to, addresses.own_mac, ethertype::ARP, &body)
}

/// To the solicited-node group of `target`.
fn solicitation(addresses: &Addresses, target: Ipv6Addr) -> Vec<u8> {
    let IpAddr::V6(own) = addresses.own else { unreachable!("of IPv6") };
    let [.., x, y, z] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]));
    let to = [0x33, 0x33, 0xff, x, y, z];
    neighbour_message(addresses.own_mac, (own, group), to, (SOLICITATION, 0, 1), target)
}

fn advertisement(addresses: &Addresses, own: Ipv6Addr, to: [u8; 6], whom: IpAddr) -> Vec<u8> {
    let IpAddr::V6(whom) = whom else { unreachable!("of IPv6") };
    // Solicited, and it overrides what was known.
    neighbour_message(addresses.own_mac, (own, whom), to, (ADVERTISEMENT, 0x60, 2), own)
}

fn neighbour_message(
    own_mac: [u8; 6],
    (source, destination): (Ipv6Addr, Ipv6Addr),
    to: [u8; 6],
    (kind, flags, option): (u8, u8, u8),
    target: Ipv6Addr,
) -> Vec<u8> {
    let mut message = [0; ND_LEN];
    message[0] = kind;
    message[4] = flags;
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[option, 1]);
    message[26..].copy_from_slice(&own_mac);
    let (source, destination) = (source.octets(), destination.octets());
    let sum = Sum::ZERO.pseudo(&source, &destination, protocol::ICMPV6, ND_LEN).bytes(&message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    let ip = [0x60, 0, 0, 0, 0, ND_LEN as u8, protocol::ICMPV6, ON_LINK];
    frame(to, own_mac, ethertype::IPV6, &[&ip, &source, &destination, &message])
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test has to begin some time")]
mod tests {
    use super::*;

    fn sides(v6: bool) -> (Addresses, Addresses) {
        let (a, b): (IpAddr, IpAddr) = match v6 {
            true => ("fd00::1".parse().expect("an address"), "fd00::2".parse().expect("an address")),
            false => ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()),
        };
        let side = |last, own, peer| Addresses { own_mac: [2, 0, 0, 0, 0, last], own, peer, port: 7401 };
        (side(1, a, b), side(2, b, a))
    }

    #[test]
    fn a_question_is_answered_and_tells_both_where_the_other_is() {
        for v6 in [false, true] {
            let ((a, b), now) = (sides(v6), Instant::now());
            let (mut asking, mut asked) = (Neighbour::new(None, now), Neighbour::new(None, now));
            let question = asking.poll(&a, now).expect("a question is due");
            assert!(asking.poll(&a, now).is_none(), "one is enough");
            assert!(asked.handle(&b, &question, now));
            assert_eq!(asked.mac(), Some(a.own_mac));
            let answer = asked.poll(&b, now).expect("an answer");
            assert!(asking.handle(&a, &answer, now));
            assert_eq!(asking.mac(), Some(b.own_mac));
            assert!(asking.poll(&a, now).is_none() && asked.poll(&b, now).is_none());
            assert!(asking.poll(&a, now + GOOD_FOR).is_some(), "asked anew");
        }
    }

    #[test]
    fn questions_for_others_and_broken_ones_are_left_alone() {
        for v6 in [false, true] {
            let ((a, b), now) = (sides(v6), Instant::now());
            let question = Neighbour::new(None, now).poll(&a, now).expect("a question is due");
            let target = ETHERNET_LEN + if v6 { 40 + 23 } else { 27 };
            for at in [target, ETHERNET_LEN + 7] {
                let mut other = question.clone();
                other[at] ^= 0x40;
                let mut asked = Neighbour::new(Some([2; 6]), now);
                asked.handle(&b, &other, now);
                assert!(asked.poll(&b, now).is_none(), "byte {at}");
            }
            for len in 0..question.len() {
                let mut asked = Neighbour::new(None, now);
                asked.handle(&b, &question[..len], now);
            }
        }
    }
}
