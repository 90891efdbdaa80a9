//! Dirty-page tracking: asynchronous write protection by userfaultfd, read back by PAGEMAP_SCAN, on a
//! shared mapping as a guest's memory is one; and ptrace, which brings the descriptor over.
#![expect(unsafe_code, reason = "system calls that nobody wraps")]

use crate::{Row, State};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

/// Of `linux/userfaultfd.h`.
mod uffd {
    pub(super) const API: u64 = 0xaa;
    pub(super) const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    pub(super) const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
    pub(super) const FEATURE_WP_ASYNC: u64 = 1 << 15;
    pub(super) const REGISTER_MODE_WP: u64 = 1 << 1;
    /// `_IOWR(0xaa, 0x3f, struct uffdio_api)`
    pub(super) const IOCTL_API: libc::c_ulong = 0xc018_aa3f;
    /// `_IOWR(0xaa, 0x00, struct uffdio_register)`
    pub(super) const IOCTL_REGISTER: libc::c_ulong = 0xc020_aa00;

    #[repr(C)]
    pub(super) struct Api {
        pub(super) api: u64,
        pub(super) features: u64,
        pub(super) ioctls: u64,
    }

    #[repr(C)]
    pub(super) struct Register {
        pub(super) start: u64,
        pub(super) len: u64,
        pub(super) mode: u64,
        pub(super) ioctls: u64,
    }
}

/// Of `linux/fs.h`.
mod scan {
    /// `_IOWR('f', 16, struct pm_scan_arg)`
    pub(super) const IOCTL: libc::c_ulong = 0xc060_6610;
    pub(super) const WP_MATCHING: u64 = 1;
    pub(super) const CHECK_WPASYNC: u64 = 2;
    pub(super) const PAGE_IS_WRITTEN: u64 = 1 << 1;

    #[repr(C)]
    #[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
    pub(super) struct Region {
        pub(super) start: u64,
        pub(super) end: u64,
        pub(super) categories: u64,
    }

    #[repr(C)]
    #[derive(Default)]
    pub(super) struct Arguments {
        pub(super) size: u64,
        pub(super) flags: u64,
        pub(super) start: u64,
        pub(super) end: u64,
        pub(super) walk_end: u64,
        pub(super) vec: u64,
        pub(super) vec_len: u64,
        pub(super) max_pages: u64,
        pub(super) category_inverted: u64,
        pub(super) category_mask: u64,
        pub(super) category_anyof_mask: u64,
        pub(super) return_mask: u64,
    }
}

const PAGE: usize = 4096;
const PAGES: usize = 16;
/// The page that is written, of those protected.
const WRITTEN: usize = 5;

/// Where the probe stopped.
struct Fault {
    step: Step,
    fault: io::Error,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Memory,
    Open,
    Features,
    Register,
    Pagemap,
    Scan,
    Answer,
}

/// Two rows, as they are two kernel features with two mends.
pub(crate) fn tracking() -> [Row; 2] {
    const UFFD: (&str, &str, &str) =
        ("userfaultfd", "userfaultfd", "dirty-page tracking: asynchronous write protection");
    const SCAN: (&str, &str, &str) =
        ("pagemap_scan", "PAGEMAP_SCAN", "dirty-page tracking: reading what was written");
    const NEWER: &str = "Linux 6.7 or later with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP";
    let uffd = |found: &str| Row::ok(UFFD.0, UFFD.1, found, UFFD.2);
    let scan = |found: &str| Row::ok(SCAN.0, SCAN.1, found, SCAN.2);
    let works = "write-protects shared memory asynchronously";
    let Err(Fault { step, fault }) = try_tracking() else {
        return [uffd(works), scan("finds exactly the pages written")];
    };
    let untried = || scan("not tried, as userfaultfd does not work").lacking(State::Missing, NEWER);
    match step {
        Step::Memory => {
            let text = format!("no memory to try it with: {fault}");
            [uffd(&text).lacking(State::Missing, "free some memory"), untried()]
        }
        Step::Open => {
            let mend = match fault.raw_os_error() {
                Some(libc::EPERM) => {
                    "run as root or with CAP_SYS_PTRACE, or sysctl vm.unprivileged_userfaultfd=1"
                }
                _ => NEWER,
            };
            [uffd(&format!("cannot be opened: {fault}")).lacking(State::Missing, mend), untried()]
        }
        Step::Features => {
            [uffd(&format!("lacks asynchronous mode: {fault}")).lacking(State::Missing, NEWER), untried()]
        }
        Step::Register => {
            [uffd(&format!("refuses shared memory: {fault}")).lacking(State::Missing, NEWER), untried()]
        }
        Step::Pagemap => [
            uffd(works),
            scan(&format!("/proc/self/pagemap: {fault}")).lacking(State::Missing, "mount /proc readable"),
        ],
        Step::Scan | Step::Answer => [uffd(works), scan(&fault.to_string()).lacking(State::Missing, NEWER)],
    }
}

fn try_tracking() -> Result<(), Fault> {
    let at = |step| move |fault| Fault { step, fault };
    let memory = Shared::new().map_err(at(Step::Memory))?;
    let uffd = open_uffd().map_err(at(Step::Open))?;
    let wanted = uffd::FEATURE_WP_ASYNC | uffd::FEATURE_WP_UNPOPULATED | uffd::FEATURE_WP_HUGETLBFS_SHMEM;
    let mut api = uffd::Api { api: uffd::API, features: wanted, ioctls: 0 };
    // SAFETY: the request reads and writes one `uffdio_api`, which is at hand.
    done(unsafe { libc::ioctl(uffd.as_raw_fd(), uffd::IOCTL_API, &raw mut api) })
        .map_err(at(Step::Features))?;
    let mut register = uffd::Register {
        start: memory.address(),
        len: (PAGES * PAGE) as u64,
        mode: uffd::REGISTER_MODE_WP,
        ioctls: 0,
    };
    // SAFETY: the request reads and writes one `uffdio_register`; it names a mapping of our own, which
    // outlives the descriptor.
    done(unsafe { libc::ioctl(uffd.as_raw_fd(), uffd::IOCTL_REGISTER, &raw mut register) })
        .map_err(at(Step::Register))?;

    let pagemap = File::open("/proc/self/pagemap").map_err(at(Step::Pagemap))?;
    written_pages(&pagemap, &memory).map_err(at(Step::Scan))?;
    memory.write(WRITTEN);
    let found = written_pages(&pagemap, &memory).map_err(at(Step::Scan))?;
    let again = written_pages(&pagemap, &memory).map_err(at(Step::Scan))?;
    if found == [WRITTEN] && again.is_empty() {
        return Ok(());
    }
    let text = format!("page {WRITTEN} was written, but the scans found {found:?}, then {again:?}");
    Err(Fault { step: Step::Answer, fault: io::Error::other(text) })
}

fn open_uffd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a descriptor that comes back is owned at once.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    done(fd)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pages written since the last call, which are protected again in the same step.
fn written_pages(pagemap: &File, memory: &Shared) -> io::Result<Vec<usize>> {
    let mut regions = [scan::Region::default(); PAGES];
    let start = memory.address();
    let mut arguments = scan::Arguments {
        size: size_of::<scan::Arguments>() as u64,
        flags: scan::WP_MATCHING | scan::CHECK_WPASYNC,
        start,
        end: start + (PAGES * PAGE) as u64,
        vec: regions.as_mut_ptr() as u64,
        vec_len: PAGES as u64,
        category_mask: scan::PAGE_IS_WRITTEN,
        return_mask: scan::PAGE_IS_WRITTEN,
        ..scan::Arguments::default()
    };
    // SAFETY: the request reads and writes one `pm_scan_arg` and at most `vec_len` regions behind `vec`,
    // all at hand.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), scan::IOCTL, &raw mut arguments) };
    let found = usize::try_from(done(found)?).unwrap_or(0).min(PAGES);
    let page = |address: u64| usize::try_from(address.saturating_sub(start)).unwrap_or(0) / PAGE;
    Ok(regions[..found].iter().flat_map(|region| page(region.start)..page(region.end).min(PAGES)).collect())
}

fn done(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// A small shared mapping of a memory file, as QEMU makes of a guest's memory.
struct Shared(*mut u8);

impl Shared {
    fn new() -> io::Result<Self> {
        // SAFETY: a terminated name; a descriptor that comes back is owned at once.
        let file = unsafe {
            let fd = libc::memfd_create(c"holdfast-probe".as_ptr(), libc::MFD_CLOEXEC);
            done(fd)?;
            File::from_raw_fd(fd)
        };
        file.set_len((PAGES * PAGE) as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice; it keeps the file alive.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGES * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(address.cast()))
    }

    fn address(&self) -> u64 {
        self.0 as u64
    }

    fn write(&self, page: usize) {
        // SAFETY: the page is one of the mapping, which nobody else uses; volatile, as the write is for
        // the kernel to see and would else be left out.
        unsafe { self.0.add(page * PAGE).write_volatile(1) };
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, unmapped once.
        let unmapped = unsafe { libc::munmap(self.0.cast(), PAGES * PAGE) };
        debug_assert_eq!(unmapped, 0, "a whole mapping of our own");
    }
}

/// Starts a child, seizes it as attaching to QEMU does, and ends it.
pub(super) fn seize_a_child() -> io::Result<()> {
    let mut child =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("process numbers are small"));
    let seized = nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty());
    // SIGKILL ends a seized process without a stop in between.
    child.kill()?;
    child.wait()?;
    seized.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_that_their_requests_name() {
        assert_eq!(size_of::<uffd::Api>() as u64, uffd::IOCTL_API >> 16 & 0x3fff);
        assert_eq!(size_of::<uffd::Register>() as u64, uffd::IOCTL_REGISTER >> 16 & 0x3fff);
        assert_eq!(size_of::<scan::Arguments>() as u64, scan::IOCTL >> 16 & 0x3fff);
    }

    #[test]
    fn a_child_can_be_seized() {
        seize_a_child().expect("one's own child can be traced");
    }
}
