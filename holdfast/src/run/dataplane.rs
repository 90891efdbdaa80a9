//! The data path: EAL, pools, wires, and the polling core that runs them.

use crate::cli::Failure;
use crate::config::Config;
use crate::wire::{AnyWire, DpdkWire, KernelWire};
use arrayvec::ArrayVec;
use holdfast_dataplane::{Audit, Core, Handle, IdlePolicy};
use holdfast_dpdk::{BURST, Device, Eal, Pool, Port, PortConfig, RegisteredThread};
use holdfast_dpdk_config::{FreePages, IdlePolicy as Idle, MemoryPlan, Wire, WireDevice};
use holdfast_hugepages_setup::{Root, huge_pages};
use holdfast_packet_socket::Interface;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::thread::JoinHandle;

/// Records that a frame audit has room for: 32 bytes each, in a sparse file.
const AUDIT_RECORDS: usize = 16 << 20;

/// The running data path.
pub(crate) struct Dataplane {
    pub(crate) handle: Handle,
    pub(super) eal: Eal,
    /// Name and MTU of each wire of the polling core.
    wires: Vec<(String, u16)>,
    /// The wire that is the bypass's, until it is taken.
    bypass: Option<AnyWire>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Dataplane {
    /// Starts DPDK, opens all wires, and sets the polling core going.
    pub(crate) fn start(config: &Config) -> Result<Self, Failure> {
        let eal = start_eal(config)?;
        let mut wires = Vec::new();
        let mut named = Vec::new();
        let of_bypass = config.replication.as_ref().and_then(|replication| replication.bypass.as_ref());
        let mut bypass = None;
        for wire in &config.wires {
            let opened = open(eal, wire)?;
            if of_bypass.is_some_and(|of_bypass| of_bypass.wire == wire.name) {
                bypass = Some(opened);
                continue;
            }
            named.push((wire.name.clone(), opened.mtu()));
            wires.push(opened);
        }
        let idle = match config.cores.idle {
            Idle::Poll => IdlePolicy::Poll,
            Idle::Adaptive => IdlePolicy::default(),
        };
        let audit = config
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
        let (core, handle) = Core::new(wires, idle, audit).map_err(Failure::failed)?;
        let cpu = config.cores.polling.first().copied();
        let thread = std::thread::Builder::new()
            .name("polling-0".into())
            .spawn(move || poll(eal, core, cpu))
            .map_err(Failure::failed)?;
        Ok(Self { handle, eal, wires: named, bypass, thread: Mutex::new(Some(thread)) })
    }

    /// The wire that is the bypass's, once.
    pub(super) fn take_bypass(&mut self) -> Option<AnyWire> {
        self.bypass.take()
    }

    /// Place of the wire of this name; the configuration was checked, so that it is there.
    pub(crate) fn wire(&self, name: &str) -> usize {
        self.wires
            .iter()
            .position(|(wire, _)| wire == name)
            .expect("the configuration names only wires it has")
    }

    /// MTU of the wire at `place`.
    pub(crate) fn mtu(&self, place: usize) -> u16 {
        self.wires[place].1
    }

    /// Ends the polling core.
    pub(crate) fn stop(&self) {
        self.handle.stop();
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the polling core panicked");
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

fn open_kernel(interface: &str, wire: &Wire, pool: Pool) -> Result<AnyWire, Failure> {
    let fault = |what: String| Failure::Failed(format!("wire {}: {what}", wire.name));
    let opened = Interface::open(interface).map_err(|error| fault(error.to_string()))?;
    if opened.mtu < wire.mtu {
        return Err(fault(format!(
            "interface {interface} carries packets of {} bytes, fewer than the mtu {} of this wire\n  \
             mend: `ip link set {interface} mtu {}`, or lower mtu in this section",
            opened.mtu, wire.mtu, wire.mtu
        )));
    }
    let name = format!("wire {}: interface {interface}", wire.name);
    Ok(Box::new(KernelWire::new(name, opened, pool, wire.mtu)))
}

/// The polling core's thread.
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
