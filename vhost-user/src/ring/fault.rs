//! What a guest can do wrong with a ring (RB-1). Each stops its device and is counted.

use crate::memory::Gpa;
use thiserror::Error;

/// A fault of the guest's driver, seen while walking a ring. The device stops; a reset of the driver
/// in the guest brings it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingFault {
    /// More chains were announced than the ring has.
    #[error("guest: available index {available} is more than {size} ahead of used index {used}")]
    AvailableJump {
        /// Index that the guest wrote.
        available: u16,
        /// Used index as the guest has been shown it.
        used: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A descriptor index lies outside its table.
    #[error("guest: descriptor {index} lies outside a table of {size}")]
    IndexOutOfTable {
        /// Index that the guest wrote.
        index: u16,
        /// Descriptors in the table.
        size: u16,
    },
    /// A chain has more descriptors than its table: it loops.
    #[error("guest: a chain loops or has more than {limit} descriptors")]
    ChainTooLong {
        /// Descriptors allowed.
        limit: u16,
    },
    /// A buffer lies outside guest memory.
    #[error("guest: a buffer of {len} bytes at {gpa} lies outside guest memory")]
    OutOfMemoryMap {
        /// Its address.
        gpa: Gpa,
        /// Its size.
        len: u32,
    },
    /// A buffer has no bytes.
    #[error("guest: a buffer of no bytes")]
    EmptyBuffer,
    /// A buffer may not be accessed as this ring does.
    #[error("guest: a buffer of the wrong direction")]
    WrongDirection,
    /// An indirect table was used without the feature.
    #[error("guest: an indirect table that was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect table inside an indirect table.
    #[error("guest: an indirect table inside an indirect table")]
    NestedIndirect,
    /// An indirect descriptor that claims a successor.
    #[error("guest: an indirect table with a descriptor after it")]
    IndirectWithNext,
    /// An indirect table that is empty, broken or too large.
    #[error("guest: an indirect table of {len} bytes")]
    IndirectSize {
        /// Bytes that the guest wrote.
        len: u32,
    },
    /// A frame is shorter than its header.
    #[error("guest: a frame of {len} bytes has no room for its header")]
    HeaderTooShort {
        /// Bytes in the chain.
        len: u64,
    },
    /// A frame is longer than any frame can be.
    #[error("guest: a frame of {len} bytes")]
    FrameTooLong {
        /// Bytes in the chain.
        len: u64,
    },
    /// The ring itself cannot be accessed any more; a bug, since it was checked at the start.
    #[error("the ring at offset {offset:#x} cannot be accessed")]
    RingOutOfFile {
        /// Offset in the memory file.
        offset: u64,
    },
}

impl RingFault {
    /// Names of the counters, in the order of [`Self::index`].
    pub const NAMES: [&'static str; 13] = [
        "available_jump",
        "index_out_of_table",
        "chain_too_long",
        "out_of_memory_map",
        "empty_buffer",
        "wrong_direction",
        "indirect_not_negotiated",
        "nested_indirect",
        "indirect_with_next",
        "indirect_size",
        "header_too_short",
        "frame_too_long",
        "ring_out_of_file",
    ];

    /// Index of this kind of fault among the counters.
    #[must_use]
    pub const fn index(&self) -> usize {
        match self {
            Self::AvailableJump { .. } => 0,
            Self::IndexOutOfTable { .. } => 1,
            Self::ChainTooLong { .. } => 2,
            Self::OutOfMemoryMap { .. } => 3,
            Self::EmptyBuffer => 4,
            Self::WrongDirection => 5,
            Self::IndirectNotNegotiated => 6,
            Self::NestedIndirect => 7,
            Self::IndirectWithNext => 8,
            Self::IndirectSize { .. } => 9,
            Self::HeaderTooShort { .. } => 10,
            Self::FrameTooLong { .. } => 11,
            Self::RingOutOfFile { .. } => 12,
        }
    }

    /// Name of this kind of fault, as counted.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

impl From<crate::memory::OutOfFile> for RingFault {
    fn from(error: crate::memory::OutOfFile) -> Self {
        Self::RingOutOfFile { offset: error.offset }
    }
}
