//! Versions of the programs and libraries that Holdfast stands on.

use crate::{Row, State};
use std::path::PathBuf;
use std::process::{Command, Stdio};

const DPDK_SINCE: (u32, u32) = (22, 11);
const QEMU_SINCE: (u32, u32) = (7, 2);

/// What is known beforehand, and where to look for the rest.
#[derive(Clone, Debug)]
pub struct Versions {
    /// As the library linked names itself: "DPDK 22.11.11"; `None` for a program without DPDK.
    pub dpdk: Option<String>,
    /// The QEMU to ask for its version.
    pub qemu: PathBuf,
}

impl Default for Versions {
    fn default() -> Self {
        Self { dpdk: None, qemu: PathBuf::from("qemu-system-x86_64") }
    }
}

impl Versions {
    pub(crate) fn rows(&self) -> [Row; 2] {
        [self.dpdk(), self.qemu()]
    }

    fn dpdk(&self) -> Row {
        const NEEDED: &str = "all ports";
        const MEND: &str = "apt-get install dpdk libdpdk-dev, and build Holdfast with it";
        let Some(version) = &self.dpdk else {
            return Row::ok("dpdk", "DPDK", "not linked into this program", NEEDED)
                .lacking(State::Missing, MEND);
        };
        let row = Row::ok("dpdk", "DPDK", version.clone(), NEEDED);
        match major_minor(version) {
            Some(version) if version >= DPDK_SINCE => row,
            _ => row.lacking(State::Limited, "use 22.11 or 24.11, which Holdfast is tested with"),
        }
    }

    fn qemu(&self) -> Row {
        const NEEDED: &str = "guests, and the standby on the backup";
        const MEND: &str = "apt-get install qemu-system-x86";
        let lacking = |found: String| Row::ok("qemu", "QEMU", found, NEEDED).lacking(State::Missing, MEND);
        let output =
            Command::new(&self.qemu).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
        let text = match output {
            Ok(output) => {
                String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("").trim().to_owned()
            }
            Err(fault) => return lacking(format!("{} cannot be started: {fault}", self.qemu.display())),
        };
        match major_minor(&text).filter(|_| text.starts_with("QEMU")) {
            None => lacking(format!("{} does not say its version", self.qemu.display())),
            Some(version) if version < QEMU_SINCE => {
                Row::ok("qemu", "QEMU", text, NEEDED).lacking(State::Limited, "use 7.2 or later")
            }
            // Its irqfd of a vhost-user device is uninitialised under TCG.
            Some(version) if version < (8, 0) => {
                Row::ok("qemu", "QEMU", format!("{text}; under TCG give virtio-net-pci vectors=0"), NEEDED)
            }
            Some(_) => Row::ok("qemu", "QEMU", text, NEEDED),
        }
    }
}

/// The first `x.y` in a text.
fn major_minor(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say_of_themselves() {
        for (text, version) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", Some((7, 2))),
            ("DPDK 22.11.11", Some((22, 11))),
            ("DPDK 24.11.0-rc1", Some((24, 11))),
            ("", None),
            ("version unknown", None),
            ("version 99999999999.1", None),
        ] {
            assert_eq!(major_minor(text), version, "{text}");
        }
    }

    #[test]
    fn a_qemu_that_is_not_there_or_is_no_qemu_is_a_lack() {
        for program in ["/nonexistent/qemu", "/bin/true", "/bin/false"] {
            let versions = Versions { qemu: PathBuf::from(program), ..Versions::default() };
            let [_, qemu] = versions.rows();
            assert_eq!(qemu.state, State::Missing, "{program}: {}", qemu.found);
        }
    }

    #[test]
    fn an_old_or_absent_dpdk_is_reported() {
        let row = |dpdk: Option<&str>| {
            Versions { dpdk: dpdk.map(str::to_owned), ..Versions::default() }.dpdk().state
        };
        assert_eq!(row(None), State::Missing);
        assert_eq!(row(Some("DPDK 19.11.0")), State::Limited);
        assert_eq!(row(Some("DPDK 24.11.1")), State::Ok);
    }
}
