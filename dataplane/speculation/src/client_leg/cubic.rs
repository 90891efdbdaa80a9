//! CUBIC (RFC 9438), without HyStart.
//!
//! The curve is in segments and seconds, as in the RFC; it is evaluated once an ACK in floating point.

use std::time::Duration;

use super::congestion::{Arrived, CongestionControl, MAX_WINDOW, Signal, restart, slow_start};
use crate::Time;

/// RFC 9438 §5.1.
const C: f64 = 0.4;
/// RFC 9438 §4.6.
const BETA: f64 = 0.7;
/// RFC 9438 §4.3: 3 (1 - beta) / (1 + beta).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// The state of one flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cubic {
    window: u32,
    threshold: u32,
    /// The curve of this congestion avoidance, once it began.
    curve: Option<Curve>,
    /// W_max in bytes; 0 when no congestion is known (RFC 9438 §4.1.2).
    before: u32,
    /// cwnd_prior in bytes.
    prior: u32,
    /// When the last ACK came.
    last: Time,
}

/// RFC 9438 §4.2, in bytes and seconds.
#[derive(Clone, Copy, Debug)]
struct Curve {
    /// t_epoch.
    since: Time,
    /// K.
    k: f64,
    /// W_max.
    top: f64,
    /// W_est.
    reno: f64,
    /// The window's fraction of a byte.
    fraction: f64,
}

impl Curve {
    /// W_cubic at `t` seconds (RFC 9438 §4.2, Figure 1).
    fn at(&self, t: f64, mss: f64) -> f64 {
        self.top + C * mss * (t - self.k).powi(3)
    }
}

impl Cubic {
    pub(super) const fn new(window: u32) -> Self {
        Self { window, threshold: u32::MAX, curve: None, before: 0, prior: 0, last: Time::ZERO }
    }

    /// The start of a congestion avoidance (RFC 9438 §4.2, Figure 2; §4.8 after a timeout or slow start).
    fn begin(&self, now: Time, mss: f64) -> Curve {
        let window = f64::from(self.window);
        let before = f64::from(self.before);
        let (top, k) =
            if window < before { (before, ((before - window) / mss / C).cbrt()) } else { (window, 0.0) };
        Curve { since: now, k, top, reno: window, fraction: 0.0 }
    }

    fn avoid(&mut self, mss: u32, bytes: u32, now: Time, srtt: Duration) {
        let mss = f64::from(mss);
        let begun = self.begin(now, mss);
        let curve = self.curve.get_or_insert(begun);
        let window = f64::from(self.window) + curve.fraction;
        let segments = f64::from(bytes) / mss;
        // RFC 9438 §4.3, Figure 4; from cwnd_prior on as fast as Reno.
        let alpha = if curve.reno >= f64::from(self.prior) { 1.0 } else { ALPHA };
        curve.reno += alpha * segments * mss * (mss / window);
        let t = now.since(curve.since).as_secs_f64();
        let grown = if curve.at(t, mss) < curve.reno {
            // The Reno-friendly region.
            window.max(curve.reno)
        } else {
            // RFC 9438 §4.2: the target an RTT from now, within its bounds; §4.4, §4.5.
            let target = curve.at(t + srtt.as_secs_f64(), mss).clamp(window, 1.5 * window);
            window + (target - window) / window * segments * mss
        };
        let grown = grown.min(f64::from(MAX_WINDOW));
        self.window = grown as u32;
        curve.fraction = grown - f64::from(self.window);
    }
}

impl CongestionControl for Cubic {
    fn window(&self) -> u32 {
        self.window
    }

    fn threshold(&self) -> u32 {
        self.threshold
    }

    fn arrived(&mut self, mss: u32, arrived: Arrived) {
        let passed = arrived.now.since(self.last);
        self.last = arrived.now;
        if !arrived.limited {
            // Time in which the window was not the limit does not count (RFC 9438 §5.8).
            if let Some(curve) = &mut self.curve {
                curve.since = (curve.since + passed).min(arrived.now);
            }
            return;
        }
        let rest = slow_start(&mut self.window, self.threshold, arrived.bytes);
        if rest > 0 {
            self.avoid(mss, rest, arrived.now, arrived.srtt);
        }
    }

    fn congested(&mut self, mss: u32, signal: Signal, _flight: u32) {
        // The window, not the flight, as the window does not grow unused (RFC 9438 §4.6, §5.8).
        let window = f64::from(self.window);
        // Fast convergence (RFC 9438 §4.7).
        let kept = if self.window < self.before { (1.0 + BETA) / 2.0 } else { 1.0 };
        self.before = (window * kept) as u32;
        self.prior = self.window;
        self.threshold = ((window * BETA).round() as u32).max(2 * mss);
        self.curve = None;
        self.window = match signal {
            Signal::Loss => self.threshold,
            Signal::Timeout => mss,
        };
    }

    fn timed_out_again(&mut self, mss: u32) {
        self.window = mss;
        self.curve = None;
    }

    fn resumes(&mut self, mss: u32, now: Time, stale: bool) {
        if stale {
            restart(&mut self.window, &mut self.threshold, mss);
            self.curve = None;
        } else if let Some(curve) = &mut self.curve {
            curve.since = (curve.since + now.since(self.last)).min(now);
        }
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u32 = 1000;
    const RTT: Duration = Duration::from_millis(100);

    fn after_loss(segments: u32) -> Cubic {
        let mut cubic = Cubic::new(segments * MSS);
        cubic.congested(MSS, Signal::Loss, 0);
        cubic
    }

    /// A round: every segment of the window confirmed, spread over the RTT.
    fn round(cubic: &mut Cubic, now: &mut Time, rtt: Duration) {
        let segments = cubic.window() / MSS;
        for _ in 0..segments {
            *now = *now + rtt / segments;
            cubic.arrived(MSS, Arrived { now: *now, bytes: MSS, srtt: rtt, limited: true });
        }
    }

    #[test]
    fn a_loss_leaves_seven_tenths() {
        // RFC 9438 §4.6
        let cubic = after_loss(1000);
        assert_eq!((cubic.window(), cubic.threshold()), (700_000, 700_000));
    }

    #[test]
    fn the_window_is_back_at_the_old_maximum_after_k_seconds() {
        // RFC 9438 §4.2: K = cbrt(W_max * (1 - beta) / C) = cbrt(1000 * 0.3 / 0.4) = 9.09 s
        let mut cubic = after_loss(1000);
        let (mut now, k) = (Time::ZERO, (1000.0_f64 * 0.3 / 0.4).cbrt());
        let mut reached = None;
        for _ in 0..150 {
            round(&mut cubic, &mut now, RTT);
            let t = now.since(Time::ZERO).as_secs_f64();
            if cubic.window() >= 995_000 && reached.is_none() {
                reached = Some(t);
            }
            // On the curve, an RTT of slack to either side.
            let curve = |t: f64| 1000.0 + 0.4 * (t - k).powi(3);
            let window = f64::from(cubic.window()) / 1000.0;
            assert!(window <= curve(t + 0.2) + 2.0 && window >= curve(t - 0.2) - 2.0, "{window} at {t} s");
        }
        // Flat near the top: within half a percent of it 2.3 s before K.
        assert!(reached.is_some_and(|t| (t - (k - 2.32)).abs() < 0.3), "{reached:?}, K {k}");
    }

    #[test]
    fn on_a_short_path_it_grows_like_reno_with_alpha() {
        // RFC 9438 §4.3: with a small window and RTT the Reno-friendly estimate is above the curve.
        let mut cubic = after_loss(20);
        let (mut now, rtt) = (Time::ZERO, Duration::from_millis(1));
        let mut estimate = 14.0;
        for _ in 0..20 {
            let segments = cubic.window() / MSS;
            for _ in 0..segments {
                estimate +=
                    if estimate >= 20.0 { 1.0 } else { 9.0 / 17.0 } / (f64::from(cubic.window()) / 1000.0);
                now = now + rtt / segments;
                cubic.arrived(MSS, Arrived { now, bytes: MSS, srtt: rtt, limited: true });
                assert!((f64::from(cubic.window()) / 1000.0 - estimate).abs() < 0.1);
            }
        }
        assert!(cubic.window() > 22_000);
    }

    #[test]
    fn a_second_loss_below_the_old_maximum_gives_room_to_others() {
        // RFC 9438 §4.7: W_max = 700 * 0.85
        let mut cubic = after_loss(1000);
        cubic.congested(MSS, Signal::Loss, 0);
        assert_eq!(cubic.before, 595_000);
        assert_eq!(cubic.window(), 490_000);
    }

    #[test]
    fn growth_is_at_most_half_a_window_a_round() {
        // RFC 9438 §4.2: the target is at most 1.5 cwnd.
        let mut cubic = after_loss(100);
        let mut now = Time::ZERO;
        round(&mut cubic, &mut now, RTT);
        now = now + Duration::from_secs(100);
        let before = cubic.window();
        cubic.arrived(MSS, Arrived { now, bytes: before, srtt: RTT, limited: true });
        assert!(cubic.window() <= before / 2 * 3 + 2);
    }

    #[test]
    fn a_timeout_leaves_one_segment_and_a_new_curve() {
        // RFC 9438 §4.8
        let mut cubic = after_loss(1000);
        cubic.congested(MSS, Signal::Timeout, 0);
        assert_eq!((cubic.window(), cubic.threshold()), (MSS, 490_000));
        assert!(cubic.curve.is_none());
        cubic.timed_out_again(MSS);
        assert_eq!((cubic.window(), cubic.threshold()), (MSS, 490_000));
    }

    #[test]
    fn time_in_which_the_window_was_not_the_limit_does_not_count() {
        // RFC 9438 §5.8
        let (mut busy, mut paused) = (after_loss(1000), after_loss(1000));
        let (mut now, mut later) = (Time::ZERO, Time::ZERO);
        for _ in 0..20 {
            round(&mut busy, &mut now, RTT);
            round(&mut paused, &mut later, RTT);
        }
        // A minute of little, a minute of nothing.
        for _ in 0..60 {
            later = later + Duration::from_secs(1);
            paused.arrived(MSS, Arrived { now: later, bytes: MSS, srtt: RTT, limited: false });
        }
        later = later + Duration::from_secs(60);
        paused.resumes(MSS, later, false);
        for _ in 0..20 {
            round(&mut busy, &mut now, RTT);
            round(&mut paused, &mut later, RTT);
        }
        assert!(busy.window().abs_diff(paused.window()) < 5000, "{} {}", busy.window(), paused.window());
    }
}
