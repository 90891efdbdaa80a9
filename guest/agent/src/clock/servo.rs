//! How fast the guest's wall clock has to go: a machine without clock or socket.
//!
//! QEMU stops the guest's clocks in every pause, so that a protected guest's time runs slow by the paused share, a
//! tenth of it and more. An exchange tells the host's time: asked at `a` and heard at `b` of the guest's clock, it
//! was `(a+b)/2` there, give or take half the round trip. From exchanges of the last eight seconds, of each end of
//! them the one of the shortest round trip, follow
//!
//! ```text
//!   lag     how fast the host's clock goes against the guest's own, untouched one (CLOCK_MONOTONIC_RAW)
//!   offset  how far the host's clock is ahead of the guest's wall clock now
//!   slew = lag + offset / 4 s            within bounds; both by which the wall clock is to go faster
//! ```
//!
//! The lag is measured on the clock that the slew does not touch, so nothing here can swing. A clock that is right
//! is left alone: slewing begins at 10 ms or 2000 ppm, and ends within 3 ms and 500 ppm.
//!
//! What it cannot know: the guest's clock stands still in a pause, so a pause in the midst of an exchange does not
//! lengthen its round trip as the guest sees it. One between the host's reading and the guest's hearing makes the
//! guest believe that it is ahead by so much less: the clock is late by up to one pause then (some milliseconds).
//! Each pause makes it late by itself as well, until the slew has made that up before the next one.
//!
//! An answer that does not fit the ones before is set aside; only when four in a row fit each other, as after
//! a failover to a host whose clock differs, is it they that count. Nothing is ever stepped here.

use std::collections::VecDeque;

/// So long without an exchange that counts, and the clock is left to itself.
pub(crate) const PATIENCE_NS: i64 = 3_000_000_000;
/// The fastest that the wall clock is made to go, and the slowest.
pub(crate) const MOST_PPM: f64 = 220_000.0;
const LEAST_PPM: f64 = -100_000.0;
/// What of it may be for the offset.
const MOST_FOR_OFFSET_PPM: f64 = 80_000.0;
/// An offset is made up within a few times this.
const TAU_NS: f64 = 4e9;
/// Exchanges that are looked at, and those of each end of them.
const WINDOW: usize = 32;
const END: usize = 8;
/// No slew before the exchanges reach so far.
const LEAST_SPAN_NS: i64 = 4_000_000_000;
/// An exchange of a longer round trip says too little.
const LONGEST_TRIP_NS: i64 = 100_000_000;
/// The host's time goes on by no less than the guest's, and by no more than this many times it, between exchanges.
const SWIFTEST: i64 = 4;
const SLACK_NS: i64 = 250_000_000;
/// So many strangers that fit each other are believed.
const STRANGERS: usize = 4;
/// From 2024 to 2200: no host that answers lives at another time.
const EARLIEST_NS: i64 = 1_704_067_200_000_000_000;
const LATEST_NS: i64 = 7_258_118_400_000_000_000;

const BEGIN_OFFSET_NS: f64 = 10e6;
const BEGIN_LAG_PPM: f64 = 2000.0;
const END_OFFSET_NS: f64 = 3e6;
const END_LAG_PPM: f64 = 500.0;

/// One question and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    /// `CLOCK_MONOTONIC_RAW` when it was asked.
    pub(crate) asked_ns: i64,
    /// The same when the answer was heard.
    pub(crate) heard_ns: i64,
    /// The host's wall clock in between.
    pub(crate) host_ns: i64,
}

impl Exchange {
    fn trip_ns(&self) -> i64 {
        self.heard_ns - self.asked_ns
    }

    fn raw_ns(&self) -> i64 {
        self.asked_ns + self.trip_ns() / 2
    }

    /// Whether the host's clock can have come from there to here.
    fn fits(&self, before: &Self) -> bool {
        let raw = self.raw_ns() - before.raw_ns();
        let host = self.host_ns - before.host_ns;
        host >= raw - raw / 8 - SLACK_NS && host <= raw.saturating_mul(SWIFTEST) + SLACK_NS
    }
}

/// What is known, and what follows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Verdict {
    /// How far the host's clock is ahead; none without exchanges.
    pub(crate) offset_ns: Option<i64>,
    /// By so much the guest's own clock is slow; zero until that is measured.
    pub(crate) lag_ppm: f64,
    /// Whether the exchanges reach far enough for a verdict.
    pub(crate) measured: bool,
    /// By so much the wall clock is to go faster than by itself; none when it is to be left alone.
    pub(crate) slew_ppm: Option<f64>,
}

/// The exchanges, and whether the clock is being slewed.
#[derive(Debug, Default)]
pub(crate) struct Servo {
    window: VecDeque<Exchange>,
    strangers: Vec<Exchange>,
    /// Survives a new beginning of the window.
    lag_ppm: Option<f64>,
    slewing: bool,
}

impl Servo {
    /// An answer came.
    pub(crate) fn handle_exchange(&mut self, exchange: Exchange) {
        let is_sound = (0..=LONGEST_TRIP_NS).contains(&exchange.trip_ns())
            && (EARLIEST_NS..LATEST_NS).contains(&exchange.host_ns);
        if !is_sound {
            return;
        }
        let Some(last) = self.window.back() else { return self.window.push_back(exchange) };
        if exchange.fits(last) {
            self.strangers.clear();
            if self.window.len() == WINDOW {
                self.window.pop_front();
            }
            return self.window.push_back(exchange);
        }
        if self.strangers.last().is_some_and(|last| !exchange.fits(last)) {
            self.strangers.clear();
        }
        self.strangers.push(exchange);
        if self.strangers.len() == STRANGERS {
            self.window = self.strangers.drain(..).collect();
        }
    }

    /// The verdict when the guest's clocks show that.
    pub(crate) fn poll(&mut self, raw_ns: i64, real_ns: i64) -> Verdict {
        if self.window.back().is_none_or(|last| raw_ns - last.heard_ns > PATIENCE_NS) {
            *self = Self::default();
            return Verdict::default();
        }
        let ends = self.window.len().min(END);
        let early = best(self.window.iter().take(ends));
        let late = best(self.window.iter().rev().take(ends));
        let span_ns = late.raw_ns() - early.raw_ns();
        let measured = self.window.len() >= 2 * END && span_ns >= LEAST_SPAN_NS;
        // What the round trips leave open.
        let unsure_ns = (early.trip_ns() + late.trip_ns()) as f64 / 2.0;
        let unsure_ppm = unsure_ns / span_ns.max(1) as f64 * 1e6;
        if measured {
            let host_ns = late.host_ns - early.host_ns;
            self.lag_ppm = Some((host_ns - span_ns) as f64 / span_ns as f64 * 1e6);
        }
        let lag_ppm = self.lag_ppm.unwrap_or(0.0);
        let since_ns = raw_ns - late.raw_ns();
        let host_now_ns = late.host_ns + since_ns + (since_ns as f64 * lag_ppm / 1e6) as i64;
        let offset_ns = host_now_ns - real_ns;
        let offset = offset_ns as f64;
        if self.slewing {
            let is_right = offset.abs() < END_OFFSET_NS && lag_ppm.abs() < END_LAG_PPM;
            self.slewing = !(measured && is_right);
        } else if measured {
            self.slewing =
                offset.abs() - unsure_ns > BEGIN_OFFSET_NS || lag_ppm.abs() - unsure_ppm > BEGIN_LAG_PPM;
        }
        let for_offset = (offset / TAU_NS * 1e6).clamp(-MOST_FOR_OFFSET_PPM, MOST_FOR_OFFSET_PPM);
        let slew_ppm = self.slewing.then(|| (lag_ppm + for_offset).clamp(LEAST_PPM, MOST_PPM));
        Verdict { offset_ns: Some(offset_ns), lag_ppm, measured, slew_ppm }
    }
}

/// The one of the shortest round trip; the newest of them.
fn best<'a>(exchanges: impl Iterator<Item = &'a Exchange>) -> Exchange {
    *exchanges.min_by_key(|exchange| exchange.trip_ns()).expect("the window is not empty")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START_NS: i64 = 1_800_000_000_000_000_000;
    const MS: i64 = 1_000_000;

    /// A guest that is paused, its clocks, and a host, on virtual time; what is slewed takes effect when the
    /// guest's wall clock begins a second, as in the kernel.
    struct Guest {
        host_ns: i64,
        raw_ns: i64,
        real_ns: i64,
        slew_ppm: f64,
        wanted_ppm: f64,
        paused_of_25_ms: i64,
        seed: u64,
        servo: Servo,
        verdict: Verdict,
    }

    impl Guest {
        fn new(behind_ns: i64, paused_of_25_ms: i64) -> Self {
            Self {
                host_ns: START_NS,
                raw_ns: 0,
                real_ns: START_NS - behind_ns,
                slew_ppm: 0.0,
                wanted_ppm: 0.0,
                paused_of_25_ms,
                seed: 7,
                servo: Servo::default(),
                verdict: Verdict::default(),
            }
        }

        /// xorshift.
        fn random(&mut self, below: i64) -> i64 {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            (self.seed % below as u64) as i64
        }

        /// The host's time goes on, by tenths of a millisecond.
        fn pass(&mut self, host_ns: i64) {
            for _ in 0..host_ns / (MS / 10) {
                self.host_ns += MS / 10;
                if (self.host_ns / (MS / 10)) % 250 < self.paused_of_25_ms * 10 {
                    continue;
                }
                self.raw_ns += MS / 10;
                let second = self.real_ns / (1000 * MS);
                self.real_ns += (MS as f64 / 10.0 * (1.0 + self.slew_ppm / 1e6)) as i64;
                if self.real_ns / (1000 * MS) != second {
                    self.slew_ppm = self.wanted_ppm;
                }
            }
        }

        fn wait_guest(&mut self, raw_ns: i64) {
            let until = self.raw_ns + raw_ns;
            while self.raw_ns < until {
                self.pass(MS / 10);
            }
        }

        /// A question, an answer that tells the host's time and what is added, and what follows.
        fn exchange(&mut self, add_ns: i64) {
            let asked_ns = self.raw_ns;
            let there = self.random(2 * MS) + if self.random(5) == 0 { 10 * MS } else { 0 };
            self.wait_guest(there);
            let host_ns = self.host_ns + add_ns;
            let back = self.random(2 * MS) + if self.random(5) == 0 { 20 * MS } else { 0 };
            self.wait_guest(back);
            self.servo.handle_exchange(Exchange { asked_ns, heard_ns: self.raw_ns, host_ns });
            self.verdict = self.servo.poll(self.raw_ns, self.real_ns);
            self.wanted_ppm = self.verdict.slew_ppm.unwrap_or(0.0);
            self.wait_guest(250 * MS);
        }

        fn run(&mut self, seconds: i64) {
            let until = self.host_ns + seconds * 1000 * MS;
            while self.host_ns < until {
                self.exchange(0);
            }
        }

        fn behind_ms(&self) -> f64 {
            (self.host_ns - self.real_ns) as f64 / 1e6
        }
    }

    #[test]
    fn a_clock_that_is_slow_by_an_eighth_is_right_within_half_a_minute_and_stays_so() {
        let mut guest = Guest::new(500 * MS, 3);
        guest.run(35);
        for _ in 0..240 {
            guest.exchange(0);
            assert!(guest.behind_ms().abs() < 8.0, "{} ms behind", guest.behind_ms());
        }
        let lag_ppm = guest.verdict.lag_ppm;
        assert!((lag_ppm - 136_364.0).abs() < 3000.0, "{lag_ppm} ppm");
    }

    /// Without pauses nothing stands between the exchanges and the truth but jitter.
    #[test]
    fn a_clock_that_is_late_once_is_slewed_until_it_is_right_and_then_left_alone() {
        let mut guest = Guest::new(200 * MS, 0);
        guest.run(60);
        assert!(guest.behind_ms().abs() < 5.0, "{} ms behind", guest.behind_ms());
        assert_eq!(guest.verdict.slew_ppm, None);
    }

    #[test]
    fn a_clock_that_is_right_is_not_touched() {
        let mut guest = Guest::new(5 * MS, 0);
        for _ in 0..200 {
            guest.exchange(0);
            assert_eq!(guest.verdict.slew_ppm, None);
        }
    }

    #[test]
    fn no_slew_is_greater_than_the_bounds_and_a_clock_an_hour_late_is_never_stepped() {
        let mut guest = Guest::new(3_600_000 * MS, 5);
        let mut last = guest.real_ns;
        for _ in 0..100 {
            guest.exchange(0);
            assert!(guest.verdict.slew_ppm.unwrap_or(0.0) <= MOST_PPM);
            let (went, may) = (guest.real_ns - last, 400 * MS);
            assert!(went > 0 && went < may, "{went} ns at once");
            last = guest.real_ns;
        }
    }

    #[test]
    fn garbage_among_the_answers_moves_nothing_and_another_host_is_believed_soon() {
        let mut guest = Guest::new(0, 3);
        guest.run(30);
        for round in 0..90 {
            match round % 3 {
                0 => guest.exchange(0),
                1 => guest.exchange(5_000_000 * MS),
                _ => guest.exchange(-guest.host_ns),
            }
            assert!(guest.behind_ms().abs() < 12.0, "{} ms behind", guest.behind_ms());
        }
        guest.host_ns += 600 * MS;
        guest.run(40);
        assert!(guest.behind_ms().abs() < 8.0, "{} ms behind", guest.behind_ms());
    }

    #[test]
    fn without_answers_the_clock_is_left_to_itself_within_seconds() {
        let mut guest = Guest::new(0, 3);
        guest.run(20);
        assert!(guest.verdict.slew_ppm.is_some());
        guest.wait_guest(PATIENCE_NS + MS);
        assert_eq!(guest.servo.poll(guest.raw_ns, guest.real_ns), Verdict::default());
    }

    proptest! {
        /// RB-1: whatever is said, the slew is within its bounds.
        #[test]
        fn any_exchanges_are_read_or_refused(said in proptest::collection::vec((any::<i32>(), any::<u32>(), any::<u64>(), any::<bool>()), 0..100)) {
            let mut servo = Servo::default();
            let mut raw_ns = 0;
            for (trip, host, wild, sane) in said {
                raw_ns += 250 * MS;
                let host_ns = if sane { START_NS + raw_ns + i64::from(host) } else { wild as i64 & i64::MAX };
                servo.handle_exchange(Exchange { asked_ns: raw_ns - i64::from(trip), heard_ns: raw_ns, host_ns });
                let slew = servo.poll(raw_ns, START_NS + raw_ns).slew_ppm.unwrap_or(0.0);
                prop_assert!((LEAST_PPM..=MOST_PPM).contains(&slew));
            }
        }
    }
}
