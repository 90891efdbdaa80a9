//! What the checkpoint side needs of the dataplane: the gate that holds a guest's output, and the
//! guest's memory as the dataplane maps it.
//!
//! The checkpoint side never sees a frame or a ring. It tells the gate where an epoch ends, shows it
//! the token of a committed epoch, and grants it time to transmit; the gate holds what it must (OC-1,
//! FO-1). One gate stands for all ports of one virtual machine.
//!
//! A gate begins fenced. Who may transmit in which way is the supervisor's business:
//!
//! ```text
//!  fenced --admit--> passing --protect--> holding --open--> passing
//!     ^                 |                    |
//!     '---- fence ------'------- fence ------'
//! ```
//!
//! A gate that speculates hands over the bytes that it has acknowledged to the guest ahead of the epoch
//! that they belong to, by its [`Stream`], and says at the cut how much there is of them. The gate of the
//! backup keeps both with each commit (SP-2), and goes on from what it kept last when the machine comes
//! there:
//!
//! ```text
//!  primary: chunk k, chunk k, ... cut(k) -> state k, chunk k+1 ...     backup: keep(state k, chunks k) ... restore
//! ```

use crate::pages::{PageIndex, PageSet};
use crate::tracker::FileIdentity;
use crossbeam_channel::{Receiver, Sender};
use holdfast_epoch::{EpochId, ReleaseToken, StreamChunk, Term};
use std::ops::Range;
use std::time::Instant;
use thiserror::Error;

/// What the other host's gate needs to carry on from a cut: learned addresses, flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateState {
    /// Opaque to the checkpoint side.
    pub bytes: Vec<u8>,
    /// Whether these bytes say all by themselves. Otherwise they count on what the gate of the backup kept
    /// with the epoch before and on the bytes that were streamed for this one, which lie in the memory of
    /// its process and are lost with it.
    pub self_contained: bool,
}

impl GateState {
    /// A state that says all by itself.
    #[must_use]
    pub const fn whole(bytes: Vec<u8>) -> Self {
        Self { bytes, self_contained: true }
    }

    /// What changed since the cut before.
    #[must_use]
    pub const fn delta(bytes: Vec<u8>) -> Self {
        Self { bytes, self_contained: false }
    }
}

/// What a cut found in the gate, and the state that has to travel with the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutReport {
    /// Frames held for the epoch.
    pub frames: u64,
    /// Bytes in these frames.
    pub bytes: u64,
    /// What the backup's gate needs to carry on.
    pub state: GateState,
}

/// The way of these bytes out of a gate. It is there as long as the gate is, and outlives sessions.
///
/// Chunks come in order: all of an epoch before any of the next. The gate has put all chunks of epoch k
/// there before its answer to `cut(k)` returns. The channel is bounded, and a gate that finds it full does
/// not wait: it acknowledges nothing until there is room again. Nobody takes chunks while no session stands.
///
/// One thread takes them, that of the session's replication. What it takes of epochs up to the first one of
/// its session goes nowhere: the state of that epoch is whole and has these bytes.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Chunks in their order.
    pub chunks: Receiver<StreamChunk>,
    /// Where their buffers go back to, empty, to be filled again; one that finds no room is dropped.
    pub spare: Sender<Vec<u8>>,
}

/// The most that a gate may hold of one port's flows, and so what the other host's must be able to keep; and the
/// queues that the port's card has, as many as the other host's must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortLimits {
    /// Pairs of queues of its card.
    pub queue_pairs: u16,
    /// Flows.
    pub flows: u32,
    /// Bytes that were acknowledged to the guest.
    pub bytes: u64,
}

/// The guest's traffic, for who ends the epochs.
pub struct Traffic {
    /// Told when the guest says something for the first time since the last cut, while the gate holds.
    pub output: Receiver<()>,
    /// Bytes that the guest has sent and received so far; cheap, and never waits.
    pub bytes: Box<dyn Fn() -> u64 + Send>,
}

/// Why the gate did not do what it was told; the host is at fault unless the text says otherwise.
#[derive(Debug, Error)]
pub enum GateError {
    /// The polling core did not answer.
    #[error("the polling core did not answer within {waited_ms} ms; is it starved of its CPU?")]
    CoreSilent {
        /// How long the control side waited.
        waited_ms: u64,
    },
    /// The dataplane is gone.
    #[error("the dataplane has stopped")]
    Gone,
    /// What came with an epoch for the gate to keep cannot be read, or is not all there (SP-2); the peer
    /// is at fault.
    #[error("what came for the gate cannot be kept: {0}")]
    State(String),
    /// The call does not fit the gate's state; a bug of the caller.
    #[error("the gate cannot do that now: {0}")]
    Misuse(String),
}

/// The output of one virtual machine.
pub trait OutputGate: Send {
    /// Ends epoch `epoch`: all that was taken from the guest so far belongs to it. The guest stands
    /// still and its rings are parked. Called by the supervisor's thread.
    ///
    /// `whole` asks for a state that says all by itself, with every byte that was acknowledged to the guest
    /// and that the client has not confirmed: the first epoch of each session, also of one that goes on with
    /// the image that the backup holds. What was streamed for epochs that were given up is nowhere else.
    ///
    /// # Errors
    /// When the dataplane did not do it: the epoch cannot be sealed.
    fn cut(&mut self, epoch: EpochId, whole: bool) -> Result<CutReport, GateError>;

    /// What it may hold of each port's flows, and keeps at most for the other host, and its queues: the hosts
    /// compare it before they begin.
    fn limits(&self) -> Vec<PortLimits>;

    /// The bytes that leave ahead of their epochs; none for a gate that never speculates. Asked for once a
    /// session, by the supervisor's thread; the replication thread takes from it.
    fn stream(&self) -> Option<Stream>;

    /// What the guest's traffic can be followed by; none for a gate that cannot tell. Asked for once, by the
    /// supervisor's thread.
    fn traffic(&self) -> Option<Traffic> {
        None
    }

    /// Lets the output of a committed epoch, and of those before it, go (OC-1).
    ///
    /// # Errors
    /// When the dataplane did not take the token.
    fn release(&mut self, token: ReleaseToken) -> Result<(), GateError>;

    /// From now on output is held, as belonging to `first` until the next cut, and leaves only while
    /// the lease lasts; the lease begins as run out. Called while the guest stands still.
    ///
    /// # Errors
    /// When the dataplane did not do it: the guest stays unprotected.
    fn protect(&mut self, first: EpochId) -> Result<(), GateError>;

    /// Passes output through, without a lease; first of all what is held. Only native and solo
    /// machines may be opened. Does nothing to a fenced gate.
    ///
    /// # Errors
    /// When the dataplane did not do it.
    fn open(&mut self) -> Result<(), GateError>;

    /// Drops what is held, and transmits nothing after this returns, until [`OutputGate::admit`]
    /// (FO-1). What was kept for the other host's machine is not touched. Cannot fail: an implementation
    /// that cannot reach its core any more ends the process.
    fn fence(&mut self);

    /// Lifts the fence for a term that this host was granted; output passes through.
    ///
    /// # Errors
    /// When the dataplane did not do it.
    fn admit(&mut self, term: Term) -> Result<(), GateError>;

    /// A protected machine may transmit until then; never moves the end of the lease back, and does
    /// nothing to a gate that is not holding.
    fn extend_lease(&mut self, until: Instant);

    /// Takes, on the backup, the state that a cut on the other host reported, and what that host streamed
    /// for the epoch, in the pieces in which it came (see [`StreamChunk::LIMIT`]). A state that is not self-contained is one of the epoch after the one kept last.
    /// Nothing of it shows before [`OutputGate::restore`]. Called by the supervisor's thread with each commit,
    /// before the epoch is confirmed: takes no longer than the bytes need.
    ///
    /// # Errors
    /// When the bytes are not a state, or some that were acknowledged to the guest are missing (SP-2): what
    /// was kept before is still kept then, and nothing of this.
    fn keep(&mut self, state: &[u8], stream: &[&[u8]]) -> Result<(), GateError>;

    /// The machine comes here: what was kept last is what the gate goes on from. Called while it is
    /// fenced, before [`OutputGate::admit`].
    ///
    /// # Errors
    /// When nothing was kept, or the dataplane did not take it.
    fn restore(&mut self) -> Result<(), GateError>;

    /// Tells the network that the machine's addresses are reached through this host now.
    fn announce(&mut self);
}

/// Identity of the file that backs a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFacts {
    /// The file.
    pub identity: FileIdentity,
    /// Bytes in the file.
    pub len: u64,
    /// Bytes in a page of the file system that holds it: 4096, or a huge page's.
    pub page_size: u64,
}

/// Why the guest's memory cannot be read.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// QEMU has not connected yet; this passes.
    #[error("QEMU has not handed its memory to Holdfast yet: is the guest's NIC connected to its socket?")]
    NotYet,
    /// The guest's memory is of a kind that cannot be protected; the operator is at fault.
    #[error("the guest's memory cannot be protected: {0}")]
    Unfit(String),
    /// A page beyond the end was asked for; a bug of the caller, or the file shrank.
    #[error("page {page} lies beyond the {len} bytes of the guest's memory")]
    Beyond {
        /// The page asked for.
        page: PageIndex,
        /// Bytes in the memory file.
        len: u64,
    },
    /// Reading failed.
    #[error("the guest's memory cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// The one memory file of a guest, and the pages of it that Holdfast itself wrote (CK-2).
pub trait GuestMemorySource: Send {
    /// The file as it is connected now.
    ///
    /// # Errors
    /// When none is connected, or there is not exactly one.
    fn facts(&mut self) -> Result<MemoryFacts, MemoryError>;

    /// Copies the bytes from page `first` on; `out` is whole pages long.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read(&mut self, first: PageIndex, out: &mut [u8]) -> Result<(), MemoryError>;

    /// The first pages at or after `from` that may be other than zeros: those before them never were. All that follow,
    /// where that is not known. What is written meanwhile may be in it or not.
    fn content_from(&mut self, from: PageIndex) -> Range<u64> {
        from.0..u64::MAX
    }

    /// Moves the pages that Holdfast wrote since the last call into `into` (CK-2).
    fn drain_dirty(&mut self, into: &mut PageSet);
}

#[cfg(test)]
pub(crate) mod spoken;
