//! Commands of the control threads, carried out between bursts.
//!
//! A command names the ports that it is for, and holds for all of them or for none: it is checked for
//! each before anything changes. (The fence alone falls wherever it can.) Its answer is sent when it is done, so that a caller of *fence*
//! knows that nothing is transmitted any more. Commands may allocate; they are few.

use super::capture::RESERVED_FRAMES;
use super::egress::Egress;
use super::guest_channel::Beat;
use super::inbound::Inbound;
use super::port::{Announcing, Bell, Port};
use super::speculation::Speculating;
use super::{Attached, Core, PortId, monotonic_ns, record};
use crate::audit::Audit;
use crate::carrying::Carrier;
use crate::compact::{Compact, Waiting};
use crate::counters::{Block, CoreCounter, DropReason, PortCounter, PortCounters};
use crate::escrow::{Amount, EscrowError, Limits};
use crate::frame::{Frame, Wire};
use crate::guest::GuestPort;
use crate::handle::{CutReport, GateError, Mode, PortStatus, Request, begin_states, encode_state};
use crate::identity::Identity;
use crate::kept::KeptPort;
use crate::stream::Tap;
use crate::switch::Slot;
use crossbeam_channel::Sender;
use holdfast_epoch::{EpochId, ReleaseToken, Term};
use holdfast_speculation::{EngineConfig, FlowReport, Rules, Time};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Commands carried out in one turn.
const COMMANDS_A_TURN: usize = 4;

/// Ports of one core, at most.
pub(super) const MAX_PORTS: usize = 64;

/// What a control thread wants.
pub(crate) enum Action {
    Add(Box<NewPort>),
    Carry(Box<Carrier>),
    Remove,
    Cut { epoch: EpochId, whole: bool, state: Vec<u8> },
    Release(ReleaseToken),
    SetMode(Mode),
    Fence,
    Unfence(Term),
    Lease(Arc<AtomicU64>),
    Attach(Tap),
    Notify(Sender<()>),
    Speculate(bool),
    LetAgentAttach(bool),
    SetRules(Rules),
    Restore(Vec<KeptPort>),
    Flows,
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
    pub(crate) speculation: Option<Box<EngineConfig>>,
    pub(crate) counters: Arc<PortCounters>,
}

/// What came of it.
pub(crate) enum Answer {
    Done,
    Cut(CutReport),
    Released(Amount),
    Status(Vec<PortStatus>),
    Flows(Vec<(PortId, FlowReport)>),
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
        if let Action::Carry(carrier) = action {
            self.carriers.push(*carrier);
            return Ok(Answer::Done);
        }
        if matches!(action, Action::Fence) {
            return self.fence(ids).map(|()| Answer::Done);
        }
        let mut slots = self.slots(ids)?;
        match action {
            Action::Add(_) | Action::Carry(_) | Action::Fence => unreachable!("handled above"),
            Action::Remove => {
                // From the end, as the places behind a removed port move up.
                slots.sort_unstable_by(|a, b| b.cmp(a));
                slots.iter().for_each(|&slot| self.remove(slot));
            }
            Action::Cut { epoch, whole, state } => return self.cut(&slots, epoch, whole, state),
            Action::Release(token) => return self.release(&slots, &token),
            Action::SetMode(mode) => self.set_mode(&slots, mode)?,
            Action::Unfence(term) => self.unfence(&slots, term)?,
            Action::Lease(lease) => self.lease(&slots, &lease),
            Action::Attach(tap) => self.attach(&slots, &tap),
            Action::Notify(bell) => slots.iter().for_each(|&slot| self.ports[slot].bell.hang(bell.clone())),
            Action::Speculate(wanted) => self.speculate_if(&slots, wanted),
            Action::LetAgentAttach(wanted) => {
                slots.iter().for_each(|&slot| self.ports[slot].lets_agent_attach = wanted);
            }
            Action::SetRules(rules) => self.set_rules(&slots, &rules),
            Action::Restore(kept) => self.restore(&slots, kept)?,
            Action::Flows => return Ok(Answer::Flows(self.flows(&slots))),
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
        let NewPort { id, wire, mut guest, limits, fenced, speculation, counters } = new;
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
        let no_memory = |_| GateError::NoMemory { port: id };
        let egress = Egress::new(limits, fenced).map_err(no_memory)?;
        let inbound = Inbound::new(limits).map_err(no_memory)?;
        guest.fence(fenced);
        attached.switch.reserve_port();
        self.ports.push(Port {
            id,
            wire,
            guest,
            egress,
            inbound,
            identity: Identity::default(),
            last: None,
            counters,
            announcing: None,
            takes_plain: false,
            starved: false,
            bell: Bell::default(),
            speculating: speculation.map(|config| Speculating::new(*config)),
            beat: Beat::default(),
            lets_agent_attach: false,
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

    fn cut(
        &mut self,
        slots: &[Slot],
        epoch: EpochId,
        whole: bool,
        mut state: Vec<u8>,
    ) -> Result<Answer, GateError> {
        for &slot in slots {
            let port = &self.ports[slot];
            port.egress.escrow.may_cut(epoch).map_err(|error| port_error(port.id, error))?;
        }
        slots.iter().for_each(|&slot| self.take_backlog(slot));
        let mut total = Amount::default();
        for &slot in slots {
            let port = &mut self.ports[slot];
            port.bell.silence();
            let amount = port.egress.escrow.cut(epoch).map_err(|error| port_error(port.id, error))?;
            total.frames += amount.frames;
            total.bytes += amount.bytes;
            port.counters.events.add(PortCounter::Cuts, 1);
            let now_ns = monotonic_ns();
            port.beat.cut(epoch, now_ns);
        }
        begin_states(slots.len(), &mut state);
        let mut self_contained = true;
        for &slot in slots {
            let Port { identity, speculating, .. } = &mut self.ports[slot];
            encode_state(identity, &mut state, |out| {
                if let Some(speculating) = speculating {
                    let now = Time::from_ns(monotonic_ns());
                    self_contained &= speculating.cut(now, epoch, whole, out);
                }
            });
        }
        let Amount { frames, bytes } = total;
        Ok(Answer::Cut(CutReport { frames, bytes, port_state: state, self_contained }))
    }

    fn release(&mut self, slots: &[Slot], token: &ReleaseToken) -> Result<Answer, GateError> {
        for &slot in slots {
            let port = &self.ports[slot];
            port.egress.escrow.may_release(token).map_err(|error| port_error(port.id, error))?;
        }
        let mut total = Amount::default();
        let core = &*self.counters;
        for &slot in slots {
            let port = &mut self.ports[slot];
            let now_ns = monotonic_ns();
            let now = Time::from_ns(now_ns);
            port.beat.wait.committed(token.epoch(), now_ns);
            let Port { id, egress, speculating, .. } = port;
            let mut audit = self.audit.as_mut();
            let amount = egress
                .escrow
                .release(
                    token,
                    &mut egress.outbox,
                    &mut leaving(now, *id, &mut egress.compact, speculating, &mut audit, core),
                )
                .map_err(|error| port_error(*id, error))?;
            if let Some(speculating) = speculating {
                speculating.commit(now, token.epoch());
            }
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
        let core = &*self.counters;
        for &slot in slots {
            let port = &mut self.ports[slot];
            match mode {
                Mode::Native => {
                    let now = Time::from_ns(monotonic_ns());
                    let Port { id, egress, speculating, .. } = port;
                    let mut audit = self.audit.as_mut();
                    let mut leaving = leaving(now, *id, &mut egress.compact, speculating, &mut audit, core);
                    let amount = egress.escrow.open(&mut egress.outbox, &mut leaving);
                    drop(leaving);
                    port.egress.released(amount);
                    port.counters.events.add(PortCounter::Released, amount.frames);
                    port.beat.stop();
                }
                Mode::Commit { first } => {
                    port.egress.escrow.protect(first).map_err(|error| port_error(port.id, error))?;
                }
            }
            if let Some(speculating) = &mut port.speculating {
                let protected = port.egress.escrow.open_epoch().is_some();
                speculating.set_protected(Time::from_ns(monotonic_ns()), protected);
            }
            port.count_held();
        }
        Ok(())
    }

    /// The stream of the VM's ports, which are `slots` in their order.
    fn attach(&mut self, slots: &[Slot], tap: &Tap) {
        for (place, &slot) in slots.iter().enumerate() {
            if let Some(speculating) = &mut self.ports[slot].speculating {
                speculating.attach(tap.clone(), place as u8);
            }
        }
    }

    /// Speculation or plain output commit, for ports that are protected or will be.
    fn speculate_if(&mut self, slots: &[Slot], wanted: bool) {
        let now = Time::from_ns(monotonic_ns());
        for &slot in slots {
            let Port { egress, speculating, .. } = &mut self.ports[slot];
            if let Some(speculating) = speculating {
                speculating.set_wanted(now, wanted, egress.escrow.open_epoch().is_some());
            }
        }
    }

    fn set_rules(&mut self, slots: &[Slot], rules: &Rules) {
        let now = Time::from_ns(monotonic_ns());
        for &slot in slots {
            if let Some(speculating) = &mut self.ports[slot].speculating {
                speculating.set_rules(now, rules.clone());
            }
        }
    }

    fn flows(&self, slots: &[Slot]) -> Vec<(PortId, FlowReport)> {
        let ports = slots.iter().map(|&slot| &self.ports[slot]);
        ports
            .filter_map(|port| port.speculating.as_ref().map(|speculating| (port.id, speculating)))
            .flat_map(|(id, speculating)| speculating.flows().into_iter().map(move |flow| (id, flow)))
            .collect()
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
        let behind = port.guest.fence(true) as u64;
        let dropped = port.egress.discard() + port.inbound.discard() + behind;
        if let Some(speculating) = &mut port.speculating {
            speculating.discard();
        }
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
            // What a guest before this one has said behind the fence is nobody's.
            let behind = port.guest.fence(false) as u64;
            port.counters.drops.add(DropReason::Fenced, behind);
            port.egress.fenced = false;
        }
        Ok(())
    }

    fn lease(&mut self, slots: &[Slot], lease: &Arc<AtomicU64>) {
        for &slot in slots {
            self.ports[slot].egress.lease = Arc::clone(lease);
        }
    }

    fn restore(&mut self, slots: &[Slot], kept: Vec<KeptPort>) -> Result<(), GateError> {
        if kept.len() != slots.len() {
            return Err(GateError::StateCount { expected: slots.len(), found: kept.len() });
        }
        let now = Time::from_ns(monotonic_ns());
        for (&slot, KeptPort { identity, ledger }) in slots.iter().zip(kept) {
            let port = &mut self.ports[slot];
            if let (Some(speculating), Some(ledger)) = (&mut port.speculating, ledger) {
                speculating.restore(now, ledger);
            }
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
            speculative: port.speculating.as_ref().is_some_and(Speculating::is_wanted),
            agent_silence: port.beat.agent_silence(monotonic_ns()),
            held: escrow.held(),
            unconfirmed_bytes: port.speculating.as_ref().map_or(0, Speculating::held_bytes),
            waiting: port.egress.waiting(),
            leased: port.egress.lease.load(Ordering::Acquire) != u64::MAX,
            running: port.guest.is_running(),
            identity: port.identity.clone(),
        }
    }
}

/// What happens to each held frame as it leaves: it is adapted to what its client has seen, and recorded
/// anew if that changed it.
fn leaving<'a, F: Frame>(
    now: Time,
    id: PortId,
    compact: &'a mut Compact,
    speculating: &'a mut Option<Speculating>,
    audit: &'a mut Option<&mut Audit>,
    core: &'a Block<CoreCounter>,
) -> impl FnMut(EpochId, &mut Waiting<F>) + 'a {
    move |epoch, waiting| {
        let Some(speculating) = speculating else { return };
        compact.each_mut(waiting, |bytes| {
            if speculating.release(now, bytes) {
                record(audit, core, id, Some(epoch), bytes);
            }
        });
    }
}

fn port_error(port: PortId, error: EscrowError) -> GateError {
    GateError::Escrow { port, error }
}
