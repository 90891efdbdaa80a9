//! Pacing: what a commit releases never leaves as one burst.
//!
//! A virtual schedule (GCRA): each byte sent moves it on by the time that the byte takes at the pace, and
//! sending may be ahead of it by a quantum. The pace is a gain times the congestion window an RTT, so
//! that the window and not the pace is the limit in the long run. On a path with an RTT below the
//! quantum's time the window alone limits a burst.

use std::time::Duration;

use super::rto::nanos;
use crate::Time;

/// Segments that may leave at once.
pub(super) const BURST_SEGMENTS: u32 = 10;
/// Or as much as the pace gives in this time, if that is more: a poll may be that late.
pub(super) const BURST_TIME: Duration = Duration::from_millis(1);
/// Percent of a window an RTT in slow start, where the window doubles, and later.
const GAIN_SLOW_START: u64 = 200;
const GAIN: u64 = 125;

/// The pace: what a window of bytes takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) window: u32,
    pub(super) mss: u32,
    pub(super) slow_start: bool,
    /// None before the first sample: the initial window may leave at once (RFC 6928).
    pub(super) srtt: Option<Duration>,
}

impl Pace {
    /// Nanoseconds that `bytes` take.
    fn time_of(&self, bytes: u32, srtt: Duration) -> u64 {
        let gain = if self.slow_start { GAIN_SLOW_START } else { GAIN };
        let per_window = nanos(srtt).saturating_mul(100) / gain;
        let window = u64::from(self.window.max(1));
        match per_window.checked_mul(bytes.into()) {
            Some(product) => product / window,
            None => (per_window / window).saturating_mul(bytes.into()),
        }
    }

    fn quantum(&self, srtt: Duration) -> u64 {
        self.time_of(BURST_SEGMENTS.saturating_mul(self.mss), srtt).max(nanos(BURST_TIME))
    }
}

/// The schedule of one flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pacer {
    /// When all that was sent has left at the pace.
    until: Time,
}

impl Pacer {
    pub(super) const fn new() -> Self {
        Self { until: Time::ZERO }
    }

    /// Whether a segment may leave now; if not, when a good part of a burst may.
    pub(super) fn check(&self, now: Time, pace: &Pace) -> Result<(), Time> {
        let Some(srtt) = pace.srtt else { return Ok(()) };
        let (quantum, ahead) = (pace.quantum(srtt), nanos(self.until.since(now)));
        // A segment's own time is within the quantum: ten may leave at once, not eleven.
        if ahead.saturating_add(pace.time_of(pace.mss, srtt)) <= quantum {
            return Ok(());
        }
        Err(now + Duration::from_nanos(ahead.saturating_sub(quantum / 2)).max(Duration::from_nanos(1)))
    }

    /// `bytes` left.
    pub(super) fn sent(&mut self, now: Time, bytes: u32, pace: &Pace) {
        let Some(srtt) = pace.srtt else { return };
        self.until = self.until.max(now) + Duration::from_nanos(pace.time_of(bytes, srtt));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace =
        Pace { window: 100_000, mss: 1000, slow_start: false, srtt: Some(Duration::from_millis(100)) };

    fn burst(pacer: &mut Pacer, now: Time, pace: &Pace) -> u32 {
        let mut count = 0;
        while count < 10_000 && pacer.check(now, pace).is_ok() {
            pacer.sent(now, pace.mss, pace);
            count += 1;
        }
        count
    }

    #[test]
    fn ten_segments_leave_at_once_and_the_others_at_the_pace() {
        let mut pacer = Pacer::new();
        let mut now = Time::from_ns(1_000_000_000);
        assert_eq!(burst(&mut pacer, now, &PACE), BURST_SEGMENTS);
        let start = now;
        let mut sent = 0;
        while sent < 1000 {
            now = pacer.check(now, &PACE).unwrap_err();
            let count = burst(&mut pacer, now, &PACE);
            assert!((1..=BURST_SEGMENTS).contains(&count));
            sent += count;
        }
        // 1.25 segments a millisecond.
        let pace = f64::from(sent) / now.since(start).as_secs_f64();
        assert!((1200.0..1300.0).contains(&pace), "{pace} segments a second");
    }

    #[test]
    fn a_long_silence_earns_no_more_than_a_burst() {
        let mut pacer = Pacer::new();
        burst(&mut pacer, Time::ZERO, &PACE);
        assert_eq!(burst(&mut pacer, Time::from_ns(60_000_000_000), &PACE), BURST_SEGMENTS);
    }

    #[test]
    fn a_fast_path_may_send_a_millisecond_at_once() {
        let pace = Pace { window: 10_000_000, ..PACE };
        assert_eq!(burst(&mut Pacer::new(), Time::ZERO, &pace), 125);
    }

    #[test]
    fn nothing_is_paced_before_there_is_an_rtt() {
        let pace = Pace { srtt: None, ..PACE };
        assert_eq!(burst(&mut Pacer::new(), Time::ZERO, &pace), 10_000);
    }

    #[test]
    fn slow_start_is_paced_at_twice_the_window() {
        let slow = Pace { slow_start: true, ..PACE };
        assert_eq!(slow.time_of(1000, Duration::from_millis(100)), 500_000);
        assert_eq!(PACE.time_of(1000, Duration::from_millis(100)), 800_000);
    }
}
