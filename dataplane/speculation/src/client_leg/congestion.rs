//! Congestion controls behind a trait.
//!
//! A control says how many bytes may be in flight; loss detection, recovery and pacing are others'.

use std::time::Duration;

use super::cubic::Cubic;
use super::new_reno::NewReno;
use crate::Time;

/// No congestion window grows beyond this, so that sums of windows and sequence numbers stay in range.
pub(super) const MAX_WINDOW: u32 = 1 << 30;

/// Which congestion control a sender has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC (RFC 9438).
    #[default]
    Cubic,
    /// Reno (RFC 5681).
    NewReno,
}

/// What told of congestion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// A segment is lost, or the client echoed a congestion mark (RFC 3168 §6.1.2: the same response).
    Loss,
    /// A retransmission timeout, the first one for its segment (RFC 5681 §3.1).
    Timeout,
}

/// Bytes that an ACK says have arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub(super) now: Time,
    pub(super) bytes: u32,
    pub(super) srtt: Duration,
    /// Whether the congestion window was the limit of late; it must not grow otherwise (RFC 9438 §5.8).
    pub(super) limited: bool,
}

/// The initial window (RFC 6928 §2).
pub(super) fn initial_window(mss: u32) -> u32 {
    (10 * mss).min((2 * mss).max(14_600))
}

/// A congestion control of one flow. The MSS is a parameter, as it changes.
pub(super) trait CongestionControl {
    /// Bytes that may be in flight.
    fn window(&self) -> u32;
    /// The slow-start threshold in bytes.
    fn threshold(&self) -> u32;
    /// New bytes arrived, and no recovery goes on.
    fn arrived(&mut self, mss: u32, arrived: Arrived);
    /// Called at most once a window of data. `flight` are the bytes not confirmed.
    fn congested(&mut self, mss: u32, signal: Signal, flight: u32);
    /// The same segment timed out again (RFC 5681 §3.1: the threshold is held).
    fn timed_out_again(&mut self, mss: u32);
    /// Sending goes on after nothing was in flight for a while; `stale` when that was longer than an RTO
    /// (RFC 5681 §4.1).
    fn resumes(&mut self, mss: u32, now: Time, stale: bool);

    /// Whether the window grows by what arrives.
    fn in_slow_start(&self) -> bool {
        self.window() < self.threshold()
    }
}

/// One of them, without a box.
#[derive(Clone, Copy, Debug)]
pub(super) enum Control {
    Cubic(Cubic),
    NewReno(NewReno),
}

impl Control {
    pub(super) fn new(which: Congestion, mss: u32) -> Self {
        match which {
            Congestion::Cubic => Self::Cubic(Cubic::new(initial_window(mss))),
            Congestion::NewReno => Self::NewReno(NewReno::new(initial_window(mss))),
        }
    }

    fn get(&self) -> &dyn CongestionControl {
        match self {
            Self::Cubic(cubic) => cubic,
            Self::NewReno(reno) => reno,
        }
    }

    fn get_mut(&mut self) -> &mut dyn CongestionControl {
        match self {
            Self::Cubic(cubic) => cubic,
            Self::NewReno(reno) => reno,
        }
    }
}

impl CongestionControl for Control {
    fn window(&self) -> u32 {
        self.get().window()
    }

    fn threshold(&self) -> u32 {
        self.get().threshold()
    }

    fn arrived(&mut self, mss: u32, arrived: Arrived) {
        self.get_mut().arrived(mss, arrived);
    }

    fn congested(&mut self, mss: u32, signal: Signal, flight: u32) {
        self.get_mut().congested(mss, signal, flight);
    }

    fn timed_out_again(&mut self, mss: u32) {
        self.get_mut().timed_out_again(mss);
    }

    fn resumes(&mut self, mss: u32, now: Time, stale: bool) {
        self.get_mut().resumes(mss, now, stale);
    }
}

/// Slow start (RFC 5681 §3.1), up to the threshold; what is left of `bytes` counts for congestion
/// avoidance. All that an ACK covers counts, not one segment's worth: sending is paced (RFC 9406 §4.2,
/// L = infinity).
pub(super) fn slow_start(window: &mut u32, threshold: u32, bytes: u32) -> u32 {
    let step = bytes.min(threshold.saturating_sub(*window));
    *window = window.saturating_add(step).min(MAX_WINDOW);
    bytes - step
}

/// The restart after an idle time (RFC 5681 §4.1): at most the initial window, with a threshold that
/// leads back to what was known of the path (RFC 7661 §4.3's ssthresh).
pub(super) fn restart(window: &mut u32, threshold: &mut u32, mss: u32) {
    *threshold = (*threshold).max(*window / 4 * 3);
    *window = (*window).min(initial_window(mss));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initial_window_is_ten_segments_of_an_ethernet() {
        // RFC 6928 §2
        assert_eq!(initial_window(1460), 14_600);
        assert_eq!(initial_window(536), 5360);
        assert_eq!(initial_window(8960), 17_920);
    }

    #[test]
    fn slow_start_ends_at_the_threshold() {
        // RFC 5681 §3.1
        let mut window = 10_000;
        assert_eq!(slow_start(&mut window, 12_000, 3000), 1000);
        assert_eq!(window, 12_000);
        assert_eq!(slow_start(&mut window, 12_000, 3000), 3000);
        assert_eq!(window, 12_000);
    }

    #[test]
    fn a_restart_sends_the_initial_window_and_remembers_the_path() {
        // RFC 5681 §4.1
        for which in [Congestion::Cubic, Congestion::NewReno] {
            let mut control = Control::new(which, 1000);
            let arrived =
                Arrived { now: Time::ZERO, bytes: 90_000, srtt: Duration::from_millis(10), limited: true };
            control.arrived(1000, arrived);
            control.congested(1000, Signal::Loss, 100_000);
            let before = control.window();
            control.resumes(1000, Time::ZERO + Duration::from_millis(100), false);
            assert_eq!(control.window(), before);
            control.resumes(1000, Time::ZERO + Duration::from_secs(1), true);
            assert_eq!(control.window(), initial_window(1000));
            assert!(control.in_slow_start() && control.threshold() >= before / 4 * 3);
        }
    }
}
