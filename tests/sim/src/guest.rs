//! The guest and its checkpoints.
//!
//! smoltcp's sockets cannot be copied. A checkpoint is therefore a *shadow*: a second guest of the same
//! seed that is given the same calls, but only up to a seal. After a failover the shadow, which stands
//! exactly at the last committed seal, is the guest, and a new shadow is made from the log.

use crate::party::Party;
use crate::random::spread;
use crate::scenario::{Scenario, Side};
use holdfast_speculation::Time;
use std::time::Duration;

/// One call to the guest.
#[derive(Clone, Debug)]
struct Call {
    /// On the guest's clock, which stands still while the guest does.
    at: Time,
    frames: Vec<Vec<u8>>,
    life: Option<u32>,
    /// Digest of what it sent in answer.
    sent: u64,
}

/// The guest, its log, and its shadow.
pub(crate) struct Guest {
    scenario: Scenario,
    live: Party,
    shadow: Party,
    /// Calls that the shadow was given so far.
    shadow_at: usize,
    log: Vec<Call>,
    /// Lag of the guest's clock behind the world's.
    lag: Duration,
    life: u32,
    /// Since when it stands still.
    paused: Option<Time>,
}

/// A point in the guest's life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    calls: usize,
    clock: Time,
}

impl Guest {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            live: Party::new(Side::Guest, scenario),
            shadow: Party::new(Side::Guest, scenario),
            shadow_at: 0,
            log: Vec::new(),
            lag: Duration::ZERO,
            life: 0,
            paused: None,
            scenario: scenario.clone(),
        }
    }

    pub(crate) fn party(&self) -> &Party {
        &self.live
    }

    pub(crate) const fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    fn clock(&self, now: Time) -> Time {
        Time::from_ns(now.as_ns() - self.lag.as_nanos() as u64)
    }

    /// Runs with these frames; appends what it sends.
    pub(crate) fn run(&mut self, now: Time, frames: Vec<Vec<u8>>, out: &mut Vec<Vec<u8>>) {
        assert!(!self.is_paused(), "a guest that stands still does not run");
        let at = self.clock(now);
        self.call(at, frames, None, out);
    }

    fn call(&mut self, at: Time, frames: Vec<Vec<u8>>, life: Option<u32>, out: &mut Vec<Vec<u8>>) {
        let before = out.len();
        if let Some(life) = life {
            self.live.begin_life(life);
        }
        self.live.run(at, frames.iter().cloned(), out);
        self.log.push(Call { at, frames, life, sent: digest(&out[before..]) });
    }

    /// When it wants to run again, on the world's clock; never while it stands still.
    pub(crate) fn deadline(&mut self) -> Option<Time> {
        if self.is_paused() {
            return None;
        }
        Some(self.live.deadline()? + self.lag)
    }

    /// Stands still from now on.
    pub(crate) fn pause(&mut self, now: Time) -> Mark {
        self.paused = Some(now);
        Mark { calls: self.log.len(), clock: self.clock(now) }
    }

    /// Goes on.
    pub(crate) fn resume(&mut self, now: Time) {
        if let Some(since) = self.paused.take() {
            self.lag += now.since(since);
        }
    }

    /// The checkpoint at `mark` is committed: the shadow is brought there.
    ///
    /// # Panics
    /// When the shadow does not do what the guest did: the simulator is at fault.
    pub(crate) fn keep(&mut self, mark: Mark) {
        while self.shadow_at < mark.calls {
            let call = &self.log[self.shadow_at];
            give(&mut self.shadow, call);
            self.shadow_at += 1;
        }
    }

    /// The guest is gone; it comes back at `now` as it was at `mark`, which was kept last.
    pub(crate) fn come_back(&mut self, now: Time, mark: Mark, out: &mut Vec<Vec<u8>>) {
        assert_eq!(self.shadow_at, mark.calls, "the shadow stands at the last checkpoint");
        self.log.truncate(mark.calls);
        let mut shadow = Party::new(Side::Guest, &self.scenario);
        for call in &self.log {
            give(&mut shadow, call);
        }
        self.live = std::mem::replace(&mut self.shadow, shadow);
        self.lag = now.since(mark.clock);
        self.paused = None;
        self.life += 1;
        self.call(mark.clock, Vec::new(), Some(self.life), out);
    }
}

fn give(party: &mut Party, call: &Call) {
    let mut sent = Vec::new();
    if let Some(life) = call.life {
        party.begin_life(life);
    }
    party.run(call.at, call.frames.iter().cloned(), &mut sent);
    assert_eq!(digest(&sent), call.sent, "the shadow does what the guest did at {}", call.at);
}

fn digest(frames: &[Vec<u8>]) -> u64 {
    frames.iter().fold(0, |sum, frame| {
        let mut words = frame.chunks_exact(8);
        let mut sum = spread(sum ^ frame.len() as u64);
        for word in &mut words {
            let word =
                u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
            sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        words.remainder().iter().fold(sum, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    })
}
