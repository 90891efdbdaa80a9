//! Commands of the control threads, carried out between bursts.
//!
//! A command names the ports that it is for, and holds for all of them or for none: it is checked for
//! each before anything changes. (The fence alone falls wherever it can.) Its answer is sent when it is done, so that a caller of *fence*
//! knows that nothing is transmitted any more. Commands may allocate; they are few.

use super::capture::RESERVED_FRAMES;
use super::port::{Announcing, Egress, Inbound, Port};
use super::{Attached, Core, PortId, monotonic_ns};
use crate::counters::{CoreCounter, DropReason, PortCounter, PortCounters};
use crate::escrow::{Amount, EscrowError, Limits};
use crate::frame::Wire;
use crate::guest::GuestPort;
use crate::handle::{CutReport, GateError, Mode, PortStatus, Request, decode_states, encode_states};
use crate::identity::Identity;
use crate::switch::Slot;
use holdfast_epoch::{EpochId, ReleaseToken, Term};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Commands carried out in one turn.
const COMMANDS_A_TURN: usize = 4;

/// Ports of one core, at most.
pub(super) const MAX_PORTS: usize = 64;

/// What a control thread wants.
pub(crate) enum Action {
    Add(Box<NewPort>),
    Remove,
    Cut { epoch: EpochId, state: Vec<u8> },
    Release(ReleaseToken),
    SetMode(Mode),
    Fence,
    Unfence(Term),
    Lease(Arc<AtomicU64>),
    Restore(Vec<u8>),
    Announce,
    Status,
}

/// A port to be added.
pub(crate) struct NewPort {
    pub(crate) id: PortId,
    pub(crate) wire: usize,
    pub(crate) guest: Box<dyn GuestPort>,
    pub(crate) limits: Limits,
    pub(crate) fenced: bool,
    pub(crate) counters: Arc<PortCounters>,
}

/// What came of it.
pub(crate) enum Answer {
    Done,
    Cut(CutReport),
    Released(Amount),
    Status(Vec<PortStatus>),
}

impl<W: Wire> Core<W> {
    /// Carries out the commands that have come; returns how many.
    pub(super) fn serve(&mut self) -> usize {
        for served in 0..COMMANDS_A_TURN {
            let Ok(request) = self.requests.try_recv() else { return served };
            let Request { ports, action, deadline, reply } = request;
            // Whoever gave up waiting took it for not done; a fence is done all the same.
            let expired = deadline <= std::time::Instant::now() && !matches!(action, Action::Fence);
            let answer = match expired {
                true => Err(GateError::NoAnswer),
                false => self.carry_out(&ports, action),
            };
            self.counters.add(CoreCounter::Commands, 1);
            // The caller may have given up meanwhile; then nobody reads the answer.
            drop(reply.try_send(answer));
        }
        COMMANDS_A_TURN
    }

    fn carry_out(&mut self, ids: &[PortId], action: Action) -> Result<Answer, GateError> {
        if let Action::Add(new) = action {
            return self.add(*new).map(|()| Answer::Done);
        }
        if matches!(action, Action::Fence) {
            return self.fence(ids).map(|()| Answer::Done);
        }
        let mut slots = self.slots(ids)?;
        match action {
            Action::Add(_) | Action::Fence => unreachable!("handled above"),
            Action::Remove => {
                // From the end, as the places behind a removed port move up.
                slots.sort_unstable_by(|a, b| b.cmp(a));
                slots.iter().for_each(|&slot| self.remove(slot));
            }
            Action::Cut { epoch, state } => return self.cut(&slots, epoch, state),
            Action::Release(token) => return self.release(&slots, &token),
            Action::SetMode(mode) => self.set_mode(&slots, mode)?,
            Action::Unfence(term) => self.unfence(&slots, term)?,
            Action::Lease(lease) => self.lease(&slots, &lease),
            Action::Restore(state) => self.restore(&slots, &state)?,
            Action::Announce => self.start_announcing(&slots),
            Action::Status => {
                return Ok(Answer::Status(slots.iter().map(|&slot| self.status(slot)).collect()));
            }
        }
        Ok(Answer::Done)
    }

    /// Places of the ports, in the order in which they were named; a port named twice is a mistake
    /// that counts once.
    fn slots(&self, ids: &[PortId]) -> Result<Vec<Slot>, GateError> {
        let mut slots = Vec::with_capacity(ids.len());
        for &id in ids {
            let slot = self.ports.iter().position(|port| port.id == id);
            let slot = slot.ok_or(GateError::UnknownPort { port: id })?;
            if !slots.contains(&slot) {
                slots.push(slot);
            }
        }
        Ok(slots)
    }

    fn add(&mut self, new: NewPort) -> Result<(), GateError> {
        let NewPort { id, wire, guest, limits, fenced, counters } = new;
        if self.ports.iter().any(|port| port.id == id) {
            return Err(GateError::PortExists { port: id });
        }
        if self.ports.len() == MAX_PORTS {
            return Err(GateError::TooManyPorts { limit: MAX_PORTS });
        }
        let Some(attached) = self.wires.get_mut(wire) else {
            return Err(GateError::NoSuchWire { wire, wires: self.wires.len() });
        };
        let frames = attached.wire.free_frames();
        if self.ports.is_empty() && frames < 2 * RESERVED_FRAMES {
            return Err(GateError::FewFrames { frames, needed: 2 * RESERVED_FRAMES });
        }
        attached.switch.reserve_port();
        self.ports.push(Port {
            id,
            wire,
            guest,
            egress: Egress::new(limits, fenced),
            inbound: Inbound::new(limits),
            identity: Identity::default(),
            last: None,
            counters,
            announcing: None,
            starved: false,
        });
        Ok(())
    }

    fn remove(&mut self, slot: Slot) {
        self.silence(slot);
        for Attached { switch, .. } in &mut self.wires {
            switch.forget(slot);
        }
        self.ports.remove(slot);
    }

    fn cut(&mut self, slots: &[Slot], epoch: EpochId, mut state: Vec<u8>) -> Result<Answer, GateError> {
        for &slot in slots {
            let port = &self.ports[slot];
            port.egress.escrow.may_cut(epoch).map_err(|error| port_error(port.id, error))?;
        }
        let mut total = Amount::default();
        for &slot in slots {
            let port = &mut self.ports[slot];
            let amount = port.egress.escrow.cut(epoch).map_err(|error| port_error(port.id, error))?;
            total.frames += amount.frames;
            total.bytes += amount.bytes;
            port.counters.events.add(PortCounter::Cuts, 1);
        }
        encode_states(slots.iter().map(|&slot| &self.ports[slot].identity), &mut state);
        Ok(Answer::Cut(CutReport { frames: total.frames, bytes: total.bytes, port_state: state }))
    }

    fn release(&mut self, slots: &[Slot], token: &ReleaseToken) -> Result<Answer, GateError> {
        for &slot in slots {
            let port = &self.ports[slot];
            port.egress.escrow.may_release(token).map_err(|error| port_error(port.id, error))?;
        }
        let mut total = Amount::default();
        for &slot in slots {
            let port = &mut self.ports[slot];
            let Egress { escrow, outbox, .. } = &mut port.egress;
            let amount = escrow.release(token, outbox).map_err(|error| port_error(port.id, error))?;
            port.egress.released(amount);
            total.frames += amount.frames;
            total.bytes += amount.bytes;
            port.counters.events.add(PortCounter::Releases, 1);
            port.counters.events.add(PortCounter::Released, amount.frames);
            port.count_held();
        }
        Ok(Answer::Released(total))
    }

    fn set_mode(&mut self, slots: &[Slot], mode: Mode) -> Result<(), GateError> {
        if let Mode::Commit { first } = mode {
            for &slot in slots {
                let port = &self.ports[slot];
                port.egress.escrow.may_protect(first).map_err(|error| port_error(port.id, error))?;
            }
        }
        for &slot in slots {
            let port = &mut self.ports[slot];
            match mode {
                Mode::Native => {
                    let Egress { escrow, outbox, .. } = &mut port.egress;
                    let amount = escrow.open(outbox);
                    port.egress.released(amount);
                    port.counters.events.add(PortCounter::Released, amount.frames);
                }
                Mode::Commit { first } => {
                    port.egress.escrow.protect(first).map_err(|error| port_error(port.id, error))?;
                }
            }
            port.count_held();
        }
        Ok(())
    }

    /// FO-1: when this returns, nothing of these ports is transmitted any more. The one command that
    /// is done as far as it goes: a port that is not there keeps no other from being silent.
    fn fence(&mut self, ids: &[PortId]) -> Result<(), GateError> {
        for slot in 0..self.ports.len() {
            if ids.contains(&self.ports[slot].id) {
                self.silence(slot);
            }
        }
        self.flush_wires();
        self.slots(ids).map(drop)
    }

    fn silence(&mut self, slot: Slot) {
        let port = &mut self.ports[slot];
        port.egress.fenced = true;
        let dropped = port.egress.discard() + port.inbound.discard();
        port.counters.drops.add(DropReason::Fenced, dropped);
        if port.announcing.take().is_some() {
            self.announcing -= 1;
        }
        port.count_held();
    }

    fn unfence(&mut self, slots: &[Slot], term: Term) -> Result<(), GateError> {
        for &slot in slots {
            let port = &self.ports[slot];
            port.egress.escrow.may_begin(term).map_err(|error| port_error(port.id, error))?;
        }
        for &slot in slots {
            let port = &mut self.ports[slot];
            port.egress.escrow.begin_term(term).map_err(|error| port_error(port.id, error))?;
            port.egress.fenced = false;
        }
        Ok(())
    }

    fn lease(&mut self, slots: &[Slot], lease: &Arc<AtomicU64>) {
        for &slot in slots {
            self.ports[slot].egress.lease = Arc::clone(lease);
        }
    }

    fn restore(&mut self, slots: &[Slot], state: &[u8]) -> Result<(), GateError> {
        let identities = decode_states(state, slots.len())?;
        for (&slot, identity) in slots.iter().zip(identities) {
            let port = &mut self.ports[slot];
            let switch = &mut self.wires[port.wire].switch;
            for station in identity.stations() {
                // A MAC that another port of this host has stays there: a guest cannot be in two
                // places, and the one that speaks now is right.
                if switch.learn(station.mac, slot).is_err() {
                    port.counters.drops.add(DropReason::Spoofed, 1);
                }
            }
            port.identity = identity;
            port.last = None;
        }
        Ok(())
    }

    fn start_announcing(&mut self, slots: &[Slot]) {
        let now = monotonic_ns();
        for &slot in slots {
            let port = &mut self.ports[slot];
            let state = Announcing { began_ns: now, round: 0 };
            if !port.egress.fenced && port.announcing.replace(state).is_none() {
                self.announcing += 1;
            }
        }
    }

    fn status(&self, slot: Slot) -> PortStatus {
        let port = &self.ports[slot];
        let escrow = &port.egress.escrow;
        PortStatus {
            port: port.id,
            mode: escrow.open_epoch().map_or(Mode::Native, |first| Mode::Commit { first }),
            fenced: port.egress.fenced,
            term: escrow.term(),
            held: escrow.held(),
            waiting: port.egress.waiting(),
            leased: port.egress.lease.load(Ordering::Acquire) != u64::MAX,
            running: port.guest.is_running(),
            identity: port.identity.clone(),
        }
    }
}

fn port_error(port: PortId, error: EscrowError) -> GateError {
    GateError::Escrow { port, error }
}
