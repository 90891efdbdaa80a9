//! Round-trip times and the retransmission timeout (RFC 6298).

use std::time::Duration;

use crate::Time;

/// Before the first sample (RFC 6298 §2.1).
pub(super) const INITIAL_RTO: Duration = Duration::from_secs(1);
/// RFC 6298 §2.4 wants a second at least; all systems that clients talk to take 200 ms above the
/// smoothed RTT, which is above any client's delayed ACK.
pub(super) const MIN_VARIANCE: Duration = Duration::from_millis(200);
/// RFC 6298 §2.5: at least 60 s.
pub(super) const MAX_RTO: Duration = Duration::from_secs(60);
/// Where progress without a sample takes a backed-off RTO: what RFC 6298 §5.7 falls back to.
const FALLBACK_RTO: Duration = Duration::from_secs(3);
/// How long a minimum RTT counts (RFC 8985 §6.2 step 1 asks for a windowed one): one to two of these.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(30);

/// The estimator of one flow. All values in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTrip {
    srtt: u64,
    rttvar: u64,
    /// The minimum of this window of time and of the one before.
    min: [u64; 2],
    min_since: Time,
    /// How often the RTO is doubled.
    backoff: u8,
}

impl RoundTrip {
    pub(super) const fn new() -> Self {
        Self { srtt: 0, rttvar: 0, min: [u64::MAX; 2], min_since: Time::ZERO, backoff: 0 }
    }

    /// RFC 6298 §2.2, §2.3. Only of segments that were sent once (§3). Ends the back-off (§5).
    pub(super) fn sample(&mut self, now: Time, rtt: Duration) {
        let rtt = nanos(rtt.min(MAX_RTO)).max(1);
        if self.srtt == 0 {
            self.srtt = rtt;
            self.rttvar = rtt / 2;
        } else {
            self.rttvar = self.rttvar - self.rttvar / 4 + self.srtt.abs_diff(rtt) / 4;
            self.srtt = (self.srtt - self.srtt / 8 + rtt / 8).max(1);
        }
        self.backoff = 0;
        if now.since(self.min_since) > MIN_RTT_WINDOW {
            self.min = [u64::MAX, self.min[0]];
            self.min_since = now;
        }
        self.min[0] = self.min[0].min(rtt);
    }

    /// The smoothed RTT, if there was a sample.
    pub(super) const fn smoothed(&self) -> Option<Duration> {
        if self.srtt == 0 { None } else { Some(Duration::from_nanos(self.srtt)) }
    }

    /// The least RTT of late; zero before the first sample.
    pub(super) fn minimum(&self) -> Duration {
        let least = self.min[0].min(self.min[1]);
        Duration::from_nanos(if least == u64::MAX { 0 } else { least })
    }

    /// The RTO without its back-off (RFC 6298 §2.3).
    pub(super) fn base_timeout(&self) -> Duration {
        if self.srtt == 0 {
            return INITIAL_RTO;
        }
        let spread = Duration::from_nanos(self.rttvar.saturating_mul(4)).max(MIN_VARIANCE);
        (Duration::from_nanos(self.srtt) + spread).min(MAX_RTO)
    }

    /// The RTO.
    pub(super) fn timeout(&self) -> Duration {
        doubled(self.base_timeout(), self.backoff)
    }

    /// Something was confirmed, but nothing that gives a sample. Karn's rule would keep the back-off until
    /// there is one, with up to a minute for each loss among the retransmissions after an outage; a path
    /// that carries is given the fallback instead, which is longer than its RTT.
    pub(super) fn progressed(&mut self) {
        while self.backoff > 0 && self.timeout() > FALLBACK_RTO.max(self.base_timeout()) {
            self.backoff -= 1;
        }
    }

    /// RFC 6298 §5.5.
    pub(super) fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
    }
}

/// `timeout` doubled `times` times, at most [`MAX_RTO`].
pub(super) fn doubled(timeout: Duration, times: u8) -> Duration {
    timeout.saturating_mul(1 << times.min(20)).min(MAX_RTO)
}

/// In nanoseconds, as far as they fit.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_timeout_is_a_second_before_the_first_sample() {
        // RFC 6298 §2.1
        assert_eq!(RoundTrip::new().timeout(), INITIAL_RTO);
    }

    #[test]
    fn the_first_sample_sets_both_averages() {
        // RFC 6298 §2.2
        let mut rtt = RoundTrip::new();
        rtt.sample(Time::ZERO, 300 * MS);
        assert_eq!(rtt.smoothed(), Some(300 * MS));
        assert_eq!(rtt.timeout(), 900 * MS);
    }

    #[test]
    fn the_next_samples_are_smoothed() {
        // RFC 6298 §2.3: rttvar = 3/4 * 150 + 1/4 * |300 - 700| = 212.5, srtt = 7/8 * 300 + 1/8 * 700 = 350
        let mut rtt = RoundTrip::new();
        rtt.sample(Time::ZERO, 300 * MS);
        rtt.sample(Time::ZERO, 700 * MS);
        assert_eq!(rtt.smoothed(), Some(350 * MS));
        assert_eq!(rtt.timeout(), 1200 * MS);
    }

    #[test]
    fn a_steady_path_times_out_200_ms_above_its_round_trip() {
        let mut rtt = RoundTrip::new();
        for _ in 0..100 {
            rtt.sample(Time::ZERO, 20 * MS);
        }
        assert_eq!(rtt.timeout(), 220 * MS);
    }

    #[test]
    fn each_timeout_doubles_it_and_a_sample_ends_that() {
        // RFC 6298 §5.5, §5
        let mut rtt = RoundTrip::new();
        rtt.back_off();
        rtt.back_off();
        assert_eq!(rtt.timeout(), 4 * INITIAL_RTO);
        for _ in 0..300 {
            rtt.back_off();
        }
        assert_eq!(rtt.timeout(), MAX_RTO);
        rtt.sample(Time::ZERO, 20 * MS);
        assert_eq!(rtt.timeout(), 220 * MS);
    }

    #[test]
    fn progress_without_a_sample_keeps_no_more_than_three_seconds_of_back_off() {
        // RFC 6298 §5.5, §5.7
        let mut rtt = RoundTrip::new();
        rtt.sample(Time::ZERO, 20 * MS);
        rtt.back_off();
        rtt.progressed();
        assert_eq!(rtt.timeout(), 440 * MS);
        for _ in 0..30 {
            rtt.back_off();
        }
        rtt.progressed();
        assert_eq!(rtt.timeout(), 1760 * MS);
    }

    #[test]
    fn an_old_minimum_is_forgotten() {
        // RFC 8985 §6.2 step 1
        let mut rtt = RoundTrip::new();
        let mut now = Time::from_ns(1);
        rtt.sample(now, MS);
        for _ in 0..3 {
            assert_eq!(rtt.minimum(), MS);
            now = now + Duration::from_secs(20);
            rtt.sample(now, 5 * MS);
        }
        now = now + Duration::from_secs(31);
        rtt.sample(now, 5 * MS);
        assert_eq!(rtt.minimum(), 5 * MS);
    }

    proptest! {
        #[test]
        fn the_timeout_stays_within_its_bounds(samples in prop::collection::vec(any::<u64>(), 1..50)) {
            let mut rtt = RoundTrip::new();
            for ns in samples {
                rtt.sample(Time::ZERO, Duration::from_nanos(ns));
                prop_assert!(rtt.timeout() >= MIN_VARIANCE && rtt.timeout() <= MAX_RTO);
                prop_assert!(rtt.smoothed().is_some_and(|srtt| srtt <= MAX_RTO));
            }
        }
    }
}
