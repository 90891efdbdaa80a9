//! Watches whether a process still maps the guest's memory as it did.
//!
//! Reading all of a QEMU's mappings takes a third of a millisecond, and this is asked in the pause of
//! every epoch. So each known mapping is asked for by its address (PROCMAP_QUERY, Linux 6.11; 1 us each),
//! and a new one elsewhere shows in the size of the address space, which the kernel has at hand (20 us);
//! only when that changed, or the kernel is older, all mappings are read.
#![expect(unsafe_code, reason = "an ioctl request on a maps file")]

use super::TrackError;
use super::maps::{FileIdentity, Mapping, mappings_of};
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const QUERY_SHARED: u64 = 1 << 3;

#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

nix::ioctl_readwrite!(procmap_query, b'f', 17, ProcmapQuery);

/// The mappings of a file as they were, and the means to ask whether they still are.
#[derive(Debug)]
pub(super) struct Watch {
    pid: i32,
    file: FileIdentity,
    mappings: Vec<Mapping>,
    maps: File,
    statm: File,
    /// Pages of the address space when all mappings were read last.
    size: u64,
    can_query: bool,
}

/// What a quick look says.
enum Look {
    Same,
    Different,
    /// This kernel cannot be asked for one address.
    Unknown,
}

impl Watch {
    /// Watches the mappings of `file` as they are now.
    pub(super) fn begin(pid: i32, file: FileIdentity) -> io::Result<Self> {
        let maps = File::open(format!("/proc/{pid}/maps"))?;
        let statm = File::open(format!("/proc/{pid}/statm"))?;
        let size = pages_of(&statm)?;
        let mappings = mappings_of_file(pid, file)?;
        Ok(Self { pid, file, mappings, maps, statm, size, can_query: true })
    }

    /// The mappings, pieces that continue each other as one.
    pub(super) fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// Fails if the file is mapped otherwise than it was.
    pub(super) fn check(&mut self) -> Result<(), TrackError> {
        let size = pages_of(&self.statm).map_err(|source| self.fault(source))?;
        if self.can_query && size == self.size {
            match self.look().map_err(|source| self.fault(source))? {
                Look::Same => return Ok(()),
                Look::Different => {}
                Look::Unknown => self.can_query = false,
            }
        }
        let now = mappings_of_file(self.pid, self.file).map_err(|source| self.fault(source))?;
        if now == self.mappings {
            // The size was read before the mappings: what changed in between shows the next time.
            self.size = size;
            return Ok(());
        }
        // A process that is ending has no mappings any more, a little before it has no process.
        if now.is_empty() {
            return Err(TrackError::Gone { pid: self.pid });
        }
        let change = format!("it had {} mappings of it and has {}", self.mappings.len(), now.len());
        Err(TrackError::Remapped { pid: self.pid, change })
    }

    fn look(&self) -> io::Result<Look> {
        for mapping in &self.mappings {
            let mut at = mapping.start;
            while at < mapping.end {
                let mut query = ProcmapQuery {
                    size: size_of::<ProcmapQuery>() as u64,
                    query_addr: at,
                    query_flags: QUERY_SHARED,
                    ..ProcmapQuery::default()
                };
                // SAFETY: the argument is the structure that this request reads and writes, of the size that it
                // names; no buffer for names is offered.
                match unsafe { procmap_query(self.maps.as_raw_fd(), &raw mut query) } {
                    Ok(_) => {}
                    Err(Errno::ENOENT) => return Ok(Look::Different),
                    Err(Errno::ENOTTY | Errno::EINVAL) => return Ok(Look::Unknown),
                    Err(errno) => return Err(errno.into()),
                }
                let dev = libc::makedev(query.dev_major, query.dev_minor);
                let same_file = (FileIdentity { dev, ino: query.inode }) == self.file;
                let offset = mapping.offset + (at - mapping.start);
                let same_place = query.vma_start <= at && query.vma_offset + (at - query.vma_start) == offset;
                if !same_file || !same_place || query.vma_end <= at {
                    return Ok(Look::Different);
                }
                at = query.vma_end;
            }
        }
        Ok(Look::Same)
    }

    fn fault(&self, source: io::Error) -> TrackError {
        match source.raw_os_error() {
            Some(libc::ESRCH | libc::ENOENT) => TrackError::Gone { pid: self.pid },
            _ => TrackError::Kernel { pid: self.pid, what: "read its mappings", source },
        }
    }
}

/// Pages of a process's address space; none when it has ended.
fn pages_of(statm: &File) -> io::Result<u64> {
    let mut text = [0; 128];
    let read = statm.read_at(&mut text, 0)?;
    let text = String::from_utf8_lossy(&text[..read]);
    text.split(' ').next().and_then(|word| word.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The mappings through which the process can write to the file, pieces that continue each other as one.
fn mappings_of_file(pid: i32, file: FileIdentity) -> io::Result<Vec<Mapping>> {
    let mut mappings = mappings_of(pid)?;
    mappings.retain(|mapping| mapping.shared && mapping.file == file);
    mappings.dedup_by(|next, before| {
        let continues =
            next.start == before.end && next.offset == before.offset + (before.end - before.start);
        if continues {
            before.end = next.end;
        }
        continues
    });
    Ok(mappings)
}
