//! What the backup keeps of the ports of a VM: who they are, and what their guest was told is safe.
//!
//! With each committed epoch comes a state of every port and the stream of its speculative bytes. They
//! are applied to what was kept before; at a failover all of it goes to the polling core, which takes
//! the flows over. SP-2: a state whose forged bytes have not all come is refused, and with it the epoch.
//!
//! Owned by the control thread of the VM. Bound: [`Limits`](LedgerLimits) a port (RB-1).

use crate::handle::{GateError, decode_states};
use crate::identity::Identity;
use crate::stream::CHUNK_HEAD;
use holdfast_speculation::{Ledger, LedgerError, LedgerLimits};
use thiserror::Error;

/// Why an epoch's state was not kept; the peer is at fault. Nothing has changed then, but that what
/// was kept of several ports may have to come whole again: see [`KeptPorts::is_sound`].
#[derive(Debug, Error)]
pub enum KeptError {
    /// The state of the ports cannot be read.
    #[error(transparent)]
    State(#[from] GateError),
    /// The stream is of no port, or cut off.
    #[error("peer: the stream of speculative bytes is broken at byte {offset}")]
    Stream {
        /// Where.
        offset: usize,
    },
    /// The flows or bytes of a port do not fit what was kept.
    #[error("peer: port {place} of the VM: {error}")]
    Ledger {
        /// Place of the port among the VM's.
        place: usize,
        /// Why.
        error: LedgerError,
    },
    /// An earlier failure left the ports apart; only whole states mend it.
    #[error("the flows kept are not of one epoch any more; synchronise anew")]
    Unsound,
}

/// What is kept of one port.
#[derive(Debug)]
pub(crate) struct KeptPort {
    pub(crate) identity: Identity,
    /// None for a port that does not speculate.
    pub(crate) ledger: Option<Ledger>,
}

/// What is kept of all ports of a VM, in their order.
#[derive(Debug)]
pub struct KeptPorts {
    limits: Vec<Option<LedgerLimits>>,
    ports: Vec<KeptPort>,
    sound: bool,
}

impl KeptPorts {
    /// Nothing kept yet; `limits` of each port's ledger, none for a port that does not speculate.
    #[must_use]
    pub fn new(limits: &[Option<LedgerLimits>]) -> Self {
        Self { limits: limits.to_vec(), ports: empty(limits), sound: true }
    }

    /// Whether what is kept is of one epoch.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.sound
    }

    /// Bytes kept for flows.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.ports.iter().filter_map(|port| port.ledger.as_ref()).map(Ledger::held_bytes).sum()
    }

    /// Takes an epoch's state and the chunks of its stream, one behind the other.
    ///
    /// # Errors
    /// [`KeptError`]: the epoch must not be confirmed.
    pub fn apply(&mut self, state: &[u8], stream: &[u8]) -> Result<(), KeptError> {
        let states = decode_states(state, self.ports.len())?;
        let streams = self.split(stream)?;
        for (place, (port, (state, stream))) in
            self.ports.iter_mut().zip(states.into_iter().zip(&streams)).enumerate()
        {
            if let Some(ledger) = &mut port.ledger {
                if let Err(error) = ledger.apply(state.flows, stream) {
                    // The ports before this one have gone on to an epoch that this one refuses.
                    self.sound &= place == 0;
                    return Err(KeptError::Ledger { place, error });
                }
            }
            port.identity = state.identity;
        }
        Ok(())
    }

    /// The records of each port.
    fn split(&self, stream: &[u8]) -> Result<Vec<Vec<u8>>, KeptError> {
        let mut records = vec![Vec::new(); self.ports.len()];
        let mut rest = stream;
        let broken = |rest: &[u8]| KeptError::Stream { offset: stream.len() - rest.len() };
        while !rest.is_empty() {
            let (head, after) = rest.split_first_chunk::<CHUNK_HEAD>().ok_or_else(|| broken(rest))?;
            let [place, len @ ..] = *head;
            let len = u32::from_le_bytes(len) as usize;
            let (bytes, after) = after.split_at_checked(len).ok_or_else(|| broken(rest))?;
            let port = records.get_mut(usize::from(place)).ok_or_else(|| broken(rest))?;
            port.extend_from_slice(bytes);
            rest = after;
        }
        Ok(records)
    }

    /// Gives all of it up, for the polling core.
    pub(crate) fn take(&mut self) -> Vec<KeptPort> {
        std::mem::replace(&mut self.ports, empty(&self.limits))
    }
}

fn empty(limits: &[Option<LedgerLimits>]) -> Vec<KeptPort> {
    let port = |limits: &Option<LedgerLimits>| KeptPort {
        identity: Identity::default(),
        ledger: limits.map(Ledger::new),
    };
    limits.iter().map(port).collect()
}
