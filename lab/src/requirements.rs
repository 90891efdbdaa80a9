//! What a test or a demonstration needs of its host, asked for before it begins.
//!
//! A test that cannot run says so and how to mend it, and passes; where `CI=true` it fails instead, so
//! that no lack of the machine hides as a green run.

use crate::artifacts::Artifacts;

/// One thing needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Root: namespaces, interfaces, ptrace.
    Root,
    /// `/dev/net/tun`.
    Tun,
    /// `/dev/kvm`.
    Kvm,
    /// The guest's kernel and init, and QEMU.
    Guest,
    /// The guest's agent.
    Agent,
    /// Debian's applications for the guest.
    Applications,
    /// Linux 6.12 for the guest.
    NewerKernel,
    /// QEMU 10.0 as `scripts/qemu-backports` provides it.
    Qemu10,
}

impl Need {
    /// What is lacking and what mends it; none when all is well.
    pub fn lack(self) -> Option<String> {
        let opens = |path: &str| std::fs::OpenOptions::new().read(true).write(true).open(path).is_ok();
        let lack = |there: bool, words: &str| (!there).then(|| words.to_owned());
        match self {
            Self::Root => lack(nix::unistd::geteuid().is_root(), "not root; mend: sudo -E make ..."),
            Self::Tun => lack(opens("/dev/net/tun"), "no /dev/net/tun; mend: modprobe tun, as root"),
            Self::Kvm => lack(
                opens("/dev/kvm"),
                "no /dev/kvm; mend: switch virtualisation on in the firmware, modprobe kvm-intel or kvm-amd",
            ),
            Self::Guest => match Artifacts::locate() {
                Err(error) => Some(error.to_string()),
                Ok(_) => crate::artifacts::Qemu::system().err().map(|error| error.to_string()),
            },
            Self::Agent => {
                let there = Artifacts::locate().is_ok_and(|artifacts| artifacts.agent().exists());
                lack(there, "the guest's agent is not built; mend: make guest-agent")
            }
            Self::Applications => {
                let found = Artifacts::locate().and_then(|artifacts| artifacts.applications());
                found.err().map(|error| error.to_string())
            }
            Self::NewerKernel => {
                let found = Artifacts::locate().and_then(|artifacts| artifacts.newer_kernel());
                found.err().map(|error| error.to_string())
            }
            Self::Qemu10 => {
                let found = Artifacts::locate().and_then(|artifacts| artifacts.qemu_10());
                found.err().map(|_| "no QEMU 10.0; mend: scripts/qemu-backports".to_owned())
            }
        }
    }
}

/// Whether all of it is there. If not, prints one line that says what is lacking; where the
/// environment has `CI=true`, panics with it instead.
pub fn can_run(needs: &[Need]) -> bool {
    let Some(lack) = needs.iter().find_map(|need| need.lack()) else { return true };
    let line = format!("cannot run here: {lack}");
    assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "{line}");
    println!("{line}");
    false
}
