//! Holdfast between two drivers: two guest ports of one polling core, in the program's own dataplane.
//!
//! There is no QEMU behind these ports, so that nothing can be checkpointed. In the modes that protect, the
//! epochs are made here: output is cut every so often and let go some time later, through the same gate and
//! with the same tokens as of a guest. What is measured is what holding output costs the dataplane, without
//! pauses and without pages.
//!
//! Both processors are busy all the time. The thread that cuts and lets go would have its turn with the scheduler's
//! tick, some milliseconds late, and epochs would last longer than they are said to: more frames would be held than are
//! under way, and the dataplane would wait for them. So that thread goes first, as those of a pause do.

use super::{PpsMode, PpsOptions, TESTPMD_MIB, macs};
use crate::cli::Failure;
use crate::run::poll;
use crate::wire::{AnyWire, DpdkWire};
use arrayvec::ArrayVec;
use holdfast_checkpoint::urgent::{Urgent, own_thread};
use holdfast_dataplane::{Card, Core, EngineConfig, Handle, IdlePolicy, Limits, Mode, PortConfig, PortId};
use holdfast_dpdk::{BURST, Device as WireDevice, Eal, Pool, Port};
use holdfast_dpdk_config::{FreePages, HugePages, MemoryPlan};
use holdfast_epoch::{Confirmation, Digest, Epoch, EpochId, ReleaseToken, Term};
use holdfast_hugepages_setup::{Root, huge_pages};
use holdfast_lab::scratch::Scratch;
use holdfast_vhost_user::{Device, DeviceConfig, MemoryFiles, SocketAccess, SocketRole, features};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PORTS: [PortId; 2] = [PortId(0), PortId(1)];
const TERM: Term = Term::new(1);
const MTU: u16 = 1500;
/// For a VLAN tag, beside the MTU and the Ethernet header.
const FRAME_BYTES: u16 = MTU + 22;
/// Frames beside those that are under way: a reserve that the dataplane keeps, and what the wire holds.
const SPARE_FRAMES: u32 = 16 * 1024;
/// Drivers connect, and set up their rings, in that time.
const READY: Duration = Duration::from_secs(10);

/// DPDK and the memory for frames, once for all runs.
pub(super) struct Ground {
    eal: Eal,
    pool: Pool,
    /// Whether the backends' frames lie in huge pages.
    pub(super) huge_pages: bool,
}

impl Ground {
    /// With room for `under_way` frames.
    pub(super) fn prepare(under_way: u32) -> Result<Self, Failure> {
        let frames = under_way + SPARE_FRAMES;
        let memory_mib = u64::from(frames) * (u64::from(FRAME_BYTES) + 512) / (1 << 20) + 64;
        let free: Vec<FreePages> = huge_pages(&Root::default())
            .iter()
            .map(|pages| FreePages { page_bytes: pages.page_bytes, free: pages.free })
            .collect();
        // Enough for testpmd as well, when its turn is.
        let plan = MemoryPlan::decide(HugePages::Auto, memory_mib + u64::from(TESTPMD_MIB), &free)
            .map_err(|problem| Failure::HostLacks(problem.to_string()))?;
        let huge_pages = matches!(plan, MemoryPlan::Huge { .. });
        let plan = match huge_pages {
            true => MemoryPlan::Huge { memory_mib },
            false => MemoryPlan::Ordinary { memory_mib, for_want_of_huge_pages: true },
        };
        let mut arguments = plan.eal_arguments();
        arguments.extend(["--no-pci", "--no-telemetry", "--log-level=*:warning"].map(str::to_owned));
        arguments.push(format!("--file-prefix=holdfast-pps-{}", std::process::id()));
        let eal = Eal::init(&arguments).map_err(|fault| Failure::HostLacks(fault.to_string()))?;
        let pool = Pool::new(eal, frames, FRAME_BYTES).map_err(Failure::failed)?;
        Ok(Self { eal, pool, huge_pages })
    }
}

/// A running dataplane.
pub(super) struct Backend {
    handle: Handle,
    devices: Vec<Device>,
    sockets: [PathBuf; 2],
    polling: Option<JoinHandle<()>>,
    gate: Option<Gate>,
}

impl Backend {
    /// Starts it; the drivers connect to its sockets.
    pub(super) fn start(
        options: &PpsOptions,
        ground: &Ground,
        mode: PpsMode,
        queue_pairs: u16,
        scratch: &Scratch,
    ) -> Result<Self, Failure> {
        let (core, handle) =
            Core::new(vec![unused_wire(ground)?], IdlePolicy::Poll, None).map_err(Failure::failed)?;
        let (eal, cpu) = (ground.eal, options.cores.backend as u32);
        let polling = std::thread::Builder::new()
            .name("polling-0".into())
            .spawn(move || poll(eal, core, Some(cpu)))
            .map_err(Failure::failed)?;
        let sockets = ["a", "b"].map(|name| scratch.file(&format!("holdfast-{name}.sock")));
        let mut this = Self { handle, devices: Vec::new(), sockets, polling: Some(polling), gate: None };
        let under_way = options.most_under_way() as usize;
        let limits = Limits { frames: 2 * under_way, inbound: 2 * under_way, ..Limits::default() };
        let limits = Limits { bytes: 2 * under_way * usize::from(FRAME_BYTES), ..limits };
        for (port, socket) in PORTS.into_iter().zip(&this.sockets) {
            let config = DeviceConfig {
                name: format!("port-{port}"),
                socket: SocketRole::Server(socket.clone()),
                access: SocketAccess::default(),
                queue_pairs,
                offloads: false,
                mtu: Some(MTU),
                files: MemoryFiles::default(),
            };
            let (device, endpoint) = Device::spawn(config, this.handle.waker()).map_err(Failure::failed)?;
            let speculates = mode == PpsMode::Speculative;
            let speculation =
                speculates.then(|| Box::new(EngineConfig { mtu: MTU, ..EngineConfig::default() }));
            let config = PortConfig { wire: 0, limits, fenced: false, speculation };
            this.handle.add_port(port, Box::new(Card::new(endpoint)), config).map_err(Failure::failed)?;
            this.devices.push(device);
        }
        if mode != PpsMode::Native {
            this.handle.set_mode(&PORTS, Mode::Commit { first: EpochId::FIRST }).map_err(Failure::failed)?;
            this.handle.speculate(&PORTS, mode == PpsMode::Speculative).map_err(Failure::failed)?;
        }
        Ok(this)
    }

    /// Where the drivers connect.
    pub(super) const fn sockets(&self) -> &[PathBuf; 2] {
        &self.sockets
    }

    /// Waits until both drivers run; refuses rings of another kind than asked for.
    pub(super) fn wait_ready(&self, packed: bool) -> Result<(), Failure> {
        let deadline = Instant::now() + READY;
        for device in &self.devices {
            let events = device.events();
            while !device.snapshot().rings_running.iter().all(|runs| *runs) {
                events.recv_deadline(deadline).map_err(|_| {
                    Failure::Failed("a driver did not set its rings up within 10 s".to_owned())
                })?;
            }
            let agreed = device.snapshot().features;
            if agreed.has(features::bits::RING_PACKED) != packed {
                return Err(Failure::Failed("the driver agreed to another kind of ring".to_owned()));
            }
        }
        Ok(())
    }

    /// Begins to cut and to let go, in the modes that protect.
    pub(super) fn begin_epochs(&mut self, options: &PpsOptions) -> Result<(), Failure> {
        let (handle, epoch) = (self.handle.clone(), Duration::from_micros(options.epoch_us));
        let commit = Duration::from_micros(options.commit_us);
        self.gate = Some(Gate::start(handle, epoch, commit)?);
        Ok(())
    }

    /// Frames lost since the start, wherever: dropped, or gone out by the wire, where nobody is.
    pub(super) fn lost(&self) -> u64 {
        let counters = self.handle.counters();
        let of_port = counters.ports.iter().map(|(_, events, drops)| {
            events.get("sent_frames") + drops.0.iter().map(|(_, value)| value).sum::<u64>()
        });
        counters.core.get("wire_lost_frames") + of_port.sum::<u64>()
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> Result<(), Failure> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Failure> {
        let epochs = self.gate.take().map_or(Ok(()), Gate::stop);
        self.devices.clear();
        self.handle.stop();
        let ended = self.polling.take().map_or(Ok(()), JoinHandle::join);
        ended.map_err(|_| Failure::Failed("the polling core panicked: a bug".to_owned()))?;
        epochs
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Err(fault) = self.end() {
            tracing::warn!("{fault}");
        }
    }
}

/// A wire on which nobody is: every core has one.
fn unused_wire(ground: &Ground) -> Result<AnyWire, Failure> {
    let card = WireDevice::Virtual { name: "net_null0".into(), arguments: "no-rx=1".into() };
    let config = holdfast_dpdk::PortConfig { rx_interrupt: false, ..holdfast_dpdk::PortConfig::default() };
    let (port, mut rx, mut tx) =
        Port::open(ground.eal, &card, ground.pool, &config).map_err(Failure::failed)?;
    let (Some(rx), Some(tx)) = (rx.pop(), tx.pop()) else {
        return Err(Failure::Failed("the unused wire has no queues".to_owned()));
    };
    let mac = port.mac().map_err(Failure::failed)?;
    debug_assert!(!macs().contains(&mac));
    let outgoing = VecDeque::with_capacity(BURST);
    Ok(Box::new(DpdkWire { rx, tx, pool: ground.pool, mtu: MTU, mac, spare: ArrayVec::new(), outgoing }))
}

/// Ends epochs and lets them go.
struct Gate {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Gate {
    fn start(handle: Handle, epoch: Duration, commit: Duration) -> Result<Self, Failure> {
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let thread = std::thread::Builder::new()
            .name("gate".into())
            .spawn(move || {
                let _first = Urgent::begin([own_thread()]);
                run_epochs(&handle, epoch, commit, &told)
            })
            .map_err(Failure::failed)?;
        Ok(Self { ended, thread })
    }

    fn stop(self) -> Result<(), Failure> {
        self.ended.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.thread.join().map_err(|_| Failure::Failed("the gate panicked: a bug".to_owned()))?
    }
}

/// Cuts every `epoch`, and lets each epoch go `commit` after its cut.
fn run_epochs(handle: &Handle, epoch: Duration, commit: Duration, ended: &AtomicBool) -> Result<(), Failure> {
    let mut number = EpochId::FIRST;
    let mut next_cut = Instant::now() + epoch;
    let mut sealed = VecDeque::new();
    while !ended.load(Ordering::Acquire) {
        let now = Instant::now();
        if let Some(&(_, id)) = sealed.front().filter(|(due, _)| *due <= now) {
            handle.release(&PORTS, token(id)).map_err(Failure::failed)?;
            sealed.pop_front();
        } else if next_cut <= now {
            handle.cut(&PORTS, number, false).map_err(Failure::failed)?;
            sealed.push_back((now + commit, number));
            number = number.next();
            next_cut = now + epoch;
        } else {
            let due = sealed.front().map_or(next_cut, |(due, _)| next_cut.min(*due));
            std::thread::park_timeout(due - now);
        }
    }
    Ok(())
}

/// Leave to let an epoch go, as a backup's word would give it.
fn token(id: EpochId) -> ReleaseToken {
    let digest = Digest([0; 32]);
    let (sealed, _) = Epoch::open(TERM, id).seal(());
    let sent = sealed.replicated(digest, |()| ());
    let confirmed = sent.commit(&Confirmation { term: TERM, epoch: id, digest });
    confirmed.map_err(|(_, fault)| fault).expect("it names the epoch and its digest").0.into_release_token()
}
