//! When pages are copied ahead of the pause in which their epoch is sealed.
//!
//! A guest that writes to many pages would stand still for as long as it takes to copy them. So while it
//! runs, passes take what it has written so far and copy it; the pause is left with what was written since
//! the last pass. Each pass comes when half of the time to the seal is over, as long as enough is
//! expected to be there:
//!
//! ```text
//!   runs |---------------------------|-------------|------|---|-| seal
//!                                  pass          pass    ...      what is left: about LEAST_OF_PASS pages
//! ```
//!
//! A page that is written again after it was copied ahead is copied again in the pause: once for nothing,
//! and no page more than once an epoch. Those pages are known and left to the pause from then on, until they
//! get another chance. Where most of what passes find is of that kind, the next epochs do without, ever more
//! of them. Guests that write little never see a pass.

use std::time::{Duration, Instant};

/// After an epoch with fewer pages than this the next one is left to its pause.
pub(crate) const LEAST_OF_EPOCH: u64 = 2048;

/// A pass for fewer pages than this is not worth a scan.
const LEAST_OF_PASS: f64 = 256.0;

/// Epochs that are done without at the most, before another attempt.
const LONGEST_REST: u32 = 64;

/// So many epochs with passes, and every page has another chance.
const CHANCE: u32 = 8;

/// Decides when the next pass is due. Instants are the caller's.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Pages a second that the guest wrote to in the last epoch.
    rate: f64,
    /// Pages of the last epoch.
    pages: u64,
    began: Instant,
    /// When the seal of the open epoch is expected.
    until: Instant,
    due: Option<Instant>,
    /// Whether there was a pass in the open epoch.
    tried: bool,
    /// Epochs to do without, and how many that were the last time.
    rest: u32,
    rested: u32,
    /// Epochs with passes.
    epochs: u32,
}

/// What an epoch's passes came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passed {
    /// Pages of the epoch.
    pub(super) pages: u64,
    /// Pages that passes had found.
    pub(super) found: u64,
    /// Pages that were copied ahead and not written since.
    pub(super) settled: u64,
}

impl Ahead {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rate: 0.0,
            pages: 0,
            began: now,
            until: now,
            due: None,
            tried: false,
            rest: 0,
            rested: 0,
            epochs: 0,
        }
    }

    /// The guest runs in an epoch that is to be sealed at `until`.
    pub(super) fn begin(&mut self, now: Instant, until: Instant) {
        (self.began, self.until, self.due, self.tried) = (now, until, None, false);
        if self.pages < LEAST_OF_EPOCH {
            return;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        self.due = Some(now + self.gap(now));
    }

    /// When a pass is due, if one is.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// No pass any more in this epoch.
    pub(super) const fn stop(&mut self) {
        self.due = None;
    }

    /// A pass is over that took so long, found so many pages and could copy so many of them.
    pub(super) fn passed(&mut self, now: Instant, took: Duration, found: u64, copied: u64) {
        self.tried = true;
        let in_vain = copied * 2 < found;
        // Little is there to be found after a pass that was short, but a scan of much memory is long.
        self.due = (!in_vain).then(|| now + self.gap(now).max(3 * took));
    }

    /// The epoch is sealed. Says whether every page is to have another chance.
    pub(super) fn sealed(&mut self, now: Instant, passed: Passed) -> bool {
        let ran = now.saturating_duration_since(self.began).as_secs_f64();
        (self.pages, self.rate) = (passed.pages, passed.pages as f64 / ran.max(1e-3));
        // Of an epoch that nobody begins here that is close enough.
        self.began = now;
        self.due = None;
        if !std::mem::take(&mut self.tried) {
            return false;
        }
        if passed.settled * 2 < passed.found {
            self.rested = (self.rested * 2).clamp(1, LONGEST_REST);
            self.rest = self.rested;
        } else {
            self.rested = 0;
        }
        self.epochs += 1;
        self.epochs % CHANCE == 0
    }

    /// From now to the next pass: half of what is left, but as long as it takes for a pass to be worth it.
    fn gap(&self, now: Instant) -> Duration {
        let half = self.until.saturating_duration_since(now) / 2;
        let worth = Duration::from_secs_f64((LEAST_OF_PASS / self.rate.max(1.0)).min(60.0));
        half.max(worth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Duration = Duration::from_millis(500);

    /// Runs an epoch in which each pass copies the share `copied` of what it found; the times of its passes.
    fn epoch(ahead: &mut Ahead, start: Instant, pages: u64, copied: f64) -> Vec<u64> {
        let (mut passes, mut last, mut found) = (Vec::new(), start, 0);
        ahead.begin(start, start + RUN);
        while let Some(due) = ahead.due().filter(|due| *due < start + RUN) {
            passes.push((due - start).as_millis() as u64);
            let new = (pages as f64 * (due - last).as_secs_f64() / RUN.as_secs_f64()) as u64;
            (last, found) = (due, found + new);
            ahead.passed(due, Duration::ZERO, new, (new as f64 * copied) as u64);
        }
        let settled = (found as f64 * copied) as u64;
        ahead.sealed(start + RUN, Passed { pages, found, settled });
        passes
    }

    #[test]
    fn passes_come_closer_to_each_other_until_little_is_left() {
        let start = Instant::now();
        let mut ahead = Ahead::new(start);
        assert!(epoch(&mut ahead, start, 20_000, 1.0).is_empty(), "nothing is known yet");
        let passes = epoch(&mut ahead, start, 20_000, 1.0);
        assert_eq!(passes[..5], [250, 375, 437, 468, 484]);
        let last = *passes.last().unwrap();
        assert!(last >= 490 && passes.len() < 10, "{passes:?}");
    }

    #[test]
    fn a_guest_that_writes_little_never_sees_a_pass() {
        let start = Instant::now();
        let mut ahead = Ahead::new(start);
        for _ in 0..5 {
            assert!(epoch(&mut ahead, start, LEAST_OF_EPOCH - 1, 1.0).is_empty());
        }
    }

    #[test]
    fn where_pages_do_not_settle_passes_become_rare() {
        let start = Instant::now();
        let mut ahead = Ahead::new(start);
        let passes: Vec<usize> = (0..200).map(|_| epoch(&mut ahead, start, 20_000, 0.1).len()).collect();
        let tried = passes.iter().filter(|count| **count > 0).count();
        assert!(passes.iter().all(|count| *count <= 1), "one is enough to see it");
        assert!((6..=9).contains(&tried), "{tried} of 200");
        // As soon as they settle, they are copied again.
        let settle = (0..=LONGEST_REST).position(|_| epoch(&mut ahead, start, 20_000, 1.0).len() > 3);
        assert!(settle.is_some());
        assert!(epoch(&mut ahead, start, 20_000, 1.0).len() > 3);
    }

    #[test]
    fn a_seal_that_is_late_is_waited_for_with_passes_that_are_worth_it() {
        let start = Instant::now();
        let mut ahead = Ahead::new(start);
        epoch(&mut ahead, start, 20_000, 1.0);
        ahead.begin(start, start);
        // 40 pages a millisecond.
        assert_eq!(ahead.due(), Some(start + Duration::from_micros(6400)));
        ahead.stop();
        assert_eq!(ahead.due(), None);
    }
}
