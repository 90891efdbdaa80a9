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

/// What the guest had said and heard at a seal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    end: u32,
    ahead: usize,
    top: u32,
    got: u32,
    ack: u32,
    recent: Option<u32>,
    stamps: usize,
}

/// What one flow has shown so far. Numbers are relative to the initial sequence numbers, and wrap.
#[derive(Clone, Debug)]
pub struct Witness {
    /// Frames were sent in this flow whose effect nobody can know: nothing is judged any more.
    pub tainted: bool,
    /// Initial sequence numbers of guest and client.
    pub start: (u32, u32),
    /// Window scales of guest and client, as the other side was told them.
    pub scale: (Option<u8>, Option<u8>),
    /// Next in-order byte that the guest has sent, with a right checksum.
    pub guest_end: u32,
    /// Segments that the guest sent beyond a gap: their first byte, and the one behind the last.
    guest_ahead: Vec<(u32, u32)>,
    /// The highest byte that the guest has sent, beyond gaps.
    guest_top: u32,
    /// How it stood at the last commit.
    committed: Mark,
    /// The number behind the guest's FIN.
    fin: Option<u32>,
    /// Whether the guest has sent a FIN.
    pub guest_closed: bool,
    /// The same for the client.
    pub client_closed: bool,
    /// The client's next byte, behind all that it has sent.
    pub client_end: u32,
    /// The right edge of the guest's window.
    pub guest_right: u32,
    /// What each side has acknowledged itself.
    guest_ack: u32,
    client_ack: u32,
    /// Next in-order byte that the client has got.
    pub client_got: u32,
    /// Next in-order byte that the guest has got.
    pub guest_got: u32,
    /// Timestamps that each side sent, and those of the guest that are committed.
    guest_stamps: Vec<u32>,
    client_stamps: Vec<u32>,
    /// The guest's TS.Recent: the last timestamp that it was shown and keeps.
    pub shown_to_guest: Option<u32>,
    /// Last timestamp that the client was shown.
    pub shown_to_client: Option<u32>,
    /// Highest ACK and window edge that the guest was shown.
    pub acked: Option<u32>,
    /// The right edge of the window that the guest was shown.
    pub edge: Option<u32>,
}

impl Witness {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(start: (u32, u32)) -> Self {
        Self {
            tainted: false,
            start,
            scale: (None, None),
            guest_end: 0,
            guest_ahead: Vec::new(),
            guest_top: 0,
            committed: Mark::default(),
            fin: None,
            guest_closed: false,
            client_closed: false,
            client_end: 0,
            guest_right: 0,
            guest_ack: 0,
            client_ack: 0,
            client_got: 0,
            guest_got: 0,
            guest_stamps: Vec::new(),
            client_stamps: Vec::new(),
            shown_to_guest: None,
            shown_to_client: None,
            acked: None,
            edge: None,
        }
    }

    /// What the guest has said so far, to be committed later.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            end: self.guest_end,
            ahead: self.guest_ahead.len(),
            top: self.guest_top,
            got: self.guest_got,
            ack: self.guest_ack,
            recent: self.shown_to_guest,
            stamps: self.guest_stamps.len(),
        }
    }

    /// What was marked is committed.
    pub fn commit(&mut self, mark: Mark) {
        self.committed = mark;
    }

    /// Whether anything of the flow was ever committed.
    #[must_use]
    pub const fn is_committed(&self) -> bool {
        self.committed.end != 0
    }

    /// The guest goes back to the last commit.
    pub fn roll_back(&mut self) {
        let Mark { end, ahead, top, got, ack, recent, stamps } = self.committed;
        (self.guest_end, self.guest_top, self.guest_got, self.guest_ack) = (end, top, got, ack);
        self.shown_to_guest = recent;
        self.guest_stamps.truncate(stamps);
        self.guest_ahead.truncate(ahead);
        // The new primary cannot know what the lost one showed the guest that has gone with it.
        (self.acked, self.edge) = (None, None);
    }

    /// The guest sends a segment that nobody will take, up to this byte: it has sent it all the same.
    pub fn tried(&mut self, end: u32) {
        self.guest_top = if before(self.guest_top, end) { end } else { self.guest_top };
    }

    /// A side sends a segment with a right checksum.
    pub fn sent(&mut self, from: Side, segment: &SeenTcp) {
        let start = if from == Side::Guest { self.start.0 } else { self.start.1 };
        let top = if from == Side::Guest { &mut self.guest_top } else { &mut self.client_end };
        let end = last(start, segment);
        *top = if before(*top, end) { end } else { *top };
        let ack = segment.ack.wrapping_sub(self.start.0);
        if from == Side::Guest {
            if segment.flags & flag::FIN != 0 {
                self.fin = Some(end);
            }
            let first = segment.sequence.wrapping_sub(start);
            if before(self.guest_end, first) {
                self.guest_ahead.push((first, end));
            }
            self.guest_end = advanced(self.guest_end, start, segment);
            if segment.flags & flag::ACK != 0 {
                self.guest_ack = segment.ack.wrapping_sub(self.start.1);
                let shift = match (segment.flags & flag::SYN, self.scale) {
                    (0, (Some(shift), Some(_))) => u32::from(shift.min(14)),
                    _ => 0,
                };
                let right = self.guest_ack.wrapping_add(u32::from(segment.window) << shift);
                self.guest_right = if before(self.guest_right, right) { right } else { self.guest_right };
            }
        } else if segment.flags & flag::ACK != 0 && before(self.client_ack, ack) {
            self.client_ack = ack;
        }
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

    /// A segment reaches a side. `unprotected`: nothing waits for a commit.
    ///
    /// # Errors
    /// The invariant that it breaks; whose fault: the engine's.
    pub fn arrives(&mut self, to: Side, segment: &SeenTcp, unprotected: bool) -> Result<(), String> {
        if self.tainted {
            return Ok(());
        }
        match to {
            Side::Guest => self.arrives_at_guest(segment),
            Side::Client => self.arrives_at_client(segment, unprotected),
        }
    }

    /// Where the first gap begins in what the guest has sent, in whatever order.
    fn guest_whole(&self) -> u32 {
        let mut whole = self.guest_end;
        let reaches = |whole| move |&&(first, end): &&(u32, u32)| !before(whole, first) && before(whole, end);
        while let Some(&(_, end)) = self.guest_ahead.iter().find(reaches(whole)) {
            whole = end;
        }
        whole
    }

    fn arrives_at_guest(&mut self, segment: &SeenTcp) -> Result<(), String> {
        if segment.flags & flag::SYN != 0 {
            self.scale.1 = segment.options.iter().find_map(|option| match option {
                TcpOption::Scale(shift) => Some(*shift),
                _ => None,
            });
        }
        let sequence = segment.sequence.wrapping_sub(self.start.1);
        if let Some((value, _)) = segment.timestamps() {
            if !self.client_stamps.contains(&value) {
                return Err(format!("SP-4: the client never sent the timestamp {value}"));
            }
            if self.shown_to_guest.is_some_and(|last| before(value, last)) {
                return Err(format!("SP-4: the timestamp {value} moves back"));
            }
            // RFC 7323 §4.3: what runs ahead of the guest's last ACK does not move its TS.Recent.
            if self.shown_to_guest.is_none() || !before(self.guest_ack, sequence) {
                self.shown_to_guest = Some(value);
            }
        }
        if segment.flags & flag::ACK != 0 && segment.flags & flag::RST == 0 {
            let ack = segment.ack.wrapping_sub(self.start.0);
            if before(self.guest_top, ack) {
                return Err(format!("SP-4: ACK {ack} is beyond {}, all that the guest sent", self.guest_top));
            }
            let whole = self.guest_whole();
            let known = if before(whole, self.client_ack) { self.client_ack } else { whole };
            if before(known, ack) {
                return Err(format!("SP-1: ACK {ack} covers more than {known}, where a gap begins"));
            }
            if self.acked.is_some_and(|last| before(ack, last)) {
                return Err(format!("SP-4: ACK {ack} moves back"));
            }
            self.acked = Some(ack);
            let shift = match (segment.flags & flag::SYN, self.scale) {
                (0, (Some(_), Some(shift))) => u32::from(shift.min(14)),
                _ => 0,
            };
            let edge = ack.wrapping_add(u32::from(segment.window) << shift);
            // Behind its FIN the guest has nothing to send into a window.
            let over = self.fin == Some(ack);
            if !over && self.edge.is_some_and(|last| before(edge, last)) {
                return Err(format!("SP-4: the window's right edge moves left to {edge}"));
            }
            self.edge = Some(edge);
        }
        // A guest that was reset has no connection any more that could be misled.
        self.tainted |= segment.flags & flag::RST != 0;
        self.guest_got = advanced(self.guest_got, self.start.1, segment);
        self.payload(Side::Client, segment)
    }

    fn arrives_at_client(&mut self, segment: &SeenTcp, unprotected: bool) -> Result<(), String> {
        let sequence = segment.sequence.wrapping_sub(self.start.0);
        let end = sequence.wrapping_add(segment.payload.len() as u32);
        let limit = if unprotected { self.guest_top } else { self.committed.top };
        if !segment.payload.is_empty() && before(limit, end) {
            return Err(format!("OC-1: bytes up to {end}, but only those up to {limit} are committed"));
        }
        if let Some((value, _)) = segment.timestamps() {
            let known = if unprotected { self.guest_stamps.len() } else { self.committed.stamps };
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
            // What the client has confirmed it does not take again: the byte of a keepalive may be any.
            let dropped = from == Side::Guest && before(place, self.client_ack);
            if !dropped && byte != pattern(from, place) {
                return Err(format!("SP-3: the byte at {place} is not what the {from} sent"));
            }
        }
        Ok(())
    }
}

/// The number behind this segment.
fn last(start: u32, segment: &SeenTcp) -> u32 {
    let syn = u32::from(segment.flags & flag::SYN != 0);
    let fin = u32::from(segment.flags & flag::FIN != 0);
    segment.sequence.wrapping_sub(start).wrapping_add(syn + segment.payload.len() as u32 + fin)
}

/// Where the in-order bytes end with this segment.
fn advanced(end: u32, start: u32, segment: &SeenTcp) -> u32 {
    let first = segment.sequence.wrapping_sub(start);
    let last = last(start, segment);
    if !before(end, first) && before(end, last) { last } else { end }
}

/// Whether `a` comes before `b`, both modulo 2^32.
#[must_use]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
