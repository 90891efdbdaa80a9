//! What a test needs of its host: without it a test fails in CI and says so elsewhere.

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
