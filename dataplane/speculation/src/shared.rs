//! What all flows of an engine share.

use crate::client_leg::{Congestion, SentLog};
use crate::counters::{EngineCounters, Event};
use crate::engine::{EngineConfig, Speculation};
use crate::lists::{List, Lists};
use crate::rules::Rules;
use crate::seq::SeqNum;
use crate::store::{BLOCK, Queue, Store};
use crate::timers::Timers;

/// Window of a flow that does not need a larger one, at most: ten segments and some (RFC 6928).
const INITIAL_WINDOW: u32 = 16 << 10;

/// Window of a flow below which speculation is not worth it.
const LEAST_WINDOW: u32 = 4 << 10;

/// Of the room, the part that windows beyond what is held may take of all flows together.
const PART_AHEAD: u32 = 16;

/// Window beyond what is held of a flow that has made use of it: one frame of the largest kind, however
/// many flows there are.
const LEAST_AHEAD: u32 = 64 << 10;

/// Bytes held for one record of a sent segment.
const BYTES_A_RECORD: usize = 1024;

/// What all flows of an engine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) lists: Lists,
    pub(crate) timers: Timers,
    pub(crate) log: SentLog,
    pub(crate) counters: EngineCounters,
    pub(crate) mode: Speculation,
    pub(crate) rules: Rules,
    pub(crate) mtu: u16,
    pub(crate) congestion: Congestion,
    /// Window that each flow gets to begin with.
    pub(crate) initial_window: u32,
    /// Most bytes held of one flow.
    pub(crate) flow_bytes: u32,
    /// The last identification of IPv4 used.
    pub(crate) identification: u16,
    /// Room came back since flows last waited for some.
    pub(crate) room_came: bool,
}

impl Shared {
    /// For an engine of this configuration.
    pub(crate) fn new(config: &EngineConfig) -> Self {
        let flows = config.max_flows.max(1);
        let share = u32::try_from(config.held_bytes / flows).unwrap_or(u32::MAX);
        // A window that begins within a block takes one more.
        let initial_window = share.saturating_sub(BLOCK).clamp(LEAST_WINDOW, INITIAL_WINDOW);
        let flow_bytes = u32::try_from(config.flow_bytes).unwrap_or(u32::MAX).min(1 << 30);
        Self {
            store: Store::new(config.held_bytes),
            lists: Lists::new(flows),
            timers: Timers::new(flows),
            log: SentLog::new(records(config.held_bytes)),
            counters: EngineCounters::default(),
            mode: Speculation::Off,
            rules: config.rules.clone(),
            mtu: config.mtu,
            congestion: config.congestion,
            initial_window,
            flow_bytes: flow_bytes.max(initial_window),
            identification: config.seed as u16,
            room_came: false,
        }
    }

    /// Counts an event once.
    pub(crate) fn count(&mut self, event: Event) {
        self.counters.add(event, 1);
    }

    /// Room for windows that is promised to nobody, in bytes.
    pub(crate) fn room(&self) -> u32 {
        self.store.unreserved().min(u32::MAX / BLOCK) * BLOCK
    }

    /// Whether a flow other than this one waits for room.
    fn others_starve(&self, slot: u32) -> bool {
        let first = self.lists.first(List::Starved);
        first.is_some_and(|first| first != slot || self.lists.after(List::Starved, first).is_some())
    }

    /// Most bytes that one flow's window may span now: its share, or as much as it leaves for others if
    /// nobody waits.
    pub(crate) fn largest_window(&self, slot: u32) -> u32 {
        let share = self.store.fair_share().max(self.initial_window);
        if self.others_starve(slot) { share } else { share.max(self.room().min(1 << 30)) }
    }

    /// Most bytes that a window may reach beyond what is held of its flow: the same for all that hold
    /// something.
    ///
    /// What is held stays until the client confirms it, but what lies beyond is on its short way between
    /// guest and core. There it waits behind that of other flows, as long as their windows together are
    /// large, and each gets through in the measure of its window.
    pub(crate) fn most_ahead(&self) -> u32 {
        (self.store.share_of_holders() / PART_AHEAD).max(LEAST_AHEAD)
    }

    /// Promises a queue room for the bytes up to `edge`, instead of what it was promised before.
    pub(crate) fn reserve(&mut self, queue: &mut Queue, edge: SeqNum) {
        let before = queue.reserved();
        self.store.reserve(queue, edge);
        self.room_came |= queue.reserved() < before;
    }

    /// Takes a flow out of all lists but that of changes.
    pub(crate) fn forget(&mut self, slot: u32) {
        for list in [List::ToGuest, List::ToClient, List::Unstreamed, List::Marked, List::Starved, List::Age]
        {
            self.lists.remove(list, slot);
        }
        self.timers.cancel(slot);
    }

    /// The next identification for a packet of IPv4.
    pub(crate) fn next_identification(&mut self) -> u16 {
        self.identification = self.identification.wrapping_add(1);
        self.identification
    }
}

/// Records of sent segments for an engine that holds so many bytes.
pub(crate) const fn records(held_bytes: usize) -> usize {
    let records = held_bytes / BYTES_A_RECORD;
    if records < 1024 { 1024 } else { records }
}
