//! What a test needs of its host: without it a test fails in CI and says so elsewhere.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Says that a test cannot run here; to be returned from when it returns.
///
/// # Panics
/// In CI, where everything must run.
pub(crate) fn cannot_run_here(lack: &str, mend: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "cannot run here: {lack}; mend: {mend}");
    println!("cannot run here: {lack}; mend: {mend}");
}

/// Whether this process is root; says so if not.
pub(crate) fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        cannot_run_here("this test needs root", "run the tests as root");
    }
    root
}

/// Whether virtual machines can be made here; says so if not.
pub(crate) fn has_kvm() -> bool {
    let Err(error) = kvm_ioctls::Kvm::new() else { return true };
    cannot_run_here(
        &format!("/dev/kvm: {error}"),
        "modprobe kvm_intel (or kvm_amd), and switch virtualisation on in the firmware; \
         in a container: --device /dev/kvm",
    );
    false
}

/// Whether a program of that name is installed; says so if not.
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    if !found {
        cannot_run_here(&format!("{name} is not installed"), "apt-get install qemu-system-x86");
    }
    found
}

/// Sizes of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HugePageSize {
    Mib2,
    Gib1,
}

impl HugePageSize {
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Mib2 => 2 << 20,
            Self::Gib1 => 1 << 30,
        }
    }

    /// What the host says and is told of pages of this size.
    fn file(self, name: &str) -> PathBuf {
        format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", self.bytes() >> 10).into()
    }

    fn count(self, name: &str) -> u64 {
        let text = fs::read_to_string(self.file(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

/// A hugetlbfs of a test's own, on a few huge pages that are reserved for it and given back.
pub(crate) struct HugePages {
    dir: tempfile::TempDir,
    size: HugePageSize,
    reserved: u64,
    /// Tests that change the host's number of huge pages do it one after the other.
    _turn: MutexGuard<'static, ()>,
}

impl HugePages {
    /// Room for `bytes` on 2 MiB pages; says so if there is none. Only the calling thread, and what it
    /// starts from then on, sees it.
    pub(crate) fn with_room(bytes: u64) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let own = Self::of_size(HugePageSize::Mib2, bytes);
        if own.is_none() {
            let mend = "free some memory, or boot with hugepages=64";
            cannot_run_here("the host has no room for huge pages", mend);
        }
        own
    }

    /// The same on pages of any size. Not every processor has those of 1 GiB, and a host that has run for a while
    /// seldom has a whole one left: only the caller knows whether that is a lack.
    pub(crate) fn of_size(size: HugePageSize, bytes: u64) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = bytes.div_ceil(size.bytes());
        let dir = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let options = format!("pagesize={}M", size.bytes() >> 20);
        let mounted = mount(Some("none"), dir.path(), Some("hugetlbfs"), MsFlags::empty(), Some(&*options));
        let before = size.count("nr_hugepages");
        let mut own = Self { dir, size, reserved: 0, _turn: turn };
        own.set_pages(before + pages);
        // The kernel gives as many as it has.
        own.reserved = size.count("nr_hugepages").saturating_sub(before);
        (mounted.is_ok() && size.count("free_hugepages") >= pages).then_some(own)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn set_pages(&self, pages: u64) {
        if let Err(error) = fs::write(self.size.file("nr_hugepages"), pages.to_string()) {
            println!("huge pages of this size cannot be had: {error}");
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.dir.path(), MntFlags::MNT_DETACH) {
            println!("a hugetlbfs was not unmounted: {error}");
        }
        self.set_pages(self.size.count("nr_hugepages").saturating_sub(self.reserved));
    }
}
