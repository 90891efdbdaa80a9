//! The data path: EAL, pools, wires, and the polling cores that run them.
//!
//! A wire and all NICs on it are one core's; pairs of a NIC's queues may be others', which carry them for it.

use crate::cli::Failure;
use crate::config::Config;
use crate::wire::{AnyWire, DpdkWire, KernelWire};
use arrayvec::ArrayVec;
use holdfast_dataplane::{Audit, Core, Handle, IdlePolicy};
use holdfast_dpdk::{BURST, Device, Eal, Pool, Port, PortConfig, RegisteredThread};
use holdfast_dpdk_config::{
    FreePages, IdlePolicy as Idle, MemifRole, MemoryPlan, Wire, WireDevice, WireKind,
};
use holdfast_hugepages_setup::{Root, huge_pages};
use holdfast_packet_socket::Interface;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread::JoinHandle;

/// Records that a frame audit has room for: 32 bytes each, in a sparse file.
const AUDIT_RECORDS: usize = 16 << 20;

/// The running data path.
pub(crate) struct Dataplane {
    cores: Vec<PollingCore>,
    pub(super) eal: Eal,
    wires: Vec<Place>,
    /// The wire that is the bypass's, until it is taken.
    bypass: Option<AnyWire>,
}

/// A polling core that runs.
struct PollingCore {
    handle: Handle,
    /// Its processor; none: where the system places it.
    processor: Option<u32>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Where a wire is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    name: String,
    /// Place of its core.
    pub(crate) core: usize,
    /// Its own place among the wires of that core.
    pub(crate) wire: usize,
    /// Payload of its frames in bytes.
    pub(crate) mtu: u16,
}

impl Dataplane {
    /// Starts DPDK, opens all wires, and sets the polling cores going.
    pub(crate) fn start(config: &Config) -> Result<Self, Failure> {
        let eal = start_eal(config)?;
        let count = config.cores.polling.len().max(1);
        let mut wires_of: Vec<Vec<AnyWire>> = (0..count).map(|_| Vec::new()).collect();
        let mut wires = Vec::new();
        let of_bypass = config.replication.as_ref().and_then(|replication| replication.bypass.as_ref());
        let mut bypass = None;
        for wire in &config.wires {
            let opened = open(eal, wire)?;
            if of_bypass.is_some_and(|of_bypass| of_bypass.wire == wire.name) {
                bypass = Some(opened);
                continue;
            }
            let core = config.cores.place(wire);
            let place =
                Place { name: wire.name.clone(), core, wire: wires_of[core].len(), mtu: opened.mtu() };
            wires.push(place);
            wires_of[core].push(opened);
        }
        let idle = match config.cores.idle {
            Idle::Poll => IdlePolicy::Poll,
            Idle::Adaptive => IdlePolicy::default(),
        };
        let mut audit = config
            .frame_audit
            .as_ref()
            .map(|path| {
                Audit::create(path, AUDIT_RECORDS).map_err(|fault| {
                    Failure::Usage(format!(
                        "host.frame_audit: {}: {fault}; mend: name a file that can be written",
                        path.display()
                    ))
                })
            })
            .transpose()?;
        let mut cores = Vec::new();
        for (number, wires) in wires_of.into_iter().enumerate() {
            // An audit is of the only core that has wires: the configuration was checked.
            let audit = if wires.is_empty() { None } else { audit.take() };
            let (core, handle) = Core::new(wires, idle, audit).map_err(Failure::failed)?;
            let processor = config.cores.polling.get(number).copied();
            let thread = std::thread::Builder::new()
                .name(format!("polling-{number}"))
                .spawn(move || poll(eal, core, processor))
                .map_err(Failure::failed)?;
            cores.push(PollingCore { handle, processor, thread: Mutex::new(Some(thread)) });
        }
        Ok(Self { cores, eal, wires, bypass })
    }

    /// The wire that is the bypass's, once.
    pub(super) fn take_bypass(&mut self) -> Option<AnyWire> {
        self.bypass.take()
    }

    /// Where the wire of this name is; the configuration was checked, so that it is there.
    pub(crate) fn wire(&self, name: &str) -> &Place {
        self.wires.iter().find(|wire| wire.name == name).expect("the configuration names only wires it has")
    }

    /// The handle of the core at that place.
    pub(crate) fn handle(&self, core: usize) -> &Handle {
        &self.cores[core].handle
    }

    /// The place of the core on that processor; the configuration was checked, so that it is there.
    pub(crate) fn core_on(&self, processor: u32) -> usize {
        let core = self.cores.iter().position(|core| core.processor == Some(processor));
        core.expect("the configuration names only processors that poll")
    }

    /// The processor of each core, and its handle.
    pub(crate) fn cores(&self) -> Vec<(Option<u32>, Handle)> {
        self.cores.iter().map(|core| (core.processor, core.handle.clone())).collect()
    }

    /// Ends the polling cores.
    pub(crate) fn stop(&self) {
        self.cores.iter().for_each(|core| core.handle.stop());
        for core in &self.cores {
            let thread = core.thread.lock().ok().and_then(|mut thread| thread.take());
            if thread.is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a polling core panicked");
            }
        }
    }
}

fn start_eal(config: &Config) -> Result<Eal, Failure> {
    let free: Vec<FreePages> = huge_pages(&Root::default())
        .iter()
        .map(|pages| FreePages { page_bytes: pages.page_bytes, free: pages.free })
        .collect();
    let plan = MemoryPlan::decide(config.dpdk.huge_pages, config.dpdk.memory_mib, &free)
        .map_err(|problem| Failure::HostLacks(problem.to_string()))?;
    if let MemoryPlan::Ordinary { for_want_of_huge_pages: true, .. } = plan {
        tracing::info!(
            "too few huge pages are free: packet buffers lie in ordinary memory; \
                        `holdfast check-host --apply` reserves some"
        );
    }
    Eal::init(&config.dpdk.eal_arguments(&plan, &config.wires))
        .map_err(|fault| Failure::HostLacks(fault.to_string()))
}

pub(super) fn open(eal: Eal, wire: &Wire) -> Result<AnyWire, Failure> {
    let fault = |what: String| Failure::Failed(format!("wire {}: {what}", wire.name));
    let pool = Pool::new(eal, wire.frames, wire.frame_bytes()).map_err(|error| fault(error.to_string()))?;
    let device = match wire.device() {
        WireDevice::Kernel { interface } => return open_kernel(&interface, wire, pool),
        WireDevice::Virtual { name, arguments } => Device::Virtual { name, arguments },
        WireDevice::Pci { address } => Device::Pci { address },
    };
    match &wire.kind {
        WireKind::AfPacket { iface } => check_jumbo(iface, wire)?,
        WireKind::Memif { role: MemifRole::Client, socket, .. } => check_server(socket, wire)?,
        _ => {}
    }
    let config = PortConfig { mtu: Some(wire.mtu), ..PortConfig::default() };
    let (port, mut rx, mut tx) =
        Port::open(eal, &device, pool, &config).map_err(|error| fault(error.to_string()))?;
    let (Some(rx), Some(tx)) = (rx.pop(), tx.pop()) else {
        return Err(fault("the port has no queues".into()));
    };
    let mac = port.mac().map_err(|error| fault(error.to_string()))?;
    let outgoing = VecDeque::with_capacity(BURST);
    Ok(Box::new(DpdkWire { rx, tx, pool, mtu: wire.mtu, mac, spare: ArrayVec::new(), outgoing }))
}

/// A memif opens at its client's end once its server is there. The server's socket is of another type than the one that
/// asks here, which is another error than that nobody listens.
fn check_server(socket: &str, wire: &Wire) -> Result<(), Failure> {
    match UnixStream::connect(socket).map_err(|fault| fault.kind()) {
        Err(ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Err(Failure::Failed(format!(
            "wire {}: nobody serves the memif at {socket}\n  \
             mend: start the Holdfast whose wire is its server first, and name the same socket on both",
            wire.name
        ))),
        _ => Ok(()),
    }
}

/// Up to this many bytes DPDK's packet sockets set the MTU of their interface themselves.
const MTU_SET_BY_DPDK: u16 = 1500;

fn check_jumbo(interface: &str, wire: &Wire) -> Result<(), Failure> {
    if wire.mtu <= MTU_SET_BY_DPDK {
        return Ok(());
    }
    open_interface(interface, wire).map(drop)
}

/// An interface that carries what its wire is to carry.
fn open_interface(interface: &str, wire: &Wire) -> Result<Interface, Failure> {
    let fault = |what: String| Failure::Failed(format!("wire {}: {what}", wire.name));
    let opened = Interface::open(interface).map_err(|error| fault(error.to_string()))?;
    if opened.mtu < wire.mtu {
        return Err(fault(format!(
            "interface {interface} carries packets of {} bytes, fewer than the mtu {} of this wire\n  \
             mend: `ip link set {interface} mtu {}`, or lower mtu in this section",
            opened.mtu, wire.mtu, wire.mtu
        )));
    }
    Ok(opened)
}

fn open_kernel(interface: &str, wire: &Wire, pool: Pool) -> Result<AnyWire, Failure> {
    let opened = open_interface(interface, wire)?;
    let name = format!("wire {}: interface {interface}", wire.name);
    Ok(Box::new(KernelWire::new(name, opened, pool, wire.mtu)))
}

/// The thread of a polling core.
pub(crate) fn poll(eal: Eal, mut core: Core<AnyWire>, cpu: Option<u32>) {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        let pinned = set.set(cpu as usize).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        if let Err(fault) = pinned {
            tracing::error!("the polling core cannot run on processor {cpu}: {fault}");
        }
    }
    let registered = RegisteredThread::new(eal);
    if let Err(fault) = &registered {
        tracing::warn!("the polling core has no cache of its own: {fault}");
    }
    core.run();
}
