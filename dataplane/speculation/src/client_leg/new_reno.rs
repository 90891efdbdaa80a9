//! Reno's congestion avoidance (RFC 5681); the recovery of RFC 6582 is in `recovery`.

use super::congestion::{Arrived, CongestionControl, MAX_WINDOW, Signal, restart, slow_start};
use crate::Time;

/// The state of one flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewReno {
    window: u32,
    threshold: u32,
    /// Bytes that arrived since the window last grew (RFC 3465 §2.1).
    counted: u32,
}

impl NewReno {
    pub(super) const fn new(window: u32) -> Self {
        Self { window, threshold: u32::MAX, counted: 0 }
    }
}

impl CongestionControl for NewReno {
    fn window(&self) -> u32 {
        self.window
    }

    fn threshold(&self) -> u32 {
        self.threshold
    }

    fn arrived(&mut self, mss: u32, arrived: Arrived) {
        if !arrived.limited {
            return;
        }
        let rest = slow_start(&mut self.window, self.threshold, arrived.bytes);
        // A segment more for each window of bytes (RFC 5681 §3.1, RFC 3465 §2.1).
        self.counted = self.counted.saturating_add(rest);
        if self.counted >= self.window {
            let segments = self.counted / self.window;
            self.counted %= self.window;
            self.window = self.window.saturating_add(segments.saturating_mul(mss)).min(MAX_WINDOW);
        }
    }

    fn congested(&mut self, mss: u32, signal: Signal, flight: u32) {
        // RFC 5681 §3.1 (4).
        self.threshold = (flight.min(self.window) / 2).max(2 * mss);
        self.counted = 0;
        self.window = match signal {
            Signal::Loss => self.threshold,
            Signal::Timeout => mss,
        };
    }

    fn timed_out_again(&mut self, mss: u32) {
        self.window = mss;
        self.counted = 0;
    }

    fn resumes(&mut self, mss: u32, _now: Time, stale: bool) {
        if stale {
            restart(&mut self.window, &mut self.threshold, mss);
            self.counted = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn arrived(bytes: u32) -> Arrived {
        Arrived { now: Time::ZERO, bytes, srtt: Duration::from_millis(10), limited: true }
    }

    #[test]
    fn congestion_avoidance_adds_a_segment_a_window() {
        // RFC 5681 §3.1
        let mut reno = NewReno { window: 10_000, threshold: 10_000, counted: 0 };
        for _ in 0..9 {
            reno.arrived(1000, arrived(1000));
            assert_eq!(reno.window(), 10_000);
        }
        reno.arrived(1000, arrived(1000));
        assert_eq!(reno.window(), 11_000);
    }

    #[test]
    fn a_loss_halves_the_window_and_a_timeout_leaves_one_segment() {
        // RFC 5681 §3.1 (4), §3.2
        let mut reno = NewReno::new(20_000);
        reno.congested(1000, Signal::Loss, 20_000);
        assert_eq!((reno.window(), reno.threshold()), (10_000, 10_000));
        reno.congested(1000, Signal::Timeout, 10_000);
        assert_eq!((reno.window(), reno.threshold()), (1000, 5000));
        reno.timed_out_again(1000);
        assert_eq!((reno.window(), reno.threshold()), (1000, 5000));
        reno.congested(1000, Signal::Loss, 1000);
        assert_eq!(reno.threshold(), 2000);
    }

    #[test]
    fn a_window_that_was_not_the_limit_does_not_grow() {
        let mut reno = NewReno::new(20_000);
        reno.arrived(1000, Arrived { limited: false, ..arrived(20_000) });
        assert_eq!(reno.window(), 20_000);
    }
}
