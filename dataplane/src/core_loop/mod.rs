//! The polled loop: one thread runs wires, rings, escrow and forwarding to completion.
//!
//! A turn: commands, frames that are carried for other cores, frames from the wires, frames from the
//! guests, the speculating flows, frames to the wires, frames to the guests, notifications. Every
//! step takes at most a burst of each wire and port, so that a turn is bounded and nobody starves.
//! When turns find nothing, the [`IdlePolicy`] says whether to go on polling or to sleep until a
//! guest, a wire, another core or a control thread has something.
//!
//! Invariants: **OC-1**, **OC-2** by the queues of a port, which every frame of a guest passes in
//! order; **FO-1** by the check of fence and lease before each burst to a wire or to another port;
//! **RB-1** as whatever a guest does costs it its own frames or stops its own device.
//!
//! Threading: the core owns everything and shares only counters, leases, the command channel, and lanes with
//! the cores that carry pairs for it or for which it does.
//! There is one window that no check can close: a process that is stopped between the check of the
//! lease and the burst sends that burst, at most 32 frames whose epoch was committed, when it
//! goes on.

mod capture;
mod commands;
mod egress;
mod forwarding;
mod guest_channel;
mod idle;
mod inbound;
mod least_wait;
mod outflow;
mod port;
mod speculation;

use crate::audit::{self, Audit, PROTECTED, Record};
use crate::carrying::Carrier;
use crate::coalescing::BURST;
use crate::counters::{Block, CoreCounter};
use crate::frame::Wire;
use crate::handle::{Handle, Link, Request};
use crate::segmentation::{MAX_GUEST_FRAME, MAX_SEGMENTS};
use crate::switch::Switch;
use crossbeam_channel::Receiver;
use holdfast_epoch::EpochId;
use holdfast_speculation::Time;
use nix::time::{ClockId, clock_gettime};
use port::Port;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use commands::{Action, Answer, NewPort};

/// Number of a port, as the operator's configuration gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

impl std::fmt::Display for PortId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a core does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Polls on: lowest latency, one core used up.
    Poll,
    /// Polls for a while, then sleeps until there is something.
    Adaptive {
        /// For how long it polls first.
        spin: Duration,
    },
}

impl Default for IdlePolicy {
    fn default() -> Self {
        Self::Adaptive { spin: Duration::from_micros(20) }
    }
}

/// A wire and the ports on it: one switch.
struct Attached<W> {
    wire: W,
    switch: Switch,
    /// Something was handed over since the last flush.
    unflushed: bool,
}

/// The polling core.
pub struct Core<W: Wire> {
    wires: Vec<Attached<W>>,
    ports: Vec<Port<W::Frame>>,
    /// Pairs that this core carries for others.
    carriers: Vec<Carrier>,
    requests: Receiver<Request>,
    link: Arc<Link>,
    audit: Option<Audit>,
    idle: IdlePolicy,
    counters: Arc<Block<CoreCounter>>,
    /// Frames of the burst at hand.
    scratch: Vec<W::Frame>,
    /// The large frame at hand.
    large: Vec<u8>,
    /// Ports that are being announced.
    announcing: usize,
    /// When the last turn found something, in nanoseconds.
    busy_ns: u64,
}

impl<W: Wire> Core<W> {
    /// A core for these wires, and the handle by which control threads command it. It does nothing
    /// until [`Core::run`], or [`Core::turn`] in a test, is called.
    ///
    /// # Errors
    /// When the host has no descriptor left to wake the core by.
    pub fn new(wires: Vec<W>, idle: IdlePolicy, audit: Option<Audit>) -> io::Result<(Self, Handle)> {
        let counters = Arc::new(Block::default());
        let (handle, link, requests) = Handle::new(Arc::clone(&counters))?;
        let wires = wires
            .into_iter()
            .map(|wire| Attached { wire, switch: Switch::default(), unflushed: false })
            .collect();
        let core = Self {
            wires,
            ports: Vec::new(),
            carriers: Vec::new(),
            requests,
            link,
            audit,
            idle,
            counters,
            scratch: Vec::with_capacity(MAX_SEGMENTS.max(BURST)),
            large: Vec::with_capacity(MAX_GUEST_FRAME),
            announcing: 0,
            busy_ns: 0,
        };
        Ok((core, handle))
    }

    /// Runs until [`Handle::stop`] is called or every handle is gone, on the calling thread.
    pub fn run(&mut self) {
        idle::prepare_thread();
        while !self.link.is_stopped() {
            if self.turn() > 0 {
                if self.idle != IdlePolicy::Poll {
                    self.busy_ns = monotonic_ns();
                }
                continue;
            }
            match self.idle {
                IdlePolicy::Poll => std::hint::spin_loop(),
                IdlePolicy::Adaptive { spin } => {
                    let idle = monotonic_ns().saturating_sub(self.busy_ns);
                    if idle < spin.as_nanos() as u64 {
                        std::hint::spin_loop();
                    } else {
                        self.sleep(idle);
                    }
                }
            }
        }
        self.flush_wires();
    }

    /// One turn of the loop; returns how many frames and commands it moved, zero when there was
    /// nothing.
    ///
    /// Bound: a burst of each wire and port. Allocations, locks and system calls: none but those of
    /// the wires' drivers, commands, and one notification a ring.
    pub fn turn(&mut self) -> usize {
        let mut work = self.serve();
        work += self.carry();
        work += self.receive();
        work += self.capture();
        work += self.speculate();
        work += self.announce();
        work += self.transmit();
        work += self.deliver();
        self.flush_wires();
        for port in &mut self.ports {
            port.guest.flush();
        }
        self.counters.add(CoreCounter::Turns, 1);
        if work > 0 {
            self.counters.add(CoreCounter::BusyTurns, 1);
        }
        work
    }

    /// Carries frames between rings and other cores; returns how many.
    fn carry(&mut self) -> usize {
        let Self { carriers, counters, .. } = self;
        let carried = carriers.iter_mut().map(|carrier| carrier.turn(counters, monotonic_ns)).sum();
        carriers.retain(|carrier| !carrier.is_finished());
        carried
    }

    /// Lets the engines of speculating ports do what is due; returns how many frames they made.
    fn speculate(&mut self) -> usize {
        let Self { ports, wires, audit, counters, .. } = self;
        let mut made = 0;
        for port in ports.iter_mut() {
            let Some(speculating) = &mut port.speculating else { continue };
            let now = Time::from_ns(monotonic_ns());
            let wire = &mut wires[port.wire].wire;
            let Port { id, inbound, egress, counters: own, .. } = port;
            made += speculation::turn(
                now,
                *id,
                speculating,
                wire,
                inbound,
                egress,
                own,
                audit.as_mut(),
                counters,
            );
        }
        made
    }

    /// Gives guests what has come in for them.
    fn deliver(&mut self) -> usize {
        self.ports.iter_mut().map(|port| port.deliver(monotonic_ns)).sum()
    }

    fn flush_wires(&mut self) {
        for attached in &mut self.wires {
            if std::mem::take(&mut attached.unflushed) {
                attached.wire.flush();
            }
        }
    }
}

/// Records a frame of a guest as it will be on the wire, with the epoch that has to be committed first.
fn record(
    audit: &mut Option<&mut Audit>,
    core: &Block<CoreCounter>,
    port: PortId,
    epoch: Option<EpochId>,
    frame: &[u8],
) {
    let Some(audit) = audit else { return };
    let record = Record {
        hash: audit::hash(frame),
        epoch: epoch.map_or(0, EpochId::get),
        len: frame.len() as u32,
        port: port.0,
        flags: if epoch.is_some() { PROTECTED } else { 0 },
        mono_ns: monotonic_ns(),
    };
    if !audit.append(&record) {
        core.add(CoreCounter::AuditLost, 1);
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds; answered without a system call.
pub(crate) fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests;
