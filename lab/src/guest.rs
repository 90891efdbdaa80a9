//! Real guests: stock QEMU, a stock Debian kernel, the initramfs of [`crate::initramfs`].
//!
//! [`GuestSpec::arguments`] is the command line that a user would type; the standby's differs only in
//! its memory file, its sockets and `-incoming defer`.

use crate::artifacts::{Artifacts, ArtifactsError, Qemu};
use crate::initramfs::Part;
use crate::monitor::{Monitor, MonitorError};
use crate::netns::Namespace;
use crate::process::{Process, ProcessError, ProcessSpec};
use crate::scratch::Scratch;
use crate::topology::{CLIENT_IP, guest_ip, guest_ip6, guest_mac};
use holdfast_guest_init::protocol::READY_LINE;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// A monitor that does not answer yet is asked again after this.
const LOOK: Duration = Duration::from_millis(20);

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// QEMU's own translation: works everywhere.
    Tcg,
    /// The kernel's.
    Kvm,
}

/// How a network card is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A vhost-user device listens on the socket; QEMU connects, and connects again.
    VhostUser {
        /// The socket.
        socket: PathBuf,
    },
    /// QEMU listens on the socket.
    VhostUserServer {
        /// The socket.
        socket: PathBuf,
    },
    /// A TAP interface with offloads: a guest without Holdfast.
    Tap {
        /// The interface, in the guest's namespace.
        interface: String,
    },
}

/// A virtio network card.
#[derive(Debug, Clone)]
pub struct Nic {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The addresses that the guest gives it.
    pub addresses: Vec<(IpAddr, u8)>,
    /// How it is attached.
    pub backend: Backend,
    /// Whether its rings may be packed.
    pub packed: bool,
    /// Its pairs of queues.
    pub queue_pairs: u16,
    /// For each pair the processor of the polling core that has it; empty: all are with the wire.
    pub pair_cores: Vec<u32>,
}

impl Nic {
    /// The `n`-th card of the laboratory, with its usual addresses.
    pub fn numbered(n: u8, backend: Backend) -> Self {
        Self {
            mac: guest_mac(n),
            addresses: vec![(guest_ip(n).into(), 24), (guest_ip6(n).into(), 64)],
            backend,
            packed: false,
            queue_pairs: 1,
            pair_cores: Vec::new(),
        }
    }
}

/// Everything that makes a guest.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// Its name; files in `folder` are named after it.
    pub name: String,
    /// The program.
    pub qemu: Qemu,
    /// The kernel's image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// What is in it besides init and modules.
    parts: Vec<Part>,
    artifacts: Artifacts,
    /// The file that backs its memory, on tmpfs or hugetlbfs.
    pub memory_file: PathBuf,
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// `pc` or `q35`.
    pub machine: String,
    /// What executes it.
    pub accelerator: Accelerator,
    /// QEMU's model of the processor. The default has no fast string instructions (ERMS), which
    /// translation makes slow: with `max` the guest's network has half the speed.
    pub cpu: String,
    /// Network cards, in order: eth0, eth1, ...
    pub nics: Vec<Nic>,
    /// MTU that the guest sets.
    pub mtu: Option<u16>,
    /// Settings below `/proc/sys` of the guest.
    pub sysctls: Vec<(String, String)>,
    /// Further words on the kernel's command line.
    pub kernel_words: Vec<String>,
    /// Further arguments of QEMU.
    pub arguments: Vec<String>,
    /// Whether it waits for the state of another.
    pub incoming: bool,
    /// Folder for its sockets and logs.
    pub folder: PathBuf,
}

impl GuestSpec {
    /// A guest of 256 MiB with one virtual CPU and no network card; makes its initramfs in `scratch`.
    pub fn new(
        name: &str,
        qemu: &Qemu,
        artifacts: &Artifacts,
        scratch: &Scratch,
    ) -> Result<Self, ArtifactsError> {
        let initramfs = scratch.file("initramfs");
        if !initramfs.exists() {
            artifacts.write_initramfs(&initramfs, &[])?;
        }
        Ok(Self {
            name: name.into(),
            qemu: qemu.clone(),
            kernel: artifacts.kernel().into(),
            initramfs,
            parts: Vec::new(),
            artifacts: artifacts.clone(),
            memory_file: scratch.memory(&format!("{name}.ram")),
            memory_mib: 256,
            vcpus: 1,
            machine: "pc".into(),
            accelerator: Accelerator::Tcg,
            cpu: "qemu64,+rdrand".into(),
            nics: Vec::new(),
            mtu: None,
            sysctls: Vec::new(),
            kernel_words: Vec::new(),
            arguments: Vec::new(),
            incoming: false,
            folder: scratch.files().into(),
        })
    }

    /// Puts a program of the host into the initramfs at `inside`, and has init start it with these arguments.
    pub fn start_program(
        &mut self,
        program: &Path,
        inside: &str,
        arguments: &[&str],
    ) -> Result<(), ArtifactsError> {
        self.start_at_boot(inside, arguments);
        self.add_program(program, inside)
    }

    /// Has init start what is at `inside`, with arguments that have no comma and no space.
    pub fn start_at_boot(&mut self, inside: &str, arguments: &[&str]) {
        let words: Vec<&str> = [inside].into_iter().chain(arguments.iter().copied()).collect();
        self.kernel_words.push(format!("holdfast.exec={}", words.join(",")));
    }

    /// Puts a program of the host into the initramfs at `inside`.
    pub fn add_program(&mut self, program: &Path, inside: &str) -> Result<(), ArtifactsError> {
        self.add([Part::program(program, inside)])
    }

    /// Puts parts into the initramfs; what is there already stays.
    pub fn add(&mut self, parts: impl IntoIterator<Item = Part>) -> Result<(), ArtifactsError> {
        for part in parts {
            if !self.parts.iter().any(|known| known.inside() == part.inside()) {
                self.parts.push(part);
            }
        }
        self.own_initramfs()
    }

    /// Where its parts were found.
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// Boots Linux 6.12 instead.
    pub fn newer_kernel(&mut self) -> Result<(), ArtifactsError> {
        self.artifacts = self.artifacts.newer_kernel()?;
        self.kernel = self.artifacts.kernel().into();
        // An interrupt at a CMPXCHG16B finds garbage in the flags under QEMU 7.2's translation, and Linux dies of a
        // double fault: EFLAGS 41334242 in its allocator, where 6.12 has that instruction. It does without.
        if self.qemu.version < (8, 0) && self.accelerator == Accelerator::Tcg {
            self.cpu.push_str(",-cx16");
        }
        self.own_initramfs()
    }

    fn own_initramfs(&mut self) -> Result<(), ArtifactsError> {
        self.initramfs = self.folder.join(format!("{}.initramfs", self.name));
        self.artifacts.write_initramfs(&self.initramfs, &self.parts)
    }

    /// Adds a network card.
    #[must_use]
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// The same guest as one that waits for this one's state: other name (so other sockets and logs),
    /// other memory file, and the backends given for its cards, in order.
    #[must_use]
    pub fn standby(&self, name: &str, memory_file: &Path, backends: Vec<Backend>) -> Self {
        let mut standby = self.clone();
        standby.name = name.into();
        standby.memory_file = memory_file.into();
        standby.incoming = true;
        for (nic, backend) in standby.nics.iter_mut().zip(backends) {
            nic.backend = backend;
        }
        standby
    }

    /// The monitor's socket for Holdfast.
    pub fn qmp(&self) -> PathBuf {
        self.folder.join(format!("{}.qmp", self.name))
    }

    /// A second monitor, for the laboratory.
    pub fn lab_qmp(&self) -> PathBuf {
        self.folder.join(format!("{}.lab.qmp", self.name))
    }

    /// What the guest says on its console.
    pub fn console(&self) -> PathBuf {
        self.folder.join(format!("{}.console", self.name))
    }

    /// What QEMU itself says.
    pub fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.qemu.log", self.name))
    }

    /// Program and arguments.
    pub fn command(&self) -> Vec<String> {
        let mut all = vec![self.qemu.program.display().to_string()];
        all.extend(self.arguments());
        all
    }

    /// QEMU's arguments.
    pub fn arguments(&self) -> Vec<String> {
        let accelerator = match self.accelerator {
            Accelerator::Tcg => "tcg,thread=multi",
            Accelerator::Kvm => "kvm",
        };
        let mut args = Arguments::default();
        args.one("-nodefaults").one("-no-user-config").one("-no-reboot");
        args.two("-display", "none");
        args.two("-name", format!("{},debug-threads=on", self.name));
        args.two("-machine", format!("{},memory-backend=ram0", self.machine));
        args.two("-accel", accelerator).two("-cpu", &*self.cpu).two("-smp", self.vcpus.to_string());
        args.two("-m", format!("{}M", self.memory_mib));
        args.two(
            "-object",
            format!(
                "memory-backend-file,id=ram0,size={}M,share=on,mem-path={}",
                self.memory_mib,
                self.memory_file.display()
            ),
        );
        args.two("-kernel", self.kernel.display().to_string());
        args.two("-initrd", self.initramfs.display().to_string());
        args.two("-append", self.kernel_command_line());
        args.two("-chardev", format!("file,id=console0,append=on,path={}", self.console().display()));
        args.two("-serial", "chardev:console0");
        for monitor in [self.qmp(), self.lab_qmp()] {
            args.two("-qmp", format!("unix:{},server=on,wait=off", monitor.display()));
        }
        for (number, nic) in self.nics.iter().enumerate() {
            self.add_nic(&mut args, number, nic);
        }
        if self.incoming {
            args.two("-incoming", "defer");
        }
        args.list.extend(self.arguments.iter().cloned());
        args.list
    }

    fn add_nic(&self, args: &mut Arguments, number: usize, nic: &Nic) {
        let (queues, several) = match nic.queue_pairs {
            1 => (String::new(), ""),
            pairs => (format!(",queues={pairs}"), ",mq=on"),
        };
        match &nic.backend {
            Backend::VhostUser { socket } => {
                // The older option is on its way out, the newer one too new for the oldest supported.
                let again = if self.qemu.version >= (9, 2) { "reconnect-ms=200" } else { "reconnect=1" };
                args.two("-chardev", format!("socket,id=vhost{number},path={},{again}", socket.display()));
                args.two("-netdev", format!("vhost-user,id=net{number},chardev=vhost{number}{queues}"));
            }
            Backend::VhostUserServer { socket } => {
                let path = socket.display();
                args.two("-chardev", format!("socket,id=vhost{number},path={path},server=on,wait=off"));
                args.two("-netdev", format!("vhost-user,id=net{number},chardev=vhost{number}{queues}"));
            }
            Backend::Tap { interface } => {
                let tap = format!("tap,id=net{number},ifname={interface},script=no,downscript=no,vhost=off");
                args.two("-netdev", tap);
            }
        }
        // QEMU 7.2 under TCG crashes with MSI-X on a vhost-user card (irqfd not initialised).
        let old = self.qemu.version < (8, 0) && self.accelerator == Accelerator::Tcg;
        let vectors = if old { ",vectors=0" } else { "" };
        let packed = if nic.packed { ",packed=on" } else { "" };
        let [a, b, c, d, e, f] = nic.mac;
        args.two(
            "-device",
            format!(
                "virtio-net-pci,id=nic{number},netdev=net{number},romfile={vectors}{packed}{several},\
                 mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
            ),
        );
    }

    fn kernel_command_line(&self) -> String {
        // Under translation on a busy machine the kernel may take the timer for broken, and stop.
        let mut words: Vec<String> =
            ["console=ttyS0", "quiet", "panic=-1", "net.ifnames=0", "no_timer_check"]
                .map(String::from)
                .to_vec();
        let addresses: Vec<String> = self
            .nics
            .iter()
            .enumerate()
            .flat_map(|(n, nic)| {
                nic.addresses.iter().map(move |(ip, prefix)| format!("eth{n},{ip}/{prefix}"))
            })
            .collect();
        if !addresses.is_empty() {
            words.push(format!("holdfast.ip={}", addresses.join(";")));
            words.push(format!("holdfast.gateway={CLIENT_IP}"));
        }
        if let Some(mtu) = self.mtu {
            words.push(format!("holdfast.mtu={mtu}"));
        }
        if !self.sysctls.is_empty() {
            let settings: Vec<String> =
                self.sysctls.iter().map(|(name, value)| format!("{name}={value}")).collect();
            words.push(format!("holdfast.sysctl={}", settings.join(";")));
        }
        words.extend(self.kernel_words.iter().cloned());
        words.join(" ")
    }

    /// Starts it in `namespace`.
    pub fn start(self, namespace: &Namespace) -> Result<Guest, ProcessError> {
        let process = ProcessSpec::new(&self.name, &self.qemu.program, self.log())
            .args(self.arguments())
            .namespace(namespace)
            .spawn()?;
        Ok(Guest { spec: self, process })
    }
}

#[derive(Default)]
struct Arguments {
    list: Vec<String>,
}

impl Arguments {
    fn one(&mut self, argument: &str) -> &mut Self {
        self.list.push(argument.into());
        self
    }

    fn two(&mut self, option: &str, value: impl Into<String>) -> &mut Self {
        self.list.push(option.into());
        self.list.push(value.into());
        self
    }
}

/// A running guest; ends with this value.
#[derive(Debug)]
pub struct Guest {
    /// What it was made from.
    pub spec: GuestSpec,
    /// QEMU.
    pub process: Process,
}

impl Guest {
    /// Waits until the guest's services listen, as its console says. Under translation on a busy
    /// machine a boot takes some seconds.
    pub fn wait_ready(&mut self, patience: Duration) -> Result<(), ProcessError> {
        self.process.wait_for_text(&self.spec.console(), READY_LINE, patience)
    }

    /// Waits until the laboratory's monitor answers, as it does before the guest runs; the one of a guest that
    /// waits for another's state says no more.
    pub fn wait_monitor(&mut self, patience: Duration) -> Result<(), MonitorError> {
        let until = Instant::now() + patience;
        loop {
            match self.monitor() {
                Err(_) if self.process.is_running() && Instant::now() < until => thread::sleep(LOOK),
                answer => return answer.map(drop),
            }
        }
    }

    /// The process id of QEMU.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The laboratory's own monitor.
    pub fn monitor(&self) -> Result<Monitor, MonitorError> {
        Monitor::connect(&self.spec.lab_qmp())
    }
}
