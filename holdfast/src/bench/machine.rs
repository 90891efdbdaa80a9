//! What a benchmark's figures depend on beside the program.

use holdfast_lab::apps::{self, App};
use holdfast_lab::artifacts::{Artifacts, Qemu};
use holdfast_report::run::Machine;
use std::time::SystemTime;

/// Memory that the hosts need beside guest and image.
const SPARE_MIB: u64 = 1024;

/// This machine as it is now, and what of these applications is in the guest.
pub(super) fn this(qemu: &Qemu, artifacts: &Artifacts, apps: &[App]) -> Machine {
    Machine {
        applications: apps::versions(artifacts, apps),
        qemu: Some(format!("{}.{}", qemu.version.0, qemu.version.1)),
        guest_kernel: Some(artifacts.kernel_version().to_owned()),
        ..plain()
    }
}

/// The same where no guest runs.
pub(super) fn plain() -> Machine {
    let kernel = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory =
        field("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    Machine {
        holdfast: Some(env!("CARGO_PKG_VERSION").into()),
        commit: Some(env!("HOLDFAST_COMMIT").into()),
        dpdk: Some(holdfast_dpdk::Eal::version().to_string()),
        kernel: kernel.ok(),
        cpu: field("/proc/cpuinfo", "model name"),
        cores: std::thread::available_parallelism().ok().map(|count| count.get() as u64),
        memory_mib: memory.map(|kib| kib >> 10),
        started: Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string()),
        ..Machine::default()
    }
}

/// Whether there is memory for a guest and its image; what is lacking otherwise.
pub(super) fn check_memory(guest_mib: u32) -> Result<(), String> {
    let (needed, there) = (2 * u64::from(guest_mib) + SPARE_MIB, available_mib());
    if there < needed {
        return Err(format!("a guest of {guest_mib} MiB: it needs {needed} MiB, and {there} are available"));
    }
    Ok(())
}

/// Memory that can be had without pushing anything out; none when the host does not say.
fn available_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib >> 10)
}
