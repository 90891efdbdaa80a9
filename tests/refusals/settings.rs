//! Configuration files as data, so that a case can spoil one line of a sound one.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

/// A host's file.
#[derive(Clone, Debug)]
pub(crate) struct HostFile {
    pub(crate) name: String,
    pub(crate) control: PathBuf,
    pub(crate) file_prefix: String,
    pub(crate) iface: String,
    /// Addresses of this host and its peer on the replication link.
    pub(crate) listen: String,
    pub(crate) peer: String,
    pub(crate) keys: PathBuf,
    pub(crate) arbiter: PathBuf,
    pub(crate) vms: Vec<VmPart>,
    /// Lines before the first section, and after the last.
    pub(crate) head: String,
    pub(crate) tail: String,
}

/// A VM's part of it.
#[derive(Clone, Debug)]
pub(crate) struct VmPart {
    pub(crate) name: String,
    pub(crate) role: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) qmp: PathBuf,
    pub(crate) sockets: Vec<PathBuf>,
    /// Lines added to the section, and to that of its first NIC.
    pub(crate) lines: String,
    pub(crate) nic_lines: String,
    pub(crate) backup: Option<BackupPart>,
}

/// How a host backs a VM up.
#[derive(Clone, Debug)]
pub(crate) struct BackupPart {
    pub(crate) image: PathBuf,
    pub(crate) memory: String,
    pub(crate) qmp: PathBuf,
    pub(crate) commit_log: PathBuf,
    pub(crate) command: Vec<String>,
}

impl HostFile {
    /// The VM of that name.
    pub(crate) fn vm(&mut self, name: &str) -> &mut VmPart {
        self.vms.iter_mut().find(|vm| vm.name == name).expect("a VM of that name")
    }
}

impl VmPart {
    /// How this host backs it up.
    pub(crate) fn backup(&mut self) -> &mut BackupPart {
        self.backup.as_mut().expect("a VM that is backed up")
    }
}

impl BackupPart {
    /// Puts the image elsewhere, for the command that uses it too.
    pub(crate) fn move_image(&mut self, image: PathBuf) {
        let (before, after) = (self.image.display().to_string(), image.display().to_string());
        for word in &mut self.command {
            *word = word.replace(&before, &after);
        }
        self.image = image;
    }
}

impl Display for HostFile {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { name, control, file_prefix, iface, listen, peer, keys, arbiter, vms, head, tail } = self;
        writeln!(f, "{head}\n[host]\nname = {name:?}\ncontrol_socket = {control:?}\n")?;
        writeln!(f, "[dpdk]\nfile_prefix = {file_prefix:?}\n")?;
        writeln!(f, "[[wire]]\nname = \"wire0\"\nkind = \"af_packet\"\niface = {iface:?}\n")?;
        writeln!(f, "[replication]\nlisten = {listen:?}\npeer = {peer:?}\nkeys = {keys:?}\n")?;
        writeln!(f, "[arbiter]\ndirectory = {arbiter:?}\n")?;
        vms.iter().try_for_each(|vm| vm.fmt(f))?;
        writeln!(f, "{tail}")
    }
}

impl Display for VmPart {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { name, role, mode, qmp, sockets, lines, nic_lines, backup } = self;
        writeln!(f, "[[vm]]\nname = {name:?}\nrole = {role:?}\nmode = {mode:?}\nqmp = {qmp:?}")?;
        // No failover by silence is wanted here, however busy the machine is.
        writeln!(f, "lease_ms = 10000\nqemu_timeout_ms = 10000\n{lines}\n")?;
        for (number, socket) in sockets.iter().enumerate() {
            let more = if number == 0 { nic_lines } else { "" };
            writeln!(f, "[[vm.nic]]\nsocket = {socket:?}\nwire = \"wire0\"\n{more}\n")?;
        }
        let Some(BackupPart { image, memory, qmp, commit_log, command }) = backup else { return Ok(()) };
        writeln!(f, "[vm.backup]\nimage = {image:?}\nmemory = {memory:?}\nqmp = {qmp:?}")?;
        writeln!(f, "commit_log = {commit_log:?}\ncommand = {command:?}\n")
    }
}
