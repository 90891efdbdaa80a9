//! The host's clock as KVM shows it: the device of the module `ptp_kvm`.

use super::kernel;
use super::servo::Exchange;
use nix::time::ClockId;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What the kernel calls the device.
const NAME: &str = "KVM virtual PTP";

/// An open device.
pub(crate) struct Ptp {
    device: File,
}

impl Ptp {
    /// Where the device is in the system whose root is there.
    pub(crate) fn find(root: &Path) -> Option<PathBuf> {
        let entries = fs::read_dir(root.join("sys/class/ptp")).ok()?;
        let found = entries.flatten().find(|entry| {
            fs::read_to_string(entry.path().join("clock_name")).is_ok_and(|name| name.trim() == NAME)
        })?;
        Some(root.join("dev").join(found.file_name()))
    }

    /// Opens it; none when there is none, or it cannot be opened.
    pub(crate) fn open() -> Option<Self> {
        Some(Self { device: File::open(Self::find(Path::new("/"))?).ok()? })
    }

    /// What the host's clock shows.
    pub(crate) fn exchange(&self) -> Exchange {
        // A clock behind a descriptor, in the numbers of clock_gettime(2).
        let clock = ClockId::from_raw((!self.device.as_raw_fd() << 3) | 3);
        let asked_ns = kernel::raw_ns();
        let host_ns = kernel::read(clock);
        Exchange { asked_ns, heard_ns: kernel::raw_ns(), host_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_kvm_is_told_from_others() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(Ptp::find(dir.path()), None);
        for (name, clock) in [("ptp0", "virtio-rtc\n"), ("ptp1", "KVM virtual PTP\n")] {
            let path = dir.path().join("sys/class/ptp").join(name);
            fs::create_dir_all(&path).expect("made");
            fs::write(path.join("clock_name"), clock).expect("written");
        }
        assert_eq!(Ptp::find(dir.path()), Some(dir.path().join("dev/ptp1")));
    }
}
