//! Frames that the engine makes: headers after the pattern of what the side itself sent last.

use crate::key::{FlowKey, Side};
use crate::options;
use crate::segment::Segment;
use crate::seq::SeqNum;
use crate::window::Scaled;
use holdfast_packet::checksum::Sum;
use holdfast_packet::headers::{ETHERNET_LEN, Mac, Network, Tags, ethertype, flag, protocol};

/// ECT(0) in the IP header (RFC 3168 §5).
const ECT0: u8 = 0b10;

/// What the frames of one side of a flow have in common beyond the key: taken from its own frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) destination: Mac,
    pub(crate) source: Mac,
    pub(crate) tags: Tags,
    pub(crate) hops: u8,
    /// Differentiated services, without ECN.
    pub(crate) service: u8,
    /// Flow label of IPv6.
    pub(crate) label: u32,
    /// Don't-fragment of IPv4.
    pub(crate) whole: bool,
}

/// What one made segment says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields {
    pub(crate) seq: SeqNum,
    /// Sent with the ACK bit, if there is one.
    pub(crate) ack: Option<SeqNum>,
    /// Control bits beyond ACK.
    pub(crate) flags: u8,
    pub(crate) window: Scaled,
    pub(crate) timestamps: Option<(u32, u32)>,
    pub(crate) ect: bool,
    /// Identification of IPv4.
    pub(crate) identification: u16,
}

impl Pattern {
    /// Of no frame.
    pub(crate) fn none() -> Self {
        Self {
            destination: Mac([0; 6]),
            source: Mac([0; 6]),
            tags: Tags::default(),
            hops: 0,
            service: 0,
            label: 0,
            whole: false,
        }
    }

    /// The pattern of a segment.
    pub(crate) fn of(segment: &Segment) -> Self {
        let (hops, service, label, whole) = match segment.network {
            Network::V4(ip) => (ip.hops, ip.service & !3, 0, ip.dont_fragment),
            Network::V6(ip) => (ip.hops, (ip.flow >> 20) as u8 & !3, ip.flow & 0xf_ffff, true),
            Network::Arp { .. } | Network::Opaque => (64, 0, 0, true),
        };
        let link = segment.link;
        let (destination, source, tags) = (link.destination, link.source, link.tags);
        Self { destination, source, tags, hops, service, label, whole }
    }

    fn link_len(&self) -> usize {
        ETHERNET_LEN + 4 * self.tags.as_slice().len()
    }
}

/// Bytes of an IP and a TCP header without options.
pub(crate) const fn headers_len(v6: bool) -> usize {
    if v6 { 60 } else { 40 }
}

/// Length of the frame that [`write()`] makes.
pub(crate) fn frame_len(pattern: &Pattern, key: &FlowKey, fields: &Fields, payload: usize) -> usize {
    let options = if fields.timestamps.is_some() { 12 } else { 0 };
    pattern.link_len() + headers_len(key.v6) + options + payload
}

/// Length of the frame that [`write_with`] makes.
pub(crate) fn frame_len_with(pattern: &Pattern, key: &FlowKey, options: &[u8], payload: usize) -> usize {
    pattern.link_len() + headers_len(key.v6) + options.len() + payload
}

/// Writes a frame of `sender` into `out`, which has [`frame_len`] bytes; `fill` writes the payload.
///
/// Bound: `out.len()`; each byte is written and summed once. Allocations: none.
pub(crate) fn write(
    out: &mut [u8],
    pattern: &Pattern,
    key: &FlowKey,
    sender: Side,
    fields: &Fields,
    fill: impl FnOnce(&mut [u8]),
) {
    match fields.timestamps {
        Some((value, echo)) => {
            write_with(out, pattern, key, sender, fields, &options::timestamps(value, echo), fill);
        }
        None => write_with(out, pattern, key, sender, fields, &[], fill),
    }
}

/// Writes a frame with these options, whole words of them, and no others; `out` has [`frame_len_with`]
/// bytes.
///
/// Bound: `out.len()`; each byte is written and summed once. Allocations: none.
pub(crate) fn write_with(
    out: &mut [u8],
    pattern: &Pattern,
    key: &FlowKey,
    sender: Side,
    fields: &Fields,
    options: &[u8],
    fill: impl FnOnce(&mut [u8]),
) {
    let (link, packet) = out.split_at_mut(pattern.link_len());
    write_link(link, pattern, key.v6);
    let ip_len = if key.v6 { 40 } else { 20 };
    let tcp_len = packet.len() - ip_len;
    let (ip, tcp) = packet.split_at_mut(ip_len);
    let (source, destination) = key.addresses(sender);
    let ecn = if fields.ect { ECT0 } else { 0 };
    if key.v6 {
        let class = u32::from(pattern.service | ecn) << 20;
        ip[..4].copy_from_slice(&(6 << 28 | class | pattern.label).to_be_bytes());
        ip[4..6].copy_from_slice(&(tcp_len as u16).to_be_bytes());
        ip[6] = protocol::TCP;
        ip[7] = pattern.hops;
        ip[8..24].copy_from_slice(source);
        ip[24..].copy_from_slice(destination);
    } else {
        ip[0] = 0x45;
        ip[1] = pattern.service | ecn;
        ip[2..4].copy_from_slice(&((20 + tcp_len) as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&fields.identification.to_be_bytes());
        ip[6..8].copy_from_slice(&[if pattern.whole { 0x40 } else { 0 }, 0]);
        ip[8] = pattern.hops;
        ip[9] = protocol::TCP;
        ip[10..12].fill(0);
        ip[12..16].copy_from_slice(source);
        ip[16..].copy_from_slice(destination);
        let sum = Sum::ZERO.bytes(ip).finish();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let (header, payload) = tcp.split_at_mut(20 + options.len());
    write_tcp(header, key.ports(sender), fields, options);
    fill(payload);
    let sum = Sum::ZERO.pseudo(source, destination, protocol::TCP, tcp_len).bytes(tcp).finish();
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
}

fn write_link(link: &mut [u8], pattern: &Pattern, v6: bool) {
    link[..6].copy_from_slice(&pattern.destination.0);
    link[6..12].copy_from_slice(&pattern.source.0);
    let mut at = 12;
    for tag in pattern.tags.as_slice() {
        link[at..at + 4].copy_from_slice(tag);
        at += 4;
    }
    let ethertype = if v6 { ethertype::IPV6 } else { ethertype::IPV4 };
    link[at..at + 2].copy_from_slice(&ethertype.to_be_bytes());
}

fn write_tcp(header: &mut [u8], ports: (u16, u16), fields: &Fields, options: &[u8]) {
    header[..2].copy_from_slice(&ports.0.to_be_bytes());
    header[2..4].copy_from_slice(&ports.1.to_be_bytes());
    header[4..8].copy_from_slice(&fields.seq.get().to_be_bytes());
    header[8..12].copy_from_slice(&fields.ack.map_or(0, SeqNum::get).to_be_bytes());
    header[12] = (header.len() / 4) as u8 * 16;
    header[13] = fields.flags | if fields.ack.is_some() { flag::ACK } else { 0 };
    header[14..16].copy_from_slice(&fields.window.0.to_be_bytes());
    header[16..20].fill(0);
    header[20..].copy_from_slice(options);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Parsed;
    use holdfast_packet::sample;

    #[test]
    fn a_frame_made_after_a_pattern_equals_the_frame_that_gave_it() {
        for v6 in [false, true] {
            for tags in [vec![], vec![[0x81, 0, 0x60, 9]], vec![[0x88, 0xa8, 0, 1], [0x81, 0, 0, 2]]] {
                let mut sample = sample::Tcp::data(v6, (0..99).collect());
                sample.tags = tags;
                let bytes = sample.bytes();
                let Parsed::Tcp(segment) = Segment::parse(&bytes, bytes.len(), Side::Guest) else { panic!() };
                let fields = Fields {
                    seq: segment.seq,
                    ack: Some(segment.ack),
                    flags: 0,
                    window: Scaled(segment.window),
                    timestamps: segment.options.timestamps.map(|found| (found.value, found.echo)),
                    ect: false,
                    identification: sample.identification,
                };
                let pattern = Pattern::of(&segment);
                let mut made = vec![0xee; frame_len(&pattern, &segment.key, &fields, 99)];
                write(&mut made, &pattern, &segment.key, Side::Guest, &fields, |payload| {
                    payload.copy_from_slice(&sample.payload);
                });
                assert_eq!(made, bytes);
            }
        }
    }

    /// RFC 3168 §5: ECT is set where it is asked for, and the checksum covers it.
    #[test]
    fn a_segment_that_may_be_marked_says_so() {
        for v6 in [false, true] {
            let bytes = sample::Tcp::data(v6, vec![]).bytes();
            let Parsed::Tcp(segment) = Segment::parse(&bytes, bytes.len(), Side::Guest) else { panic!() };
            let mut fields = Fields {
                seq: segment.seq,
                ack: None,
                flags: flag::RST,
                window: Scaled(0),
                timestamps: None,
                ect: true,
                identification: 1,
            };
            let pattern = Pattern::of(&segment);
            let mut made = vec![0; frame_len(&pattern, &segment.key, &fields, 0)];
            write(&mut made, &pattern, &segment.key, Side::Guest, &fields, |_| {});
            let at = made.len() - 20;
            assert!(sample::adds_up(&made, at, v6, 6));
            assert_eq!(if v6 { made[15] >> 4 } else { made[15] }, 2);
            assert_eq!(made[at + 13], flag::RST);
            fields.ect = false;
            write(&mut made, &pattern, &segment.key, Side::Guest, &fields, |_| {});
            assert_eq!(if v6 { made[15] >> 4 } else { made[15] }, 0);
        }
    }
}
