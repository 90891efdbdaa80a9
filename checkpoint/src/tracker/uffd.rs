//! Tracks the writes of a running process with userfaultfd in asynchronous write-protect mode.
//!
//! Every mapping of the memory file is registered and protected; the first write to a page takes a short
//! fault in the kernel, which lifts the protection and goes on, and no user space is involved. A scan
//! looks where pages without protection are, asks for them there and protects them again in the same step
//! (PAGEMAP_SCAN), so that no write falls between two scans (CK-2): what is written after the look is in this
//! scan or in the next. It is the kernel's page tables that are asked: writes by
//! vCPUs under KVM, by vCPUs under TCG, by QEMU's device models and by system calls in QEMU's name all
//! count. What a device of the host puts into memory by itself does not (DMA, as of direct I/O): guests for whom
//! that is done are refused. A page that was thrown out of the page tables meanwhile counts as written, since its protection
//! went with it. On huge pages a scan finds whole huge pages.
//!
//! The descriptor is made in the process, by one injected system call, taken over, and closed over
//! there: it belongs to Holdfast alone, and when the tracker is dropped, or Holdfast dies, the kernel lifts
//! all protection and QEMU runs as before.
//!
//! Offsets are those of the file, in 64 bits. Needs Linux 6.7.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]
#![expect(unsafe_code, reason = "ioctl requests on userfaultfd")]

mod scan;

use super::inject::{InjectError, Stopped, in_process, permission_mend};
use super::maps::{FileIdentity, Mapping};
use super::watch::Watch;
use super::{DirtyTracker, ScanStats, TrackError};
use crate::pages::{PAGE_SIZE, PageSet};
use nix::errno::Errno;
use nix::libc;
use scan::{PageMap, Scanners};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::Instant;
use thiserror::Error;

const UFFD_USER_MODE_ONLY: u64 = 1;
const UFFD_API: u64 = 0xaa;
const FEATURE_PAGEFAULT_WP: u64 = 1 << 0;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
#[repr(C)]
struct UffdApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdWriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

nix::ioctl_readwrite!(uffd_api, 0xaa, 0x3f, UffdApi);
nix::ioctl_read!(uffd_unregister, 0xaa, 0x01, UffdRange);
nix::ioctl_readwrite!(uffd_register, 0xaa, 0x00, UffdRegister);
nix::ioctl_readwrite!(uffd_write_protect, 0xaa, 0x06, UffdWriteProtect);

/// Why a process's memory cannot be tracked.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The process could not be made to hand a userfaultfd over.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// The operator: the process does not map the file.
    #[error(
        "process {pid} does not map the guest's memory (device {}, inode {}): it is not the QEMU of this VM",
        file.dev, file.ino
    )]
    NotMapped {
        /// The process.
        pid: i32,
        /// The file.
        file: FileIdentity,
    },
    /// The host: the kernel is too old.
    #[error("this kernel cannot track writes ({lack}): Linux 6.7 or newer is needed")]
    OldKernel {
        /// What is missing.
        lack: &'static str,
    },
    /// The operator: somebody else tracks it.
    #[error(
        "the memory of process {pid} is tracked by somebody else (another Holdfast, or a post-copy migration): \
         end that first"
    )]
    Busy {
        /// The process.
        pid: i32,
    },
    /// The operator: a right is missing.
    #[error("process {pid} may not be looked into ({what}): {mend}")]
    NotPermitted {
        /// The process.
        pid: i32,
        /// What was tried.
        what: &'static str,
        /// What to do.
        mend: String,
    },
    /// The kernel refused.
    #[error("the memory of process {pid} cannot be tracked ({what}): {source}")]
    Kernel {
        /// The process.
        pid: i32,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Tracks the writes of one process to one memory file.
#[derive(Debug)]
pub struct UffdTracker {
    pid: i32,
    len: u64,
    watch: Watch,
    /// Holds the protection; closing it lifts it.
    uffd: OwnedFd,
    scanners: Scanners,
}

impl UffdTracker {
    /// Begins to track what process `pid` writes to the file, of which `len` bytes are guest memory. Every
    /// write after the return is found; what was written before is not, so a full copy must follow.
    ///
    /// # Errors
    /// When the process cannot be traced, does not map the file, or the kernel is too old.
    pub fn attach(pid: i32, file: FileIdentity, len: u64) -> Result<Self, AttachError> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self::attach_with(processors, pid, file, len)
    }

    /// The same, where there are so many processors.
    fn attach_with(processors: usize, pid: i32, file: FileIdentity, len: u64) -> Result<Self, AttachError> {
        let watch = Watch::begin(pid, file).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => AttachError::Inject(InjectError::Gone { pid }),
            _ => attach_fault(pid, "read its mappings")(source),
        })?;
        if watch.mappings().is_empty() {
            return Err(AttachError::NotMapped { pid, file });
        }
        let uffd = take_uffd(pid)?;
        enable(&uffd, pid)?;
        for mapping in watch.mappings() {
            protect(&uffd, pid, mapping)?;
        }
        let map = PageMap::open(pid).map_err(attach_fault(pid, "open its page map"))?;
        let scanners = Scanners::start(processors, map, watch.mappings());
        let mut tracker = Self { pid, len, watch, uffd, scanners };
        // Whether the kernel can scan at all must come out now, and a mapping made meanwhile too.
        tracker.watch.check().map_err(|fault| first_scan_fault(pid, fault))?;
        tracker.scanners.probe(tracker.mappings()[0].start).map_err(|fault| first_scan_fault(pid, fault))?;
        Ok(tracker)
    }

    /// The mappings that are tracked.
    #[must_use]
    pub fn mappings(&self) -> &[Mapping] {
        self.watch.mappings()
    }
}

impl Drop for UffdTracker {
    /// Lifts the protection at once. Closing the descriptor would do, but not before a process that is just
    /// being started elsewhere in Holdfast has closed its copy too.
    fn drop(&mut self) {
        for mapping in self.watch.mappings() {
            let mut range = UffdRange { start: mapping.start, len: mapping.end - mapping.start };
            // SAFETY: the argument is the structure that this request reads; lifting the protection changes
            // nothing that the other process can see.
            match unsafe { uffd_unregister(self.uffd.as_raw_fd(), &raw mut range) } {
                // It has ended, or maps something else there: nothing of ours is left.
                Ok(_) | Err(Errno::ESRCH | Errno::EINVAL) => {}
                Err(error) => {
                    tracing::warn!(pid = self.pid, %error, "the memory of a process stays watched for a moment");
                }
            }
        }
    }
}

impl DirtyTracker for UffdTracker {
    /// In one thread it costs 87 ns a page where each is by itself, 71 in a row, and 0.19 ms a GiB of which nothing was
    /// written; no allocation (`cargo bench -p holdfast-checkpoint -- scan`).
    fn collect(&mut self, into: &mut PageSet) -> Result<ScanStats, TrackError> {
        assert_eq!(
            into.capacity(),
            self.len.div_ceil(PAGE_SIZE as u64),
            "the set is over another file than the tracker"
        );
        let start = Instant::now();
        let mut stats = ScanStats::default();
        self.scanners.scan(&mut |run| {
            stats.pages += run.end - run.start;
            stats.runs += 1;
            // A mapping may be longer than the memory; nobody can write there.
            into.insert_range(run.start.min(into.capacity())..run.end.min(into.capacity()));
        })?;
        // After the scan: a mapping that was there before and after was there meanwhile.
        self.watch.check()?;
        stats.took = start.elapsed();
        Ok(stats)
    }

    fn thread_ids(&self) -> Vec<i32> {
        self.scanners.thread_ids()
    }
}

/// Makes a userfaultfd in the process and takes it over; the process keeps none.
fn take_uffd(pid: i32) -> Result<OwnedFd, AttachError> {
    let process = open_process(pid)?;
    let taken = in_process(pid, move |stopped| take_from(stopped, &process))?;
    taken.map_err(|(what, errno)| match (what, errno) {
        (_, Errno::ENOSYS) => AttachError::OldKernel { lack: "no userfaultfd or no pidfd_getfd" },
        (_, Errno::EPERM) => AttachError::NotPermitted { pid, what, mend: permission_mend(pid) },
        (_, errno) => attach_fault(pid, what)(errno.into()),
    })
}

type Taken = Result<OwnedFd, (&'static str, Errno)>;

fn take_from(stopped: &mut Stopped, process: &OwnedFd) -> Result<Taken, InjectError> {
    // User mode only is what any process may have; asynchronous protection asks nobody, so that writes in
    // kernel mode are found all the same.
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK).unsigned_abs();
    let made = stopped.call(libc::SYS_userfaultfd, [u64::from(flags) | UFFD_USER_MODE_ONLY, 0, 0])?;
    let number = match made {
        Ok(number) => number,
        Err(errno) => return Ok(Err(("make a userfaultfd", errno))),
    };
    // SAFETY: pidfd_getfd takes three integers and no pointer.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    let taken = Errno::result(taken).map_err(|errno| ("take its userfaultfd over", errno));
    let closed = stopped.call(libc::SYS_close, [number, 0, 0])?;
    Ok(taken.and_then(|fd| {
        let fd = i32::try_from(fd).map_err(|_| ("take its userfaultfd over", Errno::EBADF))?;
        // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        closed.map(|_| fd).map_err(|errno| ("close its userfaultfd", errno))
    }))
}

fn open_process(pid: i32) -> Result<OwnedFd, AttachError> {
    // SAFETY: pidfd_open takes two integers and no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match Errno::result(fd) {
        // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) }),
        Err(Errno::ESRCH) => Err(InjectError::Gone { pid }.into()),
        Err(errno) => Err(attach_fault(pid, "open the process")(errno.into())),
    }
}

fn enable(uffd: &OwnedFd, pid: i32) -> Result<(), AttachError> {
    let features =
        FEATURE_PAGEFAULT_WP | FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
    let mut api = UffdApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the argument is the structure that this request reads and writes.
    match unsafe { uffd_api(uffd.as_raw_fd(), &raw mut api) } {
        Ok(_) => Ok(()),
        Err(Errno::EINVAL) => Err(AttachError::OldKernel { lack: "no asynchronous write protection" }),
        Err(errno) => Err(attach_fault(pid, "enable write protection")(errno.into())),
    }
}

/// Registers and protects one mapping.
fn protect(uffd: &OwnedFd, pid: i32, mapping: &Mapping) -> Result<(), AttachError> {
    let len = mapping.end - mapping.start;
    let mut register = UffdRegister { start: mapping.start, len, mode: REGISTER_MODE_WP, ioctls: 0 };
    // SAFETY: the argument is the structure that this request reads and writes; the range is one of the other
    // process's, whose memory it does not touch.
    match unsafe { uffd_register(uffd.as_raw_fd(), &raw mut register) } {
        Ok(_) => {}
        Err(Errno::EBUSY) => return Err(AttachError::Busy { pid }),
        Err(Errno::ESRCH) => return Err(InjectError::Gone { pid }.into()),
        Err(errno) => return Err(attach_fault(pid, "register its memory")(errno.into())),
    }
    let mut request = UffdWriteProtect { start: mapping.start, len, mode: WRITEPROTECT_MODE_WP };
    loop {
        // SAFETY: the argument is the structure that this request reads; protecting in asynchronous mode
        // changes nothing that the other process can see.
        match unsafe { uffd_write_protect(uffd.as_raw_fd(), &raw mut request) } {
            Ok(_) => return Ok(()),
            // The process changes its address space at this moment.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::ESRCH) => return Err(InjectError::Gone { pid }.into()),
            Err(errno) => return Err(attach_fault(pid, "protect its memory")(errno.into())),
        }
    }
}

fn first_scan_fault(pid: i32, fault: TrackError) -> AttachError {
    match fault {
        TrackError::Gone { pid } => InjectError::Gone { pid }.into(),
        TrackError::Kernel { source, .. } if source.raw_os_error() == Some(libc::ENOTTY) => {
            AttachError::OldKernel { lack: "no PAGEMAP_SCAN" }
        }
        TrackError::Kernel { what, source, .. } => attach_fault(pid, what)(source),
        TrackError::Remapped { change, .. } => {
            attach_fault(pid, "watch its mappings")(io::Error::other(change))
        }
    }
}

fn attach_fault(pid: i32, what: &'static str) -> impl Fn(io::Error) -> AttachError {
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => {
            AttachError::NotPermitted { pid, what, mend: permission_mend(pid) }
        }
        _ => AttachError::Kernel { pid, what, source },
    }
}

#[cfg(test)]
pub(super) mod tests;
