//! Placeholder of the client leg, until its branch is merged.

use crate::{SeqNum, Time};
use std::time::Duration;

/// Congestion control of the client leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// RFC 9438.
    #[default]
    Cubic,
    /// RFC 6582.
    NewReno,
}

/// What a sender is told once.
#[derive(Clone, Copy, Debug)]
pub struct SenderConfig {
    /// Payload bytes of a segment, options already subtracted.
    pub mss: u16,
    /// Whether SACK was negotiated.
    pub sack: bool,
    /// Whether ECN was negotiated.
    pub ecn: bool,
    /// Congestion control.
    pub congestion: Congestion,
}

/// ACK information of a client's segment.
#[derive(Clone, Copy, Debug)]
pub struct ClientAck<'a> {
    /// Sequence number of the segment.
    pub seq: SeqNum,
    /// Its acknowledgement.
    pub ack: SeqNum,
    /// Its window in bytes, scaled.
    pub window: u32,
    /// Whether it carries data.
    pub carries_data: bool,
    /// Its SACK blocks.
    pub sacks: &'a [(SeqNum, SeqNum)],
    /// Its ECE bit.
    pub ece: bool,
}

/// Why a segment is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For the first time.
    New,
    /// Again.
    Retransmission,
    /// A probe.
    Probe,
}

/// A segment to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Transmit {
    /// Its first byte.
    pub seq: SeqNum,
    /// Payload bytes.
    pub len: u32,
    /// Whether it carries the FIN.
    pub fin: bool,
    /// PSH.
    pub push: bool,
    /// CWR.
    pub cwr: bool,
    /// ECN-capable transport.
    pub ect: bool,
    /// Why it is sent.
    pub kind: Kind,
}

/// What an ACK brought.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes before this are confirmed.
    pub freed_to: SeqNum,
    /// The FIN is confirmed.
    pub fin_confirmed: bool,
    /// The client's window opened.
    pub window_opened: bool,
}

/// What a timeout brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutOutcome {
    /// Goes on.
    Continue,
    /// The client has been silent beyond R2.
    GivenUp,
}

/// Numbers of a sender for reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct SenderReport {
    /// Smoothed round trip.
    pub srtt: Option<Duration>,
    /// Congestion window in bytes.
    pub cwnd: u32,
    /// Segments sent again.
    pub retransmissions: u64,
}

/// Records of what was sent.
#[derive(Debug)]
pub struct SentLog;

impl SentLog {
    /// Room for so many segments.
    #[must_use]
    pub fn new(_segments: usize) -> Self {
        Self
    }
}

/// A sender.
#[derive(Clone, Debug)]
pub struct Sender {
    una: SeqNum,
    next: SeqNum,
    end: SeqNum,
    mss: u16,
}

#[expect(missing_docs, reason = "a placeholder that goes with the merge")]
impl Sender {
    pub fn new(config: SenderConfig, start: SeqNum, _window: u32, _now: Time) -> Self {
        Self { una: start, next: start, end: start, mss: config.mss }
    }
    pub fn extend(&mut self, end: SeqNum) {
        self.end = end;
    }
    pub fn handle_ack(&mut self, _now: Time, ack: &ClientAck<'_>, _log: &mut SentLog) -> Progress {
        if ack.ack.after(self.una) && !ack.ack.after(self.next) {
            self.una = ack.ack;
        }
        Progress { freed_to: self.una, fin_confirmed: false, window_opened: false }
    }
    pub fn poll_transmit(&mut self, _now: Time, _log: &mut SentLog) -> Option<Transmit> {
        let len = self.end.bytes_since(self.next).min(u32::from(self.mss));
        let seq = self.next;
        self.next = self.next + len;
        let push = self.next == self.end;
        (len > 0).then_some(Transmit { seq, len, fin: false, push, cwr: false, ect: false, kind: Kind::New })
    }
    pub fn next_deadline(&self) -> Option<Time> {
        None
    }
}
