//! The log of dirty pages that QEMU shares for a live migration (VHOST_F_LOG_ALL with LOG_SHMFD).
//!
//! One bit for each 4 KiB of guest physical address space, least significant bit first. QEMU takes
//! the bits while the rings run, so each is set by an atomic OR after its page was written.

#![expect(
    unsafe_code,
    reason = "the log is shared with QEMU: only atomic accesses to raw memory are possible"
)]

use super::dirty::PAGE_BYTES;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use thiserror::Error;

/// Why the log that the frontend sent cannot be used.
#[derive(Debug, Error)]
pub enum LogError {
    /// The host refused to map it.
    #[error("host: cannot map the migration log: {0}")]
    Host(#[from] io::Error),
    /// The file ends before the log does.
    #[error("peer: the migration log claims {claimed} bytes at {offset} of a file of {found}")]
    Short {
        /// Bytes that the message named.
        claimed: u64,
        /// Where in the file they should begin.
        offset: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// The log does not reach to the end of guest memory.
    #[error("peer: the migration log of {bytes} bytes does not cover guest memory up to {end:#x}")]
    DoesNotCover {
        /// Bytes in the log.
        bytes: u64,
        /// End of guest memory.
        end: u64,
    },
}

/// The mapped log.
#[derive(Debug)]
pub struct DirtyLog {
    map: MmapRaw,
    /// Where the log begins in the mapping.
    start: usize,
    bytes: u64,
}

impl DirtyLog {
    /// Maps `bytes` bytes at `offset` of `file`.
    ///
    /// # Errors
    /// When the file is shorter than claimed or the host refuses.
    pub fn map(file: &File, offset: u64, bytes: u64) -> Result<Self, LogError> {
        let found = file.metadata()?.len();
        let short = LogError::Short { claimed: bytes, offset, found };
        let Some(end) = offset.checked_add(bytes) else { return Err(short) };
        if bytes == 0 || end > found {
            return Err(short);
        }
        let Ok(len) = usize::try_from(end) else { return Err(short) };
        let map = MmapOptions::new().len(len).map_raw(file)?;
        Ok(Self { map, start: len - bytes as usize, bytes })
    }

    /// Checks that every page below `end` has its bit.
    ///
    /// # Errors
    /// When the log is too short.
    pub fn covers(&self, end: u64) -> Result<(), LogError> {
        if end.div_ceil(PAGE_BYTES).div_ceil(8) <= self.bytes {
            Ok(())
        } else {
            Err(LogError::DoesNotCover { bytes: self.bytes, end })
        }
    }

    /// Marks every page that the guest physical range touches. What lies beyond the log is not
    /// marked: `covers` was asked before.
    #[inline]
    pub fn mark(&self, gpa: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = gpa.saturating_add(len - 1) / PAGE_BYTES;
        for page in gpa / PAGE_BYTES..=last {
            if page / 8 >= self.bytes {
                return;
            }
            // SAFETY: `start + page / 8` is less than `start + bytes`, the length of the mapping;
            // both sides access the byte atomically.
            let byte =
                unsafe { AtomicU8::from_ptr(self.map.as_mut_ptr().add(self.start + (page / 8) as usize)) };
            byte.fetch_or(1 << (page % 8), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn log_file(bytes: u64) -> File {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(bytes).expect("room for the file");
        file
    }

    #[test]
    fn each_page_has_its_bit_least_significant_first() {
        let file = log_file(4096 + 4);
        let log = DirtyLog::map(&file, 4096, 4).expect("maps");
        log.mark(0, 1);
        log.mark(9 * PAGE_BYTES - 1, 2);
        log.mark(31 * PAGE_BYTES, 1);
        log.mark(32 * PAGE_BYTES, u64::MAX);
        let mut found = [0; 4];
        file.read_exact_at(&mut found, 4096).expect("reads");
        assert_eq!(found, [0b1, 0b11, 0, 0b1000_0000]);
    }

    /// RB-1: a log that is shorter than it says, or than guest memory needs, is refused.
    #[test]
    fn a_log_that_is_too_short_is_refused() {
        let file = log_file(8);
        assert!(matches!(DirtyLog::map(&file, 0, 9), Err(LogError::Short { .. })));
        assert!(matches!(DirtyLog::map(&file, u64::MAX, 2), Err(LogError::Short { .. })));
        assert!(matches!(DirtyLog::map(&file, 0, 0), Err(LogError::Short { .. })));
        let log = DirtyLog::map(&file, 0, 8).expect("maps");
        assert!(log.covers(64 * PAGE_BYTES).is_ok());
        assert!(matches!(log.covers(64 * PAGE_BYTES + 1), Err(LogError::DoesNotCover { .. })));
    }
}
