//! What must hold for every frame of a flow, whatever the script expects.
//!
//! - **SP-1**, **SP-4**: the guest sees no ACK beyond what it sent, none that moves back, no window edge
//!   that moves left, no timestamp that the client did not send and none that moves back.
//! - **OC-1**, **SP-3**: the client sees committed bytes alone, each as the guest sent it, and no
//!   timestamp that is not committed.

use crate::frame::pattern;
use crate::script::{Side, TcpOption};
use crate::seen::SeenTcp;
use holdfast_packet::headers::flag;

/// What one flow has shown so far. Numbers are relative to the initial sequence numbers, and wrap.
#[derive(Clone, Debug)]
pub(crate) struct Witness {
    /// Initial sequence numbers of guest and client.
    pub(crate) start: (u32, u32),
    /// Window scales of guest and client, as the other side was told them.
    pub(crate) scale: (Option<u8>, Option<u8>),
    /// Next in-order byte that the guest has sent, with a right checksum.
    pub(crate) guest_end: u32,
    /// `guest_end` at each seal that is not committed, and at the last commit.
    committed_end: u32,
    /// Next in-order byte that the client has sent.
    pub(crate) client_end: u32,
    /// Next in-order byte that the client has got.
    pub(crate) client_got: u32,
    /// Next in-order byte that the guest has got.
    pub(crate) guest_got: u32,
    /// Timestamps that each side sent, and those of the guest that are committed.
    guest_stamps: Vec<u32>,
    committed_stamps: usize,
    client_stamps: Vec<u32>,
    /// Last timestamp that each side was shown.
    pub(crate) shown_to_guest: Option<u32>,
    pub(crate) shown_to_client: Option<u32>,
    /// Highest ACK and window edge that the guest was shown.
    acked: Option<u32>,
    edge: Option<u32>,
}

impl Witness {
    pub(crate) fn new(start: (u32, u32)) -> Self {
        Self {
            start,
            scale: (None, None),
            guest_end: 0,
            committed_end: 0,
            client_end: 0,
            client_got: 0,
            guest_got: 0,
            guest_stamps: Vec::new(),
            committed_stamps: 0,
            client_stamps: Vec::new(),
            shown_to_guest: None,
            shown_to_client: None,
            acked: None,
            edge: None,
        }
    }

    /// What the guest has said so far, to be committed later.
    pub(crate) fn mark(&self) -> (u32, usize) {
        (self.guest_end, self.guest_stamps.len())
    }

    /// What was marked is committed.
    pub(crate) fn commit(&mut self, mark: (u32, usize)) {
        (self.committed_end, self.committed_stamps) = mark;
    }

    /// The guest goes back to the last commit.
    pub(crate) fn roll_back(&mut self) {
        self.guest_end = self.committed_end;
        self.guest_stamps.truncate(self.committed_stamps);
        // The new primary cannot know what the lost one showed the guest that has gone with it.
        (self.acked, self.edge, self.shown_to_guest) = (None, None, None);
    }

    /// A side sends a segment with a right checksum.
    pub(crate) fn sent(&mut self, from: Side, segment: &SeenTcp) {
        let (start, end) = match from {
            Side::Guest => (self.start.0, &mut self.guest_end),
            Side::Client => (self.start.1, &mut self.client_end),
        };
        *end = advanced(*end, start, segment);
        let scale = segment.options.iter().find_map(|option| match option {
            TcpOption::Scale(shift) => Some(*shift),
            _ => None,
        });
        if let (Side::Guest, true) = (from, segment.flags & flag::SYN != 0) {
            self.scale.0 = scale;
        }
        if let Some((value, _)) = segment.timestamps() {
            let stamps = if from == Side::Guest { &mut self.guest_stamps } else { &mut self.client_stamps };
            if stamps.last() != Some(&value) {
                stamps.push(value);
            }
        }
    }

    /// A segment reaches a side.
    pub(crate) fn arrives(&mut self, to: Side, segment: &SeenTcp, unprotected: bool) -> Result<(), String> {
        match to {
            Side::Guest => self.arrives_at_guest(segment),
            Side::Client => self.arrives_at_client(segment, unprotected),
        }
    }

    fn arrives_at_guest(&mut self, segment: &SeenTcp) -> Result<(), String> {
        if segment.flags & flag::SYN != 0 {
            self.scale.1 = segment.options.iter().find_map(|option| match option {
                TcpOption::Scale(shift) => Some(*shift),
                _ => None,
            });
        }
        if let Some((value, _)) = segment.timestamps() {
            if !self.client_stamps.contains(&value) {
                return Err(format!("SP-4: the client never sent the timestamp {value}"));
            }
            if self.shown_to_guest.is_some_and(|last| before(value, last)) {
                return Err(format!("SP-4: the timestamp {value} moves back"));
            }
            self.shown_to_guest = Some(value);
        }
        if segment.flags & flag::ACK != 0 && segment.flags & flag::RST == 0 {
            let ack = segment.ack.wrapping_sub(self.start.0);
            if before(self.guest_end, ack) {
                return Err(format!("SP-4: ACK {ack} is beyond {}, all that the guest sent", self.guest_end));
            }
            if self.acked.is_some_and(|last| before(ack, last)) {
                return Err(format!("SP-4: ACK {ack} moves back"));
            }
            self.acked = Some(ack);
            let shift = match (segment.flags & flag::SYN, self.scale) {
                (0, (Some(_), Some(shift))) => u32::from(shift),
                _ => 0,
            };
            let edge = ack.wrapping_add(u32::from(segment.window) << shift);
            if self.edge.is_some_and(|last| before(edge, last)) {
                return Err(format!("SP-4: the window's right edge moves left to {edge}"));
            }
            self.edge = Some(edge);
        }
        self.guest_got = advanced(self.guest_got, self.start.1, segment);
        self.payload(Side::Client, segment)
    }

    fn arrives_at_client(&mut self, segment: &SeenTcp, unprotected: bool) -> Result<(), String> {
        let sequence = segment.sequence.wrapping_sub(self.start.0);
        let end = sequence.wrapping_add(segment.payload.len() as u32);
        let limit = if unprotected { self.guest_end } else { self.committed_end };
        if !segment.payload.is_empty() && before(limit, end) {
            return Err(format!("OC-1: bytes up to {end}, but only those up to {limit} are committed"));
        }
        if let Some((value, _)) = segment.timestamps() {
            let known = if unprotected { self.guest_stamps.len() } else { self.committed_stamps };
            if !self.guest_stamps[..known].contains(&value) {
                return Err(format!("OC-1: the timestamp {value} of the guest is not committed"));
            }
            self.shown_to_client = Some(value);
        }
        if segment.flags & flag::ACK != 0 && before(self.client_end, segment.ack.wrapping_sub(self.start.1)) {
            return Err("the client is sent an ACK beyond what it sent".to_owned());
        }
        self.client_got = advanced(self.client_got, self.start.0, segment);
        self.payload(Side::Guest, segment)
    }

    fn payload(&self, from: Side, segment: &SeenTcp) -> Result<(), String> {
        let start = if from == Side::Guest { self.start.0 } else { self.start.1 };
        let begin = segment.sequence.wrapping_sub(start);
        for (place, &byte) in (0u32..).zip(&segment.payload) {
            let place = begin.wrapping_add(place);
            if byte != pattern(from, place) {
                return Err(format!("SP-3: the byte at {place} is not what the {from} sent"));
            }
        }
        Ok(())
    }
}

/// Where the in-order bytes end with this segment.
fn advanced(end: u32, start: u32, segment: &SeenTcp) -> u32 {
    let first = segment.sequence.wrapping_sub(start);
    let syn = u32::from(segment.flags & flag::SYN != 0);
    let fin = u32::from(segment.flags & flag::FIN != 0);
    let last = first.wrapping_add(syn + segment.payload.len() as u32 + fin);
    if !before(end, first) && before(end, last) { last } else { end }
}

/// Whether `a` comes before `b`, both modulo 2^32.
pub(crate) const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
