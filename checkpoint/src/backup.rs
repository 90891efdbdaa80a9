//! The backup's end of a session: epochs are gathered, verified, applied, logged, confirmed.
//!
//! ```text
//! Begin{full}  --> image.begin_sync;  Base* --> image.write_base
//! Begin{!full} --> image.resume_at
//! Pages*, Stream*, StatePart*, Seal --> digest verified --> image.prepare --> gate.keep --> image.commit
//!                                       --> commit log --> Committed
//! ```
//!
//! CK-1 spans two stores: the image, and what the gate keeps of speculative flows (SP-2). The image's part is
//! prepared first: all that it can lack, order, pages or room, shows there, before the gate is asked. The gate
//! then takes its part whole or refuses it whole. A refusal of either leaves both at the last commit. What is
//! left of the image's commit is one rename; should that fail, the gate is an epoch ahead, and the image lets
//! go of a checkpoint that would need what the gate kept for it. So no machine goes live from an image and a
//! gate of two epochs, and nothing has to be kept twice.
//!
//! Pages may come as references to what was sent before ([`reduction`](crate::reduction)): to what is staged of a page
//! in the open epoch, or else to the image, which then has the epoch before. A page that is unchanged is in the
//! digest and is not staged: what it refers to is there.
//!
//! Everything that a peer drives is checked here: what does not fit the state of the session, the
//! term (FO-1), the bounds (RB-1) or the digest (CK-1) is refused with a reason, and the session ends.
//! The image is then what it was at the last commit.
//!
//! No thread and no socket here; the image and the commit log are the only I/O. The gate is held for a seal.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod log;
mod staging;

pub use log::CommitLog;
pub use staging::Staging;

use crate::gate::{GateError, GateState};
use crate::image::{GATE_STATE_LIMIT, Image, ImageError, STATE_LIMIT, StagedEpoch};
use crate::primary::SharedGate;
use crate::protocol::{Begin, ImageHeld, Message, PageBatch, Payload, Refusal, RefusalCode, Seal, StateKind};
use holdfast_epoch::{EpochId, Term};
use staging::{RECORD_COST, devices_of};

/// What a message came to, beside the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing that others need to know.
    Taken,
    /// The session has begun: a full synchronisation, or the image goes on.
    Begun { full: bool },
    /// An epoch is committed; this is to be answered.
    Committed(Message, ImageHeld),
    /// The primary gave the machine up.
    Relinquished,
    /// The primary ends the session.
    Goodbye(String),
}

/// A session from its Welcome on.
#[derive(Debug)]
pub(crate) struct BackupSession {
    /// Term of the Hello, then of the Begin.
    term: Term,
    state: Phase,
    limit: u64,
    staged: Staging,
    scratch: Vec<u8>,
    /// Buffers of messages that were dealt with.
    spent: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing but a Begin is expected.
    Welcomed,
    /// Pages of the running guest may come, or those of this epoch; `first` if it is the session's first.
    Open { next: EpochId, base: bool, first: bool },
}

impl BackupSession {
    /// A session that was welcomed, of a primary in `term`; an epoch may take `limit` bytes.
    pub(crate) fn new(term: Term, limit: u64) -> Self {
        Self {
            term,
            state: Phase::Welcomed,
            limit,
            staged: Staging::default(),
            scratch: Vec::new(),
            spent: Vec::new(),
        }
    }

    /// Term of the session.
    pub(crate) const fn term(&self) -> Term {
        self.term
    }

    /// Buffers that messages came in and that are free again.
    pub(crate) fn spent(&mut self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.spent.drain(..)
    }

    /// Takes a message of the primary.
    ///
    /// # Errors
    /// The refusal to answer with; the session is over.
    pub(crate) fn handle(
        &mut self,
        message: Message,
        image: &mut Image,
        log: &mut CommitLog,
        gate: &SharedGate,
    ) -> Result<Outcome, Refusal> {
        match (self.state, message) {
            (Phase::Welcomed, Message::Begin(begin)) => self.begin(begin, image),
            (Phase::Open { base: true, .. }, Message::Base(batch)) => {
                let taken = self.base(&batch, image);
                self.spent.push(batch.into_buffer());
                taken
            }
            (Phase::Open { next, .. }, Message::Pages(epoch, batch)) if epoch == next => {
                let taken = self.pages(&batch, image);
                self.spent.push(batch.into_buffer());
                taken
            }
            (Phase::Open { next, .. }, Message::StatePart(epoch, kind, bytes)) if epoch == next => {
                let taken = self.state_part(kind, &bytes);
                self.spent.push(bytes.into_buffer());
                taken
            }
            (Phase::Open { next, first: false, .. }, Message::DeviceChange(epoch, bytes))
                if epoch == next =>
            {
                let taken = self.device_change(&bytes, image);
                self.spent.push(bytes.into_buffer());
                taken
            }
            (Phase::Open { next, first: false, .. }, Message::Stream(epoch, bytes)) if epoch == next => {
                self.stream(bytes)
            }
            (Phase::Open { next, first, .. }, Message::Seal(seal)) if seal.epoch == next => {
                if first && !seal.self_contained {
                    return Err(Refusal::new(
                        RefusalCode::Gate,
                        "the gate's state of a session's first epoch must say all by itself",
                    ));
                }
                self.seal(&seal, image, log, gate)
            }
            (_, Message::Relinquish { term }) if term == self.term => Ok(Outcome::Relinquished),
            (_, Message::Relinquish { term }) => Err(stale(term, self.term)),
            (_, Message::Goodbye { reason }) => Ok(Outcome::Goodbye(reason)),
            (_, other) => Err(Refusal::new(
                RefusalCode::OutOfOrder,
                format!("a {} message does not fit the state of the session", other.name()),
            )),
        }
    }

    fn begin(&mut self, begin: Begin, image: &mut Image) -> Result<Outcome, Refusal> {
        if begin.term < self.term {
            return Err(stale(begin.term, self.term));
        }
        if begin.full {
            image.begin_sync(begin.term, begin.first).map_err(|fault| refusal(&fault))?;
            self.staged = Staging::of_full_sync();
        } else {
            image.resume_at(begin.term, begin.first).map_err(|fault| refusal(&fault))?;
        }
        self.term = begin.term;
        self.state = Phase::Open { next: begin.first, base: begin.full, first: true };
        Ok(Outcome::Begun { full: begin.full })
    }

    fn base(&mut self, batch: &PageBatch, image: &mut Image) -> Result<Outcome, Refusal> {
        self.staged.base(batch, image).map(|()| Outcome::Taken)
    }

    fn pages(&mut self, batch: &PageBatch, image: &Image) -> Result<Outcome, Refusal> {
        self.staged.pages(batch, image, self.limit, &mut self.scratch).map(|()| Outcome::Taken)
    }

    fn state_part(&mut self, kind: StateKind, bytes: &[u8]) -> Result<Outcome, Refusal> {
        self.staged.bytes += RECORD_COST + bytes.len() as u64;
        self.check_room()?;
        let (state, limit) = match kind {
            StateKind::Devices => (&mut self.staged.devices, STATE_LIMIT),
            StateKind::Gate => (&mut self.staged.gate, GATE_STATE_LIMIT),
        };
        if state.len() + bytes.len() > limit {
            return Err(Refusal::new(
                RefusalCode::NoRoom,
                format!("an epoch's state of more than {limit} bytes"),
            ));
        }
        state.extend_from_slice(bytes);
        self.staged.hasher.add_state(kind, bytes);
        Ok(Outcome::Taken)
    }

    /// RB-1: counted against the same limit as the state that it stands for.
    fn device_change(&mut self, bytes: &[u8], image: &Image) -> Result<Outcome, Refusal> {
        let stands_for = if self.staged.change.is_none() { devices_of(image).len() as u64 } else { 0 };
        self.staged.bytes += RECORD_COST + stands_for + bytes.len() as u64;
        self.check_room()?;
        let change = self.staged.change.get_or_insert_default();
        if change.len() + bytes.len() > STATE_LIMIT {
            let text = format!("a change of an epoch's state of more than {STATE_LIMIT} bytes");
            return Err(Refusal::new(RefusalCode::NoRoom, text));
        }
        change.extend_from_slice(bytes);
        Ok(Outcome::Taken)
    }

    /// RB-1: counted against the same limit as everything else of the epoch.
    fn stream(&mut self, bytes: Payload) -> Result<Outcome, Refusal> {
        self.staged.bytes += RECORD_COST + bytes.len() as u64;
        self.check_room()?;
        self.staged.hasher.add_stream(&bytes);
        self.staged.stream.push(bytes);
        Ok(Outcome::Taken)
    }

    fn check_room(&self) -> Result<(), Refusal> {
        self.staged.check_room(self.limit)
    }

    /// CK-1: nothing touches the image or the gate before the digest was computed anew and found equal.
    /// SP-2: nothing is confirmed before the gate has what was acknowledged to the guest.
    fn seal(
        &mut self,
        seal: &Seal,
        image: &mut Image,
        log: &mut CommitLog,
        gate: &SharedGate,
    ) -> Result<Outcome, Refusal> {
        if seal.term != self.term {
            return Err(stale(seal.term, self.term));
        }
        let mut staged = std::mem::take(&mut self.staged);
        staged.complete_devices(image)?;
        let base = staged.base.take().map(|mut base| base.take());
        let digest = staged.hasher.take(seal.term, seal.epoch, base, seal.self_contained);
        let (term, epoch) = (seal.term, seal.epoch);
        // The image takes the state over for its record: the gate is shown it there.
        let state =
            GateState { bytes: std::mem::take(&mut staged.gate), self_contained: seal.self_contained };
        let (pages, devices) = (std::mem::take(&mut staged.pages), std::mem::take(&mut staged.devices));
        let whole = StagedEpoch::verified((term, epoch), pages, devices, state, &seal.digest, &digest)
            .map_err(|fault| refusal(&fault))?;
        let prepared = image.prepare(whole).map_err(|fault| refusal(&fault))?;
        let stream: Vec<&[u8]> = staged.stream.iter().map(|bytes| &**bytes).collect();
        gate.lock().keep(prepared.gate_state(), &stream).map_err(|fault| not_kept(epoch, &fault))?;
        self.spent.extend(staged.stream.drain(..).map(Payload::into_buffer));
        let pages = image.commit(prepared).map_err(|fault| refusal(&fault))?;
        self.staged = staged.next(pages);
        log.append(epoch, term).map_err(|error| {
            Refusal::new(
                RefusalCode::Storage,
                format!(
                    "the commit log {} cannot be written: {error}; mend: free some room there, or name another \
                     commit_log in [vm.backup]",
                    log.path().display()
                ),
            )
        })?;
        self.state = Phase::Open { next: epoch.next(), base: false, first: false };
        Ok(Outcome::Committed(Message::Committed { epoch, term, digest }, ImageHeld { term, epoch }))
    }
}

/// SP-2: why an epoch is not confirmed although its image could be.
fn not_kept(epoch: EpochId, fault: &GateError) -> Refusal {
    let code = match fault {
        GateError::State(_) => RefusalCode::Gate,
        GateError::CoreSilent { .. } | GateError::Gone | GateError::Misuse(_) => RefusalCode::Storage,
    };
    Refusal::new(code, format!("epoch {epoch} is not confirmed: {fault}"))
}

fn stale(found: Term, known: Term) -> Refusal {
    Refusal::new(RefusalCode::StaleTerm, format!("term {found} is over: term {known} is known here"))
}

fn malformed(fault: impl std::error::Error) -> Refusal {
    Refusal::new(RefusalCode::Malformed, fault.to_string())
}

/// What the primary is told of a fault of the image.
pub(crate) fn refusal(fault: &ImageError) -> Refusal {
    let code = match fault {
        ImageError::NoRoom { .. } | ImageError::NoRoomForRecord { .. } => RefusalCode::NoRoom,
        ImageError::Size { .. } | ImageError::Unit { .. } => RefusalCode::MemorySize,
        ImageError::Damaged { .. } => RefusalCode::Digest,
        ImageError::OutOfOrder { .. }
        | ImageError::NotNewer { .. }
        | ImageError::SyncIncomplete { .. }
        | ImageError::NotSyncing { .. }
        | ImageError::NoCheckpoint { .. }
        | ImageError::Live { .. } => RefusalCode::OutOfOrder,
        ImageError::BeyondMemory { .. } | ImageError::StateTooLarge { .. } => RefusalCode::Malformed,
        _ => RefusalCode::Storage,
    };
    Refusal::new(code, fault.to_string())
}

#[cfg(test)]
mod tests;
