//! A live migration by the frontend: LOG_ALL with LOG_SHMFD, switched on and off under traffic.

use crate::driver::{END, GuestRam, REGIONS};
use crate::machine::{Machine, RX, Served, TX, served};
use holdfast_vhost_user::features::bits;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

const LOG_BYTES: u64 = END / 4096 / 8 + 1;

fn log() -> File {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(LOG_BYTES).expect("room for the log");
    file
}

/// Takes the pages of the memory file that the log names, as QEMU does.
fn take(log: &File) -> BTreeSet<u64> {
    let mut bytes = vec![0; LOG_BYTES as usize];
    log.read_exact_at(&mut bytes, 0).expect("reads");
    log.write_all_at(&vec![0; LOG_BYTES as usize], 0).expect("writes");
    let mut pages = BTreeSet::new();
    for (gpa, length, offset) in REGIONS {
        for page in (0..length).step_by(4096) {
            let number = (gpa + page) / 4096;
            if bytes[(number / 8) as usize] & (1 << (number % 8)) != 0 {
                pages.insert((offset + page) / 4096);
            }
        }
    }
    pages
}

fn written(before: &[u8], after: &[u8], but: &BTreeSet<u64>) -> BTreeSet<u64> {
    let pages = before.chunks(4096).zip(after.chunks(4096)).enumerate();
    pages
        .filter(|(_, (old, new))| old != new)
        .map(|(page, _)| page as u64)
        .filter(|page| !but.contains(page))
        .collect()
}

fn set_log(machine: &Machine<'_>, log: &File) {
    let region =
        VhostUserDirtyLogRegion { mmap_size: LOG_BYTES, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    machine.frontend.set_log_base(0, Some(region)).expect("a log that covers guest memory");
}

#[test]
fn a_migration_of_the_frontend_learns_of_every_page_the_device_writes() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, core: _, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    machine.start();
    machine.echo(0);

    // QEMU switches the log on while the rings run.
    let first = log();
    set_log(&machine, &first);
    machine.frontend.set_features(machine.features | bits::LOG_ALL).expect("features");
    for ring in [RX, TX] {
        machine.set_addresses(ring, true);
    }
    assert!(device.snapshot().logging);
    assert!(device.snapshot().rings_running == [true, true]);
    assert!(take(&first).is_empty());

    // Pages that the guest itself writes here: its rings and the frames it sends.
    let guest: BTreeSet<u64> = [0x1000, 0x1_0000_0000, 0x2_0000, 0x2_1000, 0x2_2000]
        .map(|gpa| GuestRam::offset(gpa) / 4096)
        .into_iter()
        .collect();
    for number in 1..6 {
        let before = ram.image();
        machine.echo(number);
        // The echo is shown before the core flushes nothing more: the log is complete at the stop.
        let pages = written(&before, &ram.image(), &guest);
        let logged = take(&first);
        assert!(!pages.is_empty() && pages.is_subset(&logged), "{pages:?} in {logged:?}");
    }

    // A larger log replaces it, still under traffic.
    let second = log();
    set_log(&machine, &second);
    machine.echo(6);
    assert!(!take(&second).is_empty());

    // And it is switched off.
    machine.frontend.set_features(machine.features).expect("features");
    for ring in [RX, TX] {
        machine.set_addresses(ring, false);
    }
    take(&second);
    machine.echo(7);
    assert!(take(&second).is_empty() && !device.snapshot().logging);
}

/// RB-1: a log that cannot hold guest memory is refused before anything is written to it.
#[test]
fn a_log_that_does_not_cover_guest_memory_is_refused() {
    let ram = GuestRam::new();
    let served = served();
    let Served { path, .. } = &served;
    for size in [1, LOG_BYTES - 2, LOG_BYTES + 1] {
        let mut machine = Machine::connect(path, &ram);
        machine.start();
        let file = log();
        let region =
            VhostUserDirtyLogRegion { mmap_size: size, mmap_offset: 0, mmap_handle: file.as_raw_fd() };
        assert!(machine.frontend.set_log_base(0, Some(region)).is_err(), "{size}");
    }
}
