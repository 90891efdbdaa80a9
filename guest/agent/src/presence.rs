//! Whether Holdfast is on the other end, and what follows from that: a machine without clock or socket.
//!
//! ```text
//!            aware answer                           3 s without one
//!   Absent ----------------------> Present ------------------------------> Absent
//!                                   |   ^
//!             an answer that is not |   | aware answer
//!                                   v   |
//!                                  Paused --- 3 s without an aware answer --> Absent
//! ```
//!
//! *Present*: the congestion control is the guest's default, and flows by the ports that answered are open.
//! *Paused*: as *Present*, but no flow is open any more: Holdfast said that it does not speculate now, as after a
//! failover, or that its operator does not ask for an agent any more (mode speculative), and that may be over soon.
//! *Absent*: the guest has its own congestion control back.

use holdfast_packet::guest_channel::{Answer, PortMode};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often the agent asks.
pub(crate) const ASK_EVERY: Duration = Duration::from_secs(1);
/// So long without an aware answer, and the guest has its own congestion control back.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// An ACK that takes longer than this was not forged, as far as is asked here.
const MOST_FAST_US: u32 = 4000;
/// The least that is taken for fast while nobody says how long output waits.
const BLIND_FAST_US: u32 = 2000;

/// What the guest's congestion control should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its own.
    Absent,
    /// Holdfast's, with no flow open.
    Paused,
    /// Holdfast's.
    Present,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Duration,
    /// Newest aware answer.
    aware_at: Option<Duration>,
    answer: Answer,
}

/// What was heard, by interface. Times are of any clock that only goes forward.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    heard: BTreeMap<i32, Heard>,
    state: Option<State>,
}

impl Presence {
    /// An answer came by that interface; whether it says something else than the last one.
    pub(crate) fn handle_answer(&mut self, now: Duration, ifindex: i32, answer: Answer) -> bool {
        let last = self.heard.get(&ifindex);
        let is_news = last.is_none_or(|last| last.answer.mode != answer.mode);
        let before = last.and_then(|heard| heard.aware_at);
        let aware_at = if answer.mode == PortMode::Aware { Some(now) } else { before };
        self.heard.insert(ifindex, Heard { at: now, aware_at, answer });
        is_news
    }

    /// The state as it should be now; true when it changed with this call.
    pub(crate) fn poll(&mut self, now: Duration) -> (State, bool) {
        self.heard.retain(|_, heard| now.saturating_sub(heard.at) < PATIENCE);
        let recent = |heard: &&Heard| heard.aware_at.is_some_and(|at| now.saturating_sub(at) < PATIENCE);
        let is_aware = |heard: &Heard| heard.answer.mode == PortMode::Aware;
        let was_there = self.state.is_some_and(|state| state != State::Absent);
        let state = match self.heard.values().filter(recent).any(is_aware) {
            true => State::Present,
            false if was_there && self.heard.values().any(|heard| recent(&heard)) => State::Paused,
            false => State::Absent,
        };
        let changed = self.state.replace(state) != Some(state);
        (state, changed)
    }

    /// Interfaces behind which Holdfast speculates and lets the agent know, as of the last poll.
    pub(crate) fn ports(&self) -> Vec<i32> {
        let is_aware = |heard: &&Heard| heard.answer.mode == PortMode::Aware;
        let ports = self.heard.iter().filter(|(_, heard)| is_aware(heard));
        ports.map(|(ifindex, _)| *ifindex).collect()
    }

    /// The newest answer of all, if there is any.
    pub(crate) fn newest(&self) -> Option<&Answer> {
        self.heard.values().max_by_key(|heard| heard.at).map(|heard| &heard.answer)
    }

    /// An ACK that comes within this is one of Holdfast's own, behind whichever of those.
    pub(crate) fn fast_us(&self) -> u32 {
        let is_aware = |heard: &&Heard| heard.answer.mode == PortMode::Aware;
        let aware = self.heard.values().filter(is_aware);
        aware.map(|heard| fast_us(&heard.answer)).min().unwrap_or(BLIND_FAST_US)
    }

    /// Longest epoch of those.
    pub(crate) fn epoch_us(&self) -> u32 {
        let is_aware = |heard: &&Heard| heard.answer.mode == PortMode::Aware;
        self.heard.values().filter(is_aware).map(|heard| heard.answer.epoch_us).max().unwrap_or(0)
    }
}

/// Three quarters of the least that a client's ACK takes, which Holdfast measures; of a Holdfast that does not say it, a
/// quarter of an epoch.
fn fast_us(answer: &Answer) -> u32 {
    match answer.least_wait_us {
        0 => (answer.epoch_us / 4).clamp(BLIND_FAST_US, MOST_FAST_US),
        wait_us => (wait_us / 4 * 3).min(MOST_FAST_US),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETH0: i32 = 2;
    const ETH1: i32 = 3;

    fn answer(mode: PortMode) -> Answer {
        Answer { nonce: 0, mode, epoch_us: 25_000, host_realtime_ns: 0, least_wait_us: 0 }
    }

    fn at(tenths: u64) -> Duration {
        Duration::from_millis(100 * tenths)
    }

    #[test]
    fn it_is_absent_until_an_aware_answer_and_after_three_seconds_without_one() {
        let mut presence = Presence::default();
        assert_eq!(presence.poll(at(0)), (State::Absent, true));
        presence.handle_answer(at(1), ETH0, answer(PortMode::Native));
        presence.handle_answer(at(2), ETH1, answer(PortMode::Commit));
        assert_eq!(presence.poll(at(2)), (State::Absent, false));
        presence.handle_answer(at(2), ETH1, answer(PortMode::Speculative));
        assert_eq!(presence.poll(at(2)), (State::Absent, false), "the operator has not asked for an agent");
        presence.handle_answer(at(3), ETH0, answer(PortMode::Aware));
        assert_eq!(presence.poll(at(3)), (State::Present, true));
        assert_eq!(presence.ports(), [ETH0]);
        assert_eq!(presence.poll(at(32)), (State::Present, false));
        assert_eq!(presence.poll(at(33)), (State::Absent, true));
        assert_eq!(presence.ports(), [0; 0]);
        presence.handle_answer(at(40), ETH0, answer(PortMode::Aware));
        assert_eq!(presence.poll(at(40)), (State::Present, true));
    }

    #[test]
    fn a_port_that_ceases_to_be_aware_closes_flows_at_once_and_has_three_seconds_to_return() {
        let mut presence = Presence::default();
        presence.handle_answer(at(0), ETH0, answer(PortMode::Aware));
        assert_eq!(presence.poll(at(0)), (State::Present, true));
        for second in 1..=2 {
            presence.handle_answer(at(10 * second), ETH0, answer(PortMode::Native));
            assert_eq!(presence.poll(at(10 * second)), (State::Paused, second == 1));
            assert_eq!(presence.ports(), [0; 0]);
        }
        presence.handle_answer(at(25), ETH0, answer(PortMode::Aware));
        assert_eq!(presence.poll(at(25)), (State::Present, true));
        for second in 3..=5 {
            presence.handle_answer(at(10 * second), ETH0, answer(PortMode::Native));
        }
        assert_eq!(presence.poll(at(54)), (State::Paused, true));
        assert_eq!(presence.poll(at(55)), (State::Absent, true));
    }

    #[test]
    fn one_port_of_two_is_enough_and_only_it_counts() {
        let mut presence = Presence::default();
        presence.handle_answer(at(0), ETH0, answer(PortMode::Commit));
        presence.handle_answer(at(0), ETH1, answer(PortMode::Aware));
        assert_eq!(presence.poll(at(0)), (State::Present, true));
        assert_eq!(presence.ports(), [ETH1]);
        assert_eq!(presence.epoch_us(), 25_000);
    }

    #[test]
    fn what_is_fast_follows_the_least_wait_and_only_without_one_the_epoch() {
        let fast =
            |epoch_us, least_wait_us| fast_us(&Answer { epoch_us, least_wait_us, ..answer(PortMode::Aware) });
        assert_eq!((fast(0, 0), fast(10_000, 0), fast(200_000, 0)), (2000, 2500, 4000));
        assert_eq!((fast(25_000, 1500), fast(10_000, 90), fast(25_000, 60_000)), (1125, 66, 4000));
        let mut presence = Presence::default();
        assert_eq!(presence.fast_us(), 2000);
        for (ifindex, least_wait_us) in [(ETH0, 3000), (ETH1, 2200)] {
            let answer = Answer { least_wait_us, ..answer(PortMode::Aware) };
            presence.handle_answer(at(0), ifindex, answer);
        }
        assert_eq!(presence.fast_us(), 1650, "that of the port with the shortest wait");
    }
}
