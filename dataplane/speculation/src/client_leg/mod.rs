//! The client leg: a TCP sender towards the real client, for one flow.
//!
//! ```text
//!  commit --extend/close--> [ una ....... nxt ....... end ] --poll_transmit--> wire
//!  client's ACK --handle_ack--^  in the log   unsent   (FIN)
//!  clock --handle_timeout--> retransmission, probes, pacing
//! ```
//!
//! [`Sender`] decides *which* bytes leave and *when*; it holds no bytes. One record a segment in flight
//! is in the [`SentLog`] that all senders of an engine share.
//!
//! Polling order: after each `handle_*`, `extend`, `close` and `set_mss` call `poll_transmit` until it
//! answers `None`, then look at `next_deadline`; when that moment has come, `handle_timeout` and poll
//! again. Before a sender is dropped, `clear` gives its records back.
//!
//! Invariants:
//! - **OC-1** nothing at or beyond `end` leaves.
//! - **SP-3** bytes are free only below the client's cumulative ACK; a SACK frees none (RFC 2018 §8).
//! - Beyond the client's window only probes leave (RFC 9293 §3.8.6.1).
//! - While something is unconfirmed and may be sent, a deadline exists, until the client is given up.
//!
//! No allocation but by [`SentLog::new`]; no clock, no randomness, no panic on any input.

mod congestion;
mod cubic;
mod input;
mod new_reno;
mod output;
mod pacing;
mod persist;
mod rack;
mod recovery;
mod rto;
mod scoreboard;
mod sender;
mod sent_log;
mod timers;
mod usage;
mod window;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::SeqNum;

pub use congestion::Congestion;
pub(crate) use sender::R2;
pub use sender::Sender;
pub use sent_log::SentLog;

/// What a sender is told of its flow when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderConfig {
    /// Payload bytes a segment, options already subtracted. Less than 16 is taken as 16.
    pub mss: u16,
    /// Whether SACK was negotiated (RFC 2018): RACK-TLP finds losses then, duplicate ACKs otherwise.
    pub sack: bool,
    /// Whether ECN was negotiated (RFC 3168).
    pub ecn: bool,
    /// The congestion control.
    pub congestion: Congestion,
}

/// The ACK information of a segment of the client. The caller has verified its checksum and, as far as
/// it does so, its sequence number.
#[derive(Clone, Copy, Debug)]
pub struct ClientAck<'a> {
    /// The sequence number of the client's segment, for WL1 (RFC 9293 §3.10.7.4).
    pub seq: SeqNum,
    /// The cumulative ACK.
    pub ack: SeqNum,
    /// The window in bytes, scaled.
    pub window: u32,
    /// Whether the segment has payload (or a FIN): it is no duplicate ACK then (RFC 5681 §2).
    pub carries_data: bool,
    /// The SACK blocks, left and right edge, in their order: the first may be a DSACK (RFC 2883).
    pub sacks: &'a [(SeqNum, SeqNum)],
    /// The ECE flag.
    pub ece: bool,
}

/// What a [`Transmit`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes that were never sent before, by no host.
    New,
    /// At least one byte was, or may have been, sent before.
    Retransmission,
    /// A zero-window probe.
    Probe,
}

/// One segment to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The sequence number of its first byte.
    pub seq: SeqNum,
    /// Payload bytes; 0 for a bare FIN.
    pub len: u32,
    /// Whether it has the FIN flag.
    pub fin: bool,
    /// Whether it has the PSH flag: it ends with the last committed byte.
    pub push: bool,
    /// Whether it has the CWR flag (RFC 3168 §6.1.2).
    pub cwr: bool,
    /// Whether it leaves as ECT(0); on new data only (RFC 3168 §6.1.5, §6.1.6).
    pub ect: bool,
    /// What it is.
    pub kind: Kind,
}

/// What an ACK of the client brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// All bytes before this are confirmed and may be freed. It never goes back.
    pub freed_to: SeqNum,
    /// The client has confirmed the FIN.
    pub fin_confirmed: bool,
    /// The right edge of the client's window moved to the right.
    pub window_opened: bool,
}

/// What a timeout brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a client that is given up has to be told to the guest"]
pub enum TimeoutOutcome {
    /// No timer was due.
    Nothing,
    /// There may be something to send: poll.
    Poll,
    /// The client has been silent beyond R2 (RFC 9293 §3.8.3). The sender sends nothing any more.
    Silent,
}

/// In which state of loss recovery a sender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderState {
    /// No loss is known.
    Open,
    /// Fast recovery: a loss was found without a timeout (RFC 8985, RFC 6582).
    Recovery,
    /// After a retransmission timeout (RFC 6298), until all that was sent before it is confirmed.
    Timeout,
    /// The client's window is zero.
    Persist,
    /// The client was silent beyond R2.
    Silent,
}

impl SenderState {
    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Recovery => "recovery",
            Self::Timeout => "timeout",
            Self::Persist => "persist",
            Self::Silent => "silent",
        }
    }
}

/// A view of a sender for people and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderReport {
    /// The smoothed round-trip time, once there was a sample.
    pub srtt: Option<Duration>,
    /// The retransmission timeout, with its back-off.
    pub rto: Duration,
    /// The congestion window in bytes.
    pub cwnd_bytes: u32,
    /// The slow-start threshold in bytes; `u32::MAX` before the first loss.
    pub ssthresh_bytes: u32,
    /// The client's window in bytes.
    pub client_window_bytes: u32,
    /// Bytes believed to be on the way.
    pub in_flight_bytes: u32,
    /// Segments sent again since the beginning, TLP's included, probes not.
    pub retransmissions: u64,
    /// Zero-window probes since the beginning.
    pub probes: u64,
    /// Retransmission timeouts since the beginning.
    pub timeouts: u64,
    /// The state.
    pub state: SenderState,
}
