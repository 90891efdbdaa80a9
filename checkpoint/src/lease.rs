//! Time to transmit, as the backup gives it away (FO-1; decision 0005).
//!
//! The backup's answer to a heartbeat is a promise: *I shall not go live before the lease and its
//! margin have passed since this answer.* The primary counts the lease from when it sent the heartbeat,
//! which is earlier; so it falls silent before the backup moves, however the messages were delayed.
//! Who then goes live is the arbiter's business, not the clock's (FO-2).
//!
//! The link's thread answers heartbeats, the supervisor decides to go live: both act under one lock, so
//! that no answer is given once the decision has been made.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The backup's promises for one virtual machine.
#[derive(Clone, Debug)]
pub struct LeaseGrants(Arc<Mutex<Grants>>);

#[derive(Debug)]
struct Grants {
    /// When the last promise was made.
    last: Instant,
    /// Whether promises are still made.
    open: bool,
}

impl LeaseGrants {
    /// No promise is known; one may have been made just before `now` by an earlier process.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Grants { last: now, open: true })))
    }

    /// Whether a heartbeat may be answered now; if so, the promise is made.
    #[must_use]
    pub fn promise(&self, now: Instant) -> bool {
        let mut grants = self.lock();
        if grants.open {
            grants.last = now;
        }
        grants.open
    }

    /// Ends all promises if none was made for `span`: from then on no heartbeat is answered.
    ///
    /// # Errors
    /// The time that is left until the last promise has run out.
    pub fn close_after(&self, span: Duration, now: Instant) -> Result<(), Duration> {
        let mut grants = self.lock();
        let since = now.saturating_duration_since(grants.last);
        if grants.open && since < span {
            return Err(span - since);
        }
        grants.open = false;
        Ok(())
    }

    /// Ends all promises at once: the primary gave the machine up by itself.
    pub fn close(&self) {
        self.lock().open = false;
    }

    /// Promises are made again: the arbiter has decided against this host.
    pub fn reopen(&self, now: Instant) {
        *self.lock() = Grants { last: now, open: true };
    }

    /// When the last promise was made.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.lock().last
    }

    fn lock(&self) -> MutexGuard<'_, Grants> {
        // The two fields are written together and nothing panics in between.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_millis(400);

    /// FO-1: the backup cannot decide to go live while a promise lasts, nor promise once it decided.
    #[test]
    fn a_promise_and_the_decision_to_go_live_exclude_each_other() {
        let start = Instant::now();
        let grants = LeaseGrants::new(start);
        let at = |ms| start + Duration::from_millis(ms);
        assert!(grants.promise(at(100)));
        assert_eq!(grants.close_after(SPAN, at(300)), Err(Duration::from_millis(200)));
        assert!(grants.promise(at(350)));
        assert_eq!(grants.close_after(SPAN, at(749)), Err(Duration::from_millis(1)));
        assert_eq!(grants.close_after(SPAN, at(750)), Ok(()));
        assert!(!grants.promise(at(751)), "no answer after the decision");
        grants.reopen(at(800));
        assert!(grants.promise(at(801)));
    }

    /// FO-1: a process that has just started keeps the promise that its predecessor may have made.
    #[test]
    fn a_new_process_waits_as_if_it_had_just_promised() {
        let start = Instant::now();
        let grants = LeaseGrants::new(start);
        assert!(grants.close_after(SPAN, start + SPAN / 2).is_err());
        assert!(grants.close_after(SPAN, start + SPAN).is_ok());
    }

    #[test]
    fn a_machine_given_up_needs_no_waiting() {
        let now = Instant::now();
        let grants = LeaseGrants::new(now);
        assert!(grants.promise(now));
        grants.close();
        assert!(grants.close_after(SPAN, now).is_ok());
    }
}
