//! A window scale that is lent to a client without one, so that its guest may run further ahead than 64 KiB.
//!
//! RFC 7323 §2.2: windows are scaled only if both SYNs have the option. All windows that the guest sees are
//! ours, so the client's SYN gets one on its way to the guest; the guest's answer loses its own on the way
//! to the client:
//! ```text
//! client                      engine                        guest
//!    SYN, no scale    ---->   SYN, scale of ours   ---->
//!    SYN-ACK, NOPs    <----   release              <----    SYN-ACK, its scale
//!    window in bytes  ---->   in the scale lent    ---->
//!    window in bytes  <----   at most 65535        <----    window in its scale
//! ```
//! When the guest opens, its SYN has its scale and the client's answer gets ours.
//!
//! From then on each window of the flow is rewritten for as long as the flow lives, whether it speculates
//! or not: the backup knows of it before the guest does, and such a flow is forgotten only when it is over.

use crate::boundary::Sink;
use crate::connection::{Connection, Phase};
use crate::emission::{self, Fields};
use crate::key::{FlowKey, Side};
use crate::opening::Opening;
use crate::options;
use crate::rewrite::Rewriter;
use crate::segment::Segment;
use crate::shared::Shared;
use crate::time::Time;
use crate::window::{Scale, Scaled};
use holdfast_packet::headers::flag;
use std::time::Duration;

/// Flows with a lent scale take up to one of so many places: they keep theirs until they are over.
pub(crate) const LENT_SHARE: usize = 4;

/// Their handshakes take up to one of so many.
pub(crate) const LENT_OPENING_SHARE: usize = 16;

/// How long a handshake with a lent scale keeps its place: longer than guests say their answer again
/// (RFC 9293 §3.8.3: three minutes at least).
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Bytes of a TCP header up to the end of its checksum.
const THROUGH_CHECKSUM: usize = 18;

/// What is lent in a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loan {
    pub(crate) scale: Scale,
    /// The client's SYN waits to be shown to the guest, with this window and this TSecr.
    pub(crate) due: Option<(Scaled, u32)>,
}

impl Scale {
    /// The scale for windows of about so many bytes; none when they need none.
    pub(crate) fn for_bytes(bytes: u32) -> Option<Self> {
        let found = (0..14).find(|shift| 1 << (16 + shift) >= u64::from(bytes)).unwrap_or(14);
        Some(Self::new(found)).filter(|&scale| scale != Self::NONE)
    }

    /// What a client without scaling is told of a window in this scale.
    pub(crate) fn unscaled(self, window: Scaled) -> Scaled {
        Scaled(self.bytes(window).min(u32::from(u16::MAX)) as u16)
    }

    /// A window in bytes in this scale, rounded down.
    pub(crate) const fn scaled(self, window: u16) -> Scaled {
        Scaled(window >> self.shift())
    }
}

/// Scales the window of a segment of the client. What the engine shows the guest instead is written over it.
pub(crate) fn scale_for_guest(frame: &mut [u8], segment: &Segment, lent: Scale) {
    if !segment.has(flag::SYN) {
        Rewriter::new(frame, segment).window(lent.scaled(segment.window));
    }
}

/// Writes a segment of the guest as a client without scaling understands it.
pub(crate) fn unscale_for_client(frame: &mut [u8], segment: &Segment, guest: Scale) {
    let mut rewriter = Rewriter::new(frame, segment);
    // RFC 7323 §2.2: an answer has the option only if the SYN had it; the window of either is in bytes.
    match segment.has(flag::SYN) {
        false => rewriter.window(guest.unscaled(Scaled(segment.window))),
        true if segment.has(flag::ACK) => {
            if let Some(at) = segment.options.scale_at {
                rewriter.blank(at, 3);
            }
        }
        true => {}
    }
}

/// The window of the first fragment of a segment whose TCP header is at `tcp_at`, and its flags; none when
/// they are not all in it, with the checksum.
pub(crate) fn fragment_window(frame: &[u8], tcp_at: usize) -> Option<(u8, u16)> {
    let header = frame.get(tcp_at..tcp_at + THROUGH_CHECKSUM)?;
    Some((header[13], u16::from_be_bytes([header[14], header[15]])))
}

impl Opening {
    /// Lends a scale to the client whose SYN this is, or again for one that was sent again.
    pub(crate) fn lend(&mut self, scale: Scale, window: Scaled, segment: &Segment) {
        let echo = segment.options.timestamps.map_or(0, |stamps| stamps.echo);
        self.loan = Some(Loan { scale, due: Some((window, echo)) });
    }

    /// Shows the guest the client's SYN with the scale; how many frames that took, none when there is no room.
    pub(crate) fn introduce(
        &mut self,
        key: &FlowKey,
        shared: &mut Shared,
        sink: &mut dyn Sink,
    ) -> Option<usize> {
        let Some((Loan { scale, due: Some((window, echo)) }, client)) = self.loan.zip(self.client()) else {
            return Some(0);
        };
        let ack = self.acknowledged_by_client();
        let ecn = match (client.ecn, ack) {
            (false, _) => 0,
            (true, None) => flag::ECE | flag::CWR,
            (true, Some(_)) => flag::ECE,
        };
        let fields = Fields {
            seq: client.iss,
            ack,
            flags: flag::SYN | ecn,
            window,
            timestamps: None,
            ect: false,
            identification: shared.next_identification(),
        };
        let stamps = client.tsval.map(|value| (value, echo));
        let options = options::of_syn(client.mss, client.sack, stamps, scale);
        let pattern = client.pattern;
        let len = emission::frame_len_with(&pattern, key, &options, 0);
        let emitted = sink.emit(len, None, &mut |out| {
            emission::write_with(out, &pattern, key, Side::Client, &fields, &options, |_| {});
        });
        if let Some(loan) = self.loan.as_mut().filter(|_| emitted) {
            loan.due = None;
        }
        emitted.then_some(1)
    }

    /// Whether it has waited long enough to be forgotten though it has a lent scale.
    pub(crate) fn is_abandoned(&self, now: Time) -> bool {
        self.loan.is_none() || self.since + PATIENCE <= now
    }

    /// A segment of the guest leaves for the client.
    pub(crate) fn release(&self, segment: &Segment, frame: &mut [u8]) {
        if self.loan.is_some() {
            unscale_for_client(frame, segment, self.guest_scale());
        }
    }
}

impl Connection {
    /// Whether nothing is said on it any more that needs its windows rewritten: it was reset, or both sides
    /// have sent their FIN, and each has the other's. One that was passed through may be on its way, with
    /// bytes before it.
    pub(crate) fn is_over(&self) -> bool {
        let closed = self.client_fin.is_some_and(|fin| !self.guest.voice.ack.before(fin))
            && !self.client.real.before(self.guest.next);
        self.phase == Phase::Finished && (self.was_reset || closed)
    }

    /// Whether it must keep its place for the sake of a lent scale: it is not over, or what its guest said
    /// before that has not left.
    pub(crate) fn needs_rescaling(&self) -> bool {
        let told = |fin| self.client.said.is_some_and(|said| !said.ack.before(fin));
        let has_left = self.was_reset || self.client_fin.is_some_and(told);
        self.negotiated.lent.is_some() && !(self.is_over() && has_left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_scale_is_lent_only_where_a_window_needs_it() {
        assert_eq!(Scale::for_bytes(65_536), None);
        assert_eq!(Scale::for_bytes(65_537), Some(Scale::new(1)));
        assert_eq!(Scale::for_bytes(16 << 20), Some(Scale::new(8)));
        assert_eq!(Scale::for_bytes(u32::MAX), Some(Scale::new(14)));
    }

    proptest! {
        /// SP-4, OC-1: neither side is offered more than the other has offered.
        #[test]
        fn a_rescaled_window_is_never_larger(shift in 0u8..=14, window: u16) {
            let scale = Scale::new(shift);
            prop_assert!(u32::from(scale.unscaled(Scaled(window)).0) <= scale.bytes(Scaled(window)));
            prop_assert!(scale.bytes(scale.scaled(window)) <= u32::from(window));
            prop_assert!(u32::from(window) - scale.bytes(scale.scaled(window)) < scale.unit());
        }
    }
}
