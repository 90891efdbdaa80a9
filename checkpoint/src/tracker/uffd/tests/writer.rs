//! The process that is tracked: it maps a file and writes to it as it is told, line by line.

use super::super::*;
use super::PAGE;
use memmap2::{MmapOptions, MmapRaw};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write, stdin};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const FILE: &str = "HOLDFAST_TEST_TRACKED_FILE";
const MAPS: &str = "HOLDFAST_TEST_TRACKED_MAPS";

/// A process that maps a file and writes to it as it is told.
pub(super) struct Writer {
    pub(super) child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Writer {
    /// `maps` are the offset and length of each mapping.
    pub(super) fn spawn(path: &std::path::Path, maps: &[(u64, u64)]) -> Self {
        let maps: Vec<_> = maps.iter().map(|(offset, len)| format!("{offset}:{len}")).collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            // With one test at a time the test runs in the main thread, the one that is interrupted.
            .args([
                "--exact",
                "tracker::uffd::tests::writer::writing_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(FILE, path)
            .env(MAPS, maps.join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut writer = Self { child, input, output: BufReader::new(output) };
        assert_eq!(writer.answer(), "ready");
        writer
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(super) fn say(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    /// The next line that is an answer; the test harness prints lines of its own.
    pub(super) fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the process ended");
            if let Some(answer) = line.trim_end().strip_prefix("> ") {
                return answer.to_owned();
            }
        }
    }

    pub(super) fn ask(&mut self, command: &str) -> String {
        self.say(command);
        self.answer()
    }

    pub(super) fn descriptors(&self) -> BTreeSet<String> {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
            .collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The child of the tests below.
#[test]
fn writing_process() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let file = File::options().read(true).write(true).open(path).unwrap();
    let maps = std::env::var(MAPS).unwrap();
    let mut maps: Vec<(u64, MmapRaw)> = maps
        .split(',')
        .map(|map| {
            let (offset, len) = map.split_once(':').unwrap();
            let (offset, len) = (offset.parse().unwrap(), len.parse().unwrap());
            (offset, MmapOptions::new().offset(offset).len(len).map_raw(&file).unwrap())
        })
        .collect();
    let mut guest = None;
    answer("ready");
    for line in stdin().lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let command = words.next().unwrap();
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        let address = |map: usize, offset: u64| {
            let (start, map) = &maps[map];
            map.as_mut_ptr().wrapping_add(usize::try_from(offset - start).unwrap())
        };
        match (command, &*numbers) {
            ("write", &[map, offset]) => write_at(address(map as usize, offset)),
            ("write-many", &[map, from, count, step]) => {
                (0..count).for_each(|n| write_at(address(map as usize, from + n * step)));
            }
            ("read-into", &[offset]) => {
                // SAFETY: the address lies in a mapping of at least a page from there.
                let slice = unsafe { std::slice::from_raw_parts_mut(address(0, offset), 16) };
                File::open("/dev/urandom").unwrap().read_exact(slice).unwrap();
            }
            ("look", &[offset]) => {
                // SAFETY: the address lies in a mapping.
                let byte = unsafe { address(0, offset).read_volatile() };
                std::hint::black_box(byte);
            }
            ("drop-from-tables", &[offset, len]) => {
                let at = NonNull::new(address(0, offset).cast()).unwrap();
                // SAFETY: the range lies in a shared mapping, whose pages come back from the file.
                unsafe { madvise(at, len as usize, MmapAdvise::MADV_DONTNEED) }.unwrap();
            }
            ("unmap", &[map]) => drop(maps.remove(map as usize)),
            ("map-again", &[]) => {
                let map = MmapOptions::new().len(PAGE_SIZE).map_raw(&file).unwrap();
                maps.push((0, map));
            }
            ("poll", &[]) => poll_stdin(),
            ("scribble", &[pages, millis]) => scribble(&maps[0].1, pages, Duration::from_millis(millis)),
            ("compute", &[rounds]) => compute(rounds),
            ("kvm", &[seed, writes]) => {
                let guest = guest.get_or_insert_with(|| KvmGuest::new(&maps[0].1));
                answer(&guest.run(&maps[0].1, seed as u16, writes as u16));
            }
            other => panic!("unknown command {other:?}"),
        }
        answer("done");
    }
}

fn answer(text: &str) {
    println!("\n> {text}");
}

fn write_at(address: *mut u8) {
    // SAFETY: the caller took the address from a mapping that it holds.
    unsafe { address.write_volatile(address.read_volatile().wrapping_add(1)) };
}

/// Waits for a byte and tells how often the wait was disturbed.
fn poll_stdin() {
    answer("polling");
    let input = stdin();
    let mut disturbed = 0;
    loop {
        let mut fds = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(20_000_u32).unwrap()) {
            Err(Errno::EINTR) => disturbed += 1,
            Ok(1) => break,
            other => panic!("{other:?}"),
        }
    }
    answer(&format!("disturbed {disturbed}"));
}

/// Writes at random places, as fast as it can.
fn scribble(map: &MmapRaw, pages: u64, time: Duration) {
    let end = Instant::now() + time;
    let mut random = 1_u64;
    while Instant::now() < end {
        for _ in 0..64 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let offset = (random >> 33) % (pages * PAGE / 8) * 8;
            let at = map.as_mut_ptr().wrapping_add(offset as usize).cast::<u64>();
            // SAFETY: the offset is aligned and lies within the mapping.
            unsafe { at.write_volatile(random) };
        }
    }
}

/// A guest of a few instructions under KVM, on the first mapping.
struct KvmGuest {
    vm: kvm_ioctls::VmFd,
    vcpu: kvm_ioctls::VcpuFd,
}

/// Where the guest's program lies.
pub(super) const KVM_PROGRAM_AT: u64 = 0x1000;

/// Writes to as many pages of the upper half of its 1 MiB as CX says, picked by the numbers that follow BX:
/// ```text
/// next: imul bx, bx, 0x6255; add bx, 0x3619
///       mov ax, bx; and ax, 0x7f00; or ax, 0x8000; mov es, ax; mov [es:0], bx
///       loop next; hlt
/// ```
const KVM_PROGRAM: [u8; 26] = [
    0x69, 0xdb, 0x55, 0x62, 0x81, 0xc3, 0x19, 0x36, 0x89, 0xd8, 0x25, 0x00, 0x7f, 0x0d, 0x00, 0x80, 0x8e,
    0xc0, 0x26, 0x89, 0x1e, 0x00, 0x00, 0xe2, 0xe7, 0xf4,
];

impl KvmGuest {
    fn new(map: &MmapRaw) -> Self {
        let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        let region = kvm_bindings::kvm_userspace_memory_region {
            slot: 0,
            flags: kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: 0,
            memory_size: map.len() as u64,
            userspace_addr: map.as_ptr() as u64,
        };
        // SAFETY: the mapping lives as long as this process serves commands, longer than the guest.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        Self { vm, vcpu }
    }

    /// Runs the guest to its end; returns the pages that KVM's own log has.
    fn run(&mut self, map: &MmapRaw, seed: u16, writes: u16) -> String {
        // SAFETY: the program lies within the mapping, of which this is the only use now.
        unsafe {
            let at = map.as_mut_ptr().wrapping_add(KVM_PROGRAM_AT as usize);
            std::ptr::copy_nonoverlapping(KVM_PROGRAM.as_ptr(), at, KVM_PROGRAM.len());
        }
        let mut regs = self.vcpu.get_regs().unwrap();
        (regs.rip, regs.rflags) = (KVM_PROGRAM_AT, 2);
        (regs.rbx, regs.rcx) = (seed.into(), writes.into());
        self.vcpu.set_regs(&regs).unwrap();
        loop {
            match self.vcpu.run() {
                Ok(kvm_ioctls::VcpuExit::Hlt) => break,
                // The tracer's stop.
                Ok(kvm_ioctls::VcpuExit::Intr) => {}
                Err(error) if error.errno() == libc::EINTR => {}
                other => panic!("{other:?}"),
            }
        }
        let log = self.vm.get_dirty_log(0, map.len()).unwrap();
        let pages = (0..map.len() / PAGE_SIZE).filter(|page| log[page / 64] >> (page % 64) & 1 == 1);
        pages.map(|page| page.to_string()).collect::<Vec<_>>().join(" ")
    }
}

static ALARMS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_alarm(_: libc::c_int) {
    ALARMS.fetch_add(1, Ordering::Relaxed);
}

/// Computes while a timer interrupts it all the time; any register or signal that gets lost shows.
fn compute(rounds: u64) {
    let action = SigAction::new(SigHandler::Handler(count_alarm), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler touches an atomic only.
    unsafe { sigaction(Signal::SIGALRM, &action) }.unwrap();
    let every = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 300 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 300 },
    };
    // SAFETY: the pointer is to a value that lives through the call; the old value is not asked for.
    assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const every, std::ptr::null_mut()) }, 0);
    let once = |seed: u64| {
        let (mut sum, mut float) = (seed, 1.0_f64);
        for n in 0..200_000_u64 {
            sum = sum.rotate_left(7) ^ n.wrapping_mul(sum | 1);
            float = (float * 1.000_001 + n as f64).sqrt();
        }
        (sum, float.to_bits())
    };
    let expected = once(42);
    for _ in 0..rounds {
        assert_eq!(once(42), expected);
        nix::unistd::getppid();
    }
    answer(&format!("alarms {}", ALARMS.load(Ordering::Relaxed)));
}
