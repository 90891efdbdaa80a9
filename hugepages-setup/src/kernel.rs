//! The kernel's version, this process's privileges and limits, and what it has for real cards.

use crate::root::{Root, field};
use crate::{Row, State};

/// The first kernel with PAGEMAP_SCAN and asynchronous write protection.
const TRACKING_SINCE: (u32, u32) = (6, 7);

/// What Holdfast needs beyond a plain user: bit of the capability, its name, what it is for.
const CAPABILITIES: [(u32, &str); 5] = [
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (14, "CAP_IPC_LOCK"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
];

pub(crate) fn version(root: &Root) -> Row {
    const NEEDED: &str = "dirty-page tracking (6.7 and later)";
    let release = root.read("proc/sys/kernel/osrelease").unwrap_or_default();
    let row = Row::ok("kernel", "kernel", format!("Linux {release}"), NEEDED);
    match major_minor(&release) {
        Some(version) if version >= TRACKING_SINCE => row,
        _ => row.lacking(
            State::Missing,
            "apt-get install -t bookworm-backports linux-image-amd64, and start it (Debian 13 has 6.12)",
        ),
    }
}

fn major_minor(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether this process has the capability of this bit.
pub(crate) fn has_capability(root: &Root, bit: u32) -> bool {
    let status = root.read("proc/self/status").unwrap_or_default();
    field(&status, "CapEff")
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .is_some_and(|effective| effective >> bit & 1 == 1)
}

/// Names of the capabilities that Holdfast may need and this process does not have.
#[must_use]
pub fn lacking_capabilities(root: &Root) -> Vec<&'static str> {
    CAPABILITIES.iter().filter(|(bit, _)| !has_capability(root, *bit)).map(|(_, name)| *name).collect()
}

pub(crate) fn privileges(root: &Root) -> Row {
    const NEEDED: &str = "`holdfast run`: ports, tracking, network namespaces";
    let lacking = lacking_capabilities(root);
    if lacking.is_empty() {
        return Row::ok("privileges", "privileges", "all capabilities needed", NEEDED);
    }
    Row::ok("privileges", "privileges", format!("without {}", lacking.join(", ")), NEEDED)
        .lacking(State::Missing, "run as root, or give a unit these in AmbientCapabilities=")
}

pub(crate) fn devices(root: &Root) -> [Row; 2] {
    let groups = root.names("sys/kernel/iommu_groups").len();
    let iommu = Row::ok("iommu", "IOMMU", format!("{groups} groups"), "cards by PCI address, safely");
    let iommu = if groups > 0 {
        iommu
    } else {
        iommu
            .lacking(State::Limited, "intel_iommu=on iommu=pt (or amd_iommu=on) on the kernel's command line")
    };

    const NEEDED: &str = "cards by PCI address";
    let vfio = if root.path("dev/vfio/vfio").exists() {
        let unsafe_mode = root
            .read("sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
            .is_ok_and(|text| text == "Y" || text == "1");
        let note = if unsafe_mode { "/dev/vfio/vfio, also without an IOMMU" } else { "/dev/vfio/vfio" };
        Row::ok("vfio", "VFIO", note, NEEDED)
    } else {
        Row::ok("vfio", "VFIO", "no /dev/vfio/vfio", NEEDED)
            .lacking(State::Limited, "modprobe vfio-pci; all other wires do without")
    };
    [iommu, vfio]
}

pub(crate) fn locked_memory(root: &Root) -> Row {
    const NEEDED: &str = "AF_XDP and cards: memory that stays in place";
    const ENOUGH: u64 = 1 << 30;
    let limits = root.read("proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let Some(soft) = limit.and_then(|rest| rest.split_whitespace().next()) else {
        return Row::ok("memlock", "locked memory", "its limit cannot be read", NEEDED)
            .lacking(State::Limited, "LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`");
    };
    let bytes = soft.parse::<u64>().unwrap_or(u64::MAX);
    let exempt = has_capability(root, 14);
    let shown = if soft == "unlimited" { soft.to_owned() } else { format!("{} MiB", bytes >> 20) };
    let shown = if exempt { format!("{shown}, and CAP_IPC_LOCK lifts it") } else { shown };
    let row = Row::ok("memlock", "locked memory", shown, NEEDED);
    if exempt || bytes >= ENOUGH {
        return row;
    }
    row.lacking(State::Limited, "LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::tests::host;

    #[test]
    fn a_kernel_before_6_7_is_a_lack() {
        for (release, state) in [
            ("6.18.44-x", State::Ok),
            ("6.7.0", State::Ok),
            ("6.1.0-28-cloud-amd64", State::Missing),
            ("5.10.0", State::Missing),
            ("7.0", State::Ok),
            ("", State::Missing),
            ("unknown", State::Missing),
        ] {
            let (_folder, root) = host(&[("proc/sys/kernel/osrelease", release)]);
            assert_eq!(version(&root).state, state, "{release:?}");
        }
    }

    #[test]
    fn capabilities_that_lack_are_named() {
        let (_folder, root) = host(&[("proc/self/status", "CapEff:\t0000000000003000\n")]);
        let row = privileges(&root);
        assert_eq!(row.state, State::Missing);
        assert_eq!(row.found, "without CAP_IPC_LOCK, CAP_SYS_PTRACE, CAP_SYS_ADMIN");
        let (_folder, root) = host(&[("proc/self/status", "CapEff:\t000001ffffffffff\n")]);
        assert_eq!(privileges(&root).state, State::Ok);
    }

    #[test]
    fn a_small_limit_of_locked_memory_counts_unless_a_capability_lifts_it() {
        let limits = |value: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         {value}  {value}  bytes\n"
            )
        };
        let table = [
            ("8388608", "CapEff:\t0\n", State::Limited),
            ("8388608", "CapEff:\t0000000000004000\n", State::Ok),
            ("unlimited", "CapEff:\t0\n", State::Ok),
        ];
        for (value, status, state) in table {
            let text = limits(value);
            let (_folder, root) = host(&[("proc/self/limits", text.as_str()), ("proc/self/status", status)]);
            assert_eq!(locked_memory(&root).state, state, "{value} {status}");
        }
        let (_folder, root) = host(&[]);
        assert_eq!(locked_memory(&root).state, State::Limited);
    }

    #[test]
    fn iommu_and_vfio_are_seen_by_their_files() {
        let (_folder, root) = host(&[("sys/kernel/iommu_groups/0/type", "DMA"), ("dev/vfio/vfio", "")]);
        assert!(devices(&root).iter().all(|row| row.state == State::Ok));
        let (_folder, root) = host(&[]);
        assert!(devices(&root).iter().all(|row| row.state == State::Limited && row.mend.is_some()));
    }
}
