//! What a test needs of its host: without it a test fails in CI and says so elsewhere.

use std::fs;
use std::path::PathBuf;

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

/// Whether a program of that name is installed; says so if not.
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    if !found {
        cannot_run_here(&format!("{name} is not installed"), "apt-get install qemu-system-x86");
    }
    found
}

/// A hugetlbfs mount with so many bytes of 2 MiB pages free; says so if there is none.
pub(crate) fn hugetlbfs_with_room(bytes: u64) -> Option<PathBuf> {
    let info = fs::read_to_string("/proc/meminfo").unwrap();
    let free = info.lines().find_map(|line| line.strip_prefix("HugePages_Free:")?.trim().parse::<u64>().ok());
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("hugetlbfs"));
    let found = mount.filter(|_| free.unwrap_or(0) * (2 << 20) >= bytes);
    if found.is_none() {
        cannot_run_here(
            &format!("there is no hugetlbfs mount with {bytes} bytes free"),
            "mount -t hugetlbfs none /dev/hugepages; sysctl vm.nr_hugepages=64",
        );
    }
    Some(found?.split(' ').nth(1).unwrap().into())
}
