//! What a guest is made of, and whether Holdfast can protect it.
//!
//! A guest that could not be the same after a failover is refused, all reasons at once, each with what
//! mends it: memory that is not one shared file, a writable disk, a device of the host's own, output that
//! does not pass through Holdfast (OC-1 could not hold for it).

use super::{Qemu, QemuError};
use crate::qmp::QmpError;
use crate::tracker::{FileIdentity, mappings_of};
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, statfs};
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What the operator allows, and which sockets are Holdfast's.
#[derive(Clone, Debug, Default)]
pub struct InspectSettings {
    /// Take a guest with writable disks, whose contents then are not those of the epoch after a failover.
    pub accept_unreplicated_disks: bool,
    /// Sockets of Holdfast's own vhost-user devices for this guest.
    pub vhost_user_sockets: Vec<PathBuf>,
}

/// What a guest is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFacts {
    /// Process of QEMU.
    pub pid: i32,
    /// Version of QEMU.
    pub version: (u64, u64, u64),
    /// QEMU's machine type.
    pub machine: String,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Whether KVM runs it.
    pub kvm: bool,
    /// Its memory.
    pub memory: MemoryFacts,
    /// Its network cards on vhost-user.
    pub nics: Vec<NicFacts>,
    /// Its disks.
    pub disks: Vec<DiskFacts>,
}

/// The guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryFacts {
    /// Name of the object in QEMU.
    pub id: String,
    /// The file, as QEMU names it.
    pub path: PathBuf,
    /// The file, as the kernel knows it.
    pub file: FileIdentity,
    /// Bytes of the file.
    pub file_len: u64,
    /// Bytes of memory.
    pub bytes: u64,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicFacts {
    /// Name of the network backend in QEMU.
    pub netdev: String,
    /// The vhost-user socket, if it is one with a path.
    pub socket: Option<PathBuf>,
}

/// A disk or drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// Name in QEMU.
    pub device: String,
    /// The medium's file.
    pub file: String,
    /// Whether the guest cannot write it.
    pub read_only: bool,
}

/// Kinds of reasons for which a guest cannot be protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// Memory that is not a file which others can map.
    MemoryNotShared,
    /// More than one memory file.
    SeveralMemories,
    /// A device that takes memory from the guest behind the tracker's back.
    MemoryTakenAway,
    /// A disk whose writes would not be those of the epoch.
    WritableDisk,
    /// A disk whose data reaches guest memory past the page tables.
    DirectDisk,
    /// A device of the host's, whose state cannot be copied.
    HostDevice,
    /// A vhost-user or vhost device of somebody else's.
    ForeignVhost,
    /// A network card that bypasses Holdfast.
    ForeignNetwork,
    /// QEMU itself says that it cannot migrate.
    MigrationBlocked,
    /// The guest is in no state to begin.
    State,
}

/// One reason for which a guest cannot be protected, and its mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Kind of reason.
    pub kind: RefusalKind,
    /// What was found, and why it is in the way.
    pub found: String,
    /// What to do.
    pub mend: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; mend: {}", self.found, self.mend)
    }
}

/// Why a guest was not taken.
#[derive(Debug, Error)]
pub enum InspectError {
    /// The operator: the guest cannot be protected as it is.
    #[error("this guest cannot be protected:\n{}", list(.0))]
    Refused(Vec<Refusal>),
    /// QEMU could not be asked.
    #[error(transparent)]
    Qemu(#[from] QemuError),
}

impl From<QmpError> for InspectError {
    fn from(fault: QmpError) -> Self {
        Self::Qemu(fault.into())
    }
}

fn list(refusals: &[Refusal]) -> String {
    refusals.iter().map(|refusal| format!("- {refusal}")).collect::<Vec<_>>().join("\n")
}

/// A device type that cannot be protected, by the beginning of its name.
struct Unfit {
    prefix: &'static str,
    kind: RefusalKind,
    why: &'static str,
    mend: &'static str,
}

const UNFIT: [Unfit; 12] = {
    use RefusalKind::{ForeignVhost, HostDevice, SeveralMemories};
    const HOST: &str = "is a device of this host, whose state cannot be copied to another one";
    const OTHER: &str = "is served by a process that Holdfast does not stop with the epoch";
    const MEMORY: &str = "gives the guest a second piece of memory";
    [
        Unfit { prefix: "vfio-", kind: HostDevice, why: HOST, mend: "use a virtio device" },
        Unfit { prefix: "usb-host", kind: HostDevice, why: HOST, mend: "remove it" },
        Unfit { prefix: "pci-assign", kind: HostDevice, why: HOST, mend: "use a virtio device" },
        Unfit { prefix: "vhost-user-", kind: ForeignVhost, why: OTHER, mend: "remove it" },
        Unfit { prefix: "vhost-vsock", kind: ForeignVhost, why: OTHER, mend: "remove it" },
        Unfit { prefix: "vhost-scsi", kind: ForeignVhost, why: OTHER, mend: "remove it" },
        Unfit { prefix: "vhost-vdpa", kind: ForeignVhost, why: OTHER, mend: "remove it" },
        Unfit { prefix: "ivshmem", kind: SeveralMemories, why: MEMORY, mend: "remove it" },
        Unfit {
            prefix: "pc-dimm",
            kind: SeveralMemories,
            why: MEMORY,
            mend: "give all memory at start (-m)",
        },
        Unfit { prefix: "nvdimm", kind: SeveralMemories, why: MEMORY, mend: "remove it" },
        Unfit {
            prefix: "virtio-mem",
            kind: SeveralMemories,
            why: MEMORY,
            mend: "give all memory at start (-m)",
        },
        Unfit { prefix: "virtio-pmem", kind: SeveralMemories, why: MEMORY, mend: "remove it" },
    ]
};

const MEMORY_MEND: &str = "start QEMU with \
    -object memory-backend-file,id=mem,size=<size>,mem-path=/dev/shm/<name>,share=on -machine memory-backend=mem";

impl Qemu {
    /// Looks at the guest; changes nothing.
    ///
    /// # Errors
    /// [`InspectError::Refused`] with every reason for which it cannot be protected.
    pub fn inspect(&mut self, settings: &InspectSettings) -> Result<GuestFacts, InspectError> {
        let mut refusals = Vec::new();
        self.inspect_state(&mut refusals)?;
        self.inspect_devices(&mut refusals)?;
        let memory = self.inspect_memory(&mut refusals)?;
        let nics = self.inspect_network(settings, &mut refusals)?;
        let disks = self.inspect_disks(settings, &mut refusals)?;
        let Some(memory) = memory.filter(|_| refusals.is_empty()) else {
            return Err(InspectError::Refused(refusals));
        };
        let machine = self.ask("qom-get", json!({ "path": "/machine", "property": "type" }))?;
        let vcpus = self.ask("query-cpus-fast", Value::Null)?;
        let kvm = self.ask("query-kvm", Value::Null)?;
        Ok(GuestFacts {
            pid: self.pid,
            version: self.version,
            machine: text(&machine).trim_end_matches("-machine").to_owned(),
            vcpus: vcpus.as_array().map_or(0, Vec::len),
            kvm: kvm["enabled"] == true,
            memory,
            nics,
            disks,
        })
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.qmp.execute(command, arguments)
    }

    fn inspect_state(&mut self, refusals: &mut Vec<Refusal>) -> Result<(), QmpError> {
        let status = self.ask("query-status", Value::Null)?;
        let status = text(&status["status"]);
        let usable = ["running", "paused", "prelaunch", "postmigrate", "finish-migrate", "suspended"];
        if !usable.contains(&status) {
            refusals.push(Refusal {
                kind: RefusalKind::State,
                found: format!("the guest is in state {status:?}"),
                mend: "wait until it runs, or start it anew".to_owned(),
            });
        }
        let migration = self.ask("query-migrate", Value::Null)?;
        if matches!(text(&migration["status"]), "active" | "setup" | "device" | "postcopy-active") {
            refusals.push(Refusal {
                kind: RefusalKind::State,
                found: "somebody else migrates the guest".to_owned(),
                mend: "wait for the end of the migration".to_owned(),
            });
        }
        for reason in migration["blocked-reasons"].as_array().into_iter().flatten() {
            refusals.push(Refusal {
                kind: RefusalKind::MigrationBlocked,
                found: format!("QEMU cannot save this guest: {}", text(reason)),
                mend: "remove the device or option that QEMU names".to_owned(),
            });
        }
        Ok(())
    }

    fn inspect_devices(&mut self, refusals: &mut Vec<Refusal>) -> Result<(), QmpError> {
        for container in ["/machine/peripheral", "/machine/peripheral-anon"] {
            for (name, kind) in self.children(container)? {
                if let Some(unfit) = UNFIT.iter().find(|unfit| kind.starts_with(unfit.prefix)) {
                    refusals.push(Refusal {
                        kind: unfit.kind,
                        found: format!("the guest's device {kind} ({name}) {}", unfit.why),
                        mend: unfit.mend.to_owned(),
                    });
                }
                if kind.starts_with("virtio-balloon") && self.reports_free_pages(container, &name)? {
                    refusals.push(Refusal {
                        kind: RefusalKind::MemoryTakenAway,
                        found: format!(
                            "the guest's device {kind} ({name}) reports free pages, which QEMU then takes away"
                        ),
                        mend: "start QEMU with free-page-reporting=off for it".to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    fn reports_free_pages(&mut self, container: &str, name: &str) -> Result<bool, QmpError> {
        let path = format!("{container}/{name}");
        let property = json!({ "path": path, "property": "free-page-reporting" });
        match self.ask("qom-get", property) {
            Ok(value) => Ok(value == true),
            // A flavour of the device that has no such property.
            Err(QmpError::Refused { .. }) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Names and types of the objects in a container of QEMU's object tree.
    pub(super) fn children(&mut self, container: &str) -> Result<Vec<(String, String)>, QmpError> {
        let listed = self.ask("qom-list", json!({ "path": container }))?;
        let children = listed.as_array().into_iter().flatten().filter_map(|entry| {
            let kind = text(&entry["type"]).strip_prefix("child<")?.strip_suffix('>')?;
            Some((text(&entry["name"]).to_owned(), kind.to_owned()))
        });
        Ok(children.collect())
    }

    fn inspect_memory(&mut self, refusals: &mut Vec<Refusal>) -> Result<Option<MemoryFacts>, QmpError> {
        let backends = self.ask("query-memdev", Value::Null)?;
        let backends = backends.as_array().cloned().unwrap_or_default();
        let [backend] = backends.as_slice() else {
            let (kind, found) = if backends.is_empty() {
                (RefusalKind::MemoryNotShared, "the guest's memory is QEMU's own".to_owned())
            } else {
                let found = format!("the guest's memory is in {} pieces", backends.len());
                (RefusalKind::SeveralMemories, found)
            };
            refusals.push(Refusal { kind, found, mend: MEMORY_MEND.to_owned() });
            return Ok(None);
        };
        let id = text(&backend["id"]).to_owned();
        let bytes = backend["size"].as_u64().unwrap_or(0);
        let kinds = self.children("/objects")?;
        let kind = kinds.iter().find(|(name, _)| *name == id).map_or("", |(_, kind)| kind.as_str());
        let mut refuse = |found: String| {
            let mend = MEMORY_MEND.to_owned();
            refusals.push(Refusal { kind: RefusalKind::MemoryNotShared, found, mend });
            Ok(None)
        };
        if kind != "memory-backend-file" {
            let kind = if kind.is_empty() { "memory of its own" } else { kind };
            return refuse(format!("the guest's memory {id:?} is {kind}, not a file that others can map"));
        }
        if backend["share"] != true {
            return refuse(format!("the guest's memory {id:?} is not shared: writes do not reach its file"));
        }
        let property = json!({ "path": format!("/objects/{id}"), "property": "mem-path" });
        let path = self.ask("qom-get", property)?;
        match locate(self.pid, Path::new(text(&path)), bytes) {
            Ok((file, file_len)) => {
                Ok(Some(MemoryFacts { id, path: PathBuf::from(text(&path)), file, file_len, bytes }))
            }
            Err(found) => refuse(found),
        }
    }

    fn inspect_network(
        &mut self,
        settings: &InspectSettings,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Vec<NicFacts>, QmpError> {
        let shown = self.ask("human-monitor-command", json!({ "command-line": "info network" }))?;
        let mut nics: Vec<NicFacts> = Vec::new();
        for backend in backends_in(text(&shown)) {
            // One line for each queue.
            if nics.iter().any(|nic| nic.netdev == backend.name) {
                continue;
            }
            if backend.kind != "vhost-user" {
                refusals.push(Refusal {
                    kind: RefusalKind::ForeignNetwork,
                    found: format!(
                        "the guest's network {} is of type {}: what it sends does not pass through Holdfast",
                        backend.name, backend.kind
                    ),
                    mend: "put this network card on a vhost-user socket of Holdfast's, or remove it"
                        .to_owned(),
                });
                continue;
            }
            let socket = self.chardev_path(backend.chardev)?;
            let ours = socket.as_deref().is_some_and(|socket| {
                settings.vhost_user_sockets.iter().any(|own| same_socket(self.pid, own, socket))
            });
            if !ours {
                let at = socket.as_deref().map_or("no path".to_owned(), |path| path.display().to_string());
                refusals.push(Refusal {
                    kind: RefusalKind::ForeignVhost,
                    found: format!(
                        "the guest's network {} is on the vhost-user socket {at}, not one of Holdfast's for this VM",
                        backend.name
                    ),
                    mend: "name the socket in a [[vm.nic]] of this VM, or remove the card; or name this VM's own QEMU as qmp"
                        .to_owned(),
                });
            }
            nics.push(NicFacts { netdev: backend.name.to_owned(), socket });
        }
        Ok(nics)
    }

    /// Types of the network's backends, whether a card uses them or not, one for each, with the number of its
    /// queues where it has several.
    pub(super) fn network_kinds(&mut self) -> Result<Vec<String>, QmpError> {
        let shown = self.ask("human-monitor-command", json!({ "command-line": "info network" }))?;
        let lines = text(&shown).lines().map(|line| line.trim_start().trim_start_matches('\\').trim());
        let mut kinds: Vec<(&str, &str)> = lines
            .filter_map(|line| {
                let (name, details) = line.split_once(": index=")?;
                Some((details.split(',').find_map(|part| part.strip_prefix("type="))?, name))
            })
            .filter(|(kind, _)| !matches!(*kind, "nic" | "hubport"))
            .collect();
        kinds.sort_unstable();
        // One line for each queue.
        let backends = kinds.chunk_by(|one, other| one == other);
        Ok(backends.map(|lines| kind_of_queues(lines[0].0, lines.len())).collect())
    }

    /// Path of a character device's Unix socket.
    fn chardev_path(&mut self, label: &str) -> Result<Option<PathBuf>, QmpError> {
        let property = json!({ "path": format!("/chardevs/{label}"), "property": "addr" });
        match self.ask("qom-get", property) {
            Ok(address) if address["type"] == "unix" => Ok(Some(PathBuf::from(text(&address["path"])))),
            Ok(_) | Err(QmpError::Refused { .. }) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    fn inspect_disks(
        &mut self,
        settings: &InspectSettings,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Vec<DiskFacts>, QmpError> {
        let blocks = self.ask("query-block", Value::Null)?;
        let mut disks = Vec::new();
        for block in blocks.as_array().into_iter().flatten() {
            let Some(inserted) = block.get("inserted") else { continue };
            let name = [&block["device"], &block["qdev"]].into_iter().map(text).find(|name| !name.is_empty());
            let disk = DiskFacts {
                device: name.unwrap_or("without a name").to_owned(),
                file: text(&inserted["file"]).to_owned(),
                read_only: inserted["ro"] == true,
            };
            if !disk.read_only && !settings.accept_unreplicated_disks {
                refusals.push(Refusal {
                    kind: RefusalKind::WritableDisk,
                    found: format!(
                        "the guest can write to disk {} ({}): after a failover it would not match the memory",
                        disk.device, disk.file
                    ),
                    mend: "make it read-only (readonly=on), or set accept_unreplicated_disks = true for this VM \
                           and answer for the disk yourself"
                        .to_owned(),
                });
            }
            // The kernel puts what it reads there into guest memory by DMA, which no page table shows (CK-2).
            if inserted["cache"]["direct"] == true {
                refusals.push(Refusal {
                    kind: RefusalKind::DirectDisk,
                    found: format!(
                        "disk {} ({}) is read by direct I/O, whose writes to the guest's memory cannot be seen",
                        disk.device, disk.file
                    ),
                    mend: "give it the host's page cache: cache.direct=off (cache=writeback, and aio=threads or \
                           io_uring)"
                        .to_owned(),
                });
            }
            disks.push(disk);
        }
        Ok(disks)
    }
}

/// A network backend as `info network` shows it.
#[derive(Debug, PartialEq, Eq)]
struct Backend<'a> {
    name: &'a str,
    kind: &'a str,
    chardev: &'a str,
}

/// The backends that are connected to a card or hub: ` \ net0: index=0,type=vhost-user,vhost-user0 to chr0`.
fn backends_in(shown: &str) -> impl Iterator<Item = Backend<'_>> {
    shown.lines().filter_map(|line| {
        let connected = line.trim_start().strip_prefix('\\')?.trim();
        let (names, details) = connected.split_once(": index=")?;
        let kind = details.split(',').find_map(|part| part.strip_prefix("type="))?;
        let chardev = details.rsplit_once(" to ").map_or("", |(_, label)| label.trim());
        let name = names.rsplit(": ").next()?;
        (!matches!(kind, "nic" | "hubport")).then_some(Backend { name, kind, chardev })
    })
}

/// The type of a network's backend, with the number of its queues where it has several.
fn kind_of_queues(kind: &str, queues: usize) -> String {
    if queues == 1 { kind.to_owned() } else { format!("{kind} of {queues} queues") }
}

/// Finds the memory's file: the mapping of the named file, or of a nameless one in the named directory.
fn locate(pid: i32, path: &Path, bytes: u64) -> Result<(FileIdentity, u64), String> {
    let fault = |error: &dyn fmt::Display| format!("the mappings of QEMU cannot be read: {error}");
    let mappings = mappings_of(pid).map_err(|error| fault(&error))?;
    let mut found = mappings.iter().filter(|mapping| {
        mapping.shared
            && mapping.file.ino != 0
            && (mapping.path() == path || mapping.path().starts_with(path))
    });
    let Some(first) = found.next() else {
        return Err(format!("QEMU does not map the file of the guest's memory, {}", path.display()));
    };
    if let Some(other) = found.find(|mapping| mapping.file != first.file) {
        return Err(format!("{} may be any of {} and {}", path.display(), first.name, other.name));
    }
    let file = format!("/proc/{pid}/map_files/{:x}-{:x}", first.start, first.end);
    let meta = fs::metadata(&file).map_err(|error| fault(&error))?;
    let kind = statfs(file.as_str()).map_err(|error| fault(&error))?.filesystem_type();
    if kind != TMPFS_MAGIC && kind != HUGETLBFS_MAGIC {
        return Err(format!("the guest's memory {} is on a disk, not on tmpfs or hugetlbfs", path.display()));
    }
    if meta.len() < bytes {
        return Err(format!("the guest's memory {} is cut short", path.display()));
    }
    Ok((first.file, meta.len()))
}

/// Whether a path of ours and one of QEMU's name the same socket.
fn same_socket(pid: i32, own: &Path, of_qemu: &Path) -> bool {
    if own == of_qemu {
        return true;
    }
    // QEMU may have another root and another current directory; joining an absolute path replaces the latter.
    let absolute = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default().join(of_qemu);
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let theirs = root.join(absolute.strip_prefix("/").unwrap_or(&absolute));
    match (fs::metadata(own), fs::metadata(theirs)) {
        (Ok(own), Ok(theirs)) => (own.dev(), own.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests;
