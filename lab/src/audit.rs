//! Reads what Holdfast writes for its examiners: the audit of frames and the log of commits.
//!
//! The audit is a file mapped by the polling core, which adds a record when a frame is taken from the
//! guest, before it goes into the escrow; it survives the core's death.
//!
//! ```text
//! header (64 bytes)   "HFAUDIT1", number of records: u64, rest unused
//! record (32 bytes)   xxh3-64 of the frame's first 256 bytes: u64, epoch: u64,
//!                     length: u32, port: u16, flags: u16 (1: protected), CLOCK_MONOTONIC ns: u64
//! ```
//!
//! The commit log is text, a line written by the backup before it answers: epoch, term,
//! CLOCK_REALTIME in nanoseconds.

use crate::capture::SNAPSHOT_BYTES;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;
use twox_hash::XxHash3_64;

const MAGIC: &[u8; 8] = b"HFAUDIT1";
const HEADER_BYTES: usize = 64;
const RECORD_BYTES: usize = 32;
const FLAG_PROTECTED: u16 = 1;
/// More records than this are not read (2 GiB of them).
const MOST_RECORDS: u64 = 1 << 26;

/// The audit or the commit log is not one.
#[derive(Debug, Error)]
pub enum AuditError {
    /// Not readable.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Not in the format above.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// One frame that a guest sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditRecord {
    /// See [`frame_hash`].
    pub hash: u64,
    /// The epoch in which the guest sent it.
    pub epoch: u64,
    /// Its length.
    pub len: u32,
    /// The port that it came from.
    pub port: u16,
    /// Whether it had to wait for the commit.
    pub protected: bool,
    /// CLOCK_MONOTONIC when it was taken.
    pub monotonic_ns: u64,
}

/// What the audit and the join know a frame by.
pub fn frame_hash(frame: &[u8]) -> u64 {
    XxHash3_64::oneshot(&frame[..frame.len().min(SNAPSHOT_BYTES)])
}

/// Reads an audit.
pub fn read_audit(path: &Path) -> Result<Vec<AuditRecord>, AuditError> {
    let failed = |source| AuditError::Read { path: path.into(), source };
    let format = |reason: String| AuditError::Format { path: path.into(), reason };
    let file = File::open(path).map_err(failed)?;
    let room =
        file.metadata().map_err(failed)?.len().saturating_sub(HEADER_BYTES as u64) / RECORD_BYTES as u64;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).map_err(failed)?;
    if &header[..8] != MAGIC {
        return Err(format("not an audit of frames".into()));
    }
    let count = long(&header, 8);
    if count > room || count > MOST_RECORDS {
        return Err(format(format!("it claims {count} records and has room for {room}")));
    }
    let mut records = Vec::with_capacity(count as usize);
    let mut bytes = [0; RECORD_BYTES];
    for _ in 0..count {
        reader.read_exact(&mut bytes).map_err(failed)?;
        let last = long(&bytes, 16);
        records.push(AuditRecord {
            hash: long(&bytes, 0),
            epoch: long(&bytes, 8),
            len: last as u32,
            port: (last >> 32) as u16,
            protected: (last >> 48) as u16 & FLAG_PROTECTED != 0,
            monotonic_ns: long(&bytes, 24),
        });
    }
    Ok(records)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// The bytes of an audit of these records: for tests of what reads audits.
pub fn encode_audit(records: &[AuditRecord]) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&(records.len() as u64).to_le_bytes());
    for record in records {
        let flags = if record.protected { FLAG_PROTECTED } else { 0 };
        out.extend_from_slice(&record.hash.to_le_bytes());
        out.extend_from_slice(&record.epoch.to_le_bytes());
        out.extend_from_slice(&record.len.to_le_bytes());
        out.extend_from_slice(&record.port.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&record.monotonic_ns.to_le_bytes());
    }
    out
}

/// A line of the commit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The epoch.
    pub epoch: u64,
    /// The term.
    pub term: u64,
    /// CLOCK_REALTIME when the backup held all of it.
    pub realtime_ns: u64,
}

/// When each epoch was committed.
#[derive(Debug, Clone, Default)]
pub struct CommitLog {
    commits: Vec<Commit>,
    first: HashMap<u64, u64>,
}

impl CommitLog {
    /// Reads a log. One that does not exist is one without commits: nothing was confirmed.
    pub fn read(path: &Path) -> Result<Self, AuditError> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|reason| AuditError::Format { path: path.into(), reason }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(AuditError::Read { path: path.into(), source }),
        }
    }

    /// Reads the text of a log; a last line without its end was never answered.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut log = Self::default();
        for line in text.split_inclusive('\n') {
            let Some(line) = line.strip_suffix('\n') else { break };
            let mut numbers = line.split(' ').map(str::parse::<u64>);
            let mut next = || numbers.next().and_then(Result::ok);
            let (Some(epoch), Some(term), Some(realtime_ns), None) = (next(), next(), next(), next()) else {
                return Err(format!("a line that is no commit: {line:?}"));
            };
            log.commits.push(Commit { epoch, term, realtime_ns });
            // A later term may count an epoch again; the frame was free to go after the first.
            log.first.entry(epoch).or_insert(realtime_ns);
        }
        Ok(log)
    }

    /// All lines, in order.
    pub fn commits(&self) -> &[Commit] {
        &self.commits
    }

    /// When an epoch was first committed. One that was given up is part of the next one that was committed:
    /// its pages and its output went into that.
    pub fn committed_at(&self, epoch: u64) -> Option<u64> {
        self.first.get(&epoch).copied().or_else(|| {
            self.commits.iter().find(|commit| commit.epoch > epoch).map(|commit| commit.realtime_ns)
        })
    }

    /// The last commit.
    pub fn last(&self) -> Option<Commit> {
        self.commits.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: u64) -> AuditRecord {
        AuditRecord { hash: 9, epoch, len: 1514, port: 3, protected: epoch % 2 == 0, monotonic_ns: 5 }
    }

    fn read(bytes: &[u8]) -> Result<Vec<AuditRecord>, AuditError> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("audit");
        fs::write(&path, bytes).expect("written");
        read_audit(&path)
    }

    #[test]
    fn records_are_read_back_and_only_as_many_as_were_finished() {
        let records = [record(1), record(2), record(3)];
        let mut bytes = encode_audit(&records);
        assert_eq!(read(&bytes).expect("read"), records);
        bytes[8] = 2;
        assert_eq!(read(&bytes).expect("read"), records[..2]);
        bytes[8] = 200;
        assert!(matches!(read(&bytes), Err(AuditError::Format { .. })));
    }

    #[test]
    fn the_commit_log_ends_at_a_line_cut_off() {
        let log = CommitLog::parse("1 1 100\n2 1 200\n1 2 900\n3 1 3").expect("parsed");
        assert_eq!(log.commits().len(), 3);
        assert_eq!(log.committed_at(1), Some(100));
        assert_eq!(log.committed_at(3), None);
        let log = CommitLog::parse("1 1 100\n4 1 400\n5 1 500\n").expect("parsed");
        assert_eq!(log.committed_at(2), Some(400), "an epoch that was given up goes with the next one");
        assert!(CommitLog::parse("1 one 100\n").is_err());
    }

    proptest::proptest! {
        /// RB-1: what is read was written by others.
        #[test]
        fn no_audit_and_no_log_makes_the_readers_panic(
            body in proptest::collection::vec(proptest::num::u8::ANY, 0..200), count: u64, text: String,
        ) {
            let mut bytes = encode_audit(&[]);
            bytes[8..16].copy_from_slice(&count.to_le_bytes());
            bytes.extend_from_slice(&body);
            drop(read(&bytes));
            drop(CommitLog::parse(&text));
        }
    }
}
