//! What a port streams to the backup, on its way into chunks.
//!
//! ```text
//!   engine --records--> chunk that is filled --full, or waited long enough, or cut--> replication
//! ```
//!
//! Bytes count as streamed, and are acknowledged to the guest, when they are in the chunk: at the cut of
//! their epoch it is handed over, ahead of the seal (SP-2). Each chunk wakes threads on both hosts, so that
//! small ones cost more than they carry.

use crate::stream::{CHUNK_HEAD, CHUNK_LEN, Tap};
use holdfast_epoch::EpochId;
use holdfast_speculation::{Engine, Time};
use std::time::Duration;

/// A chunk with so many bytes in it is handed over. The rest is room for what one burst brings.
const CHUNK_FULL: usize = CHUNK_LEN / 2;

/// So long a chunk waits for more.
const LINGER: Duration = Duration::from_micros(200);

/// The stream of a port.
#[derive(Default)]
pub(super) struct Outflow {
    /// None until somebody replicates.
    tap: Option<Tap>,
    /// Place of the port among its VM's, as the stream names it.
    place: u8,
    chunk: Option<Chunk>,
    /// No buffer was spare for bytes that wait to be streamed.
    blocked: bool,
}

/// The chunk that is filled.
struct Chunk {
    bytes: Vec<u8>,
    /// Epoch and time of the first bytes in it.
    since: Option<(EpochId, Time)>,
}

impl Chunk {
    fn new(mut bytes: Vec<u8>, place: u8) -> Self {
        bytes.clear();
        bytes.extend([place, 0, 0, 0, 0]);
        Self { bytes, since: None }
    }
}

impl Outflow {
    /// Into `tap`, as the port at that place.
    pub(super) fn new(tap: Tap, place: u8) -> Self {
        Self { tap: Some(tap), place, chunk: None, blocked: false }
    }

    /// Takes what the engine has not streamed yet, as belonging to `epoch`.
    pub(super) fn pump(&mut self, now: Time, epoch: EpochId, engine: &mut Engine) {
        if self.tap.is_none() {
            return;
        }
        self.blocked = false;
        // What a protection that is over left behind is in the whole state that the next one begins with.
        if self.chunk.as_ref().is_some_and(|chunk| chunk.since.is_some_and(|(other, _)| other != epoch)) {
            self.discard();
        }
        loop {
            let Some(chunk) = self.chunk.take().or_else(|| self.spare()) else {
                self.blocked = true;
                return;
            };
            let chunk = self.chunk.insert(chunk);
            let len = engine.stream(CHUNK_LEN - chunk.bytes.len(), &mut chunk.bytes);
            if len > 0 {
                chunk.since.get_or_insert((epoch, now));
            }
            let waited = chunk.since.is_some_and(|(_, since)| now >= since + LINGER);
            if waited || chunk.bytes.len() >= CHUNK_FULL {
                self.flush();
            }
            if len == 0 || self.blocked {
                return;
            }
        }
    }

    /// Hands over what waits for more.
    pub(super) fn flush(&mut self) {
        let Some(tap) = &self.tap else { return };
        let Some(Chunk { mut bytes, since: Some((epoch, _)) }) =
            self.chunk.take_if(|chunk| chunk.since.is_some())
        else {
            return;
        };
        let len = (bytes.len() - CHUNK_HEAD) as u32;
        bytes[1..CHUNK_HEAD].copy_from_slice(&len.to_le_bytes());
        if let Err(bytes) = tap.send(epoch, bytes) {
            // Nobody replicates any more: the supervisor has ended.
            self.chunk = Some(Chunk::new(bytes, self.place));
            self.blocked = true;
        }
    }

    /// Forgets what was not handed over.
    pub(super) fn discard(&mut self) {
        self.chunk = self.chunk.take().map(|chunk| Chunk::new(chunk.bytes, self.place));
    }

    /// When the chunk has waited long enough.
    pub(super) fn due(&self) -> Option<Time> {
        let (_, since) = self.chunk.as_ref()?.since?;
        Some(since + LINGER)
    }

    /// Whether bytes wait for a buffer that nobody tells of.
    pub(super) const fn is_blocked(&self) -> bool {
        self.blocked
    }

    fn spare(&self) -> Option<Chunk> {
        let bytes = self.tap.as_ref()?.buffer()?;
        Some(Chunk::new(bytes, self.place))
    }
}
