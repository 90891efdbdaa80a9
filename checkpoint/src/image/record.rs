//! The record beside the memory: what the memory is, and all of its last epoch.
//!
//! ```text
//! "HFCKPT03"  u32 length of header  header (JSON)  32 bytes BLAKE3 of header, index and states
//! device state   gate state   index: u64 per page, top bit set when it is all zeros   pages' bytes
//! ```
//! All numbers are little-endian. The pages' bytes are not in the digest: they lie in the same kind of
//! memory as the image itself, and the rename says that they were written.

use super::memory::Identity;
use super::{GATE_STATE_LIMIT, ImageConfig, ImageError, STATE_LIMIT, StagedPages};
use crate::pages::{PAGE_SIZE, PageIndex};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const MAGIC: &[u8; 8] = b"HFCKPT03";
const HEADER_LIMIT: u32 = 64 << 10;
const ZERO: u64 = 1 << 63;

/// What the memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum What {
    /// Part of a guest's memory.
    Syncing { term: u64 },
    /// This checkpoint.
    Checkpoint {
        term: u64,
        epoch: u64,
        /// Whether the gate's state says all by itself.
        self_contained: bool,
    },
    /// A guest's working memory.
    Live { term: u64 },
}

/// A record in memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    vm: String,
    /// Device, inode and length of the memory file, and the boot of the host that it lives in.
    device: u64,
    inode: u64,
    len: u64,
    boot: String,
    pub(super) what: What,
    pub(super) device_state: Vec<u8>,
    pub(super) gate_state: Vec<u8>,
    pub(super) pages: StagedPages,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    vm: String,
    device: u64,
    inode: u64,
    len: u64,
    boot: String,
    what: What,
    device_state: u64,
    gate_state: u64,
    pages: u64,
}

impl Record {
    /// A record without pages and states.
    pub(super) fn bare(config: &ImageConfig, (device, inode): Identity, what: What) -> Self {
        Self {
            vm: config.vm.clone(),
            device,
            inode,
            len: config.len,
            boot: boot_id(),
            what,
            device_state: Vec::new(),
            gate_state: Vec::new(),
            pages: StagedPages::new(),
        }
    }

    /// Puts the record in the place of the one that is there, whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<(), ImageError> {
        self.prepare(path)?;
        place(path)
    }

    /// Writes the record beside the one that is there.
    pub(super) fn prepare(&self, path: &Path) -> Result<(), ImageError> {
        let next = next_path(path);
        self.write_to(&next).map_err(|source| {
            // What was written of it takes room; the fault to tell is the first one.
            if let Err(error) = fs::remove_file(&next) {
                tracing::warn!(path = %next.display(), %error, "half a record stays behind");
            }
            fault("write", &next, source)
        })
    }

    fn write_to(&self, path: &Path) -> io::Result<()> {
        // Not truncated: the memory of the record before last is written over, which is faster than memory
        // that the kernel must find and clear.
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let header = serde_json::to_vec(&Header {
            vm: self.vm.clone(),
            device: self.device,
            inode: self.inode,
            len: self.len,
            boot: self.boot.clone(),
            what: self.what,
            device_state: self.device_state.len() as u64,
            gate_state: self.gate_state.len() as u64,
            pages: self.pages.len() as u64,
        })?;
        let index: Vec<u8> = self
            .pages
            .index()
            .iter()
            .flat_map(|&(page, has_bytes)| (page.0 | if has_bytes { 0 } else { ZERO }).to_le_bytes())
            .collect();
        let digest = digest([&header, &self.device_state, &self.gate_state, &index]);
        let mut head = MAGIC.to_vec();
        let length = u32::try_from(header.len()).map_err(|_| io::Error::other("header too long"))?;
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(&header);
        head.extend_from_slice(&digest);
        let parts: [&[u8]; 5] = [&head, &self.device_state, &self.gate_state, &index, self.pages.bytes()];
        file.set_len(parts.iter().map(|part| part.len() as u64).sum())?;
        parts.into_iter().try_for_each(|part| file.write_all(part))
    }

    /// Reads the record of a memory of `len` bytes.
    pub(super) fn read(path: &Path, len: u64) -> Result<Self, ImageError> {
        let unusable = |reason: String| ImageError::Unusable { path: path.to_owned(), reason };
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => unusable("it was never synchronised: there is no record".to_owned()),
            _ => fault("open", path, source),
        })?;
        let size = file.metadata().map_err(|source| fault("look at", path, source))?.len();
        parse(&mut BufReader::new(file), size, len).map_err(|reason| match reason {
            Reason::Content(reason) => unusable(format!("its record is damaged ({reason})")),
            Reason::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                unusable("its record is damaged (it ends early)".to_owned())
            }
            Reason::Io(source) => fault("read", path, source),
        })
    }

    /// Refuses a record of another VM, and memory that is not the memory recorded.
    pub(super) fn check_owner(&self, config: &ImageConfig, identity: Identity) -> Result<(), ImageError> {
        if self.vm != config.vm {
            return Err(ImageError::OtherVm {
                path: config.memory.clone(),
                expected: config.vm.clone(),
                found: self.vm.clone(),
            });
        }
        if self.boot != boot_id() {
            return Err(config.unusable("the host was started again since"));
        }
        if (self.device, self.inode) != identity || self.len != config.len {
            return Err(config.unusable("its memory is not the file that the record speaks of"));
        }
        Ok(())
    }
}

/// Removes a record, so that the memory beside it counts as nothing.
pub(super) fn remove(path: &Path) -> Result<(), ImageError> {
    for path in [path, &next_path(path)] {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(fault("remove", path, source));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Puts the record that was prepared last in the place of the one that is there.
pub(super) fn place(path: &Path) -> Result<(), ImageError> {
    exchange(&next_path(path), path)
}

/// Makes `next` the record, in one step, and keeps the old one's memory for the one after.
fn exchange(next: &Path, path: &Path) -> Result<(), ImageError> {
    match renameat2(AT_FDCWD, next, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(()),
        // There is none yet, or this file system cannot exchange.
        Err(Errno::ENOENT | Errno::EINVAL | Errno::ENOSYS) => {
            fs::rename(next, path).map_err(|source| fault("rename", path, source))
        }
        Err(errno) => Err(fault("rename", path, errno.into())),
    }
}

enum Reason {
    Content(&'static str),
    Io(io::Error),
}

impl From<io::Error> for Reason {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

fn parse(from: &mut impl Read, size: u64, memory_len: u64) -> Result<Record, Reason> {
    let mut magic = [0; 8];
    from.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Err(Reason::Content("it is of another version or no record"));
    }
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > HEADER_LIMIT {
        return Err(Reason::Content("its header is too long"));
    }
    let header_bytes = take(from, u64::from(length))?;
    let header: Header =
        serde_json::from_slice(&header_bytes).map_err(|_| Reason::Content("its header is no header"))?;
    let mut promised = [0; 32];
    from.read_exact(&mut promised)?;
    let (limit, gate_limit) = (STATE_LIMIT as u64, GATE_STATE_LIMIT as u64);
    // Pages may come twice in an epoch, and the size of the file bounds them anyway.
    if header.device_state > limit || header.gate_state > gate_limit || header.pages > size / 8 {
        return Err(Reason::Content("its header claims too much"));
    }
    let device_state = take(from, header.device_state)?;
    let gate_state = take(from, header.gate_state)?;
    let index_bytes = take(from, header.pages * 8)?;
    if digest([&header_bytes, &device_state, &gate_state, &index_bytes]) != promised {
        return Err(Reason::Content("its digest is wrong"));
    }
    let index: Vec<_> = index_bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("chunks of 8 bytes")))
        .map(|word| (PageIndex(word & !ZERO), word & ZERO == 0))
        .collect();
    if index.iter().any(|&(page, _)| page.0 >= memory_len.div_ceil(PAGE_SIZE as u64)) {
        return Err(Reason::Content("it has pages beyond the memory"));
    }
    let with_bytes = index.iter().filter(|&&(_, has_bytes)| has_bytes).count() as u64;
    let bytes = take(from, with_bytes.min(size) * PAGE_SIZE as u64)?;
    if from.read(&mut [0])? != 0 {
        return Err(Reason::Content("it is too long"));
    }
    let Header { vm, device, inode, len, boot, what, .. } = header;
    let pages = StagedPages::from_parts(index, bytes);
    Ok(Record { vm, device, inode, len, boot, what, device_state, gate_state, pages })
}

/// Reads exactly so many bytes; allocates no more than there are.
fn take(from: &mut impl Read, bytes: u64) -> Result<Vec<u8>, Reason> {
    let mut taken = Vec::new();
    from.take(bytes).read_to_end(&mut taken)?;
    if taken.len() as u64 == bytes {
        Ok(taken)
    } else {
        Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    }
}

fn digest<const N: usize>(parts: [&[u8]; N]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Names this boot of the host: memory does not outlive it.
fn boot_id() -> String {
    static BOOT: OnceLock<String> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    BOOT.get_or_init(read).clone()
}

fn next_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

fn fault(what: &'static str, path: &Path, source: io::Error) -> ImageError {
    match source.raw_os_error() {
        Some(nix::libc::ENOSPC | nix::libc::EDQUOT | nix::libc::ENOMEM) => {
            ImageError::NoRoomForRecord { path: path.to_owned(), source }
        }
        _ => ImageError::Io { what, path: path.to_owned(), source },
    }
}
