//! Sleeping when there is nothing to do, and waking when there is.
//!
//! The order matters: guests, wires and other cores are asked to tell, then looked at once more, and only then is
//! there a wait; what comes between is told. Control threads write to the wake descriptor after they
//! have left their command, and that descriptor is read only after the wait.
#![expect(unsafe_code, reason = "descriptors are borrowed for the time of a wait")]

use super::{Core, monotonic_ns};
use crate::carrying::Carrier;
use crate::counters::CoreCounter;
use crate::frame::Wire;
use arrayvec::ArrayVec;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Descriptors that one wait watches, at most; with more, the wait is short.
const MAX_WATCHED: usize = 256;

/// Longest wait when everything that may come is told by a descriptor.
const LONG: Duration = Duration::from_millis(200);

/// Waits for a wire that cannot tell: short while there is traffic, longer when there is none.
const BLIND_SHORT: Duration = Duration::from_micros(100);
const BLIND_LONG: Duration = Duration::from_millis(1);

/// For how long after the last frame a wire counts as having traffic.
const RECENT_NS: u64 = 10_000_000;

/// Wait for a wire or a guest that is full, or for memory.
const FULL: Duration = Duration::from_micros(200);

/// Wait for a lease to be extended: nobody tells when it is.
const LEASE: Duration = Duration::from_micros(500);

/// What the thread of a core needs for itself: timers that are as exact as the kernel can.
pub(super) fn prepare_thread() {
    if let Err(errno) = set_timerslack(1) {
        tracing::warn!(%errno, "short waits of the polling core will be about 50 us longer");
    }
}

impl<W: Wire> Core<W> {
    /// Sleeps until there may be something to do; `idle_ns` is for how long there was nothing.
    pub(super) fn sleep(&mut self, idle_ns: u64) {
        self.link.begin_sleep();
        let mut awake = false;
        for carrier in &mut self.carriers {
            awake |= carrier.arm();
        }
        for port in &mut self.ports {
            // What a starved guest has to send is known; memory that comes back is told by nobody.
            let takes = port.egress.has_room() && !port.starved;
            let gives = port.inbound.is_blocked();
            awake |= port.guest.arm(takes, gives);
        }
        for attached in &mut self.wires {
            attached.wire.arm();
        }
        // Whatever came before everybody was asked to tell is found by this look.
        awake = awake || !self.requests.is_empty() || self.receive() > 0;
        if !awake {
            self.wait(idle_ns);
        }
        self.link.end_sleep();
        self.carriers.iter_mut().for_each(Carrier::disarm);
        for attached in &mut self.wires {
            attached.wire.disarm();
        }
        for port in &mut self.ports {
            port.guest.disarm();
        }
    }

    fn wait(&mut self, idle_ns: u64) {
        let mut watched = ArrayVec::<PollFd<'_>, MAX_WATCHED>::new();
        watched.push(PollFd::new(self.link.wake().as_fd(), PollFlags::POLLIN));
        let mut blind = false;
        let mut watch = |fd| blind |= watched.try_push(PollFd::new(fd, PollFlags::POLLIN)).is_err();
        for port in &self.ports {
            port.guest.kick_fds(&mut watch);
        }
        self.carriers.iter().flat_map(Carrier::kick_fds).for_each(&mut watch);
        let mut told = true;
        for attached in &self.wires {
            match attached.wire.readable_fd() {
                // SAFETY: the descriptor belongs to the wire, which this core owns and which keeps it
                // open; nothing else is done with the wire until the wait is over.
                Some(fd) => watch(unsafe { BorrowedFd::borrow_raw(fd) }),
                None => told = false,
            }
        }
        let timeout = self.patience(blind || !told, idle_ns);
        self.counters.add(CoreCounter::Sleeps, 1);
        // An interrupted wait is a short one: the loop looks around and comes back.
        let woken = ppoll(&mut watched, Some(TimeSpec::from(timeout)), None);
        if woken.is_ok() && watched[0].any() == Some(true) {
            self.link.clear_wake();
        }
    }

    /// For how long nothing needs to be looked at.
    pub(super) fn patience(&self, blind: bool, idle_ns: u64) -> Duration {
        let mut patience = LONG;
        if blind {
            patience = if idle_ns < RECENT_NS { BLIND_SHORT } else { BLIND_LONG };
        }
        if self.carriers.iter().any(Carrier::is_blocked) {
            patience = patience.min(FULL);
        }
        for port in &self.ports {
            if port.inbound.is_blocked() || port.starved || !port.egress.to_wire.is_empty() {
                patience = patience.min(FULL);
            }
            if port.egress.waiting().frames > 0 {
                patience = patience.min(LEASE);
            }
            if let Some(speculating) = &port.speculating {
                if port.egress.fenced {
                    continue;
                }
                if speculating.is_blocked() {
                    patience = patience.min(FULL);
                }
                let may_transmit = port.egress.may_transmit(monotonic_ns);
                if speculating.waits_for_wire() {
                    patience = patience.min(if may_transmit { FULL } else { LEASE });
                }
                // For a guest that takes nothing it waits as all that came in does.
                if speculating.waits_for_guest() && port.inbound.has_room() {
                    patience = patience.min(FULL);
                }
                if let Some(due) = speculating.due_ns() {
                    let wait = Duration::from_nanos(due.saturating_sub(monotonic_ns()));
                    // What is due waits for the right to transmit.
                    patience = patience.min(if may_transmit { wait } else { wait.max(LEASE) });
                }
            }
            if let Some(state) = port.announcing {
                let due = state.due_ns().saturating_sub(monotonic_ns());
                patience = patience.min(Duration::from_nanos(due));
            }
        }
        patience
    }
}
