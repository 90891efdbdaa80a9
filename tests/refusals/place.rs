//! Where a test takes place: two hosts and a client, keys, an arbiter, and guests with their settings.

use crate::daemon::{Daemon, run};
use crate::settings::{BackupPart, HostFile, VmPart};
use holdfast_lab::artifacts::{Artifacts, Qemu};
use holdfast_lab::client::{Amount, Client, Direction, Session, SessionSpec};
use holdfast_lab::guest::{Backend, Guest, GuestSpec, Nic};
use holdfast_lab::process::ProcessSpec;
use holdfast_lab::requirements::{Need, can_run};
use holdfast_lab::scratch::Scratch;
use holdfast_lab::topology::{Host, Topology, TopologyOptions, WIRE, guest_ip};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory of the guests: little, as there are many.
pub(crate) const MEMORY_MIB: u32 = 128;

/// Two hosts and a client.
pub(crate) struct Place {
    // The order of dropping: first what runs in the namespaces.
    pub(crate) topology: Topology,
    pub(crate) scratch: Scratch,
    artifacts: Artifacts,
    nics: u8,
}

/// A guest to be started, and its part of both hosts' files.
pub(crate) struct Plan {
    pub(crate) spec: GuestSpec,
    /// QEMU's arguments; those of the standby are in host B's file.
    pub(crate) arguments: Vec<String>,
    pub(crate) on_a: VmPart,
    pub(crate) on_b: VmPart,
    /// Number of its first NIC, which names its address.
    pub(crate) nic: u8,
}

impl Plan {
    /// Lets QEMU, not the file, name another vhost-user socket.
    pub(crate) fn set_socket(&mut self, socket: &Path) {
        self.spec.nics[0].backend = Backend::VhostUser { socket: socket.to_owned() };
        self.arguments = self.spec.arguments();
    }

    /// Replaces the memory of the guest, not of its standby; `None`: QEMU's own, by `-m` alone.
    pub(crate) fn set_memory(&mut self, object: Option<String>) {
        let at = self.arguments.iter().position(|word| word == "-object").expect("its memory");
        match object {
            Some(object) => self.arguments[at + 1] = object,
            None => {
                self.arguments.drain(at..at + 2);
                let machine = self.arguments.iter_mut().find(|word| word.contains(",memory-backend=ram0"));
                let machine = machine.expect("the machine's memory");
                *machine = machine.replace(",memory-backend=ram0", "");
            }
        }
    }
}

impl Place {
    /// None where the machine lacks something, which is then said.
    pub(crate) fn new(name: &str) -> Option<Self> {
        if !can_run(&[Need::Root, Need::Guest]) {
            return None;
        }
        let scratch = Scratch::new(name).expect("folders");
        let topology = Topology::create(&TopologyOptions::default()).expect("namespaces");
        let artifacts = Artifacts::locate().expect("the guest's parts");
        let place = Self { topology, scratch, artifacts, nics: 0 };
        place.make_keys("keys-a", "keys-b");
        fs::create_dir(place.scratch.file("arbiter")).expect("a folder");
        Some(place)
    }

    /// Makes the keys of a pair.
    pub(crate) fn make_keys(&self, a: &str, b: &str) {
        let folder = |name| self.scratch.file(name).display().to_string();
        run(None, None, &["keys", &folder(a), &folder(b)]).expect("keys", 0, &[]);
    }

    /// QEMU 10.0, or the system's where that is not there.
    pub(crate) fn newer_qemu(&self) -> Qemu {
        self.artifacts.qemu_10().or_else(|_| Qemu::system()).expect("a QEMU")
    }

    /// A guest with one NIC, and what sound files say of it.
    pub(crate) fn plan(&mut self, name: &str) -> Plan {
        self.plan_with(name, Qemu::system().expect("the system's QEMU"), |_| {})
    }

    /// The same with another QEMU, or more in the machine.
    pub(crate) fn plan_with(&mut self, name: &str, qemu: Qemu, shape: impl FnOnce(&mut GuestSpec)) -> Plan {
        self.nics += 1;
        let nic = self.nics;
        let socket = |host: &str| self.scratch.file(&format!("{host}.nic{nic}"));
        let mut spec = GuestSpec::new(name, &qemu, &self.artifacts, &self.scratch).expect("an initramfs");
        spec.memory_mib = MEMORY_MIB;
        let mut spec = spec.nic(Nic::numbered(nic, Backend::VhostUser { socket: socket("a") }));
        shape(&mut spec);
        let part = |host: &str, role, backup| VmPart {
            name: name.into(),
            role,
            mode: "commit",
            // Each host has its own monitors, though both are on one filesystem here.
            qmp: if host == "a" { spec.qmp() } else { self.scratch.file(&format!("{name}.b.qmp")) },
            sockets: vec![socket(host)],
            lines: String::new(),
            nic_lines: String::new(),
            backup,
        };
        let image = self.scratch.memory(&format!("{name}.image"));
        let backend = Backend::VhostUser { socket: socket("b") };
        let standby = spec.standby(&format!("{name}-standby"), &image, vec![backend]);
        let backup = BackupPart {
            image,
            memory: format!("{}M", spec.memory_mib),
            qmp: standby.qmp(),
            commit_log: self.scratch.file(&format!("{name}.commits")),
            command: standby.command(),
        };
        let arguments = spec.arguments();
        Plan {
            on_a: part("a", "primary", None),
            on_b: part("b", "backup", Some(backup)),
            spec,
            arguments,
            nic,
        }
    }

    /// Starts the guest on host A.
    pub(crate) fn boot(&self, plan: &Plan) -> Guest {
        let process = ProcessSpec::new(&plan.spec.name, &plan.spec.qemu.program, plan.spec.log())
            .args(&plan.arguments)
            .namespace(&self.topology.a.namespace)
            .spawn()
            .expect("QEMU starts");
        Guest { spec: plan.spec.clone(), process }
    }

    /// The files of host A and host B.
    pub(crate) fn files(&self, plans: &[&Plan]) -> (HostFile, HostFile) {
        let (a, b) = (self.topology.a.replication_ip, self.topology.b.replication_ip);
        let file = |host: &str, own, peer, vms| HostFile {
            name: format!("host-{host}"),
            control: self.scratch.file(&format!("{host}.control")),
            file_prefix: format!("refusals-{host}-{}", std::process::id()),
            iface: WIRE.into(),
            listen: format!("{own}:7400"),
            peer: format!("{peer}:7400"),
            keys: self.scratch.file(&format!("keys-{host}")),
            arbiter: self.scratch.file("arbiter"),
            vms,
            head: String::new(),
            tail: String::new(),
        };
        (
            file("a", a, b, plans.iter().map(|plan| plan.on_a.clone()).collect()),
            file("b", b, a, plans.iter().map(|plan| plan.on_b.clone()).collect()),
        )
    }

    /// Writes a file and runs the program on it, on that host.
    pub(crate) fn launch(&self, host: &Host, file: &HostFile, mounts: Option<&str>) -> Daemon {
        let path = self.scratch.file(&format!("{}.toml", file.file_prefix));
        fs::write(&path, file.to_string()).expect("written");
        // One each: what an earlier one said is not this one's word.
        static STARTS: AtomicUsize = AtomicUsize::new(0);
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        let log = self.scratch.file(&format!("{}.{start}.log", file.name));
        Daemon::start(&file.name, &host.namespace, &path, &file.control, &log, mounts)
    }

    /// The same, and waits until it answers.
    pub(crate) fn start(&self, host: &Host, file: &HostFile) -> Daemon {
        self.launch(host, file, None).ready()
    }

    /// Starts a download of the seeded stream from the guest with the `nic`-th card.
    pub(crate) fn stream(&self, nic: u8, amount: Amount) -> Session {
        let spec = SessionSpec::new(Direction::Download, guest_ip(nic), u64::from(nic), amount);
        Client::new(&self.topology.client).start(spec).expect("a session with the guest")
    }

    /// A stream each way with that guest, some megabytes of each: all bytes are right.
    pub(crate) fn exchange(&self, nic: u8) {
        for direction in [Direction::Download, Direction::Upload] {
            let spec = SessionSpec::new(direction, guest_ip(nic), u64::from(nic), Amount::Bytes(2 << 20));
            let report = Client::new(&self.topology.client).run(spec).expect("a session with the guest");
            assert!(report.exact(), "{direction:?} of card {nic}: {report:?}");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("logs are kept in {}", self.scratch.keep().display());
        }
    }
}
