//! What can be wrong with an image.

use super::ImageState;
use crate::pages::{PAGE_SIZE, PageIndex};
use holdfast_epoch::{EpochId, Term};
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why an image cannot be used, or an epoch not be applied.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The host: no room for the memory.
    #[error(
        "the backup has no room for {needed} bytes at {} ({available} are free): \
         give it more memory, a larger tmpfs (mount -o remount,size=...) or more huge pages (vm.nr_hugepages)",
        path.display()
    )]
    NoRoom {
        /// The file in question.
        path: PathBuf,
        /// Bytes wanted.
        needed: u64,
        /// Bytes free, as far as is known.
        available: u64,
    },
    /// The host: no room for the record of an epoch; the epoch was not applied.
    #[error(
        "the backup has no room for an epoch's record at {} ({source}): \
         free some there, or give the record's tmpfs a larger size",
        path.display()
    )]
    NoRoomForRecord {
        /// The file in question.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The operator: the file is of another size.
    #[error(
        "{} has {found} bytes and the guest's memory has {expected}: \
         give both hosts the same memory size, and remove the file if the guest was resized",
        path.display()
    )]
    Size {
        /// The file in question.
        path: PathBuf,
        /// Bytes of guest memory.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The operator: memory of this size cannot be kept there.
    #[error("{} cannot hold {len} bytes: the size must be a multiple of {unit}, its page size", path.display())]
    Unit {
        /// The file in question.
        path: PathBuf,
        /// Bytes of guest memory.
        len: u64,
        /// Bytes of a page there.
        unit: u64,
    },
    /// The operator: not a file system in memory.
    #[error(
        "{} is neither on tmpfs nor on hugetlbfs: choose a path under /dev/shm or a hugetlbfs mount",
        path.display()
    )]
    Filesystem {
        /// The file in question.
        path: PathBuf,
    },
    /// The operator: two processes on one image.
    #[error("{} is in use by another process: stop the other Holdfast or choose another path", path.display())]
    InUse {
        /// The file in question.
        path: PathBuf,
    },
    /// There is no checkpoint that could be used; a full synchronisation makes one.
    #[error("the image {} cannot be used: {reason}; a full synchronisation is needed", path.display())]
    Unusable {
        /// The memory file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The checkpoint counts on what the gate of a process that has ended kept in its memory (SP-2); a full
    /// synchronisation makes another.
    #[error(
        "the image {} cannot be used: bytes that were acknowledged to the guest belong to its epoch {epoch} of \
         term {term}, and the Holdfast that kept them in its memory has ended; a full synchronisation is needed",
        path.display()
    )]
    KeptLost {
        /// The memory file.
        path: PathBuf,
        /// Term of the checkpoint.
        term: Term,
        /// The epoch.
        epoch: EpochId,
    },
    /// The operator: the files belong to another VM.
    #[error("{} is the image of VM {found:?}, not of {expected:?}: choose another path", path.display())]
    OtherVm {
        /// The memory file.
        path: PathBuf,
        /// The VM that was configured.
        expected: String,
        /// The VM that the record names.
        found: String,
    },
    /// The host: a file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file in question.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The peer: the epoch's bytes are not those that were promised.
    #[error("epoch {epoch} of term {term} arrived damaged: its digest is not the promised one")]
    Damaged {
        /// Term of the epoch.
        term: Term,
        /// The epoch.
        epoch: EpochId,
    },
    /// The peer: not the epoch that comes next.
    #[error("epoch {epoch} of term {term} was refused: {}", expectation(*expected))]
    OutOfOrder {
        /// Term and epoch that may come, if any.
        expected: Option<(Term, EpochId)>,
        /// Term that came.
        term: Term,
        /// Epoch that came.
        epoch: EpochId,
    },
    /// The peer: it wants to go on from a point that the image has passed.
    #[error("epoch {epoch} of term {term} is not newer than epoch {held} of term {held_term}, which is held")]
    NotNewer {
        /// Term that was named.
        term: Term,
        /// Epoch that was named.
        epoch: EpochId,
        /// Term of the checkpoint.
        held_term: Term,
        /// Epoch of the checkpoint.
        held: EpochId,
    },
    /// The peer: the first epoch came before all of the memory.
    #[error("the synchronisation is incomplete: {pages} pages of {PAGE_SIZE} bytes never came")]
    SyncIncomplete {
        /// Pages that are missing.
        pages: u64,
    },
    /// The peer: a page of the synchronisation without a synchronisation.
    #[error("a page of a full synchronisation came while none is under way ({state:?})")]
    NotSyncing {
        /// What the image holds.
        state: ImageState,
    },
    /// No checkpoint is held.
    #[error("the image holds no checkpoint ({state:?})")]
    NoCheckpoint {
        /// What the image holds.
        state: ImageState,
    },
    /// The guest runs on the memory.
    #[error("the guest runs on this image since term {term}")]
    Live {
        /// Term in which it went live.
        term: Term,
    },
    /// The peer: a page that the guest does not have.
    #[error("page {page} lies beyond the guest's {pages} pages")]
    BeyondMemory {
        /// The page.
        page: PageIndex,
        /// Pages of the guest.
        pages: u64,
    },
    /// The peer: more state than any QEMU writes.
    #[error("a checkpoint's state of {bytes} bytes is more than a guest can have")]
    StateTooLarge {
        /// Bytes of state.
        bytes: usize,
    },
}

fn expectation(expected: Option<(Term, EpochId)>) -> String {
    expected.map_or_else(
        || "no session has said which epoch comes".to_owned(),
        |(term, epoch)| format!("epoch {epoch} of term {term} comes next"),
    )
}
