//! When the next epoch ends.

use std::time::Duration;

/// What is known of an epoch when its guest runs again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochFacts {
    /// How long the guest ran in it.
    pub ran: Duration,
    /// The pause that ended it.
    pub pause: Duration,
    /// Bytes that the guest sent and received in it.
    pub traffic_bytes: u64,
}

/// What ends an epoch in which there is output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutput {
    /// Its length, as if there were none.
    Nothing,
    /// The guest runs for so long in all.
    End(Duration),
    /// It ends when the guest has neither sent nor received anything for `quiet`, and has run for `least` in
    /// all.
    EndWhenQuiet {
        /// How long.
        quiet: Duration,
        /// How long it runs at least.
        least: Duration,
    },
}

/// Decides how long the guest runs before the next seal.
pub trait EpochPolicy: Send {
    /// An epoch has ended as `last` says: how long the guest runs in the next one at most.
    fn run_for(&mut self, last: &EpochFacts) -> Duration;

    /// The guest has said something for the first time in this epoch: what ends the epoch, if not its
    /// length.
    fn on_output(&self) -> OnOutput;

    /// The operator wants epochs of this length; of this length at most, where something else ends them.
    fn set_length(&mut self, length: Duration);
}

/// Epochs of a fixed length, from one pause to the next; but the guest runs for a quarter of it at
/// least, so that long pauses cannot starve it.
#[derive(Clone, Copy, Debug)]
pub struct FixedLength(Duration);

impl FixedLength {
    /// Epochs of this length.
    #[must_use]
    pub const fn new(length: Duration) -> Self {
        Self(length)
    }
}

impl EpochPolicy for FixedLength {
    fn run_for(&mut self, last: &EpochFacts) -> Duration {
        self.0.saturating_sub(last.pause).max(self.0 / 4)
    }

    fn on_output(&self) -> OnOutput {
        OnOutput::Nothing
    }

    fn set_length(&mut self, length: Duration) {
        self.0 = length;
    }
}

/// An epoch with more traffic than this is one of bulk, and the next one is taken to be: to end that at its
/// first output would delay all that follows for the sake of its beginning.
const BULK_BYTES: u64 = 32 << 10;

/// Bulk that has paused for so long, and for half of what it costs to look, is over: its sender waits for an
/// answer. On a processor that is shared a sender is silent for a while without having ended.
const QUIET: Duration = Duration::from_millis(2);

/// Weight of the last pause in the pause that is expected.
const PAUSE_WEIGHT: f64 = 0.25;

/// Epochs that follow the output: one ends as soon as the guest has said something, so that a request waits
/// for a checkpoint and not for an epoch; in bulk, as soon as the guest falls silent. One in which nothing
/// waits runs to its full length.
///
/// The guest stands still for no more than a share of the time: each pause is paid for by running, before
/// it or after. An idle guest saves up for one pause and no more, so that in any span the pauses take at
/// most the share of it and the length of one pause beyond.
///
/// Source: Kemari (Tamura et al. 2008) ends epochs by events alone; without a bound a busy guest stands
/// still for most of the time.
#[derive(Clone, Copy, Debug)]
pub struct FollowOutput {
    longest: Duration,
    /// Of the time, that the guest may stand still: above 0 and below 1.
    share: f64,
    /// Time in seconds that it may stand still now; negative when it has stood still for too long.
    credit_s: f64,
    /// The pause to expect, in seconds.
    pause_s: f64,
    bulk: bool,
}

impl FollowOutput {
    /// Epochs of at most `longest`, with the guest standing still for at most `share` of the time. Of the two
    /// bounds the share is the stronger: after an uncommonly long pause an epoch is longer.
    #[must_use]
    pub fn new(longest: Duration, share: f64) -> Self {
        Self { longest, share: share.clamp(0.01, 0.9), credit_s: 0.0, pause_s: 0.0, bulk: false }
    }

    /// How long the guest has to run before the next pause is paid for.
    fn least(&self) -> Duration {
        // The pause itself takes time, too, and earns its share.
        let lacking = self.pause_s * (1.0 - self.share) - self.credit_s;
        Duration::from_secs_f64((lacking / self.share).max(0.0))
    }
}

impl EpochPolicy for FollowOutput {
    fn run_for(&mut self, last: &EpochFacts) -> Duration {
        let (ran, pause) = (last.ran.as_secs_f64(), last.pause.as_secs_f64());
        self.pause_s += PAUSE_WEIGHT * (pause - self.pause_s);
        if self.pause_s < pause / 2.0 {
            // The first one, or a sudden change.
            self.pause_s = pause;
        }
        self.credit_s = (self.credit_s + self.share * ran).min(self.pause_s.max(pause));
        self.credit_s += self.share * pause - pause;
        self.bulk = last.traffic_bytes > BULK_BYTES;
        self.longest.saturating_sub(last.pause).max(self.least())
    }

    fn on_output(&self) -> OnOutput {
        let least = self.least();
        if !self.bulk {
            return OnOutput::End(least);
        }
        let quiet = Duration::from_secs_f64(self.pause_s / 2.0).clamp(QUIET, QUIET.max(self.longest / 2));
        OnOutput::EndWhenQuiet { quiet, least }
    }

    fn set_length(&mut self, length: Duration) {
        self.longest = length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn facts(ran: u64, pause: u64, traffic_bytes: u64) -> EpochFacts {
        EpochFacts { ran: ms(ran), pause: ms(pause), traffic_bytes }
    }

    #[test]
    fn the_pause_counts_as_part_of_the_epoch_and_the_guest_is_not_starved() {
        let mut policy = FixedLength::new(ms(20));
        assert_eq!(policy.run_for(&facts(15, 5, 1)), ms(15));
        assert_eq!(policy.run_for(&facts(15, 100, 1)), ms(5));
        assert_eq!(policy.on_output(), OnOutput::Nothing);
    }

    /// Runs epochs that the guest's output ends as early as may be, so many bytes in each, for a pause of
    /// `pause`; the share of the time that the guest stood still, without the first epoch.
    fn paused_share(policy: &mut FollowOutput, pause: Duration, traffic_bytes: u64) -> f64 {
        let (mut ran_s, mut paused_s) = (0.0, 0.0);
        let mut last = EpochFacts { ran: ms(100), pause, traffic_bytes };
        for _ in 0..200 {
            let longest = policy.run_for(&last);
            let ran = match policy.on_output() {
                OnOutput::End(run) => run.min(longest),
                OnOutput::EndWhenQuiet { .. } | OnOutput::Nothing => longest,
            };
            (ran_s, paused_s) = (ran_s + ran.as_secs_f64(), paused_s + pause.as_secs_f64());
            last = EpochFacts { ran, pause, traffic_bytes };
        }
        paused_s / (ran_s + paused_s)
    }

    #[test]
    fn a_guest_that_always_says_something_stands_still_for_its_share_and_no_more() {
        for (share, pause) in [(0.2, ms(5)), (0.4, ms(5)), (0.5, ms(12)), (0.1, ms(1))] {
            let mut policy = FollowOutput::new(ms(500), share);
            let found = paused_share(&mut policy, pause, 1000);
            assert!((found - share).abs() < 0.02, "share {share}: {found}");
        }
    }

    #[test]
    fn a_share_holds_also_when_the_longest_epoch_is_shorter_than_it_needs() {
        let mut policy = FollowOutput::new(ms(10), 0.2);
        let found = paused_share(&mut policy, ms(8), 10 * BULK_BYTES);
        assert!(found < 0.21, "{found}");
    }

    #[test]
    fn the_first_output_after_idle_time_ends_the_epoch_at_once() {
        let mut policy = FollowOutput::new(ms(100), 0.3);
        policy.run_for(&facts(95, 5, 0));
        let longest = policy.run_for(&facts(95, 5, 0));
        assert_eq!(longest, ms(95), "nothing waits: as long as may be");
        // Idle time has paid for most of one pause, and for one only.
        let OnOutput::End(first) = policy.on_output() else { panic!("soon") };
        assert!(first < ms(12), "{first:?}");
        policy.run_for(&facts(95, 5, 0));
        assert_eq!(policy.on_output(), OnOutput::End(first), "longer idle times save up no more");
    }

    #[test]
    fn bulk_is_left_to_run_until_it_falls_silent() {
        let mut policy = FollowOutput::new(ms(50), 0.3);
        assert_eq!(policy.run_for(&facts(45, 5, BULK_BYTES + 1)), ms(45));
        let quiet = |policy: &FollowOutput| match policy.on_output() {
            OnOutput::EndWhenQuiet { quiet, .. } => quiet,
            other => panic!("{other:?}"),
        };
        assert_eq!(quiet(&policy), Duration::from_micros(2500), "half a pause");
        policy.run_for(&facts(45, 1, BULK_BYTES + 1));
        assert!(quiet(&policy) >= QUIET);
        policy.run_for(&facts(45, 500, BULK_BYTES + 1));
        assert_eq!(quiet(&policy), ms(25), "no longer than half an epoch");
        policy.run_for(&facts(45, 5, 1));
        assert!(matches!(policy.on_output(), OnOutput::End(_)));
    }

    #[test]
    fn a_long_pause_is_paid_for_before_the_next() {
        let mut policy = FollowOutput::new(ms(50), 0.25);
        let run = policy.run_for(&facts(45, 200, 1));
        assert!(run >= ms(400), "{run:?}");
    }
}
