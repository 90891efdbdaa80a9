//! What the tests of real ports share: a process each, a network namespace each, a station at the
//! other end of the port.
//!
//! DPDK starts once in a process, so that each case runs in a child: the test binary started again for
//! the one test. The network namespace is the child's own and goes with it, whatever becomes of it.

mod station;

use holdfast_dpdk::{BURST, Device, Eal, Mbuf, Pool, Port, PortConfig, RxQueue, TxQueue};
use holdfast_dpdk_config::{Checked, MemoryPlan, RawCores, RawDpdk, RawWire, WireDevice, check};
use holdfast_hugepages_setup::{Loan, Root};
use nix::sched::{CloneFlags, unshare};
use std::collections::VecDeque;
use std::env;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) use station::Station;

/// The test that a child is to run.
const CASE: &str = "HOLDFAST_DPDK_CASE";
/// What a child is to do in it, beyond the first.
const PART: &str = "HOLDFAST_DPDK_PART";
/// Longer than any case takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Memory of a case, in MiB.
const MEMORY_MIB: u64 = 96;
const TWO_MIB: u64 = 2 << 20;
/// Huge pages of a case with two processes.
const PAGES: u64 = 2 * MEMORY_MIB * (1 << 20) / TWO_MIB;

/// Memory of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    Huge,
    Ordinary,
}

/// Runs `body`, which is written out in a test, in a process and a network namespace of its own; with
/// huge pages, those are added to the host's for as long as it runs.
pub(crate) fn alone<F: FnOnce()>(memory: Memory, body: F) {
    match env::var(CASE) {
        Ok(case) if case == name_of::<F>() => {
            if part().is_none() {
                unshare(CloneFlags::CLONE_NEWNET).expect("root may make network namespaces");
            }
            body();
        }
        Ok(_) => {}
        Err(_) if !nix::unistd::geteuid().is_root() => cannot_run("not root; mend: run the tests as root"),
        Err(_) => {
            let _loan = match memory {
                Memory::Ordinary => None,
                Memory::Huge => match Loan::take(&Root::default(), TWO_MIB, PAGES) {
                    Ok(loan) => Some(loan),
                    Err(fault) => return cannot_run(&fault.to_string()),
                },
            };
            let name = name_of::<F>();
            let output = again(&name).stdin(Stdio::null()).output().expect("the test binary starts again");
            let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
            assert!(output.status.success(), "{name}: {}\n{}\n{}", output.status, said[0], said[1]);
            // What a case measured is for everybody to see.
            said[0]
                .lines()
                .filter_map(|line| line.split_once("measured: "))
                .for_each(|(_, figure)| println!("measured: {figure}"));
        }
    }
}

/// The test that a closure is written in: `crate::module::test::{{closure}}` without the ends.
fn name_of<F>() -> String {
    let path = std::any::type_name::<F>();
    let test = path.strip_suffix("::{{closure}}").expect("a closure");
    test.split_once("::").expect("a crate").1.to_owned()
}

/// Says why a case cannot run here, and fails where it must.
fn cannot_run(why: &str) {
    println!("cannot run here: {why}");
    assert!(env::var("CI").as_deref() != Ok("true"), "{why}");
}

/// This binary again, for one test.
fn again(name: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("a path"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CASE, name);
    command
}

/// The name of the part that this process plays, in a case with several.
pub(crate) fn part() -> Option<String> {
    env::var(PART).ok()
}

/// Another process of the case, in the same network namespace. It is killed on drop.
pub(crate) struct Part(Child);

impl Part {
    pub(crate) fn start(part: &str) -> Self {
        let name = env::var(CASE).expect("a part is started by its case");
        Self(again(&name).env(PART, part).stdin(Stdio::null()).spawn().expect("the test binary starts again"))
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("a child of ours");
        self.0.wait().expect("a child of ours");
    }

    pub(crate) fn succeed(mut self) {
        let status = self.0.wait().expect("a child of ours");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            self.kill();
        }
    }
}

/// A path of this case's own, the same in all its parts, and no other running case's.
pub(crate) fn scratch(kind: &str) -> PathBuf {
    let namespace = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
    let number: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    env::temp_dir().join(format!("holdfast-dpdk-{number}.{kind}"))
}

/// A wire, through the same configuration that users write.
pub(crate) fn wire(kind: &str, fill: impl FnOnce(&mut RawWire)) -> Checked {
    let mut raw = RawWire {
        name: Some("wire".to_owned()),
        kind: Some(kind.to_owned()),
        frames: Some(8192),
        ..RawWire::default()
    };
    fill(&mut raw);
    let dpdk = RawDpdk { memory_mb: Some(MEMORY_MIB), ..RawDpdk::default() };
    check(&dpdk, &RawCores::default(), &[raw]).unwrap_or_else(|problems| panic!("{problems}"))
}

pub(crate) fn start(checked: &Checked, memory: Memory) -> Eal {
    let memory_mib = checked.dpdk.memory_mib;
    let plan = match memory {
        Memory::Huge => MemoryPlan::Huge { memory_mib },
        Memory::Ordinary => MemoryPlan::Ordinary { memory_mib, for_want_of_huge_pages: false },
    };
    let arguments = checked.dpdk.eal_arguments(&plan, &checked.wires);
    Eal::init(&arguments).unwrap_or_else(|fault| panic!("{fault}"))
}

pub(crate) fn device(checked: &Checked) -> Device {
    match checked.wires[0].device() {
        WireDevice::Virtual { name, arguments } => Device::Virtual { name, arguments },
        WireDevice::Pci { address } => Device::Pci { address },
        WireDevice::Kernel { interface } => unreachable!("{interface} is not DPDK's to open"),
    }
}

/// An open port with one queue of each kind and its pool.
pub(crate) struct Opened {
    pub(crate) port: Port,
    pub(crate) rx: RxQueue,
    pub(crate) tx: TxQueue,
    pub(crate) pool: Pool,
}

pub(crate) fn open(checked: &Checked, memory: Memory) -> Opened {
    let eal = start(checked, memory);
    let wire = &checked.wires[0];
    let pool = Pool::new(eal, wire.frames, wire.frame_bytes()).unwrap_or_else(|fault| panic!("{fault}"));
    open_on(eal, checked, pool)
}

pub(crate) fn open_on(eal: Eal, checked: &Checked, pool: Pool) -> Opened {
    let config = PortConfig { mtu: Some(checked.wires[0].mtu), ..PortConfig::default() };
    let (port, mut rx, mut tx) =
        Port::open(eal, &device(checked), pool, &config).unwrap_or_else(|fault| panic!("{fault}"));
    let (rx, tx) = (rx.pop().expect("one queue"), tx.pop().expect("one queue"));
    Opened { port, rx, tx, pool }
}

impl Opened {
    /// Echoes frames of [`Station::ETHERTYPE`] with the addresses swapped, until `count` went back.
    pub(crate) fn echo(&mut self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut received = arrayvec::ArrayVec::<Mbuf, BURST>::new();
        let mut waiting = VecDeque::new();
        let mut echoed = 0;
        while echoed < count {
            assert!(Instant::now() < deadline, "{echoed} of {count} frames came");
            self.rx.burst(&mut received);
            for mut frame in received.drain(..) {
                if Station::is_ours(frame.bytes()) {
                    let (to, from) = frame.bytes_mut()[..12].split_at_mut(6);
                    to.swap_with_slice(from);
                    waiting.push_back(frame);
                }
            }
            echoed += self.tx.burst(&mut waiting, BURST);
        }
        // What the port still has in its ring goes out with the next bursts.
        while !waiting.is_empty() {
            self.tx.burst(&mut waiting, BURST);
        }
    }
}

/// Runs a program of the system in this network namespace.
pub(crate) fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).output().expect("it is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments}: {said}");
}

/// Two interfaces joined, without offloads: a frame must be whole on the wire between them.
pub(crate) fn veth(ours: &str, theirs: &str) {
    run("ip", &format!("link add {ours} type veth peer name {theirs}"));
    for end in [ours, theirs] {
        run("ip", &format!("link set {end} up"));
        run("ethtool", &format!("-K {end} tx off tso off gso off"));
    }
}

/// A descriptor of an open port, to be polled.
pub(crate) fn borrowed(fd: std::os::fd::RawFd) -> std::os::fd::BorrowedFd<'static> {
    station::borrowed(fd)
}
