//! The parser of headers: any bytes.

use crate::Features;
use holdfast_conformance::seen::{Seen, SeenPacket};
use holdfast_packet::headers::{ETHERNET_LEN, Layout, MAX_HEADERS, Network, Transport, claim};

/// Parses the bytes as the head of a frame, and as that of a frame whose first bytes are plausible.
///
/// # Errors
/// An offset beyond what was looked at, or a disagreement with the other reader of frames.
pub fn run(data: &[u8]) -> Result<Features, String> {
    let mut features = vec![check(data)?];
    let mut plausible = vec![2, 0, 0, 0, 0, 9, 0x52, 0x54, 0, 1, 2, 3];
    if let [kind, rest @ ..] = data {
        let heads: [&[u8]; 6] = [
            &[0x08, 0x00, 0x45],
            &[0x86, 0xdd, 0x60],
            &[0x81, 0x00, 0, 7, 0x08, 0x00, 0x46],
            &[0x88, 0xa8, 0, 7, 0x81, 0x00, 0, 9, 0x86, 0xdd, 0x60],
            &[0x08, 0x06, 0, 1, 8, 0, 6, 4],
            &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 58, 255],
        ];
        plausible.extend(heads[usize::from(*kind) % heads.len()]);
        plausible.extend(rest);
        features.push(check(&plausible)?);
    }
    Ok(features)
}

/// Checks the layout, and says which kind it is.
fn check(bytes: &[u8]) -> Result<u16, String> {
    let Some(layout) = Layout::parse(bytes) else {
        return if bytes.len() < ETHERNET_LEN {
            Ok(0)
        } else {
            Err("a whole link header was refused".to_owned())
        };
    };
    let bound = bytes.len().min(MAX_HEADERS);
    let end = match layout.network {
        Network::V4(ip) => ip.offset + ip.header_len,
        Network::V6(ip) => ip.offset + ip.header_len,
        Network::Arp { offset } => offset,
        Network::Opaque => 0,
    };
    let end = end.max(match layout.transport {
        Transport::Tcp(tcp) => tcp.offset + tcp.header_len,
        Transport::Udp(udp) => udp.offset + 8,
        Transport::Icmpv6 { offset } => offset + 1,
        Transport::Opaque => 0,
    });
    if end > bound || layout.link.len() > bound {
        return Err(format!("the headers end at {end}, beyond {bound}"));
    }
    if claim(bytes, &layout).is_some_and(|claim| !claim.mac.is_station()) {
        return Err("a claim of no station".to_owned());
    }
    // What a strict reader takes for TCP, the parser takes for the same, if all is within its bounds.
    if let (Ok(Seen { packet: SeenPacket::Tcp(tcp), vlans, .. }), Transport::Tcp(found)) =
        (Seen::read(bytes), layout.transport)
    {
        let same = tcp.sequence == found.sequence
            && tcp.ack == found.acknowledgement
            && tcp.ports == (found.source_port, found.destination_port)
            && tcp.flags == found.flags
            && tcp.window == found.window
            && vlans.len() == layout.link.tags.as_slice().len();
        if !same {
            return Err(format!("{found:?} is read as {tcp:?}"));
        }
    }
    let network = match layout.network {
        Network::V4(ip) => 1 + u16::from(ip.fragment) + 2 * (ip.header_len / 4) as u16,
        Network::V6(ip) => 40 + u16::from(ip.fragment) + 2 * (ip.header_len / 8) as u16,
        Network::Arp { .. } => 126,
        Network::Opaque => 127,
    };
    let transport = match layout.transport {
        Transport::Tcp(tcp) => 1 + (tcp.header_len / 4) as u16,
        Transport::Udp(_) => 18,
        Transport::Icmpv6 { .. } => 19,
        Transport::Opaque => 0,
    };
    Ok(network << 6 | transport << 2 | layout.link.tags.as_slice().len() as u16)
}
