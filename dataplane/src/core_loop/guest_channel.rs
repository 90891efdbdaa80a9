//! Answers the agent in a guest: what is done with its output, and what time it is.
//!
//! A question is taken from the guest's ring before anything else is done with it, and is never held, recorded,
//! learned from or sent; the answer goes behind what waits for the guest. The messages:
//! [`holdfast_packet::guest_channel`].
//!
//! Owned by the polling core. Allocations: none.

use super::inbound::Inbound;
use super::least_wait::LeastWait;
use super::monotonic_ns;
use crate::counters::{DropReason, PortCounter, PortCounters};
use crate::frame::{Frame, Wire};
use crate::guest::GuestFrame;
use crate::headers::ETHERNET_LEN;
use holdfast_epoch::EpochId;
use holdfast_packet::guest_channel::{Answer, Ask, LONGEST, PortMode, is_ours};
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// How long a port's epochs are, from one cut to the next, how soon they are committed, and when its guest's agent asked last.
#[derive(Debug, Default)]
pub(super) struct Beat {
    last_cut_ns: Option<u64>,
    epoch_ns: u64,
    asked_ns: Option<u64>,
    /// How long the epochs' output waits.
    pub(super) wait: LeastWait,
}

impl Beat {
    /// An epoch was cut at `now_ns`.
    pub(super) fn cut(&mut self, epoch: EpochId, now_ns: u64) {
        self.wait.cut(epoch);
        if let Some(last) = self.last_cut_ns.replace(now_ns) {
            self.epoch_ns = now_ns.saturating_sub(last);
        }
    }

    /// Epochs ended: those to come are counted anew.
    pub(super) fn stop(&mut self) {
        (self.last_cut_ns, self.epoch_ns) = (None, 0);
        self.wait.clear();
    }

    /// Since when the agent has been silent.
    pub(super) fn agent_silence(&self, now_ns: u64) -> Option<Duration> {
        self.asked_ns.map(|asked_ns| Duration::from_nanos(now_ns.saturating_sub(asked_ns)))
    }

    fn epoch_us(&self) -> u32 {
        u32::try_from(self.epoch_ns / 1000).unwrap_or(u32::MAX)
    }
}

/// Takes a frame of the guest if it belongs to the channel, and answers a question; whether it was taken.
///
/// Bound: one answer, kept only while the guest's queue has room. Cost for other frames: a copy of 14 bytes.
pub(super) fn take<W: Wire>(
    frame: &dyn GuestFrame,
    mode: PortMode,
    beat: &mut Beat,
    wire: &mut W,
    inbound: &mut Inbound<W::Frame>,
    counters: &PortCounters,
) -> bool {
    let mut head = [0; ETHERNET_LEN];
    if frame.len() < ETHERNET_LEN {
        return false;
    }
    frame.copy_to(0, &mut head);
    if !is_ours(&head) {
        return false;
    }
    let mut message = [0; LONGEST];
    let message = &mut message[..(frame.len() - ETHERNET_LEN).min(LONGEST)];
    frame.copy_to(ETHERNET_LEN, message);
    let Ok(ask) = Ask::decode(message) else {
        counters.drops.add(DropReason::Channel, 1);
        return true;
    };
    counters.events.add(PortCounter::Asked, 1);
    beat.asked_ns = Some(monotonic_ns());
    let answer = Answer {
        nonce: ask.nonce,
        mode,
        epoch_us: beat.epoch_us(),
        host_realtime_ns: realtime_ns(),
        least_wait_us: beat.wait.least_us().unwrap_or(0),
    }
    .frame();
    let Some(mut out) = wire.alloc(answer.len()) else {
        counters.drops.add(DropReason::NoFrames, 1);
        return true;
    };
    out.bytes_mut().copy_from_slice(&answer);
    if let Err((reason, _)) = inbound.push(out) {
        counters.drops.add(reason, 1);
    }
    true
}

/// `CLOCK_REALTIME` in nanoseconds; answered without a system call.
fn realtime_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_lasts_from_one_cut_to_the_next() {
        let mut beat = Beat::default();
        beat.cut(EpochId::new(1), 1_000_000);
        assert_eq!(beat.epoch_us(), 0, "there was one cut only");
        beat.cut(EpochId::new(2), 26_000_000);
        assert_eq!(beat.epoch_us(), 25_000);
        beat.stop();
        beat.cut(EpochId::new(3), 90_000_000_000);
        assert_eq!(beat.epoch_us(), 0);
    }
}
