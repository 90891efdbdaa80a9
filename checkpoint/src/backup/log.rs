//! The commit log: a line for each epoch that the backup holds.
//!
//! `<epoch> <term> <CLOCK_REALTIME ns>`, appended by one write before the epoch is confirmed. Joined with
//! a capture of the wire it shows that nothing left before its commit (OC-1).

use holdfast_epoch::{EpochId, Term};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An open commit log.
#[derive(Debug)]
pub struct CommitLog {
    file: File,
    path: PathBuf,
}

impl CommitLog {
    /// Opens the log for appending; makes it if need be.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line by one write.
    ///
    /// # Errors
    /// When it could not be written whole; the epoch must not be confirmed then.
    pub fn append(&mut self, epoch: EpochId, term: Term) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let line = format!("{epoch} {term} {now}\n");
        match self.file.write(line.as_bytes())? {
            written if written == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}
