//! From the guests' transmit rings into their escrow, or on their way.
//!
//! A frame of a guest is judged, cut into frames of the wire and completed, then taken as a whole or
//! left in the ring as a whole. It stays in the ring when the port's bound is reached, or the memory
//! for frames runs low: the guest waits, nothing is lost.

use super::egress::Egress;
use super::forwarding::{Keeps, LOCAL_A_TURN, destination};
use super::guest_channel;
use super::port::{Others, Port, is_datagram, one_and_others};
use super::record;
use super::{Attached, Core, monotonic_ns};
use crate::audit::Audit;
use crate::counters::{Block, CoreCounter, DropReason, PortCounter};
use crate::escrow::Amount;
use crate::frame::{Frame, Wire};
use crate::guest::{GuestFrame, Verdict, VirtioNetHdr};
use crate::headers::{self, ETHERNET_LEN, Layout, Link, MAX_HEADERS, Mac, ethertype, protocol};
use crate::identity::MAX_STATIONS;
use crate::segmentation::{MAX_GUEST_FRAME, Plan, fits};
use crate::switch::{Destination, Slot, Switch};
use holdfast_packet::guest_channel::is_ours;
use holdfast_speculation::{FromGuest, Time};

/// Frames taken from one guest in one turn, of one whose output passes.
const GUEST_BURST: usize = 128;

/// The same of one whose output is held: more than go to other guests in a turn ([`LOCAL_A_TURN`]), so that what
/// waits does so here, for a wire, and not a second time for a guest that cannot get rid of what it has to send.
const HELD_BURST: usize = 256;

const _: () = assert!(HELD_BURST > LOCAL_A_TURN);

/// For how long an epoch's cut waits for what a guest's port has in lanes (RB-1): three lanes full of the smallest frames
/// take as long.
const BACKLOG_NS: u64 = 1_000_000;

/// Wire frames after which a guest's turn ends: eight large frames.
const SEGMENT_BUDGET: usize = 8 * 45;

/// Frames that are left for what comes in when guests have used up the rest.
pub(super) const RESERVED_FRAMES: usize = 512;

impl<W: Wire> Core<W> {
    /// Takes what the guests have sent; returns how many frames.
    pub(super) fn capture(&mut self) -> usize {
        let mut taken = 0;
        let Self { ports, wires, scratch, large, audit, counters, .. } = self;
        for port in ports.iter_mut() {
            port.begin_turn();
        }
        for slot in 0..ports.len() {
            let (port, others) = one_and_others(ports, slot);
            let attached = &mut wires[port.wire];
            taken += capture_port(port, others, attached, scratch, large, audit.as_mut(), counters);
        }
        taken
    }

    /// Takes what other cores have taken out of this guest's rings, unless its output has no room: what an epoch's cut
    /// is of has left the rings.
    ///
    /// Bound: [`BACKLOG_NS`] and a burst. What is left is another epoch's.
    pub(super) fn take_backlog(&mut self, slot: Slot) {
        let Self { ports, wires, scratch, large, audit, counters, .. } = self;
        let until_ns = monotonic_ns() + BACKLOG_NS;
        while ports[slot].guest.has_backlog() && monotonic_ns() < until_ns {
            let (port, others) = one_and_others(ports, slot);
            let attached = &mut wires[port.wire];
            if capture_port(port, others, attached, scratch, large, audit.as_mut(), counters) == 0 {
                return;
            }
        }
    }
}

/// Takes what one guest has sent.
///
/// Bound: [`GUEST_BURST`] or [`HELD_BURST`] frames, [`SEGMENT_BUDGET`] wire frames and one frame's segments beyond.
/// Allocations: none. Cost: about 140 ns a segment of 1448 bytes with its transmission (bench
/// `capture`); one copy and one checksum.
fn capture_port<W: Wire>(
    port: &mut Port<W::Frame>,
    mut others: Others<'_, W::Frame>,
    attached: &mut Attached<W>,
    scratch: &mut Vec<W::Frame>,
    large: &mut Vec<u8>,
    mut audit: Option<&mut Audit>,
    core: &Block<CoreCounter>,
) -> usize {
    if !port.egress.has_room() {
        return 0;
    }
    let Attached { wire, switch, unflushed } = attached;
    let slot = others.slot();
    let mtu = wire.mtu();
    let mode = port.mode_for_guest();
    let Port {
        id, guest, egress, inbound, identity, last, counters, starved, bell, speculating, beat, ..
    } = port;
    // A small frame for a neighbour may pass to it at once.
    let has_neighbours = others.iter().any(Port::takes_small);
    let mut last_destination = None;
    let now = Time::from_ns(if speculating.is_some() { monotonic_ns() } else { 0 });
    *starved = false;
    let mut made = 0;
    let mut plain = Amount::default();
    // What is looked into before it is taken, and what is recorded, goes the longer way.
    let speculates = speculating.as_ref().is_some_and(|speculating| !speculating.is_dormant());
    let is_simple = audit.is_none();
    // Asked once a burst, and only when there is one: wires may have to count.
    let mut memory = None;
    let mut asked = 0;
    let burst = if egress.escrow.open_epoch().is_some() { HELD_BURST } else { GUEST_BURST };
    let taken = guest.capture(burst, &mut |header, frame| {
        let has_memory = *memory.get_or_insert_with(|| wire.free_frames() >= RESERVED_FRAMES);
        let has_room = has_memory && made < SEGMENT_BUDGET && egress.has_room();
        if is_simple && has_room && Plan::is_plain(header, frame.len(), mtu) {
            let len = frame.len();
            let source = Sender { slot, switch, identity, last };
            let judge = Judge { mtu, source, speculates };
            let taken = match frame.copied() {
                Some(bytes) => match judge.judge(bytes) {
                    Simple::Good => {
                        let to = match has_neighbours && egress.is_open() {
                            true => destination(switch, &mut last_destination, bytes),
                            false => None,
                        };
                        take_copy(bytes, to, &mut others, egress, wire)
                    }
                    judged => judged,
                },
                None => take_plain(frame, judge, egress, wire),
            };
            match taken {
                Simple::Good => {
                    made += 1;
                    plain.add(len);
                    return Verdict::Taken;
                }
                Simple::Drop(reason) => {
                    counters.drops.add(reason, 1);
                    return Verdict::Taken;
                }
                Simple::No => {}
            }
        }
        if guest_channel::take(frame, mode, beat, wire, inbound, counters) {
            asked += 1;
            return Verdict::Taken;
        }
        *starved |= !has_memory;
        if !has_room || *starved {
            counters.events.add(PortCounter::Refusals, 1);
            return Verdict::Refused;
        }
        if let Some(speculating) = speculating.as_mut().filter(|speculating| !speculating.is_dormant()) {
            let mut head = [0; MAX_HEADERS];
            let head = &mut head[..frame.len().min(MAX_HEADERS)];
            frame.copy_to(0, head);
            if let Some(link) = Link::parse(head).filter(|_| frame.len() <= MAX_GUEST_FRAME) {
                let source = Sender { slot, switch, identity, last };
                if let Err(reason) = source.admit(&link, head, mtu) {
                    counters.drops.add(reason, 1);
                    return Verdict::Taken;
                }
                if speculating.take(now, header, head, frame) == FromGuest::Taken {
                    counters.events.add(PortCounter::Captured, 1);
                    counters.events.add(PortCounter::CapturedBytes, frame.len() as u64);
                    counters.events.add(PortCounter::Taken, 1);
                    return Verdict::Taken;
                }
            }
        }
        // SP-3: frames of flows that the engine knows are adapted as they leave, one by one.
        let adapts = speculating.as_ref().is_some_and(|speculating| !speculating.is_dormant());
        if header.gso_type != VirtioNetHdr::GSO_NONE && !adapts && audit.is_none() && egress.is_open() {
            let source = Sender { slot, switch, identity, last };
            match pass_large(header, frame, mtu, wire, source, large) {
                Passed::Taken(segments) => {
                    *unflushed = true;
                    made += segments;
                    counters.events.add(PortCounter::Captured, 1);
                    counters.events.add(PortCounter::CapturedBytes, frame.len() as u64);
                    counters.events.add(PortCounter::Segments, segments as u64);
                    counters.events.add(PortCounter::Sent, segments as u64);
                    counters.events.add(PortCounter::SentBytes, frame.len() as u64);
                    return Verdict::Taken;
                }
                Passed::Wait => {
                    *starved = true;
                    counters.events.add(PortCounter::Refusals, 1);
                    return Verdict::Refused;
                }
                Passed::Drop(reason) => {
                    counters.drops.add(reason, 1);
                    return Verdict::Taken;
                }
                Passed::No => {}
            }
        }
        match cut(header, frame, wire, scratch) {
            Ok(()) => {}
            Err(Obstacle::Wait) => {
                *starved = true;
                counters.events.add(PortCounter::Refusals, 1);
                return Verdict::Refused;
            }
            Err(Obstacle::Drop(reason)) => {
                counters.drops.add(reason, 1);
                return Verdict::Taken;
            }
        }
        let first = scratch.first().map(Frame::bytes).unwrap_or_default();
        let Some(link) = Link::parse(first) else { return Verdict::Taken };
        let source = Sender { slot, switch, identity, last };
        if let Err(reason) = source.admit(&link, first, mtu) {
            // RB-1: it was cut, and that counts.
            made += scratch.len();
            scratch.clear();
            counters.drops.add(reason, 1);
            return Verdict::Taken;
        }
        made += scratch.len();
        counters.events.add(PortCounter::Captured, 1);
        counters.events.add(PortCounter::CapturedBytes, frame.len() as u64);
        counters.events.add(PortCounter::Segments, scratch.len() as u64);
        for mut frame in scratch.drain(..) {
            let epoch = egress.escrow.open_epoch();
            if let (None, Some(speculating)) = (epoch, speculating.as_mut()) {
                speculating.release(now, frame.bytes_mut());
            }
            record(&mut audit, core, *id, epoch, frame.bytes());
            egress.accept(frame);
        }
        Verdict::Taken
    });
    if plain.frames > 0 {
        counters.events.add(PortCounter::Captured, plain.frames);
        counters.events.add(PortCounter::CapturedBytes, plain.bytes);
        counters.events.add(PortCounter::Segments, plain.frames);
    }
    if taken > 0 {
        // A question is none of the guest's output.
        if taken > asked && egress.escrow.open_epoch().is_some() {
            bell.ring();
            beat.wait.say(monotonic_ns());
        }
        port.count_held();
    }
    taken
}

/// What became of a frame that is one of the wire already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Simple {
    Good,
    Drop(DropReason),
    /// It goes the longer way.
    No,
}

/// What a frame that needs nothing done to it is judged by.
struct Judge<'a> {
    mtu: u16,
    source: Sender<'a>,
    speculates: bool,
}

impl Judge<'_> {
    /// Whether it is IPv4 without tags of the station that sent last, as most are: nothing is to be learnt of it.
    #[inline]
    fn is_ordinary(&self, bytes: &[u8]) -> bool {
        const PROTOCOL_AT: usize = ETHERNET_LEN + 9;
        let Some(head) = bytes.first_chunk::<{ PROTOCOL_AT + 1 }>() else { return false };
        let known = self.source.last.as_ref().filter(|station| station.tags.as_slice().is_empty());
        known.is_some_and(|station| head[6..12] == station.mac.0)
            && head[12..ETHERNET_LEN] == ethertype::IPV4.to_be_bytes()
            && fits(bytes.len(), ETHERNET_LEN, self.mtu)
            && (!self.speculates || head[PROTOCOL_AT] == protocol::UDP)
    }

    /// Judges the copy of a frame.
    #[inline]
    fn judge(self, bytes: &[u8]) -> Simple {
        if self.is_ordinary(bytes) {
            return Simple::Good;
        }
        if is_ours(bytes) {
            return Simple::No;
        }
        let Some(link) = Link::parse(bytes) else { return Simple::No };
        if self.speculates && !is_datagram(&link, bytes) {
            return Simple::No;
        }
        match self.source.admit(&link, bytes, self.mtu) {
            Ok(()) => Simple::Good,
            Err(reason) => Simple::Drop(reason),
        }
    }
}

/// Takes a small frame that was judged: to the neighbour that it is for, if that takes it now, or on its way. Without
/// memory for it nothing is done.
#[inline]
fn take_copy<W: Wire>(
    bytes: &[u8],
    to: Option<Destination>,
    others: &mut Others<'_, W::Frame>,
    egress: &mut Egress<W::Frame>,
    wire: &mut W,
) -> Simple {
    let neighbour = match to {
        Some(Destination::Port(slot)) => others.get_mut(slot),
        _ => None,
    };
    match neighbour.filter(|other| other.takes_small() && !other.engine_sees(bytes)) {
        // There is memory: it was asked for.
        Some(neighbour) => neighbour.pass(bytes, wire, Keeps(true)),
        None if egress.accept_copy(bytes, wire) => {}
        None => return Simple::No,
    }
    Simple::Good
}

/// Copies a frame that needs nothing done to it, once, and takes the copy if that is good.
///
/// Bound: one copy. Allocations: none.
fn take_plain<W: Wire>(
    frame: &dyn GuestFrame,
    judge: Judge<'_>,
    egress: &mut Egress<W::Frame>,
    wire: &mut W,
) -> Simple {
    let Some(mut piece) = wire.alloc(frame.len()) else { return Simple::No };
    frame.copy_to(0, piece.bytes_mut());
    let judged = judge.judge(piece.bytes());
    if judged == Simple::Good {
        egress.accept(piece);
    }
    judged
}

/// What became of a large frame that may go as it is.
enum Passed {
    /// It went, as so many frames of the wire's MTU.
    Taken(usize),
    /// It may go later.
    Wait,
    Drop(DropReason),
    /// It has to be cut here.
    No,
}

/// Hands a large frame to a wire that cuts it, if nobody but the wire is to have it. It is copied first, once:
/// what was judged is what goes.
fn pass_large<W: Wire>(
    header: &VirtioNetHdr,
    frame: &dyn GuestFrame,
    mtu: u16,
    wire: &mut W,
    source: Sender<'_>,
    large: &mut Vec<u8>,
) -> Passed {
    let mut destination = Mac([0; 6]);
    frame.copy_to(0, &mut destination.0);
    let is_outside = matches!(source.switch.destination(destination), Destination::Unknown);
    if !wire.takes_large() || frame.len() > MAX_GUEST_FRAME || !is_outside {
        return Passed::No;
    }
    if large.len() < frame.len() {
        large.resize(frame.len(), 0);
    }
    let large = &mut large[..frame.len()];
    frame.copy_to(0, large);
    let large = &*large;
    // The guest may have changed it since.
    let Some(link) = Link::parse(large).filter(|link| link.destination == destination) else {
        return Passed::No;
    };
    let plan = match Plan::new(header, &large, mtu) {
        Ok(plan) => plan,
        Err(reason) => return Passed::Drop(reason),
    };
    let Some(header) = plan.offload_header() else { return Passed::No };
    if let Err(reason) = source.admit(&link, &large[..plan.frame_len(0)], mtu) {
        return Passed::Drop(reason);
    }
    match wire.tx_large(&header, large, plan.frames()) {
        true => Passed::Taken(plan.frames()),
        false => Passed::Wait,
    }
}

/// Why a frame of a guest did not become frames of the wire.
enum Obstacle {
    /// It may later.
    Wait,
    /// It never will.
    Drop(DropReason),
}

/// Makes the frames of the wire that a guest's frame becomes, all or none of them, in `out`.
fn cut<W: Wire>(
    header: &VirtioNetHdr,
    frame: &dyn GuestFrame,
    wire: &mut W,
    out: &mut Vec<W::Frame>,
) -> Result<(), Obstacle> {
    out.clear();
    let plan = Plan::new(header, frame, wire.mtu()).map_err(Obstacle::Drop)?;
    for index in 0..plan.frames() {
        let Some(mut piece) = wire.alloc(plan.frame_len(index)) else {
            out.clear();
            // What is held comes back, so it is worth waiting for; but a frame that needs more than
            // is kept in reserve may wait for ever.
            return Err(match plan.frames() > RESERVED_FRAMES {
                true => Obstacle::Drop(DropReason::NoFrames),
                false => Obstacle::Wait,
            });
        };
        plan.write(index, frame, piece.bytes_mut());
        if plan.makes_checksums() {
            piece.set_sound();
        }
        out.push(piece);
    }
    Ok(())
}

/// Who sends: what is known of the port, and what the switch knows.
struct Sender<'a> {
    slot: Slot,
    switch: &'a mut Switch,
    identity: &'a mut crate::identity::Identity,
    last: &'a mut Option<crate::identity::Station>,
}

impl Sender<'_> {
    /// Checks a frame's sender and length, and learns from it.
    fn admit(mut self, link: &Link, bytes: &[u8], mtu: u16) -> Result<(), DropReason> {
        if !fits(bytes.len(), link.len(), mtu) {
            return Err(DropReason::Oversize);
        }
        let station = crate::identity::Station { mac: link.source, tags: link.tags };
        if *self.last != Some(station) {
            self.learn(link.source)?;
            self.identity.sent_from(station.mac, station.tags);
            *self.last = Some(station);
        }
        if speaks_of_addresses(link, bytes) {
            let claim = Layout::parse(bytes).and_then(|layout| headers::claim(bytes, &layout));
            if let Some(claim) = claim {
                self.identity.claimed(claim);
            }
        }
        Ok(())
    }

    fn learn(&mut self, mac: Mac) -> Result<(), DropReason> {
        if !mac.is_station() || self.switch.is_taken(mac, self.slot) {
            return Err(DropReason::Spoofed);
        }
        let known = self.identity.stations();
        if known.iter().any(|station| station.mac == mac) || known.len() < MAX_STATIONS {
            self.switch.learn(mac, self.slot).map_err(|_| DropReason::Spoofed)?;
        }
        Ok(())
    }
}

/// Whether the frame may be ARP or neighbour discovery, at a glance.
fn speaks_of_addresses(link: &Link, bytes: &[u8]) -> bool {
    match link.ethertype {
        ethertype::ARP => true,
        ethertype::IPV6 => bytes.get(link.len() + 6) == Some(&protocol::ICMPV6),
        _ => false,
    }
}
