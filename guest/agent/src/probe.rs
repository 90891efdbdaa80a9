//! What this guest has and lacks, each lack with what mends it.

use crate::Failure;
use crate::channel::Channel;
use crate::choice::Choice;
use crate::clock::ptp::Ptp;
use crate::congestion;
use crate::interfaces::{self, Interfaces};
use crate::presence::ASK_EVERY;
use holdfast_packet::guest_channel::PortMode;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

/// The oldest kernel that the programs were tried on.
const OLDEST: (u32, u32) = (6, 1);
/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_TIME, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF.
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const SYS_TIME: u64 = 1 << 25;
const SYS_ADMIN: u64 = 1 << 21;
const BPF: u64 = 1 << 38 | 1 << 39;

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What is there, or is not.
    pub(crate) text: String,
    /// What mends it, if it is a lack.
    pub(crate) mend: Option<&'static str>,
}

fn good(text: impl Into<String>) -> Finding {
    Finding { text: text.into(), mend: None }
}

fn lack(text: impl Into<String>, mend: &'static str) -> Finding {
    Finding { text: text.into(), mend: Some(mend) }
}

/// Looks at a system whose root is there; what files can tell.
pub(crate) fn look(root: &Path, choice: &Choice) -> Vec<Finding> {
    let mut found = needs(root, choice);
    found.extend(wants(root));
    found
}

/// Refuses a system that lacks what the agent cannot do without, all of it at once, with what mends it.
pub(crate) fn refuse(root: &Path, choice: &Choice) -> Result<(), Failure> {
    let lacks: Vec<String> = needs(root, choice)
        .into_iter()
        .filter_map(|Finding { text, mend }| mend.map(|mend| format!("{text}\n  mend: {mend}")))
        .collect();
    if lacks.is_empty() { Ok(()) } else { Err(Failure::Lacks(lacks.join("\n"))) }
}

/// What the agent cannot do without.
fn needs(root: &Path, choice: &Choice) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(root.join(path)).map(|text| text.trim().to_owned());
    let mut found = Vec::new();

    let release = read("proc/sys/kernel/osrelease").unwrap_or_default();
    found.push(match version(&release) {
        Some(version) if version >= OLDEST => good(format!("kernel {release}")),
        Some(_) => lack(
            format!("kernel {release} is older than 6.1"),
            "boot Debian 12's kernel or a newer one (linux-image-cloud-amd64, linux-image-amd64)",
        ),
        None => lack(format!("the kernel's version cannot be read ('{release}')"), "mount /proc"),
    });
    found.push(if root.join("sys/kernel/btf/vmlinux").exists() {
        good("the kernel describes its types (BTF)")
    } else if root.join("sys/kernel").exists() {
        lack(
            "the kernel does not describe its types: /sys/kernel/btf/vmlinux is missing, and no BPF program can \
             be fitted to it",
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as Debian's are (linux-image-cloud-amd64)",
        )
    } else {
        lack("/sys is not mounted, so that the kernel's types (BTF) cannot be read", "mount -t sysfs sysfs /sys")
    });
    found.push(match read("proc/sys/net/core/bpf_jit_enable").as_deref() {
        Ok("0") => lack("the kernel's BPF compiler is off", "sysctl net.core.bpf_jit_enable=1"),
        Ok(_) => good("the kernel compiles BPF programs"),
        Err(_) => lack(
            "the kernel has no BPF compiler (net.core.bpf_jit_enable is missing)",
            "boot a kernel built with CONFIG_BPF_JIT=y, as Debian's are",
        ),
    });
    found.push(match read("proc/sys/net/ipv4/tcp_congestion_control") {
        Ok(name) => good(format!("congestion control now: {name}")),
        Err(fault) => lack(format!("the guest's congestion control cannot be read: {fault}"), "mount /proc"),
    });
    let capabilities = capabilities(root);
    let may_load = capabilities & SYS_ADMIN != 0 || capabilities & BPF == BPF;
    found.push(if may_load && capabilities & NET_ADMIN != 0 && capabilities & NET_RAW != 0 {
        good("the rights to load BPF programs and to speak on the link")
    } else {
        lack(
            "not the rights to load BPF programs and to speak on the link",
            "run as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW",
        )
    });
    found.push(match choice.fault(root) {
        None => good(format!("for {choice}")),
        Some((fault, mend)) => lack(fault, mend),
    });
    found
}

/// What it does less without, or waits for.
fn wants(root: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    found.push(match capabilities(root) & SYS_TIME {
        0 => lack(
            "not the right to slew the wall clock",
            "run as root, or with CAP_SYS_TIME; or leave the clock alone by --clock off",
        ),
        _ => good(match Ptp::find(root) {
            Some(path) => format!("the host's clock: {} (ptp_kvm)", path.display()),
            None => "the host's clock: in Holdfast's answers (there is no ptp_kvm)".into(),
        }),
    });
    let cards: Vec<String> =
        interfaces::cards(&Interfaces::new(root).all()).map(|card| card.name.clone()).collect();
    found.push(match cards.is_empty() {
        false => good(format!("network cards: {}", cards.join(", "))),
        true => lack(
            "no network card is up",
            "bring up the card that is attached to Holdfast: ip link set eth0 up",
        ),
    });
    found
}

/// What this process may do.
fn capabilities(root: &Path) -> u64 {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
}

/// Whether the kernel of this system takes the programs.
pub(crate) fn try_programs() -> Finding {
    match congestion::try_load() {
        Ok(()) => good("the kernel takes the programs"),
        Err(fault) => lack(
            fault.to_string().lines().take(6).collect::<Vec<_>>().join("\n  "),
            "boot Debian's kernel 6.1 or newer (linux-image-cloud-amd64); report this if it is one",
        ),
    }
}

/// Who answers by which card; nobody is no lack, as the agent waits.
pub(crate) fn ask() -> Vec<Finding> {
    let all = Interfaces::new(Path::new("/")).all();
    let Ok(mut channel) = Channel::open() else { return Vec::new() };
    let cards: Vec<_> = interfaces::cards(&all).filter(|card| channel.ask(card.index).is_ok()).collect();
    let mut answers = Vec::new();
    let began = Instant::now();
    while answers.len() < cards.len() && began.elapsed() < ASK_EVERY {
        let left = ASK_EVERY.saturating_sub(began.elapsed()).as_millis() as u16;
        let mut watched = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        if poll(&mut watched, PollTimeout::from(left)).is_err() {
            break;
        }
        while let Ok(Some((index, answer, _))) = channel.answer() {
            answers.push((index, answer));
        }
    }
    let said = |index: i32| match answers.iter().find(|(from, _)| *from == index).map(|(_, answer)| answer) {
        None => "nobody answers; the agent waits for Holdfast".to_owned(),
        Some(answer) => {
            let mode = match answer.mode {
                PortMode::Native => "mode native, the VM is not protected now",
                PortMode::Commit => "mode commit",
                PortMode::Speculative => "mode speculative, which has no agent (aware has)",
                PortMode::Aware => "mode aware",
            };
            format!("Holdfast answers: {mode}, epochs of {:.1} ms", f64::from(answer.epoch_us) / 1e3)
        }
    };
    cards.iter().map(|card| good(format!("{}: {}", card.name, said(card.index)))).collect()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that has all that is needed, but for what is to be left out.
    fn system(without: &[&str], release: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        let files = [
            ("proc/sys/kernel/osrelease", release),
            ("sys/kernel/btf/vmlinux", "types"),
            ("proc/sys/net/core/bpf_jit_enable", "1"),
            ("proc/sys/net/ipv4/tcp_congestion_control", "cubic"),
            ("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n"),
            ("sys/class/net/eth0/ifindex", "2"),
            ("sys/class/net/eth0/type", "1"),
            ("sys/class/net/eth0/flags", "0x1003"),
            ("sys/class/net/eth0/device/vendor", "0x1af4"),
        ];
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            if !without.contains(&name) {
                fs::write(path, text).expect("written");
            }
        }
        dir
    }

    #[test]
    fn a_guest_is_refused_for_all_that_it_lacks_and_not_for_what_can_come_later() {
        let refused = |without: &[&str], release| {
            let dir = system(without, release);
            refuse(dir.path(), &Choice::default())
        };
        assert!(refused(&["sys/class/net/eth0/flags"], "6.1.0").is_ok(), "a card that is down is waited for");
        let lacking = refused(&["sys/kernel/btf/vmlinux"], "5.10.0");
        let Err(Failure::Lacks(text)) = lacking else { panic!("{lacking:?}") };
        assert!(text.contains("older than 6.1") && text.contains("CONFIG_DEBUG_INFO_BTF=y"), "{text}");
        assert_eq!(text.matches("  mend: ").count(), 2, "{text}");
    }

    fn lacks(without: &[&str], release: &str) -> Vec<String> {
        let dir = system(without, release);
        let found = look(dir.path(), &Choice::default()).into_iter();
        found.filter_map(|finding| Some(format!("{} | {}", finding.text, finding.mend?))).collect()
    }

    #[test]
    fn a_guest_that_has_everything_lacks_nothing() {
        assert_eq!(lacks(&[], "6.1.0-56-cloud-amd64"), [""; 0]);
        assert_eq!(lacks(&[], "6.12.95+deb12-cloud-amd64"), [""; 0]);
    }

    #[test]
    fn a_kernel_without_btf_is_refused_by_name_and_told_what_mends_it() {
        let found = lacks(&["sys/kernel/btf/vmlinux"], "6.1.0");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("/sys/kernel/btf/vmlinux"), "{found:?}");
        assert!(found[0].contains("CONFIG_DEBUG_INFO_BTF=y"), "{found:?}");
    }

    #[test]
    fn each_lack_is_named() {
        assert!(lacks(&[], "5.10.0-28-amd64")[0].contains("older than 6.1"));
        assert!(lacks(&["proc/sys/net/core/bpf_jit_enable"], "6.1.0")[0].contains("CONFIG_BPF_JIT"));
        assert!(lacks(&["proc/self/status"], "6.1.0")[0].contains("run as root"));
        assert!(lacks(&["sys/class/net/eth0/flags"], "6.1.0")[0].contains("ip link set"));
        let dir = system(&[], "6.1.0");
        let chosen = look(dir.path(), &Choice { ports: vec![80], cgroup: None });
        let mends: Vec<_> = chosen.iter().filter_map(|finding| finding.mend).collect();
        assert_eq!(mends, ["mount -t cgroup2 none /sys/fs/cgroup"]);
        let nowhere = look(Path::new("/nowhere"), &Choice::default());
        assert_eq!(nowhere.iter().filter(|found| found.mend.is_some()).count(), 7);
    }
}
