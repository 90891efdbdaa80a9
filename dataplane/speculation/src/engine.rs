//! The engine of one guest's port.
//!
//! # Order of calls
//! One polling core drives an engine:
//! ```text
//! each turn       handle_guest   for each frame of the guest; `Pass`: segment it into the escrow
//!                 handle_wire    for each frame for the guest; `Pass`: queue it for the guest
//!                 stream         until 0, into chunks for the backup; a chunk goes on its way before
//!                 poll_guest     ... forged ACKs for its bytes are queued (SP-1, SP-2)
//!                 poll_wire      segments of the client leg, behind what the escrow has released
//!                 handle_timeouts  when next_deadline() has come
//! seal of k       stream until 0, then cut(k); the guest stands still
//! commit of k     release(frame) for each frame that leaves the escrow, then commit(k), then poll_wire
//! ```

use crate::boundary::{FromGuest, FromWire, GuestFrame, Sink};
use crate::client_leg::Congestion;
use crate::counters::{EngineCounters, Event};
use crate::ledger::Ledger;
use crate::report::FlowReport;
use crate::rules::Rules;
use crate::time::Time;
use holdfast_epoch::EpochId;

/// What an engine is made for; nothing of it grows afterwards.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Flows that are known at a time; others stay plain.
    pub max_flows: usize,
    /// Bytes that are held at a time, over all flows.
    pub held_bytes: usize,
    /// Bytes that are held of one flow at a time, and so the largest window that its guest sees.
    pub flow_bytes: usize,
    /// Longest IP packet that the wire carries, in bytes.
    pub mtu: u16,
    /// Congestion control of the client leg.
    pub congestion: Congestion,
    /// Which flows may speculate.
    pub rules: Rules,
    /// Seed of the flow table's hash and of packet identifiers.
    pub seed: u64,
}

impl Default for EngineConfig {
    /// 4096 flows that hold up to 64 MiB, 16 MiB each.
    fn default() -> Self {
        Self {
            max_flows: 4096,
            held_bytes: 64 << 20,
            flow_bytes: 16 << 20,
            mtu: 1500,
            congestion: Congestion::default(),
            rules: Rules::default(),
            seed: 0,
        }
    }
}

/// How far a port's flows go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// Mode `native`, or a port without a backup: nothing is taken, and what is held counts as
    /// committed.
    #[default]
    Off,
    /// Mode `commit`: nothing new is taken; what is held leaves with its commit.
    Hold,
    /// Mode `speculative`.
    On,
}

/// The engine of one guest's port.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    counters: EngineCounters,
    mode: Speculation,
}

impl Engine {
    /// An engine without flows, in mode [`Speculation::Off`]. All memory is allocated here.
    #[must_use]
    pub fn new(config: EngineConfig) -> Self {
        Self { config, counters: EngineCounters::default(), mode: Speculation::Off }
    }

    /// A frame that the guest sent.
    ///
    /// Bound: the frame's length. Allocations: none.
    pub fn handle_guest(&mut self, _now: Time, _frame: &GuestFrame<'_>) -> FromGuest {
        self.counters.add(Event::GuestSegments, 0);
        FromGuest::Pass
    }

    /// A frame for the guest.
    ///
    /// Bound: the frame's length. Allocations: none.
    pub fn handle_wire(&mut self, _now: Time, _frame: &mut [u8]) -> FromWire {
        FromWire::Pass
    }

    /// A frame that was passed leaves the escrow for the wire; it is adapted to what the client has
    /// seen. Before [`Engine::commit`] of its epoch.
    ///
    /// Bound: O(1). Allocations: none.
    pub fn release(&mut self, _now: Time, _frame: &mut [u8]) {}

    /// Appends held bytes that were not streamed yet to `out`, at most `max` bytes with their headers;
    /// returns how many were appended. What is appended must reach the backup before, or with, the
    /// seal of the open epoch (SP-2); only then may it be acknowledged, so this counts as done.
    ///
    /// Bound: `max`. Allocations: none while `out` has room for `max` bytes.
    pub fn stream(&mut self, _max: usize, _out: &mut Vec<u8>) -> usize {
        0
    }

    /// Ends `epoch`: what was streamed so far belongs to it. Appends the flow table's changes since
    /// the last cut to `out`; with `whole` the whole table and all held bytes, for a backup that has
    /// nothing yet.
    pub fn cut(&mut self, _epoch: EpochId, _whole: bool, _out: &mut Vec<u8>) {}

    /// `epoch` is committed, and all before it: their bytes may go to the clients (OC-1).
    pub fn commit(&mut self, _now: Time, _epoch: EpochId) {}

    /// Emits forged ACKs and resets into the guest's inbound queue; returns how many.
    ///
    /// Bound: one frame a flow with work. Allocations: none.
    pub fn poll_guest(&mut self, _now: Time, _sink: &mut dyn Sink) -> usize {
        0
    }

    /// Emits up to `max` segments to clients; returns how many.
    ///
    /// Bound: `max`. Allocations: none.
    pub fn poll_wire(&mut self, _now: Time, _max: usize, _sink: &mut dyn Sink) -> usize {
        0
    }

    /// When [`Engine::handle_timeouts`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        None
    }

    /// Does what is due by now.
    pub fn handle_timeouts(&mut self, _now: Time) {}

    /// Changes the mode, without a lost byte. Looks at all flows.
    pub fn set_mode(&mut self, _now: Time, mode: Speculation) {
        self.mode = mode;
    }

    /// Present mode.
    #[must_use]
    pub const fn mode(&self) -> Speculation {
        self.mode
    }

    /// Changes the rules, without a lost byte. Looks at all flows.
    pub fn set_rules(&mut self, _now: Time, rules: Rules) {
        self.config.rules = rules;
    }

    /// Replaces all flows by those of a backup's ledger: everything held counts as committed.
    pub fn restore(&mut self, _now: Time, _ledger: Ledger) {}

    /// Drops all flows and all held bytes: this host has been fenced.
    pub fn discard(&mut self) {}

    /// All flows, in no order.
    pub fn flows(&self) -> impl Iterator<Item = FlowReport> + '_ {
        std::iter::empty()
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> &EngineCounters {
        &self.counters
    }

    /// Bytes held.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        0
    }
}
