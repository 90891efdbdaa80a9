//! The timers of one sender: moments, each of which may be off.

use crate::Time;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// Retransmission (RFC 6298 §5).
    Retransmit,
    /// Tail loss probe (RFC 8985 §7.2).
    TailProbe,
    /// The end of the reordering window (RFC 8985 §6.2).
    Reorder,
    /// Zero-window probe (RFC 9293 §3.8.6.1).
    Persist,
    /// Sending is held by pacing or by a full log until then.
    Hold,
    /// Silly window avoidance holds a segment until then (RFC 9293 §3.8.6.2.1).
    Override,
    /// The client is given up (R2, RFC 9293 §3.8.3).
    GiveUp,
}

const COUNT: usize = 7;
const OFF: Time = Time::from_ns(u64::MAX);

/// All of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timers([Time; COUNT]);

impl Timers {
    pub(super) const fn new() -> Self {
        Self([OFF; COUNT])
    }

    pub(super) fn set(&mut self, timer: Timer, at: Time) {
        self.0[timer as usize] = at;
    }

    pub(super) fn stop(&mut self, timer: Timer) {
        self.set(timer, OFF);
    }

    pub(super) fn stop_all(&mut self) {
        *self = Self::new();
    }

    pub(super) fn get(&self, timer: Timer) -> Option<Time> {
        let at = self.0[timer as usize];
        (at != OFF).then_some(at)
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.get(timer).is_some()
    }

    /// Whether it is due; it is off afterwards.
    pub(super) fn take_due(&mut self, timer: Timer, now: Time) -> bool {
        let due = self.get(timer).is_some_and(|at| at <= now);
        if due {
            self.stop(timer);
        }
        due
    }

    /// The earliest.
    pub(super) fn earliest(&self) -> Option<Time> {
        self.0.iter().copied().min().filter(|&at| at != OFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_timer_counts_and_is_due_once() {
        let mut timers = Timers::new();
        assert_eq!(timers.earliest(), None);
        timers.set(Timer::Retransmit, Time::from_ns(20));
        timers.set(Timer::Hold, Time::from_ns(10));
        assert_eq!(timers.earliest(), Some(Time::from_ns(10)));
        assert!(!timers.take_due(Timer::Hold, Time::from_ns(9)));
        assert!(timers.take_due(Timer::Hold, Time::from_ns(10)));
        assert!(!timers.take_due(Timer::Hold, Time::from_ns(10)));
        assert_eq!(timers.earliest(), Some(Time::from_ns(20)));
    }
}
