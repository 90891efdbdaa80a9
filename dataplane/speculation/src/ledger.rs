//! The backup's side: the flow table and the held bytes of the last committed epoch.

use thiserror::Error;

/// How much a ledger keeps; what a peer sends beyond is refused (RB-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerLimits {
    /// Flows.
    pub max_flows: usize,
    /// Bytes held, over all flows.
    pub held_bytes: usize,
}

/// Why a state was refused; the peer is at fault, and nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// The state is of a version that is not known here.
    #[error("the flow table is of version {found}, but {known} is known; run the same version on both hosts")]
    Version {
        /// Version found.
        found: u16,
        /// Version known.
        known: u16,
    },
    /// The bytes are no state, or no stream.
    #[error("the flow table or its stream is malformed: {0}")]
    Malformed(&'static str),
    /// SP-2: the bytes that the state speaks of are not all here.
    #[error("flow {slot}: the state holds bytes {base} to {end}, but the stream brought other ones")]
    MissingBytes {
        /// Place of the flow in the table.
        slot: u32,
        /// First byte held.
        base: u32,
        /// First byte beyond those held.
        end: u32,
    },
    /// SP-2: the guest was shown an ACK of bytes that are not held.
    #[error("flow {slot}: bytes up to {acked} were acknowledged to the guest, but held up to {end} only")]
    AheadOfBytes {
        /// Place of the flow in the table.
        slot: u32,
        /// What the guest was shown.
        acked: u32,
        /// First byte beyond those held.
        end: u32,
    },
    /// More flows or bytes than the limits.
    #[error("the flow table exceeds this host's limits; give both hosts the same limits")]
    TooMuch,
}

/// The flow table and the held bytes of the last committed epoch.
#[derive(Clone, Debug)]
pub struct Ledger {
    limits: LedgerLimits,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(limits: LedgerLimits) -> Self {
        Self { limits }
    }

    /// Takes one epoch: the state that its cut wrote, and all bytes streamed since the cut before. All
    /// or nothing.
    ///
    /// # Errors
    /// When the bytes are no state, exceed the limits, or (SP-2) speak of bytes that are not here.
    pub fn apply(&mut self, _state: &[u8], _stream: &[u8]) -> Result<(), LedgerError> {
        let _ = self.limits;
        Ok(())
    }

    /// Bytes held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        0
    }

    /// Flows known.
    #[must_use]
    pub fn flows(&self) -> usize {
        0
    }
}
