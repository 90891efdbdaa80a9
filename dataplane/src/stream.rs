//! The way of speculative bytes from the polling core to the replication thread.
//!
//! ```text
//!  polling core --chunks (bounded)--> replication thread
//!       ^                                  |
//!       '--------- spare buffers ----------'
//! ```
//!
//! The buffers that exist are made at the beginning and go round, so that they bound what is on its
//! way. While none is spare the core streams nothing, and so acknowledges nothing to the guest: it
//! never waits.
//!
//! Threading: one polling core at one end; whoever replicates at the other. Lock-free but for the
//! wake-up of a receiver that sleeps, once a chunk.

use crossbeam_channel::{Receiver, Sender, bounded};
use holdfast_epoch::{EpochId, StreamChunk};

/// Buffers of one stream.
const BUFFERS: usize = 64;

/// Bytes in a chunk, at most: what one burst of large frames brings. Each chunk is read by itself.
pub(crate) const CHUNK_LEN: usize = StreamChunk::LIMIT;

/// Bytes that say whose records follow: place of the port, then their length.
pub(crate) const CHUNK_HEAD: usize = 5;

/// The replication's end. The bytes of its chunks are records of one port each, for
/// [`KeptPorts::apply`](crate::kept::KeptPorts::apply) on the backup.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Chunks as they are captured.
    pub chunks: Receiver<StreamChunk>,
    /// Where their buffers go back to.
    pub spare: Sender<Vec<u8>>,
}

/// The core's end; the ports of a VM share one.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    chunks: Sender<StreamChunk>,
    spare: Receiver<Vec<u8>>,
}

/// Both ends of a stream.
pub(crate) fn pair() -> (Tap, Stream) {
    // A chunk has a buffer, so there is always room for it.
    let (chunks, taken) = bounded(BUFFERS);
    let (back, spare) = bounded(BUFFERS);
    for _ in 0..BUFFERS {
        back.try_send(Vec::with_capacity(CHUNK_LEN)).expect("there is room for every buffer");
    }
    (Tap { chunks, spare }, Stream { chunks: taken, spare: back })
}

impl Tap {
    /// An empty buffer, if one is spare.
    pub(crate) fn buffer(&self) -> Option<Vec<u8>> {
        let mut buffer = self.spare.try_recv().ok()?;
        buffer.clear();
        Some(buffer)
    }

    /// Sends a chunk; gives the buffer back when the replication has ended.
    pub(crate) fn send(&self, epoch: EpochId, bytes: Vec<u8>) -> Result<(), Vec<u8>> {
        self.chunks.try_send(StreamChunk { epoch, bytes }).map_err(|refused| refused.into_inner().bytes)
    }
}
