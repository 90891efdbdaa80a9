//! The polling core's end of a network device: its rings, and the control thread's wishes.
//!
//! An endpoint lives as long as the core; connections of frontends come and go. It belongs to one
//! thread (`&mut self` throughout) and holds no lock. Between two calls of
//! [`Endpoint::poll_control`] the rings are the core's alone.
//!
//! A device whose pairs are several cores' has an endpoint for each, which runs the rings of its own pairs; those of
//! the others never run here. A fault in any of them stops all: whoever finds it tells the others.

use crate::features::Features;
use crate::mailbox::{Command, CoreSide, Mail, Reply};
use crate::ring::{Queue, RingFault, RxRing, TxRing};
use crate::shared::{DeviceEvent, Shared};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// The polling core's end of a device.
#[derive(Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    mail: CoreSide,
    rx: Vec<RxRing>,
    tx: Vec<TxRing>,
    /// The pairs of this core, one bit each.
    pairs: u32,
    /// Stops of the device that this core has followed.
    stops: u64,
    /// Where each ring stopped, until it is started again.
    stopped_at: Vec<Option<u16>>,
    /// Where the log says that each ring broke: a machine that is stopped and started with each epoch, and whose
    /// driver does nothing about it, breaks it again and again.
    broke_at: Vec<Option<u16>>,
    /// Rings that a fault stopped, until the control thread takes them back.
    faulted: Vec<Option<Box<Queue>>>,
    closed: bool,
}

impl Endpoint {
    pub(crate) fn new(shared: Arc<Shared>, mail: CoreSide, queue_pairs: u16, pairs: u32) -> Self {
        Self {
            shared,
            mail,
            rx: (0..queue_pairs).map(|_| RxRing::parked()).collect(),
            tx: (0..queue_pairs).map(|_| TxRing::parked()).collect(),
            pairs,
            stops: 0,
            stopped_at: vec![None; usize::from(queue_pairs) * 2],
            broke_at: vec![None; usize::from(queue_pairs) * 2],
            faulted: (0..queue_pairs * 2).map(|_| None).collect(),
            closed: false,
        }
    }

    /// Name of the device, as configured.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.name()
    }

    /// Carries out what the control thread asks: starts and parks rings. Call it once a turn of the
    /// core and after each wake-up; one atomic load when there is nothing. Returns whether rings, and
    /// so descriptors to wait on, have changed.
    #[inline]
    pub fn poll_control(&mut self) -> bool {
        self.mail.has_mail() && self.handle_mail()
    }

    #[cold]
    fn handle_mail(&mut self) -> bool {
        let mut changed = false;
        loop {
            let mail = self.mail.take();
            // Before a command, which may start a ring anew.
            let stops = self.shared.stops();
            if std::mem::replace(&mut self.stops, stops) != stops {
                self.leave_faulted();
                changed = true;
            }
            let Some(mail) = mail else { return changed };
            changed = true;
            match mail {
                Mail::Command(command) => {
                    let reply = self.carry_out(command);
                    self.mail.answer(reply);
                }
                Mail::Closed => {
                    if !std::mem::replace(&mut self.closed, true) {
                        self.park_all();
                        self.shared.use_pairs(self.pairs, 0);
                    }
                    return changed;
                }
            }
        }
    }

    fn carry_out(&mut self, command: Command) -> Reply {
        match command {
            Command::Start { index, mut queue, features } => {
                self.shared.agreed(features);
                // A driver that resets the device begins elsewhere.
                if self.stopped_at[index].take() != Some(queue.base()) {
                    self.broke_at[index] = None;
                }
                // Notifications may have been lost while nobody ran the ring.
                queue.notify_once();
                self.shared.ring_running(index, true);
                let (pair, header_len) = (index / 2, features.header_len());
                if index % 2 == 0 {
                    self.shared.use_pairs(1 << pair, 1 << pair);
                    self.rx[pair].start(queue, header_len, features.mrg_rxbuf());
                } else {
                    self.tx[pair].start(queue, header_len);
                }
                Reply::Done { replaced: None }
            }
            Command::Park { index } => {
                let faulted = self.faulted[index].is_some();
                let queue = self.park(index).or_else(|| self.faulted[index].take());
                Reply::Parked { queue, next_available: self.stopped_at[index], faulted }
            }
            Command::GiveUp { index } => {
                if index % 2 == 0 {
                    self.shared.use_pairs(1 << (index / 2), 0);
                }
                self.broke_at[index] = None;
                Reply::Done { replaced: None }
            }
            Command::SetCall { index, call } => {
                let mut replaced = call;
                if let Some(queue) = self.slot(index) {
                    std::mem::swap(&mut queue.call, &mut replaced);
                    // What was signalled by the old descriptor may never have been seen.
                    queue.notify_once();
                }
                Reply::Done { replaced }
            }
            Command::SetLog { index, log, used_log } => {
                if let Some(queue) = self.slot(index) {
                    queue.set_log(log, used_log);
                }
                Reply::Done { replaced: None }
            }
        }
    }

    fn slot(&mut self, index: usize) -> &mut Option<Box<Queue>> {
        if self.faulted[index].is_some() {
            return &mut self.faulted[index];
        }
        self.running_slot(index)
    }

    fn running_slot(&mut self, index: usize) -> &mut Option<Box<Queue>> {
        if index % 2 == 0 { self.rx[index / 2].queue_mut() } else { self.tx[index / 2].queue_mut() }
    }

    /// Leaves a ring: publishes what was completed, and remembers where it stopped.
    fn park(&mut self, index: usize) -> Option<Box<Queue>> {
        let mut queue = self.running_slot(index).take()?;
        self.shared.ring_running(index, false);
        if let Err(fault) = queue.publish() {
            tracing::error!(device = self.shared.name(), index, %fault, "cannot publish the last burst");
        }
        self.stopped_at[index] = Some(queue.base());
        Some(queue)
    }

    fn park_all(&mut self) {
        for index in 0..self.stopped_at.len() {
            drop(self.park(index));
        }
    }

    /// Rings by which the guest sends, one a queue pair.
    #[must_use]
    pub fn tx_rings(&mut self) -> &mut [TxRing] {
        &mut self.tx
    }

    /// Rings by which the guest receives, one a queue pair.
    #[must_use]
    pub fn rx_rings(&mut self) -> &mut [RxRing] {
        &mut self.rx
    }

    /// Both kinds of rings at once.
    #[must_use]
    pub fn rings(&mut self) -> (&mut [TxRing], &mut [RxRing]) {
        (&mut self.tx, &mut self.rx)
    }

    /// Counts frames that the guest sent by the pair of this number, which is of this core.
    #[inline]
    pub fn count_sent(&self, pair: usize, frames: u64) {
        self.shared.count_frames(2 * pair + 1, frames);
    }

    /// Counts frames that the guest received by the pair of this number, which is of this core.
    #[inline]
    pub fn count_received(&self, pair: usize, frames: u64) {
        self.shared.count_frames(2 * pair, frames);
    }

    /// Pairs of this core, one bit each.
    #[must_use]
    pub const fn pairs(&self) -> u32 {
        self.pairs
    }

    /// Whether the device was dropped: nothing comes from it any more.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Pairs by which the guest receives, one bit each: those that ran since its driver took them up. A machine
    /// that is stopped for a moment stops its rings one after the other, and starts them likewise; their pairs stay
    /// in use meanwhile. Those that the driver gives up do not.
    #[inline]
    #[must_use]
    pub fn pairs_in_use(&self) -> u32 {
        self.shared.pairs_in_use()
    }

    /// Whether any ring of the device runs, on whichever core.
    #[inline]
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.shared.any_running()
    }

    /// What the guest's driver agreed to; meaningful while rings run.
    #[must_use]
    pub fn negotiated(&self) -> Features {
        self.shared.features()
    }

    /// Descriptors by which the guest notifies, to wait on before sleeping (readable). They change
    /// when [`Self::poll_control`] says so.
    pub fn kick_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let queues = self.tx.iter().map(TxRing::queue).chain(self.rx.iter().map(RxRing::queue));
        queues.flatten().filter_map(|queue| Some(queue.kick.as_ref()?.as_fd()))
    }

    /// Takes the notifications that have arrived, after a wake-up; otherwise the next wait returns at
    /// once.
    pub fn drain_kicks(&self) {
        let queues = self.tx.iter().map(TxRing::queue).chain(self.rx.iter().map(RxRing::queue));
        for kick in queues.flatten().filter_map(|queue| queue.kick.as_ref()) {
            kick.clear();
        }
    }

    /// Stops the device for a fault of its guest in this ring of the frontend's numbering (RB-1): counted, reported,
    /// all its rings left. Other devices are not touched. The guest's driver brings it back by a reset; until then
    /// it is found broken each time that the frontend starts it, which the log says once.
    pub fn fault(&mut self, ring: usize, fault: RingFault) {
        self.shared.count_fault(&fault);
        self.stops = self.shared.stop();
        self.leave_faulted();
        self.mail.alarm_others();
        let at = self.stopped_at[ring];
        if std::mem::replace(&mut self.broke_at[ring], at) == at {
            tracing::debug!(device = self.shared.name(), ring, %fault, "the device is still broken");
        } else {
            tracing::error!(device = self.shared.name(), ring, %fault, "the device stops until the guest resets it");
        }
        self.shared.send(DeviceEvent::Fault(fault));
    }

    /// Leaves all rings of this core, as the guest broke one of the device.
    fn leave_faulted(&mut self) {
        for index in 0..self.stopped_at.len() {
            let Some(queue) = self.park(index) else { continue };
            if let Some(error) = &queue.error {
                error.signal();
            }
            self.faulted[index] = Some(queue);
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.park_all();
    }
}
