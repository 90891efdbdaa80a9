//! One guest's port: what goes out, what comes in, and who it is.
//!
//! Every frame of the guest that its engine does not take comes in by [`Egress::accept`] or
//! [`Egress::accept_copy`], every frame for it by [`Port::receive`] or, a small one of a neighbour, by
//! [`Port::pass`].
//!
//! Owned by the polling core.

use super::egress::Egress;
use super::forwarding::Keeps;
use super::guest_channel::Beat;
use super::inbound::Inbound;
use super::speculation::Speculating;
use super::{PortId, monotonic_ns};
use crate::announcement::REPETITIONS;
use crate::coalescing::BURST;
use crate::compact::Waiting;
use crate::counters::{DropReason, PortCounter, PortCounters};
use crate::escrow::Amount;
use crate::frame::{Frame, Wire};
use crate::guest::{GuestPort, PATIENCE_NS, STUCK_NS, VirtioNetHdr};
use crate::headers::{ETHERNET_LEN, Link, ethertype, protocol};
use crate::identity::{Identity, Station};
use crate::switch::Slot;
use crossbeam_channel::Sender;
use holdfast_packet::guest_channel::PortMode;
use holdfast_speculation::{FromWire, Time};
use std::sync::Arc;

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
    /// The guest runs, and takes frames as they are: as of the beginning of the turn.
    pub(super) takes_plain: bool,
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

/// The ports of a core but one.
pub(super) struct Others<'a, F> {
    before: &'a mut [Port<F>],
    after: &'a mut [Port<F>],
}

impl<F> Others<'_, F> {
    /// The port at a place, unless it is the one that is not among them.
    #[inline]
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Port<F>> {
        match slot.checked_sub(self.before.len()) {
            None => self.before.get_mut(slot),
            Some(beyond) => self.after.get_mut(beyond.checked_sub(1)?),
        }
    }

    /// The place of the one that is not among them.
    pub(super) const fn slot(&self) -> Slot {
        self.before.len()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Port<F>> {
        self.before.iter().chain(self.after.iter())
    }
}

/// The port at `slot`, and the others.
pub(super) fn one_and_others<F>(ports: &mut [Port<F>], slot: Slot) -> (&mut Port<F>, Others<'_, F>) {
    let (before, rest) = ports.split_at_mut(slot);
    let (port, after) = rest.split_first_mut().expect("a port is there");
    (port, Others { before, after })
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
        self.keep(frame, keeps);
    }

    /// A turn begins: what is known of the guest in it.
    pub(super) fn begin_turn(&mut self) {
        self.guest.poll_control();
        let runs = self.guest.is_running();
        self.takes_plain = runs && !self.guest.offloads().checksum;
        self.beat.wait.follow(runs, monotonic_ns);
    }

    /// A small frame of a neighbour, in no memory of a wire, for a guest that [takes](Self::takes_small) it. The guest
    /// has it at once unless others wait.
    ///
    /// Bound: two copies. Allocations: none. Cost: about 20 ns for 60 bytes (`bench pps`).
    #[inline]
    pub(super) fn pass<W: Wire<Frame = F>>(&mut self, bytes: &[u8], wire: &mut W, keeps: Keeps) {
        self.counters.events.add(PortCounter::Received, 1);
        if self.inbound.is_empty() && self.give(bytes) || self.inbound.push_copy(bytes) {
            return;
        }
        match wire.copy(bytes) {
            Some(frame) => self.keep(frame, keeps),
            None => self.lose(DropReason::NoFrames, bytes),
        }
    }

    /// Whether [`Self::pass`] may be called with this frame, unless the [engine sees](Self::engine_sees) it first.
    #[inline]
    pub(super) fn takes_small(&self) -> bool {
        self.takes_plain && !self.egress.fenced
    }

    /// Whether the engine has to see this frame before the guest has it.
    #[inline]
    pub(super) fn engine_sees(&self, bytes: &[u8]) -> bool {
        const PROTOCOL_AT: usize = ETHERNET_LEN + 9;
        let speculates = self.speculating.as_ref().is_some_and(|speculating| !speculating.is_dormant());
        if !speculates {
            return false;
        }
        // IPv4 without tags, as most frames are, at a glance.
        if bytes.get(12..ETHERNET_LEN) == Some(&ethertype::IPV4.to_be_bytes()) {
            return bytes.get(PROTOCOL_AT) != Some(&protocol::UDP);
        }
        !Link::parse(bytes).is_some_and(|link| is_datagram(&link, bytes))
    }

    /// Gives the guest a frame past its queue, if it has room now; whether it has.
    #[inline]
    fn give(&mut self, bytes: &[u8]) -> bool {
        let done = self.guest.deliver(&VirtioNetHdr::default(), &[bytes]);
        if done {
            self.counters.events.add(PortCounter::Delivered, 1);
            self.counters.events.add(PortCounter::DeliveredBytes, bytes.len() as u64);
        }
        done
    }

    /// Queues a frame for the guest, if that may be and there is room.
    fn keep(&mut self, frame: F, keeps: Keeps) {
        let kept = match keeps {
            Keeps(true) => self.inbound.push(frame),
            Keeps(false) => Err((DropReason::NoFrames, frame)),
        };
        if let Err((reason, frame)) = kept {
            self.lose(reason, frame.bytes());
        }
    }

    fn lose(&mut self, reason: DropReason, bytes: &[u8]) {
        self.counters.drops.add(reason, 1);
        if let Some(speculating) = &mut self.speculating {
            speculating.lost_to_guest(bytes);
        }
    }

    /// Gives the guest what waits for it; returns how many frames it took.
    ///
    /// Bound: [`BURSTS_A_TURN`] bursts. Allocations and system calls: none. Cost: about 420 ns a
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
                let stale = inbound.fill(offloads);
                self.counters.drops.add(DropReason::Stale, stale as u64);
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
            true => self.inbound.skip(),
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
            if let Some(Waiting::Frame(soon)) = inbound.queue.get(AHEAD) {
                soon.prefetch();
            }
            let Some(waiting) = inbound.queue.front() else { break };
            let parts = [inbound.compact.bytes(waiting)];
            blocked = !guest.deliver(&header, &parts);
            if blocked {
                break;
            }
            given.add(parts[0].len());
            inbound.skip();
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

/// Whether the frame is ARP or UDP, which no engine takes, at a glance.
#[inline]
pub(super) fn is_datagram(link: &Link, bytes: &[u8]) -> bool {
    let protocol_at = match link.ethertype {
        ethertype::ARP => return true,
        ethertype::IPV4 => 9,
        ethertype::IPV6 => 6,
        _ => return false,
    };
    bytes.get(link.len() + protocol_at) == Some(&protocol::UDP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::Limits;
    use crate::heap::HeapGuest;

    /// RB-1: a frame that the guest has no buffers for does not block its port for good.
    #[test]
    fn a_frame_that_no_buffer_holds_is_dropped_in_the_end() {
        let (guest, driver) = HeapGuest::new().expect("a guest");
        let mut port = Port {
            id: PortId(1),
            wire: 0,
            guest: Box::new(guest),
            egress: Egress::new(Limits::default(), false).expect("a ring"),
            inbound: Inbound::new(Limits::default()).expect("a ring"),
            identity: Identity::default(),
            last: None,
            counters: Arc::default(),
            announcing: None,
            takes_plain: false,
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
}
