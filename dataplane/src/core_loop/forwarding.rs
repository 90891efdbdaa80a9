//! Between wires and ports: where frames go, and whether they may.

use super::port::{Port, one_and_others};
use super::{Attached, Core, PortId, monotonic_ns};
use crate::announcement::{self, REPETITIONS};
use crate::coalescing::BURST;
use crate::counters::{CoreCounter, DropReason, PortCounter};
use crate::frame::{Frame, Wire};
use crate::headers::{Link, Mac};
use crate::switch::{Destination, Slot, Switch};
use holdfast_packet::guest_channel::is_ours;
use holdfast_speculation::Time;

/// Frames that are handed to a wire at once. FO-1: fence and lease are looked at before each, so that a process
/// that is stopped in between sends no more than these when it goes on.
const WIRE_BURST: usize = 32;

/// Bursts to the wire for one port in one turn, so that others get theirs.
const BURSTS_A_TURN: usize = 16;

/// Frames of one port for other ports in one turn: fewer than are taken of a guest in one, or the rings of those that
/// pass them on fill. What was held for an epoch and is let go at once does not come upon a guest as a whole.
pub(super) const LOCAL_A_TURN: usize = 192;

/// Frames that are fetched ahead of those looked at.
const AHEAD: usize = 24;

/// Frames of a wire's memory that what comes in leaves to what goes out.
const RESERVED_FOR_OUTPUT: usize = 2 * BURST;

/// Whether frames for guests may be kept until their guests take them. Not while the wire's memory is all but used
/// up: small frames that waited for their commit need some to leave, and what waits behind them holds the rest
/// (RB-1). Asked once a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keeps(pub(super) bool);

impl Keeps {
    pub(super) fn asked_of<W: Wire>(wire: &W) -> Self {
        Self(wire.free_frames() >= RESERVED_FOR_OUTPUT)
    }
}

impl<W: Wire> Core<W> {
    /// Takes what came on the wires and queues it for the guests; returns how many frames.
    ///
    /// Bound: [`BURST`] frames a wire. Allocations: none. Cost: about 20 ns a frame.
    pub(super) fn receive(&mut self) -> usize {
        let mut received = 0;
        let mut lost = 0;
        let Self { wires, ports, scratch, counters, .. } = self;
        for (place, Attached { wire, switch, .. }) in wires.iter_mut().enumerate() {
            scratch.clear();
            let mut got = wire.rx_burst(scratch, BURST);
            // Drivers with shorter bursts are asked once more: longer bursts merge better.
            if (BURST / 4..BURST).contains(&got) {
                got += wire.rx_burst(scratch, BURST - got);
            }
            received += got;
            lost += wire.lost();
            if got == 0 {
                continue;
            }
            let keeps = Keeps::asked_of(wire);
            let now = Time::from_ns(monotonic_ns());
            for frame in scratch.drain(..) {
                let Some(link) = Link::parse(frame.bytes()) else {
                    counters.add(CoreCounter::WireUnknown, 1);
                    continue;
                };
                match switch.destination(link.destination) {
                    Destination::Port(slot) => ports[slot].receive(now, frame, keeps),
                    // Nobody out there speaks to an agent in Holdfast's name.
                    Destination::All if is_ours(frame.bytes()) => counters.add(CoreCounter::WireUnknown, 1),
                    Destination::All => flood(now, wire, ports, frame, keeps, |port| port.wire == place),
                    // A guest that has not spoken yet may be the one.
                    Destination::Unknown => {
                        let silent =
                            |port: &Port<W::Frame>| port.wire == place && port.identity.stations().is_empty();
                        if !ports.iter().any(silent) {
                            counters.add(CoreCounter::WireUnknown, 1);
                            continue;
                        }
                        flood(now, wire, ports, frame, keeps, silent);
                    }
                }
            }
            counters.add(CoreCounter::WireReceived, got as u64);
        }
        counters.set(CoreCounter::WireLost, lost);
        received
    }

    /// Sends what may go to the wires and to other ports; returns how many frames went.
    ///
    /// FO-1: fence and lease of the port are checked before each burst. OC-2: what a wire does not
    /// take now stays first in line.
    ///
    /// Bound: [`BURSTS_A_TURN`] bursts a port. Allocations: none. Cost: about 20 ns a frame and the
    /// wire's own.
    pub(super) fn transmit(&mut self) -> usize {
        let mut moved = 0;
        for slot in 0..self.ports.len() {
            let mut local = 0;
            for _ in 0..BURSTS_A_TURN {
                let waiting = self.ports[slot].egress.waiting().frames;
                if waiting == 0 {
                    break;
                }
                if !self.ports[slot].egress.may_transmit(monotonic_ns) {
                    self.ports[slot].counters.events.add(PortCounter::LeaseHolds, 1);
                    break;
                }
                let routed = self.route(slot);
                let sent = self.send(slot);
                moved += routed + sent;
                local += routed;
                // Nothing moved: the wire is full.
                if routed + sent == 0 || local >= LOCAL_A_TURN {
                    break;
                }
            }
        }
        moved
    }

    /// Routes up to a burst of what may go; returns how many frames left the port's queues by that.
    fn route(&mut self, slot: Slot) -> usize {
        let Self { ports, wires, .. } = self;
        let place = ports[slot].wire;
        let Attached { wire, switch, .. } = &mut wires[place];
        let mut local = 0;
        let now = Time::from_ns(monotonic_ns());
        let keeps = Keeps::asked_of(wire);
        // Frames come in runs for one receiver.
        let mut last = None;
        for _ in 0..BURST {
            let (port, mut others) = one_and_others(ports, slot);
            let egress = &mut port.egress;
            if egress.to_wire.len() >= BURST {
                break;
            }
            egress.prefetch(AHEAD);
            // What is a guest's of this host goes from where it waited to where it is to be.
            let given = egress.offer_small(|bytes| {
                let Some(Destination::Port(other)) = destination(switch, &mut last, bytes) else {
                    return false;
                };
                let other = others.get_mut(other);
                let Some(other) = other.filter(|other| other.takes_small() && !other.engine_sees(bytes))
                else {
                    return false;
                };
                other.pass(bytes, wire, keeps);
                true
            });
            if given {
                local += 1;
                continue;
            }
            let Some(frame) = egress.next(wire) else { break };
            let Some(destination) = destination(switch, &mut last, frame.bytes()) else { continue };
            match destination {
                Destination::Port(other) => {
                    local += 1;
                    if other == slot {
                        ports[slot].counters.drops.add(DropReason::NotHere, 1);
                    } else {
                        ports[other].receive(now, frame, keeps);
                    }
                }
                Destination::All => {
                    let sender: PortId = ports[slot].id;
                    for other in ports.iter_mut().filter(|port| port.wire == place && port.id != sender) {
                        give_copy(now, wire, other, frame.bytes(), keeps);
                    }
                    ports[slot].egress.route_to_wire(frame);
                }
                Destination::Unknown => ports[slot].egress.route_to_wire(frame),
            }
        }
        local
    }

    /// Hands one burst of what is routed to the wire; returns how many frames it took.
    fn send(&mut self, slot: Slot) -> usize {
        let port = &mut self.ports[slot];
        let attached = &mut self.wires[port.wire];
        let sent = port.egress.hand_over(|queue| match queue.is_empty() {
            true => 0,
            false => attached.wire.tx_burst(queue, WIRE_BURST),
        });
        attached.unflushed |= sent.frames > 0;
        port.counters.events.add(PortCounter::Sent, sent.frames);
        port.counters.events.add(PortCounter::SentBytes, sent.bytes);
        sent.frames as usize
    }

    /// Says once more where announced guests are, if it is time; returns how many frames.
    pub(super) fn announce(&mut self) -> usize {
        if self.announcing == 0 {
            return 0;
        }
        let now = monotonic_ns();
        let mut said = 0;
        let Self { ports, wires, announcing, .. } = self;
        for port in ports.iter_mut() {
            let Some(state) = port.announcing.filter(|state| state.due_ns() <= now) else { continue };
            let wire = &mut wires[port.wire].wire;
            for bytes in announcement::announcements(&port.identity) {
                // One that finds no memory is said again the next time.
                let Some(frame) = wire.copy(&bytes) else { continue };
                port.egress.send(frame);
                port.counters.events.add(PortCounter::Announced, 1);
                said += 1;
            }
            let next = super::port::Announcing { round: state.round + 1, ..state };
            port.announcing = (next.round < REPETITIONS.len()).then_some(next);
            if port.announcing.is_none() {
                *announcing -= 1;
            }
        }
        said
    }
}

/// Where a frame goes, by its receiver and what was found for the `last` one; none for what is no frame.
#[inline]
pub(super) fn destination(
    switch: &Switch,
    last: &mut Option<(Mac, Destination)>,
    bytes: &[u8],
) -> Option<Destination> {
    let mac = bytes.first_chunk().map(|mac| Mac(*mac))?;
    let found = match *last {
        Some((known, found)) if known == mac => found,
        _ => switch.destination(mac),
    };
    *last = Some((mac, found));
    Some(found)
}

/// Gives a frame that came from the wire to every port of `chosen`; the last one gets the frame
/// itself.
fn flood<W: Wire>(
    now: Time,
    wire: &mut W,
    ports: &mut [Port<W::Frame>],
    frame: W::Frame,
    keeps: Keeps,
    chosen: impl Fn(&Port<W::Frame>) -> bool,
) {
    let Some(last) = ports.iter().rposition(&chosen) else { return };
    let (before, rest) = ports.split_at_mut(last);
    for port in before.iter_mut().filter(|port| chosen(port)) {
        give_copy(now, wire, port, frame.bytes(), keeps);
    }
    rest[0].receive(now, frame, keeps);
}

/// Gives a port a copy of a frame, if there is memory for it.
fn give_copy<W: Wire>(now: Time, wire: &mut W, port: &mut Port<W::Frame>, bytes: &[u8], keeps: Keeps) {
    match wire.copy(bytes) {
        Some(copy) => port.receive(now, copy, keeps),
        None => port.counters.drops.add(DropReason::NoFrames, 1),
    }
}
