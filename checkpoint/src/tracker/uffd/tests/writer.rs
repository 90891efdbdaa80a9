//! The process that is tracked: it maps a file and writes to it as it is told, line by line.

use super::super::super::puppet::{Puppet, answer};
use super::super::*;
use super::PAGE;
use memmap2::{MmapOptions, MmapRaw};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, stdin};
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const FILE: &str = "HOLDFAST_TEST_TRACKED_FILE";
const MAPS: &str = "HOLDFAST_TEST_TRACKED_MAPS";

/// Starts a process that maps the file and writes to it as it is told; `maps` are the offset and length of each
/// mapping.
pub(crate) fn spawn_writer(path: &Path, maps: &[(u64, u64)]) -> Puppet {
    let maps: Vec<_> = maps.iter().map(|(offset, len)| format!("{offset}:{len}")).collect();
    let maps = maps.join(",");
    let variables = [(FILE, path.as_os_str()), (MAPS, OsStr::new(&maps))];
    Puppet::spawn("tracker::uffd::tests::writer::writing_process", &variables)
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
            ("read-into", &[offset, len]) => {
                // SAFETY: the address lies in a mapping of at least so many bytes from there.
                let slice = unsafe { std::slice::from_raw_parts_mut(address(0, offset), len as usize) };
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
            other => panic!("unknown command {other:?}"),
        }
        answer("done");
    }
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
