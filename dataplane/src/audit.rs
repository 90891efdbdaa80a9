//! The audit log: a record of every frame of a guest at the moment of its capture.
//!
//! Joined with a capture of the wire and the commit log of the backup it proves OC-1 from outside:
//! a frame on the wire whose record names an epoch that was committed later left too early. The log
//! is a mapped file, so that it survives a SIGKILL of the process up to the last whole record. Off
//! unless a file is given; for the laboratory, not for production.
//!
//! Layout, little-endian: a header of 64 bytes (`HFAUDIT1`, then the number of whole records as u64,
//! stored after the record itself), then records of 32 bytes, see [`Record`].
//!
//! Owned by the polling core; readers are other processes, or this one after the fact.
#![expect(unsafe_code, reason = "a shared file mapping is written and its count published atomically")]

use memmap2::{MmapMut, MmapOptions};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use twox_hash::XxHash3_64;

const MAGIC: &[u8; 8] = b"HFAUDIT1";
const HEADER_LEN: usize = 64;
const COUNT_AT: usize = 8;
const RECORD_LEN: usize = 32;

/// Bytes at the head of a frame that are hashed.
pub const HASHED_LEN: usize = 256;

/// Flag of a record: the port was protected when the frame was captured.
pub const PROTECTED: u16 = 1;

/// One captured frame, as it would be on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// XXH3 (64 bits, seed 0) of the first [`HASHED_LEN`] bytes of the frame.
    pub hash: u64,
    /// Epoch that was open; zero when the port was not protected.
    pub epoch: u64,
    /// Length of the frame, in bytes.
    pub len: u32,
    /// Number of the port.
    pub port: u16,
    /// [`PROTECTED`].
    pub flags: u16,
    /// `CLOCK_MONOTONIC` at the capture, in nanoseconds.
    pub mono_ns: u64,
}

/// Hash of a frame as the log records it.
#[must_use]
pub fn hash(frame: &[u8]) -> u64 {
    XxHash3_64::oneshot(&frame[..frame.len().min(HASHED_LEN)])
}

/// The log that a core writes.
#[derive(Debug)]
pub struct Audit {
    map: MmapMut,
    records: usize,
    capacity: usize,
}

impl Audit {
    /// Creates the log with room for `capacity` records; the file is sparse until they are written.
    ///
    /// # Errors
    /// When the file cannot be made or mapped; the operator's or the host's fault.
    pub fn create(path: &Path, capacity: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        let len = HEADER_LEN + capacity * RECORD_LEN;
        file.set_len(len as u64)?;
        // SAFETY: the mapping is only ever accessed through `self`, as bytes, plus the one counter
        // that is accessed atomically; other processes that map or truncate the file can at worst
        // spoil the log or end this process by SIGBUS, which the file's owner alone may do.
        let mut map = unsafe { MmapOptions::new().len(len).map_mut(&file)? };
        map[..8].copy_from_slice(MAGIC);
        Ok(Self { map, records: 0, capacity })
    }

    /// Appends a record; false when the log is full.
    ///
    /// Bound: O(1). Allocations and system calls: none, but for the page fault of a fresh page.
    pub fn append(&mut self, record: &Record) -> bool {
        if self.records == self.capacity {
            return false;
        }
        let at = HEADER_LEN + self.records * RECORD_LEN;
        let out = &mut self.map[at..at + RECORD_LEN];
        out[..8].copy_from_slice(&record.hash.to_le_bytes());
        out[8..16].copy_from_slice(&record.epoch.to_le_bytes());
        out[16..20].copy_from_slice(&record.len.to_le_bytes());
        out[20..22].copy_from_slice(&record.port.to_le_bytes());
        out[22..24].copy_from_slice(&record.flags.to_le_bytes());
        out[24..32].copy_from_slice(&record.mono_ns.to_le_bytes());
        self.records += 1;
        self.count().store((self.records as u64).to_le(), Ordering::Release);
        true
    }

    fn count(&self) -> &AtomicU64 {
        let at = self.map[COUNT_AT..].as_ptr().cast::<AtomicU64>();
        // SAFETY: a mapping begins at a page, so the place is aligned; the eight bytes lie within
        // the header and are accessed in no other way.
        unsafe { &*at }
    }
}

/// Reads all whole records of a log, be its writer alive or not.
///
/// # Errors
/// When the file cannot be read or is no audit log.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let mut file = File::open(path)?;
    let mut header = [0; HEADER_LEN];
    file.read_exact(&mut header)?;
    if &header[..8] != MAGIC {
        let what = format!("{} is no audit log of frames", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let count = number(&header[COUNT_AT..COUNT_AT + 8]);
    let room = file.metadata()?.len().saturating_sub(HEADER_LEN as u64) / RECORD_LEN as u64;
    let mut bytes = vec![0; count.min(room) as usize * RECORD_LEN];
    file.read_exact(&mut bytes)?;
    Ok(bytes
        .chunks_exact(RECORD_LEN)
        .map(|record| Record {
            hash: number(&record[..8]),
            epoch: number(&record[8..16]),
            len: number(&record[16..20]) as u32,
            port: number(&record[20..22]) as u16,
            flags: number(&record[22..24]) as u16,
            mono_ns: number(&record[24..32]),
        })
        .collect())
}

/// Little-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_there_when_the_writer_is_gone_without_a_word() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit");
        let record = |nth: u64| Record {
            hash: hash(&nth.to_le_bytes()),
            epoch: nth,
            len: 8,
            port: 3,
            flags: PROTECTED,
            mono_ns: nth << 40,
        };
        let mut audit = Audit::create(&path, 3).expect("a log");
        assert!((0..3).all(|nth| audit.append(&record(nth))));
        assert!(!audit.append(&record(3)), "the log is bounded");
        // No unmapping, no flush: as after a SIGKILL.
        std::mem::forget(audit);
        assert_eq!(read(&path).expect("a log"), (0..3).map(record).collect::<Vec<_>>());
    }

    #[test]
    fn another_file_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("other");
        std::fs::write(&path, [7; 100]).expect("written");
        assert_eq!(read(&path).expect_err("no log").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn only_the_head_of_a_frame_is_hashed() {
        let (mut a, mut b) = ([1; 300], [1; 300]);
        a[299] = 2;
        assert_eq!(hash(&a), hash(&b));
        b[255] = 2;
        assert_ne!(hash(&a), hash(&b));
    }
}
