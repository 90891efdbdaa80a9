//! A memory file whose writers the tests track.

use super::puppet::Puppet;
use super::{AttachError, FileIdentity, UffdTracker};
use crate::pages::{PAGE_SIZE, PageSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const PAGE: u64 = PAGE_SIZE as u64;

/// A file of `pages` pages on tmpfs, all holes.
pub(crate) struct Tracked {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pages: u64,
}

impl Tracked {
    pub(crate) fn new(pages: u64) -> Self {
        Self::in_dir(Path::new("/dev/shm"), pages)
    }

    pub(crate) fn in_dir(dir: &Path, pages: u64) -> Self {
        let dir = tempfile::tempdir_in(dir).unwrap();
        let path = dir.path().join("memory");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(pages * PAGE).unwrap();
        Self { _dir: dir, path, file, pages }
    }

    pub(crate) fn identity(&self) -> FileIdentity {
        let meta = self.file.metadata().unwrap();
        FileIdentity { dev: meta.dev(), ino: meta.ino() }
    }

    pub(crate) fn attach(&self, process: &Puppet) -> Result<UffdTracker, AttachError> {
        UffdTracker::attach(process.pid(), self.identity(), self.pages * PAGE)
    }

    pub(crate) fn whole(&self) -> [(u64, u64); 1] {
        [(0, self.pages * PAGE)]
    }

    pub(crate) fn none(&self) -> PageSet {
        PageSet::with_capacity(self.pages)
    }
}
