//! The engine of one guest's port: it only dispatches.
//!
//! # Order of calls
//! One polling core drives an engine, all of its frames in the order of the port:
//! ```text
//! each turn     handle_guest     each frame of the guest. `Pass`: cut it into the escrow, or, while the
//!                                port is not protected, `release` each piece and let it go
//!               handle_wire      each frame for the guest. `Pass`: queue it for the guest
//!               handle_timeouts  when next_deadline() has come
//!               stream           into chunks for the backup, until it answers 0 or there is no chunk; a
//!                                chunk that has bytes is on its way before ...
//!               poll_guest       ... the ACKs forged for them are queued for the guest (SP-1, SP-2)
//!               poll_wire        behind all that the escrow has let go (OC-2); again next turn if it
//!                                answered `max` or the sink had no room
//! seal of k     stream until 0, every chunk on its way, then cut(k) while the guest stands still.
//!               Bytes left over are of the next epoch. whole: what was streamed before is not needed
//! commit of k   release(frame) for each frame that leaves the escrow, in order, into the outbox;
//!               then commit(k), then poll_wire
//! protect       set_mode(On or Hold), then a whole cut as the session's first
//! unprotect     the escrow goes, each frame through release; then set_mode(Off), then poll_wire
//! failover      restore(ledger) on a new engine in mode Off, before the guest runs; then as above
//! fence         discard
//! ```
//! Mode [`Speculation::On`] is for a port with a session: without commits nothing held ever leaves, and
//! without `stream` nothing is acknowledged. `release` is called in all modes.

use crate::boundary::{FromGuest, FromWire, GuestFrame, Sink};
use crate::client_leg::Congestion;
use crate::connection::{Connection, Due};
use crate::counters::{EngineCounters, Event};
use crate::icmp;
use crate::key::{FlowKey, Side};
use crate::lent::{fragment_window, scale_for_guest};
use crate::lists::{List, Lists};
use crate::opening::Opening;
use crate::report::FlowReport;
use crate::rewrite::Rewriter;
use crate::rules::Rules;
use crate::segment::{Parsed, Segment};
use crate::send::Outgoing;
use crate::shared::{Shared, records};
use crate::store::Store;
use crate::table::{Flow, Table};
use crate::time::Time;
use crate::timers::Timers;
use crate::window::Scale;
use holdfast_packet::headers::{Layout, flag};

/// Segments of one flow before the next flow's turn.
const SEGMENTS_A_TURN: usize = 8;

/// Flows that try again for a window in one poll.
const STARVED_A_POLL: usize = 32;

/// Bytes of a record of a sent segment, about.
const RECORD_BYTES: usize = 64;

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
    pub(crate) table: Table,
    pub(crate) shared: Shared,
    /// Handshakes under way.
    pub(crate) openings: usize,
    /// Flows with a lent scale, and their handshakes under way.
    pub(crate) lent: (usize, usize),
    /// A segment that the client leg gave away and the sink had no room for.
    waiting: Option<Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    slot: u32,
    generation: u32,
    outgoing: Outgoing,
}

impl Engine {
    /// An engine without flows, in mode [`Speculation::Off`]. All memory is allocated here.
    #[must_use]
    pub fn new(config: EngineConfig) -> Self {
        let shared = Shared::new(&config);
        Self {
            table: Table::new(config.max_flows, config.seed),
            shared,
            openings: 0,
            lent: (0, 0),
            waiting: None,
        }
    }

    /// Bytes of memory that an engine of this configuration takes.
    #[must_use]
    pub const fn footprint(config: &EngineConfig) -> usize {
        Table::footprint(config.max_flows)
            + Lists::footprint(config.max_flows)
            + Timers::footprint(config.max_flows)
            + Store::footprint(config.held_bytes)
            + records(config.held_bytes) * RECORD_BYTES
    }

    /// A frame that the guest sent.
    ///
    /// Bound: the frame's length; its payload is copied once. Allocations: none. Cost: about 120 ns for 1448 bytes,
    /// 180 ns with their checksum, 1.1 us for 64 KiB; 90 ns for a pure ACK (bench `engine`, as all here).
    pub fn handle_guest(&mut self, now: Time, frame: &GuestFrame<'_>) -> FromGuest {
        let segment = match Segment::parse(frame.head, frame.frame.len(), Side::Guest) {
            Parsed::Tcp(segment) => segment,
            Parsed::Malformed(key) => return self.refuse_malformed(&key),
            Parsed::Other(layout) => return self.handle_guest_fragment(&layout, frame.head),
            Parsed::Nothing => return FromGuest::Pass,
        };
        // One without payload lies in the head as a whole. A broken one says nothing (RFC 9293 §3.1), and
        // is the client's to drop.
        if segment.len == 0 && frame.checksum_done && !segment.verifies(frame.head, Side::Guest) {
            self.shared.count(Event::GuestChecksum);
            return FromGuest::Pass;
        }
        if segment.has(flag::SYN) {
            return self.handle_guest_syn(now, &segment);
        }
        let Some(slot) = self.find(&segment.key) else { return FromGuest::Pass };
        self.complete_opening(slot, Side::Guest, &segment);
        match self.table.connection_mut(slot) {
            Some((_, connection)) => connection.handle_guest(now, slot, &segment, frame, &mut self.shared),
            None => FromGuest::Pass,
        }
    }

    /// A frame for the guest. One that is passed may have been rewritten, in the same length.
    ///
    /// Bound: the frame's length. Allocations: none. Cost: about 160 ns for an ACK of two segments, 180 ns for 1448
    /// bytes that are verified and rewritten.
    pub fn handle_wire(&mut self, now: Time, frame: &mut [u8]) -> FromWire {
        let segment = match Segment::parse(frame, frame.len(), Side::Client) {
            Parsed::Tcp(segment) => segment,
            Parsed::Other(layout) => return self.handle_wire_fragment(now, &layout, frame),
            Parsed::Malformed(_) | Parsed::Nothing => return FromWire::Pass,
        };
        if segment.has(flag::SYN) && self.watch_client_syn(now, &segment, frame) == FromWire::Taken {
            return FromWire::Taken;
        }
        let Some(slot) = self.find(&segment.key) else { return FromWire::Pass };
        if matches!(self.table.entry(slot).flow, Flow::Opening(_)) {
            if !segment.verifies(frame, Side::Client) {
                return FromWire::Pass;
            }
            self.complete_opening(slot, Side::Client, &segment);
        }
        let entry = self.table.entry_mut(slot);
        match &mut entry.flow {
            Flow::Connection(connection) => {
                connection.handle_client(now, slot, &segment, frame, &mut self.shared)
            }
            Flow::Opening(Opening { loan: Some(loan), .. }) => {
                scale_for_guest(frame, &segment, loan.scale);
                FromWire::Pass
            }
            Flow::Opening(_) | Flow::Vacant => FromWire::Pass,
        }
    }

    /// A frame for the guest that was passed found no room on its way: the guest did not hear what the
    /// engine said in it, which is said again as soon as there is room. A client that has nothing more
    /// to say would not repeat it.
    ///
    /// Bound: O(1). Allocations: none.
    pub fn lost_to_guest(&mut self, frame: &[u8]) {
        let Parsed::Tcp(segment) = Segment::parse(frame, frame.len(), Side::Client) else { return };
        let Some(slot) = self.find(&segment.key) else { return };
        if let Some((_, connection)) = self.table.connection_mut(slot) {
            connection.repeat_to_guest(slot, &mut self.shared);
        }
    }

    /// A frame that was passed leaves the escrow for the wire; it is adapted to what the client has
    /// seen. Before [`Engine::commit`] of its epoch.
    ///
    /// Bound: O(1). Allocations: none. Cost: about 90 ns for a pure ACK.
    pub fn release(&mut self, _now: Time, frame: &mut [u8]) {
        if self.table.len() == 0 {
            return;
        }
        let segment = match Segment::parse(frame, frame.len(), Side::Guest) {
            Parsed::Tcp(segment) => segment,
            Parsed::Other(layout) => return self.release_fragment(&layout, frame),
            Parsed::Malformed(_) | Parsed::Nothing => return,
        };
        let Some(slot) = self.table.find(&segment.key) else { return };
        match &mut self.table.entry_mut(slot).flow {
            Flow::Connection(connection) => connection.release(&segment, frame),
            Flow::Opening(opening) => opening.release(&segment, frame),
            Flow::Vacant => {}
        }
    }

    /// Emits forged ACKs and resets into the guest's inbound queue; returns how many.
    ///
    /// Bound: three frames a flow with work. Allocations: none. Cost: about 100 ns an ACK, 55 ns in a burst of many.
    pub fn poll_guest(&mut self, _now: Time, sink: &mut dyn Sink) -> usize {
        let mut said = 0;
        // Flows whose window waits for room come first when there is some, so that no other takes it.
        let mut turns = if std::mem::take(&mut self.shared.room_came) { STARVED_A_POLL } else { 0 };
        let mut unlucky = None;
        while let Some(slot) = self.shared.lists.first(List::Starved) {
            if turns == 0 || unlucky == Some(slot) {
                break;
            }
            turns -= 1;
            self.shared.lists.remove(List::Starved, slot);
            self.shared.lists.push(List::ToGuest, slot);
            let Some(frames) = self.speak(slot, sink) else {
                self.shared.room_came = true;
                return said;
            };
            said += frames;
            unlucky = unlucky.or(Some(slot).filter(|&slot| self.shared.lists.contains(List::Starved, slot)));
            // The others' turn comes with the next poll.
            self.shared.room_came |= turns == 0;
        }
        while let Some(slot) = self.shared.lists.first(List::ToGuest) {
            let Some(frames) = self.speak(slot, sink) else { break };
            said += frames;
        }
        said
    }

    /// Says to a guest what there is to say of a flow; none when the sink has no room.
    fn speak(&mut self, slot: u32, sink: &mut dyn Sink) -> Option<usize> {
        let entry = self.table.entry_mut(slot);
        let frames = match &mut entry.flow {
            Flow::Connection(connection) => {
                connection.speak_to_guest(slot, &entry.key, &mut self.shared, sink)?
            }
            Flow::Opening(opening) => opening.introduce(&entry.key, &mut self.shared, sink)?,
            Flow::Vacant => 0,
        };
        self.shared.lists.remove(List::ToGuest, slot);
        Some(frames)
    }

    /// Emits up to `max` segments to clients; returns how many.
    ///
    /// Bound: `max` frames, and the flows with work that have nothing to send. Allocations: none. Cost: about 110 ns
    /// a segment of 1448 bytes.
    pub fn poll_wire(&mut self, now: Time, max: usize, sink: &mut dyn Sink) -> usize {
        let mut sent = 0;
        if let Some(waiting) = self.waiting.take() {
            let same = self.table.entry(waiting.slot).generation == waiting.generation
                && self.table.connection(waiting.slot).is_some_and(Connection::is_taken);
            if same && !self.send(waiting.slot, waiting.outgoing, sink) {
                return 0;
            }
            sent += usize::from(same);
        }
        while sent < max {
            let Some(slot) = self.shared.lists.pop(List::ToClient) else { break };
            for turn in 0.. {
                let Some((_, connection)) = self.table.connection_mut(slot) else { break };
                let Some(outgoing) = connection.next_outgoing(now, &mut self.shared) else {
                    let deadline = connection.leg.as_ref().and_then(|leg| leg.next_deadline());
                    if let Some(due) = deadline {
                        self.shared.timers.wake(slot, due);
                    }
                    break;
                };
                if !self.send(slot, outgoing, sink) {
                    self.shared.lists.push(List::ToClient, slot);
                    return sent;
                }
                sent += 1;
                if turn + 1 == SEGMENTS_A_TURN || sent >= max {
                    self.shared.lists.push(List::ToClient, slot);
                    break;
                }
            }
        }
        sent
    }

    /// Sends a frame of a flow; what the sink has no room for waits for the next poll.
    fn send(&mut self, slot: u32, outgoing: Outgoing, sink: &mut dyn Sink) -> bool {
        let Some((key, connection)) = self.table.connection_mut(slot) else { return true };
        if !connection.send(&outgoing, key, &mut self.shared, sink) {
            let generation = self.table.entry(slot).generation;
            self.waiting = Some(Waiting { slot, generation, outgoing });
            return false;
        }
        if matches!(outgoing, Outgoing::Reset) {
            let told = connection.due != Due::Reset;
            connection.finish(slot, &mut self.shared);
            connection.was_reset = true;
            if told {
                self.remove(slot);
            }
        }
        true
    }

    /// Whether something is to be said to the guest that its sink had no room for.
    #[must_use]
    pub fn waits_for_guest(&self) -> bool {
        self.shared.lists.first(List::ToGuest).is_some()
    }

    /// Whether something may be to be sent to clients now, by [`Engine::poll_wire`].
    #[must_use]
    pub fn waits_for_wire(&self) -> bool {
        self.waiting.is_some() || self.shared.lists.first(List::ToClient).is_some()
    }

    /// When [`Engine::handle_timeouts`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.shared.timers.next()
    }

    /// Does what is due by now. Not while nothing may leave for the wire: what clients were not asked
    /// they do not leave unanswered.
    ///
    /// Bound: the flows that are due. Allocations: none.
    pub fn handle_timeouts(&mut self, now: Time) {
        while let Some(slot) = self.shared.timers.due(now) {
            let Some((_, connection)) = self.table.connection_mut(slot) else { continue };
            if connection.handle_timeout(now, slot, &mut self.shared) {
                connection.give_up(slot, &mut self.shared);
            }
        }
    }

    /// Changes the mode, without a lost byte. Looks at all flows.
    pub fn set_mode(&mut self, _now: Time, mode: Speculation) {
        self.shared.mode = mode;
        self.review();
    }

    /// Present mode.
    #[must_use]
    pub const fn mode(&self) -> Speculation {
        self.shared.mode
    }

    /// Changes the rules, without a lost byte. Looks at all flows.
    pub fn set_rules(&mut self, _now: Time, rules: Rules) {
        self.shared.rules = rules;
        for slot in 0..self.table.capacity() as u32 {
            let rules = &self.shared.rules;
            if let Some((key, connection)) = self.table.connection_mut(slot) {
                let permit = rules.permit(key.guest_port, key.client_address(), key.client_port);
                connection.permitted = permit;
            }
        }
        self.review();
    }

    /// Lets all flows see that the mode or the rules have changed.
    fn review(&mut self) {
        for slot in 0..self.table.capacity() as u32 {
            let Some((_, connection)) = self.table.connection_mut(slot) else { continue };
            if !connection.is_taken() {
                continue;
            }
            connection.adopt_at_once(slot, &mut self.shared);
            connection.finish_draining(slot, &mut self.shared);
            self.shared.lists.push(List::ToGuest, slot);
            self.shared.lists.push(List::ToClient, slot);
        }
    }

    /// Drops all flows and all held bytes: this host has been fenced.
    pub fn discard(&mut self) {
        for slot in 0..self.table.capacity() as u32 {
            if !matches!(self.table.entry(slot).flow, Flow::Vacant) {
                self.remove(slot);
            }
            self.table.entry_mut(slot).replicated = false;
            self.shared.lists.remove(List::Changed, slot);
        }
        self.waiting = None;
    }

    /// Puts a handshake with a lent scale, which a backup has kept, into its place.
    pub(crate) fn restore_opening(
        &mut self,
        slot: u32,
        generation: u32,
        key: FlowKey,
        opening: Opening,
    ) -> bool {
        let is_placed = self.table.insert_at(slot, generation, key, Flow::Opening(opening));
        if is_placed {
            self.openings += 1;
            self.lent = (self.lent.0 + 1, self.lent.1 + 1);
            self.shared.lists.push(List::Opening, slot);
        }
        is_placed
    }

    /// Counts a connection with a lent scale that a backup has kept.
    pub(crate) fn count_restored(&mut self, slot: u32) {
        self.lent.0 += usize::from(self.lent_scale(slot).is_some());
    }

    /// All flows, in no order.
    pub fn flows(&self) -> impl Iterator<Item = FlowReport> + '_ {
        self.table.iter().map(|(_, entry)| match &entry.flow {
            Flow::Connection(connection) => connection.report(&entry.key, &self.shared),
            Flow::Opening(_) | Flow::Vacant => FlowReport::opening(&entry.key),
        })
    }

    /// Flows known now, whatever they do.
    #[must_use]
    pub fn known_flows(&self) -> usize {
        self.table.len()
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> &EngineCounters {
        &self.shared.counters
    }

    /// Bytes held.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        self.shared.store.held()
    }

    /// The place of a flow, which becomes the one heard of last.
    pub(crate) fn find(&mut self, key: &FlowKey) -> Option<u32> {
        let slot = self.table.find(key)?;
        self.shared.lists.remove(List::Age, slot);
        self.shared.lists.push(List::Age, slot);
        Some(slot)
    }

    fn refuse_malformed(&mut self, key: &FlowKey) -> FromGuest {
        let taken = self.table.find(key).and_then(|slot| self.table.connection(slot));
        if !taken.is_some_and(Connection::is_taken) {
            return FromGuest::Pass;
        }
        self.shared.count(Event::GuestMalformed);
        FromGuest::Taken
    }

    /// The first fragment of a segment: its flow is drained, and passed through for good. Without its
    /// first fragment, the segment is not put together, and sent again.
    fn handle_guest_fragment(&mut self, layout: &Layout, head: &[u8]) -> FromGuest {
        let Some((key, tcp_at)) = Segment::flow_of_fragment(layout, head, Side::Guest) else {
            return FromGuest::Pass;
        };
        let Some(slot) = self.table.find(&key) else { return FromGuest::Pass };
        match &mut self.table.entry_mut(slot).flow {
            Flow::Connection(connection) => {
                connection.handle_guest_fragment(slot, fragment_window(head, tcp_at), &mut self.shared)
            }
            // An answer whose scale cannot be taken away: the guest sends it again.
            Flow::Opening(opening) if opening.loan.is_some() => {
                self.shared.count(Event::GuestUnusual);
                FromGuest::Taken
            }
            Flow::Opening(_) | Flow::Vacant => FromGuest::Pass,
        }
    }

    /// A frame for the guest that is no whole TCP segment: the window in a first fragment is scaled, where
    /// the client was lent a scale; ICMP may be about a flow.
    fn handle_wire_fragment(&mut self, now: Time, layout: &Layout, frame: &mut [u8]) -> FromWire {
        let Some((key, tcp_at)) = Segment::flow_of_fragment(layout, frame, Side::Client) else {
            return icmp::handle(self, now, layout, frame);
        };
        let slot = self.table.find(&key);
        let Some(lent) = slot.and_then(|slot| self.lent_scale(slot)) else { return FromWire::Pass };
        let Some((flags, window)) = fragment_window(frame, tcp_at) else {
            self.shared.count(Event::WireUnacceptable);
            return FromWire::Taken;
        };
        if flags & flag::SYN == 0 {
            Rewriter::of_fragment(frame, tcp_at).window(lent.scaled(window));
        }
        FromWire::Pass
    }

    /// A first fragment of the guest leaves for the client.
    fn release_fragment(&mut self, layout: &Layout, frame: &mut [u8]) {
        let Some((key, tcp_at)) = Segment::flow_of_fragment(layout, frame, Side::Guest) else { return };
        let Some(connection) = self.table.find(&key).and_then(|slot| self.table.connection(slot)) else {
            return;
        };
        if let (Some(_), Some((_, window))) = (connection.negotiated.lent, fragment_window(frame, tcp_at)) {
            let told = connection.negotiated.told(window);
            Rewriter::of_fragment(frame, tcp_at).window(told);
        }
    }

    /// The scale that was lent to the client of a flow.
    pub(crate) fn lent_scale(&self, slot: u32) -> Option<Scale> {
        match &self.table.entry(slot).flow {
            Flow::Connection(connection) => connection.negotiated.lent,
            Flow::Opening(opening) => opening.loan.map(|loan| loan.scale),
            Flow::Vacant => None,
        }
    }

    /// Forgets a flow and drops what is held of it.
    pub(crate) fn remove(&mut self, slot: u32) {
        if self.lent_scale(slot).is_some() {
            let opening = matches!(self.table.entry(slot).flow, Flow::Opening(_));
            self.lent = (self.lent.0 - 1, self.lent.1 - usize::from(opening));
        }
        if let Some((_, connection)) = self.table.connection_mut(slot) {
            connection.let_go(slot, &mut self.shared);
        } else if matches!(self.table.entry(slot).flow, Flow::Opening(_)) {
            self.is_opened(slot);
        }
        self.shared.forget(slot);
        if self.table.entry(slot).replicated {
            self.shared.lists.push(List::Changed, slot);
        } else {
            self.shared.lists.remove(List::Changed, slot);
        }
        self.table.remove(slot);
    }
}
