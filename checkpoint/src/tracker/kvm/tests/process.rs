//! The process that runs the machine and KVM's tracker, as the test tells it, line by line.

use super::super::machine::{Act, Machine, Vcpu};
use super::super::{Means, PAGES};
use crate::pages::PageSet;
use crate::tracker::DirtyTracker;
use crate::tracker::puppet::{Puppet, answer};
use std::ffi::OsStr;
use std::fs::File;
use std::io::stdin;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

const FILE: &str = "HOLDFAST_TEST_MACHINE_FILE";
const MEANS: &str = "HOLDFAST_TEST_MACHINE_MEANS";

/// Starts a machine whose memory is the file.
pub(super) fn spawn_machine(path: &Path, means: Means) -> Puppet {
    let means = format!("{means:?}");
    let variables = [(FILE, path.as_os_str()), (MEANS, OsStr::new(&means))];
    Puppet::spawn("tracker::kvm::tests::process::machine_process", &variables)
}

/// The child of the tests.
#[test]
fn machine_process() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let file = File::options().read(true).write(true).open(path).unwrap();
    let means = Means::named(&std::env::var(MEANS).unwrap()).unwrap();
    let mut machine = Machine::new(&file, means);
    let mut circle: Option<Circle> = None;
    answer("ready");
    for line in stdin().lines() {
        let line = line.unwrap();
        let mut words = line.split_whitespace();
        let command = words.next().unwrap();
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        match (command, &*numbers) {
            ("write", [vcpu, value, offsets @ ..]) => {
                answer(&go(&mut machine, *vcpu, Act::Write(*value as u32), offsets));
            }
            ("read", [vcpu, offsets @ ..]) => answer(&go(&mut machine, *vcpu, Act::Read, offsets)),
            ("poke", [value, offsets @ ..]) => {
                offsets.iter().for_each(|&offset| machine.poke(*value as u32, offset));
                answer("done");
            }
            ("collect", []) => {
                assert!(circle.as_ref().is_none_or(Circle::goes_on), "a vCPU has stopped");
                answer(&collect(&machine));
            }
            ("circle", offsets) => {
                circle = Some(Circle::start(&mut machine, offsets));
                answer("done");
            }
            ("halt", []) => answer(&circle.take().unwrap().halt(&mut machine).to_string()),
            other => panic!("unknown command {other:?}"),
        }
    }
}

/// Has a vCPU do something; says how often its ring was full.
fn go(machine: &mut Machine, vcpu: u64, act: Act, offsets: &[u64]) -> String {
    machine.vcpus[vcpu as usize].go(act, offsets, &machine.tracker).to_string()
}

/// The pages that KVM's tracker finds, as runs.
fn collect(machine: &Machine) -> String {
    let mut found = PageSet::with_capacity(PAGES);
    machine.tracker.lock().unwrap().collect(&mut found).unwrap();
    let runs: Vec<_> = found.runs().map(|run| format!("{}-{}", run.start, run.end)).collect();
    format!("pages {}", runs.join(" "))
}

/// All vCPUs, each in a thread, on the same pages again and again.
struct Circle {
    stop: Arc<AtomicBool>,
    vcpus: Vec<JoinHandle<(Vcpu, u32)>>,
}

impl Circle {
    fn start(machine: &mut Machine, offsets: &[u64]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut vcpus = Vec::new();
        for (mut vcpu, n) in machine.vcpus.drain(..).zip(0..) {
            let offsets: Vec<u64> = offsets.iter().map(|offset| offset + 8 * n).collect();
            let (stop, tracker) = (Arc::clone(&stop), Arc::clone(&machine.tracker));
            vcpus.push(thread::spawn(move || {
                let mut laps = 0;
                loop {
                    laps += 1;
                    vcpu.go(Act::Write(laps), &offsets, &tracker);
                    if stop.load(Ordering::Acquire) {
                        return (vcpu, laps);
                    }
                }
            }));
        }
        Self { stop, vcpus }
    }

    fn goes_on(&self) -> bool {
        !self.vcpus.iter().any(JoinHandle::is_finished)
    }

    /// Lets each vCPU end its lap; gives the laps of the one that made the fewest.
    fn halt(self, machine: &mut Machine) -> u32 {
        self.stop.store(true, Ordering::Release);
        let ended = self.vcpus.into_iter().map(|vcpu| vcpu.join().unwrap());
        let (vcpus, laps): (Vec<_>, Vec<_>) = ended.unzip();
        machine.vcpus = vcpus;
        laps.into_iter().min().unwrap()
    }
}
