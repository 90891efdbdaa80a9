//! Finds what the scripts have fetched and built: the guest's kernel and init, and QEMU.

use crate::initramfs::{Initramfs, InitramfsError, Part};
use crate::modules::VIRTIO_NET;
use crate::process::{ProcessError, run_tool};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Set by the operator: the folder `target` in which to look first.
pub const TARGET_VARIABLE: &str = "HOLDFAST_TARGET";
const GUEST_AGENT: &str = "guest/x86_64-unknown-linux-gnu/release/holdfast-guest";
const GUEST_INIT: &str = "guest/x86_64-unknown-linux-gnu/release/holdfast-guest-init";

/// Something must be fetched or built first.
#[derive(Debug, Error)]
pub enum ArtifactsError {
    /// No `target` folder with a guest's kernel near the program or here.
    #[error("no guest kernel found (looked for lab/kernel in {looked}); mend: make guest")]
    NoKernel {
        /// The folders looked in.
        looked: String,
    },
    /// The newer kernel is not fetched.
    #[error("{} is not there; mend: scripts/guest-kernel --newer", path.display())]
    NoNewerKernel {
        /// Where it should be.
        path: PathBuf,
    },
    /// The applications are not fetched.
    #[error("{} is not there or not whole; mend: scripts/guest-apps", path.display())]
    NoApplications {
        /// Where they should be.
        path: PathBuf,
    },
    /// The guest's init is not built.
    #[error("{} is not there; mend: make guest", path.display())]
    NoInit {
        /// Where it should be.
        path: PathBuf,
    },
    /// QEMU is missing or is none.
    #[error("{program} is not a QEMU that starts: {reason}; mend: scripts/packages")]
    NoQemu {
        /// The program.
        program: String,
        /// Why.
        reason: String,
    },
    /// See there.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
}

/// Where things are.
#[derive(Debug, Clone)]
pub struct Artifacts {
    target: PathBuf,
    kernel: PathBuf,
    modules: PathBuf,
    version: String,
    init: PathBuf,
}

impl Artifacts {
    /// Looks in `$HOLDFAST_TARGET`, in the folders above the running program (which is in `target`
    /// itself), and in `target` of the current folder and those above it.
    pub fn locate() -> Result<Self, ArtifactsError> {
        let mut places: Vec<PathBuf> = env::var_os(TARGET_VARIABLE).map(PathBuf::from).into_iter().collect();
        if let Ok(program) = env::current_exe() {
            places.extend(program.ancestors().skip(1).take(4).map(Path::to_path_buf));
        }
        if let Ok(here) = env::current_dir() {
            places.extend(here.ancestors().take(5).map(|dir| dir.join("target")));
        }
        for target in &places {
            if let Some(found) = Self::in_target(target) {
                return if found.init.exists() {
                    Ok(found)
                } else {
                    Err(ArtifactsError::NoInit { path: found.init })
                };
            }
        }
        let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        Err(ArtifactsError::NoKernel { looked: looked.join(", ") })
    }

    /// The same with Linux 6.12, as `scripts/guest-kernel --newer` provides it; on Debian 13 that is the
    /// kernel as it is.
    pub fn newer_kernel(&self) -> Result<Self, ArtifactsError> {
        if self.version.starts_with("6.12.") {
            return Ok(self.clone());
        }
        let link = self.target.join("lab/kernel/newer");
        Self::with_kernel(&self.target, &link).ok_or(ArtifactsError::NoNewerKernel { path: link })
    }

    fn in_target(target: &Path) -> Option<Self> {
        Self::with_kernel(target, &target.join("lab/kernel/current"))
    }

    fn with_kernel(target: &Path, current: &Path) -> Option<Self> {
        let version = fs::read_link(current).ok()?.to_str()?.to_owned();
        let kernel = current.join(format!("boot/vmlinuz-{version}"));
        let modules = current.join(format!("lib/modules/{version}"));
        (kernel.exists() && modules.join("modules.dep").exists()).then(|| Self {
            target: target.into(),
            kernel,
            modules,
            version,
            init: target.join(GUEST_INIT),
        })
    }

    /// The kernel's image.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The kernel's version, as `6.1.0-37-cloud-amd64`.
    pub fn kernel_version(&self) -> &str {
        &self.version
    }

    /// The folder of the kernel's modules.
    pub fn modules(&self) -> &Path {
        &self.modules
    }

    /// The guest's init.
    pub fn init(&self) -> &Path {
        &self.init
    }

    /// The guest's agent.
    pub fn agent(&self) -> PathBuf {
        self.target.join(GUEST_AGENT)
    }

    /// Debian's applications, as `scripts/guest-apps` has unpacked them: the root of their files.
    pub fn applications(&self) -> Result<PathBuf, ArtifactsError> {
        let path = self.target.join("lab/apps/tree");
        if path.join("complete").exists() { Ok(path) } else { Err(ArtifactsError::NoApplications { path }) }
    }

    /// Writes an initramfs: init, the modules of a virtio network card, and further parts.
    pub fn write_initramfs(&self, path: &Path, parts: &[Part]) -> Result<(), ArtifactsError> {
        let mut made = Initramfs::new(&self.init)?.modules(&self.modules, VIRTIO_NET)?;
        for part in parts {
            made = made.part(part)?;
        }
        Ok(made.write(path)?)
    }

    /// QEMU 10.0 beside the system's, if `scripts/qemu-backports` has put it there.
    pub fn qemu_10(&self) -> Result<Qemu, ArtifactsError> {
        Qemu::at(&self.target.join("lab/qemu-10.0/qemu-system-x86_64"))
    }
}

/// A QEMU program and its version.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Major and minor version.
    pub version: (u32, u32),
}

impl Qemu {
    /// The one of the system.
    pub fn system() -> Result<Self, ArtifactsError> {
        Self::at(Path::new("qemu-system-x86_64"))
    }

    /// Any other.
    pub fn at(program: &Path) -> Result<Self, ArtifactsError> {
        let failed =
            |reason: String| ArtifactsError::NoQemu { program: program.display().to_string(), reason };
        let said = run_tool(None, &program.to_string_lossy(), &["--version"])
            .map_err(|error: ProcessError| failed(error.to_string()))?;
        let version =
            parse_version(&said).ok_or_else(|| failed(format!("it says {:?}", said.lines().next())))?;
        Ok(Self { program: program.into(), version })
    }
}

fn parse_version(said: &str) -> Option<(u32, u32)> {
    let numbers = said.split("version ").nth(1)?.split(['.', ' ', '\n']);
    let mut numbers = numbers.map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_qemu_says_them() {
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)\nCopyright"),
            Some((7, 2))
        );
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (Debian)"), Some((10, 0)));
        assert_eq!(parse_version("busybox"), None);
    }
}
