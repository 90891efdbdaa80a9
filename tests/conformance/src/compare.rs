//! What was expected beside what came.

use crate::flow::Flow;
use crate::parse::flags_text;
use crate::script::{Body, Mark, Packet, Segment, Side, TcpOption};
use crate::seen::{Seen, SeenPacket, SeenTcp};

/// What differs, one line a difference; nothing when all that was said holds.
pub(crate) fn differences(expected: &Packet, seen: &Seen, flow: &Flow, to: Side) -> Vec<String> {
    match (&expected.body, &seen.packet) {
        (Body::Segment(segment), SeenPacket::Tcp(tcp)) => {
            let mut found = of_segment(segment, tcp, flow, to);
            found.extend(of_marks(&expected.marks, tcp));
            found
        }
        (Body::Udp(len), SeenPacket::Udp(_, got)) => of_numbers("payload", *len, *got),
        // A frame without network header is judged by its length, a fragment by being one.
        (Body::Opaque(len), SeenPacket::Opaque(got)) => of_numbers("bytes", *len, *got),
        (Body::Segment(_), SeenPacket::Opaque(_)) if expected.marks.contains(&Mark::Fragment) => Vec::new(),
        (Body::TooBig { mtu, sequence }, SeenPacket::TooBig { mtu: got, sequence: quoted, .. }) => {
            let mut found = of_numbers("mtu", *mtu, *got);
            let quoted = quoted.wrapping_sub(flow.witness.start.0);
            if let Some(sequence) = sequence {
                found.extend(of_numbers("quoted sequence number", *sequence, quoted));
            }
            found
        }
        _ => vec!["another kind of packet".to_owned()],
    }
}

fn of_numbers<T: PartialEq + std::fmt::Display>(what: &str, expected: T, got: T) -> Vec<String> {
    if expected == got { Vec::new() } else { vec![format!("{what}: expected {expected}, got {got}")] }
}

fn of_segment(segment: &Segment, tcp: &SeenTcp, flow: &Flow, to: Side) -> Vec<String> {
    let (own, peer) = flow.starts(to.other());
    let mut found = Vec::new();
    if !segment.any_flags {
        found.extend(of_numbers("flags", flags_text(segment.flags), flags_text(tcp.flags)));
    }
    if let Some(sequence) = segment.sequence {
        found.extend(of_numbers("sequence number", sequence, tcp.sequence.wrapping_sub(own)));
        found.extend(of_numbers("payload", segment.len, tcp.payload.len() as u32));
    }
    if let Some(ack) = segment.ack {
        found.extend(of_numbers("ack", ack, tcp.ack.wrapping_sub(peer)));
    }
    if let Some(bound) = segment.window.filter(|bound| !bound.admits(u64::from(tcp.window))) {
        found.push(format!("win: expected {bound}, got {}", tcp.window));
    }
    if let Some(urgent) = segment.urgent {
        found.extend(of_numbers("urg", urgent, tcp.urgent));
    }
    if let Some(options) = &segment.options {
        let expected: Vec<&TcpOption> =
            options.iter().filter(|option| !matches!(option, TcpOption::Nop | TcpOption::End)).collect();
        let alike = expected.len() == tcp.options.len()
            && expected.iter().zip(&tcp.options).all(|(expected, got)| option_alike(expected, got, peer));
        if !alike {
            let list: Vec<String> = expected.iter().map(|option| option_text(option, 0)).collect();
            found.push(format!("options: expected <{}>, got <{}>", list.join(", "), options_text(tcp, peer)));
        }
    }
    found
}

fn of_marks(marks: &[Mark], tcp: &SeenTcp) -> Vec<String> {
    let mut found = Vec::new();
    for mark in marks {
        match mark {
            Mark::Ect0 => found.extend(of_numbers("ECN bits", 2, tcp.ecn)),
            Mark::Ce => found.extend(of_numbers("ECN bits", 3, tcp.ecn)),
            Mark::NotEct => found.extend(of_numbers("ECN bits", 0, tcp.ecn)),
            Mark::Extensions(count) => found.extend(of_numbers("extension headers", *count, tcp.extensions)),
            Mark::AccurateEcn => found.extend(of_numbers("AE", true, tcp.accurate_ecn)),
            Mark::BadChecksum
            | Mark::Offload
            | Mark::Other
            | Mark::Fragment
            | Mark::Elsewhere
            | Mark::Padded(_) => {}
        }
    }
    found
}

fn option_alike(expected: &TcpOption, got: &TcpOption, peer: u32) -> bool {
    match (expected, got) {
        (TcpOption::Timestamps(value, echo), TcpOption::Timestamps(got_value, got_echo)) => {
            value.is_none_or(|value| Some(value) == *got_value)
                && echo.is_none_or(|echo| Some(echo) == *got_echo)
        }
        (TcpOption::Sack(blocks), TcpOption::Sack(got)) => {
            let relative = |(left, right): &(u32, u32)| (left.wrapping_sub(peer), right.wrapping_sub(peer));
            got.iter().map(relative).eq(blocks.iter().copied())
        }
        _ => expected == got,
    }
}

/// A frame in the words of a script.
#[must_use]
pub fn described(seen: &Seen, flow: &Flow, to: Side) -> String {
    let tcp = match &seen.packet {
        SeenPacket::Tcp(tcp) => tcp,
        SeenPacket::Udp(_, len) => return format!("udp {len}"),
        SeenPacket::TooBig { mtu, sequence, .. } => {
            return format!("too-big mtu {mtu} quoting {}", sequence.wrapping_sub(flow.witness.start.0));
        }
        SeenPacket::Opaque(len) => return format!("frame {len}"),
    };
    let (own, peer) = flow.starts(to.other());
    let begin = tcp.sequence.wrapping_sub(own);
    let len = tcp.payload.len() as u32;
    let mut text = format!("{} {begin}", flags_text(tcp.flags));
    if len > 0 {
        text += &format!(":{}({len})", begin.wrapping_add(len));
    }
    text += &format!(" ack {} win {}", tcp.ack.wrapping_sub(peer), tcp.window);
    if !tcp.options.is_empty() {
        text += &format!(" <{}>", options_text(tcp, peer));
    }
    if tcp.ecn != 0 {
        text = format!("[ecn {}] {text}", tcp.ecn);
    }
    text
}

fn options_text(tcp: &SeenTcp, peer: u32) -> String {
    let texts: Vec<String> = tcp.options.iter().map(|option| option_text(option, peer)).collect();
    texts.join(", ")
}

fn option_text(option: &TcpOption, peer: u32) -> String {
    let number = |number: &Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    match option {
        TcpOption::Nop => "nop".to_owned(),
        TcpOption::End => "eol".to_owned(),
        TcpOption::Mss(mss) => format!("mss {mss}"),
        TcpOption::Scale(shift) => format!("ws {shift}"),
        TcpOption::SackPermitted => "sackOK".to_owned(),
        TcpOption::Sack(blocks) => blocks.iter().fold("sack".to_owned(), |text, (left, right)| {
            format!("{text} {}:{}", left.wrapping_sub(peer), right.wrapping_sub(peer))
        }),
        TcpOption::Timestamps(value, echo) => format!("ts {} {}", number(value), number(echo)),
        TcpOption::Other(kind, len) => format!("kind {kind} {len}"),
    }
}
