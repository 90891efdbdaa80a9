//! The backup's side: the flow table and the held bytes of the last committed epoch.
//!
//! SP-2: an epoch is confirmed only after its state and its stream were taken here, and a state whose
//! bytes are not all here is refused. Bytes that the client has confirmed go with the next state.

use crate::delta::{Reader, Record};
use crate::key::FlowKey;
use crate::opening::Opening;
use crate::seq::SeqNum;
use crate::store::block_count;
use std::collections::{BTreeMap, HashMap, VecDeque};
use thiserror::Error;

/// How much a ledger keeps; what a peer sends beyond is refused (RB-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerLimits {
    /// Flows, and places that they are in.
    pub max_flows: usize,
    /// Bytes held, over all flows, as an engine counts them: in whole blocks.
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
    #[error("flow {slot}: the state holds bytes {base} to {end}, but the stream did not bring all of them")]
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

/// A flow with its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) generation: u32,
    pub(crate) row: Row,
    /// From a record's base to its end.
    pub(crate) bytes: VecDeque<u8>,
}

/// What is known of a flow.
#[derive(Clone, Debug)]
pub(crate) enum Row {
    Connection(Record),
    /// A handshake under way, with a lent scale.
    Opening(FlowKey, Opening),
}

impl Row {
    pub(crate) fn record(&self) -> Option<&Record> {
        match self {
            Self::Connection(record) => Some(record),
            Self::Opening(..) => None,
        }
    }

    fn held(&self) -> usize {
        self.record().map_or(0, |record| record.held() as usize)
    }

    fn blocks(&self) -> usize {
        self.record().map_or(0, Record::blocks)
    }
}

/// The flow table and the held bytes of the last committed epoch.
#[derive(Clone, Debug)]
pub struct Ledger {
    limits: LedgerLimits,
    flows: BTreeMap<u32, Kept>,
    held: usize,
    /// Blocks that an engine's store needs for them.
    blocks: usize,
}

/// A piece of a stream.
#[derive(Clone, Copy)]
struct Piece<'a> {
    generation: u32,
    seq: SeqNum,
    bytes: &'a [u8],
}

/// What a state says of a place.
struct Change<'a> {
    slot: u32,
    /// None: the flow is gone.
    flow: Option<(u32, Row, &'a [u8])>,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(limits: LedgerLimits) -> Self {
        Self { limits, flows: BTreeMap::new(), held: 0, blocks: 0 }
    }

    /// Takes one epoch: the state that its cut wrote, and all bytes streamed since the cut before, in
    /// their order. All or nothing.
    ///
    /// Bound: what the state and the stream hold. Allocations: what is kept.
    ///
    /// # Errors
    /// When the bytes are no state, exceed the limits, or (SP-2) speak of bytes that are not here.
    pub fn apply(&mut self, state: &[u8], stream: &[u8]) -> Result<(), LedgerError> {
        self.take(state, &[stream], true)
    }

    /// As [`Ledger::apply`], of a stream in parts, each of which has whole records.
    ///
    /// # Errors
    /// Those of [`Ledger::apply`].
    pub fn apply_parts(&mut self, state: &[u8], stream: &[&[u8]]) -> Result<(), LedgerError> {
        self.take(state, stream, true)
    }

    /// Whether [`Ledger::apply_parts`] would take it; nothing changes.
    ///
    /// # Errors
    /// Those of [`Ledger::apply`].
    pub fn check(&mut self, state: &[u8], stream: &[&[u8]]) -> Result<(), LedgerError> {
        self.take(state, stream, false)
    }

    fn take(&mut self, state: &[u8], stream: &[&[u8]], keep: bool) -> Result<(), LedgerError> {
        let (whole, changes) = self.read_state(state)?;
        let pieces = if whole { HashMap::new() } else { read_stream(stream)? };
        let (mut held, mut taken, mut count) =
            if whole { (0, 0, 0) } else { (self.held, self.blocks, self.flows.len()) };
        for change in &changes {
            let known = self.flows.get(&change.slot).filter(|_| !whole);
            if let Some(known) = known {
                held -= known.bytes.len();
                taken -= known.row.blocks();
                count -= 1;
            }
            if let Some((generation, row, bytes)) = &change.flow {
                let known = known.filter(|known| known.generation == *generation);
                let pieces = pieces.get(&change.slot).map_or(&[][..], Vec::as_slice);
                if let Some(record) = row.record() {
                    check(change.slot, *generation, record, known, pieces, bytes, whole)?;
                }
                held += row.held();
                taken += row.blocks();
                count += 1;
                if change.slot as usize >= self.limits.max_flows.max(1) {
                    return Err(LedgerError::TooMuch);
                }
            }
        }
        // RB-1: nothing is confirmed that an engine of these limits could not restore.
        if taken > block_count(self.limits.held_bytes) || count > self.limits.max_flows {
            return Err(LedgerError::TooMuch);
        }
        if !keep {
            return Ok(());
        }
        // From here on nothing fails.
        if whole {
            self.flows.clear();
        }
        for change in changes {
            let known = self.flows.remove(&change.slot);
            let Some((generation, row, bytes)) = change.flow else { continue };
            let known = known.filter(|known| known.generation == generation);
            let pieces = pieces.get(&change.slot).map_or(&[][..], Vec::as_slice);
            let bytes = match &row {
                Row::Connection(record) if !whole => join(record, generation, known, pieces),
                _ => bytes.iter().copied().collect(),
            };
            self.flows.insert(change.slot, Kept { generation, row, bytes });
        }
        (self.held, self.blocks) = (held, taken);
        Ok(())
    }

    fn read_state<'a>(&self, state: &'a [u8]) -> Result<(bool, Vec<Change<'a>>), LedgerError> {
        let mut reader = Reader(state);
        let (whole, count) = reader.head()?;
        // A change takes five bytes at least: no count makes this allocate more than the state is long.
        let mut changes = Vec::with_capacity((count as usize).min(state.len() / 5));
        for _ in 0..count {
            let slot = reader.u32()?;
            let flow = match reader.u8()? {
                0 => None,
                1 => {
                    let generation = reader.u32()?;
                    let record = reader.record()?;
                    let bytes = if whole { reader.bytes(record.held() as usize)? } else { &[] };
                    Some((generation, Row::Connection(record), bytes))
                }
                2 => {
                    let generation = reader.u32()?;
                    let (key, opening) = reader.opening()?;
                    Some((generation, Row::Opening(key, opening), &[][..]))
                }
                _ => return Err(LedgerError::Malformed("a tag is not known")),
            };
            changes.push(Change { slot, flow });
        }
        changes.sort_unstable_by_key(|change: &Change<'_>| change.slot);
        if changes.windows(2).any(|pair| pair[0].slot == pair[1].slot) {
            return Err(LedgerError::Malformed("a place is there twice"));
        }
        match reader.is_empty() {
            true => Ok((whole, changes)),
            false => Err(LedgerError::Malformed("something follows its end")),
        }
    }

    /// Bytes held.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        self.held
    }

    /// Flows known.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> impl Iterator<Item = &Kept> {
        self.flows.values()
    }

    pub(crate) fn into_flows(self) -> impl Iterator<Item = (u32, Kept)> {
        self.flows.into_iter()
    }
}

fn read_stream<'a>(stream: &[&'a [u8]]) -> Result<HashMap<u32, Vec<Piece<'a>>>, LedgerError> {
    let mut pieces = HashMap::<u32, Vec<Piece<'a>>>::new();
    for part in stream {
        let mut reader = Reader(part);
        while !reader.is_empty() {
            let (slot, generation) = (reader.u32()?, reader.u32()?);
            let (seq, len) = (reader.seq()?, reader.u32()?);
            let bytes = reader.bytes(len as usize)?;
            pieces.entry(slot).or_default().push(Piece { generation, seq, bytes });
        }
    }
    Ok(pieces)
}

/// SP-2: whether all bytes that a record speaks of are here, and all that was acknowledged is in it.
fn check(
    slot: u32,
    generation: u32,
    record: &Record,
    known: Option<&Kept>,
    pieces: &[Piece<'_>],
    bytes: &[u8],
    whole: bool,
) -> Result<(), LedgerError> {
    let (base, end) = (record.base.get(), record.end.get());
    if !record.is_covered() {
        return Err(LedgerError::AheadOfBytes { slot, acked: record.guest.acked.get(), end });
    }
    let there = match whole {
        true => bytes.len() == record.held() as usize,
        false => reach(record, generation, known, pieces) == record.end,
    };
    if there { Ok(()) } else { Err(LedgerError::MissingBytes { slot, base, end }) }
}

/// How far the bytes of a record are here without a gap, from its base on.
fn reach(record: &Record, generation: u32, known: Option<&Kept>, pieces: &[Piece<'_>]) -> SeqNum {
    let mut at = record.base;
    if let Some(known) = known.and_then(|known| known.row.record()) {
        at = extended(at, known.base, known.end, record.end);
    }
    for piece in pieces.iter().filter(|piece| piece.generation == generation) {
        at = extended(at, piece.seq, piece.seq + piece.bytes.len() as u32, record.end);
    }
    at
}

/// How far bytes reach that reached `at`, with those from `start` up to `end`.
fn extended(at: SeqNum, start: SeqNum, end: SeqNum, limit: SeqNum) -> SeqNum {
    if start.after(at) { at } else { at.later(end.earlier(limit)) }
}

/// The bytes of a record, which are all here.
fn join(record: &Record, generation: u32, known: Option<Kept>, pieces: &[Piece<'_>]) -> VecDeque<u8> {
    let mut at = record.base;
    let mut bytes = VecDeque::new();
    if let Some(Kept { row: Row::Connection(known), bytes: kept, .. }) = known {
        let reached = extended(at, known.base, known.end, record.end);
        if reached != at {
            bytes = kept;
            bytes.drain(..at.bytes_since(known.base) as usize);
            bytes.truncate(reached.bytes_since(at) as usize);
            at = reached;
        }
    }
    for piece in pieces.iter().filter(|piece| piece.generation == generation) {
        let reached = extended(at, piece.seq, piece.seq + piece.bytes.len() as u32, record.end);
        let from = at.bytes_since(piece.seq) as usize;
        bytes.extend(&piece.bytes[from.min(piece.bytes.len())..][..reached.bytes_since(at) as usize]);
        at = reached;
    }
    bytes
}
