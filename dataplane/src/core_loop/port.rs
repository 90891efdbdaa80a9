//! One guest's port: what goes out, what comes in, and who it is.
//!
//! Every frame of the guest that its engine does not take comes in by [`Egress::accept`], every frame for
//! it by [`Port::receive`].
//!
//! Owned by the polling core.

use super::forwarding::Keeps;
use super::guest_channel::Beat;
use super::speculation::Speculating;
use super::{PortId, monotonic_ns};
use crate::announcement::REPETITIONS;
use crate::coalescing::{BURST, Burst};
use crate::compact::{Compact, Waiting};
use crate::counters::{DropReason, PortCounter, PortCounters};
use crate::escrow::{Amount, Escrow, Limits};
use crate::frame::{Frame, Wire};
use crate::guest::{GuestPort, VirtioNetHdr};
use crate::identity::{Identity, MAX_ADDRESSES, MAX_STATIONS, Station};
use crate::segmentation::MAX_SEGMENTS;
use crossbeam_channel::Sender;
use holdfast_packet::guest_channel::PortMode;
use holdfast_speculation::{FromWire, Time};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Frames that an unprotected port may have waiting for a wire that takes none: more would only be
/// delay.
const NATIVE_BACKLOG: usize = 512;

/// For how long frames wait for a guest that stands still. A checkpoint takes milliseconds; a guest
/// that stays away longer wants nothing old.
const PATIENCE_NS: u64 = 2_000_000_000;

/// For how long a frame waits for buffers of a guest that runs. It may be larger than any that the
/// guest will ever have, and must not block those behind it for good.
const STUCK_NS: u64 = 1_000_000_000;

/// Bursts delivered to one guest in one turn, so that others get theirs.
const BURSTS_A_TURN: usize = 4;

/// Frames that are fetched ahead of the one that is copied.
const AHEAD: usize = 8;

/// A guest's port on its polling core.
pub(super) struct Port<F> {
    pub(super) id: PortId,
    /// Place of its wire.
    pub(super) wire: usize,
    pub(super) guest: Box<dyn GuestPort>,
    pub(super) egress: Egress<F>,
    pub(super) inbound: Inbound<F>,
    pub(super) identity: Identity,
    /// The station that sent last: most frames come from it.
    pub(super) last: Option<Station>,
    pub(super) counters: Arc<PortCounters>,
    pub(super) announcing: Option<Announcing>,
    /// The guest had to wait in the last burst, as memory for frames ran low.
    pub(super) starved: bool,
    pub(super) bell: Bell,
    /// None for a port that never speculates.
    pub(super) speculating: Option<Speculating>,
    /// For the guest that asks.
    pub(super) beat: Beat,
    /// Whether the guest's agent is told that it may attach, while flows speculate.
    pub(super) lets_agent_attach: bool,
}

/// Repetitions of an announcement that are still to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announcing {
    pub(super) began_ns: u64,
    pub(super) round: usize,
}

impl Announcing {
    /// When the next repetition is due.
    pub(super) fn due_ns(&self) -> u64 {
        let after = REPETITIONS.get(self.round).map_or(0, |after| after.as_nanos() as u64);
        self.began_ns.saturating_add(after)
    }
}

/// Tells whoever ends the epochs that the guest has said something since the last one ended.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rope: Option<Sender<()>>,
    rung: bool,
}

impl Bell {
    /// From now on this is rung.
    pub(super) fn hang(&mut self, rope: Sender<()>) {
        self.rope = Some(rope);
        self.rung = false;
    }

    /// The guest said something. Rings once an epoch: one wake-up of whoever listens.
    pub(super) fn ring(&mut self) {
        if let (false, Some(rope)) = (self.rung, &self.rope) {
            self.rung = true;
            // Full: it has been rung and not been heard yet. Gone: nobody listens any more.
            rope.try_send(()).unwrap_or_default();
        }
    }

    /// The epoch ends: what the guest says next is said for the first time.
    pub(super) const fn silence(&mut self) {
        self.rung = false;
    }
}

/// What a guest sent, until the wire has it. From the first queue to the last, order is kept (OC-2).
pub(super) struct Egress<F> {
    pub(super) escrow: Escrow<Waiting<F>>,
    /// May go, but has not been routed.
    pub(super) outbox: VecDeque<Waiting<F>>,
    /// Small frames of those two that had to wait for a commit.
    pub(super) compact: Compact,
    /// Routed, and waiting for the wire to take it; at most a burst.
    pub(super) to_wire: VecDeque<F>,
    /// Bytes of those two.
    waiting_bytes: u64,
    pub(super) fenced: bool,
    /// `CLOCK_MONOTONIC` in nanoseconds until which this host may transmit (FO-1).
    pub(super) lease: Arc<AtomicU64>,
}

impl<F: Frame> Egress<F> {
    pub(super) fn new(limits: Limits, fenced: bool) -> Self {
        Self {
            escrow: Escrow::new(limits),
            outbox: VecDeque::with_capacity(limits.frames + 2 * MAX_SEGMENTS),
            compact: Compact::new(limits.frames),
            to_wire: VecDeque::with_capacity(BURST),
            waiting_bytes: 0,
            fenced,
            lease: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    /// What may go but is still here.
    pub(super) fn waiting(&self) -> Amount {
        Amount { frames: (self.outbox.len() + self.to_wire.len()) as u64, bytes: self.waiting_bytes }
    }

    /// Whether another frame of the guest may be taken.
    pub(super) fn has_room(&self) -> bool {
        let backlog = self.escrow.open_epoch().is_some() || self.outbox.len() < NATIVE_BACKLOG;
        !self.fenced && backlog && self.escrow.has_room(self.waiting())
    }

    /// Whether a frame may go to the wire now, past queues that are empty.
    pub(super) fn is_open(&self) -> bool {
        self.escrow.open_epoch().is_none()
            && self.outbox.is_empty()
            && self.to_wire.is_empty()
            && self.may_transmit(monotonic_ns)
    }

    /// Takes a captured frame: held while the port is protected (OC-1), on its way otherwise.
    pub(super) fn accept(&mut self, frame: F) {
        if self.escrow.open_epoch().is_none() {
            return self.send(frame);
        }
        let waiting = self.compact.put(frame);
        let bytes = waiting.len();
        let back = self.escrow.hold(waiting, bytes);
        debug_assert!(back.is_none(), "an epoch is open");
    }

    /// Puts a frame that may go behind all others that may go.
    pub(super) fn send(&mut self, frame: F) {
        self.waiting_bytes += frame.bytes().len() as u64;
        self.outbox.push_back(Waiting::Frame(frame));
    }

    /// Counts frames that the escrow moved to the outbox.
    pub(super) fn released(&mut self, amount: Amount) {
        self.waiting_bytes += amount.bytes;
    }

    /// The next frame to be routed, in memory of `wire`; none as well when there is no memory for it now.
    #[inline]
    pub(super) fn next<W: Wire<Frame = F>>(&mut self, wire: &mut W) -> Option<F> {
        // One that finds no memory stays first in line (OC-2).
        let small = match self.outbox.front()? {
            Waiting::Frame(_) => None,
            Waiting::Small(small) => Some(self.compact.take(small, wire)?),
        };
        let frame = match (self.outbox.pop_front()?, small) {
            (Waiting::Frame(frame), _) => frame,
            (Waiting::Small(_), frame) => frame?,
        };
        self.waiting_bytes -= frame.bytes().len() as u64;
        Some(frame)
    }

    /// Has the frame fetched that is so far behind the next one. A hint.
    #[inline]
    pub(super) fn prefetch(&self, ahead: usize) {
        // The ring is read in order, which processors see by themselves.
        if let Some(Waiting::Frame(frame)) = self.outbox.get(ahead) {
            frame.prefetch();
        }
    }

    /// Puts a routed frame behind the others that the wire is to take.
    pub(super) fn route_to_wire(&mut self, frame: F) {
        self.waiting_bytes += frame.bytes().len() as u64;
        self.to_wire.push_back(frame);
    }

    /// Lets `send` take frames from the front for the wire; what it took is counted and returned.
    pub(super) fn hand_over(&mut self, send: impl FnOnce(&mut VecDeque<F>) -> usize) -> Amount {
        let bytes = |queue: &VecDeque<F>| queue.iter().map(|frame| frame.bytes().len() as u64).sum::<u64>();
        let before = bytes(&self.to_wire);
        let frames = send(&mut self.to_wire) as u64;
        let sent = Amount { frames, bytes: before - bytes(&self.to_wire) };
        self.waiting_bytes -= sent.bytes;
        sent
    }

    /// Whether this host may transmit for the port now (FO-1). `clock` is asked only if it matters.
    pub(super) fn may_transmit(&self, clock: impl FnOnce() -> u64) -> bool {
        let until = self.lease.load(Ordering::Acquire);
        !self.fenced && (until == u64::MAX || clock() < until)
    }

    /// Drops everything; returns how many frames that was.
    pub(super) fn discard(&mut self) -> u64 {
        let dropped = self.escrow.discard().frames + self.waiting().frames;
        self.outbox.clear();
        self.compact.clear();
        self.to_wire.clear();
        self.waiting_bytes = 0;
        dropped
    }
}

/// What came in for a guest, until it has taken it.
pub(super) struct Inbound<F> {
    queue: VecDeque<F>,
    burst: Burst<F>,
    limit: usize,
    /// Since when the guest has been standing still.
    stopped_since_ns: Option<u64>,
    /// It has stood still for too long: nothing is kept for it.
    away: bool,
    /// It had no buffers for the first frame of the queue, which is offered as it is.
    plain_is_blocked: bool,
    /// Since when a running guest has had no buffers for what comes next.
    stuck_since_ns: Option<u64>,
}

impl<F: Frame> Inbound<F> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            queue: VecDeque::with_capacity(limits.inbound),
            burst: Burst::new(),
            limit: limits.inbound,
            stopped_since_ns: None,
            away: false,
            plain_is_blocked: false,
            stuck_since_ns: None,
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.burst.is_empty()
    }

    /// Whether the guest has not taken all that was offered.
    pub(super) fn is_blocked(&self) -> bool {
        !self.burst.is_empty() || (self.plain_is_blocked && !self.queue.is_empty())
    }

    /// Whether a frame that is pushed now is kept.
    pub(super) fn has_room(&self) -> bool {
        !self.away && self.queue.len() < self.limit
    }

    /// Queues a frame, unless the queue is full or the guest away; then it is given back, with the reason.
    pub(super) fn push(&mut self, frame: F) -> Result<(), (DropReason, F)> {
        if self.away {
            return Err((DropReason::Stale, frame));
        }
        if self.queue.len() >= self.limit {
            return Err((DropReason::InboundFull, frame));
        }
        self.queue.push_back(frame);
        Ok(())
    }

    /// Drops everything; returns how many frames that was.
    pub(super) fn discard(&mut self) -> u64 {
        let dropped = self.queue.len() + self.burst.clear();
        self.queue.clear();
        dropped as u64
    }
}

impl<F: Frame> Port<F> {
    /// What is done with the guest's output, in the words of the guest's channel.
    pub(super) fn mode_for_guest(&self) -> PortMode {
        match (self.egress.escrow.open_epoch(), &self.speculating) {
            (None, _) => PortMode::Native,
            (Some(_), Some(speculating)) if speculating.is_wanted() => match self.lets_agent_attach {
                true => PortMode::Aware,
                false => PortMode::Speculative,
            },
            (Some(_), _) => PortMode::Commit,
        }
    }

    /// A frame for the guest has come, at about `now`; one that has to be kept for it is dropped unless that may be.
    pub(super) fn receive(&mut self, now: Time, mut frame: F, keeps: Keeps) {
        self.counters.events.add(PortCounter::Received, 1);
        if self.egress.fenced {
            self.counters.drops.add(DropReason::Fenced, 1);
            return;
        }
        if let Some(speculating) = &mut self.speculating {
            if speculating.receive(now, frame.bytes_mut()) == FromWire::Taken {
                self.counters.events.add(PortCounter::Consumed, 1);
                return;
            }
        }
        let kept = match keeps {
            Keeps(true) => self.inbound.push(frame),
            Keeps(false) => Err((DropReason::NoFrames, frame)),
        };
        if let Err((reason, frame)) = kept {
            self.counters.drops.add(reason, 1);
            if let Some(speculating) = &mut self.speculating {
                speculating.lost_to_guest(frame.bytes());
            }
        }
    }

    /// Gives the guest what waits for it; returns how many frames it took.
    ///
    /// Bound: [`BURSTS_A_TURN`] bursts. Allocations and system calls: none. Cost: about 600 ns a
    /// segment of 1448 bytes from the wire to the guest (bench `deliver`); one checksum and one copy.
    pub(super) fn deliver(&mut self, clock: impl FnOnce() -> u64) -> usize {
        if !self.guest.is_running() {
            self.wait_for_guest(clock());
            return 0;
        }
        self.inbound.stopped_since_ns = None;
        self.inbound.away = false;
        let mut delivered = 0;
        for _ in 0..BURSTS_A_TURN {
            if self.inbound.is_empty() {
                break;
            }
            let offloads = self.guest.offloads();
            if !offloads.checksum && self.inbound.burst.is_empty() {
                let (taken, blocked) = self.deliver_plain();
                delivered += taken;
                if blocked {
                    self.wait_for_buffers(taken > 0, clock);
                    break;
                }
                self.inbound.stuck_since_ns = None;
                continue;
            }
            let inbound = &mut self.inbound;
            if inbound.burst.is_empty() {
                let count = inbound.queue.len().min(BURST);
                inbound.burst.fill(offloads, &mut inbound.queue.drain(..count));
            } else if inbound.burst.offloads() != offloads {
                // Merged for another driver than the one that is there now.
                self.counters.drops.add(DropReason::Stale, inbound.burst.clear() as u64);
                continue;
            }
            let taken = self.deliver_burst();
            delivered += taken;
            if self.inbound.is_blocked() {
                self.wait_for_buffers(taken > 0, clock);
                break;
            }
            self.inbound.stuck_since_ns = None;
        }
        delivered
    }

    /// Drops what the guest has had no buffers for; returns how many frames that was.
    fn skip_blocked(&mut self) -> usize {
        match self.inbound.burst.is_empty() {
            true => usize::from(self.inbound.queue.pop_front().is_some()),
            false => self.inbound.burst.skip(),
        }
    }

    fn wait_for_buffers(&mut self, progress: bool, clock: impl FnOnce() -> u64) {
        if progress {
            self.inbound.stuck_since_ns = None;
            return;
        }
        let now_ns = clock();
        let since = *self.inbound.stuck_since_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since) > STUCK_NS {
            self.inbound.stuck_since_ns = None;
            let dropped = self.skip_blocked();
            self.counters.drops.add(DropReason::NoBuffers, dropped as u64);
        }
    }

    /// Offers up to a burst of what waits as it is, to a guest that takes no merged frames; returns how many it
    /// took, and whether it had no room for the next.
    fn deliver_plain(&mut self) -> (usize, bool) {
        let Self { guest, inbound, counters, .. } = self;
        let header = VirtioNetHdr::default();
        let mut given = Amount::default();
        let mut blocked = false;
        for _ in 0..BURST {
            if let Some(soon) = inbound.queue.get(AHEAD) {
                soon.prefetch();
            }
            let Some(frame) = inbound.queue.front() else { break };
            let parts = [frame.bytes()];
            blocked = !guest.deliver(&header, &parts);
            if blocked {
                break;
            }
            given.add(parts[0].len());
            inbound.queue.pop_front();
        }
        inbound.plain_is_blocked = blocked;
        counters.events.add(PortCounter::Delivered, given.frames);
        counters.events.add(PortCounter::DeliveredBytes, given.bytes);
        (given.frames as usize, blocked)
    }

    /// Offers the burst at hand; returns how many frames of it the guest took.
    fn deliver_burst(&mut self) -> usize {
        let (guest, counters) = (&mut self.guest, &self.counters.events);
        let mut delivered = 0;
        self.inbound.burst.deliver(&mut |header, parts, frames| {
            let done = guest.deliver(header, parts);
            if done {
                delivered += frames;
                let bytes = parts.iter().map(|part| part.len() as u64).sum();
                counters.add(PortCounter::Delivered, 1);
                counters.add(PortCounter::DeliveredBytes, bytes);
                counters.add(PortCounter::Coalesced, frames as u64 - 1);
            }
            done
        });
        delivered
    }

    fn wait_for_guest(&mut self, now_ns: u64) {
        let since = *self.inbound.stopped_since_ns.get_or_insert(now_ns);
        if !self.inbound.away && now_ns.saturating_sub(since) > PATIENCE_NS {
            self.inbound.away = true;
            let dropped = self.inbound.discard();
            self.counters.drops.add(DropReason::Stale, dropped);
        }
    }

    /// Sets the counters that stand for present amounts.
    pub(super) fn count_held(&self) {
        let unconfirmed = self.speculating.as_ref().map_or(0, Speculating::held_bytes);
        self.counters.events.set(PortCounter::Unconfirmed, unconfirmed as u64);
        let held = self.egress.escrow.held();
        self.counters.events.set(PortCounter::Held, held.frames);
        self.counters.events.set(PortCounter::HeldBytes, held.bytes);
    }
}

const _: () = assert!(NATIVE_BACKLOG + MAX_SEGMENTS + MAX_STATIONS + MAX_ADDRESSES < 2 * MAX_SEGMENTS);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::{HeapGuest, HeapWire};
    use holdfast_epoch::EpochId;

    #[test]
    fn what_waits_is_counted_through_all_queues() {
        let (mut wire, _peer) = HeapWire::new(1500, 8, false).expect("a wire");
        for is_held in [false, true] {
            let mut egress = Egress::new(Limits { frames: 10, bytes: 1000, inbound: 1 }, false);
            if is_held {
                egress.escrow.protect(EpochId::FIRST).expect("a first epoch");
            }
            for len in 1..=3 {
                let frame = wire.alloc(len).expect("memory");
                egress.accept(frame);
            }
            if is_held {
                assert_eq!(egress.waiting(), Amount::default());
                let amount = egress.escrow.open(&mut egress.outbox, &mut |_, _| {});
                egress.released(amount);
            }
            assert_eq!(egress.waiting(), Amount { frames: 3, bytes: 6 });
            while let Some(frame) = egress.next(&mut wire) {
                egress.route_to_wire(frame);
            }
            let sent = egress.hand_over(|queue| queue.drain(..2).count());
            assert_eq!(sent, Amount { frames: 2, bytes: 3 });
            assert_eq!(egress.waiting(), Amount { frames: 1, bytes: 3 });
            assert_eq!(egress.discard(), 1);
            assert_eq!(egress.waiting(), Amount::default());
        }
    }

    /// OC-2: small frames that found no memory of the wire stay first in line, before those behind them.
    #[test]
    fn a_small_frame_that_finds_no_memory_is_waited_for() {
        let (mut wire, _peer) = HeapWire::new(1500, 2, false).expect("a wire");
        let mut egress = Egress::new(Limits { frames: 10, bytes: 10_000, inbound: 1 }, false);
        egress.escrow.protect(EpochId::FIRST).expect("a first epoch");
        for len in [60, 1000] {
            let frame = wire.alloc(len).expect("memory");
            egress.accept(frame);
        }
        let amount = egress.escrow.open(&mut egress.outbox, &mut |_, _| {});
        egress.released(amount);
        let other = wire.alloc(1).expect("that of the small frame is free");
        assert!(egress.next(&mut wire).is_none());
        drop(other);
        let lens: Vec<usize> =
            std::iter::from_fn(|| egress.next(&mut wire)).map(|frame| frame.bytes().len()).collect();
        assert_eq!(lens, [60, 1000]);
    }

    /// RB-1: a frame that the guest has no buffers for does not block its port for good.
    #[test]
    fn a_frame_that_no_buffer_holds_is_dropped_in_the_end() {
        let (guest, driver) = HeapGuest::new().expect("a guest");
        let mut port = Port {
            id: PortId(1),
            wire: 0,
            guest: Box::new(guest),
            egress: Egress::new(Limits::default(), false),
            inbound: Inbound::new(Limits::default()),
            identity: Identity::default(),
            last: None,
            counters: Arc::default(),
            announcing: None,
            starved: false,
            bell: Bell::default(),
            speculating: None,
            beat: Beat::default(),
            lets_agent_attach: false,
        };
        port.guest.poll_control();
        driver.set_room(Some(0));
        port.receive(Time::ZERO, vec![1; 9000], Keeps(true));
        port.receive(Time::ZERO, vec![2; 60], Keeps(true));
        for now in [0, STUCK_NS, STUCK_NS + 1] {
            assert_eq!(port.counters.drops.get(DropReason::NoBuffers), 0);
            assert_eq!(port.deliver(|| now), 0);
        }
        assert_eq!(port.counters.drops.get(DropReason::NoBuffers), 1);
        driver.set_room(None);
        assert_eq!(port.deliver(|| 0), 1);
        assert_eq!(driver.take()[0].1, [2; 60]);
    }

    /// FO-1: a lease that has run out, and a fence, keep frames back.
    #[test]
    fn transmission_ends_with_the_lease_and_with_the_fence() {
        let mut egress = Egress::<Vec<u8>>::new(Limits::default(), false);
        assert!(egress.may_transmit(|| panic!("without a lease the clock is not asked")));
        egress.lease.store(1000, Ordering::Release);
        assert!(egress.may_transmit(|| 999));
        assert!(!egress.may_transmit(|| 1000));
        egress.lease.store(u64::MAX, Ordering::Release);
        egress.fenced = true;
        assert!(!egress.may_transmit(|| 0));
        assert!(!egress.has_room(), "a fenced port takes nothing from its guest");
    }
}
