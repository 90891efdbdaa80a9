//! ICMP messages about flows: *too big* alone is for us.
//!
//! The client leg cuts its segments to what the message says. The guest is told too, as the path is that
//! of its other flows as well, and of this one once it is passed through again: the number quoted becomes
//! one that it takes (RFC 5927 §4.1), as the real one is acknowledged to it.

use crate::boundary::FromWire;
use crate::connection::Connection;
use crate::counters::Event;
use crate::engine::Engine;
use crate::key::{FlowKey, numbers, widened};
use crate::lists::List;
use crate::seq::SeqNum;
use crate::time::Time;
use holdfast_packet::checksum::{self, Sum};
use holdfast_packet::headers::{Layout, Network, Transport, protocol};

const ICMP: u8 = 1;

/// Smallest packets that a path is believed to carry: RFC 1191 §3 would allow 68, which only an
/// attacker asks for; RFC 8200 §5.
const LEAST_MTU: [u16; 2] = [552, 1280];

/// What a *too big* message says.
struct TooBig {
    key: FlowKey,
    seq: SeqNum,
    mtu: u16,
    /// Where the quoted sequence number is in the frame, and where the message begins.
    seq_at: usize,
    message_at: usize,
}

/// Takes a message about a packet of ours; everything else is passed.
///
/// Bound: the frame's length. Allocations: none.
pub(crate) fn handle(engine: &mut Engine, _now: Time, layout: &Layout, frame: &mut [u8]) -> FromWire {
    let Some(message) = parse(layout, frame) else { return FromWire::Pass };
    let Some(slot) = engine.table.find(&message.key) else { return FromWire::Pass };
    let Some((_, connection)) = engine.table.connection_mut(slot) else { return FromWire::Pass };
    if !connection.is_taken() {
        return FromWire::Pass;
    }
    let shrunk = connection.shrink(&message);
    if connection.leg.is_none() {
        // What is on its way is what the guest sent itself: it cuts that, and sends it again.
        if shrunk {
            engine.shared.count(Event::TooBig);
            engine.shared.lists.push(List::Changed, slot);
        }
        return FromWire::Pass;
    }
    if shrunk {
        message.quote(frame, connection.guest.acked);
        engine.shared.count(Event::TooBig);
        engine.shared.lists.push(List::ToClient, slot);
        engine.shared.lists.push(List::Changed, slot);
        return FromWire::Pass;
    }
    engine.shared.count(Event::TooBigRefused);
    FromWire::Taken
}

impl TooBig {
    /// Quotes another number, and updates the checksum (RFC 1624).
    fn quote(&self, frame: &mut [u8], seq: SeqNum) {
        let sum_at = self.message_at + 2;
        let word = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let mut sum = word(frame, sum_at);
        for (half, at) in [(seq.get() >> 16, self.seq_at), (seq.get(), self.seq_at + 2)] {
            let new = half as u16;
            sum = checksum::replaced(sum, word(frame, at), new);
            frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
        }
        frame[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

impl Connection {
    /// Makes segments smaller, if the packet quoted is one that may be on its way: between SND.UNA and
    /// SND.NXT of the client leg, or of the guest while there is no leg (RFC 5927 §4.1). Paths never become
    /// larger by this.
    fn shrink(&mut self, message: &TooBig) -> bool {
        let v6 = message.key.v6;
        let (first, next) = match &self.leg {
            Some(leg) => (leg.unacked(), leg.next()),
            None => (self.client.real, self.guest.next),
        };
        let in_flight = !message.seq.before(first) && message.seq.before(next);
        let mss = self.negotiated.payload(v6, message.mtu.max(LEAST_MTU[usize::from(v6)]));
        if !in_flight || mss >= self.mss {
            return false;
        }
        self.mss = mss;
        if let Some(leg) = &mut self.leg {
            leg.set_mss(mss);
        }
        true
    }
}

/// RFC 792 and RFC 1191 §4; RFC 4443 §3.2.
fn parse(layout: &Layout, frame: &[u8]) -> Option<TooBig> {
    let tags = numbers(&layout.link.tags);
    match (layout.network, layout.transport) {
        (Network::V4(ip), Transport::Opaque) if ip.protocol == ICMP && !ip.fragment => {
            let message = frame.get(ip.offset + ip.header_len..ip.offset + ip.total_len)?;
            let sound = Sum::ZERO.bytes(message).verifies();
            if message.get(..2)? != [3, 4] || !sound {
                return None;
            }
            let quoted = message.get(8..)?;
            let header = quoted.get(..20)?;
            let len = usize::from(header[0] & 0xf) * 4;
            let later_piece = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
            if header[0] >> 4 != 4 || len < 20 || header[9] != protocol::TCP || later_piece {
                return None;
            }
            let (guest, client) = (array(header, 12)?, array(header, 16)?);
            let mtu = u16::from_be_bytes(array(message, 6)?);
            let message_at = ip.offset + ip.header_len;
            let places = (message_at, message_at + 8 + len);
            found(false, (widened(&guest), widened(&client)), tags, quoted.get(len..)?, mtu, places)
        }
        (Network::V6(ip), Transport::Icmpv6 { offset }) if !ip.fragment => {
            let message = frame.get(offset..ip.offset + ip.total_len)?;
            let sum = Sum::ZERO.pseudo(&ip.source, &ip.destination, protocol::ICMPV6, message.len());
            if message.get(..2)? != [2, 0] || !sum.bytes(message).verifies() {
                return None;
            }
            let mtu = u32::from_be_bytes(array(message, 4)?).min(u32::from(u16::MAX)) as u16;
            let quoted = message.get(8..)?;
            // What we send has no extension headers.
            if quoted.first()? >> 4 != 6 || *quoted.get(6)? != protocol::TCP {
                return None;
            }
            let ends = (array(quoted, 8)?, array(quoted, 24)?);
            found(true, ends, tags, quoted.get(40..)?, mtu, (offset, offset + 48))
        }
        _ => None,
    }
}

fn found(
    v6: bool,
    (guest, client): ([u8; 16], [u8; 16]),
    tags: [u32; 2],
    tcp: &[u8],
    mtu: u16,
    (message_at, tcp_at): (usize, usize),
) -> Option<TooBig> {
    let guest_port = u16::from_be_bytes(array(tcp, 0)?);
    let client_port = u16::from_be_bytes(array(tcp, 2)?);
    let seq = SeqNum::new(u32::from_be_bytes(array(tcp, 4)?));
    let key = FlowKey { v6, guest, client, guest_port, client_port, tags };
    Some(TooBig { key, seq, mtu, seq_at: tcp_at + 4, message_at })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
