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
#![expect(unsafe_code, reason = "ioctl requests on userfaultfd and pagemap")]

use super::inject::{InjectError, Stopped, in_process, permission_mend};
use super::maps::{FileIdentity, Mapping};
use super::watch::Watch;
use super::{DirtyTracker, ScanStats, TrackError};
use crate::pages::{PAGE_SIZE, PageSet};
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::Instant;
use thiserror::Error;

/// Runs of pages that one step of a scan can report.
const RUNS: usize = 4096;

/// Memory of a mapping that one thread scans at a time: a scan of it takes about half a millisecond.
const PART_BYTES: usize = 1 << 30;

/// Threads that scan, at the most.
const SCANNERS: usize = 8;

/// Written pages that are no farther apart are protected in one step.
const NEAR_BYTES: u64 = 2 << 20;

const UFFD_USER_MODE_ONLY: u64 = 1;
const UFFD_API: u64 = 0xaa;
const FEATURE_PAGEFAULT_WP: u64 = 1 << 0;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const SCAN_WP_MATCHING: u64 = 1 << 0;
const SCAN_CHECK_WPASYNC: u64 = 1 << 1;

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

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct PagemapScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

nix::ioctl_readwrite!(uffd_api, 0xaa, 0x3f, UffdApi);
nix::ioctl_read!(uffd_unregister, 0xaa, 0x01, UffdRange);
nix::ioctl_readwrite!(uffd_register, 0xaa, 0x00, UffdRegister);
nix::ioctl_readwrite!(uffd_write_protect, 0xaa, 0x06, UffdWriteProtect);
nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PagemapScan);

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
    pagemap: File,
    /// All mappings, cut to what one thread scans at a time.
    parts: Vec<Part>,
    /// Room for what each thread finds.
    found: Vec<Vec<PageRegion>>,
}

/// A part of a mapping: addresses of the process, and the offset in the file of the first.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: u64,
    end: u64,
    offset: u64,
}

/// Cuts mappings into parts.
fn cut(mappings: &[Mapping]) -> Vec<Part> {
    let parts = |mapping: &Mapping| {
        let (start, end, offset) = (mapping.start, mapping.end, mapping.offset);
        (start..end).step_by(PART_BYTES).map(move |from| Part {
            start: from,
            end: end.min(from + PART_BYTES as u64),
            offset: offset + (from - start),
        })
    };
    mappings.iter().flat_map(parts).collect()
}

impl UffdTracker {
    /// Begins to track what process `pid` writes to the file, of which `len` bytes are guest memory. Every
    /// write after the return is found; what was written before is not, so a full copy must follow.
    ///
    /// # Errors
    /// When the process cannot be traced, does not map the file, or the kernel is too old.
    pub fn attach(pid: i32, file: FileIdentity, len: u64) -> Result<Self, AttachError> {
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
        let pagemap =
            File::open(format!("/proc/{pid}/pagemap")).map_err(attach_fault(pid, "open its page map"))?;
        let parts = cut(watch.mappings());
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let scanners = parts.len().min(processors).clamp(1, SCANNERS);
        let found = vec![vec![PageRegion::default(); RUNS]; scanners];
        let mut tracker = Self { pid, len, watch, uffd, pagemap, parts, found };
        // Whether the kernel can scan at all must come out now, and a mapping made meanwhile too.
        tracker.watch.check().map_err(|fault| first_scan_fault(pid, fault))?;
        tracker.probe().map_err(|fault| first_scan_fault(pid, fault))?;
        Ok(tracker)
    }

    /// The mappings that are tracked.
    #[must_use]
    pub fn mappings(&self) -> &[Mapping] {
        self.watch.mappings()
    }

    /// Tries a scan of one page without protecting anything.
    fn probe(&self) -> Result<(), TrackError> {
        let start = self.mappings()[0].start;
        let mut found = [PageRegion::default()];
        self.walk(start..start + PAGE_SIZE as u64, SCAN_CHECK_WPASYNC, &mut found, &mut |_| {})
    }

    /// Scans some parts of the memory; gives the runs of pages that were written, which are protected now.
    ///
    /// Protecting takes the whole range that it is asked for away from a guest under KVM for a moment, written or
    /// not. So the written pages are looked for first, and only their neighbourhoods are protected.
    fn scan(&self, parts: &[Part], found: &mut [PageRegion]) -> Result<Vec<Range<u64>>, TrackError> {
        let mut runs = Vec::new();
        for part in parts {
            let mut near: Vec<Range<u64>> = Vec::new();
            self.walk(part.start..part.end, SCAN_CHECK_WPASYNC, found, &mut |run| match near.last_mut() {
                // A look that goes on where there was no more room may show a run twice.
                Some(last) if run.start <= last.end + NEAR_BYTES => last.end = last.end.max(run.end),
                _ => near.push(run.start..run.end),
            })?;
            for range in near {
                self.walk(range, SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC, found, &mut |run| {
                    let first = (part.offset + (run.start - part.start)) / PAGE_SIZE as u64;
                    runs.push(first..first + (run.end - run.start) / PAGE_SIZE as u64);
                })?;
            }
        }
        Ok(runs)
    }

    /// Shows every run of written pages of a range of the process's addresses.
    fn walk(
        &self,
        range: Range<u64>,
        flags: u64,
        found: &mut [PageRegion],
        each: &mut dyn FnMut(&PageRegion),
    ) -> Result<(), TrackError> {
        let mut at = range.start;
        while at < range.end {
            let mut request = PagemapScan {
                size: size_of::<PagemapScan>() as u64,
                flags,
                start: at,
                end: range.end,
                walk_end: 0,
                vec: found.as_mut_ptr() as u64,
                vec_len: found.len() as u64,
                max_pages: 0,
                category_inverted: 0,
                // Exactly this category, and nothing else to report, makes the kernel count a page that left
                // the page tables as written.
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: PAGE_IS_WRITTEN,
            };
            // SAFETY: the request has the size that it names; `vec` points to `vec_len` regions, which outlive the
            // call and are not otherwise borrowed during it.
            let result = unsafe { pagemap_scan(self.pagemap.as_raw_fd(), &raw mut request) };
            let runs = match result {
                Ok(runs) => usize::try_from(runs).unwrap_or(0),
                Err(Errno::EINTR) => continue,
                Err(Errno::ESRCH) => return Err(TrackError::Gone { pid: self.pid }),
                Err(Errno::EPERM) => {
                    let change = "a part of it is not watched any more".to_owned();
                    return Err(TrackError::Remapped { pid: self.pid, change });
                }
                Err(errno) => return Err(self.kernel("scan its page map", errno.into())),
            };
            found[..runs].iter().for_each(&mut *each);
            if request.walk_end <= at {
                return Err(self.kernel("scan its page map", io::ErrorKind::InvalidData.into()));
            }
            at = request.walk_end;
        }
        Ok(())
    }

    /// Scans all parts, on several processors where there is much memory.
    fn scan_all(&self, found: &mut [Vec<PageRegion>]) -> Result<Vec<Range<u64>>, TrackError> {
        let [own, others @ ..] = found else { unreachable!("one thread scans at least") };
        let share = self.parts.len().div_ceil(others.len() + 1).max(1);
        let mut shares = self.parts.chunks(share);
        let mine = shares.next().unwrap_or_default();
        thread::scope(|scope| {
            // Those that a pause starts go first in it, as the thread does that starts them. Where the host has no room
            // for a thread its share is scanned here.
            let mut left = Vec::new();
            let mut scanning = Vec::new();
            for (parts, found) in shares.zip(others) {
                match thread::Builder::new().spawn_scoped(scope, move || self.scan(parts, found)) {
                    Ok(thread) => scanning.push(thread),
                    Err(_) => left.push(parts),
                }
            }
            let mut outcome = self.scan(mine, own);
            for parts in left {
                outcome = joined(outcome, self.scan(parts, own));
            }
            for thread in scanning {
                let theirs = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                outcome = joined(outcome, theirs);
            }
            outcome
        })
    }

    const fn kernel(&self, what: &'static str, source: io::Error) -> TrackError {
        TrackError::Kernel { pid: self.pid, what, source }
    }
}

/// What two shares found; the fault of one is that of both.
fn joined(
    one: Result<Vec<Range<u64>>, TrackError>,
    other: Result<Vec<Range<u64>>, TrackError>,
) -> Result<Vec<Range<u64>>, TrackError> {
    let (mut runs, more) = (one?, other?);
    runs.extend(more);
    Ok(runs)
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
    fn collect(&mut self, into: &mut PageSet) -> Result<ScanStats, TrackError> {
        assert_eq!(
            into.capacity(),
            self.len.div_ceil(PAGE_SIZE as u64),
            "the set is over another file than the tracker"
        );
        let start = Instant::now();
        let mut found = std::mem::take(&mut self.found);
        let runs = self.scan_all(&mut found);
        self.found = found;
        let mut stats = ScanStats::default();
        for run in runs? {
            stats.pages += run.end - run.start;
            stats.runs += 1;
            // A mapping may be longer than the memory; nobody can write there.
            into.insert_range(run.start.min(into.capacity())..run.end.min(into.capacity()));
        }
        // After the scan: a mapping that was there before and after was there meanwhile.
        self.watch.check()?;
        stats.took = start.elapsed();
        Ok(stats)
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
