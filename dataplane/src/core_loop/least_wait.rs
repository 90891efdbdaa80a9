//! How long what a guest says waits for its commit at the least, on the guest's own clock.
//!
//! That clock stands still in the pause that ends an epoch. What was said last in it waits, as the guest sees it, until that
//! pause, and from when the guest runs again until the commit. No client's ACK of it can come sooner, and none of what was
//! said before, by which the agent in the guest tells it from one of Holdfast's own.
//!
//! ```text
//! host's clock    said ... stop, cut ...... cont ............. commit
//! guest's clock   |<----- wait ----------------------------->|        without what lies between stop and cont
//! ```
//!
//! Owned by the polling core. Allocations: when the port is added.

use holdfast_epoch::EpochId;
use std::collections::VecDeque;

/// Cuts whose commits are awaited; of more, the oldest are forgotten.
const CUTS: usize = 64;
/// Commits that are remembered.
const RECENT: usize = 32;
/// Of those one in so many may be sooner than what is told: a single one says little.
const SOONER: usize = 10;

/// The guest's clock as its rings show it, and what was seen of it.
#[derive(Debug)]
pub(super) struct LeastWait {
    /// How long the guest had run when it stopped last.
    ran_ns: u64,
    /// Since when it has run again.
    since_ns: Option<u64>,
    /// What the guest had run when it said something last; none since the last cut.
    said_ns: Option<u64>,
    /// Each cut after which something waited, with that; oldest first.
    cuts: VecDeque<(EpochId, u64)>,
    /// Waits of the last commits in microseconds, oldest first.
    recent: VecDeque<u32>,
}

impl Default for LeastWait {
    fn default() -> Self {
        Self {
            ran_ns: 0,
            since_ns: None,
            said_ns: None,
            cuts: VecDeque::with_capacity(CUTS),
            recent: VecDeque::with_capacity(RECENT),
        }
    }
}

impl LeastWait {
    /// The guest runs, or stands still. Asks for the time when that has changed.
    pub(super) fn follow(&mut self, is_running: bool, clock: impl FnOnce() -> u64) {
        match (is_running, self.since_ns) {
            (true, None) => self.since_ns = Some(clock()),
            (false, Some(since_ns)) => {
                self.ran_ns += clock().saturating_sub(since_ns);
                self.since_ns = None;
            }
            _ => {}
        }
    }

    /// The guest said something, which waits.
    pub(super) fn say(&mut self, now_ns: u64) {
        self.said_ns = Some(self.guest_ns(now_ns));
    }

    /// An epoch was cut.
    pub(super) fn cut(&mut self, epoch: EpochId) {
        let Some(said_ns) = self.said_ns.take() else { return };
        if self.cuts.len() == CUTS {
            self.cuts.pop_front();
        }
        self.cuts.push_back((epoch, said_ns));
    }

    /// An epoch was committed, and those before it.
    pub(super) fn committed(&mut self, epoch: EpochId, now_ns: u64) {
        while let Some((cut, then_ns)) = self.cuts.front().copied().filter(|(cut, _)| *cut <= epoch) {
            self.cuts.pop_front();
            let wait_us = (self.guest_ns(now_ns) - then_ns) / 1000;
            // The guest runs before the commit comes. A core that sees both at once was late itself.
            if cut == epoch && wait_us > 0 {
                if self.recent.len() == RECENT {
                    self.recent.pop_front();
                }
                self.recent.push_back(u32::try_from(wait_us).unwrap_or(u32::MAX));
            }
        }
    }

    /// Epochs ended: those to come are looked at anew.
    pub(super) fn clear(&mut self) {
        self.said_ns = None;
        self.cuts.clear();
        self.recent.clear();
    }

    /// Nine in ten of the last commits took longer than this; none without commits.
    pub(super) fn least_us(&self) -> Option<u32> {
        let mut sorted = [0; RECENT];
        let sorted = &mut sorted[..self.recent.len()];
        sorted.iter_mut().zip(&self.recent).for_each(|(place, wait_us)| *place = *wait_us);
        sorted.sort_unstable();
        sorted.get(sorted.len() / SOONER).copied()
    }

    fn guest_ns(&self, now_ns: u64) -> u64 {
        self.ran_ns + self.since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1000;
    const MS: u64 = 1_000_000;

    const fn epoch(number: u64) -> EpochId {
        EpochId::new(number)
    }

    /// An epoch that ends at `at_ns`, 100 us after the guest has said something; it runs again after 3 ms.
    fn pause(wait: &mut LeastWait, number: u64, at_ns: u64) {
        wait.say(at_ns - 100 * US);
        wait.follow(false, || at_ns);
        wait.cut(epoch(number));
        wait.follow(true, || at_ns + 3 * MS);
    }

    #[test]
    fn a_wait_lasts_from_what_was_said_last_to_the_commit_without_the_pause() {
        let mut wait = LeastWait::default();
        wait.follow(true, || 0);
        assert_eq!(wait.least_us(), None);
        pause(&mut wait, 1, 10 * MS);
        assert_eq!(wait.least_us(), None);
        wait.committed(epoch(1), 14 * MS + 500 * US);
        assert_eq!(wait.least_us(), Some(1600));
        wait.clear();
        assert_eq!(wait.least_us(), None);
    }

    #[test]
    fn an_epoch_without_output_and_a_commit_that_comes_with_the_guest_say_nothing() {
        let mut wait = LeastWait::default();
        wait.follow(true, || 0);
        wait.follow(false, || 10 * MS);
        wait.cut(epoch(1));
        wait.follow(true, || 13 * MS);
        wait.committed(epoch(1), 14 * MS);
        wait.follow(false, || 20 * MS);
        wait.say(20 * MS);
        wait.cut(epoch(2));
        wait.committed(epoch(2), 23 * MS);
        assert_eq!(wait.least_us(), None);
    }

    #[test]
    fn other_pauses_meanwhile_do_not_count() {
        let mut wait = LeastWait::default();
        wait.follow(true, || 0);
        pause(&mut wait, 1, 10 * MS);
        pause(&mut wait, 2, 20 * MS);
        wait.committed(epoch(1), 24 * MS);
        assert_eq!(wait.least_us(), Some(8100), "7 ms of the second epoch and 1 ms of the third");
        pause(&mut wait, 3, 30 * MS);
        wait.follow(false, || 33 * MS + 100 * US);
        wait.committed(epoch(3), 50 * MS);
        assert_eq!(wait.least_us(), Some(200), "it stands still when the commit comes");
    }

    #[test]
    fn a_few_early_commits_do_not_count_and_old_ones_are_forgotten() {
        let mut wait = LeastWait::default();
        wait.follow(true, || 0);
        let mut commit = |number: u64, wait_us: u64| {
            pause(&mut wait, number, number * 20 * MS);
            wait.committed(epoch(number), number * 20 * MS + 3 * MS + (wait_us - 100) * US);
            wait.least_us()
        };
        for number in 1..=RECENT as u64 {
            commit(number, if number % 11 == 5 { 110 } else { 2000 });
        }
        assert_eq!(commit(100, 2000), Some(2000), "three of them were early");
        assert_eq!(commit(101, 110), Some(110), "four of them were");
        for number in 200..200 + RECENT as u64 {
            commit(number, 700);
        }
        assert_eq!(commit(300, 700), Some(700));
    }

    #[test]
    fn cuts_that_are_never_committed_are_forgotten() {
        let mut wait = LeastWait::default();
        wait.follow(true, || 0);
        for number in 1..=3 * CUTS as u64 {
            pause(&mut wait, number, number * 20 * MS);
        }
        assert_eq!((wait.cuts.len(), wait.cuts.capacity()), (CUTS, CUTS));
        wait.committed(epoch(3 * CUTS as u64), 3 * CUTS as u64 * 20 * MS + 4 * MS);
        assert_eq!((wait.cuts.len(), wait.recent.len()), (0, 1));
    }
}
