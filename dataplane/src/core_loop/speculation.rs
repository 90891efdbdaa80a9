//! Speculative communication of one port: drives the engine between the guest's rings and the wire.
//!
//! ```text
//!  guest frame --take--> engine --pump--> stream to the backup
//!  guest <--inbound-- forged ACKs <--answer--'   '--send--> outbox --> wire     (committed bytes)
//! ```
//!
//! What the engine does not take goes the way of plain output commit. A turn pumps before it answers,
//! so that an ACK is forged in the turn in which its bytes were captured (SP-1, SP-2).
//!
//! Owned by the polling core. Allocations: none.

use super::egress::Egress;
use super::inbound::Inbound;
use super::{PortId, record};
use crate::audit::Audit;
use crate::core_loop::outflow::Outflow;
use crate::counters::{Block, CoreCounter, DropReason, PortCounter, PortCounters};
use crate::frame::{Frame, Wire};
use crate::guest::{GuestFrame, VirtioNetHdr};
use crate::stream::Tap;
use holdfast_epoch::EpochId;
use holdfast_speculation::{
    Engine, EngineConfig, FlowReport, FromGuest, FromWire, Ledger, Payload, Rules, Sink, Speculation, Time,
};

/// Frames of the client leg that may wait for the wire: more would only be delay that its round-trip
/// times count as the network's.
const WAITING: u64 = 256;

/// Frames that the client leg sends in one turn.
const SEND_BURST: usize = 256;

const NEEDS_CHECKSUM: u8 = 1;

/// The engine of a port and what ties it to the rest.
pub(super) struct Speculating {
    engine: Engine,
    outflow: Outflow,
    /// Whether the mode is speculative, when the port is protected.
    wanted: bool,
}

/// A guest's frame as the engine reads it.
struct Whole<'a>(&'a dyn GuestFrame);

impl Payload for Whole<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn copy_to(&self, offset: usize, out: &mut [u8]) {
        self.0.copy_to(offset, out);
    }
}

impl Speculating {
    pub(super) fn new(config: EngineConfig) -> Self {
        Self { engine: Engine::new(config), outflow: Outflow::default(), wanted: false }
    }

    /// Ties the port to the stream of its VM.
    pub(super) fn attach(&mut self, tap: Tap, place: u8) {
        self.outflow = Outflow::new(tap, place);
    }

    /// Whether there is nothing for it to do: no flow is known, and none is to be.
    pub(super) fn is_dormant(&self) -> bool {
        !self.wanted && self.engine.known_flows() == 0
    }

    /// Offers a frame of the guest; `head` is its first bytes.
    pub(super) fn take(
        &mut self,
        now: Time,
        header: &VirtioNetHdr,
        head: &[u8],
        frame: &dyn GuestFrame,
    ) -> FromGuest {
        if self.is_dormant() {
            return FromGuest::Pass;
        }
        let checksum_done = header.flags & NEEDS_CHECKSUM == 0;
        let whole = Whole(frame);
        self.engine
            .handle_guest(now, &holdfast_speculation::GuestFrame { head, frame: &whole, checksum_done })
    }

    /// Offers a frame that came for the guest, which may be rewritten.
    pub(super) fn receive(&mut self, now: Time, frame: &mut [u8]) -> FromWire {
        if self.is_dormant() {
            return FromWire::Pass;
        }
        self.engine.handle_wire(now, frame)
    }

    /// A frame for the guest, which was received, found no room.
    pub(super) fn lost_to_guest(&mut self, frame: &[u8]) {
        if !self.is_dormant() {
            self.engine.lost_to_guest(frame);
        }
    }

    /// Adapts a frame of the guest that was passed, as it leaves; returns whether it may have changed.
    pub(super) fn release(&mut self, now: Time, frame: &mut [u8]) -> bool {
        if self.engine.known_flows() == 0 {
            return false;
        }
        self.engine.release(now, frame);
        true
    }

    /// Streams what was taken and not streamed yet, as belonging to `epoch`; see [`Outflow::pump`].
    pub(super) fn pump(&mut self, now: Time, epoch: EpochId) {
        self.outflow.pump(now, epoch, &mut self.engine);
    }

    /// Streams the last of `epoch`, whose guest stands still; its state goes to `out`. Whether that says all
    /// by itself.
    pub(super) fn cut(&mut self, now: Time, epoch: EpochId, whole: bool, out: &mut Vec<u8>) -> bool {
        self.pump(now, epoch);
        self.outflow.flush();
        // Without a flow the whole table is as short as what has changed.
        let whole = whole || self.engine.known_flows() == 0;
        self.engine.cut(epoch, whole, out);
        whole
    }

    /// The backup holds all of `epoch`.
    pub(super) fn commit(&mut self, now: Time, epoch: EpochId) {
        self.engine.commit(now, epoch);
    }

    /// Says how the guest's data is treated from now on.
    pub(super) fn set_protected(&mut self, now: Time, protected: bool) {
        let mode = match (protected, self.wanted) {
            (false, _) => Speculation::Off,
            (true, false) => Speculation::Hold,
            (true, true) => Speculation::On,
        };
        self.engine.set_mode(now, mode);
    }

    /// Whether the mode is speculative, when the port is protected.
    pub(super) fn set_wanted(&mut self, now: Time, wanted: bool, protected: bool) {
        self.wanted = wanted;
        self.set_protected(now, protected);
    }

    /// Changes which flows may speculate.
    pub(super) fn set_rules(&mut self, now: Time, rules: Rules) {
        self.engine.set_rules(now, rules);
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Takes over the flows of another host.
    pub(super) fn restore(&mut self, now: Time, ledger: Ledger) {
        self.engine.restore(now, ledger);
    }

    /// Forgets all flows (FO-1).
    pub(super) fn discard(&mut self) {
        self.engine.discard();
        self.outflow.discard();
    }

    pub(super) fn flows(&self) -> Vec<FlowReport> {
        self.engine.flows().collect()
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.engine.held_bytes()
    }

    /// When engine or stream have to be looked at again, in nanoseconds.
    pub(super) fn due_ns(&self) -> Option<u64> {
        let engine = self.engine.next_deadline();
        engine.into_iter().chain(self.outflow.due()).min().map(Time::as_ns)
    }

    /// Whether bytes wait for a buffer that nobody tells of.
    pub(super) const fn is_blocked(&self) -> bool {
        self.outflow.is_blocked()
    }

    /// Whether frames for the guest wait for room or memory that nobody tells of.
    pub(super) fn waits_for_guest(&self) -> bool {
        self.engine.waits_for_guest()
    }

    /// Whether frames for the wire wait for memory, or for the right to leave.
    pub(super) fn waits_for_wire(&self) -> bool {
        self.engine.waits_for_wire()
    }
}

/// One turn of a port's engine: timers, the stream, forged ACKs, the client leg. Returns how many frames
/// it made.
///
/// Bound: [`SEND_BURST`] frames to the wire, one forged ACK a flow that sent. Allocations: none.
#[expect(clippy::too_many_arguments, reason = "the parts of a port, borrowed apart from each other")]
pub(super) fn turn<W: Wire>(
    now: Time,
    id: PortId,
    speculating: &mut Speculating,
    wire: &mut W,
    inbound: &mut Inbound<W::Frame>,
    egress: &mut Egress<W::Frame>,
    counters: &PortCounters,
    audit: Option<&mut Audit>,
    core: &Block<CoreCounter>,
) -> usize {
    if egress.fenced || speculating.is_dormant() {
        return 0;
    }
    let may_transmit = egress.may_transmit(|| now.as_ns());
    if may_transmit {
        // Without the right to transmit clients are not asked, and their silence tells nothing.
        speculating.engine.handle_timeouts(now);
    }
    if let Some(epoch) = egress.escrow.open_epoch() {
        speculating.pump(now, epoch);
    }
    let mut made = speculating.engine.poll_guest(now, &mut ToGuest { wire, inbound, counters });
    let waiting = egress.waiting().frames;
    if waiting < WAITING && may_transmit {
        let mut sink = ToWire { wire, egress, counters, audit, core, id };
        made += speculating.engine.poll_wire(now, SEND_BURST.min((WAITING - waiting) as usize), &mut sink);
    }
    made
}

/// Forged ACKs go behind all that came for the guest before.
struct ToGuest<'a, W: Wire> {
    wire: &'a mut W,
    inbound: &'a mut Inbound<W::Frame>,
    counters: &'a PortCounters,
}

impl<W: Wire> Sink for ToGuest<'_, W> {
    fn emit(&mut self, len: usize, _epoch: Option<EpochId>, write: &mut dyn FnMut(&mut [u8])) -> bool {
        if !self.inbound.has_room() {
            // It waits in the engine: a reset is not asked for again by a guest that is silent.
            return false;
        }
        let Some(mut frame) = self.wire.alloc(len) else {
            self.counters.drops.add(DropReason::NoFrames, 1);
            return false;
        };
        write(frame.bytes_mut());
        if let Err((reason, _)) = self.inbound.push(frame) {
            self.counters.drops.add(reason, 1);
            return false;
        }
        self.counters.events.add(PortCounter::Forged, 1);
        true
    }
}

/// Committed bytes go behind all that may go already (OC-1: the engine has nothing else to give).
struct ToWire<'a, W: Wire> {
    wire: &'a mut W,
    egress: &'a mut Egress<W::Frame>,
    counters: &'a PortCounters,
    audit: Option<&'a mut Audit>,
    core: &'a Block<CoreCounter>,
    id: PortId,
}

impl<W: Wire> Sink for ToWire<'_, W> {
    fn emit(&mut self, len: usize, epoch: Option<EpochId>, write: &mut dyn FnMut(&mut [u8])) -> bool {
        let Some(mut frame) = self.wire.alloc(len) else { return false };
        write(frame.bytes_mut());
        frame.set_sound();
        record(&mut self.audit, self.core, self.id, epoch, frame.bytes());
        self.egress.send(frame);
        self.counters.events.add(PortCounter::Speculated, 1);
        true
    }
}
