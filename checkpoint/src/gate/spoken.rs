//! What a speculating gate has acknowledged to its guest, for tests: one stream of bytes, as the gate of the
//! primary holds it and as that of the backup keeps it.
//!
//! A state is a flag (whole or not), first and last byte held, the digest of all of them, and the bytes if it
//! is whole; that of a gate that never speaks is empty. So `keep` finds out for itself whether it has every byte (SP-2).

use crate::gate::{GateError, GateState, Stream};

use crossbeam_channel::{Receiver, Sender, bounded};
use holdfast_epoch::{EpochId, StreamChunk};

/// Bytes that were acknowledged and that the client has not confirmed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spoken {
    start: u64,
    bytes: Vec<u8>,
}

impl Spoken {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(crate) fn digest(&self) -> blake3::Hash {
        blake3::Hasher::new().update(&self.start.to_le_bytes()).update(&self.bytes).finalize()
    }

    /// These bytes were acknowledged.
    pub(crate) fn hold(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The client confirmed all but the last `most` bytes.
    pub(crate) fn confirm_all_but(&mut self, most: usize) {
        let confirmed = self.bytes.len().saturating_sub(most);
        self.bytes.drain(..confirmed);
        self.start += confirmed as u64;
    }

    pub(crate) fn state(&self, whole: bool) -> GateState {
        let mut bytes = vec![u8::from(whole)];
        bytes.extend_from_slice(&self.start.to_le_bytes());
        bytes.extend_from_slice(&self.end().to_le_bytes());
        bytes.extend_from_slice(self.digest().as_bytes());
        if whole {
            bytes.extend_from_slice(&self.bytes);
            return GateState::whole(bytes);
        }
        GateState::delta(bytes)
    }

    pub(crate) fn keep(&mut self, state: &[u8], stream: &[&[u8]]) -> Result<(), GateError> {
        let bad = |text: &str| GateError::State(text.to_owned());
        if state.is_empty() && stream.is_empty() {
            *self = Self::default();
            return Ok(());
        }
        let (head, bytes) = state.split_first_chunk::<49>().ok_or_else(|| bad("it is cut short"))?;
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let (start, end) = (number(1), number(9));
        let mut next = match head[0] {
            0 => self.clone(),
            _ => Self { start, bytes: bytes.to_vec() },
        };
        stream.iter().for_each(|part| next.hold(part));
        if next.end() != end || start < next.start || start > end {
            return Err(bad("bytes are missing"));
        }
        next.confirm_all_but(usize::try_from(end - start).expect("small"));
        if next.digest().as_bytes()[..] != head[17..] {
            return Err(bad("they are other bytes"));
        }
        *self = next;
        Ok(())
    }
}

/// The gate's end of its stream, and what it holds.
pub(crate) struct Speaker {
    pub(crate) spoken: Spoken,
    pub(crate) chunks: Sender<StreamChunk>,
    pub(crate) spares: Receiver<Vec<u8>>,
    pub(crate) stream: Stream,
}

impl Speaker {
    /// With room for so many chunks.
    pub(crate) fn new(room: usize) -> Self {
        let ((chunks, taken), (spare, spares)) = (bounded(room), bounded(room));
        Self { spoken: Spoken::default(), chunks, spares, stream: Stream { chunks: taken, spare } }
    }

    /// Acknowledges bytes if they can be handed over; as a polling core, it does not wait.
    pub(crate) fn say(&mut self, epoch: u64, bytes: &[u8]) -> bool {
        let mut buffer = self.spares.try_recv().unwrap_or_default();
        buffer.extend_from_slice(bytes);
        let said = self.chunks.try_send(StreamChunk { epoch: EpochId::new(epoch), bytes: buffer }).is_ok();
        if said {
            self.spoken.hold(bytes);
        }
        said
    }
}

/// So many bytes that no others look like.
pub(crate) fn seeded(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
