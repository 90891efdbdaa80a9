//! `holdfast bench pps`: frames a second through Holdfast's rings, beside DPDK's own vhost.
//!
//! ```text
//!   core F: dpdk-testpmd, two net_virtio_user ports, each frame that comes by one is sent on by it
//!              | ring |                 | ring |
//!   core B: Holdfast's dataplane between two guest ports, or dpdk-testpmd between two net_vhost ports
//! ```
//!
//! A number of frames is under way in a circle, in both directions: the driver sends on what it receives, so
//! that the rate is the backend's own, and a frame that is lost anywhere is missed by the counters of one
//! side. The rate of a row is the highest of those, over several numbers of frames under way, at which nothing
//! was lost. All backends have the same two cores, frames and rings, in turn within each round.
//!
//! The drivers' memory is in ordinary pages, as a guest's mostly is; the backends' own frames lie in huge pages
//! where enough are free, and in ordinary ones otherwise, for all of them alike.
//!
//! Ports may have several pairs of queues; they are still one core's on either side, so that what is seen is what
//! pairs cost, not what more cores would bring. Frames are of 256 flows then, which Holdfast spreads over the pairs
//! of the receiver by what that sent, and testpmd's vhost by the number of the pair that they came by.
//!
//! Sizes of frames are as they are counted on Ethernet, with the four bytes of the checksum, which no virtual
//! card has: "64" is 60 bytes in memory.

mod holdfast;
mod row;

use super::{Output, write_json};
use crate::cli::Failure;
use ::holdfast_lab::scratch::Scratch;
use ::holdfast_lab::testpmd::{self, Forwarded, Testpmd, TestpmdSpec, VirtioUser, colons, vhost_device};
use clap::{Args, ValueEnum};
use holdfast::{Backend, Ground};
use row::{Row, Taken};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// The mode of the rows of DPDK's own vhost.
const REFERENCE: &str = "io";
/// Frames that testpmd sends at once.
const BURST: u32 = 32;
/// Bytes of the checksum of a frame on Ethernet.
const CHECKSUM: u16 = 4;
/// Caches fill, tables learn, frames beyond what fits are lost before anything is measured.
const WARM_UP: Duration = Duration::from_millis(300);
const TESTPMD_MIB: u32 = 256;
/// For caches and bursts.
const TESTPMD_FRAMES: u32 = 2 * 1024;
/// For the full rings of a pair of queues on both ports.
const TESTPMD_FRAMES_OF_PAIR: u32 = 4 * 1024;
/// Pairs of queues of a port, at most.
const MAX_QUEUES: u16 = 8;

/// How Holdfast treats the guests' output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PpsMode {
    /// It passes.
    Native,
    /// It waits for the end of its epoch, and for leave.
    Commit,
    /// The same, and the speculating engine looks at each frame.
    Speculative,
}

impl PpsMode {
    const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Commit => "commit",
            Self::Speculative => "speculative",
        }
    }
}

/// The layout of the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RingKind {
    /// Descriptors, available and used ring apart.
    Split,
    /// All in one.
    Packed,
}

/// The two processors: the drivers', and the backend's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cores {
    drivers: usize,
    backend: usize,
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<usize> = text.split(',').filter_map(|word| word.trim().parse().ok()).collect();
        match numbers.as_slice() {
            [drivers, backend] if drivers != backend => Ok(Self { drivers: *drivers, backend: *backend }),
            _ => Err(format!("{text:?} does not name two processors, such as 0,1")),
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct PpsOptions {
    /// Modes of Holdfast.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "native,commit,speculative")]
    modes: Vec<PpsMode>,
    /// Layouts of the rings.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "split,packed")]
    rings: Vec<RingKind>,
    /// Pairs of queues of each port; the drivers and the backend have a core each all the same.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    queues: Vec<u16>,
    /// Bytes of a frame on Ethernet, with its checksum.
    #[arg(long, value_delimiter = ',', default_value = "64,512,1518")]
    frames: Vec<u16>,
    /// Rounds; each takes every row once.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Microseconds from one cut of the output to the next, in the modes that protect.
    #[arg(long, default_value_t = 5000)]
    epoch_us: u64,
    /// Microseconds from a cut until that output is let go.
    #[arg(long, default_value_t = 1000)]
    commit_us: u64,
    /// Numbers of frames under way in each direction that are tried where output passes.
    #[arg(long, value_delimiter = ',', default_value = "128,256,512")]
    under_way: Vec<u32>,
    /// Numbers of frames under way in each direction that are tried where output is held.
    #[arg(long, value_delimiter = ',', default_value = "32768,65536")]
    held_under_way: Vec<u32>,
    /// Entries of each ring.
    #[arg(long, default_value_t = 1024)]
    ring_entries: u16,
    /// Processor of the drivers, and of the backend.
    #[arg(long, default_value = "0,1")]
    cores: Cores,
    /// How testpmd forwards as the backend: io passes frames as they are, macswap looks at them.
    #[arg(long, value_parser = ["io", "macswap"], default_value = REFERENCE)]
    reference: String,
    #[command(flatten)]
    output: Output,
}

impl PpsOptions {
    /// Frames under way in both directions, at most.
    fn most_under_way(&self) -> u32 {
        self.under_way.iter().chain(&self.held_under_way).max().map_or(0, |most| 2 * most)
    }
}

/// What is measured in one go.
#[derive(Clone, Copy, Debug)]
struct Case {
    ring: RingKind,
    /// Pairs of queues of each port.
    queues: u16,
    frame_bytes: u16,
    /// None for DPDK's own vhost.
    mode: Option<PpsMode>,
}

/// Runs the benchmark.
pub(super) fn run(options: &PpsOptions) -> Result<(), Failure> {
    check(options)?;
    options.output.check()?;
    let ground = Ground::prepare(options.most_under_way())?;
    let mut rows = Vec::new();
    println!("{}", row::HEADING);
    for round in 1..=options.rounds {
        for case in cases(options) {
            let row = Row::new(round, case, &options.reference, take(options, &ground, case)?);
            println!("{row}");
            rows.push(row);
        }
    }
    print!("{}", row::table(&rows));
    if let Some(path) = &options.output.json {
        let document = json!({
            "bench": "pps",
            "machine": super::machine::plain(),
            "configuration": configuration(options, &ground),
            "rows": rows,
            "ratios": row::ratios(&rows),
        });
        write_json(path, &document)?;
    }
    match rows.iter().find(|row| row.mpps <= 0.0) {
        None => Ok(()),
        Some(row) => Err(Failure::Failed(format!(
            "{} {}, {} bytes: frames were lost at every rate; mend: measure on a machine with nothing else to do",
            row.backend, row.mode, row.frame_bytes
        ))),
    }
}

/// What one round takes, in its order.
fn cases(options: &PpsOptions) -> Vec<Case> {
    let mut cases = Vec::new();
    for &ring in &options.rings {
        for &queues in &options.queues {
            for &frame_bytes in &options.frames {
                let modes = std::iter::once(None).chain(options.modes.iter().copied().map(Some));
                cases.extend(modes.map(|mode| Case { ring, queues, frame_bytes, mode }));
            }
        }
    }
    cases
}

fn check(options: &PpsOptions) -> Result<(), Failure> {
    let usage = |what: String| Err(Failure::Usage(what));
    testpmd::check_installed().map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Err(Failure::HostLacks(
            "two processors are needed, one for the drivers and one for the backend; mend: a machine with two"
                .into(),
        ));
    }
    if options.cores.drivers.max(options.cores.backend) >= cores {
        return usage(format!("--cores: there are processors 0 to {}", cores - 1));
    }
    if let Some(bytes) = options.frames.iter().find(|bytes| !(64..=1518).contains(*bytes)) {
        return usage(format!("--frames: {bytes} is not between 64 and 1518"));
    }
    if let Some(queues) = options.queues.iter().find(|queues| !(1..=MAX_QUEUES).contains(*queues)) {
        return usage(format!("--queues: {queues} is not between 1 and {MAX_QUEUES}"));
    }
    if !options.ring_entries.is_power_of_two() || !(64..=1024).contains(&options.ring_entries) {
        return usage(format!("--ring-entries: {} is no power of two from 64 to 1024", options.ring_entries));
    }
    let all = options.under_way.iter().chain(&options.held_under_way);
    if let Some(count) = all.into_iter().find(|count| !(BURST..=262_144).contains(*count)) {
        return usage(format!("frames under way: {count} is not between {BURST} and 262144"));
    }
    if !(0.1..=60.0).contains(&options.seconds) {
        return usage(format!("--seconds: {} is not between 0.1 and 60", options.seconds));
    }
    if !(100..=1_000_000).contains(&options.epoch_us) || options.commit_us > 30 * options.epoch_us {
        return usage("--epoch-us is 100 to 1000000, and --commit-us at most thirty times that".into());
    }
    Ok(())
}

fn configuration(options: &PpsOptions, ground: &Ground) -> serde_json::Value {
    json!({
        "rounds": options.rounds,
        "seconds": options.seconds,
        "epoch_us": options.epoch_us,
        "commit_us": options.commit_us,
        "ring_entries": options.ring_entries,
        "drivers_core": options.cores.drivers,
        "backend_core": options.cores.backend,
        "reference": options.reference,
        "backend_huge_pages": ground.huge_pages,
    })
}

/// Addresses of the two drivers.
const fn macs() -> [[u8; 6]; 2] {
    [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]]
}

/// The highest rate without loss.
fn take(options: &PpsOptions, ground: &Ground, case: Case) -> Result<Taken, Failure> {
    let tried = match case.mode {
        None | Some(PpsMode::Native) => &options.under_way,
        Some(_) => &options.held_under_way,
    };
    let mut best = Taken::default();
    for under_way in tried {
        let taken = measure(options, ground, case, *under_way)?;
        tracing::debug!(?case, ?taken, "measured");
        best = best.or_better(taken);
    }
    Ok(best)
}

/// Either backend.
enum Device {
    Holdfast(Box<Backend>),
    Testpmd { process: Testpmd, sockets: [PathBuf; 2] },
}

impl Device {
    fn start(options: &PpsOptions, ground: &Ground, case: Case, scratch: &Scratch) -> Result<Self, Failure> {
        if let Some(mode) = case.mode {
            let backend = Backend::start(options, ground, mode, case.queues, scratch)?;
            return Ok(Self::Holdfast(Box::new(backend)));
        }
        let sockets = ["a", "b"].map(|name| scratch.file(&format!("testpmd-{name}.sock")));
        let device = |(number, socket): (usize, &PathBuf)| vhost_device(number, socket, case.queues);
        let devices = sockets.iter().enumerate().map(device).collect();
        let mode = format!("--forward-mode={}", options.reference);
        let spec = testpmd(options, case, "backend", options.cores.backend, devices, vec![mode]);
        let spec = TestpmdSpec { huge_pages: ground.huge_pages, ..spec };
        let mut process = Testpmd::start(&spec, scratch).map_err(Failure::failed)?;
        process.ask("start").map_err(Failure::failed)?;
        Ok(Self::Testpmd { process, sockets })
    }

    const fn sockets(&self) -> &[PathBuf; 2] {
        match self {
            Self::Holdfast(backend) => backend.sockets(),
            Self::Testpmd { sockets, .. } => sockets,
        }
    }

    /// Frames lost since its start.
    fn lost(&mut self) -> Result<u64, Failure> {
        match self {
            Self::Holdfast(backend) => Ok(backend.lost()),
            Self::Testpmd { process, .. } => {
                process.forwarded().map(|figures| figures.lost).map_err(Failure::failed)
            }
        }
    }
}

/// Measures one backend with so many frames under way in each direction.
fn measure(options: &PpsOptions, ground: &Ground, case: Case, under_way: u32) -> Result<Taken, Failure> {
    let scratch = Scratch::new("pps").map_err(Failure::failed)?;
    let mut device = Device::start(options, ground, case, &scratch)?;
    let mut drivers = start_drivers(options, case, device.sockets(), &scratch)?;
    if let Device::Holdfast(backend) = &device {
        backend.wait_ready(case.ring == RingKind::Packed)?;
    }
    let mut ask = |command: &str| drivers.ask(command).map(drop).map_err(Failure::failed);
    ask(&format!("set txpkts {}", case.frame_bytes - CHECKSUM))?;
    // A full ring is waited for.
    ask("set fwd mac retry")?;
    ask("set burst tx delay 1 retry 100000")?;
    // Each pair begins with its part.
    ask(&format!("start tx_first {}", under_way.div_ceil(BURST * u32::from(case.queues))))?;
    // Nothing that is held is let go before the drivers receive.
    if let (Device::Holdfast(backend), Some(PpsMode::Commit | PpsMode::Speculative)) =
        (&mut device, case.mode)
    {
        backend.begin_epochs(options)?;
    }
    std::thread::sleep(WARM_UP);
    let lost_before = device.lost()?;
    drivers.clear().map_err(Failure::failed)?;
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs_f64(options.seconds));
    let Forwarded { received, lost, .. } = drivers.forwarded().map_err(Failure::failed)?;
    let took = began.elapsed();
    let lost_frames = lost + device.lost()? - lost_before;
    if let Device::Holdfast(backend) = device {
        backend.stop()?;
    }
    Ok(Taken { mpps: received as f64 / took.as_secs_f64() / 1e6, lost_frames, under_way })
}

fn start_drivers(
    options: &PpsOptions,
    case: Case,
    sockets: &[PathBuf; 2],
    scratch: &Scratch,
) -> Result<Testpmd, Failure> {
    let [first, second] = macs();
    let devices = sockets.iter().zip([first, second]).enumerate().map(|(number, (socket, mac))| {
        let (ring_entries, packed) = (options.ring_entries, case.ring == RingKind::Packed);
        VirtioUser { socket: socket.clone(), queue_pairs: case.queues, ring_entries, packed, mac }
            .device(number)
    });
    let mut arguments = vec![
        "--forward-mode=mac".to_owned(),
        format!("--eth-peer=0,{}", colons(second)),
        format!("--eth-peer=1,{}", colons(first)),
    ];
    if case.queues > 1 {
        // One flow has one pair.
        arguments.push("--txonly-multi-flow".to_owned());
    }
    let spec = testpmd(options, case, "drivers", options.cores.drivers, devices.collect(), arguments);
    Testpmd::start(&spec, scratch).map_err(Failure::failed)
}

fn testpmd(
    options: &PpsOptions,
    case: Case,
    name: &str,
    core: usize,
    devices: Vec<String>,
    mut arguments: Vec<String>,
) -> TestpmdSpec {
    arguments.extend(["rxd", "txd"].map(|name| format!("--{name}={}", options.ring_entries)));
    arguments.extend(["rxq", "txq"].map(|name| format!("--{name}={}", case.queues)));
    let frames = TESTPMD_FRAMES + TESTPMD_FRAMES_OF_PAIR * u32::from(case.queues);
    arguments.push(format!("--total-num-mbufs={frames}"));
    TestpmdSpec {
        name: format!("holdfast-pps-{name}-{}", std::process::id()),
        control_core: options.cores.drivers,
        forwarding_core: core,
        devices,
        memory_mib: TESTPMD_MIB,
        huge_pages: false,
        arguments,
    }
}
