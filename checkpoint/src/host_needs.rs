//! What a test needs of its host: without it a test fails in CI and says so elsewhere.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::Path;
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

/// A hugetlbfs of a test's own, on a few huge pages that are reserved for it and given back.
pub(crate) struct HugePages {
    dir: tempfile::TempDir,
    reserved: u64,
    /// Tests that change the host's number of huge pages do it one after the other.
    _turn: MutexGuard<'static, ()>,
}

impl HugePages {
    /// Room for `bytes` on 2 MiB pages; says so if there is none. Only the calling thread, and what it
    /// starts from then on, sees it.
    pub(crate) fn with_room(bytes: u64) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        if !is_root() {
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = bytes.div_ceil(2 << 20);
        let dir = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let mounted =
            mount(Some("none"), dir.path(), Some("hugetlbfs"), MsFlags::empty(), Some("pagesize=2M"));
        let own = Self { dir, reserved: pages, _turn: turn };
        own.change_pages(|now| now + pages);
        if mounted.is_ok() && free_huge_pages() >= pages {
            return Some(own);
        }
        cannot_run_here("the host has no room for huge pages", "free some memory, or boot with hugepages=64");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn change_pages(&self, change: impl FnOnce(u64) -> u64) {
        const NUMBER: &str = "/proc/sys/vm/nr_hugepages";
        let now = fs::read_to_string(NUMBER).unwrap().trim().parse().unwrap();
        fs::write(NUMBER, change(now).to_string()).unwrap();
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.dir.path(), MntFlags::MNT_DETACH) {
            println!("a hugetlbfs was not unmounted: {error}");
        }
        self.change_pages(|now| now.saturating_sub(self.reserved));
    }
}

fn free_huge_pages() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap();
    let free = info.lines().find_map(|line| line.strip_prefix("HugePages_Free:")?.trim().parse().ok());
    free.unwrap_or(0)
}
