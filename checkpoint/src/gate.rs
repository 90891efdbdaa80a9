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

use crate::pages::{PageIndex, PageSet};
use crate::tracker::FileIdentity;
use holdfast_epoch::{EpochId, ReleaseToken, Term};
use std::time::Instant;
use thiserror::Error;

/// What a cut found in the gate, and the state that has to travel with the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CutReport {
    /// Frames held for the epoch.
    pub frames: u64,
    /// Bytes in these frames.
    pub bytes: u64,
    /// What the backup's gate needs to carry on: learned addresses, later the flow table.
    pub state: Vec<u8>,
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
    /// The gate's state that came with an epoch cannot be read.
    #[error("the gate's state of the last commit cannot be read: {0}")]
    State(String),
    /// The call does not fit the gate's state; a bug of the caller.
    #[error("the gate cannot do that now: {0}")]
    Misuse(String),
}

/// The output of one virtual machine.
pub trait OutputGate: Send {
    /// Ends epoch `epoch`: all that was taken from the guest so far belongs to it. The guest stands
    /// still and its rings are parked.
    ///
    /// # Errors
    /// When the dataplane did not do it: the epoch cannot be sealed.
    fn cut(&mut self, epoch: EpochId) -> Result<CutReport, GateError>;

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
    /// (FO-1). Cannot fail: an implementation that cannot reach its core any more ends the process.
    fn fence(&mut self);

    /// Lifts the fence for a term that this host was granted; output passes through.
    ///
    /// # Errors
    /// When the dataplane did not do it.
    fn admit(&mut self, term: Term) -> Result<(), GateError>;

    /// A protected machine may transmit until then; never moves the end of the lease back, and does
    /// nothing to a gate that is not holding.
    fn extend_lease(&mut self, until: Instant);

    /// Takes the state that a cut on the other host reported.
    ///
    /// # Errors
    /// When the bytes are not a state.
    fn restore(&mut self, state: &[u8]) -> Result<(), GateError>;

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

    /// Moves the pages that Holdfast wrote since the last call into `into` (CK-2).
    fn drain_dirty(&mut self, into: &mut PageSet);
}
