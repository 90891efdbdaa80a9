//! Which pages of the guest's memory were written (CK-2).
//!
//! [`UffdTracker`] watches an unmodified, running QEMU; what other processes write through their own
//! mappings of the memory (Holdfast's rings) it does not see, and they keep a bitmap of their own. What it finds is
//! held, page for page, against what KVM itself says of small machines that the tests make (`kvm`, tests only).

mod inject;
#[cfg(test)]
mod kvm;
mod maps;
#[cfg(test)]
mod puppet;
#[cfg(test)]
mod tracked;
mod uffd;
mod watch;

pub use inject::InjectError;
pub(crate) use inject::in_process;
pub use maps::{FileIdentity, Mapping, mappings_of};
pub use uffd::{AttachError, UffdTracker};

#[cfg(test)]
pub(crate) use {puppet::Puppet, tracked::Tracked, uffd::tests::writer::spawn_writer};

use crate::pages::PageSet;
use std::io;
use std::time::Duration;
use thiserror::Error;

/// Finds the pages that were written.
pub trait DirtyTracker: Send {
    /// Adds to `into` every page written since the last call, or since the tracker began to watch, and
    /// watches it anew. A page written while this runs is in this call's set or in the next one's.
    ///
    /// # Errors
    /// When the process or its memory is not there any more: nothing can be said of any page then, and
    /// only a new tracker and a full synchronisation help.
    fn collect(&mut self, into: &mut PageSet) -> Result<ScanStats, TrackError>;

    /// Kernel ids of threads of its own that [`DirtyTracker::collect`] waits for.
    fn thread_ids(&self) -> Vec<i32> {
        Vec::new()
    }
}

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanStats {
    /// Pages written, counted once for each mapping through which they were.
    pub pages: u64,
    /// Runs of neighbouring pages.
    pub runs: u64,
    /// Time that the scan took.
    pub took: Duration,
}

/// Why it cannot be told which pages were written.
#[derive(Debug, Error)]
pub enum TrackError {
    /// The process ended.
    #[error("QEMU (process {pid}) has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The process maps the memory otherwise than it did.
    #[error(
        "QEMU (process {pid}) has changed how it maps the guest's memory ({change}); \
         protect the VM anew, with a full synchronisation"
    )]
    Remapped {
        /// The process.
        pid: i32,
        /// What changed.
        change: String,
    },
    /// The kernel refused.
    #[error("cannot tell which pages QEMU (process {pid}) wrote: {what}: {source}")]
    Kernel {
        /// The process.
        pid: i32,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
