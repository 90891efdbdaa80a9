//! What process 1 owes the kernel: mounts, modules, settings, the reaping of children, power-off.
#![expect(unsafe_code, reason = "finit_module has no safe wrapper")]

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why the guest could not start; all but the last are the image's or its operator's fault.
#[derive(Debug, Error)]
pub(crate) enum BootError {
    #[error("cannot mount {target}: {source}")]
    Mount { target: &'static str, source: nix::Error },
    #[error("cannot read or write {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("module {}: {source} (are its dependencies listed before it?)", path.display())]
    Module { path: PathBuf, source: io::Error },
    #[error("the kernel's command line has {word}, which cannot be understood")]
    CommandLine { word: String },
    #[error("network card {interface}: {step}: {source}")]
    Nic { interface: String, step: &'static str, source: io::Error },
    #[error("service on port {port}: {source}")]
    Service { port: u16, source: io::Error },
    #[error("cannot wait for children: {0}")]
    Wait(nix::Error),
}

/// Mounts `/proc`, `/sys` and `/dev`, and makes `/tmp` and `/run`.
pub(crate) fn mount_all() -> Result<(), BootError> {
    for dir in ["/proc", "/sys", "/dev", "/tmp", "/run"] {
        fs::create_dir_all(dir).map_err(|source| BootError::File { path: dir.into(), source })?;
    }
    let none: Option<&str> = None;
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        match mount(Some(kind), target, Some(kind), MsFlags::empty(), none) {
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(source) => return Err(BootError::Mount { target, source }),
        }
    }
    Ok(())
}

/// Loads the modules whose paths are the lines of `list`, in that order; says how many.
pub(crate) fn load_modules(list: &str) -> Result<usize, BootError> {
    let text = match fs::read_to_string(list) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(BootError::File { path: list.into(), source }),
    };
    let mut loaded = 0;
    for path in text.lines().filter(|line| !line.is_empty()) {
        load_module(Path::new(path))?;
        loaded += 1;
    }
    Ok(loaded)
}

fn load_module(path: &Path) -> Result<(), BootError> {
    let file = File::open(path).map_err(|source| BootError::File { path: path.into(), source })?;
    let options = CString::default();
    // SAFETY: the descriptor is open for the length of the call and the options are a valid, empty,
    // NUL-terminated string; the kernel copies both.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), options.as_ptr(), 0) };
    if result == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    if source.raw_os_error() == Some(libc::EEXIST) {
        return Ok(());
    }
    Err(BootError::Module { path: path.into(), source })
}

/// Writes each setting to its file below `/proc/sys`.
pub(crate) fn write_sysctls(settings: &[(String, String)]) -> Result<(), BootError> {
    for (name, value) in settings {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value).map_err(|source| BootError::File { path, source })?;
    }
    Ok(())
}

/// Collects children for ever, as process 1 must.
pub(crate) fn reap_forever() -> Result<(), BootError> {
    loop {
        match nix::sys::wait::wait() {
            Ok(_) | Err(nix::Error::EINTR) => {}
            // Nobody to wait for: the services are threads, and children may yet come from them.
            Err(nix::Error::ECHILD) => std::thread::park(),
            Err(source) => return Err(BootError::Wait(source)),
        }
    }
}

/// Ends the machine.
pub(crate) fn power_off() {
    nix::unistd::sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    println!("holdfast-guest: cannot power off: {error}");
}
