//! Bytes on their way to the backup, ahead of the seal of their epoch.

use crate::EpochId;

/// Some of the bytes that the dataplane acknowledges to a guest as soon as they were handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamChunk {
    /// The epoch that is open as they are handed over, and in which they are acknowledged. All chunks of
    /// an epoch precede those of the next.
    pub epoch: EpochId,
    /// What the gate of the backup reads; opaque to everybody else.
    pub bytes: Vec<u8>,
}

impl StreamChunk {
    /// A chunk of at most so many bytes reaches the backup's gate as one piece; a longer one in several.
    pub const LIMIT: usize = 256 << 10;
}
