mod allocations;
pub(in crate::tracker) mod writer;

use super::super::puppet::Puppet;
use super::super::tracked::Tracked;
use super::scan::{NEAR_BYTES, PART_BYTES, RUNS};
use super::*;
use crate::host_needs;
use crate::pages::PageIndex;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use writer::spawn_writer;

const PAGE: u64 = PAGE_SIZE as u64;
const NONE: [u64; 0] = [];

/// Pages found by one scan.
fn found(tracker: &mut UffdTracker) -> Vec<u64> {
    let mut set = PageSet::for_bytes(tracker.len);
    tracker.collect(&mut set).unwrap();
    set.iter().map(|page| page.0).collect()
}

/// Whether this host lets us track; says so if not.
fn can_track() -> bool {
    host_needs::is_root()
}

/// CK-2: exactly the written pages are found, each once, also those that nobody had touched before.
#[test]
fn written_pages_are_found_exactly_and_once() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(1000);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    writer.ask(&format!("write-many 0 0 100 {PAGE}"));
    let mut tracker = memory.attach(&writer).unwrap();
    assert_eq!(found(&mut tracker), NONE, "nothing was written since");
    for (offset, page) in
        [(0, 0), (PAGE - 1, 0), (5 * PAGE + 7, 5), (500 * PAGE, 500), (1000 * PAGE - 1, 999)]
    {
        writer.ask(&format!("write 0 {offset}"));
        writer.ask(&format!("write 0 {offset}"));
        assert_eq!(found(&mut tracker), [page]);
        assert_eq!(found(&mut tracker), NONE);
    }
    writer.ask(&format!("look {}", 700 * PAGE));
    assert_eq!(found(&mut tracker), NONE, "reading is not writing");
    writer.ask(&format!("write-many 0 {} 200 {}", 3 * PAGE, 4 * PAGE));
    assert_eq!(found(&mut tracker), (0..200).map(|n| 3 + 4 * n).collect::<Vec<_>>());
    let mut set = memory.none();
    set.insert(PageIndex(17));
    writer.ask(&format!("write 0 {}", 18 * PAGE));
    let stats = tracker.collect(&mut set).unwrap();
    assert_eq!((stats.pages, stats.runs), (1, 1));
    assert!(set.runs().eq(std::iter::once(17..19)), "what was in the set stays: {set:?}");
}

/// CK-2: a scan goes on where the kernel had no more room for what it found, be that once or several times.
#[test]
fn more_runs_than_a_scan_has_room_for_are_all_found() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(5 * RUNS as u64);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let mut tracker = memory.attach(&writer).unwrap();
    for runs in [RUNS - 1, RUNS, RUNS + 1, 2 * RUNS, 2 * RUNS + 99] {
        // Every other page, so that each is a run of its own.
        writer.ask(&format!("write-many 0 {PAGE} {runs} {}", 2 * PAGE));
        let mut set = memory.none();
        let stats = tracker.collect(&mut set).unwrap();
        assert_eq!((stats.pages, stats.runs), (runs as u64, runs as u64), "the pages were not written apart");
        assert!(set.iter().map(|page| page.0).eq((0..runs as u64).map(|n| 1 + 2 * n)), "of {runs} runs");
        assert_eq!(found(&mut tracker), NONE);
    }
}

/// CK-2: memory that several threads scan, each its part, is found as that of one; pages near each other and far from
/// each other, and those on both sides of where parts meet.
#[test]
fn memory_of_several_parts_is_scanned_whole() {
    if !can_track() {
        return;
    }
    let part = PART_BYTES as u64 / PAGE;
    let near = NEAR_BYTES / PAGE;
    let memory = Tracked::new(2 * part + 300);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let (pid, len) = (writer.pid(), (2 * part + 300) * PAGE);
    let pages = [
        0,
        1,
        near + 2,
        near + 3,
        2 * near + 6,
        part - 1,
        part,
        part + 9,
        2 * part - 1,
        2 * part,
        2 * part + 299,
    ];
    for processors in [1, 2, 3, 100] {
        let mut tracker = UffdTracker::attach_with(processors, pid, memory.identity(), len).unwrap();
        assert_eq!(tracker.thread_ids().len(), processors.min(3) - 1, "beside the one that asks");
        for _ in 0..2 {
            pages.iter().for_each(|page| drop(writer.ask(&format!("write 0 {}", page * PAGE))));
            assert_eq!(found(&mut tracker), pages);
            assert_eq!(found(&mut tracker), NONE);
        }
    }
}

/// CK-2: what a system call writes in the process's name is found, as QEMU's devices write so.
#[test]
fn what_the_kernel_writes_for_the_process_is_found() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(64);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let mut tracker = memory.attach(&writer).unwrap();
    for page in [0, 9, 63] {
        writer.ask(&format!("read-into {} 16", page * PAGE));
        assert_eq!(found(&mut tracker), [page], "on a page never touched");
        writer.ask(&format!("read-into {} 16", page * PAGE + 99));
        assert_eq!(found(&mut tracker), [page], "on a page that is there");
    }
}

/// CK-2: a page that was written and then left the page tables (swap, discard) still counts.
#[test]
fn a_written_page_that_left_the_page_tables_is_found() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(64);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let mut tracker = memory.attach(&writer).unwrap();
    writer.ask(&format!("write 0 {}", 3 * PAGE));
    writer.ask(&format!("drop-from-tables {} {PAGE}", 3 * PAGE));
    assert_eq!(found(&mut tracker), [3]);
    writer.ask(&format!("write 0 {}", 3 * PAGE));
    assert_eq!(found(&mut tracker), [3], "it is watched anew");
    writer.ask(&format!("write 0 {}", 4 * PAGE));
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&memory.file, hole, 4 * 4096, 4096).unwrap();
    assert_eq!(found(&mut tracker), [4]);
}

/// CK-2: memory above 4 GiB is tracked by its place in the file, through mappings of any offset.
#[test]
fn pages_above_four_gib_are_found() {
    if !can_track() {
        return;
    }
    const GIB: u64 = 1 << 30;
    let memory = Tracked::new(6 * GIB / PAGE);
    let maps = [(0, 3 * GIB), (3 * GIB, 3 * GIB)];
    let mut writer = spawn_writer(&memory.path, &maps);
    let mut tracker = memory.attach(&writer).unwrap();
    for (map, offset) in [(0, GIB), (1, 3 * GIB), (1, 4 * GIB), (1, 5 * GIB + 123), (1, 6 * GIB - 1)] {
        writer.ask(&format!("write {map} {offset}"));
        assert_eq!(found(&mut tracker), [offset / PAGE]);
    }
}

/// CK-2: a write through any of several mappings of the file is found.
#[test]
fn writes_through_every_mapping_are_found() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(64);
    let mut writer = spawn_writer(&memory.path, &[(0, 64 * PAGE), (32 * PAGE, 16 * PAGE)]);
    let mut tracker = memory.attach(&writer).unwrap();
    writer.ask(&format!("write 0 {}", 40 * PAGE));
    assert_eq!(found(&mut tracker), [40]);
    writer.ask(&format!("write 1 {}", 40 * PAGE));
    assert_eq!(found(&mut tracker), [40]);
    writer.ask(&format!("write 1 {}", 47 * PAGE));
    writer.ask(&format!("write 0 {}", 2 * PAGE));
    assert_eq!(found(&mut tracker), [2, 47]);
}

/// CK-2: while the process writes without a break, what scan after scan finds, copied after each, is in the end
/// the memory.
#[test]
fn no_write_falls_between_two_scans() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(512);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let mut tracker = memory.attach(&writer).unwrap();
    let mut copy = vec![0_u8; 512 * PAGE_SIZE];
    memory.file.read_exact_at(&mut copy, 0).unwrap();
    let done = AtomicBool::new(false);
    let scans = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            writer.ask("scribble 512 400");
            done.store(true, Ordering::Release);
        });
        let (mut scans, mut last) = (0, false);
        while !last {
            last = done.load(Ordering::Acquire);
            let mut set = memory.none();
            tracker.collect(&mut set).unwrap();
            for page in set.iter() {
                let at = page.offset() as usize;
                memory.file.read_exact_at(&mut copy[at..at + PAGE_SIZE], page.offset()).unwrap();
            }
            scans += 1;
        }
        writing.join().unwrap();
        scans
    });
    let mut now = vec![0_u8; 512 * PAGE_SIZE];
    memory.file.read_exact_at(&mut now, 0).unwrap();
    assert!(now == copy, "a write was missed in {scans} scans");
    assert!(scans > 5, "only {scans} scans");
}

#[test]
fn the_process_notices_nothing_and_keeps_nothing() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(64);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let before = writer.descriptors();
    writer.say("poll");
    assert_eq!(writer.answer(), "polling");
    for _ in 0..20 {
        drop(memory.attach(&writer).unwrap());
    }
    let tracker = memory.attach(&writer).unwrap();
    assert_eq!(writer.descriptors(), before, "the process holds no descriptor of ours");
    // The answer to `poll` is the empty line's doing.
    writer.say(&format!("write 0 {}", 7 * PAGE));
    assert_eq!(writer.answer(), "disturbed 0", "a blocked poll is restarted");
    drop(tracker);
}

#[test]
fn a_process_in_full_career_with_signals_is_not_harmed() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(64);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    writer.say("compute 300");
    let mut attached = 0;
    let answer = std::thread::scope(|scope| {
        let pid = writer.pid();
        let waiting = scope.spawn(|| writer.answer());
        while !waiting.is_finished() {
            drop(UffdTracker::attach(pid, memory.identity(), 64 * PAGE).unwrap());
            attached += 1;
        }
        waiting.join().unwrap()
    });
    let alarms: u64 = answer.strip_prefix("alarms ").unwrap().parse().unwrap();
    assert!(attached > 10 && alarms > 10, "attached {attached} times, {alarms} alarms");
}

#[test]
fn a_stopped_process_is_attached_and_stays_stopped() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(64);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let pid = Pid::from_raw(writer.pid());
    kill(pid, Signal::SIGSTOP).unwrap();
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    };
    let wait_for_stop = || {
        let limit = Instant::now() + Duration::from_secs(5);
        while state() != 'T' {
            assert!(Instant::now() < limit, "the process is in state {}", state());
            std::thread::yield_now();
        }
    };
    wait_for_stop();
    let mut tracker = memory.attach(&writer).unwrap();
    wait_for_stop();
    kill(pid, Signal::SIGCONT).unwrap();
    writer.ask(&format!("write 0 {PAGE}"));
    assert_eq!(found(&mut tracker), [1]);
}

#[test]
fn a_second_attach_works_once_the_first_is_gone() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(64);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let mut first = memory.attach(&writer).unwrap();
    writer.ask(&format!("write 0 {PAGE}"));
    assert!(matches!(memory.attach(&writer), Err(AttachError::Busy { .. })));
    assert_eq!(found(&mut first), [1], "the one that was there goes on");
    drop(first);
    writer.ask(&format!("write 0 {}", 2 * PAGE));
    let mut second = memory.attach(&writer).unwrap();
    assert_eq!(found(&mut second), NONE, "what was written before does not count");
    writer.ask(&format!("write-many 0 0 3 {PAGE}"));
    assert_eq!(found(&mut second), [0, 1, 2]);
}

/// CK-2: when the memory is mapped otherwise than it was, no scan pretends to know.
#[test]
fn a_changed_mapping_is_an_error() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(64);
    let collect = |writer: &mut Puppet, change: &str| {
        let mut tracker = memory.attach(writer).unwrap();
        writer.ask(change);
        let fault = tracker.collect(&mut memory.none()).unwrap_err();
        assert!(matches!(fault, TrackError::Remapped { .. }), "{change}: {fault}");
    };
    let mut writer = spawn_writer(&memory.path, &[(0, 64 * PAGE), (0, 8 * PAGE)]);
    collect(&mut writer, "map-again");
    collect(&mut writer, "unmap 1");
}

#[test]
fn a_process_that_ended_or_is_another_one_is_an_error() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(64);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let other = FileIdentity { dev: 1, ino: 1 };
    let fault = UffdTracker::attach(writer.pid(), other, PAGE).unwrap_err();
    assert!(matches!(fault, AttachError::NotMapped { .. }), "{fault}");
    let mut tracker = memory.attach(&writer).unwrap();
    writer.child.kill().unwrap();
    writer.child.wait().unwrap();
    let fault = tracker.collect(&mut memory.none()).unwrap_err();
    assert!(matches!(fault, TrackError::Gone { .. }), "{fault}");
    let fault = memory.attach(&writer).unwrap_err();
    assert!(matches!(fault, AttachError::Inject(InjectError::Gone { .. })), "{fault}");
}

/// CK-2: on huge pages a write marks all of its huge page.
#[test]
fn writes_to_huge_pages_mark_whole_huge_pages() {
    if !can_track() {
        return;
    }
    let Some(mount) = host_needs::HugePages::with_room(8 << 20) else { return };
    let memory = Tracked::in_dir(mount.path(), 2048);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    writer.ask(&format!("write 0 {}", 600 * PAGE));
    let mut tracker = memory.attach(&writer).unwrap();
    assert_eq!(found(&mut tracker), NONE);
    writer.ask(&format!("write 0 {}", 700 * PAGE));
    assert_eq!(found(&mut tracker), (512..1024).collect::<Vec<_>>(), "a page that was there");
    writer.ask(&format!("write 0 {}", 1536 * PAGE + 1));
    assert_eq!(found(&mut tracker), (1536..2048).collect::<Vec<_>>(), "a page never touched");
    writer.ask(&format!("read-into {} 16", 5 * PAGE));
    assert_eq!(found(&mut tracker), (0..512).collect::<Vec<_>>(), "written by the kernel");
    assert_eq!(found(&mut tracker), NONE);
}

/// The kernel's rights belong to the thread, so a thread can give its own up.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the raw system call takes three integers and changes this thread alone, which ends soon.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn missing_rights_are_named_with_their_mend() {
    if !can_track() {
        return;
    }
    let memory = Tracked::new(64);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let (pid, identity) = (writer.pid(), memory.identity());
    let fault = as_nobody(|| UffdTracker::attach(pid, identity, 64 * PAGE)).unwrap_err();
    assert!(fault.to_string().contains("CAP_SYS_PTRACE"), "{fault}");
    let fault = as_nobody(|| {
        nix::sys::ptrace::seize(Pid::from_raw(1), nix::sys::ptrace::Options::empty()).unwrap_err()
    });
    assert_eq!(fault, Errno::EPERM, "the thread has no rights left");
    // A debugger holds the process; the thread that is it ends with the scope.
    let fault = std::thread::scope(|scope| {
        let debugger = scope.spawn(|| {
            nix::sys::ptrace::seize(Pid::from_raw(pid), nix::sys::ptrace::Options::empty()).unwrap();
            memory.attach(&writer).unwrap_err()
        });
        debugger.join().unwrap()
    });
    assert!(fault.to_string().contains("traces it already"), "{fault}");
    let mut tracker = memory.attach(&writer).unwrap();
    writer.ask("write 0 0");
    assert_eq!(found(&mut tracker), [0]);
}
