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

/// Why an epoch's state was not kept; the peer is at fault. Nothing has changed then.
#[derive(Debug, Error)]
pub enum KeptError {
    /// The state of the ports cannot be read.
    #[error(transparent)]
    State(#[from] GateError),
    /// The stream is of no port, or cut off.
    #[error("peer: the stream of speculative bytes is broken in chunk {chunk} at byte {offset}")]
    Stream {
        /// Which chunk of the epoch, from 0.
        chunk: usize,
        /// Where in it.
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
}

impl KeptPorts {
    /// Nothing kept yet; `limits` of each port's ledger, none for a port that does not speculate.
    #[must_use]
    pub fn new(limits: &[Option<LedgerLimits>]) -> Self {
        Self { limits: limits.to_vec(), ports: empty(limits) }
    }

    /// Bytes kept for flows.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.ports.iter().filter_map(|port| port.ledger.as_ref()).map(Ledger::held_bytes).sum()
    }

    /// Takes an epoch's state and the chunks of its stream, in their order.
    ///
    /// # Errors
    /// [`KeptError`]: the epoch must not be confirmed.
    pub fn apply(&mut self, state: &[u8], stream: &[&[u8]]) -> Result<(), KeptError> {
        let states = decode_states(state, self.ports.len())?;
        let streams = sort_by_port(stream, self.ports.len())?;
        // CK-1: all ports go on to the epoch, or none.
        for (place, (port, (state, stream))) in
            self.ports.iter_mut().zip(states.iter().zip(&streams)).enumerate()
        {
            if let Some(ledger) = &mut port.ledger {
                ledger.check(state.flows, stream).map_err(|error| KeptError::Ledger { place, error })?;
            }
        }
        for (place, (port, (state, stream))) in
            self.ports.iter_mut().zip(states.into_iter().zip(&streams)).enumerate()
        {
            if let Some(ledger) = &mut port.ledger {
                ledger
                    .apply_parts(state.flows, stream)
                    .map_err(|error| KeptError::Ledger { place, error })?;
            }
            port.identity = state.identity;
        }
        Ok(())
    }

    /// Gives all of it up, for the polling core.
    pub(crate) fn take(&mut self) -> Vec<KeptPort> {
        std::mem::replace(&mut self.ports, empty(&self.limits))
    }
}

/// The records of each port, where they are in the chunks.
fn sort_by_port<'a>(stream: &[&'a [u8]], ports: usize) -> Result<Vec<Vec<&'a [u8]>>, KeptError> {
    let mut sorted = vec![Vec::new(); ports];
    for (number, chunk) in stream.iter().enumerate() {
        let mut rest = *chunk;
        let broken = |rest: &[u8]| KeptError::Stream { chunk: number, offset: chunk.len() - rest.len() };
        while !rest.is_empty() {
            let (head, after) = rest.split_first_chunk::<CHUNK_HEAD>().ok_or_else(|| broken(rest))?;
            let [place, len @ ..] = *head;
            let len = u32::from_le_bytes(len) as usize;
            let (records, after) = after.split_at_checked(len).ok_or_else(|| broken(rest))?;
            let port: &mut Vec<&[u8]> = sorted.get_mut(usize::from(place)).ok_or_else(|| broken(rest))?;
            port.push(records);
            rest = after;
        }
    }
    Ok(sorted)
}

fn empty(limits: &[Option<LedgerLimits>]) -> Vec<KeptPort> {
    let port = |limits: &Option<LedgerLimits>| KeptPort {
        identity: Identity::default(),
        ledger: limits.map(Ledger::new),
    };
    limits.iter().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::{begin_states, encode_state};
    use holdfast_speculation::{Engine, EngineConfig};

    const LIMITS: LedgerLimits = LedgerLimits { max_flows: 8, held_bytes: 1 << 16 };

    fn state(flows: [&[u8]; 2]) -> Vec<u8> {
        let mut out = Vec::new();
        begin_states(2, &mut out);
        flows.iter().for_each(|flows| encode_state(&Identity::default(), &mut out, |out| out.extend(*flows)));
        out
    }

    fn whole() -> Vec<u8> {
        let mut engine =
            Engine::new(EngineConfig { max_flows: 8, held_bytes: 1 << 16, ..EngineConfig::default() });
        let mut out = Vec::new();
        engine.cut(holdfast_epoch::EpochId::FIRST, true, &mut out);
        out
    }

    /// CK-1, SP-2: what one port of a VM cannot keep, no port of it keeps; and the next epoch is kept.
    #[test]
    fn an_epoch_that_one_port_refuses_changes_no_port() {
        let mut kept = KeptPorts::new(&[Some(LIMITS), Some(LIMITS)]);
        let good = whole();
        kept.apply(&state([&good, &good]), &[]).expect("two empty tables");
        let fault = kept.apply(&state([&good, b"nonsense"]), &[]).expect_err("refused");
        assert!(matches!(fault, KeptError::Ledger { place: 1, .. }), "{fault}");
        kept.apply(&state([&good, &good]), &[]).expect("as before");
    }

    /// RB-1: a stream of a port that is not there, or that is cut off, is refused.
    #[test]
    fn a_broken_stream_is_refused_with_its_place() {
        let mut kept = KeptPorts::new(&[Some(LIMITS), None]);
        let good = state([&whole(), &[]]);
        let sound = &[0, 0, 0, 0, 0][..];
        for broken in [&[2, 0, 0, 0, 0][..], &[0, 9, 0, 0, 0, 1], &[0, 0]] {
            let fault = kept.apply(&good, &[sound, broken]).expect_err("refused");
            assert!(matches!(fault, KeptError::Stream { chunk: 1, offset: 0 }), "{fault}");
        }
        kept.apply(&good, &[sound, sound]).expect("no records");
    }
}
