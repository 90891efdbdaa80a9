//! Which of the guest's connections are meant: all of them, or those of some TCP ports or of a control group.

use crate::control::MAX_NAMED;
use clap::Args;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The options by which they are chosen; both together mean connections for which both hold.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Only connections of which the guest's own port or the other end's is one of these.
    #[arg(long = "port", value_name = "PORT,…", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) ports: Vec<u16>,
    /// Only connections of this control group (version 2) and those below it: a path, or the part of it behind
    /// the place where control groups are mounted.
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<PathBuf>,
}

/// A control group as it is now. One that is removed and made again is another one.
#[derive(Debug)]
pub(crate) struct Group {
    /// Its folder.
    pub(crate) folder: File,
    /// The kernel's number for it.
    pub(crate) id: u64,
}

impl Choice {
    /// Whether nothing is left out.
    pub(crate) fn is_everything(&self) -> bool {
        self.ports.is_empty() && self.cgroup.is_none()
    }

    /// What in it cannot be, and what mends it; none when all of it can be in the system whose root is there.
    pub(crate) fn fault(&self, root: &Path) -> Option<(String, &'static str)> {
        if self.ports.len() > MAX_NAMED {
            let text = format!("{} ports are named; there is room for {MAX_NAMED}", self.ports.len());
            return Some((text, "name fewer, or choose by --cgroup"));
        }
        if self.is_everything() {
            return None;
        }
        let Some(mount) = mount(root) else {
            let text = "no control groups of version 2 are mounted, by which connections are chosen";
            return Some((text.into(), "mount -t cgroup2 none /sys/fs/cgroup"));
        };
        let outside = self.cgroup.as_ref().filter(|path| path.is_absolute() && !path.starts_with(&mount))?;
        let text = format!("{} is not below {}", outside.display(), mount.display());
        Some((text, "name the control group as it is seen there"))
    }

    /// The group that the kernel is asked to watch: the one chosen, or the root of all; none while it is not there.
    pub(crate) fn group(&self) -> io::Result<Option<Group>> {
        let Some(mount) = mount(Path::new("/")) else { return Ok(None) };
        let path = self.cgroup.as_ref().map_or_else(|| mount.clone(), |cgroup| mount.join(cgroup));
        match File::open(path) {
            Ok(folder) => Ok(Some(Group { id: folder.metadata()?.ino(), folder })),
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The options again, as a systemd unit has them.
    pub(crate) fn unit_words(&self) -> String {
        let mut words = String::new();
        if !self.ports.is_empty() {
            words.push_str(&format!(" --port {}", list(&self.ports)));
        }
        if let Some(path) = &self.cgroup {
            let mut text = path.display().to_string();
            for (plain, escaped) in [("\\", "\\\\"), ("\"", "\\\""), ("%", "%%"), ("$", "$$")] {
                text = text.replace(plain, escaped);
            }
            words.push_str(&format!(" --cgroup \"{text}\""));
        }
        words
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return write!(f, "all connections");
        }
        write!(f, "connections")?;
        if !self.ports.is_empty() {
            write!(f, " of port {}", list(&self.ports))?;
        }
        match &self.cgroup {
            Some(path) => write!(f, " of control group {}", path.display()),
            None => Ok(()),
        }
    }
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

/// Where control groups of version 2 are mounted.
fn mount(root: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let found = text.lines().find(|line| line.contains(" - cgroup2 "))?;
    found.split(' ').nth(4).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        choice: Choice,
    }

    fn choice(words: &[&str]) -> Result<Choice, clap::Error> {
        let words = ["run"].iter().chain(words);
        Words::try_parse_from(words).map(|words| words.choice)
    }

    fn system(mounts: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("proc/self")).expect("made");
        fs::write(dir.path().join("proc/self/mountinfo"), mounts).expect("written");
        dir
    }

    const UNIFIED: &str = "22 1 0:2 / /proc rw - proc proc rw\n\
                           33 24 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn ports_and_a_control_group_are_read_and_written_into_the_unit() {
        let chosen = choice(&["--port", "80,443", "--cgroup", "a.slice/x\\x2dy.service"]).expect("read");
        assert_eq!(chosen.ports, [80, 443]);
        assert_eq!(chosen.unit_words(), " --port 80,443 --cgroup \"a.slice/x\\\\x2dy.service\"");
        assert_eq!(chosen.to_string(), "connections of port 80,443 of control group a.slice/x\\x2dy.service");
        assert_eq!(choice(&[]).expect("read").unit_words(), "");
        assert_eq!(choice(&["--port", "1", "--port", "2"]).expect("read").ports, [1, 2]);
        for wrong in ["0", "65536", "http"] {
            assert!(choice(&["--port", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_chosen_is_said_with_what_mends_it() {
        let fault = |words: &[&str], mounts| choice(words).expect("read").fault(system(mounts).path());
        assert_eq!(fault(&[], ""), None);
        assert_eq!(fault(&["--port", "80", "--cgroup", "/sys/fs/cgroup/a"], UNIFIED), None);
        let (_, mend) = fault(&["--port", "80"], "").expect("a fault");
        assert!(mend.contains("mount -t cgroup2"), "{mend}");
        let (text, _) = fault(&["--cgroup", "/srv/a"], UNIFIED).expect("a fault");
        assert_eq!(text, "/srv/a is not below /sys/fs/cgroup");
        let many = (1..=65).map(|port: u16| port.to_string()).collect::<Vec<_>>().join(",");
        assert!(fault(&["--port", &many], UNIFIED).is_some());
    }
}
